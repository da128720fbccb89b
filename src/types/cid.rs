//! Content identifiers, in the one form that AT Protocol allows: version 1, codec dag-cbor or raw,
//! SHA-256 of 32 bytes. Any other CID is refused on parsing, so a [`Cid`] is 33 bytes and `Copy`.
//!
//! Source: <https://atproto.com/specs/data-model#link-and-cid-formats>, DASL CID.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::SyntaxError;

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// What the bytes behind a CID are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Codec {
    /// A DAG-CBOR block: commit, tree node or record (multicodec 0x71).
    DagCbor,
    /// Raw bytes: a blob (multicodec 0x55).
    Raw,
}

impl Codec {
    const fn code(self) -> u8 {
        match self {
            Self::DagCbor => 0x71,
            Self::Raw => 0x55,
        }
    }
}

/// A content identifier: codec and SHA-256 digest.
///
/// Binary form: 36 bytes (`01 codec 12 20 digest`); text form: `b` and lower-case base32, 59 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cid {
    codec: Codec,
    digest: Digest,
}

/// Length of the binary form.
pub const CID_BYTES: usize = 36;

impl Cid {
    /// The CID with this codec and digest.
    #[must_use]
    pub const fn new(codec: Codec, digest: Digest) -> Self {
        Self { codec, digest }
    }

    /// The CID of a DAG-CBOR block, from the digest of its bytes.
    #[must_use]
    pub const fn dag_cbor(digest: Digest) -> Self {
        Self::new(Codec::DagCbor, digest)
    }

    /// The CID of a blob, from the digest of its bytes.
    #[must_use]
    pub const fn raw(digest: Digest) -> Self {
        Self::new(Codec::Raw, digest)
    }

    /// Hashes a DAG-CBOR block.
    #[must_use]
    pub fn of_block(bytes: &[u8]) -> Self {
        Self::dag_cbor(sha256(bytes))
    }

    /// Hashes a blob.
    #[must_use]
    pub fn of_blob(bytes: &[u8]) -> Self {
        Self::raw(sha256(bytes))
    }

    /// The codec.
    #[must_use]
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// The SHA-256 digest.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether these bytes hash to this CID.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        sha256(bytes) == self.digest
    }

    /// The binary form.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; CID_BYTES] {
        let mut out = [0; CID_BYTES];
        let (head, tail) = out.split_at_mut(4);
        head.copy_from_slice(&[0x01, self.codec.code(), 0x12, 0x20]);
        tail.copy_from_slice(&self.digest);
        out
    }

    /// Parses the binary form; the slice must be exactly one CID.
    ///
    /// # Errors
    /// When it is not CIDv1, dag-cbor or raw, SHA-256 of 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SyntaxError> {
        const fn bad(rule: &'static str) -> SyntaxError {
            SyntaxError::new("CID", rule)
        }
        let bytes: &[u8; CID_BYTES] = bytes.try_into().map_err(|_| bad("must be 36 bytes"))?;
        let [version, codec, hash, length, digest @ ..] = bytes;
        if *version != 0x01 {
            return Err(bad("must be version 1"));
        }
        let codec = match *codec {
            0x71 => Codec::DagCbor,
            0x55 => Codec::Raw,
            _ => return Err(bad("codec must be dag-cbor or raw")),
        };
        if *hash != 0x12 || *length != 0x20 {
            return Err(bad("hash must be SHA-256 of 32 bytes"));
        }
        Ok(Self::new(codec, *digest))
    }
}

/// The SHA-256 of some bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

impl FromStr for Cid {
    type Err = SyntaxError;

    /// Parses the canonical text form: `b` followed by unpadded lower-case base32.
    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        const fn bad(rule: &'static str) -> SyntaxError {
            SyntaxError::new("CID", rule)
        }
        let body = text
            .strip_prefix('b')
            .ok_or(bad("must be base32, beginning with b"))?;
        if text.len() != 59 {
            return Err(bad("must be 59 characters"));
        }
        if body.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad("must be lower case"));
        }
        let bytes = BASE32
            .decode(body.as_bytes())
            .map_err(|_| bad("must be base32"))?;
        Self::from_bytes(&bytes)
    }
}

static BASE32: std::sync::LazyLock<data_encoding::Encoding> = std::sync::LazyLock::new(|| {
    let mut spec = data_encoding::Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.encoding()
        .expect("RFC 4648 alphabet is a valid specification")
});

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("b")?;
        f.write_str(&BASE32.encode(&self.to_bytes()))
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_binary_forms_round_trip() {
        for cid in [Cid::of_block(b"block"), Cid::of_blob(b"blob")] {
            assert_eq!(Cid::from_bytes(&cid.to_bytes()), Ok(cid));
            assert_eq!(cid.to_string().parse(), Ok(cid));
        }
        // The empty DAG-CBOR map, as published in many IPLD texts.
        assert_eq!(
            Cid::of_block(&[0xa0]).to_string(),
            "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua"
        );
    }

    #[test]
    fn foreign_cids_are_refused() {
        let good = Cid::of_block(b"x").to_bytes();
        for (at, value) in [(0, 0), (1, 0x70), (2, 0x13), (3, 0x1f)] {
            let mut bad = good;
            bad[at] = value;
            assert!(Cid::from_bytes(&bad).is_err(), "byte {at} = {value:#x}");
        }
        assert!(Cid::from_bytes(&good[..35]).is_err());
        let text = Cid::of_block(b"x").to_string();
        assert!(text.to_uppercase().parse::<Cid>().is_err());
        assert!(format!("{text}a").parse::<Cid>().is_err());
        assert!(
            "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"
                .parse::<Cid>()
                .is_err()
        );
    }
}
