//! A real store behind a proxy that does what stores and networks do on bad days.

use std::time::Duration;

use firekeep::archive::bucket::{Body, Bucket, PutOptions, PutOutcome};
use firekeep::archive::content_type::ContentType;
use firekeep::archive::log_file::Entry;
use firekeep::archive::names;
use firekeep::archive::probe::probe;
use firekeep::archive::probe::verdict::{Class, CreateOnly};
use firekeep::archive::settings::ArchiveConfig;
use firekeep::archive::writer::{self, ClaimError, How};
use firekeep::clock::Clock;

use super::archive::{Log, NOW, Objects, Writer, fill, replace};
use super::proxy::{Fault, Proxy};
use super::server::{self, Server};
use super::verify::{ALL, run};

/// Of a thousand requests, so many go wrong.
const RATE: u64 = 300;
const OBJECTS: usize = 12;
/// Callers try until it works. Something that does not come to an end is a fault of ours.
const TRIES_MAX: u32 = 200;

fn before(server: &Server) -> Proxy {
    Proxy::start(server.input.endpoint.as_ref().expect("set"))
}

/// The server's bucket through the proxy, under a prefix of its own.
async fn through(server: &Server, proxy: &Proxy, prefix: &str) -> Bucket {
    let mut input = server.input.clone();
    input.endpoint = Some(proxy.url.clone());
    let url = format!("s3://{}/test/{prefix}", server.bucket);
    let mut config = ArchiveConfig::parse(&url, &input).expect("valid");
    config.s3.timeouts.attempt = Duration::from_secs(5);
    Bucket::open(&config).await.expect("opens")
}

/// Does what must work in the end.
async fn until_ok<T, E: std::fmt::Display>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    let mut failed = String::new();
    for _ in 0..TRIES_MAX {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => failed = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: {failed}");
}

fn object(number: usize) -> (String, Vec<u8>) {
    (
        format!("v1/odd/{number:03}"),
        format!("object {number}").repeat(50).into_bytes(),
    )
}

/// Puts, lists and reads while one kind of fault happens all the time.
async fn survive(server: &Server, fault: Fault) -> String {
    let proxy = before(server);
    let bucket = through(server, &proxy, &format!("faults-{fault:?}")).await;
    proxy.faults(&[(fault, RATE)]);
    let options = PutOptions::create(ContentType::binary());
    for number in 0..OBJECTS {
        let (name, bytes) = object(number);
        until_ok(&name, async || {
            bucket
                .put(&name, Body::Bytes(bytes.clone().into()), &options)
                .await
        })
        .await;
        // What was acknowledged is there at once, whatever a list says.
        let body = until_ok(&name, async || match bucket.get(&name).await? {
            Some(body) => body.bytes(10_000).await.map(Some),
            None => Ok(None),
        });
        assert_eq!(body.await.as_deref(), Some(bytes.as_slice()), "{fault:?}: {name}");
        let listed = until_ok("list", async || bucket.list("v1/odd/", None).await).await;
        assert!(
            listed.objects.len() <= number + 1,
            "{fault:?}: nothing that is not there"
        );
        // Another object under a name that is taken.
        let other = until_ok(&name, async || {
            bucket.put(&name, Body::Bytes("other".into()), &options).await
        });
        assert_eq!(
            other.await,
            PutOutcome::AlreadyThere,
            "{fault:?}: {name} is not replaced"
        );
    }
    let fired = proxy.assert_fired(&[fault]);
    proxy.clear();
    for number in 0..OBJECTS {
        let (name, bytes) = object(number);
        let body = bucket.get(&name).await.expect("reads").expect("there");
        assert_eq!(
            body.bytes(10_000).await.expect("whole"),
            bytes,
            "{fault:?}: {name}"
        );
    }
    let listed = bucket.list("v1/odd/", None).await.expect("lists");
    assert_eq!(listed.objects.len(), OBJECTS, "{fault:?}");
    fired
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_there_whatever_happens_to_requests() {
    let Some(server) = server::running() else { return };
    let runs = Fault::PASSING.map(|fault| survive(&server, fault));
    let fired = futures_util::future::join_all(runs).await;
    eprintln!(
        "each {OBJECTS} objects put, read and listed: {}",
        fired.join(", ")
    );
}

/// A list that lacks the newest makes nobody go on from what is older, and no claim unseen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_list_hides_no_claim_and_no_segment() {
    let Some(server) = server::running() else { return };
    let proxy = before(&server);
    let bucket = through(&server, &proxy, "late").await;
    let mut alice = Writer::new("did:web:alice.example.com");
    let objects = Objects::from([alice.identity(), alice.snapshot()]);
    fill(&bucket, &objects).await;
    proxy.faults(&[(Fault::StaleList, 1000)]);
    let one = writer::claim(&bucket, "one", None, false, NOW)
        .await
        .expect("free");
    let mut log = Log {
        generation: one.log.generation,
        number: one.log.number,
        prev: one.log.prev,
        first: 1,
    };
    for _ in 0..3 {
        let (change, blocks) = alice.write(None);
        let (name, bytes) = log.segment(vec![Entry::Commit(change)], blocks);
        replace(&bucket, &name, &bytes).await;
    }
    // Its list shows neither the claim nor the segments.
    let known = writer::claim(&bucket, "one", Some(&one.log), false, NOW).await;
    assert_eq!(
        known.expect("ours").how,
        How::FellBack,
        "more of it is there than it says"
    );
    let refused = writer::claim(&bucket, "two", None, false, NOW).await;
    assert!(matches!(refused, Err(ClaimError::Taken { .. })), "{refused:?}");
    let two = writer::claim(&bucket, "two", None, true, NOW)
        .await
        .expect("takes over");
    assert_eq!((two.how, two.log.generation), (How::TookOver, 3));
    assert_eq!(
        (two.log.number, two.log.prev),
        (log.number, log.prev),
        "it goes on from the last"
    );
    assert!(writer::is_superseded(&bucket, 1).await.expect("reads"));
    let fired = proxy.assert_fired(&[Fault::StaleList]);

    let mut log = Log {
        generation: two.log.generation,
        ..log
    };
    let (change, blocks) = alice.write(None);
    let (name, bytes) = log.segment(vec![Entry::Commit(change)], blocks);
    replace(&bucket, &name, &bytes).await;
    proxy.clear();
    let report = run(&bucket, ALL).await;
    assert_eq!(report.exit_code(), 0, "{}", report.text());
    eprintln!("late lists: {fired}");
}

