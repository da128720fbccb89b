#![allow(clippy::disallowed_methods, reason = "shell: answers requests")]
//! `com.atproto.repo`: records as JSON, what an account has, and which blobs are missing.
//!
//! A PDS looks records up in an index of its own, and so does this: no tree is rebuilt for JSON, only a record's own
//! hash is checked. Whoever wants proof asks `com.atproto.sync.getRecord`.

use std::ops::ControlFlow;

use hyper::Response;
use hyper::header::{HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::{Value, json};

use super::directory::handle_of;
use super::lookup::{self, Failure, Served};
use super::params::{AtIdentifier, Params};
use super::response::{self, Body, XrpcError};
use super::xrpc::Xrpc;
use crate::mirror::StoreError;
use crate::mirror::reader::{Direction, Mirror};
use crate::mirror::rows::AccountRow;
use crate::repo::json::record_to_json_within;
use crate::repo::signing_key::SigningKey;
use crate::types::{Cid, Did, RepoPath};

/// A page of records ends early when its records have this many bytes.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// Values of one record that is shown as JSON: a value of one byte takes some hundred in memory.
const RECORD_VALUES_MAX: usize = 20_000;
/// A page ends behind the record that makes it more values than these.
const PAGE_VALUES_MAX: usize = 40_000;
/// Collections of one account that are named.
const COLLECTIONS_MAX: usize = 10_000;
/// The handle of an account without one that is known.
const HANDLE_INVALID: &str = "handle.invalid";
/// Stands on a page of records, if some have no JSON form: how many.
const LEFT_OUT_HEADER: &str = "firekeep-left-out";

#[derive(Serialize)]
struct RecordData {
    uri: String,
    cid: String,
    value: Value,
}

/// A page that was read.
#[derive(Default)]
struct RecordsPage {
    records: Vec<RecordData>,
    left_out: u64,
    bytes: usize,
    values: usize,
    last: Option<String>,
    more: bool,
    damaged: Option<Cid>,
}

impl Xrpc {
    pub(super) async fn get_record(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let (repo, path, version) = (params.repo()?, params.path()?, params.record_cid()?);
        let data = self
            .look_up_repo(repo, move |mirror, did, account| {
                let uri = format!("at://{did}/{path}");
                let record = mirror.record(account.account_number, path.as_bytes())?;
                let Some(record) = record.filter(|record| version.is_none_or(|cid| cid == record.cid)) else {
                    return Err(XrpcError::RecordNotFound(uri).into());
                };
                if !record.cid.matches(&record.bytes) {
                    return Err(damaged(&uri));
                }
                let mut left = RECORD_VALUES_MAX;
                let value = record_to_json_within(&record.bytes, &mut left).map_err(|_| XrpcError::NoJson)?;
                let cid = record.cid.to_string();
                Ok(RecordData { uri, cid, value })
            })
            .await?;
        Ok(response::json(&data))
    }

    pub(super) async fn list_records(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        #[derive(Serialize)]
        struct Output {
            #[serde(skip_serializing_if = "Option::is_none")]
            cursor: Option<String>,
            records: Vec<RecordData>,
        }
        let (repo, collection) = (params.repo()?, params.collection()?);
        let (limit, cursor) = (
            params.records_limit()?,
            params.cursor::<crate::types::RecordKey>()?,
        );
        // The newest come first, unless told otherwise.
        let direction = match params.reverse()? {
            false => Direction::Falling,
            true => Direction::Rising,
        };
        let page = self
            .look_up_repo(repo, move |mirror, did, account| {
                let mut page = RecordsPage::default();
                let (after, number) = (cursor.as_ref().map(|key| key.as_str()), account.account_number);
                mirror.scan_collection(number, collection.as_str(), after, direction, |path, record| {
                    page.add(did, path, record.cid(), record.bytes, limit)
                })?;
                match page.damaged {
                    Some(cid) => Err(damaged(&format!("{did}: {cid}"))),
                    None => Ok(page),
                }
            })
            .await?;
        let mut response = response::json(&Output {
            cursor: page.last.filter(|_| page.more),
            records: page.records,
        });
        if page.left_out > 0 {
            let name = HeaderName::from_static(LEFT_OUT_HEADER);
            response
                .headers_mut()
                .insert(name, HeaderValue::from(page.left_out));
        }
        Ok(response)
    }

    pub(super) async fn describe_repo(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        let repo = params.repo()?;
        let described = self
            .look_up_repo(repo, |mirror, did, account| {
                let row = mirror
                    .account(did)?
                    .ok_or_else(|| XrpcError::RepoNotFound(did.clone()))?;
                let collections = mirror.collections(account.account_number, COLLECTIONS_MAX)?;
                Ok(json!({
                    "did": did.as_str(),
                    "handle": handle_of(&row).unwrap_or(HANDLE_INVALID),
                    "didDoc": document(mirror, did, &row)?,
                    "collections": collections,
                    // The handle's own domain was not asked whether it agrees.
                    "handleIsCorrect": false,
                }))
            })
            .await?;
        Ok(response::json(&described))
    }

    /// On a PDS this is for the account itself, which its token names. Here no token is needed, for what blobs
    /// are missing is no secret, for `listBlobs` and `getBlob` tell it too: so the account is a parameter.
    pub(super) async fn list_missing_blobs(&self, params: &Params) -> Result<Response<Body>, XrpcError> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Missing {
            cid: String,
            record_uri: String,
        }
        #[derive(Serialize)]
        struct Output {
            #[serde(skip_serializing_if = "Option::is_none")]
            cursor: Option<String>,
            blobs: Vec<Missing>,
        }
        let (limit, cursor) = (params.limit()?, params.cursor::<Cid>()?);
        let did = params.did_if_given()?.ok_or(XrpcError::AuthMissing)?;
        let sight = self.sight();
        let (page, more) = self
            .look_up(move |mirror| {
                let account = lookup::served(mirror, &did, &sight)?;
                let (cids, more) = lookup::missing_blobs_page(mirror, &account, cursor, limit)?;
                let uri = |cid: Cid| -> Result<Missing, Failure> {
                    let path = mirror.blob_referrers(account.account_number, cid.digest(), 1)?;
                    let path = path.first().map_or("", RepoPath::as_str);
                    Ok(Missing {
                        cid: cid.to_string(),
                        record_uri: format!("at://{did}/{path}"),
                    })
                };
                let blobs: Result<Vec<_>, Failure> = cids.into_iter().map(uri).collect();
                Ok((blobs?, more))
            })
            .await?;
        Ok(response::json(&Output {
            cursor: page.last().filter(|_| more).map(|last| last.cid.clone()),
            blobs: page,
        }))
    }

    /// As [`Xrpc::look_up`], of an account that is served, by DID or handle.
    async fn look_up_repo<T: Send + 'static>(
        &self,
        repo: AtIdentifier,
        read: impl FnOnce(&Mirror<'_>, &Did, &Served) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, XrpcError> {
        let (directory, sight) = (std::sync::Arc::clone(&self.directory), self.sight());
        self.look_up(move |mirror| {
            let did = match repo {
                AtIdentifier::Did(did) => did,
                AtIdentifier::Handle(handle) => directory
                    .resolve(mirror, &handle)?
                    .ok_or(XrpcError::RepoNotNamed(handle.0))?,
            };
            let account = lookup::served(mirror, &did, &sight)?;
            read(mirror, &did, &account)
        })
        .await
    }
}

