//! The configuration: file, then environment, then flags; checked as a whole before anything is opened.
//!
//! [`keys`] is the one list of what can be set; [`layers`] reads the three sources into values with their
//! origin; this file turns them into a [`Config`], in which everything is present and in range. Each error is
//! one line that names the key, where it stands, the value, and what to write instead.

pub mod cost;
pub mod keys;
pub mod layers;
mod notify;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::layers::{Layers, Origin, Setting};
pub use self::notify::{Webhook, WebhookFormat};
use crate::archive::retention::Keep;
use crate::archive::settings::{ArchiveConfig, S3Input, SettingError};
use crate::mirror::rows::Scope;
use crate::serve::SignUps;
use crate::types::HostName;

/// A configuration that cannot be used: one line, for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// An error with this text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Everything that `firekeep` needs to know, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The PDSes to follow. May be empty for commands that follow none.
    pub hosts: Vec<HostConfig>,
    /// The PLC directory, without a trailing slash.
    pub plc_url: String,
    /// Where the mirror lives. Absolute.
    pub data_dir: PathBuf,
    /// Where the archive is.
    pub archive: ArchiveConfig,
    /// XRPC and status page.
    pub listen: SocketAddr,
    /// Metrics, health and administration.
    pub admin_listen: SocketAddr,
    /// How the public reaches `listen`, without a trailing slash.
    pub public_url: Option<String>,
    /// Where the hash of the admin's password stands. Absolute.
    pub admin_password_file: Option<PathBuf>,
    /// Which accounts of the hosts are followed.
    pub follow: Scope,
    /// Whose accounts may be signed up.
    pub sign_up: SignUps,
    /// How often changes are shipped to the archive.
    pub flush_interval: Duration,
    /// An account is snapshotted at most this often.
    pub snapshot_interval: Duration,
    /// How often each account is compared with its host.
    pub audit_interval: Duration,
    /// How often the archive is looked at.
    pub archive_check_interval: Duration,
    /// How often retention is applied.
    pub prune_interval: Option<Duration>,
    /// Where private state lies that is to be shipped.
    pub state_drop: Option<PathBuf>,
    /// How often the archive and the mirror are read to their ends.
    pub scrub_interval: Duration,
    /// How often accounts are restored for a trial.
    pub drill_interval: Duration,
    /// The largest blob that is fetched, in bytes.
    pub blob_bytes_max: u64,
    /// What may wait for the archive, in bytes: changes, and as much again in blobs.
    pub spool_bytes_max: u64,
    /// Requests a second to each host, at most; zero: no limit of ours.
    pub requests_per_second: u32,
    /// Within this time a host is asked again for every blob.
    pub blob_sweep_interval: Duration,
    /// Which share of a host's accounts may go within a day before an alarm is raised.
    pub accounts_gone_percent: u64,
    /// Which share of an account's records may go within a day before an alarm is raised and what was is pinned.
    pub records_gone_percent: u64,
    /// What stays in the archive, and how long.
    pub keep: Keep,
    /// What is asked while all goes on.
    pub heartbeat_url: Option<String>,
    /// Where alarms are sent.
    pub webhook: Option<Webhook>,
    /// Whether plain http, loopback and private addresses are allowed.
    pub dev_mode: bool,
    /// Log lines as text or JSON.
    pub log_format: LogFormat,
    /// Which log lines, as a `tracing` filter.
    pub log_level: String,
}

/// One PDS to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// Its name in keys, logs and metrics.
    pub name: HostName,
    /// Its base URL: scheme, host and port, without a trailing slash.
    pub url: String,
    /// Where the key that lifts its rate limits stands. Absolute.
    pub bypass_key_file: Option<PathBuf>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Bounds of `flush_interval`.
const FLUSH_INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
/// Bounds of `snapshot_interval`.
const SNAPSHOT_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(7 * 24 * 3600));
/// Bounds of `audit_interval`. It costs three requests an account.
const AUDIT_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(7 * 24 * 3600));
/// Bounds of `archive_check_interval`.
const ARCHIVE_CHECK_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
/// Bounds of `prune_interval`.
const PRUNE_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30 * 24 * 3600));
/// Bounds of `scrub_interval` and `drill_interval`.
const PROOF_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(365 * 24 * 3600));
/// Bounds of `blob_sweep_interval`.
const BLOB_SWEEP_INTERVAL: (Duration, Duration) =
    (Duration::from_secs(10), Duration::from_secs(30 * 24 * 3600));
