//! CAR version 1: a header with root CIDs, then blocks, each behind its CID.
//!
//! Whoever sends a CAR is not trusted: every block is hashed against its CID, every length is checked
//! against what was received. Blocks may stand in any order, repeat, and be more than is needed. A file
//! that is cut between two blocks reads as complete; whether all blocks are there is for a walk over the
//! tree to say.
//!
//! Sources: <https://ipld.io/specs/transport/car/carv1/>, <https://dasl.ing/car.html>.

#[cfg(test)]
mod tests;

use std::io::{self, BufRead, BufReader, Read};

use super::cbor::{CborError, Decoder, Kind, encode};
use crate::types::cid::CID_BYTES;
use crate::types::{Cid, SyntaxError};

/// Largest block, in bytes. A record may have 1 MB by the specification; the rest is margin.
pub const CAR_BLOCK_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Largest header, in bytes: room for more than a thousand roots, of which one is meant.
pub const CAR_HEADER_BYTES_MAX: usize = 64 * 1024;

const SECTION_BYTES_MAX: u64 = (CID_BYTES + CAR_BLOCK_BYTES_MAX) as u64;

/// Longest length prefix, in bytes; unsigned varints end there.
const VARINT_BYTES_MAX: usize = 9;

/// Why a CAR cannot be used. `at` is a position in the file, in bytes.
#[derive(Debug, thiserror::Error)]
pub enum CarError {
    /// The source failed.
    #[error("read CAR: {0}")]
    Io(#[from] io::Error),
    /// The file ends inside a length, header or block.
    #[error("the CAR is cut short: it ends inside {part} that begins at byte {at}")]
    Truncated {
        /// What is incomplete.
        part: &'static str,
        /// Where it begins.
        at: u64,
    },
    /// A length prefix that is too long or not in its shortest form.
    #[error("malformed length at byte {at} of the CAR")]
    Varint {
        /// Where the length stands.
        at: u64,
    },
    /// A header longer than [`CAR_HEADER_BYTES_MAX`] or empty.
    #[error("the CAR declares a header of {length} bytes; 1 to {CAR_HEADER_BYTES_MAX} are allowed")]
    HeaderLength {
        /// The declared length.
        length: u64,
    },
    /// The header is not the expected CBOR.
    #[error("malformed CAR header: {0}")]
    Header(CborError),
    /// The header lacks a field.
    #[error("the CAR header has no {0}")]
    HeaderField(&'static str),
    /// A version other than 1.
    #[error("CAR version {0} is not supported, only 1 is")]
    Version(i64),
    /// A block longer than [`CAR_BLOCK_BYTES_MAX`].
    #[error("a block of {length} bytes at byte {at} of the CAR is larger than {CAR_BLOCK_BYTES_MAX}")]
    BlockLength {
        /// The declared length, CID included.
        length: u64,
        /// Where the block's length stands.
        at: u64,
    },
    /// A block behind a CID that no repository may hold, or behind none.
    #[error("the block at byte {at} of the CAR has no usable CID: {reason}")]
    ForeignCid {
        /// Where the CID stands.
        at: u64,
        /// What is wrong with it.
        reason: SyntaxError,
    },
    /// A block's bytes do not hash to its CID.
    #[error("the bytes of block {cid} at byte {at} of the CAR do not match its CID")]
    Hash {
        /// The CID in front of the block.
        cid: Cid,
        /// Where the block's bytes begin.
        at: u64,
    },
}

/// A CAR in memory, all its blocks hashed.
#[derive(Debug, Clone)]
pub struct Car<'a> {
    /// The roots that the header names; the blocks need not be there.
    pub roots: Vec<Cid>,
    /// The blocks in file order, duplicates included.
    pub blocks: Vec<(Cid, &'a [u8])>,
}

/// Reads a whole CAR and hashes every block against its CID.
///
/// # Errors
/// The first thing that is wrong; a CAR with one bad block is refused as a whole.
pub fn parse_car(bytes: &[u8]) -> Result<Car<'_>, CarError> {
    let mut sections = Sections { bytes, at: 0 };
    let header = sections
        .next(check_header_length, "the header")?
        .ok_or(CarError::HeaderLength { length: 0 })?;
    let roots = decode_header(header)?;
    // A guess: blocks of a commit average 450 bytes.
    let mut blocks = Vec::with_capacity(bytes.len() / 448 + 1);
    while let Some(section) = sections.next(check_section_length, "a block")? {
        let at = sections.at - section.len();
        blocks.push(check_section(section, at as u64)?);
    }
    Ok(Car { roots, blocks })
}

/// Splits a slice at its length prefixes.
struct Sections<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Sections<'a> {
    fn next(
        &mut self,
        check_length: fn(u64, u64) -> Result<usize, CarError>,
        part: &'static str,
    ) -> Result<Option<&'a [u8]>, CarError> {
        let rest = &self.bytes[self.at..];
        if rest.is_empty() {
            return Ok(None);
        }
        let at = self.at as u64;
        let mut varint = Varint::default();
        let mut taken = 0;
        let length = loop {
            let byte = *rest
                .get(taken)
                .ok_or(CarError::Truncated { part: "a length", at })?;
            taken += 1;
            if let Some(length) = varint.push(byte).ok_or(CarError::Varint { at })? {
                break length;
            }
        };
        let length = check_length(length, at)?;
        let section = rest
            .get(taken..taken + length)
            .ok_or(CarError::Truncated { part, at })?;
        self.at += taken + length;
        Ok(Some(section))
    }
}

