//! Signing keys of accounts: K-256 through libsecp256k1, P-256 through AWS-LC.
//!
//! A signature is r and s, 32 bytes each, over the SHA-256 of the message. AT Protocol demands the low of
//! the two equivalent values of s. libsecp256k1 refuses the high one itself, AWS-LC takes both, so both
//! are compared with half the group order here.
//!
//! Sources: <https://atproto.com/specs/cryptography>, <https://atproto.com/specs/did>.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, ParsedPublicKey,
};
use secp256k1::{Message, ecdsa};
use zeroize::Zeroizing;

use crate::types::cid::sha256;

/// Longest multibase text of a public key, in characters; 65 bytes take 90.
const MULTIBASE_CHARS_MAX: usize = 128;

/// Half the order of the K-256 group, rounded down: the largest s.
const K256_HALF_ORDER: [u8; 32] = [
    0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x5d,
    0x57, 0x6e, 0x73, 0x57, 0xa4, 0x50, 0x1d, 0xdf, 0xe9, 0x2f, 0x46, 0x68, 0x1b, 0x20, 0xa0,
];

/// The order of the P-256 group.
const P256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
    0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// Half of it, rounded down: the largest s.
const P256_HALF_ORDER: [u8; 32] = [
    0x7f, 0xff, 0xff, 0xff, 0x80, 0x00, 0x00, 0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xde,
    0x73, 0x7d, 0x56, 0xd3, 0x8b, 0xcf, 0x42, 0x79, 0xdc, 0xe5, 0x61, 0x7e, 0x31, 0x92, 0xa8,
];

/// The curve of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// secp256k1, what hosts use by default.
    K256,
    /// NIST P-256, also called secp256r1.
    P256,
}

impl Curve {
    /// The multicodec of a compressed public key, as a varint.
    const fn multicodec(self) -> [u8; 2] {
        match self {
            Self::K256 => [0xe7, 0x01],
            Self::P256 => [0x80, 0x24],
        }
    }
}

/// Why a text is not a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A did:key must begin with `did:key:`.
    #[error("not a did:key")]
    NotDidKey,
    /// Not multibase base58btc (`z…`), or longer than any key.
    #[error("the key is not base58btc multibase")]
    Multibase,
    /// A multicodec that is neither K-256 nor P-256.
    #[error("the key is for neither K-256 nor P-256")]
    UnknownCurve,
    /// A verification method type that AT Protocol does not use.
    #[error("the verification method type is not supported")]
    UnknownType,
    /// The bytes are no point of the curve in the form that is asked for.
    #[error("the key is not a point of its curve")]
    Point,
    /// A secret key that is zero or not below the group order.
    #[error("the secret key is out of range")]
    SecretRange,
}

/// Why a signature does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// s is above half the group order. AT Protocol forbids it, for anybody could make this second
    /// signature out of the first.
    #[error("the signature is in its high-S form")]
    HighS,
    /// It is not this key's signature of this message.
    #[error("the signature does not fit the key")]
    Mismatch,
}

/// A public key that accounts sign with. Cheap to clone.
#[derive(Clone)]
pub struct SigningKey(Key);

#[derive(Clone)]
enum Key {
    K256(secp256k1::PublicKey),
    P256(Arc<P256Key>),
}

struct P256Key {
    compressed: [u8; 33],
    parsed: ParsedPublicKey,
}

impl SigningKey {
    /// Parses `did:key:z…`.
    ///
    /// # Errors
    /// When it is not a did:key of a supported curve.
    pub fn from_did_key(text: &str) -> Result<Self, KeyError> {
        Self::from_multikey(text.strip_prefix("did:key:").ok_or(KeyError::NotDidKey)?)
    }

