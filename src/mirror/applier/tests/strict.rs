//! What the applier makes of evidence that is not what it should be.

use super::*;

fn rejected(notes: &[Note]) -> Vec<RejectReason> {
    let reasons = notes.iter().filter_map(|note| match note {
        Note::Rejected { reason, .. } => Some(*reason),
        _ => None,
    });
    reasons.collect()
}

fn resolve(world: &mut World, account: &SimAccount) -> Vec<Note> {
    let resolved = Some(world.identity(account));
    world.apply(Input::Identity {
        did: account.did().clone(),
        resolved,
        task: Vec::new(),
        retry_at: NOW,
    })
}

#[test]
fn a_sync_with_a_foreign_signature_does_not_make_us_fetch() {
    let mut world = World::new();
    let account = world.live(1);
    let mut forger = SimAccount::new(1, NOW);
    forger.rotate_key(77);
    let later = NOW.plus(Duration::from_secs(60));
    forger.commit(0, &[write("x", "forged")], later);
    let seq = world.seq();
    let notes = world.frame(forger.sync_frame(seq, later));
    assert!(matches!(notes[..], [Note::Parked { .. }]), "{notes:?}");
    let notes = resolve(&mut world, &account);
    assert_eq!(rejected(&notes), [RejectReason::BadSignature]);
    let row = world.row(account.did()).expect("known");
    assert_eq!((row.sync, row.parked), (SyncState::Live, 0));
    world.check_equal(&account);
}

#[test]
fn a_host_that_never_reaches_its_own_stream_is_taken_at_its_word_in_the_end() {
    let mut world = World::new();
    let mut account = world.live(1);
    // A commit that the account signed, on a state that its host does not have and never will.
    let mut twin = SimAccount::new(1, NOW);
    let later = NOW.plus(Duration::from_secs(60));
    twin.commit(0, &[write("elsewhere", "x")], later);
    let seq = world.seq();
    let notes = world.frame(twin.commit(seq, &[write("elsewhere2", "x")], later));
    assert_eq!(rejected(&notes), [RejectReason::ChainBroken]);
    account.commit(0, &[write("b", "second")], NOW);
    let mut tries = 0;
    while world.row(account.did()).expect("known").sync != SyncState::Live {
        assert!(tries < 100, "it must not be asked for ever");
        world.fetch(&account);
        tries += 1;
    }
    assert!(tries > 1, "the host gets time to catch up");
    world.check_equal(&account);
    world.commit(&mut account, &[write("c", "third")]);
    world.check_equal(&account);
}
