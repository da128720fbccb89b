// up, down, stop, start, kill, status: the services of one sandbox, by process id.
// Called with the sandbox's lock held, so that two of these never work on one folder at once.
import { execFileSync, spawn } from 'node:child_process'
import { randomBytes, randomInt } from 'node:crypto'
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import { Complaint, options, count, readJson, writeJson, run, say, sleep } from './common.mjs'

const lib = import.meta.dirname
const nodeFlags = ['--experimental-import-meta-resolve', '--disable-warning=ExperimentalWarning', '--disable-warning=DEP0040']
const bootId = fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
const startTimeout = Number(process.env.SANDBOX_START_TIMEOUT || 90) * 1000

run(async () => {
  const [command, ...rest] = process.argv.slice(2)
  const { values, positionals } = options(rest, {
    with: { type: 'string' },
    pds: { type: 'string' },
    'pds-version': { type: 'string' },
    'pds-env': { type: 'string', multiple: true },
    detach: { type: 'boolean' },
  })
  const dir = path.resolve(values.dir)
  const box = new Box(dir)
  if (command === 'up') {
    if (positionals.length) throw new Complaint(`up does not know '${positionals[0]}'`)
    box.plan(values)
    await box.start(box.services())
    box.publish()
    process.stdout.write(JSON.stringify(box.public(), null, 2) + '\n')
    return
  }
  if (command === 'status') {
    box.publish()
    process.stdout.write(JSON.stringify(box.public(), null, 2) + '\n')
    return
  }
  if (command === 'down') {
    const stopped = await box.stop(box.services().reverse())
    box.publish()
    say(stopped.length ? `stopped ${stopped.join(', ')}` : 'nothing was running')
    return
  }
  const services = positionals.map((name) => box.service(name))
  if (!services.length) throw new Complaint(`${command} needs the name of a service: ${box.names()}`)
  if (command === 'start') {
    box.setPdsEnv(values['pds-env'], services.map((s) => s.name))
    const started = await box.start(services)
    if (!started) say('it runs already')
  } else {
    const stopped = await box.stop(services, { kill: command === 'kill' })
    say(stopped.length ? `${command === 'kill' ? 'killed' : 'stopped'} ${stopped.join(', ')}` : 'it was not running')
  }
  box.publish()
})

class Box {
  constructor(dir) {
    this.dir = dir
    this.stateFile = path.join(dir, 'state.json')
    this.state = readJson(this.stateFile, { plc: null, s3: null, pds: [] })
  }

  save() {
    writeJson(this.stateFile, this.state)
  }

  /** Adds to the state what is asked for and not there yet. */
  plan(values) {
    const { state } = this
    const fresh = !state.plc && !state.s3 && !state.pds.length
    const asked = values.with === undefined ? (fresh ? ['pds', 'plc', 's3'] : []) : values.with.split(',').filter(Boolean)
    for (const name of asked) {
      if (!['pds', 'plc', 's3'].includes(name)) throw new Complaint(`--with knows pds, plc and s3, not '${name}'`)
    }
    let wanted = values.pds === undefined ? (asked.includes('pds') ? 1 : 0) : count(values, 'pds', { max: 50 })
    if (values.with !== undefined && !asked.includes('pds') && values.pds === undefined) wanted = 0
    const versions = (values['pds-version'] || '').split(',').filter(Boolean)
    if (wanted > 0 && !state.plc) asked.push('plc')
    if (asked.includes('plc') && !state.plc) state.plc = { port: null }
    if (asked.includes('s3') && !state.s3) {
      state.s3 = {
        port: null,
        bucket: 'firekeep',
        region: 'us-east-1',
        access_key: `AK${randomBytes(9).toString('hex').toUpperCase()}`,
        secret_key: randomBytes(20).toString('hex'),
      }
    }
    for (let n = state.pds.length + 1, i = 0; n <= wanted; n++, i++) {
      state.pds.push({
        name: `pds${n}`,
        version: versions[Math.min(i, versions.length - 1)] ?? '0.5.35',
        port: null,
        handle_domain: `.pds${n}.test`,
        admin_password: `admin-${randomBytes(8).toString('hex')}`,
        jwt_secret: randomBytes(32).toString('hex'),
        dpop_secret: randomBytes(32).toString('hex'),
        rotation_key: randomBytes(32).toString('hex'),
        env: {},
      })
    }
    if (!state.plc && !state.s3 && !state.pds.length) throw new Complaint('there is nothing to start: see --with')
    this.setPdsEnv(values['pds-env'], state.pds.map((p) => p.name))
  }

