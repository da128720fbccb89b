//! Every way in which a token may be wrong, one by one, beside the one that is right.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::repo::signing_key::SecretKey;

const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);
const SERVICE: &str = "did:web:backup.test";
const METHOD: &str = "dev.firekeep.backup.requestSnapshot";

fn secret(curve: Curve) -> SecretKey {
    SecretKey::from_bytes(curve, &[9; 32]).expect("in range")
}

fn claims() -> Value {
    json!({
        "iss": "did:plc:ewvi7nxzyoun6zhxrhs64oiz", "aud": SERVICE, "lxm": METHOD,
        "iat": 1_700_000_000, "exp": 1_700_000_060, "jti": "one",
    })
}

fn made(header: &Value, claims: &Value, key: &SecretKey) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", part(header), part(claims));
    let sig = BASE64URL_NOPAD.encode(&key.sign(signed.as_bytes()));
    format!("{signed}.{sig}")
}

fn token(claims: &Value) -> Token {
    let text = made(&json!({"alg": "ES256K"}), claims, &secret(Curve::K256));
    Token::parse(&text).expect("reads")
}

fn with(name: &str, value: Value) -> Token {
    let mut changed = claims();
    changed[name] = value;
    token(&changed)
}

fn check(token: &Token) -> Result<(), TokenError> {
    token.check(SERVICE, METHOD, NOW)
}

#[test]
fn a_good_token_of_either_curve_counts() {
    for (curve, alg) in [(Curve::K256, "ES256K"), (Curve::P256, "ES256")] {
        let key = secret(curve);
        let text = made(&json!({"typ": "JWT", "alg": alg}), &claims(), &key);
        let token = Token::parse(&text).expect("reads");
        assert_eq!(token.verify(&key.public()), Ok(()));
        assert_eq!(check(&token), Ok(()));
        assert_eq!(token.issuer().as_str(), "did:plc:ewvi7nxzyoun6zhxrhs64oiz");
        assert_eq!(token.rotation_key(), None);
        let other = SecretKey::from_bytes(curve, &[8; 32]).expect("in range");
        let mismatch = TokenError::Signature(SignatureError::Mismatch);
        assert_eq!(token.verify(&other.public()), Err(mismatch));
        // Each bit of what is signed counts.
        let mut parts: Vec<String> = text.split('.').map(str::to_owned).collect();
        let mut more = claims();
        more["exp"] = 1_700_000_059.into();
        parts[1] = BASE64URL_NOPAD.encode(more.to_string().as_bytes());
        let forged = Token::parse(&parts.join(".")).expect("reads");
        assert_eq!(forged.verify(&key.public()), Err(mismatch));
    }
}

#[test]
fn a_key_of_the_other_curve_and_a_high_s_do_not_count() {
    let k256 = made(&json!({"alg": "ES256K"}), &claims(), &secret(Curve::K256));
    let token = Token::parse(&k256).expect("reads");
    assert_eq!(
        token.verify(&secret(Curve::P256).public()),
        Err(TokenError::OtherCurve)
    );
    // Signed with the right key, and said to be of the other curve.
    let said = made(&json!({"alg": "ES256"}), &claims(), &secret(Curve::K256));
    let said = Token::parse(&said).expect("reads");
    assert_eq!(
        said.verify(&secret(Curve::K256).public()),
        Err(TokenError::OtherCurve)
    );
    let mut high = token.clone();
    high.sig[32..].fill(0xfe);
    let error = TokenError::Signature(SignatureError::HighS);
    assert_eq!(high.verify(&secret(Curve::K256).public()), Err(error));
}

#[test]
fn each_claim_is_checked() {
    for (name, value, want) in [
        ("aud", json!("did:web:backup.test#repo_backup"), Ok(())),
        (
            "aud",
            json!("did:web:backup.test#other"),
            Err(TokenError::Audience),
        ),
        (
            "aud",
            json!("did:web:backup.test.evil"),
            Err(TokenError::Audience),
        ),
        ("aud", json!("did:web:pds.test"), Err(TokenError::Audience)),
        (
            "lxm",
            json!("dev.firekeep.backup.signUp"),
            Err(TokenError::Method),
        ),
        ("lxm", json!("*"), Err(TokenError::Method)),
        ("lxm", Value::Null, Err(TokenError::Method)),
        ("exp", json!(1_700_000_001), Ok(())),
        ("exp", json!(1_700_000_000), Err(TokenError::Expired)),
        ("exp", json!(0), Err(TokenError::Expired)),
        ("exp", json!(1_700_000_065), Ok(())),
        ("exp", json!(1_700_000_066), Err(TokenError::TooLong)),
        ("exp", json!(u64::MAX), Err(TokenError::TooLong)),
        ("jti", Value::Null, Err(TokenError::NoJti)),
        ("jti", json!(""), Err(TokenError::NoJti)),
        ("jti", json!("x".repeat(257)), Err(TokenError::NoJti)),
        ("iat", Value::Null, Ok(())),
    ] {
        assert_eq!(check(&with(name, value.clone())), want, "{name} {value}");
    }
}

