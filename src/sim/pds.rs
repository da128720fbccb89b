//! Simulated hosts: accounts, a stream with a window, and what the XRPC methods answer.
//!
//! Everything that a host sends is real bytes. What a host *does* and what goes wrong is decided elsewhere
//! (`act`); here stands only what it holds and how it answers.

use std::collections::{BTreeMap, BTreeSet};

use super::account::SimAccount;
use crate::identity::plc_log::fixtures::LogMaker;
use crate::stream::encode::encode_frame;
use crate::stream::frame::{AccountFrame, Frame, IdentityFrame};
use crate::types::{AccountStatus, Cid, Did, Digest, HostName, Rev, Timestamp};

/// A blob at a host.
#[derive(Debug, Clone)]
pub struct SimBlob {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What the host does when it is asked.
    pub given: BlobGiven,
}

/// What a host does when it is asked for a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobGiven {
    /// Gives it.
    Whole,
    /// Says that there is none.
    Missing,
    /// Says that there is none until this time.
    Late(Timestamp),
    /// Gives other bytes.
    Wrong,
}

/// An account at a host.
#[derive(Clone)]
pub struct HostAccount {
    /// Its repository.
    pub account: SimAccount,
    /// Its standing.
    pub status: AccountStatus,
    /// Its blobs.
    pub blobs: BTreeMap<Digest, SimBlob>,
    /// Whether the host forgot it for a while.
    pub forgotten: bool,
    /// Records written so far: makes paths and texts distinct.
    pub written: u64,
    /// What the host has of it instead, until the account writes again: its records in a tree that does not rebuild.
    pub lax: Option<Lax>,
}

/// A repository in a tree of its host's own making.
#[derive(Clone)]
pub struct Lax {
    /// The rev of its commit.
    pub rev: Rev,
    /// Its commit.
    pub head: Cid,
    /// Its blocks, the commit last.
    pub blocks: Vec<(Cid, Vec<u8>)>,
}

impl HostAccount {
    /// The head that the host names, and its rev.
    #[must_use]
    pub fn head(&self) -> (Rev, Cid) {
        match &self.lax {
            Some(lax) => (lax.rev, lax.head),
            None => (self.account.rev(), self.account.head()),
        }
    }
}

/// What an event of a host's stream was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A commit of the account, as it was.
    Commit(Rev),
    /// Its state.
    Sync(Rev),
    /// A word about its identity.
    Identity,
    /// Its standing.
    Account(AccountStatus),
    /// Something that is not so.
    Nonsense,
}

/// An event that a host wrote into its stream.
#[derive(Debug, Clone)]
pub struct Emitted {
    /// Its number.
    pub seq: u64,
    /// Whose.
    pub did: Did,
    /// What it says.
    pub said: Said,
    /// The frame.
    pub frame: Vec<u8>,
}

/// What a host holds: what a copy of its disk has.
#[derive(Clone)]
pub struct Books {
    /// Its accounts.
    pub accounts: BTreeMap<Did, HostAccount>,
    /// Its stream, oldest first.
    pub log: Vec<Emitted>,
    /// The number of the next event.
    pub next_seq: u64,
    /// Events up to this number are forgotten.
    pub forgotten_to: u64,
}

/// A host.
pub struct SimPds {
    /// Its name.
    pub name: HostName,
    /// What it holds now.
    pub books: Books,
    /// An older copy of its disk.
    pub copy: Option<Books>,
    /// It does not answer.
    pub down: bool,
    /// It lists no accounts.
    pub lists_nothing: bool,
    /// Its numbers went back and it has not been asked for a cursor since.
    pub went_back: bool,
    /// Events that a later one overtook on the way: whoever got that one cannot know of them.
    pub overtaken: BTreeSet<u64>,
    /// Its numbers went back in this very step.
    pub went_back_now: bool,
    /// Whether the daemon follows it.
    pub followed: bool,
    /// It leaves accounts out of its listing.
    pub lists_half: bool,
}

/// Why a host does not give what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No answer, or an error of its own.
    Unreachable,
    /// `RepoNotFound`, or no such blob.
    NotFound,
    /// The account is not active.
    Inactive(AccountStatus),
}

/// What a stream begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Events above the cursor follow.
    Open,
    /// `#info OutdatedCursor`, then the oldest that is kept.
    Outdated,
    /// `FutureCursor`, then the end.
    Future,
}

/// An account of a listing.
pub type ListedAccount = (Did, Cid, AccountStatus);

