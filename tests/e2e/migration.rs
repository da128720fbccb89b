//! Accounts that move from PDS to PDS, change their keys, or have their repository replaced: all of what a PDS does
//! then and tells nobody.

use std::time::Instant;

use serde_json::Value;

use crate::support::firekeep::{Firekeep, Running, Status};
use crate::support::report;
use crate::support::sandbox::{NOTES, Sandbox};
use crate::support::stream::Emitted;

/// The account follows, and its head is signed by the key of now.
fn is_live(account: &Value) -> bool {
    account["sync"] == "live" && account["signed_by_earlier_key"].is_null()
}

/// The account follows, and its head is signed by a key of before.
fn is_flagged(account: &Value) -> bool {
    account["sync"] == "live" && account["signed_by_earlier_key"].is_string()
}

fn rejected(running: &Running, reason: &str) -> u64 {
    let metrics = running.metrics();
    let found = metrics.find("firekeep_events_rejected_total", &[("reason", reason)]);
    found.map_or(0, |_| {
        metrics.count("firekeep_events_rejected_total", &[("reason", reason)])
    })
}

#[test]
fn moved_accounts() {
    let began = Instant::now();
    let sandbox = Sandbox::up_as(&["--with", "pds,plc", "--pds", "2"]);
    sandbox.run(&[
        "populate",
        "--accounts",
        "2",
        "--records",
        "60",
        "--blobs",
        "8",
        "--pds",
        "pds1",
    ]);
    let dids = sandbox.dids();
    let (mover, stayer) = (&dids[0], &dids[1]);
    let resident = &sandbox.create_account("resident", "pds2");
    sandbox.post(resident, "here all along");
    let [both, here, there] = [
        Firekeep::following(&sandbox, "both", &[0, 1]),
        Firekeep::following(&sandbox, "here", &[0]),
        Firekeep::following(&sandbox, "there", &[1]),
    ];
    let [mut both_runs, mut here_runs, mut there_runs] = [&both, &here, &there].map(Firekeep::start);
    for (running, accounts) in [(&mut both_runs, 3), (&mut here_runs, 2), (&mut there_runs, 1)] {
        running.wait_status("it is filled", |status| {
            status.sync("live") == accounts && status.settled()
        });
    }
    let before = both_runs.account(mover);
    let (host_before, records) = (before["host"].clone(), before["records"].clone());
    let head = both_runs
        .heads(std::slice::from_ref(mover))
        .remove(mover)
        .expect("a head");

    sandbox.account("move", mover, &["--to", "pds2"]);

    // Who follows only the new PDS gets it with the head of before the move, which a key of before signed.
    let flagged = there_runs.wait_account(mover, "it is there, and flagged", is_flagged);
    assert_eq!(flagged["commit"], head.1.as_str(), "{flagged}");
    assert_eq!(flagged["records"], records, "{flagged}");
    let key_before = flagged["signed_by_earlier_key"].clone();
    let printed = there_runs.setup.ask(&["accounts"]).stdout;
    assert!(printed.contains("signed by a key of before"), "{printed}");
    there_runs.wait_status("its blobs are there too", |status| status.settled());
    let equal = sandbox.compare(&["--url", &there.url(), "--pds", "pds2", "--no-snapshots"]);
    assert_eq!(equal.accounts, 2);
    assert!(equal.blobs > 0, "{equal:?}");

    // Who follows both carries on under the same DID; who follows only the old one keeps what there was.
    let carried = both_runs.wait_account(mover, "it is followed at the new PDS", |account| {
        account["host"] != host_before && account["sync"] == "live"
    });
    assert_eq!(
        (&carried["commit"], &carried["records"]),
        (&head.1.as_str().into(), &records)
    );
    let left = here_runs.wait_account(mover, "it is known to have moved", |account| {
        account["sync"] == "moved"
    });
    assert_eq!(
        (&left["rev"], &left["records"]),
        (&head.0.as_str().into(), &records),
        "{left}"
    );

    // Its next write is signed by the key of now.
    let commit = sandbox.post(mover, "the first at the new PDS");
    for running in [&mut both_runs, &mut there_runs] {
        running.wait_head(mover, &commit);
        let account = running.wait_account(mover, "it is no longer flagged", is_live);
        assert_ne!(account["signed_by_earlier_key"], key_before);
    }
    let stayed = sandbox.post(stayer, "still here");
    both_runs.wait_head(stayer, &stayed);
    here_runs.wait_head(stayer, &stayed);
    let left = here_runs.account(mover);
    assert_eq!(
        (&left["sync"], &left["rev"]),
        (&"moved".into(), &head.0.as_str().into())
    );
    for running in [&both_runs, &here_runs, &there_runs] {
        // That somebody changed the identity is told, by whoever reads its log then; a move is no loss.
        let mut alarms = running.alarms();
        alarms.retain(|(kind, _)| kind != "identity_changed");
        assert_eq!(alarms, Vec::new(), "a move is no loss");
    }
    both_runs.snapshot();
    let archive = both.archive();
    let equal = sandbox.compare(&["--url", &both.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (3, 3));
    let counts = format!(
        "moved in with {records} records, flagged until its first write there; carried on under the same DID where both \
         PDSes are followed, kept where only the old one is; {}",
        equal.text()
    );
    report("moved_accounts", began, &counts);
}

#[test]
fn new_keys() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 3;
    sandbox.populate(accounts, 60, 4);
    let dids = sandbox.dids();
    let [announced, silent, lagging] = [0, 1, 2].map(|n| &dids[n]);
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    running.wait_filled(accounts);

    // The PDS says that the identity changed, or says nothing: the first commit under the new key is proven by it.
    sandbox.account("rotate", announced, &["--announce"]);
    sandbox.account("rotate", silent, &[]);
    for did in [announced, silent] {
        for n in 0..2 {
            let commit = sandbox.post(did, &format!("under the new key {n}"));
            running.wait_head(did, &commit);
        }
        running.wait_account(did, "it is live", is_live);
    }
    assert_eq!(rejected(&running, "bad_signature"), 0);

    // The document has a new key, and the PDS goes on with the old one: its commits prove nothing, but its
    // repository is taken, and flagged.
    sandbox.account("rotate", lagging, &["--directory-only"]);
    sandbox.account("rename", lagging, &["--to", "renamed"]);
    running.wait_status("the change is known", Status::settled);
    let commit = sandbox.post(lagging, "under the old key");
    running.wait_head(lagging, &commit);
    running.wait_account(lagging, "it is flagged", is_flagged);
    assert_eq!(
        rejected(&running, "bad_signature"),
        1,
        "no commit is taken with a key of before"
    );
    sandbox.account("take-key", lagging, &[]);
    let commit = sandbox.post(lagging, "under the new key at last");
    running.wait_head(lagging, &commit);
    running.wait_account(lagging, "it is live", is_live);
    assert_eq!(
        rejected(&running, "bad_signature"),
        1,
        "and that one is taken as a commit"
    );

    let mut alarms = running.alarms();
    alarms.retain(|(kind, _)| kind != "identity_changed");
    assert_eq!(alarms, Vec::new());
    running.wait_caught_up(&sandbox);
    running.snapshot();
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    running.stop();
    let counts = format!(
        "one key change announced, one silent, one that the PDS was late with: 1 commit under a key of before refused and \
         its repository flagged; {}",
        equal.text()
    );
    report("new_keys", began, &counts);
}

