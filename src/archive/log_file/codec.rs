//! How the core types stand in an index, for `#[serde(with = …)]`: as texts, and CIDs as links.

use ipld_core::cid::Cid as IpldCid;
use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

use crate::types::{Cid, SyntaxError};

fn link(cid: &Cid) -> IpldCid {
    IpldCid::try_from(cid.to_bytes().as_slice()).expect("a checked CID is one to ipld-core too")
}

fn unlink(cid: &IpldCid) -> Result<Cid, SyntaxError> {
    Cid::from_bytes(&cid.to_bytes())
}

/// Anything that is parsed from text and shown as that text.
pub(super) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        <&str>::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A link.
pub(super) mod value {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Cid, to: S) -> Result<S::Ok, S::Error> {
        link(value).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Cid, D::Error> {
        unlink(&IpldCid::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// A link, or none.
pub(super) mod option {
    use super::*;

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub fn serialize<S: Serializer>(value: &Option<Cid>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(link).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cid>, D::Error> {
        let found = Option::<IpldCid>::deserialize(from)?;
        found
            .map(|cid| unlink(&cid))
            .transpose()
            .map_err(D::Error::custom)
    }
}
