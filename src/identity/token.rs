//! Tokens with which a caller proves who it is: a JWT for one method of one service, good for a minute and once.
//!
//! Two keys may sign one. The account's signing key, which its PDS holds: the inter-service token of AT Protocol.
//! Or, when the PDS is dead, one of the account's rotation keys: the same token, whose header names the key as a
//! `did:key` in `kid`. Here a token is only read and checked by itself; whether the key is the account's, and what it
//! may, is for the caller to find out.
//!
//! Source: <https://atproto.com/specs/xrpc#inter-service-authentication-jwt>.

use std::collections::{BTreeSet, HashMap};

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::repo::signing_key::{Curve, SignatureError, SigningKey};
use crate::types::cid::sha256;
use crate::types::{Did, Digest, Timestamp};

/// Longest token, in bytes. Those of a PDS take 400.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// A token that is good for longer than this many seconds from now is refused.
pub const AHEAD_MAX: u64 = 60;
/// So many seconds may the caller's clock be ahead of ours.
const SKEW: u64 = 5;
/// Longest `jti`, in bytes.
const JTI_BYTES_MAX: usize = 256;
/// The service of our DID that a PDS passes requests on to.
pub const SERVICE_FRAGMENT: &str = "#repo_backup";

/// A token that was read; nothing of it is proven yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    issuer: Did,
    curve: Curve,
    kid: Option<String>,
    audience: String,
    method: Option<String>,
    expires: u64,
    issued: Option<u64>,
    unique: Option<String>,
    signed: String,
    sig: [u8; 64],
}

/// Why a token does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a signed JWT as AT Protocol has them.
    #[error("it is no signed JWT: {0}")]
    Malformed(&'static str),
    /// Its `alg` is neither `ES256K` nor `ES256`.
    #[error("alg must be ES256K or ES256")]
    Algorithm,
    /// It is of another kind, such as a session's.
    #[error("it is a token of another kind, not one between services")]
    Kind,
    /// Its `iss` is no account's DID.
    #[error("iss must be the account's DID")]
    Issuer,
    /// It is for another service.
    #[error("aud is not this service")]
    Audience,
    /// It is for another method.
    #[error("lxm is not this method")]
    Method,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// It would be good for too long.
    #[error("exp must be at most 60 seconds ahead")]
    TooLong,
    /// It has no `jti`, so that it could be used again.
    #[error("jti is missing")]
    NoJti,
    /// It was made before this server started, and may have been used then.
    #[error("it was made before this server started; make a new one")]
    BeforeStart,
    /// It was used before.
    #[error("it was used before")]
    Replayed,
    /// More tokens than are remembered.
    #[error("too many tokens at once; try again in a minute")]
    TooMany,
    /// Another curve's key than `alg` says.
    #[error("alg does not fit the key")]
    OtherCurve,
    /// The signature does not count.
    #[error("{0}")]
    Signature(SignatureError),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    crit: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    exp: u64,
    iat: Option<u64>,
    lxm: Option<String>,
    jti: Option<String>,
}

