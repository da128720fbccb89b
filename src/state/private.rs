//! What a PDS keeps of one account and tells nobody: its signing key and its preferences.

use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

use super::StateError;
use crate::types::Did;
use crate::types::cid::sha256;

/// The format that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;
/// Bytes of a signing key.
const KEY_BYTES: usize = 32;

/// What is private of an account.
#[derive(PartialEq, Eq)]
pub struct Private {
    /// Whose.
    pub did: Did,
    /// The file with its signing key, as it is.
    pub key: Option<Zeroizing<Vec<u8>>>,
    /// Its preferences: name and JSON, in the order of the PDS.
    pub preferences: Vec<(String, String)>,
}

impl std::fmt::Debug for Private {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Private")
            .field("did", &self.did)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Wire {
    format: u32,
    did: String,
    key: Option<String>,
    preferences: Vec<(String, String)>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Private {
    /// As it is encrypted.
    ///
    /// # Errors
    /// Never, in practice.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, StateError> {
        let wire = Wire {
            format: FORMAT,
            did: self.did.to_string(),
            key: self.key.as_ref().map(|key| BASE64.encode(key)),
            preferences: self.preferences.clone(),
        };
        serde_json::to_vec(&wire)
            .map(Zeroizing::new)
            .map_err(StateError::new)
    }

    /// Reads it, of this account.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8], did: &Did) -> Result<Self, StateError> {
        // Where it is wrong, not what stands there.
        let wire: Wire = serde_json::from_slice(bytes)
            .map_err(|error| StateError(format!("it is malformed at column {}", error.column())))?;
        if wire.format > FORMAT {
            return Err(StateError(format!(
                "it has format {}, and this version knows format {FORMAT}; use a newer version",
                wire.format
            )));
        }
        if wire.did != did.as_str() {
            return Err(StateError::new("it is of another account than its name says"));
        }
        let key = wire.key.as_ref().map(|key| BASE64.decode(key.as_bytes()));
        let key = key
            .transpose()
            .map_err(|_| StateError::new("its key is malformed"))?
            .map(Zeroizing::new);
        if key.as_ref().is_some_and(|key| key.len() != KEY_BYTES) {
            return Err(StateError::new("its key has a wrong length"));
        }
        let broken = |(_, json): &&(String, String)| serde_json::from_str::<Value>(json).is_err();
        if wire.preferences.iter().any(|preference| broken(&preference)) {
            return Err(StateError::new("a preference is no JSON"));
        }
        Ok(Self {
            did: did.clone(),
            key,
            preferences: wire.preferences.clone(),
        })
    }
}

/// The folder below `actors` in which a PDS keeps an account.
#[must_use]
pub fn shard(did: &Did) -> String {
    HEXLOWER.encode(&sha256(did.as_str().as_bytes())[..1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_read_again_and_only_as_what_it_is() {
        let did: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("a DID");
        let private = Private {
            did: did.clone(),
            key: Some(Zeroizing::new(vec![7; 32])),
            preferences: vec![("app.bsky.actor.defs#adultContentPref".into(), "{\"a\":1}".into())],
        };
        let bytes = private.encode().expect("encodes");
        assert_eq!(Private::decode(&bytes, &did), Ok(private));
        let other = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa".parse().expect("a DID");
        assert!(Private::decode(&bytes, &other).is_err());
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        for (from, to) in [
            ("\"format\":1", "\"format\":2"),
            ("{\\\"a\\\":1}", "{"),
            ("BwcH", "Bwc!"),
            ("BwcH", ""),
        ] {
            let error = Private::decode(text.replacen(from, to, 1).as_bytes(), &did).expect_err(from);
            assert!(!error.to_string().contains("Bwc"), "{error}");
        }
    }
}
