//! The keys of `tasks` and `alarms`: work that is due, and what an operator should look at.

use crate::types::{Did, Digest, HostName, SyntaxError};

use super::{
    KeyRange, NUMBER_BYTES, bad, decode_account, decode_host, decode_number, encode_host, encode_number,
    split_digest, split_number,
};

/// Length of a `tasks` key before its subject.
pub const TASK_KEY_HEAD_BYTES: usize = NUMBER_BYTES + 1;

// tasks: due ms ‖ kind ‖ subject

/// What a task does. Persisted: keep the numbers stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TaskKind {
    /// Fetch a repository and swap it in.
    FetchRepo = 1,
    /// Fetch a blob.
    FetchBlob = 2,
    /// Snapshot an account.
    Snapshot = 3,
    /// List a host's repositories.
    ListRepos = 4,
    /// Resolve a DID again: parked frames wait for its key.
    ResolveIdentity = 5,
    /// Delete a generation that nothing needs any more.
    DropGeneration = 6,
    /// Put a blob that is held into the archive.
    ArchiveBlob = 7,
    /// Compare an account with its host: standing, head and blobs.
    AuditAccount = 8,
    /// Put a quarantined CAR into the archive.
    ArchiveCar = 9,
    /// Ask a host again for some of the blobs that we hold of it.
    SweepBlobs = 10,
    /// Put what the directory says of a DID into the archive.
    ArchiveIdentity = 11,
}

impl TaskKind {
    const ALL: [Self; 11] = [
        Self::FetchRepo,
        Self::FetchBlob,
        Self::Snapshot,
        Self::ListRepos,
        Self::ResolveIdentity,
        Self::DropGeneration,
        Self::ArchiveBlob,
        Self::AuditAccount,
        Self::ArchiveCar,
        Self::SweepBlobs,
        Self::ArchiveIdentity,
    ];

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }
}

/// A piece of persisted work: what, and on whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// [`TaskKind::FetchRepo`].
    FetchRepo(Did),
    /// [`TaskKind::FetchBlob`].
    FetchBlob(Did, Digest),
    /// [`TaskKind::Snapshot`].
    Snapshot(Did),
    /// [`TaskKind::ListRepos`].
    ListRepos(HostName),
    /// [`TaskKind::ResolveIdentity`].
    ResolveIdentity(Did),
    /// [`TaskKind::DropGeneration`], by account number.
    DropGeneration(u64),
    /// [`TaskKind::ArchiveBlob`].
    ArchiveBlob(Did, Digest),
    /// [`TaskKind::AuditAccount`].
    AuditAccount(Did),
    /// [`TaskKind::ArchiveCar`].
    ArchiveCar(Did),
    /// [`TaskKind::SweepBlobs`].
    SweepBlobs(HostName),
    /// [`TaskKind::ArchiveIdentity`].
    ArchiveIdentity(Did),
}

impl Task {
    /// What it does.
    #[must_use]
    pub const fn kind(&self) -> TaskKind {
        match self {
            Self::FetchRepo(_) => TaskKind::FetchRepo,
            Self::FetchBlob(..) => TaskKind::FetchBlob,
            Self::Snapshot(_) => TaskKind::Snapshot,
            Self::ListRepos(_) => TaskKind::ListRepos,
            Self::ResolveIdentity(_) => TaskKind::ResolveIdentity,
            Self::DropGeneration(_) => TaskKind::DropGeneration,
            Self::ArchiveBlob(..) => TaskKind::ArchiveBlob,
            Self::AuditAccount(_) => TaskKind::AuditAccount,
            Self::ArchiveCar(_) => TaskKind::ArchiveCar,
            Self::SweepBlobs(_) => TaskKind::SweepBlobs,
            Self::ArchiveIdentity(_) => TaskKind::ArchiveIdentity,
        }
    }
}

