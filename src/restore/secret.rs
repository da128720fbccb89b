//! Secret keys of users: read from a text, shown as one, and what is derived from them.
//!
//! A text is 64 hexadecimal digits, which say nothing of the curve, or a multikey (`z…`, base58btc), which does.
//! Whatever held the secret is overwritten when it goes.

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER_PERMISSIVE;
use zeroize::{Zeroize as _, Zeroizing};

use crate::repo::signing_key::{Curve, KeyError, SecretKey, SigningKey};
use crate::types::Did;

/// Longest text of a key, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;

/// The multicodecs of secret keys, as varints.
const CODECS: [(Curve, [u8; 2]); 2] = [(Curve::K256, [0x81, 0x26]), (Curve::P256, [0x86, 0x26])];

/// Why a text is no secret key. Never holds any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Neither form.
    #[error("not a secret key: it must be 64 hexadecimal digits or a multikey that begins with z")]
    Form,
    /// A public key.
    #[error("this is a public key; the secret key is needed")]
    Public,
    /// A multikey of another kind.
    #[error("this multikey is no secret key of K-256 or P-256")]
    Codec,
    /// The number is none of its curve.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A secret key as it was read, of one curve or, from hexadecimal digits, of either.
pub struct UserSecret {
    bytes: Zeroizing<[u8; 32]>,
    curve: Option<Curve>,
}

impl std::fmt::Debug for UserSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UserSecret(…)")
    }
}

