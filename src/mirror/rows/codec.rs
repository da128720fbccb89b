//! How the core types stand in rows, for `#[serde(with = …)]`: texts as text, a rev and a time as numbers,
//! a CID as its 36 bytes. The core types themselves know nothing of serde.

use serde::{Deserialize, Serialize};

use crate::types::cid::CID_BYTES;
use crate::types::{Cid, Digest, Rev, SyntaxError, Timestamp};

/// A core type that is stored in another form than text.
pub(super) trait Stored: Sized {
    type Form: Serialize + for<'de> Deserialize<'de>;

    fn to_form(&self) -> Self::Form;
    fn from_form(form: Self::Form) -> Result<Self, SyntaxError>;
}

impl Stored for Rev {
    type Form = u64;

    fn to_form(&self) -> u64 {
        self.to_bits()
    }

    fn from_form(form: u64) -> Result<Self, SyntaxError> {
        Self::from_bits(form)
    }
}

impl Stored for Timestamp {
    type Form = u64;

    fn to_form(&self) -> u64 {
        self.micros()
    }

    fn from_form(form: u64) -> Result<Self, SyntaxError> {
        Ok(Self::from_micros(form))
    }
}

impl Stored for Cid {
    type Form = serde_bytes::ByteArray<CID_BYTES>;

    fn to_form(&self) -> Self::Form {
        serde_bytes::ByteArray::new(self.to_bytes())
    }

    fn from_form(form: Self::Form) -> Result<Self, SyntaxError> {
        Self::from_bytes(form.as_slice())
    }
}

impl Stored for Digest {
    type Form = serde_bytes::ByteArray<32>;

    fn to_form(&self) -> Self::Form {
        serde_bytes::ByteArray::new(*self)
    }

    fn from_form(form: Self::Form) -> Result<Self, SyntaxError> {
        Ok(form.into_array())
    }
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

/// Such a text, or none.
pub(super) mod optional_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub fn serialize<T: Display, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(to)
    }

    pub fn deserialize<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        let text = Option::<&str>::deserialize(from)?;
        text.map(str::parse).transpose().map_err(D::Error::custom)
    }
}

/// A [`Stored`] value.
pub(super) mod value {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Stored;

    pub fn serialize<T: Stored, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        value.to_form().serialize(to)
    }

    pub fn deserialize<'de, T: Stored, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        T::from_form(T::Form::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// A [`Stored`] value, or none.
pub(super) mod option {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Stored;

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub fn serialize<T: Stored, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(Stored::to_form).serialize(to)
    }

    pub fn deserialize<'de, T: Stored, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        let form = Option::<T::Form>::deserialize(from)?;
        form.map(T::from_form).transpose().map_err(D::Error::custom)
    }
}
