//! Away for longer than the PDS keeps its events: what the stream can no longer tell is found by comparing.

use std::time::{Duration, Instant};

use crate::support::firekeep::{Firekeep, Running};
use crate::support::sandbox::Sandbox;
use crate::support::stream::Emitted;
use crate::support::{report, sized};

/// How long the PDS keeps its events; a day when not told otherwise.
const WINDOW: Duration = Duration::from_secs(2);

fn fetched(running: &Running) -> u64 {
    let metrics = running.metrics();
    let labels = [("result", "loaded")];
    metrics
        .find("firekeep_resyncs_total", &labels)
        .map_or(0, |_| metrics.count("firekeep_resyncs_total", &labels))
}

#[test]
fn window_passed() {
    let began = Instant::now();
    let limit = format!("PDS_REPO_BACKFILL_LIMIT_MS={}", WINDOW.as_millis());
    let sandbox = Sandbox::up_as(&["--with", "pds,plc", "--pds-env", &limit]);
    let accounts = 5;
    sandbox.populate(accounts, 100, 8);
    let dids = sandbox.dids();
    let [written, deleted, pictured, gone, quiet] = [0, 1, 2, 3, 4].map(|n| &dids[n]);
    sandbox.note(deleted, "doomed", "here for now");
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    running.wait_filled(accounts);
    let before = running.wait_caught_up(&sandbox);
    running.stop();

    // Nobody listens to this, and then it is too late to ask for it.
    sandbox.post(written, "missed");
    sandbox.delete_note(deleted, "doomed");
    sandbox.post_picture(pictured);
    sandbox.account("deactivate", gone, &[]);
    let newcomer = sandbox.create_account("newcomer", "pds1");
    sandbox.post(&newcomer, "missed too");
    let missed = Emitted::read(&sandbox).last() - before.cursor();
    std::thread::sleep(WINDOW + Duration::from_secs(sized(1, 60)));

    let mut running = firekeep.start();
    running.wait_account(&newcomer, "the new account is found", |account| {
        account["sync"] == "live"
    });
    let status = running.wait_status("all is compared", |status| {
        status.host()["listed"] == true && status.settled() && status.sync("live") == accounts + 1
    });
    assert!(
        running.log().contains("events of this host were lost"),
        "it said that its cursor is outdated, and we noted it"
    );
    let metrics = running.metrics();
    assert!(metrics.count("firekeep_events_received_total", &[("kind", "info")]) >= 1);
    assert_eq!(
        metrics.count("firekeep_events_applied_total", &[("kind", "commit")]),
        0,
        "the stream told none of it"
    );
    assert_eq!(fetched(&running), 4, "what changed is fetched, the rest is not");
    assert_eq!(
        status.host()["epoch"],
        before.host()["epoch"],
        "a gap is no other history"
    );
    assert_eq!(running.alarms(), Vec::new(), "and no loss: {status:?}");
    assert_eq!(running.account(gone)["status"], "deactivated");

    for did in [written, deleted, pictured, quiet, &newcomer] {
        let commit = sandbox.post(did, "heard again");
        running.wait_head(did, &commit);
    }
    assert_eq!(fetched(&running), 4, "and each of these came as an event");
    running.wait_caught_up(&sandbox);
    running.snapshot();
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    running.stop();
    let counts = format!(
        "{missed} events missed for good by a window of {} s: 4 accounts fetched, 1 seen to be deactivated, 1 untouched, {}",
        WINDOW.as_secs(),
        equal.text()
    );
    report("window_passed", began, &counts);
}
