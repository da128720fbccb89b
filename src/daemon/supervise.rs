#![allow(clippy::disallowed_methods, reason = "shell: watches tasks by the clock")]
//! Who watches the watchman: every task of the daemon is polled through here, and one that ends before it is told to,
//! or stands still for [`STALL_AFTER`], is seen.
//!
//! A task that has timers of its own is polled again and again; where that stops, it waits for something that does
//! not come, or blocks. A task that may rightly wait for ever (for a frame, for a caller) is polled by us, so that only
//! blocking and ending show; what it leaves undone is seen from outside, by [`Supervisor::probe`].

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::metrics::labels::{Label as _, TaskLabel};
use crate::serve::Health;

/// A task that does nothing for this long stands still.
pub const STALL_AFTER: Duration = Duration::from_secs(120);
/// How often a task is polled that has no timer of its own.
const TICK: Duration = Duration::from_secs(20);
/// What callers and supervisors are told.
const STANDS_STILL: &str = "a part of Firekeep has stopped or stands still";

/// How a task shows that it is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rhythm {
    /// It has timers of its own, all of them shorter than [`STALL_AFTER`] by far.
    Own,
    /// It may wait for ever.
    Waits,
}

const RUNS: u8 = 0;
/// It was told to end, or had nothing left to do that anybody waits for.
const DONE: u8 = 1;
const ENDED: u8 = 2;

/// One task.
#[derive(Debug)]
pub struct Pulse {
    label: TaskLabel,
    state: AtomicU8,
    /// Milliseconds since the supervisor began: when it was last polled, or a probe last found it well.
    seen: AtomicU64,
    /// What a test makes of it: 0 nothing, 1 it ends, 2 it hangs.
    fault: AtomicU8,
}

/// All tasks.
pub struct Supervisor {
    began: Instant,
    stall_after: Duration,
    tick: Duration,
    pulses: Mutex<Vec<Arc<Pulse>>>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

impl Supervisor {
    /// One that watches nothing yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, health: Arc<Health>) -> Self {
        Self {
            began: Instant::now(),
            stall_after: STALL_AFTER,
            tick: TICK,
            pulses: Mutex::default(),
            metrics,
            health,
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A task that something else polls: whoever probes it says when it was found well.
    pub fn probe(&self, label: TaskLabel) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse {
            label,
            state: AtomicU8::new(RUNS),
            seen: AtomicU64::new(self.now()),
            fault: AtomicU8::new(0),
        });
        let mut pulses = self.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        pulses.push(Arc::clone(&pulse));
        pulse
    }

