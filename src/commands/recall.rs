#![allow(clippy::disallowed_methods, reason = "shell: the archive")]
//! The commands that read the archive alone: `history`, `ls`, `cat`, `diff --from` and `export`.
//!
//! Nothing here needs a mirror or a daemon, or writes to the archive. Whatever is shown was proven: the records build
//! the tree that the commit signs. What is broken in an archive is said on stderr, with what it may hide; the answer
//! is given as far as it goes, with exit code 3.

mod ask;
mod export;
mod moment;
mod output;
mod record_files;
mod versions;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::Bound;

use serde_json::{Value, json};

use self::ask::{Part, Subject, parse_at, parse_keys};
use crate::archive::reader::{ArchiveReader, ReadError};
use crate::archive::rebuild::{RebuildError, Rebuilt};
use crate::archive::timeline::{At, Fault, Hides, Moment, NoMoment, Timeline};
use crate::cli::{AtArgs, CatArgs, DiffArgs, HistoryArgs, JudgeArgs, LsArgs};
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::{DaemonError, exit};
use crate::repo::json::{bytes_to_json, record_to_json};
use crate::repo::signing_key::SigningKey;
use crate::types::{Cid, Did, RepoPath, Timestamp};

pub use export::export;
pub(super) use moment::moment;

/// Older moments that are tried when one cannot be put together.
const OLDER_TRIES: usize = 16;
/// How often an archive is looked at anew when it changes while it is read.
const MOVED_TRIES: u32 = 4;
/// Where identities lie.
const IDENTITIES: &str = "v1/identity/";
/// Most lines about what is broken.
const NOTES_MAX: usize = 20;

/// What a command found: for stdout, for stderr, and for the shell.
#[derive(Debug)]
pub struct Answer {
    /// For people.
    pub text: Vec<u8>,
    /// For programs.
    pub json: Value,
    /// What to know about it, a line each.
    pub notes: Vec<String>,
    /// The exit code.
    pub code: u8,
}

impl Answer {
    /// Prints it: data to stdout, notes to stderr.
    ///
    /// # Errors
    /// When stdout takes no more, though somebody reads it.
    pub fn print(self, json: bool) -> Result<u8, DaemonError> {
        let mut notes = std::io::stderr().lock();
        for note in &self.notes {
            // Nobody may be there to read them; the code says it too.
            let _unread = writeln!(notes, "firekeep: {note}");
        }
        let text = match json {
            true => format!("{:#}\n", self.json).into_bytes(),
            false => self.text,
        };
        let mut out = std::io::stdout().lock();
        match out.write_all(&text).and_then(|()| out.flush()) {
            Ok(()) => Ok(self.code),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(self.code),
            Err(error) => Err(failed(format!("cannot write to stdout: {error}"))),
        }
    }
}

/// An archive, and what it says of one account.
struct Account {
    reader: ArchiveReader,
    did: Did,
    line: Timeline,
    /// How its moments are judged.
    as_received: bool,
    /// Those that were given: one of them must have signed.
    keys: Vec<SigningKey>,
    /// Without any: those that the archive names.
    archived_keys: Vec<SigningKey>,
    now: Timestamp,
}

/// A moment that was asked for, proven.
struct Found {
    moment: Moment,
    rebuilt: Rebuilt,
    /// What to know about it.
    notes: Vec<String>,
    /// It may not be what was asked for.
    short: bool,
}

impl Account {
    async fn open(
        config: &Config,
        did: &Did,
        watch: Option<&RepoPath>,
        judge: &JudgeArgs,
    ) -> Result<Self, DaemonError> {
        let keys = parse_keys(&judge.keys).map_err(usage)?;
        let reader = ArchiveReader::open(&config.archive, &std::env::temp_dir()).await;
        let reader = reader.map_err(|error| unread(&error))?;
        let line = reader.timeline(did, watch).await;
        let mut line = line.map_err(|error| unread(&error))?;
        let archived_keys = match keys.is_empty() {
            true => archived_keys(&reader, did, &mut line).await?,
            false => Vec::new(),
        };
        Ok(Self {
            reader,
            did: did.clone(),
            line,
            as_received: judge.as_received,
            keys,
            archived_keys,
            now: Clock::system().now(),
        })
    }

