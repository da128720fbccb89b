//! DAG-CBOR: what is canonical by the strict decoder is so by the whole length, and the other decoders agree.
#![no_main]

use firekeep::repo::cbor::{Decoder, check_canonical, item_len};
use firekeep::repo::commit::Commit;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if check_canonical(bytes).is_ok() {
        assert_eq!(item_len(bytes), Ok(bytes.len()));
        let mut decoder = Decoder::new(bytes);
        assert_eq!(decoder.skip(), Ok(bytes));
        assert!(decoder.end().is_ok());
    }
    if let Ok(commit) = Commit::decode(bytes) {
        assert!(check_canonical(bytes).is_ok());
        assert!(check_canonical(commit.unsigned_bytes()).is_ok());
    }
});
