//! Each limit of the client, made to fire by a server that misbehaves.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::StreamExt as _;

use super::*;
use crate::http::connect::Lookup;
use crate::http::pace::BypassKey;
use crate::http::test_server::{Step, TestServer, answer, chunk, chunked, serve};
use crate::types::Timestamp;

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

fn upstream(policy: AddressPolicy, names: &[(&str, &str)]) -> Upstream {
    let names: BTreeMap<String, Vec<IpAddr>> = names
        .iter()
        .map(|(name, addresses)| {
            let addresses = addresses.split(' ').map(|a| a.parse().expect("an address"));
            ((*name).to_owned(), addresses.collect())
        })
        .collect();
    let lookup = Lookup::Table(Arc::new(names));
    let connector = Connector::with_lookup(policy, lookup, Duration::from_secs(5));
    Upstream::with_pacing(connector, Clock::manual(NOW), Pacing::default()).expect("root certificates")
}

fn dev() -> Upstream {
    upstream(AddressPolicy::new(true, []), &[])
}

/// Production rules but for TLS, with these trusted hosts.
fn strict(trusted: &[&str], names: &[(&str, &str)]) -> Upstream {
    let trusted = trusted.iter().map(|host| host.parse().expect("a host name"));
    upstream(AddressPolicy::new(false, trusted).with_plain_http(), names)
}

/// Generous in all but what a test is about.
fn limits() -> Limits {
    Limits {
        first_byte: Duration::from_secs(30),
        total: Duration::from_secs(30),
        idle: Duration::from_secs(30),
        bytes_max: 1000,
        bytes_per_second_min: 0,
        throughput_window: Duration::from_secs(30),
        redirects_max: 0,
    }
}

async fn fetch(upstream: &Upstream, url: &str, limits: &Limits) -> Result<Vec<u8>, FetchError> {
    upstream.get(url, limits).await?.body.collect().await
}

async fn failure(server: &TestServer, limits: &Limits) -> FetchError {
    let outcome = fetch(&dev(), &server.url("/"), limits).await;
    outcome.expect_err("the server misbehaves")
}

