#![allow(clippy::disallowed_methods, reason = "shell: the network")]
//! The new PDS, asked as its future user.
//!
//! Tokens live in memory alone. A request that may be sent twice is tried again while the PDS is away, and waits as
//! long as it asks to.

use std::fs::File;
use std::io::{self, Seek as _};
use std::time::Duration;

use hyper::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::RestoreError;
use super::directory::wait;
use super::operation::{Recommended, Signed};
use super::plan::{HandleOwner, ServerFacts, Standing};
use crate::http::client::{Answer, Sent, Upstream};
use crate::http::request::{FetchError, Limits};
use crate::mirror::blobs::query_value;
use crate::types::{Cid, Did};

mod living;
pub use living::Written;

/// Longest JSON answer.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Tries of a request that may go better later.
const TRIES: u32 = 7;
/// A collection of our own, for the one write at the end.
pub const MARK: (&str, &str) = ("dev.firekeep.backup.restored", "self");

/// A PDS.
pub struct Pds {
    http: Upstream,
    /// Its URL, without a slash at the end.
    pub url: String,
    did: Did,
    password: Zeroizing<String>,
    token: Mutex<Option<Zeroizing<String>>>,
}

/// What `createAccount` needs.
pub struct NewAccount<'a> {
    /// The handle.
    pub handle: &'a str,
    /// The e-mail address.
    pub email: Option<&'a str>,
    /// The invite code.
    pub invite: Option<&'a str>,
    /// The answer to a captcha.
    pub verification: Option<&'a str>,
}

/// `checkAccountStatus`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountStatus {
    /// It is active.
    pub activated: bool,
    /// Its identity points to this PDS, with the right keys.
    pub valid_did: bool,
    /// The head.
    pub repo_commit: String,
    /// Records that it knows.
    pub indexed_records: u64,
    /// Blobs that they refer to.
    pub expected_blobs: u64,
    /// Blobs that it has of these.
    pub imported_blobs: u64,
}

#[derive(Deserialize)]
struct Session {
    #[serde(rename = "accessJwt")]
    access: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Described {
    did: String,
    invite_code_required: bool,
    phone_verification_required: bool,
    available_user_domains: Vec<String>,
    blob_upload_limit: Option<u64>,
}

#[derive(Deserialize)]
struct Page {
    blobs: Vec<Missing>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct Missing {
    cid: String,
}

impl std::fmt::Debug for Pds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pds")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Pds {
    /// A PDS, and the password that the account has there or will have.
    #[must_use]
    pub fn new(http: Upstream, url: &str, did: &Did, password: Zeroizing<String>) -> Self {
        Self {
            http,
            url: url.to_owned(),
            did: did.clone(),
            password,
            token: Mutex::new(None),
        }
    }

    fn address(&self, method: &str, parameters: &[(&str, &str)]) -> String {
        let mut address = format!("{}/xrpc/{method}", self.url);
        for (at, (name, value)) in parameters.iter().enumerate() {
            let sign = if at == 0 { '?' } else { '&' };
            address.push_str(&format!("{sign}{name}={}", query_value(value)));
        }
        address
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// When it does not answer as a PDS.
    pub async fn describe(&self) -> Result<ServerFacts, RestoreError> {
        let address = self.address("com.atproto.server.describeServer", &[]);
        let said: Described = self
            .http
            .get_json(&address, ANSWER_BYTES_MAX)
            .await
            .map_err(RestoreError::failed)?;
        if said.did.parse::<Did>().is_err() {
            return Err(RestoreError::Failed(format!(
                "{} does not say its DID: it is no PDS",
                self.url
            )));
        }
        Ok(ServerFacts {
            url: self.url.clone(),
            did: said.did,
            invite_required: said.invite_code_required,
            verification_required: said.phone_verification_required,
            domains: said.available_user_domains,
            blob_bytes_max: said.blob_upload_limit,
        })
    }

    /// How the account stands there.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn standing(&self) -> Result<Standing, RestoreError> {
        let parameters = [("did", self.did.as_str())];
        let address = self.address("com.atproto.sync.getRepoStatus", &parameters);
        match self.http.get_json::<Value>(&address, ANSWER_BYTES_MAX).await {
            Ok(status) if status["active"] == true => Ok(Standing::Active),
            Ok(status) => Ok(match status["status"].as_str() {
                Some("deactivated") => Standing::Deactivated,
                other => Standing::Other(other.unwrap_or("neither active nor deactivated").to_owned()),
            }),
            Err(error) if error.xrpc_error() == Some("RepoNotFound") => Ok(Standing::Absent),
            Err(error) => Err(RestoreError::failed(error)),
        }
    }

