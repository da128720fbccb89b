//! Archives with something wrong: what is given is right, what is not is said.

use super::*;
use crate::archive::log_file::{Change, Entry, PLAIN_BYTES_MAX};
use crate::archive::test_archive::pack;

/// Whether an answer is what the account held at a time. What is short, and says so, may be an older state.
fn check(churn: &Churn, time: Timestamp, found: Result<(Answer, Vec<u8>), DaemonError>) -> u8 {
    let (answer, car) = match found {
        Ok(found) => found,
        Err(error) => {
            assert!(
                [exit::UNVERIFIED, exit::NO_BACKUP].contains(&error.code),
                "{error}"
            );
            return error.code;
        }
    };
    let then = churn.at(time).expect("a state");
    let (rev, records) = read_car(churn, &car);
    if answer.code == 0 {
        assert_eq!(rev, then.rev);
    } else {
        assert_eq!(answer.code, exit::INCOMPLETE);
        assert!(rev <= then.rev);
    }
    let given = churn
        .states
        .iter()
        .find(|state| state.rev == rev)
        .expect("a state");
    assert_eq!(records, given.records);
    answer.code
}

async fn export_at(
    archive: &TestArchive,
    churn: &Churn,
    time: Timestamp,
) -> Result<(Answer, Vec<u8>), DaemonError> {
    let (did, time) = (churn.did().to_string(), time.to_string());
    run(&archive.root, &["export", &did, "--at", &time, "-o", "-"]).await
}

#[tokio::test]
async fn one_flipped_bit_in_any_object() {
    let mut churn = Churn::new(21).run(100);
    let archive = TestArchive::of(&churn).await;
    let mut codes: BTreeMap<u8, u32> = BTreeMap::new();
    for object in archive.objects().await {
        let path = archive.path(&object);
        let sound = std::fs::read(&path).expect("there");
        for _ in 0..3 {
            let (at, bit) = (churn.roll(sound.len() as u64), churn.roll(8));
            let mut bad = sound.clone();
            bad[usize::try_from(at).expect("small")] ^= 1 << bit;
            std::fs::write(&path, &bad).expect("writes");
            for _ in 0..4 {
                let time = random_time(&mut churn);
                *codes
                    .entry(check(&churn, time, export_at(&archive, &churn, time).await))
                    .or_default() += 1;
            }
            // Segments and deltas are read for every question; a flip that changes nothing of them is no fault.
            if !object.ends_with(".delta.car.zst") && object.starts_with("v1/repos/") {
                continue;
            }
            let found = answer(&archive, &["history", churn.did().as_str()]).await;
            let named = found.notes.iter().any(|note| note.contains(&object));
            assert!(
                named && found.code == exit::INCOMPLETE,
                "{object}, byte {at} bit {bit}: {:?}",
                found.notes
            );
        }
        std::fs::write(&path, &sound).expect("writes");
    }
    // Most of an archive is of use while one object of it is not.
    assert!(
        codes[&0] > 60 && codes.contains_key(&exit::INCOMPLETE),
        "{codes:?}"
    );
}

#[tokio::test]
async fn one_object_removed() {
    let mut churn = Churn::new(22).run(100);
    let archive = TestArchive::of(&churn).await;
    let did = churn.did().to_string();
    let newest = archive.objects().await.pop().expect("a segment");
    for object in archive.objects().await {
        let path = archive.path(&object);
        let sound = std::fs::read(&path).expect("there");
        std::fs::remove_file(&path).expect("removes");
        for _ in 0..6 {
            let time = random_time(&mut churn);
            check(&churn, time, export_at(&archive, &churn, time).await);
        }
        let found = answer(&archive, &["history", &did]).await;
        let lost = churn.states.len() - found.json["moments"].as_array().expect("a list").len();
        let gaps = found.json["gaps"].as_array().expect("a list").len();
        if newest == object {
            // Nothing in the archive tells that there was something newer than its newest segment.
            assert_eq!((lost > 0, gaps), (true, 0));
        } else if lost > 0 && gaps == 0 {
            // The first moment is gone, and what leads on from it leads nowhere.
            assert!(object.contains(&churn.states[0].rev.to_string()), "{object}");
            assert!(
                found
                    .notes
                    .iter()
                    .any(|note| note.contains("39 moments cannot be put together")),
                "{found:?}"
            );
        } else {
            assert_eq!(gaps == 0, lost == 0, "{object}");
        }
        std::fs::write(&path, &sound).expect("writes");
    }
    assert_eq!(answer(&archive, &["history", &did]).await.code, 0);
}

