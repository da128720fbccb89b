#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "shell: files, the archive"
)]
//! `firekeep state`: a PDS's private state, from its folder to the drop folder, and from the archive into a folder.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::restore::read_text;
use super::{failed, print};
use crate::archive::names::{DidFolder, HostFolder, ObjectName, StateName, StatePart};
use crate::archive::reader::{ArchiveReader, ReadError};
use crate::cli::{StateBackupArgs, StateExtractArgs, StateListArgs, StateOpenArgs};
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::{DaemonError, exit};
use crate::state::crypt::{Keys, Recipients};
use crate::state::private::{Private, shard};
use crate::state::{DATABASES, SETTINGS, StateError, drop_box, held, read};
use crate::types::cid::sha256;
use crate::types::{HostName, Timestamp};

impl From<StateError> for DaemonError {
    fn from(error: StateError) -> Self {
        failed(error.0)
    }
}

/// What was backed up: to whom, and of each part the hash of what it was.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Seen {
    recipients: String,
    parts: BTreeMap<String, String>,
}

impl Seen {
    fn read(path: &Path) -> Result<Self, DaemonError> {
        match std::fs::read(path) {
            // One that cannot be read costs no more than that everything is backed up again.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(format!("cannot read {}: {error}", path.display()))),
        }
    }

    fn write(&self, path: &Path) -> Result<(), DaemonError> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::with_prefix_in(".firekeep-", folder)?;
            serde_json::to_writer(&mut file, self)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|error| failed(format!("cannot write {}: {error}", path.display())))
    }
}

fn host_folder(text: &str) -> Result<HostFolder, DaemonError> {
    let host: HostName = text
        .parse()
        .map_err(|error| failed(format!("--host {text:?}: {error}")))?;
    HostFolder::try_from(&host).map_err(|error| failed(error.to_string()))
}

/// One round of `firekeep state backup`.
struct Round<'a> {
    args: &'a StateBackupArgs,
    host: HostFolder,
    time: Timestamp,
    recipients: Recipients,
    seen: Seen,
    written: u64,
    same: u64,
}

impl Round<'_> {
    fn take(&mut self, part: StatePart, plain: &[u8]) -> Result<(), DaemonError> {
        let name = StateName {
            host: self.host.clone(),
            time: self.time,
            part,
        };
        let key = match &name.part {
            StatePart::Named(part) => part.as_str().to_owned(),
            StatePart::Account(did) => did.to_string(),
        };
        let hash = HEXLOWER.encode(&sha256(plain));
        if self.seen.parts.get(&key) == Some(&hash) && !self.args.all {
            self.same += 1;
            return Ok(());
        }
        let cipher = self.recipients.encrypt(plain)?;
        drop_box::leave(&self.args.drop, &name, &cipher)?;
        self.seen.parts.insert(key, hash);
        self.written += 1;
        Ok(())
    }
}

/// `firekeep state backup`
///
/// # Errors
/// When there is no recipient, or the PDS's folder or the drop folder cannot be used.
pub fn backup(args: &StateBackupArgs, as_json: bool) -> Result<u8, DaemonError> {
    let mut text = args.recipients.join("\n");
    if let Some(path) = &args.recipients_file {
        let read = std::fs::read_to_string(path);
        let read = read.map_err(|error| failed(format!("cannot read {}: {error}", path.display())))?;
        text = format!("{text}\n{read}");
    }
    let recipients = Recipients::parse(&text)?;
    if !args.drop.is_dir() {
        return Err(failed(format!(
            "{} is no folder; make it first",
            args.drop.display()
        )));
    }
    let path = args.seen.clone().unwrap_or_else(|| {
        let mut name = args.drop.as_os_str().to_owned();
        name.push(".seen.json");
        PathBuf::from(name)
    });
    let mut seen = Seen::read(&path)?;
    let fingerprint = HEXLOWER.encode(&recipients.fingerprint);
    if seen.recipients != fingerprint {
        // What was written to others is written again.
        seen = Seen {
            recipients: fingerprint,
            parts: BTreeMap::new(),
        };
    }
    let mut round = Round {
        args,
        host: host_folder(&args.host)?,
        time: Clock::system().now(),
        recipients,
        seen,
        written: 0,
        same: 0,
    };
    let outcome = round.all();
    // What was written was written, whatever came then.
    round.seen.write(&path)?;
    let absent = outcome?;
    let (written, same) = (round.written, round.same);
    if as_json {
        let value = json!({ "written": written, "unchanged": same, "absent": absent });
        print(&format!("{value:#}\n"))?;
    } else {
        print(&format!(
            "{written} parts written, encrypted, to {}; {same} had not changed\n",
            args.drop.display()
        ))?;
        for what in &absent {
            eprintln!("firekeep: {what}");
        }
    }
    Ok(match absent.is_empty() {
        true => 0,
        false => exit::INCOMPLETE,
    })
}