    /// Whose a handle is. What it cannot find out counts as nobody's: making the account finds out then.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn owner(&self, handle: &str) -> Result<HandleOwner, RestoreError> {
        let address = self.address("com.atproto.identity.resolveHandle", &[("handle", handle)]);
        match self.http.get_json::<Value>(&address, ANSWER_BYTES_MAX).await {
            Ok(answer) => Ok(match answer["did"].as_str() {
                Some(did) if did == self.did.as_str() => HandleOwner::Us,
                Some(did) => HandleOwner::Other(did.to_owned()),
                None => HandleOwner::Nobody,
            }),
            Err(FetchError::Status { .. }) => Ok(HandleOwner::Nobody),
            Err(error) => Err(RestoreError::failed(error)),
        }
    }

    /// Makes the account, deactivated. Not tried twice: whether it is there is looked at first.
    ///
    /// # Errors
    /// When the PDS refuses, in its own words.
    pub async fn create(&self, account: &NewAccount<'_>, proof: &str) -> Result<(), FetchError> {
        let mut body = json!({
            "did": self.did.as_str(),
            "handle": account.handle,
            "password": self.password.as_str(),
        });
        for (name, value) in [
            ("email", account.email),
            ("inviteCode", account.invite),
            ("verificationCode", account.verification),
        ] {
            if let Some(value) = value {
                body[name] = value.into();
            }
        }
        let address = self.address("com.atproto.server.createAccount", &[]);
        let sent = Sent::json(&body).bearer(proof);
        let answer = self
            .http
            .send(&address, sent, &Limits::json(ANSWER_BYTES_MAX))
            .await?;
        let session: Session = read(answer).await?;
        *self.token.lock().await = Some(Zeroizing::new(session.access));
        Ok(())
    }

    /// Logs in.
    async fn login(&self) -> Result<Zeroizing<String>, RestoreError> {
        let body = json!({ "identifier": self.did.as_str(), "password": self.password.as_str() });
        let address = self.address("com.atproto.server.createSession", &[]);
        let limits = Limits::json(ANSWER_BYTES_MAX);
        let mut tries = 1;
        loop {
            let session = match self.http.send(&address, Sent::json(&body), &limits).await {
                Ok(answer) => read::<Session>(answer).await,
                Err(error) => Err(error),
            };
            match session {
                Ok(session) => return Ok(Zeroizing::new(session.access)),
                Err(error) if tries < TRIES && wait(&error, tries).await => tries += 1,
                Err(error) => {
                    return Err(RestoreError::Failed(format!(
                        "cannot log in at {}: {error}; the password must be the one with which the account was made \
                         there",
                        self.url
                    )));
                }
            }
        }
    }

    async fn token(&self, old: Option<&str>) -> Result<Zeroizing<String>, RestoreError> {
        let mut token = self.token.lock().await;
        if let Some(token) = token
            .as_ref()
            .filter(|token| old.is_none_or(|old| old != token.as_str()))
        {
            return Ok(token.clone());
        }
        let new = self.login().await?;
        *token = Some(new.clone());
        Ok(new)
    }

