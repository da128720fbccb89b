//! Where the archive is and how to reach it: parsed and checked before anything is opened. Pure.
//!
//! Each error names the key, the value and what to write instead. Secrets are never values here: credentials come
//! from files or from the standard AWS places, and are read when the bucket is opened.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Longest prefix of an archive in a bucket, in bytes: S3 takes keys of 1024, names have up to 768.
pub const PREFIX_BYTES_MAX: usize = 255;

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value:?}: {remedy}")]
pub struct SettingError {
    /// The key in the configuration file.
    pub key: &'static str,
    /// The value as it stands there.
    pub value: String,
    /// What is wrong, and what to write instead.
    pub remedy: String,
}

impl SettingError {
    fn new(key: &'static str, value: &str, remedy: impl Into<String>) -> Self {
        Self {
            key,
            value: value.to_owned(),
            remedy: remedy.into(),
        }
    }
}

/// The settings of `[s3]` as they were read; what is `None` was not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Input {
    /// `s3.endpoint`: the URL of a store that is not AWS.
    pub endpoint: Option<String>,
    /// `s3.region`.
    pub region: Option<String>,
    /// `s3.path_style`.
    pub path_style: Option<bool>,
    /// `s3.checksum`: `when_required` or `when_supported`.
    pub checksum: Option<String>,
    /// `s3.access_key_id_file`.
    pub access_key_id_file: Option<PathBuf>,
    /// `s3.secret_access_key_file`.
    pub secret_access_key_file: Option<PathBuf>,
    /// `s3.session_token_file`.
    pub session_token_file: Option<PathBuf>,
    /// `s3.connect_timeout`.
    pub connect_timeout: Option<Duration>,
    /// `s3.attempt_timeout`.
    pub attempt_timeout: Option<Duration>,
    /// `s3.idle_timeout`.
    pub idle_timeout: Option<Duration>,
}

/// Where the archive is, and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveConfig {
    /// Where.
    pub url: ArchiveUrl,
    /// How; unused by a folder.
    pub s3: S3Settings,
}

impl ArchiveConfig {
    /// Parses and checks `archive` and the keys of `[s3]`.
    ///
    /// # Errors
    /// The first setting that cannot be.
    pub fn parse(archive: &str, s3: &S3Input) -> Result<Self, SettingError> {
        Ok(Self {
            url: ArchiveUrl::parse(archive)?,
            s3: S3Settings::parse(s3)?,
        })
    }
}

/// Where the archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArchiveUrl {
    /// `file:///path`: a folder. Absolute, without `.` or `..`.
    Folder(PathBuf),
    /// `s3://bucket` or `s3://bucket/prefix`.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// What all keys begin with: empty, or components with `/` between and none at the ends.
        prefix: String,
    },
}

impl ArchiveUrl {
    /// Parses the value of `archive`.
    ///
    /// # Errors
    /// When it is neither of the two forms.
    pub fn parse(text: &str) -> Result<Self, SettingError> {
        if let Some(rest) = text.strip_prefix("file://") {
            return parse_folder(text, rest);
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            return parse_bucket(text, rest);
        }
        let remedy = if text.starts_with('/') {
            format!("is a path; write \"file://{text}\"")
        } else {
            "must begin with \"file:///\" (a folder) or \"s3://\" (a bucket), such as \
             \"file:///var/lib/firekeep/archive\" or \"s3://my-bucket/firekeep\""
                .to_owned()
        };
        Err(SettingError::new("archive", text, remedy))
    }

    /// Whether it is a folder, which at best lies on another disk of this machine: an archive there is not
    /// off the machine (as far as we can know).
    #[must_use]
    pub const fn is_folder(&self) -> bool {
        matches!(self, Self::Folder(_))
    }
}

impl fmt::Display for ArchiveUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

