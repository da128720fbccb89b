//! `v1/identity/<did>/<time>.json`: who an account was at a time, as its directory said it.
//!
//! Holds the DID document and, for a `did:plc`, the audit log with every operation, as they were fetched: from
//! these alone it can be told, years later and with no directory to ask, which keys could sign its commits. The log
//! proves itself; a document is as good as the moment in which it was fetched.

use serde_json::{Map, Value};

use super::names::IdentityName;
use super::sealed::{self, Seal};
use crate::identity::document::{DOCUMENT_BYTES_MAX, Identity};
use crate::identity::plc_log::{LOG_BYTES_MAX, PlcLog, PlcLogError};
use crate::repo::signing_key::SigningKey;
use crate::types::{Did, DidMethod, Timestamp};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u64 = 1;
/// Longest file, in bytes: both parts with their indents.
pub const IDENTITY_BYTES_MAX: usize = 4 * (DOCUMENT_BYTES_MAX + LOG_BYTES_MAX) as usize;

/// What the file says.
#[derive(Debug, Clone, PartialEq)]
pub struct IdentityFile {
    /// Whose.
    pub did: Did,
    /// When it was read; to the millisecond.
    pub time: Timestamp,
    /// The DID document, as it came.
    pub document: Option<Value>,
    /// The audit log, as it came.
    pub plc_log: Option<Value>,
}

/// Why a file is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityFileError {
    /// Its bytes changed.
    #[error("its own checksum does not fit its bytes")]
    Seal,
    /// Not JSON, or a field is missing or malformed.
    #[error("it is malformed: {0}")]
    Malformed(&'static str),
    /// A newer version wrote it.
    #[error("it has format {0}, and this version knows format {FORMAT}; use a newer version")]
    TooNew(u64),
    /// It is of another DID or time than its name says.
    #[error("it is of another DID or time than its name says")]
    Misnamed,
    /// The audit log does not prove itself.
    #[error(transparent)]
    Log(#[from] PlcLogError),
}

impl IdentityFile {
    /// The file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let text = |text: String| Value::String(text);
        sealed::seal(Map::from_iter([
            ("format".to_owned(), Value::from(FORMAT)),
            ("did".to_owned(), text(self.did.to_string())),
            ("time".to_owned(), text(self.time.to_string())),
            ("document".to_owned(), self.document.clone().unwrap_or_default()),
            ("plc_log".to_owned(), self.plc_log.clone().unwrap_or_default()),
        ]))
    }

    /// Reads a file, and checks it against its name.
    ///
    /// # Errors
    /// See [`IdentityFileError`].
    pub fn decode(bytes: &[u8], name: &IdentityName) -> Result<Self, IdentityFileError> {
        use IdentityFileError::{Malformed, Misnamed, Seal as Broken, TooNew};
        if sealed::check(bytes) != Seal::Sound {
            return Err(Broken);
        }
        let mut object: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|_| Malformed("not a JSON object"))?;
        match object.get("format").and_then(Value::as_u64) {
            Some(format @ 1..=FORMAT) => format,
            Some(format) => return Err(TooNew(format)),
            None => return Err(Malformed("no format")),
        };
        let text = |key| object.get(key).and_then(Value::as_str);
        let did: Did = text("did")
            .and_then(|text| text.parse().ok())
            .ok_or(Malformed("no DID"))?;
        let time = text("time").and_then(|text| text.parse::<Timestamp>().ok());
        let time = time.ok_or(Malformed("no time"))?;
        if did != *name.did.did() || time.millis() != name.time.millis() {
            return Err(Misnamed);
        }
        let mut part = |key| object.remove(key).filter(|value| !value.is_null());
        Ok(Self {
            did,
            time,
            document: part("document"),
            plc_log: part("plc_log"),
        })
    }

    /// Every key that could sign this account's commits, as far as this file proves or says it: those of the audit
    /// log, which is checked; without one, the document's.
    ///
    /// # Errors
    /// When the audit log does not prove itself.
    pub fn keys(&self) -> Result<Vec<SigningKey>, IdentityFileError> {
        if let (DidMethod::Plc, Some(log)) = (self.did.method(), &self.plc_log) {
            let log = PlcLog::parse(&self.did, log.to_string().as_bytes())?;
            return Ok(log
                .signing_keys()
                .iter()
                .map(|logged| logged.key().clone())
                .collect());
        }
        let Some(document) = &self.document else {
            return Ok(Vec::new());
        };
        let identity = Identity::from_document(&self.did, document.to_string().as_bytes(), true, self.time);
        let identity =
            identity.map_err(|_| IdentityFileError::Malformed("its document is of another DID"))?;
        Ok(identity.key.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::DidFolder;
    use super::*;
    use crate::repo::signing_key::{Curve, SecretKey};

    fn file() -> (IdentityFile, SigningKey) {
        let key = SecretKey::from_bytes(Curve::K256, &[7; 32])
            .expect("in range")
            .public();
        let did: Did = "did:web:example.com".parse().expect("valid");
        let method = serde_json::json!({
            "id": "#atproto",
            "type": "Multikey",
            "controller": did.as_str(),
            "publicKeyMultibase": key.to_multikey(),
        });
        let document = serde_json::json!({ "id": did.as_str(), "verificationMethod": [method] });
        let file = IdentityFile {
            did,
            time: Timestamp::from_micros(1_700_000_000_123_000),
            document: Some(document),
            plc_log: None,
        };
        (file, key)
    }

    fn name(file: &IdentityFile) -> IdentityName {
        IdentityName {
            did: DidFolder::try_from(&file.did).expect("short"),
            time: file.time,
        }
    }

    #[test]
    fn files_round_trip_and_give_the_key() {
        let (file, key) = file();
        let bytes = file.encode();
        assert_eq!(IdentityFile::decode(&bytes, &name(&file)), Ok(file.clone()));
        assert_eq!(file.keys(), Ok(vec![key]));
    }

    #[test]
    fn what_is_wrong_has_a_name() {
        let (file, _) = file();
        let mut bytes = file.encode();
        let mut later = name(&file);
        later.time = Timestamp::from_micros(1_700_000_000_124_000);
        assert_eq!(
            IdentityFile::decode(&bytes, &later),
            Err(IdentityFileError::Misnamed)
        );
        bytes[20] ^= 1;
        assert_eq!(
            IdentityFile::decode(&bytes, &name(&file)),
            Err(IdentityFileError::Seal)
        );
        let newer = sealed::seal(Map::from_iter([("format".to_owned(), Value::from(2))]));
        assert_eq!(
            IdentityFile::decode(&newer, &name(&file)),
            Err(IdentityFileError::TooNew(2))
        );
    }

    #[test]
    fn an_audit_log_gives_its_keys_and_has_to_prove_itself() {
        use crate::identity::plc_log::fixtures::{LogMaker, key};
        let time = Timestamp::from_micros(1_700_000_000_123_000);
        let mut log = LogMaker::new(time);
        log.push(LogMaker::operation(&[1, 2], &key(10), "old.test", None), 1);
        let next = LogMaker::operation(&[1, 2], &key(11), "new.test", Some(&log.last_cid()));
        log.push(next, 1);
        let mut file = IdentityFile {
            did: log.did(),
            time,
            document: None,
            plc_log: Some(Value::Array(log.entries)),
        };
        let keys: Vec<_> = file
            .keys()
            .expect("proves")
            .iter()
            .map(SigningKey::to_did_key)
            .collect();
        assert_eq!(keys, [key(11), key(10)]);
        file.plc_log = Some(serde_json::json!([]));
        assert!(matches!(file.keys(), Err(IdentityFileError::Log(_))));
    }
}