#[tokio::test]
async fn a_missing_delta_leaves_the_rest() {
    let churn = Churn::new(23).run(100);
    let archive = TestArchive::of(&churn).await;
    let did = churn.did().to_string();
    let deltas = archive
        .objects()
        .await
        .into_iter()
        .filter(|name| name.ends_with(".delta.car.zst"));
    let first = deltas.into_iter().next().expect("a delta");
    std::fs::remove_file(archive.path(&first)).expect("removes");
    let (inside, outside) = (&churn.states[20], &churn.states[60]);
    let found = export_at(&archive, &churn, outside.time).await;
    assert_eq!(check(&churn, outside.time, found), 0);
    let (found, car) = export_at(&archive, &churn, inside.time)
        .await
        .expect("an older state");
    assert_eq!(found.code, exit::INCOMPLETE);
    assert_eq!(read_car(&churn, &car).0, churn.states[0].rev);
    assert!(
        found
            .notes
            .iter()
            .any(|note| note.contains("are not in the archive")),
        "{:?}",
        found.notes
    );
    let error = refused(&archive, &["ls", &did, "--at", &inside.rev.to_string()]).await;
    assert_eq!(error.code, exit::NO_BACKUP);
}

#[tokio::test]
async fn a_missing_segment_breaks_the_chain_behind_it() {
    let churn = Churn::new(24).run(39);
    let archive = TestArchive::new().await;
    archive.snapshot(churn.did(), &churn.states[0]).await;
    let (names, _) = archive.segments(&[&churn], 0..39, (1, 1, None)).await;
    std::fs::remove_file(archive.path(&names[5])).expect("removes");
    let did = churn.did().as_str();
    let history = answer(&archive, &["history", did]).await;
    assert_eq!(history.code, exit::INCOMPLETE);
    assert!(
        history
            .notes
            .iter()
            .any(|note| note.contains("segment number 6 is missing")),
        "{:?}",
        history.notes
    );
    let text = String::from_utf8(history.text).expect("text");
    assert!(
        text.contains("MISSING") && text.contains("CANNOT BE PUT TOGETHER"),
        "{text}"
    );

    // The newest that can be proven is given, and it is said what it is.
    let (found, car) = run(&archive.root, &["export", did, "-o", "-"])
        .await
        .expect("an older state");
    assert_eq!(found.code, exit::INCOMPLETE);
    assert_eq!(read_car(&churn, &car).0, churn.states[15].rev);
    assert!(
        found.notes.iter().any(|note| note.contains("given instead")),
        "{:?}",
        found.notes
    );
    let error = refused(&archive, &["ls", did, "--at", &churn.last().rev.to_string()]).await;
    assert!(
        error.code == exit::NO_BACKUP && error.text.contains("without a gap"),
        "{error}"
    );
    assert!(error.text.contains("segment number 6"), "{error}");

    // The last one alone: nothing tells that it was there, but its number, once there is a newer one.
    std::fs::remove_file(archive.path(&names[12])).expect("removes");
    let last = answer(&archive, &["history", did]).await;
    assert_eq!(last.json["moments"].as_array().expect("a list").len(), 1 + 39 - 6);
}

