#![allow(clippy::disallowed_methods, reason = "shell: reads the archive")]
//! What an account was: snapshots, moments, a repository or a record as of a moment. For its owner and the admin.
//!
//! It is read from the archive, as `firekeep history` and `firekeep export` do, and proven before its first byte.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use hyper::Response;
use hyper::header::{self, HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{Asked, check_owner};
use crate::archive::bucket::Bucket;
use crate::archive::reader::{ArchiveReader, ReadError};
use crate::archive::rebuild::{RebuildError, Rebuilt};
use crate::archive::timeline::{At, Moment, NoMoment, Timeline};
use crate::metrics::labels::Endpoint;
use crate::repo::json::record_to_json;
use crate::repo::signing_key::SigningKey;
use crate::serve::export::{PIECE_BYTES, PIECES_WAITING_MAX};
use crate::serve::params::Params;
use crate::serve::response::{self, Body, Piece, XrpcError};
use crate::serve::who::Who;
use crate::serve::xrpc::Xrpc;
use crate::types::{Did, Rev, Timestamp};

/// How many records a moment may have that were erased is told here.
const WITHHELD_HEADER: &str = "firekeep-withheld";
/// The moment that was given.
const REV_HEADER: &str = "firekeep-rev";
/// A newer moment may have been meant that is not known.
const DOUBT_HEADER: &str = "firekeep-may-be-older";
/// Which key the moment's commit is signed with, of those that are known; `unknown`: with none of them.
const SIGNER_HEADER: &str = "firekeep-signed-by";

/// The archive, as far as callers may ask for what was.
#[derive(Clone)]
pub struct History {
    /// The archive, while it is open.
    pub bucket: Arc<OnceLock<Bucket>>,
    /// Where temporary files are made.
    pub temp_dir: PathBuf,
    /// One request reads it at a time: each reads all of the log.
    places: Arc<Semaphore>,
}

impl History {
    /// Of this archive, as soon as it is open.
    #[must_use]
    pub fn new(bucket: Arc<OnceLock<Bucket>>, temp_dir: PathBuf) -> Self {
        let places = Arc::new(Semaphore::new(1));
        Self {
            bucket,
            temp_dir,
            places,
        }
    }
}

/// What the archive says of an account.
struct Opened {
    reader: ArchiveReader,
    line: Timeline,
    /// A newer moment may have been meant than the one that was chosen.
    doubt: bool,
    _place: OwnedSemaphorePermit,
}

impl Xrpc {
    pub(super) async fn history(&self, asked: &Asked<'_>, who: &Who) -> Result<Response<Body>, XrpcError> {
        let params = &asked.params;
        let did = params.did()?;
        check_owner(who, &did)?;
        match asked.endpoint {
            Endpoint::BackupListSnapshots => self.list_snapshots(&did, params).await,
            Endpoint::BackupListRevisions => self.list_revisions(&did, params).await,
            Endpoint::BackupGetRepoAt => self.get_repo_at(&did, params).await,
            Endpoint::BackupGetRecordAt => self.get_record_at(&did, params).await,
            _ => Err(XrpcError::MethodNotImplemented),
        }
    }

    async fn open_history(&self, did: &Did) -> Result<Opened, XrpcError> {
        let place = Arc::clone(&self.history.places).acquire_owned();
        let place = match tokio::time::timeout(self.limits.queue_timeout, place).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) | Err(_) => return Err(XrpcError::Busy),
        };
        let bucket = self.history.bucket.get().ok_or(XrpcError::Unavailable)?;
        let reader = ArchiveReader::of_bucket(bucket.clone(), &self.history.temp_dir).await;
        let reader = reader.map_err(|error| unread(did, error))?;
        let line = reader
            .timeline(did, None)
            .await
            .map_err(|error| unread(did, error))?;
        Ok(Opened {
            reader,
            line,
            doubt: false,
            _place: place,
        })
    }

    async fn list_snapshots(&self, did: &Did, params: &Params) -> Result<Response<Body>, XrpcError> {
        let (limit, cursor) = (params.limit()?, params.cursor::<Rev>()?);
        let line = self.open_history(did).await?.line;
        let snapshots = line.moments.iter().filter(|moment| moment.snapshot);
        let (page, next) = page(snapshots, cursor, limit);
        let list = page.iter().map(|moment| {
            json!({
                "rev": moment.rev.to_string(),
                "commit": moment.commit.to_string(),
                "time": moment.time.to_string(),
            })
        });
        Ok(response::json(&with_cursor(
            json!({ "snapshots": list.collect::<Value>() }),
            next,
        )))
    }

    async fn list_revisions(&self, did: &Did, params: &Params) -> Result<Response<Body>, XrpcError> {
        let (limit, cursor) = (params.limit()?, params.cursor::<Rev>()?);
        let line = self.open_history(did).await?.line;
        let rebuildable = line.rebuildable();
        let (page, next) = page(line.moments.iter(), cursor, limit);
        let list = page.iter().map(|moment| {
            let can = line.index_of(moment.rev).is_some_and(|at| rebuildable[at]);
            let mut told = json!({
                "rev": moment.rev.to_string(),
                "commit": moment.commit.to_string(),
                "time": moment.time.to_string(),
                "received": moment.received.to_string(),
                "by": moment.kind.label(),
                "snapshot": moment.snapshot,
                "available": can,
                "put": moment.ops.0,
                "deleted": moment.ops.1,
            });
            if let Some(since) = moment.since {
                told["since"] = since.to_string().into();
            }
            if let Some(host) = &moment.host {
                told["host"] = host.as_str().into();
            }
            told
        });
        let output = json!({ "revisions": list.collect::<Value>(), "damaged": line.is_damaged() });
        Ok(response::json(&with_cursor(output, next)))
    }

    /// The moment that is asked for, proven.
    async fn moment_at(&self, did: &Did, params: &Params) -> Result<(Opened, Moment, Rebuilt), XrpcError> {
        let at = match (params.time()?, params.rev()?) {
            (Some(_), Some(_)) => {
                let text = "Params must have one of \"time\" and \"rev\", not both".to_owned();
                return Err(XrpcError::Input(text));
            }
            (Some(time), None) => At::Time(time),
            (None, Some(rev)) => At::Rev(rev),
            (None, None) => At::Newest,
        };
        let mut opened = self.open_history(did).await?;
        let choice = opened.line.choose(at).map_err(|error| no_moment(did, &error))?;
        opened.doubt = choice.doubt.is_some();
        let moment = opened.line.moments[choice.index].clone();
        let rebuilt = opened.reader.rebuild(did, &opened.line, choice.index, &[]).await;
        let mut rebuilt = rebuilt.map_err(|error| match error {
            RebuildError::Read(error) => unread(did, error),
            RebuildError::Unreachable(_) | RebuildError::Unproven { .. } => {
                tracing::error!(%did, %error, "what the archive holds of a moment cannot be given");
                XrpcError::Own("MomentUnavailable", error.to_string())
            }
        })?;
        let keys = self.known_keys(did, &opened.reader).await?;
        if !keys.is_empty() {
            rebuilt.hold_against(&keys);
        }
        Ok((opened, moment, rebuilt))
    }

    /// The keys that could sign an account's commits: those that the archive names, and the current one.
    async fn known_keys(&self, did: &Did, reader: &ArchiveReader) -> Result<Vec<SigningKey>, XrpcError> {
        let wanted = did.clone();
        let row = self.look_up(move |mirror| Ok(mirror.account(&wanted)?)).await?;
        let current = row.and_then(|row| row.identity?.key);
        let mut keys: Vec<SigningKey> = current
            .and_then(|key| SigningKey::from_did_key(&key).ok())
            .into_iter()
            .collect();
        let (files, _) = reader.identities(did).await.map_err(|error| unread(did, error))?;
        keys.extend(files.iter().filter_map(|file| file.keys().ok()).flatten());
        Ok(keys)
    }

    async fn get_repo_at(&self, did: &Did, params: &Params) -> Result<Response<Body>, XrpcError> {
        let (opened, moment, rebuilt) = self.moment_at(did, params).await?;
        let signer = rebuilt.signed_by.clone();
        let withheld = rebuilt.withheld.len();
        let temp_dir = self.history.temp_dir.clone();
        let written = tokio::task::spawn_blocking(move || write_car(&rebuilt, &temp_dir)).await;
        let (file, length) = written.map_err(|_| XrpcError::Internal)?.map_err(|error| {
            tracing::error!(%did, %error, "a moment's repository cannot be written");
            XrpcError::Internal
        })?;
        let doubt = opened.doubt;
        let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
        tokio::task::spawn_blocking(move || send(file, &sender));
        let media = HeaderValue::from_static("application/vnd.ipld.car");
        let mut answer = response::with_type(Body::pieces(pieces, length), media);
        let headers = answer.headers_mut();
        headers.insert(header::CACHE_CONTROL, response::CACHE_NEVER);
        let text = |text: &str| HeaderValue::try_from(text).expect("base32 and base58");
        headers.insert(HeaderName::from_static(REV_HEADER), text(&moment.rev.to_string()));
        let signer = signer.as_deref().unwrap_or("unknown");
        headers.insert(HeaderName::from_static(SIGNER_HEADER), text(signer));
        if doubt {
            headers.insert(
                HeaderName::from_static(DOUBT_HEADER),
                HeaderValue::from_static("true"),
            );
        }
        if withheld > 0 {
            headers.insert(HeaderName::from_static(WITHHELD_HEADER), withheld.into());
        }
        Ok(answer)
    }

    /// The newest moment that the archive has, proven.
    pub(super) async fn prove_archive(&self, did: &Did) -> Result<Value, XrpcError> {
        let opened = self.open_history(did).await?;
        let newest = opened
            .line
            .choose(At::Newest)
            .map_err(|error| no_moment(did, &error))?;
        let rev = opened.line.moments[newest.index].rev;
        let rebuilt = opened.reader.rebuild(did, &opened.line, newest.index, &[]).await;
        let mut told = json!({ "ok": rebuilt.is_ok() && !opened.line.is_damaged(), "rev": rev.to_string() });
        match rebuilt {
            Ok(rebuilt) => told["records"] = rebuilt.records.len().into(),
            Err(RebuildError::Read(error)) => return Err(unread(did, error)),
            Err(error) => told["detail"] = error.to_string().into(),
        }
        if let Some(fault) = opened.line.faults.first() {
            told["detail"] = fault.to_string().into();
        }
        Ok(told)
    }

    async fn get_record_at(&self, did: &Did, params: &Params) -> Result<Response<Body>, XrpcError> {
        let path = params.path()?;
        let (_opened, moment, rebuilt) = self.moment_at(did, params).await?;
        let uri = format!("at://{did}/{path}");
        let cid = rebuilt.records.get(path.as_str()).copied();
        let cid = cid.ok_or_else(|| XrpcError::RecordNotFound(uri.clone()))?;
        let bytes = rebuilt.record(&cid).map_err(|error| {
            tracing::error!(%did, %error, "a temporary file cannot be read");
            XrpcError::Internal
        })?;
        let bytes = bytes.ok_or_else(|| {
            XrpcError::Own(
                "RecordErased",
                format!("This record was erased from the archive: {uri}"),
            )
        })?;
        let value = record_to_json(&bytes).map_err(|_| XrpcError::NoJson)?;
        let mut answer = response::json(&json!({
            "uri": uri,
            "cid": cid.to_string(),
            "rev": moment.rev.to_string(),
            "time": moment.time.to_string(),
            "value": value,
        }));
        answer
            .headers_mut()
            .insert(header::CACHE_CONTROL, response::CACHE_NEVER);
        Ok(answer)
    }
}

