//! Every metric, in one struct, declared once.
//!
//! Names begin with `firekeep_` (`process_` for the process's own). Series exist from the start, at zero;
//! labels come from closed sets ([`labels`]) and from the configured hosts, never from a DID, a path or
//! anything a caller sent. Times are gauges in Unix seconds: ages belong in the query.
//!
//! Rates and queues are counted where they happen; what is a state of the mirror (accounts, blobs, sizes) is
//! set by whoever counts it, from time to time.

pub mod labels;
mod by;
mod host;
mod process;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Counter, Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

pub use host::HostMetrics;

use crate::types::HostName;
use host::HostFamilies;
use labels::{
    AccountLabel, BlobLabel, By, By2, CatchUpResult, CloseReason, Direction, Endpoint, ExportResult,
    HttpMethod, Label, Outcome, ProofKind, ProtectionLabel, RepoPart, StoreOp, SyncLabel, TaskLabel,
    UnprotectedLabel,
};

/// The media type of the exposition.
pub const EXPOSITION_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How many hosts get series of their own; the rest share `host="_other"`.
pub const METRIC_HOSTS_MAX: usize = 3000;

const LAST_LOOK: &str = "last_look_timestamp_seconds";
const LAST_SNAPSHOT: &str = "last_successful_snapshot_timestamp_seconds";
const LAST_SCRUB: &str = "last_successful_scrub_timestamp_seconds";
const LAST_MIRROR_SCRUB: &str = "last_mirror_scrub_timestamp_seconds";
const LAST_DRILL: &str = "last_successful_drill_timestamp_seconds";
const LAST_FAILED_DRILL: &str = "last_failed_drill_timestamp_seconds";
const CONNECTIONS_CLOSED: &str = "http_connections_closed_total";

/// Upper bounds of the buckets for requests, in seconds: from one read of the mirror to a long download.
const REQUEST_SECONDS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];
/// Upper bounds of the buckets for applying an event, in seconds.
const APPLY_SECONDS: &[f64] = &[0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 10.0];
/// Upper bounds of the buckets for shipping, in seconds.
const SHIP_SECONDS: &[f64] = &[0.5, 1.0, 1.5, 2.0, 5.0, 30.0, 120.0, 600.0, 3600.0];
/// Upper bounds of the buckets for snapshots, in seconds.
const SNAPSHOT_SECONDS: &[f64] = &[0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0];

/// All metrics of a process. Shared as an `Arc`; every field may be written from any thread.
pub struct Metrics {
    registry: Registry,
    host_families: HostFamilies,
    hosts: Mutex<BTreeMap<HostName, Arc<HostMetrics>>>,
    process: ProcessMetrics,
    http_requests: IntCounterVec,

