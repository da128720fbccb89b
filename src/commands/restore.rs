#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "shell: files, the network, the terminal"
)]
//! `firekeep restore account`: finds out, shows the plan, asks, and does it.

mod living;
mod secrets;
mod whole;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use zeroize::Zeroizing;

use super::{failed, print, recall};
use crate::cli::RestoreAccountArgs;
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::{DaemonError, exit};
use crate::http::address::AddressPolicy;
use crate::http::client::Upstream;
use crate::identity::document::PdsEndpoint;
use crate::identity::plc_log::PlcLog;
use crate::repo::signing_key::SigningKey;
use crate::restore::account::{Report, Restore, Watcher};
use crate::restore::directory::Directory;
use crate::restore::ledger::{self, Ledger, State, Step};
use crate::restore::pds::Pds;
use crate::restore::plan::{Findings, Given, HandleOwner, Plan, ServerFacts, Standing};
use crate::restore::secret::UserSecret;
use crate::restore::source::Backup;
use crate::restore::{RestoreError, WITHHELD_MAX};
use crate::types::{Did, DidMethod, HostName};

pub use self::living::{blobs, records};
pub(super) use self::secrets::{ask, confirmed, key_or_ask, password_or_ask, read_secret, read_text};
pub use self::whole::pds;

impl From<RestoreError> for DaemonError {
    fn from(error: RestoreError) -> Self {
        let code = match error {
            RestoreError::Failed(_) | RestoreError::Refused(_) => exit::FAILED,
            RestoreError::Unproven(_) => exit::UNVERIFIED,
            RestoreError::NoBackup(_) => exit::NO_BACKUP,
        };
        let text = error.to_string();
        Self { code, text }
    }
}

pub(super) fn usage(text: impl Into<String>) -> DaemonError {
    let (code, text) = (exit::USAGE, text.into());
    DaemonError { code, text }
}

/// What the identity says.
struct Known {
    log: Option<PlcLog>,
    key: Option<SigningKey>,
    handle: Option<String>,
    pds: Option<String>,
}

/// The client, which may reach what the caller names, wherever it is.
pub(super) fn directory(config: &Config, named: &[&str]) -> Result<Directory, DaemonError> {
    let clock = Clock::system();
    let host = |url: &str| -> Option<HostName> {
        let (_, rest) = url.split_once("://")?;
        rest.split('/').next()?.parse().ok()
    };
    let trusted = named
        .iter()
        .copied()
        .chain([config.plc_url.as_str()])
        .filter_map(host);
    let policy = AddressPolicy::new(config.dev_mode, trusted);
    let http = Upstream::new(policy, clock.clone()).map_err(|error| failed(error.to_string()))?;
    Ok(Directory {
        http,
        plc_url: config.plc_url.clone(),
        dev_mode: config.dev_mode,
        clock,
    })
}

/// All that was found out, before anything is changed.
struct Found {
    did: Did,
    /// The new PDS's URL.
    to: String,
    rotation: Option<Arc<UserSecret>>,
    signer: Option<UserSecret>,
    directory: Directory,
    ledger_path: PathBuf,
    /// What the ledger says, if there is one of this restore.
    begun: Option<State>,
    known: Known,
    backup: Backup,
    /// The backup may not be of the moment that was asked for.
    short: bool,
    server: ServerFacts,
    standing: Standing,
    owner: HandleOwner,
    old_pds_active: bool,
    given: Given,
    /// Operations of earlier runs.
    own_operations: Vec<String>,
}

impl Found {
    async fn out(config: &Config, args: &RestoreAccountArgs) -> Result<Self, DaemonError> {
        let did: Did = args
            .did
            .parse()
            .map_err(|_| usage(format!("{:?} is no DID", args.did)))?;
        let to = endpoint(config, "--to", &args.to)?;
        let rotation = secrets::rotation_key(args, &did)?.map(Arc::new);
        let from = args.from.as_deref().unwrap_or_default().trim_end_matches('/');
        let directory = directory(config, &[to.as_str(), from])?;
        Self::of(config, args, (did, to), rotation, directory).await
    }

