#![allow(clippy::disallowed_methods, reason = "shell: waits for the bucket")]
//! The log: every segment read, held against its name, and against the one before it.

use std::collections::{BTreeMap, BTreeSet};

use super::content::{Bad, Tally, check_commits, check_segment_name, read_log_file};
use super::log_chain::LogChain;
use super::read::Outcome;
use super::report::{Fault, Finding};
use super::run::{NAMED_MAX, Scrub, ScrubError};
use crate::archive::log_file::{LogFile, Origin};
use crate::archive::names::{ObjectName, SegmentName};
use crate::types::{Cid, Did};

impl Scrub<'_> {
    /// Numbers that are missing between the log's segments.
    pub(super) async fn missing_segments(&mut self) -> Result<(), ScrubError> {
        let (missing, count) = self.inventory.missing_segments(NAMED_MAX);
        let mut gone = 0;
        for segment in &missing {
            let name = segment.to_string();
            if self.reader.bucket.head(&name).await?.is_some() {
                self.inventory.segments.insert(*segment);
                continue;
            }
            gone += 1;
            self.inventory.findings.add(Finding {
                fault: Fault::MissingObject,
                object: name,
                did: None,
                detail: "the segments before and after it are there, and it is not".to_owned(),
                affects:
                    "what was applied in the second that it held; accounts that were snapshotted since are \
                          whole again from there"
                        .to_owned(),
            });
        }
        let more = count.saturating_sub(missing.len() as u64);
        self.inventory
            .findings
            .count_more(Fault::MissingObject, more.min(u64::MAX - gone));
        Ok(())
    }

    /// The log, segment by segment.
    pub(super) async fn log(&mut self) -> Result<(), ScrubError> {
        let segments: Vec<SegmentName> = self.inventory.segments.iter().copied().collect();
        let resumed: Option<SegmentName> = self.state.segment.as_ref().and_then(|name| name.parse().ok());
        // The first segment of each writer.
        let mut firsts: BTreeMap<(u32, u64), SegmentName> = BTreeMap::new();
        for segment in &segments {
            firsts
                .entry((segment.shard, segment.generation))
                .or_insert(*segment);
        }
        let mut writer = None;
        let mut taken_over_at = None;
        for segment in segments {
            self.done(1);
            if resumed.is_some_and(|done| segment <= done) {
                continue;
            }
            let of = (segment.shard, segment.generation);
            if writer != Some(of) {
                writer = Some(of);
                let mut later = firsts.range((of.0, of.1.saturating_add(1))..=(of.0, u64::MAX));
                taken_over_at = match later.next() {
                    Some((_, first)) if first.generation > of.1 => self.builds_on(*first).await,
                    _ => None,
                };
            }
            if self.state.stale != Some(of) {
                self.state.stale = None;
            }
            self.segment(segment, taken_over_at).await?;
            self.state.segment = Some(segment.to_string());
            self.keep()?;
        }
        Ok(())
    }

    /// One segment. Whoever took over from its writer built on `taken_over_at`.
    async fn segment(&mut self, segment: SegmentName, taken_over_at: Option<Cid>) -> Result<(), ScrubError> {
        let text = segment.to_string();
        if !self.state.sample.takes(&text) {
            return Ok(());
        }
        let read = self.read_segment(segment).await?;
        if self.state.stale.is_some() {
            self.state.counts.stale_segments += 1;
            return Ok(());
        }
        let file = match read {
            Outcome::Sound(file) => file,
            // Segments go oldest first: with this one all before it went, and the log begins behind it.
            Outcome::Gone => {
                self.state.log = LogChain::default();
                return Ok(());
            }
            Outcome::Bad(_) | Outcome::Unread(_) => {
                self.state.log.push_unreadable(segment);
                return Ok(());
            }
        };
        if self.state.sample.is_all() {
            let inventory = &self.inventory;
            let held = |did: &Did| inventory.accounts.get(did);
            self.state
                .log
                .push(segment, &file, held, &mut self.state.findings);
        }
        // What this writer wrote behind it is no part of the log.
        if taken_over_at == Some(file.root) {
            self.state.stale = Some((segment.shard, segment.generation));
        }
        Ok(())
    }

    /// Reads a segment and says what is wrong with it.
    async fn read_segment(&mut self, segment: SegmentName) -> Result<Outcome<LogFile>, ScrubError> {
        let text = segment.to_string();
        let outcome = self.reader.check(&text, read_log_file).await;
        let gone = matches!(outcome, Outcome::Gone);
        let named = outcome.and_then(|file| check_segment_name(&file, segment).map(|()| file));
        let outcome = self.check_entries(named).await?;
        let affects = || {
            "what was applied in the second that it held; accounts that were snapshotted since are whole again \
             from there"
                .to_owned()
        };
        let read = self.judge(&ObjectName::Segment(segment), None, outcome, affects)?;
        Ok(match read {
            Some((file, tally)) => {
                self.state.counts.add(tally);
                Outcome::Sound(file)
            }
            None if gone => Outcome::Gone,
            None => Outcome::Bad(Bad::Other("it was said already".to_owned())),
        })
    }

    /// The commits of a segment or delta, and what of it was erased.
    pub(super) async fn check_entries(
        &mut self,
        read: Outcome<LogFile>,
    ) -> Result<Outcome<(LogFile, Tally)>, ScrubError> {
        let file = match read {
            Outcome::Sound(file) => file,
            other => return Ok(other.and_then(|file| Ok((file, Tally::default())))),
        };
        let dids: BTreeSet<&Did> = file
            .index
            .entries
            .iter()
            .map(crate::archive::log_file::Entry::did)
            .collect();
        let mut keys = BTreeMap::new();
        for did in dids {
            keys.insert(did.clone(), self.keys(did).await?);
        }
        let gone: BTreeSet<Cid> = file.erased().collect();
        for change in file.index.entries.iter().filter_map(|entry| entry.change()) {
            let note = self.erased.get(&change.did);
            let noted = |cid: &Cid| note.is_some_and(|note| note.withholds(cid));
            let lost = change
                .ops
                .iter()
                .find(|op| op.cid.is_some_and(|cid| gone.contains(&cid) && !noted(&cid)));
            if let Some(op) = lost {
                let bad = format!(
                    "record {} of {} is not in it, and no erasure is noted",
                    op.path, change.did
                );
                return Ok(Outcome::Bad(Bad::Other(bad)));
            }
        }
        self.state.counts.erased_records += gone.len() as u64;
        let checked = check_commits(&file, |did| keys.get(did).map_or(&[], |keys| &**keys));
        Ok(match checked {
            Ok(tally) => Outcome::Sound((file, tally)),
            Err(bad) => Outcome::Bad(bad),
        })
    }

    /// The index that a segment names as the one before it.
    async fn builds_on(&mut self, segment: SegmentName) -> Option<Cid> {
        match self.reader.check(&segment.to_string(), read_log_file).await {
            Outcome::Sound(file) => match file.index.origin {
                Origin::Segment { prev, .. } => prev,
                Origin::Delta { .. } => None,
            },
            _ => None,
        }
    }
}
