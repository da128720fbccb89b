//! One operation of a log: its fields, the bytes that are hashed and signed, its signature.
//!
//! An operation is hashed and signed as DAG-CBOR, and comes as JSON. Every field is turned into DAG-CBOR as
//! it stands, unknown ones too, so nothing that a signature covers is lost.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};

use super::{FIELDS_MAX, PlcFault, PlcState, ROTATION_KEYS_MAX};
use crate::identity::document::{PDS_SERVICE_TYPE, first_handle};
use crate::repo::cbor::encode;
use crate::repo::signing_key::{SignatureError, SigningKey};
use crate::types::Cid;

/// The three forms of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `plc_operation`
    Operation,
    /// `plc_tombstone`: gives the DID up.
    Tombstone,
    /// `create`: the form of the first operations, before 2023.
    Create,
}

/// An operation that was read; its signature is not checked yet.
pub(super) struct Operation {
    pub(super) json: Map<String, Value>,
    pub(super) kind: Kind,
    pub(super) prev: Option<Cid>,
    pub(super) cid: Cid,
    /// None for a tombstone.
    pub(super) state: Option<PlcState>,
    /// In order; none where a text is no key that we know, and so signed nothing.
    pub(super) rotation_keys: Vec<Option<SigningKey>>,
    signed_bytes: Vec<u8>,
    sig: [u8; 64],
}

impl Operation {
    /// Reads an operation.
    pub(super) fn read(json: Map<String, Value>) -> Result<Self, PlcFault> {
        let kind = match text(&json, "type")? {
            "plc_operation" => Kind::Operation,
            "plc_tombstone" => Kind::Tombstone,
            "create" => Kind::Create,
            _ => return Err(PlcFault::UnknownType),
        };
        let prev = match json.get("prev") {
            Some(Value::Null) => None,
            Some(Value::String(cid)) => Some(cid.parse().map_err(|_| PlcFault::OperationMalformed)?),
            _ => return Err(PlcFault::OperationMalformed),
        };
        let sig = BASE64URL_NOPAD.decode(text(&json, "sig")?.as_bytes());
        let sig = sig.ok().and_then(|sig| sig.try_into().ok());
        let state = match kind {
            Kind::Operation => Some(state_of(&json)?),
            Kind::Tombstone => None,
            Kind::Create => Some(state_of_create(&json)?),
        };
        let rotation_keys = state.iter().flat_map(|state| &state.rotation_keys);
        let rotation_keys = rotation_keys
            .map(|key| SigningKey::from_did_key(key).ok())
            .collect();
        let (mut all, mut signed_bytes) = (Vec::new(), Vec::new());
        encode_map(&mut all, &json, |_| true)?;
        encode_map(&mut signed_bytes, &json, |key| key != "sig")?;
        Ok(Self {
            kind,
            prev,
            cid: Cid::of_block(&all),
            state,
            rotation_keys,
            signed_bytes,
            sig: sig.ok_or(PlcFault::SignatureForm)?,
            json,
        })
    }

    /// Which of these keys signed it: the first that did.
    pub(super) fn signer(&self, keys: &[Option<SigningKey>]) -> Result<usize, PlcFault> {
        let mut fault = PlcFault::NotSigned;
        for (index, key) in keys.iter().enumerate() {
            let Some(key) = key else { continue };
            match key.verify(&self.signed_bytes, &self.sig) {
                Ok(()) => return Ok(index),
                Err(SignatureError::HighS) => fault = PlcFault::HighS,
                Err(SignatureError::Mismatch) => {}
            }
        }
        Err(fault)
    }
}

/// The bytes of an operation that its signature covers.
///
/// # Errors
/// When it holds a number that is no integer.
pub fn signed_bytes(operation: &Map<String, Value>) -> Result<Vec<u8>, PlcFault> {
    let mut out = Vec::new();
    encode_map(&mut out, operation, |key| key != "sig")?;
    Ok(out)
}

/// The CID of a signed operation.
///
/// # Errors
/// When it holds a number that is no integer.
pub fn operation_cid(operation: &Map<String, Value>) -> Result<Cid, PlcFault> {
    let mut out = Vec::new();
    encode_map(&mut out, operation, |_| true)?;
    Ok(Cid::of_block(&out))
}

