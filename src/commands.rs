#![allow(clippy::disallowed_methods, reason = "shell: the network")]
//! The commands that ask a running daemon, through its private listener; and below, those that need none.

pub mod bucket;
pub mod check;
pub mod drill;
pub mod forget;
pub mod keys;
pub mod plc;
pub mod prune;
pub mod restore;
pub mod state;
pub mod setup;
pub mod status;
pub mod verify;

pub mod recall;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::archive::bucket::Bucket;
use crate::cli::AlarmCommand;
use crate::config::Config;
use crate::daemon::{DaemonError, exit};
use crate::mirror::blobs::query_value;
use crate::serve::CONTROL_HEADER;

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// For connecting and short answers.
const SHORT: Duration = Duration::from_secs(10);
/// For a snapshot of everything.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// `firekeep snapshot`
///
/// # Errors
/// When the daemon does not answer, or cannot archive.
pub async fn snapshot(config: &Config, json: bool) -> Result<u8, DaemonError> {
    let done = ask(config.admin_listen, Method::POST, "/control/snapshot", LONG).await?;
    if json {
        return print(&format!("{done:#}\n"));
    }
    let (accounts, archive) = (number(&done["accounts"]), text(&done["archive"]));
    print(&match accounts {
        0 => format!("nothing to do: every account's head stands in {archive}\n"),
        1 => format!("1 account snapshotted to {archive}\n"),
        n => format!("{n} accounts snapshotted to {archive}\n"),
    })
}

/// `firekeep accounts`
///
/// # Errors
/// When the daemon does not answer.
pub async fn accounts(config: &Config, json: bool) -> Result<u8, DaemonError> {
    let mut all = Vec::new();
    let mut path = "/control/accounts".to_owned();
    loop {
        let mut page = ask(config.admin_listen, Method::GET, &path, SHORT).await?;
        if let Some(accounts) = page["accounts"].as_array_mut() {
            all.append(accounts);
        }
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/control/accounts?after={}", query_value(next));
    }
    if json {
        return print(&format!("{:#}\n", serde_json::json!({ "accounts": all })));
    }
    let mut out = format!(
        "{:<33} {:<12} {:<12} {:>9} {:<14} {:<16} snapshot\n",
        "account", "at its host", "our copy", "records", "rev", "restorable by"
    );
    for account in &all {
        let snapshot = match (account["snapshot_rev"].as_str(), account["rev"].as_str()) {
            (None, _) => "none".to_owned(),
            (Some(snapshot), Some(rev)) if snapshot == rev => "current".to_owned(),
            (Some(snapshot), _) => format!("at {snapshot}"),
        };
        let earlier_key = if account["signed_by_earlier_key"].is_null() {
            ""
        } else {
            "  (signed by a key of before its last move or key change)"
        };
        out.push_str(&format!(
            "{:<33} {:<12} {:<12} {:>9} {:<14} {:<16} {snapshot}{}{earlier_key}\n",
            text(&account["did"]),
            text(&account["status"]),
            text(&account["sync"]),
            number(&account["records"]),
            account["rev"].as_str().unwrap_or("-"),
            restorable_by(&account["restore"]),
            account["reason"]
                .as_str()
                .map_or_else(String::new, |reason| format!("  ({reason})")),
        ));
    }
    print(&out)
}

/// Who could restore an account today, in a word or two.
fn restorable_by(restore: &Value) -> &'static str {
    match (restore["by"].as_str(), restore["ready"].as_bool()) {
        (Some("not_needed"), _) => "-",
        (Some("unknown") | None, _) => "not known yet",
        (Some("nobody"), _) => "NOBODY",
        (_, Some(false) | None) => "NOT YET",
        (Some("pds_only"), _) => "its PDS alone",
        (Some("user_below_pds"), _) => "its user or PDS",
        _ => "its user",
    }
}

/// `firekeep alarms` and `firekeep alarms ack`
///
/// # Errors
/// When the daemon does not answer, or there is no such alarm.
pub async fn alarms(config: &Config, command: Option<AlarmCommand>, json: bool) -> Result<u8, DaemonError> {
    let answer = match command {
        None => ask(config.admin_listen, Method::GET, "/control/alarms", SHORT).await?,
        Some(AlarmCommand::Ack { kind, host, subject }) => {
            let by = std::env::var("SUDO_USER")
                .or_else(|_| std::env::var("USER"))
                .unwrap_or_default();
            let path = format!(
                "/control/acknowledge?kind={}&host={}&subject={}&by={}",
                query_value(&kind),
                query_value(host.as_deref().unwrap_or_default()),
                query_value(subject.as_deref().unwrap_or_default()),
                query_value(&by),
            );
            ask(config.admin_listen, Method::POST, &path, SHORT).await?
        }
    };
    if json {
        return print(&format!("{answer:#}\n"));
    }
    let mut out = String::new();
    for alarm in answer["alarms"].as_array().into_iter().flatten() {
        let seen = match alarm["acknowledged"]["by"].as_str() {
            Some(by) => format!("seen by {by}"),
            None => "OPEN".to_owned(),
        };
        out.push_str(&format!(
            "{} {} since {} ({seen})\n  {}\n",
            text(&alarm["kind"]),
            alarm["host"].as_str().unwrap_or("-"),
            text(&alarm["since"]),
            text(&alarm["message"]),
        ));
    }
    if out.is_empty() {
        out.push_str("no alarms\n");
    }
    print(&out)
}

