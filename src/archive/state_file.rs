//! What a new machine needs besides the accounts' data: `v1/hosts/<host>/<time>.json` and
//! `v1/service/<time>.json`.
//!
//! A host's state says how far its stream is archived, in which numbering, and how each of its accounts stands. Its
//! cursor is never ahead of the log: the state is read from one view of the mirror, and put when all that the view
//! had for the log stands in the archive ([`HostState::log_next`]). Whoever goes on from the cursor misses nothing.
//!
//! Both are written when they changed, and at most every `snapshot_interval`; what came in between stands in the log.
//! The newest that can be read counts. Older ones may go but for the last of each day of the window, which say how
//! accounts stood then.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::names::{HostStateName, ServiceName};
use super::sealed::{self, Seal};
use crate::mirror::keyspace::{AlarmId, AlarmKind};
use crate::mirror::rows::{Acknowledged, AlarmRow, PinReason};
use crate::types::cid::sha256;
use crate::types::{AccountStatus, Cid, Did, Digest, HostName, Rev, Timestamp};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u64 = 1;
/// Largest file that is read, in bytes: some hundred thousand accounts.
pub const STATE_BYTES_MAX: usize = 64 << 20;
/// Accounts that one file names, at most; those of a larger host are found by their snapshots.
pub const ACCOUNTS_MAX: usize = 400_000;

/// Why a file is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateFileError {
    /// Its bytes changed.
    #[error("its own checksum does not fit its bytes")]
    Seal,
    /// Not JSON, or a field is missing or malformed.
    #[error("it is malformed: {0}")]
    Malformed(String),
    /// A newer version wrote it.
    #[error("it has format {0}, and this version knows format {FORMAT}; use a newer version")]
    TooNew(u64),
    /// It is of another host or time than its name says.
    #[error("it is of another host or time than its name says")]
    Misnamed,
}

/// How far a host is archived, and how its accounts stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostState {
    /// Which host.
    pub host: HostName,
    /// When it was so.
    pub time: Timestamp,
    /// Its base URL.
    pub url: String,
    /// Which unbroken numbering of the host `cursor` counts in.
    pub epoch: u64,
    /// All that the host sent up to this seq is in the archive, or named below as not.
    pub cursor: Option<u64>,
    /// The highest seq ever seen.
    pub highest_seq: u64,
    /// When all its accounts had been listed; none: not yet.
    pub listed: Option<Timestamp>,
    /// When the newest event came.
    pub last_event: Option<Timestamp>,
    /// When it was last seen to have gone back.
    pub rolled_back_at: Option<Timestamp>,
    /// The last applied events: seq and fingerprint.
    pub ring: Vec<(u64, u64)>,
    /// Every entry of the log with a lower number stands in the archive.
    pub log_next: u64,
    /// Its accounts.
    pub accounts: BTreeMap<Did, AccountState>,
}

/// How an account stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountState {
    /// At its host.
    pub status: AccountStatus,
    /// Whether our copy follows: a label of [`crate::mirror::rows::SyncState`].
    pub sync: String,
    /// The host that it left for, if that is not followed.
    pub moved_to: Option<HostName>,
    /// When its host confirmed that it is deleted.
    pub deleted_at: Option<Timestamp>,
    /// The newest snapshot that the archive holds of it.
    pub snapshot: Option<Rev>,
    /// Blobs that its host gives no longer, and that are not served.
    pub withheld: Vec<Cid>,
}

/// Firekeep's own state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceState {
    /// When it was so.
    pub time: Timestamp,
    /// The hosts that are followed, with their base URLs.
    pub hosts: BTreeMap<HostName, String>,
    /// What an admin should look at.
    pub alarms: BTreeMap<AlarmId, AlarmRow>,
    /// What is kept of accounts beside their heads.
    pub pins: BTreeMap<Did, Vec<PinState>>,
}

/// A pin, as far as the archive holds what it pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinState {
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub reason: PinReason,
    /// The head of then.
    pub head: Option<(Rev, Cid)>,
    /// The newest snapshot of then.
    pub snapshot: Option<(Rev, Cid)>,
}

