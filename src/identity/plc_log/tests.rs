//! Each rule of a log fires by itself; what stands is what the rules leave.

use serde_json::json;

use super::fixtures::{LogMaker, key, secret};
use super::*;

const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);

/// Rotation keys 1, 2, 3; signing key 10; at `old.test`.
fn genesis() -> LogMaker {
    let mut log = LogMaker::new(NOW);
    log.push(LogMaker::operation(&[1, 2, 3], &key(10), "old.test", None), 1);
    log.later(HOUR);
    log
}

fn next(log: &LogMaker, signing: u8) -> Value {
    LogMaker::operation(&[1, 2, 3], &key(signing), "old.test", Some(&log.last_cid()))
}

fn parse(log: &LogMaker) -> Result<PlcLog, PlcLogError> {
    PlcLog::parse(&log.did(), &log.answer())
}

fn fault(log: &LogMaker) -> (Option<usize>, PlcFault) {
    let error = parse(log).expect_err("must not verify");
    (error.entry, error.fault)
}

#[test]
fn a_log_says_what_is_and_what_was() {
    let mut log = genesis();
    log.push(next(&log, 10), 3);
    log.later(HOUR);
    log.push(
        LogMaker::operation(&[2], &key(11), "new.test", Some(&log.last_cid())),
        2,
    );
    log.later(HOUR);
    log.push(
        LogMaker::operation(&[2], &key(10), "new.test", Some(&log.last_cid())),
        2,
    );
    let parsed = parse(&log).expect("verifies");
    let state = parsed.current().expect("not given up");
    assert_eq!(state.rotation_keys, [key(2)]);
    assert_eq!(state.pds.as_deref(), Some("https://new.test"));
    assert_eq!(state.handle.as_deref(), Some("someone.test"));
    let spans: Vec<_> = parsed
        .signing_keys()
        .iter()
        .map(|logged| (logged.key().to_did_key(), logged.from(), logged.until()))
        .collect();
    let at = |hours: u32| NOW.plus(HOUR * hours);
    let expected = [
        (key(10), at(3), None),
        (key(11), at(2), Some(at(3))),
        (key(10), at(0), Some(at(2))),
    ];
    assert_eq!(spans, expected);
    let earlier = |current: u8, max| {
        let keys = parsed.earlier_keys(&secret(current).public(), max);
        let keys: Vec<_> = keys.iter().map(|logged| logged.key().to_did_key()).collect();
        keys
    };
    assert_eq!(earlier(10, 16), [key(11)]);
    assert_eq!(earlier(9, 16), [key(10), key(11)]);
    assert_eq!(earlier(9, 1), [key(10)]);
    assert_eq!(parsed.entries().len(), 4);
    assert_eq!(*parsed.did(), log.did());
}

#[test]
fn unknown_fields_are_hashed_and_signed() {
    let mut log = genesis();
    let mut operation = next(&log, 10);
    operation["x"] = json!({"bb": [1, -2, true, null], "a": "ü"});
    operation["services"]["other"] = json!({"type": "Other", "endpoint": "https://o.test", "more": 1});
    log.push(operation, 1);
    assert_eq!(parse(&log).map(|log| log.entries().len()), Ok(2));
    log.entries[1]["operation"]["x"]["bb"][0] = 2.into();
    assert_eq!(fault(&log), (Some(1), PlcFault::CidMismatch));
}

