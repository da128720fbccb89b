//! Documents in all their shapes, and places to find them.

use serde_json::json;

use super::*;

const KEY: &str = "zQ3shXjHeiBuRCKmM36cuYnm7YEMzhGnCmCyW92sRJ9pribSF";
const NOW: Timestamp = Timestamp::from_micros(5);

fn did(text: &str) -> Did {
    text.parse().expect("valid")
}

fn alice() -> Did {
    did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
}

fn read(document: &Value) -> Identity {
    let bytes = serde_json::to_vec(document).expect("JSON");
    Identity::from_document(&alice(), &bytes, false, NOW).expect("a document of this DID")
}

fn method(id: &str, key: &str) -> Value {
    json!({"id": id, "type": "Multikey", "controller": alice().as_str(), "publicKeyMultibase": key})
}

fn service(id: &str, endpoint: &str) -> Value {
    json!({"id": id, "type": "AtprotoPersonalDataServer", "serviceEndpoint": endpoint})
}

fn with_methods(methods: Value) -> Option<String> {
    read(&json!({"id": alice().as_str(), "verificationMethod": methods}))
        .key
        .map(|key| key.to_multikey())
}

fn with_services(services: Value) -> Option<String> {
    read(&json!({"id": alice().as_str(), "service": services}))
        .host
        .map(|host| host.origin())
}

#[test]
fn a_whole_document() {
    let identity = read(&json!({
        "id": alice().as_str(),
        "alsoKnownAs": ["https://example.com", "at://Alice.Example.com"],
        "verificationMethod": [method("did:plc:ewvi7nxzyoun6zhxrhs64oiz#atproto", KEY)],
        "service": [service("#atproto_pds", "https://PDS.example.com:443/")],
    }));
    assert_eq!(identity.key.map(|key| key.to_multikey()).as_deref(), Some(KEY));
    assert_eq!(identity.handle.as_deref(), Some("alice.example.com"));
    let host = identity.host.expect("a host");
    assert_eq!(host.origin(), "https://pds.example.com");
    assert_eq!(host.websocket_url("/xrpc/x"), "wss://pds.example.com/xrpc/x");
    assert_eq!(identity.resolved_at, NOW);
}

#[test]
fn an_empty_document_says_nothing() {
    for document in [
        json!({"id": alice().as_str()}),
        json!({"id": alice().as_str(), "alsoKnownAs": null, "verificationMethod": {}, "service": "x"}),
        json!({"id": alice().as_str(), "alsoKnownAs": [1], "verificationMethod": [1], "service": [[]]}),
    ] {
        let identity = read(&document);
        assert_eq!((identity.host, identity.key, identity.handle), (None, None, None));
    }
}

#[test]
fn documents_of_others_are_refused() {
    for (bytes, expected) in [
        (&b"[]"[..], DocumentError::NotAnObject),
        (b"<html>", DocumentError::NotAnObject),
        (b"{}", DocumentError::OtherDid),
        (
            br#"{"id":"did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"}"#,
            DocumentError::OtherDid,
        ),
    ] {
        assert_eq!(
            Identity::from_document(&alice(), bytes, false, NOW),
            Err(expected)
        );
    }
}

#[test]
fn the_first_valid_key_counts() {
    let other = "zQ3shULQPBZrbHpyf48oS68ZudUDQNdtWrhV8dafhaTFFUeGP";
    let own = "did:plc:ewvi7nxzyoun6zhxrhs64oiz#atproto";
    assert_eq!(
        with_methods(json!([method(own, KEY), method("#atproto", other)])).as_deref(),
        Some(KEY)
    );
    assert_eq!(
        with_methods(json!([method(own, "z1"), method("#atproto", other)])).as_deref(),
        Some(other)
    );
    // Not this account's, not for this purpose, not a type that we know.
    let foreign = json!({
        "id": own, "type": "Multikey", "controller": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa",
        "publicKeyMultibase": KEY,
    });
    let typeless = json!({
        "id": own, "type": "Ed25519VerificationKey2020", "controller": alice().as_str(),
        "publicKeyMultibase": KEY,
    });
    for unusable in [
        foreign,
        typeless,
        method("#atproto_label", KEY),
        method("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa#atproto", KEY),
        method("atproto", KEY),
    ] {
        assert_eq!(with_methods(json!([unusable.clone()])), None, "{unusable}");
    }
}

