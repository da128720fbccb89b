//! The applier on the model store, with frames that simulated accounts signed.

mod load;
mod strict;

use crate::verify::RejectReason;
use std::sync::Arc;

use super::*;
use crate::mirror::input::{
    BlobKey, BlobMention, FetchFailure, Fetched, FetchedContent, Gap, HostEvent, ListedPage, ListedRepo,
};
use crate::mirror::memory::MemoryStore;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{BlobFailure, BlobState, Listing, Row as _, StoredIdentity};
use crate::mirror::store::View as _;
use crate::repo::car::parse_car;
use crate::repo::export::{RecordRows, prove};
use crate::repo::record::scan_record;
use crate::sim::SimAccount;
use crate::sim::account::{Write, post, post_with_blob};
use crate::types::{AccountStatus, Cid, Digest};
use crate::verify::{FrameContent, KeyLookup, check_frame, check_repo};

pub(crate) const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

/// When hosts are asked: after everything that came at [`NOW`].
pub(crate) const ASKED: Timestamp = Timestamp::from_micros(1_800_000_001_000_000);

pub(crate) struct World {
    pub(crate) store: Arc<MemoryStore>,
    numbers: Arc<Numbers>,
    pub(crate) applier: Applier,
    pub(crate) host: HostName,
    pub(crate) seq: u64,
    /// What a fetch knows of as erased.
    pub(crate) erased_when_fetched: usize,
}

