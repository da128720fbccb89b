// Moving an account to another PDS, and giving it another signing key: what a person does with a migration tool.
import { createHash, randomBytes } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { bearer, Complaint, readJson, xrpc } from './common.mjs'
import { tool } from './modules.mjs'
import { Account } from './records.mjs'

const { Secp256k1Keypair } = await tool('@atproto/crypto')
const plc = await tool('@did-plc/lib')

/** The rotation key of a PDS: it signs the operations of the accounts that it made or took in. */
async function rotationKey(known, pds) {
  const { rotation_key } = readJson(path.join(known.dir, 'state.json')).pds.find((one) => one.name === pds.name)
  return Secp256k1Keypair.import(rotation_key)
}

/** Signs an operation that changes these members of the account's last one. */
async function operation(known, pds, did, changes) {
  const last = await new plc.Client(known.plc.url).getLastOp(did)
  return plc.createUpdateOp(last, await rotationKey(known, pds), (before) => ({ ...before, ...changes(before) }))
}

async function send(known, did, signed) {
  await new plc.Client(known.plc.url).sendOperation(did, signed)
}

/** Copies repository and blobs to a PDS, moves the DID there, and activates it; then the old one is deactivated. */
export async function move(known, account, from, to, { activate = true } = {}) {
  const { did } = account
  const old = new Account(from, account)
  const aud = (await xrpc(to.url, 'com.atproto.server.describeServer')).did
  const { token } = await old.call('com.atproto.server.getServiceAuth', { params: { aud, lxm: 'com.atproto.server.createAccount' } })
  const name = account.handle.split('.')[0]
  const moved = { did, handle: name + to.handle_domain, password: account.password, pds: to.name }
  const { accessJwt } = await xrpc(to.url, 'com.atproto.server.createAccount', {
    body: { did, handle: moved.handle, password: moved.password, email: `${name}.moved@mail.test` },
    auth: bearer(token),
  })
  const auth = bearer(accessJwt)
  const { data } = await xrpc(from.url, 'com.atproto.sync.getRepo', { params: { did }, raw: true })
  await importRepository(to, accessJwt, data)
  let cursor
  do {
    const missing = await xrpc(to.url, 'com.atproto.repo.listMissingBlobs', { params: { limit: 500, cursor }, auth })
    for (const { cid } of missing.blobs) {
      const blob = await xrpc(from.url, 'com.atproto.sync.getBlob', { params: { did, cid }, raw: true })
      await xrpc(to.url, 'com.atproto.repo.uploadBlob', { bytes: blob.data, type: blob.type, auth })
    }
    cursor = missing.blobs.length ? missing.cursor : undefined
  } while (cursor)
  const wanted = await xrpc(to.url, 'com.atproto.identity.getRecommendedDidCredentials', { auth })
  const signed = await operation(known, from, did, () => wanted)
  await xrpc(to.url, 'com.atproto.identity.submitPlcOperation', { body: { operation: signed }, auth })
  if (activate) {
    await xrpc(to.url, 'com.atproto.server.activateAccount', { post: true, auth })
    await old.call('com.atproto.server.deactivateAccount', { body: {} })
  }
  return moved
}

/**
 * Makes an account with a did:web whose document is what stands in `file`: its owner publishes a key, proves with it
 * that the DID is his, and publishes what the PDS asks for.
 */
