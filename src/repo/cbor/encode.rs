//! Writes DAG-CBOR, piece by piece, at the end of a buffer.
//!
//! Heads are always in their shortest form. The caller writes map keys in DAG-CBOR order (shorter first,
//! then by bytes) and as many items as it announced; every writer has a test that reads back strictly.

use crate::types::Cid;

/// The byte of `true`.
pub(super) const TRUE: u8 = 0xf5;
/// The byte of `null`.
pub(super) const NULL: u8 = 0xf6;

fn head(out: &mut Vec<u8>, major: u8, value: u64) {
    let major = major << 5;
    match value {
        0..=23 => out.push(major | value as u8),
        24..=0xff => out.extend([major | 24, value as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend((value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend((value as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend(value.to_be_bytes());
        }
    }
}

/// Writes an integer.
pub fn integer(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        head(out, 1, !value as u64);
    } else {
        head(out, 0, value as u64);
    }
}

/// Writes a byte string.
pub fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    head(out, 2, value.len() as u64);
    out.extend_from_slice(value);
}

/// Writes a text string or a map key.
pub fn text(out: &mut Vec<u8>, value: &str) {
    head(out, 3, value.len() as u64);
    out.extend_from_slice(value.as_bytes());
}

/// Begins an array of this many items.
pub fn array(out: &mut Vec<u8>, items: usize) {
    head(out, 4, items as u64);
}

/// Begins a map of this many entries.
pub fn map(out: &mut Vec<u8>, entries: usize) {
    head(out, 5, entries as u64);
}

/// Writes a CID link.
pub fn link(out: &mut Vec<u8>, cid: &Cid) {
    // Tag 42, a byte string of 37 bytes, and the zero that says "binary CID".
    out.extend_from_slice(&[0xd8, 0x2a, 0x58, 0x25, 0x00]);
    out.extend_from_slice(&cid.to_bytes());
}

/// Writes a CID link or `null`.
pub fn optional_link(out: &mut Vec<u8>, cid: Option<&Cid>) {
    match cid {
        Some(cid) => link(out, cid),
        None => null(out),
    }
}

/// Writes `false` or `true`.
pub fn boolean(out: &mut Vec<u8>, value: bool) {
    out.push(if value { TRUE } else { TRUE - 1 });
}

/// Writes `null`.
pub fn null(out: &mut Vec<u8>) {
    out.push(NULL);
}
