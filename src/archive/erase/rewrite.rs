#![allow(clippy::disallowed_methods, reason = "shell: the bucket, temporary files")]
//! Objects without what was erased from them: made, proven, put under a new name, read back, and the old one removed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write as _};

use bytes::Bytes;

use super::super::bucket::{Body, PutOptions};
use super::super::content_type::ContentType;
use super::super::log_file::{Entry, LogFile};
use super::super::names::{DidFolder, ObjectName, QuarantinedName, SegmentName, SnapshotName};
use super::super::prune::PruneError;
use super::super::scrub::content::{check_quarantined, check_snapshot, read_log_file};
use super::super::shipper::pack;
use super::super::snapshot_file::{SnapshotDecoder, SnapshotEncoder};
use super::note::What;
use super::run::{Erased, Eraser, Gone};
use super::survey::Survey;
use crate::repo::car::{CarReader, encode_block, encode_header};
use crate::repo::commit::Commit;
use crate::repo::mst::StreamedTree;
use crate::types::{Cid, Codec};

/// Largest CAR of a snapshot.
const CAR_BYTES_MAX: u64 = 16 << 30;

/// A CAR in the archive.
enum Car {
    Snapshot(SnapshotName),
    Quarantined(QuarantinedName),
}

impl Car {
    fn edition(&self) -> u32 {
        match self {
            Self::Snapshot(name) => name.edition,
            Self::Quarantined(name) => name.edition,
        }
    }

