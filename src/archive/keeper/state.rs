#![allow(clippy::disallowed_methods, reason = "shell: the bucket, the clock")]
//! Puts what a new machine needs besides the accounts' data: identities at each change, and the states of hosts and
//! of Firekeep itself.

use std::sync::Arc;

use futures_util::StreamExt as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::super::bucket::{Body, BucketError, BucketErrorKind, PutOptions, PutOutcome};
use super::super::content_type::ContentType;
use super::super::held::Going;
use super::super::identity_file::{IDENTITY_BYTES_MAX, IdentityFile};
use super::super::names::{DidFolder, HostFolder, HostStateName, IdentityName, ServiceName};
use super::super::state_file::{HostState, ServiceState};
use super::{Failed, Keeper};
use crate::identity::plc_log::PlcLog;
use crate::identity::resolver::Testimony;
use crate::metrics::labels::StoreOp;
use crate::mirror::erased::ErasedMark;
use crate::mirror::input::{IdentitySeen, Input};
use crate::mirror::keyspace::Task;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::LogSeen;
use crate::mirror::store::StoreError;
use crate::types::cid::sha256;
use crate::types::{Did, Digest};

impl Keeper {
    /// Archives what the directory says of an account, unless the archive has just that already.
    ///
    /// # Errors
    /// When our own store fails.
    pub async fn identity(
        self: &Arc<Self>,
        did: Did,
        said: Testimony,
        task: Vec<u8>,
    ) -> Result<Input, StoreError> {
        let digest = testimony_digest(&said.document, said.plc_log.as_ref());
        // Who erases waits until this has come to its end.
        let _open = self.gate.at_work(Going::Repositories).await;
        let row = Mirror::new(&*self.store).account(&did)?;
        let Some(row) = row.filter(|row| row.erased != Some(ErasedMark::Whole)) else {
            return Ok(Input::TaskDone { task });
        };
        let seen = look_at_log(&did, &said, row.log_seen.as_ref());
        let is_archived = row.identity_archived == Some(digest);
        let known = row.log_seen.as_ref();
        let nothing_new = seen.as_ref().is_none_or(|seen| Some(&seen.log) == known);
        if is_archived && nothing_new {
            return Ok(Input::TaskDone { task });
        }
        let noted = Input::IdentityArchived {
            did: did.clone(),
            digest,
            seen,
            task: task.clone(),
        };
        if is_archived {
            return Ok(noted);
        }
        let file = IdentityFile {
            did: did.clone(),
            time: said.read_at,
            document: Some(said.document),
            plc_log: said.plc_log,
        };
        match self.put_identity(&file).await {
            Ok(()) => {
                self.recovered();
                Ok(noted)
            }
            Err(Failed::Store(error)) => Err(error),
            Err(failed) => {
                let what = format!("identity of {did}");
                Ok(self.delayed(&what, &failed, task, Task::ArchiveIdentity(did)))
            }
        }
    }

    async fn put_identity(&self, file: &IdentityFile) -> Result<(), Failed> {
        let name = IdentityName {
            did: DidFolder::try_from(&file.did).map_err(|error| Failed::Name(error.to_string()))?,
            time: file.time,
        };
        let text = name.to_string();
        if self.put_json(&text, file.encode()).await? == PutOutcome::Created {
            return Ok(());
        }
        // An earlier try of ours, or the clock was set back to a moment that has one: then it is tried at another.
        let body = self.counted(StoreOp::Get, self.bucket.get(&text)).await?;
        let found = match body {
            Some(body) => body.bytes(IDENTITY_BYTES_MAX).await?,
            None => Default::default(),
        };
        match IdentityFile::decode(&found, &name) {
            Ok(found) if found == *file => Ok(()),
            _ => Err(Failed::Foreign {
                name: text,
                detail: "it says something else".to_owned(),
            }),
        }
    }

    /// Archives a host's state.
    ///
    /// # Errors
    /// A line for a person.
    pub async fn host_state(&self, state: &HostState) -> Result<(), String> {
        let host = HostFolder::try_from(&state.host).map_err(|error| error.to_string())?;
        let time = state.time;
        let name = HostStateName { host, time }.to_string();
        let put = self.put_json(&name, state.encode()).await;
        put.map(drop).map_err(|error| error.to_string())
    }

    /// Archives Firekeep's own state.
    ///
    /// # Errors
    /// A line for a person.
    pub async fn service_state(&self, state: &ServiceState) -> Result<(), String> {
        let name = ServiceName { time: state.time }.to_string();
        let put = self.put_json(&name, state.encode()).await;
        put.map(drop).map_err(|error| error.to_string())
    }

    /// Whether an object's bytes have this hash.
    pub(super) async fn holds(&self, name: &str, digest: &Digest) -> Result<bool, BucketError> {
        let Some(mut body) = self.counted(StoreOp::Get, self.bucket.get(name)).await? else {
            return Ok(false);
        };
        let mut hash = Sha256::new();
        while let Some(chunk) = body.stream.next().await {
            match chunk {
                Ok(bytes) => hash.update(&bytes),
                Err(error) if error.kind == BucketErrorKind::Corrupt => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(<[u8; 32]>::from(hash.finalize()) == *digest)
    }

    async fn put_json(&self, name: &str, bytes: Vec<u8>) -> Result<PutOutcome, Failed> {
        let options = PutOptions {
            sha256: Some(sha256(&bytes)),
            ..PutOptions::create(ContentType::json())
        };
        let length = bytes.len() as u64;
        Ok(self
            .put(name, Body::Bytes(bytes.into()), length, &options)
            .await?)
    }
}

/// Where an audit log stands, and what somebody did to the identity since it was read before.
fn look_at_log(did: &Did, said: &Testimony, before: Option<&LogSeen>) -> Option<IdentitySeen> {
    // It verified when it was read.
    let log = PlcLog::parse(did, said.plc_log.as_ref()?.to_string().as_bytes()).ok()?;
    let keys = log.current().map(|state| state.rotation_keys.clone());
    let seen = LogSeen {
        head: log.last().cid,
        rotation_keys: keys.unwrap_or_default(),
    };
    let changed = before
        .filter(|before| before.head != seen.head)
        .and_then(|before| log.unexpected(&before.head, said.read_at));
    Some(IdentitySeen { log: seen, changed })
}

/// What tells one testimony from another, whenever it was given.
#[must_use]
pub fn testimony_digest(document: &Value, plc_log: Option<&Value>) -> Digest {
    let log = plc_log.map_or_else(String::new, Value::to_string);
    sha256(format!("{document}\n{log}").as_bytes())
}
