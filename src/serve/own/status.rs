#![allow(clippy::disallowed_methods, reason = "shell: answers requests")]
//! Where the backup stands, and where an account does in it: open to all.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use hyper::Response;
use serde_json::{Value, json};

use crate::mirror::keyspace::NO_NUMBER;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AccountRow, BlobRow, BlobState, HostRow, Listing};
use crate::serve::lookup::{self, Failure};
use crate::serve::params::Params;
use crate::serve::response::{self, Body, XrpcError};
use crate::serve::xrpc::Xrpc;
use crate::types::{AccountStatus, Cid, Did, HostName, RepoPath};

/// Blobs of one account that are counted.
const BLOBS_COUNTED_MAX: u64 = 200_000;

/// An account's blobs, counted.
#[derive(Default)]
pub(super) struct Blobs {
    pub(super) stored: u64,
    pub(super) stored_bytes: u64,
    pub(super) missing: u64,
    pub(super) complete: bool,
}

impl Blobs {
    pub(super) fn of(mirror: &Mirror<'_>, row: &AccountRow) -> Result<Self, Failure> {
        let mut blobs = Self {
            complete: true,
            ..Self::default()
        };
        mirror.each_blob_of(row.did_number, |blob: BlobRow| {
            if blobs.stored + blobs.missing == BLOBS_COUNTED_MAX {
                blobs.complete = false;
                return ControlFlow::Break(());
            }
            if blob.state.is_stored() {
                blobs.stored += 1;
                blobs.stored_bytes += blob.size.unwrap_or(0);
            } else if matches!(blob.state, BlobState::Wanted | BlobState::Missing { .. }) {
                blobs.missing += 1;
            }
            ControlFlow::Continue(())
        })?;
        Ok(blobs)
    }
}

impl Xrpc {
    /// A question of the daemon's, which must know it.
    pub(super) async fn ask_daemon(&self, name: &str, values: &[(&str, &str)]) -> Result<Value, XrpcError> {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let asked = self.control.ask(name, values.iter().map(pair).collect());
        let asked = asked.ok_or(XrpcError::Internal)?;
        asked.await.map_err(|error| {
            tracing::error!(%error, "cannot tell where the backup stands");
            XrpcError::Internal
        })
    }

    pub(super) async fn describe_backup(&self) -> Result<Response<Body>, XrpcError> {
        let status = self.ask_daemon("status", &[]).await?;
        let about = self.ask_daemon("about", &[]).await?;
        let (stored, _) = stored_blobs(&status);
        Ok(response::json(&json!({
            "did": self.did,
            "version": status["version"],
            "standing": status["standing"],
            "summary": status["summary"],
            "hosts": status["hosts"].as_array().map_or(0, Vec::len),
            "accounts": status["accounts"]["held"],
            "records": status["accounts"]["records"],
            "recordBytes": status["accounts"]["record_bytes"],
            "blobs": stored,
            "blobBytes": status["blobs"]["stored_bytes"],
            "follow": about["follow"],
            "flushIntervalMs": about["flushIntervalMs"],
            "snapshotIntervalMs": about["snapshotIntervalMs"],
            "keepWindowSeconds": about["keepWindowSeconds"],
            "removalGraceSeconds": about["removalGraceSeconds"],
        })))
    }

    pub(super) async fn account_status(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let (did, sight) = (params.did()?, self.sight());
        let told = self
            .look_up(move |mirror| {
                let row = mirror
                    .account(&did)?
                    .ok_or_else(|| XrpcError::RepoNotFound(did.clone()))?;
                if lookup::check_visible(&row.upstream, &did, &sight).is_ok() {
                    return whole_status(mirror, &did, &row);
                }
                if row.upstream == AccountStatus::Deleted {
                    return Err(XrpcError::RepoNotFound(did).into());
                }
                Ok(short_status(&did, &row))
            })
            .await?;
        Ok(response::json(&told))
    }

    pub(super) async fn list_backup_hosts(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let (limit, cursor) = (params.hosts_limit()?, params.cursor::<HostName>()?);
        let (hosts, accounts) = self.backup_hosts().await?;
        let mut rest = hosts
            .iter()
            .filter(|(name, _)| cursor.as_ref().is_none_or(|cursor| name > cursor));
        let page: Vec<&(HostName, HostRow)> = rest.by_ref().take(limit).collect();
        let cursor = page.last().filter(|_| rest.next().is_some());
        let mut output = json!({
            "hosts": page.iter().map(|(name, row)| self.host_json(name, row, &accounts)).collect::<Value>(),
        });
        if let Some((name, _)) = cursor {
            output["cursor"] = name.as_str().into();
        }
        Ok(response::json(&output))
    }

    pub(super) async fn backup_host_status(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let wanted = params.hostname()?;
        let (hosts, accounts) = self.backup_hosts().await?;
        let found = hosts.iter().find(|(name, _)| *name == wanted);
        let (name, row) = found.ok_or(XrpcError::HostNotFound)?;
        Ok(response::json(&self.host_json(name, row, &accounts)))
    }

