//! Looks into a record for the blobs that it refers to.
//!
//! Record bytes are opaque to Firekeep: what hashes to its CID is kept byte for byte, whatever it holds.
//! So the scan is lenient. It reads any CBOR as far as it decodes, and takes every blob object on the way,
//! wherever it stands.
//!
//! Source: <https://atproto.com/specs/data-model#blob-type>.

#[cfg(test)]
mod tests;

use super::cbor::check_canonical;
use super::cbor::lenient::{Malformed, Token, Tokens};
use crate::types::{Cid, Codec};

/// Deepest nesting that the scan follows. Hosts themselves stop looking for blobs at 32 levels or so.
pub const SCAN_DEPTH_MAX: usize = 1024;

/// Longest MIME type that is taken from a record, in bytes; two names of 127 by RFC 6838.
pub const MIME_BYTES_MAX: usize = 255;

/// What a record's bytes tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordScan {
    /// The blobs that the record refers to, by CID, each once.
    pub blobs: Vec<BlobRef>,
    /// Whether the bytes are strict DAG-CBOR.
    pub canonical: bool,
    /// Whether the bytes are proven not to be one complete item of any CBOR.
    pub broken: bool,
}

/// A reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRef {
    /// The blob. Always with the raw codec.
    pub cid: Cid,
    /// The MIME type that the record claims, if it has one of at most [`MIME_BYTES_MAX`] bytes.
    pub mime: Option<String>,
    /// The size in bytes that the record claims.
    pub size: Option<u64>,
}

/// Scans a record for blobs: `{$type: "blob", ref, mimeType, size}`, and the legacy form, which is exactly
/// `{cid, mimeType}`, both as text.
#[must_use]
pub fn scan_record(bytes: &[u8]) -> RecordScan {
    let canonical = check_canonical(bytes).is_ok();
    let mut scan = Scan::default();
    let broken = match scan.run(bytes) {
        Ok(()) | Err(Stop::TooDeep) => false,
        Err(Stop::Malformed) => true,
    };
    // What was open when the bytes gave out counts as far as it was read.
    while let Some(level) = scan.levels.pop() {
        scan.blobs.extend(level.blob());
    }
    // Stable, so that of several references the first in the record is kept.
    scan.blobs.sort_by_key(|blob| blob.cid);
    scan.blobs.dedup_by_key(|blob| blob.cid);
    RecordScan {
        blobs: scan.blobs,
        canonical,
        broken,
    }
}

#[derive(Default)]
struct Scan<'a> {
    levels: Vec<Level<'a>>,
    blobs: Vec<BlobRef>,
}

enum Stop {
    Malformed,
    TooDeep,
}

impl From<Malformed> for Stop {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// An array or map that is not yet at its end.
struct Level<'a> {
    /// Items still to come (a map entry is two), or `None` up to a break.
    left: Option<u64>,
    /// Set for a map.
    fields: Option<Fields<'a>>,
}

/// What a map has shown so far.
#[derive(Default)]
struct Fields<'a> {
    entries: u64,
    /// Whether the next item is a value; then `key` is its key, if that was text.
    at_value: bool,
    key: Option<&'a str>,
    is_blob: bool,
    reference: Option<Cid>,
    mime: Option<&'a str>,
    size: Option<u64>,
    legacy_cid: Option<Cid>,
}

impl<'a> Scan<'a> {
    fn run(&mut self, bytes: &'a [u8]) -> Result<(), Stop> {
        let mut tokens = Tokens::new(bytes);
        let mut tag = None;
        loop {
            let token = tokens.read()?;
            if let Token::Tag(number) = token {
                tag = Some(number);
                continue;
            }
            if token == Token::Break {
                self.end_indefinite(tag)?;
            } else {
                self.item(token, tag.take())?;
            }
            if self.end_finished() {
                return if tokens.is_at_end() {
                    Ok(())
                } else {
                    Err(Stop::Malformed)
                };
            }
        }
    }

    /// Takes an item that is not a break: a scalar, or the beginning of an array or map.
    fn item(&mut self, token: Token<'a>, tag: Option<u64>) -> Result<(), Stop> {
        if let Some(level) = self.levels.last_mut() {
            level.left = level.left.map(|left| left - 1);
            if let Some(fields) = &mut level.fields {
                fields.item(token, tag);
            }
        }
        let level = match token {
            Token::Array(left) => Level { left, fields: None },
            Token::Map(entries) => Level {
                left: entries
                    .map(|entries| entries.checked_mul(2).ok_or(Stop::Malformed))
                    .transpose()?,
                fields: Some(Fields::default()),
            },
            _ => return Ok(()),
        };
        if self.levels.len() == SCAN_DEPTH_MAX {
            return Err(Stop::TooDeep);
        }
        self.levels.push(level);
        Ok(())
    }

    /// Takes a break: it must end an array or map of indefinite length, between two entries.
    fn end_indefinite(&mut self, tag: Option<u64>) -> Result<(), Stop> {
        match self.levels.last_mut() {
            Some(level) if level.left.is_none() && tag.is_none() => {
                if level.fields.as_ref().is_some_and(|fields| fields.at_value) {
                    return Err(Stop::Malformed);
                }
                level.left = Some(0);
                Ok(())
            }
            _ => Err(Stop::Malformed),
        }
    }

    /// Closes every level that is at its end; says whether the outermost item is.
    fn end_finished(&mut self) -> bool {
        while let Some(level) = self.levels.pop_if(|level| level.left == Some(0)) {
            self.blobs.extend(level.blob());
        }
        self.levels.is_empty()
    }
}

impl<'a> Fields<'a> {
    /// Takes the next key or value of the map.
    fn item(&mut self, token: Token<'a>, tag: Option<u64>) {
        if !self.at_value {
            self.entries += 1;
            self.at_value = true;
            self.key = match token {
                Token::Text(text) if tag.is_none() => text,
                _ => None,
            };
            return;
        }
        self.at_value = false;
        match (self.key, token, tag) {
            (Some("$type"), Token::Text(Some("blob")), None) => self.is_blob = true,
            (Some("ref"), Token::Bytes(Some([0x00, cid @ ..])), Some(42)) => {
                self.reference = Cid::from_bytes(cid).ok();
            }
            (Some("mimeType"), Token::Text(Some(mime)), None) => self.mime = Some(mime),
            (Some("size"), Token::Unsigned(size), None) => self.size = Some(size),
            (Some("cid"), Token::Text(Some(cid)), None) => self.legacy_cid = cid.parse().ok(),
            _ => {}
        }
    }
}

impl Level<'_> {
    /// The blob that this map is, if it is one.
    fn blob(&self) -> Option<BlobRef> {
        let fields = self.fields.as_ref()?;
        let legacy = fields.entries == 2 && fields.mime.is_some();
        let cid = match fields.is_blob {
            true => fields.reference,
            false => fields.legacy_cid.filter(|_| legacy),
        }?;
        // No host stores a blob under another codec.
        (cid.codec() == Codec::Raw).then(|| BlobRef {
            cid,
            mime: fields
                .mime
                .filter(|mime| mime.len() <= MIME_BYTES_MAX)
                .map(str::to_owned),
            size: fields.size,
        })
    }
}