impl World {
    pub(crate) fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        let shared: Arc<dyn Store> = Arc::clone(&store) as _;
        let numbers = Arc::new(Numbers::open(Arc::clone(&shared)).expect("empty store"));
        let limits = ApplierLimits {
            parked_frames_max: 5,
            ..ApplierLimits::default()
        };
        let mut applier = Applier::open(shared, Arc::clone(&numbers), limits).expect("empty store");
        let host: HostName = "pds.test".parse().expect("valid");
        applier.ensure_host(&host, "https://pds.test").expect("writes");
        Self {
            store,
            numbers,
            applier,
            host,
            seq: 0,
            erased_when_fetched: 0,
        }
    }

    /// So much may wait for the archive.
    pub(crate) fn set_spool(&mut self, bytes: u64) {
        self.applier.limits.spool_bytes_max = bytes;
    }

    pub(crate) fn seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    pub(crate) fn apply(&mut self, input: Input) -> Vec<Note> {
        self.applier
            .apply(vec![input], NOW)
            .expect("the model store does not fail")
            .notes
    }

    /// The key that the verifier would use: what the account's row says.
    fn lookup(&self, did: &Did) -> KeyLookup {
        let row = self.row(did);
        let Some(identity) = row.and_then(|row| row.identity) else {
            return KeyLookup::Unknown;
        };
        let key = identity
            .key
            .as_deref()
            .map(crate::repo::signing_key::SigningKey::from_did_key);
        match key {
            Some(Ok(key)) if identity.speaks_at(&self.host) => KeyLookup::Key(Arc::new(key)),
            _ => KeyLookup::NotThisHost,
        }
    }

    pub(crate) fn frame(&mut self, frame: Vec<u8>) -> Vec<Note> {
        let event = self.event(frame);
        self.apply(event)
    }

    pub(crate) fn event(&self, frame: Vec<u8>) -> Input {
        let content = check_frame(&frame, |did| self.lookup(did), NOW).expect("well-formed");
        let FrameContent::Event(event) = content else {
            panic!("an event")
        };
        Input::Event(HostEvent {
            host: self.host.clone(),
            received: NOW,
            frame: frame.into(),
            event,
        })
    }

    /// Sets an account's row, as if a batch had.
    pub(crate) fn put_row(&mut self, did: &Did, row: &AccountRow) {
        use crate::mirror::rows::Row as _;

        let mut batch = crate::mirror::store::Batch::new();
        batch.put(Family::Accounts, keyspace::encode_account(did), row.encode());
        self.store.write(batch).expect("writes");
        self.applier.cache.remove(did);
    }

    /// Every row of `records`.
    fn records(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        let visit = &mut |key: &[u8], value: &[u8]| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        };
        self.store
            .scan(Family::Records, &KeyRange::all(), visit)
            .expect("reads");
        rows
    }

    pub(crate) fn commit(&mut self, account: &mut SimAccount, writes: &[Write]) -> Vec<Note> {
        let seq = self.seq();
        let frame = account.commit(seq, writes, NOW);
        self.frame(frame)
    }

    pub(crate) fn identity(&self, account: &SimAccount) -> StoredIdentity {
        StoredIdentity {
            key: Some(account.key().to_did_key()),
            host: Some(self.host.to_string()),
            handle: None,
            read_at: NOW,
        }
    }

    /// Has an account fetched whatever its state is: a copy of which somebody says that it is to be compared.
    pub(crate) fn want_again(&mut self, did: &Did) {
        let mut row = self.row(did).expect("known");
        row.sync = SyncState::Wanted {
            reason: DesyncReason::Requested,
            since: NOW,
            tries: 0,
        };
        let mut batch = super::super::store::Batch::new();
        batch.put(Family::Accounts, keyspace::encode_account(did), row.encode());
        self.store.write(batch).expect("writes");
        self.applier.cache.clear();
    }

    /// Does what a fetch does: loads the export under a number of its own.
    pub(crate) fn fetch(&mut self, account: &SimAccount) -> Vec<Note> {
        let loaded = self.load(account);
        self.apply(loaded)
    }

    pub(crate) fn fetch_task(&self, did: &Did) -> Vec<u8> {
        let tasks = Mirror::new(&*self.store)
            .due_tasks(u64::MAX - 1, 1000)
            .expect("reads");
        let task = tasks
            .into_iter()
            .find(|due| due.task == Task::FetchRepo(did.clone()));
        task.map_or_else(Vec::new, |due| keyspace::encode_task(due.due_ms, &due.task))
    }

    pub(crate) fn tasks(&self) -> Vec<Task> {
        let tasks = Mirror::new(&*self.store)
            .due_tasks(u64::MAX - 1, 1000)
            .expect("reads");
        tasks.into_iter().map(|due| due.task).collect()
    }

    pub(crate) fn row(&self, did: &Did) -> Option<AccountRow> {
        Mirror::new(&*self.store).account(did).expect("reads")
    }

    pub(crate) fn cursor(&self) -> Option<u64> {
        Mirror::new(&*self.store)
            .host(&self.host)
            .expect("reads")
            .and_then(|row| row.cursor)
    }

    /// The mirror holds exactly what the account holds, and proves it.
    pub(crate) fn check_equal(&self, account: &SimAccount) {
        let row = self.row(account.did()).expect("known");
        let head = row.head.as_ref().expect("loaded");
        assert_eq!(
            (head.rev, head.commit, head.data),
            (account.rev(), account.head(), account.data())
        );
        let mirror = Mirror::new(&*self.store);
        let rows = mirror.rows(row.account_number);
        let proven = prove(&rows, head.data).expect("proves");
        assert_eq!(proven.records(), row.records);
        let mut held = std::collections::BTreeMap::new();
        RecordRows::scan(&rows, None, &mut |path, _, bytes| {
            held.insert(String::from_utf8_lossy(path).into_owned(), bytes.to_vec());
            ControlFlow::Continue(())
        })
        .expect("scans");
        assert_eq!(&held, account.records());
        assert_eq!(
            row.record_bytes,
            held.values().map(|bytes| bytes.len() as u64).sum::<u64>()
        );
    }

    /// An account that was fetched and is live.
    pub(crate) fn live(&mut self, number: u64) -> SimAccount {
        let mut account = SimAccount::new(number, NOW);
        account.commit(0, &[write("a", "first")], NOW);
        self.apply(Input::Listed(ListedPage {
            host: self.host.clone(),
            repos: vec![ListedRepo {
                did: account.did().clone(),
                head: Some(account.head()),
                status: AccountStatus::Active,
            }],
            listing: Listing::Finished { at: NOW },
            asked_at: ASKED,
            task: None,
        }));
        self.fetch(&account);
        self.check_equal(&account);
        account
    }
}

pub(crate) fn write(rkey: &str, text: &str) -> Write {
    (format!("app.bsky.feed.post/{rkey}"), Some(post(text)))
}

pub(crate) fn delete(rkey: &str) -> Write {
    (format!("app.bsky.feed.post/{rkey}"), None)
}