    /// Parses the `publicKeyMultibase` of a verification method of type `Multikey`: a multicodec, then the
    /// compressed point.
    ///
    /// # Errors
    /// When it is not such a text, or for another curve.
    pub fn from_multikey(text: &str) -> Result<Self, KeyError> {
        let bytes = decode_base58(text)?;
        let (codec, point) = bytes.split_first_chunk().ok_or(KeyError::UnknownCurve)?;
        let curve = [Curve::K256, Curve::P256]
            .into_iter()
            .find(|curve| curve.multicodec() == *codec)
            .ok_or(KeyError::UnknownCurve)?;
        if point.len() != 33 {
            return Err(KeyError::Point);
        }
        Self::from_point(curve, point)
    }

    /// Parses a verification method by its type: `Multikey`, or one of the two older suites
    /// `EcdsaSecp256k1VerificationKey2019` and `EcdsaSecp256r1VerificationKey2019`, whose
    /// `publicKeyMultibase` is the point alone, compressed or not.
    ///
    /// # Errors
    /// When the type is another, or the key is malformed.
    pub fn from_legacy(method_type: &str, public_key_multibase: &str) -> Result<Self, KeyError> {
        let curve = match method_type {
            "EcdsaSecp256k1VerificationKey2019" => Curve::K256,
            "EcdsaSecp256r1VerificationKey2019" => Curve::P256,
            "Multikey" => return Self::from_multikey(public_key_multibase),
            _ => return Err(KeyError::UnknownType),
        };
        Self::from_point(curve, &decode_base58(public_key_multibase)?)
    }

    /// From a point in SEC 1 form: compressed (33 bytes) or uncompressed (65 bytes).
    fn from_point(curve: Curve, point: &[u8]) -> Result<Self, KeyError> {
        let compressed: [u8; 33] = match *point {
            [0x02 | 0x03, ref x @ ..] if x.len() == 32 => {
                point.try_into().expect("33 bytes, as just matched")
            }
            // The parity of y is in its last bit, so the last byte of the point.
            [0x04, ref xy @ .., y_last] if xy.len() == 63 => {
                let mut compressed = [0x02 | (y_last & 1); 33];
                compressed[1..].copy_from_slice(&xy[..32]);
                compressed
            }
            _ => return Err(KeyError::Point),
        };
        // The point is parsed as it came, so that a wrong y is refused.
        Ok(Self(match curve {
            Curve::K256 => Key::K256(secp256k1::PublicKey::from_slice(point).map_err(|_| KeyError::Point)?),
            Curve::P256 => {
                let parsed =
                    ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).map_err(|_| KeyError::Point)?;
                Key::P256(Arc::new(P256Key { compressed, parsed }))
            }
        }))
    }

    /// The curve.
    #[must_use]
    pub const fn curve(&self) -> Curve {
        match self.0 {
            Key::K256(_) => Curve::K256,
            Key::P256(_) => Curve::P256,
        }
    }

    fn compressed(&self) -> [u8; 33] {
        match &self.0 {
            Key::K256(key) => key.serialize(),
            Key::P256(key) => key.compressed,
        }
    }

    /// The key as `did:key:z…`.
    #[must_use]
    pub fn to_did_key(&self) -> String {
        format!("did:key:{}", self.to_multikey())
    }

    /// The key as `z…`, the `publicKeyMultibase` of type `Multikey`.
    #[must_use]
    pub fn to_multikey(&self) -> String {
        let mut bytes = self.curve().multicodec().to_vec();
        bytes.extend(self.compressed());
        multibase::encode(multibase::Base::Base58Btc, bytes)
    }

    /// Checks a signature of a message; hashes the message itself.
    ///
    /// # Errors
    /// [`SignatureError::HighS`] when s is above half the order, else [`SignatureError::Mismatch`].
    pub fn verify(&self, message: &[u8], sig: &[u8; 64]) -> Result<(), SignatureError> {
        let half_order = match self.curve() {
            Curve::K256 => &K256_HALF_ORDER,
            Curve::P256 => &P256_HALF_ORDER,
        };
        if sig[32..] > half_order[..] {
            return Err(SignatureError::HighS);
        }
        let fits = match &self.0 {
            Key::K256(key) => ecdsa::Signature::from_compact(sig)
                .and_then(|sig| ecdsa::verify(&sig, Message::from_digest(sha256(message)), key))
                .is_ok(),
            Key::P256(key) => key.parsed.verify_sig(message, sig).is_ok(),
        };
        if fits {
            Ok(())
        } else {
            Err(SignatureError::Mismatch)
        }
    }
}

