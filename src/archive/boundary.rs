//! Where the log begins, since what stood before was removed.
//!
//! Segments are removed oldest first, and only behind a *boundary*: an object that is put before the first of them
//! goes, is never replaced, and names the first segment that stays. So whoever reads the log knows that what is missing
//! before it is no loss, and that what is missing behind it is one. Whatever segment is older than the newest boundary
//! is no part of the log any more, whether it was removed yet or not: removing goes on where it was cut short.
//!
//! A boundary keeps what no other object says of the removed segments (the accounts' standings), and names for each
//! account up to which rev they led: the archive must hold a snapshot or a delta that leads as far, or the boundary
//! claims too much.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::log_chain::{LogChain, SegmentHead};
use super::log_file::{Change, Entry, LogIndex};
use super::names::{BoundaryName, SegmentName};
use super::sealed::{self, Seal};
use crate::types::{Cid, Did, Rev, Timestamp};

#[cfg(test)]
mod tests;

/// The format that this version writes, and the newest that it reads.
const FORMAT: u64 = 1;
/// Longest boundary that is read, in bytes.
pub const BOUNDARY_BYTES_MAX: usize = 64 << 20;
/// Most accounts whose standings a boundary keeps.
pub const STANDINGS_MAX: usize = 200_000;

/// What a boundary says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundary {
    /// Where the log begins.
    pub name: BoundaryName,
    /// The index that the first segment names as the one before it.
    pub prev: Option<Cid>,
    /// When it was made.
    pub time: Timestamp,
    /// The newest standing of each account that the removed segments told, of all boundaries so far.
    pub standings: BTreeMap<Did, Entry>,
    /// Up to which rev the segments led that went behind this boundary.
    pub led_to: BTreeMap<Did, Rev>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Standing {
    did: String,
    host: String,
    active: bool,
    status: Option<String>,
    received: String,
}

impl SegmentName {
    /// Where it stands in the log of its shard, whichever edition it is.
    #[must_use]
    pub const fn place(&self) -> BoundaryName {
        BoundaryName {
            shard: self.shard,
            generation: self.generation,
            number: self.number,
        }
    }
}

impl Boundary {
    /// The first boundary of a log, or one that goes on from another: nothing is removed by it yet.
    #[must_use]
    pub fn at(name: BoundaryName, prev: Option<Cid>, before: Option<&Self>, now: Timestamp) -> Self {
        Self {
            name,
            prev,
            time: now,
            standings: before.map_or_else(BTreeMap::new, |before| before.standings.clone()),
            led_to: BTreeMap::new(),
        }
    }

    /// A segment goes behind it. Of an account that `is_gone` tells nothing is claimed.
    pub fn pass(&mut self, index: &LogIndex, is_gone: impl Fn(&Did) -> bool) {
        for entry in &index.entries {
            let did = entry.did();
            if is_gone(did) && !matches!(entry, Entry::Account { .. }) {
                continue;
            }
            match entry {
                Entry::Account { .. } => drop(self.standings.insert(did.clone(), entry.clone())),
                Entry::Commit(Change { rev, .. })
                | Entry::Swap(Change { rev, .. })
                | Entry::Loaded { rev, .. } => {
                    let known = self.led_to.entry(did.clone()).or_insert(*rev);
                    *known = (*known).max(*rev);
                }
            }
        }
    }