    /// 1 while everything is protected.
    pub protected: IntGauge,
    /// 1 for where the backup stands.
    pub protection: By<IntGauge, ProtectionLabel>,
    /// 1 for each reason why it is not protected.
    pub unprotected: By<IntGauge, UnprotectedLabel>,
    /// 1 while a part of the daemon runs, and does not stand still.
    pub task_up: By<IntGauge, TaskLabel>,
    /// When the daemon last looked at itself.
    pub last_look: Gauge,
    /// Alarms of no host that nobody has acknowledged.
    pub own_alarms_open: IntGauge,
    /// Heartbeats sent.
    pub heartbeats: By<IntCounter, Outcome>,
    /// Alarms told to webhooks.
    pub webhooks: By<IntCounter, Outcome>,
    /// Times that a proof was done.
    pub verify_runs: By2<IntCounter, ProofKind, Outcome>,
    /// What they found that is not as it must be.
    pub verify_failures: By<IntCounter, ProofKind>,
    /// Bytes of blobs that are held, here or in the archive.
    pub blob_bytes: IntGauge,
    /// Bytes of records that are held.
    pub record_bytes: IntGauge,
    /// An account is snapshotted at most this often.
    pub snapshot_interval: Gauge,
    /// Accounts of which no snapshot stands in the archive.
    pub accounts_unsnapshotted: IntGauge,
    /// Accounts by their status upstream.
    pub accounts: By<IntGauge, AccountLabel>,
    /// Accounts by how well they are mirrored.
    pub account_sync: By<IntGauge, SyncLabel>,
    /// Blobs by where their bytes are.
    pub blobs: By<IntGauge, BlobLabel>,
    /// Blobs that are held, and that their hosts give no longer.
    pub blobs_withheld: IntGauge,
    /// Look-ups of DID documents that went to the network.
    pub identity_fetches: By<IntCounter, Outcome>,
    /// Fetches of only what is newer than what is held.
    pub catch_ups: By<IntCounter, CatchUpResult>,
    /// Bytes of repositories that hosts sent.
    pub repo_bytes: By<IntCounter, RepoPart>,
    /// Snapshots of accounts that were tried.
    pub snapshots: By<IntCounter, Outcome>,
    /// How long a snapshot took, proof and upload included.
    pub snapshot_duration: Histogram,
    /// When the last snapshot was stored.
    pub last_snapshot: Gauge,
    /// Times that retention was applied.
    pub prunes: By<IntCounter, Outcome>,
    /// When it last was, in full.
    pub last_prune: Gauge,
    /// Objects that it removed.
    pub pruned_objects: IntCounter,
    /// Bytes of those.
    pub pruned_bytes: IntCounter,
    /// Accounts with erasures that are not done, or not looked for again.
    pub erasures_open: IntGauge,
    /// When the archive was last read to its end and found sound.
    pub last_scrub: Gauge,
    /// When every copy in the mirror was last proven.
    pub last_mirror_scrub: Gauge,
    /// What the newest reading of the archive found that is damaged.
    pub scrub_findings: IntGauge,
    /// Drills, by how they ended.
    pub drills: By<IntCounter, Outcome>,
    /// When a drill last went well.
    pub last_drill: Gauge,
    /// When a drill last failed.
    pub last_failed_drill: Gauge,
    /// Segments of the log that were tried.
    pub segments: By<IntCounter, Outcome>,
    /// Entries of the log that are not in the archive yet.
    pub log_unshipped: IntGauge,
    /// Bytes of what waits to be shipped.
    pub log_unshipped_bytes: IntGauge,
    /// Accounts that the log does not tell.
    pub log_gaps: IntGauge,
    /// How old the oldest of them is, in seconds; 0 without any.
    pub log_oldest: Gauge,
    /// From the arrival of an event to its being durable in the mirror.
    pub apply_duration: Histogram,
    /// From the arrival of a change to its segment in the archive.
    pub log_age: Histogram,
    /// 1 while the archive answers and is the mirror's.
    pub archive_up: IntGauge,
    /// Requests to the archive's store.
    pub store_requests: By2<IntCounter, StoreOp, Outcome>,
    /// How long they took.
    pub store_duration: By<Histogram, StoreOp>,
    /// Bytes to and from the archive's store.
    pub store_bytes: By<IntCounter, Direction>,
    /// Free bytes on the data directory's file system.
    pub data_dir_free: IntGauge,
    /// Bytes that the mirror takes on disk.
    pub mirror_bytes: IntGauge,
    /// How long a request took, from its head to the last byte of the answer.
    pub http_duration: By<Histogram, Endpoint>,
    /// Bytes of answers' bodies.
    pub http_response_bytes: By<IntCounter, Endpoint>,
    /// Open connections.
    pub http_connections: IntGauge,
    /// Connections that the listener closed or refused.
    pub http_connections_closed: By<IntCounter, CloseReason>,
    /// Exports of repositories by how they ended.
    pub exports: By<IntCounter, ExportResult>,
    /// Blobs that could not be served though they should be: bytes absent or not those of the CID.
    pub blob_serve_failures: IntCounter,
}

