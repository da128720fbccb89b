//! Rounds on the model store: everything is asked for, at its pace, whatever the host does.

use super::*;
use crate::mirror::keyspace;
use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::{BlobRow, BlobState, Head, Row as _};
use crate::mirror::store::{Batch as Writes, Family, Store as _};
use crate::types::{AccountStatus, Cid, Rev};

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn host() -> HostName {
    "pds.test".parse().expect("valid")
}

fn did(number: u64) -> Did {
    format!("did:web:a{number:04}.test").parse().expect("valid")
}

fn digest(account: u64, blob: u64) -> Digest {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&account.to_be_bytes());
    digest[8..16].copy_from_slice(&blob.to_be_bytes());
    digest
}

fn account(number: u64) -> AccountRow {
    let mut row = AccountRow::new(number, host(), NOW);
    row.account_number = 1000 + number;
    row.sync = SyncState::Live;
    row.head = Some(Head {
        rev: Rev::from_bits(1).expect("a rev"),
        commit: Cid::of_block(b"commit"),
        commit_block: Vec::new(),
        data: Cid::of_block(b"data"),
    });
    row
}

/// An account and so many archived blobs of it that a record refers to.
fn put(store: &MemoryStore, number: u64, row: &AccountRow, blobs: std::ops::Range<u64>) {
    let mut writes = Writes::new();
    writes.put(
        Family::Accounts,
        keyspace::encode_account(&did(number)),
        row.encode(),
    );
    for blob in blobs {
        put_blob(&mut writes, number, blob, BlobState::Archived);
        let reference = keyspace::encode_blob_ref(1000 + number, &digest(number, blob), b"app.test.post/a");
        writes.put(Family::BlobRefs, reference, Vec::new());
    }
    store.write(writes).expect("writes");
}

fn put_blob(writes: &mut Writes, number: u64, blob: u64, state: BlobState) {
    let row = BlobRow {
        state,
        ..BlobRow::wanted(Some(1), None, NOW)
    };
    let key = keyspace::encode_blob(number, &digest(number, blob));
    writes.put(Family::Blobs, key, row.encode());
}

fn next(store: &MemoryStore, mark: SweepMark, now: Timestamp) -> Batch {
    Batch::next(&Mirror::new(store), &host(), mark, now, DAY).expect("reads")
}

/// What came of a while: every verdict, with its time.
struct Swept {
    verdicts: Vec<(Timestamp, BlobVerdict)>,
    mark: SweepMark,
    asked: u64,
}

/// Works on until a time, with a host that answers like this.
fn sweep(
    store: &MemoryStore,
    mut mark: SweepMark,
    until: Timestamp,
    mut say: impl FnMut(Timestamp, &BlobKey) -> Answer,
) -> Swept {
    let (mut verdicts, mut asked) = (Vec::new(), 0);
    while mark.next <= until {
        let now = mark.next;
        let mut batch = next(store, mark, now);
        while let Some(blob) = batch.ask() {
            let answer = say(now, blob);
            asked += 1;
            batch.take(answer);
        }
        let (said, after) = batch.finish(now);
        assert!(after.next > now, "it never spins");
        // As the applier stores it.
        mark = SweepMark::decode(&after.encode()).expect("round-trips");
        verdicts.extend(said.into_iter().map(|verdict| (now, verdict)));
    }
    Swept {
        verdicts,
        mark,
        asked,
    }
}

impl crate::mirror::rows::Row for SweepMark {}

/// The longest time between two askings for any of these blobs, the first one counted from the beginning.
fn longest_pause(swept: &Swept, begun: Timestamp, blobs: impl Iterator<Item = Digest>) -> Duration {
    let pause = |blob: Digest| {
        let mine = swept
            .verdicts
            .iter()
            .filter(|(_, verdict)| verdict.blob.digest == blob);
        let (mut last, mut longest) = (begun, Duration::ZERO);
        for (at, _) in mine {
            longest = longest.max(at.since(last));
            last = *at;
        }
        assert_ne!(last, begun, "a blob was never asked for");
        longest
    };
    blobs.map(pause).max().unwrap_or_default()
}

#[test]
fn every_blob_is_asked_for_within_the_interval_evenly() {
    for (accounts, each) in [(1, 1), (3, 40), (40, 25), (2, 3000)] {
        let store = MemoryStore::new();
        for number in 1..=accounts {
            put(&store, number, &account(number), 0..each);
        }
        let swept = sweep(&store, SweepMark::new(NOW), NOW.plus(DAY * 2), |_, _| {
            Answer::Served
        });
        let all = (1..=accounts).flat_map(|number| (0..each).map(move |blob| digest(number, blob)));
        let longest = longest_pause(&swept, NOW, all);
        assert!(
            longest <= DAY,
            "{accounts} accounts with {each} blobs: {longest:?}"
        );
        let total = accounts * each;
        // No faster than needed: about two and a half rounds in two days, but for the few that are asked hourly.
        assert!(
            swept.asked <= (total * 3).max(48),
            "{} asked for {total}",
            swept.asked
        );
        assert!(swept.mark.finished.is_some());
        // Evenly: no hour has more than three times its share.
        let first = NOW.plus(DAY / 2);
        let hour = Duration::from_secs(3600);
        let in_hour = |(at, _): &&(Timestamp, BlobVerdict)| *at >= first && *at < first.plus(hour);
        let busy = swept.verdicts.iter().filter(in_hour).count() as u64;
        assert!(busy <= (total * 3 / 19).max(2), "{busy} of {total} in an hour");
    }
}

