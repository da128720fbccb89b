//! What the applier did, as metrics and log lines.
//!
//! DIDs stand in log lines, never in labels. What happens with every event is counted and not logged.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::metrics::Metrics;
use crate::metrics::labels::{
    AccountLabel, BlobLabel, EventKind, Label as _, ResyncResult, SkipReason, SyncLabel,
};
use crate::mirror::applier::{Note, Totals};
use crate::mirror::rows::BlobFailure;
use crate::types::{HostName, Timestamp};

/// Lines about blobs that cannot be had, for each host and reason; then only every doubling of their number.
const BLOB_LINES_MAX: u64 = 20;

/// Counts and logs what the applier did.
pub struct Observer {
    metrics: Arc<Metrics>,
    /// Blobs that could not be had since the start.
    missing: BTreeMap<(HostName, BlobFailure), u64>,
}

impl Observer {
    /// One that has seen nothing yet.
    #[must_use]
    pub const fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            missing: BTreeMap::new(),
        }
    }

    /// Counts and logs the notes of one group, durable now.
    pub fn observe(&mut self, notes: &[Note], totals: &Totals, now: Timestamp) {
        for note in notes {
            if let Note::Applied { received, .. } = note {
                let took = now.since(*received);
                self.metrics.apply_duration.observe(took.as_secs_f64());
            }
            if let Note::BlobMissing {
                host,
                did,
                cid,
                failure,
            } = note
            {
                let so_far = self.count_missing(host, *failure);
                if is_worth_a_line(so_far) {
                    let why = failure.sentence();
                    tracing::info!(%host, %did, %cid, so_far, "a blob cannot be had: {why}; it is tried again");
                }
            }
            observe_note(&self.metrics, note);
        }
        show_totals(&self.metrics, totals);
    }

    fn count_missing(&mut self, host: &HostName, failure: BlobFailure) -> u64 {
        let count = self.missing.entry((host.clone(), failure)).or_default();
        *count += 1;
        *count
    }
}

/// Whether the so-manieth blob of a host that fails for one reason has a line of its own.
const fn is_worth_a_line(count: u64) -> bool {
    count <= BLOB_LINES_MAX || count.is_power_of_two()
}

fn show_totals(metrics: &Metrics, totals: &Totals) {
    let count = |map: &BTreeMap<&'static str, u64>, name: &str| {
        i64::try_from(map.get(name).copied().unwrap_or(0)).unwrap_or(i64::MAX)
    };
    metrics
        .log_unshipped
        .set(i64::try_from(totals.unshipped).unwrap_or(i64::MAX));
    metrics
        .log_unshipped_bytes
        .set(i64::try_from(totals.unshipped_bytes).unwrap_or(i64::MAX));
    metrics
        .log_gaps
        .set(i64::try_from(totals.unlogged).unwrap_or(i64::MAX));
    for label in AccountLabel::ALL {
        metrics
            .accounts
            .of(*label)
            .set(count(&totals.accounts, label.text()));
    }
    for label in SyncLabel::ALL {
        metrics
            .account_sync
            .of(*label)
            .set(count(&totals.sync, label.text()));
    }
    for label in BlobLabel::ALL {
        metrics.blobs.of(*label).set(count(&totals.blobs, label.text()));
    }
    let int = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    metrics.blob_bytes.set(int(totals.blob_bytes));
    metrics.record_bytes.set(int(totals.record_bytes));
    metrics.accounts_unsnapshotted.set(int(totals.without_snapshot));
    metrics
        .blobs_withheld
        .set(i64::try_from(totals.blobs_withheld).unwrap_or(i64::MAX));
}

