#![allow(clippy::disallowed_methods, reason = "shell: looks identities up")]
//! Who a caller is, and what that opens.
//!
//! Reads are open to all, and a token that is not for this server is passed over: tools send their PDS's along. Who
//! asks for more proves itself by a token (see [`crate::identity::token`]) or, as the admin, by a password. A PDS
//! holds its users' signing keys and a rotation key, so such a token proves no more than that the PDS agrees: it
//! asks, and it neither opens what was before nor destroys anything. That takes the admin, or a rotation key that the
//! host cannot have ([`crate::identity::authority`]).

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::BASE64;
use hyper::header::{self, HeaderMap};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::lookup::Sight;
use super::password::AdminPassword;
use super::response::XrpcError;
use super::xrpc::Xrpc;
use crate::clock::Clock;
use crate::identity::authority::{self, Weak};
use crate::identity::document::Identity;
use crate::identity::plc_log::PlcLog;
use crate::identity::resolver::{ResolveError, Resolver};
use crate::identity::token::{Token, TokenError, UsedTokens};
use crate::mirror::StoreError;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AccountRow, Listing};
use crate::repo::signing_key::SigningKey;
use crate::types::cid::sha256;
use crate::types::{Did, DidMethod, Digest, HostName, Timestamp};

/// Tokens that are remembered until they expire; and of one account.
const USED_MAX: usize = 50_000;
const USED_OF_ONE_MAX: usize = 300;
/// Callers whose identity is looked up at once.
const CHECKS_MAX: usize = 4;
/// Accounts of which it is remembered when they asked for something that costs.
const ASKED_MAX: usize = 10_000;
/// Wrong passwords within a minute, from everybody together, before the next ones are refused unseen.
const WRONG_PASSWORDS_MAX: usize = 10;
const WRONG_PASSWORDS_WINDOW: Duration = Duration::from_secs(60);
/// Of so many accounts of a host that are known longest, and of so many others, the rotation keys are read.
const OTHERS_EACH: usize = 8;
/// How long that counts, and of how many hosts it is remembered.
const OTHERS_FRESH: Duration = Duration::from_secs(3600);
const OTHERS_HOSTS_MAX: usize = 200;

/// An answer that is looked up.
pub type Looked<'a, T> = Pin<Box<dyn Future<Output = Result<T, ResolveError>> + Send + 'a>>;

/// Where identities are looked up.
pub trait Identities: Send + Sync + 'static {
    /// What a DID document says; `refresh`: not out of a cache, if that may be.
    fn identity<'a>(&'a self, did: &'a Did, refresh: bool) -> Looked<'a, Arc<Identity>>;

    /// The audit log of a `did:plc`, at most a minute old.
    fn audit_log<'a>(&'a self, did: &'a Did) -> Looked<'a, Arc<PlcLog>>;
}

impl Identities for Resolver {
    fn identity<'a>(&'a self, did: &'a Did, refresh: bool) -> Looked<'a, Arc<Identity>> {
        Box::pin(self.resolve(did, refresh))
    }

    fn audit_log<'a>(&'a self, did: &'a Did) -> Looked<'a, Arc<PlcLog>> {
        Box::pin(Self::audit_log(self, did))
    }
}

/// What callers are believed by.
pub struct Trust {
    /// Where identities are looked up.
    pub identities: Arc<dyn Identities>,
    /// The clock.
    pub clock: Clock,
    /// The admin's password; none: nobody is the admin here.
    pub admin: Option<AdminPassword>,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// Anybody.
    Nobody,
    /// An account, as far as its PDS can be believed; and why it is not more than that.
    Account(Did, Option<Weak>),
    /// An account's owner, by a key that its host cannot have.
    Owner(Did, String),
    /// The admin.
    Admin,
}

impl Who {
    /// What it may see.
    pub(super) fn sight(&self) -> Sight {
        match self {
            Self::Nobody => Sight::Public,
            Self::Account(did, _) => Sight::Own(did.clone()),
            Self::Owner(did, _) => Sight::AllOf(did.clone()),
            Self::Admin => Sight::All,
        }
    }
}

