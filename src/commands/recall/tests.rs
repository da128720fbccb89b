//! Every command against archives of a simulated account, judged by what that account held.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Parser as _;

use super::*;
use crate::archive::log_file::Origin;
use crate::archive::test_archive::{Churn, START, TestArchive, Then, blob};
use crate::archive::writer::read_segment;
use crate::cli::{Cli, Command};
use crate::config::Layers;
use crate::repo::car::parse_car;
use crate::types::{Digest, Rev};
use crate::verify::check_repo;

mod damage;

/// A command as it is typed, on an archive in a folder. What it writes to stdout comes beside the answer.
async fn run(archive: &Path, arguments: &[&str]) -> Result<(Answer, Vec<u8>), DaemonError> {
    let cli = Cli::try_parse_from([&["firekeep"], arguments].concat()).expect("a command");
    let mut layers = Layers::default();
    layers
        .add_flag("archive", &format!("file://{}", archive.display()))
        .expect("a flag");
    let config = Config::check(&layers, Path::new("/nowhere")).expect("settings");
    let mut stdout = Vec::new();
    let answer = match cli.command {
        Command::History(args) => history(&config, &args).await,
        Command::Ls(args) => ls(&config, &args).await,
        Command::Cat(args) => cat(&config, &args).await,
        Command::Diff(args) => diff(&config, &args).await,
        Command::Export(args) => export(&config, &args, &mut stdout).await,
        _ => panic!("no command of these"),
    };
    answer.map(|answer| (answer, stdout))
}

async fn answer(archive: &TestArchive, arguments: &[&str]) -> Answer {
    let found = run(&archive.root, arguments).await;
    found.unwrap_or_else(|error| panic!("{arguments:?}: {error}")).0
}

async fn refused(archive: &TestArchive, arguments: &[&str]) -> DaemonError {
    run(&archive.root, arguments)
        .await
        .err()
        .unwrap_or_else(|| panic!("{arguments:?} was answered"))
}

/// The records of a CAR, which a verifier that knows nothing of archives walks to its last record.
fn read_car(churn: &Churn, car: &[u8]) -> (Rev, BTreeMap<String, Vec<u8>>) {
    let car = parse_car(car).expect("a CAR");
    let root = car.roots[0];
    assert_eq!(car.blocks[0].0, root, "the commit comes first");
    let blocks: BTreeMap<Digest, &[u8]> = car
        .blocks
        .iter()
        .map(|(cid, bytes)| (*cid.digest(), *bytes))
        .collect();
    let mut records = BTreeMap::new();
    let later = churn.last().received.plus(std::time::Duration::from_secs(3600));
    let repo = check_repo(
        &blocks,
        root,
        churn.did(),
        &churn.account.key(),
        later,
        |path, _, bytes| {
            records.insert(String::from_utf8_lossy(path).into_owned(), bytes.to_vec());
            Ok::<(), std::convert::Infallible>(())
        },
    );
    (repo.expect("a whole repository").rev(), records)
}

/// A moment between the churn's first and last.
fn random_time(churn: &mut Churn) -> Timestamp {
    let span = churn.last().time.since(START).as_millis();
    let millis = churn.roll(u64::try_from(span).expect("minutes") + 1);
    START.plus(std::time::Duration::from_millis(millis))
}

#[tokio::test]
async fn exports_at_200_random_times_are_what_the_account_held_then() {
    let mut churn = Churn::new(1).run(230);
    let archive = TestArchive::of(&churn).await;
    let key = churn.account.key().to_did_key();
    let mut revs = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let time = random_time(&mut churn);
        let text = time.to_string();
        let did = churn.did().to_string();
        let export = ["export", &did, "--at", &text, "-o", "-", "--key", &key];
        let (answer, car) = run(&archive.root, &export).await.expect("a backup");
        assert_eq!((answer.code, answer.text.len()), (0, 0), "{:?}", answer.notes);
        let then = churn.at(time).expect("not before the first");
        assert_eq!(read_car(&churn, &car), (then.rev, then.records.clone()), "{text}");
        revs.insert(then.rev);
    }
    assert!(revs.len() > 80, "{} different moments", revs.len());
}

