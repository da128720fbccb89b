//! The archive in a bucket; and an archive that is not the mirror's.

use std::path::Path;
use std::time::Instant;

use firekeep::archive::bucket::Bucket;
use firekeep::archive::folder::FolderBucket;
use firekeep::archive::identity::{self, ArchiveId};
use firekeep::types::Timestamp;

use crate::support::firekeep::{Firekeep, Running};
use crate::support::sandbox::{Compared, Sandbox};
use crate::support::{http, inventory, report, sized, wait_for};

const PREFIX: &str = "some/prefix";

#[test]
fn s3() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc,s3");
    let accounts = 6;
    sandbox.populate(accounts, sized(200, 1000), sized(12, 60));
    let url = format!("s3://{}/{PREFIX}", sandbox.s3("bucket"));
    let without_keys = Firekeep::new(&sandbox, "data").args(&[
        "--archive",
        &url,
        "--s3-endpoint",
        &sandbox.s3("endpoint"),
        "--s3-region",
        &sandbox.s3("region"),
        "--s3-path-style",
        "true",
    ]);
    let (id, secret) = (sandbox.s3("access_key"), sandbox.s3("secret_key"));

    // The keys are needed: else the two ways of giving them would prove nothing.
    let refused = without_keys.refused();
    assert_eq!(refused.code, 78, "{}", refused.stderr);

    let by_environment = without_keys
        .clone()
        .env("AWS_ACCESS_KEY_ID", &id)
        .env("AWS_SECRET_ACCESS_KEY", &secret);
    // A store that is away when Firekeep starts stops nothing, and is found when it is there.
    sandbox.stop("s3");
    let mut running = by_environment.start();
    let away = running.wait_filled(accounts);
    assert_eq!(away.standing(), "archive_away", "{away:?}");
    sandbox.start("s3");
    running.wait_status("all is off this machine", |status| {
        status.standing() == "off_machine"
    });
    running.stop();

    let (first, snapshots) = round(&sandbox, &by_environment, accounts);

    let file = |name: &str, text: &str| {
        let path = sandbox.folder().join(name);
        std::fs::write(&path, format!("{text}\n")).expect("a file");
        path.to_str().unwrap().to_owned()
    };
    let by_file = without_keys.args(&[
        "--s3-access-key-id-file",
        &file("id", &id),
        "--s3-secret-access-key-file",
        &file("secret", &secret),
    ]);
    let (second, more) = round(&sandbox, &by_file, accounts);
    assert!(
        second.records != first.records || second.blobs != first.blobs,
        "there was something new"
    );
    assert!(
        !by_file.archive().exists(),
        "with the archive in a bucket there is no folder for one"
    );
    let counts = format!(
        "store away at first, then found; credentials by environment: {snapshots} snapshots on command, {}; by files: {more} snapshots on command, {}",
        first.text(),
        second.text()
    );
    report("s3", began, &counts);
}

/// Follows live traffic, snapshots, compares, stops.
fn round(sandbox: &Sandbox, firekeep: &Firekeep, accounts: u64) -> (Compared, u64) {
    let mut running = firekeep.start();
    running.wait_filled(accounts);
    let churn = sandbox.churn(20, sized(3, 30)).wait();
    churn.assert_taken();
    running.wait_caught_up(sandbox);
    let snapshotted = running.snapshot();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--s3", "--prefix", PREFIX]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    assert!(equal.archived_blobs > 0, "{equal:?}");
    // The newest changes go with the next flush; a snapshot on command does not wait for it.
    let status = running.wait_status("all is off this machine", |status| {
        status.standing() == "off_machine"
    });
    assert_eq!(status.0["archive"]["on_this_machine"], false, "{status:?}");
    assert_eq!(status.archive("accounts_due"), 0, "{status:?}");
    running.stop();
    (equal, snapshotted)
}

