// An archive to read from: a folder, or the sandbox's bucket under a prefix.
import { createHash, createHmac } from 'node:crypto'
import fs from 'node:fs/promises'
import path from 'node:path'
import { Complaint } from './common.mjs'

export class Folder {
  constructor(root) {
    this.root = path.resolve(root)
    this.name = 'archive'
  }

  /** The names right below a folder of the archive. */
  async list(prefix) {
    try {
      return await fs.readdir(path.join(this.root, prefix))
    } catch (err) {
      if (err.code === 'ENOENT' || err.code === 'ENOTDIR') return []
      throw err
    }
  }

  /** {data, type}, or null where there is nothing. A folder keeps no types. */
  async get(key) {
    try {
      return { data: await fs.readFile(path.join(this.root, key)), type: null }
    } catch (err) {
      if (err.code === 'ENOENT') return null
      throw err
    }
  }
}

export class Bucket {
  constructor(s3, prefix) {
    this.s3 = s3
    this.prefix = prefix
    this.name = 's3'
  }

  async list(folder) {
    const prefix = `${this.prefix}${folder}/`
    const names = []
    let token
    do {
      const query = { 'list-type': '2', prefix, ...(token ? { 'continuation-token': token } : {}) }
      const { status, data } = await this.request('', query)
      if (status !== 200) throw new Complaint(`s3: listing ${prefix} gave status ${status}: ${data.toString().slice(0, 200)}`)
      const text = data.toString('utf8')
      for (const [, key] of text.matchAll(/<Key>([^<]*)<\/Key>/g)) names.push(plain(key).slice(prefix.length))
      token = /<NextContinuationToken>([^<]*)</.exec(text)?.[1]
      token = token && plain(token)
    } while (token)
    return names
  }

  async get(key) {
    const { status, data, type } = await this.request(this.prefix + key, {})
    if (status === 404) return null
    if (status !== 200) throw new Complaint(`s3: reading ${key} gave status ${status}: ${data.toString().slice(0, 200)}`)
    return { data, type }
  }

  /** A signed GET (signature version 4). */
  async request(key, query) {
    const { endpoint, bucket, region, access_key, secret_key } = this.s3
    const { host, origin } = new URL(endpoint)
    const uri = `/${[bucket, ...(key ? key.split('/') : [])].map(escaped).join('/')}`
    const search = Object.entries(query).sort().map(([k, v]) => `${escaped(k)}=${escaped(v)}`).join('&')
    const now = new Date().toISOString().replace(/[-:]|\.\d+/g, '')
    const scope = `${now.slice(0, 8)}/${region}/s3/aws4_request`
    const empty = createHash('sha256').digest('hex')
    const names = 'host;x-amz-content-sha256;x-amz-date'
    const canonical = ['GET', uri, search, `host:${host}`, `x-amz-content-sha256:${empty}`, `x-amz-date:${now}`, '', names, empty].join('\n')
    const toSign = ['AWS4-HMAC-SHA256', now, scope, createHash('sha256').update(canonical).digest('hex')].join('\n')
    let signingKey = `AWS4${secret_key}`
    for (const part of scope.split('/')) signingKey = createHmac('sha256', signingKey).update(part).digest()
    const signature = createHmac('sha256', signingKey).update(toSign).digest('hex')
    const authorization = `AWS4-HMAC-SHA256 Credential=${access_key}/${scope}, SignedHeaders=${names}, Signature=${signature}`
    try {
      const response = await fetch(`${origin}${uri}${search ? `?${search}` : ''}`, {
        headers: { authorization, 'x-amz-content-sha256': empty, 'x-amz-date': now },
        signal: AbortSignal.timeout(60_000),
      })
      const data = Buffer.from(await response.arrayBuffer())
      return { status: response.status, data, type: response.headers.get('content-type') }
    } catch (err) {
      throw new Complaint(`s3: no answer from ${endpoint}: ${err.cause?.message || err.message}`)
    }
  }
}

const escaped = (text) => encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`)
const plain = (text) =>
  text.replace(/&(lt|gt|quot|apos|amp);/g, (_, name) => ({ lt: '<', gt: '>', quot: '"', apos: "'", amp: '&' })[name])
