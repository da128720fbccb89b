//! Who is on and who is off: answers that an event has overtaken, and many accounts that go at once.

use super::tests::{ASKED, NOW, World};
use super::*;
use crate::mirror::input::{FetchFailure, ListedPage, ListedRepo};
use crate::mirror::keyspace::{AlarmId, AlarmKind};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{Listing, PinReason};
use crate::sim::SimAccount;
use crate::stream::encode::encode_frame;
use crate::stream::frame::{AccountFrame, Frame};
use crate::types::AccountStatus;

/// Before the event that comes at [`NOW`].
const BEFORE: Timestamp = Timestamp::from_micros(1_799_999_999_000_000);

fn turned(world: &mut World, account: &SimAccount, status: Option<&'static str>) -> Vec<Note> {
    let event = turn(world, account, status);
    world.apply(event)
}

/// An `#account` event.
fn turn(world: &mut World, account: &SimAccount, status: Option<&'static str>) -> Input {
    let frame = AccountFrame {
        seq: world.seq(),
        did: account.did().clone(),
        active: status.is_none(),
        status,
        time: None,
    };
    world.event(encode_frame(&Frame::Account(frame)))
}

fn audited(world: &World, account: &SimAccount, status: Option<AccountStatus>, asked_at: Timestamp) -> Input {
    Input::Audited {
        did: account.did().clone(),
        host: world.host.clone(),
        status,
        head: Some(account.head()),
        asked_at,
        task: Vec::new(),
    }
}

fn listed(world: &World, account: &SimAccount, status: AccountStatus, asked_at: Timestamp) -> Input {
    Input::Listed(ListedPage {
        host: world.host.clone(),
        repos: vec![ListedRepo {
            did: account.did().clone(),
            head: Some(account.head()),
            status,
        }],
        asked_at,
        listing: Listing::Finished { at: NOW },
        task: None,
    })
}

fn standing(world: &World, account: &SimAccount) -> AccountStatus {
    world.row(account.did()).expect("known").upstream
}

/// When the account is asked for next.
fn next_audit(world: &World, account: &SimAccount) -> Option<Timestamp> {
    world.row(account.did()).expect("known").next_audit
}

#[test]
fn an_answer_that_an_event_has_overtaken_says_nothing() {
    let mut world = World::new();
    let account = world.live(1);
    turned(&mut world, &account, Some("takendown"));
    let soon = Some(NOW.plus(Duration::from_secs(30)));
    for late in [
        audited(&world, &account, Some(AccountStatus::Active), BEFORE),
        // In the same moment: nobody knows which was first.
        audited(&world, &account, Some(AccountStatus::Active), NOW),
        audited(&world, &account, None, BEFORE),
        listed(&world, &account, AccountStatus::Active, BEFORE),
    ] {
        let told = format!("{late:?}");
        world.apply(late);
        assert_eq!(standing(&world, &account), AccountStatus::Takendown, "{told}");
        assert_eq!(
            next_audit(&world, &account),
            soon,
            "it is asked for again soon: {told}"
        );
    }
    // And what was asked after the event counts.
    world.apply(audited(&world, &account, Some(AccountStatus::Active), ASKED));
    assert_eq!(standing(&world, &account), AccountStatus::Active);
    assert!(next_audit(&world, &account) > soon);
}

#[test]
fn a_late_answer_does_not_turn_off_what_an_event_turned_on() {
    let mut world = World::new();
    let account = world.live(1);
    turned(&mut world, &account, Some("deactivated"));
    turned(&mut world, &account, None);
    world.apply(audited(
        &world,
        &account,
        Some(AccountStatus::Deactivated),
        BEFORE,
    ));
    world.apply(listed(&world, &account, AccountStatus::Deactivated, BEFORE));
    assert_eq!(standing(&world, &account), AccountStatus::Active);
    // Reactivated, it is wanted; the fetch had begun before that, and tells of before.
    let failed = |asked_at| Input::FetchFailed {
        did: account.did().clone(),
        host: world.host.clone(),
        failure: FetchFailure::Inactive(AccountStatus::Deactivated),
        asked_at,
        task: world.fetch_task(account.did()),
        retry_at: NOW.plus(Duration::from_secs(6 * 3600)),
    };
    let (early, later) = (failed(BEFORE), failed(ASKED));
    world.apply(early);
    assert_eq!(standing(&world, &account), AccountStatus::Active);
    let due = Mirror::new(&*world.store).due_tasks(NOW.plus(Duration::from_secs(60)).millis(), 100);
    let fetch = Task::FetchRepo(account.did().clone());
    assert!(
        due.expect("reads").iter().any(|due| due.task == fetch),
        "it is fetched soon, not in six hours"
    );
    world.apply(later);
    assert_eq!(standing(&world, &account), AccountStatus::Deactivated);
}

#[test]
fn an_answer_without_any_event_counts() {
    let mut world = World::new();
    let account = world.live(1);
    world.apply(listed(&world, &account, AccountStatus::Suspended, BEFORE));
    assert_eq!(standing(&world, &account), AccountStatus::Suspended);
    world.apply(audited(&world, &account, Some(AccountStatus::Active), BEFORE));
    assert_eq!(standing(&world, &account), AccountStatus::Active);
}

