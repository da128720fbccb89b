//! Names round trip, sort as what they name does, and nothing but the canonical form is read.

use proptest::prelude::*;

use super::*;

const DID: &str = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";
const BLOCK: &str = "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua";
const BLOB: &str = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";

fn did(text: &str) -> DidFolder {
    DidFolder::try_from(&text.parse::<Did>().expect("valid DID")).expect("short")
}

/// One of each kind, with its name.
fn examples() -> Vec<(ObjectName, String)> {
    let host = HostFolder::try_from(&"localhost:2583".parse::<HostName>().expect("valid")).expect("short");
    let time: Timestamp = "2026-01-02T03:04:05.678Z".parse().expect("valid");
    let (from, rev): (Rev, Rev) = (
        "3k2yihcrp6f2c".parse().expect("valid"),
        "3k2yihcrp6f2d".parse().expect("valid"),
    );
    let commit = *BLOCK.parse::<Cid>().expect("valid").digest();
    let blob = *BLOB.parse::<Cid>().expect("valid").digest();
    let state = |part| StateName {
        host: host.clone(),
        time,
        part,
    };
    let delta = DeltaName::new(did(DID), from, rev, commit).expect("in order");
    let named = StatePart::Named("account-db".parse().expect("valid"));
    let mut all = vec![
        (ObjectName::Archive, "v1/archive.json".into()),
        (
            WriterName {
                shard: 0,
                generation: 7,
            }
            .into(),
            "v1/writers/0/00000000000000000007.json".into(),
        ),
        (
            SnapshotName {
                did: did(DID),
                rev,
                commit,
                edition: 0,
            }
            .into(),
            format!("v1/repos/{DID}/3k2yihcrp6f2d-{BLOCK}.car.zst"),
        ),
        (
            QuarantinedName {
                did: did(DID),
                rev,
                commit,
                edition: 0,
            }
            .into(),
            format!("v1/repos/{DID}/3k2yihcrp6f2d-{BLOCK}.car.quarantined.zst"),
        ),
        (
            delta.clone().into(),
            format!("v1/repos/{DID}/3k2yihcrp6f2c..3k2yihcrp6f2d-{BLOCK}.delta.car.zst"),
        ),
        (
            SegmentName {
                shard: 12,
                generation: 1,
                number: u64::MAX,
                edition: 0,
            }
            .into(),
            "v1/log/12/00000000000000000001-18446744073709551615.car.zst".into(),
        ),
        (
            BlobName { did: did(DID), blob }.into(),
            format!("v1/blocks/{DID}/{BLOB}"),
        ),
        (
            IdentityName { did: did(DID), time }.into(),
            format!("v1/identity/{DID}/2026-01-02T03:04:05.678Z.json"),
        ),
        (
            HostStateName {
                host: host.clone(),
                time,
            }
            .into(),
            "v1/hosts/localhost:2583/2026-01-02T03:04:05.678Z.json".into(),
        ),
        (
            ServiceName { time }.into(),
            "v1/service/2026-01-02T03:04:05.678Z.json".into(),
        ),
        (
            state(named).into(),
            "v1/state/localhost:2583/2026-01-02T03:04:05.678Z/account-db.age".into(),
        ),
        (
            state(StatePart::Account(did(DID))).into(),
            format!("v1/state/localhost:2583/2026-01-02T03:04:05.678Z/{DID}.age"),
        ),
    ];
    all.extend(rewritten(&delta));
    all
}

/// Names of what was written again because something was erased from it, and of where a log begins.
fn rewritten(delta: &DeltaName) -> Vec<(ObjectName, String)> {
    let (rev, commit) = (delta.to(), *delta.commit());
    vec![
        (
            SegmentName {
                shard: 0,
                generation: 1,
                number: 2,
                edition: 3,
            }
            .into(),
            "v1/log/0/00000000000000000001-00000000000000000002.erased-3.car.zst".into(),
        ),
        (
            BoundaryName {
                shard: 0,
                generation: 1,
                number: 2,
            }
            .into(),
            "v1/log/0/00000000000000000001-00000000000000000002.boundary.json".into(),
        ),
        (
            SnapshotName {
                did: did(DID),
                rev,
                commit,
                edition: 1,
            }
            .into(),
            format!("v1/repos/{DID}/3k2yihcrp6f2d-{BLOCK}.erased-1.car.zst"),
        ),
        (
            QuarantinedName {
                did: did(DID),
                rev,
                commit,
                edition: 12,
            }
            .into(),
            format!("v1/repos/{DID}/3k2yihcrp6f2d-{BLOCK}.erased-12.car.quarantined.zst"),
        ),
        (
            delta.clone().with_edition(2).into(),
            format!("v1/repos/{DID}/3k2yihcrp6f2c..3k2yihcrp6f2d-{BLOCK}.erased-2.delta.car.zst"),
        ),
        (
            ErasedName { did: did(DID) }.into(),
            format!("v1/erased/{DID}.json"),
        ),
    ]
}

