//! Timelines of entries without an archive: times, gaps, plans.

use std::collections::BTreeSet;

use super::*;
use crate::archive::log_file::Op;
use crate::archive::names::DidFolder;

const DAY: u64 = 1_800_000_000_000_000;

fn did() -> Did {
    "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("a DID")
}

/// A time, in seconds of the day.
fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(DAY + seconds * 1_000_000)
}

/// A rev that is a time.
fn rev(seconds: u64) -> Rev {
    Rev::from_time(at(seconds), 0)
}

fn commit(seconds: u64) -> Cid {
    Cid::of_block(&seconds.to_be_bytes())
}

fn change(since: u64, to: u64) -> Change {
    Change {
        did: did(),
        host: "pds.example.com".parse().expect("a host"),
        seq: to,
        since: rev(since),
        rev: rev(to),
        time: at(to),
        received: at(to + 1),
        commit: commit(to),
        ops: vec![
            Op {
                path: "a.b.c/d".parse().expect("a path"),
                cid: Some(commit(to)),
            },
            Op {
                path: "a.b.c/e".parse().expect("a path"),
                cid: None,
            },
        ],
    }
}

fn snapshot(seconds: u64) -> SnapshotName {
    SnapshotName {
        did: DidFolder::try_from(&did()).expect("short"),
        rev: rev(seconds),
        commit: *commit(seconds).digest(),
        edition: 0,
    }
}

fn loaded_at(seconds: u64, received: u64) -> Entry {
    Entry::Loaded {
        did: did(),
        host: "pds.example.com".parse().expect("a host"),
        rev: rev(seconds),
        commit: commit(seconds),
        received: at(received),
    }
}

fn line(snapshots: &[u64], entries: &[Entry]) -> Timeline {
    let mut builder = TimelineBuilder::new(did(), Some("a.b.c/d".parse().expect("a path")));
    for seconds in snapshots {
        builder.snapshot(snapshot(*seconds));
    }
    // Each in an object of its own.
    for (place, entry) in entries.iter().enumerate() {
        builder.entries(
            format!("object {place}"),
            Some(place as u64),
            std::slice::from_ref(entry),
        );
    }
    builder.finish()
}

fn commits(pairs: &[(u64, u64)]) -> Vec<Entry> {
    pairs
        .iter()
        .map(|(since, to)| Entry::Commit(change(*since, *to)))
        .collect()
}

fn revs(line: &Timeline) -> Vec<u64> {
    let seconds = line
        .moments
        .iter()
        .map(|moment| moment.rev.time().since(at(0)).as_secs());
    seconds.collect()
}

fn chosen(line: &Timeline, at: At) -> (u64, bool) {
    let choice = line.choose(at).expect("a moment");
    let moment = &line.moments[choice.index];
    (
        moment.rev.time().since(self::at(0)).as_secs(),
        choice.doubt.is_some(),
    )
}

#[test]
fn the_last_moment_at_or_before_a_time() {
    let line = line(&[10], &commits(&[(10, 20), (20, 30)]));
    assert_eq!(revs(&line), [10, 20, 30]);
    assert_eq!(line.gaps(), []);
    for (time, expected) in [(10, 10), (19, 10), (20, 20), (29, 20), (30, 30), (99, 30)] {
        assert_eq!(chosen(&line, At::Time(at(time))), (expected, false), "{time}");
    }
    assert_eq!(chosen(&line, At::Received(at(20))), (10, false));
    assert_eq!(chosen(&line, At::Received(at(21))), (20, false));
    assert_eq!(chosen(&line, At::Newest), (30, false));
    assert_eq!(chosen(&line, At::Rev(rev(20))), (20, false));
    let (first, rev_first) = (at(10), rev(10));
    let too_early = NoMoment::TooEarly {
        first,
        rev: rev_first,
    };
    assert_eq!(line.choose(At::Time(at(9))), Err(too_early));
    assert_eq!(line.choose(At::Rev(rev(21))), Err(NoMoment::NoSuchRev(rev(21))));
    assert_eq!(Timeline::default().choose(At::Newest), Err(NoMoment::Nothing));
    assert_eq!(line.versions.len(), 2);
    assert_eq!(line.moments[1].ops, (1, 1));
}

