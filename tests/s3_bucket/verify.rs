//! `firekeep verify` as a library, on both kinds of store: what is sound is sound, and every change is named.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use firekeep::archive::bucket::Bucket;
use firekeep::archive::erase::note::{Note, What};
use firekeep::archive::log_file::Entry;
use firekeep::archive::names::{self, ObjectName};
use firekeep::archive::scrub::run::{self, Options, Progress, ScrubError};
use firekeep::archive::scrub::{Checkpoint, Fault, Report, Sample};
use firekeep::archive::writer;
use firekeep::repo::car::{encode_block, encode_header};
use firekeep::types::Cid;

use super::archive::{Log, NOW, Objects, Writer, fill, pack, replace, sample};

pub const ALL: Options = Options {
    sample: Sample::all(),
    rate: None,
};

pub async fn run(bucket: &Bucket, options: Options) -> Report {
    let mut keep = |_: &Checkpoint| Ok(());
    let done = run::verify(bucket, options, None, Arc::new(Progress::default()), &mut keep).await;
    done.expect("a result")
}

/// Kinds of findings, with the objects that they name.
fn found(report: &Report) -> Vec<(Fault, &str)> {
    let kept = report.findings.kept().iter();
    kept.map(|finding| (finding.fault, finding.object.as_str()))
        .collect()
}

fn of_kind(objects: &Objects, kind: &str) -> Vec<String> {
    let is = |name: &&String| match name.parse().expect("a name") {
        ObjectName::Snapshot(_) => kind == "snapshot",
        ObjectName::Delta(_) => kind == "delta",
        ObjectName::Segment(_) => kind == "segment",
        ObjectName::Blob(_) => kind == "blob",
        ObjectName::Identity(_) => kind == "identity",
        _ => kind == "other",
    };
    objects.keys().filter(is).cloned().collect()
}

pub async fn a_sound_archive_is_sound(bucket: &Bucket) {
    let mut keep = |_: &Checkpoint| Ok(());
    let empty = run::verify(bucket, ALL, None, Arc::new(Progress::default()), &mut keep).await;
    assert!(matches!(empty, Err(ScrubError::Empty(_))), "{empty:?}");

    let objects = sample();
    fill(bucket, &objects).await;
    let report = run(bucket, ALL).await;
    assert_eq!(found(&report), []);
    assert_eq!(report.exit_code(), 0);
    let counts = &report.counts;
    for (kind, listed) in [
        ("snapshots", 8),
        ("deltas", 6),
        ("segments", 6),
        ("blobs", 6),
        ("archive", 1),
    ] {
        let of = counts.objects[kind];
        assert_eq!((of.listed, of.sound), (listed, listed), "{kind}");
    }
    // Each commit stands in a delta or segment, and the heads in snapshots.
    assert_eq!(
        (counts.signatures, counts.signatures_not_checked),
        (8 + 18 + 6, 0)
    );
    assert_eq!(counts.deltas_told, 6);
    assert_eq!(
        (counts.accounts, counts.blobs_referenced, counts.unsealed),
        (2, 6, 0)
    );
    let text = report.text();
    assert!(text.contains("SOUND: every object was read"), "{text}");
}

pub async fn one_flipped_bit_in_any_object_is_named(bucket: &Bucket) {
    let mut objects = sample();
    fill(bucket, &objects).await;
    writer::claim(bucket, "one", None, false, NOW)
        .await
        .expect("free");
    let claim = "v1/writers/0/00000000000000000001.json";
    for name in [names::ARCHIVE, claim] {
        let object = bucket.get(name).await.expect("readable").expect("there");
        let bytes = object.bytes(1000).await.expect("short").to_vec();
        objects.insert(name.to_owned(), bytes);
    }
    for (number, (name, sound)) in objects.iter().enumerate() {
        let mut bad = sound.clone();
        let at = number * 7 % sound.len();
        bad[at] ^= 1 << (number % 8);
        replace(bucket, name, &bad).await;
        let report = run(bucket, ALL).await;
        assert_eq!(report.exit_code(), 4, "{name}, byte {at}: {}", report.text());
        let named = found(&report)
            .iter()
            .any(|(fault, object)| object == name && fault.is_bad());
        assert!(named, "{name}, byte {at}: {}", report.text());
        let texts = report
            .findings
            .kept()
            .iter()
            .find(|finding| finding.object == *name);
        assert!(texts.is_some_and(|finding| !finding.affects.is_empty()), "{name}");
        replace(bucket, name, sound).await;
    }
    let report = run(bucket, ALL).await;
    assert_eq!(report.exit_code(), 0, "{}", report.text());
}

