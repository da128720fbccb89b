//! Audit logs made for tests: signed and hashed by a second encoder.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::did_of;
use crate::repo::signing_key::{Curve, SecretKey};
use crate::types::{Cid, Did, Timestamp};

/// The key of this number.
pub(crate) fn secret(number: u8) -> SecretKey {
    let curve = if number.is_multiple_of(2) {
        Curve::K256
    } else {
        Curve::P256
    };
    SecretKey::from_bytes(curve, &[number.max(1); 32]).expect("below the group order")
}

/// The did:key of this number.
pub(crate) fn key(number: u8) -> String {
    secret(number).public().to_did_key()
}

/// A log that grows.
#[derive(Clone)]
pub(crate) struct LogMaker {
    pub(crate) entries: Vec<Value>,
    now: Timestamp,
}

impl LogMaker {
    pub(crate) const fn new(now: Timestamp) -> Self {
        Self {
            entries: Vec::new(),
            now,
        }
    }

    pub(crate) fn later(&mut self, by: Duration) {
        self.now = self.now.plus(by);
    }

    pub(crate) fn cid(&self, index: usize) -> String {
        self.entries[index]["cid"].as_str().expect("a text").to_owned()
    }

    pub(crate) fn last_cid(&self) -> String {
        self.cid(self.entries.len() - 1)
    }

    /// An unsigned operation: rotation keys, signing key (as did:key), host, and what it builds on.
    pub(crate) fn operation(rotation: &[u8], signing: &str, host: &str, prev: Option<&str>) -> Value {
        json!({
            "type": "plc_operation",
            "rotationKeys": rotation.iter().map(|number| key(*number)).collect::<Vec<_>>(),
            "verificationMethods": {"atproto": signing},
            "alsoKnownAs": ["at://Someone.test"],
            "services": {"atproto_pds": {
                "type": "AtprotoPersonalDataServer", "endpoint": format!("https://{host}"),
            }},
            "prev": prev,
        })
    }

    /// Signs and appends an operation.
    pub(crate) fn push(&mut self, operation: Value, signer: u8) -> &mut Self {
        let message = serde_ipld_dagcbor::to_vec(&operation).expect("encodes");
        self.push_with_sig(operation, &secret(signer).sign(&message))
    }

    pub(crate) fn push_with_sig(&mut self, mut operation: Value, sig: &[u8]) -> &mut Self {
        operation["sig"] = BASE64URL_NOPAD.encode(sig).into();
        self.push_signed(operation)
    }

    /// Appends an operation as it is, with its own hash.
    pub(crate) fn push_signed(&mut self, operation: Value) -> &mut Self {
        let cid = Cid::of_block(&serde_ipld_dagcbor::to_vec(&operation).expect("encodes"));
        let did = match self.entries.first() {
            Some(first) => first["did"].as_str().expect("a text").to_owned(),
            None => did_of(&cid),
        };
        self.entries.push(json!({
            "did": did,
            "operation": operation,
            "cid": cid.to_string(),
            "nullified": false,
            "createdAt": self.now.to_string(),
        }));
        self
    }

    pub(crate) fn did(&self) -> Did {
        self.entries[0]["did"]
            .as_str()
            .expect("a text")
            .parse()
            .expect("a DID")
    }

    pub(crate) fn answer(&self) -> Vec<u8> {
        serde_json::to_vec(&self.entries).expect("JSON")
    }
}
