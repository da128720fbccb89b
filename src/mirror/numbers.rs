//! Numbers of accounts: given out once, never again.
//!
//! Reserved in blocks, each in a synced batch before the first number of it is used, so that a crash wastes
//! numbers and never repeats one. A fetch takes its own number without asking the applier.

use std::sync::{Arc, Mutex, PoisonError};

use super::keyspace::{META_NEXT_NUMBER, encode_number};
use super::reader::Mirror;
use super::store::{Batch, Family, Store, StoreError};

/// How many numbers one synced batch reserves.
pub const BLOCK: u64 = 1024;

/// Gives out DID numbers and account numbers.
pub struct Numbers {
    store: Arc<dyn Store>,
    state: Mutex<State>,
}

struct State {
    next: u64,
    reserved: u64,
}

impl Numbers {
    /// Goes on after the last reserved block.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let next = Mirror::new(&*store).number(META_NEXT_NUMBER)?.unwrap_or(1);
        Ok(Self {
            store,
            state: Mutex::new(State { next, reserved: next }),
        })
    }

    /// A number that nobody had before.
    ///
    /// # Errors
    /// When a new block cannot be reserved.
    pub fn next(&self) -> Result<u64, StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.next == state.reserved {
            let reserved = state.next + BLOCK;
            let mut batch = Batch::new();
            batch.put(Family::Meta, META_NEXT_NUMBER, encode_number(reserved));
            self.store.write_durable(batch)?.into_inner();
            state.reserved = reserved;
        }
        let number = state.next;
        state.next += 1;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryStore;
    use super::*;

    #[test]
    fn numbers_are_never_given_out_twice() -> Result<(), StoreError> {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let numbers = Numbers::open(Arc::clone(&store))?;
            for _ in 0..=BLOCK {
                assert!(seen.insert(numbers.next()?));
            }
        }
        assert!(!seen.contains(&0), "0 is nobody's");
        Ok(())
    }
}
