//! Which rotation key of an account its host cannot have: the one that opens its history, or destroys it.
//!
//! A PDS holds its users' signing keys and one of their rotation keys, so what it can sign proves only that the PDS
//! agrees. A key counts as the owner's alone when it stands above the host's in the list, on no other account of that
//! host, and has done so in every operation that stands for 72 hours: for so long the owner can undo what the host
//! has added. Which key is the host's nobody says: it is any that other accounts of the host have too; where none of
//! the list is, the last one is taken for it, for that is where a PDS puts its own.

use std::collections::BTreeSet;

use super::plc_log::{PlcLog, PlcState, RECOVERY_WINDOW};
use crate::types::Timestamp;

/// Why a rotation key is not known to be the owner's alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Weak {
    /// The DID was given up, or the key is none of its rotation keys.
    #[error("the key is not among the account's rotation keys")]
    NotThere,
    /// Another account of the host has it.
    #[error("another account of this host has the same key, so the host may hold it")]
    Shared,
    /// It does not stand above the host's.
    #[error("the key does not stand above the host's in the list of rotation keys")]
    NotAbove,
    /// It has not stood there for long enough.
    #[error("the key has stood there for less than 72 hours, within which it can still be undone")]
    Young,
}

/// Whether a rotation key, as `did:key`, is the owner's alone. `others`: the rotation keys of other accounts of the
/// same host.
///
/// # Errors
/// Why it is not known to be.
pub fn owners_alone(log: &PlcLog, key: &str, others: &BTreeSet<String>, now: Timestamp) -> Result<(), Weak> {
    let current = log.current().ok_or(Weak::NotThere)?;
    stands(current, key, others)?;
    // Back to the first operation since which nothing was different.
    let mut since = None;
    for entry in log.entries().iter().rev().filter(|entry| !entry.nullified) {
        let held = entry
            .state
            .as_ref()
            .is_some_and(|state| stands(state, key, others).is_ok());
        if !held {
            break;
        }
        since = Some(entry.created_at);
    }
    let old = since.is_some_and(|since| now.since(since) >= RECOVERY_WINDOW);
    old.then_some(()).ok_or(Weak::Young)
}

