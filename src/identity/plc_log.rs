//! The audit log of a `did:plc`: every operation that ever changed it, checked as a whole.
//!
//! A directory is not trusted: the DID is the hash of the first operation, each operation names the one
//! before it by its hash, and each is signed by a rotation key that the one before it grants. So the answer
//! of `/<did>/log/audit` proves itself, but for two things: that it is complete, and its times.
//!
//! A rotation key may undo what a key behind it in the list has signed, for 72 hours: its operation then
//! names an older one, and what lies between is nullified. Nullified operations stay in the log and prove
//! nothing.
//!
//! Source: <https://web.plc.directory/spec/v0.1/did-plc>.

use std::time::Duration;

use serde_json::{Map, Value};

pub use self::change::difference;
use self::operation::{Kind, Operation};
pub use self::operation::{operation_cid, signed_bytes};
use crate::repo::signing_key::SigningKey;
use crate::types::{Cid, Did, DidMethod, Timestamp};

mod change;
#[cfg(any(test, feature = "sim"))]
pub(crate) mod fixtures;
mod operation;
#[cfg(test)]
mod tests;

/// Longest audit log, in bytes of its JSON.
pub const LOG_BYTES_MAX: u64 = 1 << 20;
/// Most operations in a log.
pub const ENTRIES_MAX: usize = 2048;
/// Most rotation keys of one operation. The directory takes fewer; each may have to be tried.
pub const ROTATION_KEYS_MAX: usize = 32;
/// Most other entries (verification methods, services, names) of one operation.
pub const FIELDS_MAX: usize = 256;
/// For so long after an operation may a stronger key undo it.
pub const RECOVERY_WINDOW: Duration = Duration::from_secs(72 * 3600);

/// A log that was checked from the first operation to the last. Only [`PlcLog::parse`] makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct PlcLog {
    did: Did,
    entries: Vec<PlcEntry>,
    /// The entries that count, by index, oldest first. Never empty.
    standing: Vec<usize>,
}

/// One operation of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct PlcEntry {
    /// The hash of the signed operation.
    pub cid: Cid,
    /// The operation as it stands in the log, signature included.
    pub operation: Map<String, Value>,
    /// Whether a later operation undid it.
    pub nullified: bool,
    /// When the directory took it. Nothing proves this.
    pub created_at: Timestamp,
    /// What it makes of the DID; none: it gives the DID up.
    pub state: Option<PlcState>,
    /// The place, from 0, of the key that signed it among the rotation keys of the operation before it.
    pub signer: usize,
}

/// What an operation makes of a DID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlcState {
    /// The keys that may sign the next operation, as `did:key`, the strongest first.
    pub rotation_keys: Vec<String>,
    /// The key that signs commits; none if it names none that is usable.
    pub signing_key: Option<SigningKey>,
    /// The URL of the PDS, as it stands there.
    pub pds: Option<String>,
    /// The handle that it claims.
    pub handle: Option<String>,
}

/// A signing key that a standing operation of a verified log names, and when it was the current one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedKey {
    did: Did,
    key: SigningKey,
    from: Timestamp,
    until: Option<Timestamp>,
}

impl LoggedKey {
    /// Whose.
    #[must_use]
    pub const fn did(&self) -> &Did {
        &self.did
    }
    /// The key.
    #[must_use]
    pub const fn key(&self) -> &SigningKey {
        &self.key
    }
    /// Since when it was current, as far as the directory's times can be trusted.
    #[must_use]
    pub const fn from(&self) -> Timestamp {
        self.from
    }
    /// Until when; none: it still is.
    #[must_use]
    pub const fn until(&self) -> Option<Timestamp> {
        self.until
    }
}

/// Why a log is not accepted: which entry, counted from 0, breaks which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit log does not verify{}: {fault}", .entry.map(|i| format!(" at operation {i}")).unwrap_or_default())]
pub struct PlcLogError {
    /// The entry; none: the log as a whole.
    pub entry: Option<usize>,
    /// The rule.
    pub fault: PlcFault,
}