#[test]
fn commits_are_applied_with_their_cursor() {
    let mut world = World::new();
    let mut account = world.live(1);
    world.commit(&mut account, &[write("b", "second"), write("c", "third")]);
    world.commit(&mut account, &[write("b", "changed"), delete("a")]);
    let notes = world.commit(&mut account, &[write("a", "again")]);
    assert!(matches!(notes[..], [Note::Applied { .. }]), "{notes:?}");
    world.check_equal(&account);
    assert_eq!(world.cursor(), Some(3));
    let row = world.row(account.did()).expect("known");
    assert_eq!(row.journal_commits, 3);
}

#[test]
fn a_replayed_event_changes_nothing() {
    let mut world = World::new();
    let mut account = world.live(1);
    let frame = account.commit(7, &[write("b", "second")], NOW);
    world.frame(frame.clone());
    let row = world.row(account.did());
    // The same seq again, and the same commit under a later seq.
    assert!(matches!(world.frame(frame)[..], [Note::Replayed { .. }]));
    assert_eq!(world.row(account.did()), row);
    assert_eq!(world.cursor(), Some(7));
}

#[test]
fn an_old_rev_under_a_new_seq_is_skipped() {
    let mut world = World::new();
    let mut account = world.live(1);
    let mut twin = SimAccount::new(1, NOW);
    twin.commit(0, &[write("a", "first")], NOW);
    world.commit(&mut account, &[write("b", "second")]);
    world.commit(&mut account, &[write("c", "third")]);
    let old = twin.commit(9, &[write("b", "second")], NOW);
    assert!(matches!(world.frame(old)[..], [Note::Replayed { .. }]));
    world.check_equal(&account);
    assert_eq!(world.cursor(), Some(9));
}

#[test]
fn a_swallowed_commit_breaks_the_chain_and_is_healed_by_a_fetch() {
    let mut world = World::new();
    let mut account = world.live(1);
    account.commit(1, &[write("lost", "nobody saw this")], NOW);
    let before = world.row(account.did()).and_then(|row| row.head);
    let notes = world.commit(&mut account, &[write("b", "second")]);
    assert!(notes.contains(&Note::Desynchronized {
        did: account.did().clone(),
        reason: DesyncReason::ChainBroken
    }));
    assert_eq!(
        world.row(account.did()).and_then(|row| row.head),
        before,
        "nothing of it was applied"
    );
    // What comes meanwhile waits, and is applied in the step of the swap.
    let fetched = world.load(&account);
    let notes = world.commit(&mut account, &[write("c", "third")]);
    assert!(matches!(notes[..], [Note::Parked { .. }]), "{notes:?}");
    world.apply(fetched);
    world.check_equal(&account);
    let row = world.row(account.did()).expect("known");
    assert_eq!((row.parked, row.parked_bytes, row.sync), (0, 0, SyncState::Live));
}

#[test]
fn events_of_an_unknown_account_wait_for_its_first_fetch() {
    let mut world = World::new();
    let mut account = SimAccount::new(5, NOW);
    let notes = world.commit(&mut account, &[write("a", "first")]);
    assert!(matches!(notes[..], [Note::Parked { .. }]), "{notes:?}");
    assert_eq!(world.tasks(), [Task::FetchRepo(account.did().clone())]);
    let fetched = world.load(&account);
    world.commit(&mut account, &[write("b", "second")]);
    world.apply(fetched);
    world.check_equal(&account);
}

#[test]
fn too_many_parked_frames_are_dropped_and_the_fetch_must_reach_them() {
    let mut world = World::new();
    let mut account = SimAccount::new(5, NOW);
    let early = {
        world.commit(&mut account, &[write("r0", "x")]);
        world.load(&account)
    };
    let mut dropped = false;
    for i in 1..8 {
        let notes = world.commit(&mut account, &[write(&format!("r{i}"), "x")]);
        dropped |= notes
            .iter()
            .any(|note| matches!(note, Note::ParkedDropped { .. }));
    }
    assert!(dropped, "the bound of 5 frames was passed");
    world.apply(early);
    let row = world.row(account.did()).expect("known");
    assert!(
        row.head.is_none(),
        "a fetch from before the dropped frames is not enough"
    );
    assert!(matches!(row.sync, SyncState::Wanted { .. }));
    world.fetch(&account);
    world.check_equal(&account);
}

