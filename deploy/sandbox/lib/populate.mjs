// Makes accounts with a past: so many accounts, records and blobs in all, alike for the same seed.
import { accountsFile, chance, changeJson, Complaint, count, findPds, inParallel, options, readJson, run, sandbox, say, xrpc } from './common.mjs'
import { picture } from './images.mjs'
import { about, Account, accountName, BLOCK, clip, CLIP, clipBytes, creating, FOLLOW, LIKE, POST, post, profile, PROFILE, REPOST } from './records.mjs'

const DAY = 86_400_000
const atOnce = 4

run(async () => {
  const { values, positionals } = options(process.argv.slice(2), {
    accounts: { type: 'string', default: '5' },
    records: { type: 'string', default: '100' },
    blobs: { type: 'string', default: '10' },
    pds: { type: 'string' },
    seed: { type: 'string', default: '1' },
  })
  if (positionals.length) throw new Complaint(`populate does not know '${positionals[0]}'`)
  const known = sandbox(values.dir)
  const pds = findPds(known, values.pds)
  const wanted = {
    accounts: count(values, 'accounts', { min: 1, max: 10_000 }),
    records: count(values, 'records', { max: 1_000_000 }),
    blobs: count(values, 'blobs', { max: 100_000 }),
  }
  const began = Date.now()
  const file = accountsFile(known.dir)
  const first = readJson(file, []).filter((a) => a.pds === pds.name).length
  const random = chance(`${values.seed} ${pds.name} ${first}`)

  const accounts = await makeAccounts(pds, wanted.accounts, first)
  await changeJson(file, [], (list) => [...list, ...accounts.map(described)])
  say(`${accounts.length} accounts made after ${since(began)}`)

  const plans = plan(random, wanted, accounts)
  for (const [i, one] of plans.entries()) one.random = chance(`${values.seed} ${pds.name} ${first + i} records`)
  const posts = []
  await inParallel(atOnce, plans, (one) => firstHalf(one, posts, accounts))
  say(`profiles, pictures and posts written after ${since(began)}`)
  await inParallel(atOnce, plans, (one) => secondHalf(one, posts))

  const sum = (key) => plans.reduce((total, one) => total + one[key], 0)
  const summary = {
    accounts: accounts.map(described),
    records: sum('records'),
    blobs: sum('blobs'),
    commits: sum('commits'),
    seconds: (Date.now() - began) / 1000,
  }
  say(`${summary.records} records and ${summary.blobs} blobs in ${summary.commits} commits after ${since(began)}`)
  process.stdout.write(JSON.stringify(summary, null, 2) + '\n')
})

const since = (began) => `${((Date.now() - began) / 1000).toFixed(1)} s`
const described = ({ did, handle, password, pds }) => ({ did, handle, password, pds: pds.name })

async function makeAccounts(pds, wanted, first) {
  let next = first
  return inParallel(atOnce, Array(wanted).fill(), async () => {
    for (;;) {
      const name = accountName(next++)
      const handle = `${name}${pds.handle_domain}`
      const password = `password-of-${name}`
      try {
        const body = { handle, password, email: `${name}@mail.test` }
        const made = await xrpc(pds.url, 'com.atproto.server.createAccount', { body })
        const account = new Account(pds, { did: made.did, handle, password })
        account.token = made.accessJwt
        return account
      } catch (err) {
        // Of a populate that was cut short.
        if (err.error !== 'HandleNotAvailable' && !/already taken/i.test(err.message)) throw err
      }
    }
  })
}

