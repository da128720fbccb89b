// Both services call listen(port), which binds every address of the machine. Here they get 127.0.0.1.
import net from 'node:net'
import fs from 'node:fs'

const listen = net.Server.prototype.listen
net.Server.prototype.listen = function (first, ...rest) {
  if (typeof first === 'number' || typeof first === 'string') {
    if (typeof rest[0] === 'string') rest.shift()
    return listen.call(this, Number(first), '127.0.0.1', ...rest)
  }
  return listen.call(this, { ...first, host: '127.0.0.1' }, ...rest)
}

/** Tells the one who started us that it is this very process that listens. */
export function ready() {
  fs.writeFileSync(process.env.SANDBOX_READY_FILE, `${process.pid}\n`)
}

/** Ends tidily on a signal, and all the same when that takes too long. */
export function onStop(stop) {
  let stopping = false
  for (const signal of ['SIGTERM', 'SIGINT']) {
    process.on(signal, () => {
      if (stopping) return
      stopping = true
      setTimeout(() => process.exit(0), 4000).unref()
      Promise.resolve(stop()).then(
        () => process.exit(0),
        (err) => {
          console.error('while stopping:', err)
          process.exit(1)
        },
      )
    })
  }
}