#[tokio::test]
async fn every_rev_can_be_asked_for_and_so_can_what_had_reached_us() {
    let mut churn = Churn::new(2).run(90);
    let archive = TestArchive::of(&churn).await;
    let did = churn.did().to_string();
    for then in &churn.states {
        let (answer, car) = run(
            &archive.root,
            &["export", &did, "--at", &then.rev.to_string(), "-o", "-"],
        )
        .await
        .expect("a backup");
        assert_eq!(answer.code, 0);
        assert_eq!(read_car(&churn, &car), (then.rev, then.records.clone()));
    }
    for _ in 0..40 {
        let time = random_time(&mut churn);
        let expected = churn
            .states
            .iter()
            .rev()
            .find(|then| then.received <= time)
            .expect("one")
            .rev;
        let found = answer(
            &archive,
            &["ls", &did, "--at", &time.to_string(), "--as-received"],
        )
        .await;
        assert_eq!(found.json["rev"], expected.to_string());
    }
    let newest = answer(&archive, &["ls", &did]).await;
    assert_eq!(newest.json["rev"], churn.last().rev.to_string());
}

#[tokio::test]
async fn the_history_of_an_account_has_every_moment() {
    let churn = Churn::new(3).run(95);
    let archive = TestArchive::of(&churn).await;
    let found = answer(&archive, &["history", churn.did().as_str()]).await;
    assert_eq!((found.code, &found.notes), (0, &Vec::new()));
    let moments = found.json["moments"].as_array().expect("a list");
    assert_eq!(moments.len(), churn.states.len());
    for (moment, then) in moments.iter().zip(&churn.states) {
        assert_eq!(moment["rev"], then.rev.to_string());
        assert_eq!(moment["time"], then.time.to_string());
        assert_eq!(moment["commit"], then.commit.0.to_string());
        assert_eq!(moment["can_be_put_together"], true);
    }
    let text = String::from_utf8(found.text).expect("text");
    assert_eq!(text.lines().count(), 1 + churn.states.len());
    assert_eq!(text.lines().filter(|line| line.ends_with("snapshot")).count(), 3);
}

#[tokio::test]
async fn the_history_of_a_record_has_every_version() {
    let churn = Churn::new(4).run(150);
    let archive = TestArchive::of(&churn).await;
    let mut versions = 0;
    for key in 0..12 {
        let path = format!("app.bsky.feed.post/key{key}");
        let mut expected: Vec<(String, Option<String>)> = Vec::new();
        for then in &churn.states {
            let cid = then
                .records
                .get(&path)
                .map(|bytes| Cid::of_block(bytes).to_string());
            if expected.last().map_or(cid.is_some(), |(_, last)| *last != cid) {
                expected.push((then.rev.to_string(), cid));
            }
        }
        let uri = format!("at://{}/{path}", churn.did());
        if expected.is_empty() {
            assert_eq!(refused(&archive, &["history", &uri]).await.code, exit::NO_BACKUP);
            continue;
        }
        let found = answer(&archive, &["history", &uri]).await;
        assert_eq!(found.code, 0, "{:?}", found.notes);
        let list = found.json["versions"].as_array().expect("a list").iter();
        let list = list.map(|version| {
            let text = |name: &str| version[name].as_str().map(str::to_owned);
            assert_eq!(
                version["what"],
                if version["cid"].is_null() {
                    "deleted"
                } else {
                    "put"
                }
            );
            (text("rev").expect("a rev"), text("cid"))
        });
        assert_eq!(list.collect::<Vec<_>>(), expected, "{path}");
        versions += expected.len();
    }
    assert!(versions > 40, "{versions}");
}

#[tokio::test]
async fn the_history_of_a_record_that_only_snapshots_tell() {
    let churn = Churn::new(5).run(80);
    let archive = TestArchive::new().await;
    for mark in [10, 40, 80] {
        archive.snapshot(churn.did(), &churn.states[mark]).await;
    }
    let there = |mark: usize, path: &str| churn.states[mark].records.contains_key(path);
    let gone = churn.states[10]
        .records
        .keys()
        .find(|path| !there(40, path))
        .expect("something was deleted");
    let found = answer(&archive, &["history", &format!("at://{}/{gone}", churn.did())]).await;
    let what: Vec<&str> = found.json["versions"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|v| v["what"].as_str())
        .collect();
    assert_eq!(what[..2], ["there by then", "gone by then"]);
    let text =
        String::from_utf8(answer(&archive, &["history", churn.did().as_str()]).await.text).expect("text");
    assert_eq!(text.matches("are not kept").count(), 2, "{text}");
}

