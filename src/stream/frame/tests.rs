//! Frames that decode, and each way in which one may not.

use proptest::prelude::*;

use super::*;
use crate::repo::cbor;
use crate::stream::encode::encode_frame;

fn cid(text: &str) -> Cid {
    Cid::of_block(text.as_bytes())
}

fn a_commit() -> CommitFrame<'static> {
    CommitFrame {
        seq: 42,
        did: "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("valid"),
        commit: cid("commit"),
        rev: "3k2yihcrp6f2c".parse().expect("valid"),
        since: Some("3k2yihcrp6f2b".parse().expect("valid")),
        blocks: b"a CAR",
        ops: vec![
            FrameOp {
                action: Action::Create,
                path: "app.bsky.feed.post/3k2yihcrp6f2c",
                cid: Some(cid("new")),
                prev: None,
            },
            FrameOp {
                action: Action::Update,
                path: "app.bsky.actor.profile/self",
                cid: Some(cid("new")),
                prev: Some(cid("old")),
            },
            FrameOp {
                action: Action::Delete,
                path: "app.bsky.feed.like/a:b",
                cid: None,
                prev: Some(cid("old")),
            },
        ],
        prev_data: Some(cid("data")),
        too_big: false,
        time: Some("2026-01-02T03:04:05.678Z".parse().expect("valid")),
    }
}

/// Every message that a host may send, once.
fn one_of_each() -> Vec<Frame<'static>> {
    let (did, time) = (a_commit().did, a_commit().time);
    vec![
        Frame::Commit(a_commit()),
        Frame::Commit(CommitFrame {
            since: None,
            prev_data: None,
            ops: Vec::new(),
            time: None,
            ..a_commit()
        }),
        Frame::Sync(SyncFrame {
            seq: 1,
            did: did.clone(),
            blocks: b"",
            rev: a_commit().rev,
            time,
        }),
        Frame::Identity(IdentityFrame {
            seq: SEQ_MAX,
            did: did.clone(),
            handle: Some("alice.test"),
            time,
        }),
        Frame::Account(AccountFrame {
            seq: 3,
            did,
            active: false,
            status: Some("something-new"),
            time,
        }),
        Frame::Info(InfoFrame {
            name: "OutdatedCursor",
            message: None,
        }),
        Frame::Error(ErrorFrame {
            error: "FutureCursor",
            message: Some("cursor in the future"),
        }),
        Frame::Unknown(UnknownFrame {
            op: 2,
            t: Some("#commit"),
            seq: Some(9),
        }),
        Frame::Unknown(UnknownFrame {
            op: 1,
            t: Some("#labels"),
            seq: None,
        }),
        Frame::Unknown(UnknownFrame {
            op: 7,
            t: None,
            seq: None,
        }),
    ]
}

#[test]
fn every_kind_of_frame_comes_back_as_it_was() {
    for frame in one_of_each() {
        let bytes = encode_frame(&frame);
        assert_eq!(decode_frame(&bytes).as_ref(), Ok(&frame));
    }
}

#[test]
fn a_type_may_be_written_in_full() {
    let short = encode_frame(&Frame::Commit(a_commit()));
    let (_, body) = short.split_at(cbor::item_len(&short).expect("strict"));
    let header = |t: &str| {
        let mut out = vec![0xa2, 0x61, b't', 0x78, u8::try_from(t.len()).expect("short")];
        out.extend_from_slice(t.as_bytes());
        out.extend_from_slice(&[0x62, b'o', b'p', 1]);
        [&out, body].concat()
    };
    let full = header("com.atproto.sync.subscribeRepos#commit");
    assert_eq!(decode_frame(&full), Ok(Frame::Commit(a_commit())));
    let foreign = header("com.example.other.subscribe#commit");
    assert!(matches!(decode_frame(&foreign), Ok(Frame::Unknown(_))));
}