/// Accounts of a host, and their rotation keys.
type Sample = Vec<(Did, Vec<String>)>;

/// What callers were let in with.
pub(super) struct Gate {
    identities: Arc<dyn Identities>,
    clock: Clock,
    admin: Option<AdminPassword>,
    used: Mutex<UsedTokens>,
    checks: Arc<Semaphore>,
    passwords: Arc<Semaphore>,
    /// The credentials that were right last, hashed.
    right: Mutex<Option<Digest>>,
    wrong: Mutex<Vec<Instant>>,
    others: Mutex<HashMap<HostName, (Instant, Arc<Sample>)>>,
    /// When accounts asked for something that costs.
    asked: Mutex<HashMap<Did, Timestamp>>,
}

impl Gate {
    pub(super) fn new(trust: Trust) -> Self {
        let since = trust.clock.now();
        Self {
            identities: trust.identities,
            clock: trust.clock,
            admin: trust.admin,
            used: Mutex::new(UsedTokens::new(since, USED_MAX, USED_OF_ONE_MAX)),
            checks: Arc::new(Semaphore::new(CHECKS_MAX)),
            passwords: Arc::new(Semaphore::new(1)),
            right: Mutex::default(),
            wrong: Mutex::default(),
            others: Mutex::default(),
            asked: Mutex::default(),
        }
    }
}

impl Gate {
    /// Where identities are looked up.
    pub(super) fn identities(&self) -> &dyn Identities {
        &*self.identities
    }

    /// The time.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Whether an account's last request of this kind is long enough ago.
    pub(super) fn may_ask_again(&self, did: &Did, pause: Duration) -> bool {
        let (mut asked, now) = (lock(&self.asked), self.clock.now());
        if asked.get(did).is_some_and(|at| now.since(*at) < pause) {
            return false;
        }
        if asked.len() >= ASKED_MAX {
            asked.retain(|_, at| now.since(*at) < pause);
        }
        let room = asked.len() < ASKED_MAX;
        if room {
            asked.insert(did.clone(), now);
        }
        room
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(error: TokenError) -> XrpcError {
    match error {
        TokenError::TooMany => XrpcError::Busy,
        error => XrpcError::InvalidToken(error.to_string()),
    }
}

/// What stands behind a scheme's name.
fn credentials<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (name, rest) = value.split_once(' ')?;
    name.eq_ignore_ascii_case(scheme).then_some(rest.trim())
}

tokio::task_local! {
    /// What the caller of this request may see.
    pub(super) static SIGHT: Sight;
}

impl Xrpc {
    /// What the caller of this request may see.
    pub(super) fn sight(&self) -> Sight {
        SIGHT.try_with(Clone::clone).unwrap_or(Sight::Public)
    }

    /// Whether a request brings something that could open more to it; a token that is for another server does not.
    pub(super) fn claims_more(&self, headers: &HeaderMap) -> bool {
        if credentials(headers, "Basic").is_some() {
            return self.gate.admin.is_some();
        }
        let token = credentials(headers, "Bearer").and_then(|text| Token::parse(text).ok());
        token.is_some_and(|token| token.is_for(&self.did))
    }

    /// Who asks. `method`: its NSID. `may_be_new`: whether accounts are heard that are not known here.
    pub(super) async fn who(
        &self,
        headers: &HeaderMap,
        method: &str,
        may_be_new: bool,
    ) -> Result<Who, XrpcError> {
        if let Some(basic) = credentials(headers, "Basic") {
            return self.admin(basic).await;
        }
        let Some(text) = credentials(headers, "Bearer") else {
            return Ok(Who::Nobody);
        };
        let token = Token::parse(text).map_err(refused)?;
        token
            .check(&self.did, method, self.gate.clock.now())
            .map_err(refused)?;
        let did = token.issuer().clone();
        let wanted = did.clone();
        let row = self.look_up(move |mirror| Ok(mirror.account(&wanted)?)).await?;
        if row.is_none() && !may_be_new {
            return Err(XrpcError::RepoNotFound(did));
        }
        let place = self.turn(&self.gate.checks).await?;
        let who = match token.rotation_key() {
            None => self.by_signing_key(&token).await?,
            Some(key) => self.by_rotation_key(&token, key, row.as_ref()).await?,
        };
        drop(place);
        let now = self.gate.clock.now();
        lock(&self.gate.used).admit(&token, now).map_err(refused)?;
        Ok(who)
    }