/// A bucket that is gone answers a HEAD as if only the object were missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_gone_is_not_taken_for_one_without_a_newer_claim() {
    let Some(server) = server::running() else { return };
    let proxy = before(&server);
    let bucket = through(&server, &proxy, "gone").await;
    writer::claim(&bucket, "one", None, false, NOW)
        .await
        .expect("free");
    assert!(!writer::is_superseded(&bucket, 1).await.expect("reads"));
    for fault in [Fault::BucketGone, Fault::Denied] {
        proxy.faults(&[(fault, 1000)]);
        assert!(writer::is_superseded(&bucket, 1).await.is_err(), "{fault:?}");
        proxy.assert_fired(&[fault]);
    }
}

/// Some stores take the condition and replace the object all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_ignores_conditions_is_found_out() {
    let Some(server) = server::running() else { return };
    let proxy = before(&server);
    let (bucket, honest) = (
        through(&server, &proxy, "ignores").await,
        server.open("honours").await,
    );
    proxy.faults(&[(Fault::Unconditional, 1000)]);
    for (bucket, honours) in [(&honest, true), (&bucket, false)] {
        writer::claim(bucket, "one", None, false, NOW)
            .await
            .expect("free");
        assert!(bucket.create_only_is_atomic(), "nobody knows yet");
        let found = writer::honours_create_only(bucket, 1).await.expect("puts");
        assert_eq!((found, bucket.create_only_is_atomic()), (honours, honours));
        let ours = writer::is_claimed_by(bucket, 1, "one").await;
        assert!(ours.expect("reads"), "the claim is what it was");
    }
    proxy.assert_fired(&[Fault::Unconditional]);
    // From then on it is looked first: nothing is replaced, unless both look at the same moment.
    let options = PutOptions::create(ContentType::binary());
    for (text, expected) in [
        ("first", PutOutcome::Created),
        ("second", PutOutcome::AlreadyThere),
    ] {
        let put = bucket.put("v1/odd/x", Body::Bytes(text.into()), &options).await;
        assert_eq!(put, Ok(expected), "{text}");
    }
    let body = bucket.get("v1/odd/x").await.expect("reads").expect("there");
    assert_eq!(body.bytes(100).await.expect("whole"), "first");

    let fresh = through(&server, &proxy, "ignores-probed").await;
    let probed = probe(&fresh, &Clock::system()).await.expect("probes");
    assert_eq!(
        (probed.class(), probed.create_only),
        (Class::OneWriter, CreateOnly::Ignored)
    );
    let left = fresh.list(names::PROBE, None).await.expect("lists");
    assert_eq!(left.objects, []);
}
