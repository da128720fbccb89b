//! Events of a stream, gaps in it, and listings.

use std::time::Duration;

use super::super::input::{Gap, HostEvent};
use super::super::keyspace::{self, AlarmKind, Task};
use super::super::rows::{
    AccountRow, DesyncReason, Head, HostRow, Listing, ParkedFrame, Row as _, SyncState,
};
use super::super::store::{Family, StoreError};
use super::epochs::{self, Place};
use super::{Applier, Group, Note};
use crate::types::{AccountStatus, Did, HostName, Rev, Timestamp};
use crate::verify::{Checked, CommitProof, EventBody, RejectReason, Remedy, VerifiedSync};

/// An event as it is judged: live, or again from the parked queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has just come.
    Live,
    /// It was parked; the account's identity is fresh, so a bad signature is final.
    Replayed,
}

/// A DID document that was read longer ago than this is read again before it is held against a host.
const IDENTITY_TRUSTED_FOR: Duration = Duration::from_secs(60);

/// A host whose stream was no proper one is listed again so soon; not sooner, for what it left out may still come.
const GARBLED_LISTING: Duration = Duration::from_secs(30);

/// Where and when an event came.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) host: HostName,
    pub(super) seq: u64,
    pub(super) received: Timestamp,
    /// When the host says that it happened.
    pub(super) time: Option<Timestamp>,
}

/// What became of an event that may be parked.
pub(super) enum Fate {
    /// It is dealt with.
    Done,
    /// It has to wait.
    Park,
}

