//! The model: a store in memory, a sorted map a family. It says what RocksDB has to do, and it is what the
//! simulation runs on, for it can crash: [`MemoryStore::crash`] forgets batches that were not synced, and
//! [`MemoryStore::lose_power_after`] chooses the batch at which the power goes.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::store::{Batch, Durable, Family, KeyRange, Op, Store, StoreError, StoreStats, View, Visit};

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// A store that lives and dies with the process. Clones of the handle share the rows.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    rows: Families,
    /// What undoes each batch that is not synced, oldest first.
    unsynced: Vec<Undo>,
    /// How many more batches are written before the power goes.
    power: Option<u64>,
}

impl State {
    /// Writes a batch, or fails because the power is gone.
    fn apply(&mut self, batch: Batch) -> Result<Undo, StoreError> {
        match &mut self.power {
            Some(0) => {
                return Err(StoreError::Failed {
                    path: PathBuf::from("memory"),
                    detail: "the power is gone".to_owned(),
                });
            }
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(self.rows.apply(batch))
    }
}

/// The rows of every family. Shared with views, and copied by a write while one is open.
#[derive(Debug, Clone, Default)]
struct Families(BTreeMap<Family, Arc<Rows>>);

/// Rows as they were before a batch, in the order in which the batch changed them.
type Undo = Vec<(Family, Vec<u8>, Option<Vec<u8>>)>;

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many batches would be lost if the power went now.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.lock().unsynced.len()
    }

    /// The power goes: of the batches that are not synced the first `keep` survive, the others never
    /// happened. Returns how many were lost. What is left counts as synced: it was read back from the disk.
    pub fn crash(&self, keep: usize) -> usize {
        let mut state = self.lock();
        let keep = keep.min(state.unsynced.len());
        let lost = state.unsynced.split_off(keep);
        for (family, key, before) in lost.iter().rev().flat_map(|undo| undo.iter().rev()) {
            state.rows.set(*family, key.clone(), before.clone());
        }
        state.unsynced.clear();
        state.power = None;
        lost.len()
    }

    /// The power goes after this many more batches: each later one fails, until [`MemoryStore::crash`].
    pub fn lose_power_after(&self, batches: u64) {
        self.lock().power = Some(batches);
    }

    /// Whether the power is gone.
    #[must_use]
    pub fn is_without_power(&self) -> bool {
        self.lock().power == Some(0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding the lock")
    }
}

impl Families {
    fn set(&mut self, family: Family, key: Vec<u8>, value: Option<Vec<u8>>) -> Option<Vec<u8>> {
        let rows = Arc::make_mut(self.0.entry(family).or_default());
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        }
    }

    fn apply(&mut self, batch: Batch) -> Undo {
        let mut undo = Undo::new();
        for op in batch.into_ops() {
            match op {
                Op::Put { family, key, value } => {
                    let before = self.set(family, key.clone(), Some(value));
                    undo.push((family, key, before));
                }
                Op::Delete { family, key } => {
                    let before = self.set(family, key.clone(), None);
                    undo.push((family, key, before));
                }
                Op::DeleteRange { family, from, to } => {
                    let range = KeyRange::new(from, to);
                    let keys: Vec<_> = self.range(family, &range).map(|(key, _)| key.clone()).collect();
                    for key in keys {
                        let before = self.set(family, key.clone(), None);
                        undo.push((family, key, before));
                    }
                }
            }
        }
        undo
    }

    fn get(&self, family: Family, key: &[u8]) -> Option<&Vec<u8>> {
        self.0.get(&family)?.get(key)
    }

    fn range(
        &self,
        family: Family,
        range: &KeyRange,
    ) -> impl DoubleEndedIterator<Item = (&Vec<u8>, &Vec<u8>)> {
        let to = range.to().map_or(Bound::Unbounded, Bound::Excluded);
        let bounds = (Bound::Included(range.from()), to);
        let rows = self.0.get(&family).filter(|_| !range.is_empty());
        rows.into_iter()
            .flat_map(move |rows| rows.range::<[u8], _>(bounds))
    }
}

fn visit_all<'r>(rows: impl Iterator<Item = (&'r Vec<u8>, &'r Vec<u8>)>, visit: &mut Visit<'_>) {
    for (key, value) in rows {
        if visit(key, value).is_break() {
            return;
        }
    }
}

impl View for Families {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(Self::get(self, family, key).cloned())
    }

    fn scan(&self, family: Family, range: &KeyRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        visit_all(self.range(family, range), visit);
        Ok(())
    }

    fn scan_reverse(
        &self,
        family: Family,
        range: &KeyRange,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        visit_all(self.range(family, range).rev(), visit);
        Ok(())
    }
}

