#![allow(clippy::disallowed_methods, reason = "shell: the network")]
//! A bucket in S3, or in a store that speaks its language, as the archive's store.
//!
//! Such stores differ, so little is taken for granted:
//!
//! - **Checksums.** By default the client adds none of its own (many stores refuse the newer ones). What is
//!   sent is in memory (of a file, a part at a time), so its SHA-256 is signed with the request; and the object's own
//!   SHA-256 goes with it as metadata and is compared when it is read.
//! - **Read back.** After each write the store is asked what it holds: the length must be right, and the ETag must
//!   be the MD5 where it can be one. Some stores' ETags only look like it; so on a difference the object is read and
//!   hashed, and if it is sound, ETags are not believed again. What is not sound but surely ours is removed, so that
//!   a retry can create it.
//! - **Create only** is `If-None-Match: *`. A store that answers 501 is remembered: from then on we look first,
//!   which is enough for one writer. A store that ignores the condition, or checks it without a lock (as some do
//!   for uploads in parts), cannot be told from here; but a writer whose object was replaced at once sees the other
//!   one's digest when it reads back, and says that there was one already.
//! - **409** means that another request for the same object was under way; it is tried again, an upload in parts
//!   from its beginning.
//! - **404** to a HEAD does not tell a missing object from a missing bucket, so until the bucket has been seen once
//!   it is asked for.
//!
//! Requests are tried again by the client on connection errors, 5xx and throttling (`client`); beyond that, the
//! caller decides ([`BucketError::is_transient`]).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ServerSideEncryption;
use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::stream;
use md5::Md5;
use sha2::{Digest as _, Sha256};

use super::bucket::{
    Body, BucketError, BucketErrorKind, LIST_NAMES_MAX, ListPage, ListedObject, ObjectBody, ObjectHead,
    PutOptions, PutOutcome,
};
use super::content_type::ContentType;
use super::settings::S3Settings;
use crate::types::cid::sha256;
use crate::types::{Digest, Timestamp};
use read_back::{Expected, Stored};

mod client;
mod error;
mod multipart;
mod probe;
mod read_back;

/// Up to this length an object is sent in one request, in bytes.
const WHOLE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The metadata key of our own digest, in hexadecimal.
const SHA256_KEY: &str = "sha256";
/// As often a write is tried that meets another one.
const CONFLICTS_MAX: usize = 5;

/// A bucket that is open. Cheap to clone.
#[derive(Clone)]
pub struct S3Bucket(Arc<S3>);

struct S3 {
    client: Client,
    bucket: String,
    /// Empty, or ending with `/`.
    prefix: String,
    /// Longest wait for a piece of an answer's body.
    idle: Duration,
    /// The bucket is known to exist.
    seen: AtomicBool,
    /// The store has not (yet) refused conditional writes.
    conditional: AtomicBool,
    /// ETags that look like an MD5 have not (yet) turned out to be none.
    etags_are_md5: AtomicBool,
}

/// What the store says of an object.
struct Stat {
    head: ObjectHead,
    /// Its MD5 (or that of its parts' MD5s), if the ETag can be that.
    md5: Option<String>,
}

