//! A run: faults for a while, then none, and then everything has to come right.

use std::collections::BTreeMap;
use std::time::Duration;

use super::act;
use super::daemon::Daemon;
use super::faults::Fault;
use super::oracle::{Oracle, Verdict};
use super::pds::{Network, Plc, SimPds};
use super::world::{Event, START, World};
use crate::mirror::input::Input;
use crate::mirror::reader::Mirror;
use crate::mirror::store::{Store as _, StoreError};
use crate::stream::session::Loss;
use crate::types::Timestamp;

/// Simulated time that healing may take.
const SETTLE_MAX: Duration = Duration::from_secs(8 * 3600);
/// Steps that it may take.
const SETTLE_STEPS_MAX: u64 = 20_000;

/// What came of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// The hash of its trace.
    pub hash: u64,
    /// Steps.
    pub steps: u64,
    /// How often each fault fired.
    pub fired: BTreeMap<Fault, u64>,
    /// How often each reason was given.
    pub reasons: BTreeMap<String, u64>,
    /// Simulated seconds from the end of the faults to convergence.
    pub settled_in: u64,
    /// The promise that was broken.
    pub failure: Option<String>,
    /// The trace, if it was asked for.
    pub trace: Vec<String>,
}

struct Run {
    world: World,
    net: Network,
    oracle: Oracle,
    daemon: Daemon,
    healed: Option<(Timestamp, u64)>,
    settled_in: Option<u64>,
}

/// Runs a seed.
#[must_use]
pub fn run(seed: u64, keep_trace: bool) -> Report {
    let mut world = World::new(seed, keep_trace);
    // The last of them is not followed.
    let hosts = 3 + world.host_rng.index(2);
    let mut pdses: Vec<SimPds> = (1..=hosts).map(SimPds::new).collect();
    pdses[hosts - 1].followed = false;
    let net = Network {
        hosts: pdses,
        plc: Plc::default(),
    };
    let oracle = Oracle::default();
    let daemon = Daemon::start(&mut world, &net).expect("an empty store opens");
    for host in 0..hosts {
        world.after(Duration::from_millis(host as u64), Event::Act { host });
    }
    let heal = world.host_rng.millis(60_000, 300_000);
    world.after(heal, Event::Heal);
    let crash = world.daemon_rng.millis(1, 120_000);
    world.after(crash, Event::Crash);
    let mut run = Run {
        world,
        net,
        oracle,
        daemon,
        healed: None,
        settled_in: None,
    };
    let failure = run.play().err();
    Report {
        seed,
        hash: run.world.trace.hash(),
        steps: run.world.trace.steps(),
        fired: run.world.fired,
        reasons: run.world.reasons,
        settled_in: run.settled_in.unwrap_or(0),
        failure,
        trace: run.world.trace.into_lines(),
    }
}

fn text(error: StoreError) -> String {
    format!("the store failed: {error}")
}

impl Run {
    fn play(&mut self) -> Verdict {
        while let Some(event) = self.world.next_event() {
            if self.world.strikes(Fault::CrashMidStep, 3) {
                let batches = self.world.daemon_rng.below(6);
                self.daemon.store.lose_power_after(batches);
            }
            if let Err(why) = self.step(event)
                && !self.daemon.store.is_without_power()
            {
                return Err(why);
            }
            if self.daemon.store.is_without_power() {
                self.crash()?;
            }
            if self.has_settled()? {
                return self.daemon.check_totals();
            }
        }
        let view = self.daemon.store.view();
        self.oracle.check_converged(&*view, &self.net, self.world.now)
    }

    fn step(&mut self, event: Event) -> Verdict {
        let (world, net) = (&mut self.world, &mut self.net);
        let now_life = self.daemon.life;
        match event {
            Event::Act { host } => {
                if world.faulty {
                    act::act(world, net, &mut self.oracle, host);
                    let wait = world.host_rng.millis(20, 12_000);
                    world.after(wait, Event::Act { host });
                    self.after_act(host)?;
                }
            }
            Event::Dial { life, host } if life == now_life => {
                self.daemon.dial(world, net, host);
            }
            Event::Deliver { host, link } => self.daemon.deliver(world, net, host, link),
            Event::Apply { life } if life == now_life => self.daemon.apply(world, &mut self.oracle)?,
            Event::Work { life } if life == now_life => self.daemon.look(world).map_err(text)?,
            Event::Talk { life, work } if life == now_life => {
                self.daemon.talk(world, net, work).map_err(text)?;
            }
            Event::Result { life, work } if life == now_life => self.daemon.result(world, work),
            Event::Dial { .. }
            | Event::Apply { .. }
            | Event::Work { .. }
            | Event::Talk { .. }
            | Event::Result { .. } => {}
            Event::Crash => {
                if world.is_enabled(Fault::Crash) {
                    world.fire(Fault::Crash);
                    let wait = world.daemon_rng.millis(1, 120_000);
                    world.after(wait, Event::Crash);
                    self.crash()?;
                }
            }
            Event::HostUp { host } => net.hosts[host].down = false,
            Event::PlcUp => net.plc.down = false,
            Event::RepoBack { host, did } => {
                if let Some(held) = net.hosts[host].books.accounts.get_mut(&did) {
                    held.forgotten = false;
                }
            }
            Event::Reactivate { host, did } => {
                act::reactivate(world, net, host, &did);
                self.daemon.poke(world, net, host);
            }
            Event::Heal => self.heal(),
        }
        Ok(())
    }

