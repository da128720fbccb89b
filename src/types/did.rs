//! Decentralized identifiers.
//!
//! Source: <https://atproto.com/specs/did>. Any syntactically valid DID is representable, for a host
//! may name one; only `did:plc` and `did:web` can be resolved ([`Did::method`]).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::SyntaxError;

/// Longest DID that AT Protocol allows, in bytes.
pub const DID_BYTES_MAX: usize = 2048;

/// A DID. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Did(Arc<str>);

/// How a DID is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DidMethod {
    /// Through a PLC directory.
    Plc,
    /// Through `/.well-known/did.json` on a web host.
    Web,
    /// No method that AT Protocol blesses: cannot be resolved.
    Other,
}

impl Did {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Which method resolves it. A `did:plc` or `did:web` of the wrong shape is [`DidMethod::Other`].
    #[must_use]
    pub fn method(&self) -> DidMethod {
        if let Some(id) = self.0.strip_prefix("did:plc:") {
            let base32 = |b: u8| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b);
            if id.len() == 24 && id.bytes().all(base32) {
                return DidMethod::Plc;
            }
        } else if let Some(id) = self.0.strip_prefix("did:web:")
            && !id.contains(':')
        {
            return DidMethod::Web;
        }
        DidMethod::Other
    }
}

impl FromStr for Did {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        const fn bad(rule: &'static str) -> SyntaxError {
            SyntaxError::new("DID", rule)
        }
        if text.len() > DID_BYTES_MAX {
            return Err(bad("must be at most 2048 bytes"));
        }
        let rest = text.strip_prefix("did:").ok_or(bad("must begin with did:"))?;
        let (method, id) = rest.split_once(':').ok_or(bad("must be did:method:id"))?;
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_lowercase()) {
            return Err(bad("method must be lower-case letters"));
        }
        if id.is_empty() || id.ends_with(':') || id.ends_with('%') {
            return Err(bad("id must not be empty, nor end in ':' or '%'"));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:%-".contains(&b);
        if !id.bytes().all(allowed) {
            return Err(bad("id may hold only letters, digits and . _ : % -"));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_told_apart() {
        let method = |text: &str| text.parse::<Did>().map(|did| did.method());
        assert_eq!(method("did:plc:ewvi7nxzyoun6zhxrhs64oiz"), Ok(DidMethod::Plc));
        assert_eq!(method("did:plc:short"), Ok(DidMethod::Other));
        assert_eq!(method("did:web:example.com"), Ok(DidMethod::Web));
        assert_eq!(method("did:web:localhost%3A2583"), Ok(DidMethod::Web));
        assert_eq!(method("did:web:example.com:user"), Ok(DidMethod::Other));
        assert_eq!(method("did:key:zQ3sh"), Ok(DidMethod::Other));
    }

    #[test]
    fn paths_and_control_characters_are_refused() {
        for text in [
            "",
            "did:",
            "did:plc",
            "did:plc:",
            "did:plc:a/b",
            "did:plc:a\n",
            "DID:plc:a",
            "did:m:v%",
            "did:m:.. /",
        ] {
            assert!(text.parse::<Did>().is_err(), "{text:?}");
        }
        assert!(format!("did:m:{}", "a".repeat(2048)).parse::<Did>().is_err());
    }
}