    fn with_edition(&self, edition: u32) -> String {
        match self {
            Self::Snapshot(name) => SnapshotName {
                edition,
                ..name.clone()
            }
            .to_string(),
            Self::Quarantined(name) => QuarantinedName {
                edition,
                ..name.clone()
            }
            .to_string(),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn damaged(name: &str, detail: impl std::fmt::Display) -> PruneError {
    PruneError::Damaged(format!(
        "{name} cannot be read, so it is not known what it holds: {detail}; nothing was done to it"
    ))
}

impl Eraser<'_> {
    /// Reads everything of an account for what an erasure comes to.
    pub(super) async fn survey_archive(
        &self,
        folder: &DidFolder,
        what: &What,
        survey: &mut Survey,
    ) -> Result<(), PruneError> {
        for object in self.list(&SnapshotName::prefix(folder)).await? {
            self.stop_if_asked()?;
            match object.name.parse() {
                Ok(ObjectName::Delta(_)) => {
                    if let Some(file) = self.log_file(&object.name).await? {
                        survey_log(&file, folder, what, survey);
                    }
                }
                Ok(ObjectName::Snapshot(_) | ObjectName::Quarantined(_)) => {
                    self.survey_car(&object.name, what, survey).await?;
                }
                _ => {}
            }
        }
        for name in self.all_segments().await? {
            self.stop_if_asked()?;
            if let Some(file) = self.log_file(&name.to_string()).await? {
                survey_log(&file, folder, what, survey);
            }
        }
        Ok(())
    }

    async fn log_file(&self, name: &str) -> Result<Option<LogFile>, PruneError> {
        let Some(body) = self.bucket.get(name).await? else {
            return Ok(None);
        };
        let source = body.into_reader(tokio::runtime::Handle::current());
        let read = blocking(move || read_log_file(source)).await;
        read.map(Some).map_err(|error| damaged(name, error))
    }

    async fn survey_car(&self, name: &str, what: &What, survey: &mut Survey) -> Result<(), PruneError> {
        let Some(body) = self.bucket.get(name).await? else {
            return Ok(());
        };
        let source = body.into_reader(tokio::runtime::Handle::current());
        let (what, mut taken) = (what.clone(), std::mem::take(survey));
        let read = blocking(move || read_car(source, &what, &mut taken).map(|()| taken)).await;
        *survey = read.map_err(|error| damaged(name, error))?;
        Ok(())
    }

    /// Snapshots, deltas and quarantined repositories that hold some of it.
    pub(super) async fn rewrite_account(
        &self,
        folder: &DidFolder,
        gone: &Gone,
        done: &mut Erased,
    ) -> Result<(), PruneError> {
        for object in self.list(&SnapshotName::prefix(folder)).await? {
            self.stop_if_asked()?;
            match object.name.parse() {
                Ok(ObjectName::Snapshot(name)) => {
                    self.rewrite_car(&object.name, Car::Snapshot(name), gone, done)
                        .await?;
                }
                Ok(ObjectName::Quarantined(name)) => {
                    self.rewrite_car(&object.name, Car::Quarantined(name), gone, done)
                        .await?;
                }
                Ok(ObjectName::Delta(name)) => {
                    let again = |edition| name.clone().with_edition(edition).to_string();
                    self.rewrite_log(&object.name, (name.edition(), &again), gone, done)
                        .await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Segments that hold some of it.
    pub(super) async fn segments(&self, gone: &Gone, done: &mut Erased) -> Result<(), PruneError> {
        for name in self.all_segments().await? {
            self.stop_if_asked()?;
            let again = |edition| SegmentName { edition, ..name }.to_string();
            self.rewrite_log(&name.to_string(), (name.edition, &again), gone, done)
                .await?;
        }
        Ok(())
    }

    async fn rewrite_log(
        &self,
        name: &str,
        (edition, again): (u32, &(dyn Fn(u32) -> String + Sync)),
        gone: &Gone,
        done: &mut Erased,
    ) -> Result<(), PruneError> {
        let Some(file) = self.log_file(name).await? else {
            return Ok(());
        };
        let Some(kept) = without(&file, gone) else {
            return Ok(());
        };
        let (body, stats) = pack(&kept.encode_car());
        let decoded = read_log_file(&*body).map_err(|error| damaged(name, error))?;
        if decoded.root != file.root || without(&decoded, gone).is_some() {
            return Err(damaged(
                name,
                "what was written in its place is not what it should be",
            ));
        }
        let new = again(edition.saturating_add(1));
        let options = PutOptions {
            sha256: Some(stats.sha256),
            ..PutOptions::create(ContentType::zstd())
        };
        self.bucket.put(&new, Body::Bytes(body.into()), &options).await?;
        // Read back, also where it was there from an earlier try.
        let put = self.log_file(&new).await?;
        if !put.is_some_and(|put| put.root == file.root && without(&put, gone).is_none()) {
            return Err(damaged(&new, "it is not what was put there"));
        }
        tracing::info!(object = name, new, "written again without what was erased");
        done.rewritten += 1;
        self.remove(name, done).await
    }

    async fn rewrite_car(
        &self,
        name: &str,
        car: Car,
        gone: &Gone,
        done: &mut Erased,
    ) -> Result<(), PruneError> {
        let Some(body) = self.bucket.get(name).await? else {
            return Ok(());
        };
        let source = body.into_reader(tokio::runtime::Handle::current());
        let (records, dir) = (gone.records.clone(), self.temp_dir.clone());
        let made = blocking(move || {
            let file = tempfile::NamedTempFile::new_in(&dir).map_err(|error| error.to_string())?;
            let out = File::options().write(true).open(file.path());
            let out = BufWriter::new(out.map_err(|error| error.to_string())?);
            let (dropped, stats) = copy_without(source, |cid| records.contains(cid), out)?;
            Ok::<_, String>((file, dropped, stats))
        });
        let (file, dropped, stats) = made.await.map_err(|error| damaged(name, error))?;
        if dropped == 0 {
            return Ok(());
        }
        let new = car.with_edition(car.edition().saturating_add(1));
        let made = File::open(file.path()).map_err(|error| damaged(name, error))?;
        self.prove(&new, &car, gone, made).await?;
        let options = PutOptions {
            sha256: Some(stats.sha256),
            ..PutOptions::create(ContentType::zstd())
        };
        self.bucket
            .put(&new, Body::File(file.path().to_owned()), &options)
            .await?;
        let put = self
            .bucket
            .get(&new)
            .await?
            .ok_or_else(|| damaged(&new, "it vanished"))?;
        let source = put.into_reader(tokio::runtime::Handle::current());
        self.prove(&new, &car, gone, source).await?;
        tracing::info!(object = name, new, "written again without what was erased");
        done.rewritten += 1;
        self.remove(name, done).await
    }

    /// What was made proves like what it takes the place of, and holds nothing of what is gone.
    async fn prove(
        &self,
        name: &str,
        car: &Car,
        gone: &Gone,
        source: impl Read + Send + 'static,
    ) -> Result<(), PruneError> {
        let records = gone.records.clone();
        let snapshot = match car {
            Car::Snapshot(name) => Ok(name.clone()),
            Car::Quarantined(name) => Err(name.clone()),
        };
        let checked = blocking(move || {
            let mut seen = false;
            let withheld = |cid: &Cid| records.contains(cid);
            let checked = match snapshot {
                Ok(name) => check_snapshot(source, &name, &[], &withheld, |_, record| {
                    seen |= records.contains(&Cid::of_block(record));
                })
                .map(drop),
                Err(name) => check_quarantined(source, &name),
            };
            match checked {
                Ok(()) if seen => Err("it still holds what was erased".to_owned()),
                checked => checked.map_err(|error| error.to_string()),
            }
        });
        checked.await.map_err(|error| damaged(name, error))
    }
}

/// The file without what is gone; none: it holds nothing of it.
fn without(file: &LogFile, gone: &Gone) -> Option<LogFile> {
    let of_account = |entry: &&Entry| *entry.did() == gone.did;
    let changes = |entry: &Entry| entry.change().cloned();
    let ours = file.index.entries.iter().filter(of_account).filter_map(changes);
    let mut drop_: Vec<Cid> = Vec::new();
    for cid in ours.flat_map(|change| change.ops).filter_map(|op| op.cid) {
        if (gone.whole || gone.has(&cid)) && file.blocks.contains_key(&cid) {
            drop_.push(cid);
        }
    }
    if gone.whole {
        // Another account may have the very same record.
        let others = file.index.entries.iter().filter(|entry| *entry.did() != gone.did);
        let others = others.filter_map(changes).flat_map(|change| change.ops);
        let kept: Vec<Cid> = others.filter_map(|op| op.cid).collect();
        drop_.retain(|cid| !kept.contains(cid));
    }
    if drop_.is_empty() {
        return None;
    }
    let mut blocks: BTreeMap<Cid, Bytes> = file.blocks.clone();
    blocks.retain(|cid, _| !drop_.contains(cid));
    Some(LogFile::new(file.index.clone(), blocks))
}

/// Copies a packed CAR without some blocks. Returns how many those were.
fn copy_without(
    source: impl Read,
    is_gone: impl Fn(&Cid) -> bool,
    out: BufWriter<File>,
) -> Result<(u64, super::super::snapshot_file::FileStats), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut decoder = SnapshotDecoder::new(source, CAR_BYTES_MAX).map_err(|error| text(&error))?;
    let mut car = CarReader::new(&mut decoder).map_err(|error| text(&error))?;
    let mut encoder = SnapshotEncoder::new(out, None).map_err(|error| text(&error))?;
    encoder
        .write_all(&encode_header(car.roots()))
        .map_err(|error| text(&error))?;
    let (mut block, mut frame, mut dropped) = (Vec::new(), Vec::new(), 0);
    while let Some((cid, _)) = car.next_block(&mut block).map_err(|error| text(&error))? {
        if is_gone(&cid) {
            dropped += 1;
            continue;
        }
        frame.clear();
        encode_block(&mut frame, &cid, &block);
        encoder.write_all(&frame).map_err(|error| text(&error))?;
    }
    drop(car);
    decoder.finish().map_err(|error| text(&error))?;
    let (out, stats) = encoder.finish().map_err(|error| text(&error))?;
    out.into_inner().map_err(|error| text(&error))?;
    Ok((dropped, stats))
}

fn survey_log(file: &LogFile, folder: &DidFolder, what: &What, survey: &mut Survey) {
    let ours = file
        .index
        .entries
        .iter()
        .filter(|entry| entry.did() == folder.did());
    for op in ours.filter_map(Entry::change).flat_map(|change| &change.ops) {
        let Some(cid) = op.cid else { continue };
        survey.place(what, op.path.as_str().as_bytes(), cid);
        if let Some(bytes) = file.blocks.get(&cid) {
            survey.record(cid, bytes);
        }
    }
}

/// Reads a snapshot's or a kept repository's records. One whose tree cannot be followed gives records without places.
fn read_car(source: impl Read, what: &What, survey: &mut Survey) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut decoder = SnapshotDecoder::new(source, CAR_BYTES_MAX).map_err(|error| text(&error))?;
    let mut car = CarReader::new(&mut decoder).map_err(|error| text(&error))?;
    let root = car.roots().first().copied();
    let (mut block, mut tree) = (Vec::new(), None::<StreamedTree>);
    while let Some((cid, _)) = car.next_block(&mut block).map_err(|error| text(&error))? {
        if Some(cid) == root {
            tree = Commit::decode(&block)
                .ok()
                .map(|commit| StreamedTree::new(commit.data));
            continue;
        }
        if cid.codec() != Codec::DagCbor {
            continue;
        }
        if let What::Cid(wanted) = what
            && *wanted == cid
        {
            survey.place(what, b"", cid);
        }
        let mut lost = false;
        if let Some(tree) = &mut tree {
            // What was erased before is not there.
            while tree.wanted_record().is_some_and(|wanted| wanted != cid) {
                let passed = tree.pass_over();
                if passed.is_err() {
                    break;
                }
            }
            match tree.push(cid, &block) {
                Ok(Some(path)) => survey.place(what, path, cid),
                Ok(None) => {}
                Err(_) => lost = true,
            }
        }
        if lost {
            tree = None;
        }
        survey.record(cid, &block);
    }
    Ok(())
}