    /// What is broken in the archive, a line each.
    fn faults(&self) -> Vec<String> {
        let mut notes: Vec<String> = self
            .line
            .faults
            .iter()
            .take(NOTES_MAX)
            .map(|fault| fault.to_string())
            .collect();
        if self.line.faults.len() > NOTES_MAX {
            notes.push(format!("and {} faults more", self.line.faults.len() - NOTES_MAX));
        }
        notes
    }

    /// Finds and proves the moment of a text as `--at` takes it. Where it cannot be put together, and was asked for
    /// by time, the newest before it that can.
    async fn find(&mut self, at: Option<&str>) -> Result<Found, DaemonError> {
        let at = parse_at(at, self.as_received, self.now).map_err(usage)?;
        for _ in 0..MOVED_TRIES {
            match self.find_in_line(at).await? {
                Ok(found) => return Ok(found),
                // A daemon at work has moved it from a segment to a delta, say.
                Err(vanished) => tracing::debug!("{vanished} vanished; the archive is listed again"),
            }
            let line = self.reader.timeline(&self.did, None).await;
            self.line = line.map_err(|error| unread(&error))?;
        }
        Err(failed(format!(
            "{} changes faster than it can be read; try again",
            self.reader.place()
        )))
    }

    /// As [`Self::find`]; the inner error is the name of an object that is no longer there.
    async fn find_in_line(&self, at: At) -> Result<Result<Found, String>, DaemonError> {
        let choice = self.line.choose(at).map_err(|error| self.no_moment(&error))?;
        let mut notes: Vec<String> = Vec::new();
        let mut short = false;
        if let Some(doubt) = choice.doubt {
            short = true;
            notes.push(format!("this may not be the newest moment of then: {doubt}"));
        }
        let rebuildable = self.line.rebuildable();
        let older = (0..choice.index).rev().filter(|index| rebuildable[*index]);
        let mut first = None;
        for index in std::iter::once(choice.index).chain(older.take(OLDER_TRIES)) {
            match self
                .reader
                .rebuild(&self.did, &self.line, index, &self.keys)
                .await
            {
                Ok(mut rebuilt) => {
                    let moment = self.line.moments[index].clone();
                    if let Some(error) = &first {
                        short = true;
                        notes.push(format!(
                            "{error}; given instead: rev {} of {}, the newest before it that can be proven",
                            moment.rev, moment.time
                        ));
                    }
                    if !self.archived_keys.is_empty() && !rebuilt.hold_against(&self.archived_keys) {
                        short = true;
                        notes.push(format!(
                            "commit {} is signed by none of the keys that the archive's identity objects name: it \
                             was signed with a newer key, or by somebody else; give the right one with --key",
                            rebuilt.commit
                        ));
                    }
                    let used = std::mem::take(&mut rebuilt.warnings);
                    notes.extend(used.into_iter().map(|warning| format!("not used: {warning}")));
                    return Ok(Ok(Found {
                        moment,
                        rebuilt,
                        notes,
                        short,
                    }));
                }
                Err(RebuildError::Read(ReadError::Vanished(object))) => return Ok(Err(object)),
                Err(RebuildError::Read(error)) => return Err(unread(&error)),
                Err(error) => drop(first.get_or_insert(error)),
            }
            if matches!(at, At::Rev(_)) {
                break;
            }
        }
        let code = match &first {
            Some(RebuildError::Unproven { .. }) => exit::UNVERIFIED,
            _ => exit::NO_BACKUP,
        };
        let why = first.map_or_else(String::new, |error| error.to_string());
        let text = [vec![format!("{}: {why}", self.did)], self.faults()].concat();
        Err(DaemonError {
            code,
            text: text.join("\n  "),
        })
    }

    fn no_moment(&self, error: &NoMoment) -> DaemonError {
        let text = [
            vec![format!(
                "no backup of {} as of then in {}: {error}",
                self.did,
                self.reader.place()
            )],
            self.faults(),
        ];
        DaemonError {
            code: exit::NO_BACKUP,
            text: text.concat().join("\n  "),
        }
    }

    /// An answer about a moment.
    fn answer(&self, found: Vec<Found>, text: Vec<u8>, json: Value) -> Answer {
        let mut notes = self.faults();
        let mut short = false;
        for found in found {
            notes.extend(found.notes);
            short |= found.short;
        }
        let code = if short { exit::INCOMPLETE } else { 0 };
        Answer {
            text,
            json,
            notes,
            code,
        }
    }
}

