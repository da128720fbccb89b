// The packages live in the cache, not beside these files, so they are looked up from there.
// Needs node's --experimental-import-meta-resolve, which gives import.meta.resolve its second argument.
import { pathToFileURL } from 'node:url'

export async function importFrom(dir, name) {
  const module = await import(import.meta.resolve(name, pathToFileURL(`${dir}/package.json`).href))
  return module.default?.__esModule ? { ...module, ...module.default } : module
}

/** A package of the sandbox's own tools. */
export const tool = (name) => importFrom(process.env.SANDBOX_TOOLS, name)