impl RecordsPage {
    fn add(&mut self, did: &Did, path: &[u8], cid: Cid, bytes: &[u8], limit: usize) -> ControlFlow<()> {
        let taken = self.records.len() + usize::try_from(self.left_out).unwrap_or(usize::MAX);
        let full = self.bytes + bytes.len() > PAGE_BYTES_MAX || self.values > PAGE_VALUES_MAX;
        if taken >= limit || (taken > 0 && full) {
            self.more = true;
            return ControlFlow::Break(());
        }
        if !cid.matches(bytes) {
            self.damaged = Some(cid);
            return ControlFlow::Break(());
        }
        self.bytes += bytes.len();
        let path = String::from_utf8_lossy(path);
        self.last = path.split_once('/').map(|(_, rkey)| rkey.to_owned());
        let mut left = RECORD_VALUES_MAX;
        let json = record_to_json_within(bytes, &mut left);
        self.values += RECORD_VALUES_MAX - left;
        match json {
            Ok(value) => self.records.push(RecordData {
                uri: format!("at://{did}/{path}"),
                cid: cid.to_string(),
                value,
            }),
            Err(_) => self.left_out += 1,
        }
        ControlFlow::Continue(())
    }
}

/// The log is told which record; the caller that something failed here.
fn damaged(what: &str) -> Failure {
    tracing::error!(
        record = what,
        "a stored record is not that of its CID: not served; firekeep verify tells more"
    );
    XrpcError::Internal.into()
}

/// The account's DID document, as far as it was kept when it was last read: its handle, its signing key, its PDS.
fn document(mirror: &Mirror<'_>, did: &Did, row: &AccountRow) -> Result<Value, StoreError> {
    let mut document = json!({ "@context": ["https://www.w3.org/ns/did/v1"], "id": did.as_str() });
    let Some(identity) = &row.identity else {
        return Ok(document);
    };
    if let Some(handle) = &identity.handle {
        document["alsoKnownAs"] = json!([format!("at://{handle}")]);
    }
    if let Some(key) = identity
        .key
        .as_deref()
        .and_then(|key| SigningKey::from_did_key(key).ok())
    {
        document["verificationMethod"] = json!([{
            "id": format!("{did}#atproto"),
            "type": "Multikey",
            "controller": did.as_str(),
            "publicKeyMultibase": key.to_multikey(),
        }]);
    }
    if let Some(host) = &identity.host {
        // Only of a host that is followed is it known whether its address is https.
        let followed = match host.parse() {
            Ok(name) => mirror.host(&name)?,
            Err(_) => None,
        };
        document["service"] = json!([{
            "id": "#atproto_pds",
            "type": "AtprotoPersonalDataServer",
            "serviceEndpoint": followed.map_or_else(|| format!("https://{host}"), |row| row.url),
        }]);
    }
    Ok(document)
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
