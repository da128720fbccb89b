//! What hosts and their users do, and what goes wrong there. The oracle is told of every commit that an
//! account really made, before anybody else hears of it.

use std::time::Duration;

use super::account::{SimAccount, Write, post, post_with_blob};
use super::faults::Fault;
use super::flaws;
use super::moves;
use super::oracle::Oracle;
use super::pds::{BlobGiven, Document, HostAccount, Lax, Network, Said, SimBlob};
use super::world::{Event, World};
use crate::types::{AccountStatus, Cid, Did, Rev};

/// Most accounts of a host.
const ACCOUNTS_MAX: usize = 4;
/// Most records that an account is let grow to.
const RECORDS_MAX: usize = 14;
/// Permille of acts in which one enabled fault is drawn.
const FAULT_PERMILLE: u64 = 350;

/// A host or one of its users does something.
pub fn act(world: &mut World, net: &mut Network, oracle: &mut Oracle, host: usize) {
    if net.hosts[host].down {
        return;
    }
    let count = net.hosts[host].books.accounts.len();
    if count == 0 || (count < ACCOUNTS_MAX && world.host_rng.chance(80)) {
        return add_account(world, net, oracle, host);
    }
    if world.faulty && net.hosts[host].followed && world.host_rng.chance(FAULT_PERMILLE) {
        let fault = Fault::ALL[world.host_rng.index(Fault::ALL.len())];
        if world.is_enabled(fault) && host_fault(world, net, oracle, host, fault) {
            return;
        }
    }
    if world.host_rng.chance(30) {
        // What a backup of the host's disk would hold.
        net.hosts[host].copy = Some(net.hosts[host].books.clone());
    }
    if let Some(did) = some_account(world, net, host) {
        commit(world, net, oracle, host, &did, None);
    }
}

/// An active account of a host.
pub(super) fn some_account(world: &mut World, net: &Network, host: usize) -> Option<Did> {
    let accounts = net.hosts[host].books.accounts.iter();
    let active: Vec<_> = accounts
        .filter(|(did, held)| held.status.is_active() && !held.forgotten && net.is_home(host, did))
        .map(|(did, _)| did.clone())
        .collect();
    (!active.is_empty()).then(|| active[world.host_rng.index(active.len())].clone())
}

fn add_account(world: &mut World, net: &mut Network, oracle: &mut Oracle, host: usize) {
    let number = oracle.next_account();
    let account = SimAccount::new(number, world.now);
    let document = Document {
        key: account.key().to_did_key(),
        host: net.hosts[host].name.clone(),
    };
    let did = net.plc.create(document, world.now);
    let account = account.with_did(did.clone());
    oracle.committed(&account);
    net.hosts[host].books.accounts.insert(
        did.clone(),
        HostAccount {
            account,
            status: AccountStatus::Active,
            blobs: std::collections::BTreeMap::new(),
            forgotten: false,
            written: 0,
            lax: None,
        },
    );
    // The order of the reference PDS.
    net.hosts[host].emit_identity(&did, world.now);
    net.hosts[host].emit_account(&did, world.now);
    commit(world, net, oracle, host, &did, None);
    net.hosts[host].emit_sync(&did, world.now);
}

/// A few writes.
fn writes(world: &mut World, held: &mut HostAccount) -> Vec<Write> {
    let mut writes: Vec<Write> = Vec::new();
    for _ in 0..=world.host_rng.below(3) {
        let paths: Vec<String> = held.account.records().keys().cloned().collect();
        let free: Vec<_> = paths
            .into_iter()
            .filter(|path| writes.iter().all(|(other, _)| other != path))
            .collect();
        held.written += 1;
        let choice = world.host_rng.below(10);
        if !free.is_empty() && (choice < 3 || free.len() > RECORDS_MAX) {
            writes.push((free[world.host_rng.index(free.len())].clone(), None));
            continue;
        }
        // Two records may be the same: the same block under two paths.
        let text = format!("text {}", if choice == 9 { 0 } else { held.written });
        let record = if choice < 5 {
            record_with_blob(world, held, &text)
        } else {
            post(&text)
        };
        let path = if choice < 7 || free.is_empty() {
            let collection =
                ["app.bsky.feed.post", "app.bsky.feed.like", "com.example-a.post"][world.host_rng.index(3)];
            format!("{collection}/k{}", held.written)
        } else {
            free[world.host_rng.index(free.len())].clone()
        };
        writes.push((path, Some(record)));
    }
    writes
}

