#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! What an archive says of itself as a whole: which accounts it has, how its hosts stood, which blobs there are.

use std::collections::{BTreeMap, BTreeSet};

use super::{ArchiveReader, ReadError};
use crate::archive::boundary::{BOUNDARY_BYTES_MAX, Boundary};
use crate::archive::bucket::{BucketError, BucketErrorKind, ObjectBody};
use crate::archive::names::{
    self, BlobName, BoundaryName, DidFolder, HostFolder, HostStateName, ObjectName, ServiceName,
    SnapshotName, StateName,
};
use crate::archive::state_file::{HostState, STATE_BYTES_MAX, ServiceState};
use crate::types::{Did, Digest, HostName, Rev};

/// States that are tried, newest first, before there is none.
const STATES_TRIED_MAX: usize = 8;

impl ArchiveReader {
    /// The newest snapshot of each account, with its size.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub async fn newest_snapshots(&self) -> Result<BTreeMap<Did, (SnapshotName, u64)>, ReadError> {
        let mut newest: BTreeMap<Did, (SnapshotName, u64)> = BTreeMap::new();
        self.each_listed(names::REPOS, |text, size| {
            let Ok(ObjectName::Snapshot(name)) = text.parse() else {
                return;
            };
            let did = name.did.did().clone();
            if newest.get(&did).is_none_or(|(known, _)| known.rev < name.rev) {
                newest.insert(did, (name, size));
            }
        })
        .await?;
        Ok(newest)
    }

    /// Where the log begins, if that can be read.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub(in crate::archive) async fn log_begins(
        &self,
        name: &BoundaryName,
    ) -> Result<Option<Boundary>, ReadError> {
        let object = name.to_string();
        let Some(bytes) = self.object(&object, BOUNDARY_BYTES_MAX).await? else {
            // A newer one took its place.
            return Err(ReadError::Vanished(object));
        };
        match bytes.and_then(|bytes| Boundary::decode(&bytes, name)) {
            Ok(boundary) => Ok(Some(boundary)),
            Err(detail) => {
                tracing::error!("{object}: {detail}");
                Ok(None)
            }
        }
    }

    /// How far the deltas of each account lead.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub async fn newest_deltas(&self) -> Result<BTreeMap<Did, Rev>, ReadError> {
        let mut newest: BTreeMap<Did, Rev> = BTreeMap::new();
        self.each_listed(names::REPOS, |text, _| {
            if let Ok(ObjectName::Delta(name)) = text.parse() {
                let known = newest.entry(name.did().did().clone()).or_insert(name.to());
                *known = (*known).max(name.to());
            }
        })
        .await?;
        Ok(newest)
    }

    /// An account's blobs, with their sizes.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub async fn blobs(&self, did: &Did) -> Result<Vec<(Digest, u64)>, ReadError> {
        let mut blobs = Vec::new();
        self.each_listed(&BlobName::prefix(&DidFolder::try_from(did)?), |text, size| {
            if let Ok(ObjectName::Blob(name)) = text.parse() {
                blobs.push((name.blob, size));
            }
        })
        .await?;
        Ok(blobs)
    }

    /// The hosts of which there is a state.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub async fn hosts(&self) -> Result<BTreeSet<HostName>, ReadError> {
        let names = self.list("v1/hosts/").await?.into_iter();
        let states = names.filter_map(|name| match name.parse() {
            Ok(ObjectName::HostState(state)) => Some(state.host.host().clone()),
            _ => None,
        });
        Ok(states.collect())
    }

    /// How a host stood last, as far as it can be read; and what cannot.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub async fn host_state(&self, host: &HostName) -> Result<(Option<HostState>, Vec<String>), ReadError> {
        let prefix = HostStateName::prefix(&HostFolder::try_from(host)?);
        self.newest_state(&prefix, |bytes, name| match name {
            ObjectName::HostState(name) => {
                Some(HostState::decode(bytes, &name).map_err(|error| error.to_string()))
            }
            _ => None,
        })
        .await
    }

    /// What Firekeep said of itself last, as far as it can be read; and what cannot.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub async fn service_state(&self) -> Result<(Option<ServiceState>, Vec<String>), ReadError> {
        self.newest_state(names::SERVICE, |bytes, name| match name {
            ObjectName::Service(name @ ServiceName { .. }) => {
                Some(ServiceState::decode(bytes, &name).map_err(|error| error.to_string()))
            }
            _ => None,
        })
        .await
    }

    async fn newest_state<T>(
        &self,
        prefix: &str,
        decode: impl Fn(&[u8], ObjectName) -> Option<Result<T, String>>,
    ) -> Result<(Option<T>, Vec<String>), ReadError> {
        let mut unusable = Vec::new();
        let names = self.list(prefix).await?;
        for text in names.iter().rev().take(STATES_TRIED_MAX) {
            let Ok(name) = text.parse::<ObjectName>() else {
                continue;
            };
            let read = match self.object(text, STATE_BYTES_MAX).await? {
                Some(Ok(bytes)) => decode(&bytes, name),
                Some(Err(error)) => Some(Err(error)),
                None => None,
            };
            match read {
                Some(Ok(state)) => return Ok((Some(state), unusable)),
                Some(Err(error)) => unusable.push(format!("{text}: {error}")),
                None => {}
            }
        }
        Ok((None, unusable))
    }

    /// Every object of a PDS's private state, with its size.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub async fn state_objects(&self) -> Result<Vec<(StateName, u64)>, ReadError> {
        let mut objects = Vec::new();
        self.each_listed(names::STATE, |text, size| {
            if let Ok(ObjectName::State(name)) = text.parse() {
                objects.push((name, size));
            }
        })
        .await?;
        Ok(objects)
    }

    /// An object, to be read as a stream.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub async fn object_body(&self, name: &str) -> Result<Option<ObjectBody>, ReadError> {
        Ok(self.bucket.get(name).await?)
    }

    /// Whether the archive is there at all: an object that could not be read may be whole.
    ///
    /// # Errors
    /// When it is not.
    pub async fn must_answer(&self) -> Result<(), ReadError> {
        match self.bucket.head(names::ARCHIVE).await? {
            Some(_) => Ok(()),
            None => Err(BucketError {
                kind: BucketErrorKind::Other,
                action: "find the archive in",
                place: self.place(),
                detail: format!("there is no {} any more", names::ARCHIVE),
            }
            .into()),
        }
    }

    async fn each_listed(&self, prefix: &str, mut visit: impl FnMut(&str, u64)) -> Result<(), ReadError> {
        let mut after: Option<String> = None;
        loop {
            let page = self.bucket.list(prefix, after.as_deref()).await?;
            for object in &page.objects {
                visit(&object.name, object.size);
            }
            // A store that does not go on would be listed for ever.
            match page.next {
                Some(next) if after.as_ref().is_none_or(|after| *after < next) => after = Some(next),
                _ => return Ok(()),
            }
        }
    }
}
