#![allow(
    clippy::disallowed_methods,
    reason = "shell: the mirror and the archive's list"
)]
//! All that is known of one account: what is held, what is missing, and what can be brought back.
//!
//! Restore points are read from the names of the archive's objects alone: one list, whatever the account's size.

use std::time::Duration;

use serde_json::{Value, json};

use super::control::DaemonControl;
use crate::archive::bucket::Bucket;
use crate::archive::names::{DidFolder, ObjectName, SnapshotName};
use crate::archive::settings::ArchiveUrl;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AccountRow, BlobState, SyncState};
use crate::mirror::store::StoreError;
use crate::types::{Cid, Did, Digest, Rev};

/// Blobs that are named.
const GAPS_SHOWN: usize = 100;
/// Blobs of an account that are read at a time.
const BLOBS_READ: usize = 1000;
/// Objects of an account that are looked at.
const OBJECTS_MAX: usize = 20_000;
/// Time for listing them.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// A stretch of an account's history.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Point {
    /// A snapshot, of so many bytes.
    Snapshot(Rev, u64),
    /// Every moment of it can be restored.
    Every(Rev, Rev),
    /// Nothing in between.
    Gap(Rev, Rev),
}

impl DaemonControl {
    /// The account; null where it is not known.
    ///
    /// # Errors
    /// One line for a person.
    pub async fn account_page(&self, did: &Did) -> Result<Value, String> {
        let told = |error: StoreError| error.to_string();
        let (store, wanted) = (std::sync::Arc::clone(&self.store), did.clone());
        let read = tokio::task::spawn_blocking(move || {
            let view = store.view();
            let mirror = Mirror::new(&*view);
            let Some(row) = mirror.account(&wanted)? else {
                return Ok(None);
            };
            let blobs = blobs_json(&mirror, &row)?;
            Ok(Some((row, blobs)))
        });
        let read = read.await.map_err(|error| error.to_string())?.map_err(told)?;
        let Some((row, blobs)) = read else {
            return Ok(Value::Null);
        };
        let (points, error) = match self.keeper.get() {
            None => (Vec::new(), Some("it is not open".to_owned())),
            Some(keeper) => {
                match tokio::time::timeout(LIST_TIMEOUT, points_of(&keeper.bucket, did, &row)).await {
                    Ok(Ok(points)) => (points, None),
                    Ok(Err(why)) => (Vec::new(), Some(why)),
                    Err(_) => (Vec::new(), Some("it does not answer in time".to_owned())),
                }
            }
        };
        let ends = points.iter().map(Point::span);
        let (from, to) = (
            ends.clone().map(|(from, _)| from).min(),
            ends.map(|(_, to)| to).max(),
        );
        let seconds = |rev: Rev| rev.time().seconds_f64();
        Ok(json!({
            "did": did.as_str(),
            "handle": row.identity.as_ref().and_then(|identity| identity.handle.clone()),
            "host": row.host.as_str(),
            "status": row.upstream.label(),
            "sync": row.sync.label(),
            "reason": reason(&row.sync),
            "rev": row.head.as_ref().map(|head| head.rev.to_string()),
            "rev_time": row.head.as_ref().map(|head| head.rev.time().to_string()),
            "records": row.records,
            "record_bytes": row.record_bytes,
            "archived": row.is_archived(),
            "verified_at": row.verified_at.map(|at| at.to_string()),
            "blobs": blobs,
            "points": points.iter().map(Point::json).collect::<Vec<_>>(),
            "points_from": from.map(seconds),
            "points_to": to.map(seconds),
            "points_error": error,
            "archive": self.config.archive.url.to_string(),
            "archive_flags": self.archive_flags(),
        }))
    }

    /// The flags that a command needs to find the archive, besides its URL.
    fn archive_flags(&self) -> String {
        let mut flags = String::new();
        if let ArchiveUrl::S3 { .. } = &self.config.archive.url {
            if let Some(endpoint) = &self.config.archive.s3.endpoint {
                flags.push_str(&format!(" --s3-endpoint {endpoint}"));
            }
            if let Some(region) = &self.config.archive.s3.region {
                flags.push_str(&format!(" --s3-region {region}"));
            }
        }
        flags
    }
}

fn reason(sync: &SyncState) -> Option<String> {
    match sync {
        SyncState::Wanted { reason, .. } => Some(reason.as_str().to_owned()),
        SyncState::Quarantined { reason, .. } => Some(reason.clone()),
        SyncState::Diverged { theirs, .. } => Some(format!("the host is at rev {theirs}")),
        SyncState::Moved { to, .. } => Some(format!("it is at {to} now")),
        SyncState::Live => None,
    }
}

