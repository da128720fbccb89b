//! Who may write, on a folder archive.

use super::*;
use crate::archive::folder::FolderBucket;
use crate::archive::log_file::{Entry, FORMAT, LogIndex, Origin};
use crate::archive::shipper::pack;

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

async fn bucket() -> (tempfile::TempDir, Bucket) {
    let keep = tempfile::tempdir().expect("a folder");
    let bucket = FolderBucket::open(&keep.path().join("archive"))
        .await
        .expect("opens");
    (keep, Bucket::Folder(bucket))
}

/// Writes a segment with one entry, and returns its index.
async fn put_segment(bucket: &Bucket, generation: u64, number: u64, prev: Option<Cid>) -> Cid {
    let entry = Entry::Account {
        did: "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("a DID"),
        host: "pds.example".parse().expect("a host"),
        status: crate::types::AccountStatus::Active,
        received: NOW,
    };
    let origin = Origin::Segment {
        shard: SHARD,
        generation,
        number,
        prev,
        first: number,
    };
    let index = LogIndex {
        format: FORMAT,
        origin,
        entries: vec![entry],
    };
    let file = LogFile::new(index, std::collections::BTreeMap::new());
    let name = SegmentName {
        shard: SHARD,
        generation,
        number,
        edition: 0,
    };
    let (body, _) = pack(&file.encode_car());
    let options = PutOptions::create(ContentType::zstd());
    let put = bucket
        .put(&name.to_string(), Body::Bytes(body.into()), &options)
        .await;
    assert_eq!(put.expect("puts"), PutOutcome::Created);
    file.root
}

#[tokio::test]
async fn the_first_claims_and_goes_on() {
    let (_keep, bucket) = bucket().await;
    let first = claim(&bucket, "one", None, false, NOW).await.expect("free");
    assert_eq!(
        (first.how, first.log.generation, first.log.number),
        (How::First, 1, 1)
    );
    let again = claim(&bucket, "one", Some(&first.log), false, NOW)
        .await
        .expect("ours");
    assert_eq!((again.how, &again.log), (How::GoesOn, &first.log));
    assert!(!is_superseded(&bucket, 1).await.expect("reads"));
}

#[tokio::test]
async fn another_mirror_is_refused_unless_it_takes_over() {
    let (_keep, bucket) = bucket().await;
    claim(&bucket, "one", None, false, NOW).await.expect("free");
    let mut last = None;
    for number in 1..=3 {
        last = Some(put_segment(&bucket, 1, number, last).await);
    }
    let refused = claim(&bucket, "two", None, false, NOW).await.expect_err("taken");
    assert!(
        matches!(&refused, ClaimError::Taken { instance, .. } if instance == "one"),
        "{refused}"
    );
    let taken = is_superseded(&bucket, 1).await.expect("reads");
    assert!(!taken, "a refusal changes nothing");

    let taken = claim(&bucket, "two", None, true, NOW).await.expect("takes over");
    assert_eq!(taken.how, How::TookOver);
    assert_eq!(
        (taken.log.generation, taken.log.number, taken.log.prev),
        (2, 4, last)
    );
    assert!(is_superseded(&bucket, 1).await.expect("reads"));
    let back = claim(&bucket, "one", None, false, NOW).await.expect_err("taken");
    assert!(
        matches!(&back, ClaimError::Taken { instance, .. } if instance == "two"),
        "{back}"
    );
}

#[tokio::test]
async fn what_a_stale_writer_adds_after_the_next_ones_first_segment_is_not_gone_on_from() {
    let (_keep, bucket) = bucket().await;
    claim(&bucket, "one", None, false, NOW).await.expect("free");
    let first = put_segment(&bucket, 1, 1, None).await;
    let two = claim(&bucket, "two", None, true, NOW).await.expect("takes over");
    let second = put_segment(&bucket, 2, two.log.number, two.log.prev).await;
    put_segment(&bucket, 1, 2, Some(first)).await;
    put_segment(&bucket, 1, 3, Some(first)).await;
    let three = claim(&bucket, "three", None, true, NOW)
        .await
        .expect("takes over");
    assert_eq!((three.log.number, three.log.prev), (3, Some(second)));
}

#[tokio::test]
async fn a_mirror_that_fell_back_starts_a_new_generation() {
    let (_keep, bucket) = bucket().await;
    let old = claim(&bucket, "one", None, false, NOW).await.expect("free").log;
    let one = put_segment(&bucket, 1, 1, None).await;
    // The very next segment may be our own, not yet acknowledged: it is, if its cut is known.
    let cutting = LogRow {
        cut: Some((1, 1)),
        ..old.clone()
    };
    let goes_on = claim(&bucket, "one", Some(&cutting), false, NOW)
        .await
        .expect("ours");
    assert_eq!(goes_on.how, How::GoesOn);
    let fell = claim(&bucket, "one", Some(&old), false, NOW).await.expect("ours");
    assert_eq!(fell.how, How::FellBack);
    assert_eq!(
        (fell.log.generation, fell.log.number, fell.log.prev),
        (2, 2, Some(one))
    );
    // One that knows nothing of its own claim: before anything is written under it, it is only taken up again.
    let lost = claim(&bucket, "one", None, false, NOW).await.expect("ours");
    assert_eq!((lost.how, &lost.log), (How::First, &fell.log));
    put_segment(&bucket, 2, 2, Some(one)).await;
    let lost = claim(&bucket, "one", None, false, NOW).await.expect("ours");
    assert_eq!(
        (lost.how, lost.log.generation, lost.log.number),
        (How::FellBack, 3, 3)
    );
    // A person may tell it to begin a generation of its own, whatever it knows.
    let told = claim(&bucket, "one", Some(&lost.log), true, NOW)
        .await
        .expect("ours");
    assert_eq!((told.how, told.log.generation), (How::TookOver, 4));
}

