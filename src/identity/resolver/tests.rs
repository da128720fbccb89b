//! The resolver against a directory that answers, fails, and stalls.

#![allow(clippy::disallowed_methods, reason = "test: askers run beside the test")]

use std::sync::atomic::AtomicBool;

use super::*;
use crate::http::address::AddressPolicy;
use crate::http::test_server::{Step, TestServer, answer, serve};

const START: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

fn alice() -> Did {
    "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("valid")
}

fn document(did: &str, handle: &str) -> Vec<u8> {
    format!(r#"{{"id":"{did}","alsoKnownAs":["at://{handle}"]}}"#).into_bytes()
}

/// The DID that a request asks the directory for.
fn asked(head: &str) -> String {
    head.split(' ')
        .nth(1)
        .unwrap_or("")
        .trim_start_matches('/')
        .to_owned()
}

struct Setup {
    server: TestServer,
    clock: Clock,
    resolver: Resolver,
}

async fn setup(respond: impl Fn(&str) -> Vec<Step> + Send + Sync + 'static) -> Setup {
    let server = serve(respond).await;
    let clock = Clock::manual(START);
    let upstream = Upstream::new(AddressPolicy::new(true, []), clock.clone()).expect("root certificates");
    let config = ResolverConfig::new(&server.url("/"), true);
    let resolver = Resolver::new(upstream, clock.clone(), config);
    Setup {
        server,
        clock,
        resolver,
    }
}

/// A directory that knows everybody.
async fn good() -> Setup {
    setup(|head| answer("200 OK", &[], &document(&asked(head), "alice.test"))).await
}

fn number(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[tokio::test]
async fn what_was_resolved_is_remembered_for_a_day() {
    let Setup {
        server,
        clock,
        resolver,
    } = good().await;
    assert_eq!(resolver.get(&alice()), None);
    let identity = resolver.resolve(&alice(), false).await.expect("known");
    assert_eq!(identity.handle.as_deref(), Some("alice.test"));
    assert_eq!(identity.resolved_at, START);
    assert_eq!(resolver.get(&alice()), Some(identity));
    clock.advance(Duration::from_secs(23 * 3600));
    resolver.resolve(&alice(), false).await.expect("known");
    assert_eq!(server.requests(), 1);
    let counts = resolver.counts();
    assert_eq!((number(&counts.hits), number(&counts.stale_hits)), (2, 0));
    assert_eq!((number(&counts.misses), number(&counts.fetched)), (2, 1));
}

#[tokio::test]
async fn a_stale_document_answers_and_is_fetched_again_behind_the_scenes() {
    let Setup {
        server,
        clock,
        resolver,
    } = good().await;
    resolver.resolve(&alice(), false).await.expect("known");
    clock.advance(Duration::from_secs(25 * 3600));
    assert_eq!(resolver.get(&alice()).expect("stale").resolved_at, START);
    let cancel = CancellationToken::new();
    let running = tokio::spawn({
        let (resolver, cancel) = (resolver.clone(), cancel.clone());
        async move { resolver.run(cancel).await }
    });
    let later = clock.now();
    while resolver.get(&alice()).expect("never gone").resolved_at != later {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // However often it was asked for meanwhile, one fetch is enough.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(server.requests(), 2);
    cancel.cancel();
    running.await.expect("no panic");
}

#[tokio::test]
async fn one_fetch_serves_all_who_ask() {
    let Setup { server, resolver, .. } = setup(|head| {
        let mut steps = vec![Step::Wait(Duration::from_millis(100))];
        steps.extend(answer("200 OK", &[], &document(&asked(head), "alice.test")));
        steps
    })
    .await;
    let did = alice();
    let outcomes = futures_util::future::join_all((0..50).map(|_| resolver.resolve(&did, false))).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(server.requests(), 1);
    assert!(lock(&resolver.0.flights).is_empty());
}

#[tokio::test]
async fn a_fetch_that_nobody_waits_for_is_given_up_and_can_be_begun_again() {
    let Setup { server, resolver, .. } = setup(|_| vec![Step::Hang]).await;
    let places = resolver.0.plc_places.available_permits();
    for round in 1..=3 {
        let waited =
            tokio::time::timeout(Duration::from_millis(100), resolver.resolve(&alice(), false)).await;
        assert!(waited.is_err());
        assert_eq!(server.requests(), round);
    }
    assert_eq!(resolver.0.plc_places.available_permits(), places);
    assert!(lock(&resolver.0.flights).is_empty());
}

#[tokio::test]
async fn a_refresh_passes_the_cache_by_once_a_minute() {
    let Setup {
        server,
        clock,
        resolver,
    } = good().await;
    resolver.resolve(&alice(), false).await.expect("known");
    // The first one at once, however fresh the document is: a key may just have changed.
    resolver.resolve(&alice(), true).await.expect("refreshed");
    assert_eq!(server.requests(), 2);
    clock.advance(Duration::from_secs(20));
    let refused = resolver.resolve(&alice(), true).await;
    let expected = ResolveError::TooSoon {
        interval: Duration::from_secs(60),
        wait: Duration::from_secs(40),
    };
    assert_eq!(refused, Err(expected));
    assert!(resolver.resolve(&alice(), false).await.is_ok());
    assert_eq!(
        (server.requests(), number(&resolver.counts().refreshes_refused)),
        (2, 1)
    );
    clock.advance(Duration::from_secs(40));
    resolver.resolve(&alice(), true).await.expect("refreshed");
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn a_directory_that_fails_takes_nothing_away() {
    let down = Arc::new(AtomicBool::new(false));
    let is_down = Arc::clone(&down);
    let Setup {
        server,
        clock,
        resolver,
    } = setup(move |head| {
        if is_down.load(Ordering::SeqCst) {
            answer("503 Service Unavailable", &[], b"")
        } else {
            answer("200 OK", &[], &document(&asked(head), "alice.test"))
        }
    })
    .await;
    resolver.resolve(&alice(), false).await.expect("known");
    down.store(true, Ordering::SeqCst);
    let failed = resolver
        .resolve(&alice(), true)
        .await
        .expect_err("the directory is down");
    assert!(failed.is_transient(), "{failed}");
    // Nothing was refreshed, and nothing is asked again at once.
    assert_eq!(resolver.resolve(&alice(), true).await, Err(failed));
    assert_eq!(server.requests(), 2);
    assert!(resolver.get(&alice()).is_some());
    assert!(resolver.resolve(&alice(), false).await.is_ok());
    // A DID that was never seen: the failure answers for a while, then it is tried again.
    let bob: Did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa".parse().expect("valid");
    let before = server.requests();
    assert!(resolver.resolve(&bob, false).await.is_err());
    assert!(resolver.resolve(&bob, false).await.is_err());
    assert_eq!(server.requests() - before, 1);
    down.store(false, Ordering::SeqCst);
    clock.advance(Duration::from_secs(16));
    assert!(
        resolver.resolve(&alice(), true).await.is_ok(),
        "a failed refresh costs no minute"
    );
    assert!(resolver.resolve(&bob, false).await.is_ok());
}

#[tokio::test]
async fn lasting_failures_take_the_document_away() {
    for (status, expected) in [
        ("404 Not Found", ResolveError::NotFound),
        ("410 Gone", ResolveError::Tombstoned),
    ] {
        let gone = Arc::new(AtomicBool::new(false));
        let is_gone = Arc::clone(&gone);
        let Setup {
            server,
            clock,
            resolver,
        } = setup(move |head| {
            if is_gone.load(Ordering::SeqCst) {
                answer(status, &[], b"{}")
            } else {
                answer("200 OK", &[], &document(&asked(head), "alice.test"))
            }
        })
        .await;
        resolver.resolve(&alice(), false).await.expect("known");
        gone.store(true, Ordering::SeqCst);
        assert_eq!(resolver.resolve(&alice(), true).await, Err(expected.clone()));
        assert!(!expected.is_transient());
        assert_eq!(resolver.get(&alice()), None);
        clock.advance(Duration::from_secs(299));
        assert_eq!(resolver.resolve(&alice(), false).await, Err(expected.clone()));
        assert_eq!(server.requests(), 2);
        clock.advance(Duration::from_secs(1));
        assert_eq!(resolver.resolve(&alice(), false).await, Err(expected));
        assert_eq!(server.requests(), 3);
    }
}

#[tokio::test]
async fn documents_that_are_wrong_or_too_long_are_refused() {
    let Setup { resolver, .. } = setup(|head| match asked(head).as_str() {
        "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa" => answer("200 OK", &[], &document("did:plc:other", "a.test")),
        "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb" => answer("200 OK", &[], &vec![b' '; 64 * 1024 + 1]),
        _ => answer("302 Found", &["location: /"], b""),
    })
    .await;
    let outcome = |id: &str| {
        let did: Did = format!("did:plc:{}", id.repeat(24)).parse().expect("valid");
        let resolver = resolver.clone();
        async move { resolver.resolve(&did, false).await.expect_err("refused") }
    };
    assert_eq!(
        outcome("a").await,
        ResolveError::Document(DocumentError::OtherDid)
    );
    assert!(matches!(
        outcome("b").await,
        ResolveError::Fetch(FetchError::TooLarge { .. })
    ));
    assert!(matches!(
        outcome("c").await,
        ResolveError::Fetch(FetchError::Redirected { .. })
    ));
}

#[tokio::test]
async fn a_directory_that_asks_for_time_gets_it() {
    let Setup {
        server,
        clock,
        resolver,
    } = setup(|_| answer("429 Too Many Requests", &["retry-after: 30"], b"")).await;
    let bob: Did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa".parse().expect("valid");
    assert!(resolver.resolve(&alice(), false).await.is_err());
    clock.advance(Duration::from_secs(10));
    let paused = resolver.resolve(&bob, false).await;
    let wait = Duration::from_secs(20);
    assert_eq!(paused, Err(ResolveError::Paused { wait }));
    assert_eq!(server.requests(), 1);
    clock.advance(Duration::from_secs(20));
    assert!(matches!(
        resolver.resolve(&alice(), false).await,
        Err(ResolveError::Fetch(_))
    ));
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn no_more_requests_at_once_than_allowed() {
    let Setup { server, resolver, .. } = setup(|_| vec![Step::Hang]).await;
    let dids: Vec<Did> = "abcdefghijklmnopqrstuvwxyz"
        .chars()
        .map(|c| {
            format!("did:plc:{}", c.to_string().repeat(24))
                .parse()
                .expect("valid")
        })
        .collect();
    let all = futures_util::future::join_all(dids.iter().map(|did| resolver.resolve(did, false)));
    assert!(
        tokio::time::timeout(Duration::from_millis(300), all)
            .await
            .is_err()
    );
    assert_eq!(server.requests(), 8);
}

#[tokio::test]
async fn web_dids_are_looked_up_on_their_host() {
    let server = serve(|head| {
        assert!(head.starts_with("GET /.well-known/did.json "), "{head}");
        let host = head
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .expect("a host");
        let did = format!("did:web:{}", host.replace(':', "%3A"));
        answer("200 OK", &[], &document(&did, "web.test"))
    })
    .await;
    let Setup { resolver, .. } = good().await;
    let did: Did = format!("did:web:localhost%3A{}", server.address.port())
        .parse()
        .expect("valid");
    let identity = resolver.resolve(&did, false).await.expect("served");
    assert_eq!(identity.handle.as_deref(), Some("web.test"));
    let nowhere: Did = "did:web:pds.internal".parse().expect("valid");
    let outcome = resolver.resolve(&nowhere, false).await;
    assert!(
        matches!(outcome, Err(ResolveError::Unresolvable(_))),
        "{outcome:?}"
    );
}

/// A directory that answers with this log to whoever asks for one.
async fn with_log(log: &crate::identity::plc_log::fixtures::LogMaker) -> Setup {
    let bytes = log.answer();
    setup(move |head| {
        if asked(head).ends_with("/log/audit") {
            answer("200 OK", &[], &bytes)
        } else {
            answer("404 Not Found", &[], b"{}")
        }
    })
    .await
}

fn short_log() -> crate::identity::plc_log::fixtures::LogMaker {
    use crate::identity::plc_log::fixtures::{LogMaker, key};

    let mut log = LogMaker::new(START.minus(Duration::from_secs(3600)));
    log.push(LogMaker::operation(&[1], &key(2), "pds.test", None), 1);
    log
}

#[tokio::test]
async fn an_audit_log_is_verified_and_kept_for_a_minute() {
    let log = short_log();
    let Setup {
        server,
        clock,
        resolver,
    } = with_log(&log).await;
    let did = log.did();
    let fetched = resolver.audit_log(&did).await.expect("verifies");
    assert_eq!(fetched.signing_keys().len(), 1);
    resolver.audit_log(&did).await.expect("kept");
    assert_eq!(server.requests(), 1);
    clock.advance(Duration::from_secs(60));
    resolver.audit_log(&did).await.expect("fetched again");
    assert_eq!(server.requests(), 2);

    // Another DID's log, and a DID that has none.
    let error = resolver.audit_log(&alice()).await.expect_err("another's log");
    assert!(
        matches!(error, ResolveError::Log(_)) && !error.is_transient(),
        "{error}"
    );
    let web = "did:web:alice.test".parse().expect("valid");
    let error = resolver.audit_log(&web).await.expect_err("no log");
    assert!(matches!(error, ResolveError::Unresolvable(_)), "{error}");
}

#[tokio::test]
async fn an_audit_log_that_lies_or_is_too_long_is_refused() {
    let mut log = short_log();
    log.entries[0]["nullified"] = true.into();
    let Setup { resolver, .. } = with_log(&log).await;
    let error = resolver.audit_log(&log.did()).await.expect_err("a lie");
    assert!(matches!(error, ResolveError::Log(_)), "{error}");

    let bytes = vec![b' '; usize::try_from(LOG_BYTES_MAX).expect("small") + 1];
    let Setup { resolver, .. } = setup(move |_| answer("200 OK", &[], &bytes)).await;
    let error = resolver.audit_log(&alice()).await.expect_err("too long");
    assert!(
        matches!(error, ResolveError::Fetch(FetchError::TooLarge { .. })),
        "{error}"
    );
    assert_eq!(
        resolver.0.plc_places.available_permits(),
        resolver.0.config.plc_requests_max
    );
}
