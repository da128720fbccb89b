//! The promises of a plan, on histories of any shape.

use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3600;
const NOW: Timestamp = Timestamp::from_micros(1_780_000_000_000_000);

const KEEP: Keep = Keep {
    last: 0,
    hours: 0,
    days: 0,
    weeks: 0,
    months: 0,
    window: Duration::ZERO,
    deleted: Duration::from_secs(30 * 24 * HOUR),
    withdrawn: Duration::from_secs(7 * 24 * HOUR),
};

/// The rev of so many hours ago.
fn ago(hours: u64) -> Rev {
    Rev::from_time(NOW.minus(Duration::from_secs(hours * HOUR)), 0)
}

fn snapshot(hours: u64) -> Snapshot {
    Snapshot {
        rev: ago(hours),
        bytes: 10,
        proof: Proof::Sound,
    }
}

fn delta(from: u64, to: u64) -> Delta {
    Delta {
        from: ago(from),
        to: ago(to),
        bytes: 1,
        steps: None,
    }
}

/// One that was read.
fn told(steps: &[(u64, u64)]) -> Delta {
    let steps: Vec<(Rev, Rev)> = steps
        .iter()
        .map(|(since, rev)| (ago(*since), ago(*rev)))
        .collect();
    Delta {
        from: steps[0].0,
        to: steps[steps.len() - 1].1,
        bytes: 1,
        steps: Some(steps),
    }
}

/// What a delta leads over, and what it leads to, are two things where a mirror fell back.
#[test]
fn what_a_delta_does_not_hold_is_held_by_a_snapshot() {
    let keep = Keep {
        last: 1,
        hours: 0,
        days: 0,
        weeks: 0,
        months: 0,
        window: Duration::from_secs(7 * 3600),
        ..KEEP
    };
    let kept = |snapshots: &[u64], deltas: Vec<Delta>| -> (Vec<u64>, usize) {
        let holdings = Holdings {
            snapshots: snapshots.iter().map(|days| snapshot(*days)).collect(),
            deltas,
            ..Holdings::default()
        };
        let planned = plan(&holdings, &keep, NOW);
        let stay = planned.snapshots.iter().filter(|planned| planned.stays());
        let days = stay.map(|planned| {
            let all = snapshots.iter().find(|days| ago(**days) == planned.what.rev);
            *all.expect("one of them")
        });
        let led = planned.deltas.iter().filter(|planned| planned.stays()).count();
        (days.collect(), led)
    };
    // Step by step.
    assert_eq!(
        kept(&[9, 5, 1], vec![told(&[(9, 5)]), told(&[(5, 1)])]),
        (vec![9, 1], 2)
    );
    // By names alone it would seem that the second leads over 5.
    assert_eq!(kept(&[9, 5, 1], vec![delta(9, 1)]), (vec![9, 1], 1));
    assert_eq!(kept(&[9, 5, 1], vec![told(&[(9, 1)])]), (vec![9, 5, 1], 1));
    // It begins before what is kept, and nothing of it is a step from there.
    assert_eq!(
        kept(&[20, 9, 5, 1], vec![told(&[(20, 5), (5, 1)])]),
        (vec![9, 5, 1], 1)
    );
    // Moments without a snapshot of their own, that only one from before the window leads to.
    let far = || vec![told(&[(20, 12)]), told(&[(12, 5), (5, 4)]), told(&[(9, 1)])];
    assert_eq!(kept(&[30, 20, 9, 1], far()), (vec![20, 9, 1], 3));
    // A damaged one tells nothing.
    let mut damaged = told(&[(9, 5)]);
    damaged.steps = Some(Vec::new());
    assert_eq!(
        kept(&[9, 5, 1], vec![damaged, told(&[(5, 1)])]),
        (vec![9, 5, 1], 2)
    );
}

/// Hours ago of the snapshots that stay.
fn stay(plan: &Plan) -> Vec<u64> {
    let stay = plan.snapshots.iter().filter(|planned| planned.stays());
    stay.map(|planned| NOW.since(planned.what.rev.time()).as_secs() / HOUR)
        .collect()
}

