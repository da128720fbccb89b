//! Asking a host again for a blob: what each of its answers means for what we show.

use super::*;
use crate::http::address::AddressPolicy;
use crate::http::test_server::{Step, TestServer, answer, serve};
use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::{BlobRow, BlobState, Row as _};

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

fn fetcher(store: &Arc<MemoryStore>) -> BlobFetcher {
    let clock = Clock::manual(NOW);
    BlobFetcher {
        store: Arc::clone(store) as _,
        upstream: Upstream::new(AddressPolicy::new(true, []), clock.clone()).expect("root certificates"),
        clock,
        bytes_max: 1000,
    }
}

fn blob() -> BlobKey {
    BlobKey {
        did: "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("valid"),
        did_number: 1,
        digest: *Cid::of_blob(b"picture").digest(),
    }
}

/// A host that answers HEAD and GET like this; the body of its HEAD is never sent.
async fn host(head: (&'static str, usize), get: (&'static str, &'static str)) -> TestServer {
    serve(move |request| {
        assert!(request.contains(&format!("cid={}", blob().cid())), "{request}");
        if request.starts_with("HEAD ") {
            let text = format!(
                "HTTP/1.1 {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                head.0, head.1
            );
            return vec![Step::Send(text.into_bytes())];
        }
        answer(get.0, &["content-type: application/json"], get.1.as_bytes())
    })
    .await
}

async fn asked(server: &TestServer) -> (Answer, usize) {
    let store = Arc::new(MemoryStore::new());
    let said = fetcher(&store).ask(&blob(), &server.url("")).await;
    (said, server.requests())
}

const NONE: &str = r#"{"error":"InvalidRequest","message":"Blob not found"}"#;

#[tokio::test]
async fn a_blob_that_is_there_costs_no_bytes() {
    // Larger than we would fetch: it is not fetched.
    let server = host(("200 OK", 5_000_000), ("500 Oops", "")).await;
    assert_eq!(asked(&server).await, (Answer::Served, 1));
}

#[tokio::test]
async fn a_refusal_is_asked_for_its_words() {
    for (head, get, answer) in [
        ("400 Bad Request", ("400 Bad Request", NONE), Answer::Withheld),
        (
            "400 Bad Request",
            (
                "400 Bad Request",
                r#"{"error":"RepoTakendown","message":"taken down"}"#,
            ),
            Answer::AccountOff,
        ),
        // A host, or a proxy before it, that knows no HEAD.
        ("405 Method Not Allowed", ("200 OK", "picture"), Answer::Served),
        (
            "404 Not Found",
            ("404 Not Found", "<html>nothing here</html>"),
            Answer::Unclear,
        ),
        ("500 Oops", ("500 Oops", NONE), Answer::Unclear),
    ] {
        let server = host((head, 0), get).await;
        assert_eq!(asked(&server).await, (answer, 2), "{head}, {get:?}");
    }
}

#[tokio::test]
async fn a_host_that_fails_is_not_asked_twice() {
    for head in ["429 Too Many Requests", "503 Service Unavailable"] {
        let server = host((head, 0), ("400 Bad Request", NONE)).await;
        assert_eq!(asked(&server).await, (Answer::Away(None), 1), "{head}");
    }
    let store = Arc::new(MemoryStore::new());
    let said = fetcher(&store).ask(&blob(), "http://127.0.0.1:9").await;
    assert_eq!(said, Answer::Away(None));
}

#[tokio::test]
async fn one_that_was_withheld_is_asked_for_and_not_fetched_again() {
    let host_name: HostName = "pds.test".parse().expect("valid");
    for (get, head) in [
        (("200 OK", ""), "200 OK"),
        (("400 Bad Request", NONE), "400 Bad Request"),
    ] {
        let store = Arc::new(MemoryStore::new());
        let row = BlobRow {
            state: BlobState::Archived,
            withheld_since: Some(NOW),
            ..BlobRow::wanted(Some(7), None, NOW)
        };
        let mut batch = Batch::new();
        batch.put(
            Family::Blobs,
            keyspace::encode_blob(1, &blob().digest),
            row.encode(),
        );
        store.write(batch).expect("writes");
        let server = host((head, 7), get).await;
        let input = fetcher(&store)
            .fetch(&host_name, blob(), b"task".to_vec(), &server.url(""))
            .await;
        let Ok(Input::BlobAsked { host, verdict, task }) = input else {
            panic!("{input:?}");
        };
        assert_eq!((host, task), (host_name.clone(), b"task".to_vec()));
        assert_eq!(
            verdict,
            BlobVerdict {
                blob: blob(),
                served: head == "200 OK"
            }
        );
    }
}
