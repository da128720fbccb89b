//! A frame of a stream: decoded, and verified with the key of the account that it names. Nothing may panic; what
//! verifies must decode to the same event twice.
#![no_main]

use std::sync::Arc;

use firekeep::sim::SimAccount;
use firekeep::stream::frame::decode_frame;
use firekeep::types::Timestamp;
use firekeep::verify::{FrameContent, KeyLookup, check_frame};
use libfuzzer_sys::fuzz_target;

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

fuzz_target!(|bytes: &[u8]| {
    let decoded = decode_frame(bytes).is_ok();
    let key = Arc::new(SimAccount::new(1, NOW).key());
    let print = |now| match check_frame(bytes, |_| KeyLookup::Key(Arc::clone(&key)), now) {
        Ok(FrameContent::Event(event)) => Some((event.seq, event.fingerprint)),
        _ => None,
    };
    let (once, twice) = (print(NOW), print(NOW));
    assert_eq!(once, twice);
    if once.is_some_and(|(seq, _)| seq > 0) && decoded {
        // Without a key it is the same event, only unproven.
        let unproven = check_frame(bytes, |_| KeyLookup::Unknown, NOW);
        assert!(matches!(unproven, Ok(FrameContent::Event(_))));
    }
});
