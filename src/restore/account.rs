#![allow(clippy::disallowed_methods, reason = "shell: the network, files")]
//! The steps of a restore, in the order that is safe.
//!
//! Each looks first whether it was done, at the PDS or in the identity's log, and is done at most once; the ledger
//! remembers what cannot be seen there. The identity points to the new PDS only when that has the repository, and the
//! account is activated last: what is activated earlier is announced to the network empty.

use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::RestoreError;
use super::admin::Admin;
use super::crash::crash_point;
use super::directory::{Directory, wait};
use super::ledger::{Ledger, Step};
use super::operation::{Draft, OperationError, Recommended};
use super::pds::{NewAccount, Pds};
use super::plan::{Ending, Plan, Proof, Standing, rotation_key};
use super::secret::UserSecret;
use super::source::{Backup, Fetched};
use super::token::service_token;
use crate::http::request::FetchError;
use crate::repo::signing_key::{SecretKey, SigningKey};
use crate::types::{Cid, Did, DidMethod, Timestamp};

mod compare;

/// Blobs that are brought at the same time.
const UPLOADS: usize = 4;
/// Tries to make an account that the PDS has no time for.
const TRIES: u32 = 5;
/// Largest repository that is read back.
const CAR_BYTES_MAX: u64 = 16 << 30;
/// How often, and how long, something is waited for that others have to do.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS: u32 = 60;
/// The same, for the owner of a did:web.
const OWNER_LOOK: Duration = Duration::from_secs(10);
const OWNER_LOOKS: u32 = 90;

/// The method that a token for a new account is for.
const CREATE: &str = "com.atproto.server.createAccount";

/// Tells what happens.
pub trait Watcher: Sync {
    /// A step begins, or there is something to know.
    fn say(&self, text: &str);
    /// So many of so many blobs are there.
    fn blobs(&self, done: u64, of: u64);
}

/// Everything that a restore needs.
pub struct Restore<'a> {
    /// The account.
    pub did: &'a Did,
    /// The new PDS.
    pub pds: &'a Pds,
    /// Its DID.
    pub pds_did: &'a str,
    /// Where identities are.
    pub directory: &'a Directory,
    /// The backup.
    pub backup: &'a Backup,
    /// What was planned.
    pub plan: &'a Plan,
    /// The rotation key.
    pub rotation: Option<&'a UserSecret>,
    /// A signing key.
    pub signer: Option<&'a UserSecret>,
    /// Rotation keys to give up.
    pub dropped: &'a [String],
    /// The new PDS's admin, who takes accounts down.
    pub admin: Option<&'a Admin>,
    /// For the new account.
    pub email: Option<&'a str>,
    /// An invite code.
    pub invite: Option<&'a str>,
    /// The answer to a captcha.
    pub verification: Option<&'a str>,
    /// Where temporary files go.
    pub temp_dir: &'a Path,
    /// Who is told.
    pub watcher: &'a dyn Watcher,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Records that this run read back from the new PDS, and that are those of the backup, those among them that it
    /// withholds by their CIDs alone; none: it compared nothing, for an earlier run did.
    pub records: Option<u64>,
    /// Blobs that it has, of those that the records refer to.
    pub blobs: (u64, u64),
    /// Blobs that it does not have, and why.
    pub missing: Vec<(String, String)>,
    /// The rev that it gives out.
    pub rev: String,
    /// The key that signs there.
    pub signing_key: Option<String>,
    /// Until when a stronger key may undo the change of the identity.
    pub undoable_until: Option<Timestamp>,
}

