#![allow(clippy::disallowed_methods, reason = "shell: the bucket")]
//! All accounts of one host, as an archive knows them: how each stands there by the newest that was said of it, and
//! whether there is anything to restore.

use std::collections::{BTreeMap, BTreeSet};

use super::erase::note::Note;
use super::log_pass::LogRange;
use super::names::{self, DidFolder, ObjectName};
use super::reader::{ArchiveReader, ReadError};
use super::state_file::HostState;
use crate::types::{AccountStatus, Did, HostName, Rev, Timestamp};

/// Where the states of hosts lie.
const HOSTS: &str = "v1/hosts/";

/// A host, as the archive knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownHost {
    /// Its name.
    pub host: HostName,
    /// Its base URL, if that is known.
    pub url: Option<String>,
    /// The highest seq that it was ever seen to send.
    pub highest_seq: u64,
    /// Its accounts.
    pub accounts: BTreeMap<Did, KnownAccount>,
    /// What of the archive cannot be used.
    pub faults: Vec<String>,
}

/// An account, as the archive knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownAccount {
    /// The newest that was said of its standing; none: nothing says it.
    pub status: Option<AccountStatus>,
    /// The host that it left for.
    pub moved_to: Option<HostName>,
    /// Nothing of it may be given: a person had it erased.
    pub erased: bool,
    /// There is a snapshot of it, or what the log says of its records.
    pub held: bool,
}

impl ArchiveReader {
    /// The hosts of which the archive has a state.
    ///
    /// # Errors
    /// When the store does not answer, or refuses.
    pub async fn known_hosts(&self) -> Result<BTreeSet<HostName>, ReadError> {
        let names = self.list(HOSTS).await?;
        let host = |text: &String| match text.parse() {
            Ok(ObjectName::HostState(name)) => Some(name.host.host().clone()),
            _ => None,
        };
        Ok(names.iter().filter_map(host).collect())
    }

    /// Everything that the archive says of a host and of its accounts.
    ///
    /// # Errors
    /// When the store does not answer, or what was erased of an account cannot be read: nothing is given then.
    pub async fn known_host(&self, host: &HostName) -> Result<KnownHost, ReadError> {
        let snapshots = self.newest_snapshots().await?;
        let newest: BTreeMap<Did, Rev> = snapshots
            .into_iter()
            .map(|(did, (name, _))| (did, name.rev))
            .collect();
        let range = LogRange {
            from: 0,
            until: (u64::MAX, u64::MAX),
        };
        let log = self.pass_log(range, &newest, &mut |_, _| {}).await?;
        let (state, unusable) = self.host_state(host).await?;
        let erased = self.all_erased().await?;
        let told_of = |did: &Did| log.accounts.get(did);
        let here = |did: &Did| told_of(did).is_some_and(|told| told.host.as_ref() == Some(host));
        let elsewhere = |did: &Did| {
            let told = told_of(did).and_then(|told| told.host.as_ref());
            told.is_some_and(|of| of != host)
        };
        let mut dids: BTreeSet<&Did> = log.accounts.keys().filter(|did| here(did)).collect();
        let listed = state.iter().flat_map(|state| state.accounts.keys());
        dids.extend(listed.filter(|did| !elsewhere(did)));
        let mut accounts = BTreeMap::new();
        for did in dids {
            let known = state.as_ref().and_then(|state| state.accounts.get(did));
            let account = KnownAccount {
                status: status_of(
                    state.as_ref(),
                    did,
                    told_of(did).and_then(|told| told.status.as_ref()),
                ),
                moved_to: known.and_then(|known| known.moved_to.clone()),
                erased: erased.contains(did),
                held: newest.contains_key(did) || told_of(did).is_some_and(|told| told.newest.is_some()),
            };
            accounts.insert(did.clone(), account);
        }
        let logged = log.seqs.get(host).copied().unwrap_or_default();
        let highest_seq = state.as_ref().map_or(0, |state| state.highest_seq).max(logged);
        Ok(KnownHost {
            host: host.clone(),
            url: state.map(|state| state.url),
            highest_seq,
            accounts,
            faults: [unusable, log.faults].concat(),
        })
    }

    /// Accounts of which nothing may be given.
    ///
    /// # Errors
    /// When the store does not answer, or what was erased of an account cannot be read.
    pub async fn all_erased(&self) -> Result<BTreeSet<Did>, ReadError> {
        let mut erased = BTreeSet::new();
        for text in self.list(names::ERASED).await? {
            let Ok(ObjectName::Erased(name)) = text.parse() else {
                continue;
            };
            let note = self.note(&DidFolder::try_from(name.did.did())?).await?;
            if note.as_ref().and_then(Note::account_erased).is_some() {
                erased.insert(name.did.did().clone());
            }
        }
        Ok(erased)
    }
}

/// The newest that was said of an account's standing: by the host's state, or by the log.
fn status_of(
    state: Option<&HostState>,
    did: &Did,
    told: Option<&(Timestamp, AccountStatus)>,
) -> Option<AccountStatus> {
    let known = state.and_then(|state| Some((state.time, &state.accounts.get(did)?.status)));
    match (known, told) {
        (Some((time, known)), Some((at, _))) if *at <= time => Some(known.clone()),
        (_, Some((_, status))) => Some(status.clone()),
        (known, None) => known.map(|(_, status)| status.clone()),
    }
}
