//! A record: searched for blobs whatever it holds, and shown as JSON.
#![no_main]

use firekeep::repo::cbor::check_canonical;
use firekeep::repo::json::{bytes_to_json, record_to_json};
use firekeep::repo::record::scan_record;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let scan = scan_record(bytes);
    if scan.canonical {
        assert!(check_canonical(bytes).is_ok());
    }
    if let Ok(json) = record_to_json(bytes) {
        serde_json::to_string(&json).expect("JSON");
    }
    bytes_to_json(bytes);
});
