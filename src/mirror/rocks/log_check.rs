//! Finds damage in RocksDB's logs that RocksDB itself would take for something harmless.
//!
//! Its recovery mode refuses an entry whose checksum is wrong and accepts a torn end. Three kinds of damage
//! slip through, each possible from a single bad bit or sector, and everything behind them, synced or not,
//! would be dropped without a word (seen with RocksDB 11.8, in the source and by experiment):
//!
//! - An entry's *length* that points past the end of the file: it looks torn. But the checksum does not cover
//!   the length; where it fits a shorter payload that is there, the entry was whole.
//! - An entry's *type* that turns into that of a recycled log, which we never write: its first entry looks
//!   like the end of the log, and a later one is read again and again, for ever.
//! - A header of *zeros*, which RocksDB reads as space that was reserved and not used.
//!
//! Format: <https://github.com/facebook/rocksdb/wiki/Write-Ahead-Log-File-Format>. A manifest is such a log,
//! too.

use std::io::{self, Read};

/// Entries never cross the end of a block.
const BLOCK_BYTES: usize = 32 * 1024;

/// Checksum (4 bytes), length (2) and type (1) of an entry; little-endian.
const HEADER_BYTES: usize = 7;

/// Types of entries in a log that is written over an older one.
const RECYCLED_TYPES: [u8; 6] = [5, 6, 7, 8, 11, 131];

/// What is wrong with a log, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damage {
    /// Offset of the entry.
    pub(super) at: u64,
    /// What is wrong with it.
    pub(super) what: &'static str,
}

/// Reads a log from its beginning; none when all is well, or when RocksDB will see by itself what is not.
pub(super) fn find_damage(mut log: impl Read) -> io::Result<Option<Damage>> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let mut begins = 0;
    let mut unused_from = None;
    loop {
        block.clear();
        (&mut log).take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
        if block.is_empty() {
            return Ok(None);
        }
        if let Some(at) = unused_from
            && block.iter().any(|byte| *byte != 0)
        {
            let what = "is zeros, but there is more behind it";
            return Ok(Some(Damage { at, what }));
        }
        match walk(&block) {
            Walk::Fine => {}
            Walk::Torn => return Ok(None),
            Walk::Unused(at) => unused_from = unused_from.or(Some(begins + at as u64)),
            Walk::Damaged(at, what) => {
                let at = begins + at as u64;
                return Ok(Some(Damage { at, what }));
            }
        }
        begins += block.len() as u64;
    }
}

enum Walk {
    /// Entries to the end.
    Fine,
    /// The last entry ends before it should, as after a power cut.
    Torn,
    /// Only zeros from here.
    Unused(usize),
    Damaged(usize, &'static str),
}

fn walk(block: &[u8]) -> Walk {
    let mut at = 0;
    while let Some((header, rest)) = block[at..].split_first_chunk::<HEADER_BYTES>() {
        let [sum @ .., low, high, kind] = *header;
        let length = usize::from(u16::from_le_bytes([low, high]));
        if kind == 0 && length == 0 {
            return match block[at..].iter().all(|byte| *byte == 0) {
                true => Walk::Unused(at),
                false => Walk::Damaged(at, "is zeros, but there is more behind it"),
            };
        }
        if RECYCLED_TYPES.contains(&kind) {
            return Walk::Damaged(at, "has a type that is never written");
        }
        if length > rest.len() {
            let damaged = block.len() == BLOCK_BYTES || fits_a_prefix(u32::from_le_bytes(sum), kind, rest);
            return match damaged {
                true => Walk::Damaged(at, "has a wrong length"),
                false => Walk::Torn,
            };
        }
        at += HEADER_BYTES + length;
    }
    Walk::Fine
}

/// Whether the checksum is that of the beginning of a payload. For a payload that is really torn it is by
/// chance, once in 100,000 times (32,768 prefixes, 32 bits).
fn fits_a_prefix(sum: u32, kind: u8, payload: &[u8]) -> bool {
    let mut crc = crc32c_step(u32::MAX, kind);
    if masked(!crc) == sum {
        return true;
    }
    payload.iter().any(|byte| {
        crc = crc32c_step(crc, *byte);
        masked(!crc) == sum
    })
}

/// How the format stores a checksum.
const fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// One byte of CRC-32C (Castagnoli, reflected).
const fn crc32c_step(crc: u32, byte: u8) -> u32 {
    let mut crc = crc ^ byte as u32;
    let mut bit = 0;
    while bit < 8 {
        crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        bit += 1;
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: u8 = 1;

    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| crc32c_step(crc, *byte))
    }

