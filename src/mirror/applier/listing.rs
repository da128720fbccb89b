//! Comparing with a host what its stream may never have said: listings of all its accounts, audits of one.
//!
//! Nothing is deleted because a host does not name it. What a listing lacks is asked for one by one.

use std::ops::ControlFlow;

use super::super::input::{ListedPage, ListedRepo};
use super::super::keyspace::{AlarmKind, Task};
use super::super::reader::Mirror;
use super::super::rows::{AccountRow, DesyncReason, Listing, SyncState};
use super::super::store::StoreError;
use super::{Applier, Group, Note};
use crate::types::{AccountStatus, Cid, Did, DidMethod, HostName, Timestamp};

/// A listing with fewer than this share of the accounts that we hold of a host raises an alarm.
const LISTED_PERCENT_MIN: u64 = 50;
/// Of hosts with fewer accounts none is raised.
const LISTED_ACCOUNTS_MIN: u64 = 3;

/// An account about which an event came while it was asked for is asked for again after this long.
const OUTDATED_RETRY: std::time::Duration = std::time::Duration::from_secs(30);

impl Applier {
    pub(super) fn on_listed(&mut self, group: &mut Group<'_>, page: ListedPage) -> Result<(), StoreError> {
        let Some(row) = group.stage.host(&page.host)? else {
            return Ok(());
        };
        let first = !matches!(row.listing, Listing::Unfinished { cursor: Some(_) });
        if first {
            self.listed
                .insert(page.host.clone(), std::collections::BTreeSet::new());
        }
        let count = page.repos.len() as u64;
        for repo in page.repos {
            let did = repo.did.clone();
            self.on_listed_repo(group, &page.host, repo, page.asked_at)?;
            if let Some(row) = self.account(group, &did)?
                && let Some(listed) = self.listed.get_mut(&page.host)
            {
                listed.insert(row.did_number);
            }
        }
        let finished = matches!(page.listing, Listing::Finished { .. });
        if let Some(mut row) = group.stage.host(&page.host)? {
            row.listed = if first { count } else { row.listed + count };
            row.listing = page.listing;
            if finished {
                group.notes.push(Note::Listed {
                    host: page.host.clone(),
                });
                let again = group.now.plus(self.limits.listing_interval);
                group
                    .stage
                    .repeat_task(row.next_listing, again, &Task::ListRepos(page.host.clone()));
                row.next_listing = Some(again);
            }
            group.stage.put_host(&page.host, row.clone());
            if finished {
                self.check_unlisted(group, &page.host, row.listed)?;
            }
        }
        if let Some(task) = page.task {
            group.stage.delete_task(&task);
        }
        Ok(())
    }

    fn on_listed_repo(
        &mut self,
        group: &mut Group<'_>,
        host: &HostName,
        repo: ListedRepo,
        asked_at: Timestamp,
    ) -> Result<(), StoreError> {
        if self.list_unfollowed(group, &repo.did, host, &repo.status)? {
            return Ok(());
        }
        let known = self.account(group, &repo.did)?.filter(|row| !row.unfollowed);
        let Some(mut row) = known else {
            let mut row = self.account_or_new(group, &repo.did, host)?;
            // One that was never seen counts as active.
            if row.upstream != repo.status {
                row.upstream = repo.status;
                Self::log_status(group, &repo.did, &row);
            }
            group.stage.put_account(&repo.did, row);
            return Ok(());
        };
        // The host that an account left goes on listing it as inactive: that says nothing.
        if row.host != *host && !repo.status.is_active() {
            return Ok(());
        }
        if Self::is_foreign(group, &repo.did, &row, host) {
            return Ok(());
        }
        let status = if row.is_outdated(asked_at) {
            if row.upstream != repo.status {
                Self::audit_soon(group, &repo.did, &mut row);
            }
            row.upstream.clone()
        } else {
            repo.status
        };
        if status.is_active() && row.head.as_ref().map(|head| head.commit) != repo.head {
            // Either events are on their way, or they were lost. The fetch compares first.
            Self::want_unless_diverged(group, &repo.did, &mut row, repo.head);
        }
        Self::set_status(group, &repo.did, row, status);
        Ok(())
    }

    /// An account that was never loaded, and is off, is compared with its host all the same: it may be moving, and
    /// the directory may give the document of before for a while.
    pub(super) fn audit_if_never(&self, group: &mut Group<'_>, did: &Did, row: &mut AccountRow) {
        if row.head.is_none() && row.next_audit.is_none() {
            let at = group.now.plus(self.limits.audit_interval);
            group
                .stage
                .repeat_task(None, at, &Task::AuditAccount(did.clone()));
            row.next_audit = Some(at);
        }
    }

    /// An answer came too late to say anything: the account is asked for again.
    fn audit_soon(group: &mut Group<'_>, did: &Did, row: &mut AccountRow) {
        let again = group.now.plus(OUTDATED_RETRY);
        group
            .stage
            .repeat_task(row.next_audit, again, &Task::AuditAccount(did.clone()));
        row.next_audit = Some(again);
    }

