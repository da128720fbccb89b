//! The archive's store on bad days, behind a proxy: what is acknowledged stays, in order, and no second writer's word is
//! taken for ours.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::alone::Alone;
use crate::support::firekeep::{Firekeep, Running, signal};
use crate::support::proxy::{Fault, Proxy};
use crate::support::sandbox::Sandbox;
use crate::support::{report, sized};

const ACCOUNTS: u64 = 5;
/// Of a thousand requests, so many go wrong while one kind of fault happens.
const RATE: u64 = 250;

/// One PDS, a bucket, and a proxy before it.
struct Scene {
    sandbox: Sandbox,
    proxy: Proxy,
    url: String,
}

impl Scene {
    fn up() -> Self {
        let sandbox = Sandbox::up("pds,plc,s3");
        sandbox.populate(ACCOUNTS, sized(80, 500), sized(8, 40));
        let proxy = Proxy::start(&sandbox.s3("endpoint"));
        let url = format!("s3://{}/bad/days", sandbox.s3("bucket"));
        Self { sandbox, proxy, url }
    }

    fn to_bucket(&self, firekeep: Firekeep, endpoint: &str) -> Firekeep {
        firekeep
            .args(&["--archive", &self.url, "--s3-endpoint", endpoint])
            .args(&[
                "--s3-region",
                &self.sandbox.s3("region"),
                "--s3-path-style",
                "true",
            ])
            .env("AWS_ACCESS_KEY_ID", &self.sandbox.s3("access_key"))
            .env("AWS_SECRET_ACCESS_KEY", &self.sandbox.s3("secret_key"))
    }

    /// A machine whose every request goes through the proxy.
    fn machine(&self, name: &str) -> Firekeep {
        self.to_bucket(Firekeep::new(&self.sandbox, name), &self.proxy.url)
    }

    /// The archive, asked without the proxy.
    fn alone<'a>(&self, firekeep: &'a Firekeep) -> Alone<'a> {
        self.alone_at(firekeep, &self.sandbox.s3("endpoint"))
    }

    fn alone_at<'a>(&self, firekeep: &'a Firekeep, endpoint: &str) -> Alone<'a> {
        let region = self.sandbox.s3("region");
        let source = [
            "--archive",
            &self.url,
            "--s3-endpoint",
            endpoint,
            "--s3-region",
            &region,
            "--s3-path-style",
            "true",
        ];
        Alone::new(&self.sandbox, firekeep, &source)
    }

    fn wait_protected(&self, running: &mut Running) {
        running.wait_status("every account is live", |status| {
            status.sync("live") == ACCOUNTS && status.accounts("held") == ACCOUNTS
        });
        // Under load something is always on its way; what counts is that each has a snapshot that the log leads on from.
        for did in self.sandbox.dids() {
            running.wait_account(&did, "it is in the archive", |account| {
                account["snapshot_rev"].is_string()
            });
        }
    }

    /// Moments of each account that the archive can put together.
    fn moments(&self, firekeep: &Firekeep) -> BTreeSet<(String, String, String)> {
        self.moments_at(firekeep, &self.sandbox.s3("endpoint"))
    }

    fn moments_at(&self, firekeep: &Firekeep, endpoint: &str) -> BTreeSet<(String, String, String)> {
        let alone = self.alone_at(firekeep, endpoint);
        let dids = self.sandbox.dids();
        let each = dids.iter().flat_map(|did| {
            let moments = alone.moments(did).into_iter();
            moments.map(|(rev, commit)| (did.clone(), rev, commit))
        });
        each.collect()
    }

    /// Without more traffic and faults all is in the archive, which alone gives what the PDS has, and every moment that
    /// it gave before; and it proves itself. Gaps may be where another machine went on, one an account each time.
    fn settle(
        &self,
        mut running: Running,
        before: &BTreeSet<(String, String, String)>,
        handovers: usize,
    ) -> String {
        running.wait_caught_up(&self.sandbox);
        running.wait_none_missing();
        running.wait_status("all of it is in the archive", |status| {
            status.archive("changes_due") == 0 && status.blobs("held") == 0
        });
        let firekeep = running.setup.clone();
        let alone = self.alone(&firekeep);
        let records = alone.check_newest(&self.sandbox, None);
        running.snapshot();
        running.stop();
        let (counts, gaps) = alone.verify();
        for (did, _) in &gaps {
            let here = gaps.iter().filter(|(other, _)| other == did).count();
            assert!(here <= handovers, "{did}: {here} gaps, {handovers} handovers");
        }
        let after = self.moments(&firekeep);
        let gone: Vec<_> = before.difference(&after).take(5).collect();
        assert!(gone.is_empty(), "moments that the archive had: {gone:?}");
        format!(
            "{records} records from the archive alone as the PDS has them, {} moments; sound: {}",
            after.len(),
            counts["objects"]
        )
    }
}