pub async fn what_is_removed_is_named_where_something_is_lost(bucket: &Bucket) {
    let objects = sample();
    fill(bucket, &objects).await;
    for name in objects.keys() {
        bucket.delete(name).await.expect("deletes");
        let report = run(bucket, ALL).await;
        let faults: Vec<Fault> = found(&report).iter().map(|(fault, _)| *fault).collect();
        let expected: &[Fault] = match name.parse().expect("a name") {
            ObjectName::Blob(_) => &[Fault::MissingBlob],
            // What a delta leads to is not lost; what it begins with is.
            ObjectName::Snapshot(snapshot) => {
                let first = of_kind(&objects, "snapshot");
                let first = first
                    .iter()
                    .find(|other| other.contains(snapshot.did.did().as_str()));
                if first == Some(name) {
                    &[Fault::NoSnapshot]
                } else {
                    &[]
                }
            }
            // The oldest may have been removed by the retention: then nothing builds on it.
            ObjectName::Delta(delta) => {
                let first = of_kind(&objects, "delta");
                let first = first
                    .iter()
                    .find(|other| other.contains(delta.did().did().as_str()));
                if first == Some(name) { &[] } else { &[Fault::Gap] }
            }
            ObjectName::Segment(segment) => match segment.number {
                // The changes that build on it build on nothing.
                7 => &[Fault::MissingObject, Fault::NoSnapshot],
                8 => &[Fault::MissingObject, Fault::NoSnapshot],
                // Between two writers only the hash tells.
                9 | 10 => &[Fault::BrokenChain, Fault::BrokenChain, Fault::NoSnapshot],
                11 => &[Fault::MissingObject],
                // Nothing tells that there was one more: a mirror would.
                _ => &[],
            },
            // Nothing else says that what stood before was removed.
            ObjectName::Boundary(_) => &[Fault::MissingObject],
            ObjectName::Identity(_) => {
                assert!(report.counts.signatures_not_checked > 0);
                &[]
            }
            _ => &[],
        };
        assert_eq!(faults, expected, "{name}: {}", report.text());
        let code = match expected {
            [] => 0,
            [Fault::Gap] => 3,
            _ => 4,
        };
        assert_eq!(report.exit_code(), code, "{name}");
        let did = name.split('/').nth(2).filter(|part| part.starts_with("did:"));
        let named = |finding: &firekeep::archive::scrub::Finding| {
            finding.object == *name || did.is_none_or(|did| finding.affects.contains(did))
        };
        assert!(
            report.findings.kept().iter().all(named),
            "{name}: {}",
            report.text()
        );
        replace(bucket, name, &objects[name]).await;
    }
    bucket.delete(names::ARCHIVE).await.expect("deletes");
    let report = run(bucket, ALL).await;
    assert_eq!(found(&report), [(Fault::MissingObject, names::ARCHIVE)]);
}

pub async fn what_is_renamed_is_named(bucket: &Bucket) {
    let objects = sample();
    fill(bucket, &objects).await;
    for kind in ["snapshot", "delta", "segment", "blob", "identity"] {
        let of_it = of_kind(&objects, kind);
        let (from, other) = (&of_it[0], &of_it[of_it.len() - 1]);
        // Under the name of another object of its kind, which is gone.
        bucket.delete(from).await.expect("deletes");
        replace(bucket, other, &objects[from]).await;
        let report = run(bucket, ALL).await;
        assert_eq!(report.exit_code(), 4, "{kind}");
        let found = found(&report);
        let fault = if matches!(kind, "blob" | "identity") {
            Fault::Damaged
        } else {
            Fault::Misnamed
        };
        assert!(found.contains(&(fault, other)), "{kind}: {found:?}");
        for name in [from, other] {
            replace(bucket, name, &objects[name]).await;
        }
    }
}

