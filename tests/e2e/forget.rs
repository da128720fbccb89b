//! What a person wants gone: out of the mirror and out of every object of the archive, by looking at all bytes on disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::support::alone::{Alone, repository};
use crate::support::firekeep::{Firekeep, Running};
use crate::support::sandbox::{NOTES, Sandbox};
use crate::support::{report, sized, wait_for};

/// Files below some folders in which a text stands, unpacked where they are packed.
fn files_with(folders: &[&Path], text: &[u8]) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            match path.is_dir() {
                true => walk(&path, found),
                false => found.push(path),
            }
        }
    }
    let mut files = Vec::new();
    folders.iter().for_each(|folder| walk(folder, &mut files));
    files.retain(|path| {
        let bytes = match path.extension().is_some_and(|ending| ending == "zst") {
            true => {
                let unpacked = Command::new("zstd").arg("-dc").arg(path).output();
                let unpacked = unpacked.expect("zstd runs: the sandbox needs it too");
                assert!(unpacked.status.success(), "{} cannot be unpacked", path.display());
                unpacked.stdout
            }
            // What is being compacted may go meanwhile.
            false => std::fs::read(path).unwrap_or_default(),
        };
        bytes.windows(text.len()).any(|part| part == text)
    });
    files
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

/// `firekeep forget`, through the daemon; what it printed.
fn forget(firekeep: &Firekeep, arguments: &[&str]) -> Value {
    let done = firekeep.ask(&[&["forget", "--json"], arguments].concat());
    assert_eq!(
        done.code, 0,
        "forget {arguments:?}: {}{}",
        done.stdout, done.stderr
    );
    serde_json::from_str(&done.stdout).expect("JSON")
}

fn status_of_blob(running: &Running, did: &str, cid: &str) -> u16 {
    running
        .get(&format!("/xrpc/com.atproto.sync.getBlob?did={did}&cid={cid}"))
        .status
}