#[test]
fn another_archive() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 5;
    sandbox.populate(accounts, 120, 8);
    let folder = |name: &str| {
        let path = sandbox.folder().join(name);
        (path.clone(), format!("file://{}", path.display()))
    };
    let ((first, first_url), (second, second_url)) = (folder("first"), folder("second"));
    let firekeep = Firekeep::new(&sandbox, "data");
    let with_first = firekeep.clone().args(&["--archive", &first_url]);
    let with_second = firekeep.clone().args(&["--archive", &second_url]);

    let mut running = with_first.start();
    running.wait_filled(accounts);
    running.snapshot();
    running.stop();
    let (mirror, archived) = (inventory(&firekeep.data_dir.join("mirror")), inventory(&first));
    assert!(!mirror.is_empty() && archived.len() > 5, "{archived:?}");

    // Another folder, and the same one emptied: an unmounted disk looks just like that.
    let emptied = sandbox.folder().join("elsewhere");
    std::fs::rename(&first, &emptied).expect("renames");
    std::fs::create_dir(&first).expect("a folder");
    for setup in [&with_second, &with_first] {
        let refused = setup.refused();
        assert_eq!(refused.code, 78, "{}", refused.stderr);
        assert!(refused.stderr.contains("--new-archive"), "{}", refused.stderr);
        assert!(refused.stderr.contains("holds no archive"), "{}", refused.stderr);
    }
    assert_eq!(
        files(&second),
        0,
        "nothing is written into an archive that is refused"
    );
    assert_eq!(
        files(&first),
        0,
        "nothing is written into an archive that is refused"
    );
    std::fs::remove_dir(&first).expect("an empty folder");
    std::fs::rename(&emptied, &first).expect("renames");
    assert_eq!(inventory(&first), archived);

    // Where a person says so, everything is archived again.
    let mut running = with_second.clone().args(&["--new-archive"]).start();
    running.wait_caught_up(&sandbox);
    running.snapshot();
    let second_path = second.to_str().unwrap();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", second_path]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    assert!(equal.archived_blobs > 0, "{equal:?}");
    let metrics = running.metrics();
    let fetched = metrics.count("firekeep_resyncs_total", &[("result", "loaded")]);
    assert_eq!(fetched, 0, "from the mirror, not from the PDS");
    let again = metrics.count("firekeep_snapshots_total", &[("result", "ok")]);
    assert_eq!(again, accounts, "every account is archived again, once");
    running.stop();
    assert_eq!(inventory(&first), archived, "the first archive is left alone");

    // From now on the second one is the mirror's, and the first is another.
    let mut running = with_second.start();
    running.wait_caught_up(&sandbox);
    assert_eq!(running.snapshot(), 0, "all of it stands there");
    running.stop();
    let refused = with_first.refused();
    assert_eq!(refused.code, 78, "{}", refused.stderr);
    assert!(refused.stderr.contains("holds archive"), "{}", refused.stderr);
    assert_eq!(inventory(&first), archived);
    let counts = format!(
        "3 refusals with exit code 78, nothing written by them; with --new-archive {again} accounts archived again, {}",
        equal.text()
    );
    report("another_archive", began, &counts);
}

/// A quiet daemon notices that its archive is gone, or another one, and puts nothing where it was.
#[test]
fn an_archive_that_goes_away() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    sandbox.populate(2, 10, 2);
    let did = sandbox.dids()[0].clone();
    let (archive, elsewhere) = (
        sandbox.folder().join("archive"),
        sandbox.folder().join("elsewhere"),
    );
    let url = format!("file://{}", archive.display());
    let firekeep =
        Firekeep::new(&sandbox, "data").args(&["--archive", &url, "--archive-check-interval", "1s"]);
    let mut running = firekeep.start();
    running.wait_filled(2);
    running.snapshot();
    let admin = format!("http://127.0.0.1:{}", firekeep.admin);
    let seen = |running: &mut Running, what: &str, up: bool| {
        let status = running.wait_status(what, |status| status.0["archive"]["open"] == up);
        let standing = if up { "not_off_machine" } else { "archive_away" };
        assert_eq!(status.standing(), standing, "{what}: {status:?}");
        let ready = http::get(&admin, "/readyz").expect("answers");
        assert_eq!(
            ready.status,
            if up { 200 } else { 503 },
            "{what}: {}",
            ready.text()
        );
        assert!(
            up || ready.text().contains("the archive is gone"),
            "{what}: {}",
            ready.text()
        );
        assert_eq!(
            running.metrics().count("firekeep_archive_up", &[]),
            u64::from(up),
            "{what}"
        );
    };
    seen(&mut running, "it is there", true);

    // As a disk that is not mounted any more: its place is there, and empty.
    std::fs::rename(&archive, &elsewhere).expect("renames");
    std::fs::create_dir(&archive).expect("a folder");
    seen(&mut running, "it is gone", false);
    sandbox.post(&did, "while the archive is gone");
    running.wait_caught_up(&sandbox);
    let said = firekeep.ask(&["snapshot"]);
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(said.stderr.contains("the archive is gone"), "{}", said.stderr);
    assert_eq!(
        files(&archive),
        0,
        "nothing is put into its place: {:?}",
        inventory(&archive)
    );

    // Another archive stands there.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let other = runtime.block_on(async {
        let bucket = Bucket::Folder(FolderBucket::open(&archive).await?);
        identity::open_or_create(
            &bucket,
            ArchiveId::from_bytes([0xff; 16]),
            Timestamp::from_micros(1),
        )
        .await
    });
    other.expect("another archive");
    wait_for("the log tells of it", || {
        let told = running.log().contains("holds another archive now");
        if told { Ok(()) } else { Err(running.log()) }
    });
    seen(&mut running, "it is another one", false);
    let status = running.status();
    let told = status.0["archive"]["trouble"]
        .as_str()
        .expect("the status tells too");
    assert!(told.contains("holds another archive now"), "{told}");
    assert_eq!(files(&archive), 1, "nothing is put into it");

    std::fs::remove_dir_all(&archive).expect("removes");
    std::fs::rename(&elsewhere, &archive).expect("renames");
    seen(&mut running, "it is back", true);
    running.snapshot();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (2, 2));
    running.stop();
    report("an_archive_that_goes_away", began, &equal.text());
}

/// Files below a folder that may not be there.
fn files(folder: &Path) -> usize {
    if folder.exists() {
        inventory(folder)
            .iter()
            .filter(|line| !line.ends_with('/'))
            .count()
    } else {
        0
    }
}