#[test]
fn times_rise_and_are_not_later_than_their_arrival() {
    let mut changes = [change(0, 10), change(10, 20), change(20, 30), change(30, 40)];
    // A host's clock that goes a day ahead, then back.
    changes[1].time = at(86_400);
    changes[2].time = at(3);
    let line = line(&[0], &changes.map(Entry::Commit));
    let times: Vec<Timestamp> = line.moments.iter().map(|moment| moment.time).collect();
    assert_eq!(times, [at(0), at(10), at(21), at(21), at(40)]);
    assert_eq!(chosen(&line, At::Time(at(20))), (10, false));
    assert_eq!(chosen(&line, At::Time(at(21))), (30, false));
}

#[test]
fn what_was_fetched_has_the_time_of_its_rev_where_that_is_one() {
    let line = line(&[10], &[loaded_at(10, 50)]);
    assert_eq!((line.moments[0].time, line.moments[0].received), (at(10), at(50)));
    assert_eq!(chosen(&line, At::Time(at(12))), (10, false));
    // A host that counts: its revs are no times.
    let mut builder = TimelineBuilder::new(did(), None);
    let mut swap = change(1, 2);
    (swap.since, swap.rev) = (
        Rev::from_bits(1).expect("a rev"),
        Rev::from_bits(2).expect("a rev"),
    );
    (swap.time, swap.received) = (at(60), at(60));
    let mut name = snapshot(0);
    name.rev = swap.since;
    builder.snapshot(name);
    builder.entries("x".to_owned(), None, &[Entry::Swap(swap)]);
    let line = builder.finish();
    assert_eq!(line.moments[1].time, at(60));
    // The snapshot before it has no time but that.
    assert_eq!(line.moments[0].time, at(60));
}

#[test]
fn a_plan_leads_from_the_newest_snapshot() {
    let line = line(&[10, 30], &commits(&[(10, 20), (20, 30), (30, 40)]));
    let plan = |index: usize, without: &[u64]| {
        let without = without.iter().map(|seconds| rev(*seconds)).collect();
        line.plan(index, &without)
            .map(|plan| (plan.snapshot, plan.steps.len()))
    };
    assert_eq!(plan(0, &[]), Some((snapshot(10), 0)));
    assert_eq!(plan(1, &[]), Some((snapshot(10), 1)));
    assert_eq!(plan(2, &[]), Some((snapshot(30), 0)));
    assert_eq!(plan(3, &[]), Some((snapshot(30), 1)));
    assert_eq!(plan(3, &[30]), Some((snapshot(10), 3)));
    assert_eq!(plan(3, &[30, 10]), None);
    let steps = line.plan(3, &[rev(30)].into()).expect("a plan").steps;
    let names: Vec<&str> = steps
        .iter()
        .map(|(source, _)| line.source_name(*source))
        .collect();
    assert_eq!(names, ["object 0", "object 1", "object 2"]);
}

#[test]
fn a_missing_entry_shows() {
    let line = line(&[10, 50], &commits(&[(10, 20), (30, 40), (40, 50)]));
    let gap = Gap {
        after: rev(20),
        before: rev(40),
        broken: true,
    };
    assert_eq!(line.gaps(), [gap]);
    assert!(line.is_damaged());
    assert_eq!(line.rebuildable(), [true, true, false, true]);
    assert_eq!(line.plan(2, &BTreeSet::new()), None);
    // Something newer than 20 was there, of which nothing is known.
    assert_eq!(chosen(&line, At::Time(at(35))), (20, true));
    assert_eq!(chosen(&line, At::Time(at(55))), (50, false));
}

#[test]
fn snapshots_without_what_was_between_them() {
    let line = line(&[10, 30], &[]);
    assert_eq!(line.gaps().len(), 1);
    assert!(!line.is_damaged(), "retention may have thinned it out");
    assert_eq!(chosen(&line, At::Time(at(20))), (10, true));
    assert_eq!(chosen(&line, At::Time(at(30))), (30, false));
}