impl Restore<'_> {
    fn now(&self) -> Timestamp {
        self.directory.clock.now()
    }

    /// Does what is not done yet.
    ///
    /// # Errors
    /// When a step cannot be done. What was done stays; the same call goes on from there.
    pub async fn run(&self, ledger: &mut Ledger) -> Result<Report, RestoreError> {
        match self.pds.standing().await? {
            Standing::Absent if ledger.state().has(Step::Account) => return Err(RestoreError::account_gone()),
            Standing::Absent => {
                let key = self.prove(ledger).await?;
                self.create(&key).await?;
                crash_point("account");
            }
            // From then on its user may write: nothing may be imported over that.
            Standing::Active if ledger.state().has(Step::Activating) => {
                ledger.done(Step::Active, self.now())?
            }
            Standing::Deactivated => {}
            Standing::Active | Standing::Other(_) => return Err(RestoreError::account_changed()),
        }
        ledger.done(Step::Account, self.now())?;
        if !ledger.state().has(Step::Active) {
            self.import().await?;
            crash_point("import");
            ledger.done(Step::Imported, self.now())?;
            let missing = self.bring_blobs().await?;
            ledger.missing(missing)?;
            crash_point("blobs");
            ledger.done(Step::Blobs, self.now())?;
            self.point_identity(ledger).await?;
            crash_point("identity");
            ledger.done(Step::Identity, self.now())?;
            self.compare_status(ledger).await?;
            if self.plan.ending != Ending::Active {
                return self.leave(ledger).await;
            }
            ledger.done(Step::Activating, self.now())?;
            crash_point("activating");
            self.watcher.say("activating the account");
            self.pds.activate().await?;
            crash_point("active");
            ledger.done(Step::Active, self.now())?;
        }
        if !ledger.state().blobs_missing.is_empty() {
            // What could not be had before may be there by now; whatever its user did since does not matter to it.
            ledger.missing(self.bring_blobs().await?)?;
        }
        if !ledger.state().has(Step::Written) {
            self.watcher
                .say("writing and deleting one record, so that a commit by the new key goes out");
            self.pds.write_and_delete().await?;
            crash_point("written");
            ledger.done(Step::Written, self.now())?;
        }
        let report = self.read_back(ledger).await?;
        ledger.done(Step::Compared, self.now())?;
        Ok(report)
    }

    /// It was not active: it is compared, and stays so.
    async fn leave(&self, ledger: &mut Ledger) -> Result<Report, RestoreError> {
        let report = self.read_back(ledger).await?;
        ledger.done(Step::Compared, self.now())?;
        if self.plan.ending == Ending::TakenDown {
            self.watcher.say("taking the account down, as it was");
            let admin = self.admin.ok_or_else(|| {
                RestoreError::failed(
                    "only the new PDS's admin can take an account down: --admin-password-file",
                )
            })?;
            admin.take_down(self.did).await?;
            crash_point("taken-down");
        }
        ledger.done(Step::Left, self.now())?;
        Ok(report)
    }

    /// The key that the new PDS will believe: the account's own, or a temporary one that is made its.
    async fn prove(&self, ledger: &mut Ledger) -> Result<SecretKey, RestoreError> {
        let vanished = || RestoreError::failed("the identity changed since the plan was made; run it again");
        if self.plan.proof == Proof::SigningKey {
            let current = self
                .directory
                .document(self.did)
                .await?
                .key
                .ok_or_else(vanished)?;
            let secret = self.signer.ok_or_else(vanished)?;
            return secret.key_among(&[current]).ok_or_else(vanished);
        }
        let log = self.directory.log(self.did).await?;
        let secret = self.rotation.ok_or_else(vanished)?;
        let temporary = secret.temporary_key(self.did, self.pds_did);
        let current = log.current().ok_or_else(vanished)?;
        if current.signing_key.as_ref() != Some(&temporary.public()) {
            self.watcher
                .say("giving the identity a temporary signing key; it still points to the old PDS");
            let (_, key) = rotation_key(&log, secret).map_err(RestoreError::Failed)?;
            let draft = Draft::after(&log)
                .map_err(RestoreError::failed)?
                .with_signing_key(&temporary.public());
            let signed = draft.sign(&key).map_err(RestoreError::failed)?;
            ledger.keep("a temporary signing key", &signed, self.now())?;
            crash_point("proof-signed");
            self.directory.submit(self.did, &signed).await?;
            crash_point("proof-sent");
        }
        ledger.done(Step::Proven, self.now())?;
        Ok(temporary)
    }

    async fn create(&self, key: &SecretKey) -> Result<(), RestoreError> {
        self.watcher
            .say(&format!("making the account at {}, deactivated", self.pds.url));
        let unique = self.directory.clock.random();
        let mut token = service_token(key, self.did, self.pds_did, CREATE, self.now(), unique);
        let account = NewAccount {
            handle: &self.plan.handle,
            email: self.email,
            invite: self.invite,
            verification: self.verification,
        };
        let mut tries = 1;
        let error = loop {
            match self.pds.create(&account, &token).await {
                Ok(()) => return Ok(()),
                // It was not looked at, so it may be sent again: by a token that is still good then.
                Err(error @ FetchError::Status { status: 429, .. })
                    if tries < TRIES && wait(&error, tries).await =>
                {
                    tries += 1;
                    let unique = self.directory.clock.random();
                    token = service_token(key, self.did, self.pds_did, CREATE, self.now(), unique);
                }
                Err(error) => break error,
            }
        };
        // The answer may have been lost.
        if self.pds.standing().await == Ok(Standing::Deactivated) {
            return Ok(());
        }
        let advice = match (&error, error.xrpc_error()) {
            (_, Some("InvalidInviteCode")) => "give another code with --invite-code-file",
            (_, Some("HandleNotAvailable" | "InvalidHandle" | "UnsupportedDomain")) => {
                "choose another handle with --handle"
            }
            (FetchError::Status { .. }, _) => "mend what it says",
            _ => "try again when it answers",
        };
        let changed = match self.plan.proof {
            Proof::TemporaryKey => {
                " Nothing else was changed: the identity still points to the old PDS, with a temporary signing key that \
                 only this rotation key can make."
            }
            _ => " Nothing was changed.",
        };
        Err(RestoreError::Failed(format!(
            "the new PDS does not make the account: {error}; {advice}, and run the command again.{changed}"
        )))
    }

    async fn import(&self) -> Result<(), RestoreError> {
        let facts = &self.backup.facts;
        let commit = facts.commit.to_string();
        if self.pds.status().await?.repo_commit != commit {
            self.watcher.say(&format!(
                "importing {} records ({} bytes)",
                facts.records, facts.car_bytes
            ));
            self.pds.import(&self.backup.car, facts.car_bytes).await?;
            crash_point("import-sent");
        }
        let wanted = facts.records - facts.withheld.len() as u64;
        let mut status = self.pds.status().await?;
        for _ in 0..LOOKS {
            if status.indexed_records >= wanted {
                break;
            }
            tokio::time::sleep(LOOK).await;
            status = self.pds.status().await?;
        }
        if status.indexed_records != wanted {
            return Err(RestoreError::Unproven(format!(
                "{} took the repository, and has {} records of {wanted}; the identity was not pointed there",
                self.pds.url, status.indexed_records
            )));
        }
        Ok(())
    }

    /// Brings what the PDS says that it misses. What it still misses then, and why.
    async fn bring_blobs(&self) -> Result<Vec<(String, String)>, RestoreError> {
        let mut wanted: Vec<Cid> = Vec::new();
        let mut cursor = None;
        loop {
            let (page, next) = self.pds.missing_blobs(cursor.as_deref()).await?;
            if page.is_empty() {
                break;
            }
            wanted.extend(page);
            match next {
                // A PDS that does not go on would be asked for ever.
                Some(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
                _ => break,
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        let of = wanted.len() as u64;
        if of > 0 {
            self.watcher.say(&format!("uploading {of} blobs"));
        }
        let mut left = Vec::new();
        let brought = stream::iter(&wanted).map(|cid| async move { (cid, self.bring_blob(cid).await) });
        let mut brought = Box::pin(brought.buffer_unordered(UPLOADS));
        let mut done = 0;
        while let Some((cid, outcome)) = brought.next().await {
            done += 1;
            self.watcher.blobs(done, of);
            if let Some(why) = outcome? {
                left.push((cid.to_string(), why));
            }
            if done * 2 >= of {
                crash_point("blobs-half");
            }
        }
        left.sort_unstable();
        Ok(left)
    }

    /// Brings one blob; a text says why it cannot.
    async fn bring_blob(&self, cid: &Cid) -> Result<Option<String>, RestoreError> {
        if self.plan.too_large.contains(cid) {
            return Ok(Some("it is larger than the new PDS takes".to_owned()));
        }
        let (file, size) = match self.backup.blobs.fetch(cid, self.temp_dir).await? {
            Fetched::Whole(file, size) => (file, size),
            Fetched::Missing => return Ok(Some("it is not in the backup".to_owned())),
            Fetched::Damaged(why) => return Ok(Some(format!("it is damaged in the backup: {why}"))),
        };
        let blob = self.backup.facts.blobs.get(cid);
        let mime = blob.map_or("application/octet-stream", |blob| blob.mime.as_str());
        let got = match self.pds.upload(&file, size, mime).await {
            Err(RestoreError::Refused(why)) => return Ok(Some(why)),
            got => got?,
        };
        if got != cid.to_string() {
            return Err(RestoreError::Unproven(format!(
                "{} gave blob {cid} the CID {got:?}: it does not store what it is sent",
                self.pds.url
            )));
        }
        Ok(None)
    }

    async fn point_identity(&self, ledger: &mut Ledger) -> Result<(), RestoreError> {
        let wanted = self.pds.recommended().await?;
        if self.did.method() != DidMethod::Plc {
            return self.wait_for_owner(&wanted).await;
        }
        let log = self.directory.log(self.did).await?;
        let draft = Draft::after(&log).map_err(RestoreError::failed)?;
        let dropped: Vec<String> = {
            // An earlier run may have dropped them already.
            let keys = draft.rotation_keys();
            self.dropped
                .iter()
                .filter(|key| keys.contains(key))
                .cloned()
                .collect()
        };
        let draft = draft.moved_to(&wanted, &dropped).map_err(RestoreError::failed)?;
        if draft.changes_nothing(&log) {
            return Ok(());
        }
        self.watcher
            .say(&format!("pointing the identity to {}", self.pds.url));
        let secret = self
            .rotation
            .ok_or_else(|| RestoreError::failed("there is no rotation key"))?;
        let (_, key) = rotation_key(&log, secret).map_err(RestoreError::Failed)?;
        let signed = draft.sign(&key).map_err(RestoreError::failed)?;
        ledger.keep("the new PDS", &signed, self.now())?;
        crash_point("identity-signed");
        let sent = self.pds.submit(&signed).await;
        crash_point("identity-sent");
        // The log has the last word, whatever the answer was.
        for _ in 0..LOOKS {
            let log = self.directory.log(self.did).await?;
            if log.last().cid == signed.cid {
                return Ok(());
            }
            sent.clone().map_err(|error| {
                RestoreError::Failed(format!(
                    "{error}. The identity is as before, and still points to the old PDS"
                ))
            })?;
            tokio::time::sleep(LOOK).await;
        }
        Err(RestoreError::failed(
            "the PLC directory does not show the operation that the new PDS took; run the same command again",
        ))
    }

    /// A did:web is its owner's: says what to publish, and waits until it is.
    async fn wait_for_owner(&self, wanted: &Recommended) -> Result<(), RestoreError> {
        let service = wanted.services.get("atproto_pds").cloned().unwrap_or_default();
        let endpoint = service["endpoint"].as_str().unwrap_or_default().to_owned();
        let key = wanted.verification_methods.get("atproto").and_then(Value::as_str);
        let key = key.and_then(|key| SigningKey::from_did_key(key).ok());
        let key = key.ok_or_else(|| RestoreError::failed(OperationError::Recommended("signing key")))?;
        let multikey = key.to_multikey();
        let did = self.did;
        let members = json!({
            "alsoKnownAs": wanted.also_known_as,
            "verificationMethod": [{
                "id": format!("{did}#atproto"), "type": "Multikey", "controller": did.as_str(),
                "publicKeyMultibase": multikey,
            }],
            "service": [{
                "id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": endpoint,
            }],
        });
        for look in 0..OWNER_LOOKS {
            let document = self.directory.document(did).await?;
            let host = document.host.map(|host| host.origin());
            if document.key.as_ref() == Some(&key) && host.as_deref() == Some(endpoint.trim_end_matches('/'))
            {
                return Ok(());
            }
            if look == 0 {
                self.watcher.say(&format!(
                    "the owner of {did} must now publish this in its DID document (other entries stay):\n{members:#}"
                ));
            }
            tokio::time::sleep(OWNER_LOOK).await;
        }
        Err(RestoreError::Failed(format!(
            "the DID document of {did} does not say so yet; run the same command again when it does"
        )))
    }
}
