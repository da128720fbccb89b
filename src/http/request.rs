//! What a request may cost, and how it may fail.

use std::time::Duration;

use super::address::Refusal;

/// See [`Limits::throughput_window`].
const THROUGHPUT_WINDOW: Duration = Duration::from_secs(30);

/// What a request may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Until the answer's header is there: connecting, TLS, the host's thinking.
    pub first_byte: Duration,
    /// Until the body is there, the time included in which the reader of a stream is busy elsewhere.
    pub total: Duration,
    /// Between two pieces of the body.
    pub idle: Duration,
    /// Bytes of the body.
    pub bytes_max: u64,
    /// Least bytes a second that the body must bring; zero: any.
    pub bytes_per_second_min: u64,
    /// How much waiting for the host each measurement of that takes. The reader's own slowness does not count.
    pub throughput_window: Duration,
    /// Redirects that are followed.
    pub redirects_max: u8,
}

impl Limits {
    /// For a JSON answer: a page of a list, a status. Some hosts think for 20 s and more about a page.
    #[must_use]
    pub const fn json(bytes_max: u64) -> Self {
        Self {
            first_byte: Duration::from_secs(60),
            total: Duration::from_secs(120),
            idle: Duration::from_secs(30),
            bytes_max,
            bytes_per_second_min: 0,
            throughput_window: THROUGHPUT_WINDOW,
            redirects_max: 0,
        }
    }

    /// For a document of some kilobytes, all within ten seconds.
    #[must_use]
    pub const fn document(bytes_max: u64) -> Self {
        Self {
            first_byte: Duration::from_secs(10),
            total: Duration::from_secs(10),
            idle: Duration::from_secs(10),
            bytes_max,
            bytes_per_second_min: 0,
            throughput_window: THROUGHPUT_WINDOW,
            redirects_max: 0,
        }
    }

    /// For a repository or a blob: hours if need be, but never a trickle.
    #[must_use]
    pub const fn download(bytes_max: u64) -> Self {
        Self {
            first_byte: Duration::from_secs(120),
            total: Duration::from_secs(4 * 3600),
            idle: Duration::from_secs(60),
            bytes_max,
            bytes_per_second_min: 1_000,
            throughput_window: THROUGHPUT_WINDOW,
            redirects_max: 0,
        }
    }

    /// For sending a repository or a blob: the answer comes when all was sent.
    #[must_use]
    pub const fn upload() -> Self {
        Self {
            first_byte: Duration::from_secs(4 * 3600),
            total: Duration::from_secs(4 * 3600),
            ..Self::json(1 << 20)
        }
    }
}

/// In which part of a request time ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Connecting over TCP.
    Connect,
    /// Waiting for the answer's header.
    FirstByte,
    /// Waiting for the next piece of the body.
    Idle,
    /// The request as a whole.
    Total,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::FirstByte => "waiting for an answer",
            Self::Idle => "waiting for the rest of the answer",
            Self::Total => "reading the whole answer",
        })
    }
}

