//! What the mirror needs of a storage engine: ordered byte keys in a few families, atomic batches over all
//! of them, range scans, consistent read views and a sorted bulk load.
//!
//! Two engines stand behind [`Store`]: [`super::memory::MemoryStore`], the model, and `super::rocks`,
//! RocksDB. One suite of contract tests runs against both (`store/tests.rs`). All calls block and none is
//! async: the applier owns a thread.
//!
//! Durability, in one sentence each: [`Store::write`] puts a batch into the log and does not sync it;
//! [`Store::write_durable`] syncs it **and everything written before it**. After a crash every batch up to
//! the last synced one is there, whole; of the batches written after it, some may be there, each whole or
//! not at all. So whatever must not get lost, and whatever names something that must be there, goes through
//! `write_durable`, whose [`Durable`] is the proof that a promise to the outside may be made.

use std::ops::ControlFlow;

mod error;

pub use error::StoreError;

/// The version of the mirror's format: what the rows and keys mean. Raised with every change that an
/// older binary would misread; kept in the `meta` family and checked by [`check_format`] at each open.
pub const FORMAT_VERSION: u64 = 1;

/// Name of the `meta` row that holds [`FORMAT_VERSION`].
pub const META_VERSION: &[u8] = b"version";

/// The families (key spaces) of the mirror; `keyspace` says what their keys are, `rows` their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Numbers of the whole mirror: format version, next number, archive id.
    Meta,
    /// One row a followed host.
    Hosts,
    /// One row an account.
    Accounts,
    /// The records of every generation of every account, in tree order.
    Records,
    /// Frames that wait for a key or a fetch.
    Parked,
    /// Applied commits that no uploaded snapshot covers yet.
    Journal,
    /// What the next archive segments hold.
    Outbox,
    /// Which record refers to which blob.
    BlobRefs,
    /// What is known of each blob.
    Blobs,
    /// Blob bytes, and CARs that are kept as they came, in chunks.
    BlobData,
    /// Work that is due at a time.
    Tasks,
    /// What an operator should look at.
    Alarms,
}

impl Family {
    /// Every family, in the order of their declaration.
    pub const ALL: [Self; 12] = [
        Self::Meta,
        Self::Hosts,
        Self::Accounts,
        Self::Records,
        Self::Parked,
        Self::Journal,
        Self::Outbox,
        Self::BlobRefs,
        Self::Blobs,
        Self::BlobData,
        Self::Tasks,
        Self::Alarms,
    ];

    /// The name on disk. Persisted: keep stable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Hosts => "hosts",
            Self::Accounts => "accounts",
            Self::Records => "records",
            Self::Parked => "parked",
            Self::Journal => "journal",
            Self::Outbox => "outbox",
            Self::BlobRefs => "blob_refs",
            Self::Blobs => "blobs",
            Self::BlobData => "blob_data",
            Self::Tasks => "tasks",
            Self::Alarms => "alarms",
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A range of keys, from one key (inclusive) to another (exclusive) or to the end of the family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    from: Vec<u8>,
    to: Option<Vec<u8>>,
}