#[test]
fn a_wrong_signature_refreshes_the_identity_once_then_asks_for_the_repository() {
    let mut world = World::new();
    let mut account = world.live(1);
    account.rotate_key(99);
    let notes = world.commit(&mut account, &[write("b", "second")]);
    assert!(matches!(notes[..], [Note::Parked { .. }]), "{notes:?}");
    assert!(
        world
            .tasks()
            .contains(&Task::ResolveIdentity(account.did().clone()))
    );
    world.commit(&mut account, &[write("c", "third")]);
    // The directory has the new key: both are applied.
    let resolved = Some(world.identity(&account));
    world.apply(Input::Identity {
        did: account.did().clone(),
        resolved,
        task: Vec::new(),
        retry_at: NOW,
    });
    world.check_equal(&account);

    // A forger's commit does not verify after the refresh either.
    let mut forger = SimAccount::new(1, NOW);
    forger.rotate_key(98);
    for rkey in ["a", "b", "c"] {
        forger.commit(0, &[write(rkey, "forged")], NOW);
    }
    let seq = world.seq();
    let forged = forger.commit(
        seq,
        &[write("d", "forged")],
        NOW.plus(std::time::Duration::from_secs(1)),
    );
    world.frame(forged);
    let resolved = Some(world.identity(&account));
    let did = account.did().clone();
    let notes = world.apply(Input::Identity {
        did: did.clone(),
        resolved,
        task: Vec::new(),
        retry_at: NOW,
    });
    assert!(
        notes.contains(&Note::Desynchronized {
            did,
            reason: DesyncReason::BadSignature
        }),
        "{notes:?}"
    );
    world.fetch(&account);
    world.check_equal(&account);
}

#[test]
fn another_hosts_account_cannot_be_written_to() {
    let mut world = World::new();
    let mut account = world.live(1);
    let did = account.did().clone();
    let mut identity = world.identity(&account);
    identity.host = Some("elsewhere.test".to_owned());
    world.apply(Input::Identity {
        did: did.clone(),
        resolved: Some(identity),
        task: Vec::new(),
        retry_at: NOW,
    });
    let before = world.row(&did).and_then(|row| row.head);
    let notes = world.commit(&mut account, &[write("b", "second")]);
    assert!(
        matches!(
            &notes[..],
            [Note::Rejected {
                reason: RejectReason::WrongHost,
                ..
            }]
        ),
        "{notes:?}"
    );
    assert_eq!(world.row(&did).and_then(|row| row.head), before);
}

#[test]
fn rows_that_are_not_what_the_head_says_are_noticed() {
    let mut world = World::new();
    let mut account = world.live(1);
    let number = world.row(account.did()).expect("known").account_number;
    let mut batch = super::super::store::Batch::new();
    batch.delete(
        Family::Records,
        keyspace::encode_record(number, b"app.bsky.feed.post/a"),
    );
    world.store.write(batch).expect("writes");
    let notes = world.commit(&mut account, &[delete("a")]);
    assert!(notes.contains(&Note::Desynchronized {
        did: account.did().clone(),
        reason: DesyncReason::CopyDamaged
    }));
    world.fetch(&account);
    world.check_equal(&account);
}

#[test]
fn a_copy_found_damaged_while_it_is_compared_is_fetched_whole() {
    let mut world = World::new();
    let account = world.live(1);
    let did = account.did().clone();
    world.apply(Input::Gap {
        host: world.host.clone(),
        gap: Gap::CursorOutdated,
    });
    world.apply(Input::Listed(ListedPage {
        host: world.host.clone(),
        repos: vec![ListedRepo {
            did: did.clone(),
            head: None,
            status: AccountStatus::Active,
        }],
        listing: Listing::Finished { at: NOW },
        asked_at: ASKED,
        task: None,
    }));
    let wanted = |world: &World| match world.row(&did).expect("known").sync {
        SyncState::Wanted { reason, .. } => Some(reason),
        _ => None,
    };
    assert_eq!(wanted(&world), Some(DesyncReason::HeadDiffers));
    world.apply(Input::Damaged {
        did: did.clone(),
        account_number: world.row(&did).expect("known").account_number,
        task: Vec::new(),
    });
    assert_eq!(wanted(&world), Some(DesyncReason::CopyDamaged));
    // The comparison that was under way finds the same head.
    world.apply(Input::Fetched(Box::new(Fetched {
        did: did.clone(),
        from_number: world.row(&did).expect("known").account_number,
        from_erased: 0,
        identity: world.identity(&account),
        content: FetchedContent::Unchanged {
            commit: account.head(),
        },
        task: world.fetch_task(&did),
    })));
    assert_eq!(wanted(&world), Some(DesyncReason::CopyDamaged));
    world.fetch(&account);
    assert_eq!(wanted(&world), None);
    world.check_equal(&account);
}

