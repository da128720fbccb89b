//! A segment or delta of the archive, unpacked: what is read encodes to something that reads the same.
#![no_main]

use firekeep::archive::log_file::LogFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = LogFile::decode(bytes) else { return };
    let again = LogFile::decode(&*file.encode_car()).expect("what we write is read");
    assert_eq!((file.root, &file.index), (again.root, &again.index));
});
