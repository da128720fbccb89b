//! Runs the formats (`repo::{cbor, car, commit, signing_key, record}` and the identifier types) against
//! published test vectors.
//!
//! The vectors lie outside this repository: in the folder that `FIREKEEP_CONFORMANCE` names, else in
//! `../shared/conformance` beside it. Without the folder each suite says so in one line and passes. With
//! it each suite must run, and must meet at least as many cases as were there when it was written.

use std::fmt::Debug;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, BASE64_NOPAD, HEXLOWER};
use firekeep::repo::car::{self, CarError, CarReader, parse_car};
use firekeep::repo::cbor::{CborError, check_canonical, encode, item_len};
use firekeep::repo::commit::{Commit, CommitError};
use firekeep::repo::record::scan_record;
use firekeep::repo::signing_key::{Curve, SecretKey, SigningKey};
use firekeep::types::{Cid, Did, Nsid, RecordKey, Rev};
use serde_json::Value;

// ---- the harness ----

/// Runs one suite. `run` returns how many cases it checked, of which there must be at least `cases_min`.
fn suite(name: &str, cases_min: usize, run: impl FnOnce(&Path) -> usize) {
    // Straight to the stream, past the test harness, which hides the output of tests that pass.
    let say = |line: String| writeln!(std::io::stderr(), "conformance: {line}").expect("stderr");
    let folder = std::env::var_os("FIREKEEP_CONFORMANCE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/conformance"),
        PathBuf::from,
    );
    if !folder.is_dir() {
        return say(format!("{name} did not run: folder not found"));
    }
    let cases = run(&folder);
    assert!(
        cases >= cases_min,
        "{name}: only {cases} of {cases_min} cases ran"
    );
    say(format!("{name}: {cases} cases"));
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&read(path)).unwrap_or_else(|error| panic!("parse {}: {error}", path.display()))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("no text {key} in {value}"))
}

fn hex(value: &Value, key: &str) -> Vec<u8> {
    HEXLOWER.decode(text(value, key).as_bytes()).expect("hex")
}

fn base64(text: &str) -> Vec<u8> {
    BASE64_NOPAD
        .decode(text.trim_end_matches('=').as_bytes())
        .expect("base64")
}

/// The bytes are strict DAG-CBOR, by every way there is to ask.
fn is_strict(bytes: &[u8]) -> bool {
    let strict = check_canonical(bytes);
    assert_eq!(strict.is_ok(), item_len(bytes) == Ok(bytes.len()), "{strict:?}");
    let scan = scan_record(bytes);
    assert_eq!(strict.is_ok(), scan.canonical);
    assert!(!(strict.is_ok() && scan.broken), "strict, yet not CBOR at all");
    strict.is_ok()
}

// ---- CBOR ----

#[test]
fn cbor_items() {
    suite("synthetic/cbor", 279, |folder| {
        let file = json(&folder.join("synthetic/cbor/items.json"));
        for case in list(&file["vectors"]) {
            let strict = is_strict(&hex(case, "hex"));
            match text(case, "expect") {
                "roundtrip" => assert!(strict, "{case}"),
                "reject" => assert!(!strict, "{case}"),
                "reject_or_roundtrip" => {}
                other => panic!("unknown verdict {other}"),
            }
        }
        list(&file["vectors"]).len()
    });
}

#[test]
fn dasl_drisl() {
    suite("dasl-testing", 68, |folder| {
        let cases = json(&folder.join("dasl-testing/drisl.json"));
        for case in list(&cases) {
            let strict = is_strict(&hex(case, "data"));
            assert_eq!(strict, text(case, "atproto_decode") == "roundtrip", "{case}");
        }
        list(&cases).len()
    });
}

#[test]
fn ipld_codec_fixtures() {
    suite("ipld-codec-fixtures", 80, |folder| {
        let lines = read(&folder.join("ipld-codec-fixtures/fixtures.jsonl"));
        let mut cases = 0;
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let case: Value = serde_json::from_slice(line).expect("JSON");
            let bytes = hex(&case["dag_cbor"], "hex");
            assert_eq!(Cid::of_block(&bytes).to_string(), text(&case["dag_cbor"], "cid"));
            assert_eq!(
                is_strict(&bytes),
                text(&case, "atproto") == "roundtrip",
                "{}",
                case["name"]
            );
            cases += 1;
        }
        let negative = json(&folder.join("ipld-codec-fixtures/negative-dag-cbor-decode.json"));
        for case in list(&negative) {
            assert!(!is_strict(&hex(case, "hex")), "{case}");
        }
        cases + list(&negative).len()
    });
}

