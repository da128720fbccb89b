#![allow(clippy::disallowed_methods, reason = "shell: answers requests")]
//! The small methods of `com.atproto.sync`: where accounts stand, what there is, and which hosts are followed.

use std::collections::BTreeMap;

use atrium_api::com::atproto::sync;
use atrium_api::types::string as lexicon;
use hyper::Response;
use serde::Serialize;

use super::lookup::{self, Failure, Listed};
use super::params::Params;
use super::response::{self, Body, XrpcError};
use super::xrpc::Xrpc;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::HostRow;
use crate::types::{Cid, Did, HostName, Rev};

/// A host in an answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HostData {
    hostname: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    account_count: u64,
    status: &'static str,
}

impl Xrpc {
    pub(super) async fn get_latest_commit(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let (did, sight) = (params.did()?, self.sight());
        let head = self
            .look_up(move |mirror| Ok(lookup::served(mirror, &did, &sight)?.head))
            .await?;
        let (cid, rev) = (lexicon_cid(&head.commit.to_string()), lexicon_rev(head.rev));
        Ok(response::json(&sync::get_latest_commit::OutputData { cid, rev }))
    }

    pub(super) async fn get_repo_status(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let did = params.did()?;
        let wanted = did.clone();
        let (row, head) = self.look_up(move |mirror| lookup::known(mirror, &wanted)).await?;
        let active = row.upstream.is_active();
        Ok(response::json(&sync::get_repo_status::OutputData {
            active,
            did: lexicon_did(&did),
            rev: active.then(|| lexicon_rev(head.rev)),
            status: row.upstream.wire_name().map(str::to_owned),
        }))
    }

    pub(super) async fn list_repos(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let (limit, cursor) = (params.limit()?, params.cursor::<Did>()?);
        let (page, more) = self
            .look_up(move |mirror| lookup::accounts_page(mirror, cursor, limit))
            .await?;
        let cursor = page.last().filter(|_| more).map(|last| last.did.to_string());
        let repo = |listed: &Listed| sync::list_repos::RepoData {
            active: Some(listed.status.is_active()),
            did: lexicon_did(&listed.did),
            head: lexicon_cid(&listed.head.commit.to_string()),
            rev: lexicon_rev(listed.head.rev),
            status: listed.status.wire_name().map(str::to_owned),
        };
        let repos = page.iter().map(|listed| repo(listed).into()).collect();
        Ok(response::json(&sync::list_repos::OutputData { cursor, repos }))
    }

    pub(super) async fn list_blobs(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let (did, since) = (params.did()?, params.since()?);
        let (limit, cursor) = (params.limit()?, params.cursor::<Cid>()?);
        let sight = self.sight();
        let (page, more) = self
            .look_up(move |mirror| {
                let account = lookup::served(mirror, &did, &sight)?;
                lookup::blobs_page(mirror, account.account_number, since, cursor, limit)
            })
            .await?;
        let cursor = page.last().filter(|_| more).cloned();
        let cids = page.iter().map(|text| lexicon_cid(text)).collect();
        Ok(response::json(&sync::list_blobs::OutputData { cids, cursor }))
    }

    pub(super) async fn list_hosts(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        #[derive(Serialize)]
        struct Output {
            #[serde(skip_serializing_if = "Option::is_none")]
            cursor: Option<String>,
            hosts: Vec<HostData>,
        }
        let (limit, cursor) = (params.hosts_limit()?, params.cursor::<HostName>()?);
        let (hosts, accounts) = self.hosts().await?;
        let mut rest = hosts
            .iter()
            .filter(|(name, _)| cursor.as_ref().is_none_or(|cursor| name > cursor));
        let page: Vec<HostData> = rest
            .by_ref()
            .take(limit)
            .map(|(name, row)| self.host_data(name, row, &accounts))
            .collect();
        let more = rest.next().is_some();
        Ok(response::json(&Output {
            cursor: page.last().filter(|_| more).map(|last| last.hostname.clone()),
            hosts: page,
        }))
    }

    pub(super) async fn get_host_status(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let wanted = params.hostname()?;
        let (hosts, accounts) = self.hosts().await?;
        let (name, row) = hosts
            .iter()
            .find(|(name, _)| *name == wanted)
            .ok_or(XrpcError::HostNotFound)?;
        Ok(response::json(&self.host_data(name, row, &accounts)))
    }

    async fn hosts(&self) -> Result<(Vec<(HostName, HostRow)>, BTreeMap<HostName, u64>), XrpcError> {
        let directory = std::sync::Arc::clone(&self.directory);
        let read = move |mirror: &Mirror<'_>| -> Result<_, Failure> {
            let mut hosts = mirror.hosts()?;
            hosts.sort_by(|(one, _), (other, _)| one.cmp(other));
            Ok((hosts, directory.accounts(mirror)?))
        };
        self.look_up(read).await
    }

    fn host_data(&self, name: &HostName, row: &HostRow, accounts: &BTreeMap<HostName, u64>) -> HostData {
        let connected = self.metrics.host(name).connected.get() > 0;
        HostData {
            hostname: name.to_string(),
            seq: row.cursor,
            account_count: accounts.get(name).copied().unwrap_or(0),
            status: if connected { "active" } else { "offline" },
        }
    }
}

/// Our types are at least as strict as the lexicon's, so that none of these can fail.
fn lexicon_did(did: &Did) -> lexicon::Did {
    lexicon::Did::new(did.to_string()).expect("a DID of ours is one of the lexicon's")
}

fn lexicon_cid(text: &str) -> lexicon::Cid {
    text.parse().expect("a CID of ours is one of the lexicon's")
}

fn lexicon_rev(rev: Rev) -> lexicon::Tid {
    lexicon::Tid::new(rev.to_string()).expect("a rev of ours is a TID of the lexicon's")
}
