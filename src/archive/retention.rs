//! What may go from the archive, as a plan: pure, printable, and applied by somebody else.
//!
//! For each account the plan keeps the newest snapshot, and the newest one that is known to prove; the newest of the
//! last hours, days, weeks and months; and for every moment of the point-in-time window a snapshot at or before it
//! with every delta since. What a delta chain does not lead to is kept as a snapshot. Blobs are kept as long as a
//! kept moment refers to them, and for a grace afterwards. Of a pinned account nothing goes; of a deleted one nothing
//! before its grace is over, and then everything. In doubt (a rev that is no time, a blob whose uses are not known, a
//! snapshot that does not prove) it is kept.
//!
//! Planning again after a plan was applied, at the same time, removes nothing more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

use crate::types::{Digest, Rev, Timestamp};

mod lead;
#[cfg(test)]
mod tests;

/// Before this, no account of AT Protocol wrote anything: an earlier rev is no time.
const FIRST_TIME: Timestamp = Timestamp::from_micros(1_640_995_200_000_000);
/// How far a rev may lie in the future and still be a time.
const FUTURE: Duration = Duration::from_secs(24 * 3600);

/// What to keep: the keys below `keep`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Keep {
    /// So many of the newest snapshots.
    pub last: u32,
    /// The newest of each of the last so many hours that have one.
    pub hours: u32,
    /// The same for days, in UTC.
    pub days: u32,
    /// For weeks, from Monday.
    pub weeks: u32,
    /// For months.
    pub months: u32,
    /// Every moment can be restored that is not older than this.
    pub window: Duration,
    /// A deleted account's data goes after this.
    pub deleted: Duration,
    /// A blob goes so long after the last record that referred to it.
    pub withdrawn: Duration,
}

/// Whether a snapshot was seen to rebuild to its signed root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It was.
    Sound,
    /// Nobody looked.
    Unknown,
    /// It does not.
    Bad,
}

/// A snapshot in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its rev.
    pub rev: Rev,
    /// Its length.
    pub bytes: u64,
    /// Whether it proves.
    pub proof: Proof,
}

/// A delta in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// The rev that it applies to.
    pub from: Rev,
    /// The rev that it leads to.
    pub to: Rev,
    /// Its length.
    pub bytes: u64,
    /// Which rev it leads to from which, step by step; none: it was not read, and counts for what its name says.
    pub steps: Option<Vec<(Rev, Rev)>>,
}

/// A blob in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Which.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
    /// When records referred to it; none: not known.
    pub uses: Option<Vec<Use>>,
}

/// A stretch in which some record refers to a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// The first rev that does.
    pub from: Rev,
    /// The first rev that does not any more, and when that was; none: the head does.
    pub until: Option<(Rev, Timestamp)>,
}

/// What the archive holds of one account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Its snapshots, in any order.
    pub snapshots: Vec<Snapshot>,
    /// Its deltas, in any order.
    pub deltas: Vec<Delta>,
    /// Its blobs.
    pub blobs: Vec<Blob>,
    /// An alarm pins it.
    pub pinned: bool,
    /// Since when it is deleted at its host.
    pub deleted: Option<Timestamp>,
}

/// Why something stays. Labels are an interface: keep stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// An alarm pins the account.
    Pinned,
    /// The account is deleted, and not for long.
    DeletedLately,
    /// The newest snapshot.
    Newest,
    /// The newest snapshot that is known to prove.
    NewestSound,
    /// One of the last ones.
    Last,
    /// The newest of its hour.
    Hour,
    /// The newest of its day.
    Day,
    /// The newest of its week.
    Week,
    /// The newest of its month.
    Month,
    /// Moments of the window are restored from it.
    WindowBase,
    /// It lies in the window, and no delta leads to it.
    NothingLeadsHere,
    /// A delta of the window.
    Window,
    /// Its rev is no time.
    NoTime,
    /// It does not prove: a person should look at it.
    Unproven,
    /// A kept moment refers to it.
    Referenced,
    /// Nothing refers to it any more, and not for long.
    WithdrawnLately,
    /// It is not known what refers to it.
    UsesUnknown,
    /// There is no snapshot to lean on.
    NoSnapshot,
}

/// Why something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gone {
    /// Older than the window, and no rule keeps it; or within it, and deltas lead there.
    NotNeeded,
    /// No kept moment refers to it.
    NotReferenced,
    /// The account was deleted long ago.
    DeletedLongAgo,
}

/// What becomes of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It stays, for each of these reasons.
    Keep(BTreeSet<Kept>),
    /// It goes.
    Delete(Gone),
}

/// An object and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned<T> {
    /// The object.
    pub what: T,
    /// What becomes of it.
    pub fate: Fate,
}

/// What becomes of everything of one account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Of its snapshots, oldest first.
    pub snapshots: Vec<Planned<Snapshot>>,
    /// Of its deltas, oldest first.
    pub deltas: Vec<Planned<Delta>>,
    /// Of its blobs.
    pub blobs: Vec<Planned<Blob>>,
}