#[test]
fn an_inactive_account_keeps_its_data_and_is_compared_when_it_returns() {
    use crate::stream::encode::encode_frame;
    use crate::stream::frame::{AccountFrame, Frame};

    let mut world = World::new();
    let mut account = world.live(1);
    let did = account.did().clone();
    let standing = |world: &mut World, active, status| {
        let seq = world.seq();
        world.frame(encode_frame(&Frame::Account(AccountFrame {
            seq,
            did: did.clone(),
            active,
            status,
            time: None,
        })))
    };
    standing(&mut world, false, Some("deleted"));
    let row = world.row(&did).expect("known");
    assert_eq!(row.upstream, AccountStatus::Deleted);
    world.check_equal(&account);
    let notes = standing(&mut world, true, None);
    assert!(notes.iter().any(|note| matches!(
        note,
        Note::Desynchronized {
            reason: DesyncReason::Reactivated,
            ..
        }
    )));
    let unchanged = Fetched {
        did: did.clone(),
        from_number: row.account_number,
        from_erased: 0,
        identity: world.identity(&account),
        content: FetchedContent::Unchanged {
            commit: account.head(),
        },
        task: world.fetch_task(&did),
    };
    world.apply(Input::Fetched(Box::new(unchanged)));
    world.commit(&mut account, &[write("b", "second")]);
    world.check_equal(&account);
}

#[test]
fn blobs_are_wanted_held_archived_missing_or_withdrawn() {
    let mut world = World::new();
    let mut account = world.live(1);
    let did_number = world.row(account.did()).expect("known").did_number;
    let blob = |bytes: &[u8]| BlobKey {
        did: account.did().clone(),
        did_number,
        digest: *Cid::of_blob(bytes).digest(),
    };
    let (one, two) = (blob(b"one"), blob(b"two"));
    let state = |world: &World, key: &BlobKey| {
        Mirror::new(&*world.store)
            .blob(did_number, &key.digest)
            .expect("reads")
            .map(|row| row.state)
    };
    let with = |rkey: &str, key: &BlobKey| {
        (
            format!("app.bsky.feed.post/{rkey}"),
            Some(post_with_blob("picture", &key.cid(), 3)),
        )
    };
    world.commit(
        &mut account,
        &[with("p1", &one), with("p2", &two), with("p3", &one)],
    );
    assert_eq!(state(&world, &one), Some(BlobState::Wanted));
    assert!(
        world
            .tasks()
            .contains(&Task::FetchBlob(account.did().clone(), one.digest))
    );
    assert_eq!(
        world
            .tasks()
            .iter()
            .filter(|task| matches!(task, Task::FetchBlob(..)))
            .count(),
        2
    );

    world.apply(Input::BlobStored {
        blob: one.clone(),
        size: 3,
        mime: None,
        task: Vec::new(),
    });
    assert_eq!(state(&world, &one), Some(BlobState::Held));
    world.apply(Input::BlobArchived {
        blob: one.clone(),
        task: Vec::new(),
    });
    assert_eq!(state(&world, &one), Some(BlobState::Archived));

    let failed = |failure| Input::BlobFailed {
        blob: two.clone(),
        failure,
        task: Vec::new(),
        retry_at: NOW,
    };
    world.apply(failed(BlobFailure::NotFound));
    assert!(
        matches!(state(&world, &two), Some(BlobState::Missing { .. })),
        "a record refers to it"
    );
    world.commit(&mut account, &[delete("p2")]);
    world.apply(failed(BlobFailure::NotFound));
    assert_eq!(state(&world, &two), Some(BlobState::Withdrawn));
    // A new record brings it back.
    world.commit(&mut account, &[with("p4", &two)]);
    assert_eq!(state(&world, &two), Some(BlobState::Wanted));

    // One of two references goes, then the other.
    let referenced = |world: &World| {
        let number = world.row(&one.did).expect("known").account_number;
        Mirror::new(&*world.store)
            .blob_is_referenced(number, &one.digest)
            .expect("reads")
    };
    world.commit(&mut account, &[delete("p1")]);
    assert!(referenced(&world));
    world.commit(&mut account, &[delete("p3")]);
    assert!(!referenced(&world));
    assert_eq!(world.applier.totals().blob_bytes, 3);
}