fn parse_folder(text: &str, rest: &str) -> Result<ArchiveUrl, SettingError> {
    let bad = |remedy: &str| Err(SettingError::new("archive", text, remedy));
    if !rest.starts_with('/') {
        return bad(
            "a folder's path must be absolute and have no host: three slashes, as in \"file:///srv/archive\"",
        );
    }
    let Some(path) = percent_decode(rest) else {
        return bad("a '%' must begin two hexadecimal digits that make UTF-8; a literal one is written %25");
    };
    if path.contains('\0') {
        return bad("a path cannot hold a NUL");
    }
    if rest.contains(['?', '#']) {
        return bad("a path with '?' or '#' must have them written %3F and %23");
    }
    if path.split('/').any(|part| part == "." || part == "..") {
        return bad("write the path without . and .. components");
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return bad("the root of the file system cannot be the archive; name a folder in it");
    }
    Ok(ArchiveUrl::Folder(PathBuf::from(trimmed)))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(data_encoding::HEXLOWER_PERMISSIVE.decode(&digits).ok()?.pop()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

fn parse_bucket(text: &str, rest: &str) -> Result<ArchiveUrl, SettingError> {
    let bad = |remedy: &str| Err(SettingError::new("archive", text, remedy));
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let in_bucket_name = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let bucket_ok = (3..=63).contains(&bucket.len())
        && bucket.bytes().all(in_bucket_name)
        && bucket.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && !bucket.contains("..");
    if !bucket_ok {
        return bad(
            "a bucket's name is 3 to 63 letters, digits, dots and hyphens, as in \"s3://my-bucket/firekeep\"",
        );
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    if prefix.len() > PREFIX_BYTES_MAX {
        return bad("the prefix after the bucket may have at most 255 bytes");
    }
    let in_part = |b: u8| b.is_ascii_alphanumeric() || b"._-~=+@!,".contains(&b);
    let part_ok = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(in_part);
    if !prefix.is_empty() && !prefix.split('/').all(part_ok) {
        return bad(
            "the prefix's components must not be empty, begin with a dot, or hold anything but letters, \
                    digits and . _ - ~ = + @ ! ,",
        );
    }
    Ok(ArchiveUrl::S3 {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
    })
}

/// When the S3 client adds a checksum of its own to what it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// Only where S3 demands one. Many stores that are not AWS refuse the others; our own SHA-256 goes with each
    /// object either way.
    #[default]
    WhenRequired,
    /// Wherever the protocol has room for one: for AWS itself, and buckets with object lock.
    WhenSupported,
}

/// Where the credentials come from. Never what they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Credentials {
    /// The environment, the AWS files, a web identity, or the machine's own, in the standard order.
    #[default]
    Standard,
    /// Files with one line each, read again every few minutes, so they can be changed while we run.
    Files {
        /// The access key's id.
        access_key_id: PathBuf,
        /// The secret access key.
        secret_access_key: PathBuf,
        /// The session token, if there is one.
        session_token: Option<PathBuf>,
    },
}

/// How long to wait for the store. Writing a part of an upload must fit into one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection: 1 s to 5 min.
    pub connect: Duration,
    /// For one attempt of a request, its body sent (up to 16 MiB) and the head of its answer received: 5 s to 1 h.
    pub attempt: Duration,
    /// Between two pieces of an answer's body: 1 s to 1 h.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            attempt: Duration::from_secs(300),
            idle: Duration::from_secs(60),
        }
    }
}

/// How to reach an S3 bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct S3Settings {
    /// The store's URL, without a path; `None` for AWS. Over `http://` everything travels unencrypted.
    pub endpoint: Option<String>,
    /// The region; `None`: from the standard AWS places, else `us-east-1` where there is an endpoint.
    pub region: Option<String>,
    /// The bucket in the path, not in the host name: the default where there is an endpoint.
    pub path_style: bool,
    /// The client's own checksums.
    pub checksum: Checksum,
    /// Where the credentials come from.
    pub credentials: Credentials,
    /// How long to wait.
    pub timeouts: Timeouts,
}

impl S3Settings {
    fn parse(input: &S3Input) -> Result<Self, SettingError> {
        if let Some(endpoint) = &input.endpoint {
            check_endpoint(endpoint)?;
        }
        if let Some(region) = &input.region {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            if region.is_empty() || region.len() > 64 || !region.bytes().all(allowed) {
                let remedy = "must be letters, digits and hyphens, such as \"eu-central-1\"";
                return Err(SettingError::new("s3.region", region, remedy));
            }
        }
        Ok(Self {
            endpoint: input
                .endpoint
                .as_ref()
                .map(|url| url.trim_end_matches('/').to_owned()),
            region: input.region.clone(),
            path_style: input.path_style.unwrap_or(input.endpoint.is_some()),
            checksum: parse_checksum(input.checksum.as_deref())?,
            credentials: parse_credentials(input)?,
            timeouts: parse_timeouts(input)?,
        })
    }
}

