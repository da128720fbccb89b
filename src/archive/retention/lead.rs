//! What leads from the snapshots that are kept to every moment behind the first of them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Delta, Kept, Planner};
use crate::types::Rev;

/// The rev that something leads on from, and the delta that does.
type Step = (Rev, (Rev, Rev));

impl Planner<'_> {
    /// Every moment behind `base` that can be reached at all is reached from what is kept.
    pub(super) fn lead(&mut self, base: Rev, deltas: &[Delta]) {
        let usable: BTreeSet<Rev> = self.usable.iter().map(|(rev, ..)| *rev).collect();
        let mut steps: BTreeMap<Rev, Vec<Step>> = BTreeMap::new();
        let mut unread: BTreeSet<(Rev, Rev)> = BTreeSet::new();
        for delta in deltas {
            let name = (delta.from, delta.to);
            match &delta.steps {
                Some(told) => {
                    for (since, rev) in told.iter().filter(|(since, rev)| since < rev) {
                        steps.entry(*rev).or_default().push((*since, name));
                    }
                }
                None => drop(unread.insert(name)),
            }
        }
        // What leads to a rev from what is reached. A delta that was not read leads on from any moment that it leads over,
        // and to any.
        let leads = |reached: &BTreeSet<Rev>, rev: Rev| {
            let told = steps.get(&rev).into_iter().flatten();
            let told = told.filter(|(since, _)| reached.contains(since)).copied();
            let named = unread.iter().filter(|(from, to)| *from < rev && rev <= *to);
            let named = named.filter_map(|name| Some((*reached.range(name.0..rev).next_back()?, *name)));
            told.chain(named).next()
        };
        let ends = unread.iter().map(|(_, to)| to);
        let revs: BTreeSet<Rev> = usable.iter().chain(steps.keys()).chain(ends).copied().collect();
        // From all that there is: from where each moment can be reached, and by which delta.
        let (mut all, mut from) = (BTreeSet::new(), BTreeMap::new());
        for rev in &revs {
            let step = leads(&all, *rev);
            if let Some(step) = step {
                from.insert(*rev, step);
            }
            if step.is_some() || usable.contains(rev) {
                all.insert(*rev);
            }
        }
        let mut reached = BTreeSet::from([base]);
        for rev in revs.iter().filter(|rev| **rev > base && all.contains(rev)) {
            if leads(&reached, *rev).is_some() {
                reached.insert(*rev);
                continue;
            }
            // A snapshot of its own, or the one that leads here from before.
            let mut at = *rev;
            while !usable.contains(&at) && !reached.contains(&at) {
                reached.insert(at);
                let Some((before, delta)) = from.get(&at) else {
                    break;
                };
                self.led.insert(*delta);
                at = *before;
            }
            if usable.contains(&at) {
                self.keep(at, Kept::NothingLeadsHere);
            }
            reached.insert(at);
        }
    }
}
