//! Strict DAG-CBOR (DRISL), in the profile of AT Protocol.
//!
//! One value has one encoding. So the reader refuses whatever the writer would not have written: lengths
//! and integers in longer form than needed, indefinite lengths, floats, integers beyond 64 bits signed,
//! simple values other than `false`, `true` and `null`, tags other than 42, CIDs beyond the DASL profile,
//! text that is not UTF-8, map keys that are not text, unsorted or twice there, nesting beyond
//! [`CBOR_DEPTH_MAX`].
//!
//! [`Decoder`] borrows from its input and allocates nothing. It checks as it goes, so what was decoded
//! with it needs no second check. [`encode`] writes; [`lenient`] reads what is not strict.
//!
//! Sources: <https://atproto.com/specs/data-model>, <https://dasl.ing/drisl.html>,
//! <https://ipld.io/specs/codecs/dag-cbor/spec/>.

pub mod encode;
pub mod lenient;
#[cfg(test)]
mod tests;

use crate::types::Cid;

/// Deepest nesting of arrays and maps that the strict reader follows.
///
/// AT Protocol's guide for validating data suggests 32; twice that leaves room for odd but honest records.
pub const CBOR_DEPTH_MAX: usize = 64;

/// Why bytes are not strict DAG-CBOR of the expected shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CborError {
    /// The input ends before the item does.
    #[error("CBOR ends in the middle of an item")]
    Truncated,
    /// The input goes on after the item.
    #[error("bytes follow the CBOR item")]
    TrailingBytes,
    /// A length or an integer takes more bytes than it needs.
    #[error("a CBOR length or integer is not in its shortest form")]
    NotShortest,
    /// An array, map or string of indefinite length, or a stray break.
    #[error("CBOR of indefinite length is not allowed")]
    Indefinite,
    /// A head that RFC 8949 reserves.
    #[error("a CBOR head has a reserved form")]
    Reserved,
    /// An integer outside 64 bits signed.
    #[error("a CBOR integer is outside 64 bits signed")]
    IntegerRange,
    /// A floating-point number, which AT Protocol forbids.
    #[error("CBOR floats are not allowed")]
    Float,
    /// A simple value other than `false`, `true` and `null`.
    #[error("a CBOR simple value other than false, true and null is not allowed")]
    Simple,
    /// A tag other than 42.
    #[error("CBOR tag {0} is not allowed, only 42 is")]
    Tag(u64),
    /// Tag 42 around something that is no CID of the allowed form.
    #[error("tag 42 does not hold a CID of the allowed form")]
    BadCid,
    /// Text that is not UTF-8.
    #[error("CBOR text is not UTF-8")]
    Utf8,
    /// A map key that is not text.
    #[error("a CBOR map key is not text")]
    KeyNotText,
    /// Map keys out of order.
    #[error("CBOR map keys are not in order")]
    KeyOrder,
    /// A map key that is there twice.
    #[error("a CBOR map key is there twice")]
    DuplicateKey,
    /// Arrays and maps nested deeper than [`CBOR_DEPTH_MAX`].
    #[error("CBOR is nested deeper than {CBOR_DEPTH_MAX} levels")]
    TooDeep,
    /// Another kind of item than the reader asked for.
    #[error("expected CBOR {wanted}, found {found}")]
    Unexpected {
        /// What the reader asked for.
        wanted: Kind,
        /// What is there.
        found: Kind,
    },
}

/// What kind of item comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An integer.
    Integer,
    /// A byte string.
    Bytes,
    /// A text string.
    Text,
    /// An array.
    Array,
    /// A map.
    Map,
    /// A tag: in strict DAG-CBOR always a CID.
    Link,
    /// `false` or `true`.
    Bool,
    /// `null`.
    Null,
    /// A float or a simple value that is not allowed.
    Other,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Integer => "integer",
            Self::Bytes => "bytes",
            Self::Text => "text",
            Self::Array => "array",
            Self::Map => "map",
            Self::Link => "link",
            Self::Bool => "boolean",
            Self::Null => "null",
            Self::Other => "float or simple value",
        })
    }
}

/// Checks that the bytes are one complete strict item and nothing else.
///
/// # Errors
/// The first rule that they break.
pub fn check_canonical(bytes: &[u8]) -> Result<(), CborError> {
    let mut decoder = Decoder::new(bytes);
    decoder.skip()?;
    decoder.end()
}

/// The length in bytes of the first item, which must be strict; more may follow.
///
/// # Errors
/// The first rule that the item breaks.
pub fn item_len(bytes: &[u8]) -> Result<usize, CborError> {
    Ok(Decoder::new(bytes).skip()?.len())
}