/// The keys that could sign an account's commits, by the archive's identity objects; what is wrong with those becomes
/// a fault of its timeline.
async fn archived_keys(
    reader: &ArchiveReader,
    did: &Did,
    line: &mut Timeline,
) -> Result<Vec<SigningKey>, DaemonError> {
    let (files, unusable) = reader.identities(did).await.map_err(|error| unread(&error))?;
    let mut keys: Vec<SigningKey> = Vec::new();
    let mut faults = unusable;
    for file in files {
        match file.keys() {
            Ok(found) => keys.extend(found),
            Err(error) => faults.push(format!("identity of {did} at {}: {error}", file.time)),
        }
    }
    line.faults.extend(faults.into_iter().map(|text| Fault {
        object: IDENTITIES.to_owned(),
        detail: text,
        hides: Hides::Nothing,
    }));
    Ok(keys)
}

/// A moment for programs.
fn moment_json(account: &Account, found: &Found) -> Value {
    json!({
        "did": account.did.as_str(),
        "archive": account.reader.place(),
        "rev": found.moment.rev.to_string(),
        "time": found.moment.time.to_string(),
        "commit": found.moment.commit.to_string(),
        "signature_checked": found.rebuilt.signed_by,
        "complete": !found.short,
        "notes": found.notes,
    })
}

/// `firekeep history`
///
/// # Errors
/// When the archive holds nothing of it, or cannot be read.
pub async fn history(config: &Config, args: &HistoryArgs) -> Result<Answer, DaemonError> {
    let subject = Subject::parse(&args.subject).map_err(usage)?;
    let watch = match &subject.part {
        Part::Record(path) => Some(path),
        Part::Account => None,
        Part::Collection(_) => {
            return Err(usage(format!(
                "{:?} is a collection; give an account, or a record with its key",
                args.subject
            )));
        }
    };
    let account = Account::open(config, &subject.did, watch, &JudgeArgs::default()).await?;
    match watch {
        Some(path) => versions::of_record(&account, path).await,
        None => Ok(versions::of_account(&account)),
    }
}

/// `firekeep ls`
///
/// # Errors
/// When the archive holds nothing of it, cannot be read, or does not prove.
pub async fn ls(config: &Config, args: &LsArgs) -> Result<Answer, DaemonError> {
    let subject = Subject::parse(&args.subject).map_err(usage)?;
    if let Part::Record(_) = subject.part {
        return Err(usage(format!(
            "{:?} is a record; see it with `firekeep cat`",
            args.subject
        )));
    }
    let AtArgs { at, judge } = &args.at;
    let mut account = Account::open(config, &subject.did, None, judge).await?;
    let found = account.find(at.as_deref()).await?;
    let mut value = moment_json(&account, &found);
    let mut text = String::new();
    if let Part::Collection(collection) = &subject.part {
        let prefix = format!("{collection}/");
        let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let records = found.rebuilt.records.range::<str, _>(from);
        let records = records.take_while(|(path, _)| path.starts_with(&prefix));
        let mut list = Vec::new();
        for (path, cid) in records {
            let rkey = &path[prefix.len()..];
            text.push_str(&format!("{rkey:<24} {cid}\n"));
            list.push(json!({ "rkey": rkey, "cid": cid.to_string() }));
        }
        value["records"] = Value::Array(list);
    } else {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for path in found.rebuilt.records.keys() {
            let collection = path.split_once('/').map_or(&**path, |(collection, _)| collection);
            *counts.entry(collection).or_default() += 1;
        }
        for (collection, count) in &counts {
            text.push_str(&format!("{count:>10} {collection}\n"));
        }
        let list = counts
            .iter()
            .map(|(name, count)| json!({ "collection": name, "records": count }));
        value["collections"] = list.collect();
    }
    Ok(account.answer(vec![found], text.into_bytes(), value))
}