impl KeyRange {
    /// The whole family.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            from: Vec::new(),
            to: None,
        }
    }

    /// `from <= key < to`; empty when `from >= to`.
    #[must_use]
    pub fn new(from: impl Into<Vec<u8>>, to: impl Into<Vec<u8>>) -> Self {
        Self {
            from: from.into(),
            to: Some(to.into()),
        }
    }

    /// Every key that begins with these bytes.
    #[must_use]
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let from = prefix.into();
        let to = successor(&from);
        Self { from, to }
    }

    /// This range without the keys below `key`: to begin, or go on, in the middle.
    #[must_use]
    pub fn starting_at(mut self, key: &[u8]) -> Self {
        if key > self.from.as_slice() {
            self.from = key.to_vec();
        }
        self
    }

    /// This range without `key` and the keys below it: the next page.
    #[must_use]
    pub fn after(self, key: &[u8]) -> Self {
        let mut next = Vec::with_capacity(key.len() + 1);
        next.extend_from_slice(key);
        next.push(0);
        self.starting_at(&next)
    }

    /// The first key that may be in it.
    #[must_use]
    pub fn from(&self) -> &[u8] {
        &self.from
    }

    /// The first key that is past it; `None` where it runs to the end of the family.
    #[must_use]
    pub fn to(&self) -> Option<&[u8]> {
        self.to.as_deref()
    }

    /// Whether no key can be in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.to.as_ref().is_some_and(|to| self.from >= *to)
    }

    /// Whether all keys that can be in it begin with the same `bytes` bytes.
    #[must_use]
    pub fn within_prefix(&self, bytes: usize) -> bool {
        let Some(prefix) = self.from.get(..bytes) else {
            return false;
        };
        match (&self.to, successor(prefix)) {
            (Some(to), Some(end)) => *to <= end,
            (_, None) => true,
            (None, Some(_)) => false,
        }
    }

    /// Whether a key is in it.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.from.as_slice() && self.to.as_ref().is_none_or(|to| key < to.as_slice())
    }
}

/// The least key above every key with this prefix; none when there is no such key (empty, or all 0xff).
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut next = prefix[..=last].to_vec();
    next[last] += 1;
    Some(next)
}

/// One change of a [`Batch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::mirror) enum Op {
    Put {
        family: Family,
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        family: Family,
        key: Vec<u8>,
    },
    DeleteRange {
        family: Family,
        from: Vec<u8>,
        to: Vec<u8>,
    },
}

/// Changes that happen together or not at all, in any families; a later one overrides an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    ops: Vec<Op>,
    bytes: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            ops: Vec::new(),
            bytes: 0,
        }
    }

    /// Sets a row.
    pub fn put(&mut self, family: Family, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let (key, value) = (key.into(), value.into());
        self.bytes += key.len() + value.len();
        self.ops.push(Op::Put { family, key, value });
    }

    /// Removes a row; nothing happens if there is none.
    pub fn delete(&mut self, family: Family, key: impl Into<Vec<u8>>) {
        let key = key.into();
        self.bytes += key.len();
        self.ops.push(Op::Delete { family, key });
    }

    /// Removes every row with `from <= key < to`: nothing when `from >= to`. Meant for large ranges (a
    /// whole generation of an account); a few rows are cheaper one by one.
    pub fn delete_range(&mut self, family: Family, from: impl Into<Vec<u8>>, to: impl Into<Vec<u8>>) {
        let (from, to) = (from.into(), to.into());
        if from < to {
            self.bytes += from.len() + to.len();
            self.ops.push(Op::DeleteRange { family, from, to });
        }
    }

    /// Adds the changes of another batch after these.
    pub fn append(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.ops.extend(other.ops);
    }

    /// Bytes of keys and values in it: what it will cost in the log, and in memory until it is written.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many changes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub(in crate::mirror) fn into_ops(self) -> Vec<Op> {
        self.ops
    }
}

