//! Who is believed, and for what: over real sockets, with identities that a test sets.

use serde_json::json;

use super::*;
use crate::identity::plc_log::fixtures::{LogMaker, key, secret};
use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::{AccountStatus, HostRow, Owner, Row as _};
use crate::mirror::{Batch, Family, Store as _, keyspace};
use crate::repo::signing_key::SecretKey;
use crate::restore::token::service_token;
use crate::serve::fixture::{Account, Answer, Directory, Server, admin_header, post, record};
use crate::types::Timestamp;

const SERVICE: &str = "did:web:backup.example.com";
const SNAPSHOT: &str = "dev.firekeep.backup.requestSnapshot";
const REMOVE: &str = "dev.firekeep.backup.removeAccount";
const HISTORY: &str = "dev.firekeep.backup.listRevisions";
/// Keys by number: what signs commits; the host's rotation key; the owner's; one that the host adds.
const SIGNING: u8 = 10;
const HOST: u8 = 3;
const OWNER: u8 = 1;
const ADDED: u8 = 5;
const HOUR: Duration = Duration::from_secs(3600);

struct World {
    store: MemoryStore,
    server: Server,
    account: Account,
    log: LogMaker,
    unique: std::cell::Cell<u64>,
}

/// An account at a host that has another one, both with the host's rotation key.
async fn world() -> World {
    let store = MemoryStore::new();
    let start = Timestamp::from_micros(1_700_000_000_000_000);
    let mut log = LogMaker::new(start.minus(HOUR * 1000));
    log.push(
        LogMaker::operation(&[OWNER, HOST], &key(SIGNING), "pds.example.com", None),
        HOST,
    );
    let mut other = LogMaker::new(start.minus(HOUR * 2000));
    other.push(
        LogMaker::operation(&[7, HOST], &key(12), "pds.example.com", None),
        HOST,
    );
    let mut account = Account::new("alice", 1).record("one", 5, &record("text"));
    account.did = log.did();
    account.save(&store);
    let mut neighbour = Account::new("bob", 2).record("one", 5, &record("text"));
    neighbour.did = other.did();
    neighbour.save(&store);
    let host: HostName = "pds.example.com".parse().expect("a host");
    let mut row = HostRow::new("https://pds.example.com");
    row.listing = Listing::Finished { at: start };
    let mut batch = Batch::new();
    batch.put(Family::Hosts, keyspace::encode_host(&host), row.encode());
    store.write(batch).expect("written");
    let server = Server::start(&store).await;
    let world = World {
        store,
        server,
        account,
        log,
        unique: std::cell::Cell::new(0),
    };
    let identity = Directory::identity(&world.account.did, &secret(SIGNING), "pds.example.com");
    lock(&world.server.directory.identities).insert(world.account.did.clone(), identity);
    world.set_log(&world.log);
    world.set_log(&other);
    world
}

impl World {
    fn set_log(&self, log: &LogMaker) {
        let parsed = PlcLog::parse(&log.did(), &log.answer()).expect("verifies");
        lock(&self.server.directory.logs).insert(log.did(), Arc::new(parsed));
    }

    fn next(&self) -> u64 {
        self.unique.set(self.unique.get() + 1);
        self.unique.get()
    }

    /// A token of the account's PDS.
    fn token(&self, key: &SecretKey, method: &str) -> String {
        let now = self.server.clock.now();
        service_token(key, &self.account.did, SERVICE, method, now, self.next()).to_string()
    }

    /// One that a rotation key signs.
    fn rotated(&self, number: u8, method: &str) -> String {
        let now = self.server.clock.now().millis() / 1000;
        let curve = match secret(number).public().curve() {
            crate::repo::signing_key::Curve::K256 => "ES256K",
            crate::repo::signing_key::Curve::P256 => "ES256",
        };
        let header = json!({ "alg": curve, "kid": key(number) });
        let claims = json!({
            "iss": self.account.did.as_str(), "aud": SERVICE, "lxm": method,
            "iat": now, "exp": now + 60, "jti": self.next().to_string(),
        });
        let part =
            |value: &serde_json::Value| data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let sig = data_encoding::BASE64URL_NOPAD.encode(&secret(number).sign(signed.as_bytes()));
        format!("{signed}.{sig}")
    }

