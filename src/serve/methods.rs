//! The methods that are served: what each takes, and which errors it answers with.
//!
//! A test holds this table, the code and the lexicons in `lexicons/` together.

use crate::metrics::labels::{Endpoint, Label as _};

/// Errors that every method may answer with, whatever its lexicon says (<https://atproto.com/specs/xrpc>).
#[cfg(test)]
pub(super) const COMMON_ERRORS: [&str; 4] = [
    "InvalidRequest",
    "MethodNotImplemented",
    "ServiceUnavailable",
    "InternalServerError",
];

/// An account's standing, as errors.
const STANDING: &[&str] = &[
    "RepoNotFound",
    "RepoTakendown",
    "RepoSuspended",
    "RepoDeactivated",
];

/// Whom a method is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody.
    Open,
    /// The account itself, or the admin.
    Account,
    /// The account's owner, by a key that its host cannot have, or the admin.
    Owner,
    /// The admin.
    Admin,
}

/// Errors of every method that is not for everybody.
#[cfg(test)]
pub(super) const ACCESS_ERRORS: [&str; 4] = [
    "AuthMissing",
    "InvalidToken",
    "AuthenticationRequired",
    "Forbidden",
];

/// One method.
#[derive(Debug)]
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "the rest is for the test that compares with the lexicons"
    )
)]
pub(super) struct Method {
    pub(super) endpoint: Endpoint,
    /// Its parameters.
    pub(super) params: &'static [&'static str],
    /// Of those, the ones that the published lexicon does not have.
    pub(super) added_params: &'static [&'static str],
    /// Its errors beside the common ones.
    pub(super) errors: &'static [&'static str],
    /// Whether the published lexicon lacks those errors. A PDS answers with them all the same.
    pub(super) undeclared: bool,
    /// The fields of its input; none: it is a query.
    pub(super) input: Option<&'static [&'static str]>,
    /// Whom it is for.
    pub(super) access: Access,
}

impl Method {
    const fn new(
        endpoint: Endpoint,
        params: &'static [&'static str],
        errors: &'static [&'static str],
    ) -> Self {
        Self {
            endpoint,
            params,
            added_params: &[],
            errors,
            undeclared: false,
            input: None,
            access: Access::Open,
        }
    }

    /// A query that is not for everybody.
    const fn history(
        endpoint: Endpoint,
        params: &'static [&'static str],
        errors: &'static [&'static str],
    ) -> Self {
        Self {
            access: Access::Owner,
            ..Self::new(endpoint, params, errors)
        }
    }

    /// What is asked to be done.
    const fn procedure(
        endpoint: Endpoint,
        input: &'static [&'static str],
        errors: &'static [&'static str],
        access: Access,
    ) -> Self {
        Self {
            input: Some(input),
            access,
            ..Self::new(endpoint, &[], errors)
        }
    }

    /// Whether it is one of our own, or of PDS MOover's.
    pub(super) fn is_own(&self) -> bool {
        !self.nsid().starts_with("com.atproto.")
    }

    /// Its NSID.
    pub(super) fn nsid(&self) -> &'static str {
        self.endpoint.text()
    }
}