    /// The power goes, and comes back, perhaps for no longer than a few writes.
    fn crash(&mut self) -> Verdict {
        let (world, net) = (&mut self.world, &mut self.net);
        loop {
            let short = world.is_enabled(Fault::CrashMidStep) && world.daemon_rng.chance(300);
            let batches = short.then(|| world.daemon_rng.below(4));
            match self.daemon.crash(world, net, batches) {
                Err(_) if self.daemon.store.is_without_power() => world.fire(Fault::CrashMidStep),
                done => break done.map_err(text)?,
            }
        }
        let view = self.daemon.store.view();
        self.oracle.check_all(&*view)?;
        self.oracle.check_cursors(&*view, net)?;
        self.oracle.check_archived(&*view, &self.daemon.archive)
    }

    fn after_act(&mut self, host: usize) -> Verdict {
        let (world, net) = (&mut self.world, &mut self.net);
        if std::mem::take(&mut net.hosts[host].went_back_now) {
            let name = &net.hosts[host].name;
            let row = Mirror::new(&self.daemon.store).host(name).map_err(text)?;
            self.oracle.went_back(name, row.map_or(0, |row| row.epoch));
        }
        if !net.hosts[host].followed {
            net.hosts[host].went_back = false;
        }
        if net.hosts[host].down || net.hosts[host].went_back {
            let loss = Loss::Broken("the host restarts".to_owned());
            self.daemon.hang_up(world, net, host, &loss);
        }
        if world.strikes(Fault::BitRot, 20) {
            let did = net.hosts[host].books.accounts.keys().next().cloned();
            if let Some(did) = did
                && let Some(number) = self.daemon.rot(world, &did)
            {
                self.oracle.rots(&did, number);
            }
        }
        for host in 0..net.hosts.len() {
            self.daemon.poke(world, net, host);
        }
        if self.world.strikes(Fault::BucketEmptied, 6) {
            // Whoever did it starts the daemon with the new archive; until then it would refuse.
            let number = self.world.trace.steps();
            self.daemon.archive.empty(number);
            self.crash()?;
        }
        Ok(())
    }

    /// The faults stop.
    fn heal(&mut self) {
        self.world.faulty = false;
        self.healed = Some((self.world.now, self.world.trace.steps()));
        act::mend(&mut self.world, &mut self.net);
        self.daemon.send(&mut self.world, Input::SnapshotAll, None);
        for host in 0..self.net.hosts.len() {
            self.daemon.poke(&mut self.world, &self.net, host);
        }
    }

    /// Whether everything came right after the faults.
    fn has_settled(&mut self) -> Result<bool, String> {
        let Some((since, steps)) = self.healed else {
            return Ok(false);
        };
        let taken = self.world.trace.steps() - steps;
        if !taken.is_multiple_of(8) {
            return Ok(false);
        }
        let view = self.daemon.store.view();
        let waited = self.world.now.since(since);
        match self.oracle.check_converged(&*view, &self.net, self.world.now) {
            Ok(()) => {
                self.oracle.check_all(&*view)?;
                self.oracle.check_archived(&*view, &self.daemon.archive)?;
                self.settled_in = Some(waited.as_secs());
                Ok(true)
            }
            Err(why) if waited > SETTLE_MAX => Err(format!("G11: not settled after {waited:?}: {why}")),
            Err(why) if taken > SETTLE_STEPS_MAX => Err(format!(
                "G11: not settled after {taken} steps in {waited:?}: {why}"
            )),
            Err(_) => Ok(false),
        }
    }
}

/// Seconds since the beginning of a run.
#[must_use]
pub const fn seconds(at: Timestamp) -> u64 {
    (at.micros() - START.micros()) / 1_000_000
}