    async fn post(&self, method: &str, token: &str, body: &str) -> Answer {
        let headers = format!("authorization: Bearer {token}\r\n");
        post(self.server.xrpc, &format!("/xrpc/{method}"), &headers, body).await
    }

    async fn get(&self, method: &str, token: &str) -> Answer {
        let headers = format!("authorization: Bearer {token}\r\n");
        let path = format!("/xrpc/{method}?did={}", self.account.did);
        self.server.ask("GET", &path, &headers).await
    }

    /// How a rotation key fares that asks for the history. There is no archive here: who is let in is told that.
    async fn history(&self, number: u8) -> (u16, String) {
        self.get(HISTORY, &self.rotated(number, HISTORY)).await.error()
    }
}

const LET_IN: u16 = 503;

#[tokio::test]
async fn a_token_counts_once_for_one_method_and_one_service() {
    let world = world().await;
    let good = world.token(&secret(SIGNING), SNAPSHOT);
    assert_eq!(world.post(SNAPSHOT, &good, "").await.status, 200);
    let (status, name) = world.post(SNAPSHOT, &good, "").await.error();
    assert_eq!((status, name.as_str()), (401, "InvalidToken"), "it was used");
    let now = world.server.clock.now();
    let did = &world.account.did;
    let signing = secret(SIGNING);
    for (why, token) in [
        ("another method", world.token(&signing, REMOVE)),
        ("another key", world.token(&secret(12), SNAPSHOT)),
        ("the other curve", world.token(&secret(11), SNAPSHOT)),
        (
            "another service",
            service_token(&signing, did, "did:web:pds.test", SNAPSHOT, now, world.next()).to_string(),
        ),
        (
            "expired",
            service_token(&signing, did, SERVICE, SNAPSHOT, now.minus(HOUR), world.next()).to_string(),
        ),
        (
            "not yet",
            service_token(&signing, did, SERVICE, SNAPSHOT, now.plus(HOUR), world.next()).to_string(),
        ),
        ("none", "nonsense".to_owned()),
    ] {
        let (status, name) = world.post(SNAPSHOT, &token, "").await.error();
        assert_eq!((status, name.as_str()), (401, "InvalidToken"), "{why}");
    }
    let (status, name) = post(world.server.xrpc, &format!("/xrpc/{SNAPSHOT}"), "", "")
        .await
        .error();
    assert_eq!((status, name.as_str()), (401, "AuthMissing"));
    assert_eq!(
        lock(&world.server.control.told).len(),
        1,
        "nothing was done for those"
    );
    // Nobody is looked up who is not known here.
    let looks = world
        .server
        .directory
        .looks
        .load(std::sync::atomic::Ordering::SeqCst);
    let stranger: Did = "did:web:stranger.example".parse().expect("a DID");
    let token = service_token(&signing, &stranger, SERVICE, SNAPSHOT, now, 1);
    assert_eq!(world.post(SNAPSHOT, &token, "").await.error().1, "RepoNotFound");
    assert_eq!(
        world
            .server
            .directory
            .looks
            .load(std::sync::atomic::Ordering::SeqCst),
        looks
    );
}

#[tokio::test]
async fn a_key_that_changed_is_read_again() {
    let world = world().await;
    let fresh = Directory::identity(&world.account.did, &secret(12), "pds.example.com");
    lock(&world.server.directory.fresh).insert(world.account.did.clone(), fresh);
    let answer = world
        .post(SNAPSHOT, &world.token(&secret(12), SNAPSHOT), "")
        .await;
    assert_eq!(answer.status, 200, "{:?}", String::from_utf8_lossy(&answer.body));
}