#[test]
fn blobs_that_come_meanwhile_are_asked_for_within_the_interval() {
    let store = MemoryStore::new();
    put(&store, 5, &account(5), 0..2);
    let early = sweep(&store, SweepMark::new(NOW), NOW.plus(DAY / 3), |_, _| {
        Answer::Served
    });
    let came = early.mark.next;
    for number in 1..=20 {
        put(&store, number, &account(number), 0..50);
    }
    let swept = sweep(&store, early.mark, came.plus(DAY * 2), |_, _| Answer::Served);
    let all = (1..=20).flat_map(|number| (0..50).map(move |blob| digest(number, blob)));
    let longest = longest_pause(&swept, came, all);
    assert!(longest <= DAY, "{longest:?}");
}

#[test]
fn a_host_is_never_asked_faster_than_the_limit() {
    let store = MemoryStore::new();
    put(&store, 1, &account(1), 0..400);
    let mut mark = SweepMark::new(NOW);
    // As if there were ten million: far more than fit into the interval.
    (mark.stored, mark.counted_at) = (10_000_000, NOW);
    let mut batch = next(&store, mark, NOW);
    let mut asked = 0;
    while batch.ask().is_some() {
        batch.take(Answer::Served);
        asked += 1;
    }
    assert_eq!(asked, BATCH_MAX);
    let (_, mark) = batch.finish(NOW);
    assert_eq!(mark.next.since(NOW), GAP_LEAST * BATCH_MAX as u32);
}

#[test]
fn only_what_is_held_and_shown_is_asked_for() {
    let store = MemoryStore::new();
    put(&store, 1, &account(1), 0..2);
    let mut elsewhere = account(2);
    elsewhere.host = "other.test".parse().expect("valid");
    let mut off = account(3);
    off.upstream = AccountStatus::Deactivated;
    let mut moved = account(4);
    moved.sync = SyncState::Moved {
        to: "third.test".parse().expect("valid"),
        since: NOW,
    };
    for (number, row) in [(2, elsewhere), (3, off), (4, moved)] {
        put(&store, number, &row, 0..2);
    }
    let mut writes = Writes::new();
    // No record refers to the first; the others are not held.
    put_blob(&mut writes, 1, 10, BlobState::Archived);
    for (blob, state) in [(0, BlobState::Wanted), (1, BlobState::Withdrawn)] {
        put_blob(&mut writes, 5, blob, state);
    }
    writes.put(
        Family::Accounts,
        keyspace::encode_account(&did(5)),
        account(5).encode(),
    );
    store.write(writes).expect("writes");
    let swept = sweep(&store, SweepMark::new(NOW), NOW.plus(DAY / 2), |_, _| {
        Answer::Withheld
    });
    let asked: std::collections::BTreeSet<_> = swept
        .verdicts
        .iter()
        .map(|(_, verdict)| verdict.blob.digest)
        .collect();
    assert_eq!(asked, [digest(1, 0), digest(1, 1)].into());
    assert!(swept.verdicts.iter().all(|(_, verdict)| !verdict.served));
}

#[test]
fn a_host_that_fails_says_nothing_and_is_asked_on_from_there() {
    let store = MemoryStore::new();
    for number in 1..=4 {
        put(&store, number, &account(number), 0..25);
    }
    let back = NOW.plus(Duration::from_secs(6 * 3600));
    let away = |now: Timestamp| now >= NOW.plus(Duration::from_secs(3600)) && now < back;
    let answer = |now: Timestamp, failure| if away(now) { failure } else { Answer::Served };
    for failure in [
        Answer::Away(None),
        Answer::Unclear,
        Answer::Away(Some(Duration::from_secs(1800))),
    ] {
        let swept = sweep(&store, SweepMark::new(NOW), NOW.plus(DAY), |now, _| {
            answer(now, failure)
        });
        assert!(
            swept.verdicts.iter().all(|(_, verdict)| verdict.served),
            "{failure:?}"
        );
        assert!(!swept.verdicts.iter().any(|(at, _)| away(*at)), "{failure:?}");
        let asked: std::collections::BTreeSet<_> = swept
            .verdicts
            .iter()
            .map(|(_, verdict)| verdict.blob.digest)
            .collect();
        // Five hours of failures cost a few blobs their turn, not the round.
        assert!(asked.len() >= 60, "{failure:?}: {} of 100", asked.len());
    }
    // A wish to be left alone is heard, and bounded.
    let mut batch = next(&store, SweepMark::new(NOW), NOW);
    batch.take(Answer::Away(Some(Duration::from_secs(1234))));
    assert_eq!(batch.ask(), None);
    assert_eq!(batch.finish(NOW).1.next, NOW.plus(Duration::from_secs(1234)));
    let mut batch = next(&store, SweepMark::new(NOW), NOW);
    batch.take(Answer::Away(Some(DAY * 30)));
    assert_eq!(batch.finish(NOW).1.next, NOW.plus(WAIT_MOST));
}

