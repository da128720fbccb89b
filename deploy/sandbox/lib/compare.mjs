// Tells whether Firekeep holds what the PDSes hold. It uses none of Firekeep's code: the repositories are read
// with the reference library, the archive's snapshots are unpacked by the zstd program.
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { accountsFile, Complaint, count, findPds, inParallel, options, readJson, run, sandbox, sleep, xrpc, XrpcError } from './common.mjs'
import { digestOf, readRepository } from './repository.mjs'
import { Bucket, Folder } from './stores.mjs'

const shown = 8 // differences of one account that are told one by one
const inactive = new Set(['RepoDeactivated', 'RepoTakendown', 'RepoSuspended', 'RepoNotFound', 'AccountDeactivated', 'AccountTakedown'])

run(async () => {
  const { values, positionals } = options(process.argv.slice(2), {
    url: { type: 'string' },
    archive: { type: 'string' },
    s3: { type: 'boolean' },
    prefix: { type: 'string', default: '' },
    pds: { type: 'string' },
    json: { type: 'boolean' },
    wait: { type: 'string', default: '0' },
    'no-snapshots': { type: 'boolean' },
    'old-snapshots': { type: 'boolean' },
  })
  if (positionals.length) throw new Complaint(`compare does not know '${positionals[0]}'`)
  const known = sandbox(values.dir)
  const wait = count(values, 'wait', { max: 86_400, whole: false })
  if (!values.url && !values.archive && !values.s3) throw new Complaint('compare needs --url, --archive or --s3: there is nothing to compare with')
  const stores = []
  if (values.archive && values.archive !== 'none') stores.push(new Folder(values.archive))
  if (values.s3) {
    if (!known.s3) throw new Complaint('this sandbox has no s3')
    stores.push(new Bucket(known.s3, values.prefix && !values.prefix.endsWith('/') ? `${values.prefix}/` : values.prefix))
  }
  const servers = values.pds ? [findPds(known, values.pds)] : known.pds
  if (!servers.length) throw new Complaint('this sandbox has no PDS')
  const comparison = new Comparison({
    plc: known.plc.url,
    servers,
    url: values.url,
    stores,
    accounts: readJson(accountsFile(known.dir), []),
    snapshots: !values['no-snapshots'],
    oldSnapshots: values['old-snapshots'],
  })

  const began = Date.now()
  const left = () => wait * 1000 - (Date.now() - began)
  let rounds = 0
  let result
  for (;;) {
    result = await comparison.round({ all: true })
    rounds++
    // Only what differed is looked at again, until none of it does; then all of it is, once more.
    while (!result.equal && left() > 0) {
      await sleep(Math.min(400, Math.max(left(), 50)))
      result = await comparison.round({ all: false })
      rounds++
    }
    if (!result.equal || result.all) break
    result = await comparison.round({ all: true })
    rounds++
    if (result.equal || left() <= 0) break
  }
  result.seconds = Number(((Date.now() - began) / 1000).toFixed(2))
  result.rounds = rounds
  delete result.all
  if (result.trouble) throw new Complaint(`could not compare: ${result.trouble}`)

  if (values.json) process.stdout.write(JSON.stringify(result, null, 2) + '\n')
  else {
    for (const one of result.differences) console.log(`different: ${one.pds} ${one.did} ${one.what}`)
    const { counts } = result
    console.log(`${result.equal ? 'equal' : `different (${result.differences.length})`}: ${Object.entries(counts).map(([k, n]) => `${n} ${k.replaceAll('_', ' ')}`).join(', ')}`)
    console.log(`${wait ? (result.equal ? 'became equal after' : 'still different after') : 'took'} ${result.seconds} s (${rounds} ${rounds === 1 ? 'round' : 'rounds'})`)
  }
  if (result.equal && !result.counts.accounts && !result.counts.inactive) throw new Complaint('but there was no account to compare')
  process.exitCode = result.equal ? 0 : 1
})

class Comparison {
  constructor(settings) {
    Object.assign(this, settings)
    this.repositories = new Map() // what the PDS gave for a head, by its CID
    this.blobs = new Map() // digest and type that the PDS gave, by DID and CID
    this.results = new Map() // of the last look at each account
  }

  async round({ all }) {
    let subjects
    try {
      await this.askPlc('/_health')
      subjects = await this.subjects()
    } catch (err) {
      if (!(err instanceof XrpcError) && !(err instanceof Complaint)) throw err
      return { equal: false, all, counts: this.total([]), differences: [], trouble: err.message }
    }
    const again = subjects.filter((s) => all || this.results.get(s.key)?.differences.length !== 0)
    await inParallel(4, again, async (subject) => this.results.set(subject.key, await this.account(subject)))
    const results = subjects.map((s) => this.results.get(s.key))
    const differences = results.flatMap((r) => r.differences)
    return { equal: differences.length === 0, all, counts: this.total(results), differences }
  }

