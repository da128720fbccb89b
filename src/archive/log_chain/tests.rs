//! Logs of one and of several writers, with pieces missing.

use super::*;

fn root(generation: u64, number: u64) -> Cid {
    Cid::of_block(format!("{generation} {number}").as_bytes())
}

/// A segment of `generation` that goes on from `(generation, number - 1)` of another.
fn linked(generation: u64, number: u64, prev: Option<(u64, u64)>) -> SegmentHead {
    SegmentHead {
        name: SegmentName {
            shard: 0,
            generation,
            number,
            edition: 0,
        },
        link: Some(Link {
            root: root(generation, number),
            prev: prev.map(|(generation, number)| root(generation, number)),
        }),
    }
}

fn next(generation: u64, number: u64) -> SegmentHead {
    linked(generation, number, Some((generation, number - 1)))
}

fn unreadable(mut head: SegmentHead) -> SegmentHead {
    head.link = None;
    head
}

/// Generation and number.
type Names = Vec<(u64, u64)>;

/// The log's segments, the stale ones, and the texts of the gaps.
fn read(segments: &[SegmentHead]) -> (Names, Names, Vec<String>) {
    let chain = chain(segments);
    let names = |at: &[usize]| {
        let names = at.iter().map(|at| segments[*at].name);
        names.map(|name| (name.generation, name.number)).collect()
    };
    let gaps = chain.gaps.iter().map(LogGap::to_string).collect();
    (names(&chain.order), names(&chain.stale), gaps)
}

#[test]
fn one_writer_in_any_order() {
    let segments = [next(1, 3), linked(1, 1, None), next(1, 2)];
    assert_eq!(read(&segments), (vec![(1, 1), (1, 2), (1, 3)], vec![], vec![]));
    assert_eq!(read(&[]), (vec![], vec![], vec![]));
    // The oldest ones are covered and gone.
    assert_eq!(read(&segments[..1]), (vec![(1, 3)], vec![], vec![]));
}

#[test]
fn a_take_over_leaves_the_stale_writer_behind() {
    let segments = [
        linked(1, 1, None),
        next(1, 2),
        next(1, 3),
        next(1, 4),
        linked(2, 3, Some((1, 2))),
        next(2, 4),
        linked(4, 5, Some((2, 4))),
    ];
    let (log, stale, gaps) = read(&segments);
    assert_eq!(log, [(1, 1), (1, 2), (2, 3), (2, 4), (4, 5)]);
    assert_eq!(stale, [(1, 3), (1, 4)]);
    assert_eq!(gaps, Vec::<String>::new());
}

#[test]
fn a_whole_generation_can_be_stale() {
    let segments = [
        linked(1, 1, None),
        linked(2, 2, Some((1, 1))),
        linked(3, 2, Some((1, 1))),
    ];
    assert_eq!(read(&segments), (vec![(1, 1), (3, 2)], vec![(2, 2)], vec![]));
    // A log that says it begins anew has nothing before it.
    let segments = [linked(1, 1, None), linked(2, 1, None), next(2, 2)];
    assert_eq!(read(&segments), (vec![(2, 1), (2, 2)], vec![(1, 1)], vec![]));
}

#[test]
fn what_is_missing_is_named() {
    let one = [linked(1, 1, None), next(1, 3)];
    assert_eq!(read(&one).2, ["segment number 2 is missing"]);
    let many = [linked(1, 1, None), next(1, 5)];
    assert_eq!(read(&many).2, ["segments number 2 to 4 are missing"]);
    let forked = [linked(1, 1, None), linked(1, 2, Some((9, 9)))];
    let (log, stale, gaps) = read(&forked);
    assert_eq!((log.len(), stale.len()), (2, 0));
    assert_eq!(gaps.len(), 1);
    assert!(gaps[0].contains("does not go on from"), "{gaps:?}");
}

#[test]
fn where_a_link_is_lost_the_numbers_tell() {
    // The last one before the take-over is gone: its number, and nothing else.
    let gone = [linked(1, 1, None), linked(2, 3, Some((1, 2))), next(2, 4)];
    let (log, stale, gaps) = read(&gone);
    assert_eq!(log, [(1, 1), (2, 3), (2, 4)]);
    assert_eq!(stale, []);
    assert_eq!(gaps, ["segment number 2 is missing"]);
    // The first one after it cannot be read; the stale writer's segments have its number or a later one.
    let damaged = [
        linked(1, 1, None),
        next(1, 2),
        next(1, 3),
        unreadable(linked(2, 3, Some((1, 2)))),
        next(2, 4),
    ];
    let (log, stale, gaps) = read(&damaged);
    assert_eq!(log, [(1, 1), (1, 2), (2, 3), (2, 4)]);
    assert_eq!(stale, [(1, 3)]);
    assert_eq!(gaps, Vec::<String>::new(), "it is there, though damaged");
}
