//! Reads any well-formed CBOR (RFC 8949), for records that are kept as they are though they break the
//! rules of DAG-CBOR: floats, unsorted keys, indefinite lengths, foreign tags.

/// One step through CBOR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'a> {
    /// An integer that is not negative.
    Unsigned(u64),
    /// A byte string; `None` when it came in chunks.
    Bytes(Option<&'a [u8]>),
    /// A text string; `None` when it came in chunks or is not UTF-8.
    Text(Option<&'a str>),
    /// An array begins: its number of items, or `None` when a [`Token::Break`] will end it.
    Array(Option<u64>),
    /// A map begins: its number of entries, or `None` when a [`Token::Break`] will end it.
    Map(Option<u64>),
    /// The next item is tagged with this number.
    Tag(u64),
    /// Any other scalar: negative integer, float, simple value.
    Other,
    /// The end of an array or map of indefinite length.
    Break,
}

/// A reader that yields tokens. It keeps no stack: nesting is the caller's to follow and to bound.
#[derive(Debug, Clone)]
pub struct Tokens<'a> {
    rest: &'a [u8],
}

/// The bytes are not well-formed CBOR from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl<'a> Tokens<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub const fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    /// Whether every byte was read.
    #[must_use]
    pub const fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Reads the next token.
    ///
    /// # Errors
    /// When the bytes end or are not well-formed here.
    pub fn read(&mut self) -> Result<Token<'a>, Malformed> {
        let (major, value) = self.head()?;
        Ok(match (major, value) {
            (0, Some(value)) => Token::Unsigned(value),
            (1, Some(_)) => Token::Other,
            (2, Some(length)) => Token::Bytes(Some(self.take(length)?)),
            (3, Some(length)) => Token::Text(std::str::from_utf8(self.take(length)?).ok()),
            (2, None) => {
                self.chunks(2)?;
                Token::Bytes(None)
            }
            (3, None) => {
                self.chunks(3)?;
                Token::Text(None)
            }
            (4, count) => Token::Array(count),
            (5, count) => Token::Map(count),
            (6, Some(tag)) => Token::Tag(tag),
            (7, Some(_)) => Token::Other,
            (7, None) => Token::Break,
            _ => return Err(Malformed),
        })
    }

    /// Reads the chunks of a string of indefinite length, up to its break. Chunks do not nest.
    fn chunks(&mut self, wanted: u8) -> Result<(), Malformed> {
        loop {
            match self.head()? {
                (major, Some(length)) if major == wanted => {
                    self.take(length)?;
                }
                (7, None) => return Ok(()),
                _ => return Err(Malformed),
            }
        }
    }

    /// Reads a head: major type and value, `None` for indefinite length (or a break).
    fn head(&mut self) -> Result<(u8, Option<u64>), Malformed> {
        let first = self.take(1)?[0];
        let value = match first & 31 {
            info @ 0..=23 => u64::from(info),
            info @ 24..=27 => {
                let bytes = self.take(1 << (info - 24))?;
                bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
            }
            31 => return Ok((first >> 5, None)),
            _ => return Err(Malformed),
        };
        Ok((first >> 5, Some(value)))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }
}