#[test]
fn names_of_each_kind_round_trip() {
    for (name, text) in examples() {
        assert_eq!(name.to_string(), text);
        assert_eq!(text.parse(), Ok(name), "{text}");
        assert_eq!(check_object_name(&text), Ok(()));
    }
}

#[test]
fn names_lie_below_their_prefixes() {
    let host = HostFolder::try_from(&"a.b".parse::<HostName>().expect("valid")).expect("short");
    assert_eq!(SnapshotName::prefix(&did(DID)), format!("v1/repos/{DID}/"));
    assert_eq!(BlobName::prefix(&did(DID)), format!("v1/blocks/{DID}/"));
    assert_eq!(IdentityName::prefix(&did(DID)), format!("v1/identity/{DID}/"));
    assert_eq!(HostStateName::prefix(&host), "v1/hosts/a.b/");
    assert_eq!(SegmentName::prefix(3), "v1/log/3/");
}

#[test]
fn a_name_is_not_taken_for_one_of_another_kind() {
    let (_, snapshot) = examples().remove(2);
    assert_eq!(
        snapshot.parse::<DeltaName>(),
        Err(NameError::OtherKind { wanted: "delta" })
    );
    assert!(snapshot.parse::<SnapshotName>().is_ok());
}

#[test]
fn what_is_not_canonical_is_refused() {
    for (text, why) in [
        (
            "v1/writers/00/00000000000000000007.json".into(),
            NameError::NotCanonical,
        ),
        ("v1/writers/0/7.json".into(), NameError::NotCanonical),
        (
            "v1/writers/+0/00000000000000000007.json".into(),
            NameError::NotCanonical,
        ),
        (
            "v1/hosts/PDS.example/2026-01-02T03:04:05.678Z.json".into(),
            NameError::NotCanonical,
        ),
        (
            "v1/service/2026-01-02T03:04:05Z.json".into(),
            NameError::NotCanonical,
        ),
        (
            "v1/service/2026-01-02T04:04:05.678+01:00.json".into(),
            NameError::NotCanonical,
        ),
        (
            format!("v1/repos/{DID}/3k2yihcrp6f2d-{BLOCK}.car"),
            NameError::Unknown,
        ),
        (
            format!("v1/repos/{DID}/x/3k2yihcrp6f2d-{BLOCK}.car.zst"),
            NameError::Unknown,
        ),
        ("v1/probe/x".into(), NameError::Unknown),
        (
            format!("v1/repos/{DID}/3k2yihcrp6f2d..3k2yihcrp6f2d-{BLOCK}.delta.car.zst"),
            NameError::RevsOutOfOrder,
        ),
    ] {
        assert_eq!(text.parse::<ObjectName>(), Err(why), "{text}");
    }
    for text in [
        format!("v1/blocks/{DID}/{BLOCK}"),
        format!("v1/repos/{DID}/3k2yihcrp6f2d-{BLOB}.car.zst"),
        format!("v1/blocks/DID:plc:a/{BLOB}"),
        format!("v1/blocks/{DID}/{}", BLOB.to_uppercase()),
        "v1/log/0/00000000000000000001-18446744073709551616.car.zst".into(),
        "v1/log/4294967296/00000000000000000001-00000000000000000001.car.zst".into(),
        "v1/state/a.b/2026-01-02T03:04:05.678Z/Account.age".into(),
        "v1/state/a.b/2026-01-02T03:04:05.678Z/-a.age".into(),
    ] {
        let refused = text.parse::<ObjectName>();
        assert!(
            matches!(refused, Err(NameError::Syntax(_))),
            "{text}: {refused:?}"
        );
    }
}