    fn entry(payload: &[u8]) -> Vec<u8> {
        let kind_and_payload = [&[FULL], payload].concat();
        let sum = masked(crc32c(&kind_and_payload)).to_le_bytes();
        let length = u16::try_from(payload.len()).unwrap().to_le_bytes();
        [&sum[..], &length, &kind_and_payload].concat()
    }

    /// Two blocks and a bit: entries of 1,000 bytes, padded where the next would cross the end of a block.
    fn log() -> (Vec<u8>, Vec<usize>) {
        let (mut log, mut starts) = (Vec::new(), Vec::new());
        for number in 0..70 {
            let entry = entry(&[number; 993]);
            let left = BLOCK_BYTES - log.len() % BLOCK_BYTES;
            if left < entry.len() {
                log.extend(super::tests::entry(&vec![7; left - HEADER_BYTES]));
            }
            starts.push(log.len());
            log.extend(entry);
        }
        (log, starts)
    }

    fn damage(log: &[u8]) -> Option<(u64, &'static str)> {
        find_damage(log).unwrap().map(|damage| (damage.at, damage.what))
    }

    #[test]
    fn the_checksum_is_crc32c() {
        // RFC 3720, B.4, and the check value of the CRC catalogue.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn whole_and_torn_logs_are_fine() {
        let (log, _) = log();
        for end in (0..log.len())
            .step_by(101)
            .chain([log.len(), BLOCK_BYTES, 2 * BLOCK_BYTES])
        {
            assert_eq!(damage(&log[..end]), None, "cut at {end}");
        }
        for zeros in [1, 7, 1000, 2 * BLOCK_BYTES] {
            assert_eq!(
                damage(&[&log[..], &vec![0; zeros]].concat()),
                None,
                "{zeros} bytes reserved"
            );
        }
    }

    #[test]
    fn a_length_past_the_end_is_told_from_a_torn_entry() {
        let (log, starts) = log();
        for at in [starts[68], starts[69], starts[1]] {
            let mut log = log.clone();
            log[at + 5] ^= 0x80;
            assert_eq!(damage(&log), Some((at as u64, "has a wrong length")));
        }
        // Without a payload, too.
        let mut log = entry(b"");
        log[4] = 9;
        assert_eq!(damage(&log), Some((0, "has a wrong length")));
    }

    #[test]
    fn types_of_recycled_logs_are_damage() {
        let (log, starts) = log();
        for (at, kind) in [
            (starts[0], 5),
            (starts[1], 6),
            (starts[69], 8),
            (starts[40], 11),
            (starts[40], 131),
        ] {
            let mut log = log.clone();
            log[at + 6] = kind;
            assert_eq!(
                damage(&log),
                Some((at as u64, "has a type that is never written"))
            );
        }
    }

    #[test]
    fn zeros_with_something_behind_them_are_damage() {
        let (log, starts) = log();
        let what = "is zeros, but there is more behind it";
        let at = starts[3];
        for end in [at + 512, BLOCK_BYTES, BLOCK_BYTES + 512] {
            let mut log = log.clone();
            log[at..end].fill(0);
            assert_eq!(damage(&log), Some((at as u64, what)), "to {end}");
        }
    }
}
