//! When to connect to a host again, and whether its numbers still rise: the state of one subscription.
//!
//! Pure: the shell tells it what happened and what time it is, and lends it random bits. Waiting grows
//! from a second to five minutes with full jitter and shrinks again only after progress (an event that is
//! new to us, or a minute of being connected), never for the connection alone; a host that accepts and
//! hangs up at once is not to be hammered. It never gives up: nobody else would call us back.
//!
//! Sources: <https://atproto.com/specs/event-stream>, <https://atproto.com/specs/sync>.

use std::time::Duration;

use crate::types::Timestamp;

use super::frame::FrameError;

/// Ceiling of the wait after the first failure; it doubles with each further one.
pub const WAIT_FIRST: Duration = Duration::from_secs(1);
/// Highest ceiling of the wait.
pub const WAIT_MAX: Duration = Duration::from_secs(300);
/// Added to each jittered wait, so that none is nothing.
pub const WAIT_FLOOR: Duration = Duration::from_millis(250);
/// Wait after a host announced its own restart (close code 1001) on a connection that worked.
pub const WAIT_RESTART: Duration = Duration::from_secs(1);
/// Wait after 501 Not Implemented: the host has no stream; look again after an update perhaps.
pub const WAIT_NOT_IMPLEMENTED: Duration = Duration::from_secs(6 * 3600);
/// Longest `Retry-After` that is obeyed.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// A connection that held this long counts as progress: on a quiet host days may pass without an event.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Failures in a row after which the same reason is logged once more.
const FAILURES_SAID_AGAIN: u32 = 5;

/// Why there is no connection: it was never made, or it ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Our own rules forbid the address.
    #[error("{0}")]
    Refused(String),
    /// Name lookup or TCP failed.
    #[error("host cannot be reached: {0}")]
    Unreachable(String),
    /// TLS failed; the certificate, most often.
    #[error("no secure connection: {0}")]
    Tls(String),
    /// The host answered, but not with a stream.
    #[error("host answered HTTP {status} instead of opening the stream")]
    HttpStatus {
        /// The status.
        status: u16,
        /// How long the host asks us to wait.
        retry_after: Option<Duration>,
    },
    /// The answer was no proper WebSocket handshake.
    #[error("WebSocket handshake failed: {0}")]
    Handshake(String),
    /// The host did not finish the handshake in time.
    #[error("host did not open the stream in time")]
    HandshakeTimeout,
    /// The host said goodbye.
    #[error("host closed the stream (code {}{})", code.map_or("none".to_owned(), |c| c.to_string()), after_colon(reason))]
    Closed {
        /// The close code, if it gave one.
        code: Option<u16>,
        /// Its words; made printable and short.
        reason: String,
    },
    /// The connection broke without a goodbye.
    #[error("connection broke: {0}")]
    Broken(String),
    /// What came breaks the rules of WebSocket.
    #[error("host's bytes are no WebSocket: {0}")]
    Protocol(String),
    /// Neither a frame nor the answer to a ping for too long.
    #[error("nothing heard from the host, not even the answer to a ping")]
    Silent,
    /// A message over the frame limit.
    #[error("host sent a message over the limit of 5 MB")]
    FrameTooLong,
    /// A text message; every frame is binary.
    #[error("host sent a text message")]
    TextFrame,
    /// A message that is no frame.
    #[error("{0}")]
    BadFrame(FrameError),
    /// A sequence number that does not rise.
    #[error("{0}")]
    Seq(SeqFault),
    /// A connection begins with events that were applied before, and they did not come.
    #[error(
        "host did not repeat what it had sent before, up to sequence number {0}: asking for what follows it"
    )]
    NotRepeated(u64),
    /// An error frame.
    #[error("host ended the stream: {}{}", name, after_colon(message))]
    ErrorFrame {
        /// Such as `FutureCursor` or `ConsumerTooSlow`; made printable and short.
        name: String,
        /// Its words; made printable and short.
        message: String,
    },
}

fn after_colon(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}

impl Loss {
    /// Whether the host broke the rules of the stream. (A server of that kind was seen to leave events out as well.)
    #[must_use]
    pub const fn is_garbled(&self) -> bool {
        matches!(
            self,
            Self::Protocol(_) | Self::FrameTooLong | Self::TextFrame | Self::BadFrame(_) | Self::Seq(_)
        )
    }

    /// A word from a closed set: metric label, and what "the same reason again" means for the log.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused_address",
            Self::Unreachable(_) => "unreachable",
            Self::Tls(_) => "tls",
            Self::HttpStatus { status: 429, .. } => "rate_limited",
            Self::HttpStatus { .. } => "http_status",
            Self::Handshake(_) => "handshake",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Closed { code: Some(1001), .. } => "restart",
            Self::Closed { .. } => "closed",
            Self::Broken(_) => "broken",
            Self::Protocol(_) => "protocol",
            Self::Silent => "silent",
            Self::FrameTooLong => "frame_too_long",
            Self::TextFrame => "text_frame",
            Self::BadFrame(_) => "bad_frame",
            Self::Seq(_) => "seq_fault",
            Self::NotRepeated(_) => "not_repeated",
            Self::ErrorFrame { name, .. } if name == "FutureCursor" => "future_cursor",
            Self::ErrorFrame { name, .. } if name == "ConsumerTooSlow" => "consumer_too_slow",
            Self::ErrorFrame { .. } => "error_frame",
        }
    }
}

/// A sequence number that went back or came twice on one connection, or lies before the cursor asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sequence number {got} came after {previous}: the host's numbering went back")]
pub struct SeqFault {
    /// The last one, or the cursor that we asked for.
    pub previous: u64,
    /// The one that came.
    pub got: u64,
}