/// Bounds of `blob_bytes_max`: 1 MiB to 5 GiB, the largest object of a single S3 copy.
const BLOB_BYTES: (u64, u64) = (1 << 20, 5 << 30);
/// Bounds of `spool_bytes_max`.
const SPOOL_BYTES: (u64, u64) = (1 << 16, 1 << 50);
/// Default and greatest value of `requests_per_second`.
const REQUESTS_PER_SECOND: (u32, u32) = (20, 10_000);
/// Bounds of the spans below `keep`: up to a hundred years.
const KEEP_SPAN: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(36_500 * 24 * 3600));
/// Most snapshots that one rule may ask for.
const KEEP_COUNT_MAX: u32 = 100_000;

impl Config {
    /// Checks all values together. Relative paths are taken from `cwd`.
    ///
    /// # Errors
    /// The first setting that cannot be.
    pub fn check(layers: &Layers, cwd: &Path) -> Result<Self, ConfigError> {
        let dev_mode = layers.boolean("dev_mode").unwrap_or(false);
        let data_dir = cwd.join(layers.text("data_dir").as_deref().unwrap_or("firekeep-data"));
        let listen = address(layers, "listen", "127.0.0.1:2585")?;
        let admin_listen = address(layers, "admin_listen", "127.0.0.1:2586")?;
        if listen == admin_listen && listen.port() != 0 {
            return Err(layers.error("admin_listen", "must not be the address of listen"));
        }
        Ok(Self {
            hosts: hosts(layers, dev_mode, cwd)?,
            plc_url: base_url(
                layers,
                "plc_url",
                layers
                    .text("plc_url")
                    .as_deref()
                    .unwrap_or("https://plc.directory"),
                dev_mode,
            )?,
            archive: archive(layers, &data_dir)?,
            state_drop: layers.text("state_drop").map(|path| cwd.join(path)),
            data_dir,
            listen,
            admin_listen,
            public_url: layers
                .text("public_url")
                .map(|url| base_url(layers, "public_url", &url, dev_mode))
                .transpose()?,
            admin_password_file: layers.text("admin_password_file").map(|path| cwd.join(path)),
            follow: match layers.text("follow").as_deref() {
                None | Some("all") => Scope::All,
                Some("listed") => Scope::Listed,
                Some(_) => return Err(layers.error("follow", "must be \"all\" or \"listed\"")),
            },
            sign_up: match layers.text("sign_up").as_deref() {
                None | Some("hosts") => SignUps::Hosts,
                Some("off") => SignUps::Off,
                Some("open") => SignUps::Open,
                Some(_) => return Err(layers.error("sign_up", "must be \"off\", \"hosts\" or \"open\"")),
            },
            flush_interval: duration(layers, "flush_interval", "1s", FLUSH_INTERVAL)?,
            snapshot_interval: duration(layers, "snapshot_interval", "1h", SNAPSHOT_INTERVAL)?,
            audit_interval: duration(layers, "audit_interval", "1d", AUDIT_INTERVAL)?,
            archive_check_interval: duration(layers, "archive_check_interval", "1h", ARCHIVE_CHECK_INTERVAL)?,
            prune_interval: prune_interval(layers)?,
            scrub_interval: duration(layers, "scrub_interval", "30d", PROOF_INTERVAL)?,
            drill_interval: duration(layers, "drill_interval", "1d", PROOF_INTERVAL)?,
            blob_bytes_max: size(layers, "blob_bytes_max", "300MiB", BLOB_BYTES)?,
            spool_bytes_max: size(layers, "spool_bytes_max", "10GiB", SPOOL_BYTES)?,
            requests_per_second: requests_per_second(layers)?,
            blob_sweep_interval: duration(layers, "blob_sweep_interval", "1d", BLOB_SWEEP_INTERVAL)?,
            accounts_gone_percent: percent(layers, "accounts_gone_percent", "10")?,
            records_gone_percent: percent(layers, "records_gone_percent", "50")?,
            keep: keep(layers)?,
            heartbeat_url: notify::notify_url(layers, "notify.heartbeat_url", dev_mode)?,
            webhook: notify::webhook(layers, dev_mode)?,
            dev_mode,
            log_format: log_format(layers)?,
            log_level: layers.text("log_level").unwrap_or_else(|| "info".to_owned()),
        })
    }
}

fn keep(layers: &Layers) -> Result<Keep, ConfigError> {
    let count = |key: &'static str, default: &str| {
        let text = layers.text(key).unwrap_or_else(|| default.to_owned());
        let value = text.trim().parse().ok().filter(|count| *count <= KEEP_COUNT_MAX);
        value.ok_or_else(|| layers.error_for(key, &text, "must be a whole number from 0 to 100000"))
    };
    Ok(Keep {
        last: count("keep.last", "3")?,
        hours: count("keep.hours", "24")?,
        days: count("keep.days", "14")?,
        weeks: count("keep.weeks", "8")?,
        months: count("keep.months", "24")?,
        window: duration(layers, "keep.window", "30d", KEEP_SPAN)?,
        deleted: duration(layers, "keep.deleted", "90d", KEEP_SPAN)?,
        withdrawn: duration(layers, "keep.withdrawn", "30d", KEEP_SPAN)?,
    })
}

