//! Tells a torn end of a log from a damaged one.
//!
//! RocksDB takes an entry that claims to be longer than the rest of the file for the last one, torn by a power
//! cut, and drops it. A flipped bit in an entry's length looks the same, and everything behind it, synced or
//! not, would be dropped without a word. But the entry's checksum does not cover its length: where it fits a
//! shorter payload that is there, the entry was whole, and its length is what is damaged.
//!
//! Only the last block of a file can hide this; elsewhere RocksDB refuses an entry that leaves its block.
//! Format: <https://github.com/facebook/rocksdb/wiki/Write-Ahead-Log-File-Format>. A manifest is such a log, too.

/// Bytes of a block. Entries never cross its end.
pub(super) const BLOCK_BYTES: u64 = 32 * 1024;

/// Checksum (4 bytes), length (2) and type (1) of an entry; little-endian.
const HEADER_BYTES: usize = 7;

/// Where in the last block of a log an entry stands whose length is damaged, if one does.
pub(super) fn damaged_length(last_block: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some((header, rest)) = last_block[at..].split_first_chunk::<HEADER_BYTES>() {
        let [sum @ .., low, high, kind] = *header;
        let length = usize::from(u16::from_le_bytes([low, high]));
        if length > rest.len() {
            return checksum_fits_a_prefix(u32::from_le_bytes(sum), kind, rest).then_some(at);
        }
        at += HEADER_BYTES + length;
    }
    None
}

/// A torn payload passes by chance once in 100,000 times at most (32,768 prefixes, 32 bits).
fn checksum_fits_a_prefix(sum: u32, kind: u8, payload: &[u8]) -> bool {
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

    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| crc32c_step(crc, *byte))
    }

    fn entry(payload: &[u8]) -> Vec<u8> {
        let mut kind_and_payload = vec![1];
        kind_and_payload.extend_from_slice(payload);
        let mut entry = masked(crc32c(&kind_and_payload)).to_le_bytes().to_vec();
        entry.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_le_bytes());
        entry.extend_from_slice(&kind_and_payload);
        entry
    }

    #[test]
    fn the_checksum_is_crc32c() {
        // RFC 3720, B.4, and the check value of the CRC catalogue.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn whole_and_torn_logs_are_fine() {
        let log = [entry(b"first"), entry(b""), entry(b"the last one"), vec![0; 20]].concat();
        let whole = log.len() - 20;
        for end in (0..=whole).chain([log.len()]) {
            assert_eq!(damaged_length(&log[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn a_length_past_the_end_is_told_from_a_torn_entry() {
        let entries = [entry(b"first"), entry(b""), entry(b"the last one")];
        let mut at = 0;
        for entry in &entries {
            for bit in [0x10, 0x40] {
                let mut log = entries.concat();
                log[at + 5] ^= bit;
                assert_eq!(damaged_length(&log), Some(at));
            }
            at += entry.len();
        }
    }
}