#[tokio::test]
async fn an_older_snapshot_serves_where_the_newest_is_damaged() {
    let churn = Churn::new(25).run(100);
    let archive = TestArchive::of(&churn).await;
    let mut snapshots = archive.objects().await.into_iter();
    let newest = snapshots
        .rfind(|name| name.starts_with("v1/repos/") && !name.contains("delta"))
        .expect("one");
    let path = archive.path(&newest);
    let cut = std::fs::read(&path).expect("there").len() as u64 / 2;
    std::fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(cut))
        .expect("cuts");
    let time = churn.last().time;
    let found = export_at(&archive, &churn, time).await;
    let notes = found.as_ref().expect("a backup").0.notes.clone();
    assert!(
        notes
            .iter()
            .any(|note| note.contains("not used") && note.contains(&newest)),
        "{notes:?}"
    );
    assert_eq!(check(&churn, time, found), 0, "proven all the same");
}

#[tokio::test]
async fn a_renamed_object_is_found_out() {
    let churn = Churn::new(26).run(100);
    let other = Churn::new(27).run(100);
    let (archive, theirs) = (TestArchive::of(&churn).await, TestArchive::of(&other).await);
    let (ours, foreign) = (archive.objects().await, theirs.objects().await);
    let mut found_out = 0;
    // Each object of this account holds what another account's of the same kind does.
    for (name, foreign) in ours.iter().zip(&foreign) {
        let sound = std::fs::read(archive.path(name)).expect("there");
        std::fs::copy(theirs.path(foreign), archive.path(name)).expect("copies");
        for then in [&churn.states[20], &churn.states[60], churn.last()] {
            if check(&churn, then.time, export_at(&archive, &churn, then.time).await) != 0 {
                found_out += 1;
            }
        }
        std::fs::write(archive.path(name), sound).expect("writes");
    }
    assert!(found_out > 3, "{found_out}");
    // One segment under the name of the next.
    let segments: Vec<&String> = ours.iter().filter(|name| name.starts_with("v1/log/")).collect();
    std::fs::copy(archive.path(segments[0]), archive.path(segments[1])).expect("copies");
    let history = answer(&archive, &["history", churn.did().as_str()]).await;
    assert_eq!(history.code, exit::INCOMPLETE);
    assert!(
        history.notes.iter().any(|note| note.contains("renamed")),
        "{:?}",
        history.notes
    );
}

#[tokio::test]
async fn bombs_are_refused_within_limits() {
    let churn = Churn::new(28).run(100);
    let archive = TestArchive::of(&churn).await;
    let bomb = pack(&vec![0; usize::try_from(PLAIN_BYTES_MAX).expect("small") + 100]);
    assert!(bomb.len() < 10_000, "it packs well");
    // A block that is in order, as often as fits: time, but no space.
    let block = vec![0x60; 1000];
    let mut many = crate::repo::car::encode_header(&[churn.last().commit.0]);
    for _ in 0..20_000 {
        crate::repo::car::encode_block(&mut many, &Cid::of_block(&block), &block);
    }
    for object in archive.objects().await {
        let path = archive.path(&object);
        let sound = std::fs::read(&path).expect("there");
        for bad in [&bomb, &pack(&many), &b"no zstd".to_vec(), &Vec::new()] {
            std::fs::write(&path, bad).expect("writes");
            let time = churn.last().time;
            check(&churn, time, export_at(&archive, &churn, time).await);
        }
        std::fs::write(&path, &sound).expect("writes");
    }
    let segment = archive.objects().await.pop().expect("a segment");
    std::fs::write(archive.path(&segment), &bomb).expect("writes");
    let history = answer(&archive, &["history", churn.did().as_str()]).await;
    assert_eq!(history.code, exit::INCOMPLETE);
    assert!(
        history.notes.iter().any(|note| note.contains(&segment)),
        "{:?}",
        history.notes
    );
    // A file that is too large before it is unpacked.
    let large = std::fs::File::options()
        .write(true)
        .open(archive.path(&segment))
        .expect("opens");
    large.set_len(1 << 40).expect("a hole");
    let history = answer(&archive, &["history", churn.did().as_str()]).await;
    assert!(
        history.notes.iter().any(|note| note.contains("at most")),
        "{:?}",
        history.notes
    );
}