impl View for MemoryStore {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.lock().rows.get(family, key).cloned())
    }

    // A visitor may call the store, so the lock is not held while it runs.
    fn scan(&self, family: Family, range: &KeyRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let moment = self.lock().rows.clone();
        moment.scan(family, range, visit)
    }

    fn scan_reverse(
        &self,
        family: Family,
        range: &KeyRange,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        let moment = self.lock().rows.clone();
        moment.scan_reverse(family, range, visit)
    }
}

impl Store for MemoryStore {
    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let mut state = self.lock();
        let undo = state.apply(batch)?;
        state.unsynced.push(undo);
        Ok(())
    }

    fn write_durable(&self, batch: Batch) -> Result<Durable<()>, StoreError> {
        let mut state = self.lock();
        state.apply(batch)?;
        state.unsynced.clear();
        Ok(Durable::synced())
    }

    fn view(&self) -> Box<dyn View + '_> {
        Box::new(self.lock().rows.clone())
    }

    fn bulk_load(
        &self,
        family: Family,
        rows: &mut dyn Iterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<u64, StoreError> {
        let mut batch = Batch::new();
        let mut last: Option<Vec<u8>> = None;
        let mut old: Option<Option<Vec<u8>>> = None;
        for (row, (key, value)) in (0u64..).zip(rows) {
            if last.as_ref().is_some_and(|last| key <= *last) {
                return Err(StoreError::Unsorted { family, row });
            }
            let old = match &old {
                Some(old) => old,
                None => old.insert(self.next_key(family, &key)),
            };
            if old.as_ref().is_some_and(|old| key >= *old) {
                return Err(StoreError::NotEmpty { family, row });
            }
            last = Some(key.clone());
            batch.put(family, key, value);
        }
        let loaded = batch.len() as u64;
        self.write_durable(batch)
            .map(|durable| durable.with(loaded).into_inner())
    }

    fn compact_range(&self, _: Family, _: &KeyRange) -> Result<(), StoreError> {
        Ok(())
    }

    fn stats(&self) -> StoreStats {
        let state = self.lock();
        let rows = state.rows.0.values().flat_map(|rows| rows.iter());
        let bytes = rows.map(|(key, value)| (key.len() + value.len()) as u64).sum();
        StoreStats {
            memory_bytes: bytes,
            ..StoreStats::default()
        }
    }
}

impl MemoryStore {
    /// The first key that is there at or above `key`.
    fn next_key(&self, family: Family, key: &[u8]) -> Option<Vec<u8>> {
        let above = KeyRange::all().starting_at(key);
        let state = self.lock();
        let next = state.rows.range(family, &above).next();
        next.map(|(key, _)| key.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: &str) -> Batch {
        let mut batch = Batch::new();
        batch.put(Family::Meta, "key", value);
        batch
    }

    fn get(store: &MemoryStore) -> Option<String> {
        let value = View::get(store, Family::Meta, b"key").expect("memory");
        value.map(|value| String::from_utf8(value).expect("text"))
    }

    #[test]
    fn a_crash_drops_a_suffix_of_the_unsynced_batches() {
        for keep in 0..=4 {
            let store = MemoryStore::new();
            store.write(put("lost or not")).expect("memory");
            store.write_durable(put("synced")).expect("memory");
            for value in ["a", "b", "c"] {
                store.write(put(value)).expect("memory");
            }
            assert_eq!(store.unsynced(), 3);
            assert_eq!(store.crash(keep), 3 - keep.min(3));
            let want = ["synced", "a", "b", "c"][keep.min(3)];
            assert_eq!(get(&store).as_deref(), Some(want), "keep {keep}");
            assert_eq!(
                (store.unsynced(), store.crash(0)),
                (0, 0),
                "what survived is on disk"
            );
        }
    }

    #[test]
    fn the_power_goes_at_the_batch_that_was_chosen() {
        let store = MemoryStore::new();
        store.lose_power_after(2);
        store.write_durable(put("first")).expect("power");
        assert!(!store.is_without_power());
        store.write(put("second")).expect("power");
        assert!(store.is_without_power());
        store.write(put("third")).expect_err("no power");
        store.write_durable(put("fourth")).expect_err("no power");
        assert_eq!(get(&store).as_deref(), Some("second"));
        store.crash(0);
        assert_eq!(get(&store).as_deref(), Some("first"));
        store.write(put("fifth")).expect("power again");
    }

    #[test]
    fn a_crash_brings_back_deleted_ranges() {
        let store = MemoryStore::new();
        store.write_durable(put("old")).expect("memory");
        let mut batch = Batch::new();
        batch.put(Family::Meta, "kez", "new");
        batch.delete_range(Family::Meta, "a", "z");
        batch.put(Family::Meta, "key", "new");
        store.write(batch).expect("memory");
        assert_eq!(get(&store).as_deref(), Some("new"));
        store.crash(0);
        assert_eq!(get(&store).as_deref(), Some("old"));
        assert_eq!(View::get(&store, Family::Meta, b"kez"), Ok(None));
    }
}