#[tokio::test]
async fn a_token_of_the_pds_asks_and_neither_opens_nor_destroys() {
    let world = world().await;
    let token = |method| world.token(&secret(SIGNING), method);
    let due = world.post(REMOVE, &token(REMOVE), "").await.json();
    assert_eq!(due["removed"], false);
    assert!(due["removalDue"].is_string(), "{due}");
    for (method, body) in [(REMOVE, "{\"now\":true}"), (HISTORY, "")] {
        let answer = match body {
            "" => world.get(method, &token(method)).await,
            body => world.post(method, &token(method), body).await,
        };
        let (status, name) = answer.error();
        assert_eq!((status, name.as_str()), (403, "Forbidden"), "{method}");
    }
    let told = lock(&world.server.control.told).clone();
    assert!(told.iter().all(|told| !told.starts_with("forget")), "{told:?}");
    // Nor does it speak of others.
    let other = "{\"did\":\"did:plc:zzzzzzzzzzzzzzzzzzzzzzzz\"}";
    assert_eq!(world.post(REMOVE, &token(REMOVE), other).await.error().0, 403);
}

#[tokio::test]
async fn the_owners_key_opens_and_destroys_and_the_hosts_does_not() {
    let world = world().await;
    assert_eq!(world.history(OWNER).await.0, LET_IN);
    // The host holds this one, for its other account has it too.
    assert_eq!(world.history(HOST).await.0, 403);
    assert_eq!(world.history(7).await.0, 401, "another account's key");
    let now = "{\"now\":true}";
    assert_eq!(
        world
            .post(REMOVE, &world.rotated(HOST, REMOVE), now)
            .await
            .error()
            .0,
        403
    );
    let removed = world
        .post(REMOVE, &world.rotated(OWNER, REMOVE), now)
        .await
        .json();
    assert_eq!(removed["removed"], true);
    let told = lock(&world.server.control.told).clone();
    assert!(told.iter().any(|told| told.starts_with("forget")), "{told:?}");
}

#[tokio::test]
async fn a_pds_that_adds_a_key_and_asks_at_once_gets_nothing() {
    let mut world = world().await;
    let prev = world.log.last_cid();
    world.log.later(HOUR * 999);
    let keys = [ADDED, OWNER, HOST];
    world.log.push(
        LogMaker::operation(&keys, &key(SIGNING), "pds.example.com", Some(&prev)),
        HOST,
    );
    world.set_log(&world.log);
    assert_eq!(world.history(ADDED).await.0, 403, "an hour old");
    let now = "{\"now\":true}";
    assert_eq!(
        world
            .post(REMOVE, &world.rotated(ADDED, REMOVE), now)
            .await
            .error()
            .0,
        403
    );
    // Nor does it get it pinned.
    let sign_up = "dev.firekeep.backup.signUp";
    let signed = world
        .post(sign_up, &world.rotated(ADDED, sign_up), "")
        .await
        .json();
    assert_eq!(signed["pinnedKey"], serde_json::Value::Null);
    let told = lock(&world.server.control.told).clone();
    assert!(
        told.iter()
            .all(|told| !told.contains(&key(ADDED)) && !told.starts_with("forget")),
        "{told:?}"
    );
    assert_eq!(
        world.history(OWNER).await.0,
        LET_IN,
        "the owner's goes on to count"
    );
    // For 72 hours the owner could have undone it.
    world.server.clock.advance(HOUR * 71);
    assert_eq!(world.history(ADDED).await.0, LET_IN);
}

#[tokio::test]
async fn a_pinned_key_opens_whatever_becomes_of_the_identity() {
    let world = world().await;
    let sign_up = "dev.firekeep.backup.signUp";
    let signed = world
        .post(sign_up, &world.rotated(OWNER, sign_up), "")
        .await
        .json();
    assert_eq!(signed["pinnedKey"], key(OWNER));
    let mut row = world.account.row();
    row.owner = Some(Owner {
        pinned_key: Some(key(OWNER)),
        ..Owner::default()
    });
    let mut batch = Batch::new();
    batch.put(
        Family::Accounts,
        keyspace::encode_account(&world.account.did),
        row.encode(),
    );
    world.store.write(batch).expect("written");
    lock(&world.server.directory.logs).clear();
    assert_eq!(world.history(OWNER).await.0, LET_IN, "no directory is asked");
    assert_eq!(world.history(HOST).await.0, 401);
}

