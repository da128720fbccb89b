#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! What is kept beside what was removed: where the log begins, and what was erased.

use super::super::boundary::{BOUNDARY_BYTES_MAX, Boundary};
use super::super::erase::note::{NOTE_BYTES_MAX, Note};
use super::super::names::{BoundaryName, DidFolder, ErasedName, NameError};
use super::super::timeline::{Fault, Hides, TimelineBuilder};
use super::{ArchiveReader, ReadError};
use crate::types::Did;

impl ArchiveReader {
    /// What was erased of an account: restores obey it.
    pub(in crate::archive) async fn note(&self, folder: &DidFolder) -> Result<Option<Note>, ReadError> {
        let name = ErasedName { did: folder.clone() };
        let object = name.to_string();
        match self.object(&object, NOTE_BYTES_MAX).await? {
            None => Ok(None),
            Some(bytes) => match bytes.and_then(|bytes| Note::decode(&bytes, &name)) {
                Ok(note) => Ok(Some(note)),
                Err(detail) => Err(ReadError::Note { object, detail }),
            },
        }
    }

    /// Reads where the log begins, and what is kept there of the account.
    pub(super) async fn boundary(
        &self,
        did: &Did,
        name: Option<BoundaryName>,
        builder: &mut TimelineBuilder,
    ) -> Result<Option<Boundary>, ReadError> {
        let Some(name) = name else { return Ok(None) };
        let object = name.to_string();
        let Some(bytes) = self.object(&object, BOUNDARY_BYTES_MAX).await? else {
            // A newer one took its place.
            return Err(ReadError::Vanished(object));
        };
        match bytes.and_then(|bytes| Boundary::decode(&bytes, &name)) {
            Ok(boundary) => {
                let standing = boundary.standings.get(did);
                builder.entries(object, None, standing.map_or(&[], std::slice::from_ref));
                Ok(Some(boundary))
            }
            Err(detail) => {
                let hides = Hides::Nothing;
                builder.fault(Fault {
                    object,
                    detail,
                    hides,
                });
                Ok(None)
            }
        }
    }
}

/// An object whose name is none of those that lie there. The name may be anything.
pub(super) fn foreign(name: &str, error: Option<NameError>) -> Fault {
    let shown: String = name.chars().take(200).collect();
    Fault {
        object: format!("{shown:?}"),
        detail: error.map_or_else(
            || "it does not belong there; it was passed over".to_owned(),
            |error| format!("{error}; it was passed over"),
        ),
        hides: Hides::Nothing,
    }
}