/// Writes a moment's CAR into a file that nobody else has.
fn write_car(rebuilt: &Rebuilt, temp_dir: &Path) -> io::Result<(File, u64)> {
    let mut out = BufWriter::with_capacity(PIECE_BYTES, tempfile::tempfile_in(temp_dir)?);
    rebuilt.write_car(&mut out).map_err(io::Error::other)?;
    let mut file = out.into_inner().map_err(io::Error::other)?;
    let length = file.stream_position()?;
    file.seek(SeekFrom::Start(0))?;
    Ok((file, length))
}

/// Sends a file, as long as somebody takes it.
fn send(mut file: File, sender: &mpsc::Sender<Piece>) {
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let next = match file.read(&mut piece) {
            Ok(0) => Piece::End,
            Ok(read) => {
                piece.truncate(read);
                Piece::Data(piece.into())
            }
            Err(error) => Piece::Cut(error),
        };
        let last = !matches!(next, Piece::Data(_));
        if sender.blocking_send(next).is_err() || last {
            return;
        }
    }
}

/// Those before a rev, the newest first; and the cursor of the next page.
fn page<'a>(
    moments: impl DoubleEndedIterator<Item = &'a Moment>,
    before: Option<Rev>,
    limit: usize,
) -> (Vec<&'a Moment>, Option<Rev>) {
    let mut rest = moments
        .rev()
        .filter(|moment| before.is_none_or(|before| moment.rev < before));
    let page: Vec<&Moment> = rest.by_ref().take(limit).collect();
    let next = page.last().map(|last| last.rev).filter(|_| rest.next().is_some());
    (page, next)
}

