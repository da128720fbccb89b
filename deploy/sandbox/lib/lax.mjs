// A repository as a lax PDS would keep it: signed and all there, but in a tree that its records do not build.
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { Complaint, readJson } from './common.mjs'
import { keyFile } from './identity.mjs'
import { importFrom, tool } from './modules.mjs'

const { Secp256k1Keypair } = await tool('@atproto/crypto')
const { TID } = await tool('@atproto/common')
const { encode, code } = await tool('@ipld/dag-cbor')
const { CID } = await tool('multiformats/cid')
const { sha256 } = await tool('multiformats/hashes/sha2')

async function block(value) {
  const bytes = encode(value)
  return { cid: CID.createV1(code, await sha256.digest(bytes)), bytes }
}

/** The account's store at a PDS that is stopped, and where the head of before is remembered. */
async function open(known, account, pds) {
  const { version } = readJson(path.join(known.dir, 'state.json')).pds.find((one) => one.name === pds.name)
  const dir = execFileSync(process.env.SANDBOX_ENTRY, ['pds-dir', version], { stdio: ['ignore', 'pipe', 'inherit'] })
  const Database = (await importFrom(dir.toString().trim(), 'better-sqlite3')).default
  const folder = path.dirname(keyFile(pds, account.did))
  return { db: new Database(path.join(folder, 'store.sqlite')), before: path.join(folder, 'head-before-lax.json') }
}

/** Puts all records into one node, whatever their layers and without shared prefixes, and signs that. */
export async function lax(known, account, pds) {
  const { did } = account
  const { db, before } = await open(known, account, pds)
  const prefix = `at://${did}/`
  const records = db.prepare('select uri, cid from record').all()
  const entries = records.map(({ uri, cid }) => ({ key: Buffer.from(uri.slice(prefix.length)), cid: CID.parse(cid) }))
  entries.sort((a, b) => Buffer.compare(a.key, b.key))
  const node = await block({ l: null, e: entries.map(({ key, cid }) => ({ p: 0, k: key, v: cid, t: null })) })
  const head = db.prepare('select cid, rev from repo_root').get()
  const unsigned = { did, version: 3, data: node.cid, rev: TID.nextStr(head.rev), prev: null }
  const key = await Secp256k1Keypair.import(fs.readFileSync(keyFile(pds, did)))
  const commit = await block({ ...unsigned, sig: await key.sign(encode(unsigned)) })
  fs.writeFileSync(before, JSON.stringify(head))
  const put = db.prepare('insert into repo_block (cid, repoRev, size, content) values (?, ?, ?, ?)')
  for (const { cid, bytes } of [node, commit]) put.run(cid.toString(), unsigned.rev, bytes.length, Buffer.from(bytes))
  db.prepare('update repo_root set cid = ?, rev = ?').run(commit.cid.toString(), unsigned.rev)
  db.close()
  return { cid: commit.cid.toString(), rev: unsigned.rev, records: entries.length }
}

/** Puts the head of before in its place again. */
export async function unlax(known, account, pds) {
  const { db, before } = await open(known, account, pds)
  if (!fs.existsSync(before)) throw new Complaint(`the repository of ${account.did} is not lax`)
  const head = readJson(before)
  const now = db.prepare('select rev from repo_root').get()
  db.prepare('delete from repo_block where repoRev = ?').run(now.rev)
  db.prepare('update repo_root set cid = ?, rev = ?').run(head.cid, head.rev)
  db.close()
  fs.unlinkSync(before)
}