impl Round<'_> {
    /// What is not there.
    fn all(&mut self) -> Result<Vec<String>, DaemonError> {
        let data = &self.args.pds_dir;
        let mut absent = Vec::new();
        // Accounts come first: who is made meanwhile has no key yet in what is read, and comes with the next round.
        let mut here = Vec::new();
        for (did, folder) in read::accounts(data)? {
            let Ok(name) = DidFolder::try_from(&did) else {
                absent.push(format!("{did}: its name is too long for an archive"));
                continue;
            };
            let Some(private) = read::private(&did, &folder)? else {
                continue;
            };
            if private.key.is_none() {
                absent.push(format!("{did}: it has no key in {}", folder.display()));
            }
            self.take(StatePart::Account(name), &private.encode()?)?;
            here.push(did.to_string());
        }
        self.seen
            .parts
            .retain(|key, _| !key.starts_with("did:") || here.contains(key));
        for (part, file) in DATABASES {
            let path = data.join(file);
            match read::database(&path)? {
                Some(bytes) => self.take(StatePart::Named(part.parse().expect("a part")), &bytes)?,
                None => absent.push(format!("there is no {}", path.display())),
            }
        }
        let path = self
            .args
            .env_file
            .clone()
            .unwrap_or_else(|| data.join(SETTINGS.1));
        match read::small(&path)? {
            Some(bytes) => self.take(StatePart::Named(SETTINGS.0.parse().expect("a part")), &bytes)?,
            None => absent.push(format!("there is no {}: name it with --env-file", path.display())),
        }
        Ok(absent)
    }
}

fn unread(error: &ReadError) -> DaemonError {
    let code = match error {
        ReadError::NoArchive { .. } => exit::NO_BACKUP,
        _ => exit::FAILED,
    };
    let text = error.to_string();
    DaemonError { code, text }
}

async fn open(config: &Config) -> Result<ArchiveReader, DaemonError> {
    let reader = ArchiveReader::open(&config.archive, &std::env::temp_dir()).await;
    reader.map_err(|error| unread(&error))
}

fn part_text(part: &StatePart) -> String {
    match part {
        StatePart::Named(part) => part.as_str().to_owned(),
        StatePart::Account(did) => did.to_string(),
    }
}

/// `firekeep state list`
///
/// # Errors
/// When the archive cannot be read, or holds none.
pub async fn list(config: &Config, args: &StateListArgs, as_json: bool) -> Result<u8, DaemonError> {
    let reader = open(config).await?;
    let host = args.host.as_deref().map(host_folder).transpose()?;
    let host = host.as_ref().map(HostFolder::host);
    let objects = match args.all {
        true => reader.state_objects().await.map(|all| {
            let of = all.into_iter();
            of.filter(|(name, _)| host.is_none_or(|host| name.host.host() == host))
                .collect()
        }),
        false => held::newest(&reader, host, None).await,
    };
    let objects = objects.map_err(|error| unread(&error))?;
    if objects.is_empty() {
        return Err(none(&reader));
    }
    if as_json {
        let list = objects.iter().map(|(name, size)| {
            json!({
                "host": name.host.to_string(),
                "part": part_text(&name.part),
                "time": name.time.to_string(),
                "bytes": size,
                "object": ObjectName::State(name.clone()).to_string(),
            })
        });
        let list: Value = list.collect();
        return print(&format!("{:#}\n", json!({ "state": list })));
    }
    let lines = objects.iter().map(|(name, size)| {
        let (host, time, part) = (&name.host, name.time, part_text(&name.part));
        format!("{host}  {time}  {size:>12}  {part}\n")
    });
    print(&lines.collect::<String>())
}

fn none(reader: &ArchiveReader) -> DaemonError {
    DaemonError {
        code: exit::NO_BACKUP,
        text: format!(
            "{} holds no private state of a PDS; see `firekeep state backup --help`",
            reader.place()
        ),
    }
}

/// What is opened: the newest of each part of one host, less what was erased.
async fn chosen(reader: &ArchiveReader, args: &StateOpenArgs) -> Result<(Keys, Vec<StateName>), DaemonError> {
    let keys = read_text(&args.identity_file)?;
    let keys =
        Keys::parse(&keys).map_err(|error| failed(format!("{}: {error}", args.identity_file.display())))?;
    let until: Option<Timestamp> = match &args.at {
        None => None,
        Some(text) => Some(
            text.parse()
                .map_err(|_| failed(format!("--at {text:?} is no time, such as 2026-01-02T03:04:05Z")))?,
        ),
    };
    let host = args.host.as_deref().map(host_folder).transpose()?;
    let newest = held::newest(reader, host.as_ref().map(HostFolder::host), until).await;
    let newest = newest.map_err(|error| unread(&error))?;
    let erased = reader.all_erased().await.map_err(|error| unread(&error))?;
    let names: Vec<StateName> = newest
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| !matches!(&name.part, StatePart::Account(did) if erased.contains(did.did())))
        .collect();
    let Some(first) = names.first() else {
        return Err(none(reader));
    };
    if names.iter().any(|name| name.host != first.host) {
        return Err(failed(
            "the archive has the state of several PDSes; choose one with --host".to_owned(),
        ));
    }
    Ok((keys, names))
}