/// An unsigned varint (LEB128, shortest form, at most 63 bits), read byte by byte.
#[derive(Default)]
struct Varint {
    value: u64,
    bytes: usize,
}

impl Varint {
    /// Takes a byte: `None` when malformed, else the value if it is complete.
    fn push(&mut self, byte: u8) -> Option<Option<u64>> {
        if self.bytes == VARINT_BYTES_MAX {
            return None;
        }
        self.value |= u64::from(byte & 0x7f) << (7 * self.bytes);
        self.bytes += 1;
        if byte & 0x80 != 0 {
            return Some(None);
        }
        // A last byte of zero adds nothing: a shorter form exists.
        (byte != 0 || self.bytes == 1).then_some(Some(self.value))
    }
}

fn check_header_length(length: u64, _at: u64) -> Result<usize, CarError> {
    match usize::try_from(length) {
        Ok(length @ 1..=CAR_HEADER_BYTES_MAX) => Ok(length),
        _ => Err(CarError::HeaderLength { length }),
    }
}

fn check_section_length(length: u64, at: u64) -> Result<usize, CarError> {
    if length > SECTION_BYTES_MAX {
        return Err(CarError::BlockLength { length, at });
    }
    Ok(usize::try_from(length).expect("at most a few MiB"))
}

/// Splits a section into CID and block, and hashes the block. `at` is where the section begins.
fn check_section(section: &[u8], at: u64) -> Result<(Cid, &[u8]), CarError> {
    let (cid, block) = section.split_at_checked(CID_BYTES).unwrap_or((section, &[]));
    let cid = Cid::from_bytes(cid).map_err(|reason| CarError::ForeignCid { at, reason })?;
    if !cid.matches(block) {
        return Err(CarError::Hash {
            cid,
            at: at + CID_BYTES as u64,
        });
    }
    Ok((cid, block))
}

/// Decodes `{roots: [CID], version: 1}`. The order of the keys is free and unknown keys are skipped, for
/// nothing is signed or hashed over a header; it only says where to begin.
fn decode_header(bytes: &[u8]) -> Result<Vec<Cid>, CarError> {
    let mut decoder = Decoder::new(bytes);
    let (mut roots, mut version) = (None, None);
    let entries = decoder.map().map_err(CarError::Header)?.left();
    for _ in 0..entries {
        decode_header_field(&mut decoder, &mut roots, &mut version).map_err(CarError::Header)?;
    }
    decoder.end().map_err(CarError::Header)?;
    match version.ok_or(CarError::HeaderField("version"))? {
        1 => roots.ok_or(CarError::HeaderField("roots")),
        other => Err(CarError::Version(other)),
    }
}

fn decode_header_field(
    decoder: &mut Decoder<'_>,
    roots: &mut Option<Vec<Cid>>,
    version: &mut Option<i64>,
) -> Result<(), CborError> {
    if decoder.peek()? != Kind::Text {
        return Err(CborError::KeyNotText);
    }
    match decoder.text()? {
        "roots" if roots.is_none() => {
            let count = decoder.array()?;
            *roots = Some((0..count).map(|_| decoder.link()).collect::<Result<_, _>>()?);
        }
        "version" if version.is_none() => *version = Some(decoder.integer()?),
        "roots" | "version" => return Err(CborError::DuplicateKey),
        _ => {
            decoder.skip()?;
        }
    }
    Ok(())
}

/// Reads a CAR from a stream, block by block, in the memory of one block.
#[derive(Debug)]
pub struct CarReader<R> {
    source: BufReader<R>,
    /// Position in the stream.
    at: u64,
    roots: Vec<Cid>,
}