/// `firekeep diff DID --live`. Exit code 0 when equal, 1 when different.
///
/// # Errors
/// When the daemon or the host does not answer.
pub async fn diff(config: &Config, did: &str, json: bool) -> Result<u8, DaemonError> {
    let path = format!("/control/diff?did={}", query_value(did));
    let answer = ask(config.admin_listen, Method::GET, &path, LONG).await?;
    let equal = answer["compared"][0]["only_here"] == 0
        && answer["compared"][0]["only_there"] == 0
        && answer["compared"][0]["changed"] == 0;
    let code = u8::from(!equal);
    if json {
        print(&format!("{answer:#}\n"))?;
        return Ok(code);
    }
    let mut out = format!(
        "{} at {}, rev {}\n",
        did,
        text(&answer["host"]),
        text(&answer["host_rev"])
    );
    for side in answer["compared"].as_array().into_iter().flatten() {
        out.push_str(&format!(
            "ours: {} (rev {}): {} equal, {} only here, {} only there, {} changed\n",
            text(&side["ours"]),
            text(&side["rev"]),
            number(&side["equal"]),
            number(&side["only_here"]),
            number(&side["only_there"]),
            number(&side["changed"]),
        ));
        for (sign, name) in [("<", "only_here"), (">", "only_there"), ("~", "changed")] {
            for path in side["paths"][name].as_array().into_iter().flatten() {
                out.push_str(&format!("  {sign} {}\n", text(path)));
            }
        }
    }
    print(&out)?;
    Ok(code)
}

/// `firekeep health`
///
/// # Errors
/// When the daemon is not ready, or does not answer.
pub async fn health(config: &Config) -> Result<u8, DaemonError> {
    let (status, body) = request(config.admin_listen, Method::GET, "/readyz", SHORT).await?;
    if status == StatusCode::OK {
        return print("ready\n");
    }
    let why = String::from_utf8_lossy(&body).trim().to_owned();
    Err(DaemonError {
        code: exit::FAILED,
        text: format!("not ready: {why}"),
    })
}

async fn ask(
    address: SocketAddr,
    method: Method,
    path: &str,
    within: Duration,
) -> Result<Value, DaemonError> {
    let (status, body) = request(address, method, path, within).await?;
    let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if status == StatusCode::OK {
        return Ok(value);
    }
    let why = value["error"]
        .as_str()
        .map_or_else(|| format!("HTTP {status}"), str::to_owned);
    Err(failed(format!("the daemon on {address} answers: {why}")))
}

async fn request(
    address: SocketAddr,
    method: Method,
    path: &str,
    within: Duration,
) -> Result<(StatusCode, Bytes), DaemonError> {
    let address = reachable(address);
    let no_daemon = |why: &dyn std::fmt::Display| {
        failed(format!(
            "no daemon answers on {address} ({why}); start one with `firekeep run`, or name its address with \
             --admin-listen"
        ))
    };
    let stream = timeout(SHORT, TcpStream::connect(address)).await;
    let stream = stream
        .map_err(|_| no_daemon(&"time ran out"))?
        .map_err(|error| no_daemon(&error))?;
    let (mut sender, connection) =
        timeout(SHORT, hyper::client::conn::http1::handshake(TokioIo::new(stream)))
            .await
            .map_err(|_| no_daemon(&"time ran out"))?
            .map_err(|error| no_daemon(&error))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, address.to_string())
        .header(CONTROL_HEADER, "1")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(error.to_string()))?;
    let answered = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| no_daemon(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        let body = body.map_err(|error| failed(format!("the daemon's answer broke off: {error}")))?;
        Ok((status, body.to_bytes()))
    };
    tokio::select! {
        biased;
        answered = timeout(within, answered) => answered.map_err(|_| no_daemon(&"time ran out"))?,
        error = async { connection.await.err() } => {
            Err(failed(format!("the daemon on {address} hung up{}", error.map_or_else(String::new, |e| format!(": {e}")))))
        }
    }
}

/// An address that listens everywhere is reached on loopback.
const fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The archive's bucket, for reading: a folder that is mistyped is not made.
async fn existing(config: &Config) -> Result<Bucket, DaemonError> {
    let opened = Bucket::open_existing(&config.archive).await;
    opened
        .map_err(|error| failed(error.to_string()))?
        .ok_or_else(|| DaemonError {
            code: exit::NO_BACKUP,
            text: format!(
                "no archive at {}: there is no such folder; check --archive (and that its disk is mounted)",
                config.archive.url
            ),
        })
}

fn failed(text: String) -> DaemonError {
    DaemonError {
        code: exit::FAILED,
        text,
    }
}

fn print(text: &str) -> Result<u8, DaemonError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(0),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(0),
        Err(error) => Err(failed(format!("cannot write to stdout: {error}"))),
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}
