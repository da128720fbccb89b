//! The keys of the mirror: one `encode_…`/`decode_…` pair a family, and the ranges that scans use.
//!
//! Numbers are 8 bytes, big-endian, so that byte order is number order. A record's key ends in the literal
//! bytes of its path: their order is the order of the tree, and any other form (a separator that is not
//! `/`, a binary record key) would rebuild wrong trees. Decoding checks everything that encoding promises:
//! a key that does not decode is damage, or a bug.
//!
//! An account has two numbers. The *DID number* is one for life: blobs, journal and parked frames go by it (the
//! revs of an account never go back here, whatever its host does). The *account number* is one a generation (a
//! loaded repository): records and blob references go by it. Numbers begin at 1 and are never used again; [`NO_NUMBER`] is nobody's.
//!
//! Everything here is persisted: keep stable, or raise `store::FORMAT_VERSION`.

use crate::types::{Did, Digest, HostName, RepoPath, Rev, SyntaxError};

use super::store::KeyRange;

mod work;

pub use work::{
    AlarmId, AlarmKind, TASK_KEY_HEAD_BYTES, Task, TaskKind, alarm_range, decode_alarm, decode_task,
    due_range, encode_alarm, encode_task,
};

/// Bytes of a number in a key.
pub const NUMBER_BYTES: usize = 8;
/// Bytes of a digest in a key.
pub const DIGEST_BYTES: usize = 32;
/// The number that is never given to anybody: nothing is loaded yet.
pub const NO_NUMBER: u64 = 0;

/// Length of a `parked` key.
pub const PARKED_KEY_BYTES: usize = NUMBER_BYTES + 8;
/// Length of a `journal` key.
pub const JOURNAL_KEY_BYTES: usize = NUMBER_BYTES + 8;
/// Length of a `blobs` key.
pub const BLOB_KEY_BYTES: usize = NUMBER_BYTES + DIGEST_BYTES;
/// Length of a `blob_data` key.
pub const BLOB_DATA_KEY_BYTES: usize = BLOB_KEY_BYTES + 4;

/// `meta` row: the next DID or account number to give out. Its value is [`encode_number`].
pub const META_NEXT_NUMBER: &[u8] = b"next_number";
/// `meta` row: the next log number (key of the outbox) to give out. Its value is [`encode_number`].
pub const META_NEXT_LOG: &[u8] = b"next_log";
/// `meta` row: how far the archive's log is ([`super::rows::LogRow`]).
pub const META_LOG: &[u8] = b"log";
/// `meta` row: what tells this mirror from others that write to an archive, as text.
pub const META_INSTANCE: &[u8] = b"instance";
/// `meta` rows: what was last archived of a host's state ([`super::rows::StateMark`]); without a host: of our own.
#[must_use]
pub fn meta_state(host: &str) -> Vec<u8> {
    format!("state:{host}").into_bytes()
}
/// `meta` rows: when something was last proven ([`encode_number`], in milliseconds), or how far that is.
#[must_use]
pub fn meta_proof(what: &str) -> Vec<u8> {
    format!("proof:{what}").into_bytes()
}
/// `meta` row: the id of the archive that this mirror is being filled from, until that is done.
pub const META_COLD_START: &[u8] = b"cold_start";
/// `meta` row: the id of the archive that "archived" marks belong to, as text.
pub const META_ARCHIVE_ID: &[u8] = b"archive_id";

const fn bad(what: &'static str, rule: &'static str) -> SyntaxError {
    SyntaxError::new(what, rule)
}

/// A number as the value of a `meta` row.
#[must_use]
pub const fn encode_number(number: u64) -> [u8; NUMBER_BYTES] {
    number.to_be_bytes()
}

