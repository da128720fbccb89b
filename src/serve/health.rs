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
pub struct Health(Mutex<Readiness>);

impl Health {
    /// Says what is the case from now on.
    pub fn set(&self, readiness: Readiness) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = readiness;
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
            Readiness::Ready => None,
            Readiness::Starting => Some("starting"),
            Readiness::Failed(why) => Some(why),
            Readiness::Stopping => Some("stopping"),
        }
    }
}
