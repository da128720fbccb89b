//! What a host asks of us when it refuses: `Retry-After`, `RateLimit-Reset`, and the XRPC error body.
//!
//! Sources: RFC 9110 §10.2.3, <https://atproto.com/specs/xrpc>, the reference PDS (whose `RateLimit-Reset` is
//! a moment in Unix seconds, where drafts of the standard count seconds from now).

use std::time::Duration;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::types::Timestamp;

use super::text::printable;

/// Characters of an error's name and words that are kept.
const ERROR_CHARS_MAX: usize = 300;
/// Above this, `RateLimit-Reset` is a moment (in 2001 or later), below it a number of seconds.
const RESET_MOMENT_MIN: u64 = 1_000_000_000;

/// Reads `Retry-After`: seconds, or an HTTP date.
#[must_use]
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = OffsetDateTime::parse(value, &Rfc2822).ok()?;
    let seconds = u64::try_from(date.unix_timestamp()).ok()?;
    Some(Timestamp::from_micros(seconds.checked_mul(1_000_000)?).since(now))
}

/// Reads `RateLimit-Reset` as the wait until then.
#[must_use]
pub fn rate_limit_reset(value: &str, now: Timestamp) -> Option<Duration> {
    let seconds: u64 = value.trim().parse().ok()?;
    if seconds < RESET_MOMENT_MIN {
        return Some(Duration::from_secs(seconds));
    }
    Some(Timestamp::from_micros(seconds.checked_mul(1_000_000)?).since(now))
}

/// The body of an XRPC error; empty where the host sent none. Printable and short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XrpcError {
    /// A word that programs understand, such as `RepoNotFound`.
    pub error: String,
    /// A sentence for people.
    pub message: String,
}

impl XrpcError {
    /// Reads a body; whatever is not one (an HTML page, say) is an empty error.
    #[must_use]
    pub fn parse(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Body {
            #[serde(default)]
            error: serde_json::Value,
            #[serde(default)]
            message: serde_json::Value,
        }
        let text = |value: &serde_json::Value| printable(value.as_str().unwrap_or(""), ERROR_CHARS_MAX);
        serde_json::from_slice::<Body>(body).map_or_else(
            |_| Self::default(),
            |body| Self {
                error: text(&body.error),
                message: text(&body.message),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1994-11-06T08:49:00Z
    const NOW: Timestamp = Timestamp::from_micros(784_111_740_000_000);

    #[test]
    fn retry_after_in_either_form() {
        let seconds = |value| retry_after(value, NOW).map(|wait| wait.as_secs());
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds(" 0 "), Some(0));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(37));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:48:37 GMT"), Some(0));
        for bad in ["", "-1", "soon", "1.5", "99999999999999999999", "Sun, 06 Nov"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn reset_as_moment_or_as_seconds() {
        let now = Timestamp::from_micros(1_800_000_000_000_000);
        let seconds = |value| rate_limit_reset(value, now).map(|wait| wait.as_secs());
        assert_eq!(seconds("1800000300"), Some(300));
        assert_eq!(seconds("1799999999"), Some(0));
        assert_eq!(seconds("300"), Some(300));
        for bad in ["", "x", "-5", "18446744073709551615"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn error_bodies() {
        let parsed = XrpcError::parse(br#"{"error":"RepoNotFound","message":"no\nsuch repo"}"#);
        assert_eq!(parsed.error, "RepoNotFound");
        assert_eq!(parsed.message, "no?such repo");
        for other in ["", "<html>", "[]", r#"{"error":5}"#, r#"{"x":1}"#] {
            assert_eq!(
                XrpcError::parse(other.as_bytes()),
                XrpcError::default(),
                "{other}"
            );
        }
    }
}