/// One fault after the other under load.
#[test]
fn store_faults() {
    let began = Instant::now();
    let scene = Scene::up();
    let mut running = scene.machine("data").start();
    scene.wait_protected(&mut running);
    let churn = scene.sandbox.churn(15, 3600);
    let mut before = BTreeSet::new();
    let (rounds, each) = (sized(1, 6), Duration::from_millis(sized(1200, 5000)));
    for _ in 0..rounds {
        for fault in Fault::PASSING {
            scene.proxy.faults(&[(fault, RATE)]);
            std::thread::sleep(each);
            let status = running.status();
            assert!(status.connected(), "following goes on: {status:?}");
            if fault == Fault::StaleList {
                // A daemon lists little; whoever reads the archive begins with a list.
                scene.proxy.faults(&[(fault, 1000)]);
                let firekeep = running.setup.clone();
                let (late, whole) = (
                    scene.moments_at(&firekeep, &scene.proxy.url),
                    scene.moments(&firekeep),
                );
                assert!(late.is_subset(&whole), "nothing but the newest is missing");
            }
        }
        scene.proxy.clear();
        before.extend(scene.moments(&running.setup));
    }
    // All at once.
    let all = Fault::PASSING.map(|fault| (fault, 40));
    scene.proxy.faults(&all);
    std::thread::sleep(each);
    let fired = scene.proxy.assert_fired(&Fault::PASSING);
    scene.proxy.clear();
    let churn = churn.end();
    churn.assert_taken();
    let settled = scene.settle(running, &before, 0);
    report(
        "store_faults",
        began,
        &format!("{}; faults: {fired}; {settled}", churn.text()),
    );
}

fn freeze(running: &Running) {
    signal(running.pid(), "STOP");
}

fn thaw(running: &Running) {
    signal(running.pid(), "CONT");
}

/// A daemon that sleeps past a take-over wakes up under load, and writes nothing that counts.
#[test]
fn asleep_past_a_take_over() {
    let began = Instant::now();
    let scene = Scene::up();
    let churn = scene.sandbox.churn(20, 3600);
    let first = scene.machine("first");
    let mut running = first.start();
    scene.wait_protected(&mut running);
    std::thread::sleep(Duration::from_secs(2));
    let before = scene.moments(&first);
    // In the midst of whatever it does.
    freeze(&running);
    let second = scene.machine("second").args(&["--take-over"]);
    let mut other = second.start();
    scene.wait_protected(&mut other);
    std::thread::sleep(Duration::from_secs(2));
    let woken = Instant::now();
    thaw(&running);
    let (code, said) = running.wait_end();
    let woken = woken.elapsed();
    assert_eq!(code, Some(11), "{said}");
    assert!(said.contains("another Firekeep has taken over"), "{said}");
    std::thread::sleep(Duration::from_secs(1));
    let churn = churn.end();
    churn.assert_taken();
    let settled = scene.settle(other, &before, 1);
    let text = format!(
        "{}; woken, the first ended with 11 within {} ms; {settled}",
        churn.text(),
        woken.as_millis()
    );
    report("asleep_past_a_take_over", began, &text);
}

/// Two daemons with one name, on a store that keeps its conditions, and on one that ignores them.
fn cloned(scene: &Scene, name: &str, ignores: bool) -> String {
    if ignores {
        scene.proxy.faults(&[(Fault::Unconditional, 1000)]);
    }
    let firekeep = scene.machine(name);
    let mut running = firekeep.start();
    scene.wait_protected(&mut running);
    running.stop();
    let clone_name = format!("{name}-clone");
    let copy = scene.machine(&clone_name);
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&firekeep.data_dir, &copy.data_dir])
        .status();
    assert!(copied.is_ok_and(|status| status.success()));

    let churn = scene.sandbox.churn(20, 3600);
    let (mut one, mut two) = (firekeep.start(), copy.start());
    let said = one.status().0["archive"]["keeps_others_out"].clone();
    assert_eq!(said, !ignores, "status says what the store does");
    let shown = firekeep.ask(&["status"]).stdout;
    assert_eq!(
        shown.contains("does not keep a second Firekeep out"),
        ignores,
        "{shown}"
    );
    // They write to the same numbers: one of them, or both, notice.
    let until = Instant::now() + crate::support::PATIENCE;
    while one.is_running() && two.is_running() {
        assert!(Instant::now() < until, "neither noticed the other");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_secs(2));
    let mut left = Vec::new();
    let mut ended = 0;
    for running in [one, two] {
        let mut running = running;
        if running.is_running() {
            left.push(running);
            continue;
        }
        let (code, said) = running.wait_end();
        assert_eq!(code, Some(11), "{said}");
        assert!(said.contains("a copy of this data folder"), "{said}");
        ended += 1;
    }
    // What was acknowledged by either stands there: the one that is left goes on, or is told to.
    let before = scene.moments(&firekeep);
    let running = match left.pop() {
        Some(running) => running,
        None => firekeep.clone().args(&["--take-over"]).start(),
    };
    std::thread::sleep(Duration::from_secs(1));
    let churn = churn.end();
    churn.assert_taken();
    let settled = scene.settle(running, &before, 0);
    format!("{ended} of 2 ended with 11, {}, {settled}", churn.text())
}

