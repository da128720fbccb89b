#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "shell: the network, the terminal"
)]
//! `firekeep plc watch|undo|update|add-key`: an identity looked at again and again, and changed after it was shown what
//! changes. Keys and passwords come from files or the terminal, and stay on this machine.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::restore::{ask, confirmed, directory, endpoint, key_or_ask, password_or_ask, read_text, usage};
use super::{failed, print};
use crate::cli::{PlcAddKeyArgs, PlcUndoArgs, PlcUpdateArgs, PlcWatchArgs, SignerArgs};
use crate::config::Config;
use crate::daemon::{DaemonError, exit};
use crate::identity::plc_log::{PlcLog, operation_cid};
use crate::repo::signing_key::{SecretKey, SigningKey};
use crate::restore::directory::Directory;
use crate::restore::operation::change::{Wanted, undo as undo_in};
use crate::restore::operation::{Draft, Signed};
use crate::restore::pds::Pds;
use crate::restore::plan::rotation_key;
use crate::types::{Cid, Did, DidMethod};

/// How often it is looked whether the directory has what a PDS sent it.
const LOOKS: u32 = 20;

fn account(text: &str) -> Result<Did, DaemonError> {
    let did: Did = text.parse().map_err(|_| usage(format!("{text:?} is no DID")))?;
    match did.method() {
        DidMethod::Plc => Ok(did),
        _ => Err(usage(format!(
            "{did} has no log in a PLC directory: its owner publishes its DID document"
        ))),
    }
}

fn public_key(flag: &str, text: &str) -> Result<SigningKey, DaemonError> {
    SigningKey::from_did_key(text)
        .map_err(|error| usage(format!("{flag} {text:?}: {error}; it must be did:key:z…")))
}

/// `firekeep plc watch`
///
/// # Errors
/// When a log cannot be fetched or does not verify, and it is to be looked at but once.
pub async fn watch(config: &Config, args: &PlcWatchArgs, as_json: bool) -> Result<u8, DaemonError> {
    let dids: Vec<Did> = args
        .dids
        .iter()
        .map(|did| account(did))
        .collect::<Result<_, _>>()?;
    let directory = directory(config, &[])?;
    let mut known: HashMap<Did, Cid> = HashMap::new();
    let mut code = 0;
    loop {
        for did in &dids {
            let log = match directory.log(did).await {
                Ok(log) => log,
                Err(error) if args.once => return Err(error.into()),
                Err(error) => {
                    eprintln!("firekeep: {error}");
                    continue;
                }
            };
            let now = directory.clock.now();
            let told: Option<String> = match known.insert(did.clone(), log.last().cid) {
                Some(before) => log.unexpected(&before, now),
                None => {
                    let recent: Vec<String> = log.recent(now).map(|entry| log.told(entry, now)).collect();
                    (!recent.is_empty())
                        .then(|| format!("{did}: within the last 72 hours\n  {}", recent.join("\n  ")))
                }
            };
            if let Some(told) = told {
                code = exit::FAILED;
                print(&match as_json {
                    true => format!("{}\n", json!({ "did": did.as_str(), "message": told })),
                    false => format!("{told}\n"),
                })?;
            } else if args.once && !as_json {
                print(&format!("{did}: nothing within the last 72 hours\n"))?;
            }
        }
        if args.once {
            return Ok(code);
        }
        tokio::time::sleep(Duration::from_secs(args.every)).await;
    }
}

/// `firekeep plc undo`
///
/// # Errors
/// When the key cannot, or the directory does not take it.
pub async fn undo(config: &Config, args: &PlcUndoArgs, as_json: bool) -> Result<u8, DaemonError> {
    let did = account(&args.did)?;
    let secret = key_or_ask(args.signer.rotation_key_file.as_deref())?;
    let directory = directory(config, &[])?;
    let log = directory.log(&did).await?;
    let undo = undo_in(&log, args.cid.as_deref(), &secret, directory.clock.now()).map_err(failed)?;
    let undone: Vec<String> = undo
        .undone
        .iter()
        .map(|entry| format!("{} of {}", entry.cid, entry.created_at))
        .collect();
    let head = format!(
        "{did}: undoes {} (possible until {})",
        undone.join(", "),
        undo.until
    );
    let change = Change {
        directory: &directory,
        did: &did,
        log: &log,
        head,
    };
    change
        .carry_out(undo.draft, &undo.key, &args.signer, as_json)
        .await
}

/// `firekeep plc update`
///
/// # Errors
/// When it cannot be, or the directory does not take it.
pub async fn update(config: &Config, args: &PlcUpdateArgs, as_json: bool) -> Result<u8, DaemonError> {
    let did = account(&args.did)?;
    for key in &args.add_rotation_keys {
        public_key("--add-rotation-key", key)?;
    }
    let signing_key = args
        .signing_key
        .as_deref()
        .map(|key| public_key("--signing-key", key));
    let wanted = Wanted {
        add_keys: args.add_rotation_keys.clone(),
        drop_keys: args.drop_rotation_keys.clone(),
        signing_key: signing_key.transpose()?,
        handle: args.handle.clone(),
        pds: args
            .pds
            .as_deref()
            .map(|pds| endpoint(config, "--pds", pds))
            .transpose()?,
    };
    let secret = key_or_ask(args.signer.rotation_key_file.as_deref())?;
    let directory = directory(config, &[])?;
    let log = directory.log(&did).await?;
    let (place, key) = rotation_key(&log, &secret).map_err(failed)?;
    let draft = Draft::after(&log).map_err(|error| failed(error.to_string()))?;
    let draft = draft.with(&wanted).map_err(failed)?;
    let head = format!("{did}: changes, signed by rotation key {}", place + 1);
    let change = Change {
        directory: &directory,
        did: &did,
        log: &log,
        head,
    };
    change.carry_out(draft, &key, &args.signer, as_json).await
}

