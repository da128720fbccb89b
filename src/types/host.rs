//! The name of a PDS: host and, where it is not the scheme's own, port.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::SyntaxError;

/// A host as it stands in keys, logs and metric labels: `pds.example.com` or `localhost:2583`.
/// Lower case; no scheme, path, user or trailing dot. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Arc<str>);

impl HostName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        const fn bad(rule: &'static str) -> SyntaxError {
            SyntaxError::new("host name", rule)
        }
        if text.is_empty() || text.len() > 260 {
            return Err(bad("must be 1 to 260 characters"));
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        };
        if let Some(port) = port
            && (port.parse::<u16>().is_err() || port.starts_with('+') || port.starts_with('0'))
        {
            return Err(bad("port must be a number from 1 to 65535"));
        }
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if !name.split('.').all(label_ok) {
            return Err(bad("labels must be letters, digits and inner hyphens"));
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ports() {
        for (text, want) in [
            ("PDS.Example.com", "pds.example.com"),
            ("localhost:2583", "localhost:2583"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert_eq!(
                text.parse::<HostName>().map(|h| h.to_string()),
                Ok(want.to_owned())
            );
        }
        for text in [
            "",
            "a b",
            "a/b",
            "a..b",
            "-a.com",
            "host:0",
            "host:65536",
            "host:",
            "user@host",
            "..",
            "a_b.com",
        ] {
            assert!(text.parse::<HostName>().is_err(), "{text:?}");
        }
    }
}
