//! One range of a blob's bytes (RFC 9110 §14): what is asked for, and what of it there is.
//!
//! Several ranges at once, other units and malformed ones are passed over, as the RFC allows: the answer is the whole.

use hyper::header::{self, HeaderMap, HeaderValue};

/// A range as it was asked for, before the size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// `bytes=from-to`, both included; to the end without `to`.
    From(u64, Option<u64>),
    /// `bytes=-n`: the last ones.
    Last(u64),
}

/// The bytes to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) from: u64,
    pub(super) length: u64,
}

impl Asked {
    /// The range that a request asks for, if its `If-Range` still holds.
    pub(super) fn of(request: &HeaderMap, etag: &HeaderValue) -> Option<Self> {
        let mut values = request.get_all(header::RANGE).iter();
        let (value, None) = (values.next()?, values.next()) else {
            return None;
        };
        if request.get(header::IF_RANGE).is_some_and(|tag| tag != etag) {
            return None;
        }
        let (unit, range) = value.to_str().ok()?.split_once('=')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (from, to) = range.trim().split_once('-')?;
        // `parse` would take a sign.
        let number = |text: &str| -> Option<u64> {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().unwrap_or(u64::MAX))
        };
        match (number(from), number(to)) {
            (None, Some(last)) if from.is_empty() => Some(Self::Last(last)),
            (Some(from), None) if to.is_empty() => Some(Self::From(from, None)),
            (Some(from), Some(to)) if from <= to => Some(Self::From(from, Some(to))),
            _ => None,
        }
    }

    /// What of it there is in so many bytes; none if nothing is.
    pub(super) fn within(self, size: u64) -> Option<Window> {
        let (from, end) = match self {
            Self::From(from, to) => (from, to.map_or(size, |to| to.saturating_add(1).min(size))),
            Self::Last(last) => (size.saturating_sub(last), size),
        };
        (from < end).then(|| Window {
            from,
            length: end - from,
        })
    }
}

impl Window {
    /// All of it.
    pub(super) const fn whole(size: u64) -> Self {
        Self {
            from: 0,
            length: size,
        }
    }

    /// The part of a chunk that lies in the window, by the chunk's place.
    pub(super) fn of_chunk(self, at: u64, bytes: u64) -> std::ops::Range<usize> {
        let from = self.from.clamp(at, at + bytes) - at;
        let to = (self.from + self.length).clamp(at, at + bytes) - at;
        // Both are at most the length of a chunk in memory.
        from as usize..to as usize
    }

    /// The header that says which part of the whole it is.
    pub(super) fn content_range(self, size: u64) -> HeaderValue {
        let last = self.from + self.length - 1;
        let text = format!("bytes {}-{last}/{size}", self.from);
        HeaderValue::try_from(text).expect("digits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: HeaderValue = HeaderValue::from_static("\"tag\"");

    fn asked(ranges: &[&'static str], if_range: Option<&'static str>) -> Option<Asked> {
        let mut map = HeaderMap::new();
        for range in ranges {
            map.append(header::RANGE, HeaderValue::from_static(range));
        }
        if let Some(tag) = if_range {
            map.insert(header::IF_RANGE, HeaderValue::from_static(tag));
        }
        Asked::of(&map, &TAG)
    }

    #[test]
    fn one_plain_range_is_taken_and_everything_else_means_the_whole() {
        for (range, want) in [
            ("bytes=0-0", Some(Asked::From(0, Some(0)))),
            ("bytes=5-", Some(Asked::From(5, None))),
            ("Bytes=-7", Some(Asked::Last(7))),
            (
                "bytes=0-99999999999999999999",
                Some(Asked::From(0, Some(u64::MAX))),
            ),
            ("bytes=5-4", None),
            ("bytes=0-1,3-4", None),
            ("bytes=0-1, 0-1", None),
            ("bytes=+1-2", None),
            ("bytes=--2", None),
            ("bytes=-", None),
            ("bytes=a-b", None),
            ("bytes", None),
            ("lines=1-2", None),
            ("", None),
        ] {
            assert_eq!(asked(&[range], None), want, "{range}");
        }
        assert_eq!(asked(&["bytes=0-1", "bytes=2-3"], None), None);
        assert_eq!(
            asked(&["bytes=0-1"], Some("\"tag\"")),
            Some(Asked::From(0, Some(1)))
        );
        for other in ["\"other\"", "W/\"tag\"", "Sat, 29 Oct 1994 19:43:31 GMT"] {
            assert_eq!(asked(&["bytes=0-1"], Some(other)), None, "{other}");
        }
    }

    #[test]
    fn a_range_is_cut_to_what_there_is() {
        let window = |from, length| Some(Window { from, length });
        for (asked, size, want) in [
            (Asked::From(0, Some(0)), 10, window(0, 1)),
            (Asked::From(3, Some(20)), 10, window(3, 7)),
            (Asked::From(3, Some(u64::MAX)), 10, window(3, 7)),
            (Asked::From(9, None), 10, window(9, 1)),
            (Asked::From(10, None), 10, None),
            (Asked::From(0, None), 0, None),
            (Asked::Last(3), 10, window(7, 3)),
            (Asked::Last(30), 10, window(0, 10)),
            (Asked::Last(0), 10, None),
            (Asked::Last(3), 0, None),
        ] {
            assert_eq!(asked.within(size), want, "{asked:?} of {size}");
        }
        assert_eq!(Window { from: 3, length: 4 }.content_range(10), "bytes 3-6/10");
    }

    #[test]
    fn chunks_are_cut_to_the_window() {
        let bytes: Vec<u8> = (0..40).collect();
        for from in 0..40usize {
            for length in 1..=40 - from {
                let window = Window {
                    from: from as u64,
                    length: length as u64,
                };
                let (mut got, mut at) = (Vec::new(), 0);
                for chunk in bytes.chunks(7) {
                    got.extend_from_slice(&chunk[window.of_chunk(at, chunk.len() as u64)]);
                    at += chunk.len() as u64;
                }
                assert_eq!(got, bytes[from..from + length]);
            }
        }
    }
}