    /// The file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let standings = self.standings.values().filter_map(|entry| match entry {
            Entry::Account {
                did,
                host,
                status,
                received,
            } => Some(serde_json::json!(Standing {
                did: did.to_string(),
                host: host.to_string(),
                active: status.is_active(),
                status: status.wire_name().map(str::to_owned),
                received: received.to_string(),
            })),
            _ => None,
        });
        let led_to = self
            .led_to
            .iter()
            .map(|(did, rev)| (did.to_string(), Value::String(rev.to_string())));
        sealed::seal(Map::from_iter([
            ("format".to_owned(), Value::from(FORMAT)),
            ("begins".to_owned(), Value::String(self.name.to_string())),
            (
                "prev".to_owned(),
                self.prev
                    .map_or(Value::Null, |prev| Value::String(prev.to_string())),
            ),
            ("time".to_owned(), Value::String(self.time.to_string())),
            ("standings".to_owned(), standings.collect()),
            ("led_to".to_owned(), Value::Object(led_to.collect())),
        ]))
    }

    /// Reads a file, and checks it against its name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8], name: &BoundaryName) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            format: u64,
            begins: String,
            prev: Option<String>,
            time: String,
            standings: Vec<Standing>,
            led_to: BTreeMap<String, String>,
            #[expect(dead_code, reason = "checked as a whole")]
            sha256: String,
        }
        if sealed::check(bytes) != Seal::Sound {
            return Err("its own checksum does not fit its bytes".to_owned());
        }
        let file: File =
            serde_json::from_slice(bytes).map_err(|error| format!("it is malformed: {error}"))?;
        if file.format > FORMAT {
            return Err(format!(
                "it has format {}, and this version knows format {FORMAT}; use a newer version",
                file.format
            ));
        }
        if file.begins != name.to_string() {
            return Err("it is another boundary than its name says".to_owned());
        }
        let bad = |error: crate::types::SyntaxError| format!("it is malformed: {error}");
        let mut standings = BTreeMap::new();
        for standing in file.standings {
            let did: Did = standing.did.parse().map_err(bad)?;
            let entry = Entry::Account {
                did: did.clone(),
                host: standing.host.parse().map_err(bad)?,
                status: crate::types::AccountStatus::from_wire(standing.active, standing.status.as_deref()),
                received: standing.received.parse().map_err(bad)?,
            };
            standings.insert(did, entry);
        }
        let led_to = file
            .led_to
            .into_iter()
            .map(|(did, rev)| Ok((did.parse().map_err(bad)?, rev.parse().map_err(bad)?)));
        Ok(Self {
            name: *name,
            prev: file.prev.map(|prev| prev.parse()).transpose().map_err(bad)?,
            time: file.time.parse().map_err(bad)?,
            standings,
            led_to: led_to.collect::<Result<_, String>>()?,
        })
    }
}

/// The segments of one shard, as far as names tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Where the log begins.
    pub boundary: Option<BoundaryName>,
    /// Boundaries that a newer one has taken the place of.
    pub old_boundaries: Vec<BoundaryName>,
    /// What stands at the boundary or behind it, each in its newest edition, in order.
    pub segments: Vec<SegmentName>,
    /// What stands before it, and may go.
    pub removed: Vec<SegmentName>,
    /// Older editions of what stands behind it, which may go.
    pub replaced: Vec<SegmentName>,
}

/// Tells the log from what is no part of it any more.
#[must_use]
pub fn listed(
    segments: impl IntoIterator<Item = SegmentName>,
    boundaries: impl IntoIterator<Item = BoundaryName>,
) -> Listed {
    let mut old_boundaries: Vec<BoundaryName> = boundaries.into_iter().collect();
    old_boundaries.sort_unstable();
    let boundary = old_boundaries.pop();
    let mut listed = Listed {
        boundary,
        old_boundaries,
        ..Listed::default()
    };
    let all: BTreeSet<SegmentName> = segments.into_iter().collect();
    for name in all {
        if boundary.is_some_and(|begin| name.place() < begin) {
            listed.removed.push(name);
            continue;
        }
        if let Some(last) = listed.segments.last_mut()
            && last.place() == name.place()
        {
            listed.replaced.push(std::mem::replace(last, name));
        } else {
            listed.segments.push(name);
        }
    }
    listed
}

/// What is wrong with the beginning of a log, if anything. `boundary`: none: there is none; an inner none: it cannot
/// be read.
#[must_use]
pub fn check_begin(
    heads: &[SegmentHead],
    chain: &LogChain,
    boundary: Option<(BoundaryName, Option<&Boundary>)>,
) -> Option<String> {
    let first = chain.order.first().map(|at| &heads[*at]);
    match (boundary, first) {
        (None, None) => None,
        (Some((name, _)), None) => Some(format!("the log begins at {name}, and no segment is there")),
        (None, Some(first)) => first.link.and_then(|link| link.prev).map(|_| {
            format!(
                "{} goes on from a segment that is not there, and no boundary says that it was removed",
                first.name
            )
        }),
        (Some((name, _)), Some(first)) if first.name.place() != name => Some(format!(
            "the log begins at {name}, and the first segment that is there is {}",
            first.name
        )),
        (Some((name, Some(boundary))), Some(first)) => {
            let differs = first.link.is_some_and(|link| link.prev != boundary.prev);
            differs.then(|| format!("{} does not go on from where {name} says", first.name))
        }
        (Some((_, None)), Some(_)) => None,
    }
}