#[test]
fn a_broken_frame_drops_the_connection() {
    let good = encode_frame(&Frame::Commit(a_commit()));
    let header = &good[..cbor::item_len(&good).expect("strict")];
    let body = &good[header.len()..];
    let trailing = [&good, &[0xa0][..]].concat();
    type Case = (Vec<u8>, fn(&FrameError) -> bool);
    let cases: Vec<Case> = vec![
        (vec![0; FRAME_BYTES_MAX + 1], |e| {
            matches!(e, FrameError::TooLong(_))
        }),
        (Vec::new(), |e| matches!(e, FrameError::HeaderCbor(_))),
        (vec![0x80, 0xa0], |e| *e == FrameError::HeaderNotMap),
        (vec![0xa0, 0xa0], |e| *e == FrameError::HeaderOp),
        (b"\xa1\x62op\x61x\xa0".to_vec(), |e| *e == FrameError::HeaderOp),
        (b"\xa1\x62op\x01\xa0".to_vec(), |e| *e == FrameError::HeaderType),
        (b"\xa2\x61t\x01\x62op\x01\xa0".to_vec(), |e| {
            *e == FrameError::HeaderType
        }),
        (header.to_vec(), |e| *e == FrameError::NoBody),
        (good[..good.len() - 1].to_vec(), |e| {
            matches!(e, FrameError::BodyCbor(_))
        }),
        ([header, b"\xa1\x61a\xf9\x00\x00"].concat(), |e| {
            matches!(e, FrameError::BodyCbor(_))
        }),
        ([header, b"\xa2\x61b\x00\x61a\x00"].concat(), |e| {
            matches!(e, FrameError::BodyCbor(_))
        }),
        ([header, &[0x81][..], body].concat(), |e| {
            *e == FrameError::BodyNotMap
        }),
        ([header, &[0x80][..]].concat(), |e| *e == FrameError::BodyNotMap),
        (trailing, |e| *e == FrameError::TrailingBytes(1)),
    ];
    for (index, (frame, expected)) in cases.iter().enumerate() {
        let error = decode_frame(frame).expect_err("broken");
        assert!(expected(&error), "case {index}: {error:?}");
        assert_eq!(error.severity(), Severity::DropConnection, "case {index}");
    }
}

/// A payload of these fields under a header of this type. The fields must stand in DAG-CBOR order.
fn raw(t: &str, fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = vec![0xa2, 0x61, b't', 0x60 + u8::try_from(t.len()).expect("short")];
    out.extend_from_slice(t.as_bytes());
    out.extend_from_slice(&[0x62, b'o', b'p', 1]);
    out.push(0xa0 + u8::try_from(fields.len()).expect("few"));
    for (key, value) in fields {
        out.push(0x60 + u8::try_from(key.len()).expect("short"));
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(value);
    }
    out
}

fn text(text: &str) -> Vec<u8> {
    let mut out = vec![0x79];
    match u8::try_from(text.len()) {
        Ok(len @ 0..=23) => out = vec![0x60 + len],
        Ok(len) => out = vec![0x78, len],
        Err(_) => out.extend_from_slice(&u16::try_from(text.len()).expect("short").to_be_bytes()),
    }
    out.extend_from_slice(text.as_bytes());
    out
}

fn link(cid: &Cid) -> Vec<u8> {
    [&[0xd8, 42, 0x58, 37, 0][..], &cid.to_bytes()].concat()
}

/// The fields of a good commit, in order.
fn commit_fields() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("ops", vec![0x80]),
        ("rev", text("3k2yihcrp6f2c")),
        ("seq", vec![24, 99]),
        ("repo", text("did:plc:ewvi7nxzyoun6zhxrhs64oiz")),
        ("time", text("yesterday")),
        ("since", vec![0xf6]),
        ("blocks", vec![0x40]),
        ("commit", link(&cid("commit"))),
        ("prevData", link(&cid("data"))),
    ]
}

fn commit_with(key: &str, value: Option<Vec<u8>>) -> Vec<u8> {
    let mut fields = commit_fields();
    match value {
        Some(value) => fields
            .iter_mut()
            .filter(|(k, _)| *k == key)
            .for_each(|f| f.1.clone_from(&value)),
        None => fields.retain(|(k, _)| *k != key),
    }
    let fields: Vec<(&str, &[u8])> = fields.iter().map(|(k, v)| (*k, &v[..])).collect();
    raw("#commit", &fields)
}

fn one_op(fields: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![0x81, 0xa0 + u8::try_from(fields.len()).expect("few")];
    for (key, value) in fields {
        out.extend_from_slice(&text(key));
        out.extend_from_slice(value);
    }
    out
}

