//! `kill -9`, again and again.

use std::time::{Duration, Instant};

use crate::support::firekeep::{Firekeep, Running};
use crate::support::metrics::Metrics;
use crate::support::sandbox::Sandbox;
use crate::support::stream::Emitted;
use crate::support::{Chance, report, sized, wait_for};

/// A connection begins at most so many events early, to see whether the host's history is still the same.
const OVERLAP: u64 = 32;
/// After so many kills the PDS is stopped, and what the last one left is looked at.
const LOOK_AFTER: u64 = 5;

/// Sums over all lives. What a life did after its last reading is not in it, so sums are lower bounds.
#[derive(Debug, Default)]
struct Lives {
    count: u64,
    applied: u64,
    replayed: u64,
    connections: u64,
    loaded: u64,
}

impl Lives {
    fn take(&mut self, metrics: Option<&Metrics>) {
        self.count += 1;
        let Some(metrics) = metrics else { return };
        // Killed so early that no host was followed yet.
        if metrics.find("firekeep_events_applied_total", &[]).is_none() {
            return;
        }
        let count = |name: &str, labels: &[(&str, &str)]| metrics.count(name, labels);
        self.applied += count("firekeep_events_applied_total", &[("kind", "commit")]);
        self.replayed += count("firekeep_events_skipped_total", &[("reason", "replayed")]);
        self.connections += 1 + count("firekeep_reconnects_total", &[]);
        self.loaded += count("firekeep_resyncs_total", &[("result", "loaded")]);
        let rejected = count("firekeep_events_rejected_total", &[]);
        assert_eq!(rejected, 0, "no event of an honest PDS is rejected");
    }
}

#[test]
fn kill_nine() {
    let began = Instant::now();
    let seed = Chance::seed();
    let mut chance = Chance(seed);
    let sandbox = Sandbox::up("pds,plc");
    let accounts = sized(16, 40);
    sandbox.populate(accounts, sized(500, 4000), sized(20, 100));
    let firekeep = Firekeep::new(&sandbox, "data").args(&["--snapshot-interval", "1s"]);

    let filling = fill(&sandbox, &firekeep, &mut chance, accounts);
    let kills = sized(10, 30);
    let Load {
        lives,
        commits,
        prefixes,
        mut life,
    } = under_load(&sandbox, &firekeep, &mut chance, kills);

    let total = Emitted::read(&sandbox).commits_after(filling.cursor);
    assert!(
        lives.applied <= total,
        "nothing is applied twice: {lives:?}, {total} commits"
    );
    // Events did come twice, and were told from new ones; and no more of them than the overlap: the cursor is
    // durable with the data.
    assert!(
        lives.replayed > 0,
        "the check for doubles was put to the test: {lives:?}"
    );
    assert!(lives.replayed <= OVERLAP * lives.connections, "{lives:?}");
    assert_eq!(
        lives.loaded, 0,
        "no unchanged account is fetched again: {lives:?}"
    );
    life.snapshot();
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    let status = life.status();
    assert_eq!(
        status.accounts("records"),
        equal.records,
        "counted from commit to commit: {status:?}"
    );
    let stopped = life.stop();
    let counts = format!(
        "seed {seed}, {} lives while filling ({} killed half-filled, {} of {accounts} repositories seen loaded), \
         {kills} kills under load in {} lives, {commits} churn commits, {} of {total} commits seen applied, 0 twice \
         though {} events came again, {prefixes} crash states each an exact prefix of the stream, {} fetched again, \
         {}, {} blobs whose records are gone still count as missing, stop {} ms",
        filling.lives.count,
        filling.half_filled,
        filling.lives.loaded,
        lives.count,
        lives.applied,
        lives.replayed,
        lives.loaded,
        equal.text(),
        status.blobs("missing"),
        stopped.as_millis()
    );
    report("kill_nine", began, &counts);
}

/// What the first part left.
struct Filled {
    lives: Lives,
    /// Kills at a moment at which some accounts were there and some not.
    half_filled: u64,
    /// Up to where the stream was applied in the end.
    cursor: u64,
}