    async fn of(
        config: &Config,
        args: &RestoreAccountArgs,
        (did, to): (Did, String),
        rotation: Option<Arc<UserSecret>>,
        directory: Directory,
    ) -> Result<Self, DaemonError> {
        let signer = args.signing_key_file.as_deref().map(read_secret).transpose()?;
        let ledger_path = args
            .ledger
            .clone()
            .unwrap_or_else(|| default_ledger(config, &did));
        let begun = ledger::read(&ledger_path)?;
        let known = known(&directory, &did).await?;
        let origin = Origin {
            from: args.from.as_deref(),
            at: args.at.as_deref(),
            blobs: args.blobs.as_deref(),
            keys: &args.keys,
        };
        let (backup, short) = backup(config, &origin, &directory, &did, &known, begun.as_ref()).await?;
        let pds = Pds::new(directory.http.clone(), &to, &did, Zeroizing::default());
        let server = pds.describe().await?;
        let standing = pds.standing().await?;
        let given = Given {
            handle: args
                .handle
                .clone()
                .or_else(|| begun.as_ref().map(|state| state.handle.clone())),
            email: args.email.is_some(),
            invite: args.invite_code_file.is_some(),
            verification: args.verification_code.is_some(),
            dropped: args.drop_rotation_keys.clone(),
            overwrite: args.overwrite,
            ending: args.ending,
        };
        let owner = match (given.handle.as_deref().or(known.handle.as_deref()), &standing) {
            (Some(handle), Standing::Absent) => pds.owner(handle).await?,
            _ => HandleOwner::Nobody,
        };
        let elsewhere = known.pds.as_deref().filter(|pds| pds.trim_end_matches('/') != to);
        let old_pds_active = match elsewhere {
            Some(old) => pds.is_active_at(old).await,
            None => false,
        };
        let mut found = Self {
            did,
            to,
            rotation,
            signer,
            directory,
            ledger_path,
            begun: None,
            known,
            backup,
            short,
            server,
            standing,
            owner,
            old_pds_active,
            given,
            own_operations: Vec::new(),
        };
        found.begun = begun.filter(|state| state.check(&found.fresh("")).is_ok());
        let operations = found.begun.iter().flat_map(|state| &state.operations);
        found.own_operations = operations.map(|kept| kept.cid.clone()).collect();
        Ok(found)
    }

    /// The ledger of this restore before anything was done.
    fn fresh(&self, handle: &str) -> State {
        let facts = &self.backup.facts;
        let (rev, commit) = (facts.rev.to_string(), facts.commit.to_string());
        ledger::begin(
            self.did.as_str(),
            (&self.to, &self.server.did),
            handle,
            &rev,
            &commit,
        )
    }

    fn findings(&self) -> Findings<'_> {
        let begun = self.begun.as_ref();
        Findings {
            did: &self.did,
            backup: &self.backup.facts,
            server: &self.server,
            log: self.known.log.as_ref(),
            signing_key: self.known.key.as_ref(),
            handle: self.known.handle.as_deref(),
            pds: self.known.pds.as_deref(),
            old_pds_active: self.old_pds_active,
            standing: &self.standing,
            owner: &self.owner,
            own_operations: &self.own_operations,
            begun_by_us: begun.is_some(),
            activated_by_us: begun.is_some_and(|state| state.has(Step::Activating)),
            rotation: self.rotation.as_deref(),
            signer: self.signer.as_ref(),
            given: &self.given,
            now: self.directory.clock.now(),
        }
    }
}

/// `firekeep restore account`
///
/// # Errors
/// When it cannot be done, with what to do.
pub async fn account(config: &Config, args: &RestoreAccountArgs, as_json: bool) -> Result<u8, DaemonError> {
    let found = Found::out(config, args).await?;
    let findings = found.findings();
    let plan = findings.plan();
    let gaps = !plan.missing.is_empty() || !plan.too_large.is_empty();
    let incomplete = found.short || !found.backup.facts.withheld.is_empty() || gaps;
    if args.dry_run {
        print(&match as_json {
            true => format!("{:#}\n", findings.json(&plan)),
            false => findings.text(&plan),
        })?;
        return Ok(match (plan.refusals.is_empty(), incomplete) {
            (false, _) => exit::FAILED,
            (true, true) => exit::INCOMPLETE,
            (true, false) => 0,
        });
    }
    eprint!("{}", findings.text(&plan));
    if !plan.refusals.is_empty() {
        return Err(failed("nothing was changed; the plan says why".to_owned()));
    }
    let report = carry_out(&found, &plan, args).await?;
    show(&found, &plan.handle, &report, as_json)?;
    Ok(
        match found.short || !found.backup.facts.withheld.is_empty() || !report.missing.is_empty() {
            true => exit::INCOMPLETE,
            false => 0,
        },
    )
}

