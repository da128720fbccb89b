//! A new machine with the old archive: the mirror comes out of the bucket, with the PDS and the directory switched off,
//! so that nothing can have been fetched; then both are there again, and what was written meanwhile is followed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::alone::{Alone, blocks, repository};
use crate::support::firekeep::{Firekeep, Running};
use crate::support::metrics::Metrics;
use crate::support::sandbox::{Compared, Sandbox};
use crate::support::{Chance, report, sized};

const ACCOUNTS: u64 = 5;

#[test]
fn cold_start() {
    let sandbox = Sandbox::up("pds,plc");
    let archive = format!("file://{}", sandbox.folder().join("archive").display());
    let firekeep = Firekeep::new(&sandbox, "data");
    let source = ["--archive", archive.as_str()];
    let began = from_bucket("cold_start", &sandbox, &firekeep, &source);
    let behind = fell_back(&sandbox, &firekeep, &source);
    report("cold_start, an older copy", began, &behind);
}

#[test]
fn cold_start_from_s3() {
    let sandbox = Sandbox::up("pds,plc,s3");
    let firekeep = Firekeep::new(&sandbox, "data")
        .env("AWS_ACCESS_KEY_ID", &sandbox.s3("access_key"))
        .env("AWS_SECRET_ACCESS_KEY", &sandbox.s3("secret_key"));
    let (url, endpoint) = (
        format!("s3://{}/cold", sandbox.s3("bucket")),
        sandbox.s3("endpoint"),
    );
    let region = sandbox.s3("region");
    let source = [
        "--archive",
        &url,
        "--s3-endpoint",
        &endpoint,
        "--s3-region",
        &region,
    ];
    from_bucket("cold_start_from_s3", &sandbox, &firekeep, &source);
}

/// Repositories that were fetched, and blobs that were tried to be.
fn fetched(metrics: &Metrics) -> (u64, u64) {
    (
        metrics.count("firekeep_repo_received_bytes_total", &[]),
        metrics.count("firekeep_blob_fetches_total", &[]),
    )
}

/// Everything is in the archive: what was applied, and what the accounts are.
fn settled(running: &mut Running, sandbox: &Sandbox, live: u64) {
    running.wait_caught_up(sandbox);
    running.wait_none_missing();
    running.wait_status("all of it is in the archive", |status| {
        status.archive("changes_due") == 0
            && status.archive("accounts_due") == 0
            && status.blobs("held") == 0
            && status.sync("live") == live
    });
}

fn pictures(sandbox: &Sandbox, did: &str) -> (String, Vec<u8>) {
    let (_, _, cid) = sandbox.picture(did);
    let path = format!("/xrpc/com.atproto.sync.getBlob?did={did}&cid={cid}");
    let answer = crate::support::http::get(&sandbox.pds_url(), &path).expect("the PDS answers");
    assert_eq!(answer.status, 200);
    (path, answer.body)
}

fn from_bucket(name: &str, sandbox: &Sandbox, firekeep: &Firekeep, source: &[&str]) -> Instant {
    let began = Instant::now();
    let mut chance = Chance(Chance::seed());
    sandbox.populate(ACCOUNTS, sized(120, 2000), sized(12, 60));
    let dids = sandbox.dids();
    let machine = firekeep.clone().args(source);
    let mut running = machine.start();
    running.wait_filled(ACCOUNTS);
    settled(&mut running, sandbox, ACCOUNTS);
    // Changes of three kinds: in a snapshot, in a delta before it, and in the log alone.
    sandbox.churn(20, sized(2, 30)).wait().assert_taken();
    running.wait_caught_up(sandbox);
    running.snapshot();
    sandbox.churn(20, sized(2, 30)).wait().assert_taken();
    settled(&mut running, sandbox, ACCOUNTS);
    let hidden = &dids[0];
    let shown = &dids[1..];
    let before_hiding: BTreeSet<Vec<u8>> = own(&blocks(&repository(&sandbox.pds_url(), hidden)));
    sandbox.take_down(hidden, true);
    running.wait_account(hidden, "it is taken down", |account| {
        account["status"] == "takendown"
    });
    let (picture, picture_bytes) = pictures(sandbox, &shown[0]);
    settled(&mut running, sandbox, ACCOUNTS);
    let heads = running.heads(shown);
    let theirs: BTreeMap<&String, Vec<u8>> = shown
        .iter()
        .map(|did| (did, repository(&sandbox.pds_url(), did)))
        .collect();
    let cursor = running.status().cursor();
    running.kill_nine();
    std::fs::remove_dir_all(&machine.data_dir).expect("removes");

    // A bucket that somebody writes is nobody else's, also where he is gone: that is for a person to say.
    let refused = machine.refused();
    assert_eq!(refused.code, 11, "{}", refused.stderr);
    assert!(refused.stderr.contains("--take-over"), "{}", refused.stderr);

    sandbox.stop("pds1");
    sandbox.stop("plc");
    // Killed at any moment while it fills, it goes on.
    let new = firekeep.clone().args(source).args(&["--take-over"]);
    let kills = sized(3, 20);
    for _ in 0..kills {
        let running = new.spawn();
        std::thread::sleep(chance.below(Duration::from_millis(900)));
        // It may have been refused nothing, and be done: then it is killed as any other.
        running.kill_nine();
    }
    let mut running = new.start();
    let status = running.wait_status("the mirror is filled from the archive", |status| {
        status.sync("live") == ACCOUNTS && status.accounts("held") == ACCOUNTS
    });
    assert_eq!(status.blobs("wanted"), 0, "{status:?}");
    assert!(status.blobs("archived") > 0, "{status:?}");
    assert!(status.cursor() <= cursor && status.cursor() > 0, "{status:?}");
    assert_eq!(running.heads(shown), heads);
    for (did, car) in &theirs {
        let ours = repository(&new.url(), did);
        assert!(blocks(&ours) == blocks(car), "{did}: not what the PDS had");
    }
    let answer = running.get(&picture);
    assert_eq!(
        (answer.status, answer.body == picture_bytes),
        (200, true),
        "a blob"
    );
    let hidden_path = format!("/xrpc/com.atproto.sync.getRepo?did={hidden}");
    assert_eq!(
        running.get(&hidden_path).status,
        400,
        "hidden means hidden, also on a new machine"
    );
    let (repos, blobs) = fetched(&running.metrics());
    assert_eq!((repos, blobs), (0, 0), "nothing can have been fetched");

    let (compared, repos) = goes_on(sandbox, running, (hidden, &before_hiding), cursor);
    let counts = verified(sandbox, firekeep, source);
    let text = format!(
        "data folder lost and {kills} kills while it was filled: {} with the PDS and the directory off, 0 repositories \
         and 0 blobs fetched (then {repos} bytes while it followed); verify: {}",
        compared.text(),
        counts["objects"]
    );
    report(name, began, &text);
    Instant::now()
}

