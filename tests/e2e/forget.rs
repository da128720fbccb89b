//! What a person wants gone: out of the mirror and out of every object of the archive, by looking at all bytes on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::support::alone::{Alone, repository};
use crate::support::firekeep::{Ended, Firekeep, Running};
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

const FIRST: &str = "8c1f-first-secret-5b";
const SECOND: &str = "2d7a-second-secret-e9";
const WHOLE: &str = "f04e-whole-secret-77";

/// A PDS with a secret, of which some is live.
struct Scene {
    sandbox: Sandbox,
    firekeep: Firekeep,
    archive: PathBuf,
    url: String,
    /// Has a record and a picture that are to go, and others.
    writer: String,
    /// Is to go with everything.
    leaver: String,
    other: String,
}

impl Scene {
    fn up(name: &str, arguments: &[&str]) -> Self {
        let sandbox = Sandbox::up("pds,plc");
        sandbox.populate(3, sized(60, 600), sized(6, 30));
        let archive = sandbox.folder().join("archive");
        let url = format!("file://{}", archive.display());
        let firekeep = Firekeep::new(&sandbox, name)
            .args(&["--archive", &url])
            .args(arguments);
        let [writer, leaver, other] = sandbox.dids().try_into().expect("three accounts");
        Self {
            sandbox,
            firekeep,
            archive,
            url,
            writer,
            leaver,
            other,
        }
    }

    /// The secret stands in a snapshot, is rewritten in a delta, and so does the account of the leaver. Returns what
    /// runs, the picture's address and its blob.
    fn fill(&self) -> (Running, String, String) {
        let (sandbox, writer, leaver) = (&self.sandbox, &self.writer, &self.leaver);
        sandbox.note(writer, "secret", FIRST);
        sandbox.note(leaver, "secret", WHOLE);
        let mut running = self.firekeep.start();
        running.wait_filled(3);
        running.snapshot();
        sandbox.note(writer, "secret", SECOND);
        sandbox.note(leaver, "more", WHOLE);
        let (picture, _, blob) = sandbox.picture(writer);
        running.wait_caught_up(sandbox);
        running.wait_none_missing();
        running.snapshot();
        sandbox.note(writer, "innocent", "nothing to hide");
        running.wait_caught_up(sandbox);
        for (text, least) in [(FIRST, 2), (SECOND, 3), (WHOLE, 3)] {
            let found = self.files_with(text.as_bytes());
            let in_data = found.iter().any(|path| path.starts_with(&self.firekeep.data_dir));
            assert!(found.len() >= least && in_data, "{text}: {found:?}");
        }
        (running, picture, blob)
    }

    fn files_with(&self, text: &[u8]) -> Vec<PathBuf> {
        files_with(&[&self.firekeep.data_dir, &self.archive], text)
    }

    fn is_nowhere(&self, picture: &[u8]) {
        for text in [FIRST.as_bytes(), SECOND.as_bytes(), WHOLE.as_bytes(), picture] {
            assert_eq!(self.files_with(text), Vec::<PathBuf>::new());
        }
    }

    /// It asks before it does anything, and says what it would do.
    fn asks_first(&self, subject: &str) {
        let refused = self.firekeep.ask(&["forget", subject]);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        let plan = forget(&self.firekeep, &[subject, "--dry-run"]);
        let records = plan["accounts"][0]["records"].as_array().map(Vec::len);
        assert_eq!(records, Some(2), "{plan}");
        assert!(!self.files_with(FIRST.as_bytes()).is_empty(), "nothing was done");
        let nothing = format!("at://{}/{NOTES}/none", self.other);
        let nothing = self.firekeep.ask(&["forget", &nothing, "--dry-run"]);
        assert_eq!(nothing.code, 10, "{}", nothing.stderr);
    }

    /// Nobody gets it from here.
    fn is_hidden(&self, running: &Running, blob: &str) {
        let ours = repository(&self.firekeep.url(), &self.writer);
        assert!(holds(&ours, "nothing to hide") && !holds(&ours, FIRST) && !holds(&ours, SECOND));
        assert_eq!(status_of_blob(running, &self.writer, blob), 400);
        let path = format!("/xrpc/com.atproto.sync.getRepo?did={}", self.leaver);
        assert_eq!(running.get(&path).json()["error"], "RepoNotFound");
    }

    fn out(&self) -> PathBuf {
        self.sandbox.folder().join("out.car")
    }

    fn export(&self, did: &str) -> Ended {
        let out = self.out();
        let file = out.to_str().expect("UTF-8");
        self.firekeep
            .ask(&["export", did, "-o", file, "--force", "--archive", &self.url])
    }

