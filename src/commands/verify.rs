#![allow(clippy::disallowed_methods, reason = "shell: a terminal, files, the clock")]
//! `firekeep verify`: proves an archive from itself alone. Only which blobs no host ever gave is asked of a mirror, where
//! one is at hand.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use super::{existing, failed, print, size};
use crate::archive::names::BlobName;
use crate::archive::scrub::run::{self, Options, Progress, ScrubError};
use crate::archive::scrub::{Checkpoint, Fault, Report, Sample};
use crate::cli::VerifyArgs;
use crate::clock::Clock;
use crate::config::{Config, parse_size};
use crate::daemon::start::store_error;
use crate::daemon::{DaemonError, exit};
use crate::mirror::keyspace::META_ARCHIVE_ID;
use crate::mirror::reader::Mirror;
use crate::mirror::rocks::{RocksOptions, RocksReader, RocksStore};
use crate::mirror::rows::BlobState;
use crate::mirror::store::{Family, StoreError, View as _};

/// How often the file of `--resume` is written.
const KEEP_INTERVAL: Duration = Duration::from_secs(2);
/// Between two looks of the bar.
const LOOK: Duration = Duration::from_millis(200);
/// Between two lines of counts where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Largest file of `--resume`.
const CHECKPOINT_BYTES_MAX: u64 = 1 << 30;

/// `firekeep verify`. Exit code 0, 3 or 4: see [`Report::exit_code`].
///
/// # Errors
/// When the archive cannot be opened or is empty, or a flag makes no sense.
pub async fn verify(config: &Config, args: &VerifyArgs, json: bool) -> Result<u8, DaemonError> {
    let options = Options {
        sample: sample(args)?,
        rate: args.rate.as_deref().map(rate).transpose()?,
    };
    let from = match &args.resume {
        Some(path) => read_checkpoint(path)?,
        None => None,
    };
    // A sample's seed that was not given is the one with which the file was begun.
    let options = match &from {
        Some(from) if args.seed.is_none() && from.sample.per_million == options.sample.per_million => {
            Options {
                sample: from.sample,
                ..options
            }
        }
        _ => options,
    };
    let bucket = existing(config).await?;
    let progress = Arc::new(Progress::default());
    let mut keeper = Keeper {
        path: args.resume.clone(),
        next: Instant::now(),
    };
    let mut keep = |checkpoint: &Checkpoint| keeper.keep(checkpoint);
    let report = tokio::select! {
        biased;
        stopped = tokio::signal::ctrl_c() => return Err(interrupted(stopped, args.resume.as_deref())),
        report = run::verify(&bucket, options, from, Arc::clone(&progress), &mut keep) => report.map_err(refused)?,
        () = show(&progress) => return Err(failed("the progress bar ended".to_owned())),
    };
    if let Some(path) = &args.resume {
        remove(path)?;
    }
    let mut report = report;
    ask_mirror(config, &mut report)?;
    show_report(&report, json)?;
    Ok(report.exit_code())
}

/// A blob that is not in the archive may never have been given by its host: the archive cannot tell, the mirror can,
/// where it is here and is this archive's.
fn ask_mirror(config: &Config, report: &mut Report) -> Result<(), DaemonError> {
    if !report.findings.counts().contains_key(&Fault::MissingBlob) || !RocksStore::is_in(&config.data_dir) {
        return Ok(());
    }
    let store = match RocksReader::open(&config.data_dir, &RocksOptions::default()) {
        Ok(store) => store,
        Err(error) => {
            tracing::warn!("which of the missing blobs no host ever gave is not known: {error}");
            return Ok(());
        }
    };
    let mirror = Mirror::new(&store);
    let known = store.get(Family::Meta, META_ARCHIVE_ID).map_err(store_error)?;
    if known.as_deref() != report.id.as_deref().map(str::as_bytes) {
        return Ok(());
    }
    let why = |name: &BlobName| -> Result<Option<&'static str>, StoreError> {
        let Some(account) = mirror.account(name.did.did())? else {
            return Ok(None);
        };
        let row = mirror.blob(account.did_number, &name.blob)?;
        Ok(row.and_then(|row| match row.state {
            BlobState::Missing { reason, .. } => Some(reason.sentence()),
            BlobState::Wanted => Some("it is still to be fetched from its host"),
            BlobState::Held => Some("the mirror has it, and puts it there"),
            _ => None,
        }))
    };
    report.findings.explain_missing(why).map_err(store_error)
}

fn show_report(report: &Report, json: bool) -> Result<u8, DaemonError> {
    if json {
        let value = serde_json::to_value(report).map_err(|error| failed(error.to_string()))?;
        return print(&format!("{value:#}\n"));
    }
    print(&report.text())
}

fn refused(error: ScrubError) -> DaemonError {
    let code = match &error {
        ScrubError::Empty(_) => exit::NO_BACKUP,
        _ => exit::FAILED,
    };
    DaemonError {
        code,
        text: error.to_string(),
    }
}

fn interrupted(stopped: io::Result<()>, resume: Option<&Path>) -> DaemonError {
    let text = match (stopped, resume) {
        (Err(error), _) => format!("cannot listen for signals: {error}"),
        (Ok(()), Some(path)) => format!("stopped; the same command goes on from {}", path.display()),
        (Ok(()), None) => "stopped; with --resume FILE it could be taken up again".to_owned(),
    };
    DaemonError {
        code: exit::INTERRUPTED,
        text,
    }
}