/// The rules of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum PlcFault {
    /// Only a `did:plc` has a log.
    #[error("not a did:plc")]
    NotPlc,
    /// More than [`LOG_BYTES_MAX`].
    #[error("it is longer than 1 MiB")]
    TooLong,
    /// Not a JSON list.
    #[error("it is not a JSON list")]
    NotAList,
    /// No entry.
    #[error("it is empty")]
    Empty,
    /// More than [`ENTRIES_MAX`] entries.
    #[error("it has more than 2048 operations")]
    TooManyEntries,
    /// An entry lacks `did`, `operation`, `cid`, `nullified` or `createdAt`, or one is not as it must be.
    #[error("the entry is malformed")]
    EntryMalformed,
    /// An entry is of another DID.
    #[error("the entry is of another DID")]
    OtherDid,
    /// An entry is older than the one before it.
    #[error("it is older than the operation before it")]
    TimeGoesBack,
    /// A field of an operation is missing or not as it must be.
    #[error("a field of the operation is missing or malformed")]
    OperationMalformed,
    /// An operation's type is none of the three.
    #[error("the operation's type is unknown")]
    UnknownType,
    /// A number that is no integer of 64 bits: DAG-CBOR of AT Protocol knows no others.
    #[error("the operation holds a number that is not an integer")]
    Number,
    /// More than [`ROTATION_KEYS_MAX`] rotation keys.
    #[error("the operation has more than 32 rotation keys")]
    TooManyRotationKeys,
    /// More than [`FIELDS_MAX`] methods, services or names.
    #[error("the operation has more than 256 methods, services or names")]
    TooManyFields,
    /// `cid` is not the hash of the signed operation.
    #[error("its cid is not the hash of the operation")]
    CidMismatch,
    /// `sig` is not 64 bytes in strict unpadded base64url.
    #[error("its signature is not 64 bytes in strict unpadded base64url")]
    SignatureForm,
    /// The signature is in high-S form.
    #[error("its signature is in high-S form")]
    HighS,
    /// No rotation key that may sign it did.
    #[error("it is not signed by a rotation key of the operation before it")]
    NotSigned,
    /// The first operation's hash is not in the DID.
    #[error("its hash does not give the DID")]
    GenesisHash,
    /// The first operation names one before it, or is a tombstone.
    #[error("it cannot be the first operation")]
    NotGenesis,
    /// A later operation names none before it, or is of the old form that only the first may have.
    #[error("only the first operation may be without an operation before it")]
    SecondGenesis,
    /// `prev` is no operation of the log that still counts.
    #[error("the operation that it builds on does not count, or is not in the log")]
    UnknownPrev,
    /// `prev` gave the DID up.
    #[error("it builds on a tombstone")]
    AfterTombstone,
    /// It undoes operations, and its key is not stronger than the key of the first of them.
    #[error("it undoes operations of a key that is not weaker than its own")]
    NotStronger,
    /// It undoes operations of which the first is more than 72 hours older.
    #[error("it undoes an operation that is more than 72 hours older")]
    TooLate,
    /// `nullified` is not what the chain of operations says.
    #[error("its nullified flag is wrong")]
    NullifiedFlag,
}

impl PlcFault {
    const fn at(self, entry: usize) -> PlcLogError {
        PlcLogError {
            entry: Some(entry),
            fault: self,
        }
    }
    const fn of_log(self) -> PlcLogError {
        PlcLogError {
            entry: None,
            fault: self,
        }
    }
}