#[derive(Serialize, Deserialize)]
struct HostWire {
    format: u64,
    host: String,
    time: String,
    url: String,
    epoch: u64,
    cursor: Option<u64>,
    highest_seq: u64,
    listed: Option<String>,
    last_event: Option<String>,
    rolled_back_at: Option<String>,
    /// `seq:fingerprint`, the latter hexadecimal: no JSON reader spoils it.
    ring: Vec<String>,
    log_next: u64,
    /// `status sync`: a line each.
    accounts: BTreeMap<String, String>,
    #[serde(default)]
    moved_to: BTreeMap<String, String>,
    #[serde(default)]
    deleted_at: BTreeMap<String, String>,
    #[serde(default)]
    snapshots: BTreeMap<String, String>,
    #[serde(default)]
    withheld: BTreeMap<String, Vec<String>>,
}

#[derive(Serialize, Deserialize)]
struct ServiceWire {
    format: u64,
    time: String,
    hosts: BTreeMap<String, String>,
    alarms: Vec<AlarmWire>,
    pins: BTreeMap<String, Vec<PinWire>>,
}

#[derive(Serialize, Deserialize)]
struct AlarmWire {
    host: Option<String>,
    kind: String,
    subject: String,
    since: String,
    message: String,
    acknowledged_by: Option<String>,
    acknowledged_at: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct PinWire {
    since: String,
    reason: PinReason,
    head: Option<(String, String)>,
    snapshot: Option<(String, String)>,
}

fn parsed<T: FromStr>(text: &str, what: &str) -> Result<T, StateFileError> {
    text.parse()
        .map_err(|_| StateFileError::Malformed(format!("{what} is none")))
}

fn optional<T: FromStr>(text: Option<&String>, what: &str) -> Result<Option<T>, StateFileError> {
    text.map(|text| parsed(text, what)).transpose()
}

fn shown<T: ToString>(value: Option<T>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn sealed_of(wire: &impl Serialize) -> Vec<u8> {
    match serde_json::to_value(wire) {
        Ok(Value::Object(object)) => sealed::seal(object),
        _ => sealed::seal(Map::new()),
    }
}

fn opened<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StateFileError> {
    #[derive(Deserialize)]
    struct Head {
        format: u64,
    }
    if sealed::check(bytes) != Seal::Sound {
        return Err(StateFileError::Seal);
    }
    let malformed = |error: serde_json::Error| StateFileError::Malformed(error.to_string());
    let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
    if head.format > FORMAT {
        return Err(StateFileError::TooNew(head.format));
    }
    serde_json::from_slice(bytes).map_err(malformed)
}

/// A status as one word: unknown ones are `other:…`, with what they say.
fn status_word(status: &AccountStatus) -> String {
    match status {
        AccountStatus::Other(text) => format!("other:{}", text.replace(char::is_whitespace, "_")),
        known => known.label().to_owned(),
    }
}

fn status_of(word: &str) -> AccountStatus {
    let active = AccountStatus::from_wire(true, Some(word));
    match word.strip_prefix("other:") {
        Some(text) => AccountStatus::from_wire(false, Some(text).filter(|text| !text.is_empty())),
        None if word == "active" || active != AccountStatus::Active => active,
        None => AccountStatus::from_wire(false, Some(word)),
    }
}

impl HostState {
    /// The file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        sealed_of(&self.wire())
    }

    /// What tells whether it has changed: all of it but when it was written, and how far the log was.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        let mut wire = self.wire();
        (wire.time, wire.log_next, wire.last_event) = (String::new(), 0, None);
        sha256(&serde_json::to_vec(&wire).unwrap_or_default())
    }

    fn wire(&self) -> HostWire {
        let mut wire = HostWire {
            format: FORMAT,
            host: self.host.to_string(),
            time: self.time.to_string(),
            url: self.url.clone(),
            epoch: self.epoch,
            cursor: self.cursor,
            highest_seq: self.highest_seq,
            listed: shown(self.listed),
            last_event: shown(self.last_event),
            rolled_back_at: shown(self.rolled_back_at),
            ring: self
                .ring
                .iter()
                .map(|(seq, print)| format!("{seq}:{print:x}"))
                .collect(),
            log_next: self.log_next,
            accounts: BTreeMap::new(),
            moved_to: BTreeMap::new(),
            deleted_at: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            withheld: BTreeMap::new(),
        };
        for (did, account) in &self.accounts {
            let did = did.to_string();
            if let Some(to) = &account.moved_to {
                wire.moved_to.insert(did.clone(), to.to_string());
            }
            if let Some(at) = account.deleted_at {
                wire.deleted_at.insert(did.clone(), at.to_string());
            }
            if let Some(rev) = account.snapshot {
                wire.snapshots.insert(did.clone(), rev.to_string());
            }
            if !account.withheld.is_empty() {
                let blobs = account.withheld.iter().map(ToString::to_string).collect();
                wire.withheld.insert(did.clone(), blobs);
            }
            let line = format!("{} {}", status_word(&account.status), account.sync);
            wire.accounts.insert(did, line);
        }
        wire
    }