/// What the archive holds of an account, as far as it stands in for entries of the log. Names say where to look; what
/// counts is what was found there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cover {
    /// Snapshots, by rev.
    pub snapshots: BTreeMap<Rev, Cid>,
    /// Those that were read, and rebuild to their signed root; and those that do not.
    pub sound: BTreeSet<Rev>,
    /// See there.
    pub rotten: BTreeSet<Rev>,
    /// From and to of each delta; and whether it was read.
    pub deltas: Vec<(Rev, Rev, bool)>,
    /// What the deltas that were read tell: which rev builds on which, and its commit.
    pub told: BTreeSet<(Rev, Rev, Cid)>,
    /// No moment before the rev of this snapshot is kept any more.
    pub needless_before: Option<Rev>,
    /// Nothing of the account is kept: it was erased, or deleted long ago.
    pub is_gone: bool,
}

/// Whether what an entry says stands elsewhere, or is not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// It does, or is not.
    Yes,
    /// No.
    No,
    /// If the snapshot of this rev proves.
    IfSound(Rev),
    /// If this one of the deltas tells it.
    IfTold(usize),
}

impl Cover {
    /// Whether what an entry says stands elsewhere, or is not needed; or what has to be looked at first.
    #[must_use]
    pub fn has(&self, entry: &Entry) -> Stands {
        if self.is_gone {
            return Stands::Yes;
        }
        match entry {
            // The boundary keeps it.
            Entry::Account { .. } => Stands::Yes,
            Entry::Loaded { rev, .. } => self.says(self.snapshots.range(*rev..).map(|(rev, _)| *rev)),
            Entry::Commit(change) | Entry::Swap(change) => {
                if self.told.contains(&(change.since, change.rev, change.commit)) {
                    return Stands::Yes;
                }
                // A delta that leads over it need not hold it: a mirror that fell back may have made it.
                let leads_over =
                    |(from, to, read): &(Rev, Rev, bool)| !read && *from <= change.since && change.rev <= *to;
                if let Some(at) = self.deltas.iter().position(leads_over) {
                    return Stands::IfTold(at);
                }
                self.says(
                    self.needless_before
                        .filter(|base| change.rev <= *base)
                        .into_iter(),
                )
            }
        }
    }

    /// Whether the moment that a change led to has a snapshot of its own: then nothing else has to lead there, though
    /// what it changed is told by comparing only.
    #[must_use]
    pub fn has_moment(&self, change: &Change) -> Stands {
        let same = self.snapshots.get(&change.rev) == Some(&change.commit);
        self.says(same.then_some(change.rev).into_iter())
    }

    /// Whether one of these snapshots proves.
    fn says(&self, revs: impl Iterator<Item = Rev> + Clone) -> Stands {
        if revs.clone().any(|rev| self.sound.contains(&rev)) {
            return Stands::Yes;
        }
        let mut unseen = revs.filter(|rev| !self.rotten.contains(rev));
        unseen.next().map_or(Stands::No, Stands::IfSound)
    }

    /// Whether something here leads to a rev, so that what builds on it can be told by a delta; none: a delta may, which
    /// was not read.
    #[must_use]
    pub fn anchors(&self, rev: Rev) -> Stands {
        if self.snapshots.contains_key(&rev) || self.told.iter().any(|(_, told, _)| *told == rev) {
            return Stands::Yes;
        }
        let leads_over = |(from, to, read): &(Rev, Rev, bool)| !read && *from < rev && rev <= *to;
        let at = self.deltas.iter().position(leads_over);
        at.map_or(Stands::No, Stands::IfTold)
    }

    /// Whether the archive leads as far as a boundary says that the removed segments did.
    #[must_use]
    pub fn leads_to(&self, rev: Rev) -> bool {
        let ends = self.deltas.iter().map(|(_, to, _)| *to);
        self.is_gone || leads_to(self.snapshots.keys().copied().chain(ends), rev)
    }
}

/// Whether what leads to these revs leads to this one.
#[must_use]
pub fn leads_to(mut ends: impl Iterator<Item = Rev>, rev: Rev) -> bool {
    ends.any(|end| end >= rev)
}