fn record_with_blob(world: &mut World, held: &mut HostAccount, text: &str) -> Vec<u8> {
    // One blob of a few, so that several records share one.
    let bytes = format!("blob {} of {}", world.host_rng.below(4), held.account.did()).into_bytes();
    let cid = Cid::of_blob(&bytes);
    let given = if world.strikes(Fault::BlobMissing, 150) {
        BlobGiven::Missing
    } else if world.strikes(Fault::BlobWrong, 150) {
        BlobGiven::Wrong
    } else if world.strikes(Fault::BlobLate, 150) {
        BlobGiven::Late(world.now.plus(world.host_rng.millis(1_000, 600_000)))
    } else {
        BlobGiven::Whole
    };
    let size = bytes.len() as u64;
    held.blobs
        .entry(*cid.digest())
        .or_insert(SimBlob { bytes, given });
    post_with_blob(text, &cid, size)
}

/// A commit of an account, with a flaw in its frame or none. False if the flaw did not fit.
pub fn commit(
    world: &mut World,
    net: &mut Network,
    oracle: &mut Oracle,
    host: usize,
    did: &Did,
    flaw: Option<Fault>,
) -> bool {
    let pds = &mut net.hosts[host];
    let Some(held) = pds.books.accounts.get_mut(did) else {
        return false;
    };
    let writes = writes(world, held);
    let (before, now) = (held.clone(), world.now);
    let parts = held.account.write(&writes, now);
    held.lax = None;
    let gap = if world.host_rng.chance(200) {
        world.host_rng.below(5)
    } else {
        0
    };
    let seq = pds.take_seq(gap);
    let frame = match flaw {
        None => Some(parts.frame(seq, now)),
        Some(flaw) => flaws::spoil(flaw, parts.clone(), seq, now, &mut world.host_rng),
    };
    let held = pds.books.accounts.get_mut(did).expect("it was there");
    let Some(frame) = frame else {
        *held = before;
        return false;
    };
    oracle.committed(&held.account);
    if let Some(flaw) = flaw {
        world.fire(flaw);
    }
    if flaw.is_none() && world.strikes(Fault::SwallowedFrame, 40) {
        return true;
    }
    let rev = parts.rev;
    world
        .trace
        .say(|| format!("{} {seq} commit {did} {rev} {flaw:?}", pds.name));
    pds.emit(seq, did, Said::Commit(rev), frame);
    true
}

/// A fault of a host. False if it cannot happen now.
fn host_fault(world: &mut World, net: &mut Network, oracle: &mut Oracle, host: usize, fault: Fault) -> bool {
    let Some(did) = some_account(world, net, host) else {
        return false;
    };
    if flaws::OF_FRAMES.contains(&fault) {
        return commit(world, net, oracle, host, &did, Some(fault));
    }
    if flaws::OF_FORGERIES.contains(&fault) || fault == Fault::ForeignAccount {
        return forgery(world, net, host, &did, fault);
    }
    let done = match fault {
        Fault::HostDown => {
            net.hosts[host].down = true;
            let wait = world.host_rng.millis(1_000, 400_000);
            world.after(wait, Event::HostUp { host });
            true
        }
        Fault::OutdatedCursor => {
            let keep = world.host_rng.below(3);
            let books = &mut net.hosts[host].books;
            books.forgotten_to = (books.next_seq - 1).saturating_sub(keep).max(books.forgotten_to);
            true
        }
        Fault::RollbackLoud | Fault::RollbackSilent | Fault::SequenceReset => {
            return go_back(world, net, oracle, host, fault);
        }
        Fault::MassDelete => mass_delete(world, net, oracle, host, &did),
        Fault::RepoNotFound => {
            let held = net.hosts[host]
                .books
                .accounts
                .get_mut(&did)
                .expect("chosen from it");
            held.forgotten = true;
            let wait = world.host_rng.millis(1_000, 900_000);
            world.after(wait, Event::RepoBack { host, did });
            true
        }
        Fault::EmptyList => {
            net.hosts[host].lists_nothing = !net.hosts[host].lists_nothing;
            true
        }
        Fault::ListHalf => {
            net.hosts[host].lists_half = !net.hosts[host].lists_half;
            true
        }
        Fault::Moved | Fault::MovedAway => moves::move_out(world, net, oracle, host, &did, fault),
        Fault::MovedHere => moves::move_in(world, net, oracle, host),
        Fault::LaxTree => lax(world, net, host, &did),
        Fault::Fork => fork(world, net, oracle, host, &did),
        Fault::KeyRotated => rotate(world, net, oracle, host, &did),
        Fault::PlcDown => {
            net.plc.down = true;
            let wait = world.host_rng.millis(5_000, 600_000);
            world.after(wait, Event::PlcUp);
            true
        }
        Fault::Imported => {
            let held = net.hosts[host]
                .books
                .accounts
                .get_mut(&did)
                .expect("chosen from it");
            let writes = writes(world, held);
            held.account.write(&writes, world.now);
            held.lax = None;
            oracle.committed(&held.account);
            net.hosts[host].emit_sync(&did, world.now);
            true
        }
        Fault::Burst => {
            for _ in 0..12 {
                commit(world, net, oracle, host, &did, None);
            }
            true
        }
        Fault::Deactivated => turn_off(world, net, host, &did, AccountStatus::Deactivated),
        Fault::Suspended => turn_off(world, net, host, &did, AccountStatus::Suspended),
        Fault::Takendown => turn_off(world, net, host, &did, AccountStatus::Takendown),
        Fault::UnknownStatus => turn_off(world, net, host, &did, AccountStatus::Other("asleep".to_owned())),
        Fault::Deleted => {
            net.hosts[host].books.log.retain(|event| event.did != did);
            turn_off(world, net, host, &did, AccountStatus::Deleted)
        }
        // The network's and the daemon's own faults strike elsewhere.
        _ => false,
    };
    if done {
        world.fire(fault);
    }
    done
}

