// Small pictures that any decoder takes, each with other bytes: a PNG, and a grey baseline JPEG of flat blocks.
import zlib from 'node:zlib'

export function picture(random) {
  return random.next() < 0.5 ? png(random) : jpeg(random)
}

export function png(random) {
  const width = 8 + random.below(40)
  const height = 8 + random.below(40)
  const rows = Buffer.alloc((width * 3 + 1) * height)
  const [r, g, b] = [random.below(256), random.below(256), random.below(256)]
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * (width * 3 + 1) + 1 + x * 3
      rows[at] = (r + x * 4) & 255
      rows[at + 1] = (g + y * 4) & 255
      rows[at + 2] = (b ^ (random.below(4) * 8)) & 255
    }
  }
  const header = Buffer.alloc(13)
  header.writeUInt32BE(width, 0)
  header.writeUInt32BE(height, 4)
  header.set([8, 2, 0, 0, 0], 8) // eight bits a channel, RGB
  const bytes = Buffer.concat([
    Buffer.from('89504e470d0a1a0a', 'hex'),
    chunk('IHDR', header),
    chunk('IDAT', zlib.deflateSync(rows)),
    chunk('IEND', Buffer.alloc(0)),
  ])
  return { bytes, type: 'image/png', width, height }
}

function chunk(name, data) {
  const body = Buffer.concat([Buffer.from(name, 'latin1'), data])
  const framed = Buffer.alloc(body.length + 8)
  framed.writeUInt32BE(data.length, 0)
  body.copy(framed, 4)
  framed.writeUInt32BE(zlib.crc32(body), body.length + 4)
  return framed
}

export function jpeg(random) {
  const across = 2 + random.below(6)
  const down = 2 + random.below(6)
  const [width, height] = [across * 8, down * 8]
  // One table for the flat part (categories 0 to 11, four bits each) and one for the rest (only "nothing follows").
  const dcTable = [0x00, ...[0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], ...Array(12).keys()]
  const acTable = [0x10, ...[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0x00]
  let bits = ''
  let before = 0
  for (let block = 0; block < across * down; block++) {
    const level = random.below(256) - 128 // quantised by 8, so this is the very grey of the block
    const difference = level - before
    before = level
    const size = difference === 0 ? 0 : 32 - Math.clz32(Math.abs(difference))
    bits += size.toString(2).padStart(4, '0')
    if (size) bits += (difference > 0 ? difference : difference + (1 << size) - 1).toString(2).padStart(size, '0')
    bits += '0'
  }
  bits = bits.padEnd(Math.ceil(bits.length / 8) * 8, '1')
  const scan = []
  for (let at = 0; at < bits.length; at += 8) {
    const byte = parseInt(bits.slice(at, at + 8), 2)
    scan.push(byte)
    if (byte === 0xff) scan.push(0) // so that it is no marker
  }
  const words = (n) => [n >> 8, n & 255]
  const segment = (marker, data) => Buffer.from([0xff, marker, ...words(data.length + 2), ...data])
  const bytes = Buffer.concat([
    Buffer.from([0xff, 0xd8]),
    segment(0xe0, [...Buffer.from('JFIF\0', 'latin1'), 1, 1, 0, 0, 1, 0, 1, 0, 0]),
    segment(0xfe, Buffer.from(`sandbox ${random.below(2 ** 30).toString(36)}`)),
    segment(0xdb, [0, ...Array(64).fill(8)]),
    segment(0xc0, [8, ...words(height), ...words(width), 1, 1, 0x11, 0]),
    segment(0xc4, dcTable),
    segment(0xc4, acTable),
    segment(0xda, [1, 1, 0x00, 0, 63, 0]),
    Buffer.from(scan),
    Buffer.from([0xff, 0xd9]),
  ])
  return { bytes, type: 'image/jpeg', width, height }
}