/// A share of the objects: `5%`, `0.1%`.
fn sample(args: &VerifyArgs) -> Result<Sample, DaemonError> {
    let Some(text) = &args.sample else {
        return Ok(Sample::all());
    };
    let percent = text
        .trim()
        .strip_suffix('%')
        .unwrap_or(text.trim())
        .parse::<f64>()
        .ok();
    let percent = percent
        .filter(|percent| (0.0001..=100.0).contains(percent))
        .ok_or_else(|| DaemonError {
            code: exit::CONFIG,
            text: format!("--sample {text:?}: must be from 0.0001% to 100%, such as 5%"),
        })?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "1 to a million"
    )]
    let per_million = (percent * 10_000.0).round() as u32;
    Ok(Sample {
        per_million,
        seed: args.seed.unwrap_or_else(|| Clock::system().random() >> 12),
    })
}

fn rate(text: &str) -> Result<u64, DaemonError> {
    parse_size(text)
        .filter(|rate| *rate >= 1024)
        .ok_or_else(|| DaemonError {
            code: exit::CONFIG,
            text: format!("--rate {text:?}: must be a size a second of at least 1KiB, such as 10MiB"),
        })
}

fn read_checkpoint(path: &Path) -> Result<Option<Checkpoint>, DaemonError> {
    let bad = |what: String| failed(format!("--resume {}: {what}", path.display()));
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(bad(error.to_string())),
        Ok(found) if found.len() > CHECKPOINT_BYTES_MAX => return Err(bad("it is too large".to_owned())),
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
    let checkpoint = Checkpoint::decode(&bytes);
    checkpoint.map(Some).map_err(|error| {
        bad(format!(
            "it is no checkpoint of this version ({error}); remove it to begin anew"
        ))
    })
}

fn remove(path: &Path) -> Result<(), DaemonError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("cannot remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Writes how far it came, now and then.
struct Keeper {
    path: Option<PathBuf>,
    next: Instant,
}

impl Keeper {
    fn keep(&mut self, checkpoint: &Checkpoint) -> io::Result<()> {
        let Some(path) = self.path.as_ref().filter(|_| Instant::now() >= self.next) else {
            return Ok(());
        };
        // Never half a file, so that a crash costs two seconds and not all.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
        file.write_all(&checkpoint.encode())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        // Large ones take their time.
        self.next = Instant::now() + KEEP_INTERVAL;
        Ok(())
    }
}

/// A bar on a terminal, lines elsewhere. Never ends.
async fn show(progress: &Progress) {
    let bar = io::stderr().is_terminal().then(new_bar);
    let mut next_line = Instant::now() + LINE_INTERVAL;
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(LOOK).await;
        let (done, of) = (get(&progress.done), get(&progress.objects));
        let text = format!(
            "{} read, {} findings",
            size(get(&progress.bytes)),
            get(&progress.findings)
        );
        if let Some(bar) = &bar {
            bar.set_length(of);
            bar.set_position(done);
            bar.set_message(text);
        } else if Instant::now() >= next_line {
            next_line = Instant::now() + LINE_INTERVAL;
            let line = format!("verify: {done} of {of} objects, {text}\n");
            if io::stderr().write_all(line.as_bytes()).is_err() {
                // Nobody looks; the report still counts.
                std::future::pending::<()>().await;
            }
        }
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        // Whoever waits for the report drops it.
        .with_finish(ProgressFinish::AndClear);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} objects  {msg}") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(sample: &str) -> VerifyArgs {
        VerifyArgs {
            common: crate::cli::PlaceArgs::default(),
            sample: Some(sample.to_owned()),
            seed: Some(3),
            rate: None,
            resume: None,
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_no_backup_and_is_not_made() {
        let keep = tempfile::tempdir().expect("a folder");
        let path = keep.path().join("mistyped");
        let url = format!("file://{}", path.display());
        let place = crate::cli::PlaceArgs {
            archive: crate::cli::ArchiveArgs {
                archive: Some(url),
                ..Default::default()
            },
            data_dir: None,
        };
        let mut layers = crate::config::Layers::default();
        for (name, value) in &place.settings() {
            layers.add_flag(name, value).expect("a setting");
        }
        let config = Config::check(&layers, Path::new("/nowhere")).expect("settings");
        let args = VerifyArgs {
            common: place,
            sample: None,
            seed: None,
            ..args("5%")
        };
        let verified = verify(&config, &args, false).await.expect_err("nothing is there");
        let planned = crate::commands::prune::dry_run(&config, false).await;
        let planned = planned.expect_err("nothing is there");
        for error in [verified, planned] {
            assert_eq!(error.code, exit::NO_BACKUP, "{error}");
            assert!(error.text.contains("no such folder"), "{error}");
        }
        assert!(!path.exists());
    }

    #[test]
    fn shares_and_rates_are_read() {
        for (text, per_million) in [
            ("5%", 50_000),
            ("100", 1_000_000),
            ("0.1 %", 1000),
            ("0.0001%", 1),
        ] {
            let read = sample(&args(text.replace(' ', "").as_str())).expect(text);
            assert_eq!((read.per_million, read.seed), (per_million, 3), "{text}");
        }
        for text in ["0%", "101%", "-1%", "x", "", "NaN", "0.00001%"] {
            assert_eq!(sample(&args(text)).expect_err(text).code, exit::CONFIG);
        }
        assert_eq!(rate("10MiB").expect("valid"), 10 << 20);
        assert!(rate("10").is_err() && rate("1B").is_err());
    }
}