/// Told of each row by a scan, in key order: key, value. `Break` ends the scan.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Reads. A [`Store`] reads what is written now; a view from [`Store::view`] reads one moment.
pub trait View {
    /// The value of a row.
    ///
    /// # Errors
    /// When the engine cannot read.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits the rows of a range in ascending key order, until it ends or `visit` breaks. One scan sees
    /// one moment.
    ///
    /// # Errors
    /// When the engine cannot read; rows before the bad place have been visited by then.
    fn scan(&self, family: Family, range: &KeyRange, visit: &mut Visit<'_>) -> Result<(), StoreError>;

    /// As [`View::scan`], in descending key order.
    ///
    /// # Errors
    /// As [`View::scan`].
    fn scan_reverse(&self, family: Family, range: &KeyRange, visit: &mut Visit<'_>)
    -> Result<(), StoreError>;
}

/// A storage engine. See the module's text for what is durable when.
pub trait Store: View + Send + Sync + 'static {
    /// Writes a batch: atomic, visible at once, in the log, not yet synced.
    ///
    /// # Errors
    /// When the engine cannot write; nothing of the batch is visible then.
    fn write(&self, batch: Batch) -> Result<(), StoreError>;

    /// Writes a batch and syncs it with everything written before it. An empty batch just syncs.
    ///
    /// # Errors
    /// As [`Store::write`]. After a failed sync nobody knows what the disk holds: the engine refuses further
    /// writes, and the process has to end and recover from its log.
    fn write_durable(&self, batch: Batch) -> Result<Durable<()>, StoreError>;

    /// A view of this moment, unmoved by later writes. Short-lived: the engine keeps what it refers to.
    fn view(&self) -> Box<dyn View + '_>;

    /// Loads rows that arrive in strictly ascending key order into a part of a family that holds none, all
    /// or nothing; durable when it returns. Returns how many. For large loads: a few thousand rows cost
    /// less as ordinary batches.
    ///
    /// # Errors
    /// [`StoreError::Unsorted`], [`StoreError::NotEmpty`], or as [`Store::write`]. Nothing is loaded then.
    fn bulk_load(
        &self,
        family: Family,
        rows: &mut dyn Iterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<u64, StoreError>;

    /// Rewrites a range so that the values of deleted and overwritten rows in it are off the disk when this
    /// returns, those in the log included (their keys at the next start at the latest). Views that still see
    /// such a row keep it: they must have been dropped.
    ///
    /// # Errors
    /// As [`Store::write`].
    fn compact_range(&self, family: Family, range: &KeyRange) -> Result<(), StoreError>;

    /// What it uses and how it fares; cheap enough for every metrics scrape.
    fn stats(&self) -> StoreStats;
}

/// A value that is true on disk: synced, with everything written before it. Only a store makes one, so
/// a function that tells the outside something takes the proof as an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable<T>(T);

impl Durable<()> {
    /// For the engines alone, after the sync.
    pub(in crate::mirror) const fn synced() -> Self {
        Self(())
    }
}

impl<T> Durable<T> {
    /// Says of another value that it was part of what is durable here. The caller vouches that it was
    /// written no later than the batch that this came from.
    pub fn with<U>(self, value: U) -> Durable<U> {
        Durable(value)
    }

    /// The value.
    pub const fn get(&self) -> &T {
        &self.0
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.0
    }
}

/// Sizes and health of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Bytes of data files (rows and blobs), without the log.
    pub disk_bytes: u64,
    /// Bytes of memory in caches and write buffers.
    pub memory_bytes: u64,
    /// Bytes that are waiting to be compacted.
    pub compaction_debt_bytes: u64,
    /// Whether writes are slowed down or stopped just now.
    pub stalled: bool,
    /// Failures of background work since the start.
    pub background_errors: u64,
}

/// What to do about the format of a store that is being opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// It is new: write [`META_VERSION`].
    Fresh,
    /// It is of this version.
    Current,
}

/// Judges the version row of a store at `path`; `has_rows` tells whether any other row exists.
///
/// # Errors
/// [`StoreError::Newer`] when a newer Firekeep wrote it, [`StoreError::Corrupt`] when the row is unreadable,
/// or missing from a store that holds something.
pub fn check_format(
    path: &std::path::Path,
    version: Option<&[u8]>,
    has_rows: bool,
) -> Result<Format, StoreError> {
    let corrupt = |detail: String| {
        Err(StoreError::Corrupt {
            path: path.to_owned(),
            detail,
        })
    };
    let Some(bytes) = version else {
        if has_rows {
            return corrupt("it has rows, but no row that says which format they are in".to_owned());
        }
        return Ok(Format::Fresh);
    };
    let Ok(bytes) = <[u8; 8]>::try_from(bytes) else {
        return corrupt(format!("its format row is {} bytes long, not 8", bytes.len()));
    };
    match u64::from_be_bytes(bytes) {
        0 => corrupt("its format row says 0, which never was a format".to_owned()),
        FORMAT_VERSION => Ok(Format::Current),
        found => Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            supported: FORMAT_VERSION,
        }),
    }
}

#[cfg(test)]
mod tests;