#[test]
fn a_snapshot_covers_the_journal_up_to_its_rev() {
    let mut world = World::new();
    let mut account = world.live(1);
    world.commit(&mut account, &[write("b", "second")]);
    let row = world.row(account.did()).expect("known");
    let head = row.head.expect("loaded");
    world.commit(&mut account, &[write("c", "third")]);
    world.apply(Input::SnapshotStored(super::super::input::SnapshotStored {
        did: account.did().clone(),
        account_number: row.account_number,
        rev: head.rev,
        commit: head.commit,
        bytes: 100,
        task: Vec::new(),
    }));
    let row = world.row(account.did()).expect("known");
    assert_eq!(row.journal_commits, 1);
    assert!(!row.is_snapshotted());
    assert_eq!(world.applier.totals().archived, 0);
}

#[test]
fn a_gap_lists_the_host_again_and_an_outdated_first_cursor_does_not() {
    let mut world = World::new();
    let host = world.host.clone();
    let listing = |world: &World| {
        Mirror::new(&*world.store)
            .host(&host)
            .expect("reads")
            .map(|row| row.listing)
    };
    let mut account = world.live(1);
    world.apply(Input::Gap {
        host: host.clone(),
        gap: Gap::CursorOutdated,
    });
    assert_eq!(
        listing(&world),
        Some(Listing::Finished { at: NOW }),
        "no cursor yet, so nothing was lost"
    );
    world.commit(&mut account, &[write("b", "second")]);
    world.apply(Input::Gap {
        host: host.clone(),
        gap: Gap::CursorOutdated,
    });
    assert_eq!(listing(&world), Some(Listing::Unfinished { cursor: None }));
    assert_eq!(world.cursor(), Some(1));
    world.apply(Input::Gap {
        host: host.clone(),
        gap: Gap::CursorFromFuture,
    });
    assert_eq!(world.cursor(), None);
}

#[test]
fn a_failed_fetch_keeps_what_we_hold_and_is_tried_again() {
    let mut world = World::new();
    let mut account = world.live(1);
    account.commit(1, &[write("lost", "x")], NOW);
    world.commit(&mut account, &[write("b", "second")]);
    let before = world.row(account.did()).and_then(|row| row.head);
    let retry_at = NOW.plus(std::time::Duration::from_secs(60));
    for failure in [
        FetchFailure::NotFound,
        FetchFailure::Unreachable("down".to_owned()),
    ] {
        let task = world.fetch_task(account.did());
        world.apply(Input::FetchFailed {
            did: account.did().clone(),
            host: world.host.clone(),
            failure,
            asked_at: ASKED,
            task,
            retry_at,
        });
    }
    let row = world.row(account.did()).expect("known");
    assert_eq!(row.head, before);
    assert!(matches!(row.sync, SyncState::Wanted { tries: 2, .. }));
    assert_eq!(
        world
            .tasks()
            .iter()
            .filter(|task| matches!(task, Task::FetchRepo(_)))
            .count(),
        1
    );
}

#[test]
fn totals_are_the_same_when_counted_again() {
    let mut world = World::new();
    let mut account = world.live(1);
    let mut other = world.live(2);
    world.commit(&mut account, &[write("b", "second"), write("c", "third")]);
    world.commit(&mut other, &[delete("a")]);
    let store: Arc<dyn Store> = Arc::clone(&world.store) as _;
    let again = Applier::open(store, Arc::clone(&world.numbers), ApplierLimits::default()).expect("opens");
    let mut counted = again.totals().clone();
    let mut kept = world.applier.totals().clone();
    for totals in [&mut counted, &mut kept] {
        totals.accounts.retain(|_, count| *count > 0);
        totals.sync.retain(|_, count| *count > 0);
        totals.blobs.retain(|_, count| *count > 0);
        totals.active.retain(|_, count| *count > 0);
    }
    assert_eq!(counted, kept);
    assert_eq!(counted.records, 3);
}
