//! Boundaries: what they say, what the log is by them, and what covers an entry.

use super::super::log_chain::Link;
use super::super::log_file::{FORMAT as LOG_FORMAT, Origin};
use super::*;
use crate::types::AccountStatus;

fn did(name: &str) -> Did {
    format!("did:web:{name}.example.com").parse().expect("valid")
}

fn r(n: u64) -> Rev {
    Rev::from_bits(n << 20).expect("a rev")
}

fn segment(generation: u64, number: u64, edition: u32) -> SegmentName {
    SegmentName {
        shard: 0,
        generation,
        number,
        edition,
    }
}

fn change(name: &str, since: u64, to: u64) -> Entry {
    Entry::Commit(Change {
        did: did(name),
        host: "pds.example.com".parse().expect("valid"),
        seq: 1,
        since: r(since),
        rev: r(to),
        time: Timestamp::default(),
        received: Timestamp::default(),
        commit: Cid::of_block(b"commit"),
        ops: Vec::new(),
    })
}

fn loaded(name: &str, rev: u64) -> Entry {
    Entry::Loaded {
        did: did(name),
        host: "pds.example.com".parse().expect("valid"),
        rev: r(rev),
        commit: Cid::of_block(b"commit"),
        received: Timestamp::default(),
    }
}

fn account(name: &str, status: AccountStatus, at: u64) -> Entry {
    Entry::Account {
        did: did(name),
        host: "pds.example.com".parse().expect("valid"),
        status,
        received: Timestamp::from_micros(at * 1_000_000),
    }
}

fn index(entries: Vec<Entry>) -> LogIndex {
    LogIndex {
        format: LOG_FORMAT,
        origin: Origin::Segment {
            shard: 0,
            generation: 1,
            number: 1,
            prev: None,
            first: 1,
        },
        entries,
    }
}

#[test]
fn it_keeps_the_newest_standings_and_how_far_the_segments_led() {
    let name = segment(1, 9, 0).place();
    let prev = Some(Cid::of_block(b"prev"));
    let mut first = Boundary::at(name, prev, None, Timestamp::from_micros(5_000));
    first.pass(
        &index(vec![
            change("a", 1, 2),
            account("b", AccountStatus::Takendown, 1),
            change("a", 2, 3),
            account("b", AccountStatus::Other("odd".to_owned()), 2),
            loaded("c", 7),
            change("gone", 1, 2),
        ]),
        |of| *of == did("gone"),
    );
    let bytes = first.encode();
    assert_eq!(Boundary::decode(&bytes, &name), Ok(first.clone()));
    assert_eq!(first.led_to, BTreeMap::from([(did("a"), r(3)), (did("c"), r(7))]));
    assert_eq!(
        first.standings[&did("b")],
        account("b", AccountStatus::Other("odd".to_owned()), 2)
    );
    // The next one keeps standings, and claims only for what it removes itself.
    let next = Boundary::at(segment(2, 1, 0).place(), None, Some(&first), Timestamp::default());
    assert_eq!((next.standings, next.led_to.len()), (first.standings, 0));

    for (what, bytes, name) in [
        (
            "a flipped bit",
            [&bytes[..40], &[bytes[40] ^ 1], &bytes[41..]].concat(),
            name,
        ),
        ("renamed", bytes.clone(), segment(1, 8, 0).place()),
        ("cut", bytes[..bytes.len() - 9].to_vec(), name),
        ("no seal", b"{}".to_vec(), name),
    ] {
        assert!(Boundary::decode(&bytes, &name).is_err(), "{what}");
    }
    let newer = String::from_utf8(bytes)
        .expect("text")
        .replace("\"format\": 1", "\"format\": 2");
    assert!(Boundary::decode(newer.as_bytes(), &name).is_err());
}

