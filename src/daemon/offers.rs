#![allow(clippy::disallowed_methods, reason = "shell: waits and reads the clock")]
//! What owners and admins can have the daemon do, over XRPC or from this machine, and what it does for them later.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::DaemonError;
use super::care::Forget;
use super::control::DaemonControl;
use crate::mirror::input::{Ask, Input};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::Scope;
use crate::types::{Did, HostName, Timestamp};

/// Accounts whose time of grace is over are looked for this often, or more often where that time is shorter.
const LOOK: Duration = Duration::from_secs(600);

type Query = BTreeMap<String, String>;

fn value<T: std::str::FromStr>(query: &Query, name: &str) -> Result<T, String> {
    let text = query.get(name).map(String::as_str).unwrap_or_default();
    text.parse()
        .map_err(|_| format!("{name} is not as it must be: {text:?}"))
}

impl DaemonControl {
    /// What callers may know of the configuration.
    pub(super) fn about(&self) -> Value {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        json!({
            "follow": self.config.follow.label(),
            "flushIntervalMs": milliseconds(self.config.flush_interval),
            "snapshotIntervalMs": milliseconds(self.config.snapshot_interval),
            "keepWindowSeconds": self.config.keep.window.as_secs(),
            "removalGraceSeconds": self.config.keep.deleted.as_secs(),
        })
    }

    /// Whether a host is followed now.
    pub(super) fn is_followed(&self, query: &Query) -> Result<Value, String> {
        let host: HostName = value(query, "host")?;
        Ok(json!({ "followed": self.follower.hosts.get(&host).is_some() }))
    }

    async fn apply(&self, ask: Ask) -> Result<(), String> {
        let applied = self.applier.apply(Input::Asked(ask)).await;
        applied.map_err(|error| error.to_string())
    }

    /// Does something for an owner or an admin, by its name.
    pub(super) async fn offer(&self, name: &str, query: &Query) -> Result<Value, String> {
        match name {
            "follow" => {
                let url: String = value(query, "url")?;
                let scope = match query.get("scope").map(String::as_str) {
                    Some("listed") => Scope::Listed,
                    _ => Scope::All,
                };
                let host = self.follower.follow(&url, scope).await?;
                return Ok(json!({ "hostname": host.as_str(), "follow": scope.label() }));
            }
            "unfollow" => {
                let host: HostName = value(query, "host")?;
                self.follower.unfollow(&host).await?;
                return Ok(json!({ "hostname": host.as_str() }));
            }
            _ => {}
        }
        let did: Did = value(query, "did")?;
        let mut told = json!({ "did": did.as_str() });
        match name {
            "sign-up" => {
                let host: HostName = value(query, "host")?;
                let key = query.get("key").filter(|key| !key.is_empty()).cloned();
                self.apply(Ask::SignUp { did, host, key }).await?;
            }
            "removal" => {
                let due = match query.get("cancel").is_some_and(|cancel| cancel == "true") {
                    true => None,
                    false => Some(self.clock.now().plus(self.config.keep.deleted)),
                };
                if let Some(due) = due {
                    told["due"] = due.to_string().into();
                    tracing::warn!(
                        %did, %due,
                        "this account is to be removed, as it was asked with a token of its PDS or by its owner; until \
                         then it can be taken back"
                    );
                }
                self.apply(Ask::Removal { did, due }).await?;
            }
            "snapshot-account" => self.apply(Ask::Snapshot { did }).await?,
            "pin" => {
                told["pinned"] = true.into();
                self.apply(Ask::Pin { did }).await?;
            }
            "unpin" => {
                self.apply(Ask::Unpin { did: did.clone() }).await?;
                let row = Mirror::new(&*self.store).account(&did);
                let row = row.map_err(|error| error.to_string())?;
                told["pinned"] = row.is_some_and(|row| !row.pins.is_empty()).into();
            }
            _ => return Err(format!("there is no {name:?}")),
        }
        Ok(told)
    }

    /// Erases accounts whose removal was asked for, when the time of grace is over; until it is cancelled.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    pub async fn remove_when_due(self: Arc<Self>, cancel: CancellationToken) -> Result<(), DaemonError> {
        let pause = LOOK.min(self.config.keep.deleted).max(Duration::from_secs(1));
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            let now = self.clock.now();
            let store = Arc::clone(&self.store);
            let due = tokio::task::spawn_blocking(move || due_removals(&Mirror::new(&*store), now)).await;
            let due = match due {
                Ok(Ok(due)) => due,
                Ok(Err(error)) => return Err(DaemonError::failed(error.to_string())),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            };
            for did in due {
                let by = format!("{did} itself, as it asked before");
                let erased = match Forget::parse(did.as_str(), None) {
                    Ok(forget) => self.retain.forget(forget, by, false).await.map(drop),
                    Err(error) => Err(error),
                };
                match erased {
                    Ok(()) => {
                        tracing::info!(%did, "this account was removed, as it was asked");
                        let done = Ask::Removal { did, due: None };
                        if let Err(error) = self.apply(done).await {
                            tracing::error!(%error, "a removal cannot be noted");
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%did, %error, "this account cannot be removed yet; it is tried again");
                    }
                }
            }
        }
    }
}

fn due_removals(mirror: &Mirror<'_>, now: Timestamp) -> Result<Vec<Did>, crate::mirror::StoreError> {
    let mut due = Vec::new();
    mirror.each_account(|did, row| {
        let at = row.owner.and_then(|owner| owner.removal_due);
        if at.is_some_and(|at| at <= now) {
            due.push(did);
        }
        ControlFlow::Continue(())
    })?;
    Ok(due)
}