    async fn by_signing_key(&self, token: &Token) -> Result<Who, XrpcError> {
        let did = token.issuer();
        let mut last = TokenError::Malformed("the account has no signing key");
        for refresh in [false, true] {
            let identity = match self.gate.identities.identity(did, refresh).await {
                Err(ResolveError::TooSoon { .. }) => break,
                identity => identity.map_err(|error| unresolved(did, &error))?,
            };
            match identity.key.as_ref().map(|key| token.verify(key)) {
                Some(Ok(())) => return Ok(Who::Account(did.clone(), None)),
                Some(Err(error)) => last = error,
                None => {}
            }
        }
        Err(refused(last))
    }

    async fn by_rotation_key(
        &self,
        token: &Token,
        key: &str,
        row: Option<&AccountRow>,
    ) -> Result<Who, XrpcError> {
        let did = token.issuer().clone();
        let parsed = SigningKey::from_did_key(key);
        let parsed = parsed.map_err(|error| XrpcError::InvalidToken(format!("kid: {error}")))?;
        token.verify(&parsed).map_err(refused)?;
        let pinned = row.and_then(|row| row.owner.as_ref()?.pinned_key.as_deref());
        if pinned == Some(key) {
            return Ok(Who::Owner(did, key.to_owned()));
        }
        let log = self.gate.identities.audit_log(&did).await;
        let log = log.map_err(|error| unresolved(&did, &error))?;
        let current = log.current().map(|state| &state.rotation_keys);
        if !current.is_some_and(|keys| keys.iter().any(|known| known == key)) {
            let text = "kid is not among the account's rotation keys";
            return Err(XrpcError::InvalidToken(text.to_owned()));
        }
        let host = match row {
            Some(row) => Some(row.host.clone()),
            None => {
                let identity = self.gate.identities.identity(&did, false).await;
                let identity = identity.map_err(|error| unresolved(&did, &error))?;
                identity.host.as_ref().map(|host| host.host().clone())
            }
        };
        let Some(host) = host else {
            return Ok(Who::Account(did, Some(Weak::NotAbove)));
        };
        let others = self.other_keys(&host, &did).await?;
        let now = self.gate.clock.now();
        Ok(match authority::owners_alone(&log, key, &others, now) {
            Ok(()) => Who::Owner(did, key.to_owned()),
            Err(weak) => Who::Account(did, Some(weak)),
        })
    }

    /// The rotation keys of other accounts of a host: of some.
    async fn other_keys(&self, host: &HostName, own: &Did) -> Result<BTreeSet<String>, XrpcError> {
        let known = lock(&self.gate.others).get(host).cloned();
        let sample = match known.filter(|(at, _)| at.elapsed() < OTHERS_FRESH) {
            Some((_, sample)) => sample,
            None => self.read_others(host).await?,
        };
        let others = sample.iter().filter(|(did, _)| did != own);
        Ok(others.flat_map(|(_, keys)| keys.clone()).collect())
    }

