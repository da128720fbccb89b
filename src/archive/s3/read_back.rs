#![allow(clippy::disallowed_methods, reason = "shell: the network")]
//! After each write: what does the store hold?

use std::sync::atomic::Ordering;

use backon::Retryable as _;
use sha2::{Digest as _, Sha256};

use super::super::bucket::{BucketError, BucketErrorKind};
use super::{S3, backoff, chunks, error};
use crate::types::Digest;

/// As often a store is asked for an object that it has just taken.
const READ_BACKS_MAX: usize = 4;

/// What is to be stored, as the store is asked to show it afterwards.
pub(super) struct Expected {
    pub(super) size: u64,
    pub(super) sha256: Digest,
    /// In the form of an ETag: `hex`, or `hex-parts`.
    pub(super) md5: String,
}

/// What a store turned out to hold after a write.
pub(super) enum Stored {
    /// What was sent.
    Ours,
    /// Another writer's object: the digest beside it is another. The store's conditional writes are not atomic, or
    /// none were asked for.
    Another,
    /// Our object, with other bytes.
    Damaged(String),
}

impl S3 {
    /// Asks the store what it holds, and compares.
    pub(super) async fn read_back(&self, name: &str, expected: &Expected) -> Result<Stored, BucketError> {
        let look = || async {
            let found = self.stat(name).await?;
            found.ok_or_else(|| {
                error::corrupt(
                    "write",
                    self.place(name),
                    "the store took it, but does not have it",
                )
            })
        };
        // A store may take a moment to show what it took.
        let stat = look
            .retry(backoff().with_max_times(READ_BACKS_MAX))
            .when(|error| error.kind == BucketErrorKind::Corrupt)
            .await?;
        if stat.head.sha256.is_some_and(|sha256| sha256 != expected.sha256) {
            return Ok(Stored::Another);
        }
        // A store that loses the digest leaves us unsure whose object it is.
        let damaged = |detail: String| match stat.head.sha256 {
            Some(_) => Ok(Stored::Damaged(detail)),
            None => Err(error::corrupt("write", self.place(name), &detail)),
        };
        if stat.head.size != expected.size {
            let (found, sent) = (stat.head.size, expected.size);
            return damaged(format!("{sent} bytes were sent, and the store has {found}"));
        }
        let differs = stat.md5.is_some_and(|md5| md5 != expected.md5);
        if !differs || !self.etags_are_md5.load(Ordering::Relaxed) {
            return Ok(Stored::Ours);
        }
        if self.hash_object(name).await? != expected.sha256 {
            return damaged("the store has other bytes than were sent".to_owned());
        }
        tracing::info!(bucket = %self.bucket, "this store's ETags are not MD5s: they are not compared any more");
        self.etags_are_md5.store(false, Ordering::Relaxed);
        Ok(Stored::Ours)
    }

    async fn hash_object(&self, name: &str) -> Result<Digest, BucketError> {
        let request = self.client.get_object().bucket(&self.bucket).key(self.key(name));
        let answer = request
            .send()
            .await
            .map_err(|failed| error::of("read back", self.place(name), &failed))?;
        let mut hash = Sha256::new();
        let mut chunks = std::pin::pin!(chunks(answer.body, self.place(name), self.idle));
        while let Some(chunk) = futures_util::StreamExt::next(&mut chunks).await {
            hash.update(&chunk?);
        }
        Ok(hash.finalize().into())
    }
}

/// What an ETag would be if it is made of MD5s: 32 hexadecimal digits, perhaps with the number of parts.
pub(super) fn md5_of(etag: &str) -> Option<String> {
    let etag = etag.trim_matches('"').to_ascii_lowercase();
    let (hex, parts) = etag.split_once('-').unwrap_or((&etag, "1"));
    let ok = hex.len() == 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
        && !parts.is_empty()
        && parts.bytes().all(|b| b.is_ascii_digit());
    ok.then(|| etag.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_an_md5_counts_as_one() {
        let hex = "d41d8cd98f00b204e9800998ecf8427e";
        assert_eq!(md5_of(&format!("\"{hex}\"")), Some(hex.to_owned()));
        assert_eq!(md5_of(&hex.to_uppercase()), Some(hex.to_owned()));
        assert_eq!(md5_of(&format!("{hex}-12")), Some(format!("{hex}-12")));
        for odd in [
            "",
            "\"\"",
            "abc",
            &hex[1..],
            &format!("{hex}-"),
            &format!("{hex}-x"),
            &format!("{hex}0"),
        ] {
            assert_eq!(md5_of(odd), None, "{odd}");
        }
    }
}
