//! Gates that need an account's row, but not the proof of its event.

use super::super::erased::ErasedMark;
use super::super::rows::{AccountRow, SyncState};
use super::events::{Arrival, Fate, Turn};
use super::{Applier, Group, Note};
use crate::types::{Did, HostName, Rev};
use crate::verify::{RejectReason, SignedCommit};

/// Whether an event of no later `rev` than our head's has another commit than our head under our head's rev.
fn is_fork(row: &AccountRow, rev: Rev, commit: &SignedCommit) -> bool {
    let head = row.head.as_ref();
    head.is_some_and(|head| rev <= head.rev && head.rev == commit.rev() && head.commit != commit.cid())
}

impl Applier {
    /// Whether events of the account have to queue up: it is being fetched, or others wait already.
    pub(super) const fn must_wait(row: &AccountRow) -> bool {
        matches!(row.sync, SyncState::Wanted { .. }) || row.awaiting_identity
    }

    /// What is settled before what is proven: who may speak, whether the account is on, whether the event has to
    /// wait, whether it is another commit under our head's rev, whether it is old. `None`: the proof decides.
    pub(super) fn before_proof(
        group: &mut Group<'_>,
        did: &Did,
        row: &AccountRow,
        arrival: &Arrival,
        (rev, signed, rejection): (Rev, Option<&SignedCommit>, Option<RejectReason>),
        turn: Turn,
    ) -> Option<Fate> {
        let host = &arrival.host;
        if Self::is_foreign(group, did, row, host) {
            // Counted, and the account's document is read again.
        } else if rejection == Some(RejectReason::FutureRev) {
            Self::note_rejected(group, did, host, RejectReason::FutureRev);
        } else if row.erased == Some(ErasedMark::Whole) {
            // A person wants nothing of it here.
            group.notes.push(Note::Inactive { host: host.clone() });
        } else if !row.upstream.is_active() {
            // The host says that the account is off, so it should not speak. When it comes back it is compared.
            group.notes.push(Note::Inactive { host: host.clone() });
        } else if turn == Turn::Live && Self::must_wait(row) {
            return Some(Fate::Park);
        } else if signed.is_some_and(|signed| is_fork(row, rev, signed)) {
            return Some(Self::reject(
                group,
                did,
                row.clone(),
                host,
                RejectReason::Forked,
                turn,
            ));
        } else if row.head.as_ref().is_some_and(|head| rev <= head.rev) {
            group.notes.push(Note::Replayed { host: host.clone() });
            Self::hear_behind(group, did, row, rev);
        } else {
            return None;
        }
        Some(Fate::Done)
    }

    pub(super) fn note_rejected(group: &mut Group<'_>, did: &Did, host: &HostName, reason: RejectReason) {
        group.notes.push(Note::Rejected {
            host: host.clone(),
            did: Some(did.clone()),
            reason,
        });
    }
}