impl Network {
    /// Whether an account is at home at a host: its document names it.
    #[must_use]
    pub fn is_home(&self, host: usize, did: &Did) -> bool {
        self.plc.truth(did).host == self.hosts[host].name
    }
}

impl SimPds {
    /// A host without accounts.
    #[must_use]
    pub fn new(number: usize) -> Self {
        Self {
            name: format!("pds{number}.test").parse().expect("a host name"),
            books: Books {
                accounts: BTreeMap::new(),
                log: Vec::new(),
                next_seq: 1,
                forgotten_to: 0,
            },
            copy: None,
            down: false,
            lists_nothing: false,
            went_back: false,
            overtaken: BTreeSet::new(),
            went_back_now: false,
            followed: true,
            lists_half: false,
        }
    }

    /// Takes the next number; `gap` numbers are left out.
    pub const fn take_seq(&mut self, gap: u64) -> u64 {
        let seq = self.books.next_seq + gap;
        self.books.next_seq = seq + 1;
        seq
    }

    /// Writes an event into the stream.
    pub fn emit(&mut self, seq: u64, did: &Did, said: Said, frame: Vec<u8>) {
        let did = did.clone();
        self.books.log.push(Emitted {
            seq,
            did,
            said,
            frame,
        });
    }

    /// Emits `#identity`.
    pub fn emit_identity(&mut self, did: &Did, now: Timestamp) {
        let seq = self.take_seq(0);
        let frame = encode_frame(&Frame::Identity(IdentityFrame {
            seq,
            did: did.clone(),
            handle: None,
            time: Some(now),
        }));
        self.emit(seq, did, Said::Identity, frame);
    }

    /// Emits `#account` with the account's standing.
    pub fn emit_account(&mut self, did: &Did, now: Timestamp) {
        let Some(held) = self.books.accounts.get(did) else {
            return;
        };
        let status = held.status.clone();
        let seq = self.take_seq(0);
        let frame = encode_frame(&Frame::Account(AccountFrame {
            seq,
            did: did.clone(),
            active: status.is_active(),
            status: status.wire_name(),
            time: Some(now),
        }));
        self.emit(seq, did, Said::Account(status), frame);
    }

    /// Emits `#sync` with the account's head.
    pub fn emit_sync(&mut self, did: &Did, now: Timestamp) {
        let seq = self.take_seq(0);
        let Some(held) = self.books.accounts.get(did) else {
            return;
        };
        let (rev, head) = held.head();
        let lax = held.lax.iter().flat_map(|lax| lax.blocks.last());
        let block = lax.map(|(_, block)| &block[..]).next();
        let frame =
            held.account
                .sync_frame_of(seq, rev, head, block.unwrap_or(held.account.commit_block()), now);
        self.emit(seq, did, Said::Sync(rev), frame);
    }

    /// The number of the newest event; 0 before the first.
    #[must_use]
    pub const fn last_seq(&self) -> u64 {
        self.books.next_seq - 1
    }

    /// What `subscribeRepos` begins with.
    #[must_use]
    pub fn open(&self, cursor: u64) -> Opening {
        if cursor > self.last_seq() {
            Opening::Future
        } else if cursor < self.books.forgotten_to {
            Opening::Outdated
        } else {
            Opening::Open
        }
    }

    /// The first event above a number. What is forgotten is only forgotten for new connections.
    #[must_use]
    pub fn next_event(&self, after: u64) -> Option<&Emitted> {
        self.books.log.iter().find(|event| event.seq > after)
    }

    /// `listRepos`: accounts after the cursor, at most `limit`, and the next cursor.
    ///
    /// # Errors
    /// When the host is down.
    pub fn list(
        &self,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<ListedAccount>, Option<String>), Refusal> {
        if self.down {
            return Err(Refusal::Unreachable);
        }
        if self.lists_nothing {
            return Ok((Vec::new(), None));
        }
        let shown = |did: &Did| {
            !self.lists_half || did.as_str().len() % 2 == 1 || did.as_str().ends_with(|last| last > 'm')
        };
        let known = self.books.accounts.iter();
        let known = known.filter(|(did, held)| !held.forgotten && shown(did));
        let mut after = known.filter(|(did, _)| cursor.is_none_or(|cursor| did.as_str() > cursor));
        let page: Vec<_> = after
            .by_ref()
            .take(limit)
            .map(|(did, held)| (did.clone(), held.head().1, held.status.clone()))
            .collect();
        let next = page.last().map(|(did, ..)| did.to_string());
        Ok((page, next.filter(|_| after.next().is_some())))
    }