#[tokio::test]
async fn ls_cat_and_diff_show_what_was() {
    let mut churn = Churn::new(6).run(100);
    let archive = TestArchive::of(&churn).await;
    let did = churn.did().to_string();
    for _ in 0..10 {
        let (a, b) = (random_time(&mut churn), random_time(&mut churn));
        let (from, to) = (a.to_string(), b.to_string());
        let (then, now) = (churn.at(a).expect("a state"), churn.at(b).expect("a state"));

        let listed = answer(
            &archive,
            &["ls", &format!("{did}/app.bsky.feed.post"), "--at", &from],
        )
        .await;
        let in_collection: Vec<(String, String)> = then
            .records
            .iter()
            .filter_map(|(path, bytes)| {
                let rkey = path.strip_prefix("app.bsky.feed.post/")?;
                Some((rkey.to_owned(), Cid::of_block(bytes).to_string()))
            })
            .collect();
        let found = listed.json["records"].as_array().expect("a list").iter();
        let found = found.map(|record| {
            let text = |name: &str| record[name].as_str().expect("a text").to_owned();
            (text("rkey"), text("cid"))
        });
        assert_eq!(found.collect::<Vec<_>>(), in_collection);

        let all = answer(&archive, &["ls", &did, "--at", &from]).await;
        let counted = all.json["collections"].as_array().expect("a list").iter();
        let counted: u64 = counted
            .filter_map(|collection| collection["records"].as_u64())
            .sum();
        assert_eq!(counted, then.records.len() as u64);

        if let Some((path, bytes)) = then.records.iter().next() {
            let uri = format!("at://{did}/{path}");
            let shown = answer(&archive, &["cat", &uri, "--at", &from]).await;
            assert_eq!(shown.json["value"], record_to_json(bytes).expect("a record"));
            assert_eq!(shown.json["cid"], Cid::of_block(bytes).to_string());
            let raw = answer(&archive, &["cat", &uri, "--at", &from, "--raw"]).await;
            assert_eq!(raw.text, *bytes);
        }

        let difference = answer(&archive, &["diff", &did, "--from", &from, "--to", &to]).await;
        let mut expected: Vec<(String, &str)> = Vec::new();
        for (path, bytes) in &then.records {
            match now.records.get(path) {
                Some(other) if other == bytes => {}
                Some(_) => expected.push((path.clone(), "updated")),
                None => expected.push((path.clone(), "deleted")),
            }
        }
        let created = now
            .records
            .keys()
            .filter(|path| !then.records.contains_key(*path));
        expected.extend(created.map(|path| (path.clone(), "created")));
        let changes = difference.json["changes"].as_array().expect("a list").iter();
        let changes = changes.map(|change| {
            (
                change["path"].as_str().expect("a path").to_owned(),
                change["change"].as_str().expect("a kind"),
            )
        });
        assert_eq!(changes.collect::<Vec<_>>(), expected);
        assert_eq!(difference.code, u8::from(!expected.is_empty()));
    }
    let equal = answer(&archive, &["diff", &did, "--from", &churn.last().rev.to_string()]).await;
    assert_eq!(equal.code, 0);
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let churn = Churn::new(7).run(50);
    let archive = TestArchive::of(&churn).await;
    let did = churn.did().to_string();
    let record = format!("at://{did}/app.bsky.feed.post/never");
    let other = "did:plc:zzzzzzzzzzzzzzzzzzzzzzzz";
    for (arguments, code, what) in [
        (
            &["export", &did, "--at", "2020-01-01", "-o", "-"][..],
            exit::NO_BACKUP,
            "first moment",
        ),
        (
            &["ls", &did, "--at", "3k2yihcrp6f2c"],
            exit::NO_BACKUP,
            "no moment has the rev 3k2yihcrp6f2c",
        ),
        (
            &["export", other, "-o", "-"],
            exit::NO_BACKUP,
            "no backup of did:plc:zzzz",
        ),
        (&["history", other], exit::NO_BACKUP, "no backup"),
        (&["cat", &record], exit::NO_BACKUP, "firekeep history at://"),
        (&["history", &record], exit::NO_BACKUP, "no version"),
        (&["ls", &did, "--at", "yesterday"], exit::USAGE, "is no moment"),
        (&["ls", &record], exit::USAGE, "firekeep cat"),
        (&["cat", &did], exit::USAGE, "firekeep ls"),
        (&["ls", "alice.example.com"], exit::USAGE, "handles"),
        (&["ls", &did, "--key", "did:key:nonsense"], exit::USAGE, "--key"),
        (
            &["export", &did, "--format", "sqlite", "-o", "-"],
            exit::USAGE,
            "stdout",
        ),
        (&["export", &record, "-o", "-"], exit::USAGE, "firekeep cat"),
    ] {
        let error = refused(&archive, arguments).await;
        assert_eq!(error.code, code, "{arguments:?}: {error}");
        assert!(error.text.contains(what), "{arguments:?}: {error}");
    }
    let nowhere = archive.folder.path().join("nowhere");
    let error = run(&nowhere, &["ls", &did]).await.expect_err("no archive");
    assert_eq!(error.code, exit::NO_BACKUP);
    assert!(!nowhere.exists(), "looking for an archive makes none");
    std::fs::create_dir(&nowhere).expect("a folder");
    let error = run(&nowhere, &["ls", &did]).await.expect_err("no archive");
    assert!(
        error.code == exit::NO_BACKUP && error.text.contains("v1/archive.json"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(&nowhere).expect("lists").count(), 0);
}

#[tokio::test]
async fn the_signature_is_checked_with_a_key() {
    let churn = Churn::new(8).run(20);
    let archive = TestArchive::of(&churn).await;
    let did = churn.did().as_str();
    let (right, wrong) = (
        churn.account.key().to_did_key(),
        Churn::new(9).account.key().to_did_key(),
    );
    let checked = answer(&archive, &["ls", did, "--key", &wrong, "--key", &right]).await;
    assert_eq!(checked.json["signature_checked"], right);
    let unchecked = answer(&archive, &["ls", did]).await;
    assert!(unchecked.json["signature_checked"].is_null());
    let error = refused(&archive, &["ls", did, "--key", &wrong]).await;
    assert_eq!(error.code, exit::UNVERIFIED);
    assert!(error.text.contains("not signed by any of the keys"), "{error}");
}

/// The state that the archive's newest export should be.
fn newest(churn: &Churn) -> &Then {
    churn.last()
}

#[tokio::test]
async fn json_lines_and_sqlite_hold_every_record() {
    let churn = Churn::new(10).run(60);
    let archive = TestArchive::of(&churn).await;
    let did = churn.did().to_string();
    let expected: BTreeMap<String, Value> = newest(&churn)
        .records
        .iter()
        .map(|(path, bytes)| (path.clone(), record_to_json(bytes).expect("a record")))
        .collect();

    let (_, lines) = run(&archive.root, &["export", &did, "--format", "jsonl", "-o", "-"])
        .await
        .expect("a backup");
    let lines = String::from_utf8(lines).expect("text");
    let found: BTreeMap<String, Value> = lines
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let uri = line["uri"].as_str().expect("a URI");
            (
                uri.strip_prefix(&format!("at://{did}/"))
                    .expect("its DID")
                    .to_owned(),
                line["value"].clone(),
            )
        })
        .collect();
    assert_eq!(found, expected);

    let path = archive.folder.path().join("a.sqlite");
    let file = path.to_str().expect("UTF-8");
    let made = answer(&archive, &["export", &did, "--format", "sqlite", "-o", file]).await;
    assert_eq!(made.code, 0);
    let db = rusqlite::Connection::open(&path).expect("a database");
    let mut found = BTreeMap::new();
    for collection in ["app.bsky.feed.like", "app.bsky.feed.post"] {
        let mut rows = db
            .prepare(&format!("SELECT rkey, value FROM \"{collection}\""))
            .expect("a table");
        let rows = rows.query_map((), |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)));
        for row in rows.expect("rows") {
            let (rkey, value) = row.expect("a row");
            found.insert(
                format!("{collection}/{rkey}"),
                serde_json::from_str(&value).expect("JSON"),
            );
        }
    }
    assert_eq!(found, expected);
    let rev: String = db
        .query_row("SELECT value FROM _export WHERE key = 'rev'", (), |row| {
            row.get(0)
        })
        .expect("a rev");
    assert_eq!(rev, newest(&churn).rev.to_string());
}