/// Every method that is served.
pub(super) const METHODS: &[Method] = &[
    Method::new(Endpoint::GetRepo, &["did", "since"], STANDING),
    Method::new(
        Endpoint::GetBlob,
        &["did", "cid"],
        &[
            "BlobNotFound",
            "RepoNotFound",
            "RepoTakendown",
            "RepoSuspended",
            "RepoDeactivated",
        ],
    ),
    Method::new(Endpoint::GetLatestCommit, &["did"], STANDING),
    Method::new(Endpoint::GetRepoStatus, &["did"], &["RepoNotFound"]),
    Method::new(Endpoint::ListRepos, &["limit", "cursor"], &[]),
    Method::new(
        Endpoint::ListBlobs,
        &["did", "since", "limit", "cursor"],
        STANDING,
    ),
    Method::new(Endpoint::GetRecordProof, &["did", "collection", "rkey"], STANDING),
    Method::new(Endpoint::GetBlocks, &["did", "cids"], STANDING),
    Method::new(Endpoint::ListHosts, &["limit", "cursor"], &[]),
    Method::new(Endpoint::GetHostStatus, &["hostname"], &["HostNotFound"]),
    Method {
        undeclared: true,
        ..Method::new(Endpoint::DescribeRepo, &["repo"], STANDING)
    },
    Method {
        undeclared: true,
        ..Method::new(
            Endpoint::GetRecord,
            &["repo", "collection", "rkey", "cid"],
            &[
                "RecordNotFound",
                "RepoNotFound",
                "RepoTakendown",
                "RepoSuspended",
                "RepoDeactivated",
            ],
        )
    },
    Method {
        undeclared: true,
        ..Method::new(
            Endpoint::ListRecords,
            &["repo", "collection", "limit", "cursor", "reverse"],
            STANDING,
        )
    },
    Method {
        added_params: &["did"],
        undeclared: true,
        ..Method::new(
            Endpoint::ListMissingBlobs,
            &["did", "limit", "cursor"],
            &[
                "AuthMissing",
                "RepoNotFound",
                "RepoTakendown",
                "RepoSuspended",
                "RepoDeactivated",
            ],
        )
    },
    Method::new(Endpoint::DescribeServer, &[], &[]),
    Method::new(Endpoint::ResolveHandle, &["handle"], &["HandleNotFound"]),
    Method::new(Endpoint::BackupDescribeServer, &[], &[]),
    Method::new(Endpoint::BackupGetAccountStatus, &["did"], &["RepoNotFound"]),
    Method::new(Endpoint::BackupListHosts, &["limit", "cursor"], &[]),
    Method::new(Endpoint::BackupGetHostStatus, &["hostname"], &["HostNotFound"]),
    Method::new(
        Endpoint::BackupListMissingBlobs,
        &["did", "limit", "cursor"],
        STANDING,
    ),
    Method::history(
        Endpoint::BackupListSnapshots,
        &["did", "limit", "cursor"],
        &["RepoNotFound", "AccountErased"],
    ),
    Method::history(
        Endpoint::BackupListRevisions,
        &["did", "limit", "cursor"],
        &["RepoNotFound", "AccountErased"],
    ),
    Method::history(
        Endpoint::BackupGetRepoAt,
        &["did", "time", "rev"],
        &[
            "RepoNotFound",
            "AccountErased",
            "MomentNotFound",
            "MomentUnavailable",
        ],
    ),
    Method::history(
        Endpoint::BackupGetRecordAt,
        &["did", "collection", "rkey", "time", "rev"],
        &[
            "RepoNotFound",
            "AccountErased",
            "MomentNotFound",
            "MomentUnavailable",
            "RecordNotFound",
            "RecordErased",
        ],
    ),
    Method::procedure(
        Endpoint::BackupSignUp,
        &["did"],
        &[
            "SignUpClosed",
            "AccountErased",
            "NoHost",
            "HostNotFollowed",
            "NotDone",
        ],
        Access::Account,
    ),
    Method::procedure(
        Endpoint::BackupRequestSnapshot,
        &["did"],
        &["RepoNotFound", "TooManyRequests", "NotDone"],
        Access::Account,
    ),
    Method::procedure(
        Endpoint::BackupRemoveAccount,
        &["did", "cancel", "now"],
        &["RepoNotFound", "NotDone"],
        Access::Account,
    ),
    Method::procedure(
        Endpoint::BackupFollowHost,
        &["url", "follow"],
        &["NotDone"],
        Access::Admin,
    ),
    Method::procedure(
        Endpoint::BackupUnfollowHost,
        &["hostname"],
        &["HostNotFound", "NotDone"],
        Access::Admin,
    ),
    Method::procedure(
        Endpoint::BackupPin,
        &["did"],
        &["RepoNotFound", "NotDone"],
        Access::Admin,
    ),
    Method::procedure(
        Endpoint::BackupUnpin,
        &["did"],
        &["RepoNotFound", "NotDone"],
        Access::Admin,
    ),
    Method::procedure(
        Endpoint::BackupVerify,
        &["did"],
        &["RepoNotFound", "AccountErased"],
        Access::Admin,
    ),
    Method::new(Endpoint::MooverDescribeServer, &[], &[]),
    Method::new(Endpoint::MooverGetRepoStatus, &["did"], &["RepoNotFound"]),
    Method::procedure(
        Endpoint::MooverSignUp,
        &[],
        &[
            "AlreadyRegistered",
            "SignUpClosed",
            "AccountErased",
            "NoHost",
            "HostNotFollowed",
            "NotDone",
        ],
        Access::Account,
    ),
    Method::procedure(
        Endpoint::MooverRequestBackup,
        &[],
        &["RepoNotFound", "TooManyRequests", "NotDone"],
        Access::Account,
    ),
    Method::procedure(
        Endpoint::MooverRemoveRepo,
        &[],
        &["RepoNotFound", "NotDone"],
        Access::Account,
    ),
];

/// The method of an endpoint.
pub(super) fn of(endpoint: Endpoint) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.endpoint == endpoint)
}

/// What a path asks for.
pub(super) fn endpoint(path: &str) -> Endpoint {
    let Some(name) = path.strip_prefix("/xrpc/") else {
        return match path {
            "/" | "/account" | "/robots.txt" | "/.well-known/did.json" => Endpoint::Page,
            _ if path.starts_with("/account/") => Endpoint::Page,
            _ => Endpoint::Other,
        };
    };
    if name == "_health" {
        return Endpoint::Health;
    }
    let method = METHODS.iter().find(|method| method.nsid() == name);
    method.map_or(Endpoint::UnknownMethod, |method| method.endpoint)
}