/// AT Protocol JSON as DAG-CBOR, for fixtures only: Firekeep itself never turns JSON into blocks.
fn cbor_of_json(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => encode::null(out),
        Value::Bool(value) => encode::boolean(out, *value),
        Value::Number(value) => encode::integer(out, value.as_i64().expect("integer")),
        Value::String(value) => encode::text(out, value),
        Value::Array(items) => {
            encode::array(out, items.len());
            items.iter().for_each(|item| cbor_of_json(out, item));
        }
        Value::Object(fields) => {
            if let Some(link) = fields.get("$link") {
                return encode::link(out, &link.as_str().and_then(|cid| cid.parse().ok()).expect("CID"));
            }
            if let Some(bytes) = fields.get("$bytes") {
                return encode::bytes(out, &base64(bytes.as_str().expect("text")));
            }
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| (key.len(), key.as_bytes()));
            encode::map(out, fields.len());
            for (key, value) in fields {
                encode::text(out, key);
                cbor_of_json(out, value);
            }
        }
    }
}

/// `data-model-valid.json` and `data-model-invalid.json` are not used: they test a reader of AT Protocol
/// JSON, and Firekeep has none; it takes records as CBOR only.
#[test]
fn atproto_data_model() {
    suite("atproto-interop-tests/data-model", 3, |folder| {
        let cases = json(&folder.join("atproto-interop-tests/data-model/data-model-fixtures.json"));
        for case in list(&cases) {
            let expected = base64(text(case, "cbor_base64"));
            let mut written = Vec::new();
            cbor_of_json(&mut written, &case["json"]);
            assert_eq!(written, expected);
            assert!(is_strict(&expected));
            assert_eq!(Cid::of_block(&expected).to_string(), text(case, "cid"));
        }
        list(&cases).len()
    });
}

// ---- identifiers ----

