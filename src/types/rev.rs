//! Repository revisions: TIDs.
//!
//! Source: <https://atproto.com/specs/tid>. 64 bits: a zero, 53 bits of microseconds since 1970, 10 bits of
//! clock identifier; as text 13 characters of a sortable base32. Some hosts make revs that are no times
//! (a sequence number, say), so a rev's time is a hint and only its order is a fact.

use std::fmt;
use std::str::FromStr;

use super::{SyntaxError, Timestamp};

/// A revision of a repository. Ordered as the text is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rev(u64);

const ALPHABET: &[u8; 32] = b"234567abcdefghijklmnopqrstuvwxyz";
/// Length of the text form.
pub const REV_CHARS: usize = 13;

impl Rev {
    /// The rev of a time and a clock identifier (its low 10 bits).
    #[must_use]
    pub const fn from_time(time: Timestamp, clock_id: u16) -> Self {
        Self(((time.micros() << 10) | (clock_id as u64 & 0x3ff)) & (u64::MAX >> 1))
    }

    /// The 64 bits, for store keys and values (big-endian order is rev order).
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// From the 64 bits.
    ///
    /// # Errors
    /// When the top bit is set, which no text form has.
    pub const fn from_bits(bits: u64) -> Result<Self, SyntaxError> {
        if bits >> 63 == 0 {
            Ok(Self(bits))
        } else {
            Err(SyntaxError::new("rev", "top bit must be zero"))
        }
    }

    /// The time that it claims, if it is one.
    #[must_use]
    pub const fn time(self) -> Timestamp {
        Timestamp::from_micros(self.0 >> 10)
    }
}

impl FromStr for Rev {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        const fn bad(rule: &'static str) -> SyntaxError {
            SyntaxError::new("rev", rule)
        }
        if text.len() != REV_CHARS {
            return Err(bad("must be 13 characters"));
        }
        let mut bits: u64 = 0;
        for (index, byte) in text.bytes().enumerate() {
            let digit = match byte {
                b'2'..=b'7' => byte - b'2',
                b'a'..=b'z' => byte - b'a' + 6,
                _ => return Err(bad("may hold only 2-7 and a-z")),
            };
            if index == 0 && digit >= 8 {
                return Err(bad("must begin with 2-7, a or b"));
            }
            bits = (bits << 5) | u64::from(digit);
        }
        // 13 digits are 65 bits; the first digit is at most 7 of 31, so the sum fits in 63 bits.
        Self::from_bits(bits)
    }
}

impl fmt::Display for Rev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; REV_CHARS];
        for (index, slot) in text.iter_mut().enumerate() {
            let shift = 5 * (REV_CHARS - 1 - index);
            *slot = ALPHABET[((self.0 >> shift) & 31) as usize];
        }
        f.write_str(std::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

impl fmt::Debug for Rev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_sorts() {
        let texts = [
            "2222222222222",
            "2222222222a22",
            "3jqfcqzm3fo2j",
            "3k2yihcrp6f2c",
            "bzzzzzzzzzzzz",
        ];
        let revs: Vec<Rev> = texts.iter().map(|t| t.parse().expect("valid")).collect();
        for (rev, text) in revs.iter().zip(texts) {
            assert_eq!(rev.to_string(), text);
        }
        assert!(revs.is_sorted());
    }

    #[test]
    fn malformed_revs_are_refused() {
        for text in [
            "",
            "3jqfcqzm3fo2",
            "3jqfcqzm3fo2jj",
            "3JQFCQZM3FO2J",
            "0000000000000",
            "zzzzzzzzzzzzz",
            "czzzzzzzzzzzz",
            "3jqf-qzm3fo2j",
        ] {
            assert!(text.parse::<Rev>().is_err(), "{text:?}");
        }
        assert!(Rev::from_bits(1 << 63).is_err());
    }

    #[test]
    fn time_is_kept() {
        let time = Timestamp::from_micros(1_700_000_000_123_456);
        assert_eq!(Rev::from_time(time, 7).time(), time);
    }
}
