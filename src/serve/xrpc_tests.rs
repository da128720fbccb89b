//! Tests of the methods, the error table and what all answers carry, over real sockets.

use serde_json::json;

use super::*;
use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::{AccountStatus, BlobState};
use crate::mirror::{Batch, Family, keyspace, store};
use crate::serve::fixture::{Account, Answer, Server, ask, path, record, rev};
use crate::serve::{NoBlobArchive, Readiness};
use crate::types::{Cid, Did};

const METHODS: [&str; 4] = ["getRepo", "getLatestCommit", "listBlobs", "getBlob"];

fn sync_path(method: &str, query: &str) -> String {
    format!("/xrpc/com.atproto.sync.{method}?{query}")
}

fn statuses() -> Vec<(AccountStatus, Option<&'static str>)> {
    vec![
        (AccountStatus::Active, None),
        (AccountStatus::Desynchronized, None),
        (AccountStatus::Throttled, None),
        (AccountStatus::Deactivated, Some("RepoDeactivated")),
        (AccountStatus::Suspended, Some("RepoSuspended")),
        (AccountStatus::Takendown, Some("RepoTakendown")),
        (AccountStatus::Deleted, Some("RepoNotFound")),
        (
            AccountStatus::Other("new-in-2030".to_owned()),
            Some("RepoNotFound"),
        ),
        (AccountStatus::Other(String::new()), Some("RepoNotFound")),
    ]
}

/// One account of each status, each with a record and a blob.
fn one_of_each(store: &MemoryStore) -> Vec<(Account, Option<&'static str>)> {
    let make = |(number, (status, name)): (usize, (AccountStatus, _))| {
        let account = Account::new(&format!("s{}", (b'a' + number as u8) as char), 1 + number as u64)
            .record("one", 5, &record("text"))
            .blob("two", 6, b"blob", "image/png", BlobState::Held)
            .status(status);
        account.save(store);
        (account, name)
    };
    statuses().into_iter().enumerate().map(make).collect()
}

#[tokio::test]
async fn each_method_hides_what_is_hidden_and_says_why() {
    let store = MemoryStore::new();
    let accounts = one_of_each(&store);
    let server = Server::start(&store).await;
    let cid = Cid::of_blob(b"blob");
    for (account, name) in &accounts {
        for method in METHODS {
            let answer = server
                .get(&sync_path(method, &format!("did={}&cid={cid}", account.did)))
                .await;
            match name {
                None => assert_eq!(answer.status, 200, "{method} {:?}", account.status),
                Some(name) => {
                    assert_eq!(
                        answer.error(),
                        (400, (*name).to_owned()),
                        "{method} {:?}",
                        account.status
                    );
                    let message = answer.json()["message"].as_str().expect("a text").to_owned();
                    assert!(message.ends_with(&format!(": {}", account.did)), "{message}");
                }
            }
        }
    }
}

#[tokio::test]
async fn accounts_that_are_not_here_are_not_found() {
    let store = MemoryStore::new();
    let unloaded = Account::new("unloaded", 1).unloaded();
    unloaded.save(&store);
    let server = Server::start(&store).await;
    for did in [
        unloaded.did.as_str(),
        "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa",
        "did:web:example.com",
    ] {
        for method in METHODS.iter().chain(&["getRepoStatus"]) {
            let query = format!("did={did}&cid={}", Cid::of_blob(b"blob"));
            let answer = server.get(&sync_path(method, &query)).await;
            assert_eq!(answer.error(), (400, "RepoNotFound".to_owned()), "{method} {did}");
            assert_eq!(
                answer.json()["message"],
                format!("Could not find repo for DID: {did}")
            );
        }
    }
}

