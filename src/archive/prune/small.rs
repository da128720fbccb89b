#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! Objects that newer ones take the place of: identities, hosts' states, our own.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::bucket::ListedObject;
use super::super::identity_file::{IDENTITY_BYTES_MAX, IdentityFile};
use super::super::names::{IdentityName, ObjectName, SERVICE, STATE, StatePart};
use super::{PruneError, Pruned, Pruner};
use crate::types::{DidMethod, Timestamp};

/// So many of the newest of each stay in any case.
const NEWEST: usize = 3;

/// Which of these may go: all but the newest, those of the window, and the last one before it.
fn old(times: &mut Vec<(Timestamp, ListedObject)>, now: Timestamp, window: Duration) -> Vec<ListedObject> {
    times.sort_by_key(|(time, _)| *time);
    let start = now.minus(window);
    let before = times.partition_point(|(time, _)| *time <= start);
    let count = before.saturating_sub(1).min(times.len().saturating_sub(NEWEST));
    times.drain(..count).map(|(_, object)| object).collect()
}

impl Pruner<'_> {
    pub(super) async fn small(&self, pruned: &mut Pruned) -> Result<(), PruneError> {
        let mut of: BTreeMap<String, Vec<(Timestamp, ListedObject)>> = BTreeMap::new();
        for object in self.list("v1/hosts/").await? {
            if let Ok(ObjectName::HostState(name)) = object.name.parse() {
                of.entry(name.host.to_string())
                    .or_default()
                    .push((name.time, object));
            }
        }
        for mut times in of.into_values() {
            for object in old(&mut times, self.now, self.keep.window) {
                self.remove(&object.name, "hosts", object.size, pruned).await?;
            }
        }
        let mut times = Vec::new();
        for object in self.list(SERVICE).await? {
            if let Ok(ObjectName::Service(name)) = object.name.parse() {
                times.push((name.time, object));
            }
        }
        for object in old(&mut times, self.now, self.keep.window) {
            self.remove(&object.name, "service", object.size, pruned).await?;
        }
        self.private_state(pruned).await?;
        self.identities(pruned).await
    }

    /// Of each part of a PDS's private state the newest stays, however old: it is there because nothing changed since.
    async fn private_state(&self, pruned: &mut Pruned) -> Result<(), PruneError> {
        let mut of: BTreeMap<(String, StatePart), Vec<(Timestamp, ListedObject)>> = BTreeMap::new();
        for object in self.list(STATE).await? {
            if let Ok(ObjectName::State(name)) = object.name.parse() {
                of.entry((name.host.to_string(), name.part))
                    .or_default()
                    .push((name.time, object));
            }
        }
        for mut times in of.into_values() {
            for object in old(&mut times, self.now, self.keep.window) {
                self.remove(&object.name, "state", object.size, pruned).await?;
            }
        }
        Ok(())
    }

    /// A newer audit log has everything that an older one had. A document has not: of a `did:web` all stay.
    async fn identities(&self, pruned: &mut Pruned) -> Result<(), PruneError> {
        let mut of: BTreeMap<String, Vec<(Timestamp, ListedObject)>> = BTreeMap::new();
        for object in self.list("v1/identity/").await? {
            if let Ok(ObjectName::Identity(name)) = object.name.parse()
                && name.did.did().method() == DidMethod::Plc
                && self
                    .held
                    .account(name.did.did())?
                    .is_some_and(|known| !known.pinned)
            {
                of.entry(name.did.to_string())
                    .or_default()
                    .push((name.time, object));
            }
        }
        for mut times in of.into_values() {
            let gone = old(&mut times, self.now, self.keep.window);
            let newest = times.last().map(|(_, object)| object.name.clone());
            if let (false, Some(newest)) = (gone.is_empty(), newest)
                && self.has_log(&newest).await?
            {
                for object in gone {
                    self.remove(&object.name, "identities", object.size, pruned)
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// Whether an identity object holds an audit log that proves itself.
    async fn has_log(&self, object: &str) -> Result<bool, PruneError> {
        let (Ok(name), Some(body)) = (object.parse::<IdentityName>(), self.bucket.get(object).await?) else {
            return Ok(false);
        };
        let bytes = body.bytes(IDENTITY_BYTES_MAX).await?;
        let file = IdentityFile::decode(&bytes, &name);
        Ok(file.is_ok_and(|file| file.plc_log.is_some() && file.keys().is_ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_newer_ones_take_the_place_of() {
        let now = Timestamp::from_micros(1_780_000_000_000_000);
        let days = |n: u64| Duration::from_secs(n * 86_400);
        let gone = |ages: &[u64], window| {
            let object = |age: &u64| ListedObject {
                name: age.to_string(),
                size: 1,
            };
            let mut times = ages
                .iter()
                .map(|age| (now.minus(days(*age)), object(age)))
                .collect();
            let gone = old(&mut times, now, days(window));
            gone.into_iter().map(|object| object.name).collect::<Vec<_>>()
        };
        assert_eq!(gone(&[9, 8, 7, 6, 5, 4], 30), Vec::<String>::new());
        // The last one before the window says what was at its beginning.
        assert_eq!(gone(&[90, 80, 70, 6, 5, 4], 30), ["90", "80"]);
        assert_eq!(gone(&[90, 80, 70], 30), Vec::<String>::new());
        assert_eq!(gone(&[90, 80, 70, 60], 30), ["90"]);
        assert_eq!(gone(&[9, 8, 7, 6, 5], 0), ["9", "8"]);
    }
}