impl<R: Read> CarReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// When the source fails or the header is malformed.
    pub fn new(source: R) -> Result<Self, CarError> {
        let mut reader = Self {
            source: BufReader::with_capacity(64 * 1024, source),
            at: 0,
            roots: Vec::new(),
        };
        let mut header = Vec::new();
        let found = reader.next_section(check_header_length, "the header", &mut header)?;
        if !found {
            return Err(CarError::HeaderLength { length: 0 });
        }
        reader.roots = decode_header(&header)?;
        Ok(reader)
    }

    /// The roots that the header names.
    #[must_use]
    pub fn roots(&self) -> &[Cid] {
        &self.roots
    }

    /// How many bytes of the stream were read.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.at
    }

    /// Reads the next block into `block` (replacing what it held) and hashes it. Returns its CID and where
    /// its bytes begin in the stream, or `None` at the end.
    ///
    /// # Errors
    /// When the source fails, or anything about the block is wrong. After an error the reader is of no
    /// further use, and what `block` holds is not proven.
    pub fn next_block(&mut self, block: &mut Vec<u8>) -> Result<Option<(Cid, u64)>, CarError> {
        if !self.next_section(check_section_length, "a block", block)? {
            return Ok(None);
        }
        let begin = self.at - block.len() as u64;
        let (cid, _) = check_section(block, begin)?;
        block.drain(..CID_BYTES);
        Ok(Some((cid, begin + CID_BYTES as u64)))
    }

    /// Reads one length-prefixed section; `false` at the end of the stream.
    fn next_section(
        &mut self,
        check_length: fn(u64, u64) -> Result<usize, CarError>,
        part: &'static str,
        section: &mut Vec<u8>,
    ) -> Result<bool, CarError> {
        let at = self.at;
        let Some(length) = self.next_varint()? else {
            return Ok(false);
        };
        let length = check_length(length, at)?;
        self.read_up_to(length, section)?;
        if section.len() < length {
            return Err(CarError::Truncated { part, at });
        }
        Ok(true)
    }

    /// Replaces `section` with the next bytes of the stream: `length` of them, or fewer at its end. Memory
    /// grows with what arrives, not with what was declared.
    fn read_up_to(&mut self, length: usize, section: &mut Vec<u8>) -> Result<(), CarError> {
        section.clear();
        while section.len() < length && self.fill()? {
            let buffer = self.source.buffer();
            let taken = buffer.len().min(length - section.len());
            section.extend_from_slice(&buffer[..taken]);
            self.consume(taken);
        }
        Ok(())
    }

    fn next_varint(&mut self) -> Result<Option<u64>, CarError> {
        let at = self.at;
        let mut varint = Varint::default();
        loop {
            let Some(byte) = self.next_byte()? else {
                return match varint.bytes {
                    0 => Ok(None),
                    _ => Err(CarError::Truncated { part: "a length", at }),
                };
            };
            if let Some(value) = varint.push(byte).ok_or(CarError::Varint { at })? {
                return Ok(Some(value));
            }
        }
    }

    fn next_byte(&mut self) -> Result<Option<u8>, CarError> {
        if !self.fill()? {
            return Ok(None);
        }
        let byte = self.source.buffer()[0];
        self.consume(1);
        Ok(Some(byte))
    }

    /// Sees to it that the buffer holds something; `false` at the end of the stream.
    fn fill(&mut self) -> Result<bool, CarError> {
        loop {
            match self.source.fill_buf() {
                Ok(buffer) => return Ok(!buffer.is_empty()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.source.consume(bytes);
        self.at += bytes as u64;
    }
}

/// The beginning of a CAR with these roots, length prefix included.
#[must_use]
pub fn encode_header(roots: &[Cid]) -> Vec<u8> {
    let mut header = Vec::with_capacity(20 + 41 * roots.len());
    encode::map(&mut header, 2);
    encode::text(&mut header, "roots");
    encode::array(&mut header, roots.len());
    for root in roots {
        encode::link(&mut header, root);
    }
    encode::text(&mut header, "version");
    encode::integer(&mut header, 1);

    let mut out = Vec::with_capacity(header.len() + 2);
    encode_varint(&mut out, header.len() as u64);
    out.extend_from_slice(&header);
    out
}

/// Appends one block with its length and CID. The bytes must hash to the CID and be no more than
/// [`CAR_BLOCK_BYTES_MAX`], or no reader will take them.
pub fn encode_block(out: &mut Vec<u8>, cid: &Cid, bytes: &[u8]) {
    encode_varint(out, (CID_BYTES + bytes.len()) as u64);
    out.extend_from_slice(&cid.to_bytes());
    out.extend_from_slice(bytes);
}

/// How many bytes [`encode_block`] appends for a block of this length.
#[must_use]
pub const fn block_frame_len(block_bytes: usize) -> usize {
    let section = CID_BYTES + block_bytes;
    let bits = (usize::BITS - section.leading_zeros()) as usize;
    bits.div_ceil(7) + section
}

fn encode_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
