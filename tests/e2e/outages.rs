//! What Firekeep depends on goes away and comes back.

use std::time::{Duration, Instant};

use crate::support::firekeep::{Firekeep, Running, Status};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Emitted;
use crate::support::{full, http, report, sized, wait_for};

#[test]
fn pds_down_and_up() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 6;
    sandbox.populate(accounts, 200, 10);

    // Firekeep is up before the PDS is.
    sandbox.stop("pds1");
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    let alone = running.status();
    assert_eq!(alone.accounts("held"), 0);
    assert!(!alone.connected(), "{alone:?}");
    assert_eq!(
        alone.standing(),
        "filling",
        "nothing is protected yet, and it says so"
    );
    sandbox.start("pds1");
    running.wait_filled(accounts);
    let before = Emitted::read(&sandbox).last();
    running.wait_caught_up(&sandbox);

    // The PDS goes under load, tidily: one that is killed while it writes can forget what it has emitted.
    let churn = sandbox.churn(20, 600);
    let under_load: &[u64] = if full() { &[0, 5, 60] } else { &[2] };
    for seconds in under_load {
        let from = running.status().cursor();
        running.wait_status("it applies live events", |status| status.cursor() > from + 10);
        sandbox.stop("pds1");
        running.wait_status("the loss is seen", |status| !status.connected());
        std::thread::sleep(Duration::from_secs(*seconds));
        sandbox.start("pds1");
        running.wait_status("it is connected again", Status::connected);
    }
    let from = running.status().cursor();
    running.wait_status("it applies live events again", |status| {
        status.cursor() > from + 10
    });
    let churn = churn.end();

    // When nothing is being written it may be killed.
    sandbox.run(&["kill", "pds1"]);
    running.wait_status("the loss is seen", |status| !status.connected());
    sandbox.start("pds1");
    sandbox.post(&sandbox.dids()[0], "after the PDS was killed");
    let outages = under_load.len() as u64 + 1;
    running.wait_caught_up(&sandbox);
    let emitted = Emitted::read(&sandbox);

    let metrics = running.metrics();
    let count = |name: &str, labels: &[(&str, &str)]| metrics.count(name, labels);
    let reconnects = count("firekeep_reconnects_total", &[]);
    assert!(reconnects >= outages, "{reconnects}");
    assert_eq!(
        count("firekeep_resyncs_total", &[("result", "loaded")]),
        accounts,
        "each once, at first"
    );
    let applied = count("firekeep_events_applied_total", &[("kind", "commit")]);
    assert_eq!(
        applied,
        emitted.commits_after(before),
        "each commit once, over all connections"
    );
    running.snapshot();
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    running.stop();
    let counts = format!(
        "started before the PDS; then {outages} outages, all but one under load, {} ({} writes failed meanwhile), {reconnects} \
         losses or failed tries, {applied} commits applied once each, 0 repositories fetched again, {}",
        churn.text(),
        churn.errors,
        equal.text()
    );
    report("pds_down_and_up", began, &counts);
}

/// How long another account's event may take to be durable here while the directory is away: a busy machine, no more.
const LAG_MAX: Duration = Duration::from_secs(2);

/// Measures for this long, again and again, how long it takes until what the PDS has emitted is durable here, and
/// meanwhile calls `check`. The longest of it, and how often it was measured.
fn lag(
    running: &mut Running,
    sandbox: &Sandbox,
    during: Duration,
    mut check: impl FnMut(&mut Running),
) -> (Duration, u32) {
    let (until, mut longest, mut measured) = (Instant::now() + during, Duration::ZERO, 0);
    while Instant::now() < until {
        let last = Emitted::read(sandbox).last();
        let began = Instant::now();
        running.wait_status("it follows", |status| status.cursor() >= last);
        longest = longest.max(began.elapsed());
        measured += 1;
        check(running);
        std::thread::sleep(Duration::from_millis(100));
    }
    (longest, measured)
}

/// The commit that a PDS says an account is at.
fn head_at(pds: &str, did: &str) -> String {
    let answer = http::get(pds, &format!("/xrpc/com.atproto.sync.getLatestCommit?did={did}"));
    let answer = answer.expect("the PDS answers").json();
    answer["cid"].as_str().expect("a commit").to_owned()
}