  total(results) {
    const counts = {
      accounts: 0, inactive: 0, moved: 0, records: 0, blobs: 0, snapshots: 0, archived_blobs: 0, earlier_keys: 0, surplus_blocks: 0,
    }
    for (const result of results) for (const [key, n] of Object.entries(result.counts)) counts[key] += n
    return counts
  }

  /** What the PLC directory says there, or null where it has nothing. */
  async askPlc(path) {
    let response
    try {
      response = await fetch(this.plc + path, { signal: AbortSignal.timeout(20_000) })
    } catch (err) {
      throw new Complaint(`the PLC directory at ${this.plc} does not answer: ${err.cause?.message || err.message}`)
    }
    return response.ok ? response.json() : null
  }

  /** Each account that a PDS has, and those that it had. */
  async subjects() {
    const subjects = []
    for (const pds of this.servers) {
      const seen = new Set()
      let cursor
      do {
        const page = await xrpc(pds.url, 'com.atproto.sync.listRepos', { params: { limit: 500, cursor } })
        for (const { did, active } of page.repos) {
          if (seen.has(did)) continue
          seen.add(did)
          subjects.push({ key: `${pds.name} ${did}`, pds, did, active: active !== false })
        }
        cursor = page.repos.length ? page.cursor : undefined
      } while (cursor)
      for (const { did, pds: name } of this.accounts) {
        if (name === pds.name && !seen.has(did)) subjects.push({ key: `${pds.name} ${did}`, pds, did, active: false })
      }
    }
    return subjects
  }

  async account(subject) {
    for (let attempt = 0; ; attempt++) {
      const look = new Look(this, subject)
      let changed = false
      try {
        changed = await look.take()
      } catch (err) {
        if (!(err instanceof XrpcError) && !(err instanceof Complaint)) throw err
        look.differs(err.message)
      }
      // What changed under the comparer's eyes is looked at again.
      if (!changed || look.differences.length === 0) return look
      if (attempt === 3) {
        look.differs('it kept changing while it was compared')
        return look
      }
    }
  }
}

/** One look at one account. */
class Look {
  constructor(comparison, { pds, did, active }) {
    Object.assign(this, { comparison, pds, did, active })
    this.differences = []
    this.counts = {}
  }

  differs(what) {
    this.differences.push({ pds: this.pds.name, did: this.did, what })
  }

  counted(key, n = 1) {
    this.counts[key] = (this.counts[key] ?? 0) + n
  }

  /** The first few one by one, the others by their number. */
  differ(list) {
    for (const what of list.slice(0, shown)) this.differs(what)
    if (list.length > shown) this.differs(`and ${list.length - shown} differences more of this kind`)
  }

  async take() {
    const { comparison, did, pds } = this
    const { url } = comparison
    const identity = await this.identity()
    if (identity && identity.pds !== pds.url) {
      this.counted('moved')
      return false
    }
    let head
    try {
      if (this.active) head = await this.latest(pds.url)
    } catch (err) {
      if (!inactive.has(err.error)) throw err
    }
    if (!head) {
      await this.refusal()
      return false
    }
    this.counted('accounts')
    const theirs = await this.original(head)
    if (!(await this.signer(theirs, identity))) this.differs(`the PDS's own head ${theirs.cid} is signed by none of the account's keys`)
    this.counted('records', theirs.records.size)
    if (url) {
      await this.mirror(theirs, head, identity)
      await this.mirroredBlobs()
    }
    for (const store of comparison.stores) {
      if (comparison.snapshots) await this.snapshot(store, theirs, identity)
      await this.archivedBlobs(store)
    }
    const after = await this.latest(pds.url)
    return after.cid !== head.cid || after.rev !== head.rev
  }

  /** Where the account lives, and its signing keys, newest first. Null when the directory does not have it. */
  async identity() {
    const ask = (path) => this.comparison.askPlc(`/${this.did}${path}`)
    if (!this.did.startsWith('did:plc:')) throw new Complaint('its DID is of no method that this can look up')
    const data = await ask('/data')
    if (!data) return null
    const earlier = async () => {
      const log = (await ask('/log/audit')) ?? []
      return log.map(({ operation }) => operation.verificationMethods?.atproto ?? operation.signingKey).filter(Boolean)
    }
    return { pds: data.services?.atproto_pds?.endpoint, key: data.verificationMethods?.atproto, earlier }
  }