impl UserSecret {
    /// Reads a key: what stands in its file, less spaces and line breaks around it.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        if text.starts_with("did:key:") {
            return Err(SecretError::Public);
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(SecretError::Form);
        }
        let read = if text.starts_with('z') {
            let (_, bytes) = multibase::decode(text).map_err(|_| SecretError::Form)?;
            let bytes = Zeroizing::new(bytes);
            let (codec, rest) = bytes.split_first_chunk::<2>().ok_or(SecretError::Form)?;
            if [[0xe7, 0x01], [0x80, 0x24]].contains(codec) {
                return Err(SecretError::Public);
            }
            let curve = CODECS.iter().find(|(_, known)| known == codec);
            let (curve, _) = curve.ok_or(SecretError::Codec)?;
            Self {
                bytes: Zeroizing::new(rest.try_into().map_err(|_| SecretError::Form)?),
                curve: Some(*curve),
            }
        } else {
            let digits = HEXLOWER_PERMISSIVE.decode(text.as_bytes());
            let digits = Zeroizing::new(digits.map_err(|_| SecretError::Form)?);
            Self {
                bytes: Zeroizing::new(digits.as_slice().try_into().map_err(|_| SecretError::Form)?),
                curve: None,
            }
        };
        if read.keys().is_empty() {
            return Err(SecretError::Key(KeyError::SecretRange));
        }
        Ok(read)
    }

    /// A new key of these bytes, which must come from a good source of randomness.
    ///
    /// # Errors
    /// When they are no key of the curve, which happens to none in practice.
    pub fn from_random(curve: Curve, bytes: Zeroizing<[u8; 32]>) -> Result<Self, SecretError> {
        SecretKey::from_bytes(curve, &bytes)?;
        let curve = Some(curve);
        Ok(Self { bytes, curve })
    }

    /// The key, of each curve that it may be of.
    #[must_use]
    pub fn keys(&self) -> Vec<SecretKey> {
        let curves = match self.curve {
            Some(curve) => vec![curve],
            None => vec![Curve::K256, Curve::P256],
        };
        let key = |curve| SecretKey::from_bytes(curve, &self.bytes).ok();
        curves.into_iter().filter_map(key).collect()
    }

    /// The key whose public half is one of these.
    #[must_use]
    pub fn key_among(&self, publics: &[SigningKey]) -> Option<SecretKey> {
        self.keys()
            .into_iter()
            .find(|key| publics.contains(&key.public()))
    }

    /// Its text: a multikey. Of one of unknown curve, that of K-256.
    #[must_use]
    pub fn to_multikey(&self) -> Zeroizing<String> {
        let curve = self.curve.unwrap_or(Curve::K256);
        let (_, codec) = CODECS
            .iter()
            .find(|(known, _)| *known == curve)
            .expect("both are listed");
        let mut bytes = Zeroizing::new(codec.to_vec());
        bytes.extend_from_slice(&*self.bytes);
        Zeroizing::new(multibase::encode(multibase::Base::Base58Btc, &*bytes))
    }

    /// The temporary signing key with which this restore proves that it speaks for the account. It is always the
    /// same for the same account and PDS, so that it need not be kept anywhere; of the key that it comes from it
    /// tells nothing.
    #[must_use]
    pub fn temporary_key(&self, did: &Did, pds: &str) -> SecretKey {
        let mac = hmac::Key::new(hmac::HMAC_SHA256, &*self.bytes);
        let mut number = 0u8;
        loop {
            let text = format!("firekeep: temporary signing key {number}\0{did}\0{pds}");
            let tag = hmac::sign(&mac, text.as_bytes());
            let mut bytes: [u8; 32] = tag.as_ref().try_into().expect("SHA-256 has 32 bytes");
            let key = SecretKey::from_bytes(Curve::K256, &bytes);
            bytes.zeroize();
            if let Ok(key) = key {
                return key;
            }
            number += 1; // one in 2^128
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_and_both_curves_are_read() {
        for (curve, other) in [(Curve::K256, Curve::P256), (Curve::P256, Curve::K256)] {
            let secret = UserSecret::from_random(curve, Zeroizing::new([7; 32])).expect("in range");
            let again = UserSecret::parse(&format!(" {}\n", *secret.to_multikey())).expect("reads");
            let public = SecretKey::from_bytes(curve, &[7; 32]).expect("in range").public();
            assert_eq!(again.keys().len(), 1);
            assert_eq!(again.keys()[0].public(), public);
            let foreign = SecretKey::from_bytes(other, &[7; 32]).expect("in range").public();
            assert!(again.key_among(std::slice::from_ref(&foreign)).is_none());
            // Digits may be of either curve: the list of keys decides.
            let digits = UserSecret::parse(&"07".repeat(32)).expect("reads");
            for key in [public, foreign] {
                assert_eq!(
                    digits
                        .key_among(std::slice::from_ref(&key))
                        .expect("is it")
                        .public(),
                    key
                );
            }
        }
    }

    #[test]
    fn a_known_multikey() {
        // What `goat key generate` prints: the codec of secp256k1-priv, then the number.
        let mut bytes = vec![0x81, 0x26];
        bytes.extend([1; 32]);
        let text = multibase::encode(multibase::Base::Base58Btc, bytes);
        assert!(text.starts_with("z3vL"), "{text}");
        assert!(UserSecret::parse(&text).is_ok());
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let public = SecretKey::from_bytes(Curve::K256, &[7; 32])
            .expect("in range")
            .public();
        for (text, error) in [
            (String::new(), SecretError::Form),
            ("z0".to_owned(), SecretError::Form),
            ("07".repeat(31), SecretError::Form),
            ("7".repeat(300), SecretError::Form),
            ("00".repeat(32), SecretError::Key(KeyError::SecretRange)),
            ("ff".repeat(32), SecretError::Key(KeyError::SecretRange)),
            (public.to_did_key(), SecretError::Public),
            (public.to_multikey(), SecretError::Public),
            (
                multibase::encode(multibase::Base::Base58Btc, [0xed, 0x01, 1]),
                SecretError::Codec,
            ),
        ] {
            assert_eq!(UserSecret::parse(&text).err(), Some(error), "{text}");
        }
        let secret = UserSecret::parse(&"07".repeat(32)).expect("reads");
        assert!(!format!("{secret:?}").contains("07"));
    }

    #[test]
    fn the_temporary_key_is_the_accounts_own() {
        let secret = |byte: &str| UserSecret::parse(&byte.repeat(32)).expect("reads");
        let did = |text: &str| text.parse::<Did>().expect("a DID");
        let key = |byte, did_text, pds| secret(byte).temporary_key(&did(did_text), pds).public();
        let one = key("07", "did:plc:a", "did:web:x");
        assert_eq!(one, key("07", "did:plc:a", "did:web:x"));
        assert_ne!(one, key("08", "did:plc:a", "did:web:x"));
        assert_ne!(one, key("07", "did:plc:b", "did:web:x"));
        assert_ne!(one, key("07", "did:plc:a", "did:web:y"));
    }
}
