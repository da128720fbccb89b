//! What a timeline is asked.

use std::collections::BTreeSet;

use super::{At, Choice, Fault, Gap, Hides, Moment, MomentKind, NoMoment, Plan, Source, Timeline};
use crate::types::Rev;

impl Timeline {
    /// The moment that is asked for.
    ///
    /// # Errors
    /// When there is none.
    pub fn choose(&self, at: At) -> Result<Choice, NoMoment> {
        let first = self.moments.first().ok_or(NoMoment::Nothing)?;
        let count = match at {
            At::Newest => self.moments.len(),
            At::Time(time) => self.moments.partition_point(|moment| moment.time <= time),
            At::Received(time) => self.moments.partition_point(|moment| moment.received <= time),
            At::Rev(rev) => {
                let index = self.index_of(rev).ok_or(NoMoment::NoSuchRev(rev))?;
                return Ok(Choice { index, doubt: None });
            }
        };
        let index = count.checked_sub(1).ok_or(NoMoment::TooEarly {
            first: if matches!(at, At::Received(_)) {
                first.received
            } else {
                first.time
            },
            rev: first.rev,
        })?;
        let doubt = self.doubt_behind(index);
        Ok(Choice { index, doubt })
    }

    /// Where the moment with this rev stands.
    #[must_use]
    pub fn index_of(&self, rev: Rev) -> Option<usize> {
        self.moments.binary_search_by_key(&rev, |moment| moment.rev).ok()
    }

    /// The name of an object that holds entries.
    #[must_use]
    pub fn source_name(&self, source: Source) -> &str {
        self.sources.get(source.0).map_or("", String::as_str)
    }

    /// How to rebuild a moment, from the newest snapshot that leads to it and is not in `without`.
    #[must_use]
    pub fn plan(&self, index: usize, without: &BTreeSet<Rev>) -> Option<Plan> {
        let begins = |rev: &Rev| self.snapshots.contains_key(rev) && !without.contains(rev);
        let led = self.led(begins);
        let mut steps = Vec::new();
        let mut at = index;
        loop {
            let moment = self.moments.get(at)?;
            if begins(&moment.rev) {
                steps.reverse();
                let snapshot = self.snapshots.get(&moment.rev)?.clone();
                return Some(Plan { snapshot, steps });
            }
            let (before, source) = led.get(at).copied().flatten()?;
            steps.push((source?, moment.rev));
            at = before;
        }
    }

    /// For each moment whether it can be rebuilt, as far as the names and entries tell.
    #[must_use]
    pub fn rebuildable(&self) -> Vec<bool> {
        let led = self.led(|rev| self.snapshots.contains_key(rev));
        let moments = self.moments.iter().zip(led);
        moments
            .map(|(moment, led)| moment.snapshot || led.is_some())
            .collect()
    }

    /// From which moment each can be reached, of those that a snapshot begins; and by which object.
    fn led(&self, begins: impl Fn(&Rev) -> bool) -> Vec<Option<(usize, Option<Source>)>> {
        let mut led: Vec<Option<(usize, Option<Source>)>> = Vec::with_capacity(self.moments.len());
        for moment in &self.moments {
            let first = moment.since.map(|since| (since, moment.source));
            let others = moment
                .others
                .iter()
                .map(|(since, source)| (*since, Some(*source)));
            // An entry that applies to a later rev than its own would lead round in a circle.
            let ways = first
                .into_iter()
                .chain(others)
                .filter(|(since, _)| *since < moment.rev);
            let mut known = ways.filter_map(|(since, source)| Some((self.index_of(since)?, source)));
            led.push(known.find(|(at, _)| begins(&self.moments[*at].rev) || led[*at].is_some()));
        }
        led
    }

    /// Where moments are not in the archive.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        let pairs = self
            .moments
            .windows(2)
            .filter(|pair| !follows(&pair[0], &pair[1]));
        let gaps = pairs.map(|pair| Gap {
            after: pair[0].rev,
            before: pair[1].rev,
            broken: pair[1].since.is_some(),
        });
        gaps.collect()
    }

    /// Whether something of the account is lost or damaged, as far as can be known.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        let hides = |fault: &Fault| fault.hides != Hides::Nothing;
        self.gaps().iter().any(|gap| gap.broken) || self.faults.iter().any(hides)
    }

    /// Why moments may be missing right behind this one.
    fn doubt_behind(&self, index: usize) -> Option<String> {
        let moment = &self.moments[index];
        let next = self.moments.get(index + 1);
        match next {
            Some(next) if next.builds_on(moment.rev) => return None,
            Some(next) if !follows(moment, next) => {
                return Some(format!(
                    "the moments between rev {} and rev {} are not in the archive",
                    moment.rev, next.rev
                ));
            }
            _ => {}
        }
        let hidden = self.faults.iter().find(|fault| match fault.hides {
            Hides::Nothing => false,
            Hides::Revs(_, to) => moment.rev < to,
            Hides::Log(place) => moment.place.is_none_or(|own| own < place),
        })?;
        Some(format!("newer moments may be hidden ({hidden})"))
    }
}

impl Moment {
    /// Whether an entry leads from a rev to this moment.
    fn builds_on(&self, rev: Rev) -> bool {
        self.since == Some(rev) || self.others.iter().any(|(since, _)| *since == rev)
    }
}

/// Whether nothing can have been between two moments that the archive ought to know. What was between the last
/// event before a fetch and the fetch, only its host knew.
fn follows(moment: &Moment, next: &Moment) -> bool {
    match next.kind {
        MomentKind::Commit | MomentKind::Swap => next.builds_on(moment.rev),
        MomentKind::Loaded => true,
        MomentKind::Snapshot => false,
    }
}
