//! RocksDB reports text; these are texts as it was seen to report them.

use super::*;

fn failed_with(detail: &str) -> StoreError {
    // The crate makes no errors of a chosen text, so the part that judges is tested.
    judge(Path::new("/data/mirror"), detail)
}

#[test]
fn errors_are_told_apart() {
    let at = "/data/mirror/000012.log";
    let lock = "/data/mirror/LOCK";
    for (detail, want) in [
        (
            format!("IO error: While lock file: {lock}: Resource temporarily unavailable"),
            "Locked",
        ),
        (
            format!(
                "IO error: lock hold by current process, acquire time 1 acquiring thread 2: {lock}: No locks available"
            ),
            "Locked",
        ),
        (
            format!(
                "IO error: No space left on device: While appending to file: {at}: No space left on device"
            ),
            "Full",
        ),
        (
            format!("IO error: While fdatasync: {at}: Disk quota exceeded"),
            "Full",
        ),
        (
            format!("IO error: While open a file for lock: {lock}: Permission denied"),
            "NotWritable",
        ),
        (
            format!("IO error: While mkdir if missing: {at}: Read-only file system"),
            "NotWritable",
        ),
        (
            format!("Corruption: block checksum mismatch: stored = 1, computed = 2 in {at}"),
            "Corrupt",
        ),
        (
            format!("IO error: No such file or directory: While open a file for random read: {at}"),
            "Corrupt",
        ),
        (
            format!("IO error: While fdatasync: {at}: Input/output error"),
            "Failed",
        ),
        ("Invalid argument: Column family not found".to_owned(), "Failed"),
    ] {
        let error = failed_with(&detail);
        let name = format!("{error:?}");
        assert!(name.starts_with(want), "{detail}: {name}");
        assert!(error.to_string().contains("/data/mirror"), "{error}");
        assert_eq!(error.is_transient(), want == "Full");
    }
}

#[test]
fn file_system_errors_are_told_apart() {
    let judge = |kind: io::ErrorKind| classify_io(Path::new("/data"), &io::Error::from(kind));
    assert!(matches!(
        judge(io::ErrorKind::StorageFull),
        StoreError::Full { .. }
    ));
    assert!(matches!(
        judge(io::ErrorKind::PermissionDenied),
        StoreError::NotWritable { .. }
    ));
    assert!(matches!(
        judge(io::ErrorKind::ReadOnlyFilesystem),
        StoreError::NotWritable { .. }
    ));
    assert!(matches!(
        judge(io::ErrorKind::TimedOut),
        StoreError::Failed { .. }
    ));
}

#[cfg(target_os = "linux")]
#[test]
fn the_holder_is_found_among_the_locks() {
    let locks = "1: FLOCK  ADVISORY  WRITE 11 fe:00:1310840 0 EOF\n\
                 1: -> FLOCK  ADVISORY  WRITE 12 fe:00:13 0 EOF\n\
                 2: POSIX  ADVISORY  WRITE 4711 fe:00:131084 0 EOF\n";
    assert_eq!(holder_in(locks, 131_084), Some(4711));
    assert_eq!(holder_in(locks, 31_084), None);
    assert_eq!(holder_in("nonsense", 1), None);
}