#[test]
fn forget_takes_records_a_blob_and_an_account_out_of_everything() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 3;
    sandbox.populate(accounts, sized(60, 600), sized(6, 30));
    let dids = sandbox.dids();
    let (writer, leaver, other) = (&dids[0], &dids[1], &dids[2]);
    let archive = sandbox.folder().join("archive");
    let url = format!("file://{}", archive.display());
    let firekeep = Firekeep::new(&sandbox, "data").args(&["--archive", &url]);
    let folders = [firekeep.data_dir.as_path(), archive.as_path()];
    let (first, second, whole) = (
        "8c1f-first-secret-5b",
        "2d7a-second-secret-e9",
        "f04e-whole-secret-77",
    );

    // The secret stands in a snapshot, is rewritten in a delta, and the account of the leaver in both.
    sandbox.note(writer, "secret", first);
    sandbox.note(leaver, "secret", whole);
    let mut running = firekeep.start();
    running.wait_filled(accounts);
    running.snapshot();
    sandbox.note(writer, "secret", second);
    sandbox.note(leaver, "more", whole);
    let (picture, _, blob) = sandbox.picture(writer);
    running.wait_caught_up(&sandbox);
    running.wait_none_missing();
    running.snapshot();
    sandbox.note(writer, "innocent", "nothing to hide");
    running.wait_caught_up(&sandbox);
    for (text, least) in [(first, 2), (second, 3), (whole, 3)] {
        let found = files_with(&folders, text.as_bytes());
        assert!(found.len() >= least, "{text}: {found:?}");
        let in_data = found.iter().any(|path| path.starts_with(&firekeep.data_dir));
        assert!(in_data, "{text}: {found:?}");
    }
    let picture_bytes =
        std::fs::read(archive.join("v1/blocks").join(writer).join(&blob)).expect("the picture");

    // It asks first.
    let subject = format!("at://{writer}/{NOTES}/secret");
    let refused = firekeep.ask(&["forget", &subject]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    let plan = forget(&firekeep, &[&subject, "--dry-run"]);
    assert_eq!(
        plan["accounts"][0]["records"].as_array().map(Vec::len),
        Some(2),
        "{plan}"
    );
    assert!(
        !files_with(&folders, first.as_bytes()).is_empty(),
        "nothing was done"
    );
    let nothing = firekeep.ask(&["forget", &format!("at://{other}/{NOTES}/none"), "--dry-run"]);
    assert_eq!(nothing.code, 10, "{}", nothing.stderr);

    let done = forget(&firekeep, &[&subject, "--yes"]);
    assert_eq!(done["accounts"][0]["still_live"], 1, "{done}");
    forget(&firekeep, &[&picture, "--yes"]);
    forget(&firekeep, &[leaver, "--yes"]);
    for text in [
        first.as_bytes(),
        second.as_bytes(),
        whole.as_bytes(),
        &picture_bytes,
    ] {
        assert_eq!(files_with(&folders, text), Vec::<PathBuf>::new());
    }

    // Live at the host, and hidden here: now, after more commits, after a fetch of everything, after a restart.
    let hidden = |running: &Running| {
        let ours = repository(&firekeep.url(), writer);
        assert!(holds(&ours, "nothing to hide") && !holds(&ours, first) && !holds(&ours, second));
        assert_eq!(status_of_blob(running, writer, &blob), 400);
        let path = format!("/xrpc/com.atproto.sync.getRepo?did={leaver}");
        assert_eq!(running.get(&path).json()["error"], "RepoNotFound");
    };
    assert!(
        holds(&repository(&sandbox.pds_url(), writer), second),
        "the host has it still"
    );
    hidden(&running);
    sandbox.note(writer, "later", "goes on");
    sandbox.note(leaver, "later", whole);
    running.wait_caught_up(&sandbox);
    hidden(&running);
    assert!(holds(&repository(&firekeep.url(), writer), "goes on"));
    running.stop();
    std::fs::remove_dir_all(&firekeep.data_dir.join("tmp")).ok();
    running = firekeep.start();
    running.wait_status("all is here again", |status| {
        status.host()["listed"] == true && status.settled()
    });
    running.snapshot();
    hidden(&running);

    // The archive proves, obeys, and names what is withheld.
    let alone = Alone::new(&sandbox, &firekeep, &["--archive", &url]);
    alone.verify();
    let out = sandbox.folder().join("out.car");
    let export = |did: &str| {
        let file = out.to_str().expect("UTF-8");
        firekeep.ask(&["export", did, "-o", file, "--force", "--archive", &url])
    };
    let exported = export(writer);
    assert_eq!(exported.code, 3, "{}", exported.stderr);
    assert!(
        exported.stderr.contains(&format!("{NOTES}/secret")),
        "{}",
        exported.stderr
    );
    assert!(holds(&std::fs::read(&out).expect("the export"), "goes on"));
    assert_eq!(export(leaver).code, 10);
    assert_eq!(export(other).code, 0);

    // The host deletes it at last: then the account is as whole as any.
    sandbox.delete_note(writer, "secret");
    let rkey = picture.rsplit('/').next().expect("an rkey");
    sandbox.run(&["record", "delete", "--did", writer, "--rkey", rkey]);
    running.wait_caught_up(&sandbox);
    running.snapshot();
    wait_for("the export is whole", || match export(writer).code {
        0 => Ok(()),
        code => Err(code),
    });
    running.stop();
    for text in [
        first.as_bytes(),
        second.as_bytes(),
        whole.as_bytes(),
        &picture_bytes,
    ] {
        assert_eq!(files_with(&folders, text), Vec::<PathBuf>::new());
    }
    report(
        "forget",
        began,
        "2 versions of a record, a picture and an account are in no file; the rest proves",
    );
}

