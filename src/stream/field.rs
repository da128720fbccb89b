//! The loosely typed halves of frames: what stands in a field, before anybody says what it must be.
//!
//! Decoding straight into typed structs would fail the whole frame for one bad field, and with it the
//! `seq` and the DID that are needed to go on. So every field is first read as a [`Field`], whatever it is,
//! borrowed from the frame, and checked afterwards. The bytes have already passed the strict CBOR check.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::frame::OPS_MAX;

/// What stands in one field. Lists and maps are skipped: no field that we read is one, but `ops`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Field<'a> {
    /// The key is not there.
    #[default]
    Absent,
    Null,
    Bool(bool),
    Int(i64),
    /// An unsigned integer above `i64::MAX`, a list, a map: nothing that any field may hold.
    Other,
    Text(&'a str),
    Bytes(&'a [u8]),
    /// The binary form of a link, without the leading zero.
    Link(&'a [u8]),
}

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any DAG-CBOR value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Field<'de>, E> {
        Ok(Field::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Field<'de>, E> {
        Ok(Field::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Field<'de>, E> {
        Ok(i64::try_from(value).map_or(Field::Other, Field::Int))
    }

    fn visit_i128<E>(self, _: i128) -> Result<Field<'de>, E> {
        Ok(Field::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field<'de>, E> {
        Ok(Field::Other)
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Field<'de>, E> {
        Ok(Field::Text(value))
    }

    fn visit_borrowed_bytes<E>(self, value: &'de [u8]) -> Result<Field<'de>, E> {
        Ok(Field::Bytes(value))
    }

    fn visit_none<E>(self) -> Result<Field<'de>, E> {
        Ok(Field::Null)
    }

    fn visit_unit<E>(self) -> Result<Field<'de>, E> {
        Ok(Field::Null)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, link: D) -> Result<Field<'de>, D::Error> {
        link.deserialize_bytes(LinkVisitor).map(Field::Link)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Field<'de>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }
}

struct LinkVisitor;

impl<'de> Visitor<'de> for LinkVisitor {
    type Value = &'de [u8];

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a link")
    }

    fn visit_borrowed_bytes<E>(self, value: &'de [u8]) -> Result<&'de [u8], E> {
        Ok(value)
    }
}

/// The header of a frame.
#[derive(Debug, Deserialize)]
pub(super) struct Header<'a> {
    #[serde(borrow, default)]
    pub(super) op: Field<'a>,
    #[serde(borrow, default)]
    pub(super) t: Field<'a>,
}

/// Every field of every payload that we read; the kind of the message says which ones count.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Body<'a> {
    #[serde(borrow, default)]
    pub(super) seq: Field<'a>,
    #[serde(borrow, default)]
    pub(super) repo: Field<'a>,
    #[serde(borrow, default)]
    pub(super) did: Field<'a>,
    #[serde(borrow, default)]
    pub(super) commit: Field<'a>,
    #[serde(borrow, default)]
    pub(super) rev: Field<'a>,
    #[serde(borrow, default)]
    pub(super) since: Field<'a>,
    #[serde(borrow, default)]
    pub(super) blocks: Field<'a>,
    #[serde(borrow, default)]
    pub(super) ops: Ops<'a>,
    #[serde(borrow, default)]
    pub(super) prev_data: Field<'a>,
    #[serde(borrow, default)]
    pub(super) too_big: Field<'a>,
    #[serde(borrow, default)]
    pub(super) time: Field<'a>,
    #[serde(borrow, default)]
    pub(super) handle: Field<'a>,
    #[serde(borrow, default)]
    pub(super) active: Field<'a>,
    #[serde(borrow, default)]
    pub(super) status: Field<'a>,
    #[serde(borrow, default)]
    pub(super) name: Field<'a>,
    #[serde(borrow, default)]
    pub(super) error: Field<'a>,
    #[serde(borrow, default)]
    pub(super) message: Field<'a>,
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

impl<'de: 'a, 'a> Deserialize<'de> for Ops<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OpsVisitor)
    }
}

struct OpsVisitor;

/// Answers every scalar alike; the two list-like visitors below differ only in what they do read.
macro_rules! scalars_are {
    ($value:expr) => {
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_i128<E>(self, _: i128) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_bytes<E>(self, _: &[u8]) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_newtype_struct<D: Deserializer<'de>>(self, link: D) -> Result<Self::Value, D::Error> {
            link.deserialize_bytes(LinkVisitor)?;
            Ok($value)
        }
    };
}

impl<'de> Visitor<'de> for OpsVisitor {
    type Value = Ops<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of operations")
    }

    scalars_are!(Ops::NotAList);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ops<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Ops::NotAList)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ops<'de>, A::Error> {
        let mut ops = Vec::with_capacity(list.size_hint().unwrap_or(0).min(OPS_MAX));
        while ops.len() < OPS_MAX {
            match list.next_element()? {
                Some(op) => ops.push(op),
                None => return Ok(Ops::List(ops)),
            }
        }
        let mut count = ops.len();
        while list.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(if count > OPS_MAX {
            Ops::TooMany(count)
        } else {
            Ops::List(ops)
        })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Op<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OpVisitor)
    }
}

struct OpVisitor;

impl OpVisitor {
    fn not_a_map<'a>() -> Op<'a> {
        Op {
            not_a_map: true,
            ..Op::default()
        }
    }
}

impl<'de> Visitor<'de> for OpVisitor {
    type Value = Op<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an operation")
    }

    scalars_are!(Self::not_a_map());

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Op<'de>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::not_a_map())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Op<'de>, A::Error> {
        let mut op = Op::default();
        while let Some(key) = map.next_key::<OpKey>()? {
            match key {
                OpKey::Action => op.action = map.next_value()?,
                OpKey::Path => op.path = map.next_value()?,
                OpKey::Cid => op.cid = map.next_value()?,
                OpKey::Prev => op.prev = map.next_value()?,
                OpKey::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(op)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum OpKey {
    Action,
    Path,
    Cid,
    Prev,
    #[serde(other)]
    Unknown,
}