    /// The account, if the host serves it.
    ///
    /// # Errors
    /// As the host would answer.
    pub fn served(&self, did: &Did) -> Result<&HostAccount, Refusal> {
        if self.down {
            return Err(Refusal::Unreachable);
        }
        let held = self.books.accounts.get(did).filter(|held| !held.forgotten);
        let held = held.ok_or(Refusal::NotFound)?;
        match &held.status {
            status if status.is_active() => Ok(held),
            AccountStatus::Deleted => Err(Refusal::NotFound),
            // The lexicon has no error for an unknown reason; hosts say that there is none.
            AccountStatus::Other(_) => Err(Refusal::NotFound),
            status => Err(Refusal::Inactive(status.clone())),
        }
    }

    /// `getBlob`.
    ///
    /// # Errors
    /// As the host would answer.
    pub fn blob(&self, did: &Did, digest: &Digest, now: Timestamp) -> Result<Vec<u8>, Refusal> {
        let blob = self.served(did)?.blobs.get(digest).ok_or(Refusal::NotFound)?;
        match blob.given {
            BlobGiven::Whole => Ok(blob.bytes.clone()),
            BlobGiven::Late(until) if now >= until => Ok(blob.bytes.clone()),
            BlobGiven::Late(_) | BlobGiven::Missing => Err(Refusal::NotFound),
            BlobGiven::Wrong => Ok(b"not these".to_vec()),
        }
    }
}

/// A DID document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The key, as `did:key`.
    pub key: String,
    /// The host that it names.
    pub host: HostName,
}

/// The PLC directory.
#[derive(Default)]
pub struct Plc {
    entries: BTreeMap<Did, PlcEntry>,
    /// It does not answer.
    pub down: bool,
}

/// A DID of the directory.
struct PlcEntry {
    document: Document,
    log: LogMaker,
    changed: Timestamp,
    /// What is still given instead, and until when: a cache before the directory.
    stale: Option<(Document, Timestamp)>,
}

/// Which of the fixtures' keys signs every operation.
const ROTATION_KEY: u8 = 2;

impl Plc {
    /// A new DID, made by its first operation.
    pub fn create(&mut self, document: Document, now: Timestamp) -> Did {
        let mut log = LogMaker::new(now);
        let host = document.host.to_string();
        let genesis = LogMaker::operation(&[ROTATION_KEY], &document.key, &host, None);
        log.push(genesis, ROTATION_KEY);
        let did = log.did();
        let entry = PlcEntry {
            document,
            log,
            changed: now,
            stale: None,
        };
        self.entries.insert(did.clone(), entry);
        did
    }

    /// An operation changes a DID. Until `stale_until` the document of before is given.
    pub fn change(&mut self, did: &Did, document: Document, now: Timestamp, stale_until: Option<Timestamp>) {
        let entry = self.entries.get_mut(did).expect("every account has an entry");
        entry.log.later(now.since(entry.changed));
        let (prev, host) = (entry.log.last_cid(), document.host.to_string());
        let operation = LogMaker::operation(&[ROTATION_KEY], &document.key, &host, Some(&prev));
        entry.log.push(operation, ROTATION_KEY);
        let before = std::mem::replace(&mut entry.document, document);
        entry.stale = stale_until.map(|until| (before, until));
        entry.changed = now;
    }

    /// What a DID is now, whatever is given out.
    ///
    /// # Panics
    /// When there is no such DID.
    #[must_use]
    pub fn truth(&self, did: &Did) -> &Document {
        &self
            .entries
            .get(did)
            .expect("every account has an entry")
            .document
    }

    /// The document, as it is given out.
    #[must_use]
    pub fn read(&self, did: &Did, now: Timestamp) -> Option<&Document> {
        let entry = self.entries.get(did).filter(|_| !self.down)?;
        match &entry.stale {
            Some((before, until)) if now < *until => Some(before),
            _ => Some(&entry.document),
        }
    }

    /// The audit log's JSON.
    #[must_use]
    pub fn audit_log(&self, did: &Did) -> Option<Vec<u8>> {
        let entry = self.entries.get(did).filter(|_| !self.down)?;
        Some(entry.log.answer())
    }

    /// The directory answers, and gives what is so.
    pub fn mend(&mut self) {
        self.down = false;
        for entry in self.entries.values_mut() {
            entry.stale = None;
        }
    }
}

/// Everything outside of the daemon.
pub struct Network {
    /// The hosts.
    pub hosts: Vec<SimPds>,
    /// The directory.
    pub plc: Plc,
}
