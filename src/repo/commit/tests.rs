//! Tests of decoding commits.

use proptest::prelude::*;

use super::*;
use crate::repo::cbor::{Kind, check_canonical};
use crate::types::Timestamp;

const SIG: [u8; 64] = [7; 64];

fn did() -> Did {
    "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("valid")
}

fn rev() -> Rev {
    "3k2yihcrp6f2c".parse().expect("valid")
}

fn data() -> Cid {
    Cid::of_block(b"tree")
}

/// The fields of a good commit, encoded, by key; to be changed and put together again.
fn fields() -> Vec<(&'static str, Vec<u8>)> {
    let encoded = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    vec![
        ("did", encoded(&|out| encode::text(out, did().as_str()))),
        ("rev", encoded(&|out| encode::text(out, &rev().to_string()))),
        ("sig", encoded(&|out| encode::bytes(out, &SIG))),
        ("data", encoded(&|out| encode::link(out, &data()))),
        ("prev", encoded(&|out| encode::null(out))),
        ("version", encoded(&|out| encode::integer(out, 3))),
    ]
}

fn block(mut fields: Vec<(&str, Vec<u8>)>) -> Vec<u8> {
    fields.sort_by_key(|(key, _)| (key.len(), *key));
    let mut out = Vec::new();
    encode::map(&mut out, fields.len());
    for (key, value) in fields {
        encode::text(&mut out, key);
        out.extend(value);
    }
    out
}

fn with(key: &'static str, value: &[u8]) -> Result<Commit, CommitError> {
    let mut fields = fields();
    fields.retain(|(other, _)| *other != key);
    fields.push((key, value.to_vec()));
    Commit::decode(&block(fields))
}

#[test]
fn a_good_commit_decodes() {
    let bytes = block(fields());
    let mut signed = Vec::new();
    let built = build_commit(&did(), rev(), data(), None, |message| {
        signed = message.to_vec();
        SIG
    });
    assert_eq!(built, bytes);
    let commit = Commit::decode(&bytes).expect("good");
    assert_eq!((&commit.did, commit.rev, commit.data), (&did(), rev(), data()));
    assert_eq!((commit.prev, commit.sig), (None, SIG));
    assert_eq!(commit.unsigned_bytes(), signed);
    assert_eq!(check_canonical(commit.unsigned_bytes()), Ok(()));
}

#[test]
fn unknown_fields_stay_in_what_was_signed() {
    // Before, between and after the known fields; enough to change the length of the map's head.
    let mut extended = fields();
    let names: Vec<String> = (0..20)
        .map(|n| format!("{n:02}"))
        .chain(["zzzzzzzzzz".to_owned()])
        .collect();
    extended.extend(names.iter().map(|name| (name.as_str(), vec![0x81, 0xf5])));
    let commit = Commit::decode(&block(extended.clone())).expect("unknown fields are allowed");
    extended.retain(|(key, _)| *key != "sig");
    assert_eq!(commit.unsigned_bytes(), block(extended));
}

#[test]
fn each_field_is_required() {
    for (missing, _) in fields() {
        let mut fields = fields();
        fields.retain(|(key, _)| *key != missing);
        assert_eq!(Commit::decode(&block(fields)), Err(CommitError::Missing(missing)));
    }
}

#[test]
fn each_field_is_checked() {
    assert_eq!(with("version", &[0x02]), Err(CommitError::Version(2)));
    assert_eq!(with("version", &[0x04]), Err(CommitError::Version(4)));
    assert!(matches!(with("did", b"\x63did"), Err(CommitError::Syntax(error)) if error.what == "DID"));
    assert!(matches!(with("rev", b"\x63abc"), Err(CommitError::Syntax(error)) if error.what == "rev"));
    assert_eq!(with("sig", b"\x43abc"), Err(CommitError::SignatureLength(3)));
    let mut der = Vec::new();
    encode::bytes(&mut der, &[0; 71]);
    assert_eq!(with("sig", &der), Err(CommitError::SignatureLength(71)));
    let mut raw = Vec::new();
    encode::link(&mut raw, &Cid::of_blob(b"tree"));
    assert_eq!(with("data", &raw), Err(CommitError::DataCodec));
    for key in ["did", "rev", "sig", "data", "version"] {
        let wrong = with(key, &[0xf6]);
        assert!(
            matches!(
                wrong,
                Err(CommitError::Cbor(CborError::Unexpected {
                    found: Kind::Null,
                    ..
                }))
            ),
            "{key}: {wrong:?}"
        );
    }
    let mut prev = Vec::new();
    encode::link(&mut prev, &data());
    assert_eq!(with("prev", &prev).map(|commit| commit.prev), Ok(Some(data())));
    assert!(matches!(with("prev", &[0x00]), Err(CommitError::Cbor(_))));
}