    /// Asks as the account's user, again if need be.
    async fn ask(
        &self,
        method: &str,
        parameters: &[(&str, &str)],
        limits: &Limits,
        make: impl Fn() -> io::Result<Sent>,
    ) -> Result<Answer, RestoreError> {
        let address = self.address(method, parameters);
        let (mut tries, mut old) = (1, None::<Zeroizing<String>>);
        loop {
            let token = self.token(old.as_ref().map(|old| old.as_str())).await?;
            let sent = make().map_err(|error| RestoreError::Failed(format!("a temporary file: {error}")))?;
            let error = match self.http.send(&address, sent.bearer(&token), limits).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let stale = matches!(&error, FetchError::Status { status: 401, .. })
                || matches!(error.xrpc_error(), Some("ExpiredToken" | "InvalidToken"));
            if stale && old.is_none() {
                old = Some(token);
                continue;
            }
            let unwanted = matches!(&error, FetchError::Status { status: 413, .. })
                || matches!(
                    error.xrpc_error(),
                    Some("BlobTooLarge" | "PayloadTooLarge" | "InvalidMimeType")
                );
            if unwanted {
                let advice = match method {
                    "com.atproto.repo.importRepo" => {
                        "; the account was not activated. When the PDS's admin has raised what it takes of a repository or \
                         a blob (PDS_MAX_REPO_IMPORT_SIZE, PDS_BLOB_UPLOAD_LIMIT), run the same command again"
                    }
                    _ => "",
                };
                return Err(RestoreError::Refused(format!("{method}: {error}{advice}")));
            }
            if tries >= TRIES || !wait(&error, tries).await {
                let advice = match error.is_transient() {
                    true => "; nothing is lost: run the same command again when it is back",
                    false => "",
                };
                return Err(RestoreError::Failed(format!("{method}: {error}{advice}")));
            }
            tries += 1;
        }
    }

    async fn query<T: DeserializeOwned>(
        &self,
        method: &str,
        parameters: &[(&str, &str)],
    ) -> Result<T, RestoreError> {
        let limits = Limits::json(ANSWER_BYTES_MAX);
        let answer = self
            .ask(method, parameters, &limits, || Ok(Sent::bare(Method::GET)))
            .await?;
        read(answer).await.map_err(RestoreError::failed)
    }

    async fn post(&self, method: &str, body: Option<Value>) -> Result<(), RestoreError> {
        let make = || {
            Ok(match &body {
                Some(body) => Sent::json(body),
                None => Sent::bare(Method::POST),
            })
        };
        self.ask(method, &[], &Limits::json(ANSWER_BYTES_MAX), make)
            .await
            .map(drop)
    }

