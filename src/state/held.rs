#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! What an archive holds of a PDS's private state.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::crypt::Keys;
use super::private::Private;
use super::read::check_database;
use super::{DATABASES, PART_BYTES_MAX, SETTINGS, StateError};
use crate::archive::names::{ObjectName, StateName, StatePart};
use crate::archive::reader::{ArchiveReader, ReadError};
use crate::types::{HostName, Timestamp};

/// What `age` adds to a part, at most.
const OVERHEAD: u64 = 1 << 20;

/// The newest object of each part of a host at or before a time, with its size.
///
/// # Errors
/// When the store does not answer, or refuses.
pub async fn newest(
    reader: &ArchiveReader,
    host: Option<&HostName>,
    until: Option<Timestamp>,
) -> Result<Vec<(StateName, u64)>, ReadError> {
    let mut newest: BTreeMap<(HostName, StatePart), (StateName, u64)> = BTreeMap::new();
    for (name, size) in reader.state_objects().await? {
        if host.is_some_and(|host| name.host.host() != host) || until.is_some_and(|until| name.time > until) {
            continue;
        }
        let key = (name.host.host().clone(), name.part.clone());
        if newest.get(&key).is_none_or(|(known, _)| known.time < name.time) {
            newest.insert(key, (name, size));
        }
    }
    Ok(newest.into_values().collect())
}

/// Reads a part, opens it, and checks that it is what it should be.
///
/// # Errors
/// Inside, when it is not; outside, when the store does not answer.
pub async fn open(
    reader: &ArchiveReader,
    name: &StateName,
    keys: &Keys,
) -> Result<Result<Zeroizing<Vec<u8>>, StateError>, ReadError> {
    let text = ObjectName::State(name.clone()).to_string();
    let Some(body) = reader.object_body(&text).await? else {
        return Ok(Err(StateError::new("it is listed, and not there")));
    };
    let bytes = match body.bytes((PART_BYTES_MAX + OVERHEAD) as usize).await {
        Ok(bytes) => bytes,
        Err(error) if error.is_transient() => return Err(error.into()),
        Err(error) => return Ok(Err(StateError::new(error))),
    };
    Ok(keys
        .decrypt(&bytes)
        .and_then(|plain| check(&name.part, &plain).map(|()| plain)))
}

fn check(part: &StatePart, plain: &[u8]) -> Result<(), StateError> {
    match part {
        StatePart::Account(did) => Private::decode(plain, did.did()).map(drop),
        StatePart::Named(part) if DATABASES.iter().any(|(name, _)| *name == part.as_str()) => {
            check_database(plain).map(drop)
        }
        StatePart::Named(part) if part.as_str() == SETTINGS.0 && plain.is_empty() => {
            Err(StateError::new("it is empty"))
        }
        StatePart::Named(_) => Ok(()),
    }
}
