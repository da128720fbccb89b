//! The signed commit: the root object of a repository.
//!
//! The signature covers the commit block without its `sig` entry. That message is cut out of the original
//! bytes, never encoded again from fields, so an unknown field stays part of what was signed.
//!
//! Source: <https://atproto.com/specs/repository#commit-objects>.

#[cfg(test)]
mod tests;

use super::cbor::{CborError, Decoder, encode};
use crate::types::{Cid, Codec, Did, Rev, SyntaxError};

/// The only version of the repository format that is supported.
pub const COMMIT_VERSION: i64 = 3;

/// Largest commit block, in bytes: a `#sync` event, at most 10,000 bytes, must be able to carry it.
pub const COMMIT_BYTES_MAX: usize = 10_000;

/// A decoded commit. Its signature is not checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The account.
    pub did: Did,
    /// The revision.
    pub rev: Rev,
    /// The root of the tree of records.
    pub data: Cid,
    /// The previous commit: a relic of version 2, nearly always absent, and never relied on.
    pub prev: Option<Cid>,
    /// The signature: r and s, 32 bytes each.
    pub sig: [u8; 64],
    unsigned: Box<[u8]>,
}

/// Why a block is not a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Larger than [`COMMIT_BYTES_MAX`].
    #[error("the commit has {0} bytes, more than {COMMIT_BYTES_MAX}")]
    TooLarge(usize),
    /// Not strict DAG-CBOR, or a field of the wrong kind.
    #[error("malformed commit: {0}")]
    Cbor(#[from] CborError),
    /// A required field is not there.
    #[error("the commit has no {0}")]
    Missing(&'static str),
    /// A repository version other than [`COMMIT_VERSION`].
    #[error("repository version {0} is not supported, only {COMMIT_VERSION} is")]
    Version(i64),
    /// `did` or `rev` is malformed.
    #[error("malformed commit: {0}")]
    Syntax(#[from] SyntaxError),
    /// `data` does not link to a DAG-CBOR block.
    #[error("the commit's data link is not to a tree node")]
    DataCodec,
    /// The signature is not 64 bytes (DER, say).
    #[error("the commit's signature has {0} bytes, not 64")]
    SignatureLength(usize),
}

impl Commit {
    /// Decodes a commit block.
    ///
    /// # Errors
    /// When the block is not strict DAG-CBOR, lacks a field, or has one that is malformed. Unknown fields
    /// are no error.
    pub fn decode(block: &[u8]) -> Result<Self, CommitError> {
        if block.len() > COMMIT_BYTES_MAX {
            return Err(CommitError::TooLarge(block.len()));
        }
        let mut decoder = Decoder::new(block);
        let mut keys = decoder.map()?;
        let (entries, body) = (keys.left(), decoder.position());
        let (mut did, mut rev, mut data, mut version) = (None, None, None, None);
        let mut prev: Option<Option<Cid>> = None;
        let mut sig: Option<(&[u8], std::ops::Range<usize>)> = None;
        loop {
            let begin = decoder.position();
            let Some(key) = keys.next(&mut decoder)? else {
                break;
            };
            match key {
                "did" => did = Some(decoder.text()?),
                "rev" => rev = Some(decoder.text()?),
                "data" => data = Some(decoder.link()?),
                "prev" if decoder.null() => prev = Some(None),
                "prev" => prev = Some(Some(decoder.link()?)),
                "sig" => sig = Some((decoder.bytes()?, begin..decoder.position())),
                "version" => version = Some(decoder.integer()?),
                _ => {
                    decoder.skip()?;
                }
            }
        }
        decoder.end()?;

        // Version first: another version may well lack the other fields.
        match version.ok_or(CommitError::Missing("version"))? {
            COMMIT_VERSION => {}
            other => return Err(CommitError::Version(other)),
        }
        let data = data.ok_or(CommitError::Missing("data"))?;
        if data.codec() != Codec::DagCbor {
            return Err(CommitError::DataCodec);
        }
        let (sig, entry) = sig.ok_or(CommitError::Missing("sig"))?;
        Ok(Self {
            did: did.ok_or(CommitError::Missing("did"))?.parse()?,
            rev: rev.ok_or(CommitError::Missing("rev"))?.parse()?,
            data,
            prev: prev.ok_or(CommitError::Missing("prev"))?,
            sig: sig
                .try_into()
                .map_err(|_| CommitError::SignatureLength(sig.len()))?,
            unsigned: cut_out(block, entries, body, entry),
        })
    }

    /// The message that [`Commit::sig`] signs: the original block without its `sig` entry.
    #[must_use]
    pub fn unsigned_bytes(&self) -> &[u8] {
        &self.unsigned
    }
}

/// A map of `entries` entries, whose first begins at `body`, without the entry in `cut`.
fn cut_out(block: &[u8], entries: usize, body: usize, cut: std::ops::Range<usize>) -> Box<[u8]> {
    let mut out = Vec::with_capacity(block.len());
    encode::map(&mut out, entries - 1);
    out.extend_from_slice(&block[body..cut.start]);
    out.extend_from_slice(&block[cut.end..]);
    out.into()
}

/// Makes a signed commit block. `sign` gets the unsigned bytes and returns r and s.
///
/// For tests, simulated hosts and fixtures; Firekeep never signs for an account.
#[must_use]
pub fn build_commit(
    did: &Did,
    rev: Rev,
    data: Cid,
    prev: Option<Cid>,
    sign: impl FnOnce(&[u8]) -> [u8; 64],
) -> Vec<u8> {
    let write = |sig: Option<&[u8; 64]>| {
        let mut out = Vec::with_capacity(256);
        encode::map(&mut out, if sig.is_some() { 6 } else { 5 });
        encode::text(&mut out, "did");
        encode::text(&mut out, did.as_str());
        encode::text(&mut out, "rev");
        encode::text(&mut out, &rev.to_string());
        if let Some(sig) = sig {
            encode::text(&mut out, "sig");
            encode::bytes(&mut out, sig);
        }
        encode::text(&mut out, "data");
        encode::link(&mut out, &data);
        encode::text(&mut out, "prev");
        encode::optional_link(&mut out, prev.as_ref());
        encode::text(&mut out, "version");
        encode::integer(&mut out, COMMIT_VERSION);
        out
    };
    let sig = sign(&write(None));
    write(Some(&sig))
}
