//! The records of one collection, forwards and backwards, and which collections there are.

use std::ops::ControlFlow;

use super::{Mirror, decode_key, decode_record};
use crate::mirror::keyspace;
use crate::mirror::rows::RecordValue;
use crate::mirror::store::{Family, KeyRange, StoreError};

/// Which way records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Rising keys.
    Rising,
    /// Falling keys.
    Falling,
}

impl Mirror<'_> {
    /// Visits the records of a collection, those behind `after` in this direction: `(path, record)`.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn scan_collection(
        &self,
        account_number: u64,
        collection: &str,
        after: Option<&str>,
        direction: Direction,
        mut visit: impl FnMut(&[u8], RecordValue<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut range = keyspace::collection_range(account_number, collection);
        if let Some(after) = after {
            let key = keyspace::encode_record(account_number, format!("{collection}/{after}").as_bytes());
            range = match direction {
                Direction::Rising => range.after(&key),
                Direction::Falling if range.to().is_some_and(|to| key.as_slice() >= to) => range,
                Direction::Falling => KeyRange::new(range.from(), key),
            };
        }
        let mut failed = Ok(());
        let mut each = |key: &[u8], value: &[u8]| {
            let row = decode_key(Family::Records, key, keyspace::split_record)
                .and_then(|(_, path)| Ok((path, decode_record(key, value)?)));
            match row {
                Ok((path, record)) => visit(path, record),
                Err(error) => {
                    failed = Err(error);
                    ControlFlow::Break(())
                }
            }
        };
        match direction {
            Direction::Rising => self.0.scan(Family::Records, &range, &mut each)?,
            Direction::Falling => self.0.scan_reverse(Family::Records, &range, &mut each)?,
        }
        failed
    }

    /// The collections that a generation has records of, in their order, at most `limit`: one seek each.
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn collections(&self, account_number: u64, limit: usize) -> Result<Vec<String>, StoreError> {
        let mut collections: Vec<String> = Vec::new();
        let mut next = Some(keyspace::number_range(account_number));
        while collections.len() < limit
            && let Some(range) = next.take()
        {
            self.each(Family::Records, &range, |key, _| {
                let (_, path) = decode_key(Family::Records, key, keyspace::decode_record)?;
                let past = keyspace::collection_range(account_number, path.collection());
                let rest = past
                    .to()
                    .map(|to| keyspace::number_range(account_number).starting_at(to));
                next = rest.filter(|rest| !rest.is_empty());
                collections.push(path.collection().to_owned());
                Ok(ControlFlow::Break(()))
            })?;
        }
        Ok(collections)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::memory::MemoryStore;
    use crate::mirror::{Batch, Store as _};
    use crate::types::cid::sha256;
    use crate::types::{Rev, Timestamp};

    fn store() -> MemoryStore {
        let store = MemoryStore::new();
        let mut batch = Batch::new();
        for (number, path) in [
            (7, "com.a.b/1"),
            (7, "com.a.b/2"),
            (7, "com.a.b/3"),
            (7, "com.a.b-c.d/1"),
            (7, "com.a.bb/9"),
            (8, "com.a.b/4"),
        ] {
            let value = RecordValue {
                rev: Rev::from_time(Timestamp::from_micros(1), 0),
                digest: sha256(b"x"),
                bytes: b"x",
            };
            batch.put(
                Family::Records,
                keyspace::encode_record(number, path.as_bytes()),
                value.encode(),
            );
        }
        store.write(batch).expect("written");
        store
    }

    #[test]
    fn a_collection_is_read_both_ways_from_any_place() {
        let store = store();
        let read = |collection: &str, after: Option<&str>, direction| {
            let mut paths = Vec::new();
            Mirror::new(&store)
                .scan_collection(7, collection, after, direction, |path, _| {
                    paths.push(String::from_utf8(path.to_vec()).expect("ASCII"));
                    ControlFlow::Continue(())
                })
                .expect("read");
            paths
        };
        use Direction::{Falling, Rising};
        assert_eq!(
            read("com.a.b", None, Rising),
            ["com.a.b/1", "com.a.b/2", "com.a.b/3"]
        );
        assert_eq!(
            read("com.a.b", None, Falling),
            ["com.a.b/3", "com.a.b/2", "com.a.b/1"]
        );
        assert_eq!(read("com.a.b", Some("1"), Rising), ["com.a.b/2", "com.a.b/3"]);
        assert_eq!(read("com.a.b", Some("3"), Falling), ["com.a.b/2", "com.a.b/1"]);
        assert_eq!(read("com.a.b", Some("25"), Falling), ["com.a.b/2", "com.a.b/1"]);
        assert!(read("com.a.b", Some("1"), Falling).is_empty());
        assert!(read("com.a.b", Some("9"), Rising).is_empty());
        assert_eq!(read("com.a.b", Some("~~~~"), Falling).len(), 3);
        assert!(read("com.a.c", None, Rising).is_empty());
    }

    #[test]
    fn each_collection_is_named_once_in_order() {
        let store = store();
        let mirror = Mirror::new(&store);
        let all = mirror.collections(7, 10).expect("read");
        assert_eq!(all, ["com.a.b-c.d", "com.a.b", "com.a.bb"]);
        assert_eq!(mirror.collections(7, 2).expect("read").len(), 2);
        assert!(mirror.collections(9, 2).expect("read").is_empty());
    }
}