fn text<'a>(json: &'a Map<String, Value>, key: &str) -> Result<&'a str, PlcFault> {
    json.get(key)
        .and_then(Value::as_str)
        .ok_or(PlcFault::OperationMalformed)
}

fn texts(json: &Map<String, Value>, key: &str) -> Result<Vec<String>, PlcFault> {
    let bad = PlcFault::OperationMalformed;
    let list = json.get(key).and_then(Value::as_array).ok_or(bad)?;
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or(bad);
    list.iter().map(text).collect()
}

fn object<'a>(json: &'a Map<String, Value>, key: &str) -> Result<&'a Map<String, Value>, PlcFault> {
    json.get(key)
        .and_then(Value::as_object)
        .ok_or(PlcFault::OperationMalformed)
}

fn state_of(json: &Map<String, Value>) -> Result<PlcState, PlcFault> {
    let rotation_keys = texts(json, "rotationKeys")?;
    if rotation_keys.len() > ROTATION_KEYS_MAX {
        return Err(PlcFault::TooManyRotationKeys);
    }
    let names = texts(json, "alsoKnownAs")?;
    let methods = object(json, "verificationMethods")?;
    let services = object(json, "services")?;
    if names.len().max(methods.len()).max(services.len()) > FIELDS_MAX {
        return Err(PlcFault::TooManyFields);
    }
    for method in methods.keys() {
        text(methods, method)?;
    }
    let mut pds = None;
    for (id, service) in services {
        let service = service.as_object().ok_or(PlcFault::OperationMalformed)?;
        let (kind, endpoint) = (text(service, "type")?, text(service, "endpoint")?);
        if id == "atproto_pds" && kind == PDS_SERVICE_TYPE {
            pds = Some(endpoint.to_owned());
        }
    }
    let signing_key = methods.get("atproto").and_then(Value::as_str);
    Ok(PlcState {
        rotation_keys,
        signing_key: signing_key.and_then(|key| SigningKey::from_did_key(key).ok()),
        pds,
        handle: first_handle(names.iter().map(String::as_str)),
    })
}

/// The old form had one key for both, and a recovery key that stands above it.
fn state_of_create(json: &Map<String, Value>) -> Result<PlcState, PlcFault> {
    let signing_key = text(json, "signingKey")?;
    let with_scheme = |scheme: &str, others: &[&str], value: &str| {
        if others.iter().any(|other| value.starts_with(other)) {
            value.to_owned()
        } else {
            format!("{scheme}{value}")
        }
    };
    let handle = text(json, "handle")?;
    let bare = handle
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let name = with_scheme("at://", &["at://"], bare);
    Ok(PlcState {
        rotation_keys: vec![text(json, "recoveryKey")?.to_owned(), signing_key.to_owned()],
        signing_key: SigningKey::from_did_key(signing_key).ok(),
        pds: Some(with_scheme(
            "https://",
            &["https://", "http://"],
            text(json, "service")?,
        )),
        handle: first_handle([name.as_str()]),
    })
}

/// Writes a JSON object as DAG-CBOR, without the keys that are not `kept`.
fn encode_map(
    out: &mut Vec<u8>,
    map: &Map<String, Value>,
    kept: impl Fn(&str) -> bool,
) -> Result<(), PlcFault> {
    let mut entries: Vec<_> = map.iter().filter(|(key, _)| kept(key)).collect();
    entries.sort_unstable_by(|(a, _), (b, _)| (a.len(), a).cmp(&(b.len(), b)));
    encode::map(out, entries.len());
    for (key, value) in entries {
        encode::text(out, key);
        encode_value(out, value)?;
    }
    Ok(())
}

/// Writes a JSON value as DAG-CBOR. As deep as the JSON parser allows, which is 128.
fn encode_value(out: &mut Vec<u8>, value: &Value) -> Result<(), PlcFault> {
    match value {
        Value::Null => encode::null(out),
        Value::Bool(value) => encode::boolean(out, *value),
        Value::Number(number) => encode::integer(out, number.as_i64().ok_or(PlcFault::Number)?),
        Value::String(value) => encode::text(out, value),
        Value::Array(items) => {
            encode::array(out, items.len());
            for item in items {
                encode_value(out, item)?;
            }
        }
        Value::Object(map) => encode_map(out, map, |_| true)?,
    }
    Ok(())
}
