//! The name of an object of the archive: what parses prints as itself and holds no way out of its folder.
#![no_main]

use firekeep::archive::names::{ObjectName, check_object_name};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(name) = text.parse::<ObjectName>() else {
        return;
    };
    assert_eq!(name.to_string(), text);
    assert!(check_object_name(text).is_ok());
    assert!(
        text.split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
    );
});
