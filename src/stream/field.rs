//! The fields of a frame: read as whatever stands there, then checked for what must.
//!
//! Decoding straight into the final types would fail the whole frame for one bad field, and with it the
//! `seq` and the DID that are needed to go on. So every field is first read as a [`Field`], whatever it is,
//! borrowed from the frame, and checked afterwards. Reading is strict: a [`CborError`] here means that the
//! bytes themselves are wrong, not their meaning.

use crate::repo::cbor::{CborError, Decoder, Kind};
use crate::types::{Cid, Codec, Did, Rev, Timestamp};

use super::frame::error::FieldError;
use super::frame::{OPS_MAX, SEQ_MAX};

/// Bytes before the CID in an encoded link: the tag, the head of the byte string, and a zero.
const LINK_HEAD_BYTES: usize = 5;

/// What stands in one field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Field<'a> {
    /// The key is not there.
    #[default]
    Absent,
    Null,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// The binary form of a CID, of any kind that DASL allows.
    Link(&'a [u8]),
    /// A list or a map: no field that is read this way may hold one.
    Other,
}

impl<'a> Field<'a> {
    fn read(decoder: &mut Decoder<'a>) -> Result<Self, CborError> {
        Ok(match decoder.peek()? {
            Kind::Integer => Self::Int(decoder.integer()?),
            Kind::Bytes => Self::Bytes(decoder.bytes()?),
            Kind::Text => Self::Text(decoder.text()?),
            Kind::Bool => Self::Bool(decoder.boolean()?),
            Kind::Link => Self::Link(decoder.skip()?.get(LINK_HEAD_BYTES..).unwrap_or_default()),
            Kind::Null => {
                decoder.skip()?;
                Self::Null
            }
            Kind::Array | Kind::Map | Kind::Other => {
                decoder.skip()?;
                Self::Other
            }
        })
    }
}

/// The header of a frame.
#[derive(Debug, Default)]
pub(super) struct Header<'a> {
    pub(super) op: Field<'a>,
    pub(super) t: Field<'a>,
}

impl<'a> Header<'a> {
    /// Reads a header; none when the item is not a map.
    pub(super) fn read(decoder: &mut Decoder<'a>) -> Result<Option<Self>, CborError> {
        let mut header = Self::default();
        let is_map = read_map(decoder, |key, decoder| {
            match key {
                "op" => header.op = Field::read(decoder)?,
                "t" => header.t = Field::read(decoder)?,
                _ => _ = decoder.skip()?,
            }
            Ok(())
        })?;
        Ok(is_map.then_some(header))
    }
}

/// Every field of every payload that we read; the kind of the message says which ones count.
#[derive(Debug, Default)]
pub(super) struct Body<'a> {
    pub(super) seq: Field<'a>,
    pub(super) repo: Field<'a>,
    pub(super) did: Field<'a>,
    pub(super) commit: Field<'a>,
    pub(super) rev: Field<'a>,
    pub(super) since: Field<'a>,
    pub(super) blocks: Field<'a>,
    pub(super) ops: Ops<'a>,
    pub(super) prev_data: Field<'a>,
    pub(super) too_big: Field<'a>,
    pub(super) time: Field<'a>,
    pub(super) handle: Field<'a>,
    pub(super) active: Field<'a>,
    pub(super) status: Field<'a>,
    pub(super) name: Field<'a>,
    pub(super) error: Field<'a>,
    pub(super) message: Field<'a>,
}

impl<'a> Body<'a> {
    /// Reads a payload; none when the item is not a map.
    pub(super) fn read(decoder: &mut Decoder<'a>) -> Result<Option<Self>, CborError> {
        let mut body = Self::default();
        let is_map = read_map(decoder, |key, decoder| {
            let slot = match key {
                "ops" => {
                    body.ops = Ops::read(decoder)?;
                    return Ok(());
                }
                "seq" => &mut body.seq,
                "repo" => &mut body.repo,
                "did" => &mut body.did,
                "commit" => &mut body.commit,
                "rev" => &mut body.rev,
                "since" => &mut body.since,
                "blocks" => &mut body.blocks,
                "prevData" => &mut body.prev_data,
                "tooBig" => &mut body.too_big,
                "time" => &mut body.time,
                "handle" => &mut body.handle,
                "active" => &mut body.active,
                "status" => &mut body.status,
                "name" => &mut body.name,
                "error" => &mut body.error,
                "message" => &mut body.message,
                _ => {
                    decoder.skip()?;
                    return Ok(());
                }
            };
            *slot = Field::read(decoder)?;
            Ok(())
        })?;
        Ok(is_map.then_some(body))
    }
}

/// The `ops` of a commit. At most [`OPS_MAX`] are kept; a hostile list of a million costs no memory.
#[derive(Debug, Default)]
pub(super) enum Ops<'a> {
    #[default]
    Absent,
    NotAList,
    /// More than [`OPS_MAX`]; how many.
    TooMany(usize),
    List(Vec<Op<'a>>),
}