#[test]
fn a_stronger_key_undoes_what_a_weaker_one_signed() {
    let recovered = |undone_by: u8, signer: u8, after: Duration| {
        let mut log = genesis();
        log.push(next(&log, 11), undone_by);
        log.push(next(&log, 12), undone_by);
        log.entries[1]["nullified"] = true.into();
        log.entries[2]["nullified"] = true.into();
        log.later(after);
        let first = log.cid(0);
        log.push(
            LogMaker::operation(&[1], &key(13), "old.test", Some(&first)),
            signer,
        );
        log
    };
    let log = recovered(3, 2, 72 * HOUR);
    let parsed = parse(&log).expect("at exactly 72 hours");
    let keys: Vec<_> = parsed.signing_keys();
    let keys: Vec<_> = keys.iter().map(|logged| logged.key().to_did_key()).collect();
    assert_eq!(
        keys,
        [key(13), key(10)],
        "keys of nullified operations prove nothing"
    );

    let late = recovered(3, 2, 72 * HOUR + Duration::from_millis(1));
    assert_eq!(fault(&late), (Some(3), PlcFault::TooLate));
    for (undone_by, signer) in [(2, 2), (1, 2), (2, 3)] {
        let log = recovered(undone_by, signer, HOUR);
        assert_eq!(
            fault(&log),
            (Some(3), PlcFault::NotStronger),
            "{undone_by} {signer}"
        );
    }

    // The undone operations cannot be built on again.
    let mut log = recovered(3, 2, HOUR);
    let undone = log.cid(2);
    log.push(LogMaker::operation(&[1], &key(1), "old.test", Some(&undone)), 1);
    assert_eq!(fault(&log), (Some(4), PlcFault::UnknownPrev));

    // And the flags have to say so, in both directions.
    let mut log = recovered(3, 2, HOUR);
    log.entries[2]["nullified"] = false.into();
    assert_eq!(fault(&log), (Some(2), PlcFault::NullifiedFlag));
    let mut log = genesis();
    log.entries[0]["nullified"] = true.into();
    assert_eq!(fault(&log), (Some(0), PlcFault::NullifiedFlag));
}

#[test]
fn a_tombstone_ends_a_did_until_it_is_undone() {
    let mut log = genesis();
    let tombstone = json!({"type": "plc_tombstone", "prev": log.last_cid()});
    log.push(tombstone, 2);
    let parsed = parse(&log).expect("verifies");
    assert_eq!(parsed.current(), None);
    assert_eq!(parsed.signing_keys()[0].until(), Some(NOW.plus(HOUR)));

    let mut after = log.clone();
    after.push(next(&log, 10), 1);
    assert_eq!(fault(&after), (Some(2), PlcFault::AfterTombstone));

    log.entries[1]["nullified"] = true.into();
    let first = log.cid(0);
    log.push(LogMaker::operation(&[1], &key(11), "old.test", Some(&first)), 1);
    assert!(parse(&log).expect("undone").current().is_some());

    let mut first = LogMaker::new(NOW);
    first.push(json!({"type": "plc_tombstone", "prev": null}), 1);
    assert_eq!(fault(&first), (Some(0), PlcFault::NotGenesis));
}

#[test]
fn the_old_form_may_only_be_first() {
    let create = |prev: Option<&str>| {
        json!({
            "type": "create", "signingKey": key(10), "recoveryKey": key(1), "handle": "someone.test",
            "service": "pds.test", "prev": prev,
        })
    };
    let mut log = LogMaker::new(NOW);
    log.push(create(None), 10);
    let parsed = parse(&log).expect("signed by the second rotation key, its signing key");
    let state = parsed.current().expect("not given up");
    assert_eq!(state.rotation_keys, [key(1), key(10)]);
    assert_eq!(state.signing_key, Some(secret(10).public()));
    assert_eq!(
        (state.pds.as_deref(), state.handle.as_deref()),
        (Some("https://pds.test"), Some("someone.test"))
    );
    log.push(create(Some(&log.last_cid())), 1);
    assert_eq!(fault(&log), (Some(1), PlcFault::SecondGenesis));
}