#[test]
fn retention_twice_and_every_moment_of_the_window_is_there() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 3;
    sandbox.populate(accounts, sized(60, 600), sized(6, 30));
    let dids = sandbox.dids();
    let archive = sandbox.folder().join("archive");
    let url = format!("file://{}", archive.display());
    let mut firekeep =
        Firekeep::new(&sandbox, "data").args(&["--archive", &url, "--snapshot-interval", "1s"]);
    for (key, value) in [
        ("LAST", "1"),
        ("HOURS", "0"),
        ("DAYS", "0"),
        ("WEEKS", "0"),
        ("MONTHS", "0"),
    ] {
        firekeep = firekeep.env(&format!("FIREKEEP_KEEP__{key}"), value);
    }
    // Longer than the test, so that every moment of it stays, though of its snapshots only the newest has to.
    firekeep = firekeep.env("FIREKEEP_KEEP__WINDOW", "1h");
    let mut running = firekeep.start();
    running.wait_filled(accounts);
    running.snapshot();
    for _ in 0..3 {
        sandbox.churn(20, sized(2, 20)).wait().assert_taken();
        running.wait_caught_up(&sandbox);
        running.snapshot();
    }
    running.wait_none_missing();
    let alone = Alone::new(&sandbox, &firekeep, &["--archive", &url]);
    let before: Vec<_> = dids.iter().map(|did| alone.moments(did)).collect();
    let count = |what: &str| {
        let found = Command::new("find")
            .arg(&archive)
            .args(["-name", what])
            .output()
            .expect("find runs");
        String::from_utf8_lossy(&found.stdout).lines().count()
    };
    let (segments, snapshots) = (count("*-0*.car.zst"), count("*.car.zst"));
    let prune = || {
        let done = firekeep.ask(&["prune", "--json"]);
        assert_eq!(done.code, 0, "prune: {}{}", done.stdout, done.stderr);
        serde_json::from_str::<Value>(&done.stdout).expect("JSON")
    };
    let first = prune();
    let removed = &first["pruned"]["removed"];
    assert!(
        removed["segments"][0].as_u64() > Some(0) && removed["snapshots"][0].as_u64() > Some(0),
        "{first}"
    );
    assert!(count("*-0*.car.zst") < segments && count("*.car.zst") < snapshots);
    assert_eq!(count("*.boundary.json"), 1);
    let second = prune();
    assert_eq!(
        second["pruned"]["removed"].as_object().map(serde_json::Map::len),
        Some(0),
        "{second}"
    );
    running.wait_status("it goes on", |status| status.archive("changes_due") == 0);
    assert!(running.metrics().count("firekeep_pruned_objects_total", &[]) > 0);
    running.stop();
    // Where no daemon runs, the command does it itself: by the mirror's lock and its claim.
    let data = firekeep.data_dir.to_str().expect("UTF-8").to_owned();
    let done = firekeep.ask(&["prune", "--json", "--data-dir", &data, "--archive", &url]);
    assert_eq!(done.code, 0, "alone: {}{}", done.stdout, done.stderr);
    let elsewhere = sandbox.folder().join("nothing");
    let done = firekeep.ask(&[
        "prune",
        "--data-dir",
        elsewhere.to_str().expect("UTF-8"),
        "--archive",
        &url,
    ]);
    assert_eq!(done.code, 1, "without a mirror: {}{}", done.stdout, done.stderr);

    alone.verify();
    let (mut moments, mut proven) = (0, 0);
    for (did, before) in dids.iter().zip(before) {
        assert_eq!(alone.moments(did), before, "every moment of {did} is still there");
        moments += before.len();
        let step = before
            .len()
            .div_ceil(usize::try_from(sized(8, 60)).expect("small"))
            .max(1);
        for (rev, _) in before.iter().step_by(step) {
            let out = sandbox.folder().join("then.car");
            let file = out.to_str().expect("UTF-8");
            let tar = sandbox.folder().join("then.tar");
            let blobs = tar.to_str().expect("UTF-8");
            let done = firekeep.ask(&[
                "export",
                did,
                "--at",
                rev,
                "-o",
                file,
                "--blobs",
                blobs,
                "--force",
                "--archive",
                &url,
            ]);
            assert_eq!(done.code, 0, "{did} at {rev}: {}", done.stderr);
            proven += 1;
        }
    }
    let counts = format!("{moments} moments stay, {proven} of them exported with every blob");
    report("retention_twice", began, &counts);
}