#[test]
fn one_blob_that_a_host_cannot_speak_of_stops_nothing() {
    let store = MemoryStore::new();
    put(&store, 1, &account(1), 0..60);
    for bad in [0..1, 10..13, 57..60, 5..25] {
        let is_bad = |blob: &BlobKey| bad.clone().any(|number| blob.digest == digest(1, number));
        let swept = sweep(&store, SweepMark::new(NOW), NOW.plus(DAY * 2), |_, blob| {
            if is_bad(blob) {
                Answer::Unclear
            } else {
                Answer::Served
            }
        });
        let asked: std::collections::BTreeSet<_> = swept
            .verdicts
            .iter()
            .map(|(_, verdict)| verdict.blob.digest)
            .collect();
        let good = 60 - bad.clone().count();
        assert_eq!(asked.len(), good, "{bad:?}");
        assert!(swept.mark.finished.is_some(), "{bad:?}");
    }
}

#[test]
fn an_account_that_the_host_gives_nothing_of_is_passed_over() {
    let store = MemoryStore::new();
    for number in 1..=3 {
        put(&store, number, &account(number), 0..10);
    }
    let mut refusals = 0;
    let swept = sweep(&store, SweepMark::new(NOW), NOW.plus(DAY), |_, blob| {
        if blob.did == did(2) {
            refusals += 1;
            Answer::AccountOff
        } else {
            Answer::Served
        }
    });
    assert!(
        swept
            .verdicts
            .iter()
            .all(|(_, verdict)| verdict.blob.did != did(2))
    );
    assert!(refusals > 0);
    assert!(swept.mark.finished.is_some());
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let store = MemoryStore::new();
    for number in 1..=3 {
        put(&store, number, &account(number), 0..700);
    }
    let mut seen = Vec::new();
    let mut mark = SweepMark::new(NOW);
    // Every batch by a process of its own that knows nothing but the row.
    while mark.finished.is_none() {
        let now = mark.next;
        let mut batch = next(&store, SweepMark::decode(&mark.encode()).expect("decodes"), now);
        while let Some(blob) = batch.ask() {
            seen.push((blob.did.clone(), blob.digest));
            batch.take(Answer::Served);
        }
        mark = batch.finish(now).1;
    }
    let all: Vec<_> = (1..=3)
        .flat_map(|n| (0..700).map(move |blob| (did(n), digest(n, blob))))
        .collect();
    assert_eq!(seen, all, "each once, in order");
}

#[test]
fn only_plain_words_of_the_host_mean_withheld() {
    let status = |status, name: &str, message: &str| FetchError::Status {
        host: "pds.test".to_owned(),
        status,
        error: name.to_owned(),
        message: message.to_owned(),
        retry_after: (status == 429).then_some(Duration::from_secs(7)),
        ratelimit_reset: None,
    };
    for (error, answer) in [
        // What the reference PDS says of a blob that was taken down.
        (status(400, "InvalidRequest", "Blob not found"), Answer::Withheld),
        (status(400, "BlobNotFound", ""), Answer::Withheld),
        (status(404, "BlobNotFound", "none"), Answer::Withheld),
        (status(403, "BlobTakendown", ""), Answer::Withheld),
        (
            status(400, "InvalidRequest", "Blob has been taken down"),
            Answer::Withheld,
        ),
        (status(451, "", ""), Answer::Withheld),
        // And of an account.
        (
            status(400, "RepoTakendown", "Repo has been takendown"),
            Answer::AccountOff,
        ),
        (status(400, "RepoNotFound", "blob not found"), Answer::AccountOff),
        // A proxy before a host that is down, and hosts that fail.
        (status(404, "", ""), Answer::Unclear),
        (status(404, "NotFound", "page not found"), Answer::Unclear),
        (
            status(400, "InvalidRequest", "Error: did must be a valid did"),
            Answer::Unclear,
        ),
        (status(401, "AuthRequired", ""), Answer::Unclear),
        (status(403, "", ""), Answer::Unclear),
        (
            status(500, "InternalServerError", "Blob not found"),
            Answer::Unclear,
        ),
        (status(501, "MethodNotImplemented", ""), Answer::Unclear),
        (status(502, "", ""), Answer::Away(None)),
        (status(503, "", ""), Answer::Away(None)),
        (status(504, "", ""), Answer::Away(None)),
        (
            status(429, "RateLimitExceeded", "Blob not found"),
            Answer::Away(Some(Duration::from_secs(7))),
        ),
        (FetchError::Connect("refused".to_owned()), Answer::Away(None)),
        (
            FetchError::Redirected {
                host: "pds.test".to_owned(),
                location: String::new(),
            },
            Answer::Unclear,
        ),
    ] {
        assert_eq!(Answer::of(&error), answer, "{error:?}");
    }
}