#[tokio::test]
async fn without_knowing_the_hosts_keys_nothing_is_opened() {
    let world = world().await;
    lock(&world.server.directory.logs).retain(|did, _| *did == world.account.did);
    // One of two could be read; that is not enough to tell, once there are more.
    for number in 3..6 {
        Account::new(&format!("other{}", char::from(b'a' + number)), u64::from(number)).save(&world.store);
    }
    let (status, name) = world.history(OWNER).await;
    assert_eq!((status, name.as_str()), (503, "ServiceUnavailable"));
    let message = world.get(HISTORY, &world.rotated(OWNER, HISTORY)).await.json()["message"].to_string();
    assert!(message.contains("rotation keys"), "{message}");
}

#[tokio::test]
async fn what_is_hidden_is_shown_to_whom_it_belongs() {
    for (status, own) in [
        (AccountStatus::Deactivated, true),
        (AccountStatus::Suspended, true),
        (AccountStatus::Takendown, true),
        (AccountStatus::Deleted, false),
    ] {
        let mut world = world().await;
        world.account.status = status.clone();
        world.account.save(&world.store);
        for method in [
            "com.atproto.sync.getRepo",
            "com.atproto.sync.getLatestCommit",
            "com.atproto.sync.listBlobs",
        ] {
            let public = world
                .server
                .get(&format!("/xrpc/{method}?did={}", world.account.did))
                .await;
            let hidden = public.error();
            assert_eq!(public.status, 400, "{status:?}");
            // A token of another server, or a bad one, opens nothing and is no error of its own.
            let foreign = service_token(
                &secret(SIGNING),
                &world.account.did,
                "did:web:pds.test",
                method,
                world.server.clock.now(),
                1,
            );
            for token in [
                foreign.to_string(),
                world.token(&secret(12), method),
                "x".to_owned(),
            ] {
                assert_eq!(
                    world.get(method, &token).await.error(),
                    hidden,
                    "{method} {status:?}"
                );
            }
            let seen = world.get(method, &world.token(&secret(SIGNING), method)).await;
            assert_eq!(seen.status == 200, own, "{method} {status:?}");
            let seen = world.get(method, &world.rotated(OWNER, method)).await;
            assert_eq!(seen.status, 200, "{method} {status:?} by its owner's key");
            let path = format!("/xrpc/{method}?did={}", world.account.did);
            let seen = world.server.ask("GET", &path, &admin_header()).await;
            assert_eq!(seen.status, 200, "{method} {status:?} by the admin");
        }
    }
}

#[tokio::test]
async fn the_admin_is_who_knows_the_password_and_guessing_ends() {
    let world = world().await;
    let pin = "/xrpc/dev.firekeep.backup.pin";
    let body = json!({ "did": world.account.did.as_str() }).to_string();
    let basic = |text: &str| format!("authorization: Basic {}\r\n", BASE64.encode(text.as_bytes()));
    let first = post(world.server.xrpc, pin, &admin_header(), &body).await;
    assert_eq!(first.json()["pinned"], true);
    let token = world.rotated(OWNER, "dev.firekeep.backup.pin");
    let owner = world.post("dev.firekeep.backup.pin", &token, &body).await;
    assert_eq!(owner.error().0, 403, "an owner is no admin");
    for (number, guess) in [
        "admin:wrong password",
        "root:correct horse",
        "admin",
        "x",
        "admin:correct horse\n",
    ]
    .iter()
    .cycle()
    .take(WRONG_PASSWORDS_MAX)
    .enumerate()
    {
        let answer = post(world.server.xrpc, pin, &basic(guess), &body).await;
        assert_eq!(
            answer.error(),
            (401, "AuthenticationRequired".to_owned()),
            "{number} {guess:?}"
        );
    }
    let refused = post(world.server.xrpc, pin, &basic("admin:wrong password"), &body).await;
    assert_eq!(refused.error(), (429, "RateLimitExceeded".to_owned()));
    assert_eq!(refused.header("retry-after"), "60");
    // Whoever was let in before still is.
    assert_eq!(
        post(world.server.xrpc, pin, &admin_header(), &body).await.status,
        200
    );
}