/// Kills while the mirror is filled for the first time, then lets it be filled.
fn fill(sandbox: &Sandbox, firekeep: &Firekeep, chance: &mut Chance, accounts: u64) -> Filled {
    let (mut lives, mut half_filled) = (Lives::default(), 0);
    for _ in 0..sized(4, 10) {
        let life = firekeep.spawn();
        // Until it has fetched something, or has nothing left to fetch; and a moment more.
        wait_for("it fetches repositories", || {
            let metrics = life.metrics_if_there();
            let Some(metrics) = metrics.filter(|m| m.find("firekeep_resyncs_total", &[]).is_some()) else {
                return Err((0, 0));
            };
            let loaded = metrics.count("firekeep_resyncs_total", &[("result", "loaded")]);
            let live = live_accounts(&metrics);
            if loaded > 0 || live >= accounts {
                Ok(())
            } else {
                Err((loaded, live))
            }
        });
        std::thread::sleep(chance.below(Duration::from_millis(30)));
        let last = life.metrics_if_there().expect("it answered before");
        life.kill_nine();
        half_filled += u64::from(live_accounts(&last) < accounts);
        lives.take(Some(&last));
    }
    let mut life = firekeep.start();
    life.wait_filled(accounts);
    let cursor = life.wait_caught_up(sandbox).cursor();
    lives.take(Some(&life.metrics()));
    life.stop();
    assert!(
        lives.loaded <= accounts,
        "what was fetched and durable is not fetched again: {lives:?}"
    );
    Filled {
        lives,
        half_filled,
        cursor,
    }
}

fn live_accounts(metrics: &Metrics) -> u64 {
    metrics.count("firekeep_account_sync", &[("state", "live")])
}

/// What the second part left.
struct Load {
    lives: Lives,
    /// Commits that the PDS acknowledged.
    commits: u64,
    /// Crash states that were looked at.
    prefixes: u64,
    /// The last life: all is applied.
    life: Running,
}

/// Kills while live traffic is applied. The last kill ends the load.
fn under_load(sandbox: &Sandbox, firekeep: &Firekeep, chance: &mut Chance, kills: u64) -> Load {
    let (mut lives, mut commits, mut prefixes) = (Lives::default(), 0, 0);
    let mut churn = Some(sandbox.churn(25, 3600));
    let mut life = firekeep.start();
    for kill in 1..=kills {
        let from = life.status().cursor();
        life.wait_status("it applies live events", |status| status.cursor() > from);
        std::thread::sleep(chance.below(Duration::from_millis(700)));
        let seen = life.status().cursor();
        lives.take(Some(&life.metrics()));
        life.kill_nine();
        if kill % LOOK_AFTER == 0 {
            let ended = churn.take().expect("it runs").end();
            ended.assert_taken();
            commits += ended.commits;
            sandbox.stop("pds1");
            life = firekeep.start();
            let left = check_prefix(&mut life, sandbox, seen, kill);
            sandbox.start("pds1");
            check_rest(&mut life, sandbox, left);
            prefixes += 1;
            churn = (kill < kills).then(|| sandbox.churn(25, 3600));
        } else {
            // Some die before they have opened everything.
            if kill % 3 == 0 {
                let early = firekeep.spawn();
                std::thread::sleep(chance.below(Duration::from_millis(400)));
                lives.take(early.metrics_if_there().as_ref());
                early.kill_nine();
            }
            life = firekeep.start();
            let now = life.status().cursor();
            assert!(now >= seen, "the cursor is durable: {now} after {seen}");
        }
    }
    assert!(churn.is_none(), "the last kill ends the load");
    life.wait_caught_up(sandbox);
    lives.take(Some(&life.metrics()));
    Load {
        lives,
        commits,
        prefixes,
        life,
    }
}

/// With the PDS away, the mirror after a crash is what the stream's events up to its cursor make, and no more.
/// Answers the cursor.
fn check_prefix(life: &mut Running, sandbox: &Sandbox, seen: u64, kill: u64) -> u64 {
    let status = life.status();
    let cursor = status.cursor();
    assert!(
        cursor >= seen,
        "the cursor is durable: {cursor} after {seen}, kill {kill}"
    );
    let revs = Emitted::read(sandbox).revs_at(cursor);
    let heads = life.heads(&sandbox.dids());
    for (did, rev) in &revs {
        let held = heads.get(did).map(|(rev, _)| rev);
        assert_eq!(held, Some(rev), "{did} after event {cursor}, kill {kill}");
    }
    assert_eq!(heads.len(), revs.len(), "kill {kill}");
    cursor
}

/// What came after that event, and only that, is applied when the PDS is back.
fn check_rest(life: &mut Running, sandbox: &Sandbox, from: u64) {
    life.wait_caught_up(sandbox);
    let rest = Emitted::read(sandbox).commits_after(from);
    let metrics = life.metrics();
    let applied = metrics.count("firekeep_events_applied_total", &[("kind", "commit")]);
    assert_eq!(applied, rest, "each commit after event {from} is applied once");
}