#[test]
fn nothing_is_built_on_what_was_before_a_fetch() {
    let mut entries = commits(&[(10, 20)]);
    entries.push(loaded_at(30, 31));
    entries.extend(commits(&[(30, 40), (40, 50)]));
    let line = line(&[10, 40], &entries);
    assert_eq!(revs(&line), [10, 20, 30, 40, 50]);
    assert_eq!(line.gaps(), []);
    assert_eq!(line.rebuildable(), [true, true, false, true, true]);
    assert_eq!(
        chosen(&line, At::Time(at(25))),
        (20, false),
        "known to have held until the fetch"
    );
}

#[test]
fn an_entry_may_stand_in_two_objects_but_say_one_thing() {
    let mut entries = commits(&[(10, 20), (10, 20), (20, 30)]);
    let line = self::line(&[10], &entries);
    assert_eq!(revs(&line), [10, 20, 30]);
    assert_eq!(line.faults, []);
    let Entry::Commit(second) = &mut entries[1] else {
        panic!("a commit");
    };
    second.commit = commit(99);
    let line = self::line(&[10], &entries);
    assert_eq!(line.moments[1].commit, commit(20));
    assert_eq!(line.faults.len(), 1);
    assert_eq!(line.faults[0].object, "object 1");
}

#[test]
fn entries_of_others_and_standings() {
    let other: Did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa".parse().expect("a DID");
    let mut theirs = change(20, 30);
    theirs.did = other;
    let status = Entry::Account {
        did: did(),
        host: "pds.example.com".parse().expect("a host"),
        status: AccountStatus::Takendown,
        received: at(25),
    };
    let mut entries = commits(&[(10, 20)]);
    entries.extend([Entry::Commit(theirs), status.clone(), status]);
    let line = line(&[10], &entries);
    assert_eq!(revs(&line), [10, 20]);
    assert_eq!(line.standings.len(), 1);
    assert_eq!(line.standings[0].status, AccountStatus::Takendown);
}

#[test]
fn a_fault_casts_doubt_on_what_it_may_hide_alone() {
    let entries = commits(&[(10, 20), (20, 30)]);
    let with = |hides: Hides| {
        let mut line = line(&[10], &entries);
        let (object, detail) = ("it".to_owned(), "is broken".to_owned());
        line.faults.push(Fault {
            object,
            detail,
            hides,
        });
        line
    };
    let doubted = |hides: Hides| chosen(&with(hides), At::Newest).1;
    assert!(!doubted(Hides::Nothing));
    // The newest entry stands at place 1 of the log.
    assert!(!doubted(Hides::Log(0)));
    assert!(doubted(Hides::Log(2)));
    assert!(!doubted(Hides::Revs(rev(10), rev(30))));
    assert!(doubted(Hides::Revs(rev(30), rev(40))));
    // Where the next moment goes on from this one, nothing is hidden between.
    assert_eq!(chosen(&with(Hides::Log(2)), At::Time(at(25))), (20, false));
    assert!(with(Hides::Log(0)).is_damaged());
    assert!(!with(Hides::Nothing).is_damaged());
}

#[test]
fn a_snapshot_of_another_commit_is_named() {
    let mut builder = TimelineBuilder::new(did(), None);
    let mut other = snapshot(20);
    other.commit = *commit(99).digest();
    builder.snapshot(snapshot(10));
    builder.snapshot(other);
    builder.entries("x".to_owned(), None, &commits(&[(10, 20)]));
    let line = builder.finish();
    assert_eq!(line.faults.len(), 1);
    assert!(!line.moments[1].snapshot);
    assert_eq!(line.rebuildable(), [true, true]);
}

#[test]
fn circles_end() {
    let line = line(&[], &commits(&[(20, 10), (10, 20), (30, 30)]));
    assert_eq!(line.rebuildable(), [false, false, false]);
    for index in 0..3 {
        assert_eq!(line.plan(index, &BTreeSet::new()), None);
    }
}
