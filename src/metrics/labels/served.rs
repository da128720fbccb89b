//! Labels of what is served.

use super::Label;

labels! {
    /// What a caller asked for.
    Endpoint {
        /// `com.atproto.sync.getRepo`
        GetRepo = "com.atproto.sync.getRepo",
        /// `com.atproto.sync.getBlob`
        GetBlob = "com.atproto.sync.getBlob",
        /// `com.atproto.sync.getLatestCommit`
        GetLatestCommit = "com.atproto.sync.getLatestCommit",
        /// `com.atproto.sync.getRepoStatus`
        GetRepoStatus = "com.atproto.sync.getRepoStatus",
        /// `com.atproto.sync.listRepos`
        ListRepos = "com.atproto.sync.listRepos",
        /// `com.atproto.sync.listBlobs`
        ListBlobs = "com.atproto.sync.listBlobs",
        /// `com.atproto.sync.getRecord`
        GetRecordProof = "com.atproto.sync.getRecord",
        /// `com.atproto.sync.getBlocks`
        GetBlocks = "com.atproto.sync.getBlocks",
        /// `com.atproto.sync.listHosts`
        ListHosts = "com.atproto.sync.listHosts",
        /// `com.atproto.sync.getHostStatus`
        GetHostStatus = "com.atproto.sync.getHostStatus",
        /// `com.atproto.repo.describeRepo`
        DescribeRepo = "com.atproto.repo.describeRepo",
        /// `com.atproto.repo.getRecord`
        GetRecord = "com.atproto.repo.getRecord",
        /// `com.atproto.repo.listRecords`
        ListRecords = "com.atproto.repo.listRecords",
        /// `com.atproto.repo.listMissingBlobs`
        ListMissingBlobs = "com.atproto.repo.listMissingBlobs",
        /// `com.atproto.server.describeServer`
        DescribeServer = "com.atproto.server.describeServer",
        /// `com.atproto.identity.resolveHandle`
        ResolveHandle = "com.atproto.identity.resolveHandle",
        /// `dev.firekeep.backup.describeServer`
        BackupDescribeServer = "dev.firekeep.backup.describeServer",
        /// `dev.firekeep.backup.getAccountStatus`
        BackupGetAccountStatus = "dev.firekeep.backup.getAccountStatus",
        /// `dev.firekeep.backup.listHosts`
        BackupListHosts = "dev.firekeep.backup.listHosts",
        /// `dev.firekeep.backup.getHostStatus`
        BackupGetHostStatus = "dev.firekeep.backup.getHostStatus",
        /// `dev.firekeep.backup.listMissingBlobs`
        BackupListMissingBlobs = "dev.firekeep.backup.listMissingBlobs",
        /// `dev.firekeep.backup.listSnapshots`
        BackupListSnapshots = "dev.firekeep.backup.listSnapshots",
        /// `dev.firekeep.backup.listRevisions`
        BackupListRevisions = "dev.firekeep.backup.listRevisions",
        /// `dev.firekeep.backup.getRepoAt`
        BackupGetRepoAt = "dev.firekeep.backup.getRepoAt",
        /// `dev.firekeep.backup.getRecordAt`
        BackupGetRecordAt = "dev.firekeep.backup.getRecordAt",
        /// `dev.firekeep.backup.signUp`
        BackupSignUp = "dev.firekeep.backup.signUp",
        /// `dev.firekeep.backup.requestSnapshot`
        BackupRequestSnapshot = "dev.firekeep.backup.requestSnapshot",
        /// `dev.firekeep.backup.removeAccount`
        BackupRemoveAccount = "dev.firekeep.backup.removeAccount",
        /// `dev.firekeep.backup.followHost`
        BackupFollowHost = "dev.firekeep.backup.followHost",
        /// `dev.firekeep.backup.unfollowHost`
        BackupUnfollowHost = "dev.firekeep.backup.unfollowHost",
        /// `dev.firekeep.backup.pin`
        BackupPin = "dev.firekeep.backup.pin",
        /// `dev.firekeep.backup.unpin`
        BackupUnpin = "dev.firekeep.backup.unpin",
        /// `dev.firekeep.backup.verify`
        BackupVerify = "dev.firekeep.backup.verify",
        /// `com.pdsmoover.backup.describeServer`
        MooverDescribeServer = "com.pdsmoover.backup.describeServer",
        /// `com.pdsmoover.backup.getRepoStatus`
        MooverGetRepoStatus = "com.pdsmoover.backup.getRepoStatus",
        /// `com.pdsmoover.backup.signUp`
        MooverSignUp = "com.pdsmoover.backup.signUp",
        /// `com.pdsmoover.backup.requestBackup`
        MooverRequestBackup = "com.pdsmoover.backup.requestBackup",
        /// `com.pdsmoover.backup.removeRepo`
        MooverRemoveRepo = "com.pdsmoover.backup.removeRepo",
        /// `/xrpc/_health`
        Health = "_health",
        /// `/`, `/account/…`, `/robots.txt`, `/.well-known/did.json`
        Page = "page",
        /// Anything else under `/xrpc/`.
        UnknownMethod = "unknown_method",
        /// Anything else.
        Other = "other",
    }

    /// The method of a request.
    HttpMethod {
        /// GET
        Get = "GET",
        /// HEAD
        Head = "HEAD",
        /// POST
        Post = "POST",
        /// OPTIONS
        Options = "OPTIONS",
        /// Any other.
        Other = "other",
    }

    /// How the export of a repository ended.
    ExportResult {
        /// Every byte was handed over.
        Complete = "complete",
        /// The caller went away, or was dropped for being slow.
        Aborted = "aborted",
        /// The rows do not prove: not one byte was sent.
        Unproven = "unproven",
        /// The store failed, or the time was up, after the first byte: the transfer was cut.
        Cut = "cut",
        /// Too many exports at once: refused.
        Busy = "busy",
    }

    /// Why the listener closed or refused a connection.
    CloseReason {
        /// Too many connections.
        Full = "full",
        /// The caller did not send a whole request head in time (or was idle that long).
        HeaderTimeout = "header_timeout",
        /// The caller read slower than the floor.
        SlowReader = "slow_reader",
        /// It was still open when the shutdown's time was up.
        Shutdown = "shutdown",
    }
}
