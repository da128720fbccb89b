#![allow(clippy::disallowed_methods, reason = "shell: the network")]
//! Single requests, as they are, for finding out what a store does with them: nothing is read back, nothing tried in
//! another way.

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketVersioningStatus, CompletedMultipartUpload, CompletedPart, ObjectLockEnabled};
use bytes::Bytes;
use data_encoding::BASE64;
use md5::Md5;
use sha2::Digest as _;

use super::super::bucket::{BucketError, BucketErrorKind};
use super::super::probe::verdict::{Lock, Versions};
use super::super::probe::{Put, Removed};
use super::{S3Bucket, error};

/// Versions that are removed after a probe, at most.
const VERSIONS_MAX: usize = 10_000;

impl S3Bucket {
    /// A put that must not replace an object.
    pub(in super::super) async fn probe_create(&self, name: &str, body: Bytes) -> Result<Put, BucketError> {
        let s3 = &*self.0;
        let request = s3.client.put_object().bucket(&s3.bucket).key(s3.key(name));
        let answer = request
            .if_none_match("*")
            .body(ByteStream::from(body))
            .send()
            .await;
        judge(answer.map(drop), s3.place(name))
    }

    /// The same in parts.
    pub(in super::super) async fn probe_create_parts(
        &self,
        name: &str,
        body: Bytes,
    ) -> Result<Put, BucketError> {
        let s3 = &*self.0;
        let begun = s3
            .client
            .create_multipart_upload()
            .bucket(&s3.bucket)
            .key(s3.key(name));
        let begun = match begun.send().await {
            Ok(begun) => begun,
            Err(failed) => return judge(Err(failed), s3.place(name)),
        };
        let id = begun.upload_id.unwrap_or_default();
        let part = s3.client.upload_part().bucket(&s3.bucket).key(s3.key(name));
        let part = part
            .upload_id(&id)
            .part_number(1)
            .body(ByteStream::from(body))
            .send()
            .await;
        let done = match part {
            Ok(part) => {
                let part = CompletedPart::builder()
                    .part_number(1)
                    .set_e_tag(part.e_tag)
                    .build();
                let parts = CompletedMultipartUpload::builder().parts(part).build();
                let end = s3
                    .client
                    .complete_multipart_upload()
                    .bucket(&s3.bucket)
                    .key(s3.key(name));
                let end = end
                    .upload_id(&id)
                    .multipart_upload(parts)
                    .if_none_match("*")
                    .send()
                    .await;
                judge(end.map(drop), s3.place(name))
            }
            Err(failed) => judge(Err(failed), s3.place(name)),
        };
        if !matches!(done, Ok(Put::Created)) {
            let abort = s3
                .client
                .abort_multipart_upload()
                .bucket(&s3.bucket)
                .key(s3.key(name));
            if let Err(failed) = abort.upload_id(&id).send().await {
                tracing::debug!(
                    "cannot abort the upload of {name}: {}",
                    failed.into_service_error()
                );
            }
        }
        done
    }

    /// A put whose Content-MD5 is that of other bytes. Whether it is refused.
    pub(in super::super) async fn probe_bad_body(&self, name: &str) -> Result<bool, BucketError> {
        let s3 = &*self.0;
        let request = s3.client.put_object().bucket(&s3.bucket).key(s3.key(name));
        let md5 = BASE64.encode(&Md5::digest(b"other bytes"));
        let body = ByteStream::from_static(b"these bytes");
        match request.content_md5(md5).body(body).send().await {
            Ok(_) => Ok(false),
            Err(failed)
                if failed
                    .raw_response()
                    .is_some_and(|answer| answer.status().as_u16() == 400) =>
            {
                Ok(true)
            }
            Err(failed) => Err(error::of("write", s3.place(name), &failed)),
        }
    }

    /// Whether old versions are kept.
    pub(in super::super) async fn probe_versions(&self) -> Versions {
        let s3 = &*self.0;
        match s3.client.get_bucket_versioning().bucket(&s3.bucket).send().await {
            Ok(answer) => match answer.status {
                None => Versions::Off,
                Some(BucketVersioningStatus::Enabled) => Versions::On,
                Some(BucketVersioningStatus::Suspended) => Versions::Suspended,
                Some(_) => Versions::Unknown,
            },
            Err(_) => Versions::Unknown,
        }
    }

    /// Whether there are old versions of objects below a prefix, which were replaced or removed; none: the store does
    /// not say.
    pub(in super::super) async fn probe_old_versions(&self, prefix: &str) -> Option<bool> {
        let s3 = &*self.0;
        let list = s3.client.list_object_versions().bucket(&s3.bucket);
        let page = list.prefix(s3.key(prefix)).max_keys(10).send().await.ok()?;
        let (versions, markers) = (
            page.versions.unwrap_or_default(),
            page.delete_markers.unwrap_or_default(),
        );
        Some(!markers.is_empty() || versions.iter().any(|version| version.is_latest == Some(false)))
    }

    /// Whether objects are locked.
    pub(in super::super) async fn probe_lock(&self) -> Lock {
        let s3 = &*self.0;
        match s3
            .client
            .get_object_lock_configuration()
            .bucket(&s3.bucket)
            .send()
            .await
        {
            Ok(answer) => match answer.object_lock_configuration {
                Some(config) if config.rule.is_some() => Lock::ByDefault,
                Some(config) if config.object_lock_enabled == Some(ObjectLockEnabled::Enabled) => {
                    Lock::Possible
                }
                _ => Lock::Off,
            },
            Err(failed) if failed.code() == Some("ObjectLockConfigurationNotFoundError") => Lock::Off,
            Err(_) => Lock::Unknown,
        }
    }

    /// Removes every version of every object below a prefix, as far as the store lets us.
    pub(in super::super) async fn probe_remove_versions(&self, prefix: &str) -> Removed {
        let s3 = &*self.0;
        let mut removed = Removed::default();
        let (mut key_marker, mut version_marker) = (None, None);
        while removed.removed + removed.left < VERSIONS_MAX as u64 {
            let list = s3
                .client
                .list_object_versions()
                .bucket(&s3.bucket)
                .prefix(s3.key(prefix));
            let list = list
                .set_key_marker(key_marker)
                .set_version_id_marker(version_marker);
            let Ok(page) = list.send().await else { break };
            let versions = page.versions.unwrap_or_default().into_iter();
            let versions = versions.map(|version| (version.key, version.version_id));
            let markers = page.delete_markers.unwrap_or_default().into_iter();
            let markers = markers.map(|marker| (marker.key, marker.version_id));
            for (key, id) in versions.chain(markers) {
                let request = s3.client.delete_object().bucket(&s3.bucket);
                let request = request.set_key(key).set_version_id(id);
                match request.send().await {
                    Ok(_) => removed.removed += 1,
                    Err(_) => removed.left += 1,
                }
            }
            if page.is_truncated != Some(true) {
                break;
            }
            (key_marker, version_marker) = (page.next_key_marker, page.next_version_id_marker);
        }
        removed
    }
}

fn judge<E>(answer: Result<(), SdkError<E>>, place: String) -> Result<Put, BucketError>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match answer {
        Ok(()) => Ok(Put::Created),
        Err(failed) if error::is_precondition(&failed) => Ok(Put::Refused),
        Err(failed) => {
            let error = error::of("write", place, &failed);
            match error.kind {
                BucketErrorKind::Conflict => Ok(Put::Conflict),
                BucketErrorKind::Unsupported => Ok(Put::Unsupported),
                _ => Err(error),
            }
        }
    }
}