#[expect(clippy::too_many_lines, reason = "one arm a note")]
fn observe_note(metrics: &Metrics, note: &Note) {
    match note {
        // Counted where it is fetched, and told above.
        Note::BlobMissing { .. } => {}
        Note::Applied { host, .. } => metrics.host(host).events_applied.of(EventKind::Commit).inc(),
        Note::Replayed { host } => metrics.host(host).events_skipped.of(SkipReason::Replayed).inc(),
        Note::Inactive { host } => metrics.host(host).events_skipped.of(SkipReason::Inactive).inc(),
        Note::Parked { host, .. } => metrics.host(host).events_parked.inc(),
        Note::ParkedDropped { did } => {
            tracing::warn!(%did, "too many events wait for this account; its repository is fetched instead");
        }
        Note::Noncanonical { host, did, records } => {
            metrics.host(host).records_noncanonical.inc_by(*records);
            tracing::debug!(%host, %did, records, "records that are not strict DAG-CBOR were kept as they are");
        }
        Note::Rejected { host, did, reason } => {
            metrics.host(host).events_rejected.of(*reason).inc();
            let did = did.as_ref().map(tracing::field::display);
            tracing::info!(%host, did, reason = reason.label(), "an event was not accepted");
        }
        Note::Desynchronized { did, reason } => {
            tracing::info!(%did, reason = reason.as_str(), "this account has to be fetched");
        }
        Note::Swapped {
            host,
            did,
            reason,
            rev,
            records,
        } => {
            metrics.host(host).resyncs.of(*reason, ResyncResult::Loaded).inc();
            tracing::debug!(%did, %rev, records, "repository fetched and proven");
        }
        Note::Quarantined {
            host,
            did,
            reason,
            rev,
            fault,
        } => {
            metrics
                .host(host)
                .resyncs
                .of(*reason, ResyncResult::Quarantined)
                .inc();
            tracing::warn!(%host, %did, %rev, fault, "the repository does not rebuild to its signed root; its CAR is kept as it came");
        }
        Note::SkippedInQuarantine { host } => metrics
            .host(host)
            .events_skipped
            .of(SkipReason::Quarantined)
            .inc(),
        Note::Unchanged { host, did, reason } => {
            metrics
                .host(host)
                .resyncs
                .of(*reason, ResyncResult::Unchanged)
                .inc();
            tracing::debug!(%did, "repository is as we hold it");
        }
        Note::FetchFailed {
            host,
            did,
            reason,
            failure,
        } => {
            let result = match failure.label() {
                "unproven" => ResyncResult::Refused,
                "inactive" | "not_found" | "not_this_host" => ResyncResult::Gone,
                _ => ResyncResult::Failed,
            };
            metrics.host(host).resyncs.of(*reason, result).inc();
            tracing::info!(%did, %failure, "repository not fetched; what we hold stays, and it is tried again");
        }
        Note::Status { did, status } => tracing::info!(%did, status, "the account's standing changed"),
        Note::HostBehind { did, ours, theirs } => tracing::warn!(
            %did, %ours, %theirs,
            "the host's copy of this account is older than ours: ours stays"
        ),
        Note::Moved {
            did,
            from,
            to,
            followed,
        } => tracing::info!(
            %did, %from, %to, followed,
            "the account moved; what is not followed any more is kept as it was"
        ),
        Note::BlobWithheld {
            host,
            did,
            cid,
            withheld: true,
        } => tracing::info!(
            %host, %did, %cid,
            "the host gives this blob no longer; it is kept, and not served until the host gives it again"
        ),
        Note::BlobWithheld { host, did, cid, .. } => {
            tracing::info!(%host, %did, %cid, "the host gives this blob again, and so do we");
        }
        Note::Alarm { host, kind, message } => {
            metrics.host(host).alarms.of(*kind).inc();
            tracing::error!(%host, alarm = kind.as_str(), "{message}");
        }
        Note::Listed { host } => tracing::debug!(%host, "listing finished"),
        Note::Gap { host } => {
            metrics.host(host).gaps.inc();
            tracing::warn!(%host, "events of this host were lost; every account is compared");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_that_cannot_be_had_do_not_fill_the_log() {
        let lines = (1..=1_000_000).filter(|count| is_worth_a_line(*count)).count();
        assert_eq!(lines, 20 + 15, "the first twenty, then 32, 64, … 524,288");
        let mut observer = Observer::new(Arc::new(Metrics::new()));
        let hosts: [HostName; 2] = ["one.test", "two.test"].map(|host| host.parse().expect("valid"));
        let mut count = |host: usize, failure| observer.count_missing(&hosts[host], failure);
        assert_eq!(count(0, BlobFailure::NotFound), 1);
        assert_eq!(count(0, BlobFailure::NotFound), 2);
        assert_eq!(count(0, BlobFailure::Refused), 1, "each reason by itself");
        assert_eq!(count(1, BlobFailure::NotFound), 1, "each host by itself");
    }
}