struct ProcessMetrics {
    cpu_seconds: Counter,
    start_time: Gauge,
    resident: IntGauge,
    virtual_memory: IntGauge,
    threads: IntGauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero, of a build of this version.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "one metric after the other")]
    pub fn new() -> Self {
        let registry = Registry::new();
        let make = Make(&registry);
        make.build_info();
        Self {
            host_families: HostFamilies::new(&make),
            hosts: Mutex::default(),
            process: ProcessMetrics::new(&make),
            http_requests: make.http_requests(),
            protected: make.int_gauge("protected", "1 while everything is protected"),
            protection: make.gauges_by("protection", "1 for where the backup stands", "state"),
            unprotected: make.gauges_by("unprotected", "1 for each reason not to be protected", "reason"),
            task_up: make.gauges_by("task_up", "1 while it runs and does not stand still", "task"),
            last_look: make.gauge(LAST_LOOK, "When the daemon last looked at itself"),
            own_alarms_open: make.int_gauge("own_alarms_open", "Open alarms that are of no host's doing"),
            heartbeats: make.counters_by("heartbeats_total", "Heartbeats sent", "result"),
            webhooks: make.counters_by("webhooks_total", "Alarms told to a webhook", "result"),
            verify_runs: By2::new(
                &make.counters("verify_runs_total", "Proofs of the archive", &["kind", "result"]),
                &[],
            ),
            verify_failures: make.counters_by(
                "verify_failures_total",
                "What proofs found that is not as it must be",
                "kind",
            ),
            blob_bytes: make.int_gauge("blob_bytes", "Bytes of blobs held, here or in the archive"),
            record_bytes: make.int_gauge("record_bytes", "Bytes of records held"),
            snapshot_interval: make.gauge(
                "snapshot_interval_seconds",
                "An account is snapshotted at most this often",
            ),
            accounts_unsnapshotted: make.int_gauge(
                "accounts_unsnapshotted",
                "Accounts of which no snapshot stands in the archive",
            ),
            accounts: make.gauges_by("accounts", "Accounts by status upstream", "status"),
            account_sync: make.gauges_by("account_sync", "Accounts by how well they are mirrored", "state"),
            blobs: make.gauges_by("blobs", "Blobs by where their bytes are", "state"),
            blobs_withheld: make.int_gauge("blobs_withheld", "Blobs held that their hosts give no longer"),
            identity_fetches: make.counters_by("identity_fetches_total", "DID documents asked for", "result"),
            catch_ups: make.counters_by("catch_ups_total", "Fetches of what is newer than ours", "result"),
            repo_bytes: make.counters_by(
                "repo_received_bytes_total",
                "Bytes of repositories received",
                "part",
            ),
            snapshots: make.counters_by("snapshots_total", "Snapshots tried", "result"),
            snapshot_duration: make.histogram(
                "snapshot_duration_seconds",
                "Proof and upload",
                SNAPSHOT_SECONDS,
            ),
            last_snapshot: make.gauge(LAST_SNAPSHOT, "When the last snapshot was stored"),
            prunes: make.counters_by("prunes_total", "Times that retention was applied", "result"),
            last_prune: make.gauge("last_prune_timestamp_seconds", "When it last was, in full"),
            pruned_objects: make.counter("pruned_objects_total", "Objects that it removed"),
            pruned_bytes: make.counter("pruned_bytes_total", "Bytes of those"),
            erasures_open: make.int_gauge("erasures_open", "Accounts with erasures to look for again"),
            last_scrub: make.gauge(LAST_SCRUB, "When the archive was last found sound to its end"),
            last_mirror_scrub: make.gauge(LAST_MIRROR_SCRUB, "When all of the mirror was last proven"),
            scrub_findings: make.int_gauge(
                "scrub_findings",
                "Damage that the last scrub found in the archive",
            ),
            drills: make.counters_by("drills_total", "Trial restores", "result"),
            last_drill: make.gauge(LAST_DRILL, "When a trial restore last went well"),
            last_failed_drill: make.gauge(LAST_FAILED_DRILL, "When a trial restore last failed"),
            segments: make.counters_by("segments_total", "Segments of the log tried", "result"),
            log_unshipped: make.int_gauge("log_unshipped_entries", "Changes not off the machine yet"),
            log_unshipped_bytes: make.int_gauge("log_unshipped_bytes", "Bytes of these, on disk"),
            log_gaps: make.int_gauge(
                "log_gap_accounts",
                "Accounts with changes that only their next snapshot tells, for too much waited",
            ),
            log_oldest: make.gauge("log_oldest_unshipped_seconds", "Age of the oldest of them"),
            apply_duration: make.histogram(
                "apply_duration_seconds",
                "From a commit's arrival to its being durable here",
                APPLY_SECONDS,
            ),
            log_age: make.histogram(
                "log_ship_duration_seconds",
                "From the arrival of a segment's oldest change to the archive",
                SHIP_SECONDS,
            ),
            archive_up: make.int_gauge("archive_up", "1 while the archive answers and is the mirror's"),
            store_requests: make.store_requests(),
            store_duration: make.requests_by("object_store_request_duration_seconds", "To the archive", "op"),
            store_bytes: make.counters_by("object_store_bytes_total", "To and from the archive", "direction"),
            data_dir_free: make.int_gauge("data_dir_free_bytes", "Free bytes where the data directory is"),
            mirror_bytes: make.int_gauge("mirror_bytes", "Bytes of the mirror on disk"),
            http_duration: make.requests_by(
                "http_request_duration_seconds",
                "From head to end of answer",
                "nsid",
            ),
            http_response_bytes: make.counters_by("http_response_bytes_total", "Bytes of answers", "nsid"),
            http_connections: make.int_gauge("http_connections", "Open connections"),
            http_connections_closed: make.counters_by(
                CONNECTIONS_CLOSED,
                "Closed or refused by us",
                "reason",
            ),
            exports: make.counters_by("exports_total", "Exports of repositories", "result"),
            blob_serve_failures: make.counter("blob_serve_failures_total", "Blobs held but not servable"),
            registry,
        }
    }

    /// The metrics of a host, made at zero when it is asked for first. Past [`METRIC_HOSTS_MAX`] hosts, the
    /// shared ones.
    pub fn host(&self, host: &HostName) -> Arc<HostMetrics> {
        // A panic elsewhere cannot leave the map half-written: one insertion is its only change.
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = hosts.get(host) {
            return Arc::clone(known);
        }
        if hosts.len() >= METRIC_HOSTS_MAX {
            return Arc::new(HostMetrics::new(&self.host_families, "_other"));
        }
        let made = Arc::new(HostMetrics::new(&self.host_families, host.as_str()));
        hosts.insert(host.clone(), Arc::clone(&made));
        made
    }

    /// Counts one answer. `code` is a status that this program chose, so the set of codes is closed.
    pub fn count_http_request(&self, method: HttpMethod, endpoint: Endpoint, code: u16) {
        self.http_requests
            .with_label_values(&[method.text(), endpoint.text(), &code.to_string()])
            .inc();
    }

    /// The exposition, in the text format of [`EXPOSITION_TYPE`], with a fresh reading of the process.
    #[must_use]
    pub fn exposition(&self) -> Vec<u8> {
        self.process.set(process::read());
        let mut out = Vec::with_capacity(64 * 1024);
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut out)
            .expect("every family has a name, a help text and a series, and a Vec takes every write");
        out
    }
}