impl PlcLog {
    /// Reads and checks the answer of `/<did>/log/audit`.
    ///
    /// # Errors
    /// The first entry that breaks a rule, and the rule.
    pub fn parse(did: &Did, answer: &[u8]) -> Result<Self, PlcLogError> {
        if did.method() != DidMethod::Plc {
            return Err(PlcFault::NotPlc.of_log());
        }
        if answer.len() as u64 > LOG_BYTES_MAX {
            return Err(PlcFault::TooLong.of_log());
        }
        let values: Vec<Value> = serde_json::from_slice(answer).map_err(|_| PlcFault::NotAList.of_log())?;
        if values.is_empty() {
            return Err(PlcFault::Empty.of_log());
        }
        if values.len() > ENTRIES_MAX {
            return Err(PlcFault::TooManyEntries.of_log());
        }
        let mut chain = Chain::default();
        for (index, value) in values.into_iter().enumerate() {
            chain.push(did, value).map_err(|fault| fault.at(index))?;
        }
        chain.finish(did)
    }

    /// Whose log it is.
    #[must_use]
    pub const fn did(&self) -> &Did {
        &self.did
    }

    /// Every operation, nullified ones too, in the order of the log.
    #[must_use]
    pub fn entries(&self) -> &[PlcEntry] {
        &self.entries
    }

    /// The operations that count, oldest first.
    pub fn standing(&self) -> impl DoubleEndedIterator<Item = &PlcEntry> {
        self.standing.iter().map(|index| &self.entries[*index])
    }

    /// The operation that a next one would build on.
    #[must_use]
    pub fn last(&self) -> &PlcEntry {
        let index = *self.standing.last().expect("the first operation always stands");
        &self.entries[index]
    }

    /// What the DID is now; none: it was given up.
    #[must_use]
    pub fn current(&self) -> Option<&PlcState> {
        self.last().state.as_ref()
    }

    /// Every signing key of an operation that stands, with the span in which it was current, newest first. A
    /// key that was current twice, with another in between, is there twice.
    #[must_use]
    pub fn signing_keys(&self) -> Vec<LoggedKey> {
        let mut keys: Vec<LoggedKey> = Vec::new();
        let mut open = false;
        for entry in self.standing.iter().map(|index| &self.entries[*index]) {
            let key = entry.state.as_ref().and_then(|state| state.signing_key.as_ref());
            let current = keys.last_mut().filter(|_| open);
            if current.as_ref().map(|logged| &logged.key) == key {
                continue;
            }
            if let Some(ended) = current {
                ended.until = Some(entry.created_at);
            }
            open = key.is_some();
            keys.extend(key.map(|key| LoggedKey {
                did: self.did.clone(),
                key: key.clone(),
                from: entry.created_at,
                until: None,
            }));
        }
        keys.reverse();
        keys
    }
}

impl PlcLog {
    /// The signing keys of before, newest first, each once: without `current`, and at most `max`.
    #[must_use]
    pub fn earlier_keys(&self, current: &SigningKey, max: usize) -> Vec<LoggedKey> {
        let mut earlier: Vec<LoggedKey> = Vec::new();
        for logged in self.signing_keys() {
            if logged.key != *current && earlier.iter().all(|other| other.key != logged.key) {
                earlier.push(logged);
            }
        }
        earlier.truncate(max);
        earlier
    }
}

/// A log as far as it was read.
#[derive(Default)]
struct Chain {
    entries: Vec<Link>,
    /// The entries that count so far.
    standing: Vec<usize>,
}

struct Link {
    operation: Operation,
    claimed_nullified: bool,
    created_at: Timestamp,
    /// Which rotation key of the operation before it signed it.
    signer: usize,
}

impl Chain {
    fn push(&mut self, did: &Did, value: Value) -> Result<(), PlcFault> {
        let (operation, claimed_nullified, created_at) = read_entry(did, value)?;
        if self
            .entries
            .last()
            .is_some_and(|last| created_at < last.created_at)
        {
            return Err(PlcFault::TimeGoesBack);
        }
        let signer = if self.entries.is_empty() {
            check_genesis(did, &operation)?
        } else {
            self.check_next(&operation, created_at)?
        };
        self.standing.push(self.entries.len());
        self.entries.push(Link {
            operation,
            claimed_nullified,
            created_at,
            signer,
        });
        Ok(())
    }