impl<T> Planned<T> {
    /// Whether it stays.
    #[must_use]
    pub const fn stays(&self) -> bool {
        matches!(self.fate, Fate::Keep(_))
    }
}

/// The time that a rev claims; none if it cannot be one.
#[must_use]
pub fn time_of(rev: Rev, now: Timestamp) -> Option<Timestamp> {
    let time = rev.time();
    (time >= FIRST_TIME && time <= now.plus(FUTURE)).then_some(time.min(now))
}

/// A CAR that is kept as it came, by rev and digest of its commit.
pub type KeptAsItCame = (Rev, Digest);

/// Which CARs of a lax or restored host, kept as they came, may go: one that was what the host had at a moment of the
/// window stays. That is over for one when a later one stands for longer than the window, or when the account has
/// followed its host again for as long (`over`: the one that the mirror keeps, and since when it follows again).
#[must_use]
pub fn superseded(
    all: &[KeptAsItCame],
    over: (Option<KeptAsItCame>, Option<Timestamp>),
    keep: &Keep,
    now: Timestamp,
) -> BTreeSet<KeptAsItCame> {
    let start = now.minus(keep.window);
    let (current, followed_again) = over;
    let old = |rev: Rev| time_of(rev, now).is_some_and(|time| time <= start);
    let follows = current.is_none() && followed_again.is_some_and(|since| since <= start);
    let gone = all.iter().filter(|kept| {
        let later = all.iter().any(|(rev, _)| *rev > kept.0 && old(*rev));
        old(kept.0) && Some(**kept) != current && (follows || later)
    });
    gone.copied().collect()
}

/// Plans for one account.
#[must_use]
pub fn plan(holdings: &Holdings, keep: &Keep, now: Timestamp) -> Plan {
    let mut sorted = holdings.clone();
    sorted.snapshots.sort_by_key(|snapshot| snapshot.rev);
    sorted.deltas.sort_by_key(|delta| (delta.from, delta.to));
    if holdings.pinned {
        return all(sorted, &Fate::Keep(BTreeSet::from([Kept::Pinned])));
    }
    if let Some(deleted) = holdings.deleted {
        return all(
            sorted,
            &match now.since(deleted) >= keep.deleted {
                true => Fate::Delete(Gone::DeletedLongAgo),
                false => Fate::Keep(BTreeSet::from([Kept::DeletedLately])),
            },
        );
    }
    Planner::new(&sorted, keep, now).run(sorted)
}

fn all(holdings: Holdings, fate: &Fate) -> Plan {
    fn each<T>(things: Vec<T>, fate: &Fate) -> Vec<Planned<T>> {
        let planned = things.into_iter().map(|what| Planned {
            what,
            fate: fate.clone(),
        });
        planned.collect()
    }
    Plan {
        snapshots: each(holdings.snapshots, fate),
        deltas: each(holdings.deltas, fate),
        blobs: each(holdings.blobs, fate),
    }
}

/// The newest of each of the last so many periods stays, for this reason; and which period a time is in.
type Rule = (u32, Kept, fn(Timestamp) -> i64);

struct Planner<'a> {
    keep: &'a Keep,
    now: Timestamp,
    /// Rev and time of each snapshot that may prove, oldest first; times rise with revs.
    usable: Vec<(Rev, Option<Timestamp>, Proof)>,
    kept: BTreeMap<Rev, BTreeSet<Kept>>,
    /// From here on every moment is kept.
    base: Option<Rev>,
    /// Deltas that lead there from before.
    led: BTreeSet<(Rev, Rev)>,
}

impl<'a> Planner<'a> {
    fn new(holdings: &Holdings, keep: &'a Keep, now: Timestamp) -> Self {
        let mut latest = None;
        let usable = holdings
            .snapshots
            .iter()
            .filter(|snapshot| snapshot.proof != Proof::Bad);
        let usable = usable.map(|snapshot| {
            let time = time_of(snapshot.rev, now).map(|time| latest.map_or(time, |latest| time.max(latest)));
            latest = latest.max(time);
            (snapshot.rev, time, snapshot.proof)
        });
        Self {
            keep,
            now,
            usable: usable.collect(),
            kept: BTreeMap::new(),
            base: None,
            led: BTreeSet::new(),
        }
    }

    fn run(mut self, holdings: Holdings) -> Plan {
        self.newest();
        self.by_time();
        self.window(&holdings.deltas);
        for snapshot in &holdings.snapshots {
            if snapshot.proof == Proof::Bad {
                self.keep(snapshot.rev, Kept::Unproven);
            }
        }
        let snapshots = holdings.snapshots.into_iter().map(|what| Planned {
            fate: match self.kept.get(&what.rev) {
                Some(reasons) => Fate::Keep(reasons.clone()),
                None => Fate::Delete(Gone::NotNeeded),
            },
            what,
        });
        let snapshots: Vec<_> = snapshots.collect();
        let deltas = holdings.deltas.into_iter().map(|what| Planned {
            fate: match self.base {
                None => Fate::Keep(BTreeSet::from([Kept::NoSnapshot])),
                Some(base) if what.to > base || self.led.contains(&(what.from, what.to)) => {
                    Fate::Keep(BTreeSet::from([Kept::Window]))
                }
                Some(_) => Fate::Delete(Gone::NotNeeded),
            },
            what,
        });
        let deltas = deltas.collect();
        let blobs = holdings.blobs.into_iter().map(|what| Planned {
            fate: self.blob(&what),
            what,
        });
        Plan {
            blobs: blobs.collect(),
            snapshots,
            deltas,
        }
    }