    /// The archive proves, obeys, and names what is withheld.
    fn archive_obeys(&self) {
        Alone::new(&self.sandbox, &self.firekeep, &["--archive", &self.url]).verify();
        let exported = self.export(&self.writer);
        assert_eq!(exported.code, 3, "{}", exported.stderr);
        assert!(
            exported.stderr.contains(&format!("{NOTES}/secret")),
            "{}",
            exported.stderr
        );
        assert!(holds(&std::fs::read(self.out()).expect("the export"), "goes on"));
        assert_eq!(self.export(&self.leaver).code, 10);
        assert_eq!(self.export(&self.other).code, 0);
    }
}

#[test]
fn forget_takes_records_a_blob_and_an_account_out_of_everything() {
    let began = Instant::now();
    let scene = Scene::up("data", &[]);
    let (sandbox, writer, leaver) = (&scene.sandbox, &scene.writer, &scene.leaver);
    let (mut running, picture, blob) = scene.fill();
    let bytes = std::fs::read(scene.archive.join("v1/blocks").join(writer).join(&blob)).expect("the picture");

    let subject = format!("at://{writer}/{NOTES}/secret");
    scene.asks_first(&subject);
    let done = forget(&scene.firekeep, &[&subject, "--yes"]);
    assert_eq!(done["accounts"][0]["still_live"], 1, "{done}");
    forget(&scene.firekeep, &[&picture, "--yes"]);
    forget(&scene.firekeep, &[leaver, "--yes"]);
    scene.is_nowhere(&bytes);

    // Live at the host, and hidden here: now, after more commits, and after a restart.
    assert!(
        holds(&repository(&sandbox.pds_url(), writer), SECOND),
        "the host has it still"
    );
    scene.is_hidden(&running, &blob);
    sandbox.note(writer, "later", "goes on");
    sandbox.note(leaver, "later", WHOLE);
    running.wait_caught_up(sandbox);
    scene.is_hidden(&running, &blob);
    assert!(holds(&repository(&scene.firekeep.url(), writer), "goes on"));
    running.stop();
    running = scene.firekeep.start();
    running.wait_status("all is here again", |status| {
        status.host()["listed"] == true && status.settled()
    });
    running.snapshot();
    scene.is_hidden(&running, &blob);
    scene.archive_obeys();

    // A new machine with nothing but the archive keeps it out as well, though the host gives it.
    running.stop();
    std::fs::remove_dir_all(&scene.firekeep.data_dir).expect("removes");
    running = scene.firekeep.clone().args(&["--take-over"]).start();
    running.wait_status("it is filled anew", |status| {
        status.accounts("held") == 2 && status.host()["listed"] == true && status.settled()
    });
    running.snapshot();
    scene.is_hidden(&running, &blob);
    scene.is_nowhere(&bytes);

    // The host deletes it at last: then the account is as whole as any.
    sandbox.delete_note(writer, "secret");
    let rkey = picture.rsplit('/').next().expect("an rkey");
    sandbox.run(&["record", "delete", "--did", writer, "--rkey", rkey]);
    running.wait_caught_up(sandbox);
    running.snapshot();
    wait_for("the export is whole", || match scene.export(writer).code {
        0 => Ok(()),
        code => Err(code),
    });
    running.stop();
    scene.is_nowhere(&bytes);
    report(
        "forget",
        began,
        "2 versions of a record, a picture and an account are in no file; the rest proves",
    );
}

/// Files of the archive by the end of their names, or part of it.
fn count(archive: &Path, what: &str) -> usize {
    let found = Command::new("find").arg(archive).args(["-name", what]).output();
    let found = found.expect("find runs");
    String::from_utf8_lossy(&found.stdout).lines().count()
}

fn prune(firekeep: &Firekeep, arguments: &[&str]) -> Value {
    let done = firekeep.ask(&[&["prune", "--json"], arguments].concat());
    assert_eq!(
        done.code, 0,
        "prune {arguments:?}: {}{}",
        done.stdout, done.stderr
    );
    serde_json::from_str(&done.stdout).expect("JSON")
}

/// Blobs that an export of a moment names as missing: pictures that the traffic deleted before anybody could fetch them.
fn lacking(scene: &Scene, did: &str, rev: &str) -> BTreeSet<String> {
    let (out, tar) = (scene.out(), scene.sandbox.folder().join("then.tar"));
    let (file, blobs) = (out.to_str().expect("UTF-8"), tar.to_str().expect("UTF-8"));
    let what = [
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
        &scene.url,
    ];
    let done = scene.firekeep.ask(&what);
    let blob = |line: &str| {
        Some(
            line.strip_suffix(" is missing from the archive")?
                .rsplit(' ')
                .next()?
                .to_owned(),
        )
    };
    let missing: BTreeSet<String> = done.stderr.lines().filter_map(blob).collect();
    let wanted = if missing.is_empty() { 0 } else { 3 };
    assert_eq!(done.code, wanted, "{did} at {rev}: {}", done.stderr);
    missing
}