#[tokio::test]
async fn blobs_come_with_it_and_missing_ones_are_named() {
    let churn = Churn::new(11).run(60);
    let archive = TestArchive::of(&churn).await;
    let did = churn.did().to_string();
    let wanted: Vec<u64> = (0..9)
        .filter(|number| {
            let cid = Cid::of_blob(&blob(*number));
            let scan = |bytes: &Vec<u8>| crate::repo::record::scan_record(bytes).blobs;
            newest(&churn)
                .records
                .values()
                .any(|bytes| scan(bytes).iter().any(|found| found.cid == cid))
        })
        .collect();
    assert!(wanted.len() > 3, "{wanted:?}");
    let cid = |number: u64| Cid::of_blob(&blob(number)).to_string();
    let mut objects = Vec::new();
    for number in &wanted[1..] {
        objects.push(archive.blob(churn.did(), &blob(*number)).await);
    }
    let at = |name: &str| {
        archive
            .folder
            .path()
            .join(name)
            .to_str()
            .expect("UTF-8")
            .to_owned()
    };
    let (folder, tar) = (at("out"), at("out.tar"));

    let found = answer(
        &archive,
        &["export", &did, "-o", &at("1.car"), "--blobs", &folder],
    )
    .await;
    assert_eq!(found.code, exit::INCOMPLETE);
    assert_eq!(found.json["blobs"]["missing"], json!([cid(wanted[0])]));
    assert!(
        found.notes.iter().any(|note| note.contains(&cid(wanted[0]))),
        "{:?}",
        found.notes
    );
    for number in &wanted[1..] {
        let file = Path::new(&folder).join("blobs").join(cid(*number));
        assert_eq!(std::fs::read(file).expect("a blob"), blob(*number));
    }
    archive.blob(churn.did(), &blob(wanted[0])).await;
    // What is there already stays; what is there and is something else too, unless it may go.
    let other = Path::new(&folder).join("blobs").join(cid(wanted[1]));
    std::fs::write(&other, b"something else").expect("writes");
    let again = ["export", &did, "-o", &at("2.car"), "--blobs", &folder];
    let found = answer(&archive, &again).await;
    assert_eq!(found.code, exit::INCOMPLETE);
    assert_eq!(found.json["blobs"]["in_the_way"], json!([cid(wanted[1])]));
    assert_eq!(found.json["blobs"]["kept"], wanted.len() - 2);
    let found = answer(&archive, &[&again[..], &["--force"]].concat()).await;
    assert_eq!(found.code, 0, "{:?}", found.notes);
    assert_eq!(std::fs::read(&other).expect("a blob"), blob(wanted[1]));

    let found = answer(&archive, &["export", &did, "-o", &at("3.car"), "--blobs", &tar]).await;
    assert_eq!(found.code, 0);
    let mut unpacked = BTreeMap::new();
    for entry in tar::Archive::new(std::fs::File::open(&tar).expect("a file"))
        .entries()
        .expect("a tar")
    {
        let mut entry = entry.expect("an entry");
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).expect("reads");
        unpacked.insert(entry.path().expect("a path").display().to_string(), bytes);
    }
    let expected = wanted
        .iter()
        .map(|number| (format!("blobs/{}", cid(*number)), blob(*number)));
    assert_eq!(unpacked, expected.collect());

    std::fs::write(archive.path(&objects[0]), b"rotten").expect("writes");
    std::fs::remove_dir_all(&folder).expect("removes");
    let found = answer(
        &archive,
        &["export", &did, "-o", &at("4.car"), "--blobs", &folder],
    )
    .await;
    assert_eq!(found.code, exit::UNVERIFIED);
    assert_eq!(found.json["blobs"]["damaged"], json!([cid(wanted[1])]));
    assert!(!other.exists(), "what is not that blob does not get its name");
    assert!(Path::new(&at("4.car")).exists());
}

