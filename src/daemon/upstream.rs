#![allow(clippy::disallowed_methods, reason = "shell: reads key files")]
//! The way to hosts: whom it may contact, how fast, and with which keys.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::DaemonError;
use crate::clock::Clock;
use crate::config::{Config, HostConfig};
use crate::http::address::AddressPolicy;
use crate::http::client::Upstream;
use crate::http::connect::Connector;
use crate::http::pace::{BypassKey, Pacing};
use crate::types::HostName;

/// No key file is longer.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// The client, as the configuration says.
///
/// # Errors
/// When a key cannot be read, or the system has no root certificates.
pub fn upstream(config: &Config, clock: &Clock) -> Result<Upstream, DaemonError> {
    // What the admin wrote himself may be anywhere; what hosts and DID documents name may not.
    let plc = config
        .plc_url
        .split_once("://")
        .and_then(|(_, rest)| rest.parse::<HostName>().ok());
    let told = [
        config.heartbeat_url.as_deref(),
        config.webhook.as_ref().map(|webhook| webhook.url.as_str()),
    ];
    let told = told.into_iter().flatten().filter_map(|url| {
        let (_, rest) = url.split_once("://")?;
        rest.split(['/', '?']).next()?.parse::<HostName>().ok()
    });
    let trusted = config
        .hosts
        .iter()
        .map(|host| host.name.clone())
        .chain(plc)
        .chain(told);
    let policy = AddressPolicy::new(config.dev_mode, trusted);
    let mut paced = Vec::with_capacity(config.hosts.len());
    for host in &config.hosts {
        let key = host.bypass_key_file.as_deref().map(|path| bypass_key(host, path));
        paced.push((host.name.to_string(), key.transpose()?));
    }
    let pacing = Pacing::new(config.requests_per_second, paced);
    Upstream::with_pacing(Connector::new(policy), clock.clone(), pacing)
        .map_err(|error| DaemonError::failed(error.to_string()))
}

/// Reads a PDS's bypass key.
fn bypass_key(host: &HostConfig, path: &Path) -> Result<BypassKey, DaemonError> {
    let bad = |why: &dyn std::fmt::Display| {
        DaemonError::config(format!(
            "bypass_key_files: the key of {} in {} {why}; put into it what PDS_RATE_LIMIT_BYPASS_KEY says on that PDS",
            host.name,
            path.display()
        ))
    };
    let mut text = String::new();
    let file = File::open(path).map_err(|error| bad(&format!("cannot be read ({error})")))?;
    let read = file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| bad(&format!("cannot be read ({error})")))?;
    BypassKey::parse(&text).map_err(|why| bad(&why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_cannot_be_used_is_a_mistake_in_the_configuration() {
        let folder = tempfile::tempdir().expect("a folder");
        let host = HostConfig {
            name: "pds.test".parse().expect("a host"),
            url: "https://pds.test".to_owned(),
            bypass_key_file: None,
        };
        let path = folder.path().join("key");
        let key = || bypass_key(&host, &path);
        for (content, why) in [
            (None, "cannot be read"),
            (Some("\n"), "is empty"),
            (Some("s3c ret"), "one line"),
        ] {
            if let Some(content) = content {
                std::fs::write(&path, content).expect("writes");
            }
            let error = key().expect_err("no key").text;
            assert!(
                error.contains(why) && error.contains("pds.test") && error.contains("key"),
                "{error}"
            );
            assert!(!error.contains("s3c"), "{error}");
        }
        std::fs::write(&path, "s3cret\n").expect("writes");
        assert_eq!(
            key().map(|key| key.secret().to_owned()).ok().as_deref(),
            Some("s3cret")
        );
    }
}
