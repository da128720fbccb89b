//! Every key round-trips, is refused when it is not one, and sorts as its family is scanned.

use proptest::prelude::*;

use super::*;
use crate::types::Timestamp;

fn did(text: &str) -> Did {
    text.parse().unwrap()
}

fn any_did() -> impl Strategy<Value = Did> {
    "did:(plc:[a-z2-7]{24}|web:[a-z0-9.-]{1,30}[a-z])".prop_map(|text| did(&text))
}

fn any_host() -> impl Strategy<Value = HostName> {
    "[a-z0-9]{1,10}(\\.[a-z0-9]{1,10}){0,2}(:[1-9][0-9]{0,3})?".prop_map(|text| text.parse().unwrap())
}

/// Paths whose collections are prefixes of each other, with the bytes that sort before `/` among them.
fn any_path() -> impl Strategy<Value = RepoPath> {
    let collection = "com\\.example\\.(foo|foo-x\\.bar|foo\\.bar|foox|Foo)";
    let path = format!("{collection}/[a-c.:~_-]{{0,2}}[a-c]");
    prop::string::string_regex(&path)
        .unwrap()
        .prop_map(|text| text.parse().unwrap())
}

fn any_digest() -> impl Strategy<Value = Digest> {
    prop_oneof![any::<Digest>(), Just([0; 32]), Just([0xff; 32])]
}

fn any_rev() -> impl Strategy<Value = Rev> {
    (0..=u64::MAX >> 1).prop_map(|bits| Rev::from_bits(bits).unwrap())
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..300u64]
}

fn any_task() -> impl Strategy<Value = Task> {
    prop_oneof![
        any_did().prop_map(Task::FetchRepo),
        (any_did(), any_digest()).prop_map(|(did, digest)| Task::FetchBlob(did, digest)),
        any_did().prop_map(Task::Snapshot),
        any_host().prop_map(Task::ListRepos),
        any_did().prop_map(Task::ResolveIdentity),
        any_number().prop_map(Task::DropGeneration),
    ]
}

fn any_alarm() -> impl Strategy<Value = AlarmId> {
    let kind = prop::sample::select(vec![
        AlarmKind::SequenceReset,
        AlarmKind::Rollback,
        AlarmKind::MassDelete,
        AlarmKind::RepoNotFound,
        AlarmKind::EmptyList,
        AlarmKind::Quarantine,
    ]);
    (prop::option::of(any_host()), kind, ".{0,12}").prop_map(|(host, kind, subject)| AlarmId {
        host,
        kind,
        subject,
    })
}