    /// Reads a file, and checks it against its name.
    ///
    /// # Errors
    /// See [`StateFileError`].
    pub fn decode(bytes: &[u8], name: &HostStateName) -> Result<Self, StateFileError> {
        let wire: HostWire = opened(bytes)?;
        let mut state = Self {
            host: parsed(&wire.host, "host")?,
            time: parsed(&wire.time, "time")?,
            url: wire.url,
            epoch: wire.epoch,
            cursor: wire.cursor,
            highest_seq: wire.highest_seq,
            listed: optional(wire.listed.as_ref(), "listed")?,
            last_event: optional(wire.last_event.as_ref(), "last_event")?,
            rolled_back_at: optional(wire.rolled_back_at.as_ref(), "rolled_back_at")?,
            ring: Vec::with_capacity(wire.ring.len()),
            log_next: wire.log_next,
            accounts: BTreeMap::new(),
        };
        if state.host != *name.host.host() || state.time.millis() != name.time.millis() {
            return Err(StateFileError::Misnamed);
        }
        for event in &wire.ring {
            let event = event
                .split_once(':')
                .and_then(|(seq, print)| Some((seq.parse().ok()?, u64::from_str_radix(print, 16).ok()?)));
            let event = event.ok_or_else(|| StateFileError::Malformed("an event is none".to_owned()))?;
            state.ring.push(event);
        }
        if state.ring.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(StateFileError::Malformed("the events do not rise".to_owned()));
        }
        for (did, line) in &wire.accounts {
            let (status, sync) = line.split_once(' ').unwrap_or((line, ""));
            let withheld = wire.withheld.get(did).into_iter().flatten();
            let account = AccountState {
                status: status_of(status),
                sync: sync.to_owned(),
                moved_to: optional(wire.moved_to.get(did), "moved_to")?,
                deleted_at: optional(wire.deleted_at.get(did), "deleted_at")?,
                snapshot: optional(wire.snapshots.get(did), "snapshots")?,
                withheld: withheld
                    .map(|cid| parsed(cid, "a blob"))
                    .collect::<Result<_, _>>()?,
            };
            state.accounts.insert(parsed(did, "an account")?, account);
        }
        Ok(state)
    }
}