/// The directory goes away under load. What needs it waits, unproven and unserved; all else goes on as before.
#[test]
fn plc_down() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 6;
    sandbox.populate(accounts, 120, 6);
    let dids = sandbox.dids();
    let (waiting, others) = (&dids[0], &dids[1..]);
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    running.wait_filled(accounts);
    let churn = sandbox.churn(15, 3600);
    let (usual, _) = lag(&mut running, &sandbox, Duration::from_secs(sized(4, 30)), |_| ());
    let churned = churn.end();
    churned.assert_taken();
    running.wait_caught_up(&sandbox);

    // One account's key changes, unannounced, and then nobody can be asked for it.
    sandbox.account("rotate", waiting, &[]);
    let proven = running.heads(&dids)[waiting].clone();
    sandbox.stop("plc");
    let unproven = sandbox.post(waiting, "under a key that nobody knows here");
    running.wait_status("its event waits", |status| status.accounts("parked_events") > 0);
    let before = Emitted::read(&sandbox).last();
    let churn = sandbox.churn(15, 3600);
    let mut looks = 0;
    let (longest, measured) = lag(
        &mut running,
        &sandbox,
        Duration::from_secs(sized(15, 600)),
        |running| {
            // Also a write of its own that comes on top waits, and nothing of it shows.
            let head = running.heads(std::slice::from_ref(waiting)).remove(waiting);
            assert_eq!(head.as_ref(), Some(&proven), "nothing unproven is served");
            looks += 1;
        },
    );
    let under_load = check_fresh(&sandbox, &dids);
    let churn = churn.end();
    churn.assert_taken();
    assert!(
        longest <= LAG_MAX,
        "the others' lag moved: {longest:?} at most, {usual:?} with the directory"
    );
    running.wait_status("the stream is read to its end", |status| {
        status.cursor() >= Emitted::read(&sandbox).last()
    });
    let pds = sandbox.pds_url();
    for did in others {
        assert_eq!(
            running.heads(&dids)[did].1,
            head_at(&pds, did),
            "{did} went on without the directory"
        );
    }
    let stuck = running.status();
    assert_eq!(running.heads(&dids)[waiting], proven);
    assert!(stuck.accounts("parked_events") > 0, "{stuck:?}");
    let commits = Emitted::read(&sandbox).commits_after(before);
    let metrics = running.metrics();
    let loaded = metrics.count("firekeep_resyncs_total", &[("result", "loaded")]);
    assert_eq!(loaded, accounts, "fetched at first, and not again");

    // It is back: what waited is proven, in order, and nothing was lost.
    sandbox.start("plc");
    running.wait_status("nothing waits any more", Status::settled);
    running.wait_head(waiting, &head_at(&pds, waiting));
    assert_ne!(head_at(&pds, waiting), unproven, "and more had come on top");
    let last = sandbox.post(waiting, "under a key that is known now");
    running.wait_head(waiting, &last);
    // Ten minutes of churn delete most of what there was at first, and that is said.
    let mut alarms = running.alarms();
    alarms.retain(|(kind, _)| kind != "mass_delete" && kind != "identity_changed");
    assert_eq!(alarms, Vec::new());
    running.wait_caught_up(&sandbox);
    running.snapshot();
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    running.stop();
    let counts = format!(
        "{commits} commits without the directory, lag {} ms at most in {measured} looks ({} ms with it), {} events waited \
         and {looks} looks saw nothing of them; {under_load}; then {}, {}",
        longest.as_millis(),
        usual.as_millis(),
        stuck.accounts("parked_events"),
        churn.text(),
        equal.text()
    );
    report("plc_down", began, &counts);
}

/// A mirror that knows no key yet can prove nothing while the directory is away: it keeps asking, and serves nothing.
fn check_fresh(sandbox: &Sandbox, dids: &[String]) -> String {
    let accounts = dids.len() as u64;
    let fresh = Firekeep::new(sandbox, "fresh");
    let mut running = fresh.start();
    let waiting = running.wait_status("every account is known and was tried", |status| {
        status.host()["listed"] == true
            && status.sync("wanted") == accounts
            && status.accounts("parked_events") > 0
    });
    wait_for("a fetch failed", || {
        let metrics = running.metrics();
        let failed = metrics.count("firekeep_resyncs_total", &[("result", "failed")]);
        if failed >= accounts { Ok(()) } else { Err(failed) }
    });
    assert_eq!(waiting.accounts("held"), 0, "{waiting:?}");
    assert_eq!(waiting.accounts("records"), 0, "{waiting:?}");
    assert_eq!(waiting.standing(), "filling", "{waiting:?}");
    for did in dids {
        for method in ["getRepo", "getLatestCommit", "listBlobs"] {
            let answer = running.get(&format!("/xrpc/com.atproto.sync.{method}?did={did}"));
            assert_eq!(
                answer.status,
                400,
                "{method} of what is not proven: {}",
                answer.text()
            );
            assert_eq!(answer.json()["error"], "RepoNotFound", "{method}");
        }
    }
    let listed = running.get("/xrpc/com.atproto.sync.listRepos").json();
    assert_eq!(listed["repos"].as_array().map(Vec::len), Some(0), "{listed}");
    running.stop();
    format!("a fresh mirror knew {accounts} accounts and served none")
}