impl S3Bucket {
    /// Makes a client for a bucket. Sends nothing to it.
    ///
    /// # Errors
    /// When no region is known, or a file with credentials cannot be read.
    pub async fn open(bucket: &str, prefix: &str, settings: &S3Settings) -> Result<Self, BucketError> {
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        };
        Ok(Self(Arc::new(S3 {
            client: client::connect(bucket, settings).await?,
            bucket: bucket.to_owned(),
            prefix,
            idle: settings.timeouts.idle,
            seen: AtomicBool::new(false),
            conditional: AtomicBool::new(true),
            etags_are_md5: AtomicBool::new(true),
        })))
    }

    /// See [`Bucket::put`](super::bucket::Bucket::put).
    pub(super) async fn put(
        &self,
        name: &str,
        body: Body,
        options: &PutOptions,
    ) -> Result<PutOutcome, BucketError> {
        let s3 = &*self.0;
        let content = Content::of(body, options.sha256).await?;
        // Twice at most: only the first try can find out that the store has no conditional writes.
        loop {
            let conditional = options.create_only && self.create_only_is_atomic();
            let look_first =
                options.create_only && (!conditional || matches!(content, Content::Large { .. }));
            if look_first && s3.stat(name).await?.is_some() {
                return Ok(PutOutcome::AlreadyThere);
            }
            let put = || s3.put_once(name, &content, options, conditional);
            let outcome = put
                .retry(backoff().with_max_times(CONFLICTS_MAX))
                .when(|error| error.kind == BucketErrorKind::Conflict)
                .await;
            match outcome {
                Err(error) if conditional && error.kind == BucketErrorKind::Unsupported => {
                    s3.conditional.store(false, Ordering::Relaxed);
                }
                outcome => return outcome,
            }
        }
    }

    /// See [`Bucket::get`](super::bucket::Bucket::get).
    pub(super) async fn get(&self, name: &str) -> Result<Option<ObjectBody>, BucketError> {
        let s3 = &*self.0;
        let place = s3.place(name);
        let request = s3.client.get_object().bucket(&s3.bucket).key(s3.key(name));
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(failed) if error::is_no_such_key(&failed) => {
                s3.confirm_bucket().await?;
                return Ok(None);
            }
            Err(failed) => return Err(error::of("read", place, &failed)),
        };
        s3.seen.store(true, Ordering::Relaxed);
        let size = answer.content_length.and_then(|size| u64::try_from(size).ok());
        let size =
            size.ok_or_else(|| error::corrupt("read", place.clone(), "the store did not tell its length"))?;
        let head = ObjectHead {
            size,
            content_type: ContentType::or_binary(answer.content_type.as_deref()),
            sha256: digest_of(answer.metadata.as_ref()),
        };
        let chunks = chunks(answer.body, place.clone(), s3.idle);
        Ok(Some(ObjectBody::checked(place, head, chunks)))
    }

    /// See [`Bucket::head`](super::bucket::Bucket::head).
    pub(super) async fn head(&self, name: &str) -> Result<Option<ObjectHead>, BucketError> {
        Ok(self.0.stat(name).await?.map(|stat| stat.head))
    }

    /// See [`Bucket::list`](super::bucket::Bucket::list).
    pub(super) async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ListPage, BucketError> {
        let s3 = &*self.0;
        let request = s3.client.list_objects_v2().bucket(&s3.bucket);
        let request = request
            .prefix(s3.key(prefix))
            .set_start_after(after.map(|after| s3.key(after)))
            .max_keys(LIST_NAMES_MAX as i32);
        let answer = request
            .send()
            .await
            .map_err(|failed| error::of("list", s3.place(prefix), &failed))?;
        s3.seen.store(true, Ordering::Relaxed);
        let mut objects = Vec::new();
        for object in answer.contents.unwrap_or_default() {
            let key = object.key.unwrap_or_default();
            let name = key.strip_prefix(&s3.prefix).map(str::to_owned);
            let name = name.filter(|name| after.is_none_or(|after| name.as_str() > after));
            // A store that lists what was not asked for would send us round in circles.
            let name =
                name.ok_or_else(|| error::corrupt("list", s3.place(prefix), "the store lists other names"))?;
            let size = object.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
            objects.push(ListedObject { name, size });
        }
        let more = answer.is_truncated.unwrap_or(false);
        let next = objects.last().filter(|_| more).map(|last| last.name.clone());
        Ok(ListPage { objects, next })
    }

    /// See [`Bucket::delete`](super::bucket::Bucket::delete).
    pub(super) async fn delete(&self, name: &str) -> Result<(), BucketError> {
        let s3 = &*self.0;
        let request = s3.client.delete_object().bucket(&s3.bucket).key(s3.key(name));
        match request.send().await {
            Ok(_) => Ok(()),
            Err(failed) if error::is_no_such_key(&failed) => s3.confirm_bucket().await,
            Err(failed) => Err(error::of("delete", s3.place(name), &failed)),
        }
    }

    /// See [`Bucket::clean_up`](super::bucket::Bucket::clean_up).
    pub(super) async fn clean_up(&self, now: Option<Timestamp>) -> Result<Option<u64>, BucketError> {
        self.0.abort_leftovers(now).await
    }

    /// See [`Bucket::distrust_create_only`](super::bucket::Bucket::distrust_create_only).
    pub(super) fn distrust_create_only(&self) {
        self.0.conditional.store(false, Ordering::Relaxed);
    }

    /// See [`Bucket::create_only_is_atomic`](super::bucket::Bucket::create_only_is_atomic).
    pub(super) fn create_only_is_atomic(&self) -> bool {
        self.0.conditional.load(Ordering::Relaxed)
    }
}