fn byte_string(len: u32) -> Vec<u8> {
    let mut out = match u16::try_from(len) {
        Ok(len) => [&[0x59][..], &len.to_be_bytes()].concat(),
        Err(_) => [&[0x5a][..], &len.to_be_bytes()].concat(),
    };
    out.resize(out.len() + len as usize, 0);
    out
}

/// A commit with this field in place of the good one is refused for this, and its seq and DID are known.
fn check_refused(key: &str, value: Option<Vec<u8>>, expected: &FieldError) {
    let frame = commit_with(key, value);
    let error = decode_frame(&frame).expect_err("bad field");
    assert_eq!(error.severity(), Severity::RejectEvent);
    let FrameError::Event(event) = error else {
        panic!("{error:?}");
    };
    assert_eq!(event.error, *expected);
    assert_eq!(event.seq, Some(99), "{expected:?}");
    assert_eq!(event.did, Some(a_commit().did), "{expected:?}");
}

#[test]
fn a_bad_field_rejects_the_event_and_keeps_seq_and_did() {
    assert!(decode_frame(&commit_with("none", Some(Vec::new()))).is_ok());
    let blake3 = [&[0xd8, 42, 0x58, 37, 0, 1, 0x71, 0x1e, 0x20][..], &[7; 32]].concat();
    let bad_cid = Cid::from_bytes(&blake3[5..]).expect_err("not SHA-256");
    let bad_rev = "nope".parse::<Rev>().expect_err("no rev");
    let too_long = FieldError::TooLong {
        field: "blocks",
        bytes: 2_000_001,
        bytes_max: 2_000_000,
    };
    for (key, value, expected) in [
        ("rev", None, FieldError::Missing("rev")),
        ("rev", Some(vec![5]), FieldError::Type("rev", "a text")),
        ("rev", Some(text("nope")), FieldError::Syntax("rev", bad_rev)),
        ("since", Some(text("nope")), FieldError::Syntax("since", bad_rev)),
        ("commit", None, FieldError::Missing("commit")),
        ("commit", Some(vec![0x40]), FieldError::Type("commit", "a link")),
        (
            "commit",
            Some(link(&Cid::of_blob(b"x"))),
            FieldError::NotABlock("commit"),
        ),
        ("commit", Some(blake3), FieldError::Syntax("commit", bad_cid)),
        ("prevData", Some(vec![0]), FieldError::Type("prevData", "a link")),
        (
            "blocks",
            Some(vec![0xf6]),
            FieldError::Type("blocks", "a byte string"),
        ),
        ("blocks", Some(byte_string(2_000_001)), too_long),
    ] {
        check_refused(key, value, &expected);
    }
    assert!(decode_frame(&commit_with("blocks", Some(byte_string(2_000_000)))).is_ok());
}

#[test]
fn a_bad_list_of_operations_rejects_the_event() {
    for (ops, expected) in [
        (None, FieldError::Missing("ops")),
        (Some(vec![0xa0]), FieldError::Type("ops", "a list")),
        (Some(vec![0xf4]), FieldError::Type("ops", "a list")),
        (Some(link(&cid("x"))), FieldError::Type("ops", "a list")),
        (Some(vec![0x81, 0x00]), FieldError::OpNotMap),
        (Some(vec![0x81, 0x81, 0xa0]), FieldError::OpNotMap),
        (
            Some([&[0x98, 201][..], &[0xa0; 201]].concat()),
            FieldError::TooManyOps(201),
        ),
    ] {
        check_refused("ops", ops, &expected);
    }
}

#[test]
fn a_bad_operation_rejects_the_event() {
    let path = ("path", text("com.example.thing/a"));
    let action = |action: &str| ("action", text(action));
    let new = ("cid", link(&cid("new")));
    let old = ("prev", link(&cid("old")));
    let traversal = "com.example.thing/../a";
    let bad_path = traversal.parse::<crate::types::RepoPath>().expect_err("bad");
    for (op, expected) in [
        (vec![path.clone()], FieldError::Missing("action")),
        (
            vec![path.clone(), ("action", vec![1])],
            FieldError::Type("action", "a text"),
        ),
        (vec![path.clone(), action("move")], FieldError::UnknownAction),
        (vec![action("delete")], FieldError::Missing("path")),
        (
            vec![("path", text(traversal)), action("delete")],
            FieldError::Syntax("path", bad_path),
        ),
        (
            vec![path.clone(), action("create")],
            FieldError::OpCidMissing("create"),
        ),
        (
            vec![("cid", vec![0xf6]), path.clone(), action("update")],
            FieldError::OpCidMissing("update"),
        ),
        (
            vec![new.clone(), path.clone(), action("delete")],
            FieldError::DeleteWithCid,
        ),
        (
            vec![new.clone(), path.clone(), old.clone(), action("create")],
            FieldError::CreateWithPrev,
        ),
    ] {
        check_refused("ops", Some(one_op(&op)), &expected);
    }
    // Hosts older than sync 1.1 do not say what was there before.
    let legacy = one_op(&[new, path, action("update")]);
    assert!(decode_frame(&commit_with("ops", Some(legacy))).is_ok());
}

