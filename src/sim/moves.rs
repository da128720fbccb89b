//! Accounts that move from host to host, as the reference PDS has it: `importRepo` and the blobs in silence, then
//! the document names the new host and its key, the account is activated there and deactivated where it was. Until
//! its next write its head is signed by the key of before.

use super::act::some_account;
use super::faults::Fault;
use super::oracle::Oracle;
use super::pds::{Document, Network};
use super::world::World;
use crate::types::{AccountStatus, Did, Timestamp};

/// An account of a host moves to another one, which is followed or not.
pub(super) fn move_out(
    world: &mut World,
    net: &mut Network,
    oracle: &mut Oracle,
    from: usize,
    did: &Did,
    fault: Fault,
) -> bool {
    let followed = fault == Fault::Moved;
    let others: Vec<usize> = (0..net.hosts.len())
        .filter(|other| *other != from && net.hosts[*other].followed == followed && !net.hosts[*other].down)
        .collect();
    if others.is_empty() {
        return false;
    }
    let to = others[world.host_rng.index(others.len())];
    migrate(world, net, oracle, did, from, to);
    true
}

/// An account comes to a host from one that nobody follows.
pub(super) fn move_in(world: &mut World, net: &mut Network, oracle: &mut Oracle, to: usize) -> bool {
    let Some(from) = net.hosts.iter().position(|pds| !pds.followed) else {
        return false;
    };
    let Some(did) = some_account(world, net, from) else {
        return false;
    };
    migrate(world, net, oracle, &did, from, to);
    true
}

fn migrate(world: &mut World, net: &mut Network, oracle: &mut Oracle, did: &Did, from: usize, to: usize) {
    let now = world.now;
    let old = net.hosts[from]
        .books
        .accounts
        .get_mut(did)
        .expect("chosen from it");
    let mut moved = old.clone();
    old.status = AccountStatus::Deactivated;
    // Imported, it is in the new host's own tree.
    moved.lax = None;
    moved.account.rotate_key(oracle.next_account());
    let document = Document {
        key: moved.account.key().to_did_key(),
        host: net.hosts[to].name.clone(),
    };
    net.hosts[to].books.accounts.insert(did.clone(), moved);
    let stale_until = stale_until(world);
    net.plc.change(did, document, now, stale_until);
    let old_first = world.host_rng.chance(300);
    if old_first {
        net.hosts[from].emit_account(did, now);
    }
    let new = &mut net.hosts[to];
    new.emit_account(did, now);
    new.emit_identity(did, now);
    new.emit_sync(did, now);
    if !old_first {
        net.hosts[from].emit_account(did, now);
    }
    let (from, to) = (&net.hosts[from].name, &net.hosts[to].name);
    world.trace.say(|| format!("{did} moves from {from} to {to}"));
}

/// Until when the directory gives the document of before, if that fault strikes.
pub(super) fn stale_until(world: &mut World) -> Option<Timestamp> {
    let stale = world.strikes(Fault::PlcStale, 500);
    stale.then(|| world.now.plus(world.host_rng.millis(1_000, 600_000)))
}
