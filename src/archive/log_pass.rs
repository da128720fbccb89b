#![allow(clippy::disallowed_methods, reason = "shell: the bucket, a temporary file")]
//! One way through the log for all accounts at once: what each changed since its newest snapshot.
//!
//! The changes lie in a temporary file, as the mirror's journal has them; memory holds where each lies. What belongs to
//! the log is told by the names: a generation goes on from the last number that it found, so what an older writer
//! wrote from that number on counts for nothing. Whether an account's changes are all there is not decided here: each
//! names the rev that it applies to, and what comes out has to build the tree that is signed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;

use futures_util::StreamExt as _;

use super::boundary::Boundary;
use super::log_file::{Change, Entry, LogFile, Origin};
use super::names::{self, ObjectName, SegmentName};
use super::reader::{ArchiveReader, ReadError};
use crate::mirror::rows::{JournalEntry, JournalOp, Row as _};
use crate::types::{AccountStatus, Cid, Did, HostName, Rev, Timestamp};

/// Faults that are named.
const FAULTS_MAX: usize = 100;

/// What the log says of an account.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Changes behind its newest snapshot, in order: rev, and where the rest lies.
    changes: Vec<(Rev, u64, u32)>,
    /// The newest rev that the log speaks of.
    pub newest: Option<Rev>,
    /// Its standing, and when we learned it.
    pub status: Option<(Timestamp, AccountStatus)>,
    /// Who spoke of it last.
    pub host: Option<HostName>,
}

/// What the log says.
#[derive(Debug)]
pub struct LogPass {
    file: File,
    /// By account.
    pub accounts: BTreeMap<Did, Told>,
    /// The last number of each host's stream that stands in it.
    pub seqs: BTreeMap<HostName, u64>,
    /// The log number behind the last.
    pub next_log: u64,
    /// Segments that were read.
    pub segments: u64,
    /// What of it cannot be used.
    pub faults: Vec<String>,
}

/// Which part of the log is read.
#[derive(Debug, Clone, Copy)]
pub struct LogRange {
    /// From this number on.
    pub from: u64,
    /// The generation that goes on with it, and its first number: not read.
    pub until: (u64, u64),
}

impl LogRange {
    /// Those of the segments that belong to it, in order.
    #[must_use]
    pub fn choose(&self, names: &BTreeSet<SegmentName>) -> Vec<SegmentName> {
        let mut chosen = Vec::new();
        let mut firsts: BTreeMap<u64, u64> = BTreeMap::new();
        for name in names {
            firsts.entry(name.generation).or_insert(name.number);
        }
        // From the newest generation back: each ends where the next one begins.
        let mut until = self.until;
        for name in names.iter().rev() {
            if name.generation >= self.until.0 {
                continue;
            }
            if name.number < until.1 && name.number >= self.from {
                chosen.push(*name);
            }
            // The one before ends where this one began.
            if name.number < until.1 && firsts.get(&name.generation) == Some(&name.number) {
                until = (name.generation, name.number);
            }
        }
        chosen.reverse();
        chosen
    }
}

impl ArchiveReader {
    /// Reads the log. `newest` names each account's newest snapshot: what is no newer is passed over. `seen` hears of
    /// each segment: how many are read, and of how many.
    ///
    /// # Errors
    /// When the store does not answer, or the temporary file cannot be written.
    pub async fn pass_log(
        &self,
        range: LogRange,
        newest: &BTreeMap<Did, Rev>,
        seen: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<LogPass, ReadError> {
        let listed = self.list(names::LOG).await?;
        let (mut segments, mut boundaries) = (Vec::new(), Vec::new());
        for name in listed {
            match name.parse() {
                Ok(ObjectName::Segment(name)) if name.shard == super::writer::SHARD => segments.push(name),
                Ok(ObjectName::Boundary(name)) if name.shard == super::writer::SHARD => boundaries.push(name),
                _ => {}
            }
        }
        let of_log = super::boundary::listed(segments, boundaries);
        let begins = match of_log.boundary {
            Some(name) => self.log_begins(&name).await?,
            None => None,
        };
        let of_log = of_log.segments;
        let chosen = range.choose(&of_log.into_iter().collect());
        let file = tempfile::tempfile_in(&self.temp_dir).map_err(|error| self.temporary(error))?;
        let copy = file.try_clone().map_err(|error| self.temporary(error))?;
        let mut pass = Pass {
            out: BufWriter::new(copy),
            at: 0,
            log: LogPass {
                file,
                accounts: BTreeMap::new(),
                seqs: BTreeMap::new(),
                next_log: 1,
                segments: 0,
                faults: Vec::new(),
            },
            prev: None,
        };
        if let Some(boundary) = &begins {
            pass.log.begin(boundary);
        }
        let count = chosen.len() as u64;
        let mut files = self.log_files(chosen.iter().map(SegmentName::to_string).collect());
        for name in chosen {
            let read = match files.next().await.expect("as many files as names") {
                Err(ReadError::Vanished(name)) => Err(format!("{name} is listed, but not there")),
                read => read?.map_err(|detail| format!("{name}: {detail}")),
            };
            match read {
                Ok(file) => pass
                    .take(name, &file, newest)
                    .map_err(|error| self.temporary(error))?,
                Err(fault) => {
                    pass.prev = None;
                    pass.fault(fault);
                }
            }
            pass.log.segments += 1;
            seen(pass.log.segments, count);
        }
        pass.out.flush().map_err(|error| self.temporary(error))?;
        Ok(pass.log)
    }
}

struct Pass {
    out: BufWriter<File>,
    at: u64,
    log: LogPass,
    /// The index of the segment before.
    prev: Option<Cid>,
}

impl Pass {
    fn fault(&mut self, fault: String) {
        if self.log.faults.len() < FAULTS_MAX {
            self.log.faults.push(fault);
        }
    }