impl ProcessMetrics {
    fn new(make: &Make<'_>) -> Self {
        let int_gauge = |name: &str, help: &str| make.registered(IntGauge::with_opts(Opts::new(name, help)));
        let cpu_seconds = Opts::new("process_cpu_seconds_total", "CPU time spent");
        let start_time = Opts::new("process_start_time_seconds", "When the process began");
        Self {
            cpu_seconds: make.registered(Counter::with_opts(cpu_seconds)),
            start_time: make.registered(Gauge::with_opts(start_time)),
            resident: int_gauge("process_resident_memory_bytes", "Memory in RAM"),
            virtual_memory: int_gauge("process_virtual_memory_bytes", "Memory mapped"),
            threads: int_gauge("process_threads", "Threads"),
            open_fds: int_gauge("process_open_fds", "Open file descriptors"),
            max_fds: int_gauge("process_max_fds", "File descriptors allowed"),
        }
    }

    fn set(&self, reading: process::ProcessReading) {
        let int = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        // A counter only rises; two scrapes at once may read out of order.
        self.cpu_seconds
            .inc_by((reading.cpu_seconds - self.cpu_seconds.get()).max(0.0));
        self.start_time.set(reading.start_time_seconds);
        self.resident.set(int(reading.resident_bytes));
        self.virtual_memory.set(int(reading.virtual_bytes));
        self.threads.set(int(reading.threads));
        self.open_fds.set(int(reading.open_fds));
        self.max_fds.set(int(reading.max_fds));
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("firekeep")
}

/// Makes metrics and registers them.
struct Make<'r>(&'r Registry);

