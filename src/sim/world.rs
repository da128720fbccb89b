//! The simulated world: time, order and chance, and the trace that proves a run repeatable.
//!
//! A step is the earliest event of the queue, ties broken by the order of scheduling. Every component draws
//! from a generator of its own, so that one more draw in one of them does not change the luck of the others.
//! Nothing here or above iterates over a hash map.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::faults::Fault;
use crate::types::{Did, Timestamp};

/// When every run begins.
pub const START: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

/// A seeded generator (`SplitMix64`, Steele, Lea and Flood 2014): small, and good enough for choices.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The generator of a component of a run.
    #[must_use]
    pub fn new(seed: u64, component: &str) -> Self {
        let mut rng = Self(seed ^ fnv(0xcbf2_9ce4_8422_2325, component.as_bytes()));
        rng.next();
        rng
    }

    /// 64 uniform bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a length")
    }

    /// True in `permille` of a thousand cases.
    pub const fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// A time between the two, in milliseconds.
    pub const fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}

fn fnv(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Something that will happen. `life` is the life of the daemon that it belongs to, `link` that of the
/// connection: what belongs to an earlier one is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are indices and numbers of what the variant names"
)]
pub enum Event {
    /// A host does something.
    Act { host: usize },
    /// The daemon dials.
    Dial { life: u64, host: usize },
    /// A frame arrives.
    Deliver { host: usize, link: u64 },
    /// The applier takes what has gathered.
    Apply { life: u64 },
    /// The dispatcher looks at the tasks.
    Work { life: u64 },
    /// A piece of work talks to the network.
    Talk { life: u64, work: u64 },
    /// A piece of work has its result.
    Result { life: u64, work: u64 },
    /// The power goes.
    Crash,
    /// A host answers again.
    HostUp { host: usize },
    /// The directory answers again.
    PlcUp,
    /// A host knows a repository again.
    RepoBack { host: usize, did: Did },
    /// An account becomes active again.
    Reactivate { host: usize, did: Did },
    /// The faults stop.
    Heal,
}

/// Time, order, chance and what was counted.
pub struct World {
    /// Now.
    pub now: Timestamp,
    queue: BTreeMap<(u64, u64), Event>,
    tie: u64,
    /// What the hosts draw from.
    pub host_rng: Rng,
    /// What the network draws from.
    pub net_rng: Rng,
    /// What the daemon's own timing draws from.
    pub daemon_rng: Rng,
    enabled: BTreeSet<Fault>,
    /// Whether faults still happen.
    pub faulty: bool,
    /// The trace.
    pub trace: Trace,
    /// How often each fault fired.
    pub fired: BTreeMap<Fault, u64>,
    /// How often each reason was given: `reject …`, `desync …`, `note …`, `loss …`.
    pub reasons: BTreeMap<String, u64>,
}

impl World {
    /// The world of a seed. Each fault is part of about half of all runs.
    #[must_use]
    pub fn new(seed: u64, keep_trace: bool) -> Self {
        let mut choice = Rng::new(seed, "faults");
        let enabled = Fault::ALL.into_iter().filter(|_| choice.chance(450)).collect();
        Self {
            now: START,
            queue: BTreeMap::new(),
            tie: 0,
            host_rng: Rng::new(seed, "hosts"),
            net_rng: Rng::new(seed, "network"),
            daemon_rng: Rng::new(seed, "daemon"),
            enabled,
            faulty: true,
            trace: Trace::new(keep_trace),
            fired: BTreeMap::new(),
            reasons: BTreeMap::new(),
        }
    }

    /// Schedules an event.
    pub fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now.plus(wait), event);
    }

    /// Schedules an event, never in the past.
    pub fn at(&mut self, at: Timestamp, event: Event) {
        self.tie += 1;
        self.queue.insert((at.max(self.now).micros(), self.tie), event);
    }

    /// The next event; time moves to it.
    pub fn next_event(&mut self) -> Option<Event> {
        let ((at, _), event) = self.queue.pop_first()?;
        self.now = Timestamp::from_micros(at);
        self.trace.step(self.now, &event);
        Some(event)
    }

    /// Whether a fault is part of this run.
    #[must_use]
    pub fn is_enabled(&self, fault: Fault) -> bool {
        self.faulty && self.enabled.contains(&fault)
    }

    /// Draws whether a fault happens now, `permille` of a thousand times, and counts it if it does.
    pub fn strikes(&mut self, fault: Fault, permille: u64) -> bool {
        if !self.is_enabled(fault) || !self.net_rng.chance(permille) {
            return false;
        }
        self.fire(fault);
        true
    }

    /// Counts a fault that happened.
    pub fn fire(&mut self, fault: Fault) {
        *self.fired.entry(fault).or_default() += 1;
        self.trace.say(|| format!("fault {}", fault.label()));
    }

    /// Counts a reason.
    pub fn reason(&mut self, kind: &str, label: &str) {
        *self.reasons.entry(format!("{kind} {label}")).or_default() += 1;
    }
}

/// What happened, as a hash and, if asked for, as lines.
pub struct Trace {
    hash: u64,
    steps: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    const fn new(keep: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            steps: 0,
            lines: if keep { Some(Vec::new()) } else { None },
        }
    }

    fn step(&mut self, now: Timestamp, event: &Event) {
        self.steps += 1;
        let step = self.steps;
        let seconds = (now.micros() - START.micros()) as f64 / 1e6;
        self.say(|| format!("#{step} {seconds:.6} {event:?}"));
    }

    /// Adds a line.
    pub fn say(&mut self, line: impl FnOnce() -> String) {
        let line = line();
        self.hash = fnv(self.hash, line.as_bytes());
        if let Some(lines) = &mut self.lines {
            lines.push(line);
        }
    }

    /// The hash so far.
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// Steps so far.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// The lines, if they were kept.
    #[must_use]
    pub fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}