fn forgery(world: &mut World, net: &mut Network, host: usize, did: &Did, fault: Fault) -> bool {
    let others = net.hosts.iter().flat_map(|pds| pds.books.accounts.iter());
    let foreign = fault == Fault::ForeignAccount;
    let local = |other: &Did| net.hosts[host].books.accounts.contains_key(other);
    let other = others
        .into_iter()
        .find(|(other, _)| **other != *did && local(other) != foreign);
    let Some((other, held)) = other.map(|(other, held)| (other.clone(), held.clone())) else {
        return false;
    };
    let (owner, account) = if foreign {
        (other.clone(), held.account)
    } else {
        (did.clone(), net.hosts[host].books.accounts[did].account.clone())
    };
    let seq = net.hosts[host].take_seq(0);
    let frame = if foreign {
        account.clone().commit(
            seq,
            &[("app.bsky.feed.post/foreign".to_owned(), Some(post("foreign")))],
            world.now,
        )
    } else {
        flaws::forge(fault, &account, &other, seq, world.now)
    };
    world.fire(fault);
    net.hosts[host].emit(seq, &owner, Said::Nonsense, frame);
    true
}

fn mass_delete(world: &mut World, net: &mut Network, oracle: &mut Oracle, host: usize, did: &Did) -> bool {
    let pds = &mut net.hosts[host];
    let held = pds.books.accounts.get_mut(did).expect("chosen from it");
    let writes: Vec<Write> = held
        .account
        .records()
        .keys()
        .map(|path| (path.clone(), None))
        .collect();
    if writes.len() < 3 {
        return false;
    }
    let parts = held.account.write(&writes, world.now);
    held.lax = None;
    oracle.committed(&held.account);
    let seq = pds.take_seq(0);
    pds.emit(seq, did, Said::Commit(parts.rev), parts.frame(seq, world.now));
    true
}

/// The host puts the records into a tree that does not rebuild, signs that, and perhaps says so. The next write is
/// in a sound tree again.
fn lax(world: &mut World, net: &mut Network, host: usize, did: &Did) -> bool {
    let pds = &mut net.hosts[host];
    let held = pds.books.accounts.get_mut(did).expect("chosen from it");
    let rev = Rev::from_time(world.now, 0);
    // One record alone stands in the same node in every tree.
    if rev <= held.account.rev() || held.account.records().len() < 3 {
        return false;
    }
    let (head, blocks) = held.account.lax_blocks(rev);
    held.lax = Some(Lax { rev, head, blocks });
    if world.host_rng.chance(500) {
        pds.emit_sync(did, world.now);
    }
    true
}

