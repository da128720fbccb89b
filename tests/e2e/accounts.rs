//! Accounts that are switched off: what their host no longer shows, we show no longer, and keep.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::firekeep::{Firekeep, Running};
use crate::support::sandbox::Sandbox;
use crate::support::{report, wait_for};

/// Hidden means hidden within a second of the event; the PDS itself looks for new events to send once a second, and
/// the rest is for a busy machine.
const HIDDEN_WITHIN: Duration = Duration::from_secs(4);

/// What everybody can ask for of an account: each must be refused while it is off.
fn questions(did: &str, picture: &str) -> [String; 4] {
    [
        format!("getRepo?did={did}"),
        format!("getBlob?did={did}&cid={picture}"),
        format!("getLatestCommit?did={did}"),
        format!("listBlobs?did={did}"),
    ]
}

/// The error that each question gets: empty where it is answered.
fn errors(running: &Running, did: &str, picture: &str) -> Vec<String> {
    let ask = |question: &String| {
        let answer = running.get(&format!("/xrpc/com.atproto.sync.{question}"));
        match answer.status {
            200 => String::new(),
            400 | 404 => answer.json()["error"]
                .as_str()
                .expect("an error's name")
                .to_owned(),
            status => panic!("{question}: {status} {}", answer.text()),
        }
    };
    questions(did, picture).iter().map(ask).collect()
}

/// Waits until every question gets this error, none if it is empty. How long it took.
fn wait_answers(running: &Running, did: &str, picture: &str, error: &str) -> Duration {
    let began = Instant::now();
    wait_for(&format!("{did} answers {error:?}"), || {
        let errors = errors(running, did, picture);
        if errors.iter().all(|one| one == error) {
            Ok(())
        } else {
            Err(errors)
        }
    });
    began.elapsed()
}

/// How `listRepos` shows it: `active` or its status.
fn listed(running: &Running, did: &str) -> Option<String> {
    let listed = running.get("/xrpc/com.atproto.sync.listRepos?limit=1000").json();
    let repos = listed["repos"].as_array().expect("a list");
    let found = repos.iter().find(|repo| repo["did"] == did)?;
    Some(match found["status"].as_str() {
        Some(status) => status.to_owned(),
        None if found["active"] != false => "active".to_owned(),
        None => "inactive".to_owned(),
    })
}

#[test]
fn accounts_off_and_on() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 6;
    sandbox.populate(accounts, 60, 6);
    let dids = sandbox.dids();
    let pictures: Vec<String> = dids.iter().map(|did| sandbox.post_picture(did)).collect();
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    running.wait_filled(accounts);
    running.snapshot();
    let held = running.heads(&dids);
    for (did, picture) in dids.iter().zip(&pictures) {
        wait_answers(&running, did, picture, "");
    }
    let records = running.status().accounts("records");
    let (mut slowest, mut switched) = (Duration::ZERO, 0);
    let mut hidden = |running: &Running, n: usize, error: &str, status: &str| {
        let took = wait_answers(running, &dids[n], &pictures[n], error);
        assert!(
            took <= HIDDEN_WITHIN,
            "{} was hidden only after {took:?}",
            dids[n]
        );
        slowest = slowest.max(took);
        switched += 1;
        assert_eq!(running.account(&dids[n])["status"], status);
        let kept = running.account(&dids[n]);
        assert_eq!(kept["rev"], held[&dids[n]].0.as_str(), "our copy stays: {kept}");
        let shown = (status != "deleted").then(|| status.to_owned());
        assert_eq!(listed(running, &dids[n]), shown);
    };

    // Taken down by the admin, the quickest to be told; and given back.
    sandbox.take_down(&dids[0], true);
    hidden(&running, 0, "RepoTakendown", "takendown");
    sandbox.take_down(&dids[0], false);
    wait_answers(&running, &dids[0], &pictures[0], "");

    // By its owner, and the admin on top of that: undoing the one leaves the other.
    sandbox.account("deactivate", &dids[1], &[]);
    hidden(&running, 1, "RepoDeactivated", "deactivated");
    sandbox.take_down(&dids[1], true);
    hidden(&running, 1, "RepoTakendown", "takendown");
    sandbox.take_down(&dids[1], false);
    hidden(&running, 1, "RepoDeactivated", "deactivated");
    sandbox.account("activate", &dids[1], &[]);
    wait_answers(&running, &dids[1], &pictures[1], "");

    // What stays off stays hidden over a restart.
    sandbox.take_down(&dids[2], true);
    hidden(&running, 2, "RepoTakendown", "takendown");
    sandbox.account("deactivate", &dids[3], &[]);
    hidden(&running, 3, "RepoDeactivated", "deactivated");

    // Deleted: hidden, and the host is asked whether it is so.
    sandbox.account("delete", &dids[4], &[]);
    hidden(&running, 4, "RepoNotFound", "deleted");
    let confirmed = |account: &serde_json::Value| account["deletion_confirmed_at"].is_string();
    running.wait_account(&dids[4], "the deletion is confirmed", confirmed);
    assert!(
        !confirmed(&running.account(&dids[2])),
        "a takedown is no deletion"
    );
    running.stop();

    // Deleted with all its history while nobody listened: the last thing that it wrote is gone there.
    sandbox.post(&dids[5], "nobody reads this");
    sandbox.account("delete", &dids[5], &[]);
    let mut running = firekeep.start();
    wait_answers(&running, &dids[5], &pictures[5], "RepoNotFound");
    running.wait_account(&dids[5], "the deletion is confirmed", confirmed);
    wait_answers(&running, &dids[2], &pictures[2], "RepoTakendown");
    wait_answers(&running, &dids[3], &pictures[3], "RepoDeactivated");
    assert_eq!(running.alarms(), Vec::new(), "what a host announces is no loss");

    let status = running.wait_caught_up(&sandbox);
    assert_eq!(status.accounts("records"), records, "{status:?}");
    assert_eq!(status.accounts("held"), accounts, "{status:?}");
    check_archived(&firekeep.archive(), &held, &dids, &pictures);

    // Those that are on again are followed.
    for did in &dids[..2] {
        let commit = sandbox.post(did, "on again");
        running.wait_head(did, &commit);
    }
    running.snapshot();
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (2, 2));
    running.stop();
    let counts = format!(
        "{switched} times switched off, hidden after {} ms at most, 2 given back and followed, 2 stay off, 2 deleted and \
         confirmed, all {records} records and {accounts} snapshots kept, {}",
        slowest.as_millis(),
        equal.text()
    );
    report("accounts_off_and_on", began, &counts);
}

/// All of it is kept in the archive too.
fn check_archived(
    archive: &Path,
    held: &BTreeMap<String, (String, String)>,
    dids: &[String],
    pictures: &[String],
) {
    for (did, picture) in dids.iter().zip(pictures) {
        let (rev, cid) = &held[did];
        for name in [
            format!("v1/repos/{did}/{rev}-{cid}.car.zst"),
            format!("v1/blocks/{did}/{picture}"),
        ] {
            assert!(archive.join(&name).is_file(), "the archive has {name}");
        }
    }
}
