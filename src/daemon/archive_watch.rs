//! What the daemon knows of its archive: whether it answers, and is the one that the mirror belongs to.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// What the newest look at the archive found.
#[derive(Debug, Default)]
pub struct ArchiveWatch {
    seen: AtomicU8,
    trouble: Mutex<Option<String>>,
}

/// Nothing yet.
pub const NOT_SEEN: u8 = 0;
/// It answers, and is the mirror's.
pub const GOOD: u8 = 1;
/// It does not answer.
pub const AWAY: u8 = 2;
/// It must not be used.
pub const REFUSED: u8 = 3;

impl ArchiveWatch {
    /// Whether it answered, and is the mirror's.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.seen.load(Ordering::Relaxed) == GOOD
    }

    /// Whether something may be put there: not into another archive, or into an unmounted disk's place.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.seen.load(Ordering::Relaxed) != REFUSED
    }

    /// What is wrong with it, for a person.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Takes what was seen; returns what was seen before, and whether the trouble is another one.
    pub fn see(&self, seen: u8, trouble: Option<String>) -> (u8, bool) {
        let mut known = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *known != trouble;
        *known = trouble;
        let before = self.seen.load(Ordering::Relaxed);
        // What was refused stays so until it is seen to be the right one again.
        if !(before == REFUSED && seen == AWAY) {
            self.seen.store(seen, Ordering::Relaxed);
        }
        (before, changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_put_into_an_archive_that_was_refused_until_it_is_the_right_one_again() {
        let watch = ArchiveWatch::default();
        let shown = |watch: &ArchiveWatch| (watch.is_good(), watch.may_write());
        assert_eq!(shown(&watch), (false, true), "not seen yet");
        let text = |text: &str| Some(text.to_owned());
        for (seen, trouble, told, expected) in [
            (GOOD, None, (NOT_SEEN, false), (true, true)),
            (AWAY, text("no answer"), (GOOD, true), (false, true)),
            (GOOD, None, (AWAY, true), (true, true)),
            (REFUSED, text("none"), (GOOD, true), (false, false)),
            (REFUSED, text("another"), (REFUSED, true), (false, false)),
            (REFUSED, text("another"), (REFUSED, false), (false, false)),
            (AWAY, text("no answer"), (REFUSED, true), (false, false)),
            (GOOD, None, (REFUSED, true), (true, true)),
        ] {
            assert_eq!(watch.see(seen, trouble.clone()), told, "{seen}");
            assert_eq!(shown(&watch), expected, "{seen} {trouble:?}");
            assert_eq!(watch.trouble(), trouble);
        }
    }
}