fn stands(state: &PlcState, key: &str, others: &BTreeSet<String>) -> Result<(), Weak> {
    let keys = &state.rotation_keys;
    let place = keys.iter().position(|other| other == key).ok_or(Weak::NotThere)?;
    if others.contains(key) {
        return Err(Weak::Shared);
    }
    let hosts = keys
        .iter()
        .position(|other| others.contains(other))
        .unwrap_or(keys.len() - 1);
    (place < hosts).then_some(()).ok_or(Weak::NotAbove)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::plc_log::fixtures::{LogMaker, key};
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);
    /// The host's key in these tests, and one of the owner.
    const HOST: u8 = 3;
    const OWNER: u8 = 1;

    fn log(steps: &[(u32, &[u8], u8)]) -> PlcLog {
        let mut log = LogMaker::new(NOW);
        let mut hours = 0;
        for (at, keys, signer) in steps {
            log.later(HOUR * (at - hours));
            hours = *at;
            let prev = (hours > 0).then(|| log.last_cid());
            log.push(
                LogMaker::operation(keys, &key(10), "pds.test", prev.as_deref()),
                *signer,
            );
        }
        PlcLog::parse(&log.did(), &log.answer()).expect("verifies")
    }

    fn others() -> BTreeSet<String> {
        BTreeSet::from([key(HOST), key(9)])
    }

    fn at(hours: u32) -> Timestamp {
        NOW.plus(HOUR * hours)
    }

    #[test]
    fn an_old_key_above_the_hosts_is_the_owners() {
        let log = log(&[(0, &[OWNER, HOST], HOST)]);
        for (key, hours, want) in [
            (key(OWNER), 72, Ok(())),
            (key(OWNER), 71, Err(Weak::Young)),
            (key(HOST), 1000, Err(Weak::Shared)),
            (key(7), 1000, Err(Weak::NotThere)),
        ] {
            assert_eq!(owners_alone(&log, &key, &others(), at(hours)), want);
        }
    }

    #[test]
    fn the_host_that_adds_a_key_and_asks_at_once_gets_nothing() {
        // It signs with the key that it holds, and puts a fresh one above everything.
        let log = log(&[(0, &[OWNER, HOST], HOST), (1000, &[5, OWNER, HOST], HOST)]);
        assert_eq!(owners_alone(&log, &key(5), &others(), at(1000)), Err(Weak::Young));
        assert_eq!(owners_alone(&log, &key(5), &others(), at(1071)), Err(Weak::Young));
        assert_eq!(owners_alone(&log, &key(5), &others(), at(1072)), Ok(()));
        // The owner's goes on to count meanwhile.
        assert_eq!(owners_alone(&log, &key(OWNER), &others(), at(1000)), Ok(()));
    }

    #[test]
    fn what_the_owner_undid_never_counts() {
        let mut made = LogMaker::new(NOW);
        made.push(
            LogMaker::operation(&[OWNER, HOST], &key(10), "pds.test", None),
            HOST,
        );
        let first = made.last_cid();
        made.later(HOUR * 1000);
        made.push(
            LogMaker::operation(&[5, OWNER, HOST], &key(10), "pds.test", Some(&first)),
            HOST,
        );
        made.later(HOUR);
        made.push(
            LogMaker::operation(&[OWNER, HOST], &key(10), "pds.test", Some(&first)),
            OWNER,
        );
        made.entries[1]["nullified"] = true.into();
        let log = PlcLog::parse(&made.did(), &made.answer()).expect("verifies");
        assert_eq!(
            owners_alone(&log, &key(5), &others(), at(5000)),
            Err(Weak::NotThere)
        );
        assert_eq!(owners_alone(&log, &key(OWNER), &others(), at(5000)), Ok(()));
    }

    #[test]
    fn a_key_that_rose_is_as_young_as_its_rise() {
        let log = log(&[(0, &[HOST, 5], HOST), (1000, &[5, HOST], HOST)]);
        assert_eq!(owners_alone(&log, &key(5), &others(), at(1001)), Err(Weak::Young));
        assert_eq!(owners_alone(&log, &key(5), &others(), at(1072)), Ok(()));
        // And one that was away in between.
        let log = super::tests::log(&[
            (0, &[5, HOST], HOST),
            (900, &[HOST], HOST),
            (1000, &[5, HOST], HOST),
        ]);
        assert_eq!(owners_alone(&log, &key(5), &others(), at(1001)), Err(Weak::Young));
    }

    #[test]
    fn where_no_key_is_shared_the_last_one_is_the_hosts() {
        let none = BTreeSet::new();
        let log = log(&[(0, &[OWNER, HOST], HOST)]);
        assert_eq!(owners_alone(&log, &key(OWNER), &none, at(100)), Ok(()));
        assert_eq!(
            owners_alone(&log, &key(HOST), &none, at(100)),
            Err(Weak::NotAbove)
        );
        let only = super::tests::log(&[(0, &[OWNER], OWNER)]);
        assert_eq!(
            owners_alone(&only, &key(OWNER), &none, at(100)),
            Err(Weak::NotAbove)
        );
        // A host that puts a second key of its own above, on every account.
        let both = super::tests::log(&[(0, &[9, HOST], HOST)]);
        assert_eq!(
            owners_alone(&both, &key(9), &others(), at(100)),
            Err(Weak::Shared)
        );
        // Below the host's.
        let below = super::tests::log(&[(0, &[HOST, OWNER], HOST)]);
        assert_eq!(
            owners_alone(&below, &key(OWNER), &others(), at(100)),
            Err(Weak::NotAbove)
        );
    }
}