    /// What it has of the account.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status(&self) -> Result<AccountStatus, RestoreError> {
        self.query("com.atproto.server.checkAccountStatus", &[]).await
    }

    /// Makes the repository equal to a CAR of so many bytes.
    ///
    /// # Errors
    /// When the PDS does not take it.
    pub async fn import(&self, car: &File, size: u64) -> Result<(), RestoreError> {
        let make = || Sent::file(car, size, "application/vnd.ipld.car");
        self.ask("com.atproto.repo.importRepo", &[], &Limits::upload(), make)
            .await
            .map(drop)
    }

    /// The next blobs that it misses, and the cursor behind them.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn missing_blobs(
        &self,
        cursor: Option<&str>,
    ) -> Result<(Vec<Cid>, Option<String>), RestoreError> {
        let mut parameters = vec![("limit", "500")];
        parameters.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: Page = self
            .query("com.atproto.repo.listMissingBlobs", &parameters)
            .await?;
        let mut cids = Vec::with_capacity(page.blobs.len());
        for blob in &page.blobs {
            let cid = blob.cid.parse();
            cids.push(
                cid.map_err(|_| RestoreError::Failed(format!("{} misses a blob that has no CID", self.url)))?,
            );
        }
        Ok((cids, page.cursor))
    }

    /// Uploads a blob; the CID that the PDS gives it.
    ///
    /// # Errors
    /// When the PDS does not take it.
    pub async fn upload(&self, file: &File, size: u64, mime: &str) -> Result<String, RestoreError> {
        let make = || Sent::file(file, size, mime);
        let answer = self
            .ask("com.atproto.repo.uploadBlob", &[], &Limits::upload(), make)
            .await?;
        let answer: Value = read(answer).await.map_err(RestoreError::failed)?;
        Ok(answer["blob"]["ref"]["$link"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    /// What the identity should say.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn recommended(&self) -> Result<Recommended, RestoreError> {
        self.query("com.atproto.identity.getRecommendedDidCredentials", &[])
            .await
    }

    /// Sends an operation by way of the PDS, which checks that it can live with it.
    ///
    /// # Errors
    /// When the PDS or the directory refuses.
    pub async fn submit(&self, signed: &Signed) -> Result<(), RestoreError> {
        let body = json!({ "operation": signed.json });
        self.post("com.atproto.identity.submitPlcOperation", Some(body))
            .await
    }

    /// Activates the account.
    ///
    /// # Errors
    /// When the PDS refuses.
    pub async fn activate(&self) -> Result<(), RestoreError> {
        self.post("com.atproto.server.activateAccount", None).await
    }

    /// Writes a record of our own and deletes it again.
    ///
    /// # Errors
    /// When the PDS refuses.
    pub async fn write_and_delete(&self) -> Result<(), RestoreError> {
        let place = json!({ "repo": self.did.as_str(), "collection": MARK.0, "rkey": MARK.1 });
        let mut put = place.clone();
        put["record"] = json!({ "$type": MARK.0 });
        self.post("com.atproto.repo.putRecord", Some(put)).await?;
        self.post("com.atproto.repo.deleteRecord", Some(place)).await
    }

    /// The repository as the PDS gives it to everybody now, in a temporary file; one that is hidden, to its user.
    ///
    /// # Errors
    /// When it does not give it.
    pub async fn read_back(
        &self,
        mut file: File,
        bytes_max: u64,
        hidden: bool,
    ) -> Result<File, RestoreError> {
        let (method, parameters) = ("com.atproto.sync.getRepo", [("did", self.did.as_str())]);
        let limits = Limits::download(bytes_max);
        let answer = if hidden {
            let make = || Ok(Sent::bare(Method::GET));
            self.ask(method, &parameters, &limits, make).await?
        } else {
            let address = self.address(method, &parameters);
            let answer = self.http.get(&address, &limits).await;
            answer.map_err(RestoreError::failed)?
        };
        let mut body = answer.body;
        let failed = |error: io::Error| RestoreError::Failed(format!("a temporary file: {error}"));
        while let Some(bytes) = body.chunk().await.map_err(RestoreError::failed)? {
            io::Write::write_all(&mut file, &bytes).map_err(failed)?;
        }
        file.rewind().map_err(failed)?;
        Ok(file)
    }

    /// Whether another PDS says, within a short time, that it hosts the account, active.
    pub async fn is_active_at(&self, url: &str) -> bool {
        let did = query_value(self.did.as_str());
        let address = format!(
            "{}/xrpc/com.atproto.sync.getRepoStatus?did={did}",
            url.trim_end_matches('/')
        );
        let limits = Limits::document(ANSWER_BYTES_MAX);
        let asked = self.http.get_json_within::<Value>(&address, &limits);
        let asked = tokio::time::timeout(Duration::from_secs(10), asked).await;
        matches!(asked, Ok(Ok(status)) if status["active"] == true)
    }
}

async fn read<T: DeserializeOwned>(answer: Answer) -> Result<T, FetchError> {
    let bytes = answer.body.collect().await?;
    serde_json::from_slice(&bytes).map_err(|error| FetchError::Json {
        host: "the PDS".to_owned(),
        // The error's place, not its words: they may quote what must not be shown.
        reason: format!("line {}, column {}", error.line(), error.column()),
    })
}