fn check_syntax<T: std::str::FromStr + ToString>(folder: &Path, name: &str) -> usize
where
    T::Err: Debug,
{
    let lines = |verdict: &str| {
        let file = folder.join(format!(
            "atproto-interop-tests/syntax/{name}_syntax_{verdict}.txt"
        ));
        let text = String::from_utf8(read(&file)).expect("UTF-8");
        let is_case = |line: &&str| !line.is_empty() && !line.starts_with('#');
        text.lines()
            .filter(is_case)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (valid, invalid) = (lines("valid"), lines("invalid"));
    for case in &valid {
        let parsed = case.parse::<T>();
        assert_eq!(
            parsed.map(|value| value.to_string()).as_ref().ok(),
            Some(case),
            "{name} must accept"
        );
    }
    for case in &invalid {
        assert!(case.parse::<T>().is_err(), "{name} must refuse {case:?}");
    }
    valid.len() + invalid.len()
}

#[test]
fn atproto_syntax() {
    suite("atproto-interop-tests/syntax did", 42, |folder| {
        check_syntax::<Did>(folder, "did")
    });
    suite("atproto-interop-tests/syntax nsid", 52, |folder| {
        check_syntax::<Nsid>(folder, "nsid")
    });
    suite("atproto-interop-tests/syntax tid", 13, |folder| {
        check_syntax::<Rev>(folder, "tid")
    });
    suite("atproto-interop-tests/syntax recordkey", 27, |folder| {
        check_syntax::<RecordKey>(folder, "recordkey")
    });
}

// ---- keys and signatures ----

#[test]
fn atproto_signatures() {
    suite("atproto-interop-tests/crypto signatures", 6, |folder| {
        let cases = json(&folder.join("atproto-interop-tests/crypto/signature-fixtures.json"));
        for case in list(&cases) {
            let key = SigningKey::from_did_key(text(case, "publicKeyDid")).expect("key");
            let legacy = SigningKey::from_legacy(text(case, "didDocSuite"), text(case, "publicKeyMultibase"));
            assert_eq!(legacy.as_ref(), Ok(&key));
            assert_eq!(key.to_did_key(), text(case, "publicKeyDid"));
            let sig = base64(text(case, "signatureBase64"));
            // A signature of another length has no place in the type, so it cannot be verified at all.
            let good = <&[u8; 64]>::try_from(&sig[..])
                .is_ok_and(|sig| key.verify(&base64(text(case, "messageBase64")), sig).is_ok());
            assert_eq!(Some(good), case["validSignature"].as_bool(), "{case}");
        }
        list(&cases).len()
    });
}

#[test]
fn w3c_did_keys() {
    suite("atproto-interop-tests/crypto did:key", 6, |folder| {
        let folder = folder.join("atproto-interop-tests/crypto");
        let mut cases = 0;
        for (curve, file) in [
            (Curve::K256, "w3c_didkey_K256.json"),
            (Curve::P256, "w3c_didkey_P256.json"),
        ] {
            for case in list(&json(&folder.join(file))) {
                let secret = match case.get("privateKeyBytesHex") {
                    Some(_) => hex(case, "privateKeyBytesHex"),
                    None => {
                        let base58 = format!("z{}", text(case, "privateKeyBytesBase58"));
                        multibase::decode(base58).expect("base58").1
                    }
                };
                let secret = SecretKey::from_bytes(curve, &secret.try_into().expect("32 bytes"));
                let key = secret.expect("in range").public();
                assert_eq!(key.to_did_key(), text(case, "publicDidKey"));
                assert_eq!(SigningKey::from_did_key(text(case, "publicDidKey")), Ok(key));
                cases += 1;
            }
        }
        cases
    });
}

#[test]
fn wycheproof() {
    for (file, cases_min) in [
        ("ecdsa_secp256k1_sha256_p1363", 126),
        ("ecdsa_secp256r1_sha256_p1363", 131),
    ] {
        suite(&format!("wycheproof {file}"), cases_min, |folder| {
            let cases = json(&folder.join(format!("wycheproof/{file}.json")));
            for case in list(&cases) {
                let key = SigningKey::from_did_key(text(case, "public_key")).expect("key");
                let sig = hex(case, "sig_hex");
                let good = <&[u8; 64]>::try_from(&sig[..])
                    .is_ok_and(|sig| key.verify(&hex(case, "msg_hex"), sig).is_ok());
                assert_eq!(good, text(case, "atproto") == "valid", "{case}");
            }
            list(&cases).len()
        });
    }
}

// ---- CAR files ----

/// Reads a CAR from a stream that yields one byte at a time, and from a slice: same outcome.
fn read_car(bytes: &[u8]) -> Result<car::Car<'_>, CarError> {
    struct OneByte<'a>(&'a [u8]);
    impl std::io::Read for OneByte<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let most = buffer.len().min(1);
            std::io::Read::read(&mut self.0, &mut buffer[..most])
        }
    }
    let parsed = parse_car(bytes);
    let streamed = CarReader::new(OneByte(bytes)).and_then(|mut reader| {
        let (mut blocks, mut block) = (Vec::new(), Vec::new());
        while let Some((cid, at)) = reader.next_block(&mut block)? {
            assert_eq!(
                bytes[usize::try_from(at).expect("small")..][..block.len()],
                block[..]
            );
            blocks.push((cid, block.clone()));
        }
        Ok((reader.roots().to_vec(), blocks))
    });
    match (&parsed, streamed) {
        (Ok(car), Ok((roots, blocks))) => {
            assert_eq!(car.roots, roots);
            assert!(
                car.blocks
                    .iter()
                    .map(|(cid, block)| (*cid, block.to_vec()))
                    .eq(blocks)
            );
        }
        (Err(parsed), Err(streamed)) => assert_eq!(parsed.to_string(), streamed.to_string()),
        (parsed, streamed) => panic!(
            "slice and stream differ: {:?}, {:?}",
            parsed.is_ok(),
            streamed.is_ok()
        ),
    }
    parsed
}

/// Files that a bare CAR reader would list (CIDv0, dag-pb) are refused too, but for their CIDs alone.
#[test]
fn go_car() {
    suite("go-car", 10, |folder| {
        let cases = json(&folder.join("go-car/expected.json"));
        for case in list(&cases) {
            let bytes = read(&folder.join("go-car").join(text(case, "file")));
            let error = read_car(&bytes).expect_err(text(case, "file"));
            if text(case, "read") == "ok" {
                assert!(
                    matches!(error, CarError::Header(CborError::BadCid)),
                    "{case}: {error}"
                );
            }
        }
        list(&cases).len()
    });
}

#[test]
fn atproto_car_fixture() {
    suite("atproto/car-file-fixtures", 1, |folder| {
        let cases = json(&folder.join("atproto/car-file-fixtures.json"));
        for case in list(&cases) {
            let bytes = base64(text(case, "car"));
            let root: Cid = text(case, "root").parse().expect("CID");
            let mut written = car::encode_header(&[root]);
            let car = read_car(&bytes).expect("good CAR");
            assert_eq!(car.roots, [root]);
            assert_eq!(car.blocks.len(), list(&case["blocks"]).len());
            for ((cid, block), expected) in car.blocks.iter().zip(list(&case["blocks"])) {
                assert_eq!(cid.to_string(), text(expected, "cid"));
                assert_eq!(*block, base64(text(expected, "bytes")));
                assert!(is_strict(block));
                car::encode_block(&mut written, cid, block);
            }
            assert_eq!(written, bytes);
        }
        list(&cases).len()
    });
}

