#![allow(clippy::disallowed_methods, reason = "shell: the network and files")]
//! Large objects go in parts, one at a time, so that memory holds one part. An upload that fails is aborted; one
//! whose process died is found later by its age ([`S3::abort_leftovers`]).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, MultipartUpload};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use md5::Md5;
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;

use super::super::bucket::{BucketError, BucketErrorKind, PutOptions, PutOutcome};
use super::read_back::Expected;
use super::{S3, SHA256_KEY, error};
use crate::types::{Digest, Timestamp};

/// Length of a part, in bytes, unless there would be too many (S3 wants at least 5 MiB).
const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Most parts of an object, for S3.
const PARTS_MAX: u64 = 10_000;
/// Longest object that is sent, in bytes: 640 GB, in parts of 64 MiB.
const OBJECT_BYTES_MAX: u64 = PARTS_MAX * 64 * 1024 * 1024;
/// How old an upload must be to count as left behind.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// A file to send.
pub(super) struct Source<'a> {
    path: &'a Path,
    size: u64,
    sha256: Digest,
}

impl<'a> Source<'a> {
    pub(super) const fn new(path: &'a Path, size: u64, sha256: Digest) -> Self {
        Self { path, size, sha256 }
    }
}

/// The uploads that this process is at.
static AT_WORK: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn at_work() -> std::sync::MutexGuard<'static, BTreeSet<String>> {
    AT_WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of them, until it is dropped.
struct AtWork(String);

impl AtWork {
    fn on(upload: &str) -> Self {
        at_work().insert(upload.to_owned());
        Self(upload.to_owned())
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        at_work().remove(&self.0);
    }
}

impl S3 {
    pub(super) async fn put_parts(
        &self,
        name: &str,
        source: &Source<'_>,
        options: &PutOptions,
        conditional: bool,
    ) -> Result<(PutOutcome, Expected), BucketError> {
        let create = self
            .client
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(self.key(name));
        let created = create
            .content_type(options.content_type.as_str())
            .metadata(SHA256_KEY, HEXLOWER.encode(&source.sha256))
            .send()
            .await
            .map_err(|failed| error::of("write", self.place(name), &failed))?;
        let upload = created.upload_id.unwrap_or_default();
        let _at_work = AtWork::on(&upload);
        let done = self.send_all(name, &upload, source, conditional).await;
        if !matches!(done, Ok((PutOutcome::Created, _))) {
            self.abort(name, &upload).await;
        }
        done
    }

    async fn send_all(
        &self,
        name: &str,
        upload: &str,
        source: &Source<'_>,
        conditional: bool,
    ) -> Result<(PutOutcome, Expected), BucketError> {
        let part_bytes = part_bytes(source.size).ok_or_else(|| BucketError {
            kind: BucketErrorKind::TooLarge,
            action: "write",
            place: self.place(name),
            detail: format!(
                "it has {} bytes; at most {OBJECT_BYTES_MAX} can be sent",
                source.size
            ),
        })?;
        let mut file = File::open(source.path)
            .await
            .map_err(|error| error::of_file(source.path, &error))?;
        let (mut parts, mut left) = (Vec::new(), source.size);
        let (mut sha256, mut md5) = (Sha256::new(), Md5::new());
        while left > 0 {
            let bytes = read_part(&mut file, part_bytes.min(left))
                .await
                .map_err(|error| error::of_file(source.path, &error))?;
            left -= bytes.len() as u64;
            sha256.update(&bytes);
            md5.update(Md5::digest(&bytes));
            parts.push(self.send_part(name, upload, parts.len() + 1, bytes).await?);
        }
        let found: Digest = sha256.finalize().into();
        if found != source.sha256 {
            let detail = "the file does not hash to the SHA-256 that it had or was announced with";
            return Err(error::corrupt("write", self.place(name), detail));
        }
        let expected = Expected {
            size: source.size,
            sha256: found,
            md5: format!("{}-{}", HEXLOWER.encode(&md5.finalize()), parts.len()),
        };
        Ok((self.complete(name, upload, parts, conditional).await?, expected))
    }

