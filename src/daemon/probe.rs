#![allow(clippy::disallowed_methods, reason = "shell: the network")]
//! The first look at the hosts that are to be followed: mistakes of a configuration show before anything is made.

use std::time::Duration;

use serde::Deserialize;

use super::DaemonError;
use crate::config::{Config, HostConfig};
use crate::http::client::Upstream;
use crate::http::request::{FetchError, Limits};
use crate::mirror::reader::Mirror;
use crate::mirror::store::Store;

/// A host's answer to the first question may take this long.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct DescribeServer {
    #[expect(dead_code, reason = "a PDS has one; that it is there is what is asked")]
    did: String,
}

/// Asks every host whether it is a PDS. One that does not answer may be down: it is followed as soon as it is
/// up. One that was never seen and whose name does not exist is a mistake.
///
/// # Errors
/// When one is no PDS, or its name cannot be found: exit code 78.
pub async fn probe_hosts(
    config: &Config,
    upstream: &Upstream,
    store: Option<&dyn Store>,
) -> Result<(), DaemonError> {
    for host in &config.hosts {
        let row = match store {
            Some(store) => Mirror::new(store)
                .host(&host.name)
                .map_err(super::start::store_error)?,
            None => None,
        };
        let known = row.is_some_and(|row| row.cursor.is_some());
        if !known {
            check_name(host).await?;
        }
        let url = format!("{}/xrpc/com.atproto.server.describeServer", host.url);
        let limits = Limits {
            total: PROBE_TIMEOUT,
            first_byte: PROBE_TIMEOUT,
            ..Limits::json(256 << 10)
        };
        let Err(error) = upstream.get_json_within::<DescribeServer>(&url, &limits).await else {
            continue;
        };
        let no_pds = match &error {
            FetchError::Json { .. } | FetchError::Redirected { .. } | FetchError::Encoding { .. } => true,
            FetchError::Status { status, .. } => matches!(status, 400 | 404 | 405 | 410 | 501),
            FetchError::Refused(_) | FetchError::BadUrl { .. } => {
                return Err(DaemonError::config(format!("hosts = \"{}\": {error}", host.url)));
            }
            _ => false,
        };
        if no_pds && !known {
            return Err(DaemonError::config(format!(
                "hosts = \"{}\": this is no PDS ({error}); write the web address of a PDS, the one that \
                 /xrpc/com.atproto.server.describeServer answers at",
                host.url
            )));
        }
        tracing::warn!(host = %host.name, "the host does not answer yet ({error}); it is followed as soon as it does");
    }
    Ok(())
}

async fn check_name(host: &HostConfig) -> Result<(), DaemonError> {
    let name = host.name.as_str();
    let target = if name.contains(':') {
        name.to_owned()
    } else {
        format!("{name}:443")
    };
    match tokio::time::timeout(PROBE_TIMEOUT, tokio::net::lookup_host(&target)).await {
        Ok(Err(error)) => Err(DaemonError::config(format!(
            "hosts = \"{}\": the name cannot be found ({error}); check its spelling, and that DNS works here",
            host.url
        ))),
        _ => Ok(()),
    }
}
