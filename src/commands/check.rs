#![allow(clippy::disallowed_methods, reason = "shell: the network and the disk")]
//! `firekeep config check`: the configuration is valid when it comes here; what it names is tried. Nothing is changed.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{print, size};
use crate::archive::bucket::Bucket;
use crate::archive::identity;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::cost::{DOLLARS_A_MILLION, Habits, segments_at_most, writes_a_month};
use crate::daemon::upstream::upstream;
use crate::daemon::{DaemonError, exit};
use crate::http::client::Upstream;
use crate::http::request::Limits;

/// An answer may take this long.
const WAIT: Duration = Duration::from_secs(10);
/// A disk with less room is pointed at: RocksDB stops at a full one.
const FREE_BYTES_MIN: u64 = 2 << 30;

/// What was tried, and how it went.
struct Tried {
    what: &'static str,
    place: String,
    well: bool,
    found: String,
}

/// `firekeep config check`. Exit code 0: all is well; 3: something does not answer.
///
/// # Errors
/// When a key or the like that the configuration names cannot be used.
pub async fn check(config: &Config, offline: bool, json: bool) -> Result<u8, DaemonError> {
    let mut tried = Vec::new();
    if !offline {
        let upstream = upstream(config, &Clock::system())?;
        for host in &config.hosts {
            tried.push(host_answers(&upstream, &host.url).await);
        }
        tried.push(directory_answers(&upstream, &config.plc_url).await);
        tried.push(archive_answers(config).await);
        tried.push(disk_has_room(&config.data_dir));
    }
    let well = tried.iter().all(|one| one.well);
    let cost = cost(config);
    let text = match json {
        true => format!("{:#}\n", as_json(&tried, &cost, well)),
        false => as_text(&tried, &cost),
    };
    print(&text)?;
    Ok(if well { 0 } else { exit::INCOMPLETE })
}

async fn host_answers(upstream: &Upstream, url: &str) -> Tried {
    let found = ask(upstream, &format!("{url}/xrpc/com.atproto.server.describeServer")).await;
    let version = ask(upstream, &format!("{url}/xrpc/_health")).await;
    let version = version
        .ok()
        .and_then(|health| Some(health["version"].as_str()?.to_owned()));
    let found = found.and_then(|described| match described["did"].as_str() {
        Some(did) => Ok(format!(
            "a PDS, {did}{}",
            version.map_or_else(String::new, |v| format!(", version {v}"))
        )),
        None => Err("answers, but not as a PDS does: check the address".to_owned()),
    });
    of("host", url, found)
}

async fn directory_answers(upstream: &Upstream, url: &str) -> Tried {
    let found = ask(upstream, &format!("{url}/_health")).await;
    of("directory", url, found.map(|_| "answers".to_owned()))
}

async fn ask(upstream: &Upstream, url: &str) -> Result<Value, String> {
    let limits = Limits {
        total: WAIT,
        first_byte: WAIT,
        ..Limits::json(256 << 10)
    };
    let answer = upstream.get_json_within::<Value>(url, &limits).await;
    answer.map_err(|error| format!("does not answer: {error}"))
}

async fn archive_answers(config: &Config) -> Tried {
    let looked = timeout(WAIT * 3, async {
        let opened = Bucket::open_existing(&config.archive)
            .await
            .map_err(|error| error.to_string())?;
        let Some(bucket) = opened else {
            return Ok("is not there yet: `run` makes it".to_owned());
        };
        identity::check(&bucket)
            .await
            .map_err(|error| error.to_string())?;
        let info = identity::read(&bucket).await.map_err(|error| error.to_string())?;
        Ok(info.map_or_else(
            || "can be read, and is empty: a new archive".to_owned(),
            |info| format!("can be read: archive {}", info.id),
        ))
    });
    let found = looked
        .await
        .unwrap_or_else(|_| Err("does not answer in time".to_owned()));
    of("archive", &config.archive.url.to_string(), found)
}

fn disk_has_room(data_dir: &Path) -> Tried {
    let there = data_dir
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("/"));
    let found = rustix::fs::statvfs(there).map_err(|error| format!("cannot be looked at: {error}"));
    let found = found.and_then(|disk| {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let text = format!("{} free", size(free));
        match free >= FREE_BYTES_MIN {
            true => Ok(text),
            false => Err(format!(
                "only {text}: make room, or set data_dir to a larger disk"
            )),
        }
    });
    of("disk", &data_dir.display().to_string(), found)
}

fn of(what: &'static str, place: &str, found: Result<String, String>) -> Tried {
    Tried {
        what,
        place: place.to_owned(),
        well: found.is_ok(),
        found: found.unwrap_or_else(|why| why),
    }
}

/// Write requests of a month, usual and at most.
struct Cost {
    usual: f64,
    at_most: f64,
}

fn cost(config: &Config) -> Cost {
    Cost {
        usual: writes_a_month(&Habits::A_HUNDRED, config.flush_interval),
        at_most: segments_at_most(config.flush_interval),
    }
}

fn dollars(requests: f64) -> f64 {
    requests / 1e6 * DOLLARS_A_MILLION
}

fn as_text(tried: &[Tried], cost: &Cost) -> String {
    let mut text = "the configuration is valid\n".to_owned();
    for one in tried {
        let mark = if one.well { "ok" } else { "NO" };
        text.push_str(&format!(
            "  {mark}  {:<9}  {}: {}\n",
            one.what, one.place, one.found
        ));
    }
    text.push_str(&format!(
        "  cost: about {:.0} write requests a month for 100 accounts of 20 posts a day (${:.2} at AWS S3's list price); \
         nothing while nothing changes; at most {:.0} for segments (${:.2}), however much is written. A longer \
         flush_interval costs less.\n",
        cost.usual,
        dollars(cost.usual),
        cost.at_most,
        dollars(cost.at_most),
    ));
    text
}

fn as_json(tried: &[Tried], cost: &Cost, well: bool) -> Value {
    let tried: Vec<Value> = tried
        .iter()
        .map(|one| json!({ "what": one.what, "place": one.place, "well": one.well, "found": one.found }))
        .collect();
    json!({
        "valid": true,
        "well": well,
        "tried": tried,
        "writes_a_month": { "of_100_accounts": cost.usual.round(), "segments_at_most": cost.at_most.round() },
    })
}
