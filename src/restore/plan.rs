//! What a restore will do, and what stands in its way: judged from what was found out, before anything is changed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::operation::{Draft, ROTATION_KEYS_MAX};
use super::secret::UserSecret;
use crate::identity::plc_log::{PlcLog, RECOVERY_WINDOW};
use crate::repo::signing_key::{SecretKey, SigningKey};
use crate::types::{Cid, Did, DidMethod, Rev, Timestamp};

/// Names that a text lists.
const NAMES_MAX: usize = 20;

/// A blob that the records refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its type, as a record says it.
    pub mime: String,
    /// Its size in the backup; none: the backup does not have it.
    pub held: Option<u64>,
}

/// What the backup holds, proven.
#[derive(Debug, Clone)]
pub struct BackupFacts {
    /// Where it is.
    pub place: String,
    /// The rev.
    pub rev: Rev,
    /// The commit.
    pub commit: Cid,
    /// Who signed it, as did:key; none: it could not be checked.
    pub signed_by: Option<String>,
    /// Records, those whose bytes were erased among them.
    pub records: u64,
    /// Records whose bytes were erased, by their paths.
    pub withheld: Vec<Box<str>>,
    /// Bytes of the CAR that is imported.
    pub car_bytes: u64,
    /// Blobs.
    pub blobs: BTreeMap<Cid, Blob>,
    /// What to know about it.
    pub notes: Vec<String>,
}

/// What the new PDS says of itself.
#[derive(Debug, Clone, Default)]
pub struct ServerFacts {
    /// Its URL.
    pub url: String,
    /// Its DID.
    pub did: String,
    /// It wants an invite code.
    pub invite_required: bool,
    /// It wants a proof that a person asks: a captcha, or a phone.
    pub verification_required: bool,
    /// Domains of the handles that it gives, each with its dot.
    pub domains: Vec<String>,
    /// The largest blob that it takes.
    pub blob_bytes_max: Option<u64>,
}

/// How the account stands at the new PDS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is not there.
    Absent,
    /// It waits there to be filled and activated.
    Deactivated,
    /// It is there and active.
    Active,
    /// Something else, in the PDS's words.
    Other(String),
}

/// Whom a handle belongs to, as the new PDS sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandleOwner {
    /// Nobody.
    Nobody,
    /// This account.
    Us,
    /// Another.
    Other(String),
}

/// How the account stands when all is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// Active.
    #[default]
    Active,
    /// Deactivated, as it was: its user may activate it.
    Deactivated,
    /// Taken down, as it was.
    TakenDown,
}

/// What the caller gives.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// The handle, if another than that of the identity.
    pub handle: Option<String>,
    /// An e-mail address.
    pub email: bool,
    /// An invite code.
    pub invite: bool,
    /// The answer to a captcha.
    pub verification: bool,
    /// Rotation keys to give up.
    pub dropped: Vec<String>,
    /// What an account that is there already holds may be replaced.
    pub overwrite: bool,
    /// How it is to stand in the end.
    pub ending: Ending,
}

/// All that was found out.
pub struct Findings<'a> {
    /// The account.
    pub did: &'a Did,
    /// The backup.
    pub backup: &'a BackupFacts,
    /// The new PDS.
    pub server: &'a ServerFacts,
    /// The audit log of a did:plc.
    pub log: Option<&'a PlcLog>,
    /// The signing key that the identity names now.
    pub signing_key: Option<&'a SigningKey>,
    /// The handle that it names now.
    pub handle: Option<&'a str>,
    /// The PDS that it names now.
    pub pds: Option<&'a str>,
    /// Whether that PDS says that it hosts the account, active.
    pub old_pds_active: bool,
    /// The account at the new PDS.
    pub standing: &'a Standing,
    /// Whose the handle is.
    pub owner: &'a HandleOwner,
    /// Operations of earlier runs of this restore.
    pub own_operations: &'a [String],
    /// Whether an earlier run of this restore made or took the account there.
    pub begun_by_us: bool,
    /// Whether an earlier run of this restore activated it.
    pub activated_by_us: bool,
    /// The rotation key.
    pub rotation: Option<&'a UserSecret>,
    /// A signing key.
    pub signer: Option<&'a UserSecret>,
    /// What the caller gives.
    pub given: &'a Given,
    /// Now.
    pub now: Timestamp,
}

/// How control of the account is shown to the new PDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The account is there already.
    NotNeeded,
    /// By the signing key that was given.
    SigningKey,
    /// By a temporary key, which an operation makes the account's.
    TemporaryKey,
}

/// What will be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The handle at the new PDS.
    pub handle: String,
    /// How control is shown.
    pub proof: Proof,
    /// How it will stand.
    pub ending: Ending,
    /// The place of the key that signs operations, from 0.
    pub key_place: Option<usize>,
    /// Why it cannot be done.
    pub refusals: Vec<String>,
    /// What to know before.
    pub warnings: Vec<String>,
    /// The steps, in order.
    pub steps: Vec<String>,
    /// Blobs that the backup does not have.
    pub missing: Vec<Cid>,
    /// Blobs that the new PDS will not take.
    pub too_large: Vec<Cid>,
    /// Bytes of the blobs that the backup has.
    pub blob_bytes: u64,
}