proptest! {
    #[test]
    fn keys_of_accounts_and_hosts_round_trip(did in any_did(), host in any_host()) {
        prop_assert_eq!(decode_account(&encode_account(&did)), Ok(did));
        prop_assert_eq!(decode_host(&encode_host(&host)), Ok(host));
    }

    #[test]
    fn keys_with_numbers_round_trip(first in any_number(), second in any_number(), rev in any_rev()) {
        prop_assert_eq!(decode_number(&encode_number(first)), Ok(first));
        prop_assert_eq!(decode_outbox(&encode_outbox(first)), Ok(first));
        prop_assert_eq!(decode_parked(&encode_parked(first, second)), Ok((first, second)));
        prop_assert_eq!(decode_journal(&encode_journal(first, rev)), Ok((first, rev)));
    }

    #[test]
    fn keys_of_records_and_blobs_round_trip(
        number in any_number(),
        path in any_path(),
        digest in any_digest(),
        chunk in any::<u32>(),
    ) {
        let key = encode_record(number, path.as_bytes());
        prop_assert_eq!(decode_record(&key), Ok((number, path.clone())));
        prop_assert_eq!(split_record(&key), Ok((number, path.as_bytes())));
        let key = encode_blob_ref(number, &digest, path.as_bytes());
        prop_assert_eq!(decode_blob_ref(&key), Ok((number, digest, path.clone())));
        prop_assert_eq!(split_blob_ref(&key), Ok((number, digest, path.as_bytes())));
        prop_assert_eq!(decode_blob(&encode_blob(number, &digest)), Ok((number, digest)));
        let key = encode_blob_data(number, &digest, chunk);
        prop_assert_eq!(decode_blob_data(&key), Ok((number, digest, chunk)));
    }

    #[test]
    fn keys_of_tasks_and_alarms_round_trip(due in any_number(), task in any_task(), alarm in any_alarm()) {
        prop_assert_eq!(decode_task(&encode_task(due, &task)), Ok((due, task)));
        prop_assert_eq!(decode_alarm(&encode_alarm(&alarm)), Ok(alarm));
    }

    /// Whatever decodes is what encoding makes: no two keys mean the same.
    #[test]
    fn nothing_else_decodes(key in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        "[a-z0-9.:\\x00-]{0,40}".prop_map(String::into_bytes),
        (any_number(), any_task(), any::<(usize, u8)>()).prop_map(|(due, task, (at, byte))| {
            let mut key = encode_task(due, &task);
            let at = at % key.len();
            key[at] = byte;
            key
        }),
    ]) {
        macro_rules! canonical {
            ($decode:expr, $encode:expr) => {
                if let Ok(decoded) = $decode(&key) {
                    prop_assert_eq!(&$encode(decoded)[..], &key[..]);
                }
            };
        }
        canonical!(decode_host, |host| encode_host(&host));
        canonical!(decode_account, |did| encode_account(&did));
        canonical!(decode_record, |(number, path): (u64, RepoPath)| encode_record(number, path.as_bytes()));
        canonical!(decode_parked, |(did, arrival)| encode_parked(did, arrival));
        canonical!(decode_journal, |(number, rev)| encode_journal(number, rev));
        canonical!(decode_outbox, encode_outbox);
        canonical!(decode_blob, |(number, digest): (u64, Digest)| encode_blob(number, &digest));
        canonical!(decode_task, |(due, task): (u64, Task)| encode_task(due, &task));
        canonical!(decode_alarm, |alarm| encode_alarm(&alarm));
    }

    #[test]
    fn records_sort_by_account_and_then_as_the_tree(
        mut rows in prop::collection::vec((0..3u64, any_path()), 2..40)
    ) {
        let encode = |(number, path): &(u64, RepoPath)| encode_record(*number, path.as_bytes());
        let mut keys: Vec<_> = rows.iter().map(encode).collect();
        keys.sort();
        // The tree's order is that of the paths' bytes.
        rows.sort_by(|a, b| (a.0, a.1.as_str().as_bytes()).cmp(&(b.0, b.1.as_str().as_bytes())));
        let decoded: Vec<_> = keys.iter().map(|key| decode_record(key).unwrap()).collect();
        prop_assert_eq!(decoded, rows);
    }

    #[test]
    fn ranges_hold_what_they_name_and_nothing_else(
        number in 0..3u64,
        other in 0..3u64,
        path in any_path(),
        wanted in any_path(),
        digests in any::<(bool, bool)>(),
    ) {
        let key = encode_record(number, path.as_bytes());
        prop_assert_eq!(number_range(other).contains(&key), number == other);
        let (from, to) = number_bounds(other);
        prop_assert_eq!((&from[..]..&to[..]).contains(&&key[..]), number == other);
        let collection = collection_range(other, wanted.collection());
        let inside = number == other && path.collection() == wanted.collection();
        prop_assert_eq!(collection.contains(&key), inside);
        let [digest, wanted] = [digests.0, digests.1].map(|last| if last { [0xff; 32] } else { [0; 32] });
        let inside = number == other && digest == wanted;
        let key = encode_blob_ref(number, &digest, path.as_bytes());
        prop_assert_eq!(blob_ref_range(other, &wanted).contains(&key), inside);
        let key = encode_blob_data(number, &digest, u32::MAX);
        prop_assert_eq!(blob_data_range(other, &wanted).contains(&key), inside);
    }

    #[test]
    fn journals_sort_by_rev(number in any_number(), a in any_rev(), b in any_rev()) {
        let order = encode_journal(number, a).cmp(&encode_journal(number, b));
        prop_assert_eq!(order, a.to_string().cmp(&b.to_string()));
    }

    #[test]
    fn tasks_sort_by_when_they_are_due(
        a in (any_number(), any_task()),
        b in (any_number(), any_task()),
        now in any_number(),
    ) {
        let [first, second] = [&a, &b].map(|(due, task)| encode_task(*due, task));
        if a.0 != b.0 {
            prop_assert_eq!(first.cmp(&second), a.0.cmp(&b.0));
        }
        prop_assert_eq!(due_range(now).contains(&first), a.0 <= now);
    }

    #[test]
    fn alarms_of_a_host_are_together(alarm in any_alarm(), host in prop::option::of(any_host())) {
        let key = encode_alarm(&alarm);
        prop_assert!(alarm_range(alarm.host.as_ref()).contains(&key));
        prop_assert_eq!(alarm_range(host.as_ref()).contains(&key), host == alarm.host);
    }

    #[test]
    fn chunks_sort_by_number(a in any::<u32>(), b in any::<u32>()) {
        let order = encode_blob_data(1, &[7; 32], a).cmp(&encode_blob_data(1, &[7; 32], b));
        prop_assert_eq!(order, a.cmp(&b));
    }
}

#[test]
fn collections_that_prefix_each_other_sort_as_in_the_tree() {
    let paths = [
        "com.example.foo-x.bar/a",
        "com.example.foo.bar/a",
        "com.example.foo/a",
        "com.example.foox/a",
    ];
    let keys: Vec<_> = paths
        .iter()
        .map(|path| encode_record(1, path.as_bytes()))
        .collect();
    assert!(keys.is_sorted());
}

