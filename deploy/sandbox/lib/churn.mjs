// Live traffic for a bounded time: creates, updates and deletes over all accounts, and it outlives restarts of a PDS.
import { accountsFile, chance, Complaint, count, findPds, options, readJson, run, sandbox, say, sleep, XrpcError } from './common.mjs'
import { picture } from './images.mjs'
import {
  about, Account, BLOCK, clip, CLIP, clipBytes, creating, deleting, FOLLOW, LIKE, POST, post, profile, PROFILE, REPOST, split, updating,
} from './records.mjs'

const listed = [POST, CLIP, LIKE, REPOST, FOLLOW, BLOCK]
const inFlightMost = 16

/** What is done, by weight. */
const mix = {
  post: 26, postWithPictures: 10, reusedPicture: 2, clip: 4, like: 12, repost: 4, follow: 3, block: 1,
  editPost: 6, editPictures: 3, newAvatar: 4, editProfile: 2,
  delete: 9, deleteWithBlob: 5, batch: 9,
}

run(async () => {
  const { values, positionals } = options(process.argv.slice(2), {
    rate: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '10' },
    pds: { type: 'string' },
    seed: { type: 'string', default: '1' },
  })
  if (positionals.length) throw new Complaint(`churn does not know '${positionals[0]}'`)
  const rate = count(values, 'rate', { min: 0.01, max: 1000, whole: false })
  const seconds = count(values, 'seconds', { min: 0, max: 86_400 * 7, whole: false })
  const known = sandbox(values.dir)
  const servers = values.pds ? [findPds(known, values.pds)] : known.pds
  const writers = readJson(accountsFile(known.dir), [])
    .filter((a) => servers.some((p) => p.name === a.pds))
    .map((a) => new Writer(findPds(known, a.pds), a))
  if (!writers.length) throw new Complaint('there are no accounts to write as; make some with: sandbox populate')
  const random = chance(`${values.seed} churn`)
  await new Churn(writers, random).go(rate, seconds)
})

class Writer extends Account {
  ready = false // its records have been listed
  busy = false
  restUntil = 0
  records = [] // {uri, cid, collection, rkey, value}

  async list() {
    for (const collection of listed) {
      const params = { repo: this.did, collection, limit: 100 }
      const { records } = await this.call('com.atproto.repo.listRecords', { params })
      for (const { uri, cid, value } of records) this.keep({ uri, cid }, value)
    }
    this.ready = true
  }

  keep({ uri, cid }, value) {
    const { collection, rkey } = split(uri)
    const record = { uri, cid, collection, rkey, value }
    this.records.push(record)
    return record
  }

  forget(record) {
    this.records = this.records.filter((r) => r !== record)
  }
}

const withBlob = ({ value }) => value.$type === CLIP || Boolean(value.embed?.images)