/// The rotation key that may sign the next operation: its place in the list, and the key.
///
/// # Errors
/// Why this key may not.
pub fn rotation_key(log: &PlcLog, secret: &UserSecret) -> Result<(usize, SecretKey), String> {
    let listed = &log
        .current()
        .ok_or("the identity was given up (a tombstone)")?
        .rotation_keys;
    let publics: Vec<String> = secret
        .keys()
        .iter()
        .map(|key| key.public().to_did_key())
        .collect();
    if let Some(place) = listed.iter().position(|key| publics.contains(key)) {
        let mut keys = secret.keys().into_iter();
        let key = keys.find(|key| key.public().to_did_key() == listed[place]);
        return Ok((place, key.expect("it is among them")));
    }
    let earlier = log.entries().iter().rev().find(|entry| {
        let state = entry.state.as_ref();
        state.is_some_and(|state| state.rotation_keys.iter().any(|key| publics.contains(key)))
    });
    Err(match earlier {
        Some(entry) => format!(
            "the rotation key is no longer in the identity's list; the operation of {} was the last that had it. If \
             it was taken out by somebody else within 72 hours, it can still undo that, with `firekeep plc undo {}`; \
             otherwise only these may sign: {}",
            entry.created_at,
            log.did(),
            listed.join(", ")
        ),
        None => format!(
            "the rotation key {} is not one of the identity's, which are: {}",
            publics.join(" or "),
            listed.join(", ")
        ),
    })
}

