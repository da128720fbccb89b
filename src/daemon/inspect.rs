#![allow(clippy::disallowed_methods, reason = "shell: the mirror and the network")]
//! What a person can look at: accounts, alarms, and how an account differs from what its host has now.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use serde_json::{Value, json};

use super::control::DaemonControl;
use super::readiness::{self, Facts, PdsKeys};
use crate::mirror::keyspace::AlarmKind;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AccountRow, BlobState, HeadSigner, SyncState};
use crate::mirror::store::StoreError;
use crate::types::{Cid, Did};

/// Accounts on a page.
const ACCOUNTS_MAX: usize = 10_000;
/// Blobs that are looked at for one page of accounts, where some are missing.
const BLOBS_COUNTED_MAX: u64 = 1_000_000;
/// Differences that are listed; the counts are complete.
const DIFFERENCES_MAX: usize = 10_000;

impl DaemonControl {
    /// Accounts, in the order of their DIDs, after `after`.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    pub fn accounts(&self, after: Option<&str>) -> Result<Value, StoreError> {
        let page = Mirror::new(&*self.store).accounts(after, ACCOUNTS_MAX)?;
        let next = (page.len() == ACCOUNTS_MAX)
            .then(|| page.last().map(|(did, _)| did.to_string()))
            .flatten();
        let mut accounts: Vec<_> = page.iter().map(|(did, row)| account_json(did, row)).collect();
        for (value, readiness) in accounts.iter_mut().zip(self.readiness(&page)?) {
            value["restore"] = readiness;
        }
        Ok(json!({ "accounts": accounts, "next": next }))
    }

    /// Whether each of these accounts could be restored today, and by whom.
    fn readiness(&self, page: &[(Did, AccountRow)]) -> Result<Vec<Value>, StoreError> {
        let mirror = Mirror::new(&*self.store);
        let mut keys = PdsKeys::default();
        mirror.each_account(|_, row| {
            keys.add(&row);
            ControlFlow::Continue(())
        })?;
        let (pds_keys, nobody) = (keys.found(), BTreeSet::new());
        let some_missing = self
            .applier
            .totals()
            .blobs
            .get("missing")
            .is_some_and(|count| *count > 0);
        let (mut left, mut all) = (BLOBS_COUNTED_MAX, Vec::with_capacity(page.len()));
        for (did, row) in page {
            let mut missing = Some(0);
            if some_missing {
                let mut count = 0;
                mirror.each_blob_of(row.did_number, |blob| {
                    left = left.saturating_sub(1);
                    count += u64::from(matches!(blob.state, BlobState::Missing { .. }));
                    if left > 0 {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                })?;
                missing = (left > 0).then_some(count);
            }
            let found = readiness::judge(
                did,
                &Facts {
                    method: did.method(),
                    rotation_keys: row.log_seen.as_ref().map(|seen| &seen.rotation_keys[..]),
                    pds_keys: pds_keys.get(&row.host).unwrap_or(&nobody),
                    gone: readiness::is_gone(row),
                    snapshotted: row.snapshot.is_some(),
                    unsound: readiness::is_unsound(row),
                    archive_here: self.config.archive.url.is_folder(),
                    blobs_missing: missing,
                },
            );
            all.push(json!({
                "ready": found.ready,
                "by": found.who.name(),
                "lacks": found.lacks,
                "rotation_keys": row.log_seen.as_ref().map(|seen| seen.rotation_keys.len()),
                "blobs_missing": missing,
                "last_proof": row.verified_at.map(|at| at.to_string()),
            }));
        }
        Ok(all)
    }

    /// Every alarm.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    pub fn alarms(&self) -> Result<Value, StoreError> {
        let alarms: Vec<_> = Mirror::new(&*self.store)
            .alarms()?
            .into_iter()
            .map(|(id, row)| {
                json!({
                    "host": id.host.as_ref().map(|host| host.as_str().to_owned()),
                    "kind": id.kind.as_str(),
                    "subject": id.subject,
                    "since": row.since.to_string(),
                    "message": row.message,
                    "acknowledged": row.acknowledged.map(|seen| json!({ "by": seen.by, "at": seen.at.to_string() })),
                })
            })
            .collect();
        Ok(json!({ "alarms": alarms }))
    }

    /// Compares what we hold of an account, and what is kept beside it, with what its host has now.
    ///
    /// # Errors
    /// One line for a person.
    pub async fn diff_live(&self, did: &Did) -> Result<Value, String> {
        let row = Mirror::new(&*self.store)
            .account(did)
            .map_err(|error| error.to_string())?;
        let row = row.ok_or_else(|| format!("{did} is not known here"))?;
        let url = self.follower.hosts.get(&row.host);
        let url = url.ok_or_else(|| format!("{did} is at {}, which is not followed", row.host))?;
        let theirs = self.fetcher.live_paths(did, &url).await?;
        let mut sides = vec![(
            "head".to_owned(),
            row.head.as_ref().map(|head| head.rev),
            row.account_number,
        )];
        for pin in &row.pins {
            if let Some(generation) = pin.generation {
                sides.push((
                    format!("kept since {}", pin.since),
                    pin.head.as_ref().map(|head| head.rev),
                    generation,
                ));
            }
        }
        let mut compared = Vec::new();
        for (name, rev, number) in sides {
            let difference = self
                .compare(number, &theirs.paths)
                .map_err(|error| error.to_string())?;
            compared.push(json!({
                "ours": name,
                "rev": rev.map(|rev| rev.to_string()),
                "only_here": difference.only_here.len(),
                "only_there": difference.only_there.len(),
                "changed": difference.changed.len(),
                "equal": difference.equal,
                "paths": {
                    "only_here": first(difference.only_here),
                    "only_there": first(difference.only_there),
                    "changed": first(difference.changed),
                },
            }));
        }
        Ok(json!({
            "did": did.as_str(),
            "host": row.host.as_str(),
            "host_rev": theirs.rev.to_string(),
            "host_commit": theirs.commit.to_string(),
            "compared": compared,
        }))
    }

    fn compare(&self, number: u64, theirs: &BTreeMap<String, Cid>) -> Result<Difference, StoreError> {
        let mut difference = Difference::default();
        let mut rest = theirs.clone();
        Mirror::new(&*self.store).scan_records(number, None, &mut |path, record| {
            let path = String::from_utf8_lossy(path).into_owned();
            match rest.remove(&path) {
                None => difference.only_here.push(path),
                Some(cid) if cid == record.cid() => difference.equal += 1,
                Some(_) => difference.changed.push(path),
            }
            ControlFlow::Continue(())
        })?;
        difference.only_there = rest.into_keys().collect();
        Ok(difference)
    }
}

