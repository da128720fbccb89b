//! A PDS of another make, whose revs are no times and whose sequence starts over whenever it does: arroba.

use std::time::Instant;

use serde_json::Value;

use crate::support::firekeep::{Firekeep, Running};
use crate::support::sandbox::Sandbox;
use crate::support::{report, sized, wait_for};

#[test]
fn arroba() {
    let began = Instant::now();
    let sandbox = Sandbox::up_as(&["--with", "pds,plc", "--pds-version", "arroba"]);
    let accounts = 3;
    sandbox.populate(accounts, 45, 6);
    let dids = sandbox.dids();
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    running.wait_filled(accounts);
    let churn = sandbox.churn(15, sized(4, 60)).wait();
    churn.assert_taken();
    let url = firekeep.url();
    let live = sandbox.compare(&["--url", &url, "--no-snapshots", "--wait", "60"]);
    assert_eq!(live.accounts, accounts);
    let metrics = running.metrics();
    let count = |name: &str, labels: &[(&str, &str)]| metrics.count(name, labels);
    let applied = count("firekeep_events_applied_total", &[("kind", "commit")]);
    assert_eq!(
        applied, churn.commits,
        "each commit is applied from the stream, once"
    );
    assert_eq!(count("firekeep_events_rejected_total", &[]), 0);
    let loaded = count("firekeep_resyncs_total", &[("result", "loaded")]);
    assert_eq!(loaded, accounts, "fetched at first, and not again");
    let ours = running.heads(&dids);
    for (did, (rev, _)) in &ours {
        assert!(
            rev.starts_with("22222"),
            "a rev of {did} that is no time of ours: {rev}"
        );
    }
    running.snapshot();
    let before = running.status();

    // It forgets everything; its accounts are there again, empty, and its numbers begin with 1.
    sandbox.stop("pds1");
    sandbox.start("pds1");
    wait_alarms(&running, &dids);
    let status = running.wait_status("all is compared", |status| status.sync("diverged") == accounts);
    assert_eq!(running.heads(&dids), ours, "nothing of ours is lost");
    assert_eq!(
        status.accounts("records"),
        before.accounts("records"),
        "{status:?}"
    );
    assert_eq!(status.host()["epoch"], 1, "{status:?}");
    assert_eq!(status.host()["highest_seq"], before.cursor(), "{status:?}");
    let only_here = |side: &Value| side["only_here"].as_u64().expect("a count");
    let listed: u64 = dids
        .iter()
        .map(|did| only_here(&running.diff(did).1["compared"][0]))
        .sum();
    assert_eq!(
        listed,
        before.accounts("records"),
        "each record that it lost is listed"
    );

    check_kept_beside(&sandbox, &mut running, &dids[0]);
    assert_eq!(running.heads(&dids), ours, "nothing of ours is lost");

    // Once its revs have passed ours it is followed, and what it lost is kept beside that.
    let again = sandbox.churn(25, 3600);
    running.wait_status("it is followed again", |status| {
        status.sync("live") == accounts && status.accounts("parked_events") == 0
    });
    let again = again.end();
    again.assert_taken();
    let equal = sandbox.compare(&["--url", &url, "--no-snapshots", "--wait", "60"]);
    assert_eq!(equal.accounts, accounts);
    let mut kept = 0;
    for did in &dids {
        let (same, told) = running.diff(did);
        assert!(same, "{told}");
        assert_eq!(told["compared"][1]["rev"], ours[did].0.as_str(), "{told}");
        kept += only_here(&told["compared"][1]);
    }
    assert!(kept > 0, "what it has lost is kept");
    running.wait_status("no blob is open", |status| status.blobs("wanted") == 0);
    running.snapshot();
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &url, "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    running.stop();
    let counts = format!(
        "{applied} commits applied live, equal; then its sequence started over: {listed} records listed as lost there, \
         {kept} kept beside what it went on with ({}), {}",
        again.text(),
        equal.text()
    );
    report("arroba", began, &counts);
}

/// What it writes on its old revs is kept beside ours, in the archive too, with all that is there.
fn check_kept_beside(sandbox: &Sandbox, running: &mut Running, did: &str) {
    let began_again = sandbox.post(did, "on an old rev");
    let kept = running.wait_account(did, "the new chain is kept beside ours", |account| {
        account["sync"] == "diverged"
            && account["kept_car"]["commit"] == began_again.as_str()
            && account["kept_car"]["archived"] == true
    });
    let rev = kept["kept_car"]["rev"].as_str().expect("a rev");
    let object = format!("v1/repos/{did}/{rev}-{began_again}.car.quarantined.zst");
    let packed = std::fs::read(running.setup.archive().join(object)).expect("the object");
    let car = zstd::stream::decode_all(&packed[..]).expect("plain zstd");
    assert!(car.windows(13).any(|bytes| bytes == b"on an old rev"));
}

/// Waits for an alarm on the host and on each account, and no others but of deletions.
fn wait_alarms(running: &Running, dids: &[String]) {
    let of = |kind: &str, subject: &str| (kind.to_owned(), subject.to_owned());
    let mut wanted: Vec<_> = dids.iter().map(|did| of("rollback", did)).collect();
    wanted.push(of("sequence_reset", ""));
    wanted.sort();
    wait_for("the alarms", || {
        // Heavy traffic deletes as much as it makes, which is told as well.
        let mut found = running.alarms();
        found.retain(|(kind, _)| kind != "mass_delete");
        found.sort();
        if found == wanted { Ok(()) } else { Err(found) }
    });
}
