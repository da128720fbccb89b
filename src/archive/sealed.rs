//! JSON objects that carry their own checksum, so that a flipped bit is noticed wherever they lie.
//!
//! The top-level field `sha256` holds, in hexadecimal, the SHA-256 of the whole file with 64 zeros in its place. A
//! raw line break never stands inside a JSON string, so the field is found by its line, without parsing.

use data_encoding::HEXLOWER;
use serde_json::{Map, Value};

use crate::types::cid::sha256;

/// What stands before the digest of a sealed file, and nowhere else in it.
const BEFORE: &str = "\n  \"sha256\": \"";
/// Digits of the digest.
const DIGITS: usize = 64;

/// What a file's seal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// It is whole.
    Sound,
    /// It is not what was written.
    Broken,
    /// It has none.
    None,
}

/// Writes an object with a seal, a field a line.
///
/// # Panics
/// Never: a JSON value has a JSON form.
#[must_use]
pub fn seal(mut object: Map<String, Value>) -> Vec<u8> {
    object.insert("sha256".to_owned(), Value::String("0".repeat(DIGITS)));
    let mut bytes = serde_json::to_vec_pretty(&object).expect("a JSON value has a JSON form");
    bytes.push(b'\n');
    if let Some(at) = digest_at(&bytes) {
        let digest = HEXLOWER.encode(&sha256(&bytes));
        bytes[at..at + DIGITS].copy_from_slice(digest.as_bytes());
    }
    bytes
}

/// Checks a file's seal.
#[must_use]
pub fn check(bytes: &[u8]) -> Seal {
    let Some(at) = digest_at(bytes) else {
        return Seal::None;
    };
    let mut plain = bytes.to_vec();
    plain[at..at + DIGITS].fill(b'0');
    if HEXLOWER.encode(&sha256(&plain)).as_bytes() == &bytes[at..at + DIGITS] {
        Seal::Sound
    } else {
        Seal::Broken
    }
}

/// Where the digest stands.
fn digest_at(bytes: &[u8]) -> Option<usize> {
    let before = BEFORE.as_bytes();
    let found = bytes.windows(before.len()).position(|window| window == before)?;
    let at = found + before.len();
    (bytes.get(at + DIGITS) == Some(&b'"')).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_breaks_or_removes_the_seal() {
        let inner = serde_json::json!({ "sha256": "\n  \"sha256\": \"", "b": [1, 2] });
        let object = Map::from_iter([("z".to_owned(), inner.clone()), ("a".to_owned(), inner)]);
        let bytes = seal(object.clone());
        assert_eq!(check(&bytes), Seal::Sound);
        let read: Map<String, Value> = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(read["z"], object["z"]);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert_ne!(check(&bad), Seal::Sound, "bit {bit} of byte {at}");
            }
        }
        assert_eq!(check(b"{}"), Seal::None);
    }
}
