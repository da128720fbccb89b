//! A PDS that was restored from an older copy of its own data: what it lost is not lost here.

use std::time::Instant;

use serde_json::Value;

use crate::support::firekeep::{Firekeep, Running, Status};
use crate::support::sandbox::{NOTES, Sandbox};
use crate::support::stream::Emitted;
use crate::support::{report, wait_for};

/// One side of what `firekeep diff` compares: how many paths are only here, only there, changed.
fn differences(side: &Value) -> (u64, u64, u64) {
    let count = |key: &str| side[key].as_u64().expect("a count");
    (count("only_here"), count("only_there"), count("changed"))
}

fn restart_with(sandbox: &Sandbox, data: impl FnOnce()) {
    sandbox.stop("pds1");
    data();
    sandbox.start("pds1");
}

fn epoch(status: &Status) -> u64 {
    status.host()["epoch"].as_u64().expect("a number")
}

/// Waits for alarms of a kind on exactly these accounts.
fn wait_alarms(running: &Running, kind: &str, subjects: &[&String]) {
    let mut wanted: Vec<String> = subjects.iter().map(|did| (*did).clone()).collect();
    wanted.sort();
    wait_for(&format!("{} alarms of kind {kind}", wanted.len()), || {
        let alarms = running.alarms().into_iter();
        let mut found: Vec<String> = alarms.filter(|(k, _)| k == kind).map(|(_, s)| s).collect();
        found.sort();
        if found == wanted { Ok(()) } else { Err(found) }
    });
}

/// The host does not know our cursor any more, and says so: everything is compared, nothing is lost.
#[test]
fn rolled_back() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 5;
    sandbox.populate(accounts, 100, 8);
    let dids = sandbox.dids();
    let [added, edited, emptied, quiet, late] = [0, 1, 2, 3, 4].map(|n| &dids[n]);
    sandbox.note(edited, "kept", "as it was");
    sandbox.note(emptied, "kept", "deleted, and back again after the rollback");
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    running.wait_filled(accounts);

    // What the PDS will forget: additions, a change, a deletion, whole accounts.
    restart_with(&sandbox, || drop(sandbox.back_up_pds()));
    let copy = sandbox.folder().join("backup-of-pds1");
    running.wait_status("it is connected again", Status::connected);
    for n in 0..3 {
        sandbox.post(added, &format!("lost {n}"));
    }
    let picture = sandbox.post_picture(added);
    sandbox.note(edited, "kept", "as it was changed");
    sandbox.delete_note(emptied, "kept");
    sandbox.populate(8, 40, 4);
    let everyone = sandbox.dids();
    let vanished: Vec<&String> = everyone.iter().filter(|did| !dids.contains(did)).collect();
    assert_eq!(vanished.len(), 8);
    let before = running.wait_caught_up(&sandbox);
    let ours = running.heads(&everyone);
    assert_eq!(ours.len(), everyone.len());
    let highest = Emitted::read(&sandbox).last();

    restart_with(&sandbox, || sandbox.restore_pds(&copy));
    let rewound = Emitted::read(&sandbox).last();
    assert!(
        rewound + 32 < highest,
        "it was rolled back by far: {rewound} of {highest}"
    );
    let gone_back = [added, edited, emptied];
    wait_alarms(&running, "rollback", &gone_back);
    wait_alarms(&running, "repo_not_found", &vanished);
    wait_alarms(&running, "sequence_reset", &[&String::new()]);
    wait_alarms(&running, "empty_list", &[&String::new()]);
    assert_eq!(
        running.alarms().len(),
        3 + 8 + 2,
        "and none besides: {:?}",
        running.alarms()
    );
    let said = running.alarm("sequence_reset", "");
    assert!(
        said.contains(&highest.to_string()),
        "the highest number is told: {said}"
    );
    for did in gone_back {
        assert!(running.alarm("rollback", did).contains(did.as_str()));
    }
    let shown = running.setup.ask(&["alarms"]);
    assert!(
        shown.stdout.contains("OPEN") && shown.stdout.contains(added),
        "{}",
        shown.stdout
    );

    // Nothing of ours is lost, and all of it is still given.
    let status = running.wait_status("the new numbering is followed", |status| {
        status.cursor() >= rewound && status.settled()
    });
    assert_eq!((epoch(&before), epoch(&status)), (0, 1));
    assert_eq!(status.host()["highest_seq"], highest, "{status:?}");
    assert_eq!(
        status.accounts("records"),
        before.accounts("records"),
        "{status:?}"
    );
    assert_eq!(running.heads(&everyone), ours);
    let blob = format!("/xrpc/com.atproto.sync.getBlob?did={added}&cid={picture}");
    assert_eq!(running.get(&blob).status, 200, "a picture that the PDS has lost");
    for did in gone_back {
        assert_eq!(running.account(did)["sync"], "diverged");
    }
    for did in [quiet, late] {
        assert_eq!(running.account(did)["sync"], "live");
        assert!(running.diff(did).0, "{did}");
    }
    let (equal, told) = running.diff(added);
    assert!(!equal);
    assert_eq!(differences(&told["compared"][0]), (4, 0, 0), "{told}");
    assert_eq!(differences(&running.diff(edited).1["compared"][0]), (0, 0, 1));
    let told = running.diff(emptied).1;
    assert_eq!(differences(&told["compared"][0]), (0, 1, 0), "{told}");
    assert_eq!(
        told["compared"][0]["paths"]["only_there"][0],
        format!("{NOTES}/kept")
    );

    // What the PDS does next is followed; what it lost is kept beside that, over a restart too.
    for did in &dids {
        let commit = sandbox.post(did, "after the rollback");
        running.wait_head(did, &commit);
    }
    running.stop();
    let mut running = firekeep.start();
    running.wait_caught_up(&sandbox);
    for (did, lost) in [
        (added, (4, 1, 0)),
        (edited, (0, 1, 1)),
        (quiet, (0, 0, 0)),
        (late, (0, 0, 0)),
    ] {
        let (equal, told) = running.diff(did);
        assert!(equal, "the head is the PDS's: {told}");
        let kept = &told["compared"][1];
        if lost == (0, 0, 0) {
            assert!(kept.is_null(), "nothing was lost, so nothing is kept: {told}");
        } else {
            assert_eq!(differences(kept), lost, "{told}");
            assert_eq!(kept["rev"], ours[did].0.as_str(), "{told}");
        }
    }
    running.snapshot();
    let archive = firekeep.archive();
    let compared = sandbox.differences(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    let only_ours = |what: &&String| *what == "the PDS does not give this account, the mirror does";
    assert_eq!(compared.iter().filter(only_ours).count(), 8, "{compared:?}");
    assert_eq!(compared.len(), 8, "all else is equal: {compared:?}");
    let records = running.status().accounts("records");
    running.stop();
    let counts = format!(
        "from event {highest} back to {rewound}: {} accounts behind, 8 vanished, 13 alarms, 4 additions, 1 change and 1 \
         deletion listed and kept, {} writes after it followed, {records} records held",
        gone_back.len(),
        dids.len()
    );
    report("rolled_back", began, &counts);
}