#[tokio::test]
async fn json_and_streams_arrive() {
    let server = serve(|head| {
        assert!(head.contains(&format!("user-agent: {USER_AGENT}")), "{head}");
        if head.starts_with("GET /json?x=1 ") {
            return answer("200 OK", &[], br#"{"cursor":"7"}"#);
        }
        vec![
            chunked(),
            chunk(b"ab"),
            Step::Wait(Duration::from_millis(20)),
            chunk(b"c"),
            chunk(b""),
        ]
    })
    .await;
    #[derive(serde::Deserialize)]
    struct Page {
        cursor: String,
    }
    let page: Page = dev().get_json(&server.url("/json?x=1"), 100).await.expect("JSON");
    assert_eq!(page.cursor, "7");
    let answer = dev()
        .get(&server.url("/stream"), &limits())
        .await
        .expect("a stream");
    let chunks: Vec<_> = answer.body.into_stream().collect().await;
    let bytes: Vec<u8> = chunks
        .into_iter()
        .flat_map(|chunk| chunk.expect("whole"))
        .collect();
    assert_eq!(bytes, b"abc");
}

#[tokio::test]
async fn a_host_that_never_answers_runs_into_the_first_byte_limit() {
    let server = serve(|_| vec![Step::Hang]).await;
    let limits = Limits {
        first_byte: Duration::from_millis(50),
        ..limits()
    };
    let error = failure(&server, &limits).await;
    assert!(
        matches!(
            error,
            FetchError::Timeout {
                stage: Stage::FirstByte,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_body_that_stops_runs_into_the_idle_limit() {
    let server = serve(|_| vec![chunked(), chunk(b"a"), Step::Hang]).await;
    let limits = Limits {
        idle: Duration::from_millis(50),
        ..limits()
    };
    let error = failure(&server, &limits).await;
    assert!(
        matches!(
            error,
            FetchError::Timeout {
                stage: Stage::Idle,
                ..
            }
        ),
        "{error}"
    );
}

/// A byte now and then, for ever.
fn drip() -> Vec<Step> {
    let mut steps = vec![chunked()];
    for _ in 0..10_000 {
        steps.extend([chunk(b"a"), Step::Wait(Duration::from_millis(5))]);
    }
    steps
}

#[tokio::test]
async fn a_dripping_body_runs_into_the_total_limit() {
    let server = serve(|_| drip()).await;
    let limits = Limits {
        total: Duration::from_millis(150),
        bytes_max: 1 << 20,
        ..limits()
    };
    let error = failure(&server, &limits).await;
    assert!(
        matches!(
            error,
            FetchError::Timeout {
                stage: Stage::Total,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_dripping_body_is_too_slow() {
    let server = serve(|_| drip()).await;
    let limits = Limits {
        bytes_per_second_min: 100_000,
        throughput_window: Duration::from_millis(50),
        bytes_max: 1 << 20,
        ..limits()
    };
    let error = failure(&server, &limits).await;
    assert!(
        matches!(
            error,
            FetchError::TooSlow {
                bytes_per_second_min: 100_000,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn the_readers_own_slowness_does_not_count_against_the_host() {
    let server = serve(|_| {
        let mut steps = vec![chunked()];
        steps.extend((0..20).map(|_| chunk(b"a")));
        steps.push(chunk(b""));
        steps
    })
    .await;
    let limits = Limits {
        bytes_per_second_min: 1_000,
        throughput_window: Duration::from_secs(1),
        ..limits()
    };
    let mut body = dev()
        .get(&server.url("/"), &limits)
        .await
        .expect("an answer")
        .body;
    let mut bytes = 0;
    while let Some(chunk) = body.chunk().await.expect("fast enough") {
        bytes += chunk.len();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(bytes, 20);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_as_announced_and_as_it_comes() {
    // Announced and never sent: refused without waiting for it.
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n".to_vec();
    let announced = serve(move |_| vec![Step::Send(head.clone()), Step::Hang]).await;
    let endless = serve(|_| {
        let mut steps = vec![chunked()];
        steps.extend((0..1001).map(|_| chunk(b"a")));
        steps
    })
    .await;
    for server in [announced, endless] {
        let error = failure(&server, &limits()).await;
        assert!(
            matches!(error, FetchError::TooLarge { bytes_max: 1000, .. }),
            "{error}"
        );
        assert!(!error.is_transient());
    }
    let exact = serve(|_| answer("200 OK", &[], &[b'a'; 1000])).await;
    assert_eq!(
        fetch(&dev(), &exact.url("/"), &limits()).await.map(|b| b.len()),
        Ok(1000)
    );
}

#[tokio::test]
async fn a_body_that_is_cut_is_no_body() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".to_vec();
    let counted = serve(move |_| vec![Step::Send(head.clone())]).await;
    let in_chunks = serve(|_| vec![chunked(), chunk(b"abc")]).await;
    for server in [counted, in_chunks] {
        let error = failure(&server, &limits()).await;
        assert!(matches!(error, FetchError::Body { .. }), "{error}");
        assert!(error.is_transient());
    }
}

#[tokio::test]
async fn a_compressed_body_is_refused() {
    let server = serve(|_| answer("200 OK", &["content-encoding: gzip"], b"x")).await;
    let error = failure(&server, &limits()).await;
    assert!(
        matches!(error, FetchError::Encoding { ref encoding, .. } if encoding == "gzip"),
        "{error}"
    );
}

#[tokio::test]
async fn json_that_is_none_is_named() {
    let server = serve(|_| answer("200 OK", &[], b"<html>")).await;
    let outcome = dev().get_json::<Vec<String>>(&server.url("/"), 100).await;
    assert!(matches!(outcome, Err(FetchError::Json { .. })), "{outcome:?}");
}

#[tokio::test]
async fn errors_carry_the_hosts_words_and_its_wishes() {
    let server = serve(|head| {
        if head.starts_with("GET /missing ") {
            let body = br#"{"error":"RepoNotFound","message":"Could not find repo"}"#;
            return answer("400 Bad Request", &[], body);
        }
        if head.starts_with("GET /page ") {
            return answer("502 Bad Gateway", &["retry-after: 7"], b"<html>");
        }
        let reset = NOW.plus(Duration::from_secs(60)).millis() / 1000;
        let reset = format!("RateLimit-Reset: {reset}");
        answer(
            "429 Too Many Requests",
            &[&reset],
            br#"{"error":"RateLimitExceeded"}"#,
        )
    })
    .await;
    let error = |path: &'static str| {
        let url = server.url(path);
        async move { fetch(&dev(), &url, &limits()).await.expect_err("an error status") }
    };
    let missing = error("/missing").await;
    assert_eq!(missing.xrpc_error(), Some("RepoNotFound"));
    assert!(!missing.is_transient());
    let words = missing.to_string();
    assert!(
        words.ends_with("answered 400 RepoNotFound: Could not find repo"),
        "{words}"
    );
    let page = error("/page").await;
    assert_eq!(
        (page.xrpc_error(), page.wait()),
        (None, Some(Duration::from_secs(7)))
    );
    assert!(page.is_transient());
    let limited = error("/limited").await;
    assert_eq!(limited.wait(), Some(Duration::from_secs(60)));
    assert_eq!((limited.label(), limited.is_transient()), ("rate_limited", true));
}

#[tokio::test]
async fn an_endless_error_body_does_not_hold_us() {
    let server = serve(|_| {
        let mut steps = vec![Step::Send(
            b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
        )];
        steps.extend((0..20).map(|_| chunk(&[b'x'; 1024])));
        steps.push(Step::Hang);
        steps
    })
    .await;
    let error = failure(&server, &limits()).await;
    assert!(matches!(error, FetchError::Status { status: 500, .. }), "{error}");
}

#[tokio::test]
async fn redirects_are_followed_only_when_asked_for() {
    let server = serve(|head| {
        if head.starts_with("GET /end ") {
            return answer("200 OK", &[], b"here");
        }
        if head.starts_with("GET /loop ") {
            return answer("302 Found", &["location: /loop"], b"");
        }
        answer("301 Moved", &["location: /end"], b"")
    })
    .await;
    let error = failure(&server, &limits()).await;
    assert!(
        matches!(error, FetchError::Redirected { ref location, .. } if location == "/end"),
        "{error}"
    );
    let two = Limits {
        redirects_max: 2,
        ..limits()
    };
    let outcome = fetch(&dev(), &server.url("/"), &two).await;
    assert_eq!(outcome.as_deref(), Ok(&b"here"[..]));
    let before = server.requests();
    let outcome = fetch(&dev(), &server.url("/loop"), &two).await;
    assert!(
        matches!(outcome, Err(FetchError::Redirected { .. })),
        "{outcome:?}"
    );
    assert_eq!(server.requests() - before, 3);
}

#[tokio::test]
async fn a_redirect_obeys_the_same_rules_as_the_first_request() {
    let private = serve(|_| answer("200 OK", &[], b"secret")).await;
    let target = private.url("/");
    let trusted = serve(move |_| answer("302 Found", &[&format!("location: {target}")], b"")).await;
    let client = strict(&[&trusted.address.to_string()], &[]);
    let one = Limits {
        redirects_max: 1,
        ..limits()
    };
    let outcome = fetch(&client, &trusted.url("/"), &one).await;
    assert!(matches!(outcome, Err(FetchError::Refused(_))), "{outcome:?}");
    assert_eq!((trusted.requests(), private.requests()), (1, 0));
}

#[test]
fn a_redirect_never_leaves_tls_nor_the_host_by_accident() {
    let target = |url: &str| Target::parse(url).expect("a URL");
    let next = |url: &str, location: &str| {
        let next = target(url).redirected(location);
        next.map(|next| (next.https, next.authority)).ok()
    };
    let from = "https://pds.example.com:8443/a";
    let same = Some((true, "pds.example.com:8443".to_owned()));
    assert_eq!(next(from, "/b"), same);
    assert_eq!(
        next(from, "https://Other.example.com:443/"),
        Some((true, "other.example.com".to_owned()))
    );
    for location in [
        "http://pds.example.com:8443/b",
        "//evil.example.com/",
        "b",
        "",
        "https://a@b/",
    ] {
        assert_eq!(next(from, location), None, "{location}");
    }
    assert_eq!(
        next("http://localhost/", "/b"),
        Some((false, "localhost".to_owned()))
    );
}

#[tokio::test]
async fn a_public_name_that_leads_to_a_private_address_is_refused() {
    let server = serve(|_| answer("200 OK", &[], b"secret")).await;
    let port = server.address.port();
    let client = strict(&[], &[("evil.example.com", "10.0.0.1 127.0.0.1")]);
    let outcome = fetch(&client, &format!("http://evil.example.com:{port}/"), &limits()).await;
    let Err(FetchError::Refused(refusal)) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(refusal.to_string().contains("10.0.0.1"), "{refusal}");
    let outcome = fetch(&client, &server.url("/"), &limits()).await;
    assert!(matches!(outcome, Err(FetchError::Refused(_))), "{outcome:?}");
    assert_eq!(server.requests(), 0);
    // The same name, once the admin vouches for it.
    let host = format!("evil.example.com:{port}");
    let client = strict(&[&host], &[("evil.example.com", "127.0.0.1")]);
    let outcome = fetch(&client, &format!("http://{host}/"), &limits()).await;
    assert_eq!(outcome.as_deref(), Ok(&b"secret"[..]));
}

#[tokio::test]
async fn the_next_address_is_tried() {
    let server = serve(|_| answer("200 OK", &[], b"here")).await;
    let port = server.address.port();
    // Nobody listens at the first one; 127.0.0.0/8 is all this machine.
    let client = upstream(
        AddressPolicy::new(true, []),
        &[("two.test", "127.9.9.9 127.0.0.1")],
    );
    let outcome = fetch(&client, &format!("http://two.test:{port}/"), &limits()).await;
    assert_eq!(outcome.as_deref(), Ok(&b"here"[..]));
}

#[tokio::test]
async fn what_is_not_there_is_unreachable() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("a port");
    let gone = listener.local_addr().expect("bound");
    drop(listener);
    let outcome = fetch(&dev(), &format!("http://{gone}/"), &limits()).await;
    assert!(matches!(outcome, Err(FetchError::Connect(_))), "{outcome:?}");
    let outcome = fetch(&dev(), "http://nowhere.test/", &limits()).await;
    let Err(FetchError::Connect(words)) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(words.contains("look up nowhere.test"), "{words}");
}

#[tokio::test]
async fn https_to_a_plain_server_is_a_tls_failure() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .expect("a port");
    let address = listener.local_addr().expect("bound");
    let serving = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .expect("open");
        stream
    };
    let url = format!("https://{address}/");
    let client = dev();
    let limits = limits();
    let (_stream, outcome) = tokio::join!(serving, fetch(&client, &url, &limits));
    assert!(matches!(outcome, Err(FetchError::Tls { .. })), "{outcome:?}");
}

#[tokio::test]
async fn urls_that_are_none_are_refused() {
    for (url, dev_mode) in [
        ("", true),
        ("/xrpc/x", true),
        ("ftp://pds.example.com/", true),
        ("https://user@pds.example.com/", true),
        ("https:///x", true),
        ("https://pds.example.com/ä b", true),
    ] {
        let client = upstream(AddressPolicy::new(dev_mode, []), &[]);
        let outcome = fetch(&client, url, &limits()).await;
        assert!(
            matches!(outcome, Err(FetchError::BadUrl { .. })),
            "{url}: {outcome:?}"
        );
    }
    let production = upstream(AddressPolicy::new(false, []), &[]);
    for url in [
        "http://pds.example.com/",
        "https://localhost/",
        "https://2130706433/",
    ] {
        let outcome = fetch(&production, url, &limits()).await;
        assert!(
            matches!(outcome, Err(FetchError::Refused(_))),
            "{url}: {outcome:?}"
        );
    }
}

/// As [`dev`], with a pace for this server and its key.
fn paced(server: &TestServer, key: Option<&str>, dev_mode: bool) -> Upstream {
    let policy = match dev_mode {
        true => AddressPolicy::new(true, []),
        false => {
            AddressPolicy::new(false, [server.address.to_string().parse().expect("a host")]).with_plain_http()
        }
    };
    let key = key.map(|key| BypassKey::parse(key).expect("a key"));
    let pacing = Pacing::new(0, [(server.address.to_string(), key)]);
    Upstream::with_pacing(Connector::new(policy), Clock::manual(NOW), pacing).expect("root certificates")
}

#[tokio::test]
async fn a_bypass_key_goes_to_its_own_host_alone() {
    let carries = |head: &str| head.to_ascii_lowercase().contains("x-ratelimit-bypass: s3cret");
    let other =
        serve(move |head| answer("200 OK", &[], if carries(head) { b"with" } else { b"without" })).await;
    let (elsewhere, back) = (format!("location: {}", other.url("/")), "location: /with");
    let server = serve(move |head| {
        let hop = if head.starts_with("GET /away ") {
            elsewhere.as_str()
        } else {
            back
        };
        match (carries(head), head.starts_with("GET /with ")) {
            (false, _) => answer("200 OK", &[], b"none"),
            (true, true) => answer("200 OK", &[], b"with"),
            (true, false) => answer("302 Found", &[hop], b""),
        }
    })
    .await;
    let limits = Limits {
        redirects_max: 2,
        ..limits()
    };
    let upstream = paced(&server, Some("s3cret"), true);
    assert!(!format!("{upstream:?}").contains("s3cret"));
    let get = |url: String| {
        let upstream = &upstream;
        async move { fetch(upstream, &url, &limits).await.expect("an answer") }
    };
    assert_eq!(get(server.url("/with")).await, b"with");
    assert_eq!(get(server.url("/here")).await, b"with");
    assert_eq!(get(server.url("/away")).await, b"without");
    assert_eq!(get(other.url("/")).await, b"without");
    // Never in the clear.
    let clear = paced(&server, Some("s3cret"), false);
    assert_eq!(
        fetch(&clear, &server.url("/with"), &limits)
            .await
            .expect("an answer"),
        b"none"
    );
}

#[tokio::test]
async fn a_host_that_asks_for_it_is_left_alone() {
    let server = serve(|_| answer("429 Too Many Requests", &["retry-after: 60"], b"")).await;
    let upstream = paced(&server, None, true);
    let (url, limits) = (server.url("/"), limits());
    let get = || fetch(&upstream, &url, &limits);
    let refused = get().await.expect_err("refused");
    assert!(
        matches!(refused, FetchError::Status { status: 429, .. }),
        "{refused}"
    );
    for _ in 0..3 {
        let paced = get().await.expect_err("left alone");
        assert!(matches!(paced, FetchError::Paced { .. }), "{paced}");
        assert_eq!(
            (paced.wait(), paced.is_transient()),
            (Some(Duration::from_secs(60)), true)
        );
    }
    assert_eq!(server.requests(), 1);
    // Others are asked as ever.
    assert!(fetch(&dev(), &url, &limits).await.is_err());
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn what_is_left_of_a_limit_is_spread() {
    let headers = [
        "ratelimit-limit: 100",
        "ratelimit-remaining: 9",
        "ratelimit-reset: 5",
    ];
    let server = serve(move |_| answer("200 OK", &headers, b"")).await;
    let upstream = paced(&server, None, true);
    let began = Instant::now();
    // Half a second between the second, which spends what is due, and the third.
    for _ in 0..3 {
        fetch(&upstream, &server.url("/"), &limits())
            .await
            .expect("an answer");
    }
    assert!(
        began.elapsed() >= Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(server.requests(), 3);
}