fn blobs_json(mirror: &Mirror<'_>, row: &AccountRow) -> Result<Value, StoreError> {
    let (mut stored, mut bytes, mut pending, mut missing) = (0u64, 0u64, 0u64, 0u64);
    let (mut gaps, mut after) = (Vec::new(), None::<Digest>);
    loop {
        let page = mirror.blobs_page(row.did_number, after.as_ref(), BLOBS_READ)?;
        after = page.last().map(|(digest, _)| *digest);
        let last = page.len() < BLOBS_READ;
        for (digest, blob) in page {
            let why = match &blob.state {
                BlobState::Wanted => {
                    pending += 1;
                    "it is still to be fetched"
                }
                BlobState::Missing { reason, .. } => {
                    missing += 1;
                    reason.sentence()
                }
                state => {
                    if state.is_stored() {
                        stored += 1;
                        bytes += blob.size.unwrap_or(0);
                    }
                    continue;
                }
            };
            if gaps.len() < GAPS_SHOWN {
                gaps.push(json!({ "cid": Cid::raw(digest).to_string(), "why": why }));
            }
        }
        if last {
            break;
        }
    }
    Ok(json!({ "stored": stored, "bytes": bytes, "pending": pending, "missing": missing, "gaps": gaps }))
}

/// What the archive's names say of an account, the oldest first.
async fn points_of(bucket: &Bucket, did: &Did, row: &AccountRow) -> Result<Vec<Point>, String> {
    let folder = DidFolder::try_from(did).map_err(|error| error.to_string())?;
    let prefix = SnapshotName::prefix(&folder);
    let (mut snapshots, mut deltas) = (Vec::new(), Vec::new());
    let (mut after, mut seen) = (None::<String>, 0);
    loop {
        let page = bucket
            .list(&prefix, after.as_deref())
            .await
            .map_err(|error| error.to_string())?;
        seen += page.objects.len();
        for object in page.objects {
            match object.name.parse() {
                Ok(ObjectName::Snapshot(name)) => snapshots.push((name.rev, object.size)),
                Ok(ObjectName::Delta(name)) => deltas.push((name.from(), name.to())),
                _ => {}
            }
        }
        match page.next {
            Some(_) if seen >= OBJECTS_MAX => {
                return Err("it has too many objects; see `firekeep history`".to_owned());
            }
            Some(next) => after = Some(next),
            None => break,
        }
    }
    // What the log has shipped since the newest snapshot is there too, moment by moment.
    let shipped = row.shipped.filter(|_| row.unlogged.is_none());
    Ok(lay_out(snapshots, deltas, shipped))
}

/// Snapshots and what leads from one to the next.
fn lay_out(mut snapshots: Vec<(Rev, u64)>, mut deltas: Vec<(Rev, Rev)>, shipped: Option<Rev>) -> Vec<Point> {
    snapshots.sort_unstable();
    // Of one that was written again the last counts.
    snapshots.dedup_by_key(|(rev, _)| *rev);
    deltas.sort_unstable();
    let mut points = Vec::new();
    for (index, (rev, bytes)) in snapshots.iter().enumerate() {
        points.push(Point::Snapshot(*rev, *bytes));
        let mut reached = *rev;
        for (from, to) in &deltas {
            if *from <= reached && *to > reached {
                reached = *to;
            }
        }
        match snapshots.get(index + 1) {
            Some((next, _)) => {
                let every = reached.min(*next);
                if every > *rev {
                    points.push(Point::Every(*rev, every));
                }
                if every < *next {
                    points.push(Point::Gap(every, *next));
                }
            }
            None => {
                let every = shipped.unwrap_or(reached).max(reached);
                if every > *rev {
                    points.push(Point::Every(*rev, every));
                }
            }
        }
    }
    points
}

impl Point {
    const fn span(&self) -> (Rev, Rev) {
        match self {
            Self::Snapshot(rev, _) => (*rev, *rev),
            Self::Every(from, to) | Self::Gap(from, to) => (*from, *to),
        }
    }

    fn json(&self) -> Value {
        let (from, to) = self.span();
        let (kind, bytes) = match self {
            Self::Snapshot(_, bytes) => ("snapshot", Some(*bytes)),
            Self::Every(..) => ("every", None),
            Self::Gap(..) => ("gap", None),
        };
        json!({
            "kind": kind,
            "rev": to.to_string(),
            "bytes": bytes,
            "from": from.time().to_string(),
            "to": to.time().to_string(),
            "from_seconds": from.time().seconds_f64(),
            "to_seconds": to.time().seconds_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    fn rev(minute: u64) -> Rev {
        Rev::from_time(
            Timestamp::from_micros(1_900_000_000_000_000 + minute * 60_000_000),
            0,
        )
    }

    #[test]
    fn gaps_stand_where_nothing_leads_on() {
        use Point::{Every, Gap, Snapshot};
        let snapshots = vec![(rev(40), 4), (rev(10), 1), (rev(20), 2), (rev(30), 3)];
        let deltas = vec![
            (rev(10), rev(15)),
            (rev(15), rev(20)),
            (rev(20), rev(25)),
            (rev(31), rev(40)),
        ];
        assert_eq!(
            lay_out(snapshots, deltas, Some(rev(44))),
            [
                Snapshot(rev(10), 1),
                Every(rev(10), rev(20)),
                Snapshot(rev(20), 2),
                Every(rev(20), rev(25)),
                Gap(rev(25), rev(30)),
                Snapshot(rev(30), 3),
                Gap(rev(30), rev(40)),
                Snapshot(rev(40), 4),
                Every(rev(40), rev(44)),
            ]
        );
        assert_eq!(
            lay_out(vec![(rev(1), 1)], Vec::new(), None),
            [Snapshot(rev(1), 1)]
        );
        assert_eq!(lay_out(Vec::new(), vec![(rev(1), rev(2))], None), Vec::new());
    }
}