/// The head is replaced by another commit of the same rev. Perhaps nobody is told.
fn fork(world: &mut World, net: &mut Network, oracle: &mut Oracle, host: usize, did: &Did) -> bool {
    let held = net.hosts[host]
        .books
        .accounts
        .get_mut(did)
        .expect("chosen from it");
    let rev = held.account.rev();
    let path = format!("app.bsky.feed.post/fork{}", held.written);
    held.written += 1;
    held.account.write_as(&[(path, Some(post("fork")))], rev);
    held.lax = None;
    oracle.committed(&held.account);
    if world.host_rng.chance(500) {
        net.hosts[host].emit_sync(did, world.now);
    }
    true
}

fn rotate(world: &mut World, net: &mut Network, oracle: &mut Oracle, host: usize, did: &Did) -> bool {
    let pds = &mut net.hosts[host];
    let held = pds.books.accounts.get_mut(did).expect("chosen from it");
    held.account.rotate_key(oracle.next_account());
    let document = Document {
        key: held.account.key().to_did_key(),
        host: pds.name.clone(),
    };
    let stale_until = moves::stale_until(world);
    net.plc.change(did, document, world.now, stale_until);
    pds.emit_identity(did, world.now);
    // The head is still signed by the old key; the next write settles that.
    for _ in 0..=world.host_rng.below(10) {
        commit(world, net, oracle, host, did, None);
    }
    true
}

fn turn_off(world: &mut World, net: &mut Network, host: usize, did: &Did, status: AccountStatus) -> bool {
    let pds = &mut net.hosts[host];
    pds.books.accounts.get_mut(did).expect("chosen from it").status = status;
    pds.emit_account(did, world.now);
    if world.host_rng.chance(700) {
        let wait: Duration = world.host_rng.millis(500, 900_000);
        let did = did.clone();
        world.after(wait, Event::Reactivate { host, did });
    }
    true
}

/// The account becomes active again: what the reference PDS says then.
pub fn reactivate(world: &mut World, net: &mut Network, host: usize, did: &Did) {
    let now = world.now;
    let home = net.is_home(host, did);
    let pds = &mut net.hosts[host];
    let Some(held) = pds.books.accounts.get_mut(did) else {
        return;
    };
    if held.status.is_active() || !home {
        return;
    }
    held.status = AccountStatus::Active;
    pds.emit_account(did, now);
    pds.emit_identity(did, now);
    pds.emit_sync(did, now);
}

/// The host's numbers go back: with its accounts (an older copy of its disk), or alone.
fn go_back(world: &mut World, net: &mut Network, oracle: &mut Oracle, host: usize, fault: Fault) -> bool {
    let pds = &mut net.hosts[host];
    let last = pds.last_seq();
    if fault == Fault::SequenceReset {
        pds.books.log.clear();
        pds.books.next_seq = 1;
        pds.books.forgotten_to = 0;
        world.fire(fault);
    } else {
        let Some(copy) = pds.copy.take().filter(|copy| copy.next_seq <= last) else {
            return false;
        };
        pds.books = copy;
    }
    (pds.went_back, pds.went_back_now) = (true, true);
    if fault == Fault::RollbackSilent {
        // Its users are quick: the numbers pass where they were before anybody connects.
        for _ in 0..60 {
            if net.hosts[host].last_seq() > last + 1 {
                break;
            }
            let Some(did) = some_account(world, net, host) else {
                break;
            };
            commit(world, net, oracle, host, &did, None);
        }
    }
    true
}

/// Everything outside is whole again. Nobody says what was not said.
pub fn mend(world: &mut World, net: &mut Network) {
    net.plc.mend();
    for pds in &mut net.hosts {
        pds.down = false;
        (pds.lists_nothing, pds.lists_half) = (false, false);
        let mut changed = Vec::new();
        for (did, held) in &mut pds.books.accounts {
            held.forgotten = false;
            // A host that went back signs with the key of that time: the document has to name it.
            let document = net.plc.truth(did);
            let key = held.account.key().to_did_key();
            if document.host == pds.name && document.key != key {
                let host = pds.name.clone();
                net.plc.change(did, Document { key, host }, world.now, None);
                changed.push(did.clone());
            }
        }
        for did in changed {
            pds.emit_identity(&did, world.now);
        }
    }
}