impl Findings<'_> {
    /// Judges it all.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let mut plan = Plan {
            handle: self
                .given
                .handle
                .as_deref()
                .or(self.handle)
                .unwrap_or_default()
                .to_ascii_lowercase(),
            proof: Proof::NotNeeded,
            ending: self.given.ending,
            key_place: None,
            refusals: Vec::new(),
            warnings: self.backup.notes.clone(),
            steps: Vec::new(),
            missing: Vec::new(),
            too_large: Vec::new(),
            blob_bytes: 0,
        };
        self.judge_backup(&mut plan);
        self.judge_identity(&mut plan);
        self.judge_server(&mut plan);
        self.judge_proof(&mut plan);
        self.list_steps(&mut plan);
        plan
    }

    fn judge_backup(&self, plan: &mut Plan) {
        for (cid, blob) in &self.backup.blobs {
            match (blob.held, self.server.blob_bytes_max) {
                (None, _) => plan.missing.push(*cid),
                (Some(size), Some(max)) if size > max => plan.too_large.push(*cid),
                (Some(size), _) => plan.blob_bytes += size,
            }
        }
        if !plan.missing.is_empty() {
            let count = plan.missing.len();
            plan.warnings.push(format!(
                "{count} blobs are not in the backup: {}",
                names(&plan.missing)
            ));
        }
        if !plan.too_large.is_empty() {
            plan.warnings.push(format!(
                "{} blobs are larger than the {} bytes that the new PDS takes and will be left out: {}",
                plan.too_large.len(),
                self.server.blob_bytes_max.unwrap_or_default(),
                names(&plan.too_large)
            ));
        }
        if !self.backup.withheld.is_empty() {
            plan.warnings.push(format!(
                "{} records were erased from the backup, and stay erased: only their names are restored: {}",
                self.backup.withheld.len(),
                names(&self.backup.withheld)
            ));
        }
        if self.backup.signed_by.is_none() {
            plan.refusals.push(
                "the signature of the backup's commit could not be checked, for no signing key of the account is \
                 known; give one with --key"
                    .to_owned(),
            );
        }
    }

    fn judge_identity(&self, plan: &mut Plan) {
        let Some(log) = self.log else {
            if self.did.method() == DidMethod::Plc {
                plan.refusals.push("the identity's log is not known".to_owned());
            }
            return;
        };
        let Some(secret) = self.rotation else {
            plan.refusals
                .push("a did:plc needs a rotation key: --rotation-key-file".to_owned());
            return;
        };
        match rotation_key(log, secret) {
            Err(why) => plan.refusals.push(why),
            Ok((place, _)) => {
                plan.key_place = Some(place);
                if place > 0 {
                    plan.warnings.push(format!(
                        "the rotation key is number {} in the list: who holds a key above it can undo this within {}",
                        place + 1,
                        hours(RECOVERY_WINDOW)
                    ));
                }
            }
        }
        for entry in log.entries().iter().filter(|entry| !entry.nullified) {
            let age = self.now.since(entry.created_at);
            if self.own_operations.contains(&entry.cid.to_string()) {
                continue;
            }
            if age < RECOVERY_WINDOW && log.entries().first() != Some(entry) {
                plan.warnings.push(format!(
                    "the identity was changed at {} ({}); if that was not you, a stronger key can undo it for {} more",
                    entry.created_at,
                    entry.cid,
                    hours(RECOVERY_WINDOW - age)
                ));
            }
        }
        let undone = log.entries().iter().filter(|entry| entry.nullified).count();
        if undone > 0 {
            plan.warnings.push(format!(
                "{undone} operations of the log were undone by a stronger key"
            ));
        }
        match Draft::after(log) {
            Err(error) => plan.refusals.push(error.to_string()),
            Ok(draft) => {
                let keys = draft.rotation_keys();
                for key in self.given.dropped.iter().filter(|key| !keys.contains(key)) {
                    // An earlier run may have done it.
                    if !self.activated_by_us && *self.standing == Standing::Absent {
                        plan.refusals.push(format!(
                            "--drop-rotation-key {key} is no rotation key of this identity"
                        ));
                    }
                }
                let kept = keys
                    .iter()
                    .filter(|key| !self.given.dropped.contains(key))
                    .count();
                if kept >= ROTATION_KEYS_MAX && self.pds != Some(self.server.url.as_str()) {
                    plan.refusals.push(format!(
                        "the identity has {kept} rotation keys, and there is no room for the new PDS's; name one to \
                         give up with --drop-rotation-key, out of: {}",
                        keys.join(", ")
                    ));
                }
            }
        }
    }

    fn judge_server(&self, plan: &mut Plan) {
        let server = &self.server.url;
        match self.standing {
            Standing::Deactivated if self.begun_by_us || self.given.overwrite => {}
            Standing::Deactivated => plan.refusals.push(format!(
                "{server} has this account already, deactivated, and no ledger says that a restore made it: what it \
                 holds would be replaced by the backup; say --overwrite if that is meant"
            )),
            Standing::Active if self.activated_by_us => {}
            Standing::Active => plan.refusals.push(format!(
                "{server} has this account already, and active: there is nothing to restore"
            )),
            Standing::Other(what) => plan.refusals.push(format!(
                "{server} says that this account is {what}; its admin has to clear that first"
            )),
            Standing::Absent => self.judge_new_account(plan),
        }
        if self.old_pds_active {
            plan.warnings.push(format!(
                "{} still answers for this account as active: moving it from there is safer; deactivate it there \
                 when this is done",
                self.pds.unwrap_or("the old PDS")
            ));
        }
    }

    fn judge_new_account(&self, plan: &mut Plan) {
        let server = &self.server.url;
        let refusals = &mut plan.refusals;
        if !self.given.email {
            refusals.push(format!(
                "{server} needs an e-mail address for the new account: --email"
            ));
        }
        if self.server.invite_required && !self.given.invite {
            refusals.push(format!("{server} asks for an invite code: --invite-code-file"));
        }
        if self.server.verification_required && !self.given.verification {
            refusals.push(format!(
                "{server} asks for a captcha or a phone number: --verification-code"
            ));
        }
        let domains = self.server.domains.join(", ");
        if plan.handle.is_empty() {
            refusals.push(format!(
                "the identity has no handle; choose one with --handle ({domains})"
            ));
            return;
        }
        let served = self
            .server
            .domains
            .iter()
            .any(|domain| plan.handle.ends_with(domain.as_str()));
        match self.owner {
            HandleOwner::Other(other) => refusals.push(format!(
                "the handle {} belongs to {other}; choose another with --handle ({domains})",
                plan.handle
            )),
            HandleOwner::Nobody if !served => refusals.push(format!(
                "{server} does not give handles like {}, and it does not lead to this account either; choose one with \
                 --handle ({domains}), or set its DNS record _atproto.{} to did={}",
                plan.handle, plan.handle, self.did
            )),
            HandleOwner::Nobody | HandleOwner::Us => {}
        }
    }

    fn judge_proof(&self, plan: &mut Plan) {
        if *self.standing != Standing::Absent {
            return;
        }
        let current = self.signing_key.map(std::slice::from_ref).unwrap_or_default();
        if let Some(secret) = self.signer {
            if secret.key_among(current).is_some() {
                plan.proof = Proof::SigningKey;
                return;
            }
            plan.refusals.push(match current {
                [key] => format!("the key of --signing-key-file is not the account's signing key, {key}"),
                _ => "the identity names no signing key".to_owned(),
            });
        } else if self.did.method() == DidMethod::Plc {
            plan.proof = Proof::TemporaryKey;
        } else {
            plan.refusals.push(format!(
                "{} is published by its owner, so its new PDS believes only its signing key: make one with `firekeep \
                 key generate`, publish its public half as #atproto in the DID document, and give it with \
                 --signing-key-file",
                self.did
            ));
        }
    }
}

fn hours(time: Duration) -> String {
    format!("{} h", time.as_secs().div_ceil(3600))
}

fn names<T: ToString>(cids: &[T]) -> String {
    let mut list: Vec<String> = cids.iter().take(NAMES_MAX).map(ToString::to_string).collect();
    if cids.len() > NAMES_MAX {
        list.push("…".to_owned());
    }
    list.join(", ")
}

mod shown;
mod steps;
#[cfg(test)]
mod tests;