  /** Whether a key of the account signed it: the one of now, or after a move one of before. */
  async signer(repository, identity) {
    if (!identity) return false
    if (identity.key && (await repository.signedBy(identity.key))) return true
    for (const key of await identity.earlier()) {
      if (await repository.signedBy(key)) {
        this.counted('earlier_keys')
        return true
      }
    }
    return false
  }

  latest(url) {
    return xrpc(url, 'com.atproto.sync.getLatestCommit', { params: { did: this.did } })
  }

  async repository(url) {
    const { data } = await xrpc(url, 'com.atproto.sync.getRepo', { params: { did: this.did }, raw: true, timeout: 300_000 })
    return readRepository(data)
  }

  /** The PDS's repository; a head that was read already is not read again. */
  async original(head) {
    const { repositories } = this.comparison
    let repository = repositories.get(`${this.did} ${head.cid}`)
    if (!repository) {
      try {
        repository = await this.repository(this.pds.url)
      } catch (err) {
        if (err instanceof XrpcError) throw err
        throw new Complaint(`the PDS's own repository can't be read: ${err.message}`)
      }
      repositories.set(`${this.did} ${repository.cid}`, repository)
    }
    return repository
  }

  sameRepository(where, theirs, ours) {
    if (ours.did !== this.did) this.differs(`${where} is of another account, ${ours.did}`)
    if (ours.cid !== theirs.cid) this.differs(`${where} has the head ${ours.cid}, the PDS ${theirs.cid}`)
    if (ours.rev !== theirs.rev) this.differs(`${where} is at rev ${ours.rev}, the PDS at ${theirs.rev}`)
    const list = []
    for (const [path, cid] of theirs.records) {
      const found = ours.records.get(path)
      if (!found) list.push(`${where} lacks the record ${path} (${cid})`)
      else if (found !== cid) list.push(`${where} has the record ${path} as ${found}, the PDS as ${cid}`)
    }
    for (const [path, cid] of ours.records) {
      if (!theirs.records.has(path)) list.push(`${where} has the record ${path} (${cid}), the PDS has not`)
    }
    this.differ(list)
  }

  async mirror(theirs, head, identity) {
    const { url } = this.comparison
    let ours
    try {
      ours = await this.repository(url)
    } catch (err) {
      this.differs(err instanceof XrpcError ? err.message : `getRepo at ${url} gives a repository that can't be read: ${err.message}`)
      return
    }
    this.sameRepository('the mirror', theirs, ours)
    this.counted('surplus_blocks', ours.surplus)
    if (ours.cid !== theirs.cid && !(await this.signer(ours, identity))) {
      this.differs(`the mirror's head ${ours.cid} is signed by none of the account's keys`)
    }
    const latest = await this.latest(url)
    if (latest.cid !== head.cid) this.differs(`getLatestCommit of the mirror gives ${latest.cid}, of the PDS ${head.cid}`)
    // After a move the PDS gives a newer rev than its head has, until the next write.
    if (latest.rev !== head.rev && latest.rev !== theirs.rev) {
      this.differs(`getLatestCommit of the mirror gives rev ${latest.rev}, of the PDS ${head.rev}`)
    }
  }

  async blobList(url) {
    const cids = []
    let cursor
    do {
      const page = await xrpc(url, 'com.atproto.sync.listBlobs', { params: { did: this.did, limit: 500, cursor } })
      cids.push(...page.cids)
      cursor = page.cids.length ? page.cursor : undefined
    } while (cursor)
    return cids
  }

  /** Digest, length and type of a blob of the PDS, or why it gives none. */
  async originalBlob(cid) {
    const { blobs } = this.comparison
    const key = `${this.did} ${cid}`
    if (!blobs.has(key)) {
      const found = await this.blob(this.pds.url, cid)
      if (found.refused) return found
      if (found.digest !== digestOf(cid)) throw new Complaint(`the PDS's own blob ${cid} has other bytes than its CID says`)
      blobs.set(key, found)
    }
    return blobs.get(key)
  }

  async blob(url, cid) {
    try {
      const { data, type } = await xrpc(url, 'com.atproto.sync.getBlob', { params: { did: this.did, cid }, raw: true })
      return measured(data, type)
    } catch (err) {
      if (!(err instanceof XrpcError) || err.unreachable) throw err
      return { refused: err.message }
    }
  }

  /** The blobs that the PDS has, and what it says of each. Those that it lists and refuses are left out. */
  async originalBlobs() {
    if (!this.listed) {
      this.listed = new Map()
      for (const cid of await this.blobList(this.pds.url)) {
        const found = await this.originalBlob(cid)
        this.listed.set(cid, found.refused ? null : found)
      }
    }
    return this.listed
  }

