// Records in the shapes that real accounts have, and the accounts that write them.
import { bearer, sleep, xrpc, XrpcError } from './common.mjs'

export const POST = 'app.bsky.feed.post'
export const LIKE = 'app.bsky.feed.like'
export const REPOST = 'app.bsky.feed.repost'
export const FOLLOW = 'app.bsky.graph.follow'
export const BLOCK = 'app.bsky.graph.block'
export const PROFILE = 'app.bsky.actor.profile'
/** A collection that no server knows. */
export const CLIP = 'com.example.sandbox.clip'

const words =
  'ash bark coal dusk ember fern grove harbour iris juniper kelp lantern moss north oak pine quartz river stone thistle umber vale wren yarrow zephyr über naïve 東京 привет 🌲 🔥 👩‍🚀'.split(
    ' ',
  )
const names = 'alice bob carol dan erin frank grace heidi ivan judy mallory niaj olivia peggy rupert sybil trent victor wendy zoe'.split(' ')

export const accountName = (index) => `${names[index % names.length]}${index}`

export function sentence(random, length = 4 + random.below(20)) {
  return Array.from({ length }, () => random.pick(words)).join(' ')
}

/** `when` is a time in milliseconds. */
export function post(random, when, { reply, images, quote, mention } = {}) {
  const record = { $type: POST, text: sentence(random), createdAt: new Date(when).toISOString(), langs: ['en'] }
  if (reply) record.reply = { root: reply.root ?? ref(reply), parent: ref(reply) }
  if (images) {
    record.embed = {
      $type: 'app.bsky.embed.images',
      images: images.map(({ blob, width, height }) => ({
        image: blob,
        alt: sentence(random, random.below(6)),
        ...(width ? { aspectRatio: { width, height } } : {}),
      })),
    }
  } else if (quote) {
    record.embed = { $type: 'app.bsky.embed.record', record: ref(quote) }
  } else if (random.next() < 0.1) {
    const uri = `https://example.com/${random.below(1e6).toString(36)}`
    record.embed = { $type: 'app.bsky.embed.external', external: { uri, title: sentence(random, 3), description: '' } }
  }
  if (mention) {
    const byteStart = Buffer.byteLength(record.text) + 1
    record.text += ` @${mention.handle}`
    const index = { byteStart, byteEnd: Buffer.byteLength(record.text) }
    record.facets = [{ index, features: [{ $type: 'app.bsky.richtext.facet#mention', did: mention.did }] }]
  }
  return record
}

export const ref = ({ uri, cid }) => ({ uri, cid })
export const about = ($type, subject, when) => ({ $type, subject, createdAt: new Date(when).toISOString() })

export function profile(random, handle, avatar, when) {
  const record = {
    $type: PROFILE,
    displayName: `${handle.split('.')[0]} ${random.pick(words)}`,
    description: sentence(random),
    createdAt: new Date(when).toISOString(),
  }
  if (avatar) record.avatar = avatar
  return record
}

export function clip(random, when, media) {
  return { $type: CLIP, title: sentence(random, 3), media, deep: [{ numbers: [random.below(1e9), -1, 0] }], createdAt: new Date(when).toISOString() }
}

export function clipBytes(random) {
  const bytes = Buffer.alloc(200 + random.below(3000))
  for (let i = 0; i < bytes.length; i++) bytes[i] = random.below(256)
  bytes[0] = 0 // no file type that a server would recognise
  return { bytes, type: 'application/octet-stream' }
}

export const split = (uri) => {
  const [, , repo, collection, rkey] = uri.split('/')
  return { repo, collection, rkey }
}

/** An account of a PDS, with its session. */
export class Account {
  constructor(pds, { did, handle, password }) {
    Object.assign(this, { pds, did, handle, password })
  }

  async login() {
    const session = await xrpc(this.pds.url, 'com.atproto.server.createSession', {
      // The PDS makes it lower case, which the %3A of a did:web of this machine does not survive.
      body: { identifier: this.did?.startsWith('did:plc:') ? this.did : this.handle, password: this.password },
    })
    this.did = session.did
    this.token = session.accessJwt
  }

  async call(nsid, request) {
    for (let attempt = 0; ; attempt++) {
      if (!this.token) await this.login()
      try {
        return await xrpc(this.pds.url, nsid, { ...request, auth: bearer(this.token) })
      } catch (err) {
        if (!(err instanceof XrpcError) || attempt >= 3) throw err
        if (err.error === 'ExpiredToken' || err.error === 'InvalidToken') this.token = null
        else if (err.status === 429) await sleep(Math.min(Math.max(err.retryAfter ?? 1000, 250), 10_000))
        else throw err
      }
    }
  }

  async upload({ bytes, type }) {
    const { blob } = await this.call('com.atproto.repo.uploadBlob', { bytes, type })
    return blob
  }

  create(collection, record, rkey) {
    return this.call('com.atproto.repo.createRecord', { body: { repo: this.did, collection, rkey, record } })
  }

  put(collection, rkey, record) {
    return this.call('com.atproto.repo.putRecord', { body: { repo: this.did, collection, rkey, record } })
  }

  remove(collection, rkey) {
    return this.call('com.atproto.repo.deleteRecord', { body: { repo: this.did, collection, rkey } })
  }

  /** Gives the results, one for each write. */
  async apply(writes) {
    const answer = await this.call('com.atproto.repo.applyWrites', { body: { repo: this.did, writes } })
    return answer?.results ?? []
  }
}

export const creating = (collection, value, rkey) => ({ $type: 'com.atproto.repo.applyWrites#create', collection, rkey, value })
export const updating = (collection, rkey, value) => ({ $type: 'com.atproto.repo.applyWrites#update', collection, rkey, value })
export const deleting = (collection, rkey) => ({ $type: 'com.atproto.repo.applyWrites#delete', collection, rkey })
