// Runs one reference PDS of the version whose folder is in SANDBOX_PDS_DIR; its settings come in PDS_* variables.
import { ready, onStop } from './loopback.mjs'
import { importFrom } from './modules.mjs'

const { PDS, envToCfg, envToSecrets, readEnv } = await importFrom(process.env.SANDBOX_PDS_DIR, '@atproto/pds')
const env = readEnv()
const pds = await PDS.create(envToCfg(env), envToSecrets(env))
onStop(() => pds.destroy())
await pds.start()
ready()