#[tokio::test]
async fn files_are_not_replaced_unasked() {
    let churn = Churn::new(12).run(10);
    let archive = TestArchive::of(&churn).await;
    let did = churn.did().to_string();
    let path = archive.folder.path().join("a.car");
    let file = path.to_str().expect("UTF-8");
    std::fs::write(&path, b"precious").expect("writes");
    let error = refused(&archive, &["export", &did, "-o", file]).await;
    assert!(error.text.contains("--force"), "{error}");
    assert_eq!(std::fs::read(&path).expect("there"), b"precious");
    // Nothing is left where an export failed.
    let before = std::fs::read_dir(archive.folder.path()).expect("lists").count();
    let elsewhere = archive.folder.path().join("b.car");
    refused(
        &archive,
        &[
            "export",
            &did,
            "--at",
            "2020-01-01",
            "-o",
            elsewhere.to_str().expect("UTF-8"),
        ],
    )
    .await;
    assert_eq!(
        std::fs::read_dir(archive.folder.path()).expect("lists").count(),
        before
    );
    let made = answer(&archive, &["export", &did, "-o", file, "--force"]).await;
    assert_eq!(made.code, 0);
    let car = std::fs::read(&path).expect("there");
    assert_eq!(read_car(&churn, &car).1, newest(&churn).records);
    assert_eq!(made.json["bytes"], car.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_at_work_on_the_archive_is_no_fault() {
    // What the segments hold moves into deltas, one after the other, while somebody reads.
    let churn = std::sync::Arc::new(Churn::new(13).run(120));
    let archive = std::sync::Arc::new(TestArchive::new().await);
    archive.snapshot(churn.did(), &churn.states[0]).await;
    let (segments, _) = archive.segments(&[&churn], 0..120, (1, 1, None)).await;
    let (mover, moved) = (std::sync::Arc::clone(&archive), std::sync::Arc::clone(&churn));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        for (n, chunk) in segments.chunks(4).enumerate() {
            tokio::time::sleep(std::time::Duration::from_millis(40)).await;
            mover.delta(&moved, n * 12..(n + 1) * 12).await;
            // The log begins behind them before the first of them goes. The newest stay.
            let Some(next) = segments.get((n + 1) * 4) else {
                break;
            };
            let name = next.parse().expect("a segment");
            let file = read_segment(&mover.bucket, &name).await.expect("reads");
            let Origin::Segment { number, prev, .. } = file.index.origin else {
                panic!("a segment")
            };
            mover.boundary((1, number), prev).await;
            for name in chunk {
                mover.bucket.delete(name).await.expect("deletes");
            }
        }
    });
    let did = churn.did().to_string();
    let (mut reads, mut over) = (0, false);
    while !over {
        over = tasks.is_empty() || tasks.try_join_next().is_some();
        let history = answer(&archive, &["history", &did]).await;
        assert_eq!((history.code, &history.notes), (0, &Vec::new()));
        assert_eq!(history.json["moments"].as_array().expect("a list").len(), 121);
        let (found, car) = run(&archive.root, &["export", &did, "-o", "-"])
            .await
            .expect("a backup");
        assert_eq!(found.code, 0);
        assert_eq!(read_car(&churn, &car).1, newest(&churn).records);
        reads += 1;
    }
    assert!(reads > 1, "{reads}");
    assert_eq!(
        archive.objects().await.len(),
        15,
        "a snapshot, ten deltas and the newest segments are left"
    );
}