#[test]
fn the_first_operation_is_the_did() {
    let log = genesis();
    let mut other = LogMaker::new(NOW);
    other.push(LogMaker::operation(&[1], &key(10), "old.test", None), 1);
    let mut lying = other.clone();
    lying.entries[0]["did"] = log.did().as_str().into();
    assert_eq!(fault(&lying), (Some(0), PlcFault::GenesisHash));
    let answer = other.answer();
    let error = PlcLog::parse(&log.did(), &answer).expect_err("another's");
    assert_eq!(error.fault, PlcFault::OtherDid);

    let mut foreign = LogMaker::new(NOW);
    foreign.push(LogMaker::operation(&[1], &key(10), "old.test", None), 2);
    assert_eq!(fault(&foreign), (Some(0), PlcFault::NotSigned));
    let mut rooted = LogMaker::new(NOW);
    rooted.push(
        LogMaker::operation(&[1], &key(10), "old.test", Some(&log.last_cid())),
        1,
    );
    assert_eq!(fault(&rooted), (Some(0), PlcFault::NotGenesis));
    let mut twice = genesis();
    twice.push(LogMaker::operation(&[1], &key(10), "old.test", None), 1);
    assert_eq!(fault(&twice), (Some(1), PlcFault::SecondGenesis));
    let mut lost = genesis();
    let elsewhere = Cid::of_block(b"elsewhere").to_string();
    lost.push(
        LogMaker::operation(&[1], &key(10), "old.test", Some(&elsewhere)),
        1,
    );
    assert_eq!(fault(&lost), (Some(1), PlcFault::UnknownPrev));
}

#[test]
fn signatures_are_strict() {
    let log = genesis();
    let operation = next(&log, 11);
    let message = serde_ipld_dagcbor::to_vec(&operation).expect("encodes");
    let good = secret(2).sign(&message);
    let with = |sig: &[u8]| {
        let mut log = log.clone();
        log.push_with_sig(operation.clone(), sig);
        log
    };
    assert!(parse(&with(&good)).is_ok());
    assert_eq!(fault(&with(&good[..63])), (Some(1), PlcFault::SignatureForm));
    let mut high = good;
    high[32..].fill(0xf0);
    assert_eq!(fault(&with(&high)), (Some(1), PlcFault::HighS));
    let mut wrong = good;
    wrong[0] ^= 1;
    assert_eq!(fault(&with(&wrong)), (Some(1), PlcFault::NotSigned));
    let foreign = secret(4).sign(&message);
    assert_eq!(fault(&with(&foreign)), (Some(1), PlcFault::NotSigned));

    let text = data_encoding::BASE64URL_NOPAD.encode(&good);
    let padded = format!("{text}==");
    let trailing_bits = format!("{}{}", &text[..85], if text.ends_with('A') { 'B' } else { 'h' });
    let standard = data_encoding::BASE64.encode(&[0xff; 64]);
    for sig in [padded, trailing_bits, standard, String::new()] {
        let mut log = log.clone();
        let mut operation = operation.clone();
        operation["sig"] = sig.clone().into();
        log.push_signed(operation);
        assert_eq!(fault(&log), (Some(1), PlcFault::SignatureForm), "{sig}");
    }
}

#[test]
fn what_grants_nothing_verifies_nothing() {
    // The last rotation key was given up: nobody can sign any more.
    let mut log = genesis();
    log.push(
        LogMaker::operation(&[], &key(10), "old.test", Some(&log.last_cid())),
        1,
    );
    assert!(parse(&log).is_ok());
    log.push(next(&log, 10), 1);
    assert_eq!(fault(&log), (Some(2), PlcFault::NotSigned));

    // A rotation key that is no key signs nothing, and a signing key that is none is none.
    let mut log = genesis();
    let mut operation = LogMaker::operation(&[1], "did:key:zUnknown", "old.test", Some(&log.last_cid()));
    operation["rotationKeys"] = json!(["did:key:zUnknown", key(2)]);
    log.push(operation, 1);
    let parsed = parse(&log).expect("verifies");
    assert_eq!(parsed.current().expect("there").signing_key, None);
    assert_eq!(parsed.signing_keys().len(), 1);
    log.push(next(&log, 12), 2);
    assert!(parse(&log).is_ok());
}