#[test]
fn seq_and_did_that_cannot_be_read_are_not_made_up() {
    for (key, value, seq_known, did_known) in [
        ("seq", None, false, true),
        ("seq", Some(vec![0]), false, true),
        ("seq", Some(vec![0x20]), false, true),
        (
            "seq",
            Some([&[0x1b][..], &(SEQ_MAX + 1).to_be_bytes()].concat()),
            false,
            true,
        ),
        ("repo", Some(text("did:plc:a/b")), true, false),
        ("repo", Some(vec![0xf6]), true, false),
    ] {
        let frame = commit_with(key, value);
        let Err(FrameError::Event(event)) = decode_frame(&frame) else {
            panic!("{key} was accepted");
        };
        assert_eq!((event.seq.is_some(), event.did.is_some()), (seq_known, did_known));
    }
}

#[test]
fn other_events_are_checked_too() {
    let did = text("did:plc:ewvi7nxzyoun6zhxrhs64oiz");
    let long = text(&"s".repeat(NAME_BYTES_MAX + 1));
    let error = |frame: &[u8]| match decode_frame(frame) {
        Err(FrameError::Event(event)) => event.error,
        other => panic!("{other:?}"),
    };
    let account = |active: &[u8], status: &[u8]| {
        raw(
            "#account",
            &[
                ("did", &did),
                ("seq", &[1]),
                ("active", active),
                ("status", status),
            ],
        )
    };
    assert_eq!(
        error(&account(&[0x01], &[0xf6])),
        FieldError::Type("active", "a boolean")
    );
    assert_eq!(
        error(&account(&[0xf4], &[0x01])),
        FieldError::Type("status", "a text")
    );
    assert!(matches!(
        error(&account(&[0xf4], &long)),
        FieldError::TooLong { field: "status", .. }
    ));
    assert_eq!(
        error(&raw("#account", &[("did", &did), ("seq", &[1])])),
        FieldError::Missing("active")
    );
    assert_eq!(error(&raw("#info", &[])), FieldError::Missing("name"));
    let blocks = byte_string(10_001);
    let rev = text("3k2yihcrp6f2c");
    let sync = raw(
        "#sync",
        &[("did", &did), ("rev", &rev), ("seq", &[1]), ("blocks", &blocks)],
    );
    assert!(matches!(
        error(&sync),
        FieldError::TooLong { field: "blocks", .. }
    ));
    // A prod stays a prod, whatever handle it carries.
    let identity = raw("#identity", &[("did", &did), ("seq", &[1]), ("handle", &[0x00])]);
    assert!(decode_frame(&identity).is_ok());
}

#[test]
fn a_million_operations_cost_no_memory() {
    let mut ops = vec![0x9a];
    ops.extend_from_slice(&1_000_000_u32.to_be_bytes());
    ops.resize(ops.len() + 1_000_000, 0xa0);
    let frame = commit_with("ops", Some(ops));
    let Err(FrameError::Event(event)) = decode_frame(&frame) else {
        panic!("accepted");
    };
    assert_eq!(event.error, FieldError::TooManyOps(1_000_000));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let outcome = decode_frame(&bytes);
        prop_assert!(outcome.is_ok() || outcome.is_err());
    }

    #[test]
    fn no_flipped_byte_makes_it_panic(at in 0usize..400, value in any::<u8>(), which in 0usize..10) {
        let frames = one_of_each();
        let mut bytes = encode_frame(&frames[which % frames.len()]);
        let at = at % bytes.len();
        bytes[at] = value;
        let outcome = decode_frame(&bytes);
        prop_assert!(outcome.is_ok() || outcome.is_err());
    }
}
