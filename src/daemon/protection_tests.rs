//! The truth table of *protected*: one thing at a time keeps it from being so.

use super::*;

const NOW: Timestamp = Timestamp::from_micros(1_900_000_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn good() -> (Totals, Facts) {
    let proof = ProofFacts {
        good: Some(NOW.minus(DAY)),
        bad: Some(NOW.minus(2 * DAY)),
        interval: DAY,
    };
    let totals = Totals {
        sync: BTreeMap::from([("live", 3)]),
        blobs: BTreeMap::from([("archived", 5), ("withdrawn", 1), ("erased", 1)]),
        archived: 2,
        unshipped: 1,
        with_head: 3,
        ..Totals::default()
    };
    let facts = Facts {
        now: NOW,
        hosts: vec![HostFacts {
            name: "pds.test".to_owned(),
            away_for: None,
            lag: LAG_MAX,
        }],
        listed: true,
        stalled: Vec::new(),
        archive_is_folder: false,
        archive_works: true,
        off_machine_age: OFF_MACHINE_MAX,
        scrub_findings: 0,
        scrub: proof,
        drill: proof,
    };
    (totals, facts)
}

#[test]
fn all_of_it_is_protected_also_at_the_limits() {
    let (totals, mut facts) = good();
    assert_eq!(Protection::judge(&totals, &facts).level, Level::Protected);
    facts.hosts[0].away_for = Some(AWAY_SHORT);
    facts.drill.good = Some(NOW.minus(2 * DAY + PROOF_GRACE));
    facts.drill.bad = None;
    let judged = Protection::judge(&totals, &facts);
    assert_eq!((judged.level, judged.findings.len()), (Level::Protected, 0));
}

/// What spoils it, and the reason that must be given.
type Spoil = (Reason, fn(&mut Totals, &mut Facts));

const SPOILS: &[Spoil] = &[
    (Reason::TaskStalled, |_, f| f.stalled.push("work".to_owned())),
    (Reason::HostAway, |_, f| {
        f.hosts[0].away_for = Some(AWAY_MAX + Duration::from_millis(1))
    }),
    (Reason::Connecting, |_, f| f.hosts[0].away_for = Some(AWAY_MAX)),
    (Reason::Lag, |_, f| {
        f.hosts[0].lag = LAG_MAX + Duration::from_millis(1)
    }),
    (Reason::ArchiveAway, |_, f| f.archive_works = false),
    (Reason::OffMachineAge, |_, f| {
        f.off_machine_age = OFF_MACHINE_MAX + Duration::from_millis(1)
    }),
    (Reason::SpoolFull, |t, _| t.unlogged = 1),
    (Reason::BlobsMissing, |t, _| {
        t.blobs = BTreeMap::from([("archived", 5), ("missing", 1)])
    }),
    (Reason::Quarantined, |t, _| {
        t.sync = BTreeMap::from([("live", 3), ("quarantined", 1)])
    }),
    (Reason::Diverged, |t, _| {
        t.sync = BTreeMap::from([("live", 3), ("diverged", 1)])
    }),
    (Reason::Damaged, |t, _| t.damaged_cars = 1),
    (Reason::Damaged, |_, f| f.scrub_findings = 1),
    (Reason::DrillFailed, |_, f| f.drill.bad = Some(NOW)),
    (Reason::DrillFailed, |_, f| f.drill.good = None),
    (Reason::DrillOld, |_, f| {
        f.drill.good = Some(NOW.minus(2 * DAY + PROOF_GRACE + Duration::from_millis(1)))
    }),
    (Reason::ScrubOld, |_, f| f.scrub.good = Some(NOW.minus(3 * DAY))),
    (Reason::NotListed, |_, f| f.listed = false),
    (Reason::Filling, |t, _| t.wanted_active = 1),
    (Reason::EventsParked, |t, _| t.parked = 1),
    (Reason::BlobsOpen, |t, _| {
        t.blobs = BTreeMap::from([("archived", 5), ("wanted", 1)])
    }),
    (Reason::BlobsOpen, |t, _| {
        t.blobs = BTreeMap::from([("archived", 5), ("held", 1)])
    }),
    (Reason::BlobsOpen, |t, _| t.open_cars = 1),
    (Reason::NotSnapshotted, |t, _| t.without_snapshot = 1),
    (Reason::DrillPending, |_, f| {
        (f.drill.good, f.drill.bad) = (None, None)
    }),
    (Reason::ScrubPending, |_, f| f.scrub.good = None),
    (Reason::NoAccounts, |t, _| t.with_head = 0),
    (Reason::SameMachine, |_, f| f.archive_is_folder = true),
];

#[test]
fn each_thing_alone_keeps_it_from_being_protected() {
    for (index, (reason, spoil)) in SPOILS.iter().enumerate() {
        let (mut totals, mut facts) = good();
        if *reason == Reason::DrillOld {
            facts.drill.bad = None;
        }
        spoil(&mut totals, &mut facts);
        let judged = Protection::judge(&totals, &facts);
        let reasons: Vec<_> = judged.findings.iter().map(|finding| finding.reason).collect();
        assert_eq!(reasons, [*reason], "case {index}");
        assert_eq!(judged.level, reason.level(), "case {index}");
        assert_ne!(judged.level, Level::Protected, "case {index}");
    }
    for reason in Reason::ALL {
        assert!(
            SPOILS.iter().any(|(known, _)| *known == reason),
            "{reason:?} is not tried"
        );
    }
}

#[test]
fn the_worst_of_two_is_said_first() {
    for (first, spoil) in SPOILS {
        for (second, also) in SPOILS {
            let (mut totals, mut facts) = good();
            spoil(&mut totals, &mut facts);
            also(&mut totals, &mut facts);
            let judged = Protection::judge(&totals, &facts);
            // Some cannot both be: the later setting wins. None of them may end in being protected.
            assert_ne!(judged.level, Level::Protected, "{first:?} {second:?}");
            assert_eq!(
                judged.level,
                judged.findings[0].reason.level(),
                "{first:?} {second:?}"
            );
            assert!(judged.findings.is_sorted_by_key(|finding| finding.reason));
        }
    }
}

#[test]
fn reasons_stand_in_the_order_of_how_bad_they_are() {
    assert!(Reason::ALL.is_sorted());
    assert!(Reason::ALL.is_sorted_by(|a, b| a.level() >= b.level()));
    let mut names: Vec<_> = Reason::ALL.map(Reason::name).to_vec();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Reason::ALL.len());
}

#[test]
fn spans_are_for_people() {
    for (seconds, text) in [
        (0, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3720, "1 h 2 min"),
        (90_000, "1 d 1 h"),
    ] {
        assert_eq!(span(Duration::from_secs(seconds)), text);
    }
}

#[test]
fn metrics_have_a_series_for_every_answer() {
    use crate::metrics::labels::{Label as _, ProtectionLabel, UnprotectedLabel};

    let levels = ProtectionLabel::ALL.iter().map(|label| label.text());
    assert!(levels.eq(Level::ALL.map(Level::name)));
    let reasons = UnprotectedLabel::ALL.iter().map(|label| label.text());
    assert!(reasons.eq(Reason::ALL.map(Reason::name)));
}
