//! Tests of keys and signatures.

use proptest::prelude::*;

use super::*;

const CURVES: [Curve; 2] = [Curve::K256, Curve::P256];

fn secret(curve: Curve) -> SecretKey {
    SecretKey::from_bytes(curve, &[0x11; 32]).expect("in range")
}

/// The other form of a signature: s replaced by `order - s`.
fn high_s(curve: Curve, sig: &[u8; 64]) -> [u8; 64] {
    let mut high = *sig;
    let s = high.last_chunk_mut().expect("64 bytes");
    match curve {
        Curve::P256 => negate_p256(s),
        Curve::K256 => {
            // order - s = (half - s) + half + 1, for the order is odd.
            let mut carry = 1;
            for (digit, half) in s.iter_mut().zip(K256_HALF_ORDER).rev() {
                let sum = 2 * i16::from(half) - i16::from(*digit) + carry;
                *digit = sum.rem_euclid(256) as u8;
                carry = sum.div_euclid(256);
            }
        }
    }
    high
}

#[test]
fn signatures_verify_and_any_change_is_noticed() {
    for curve in CURVES {
        let key = secret(curve);
        let sig = key.sign(b"message");
        assert_eq!(key.public().verify(b"message", &sig), Ok(()));
        assert_eq!(
            key.public().verify(b"massage", &sig),
            Err(SignatureError::Mismatch)
        );
        let other = SecretKey::from_bytes(curve, &[0x12; 32])
            .expect("in range")
            .public();
        assert_eq!(other.verify(b"message", &sig), Err(SignatureError::Mismatch));
        for at in 0..64 {
            let mut bad = sig;
            bad[at] ^= 0x01;
            assert!(
                key.public().verify(b"message", &bad).is_err(),
                "{curve:?} byte {at}"
            );
        }
        for bad in [[0; 64], [0xff; 64]] {
            assert!(key.public().verify(b"message", &bad).is_err());
        }
    }
}

#[test]
fn the_high_form_of_s_is_refused_on_both_curves() {
    for curve in CURVES {
        let key = secret(curve);
        let sig = key.sign(b"message");
        let high = high_s(curve, &sig);
        assert_eq!(high_s(curve, &high), sig);
        assert_eq!(
            key.public().verify(b"message", &high),
            Err(SignatureError::HighS),
            "{curve:?}"
        );
    }
}

/// Why the comparison is ours to make: AWS-LC takes the high form, libsecp256k1 does not.
#[test]
fn the_libraries_differ_about_the_high_form() {
    let sig = secret(Curve::P256).sign(b"message");
    let Key::P256(key) = secret(Curve::P256).public().0 else {
        panic!("a P-256 key");
    };
    assert!(
        key.parsed
            .verify_sig(b"message", &high_s(Curve::P256, &sig))
            .is_ok()
    );

    let sig = secret(Curve::K256).sign(b"message");
    let Key::K256(key) = secret(Curve::K256).public().0 else {
        panic!("a K-256 key");
    };
    let verify = |sig: &[u8; 64]| {
        let sig = ecdsa::Signature::from_compact(sig).expect("in range");
        ecdsa::verify(&sig, Message::from_digest(sha256(b"message")), &key)
    };
    let high = high_s(Curve::K256, &sig);
    assert!(verify(&sig).is_ok());
    assert!(verify(&high).is_err());
    let mut normal = ecdsa::Signature::from_compact(&high).expect("in range");
    normal.normalize_s();
    assert_eq!(normal.serialize_compact(), sig, "it is indeed the other form");
}

#[test]
fn half_the_order_is_the_largest_s() {
    for (curve, half) in [(Curve::K256, K256_HALF_ORDER), (Curve::P256, P256_HALF_ORDER)] {
        let mut sig = [1; 64];
        sig[32..].copy_from_slice(&half);
        assert_eq!(
            secret(curve).public().verify(b"", &sig),
            Err(SignatureError::Mismatch)
        );
        *sig.last_mut().expect("64 bytes") += 1;
        assert_eq!(
            secret(curve).public().verify(b"", &sig),
            Err(SignatureError::HighS)
        );
    }
    let mut doubled = P256_HALF_ORDER;
    negate_p256(&mut doubled);
    // order - half = half + 1, for the order is odd.
    assert_eq!(doubled[..31], P256_HALF_ORDER[..31]);
    assert_eq!(doubled[31], P256_HALF_ORDER[31] + 1);
}

#[test]
fn secret_keys_out_of_range_are_refused() {
    for curve in CURVES {
        for bytes in [[0; 32], [0xff; 32]] {
            assert_eq!(
                SecretKey::from_bytes(curve, &bytes).map(|_| ()),
                Err(KeyError::SecretRange)
            );
        }
    }
    assert!(SecretKey::from_bytes(Curve::P256, &P256_ORDER).is_err());
}

#[test]
fn secrets_are_not_printed() {
    for curve in CURVES {
        let printed = format!("{:?}", secret(curve));
        assert_eq!(printed, format!("SecretKey(of {})", secret(curve).public()));
        assert!(!printed.contains("1111"));
    }
}

