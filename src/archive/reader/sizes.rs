#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! Which blobs an archive holds of an account, and how large they are.

use std::collections::BTreeMap;

use super::{ArchiveReader, OBJECTS_MAX, ReadError};
use crate::archive::names::{BlobName, DidFolder, ObjectName};
use crate::types::{Did, Digest};

impl ArchiveReader {
    /// The sizes of all of an account's blobs, by their hash.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub async fn blob_sizes(&self, did: &Did) -> Result<BTreeMap<Digest, u64>, ReadError> {
        let prefix = BlobName::prefix(&DidFolder::try_from(did)?);
        let (mut sizes, mut after) = (BTreeMap::new(), None::<String>);
        loop {
            let page = self.bucket.list(&prefix, after.as_deref()).await?;
            for object in page.objects {
                if let Ok(ObjectName::Blob(name)) = object.name.parse() {
                    sizes.insert(name.blob, object.size);
                }
            }
            if sizes.len() > OBJECTS_MAX {
                return Err(ReadError::TooMany(prefix));
            }
            match page.next {
                Some(next) if after.as_ref().is_none_or(|after| *after < next) => after = Some(next),
                _ => return Ok(sizes),
            }
        }
    }
}