  setPdsEnv(pairs, names) {
    for (const pair of pairs ?? []) {
      const at = pair.indexOf('=')
      if (!/^[A-Z][A-Z0-9_]*=/.test(pair)) throw new Complaint(`--pds-env wants NAME=VALUE, not '${pair}'`)
      const [name, value] = [pair.slice(0, at), pair.slice(at + 1)]
      for (const pds of this.state.pds.filter((p) => names.includes(p.name))) {
        if (value) pds.env[name] = value
        else delete pds.env[name]
      }
    }
    if (pairs?.length) this.save()
  }

  services() {
    const { plc, s3, pds } = this.state
    const all = []
    if (plc) all.push(new Service(this, 'plc', plc))
    if (s3) all.push(new Service(this, 's3', s3))
    for (const one of pds) all.push(new Service(this, one.name, one))
    return all
  }

  names() {
    return this.services().map((s) => s.name).join(', ') || 'there is none'
  }

  service(name) {
    const found = this.services().find((s) => s.name === name)
    if (!found) throw new Complaint(`there is no service '${name}' in this sandbox; there are: ${this.names()}`)
    return found
  }

  async start(services) {
    const starting = services.filter((s) => !s.pid())
    for (const service of starting) await service.choosePort()
    this.save()
    if (!starting.length) return 0
    const results = await Promise.allSettled(starting.map((s) => s.start()))
    const failed = results.filter((r) => r.status === 'rejected').map((r) => r.reason)
    if (failed.length) {
      await this.stop(starting)
      this.publish()
      throw failed.every((e) => e instanceof Complaint) ? new Complaint(failed.map((e) => e.message).join('\n')) : failed[0]
    }
    return starting.length
  }

  async stop(services, how) {
    const running = services.filter((s) => s.pid())
    // The PDSes go before the directory they ask.
    await Promise.all(running.filter((s) => s.name !== 'plc').map((s) => s.stop(how)))
    await Promise.all(running.filter((s) => s.name === 'plc').map((s) => s.stop(how)))
    return running.map((s) => s.name)
  }

  public() {
    const found = {}
    for (const service of this.services()) {
      const { name, url, settings } = service
      const pid = service.pid()
      if (name === 'plc') found.plc = { url, pid, port: settings.port }
      else if (name === 's3') {
        const { bucket, region, access_key, secret_key, port } = settings
        found.s3 = { endpoint: url, pid, port, bucket, region, access_key, secret_key }
      } else {
        found.pds ??= []
        found.pds.push({
          name,
          version: settings.version,
          url,
          pid,
          port: settings.port,
          data_dir: service.data,
          admin_password: settings.admin_password,
          handle_domain: settings.handle_domain,
        })
      }
    }
    return { plc: found.plc ?? null, pds: found.pds ?? [], s3: found.s3 ?? null }
  }

  publish() {
    writeJson(path.join(this.dir, 'sandbox.json'), this.public())
  }
}

class Service {
  constructor(box, name, settings) {
    this.box = box
    this.name = name
    this.settings = settings
    this.data = path.join(box.dir, 'data', name)
    this.log = path.join(box.dir, 'logs', `${name}.log`)
    this.pidFile = path.join(box.dir, 'run', `${name}.pid`)
    this.startFile = path.join(box.dir, 'run', `${name}.start`)
    this.readyFile = path.join(box.dir, 'run', `${name}.ready`)
  }