#[tokio::test]
async fn hostile_names_are_passed_over() {
    let churn = Churn::new(29).run(45);
    let archive = TestArchive::of(&churn).await;
    let did = churn.did().to_string();
    let names = [
        format!("v1/repos/{did}/..%2f..%2fetc"),
        format!("v1/repos/{did}/\u{1b}[31mred.car.zst"),
        format!(
            "v1/repos/{did}/{}-{}.car.zst",
            churn.last().rev,
            Cid::of_blob(b"raw")
        ),
        "v1/log/0/evil.car.zst".to_owned(),
        "v1/log/0/1-2.car.zst".to_owned(),
        format!("v1/log/0/{}", "x".repeat(250)),
    ];
    for name in &names {
        std::fs::write(archive.path(name), b"anything").expect("writes");
    }
    let found = answer(&archive, &["history", &did]).await;
    assert_eq!(found.code, 0, "they hide nothing: {:?}", found.notes);
    assert_eq!(found.notes.len(), names.len(), "{:?}", found.notes);
    assert!(
        found
            .notes
            .iter()
            .all(|note| !note.contains('\u{1b}') && note.len() < 400),
        "{:?}",
        found.notes
    );
    let time = churn.last().time;
    assert_eq!(check(&churn, time, export_at(&archive, &churn, time).await), 0);
}

#[tokio::test]
async fn an_archive_without_its_head_is_read_all_the_same() {
    let churn = Churn::new(30).run(20);
    let archive = TestArchive::of(&churn).await;
    for bytes in [None, Some(&b"{nonsense"[..])] {
        let head = archive.path("v1/archive.json");
        match bytes {
            None => std::fs::remove_file(&head).expect("removes"),
            Some(bytes) => std::fs::write(&head, bytes).expect("writes"),
        }
        let time = churn.last().time;
        let found = export_at(&archive, &churn, time).await;
        let notes = found.as_ref().expect("a backup").0.notes.clone();
        assert!(
            notes.iter().any(|note| note.contains("v1/archive.json")),
            "{notes:?}"
        );
        assert_eq!(check(&churn, time, found), 0);
    }
    let newer = br#"{"id":"07070707070707070707070707070707","format":9,"least_reader":9,"created":"2026-01-02T03:04:05Z"}"#;
    std::fs::write(archive.path("v1/archive.json"), newer).expect("writes");
    let error = refused(&archive, &["ls", churn.did().as_str()]).await;
    assert!(
        error.code == exit::FAILED && error.text.contains("newer"),
        "{error}"
    );
}

#[tokio::test]
async fn erased_records_are_withheld_and_named() {
    let churn = Churn::new(31).run(30);
    let archive = TestArchive::new().await;
    let last = churn.last();
    let (path, bytes) = last.records.iter().next().expect("a record");
    let cid = Cid::of_block(bytes);
    archive.snapshot_without(churn.did(), last, Some(cid)).await;
    let did = churn.did().to_string();
    let out = archive.folder.path().join("a.car");
    let found = answer(&archive, &["export", &did, "-o", out.to_str().expect("UTF-8")]).await;
    assert_eq!(found.code, exit::INCOMPLETE);
    assert!(
        found
            .notes
            .iter()
            .any(|note| note.contains("withheld") && note.contains(path.as_str()))
    );
    assert!(!found.json["withheld"].as_array().expect("a list").is_empty());

    // All the rest is there, the tree with it, in the order of a whole export.
    let car = std::fs::read(&out).expect("a file");
    let partial: Vec<(Cid, &[u8])> = parse_car(&car).expect("a CAR").blocks;
    let whole = TestArchive::new().await;
    whole.snapshot(churn.did(), last).await;
    let (_, whole) = run(&whole.root, &["export", &did, "-o", "-"])
        .await
        .expect("a backup");
    let whole = parse_car(&whole).expect("a CAR").blocks;
    let expected: Vec<_> = whole.into_iter().filter(|(found, _)| *found != cid).collect();
    assert_eq!(partial, expected);

    let uri = format!("at://{did}/{path}");
    let error = refused(&archive, &["cat", &uri]).await;
    assert!(
        error.code == exit::INCOMPLETE && error.text.contains("erased"),
        "{error}"
    );
    let (lines, text) = run(&archive.root, &["export", &did, "--format", "jsonl", "-o", "-"])
        .await
        .expect("lines");
    assert_eq!(lines.code, exit::INCOMPLETE);
    assert_eq!(
        String::from_utf8(text)
            .expect("text")
            .matches("\"withheld\":true")
            .count(),
        1
    );
}

