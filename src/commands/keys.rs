#![allow(clippy::disallowed_methods, reason = "shell: files, entropy, the network")]
//! `firekeep key` and `firekeep plc`: rotation keys, and the log of an identity.

use std::fs::OpenOptions;
use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::restore::{directory, read_secret};
use super::{failed, print};
use crate::cli::CurveArg;
use crate::config::Config;
use crate::daemon::{DaemonError, exit};
use crate::identity::plc_log::{PlcEntry, RECOVERY_WINDOW};
use crate::repo::signing_key::{Curve, SigningKey};
use crate::restore::secret::UserSecret;
use crate::serve::password::{AdminPassword, PASSWORD_BYTES_MAX};
use crate::types::{Did, Timestamp};

/// `firekeep key generate`
///
/// # Errors
/// When the file is there already, or cannot be written.
pub fn generate(curve: CurveArg, path: &Path, as_json: bool) -> Result<u8, DaemonError> {
    let curve = match curve {
        CurveArg::K256 => Curve::K256,
        CurveArg::P256 => Curve::P256,
    };
    let mut bytes = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| failed("the system gives no randomness".to_owned()))?;
    let secret = UserSecret::from_random(curve, bytes).map_err(|error| failed(error.to_string()))?;
    let cannot = |error: std::io::Error| failed(format!("cannot write {}: {error}", path.display()));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = file.map_err(cannot)?;
    let text = secret.to_multikey();
    file.write_all(text.as_bytes())
        .and_then(|()| file.write_all(b"\n"))
        .map_err(cannot)?;
    file.sync_all().map_err(cannot)?;
    told(&secret, as_json)
}

/// `firekeep admin-password`
///
/// # Errors
/// When the password cannot be one, or the file is there already.
pub fn admin_password(path: &Path) -> Result<u8, DaemonError> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| failed("the system gives no randomness".to_owned()))?;
    if std::io::stdin().is_terminal() {
        // Whoever looks on sees it: this program changes no terminal.
        eprint!("The admin's password (it is shown as you type): ");
    }
    let mut line = Zeroizing::new(String::new());
    let read = std::io::stdin()
        .lock()
        .take(PASSWORD_BYTES_MAX as u64 + 2)
        .read_line(&mut line);
    read.map_err(|error| failed(format!("cannot read the password: {error}")))?;
    let hash = AdminPassword::hash(line.trim_end_matches(['\r', '\n']), salt);
    let hash = hash.map_err(|why| DaemonError {
        code: exit::USAGE,
        text: format!("the password {why}"),
    })?;
    let cannot = |error: std::io::Error| failed(format!("cannot write {}: {error}", path.display()));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = file.map_err(cannot)?;
    file.write_all(format!("{hash}\n").as_bytes()).map_err(cannot)?;
    file.sync_all().map_err(cannot)?;
    print(&format!("wrote {}\n", path.display()))
}

/// `firekeep key show`
///
/// # Errors
/// When the file holds no key.
pub fn show(path: &Path, as_json: bool) -> Result<u8, DaemonError> {
    told(&read_secret(path)?, as_json)
}

fn told(secret: &UserSecret, as_json: bool) -> Result<u8, DaemonError> {
    let publics: Vec<(&str, String)> = secret
        .keys()
        .iter()
        .map(|key| match key.public().curve() {
            Curve::K256 => ("k256", key.public().to_did_key()),
            Curve::P256 => ("p256", key.public().to_did_key()),
        })
        .collect();
    if as_json {
        let list: Vec<Value> = publics
            .iter()
            .map(|(curve, key)| json!({ "curve": curve, "did_key": key }))
            .collect();
        return print(&format!("{:#}\n", json!({ "keys": list })));
    }
    let lines: Vec<String> = publics
        .iter()
        .map(|(curve, key)| format!("{curve} {key}\n"))
        .collect();
    let note = match lines.len() {
        1 => "",
        _ => "(hexadecimal digits do not tell the curve: it is one of these)\n",
    };
    print(&(lines.concat() + note))
}

/// `firekeep plc log` and, without `whole`, `firekeep plc verify`
///
/// # Errors
/// When the log cannot be fetched, or does not verify.
pub async fn plc_log(config: &Config, did: &str, whole: bool, as_json: bool) -> Result<u8, DaemonError> {
    let did: Did = did.parse().map_err(|_| DaemonError {
        code: exit::USAGE,
        text: format!("{did:?} is no DID"),
    })?;
    let directory = directory(config, &[])?;
    let log = directory.log(&did).await?;
    let now = directory.clock.now();
    let entries = log.entries();
    let undone = entries.iter().filter(|entry| entry.nullified).count();
    if as_json {
        let list: Vec<Value> = entries.iter().map(|entry| entry_json(entry, now)).collect();
        let mut value = json!({ "did": did.as_str(), "verified": true, "operations": entries.len(), "nullified": undone });
        if whole {
            value["log"] = list.into();
        }
        return print(&format!("{value:#}\n"));
    }
    let mut text = String::new();
    if whole {
        entries
            .iter()
            .for_each(|entry| text.push_str(&entry_text(entry, now)));
    }
    text.push_str(&format!(
        "{did}: {} operations, {undone} of them undone; the log verifies\n",
        entries.len()
    ));
    print(&text)
}

/// How long it may still be undone, in seconds; none: not any more.
fn undoable(entry: &PlcEntry, now: Timestamp) -> Option<u64> {
    let age = now.since(entry.created_at);
    let open = entry.operation.get("prev").is_some_and(|prev| !prev.is_null());
    (open && !entry.nullified && age < RECOVERY_WINDOW).then(|| (RECOVERY_WINDOW - age).as_secs())
}

fn entry_json(entry: &PlcEntry, now: Timestamp) -> Value {
    let state = entry.state.as_ref();
    json!({
        "cid": entry.cid.to_string(),
        "time": entry.created_at.to_string(),
        "nullified": entry.nullified,
        "undoable_seconds": undoable(entry, now),
        "tombstone": state.is_none(),
        "handle": state.and_then(|state| state.handle.as_deref()),
        "pds": state.and_then(|state| state.pds.as_deref()),
        "signing_key": state.and_then(|state| state.signing_key.as_ref()).map(SigningKey::to_did_key),
        "rotation_keys": state.map(|state| &state.rotation_keys),
    })
}

fn entry_text(entry: &PlcEntry, now: Timestamp) -> String {
    let mut text = format!("{} {}", entry.created_at, entry.cid);
    if entry.nullified {
        text.push_str("  UNDONE by a stronger key");
    }
    if let Some(seconds) = undoable(entry, now) {
        text.push_str(&format!(
            "  a stronger key can undo it for {} h more",
            seconds.div_ceil(3600)
        ));
    }
    let Some(state) = &entry.state else {
        return text + "\n  tombstone: the identity is given up\n";
    };
    let none = "none";
    text.push_str(&format!(
        "\n  {} at {}\n  signs with  {}\n",
        state.handle.as_deref().unwrap_or(none),
        state.pds.as_deref().unwrap_or(none),
        state
            .signing_key
            .as_ref()
            .map_or_else(|| none.to_owned(), SigningKey::to_did_key)
    ));
    for (place, key) in state.rotation_keys.iter().enumerate() {
        text.push_str(&format!("  rotation {}  {key}\n", place + 1));
    }
    text
}
