// account create|delete|deactivate|activate|takedown|untakedown|rename|move|rotate|take-key|add-key|identity|adopt|lax|unlax|export|import: one account
// (or one blob or record of it), for a test.
import fs from 'node:fs'
import { accountsFile, basic, bearer, changeJson, Complaint, findAccount, findPds, options, readJson, run, sandbox, say, xrpc } from './common.mjs'
import { addKey, createWeb, identity, importRepository, move, rotate, takeKey } from './identity.mjs'
import { lax, unlax } from './lax.mjs'
import { Account } from './records.mjs'

run(async () => {
  const { values, positionals } = options(process.argv.slice(2), {
    did: { type: 'string' },
    handle: { type: 'string' },
    password: { type: 'string' },
    pds: { type: 'string' },
    to: { type: 'string' },
    key: { type: 'string' },
    file: { type: 'string' },
    announce: { type: 'boolean' },
    'directory-only': { type: 'boolean' },
    blob: { type: 'string' },
    record: { type: 'string' },
    cid: { type: 'string' },
  })
  const [what, ...more] = positionals
  if (more.length) throw new Complaint(`account does not know '${more[0]}'`)
  const known = sandbox(values.dir)
  const file = accountsFile(known.dir)

  if (what === 'create') {
    const pds = findPds(known, values.pds)
    if (values.did) {
      const made = await createWeb(pds, needed(values, 'did'), needed(values, 'handle'), needed(values, 'file'))
      await changeJson(file, [], (list) => [...list, made])
      process.stdout.write(JSON.stringify(made, null, 2) + '\n')
      return
    }
    if (!values.handle) throw new Complaint('account create needs --handle')
    const handle = values.handle.includes('.') ? values.handle : values.handle + pds.handle_domain
    const password = values.password ?? `password-of-${handle.split('.')[0]}`
    const body = { handle, password, email: `${handle.split('.')[0]}@mail.test` }
    const { did } = await xrpc(pds.url, 'com.atproto.server.createAccount', { body })
    const made = { did, handle, password, pds: pds.name }
    await changeJson(file, [], (list) => [...list, made])
    process.stdout.write(JSON.stringify(made, null, 2) + '\n')
    return
  }

  const found = findAccount(readJson(file, []), values)
  const pds = findPds(known, found.pds)
  const admin = basic(pds.admin_password)
  const subject = subjectOf(found.did, values)
  const acts = {
    delete: () => xrpc(pds.url, 'com.atproto.admin.deleteAccount', { body: { did: found.did }, auth: admin }),
    takedown: () =>
      xrpc(pds.url, 'com.atproto.admin.updateSubjectStatus', { body: { subject, takedown: { applied: true, ref: 'sandbox' } }, auth: admin }),
    untakedown: () => xrpc(pds.url, 'com.atproto.admin.updateSubjectStatus', { body: { subject, takedown: { applied: false } }, auth: admin }),
    deactivate: () => asOwner(pds, found, 'deactivateAccount', { body: {} }),
    activate: () => asOwner(pds, found, 'activateAccount', { post: true }), // it refuses any body
    move: async () => {
      const moved = await move(known, found, pds, findPds(known, needed(values, 'to')))
      await changeJson(file, [], (list) => list.map((a) => (a.did === moved.did && a.pds === pds.name ? moved : a)))
      process.stdout.write(JSON.stringify(moved, null, 2) + '\n')
    },
    rotate: async () => {
      const key = await rotate(known, found, pds, { announce: values.announce, directoryOnly: values['directory-only'] })
      process.stdout.write(JSON.stringify({ key }, null, 2) + '\n')
    },
    rename: () =>
      xrpc(pds.url, 'com.atproto.admin.updateAccountHandle', { body: { did: found.did, handle: needed(values, 'to') + pds.handle_domain }, auth: admin }),
    'add-key': () => addKey(known, found, pds, needed(values, 'key')),
    identity: async () => process.stdout.write(JSON.stringify(await identity(known, found.did), null, 2) + '\n'),
    adopt: () => {
      const moved = { did: found.did, handle: needed(values, 'handle'), password: needed(values, 'password'), pds: findPds(known, needed(values, 'to')).name }
      return changeJson(file, [], (list) => list.map((a) => (a === list.findLast((b) => b.did === found.did) ? moved : a)))
    },
    'take-key': () => takeKey(found, pds),
    lax: async () => process.stdout.write(JSON.stringify(await lax(known, found, pds), null, 2) + '\n'),
    unlax: () => unlax(known, found, pds),
    export: async () => {
      const { data } = await xrpc(pds.url, 'com.atproto.sync.getRepo', { params: { did: found.did }, raw: true })
      fs.writeFileSync(needed(values, 'file'), data)
    },
    import: async () => {
      const account = new Account(pds, found)
      await account.login()
      await importRepository(pds, account.token, fs.readFileSync(needed(values, 'file')))
    },
  }
  if (!Object.hasOwn(acts, what ?? '')) throw new Complaint(`account knows create, ${Object.keys(acts).join(', ')}`)
  await acts[what]()
  say(`${what}: done to ${found.handle} (${found.did}) on ${found.pds}`)
})

function needed(values, name) {
  if (!values[name]) throw new Complaint(`this needs --${name}`)
  return values[name]
}

// What is taken down: the account, or one blob (--blob CID) or record (--record URI --cid CID) of it.
function subjectOf(did, { blob, record, cid }) {
  if (blob) return { $type: 'com.atproto.admin.defs#repoBlobRef', did, cid: blob }
  if (record) return { $type: 'com.atproto.repo.strongRef', uri: record, cid }
  return { $type: 'com.atproto.admin.defs#repoRef', did }
}

async function asOwner(pds, found, method, request) {
  const account = new Account(pds, found)
  await account.login()
  return xrpc(pds.url, `com.atproto.server.${method}`, { ...request, auth: bearer(account.token) })
}