#[test]
fn imported_over() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 3;
    sandbox.populate(accounts, 60, 0);
    let dids = sandbox.dids();
    let [older, same, quiet] = [0, 1, 2].map(|n| &dids[n]);
    sandbox.note(older, "kept", "as it was");
    sandbox.note(older, "deleted", "comes back");
    // For what no event tells.
    let firekeep = Firekeep::new(&sandbox, "data").args(&["--audit-interval", "2s"]);
    let mut running = firekeep.start();
    running.wait_filled(accounts);
    let file = sandbox.folder().join("older.car");
    let file = ["--file", file.to_str().unwrap()];
    sandbox.account("export", older, &file);
    sandbox.note(older, "kept", "as it was changed");
    sandbox.note(older, "added", "not in the CAR");
    sandbox.delete_note(older, "deleted");
    running.wait_caught_up(&sandbox);
    let head = running.heads(&dids);
    let events = Emitted::read(&sandbox).last();

    // An older state of its own: what came after it is gone there, and no event says so.
    sandbox.account("import", older, &file);
    let now = sandbox.folder().join("same.car");
    let now = ["--file", now.to_str().unwrap()];
    sandbox.account("export", same, &now);
    sandbox.account("import", same, &now);
    assert_eq!(Emitted::read(&sandbox).last(), events, "an import is silent");
    let account = running.wait_account(older, "it is seen", |account| account["sync"] == "diverged");
    assert_eq!(account["rev"], head[older].0.as_str(), "ours stays: {account}");
    assert_eq!(running.alarms(), [("rollback".to_owned(), older.clone())]);
    let (equal, told) = running.diff(older);
    let paths = &told["compared"][0]["paths"];
    assert!(!equal, "{told}");
    for (side, rkey) in [
        ("only_here", "added"),
        ("only_there", "deleted"),
        ("changed", "kept"),
    ] {
        assert_eq!(
            paths[side],
            serde_json::json!([format!("{NOTES}/{rkey}")]),
            "{told}"
        );
    }
    let status = running.wait_status("nothing is open", Status::settled);
    assert_eq!(running.heads(&dids), head, "{status:?}");

    // Then it goes on from there.
    for did in [older, same, quiet] {
        let commit = sandbox.post(did, "after the import");
        running.wait_head(did, &commit);
    }
    let (equal, told) = running.diff(older);
    assert!(equal, "{told}");
    assert_eq!(told["compared"][1]["rev"], head[older].0.as_str(), "{told}");
    assert_eq!(
        told["compared"][1]["paths"]["only_here"], paths["only_here"],
        "{told}"
    );
    assert_eq!(running.account(older)["kept_beside"], 1);
    assert_eq!(
        running.account(same)["kept_beside"],
        0,
        "the same state was no loss"
    );
    assert_eq!(running.alarms(), [("rollback".to_owned(), older.clone())]);
    running.wait_caught_up(&sandbox);
    running.snapshot();
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    running.stop();
    let counts = format!(
        "2 silent imports over active accounts: the older state is seen, alarmed and listed, what it took is kept, the next \
         write is followed; the same state changes nothing; {}",
        equal.text()
    );
    report("imported_over", began, &counts);
}
