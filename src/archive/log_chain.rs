//! Which segments are the log, in which order, and what of it is missing.
//!
//! Each segment names the index of the one before it, of whatever writer. So the log is read backwards: all of the
//! newest generation, then what its first segment goes on from, and so on. What an older writer wrote beyond that
//! point, while another had already taken over, is stale and counts for nothing. Where a link is lost with the
//! object that held it, the numbers tell: within the log they rise one by one.
//!
//! That the oldest segment names one which is not there is no loss: covered segments are removed, oldest first.

use std::fmt;

use super::names::SegmentName;
use crate::types::Cid;

/// A segment as far as its place in the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHead {
    /// Its name.
    pub name: SegmentName,
    /// What it says of itself; none: it cannot be read.
    pub link: Option<Link>,
}

/// How a segment hangs together with the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub root: Cid,
    /// The index of the one before it; none: it is the first of the log.
    pub prev: Option<Cid>,
}

/// The log of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogChain {
    /// What belongs to it, oldest first: positions in what was given. Unreadable ones have their place too.
    pub order: Vec<usize>,
    /// What does not: a stale writer's.
    pub stale: Vec<usize>,
    /// Where something is missing.
    pub gaps: Vec<LogGap>,
}

/// Something is missing between two segments of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogGap {
    /// The last one before it.
    pub after: SegmentName,
    /// The first one behind it.
    pub before: SegmentName,
}

impl fmt::Display for LogGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.before.number.saturating_sub(self.after.number) {
            0 | 1 => write!(f, "{} does not go on from {}", self.before, self.after),
            2 => write!(f, "segment number {} is missing", self.after.number + 1),
            _ => write!(
                f,
                "segments number {} to {} are missing",
                self.after.number + 1,
                self.before.number - 1
            ),
        }
    }
}

/// Puts the segments of one shard in order.
#[must_use]
pub fn chain(segments: &[SegmentHead]) -> LogChain {
    let mut rest: Vec<usize> = (0..segments.len()).collect();
    rest.sort_unstable_by_key(|at| segments[*at].name);
    let mut chain = LogChain::default();
    let mut taken: Option<usize> = None;
    while let Some(last) = rest.last() {
        let (generation, upto) = match taken {
            None => (segments[*last].name.generation, u64::MAX),
            Some(oldest) => match goes_on_from(segments, oldest, &rest) {
                Some(name) => (name.generation, name.number),
                None => break,
            },
        };
        // Newest first: what is beyond the point where the log goes on is stale.
        while let Some(at) = rest.pop() {
            let name = &segments[at].name;
            if name.generation < generation {
                rest.push(at);
                break;
            }
            if name.generation == generation && name.number <= upto {
                chain.order.push(at);
                taken = Some(at);
            } else {
                chain.stale.push(at);
            }
        }
    }
    chain.stale.append(&mut rest);
    chain.order.reverse();
    chain.stale.sort_unstable();
    chain.gaps = gaps(segments, &chain.order);
    chain
}

/// Which of `rest`, all of older generations, stands before the oldest segment taken so far.
fn goes_on_from(segments: &[SegmentHead], oldest: usize, rest: &[usize]) -> Option<SegmentName> {
    let SegmentHead { name, link } = segments[oldest];
    if let Some(link) = link {
        let prev = link.prev?;
        let named = rest
            .iter()
            .find(|at| segments[**at].link.is_some_and(|link| link.root == prev));
        if let Some(at) = named {
            return Some(segments[*at].name);
        }
    }
    let older = rest.iter().map(|at| segments[*at].name);
    older.filter(|older| older.number < name.number).max()
}

fn gaps(segments: &[SegmentHead], order: &[usize]) -> Vec<LogGap> {
    let pairs = order
        .windows(2)
        .map(|pair| (&segments[pair[0]], &segments[pair[1]]));
    let broken = pairs.filter(|(a, b)| {
        let unlinked = matches!((a.link, b.link), (Some(a), Some(b)) if b.prev != Some(a.root));
        unlinked || a.name.number.checked_add(1) != Some(b.name.number)
    });
    broken
        .map(|(a, b)| LogGap {
            after: a.name,
            before: b.name,
        })
        .collect()
}

#[cfg(test)]
mod tests;
