// Reads a whole repository out of a CAR file with the reference library, and proves it.
import { tool } from './modules.mjs'

const { MemoryBlockstore, readCarWithRoot, Repo, verifyCommitSig } = await tool('@atproto/repo')
const { parseCid } = await tool('@atproto/lex-data')

/** Throws when a block's bytes are not those of its CID, or a node or record is missing. */
export async function readRepository(car) {
  const { root, blocks } = await readCarWithRoot(car)
  const repo = await Repo.load(new MemoryBlockstore(blocks), root)
  const records = new Map()
  const reached = new Set([root.toString()])
  let before = ''
  for await (const entry of repo.data.walk()) {
    if (entry.isTree()) {
      reached.add((await entry.getPointer()).toString())
      continue
    }
    if (entry.key <= before) throw new Error(`the tree's keys are out of order at ${entry.key}`)
    before = entry.key
    if (!blocks.has(entry.value)) throw new Error(`the record ${entry.key} (${entry.value}) is not in it`)
    reached.add(entry.value.toString())
    records.set(entry.key, entry.value.toString())
  }
  return {
    cid: root.toString(),
    did: repo.commit.did,
    rev: repo.commit.rev,
    records,
    surplus: blocks.size - reached.size,
    signedBy: (didKey) => verifyCommitSig(repo.commit, didKey),
  }
}

/** The SHA-256 digest, in hex, that a CID stands for. */
export function digestOf(cid) {
  return Buffer.from(parseCid(cid).multihash.digest).toString('hex')
}