/// A change of an identity that is about to be made.
struct Change<'a> {
    directory: &'a Directory,
    did: &'a Did,
    log: &'a PlcLog,
    head: String,
}

impl Change<'_> {
    /// Shows it, asks, signs and sends it.
    async fn carry_out(
        &self,
        draft: Draft,
        key: &SecretKey,
        args: &SignerArgs,
        as_json: bool,
    ) -> Result<u8, DaemonError> {
        let lines = draft.difference(self.log);
        if !self.go_on(&lines, args.dry_run, args.yes, as_json)? {
            return Ok(0);
        }
        let signed = draft.sign(key).map_err(|error| failed(error.to_string()))?;
        self.directory.submit(self.did, &signed).await?;
        self.told(&signed, &lines, as_json)
    }

    /// Shows what changes; whether it is to be done.
    fn go_on(&self, lines: &[String], dry_run: bool, yes: bool, as_json: bool) -> Result<bool, DaemonError> {
        let text = format!("{}\n  {}\n", self.head, lines.join("\n  "));
        if dry_run {
            print(&match as_json {
                true => format!(
                    "{:#}\n",
                    json!({ "did": self.did.as_str(), "changes": lines, "done": false })
                ),
                false => text,
            })?;
            return Ok(false);
        }
        eprint!("{text}");
        if !yes && !confirmed()? {
            return Err(failed("nothing was changed".to_owned()));
        }
        Ok(true)
    }

    fn told(&self, signed: &Signed, lines: &[String], as_json: bool) -> Result<u8, DaemonError> {
        let (did, cid) = (self.did, signed.cid);
        print(&match as_json {
            true => {
                let operation = Value::Object(signed.json.clone());
                let said = json!({
                    "did": did.as_str(), "changes": lines, "done": true, "cid": cid.to_string(), "operation": operation,
                });
                format!("{said:#}\n")
            }
            false => format!("{did}: done, by operation {cid}\n"),
        })
    }
}

/// `firekeep plc add-key`
///
/// # Errors
/// When the PDS does not sign it, or signs something else.
pub async fn add_key(config: &Config, args: &PlcAddKeyArgs, as_json: bool) -> Result<u8, DaemonError> {
    let did = account(&args.did)?;
    public_key("the key", &args.key)?;
    let first = directory(config, &[])?;
    let log = first.log(&did).await?;
    let current = log
        .current()
        .ok_or_else(|| failed(format!("{did} was given up (a tombstone)")))?;
    let url = current
        .pds
        .as_deref()
        .ok_or_else(|| failed(format!("the identity of {did} names no PDS that could sign this")))?;
    let url = endpoint(config, "the identity's PDS", url)?;
    let wanted = Wanted {
        add_keys: vec![args.key.clone()],
        ..Wanted::default()
    };
    let draft = Draft::after(&log).map_err(|error| failed(error.to_string()))?;
    let draft = draft.with(&wanted).map_err(failed)?;
    let lines = draft.difference(&log);
    let directory = first;
    let change = Change {
        directory: &directory,
        did: &did,
        log: &log,
        head: format!("{did}: changes, signed by its PDS {url}"),
    };
    if !change.go_on(&lines, args.dry_run, args.yes, as_json)? {
        return Ok(0);
    }
    let question = format!("password of {did} at {url} (no app password; it is not shown): ");
    let password = password_or_ask(args.password_file.as_deref(), &question)?;
    let pds = Pds::new(directory.http.clone(), &url, &did, password);
    let Some(token) = token(&pds, args.token_file.as_deref()).await? else {
        eprintln!(
            "firekeep: {url} mailed a token to the account's address; put it into a file, and run the same command \
             again with --token-file"
        );
        return Ok(exit::INCOMPLETE);
    };
    let operation = pds.sign(draft.operation(), &token).await?;
    draft.check_same(&operation).map_err(|why| {
        failed(format!(
            "{url} signed something else: {why}; it was not sent to the directory"
        ))
    })?;
    let cid = operation_cid(&operation).map_err(|error| failed(format!("what {url} signed: {error}")))?;
    let signed = Signed { json: operation, cid };
    pds.submit(&signed).await?;
    for _ in 0..LOOKS {
        if directory.log(&did).await?.last().cid == cid {
            return change.told(&signed, &lines, as_json);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Err(failed(format!(
        "{url} took the operation {cid}, and the directory does not show it yet; look at `firekeep plc log {did}`"
    )))
}

/// The token that the PDS mails: from a file, or mailed now and asked for; none: nobody is there to be asked.
async fn token(pds: &Pds, file: Option<&Path>) -> Result<Option<zeroize::Zeroizing<String>>, DaemonError> {
    if let Some(file) = file {
        return read_text(file).map(Some);
    }
    pds.mail_token().await?;
    if !std::io::stderr().is_terminal() {
        return Ok(None);
    }
    let token = ask("the token that was mailed to you just now: ", "--token-file")?;
    Ok(Some(zeroize::Zeroizing::new(token.trim().to_owned())))
}