#[tokio::test]
async fn a_stale_writer_counts_for_nothing() {
    // Two daemons at one point in the log: the second took over, the first wrote on. Their accounts went apart.
    let common = Churn::new(32).run(15);
    let archive = TestArchive::new().await;
    archive.snapshot(common.did(), &common.states[0]).await;
    let (_, prev) = archive.segments(&[&common], 0..15, (1, 1, None)).await;
    let fork = |text: &str| {
        let mut fork = Churn::new(32).run(15);
        for _ in 0..9 {
            let now = fork.last().received.plus(std::time::Duration::from_secs(60));
            fork.write(
                &[("a.b.c/d".to_owned(), Some(crate::sim::account::post(text)))],
                now,
                now,
            );
        }
        fork
    };
    let (stale, valid) = (fork("stale"), fork("valid"));
    archive.segments(&[&stale], 15..24, (1, 6, prev)).await;
    archive.segments(&[&valid], 15..24, (2, 6, prev)).await;
    let did = common.did().as_str();
    let found = answer(&archive, &["history", did]).await;
    assert_eq!((found.code, &found.notes), (0, &Vec::new()));
    assert_eq!(found.json["moments"].as_array().expect("a list").len(), 25);
    let (found, car) = run(&archive.root, &["export", did, "-o", "-"])
        .await
        .expect("a backup");
    assert_eq!(found.code, 0);
    assert_eq!(read_car(&valid, &car).1, valid.last().records);
}

#[tokio::test]
async fn segments_hold_many_accounts() {
    let mut ours = Churn::new(33).run(30);
    let theirs = Churn::new(34).run(30);
    let archive = TestArchive::new().await;
    for churn in [&ours, &theirs] {
        archive.snapshot(churn.did(), &churn.states[0]).await;
    }
    archive.segments(&[&theirs, &ours], 0..30, (1, 1, None)).await;
    for _ in 0..20 {
        let time = random_time(&mut ours);
        assert_eq!(check(&ours, time, export_at(&archive, &ours, time).await), 0);
    }
}

#[tokio::test]
async fn fetches_are_moments_too() {
    // Fetched, five commits, a fetch that skipped some, more commits, fetched anew, and the snapshot after that.
    let mut churn = Churn::new(35).run(40);
    let archive = TestArchive::new().await;
    let mut entries = vec![(churn.loaded(0), BTreeMap::new())];
    entries.extend_from_slice(&churn.entries[..5]);
    entries.push(churn.swap(5, 12));
    entries.extend_from_slice(&churn.entries[12..20]);
    entries.push((churn.loaded(30), BTreeMap::new()));
    entries.extend_from_slice(&churn.entries[30..40]);
    let known: Vec<usize> = (0..=5).chain(12..=20).chain(30..=40).collect();
    let states: Vec<Then> = known.iter().map(|at| churn.states[*at].clone()).collect();
    archive.snapshot(churn.did(), &churn.states[0]).await;
    archive.snapshot(churn.did(), &churn.states[33]).await;
    (churn.entries, churn.states) = (entries, states);
    archive
        .segments(&[&churn], 0..churn.entries.len(), (1, 1, None))
        .await;

    let history = answer(&archive, &["history", churn.did().as_str()]).await;
    assert_eq!(
        (history.code, history.json["gaps"].as_array().map(Vec::len)),
        (0, Some(0)),
        "{:?}",
        history.notes
    );
    let moments = history.json["moments"].as_array().expect("a list");
    assert_eq!(moments.len(), churn.states.len());
    let by = |index: usize| moments[index]["by"].as_str().expect("a text");
    assert_eq!(
        (by(0), by(5), by(6), by(15), by(16)),
        ("fetched", "commit", "resync", "fetched", "commit")
    );
    // From the fetch to its snapshot nothing is known but that it was so: rev 30 to 32.
    let lost: Vec<usize> = (0..moments.len())
        .filter(|at| moments[*at]["can_be_put_together"] == false)
        .collect();
    assert_eq!(lost, [15, 16, 17]);
    for (index, then) in churn.states.iter().enumerate() {
        let rev = then.rev.to_string();
        let found = run(
            &archive.root,
            &["export", churn.did().as_str(), "--at", &rev, "-o", "-"],
        )
        .await;
        if lost.contains(&index) {
            assert_eq!(found.expect_err("no way leads there").code, exit::NO_BACKUP);
            continue;
        }
        let (answer, car) = found.expect("a backup");
        assert_eq!((answer.code, read_car(&churn, &car).1), (0, then.records.clone()));
    }
    let (short, car) = export_at(&archive, &churn, churn.states[17].time)
        .await
        .expect("an older state");
    assert_eq!(short.code, exit::INCOMPLETE);
    assert_eq!(read_car(&churn, &car).0, churn.states[14].rev);
}

