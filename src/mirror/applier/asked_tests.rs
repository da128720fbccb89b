//! What owners and admins ask for; and a host of which only some accounts are followed.

use super::tests::{ASKED, NOW, World, write};
use super::*;
use crate::mirror::input::{Ask, ListedPage, ListedRepo};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{Listing, PinReason, Scope};
use crate::sim::SimAccount;
use crate::types::AccountStatus;

fn ask(world: &mut World, ask: Ask) {
    world.apply(Input::Asked(ask));
}

fn scoped(world: &mut World, scope: Scope) {
    let (host, url) = (world.host.clone(), "https://pds.test".to_owned());
    ask(
        world,
        Ask::Host {
            host,
            url,
            scope,
            added: true,
        },
    );
}

fn sign_up(world: &mut World, account: &SimAccount, key: Option<&str>) {
    let (did, host) = (account.did().clone(), world.host.clone());
    let key = key.map(str::to_owned);
    ask(world, Ask::SignUp { did, host, key });
}

fn listed(world: &World, account: &SimAccount) -> Input {
    Input::Listed(ListedPage {
        host: world.host.clone(),
        repos: vec![ListedRepo {
            did: account.did().clone(),
            head: Some(account.head()),
            status: AccountStatus::Active,
        }],
        asked_at: ASKED,
        listing: Listing::Finished { at: NOW },
        task: None,
    })
}

fn fetches(world: &World, account: &SimAccount) -> usize {
    let tasks = Mirror::new(&*world.store)
        .due_tasks(u64::MAX - 1, 1000)
        .expect("reads");
    let wanted = Task::FetchRepo(account.did().clone());
    tasks.iter().filter(|due| due.task == wanted).count()
}

fn cursor(world: &World) -> Option<u64> {
    let row = Mirror::new(&*world.store).host(&world.host).expect("reads");
    row.expect("a row").cursor
}

#[test]
fn what_the_stream_says_of_unlisted_accounts_is_not_stored() {
    let mut world = World::new();
    scoped(&mut world, Scope::Listed);
    let mut stranger = SimAccount::new(1, NOW);
    let seq = world.seq();
    let frame = stranger.commit(seq, &[write("b", "more")], NOW);
    world.frame(frame);
    assert_eq!(world.row(stranger.did()), None);
    assert_eq!(cursor(&world), Some(seq), "the cursor goes on all the same");
    assert_eq!(world.applier.totals().parked, 0);
    // The listing says that it is there, and that is all.
    let page = listed(&world, &stranger);
    world.apply(page);
    let row = world.row(stranger.did()).expect("a row");
    assert!(row.unfollowed && row.head.is_none());
    assert_eq!(fetches(&world, &stranger), 0);
    let seq = world.seq();
    let frame = stranger.commit(seq, &[write("b", "more")], NOW);
    world.frame(frame);
    assert_eq!(world.row(stranger.did()), Some(row));
    assert_eq!((cursor(&world), world.applier.totals().parked), (Some(seq), 0));
}

#[test]
fn an_account_that_is_signed_up_is_followed_and_no_other() {
    for seen_before in [true, false] {
        let mut world = World::new();
        scoped(&mut world, Scope::Listed);
        let (mut account, mut other) = (SimAccount::new(1, NOW), SimAccount::new(2, NOW));
        if seen_before {
            let page = listed(&world, &account);
            world.apply(page);
        }
        sign_up(&mut world, &account, Some("did:key:zOne"));
        let row = world.row(account.did()).expect("a row");
        assert!(!row.unfollowed && matches!(row.sync, SyncState::Wanted { .. }));
        let owner = row.owner.expect("an owner");
        assert_eq!(
            (owner.signed_up, owner.pinned_key.as_deref()),
            (Some(NOW), Some("did:key:zOne"))
        );
        assert_eq!(fetches(&world, &account), 1);
        for account in [&mut account, &mut other] {
            let seq = world.seq();
            let frame = account.commit(seq, &[write("b", "more")], NOW);
            world.frame(frame);
        }
        assert_eq!(
            world.row(account.did()).expect("a row").parked,
            1,
            "it waits for the fetch"
        );
        assert_eq!(world.row(other.did()), None);
        // Once more changes nothing, and takes no key away.
        sign_up(&mut world, &account, None);
        let owner = world.row(account.did()).expect("a row").owner.expect("an owner");
        assert_eq!(owner.pinned_key.as_deref(), Some("did:key:zOne"));
    }
}