#[test]
fn malformed_logs_are_refused() {
    let log = genesis();
    let did = log.did();
    let refused = |answer: &[u8]| PlcLog::parse(&did, answer).expect_err("refused");
    assert_eq!(refused(b"{}").fault, PlcFault::NotAList);
    assert_eq!(refused(b"[").fault, PlcFault::NotAList);
    assert_eq!(refused(b"[]").fault, PlcFault::Empty);
    let long = vec![b' '; usize::try_from(LOG_BYTES_MAX).expect("small") + 1];
    assert_eq!(refused(&long).fault, PlcFault::TooLong);
    let many = serde_json::to_vec(&vec![0; ENTRIES_MAX + 1]).expect("JSON");
    assert_eq!(refused(&many).fault, PlcFault::TooManyEntries);
    assert_eq!(refused(b"[1]").fault, PlcFault::EntryMalformed);
    let web = PlcLog::parse(&"did:web:a.test".parse().expect("a DID"), &log.answer());
    assert_eq!(web.expect_err("no log").fault, PlcFault::NotPlc);

    for field in ["did", "operation", "cid", "nullified", "createdAt"] {
        for value in [Value::Null, json!("x"), json!(1)] {
            let mut bad = log.clone();
            bad.entries[0][field] = value.clone();
            let error = refused(&bad.answer());
            let expected = if (field, &value) == ("did", &json!("x")) {
                PlcFault::OtherDid
            } else {
                PlcFault::EntryMalformed
            };
            assert_eq!((error.entry, error.fault), (Some(0), expected), "{field} {value}");
        }
    }
    let mut early = log.clone();
    early.push(next(&log, 10), 1);
    early.entries[1]["createdAt"] = NOW.minus(HOUR).to_string().into();
    assert_eq!(fault(&early), (Some(1), PlcFault::TimeGoesBack));
    let mut lying = log.clone();
    lying.entries[0]["cid"] = Cid::of_block(b"x").to_string().into();
    assert_eq!(fault(&lying), (Some(0), PlcFault::CidMismatch));
}

#[test]
fn malformed_operations_are_refused() {
    let log = genesis();
    let with = |field: &str, value: Value| {
        let mut log = log.clone();
        let mut operation = next(&log, 10);
        operation[field] = value;
        log.push(operation, 1);
        fault(&log)
    };
    for field in [
        "type",
        "rotationKeys",
        "verificationMethods",
        "alsoKnownAs",
        "services",
        "prev",
    ] {
        for value in [json!(1), json!([1]), json!({"a": 1})] {
            let found = with(field, value.clone());
            assert_eq!(found, (Some(1), PlcFault::OperationMalformed), "{field} {value}");
        }
    }
    assert_eq!(with("prev", json!("x")).1, PlcFault::OperationMalformed);
    assert_eq!(with("type", json!("plc_other")).1, PlcFault::UnknownType);
    assert_eq!(with("x", json!(1.5)).1, PlcFault::Number);
    assert_eq!(with("x", json!(u64::MAX)).1, PlcFault::Number);
    let keys = vec![key(1); ROTATION_KEYS_MAX + 1];
    assert_eq!(with("rotationKeys", json!(keys)).1, PlcFault::TooManyRotationKeys);
    let names = vec!["at://a.test"; FIELDS_MAX + 1];
    assert_eq!(with("alsoKnownAs", json!(names)).1, PlcFault::TooManyFields);
    let mut log = log.clone();
    log.entries[0]["operation"]
        .as_object_mut()
        .expect("an object")
        .remove("sig");
    assert_eq!(fault(&log), (Some(0), PlcFault::OperationMalformed));
}

#[test]
fn errors_say_where() {
    assert_eq!(
        PlcFault::HighS.at(3).to_string(),
        "the audit log does not verify at operation 3: its signature is in high-S form"
    );
    assert_eq!(
        PlcFault::Empty.of_log().to_string(),
        "the audit log does not verify: it is empty"
    );
}