/// The bytes themselves, for they are on other people's disks.
#[test]
fn keys_have_their_persisted_form() {
    let digest = [0xdd; 32];
    let did = did("did:web:a.example");
    let hex = |key: &[u8]| data_encoding::HEXLOWER.encode(key);
    let rev = Rev::from_time(Timestamp::from_micros(1), 2);
    assert_eq!(encode_record(258, b"a.b.c/d"), b"\0\0\0\0\0\0\x01\x02a.b.c/d");
    assert_eq!(hex(&encode_parked(1, 2)), "00000000000000010000000000000002");
    assert_eq!(hex(&encode_journal(1, rev)), "00000000000000010000000000000402");
    let blob = format!("0000000000000001{}", "dd".repeat(32));
    assert_eq!(hex(&encode_blob(1, &digest)), blob);
    assert_eq!(hex(&encode_blob_data(1, &digest, 3)), format!("{blob}00000003"));
    assert_eq!(
        hex(&encode_blob_ref(1, &digest, b"a.b.c/d")),
        format!("{blob}612e622e632f64")
    );
    assert_eq!(
        encode_task(3, &Task::FetchRepo(did.clone())),
        b"\0\0\0\0\0\0\0\x03\x01did:web:a.example"
    );
    let fetch_blob = [&b"\0\0\0\0\0\0\0\x03\x02"[..], &digest, b"did:web:a.example"].concat();
    assert_eq!(encode_task(3, &Task::FetchBlob(did, digest)), fetch_blob);
    let alarm = AlarmId {
        host: Some("pds.example".parse().unwrap()),
        kind: AlarmKind::MassDelete,
        subject: "x".to_owned(),
    };
    assert_eq!(encode_alarm(&alarm), b"pds.example\0\x03x");
}

#[test]
fn malformed_keys_are_refused() {
    let digest = [1; 32];
    let blob_ref = encode_blob_ref(1, &digest, b"com.example.a/b");
    let task = encode_task(1, &Task::DropGeneration(7));
    let mut unknown_task = task.clone();
    unknown_task[8] = 99;
    let refused: [(&str, bool); 25] = [
        ("host in capitals", decode_host(b"PDS.example").is_err()),
        ("host of other bytes", decode_host(b"\xff").is_err()),
        ("no host", decode_host(b"").is_err()),
        ("no DID", decode_account(b"plc:abc").is_err()),
        ("DID of other bytes", decode_account(b"did:plc:\xff").is_err()),
        ("short number", decode_number(&[0; 7]).is_err()),
        ("long number", decode_outbox(&[0; 9]).is_err()),
        (
            "record without path",
            decode_record(&encode_record(1, b"")).is_err(),
        ),
        ("record with half a number", split_record(&[0; 7]).is_err()),
        (
            "record with a bad path",
            decode_record(&encode_record(1, b"com.example.a")).is_err(),
        ),
        ("short parked", decode_parked(&[0; 15]).is_err()),
        ("long parked", decode_parked(&[0; 17]).is_err()),
        ("journal with half a rev", decode_journal(&[0; 12]).is_err()),
        ("journal with no rev", decode_journal(&[0xff; 16]).is_err()),
        (
            "blob reference without path",
            decode_blob_ref(&blob_ref[..BLOB_KEY_BYTES]).is_err(),
        ),
        (
            "blob reference without digest",
            split_blob_ref(&blob_ref[..BLOB_KEY_BYTES - 1]).is_err(),
        ),
        ("short blob", decode_blob(&[0; BLOB_KEY_BYTES - 1]).is_err()),
        ("long blob", decode_blob(&[0; BLOB_KEY_BYTES + 1]).is_err()),
        (
            "short chunk",
            decode_blob_data(&[0; BLOB_DATA_KEY_BYTES - 1]).is_err(),
        ),
        (
            "long chunk",
            decode_blob_data(&[0; BLOB_DATA_KEY_BYTES + 1]).is_err(),
        ),
        ("task without kind", decode_task(&task[..8]).is_err()),
        ("task of unknown kind", decode_task(&unknown_task).is_err()),
        (
            "task with half a subject",
            decode_task(&task[..task.len() - 1]).is_err(),
        ),
        ("alarm without NUL", decode_alarm(b"pds.example").is_err()),
        (
            "alarm of unknown kind",
            decode_alarm(b"pds.example\0\x63").is_err(),
        ),
    ];
    for (what, refused) in refused {
        assert!(refused, "{what}");
    }
    assert!(decode_alarm(b"pds.example\0").is_err() && decode_alarm(b"\0\x01\xff").is_err());
}
