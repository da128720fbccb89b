//! Content types of objects, and what a folder archive can tell without being told.
//!
//! S3 keeps a type beside each object. A file has only its name and its bytes, and those mostly tell the type: each
//! kind of object but blobs has an ending of its own, and most blobs are images and videos whose first bytes say
//! so ([`implied`]). Only where the declared type is another does a folder archive write it down (see `folder`).
//! The table in [`implied`] is thus part of format 1: a type that is not written down is read through it, so no
//! line of it may ever change or be added.

use std::fmt;
use std::str::FromStr;

use crate::types::SyntaxError;

/// Longest content type, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// As many first bytes of an object as [`implied`] looks at.
pub const HEAD_BYTES: usize = 16;

/// A MIME type that is safe as an HTTP header and as a line of text: `type/subtype`, perhaps with parameters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ContentType(Box<str>);

impl ContentType {
    /// `application/octet-stream`.
    #[must_use]
    pub fn binary() -> Self {
        Self("application/octet-stream".into())
    }

    /// `application/json`.
    #[must_use]
    pub fn json() -> Self {
        Self("application/json".into())
    }

    /// `application/zstd`, for snapshots, deltas and segments.
    #[must_use]
    pub fn zstd() -> Self {
        Self("application/zstd".into())
    }

    /// The type that a record or a host declares, or [`Self::binary`] where that is none: a strange type must
    /// not keep a blob out of the archive.
    #[must_use]
    pub fn or_binary(declared: Option<&str>) -> Self {
        declared
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(Self::binary)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContentType {
    type Err = SyntaxError;

    /// Parses a type of at most [`CONTENT_TYPE_BYTES_MAX`] bytes.
    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        const fn bad(rule: &'static str) -> SyntaxError {
            SyntaxError::new("content type", rule)
        }
        if text.len() > CONTENT_TYPE_BYTES_MAX {
            return Err(bad("must be at most 255 bytes"));
        }
        if !text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) || text.trim() != text {
            return Err(bad("must be visible ASCII without spaces around it"));
        }
        let essence = text.split(';').next().unwrap_or(text).trim_end();
        let (kind, subtype) = essence.split_once('/').ok_or(bad("must be type/subtype"))?;
        let is_token = |part: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            !part.is_empty() && part.bytes().all(allowed)
        };
        if !is_token(kind) || !is_token(subtype) {
            return Err(bad("must be type/subtype"));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The type that an object's name and first bytes tell. `head` is its first [`HEAD_BYTES`], or all of it.
#[must_use]
pub fn implied(name: &str, head: &[u8]) -> ContentType {
    let ends = |ending: &str| name.len() > ending.len() && name.ends_with(ending);
    if ends(".json") {
        return ContentType::json();
    }
    if ends(".zst") {
        return ContentType::zstd();
    }
    let riff = |form: &[u8]| head.starts_with(b"RIFF") && head.get(8..12) == Some(form);
    let kind = if head.starts_with(&[0xff, 0xd8, 0xff]) {
        "image/jpeg"
    } else if head.starts_with(b"\x89PNG\r\n\x1a\n") {
        "image/png"
    } else if head.starts_with(b"GIF8") {
        "image/gif"
    } else if riff(b"WEBP") {
        "image/webp"
    } else if head.get(4..8) == Some(b"ftyp") {
        "video/mp4"
    } else {
        return ContentType::binary();
    };
    ContentType(kind.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_told_from_names_and_first_bytes() {
        for (name, head, want) in [
            ("v1/archive.json", &b"\x89PNG\r\n\x1a\n"[..], "application/json"),
            ("v1/repos/x/y.car.zst", b"", "application/zstd"),
            ("v1/blocks/x/y", b"\xff\xd8\xff\xe0", "image/jpeg"),
            ("v1/blocks/x/y", b"\x89PNG\r\n\x1a\n....", "image/png"),
            ("v1/blocks/x/y", b"GIF89a", "image/gif"),
            ("v1/blocks/x/y", b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
            ("v1/blocks/x/y", b"\0\0\0\x20ftypisom", "video/mp4"),
            (
                "v1/blocks/x/y",
                b"RIFF\x10\0\0\0WAVEfmt ",
                "application/octet-stream",
            ),
            ("v1/blocks/x/y", b"", "application/octet-stream"),
            (
                "v1/state/h/t/x.age",
                b"age-encryption",
                "application/octet-stream",
            ),
        ] {
            assert_eq!(implied(name, head).as_str(), want, "{name} {head:?}");
        }
    }

    #[test]
    fn declared_types_are_checked() {
        for text in [
            "image/png",
            "text/plain; charset=utf-8",
            "*/*",
            "application/ld+json",
        ] {
            assert_eq!(ContentType::or_binary(Some(text)).as_str(), text);
        }
        let long = format!("a/{}", "b".repeat(254));
        for text in [
            "",
            "image",
            "/png",
            "image/",
            "image/png\r\nX: y",
            " image/png",
            "a b/c",
            "im\u{e4}ge/png",
            &long,
        ] {
            assert!(text.parse::<ContentType>().is_err(), "{text:?}");
            assert_eq!(ContentType::or_binary(Some(text)), ContentType::binary());
        }
        assert_eq!(ContentType::or_binary(None), ContentType::binary());
    }
}