impl Token {
    /// Reads a token, and checks nothing but its form.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed("it is too long"));
        }
        let mut parts = text.split('.');
        let (Some(header), Some(claims), Some(sig), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed("it has not three parts"));
        };
        let Header { alg, typ, kid, crit } = read(header)?;
        let curve = match alg.as_str() {
            "ES256K" => Curve::K256,
            "ES256" => Curve::P256,
            _ => return Err(TokenError::Algorithm),
        };
        // A session's or a client's token would name its own kind.
        if crit.is_some() || typ.is_some_and(|typ| !typ.eq_ignore_ascii_case("jwt")) {
            return Err(TokenError::Kind);
        }
        let Claims {
            iss,
            aud,
            exp,
            iat,
            lxm,
            jti,
        } = read(claims)?;
        let sig = decode(sig)?;
        Ok(Self {
            issuer: iss.parse().map_err(|_| TokenError::Issuer)?,
            curve,
            kid: kid.filter(|kid| kid.starts_with("did:key:")),
            audience: aud,
            method: lxm,
            expires: exp,
            issued: iat,
            unique: jti.filter(|jti| !jti.is_empty() && jti.len() <= JTI_BYTES_MAX),
            signed: text[..header.len() + 1 + claims.len()].to_owned(),
            sig: sig
                .try_into()
                .map_err(|_| TokenError::Malformed("its signature is not 64 bytes"))?,
        })
    }

    /// The account that it speaks for, if its signature holds.
    #[must_use]
    pub const fn issuer(&self) -> &Did {
        &self.issuer
    }

    /// The rotation key that it says to be signed with, as `did:key`; none: the account's signing key.
    #[must_use]
    pub fn rotation_key(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Whether it is meant for this service at all. Tools send the tokens of a PDS along; those are not.
    #[must_use]
    pub fn is_for(&self, service: &str) -> bool {
        self.audience
            .strip_prefix(service)
            .is_some_and(|rest| rest.is_empty() || rest == SERVICE_FRAGMENT)
    }

    /// Checks what it says: for whom, for which method, and for how long.
    ///
    /// # Errors
    /// The first claim that is not as it must be.
    pub fn check(&self, service: &str, method: &str, now: Timestamp) -> Result<(), TokenError> {
        let now = now.millis() / 1000;
        if !self.is_for(service) {
            return Err(TokenError::Audience);
        }
        if self.method.as_deref() != Some(method) {
            return Err(TokenError::Method);
        }
        if self.expires <= now {
            return Err(TokenError::Expired);
        }
        if self.expires > now.saturating_add(AHEAD_MAX + SKEW) {
            return Err(TokenError::TooLong);
        }
        self.unique.as_ref().map(|_| ()).ok_or(TokenError::NoJti)
    }

    /// Checks its signature.
    ///
    /// # Errors
    /// When it is not this key's, is in high-S form, or `alg` names another curve.
    pub fn verify(&self, key: &SigningKey) -> Result<(), TokenError> {
        if key.curve() != self.curve {
            return Err(TokenError::OtherCurve);
        }
        key.verify(self.signed.as_bytes(), &self.sig)
            .map_err(TokenError::Signature)
    }
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    let bytes = BASE64URL_NOPAD.decode(part.as_bytes());
    bytes.map_err(|_| TokenError::Malformed("it is not in strict unpadded base64url"))
}

fn read<T: DeserializeOwned>(part: &str) -> Result<T, TokenError> {
    serde_json::from_slice(&decode(part)?)
        .map_err(|_| TokenError::Malformed("a claim is missing or malformed"))
}

/// The tokens that were used, until they expire: none counts twice.
#[derive(Debug)]
pub struct UsedTokens {
    /// Whose each is.
    seen: HashMap<Digest, Did>,
    by_expiry: BTreeSet<(u64, Digest)>,
    by_issuer: HashMap<Did, usize>,
    /// What was used before this is not known.
    since: u64,
    max: usize,
    max_of_one: usize,
}

impl UsedTokens {
    /// Remembers at most `max` tokens, and of one issuer at most `max_of_one`. What was used before `since` is not
    /// known.
    #[must_use]
    pub fn new(since: Timestamp, max: usize, max_of_one: usize) -> Self {
        Self {
            seen: HashMap::new(),
            by_expiry: BTreeSet::new(),
            by_issuer: HashMap::new(),
            since: since.millis() / 1000,
            max,
            max_of_one,
        }
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Uses a token whose signature holds.
    ///
    /// # Errors
    /// When it was used before, or may have been, or when too many are remembered.
    pub fn admit(&mut self, token: &Token, now: Timestamp) -> Result<(), TokenError> {
        let now = now.millis() / 1000;
        // It may have waited here: what is forgotten below must not come in again.
        if token.expires <= now {
            return Err(TokenError::Expired);
        }
        while let Some(&(expires, id)) = self.by_expiry.first().filter(|(expires, _)| *expires <= now) {
            self.by_expiry.remove(&(expires, id));
            if let Some(issuer) = self.seen.remove(&id)
                && let Some(count) = self.by_issuer.get_mut(&issuer)
            {
                *count -= 1;
                if *count == 0 {
                    self.by_issuer.remove(&issuer);
                }
            }
        }
        let jti = token.unique.as_deref().ok_or(TokenError::NoJti)?;
        let made = token
            .issued
            .unwrap_or_else(|| token.expires.saturating_sub(AHEAD_MAX + SKEW));
        if made < self.since {
            return Err(TokenError::BeforeStart);
        }
        let id = sha256(format!("{}\n{jti}", token.issuer).as_bytes());
        if self.seen.contains_key(&id) {
            return Err(TokenError::Replayed);
        }
        let of_one = self.by_issuer.get(&token.issuer).copied().unwrap_or(0);
        if self.seen.len() >= self.max || of_one >= self.max_of_one {
            return Err(TokenError::TooMany);
        }
        self.by_expiry.insert((token.expires, id));
        self.by_issuer.insert(token.issuer.clone(), of_one + 1);
        self.seen.insert(id, token.issuer.clone());
        Ok(())
    }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