#[test]
fn what_is_no_such_token_is_not_read() {
    let key = secret(Curve::K256);
    let good = json!({"alg": "ES256K"});
    let of = |header: Value, claims: &Value| Token::parse(&made(&header, claims, &key));
    for (header, want) in [
        (json!({"alg": "none"}), TokenError::Algorithm),
        (json!({"alg": "HS256"}), TokenError::Algorithm),
        (json!({"alg": "ES256K", "typ": "at+jwt"}), TokenError::Kind),
        (json!({"alg": "ES256K", "typ": "refresh+jwt"}), TokenError::Kind),
        (json!({"alg": "ES256K", "typ": "dpop+jwt"}), TokenError::Kind),
        (json!({"alg": "ES256K", "crit": ["exp"]}), TokenError::Kind),
    ] {
        assert_eq!(of(header.clone(), &claims()), Err(want), "{header}");
    }
    assert!(matches!(of(json!({}), &claims()), Err(TokenError::Malformed(_))));
    for (name, value) in [
        ("exp", json!("1700000060")),
        ("exp", json!(-1)),
        ("exp", json!(1.5)),
        ("exp", Value::Null),
        ("aud", json!(["did:web:backup.test"])),
        ("iss", json!(7)),
    ] {
        let mut changed = claims();
        changed[name] = value.clone();
        let read = of(good.clone(), &changed);
        assert!(matches!(read, Err(TokenError::Malformed(_))), "{name} {value}");
    }
    for iss in [
        "alice.test",
        "did:plc:ewvi7nxzyoun6zhxrhs64oiz#atproto_labeler",
        "",
    ] {
        let mut changed = claims();
        changed["iss"] = iss.into();
        assert_eq!(of(good.clone(), &changed), Err(TokenError::Issuer), "{iss}");
    }
    let text = made(&good, &claims(), &key);
    for bad in [
        "",
        "a.b",
        "...",
        &text.replace('.', "="),
        &format!("{text}.x"),
        &format!("{text}="),
        &text[..text.len() - 2],
        &"x".repeat(TOKEN_BYTES_MAX + 1),
    ] {
        assert!(
            matches!(Token::parse(bad), Err(TokenError::Malformed(_))),
            "{bad}"
        );
    }
}

#[test]
fn only_a_did_key_is_a_rotation_key() {
    let key = secret(Curve::P256);
    for (kid, want) in [
        (json!(key.public().to_did_key()), true),
        (json!("#atproto"), false),
        (Value::Null, false),
    ] {
        let text = made(&json!({"alg": "ES256", "kid": kid}), &claims(), &key);
        let token = Token::parse(&text).expect("reads");
        assert_eq!(token.rotation_key().is_some(), want, "{kid}");
    }
}

#[test]
fn no_token_counts_twice() {
    let mut used = UsedTokens::new(NOW, 100, 100);
    let one = token(&claims());
    assert_eq!(used.admit(&one, NOW), Ok(()));
    assert_eq!(used.admit(&one, NOW), Err(TokenError::Replayed));
    // The same name under another signature and time is the same token.
    let again = with("exp", json!(1_700_000_030));
    assert_eq!(used.admit(&again, NOW), Err(TokenError::Replayed));
    // The name is the issuer's own.
    let other = with("iss", json!("did:plc:zzzzzzzzzzzzzzzzzzzzzzzz"));
    assert_eq!(used.admit(&other, NOW), Ok(()));
    assert_eq!(used.len(), 2);
    // As long as it would be good it is remembered, and no longer.
    let later = NOW.plus(Duration::from_secs(59));
    assert_eq!(used.admit(&one, later), Err(TokenError::Replayed));
    let gone = NOW.plus(Duration::from_secs(60));
    assert_eq!(
        check(&one).and(one.check(SERVICE, METHOD, gone)),
        Err(TokenError::Expired)
    );
    // One that waited here until its time was over does not come in when it is forgotten.
    assert_eq!(used.admit(&one, gone), Err(TokenError::Expired));
    let mut two = claims();
    (two["jti"], two["exp"]) = (json!("two"), json!(1_700_000_100));
    assert_eq!(used.admit(&token(&two), gone), Ok(()));
    assert_eq!(used.len(), 1);
}

#[test]
fn what_may_have_been_used_before_the_start_does_not_count() {
    let mut used = UsedTokens::new(NOW, 100, 100);
    let before = with("iat", json!(1_699_999_999));
    assert_eq!(used.admit(&before, NOW), Err(TokenError::BeforeStart));
    let unsaid = with("iat", Value::Null);
    assert_eq!(used.admit(&unsaid, NOW), Err(TokenError::BeforeStart));
    let mut later = claims();
    (later["iat"], later["exp"]) = (Value::Null, json!(1_700_000_065));
    assert_eq!(used.admit(&token(&later), NOW), Ok(()));
}

#[test]
fn few_are_remembered_and_fewer_of_one_issuer() {
    let mut used = UsedTokens::new(NOW, 4, 2);
    let of = |issuer: char, jti: u8| {
        let mut claims = claims();
        claims["iss"] = format!("did:plc:{}", issuer.to_string().repeat(24)).into();
        claims["jti"] = jti.to_string().into();
        token(&claims)
    };
    for jti in 0..2 {
        assert_eq!(used.admit(&of('a', jti), NOW), Ok(()));
        assert_eq!(used.admit(&of('b', jti), NOW), Ok(()));
    }
    assert_eq!(used.admit(&of('a', 9), NOW), Err(TokenError::TooMany));
    assert_eq!(used.admit(&of('c', 9), NOW), Err(TokenError::TooMany));
    // A replayed one is told as that.
    assert_eq!(used.admit(&of('a', 0), NOW), Err(TokenError::Replayed));
    let mut late = claims();
    (late["iat"], late["exp"]) = (json!(1_700_000_060), json!(1_700_000_120));
    let then = NOW.plus(Duration::from_secs(60));
    assert_eq!(used.admit(&token(&late), then), Ok(()));
    assert_eq!(used.len(), 1);
}
