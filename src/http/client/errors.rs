#![allow(clippy::disallowed_methods, reason = "shell: errors of the connection")]
//! What a failed request means.

use std::error::Error as _;

use hyper_util::client::legacy;

use super::SHOWN_CHARS_MAX;
use crate::http::connect::ConnectError;
use crate::http::request::{FetchError, Stage};
use crate::http::text::printable;

/// Finds out what a failed request died of: the cause is wrapped several times.
pub(super) fn client_error(host: &str, error: &legacy::Error) -> FetchError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(refused) = current.downcast_ref::<ConnectError>() {
            return connect_error(refused);
        }
        if let Some(tls) = current.downcast_ref::<rustls::Error>() {
            return FetchError::Tls {
                host: host.to_owned(),
                reason: printable(&tls.to_string(), SHOWN_CHARS_MAX),
            };
        }
        // An I/O error hides what it carries from `source`.
        cause = match current
            .downcast_ref::<std::io::Error>()
            .and_then(|io| io.get_ref())
        {
            Some(inner) => Some(inner),
            None => current.source(),
        };
    }
    let reason = error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string);
    FetchError::Connect(format!("{host}: {}", printable(&reason, SHOWN_CHARS_MAX)))
}

fn connect_error(error: &ConnectError) -> FetchError {
    match error {
        ConnectError::Refused(refusal) => FetchError::Refused(refusal.clone()),
        ConnectError::Timeout { host, .. } => FetchError::Timeout {
            host: host.clone(),
            stage: Stage::Connect,
        },
        ConnectError::Lookup { .. } | ConnectError::Tcp { .. } => FetchError::Connect(error.to_string()),
    }
}