#[test]
fn keys_are_read_in_every_form() {
    for (curve, method) in [
        (Curve::K256, "EcdsaSecp256k1VerificationKey2019"),
        (Curve::P256, "EcdsaSecp256r1VerificationKey2019"),
    ] {
        let key = secret(curve).public();
        assert_eq!(key.curve(), curve);
        assert_eq!(SigningKey::from_did_key(&key.to_did_key()), Ok(key.clone()));
        assert_eq!(SigningKey::from_multikey(&key.to_multikey()), Ok(key.clone()));
        assert_eq!(
            SigningKey::from_legacy("Multikey", &key.to_multikey()),
            Ok(key.clone())
        );
        let base58 = |bytes: &[u8]| multibase::encode(multibase::Base::Base58Btc, bytes);
        let compressed = base58(&key.compressed());
        assert_eq!(SigningKey::from_legacy(method, &compressed), Ok(key.clone()));
        let uncompressed = match &secret(curve).0 {
            Secret::K256(secret) => secret.public_key().serialize_uncompressed(),
            Secret::P256(pair) => pair.public_key().as_ref().try_into().expect("65 bytes"),
        };
        assert_eq!(
            SigningKey::from_legacy(method, &base58(&uncompressed)),
            Ok(key.clone())
        );

        // A wrong y, the hybrid form, and an uncompressed point as a multikey.
        let mut wrong = uncompressed;
        wrong[64] ^= 2;
        assert_eq!(
            SigningKey::from_legacy(method, &base58(&wrong)),
            Err(KeyError::Point)
        );
        let mut hybrid = uncompressed;
        hybrid[0] = 0x06 | (uncompressed[64] & 1);
        assert_eq!(
            SigningKey::from_legacy(method, &base58(&hybrid)),
            Err(KeyError::Point)
        );
        let long = [&curve.multicodec()[..], &uncompressed].concat();
        assert_eq!(SigningKey::from_multikey(&base58(&long)), Err(KeyError::Point));
    }
    assert_ne!(secret(Curve::K256).public(), secret(Curve::P256).public());
}

#[test]
fn malformed_keys_are_refused() {
    let good = secret(Curve::K256).public().to_multikey();
    let base58 = |bytes: &[u8]| multibase::encode(multibase::Base::Base58Btc, bytes);
    let refused = [
        ("", KeyError::Multibase),
        (&good[1..], KeyError::Multibase),
        ("z", KeyError::UnknownCurve),
        ("z0OIl", KeyError::Multibase),
        (&format!("z{}", "1".repeat(200)), KeyError::Multibase),
        (
            &multibase::encode(multibase::Base::Base64, [0xe7, 0x01]),
            KeyError::Multibase,
        ),
        // Ed25519; a point off the curve; a point cut short.
        (
            &base58(&[&[0xed, 0x01][..], &[2; 32]].concat()),
            KeyError::UnknownCurve,
        ),
        (
            &base58(&[&[0xe7, 0x01, 0x02][..], &[0xff; 32]].concat()),
            KeyError::Point,
        ),
        (
            &base58(&[&[0x80, 0x24, 0x02][..], &[0xff; 32]].concat()),
            KeyError::Point,
        ),
        (
            &base58(&[&[0xe7, 0x01, 0x02][..], &[0x01; 31]].concat()),
            KeyError::Point,
        ),
        (&base58(&[0xe7, 0x01]), KeyError::Point),
    ];
    for (text, error) in refused {
        assert_eq!(SigningKey::from_multikey(text), Err(error), "{text}");
    }
    assert_eq!(SigningKey::from_did_key(&good), Err(KeyError::NotDidKey));
    assert_eq!(SigningKey::from_did_key("did:plc:abc"), Err(KeyError::NotDidKey));
    assert_eq!(
        SigningKey::from_legacy("Ed25519VerificationKey2020", &good),
        Err(KeyError::UnknownType)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_signature_is_low_and_verifies(bytes: [u8; 32], message: Vec<u8>) {
        for curve in CURVES {
            let Ok(secret) = SecretKey::from_bytes(curve, &bytes) else { continue };
            let key = secret.public();
            let sig = secret.sign(&message);
            prop_assert_eq!(key.verify(&message, &sig), Ok(()));
            prop_assert_eq!(key.verify(&message, &high_s(curve, &sig)), Err(SignatureError::HighS));
            prop_assert_eq!(SigningKey::from_did_key(&key.to_did_key()), Ok(key));
        }
    }

    #[test]
    fn random_texts_do_no_harm(text in ".{0,140}", base58 in "z[1-9A-HJ-NP-Za-km-z]{0,130}", sig: [u8; 32]) {
        let _unknown = SigningKey::from_multikey(&text);
        let _unknown = SigningKey::from_legacy("EcdsaSecp256k1VerificationKey2019", &base58);
        let _unknown = SigningKey::from_legacy("EcdsaSecp256r1VerificationKey2019", &base58);
        let _unknown = SigningKey::from_did_key(&format!("did:key:{base58}"));
        let sig: [u8; 64] = [sig, sig].concat().try_into().expect("64 bytes");
        for curve in CURVES {
            prop_assert!(secret(curve).public().verify(text.as_bytes(), &sig).is_err());
        }
    }
}
