//! Whether the daemon is fit to answer: what `/readyz` and `_health` say.
//!
//! Ready means that the stores are open. Lag is no reason not to be ready: a daemon that catches up must not be
//! killed for it; lag has its metric.

use std::sync::{Mutex, PoisonError};

/// What the daemon says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Readiness {
    /// Opening the stores.
    #[default]
    Starting,
    /// Serving.
    Ready,
    /// Something that serving needs has failed; the text goes to callers and holds no path and no secret.
    Failed(&'static str),
    /// Draining before the end.
    Stopping,
}

/// Shared state: the daemon writes, the listeners read.
#[derive(Debug, Default)]
pub struct Health(Mutex<Readiness>, Mutex<Option<&'static str>>);

impl Health {
    /// Says what is the case from now on.
    pub fn set(&self, readiness: Readiness) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = readiness;
    }

    /// Something that serving needs has failed: until it has [`recovered`](Self::recovered).
    pub fn failed(&self, why: &'static str) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*now, Readiness::Ready | Readiness::Failed(_)) {
            *now = Readiness::Failed(why);
        }
    }

    /// What had failed works again.
    pub fn recovered(&self) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Readiness::Failed(_) = *now {
            *now = Readiness::Ready;
        }
    }

    /// Whether a part of the daemon stands still, or has ended: until it does so no more.
    pub fn stands_still(&self, why: Option<&'static str>) {
        *self.1.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// What is the case.
    #[must_use]
    pub fn get(&self) -> Readiness {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it is not ready; `None` when it is.
    #[must_use]
    pub fn trouble(&self) -> Option<&'static str> {
        match self.get() {
            Readiness::Ready => *self.1.lock().unwrap_or_else(PoisonError::into_inner),
            Readiness::Starting => Some("starting"),
            Readiness::Failed(why) => Some(why),
            Readiness::Stopping => Some("stopping"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_ends_with_what_failed_and_never_hides_a_start_or_a_stop() {
        let health = Health::default();
        health.failed("gone");
        health.recovered();
        assert_eq!(health.get(), Readiness::Starting);
        health.set(Readiness::Ready);
        health.failed("gone");
        assert_eq!(health.trouble(), Some("gone"));
        health.recovered();
        assert_eq!(health.trouble(), None);
        health.stands_still(Some("still"));
        assert_eq!(health.trouble(), Some("still"));
        health.recovered();
        assert_eq!(health.trouble(), Some("still"), "another thing");
        health.failed("gone");
        assert_eq!(health.trouble(), Some("gone"));
        health.recovered();
        health.stands_still(None);
        assert_eq!(health.trouble(), None);
        health.failed("gone");
        health.set(Readiness::Stopping);
        health.failed("gone");
        health.recovered();
        assert_eq!(health.get(), Readiness::Stopping);
    }
}