/// `firekeep cat`
///
/// # Errors
/// When there is no such record in the archive, or it cannot be read, or does not prove.
pub async fn cat(config: &Config, args: &CatArgs) -> Result<Answer, DaemonError> {
    let subject = Subject::parse(&args.subject).map_err(usage)?;
    let Part::Record(path) = &subject.part else {
        return Err(usage(format!(
            "{:?} is no record; list them with `firekeep ls`",
            args.subject
        )));
    };
    let AtArgs { at, judge } = &args.at;
    let mut account = Account::open(config, &subject.did, None, judge).await?;
    let found = account.find(at.as_deref()).await?;
    let Some(cid) = found.rebuilt.records.get(path.as_str()).copied() else {
        let mut text = format!(
            "no record {path} in {} at rev {} of {}; `firekeep history at://{}/{path}` tells when it was there",
            account.did, found.moment.rev, found.moment.time, account.did
        );
        for note in account.faults().iter().chain(&found.notes) {
            text.push_str(&format!("\n  {note}"));
        }
        let code = exit::NO_BACKUP;
        return Err(DaemonError { code, text });
    };
    let bytes = found
        .rebuilt
        .record(&cid)
        .map_err(|error| failed(error.to_string()))?;
    let Some(bytes) = bytes else {
        return Err(DaemonError {
            code: exit::INCOMPLETE,
            text: format!("the bytes of {path} ({cid}) were erased from the archive"),
        });
    };
    let (value, note) = shown(&bytes);
    let text = if args.raw {
        bytes.into_owned()
    } else {
        format!("{value:#}\n").into_bytes()
    };
    let mut json = moment_json(&account, &found);
    json["uri"] = format!("at://{}/{path}", account.did).into();
    json["cid"] = cid.to_string().into();
    json["value"] = value;
    let mut answer = account.answer(vec![found], text, json);
    answer.notes.extend(note.filter(|_| !args.raw));
    Ok(answer)
}

/// A record as JSON; one that has no such form as its bytes, with a note.
fn shown(bytes: &[u8]) -> (Value, Option<String>) {
    match record_to_json(bytes) {
        Ok(value) => (value, None),
        Err(error) => {
            let note = format!("shown as bytes: {error}");
            (bytes_to_json(bytes), Some(note))
        }
    }
}

/// `firekeep diff DID --from … --to …`. Exit code 0 when equal, 1 when different.
///
/// # Errors
/// When one of the two is not in the archive, cannot be read, or does not prove.
pub async fn diff(config: &Config, args: &DiffArgs) -> Result<Answer, DaemonError> {
    let subject = Subject::parse(&args.did).map_err(usage)?;
    if subject.part != Part::Account {
        return Err(usage(format!("{:?} is more than an account", args.did)));
    }
    let mut account = Account::open(config, &subject.did, None, &args.judge).await?;
    let from = account.find(args.from.as_deref()).await?;
    let to = account.find(args.to.as_deref()).await?;
    let (mut text, mut list) = (Vec::new(), Vec::new());
    let title = |found: &Found| format!("rev {} of {}", found.moment.rev, found.moment.time);
    writeln!(text, "from {}\nto   {}", title(&from), title(&to))
        .map_err(|error| failed(error.to_string()))?;
    let (old, new) = (&from.rebuilt.records, &to.rebuilt.records);
    let mut change = |sign: &str, what: &str, path: &str, before: Option<&Cid>, now: Option<&Cid>| {
        text.extend_from_slice(format!("  {sign} {path}\n").as_bytes());
        let show = |cid: Option<&Cid>| cid.map(ToString::to_string);
        list.push(json!({ "change": what, "path": path, "from": show(before), "to": show(now) }));
    };
    for (path, before) in old {
        match new.get(path) {
            Some(now) if now == before => {}
            Some(now) => change("~", "updated", path, Some(before), Some(now)),
            None => change("-", "deleted", path, Some(before), None),
        }
    }
    for (path, now) in new.iter().filter(|(path, _)| !old.contains_key(*path)) {
        change("+", "created", path, None, Some(now));
    }
    let equal = list.is_empty();
    let value = json!({
        "did": account.did.as_str(),
        "archive": account.reader.place(),
        "from": moment_json(&account, &from),
        "to": moment_json(&account, &to),
        "changes": list,
    });
    let mut answer = account.answer(vec![from, to], text, value);
    if answer.code == 0 && !equal {
        answer.code = exit::FAILED;
    }
    Ok(answer)
}

fn failed(text: String) -> DaemonError {
    let code = exit::FAILED;
    DaemonError { code, text }
}

fn usage(text: String) -> DaemonError {
    let code = exit::USAGE;
    DaemonError { code, text }
}

fn unread(error: &ReadError) -> DaemonError {
    let code = match error {
        ReadError::NoArchive { .. } | ReadError::NoBackup { .. } | ReadError::Erased { .. } => {
            exit::NO_BACKUP
        }
        _ => exit::FAILED,
    };
    let text = error.to_string();
    DaemonError { code, text }
}

#[cfg(test)]
mod tests;
