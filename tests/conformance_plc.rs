//! Audit logs of `did:plc` made by others.
//!
//! The suites lie in the folder that `FIREKEEP_CONFORMANCE` names, or in `../shared/conformance` beside the
//! project. Without them nothing is checked, and a line says so.

use std::path::{Path, PathBuf};

use firekeep::identity::plc_log::{PlcFault, PlcLog, PlcLogError};
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

/// The logs of a folder, by name, each read as the log of the DID in its first entry.
fn logs(folder: &Path) -> Vec<(String, Result<PlcLog, PlcLogError>)> {
    let mut logs = Vec::new();
    for file in std::fs::read_dir(folder).expect("readable") {
        let path = file.expect("readable").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).expect("readable");
        let log: Value = serde_json::from_slice(&bytes).expect("JSON");
        let did = log[0]["did"].as_str().expect("a text").parse().expect("a DID");
        logs.push((name, PlcLog::parse(&did, &bytes)));
    }
    logs.sort_by(|(a, _), (b, _)| a.cmp(b));
    logs
}

#[test]
fn valid_logs() {
    let Some(folder) = suite("plc-audit-logs/valid") else {
        return;
    };
    let logs = logs(&folder);
    for (name, log) in &logs {
        let log = log.as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(log.current().is_none(), name == "log_tombstone", "{name}");
        let nullified = log.entries().iter().filter(|entry| entry.nullified).count();
        assert_eq!(nullified > 0, name.contains("nullification"), "{name}");
        // The others are of DIDs without a signing key.
        let with_keys = ["log_bskyapp", "log_legacy_dholms"];
        assert_eq!(
            !log.signing_keys().is_empty(),
            with_keys.contains(&name.as_str()),
            "{name}"
        );
    }
    println!("conformance: plc-audit-logs/valid: {} cases", logs.len());
    assert_eq!(logs.len(), 6);
}

#[test]
fn invalid_logs() {
    let Some(folder) = suite("plc-audit-logs/invalid") else {
        return;
    };
    let found: Vec<_> = logs(&folder)
        .into_iter()
        .map(|(name, log)| {
            let error = log.err().unwrap_or_else(|| panic!("{name} must not verify"));
            (name, error.fault)
        })
        .collect();
    let expected = [
        ("log_invalid_nullification_too_slow", PlcFault::TooLate),
        ("log_invalid_sig_b64_padding_bits", PlcFault::SignatureForm),
        ("log_invalid_sig_b64_padding_chars", PlcFault::SignatureForm),
        // A DER form that happens to be 64 bytes.
        ("log_invalid_sig_der", PlcFault::NotSigned),
        ("log_invalid_sig_k256_high_s", PlcFault::HighS),
        ("log_invalid_update_tombstoned", PlcFault::AfterTombstone),
    ];
    assert_eq!(found, expected.map(|(name, fault)| (name.to_owned(), fault)));
    println!("conformance: plc-audit-logs/invalid: {} cases", found.len());
}

#[test]
fn synthetic_logs() {
    let Some(path) = suite("synthetic/identity/plc-logs.json") else {
        return;
    };
    let bytes = std::fs::read(path).expect("readable");
    let suite: Value = serde_json::from_slice(&bytes).expect("JSON");
    let vectors = suite["vectors"].as_array().expect("a list");
    let expected_fault = |id: &str| match id {
        "plc-recovery-72h01" => PlcFault::TooLate,
        "plc-recovery-lower-key" => PlcFault::NotStronger,
        "plc-op-after-tombstone" => PlcFault::AfterTombstone,
        "plc-foreign-key-signs" | "plc-tampered-cid-fixed" => PlcFault::NotSigned,
        "plc-high-s" => PlcFault::HighS,
        "plc-cid-lies" => PlcFault::CidMismatch,
        "plc-did-lies" => PlcFault::GenesisHash,
        other => panic!("an unknown case: {other}"),
    };
    for vector in vectors {
        let id = vector["id"].as_str().expect("a text");
        let did = vector["did"].as_str().expect("a text").parse().expect("a DID");
        let answer = serde_json::to_vec(&vector["log"]).expect("JSON");
        let log = PlcLog::parse(&did, &answer);
        if vector["valid"] == Value::Bool(false) {
            assert_eq!(log.map_err(|error| error.fault), Err(expected_fault(id)), "{id}");
            continue;
        }
        let log = log.unwrap_or_else(|error| panic!("{id}: {error}"));
        let state = log.current();
        assert_eq!(state.is_none(), vector["resolves"].is_null(), "{id}");
        let Some(state) = state else { continue };
        let key = state.signing_key.as_ref().map(|key| key.to_did_key());
        assert_eq!(key.as_deref(), vector["resolves"]["signing_key"].as_str(), "{id}");
        assert_eq!(state.pds.as_deref(), vector["resolves"]["pds"].as_str(), "{id}");
    }
    println!(
        "conformance: synthetic/identity/plc-logs: {} cases",
        vectors.len()
    );
    assert_eq!(vectors.len(), 13);
}
