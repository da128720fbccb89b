//! What Firekeep depends on goes away and comes back.

use std::time::{Duration, Instant};

use crate::support::firekeep::{Firekeep, Status};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Emitted;
use crate::support::{full, report, sized, wait_for};

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

#[test]
fn plc_down() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 4;
    sandbox.populate(accounts, 80, 4);
    let dids = sandbox.dids();
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    running.wait_filled(accounts);

    // Accounts whose keys are known go on without the directory.
    sandbox.stop("plc");
    let mut written = 0;
    for did in &dids {
        for n in 0..sized(1, 5) {
            let commit = sandbox.post(did, &format!("post {n} while the directory is away"));
            written += 1;
            wait_for("the commit is applied", || {
                let head = running.heads(std::slice::from_ref(did)).remove(did);
                if head.as_ref().is_some_and(|(_, cid)| *cid == commit) {
                    Ok(())
                } else {
                    Err(head)
                }
            });
        }
    }
    let metrics = running.metrics();
    let loaded = metrics.count("firekeep_resyncs_total", &[("result", "loaded")]);
    assert_eq!(loaded, accounts, "fetched at first, and not again");
    running.stop();

    // One that knows no key yet can prove nothing: it keeps asking, and serves nothing.
    let fresh = Firekeep::new(&sandbox, "fresh");
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
    for did in &dids {
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

    sandbox.start("plc");
    running.wait_filled(accounts);
    running.wait_caught_up(&sandbox);
    running.snapshot();
    let archive = fresh.archive();
    let equal = sandbox.compare(&["--url", &fresh.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    running.stop();
    let counts = format!(
        "{written} commits applied without the directory; a fresh mirror knew {accounts} accounts and served none \
         without it, then all: {}",
        equal.text()
    );
    report("plc_down", began, &counts);
}