#[test]
fn the_first_matching_service_counts() {
    let good = service("#atproto_pds", "https://pds.example.com");
    let other = service(
        "did:plc:ewvi7nxzyoun6zhxrhs64oiz#atproto_pds",
        "https://other.example.com",
    );
    assert_eq!(
        with_services(json!([
            service("#bsky_fg", "https://feed.example.com"),
            good,
            other
        ]))
        .as_deref(),
        Some("https://pds.example.com")
    );
    assert_eq!(
        with_services(json!([service("#atproto_pds", "https://a/b"), good])),
        None
    );
    let mut untyped = good.clone();
    untyped["type"] = json!("Something");
    assert_eq!(
        with_services(json!([untyped, good])).as_deref(),
        Some("https://pds.example.com")
    );
    assert_eq!(
        with_services(json!([{"id": "#atproto_pds", "type": "AtprotoPersonalDataServer"}])),
        None
    );
}

#[test]
fn endpoints_are_a_scheme_and_a_host() {
    for (text, dev_mode, expected) in [
        ("https://pds.example.com", false, Ok("https://pds.example.com")),
        (
            "https://pds.example.com:8443/",
            false,
            Ok("https://pds.example.com:8443"),
        ),
        ("http://localhost:2583", true, Ok("http://localhost:2583")),
        ("http://localhost:80", true, Ok("http://localhost")),
        ("http://localhost:2583", false, Err(EndpointError::PlainHttp)),
        ("wss://pds.example.com", true, Err(EndpointError::Scheme)),
        ("pds.example.com", true, Err(EndpointError::Scheme)),
        ("https://", false, Err(EndpointError::Host)),
        ("https:///", false, Err(EndpointError::Host)),
        ("https://pds.example.com//", false, Err(EndpointError::Host)),
        ("https://pds.example.com/xrpc", false, Err(EndpointError::Host)),
        ("https://user@pds.example.com", false, Err(EndpointError::Host)),
        ("https://pds.example.com?x", false, Err(EndpointError::Host)),
        ("https://pds.example.com#x", false, Err(EndpointError::Host)),
        (
            "https://pds.example.com\\@127.0.0.1",
            false,
            Err(EndpointError::Host),
        ),
        ("https://[::1]", true, Err(EndpointError::Host)),
    ] {
        let parsed = PdsEndpoint::parse(text, dev_mode).map(|endpoint| endpoint.origin());
        assert_eq!(parsed, expected.map(str::to_owned), "{text}");
    }
}

#[test]
fn handles_are_domain_names() {
    let handle = |aliases: Value| read(&json!({"id": alice().as_str(), "alsoKnownAs": aliases})).handle;
    assert_eq!(
        handle(json!(["at://a.test", "at://b.test"])).as_deref(),
        Some("a.test")
    );
    assert_eq!(
        handle(json!(["at://nodot", "at://did:plc:x", "at://b.test"])).as_deref(),
        Some("b.test")
    );
    assert_eq!(handle(json!(["at://a.test/path", "http://a.test"])), None);
}

#[test]
fn localhost_is_for_development() {
    let url = |text: &str, dev_mode| document_url(&did(text), "https://plc.test", dev_mode).ok();
    assert_eq!(
        url("did:web:localhost%3A2583", true).as_deref(),
        Some("http://localhost:2583/.well-known/did.json")
    );
    assert_eq!(url("did:web:localhost%3A2583", false), None);
    assert_eq!(url("did:web:localhost%3A", true), None);
    assert_eq!(url("did:web:example.com%3A8443", true), None);
    assert_eq!(url("did:web:localhost%3A1%2Fx", true), None);
    assert_eq!(url("did:web:single", false), None);
    assert_eq!(
        url("did:web:Example.COM", false).as_deref(),
        Some("https://example.com/.well-known/did.json")
    );
}
