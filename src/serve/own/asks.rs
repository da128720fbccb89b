#![allow(clippy::disallowed_methods, reason = "shell: answers requests")]
//! What owners and admins ask to be done.
//!
//! A token of the account's PDS may ask for a snapshot, sign the account up, and ask for its removal, which comes to
//! pass after the time of grace and can be taken back until then. What cannot be taken back takes its owner's own key
//! or the admin.

use std::collections::BTreeMap;

use hyper::Response;
use serde_json::{Map, Value, json};

use super::{Asked, check_admin, check_owner, subject};
use crate::identity::document::Identity;
use crate::identity::resolver::ResolveError;
use crate::metrics::labels::Endpoint;
use crate::mirror::erased::ErasedMark;
use crate::mirror::rows::{AccountRow, Scope};
use crate::repo::export;
use crate::serve::response::{self, Body, XrpcError};
use crate::serve::who::Who;
use crate::serve::xrpc::Xrpc;
use crate::types::{Did, HostName};

/// An account may ask for a snapshot this often.
const SNAPSHOT_PAUSE: std::time::Duration = std::time::Duration::from_secs(300);

/// Whose accounts may be signed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SignUps {
    /// Nobody's.
    Off,
    /// Those of PDSes that are followed.
    #[default]
    Hosts,
    /// Those of any PDS: it is then followed for these accounts alone.
    Open,
}

impl Xrpc {
    pub(super) async fn ask(&self, asked: &Asked<'_>, who: Who) -> Result<Response<Body>, XrpcError> {
        let input = &asked.input;
        let named = field::<Did>(input, "did", "a valid did")?;
        let done = match asked.endpoint {
            Endpoint::BackupFollowHost => {
                check_admin(&who)?;
                self.follow_host(input).await?
            }
            Endpoint::BackupUnfollowHost => {
                check_admin(&who)?;
                self.unfollow_host(input).await?
            }
            Endpoint::BackupPin | Endpoint::BackupUnpin => {
                check_admin(&who)?;
                let did = subject(&who, named)?;
                self.known_row(&did).await?;
                let name = match asked.endpoint {
                    Endpoint::BackupPin => "pin",
                    _ => "unpin",
                };
                self.tell_daemon(name, &[("did", did.as_str())]).await?
            }
            Endpoint::BackupVerify => {
                check_admin(&who)?;
                let did = subject(&who, named)?;
                let mirror = self.prove_mirror(&did).await?;
                json!({ "did": did.as_str(), "mirror": mirror, "archive": self.prove_archive(&did).await? })
            }
            Endpoint::BackupSignUp => self.sign_up(&who, subject(&who, named)?).await?,
            Endpoint::BackupRequestSnapshot => self.request_snapshot(&subject(&who, named)?).await?,
            Endpoint::BackupRemoveAccount => {
                let did = subject(&who, named)?;
                let flag =
                    |name| Ok::<_, XrpcError>(field::<bool>(input, name, "a boolean")?.unwrap_or(false));
                self.remove_account(&who, &did, flag("cancel")?, flag("now")?)
                    .await?
            }
            _ => return self.moover_ask(asked.endpoint, &who).await,
        };
        let mut answer = response::json(&done);
        answer
            .headers_mut()
            .insert(hyper::header::CACHE_CONTROL, response::CACHE_NEVER);
        Ok(answer)
    }

    /// Has the daemon do something.
    pub(super) async fn tell_daemon(&self, name: &str, values: &[(&str, &str)]) -> Result<Value, XrpcError> {
        let values: BTreeMap<String, String> = values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let told = self.control.command(name, values).ok_or(XrpcError::Internal)?;
        told.await.map_err(|error| XrpcError::Own("NotDone", error))
    }

    /// An account's row.
    pub(super) async fn known_row(&self, did: &Did) -> Result<AccountRow, XrpcError> {
        let wanted = did.clone();
        let row = self.look_up(move |mirror| Ok(mirror.account(&wanted)?)).await?;
        row.ok_or_else(|| XrpcError::RepoNotFound(did.clone()))
    }

