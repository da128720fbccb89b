//! Fetching from a host and a directory that say what they are told to: whose key a head may be signed by.

mod bulk;
mod catch_up;
mod lax;

use std::sync::{Mutex, OnceLock};

use serde_json::json;

use super::*;
use crate::http::address::AddressPolicy;
use crate::http::connect::Connector;
use crate::http::pace::Pacing;
use crate::http::test_server::{TestServer, answer, serve};
use crate::identity::plc_log::fixtures::LogMaker;
use crate::identity::resolver::ResolverConfig;
use crate::mirror::blobs::BlobFetcher;
use crate::mirror::input::BlobKey;
use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::{BlobRow, Row as _};
use crate::mirror::{KeyRange, View as _};
use crate::repo::car::{encode_block, encode_header, parse_car};
use crate::sim::SimAccount;
use crate::sim::account::post;
use crate::types::HostName;
use crate::verify::KeyStanding;

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);

/// What the one server, host and directory at once, answers.
#[derive(Default)]
struct Answers {
    car: Vec<u8>,
    log: Option<Vec<u8>>,
    logs_asked: usize,
    signing_key: String,
    /// Asks to be left alone.
    limited: bool,
    /// What `getRepo` answers with `since`; none: an error.
    since: Option<Vec<u8>>,
    /// Revs that `since` came with.
    sinces: Vec<String>,
    /// What `getLatestCommit` says.
    latest: Option<Cid>,
    /// The host that the document names, if not the server itself.
    elsewhere: Option<String>,
}

struct World {
    answers: Arc<Mutex<Answers>>,
    server: TestServer,
    store: Arc<MemoryStore>,
    fetcher: Fetcher,
    did: Did,
    _spool: tempfile::TempDir,
}

fn document(answers: &Answers, did: &str, here: &str) -> Vec<u8> {
    let endpoint = answers.elsewhere.as_deref().unwrap_or(here);
    let document = json!({
        "id": did,
        "verificationMethod": [{
            "id": "#atproto", "type": "Multikey", "controller": did,
            "publicKeyMultibase": answers.signing_key.trim_start_matches("did:key:"),
        }],
        "service": [{
            "id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": format!("http://{endpoint}"),
        }],
    });
    serde_json::to_vec(&document).expect("JSON")
}

impl World {
    /// A world with one account that is wanted. Its signing key now has number `current`.
    async fn new(log: &LogMaker, car: Vec<u8>, current: &str) -> Self {
        let did = log.did();
        let answers = Arc::new(Mutex::new(Answers {
            car,
            log: Some(log.answer()),
            signing_key: current.to_owned(),
            ..Answers::default()
        }));
        let here: Arc<OnceLock<String>> = Arc::default();
        let server = serve({
            let (answers, here, did) = (Arc::clone(&answers), Arc::clone(&here), did.clone());
            move |head| {
                let mut answers = answers.lock().expect("no test panics with it");
                let path = head.split(' ').nth(1).unwrap_or_default();
                let not_there = || answer("404 Not Found", &[], b"{}");
                if answers.limited {
                    answer("429 Too Many Requests", &["retry-after: 60"], b"")
                } else if path.ends_with("/log/audit") {
                    answers.logs_asked += 1;
                    answers
                        .log
                        .as_ref()
                        .map_or_else(not_there, |log| answer("200 OK", &[], log))
                } else if path.starts_with("/did:plc:") {
                    let here = here.get().expect("set before anybody asks");
                    answer("200 OK", &[], &document(&answers, did.as_str(), here))
                } else if let Some((_, since)) = path.split_once("&since=") {
                    answers.sinces.push(since.to_owned());
                    let refused = || answer("400 Bad Request", &[], br#"{"error":"InvalidRequest"}"#);
                    answers
                        .since
                        .as_ref()
                        .map_or_else(refused, |car| answer("200 OK", &[], car))
                } else if path.starts_with("/xrpc/com.atproto.sync.getRepo?") {
                    answer("200 OK", &[], &answers.car)
                } else if path.starts_with("/xrpc/com.atproto.sync.getLatestCommit?") {
                    let latest = answers
                        .latest
                        .map(|cid| json!({ "cid": cid.to_string(), "rev": "3k2yihcrp6f2c" }));
                    latest.map_or_else(not_there, |latest| {
                        answer("200 OK", &[], latest.to_string().as_bytes())
                    })
                } else {
                    not_there()
                }
            }
        })
        .await;
        here.set(server.address.to_string()).expect("set once");
        let (clock, store) = (Clock::manual(NOW), Arc::new(MemoryStore::default()));
        let shared: Arc<dyn Store> = Arc::clone(&store) as _;
        let pacing = Pacing::new(0, [(server.address.to_string(), None)]);
        let connector = Connector::new(AddressPolicy::new(true, []));
        let upstream = Upstream::with_pacing(connector, clock.clone(), pacing).expect("root certificates");
        let spool = tempfile::tempdir().expect("a folder");
        let fetcher = Fetcher {
            numbers: Arc::new(Numbers::open(Arc::clone(&shared)).expect("empty store")),
            store: shared,
            upstream: upstream.clone(),
            resolver: Resolver::new(
                upstream,
                clock.clone(),
                ResolverConfig::new(&server.url("/"), true),
            ),
            clock,
            spool_dir: spool.path().to_owned(),
            counts: Arc::default(),
            kept_car_bytes_max: 64 << 20,
        };
        let host: HostName = server.address.to_string().parse().expect("a host");
        let mut batch = Batch::new();
        batch.put(
            Family::Accounts,
            keyspace::encode_account(&did),
            AccountRow::new(1, host, NOW).encode(),
        );
        store.write(batch).expect("writes");
        Self {
            answers,
            server,
            store,
            fetcher,
            did,
            _spool: spool,
        }
    }

    fn set(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.answers.lock().expect("no test panics with it"));
    }