fn of(hours: &[u64]) -> Holdings {
    Holdings {
        snapshots: hours.iter().copied().map(snapshot).collect(),
        ..Holdings::default()
    }
}

#[test]
fn each_rule_keeps_what_it_says() {
    let every_hour: Vec<u64> = (0..24 * 70).collect();
    let holdings = of(&every_hour);
    let deltas = every_hour
        .windows(2)
        .map(|pair| delta(pair[1], pair[0]))
        .collect();
    let holdings = Holdings { deltas, ..holdings };
    let count = |keep: Keep| stay(&plan(&holdings, &keep, NOW)).len();
    // The newest is at once the base of an empty window.
    assert_eq!(count(KEEP), 1);
    assert_eq!(count(Keep { last: 5, ..KEEP }), 5);
    assert_eq!(count(Keep { hours: 9, ..KEEP }), 9);
    assert_eq!(count(Keep { days: 9, ..KEEP }), 9);
    assert_eq!(count(Keep { weeks: 4, ..KEEP }), 4);
    assert_eq!(count(Keep { months: 3, ..KEEP }), 3);
    assert_eq!(count(Keep { months: 99, ..KEEP }), 3, "no more than there are");
    let window = Keep {
        window: Duration::from_secs(48 * HOUR),
        ..KEEP
    };
    let planned = plan(&holdings, &window, NOW);
    assert_eq!(stay(&planned), [48, 0], "deltas lead to the others");
    assert_eq!(
        planned.deltas.iter().filter(|planned| planned.stays()).count(),
        48
    );
}

#[test]
fn the_newest_that_proves_stays_beside_the_newest() {
    let mut holdings = of(&[30, 20, 10, 0]);
    holdings.snapshots[3].proof = Proof::Unknown;
    holdings.snapshots[2].proof = Proof::Bad;
    let planned = plan(&holdings, &KEEP, NOW);
    assert_eq!(stay(&planned), [20, 10, 0]);
    let reasons = |index: usize| match &planned.snapshots[index].fate {
        Fate::Keep(reasons) => reasons.clone(),
        Fate::Delete(_) => BTreeSet::new(),
    };
    assert!(reasons(1).contains(&Kept::NewestSound) && reasons(1).contains(&Kept::WindowBase));
    assert_eq!(reasons(2), BTreeSet::from([Kept::Unproven]));
    assert!(reasons(3).contains(&Kept::Newest));
}

#[test]
fn what_no_delta_leads_to_stays() {
    let mut holdings = of(&[50, 40, 30, 20, 10, 0]);
    holdings.deltas = vec![delta(50, 40), delta(40, 30), delta(20, 10), delta(10, 0)];
    let keep = Keep {
        window: Duration::from_secs(45 * HOUR),
        ..KEEP
    };
    assert_eq!(stay(&plan(&holdings, &keep, NOW)), [50, 20, 0]);
}

#[test]
fn revs_that_are_no_times_keep_everything() {
    let mut holdings = of(&[5, 0]);
    let odd = Rev::from_bits(7 << 20).expect("a rev");
    holdings.snapshots.push(Snapshot {
        rev: odd,
        ..snapshot(0)
    });
    holdings.deltas = vec![
        Delta {
            from: odd,
            ..delta(9, 5)
        },
        delta(5, 0),
    ];
    let planned = plan(&holdings, &KEEP, NOW);
    assert!(planned.snapshots[0].stays() && planned.deltas.iter().all(Planned::stays));
    assert_eq!(time_of(odd, NOW), None);
    let far = Rev::from_time(NOW.plus(Duration::from_secs(100 * 24 * HOUR)), 0);
    assert_eq!(time_of(far, NOW), None);
}