/// The change of entry `n`.
fn change(churn: &mut Churn, n: usize) -> &mut Change {
    match &mut churn.entries[n].0 {
        Entry::Commit(change) => change,
        _ => panic!("a commit"),
    }
}

#[tokio::test]
async fn what_does_not_build_the_signed_tree_is_refused() {
    // Every block is in order; but an operation is left out, put elsewhere, or of another record.
    let forge: [fn(&mut Change); 3] = [
        |change| drop(change.ops.pop()),
        |change| change.ops[0].path = "a.b.c/elsewhere".parse().expect("a path"),
        |change| change.ops[0].cid = Some(Cid::of_block(b"another")),
    ];
    let mut short = 0;
    for forge in forge {
        let mut churn = Churn::new(36).run(30);
        forge(change(&mut churn, 20));
        let archive = TestArchive::new().await;
        archive.snapshot(churn.did(), &churn.states[0]).await;
        archive.delta(&churn, 0..30).await;
        let did = churn.did().to_string();
        let error = refused(&archive, &["ls", &did, "--at", &churn.states[21].rev.to_string()]).await;
        assert_eq!(error.code, exit::UNVERIFIED, "{error}");
        assert!(error.text.contains("builds a tree with root"), "{error}");
        let sound = churn.states[20].time;
        assert_eq!(check(&churn, sound, export_at(&archive, &churn, sound).await), 0);
        // By time the newest sound moment is given, and it is said that it is not the one. (A later write to the same
        // path may have mended it.)
        for then in &churn.states[21..] {
            let code = check(&churn, then.time, export_at(&archive, &churn, then.time).await);
            short += u32::from(code == exit::INCOMPLETE);
        }
        let later = churn.states[25].time;
        // A snapshot behind it makes what comes then whole again.
        archive.snapshot(churn.did(), &churn.states[24]).await;
        assert_eq!(check(&churn, later, export_at(&archive, &churn, later).await), 0);
    }
    assert!(short > 3, "{short}");
}

#[tokio::test]
async fn a_commit_of_another_rev_or_account_is_refused() {
    let mut churn = Churn::new(37).run(10);
    let other = Churn::new(38).run(10);
    let archive = TestArchive::new().await;
    archive.snapshot(churn.did(), &churn.states[0]).await;
    // The last entry claims a rev that its commit does not sign.
    let claimed = Rev::from_time(churn.last().received.plus(std::time::Duration::from_secs(9)), 0);
    change(&mut churn, 9).rev = claimed;
    archive.segments(&[&churn], 0..10, (1, 1, None)).await;
    let did = churn.did().to_string();
    let error = refused(&archive, &["ls", &did, "--at", &claimed.to_string()]).await;
    assert!(
        error.code == exit::UNVERIFIED && error.text.contains("account and rev"),
        "{error}"
    );

    // A sound snapshot of another account, under this one's name.
    let archive = TestArchive::new().await;
    archive.snapshot(churn.did(), other.last()).await;
    let error = refused(&archive, &["ls", &did]).await;
    assert!(
        error.code == exit::UNVERIFIED && error.text.contains("its name tells"),
        "{error}"
    );
}