#[test]
fn the_log_is_what_stands_at_the_newest_boundary_or_behind_it() {
    let all = [
        segment(1, 1, 0),
        segment(1, 2, 0),
        segment(1, 3, 0),
        segment(1, 3, 1),
        segment(1, 3, 2),
        // Written by somebody who was taken over from: before the boundary in every way.
        segment(1, 4, 0),
        segment(2, 4, 0),
    ];
    let none = listed(all, []);
    assert_eq!((none.boundary, none.removed.len()), (None, 0));
    assert_eq!(
        none.segments,
        [
            segment(1, 1, 0),
            segment(1, 2, 0),
            segment(1, 3, 2),
            segment(1, 4, 0),
            segment(2, 4, 0)
        ]
    );
    assert_eq!(none.replaced, [segment(1, 3, 0), segment(1, 3, 1)]);
    let (old, new) = (segment(1, 2, 0).place(), segment(1, 3, 0).place());
    let some = listed(all, [new, old]);
    assert_eq!((some.boundary, some.old_boundaries), (Some(new), vec![old]));
    assert_eq!(some.removed, [segment(1, 1, 0), segment(1, 2, 0)]);
    assert_eq!(some.segments.len(), 3);
    assert_eq!(
        listed(all, [segment(2, 4, 0).place()]).segments,
        [segment(2, 4, 0)]
    );
}

#[test]
fn a_log_that_begins_elsewhere_than_its_boundary_says_is_not_whole() {
    let head = |number, prev: Option<&[u8]>| SegmentHead {
        name: segment(1, number, 0),
        link: Some(Link {
            root: Cid::of_block(&[9]),
            prev: prev.map(Cid::of_block),
        }),
    };
    let chain = |count| LogChain {
        order: (0..count).collect(),
        ..LogChain::default()
    };
    let boundary = |number, prev: Option<&[u8]>| {
        let prev = prev.map(Cid::of_block);
        Boundary::at(segment(1, number, 0).place(), prev, None, Timestamp::default())
    };
    let check = |heads: &[SegmentHead], boundary: Option<&Boundary>| {
        let begin = boundary.map(|boundary| (boundary.name, Some(boundary)));
        check_begin(heads, &chain(heads.len()), begin)
    };
    assert_eq!(check(&[], None), None);
    assert_eq!(check(&[head(1, None)], None), None);
    assert_eq!(
        check(&[head(5, Some(b"4"))], Some(&boundary(5, Some(b"4")))),
        None
    );
    // Nothing says that the ones before were removed.
    assert!(check(&[head(5, Some(b"4"))], None).is_some());
    // The boundary's own segment is lost, or another one stands there.
    assert!(check(&[head(6, Some(b"5"))], Some(&boundary(5, Some(b"4")))).is_some());
    assert!(check(&[], Some(&boundary(5, Some(b"4")))).is_some());
    assert!(check(&[head(5, Some(b"x"))], Some(&boundary(5, Some(b"4")))).is_some());
    // Unreadable: its name is all there is to go by.
    let unread = Some((segment(1, 5, 0).place(), None));
    assert_eq!(check_begin(&[head(5, Some(b"x"))], &chain(1), unread), None);
}

fn cover(snapshots: &[u64], deltas: &[(u64, u64)], told: &[(u64, u64)]) -> Cover {
    let commit = Cid::of_block(b"commit");
    let (snapshots, deltas, told) = (snapshots.iter(), deltas.iter(), told.iter());
    Cover {
        snapshots: snapshots.map(|n| (r(*n), commit)).collect(),
        deltas: deltas.map(|(from, to)| (r(*from), r(*to), false)).collect(),
        told: told.map(|(since, rev)| (r(*since), r(*rev), commit)).collect(),
        ..Cover::default()
    }
}