    async fn read_others(&self, host: &HostName) -> Result<Arc<Sample>, XrpcError> {
        let (wanted, salt) = (host.clone(), self.gate.clock.random());
        let (listed, chosen) = self
            .look_up(move |mirror| {
                let row = mirror.host(&wanted)?;
                let listed = row.is_some_and(|row| matches!(row.listing, Listing::Finished { .. }));
                Ok((listed, some_accounts_of(mirror, &wanted, salt)?))
            })
            .await?;
        let asked = chosen.len();
        let mut sample = Sample::with_capacity(asked);
        for did in chosen {
            if let Ok(log) = self.gate.identities.audit_log(&did).await {
                let keys = log.current().map(|state| state.rotation_keys.clone());
                sample.push((did, keys.unwrap_or_default()));
            }
        }
        // What is not known to be the owner's alone is not.
        if !listed || sample.len() * 2 < asked {
            return Err(XrpcError::HostKeysUnknown(host.clone()));
        }
        let sample = Arc::new(sample);
        let mut known = lock(&self.gate.others);
        if known.len() >= OTHERS_HOSTS_MAX {
            known.clear();
        }
        known.insert(host.clone(), (Instant::now(), Arc::clone(&sample)));
        Ok(sample)
    }

    async fn turn(&self, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, XrpcError> {
        let place = Arc::clone(places).acquire_owned();
        match tokio::time::timeout(self.limits.queue_timeout, place).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(XrpcError::Busy),
        }
    }

    async fn admin(&self, basic: &str) -> Result<Who, XrpcError> {
        let Some(password) = self.gate.admin.clone() else {
            return Err(XrpcError::Password("this server has no admin_password_file"));
        };
        let digest = sha256(basic.as_bytes());
        if *lock(&self.gate.right) == Some(digest) {
            return Ok(Who::Admin);
        }
        let place = self.turn(&self.gate.passwords).await?;
        {
            let mut wrong = lock(&self.gate.wrong);
            wrong.retain(|at| at.elapsed() < WRONG_PASSWORDS_WINDOW);
            if wrong.len() >= WRONG_PASSWORDS_MAX {
                return Err(XrpcError::TooManyTries);
            }
        }
        let given = BASE64.decode(basic.as_bytes()).ok();
        let given = given.and_then(|bytes| String::from_utf8(bytes).ok());
        let given = given.as_deref().and_then(|text| text.strip_prefix("admin:"));
        let right = match given.map(str::to_owned) {
            Some(given) => {
                let checked = tokio::task::spawn_blocking(move || password.is(&given)).await;
                checked.map_err(|_| XrpcError::Internal)?
            }
            None => false,
        };
        drop(place);
        if !right {
            lock(&self.gate.wrong).push(Instant::now());
            return Err(XrpcError::Password(
                "the name must be admin, and the password the admin's",
            ));
        }
        *lock(&self.gate.right) = Some(digest);
        Ok(Who::Admin)
    }
}

fn unresolved(did: &Did, error: &ResolveError) -> XrpcError {
    match error.is_transient() {
        true => XrpcError::Unresolved(did.clone()),
        false => XrpcError::InvalidToken(format!("{did} cannot be looked up: {error}")),
    }
}

/// Some accounts of a host: those that are known longest, and others by lot.
fn some_accounts_of(mirror: &Mirror<'_>, host: &HostName, salt: u64) -> Result<Vec<Did>, StoreError> {
    let mut oldest: BTreeSet<(u64, Did)> = BTreeSet::new();
    let mut lots: BTreeSet<(Digest, Did)> = BTreeSet::new();
    mirror.each_account(|did, row| {
        if row.host != *host || did.method() != DidMethod::Plc {
            return ControlFlow::Continue(());
        }
        lots.insert((sha256(format!("{salt}{did}").as_bytes()), did.clone()));
        oldest.insert((row.did_number, did));
        if lots.len() > OTHERS_EACH {
            lots.pop_last();
            oldest.pop_last();
        }
        ControlFlow::Continue(())
    })?;
    let oldest = oldest.into_iter().map(|(_, did)| did);
    let chosen: BTreeSet<Did> = oldest.chain(lots.into_iter().map(|(_, did)| did)).collect();
    Ok(chosen.into_iter().collect())
}

#[cfg(test)]
#[path = "who_tests.rs"]
mod tests;
