#![allow(clippy::disallowed_methods, reason = "shell: the network")]
//! The S3 client: its settings, its credentials.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    self, BehaviorVersion, ProvideCredentials, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, StalledStreamProtectionConfig,
};

use super::super::bucket::{BucketError, BucketErrorKind};
use super::super::settings::{Checksum, Credentials, S3Settings};

/// As often a request is sent at most.
const ATTEMPTS_MAX: u32 = 4;
/// Before the second attempt, at most; twice as long before each further one.
const BACKOFF: Duration = Duration::from_millis(250);
/// Before any attempt, at most.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long credentials from files are used before the files are read again.
const CREDENTIALS_AGE: Duration = Duration::from_secs(300);
/// Longest line in a credentials file, in bytes: a session token may have some thousand.
const CREDENTIAL_BYTES_MAX: usize = 16 * 1024;

/// Makes the client. Reads the credentials' files once, to tell early if they cannot be.
pub(super) async fn connect(bucket: &str, settings: &S3Settings) -> Result<Client, BucketError> {
    let builder = match FileCredentials::of(&settings.credentials) {
        None => from_environment(settings).await,
        Some(files) => {
            files.read().await?;
            let mut builder = config::Builder::new().credentials_provider(files);
            builder.set_region(region(settings));
            builder
        }
    };
    let (request, response) = match settings.checksum {
        Checksum::WhenRequired => (
            RequestChecksumCalculation::WhenRequired,
            ResponseChecksumValidation::WhenRequired,
        ),
        Checksum::WhenSupported => (
            RequestChecksumCalculation::WhenSupported,
            ResponseChecksumValidation::WhenSupported,
        ),
    };
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(settings.timeouts.connect)
        .operation_attempt_timeout(settings.timeouts.attempt);
    let retries = RetryConfig::standard()
        .with_max_attempts(ATTEMPTS_MAX)
        .with_initial_backoff(BACKOFF)
        .with_max_backoff(BACKOFF_MAX);
    let config = builder
        .behavior_version(BehaviorVersion::v2026_01_12())
        .force_path_style(settings.path_style)
        .request_checksum_calculation(request)
        .response_checksum_validation(response)
        // Its watch has cut slow uplinks off. An attempt has a time of its own, and so has each piece of a body that
        // we read.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .timeout_config(timeouts.build())
        .retry_config(retries);
    let config = match &settings.endpoint {
        Some(endpoint) => config.endpoint_url(endpoint),
        None => config,
    };
    let config = config.build();
    if config.region().is_none() {
        return Err(BucketError {
            kind: BucketErrorKind::Setting,
            action: "open",
            place: format!("s3://{bucket}"),
            detail: "no region is known; set s3.region, such as \"eu-central-1\"".into(),
        });
    }
    Ok(Client::from_conf(config))
}

async fn from_environment(settings: &S3Settings) -> config::Builder {
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
    if let Some(region) = region(settings) {
        loader = loader.region(region);
    }
    config::Builder::from(&loader.load().await)
}

/// The region, as far as it is known without the AWS files. A store that is not AWS mostly has none, but a signature
/// needs a name for it.
fn region(settings: &S3Settings) -> Option<Region> {
    let from = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let known = settings.region.clone().or_else(|| from("AWS_REGION"));
    let known = known.or_else(|| from("AWS_DEFAULT_REGION"));
    let fallback = || settings.endpoint.as_ref().map(|_| "us-east-1".to_owned());
    known.or_else(fallback).map(Region::new)
}

/// Credentials from files, read again every [`CREDENTIALS_AGE`].
struct FileCredentials {
    access_key_id: PathBuf,
    secret_access_key: PathBuf,
    session_token: Option<PathBuf>,
}

impl FileCredentials {
    fn of(credentials: &Credentials) -> Option<Self> {
        match credentials {
            Credentials::Standard => None,
            Credentials::Files {
                access_key_id,
                secret_access_key,
                session_token,
            } => Some(Self {
                access_key_id: access_key_id.clone(),
                secret_access_key: secret_access_key.clone(),
                session_token: session_token.clone(),
            }),
        }
    }

    async fn read(&self) -> Result<config::Credentials, BucketError> {
        let id = read_line(&self.access_key_id).await?;
        let secret = read_line(&self.secret_access_key).await?;
        let token = match &self.session_token {
            Some(path) => Some(read_line(path).await?),
            None => None,
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "shell: the client asks for a time of its own clock"
        )]
        let until = SystemTime::now() + CREDENTIALS_AGE;
        Ok(config::Credentials::new(id, secret, token, Some(until), "files"))
    }
}

impl fmt::Debug for FileCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileCredentials")
    }
}

impl ProvideCredentials for FileCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let read = async { self.read().await.map_err(CredentialsError::provider_error) };
        future::ProvideCredentials::new(read)
    }
}

/// A file's only line. The error never shows it.
async fn read_line(path: &Path) -> Result<String, BucketError> {
    let bad = |detail: String| BucketError {
        kind: BucketErrorKind::Credentials,
        action: "read",
        place: format!("the credentials in {}", path.display()),
        detail,
    };
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|error| bad(error.to_string()))?;
    let line = text.trim();
    if line.is_empty() || line.len() > CREDENTIAL_BYTES_MAX || !line.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(bad(
            "the file must hold exactly one line, without spaces in it".into()
        ));
    }
    Ok(line.to_owned())
}