export async function createWeb(pds, did, name, file) {
  const owner = await Secp256k1Keypair.create()
  const handle = name + pds.handle_domain
  const publish = (key, endpoint) =>
    fs.writeFileSync(
      file,
      JSON.stringify({
        '@context': ['https://www.w3.org/ns/did/v1', 'https://w3id.org/security/multikey/v1'],
        id: did,
        alsoKnownAs: [`at://${handle}`],
        verificationMethod: [{ id: `${did}#atproto`, type: 'Multikey', controller: did, publicKeyMultibase: key.slice('did:key:'.length) }],
        service: [{ id: '#atproto_pds', type: 'AtprotoPersonalDataServer', serviceEndpoint: endpoint }],
      }),
    )
  publish(owner.did(), pds.url)
  const aud = (await xrpc(pds.url, 'com.atproto.server.describeServer')).did
  const now = Math.floor(Date.now() / 1000)
  const claims = { iss: did, aud, lxm: 'com.atproto.server.createAccount', iat: now, exp: now + 60, jti: randomBytes(16).toString('hex') }
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const signed = `${part({ typ: 'JWT', alg: 'ES256K' })}.${part(claims)}`
  const token = `${signed}.${Buffer.from(await owner.sign(Buffer.from(signed))).toString('base64url')}`
  const password = `password-of-${name}`
  const body = { did, handle, password, email: `${name}@mail.test` }
  const { accessJwt } = await xrpc(pds.url, 'com.atproto.server.createAccount', { body, auth: bearer(token) })
  const auth = bearer(accessJwt)
  const wanted = await xrpc(pds.url, 'com.atproto.identity.getRecommendedDidCredentials', { auth })
  publish(wanted.verificationMethods.atproto, wanted.services.atproto_pds.endpoint)
  await xrpc(pds.url, 'com.atproto.server.activateAccount', { post: true, auth })
  return { did, handle, password, pds: pds.name }
}

/** Puts a CAR in the place of an account's repository. */
export async function importRepository(pds, token, car) {
  await xrpc(pds.url, 'com.atproto.repo.importRepo', { bytes: car, type: 'application/vnd.ipld.car', auth: bearer(token), timeout: 300_000 })
}

/** Where a PDS keeps the key that it signs an account's commits with: 32 bytes. */
export function keyFile(pds, did) {
  const digest = createHash('sha256').update(did).digest('hex')
  return path.join(pds.data_dir, 'actors', digest.slice(0, 2), did, 'key')
}

/**
 * Gives the account a new signing key. `announce`: through the PDS, which tells its stream; without it the directory
 * alone is told. With `directoryOnly` the PDS goes on signing with the key of before, until `takeKey`.
 */
export async function rotate(known, account, pds, { announce, directoryOnly }) {
  const { did } = account
  const key = await Secp256k1Keypair.create({ exportable: true })
  const signed = await operation(known, pds, did, (before) => ({
    verificationMethods: { ...before.verificationMethods, atproto: key.did() },
  }))
  const file = keyFile(pds, did)
  const waiting = `${file}.next`
  fs.writeFileSync(waiting, await key.export(), { mode: 0o600 })
  if (!directoryOnly) fs.renameSync(waiting, file)
  if (announce) await new Account(pds, account).call('com.atproto.identity.submitPlcOperation', { body: { operation: signed } })
  else await send(known, did, signed)
  return key.did()
}

/**
 * Puts a rotation key of the user's above all others, another below them, and a service and a method that are no PDS's
 * into the account's document. Nobody but the directory is told.
 */
export async function addKey(known, account, pds, key) {
  const spare = (await Secp256k1Keypair.create()).did()
  const signed = await operation(known, pds, account.did, (before) => ({
    rotationKeys: [key, ...before.rotationKeys, spare],
    verificationMethods: { ...before.verificationMethods, atproto_label: spare },
    services: { ...before.services, atproto_labeler: { type: 'AtprotoLabeler', endpoint: 'https://labeler.test' } },
    alsoKnownAs: [...before.alsoKnownAs, 'https://me.test'],
  }))
  await send(known, account.did, signed)
}

/** What the directory says of an account now, as the reference library reads and verifies its log. */
export async function identity(known, did) {
  const client = new plc.Client(known.plc.url)
  const log = await client.getAuditableLog(did)
  await plc.validateOperationLog(did, log.filter((entry) => !entry.nullified).map((entry) => entry.operation))
  return { data: await client.getDocumentData(did), operations: log.length }
}

/** Has the PDS sign with the key that the directory was told already. */
export function takeKey(account, pds) {
  const file = keyFile(pds, account.did)
  if (!fs.existsSync(`${file}.next`)) throw new Complaint(`no key of ${account.did} waits to be taken`)
  fs.renameSync(`${file}.next`, file)
}
