//! The store's errors, in our words.

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStreamError;

use super::super::bucket::{BucketError, BucketErrorKind};

/// Longest text of a store that is shown, in characters.
const DETAIL_CHARS_MAX: usize = 300;

/// An error of a request.
pub(super) fn of<E>(action: &'static str, place: String, failed: &SdkError<E>) -> BucketError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let (kind, detail) = match failed {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            let code = answer.err().code();
            let said = answer.err().message().unwrap_or("the store refuses");
            let detail = match code {
                Some(code) => format!("{said} ({code}, HTTP {status})"),
                None => format!("{said} (HTTP {status})"),
            };
            (kind_of(code, status), detail)
        }
        SdkError::TimeoutError(_) => (BucketErrorKind::Unreachable, "no answer in time".to_owned()),
        SdkError::ResponseError(answer) => {
            let status = answer.raw().status().as_u16();
            let detail = format!("the answer makes no sense ({}, HTTP {status})", innermost(failed));
            // A page of some proxy, or a connection that broke.
            (BucketErrorKind::Unreachable, detail)
        }
        _ if has_credentials_error(failed) => (BucketErrorKind::Credentials, innermost(failed)),
        SdkError::DispatchFailure(failure) if !failure.is_user() => {
            (BucketErrorKind::Unreachable, innermost(failed))
        }
        _ => (BucketErrorKind::Other, innermost(failed)),
    };
    BucketError {
        kind,
        action,
        place,
        detail: one_line(&detail),
    }
}

/// What an error code means for us; where there is none (the answer to a HEAD has no body), the status.
fn kind_of(code: Option<&str>, status: u16) -> BucketErrorKind {
    use BucketErrorKind as K;
    match code.unwrap_or_default() {
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidClientTokenId"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "UnrecognizedClientException"
        | "InvalidSecurity" => K::Credentials,
        "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture" => K::ClockSkew,
        "NoSuchBucket" => K::NoBucket,
        "PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed" | "IncorrectEndpoint" => {
            K::WrongRegion
        }
        "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull" | "StorageQuotaExceeded" => K::Full,
        "EntityTooLarge" => K::TooLarge,
        "NotImplemented" => K::Unsupported,
        "SlowDown" | "RequestTimeout" | "InternalError" | "ServiceUnavailable" | "Throttling" => K::Busy,
        "BadDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => K::Corrupt,
        _ => match status {
            301 | 307 | 308 => K::WrongRegion,
            401 | 403 => K::Refused,
            409 => K::Conflict,
            413 => K::TooLarge,
            501 => K::Unsupported,
            507 => K::Full,
            429 | 500..=599 => K::Busy,
            _ => K::Other,
        },
    }
}

/// Whether the answer is that there is no such object. (Without a code, it may be that there is no such bucket.)
pub(super) fn is_no_such_key<E: ProvideErrorMetadata>(failed: &SdkError<E>) -> bool {
    let SdkError::ServiceError(answer) = failed else {
        return false;
    };
    answer.raw().status().as_u16() == 404
        && matches!(answer.err().code(), None | Some("NoSuchKey" | "NotFound"))
}

/// Whether the answer is that the object is there already.
pub(super) fn is_precondition<E>(failed: &SdkError<E>) -> bool {
    failed
        .raw_response()
        .is_some_and(|answer| answer.status().as_u16() == 412)
}

/// An error of an answer's body.
pub(super) fn of_stream(place: String, broken: &ByteStreamError) -> BucketError {
    BucketError {
        kind: BucketErrorKind::Unreachable,
        action: "read",
        place,
        detail: one_line(&innermost(broken)),
    }
}

/// No piece of the body came for too long.
pub(super) fn stalled(place: String, idle: Duration) -> BucketError {
    BucketError {
        kind: BucketErrorKind::Unreachable,
        action: "read",
        place,
        detail: format!("nothing came for {} s", idle.as_secs_f32()),
    }
}

/// What the store holds, or was to be given, is not what it should be.
pub(super) fn corrupt(action: &'static str, place: String, detail: &str) -> BucketError {
    BucketError {
        kind: BucketErrorKind::Corrupt,
        action,
        place,
        detail: detail.to_owned(),
    }
}

/// Another writer's object stands where ours was written a moment ago.
pub(super) fn overwritten(place: String) -> BucketError {
    BucketError {
        kind: BucketErrorKind::Conflict,
        action: "write",
        place,
        detail: "another writer has replaced it at once".into(),
    }
}

/// An error of the file that is to be sent.
pub(super) fn of_file(path: &Path, error: &io::Error) -> BucketError {
    BucketError {
        kind: BucketErrorKind::Other,
        action: "read",
        place: path.display().to_string(),
        detail: error.to_string(),
    }
}

fn has_credentials_error(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<CredentialsError>())
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

/// The error and what caused it, at most 16 deep.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let source =
        |error: &&'a (dyn Error + 'static)| -> Option<&'a (dyn Error + 'static)> { (*error).source() };
    std::iter::successors(Some(error), source).take(16)
}

/// A store's text is as little to be trusted as any.
fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(clean).take(DETAIL_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_before_statuses() {
        use BucketErrorKind as K;
        for (code, status, want) in [
            (Some("InvalidAccessKeyId"), 403, K::Credentials),
            (Some("SignatureDoesNotMatch"), 403, K::Credentials),
            (Some("ExpiredToken"), 400, K::Credentials),
            (Some("RequestTimeTooSkewed"), 403, K::ClockSkew),
            (Some("AccessDenied"), 403, K::Refused),
            (Some("NoSuchBucket"), 404, K::NoBucket),
            (Some("PermanentRedirect"), 301, K::WrongRegion),
            (Some("SlowDown"), 503, K::Busy),
            (Some("InternalError"), 200, K::Busy),
            (Some("ConditionalRequestConflict"), 409, K::Conflict),
            (Some("NotImplemented"), 501, K::Unsupported),
            (Some("BadDigest"), 400, K::Corrupt),
            (None, 301, K::WrongRegion),
            (None, 403, K::Refused),
            (None, 429, K::Busy),
            (None, 500, K::Busy),
            (None, 501, K::Unsupported),
            (None, 507, K::Full),
            (None, 413, K::TooLarge),
            (None, 400, K::Other),
        ] {
            assert_eq!(kind_of(code, status), want, "{code:?} {status}");
        }
    }

    #[test]
    fn a_stores_text_is_one_short_line() {
        let text = one_line(&format!("first\nsecond\u{1b}[31m{}", "x".repeat(1000)));
        assert!(text.starts_with("first second [31m"));
        assert_eq!(text.chars().count(), DETAIL_CHARS_MAX);
    }
}