    async fn send_part(
        &self,
        name: &str,
        upload: &str,
        number: usize,
        bytes: Bytes,
    ) -> Result<CompletedPart, BucketError> {
        let number = i32::try_from(number).expect("there are at most PARTS_MAX parts");
        let request = self.client.upload_part().bucket(&self.bucket).key(self.key(name));
        let sent = request
            .upload_id(upload)
            .part_number(number)
            .body(ByteStream::from(bytes))
            .send()
            .await
            .map_err(|failed| error::of("write", self.place(name), &failed))?;
        let part = CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag);
        Ok(part.build())
    }

    async fn complete(
        &self,
        name: &str,
        upload: &str,
        parts: Vec<CompletedPart>,
        conditional: bool,
    ) -> Result<PutOutcome, BucketError> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.key(name));
        let request = request
            .upload_id(upload)
            .multipart_upload(parts)
            .set_if_none_match(conditional.then(|| "*".to_owned()));
        match request.send().await {
            Ok(_) => Ok(PutOutcome::Created),
            Err(failed) if conditional && error::is_precondition(&failed) => Ok(PutOutcome::AlreadyThere),
            Err(failed) => Err(error::of("write", self.place(name), &failed)),
        }
    }

    /// Gives the store back what an upload takes. If that fails, the upload is found again by its age.
    /// Returns whether it did.
    async fn abort(&self, name: &str, upload: &str) -> bool {
        let request = self
            .client
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(self.key(name));
        let done = request.upload_id(upload).send().await;
        if let Err(failed) = &done {
            let error = error::of("abort the upload of", self.place(name), failed);
            tracing::warn!(%error, "an unfinished upload stays behind for a day");
        }
        done.is_ok()
    }

    /// Aborts the uploads below our prefix that began more than a day before `now`.
    /// Without `now` all but those that this process is at. None: the store cannot list them.
    pub(super) async fn abort_leftovers(&self, now: Option<Timestamp>) -> Result<Option<u64>, BucketError> {
        let failed_to = |detail| error::corrupt("list the uploads of", self.place(""), detail);
        let (mut key_marker, mut id_marker, mut aborted) = (None, None, 0);
        loop {
            let request = self
                .client
                .list_multipart_uploads()
                .bucket(&self.bucket)
                .prefix(&self.prefix);
            let request = request.set_key_marker(key_marker.clone());
            let page = match request.set_upload_id_marker(id_marker.clone()).send().await {
                Ok(page) => page,
                Err(failed) => {
                    let error = error::of("list the uploads of", self.place(""), &failed);
                    // A store that cannot list them has to see to them itself.
                    let unsupported = error.kind == BucketErrorKind::Unsupported;
                    return if unsupported { Ok(None) } else { Err(error) };
                }
            };
            for upload in page.uploads.unwrap_or_default() {
                aborted += u64::from(self.abort_if_left(&upload, now).await?);
            }
            if page.is_truncated != Some(true) {
                return Ok(Some(aborted));
            }
            let next = (page.next_key_marker, page.next_upload_id_marker);
            if next.0.is_none() || next == (key_marker, id_marker) {
                return Err(failed_to("the store's pages go in circles"));
            }
            (key_marker, id_marker) = next;
        }
    }

    async fn abort_if_left(
        &self,
        upload: &MultipartUpload,
        now: Option<Timestamp>,
    ) -> Result<bool, BucketError> {
        let (Some(key), Some(id)) = (&upload.key, &upload.upload_id) else {
            return Ok(false);
        };
        let Some(name) = key.strip_prefix(&self.prefix) else {
            return Ok(false);
        };
        match (now, upload.initiated) {
            (Some(now), Some(began)) => {
                let began = u64::try_from(began.secs()).unwrap_or(0).saturating_mul(1_000_000);
                let old = now.since(Timestamp::from_micros(began)) > LEFTOVER_AGE;
                Ok(old && self.abort(name, id).await)
            }
            (Some(_), None) => Ok(false),
            (None, _) if at_work().contains(id) => Ok(false),
            (None, _) if self.abort(name, id).await => Ok(true),
            (None, _) => {
                let detail = "it does not abort an unfinished upload, which may hold bytes that must be gone";
                Err(error::corrupt("clean up", self.place(name), detail))
            }
        }
    }
}

/// How long the parts of an object are; `None` if it is too long.
fn part_bytes(size: u64) -> Option<u64> {
    (size <= OBJECT_BYTES_MAX).then(|| PART_BYTES.max(size.div_ceil(PARTS_MAX)))
}

async fn read_part(file: &mut File, length: u64) -> std::io::Result<Bytes> {
    let length = usize::try_from(length).expect("a part is at most 64 MiB");
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes).await?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_and_small_enough() {
        assert_eq!(part_bytes(1), Some(PART_BYTES));
        assert_eq!(part_bytes(PART_BYTES * PARTS_MAX), Some(PART_BYTES));
        let longer = part_bytes(PART_BYTES * PARTS_MAX + 1).expect("possible");
        assert_eq!(longer, PART_BYTES + 1);
        assert_eq!(part_bytes(OBJECT_BYTES_MAX), Some(64 * 1024 * 1024));
        assert_eq!(part_bytes(OBJECT_BYTES_MAX + 1), None);
    }
}