/// The number of a `meta` row.
///
/// # Errors
/// When it is not 8 bytes.
pub fn decode_number(value: &[u8]) -> Result<u64, SyntaxError> {
    let bytes: [u8; NUMBER_BYTES] = value.try_into().map_err(|_| bad("number", "must be 8 bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// Splits a key after its leading number.
fn split_number<'k>(key: &'k [u8], what: &'static str) -> Result<(u64, &'k [u8]), SyntaxError> {
    let (number, rest) = key
        .split_first_chunk::<NUMBER_BYTES>()
        .ok_or(bad(what, "must begin with a number of 8 bytes"))?;
    Ok((u64::from_be_bytes(*number), rest))
}

fn split_digest<'k>(key: &'k [u8], what: &'static str) -> Result<(Digest, &'k [u8]), SyntaxError> {
    let (digest, rest) = key
        .split_first_chunk::<DIGEST_BYTES>()
        .ok_or(bad(what, "must have a digest of 32 bytes"))?;
    Ok((*digest, rest))
}

/// Every key that begins with this number: all that a family holds of one account.
#[must_use]
pub fn number_range(number: u64) -> KeyRange {
    KeyRange::prefix(encode_number(number))
}

/// The same as bounds, for [`super::Batch::delete_range`].
///
/// # Panics
/// At the number `u64::MAX`, which would take longer to reach than the machine lasts.
#[must_use]
pub fn number_bounds(number: u64) -> ([u8; NUMBER_BYTES], [u8; NUMBER_BYTES]) {
    let next = number
        .checked_add(1)
        .expect("numbers are given out one by one, from 1");
    (encode_number(number), encode_number(next))
}

// hosts: the host's text

/// The key of a host's row.
#[must_use]
pub fn encode_host(host: &HostName) -> Vec<u8> {
    host.as_str().as_bytes().to_vec()
}

/// The host that a row is about.
///
/// # Errors
/// When the key is not a host name as [`encode_host`] writes it.
pub fn decode_host(key: &[u8]) -> Result<HostName, SyntaxError> {
    let text = std::str::from_utf8(key).map_err(|_| bad("hosts key", "must be ASCII"))?;
    let host: HostName = text.parse()?;
    if host.as_str() == text {
        Ok(host)
    } else {
        Err(bad("hosts key", "must be lower case"))
    }
}

// accounts: the DID's text

/// The key of an account's row.
#[must_use]
pub fn encode_account(did: &Did) -> Vec<u8> {
    did.as_str().as_bytes().to_vec()
}

/// The account that a row is about.
///
/// # Errors
/// When the key is not a DID.
pub fn decode_account(key: &[u8]) -> Result<Did, SyntaxError> {
    std::str::from_utf8(key)
        .map_err(|_| bad("accounts key", "must be ASCII"))?
        .parse()
}

// records: account number ‖ path

/// The key of a record. `path` is a checked path's bytes (`RepoPath::as_bytes`, or a key of a walked tree).
#[must_use]
pub fn encode_record(account_number: u64, path: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(NUMBER_BYTES + path.len());
    key.extend_from_slice(&encode_number(account_number));
    key.extend_from_slice(path);
    key
}

/// Account number and path of a record.
///
/// # Errors
/// When the key is too short, or its path is none.
pub fn decode_record(key: &[u8]) -> Result<(u64, RepoPath), SyntaxError> {
    let (number, path) = split_number(key, "records key")?;
    Ok((number, RepoPath::from_bytes(path)?))
}

/// As [`decode_record`], without checking the path: for scans, whose paths the rebuilt tree checks.
///
/// # Errors
/// When the key is too short.
pub fn split_record(key: &[u8]) -> Result<(u64, &[u8]), SyntaxError> {
    split_number(key, "records key")
}

/// The records of one collection.
#[must_use]
pub fn collection_range(account_number: u64, collection: &str) -> KeyRange {
    let mut prefix = encode_record(account_number, collection.as_bytes());
    prefix.push(b'/');
    KeyRange::prefix(prefix)
}

// parked: DID number ‖ arrival

/// The key of a parked frame; `arrival` rises with each frame of the account.
#[must_use]
pub fn encode_parked(did_number: u64, arrival: u64) -> [u8; PARKED_KEY_BYTES] {
    two_numbers(did_number, arrival)
}

/// DID number and arrival of a parked frame.
///
/// # Errors
/// When it is not 16 bytes.
pub fn decode_parked(key: &[u8]) -> Result<(u64, u64), SyntaxError> {
    split_two_numbers(key, "parked key")
}

// journal: DID number ‖ rev

/// The key of a journalled change.
#[must_use]
pub fn encode_journal(did_number: u64, rev: Rev) -> [u8; JOURNAL_KEY_BYTES] {
    two_numbers(did_number, rev.to_bits())
}

/// DID number and rev of a journalled change.
///
/// # Errors
/// When it is not 16 bytes, or the rev is none.
pub fn decode_journal(key: &[u8]) -> Result<(u64, Rev), SyntaxError> {
    let (number, rev) = split_two_numbers(key, "journal key")?;
    Ok((number, Rev::from_bits(rev)?))
}

fn two_numbers(first: u64, second: u64) -> [u8; 2 * NUMBER_BYTES] {
    let mut key = [0; 2 * NUMBER_BYTES];
    key[..NUMBER_BYTES].copy_from_slice(&encode_number(first));
    key[NUMBER_BYTES..].copy_from_slice(&encode_number(second));
    key
}

fn split_two_numbers(key: &[u8], what: &'static str) -> Result<(u64, u64), SyntaxError> {
    let (first, rest) = split_number(key, what)?;
    let (second, rest) = split_number(rest, what)?;
    if rest.is_empty() {
        Ok((first, second))
    } else {
        Err(bad(what, "must be 16 bytes"))
    }
}

// outbox: log number

/// The key of an outbox entry.
#[must_use]
pub const fn encode_outbox(log_number: u64) -> [u8; NUMBER_BYTES] {
    encode_number(log_number)
}

/// The log number of an outbox entry.
///
/// # Errors
/// When it is not 8 bytes.
pub fn decode_outbox(key: &[u8]) -> Result<u64, SyntaxError> {
    decode_number(key)
}

// blob_refs: account number ‖ digest ‖ path

/// The key that says: this record refers to this blob. `path` as in [`encode_record`].
#[must_use]
pub fn encode_blob_ref(account_number: u64, digest: &Digest, path: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(BLOB_KEY_BYTES + path.len());
    key.extend_from_slice(&encode_blob(account_number, digest));
    key.extend_from_slice(path);
    key
}

/// Account number, blob and path of a reference.
///
/// # Errors
/// When the key is too short, or its path is none.
pub fn decode_blob_ref(key: &[u8]) -> Result<(u64, Digest, RepoPath), SyntaxError> {
    let (number, digest, path) = split_blob_ref(key)?;
    Ok((number, digest, RepoPath::from_bytes(path)?))
}

/// As [`decode_blob_ref`], without checking the path.
///
/// # Errors
/// When the key is too short.
pub fn split_blob_ref(key: &[u8]) -> Result<(u64, Digest, &[u8]), SyntaxError> {
    let (number, rest) = split_number(key, "blob_refs key")?;
    let (digest, path) = split_digest(rest, "blob_refs key")?;
    Ok((number, digest, path))
}

/// The references to one blob: how many rows it has is the reference count.
#[must_use]
pub fn blob_ref_range(account_number: u64, digest: &Digest) -> KeyRange {
    KeyRange::prefix(encode_blob(account_number, digest))
}

// blobs: DID number ‖ digest

/// The key of a blob's row.
#[must_use]
pub fn encode_blob(did_number: u64, digest: &Digest) -> [u8; BLOB_KEY_BYTES] {
    let mut key = [0; BLOB_KEY_BYTES];
    key[..NUMBER_BYTES].copy_from_slice(&encode_number(did_number));
    key[NUMBER_BYTES..].copy_from_slice(digest);
    key
}

/// DID number and digest of a blob.
///
/// # Errors
/// When it is not 40 bytes.
pub fn decode_blob(key: &[u8]) -> Result<(u64, Digest), SyntaxError> {
    let (number, rest) = split_number(key, "blobs key")?;
    let (digest, rest) = split_digest(rest, "blobs key")?;
    if rest.is_empty() {
        Ok((number, digest))
    } else {
        Err(bad("blobs key", "must be 40 bytes"))
    }
}

// blob_data: DID number ‖ digest ‖ chunk. A CAR that is kept as it came stands here too, under a number of its own
// and the digest of its commit.

/// The key of a chunk of a blob, counted from 0.
#[must_use]
pub fn encode_blob_data(did_number: u64, digest: &Digest, chunk: u32) -> [u8; BLOB_DATA_KEY_BYTES] {
    let mut key = [0; BLOB_DATA_KEY_BYTES];
    key[..BLOB_KEY_BYTES].copy_from_slice(&encode_blob(did_number, digest));
    key[BLOB_KEY_BYTES..].copy_from_slice(&chunk.to_be_bytes());
    key
}

/// DID number, digest and chunk of a piece of a blob.
///
/// # Errors
/// When it is not 44 bytes.
pub fn decode_blob_data(key: &[u8]) -> Result<(u64, Digest, u32), SyntaxError> {
    let (number, rest) = split_number(key, "blob_data key")?;
    let (digest, rest) = split_digest(rest, "blob_data key")?;
    let chunk: [u8; 4] = rest
        .try_into()
        .map_err(|_| bad("blob_data key", "must be 44 bytes"))?;
    Ok((number, digest, u32::from_be_bytes(chunk)))
}

/// All chunks of one blob, in order.
#[must_use]
pub fn blob_data_range(did_number: u64, digest: &Digest) -> KeyRange {
    KeyRange::prefix(encode_blob(did_number, digest))
}

#[cfg(test)]
mod tests;
