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
        let mut steps = Vec::new();
        let mut moment = self.moments.get(index)?;
        loop {
            if let Some(snapshot) = self.snapshots.get(&moment.rev)
                && !without.contains(&moment.rev)
            {
                steps.reverse();
                let snapshot = snapshot.clone();
                return Some(Plan { snapshot, steps });
            }
            let (since, source) = (moment.since?, moment.source?);
            steps.push((source, moment.rev));
            // An entry that applies to a later rev than its own would lead round in a circle.
            moment = &self.moments[self.index_of(since).filter(|_| since < moment.rev)?];
        }
    }

    /// For each moment whether it can be rebuilt, as far as the names and entries tell.
    #[must_use]
    pub fn rebuildable(&self) -> Vec<bool> {
        let mut known: Vec<bool> = Vec::with_capacity(self.moments.len());
        for moment in &self.moments {
            let since = moment.since.filter(|since| *since < moment.rev);
            let leads = since
                .and_then(|since| self.index_of(since))
                .is_some_and(|at| known[at]);
            known.push(moment.snapshot || leads);
        }
        known
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
            Some(next) if next.since == Some(moment.rev) => return None,
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

/// Whether nothing can have been between two moments that the archive ought to know. What was between the last
/// event before a fetch and the fetch, only its host knew.
fn follows(moment: &Moment, next: &Moment) -> bool {
    match next.kind {
        MomentKind::Commit | MomentKind::Swap => next.since == Some(moment.rev),
        MomentKind::Loaded => true,
        MomentKind::Snapshot => false,
    }
}
