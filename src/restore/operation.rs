//! Operations of a `did:plc`, made and signed here.
//!
//! An operation says all of an identity anew, so one that is made carelessly drops keys and services of others. These
//! begin from the last operation that stands and change only what a restore has to change.

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::identity::document::PDS_SERVICE_TYPE;
use crate::identity::plc_log::{PlcEntry, PlcFault, PlcLog, operation_cid, signed_bytes};
use crate::repo::signing_key::{SecretKey, SigningKey};
use crate::types::Cid;

pub mod change;

/// Most rotation keys that the directory takes.
pub const ROTATION_KEYS_MAX: usize = 5;

/// What a PDS wants an identity to say while it hosts the account: `getRecommendedDidCredentials`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Recommended {
    /// Its own rotation key, and those that it wants beside it.
    pub rotation_keys: Vec<String>,
    /// Names; the handle first.
    pub also_known_as: Vec<String>,
    /// The signing key, as `atproto`.
    pub verification_methods: Map<String, Value>,
    /// Itself, as `atproto_pds`.
    pub services: Map<String, Value>,
}

/// Why no operation can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// The last operation is a tombstone.
    #[error("the identity was given up by its owner (a tombstone); it cannot be brought back")]
    Tombstone,
    /// Too many keys.
    #[error(
        "the identity has {} rotation keys and the new PDS adds {new}; at most {ROTATION_KEYS_MAX} are allowed. Name one \
         to give up with --drop-rotation-key, most likely the old PDS's, out of: {}", .kept.len(), .kept.join(", ")
    )]
    TooManyKeys {
        /// Those that would be kept.
        kept: Vec<String>,
        /// How many come.
        new: usize,
    },
    /// A key that was to be given up is not there.
    #[error("{0} is no rotation key of this identity")]
    NoSuchKey(String),
    /// The PDS recommends nothing usable.
    #[error("the new PDS recommends no {0} for the identity")]
    Recommended(&'static str),
    /// It cannot be encoded.
    #[error(transparent)]
    Encoding(#[from] PlcFault),
}

/// An operation that nobody has signed.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft(Map<String, Value>);

impl Draft {
    /// One that changes nothing yet, after the last operation of the log that stands.
    ///
    /// # Errors
    /// When nothing may follow it.
    pub fn after(log: &PlcLog) -> Result<Self, OperationError> {
        Self::after_entry(log.last())
    }

    fn after_entry(last: &PlcEntry) -> Result<Self, OperationError> {
        let state = last.state.as_ref().ok_or(OperationError::Tombstone)?;
        let mut draft = last.operation.clone();
        if draft.get("type").and_then(Value::as_str) == Some("create") {
            draft = Map::from_iter([
                ("rotationKeys".to_owned(), json!(state.rotation_keys)),
                (
                    "verificationMethods".to_owned(),
                    json!({ "atproto": draft.get("signingKey") }),
                ),
                (
                    "alsoKnownAs".to_owned(),
                    state
                        .handle
                        .iter()
                        .map(|handle| json!(format!("at://{handle}")))
                        .collect(),
                ),
                (
                    "services".to_owned(),
                    json!({ "atproto_pds": { "type": PDS_SERVICE_TYPE, "endpoint": state.pds } }),
                ),
            ]);
        }
        draft.remove("sig");
        draft.insert("type".to_owned(), "plc_operation".into());
        draft.insert("prev".to_owned(), last.cid.to_string().into());
        Ok(Self(draft))
    }

    /// With another signing key, and nothing else changed.
    #[must_use]
    pub fn with_signing_key(mut self, key: &SigningKey) -> Self {
        self.object("verificationMethods")
            .insert("atproto".to_owned(), key.to_did_key().into());
        self
    }

    /// With what a new PDS needs: its signing key, itself, the handle, and its rotation key below all others, which
    /// stay in their order but for those in `dropped`. Other methods, services and names stay.
    ///
    /// # Errors
    /// When the keys become too many, or the PDS recommends nothing usable.
    pub fn moved_to(mut self, to: &Recommended, dropped: &[String]) -> Result<Self, OperationError> {
        let key = to.verification_methods.get("atproto");
        let key = key
            .and_then(Value::as_str)
            .and_then(|key| SigningKey::from_did_key(key).ok());
        let key = key.ok_or(OperationError::Recommended("signing key"))?;
        let service = to.services.get("atproto_pds").cloned();
        let service = service.ok_or(OperationError::Recommended("service"))?;
        let mut keys = self.rotation_keys();
        for key in dropped {
            let known = keys.len();
            keys.retain(|kept| kept != key);
            if keys.len() == known && !to.rotation_keys.contains(key) {
                return Err(OperationError::NoSuchKey(key.clone()));
            }
        }
        let new: Vec<String> = to
            .rotation_keys
            .iter()
            .filter(|key| !keys.contains(key))
            .cloned()
            .collect();
        if keys.len() + new.len() > ROTATION_KEYS_MAX {
            let new = new.len();
            return Err(OperationError::TooManyKeys { kept: keys, new });
        }
        keys.extend(new);
        self = self.with_signing_key(&key);
        self.0.insert("rotationKeys".to_owned(), json!(keys));
        self.object("services").insert("atproto_pds".to_owned(), service);
        let before = self
            .0
            .get("alsoKnownAs")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let is_handle = |name: &Value| name.as_str().is_some_and(|name| name.starts_with("at://"));
        let old = before.iter().find(|name| is_handle(name));
        let mut names: Vec<Value> = to.also_known_as.iter().map(|name| json!(name)).collect();
        for name in before.iter().filter(|name| Some(*name) != old) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        self.0.insert("alsoKnownAs".to_owned(), names.into());
        Ok(self)
    }

    /// Whether it says the same as the operation that it follows.
    #[must_use]
    pub fn changes_nothing(&self, log: &PlcLog) -> bool {
        Self::after(log).is_ok_and(|before| before == *self)
    }

    /// Its rotation keys, the strongest first.
    #[must_use]
    pub fn rotation_keys(&self) -> Vec<String> {
        let keys = self
            .0
            .get("rotationKeys")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        keys.filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// What it says.
    #[must_use]
    pub const fn operation(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Signs it.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn sign(self, key: &SecretKey) -> Result<Signed, OperationError> {
        let sig = key.sign(&signed_bytes(&self.0)?);
        let mut json = self.0;
        json.insert("sig".to_owned(), BASE64URL_NOPAD.encode(&sig).into());
        let cid = operation_cid(&json)?;
        Ok(Signed { json, cid })
    }

    fn object(&mut self, key: &str) -> &mut Map<String, Value> {
        let value = self.0.entry(key).or_insert_with(|| Value::Object(Map::new()));
        if !value.is_object() {
            *value = Value::Object(Map::new());
        }
        value.as_object_mut().expect("an object, as just made")
    }
}

/// A signed operation, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Signed {
    /// The operation. Holds no secret.
    pub json: Map<String, Value>,
    /// Its CID.
    pub cid: Cid,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::plc_log::fixtures::{LogMaker, key, secret};
    use crate::types::Timestamp;

    fn log(maker: &LogMaker) -> PlcLog {
        PlcLog::parse(&maker.did(), &maker.answer()).expect("verifies")
    }

    fn maker(rotation: &[u8]) -> LogMaker {
        let mut maker = LogMaker::new(Timestamp::from_micros(1_700_000_000_000_000));
        let mut first = LogMaker::operation(rotation, &key(20), "old.test", None);
        first["services"]["labeler"] = json!({ "type": "AtprotoLabeler", "endpoint": "https://l.test" });
        first["verificationMethods"]["atproto_label"] = key(21).into();
        first["alsoKnownAs"] = json!(["at://old.test", "https://me.test", "at://second.test"]);
        maker.push(first, rotation[0]);
        maker
    }

    fn recommended() -> Recommended {
        serde_json::from_value(json!({
            "rotationKeys": [key(30)],
            "alsoKnownAs": ["at://new.test"],
            "verificationMethods": { "atproto": key(31) },
            "services": { "atproto_pds": { "type": PDS_SERVICE_TYPE, "endpoint": "https://new.test" } },
        }))
        .expect("reads")
    }

    /// Both curves sign what our own reader of logs, which shares no signing code with this, takes.
    #[test]
    fn operations_of_both_curves_stand_in_a_log() {
        for signer in [1, 2] {
            for _ in 0..20 {
                let mut maker = maker(&[signer, 5]);
                maker.later(Duration::from_secs(60));
                let temporary = Draft::after(&log(&maker)).expect("follows");
                let temporary = temporary.with_signing_key(&secret(40).public());
                let signed = temporary.sign(&secret(signer)).expect("signs");
                maker.push_signed(Value::Object(signed.json.clone()));
                assert_eq!(maker.last_cid(), signed.cid.to_string());
                let then = log(&maker);
                assert_eq!(
                    then.current().and_then(|state| state.signing_key.clone()),
                    Some(secret(40).public())
                );
                let moved = Draft::after(&then)
                    .expect("follows")
                    .moved_to(&recommended(), &[])
                    .expect("merges");
                maker.push_signed(Value::Object(moved.sign(&secret(signer)).expect("signs").json));
                let state = log(&maker).current().cloned().expect("stands");
                assert_eq!(state.rotation_keys, [key(signer), key(5), key(30)]);
                assert_eq!(state.pds.as_deref(), Some("https://new.test"));
            }
        }
    }

    #[test]
    fn only_what_must_change_changes() {
        let maker = maker(&[1, 5, 6]);
        let log = log(&maker);
        let draft = Draft::after(&log).expect("follows");
        assert!(draft.changes_nothing(&log));
        let moved = draft.clone().moved_to(&recommended(), &[key(6)]).expect("merges");
        assert!(!moved.changes_nothing(&log));
        assert_eq!(moved.rotation_keys(), [key(1), key(5), key(30)]);
        assert_eq!(moved.0["services"]["labeler"], draft.0["services"]["labeler"]);
        assert_eq!(moved.0["verificationMethods"]["atproto_label"], key(21));
        assert_eq!(moved.0["verificationMethods"]["atproto"], key(31));
        assert_eq!(
            moved.0["alsoKnownAs"],
            json!(["at://new.test", "https://me.test", "at://second.test"])
        );
        let temporary = draft.clone().with_signing_key(&secret(9).public());
        let mut back = temporary.0.clone();
        back["verificationMethods"]["atproto"] = draft.0["verificationMethods"]["atproto"].clone();
        assert_eq!(Draft(back), draft);
    }

    #[test]
    fn what_cannot_be_kept_is_said() {
        let log = log(&maker(&[1, 5, 6, 7, 8]));
        let draft = Draft::after(&log).expect("follows");
        let error = draft.clone().moved_to(&recommended(), &[]).expect_err("six keys");
        assert!(error.to_string().contains("--drop-rotation-key"), "{error}");
        assert!(draft.clone().moved_to(&recommended(), &[key(8)]).is_ok());
        let unknown = draft.clone().moved_to(&recommended(), &[key(77)]);
        assert_eq!(unknown, Err(OperationError::NoSuchKey(key(77))));
        let nothing = draft.moved_to(&Recommended::default(), &[]);
        assert_eq!(nothing, Err(OperationError::Recommended("signing key")));
    }

    #[test]
    fn nothing_follows_a_tombstone_and_an_old_form_is_made_new() {
        let mut maker = LogMaker::new(Timestamp::from_micros(1_700_000_000_000_000));
        let create = json!({
            "type": "create", "signingKey": key(2), "recoveryKey": key(1), "handle": "old.test",
            "service": "https://old.test", "prev": null,
        });
        maker.push(create, 1);
        let draft = Draft::after(&log(&maker)).expect("follows");
        assert_eq!(draft.rotation_keys(), [key(1), key(2)]);
        let signed = draft
            .with_signing_key(&secret(9).public())
            .sign(&secret(1))
            .expect("signs");
        maker.push_signed(Value::Object(signed.json));
        let state = log(&maker).current().cloned().expect("stands");
        assert_eq!(
            (state.pds.as_deref(), state.handle.as_deref()),
            (Some("https://old.test"), Some("old.test"))
        );
        let tombstone = json!({ "type": "plc_tombstone", "prev": maker.last_cid() });
        maker.push(tombstone, 1);
        assert_eq!(Draft::after(&log(&maker)), Err(OperationError::Tombstone));
    }
}