/// A strict reader over a slice. Every value it returns borrows from that slice.
///
/// After an error the position is undefined: give up on the input.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub const fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0 }
    }

    /// How many bytes were read.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.at
    }

    /// The bytes that were not read yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        &self.input[self.at..]
    }

    /// Confirms that nothing is left.
    ///
    /// # Errors
    /// [`CborError::TrailingBytes`].
    pub const fn end(&self) -> Result<(), CborError> {
        if self.at == self.input.len() {
            Ok(())
        } else {
            Err(CborError::TrailingBytes)
        }
    }

    /// The kind of the next item, without reading it.
    ///
    /// # Errors
    /// [`CborError::Truncated`] at the end of the input.
    pub fn peek(&self) -> Result<Kind, CborError> {
        let first = *self.input.get(self.at).ok_or(CborError::Truncated)?;
        Ok(match (first >> 5, first & 31) {
            (0 | 1, _) => Kind::Integer,
            (2, _) => Kind::Bytes,
            (3, _) => Kind::Text,
            (4, _) => Kind::Array,
            (5, _) => Kind::Map,
            (6, _) => Kind::Link,
            (_, 20 | 21) => Kind::Bool,
            (_, 22) => Kind::Null,
            _ => Kind::Other,
        })
    }

    /// Reads an integer.
    ///
    /// # Errors
    /// When the next item is none, or is not strict.
    pub fn integer(&mut self) -> Result<i64, CborError> {
        self.want(Kind::Integer)?;
        let (major, value) = self.head()?;
        let value = i64::try_from(value).map_err(|_| CborError::IntegerRange)?;
        Ok(if major == 0 { value } else { -1 - value })
    }

    /// Reads a byte string.
    ///
    /// # Errors
    /// As [`Decoder::integer`].
    pub fn bytes(&mut self) -> Result<&'a [u8], CborError> {
        self.want(Kind::Bytes)?;
        let (_, length) = self.head()?;
        self.take(length)
    }

    /// Reads a text string.
    ///
    /// # Errors
    /// As [`Decoder::integer`].
    pub fn text(&mut self) -> Result<&'a str, CborError> {
        self.want(Kind::Text)?;
        let (_, length) = self.head()?;
        std::str::from_utf8(self.take(length)?).map_err(|_| CborError::Utf8)
    }

    /// Reads `false` or `true`.
    ///
    /// # Errors
    /// As [`Decoder::integer`].
    pub fn boolean(&mut self) -> Result<bool, CborError> {
        self.want(Kind::Bool)?;
        let value = self.input[self.at] == encode::TRUE;
        self.at += 1;
        Ok(value)
    }

    /// Reads `null` if it comes next; says whether it did.
    pub fn null(&mut self) -> bool {
        let is_null = self.input.get(self.at) == Some(&encode::NULL);
        self.at += usize::from(is_null);
        is_null
    }

    /// Reads a CID link that a repository may hold (SHA-256; dag-cbor or raw).
    ///
    /// # Errors
    /// As [`Decoder::integer`]; [`CborError::BadCid`] for any other CID.
    pub fn link(&mut self) -> Result<Cid, CborError> {
        self.want(Kind::Link)?;
        Cid::from_bytes(self.any_link()?).map_err(|_| CborError::BadCid)
    }

    /// Reads the head of an array: how many items follow. Never more than there are bytes left.
    ///
    /// # Errors
    /// As [`Decoder::integer`].
    pub fn array(&mut self) -> Result<usize, CborError> {
        self.want(Kind::Array)?;
        let (_, count) = self.head()?;
        self.bounded(count, 1)
    }

    /// Reads the head of a map; its keys are then read with [`MapKeys::next`], each followed by reading
    /// its value.
    ///
    /// # Errors
    /// As [`Decoder::integer`].
    pub fn map(&mut self) -> Result<MapKeys<'a>, CborError> {
        self.want(Kind::Map)?;
        let (_, count) = self.head()?;
        let left = self.bounded(count, 2)?;
        Ok(MapKeys { left, previous: None })
    }

    /// Reads one whole item of any kind, checks it, and returns its bytes.
    ///
    /// # Errors
    /// The first rule that the item breaks. Depth counts from the item.
    pub fn skip(&mut self) -> Result<&'a [u8], CborError> {
        let start = self.at;
        self.skip_item(CBOR_DEPTH_MAX)?;
        Ok(&self.input[start..self.at])
    }

    /// Recursion is bounded by `depth_left`.
    fn skip_item(&mut self, depth_left: usize) -> Result<(), CborError> {
        let first = *self.input.get(self.at).ok_or(CborError::Truncated)?;
        match first >> 5 {
            0 | 1 => {
                let (_, value) = self.head()?;
                if value > i64::MAX as u64 {
                    return Err(CborError::IntegerRange);
                }
            }
            2 => {
                let (_, length) = self.head()?;
                self.take(length)?;
            }
            3 => {
                let (_, length) = self.head()?;
                std::str::from_utf8(self.take(length)?).map_err(|_| CborError::Utf8)?;
            }
            4 => {
                let depth_left = depth_left.checked_sub(1).ok_or(CborError::TooDeep)?;
                for _ in 0..self.array()? {
                    self.skip_item(depth_left)?;
                }
            }
            5 => {
                let depth_left = depth_left.checked_sub(1).ok_or(CborError::TooDeep)?;
                let mut keys = self.map()?;
                while keys.next(self)?.is_some() {
                    self.skip_item(depth_left)?;
                }
            }
            6 => {
                self.any_link()?;
            }
            _ => self.simple()?,
        }
        Ok(())
    }

    /// Reads a tag 42 and returns the CID in binary form: 36 bytes, version 1, dag-cbor or raw, SHA-256 or
    /// BLAKE3 of 32 bytes (what DASL allows as data).
    fn any_link(&mut self) -> Result<&'a [u8], CborError> {
        let (_, tag) = self.head()?;
        if tag != 42 {
            return Err(CborError::Tag(tag));
        }
        if self.peek()? != Kind::Bytes {
            return Err(CborError::BadCid);
        }
        match self.bytes()? {
            [0x00, cid @ ..] if matches!(cid, [0x01, 0x71 | 0x55, 0x12 | 0x1e, 0x20, digest @ ..] if digest.len() == 32) => {
                Ok(cid)
            }
            _ => Err(CborError::BadCid),
        }
    }

    /// Reads an item of major type 7.
    fn simple(&mut self) -> Result<(), CborError> {
        match self.input[self.at] & 31 {
            20..=22 => {
                self.at += 1;
                Ok(())
            }
            25..=27 => Err(CborError::Float),
            28..=30 => Err(CborError::Reserved),
            31 => Err(CborError::Indefinite),
            _ => Err(CborError::Simple),
        }
    }

    fn want(&self, wanted: Kind) -> Result<(), CborError> {
        let found = self.peek()?;
        if found == wanted {
            Ok(())
        } else {
            Err(CborError::Unexpected { wanted, found })
        }
    }

    /// Reads a head of any major type but 7: major type and value, in shortest form.
    fn head(&mut self) -> Result<(u8, u64), CborError> {
        let first = *self.input.get(self.at).ok_or(CborError::Truncated)?;
        self.at += 1;
        let (value, least) = match first & 31 {
            info @ 0..=23 => (u64::from(info), 0),
            24 => (u64::from(u8::from_be_bytes(self.array_of()?)), 24),
            25 => (u64::from(u16::from_be_bytes(self.array_of()?)), 1 << 8),
            26 => (u64::from(u32::from_be_bytes(self.array_of()?)), 1 << 16),
            27 => (u64::from_be_bytes(self.array_of()?), 1 << 32),
            31 => return Err(CborError::Indefinite),
            _ => return Err(CborError::Reserved),
        };
        if value < least {
            return Err(CborError::NotShortest);
        }
        Ok((first >> 5, value))
    }

    fn array_of<const N: usize>(&mut self) -> Result<[u8; N], CborError> {
        let bytes = self.rest().first_chunk().ok_or(CborError::Truncated)?;
        self.at += N;
        Ok(*bytes)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], CborError> {
        let rest = self.rest();
        let length = usize::try_from(length).map_err(|_| CborError::Truncated)?;
        let taken = rest.get(..length).ok_or(CborError::Truncated)?;
        self.at += length;
        Ok(taken)
    }

    /// A declared count, refused when the bytes left cannot hold that many items.
    fn bounded(&self, count: u64, bytes_each: u64) -> Result<usize, CborError> {
        let left = (self.input.len() - self.at) as u64;
        if count > left / bytes_each {
            return Err(CborError::Truncated);
        }
        Ok(usize::try_from(count).expect("at most the length of a slice"))
    }
}

/// The keys of one map, in the order that DAG-CBOR prescribes: shorter first, then by bytes.
#[derive(Debug, Clone)]
pub struct MapKeys<'a> {
    left: usize,
    previous: Option<&'a str>,
}

impl<'a> MapKeys<'a> {
    /// How many keys are left.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.left
    }

    /// Reads the next key; `None` after the last. The caller then reads the value from the same decoder.
    ///
    /// # Errors
    /// When the key is not text, not strict, or not above the previous key.
    pub fn next(&mut self, decoder: &mut Decoder<'a>) -> Result<Option<&'a str>, CborError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        if decoder.peek()? != Kind::Text {
            return Err(CborError::KeyNotText);
        }
        let key = decoder.text()?;
        if let Some(previous) = self.previous {
            match (previous.len(), previous.as_bytes()).cmp(&(key.len(), key.as_bytes())) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Err(CborError::DuplicateKey),
                std::cmp::Ordering::Greater => return Err(CborError::KeyOrder),
            }
        }
        self.previous = Some(key);
        Ok(Some(key))
    }
}