    /// It was found well just now.
    pub fn found_well(&self, pulse: &Pulse) {
        if pulse.fault.load(Ordering::Relaxed) == 0 {
            pulse.seen.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Runs a task and watches it. It should end only after `told` is cancelled. None where a test made it end.
    pub async fn watch<T>(
        self: Arc<Self>,
        label: TaskLabel,
        rhythm: Rhythm,
        told: CancellationToken,
        task: impl Future<Output = T>,
    ) -> Option<T> {
        let pulse = self.probe(label);
        let mut task = pin!(task);
        let mut tick = interval(self.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let out = std::future::poll_fn(|cx| {
            // The tick also wakes a task that a test makes hang or end.
            let ticked = tick.poll_tick(cx).is_ready();
            if ticked {
                // Once more, so that it is armed again.
                let _armed = tick.poll_tick(cx);
            }
            match pulse.fault.load(Ordering::Relaxed) {
                1 => return Poll::Ready(None),
                2 => return Poll::Pending,
                _ => {}
            }
            if !ticked || rhythm == Rhythm::Waits {
                pulse.seen.store(self.now(), Ordering::Relaxed);
            }
            let polled = task.as_mut().poll(cx).map(Some);
            if polled.is_pending() && !ticked {
                pulse.seen.store(self.now(), Ordering::Relaxed);
            }
            polled
        })
        .await;
        let state = if told.is_cancelled() { DONE } else { ENDED };
        pulse.state.store(state, Ordering::Relaxed);
        out
    }

    /// Looks at all of them, shows what it finds in metrics and health, and names those that ended or stand still.
    pub fn look(&self) -> Vec<&'static str> {
        let now = self.now();
        let pulses = self.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        let is_bad = |pulse: &Pulse| match pulse.state.load(Ordering::Relaxed) {
            ENDED => true,
            RUNS => {
                let still = now.saturating_sub(pulse.seen.load(Ordering::Relaxed));
                Duration::from_millis(still) > self.stall_after
            }
            _ => false,
        };
        let mut bad: Vec<&'static str> = Vec::new();
        for label in TaskLabel::ALL {
            let mut of_it = pulses.iter().filter(|pulse| pulse.label == *label).peekable();
            let there = of_it.peek().is_some();
            let fails = of_it.any(|pulse| is_bad(pulse));
            self.metrics.task_up.of(*label).set(i64::from(there && !fails));
            if fails {
                bad.push(label.text());
            }
        }
        drop(pulses);
        self.health
            .stands_still((!bad.is_empty()).then_some(STANDS_STILL));
        bad
    }

    /// For tests of the whole: makes the tasks of a label end, or hang.
    pub fn break_tasks(&self, label: TaskLabel, ends: bool) -> usize {
        let pulses = self.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = pulses.iter().filter(|pulse| pulse.label == label);
        let broken = of_it.map(|pulse| pulse.fault.store(if ends { 1 } else { 2 }, Ordering::Relaxed));
        broken.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Readiness;

    /// As the real one, sixty times as fast.
    const STALL: Duration = Duration::from_secs(2);

    fn supervisor() -> Arc<Supervisor> {
        let health = Arc::new(Health::default());
        health.set(Readiness::Ready);
        Arc::new(Supervisor {
            stall_after: STALL,
            tick: Duration::from_millis(200),
            ..Supervisor::new(Arc::new(Metrics::new()), health)
        })
    }

    async fn beats() {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn shown(watched: &Supervisor, label: TaskLabel) -> (i64, bool) {
        watched.look();
        (
            watched.metrics.task_up.of(label).get(),
            watched.health.trouble().is_none(),
        )
    }

    /// Ends a task, or makes it hang, among all the others.
    async fn broken(label: TaskLabel, ends: bool) {
        let watched = supervisor();
        for other in TaskLabel::ALL {
            let told = CancellationToken::new();
            tokio::spawn(Arc::clone(&watched).watch(*other, Rhythm::Own, told, beats()));
        }
        tokio::time::sleep(STALL + STALL / 4).await;
        assert_eq!(watched.look(), Vec::<&str>::new(), "they beat");
        assert_eq!(watched.break_tasks(label, ends), 1);
        if !ends {
            tokio::time::sleep(STALL / 4).await;
            assert_eq!(shown(&watched, label), (1, true), "not yet");
        }
        tokio::time::sleep(STALL + STALL / 4).await;
        assert_eq!(watched.look(), [label.text()], "{label:?}: {ends}");
        assert_eq!(shown(&watched, label), (0, false));
    }

    #[tokio::test]
    async fn each_task_that_ends_or_hangs_is_seen_and_the_others_are_not() {
        let mut all = tokio::task::JoinSet::new();
        for label in TaskLabel::ALL {
            for ends in [true, false] {
                all.spawn(broken(*label, ends));
            }
        }
        assert_eq!(all.join_all().await.len(), 2 * TaskLabel::ALL.len());
    }

    #[tokio::test]
    async fn a_task_that_waits_for_what_never_comes_stands_still_unless_it_may_wait() {
        let watched = supervisor();
        for (label, rhythm) in [(TaskLabel::Work, Rhythm::Own), (TaskLabel::Serve, Rhythm::Waits)] {
            let told = CancellationToken::new();
            tokio::spawn(Arc::clone(&watched).watch(label, rhythm, told, std::future::pending::<()>()));
        }
        tokio::time::sleep(STALL + STALL / 4).await;
        assert_eq!(watched.look(), ["work"]);
    }

    #[tokio::test]
    async fn what_was_told_to_end_may_and_a_probe_that_fails_is_seen() {
        let watched = supervisor();
        let told = CancellationToken::new();
        told.cancel();
        Arc::clone(&watched)
            .watch(TaskLabel::Work, Rhythm::Own, told, async {})
            .await;
        let pulse = watched.probe(TaskLabel::Apply);
        assert_eq!(shown(&watched, TaskLabel::Apply), (1, true));
        tokio::time::sleep(STALL + STALL / 4).await;
        assert_eq!(shown(&watched, TaskLabel::Apply), (0, false));
        watched.found_well(&pulse);
        assert_eq!(shown(&watched, TaskLabel::Apply), (1, true));
    }
}