impl PartialEq for SigningKey {
    fn eq(&self, other: &Self) -> bool {
        self.curve() == other.curve() && self.compressed() == other.compressed()
    }
}

impl Eq for SigningKey {}

impl fmt::Display for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_did_key())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn decode_base58(text: &str) -> Result<Vec<u8>, KeyError> {
    // Decoding takes quadratic time, so the length is checked first.
    if text.len() > MULTIBASE_CHARS_MAX {
        return Err(KeyError::Multibase);
    }
    match multibase::decode(text) {
        Ok((multibase::Base::Base58Btc, bytes)) => Ok(bytes),
        _ => Err(KeyError::Multibase),
    }
}

/// A secret key, for restores, tests and simulated hosts. Its memory is overwritten when it goes.
///
/// K-256 signatures are deterministic (RFC 6979); P-256 signatures are not, for AWS-LC draws its own nonce.
pub struct SecretKey(Secret);

enum Secret {
    K256(secp256k1::SecretKey),
    /// AWS-LC overwrites its own.
    P256(EcdsaKeyPair),
}

impl Drop for Secret {
    fn drop(&mut self) {
        if let Self::K256(key) = self {
            key.non_secure_erase();
        }
    }
}

impl SecretKey {
    /// From the 32 bytes of the scalar.
    ///
    /// # Errors
    /// [`KeyError::SecretRange`] when it is zero or not below the group order.
    pub fn from_bytes(curve: Curve, bytes: &[u8; 32]) -> Result<Self, KeyError> {
        Ok(Self(match curve {
            Curve::K256 => Secret::K256(
                secp256k1::SecretKey::from_secret_bytes(*bytes).map_err(|_| KeyError::SecretRange)?,
            ),
            Curve::P256 => Secret::P256(
                EcdsaKeyPair::from_private_key_der(
                    &ECDSA_P256_SHA256_FIXED_SIGNING,
                    &p256_private_key_der(bytes),
                )
                .map_err(|_| KeyError::SecretRange)?,
            ),
        }))
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> SigningKey {
        match &self.0 {
            Secret::K256(key) => SigningKey(Key::K256(secp256k1::PublicKey::from_secret_key(key))),
            Secret::P256(key) => SigningKey::from_point(Curve::P256, key.public_key().as_ref())
                .expect("a key pair's public half is a point of its curve"),
        }
    }

    /// Signs a message in the low-S form; hashes the message itself.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        match &self.0 {
            Secret::K256(key) => ecdsa::sign(Message::from_digest(sha256(message)), key).serialize_compact(),
            Secret::P256(key) => {
                let sig = key
                    .sign(&SystemRandom::new(), message)
                    .expect("signing refuses no message");
                let mut sig: [u8; 64] = sig.as_ref().try_into().expect("fixed form is 64 bytes");
                if sig[32..] > P256_HALF_ORDER[..] {
                    negate_p256(sig.last_chunk_mut().expect("64 bytes"));
                }
                sig
            }
        }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

/// `order - s`, for an s below the order.
fn negate_p256(s: &mut [u8; 32]) {
    let mut borrow = 0;
    for (digit, order) in s.iter_mut().zip(P256_ORDER).rev() {
        let difference = i16::from(order) - i16::from(*digit) - borrow;
        borrow = i16::from(difference < 0);
        *digit = difference.rem_euclid(256) as u8;
    }
}

/// The `ECPrivateKey` of RFC 5915 for a P-256 scalar, without its public half.
fn p256_private_key_der(scalar: &[u8; 32]) -> Zeroizing<Vec<u8>> {
    const BEFORE: [u8; 7] = [0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
    const CURVE: [u8; 12] = [
        0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ];
    Zeroizing::new([&BEFORE[..], scalar, &CURVE].concat())
}