#[test]
fn what_is_covered() {
    let (yes, no, sound) = (Stands::Yes, Stands::No, |n| Stands::IfSound(r(n)));
    let table = [
        (cover(&[], &[], &[]), change("a", 1, 2), no),
        (cover(&[1], &[], &[]), change("a", 1, 2), no),
        // A snapshot stands for its own moment, and not for what led there.
        (cover(&[2], &[], &[]), change("a", 1, 2), no),
        // A later one does not hold the moment.
        (cover(&[9], &[], &[]), change("a", 1, 2), no),
        // A delta counts for what it tells, and its name says where to look.
        (cover(&[], &[], &[(1, 2)]), change("a", 1, 2), yes),
        (cover(&[], &[(0, 9)], &[]), change("a", 1, 2), Stands::IfTold(0)),
        (
            cover(&[], &[(3, 4), (1, 2)], &[]),
            change("a", 1, 2),
            Stands::IfTold(1),
        ),
        (cover(&[], &[(2, 9)], &[]), change("a", 1, 2), no),
        (cover(&[], &[(0, 1)], &[]), change("a", 1, 2), no),
        // One of a mirror that fell back leads over it, and tells of other moments.
        (cover(&[], &[], &[(0, 9)]), change("a", 1, 2), no),
        (cover(&[], &[], &[(0, 2)]), change("a", 1, 2), no),
        // Two deltas that meet in the middle of an entry hold none of it.
        (cover(&[], &[(0, 2), (2, 9)], &[]), change("a", 1, 3), no),
        (cover(&[], &[], &[]), loaded("a", 5), no),
        (cover(&[4], &[], &[]), loaded("a", 5), no),
        (cover(&[5], &[], &[]), loaded("a", 5), sound(5)),
        (cover(&[6, 7], &[], &[]), loaded("a", 5), sound(6)),
        (cover(&[], &[], &[]), account("a", AccountStatus::Deleted, 1), yes),
    ];
    for (cover, entry, expected) in table {
        assert_eq!(cover.has(&entry), expected, "{cover:?} {entry:?}");
        let gone = Cover {
            is_gone: true,
            ..cover.clone()
        };
        assert_eq!(gone.has(&entry), yes);
        let looked = |is_sound: bool| {
            let mut looked = cover.clone();
            let all = looked.snapshots.keys().copied();
            match is_sound {
                true => looked.sound = all.collect(),
                false => looked.rotten = all.collect(),
            }
            looked.deltas.iter_mut().for_each(|(.., read)| *read = true);
            looked
        };
        if let Stands::IfSound(_) = expected {
            assert_eq!(looked(true).has(&entry), yes);
        }
        if expected != yes {
            assert_eq!(looked(false).has(&entry), no, "{entry:?}");
        }
        let needless = |base, is_sound| Cover {
            needless_before: Some(r(base)),
            sound: if is_sound {
                BTreeSet::from([r(base)])
            } else {
                BTreeSet::new()
            },
            ..looked(false)
        };
        if let Entry::Commit(_) = entry {
            assert_eq!(needless(99, true).has(&entry), yes);
            if expected != yes {
                assert_eq!(
                    needless(99, false).has(&entry),
                    sound(99),
                    "its base has to prove"
                );
            }
        }
        if expected != yes {
            assert_eq!(needless(0, true).has(&entry), no);
        }
    }
}

#[test]
fn what_leads_to_a_moment() {
    let (yes, no, sound) = (Stands::Yes, Stands::No, |n| Stands::IfSound(r(n)));
    assert!(cover(&[5], &[], &[]).leads_to(r(5)) && cover(&[], &[(1, 5)], &[]).leads_to(r(5)));
    assert!(!cover(&[4], &[(1, 4)], &[]).leads_to(r(5)));
    assert_eq!(cover(&[4], &[], &[]).anchors(r(4)), yes);
    assert_eq!(cover(&[], &[], &[(2, 4)]).anchors(r(4)), yes);
    assert_eq!(cover(&[], &[(2, 6)], &[]).anchors(r(4)), Stands::IfTold(0));
    assert_eq!(cover(&[], &[(4, 6)], &[(2, 6)]).anchors(r(4)), no);
    // Another commit of the same rev is another moment.
    let mut other = cover(&[2], &[], &[(1, 2)]);
    let Entry::Commit(mut change) = change("a", 1, 2) else {
        panic!("a commit")
    };
    let ours = change.clone();
    change.commit = Cid::of_block(b"other");
    assert_eq!(other.has_moment(&change), no);
    assert_eq!(cover(&[2], &[], &[]).has_moment(&ours), sound(2));
    other.sound.insert(r(2));
    assert_eq!((other.has_moment(&ours), other.has_moment(&change)), (yes, no));
    assert_eq!(other.has(&Entry::Commit(change)), no);
    other.rotten = std::mem::take(&mut other.sound);
    assert_eq!(other.has_moment(&ours), no);
}