#[test]
fn a_version_2_commit_is_named_though_it_lacks_fields() {
    let mut fields = fields();
    fields.retain(|(key, _)| *key != "rev" && *key != "version");
    fields.push(("version", vec![0x02]));
    assert_eq!(Commit::decode(&block(fields)), Err(CommitError::Version(2)));
}

#[test]
fn a_commit_that_is_not_strict_is_refused() {
    let good = block(fields());
    let trailing = [&good[..], &[0x00]].concat();
    assert_eq!(Commit::decode(&trailing), Err(CborError::TrailingBytes.into()));
    assert_eq!(
        Commit::decode(&good[..good.len() - 1]),
        Err(CborError::Truncated.into())
    );
    assert!(matches!(
        Commit::decode(b"\x80"),
        Err(CommitError::Cbor(CborError::Unexpected { .. }))
    ));
    let float = with("zzz", b"\xfb\x3f\xf8\x00\x00\x00\x00\x00\x00");
    assert_eq!(float, Err(CborError::Float.into()));
    let mut swapped = good.clone();
    swapped[2..5].copy_from_slice(b"zzz");
    assert_eq!(Commit::decode(&swapped), Err(CborError::KeyOrder.into()));
}

#[test]
fn the_size_is_limited() {
    let padded = |padding: usize| {
        let mut bytes = Vec::new();
        encode::bytes(&mut bytes, &vec![0; padding]);
        let mut fields = fields();
        fields.push(("padding", bytes));
        block(fields)
    };
    let overhead = padded(9_000).len() - 9_000;
    let largest = padded(COMMIT_BYTES_MAX - overhead);
    assert_eq!(largest.len(), COMMIT_BYTES_MAX);
    assert!(Commit::decode(&largest).is_ok());
    let larger = padded(COMMIT_BYTES_MAX - overhead + 1);
    assert_eq!(
        Commit::decode(&larger),
        Err(CommitError::TooLarge(COMMIT_BYTES_MAX + 1))
    );
}

proptest! {
    #[test]
    fn what_is_built_decodes(micros in 0u64..1 << 53, data: [u8; 32], prev: Option<[u8; 32]>, half: [u8; 32]) {
        let rev = Rev::from_time(Timestamp::from_micros(micros), 3);
        let (data, prev) = (Cid::dag_cbor(data), prev.map(Cid::dag_cbor));
        let mut sig = [1; 64];
        sig[..32].copy_from_slice(&half);
        let mut signed = Vec::new();
        let bytes = build_commit(&did(), rev, data, prev, |message| {
            signed = message.to_vec();
            sig
        });
        let commit = Commit::decode(&bytes).expect("decodes");
        prop_assert_eq!((commit.rev, commit.data, commit.prev, commit.sig), (rev, data, prev, sig));
        prop_assert_eq!(commit.unsigned_bytes(), signed);
    }

    #[test]
    fn damage_does_no_harm(at in any::<prop::sample::Index>(), with: u8, cut in any::<prop::sample::Index>()) {
        let mut bytes = block(fields());
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(commit) = Commit::decode(&bytes) {
            // Whatever changed is in the message or in the signature.
            let good = Commit::decode(&block(fields())).expect("good");
            prop_assert!(commit == good || commit.unsigned_bytes() != good.unsigned_bytes() || commit.sig != good.sig);
        }
        prop_assert!(Commit::decode(&bytes[..cut.index(bytes.len())]).is_err());
    }
}