/// Where a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Start {
    /// The number to ask for: a little before `applied`, so that what comes again shows whether the host's history
    /// is still the same.
    pub cursor: u64,
    /// The last number that is durably applied.
    pub applied: u64,
}

impl Start {
    /// The number to ask for. A host that did not repeat what it had sent may not have it any more: asked for what
    /// follows `applied` itself, it has to say so.
    #[must_use]
    pub const fn after(self, loss: Option<&Loss>) -> u64 {
        match loss {
            Some(Loss::NotRepeated(_)) => self.applied,
            _ => self.cursor,
        }
    }
}

/// How an event's number follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Higher than all on this connection.
    Next,
    /// The very cursor that we asked for: the specification lets a host begin with it. Already applied.
    Repeat,
}

/// The state of one subscription.
#[derive(Debug, Clone, Default)]
pub struct Session {
    /// Losses since the last progress.
    failures: u32,
    /// Set while connected.
    connected_at: Option<Timestamp>,
    /// The cursor asked for on this connection, until the first event replaces it.
    previous: Option<u64>,
    /// Whether `previous` is the cursor still.
    at_cursor: bool,
    /// The highest number ever seen by this session: only what is above it is progress.
    highest: u64,
    /// Whether this connection brought progress.
    progressed: bool,
}

impl Session {
    /// A session that has not dialled yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The shell dials now, asking for what follows this cursor (none: live events only).
    pub const fn dialing(&mut self, cursor: Option<u64>) {
        self.connected_at = None;
        self.previous = cursor;
        self.at_cursor = true;
        self.progressed = false;
    }

    /// The host opened the stream.
    pub const fn connected(&mut self, now: Timestamp) {
        self.connected_at = Some(now);
    }

    /// An event came.
    ///
    /// # Errors
    /// When its number does not follow: the connection has to be dropped and the event with it.
    pub const fn event(&mut self, seq: u64) -> Result<Order, SeqFault> {
        if let Some(previous) = self.previous {
            if self.at_cursor && seq == previous {
                self.at_cursor = false;
                return Ok(Order::Repeat);
            }
            if seq <= previous {
                return Err(SeqFault { previous, got: seq });
            }
        }
        self.previous = Some(seq);
        self.at_cursor = false;
        if seq > self.highest {
            self.highest = seq;
            self.progressed = true;
            self.failures = 0;
        }
        Ok(Order::Next)
    }

    /// Whether what was applied up to this number has still to come again on this connection.
    #[must_use]
    pub fn is_repeating(&self, applied: u64) -> bool {
        self.previous.is_some_and(|previous| previous < applied)
    }

    /// The connection ended, or could not be made. Answers when to dial again.
    ///
    /// `random` are 64 uniform bits.
    pub fn lost(&mut self, loss: &Loss, now: Timestamp, random: u64) -> Timestamp {
        let held = self
            .connected_at
            .take()
            .map_or(Duration::ZERO, |since| now.since(since));
        let worked = self.progressed || held >= STABLE_AFTER;
        if worked {
            self.failures = 0;
        }
        let jittered = WAIT_FLOOR + jitter(ceiling(self.failures), random);
        self.failures = self.failures.saturating_add(1);
        now.plus(match loss {
            Loss::Closed { code: Some(1001), .. } if worked => WAIT_RESTART,
            // The host is well, and is asked something else: that cannot happen twice in a row.
            Loss::NotRepeated(_) => WAIT_RESTART,
            // Its numbering starts over, and so do we: with cursor 0, which it can refuse only once.
            Loss::ErrorFrame { name, .. } if name == "FutureCursor" && self.previous > Some(0) => {
                WAIT_RESTART
            }
            Loss::HttpStatus { status: 501, .. } => WAIT_NOT_IMPLEMENTED + jittered,
            Loss::HttpStatus {
                retry_after: Some(asked),
                ..
            } => jittered.max(*asked.min(&RETRY_AFTER_MAX)),
            _ => jittered,
        })
    }

    /// How many times in a row it was lost without progress.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

/// What the log said last about a subscription, so that it says each thing once and not at each try.
#[derive(Debug, Clone, Default)]
pub struct Said {
    reason: Option<&'static str>,
    /// Whether the last thing said was that we are connected.
    connected: bool,
}

impl Said {
    /// Whether to say that the stream is open: unless that was the last thing said.
    pub const fn connected(&mut self) -> bool {
        let is_news = !self.connected;
        self.connected = true;
        is_news
    }

    /// Whether to say why it was lost: a new reason, a loss after progress, or one that persists. `failures` is
    /// [`Session::failures`] after the loss.
    pub fn lost(&mut self, reason: &'static str, failures: u32) -> bool {
        let is_news = self.reason != Some(reason) || failures == 1 || failures == FAILURES_SAID_AGAIN;
        self.reason = Some(reason);
        if is_news {
            self.connected = false;
        }
        is_news
    }
}

fn ceiling(failures: u32) -> Duration {
    2u32.checked_pow(failures)
        .and_then(|factor| WAIT_FIRST.checked_mul(factor))
        .map_or(WAIT_MAX, |wait| wait.min(WAIT_MAX))
}

/// A duration from zero to the ceiling, evenly.
fn jitter(ceiling: Duration, random: u64) -> Duration {
    let micros = u64::try_from(ceiling.as_micros()).expect("the ceiling is minutes");
    Duration::from_micros(random % (micros + 1))
}

#[cfg(test)]
mod tests;