impl fmt::Display for S3Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = self.0.prefix.trim_end_matches('/');
        write!(f, "s3://{}", self.0.bucket)?;
        if prefix.is_empty() {
            Ok(())
        } else {
            write!(f, "/{prefix}")
        }
    }
}

impl fmt::Debug for S3Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is to be stored.
enum Content {
    /// Short enough for one request.
    Whole(Bytes, Digest),
    /// A file that goes in parts.
    Large {
        path: PathBuf,
        size: u64,
        sha256: Digest,
    },
}

impl Content {
    async fn of(body: Body, wanted: Option<Digest>) -> Result<Self, BucketError> {
        let bytes = match body {
            Body::Bytes(bytes) => bytes,
            Body::File(path) => {
                let failed = |error: std::io::Error| error::of_file(&path, &error);
                let size = tokio::fs::metadata(&path).await.map_err(failed)?.len();
                if size > WHOLE_BYTES_MAX {
                    let sha256 = match wanted {
                        Some(sha256) => sha256,
                        None => hash_file(path.clone()).await?,
                    };
                    return Ok(Self::Large { path, size, sha256 });
                }
                read_file(&path).await?
            }
        };
        let found = sha256(&bytes);
        if wanted.is_some_and(|wanted| wanted != found) {
            let detail = "the bytes to store do not hash to the SHA-256 that was announced for them";
            return Err(error::corrupt("write", "an object".to_owned(), detail));
        }
        Ok(Self::Whole(bytes, found))
    }
}

async fn read_file(path: &Path) -> Result<Bytes, BucketError> {
    let bytes = tokio::fs::read(path)
        .await
        .map_err(|error| error::of_file(path, &error))?;
    Ok(bytes.into())
}

async fn hash_file(path: PathBuf) -> Result<Digest, BucketError> {
    use tokio::io::AsyncReadExt as _;
    let failed = |error: std::io::Error| error::of_file(&path, &error);
    let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    let mut hash = Sha256::new();
    loop {
        let count = file.read(&mut buffer).await.map_err(failed)?;
        if count == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&buffer[..count]);
    }
}

impl S3 {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn place(&self, name: &str) -> String {
        format!("s3://{}/{}{name}", self.bucket, self.prefix)
    }

    async fn put_once(
        &self,
        name: &str,
        content: &Content,
        options: &PutOptions,
        conditional: bool,
    ) -> Result<PutOutcome, BucketError> {
        let (outcome, expected) = match content {
            Content::Whole(bytes, sha256) => {
                self.put_whole(name, bytes, *sha256, options, conditional).await?
            }
            Content::Large { path, size, sha256 } => {
                let source = multipart::Source::new(path, *size, *sha256);
                self.put_parts(name, &source, options, conditional).await?
            }
        };
        if outcome == PutOutcome::AlreadyThere {
            return Ok(outcome);
        }
        match self.read_back(name, &expected).await? {
            Stored::Ours => Ok(PutOutcome::Created),
            Stored::Another if options.create_only => Ok(PutOutcome::AlreadyThere),
            Stored::Another => Err(error::overwritten(self.place(name))),
            Stored::Damaged(detail) => {
                // We made it a moment ago, and nobody can have use for it.
                let request = self
                    .client
                    .delete_object()
                    .bucket(&self.bucket)
                    .key(self.key(name));
                let removed = request.send().await.is_ok();
                tracing::warn!(object = %self.place(name), removed, detail, "a stored object is damaged");
                Err(error::corrupt("write", self.place(name), &detail))
            }
        }
    }