#[test]
fn pins_and_graces_hold() {
    let mut holdings = of(&[5000, 4000, 0]);
    let until = |hours: u64| Use {
        from: ago(6000),
        until: Some((ago(hours), NOW.minus(Duration::from_secs(hours * HOUR)))),
    };
    let blob = |uses| Blob {
        digest: [1; 32],
        bytes: 5,
        uses,
    };
    holdings.blobs = vec![
        blob(None),
        blob(Some(vec![Use {
            from: ago(9),
            until: None,
        }])),
        blob(Some(vec![until(1)])),
        blob(Some(vec![until(500)])),
        blob(Some(vec![])),
    ];
    let stays = |plan: &Plan| plan.blobs.iter().map(Planned::stays).collect::<Vec<_>>();
    assert_eq!(
        stays(&plan(&holdings, &KEEP, NOW)),
        [true, true, true, false, true]
    );
    // A kept moment refers to it.
    let monthly = Keep { months: 100, ..KEEP };
    assert_eq!(stays(&plan(&holdings, &monthly, NOW)), [true; 5]);

    holdings.deleted = Some(NOW.minus(KEEP.deleted - Duration::from_secs(1)));
    let everything =
        |plan: &Plan| plan.snapshots.iter().all(Planned::stays) && plan.blobs.iter().all(Planned::stays);
    assert!(everything(&plan(&holdings, &KEEP, NOW)));
    holdings.deleted = Some(NOW.minus(KEEP.deleted));
    let planned = plan(&holdings, &KEEP, NOW);
    assert!(!planned.snapshots.iter().any(Planned::stays) && !planned.blobs.iter().any(Planned::stays));
    holdings.pinned = true;
    assert!(everything(&plan(&holdings, &KEEP, NOW)));
}

/// What is left when a plan was applied.
fn apply(plan: &Plan, holdings: &Holdings) -> Holdings {
    fn left<T: Clone>(planned: &[Planned<T>]) -> Vec<T> {
        let left = planned.iter().filter(|planned| planned.stays());
        left.map(|planned| planned.what.clone()).collect()
    }
    Holdings {
        snapshots: left(&plan.snapshots),
        deltas: left(&plan.deltas),
        blobs: left(&plan.blobs),
        ..holdings.clone()
    }
}

/// The revs that can be restored: those of snapshots, and those to which deltas lead from one. Deltas run between
/// neighbouring revs of `all`, so a chain is one of equal ends.
fn restorable(holdings: &Holdings) -> BTreeSet<Rev> {
    let usable = holdings
        .snapshots
        .iter()
        .filter(|snapshot| snapshot.proof != Proof::Bad);
    let mut revs: BTreeSet<Rev> = usable.map(|snapshot| snapshot.rev).collect();
    loop {
        let more = holdings.deltas.iter().filter(|delta| revs.contains(&delta.from));
        let more: Vec<Rev> = more
            .map(|delta| delta.to)
            .filter(|to| !revs.contains(to))
            .collect();
        if more.is_empty() {
            return revs;
        }
        revs.extend(more);
    }
}

fn any_proof() -> impl Strategy<Value = Proof> {
    prop_oneof![4 => Just(Proof::Sound), 4 => Just(Proof::Unknown), 1 => Just(Proof::Bad)]
}

fn any_holdings() -> impl Strategy<Value = Holdings> {
    let moments = proptest::collection::btree_set(0..3000_u64, 1..40);
    moments.prop_flat_map(|moments| {
        let moments: Vec<u64> = moments.into_iter().rev().collect();
        let count = moments.len();
        let each = proptest::collection::vec((any_proof(), any::<bool>(), prop::bool::weighted(0.8)), count);
        let uses = (0..count, 0..count, any::<bool>());
        let blobs = proptest::collection::vec(proptest::collection::vec(uses, 0..3), 0..6);
        (Just(moments), each, blobs).prop_map(|(moments, each, blobs)| build(&moments, &each, &blobs))
    })
}