pub async fn hostile_names_are_reported_and_obeyed_by_nobody(bucket: &Bucket) {
    fill(bucket, &sample()).await;
    let blob = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    let hostile = [
        "v1/odd/+=&?#[]{}()!*'\",;$@^`|<>~-_".to_owned(),
        "v1/repos/did:web:..%2f..%2fetc/x.car.zst".to_owned(),
        format!("v1/blocks/DID:web:a.b/{blob}"),
        format!("v1/blocks/did:web:a.b/{}", blob.to_uppercase()),
        format!("v1/blocks/did:web:{}/{blob}", "a".repeat(245)),
        "v1/log/0/1-1.car.zst".to_owned(),
        "v1/log/00000000000000000001/x".to_owned(),
        "v1/archive.json.bak".to_owned(),
        format!("v1/{}", "x".repeat(255)),
    ];
    for name in &hostile {
        replace(bucket, name, b"x").await;
    }
    let report = run(bucket, ALL).await;
    let mut names: Vec<&str> = found(&report).iter().map(|(_, object)| *object).collect();
    let mut expected: Vec<&str> = hostile.iter().map(String::as_str).collect();
    names.sort_unstable();
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert!(
        found(&report)
            .iter()
            .all(|(fault, _)| *fault == Fault::UnknownName)
    );
    assert_eq!(report.exit_code(), 4);
}

/// What unpacks, or claims, to be huge.
pub fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let zeros = vec![0; 256 << 20];
    let block = vec![7; 1 << 20];
    let cid = Cid::of_block(&block);
    let mut many_blocks = encode_header(&[cid]);
    for _ in 0..64 {
        encode_block(&mut many_blocks, &cid, &block);
    }
    let mut long_block = encode_header(&[cid]);
    long_block.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    let mut window = zstd_frame(&[0; 1000], 27);
    window.truncate(4000);
    vec![
        ("zeros", pack(&zeros)),
        ("the same block again and again", pack(&many_blocks)),
        ("a block of 2^55 bytes", pack(&long_block)),
        (
            "a header of 2^55 bytes",
            pack(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
        ),
        ("a window of 128 MiB", window),
        ("nothing", Vec::new()),
    ]
}

/// A frame of one raw block that asks for this window.
fn zstd_frame(content: &[u8], window_log: u8) -> Vec<u8> {
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, (window_log - 10) << 3];
    let head = (content.len() as u32) << 3 | 1;
    out.extend(&head.to_le_bytes()[..3]);
    out.extend(content);
    out
}

pub async fn bombs_are_damaged_objects_and_nothing_more(bucket: &Bucket) {
    let objects = sample();
    fill(bucket, &objects).await;
    for (what, bomb) in bombs() {
        for kind in ["snapshot", "delta", "segment"] {
            let name = &of_kind(&objects, kind)[0];
            replace(bucket, name, &bomb).await;
            let report = run(bucket, ALL).await;
            let found = found(&report);
            let bad = |(fault, object): &(Fault, &str)| object == name && *fault != Fault::Unread;
            assert!(found.iter().any(bad), "{what} as {kind}: {found:?}");
            replace(bucket, name, &objects[name]).await;
        }
    }
}