/// `firekeep state verify`
///
/// # Errors
/// When the archive or the key cannot be read.
pub async fn verify(config: &Config, args: &StateOpenArgs, as_json: bool) -> Result<u8, DaemonError> {
    let reader = open(config).await?;
    let (keys, names) = chosen(&reader, args).await?;
    let (mut good, mut bad) = (0u64, Vec::new());
    for name in &names {
        let opened = held::open(&reader, name, &keys).await;
        match opened.map_err(|error| unread(&error))? {
            Ok(_) => good += 1,
            Err(error) => bad.push((ObjectName::State(name.clone()).to_string(), error.to_string())),
        }
    }
    let parts: Vec<String> = names.iter().map(|name| part_text(&name.part)).collect();
    let wanted = DATABASES.iter().map(|(part, _)| *part).chain([SETTINGS.0]);
    let absent: Vec<&str> = wanted
        .filter(|part| !parts.iter().any(|known| known == part))
        .collect();
    if as_json {
        let findings = bad
            .iter()
            .map(|(object, why)| json!({ "object": object, "why": why }));
        let value = json!({ "good": good, "bad": findings.collect::<Vec<_>>(), "absent": absent });
        print(&format!("{value:#}\n"))?;
    } else {
        let mut text = format!("{good} parts open with this key, and are what they should be\n");
        for (object, why) in &bad {
            text.push_str(&format!("BAD: {object}: {why}\n"));
        }
        for part in &absent {
            text.push_str(&format!("not there: {part}\n"));
        }
        print(&text)?;
    }
    Ok(match (bad.is_empty(), absent.is_empty()) {
        (false, _) => exit::UNVERIFIED,
        (true, false) => exit::INCOMPLETE,
        (true, true) => 0,
    })
}

/// `firekeep state extract`
///
/// # Errors
/// When a part cannot be opened, or the folder cannot be made.
pub async fn extract(config: &Config, args: &StateExtractArgs, as_json: bool) -> Result<u8, DaemonError> {
    let reader = open(config).await?;
    let (keys, names) = chosen(&reader, &args.open).await?;
    let cannot =
        |path: &Path, error: std::io::Error| failed(format!("cannot write {}: {error}", path.display()));
    let mut folders = std::fs::DirBuilder::new();
    folders.mode(0o700);
    folders
        .create(&args.to)
        .map_err(|error| cannot(&args.to, error))?;
    folders.recursive(true);
    let write = |path: &Path, bytes: &[u8]| {
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
        written.map_err(|error| cannot(path, error))
    };
    let (mut accounts, mut parts, mut bad) = (0u64, 0u64, Vec::new());
    for name in &names {
        let opened = held::open(&reader, name, &keys).await;
        let plain = match opened.map_err(|error| unread(&error))? {
            Ok(plain) => plain,
            Err(error) => {
                bad.push(format!("{}: {error}", ObjectName::State(name.clone())));
                continue;
            }
        };
        match &name.part {
            StatePart::Named(part) => {
                let known = DATABASES.iter().chain([&SETTINGS]);
                let mut known = known.filter(|(known, _)| *known == part.as_str());
                let file = known.next().map_or(part.as_str(), |(_, file)| file);
                write(&args.to.join(file), &plain)?;
                parts += 1;
            }
            StatePart::Account(did) => {
                let private = Private::decode(&plain, did.did())?;
                let folder = args
                    .to
                    .join("actors")
                    .join(shard(did.did()))
                    .join(did.to_string());
                folders.create(&folder).map_err(|error| cannot(&folder, error))?;
                if let Some(key) = &private.key {
                    write(&folder.join("key"), key)?;
                }
                let list = private.preferences.iter().map(|(name, json)| {
                    let value: Value = serde_json::from_str(json).unwrap_or_default();
                    json!({ "name": name, "value": value })
                });
                let list: Value = list.collect();
                write(&folder.join("preferences.json"), format!("{list:#}\n").as_bytes())?;
                accounts += 1;
            }
        }
    }
    for line in &bad {
        eprintln!("firekeep: {line}");
    }
    let to = args.to.display();
    print(&match as_json {
        true => format!(
            "{:#}\n",
            json!({ "parts": parts, "accounts": accounts, "bad": bad })
        ),
        false => format!(
            "{parts} parts and {accounts} accounts are in {to}, which holds every secret of the PDS\n"
        ),
    })?;
    Ok(match bad.is_empty() {
        true => 0,
        false => exit::UNVERIFIED,
    })
}