    /// Checks an operation against those before it, and drops those that it undoes. Returns its signer.
    fn check_next(&mut self, operation: &Operation, created_at: Timestamp) -> Result<usize, PlcFault> {
        let prev = operation.prev.ok_or(PlcFault::SecondGenesis)?;
        if operation.kind == Kind::Create {
            return Err(PlcFault::SecondGenesis);
        }
        let cid_of = |index: &usize| self.entries[*index].operation.cid;
        let place = self.standing.iter().position(|index| cid_of(index) == prev);
        let place = place.ok_or(PlcFault::UnknownPrev)?;
        let before = &self.entries[self.standing[place]].operation;
        if before.kind == Kind::Tombstone {
            return Err(PlcFault::AfterTombstone);
        }
        let signer = operation.signer(&before.rotation_keys)?;
        if let Some(undone) = self.standing.get(place + 1) {
            // It built on the same operation, so the two signers count in the same list.
            let undone = &self.entries[*undone];
            if signer >= undone.signer {
                return Err(PlcFault::NotStronger);
            }
            if created_at.since(undone.created_at) > RECOVERY_WINDOW {
                return Err(PlcFault::TooLate);
            }
            self.standing.truncate(place + 1);
        }
        Ok(signer)
    }

    fn finish(self, did: &Did) -> Result<PlcLog, PlcLogError> {
        let mut entries = Vec::with_capacity(self.entries.len());
        for (index, link) in self.entries.into_iter().enumerate() {
            let nullified = self.standing.binary_search(&index).is_err();
            if nullified != link.claimed_nullified {
                return Err(PlcFault::NullifiedFlag.at(index));
            }
            entries.push(PlcEntry {
                cid: link.operation.cid,
                operation: link.operation.json,
                nullified,
                created_at: link.created_at,
                state: link.operation.state,
                signer: link.signer,
            });
        }
        Ok(PlcLog {
            did: did.clone(),
            entries,
            standing: self.standing,
        })
    }
}

fn read_entry(did: &Did, value: Value) -> Result<(Operation, bool, Timestamp), PlcFault> {
    let bad = PlcFault::EntryMalformed;
    let Value::Object(mut entry) = value else {
        return Err(bad);
    };
    let text = |key: &str| entry.get(key).and_then(Value::as_str).ok_or(bad);
    if text("did")? != did.as_str() {
        return Err(PlcFault::OtherDid);
    }
    let cid: Cid = text("cid")?.parse().map_err(|_| bad)?;
    let created_at: Timestamp = text("createdAt")?.parse().map_err(|_| bad)?;
    let nullified = entry.get("nullified").and_then(Value::as_bool).ok_or(bad)?;
    let Some(Value::Object(operation)) = entry.remove("operation") else {
        return Err(bad);
    };
    let operation = Operation::read(operation)?;
    if operation.cid != cid {
        return Err(PlcFault::CidMismatch);
    }
    Ok((operation, nullified, created_at))
}

/// Checks the first operation: its hash is the DID, and one of its own rotation keys signed it.
fn check_genesis(did: &Did, operation: &Operation) -> Result<usize, PlcFault> {
    if operation.prev.is_some() || operation.kind == Kind::Tombstone {
        return Err(PlcFault::NotGenesis);
    }
    if did_of(&operation.cid) != did.as_str() {
        return Err(PlcFault::GenesisHash);
    }
    operation.signer(&operation.rotation_keys)
}

/// The DID whose first operation has this hash: 24 letters of its base32.
fn did_of(genesis: &Cid) -> String {
    let text = data_encoding::BASE32_NOPAD.encode(genesis.digest());
    format!("did:plc:{}", text[..24].to_ascii_lowercase())
}