    async fn backup_hosts(&self) -> Result<(Vec<(HostName, HostRow)>, BTreeMap<HostName, u64>), XrpcError> {
        let directory = Arc::clone(&self.directory);
        self.look_up(move |mirror| {
            let mut hosts = mirror.hosts()?;
            hosts.sort_by(|(one, _), (other, _)| one.cmp(other));
            Ok((hosts, directory.accounts(mirror)?))
        })
        .await
    }

    fn host_json(&self, name: &HostName, row: &HostRow, accounts: &BTreeMap<HostName, u64>) -> Value {
        let mut host = json!({
            "hostname": name.as_str(),
            "url": row.url,
            "connected": self.metrics.host(name).connected.get() > 0,
            "follow": row.scope.label(),
            "listed": matches!(row.listing, Listing::Finished { .. }),
            "epoch": row.epoch,
            "highestSeq": row.highest_seq,
            "accounts": accounts.get(name).copied().unwrap_or(0),
        });
        if let Some(cursor) = row.cursor {
            host["cursor"] = cursor.into();
        }
        if let Some(at) = row.last_event {
            host["lastEvent"] = at.to_string().into();
        }
        host
    }

    /// As `com.atproto.repo.listMissingBlobs`, with why each is missing.
    pub(super) async fn list_lacking_blobs(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let (limit, cursor) = (params.limit()?, params.cursor::<Cid>()?);
        let (did, sight) = (params.did()?, self.sight());
        let (page, more) = self
            .look_up(move |mirror| {
                let account = lookup::served(mirror, &did, &sight)?;
                let (cids, more) = lookup::missing_blobs_page(mirror, &account, cursor, limit)?;
                let mut blobs = Vec::with_capacity(cids.len());
                for cid in cids {
                    let path = mirror.blob_referrers(account.account_number, cid.digest(), 1)?;
                    let path = path.first().map_or("", RepoPath::as_str);
                    let row = mirror.blob(account.did_number, cid.digest())?;
                    blobs.push(missing_json(&did, cid, path, row.as_ref()));
                }
                Ok((blobs, more))
            })
            .await?;
        let mut output = json!({});
        if let Some(last) = page.last().filter(|_| more) {
            output["cursor"] = last["cid"].clone();
        }
        output["blobs"] = page.into();
        Ok(response::json(&output))
    }
}

/// Blobs that are held, and those that are not, of the daemon's status.
pub(super) fn stored_blobs(status: &Value) -> (u64, u64) {
    let count = |name: &str| status["blobs"]["by_state"][name].as_u64().unwrap_or(0);
    (
        count("held") + count("archived"),
        count("wanted") + count("missing"),
    )
}

fn missing_json(did: &Did, cid: Cid, path: &str, row: Option<&BlobRow>) -> Value {
    let mut blob = json!({ "cid": cid.to_string(), "recordUri": format!("at://{did}/{path}") });
    let Some(row) = row else {
        blob["state"] = "wanted".into();
        return blob;
    };
    blob["state"] = row.state.label().into();
    blob["since"] = row.first_seen.to_string().into();
    if let BlobState::Missing { reason, .. } = &row.state {
        blob["reason"] = json!(reason);
    }
    blob
}

/// What is told of an account that is hidden.
fn short_status(did: &Did, row: &AccountRow) -> Value {
    let mut status = json!({
        "did": did.as_str(),
        "active": row.upstream.is_active(),
        "host": row.host.as_str(),
        "followed": !row.unfollowed,
    });
    if let Some(name) = row.upstream.wire_name() {
        status["status"] = name.into();
    }
    status
}

fn whole_status(mirror: &Mirror<'_>, did: &Did, row: &AccountRow) -> Result<Value, Failure> {
    let blobs = Blobs::of(mirror, row)?;
    let mut status = short_status(did, row);
    status["sync"] = row.sync.label().into();
    status["records"] = row.records.into();
    status["recordBytes"] = row.record_bytes.into();
    status["blobs"] = blobs.stored.into();
    status["blobBytes"] = blobs.stored_bytes.into();
    status["missingBlobs"] = blobs.missing.into();
    status["blobsCountedWhole"] = blobs.complete.into();
    status["archived"] = row.is_archived().into();
    status["pinned"] = (!row.pins.is_empty()).into();
    status["signedUp"] = row
        .owner
        .as_ref()
        .is_some_and(|owner| owner.signed_up.is_some())
        .into();
    if let Some(head) = row.head.as_ref().filter(|_| row.account_number != NO_NUMBER) {
        status["rev"] = head.rev.to_string().into();
        status["commit"] = head.commit.to_string().into();
    }
    if let Some(mark) = &row.snapshot {
        status["snapshot"] = json!({
            "rev": mark.rev.to_string(),
            "commit": mark.commit.to_string(),
            "at": mark.at.to_string(),
            "bytes": mark.bytes,
        });
    }
    if let Some(at) = row.verified_at {
        status["verifiedAt"] = at.to_string().into();
    }
    if let Some(due) = row.owner.as_ref().and_then(|owner| owner.removal_due) {
        status["removalDue"] = due.to_string().into();
    }
    Ok(status)
}