impl ServiceState {
    /// The file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        sealed_of(&self.wire())
    }

    /// What tells whether it has changed: all of it but when it was written.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        let mut wire = self.wire();
        wire.time = String::new();
        sha256(&serde_json::to_vec(&wire).unwrap_or_default())
    }

    fn wire(&self) -> ServiceWire {
        let stand = |at: &Option<(Rev, Cid)>| at.map(|(rev, cid)| (rev.to_string(), cid.to_string()));
        let pin = |pin: &PinState| PinWire {
            since: pin.since.to_string(),
            reason: pin.reason,
            head: stand(&pin.head),
            snapshot: stand(&pin.snapshot),
        };
        let alarm = |(id, row): (&AlarmId, &AlarmRow)| AlarmWire {
            host: shown(id.host.as_ref()),
            kind: id.kind.as_str().to_owned(),
            subject: id.subject.clone(),
            since: row.since.to_string(),
            message: row.message.clone(),
            acknowledged_by: row.acknowledged.as_ref().map(|seen| seen.by.clone()),
            acknowledged_at: row.acknowledged.as_ref().map(|seen| seen.at.to_string()),
        };
        ServiceWire {
            format: FORMAT,
            time: self.time.to_string(),
            hosts: self
                .hosts
                .iter()
                .map(|(host, url)| (host.to_string(), url.clone()))
                .collect(),
            alarms: self.alarms.iter().map(alarm).collect(),
            pins: self
                .pins
                .iter()
                .map(|(did, pins)| (did.to_string(), pins.iter().map(pin).collect()))
                .collect(),
        }
    }

    /// Reads a file, and checks it against its name. An alarm of a kind that this version does not know is passed
    /// over.
    ///
    /// # Errors
    /// See [`StateFileError`].
    pub fn decode(bytes: &[u8], name: &ServiceName) -> Result<Self, StateFileError> {
        let wire: ServiceWire = opened(bytes)?;
        let mut state = Self {
            time: parsed(&wire.time, "time")?,
            ..Self::default()
        };
        if state.time.millis() != name.time.millis() {
            return Err(StateFileError::Misnamed);
        }
        for (host, url) in wire.hosts {
            state.hosts.insert(parsed(&host, "a host")?, url);
        }
        for alarm in wire.alarms {
            let Some(kind) = AlarmKind::ALL
                .into_iter()
                .find(|kind| kind.as_str() == alarm.kind)
            else {
                continue;
            };
            let id = AlarmId {
                host: optional(alarm.host.as_ref(), "an alarm's host")?,
                kind,
                subject: alarm.subject,
            };
            let seen_at: Option<Timestamp> = optional(alarm.acknowledged_at.as_ref(), "a time")?;
            let row = AlarmRow {
                since: parsed(&alarm.since, "an alarm's time")?,
                message: alarm.message,
                // The generations that it kept were in the mirror.
                pinned: Vec::new(),
                acknowledged: alarm
                    .acknowledged_by
                    .zip(seen_at)
                    .map(|(by, at)| Acknowledged { by, at }),
            };
            state.alarms.insert(id, row);
        }
        let stand = |at: Option<(String, String)>| -> Result<Option<(Rev, Cid)>, StateFileError> {
            at.map(|(rev, cid)| Ok((parsed(&rev, "a rev")?, parsed(&cid, "a commit")?)))
                .transpose()
        };
        for (did, pins) in wire.pins {
            let mut kept = Vec::with_capacity(pins.len());
            for pin in pins {
                kept.push(PinState {
                    since: parsed(&pin.since, "a pin's time")?,
                    reason: pin.reason,
                    head: stand(pin.head)?,
                    snapshot: stand(pin.snapshot)?,
                });
            }
            state.pins.insert(parsed(&did, "an account")?, kept);
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::HostFolder;
    use super::*;

    const TIME: Timestamp = Timestamp::from_micros(1_700_000_000_123_000);

    fn rev(n: u64) -> Rev {
        Rev::from_bits(n).expect("a rev")
    }

    fn host() -> HostState {
        let account = |status, sync: &str| AccountState {
            status,
            sync: sync.to_owned(),
            moved_to: None,
            deleted_at: None,
            snapshot: None,
            withheld: Vec::new(),
        };
        let did = |n: u64| -> Did { format!("did:web:a{n}.test").parse().expect("valid") };
        let mut accounts = BTreeMap::from([
            (did(1), account(AccountStatus::Active, "live")),
            (did(2), account(AccountStatus::Takendown, "wanted")),
            (did(3), account(AccountStatus::Throttled, "moved")),
            (
                did(4),
                account(AccountStatus::Other("in limbo".to_owned()), "live"),
            ),
            (did(5), account(AccountStatus::Other(String::new()), "diverged")),
            (did(6), account(AccountStatus::Deleted, "live")),
        ]);
        let third = accounts.get_mut(&did(3)).expect("there");
        third.moved_to = Some("other.test".parse().expect("valid"));
        third.snapshot = Some(rev(7 << 20));
        third.withheld = vec![Cid::of_blob(b"gone")];
        accounts.get_mut(&did(6)).expect("there").deleted_at = Some(TIME);
        HostState {
            host: "pds.test".parse().expect("valid"),
            time: TIME,
            url: "https://pds.test".to_owned(),
            epoch: 3,
            cursor: Some(u64::MAX),
            highest_seq: u64::MAX,
            listed: Some(TIME),
            last_event: Some(TIME),
            rolled_back_at: None,
            ring: vec![(7, u64::MAX), (9, 0)],
            log_next: 77,
            accounts,
        }
    }

    fn name(state: &HostState) -> HostStateName {
        HostStateName {
            host: HostFolder::try_from(&state.host).expect("short"),
            time: state.time,
        }
    }

    fn service() -> ServiceState {
        let id = |host: Option<&str>, kind| AlarmId {
            host: host.map(|host| host.parse().expect("valid")),
            kind,
            subject: "did:web:a1.test".to_owned(),
        };
        let alarm = |acknowledged| AlarmRow {
            since: TIME,
            message: "it went back".to_owned(),
            pinned: Vec::new(),
            acknowledged,
        };
        let seen = Acknowledged {
            by: "alice".to_owned(),
            at: TIME,
        };
        let pin = PinState {
            since: TIME,
            reason: PinReason::Rollback,
            head: Some((rev(9), Cid::of_block(b"head"))),
            snapshot: None,
        };
        ServiceState {
            time: TIME,
            hosts: BTreeMap::from([("pds.test".parse().expect("valid"), "https://pds.test".to_owned())]),
            alarms: BTreeMap::from([
                (id(Some("pds.test"), AlarmKind::Rollback), alarm(None)),
                (id(None, AlarmKind::Quarantine), alarm(Some(seen))),
            ]),
            pins: BTreeMap::from([("did:web:a1.test".parse().expect("valid"), vec![pin])]),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let state = host();
        let read = HostState::decode(&state.encode(), &name(&state)).expect("reads");
        let mut expected = state;
        // A word has no spaces.
        let limbo = "did:web:a4.test".parse().expect("valid");
        expected.accounts.get_mut(&limbo).expect("there").status =
            AccountStatus::Other("in_limbo".to_owned());
        assert_eq!(read, expected);
        let state = service();
        let name = ServiceName { time: TIME };
        assert_eq!(ServiceState::decode(&state.encode(), &name), Ok(state));
    }

    #[test]
    fn damage_and_other_names_are_refused() {
        let state = host();
        let bytes = state.encode();
        let mut other = name(&state);
        other.host = HostFolder::try_from(&"other.test".parse().expect("valid")).expect("short");
        assert_eq!(HostState::decode(&bytes, &other), Err(StateFileError::Misnamed));
        let later = ServiceName {
            time: TIME.plus(std::time::Duration::from_millis(1)),
        };
        assert_eq!(
            ServiceState::decode(&service().encode(), &later),
            Err(StateFileError::Misnamed)
        );
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert_eq!(
                HostState::decode(&bad, &name(&state)),
                Err(StateFileError::Seal),
                "byte {at}"
            );
        }
        let newer = sealed::seal(Map::from_iter([("format".to_owned(), Value::from(2))]));
        assert_eq!(
            HostState::decode(&newer, &name(&state)),
            Err(StateFileError::TooNew(2))
        );
        let mut bad = state.clone();
        bad.ring.reverse();
        assert!(matches!(
            HostState::decode(&bad.encode(), &name(&bad)),
            Err(StateFileError::Malformed(_))
        ));
    }

    #[test]
    fn what_changes_shows_and_the_time_of_writing_does_not() {
        let state = host();
        let mut later = state.clone();
        (later.time, later.log_next, later.last_event) = (Timestamp::default(), 78, None);
        assert_eq!(later.fingerprint(), state.fingerprint());
        later.cursor = Some(8);
        assert_ne!(later.fingerprint(), state.fingerprint());
        let state = service();
        let mut later = state.clone();
        later.time = Timestamp::default();
        assert_eq!(later.fingerprint(), state.fingerprint());
        later.pins.clear();
        assert_ne!(later.fingerprint(), state.fingerprint());
    }

    #[test]
    fn a_hidden_status_never_comes_back_as_a_shown_one() {
        for status in [
            AccountStatus::Deactivated,
            AccountStatus::Suspended,
            AccountStatus::Takendown,
            AccountStatus::Deleted,
            AccountStatus::Other("active".to_owned()),
            AccountStatus::Other(String::new()),
        ] {
            assert!(!status_of(&status_word(&status)).is_active(), "{status:?}");
        }
        assert!(!status_of("never-heard-of").is_active());
        for status in [
            AccountStatus::Active,
            AccountStatus::Throttled,
            AccountStatus::Desynchronized,
        ] {
            assert_eq!(status_of(&status_word(&status)), status);
        }
    }
}
