#![allow(clippy::disallowed_methods, reason = "shell: files, the archive")]
//! `firekeep export`: an account's repository and blobs as files.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use self::blobs::BlobReport;
use super::ask::{Part, Subject};
use super::output::NewFile;
use super::record_files::{write_jsonl, write_sqlite};
use super::{Account, Answer, Found, failed, moment_json, usage};
use crate::cli::{AtArgs, ExportArgs, ExportFormat};
use crate::config::Config;
use crate::daemon::{DaemonError, exit};
use crate::repo::record::scan_record;
use crate::types::Cid;

mod blobs;

/// Names that are listed of what is withheld or missing.
const NAMES_MAX: usize = 1000;

/// `firekeep export`. What goes to `-` is written to `stdout`.
///
/// # Errors
/// When there is no such moment in the archive, it does not prove, or cannot be written.
pub async fn export(
    config: &Config,
    args: &ExportArgs,
    stdout: &mut dyn Write,
) -> Result<Answer, DaemonError> {
    let subject = Subject::parse(&args.subject).map_err(usage)?;
    if subject.part != Part::Account {
        return Err(usage(format!(
            "{:?} is more than an account; one record is shown by `firekeep cat`",
            args.subject
        )));
    }
    let to_stdout = args.output.as_deref() == Some("-");
    if to_stdout && args.format == ExportFormat::Sqlite {
        return Err(usage(
            "a database cannot be written to stdout; name a file with -o".to_owned(),
        ));
    }
    // What is in the way is said before anything is read.
    let named = args.output.as_deref().filter(|_| !to_stdout).map(PathBuf::from);
    let mut file = named
        .as_deref()
        .map(|path| NewFile::create(path, args.force))
        .transpose()?;
    let mut target = args
        .blobs
        .as_deref()
        .map(|target| blobs::Target::create(Path::new(target), args.force))
        .transpose()?;

    let AtArgs { at, judge } = &args.at;
    let mut account = Account::open(config, &subject.did, None, judge).await?;
    let found = account.find(at.as_deref()).await?;
    let path = named.unwrap_or_else(|| default_name(&found, args.format));
    if file.is_none() && !to_stdout {
        file = Some(NewFile::create(&path, args.force)?);
    }
    let (bytes, as_bytes) = match &mut file {
        Some(file) => write(&found, args.format, file)?,
        None => {
            let mut out = BufWriter::new(stdout);
            let counts = write_stream(&found, args.format, &mut out)?;
            out.flush()
                .map_err(|error| failed(format!("cannot write to stdout: {error}")))?;
            counts
        }
    };
    if let Some(file) = file {
        file.finish()?;
    }
    let blobs = match &mut target {
        Some(target) => Some(target.fill(&account, &wanted_blobs(&found)?).await?),
        None => None,
    };
    if let Some(target) = target {
        target.finish()?;
    }

    let done = Done {
        place: (!to_stdout).then_some(path),
        bytes,
        as_bytes,
        blobs,
    };
    Ok(report(&account, found, done))
}

/// What was written.
struct Done {
    /// The file; none: stdout.
    place: Option<PathBuf>,
    bytes: u64,
    /// Records that have no JSON form.
    as_bytes: u64,
    blobs: Option<BlobReport>,
}

fn report(account: &Account, found: Found, done: Done) -> Answer {
    let rebuilt = &found.rebuilt;
    let place = match &done.place {
        Some(path) => path.display().to_string(),
        None => "stdout".to_owned(),
    };
    let mut value = moment_json(account, &found);
    value["file"] = place.clone().into();
    value["records"] = rebuilt.records.len().into();
    value["bytes"] = done.bytes.into();
    value["withheld"] = rebuilt
        .withheld
        .iter()
        .take(NAMES_MAX)
        .map(|path| json!(path))
        .collect();
    value["blobs"] = done.blobs.as_ref().map_or(Value::Null, BlobReport::json);
    let mut text = format!(
        "{} at rev {} of {}: {} records to {place}\n",
        account.did,
        found.moment.rev,
        found.moment.time,
        rebuilt.records.len() - rebuilt.withheld.len(),
    );
    text.push_str(&done.blobs.as_ref().map_or_else(String::new, BlobReport::text));
    let mut notes = Vec::new();
    if done.place.is_none() {
        // Stdout has the data; what there is to say goes to the notes.
        notes.push(std::mem::take(&mut text).trim_end().to_owned());
    }
    if rebuilt.signed_by.is_none() {
        notes.push(
            "the tree is proven; the signature of its commit was not checked: no --key was given".to_owned(),
        );
    }
    if done.as_bytes > 0 {
        notes.push(format!(
            "{} records have no JSON form; their bytes stand there instead",
            done.as_bytes
        ));
    }
    let withheld = !rebuilt.withheld.is_empty();
    let names = rebuilt.withheld.iter().take(NAMES_MAX);
    notes.extend(names.map(|path| format!("withheld (erased from the archive): {path}")));
    if withheld && done.blobs.is_some() {
        notes.push("blobs that only withheld records refer to are not known".to_owned());
    }
    let mut answer = account.answer(vec![found], text.into_bytes(), value);
    answer.notes.append(&mut notes);
    if withheld {
        answer.code = exit::INCOMPLETE;
    }
    if let Some(blobs) = done.blobs {
        answer.code = blobs.code(answer.code);
        answer.notes.extend(blobs.notes());
    }
    answer
}

/// Writes a file; returns its bytes, and the records that have no JSON form.
fn write(found: &Found, format: ExportFormat, file: &mut NewFile) -> Result<(u64, u64), DaemonError> {
    if format == ExportFormat::Sqlite {
        let written = write_sqlite(found, file.temporary_path())?;
        let bytes = file.file().metadata().map_or(0, |meta| meta.len());
        return Ok((bytes, written.as_bytes));
    }
    let mut out = BufWriter::with_capacity(1 << 20, file.file());
    let counts = write_stream(found, format, &mut out)?;
    out.flush()
        .map_err(|error| failed(format!("cannot write the file: {error}")))?;
    Ok(counts)
}

fn write_stream(
    found: &Found,
    format: ExportFormat,
    out: &mut impl Write,
) -> Result<(u64, u64), DaemonError> {
    let mut out = Counting { out, bytes: 0 };
    let as_bytes = match format {
        ExportFormat::Jsonl => write_jsonl(found, &mut out)?.as_bytes,
        _ => {
            let written = found.rebuilt.write_car(&mut out);
            written.map_err(|error| failed(format!("cannot write the CAR: {error}")))?;
            0
        }
    };
    Ok((out.bytes, as_bytes))
}

struct Counting<'a, W> {
    out: &'a mut W,
    bytes: u64,
}

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Without colons, which other programs take for a host's name.
fn default_name(found: &Found, format: ExportFormat) -> PathBuf {
    let did = found.rebuilt.did.as_str().replace(':', "-");
    PathBuf::from(format!("{did}-{}.{}", found.moment.rev, format.ending()))
}

/// Every blob that the records of a moment refer to.
fn wanted_blobs(found: &Found) -> Result<BTreeSet<Cid>, DaemonError> {
    let mut wanted = BTreeSet::new();
    for cid in found.rebuilt.records.values() {
        let bytes = found
            .rebuilt
            .record(cid)
            .map_err(|error| failed(error.to_string()))?;
        if let Some(bytes) = bytes {
            wanted.extend(scan_record(&bytes).blobs.into_iter().map(|blob| blob.cid));
        }
    }
    Ok(wanted)
}
