//! What a directory says: DID documents, audit logs, keys, endpoints.
#![no_main]

use firekeep::identity::document::PdsEndpoint;
use firekeep::identity::plc_log::PlcLog;
use firekeep::repo::signing_key::SigningKey;
use firekeep::types::Did;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let did: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("a DID");
    if let Ok(log) = PlcLog::parse(&did, bytes) {
        assert_eq!(log.did(), &did);
        log.signing_keys();
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(key) = SigningKey::from_did_key(text) {
        assert_eq!(key.to_did_key(), text);
    }
    if let Ok(did) = text.parse::<Did>() {
        assert_eq!(did.as_str(), text);
    }
    for dev in [false, true] {
        if let Ok(endpoint) = PdsEndpoint::parse(text, dev) {
            let again = PdsEndpoint::parse(&endpoint.origin(), dev).expect("its origin is one too");
            assert_eq!(again.origin(), endpoint.origin());
        }
    }
});
