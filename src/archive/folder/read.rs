#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! Reading and listing a folder archive.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::ops::ControlFlow;
use std::path::Path;

use super::super::bucket::{
    BucketError, BucketErrorKind, LIST_NAMES_MAX, ListPage, ListedObject, ObjectHead,
};
use super::super::content_type::{self, CONTENT_TYPE_BYTES_MAX, ContentType};
use super::super::names;
use super::{Folder, io_error, symlink, type_name};

impl Folder {
    /// Opens an object and tells what is known of it; `None` if there is none.
    pub(super) fn open_object(&self, name: &str) -> Result<Option<(File, ObjectHead)>, BucketError> {
        let path = self.path_of("read", name)?;
        let error = |error: &io::Error| io_error("read", &path, error);
        if self.plain_file("read", &path)?.is_none() {
            return Ok(None);
        }
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(error(&e)),
        };
        let opened = file.metadata().map_err(|e| error(&e))?;
        let mut head = Vec::with_capacity(content_type::HEAD_BYTES);
        let limit = content_type::HEAD_BYTES as u64;
        (&mut file)
            .take(limit)
            .read_to_end(&mut head)
            .map_err(|e| error(&e))?;
        file.rewind().map_err(|e| error(&e))?;
        let content_type = match self.written_type(name)? {
            Some(written) => written,
            None => content_type::implied(name, &head),
        };
        let head = ObjectHead {
            size: opened.len(),
            content_type,
            sha256: None,
        };
        Ok(Some((file, head)))
    }

    /// The type that was written down for an object. One that cannot be is as good as none.
    fn written_type(&self, name: &str) -> Result<Option<ContentType>, BucketError> {
        let path = self.path_of("read", &type_name(name))?;
        if self.plain_file("read", &path)?.is_none() {
            return Ok(None);
        }
        let limit = CONTENT_TYPE_BYTES_MAX as u64 + 1;
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(limit).read_to_string(&mut text));
        match read {
            Ok(_) => Ok(text.trim_end_matches('\n').parse().ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::InvalidData => {
                Ok(None)
            }
            Err(e) => Err(io_error("read", &path, &e)),
        }
    }

    pub(super) fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, BucketError> {
        let mut walk = Walk {
            folder: self,
            prefix,
            after: after.unwrap_or(""),
            objects: Vec::new(),
        };
        let base = prefix.rfind('/').map_or("", |at| &prefix[..=at]);
        // No object has such a name; and such a path could lead anywhere.
        let odd = |part: &str| part.is_empty() || part.starts_with('.');
        if base.split_terminator('/').any(odd) || base.starts_with(names::TYPES) {
            return Ok(ListPage {
                objects: Vec::new(),
                next: None,
            });
        }
        self.path_of("list", &format!("{base}x"))?;
        let depth = base.matches('/').count();
        let stopped = walk.folder(&self.root.join(base), base, depth)?.is_break();
        let objects = walk.objects;
        let next = objects.last().filter(|_| stopped).map(|last| last.name.clone());
        Ok(ListPage { objects, next })
    }
}

/// A walk through the folders in the byte order of whole names.
struct Walk<'a> {
    folder: &'a Folder,
    prefix: &'a str,
    after: &'a str,
    objects: Vec<ListedObject>,
}

impl Walk<'_> {
    /// Walks a folder whose names begin with `base`. Breaks when the page is full and there is more.
    fn folder(&mut self, path: &Path, base: &str, depth: usize) -> Result<ControlFlow<()>, BucketError> {
        // No object lies deeper; what does is not ours.
        if depth > names::NAME_PARTS_MAX {
            return Ok(ControlFlow::Continue(()));
        }
        for name in self.entries(path, base)? {
            let flow = match name.strip_suffix('/') {
                Some(folder) => self.folder(&self.folder.root.join(folder), &name, depth + 1)?,
                None => self.object(name)?,
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The entries of a folder that may matter, sorted. A folder ends with `/`: so it sorts where its objects do.
    fn entries(&self, path: &Path, base: &str) -> Result<Vec<String>, BucketError> {
        let error = |error: &io::Error| io_error("list", path, error);
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(error(&e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| error(&e))?;
            // A name that is not UTF-8 is none of ours.
            let Ok(file_name) = entry.file_name().into_string() else {
                continue;
            };
            let mut name = format!("{base}{file_name}");
            let kind = entry.file_type().map_err(|e| error(&e))?;
            if kind.is_dir() {
                name.push('/');
            }
            if !self.matters(&name) {
                continue;
            }
            if kind.is_symlink() {
                return Err(symlink("list", &entry.path()));
            }
            if kind.is_dir() || kind.is_file() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Whether a name, or any name below a folder, can be on the page.
    fn matters(&self, name: &str) -> bool {
        if name.ends_with('/') {
            // `lost+found` stands in the root of many file systems, and only root may look into it.
            let ours = name != names::TEMPORARY && name != names::TYPES && name != "lost+found/";
            let in_prefix = name.starts_with(self.prefix) || self.prefix.starts_with(name);
            return ours && in_prefix && (name > self.after || self.after.starts_with(name));
        }
        name.starts_with(self.prefix) && name > self.after
    }

    fn object(&mut self, name: String) -> Result<ControlFlow<()>, BucketError> {
        let path = self.folder.root.join(&name);
        let size = match self.folder.plain_file("list", &path) {
            Ok(Some(found)) => found.len(),
            // Deleted (or replaced by a folder) since the folder was read.
            Ok(None) => return Ok(ControlFlow::Continue(())),
            Err(error) if error.kind == BucketErrorKind::NotAFolder => return Ok(ControlFlow::Continue(())),
            Err(error) => return Err(error),
        };
        if self.objects.len() == LIST_NAMES_MAX {
            return Ok(ControlFlow::Break(()));
        }
        self.objects.push(ListedObject { name, size });
        Ok(ControlFlow::Continue(()))
    }
}