fn check_endpoint(text: &str) -> Result<(), SettingError> {
    let bad = |remedy: &str| Err(SettingError::new("s3.endpoint", text, remedy));
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else {
        return bad("must begin with \"https://\" (or \"http://\"), such as \"https://s3.example.com\"");
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains('@') {
        // Not shown: it may hold a password.
        let remedy = "must hold no user or password; credentials belong in s3.access_key_id_file and \
                      s3.secret_access_key_file";
        return Err(SettingError::new("s3.endpoint", "…@…", remedy));
    }
    if authority.contains(['/', '?', '#']) {
        return bad(
            "must be only scheme, host and port; the bucket and prefix belong in archive = \"s3://…\"",
        );
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b);
    if authority.is_empty() || authority.starts_with(':') || !authority.bytes().all(allowed) {
        return bad("has no valid host; write one such as \"https://s3.example.com:9000\"");
    }
    let port = match authority.rsplit_once(':') {
        Some((_, after)) if !after.contains(']') => Some(after),
        _ => None,
    };
    if port.is_some_and(|port| port.parse::<u16>().map_or(true, |number| number == 0)) {
        return bad("has no valid port: a number from 1 to 65535");
    }
    Ok(())
}

fn parse_checksum(text: Option<&str>) -> Result<Checksum, SettingError> {
    match text {
        None | Some("when_required") => Ok(Checksum::WhenRequired),
        Some("when_supported") => Ok(Checksum::WhenSupported),
        Some(other) => {
            let remedy = "must be \"when_required\" (the default) or \"when_supported\"";
            Err(SettingError::new("s3.checksum", other, remedy))
        }
    }
}

fn parse_credentials(input: &S3Input) -> Result<Credentials, SettingError> {
    let shown = |path: &PathBuf| path.display().to_string();
    let session_token = input.session_token_file.clone();
    match (&input.access_key_id_file, &input.secret_access_key_file) {
        (Some(id), Some(secret)) => Ok(Credentials::Files {
            access_key_id: id.clone(),
            secret_access_key: secret.clone(),
            session_token,
        }),
        (Some(id), None) => {
            let remedy = "needs s3.secret_access_key_file beside it";
            Err(SettingError::new("s3.access_key_id_file", &shown(id), remedy))
        }
        (None, Some(secret)) => {
            let remedy = "needs s3.access_key_id_file beside it";
            Err(SettingError::new(
                "s3.secret_access_key_file",
                &shown(secret),
                remedy,
            ))
        }
        (None, None) => match session_token {
            Some(token) => {
                let remedy = "needs s3.access_key_id_file and s3.secret_access_key_file beside it";
                Err(SettingError::new("s3.session_token_file", &shown(&token), remedy))
            }
            None => Ok(Credentials::Standard),
        },
    }
}

fn parse_timeouts(input: &S3Input) -> Result<Timeouts, SettingError> {
    let default = Timeouts::default();
    let check = |key, given: Option<Duration>, default: Duration, range: std::ops::RangeInclusive<u64>| {
        let value = given.unwrap_or(default);
        if (Duration::from_secs(*range.start())..=Duration::from_secs(*range.end())).contains(&value) {
            return Ok(value);
        }
        let remedy = format!("must be {} to {} seconds", range.start(), range.end());
        Err(SettingError::new(key, &format!("{value:?}"), remedy))
    };
    Ok(Timeouts {
        connect: check(
            "s3.connect_timeout",
            input.connect_timeout,
            default.connect,
            1..=300,
        )?,
        attempt: check(
            "s3.attempt_timeout",
            input.attempt_timeout,
            default.attempt,
            5..=3600,
        )?,
        idle: check("s3.idle_timeout", input.idle_timeout, default.idle, 1..=3600)?,
    })
}

#[cfg(test)]
mod tests;
