#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! Files that are there whole or not at all, and replace nothing unasked.

use std::fs::File;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::{DaemonError, failed};

/// A file that gets its name when it is complete.
pub(super) struct NewFile {
    file: NamedTempFile,
    path: PathBuf,
    force: bool,
}

impl NewFile {
    /// Begins a file. With `force` it replaces one that is there.
    ///
    /// # Errors
    /// When there is one, or none can be made.
    pub(super) fn create(path: &Path, force: bool) -> Result<Self, DaemonError> {
        if path.is_dir() {
            return Err(failed(format!(
                "{} is a folder; name a file in it",
                path.display()
            )));
        }
        if !force && path.symlink_metadata().is_ok() {
            return Err(there_already(path));
        }
        let file = NamedTempFile::with_prefix_in(".firekeep-", folder_of(path));
        let file = file.map_err(|error| cannot("write", path, &error))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            force,
        })
    }

    /// The file while it has no name.
    pub(super) fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Where it is while it has no name.
    pub(super) fn temporary_path(&self) -> &Path {
        self.file.path()
    }

    /// It is complete: makes it durable, and gives it its name.
    ///
    /// # Errors
    /// When it cannot, or something of that name appeared meanwhile.
    pub(super) fn finish(self) -> Result<(), DaemonError> {
        let Self { file, path, force } = self;
        file.as_file()
            .sync_all()
            .map_err(|error| cannot("write", &path, &error))?;
        let named = match force {
            true => file.persist(&path),
            false => file.persist_noclobber(&path),
        };
        named.map_err(|error| match error.error.kind() {
            std::io::ErrorKind::AlreadyExists => there_already(&path),
            _ => cannot("write", &path, &error.error),
        })?;
        let folder = File::open(folder_of(&path)).and_then(|folder| folder.sync_all());
        folder.map_err(|error| cannot("sync the folder of", &path, &error))
    }
}

fn there_already(path: &Path) -> DaemonError {
    failed(format!(
        "{} is there already; choose another name, or replace it with --force",
        path.display()
    ))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// An error with a file.
pub(super) fn cannot(what: &str, path: &Path, error: &dyn std::fmt::Display) -> DaemonError {
    failed(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_appears_when_it_is_complete() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.car");
        let mut file = NewFile::create(&path, false).expect("begins");
        file.file().write_all(b"first").expect("writes");
        assert!(!path.exists());
        file.finish().expect("ends");
        assert_eq!(std::fs::read(&path).expect("there"), b"first");

        let refused = NewFile::create(&path, false).err().expect("it is there");
        assert!(refused.text.contains("--force"), "{refused}");
        let mut file = NewFile::create(&path, true).expect("begins");
        file.file().write_all(b"second").expect("writes");
        drop(NewFile::create(&path, true).expect("begins"));
        assert_eq!(std::fs::read(&path).expect("there"), b"first");
        file.finish().expect("ends");
        assert_eq!(std::fs::read(&path).expect("there"), b"second");
        assert_eq!(
            std::fs::read_dir(folder.path()).expect("lists").count(),
            1,
            "nothing is left over"
        );
    }

    #[test]
    fn what_appears_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.car");
        let file = NewFile::create(&path, false).expect("begins");
        std::fs::write(&path, b"theirs").expect("writes");
        assert!(file.finish().is_err());
        assert_eq!(std::fs::read(&path).expect("there"), b"theirs");
        assert!(
            NewFile::create(folder.path(), true).is_err(),
            "a folder is no file"
        );
    }
}
