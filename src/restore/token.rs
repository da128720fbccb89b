//! The token with which an account proves to a service that it agrees: a JWT that its signing key signs.
//!
//! Source: <https://atproto.com/specs/xrpc#inter-service-authentication-jwt>.

use data_encoding::BASE64URL_NOPAD;
use serde_json::json;
use zeroize::Zeroizing;

use crate::repo::signing_key::{Curve, SecretKey};
use crate::types::{Did, Timestamp};

/// For so long is a token good, in seconds.
const SECONDS: u64 = 60;

/// A token for one method of one service. `unique` is never used again.
#[must_use]
pub fn service_token(
    key: &SecretKey,
    did: &Did,
    service: &str,
    method: &str,
    now: Timestamp,
    unique: u64,
) -> Zeroizing<String> {
    let alg = match key.public().curve() {
        Curve::K256 => "ES256K",
        Curve::P256 => "ES256",
    };
    let now = now.millis() / 1000;
    let header = json!({ "typ": "JWT", "alg": alg });
    let claims = json!({
        "iss": did.as_str(),
        "aud": service,
        "lxm": method,
        "iat": now,
        "exp": now + SECONDS,
        "jti": format!("{unique:016x}"),
    });
    let part = |value: &serde_json::Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", part(&header), part(&claims));
    let sig = BASE64URL_NOPAD.encode(&key.sign(signed.as_bytes()));
    Zeroizing::new(format!("{signed}.{sig}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_verify_and_say_what_they_are_for() {
        for (curve, alg) in [(Curve::K256, "ES256K"), (Curve::P256, "ES256")] {
            let key = SecretKey::from_bytes(curve, &[9; 32]).expect("in range");
            let did: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("a DID");
            let now = Timestamp::from_micros(1_700_000_000_000_000);
            let token = service_token(&key, &did, "did:web:pds.test", "a.b.c", now, 5);
            let parts: Vec<&str> = token.split('.').collect();
            let [header, claims, sig] = parts[..] else {
                panic!("{}", *token)
            };
            let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).expect("base64url");
            let sig: [u8; 64] = decode(sig).try_into().expect("64 bytes");
            let signed = format!("{header}.{claims}");
            assert_eq!(key.public().verify(signed.as_bytes(), &sig), Ok(()));
            let read = |part| -> serde_json::Value { serde_json::from_slice(&decode(part)).expect("JSON") };
            assert_eq!(read(header)["alg"], alg);
            let claims = read(claims);
            assert_eq!(claims["iss"], did.as_str());
            assert_eq!(claims["aud"], "did:web:pds.test");
            assert_eq!(claims["lxm"], "a.b.c");
            assert_eq!(claims["exp"], 1_700_000_060);
        }
    }
}