#[tokio::test]
async fn a_log_that_cannot_be_gone_on_from_is_not_claimed() {
    let (_keep, bucket) = bucket().await;
    claim(&bucket, "one", None, false, NOW).await.expect("free");
    let name = SegmentName {
        shard: SHARD,
        generation: 1,
        number: 1,
        edition: 0,
    };
    let options = PutOptions::create(ContentType::zstd());
    let put = bucket
        .put(&name.to_string(), Body::Bytes("zstd?".into()), &options)
        .await;
    put.expect("puts");
    for _ in 0..2 {
        let refused = claim(&bucket, "two", None, true, NOW).await.expect_err("damaged");
        assert!(matches!(refused, ClaimError::Damaged { .. }), "{refused}");
    }
    assert!(!is_superseded(&bucket, 1).await.expect("reads"));
}

#[tokio::test]
async fn of_many_claims_at_once_one_wins_each_generation() {
    let (_keep, bucket) = bucket().await;
    let mut tries = tokio::task::JoinSet::new();
    for n in 0..8 {
        let bucket = bucket.clone();
        tries.spawn(async move { claim(&bucket, &format!("m{n}"), None, false, NOW).await });
    }
    let results = tries.join_all().await;
    let won: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    assert_eq!(won.len(), 1, "{results:?}");
}

#[tokio::test]
async fn damaged_claims_and_segments_stop_us() {
    let (_keep, bucket) = bucket().await;
    let options = PutOptions::create(ContentType::json());
    let name = "v1/writers/0/00000000000000000001.json";
    let put = bucket.put(name, Body::Bytes("{".into()), &options).await;
    put.expect("puts");
    let refused = claim(&bucket, "one", None, true, NOW).await.expect_err("damaged");
    assert!(
        matches!(&refused, ClaimError::Damaged { name: found, .. } if found == name),
        "{refused}"
    );

    let name = SegmentName {
        shard: SHARD,
        generation: 1,
        number: 1,
        edition: 0,
    };
    let read = read_segment(&bucket, &name).await.expect_err("not there");
    assert!(matches!(read, ClaimError::Damaged { .. }), "{read}");
    let put = bucket
        .put(&name.to_string(), Body::Bytes("zstd?".into()), &options)
        .await;
    put.expect("puts");
    let read = read_segment(&bucket, &name).await.expect_err("damaged");
    assert!(matches!(read, ClaimError::Damaged { .. }), "{read}");
}

/// The log begins behind what an older copy of the mirror would write next: it has fallen back.
#[tokio::test]
async fn a_mirror_that_fell_back_behind_the_beginning_of_the_log_does_not_go_on() {
    use super::super::boundary::Boundary;
    let (_keep, bucket) = bucket().await;
    let claimed = claim(&bucket, "one", None, false, NOW).await.expect("free");
    let mut log = claimed.log;
    let mut roots = vec![None];
    for number in 1..=6 {
        log.number = number;
        let root = put_segment(&bucket, log.generation, number, roots[roots.len() - 1]).await;
        roots.push(Some(root));
    }
    let at = |number: u64| LogRow {
        number,
        prev: roots[usize::try_from(number).expect("small") - 1],
        ..log.clone()
    };
    let name = |number| SegmentName {
        shard: SHARD,
        generation: log.generation,
        number,
        edition: 0,
    };
    assert_eq!(
        claim(&bucket, "one", Some(&at(7)), false, NOW)
            .await
            .expect("ours")
            .how,
        How::GoesOn
    );
    assert!(!is_left_behind(&bucket, &name(7)).await.expect("answers"));
    // 1 to 4 are removed.
    let boundary = Boundary::at(name(5).place(), roots[4], None, NOW);
    let options = PutOptions::create(ContentType::json());
    let body = Body::Bytes(boundary.encode().into());
    bucket
        .put(&boundary.name.to_string(), body, &options)
        .await
        .expect("puts");
    for number in 1..=4 {
        bucket.delete(&name(number).to_string()).await.expect("deletes");
    }
    assert_eq!(
        claim(&bucket, "one", Some(&at(7)), false, NOW)
            .await
            .expect("ours")
            .how,
        How::GoesOn
    );
    assert!(!is_left_behind(&bucket, &name(7)).await.expect("answers"));
    // A copy that stands at 3, and writes on: the number is free, and still not its own.
    assert!(is_left_behind(&bucket, &name(3)).await.expect("answers"));
    let fell_back = claim(&bucket, "one", Some(&at(3)), false, NOW)
        .await
        .expect("ours");
    assert_eq!((fell_back.how, fell_back.log.number), (How::FellBack, 7));
    // A new generation goes on from the newest, and its first segment has none of its own before it.
    let first = SegmentName {
        generation: fell_back.log.generation,
        ..name(7)
    };
    assert!(!is_left_behind(&bucket, &first).await.expect("answers"));
}

#[tokio::test]
async fn a_folder_keeps_what_must_not_be_replaced() {
    let (_keep, bucket) = bucket().await;
    let one = claim(&bucket, "one", None, false, NOW).await.expect("free");
    assert!(
        honours_create_only(&bucket, one.log.generation)
            .await
            .expect("puts")
    );
    assert!(is_claimed_by(&bucket, 1, "one").await.expect("reads"));
}
