//! Trial restores and reading everything, by the daemon and by command; and an archive that is damaged.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::support::firekeep::{Ended, Firekeep, Running};
use crate::support::report;
use crate::support::sandbox::Sandbox;

const ACCOUNTS: u64 = 4;

fn told(ended: &Ended, code: i32) -> Value {
    assert_eq!(ended.code, code, "{}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).expect("it prints JSON")
}

fn count(running: &Running, name: &str) -> f64 {
    let found = running.metrics().find(name, &[]);
    found.unwrap_or_else(|| panic!("there is no {name}"))
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).expect("there");
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    std::fs::write(path, bytes).expect("writes");
}

/// The newest snapshot of an account.
fn newest(archive: &Path, did: &str) -> PathBuf {
    let folder = archive.join("v1/repos").join(did);
    let files = std::fs::read_dir(folder).expect("a folder");
    let files = files.map(|entry| entry.expect("an entry").path());
    let snapshots = files.filter(|path| !path.to_string_lossy().contains(".delta."));
    snapshots.max().expect("a snapshot")
}

fn wait_alarm(running: &Running, kind: &str) {
    crate::support::wait_for(&format!("an alarm {kind}"), || {
        let alarms = running.alarms();
        if alarms.iter().any(|(known, _)| known == kind) {
            Ok(())
        } else {
            Err(alarms)
        }
    });
}

#[test]
fn drill() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    sandbox.populate(ACCOUNTS, 120, 8);
    let dids = sandbox.dids();
    let setup = Firekeep::new(&sandbox, "data").args(&["--drill-interval", "1s", "--scrub-interval", "1s"]);
    let mut running = setup.start();
    running.wait_filled(ACCOUNTS);
    running.wait_none_missing();
    running.snapshot();
    // While it is written to, all is read and restored over and over: nothing is taken for damage that is none.
    sandbox.churn(20, 4).wait().assert_taken();
    running.wait_caught_up(&sandbox);
    assert_eq!(running.alarms(), []);
    running.wait_status("all of it is in the archive", |status| {
        status.archive("changes_due") == 0 && status.archive("accounts_due") == 0 && status.blobs("held") == 0
    });

    // By the daemon itself.
    let by_itself = [
        "firekeep_last_successful_drill_timestamp_seconds",
        "firekeep_last_successful_scrub_timestamp_seconds",
        "firekeep_last_mirror_scrub_timestamp_seconds",
    ];
    crate::support::wait_for("all was proven once", || {
        let metrics = running.metrics();
        let open = by_itself
            .iter()
            .find(|name| metrics.find(name, &[]).unwrap_or(0.0) == 0.0);
        open.map_or(Ok(()), Err)
    });
    // On demand: compared with the mirror.
    let good = told(&setup.ask(&["drill", "--json"]), 0);
    let accounts = good["accounts"].as_array().expect("a list");
    assert_eq!(accounts.len() as u64, ACCOUNTS, "{good}");
    assert!(
        accounts.iter().all(|account| account["compared"] == true),
        "{good}"
    );
    let text = setup.ask(&["drill"]);
    assert!(text.code == 0 && text.stdout.contains("GOOD: 4 of 4"), "{text:?}");
    // From the archive alone, with no PDS and no directory.
    sandbox.stop("plc");
    let url = format!("file://{}", setup.archive().display());
    let mut alone = setup.command();
    let alone = alone.args(["drill", "--json", "--archive", &url]).output();
    let alone = alone.expect("firekeep starts");
    assert_eq!(
        alone.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&alone.stdout)
    );
    sandbox.start("plc");
    let drills = running
        .metrics()
        .count("firekeep_drills_total", &[("result", "ok")]);
    assert_eq!(
        running
            .metrics()
            .count("firekeep_drills_total", &[("result", "error")]),
        0
    );

    running.snapshot();
    let broken = mended(&running, &setup, &dids, &url);
    running.stop();
    fails(&sandbox, &setup, &broken, &url);
    let text = format!(
        "{drills} drills of {ACCOUNTS} accounts good, with the mirror and alone; a flipped bit in a snapshot was found, \
         alarmed and mended, as was a blob that was gone; one that nothing had read again failed a drill, and one of the \
         archive alone with exit code 4"
    );
    report("drill", began, &text);
}

/// What the daemon finds damaged is alarmed, and put there again. The snapshot that it was.
fn mended(running: &Running, setup: &Firekeep, dids: &[String], url: &str) -> PathBuf {
    // A bit of a snapshot that is the head.
    let broken = newest(&setup.archive(), &dids[0]);
    let before = std::fs::read(&broken).expect("there");
    flip(&broken);
    wait_alarm(running, "archive_damaged");
    crate::support::wait_for("the snapshot is whole again", || {
        let now = std::fs::read(&broken).expect("there");
        if now == before { Ok(()) } else { Err("it is not") }
    });
    // A blob that is gone: fetched again, and archived again.
    // One that a record refers to: nothing misses another.
    let listed = running.get(&format!("/xrpc/com.atproto.sync.listBlobs?did={}", dids[1]));
    let cid = listed.json()["cids"][0].as_str().expect("a blob").to_owned();
    let blob = setup.archive().join("v1/blocks").join(&dids[1]).join(cid);
    std::fs::remove_file(&blob).expect("removes");
    crate::support::wait_for("the blob is there again", || {
        if blob.exists() { Ok(()) } else { Err("it is not") }
    });
    let mut command = setup.command();
    let verified = command
        .args(["verify", "--archive", url])
        .output()
        .expect("firekeep starts");
    assert_eq!(
        verified.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&verified.stdout)
    );
    broken
}

/// Before anything has read all of it again: a drill fails, is alarmed, and says what is wrong.
fn fails(sandbox: &Sandbox, setup: &Firekeep, broken: &Path, url: &str) {
    flip(broken);
    let running = Firekeep::new(sandbox, "data")
        .args(&["--drill-interval", "1s"])
        .start();
    wait_alarm(&running, "drill_failed");
    assert!(count(&running, "firekeep_last_failed_drill_timestamp_seconds") > 0.0);
    let bad = told(&running.setup.ask(&["drill", "--json"]), 4);
    assert!(bad.to_string().contains("car.zst"), "{bad}");
    running.stop();
    let mut alone = setup.command();
    let alone = alone
        .args(["drill", "--archive", url])
        .output()
        .expect("firekeep starts");
    let said = String::from_utf8_lossy(&alone.stdout);
    assert_eq!(alone.status.code(), Some(4), "{said}");
    let name = broken.file_name().expect("a name").to_string_lossy();
    assert!(said.contains(&*name) && said.contains("FAILED"), "{said}");
}