  async mirroredBlobs() {
    const { url } = this.comparison
    const theirs = await this.originalBlobs()
    const list = []
    let names
    try {
      names = new Set(await this.blobList(url))
    } catch (err) {
      if (!(err instanceof XrpcError)) throw err
      this.differs(err.message)
      return
    }
    for (const [cid, found] of theirs) {
      if (!found) continue
      if (!names.has(cid)) list.push(`the mirror does not list the blob ${cid}`)
      const ours = await this.blob(url, cid)
      this.counted('blobs')
      if (ours.refused) list.push(`the mirror does not give the blob ${cid}: ${ours.refused}`)
      else list.push(...unlike('the mirror', cid, found, ours))
    }
    for (const cid of names) if (!theirs.has(cid)) list.push(`the mirror lists the blob ${cid}, the PDS does not`)
    this.differ(list)
  }

  async snapshot(store, theirs, identity) {
    const folder = `v1/repos/${this.did}`
    const names = (await store.list(folder)).filter((name) => /^[2-7a-z]{13}-[a-z2-7]+\.car\.zst$/.test(name)).sort()
    const name = names.at(-1)
    if (!name) {
      this.differs(`${store.name}: there is no snapshot in ${folder}`)
      return
    }
    const where = `${store.name}: the snapshot ${name}`
    const found = await store.get(`${folder}/${name}`)
    if (!found) {
      this.differs(`${where} was listed and is gone`)
      return
    }
    let ours
    try {
      ours = await readRepository(await unpacked(found.data))
    } catch (err) {
      this.differs(`${where} can't be read: ${err.message}`)
      return
    }
    this.counted('snapshots')
    this.counted('surplus_blocks', ours.surplus)
    if (name !== `${ours.rev}-${ours.cid}.car.zst`) this.differs(`${where} is of rev ${ours.rev} and head ${ours.cid}`)
    if (!(await this.signer(ours, identity))) this.differs(`${where} is signed by none of the account's keys`)
    if (this.comparison.oldSnapshots && ours.rev < theirs.rev) {
      if (ours.did !== this.did) this.differs(`${where} is of another account, ${ours.did}`)
      return
    }
    this.sameRepository(where, theirs, ours)
  }

  async archivedBlobs(store) {
    const list = []
    for (const [cid, found] of await this.originalBlobs()) {
      if (!found) continue
      const ours = await store.get(`v1/blocks/${this.did}/${cid}`)
      this.counted('archived_blobs')
      if (!ours) list.push(`${store.name}: there is no v1/blocks/${this.did}/${cid}`)
      else list.push(...unlike(store.name, cid, found, measured(ours.data, ours.type)))
    }
    this.differ(list)
  }

  /** Of an account that the PDS does not give, the mirror gives nothing either, and says so in the protocol's way. */
  async refusal() {
    this.counted('inactive')
    const { url } = this.comparison
    if (!url) return
    try {
      await xrpc(url, 'com.atproto.sync.getRepo', { params: { did: this.did }, raw: true })
      this.differs('the PDS does not give this account, the mirror does')
    } catch (err) {
      if (!(err instanceof XrpcError)) throw err
      if (err.unreachable || !err.error || err.status < 400 || err.status >= 500) {
        this.differs(`the PDS does not give this account; of the mirror an XRPC error was expected: ${err.message}`)
      }
    }
  }
}

function measured(data, type) {
  return { digest: createHash('sha256').update(data).digest('hex'), size: data.length, type: type?.toLowerCase() ?? null }
}

function unlike(where, cid, theirs, ours) {
  const list = []
  if (ours.digest !== theirs.digest) list.push(`${where}: the blob ${cid} has other bytes (${ours.size} of them, ${theirs.size} at the PDS)`)
  if (ours.type !== null && ours.type !== theirs.type) list.push(`${where}: the blob ${cid} has the type ${ours.type}, at the PDS ${theirs.type}`)
  return list
}

function unpacked(bytes) {
  return new Promise((resolve, reject) => {
    const zstd = spawn('zstd', ['-d', '-c', '-q'], { stdio: ['pipe', 'pipe', 'pipe'] })
    const out = []
    let complaint = ''
    zstd.stdout.on('data', (chunk) => out.push(chunk))
    zstd.stderr.on('data', (chunk) => (complaint += chunk))
    zstd.on('error', reject)
    zstd.on('close', (code) => (code === 0 ? resolve(Buffer.concat(out)) : reject(new Error(complaint.trim() || `zstd ended with ${code}`))))
    zstd.stdin.on('error', () => {}) // it ended early, and says why
    zstd.stdin.end(bytes)
  })
}
