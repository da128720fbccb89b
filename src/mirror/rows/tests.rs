//! Rows round-trip, open with fields missing that came later, and refuse what is not theirs.

use ipld_core::ipld::Ipld;
use proptest::prelude::*;

use super::*;
use crate::types::cid::sha256;
use crate::types::{Did, HostName, Timestamp};

fn at(micros: u64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn rev(bits: u64) -> Rev {
    Rev::from_bits(bits).unwrap()
}

fn host() -> HostName {
    "pds.example:2583".parse().unwrap()
}

fn did() -> Did {
    "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().unwrap()
}

fn account(status: AccountStatus, sync: SyncState) -> AccountRow {
    AccountRow {
        did_number: 1,
        account_number: u64::MAX,
        host: host(),
        upstream: status,
        sync,
        head: Some(Head {
            rev: rev(u64::MAX >> 1),
            commit: Cid::of_block(b"commit"),
            commit_block: b"\xa0 block".to_vec(),
            data: Cid::of_block(b"data"),
        }),
        head_signed_by: HeadSigner::Earlier {
            key: "did:key:zQ3sh".to_owned(),
        },
        records: 3,
        record_bytes: 4,
        journal_commits: 5,
        journal_bytes: 6,
        snapshot: Some(SnapshotMark {
            rev: rev(7),
            commit: Cid::of_block(b"snapshot"),
            at: at(8),
            bytes: 9,
        }),
        damaged: false,
        shipped: Some(rev(11)),
        identity_archived: Some([7; 32]),
        log_seen: None,
        min_rev: Some(rev(10)),
        parked: 11,
        parked_bytes: 12,
        status_seq: 13,
        status_at: Some(at(27)),
        away_since: Some(at(28)),
        verified_at: Some(at(14)),
        identity: Some(StoredIdentity {
            key: Some("did:key:zQ3sh".to_owned()),
            host: Some("pds.example.com".to_owned()),
            handle: Some("alice.example.com".to_owned()),
            read_at: at(15),
        }),
        awaiting_identity: true,
        unlogged: None,
        snapshot_due: true,
        snapshot_at: Some(at(16)),
        pins: vec![Pin {
            generation: Some(16),
            head: None,
            snapshot: None,
            since: at(17),
            reason: PinReason::Rollback,
        }],
        diverged_before_fetch: true,
        fetch_again: true,
        next_audit: Some(at(25)),
        deletes: Some(DeleteWindow {
            since: at(18),
            rev: None,
            records: 19,
            deleted: 20,
            alarmed: true,
        }),
        deletion_confirmed_at: Some(at(21)),
        kept_car: None,
        car_at: None,
        blobs_listed_at: None,
        followed_again_at: None,
        erased: None,
        owner: None,
        unfollowed: false,
    }
}

#[test]
fn what_an_owner_asked_for_round_trips() {
    for owner in [
        Owner::default(),
        Owner {
            signed_up: Some(at(40)),
            pinned_key: Some("did:key:zOne".to_owned()),
            removal_due: Some(at(41)),
        },
    ] {
        round_trip(&AccountRow {
            owner: Some(owner),
            unfollowed: true,
            ..account(AccountStatus::Active, SyncState::Live)
        });
    }
}

const REASONS: [DesyncReason; 14] = [
    DesyncReason::New,
    DesyncReason::ChainBroken,
    DesyncReason::Unproven,
    DesyncReason::ProofFailed,
    DesyncReason::BadSignature,
    DesyncReason::SyncEvent,
    DesyncReason::ParkedOverflow,
    DesyncReason::StreamGap,
    DesyncReason::HeadDiffers,
    DesyncReason::Reactivated,
    DesyncReason::Moved,
    DesyncReason::CopyDamaged,
    DesyncReason::Requested,
    DesyncReason::Quarantined,
];

fn statuses() -> Vec<AccountStatus> {
    let other = ["", "active", "deactivated", "schlafend"].map(|text| AccountStatus::Other(text.to_owned()));
    let mut all = vec![
        AccountStatus::Active,
        AccountStatus::Deactivated,
        AccountStatus::Suspended,
        AccountStatus::Takendown,
        AccountStatus::Deleted,
        AccountStatus::Desynchronized,
        AccountStatus::Throttled,
    ];
    all.extend(other);
    all
}

fn round_trip<R: Row + PartialEq + std::fmt::Debug>(row: &R) {
    let value = row.encode();
    assert_eq!(R::decode(&value).as_ref(), Ok(row));
    // DAG-CBOR that any reader opens: canonical, and equal when decoded to a tree and encoded again.
    let tree: Ipld = serde_ipld_dagcbor::from_slice(&value).unwrap();
    assert_eq!(serde_ipld_dagcbor::to_vec(&tree).unwrap(), value);
    for end in 0..value.len() {
        assert!(R::decode(&value[..end]).is_err(), "cut at {end}");
    }
    let longer = [&value[..], b"\0"].concat();
    assert!(R::decode(&longer).is_err(), "with a byte more");
}

#[test]
fn accounts_round_trip() {
    for status in statuses() {
        round_trip(&account(status, SyncState::Live));
    }
    for reason in REASONS {
        let sync = SyncState::Wanted {
            reason,
            since: at(1),
            tries: u32::MAX,
        };
        round_trip(&account(AccountStatus::Active, sync));
    }
    let quarantined = SyncState::Quarantined {
        reason: "two records under one path".to_owned(),
        since: at(1),
        rev: Some(rev(2)),
        commit: None,
        tries: 3,
        tried_at: Some(at(26)),
        next_try: None,
    };
    let mut lax = account(AccountStatus::Active, quarantined);
    lax.car_at = Some(at(33));
    round_trip(&lax);
    lax.kept_car = Some(KeptCar {
        number: 27,
        rev: rev(28),
        commit: Cid::of_block(b"lax"),
        bytes: 29,
        sha256: [30; 32],
        since: at(31),
        archived: true,
        damaged: true,
    });
    round_trip(&lax);
    let moved = SyncState::Moved {
        to: host(),
        since: at(1),
    };
    round_trip(&account(AccountStatus::Active, moved));
    let diverged = SyncState::Diverged {
        since: at(1),
        theirs: rev(2),
        heard: Some(rev(3)),
        tried_at: Some(at(4)),
        next_try: Some(at(5)),
    };
    round_trip(&account(AccountStatus::Active, diverged));
    let mut bare = account(AccountStatus::Active, SyncState::Live);
    bare.head_signed_by = HeadSigner::Current;
    (bare.head, bare.snapshot, bare.min_rev, bare.verified_at) = (None, None, None, None);
    round_trip(&bare);
}

#[test]
fn blobs_round_trip() {
    let failures = [
        BlobFailure::NotFound,
        BlobFailure::Refused,
        BlobFailure::WrongBytes,
        BlobFailure::TooLarge,
        BlobFailure::Unreachable,
        BlobFailure::HostError,
    ];
    let missing = failures.map(|reason| BlobState::Missing { reason, tries: 2 });
    let states = [
        BlobState::Wanted,
        BlobState::Held,
        BlobState::Archived,
        BlobState::Withdrawn,
    ];
    for state in states.into_iter().chain(missing) {
        round_trip(&BlobRow {
            state,
            size: Some(7),
            mime: Some("image/png".to_owned()),
            first_seen: at(1),
            tries: 0,
            withheld_since: Some(at(2)),
            needed_at: Some(at(3)),
        });
    }
    // A row of before has no such field, nor one of a blob that nobody withholds.
    let Ipld::Map(fields) =
        serde_ipld_dagcbor::from_slice(&BlobRow::wanted(None, None, at(1)).encode()).unwrap()
    else {
        panic!("a row is a map");
    };
    assert!(!fields.contains_key("withheld_since"));
}

#[test]
fn other_rows_round_trip() {
    for listing in [
        Listing::Unfinished { cursor: None },
        Listing::Unfinished {
            cursor: Some("page 2".to_owned()),
        },
        Listing::Finished { at: at(3) },
    ] {
        round_trip(&HostRow {
            rolled_back_at: Some(at(22)),
            listed: 23,
            next_listing: Some(at(24)),
            gone: vec![(29, 30)],
            withheld: vec![(31, 32)],
            sweep: Some(SweepMark {
                after: Some(SweepPoint {
                    did: did(),
                    digest: Some([7; 32]),
                }),
                finished: Some(at(25)),
                ..SweepMark::new(at(26))
            }),
            scope: Scope::Listed,
            added: true,
            url: "https://pds.example".to_owned(),
            epoch: 1,
            cursor: Some(2),
            highest_seq: u64::MAX,
            listing,
            last_event: None,
            ring: vec![(1, u64::MAX), (2, 0)],
        });
    }
    let op = |cid, bytes| JournalOp {
        path: "com.example.thing/a".parse().unwrap(),
        cid,
        bytes,
    };
    let cid = Some(Cid::of_block(b"x"));
    round_trip(&JournalEntry {
        commit_block: vec![0xa0],
        since: rev(1),
        swap: true,
        ops: vec![op(cid, Some(b"x".to_vec())), op(cid, None), op(None, None)],
        time: at(1),
        received: at(2),
        seq: 3,
        host: Some(host()),
    });
    round_trip(&ParkedFrame {
        host: host(),
        epoch: 1,
        seq: 2,
        received: at(3),
        rev: rev(4),
        frame: vec![0; 300],
    });
    round_trip(&TaskRow::default());
    round_trip(&AlarmRow {
        since: at(1),
        message: "the host lists no accounts".to_owned(),
        pinned: vec![1, 2],
        acknowledged: Some(Acknowledged {
            by: "ana".to_owned(),
            at: at(2),
        }),
    });
}

#[test]
fn outbox_entries_round_trip() {
    round_trip(&OutboxEntry::Change {
        did: did(),
        host: host(),
        did_number: 1,
        rev: rev(2),
        bytes: 3,
    });
    round_trip(&OutboxEntry::Loaded {
        did: did(),
        host: host(),
        rev: rev(4),
        commit: Cid::of_block(b"commit"),
        received: at(5),
    });
    round_trip(&OutboxEntry::Account {
        did: did(),
        host: host(),
        status: AccountStatus::Other("x".to_owned()),
        received: at(3),
    });
    round_trip(&LogRow {
        generation: 1,
        number: 2,
        prev: Some(Cid::of_block(b"index")),
        cut: Some((3, 4)),
        shipped: Some(2),
    });
}

/// The bytes of a row, for they are on other people's disks: changing them needs a new format version.
#[test]
fn rows_have_their_persisted_form() {
    let row = account(
        AccountStatus::Active,
        SyncState::Wanted {
            reason: DesyncReason::ChainBroken,
            since: at(1),
            tries: 2,
        },
    );
    let Ipld::Map(fields) = serde_ipld_dagcbor::from_slice(&row.encode()).unwrap() else {
        panic!("a row is a map");
    };
    let names: Vec<_> = fields.keys().map(String::as_str).collect();
    let stable = "account_number awaiting_identity away_since deletes deletion_confirmed_at did_number diverged_before_fetch \
                  fetch_again head head_signed_by host identity identity_archived journal_bytes journal_commits min_rev next_audit parked parked_bytes pins \
                  record_bytes records shipped snapshot snapshot_at snapshot_due status_at status_seq sync upstream verified_at";
    assert_eq!(names.join(" "), stable);
    assert_eq!(fields["upstream"], Ipld::String("active".to_owned()));
    assert_eq!(fields["host"], Ipld::String("pds.example:2583".to_owned()));
    assert_eq!(fields["min_rev"], Ipld::Integer(10));
    let Ipld::Map(sync) = &fields["sync"] else {
        panic!("a state with fields is a map");
    };
    let Ipld::Map(wanted) = &sync["wanted"] else {
        panic!("named by its variant");
    };
    assert_eq!(wanted["reason"], Ipld::String("chain_broken".to_owned()));
    let Ipld::Map(head) = &fields["head"] else {
        panic!("the head is a map");
    };
    assert_eq!(
        head["data"],
        Ipld::Bytes(Cid::of_block(b"data").to_bytes().to_vec())
    );
    let digest = |row: &AccountRow| data_encoding::HEXLOWER.encode(&sha256(&row.encode()));
    assert_eq!(
        digest(&row),
        "4b5f0cd4c0bbd920a745594a61bc2d234f6908d566b46bfa564e1748fa6919b3"
    );
    // The handle came later: without one, a row is what it was before.
    let mut earlier = row;
    earlier.identity.as_mut().expect("it has one").handle = None;
    assert_eq!(
        digest(&earlier),
        "e6d8e97916ba9ae1e4513a04fc02435e18a39e794ffd4d981cca5c9bc62799d5"
    );
}

#[test]
fn foreign_rows_are_refused() {
    let tree: Ipld =
        serde_ipld_dagcbor::from_slice(&account(AccountStatus::Active, SyncState::Live).encode()).unwrap();
    let Ipld::Map(fields) = tree else {
        panic!("a row is a map");
    };
    let changed = |name: &str, value: Option<Ipld>| {
        let mut fields = fields.clone();
        fields.remove(name);
        fields.extend(value.map(|value| (name.to_owned(), value)));
        AccountRow::decode(&serde_ipld_dagcbor::to_vec(&Ipld::Map(fields)).unwrap())
    };
    assert!(changed("records", Some(Ipld::Integer(3))).is_ok());
    let earlier = changed("head_signed_by", None).expect("a field that came later");
    assert_eq!(earlier.head_signed_by, HeadSigner::Current);
    let text = |text: &str| Some(Ipld::String(text.to_owned()));
    for (name, value) in [
        ("records", None),
        ("records", text("3")),
        ("records", Some(Ipld::Integer(-1))),
        ("a_later_field", Some(Ipld::Integer(1))),
        ("host", text("not a host")),
        ("upstream", text("schlafend")),
        ("sync", text("asleep")),
        ("min_rev", Some(Ipld::Integer(1 << 63))),
        ("verified_at", text("yesterday")),
    ] {
        assert!(changed(name, value.clone()).is_err(), "{name} = {value:?}");
    }
    let mut bad_head = account(AccountStatus::Active, SyncState::Live);
    bad_head.head = None;
    let value = bad_head.encode();
    assert!(AccountRow::decode(&value).is_ok() && HostRow::decode(&value).is_err());
}

#[test]
fn status_is_read_from_events_and_never_shows_what_is_hidden() {
    let read = AccountStatus::from_wire;
    for status in statuses() {
        let again = read(status.is_active(), status.wire_name());
        match status {
            // These two cannot come from an event; whatever happens, they stay hidden.
            AccountStatus::Other(text) if text == "deactivated" => {
                assert_eq!(again, AccountStatus::Deactivated)
            }
            _ => assert_eq!(again, status),
        }
    }
    for status in [
        None,
        Some("throttled"),
        Some("desynchronized"),
        Some("active"),
        Some("?"),
    ] {
        assert!(!read(false, status).is_active(), "{status:?}");
    }
    for status in [None, Some("takendown"), Some("?")] {
        assert_eq!(read(true, status), AccountStatus::Active);
    }
    let long = "ü".repeat(1000);
    let AccountStatus::Other(kept) = read(false, Some(&long)) else {
        panic!("unknown");
    };
    assert!(kept.len() <= crate::types::account_status::STATUS_BYTES_MAX && long.starts_with(&kept));
}

#[test]
fn reasons_are_named_as_they_are_stored() {
    for reason in REASONS {
        let stored: String =
            serde_ipld_dagcbor::from_slice(&serde_ipld_dagcbor::to_vec(&reason).unwrap()).unwrap();
        assert_eq!(stored, reason.as_str());
    }
}

proptest! {
    #[test]
    fn record_values_round_trip(bits in 0..=u64::MAX >> 1, digest: Digest, bytes: Vec<u8>) {
        let record = RecordValue { rev: rev(bits), digest, bytes: &bytes };
        let value = record.encode();
        prop_assert_eq!(value.len(), RECORD_HEAD_BYTES + bytes.len());
        prop_assert_eq!(RecordValue::decode(&value), Ok(record));
        prop_assert_eq!(record.cid(), Cid::dag_cbor(digest));
    }

    #[test]
    fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
        let opened = [
            AccountRow::decode(&bytes).is_ok(),
            JournalEntry::decode(&bytes).is_ok(),
            OutboxEntry::decode(&bytes).is_ok(),
        ];
        prop_assert_eq!(opened, [false; 3]);
        if let Ok(record) = RecordValue::decode(&bytes) {
            prop_assert_eq!(record.encode(), bytes);
        }
    }
}

#[test]
fn short_record_values_are_refused() {
    let value = [0; RECORD_HEAD_BYTES];
    assert!(RecordValue::decode(&value).is_ok());
    for end in 0..RECORD_HEAD_BYTES {
        assert!(RecordValue::decode(&value[..end]).is_err());
    }
    let mut no_rev = value;
    no_rev[0] = 0x80;
    assert!(RecordValue::decode(&no_rev).is_err());
}