async fn carry_out(found: &Found, plan: &Plan, args: &RestoreAccountArgs) -> Result<Report, DaemonError> {
    let password = secrets::password(args, found.standing == Standing::Absent)?;
    let invite = args
        .invite_code_file
        .as_deref()
        .map(secrets::read_text)
        .transpose()?;
    if !args.yes && !secrets::confirmed()? {
        return Err(failed("nothing was changed".to_owned()));
    }
    let mut ledger = Ledger::open(&found.ledger_path, found.fresh(&plan.handle))?;
    let watcher = Terminal::new();
    let pds = Pds::new(found.directory.http.clone(), &found.to, &found.did, password);
    let restore = Restore {
        did: &found.did,
        pds: &pds,
        pds_did: &found.server.did,
        directory: &found.directory,
        backup: &found.backup,
        plan,
        rotation: found.rotation.as_deref(),
        signer: found.signer.as_ref(),
        dropped: &args.drop_rotation_keys,
        email: args.email.as_deref(),
        invite: invite.as_ref().map(|text| text.as_str()),
        verification: args.verification_code.as_deref(),
        admin: None,
        temp_dir: &std::env::temp_dir(),
        watcher: &watcher,
    };
    let report = restore.run(&mut ledger).await;
    watcher.bar.finish_and_clear();
    report.map_err(|error| with_ledger(error, ledger.path()))
}

fn with_ledger(error: RestoreError, path: &Path) -> DaemonError {
    let mut error = DaemonError::from(error);
    error.text = format!("{}\n  what was done is in {}", error.text, path.display());
    error
}

/// A DID as the name of a file.
fn file_name(did: &Did) -> String {
    did.as_str()
        .replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-")
}

fn default_ledger(config: &Config, did: &Did) -> PathBuf {
    let name = file_name(did);
    config.data_dir.join("restore").join(format!("{name}.json"))
}

async fn known(directory: &Directory, did: &Did) -> Result<Known, DaemonError> {
    if did.method() == DidMethod::Plc {
        let log = directory.log(did).await?;
        let state = log.current().cloned();
        return Ok(Known {
            key: state.as_ref().and_then(|state| state.signing_key.clone()),
            handle: state.as_ref().and_then(|state| state.handle.clone()),
            pds: state.and_then(|state| state.pds),
            log: Some(log),
        });
    }
    let document = directory.document(did).await?;
    Ok(Known {
        log: None,
        key: document.key,
        handle: document.handle,
        pds: document.host.map(|host| host.origin()),
    })
}

/// The address of a PDS.
pub(super) fn endpoint(config: &Config, what: &str, url: &str) -> Result<String, DaemonError> {
    let endpoint = PdsEndpoint::parse(url, config.dev_mode);
    let endpoint = endpoint.map_err(|error| usage(format!("{what} {url:?}: {error}")))?;
    Ok(endpoint.origin())
}

/// Where a backup is, as the command line says it.
struct Origin<'a> {
    from: Option<&'a str>,
    at: Option<&'a str>,
    blobs: Option<&'a Path>,
    keys: &'a [String],
}