pub async fn a_stopped_verification_goes_on_where_it_was(bucket: &Bucket) {
    let mut objects = sample();
    let blob = of_kind(&objects, "blob")[1].clone();
    objects.get_mut(&blob).expect("there")[0] ^= 1;
    objects.remove(&of_kind(&objects, "segment")[1]);
    fill(bucket, &objects).await;
    let whole = run(bucket, ALL).await;
    assert_eq!(whole.exit_code(), 4);
    for stop_after in 1..20 {
        let (mut calls, mut kept) = (0, None);
        let mut keep = |point: &Checkpoint| {
            kept = Some(point.encode());
            calls += 1;
            if calls == stop_after {
                Err(io::Error::other("stopped"))
            } else {
                Ok(())
            }
        };
        let progress = Arc::new(Progress::default());
        let first = run::verify(bucket, ALL, None, progress, &mut keep).await;
        let Err(error) = first else {
            assert!(stop_after > 5, "stopped too seldom");
            break;
        };
        assert!(matches!(error, ScrubError::Checkpoint(_)));
        let point = Checkpoint::decode(&kept.expect("kept")).expect("readable");
        let other = Options {
            sample: Sample {
                per_million: 10,
                seed: 1,
            },
            rate: None,
        };
        let mut keep = |_: &Checkpoint| Ok(());
        let refused = run::verify(bucket, other, Some(point.clone()), Arc::default(), &mut keep).await;
        assert!(matches!(refused, Err(ScrubError::OtherCheckpoint(_))));
        let rest = run::verify(bucket, ALL, Some(point), Arc::default(), &mut keep).await;
        let mut rest = rest.expect("a result");
        assert!(rest.counts.bytes_read < whole.counts.bytes_read || stop_after == 1);
        rest.counts.bytes_read = whole.counts.bytes_read;
        assert_eq!(rest, whole, "stopped after {stop_after}");
    }
}

pub async fn samples_are_repeatable_and_rates_are_kept(bucket: &Bucket) {
    let objects = sample();
    fill(bucket, &objects).await;
    let options = |seed, rate| Options {
        sample: Sample {
            per_million: 400_000,
            seed,
        },
        rate,
    };
    let first = run(bucket, options(1, None)).await;
    assert_eq!(first, run(bucket, options(1, None)).await);
    assert_ne!(first.counts, run(bucket, options(2, None)).await.counts);
    assert_eq!(first.exit_code(), 0, "{}", first.text());
    assert!(first.text().contains("a sample of 40 % was read (seed 1)"));
    let clock = firekeep::clock::Clock::system();
    let began = clock.now();
    let rate = first.counts.bytes_read;
    run(bucket, options(1, Some(rate))).await;
    let took = clock.now().since(began);
    assert!(
        took.as_millis() >= 900,
        "{rate} bytes at {rate} a second took {took:?}"
    );
}

pub async fn a_writer_that_was_taken_over_from_is_no_part_of_the_log(bucket: &Bucket) {
    let mut alice = Writer::new("did:web:alice.example.com");
    let mut objects = Objects::from([alice.identity(), alice.snapshot()]);
    let mut old = Log {
        generation: 1,
        ..Log::default()
    };
    let (change, blocks) = alice.write(None);
    objects.extend([old.segment(vec![Entry::Commit(change)], blocks)]);
    let mut new = Log {
        generation: 2,
        number: old.number,
        prev: old.prev,
        first: 0,
    };
    let (change, blocks) = alice.write(None);
    // The old one writes the same second again, and something that nobody knows.
    objects.extend([old.segment(vec![Entry::Commit(change.clone())], blocks.clone())]);
    let (lost, of_lost) = Writer::new("did:web:bob.example.com").write(None);
    objects.extend([old.segment(vec![Entry::Commit(lost)], of_lost)]);
    objects.extend([new.segment(vec![Entry::Commit(change)], blocks)]);
    let (change, blocks) = alice.write(None);
    objects.extend([new.segment(vec![Entry::Commit(change)], blocks)]);
    fill(bucket, &objects).await;
    let report = run(bucket, ALL).await;
    assert_eq!(found(&report), []);
    assert_eq!(report.counts.stale_segments, 2);
}