    fn keep(&mut self, rev: Rev, why: Kept) {
        self.kept.entry(rev).or_default().insert(why);
    }

    fn newest(&mut self) {
        if let Some((rev, ..)) = self.usable.last().copied() {
            self.keep(rev, Kept::Newest);
        }
        let sound = self
            .usable
            .iter()
            .rev()
            .find(|(.., proof)| *proof == Proof::Sound);
        if let Some((rev, ..)) = sound.copied() {
            self.keep(rev, Kept::NewestSound);
        }
    }

    /// The last ones, and the newest of each hour, day, week and month.
    fn by_time(&mut self) {
        let last = self.usable.iter().rev().take(self.keep.last as usize);
        let last: Vec<Rev> = last.map(|(rev, ..)| *rev).collect();
        for rev in last {
            self.keep(rev, Kept::Last);
        }
        let rules: [Rule; 4] = [
            (self.keep.hours, Kept::Hour, hour_of),
            (self.keep.days, Kept::Day, |time| hour_of(time) / 24),
            // The first of January 1970 was a Thursday.
            (self.keep.weeks, Kept::Week, |time| (hour_of(time) / 24 + 3) / 7),
            (self.keep.months, Kept::Month, month_of),
        ];
        for (count, why, period) in rules {
            let mut last = None;
            let mut periods = 0;
            for (rev, time, _) in self.usable.clone().into_iter().rev() {
                let Some(time) = time else {
                    self.keep(rev, Kept::NoTime);
                    continue;
                };
                if last == Some(period(time)) {
                    continue;
                }
                if periods == count {
                    break;
                }
                (last, periods) = (Some(period(time)), periods + 1);
                self.keep(rev, why);
            }
        }
        // A rule that ended early has not seen them all.
        for (rev, time, _) in self.usable.clone() {
            if time.is_none() {
                self.keep(rev, Kept::NoTime);
            }
        }
    }

    /// For every moment of the window, a snapshot at or before it, and all since.
    fn window(&mut self, deltas: &[Delta]) {
        let start = self.now.minus(self.keep.window);
        let before = |(_, time, _): &&(Rev, Option<Timestamp>, Proof)| time.is_none_or(|time| time <= start);
        let usable = self.usable.clone();
        let unknown = usable.iter().any(|(_, time, _)| time.is_none());
        let newest = usable.iter().rev().find(before);
        let sound = usable
            .iter()
            .rev()
            .filter(before)
            .find(|(.., proof)| *proof == Proof::Sound);
        let base = match (newest, sound) {
            // Where times are not known, nothing of the history can be placed before the window.
            _ if unknown => usable.first(),
            (None, _) => usable.first(),
            // One that nobody proved is not leant on alone.
            (Some(_), Some(sound)) => Some(sound),
            (Some(newest), None) => Some(newest),
        };
        let Some((base, ..)) = base.copied() else { return };
        self.base = Some(base);
        self.keep(base, Kept::WindowBase);
        self.lead(base, deltas);
    }

    fn blob(&self, blob: &Blob) -> Fate {
        let keep = |why| Fate::Keep(BTreeSet::from([why]));
        let Some(base) = self.base else {
            return keep(Kept::NoSnapshot);
        };
        let Some(uses) = &blob.uses else {
            return keep(Kept::UsesUnknown);
        };
        let at =
            |moment: Rev, of: &Use| of.from <= moment && of.until.is_none_or(|(until, _)| moment < until);
        let referenced = uses.iter().any(|of| {
            of.until.is_none_or(|(until, _)| until > base) || self.kept.keys().any(|moment| at(*moment, of))
        });
        if referenced {
            return keep(Kept::Referenced);
        }
        let ended = uses.iter().filter_map(|of| of.until).map(|(_, time)| time).max();
        match ended {
            // Nothing ever referred to it, as far as is known: perhaps it came before its record.
            None => keep(Kept::UsesUnknown),
            Some(ended) if self.now.since(ended) < self.keep.withdrawn => keep(Kept::WithdrawnLately),
            Some(_) => Fate::Delete(Gone::NotReferenced),
        }
    }
}

/// Hours since 1970.
fn hour_of(time: Timestamp) -> i64 {
    i64::try_from(time.micros() / 3_600_000_000).unwrap_or(i64::MAX)
}

/// Months since the year 0.
fn month_of(time: Timestamp) -> i64 {
    let seconds = i64::try_from(time.micros() / 1_000_000).unwrap_or(0);
    let date = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    i64::from(date.year()) * 12 + i64::from(u8::from(date.month()))
}
