//! A record as JSON, in the form that AT Protocol gives it: links are `{"$link": …}`, bytes `{"$bytes": …}`.
//!
//! Records are kept byte for byte whatever they hold, so this reads more than strict DAG-CBOR: floats, unsorted
//! keys, lengths that are not the shortest. What JSON cannot say (keys that are no text, foreign tags, floats that
//! are no numbers), and what is no CBOR at all, is refused as a whole: nothing is shown as less than it is.
//!
//! Sources: <https://atproto.com/specs/data-model#json-representation>, RFC 8949.

use data_encoding::BASE64_NOPAD;
use serde_json::{Map, Number, Value};

use crate::types::Cid;

/// Deepest nesting that is followed.
pub const JSON_DEPTH_MAX: usize = 128;

/// A record that has no JSON form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has no JSON form: {0}")]
pub struct NoJson(&'static str);

/// The JSON form of a record.
///
/// # Errors
/// When it has none.
pub fn record_to_json(bytes: &[u8]) -> Result<Value, NoJson> {
    let mut all = usize::MAX;
    record_to_json_within(bytes, &mut all)
}

/// The JSON form of a record of no more values than `left`, from which those that it has are taken: a value that is
/// one byte of a record can be many hundreds in memory.
///
/// # Errors
/// When it has none, or has more values; then what is left is not what it was.
pub fn record_to_json_within(bytes: &[u8], left: &mut usize) -> Result<Value, NoJson> {
    let mut reader = Reader { rest: bytes, left };
    let value = reader.item(JSON_DEPTH_MAX)?;
    if reader.rest.is_empty() {
        Ok(value)
    } else {
        Err(NoJson("bytes follow the record"))
    }
}

/// Bytes in their JSON form.
#[must_use]
pub fn bytes_to_json(bytes: &[u8]) -> Value {
    single("$bytes", BASE64_NOPAD.encode(bytes))
}

fn single(key: &str, value: String) -> Value {
    Value::Object(Map::from_iter([(key.to_owned(), Value::String(value))]))
}

const ENDED: NoJson = NoJson("it ends in the middle of an item");

struct Reader<'a, 'l> {
    rest: &'a [u8],
    left: &'l mut usize,
}

impl<'a> Reader<'a, '_> {
    fn item(&mut self, depth: usize) -> Result<Value, NoJson> {
        *self.left = self.left.checked_sub(1).ok_or(NoJson("it has too many values"))?;
        let Some(depth) = depth.checked_sub(1) else {
            return Err(NoJson("it is nested too deeply"));
        };
        let (major, value) = self.head()?;
        Ok(match (major, value) {
            (0, Some(value)) => Value::from(value),
            (1, Some(value)) => match i64::try_from(value) {
                Ok(value) => Value::from(-1 - value),
                Err(_) => return Err(NoJson("an integer is below 64 bits signed")),
            },
            (2, length) => bytes_to_json(&self.string(2, length)?),
            (3, length) => Value::String(self.text(length)?),
            (4, count) => Value::Array(self.array(count, depth)?),
            (5, count) => Value::Object(self.map(count, depth)?),
            (6, Some(42)) => self.link()?,
            (6, _) => return Err(NoJson("a tag other than 42")),
            (7, Some(value)) => simple(value)?,
            _ => return Err(NoJson("a stray break")),
        })
    }

    fn array(&mut self, count: Option<u64>, depth: usize) -> Result<Vec<Value>, NoJson> {
        let mut items = Vec::new();
        let mut left = count;
        while self.more(&mut left)? {
            items.push(self.item(depth)?);
        }
        Ok(items)
    }

    fn map(&mut self, count: Option<u64>, depth: usize) -> Result<Map<String, Value>, NoJson> {
        let mut map = Map::new();
        let mut left = count;
        while self.more(&mut left)? {
            let (3, length) = self.head()? else {
                return Err(NoJson("a key is no text"));
            };
            let key = self.text(length)?;
            if map.insert(key, self.item(depth)?).is_some() {
                return Err(NoJson("a key is there twice"));
            }
        }
        Ok(map)
    }

    fn link(&mut self) -> Result<Value, NoJson> {
        let bad = NoJson("a link that is no CID of the allowed form");
        let (2, Some(length)) = self.head()? else {
            return Err(bad);
        };
        let cid = self.take(length)?.strip_prefix(&[0]).ok_or(bad)?;
        let cid = Cid::from_bytes(cid).map_err(|_| bad)?;
        Ok(single("$link", cid.to_string()))
    }

    fn text(&mut self, length: Option<u64>) -> Result<String, NoJson> {
        String::from_utf8(self.string(3, length)?).map_err(|_| NoJson("text is not UTF-8"))
    }

    /// A string of bytes or text: of a known length, or in chunks up to a break.
    fn string(&mut self, major: u8, length: Option<u64>) -> Result<Vec<u8>, NoJson> {
        if let Some(length) = length {
            return Ok(self.take(length)?.to_vec());
        }
        let mut whole = Vec::new();
        loop {
            match self.head()? {
                (7, None) => return Ok(whole),
                (found, Some(length)) if found == major => whole.extend_from_slice(self.take(length)?),
                _ => return Err(NoJson("a string in chunks of another kind")),
            }
        }
    }

    /// Whether an array or map goes on; takes its break.
    fn more(&mut self, left: &mut Option<u64>) -> Result<bool, NoJson> {
        match left {
            Some(0) => Ok(false),
            Some(left) => {
                *left -= 1;
                Ok(true)
            }
            None if self.rest.first() == Some(&0xff) => {
                self.take(1)?;
                Ok(false)
            }
            None => Ok(true),
        }
    }

    /// Major type and value; of a float and a simple value, the value has a first bit more ([`simple`]); none:
    /// indefinite length, or a break.
    fn head(&mut self) -> Result<(u8, Option<u64>), NoJson> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 31);
        let value = match info {
            0..=23 => u64::from(info),
            24..=27 => {
                let bytes = self.take(1 << (info - 24))?;
                let value = bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
                if major == 7 && info > 24 {
                    return Ok((7, Some(float(value, info)?)));
                }
                value
            }
            31 => return Ok((major, None)),
            _ => return Err(NoJson("a reserved form")),
        };
        if major == 7 {
            return Ok((7, Some(SIMPLE | value)));
        }
        Ok((major, Some(value)))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], NoJson> {
        let length = usize::try_from(length).map_err(|_| ENDED)?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(ENDED)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Marks a simple value: the bits of a float that is no number, which [`float`] never gives.
const SIMPLE: u64 = 0x7ff8_0000_0000_0000;

/// The bits of a float of 16, 32 or 64 bits, as those of one of 64.
fn float(bits: u64, info: u8) -> Result<u64, NoJson> {
    let value = match info {
        25 => half(bits),
        26 => f64::from(f32::from_bits(bits as u32)),
        _ => f64::from_bits(bits),
    };
    if value.is_finite() {
        Ok(value.to_bits())
    } else {
        Err(NoJson("a float that is no number"))
    }
}

/// A float of 16 bits.
fn half(bits: u64) -> f64 {
    let (exponent, fraction) = ((bits >> 10) & 0x1f, (bits & 0x3ff) as u32);
    let magnitude = match exponent {
        0 => f64::from(fraction) * 2f64.powi(-24),
        31 => f64::INFINITY,
        _ => f64::from(fraction + 1024) * 2f64.powi(exponent as i32 - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

fn simple(value: u64) -> Result<Value, NoJson> {
    match value.checked_sub(SIMPLE).filter(|value| *value < 256) {
        Some(20) => Ok(Value::Bool(false)),
        Some(21) => Ok(Value::Bool(true)),
        Some(22 | 23) => Ok(Value::Null),
        Some(_) => Err(NoJson("an unknown simple value")),
        None => Number::from_f64(f64::from_bits(value))
            .map(Value::Number)
            .ok_or(NoJson("a float that is no number")),
    }
}

#[cfg(test)]
mod tests;