    async fn identity_now(&self, did: &Did) -> Result<std::sync::Arc<Identity>, XrpcError> {
        let identities = self.gate.identities();
        let now = match identities.identity(did, true).await {
            Err(ResolveError::TooSoon { .. }) => identities.identity(did, false).await,
            now => now,
        };
        now.map_err(|error| match error.is_transient() {
            true => XrpcError::Unresolved(did.clone()),
            false => XrpcError::Own("NoHost", format!("{did} cannot be looked up: {error}")),
        })
    }

    pub(super) async fn sign_up(&self, who: &Who, did: Did) -> Result<Value, XrpcError> {
        if self.sign_ups == SignUps::Off && *who != Who::Admin {
            let text = "This server takes no sign-ups: its admin says whom it backs up".to_owned();
            return Err(XrpcError::Own("SignUpClosed", text));
        }
        let wanted = did.clone();
        let row = self.look_up(move |mirror| Ok(mirror.account(&wanted)?)).await?;
        if row
            .as_ref()
            .is_some_and(|row| row.erased == Some(ErasedMark::Whole))
        {
            let text = "This account was erased here, and is not taken again; ask the admin".to_owned();
            return Err(XrpcError::Own("AccountErased", text));
        }
        let identity = self.identity_now(&did).await?;
        let endpoint = identity.host.as_ref().ok_or_else(|| {
            XrpcError::Own(
                "NoHost",
                format!("The DID document of {did} names no PDS that can be followed"),
            )
        })?;
        let host = endpoint.host().clone();
        let followed = self.ask_daemon("followed", &[("host", host.as_str())]).await?;
        if followed["followed"] != true {
            if self.sign_ups != SignUps::Open && *who != Who::Admin {
                let text = format!(
                    "{host} is not followed here, and only accounts of PDSes that are can be signed up"
                );
                return Err(XrpcError::Own("HostNotFollowed", text));
            }
            let values = [("url", &*endpoint.origin()), ("scope", Scope::Listed.label())];
            self.tell_daemon("follow", &values).await?;
        }
        let key = match who {
            Who::Owner(_, key) => key.as_str(),
            _ => "",
        };
        let values = [("did", did.as_str()), ("host", host.as_str()), ("key", key)];
        self.tell_daemon("sign-up", &values).await?;
        let mut done = json!({ "did": did.as_str(), "host": host.as_str() });
        if !key.is_empty() {
            done["pinnedKey"] = key.into();
        }
        Ok(done)
    }

    pub(super) async fn request_snapshot(&self, did: &Did) -> Result<Value, XrpcError> {
        let row = self.known_row(did).await?;
        let head = row
            .head
            .as_ref()
            .ok_or_else(|| XrpcError::RepoNotFound(did.clone()))?;
        let due = !row.is_snapshotted();
        if due {
            if !self.gate.may_ask_again(did, SNAPSHOT_PAUSE) {
                let text = "A snapshot was asked for less than 5 minutes ago".to_owned();
                return Err(XrpcError::OwnTooSoon("TooManyRequests", text));
            }
            self.tell_daemon("snapshot-account", &[("did", did.as_str())])
                .await?;
        }
        Ok(json!({ "did": did.as_str(), "rev": head.rev.to_string(), "queued": due }))
    }

