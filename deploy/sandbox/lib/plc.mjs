// The PLC directory. Its in-memory database forgets all at exit, lets two operations of one DID race, and exports
// nothing; this one keeps a journal, puts the operations of a DID in a queue, and exports.
import fs from 'node:fs'
import { ready, onStop } from './loopback.mjs'
import { tool } from './modules.mjs'

const { Database, PlcServer } = await tool('@did-plc/server')
const { CID } = await tool('multiformats/cid')
const journal = process.env.SANDBOX_PLC_JOURNAL

const MemoryDatabase = Database.mock().constructor

class JournaledDatabase extends MemoryDatabase {
  constructor(path) {
    super()
    this.all = [] // every operation, oldest first
    this.queues = new Map()
    this.lastTime = 0
    if (fs.existsSync(path)) this.replay(path)
    this.file = fs.openSync(path, 'a')
  }

  replay(path) {
    const text = fs.readFileSync(path, 'utf8')
    const end = text.lastIndexOf('\n') + 1
    if (end < text.length) {
      console.error(`the journal ends in ${text.length - end} bytes of an unfinished line; leaving them out`)
      fs.truncateSync(path, Buffer.byteLength(text.slice(0, end)))
    }
    for (const line of text.slice(0, end).split('\n')) {
      if (!line) continue
      const { did, cid, operation, createdAt, nullifies } = JSON.parse(line)
      const op = { did, operation, cid: CID.parse(cid), nullified: false, createdAt: new Date(createdAt) }
      const ops = (this.contents[did] ??= [])
      for (const earlier of ops) if (nullifies.includes(earlier.cid.toString())) earlier.nullified = true
      ops.push(op)
      this.all.push(op)
      this.lastTime = op.createdAt.getTime()
    }
  }

  validateAndAddOp(did, proposed) {
    const turn = (this.queues.get(did) ?? Promise.resolve()).then(() => this.add(did, proposed))
    const settled = turn.catch(() => {})
    this.queues.set(did, settled)
    settled.then(() => this.queues.get(did) === settled && this.queues.delete(did))
    return turn
  }

  async add(did, proposed) {
    const known = this.contents[did]
    const count = known?.length ?? 0
    const standing = new Set((known ?? []).filter((op) => !op.nullified))
    try {
      await super.validateAndAddOp(did, proposed)
    } finally {
      if (this.contents[did]?.length === 0) delete this.contents[did]
    }
    const ops = this.contents[did]
    const op = ops[count]
    // No two operations have the same time, so a page of the export can't end between two of them.
    this.lastTime = Math.max(Date.now(), this.lastTime + 1)
    op.createdAt = new Date(this.lastTime)
    this.all.push(op)
    const nullifies = ops.filter((o) => o.nullified && standing.has(o)).map((o) => o.cid.toString())
    const { operation, createdAt } = op
    fs.writeSync(this.file, JSON.stringify({ did, cid: op.cid.toString(), operation, createdAt, nullifies }) + '\n')
  }

  async exportOps(count, after) {
    const from = after ? this.all.findIndex((op) => op.createdAt > after) : 0
    if (from < 0) return []
    return this.all.slice(from, from + count).map((op) => ({
      did: op.did,
      operation: op.operation,
      cid: op.cid.toString(),
      nullified: op.nullified,
      createdAt: op.createdAt.toISOString(),
    }))
  }
}

const server = PlcServer.create({ db: new JournaledDatabase(journal), port: Number(process.env.SANDBOX_PORT) })
onStop(() => server.destroy())
await server.start()
ready()