/// Whether the host's alarm stands and is not seen yet.
fn is_alarmed(world: &World) -> bool {
    let alarms = Mirror::new(&*world.store).alarms().expect("reads");
    let mine = alarms.iter().find(|(id, _)| id.kind == AlarmKind::MassTakedown);
    mine.is_some_and(|(id, row)| id.subject.is_empty() && row.acknowledged.is_none())
}

fn is_pinned(world: &World, account: &SimAccount) -> bool {
    let row = world.row(account.did()).expect("known");
    let mine = row
        .pins
        .iter()
        .filter(|pin| pin.reason == PinReason::MassTakedown);
    let count = mine.inspect(|pin| assert_eq!(pin.head, row.head)).count();
    assert!(count <= 1, "once");
    count == 1
}

fn accounts(world: &mut World, count: u64) -> Vec<SimAccount> {
    (1..=count).map(|number| world.live(number)).collect()
}

#[test]
fn many_accounts_that_go_raise_one_alarm_and_are_pinned_and_kept() {
    let mut world = World::new();
    let accounts = accounts(&mut world, 20);
    let statuses = ["takendown", "suspended", "deactivated", "deleted", "new-in-2030"];
    for (account, status) in accounts[..9].iter().zip(statuses.iter().cycle()) {
        turned(&mut world, account, Some(status));
    }
    assert!(!is_alarmed(&world), "nine are never many");
    assert!(!accounts.iter().any(|account| is_pinned(&world, account)));
    // The same account again is no other one.
    turned(&mut world, &accounts[0], Some("deleted"));
    assert!(!is_alarmed(&world));
    turned(&mut world, &accounts[9], Some("takendown"));
    assert!(is_alarmed(&world));
    for (index, account) in accounts.iter().enumerate() {
        assert_eq!(is_pinned(&world, account), index < 10, "account {index}");
        world.check_equal(account);
    }
    // While nobody has looked, whoever follows is pinned too.
    turned(&mut world, &accounts[10], Some("takendown"));
    assert!(is_pinned(&world, &accounts[10]));
    let alarm = AlarmId {
        host: Some(world.host.clone()),
        kind: AlarmKind::MassTakedown,
        subject: String::new(),
    };
    let by = "an admin".to_owned();
    world.apply(Input::Acknowledge { alarm, by });
    turned(&mut world, &accounts[11], Some("takendown"));
    assert!(
        !is_alarmed(&world) && !is_pinned(&world, &accounts[11]),
        "one is not many"
    );
    for account in &accounts[12..20] {
        turned(&mut world, account, Some("takendown"));
    }
    assert!(
        is_alarmed(&world),
        "what a person has seen does not hide what comes after it"
    );
    assert!(is_pinned(&world, &accounts[11]) && is_pinned(&world, &accounts[10]));
}

#[test]
fn the_share_of_a_large_host_counts_also_in_one_batch() {
    for in_one in [false, true] {
        let mut world = World::new();
        let accounts = accounts(&mut world, 120);
        let take = |world: &mut World, range: std::ops::Range<usize>| {
            let events: Vec<_> = accounts[range]
                .iter()
                .map(|account| turn(world, account, Some("takendown")))
                .collect();
            if in_one {
                world.applier.apply(events, NOW).expect("applies");
            } else {
                events.into_iter().for_each(|event| drop(world.apply(event)));
            }
        };
        take(&mut world, 0..11);
        assert!(!is_alarmed(&world), "eleven of 120 are less than a tenth");
        take(&mut world, 11..12);
        assert!(is_alarmed(&world), "twelve are a tenth");
        assert!(accounts[..12].iter().all(|account| is_pinned(&world, account)));
    }
}

#[test]
fn what_went_long_ago_does_not_count_and_who_returns_is_not_away() {
    let mut world = World::new();
    let accounts = accounts(&mut world, 20);
    let hour = Duration::from_secs(3600);
    for (index, account) in accounts.iter().take(18).enumerate() {
        // Nine within any day.
        let at = NOW.plus(hour * 3 * u32::try_from(index).expect("small"));
        let event = turn(&mut world, account, Some("deactivated"));
        world.applier.apply(vec![event], at).expect("applies");
    }
    assert!(!is_alarmed(&world));
    let row = |world: &World| world.row(accounts[0].did()).expect("known");
    assert_eq!(row(&world).away_since, Some(NOW));
    turned(&mut world, &accounts[0], None);
    assert_eq!(row(&world).away_since, None);
}

#[test]
fn accounts_that_a_host_no_longer_knows_count_once_each() {
    let mut world = World::new();
    let accounts = accounts(&mut world, 12);
    for _ in 0..3 {
        for account in &accounts[..9] {
            world.apply(audited(&world, account, None, ASKED));
        }
    }
    assert!(!is_alarmed(&world), "nine accounts, asked for three times");
    let failed = Input::FetchFailed {
        did: accounts[9].did().clone(),
        host: world.host.clone(),
        failure: FetchFailure::NotFound,
        asked_at: ASKED,
        task: Vec::new(),
        retry_at: NOW,
    };
    world.apply(failed);
    assert!(
        is_alarmed(&world),
        "nine that were asked for, one that was fetched"
    );
    for account in &accounts[..10] {
        assert!(is_pinned(&world, account));
        world.check_equal(account);
    }
    // Found again, it may vanish again.
    world.apply(audited(&world, &accounts[0], Some(AccountStatus::Active), ASKED));
    assert_eq!(world.row(accounts[0].did()).expect("known").away_since, None);
}