/// The key of a task that is due at a time, in milliseconds since 1970.
#[must_use]
pub fn encode_task(due_ms: u64, task: &Task) -> Vec<u8> {
    let mut key = Vec::with_capacity(TASK_KEY_HEAD_BYTES + 64);
    key.extend_from_slice(&encode_number(due_ms));
    key.push(task.kind() as u8);
    match task {
        Task::FetchRepo(did)
        | Task::Snapshot(did)
        | Task::ResolveIdentity(did)
        | Task::AuditAccount(did)
        | Task::ArchiveCar(did)
        | Task::ArchiveIdentity(did) => {
            key.extend_from_slice(did.as_str().as_bytes());
        }
        Task::FetchBlob(did, digest) | Task::ArchiveBlob(did, digest) => {
            key.extend_from_slice(digest);
            key.extend_from_slice(did.as_str().as_bytes());
        }
        Task::ListRepos(host) | Task::SweepBlobs(host) => key.extend_from_slice(host.as_str().as_bytes()),
        Task::DropGeneration(number) => key.extend_from_slice(&encode_number(*number)),
    }
    key
}

/// When a task is due (milliseconds since 1970), and what it is.
///
/// # Errors
/// When the kind is unknown, or the subject is not one of that kind.
pub fn decode_task(key: &[u8]) -> Result<(u64, Task), SyntaxError> {
    let (due_ms, rest) = split_number(key, "tasks key")?;
    let (code, subject) = rest.split_first().ok_or(bad("tasks key", "must have a kind"))?;
    let kind = TaskKind::from_code(*code).ok_or(bad("tasks key", "must have a known kind"))?;
    let task = match kind {
        TaskKind::FetchRepo => Task::FetchRepo(decode_account(subject)?),
        TaskKind::FetchBlob => {
            let (digest, did) = split_digest(subject, "tasks key")?;
            Task::FetchBlob(decode_account(did)?, digest)
        }
        TaskKind::ArchiveBlob => {
            let (digest, did) = split_digest(subject, "tasks key")?;
            Task::ArchiveBlob(decode_account(did)?, digest)
        }
        TaskKind::AuditAccount => Task::AuditAccount(decode_account(subject)?),
        TaskKind::ArchiveCar => Task::ArchiveCar(decode_account(subject)?),
        TaskKind::ArchiveIdentity => Task::ArchiveIdentity(decode_account(subject)?),
        TaskKind::Snapshot => Task::Snapshot(decode_account(subject)?),
        TaskKind::ListRepos => Task::ListRepos(decode_host(subject)?),
        TaskKind::SweepBlobs => Task::SweepBlobs(decode_host(subject)?),
        TaskKind::ResolveIdentity => Task::ResolveIdentity(decode_account(subject)?),
        TaskKind::DropGeneration => Task::DropGeneration(decode_number(subject)?),
    };
    Ok((due_ms, task))
}

/// The tasks that are due at `now_ms` or were before.
#[must_use]
pub fn due_range(now_ms: u64) -> KeyRange {
    now_ms.checked_add(1).map_or_else(KeyRange::all, |next| {
        KeyRange::new(Vec::new(), encode_number(next))
    })
}

// alarms: host ‖ 0 ‖ kind ‖ subject

/// What an alarm is about. Persisted: keep the numbers stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AlarmKind {
    /// The host's numbering fell back: it was restored from a backup, or wiped.
    SequenceReset = 1,
    /// An account's rev fell back.
    Rollback = 2,
    /// A large part of an account, or of a host, was deleted at once.
    MassDelete = 3,
    /// The host says that it has no such repository.
    RepoNotFound = 4,
    /// The host lists no accounts, or far fewer than before.
    EmptyList = 5,
    /// A repository's tree does not rebuild to its signed root.
    Quarantine = 6,
    /// Many accounts of a host went off, or vanished, within a day.
    MassTakedown = 7,
    /// A host gives many of the blobs no longer that we hold of it: it took them down, or lost them.
    BlobsWithheld = 8,
    /// What stands in the archive is not what was put there.
    ArchiveDamaged = 9,
    /// What was restored from the archive for a trial is not what it must be.
    DrillFailed = 10,
    /// So much waits for the archive that no more is queued.
    SpoolFull = 11,
    /// Somebody changed the identity of an account, in more than its names.
    IdentityChanged = 12,
    /// Nothing was heard of a host for long: it cannot be reached.
    HostSilent = 20,
    /// The archive has taken nothing for long.
    ArchiveSilent = 21,
    /// A part of Firekeep ended, or stands still.
    TaskStalled = 22,
}