    fn take(&mut self, name: SegmentName, file: &LogFile, newest: &BTreeMap<Did, Rev>) -> io::Result<()> {
        let Origin::Segment {
            generation,
            number,
            prev,
            first,
            ..
        } = &file.index.origin
        else {
            self.fault(format!("{name}: it is a delta"));
            return Ok(());
        };
        if (*generation, *number) != (name.generation, name.number) {
            self.fault(format!(
                "{name}: it says that it is another object: it was renamed"
            ));
            return Ok(());
        }
        if self.prev.is_some() && *prev != self.prev {
            self.fault(format!("{name}: it does not go on from the segment before it"));
        }
        self.prev = Some(file.root);
        self.log.next_log = first.saturating_add(file.index.entries.len() as u64);
        for entry in &file.index.entries {
            self.entry(entry, file, newest)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, file: &LogFile, newest: &BTreeMap<Did, Rev>) -> io::Result<()> {
        let told = self.log.accounts.entry(entry.did().clone()).or_default();
        match entry {
            Entry::Commit(change) | Entry::Swap(change) => {
                told.host = Some(change.host.clone());
                if change.seq > 0 {
                    self.log.seqs.insert(change.host.clone(), change.seq);
                }
                let last = told.changes.last().map(|(rev, ..)| *rev);
                told.newest = told.newest.max(Some(change.rev));
                let covered = newest.get(&change.did).is_some_and(|rev| change.rev <= *rev);
                // A mirror that fell back tells again what was told.
                if covered || last.is_some_and(|last| change.rev <= last) {
                    return Ok(());
                }
                let bytes = journalled(change, file, matches!(entry, Entry::Swap(_))).encode();
                let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
                told.changes.push((change.rev, self.at, length));
                self.out.write_all(&bytes)?;
                self.at += u64::from(length);
            }
            Entry::Loaded { host, rev, .. } => {
                told.host = Some(host.clone());
                told.newest = told.newest.max(Some(*rev));
                // Nothing later builds on what was told before; the snapshot that says it may be there.
                if newest.get(entry.did()).is_none_or(|known| rev > known) {
                    told.changes.clear();
                }
            }
            Entry::Account {
                host,
                status,
                received,
                ..
            } => {
                told.host = Some(host.clone());
                told.status = Some((*received, status.clone()));
            }
        }
        Ok(())
    }
}

/// A change as the journal has it.
fn journalled(change: &Change, file: &LogFile, swap: bool) -> JournalEntry {
    let bytes = |cid: &Cid| file.blocks.get(cid).map(|bytes| bytes.to_vec());
    let ops = change.ops.iter().map(|op| JournalOp {
        path: op.path.clone(),
        cid: op.cid,
        bytes: op.cid.as_ref().and_then(bytes),
    });
    JournalEntry {
        commit_block: bytes(&change.commit).unwrap_or_default(),
        since: change.since,
        swap,
        ops: ops.collect(),
        time: change.time,
        received: change.received,
        seq: change.seq,
        host: Some(change.host.clone()),
    }
}

impl LogPass {
    /// What the removed segments told, as the boundary keeps it: standings, and how far each account was led.
    fn begin(&mut self, boundary: &Boundary) {
        for (did, entry) in &boundary.standings {
            if let Entry::Account {
                host,
                status,
                received,
                ..
            } = entry
            {
                let told = self.accounts.entry(did.clone()).or_default();
                told.host = Some(host.clone());
                told.status = Some((*received, status.clone()));
            }
        }
        for (did, rev) in &boundary.led_to {
            self.reaches(did, *rev);
        }
    }

    /// Something of the archive leads an account as far as this rev.
    pub fn reaches(&mut self, did: &Did, rev: Rev) {
        let told = self.accounts.entry(did.clone()).or_default();
        told.newest = told.newest.max(Some(rev));
    }

    /// An account's changes behind its newest snapshot, in order.
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    pub fn changes(&self, did: &Did) -> io::Result<Vec<(Rev, JournalEntry)>> {
        let Some(told) = self.accounts.get(did) else {
            return Ok(Vec::new());
        };
        let read = |(rev, at, length): &(Rev, u64, u32)| {
            let mut bytes = vec![0; *length as usize];
            self.file.read_exact_at(&mut bytes, *at)?;
            let entry = JournalEntry::decode(&bytes).map_err(io::Error::other)?;
            Ok((*rev, entry))
        };
        told.changes.iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stale_writer_wrote_is_no_part_of_the_log() {
        let segment = |generation, number| SegmentName {
            shard: 0,
            generation,
            number,
            edition: 0,
        };
        let names = BTreeSet::from([
            segment(1, 1),
            segment(1, 2),
            segment(1, 3),
            segment(1, 4),
            segment(3, 3),
            segment(3, 4),
            segment(3, 5),
            segment(4, 5),
            segment(5, 6),
        ]);
        let choose = |from, until| LogRange { from, until }.choose(&names);
        let all = [
            segment(1, 1),
            segment(1, 2),
            segment(3, 3),
            segment(3, 4),
            segment(4, 5),
        ];
        assert_eq!(choose(0, (5, 6)), all, "and nothing of the one that goes on");
        assert_eq!(choose(4, (5, 6)), all[3..]);
        assert_eq!(
            choose(0, (6, 7)),
            [&all[..], &[segment(5, 6)]].concat(),
            "a claim without a segment yet"
        );
        assert_eq!(choose(0, (2, 4)), [segment(1, 1), segment(1, 2), segment(1, 3)]);
        assert_eq!(choose(0, (1, 1)), []);
    }
}