/// Opens and proves the backup. True: it may not be what was asked for.
async fn backup(
    config: &Config,
    origin: &Origin<'_>,
    directory: &Directory,
    did: &Did,
    known: &Known,
    begun: Option<&State>,
) -> Result<(Backup, bool), DaemonError> {
    let mut keys: Vec<SigningKey> = Vec::new();
    for text in origin.keys {
        let key = SigningKey::from_did_key(text);
        keys.push(key.map_err(|error| usage(format!("--key {text:?}: {error}")))?);
    }
    keys.extend(known.key.clone());
    if let Some(log) = &known.log {
        keys.extend(log.signing_keys().iter().map(|logged| logged.key().clone()));
    }
    let temp_dir = std::env::temp_dir();
    let from = origin.from.unwrap_or_default();
    let of_archive = from.is_empty() || from.starts_with("file://") || from.starts_with("s3://");
    let of_host = from.starts_with("https://") || from.starts_with("http://");
    if !of_archive && origin.at.is_some() {
        return Err(usage("--at is for archives; anything else holds one moment"));
    }
    if origin.blobs.is_some() && (of_archive || of_host) {
        return Err(usage(
            "--blobs belongs to a .car file; an archive or a Firekeep has its own",
        ));
    }
    if of_archive {
        // What was begun goes on with the same moment, though the archive may have newer ones by now.
        let at = origin.at.or_else(|| begun.map(|state| state.rev.as_str()));
        let (reader, rebuilt, notes, short) = recall::moment(config, did, at, &keys).await?;
        return Ok((
            Backup::of_archive(rebuilt, reader, notes, &temp_dir).await?,
            short,
        ));
    }
    let backup = if of_host {
        let url = from.trim_end_matches('/');
        Backup::of_host(directory.http.clone(), url, did, &keys, &temp_dir).await?
    } else {
        Backup::of_file(Path::new(from), origin.blobs, did, &keys, &temp_dir)?
    };
    Ok((backup, false))
}

fn show(found: &Found, handle: &str, report: &Report, as_json: bool) -> Result<(), DaemonError> {
    let (did, to, withheld) = (&found.did, &found.to, &found.backup.facts.withheld);
    let (blobs, of) = report.blobs;
    if as_json {
        let missing = report
            .missing
            .iter()
            .map(|(cid, why)| json!({ "cid": cid, "why": why }));
        let value = json!({
            "did": did.as_str(),
            "pds": to,
            "handle": handle,
            "rev": report.rev,
            "records": report.records,
            "withheld": withheld.len(),
            "withheld_records": withheld.iter().take(WITHHELD_MAX).collect::<Vec<_>>(),
            "blobs": blobs,
            "blobs_expected": of,
            "blobs_missing": missing.collect::<Vec<_>>(),
            "signing_key": report.signing_key,
            "undoable_until": report.undoable_until.map(|time| time.to_string()),
        });
        print(&format!("{value:#}\n"))?;
        return Ok(());
    }
    let records = match report.records {
        Some(records) => format!("{records} records read back and equal to the backup"),
        None => "its records were compared by an earlier run, and not by this one".to_owned(),
    };
    let mut text = format!("{did} is active at {to} as {handle}: {records}, {blobs} of {of} blobs\n");
    if !withheld.is_empty() {
        text.push_str(&format!(
            "{} of the records are there by name alone:\n",
            withheld.len()
        ));
    }
    for path in withheld.iter().take(WITHHELD_MAX) {
        text.push_str(&format!("erased from the backup: {path}\n"));
    }
    for (cid, why) in report.missing.iter().take(100) {
        text.push_str(&format!("missing: blob {cid}: {why}\n"));
    }
    if let Some(until) = report.undoable_until {
        text.push_str(&format!(
            "until {until} a holder of a stronger rotation key can undo the change of the identity\n"
        ));
    }
    text.push_str("preferences are private and no part of this backup; set them again\n");
    print(&text)?;
    Ok(())
}

/// Tells of the steps on stderr, with a bar for blobs where somebody looks.
struct Terminal {
    bar: ProgressBar,
}

impl Terminal {
    fn new() -> Self {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} blobs, {eta} left");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self { bar }
    }
}

impl Watcher for Terminal {
    fn say(&self, text: &str) {
        self.bar.suspend(|| {
            // Nobody may be there to read it.
            let _unread = writeln!(std::io::stderr(), "firekeep: {text}");
        });
    }

    fn blobs(&self, done: u64, of: u64) {
        self.bar.set_length(of);
        self.bar.set_position(done);
    }
}

/// For the commands beside this one.
pub(super) fn secret_of(text: &str) -> Result<UserSecret, DaemonError> {
    UserSecret::parse(text).map_err(|error| failed(error.to_string()))
}