#[test]
fn a_cloned_data_folder() {
    let began = Instant::now();
    let scene = Scene::up();
    let text = cloned(&scene, "data", false);
    report("a_cloned_data_folder", began, &text);
}

#[test]
fn a_cloned_data_folder_on_a_store_that_ignores_conditions() {
    let began = Instant::now();
    let scene = Scene::up();
    let text = cloned(&scene, "data", true);
    let fired = scene.proxy.assert_fired(&[Fault::Unconditional]);
    report("a_cloned_data_folder_ignored", began, &format!("{fired}; {text}"));
}

/// Resident memory of a process, in MiB.
fn resident(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.expect("a size") / 1024
}

/// A queue that grows takes disk, and no more memory than this, in MiB.
const MEMORY_MAX: u64 = 150;

/// The bucket is away under load, then back; and an idle PDS costs no request.
#[test]
fn store_away() {
    let began = Instant::now();
    let scene = Scene::up();
    let mut running = scene.machine("data").start();
    scene.wait_protected(&mut running);
    // Idle: all is there, and nothing is asked.
    running.wait_status("all of it is in the archive", |status| {
        status.archive("changes_due") == 0 && status.blobs("held") == 0
    });
    std::thread::sleep(Duration::from_secs(2));
    let before = scene.proxy.requests();
    let idle = Duration::from_secs(sized(5, 120));
    std::thread::sleep(idle);
    assert_eq!(scene.proxy.requests(), before, "an idle PDS costs no request");

    let churn = scene.sandbox.churn(20, 3600);
    std::thread::sleep(Duration::from_secs(3));
    let moments = scene.moments(&running.setup);
    let at_first = resident(&running);
    scene.proxy.away(true);
    let (away, mut most, mut due, mut cursor) = (Instant::now(), at_first, 0, running.status().cursor());
    while away.elapsed() < Duration::from_secs(sized(20, 600)) {
        std::thread::sleep(Duration::from_secs(2));
        let status = running.status();
        assert!(status.cursor() > cursor, "following goes on: {status:?}");
        assert!(
            status.archive("changes_due") >= due,
            "nothing is dropped: {status:?}"
        );
        (cursor, due) = (status.cursor(), status.archive("changes_due"));
        most = most.max(resident(&running));
    }
    let status = running.wait_status("it is said", |status| status.standing() == "archive_away");
    assert_eq!(status.archive("accounts_unlogged"), 0, "{status:?}");
    assert!(due > 0 && status.archive("changes_due_bytes") > due, "{status:?}");
    assert!(
        most <= at_first + MEMORY_MAX,
        "memory grew from {at_first} to {most} MiB while {due} changes waited"
    );
    scene.proxy.clear();
    let back = Instant::now();
    running.wait_status("the queue is shipped", |status| {
        status.archive("changes_due") * 4 <= due
    });
    let back = back.elapsed();
    let churn = churn.end();
    churn.assert_taken();
    let settled = scene.settle(running, &moments, 0);
    let text = format!(
        "no request in {} s idle; {}; away with {due} changes waiting at last, memory {at_first} MiB before and {most} MiB \
         at most; shipped within {} ms; {settled}",
        idle.as_secs(),
        churn.text(),
        back.as_millis()
    );
    report("store_away", began, &text);
}

/// More waits than there is room for: that is said, following goes on, and the next snapshots make up for it.
#[test]
fn store_away_for_too_long() {
    let began = Instant::now();
    let scene = Scene::up();
    let firekeep = scene.machine("data").args(&["--spool-bytes-max", "64KiB"]);
    let mut running = firekeep.start();
    scene.wait_protected(&mut running);
    let moments = scene.moments(&firekeep);
    scene.proxy.away(true);
    let churn = scene.sandbox.churn(25, 3600);
    let full = running.wait_status("the queue is full", |status| {
        status.archive("accounts_unlogged") == ACCOUNTS
    });
    let (due, bytes) = (full.archive("changes_due"), full.archive("changes_due_bytes"));
    assert!(bytes >= 64 << 10, "{full:?}");
    let cursor = full.cursor();
    let later = running.wait_status("following goes on", |status| status.cursor() > cursor + 30);
    assert!(
        later.archive("changes_due_bytes") < bytes + (64 << 10),
        "the queue is bounded: {later:?}"
    );
    assert!(running.alarm("spool_full", "").contains("spool_bytes_max"));
    let gaps = running.metrics().count("firekeep_log_gap_accounts", &[]);
    assert_eq!(gaps, ACCOUNTS);
    let said = firekeep.ask(&["status"]).stdout;
    assert!(said.contains("TOO MUCH WAITS"), "{said}");
    scene.proxy.clear();
    running.wait_status("the log tells every account again", |status| {
        status.archive("accounts_unlogged") == 0
    });
    let churn = churn.end();
    churn.assert_taken();
    let settled = scene.settle(running, &moments, usize::MAX);
    let text = format!(
        "{}; {due} changes of {bytes} bytes waited, {gaps} accounts were told by snapshots; {settled}",
        churn.text()
    );
    report("store_away_for_too_long", began, &text);
}
