//! What waits: parked frames, tasks, alarms.

use serde::{Deserialize, Serialize};

use super::codec;
use crate::types::{HostName, Rev, Timestamp};

/// Row of `parked`: a frame that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParkedFrame {
    /// Who sent it.
    #[serde(with = "codec::text")]
    pub host: HostName,
    /// The host's numbering that `seq` counts in.
    pub epoch: u64,
    /// The host's number for it.
    pub seq: u64,
    /// When it reached us.
    #[serde(with = "codec::value")]
    pub received: Timestamp,
    /// The rev that it claims.
    #[serde(with = "codec::value")]
    pub rev: Rev,
    /// The whole frame, header and body, byte for byte.
    #[serde(with = "serde_bytes")]
    pub frame: Vec<u8>,
}

/// Row of `tasks`: the key says what and when, this says how often it failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRow {
    /// Tries that failed.
    pub tries: u32,
    /// How the last one failed, for people.
    pub last_error: Option<String>,
}

/// Row of `alarms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlarmRow {
    /// Since when.
    #[serde(with = "codec::value")]
    pub since: Timestamp,
    /// What happened, for people.
    pub message: String,
    /// The generations that are kept because of it.
    pub pinned: Vec<u64>,
    /// Who said that it was seen, and when.
    pub acknowledged: Option<Acknowledged>,
}

/// Who acknowledged an alarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acknowledged {
    /// Who.
    pub by: String,
    /// When.
    #[serde(with = "codec::value")]
    pub at: Timestamp,
}