class Churn {
  constructor(writers, random) {
    this.writers = writers
    this.random = random
    this.counts = { commits: 0, creates: 0, updates: 0, deletes: 0, batches: 0, blobs: 0, avatars: 0, blob_records_deleted: 0, errors: 0 }
    this.inFlight = new Set()
    this.lastComplaint = 0
    this.stopping = false
    for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => (this.stopping = true))
  }

  async go(rate, seconds) {
    const began = Date.now()
    const ends = began + seconds * 1000
    let due = 0
    while (Date.now() < ends && !this.stopping) {
      const writer = this.idle()
      const owed = ((Date.now() - began) / 1000) * rate + 1 - due
      if (!writer || owed < 1 || this.inFlight.size >= inFlightMost) {
        // What could not be done in a restart is not done all at once after it.
        if (owed > Math.max(20, rate * 2)) due += owed - Math.max(20, rate * 2)
        await sleep(Math.min(10, 500 / rate))
        continue
      }
      due++
      const work = this.turn(writer).finally(() => this.inFlight.delete(work))
      this.inFlight.add(work)
    }
    const spent = (Date.now() - began) / 1000
    await Promise.race([Promise.allSettled(this.inFlight), sleep(15_000)])
    const summary = { accounts: this.writers.length, seconds: spent, rate: Number((this.counts.commits / spent || 0).toFixed(2)), ...this.counts }
    process.stdout.write(JSON.stringify(summary, null, 2) + '\n', () => process.exit(0))
  }

  idle() {
    const now = Date.now()
    const free = this.writers.filter((w) => !w.busy && w.restUntil < now)
    return free.length ? this.random.pick(free) : null
  }

  async turn(writer) {
    writer.busy = true
    try {
      if (!writer.ready) await writer.list()
      await this.write(writer, this.random.weighted(mix))
      this.counts.commits++
    } catch (err) {
      this.counts.errors++
      if (!(err instanceof XrpcError)) throw err
      // Down: try again soon. Deactivated, taken down, deleted: leave that account alone for a while.
      const inactive = /Account|Repo(Deactivated|Takendown|NotFound)|AuthenticationRequired|find repo/.test(err.message)
      writer.restUntil = Date.now() + (err.unreachable ? 300 : inactive ? 5000 : 100)
      // Whether that write was done is not known, so neither is what the account holds.
      writer.ready = false
      writer.records = []
      if (Date.now() - this.lastComplaint > 1000) {
        this.lastComplaint = Date.now()
        say(`${writer.handle}: ${err.message}; going on`)
      }
    } finally {
      writer.busy = false
    }
  }

  async upload(writer, content) {
    const blob = await writer.upload(content)
    this.counts.blobs++
    return { ...content, blob }
  }

  async pictures(writer, most) {
    const images = []
    for (let n = 1 + this.random.below(most); n > 0; n--) images.push(await this.upload(writer, picture(this.random)))
    return images
  }

  async create(writer, collection, value) {
    const made = await writer.create(collection, value)
    this.counts.creates++
    return writer.keep(made, value)
  }

  async update(writer, record, value) {
    const { cid } = await writer.put(record.collection, record.rkey, value)
    this.counts.updates++
    Object.assign(record, { cid, value })
  }

  async remove(writer, record) {
    await writer.remove(record.collection, record.rkey)
    this.counts.deletes++
    if (withBlob(record)) this.counts.blob_records_deleted++
    writer.forget(record)
  }

  pick(writer, which) {
    const found = writer.records.filter(which)
    return found.length ? this.random.pick(found) : null
  }

  /** A post of anyone, as far as known. */
  somePost() {
    const others = this.writers.filter((w) => w.records.length)
    return others.length ? this.pick(this.random.pick(others), (r) => r.collection === POST) : null
  }

  draft(writer) {
    const chosen = this.random.next()
    const other = this.somePost()
    const now = Date.now()
    if (other && chosen < 0.3) return post(this.random, now, { reply: { ...other, root: other.value.reply?.root } })
    if (other && chosen < 0.4) return post(this.random, now, { quote: other })
    if (chosen < 0.5) return post(this.random, now, { mention: this.random.pick(this.writers) })
    return post(this.random, now)
  }

  /** One commit of the kind, or a plain post when the account has not what the kind needs. */
  async write(writer, kind) {
    const { random } = this
    const now = Date.now()
    switch (kind) {
      case 'postWithPictures':
        return this.create(writer, POST, post(random, now, { images: await this.pictures(writer, 4) }))
      case 'reusedPicture': {
        const old = this.pick(writer, (r) => r.value.embed?.images)
        if (!old) break
        const blob = old.value.embed.images[0].image
        return this.create(writer, POST, post(random, now, { images: [{ blob }] }))
      }
      case 'clip': {
        const { blob } = await this.upload(writer, clipBytes(random))
        return this.create(writer, CLIP, clip(random, now, blob))
      }
      case 'like':
      case 'repost': {
        const type = kind === 'like' ? LIKE : REPOST
        const subject = this.somePost()
        if (!subject) break
        return this.create(writer, type, about(type, { uri: subject.uri, cid: subject.cid }, now))
      }
      case 'follow':
      case 'block': {
        const type = kind === 'follow' ? FOLLOW : BLOCK
        const other = random.pick(this.writers)
        if (other === writer || this.pick(writer, (r) => r.collection === type && r.value.subject === other.did)) break
        return this.create(writer, type, about(type, other.did, now))
      }
      case 'editPost': {
        const old = this.pick(writer, (r) => r.collection === POST && !withBlob(r))
        if (!old) break
        return this.update(writer, old, { ...old.value, text: post(random, now).text, facets: undefined })
      }
      case 'editPictures': {
        const old = this.pick(writer, (r) => r.value.embed?.images)
        if (!old) break
        return this.update(writer, old, post(random, now, { images: await this.pictures(writer, 2) }))
      }
      case 'newAvatar':
      case 'editProfile': {
        const avatar = kind === 'newAvatar' ? (await this.upload(writer, picture(random))).blob : writer.avatar
        await writer.put(PROFILE, 'self', profile(random, writer.handle, avatar, now))
        writer.avatar = avatar
        if (kind === 'newAvatar') this.counts.avatars++
        this.counts.updates++
        return
      }
      case 'delete':
      case 'deleteWithBlob': {
        const old = this.pick(writer, (r) => withBlob(r) === (kind === 'deleteWithBlob'))
        if (!old) break
        return this.remove(writer, old)
      }
      case 'batch':
        return this.batch(writer)
    }
    return this.create(writer, POST, this.draft(writer))
  }

  /** Several writes in one commit; now and then a big one. */
  async batch(writer) {
    const { random, counts } = this
    const size = random.next() < 0.05 ? 200 : 2 + random.below(12)
    const writes = []
    const touched = new Set()
    for (let i = 0; i < size; i++) {
      const chosen = random.next()
      const old = chosen < 0.35 ? this.pick(writer, (r) => !touched.has(r) && !withBlob(r)) : null
      if (old) touched.add(old)
      if (old && chosen < 0.22) writes.push([deleting(old.collection, old.rkey), old])
      else if (old?.collection === POST) {
        writes.push([updating(POST, old.rkey, { ...old.value, text: post(random, Date.now()).text, facets: undefined }), old])
      } else if (chosen > 0.95) {
        const images = await this.pictures(writer, 1)
        writes.push([creating(POST, post(random, Date.now(), { images }))])
      } else writes.push([creating(POST, this.draft(writer))])
    }
    const results = await writer.apply(writes.map(([write]) => write))
    counts.batches++
    for (const [i, [write, old]] of writes.entries()) {
      const done = write.$type.split('#')[1]
      counts[`${done}s`]++
      if (done === 'delete') writer.forget(old)
      else if (done === 'create' && results[i]?.uri) writer.keep(results[i], write.value)
      else if (done === 'update') Object.assign(old, { cid: results[i]?.cid ?? old.cid, value: write.value })
    }
  }
}