#[test]
fn dids_that_no_file_system_takes_are_refused() {
    let of = |bytes: usize| {
        format!("did:web:{}", "a".repeat(bytes - 8))
            .parse::<Did>()
            .expect("valid")
    };
    assert!(DidFolder::try_from(&of(FOLDER_BYTES_MAX)).is_ok());
    assert_eq!(
        DidFolder::try_from(&of(FOLDER_BYTES_MAX + 1)),
        Err(NameError::FolderTooLong {
            what: "DID",
            bytes: FOLDER_BYTES_MAX + 1
        })
    );
    let label = "a".repeat(49);
    let host: HostName = [&*label; 5].join(".").parse().expect("valid");
    assert_eq!(
        HostFolder::try_from(&host),
        Err(NameError::FolderTooLong {
            what: "host",
            bytes: 249
        })
    );
    // The longest name of all still fits.
    let name = ErasedName {
        did: DidFolder::try_from(&of(FOLDER_BYTES_MAX)).expect("fits"),
    }
    .to_string();
    assert_eq!(check_object_name(&name), Ok(()));
}

#[test]
fn strange_dids_are_plain_folders() {
    for text in ["did:web:..", "did:web:%2e%2e%2fetc", "did:web:a:b", "did:m:-"] {
        let name = ErasedName { did: did(text) };
        assert_eq!(name.to_string(), format!("v1/erased/{text}.json"));
        assert_eq!(name.to_string().parse(), Ok(name));
    }
}

#[test]
fn path_tricks_are_no_object_names() {
    for text in [
        "",
        "/",
        "/v1/a",
        "v1//a",
        "v1/a/",
        "v1/../a",
        "./v1",
        "v1/.",
        "v1/.tmp/1",
        "v1\\a",
        "v1/a b",
        "v1/a\0",
        "v1/é",
        "v1/a/a/a/a/a/a/a/a",
        "v1/types/a",
        "v1/types",
    ] {
        let refused = check_object_name(text);
        assert!(matches!(refused, Err(NameError::Unsafe(_))), "{text:?}");
        assert!(text.parse::<ObjectName>().is_err());
    }
    assert!(check_object_name(&format!("v1/{}", "a".repeat(256))).is_err());
    assert!(check_object_name(&format!("v1/{}", "a".repeat(255))).is_ok());
    let long = format!("v1/{}/{}/{}", "a".repeat(255), "b".repeat(255), "c".repeat(253));
    assert_eq!(long.len(), NAME_BYTES_MAX);
    assert!(check_object_name(&long).is_ok());
    assert!(check_object_name(&format!("{long}d")).is_err());
}

proptest! {
    #[test]
    fn segments_sort_as_their_numbers(a: (u64, u64), b: (u64, u64)) {
        let name = |(generation, number)| SegmentName { shard: 0, generation, number, edition: 0 };
        prop_assert_eq!(name(a).cmp(&name(b)), name(a).to_string().cmp(&name(b).to_string()));
        prop_assert_eq!(name(a).to_string().parse(), Ok(name(a)));
    }

    #[test]
    fn whatever_is_read_is_written_the_same(which in 0..18_usize, at in 0..200_usize, to in "[ -~]{0,2}") {
        let (_, text) = examples().remove(which);
        let at = at % text.len();
        let changed = format!("{}{to}{}", &text[..at], &text[at + 1..]);
        if let Ok(name) = changed.parse::<ObjectName>() {
            prop_assert_eq!(name.to_string(), changed);
        }
    }

    #[test]
    fn snapshots_sort_by_rev(a in 0..u64::MAX / 2, b in 0..u64::MAX / 2, commit: [u8; 32]) {
        let name = |bits| SnapshotName {
            did: did(DID),
            rev: Rev::from_bits(bits).expect("63 bits"),
            commit,
            edition: 0,
        };
        prop_assert_eq!(a.cmp(&b), name(a).to_string().cmp(&name(b).to_string()));
        prop_assert_eq!(name(a).to_string().parse(), Ok(name(a)));
    }
}