fn with_cursor(mut output: Value, cursor: Option<Rev>) -> Value {
    if let Some(cursor) = cursor {
        output["cursor"] = cursor.to_string().into();
    }
    output
}

fn no_moment(did: &Did, error: &NoMoment) -> XrpcError {
    match error {
        NoMoment::Nothing => XrpcError::RepoNotFound(did.clone()),
        NoMoment::TooEarly { .. } | NoMoment::NoSuchRev(_) => {
            let text = error.to_string();
            let text = text.split(';').next().unwrap_or_default().to_owned();
            XrpcError::Own("MomentNotFound", text)
        }
    }
}

fn unread(did: &Did, error: ReadError) -> XrpcError {
    match error {
        ReadError::NoBackup { .. } | ReadError::NoArchive { .. } => XrpcError::RepoNotFound(did.clone()),
        ReadError::Erased { since, .. } => {
            XrpcError::Own("AccountErased", format!("This account was erased on {since}"))
        }
        error => {
            tracing::error!(%did, %error, "the archive cannot be read for a caller");
            XrpcError::Unavailable
        }
    }
}

/// For parameters: a moment's time.
impl Params {
    fn time(&self) -> Result<Option<Timestamp>, XrpcError> {
        Ok(self.named("time", "a datetime")?)
    }

    fn rev(&self) -> Result<Option<Rev>, XrpcError> {
        Ok(self.named("rev", "a valid tid")?)
    }
}