/// The host says nothing: it still knows a number as low as the one that a connection begins with, or numbers what is
/// new as it had numbered what it has lost.
#[test]
fn rolled_back_silently() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 3;
    sandbox.populate(accounts, 60, 0);
    let dids = sandbox.dids();
    let [first, second, writer] = [0, 1, 2].map(|n| &dids[n]);
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    running.wait_filled(accounts);
    let mut copy = None;
    restart_with(&sandbox, || copy = Some(sandbox.back_up_pds()));
    let copy = copy.expect("a copy");

    // One commit is lost, and nobody writes after it.
    let lost = sandbox.post(first, "lost");
    running.wait_head(first, &lost);
    running.wait_caught_up(&sandbox);
    restart_with(&sandbox, || sandbox.restore_pds(&copy));
    let restarted = Instant::now();
    wait_alarms(&running, "rollback", &[first]);
    let seen_after = restarted.elapsed();
    wait_alarms(&running, "sequence_reset", &[&String::new()]);
    assert_eq!(epoch(&running.status()), 1);
    assert_eq!(running.heads(&dids)[first].1, lost);

    // Again, seen by the admin before, and with other events under the numbers of those that are lost.
    for (kind, subject) in running.alarms() {
        let host = sandbox.pds_url().replace("http://", "");
        let ack = running
            .setup
            .ask(&["alarms", "ack", &kind, "--host", &host, "--subject", &subject]);
        assert_eq!(ack.code, 0, "{}", ack.stderr);
    }
    let lost = sandbox.post(second, "lost");
    running.wait_head(second, &lost);
    running.stop();
    restart_with(&sandbox, || sandbox.restore_pds(&copy));
    let mut commits = Vec::new();
    for n in 0..3 {
        commits.push(sandbox.post(writer, &format!("in its place {n}")));
    }
    let mut running = firekeep.start();
    wait_alarms(&running, "rollback", &[first, second]);
    running.wait_head(writer, &commits[2]);
    let status = running.wait_status("all is settled", Status::settled);
    assert_eq!(epoch(&status), 2, "{status:?}");
    let shown = running.setup.ask(&["alarms"]);
    assert!(
        shown.stdout.contains("OPEN"),
        "what was seen is raised again: {}",
        shown.stdout
    );
    assert_eq!(running.heads(&dids)[second].1, lost);

    for did in [first, second] {
        let commit = sandbox.post(did, "after the rollback");
        running.wait_head(did, &commit);
        let (equal, told) = running.diff(did);
        assert!(equal, "{told}");
        assert_eq!(differences(&told["compared"][1]), (1, 1, 0), "{told}");
    }
    running.snapshot();
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    running.stop();
    let counts = format!(
        "one event lost, seen {:.1} s after the restart; numbers used again, seen at the next connection; 2 lost records \
         kept, {}",
        seen_after.as_secs_f64(),
        equal.text()
    );
    report("rolled_back_silently", began, &counts);
}
