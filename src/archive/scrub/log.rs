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
        for (index, segment) in segments.iter().enumerate() {
            self.done(1);
            if resumed.is_some_and(|done| *segment <= done) {
                continue;
            }
            if self.state.stale != Some(segment.generation) {
                self.state.stale = None;
            }
            let next = segments[index + 1..]
                .iter()
                .find(|later| later.generation != segment.generation);
            let next = next.filter(|later| later.shard == segment.shard).copied();
            self.segment(*segment, next).await?;
            self.state.segment = Some(segment.to_string());
            self.keep()?;
        }
        Ok(())
    }

    /// One segment. `next` is the first one of the writer that came after this one's.
    async fn segment(&mut self, segment: SegmentName, next: Option<SegmentName>) -> Result<(), ScrubError> {
        let text = segment.to_string();
        if !self.state.sample.takes(&text) {
            return Ok(());
        }
        let Some(file) = self.read_segment(segment).await? else {
            return Ok(());
        };
        if self.state.stale.is_some() {
            self.state.counts.stale_segments += 1;
            return Ok(());
        }
        if self.state.sample.is_all() {
            let inventory = &self.inventory;
            let held = |did: &Did| inventory.accounts.get(did);
            self.state
                .log
                .push(segment, &file, held, &mut self.state.findings);
        }
        // Whoever took over built on this one: what this writer wrote behind it is no part of the log.
        if let Some(next) = next
            && self.builds_on(next).await == Some(file.root)
        {
            self.state.stale = Some(segment.generation);
        }
        Ok(())
    }

    async fn read_segment(&mut self, segment: SegmentName) -> Result<Option<LogFile>, ScrubError> {
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
        let Some((file, tally)) = read else {
            // Segments go oldest first: with this one all before it went, and the log begins behind it.
            if gone {
                self.state.log = LogChain::default();
            } else {
                self.state.log.push_unreadable(segment);
            }
            return Ok(None);
        };
        self.state.counts.add(tally);
        Ok(Some(file))
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
            let lost = change
                .ops
                .iter()
                .find(|op| op.cid.is_some_and(|cid| gone.contains(&cid)));
            if let Some(op) = lost
                && !self.erased.contains(&change.did)
            {
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