/// Why a request brought nothing. Foreign words in it are printable and short.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Not a URL that can be asked.
    #[error("not a usable URL ({why}): {url}")]
    BadUrl {
        /// The URL.
        url: String,
        /// The rule.
        why: &'static str,
    },
    /// Our own rules forbid the address.
    #[error("{0}")]
    Refused(Refusal),
    /// No connection, or it broke before the answer.
    #[error("{0}")]
    Connect(String),
    /// TLS failed, the certificate most often.
    #[error("secure connection to {host}: {reason}")]
    Tls {
        /// Host and port.
        host: String,
        /// The library's words.
        reason: String,
    },
    /// Time ran out.
    #[error("{host}: time ran out {stage}")]
    Timeout {
        /// Host and port.
        host: String,
        /// Where.
        stage: Stage,
    },
    /// The body came in a trickle.
    #[error("{host} sent fewer than {bytes_per_second_min} bytes a second")]
    TooSlow {
        /// Host and port.
        host: String,
        /// The limit.
        bytes_per_second_min: u64,
    },
    /// It was not sent: the host is left alone for a while, as it asks or as our own budget says.
    #[error("{host} is left alone for {} s more, as it asks or as requests_per_second says", wait.as_secs())]
    Paced {
        /// Host and port.
        host: String,
        /// How long.
        wait: Duration,
    },
    /// The host answered with an error.
    #[error("{host} answered {status}{}{}", with_space(error), with_colon(message))]
    Status {
        /// Host and port.
        host: String,
        /// HTTP status.
        status: u16,
        /// XRPC error name, such as `RepoNotFound`; empty if there was none.
        error: String,
        /// The host's words; empty if there were none.
        message: String,
        /// `Retry-After`, as a wait from now.
        retry_after: Option<Duration>,
        /// `RateLimit-Reset`, as a wait from now.
        ratelimit_reset: Option<Duration>,
    },
    /// A redirect that was not asked for, or one too many.
    #[error("{host} redirects to {location}, which is not followed")]
    Redirected {
        /// Host and port.
        host: String,
        /// Where to.
        location: String,
    },
    /// The body is longer than allowed.
    #[error("{host} sent more than {bytes_max} bytes")]
    TooLarge {
        /// Host and port.
        host: String,
        /// The limit.
        bytes_max: u64,
    },
    /// The body broke off.
    #[error("answer of {host} broke off: {reason}")]
    Body {
        /// Host and port.
        host: String,
        /// The library's words.
        reason: String,
    },
    /// The body is compressed, which we never ask for.
    #[error("{host} sent a body in encoding {encoding}, which was not asked for")]
    Encoding {
        /// Host and port.
        host: String,
        /// The encoding.
        encoding: String,
    },
    /// The body is not the JSON that it should be.
    #[error("answer of {host} is not the expected JSON: {reason}")]
    Json {
        /// Host and port.
        host: String,
        /// What is wrong.
        reason: String,
    },
}

fn with_space(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(" {text}")
    }
}

fn with_colon(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}

impl FetchError {
    /// Whether the same request may well succeed later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                matches!(status, 408 | 425 | 429 | 500 | 502..=599)
            }
            Self::Connect(_)
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::TooSlow { .. }
            | Self::Paced { .. }
            | Self::Body { .. } => true,
            Self::BadUrl { .. }
            | Self::Refused(_)
            | Self::Redirected { .. }
            | Self::TooLarge { .. }
            | Self::Encoding { .. }
            | Self::Json { .. } => false,
        }
    }

    /// How long the host asks to be left alone: `Retry-After`, or for a 429 `RateLimit-Reset`.
    #[must_use]
    pub const fn wait(&self) -> Option<Duration> {
        match self {
            Self::Paced { wait, .. } => Some(*wait),
            Self::Status {
                retry_after: Some(wait),
                ..
            } => Some(*wait),
            Self::Status {
                status: 429,
                ratelimit_reset,
                ..
            } => *ratelimit_reset,
            _ => None,
        }
    }

    /// The XRPC error name, such as `RepoNotFound`, where the host gave one.
    #[must_use]
    pub fn xrpc_error(&self) -> Option<&str> {
        match self {
            Self::Status { error, .. } if !error.is_empty() => Some(error),
            _ => None,
        }
    }

    /// A word from a closed set, as metric label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::BadUrl { .. } => "bad_url",
            Self::Refused(_) => "refused_address",
            Self::Connect(_) => "unreachable",
            Self::Tls { .. } => "tls",
            Self::Timeout { .. } => "timeout",
            Self::TooSlow { .. } => "too_slow",
            Self::Paced { .. } => "paced",
            Self::Status { status: 429, .. } => "rate_limited",
            Self::Status { .. } => "http_status",
            Self::Redirected { .. } => "redirected",
            Self::TooLarge { .. } => "too_large",
            Self::Body { .. } => "broken",
            Self::Encoding { .. } => "encoding",
            Self::Json { .. } => "json",
        }
    }
}