  get url() {
    // The PDS refuses a directory whose URL has an IP address, and `localhost` is the only name it serves without TLS.
    return `http://${this.name === 's3' ? '127.0.0.1' : 'localhost'}:${this.settings.port}`
  }

  /** The process id, if the process that we started is still alive. */
  pid() {
    const pid = Number(readText(this.pidFile))
    return pid && birth(pid) === readText(this.startFile) ? pid : null
  }

  async choosePort() {
    if (this.settings.port) {
      if (!(await portIsFree(this.settings.port))) {
        throw new Complaint(`${this.name}: its port ${this.settings.port} is taken by another program`)
      }
      return
    }
    const taken = this.box.services().map((s) => s.settings.port)
    for (let tries = 0; tries < 200; tries++) {
      // Below the ports that the kernel gives to outgoing connections, so that it is still free after a restart.
      const port = randomInt(12000, 32000)
      if (!taken.includes(port) && (await portIsFree(port))) {
        this.settings.port = port
        return
      }
    }
    throw new Complaint(`${this.name}: no free port was found`)
  }

  command() {
    const { settings, data, box } = this
    const node = process.env.SANDBOX_NODE
    const env = { SANDBOX_READY_FILE: this.readyFile, SANDBOX_PORT: String(settings.port) }
    if (this.name === 's3') {
      env.SANDBOX_S3_REGION = settings.region
      env.SANDBOX_S3_BUCKET = settings.bucket
      env.SANDBOX_S3_ACCESS_KEY = settings.access_key
      env.SANDBOX_S3_SECRET_KEY = settings.secret_key
      return { file: process.env.SANDBOX_PYTHON, args: [path.join(lib, 's3.py')], env, health: '/' }
    }
    env.LOG_ENABLED = 'true'
    env.LOG_LEVEL = process.env.SANDBOX_LOG_LEVEL || 'warn'
    env.NODE_ENV = 'production'
    if (this.name === 'plc') {
      env.SANDBOX_TOOLS = process.env.SANDBOX_TOOLS
      env.SANDBOX_PLC_JOURNAL = path.join(data, 'journal.jsonl')
      return { file: node, args: [...nodeFlags, path.join(lib, 'plc.mjs')], env, health: '/_health' }
    }
    if (settings.version === 'arroba') {
      Object.assign(env, {
        SANDBOX_DATA: data,
        SANDBOX_PLC_URL: `http://localhost:${box.state.plc.port}`,
        REPO_TOKEN: settings.admin_password,
        ...settings.env,
      })
      return { file: path.join(pdsDir('arroba'), 'bin', 'python'), args: [path.join(lib, 'arroba_pds.py')], env, health: '/xrpc/_health' }
    }
    Object.assign(env, {
      SANDBOX_PDS_DIR: pdsDir(settings.version),
      PDS_HOSTNAME: 'localhost',
      PDS_PORT: String(settings.port),
      PDS_SERVICE_DID: `did:web:localhost%3A${settings.port}`,
      PDS_SERVICE_HANDLE_DOMAINS: settings.handle_domain,
      PDS_DATA_DIRECTORY: data,
      PDS_BLOBSTORE_DISK_LOCATION: path.join(data, 'blobs'),
      PDS_BLOBSTORE_DISK_TMP_LOCATION: path.join(data, 'blobs-tmp'),
      PDS_DID_PLC_URL: `http://localhost:${box.state.plc.port}`,
      PDS_DEV_MODE: 'true',
      PDS_INVITE_REQUIRED: 'false',
      PDS_ADMIN_PASSWORD: settings.admin_password,
      PDS_JWT_SECRET: settings.jwt_secret,
      PDS_DPOP_SECRET: settings.dpop_secret,
      PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: settings.rotation_key,
      ...settings.env,
    })
    return { file: node, args: [...nodeFlags, path.join(lib, 'pds.mjs')], env, health: '/xrpc/_health' }
  }

