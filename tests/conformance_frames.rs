//! Frames made by others, decoded: what the bytes alone decide.
//!
//! The suites lie in the folder that `FIREKEEP_CONFORMANCE` names, or in `../shared/conformance` beside the
//! project. Without them nothing is checked, and a line says so.

use std::path::PathBuf;

use data_encoding::BASE64;
use firekeep::stream::encode::encode_frame;
use firekeep::stream::frame::{Frame, FrameError, FrameKind, Severity, decode_frame};
use firekeep::stream::session::Session;
use firekeep::types::Cid;
use ipld_core::ipld::Ipld;
use serde_json::Value;

fn suite(path: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("FIREKEEP_CONFORMANCE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/conformance"),
        PathBuf::from,
    );
    let path = folder.join(path);
    if path.exists() {
        return Some(path);
    }
    println!(
        "conformance: {} is not there, nothing was checked",
        path.display()
    );
    None
}

fn json(path: &std::path::Path) -> Value {
    let bytes = std::fs::read(path).expect("readable");
    serde_json::from_slice(&bytes).expect("JSON")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    value[key].as_array().expect("a list")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("a text")
}

fn bytes(value: &Value, key: &str) -> Vec<u8> {
    BASE64.decode(text(value, key).as_bytes()).expect("base64")
}

/// What decoding says of a frame, in the words that the vectors use where they decide the same.
fn classify(frame: &[u8]) -> &'static str {
    match decode_frame(frame) {
        Ok(Frame::Error(_)) => "close",
        Ok(Frame::Info(info)) if info.name == "OutdatedCursor" => "gap",
        Ok(Frame::Info(_) | Frame::Unknown(_)) => "ignore",
        Ok(_) => "event",
        Err(error) if error.severity() == Severity::DropConnection => "drop_conn",
        Err(_) => "reject",
    }
}

/// Vectors that are refused for a field alone.
const REFUSED: [&str; 6] = [
    "rev-dash",
    "path-traversal",
    "path-three-segments",
    "path-empty-rkey",
    "path-non-ascii",
    "limit-201-ops",
];

#[test]
fn synthetic_frames() {
    let Some(path) = suite("synthetic/frames/vectors-a.json") else {
        return;
    };
    let suite = json(&path);
    let cursor = suite["cursor"].as_u64().expect("a number");
    let then = bytes(&suite, "then_b64");
    let vectors = list(&suite, "vectors");
    for vector in vectors {
        let (id, expect) = (text(vector, "id"), text(vector, "expect"));
        let frame = bytes(vector, "frame_b64");
        let wanted = match (text(vector, "class"), expect) {
            ("framing" | "cbor" | "resource", "drop_conn") => "drop_conn",
            ("framing", "ignore") => "ignore",
            ("control", expect) => expect,
            _ if REFUSED.contains(&id) => "reject",
            // What is left is for the session (numbers), or for those who know the account.
            _ => "event",
        };
        assert_eq!(classify(&frame), wanted, "{id}");
        if let Err(FrameError::Event(event)) = decode_frame(&frame) {
            assert_eq!(event.kind, FrameKind::Commit, "{id}");
            assert!(event.seq.is_some() && event.did.is_some(), "{id}");
        }
        if wanted == "event" {
            check_event(id, &frame, cursor, &then);
        }
    }
    println!("conformance: synthetic/frames: {} cases", vectors.len());
    assert_eq!(vectors.len(), 82);
}

/// The event comes back from our own encoder, and its number follows or does not.
fn check_event(id: &str, frame: &[u8], cursor: u64, then: &[u8]) {
    let decoded = decode_frame(frame).expect("an event");
    assert_eq!(
        decode_frame(&encode_frame(&decoded)).as_ref(),
        Ok(&decoded),
        "{id}"
    );
    let mut session = Session::new();
    session.dialing(Some(cursor));
    let seq = decoded.seq().expect("events have a number");
    let is_fault = match id {
        "seq-regress" => true,
        // The very cursor may come once: a host is allowed to begin with it. Then it may not.
        "seq-duplicate" => {
            assert!(session.event(seq).is_ok());
            true
        }
        _ => false,
    };
    assert_eq!(session.event(seq).is_err(), is_fault, "{id}");
    if !is_fault && id != "seq-gap" {
        let then = decode_frame(then).expect("the genuine next commit");
        assert!(session.event(then.seq().expect("a commit")).is_ok(), "{id}");
    }
}

#[test]
fn synthetic_scenarios() {
    let Some(folder) = suite("synthetic/scenarios") else {
        return;
    };
    let mut cases = 0;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("readable").path();
        let scenario = json(&path);
        let mut session = Session::new();
        session.dialing(scenario["cursor"].as_u64());
        for frame in list(&scenario, "frames") {
            let frame = bytes(frame, "b64");
            assert_eq!(classify(&frame), "event", "{}", path.display());
            let decoded = decode_frame(&frame).expect("an event");
            assert!(session.event(decoded.seq().expect("a number")).is_ok());
            assert_eq!(decode_frame(&encode_frame(&decoded)).as_ref(), Ok(&decoded));
            cases += 1;
        }
    }
    println!("conformance: synthetic/scenarios: {cases} cases");
    assert_eq!(cases, 212);
}

