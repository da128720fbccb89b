//! Tokens of callers: as text, and as the parts of one, so that what stands behind the base64 is reached too.
#![no_main]

use data_encoding::BASE64URL_NOPAD;
use firekeep::identity::token::{Token, TokenError, UsedTokens};
use firekeep::repo::signing_key::{Curve, SecretKey};
use firekeep::types::Timestamp;
use libfuzzer_sys::fuzz_target;

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
const SERVICE: &str = "did:web:backup.example.com";
const METHOD: &str = "dev.firekeep.backup.signUp";

fn look(text: &str) {
    let Ok(token) = Token::parse(text) else { return };
    assert!(text.len() <= firekeep::identity::token::TOKEN_BYTES_MAX);
    // Nobody has this key, so nothing is signed with it.
    for curve in [Curve::K256, Curve::P256] {
        let key = SecretKey::from_bytes(curve, &[42; 32]).expect("in range").public();
        assert!(token.verify(&key).is_err());
    }
    if token.check(SERVICE, METHOD, NOW).is_ok() {
        assert!(token.is_for(SERVICE));
        let mut used = UsedTokens::new(Timestamp::default(), 10, 10);
        assert_eq!(used.admit(&token, NOW), Ok(()));
        assert_eq!(used.admit(&token, NOW), Err(TokenError::Replayed));
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        look(text);
    }
    let parts: Vec<String> = bytes.split(|byte| *byte == 0).map(|part| BASE64URL_NOPAD.encode(part)).collect();
    look(&parts.join("."));
});
