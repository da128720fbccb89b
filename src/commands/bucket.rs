#![allow(clippy::disallowed_methods, reason = "shell: the clock")]
//! `firekeep bucket probe`: what a store really does.

use super::{failed, print};
use crate::archive::bucket::Bucket;
use crate::archive::probe;
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::DaemonError;

/// `firekeep bucket probe`. Exit code 0: safe for several writers; 3: for one; 4: for none.
///
/// # Errors
/// When the store cannot be used at all.
pub async fn probe(config: &Config, json: bool) -> Result<u8, DaemonError> {
    let broken = |error: crate::archive::bucket::BucketError| failed(error.to_string());
    let bucket = Bucket::open(&config.archive).await.map_err(broken)?;
    let probed = probe::probe(&bucket, &Clock::system()).await.map_err(broken)?;
    if json {
        let mut value = serde_json::to_value(&probed).map_err(|error| failed(error.to_string()))?;
        value["class"] = serde_json::to_value(probed.class()).map_err(|error| failed(error.to_string()))?;
        print(&format!("{value:#}\n"))?;
    } else {
        print(&probed.text())?;
    }
    Ok(probed.exit_code())
}