fn hosts(layers: &Layers, dev_mode: bool, cwd: &Path) -> Result<Vec<HostConfig>, ConfigError> {
    let mut hosts: Vec<HostConfig> = Vec::new();
    for text in layers.list("hosts") {
        let url = base_url(layers, "hosts", &text, dev_mode)?;
        let authority = url.split_once("://").map_or("", |(_, rest)| rest);
        let name: HostName = authority
            .parse()
            .map_err(|error| layers.error_for("hosts", &text, &format!("the host part is {error}")))?;
        if hosts.iter().any(|other| other.name == name) {
            return Err(layers.error_for("hosts", &text, "is named twice; leave one of the two out"));
        }
        hosts.push(HostConfig {
            name,
            url,
            bypass_key_file: None,
        });
    }
    for text in layers.list("bypass_key_files") {
        let bad = |remedy: &str| layers.error_for("bypass_key_files", &text, remedy);
        let (name, path) = text
            .split_once('=')
            .map(|(name, path)| (name.trim().to_ascii_lowercase(), path.trim()))
            .filter(|(_, path)| !path.is_empty())
            .ok_or_else(|| {
                bad("must be a followed PDS and a file, such as \"pds.example.com=/etc/firekeep/pds.key\"")
            })?;
        let host = hosts.iter_mut().find(|host| host.name.as_str() == name);
        let host = host.ok_or_else(|| bad("names no PDS that `hosts` names"))?;
        if host.bypass_key_file.replace(cwd.join(path)).is_some() {
            return Err(bad("names a second file for the same PDS"));
        }
    }
    Ok(hosts)
}

fn requests_per_second(layers: &Layers) -> Result<u32, ConfigError> {
    let (default, most) = REQUESTS_PER_SECOND;
    let Some(number) = layers.number("requests_per_second") else {
        return Ok(default);
    };
    u32::try_from(number)
        .ok()
        .filter(|number| *number <= most)
        .ok_or_else(|| layers.error("requests_per_second", &format!("must be from 0 to {most}")))
}

/// Checks a URL that is only scheme, host and port; returns it in lower case without its trailing slash.
fn base_url(layers: &Layers, key: &'static str, text: &str, dev_mode: bool) -> Result<String, ConfigError> {
    let bad = |remedy: &str| Err(layers.error_for(key, text, remedy));
    let lower = text.trim().to_ascii_lowercase();
    let Some((scheme, rest)) = lower.split_once("://") else {
        return bad("must be a URL, such as \"https://pds.example.com\"");
    };
    match scheme {
        "https" => {}
        "http" if dev_mode => {}
        "http" => {
            return bad("http is not encrypted; use https, or set dev_mode = true for a test on one machine");
        }
        "wss" | "ws" => return bad("write the PDS's web address, beginning with https://"),
        _ => return bad("must begin with https://"),
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains('@') {
        return Err(layers.error_for(key, "…@…", "must hold no user or password"));
    }
    if authority.contains(['/', '?', '#']) {
        return bad("must be only scheme, host and port, without a path");
    }
    if let Err(error) = authority.parse::<HostName>() {
        return bad(&format!("the host part is {error}"));
    }
    let default_port = if scheme == "https" { ":443" } else { ":80" };
    let authority = authority.strip_suffix(default_port).unwrap_or(authority);
    Ok(format!("{scheme}://{authority}"))
}

fn archive(layers: &Layers, data_dir: &Path) -> Result<ArchiveConfig, ConfigError> {
    let in_data_dir = format!("file://{}", percent_encode(&data_dir.join("archive")));
    let url = layers.text("archive").unwrap_or(in_data_dir);
    let path = |key| layers.text(key).map(PathBuf::from);
    let s3 = S3Input {
        endpoint: layers.text("s3.endpoint"),
        region: layers.text("s3.region"),
        path_style: layers.boolean("s3.path_style"),
        checksum: layers.text("s3.checksum"),
        access_key_id_file: path("s3.access_key_id_file"),
        secret_access_key_file: path("s3.secret_access_key_file"),
        session_token_file: path("s3.session_token_file"),
        connect_timeout: optional_duration(layers, "s3.connect_timeout")?,
        attempt_timeout: optional_duration(layers, "s3.attempt_timeout")?,
        idle_timeout: optional_duration(layers, "s3.idle_timeout")?,
    };
    ArchiveConfig::parse(&url, &s3).map_err(|error| {
        let SettingError { key, value, remedy } = error;
        layers.error_for(key, &value, &remedy)
    })
}

/// A path as it stands in a `file://` URL.
fn percent_encode(path: &Path) -> String {
    let text = path.to_string_lossy();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '%' => out.push_str("%25"),
            '?' => out.push_str("%3F"),
            '#' => out.push_str("%23"),
            other => out.push(other),
        }
    }
    out
}