  async start() {
    for (const dir of [this.data, path.dirname(this.log), path.dirname(this.pidFile)]) fs.mkdirSync(dir, { recursive: true })
    const { file, args, env, health } = this.command()
    for (const old of [this.readyFile, this.pidFile, this.startFile]) fs.rmSync(old, { force: true })
    const log = fs.openSync(this.log, 'a')
    fs.writeSync(log, `--- ${this.name} starts at ${new Date().toISOString()}\n`)
    this.logFrom = fs.fstatSync(log).size
    // Nothing of the caller's environment but these reaches a service: a stray PDS_* or AWS_* would change it.
    const kept = Object.fromEntries(['PATH', 'HOME', 'LANG', 'TZ', 'TMPDIR'].flatMap((k) => (process.env[k] ? [[k, process.env[k]]] : [])))
    const child = spawn(file, args, { cwd: this.data, env: { ...kept, ...env }, detached: true, stdio: ['ignore', log, log] })
    fs.closeSync(log)
    let ended = null
    child.on('error', (err) => (ended = `could not be started: ${err.message}`))
    child.on('exit', (code, signal) => (ended = `ended at its start (${signal ? `signal ${signal}` : `exit code ${code}`})`))
    child.unref()
    if (child.pid) {
      fs.writeFileSync(this.startFile, birth(child.pid) ?? 'ended')
      fs.writeFileSync(this.pidFile, `${child.pid}\n`)
    }
    const began = Date.now()
    for (;;) {
      if (ended) throw new Complaint(this.trouble(ended))
      if (Number(readText(this.readyFile)) === child.pid && (await answers(this.url + health))) break
      if (Date.now() - began > startTimeout) throw new Complaint(this.trouble(`was not ready within ${startTimeout / 1000} s`))
      await sleep(50)
    }
    child.removeAllListeners()
    say(`${this.name} runs at ${this.url} (process ${child.pid}, after ${((Date.now() - began) / 1000).toFixed(1)} s)`)
  }

  trouble(what) {
    const text = fs.readFileSync(this.log).subarray(this.logFrom).toString('utf8').trim().split('\n').slice(-15)
    return `${this.name} ${what}. The end of its log (${this.log}):\n${text.map((line) => `    ${line}`).join('\n')}`
  }

  async stop({ kill = false } = {}) {
    for (const [signal, patience] of kill ? [['SIGKILL', 10_000]] : [['SIGTERM', 8000], ['SIGKILL', 10_000]]) {
      const pid = this.pid()
      if (!pid) break
      try {
        process.kill(pid, signal)
      } catch (err) {
        if (err.code !== 'ESRCH') throw new Complaint(`${this.name} (process ${pid}) can't be stopped: ${err.message}`)
      }
      const until = Date.now() + patience
      while (this.pid() && Date.now() < until) await sleep(25)
    }
    if (this.pid()) throw new Complaint(`${this.name} (process ${this.pid()}) did not end`)
    for (const file of [this.readyFile, this.pidFile, this.startFile]) fs.rmSync(file, { force: true })
  }
}

function readText(file) {
  try {
    return fs.readFileSync(file, 'utf8').trim()
  } catch {
    return ''
  }
}

/** When a process was born: with the boot it tells it from a later one with the same id. Null when it is gone. */
function birth(pid) {
  const stat = readText(`/proc/${pid}/stat`)
  if (!stat) return null
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return fields[0] === 'Z' || fields[0] === 'X' ? null : `${bootId} ${fields[19]}`
}

function portIsFree(port) {
  return new Promise((resolve) => {
    const server = net.createServer()
    server.once('error', () => resolve(false))
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)))
  })
}

async function answers(url) {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(5000) })
    await response.arrayBuffer()
    return response.ok
  } catch {
    return false
  }
}

const pdsDirs = new Map()
function pdsDir(version) {
  if (!pdsDirs.has(version)) {
    try {
      const told = execFileSync(process.env.SANDBOX_ENTRY, ['pds-dir', version], { stdio: ['ignore', 'pipe', 'inherit'] })
      pdsDirs.set(version, told.toString().trim())
    } catch {
      throw new Complaint(`the PDS ${version} could not be installed`)
    }
  }
  return pdsDirs.get(version)
}