/// Snapshots at some of the moments, deltas between most neighbours, blobs that come and go at moments.
fn build(moments: &[u64], each: &[(Proof, bool, bool)], blobs: &[Vec<(usize, usize, bool)>]) -> Holdings {
    let mut holdings = Holdings::default();
    for (index, (proof, has_snapshot, has_delta)) in each.iter().enumerate() {
        if *has_snapshot || index == 0 {
            holdings.snapshots.push(Snapshot {
                proof: *proof,
                ..snapshot(moments[index])
            });
        }
        if *has_delta && index > 0 {
            holdings.deltas.push(delta(moments[index - 1], moments[index]));
        }
    }
    for (number, uses) in blobs.iter().enumerate() {
        let uses = uses.iter().map(|(a, b, open)| {
            let (first, last) = (*a.min(b), *a.max(b));
            let ended = moments[last];
            let time = NOW.minus(Duration::from_secs(ended * HOUR));
            Use {
                from: ago(moments[first]),
                until: (!open && first < last).then_some((ago(ended), time)),
            }
        });
        holdings.blobs.push(Blob {
            digest: [number as u8; 32],
            bytes: 3,
            uses: Some(uses.collect()),
        });
    }
    holdings
}

fn any_keep() -> impl Strategy<Value = Keep> {
    (
        0..4_u32,
        0..5_u32,
        0..5_u32,
        0..5_u32,
        0..5_u32,
        0..2000_u64,
        0..500_u64,
    )
        .prop_map(|(last, hours, days, weeks, months, window, withdrawn)| Keep {
            last,
            hours,
            days,
            weeks,
            months,
            window: Duration::from_secs(window * HOUR),
            withdrawn: Duration::from_secs(withdrawn * HOUR),
            ..KEEP
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn promises_hold(holdings in any_holdings(), keep in any_keep()) {
        let planned = plan(&holdings, &keep, NOW);
        let left = apply(&planned, &holdings);

        // The newest, and the newest that proves.
        let newest = |holdings: &Holdings, sound: bool| {
            let usable = holdings.snapshots.iter().filter(|snapshot| match sound {
                true => snapshot.proof == Proof::Sound,
                false => snapshot.proof != Proof::Bad,
            });
            usable.map(|snapshot| snapshot.rev).max()
        };
        prop_assert_eq!(newest(&left, false), newest(&holdings, false));
        prop_assert_eq!(newest(&left, true), newest(&holdings, true));

        // Every moment of the window that could be restored still can be; so can what stood at its start.
        let start = Rev::from_time(NOW.minus(keep.window), 0);
        let (before, after) = (restorable(&holdings), restorable(&left));
        for rev in before.iter().filter(|rev| **rev >= start) {
            prop_assert!(after.contains(rev), "{} was restorable", rev);
        }
        let at_start = |revs: &BTreeSet<Rev>| revs.range(..=start).next_back().copied();
        prop_assert_eq!(at_start(&after), at_start(&before));

        // A blob that goes is one that no moment refers to that is left.
        let gone = planned.blobs.iter().filter(|planned| !planned.stays());
        for blob in gone {
            for of in blob.what.uses.iter().flatten() {
                let used = after.iter().filter(|rev| **rev >= of.from);
                let used = used.filter(|rev| of.until.is_none_or(|(until, _)| **rev < until)).count();
                prop_assert_eq!(used, 0);
            }
        }

        // Again, and nothing more goes.
        let again = plan(&left, &keep, NOW);
        prop_assert_eq!(apply(&again, &left), left);

        // Nothing of a pinned account goes.
        let pinned = Holdings { pinned: true, deleted: Some(Timestamp::from_micros(0)), ..holdings };
        let planned = plan(&pinned, &keep, NOW);
        prop_assert_eq!(apply(&planned, &pinned).blobs.len(), pinned.blobs.len());
        prop_assert_eq!(apply(&planned, &pinned).snapshots.len(), pinned.snapshots.len());
        prop_assert_eq!(apply(&planned, &pinned).deltas.len(), pinned.deltas.len());
    }
}
