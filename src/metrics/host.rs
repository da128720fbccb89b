//! The metrics of one host.

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::Make;
use super::labels::{
    AlarmKind, By, By2, EventKind, FetchResult, FrameReason, ReconnectReason, RejectReason, ResyncReason,
    ResyncResult, SeqStage, SkipReason,
};

/// The metrics of one host.
pub struct HostMetrics {
    /// Seconds between now and the time of the last applied event; 0 when caught up and connected.
    pub replication_lag: Gauge,
    /// How old the oldest of its changes is that is not in the archive; 0 without any.
    pub undurable_age: Gauge,
    /// 1 while the stream is open.
    pub connected: IntGauge,
    /// The last sequence number at each stage.
    pub last_seq: By<IntGauge, SeqStage>,
    /// The time that the last event claims.
    pub last_event: Gauge,
    /// Events read.
    pub events_received: By<IntCounter, EventKind>,
    /// Events applied.
    pub events_applied: By<IntCounter, EventKind>,
    /// Events passed over.
    pub events_skipped: By<IntCounter, SkipReason>,
    /// Events refused.
    pub events_rejected: By<IntCounter, RejectReason>,
    /// Events put aside until a key or a repository is there.
    pub events_parked: IntCounter,
    /// Events that are put aside now.
    pub parked: IntGauge,
    /// Records taken in that are not strict DAG-CBOR.
    pub records_noncanonical: IntCounter,
    /// Frames that could not be read.
    pub frames_rejected: By<IntCounter, FrameReason>,
    /// Times the stream was opened again.
    pub reconnects: By<IntCounter, ReconnectReason>,
    /// Times that its numbering had a gap, or started over.
    pub gaps: IntCounter,
    /// Whole repositories fetched.
    pub resyncs: By2<IntCounter, ResyncReason, ResyncResult>,
    /// Blobs fetched.
    pub blob_fetches: By<IntCounter, FetchResult>,
    /// When the last round of asking again for every blob ended.
    pub blob_sweep: Gauge,
    /// Alarms raised.
    pub alarms: By<IntCounter, AlarmKind>,
    /// Alarms that nobody has acknowledged.
    pub alarms_open: IntGauge,
}

/// The families that [`HostMetrics`] takes its series from.
pub(super) struct HostFamilies {
    replication_lag: GaugeVec,
    undurable_age: GaugeVec,
    gaps: IntCounterVec,
    alarms_open: IntGaugeVec,
    connected: IntGaugeVec,
    last_seq: IntGaugeVec,
    last_event: GaugeVec,
    events_received: IntCounterVec,
    events_applied: IntCounterVec,
    events_skipped: IntCounterVec,
    events_rejected: IntCounterVec,
    events_parked: IntCounterVec,
    parked: IntGaugeVec,
    records_noncanonical: IntCounterVec,
    frames_rejected: IntCounterVec,
    reconnects: IntCounterVec,
    resyncs: IntCounterVec,
    blob_fetches: IntCounterVec,
    blob_sweep: GaugeVec,
    alarms: IntCounterVec,
}

impl HostFamilies {
    pub(super) fn new(make: &Make<'_>) -> Self {
        let int_gauges = |name, help| make.int_gauges(name, help, &["host"]);
        let by = |name, help, label| make.counters(name, help, &["host", label]);
        Self {
            replication_lag: make.gauges(
                "replication_lag_seconds",
                "Now minus the time of the last applied event",
                &["host"],
            ),
            undurable_age: make.gauges(
                "undurable_age_seconds",
                "Age of the oldest change that is not in the archive",
                &["host"],
            ),
            gaps: make.counters(
                "sequence_gaps_total",
                "Times that events of a host were lost",
                &["host"],
            ),
            alarms_open: int_gauges("alarms_open", "Alarms that nobody has acknowledged"),
            connected: int_gauges("upstream_connected", "1 while the stream is open"),
            last_seq: make.int_gauges("last_seq", "Last sequence number at a stage", &["host", "stage"]),
            last_event: make.gauges(
                "last_event_timestamp_seconds",
                "The time that the last event claims",
                &["host"],
            ),
            events_received: by("events_received_total", "Events read", "kind"),
            events_applied: by("events_applied_total", "Events applied", "kind"),
            events_skipped: by("events_skipped_total", "Events passed over", "reason"),
            events_rejected: by("events_rejected_total", "Events refused", "reason"),
            events_parked: make.counters("events_parked_total", "Events put aside", &["host"]),
            parked: int_gauges("parked_events", "Events that are put aside now"),
            records_noncanonical: make.counters(
                "records_noncanonical_total",
                "Records taken in that are not strict DAG-CBOR",
                &["host"],
            ),
            frames_rejected: by("frames_rejected_total", "Frames that could not be read", "reason"),
            reconnects: by("reconnects_total", "Times the stream was opened again", "reason"),
            resyncs: make.counters(
                "resyncs_total",
                "Repositories fetched",
                &["host", "reason", "result"],
            ),
            blob_fetches: by("blob_fetches_total", "Blobs fetched", "result"),
            blob_sweep: make.gauges(
                "blob_sweep_timestamp_seconds",
                "When every blob had been asked for again",
                &["host"],
            ),
            alarms: by("alarms_raised_total", "Alarms raised", "kind"),
        }
    }
}

impl HostMetrics {
    pub(super) fn new(families: &HostFamilies, host: &str) -> Self {
        let host = &[host];
        Self {
            replication_lag: families.replication_lag.with_label_values(host),
            undurable_age: families.undurable_age.with_label_values(host),
            gaps: families.gaps.with_label_values(host),
            alarms_open: families.alarms_open.with_label_values(host),
            connected: families.connected.with_label_values(host),
            last_seq: By::new(&families.last_seq, host),
            last_event: families.last_event.with_label_values(host),
            events_received: By::new(&families.events_received, host),
            events_applied: By::new(&families.events_applied, host),
            events_skipped: By::new(&families.events_skipped, host),
            events_rejected: By::new(&families.events_rejected, host),
            events_parked: families.events_parked.with_label_values(host),
            parked: families.parked.with_label_values(host),
            records_noncanonical: families.records_noncanonical.with_label_values(host),
            frames_rejected: By::new(&families.frames_rejected, host),
            reconnects: By::new(&families.reconnects, host),
            resyncs: By2::new(&families.resyncs, host),
            blob_fetches: By::new(&families.blob_fetches, host),
            blob_sweep: families.blob_sweep.with_label_values(host),
            alarms: By::new(&families.alarms, host),
        }
    }
}