    fn logs_asked(&self) -> usize {
        self.answers.lock().expect("no test panics with it").logs_asked
    }

    async fn fetch(&self) -> Result<VerifiedRepo, FetchFailure> {
        let url = self.server.url("");
        let input = self.fetcher.fetch(self.did.clone(), Vec::new(), &url).await;
        match input.expect("the store does not fail") {
            Input::Fetched(fetched) => match fetched.content {
                FetchedContent::Loaded { repo, .. } => Ok(repo),
                other => panic!("{other:?}"),
            },
            Input::FetchFailed { failure, host, .. } => {
                assert_eq!(host.as_str(), self.server.address.to_string());
                Err(failure)
            }
            other => panic!("{other:?}"),
        }
    }

    fn loaded_records(&self) -> usize {
        let mut records = 0;
        let scanned = self.store.scan(Family::Records, &KeyRange::all(), &mut |_, _| {
            records += 1;
            std::ops::ControlFlow::Continue(())
        });
        scanned.expect("scans");
        records
    }
}

fn signing_key(number: u64) -> String {
    let mut account = SimAccount::new(1, NOW);
    account.rotate_key(number);
    account.key().to_did_key()
}

/// A log whose signing keys were these, one after the other; and the account with a record, its head signed by
/// the key of this number.
fn account(keys: &[u64], signer: u64) -> (LogMaker, SimAccount) {
    let mut log = LogMaker::new(NOW.minus(HOUR * 24));
    let mut prev: Option<String> = None;
    for number in keys {
        log.push(
            LogMaker::operation(&[1, 2], &signing_key(*number), "pds.test", prev.as_deref()),
            2,
        );
        prev = Some(log.last_cid());
        log.later(HOUR);
    }
    let mut account = SimAccount::new(1, NOW);
    account.rotate_key(signer);
    let mut account = account.with_did(log.did());
    account.commit(
        0,
        &[("app.bsky.feed.post/a".to_owned(), Some(post("first")))],
        NOW.minus(HOUR),
    );
    (log, account)
}

