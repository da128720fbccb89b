//! Every limit of the listeners, with its default.

use std::time::Duration;

/// Limits of serving. The defaults suit a daemon beside a PDS on a machine with 1 GB.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// Open connections of a listener; the next ones are told to come back.
    pub connections_max: usize,
    /// Time for a whole request head; an idle kept-alive connection is closed after the same time.
    pub header_timeout: Duration,
    /// Bytes of a request head.
    pub header_bytes_max: usize,
    /// Header fields of a request.
    pub header_count_max: usize,
    /// Bytes of a request's path and query.
    pub uri_bytes_max: usize,
    /// Bytes a second that a reader must take on average while there are bytes for it...
    pub reader_bytes_per_second_min: u32,
    /// ...before it has used up this much time of standing still.
    pub reader_patience: Duration,
    /// Answers that read only a few rows, at once.
    pub lookups_max: usize,
    /// Exports of repositories at once. Each holds a read view and up to about 64 MiB for a million records.
    pub exports_max: usize,
    /// Blobs sent at once. Each holds up to 2 MiB.
    pub blob_streams_max: usize,
    /// How long a request waits for a place before it is told to come back.
    pub queue_timeout: Duration,
    /// How long an export or a blob may take in all: a read view that is held keeps deleted rows on disk.
    pub transfer_time_max: Duration,
    /// How long open answers may go on after the shutdown began.
    pub drain_timeout: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections_max: 256,
            header_timeout: Duration::from_secs(10),
            header_bytes_max: 16 * 1024,
            header_count_max: 64,
            uri_bytes_max: 4 * 1024,
            reader_bytes_per_second_min: 16 * 1024,
            reader_patience: Duration::from_secs(30),
            lookups_max: 16,
            exports_max: 4,
            blob_streams_max: 16,
            queue_timeout: Duration::from_secs(10),
            transfer_time_max: Duration::from_secs(30 * 60),
            drain_timeout: Duration::from_secs(10),
        }
    }
}