impl<'a> Ops<'a> {
    fn read(decoder: &mut Decoder<'a>) -> Result<Self, CborError> {
        if decoder.peek()? != Kind::Array {
            decoder.skip()?;
            return Ok(Self::NotAList);
        }
        let count = decoder.array()?;
        if count > OPS_MAX {
            for _ in 0..count {
                decoder.skip()?;
            }
            return Ok(Self::TooMany(count));
        }
        (0..count)
            .map(|_| Op::read(decoder))
            .collect::<Result<_, _>>()
            .map(Self::List)
    }
}

/// One entry of `ops`.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Op<'a> {
    /// Set when the entry is not a map at all; then the others are absent.
    pub(super) not_a_map: bool,
    pub(super) action: Field<'a>,
    pub(super) path: Field<'a>,
    pub(super) cid: Field<'a>,
    pub(super) prev: Field<'a>,
}

impl<'a> Op<'a> {
    fn read(decoder: &mut Decoder<'a>) -> Result<Self, CborError> {
        let mut op = Self::default();
        let is_map = read_map(decoder, |key, decoder| {
            match key {
                "action" => op.action = Field::read(decoder)?,
                "path" => op.path = Field::read(decoder)?,
                "cid" => op.cid = Field::read(decoder)?,
                "prev" => op.prev = Field::read(decoder)?,
                _ => _ = decoder.skip()?,
            }
            Ok(())
        })?;
        op.not_a_map = !is_map;
        Ok(op)
    }
}

/// Reads a map, giving each key to `entry`, which reads its value. Anything else is skipped: false.
fn read_map<'a>(
    decoder: &mut Decoder<'a>,
    mut entry: impl FnMut(&'a str, &mut Decoder<'a>) -> Result<(), CborError>,
) -> Result<bool, CborError> {
    if decoder.peek()? != Kind::Map {
        decoder.skip()?;
        return Ok(false);
    }
    let mut keys = decoder.map()?;
    while let Some(key) = keys.next(decoder)? {
        entry(key, decoder)?;
    }
    Ok(true)
}

pub(super) fn required<'a>(name: &'static str, field: Field<'a>) -> Result<Field<'a>, FieldError> {
    match field {
        Field::Absent => Err(FieldError::Missing(name)),
        present => Ok(present),
    }
}

pub(super) fn optional<'a, T>(
    field: Field<'a>,
    check: impl FnOnce(Field<'a>) -> Result<T, FieldError>,
) -> Result<Option<T>, FieldError> {
    match field {
        Field::Absent | Field::Null => Ok(None),
        present => check(present).map(Some),
    }
}

pub(super) fn seq(field: Field<'_>) -> Result<u64, FieldError> {
    match required("seq", field)? {
        Field::Int(seq) => match u64::try_from(seq) {
            Ok(seq @ 1..=SEQ_MAX) => Ok(seq),
            _ => Err(FieldError::SeqRange(seq)),
        },
        _ => Err(FieldError::Type("seq", "an integer")),
    }
}

pub(super) fn text<'a>(
    name: &'static str,
    field: Field<'a>,
    bytes_max: usize,
) -> Result<&'a str, FieldError> {
    match required(name, field)? {
        Field::Text(text) if text.len() > bytes_max => Err(FieldError::TooLong {
            field: name,
            bytes: text.len(),
            bytes_max,
        }),
        Field::Text(text) => Ok(text),
        _ => Err(FieldError::Type(name, "a text")),
    }
}

pub(super) fn bytes<'a>(
    name: &'static str,
    field: Field<'a>,
    bytes_max: usize,
) -> Result<&'a [u8], FieldError> {
    match required(name, field)? {
        Field::Bytes(bytes) if bytes.len() > bytes_max => Err(FieldError::TooLong {
            field: name,
            bytes: bytes.len(),
            bytes_max,
        }),
        Field::Bytes(bytes) => Ok(bytes),
        _ => Err(FieldError::Type(name, "a byte string")),
    }
}

pub(super) fn did(name: &'static str, field: Field<'_>) -> Result<Did, FieldError> {
    text(name, field, usize::MAX)?
        .parse()
        .map_err(|error| FieldError::Syntax(name, error))
}

pub(super) fn rev(name: &'static str, field: Field<'_>) -> Result<Rev, FieldError> {
    text(name, field, usize::MAX)?
        .parse()
        .map_err(|error| FieldError::Syntax(name, error))
}

pub(super) fn block_link(name: &'static str, field: Field<'_>) -> Result<Cid, FieldError> {
    let Field::Link(link) = required(name, field)? else {
        return Err(FieldError::Type(name, "a link"));
    };
    let cid = Cid::from_bytes(link).map_err(|error| FieldError::Syntax(name, error))?;
    match cid.codec() {
        Codec::DagCbor => Ok(cid),
        Codec::Raw => Err(FieldError::NotABlock(name)),
    }
}

/// The time is a hint; one that cannot be read is no reason to lose an event.
pub(super) fn time(field: Field<'_>) -> Option<Timestamp> {
    match field {
        Field::Text(text) => text.parse().ok(),
        _ => None,
    }
}

pub(super) fn message(field: Field<'_>) -> Option<&str> {
    match field {
        Field::Text(text) => Some(text),
        _ => None,
    }
}