fn head_reason(failure: Result<VerifiedRepo, FetchFailure>) -> String {
    match failure.expect_err("must not be taken") {
        FetchFailure::Unproven(text) => text,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_current_key_needs_no_history() {
    let (log, account) = account(&[10, 11], 11);
    let world = World::new(&log, account.export(), &signing_key(11)).await;
    let repo = world.fetch().await.expect("taken");
    assert_eq!(repo.signed_by(), &KeyStanding::Current);
    assert_eq!((world.logs_asked(), world.loaded_records()), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_before_proves_a_fetched_head() {
    let (log, account) = account(&[9, 10, 11], 9);
    let world = World::new(&log, account.export(), &signing_key(11)).await;
    let repo = world.fetch().await.expect("taken");
    let KeyStanding::Earlier(logged) = repo.signed_by() else {
        panic!("it is not the current key's");
    };
    assert_eq!(logged.key().to_did_key(), signing_key(9));
    assert_eq!(repo.rev(), account.rev());
    assert_eq!((world.logs_asked(), world.loaded_records()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_keys_do_not() {
    // A key that the log never named.
    let (log, foreign) = account(&[10, 11], 12);
    let world = World::new(&log, foreign.export(), &signing_key(11)).await;
    assert!(head_reason(world.fetch().await).contains("bad_signature"));
    assert_eq!((world.logs_asked(), world.loaded_records()), (1, 0));

    // The key of an operation that a stronger key undid.
    let (mut log, rogue) = account(&[10, 12], 12);
    log.entries[1]["nullified"] = true.into();
    let first = log.cid(0);
    log.push(
        LogMaker::operation(&[1], &signing_key(11), "pds.test", Some(&first)),
        1,
    );
    let world = World::new(&log, rogue.export(), &signing_key(11)).await;
    assert!(head_reason(world.fetch().await).contains("bad_signature"));
    assert_eq!(world.loaded_records(), 0);

    // More keys than are tried: the oldest is out of reach, the one after it is not.
    let numbers: Vec<u64> = (0..=EARLIER_KEYS_MAX as u64 + 1)
        .map(|number| 20 + number)
        .collect();
    let current = signing_key(*numbers.last().expect("some"));
    for (signer, reached) in [(20, false), (21, true)] {
        let (log, account) = account(&numbers, signer);
        let world = World::new(&log, account.export(), &current).await;
        assert_eq!(world.fetch().await.is_ok(), reached, "{signer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_log_that_verifies_nothing_is_taken() {
    let (log, account) = account(&[10, 11], 10);
    let world = World::new(&log, account.export(), &signing_key(11)).await;
    for bad in [None, Some(b"[]".to_vec())] {
        world.set(|answers| answers.log = bad.clone());
        let failure = world.fetch().await.expect_err("no history");
        assert!(matches!(failure, FetchFailure::NoIdentity(_)), "{failure}");
        assert_eq!(world.loaded_records(), 0);
    }
    world.set(|answers| answers.log = Some(log.answer()));
    world.fetch().await.expect("taken in the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_before_does_not_make_a_torn_repository_whole() {
    let (log, account) = account(&[10, 11], 10);
    let export = account.export();
    let car = parse_car(&export).expect("a CAR");
    let mut torn = encode_header(&car.roots);
    // The exports of simulated accounts begin with the records.
    for (cid, bytes) in &car.blocks[1..] {
        encode_block(&mut torn, cid, bytes);
    }
    let world = World::new(&log, torn, &signing_key(11)).await;
    let reason = head_reason(world.fetch().await);
    assert!(reason.contains("missing"), "{reason}");
    assert_eq!(world.loaded_records(), 0);
    let mut future = account;
    future.commit(0, &[], NOW.plus(HOUR));
    world.set(|answers| answers.car = future.export());
    let reason = head_reason(world.fetch().await);
    assert!(reason.contains("future_rev"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_names_another_host_says_which() {
    let (log, account) = account(&[10], 10);
    let world = World::new(&log, account.export(), &signing_key(10)).await;
    world.set(|answers| answers.elsewhere = Some("far.test".to_owned()));
    let failure = world.fetch().await.expect_err("not this host's");
    let FetchFailure::NotThisHost(identity) = failure else {
        panic!("{failure}");
    };
    assert_eq!(identity.host.as_deref(), Some("far.test"));
    assert_eq!(identity.key, Some(signing_key(10)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_asks_for_it_is_left_alone_without_a_failure() {
    let (log, account) = account(&[10], 10);
    let world = World::new(&log, account.export(), &signing_key(10)).await;
    world.fetch().await.expect("taken");
    world.set(|answers| answers.limited = true);
    let url = world.server.url("");
    let task = keyspace::encode_task(0, &Task::FetchRepo(world.did.clone()));
    let fetch = || world.fetcher.fetch(world.did.clone(), task.clone(), &url);
    let after = NOW.plus(Duration::from_secs(60));
    match fetch().await {
        Ok(Input::FetchFailed { retry_at, .. }) => assert!(retry_at >= after),
        other => panic!("{other:?}"),
    }
    let asked = world.server.requests();
    for _ in 0..3 {
        match fetch().await {
            Ok(Input::TaskDelayed {
                key,
                task: again,
                retry_at,
            }) => {
                assert_eq!((key, again), (task.clone(), Task::FetchRepo(world.did.clone())));
                assert!(retry_at >= after, "{retry_at}");
            }
            other => panic!("{other:?}"),
        }
    }
    let blob = BlobKey {
        did: world.did.clone(),
        did_number: 1,
        digest: *Cid::of_blob(b"picture").digest(),
    };
    let mut batch = Batch::new();
    let row = BlobRow::wanted(None, None, NOW);
    batch.put(
        Family::Blobs,
        keyspace::encode_blob(1, &blob.digest),
        row.encode(),
    );
    world.store.write(batch).expect("writes");
    let blobs = BlobFetcher {
        store: Arc::clone(&world.fetcher.store),
        upstream: world.fetcher.upstream.clone(),
        clock: world.fetcher.clock.clone(),
        bytes_max: 1000,
    };
    let host = "pds.test".parse().expect("a host");
    let delayed = blobs.fetch(&host, blob, task.clone(), &url).await;
    assert!(matches!(delayed, Ok(Input::TaskDelayed { retry_at, .. }) if retry_at >= after));
    assert_eq!(world.server.requests(), asked);
}