    pub(super) async fn remove_account(
        &self,
        who: &Who,
        did: &Did,
        cancel: bool,
        now: bool,
    ) -> Result<Value, XrpcError> {
        let row = self.known_row(did).await?;
        if now {
            check_owner(who, did)?;
            let by = match who {
                Who::Admin => "an admin, over XRPC".to_owned(),
                _ => format!("its owner, {did}, over XRPC"),
            };
            let values = [("subject", did.as_str()), ("by", &*by), ("dry_run", "false")];
            self.tell_daemon("forget", &values).await?;
            return Ok(json!({ "did": did.as_str(), "removed": true }));
        }
        let mut done = json!({ "did": did.as_str(), "removed": row.erased == Some(ErasedMark::Whole) });
        if row.erased == Some(ErasedMark::Whole) {
            return Ok(done);
        }
        let asked = row.owner.as_ref().and_then(|owner| owner.removal_due);
        let due = match (cancel, asked) {
            (false, Some(due)) => Some(due.to_string()),
            (true, None) => None,
            (cancel, _) => {
                let values = [
                    ("did", did.as_str()),
                    ("cancel", if cancel { "true" } else { "false" }),
                ];
                let told = self.tell_daemon("removal", &values).await?;
                told["due"].as_str().map(str::to_owned)
            }
        };
        if let Some(due) = due {
            done["removalDue"] = due.into();
        }
        Ok(done)
    }

    async fn follow_host(&self, input: &Map<String, Value>) -> Result<Value, XrpcError> {
        let url: String = required(input, "url", "a PDS's web address")?;
        let scope = match field::<String>(input, "follow", "\"all\" or \"listed\"")?.as_deref() {
            None | Some("all") => Scope::All,
            Some("listed") => Scope::Listed,
            Some(_) => return Err(malformed("follow", "\"all\" or \"listed\"")),
        };
        self.tell_daemon("follow", &[("url", &url), ("scope", scope.label())])
            .await
    }

    async fn unfollow_host(&self, input: &Map<String, Value>) -> Result<Value, XrpcError> {
        let host: HostName = required(input, "hostname", "a host name")?;
        let wanted = host.clone();
        let known = self.look_up(move |mirror| Ok(mirror.host(&wanted)?)).await?;
        known.ok_or(XrpcError::HostNotFound)?;
        self.tell_daemon("unfollow", &[("host", host.as_str())]).await
    }

    /// Rebuilds the tree of what the mirror holds.
    async fn prove_mirror(&self, did: &Did) -> Result<Value, XrpcError> {
        let wanted = did.clone();
        self.look_up(move |mirror| {
            let row = mirror
                .account(&wanted)?
                .ok_or_else(|| XrpcError::RepoNotFound(wanted.clone()))?;
            let head = row.head.ok_or_else(|| XrpcError::RepoNotFound(wanted.clone()))?;
            let mut told = json!({ "rev": head.rev.to_string() });
            let rows = mirror.rows(row.account_number);
            let proven = match head.commit.matches(&head.commit_block) {
                true => export::prove(&rows, head.data)
                    .map(drop)
                    .map_err(|error| error.to_string()),
                false => Err("the stored commit block is not that of its CID".to_owned()),
            };
            told["ok"] = proven.is_ok().into();
            if let Err(detail) = proven {
                told["detail"] = detail.into();
            }
            told["records"] = row.records.into();
            Ok(told)
        })
        .await
    }
}

fn malformed(name: &str, rule: &str) -> XrpcError {
    XrpcError::Input(format!("{name} must be {rule}"))
}

/// A field of the input: a text that parses, or a boolean.
fn field<T: Field>(input: &Map<String, Value>, name: &str, rule: &str) -> Result<Option<T>, XrpcError> {
    match input.get(name) {
        None => Ok(None),
        Some(value) => T::read(value).map(Some).ok_or_else(|| malformed(name, rule)),
    }
}

fn required<T: Field>(input: &Map<String, Value>, name: &str, rule: &str) -> Result<T, XrpcError> {
    field(input, name, rule)?
        .ok_or_else(|| XrpcError::Input(format!("Input must have the property \"{name}\"")))
}

trait Field: Sized {
    fn read(value: &Value) -> Option<Self>;
}

impl Field for bool {
    fn read(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

macro_rules! texts {
    ($($name:ty),+) => {$(
        impl Field for $name {
            fn read(value: &Value) -> Option<Self> {
                value.as_str()?.parse().ok()
            }
        }
    )+};
}

texts!(String, Did, HostName);