/// AT Protocol's JSON form of data, as DAG-CBOR.
fn to_ipld(value: &Value) -> Ipld {
    match value {
        Value::Null => Ipld::Null,
        Value::Bool(value) => Ipld::Bool(*value),
        Value::Number(value) => Ipld::Integer(value.as_i64().expect("an integer").into()),
        Value::String(value) => Ipld::String(value.clone()),
        Value::Array(items) => Ipld::List(items.iter().map(to_ipld).collect()),
        Value::Object(map) => {
            if let (1, Some(link)) = (map.len(), map.get("$link")) {
                let cid: Cid = link.as_str().expect("a text").parse().expect("a CID");
                return Ipld::Link(cid.to_bytes().as_slice().try_into().expect("a CID"));
            }
            if let (1, Some(bytes)) = (map.len(), map.get("$bytes")) {
                let text = bytes.as_str().expect("a text").trim_end_matches('=');
                return Ipld::Bytes(
                    data_encoding::BASE64_NOPAD
                        .decode(text.as_bytes())
                        .expect("base64"),
                );
            }
            Ipld::Map(
                map.iter()
                    .map(|(key, value)| (key.clone(), to_ipld(value)))
                    .collect(),
            )
        }
    }
}

fn to_frame(header: &Value, body: &Value) -> Vec<u8> {
    let cbor = |value| serde_ipld_dagcbor::to_vec(&to_ipld(value)).expect("plain data");
    [cbor(header), cbor(body)].concat()
}

/// A frame says what its JSON says.
fn check_against_json(frame: &[u8], header: &Value, body: &Value) {
    let decoded = decode_frame(frame).expect("a good frame");
    assert_eq!(format!("#{}", decoded.kind().as_str()), text(header, "t"));
    assert_eq!(decoded.seq(), body["seq"].as_u64());
    let did = body["did"].as_str().or(body["repo"].as_str());
    assert_eq!(decoded.did().map(|did| did.as_str()), did);
    assert_eq!(decode_frame(&encode_frame(&decoded)).as_ref(), Ok(&decoded));
    match decoded {
        Frame::Commit(commit) => {
            let link = |value: &Value| value["$link"].as_str().map(str::to_owned);
            assert_eq!(Some(commit.commit.to_string()), link(&body["commit"]));
            assert_eq!(
                commit.prev_data.map(|cid| cid.to_string()),
                link(&body["prevData"])
            );
            assert_eq!(commit.rev.to_string(), text(body, "rev"));
            assert_eq!(
                commit.since.map(|rev| rev.to_string()).as_deref(),
                body["since"].as_str()
            );
            let ops = list(body, "ops");
            assert_eq!(commit.ops.len(), ops.len());
            for (ours, theirs) in commit.ops.iter().zip(ops) {
                assert_eq!(ours.action.as_str(), text(theirs, "action"));
                assert_eq!(ours.path, text(theirs, "path"));
                assert_eq!(ours.cid.map(|cid| cid.to_string()), link(&theirs["cid"]));
                assert_eq!(ours.prev.map(|cid| cid.to_string()), link(&theirs["prev"]));
            }
        }
        Frame::Account(account) => {
            assert_eq!(Some(account.active), body["active"].as_bool());
            assert_eq!(account.status, body["status"].as_str());
        }
        Frame::Identity(identity) => assert_eq!(identity.handle, body["handle"].as_str()),
        Frame::Sync(sync) => assert_eq!(sync.rev.to_string(), text(body, "rev")),
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn indigo_relay_scenarios() {
    let Some(folder) = suite("indigo/relay-scenarios") else {
        return;
    };
    let mut cases = 0;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("readable").path();
        let scenario = json(&path);
        let mut session = Session::new();
        session.dialing(None);
        for message in list(&scenario, "messages") {
            let (header, body) = (&message["frame"]["header"], &message["frame"]["body"]);
            check_against_json(&to_frame(header, body), header, body);
            // Here every frame to be dropped is one for its number; each would end a connection of ours.
            let drop = message["drop"].as_bool().expect("a flag");
            let seq = body["seq"].as_u64().expect("a number");
            assert_eq!(session.event(seq).is_err(), drop, "{} {seq}", path.display());
            cases += 1;
        }
    }
    println!("conformance: indigo/relay-scenarios: {cases} cases");
    assert_eq!(cases, 17);
}

#[test]
fn indigo_firehose_commits() {
    let Some(folder) = suite("indigo/firehose-commits") else {
        return;
    };
    let header = serde_json::json!({"op": 1, "t": "#commit"});
    let mut cases = 0;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let body = json(&entry.expect("readable").path());
        check_against_json(&to_frame(&header, &body), &header, &body);
        cases += 1;
    }
    println!("conformance: indigo/firehose-commits: {cases} cases");
    assert_eq!(cases, 2);
}
