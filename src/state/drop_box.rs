#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! The folder in which who may read a PDS leaves what it encrypted, for the daemon, which may not, to ship.
//!
//! One flat folder that the daemon may write, so that it can remove what is shipped. Whoever writes there as root
//! follows no link: a file is made under a new name, and renamed.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::StateError;
use crate::archive::names::{ObjectName, StateName};

/// What stands for the slashes of an object's name.
const SLASH: char = '~';
/// What every object of private state begins with.
const ROOT: &str = "v1/state/";
/// Most files that are looked at, at once.
pub const FILES_MAX: usize = 100_000;

/// The file of an object.
#[must_use]
pub fn file_name(name: &StateName) -> String {
    let text = ObjectName::State(name.clone()).to_string();
    text.trim_start_matches(ROOT).replace('/', &SLASH.to_string())
}

/// The object of a file.
#[must_use]
pub fn object_of(file_name: &str) -> Option<StateName> {
    match format!("{ROOT}{}", file_name.replace(SLASH, "/")).parse() {
        Ok(ObjectName::State(name)) => Some(name),
        _ => None,
    }
}

fn cannot(what: &str, path: &Path, error: &dyn std::fmt::Display) -> StateError {
    StateError(format!("cannot {what} {}: {error}", path.display()))
}

/// Leaves an object there. It is durable when this returns.
///
/// # Errors
/// When it cannot be written.
pub fn leave(folder: &Path, name: &StateName, cipher: &[u8]) -> Result<(), StateError> {
    let path = folder.join(file_name(name));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::with_prefix_in(".firekeep-", folder)?;
        file.write_all(cipher)?;
        // For the daemon's group. What is in it is encrypted.
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o640))?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| cannot("write", &path, &error))
}

/// What lies there, oldest first.
///
/// # Errors
/// When the folder cannot be read.
pub fn waiting(folder: &Path) -> Result<Vec<(PathBuf, StateName)>, StateError> {
    let entries = std::fs::read_dir(folder).map_err(|error| cannot("read", folder, &error))?;
    let mut files = Vec::new();
    for entry in entries.take(FILES_MAX) {
        let entry = entry.map_err(|error| cannot("read", folder, &error))?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let name = entry.file_name().to_str().and_then(object_of);
        files.extend(name.filter(|_| is_file).map(|name| (entry.path(), name)));
    }
    files.sort_by(|(_, a), (_, b)| (a.time, a).cmp(&(b.time, b)));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::names::{DidFolder, HostFolder, StatePart};
    use crate::types::Timestamp;

    fn name(part: StatePart) -> StateName {
        let host = "pds.example.com:3000".parse().expect("a host");
        StateName {
            host: HostFolder::try_from(&host).expect("short"),
            time: Timestamp::from_micros(1_700_000_000_123_000),
            part,
        }
    }

    #[test]
    fn what_is_left_is_found_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let did = "did:web:a.example.com%3A80".parse().expect("a DID");
        let account = name(StatePart::Account(DidFolder::try_from(&did).expect("short")));
        let part = name(StatePart::Named("did-cache".parse().expect("a part")));
        leave(folder.path(), &account, b"one").expect("writes");
        leave(folder.path(), &part, b"two").expect("writes");
        for other in [".firekeep-x", "nonsense.age", "a~b~c.age"] {
            std::fs::write(folder.path().join(other), "x").expect("writes");
        }
        let target = folder.path().join("elsewhere");
        let link = name(StatePart::Named("account".parse().expect("a part")));
        std::os::unix::fs::symlink(&target, folder.path().join(file_name(&link))).expect("links");
        let found = waiting(folder.path()).expect("lists");
        let names: Vec<&StateName> = found.iter().map(|(_, name)| name).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.contains(&&account) && names.contains(&&part));
        // A link in its place is replaced, not followed.
        leave(folder.path(), &link, b"three").expect("writes");
        assert!(!target.exists());
        assert_eq!(waiting(folder.path()).expect("lists").len(), 3);
    }
}