/// Every moment that was there is, and can be exported with every blob that was there. How many there are, and were
/// exported.
fn each_moment_stays(
    scene: &Scene,
    before: &BTreeMap<String, BTreeSet<(String, String)>>,
    never_there: &BTreeSet<String>,
) -> (usize, usize) {
    let alone = Alone::new(&scene.sandbox, &scene.firekeep, &["--archive", &scene.url]);
    alone.verify();
    let (mut moments, mut exported) = (0, 0);
    for (did, before) in before {
        assert_eq!(
            alone.moments(did),
            *before,
            "every moment of {did} is still there"
        );
        moments += before.len();
        let most = usize::try_from(sized(8, 60)).expect("small");
        for (rev, _) in before.iter().step_by(before.len().div_ceil(most).max(1)) {
            let missing = lacking(scene, did, rev);
            let lost: Vec<&String> = missing.difference(never_there).collect();
            assert!(lost.is_empty(), "{did} at {rev} lost {lost:?}");
            exported += 1;
        }
    }
    (moments, exported)
}

#[test]
fn retention_twice_and_every_moment_of_the_window_is_there() {
    let began = Instant::now();
    let mut scene = Scene::up("data", &["--snapshot-interval", "1s"]);
    // A window longer than the test: every moment of it stays, though of its snapshots only the newest has to.
    let keep = [
        ("LAST", "1"),
        ("HOURS", "0"),
        ("DAYS", "0"),
        ("WEEKS", "0"),
        ("MONTHS", "0"),
        ("WINDOW", "1h"),
    ];
    for (key, value) in keep {
        scene.firekeep = scene.firekeep.env(&format!("FIREKEEP_KEEP__{key}"), value);
    }
    let sandbox = &scene.sandbox;
    let mut running = scene.firekeep.start();
    running.wait_filled(3);
    running.snapshot();
    for _ in 0..3 {
        sandbox.churn(20, sized(2, 20)).wait().assert_taken();
        running.wait_caught_up(sandbox);
        running.snapshot();
    }
    running.wait_none_missing();
    let alone = Alone::new(sandbox, &scene.firekeep, &["--archive", &scene.url]);
    let moments = |did: String| (alone.moments(&did), did);
    let before = sandbox
        .dids()
        .into_iter()
        .map(moments)
        .map(|(moments, did)| (did, moments))
        .collect();
    let before: BTreeMap<String, BTreeSet<(String, String)>> = before;
    let mut never_there = BTreeSet::new();
    for (did, moments) in &before {
        for (rev, _) in moments {
            never_there.extend(lacking(&scene, did, rev));
        }
    }
    let objects = |what: &str| count(&scene.archive, what);
    let (segments, all) = (objects("*-0*.car.zst"), objects("*.car.zst"));

    let first = prune(&scene.firekeep, &[]);
    let removed = |kind: &str| first["pruned"]["removed"][kind][0].as_u64();
    assert!(
        removed("segments") > Some(0) && removed("snapshots") > Some(0),
        "{first}"
    );
    assert!(objects("*-0*.car.zst") < segments && objects("*.car.zst") < all);
    assert_eq!(objects("*.boundary.json"), 1);
    // The log may have grown by a segment meanwhile; of the rest nothing more goes.
    let second = prune(&scene.firekeep, &[]);
    for kind in ["snapshots", "deltas", "blobs", "identities"] {
        assert_eq!(second["pruned"]["removed"][kind], Value::Null, "{second}");
    }
    sandbox.post(&scene.writer, "it goes on");
    running.wait_caught_up(sandbox);
    running.wait_status("it ships", |status| status.archive("changes_due") == 0);
    assert!(running.metrics().count("firekeep_pruned_objects_total", &[]) > 0);
    running.stop();

    // Where no daemon runs, the command does it itself, by the mirror's lock and its claim.
    let data = scene.firekeep.data_dir.to_str().expect("UTF-8");
    let here = ["--data-dir", data, "--archive", &scene.url];
    prune(&scene.firekeep, &here);
    let elsewhere = sandbox.folder().join("nothing");
    let elsewhere = elsewhere.to_str().expect("UTF-8");
    let done = scene
        .firekeep
        .ask(&["prune", "--data-dir", elsewhere, "--archive", &scene.url]);
    assert_eq!(done.code, 1, "without a mirror: {}{}", done.stdout, done.stderr);
    let mut before = before;
    // What came after it was counted.
    before.insert(scene.writer.clone(), alone.moments(&scene.writer));
    let (moments, exported) = each_moment_stays(&scene, &before, &never_there);
    let counts = format!(
        "{moments} moments stay, {exported} of them exported with every blob that was there ({} were not)",
        never_there.len()
    );
    report("retention_twice", began, &counts);
}