impl AlarmKind {
    /// The name, for metrics and people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SequenceReset => "sequence_reset",
            Self::Rollback => "rollback",
            Self::MassDelete => "mass_delete",
            Self::RepoNotFound => "repo_not_found",
            Self::EmptyList => "empty_list",
            Self::Quarantine => "quarantine",
            Self::MassTakedown => "mass_takedown",
            Self::BlobsWithheld => "blobs_withheld",
            Self::ArchiveDamaged => "archive_damaged",
            Self::DrillFailed => "drill_failed",
            Self::SpoolFull => "spool_full",
            Self::IdentityChanged => "identity_changed",
            Self::HostSilent => "host_silent",
            Self::ArchiveSilent => "archive_silent",
            Self::TaskStalled => "task_stalled",
        }
    }

    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::SequenceReset,
        Self::Rollback,
        Self::MassDelete,
        Self::RepoNotFound,
        Self::EmptyList,
        Self::Quarantine,
        Self::MassTakedown,
        Self::BlobsWithheld,
        Self::ArchiveDamaged,
        Self::DrillFailed,
        Self::SpoolFull,
        Self::IdentityChanged,
        Self::HostSilent,
        Self::ArchiveSilent,
        Self::TaskStalled,
    ];

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }
}

/// What an alarm's row is about: one alarm a host, kind and subject.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AlarmId {
    /// The host that it concerns, if one does.
    pub host: Option<HostName>,
    /// What happened.
    pub kind: AlarmKind,
    /// To what: a DID, or empty for the whole host. UTF-8.
    pub subject: String,
}

/// The key of an alarm.
#[must_use]
pub fn encode_alarm(alarm: &AlarmId) -> Vec<u8> {
    let host = alarm.host.as_ref().map_or("", HostName::as_str);
    let mut key = Vec::with_capacity(host.len() + 2 + alarm.subject.len());
    key.extend_from_slice(host.as_bytes());
    key.extend_from_slice(&[0, alarm.kind as u8]);
    key.extend_from_slice(alarm.subject.as_bytes());
    key
}

/// What an alarm's row is about.
///
/// # Errors
/// When there is no NUL, the host is none, the kind is unknown, or the subject is not UTF-8.
pub fn decode_alarm(key: &[u8]) -> Result<AlarmId, SyntaxError> {
    let nul = key
        .iter()
        .position(|&byte| byte == 0)
        .ok_or(bad("alarms key", "must have a NUL"))?;
    let (host, rest) = key.split_at(nul);
    let host = if host.is_empty() {
        None
    } else {
        Some(decode_host(host)?)
    };
    let [_, code, subject @ ..] = rest else {
        return Err(bad("alarms key", "must have a kind"));
    };
    let kind = AlarmKind::from_code(*code).ok_or(bad("alarms key", "must have a known kind"))?;
    let subject = std::str::from_utf8(subject).map_err(|_| bad("alarms key", "must end in UTF-8"))?;
    Ok(AlarmId {
        host,
        kind,
        subject: subject.to_owned(),
    })
}

/// The alarms of one host, or those of none.
#[must_use]
pub fn alarm_range(host: Option<&HostName>) -> KeyRange {
    let mut prefix = host.map_or_else(Vec::new, encode_host);
    prefix.push(0);
    KeyRange::prefix(prefix)
}