    async fn put_whole(
        &self,
        name: &str,
        bytes: &Bytes,
        sha256: Digest,
        options: &PutOptions,
        conditional: bool,
    ) -> Result<(PutOutcome, Expected), BucketError> {
        let request = self.client.put_object().bucket(&self.bucket).key(self.key(name));
        let request = request
            .content_type(options.content_type.as_str())
            .metadata(SHA256_KEY, HEXLOWER.encode(&sha256))
            .set_if_none_match(conditional.then(|| "*".to_owned()))
            .body(ByteStream::from(bytes.clone()));
        let outcome = match request.send().await {
            Ok(_) => PutOutcome::Created,
            Err(failed) if conditional && error::is_precondition(&failed) => PutOutcome::AlreadyThere,
            Err(failed) => return Err(error::of("write", self.place(name), &failed)),
        };
        self.seen.store(true, Ordering::Relaxed);
        let md5 = HEXLOWER.encode(&Md5::digest(bytes));
        let size = bytes.len() as u64;
        Ok((outcome, Expected { size, sha256, md5 }))
    }

    async fn stat(&self, name: &str) -> Result<Option<Stat>, BucketError> {
        let request = self.client.head_object().bucket(&self.bucket).key(self.key(name));
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(failed) if error::is_no_such_key(&failed) => {
                self.confirm_bucket().await?;
                return Ok(None);
            }
            Err(failed) => return Err(error::of("look up", self.place(name), &failed)),
        };
        self.seen.store(true, Ordering::Relaxed);
        // A length of zero may go without saying.
        let size = answer.content_length.unwrap_or(0);
        let size = u64::try_from(size)
            .map_err(|_| error::corrupt("look up", self.place(name), "the store tells a negative length"))?;
        let encrypted = answer.sse_customer_algorithm.is_some()
            || answer
                .server_side_encryption
                .is_some_and(|kind| kind != ServerSideEncryption::Aes256);
        let md5 = answer
            .e_tag
            .filter(|_| !encrypted)
            .and_then(|etag| read_back::md5_of(&etag));
        let head = ObjectHead {
            size,
            content_type: ContentType::or_binary(answer.content_type.as_deref()),
            sha256: digest_of(answer.metadata.as_ref()),
        };
        Ok(Some(Stat { head, md5 }))
    }

    /// Tells a bucket without the object from no bucket.
    async fn confirm_bucket(&self) -> Result<(), BucketError> {
        if self.seen.load(Ordering::Relaxed) {
            return Ok(());
        }
        let request = self.client.list_objects_v2().bucket(&self.bucket);
        match request.prefix(&self.prefix).max_keys(1).send().await {
            Ok(_) => {
                self.seen.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(failed) => Err(error::of("list", self.place(""), &failed)),
        }
    }
}

/// A body as a stream that does not wait for ever.
fn chunks(
    body: ByteStream,
    place: String,
    idle: Duration,
) -> impl futures_util::Stream<Item = Result<Bytes, BucketError>> + Send + 'static {
    stream::unfold(Some((body, place)), move |state| async move {
        let (mut body, place) = state?;
        match tokio::time::timeout(idle, body.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(bytes))) => Some((Ok(bytes), Some((body, place)))),
            Ok(Some(Err(broken))) => Some((Err(error::of_stream(place, &broken)), None)),
            Err(_) => Some((Err(error::stalled(place, idle)), None)),
        }
    })
}

fn digest_of(metadata: Option<&std::collections::HashMap<String, String>>) -> Option<Digest> {
    let hex = metadata?.get(SHA256_KEY)?;
    HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok()
}

fn backoff() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
}

#[cfg(test)]
pub(super) mod tests;