impl Applier {
    pub(super) fn on_event(&mut self, group: &mut Group<'_>, event: HostEvent) -> Result<(), StoreError> {
        let HostEvent {
            host,
            received,
            frame,
            event,
        } = event;
        let mut row = group.stage.host(&host)?.unwrap_or_else(|| HostRow::new(""));
        match epochs::place(&row, event.seq, event.fingerprint) {
            Place::Next => {}
            Place::Seen => {
                group.notes.push(Note::Replayed { host });
                return Ok(());
            }
            Place::OtherHistory => {
                let seq = event.seq;
                let found = format!("under sequence number {seq} it now has another event than before");
                Self::new_epoch(group, &host, &mut row, &found)?;
            }
        }
        epochs::remember(&mut row, event.seq, event.fingerprint);
        row.last_event = Some(received);
        let (epoch, scope) = (row.epoch, row.scope);
        group.stage.put_host(&host, row);
        if let Some(did) = event.body.did()
            && !self.is_followed(group, did, scope)?
        {
            group.notes.push(Note::Inactive { host });
            return Ok(());
        }

        let arrival = Arrival {
            host: host.clone(),
            seq: event.seq,
            received,
            time: event.time,
        };
        match event.body {
            EventBody::Commit { did, rev, checked } => {
                let account = self.account_or_new(group, &did, &host)?;
                let fate = self.judge_commit(group, &did, account, &arrival, rev, checked, Turn::Live)?;
                self.settle(group, &did, fate, &arrival, epoch, rev, &frame)
            }
            EventBody::Sync { did, rev, checked } => {
                let account = self.account_or_new(group, &did, &host)?;
                let fate = self.judge_sync(group, &did, account, &arrival, rev, checked, Turn::Live)?;
                self.settle(group, &did, fate, &arrival, epoch, rev, &frame)
            }
            EventBody::Identity { did } => self.on_identity_event(group, &did, &host),
            EventBody::Account { did, status } => self.on_account_event(group, &did, &arrival, status),
            EventBody::Malformed { did, reason } => self.on_malformed(group, did, reason, &host),
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one event and its account: a struct would only rename them"
    )]
    fn settle(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        fate: Fate,
        arrival: &Arrival,
        epoch: u64,
        rev: Rev,
        frame: &[u8],
    ) -> Result<(), StoreError> {
        match fate {
            Fate::Done => Ok(()),
            Fate::Park => self.park(
                group,
                did,
                &ParkedFrame {
                    host: arrival.host.clone(),
                    epoch,
                    seq: arrival.seq,
                    received: arrival.received,
                    rev,
                    frame: frame.to_vec(),
                },
            ),
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one event and its account: a struct would only rename them"
    )]
    pub(super) fn judge_commit(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
        arrival: &Arrival,
        rev: Rev,
        checked: Checked<CommitProof>,
        turn: Turn,
    ) -> Result<Fate, StoreError> {
        let claims = (rev, checked.proof().map(CommitProof::signed), checked.rejection());
        if let Some(fate) = Self::before_proof(group, did, &row, arrival, claims, turn) {
            return Ok(fate);
        }
        let reason = DesyncReason::Quarantined;
        if let Some(fate) = Self::quarantine_gate(group, did, &row, &arrival.host, rev, reason) {
            return Ok(fate);
        }
        let proof = match checked {
            Checked::Verified(proof) => proof,
            Checked::NoKey => return Ok(Self::await_identity(group, did, row, false)),
            Checked::Rejected(reason) => {
                return Ok(Self::reject(group, did, row, &arrival.host, reason, turn));
            }
        };
        let prev_data = match &proof {
            CommitProof::Inverted(commit) => Some(commit.prev_data()),
            CommitProof::Legacy(commit) => commit.prev_data(),
        };
        let chains = |head: &Head| prev_data.is_none_or(|data| data == head.data);
        if !row.head.as_ref().is_some_and(chains) {
            Self::note_rejected(group, did, &arrival.host, RejectReason::ChainBroken);
            Self::want(group, did, &mut row, DesyncReason::ChainBroken, Some(rev));
            group.stage.put_account(did, row);
            return Ok(Fate::Done);
        }
        if let Err((row, reason)) = self.apply_commit(group, did, row, arrival, &proof)? {
            return Ok(Self::reject(group, did, row, &arrival.host, reason, turn));
        }
        Ok(Fate::Done)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one event and its account: a struct would only rename them"
    )]
    pub(super) fn judge_sync(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
        arrival: &Arrival,
        rev: Rev,
        checked: Checked<Box<VerifiedSync>>,
        turn: Turn,
    ) -> Result<Fate, StoreError> {
        let claims = (
            rev,
            checked.proof().map(|sync| sync.signed()),
            checked.rejection(),
        );
        if let Some(fate) = Self::before_proof(group, did, &row, arrival, claims, turn) {
            return Ok(fate);
        }
        let reason = DesyncReason::SyncEvent;
        if let Some(fate) = Self::quarantine_gate(group, did, &row, &arrival.host, rev, reason) {
            return Ok(fate);
        }
        let sync = match checked {
            Checked::Verified(sync) => sync,
            Checked::NoKey => return Ok(Self::await_identity(group, did, row, false)),
            // Anyone can sign a state with a key of their own: that must not make us fetch.
            Checked::Rejected(reason) if reason.is_foreign_signature(turn == Turn::Replayed) => {
                Self::note_rejected(group, did, &arrival.host, reason);
                return Ok(Fate::Done);
            }
            Checked::Rejected(reason) => {
                return Ok(Self::reject(group, did, row, &arrival.host, reason, turn));
            }
        };
        let signed = sync.signed();
        match &row.head {
            Some(head) if head.commit == signed.cid() => return Ok(Fate::Done),
            // Signed anew, such as after a change of keys: the records are the ones that we hold.
            Some(head) if head.data == signed.data() && head.rev < signed.rev() => {
                self.apply_same_tree(group, did, row, arrival, &sync)?;
                return Ok(Fate::Done);
            }
            _ => {}
        }
        Self::want(group, did, &mut row, DesyncReason::SyncEvent, None);
        group.stage.put_account(did, row);
        Ok(Fate::Done)
    }

    pub(super) fn reject(
        group: &mut Group<'_>,
        did: &Did,
        mut row: AccountRow,
        host: &HostName,
        reason: RejectReason,
        turn: Turn,
    ) -> Fate {
        let aged = row
            .identity
            .as_ref()
            .is_some_and(|read| group.now.since(read.read_at) > IDENTITY_TRUSTED_FOR);
        let remedy = match (reason, reason.remedy(), turn) {
            (_, Remedy::RefreshIdentity, Turn::Replayed) => Remedy::Resync,
            // It may have moved here since its document was read.
            (RejectReason::WrongHost, _, Turn::Live) if aged => Remedy::RefreshIdentity,
            (_, remedy, _) => remedy,
        };
        if remedy == Remedy::RefreshIdentity {
            return Self::await_identity(group, did, row, true);
        }
        Self::note_rejected(group, did, host, reason);
        if remedy == Remedy::Resync {
            Self::want(group, did, &mut row, reason.into(), None);
            group.stage.put_account(did, row);
        }
        Fate::Done
    }

    /// Lets the account's events queue up until its identity is resolved (again).
    fn await_identity(group: &mut Group<'_>, did: &Did, mut row: AccountRow, stale: bool) -> Fate {
        if stale {
            row.identity = None;
        }
        if !row.awaiting_identity {
            row.awaiting_identity = true;
            group
                .stage
                .put_task(group.now, &Task::ResolveIdentity(did.clone()));
        }
        group.stage.put_account(did, row);
        Fate::Park
    }

    /// Puts a frame into the account's queue; past its bound the queue is dropped, and the fetch has to
    /// reach at least the newest rev that was in it.
    fn park(&mut self, group: &mut Group<'_>, did: &Did, frame: &ParkedFrame) -> Result<(), StoreError> {
        let Some(mut row) = self.account(group, did)? else {
            return Ok(());
        };
        let value = frame.encode();
        let bytes = value.len() as u64;
        // A frame may bring what was erased: of such an account none is kept, and it is fetched instead.
        if row.erased.is_some()
            || row.parked >= self.limits.parked_frames_max
            || row.parked_bytes + bytes > self.limits.parked_bytes_max
        {
            let (from, to) = keyspace::number_bounds(row.did_number);
            group
                .stage
                .batch()
                .delete_range(Family::Parked, from.to_vec(), to.to_vec());
            (row.parked, row.parked_bytes) = (0, 0);
            row.awaiting_identity = false;
            group.notes.push(Note::ParkedDropped { did: did.clone() });
            Self::want(
                group,
                did,
                &mut row,
                DesyncReason::ParkedOverflow,
                Some(frame.rev),
            );
            group.stage.put_account(did, row);
            return Ok(());
        }
        let key = keyspace::encode_parked(row.did_number, self.next_arrival);
        self.next_arrival += 1;
        group.stage.batch().put(Family::Parked, key.to_vec(), value);
        row.parked += 1;
        row.parked_bytes += bytes;
        group.stage.put_account(did, row);
        group.notes.push(Note::Parked {
            host: frame.host.clone(),
            did: did.clone(),
        });
        Ok(())
    }

    fn on_identity_event(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        host: &HostName,
    ) -> Result<(), StoreError> {
        let mut row = self.account_or_new(group, did, host)?;
        if Self::is_foreign(group, did, &row, host) {
            return Ok(());
        }
        // The key on file may be the one of before: no commit is judged by it any more. An account that is
        // to be fetched gets its identity with the fetch, but what is inactive is not fetched.
        row.identity = None;
        let fetching = matches!(row.sync, SyncState::Wanted { .. }) && row.upstream.is_active();
        if !row.awaiting_identity && !fetching {
            row.awaiting_identity = true;
            group
                .stage
                .put_task(group.now, &Task::ResolveIdentity(did.clone()));
        }
        group.stage.put_account(did, row);
        Ok(())
    }

    fn on_account_event(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        arrival: &Arrival,
        status: AccountStatus,
    ) -> Result<(), StoreError> {
        let mut row = self.account_or_new(group, did, &arrival.host)?;
        if Self::is_foreign(group, did, &row, &arrival.host) {
            return Ok(());
        }
        row.status_seq = arrival.seq;
        row.status_at = row.status_at.max(Some(arrival.received));
        if !status.is_active() {
            self.audit_if_never(group, did, &mut row);
        }
        Self::set_status(group, did, row, status);
        Ok(())
    }

    /// Takes over what the host says of the account's standing. Nothing is deleted by it.
    pub(super) fn set_status(group: &mut Group<'_>, did: &Did, mut row: AccountRow, status: AccountStatus) {
        Self::note_away(group, did, &mut row, status.is_active());
        if row.upstream != status {
            group.notes.push(Note::Status {
                did: did.clone(),
                status: status.label(),
            });
            if status == AccountStatus::Deleted {
                // Asked for by name, the host confirms it or does not.
                group.stage.put_task(group.now, &Task::AuditAccount(did.clone()));
            }
            let returns = status.is_active() && !row.upstream.is_active();
            if !status.is_active() {
                // The host that an account leaves says no more than this.
                Self::ask_identity(group, did, &row);
            }
            if status != AccountStatus::Deleted {
                // A later deletion has a time of grace of its own.
                row.deletion_confirmed_at = None;
            }
            row.upstream = status;
            Self::log_status(group, did, &row);
            if returns {
                if matches!(row.sync, SyncState::Wanted { .. }) {
                    // It was asked for before and could not be had: now it may.
                    group.stage.put_task(group.now, &Task::FetchRepo(did.clone()));
                }
                Self::want(group, did, &mut row, DesyncReason::Reactivated, None);
            }
        }
        group.stage.put_account(did, row);
    }

    fn on_malformed(
        &mut self,
        group: &mut Group<'_>,
        did: Option<Did>,
        reason: RejectReason,
        host: &HostName,
    ) -> Result<(), StoreError> {
        let Some(did) = did else {
            group.notes.push(Note::Rejected {
                host: host.clone(),
                did: None,
                reason,
            });
            return Ok(());
        };
        let mut row = self.account_or_new(group, &did, host)?;
        // Another host's word about the account is no reason to fetch it.
        if !Self::is_foreign(group, &did, &row, host) {
            // It tells no rev that the fetch would have to reach.
            row.fetch_again = matches!(row.sync, SyncState::Wanted { .. } | SyncState::Quarantined { .. });
            group.stage.put_account(&did, row.clone());
            Self::reject(group, &did, row, host, reason, Turn::Replayed);
        }
        Ok(())
    }

    /// Events were lost: every account of the host has to be compared, so it is listed again.
    pub(super) fn on_gap(
        &mut self,
        group: &mut Group<'_>,
        host: &HostName,
        gap: Gap,
    ) -> Result<(), StoreError> {
        let Some(mut row) = group.stage.host(host)? else {
            return Ok(());
        };
        if row.cursor.is_none() {
            // With cursor 0, an old PDS always says that the cursor is outdated; and a second refusal of a
            // cursor that was given up already says nothing new.
            return Ok(());
        }
        if gap == Gap::Garbled {
            let soon = group.now.plus(GARBLED_LISTING);
            if row.next_listing.is_some_and(|next| next > soon) {
                let task = Task::ListRepos(host.clone());
                group.stage.repeat_task(row.next_listing, soon, &task);
                row.next_listing = Some(soon);
                group.stage.put_host(host, row);
            }
            return Ok(());
        }
        if gap == Gap::CursorFromFuture {
            let found = "it does not know the sequence number that we had reached";
            Self::new_epoch(group, host, &mut row, found)?;
            group.stage.put_host(host, row);
            return Ok(());
        }
        row.listing = Listing::Unfinished { cursor: None };
        group.stage.put_host(host, row);
        group.stage.put_task(group.now, &Task::ListRepos(host.clone()));
        group.notes.push(Note::Gap { host: host.clone() });
        Ok(())
    }

    /// The host's numbering is another one: a restored copy, or a new installation. Every account is compared.
    fn new_epoch(
        group: &mut Group<'_>,
        host: &HostName,
        row: &mut HostRow,
        found: &str,
    ) -> Result<(), StoreError> {
        epochs::begin_epoch(row, group.now);
        group.stage.put_task(group.now, &Task::ListRepos(host.clone()));
        let message = format!(
            "{host} went back: {found}. Nothing of ours is lost; its accounts are compared, and what they lack is \
             kept. The highest sequence number ever seen there is {}: move the PDS's sequence above it",
            row.highest_seq
        );
        group.notes.push(Note::Gap { host: host.clone() });
        Self::raise(group, host, AlarmKind::SequenceReset, "", message, Vec::new())
    }
}
