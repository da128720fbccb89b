#![allow(
    clippy::disallowed_methods,
    reason = "shell: the bucket, threads that may block"
)]
//! Reading objects: at most so many bytes a second, counted, and with the store's own failures kept apart from what
//! an object has wrong.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::content::Bad;
use crate::archive::bucket::{Bucket, BucketError, BucketErrorKind, ObjectBody, ObjectReader};

/// How far a verification is, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    /// Objects of the archive.
    pub objects: AtomicU64,
    /// Objects that are done.
    pub done: AtomicU64,
    /// Bytes that were read.
    pub bytes: AtomicU64,
    /// Findings so far.
    pub findings: AtomicU64,
}

impl Progress {
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// Lets through so many bytes a second.
pub(super) struct Pace {
    rate: Option<u64>,
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self {
            rate,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits until these bytes may have been read.
    async fn take(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let micros = (bytes as u64).saturating_mul(1_000_000) / rate.max(1);
        let until = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next = (*next).max(Instant::now()) + Duration::from_micros(micros);
            *next
        };
        tokio::time::sleep_until(until).await;
    }
}

/// The way to the archive's objects.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) bucket: Bucket,
    pace: Arc<Pace>,
    pub(super) progress: Arc<Progress>,
}

/// What became of reading an object.
pub(super) enum Outcome<T> {
    /// It is sound.
    Sound(T),
    /// It is not.
    Bad(Bad),
    /// It could not be read; it may be sound.
    Unread(BucketError),
    /// It is not there (any more).
    Gone,
}

impl<T> Outcome<T> {
    /// Looks at what was read.
    pub(super) fn and_then<U>(self, check: impl FnOnce(T) -> Result<U, Bad>) -> Outcome<U> {
        match self {
            Self::Sound(value) => match check(value) {
                Ok(value) => Outcome::Sound(value),
                Err(bad) => Outcome::Bad(bad),
            },
            Self::Bad(bad) => Outcome::Bad(bad),
            Self::Unread(error) => Outcome::Unread(error),
            Self::Gone => Outcome::Gone,
        }
    }
}

impl Reader {
    pub(super) fn new(bucket: Bucket, rate: Option<u64>, progress: Arc<Progress>) -> Self {
        Self {
            bucket,
            pace: Arc::new(Pace::new(rate)),
            progress,
        }
    }

    /// Opens an object.
    async fn open(&self, name: &str) -> Result<Option<ObjectBody>, BucketError> {
        let Some(mut body) = self.bucket.get(name).await? else {
            return Ok(None);
        };
        let (pace, progress) = (Arc::clone(&self.pace), Arc::clone(&self.progress));
        let paced = body.stream.then(move |chunk| {
            let (pace, progress) = (Arc::clone(&pace), Arc::clone(&progress));
            async move {
                if let Ok(bytes) = &chunk {
                    Progress::add(&progress.bytes, bytes.len() as u64);
                    pace.take(bytes.len()).await;
                }
                chunk
            }
        });
        body.stream = paced.boxed();
        Ok(Some(body))
    }

    /// Reads an object on a thread that may block, as a stream.
    pub(super) async fn check<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(Tracked) -> Result<T, Bad> + Send + 'static,
    ) -> Outcome<T> {
        let body = match self.open(name).await {
            Ok(Some(body)) => body,
            Ok(None) => return Outcome::Gone,
            Err(error) => return failed(error),
        };
        let failure = Arc::new(Mutex::new(None));
        let reader = Tracked {
            reader: body.into_reader(Handle::current()),
            failure: Arc::clone(&failure),
        };
        let done = tokio::task::spawn_blocking(move || work(reader)).await;
        match done {
            Ok(Ok(value)) => Outcome::Sound(value),
            Ok(Err(bad)) => match failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(error) => failed(error),
                None => Outcome::Bad(bad),
            },
            Err(panic) => match panic.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Outcome::Bad(Bad::Other("the check was cut off".to_owned())),
            },
        }
    }

    /// Reads an object of at most so many bytes.
    pub(super) async fn bytes(&self, name: &str, bytes_max: usize) -> Outcome<bytes::Bytes> {
        let body = match self.open(name).await {
            Ok(Some(body)) => body,
            Ok(None) => return Outcome::Gone,
            Err(error) => return failed(error),
        };
        match body.bytes(bytes_max).await {
            Ok(bytes) => Outcome::Sound(bytes),
            Err(error) => failed(error),
        }
    }

    /// Hashes an object as it streams by.
    pub(super) async fn sha256(&self, name: &str) -> Outcome<crate::types::Digest> {
        use sha2::{Digest as _, Sha256};
        let mut body = match self.open(name).await {
            Ok(Some(body)) => body,
            Ok(None) => return Outcome::Gone,
            Err(error) => return failed(error),
        };
        let mut hash = Sha256::new();
        while let Some(chunk) = body.stream.next().await {
            match chunk {
                Ok(bytes) => hash.update(&bytes),
                Err(error) => return failed(error),
            }
        }
        Outcome::Sound(hash.finalize().into())
    }
}

/// What the store says that is wrong with the object is; the rest may be over when it is read again.
fn failed<T>(error: BucketError) -> Outcome<T> {
    use BucketErrorKind as K;
    match error.kind {
        K::Corrupt | K::Symlink | K::NotAFolder | K::TooLarge | K::BadName => {
            Outcome::Bad(Bad::Other(error.to_string()))
        }
        _ => Outcome::Unread(error),
    }
}

/// An object's bytes; keeps the store's own failure, which decoders hide in theirs.
pub(super) struct Tracked {
    reader: ObjectReader,
    failure: Arc<Mutex<Option<BucketError>>>,
}

impl Read for Tracked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer);
        if let Err(error) = &read
            && let Some(of_store) = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<BucketError>())
        {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            *failure = Some(of_store.clone());
        }
        read
    }
}
