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
        }
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
];

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
