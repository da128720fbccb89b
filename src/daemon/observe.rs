//! What the applier did, as metrics and log lines.
//!
//! DIDs stand in log lines, never in labels. What happens with every event is counted and not logged.

use std::sync::Arc;

use crate::metrics::Metrics;
use crate::metrics::labels::{
    AccountLabel, BlobLabel, EventKind, Label as _, ResyncResult, SkipReason, SyncLabel,
};
use crate::mirror::applier::{Note, Totals};

/// Counts and logs the notes of one durable group.
pub fn observe(metrics: &Arc<Metrics>, notes: &[Note], totals: &Totals) {
    for note in notes {
        observe_note(metrics, note);
    }
    let count = |map: &std::collections::BTreeMap<&'static str, u64>, name: &str| {
        i64::try_from(map.get(name).copied().unwrap_or(0)).unwrap_or(i64::MAX)
    };
    metrics
        .log_unshipped
        .set(i64::try_from(totals.unshipped).unwrap_or(i64::MAX));
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
}

fn observe_note(metrics: &Metrics, note: &Note) {
    match note {
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
        Note::Alarm { host, kind, message } => {
            metrics.host(host).alarms.of(*kind).inc();
            tracing::error!(%host, alarm = kind.as_str(), "{message}");
        }
        Note::Listed { host } => tracing::debug!(%host, "listing finished"),
        Note::Gap { host } => {
            tracing::warn!(%host, "events of this host were lost; every account is compared")
        }
    }
}
