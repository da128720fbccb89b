// What the commands share: options, errors, files, seeded chance, and the XRPC client.
import fs from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { setTimeout as sleep } from 'node:timers/promises'

export { sleep }

export const say = (text) => process.stderr.write(`sandbox: ${text}\n`)

/** An error that is told without a stack: its text says all. */
export class Complaint extends Error {}

export function run(main) {
  // On the next turn, so that the whole file has been read.
  Promise.resolve().then(main).catch((err) => {
    say(err instanceof Complaint || err instanceof XrpcError ? err.message : `${err?.stack ?? err}`)
    process.exit(err instanceof Complaint && err.code ? err.code : 2)
  })
}

export function options(args, spec) {
  const options = { dir: { type: 'string' }, cache: { type: 'string' }, ...spec }
  try {
    return parseArgs({ args, options, allowPositionals: true })
  } catch (err) {
    throw new Complaint(`${err.message}; try: sandbox help`)
  }
}

export function count(values, name, { min = 0, max = 1e7, whole = true } = {}) {
  const number = Number(values[name])
  if (values[name] === '' || !(number >= min && number <= max) || (whole && !Number.isInteger(number))) {
    throw new Complaint(`--${name} must be a ${whole ? 'whole ' : ''}number from ${min} to ${max}, not '${values[name]}'`)
  }
  return number
}

export function readJson(file, otherwise) {
  try {
    return JSON.parse(fs.readFileSync(file, 'utf8'))
  } catch (err) {
    if (err.code === 'ENOENT' && otherwise !== undefined) return otherwise
    if (err.code === 'ENOENT') throw new Complaint(`there is no ${file}: is a sandbox up there?`)
    throw new Complaint(`${file} can't be read: ${err.message}`)
  }
}

export function writeJson(file, value) {
  const temporary = `${file}.${process.pid}.tmp`
  fs.writeFileSync(temporary, JSON.stringify(value, null, 2) + '\n', { mode: 0o600 })
  fs.renameSync(temporary, file)
}

/** Changes a JSON file that other commands may be changing at the same time. */
export async function changeJson(file, otherwise, change) {
  const lock = `${file}.lock`
  const giveUp = Date.now() + 20_000
  for (;;) {
    try {
      fs.writeFileSync(lock, String(process.pid), { flag: 'wx' })
      break
    } catch (err) {
      if (err.code !== 'EEXIST') throw err
      const holder = Number(fs.readFileSync(lock, { encoding: 'utf8', flag: 'a+' }))
      if (holder && !fs.existsSync(`/proc/${holder}`)) fs.rmSync(lock, { force: true })
      else if (Date.now() > giveUp) throw new Complaint(`${lock} is held by process ${holder}; remove it if that is wrong`)
      await sleep(30)
    }
  }
  try {
    const value = change(readJson(file, otherwise))
    writeJson(file, value)
    return value
  } finally {
    fs.rmSync(lock, { force: true })
  }
}

export const accountsFile = (dir) => path.join(dir, 'accounts.json')

export function sandbox(dir) {
  const known = readJson(path.join(dir, 'sandbox.json'))
  known.dir = path.resolve(dir)
  return known
}

export function findPds(known, name) {
  const pds = name ? known.pds.find((p) => p.name === name) : known.pds[0]
  if (!pds) {
    const names = known.pds.map((p) => p.name).join(', ') || 'none'
    throw new Complaint(name ? `there is no PDS '${name}' in this sandbox; there are: ${names}` : 'this sandbox has no PDS')
  }
  return pds
}

/** By DID or handle, of those in accounts.json. */
export function findAccount(list, { did, handle, pds }) {
  if (!did && !handle) throw new Complaint('which account? give --did or --handle')
  const found = list.findLast((a) => (did ? a.did === did : a.handle === handle) && (!pds || a.pds === pds))
  if (!found) throw new Complaint(`there is no account ${did ?? handle} in accounts.json`)
  return found
}

/** The same numbers for the same seed (mulberry32). */
export function chance(seed) {
  let state = 0
  for (const char of String(seed)) state = (Math.imul(state ^ char.charCodeAt(0), 0x01000193) + 0x9e3779b9) >>> 0
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
  const below = (n) => Math.floor(next() * n)
  const pick = (list) => list[below(list.length)]
  /** One of the keys, by weight. */
  const weighted = (weights) => {
    let at = next() * Object.values(weights).reduce((a, b) => a + b, 0)
    for (const [key, weight] of Object.entries(weights)) if ((at -= weight) < 0) return key
    return Object.keys(weights)[0]
  }
  return { next, below, pick, weighted }
}

/** Runs the work on each item, so many at a time; the first error ends it. */
export async function inParallel(width, items, work) {
  const results = new Array(items.length)
  let at = 0
  const worker = async () => {
    while (at < items.length) {
      const i = at++
      try {
        results[i] = await work(items[i], i)
      } catch (err) {
        at = items.length
        throw err
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(width, items.length) }, worker))
  return results
}

export class XrpcError extends Error {
  constructor(what, status, error, message) {
    super(`${what}: ${status ?? 'no answer'} ${error ?? ''}${message ? `: ${message}` : ''}`)
    this.status = status
    this.error = error
  }
  /** No answer at all: the service is down or restarting. */
  get unreachable() {
    return this.status === undefined
  }
}

export const basic = (password) => `Basic ${Buffer.from(`admin:${password}`).toString('base64')}`
export const bearer = (token) => `Bearer ${token}`

/** One XRPC call. `body` is JSON; `bytes` with `type` are sent as they are; neither and no `params` wanted: see `post`. */
export async function xrpc(base, nsid, { params, body, bytes, type, auth, post, raw, timeout = 60_000 } = {}) {
  const url = new URL(`/xrpc/${nsid}`, base)
  for (const [key, value] of Object.entries(params ?? {})) if (value !== undefined) url.searchParams.set(key, value)
  const headers = {}
  if (auth) headers.authorization = auth
  const init = { headers, method: 'GET', redirect: 'manual', signal: AbortSignal.timeout(timeout) }
  if (body !== undefined) {
    init.method = 'POST'
    init.body = JSON.stringify(body)
    headers['content-type'] = 'application/json'
  } else if (bytes !== undefined) {
    init.method = 'POST'
    init.body = bytes
    headers['content-type'] = type
  } else if (post) {
    init.method = 'POST'
  }
  let response, data
  try {
    response = await fetch(url, init)
    data = Buffer.from(await response.arrayBuffer())
  } catch (err) {
    throw new XrpcError(`${nsid} at ${base}`, undefined, err.cause?.code ?? err.name, err.cause?.message || err.message)
  }
  if (!response.ok) {
    let answer = {}
    try {
      answer = JSON.parse(data.toString('utf8'))
    } catch {
      answer = { notJson: data.toString('utf8').slice(0, 120) }
    }
    const err = new XrpcError(`${nsid} at ${base}`, response.status, answer.error, answer.message ?? answer.notJson)
    err.retryAfter = Number(response.headers.get('ratelimit-reset')) * 1000 - Date.now() || undefined
    throw err
  }
  if (raw) return { data, type: response.headers.get('content-type'), headers: response.headers }
  return data.length ? JSON.parse(data.toString('utf8')) : undefined
}