#[test]
fn a_host_that_is_followed_whole_again_has_all_of_its_accounts_fetched() {
    let mut world = World::new();
    scoped(&mut world, Scope::Listed);
    let account = SimAccount::new(1, NOW);
    let page = listed(&world, &account);
    world.apply(page);
    scoped(&mut world, Scope::All);
    let host = Mirror::new(&*world.store)
        .host(&world.host)
        .expect("reads")
        .expect("a row");
    assert!(matches!(host.listing, Listing::Unfinished { cursor: None }));
    let page = listed(&world, &account);
    world.apply(page);
    let row = world.row(account.did()).expect("a row");
    assert!(!row.unfollowed && matches!(row.sync, SyncState::Wanted { .. }));
    assert_eq!(fetches(&world, &account), 1);
}

#[test]
fn accounts_that_are_followed_stay_so_when_the_host_is_narrowed() {
    let mut world = World::new();
    let mut account = world.live(1);
    scoped(&mut world, Scope::Listed);
    let seq = world.seq();
    let frame = account.commit(seq, &[write("b", "more")], NOW);
    world.frame(frame);
    let head = world.row(account.did()).expect("a row").head.expect("a head");
    assert_eq!(head.commit, account.head(), "its commits go on to be applied");
}

#[test]
fn a_removal_is_noted_and_taken_back() {
    let mut world = World::new();
    let account = world.live(1);
    let due = |world: &World| {
        let row = world.row(account.did()).expect("a row");
        row.owner.and_then(|owner| owner.removal_due)
    };
    let did = account.did().clone();
    for at in [Some(ASKED), None] {
        ask(
            &mut world,
            Ask::Removal {
                did: did.clone(),
                due: at,
            },
        );
        assert_eq!(due(&world), at);
    }
    assert_eq!(world.row(&did).expect("a row").owner, None);
    // Who signs up again takes it back too.
    ask(
        &mut world,
        Ask::Removal {
            did,
            due: Some(ASKED),
        },
    );
    sign_up(&mut world, &account, None);
    assert_eq!(due(&world), None);
}

#[test]
fn pins_and_snapshots_are_as_asked() {
    let mut world = World::new();
    let account = world.live(1);
    let did = account.did().clone();
    let pins = |world: &World| {
        let row = world.row(account.did()).expect("a row");
        row.pins.iter().map(|pin| pin.reason).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        ask(&mut world, Ask::Pin { did: did.clone() });
        assert_eq!(pins(&world), [PinReason::Asked]);
    }
    let mut row = world.row(&did).expect("a row");
    row.pins[0].reason = PinReason::Rollback;
    world.put_row(&did, &row);
    ask(&mut world, Ask::Pin { did: did.clone() });
    ask(&mut world, Ask::Unpin { did: did.clone() });
    assert_eq!(pins(&world), [PinReason::Rollback], "what an alarm pinned stays");
    ask(&mut world, Ask::Snapshot { did: did.clone() });
    let row = world.row(&did).expect("a row");
    assert!(row.snapshot_due);
    assert_eq!(row.snapshot_at, Some(NOW));
    // Of what is not known nothing is made.
    let stranger = SimAccount::new(9, NOW);
    for asked in [
        Ask::Snapshot {
            did: stranger.did().clone(),
        },
        Ask::Pin {
            did: stranger.did().clone(),
        },
        Ask::Removal {
            did: stranger.did().clone(),
            due: Some(NOW),
        },
    ] {
        ask(&mut world, asked);
    }
    assert_eq!(world.row(stranger.did()), None);
}