pub async fn signatures_trees_and_histories_are_proven(bucket: &Bucket) {
    let mut alice = Writer::new("did:web:alice.example.com");
    let mut objects = Objects::from([alice.identity(), alice.snapshot()]);
    // Signed by another key than the identity names.
    let mut forger = Writer::forged("did:web:alice.example.com");
    forger.write(None);
    let forged = forger.snapshot();
    objects.extend([forged.clone()]);
    // A delta and a segment on nothing.
    let mut log = Log::default();
    alice.write(None);
    let (change, blocks) = alice.write(None);
    let orphan = super::archive::delta(vec![(change.clone(), blocks.clone())]);
    objects.extend([orphan.clone()]);
    let (later, of_later) = Writer::new("did:web:nobody.example.com").write(None);
    objects.extend([log.segment(vec![Entry::Commit(later)], of_later)]);
    // A delta that leaves out what one of its commits did.
    let mut carol = Writer::new("did:web:carol.example.com");
    objects.extend([carol.identity(), carol.snapshot()]);
    let (first, (mut second, of_second)) = (carol.write(None), carol.write(None));
    second.ops.clear();
    let short = super::archive::delta(vec![first, (second, of_second)]);
    objects.extend([short.clone(), carol.snapshot()]);
    // An account with a blob and nothing else.
    let cid = Cid::of_blob(b"lonely");
    objects.insert(
        format!("v1/blocks/did:web:lonely.example.com/{cid}"),
        b"lonely".to_vec(),
    );
    // A record that was left out without a note.
    let (bare, mut blocks) = alice.write(None);
    let record = bare.ops[0].cid.expect("a record");
    blocks.remove(&record);
    let erased = log.segment(vec![Entry::Commit(bare)], blocks);
    objects.extend([erased.clone()]);
    fill(bucket, &objects).await;
    let report = run(bucket, ALL).await;
    let mut by_name: BTreeMap<&str, Fault> = BTreeMap::new();
    for (fault, object) in found(&report) {
        by_name.insert(object, fault);
    }
    let expected = BTreeMap::from([
        (forged.0.as_str(), Fault::Unproven),
        (orphan.0.as_str(), Fault::NoSnapshot),
        (short.0.as_str(), Fault::Unproven),
        ("v1/repos/did:web:nobody.example.com/", Fault::NoSnapshot),
        ("v1/repos/did:web:lonely.example.com/", Fault::NoSnapshot),
        (erased.0.as_str(), Fault::Damaged),
    ]);
    assert_eq!(by_name, expected, "{}", report.text());

    let mut note = Note::new(alice.did.clone());
    let what = What::Cid(record);
    note.erasure(&what, super::archive::NOW, "an admin")
        .records
        .insert(record);
    let name = format!("v1/erased/{}.json", alice.did);
    replace(bucket, &name, &note.encode()).await;
    let report = run(bucket, ALL).await;
    assert!(
        found(&report).iter().all(|(_, object)| *object != erased.0),
        "{}",
        report.text()
    );
    assert_eq!(report.counts.erased_records, 1);
    // A note of another record, or one that cannot be read, excuses nothing.
    let mut other = Note::new(alice.did.clone());
    other
        .erasure(&what, super::archive::NOW, "an admin")
        .records
        .insert(cid);
    for bytes in [other.encode(), b"{}".to_vec()] {
        replace(bucket, &name, &bytes).await;
        let report = run(bucket, ALL).await;
        assert!(found(&report).iter().any(|(_, object)| *object == erased.0));
    }
}

pub async fn a_gap_behind_the_log_is_named_without_any_delta(bucket: &Bucket) {
    let mut alice = Writer::new("did:web:alice.example.com");
    let mut objects = Objects::from([alice.identity(), alice.snapshot()]);
    let mut log = Log::default();
    let (change, blocks) = alice.write(None);
    objects.extend([log.segment(vec![Entry::Commit(change)], blocks)]);
    let told = alice.rev;
    fill(bucket, &objects).await;
    assert_eq!(run(bucket, ALL).await.exit_code(), 0);
    // It is in no segment, and no delta leads over it.
    alice.write(None);
    let (name, bytes) = alice.snapshot();
    replace(bucket, &name, &bytes).await;
    let report = run(bucket, ALL).await;
    let folder = format!("v1/repos/{}/", alice.did);
    assert_eq!(found(&report), [(Fault::Gap, folder.as_str())]);
    let detail = &report.findings.kept()[0].detail;
    assert!(
        detail.contains(&format!("between rev {told} and rev {}", alice.rev)),
        "{detail}"
    );
    assert_eq!(
        report.exit_code(),
        3,
        "not damage: it may never have been archived"
    );
}