#[tokio::test]
async fn latest_commit_and_status_tell_where_an_account_stands() {
    let store = MemoryStore::new();
    let accounts = one_of_each(&store);
    let server = Server::start(&store).await;
    let (account, _) = &accounts[0];
    let head = account.head();
    let answer = server
        .get(&sync_path("getLatestCommit", &format!("did={}", account.did)))
        .await;
    assert_eq!(
        answer.json(),
        json!({ "cid": head.commit.to_string(), "rev": rev(6).to_string() })
    );
    for (account, _) in &accounts {
        let answer = server
            .get(&sync_path("getRepoStatus", &format!("did={}", account.did)))
            .await;
        let mut want = json!({ "did": account.did.as_str(), "active": account.status.is_active() });
        if account.status.is_active() {
            want["rev"] = rev(6).to_string().into();
        }
        if let Some(status) = account.status.wire_name() {
            want["status"] = status.into();
        }
        assert_eq!(answer.json(), want);
    }
}

#[tokio::test]
async fn repositories_are_listed_with_their_status_page_by_page() {
    let store = MemoryStore::new();
    let accounts = one_of_each(&store);
    Account::new("unloaded", 100).unloaded().save(&store);
    let server = Server::start(&store).await;
    let want: Vec<_> = accounts
        .iter()
        .filter(|(account, _)| account.status != AccountStatus::Deleted)
        .map(|(account, _)| {
            let mut row = json!({
                "did": account.did.as_str(),
                "head": account.head().commit.to_string(),
                "rev": rev(6).to_string(),
                "active": account.status.is_active(),
            });
            if let Some(status) = account.status.wire_name() {
                row["status"] = status.into();
            }
            row
        })
        .collect();
    assert_eq!(
        server.get(&sync_path("listRepos", "")).await.json(),
        json!({ "repos": want })
    );
    for limit in 1..=want.len() {
        let (mut got, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = server
                .get(&sync_path("listRepos", &format!("limit={limit}{cursor}")))
                .await
                .json();
            let repos = page["repos"].as_array().expect("a list").clone();
            assert!(!repos.is_empty() && repos.len() <= limit);
            got.extend(repos);
            pages += 1;
            match page["cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(
            (got, pages),
            (want.clone(), want.len().div_ceil(limit)),
            "limit {limit}"
        );
    }
    let past = server
        .get(&sync_path("listRepos", "cursor=did:plc:zzzzzzzzzzzzzzzzzzzzzzzz"))
        .await;
    assert_eq!(past.json(), json!({ "repos": [] }));
}

#[tokio::test]
async fn many_accounts_without_a_repository_do_not_end_a_listing() {
    let store = MemoryStore::new();
    for number in 0..600 {
        let name: String = format!("{number:03}")
            .bytes()
            .map(|digit| (digit - b'0' + b'a') as char)
            .collect();
        let account = Account::new(&name, number + 1);
        if number % 599 == 0 {
            account
        } else {
            account.unloaded()
        }
        .save(&store);
    }
    let server = Server::start(&store).await;
    let page = server.get(&sync_path("listRepos", "limit=1")).await.json();
    let cursor = page["cursor"].as_str().expect("there is one more");
    let page = server
        .get(&sync_path("listRepos", &format!("limit=1&cursor={cursor}")))
        .await
        .json();
    assert_eq!(
        (page["repos"].as_array().map(Vec::len), page.get("cursor")),
        (Some(1), None)
    );
}

async fn all_blobs(server: &Server, did: &Did, query: &str, limit: usize) -> Vec<String> {
    let (mut got, mut cursor): (Vec<String>, _) = (Vec::new(), String::new());
    loop {
        let query = format!("did={did}&limit={limit}{query}{cursor}");
        let page = server.get(&sync_path("listBlobs", &query)).await.json();
        let cids: Vec<String> = serde_json::from_value(page["cids"].clone()).expect("texts");
        assert!(cids.len() <= limit);
        got.extend(cids);
        match page["cursor"].as_str() {
            // A page that has a cursor is full: clients stop at a short one.
            Some(next) => {
                assert_eq!(got.len() % limit, 0);
                cursor = format!("&cursor={next}");
            }
            None => return got,
        }
    }
}

#[tokio::test]
async fn blobs_are_listed_once_each_in_the_order_of_their_texts() {
    let store = MemoryStore::new();
    let mut account = Account::new("alice", 1);
    let mut want = Vec::new();
    for number in 0..700_u32 {
        let cid = Cid::of_blob(&number.to_be_bytes());
        // Not fetched yet, and listed all the same: the list is of what the records refer to.
        account = account.blob_without_bytes(
            &format!("r{number}"),
            number.into(),
            cid,
            "a/b",
            BlobState::Wanted,
        );
        if number % 3 == 0 {
            account = account.blob_without_bytes(&format!("s{number}"), 1, cid, "a/b", BlobState::Wanted);
        }
        want.push(cid.to_string());
    }
    account.save(&store);
    Account::new("bob", 2)
        .blob("b", 1, b"of another", "a/b", BlobState::Held)
        .save(&store);
    let newer: Vec<String> = want[401..].to_vec();
    let (mut want, mut newer) = (want, newer);
    want.sort();
    newer.sort();
    let server = Server::start(&store).await;
    for limit in [1000, 700, 350, 7] {
        assert_eq!(
            all_blobs(&server, &account.did, "", limit).await,
            want,
            "limit {limit}"
        );
    }
    let since = format!("&since={}", rev(400));
    for limit in [1000, 299, 100] {
        assert_eq!(
            all_blobs(&server, &account.did, &since, limit).await,
            newer,
            "limit {limit}"
        );
    }
    assert!(
        all_blobs(&server, &account.did, &format!("&since={}", rev(5000)), 10)
            .await
            .is_empty()
    );
    // The default page.
    let page = server
        .get(&sync_path("listBlobs", &format!("did={}", account.did)))
        .await
        .json();
    assert_eq!(
        (page["cids"].as_array().map(Vec::len), page["cursor"].as_str()),
        (Some(500), Some(&*want[499]))
    );
}

#[tokio::test]
async fn digests_that_share_their_first_byte_are_in_order_too() {
    let store = MemoryStore::new();
    let (mut account, mut want) = (Account::new("alice", 1), Vec::new());
    for first in [0, 0xff, 0x1a, 0xe0] {
        for second in (0..=255).step_by(5) {
            let mut digest = [second; 32];
            digest[0] = first;
            let cid = Cid::raw(digest);
            let rkey = format!("r{first}-{second}");
            account = account.blob_without_bytes(&rkey, 1, cid, "a/b", BlobState::Wanted);
            want.push(cid.to_string());
        }
    }
    account.save(&store);
    want.sort();
    let server = Server::start(&store).await;
    for limit in [500, 51, 13] {
        assert_eq!(
            all_blobs(&server, &account.did, "", limit).await,
            want,
            "limit {limit}"
        );
    }
}

#[tokio::test]
async fn parameters_are_checked_before_anything_is_looked_up() {
    let server = Server::start(&MemoryStore::new()).await;
    let did = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    let rows = [
        ("getRepo", "", "Params must have the property \"did\""),
        ("getRepo", "did=", "did must be a valid did"),
        (
            "getRepo",
            "did=did:plc:..%2f..%2fetc%2fpasswd",
            "did must be a valid did",
        ),
        ("getRepo", "did=../../etc/passwd", "did must be a valid did"),
        ("getRepo", "did=did:plc:a%00b", "did must be a valid did"),
        ("getRepo", "did=did:plc:%F0%9F%A6%8B", "did must be a valid did"),
        ("getRepo", "did=did%253Aplc%253Aa", "did must be a valid did"),
        ("getRepo", "did=%zz", "Query is not valid percent-encoded UTF-8"),
        ("getRepo", "did=%ff", "Query is not valid percent-encoded UTF-8"),
        (
            "getRepo",
            &format!("did={did}&did={did}"),
            "did must be given once",
        ),
        (
            "getRepo",
            &format!("did={did}&since=now"),
            "since must be a valid tid",
        ),
        (
            "getBlob",
            &format!("did={did}"),
            "Params must have the property \"cid\"",
        ),
        (
            "getBlob",
            &format!("did={did}&cid=..%2Fx"),
            "cid must be a cid string",
        ),
        (
            "getBlob",
            &format!("did={did}&cid=QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"),
            "cid must be a cid string",
        ),
        (
            "listBlobs",
            &format!("did={did}&limit=0"),
            "limit must be an integer from 1 to 1000",
        ),
        (
            "listBlobs",
            &format!("did={did}&cursor=x"),
            "cursor must be a cursor that this method returned",
        ),
        (
            "listRepos",
            "limit=1001",
            "limit must be an integer from 1 to 1000",
        ),
        (
            "listRepos",
            "cursor=x",
            "cursor must be a cursor that this method returned",
        ),
        ("getLatestCommit", "did=x", "did must be a valid did"),
        ("getRepoStatus", "did=x", "did must be a valid did"),
    ];
    for (method, query, message) in rows {
        let answer = server.get(&sync_path(method, query)).await;
        assert_eq!(
            answer.error(),
            (400, "InvalidRequest".to_owned()),
            "{method}?{query}"
        );
        assert_eq!(answer.json()["message"], message, "{method}?{query}");
    }
    let many = "a=1&".repeat(crate::serve::params::PARAMS_MAX + 1);
    assert_eq!(server.get(&sync_path("listRepos", &many)).await.error().0, 400);
    assert_eq!(
        server
            .get(&sync_path("listRepos", "unknown=%20&x&&="))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn methods_that_are_not_served_say_so() {
    let server = Server::start(&MemoryStore::new()).await;
    let invalid = || "InvalidRequest".to_owned();
    for (method, path, status, name) in [
        (
            "GET",
            "/xrpc/com.atproto.server.getSession",
            501,
            "MethodNotImplemented",
        ),
        (
            "POST",
            "/xrpc/com.atproto.server.createSession",
            501,
            "MethodNotImplemented",
        ),
        (
            "GET",
            "/xrpc/com.atproto.sync.subscribeRepos",
            501,
            "MethodNotImplemented",
        ),
        (
            "GET",
            "/xrpc/com.atproto.sync.getrepo",
            501,
            "MethodNotImplemented",
        ),
        ("GET", "/xrpc/", 400, "InvalidRequest"),
        ("GET", "/xrpc/../etc/passwd", 400, "InvalidRequest"),
        ("GET", "/xrpc/com.atproto.sync.getRepo/x", 400, "InvalidRequest"),
        ("GET", "/xrpc/com.atproto.sync%2EgetRepo", 400, "InvalidRequest"),
        ("POST", "/xrpc/com.atproto.sync.getRepo", 405, "InvalidRequest"),
        (
            "DELETE",
            "/xrpc/com.atproto.sync.listRepos",
            405,
            "InvalidRequest",
        ),
        ("POST", "/xrpc/_health", 405, "InvalidRequest"),
        ("PUT", "/", 405, "InvalidRequest"),
    ] {
        let answer = server.ask(method, path, "").await;
        assert_eq!(answer.error(), (status, name.to_owned()), "{method} {path}");
        assert_eq!(answer.header("allow") == "GET, HEAD, OPTIONS", status == 405);
    }
    let answer = server
        .ask(
            "GET",
            "/xrpc/com.atproto.sync.listRepos",
            "Content-Length: 2\r\n\r\n{}",
        )
        .await;
    assert_eq!(answer.error(), (400, invalid()));
    assert_eq!(answer.header("connection"), "close");
    let chunked = "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n";
    assert_eq!(
        server
            .ask("GET", "/xrpc/com.atproto.sync.listRepos", chunked)
            .await
            .error(),
        (400, invalid())
    );
    let long = sync_path("listRepos", &format!("x={}", "a".repeat(5000)));
    let answer = server.get(&long).await;
    assert_eq!(answer.error(), (414, invalid()));
    let answer = server.get("/nope").await;
    assert_eq!((answer.status, &*answer.body), (404, &b"Not found\n"[..]));
}

fn assert_open_to_scripts(answer: &Answer) {
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert!(!answer.headers.contains_key("access-control-allow-credentials"));
    assert!(answer.header("access-control-expose-headers").contains("ETag"));
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
}

#[tokio::test]
async fn scripts_of_any_origin_may_read_and_send_what_headers_they_like() {
    let store = MemoryStore::new();
    let account = Account::new("alice", 1).record("one", 1, &record("x"));
    account.save(&store);
    let server = Server::start(&store).await;
    let uri = sync_path("getRepo", &format!("did={}", account.did));
    let headers = "Origin: https://example.com\r\nAccess-Control-Request-Method: GET\r\n\
                   Access-Control-Request-Headers: authorization, atproto-proxy\r\n";
    let answer = server.ask("OPTIONS", &uri, headers).await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(
        answer.header("access-control-allow-headers"),
        "authorization, atproto-proxy"
    );
    assert_eq!(
        answer.header("access-control-allow-methods"),
        "GET, HEAD, POST, OPTIONS"
    );
    assert_eq!(answer.header("access-control-max-age"), "86400");
    assert_eq!(answer.header("vary"), "Access-Control-Request-Headers");
    assert_open_to_scripts(&answer);
    for token in ["Bearer nonsense", "Basic YWRtaW46YWRtaW4=", "Bearer a.b.c"] {
        let answer = server
            .ask("GET", &uri, &format!("Authorization: {token}\r\n"))
            .await;
        assert_eq!(answer.status, 200);
        assert_open_to_scripts(&answer);
    }
    for path in [
        "/",
        "/nope",
        "/xrpc/x",
        "/xrpc/_health",
        &sync_path("getRepo", ""),
    ] {
        assert_open_to_scripts(&server.get(path).await);
    }
}

#[tokio::test]
async fn a_head_is_a_get_without_the_body() {
    let store = MemoryStore::new();
    let accounts = one_of_each(&store);
    let server = Server::start(&store).await;
    let did = format!("did={}", accounts[0].0.did);
    for path in [
        "/".to_owned(),
        "/nope".to_owned(),
        "/xrpc/_health".to_owned(),
        sync_path("listRepos", ""),
        sync_path("listBlobs", &did),
        sync_path("getLatestCommit", &did),
        sync_path("getRepoStatus", &did),
        sync_path("getRepoStatus", "did=x"),
    ] {
        let (get, head) = (server.get(&path).await, server.ask("HEAD", &path, "").await);
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        assert_eq!(
            head.header("content-length"),
            get.body.len().to_string(),
            "{path}"
        );
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
    }
}

#[tokio::test]
async fn the_pages_say_what_this_is_and_keep_crawlers_out() {
    let server = Server::start(&MemoryStore::new()).await;
    let answer = server.get("/").await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, "text/html; charset=utf-8")
    );
    let text = String::from_utf8(answer.body).expect("text");
    assert!(
        text.contains(concat!("Firekeep ", env!("CARGO_PKG_VERSION"), ", a backup")),
        "{text}"
    );
    assert_eq!(
        server.get("/robots.txt").await.body,
        b"User-agent: *\nDisallow: /\n"
    );
}

#[tokio::test]
async fn health_is_the_version_until_something_is_wrong() {
    let store = MemoryStore::new();
    let server = Server::start(&store).await;
    let version = env!("CARGO_PKG_VERSION");
    let healthy = server.get("/xrpc/_health").await;
    assert_eq!(
        (healthy.status, healthy.json()),
        (200, json!({ "version": version }))
    );
    assert_eq!(healthy.header("cache-control"), "private, no-store");
    for (readiness, why) in [
        (Readiness::Starting, "starting"),
        (Readiness::Stopping, "stopping"),
        (Readiness::Failed("the archive refuses"), "the archive refuses"),
    ] {
        server.health.set(readiness);
        let answer = server.get("/xrpc/_health").await;
        assert_eq!(
            (answer.status, answer.json()),
            (503, json!({ "version": version, "error": why }))
        );
        let ready = ask(server.admin, "GET", "/readyz", "").await;
        assert_eq!((ready.status, ready.body), (503, format!("{why}\n").into_bytes()));
        assert_eq!(ask(server.admin, "GET", "/livez", "").await.status, 200);
    }
    server.health.set(Readiness::Ready);
    assert_eq!(ask(server.admin, "GET", "/readyz", "").await.status, 200);
    let mut batch = Batch::new();
    batch.put(Family::Meta, store::META_VERSION, b"bad".to_vec());
    crate::mirror::Store::write(&store, batch).expect("written");
    let answer = server.get("/xrpc/_health").await;
    assert_eq!(
        (answer.status, &answer.json()["error"]),
        (503, &json!("the mirror cannot be read"))
    );
}

#[tokio::test]
async fn requests_are_counted_by_method_name_and_code() {
    let store = MemoryStore::new();
    let account = Account::new("alice", 1).record("one", 1, &record("x"));
    account.save(&store);
    let server = Server::start(&store).await;
    let uri = sync_path("getRepo", &format!("did={}", account.did));
    let length = server.get(&uri).await.body.len();
    server.ask("HEAD", &uri, "").await;
    server.get(&sync_path("getRepo", "")).await;
    server.get("/xrpc/com.example.some.thing").await;
    let metrics = ask(server.admin, "GET", "/metrics", "").await;
    assert_eq!(
        metrics.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(!metrics.headers.contains_key("access-control-allow-origin"));
    let text = String::from_utf8(metrics.body).expect("text");
    let nsid = "nsid=\"com.atproto.sync.getRepo\"";
    for line in [
        format!("firekeep_http_requests_total{{code=\"200\",method=\"GET\",{nsid}}} 1"),
        format!("firekeep_http_requests_total{{code=\"200\",method=\"HEAD\",{nsid}}} 1"),
        format!("firekeep_http_requests_total{{code=\"400\",method=\"GET\",{nsid}}} 1"),
        "firekeep_http_requests_total{code=\"501\",method=\"GET\",nsid=\"unknown_method\"} 1".to_owned(),
        format!("firekeep_http_request_duration_seconds_count{{{nsid}}} 3"),
    ] {
        assert!(text.lines().any(|have| have == line), "{line}\n{text}");
    }
    assert!(server.metrics.http_response_bytes.of(Endpoint::GetRepo).get() >= length as u64);
    assert!(!text.contains("did:") && !text.contains("com.example.some.thing"));
}

#[tokio::test]
async fn the_private_listener_has_nothing_else() {
    let server = Server::start(&MemoryStore::new()).await;
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/xrpc/com.atproto.sync.listRepos", 404),
        ("POST", "/metrics", 405),
        ("OPTIONS", "/metrics", 405),
        ("HEAD", "/metrics", 200),
    ] {
        let answer = ask(server.admin, method, path, "").await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
    }
    assert_eq!(server.get("/metrics").await.status, 404);
}

#[tokio::test]
async fn look_ups_at_once_are_limited() {
    let store = MemoryStore::new();
    let account = Account::new("alice", 1);
    account.save(&store);
    let limits = ServeLimits {
        lookups_max: 0,
        queue_timeout: std::time::Duration::from_millis(20),
        ..ServeLimits::default()
    };
    let server = Server::start_with(&store, NoBlobArchive, limits).await;
    let answer = server
        .get(&sync_path("getRepoStatus", &format!("did={}", account.did)))
        .await;
    assert_eq!(answer.error(), (503, "ServiceUnavailable".to_owned()));
}

#[tokio::test]
async fn a_row_that_does_not_decode_is_an_error_that_tells_nothing() {
    let store = MemoryStore::new();
    let account = Account::new("alice", 1).blob("a", 1, b"blob", "a/b", BlobState::Held);
    account.save(&store);
    let mut batch = Batch::new();
    let key = keyspace::encode_record(account.account_number(), path("a").as_bytes());
    batch.put(Family::Records, key, b"bad".to_vec());
    crate::mirror::Store::write(&store, batch).expect("written");
    let server = Server::start(&store).await;
    let query = format!("did={}&since={}", account.did, rev(0));
    let answer = server.get(&sync_path("listBlobs", &query)).await;
    assert_eq!(answer.error(), (500, "InternalServerError".to_owned()));
    assert_eq!(answer.json()["message"], "Internal Server Error");
}

#[tokio::test]
async fn a_shutdown_ends_both_listeners() {
    let server = Server::start(&MemoryStore::new()).await;
    assert_eq!(server.get("/").await.status, 200);
    server.shutdown.cancel();
    server.until("ended", |server| server.task.is_finished()).await;
    for address in [server.xrpc, server.admin] {
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }
}
