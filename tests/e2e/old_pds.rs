//! The main job on a PDS that speaks the protocol of before: its commits say neither what they build on nor what they
//! replace, so each is proven by rebuilding the account's tree from our own records.

use std::time::Instant;

use crate::support::firekeep::{Firekeep, Running};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Emitted;
use crate::support::{report, sized};

const VERSION: &str = "0.4.95";

#[test]
fn old_pds() {
    let began = Instant::now();
    let sandbox = Sandbox::up_as(&["--with", "pds,plc", "--pds-version", VERSION]);
    assert_eq!(sandbox.info()["pds"][0]["version"], VERSION);
    let (accounts, records, blobs) = (8, sized(240, 2000), sized(12, 60));
    sandbox.populate(accounts, records, blobs);
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    let filled = running.wait_filled(accounts);
    // Such a PDS gives two records the same key now and then; what it has is compared below.
    let held = filled.accounts("records");
    assert!(held <= records && records - held < 10, "{held} of {records}");
    let before = Emitted::read(&sandbox).last();

    let churn = sandbox.churn(20, sized(8, 90)).wait();
    churn.assert_taken();
    assert!(
        churn.creates > 0 && churn.updates > 0 && churn.deletes > 0 && churn.blobs > 0,
        "{churn:?}"
    );
    running.wait_caught_up(&sandbox);
    check_applied(&running, Emitted::read(&sandbox).commits_after(before), accounts);
    // Over a restart, with the stream going on meanwhile.
    running.stop();
    let mut commits = Vec::new();
    for did in &sandbox.dids() {
        commits.push(sandbox.post(did, "while nobody listens"));
    }
    let mut running = firekeep.start();
    let status = running.wait_caught_up(&sandbox);
    for (did, commit) in sandbox.dids().iter().zip(&commits) {
        running.wait_head(did, commit);
    }
    let emitted = Emitted::read(&sandbox);
    assert_eq!(emitted.with_prev_data(), 0, "this PDS sends no prevData");
    let commits = emitted.commits_after(before);
    check_applied(&running, accounts, 0);
    assert_eq!(status.sync("live"), accounts, "{status:?}");
    // In the long form the churn itself deletes more of an account's records than an alarm lets pass.
    let mut alarms = running.alarms();
    alarms.retain(|(kind, _)| kind != "mass_delete");
    assert_eq!(alarms, Vec::new());
    running.snapshot();
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    let status = running.wait_none_missing();
    assert_eq!(
        status.accounts("records"),
        equal.records,
        "counted from commit to commit: {status:?}"
    );
    running.stop();
    let counts = format!(
        "PDS {VERSION}: {}, {commits} commits without prevData applied, none fetched again, {}",
        churn.text(),
        equal.text()
    );
    report("old_pds", began, &counts);
}

/// In this life so many commits were applied, none was refused, and only this many repositories were fetched.
fn check_applied(running: &Running, commits: u64, fetched: u64) {
    let metrics = running.metrics();
    let count = |name: &str, labels: &[(&str, &str)]| metrics.count(name, labels);
    let applied = count("firekeep_events_applied_total", &[("kind", "commit")]);
    assert_eq!(applied, commits, "each commit is applied once");
    assert_eq!(count("firekeep_events_rejected_total", &[]), 0);
    assert_eq!(count("firekeep_resyncs_total", &[]), fetched);
}
