#![allow(clippy::disallowed_methods, reason = "shell: the archive, the clock")]
//! `firekeep drill`: restores accounts for a trial, through the daemon or from an archive alone.

use hyper::Method;

use super::{LONG, ask, existing, failed, print, text};
use crate::cli::DrillArgs;
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::drill::{self, DrillError, Options};
use crate::daemon::{DaemonError, exit};

/// `firekeep drill`. Exit code 0 or 4.
///
/// # Errors
/// When the daemon does not answer, or the archive cannot be read or is empty.
pub async fn drill(config: &Config, args: &DrillArgs, json: bool) -> Result<u8, DaemonError> {
    let clock = Clock::system();
    let options = Options {
        accounts: args.accounts as usize,
        seed: args.seed.unwrap_or_else(|| clock.random() >> 12),
    };
    if args.common.archive.archive.is_none() {
        let path = format!(
            "/control/drill?accounts={}&seed={}",
            options.accounts, options.seed
        );
        let told = ask(config.admin_listen, Method::POST, &path, LONG).await?;
        match json {
            true => print(&format!("{:#}\n", told["report"]))?,
            false => print(text(&told["text"]))?,
        };
        return Ok(if told["good"] == true { 0 } else { exit::UNVERIFIED });
    }
    let bucket = existing(config).await?;
    let place = (&clock, std::env::temp_dir());
    let report = drill::drill(
        bucket,
        None,
        options,
        (place.0, place.1.as_path()),
        config.dev_mode,
    );
    let report = report.await.map_err(|error| DaemonError {
        code: match error {
            DrillError::Empty(_) => exit::NO_BACKUP,
            _ => exit::FAILED,
        },
        text: error.to_string(),
    })?;
    if json {
        let value = serde_json::to_value(&report).map_err(|error| failed(error.to_string()))?;
        print(&format!("{value:#}\n"))?;
    } else {
        print(&report.text())?;
    }
    Ok(report.exit_code())
}