#[test]
fn repo_cars() {
    suite("repo-cars", 7, |folder| {
        let folder = folder.join("repo-cars");
        let cases = json(&folder.join("expected.json"));
        for case in list(&cases) {
            let mut bytes = read(&folder.join(text(case, "file")));
            let car = read_car(&bytes).expect("good CAR");
            assert_eq!(
                Some(car.blocks.len() as u64),
                case["blocks"].as_u64(),
                "{}",
                case["file"]
            );
            assert_eq!(car.roots[0].to_string(), text(case, "root"));
            assert!(
                car.blocks.iter().all(|(_, block)| is_strict(block)),
                "{}",
                case["file"]
            );
            let (_, root) = car
                .blocks
                .iter()
                .find(|(cid, _)| *cid == car.roots[0])
                .expect("root block");
            match (Commit::decode(root), case["version"].as_i64()) {
                (Ok(commit), Some(3)) => {
                    assert_eq!(commit.did.as_str(), text(case, "did"));
                    assert_eq!(commit.rev.to_string(), text(case, "rev"));
                    assert_eq!(commit.data.to_string(), text(case, "data"));
                }
                (Err(CommitError::Version(2)), Some(2)) => {}
                (decoded, _) => panic!("{}: {decoded:?}", case["file"]),
            }
            *bytes.last_mut().expect("not empty") ^= 1;
            assert!(
                matches!(read_car(&bytes), Err(CarError::Hash { .. })),
                "{}",
                case["file"]
            );
        }
        list(&cases).len()
    });
}

/// Only what container, commit and signature decide; the tree is for another suite.
#[test]
fn synthetic_repo_cars() {
    const CONTAINER: [&str; 3] = ["car-", "sec-", "com-"];
    // Well-formed containers with a well-signed commit all the same.
    const DEEPER: [&str; 2] = ["car-cut-boundary-last", "com-other-did"];
    suite(
        "synthetic/repo-car (container, commit, signature)",
        49,
        |folder| {
            let file = json(&folder.join("synthetic/repo-car/vectors-a.json"));
            for case in list(&file["vectors"]) {
                let id = text(case, "id");
                let good = signed_root(&base64(text(case, "car_b64")), text(case, "signing_key"));
                if text(case, "expect") == "accept" {
                    let commit = good.unwrap_or_else(|| panic!("{id} must be accepted"));
                    assert_eq!(commit.rev.to_string(), text(&case["state"], "rev"), "{id}");
                    assert_eq!(commit.data.to_string(), text(&case["state"], "data"), "{id}");
                    assert_eq!(commit.did.as_str(), text(case, "did"), "{id}");
                } else if DEEPER.contains(&id) {
                    assert!(good.is_some(), "{id}");
                } else if CONTAINER.iter().any(|class| id.starts_with(class)) {
                    assert!(good.is_none(), "{id} must be refused");
                }
            }
            list(&file["vectors"]).len()
        },
    );
}

/// The commit at the first root, if the container is sound and the signature fits.
fn signed_root(bytes: &[u8], key: &str) -> Option<Commit> {
    let car = read_car(bytes).ok()?;
    let root = car.roots.first()?;
    let (_, block) = car.blocks.iter().find(|(cid, _)| cid == root)?;
    let commit = Commit::decode(block).ok()?;
    let key = SigningKey::from_did_key(key).expect("key");
    key.verify(commit.unsigned_bytes(), &commit.sig).ok()?;
    Some(commit)
}

// ---- records ----

#[test]
fn blob_references() {
    suite("synthetic/blobs refs", 15, |folder| {
        let file = json(&folder.join("synthetic/blobs/refs.json"));
        let cids = |value: &Value| -> Vec<String> {
            list(value)
                .iter()
                .map(|cid| cid.as_str().expect("text").to_owned())
                .collect()
        };
        for case in list(&file["vectors"]) {
            let record = BASE64
                .decode(text(case, "record_b64").as_bytes())
                .expect("base64");
            assert_eq!(Cid::of_block(&record).to_string(), text(case, "record_cid"));
            let scan = scan_record(&record);
            assert!(scan.canonical && !scan.broken, "{case}");
            let found: Vec<String> = scan.blobs.iter().map(|blob| blob.cid.to_string()).collect();
            let (required, optional) = (cids(&case["blobs"]), cids(&case["optional"]));
            assert!(required.iter().all(|cid| found.contains(cid)), "{}", case["id"]);
            let known = |cid: &String| required.contains(cid) || optional.contains(cid);
            assert!(found.iter().all(known), "{}: {found:?}", case["id"]);
        }
        list(&file["vectors"]).len()
    });
}
