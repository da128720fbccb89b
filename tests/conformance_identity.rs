//! DIDs, DID documents and endpoints made by others.
//!
//! The suites lie in the folder that `FIREKEEP_CONFORMANCE` names, or in `../shared/conformance` beside the
//! project. Without them nothing is checked, and a line says so.

use std::path::{Path, PathBuf};

use firekeep::http::address::check_public_name;
use firekeep::identity::document::{Identity, PdsEndpoint, document_url};
use firekeep::types::{Did, Timestamp};
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

fn json(path: &Path) -> Value {
    let bytes = std::fs::read(path).expect("readable");
    serde_json::from_slice(&bytes).expect("JSON")
}

fn vectors(value: &Value) -> &Vec<Value> {
    value["vectors"].as_array().expect("a list")
}

#[test]
fn synthetic_dids() {
    let Some(path) = suite("synthetic/identity/dids.json") else {
        return;
    };
    let suite = json(&path);
    for vector in vectors(&suite) {
        let text = vector["did"].as_str().expect("a text");
        let did = text.parse::<Did>();
        assert_eq!(Some(did.is_ok()), vector["syntax_valid"].as_bool(), "{text}");
        let url = |dev_mode| {
            let did = did.as_ref().ok()?;
            document_url(did, "https://plc.test", dev_mode).ok()
        };
        let expected = vector["resolve_url"].as_str().map(str::to_owned);
        let (production, development) = match &vector["atproto_supported"] {
            Value::Bool(true) => (expected.clone(), expected),
            Value::Bool(false) => (None, None),
            Value::String(only) if only == "dev-only" => (None, expected),
            other => panic!("unexpected {other}"),
        };
        assert_eq!(url(false), production, "{text}");
        assert_eq!(url(true), development, "{text} in development");
    }
    let cases = vectors(&suite).len();
    println!("conformance: synthetic/identity/dids: {cases} cases");
    assert_eq!(cases, 29);
}

#[test]
fn synthetic_endpoints() {
    let Some(path) = suite("synthetic/identity/endpoints.json") else {
        return;
    };
    let suite = json(&path);
    for vector in vectors(&suite) {
        let text = vector["service_endpoint"].as_str().expect("a text");
        let allowed = PdsEndpoint::parse(text, false)
            .is_ok_and(|endpoint| check_public_name(endpoint.host().as_str()).is_ok());
        assert_eq!(Some(allowed), vector["allow"].as_bool(), "{text}");
    }
    let cases = vectors(&suite).len();
    println!("conformance: synthetic/identity/endpoints: {cases} cases");
    assert_eq!(cases, 35);
}

fn identity(path: &Path) -> Identity {
    let bytes = std::fs::read(path).expect("readable");
    let document: Value = serde_json::from_slice(&bytes).expect("JSON");
    let did = document["id"].as_str().expect("an id").parse().expect("a DID");
    Identity::from_document(&did, &bytes, false, Timestamp::default()).expect("a document of this DID")
}

#[test]
fn indigo_documents() {
    let Some(folder) = suite("indigo/did-docs") else {
        return;
    };
    let plc = identity(&folder.join("did_plc_doc.json"));
    let legacy = identity(&folder.join("did_plc_doc_legacy.json"));
    let expected = "zQ3shXjHeiBuRCKmM36cuYnm7YEMzhGnCmCyW92sRJ9pribSF";
    for document in [&plc, &legacy] {
        assert_eq!(document.handle.as_deref(), Some("atproto.com"));
        let origin = document.host.as_ref().map(PdsEndpoint::origin);
        assert_eq!(origin.as_deref(), Some("https://bsky.social"));
        // The two documents write the same key in two ways.
        let key = document.key.as_ref().map(|key| key.to_multikey());
        assert_eq!(key.as_deref(), Some(expected));
    }
    let web = identity(&folder.join("did_web_doc.json"));
    assert_eq!((web.host, web.key, web.handle), (None, None, None));
    let greenground = identity(&folder.join("../repos/greenground.didDoc.json"));
    assert!(greenground.host.is_some() && greenground.key.is_some());
    println!("conformance: indigo/did-docs: 4 cases");
}

#[test]
fn synthetic_documents() {
    let Some(path) = suite("synthetic/frames/vectors-a.json") else {
        return;
    };
    let suite = json(&path);
    let documents = suite["did_docs"].as_array().expect("a list");
    for document in documents {
        let did = document["id"].as_str().expect("an id").parse().expect("a DID");
        let bytes = serde_json::to_vec(document).expect("JSON");
        let identity =
            Identity::from_document(&did, &bytes, false, Timestamp::default()).expect("of this DID");
        let key = identity.key.map(|key| key.to_multikey());
        let methods = &document["verificationMethod"][0]["publicKeyMultibase"];
        assert_eq!(key.as_deref(), methods.as_str());
        assert_eq!(
            identity.host.map(|host| host.to_string()).as_deref(),
            Some("https://pds.test")
        );
    }
    println!("conformance: synthetic/did-docs: {} cases", documents.len());
    assert_eq!(documents.len(), 2);
}