/// The PDS and the directory are there again: what was written meanwhile is followed, and nothing is fetched for it.
fn goes_on(
    sandbox: &Sandbox,
    mut running: Running,
    (hidden, before_hiding): (&String, &BTreeSet<Vec<u8>>),
    cursor: u64,
) -> (Compared, u64) {
    sandbox.start("plc");
    sandbox.start("pds1");
    running.wait_status("it follows again", |status| {
        status.connected() && status.cursor() >= cursor
    });
    sandbox.take_down(hidden, false);
    running.wait_account(hidden, "it is active again", |account| {
        account["status"] == "active"
    });
    settled(&mut running, sandbox, ACCOUNTS);
    let back = repository(&running.setup.url(), hidden);
    assert!(own(&blocks(&back)) == *before_hiding, "{hidden}: it was kept");
    let (repos, blobs) = fetched(&running.metrics());
    assert_eq!(
        (repos, blobs),
        (0, 0),
        "what the bucket proves is not fetched again"
    );
    sandbox.churn(20, sized(2, 30)).wait().assert_taken();
    settled(&mut running, sandbox, ACCOUNTS);
    let compared = sandbox.compare(&["--url", &running.setup.url()]);
    assert_eq!(compared.accounts, ACCOUNTS);
    let (repos, _) = fetched(&running.metrics());
    running.snapshot();
    running.stop();
    (compared, repos)
}

/// The archive proves itself, with every signature and no moment lost. What was counted.
fn verified(sandbox: &Sandbox, firekeep: &Firekeep, source: &[&str]) -> serde_json::Value {
    let setup = firekeep.clone().args(source);
    let (counts, gaps) = Alone::new(sandbox, &setup, source).verify();
    assert_eq!(gaps, [], "no moment is lost on the way");
    assert_eq!(counts["signatures_not_checked"], 0, "{counts}");
    counts
}

fn own(blocks: &BTreeSet<&[u8]>) -> BTreeSet<Vec<u8>> {
    blocks.iter().map(|block| block.to_vec()).collect()
}

/// An older copy of the data folder is given what the archive has more of, before anything is asked of the PDS.
fn fell_back(sandbox: &Sandbox, firekeep: &Firekeep, source: &[&str]) -> String {
    let machine = firekeep.clone().args(source);
    let copy = machine.data_dir.with_extension("copy");
    copy_folder(&machine.data_dir, &copy);
    let mut running = machine.start();
    sandbox.churn(20, sized(2, 10)).wait().assert_taken();
    settled(&mut running, sandbox, ACCOUNTS);
    let heads = running.heads(&sandbox.dids());
    running.stop();
    std::fs::remove_dir_all(&machine.data_dir).expect("removes");
    std::fs::rename(&copy, &machine.data_dir).expect("renames");

    sandbox.stop("pds1");
    let mut running = machine.start();
    assert!(
        running.log().contains("an older copy of itself"),
        "{}",
        running.log()
    );
    running.wait_status("what it lacked is there", |status| {
        status.sync("live") == ACCOUNTS
    });
    assert_eq!(running.heads(&sandbox.dids()), heads);
    sandbox.start("pds1");
    settled(&mut running, sandbox, ACCOUNTS);
    let (repos, _) = fetched(&running.metrics());
    assert_eq!(repos, 0, "nothing is fetched that the archive has");
    let compared = sandbox.compare(&["--url", &machine.url()]);
    running.snapshot();
    running.stop();
    format!(
        "an older copy of the data folder healed from the archive, {}",
        compared.text()
    )
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copies");
        }
    }
}