/** Who writes how much of what. */
function plan(random, wanted, accounts) {
  const plans = accounts.map((account) => ({ account, kinds: [], profile: false, avatar: false, pictures: [], clips: 0, records: 0, blobs: 0, commits: 0 }))
  // A few accounts write much, most write little; each has at least its profile, as far as the records go.
  const weights = plans.map(() => 0.2 + random.next() ** 4 * 6)
  const total = weights.reduce((a, b) => a + b, 0)
  let left = wanted.records
  for (const one of plans) if (left > 0) (left--, (one.profile = true))
  const shares = weights.map((weight) => Math.floor((left * weight) / total))
  let rest = left - shares.reduce((a, b) => a + b, 0)
  for (let i = 0; rest > 0; i = (i + 1) % shares.length, rest--) shares[i]++

  let blobs = wanted.blobs
  const avatars = Math.min(plans.length, Math.ceil(blobs * 0.4))
  for (const one of plans.slice(0, avatars)) if (one.profile) (blobs--, (one.avatar = true))
  const clips = wanted.blobs >= 3 ? Math.max(1, Math.floor(wanted.blobs * 0.1)) : 0
  let made = 0
  while (blobs > 0 && shares.some((n) => n > 0)) {
    const i = random.below(plans.length)
    if (shares[i] === 0) continue
    shares[i]--
    if (made++ < clips) {
      plans[i].clips++
      blobs--
    } else {
      const slots = shares.reduce((a, b) => a + b, 0)
      const n = Math.min(blobs, slots * 4 < blobs ? 4 : 1 + random.below(4))
      plans[i].pictures.push(n)
      blobs -= n
    }
  }
  if (blobs > 0) say(`${blobs} of the blobs have no place in so few records and are left out`)

  const mix = accounts.length > 1 ? { post: 46, like: 30, follow: 11, repost: 9, block: 4 } : { post: 60, like: 30, repost: 10 }
  for (const [i, one] of plans.entries()) {
    const others = accounts.filter((a) => a !== one.account)
    const free = { follow: [...others], block: [...others] }
    for (let n = 0; n < shares[i]; n++) {
      let kind = n === 0 ? 'post' : random.weighted(mix)
      let subject
      if (free[kind]) {
        // One is followed once.
        if (free[kind].length === 0) kind = 'like'
        else [subject] = free[kind].splice(random.below(free[kind].length), 1)
      }
      one.kinds.push({ kind, subject })
    }
  }
  return plans
}

async function firstHalf(one, posts, accounts) {
  const { account, random } = one
  const now = Date.now()
  const past = () => now - Math.floor(random.next() * 30 * DAY)
  const upload = async (content) => {
    one.blobs++
    return { ...content, blob: await account.upload(content) }
  }
  if (one.profile) {
    const avatar = one.avatar ? (await upload(picture(random))).blob : undefined
    await account.put(PROFILE, 'self', profile(random, account.handle, avatar, now - 31 * DAY))
    one.records++
    one.commits++
  }
  const writes = []
  for (const n of one.pictures) {
    const images = []
    for (let i = 0; i < n; i++) images.push(await upload(picture(random)))
    writes.push(() => creating(POST, post(random, past(), { images })))
  }
  for (let i = 0; i < one.clips; i++) {
    const { blob } = await upload(clipBytes(random))
    writes.push(() => creating(CLIP, clip(random, past(), blob)))
  }
  for (const { kind } of one.kinds) {
    if (kind !== 'post') continue
    writes.push(() => {
      const chosen = random.next()
      const other = posts.length && random.pick(posts)
      if (other && chosen < 0.25) return creating(POST, post(random, past(), { reply: other }))
      if (other && chosen < 0.32) return creating(POST, post(random, past(), { quote: other }))
      if (chosen < 0.4) return creating(POST, post(random, past(), { mention: random.pick(accounts) }))
      return creating(POST, post(random, past()))
    })
  }
  await write(one, writes, (made, value) => {
    if (value.$type === POST) posts.push({ uri: made.uri, cid: made.cid, root: value.reply?.root })
  })
}

async function secondHalf(one, posts) {
  const { random } = one
  const now = Date.now()
  const past = () => now - Math.floor(random.next() * 30 * DAY)
  const writes = []
  for (const { kind, subject } of one.kinds) {
    if (kind === 'follow') writes.push(() => creating(FOLLOW, about(FOLLOW, subject.did, past())))
    if (kind === 'block') writes.push(() => creating(BLOCK, about(BLOCK, subject.did, past())))
    if (kind !== 'like' && kind !== 'repost') continue
    const type = kind === 'like' ? LIKE : REPOST
    writes.push(() => {
      const { uri, cid } = random.pick(posts)
      return creating(type, about(type, { uri, cid }, past()))
    })
  }
  await write(one, writes, () => {})
}

/** Some records alone, most in batches. */
async function write(one, writes, done) {
  const { account, random } = one
  for (let at = 0; at < writes.length; ) {
    const size = random.next() < 0.25 ? 1 : 5 + random.below(45)
    const batch = writes.slice(at, at + size).map((make) => make())
    at += batch.length
    if (batch.length === 1) {
      const [{ collection, value }] = batch
      done(await account.create(collection, value), value)
    } else {
      const results = await account.apply(batch)
      for (const [i, { value }] of batch.entries()) if (results[i]?.uri) done(results[i], value)
    }
    one.records += batch.length
    one.commits++
  }
}
