// record put|delete: one record, for a test.
import { accountsFile, chance, Complaint, findAccount, findPds, options, readJson, run, sandbox, say } from './common.mjs'
import { Account } from './records.mjs'
import { picture } from './images.mjs'

run(async () => {
  const { values, positionals } = options(process.argv.slice(2), {
    did: { type: 'string' },
    handle: { type: 'string' },
    pds: { type: 'string' },
    collection: { type: 'string', default: 'app.bsky.feed.post' },
    rkey: { type: 'string' },
    text: { type: 'string' },
    record: { type: 'string' },
    picture: { type: 'boolean' },
    pad: { type: 'string', default: '0' },
  })
  const [what, ...more] = positionals
  if (more.length) throw new Complaint(`record does not know '${more[0]}'`)
  if (what !== 'put' && what !== 'delete') throw new Complaint('record knows put and delete')
  const known = sandbox(values.dir)
  const found = findAccount(readJson(accountsFile(known.dir), []), values)
  const account = new Account(findPds(known, found.pds), found)
  const { collection, rkey } = values
  if (what === 'delete') {
    if (!rkey) throw new Complaint('record delete needs --rkey')
    const done = await account.remove(collection, rkey)
    process.stdout.write(JSON.stringify({ commit: done?.commit ?? null }, null, 2) + '\n')
    return
  }
  let value
  try {
    value = values.record ? JSON.parse(values.record) : { text: values.text ?? 'a post', createdAt: new Date().toISOString() }
  } catch (err) {
    throw new Complaint(`--record is no JSON: ${err.message}`)
  }
  value.$type ??= collection
  let blob
  if (values.picture) {
    const made = picture(chance(`${Date.now()} ${process.pid}`))
    blob = await account.upload({ ...made, bytes: Buffer.concat([made.bytes, Buffer.alloc(Number(values.pad))]) })
    value.embed = { $type: 'app.bsky.embed.images', images: [{ image: blob, alt: '' }] }
  }
  const made = rkey ? await account.put(collection, rkey, value) : await account.create(collection, value)
  process.stdout.write(JSON.stringify({ uri: made.uri, cid: made.cid, commit: made.commit ?? null, blob: blob ? blob.ref.$link : null }, null, 2) + '\n')
})
