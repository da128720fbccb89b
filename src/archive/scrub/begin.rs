#![allow(clippy::disallowed_methods, reason = "shell: waits for the bucket")]
//! Where the log begins: the boundary is what its name says, the first segment goes on from it, and what it says that
//! the removed segments led to stands in the archive.

use super::content::{Bad, read_log_file};
use super::read::Outcome;
use super::report::Fault;
use super::run::{Scrub, ScrubError};
use crate::archive::boundary::{BOUNDARY_BYTES_MAX, Boundary, check_begin, leads_to};
use crate::archive::erase::note::Note;
use crate::archive::log_chain::{Link, LogChain, SegmentHead};
use crate::archive::log_file::Origin;
use crate::archive::names::{BoundaryName, ObjectName, SegmentName};

impl Scrub<'_> {
    /// The beginnings of all logs.
    pub(super) async fn beginnings(&mut self) -> Result<(), ScrubError> {
        let boundaries = std::mem::take(&mut self.inventory.boundaries);
        self.done(boundaries.len() as u64 + self.inventory.leftover_segments);
        self.inventory.boundaries.clone_from(&boundaries);
        let mut firsts: Vec<SegmentName> = Vec::new();
        for segment in &self.inventory.segments {
            if firsts.last().is_none_or(|last| last.shard != segment.shard) {
                firsts.push(*segment);
            }
        }
        let begun = boundaries.iter().map(|begin| begin.shard);
        let mut shards: Vec<u32> = firsts.iter().map(|first| first.shard).chain(begun).collect();
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            let name = self.inventory.boundary(shard);
            let boundary = match name {
                Some(name) => self.read_boundary(name).await?,
                None => None,
            };
            let first = firsts.iter().find(|first| first.shard == shard).copied();
            let mut heads = Vec::new();
            if let Some(first) = first {
                let read = self.reader.check(&first.to_string(), read_log_file).await;
                if matches!(read, Outcome::Gone) {
                    // The log begins behind it by now.
                    continue;
                }
                let link = match read {
                    Outcome::Sound(file) => match file.index.origin {
                        Origin::Segment { prev, .. } => Some(Link {
                            root: file.root,
                            prev,
                        }),
                        Origin::Delta { .. } => None,
                    },
                    _ => None,
                };
                heads.push(SegmentHead { name: first, link });
            }
            let chain = LogChain {
                order: (0..heads.len()).collect(),
                ..LogChain::default()
            };
            let begin = name.map(|name| (name, boundary.as_ref()));
            if let Some(detail) = check_begin(&heads, &chain, begin) {
                let object = match (first, name) {
                    (Some(first), _) => first.to_string(),
                    (None, Some(name)) => name.to_string(),
                    (None, None) => continue,
                };
                let affects = "what was applied before the first segment that is there; accounts that were \
                               snapshotted since are whole again from there";
                self.find(Fault::MissingObject, &object, None, detail, affects.to_owned());
            }
            if let Some(boundary) = boundary {
                self.check_claims(&boundary);
            }
        }
        Ok(())
    }

    async fn read_boundary(&mut self, name: BoundaryName) -> Result<Option<Boundary>, ScrubError> {
        let read = self.reader.bytes(&name.to_string(), BOUNDARY_BYTES_MAX).await;
        let decoded = read.and_then(|bytes| Boundary::decode(&bytes, &name).map_err(Bad::Other));
        let affects = || "where the log begins is known from its name alone; standings that it kept are lost";
        self.judge(&ObjectName::Boundary(name), None, decoded, || {
            affects().to_owned()
        })
    }

    /// What it says that the removed segments led to is there.
    fn check_claims(&mut self, boundary: &Boundary) {
        for (did, rev) in &boundary.led_to {
            let held = self.inventory.accounts.get(did);
            let ends = held.into_iter().flat_map(|held| {
                let deltas = held.deltas.iter().map(|(_, to)| *to);
                held.snapshots.iter().copied().chain(deltas)
            });
            if self.erased.get(did).is_some_and(Note::is_gone) || leads_to(ends, *rev) {
                continue;
            }
            let detail = format!(
                "it says that the segments before it could go, which led to rev {rev} of {did}; no snapshot and no \
                 delta leads as far"
            );
            let affects = format!("what {did} held at rev {rev}, and before it");
            self.find(
                Fault::NoSnapshot,
                &boundary.name.to_string(),
                Some(did),
                detail,
                affects,
            );
        }
    }
}