#[derive(Default)]
struct Difference {
    only_here: Vec<String>,
    only_there: Vec<String>,
    changed: Vec<String>,
    equal: u64,
}

fn first(mut paths: Vec<String>) -> Vec<String> {
    paths.truncate(DIFFERENCES_MAX);
    paths
}

fn account_json(did: &Did, row: &AccountRow) -> Value {
    let (reason, tries) = match &row.sync {
        SyncState::Wanted { reason, tries, .. } => (Some(reason.as_str().to_owned()), *tries),
        SyncState::Quarantined { reason, tries, .. } => (Some(reason.clone()), *tries),
        SyncState::Diverged { theirs, .. } => (Some(format!("the host is at rev {theirs}")), 0),
        SyncState::Moved { to, .. } => (Some(format!("it is at {to} now")), 0),
        SyncState::Live => (None, 0),
    };
    // None: the key that was current when the head came.
    let head_key = match &row.head_signed_by {
        HeadSigner::Current => None,
        HeadSigner::Earlier { key } => Some(key),
    };
    json!({
        "did": did.as_str(),
        "host": row.host.as_str(),
        "status": row.upstream.label(),
        "followed": !row.unfollowed,
        "sync": row.sync.label(),
        "reason": reason,
        "tries": tries,
        "rev": row.head.as_ref().map(|head| head.rev.to_string()),
        "commit": row.head.as_ref().map(|head| head.commit.to_string()),
        "signed_by_earlier_key": head_key,
        "records": row.records,
        "record_bytes": row.record_bytes,
        "parked_events": row.parked,
        "snapshot_rev": row.snapshot.map(|mark| mark.rev.to_string()),
        "snapshot_at": row.snapshot.map(|mark| mark.at.to_string()),
        "kept_beside": row.pins.len(),
        "deletion_confirmed_at": row.deletion_confirmed_at.map(|at| at.to_string()),
        "kept_car": row.kept_car.as_ref().map(|car| json!({
            "rev": car.rev.to_string(),
            "commit": car.commit.to_string(),
            "bytes": car.bytes,
            "since": car.since.to_string(),
            "archived": car.archived,
            "damaged": car.damaged,
        })),
    })
}

/// The alarm that a person names: host, kind and subject.
pub fn parse_alarm(query: &BTreeMap<String, String>) -> Option<crate::mirror::keyspace::AlarmId> {
    let kind = query.get("kind")?;
    let kind = AlarmKind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    let host = match query.get("host").map(String::as_str) {
        None | Some("") => None,
        Some(text) => Some(text.parse().ok()?),
    };
    Some(crate::mirror::keyspace::AlarmId {
        host,
        kind,
        subject: query.get("subject").cloned().unwrap_or_default(),
    })
}