impl Make<'_> {
    /// Registers a metric. Names, help texts and labels are literals of this file, so neither making nor
    /// registering can fail outside a test of this file.
    fn registered<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let metric = made.expect("name, help and labels are valid literals");
        self.0
            .register(Box::new(metric.clone()))
            .expect("each name is declared once");
        metric
    }

    fn build_info(&self) {
        let version = env!("CARGO_PKG_VERSION");
        let commit = option_env!("FIREKEEP_COMMIT").unwrap_or("unknown");
        self.int_gauges("build_info", "The build that runs", &["version", "commit"])
            .with_label_values(&[version, commit])
            .set(1);
    }

    fn http_requests(&self) -> IntCounterVec {
        let family = self.counters(
            "http_requests_total",
            "Answers to callers",
            &["method", "nsid", "code"],
        );
        for endpoint in Endpoint::ALL {
            family.with_label_values(&[HttpMethod::Get.text(), endpoint.text(), "200"]);
        }
        family
    }

    fn store_requests(&self) -> By2<IntCounter, StoreOp, Outcome> {
        let name = "object_store_requests_total";
        By2::new(
            &self.counters(name, "Requests to the archive", &["op", "result"]),
            &[],
        )
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.registered(IntCounter::with_opts(opts(name, help)))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.registered(IntCounterVec::new(opts(name, help), labels))
    }

    fn counters_by<L: Label>(&self, name: &str, help: &str, label: &str) -> By<IntCounter, L> {
        By::new(&self.counters(name, help, &[label]), &[])
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.registered(Gauge::with_opts(opts(name, help)))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.registered(GaugeVec::new(opts(name, help), labels))
    }

    fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.registered(IntGauge::with_opts(opts(name, help)))
    }

    fn int_gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.registered(IntGaugeVec::new(opts(name, help), labels))
    }

    fn gauges_by<L: Label>(&self, name: &str, help: &str, label: &str) -> By<IntGauge, L> {
        By::new(&self.int_gauges(name, help, &[label]), &[])
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.registered(Histogram::with_opts(opts))
    }

    /// Durations of requests.
    fn requests_by<L: Label>(&self, name: &str, help: &str, label: &str) -> By<Histogram, L> {
        let opts = HistogramOpts::from(opts(name, help)).buckets(REQUEST_SECONDS.to_vec());
        By::new(&self.registered(HistogramVec::new(opts, &[label])), &[])
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
#[path = "metrics/monitoring_tests.rs"]
mod monitoring_tests;