    /// An account whose host is known to be behind is not fetched again for being behind, but for what is new there.
    fn want_unless_diverged(group: &mut Group<'_>, did: &Did, row: &mut AccountRow, theirs: Option<Cid>) {
        if !matches!(row.sync, SyncState::Diverged { .. }) {
            Self::want(group, did, row, DesyncReason::HeadDiffers, None);
        } else if row.kept_head().is_some_and(|kept| Some(kept) != theirs) {
            Self::fetch_behind_later(group, did, row);
        }
    }

    /// Accounts that we hold of a host and that its complete listing does not name: each is asked for, and many
    /// raise an alarm.
    fn check_unlisted(
        &mut self,
        group: &mut Group<'_>,
        host: &HostName,
        count: u64,
    ) -> Result<(), StoreError> {
        let Some(listed) = self.listed.remove(host) else {
            return Ok(());
        };
        let (mut held, mut unlisted) = (0u64, Vec::new());
        Mirror::new(group.stage.store()).each_account(|did, row| {
            let away = matches!(row.sync, SyncState::Moved { .. });
            if row.host == *host && row.head.is_some() && row.upstream.is_active() && !away {
                held += 1;
                if !listed.contains(&row.did_number) {
                    unlisted.push(did);
                }
            }
            ControlFlow::Continue(())
        })?;
        if held >= LISTED_ACCOUNTS_MIN && count.saturating_mul(100) < held.saturating_mul(LISTED_PERCENT_MIN)
        {
            let message = format!(
                "{host} lists {count} accounts, and we hold {held} of it; nothing of ours is deleted for that"
            );
            Self::raise(group, host, AlarmKind::EmptyList, "", message, Vec::new())?;
        }
        for did in unlisted {
            group.stage.put_task(group.now, &Task::AuditAccount(did));
        }
        Ok(())
    }

    /// What a host says of one account when asked.
    pub(super) fn on_audited(
        &mut self,
        group: &mut Group<'_>,
        did: &Did,
        host: &HostName,
        (status, head): (Option<AccountStatus>, Option<Cid>),
        asked_at: Timestamp,
        task: &[u8],
    ) -> Result<(), StoreError> {
        group.stage.delete_task(task);
        let Some(mut row) = self.account(group, did)? else {
            return Ok(());
        };
        if Self::is_foreign(group, did, &row, host) {
            // It moved while that host was asked; the new one is asked in its turn.
            group.stage.put_task(
                group.now.plus(self.limits.audit_interval),
                &Task::AuditAccount(did.clone()),
            );
            return Ok(());
        }
        if row.is_outdated(asked_at) {
            // An event came while the host was asked: its answer may be of before, and the event counts.
            Self::audit_soon(group, did, &mut row);
            group.stage.put_account(did, row);
            return Ok(());
        }
        match &status {
            // Nobody said that it was deleted, and there is nothing of it to keep.
            None if row.upstream != AccountStatus::Deleted && row.head.is_none() => {}
            None if row.upstream != AccountStatus::Deleted => {
                let message = format!("{did}: the host says that it has no such account; ours is kept");
                Self::note_away(group, did, &mut row, false);
                let (host, number) = (row.host.clone(), row.account_number);
                Self::raise(
                    group,
                    &host,
                    AlarmKind::RepoNotFound,
                    did.as_str(),
                    message,
                    vec![number],
                )?;
            }
            // What the stream said of a deletion is confirmed: the time of grace runs from here.
            None | Some(AccountStatus::Deleted) => {
                row.deletion_confirmed_at = row.deletion_confirmed_at.or(Some(group.now));
            }
            Some(_) => {}
        }
        let active = status.as_ref().is_some_and(AccountStatus::is_active);
        if active && head.is_some() && row.kept_head() == head {
            // Known to be behind or lax, and all of it is kept.
        } else if active && head.is_some() && row.head.as_ref().map(|head| head.commit) != head {
            // Also one that is known to be behind: the commit that went on from there may have been lost.
            Self::want(group, did, &mut row, DesyncReason::HeadDiffers, None);
        }
        if !active && row.upstream != AccountStatus::Deleted {
            // It may have moved, and the directory may have given the document of before when that was asked.
            Self::ask_identity(group, did, &row);
        }
        let again = group.now.plus(self.limits.audit_interval);
        group
            .stage
            .repeat_task(row.next_audit, again, &Task::AuditAccount(did.clone()));
        row.next_audit = Some(again);
        if did.method() == DidMethod::Plc && row.identity_archived.is_some() {
            // Who changes an identity at the directory need tell nobody: its log is read from time to time.
            group
                .stage
                .put_task(group.now, &Task::ArchiveIdentity(did.clone()));
        }
        match status {
            Some(status) => Self::set_status(group, did, row, status),
            None => group.stage.put_account(did, row),
        }
        Ok(())
    }
}