/// Puts an identity object of the churn's account that names this key.
fn put_identity(archive: &TestArchive, churn: &Churn, key: &SigningKey, millis: u64) -> std::path::PathBuf {
    use crate::archive::identity_file::IdentityFile;
    use crate::archive::names::{DidFolder, IdentityName};
    let did = churn.did();
    let method = serde_json::json!({
        "id": "#atproto",
        "type": "Multikey",
        "controller": did.as_str(),
        "publicKeyMultibase": key.to_multikey(),
    });
    let file = IdentityFile {
        did: did.clone(),
        time: Timestamp::from_micros(millis * 1000),
        document: Some(serde_json::json!({ "id": did.as_str(), "verificationMethod": [method] })),
        plc_log: None,
    };
    let name = IdentityName {
        did: DidFolder::try_from(did).expect("short"),
        time: file.time,
    };
    let path = archive.root.join(name.to_string());
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
    std::fs::write(&path, file.encode()).expect("writes");
    path
}

#[tokio::test]
async fn signatures_are_checked_with_the_keys_that_the_archive_names() {
    let churn = Churn::new(4).run(20);
    let archive = TestArchive::of(&churn).await;
    let did = churn.did().to_string();
    let export = ["export", &did, "-o", "-"];
    let unchecked = answer(&archive, &export).await;
    assert_eq!(
        (unchecked.code, &unchecked.json["signature_checked"]),
        (0, &Value::Null)
    );

    let other = crate::sim::SimAccount::new(77, START).key();
    let path = put_identity(&archive, &churn, &other, 1000);
    let doubted = answer(&archive, &export).await;
    assert_eq!(doubted.code, exit::INCOMPLETE);
    assert!(
        doubted
            .notes
            .iter()
            .any(|note| note.contains("signed by none of the keys")),
        "{:?}",
        doubted.notes
    );

    put_identity(&archive, &churn, &churn.account.key(), 2000);
    let checked = answer(&archive, &export).await;
    assert_eq!(checked.code, 0, "{:?}", checked.notes);
    assert_eq!(
        checked.json["signature_checked"],
        churn.account.key().to_did_key()
    );

    let mut bytes = std::fs::read(&path).expect("there");
    bytes[30] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    let checked = answer(&archive, &export).await;
    assert!(
        checked
            .notes
            .iter()
            .any(|note| note.contains("1970-01-01T00:00:01.000Z")),
        "{:?}",
        checked.notes
    );
}