fn address(layers: &Layers, key: &'static str, default: &str) -> Result<SocketAddr, ConfigError> {
    let text = layers.text(key).unwrap_or_else(|| default.to_owned());
    text.parse().map_err(|_| {
        layers.error_for(
            key,
            &text,
            "must be an address and a port, such as \"127.0.0.1:2585\" or \"[::1]:2585\"",
        )
    })
}

fn log_format(layers: &Layers) -> Result<LogFormat, ConfigError> {
    match layers.text("log_format").as_deref() {
        None | Some("auto") => Ok(LogFormat::Auto),
        Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(_) => Err(layers.error("log_format", "must be \"auto\", \"text\" or \"json\"")),
    }
}

fn duration(
    layers: &Layers,
    key: &'static str,
    default: &str,
    (least, most): (Duration, Duration),
) -> Result<Duration, ConfigError> {
    let text = layers.text(key).unwrap_or_else(|| default.to_owned());
    let value = parse_duration(&text).ok_or_else(|| layers.error_for(key, &text, DURATION_FORM))?;
    if value < least || value > most {
        let remedy = format!("must be from {} to {}", show_duration(least), show_duration(most));
        return Err(layers.error_for(key, &text, &remedy));
    }
    Ok(value)
}

/// `off`: nothing goes by itself.
fn prune_interval(layers: &Layers) -> Result<Option<Duration>, ConfigError> {
    let text = layers.text("prune_interval").unwrap_or_else(|| "off".to_owned());
    if text == "off" {
        return Ok(None);
    }
    let (least, most) = PRUNE_INTERVAL;
    let value = parse_duration(&text).filter(|value| (least..=most).contains(value));
    value.map(Some).ok_or_else(|| {
        let (least, most) = (show_duration(least), show_duration(most));
        let remedy =
            format!("must be from {least} to {most}, such as \"1d\"; \"off\" if nothing is to go by itself");
        layers.error_for("prune_interval", &text, &remedy)
    })
}

fn optional_duration(layers: &Layers, key: &'static str) -> Result<Option<Duration>, ConfigError> {
    let Some(text) = layers.text(key) else {
        return Ok(None);
    };
    parse_duration(&text)
        .map(Some)
        .ok_or_else(|| layers.error_for(key, &text, DURATION_FORM))
}

const DURATION_FORM: &str = "must be a whole number with ms, s, m, h or d, such as \"30s\" or \"1h\"";

/// A whole number with a unit: `250ms`, `30s`, `5m`, `1h`, `7d`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let milliseconds = match text[digits..].trim() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

/// The shortest form that [`parse_duration`] reads.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")] {
        if milliseconds != 0 && milliseconds.is_multiple_of(unit) {
            return format!("{}{name}", milliseconds / unit);
        }
    }
    format!("{milliseconds}ms")
}

fn percent(layers: &Layers, key: &'static str, default: &str) -> Result<u64, ConfigError> {
    let text = layers.text(key).unwrap_or_else(|| default.to_owned());
    let value = text
        .strip_suffix('%')
        .unwrap_or(&text)
        .trim_end()
        .parse::<u64>()
        .ok();
    value
        .filter(|value| (1..=100).contains(value))
        .ok_or_else(|| layers.error_for(key, &text, "must be a whole number from 1 to 100, such as \"10\""))
}

fn size(
    layers: &Layers,
    key: &'static str,
    default: &str,
    (least, most): (u64, u64),
) -> Result<u64, ConfigError> {
    let text = layers.text(key).unwrap_or_else(|| default.to_owned());
    let value = parse_size(&text).ok_or_else(|| {
        layers.error_for(
            key,
            &text,
            "must be a whole number with B, KiB, MiB or GiB, such as \"300MiB\"",
        )
    })?;
    if value < least || value > most {
        let remedy = format!("must be from {}MiB to {}MiB", least >> 20, most >> 20);
        return Err(layers.error_for(key, &text, &remedy));
    }
    Ok(value)
}

/// A whole number of bytes with a unit: `512B`, `64KiB`, `300MiB`, `1GiB`.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}
