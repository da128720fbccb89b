// Loads pages in a real Chromium (light, dark, narrow) and lets axe-core look at them. Ends with 1 where a page says
// something on the console, breaks its policy, scrolls sideways, runs a script, or axe finds something.
//
//   node scripts/pages.mjs NODE_MODULES NAME=URL…      FIREKEEP_PAGES_OUT=FOLDER keeps screenshots
import { createRequire } from 'node:module'
import { readFileSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'

const [modules, ...pages] = process.argv.slice(2)
const require = createRequire(join(modules, 'x.js'))
const puppeteer = require('puppeteer-core')
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8')
const out = process.env.FIREKEEP_PAGES_OUT
if (out) mkdirSync(out, { recursive: true })

const looks = [
  ['light', 1100, 'light'],
  ['dark', 1100, 'dark'],
  ['narrow', 360, 'light'],
  ['narrow-dark', 360, 'dark'],
]
const browser = await puppeteer.launch({
  executablePath: process.env.FIREKEEP_CHROMIUM || '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
})
let bad = 0
let seen = 0
const complain = (what) => { bad += 1; console.log(`BAD ${what}`) }
for (const named of pages) {
  const at = named.indexOf('=')
  const [name, url] = [named.slice(0, at), named.slice(at + 1)]
  for (const [look, width, scheme] of looks) {
    const page = await browser.newPage()
    await page.setViewport({ width, height: 900 })
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }])
    page.on('console', (message) => complain(`${name} ${look}: console: ${message.text()}`))
    page.on('pageerror', (error) => complain(`${name} ${look}: ${error}`))
    page.on('requestfailed', (request) => complain(`${name} ${look}: cannot load ${request.url()}`))
    const answer = await page.goto(url, { waitUntil: 'load' })
    if (answer.status() !== 200) complain(`${name} ${look}: ${answer.status()}`)
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth)
    if (wide > 0) complain(`${name} ${look}: ${wide} pixels too wide`)
    const color = await page.evaluate(() => getComputedStyle(document.body).backgroundColor)
    if ((color === 'rgb(255, 255, 255)') !== (scheme === 'light')) complain(`${name} ${look}: background ${color}`)
    if (out) await page.screenshot({ path: join(out, `${name}-${look}.png`), fullPage: true })
    // By the debugger, which the page's policy does not bind.
    await page.evaluate(axe)
    const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }))
    for (const one of found.violations) {
      complain(`${name} ${look}: axe ${one.id} (${one.impact}): ${one.help}: ${one.nodes.map((n) => n.html.slice(0, 120)).join(' | ')}`)
    }
    if (found.passes.length < 10) complain(`${name} ${look}: axe looked at almost nothing`)
    seen += 1
    await page.close()
  }
}
await browser.close()
console.log(`${seen} looks at ${pages.length} pages: ${bad} complaints`)
process.exit(bad === 0 && seen > 0 ? 0 : 1)
