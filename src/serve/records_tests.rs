//! Tests of `com.atproto.repo`, of handles and hosts, and of what the server says of itself, over real sockets.

use serde_json::{Value, json};

use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::{AccountStatus, BlobFailure, BlobState, HostRow, Row as _};
use crate::mirror::{Batch, Family, Store as _, View as _, keyspace};
use crate::serve::NoBlobArchive;
use crate::serve::ServeLimits;
use crate::serve::fixture::{Account, Server, path, record};
use crate::types::{Cid, HostName};

fn query(method: &str, query: &str) -> String {
    format!("/xrpc/com.atproto.{method}?{query}")
}

fn alice() -> Account {
    let mut account = Account::new("alice", 1).handle("alice.test");
    for number in 0..5 {
        account = account.record(&format!("k{number}"), 1, &record(&format!("text {number}")));
    }
    account
}

const THING: &str = "com.example.thing";

#[tokio::test]
async fn a_record_is_given_by_did_or_handle_and_only_in_the_version_that_is_asked_for() {
    let store = MemoryStore::new();
    let account = alice();
    account.save(&store);
    let server = Server::start(&store).await;
    let cid = Cid::of_block(&record("text 3"));
    let want = json!({
        "uri": format!("at://{}/{}", account.did, path("k3")),
        "cid": cid.to_string(),
        "value": { "t": "text 3" },
    });
    let get = |rest: String| query("repo.getRecord", &rest);
    for repo in [account.did.as_str(), "alice.test", "ALICE.test"] {
        for version in [String::new(), format!("&cid={cid}")] {
            let answer = server
                .get(&get(format!("repo={repo}&collection={THING}&rkey=k3{version}")))
                .await;
            assert_eq!(answer.json(), want);
        }
    }
    let other = Cid::of_block(b"other");
    for rest in [format!("k3&cid={other}"), "none".to_owned()] {
        let answer = server
            .get(&get(format!(
                "repo={}&collection={THING}&rkey={rest}",
                account.did
            )))
            .await;
        assert_eq!(answer.error(), (400, "RecordNotFound".to_owned()));
        let rkey = rest.split('&').next().expect("a key");
        assert_eq!(
            answer.json()["message"],
            format!("Could not locate record: at://{}/{}", account.did, path(rkey))
        );
    }
    for (repo, name) in [
        ("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "RepoNotFound"),
        ("nobody.test", "RepoNotFound"),
        ("nohandle", "InvalidRequest"),
    ] {
        let answer = server
            .get(&get(format!("repo={repo}&collection={THING}&rkey=k3")))
            .await;
        assert_eq!(answer.error(), (400, name.to_owned()), "{repo}");
    }
    for bad in [
        "collection=thing&rkey=k3",
        "collection=com.example.thing&rkey=..",
        "rkey=k3",
    ] {
        let answer = server.get(&get(format!("repo={}&{bad}", account.did))).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".to_owned()), "{bad}");
    }
}

#[tokio::test]
async fn records_are_listed_newest_first_or_reversed_page_by_page() {
    let store = MemoryStore::new();
    let account = alice();
    account.save(&store);
    let server = Server::start(&store).await;
    for (reverse, want) in [
        ("", "43210"),
        ("&reverse=false", "43210"),
        ("&reverse=true", "01234"),
    ] {
        for limit in 1..=6 {
            let (mut got, mut cursor, mut pages) = (String::new(), String::new(), 0);
            loop {
                let rest = format!(
                    "repo={}&collection={THING}&limit={limit}{reverse}{cursor}",
                    account.did
                );
                let page = server.get(&query("repo.listRecords", &rest)).await.json();
                let records = page["records"].as_array().expect("a list");
                assert!(!records.is_empty() && records.len() <= limit);
                for record in records {
                    let text = record["value"]["t"].as_str().expect("a text");
                    let number = text.strip_prefix("text ").expect("numbered");
                    assert!(
                        record["uri"]
                            .as_str()
                            .expect("a uri")
                            .ends_with(&format!("/k{number}"))
                    );
                    got.push_str(number);
                }
                pages += 1;
                match page["cursor"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
            assert_eq!(
                (got.as_str(), pages),
                (want, 5usize.div_ceil(limit)),
                "limit {limit}{reverse}"
            );
        }
    }
    let none = server
        .get(&query(
            "repo.listRecords",
            &format!("repo={}&collection=com.example.none", account.did),
        ))
        .await;
    assert_eq!(none.json(), json!({ "records": [] }));
    for bad in ["limit=0", "limit=101", "reverse=1", "reverse=", "cursor=a%2Fb"] {
        let rest = format!("repo={}&collection={THING}&{bad}", account.did);
        let answer = server.get(&query("repo.listRecords", &rest)).await;
        assert_eq!(answer.error(), (400, "InvalidRequest".to_owned()), "{bad}");
    }
}

#[tokio::test]
async fn a_page_of_large_records_ends_early_and_goes_on() {
    let store = MemoryStore::new();
    let account = Account::new("large", 1).large_records();
    account.save(&store);
    let server = Server::start(&store).await;
    let (mut seen, mut cursor, mut pages) = (0, String::new(), 0);
    loop {
        let rest = format!("repo={}&collection={THING}&limit=100{cursor}", account.did);
        let answer = server.get(&query("repo.listRecords", &rest)).await;
        assert!(answer.body.len() < 5 << 20);
        let page = answer.json();
        seen += page["records"].as_array().expect("a list").len();
        pages += 1;
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((seen, pages), (12, 3));
}

#[tokio::test]
async fn records_that_are_dear_as_json_are_left_out_and_few_of_them_make_a_page() {
    // Arrays of byte strings of one byte each: what takes least in a record and most in memory.
    let dear = |values: u16| {
        let [high, low] = values.to_be_bytes();
        [&[0x99, high, low][..], &vec![0x40; usize::from(values)]].concat()
    };
    let store = MemoryStore::new();
    let account = (0..5).fold(Account::new("dear", 1), |account, number| {
        account.record(&format!("d{number}"), 1, &dear(15_000))
    });
    let account = account.record("huge", 1, &dear(60_000));
    account.save(&store);
    let server = Server::start(&store).await;
    let of = |rest: &str| format!("repo={}&collection={THING}{rest}", account.did);
    let huge = server.get(&query("repo.getRecord", &of("&rkey=huge"))).await;
    assert_eq!(huge.error(), (400, "InvalidRequest".to_owned()));
    let one = server.get(&query("repo.getRecord", &of("&rkey=d1"))).await;
    assert_eq!(one.status, 200);
    let (mut seen, mut cursor, mut pages) = (0, String::new(), 0);
    loop {
        let answer = server
            .get(&query("repo.listRecords", &of(&format!("&limit=100{cursor}"))))
            .await;
        let page = answer.json();
        seen += page["records"].as_array().expect("a list").len();
        pages += 1;
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert!(seen == 5 && pages >= 2, "{seen} in {pages}");
}

#[tokio::test]
async fn records_that_json_cannot_say_are_named_and_damaged_ones_are_an_error() {
    let store = MemoryStore::new();
    // Tag 43 means nothing in the data model.
    let account = alice().record("odd", 1, &[0xd8, 43, 0]);
    account.save(&store);
    let server = Server::start(&store).await;
    let list = query(
        "repo.listRecords",
        &format!("repo={}&collection={THING}", account.did),
    );
    let get = |rkey: &str| {
        query(
            "repo.getRecord",
            &format!("repo={}&collection={THING}&rkey={rkey}", account.did),
        )
    };
    let answer = server.get(&list).await;
    assert_eq!(answer.header("firekeep-left-out"), "1");
    assert_eq!(answer.json()["records"].as_array().expect("a list").len(), 5);
    assert_eq!(
        server.get(&get("odd")).await.error(),
        (400, "InvalidRequest".to_owned())
    );

    let key = keyspace::encode_record(account.account_number(), path("k3").as_bytes());
    let mut value = store.get(Family::Records, &key).expect("read").expect("there");
    *value.last_mut().expect("bytes") ^= 1;
    let mut batch = Batch::new();
    batch.put(Family::Records, key, value);
    store.write(batch).expect("written");
    for path in [list, get("k3")] {
        assert_eq!(
            server.get(&path).await.error(),
            (500, "InternalServerError".to_owned())
        );
    }
    assert_eq!(server.get(&get("k2")).await.status, 200);
}

#[tokio::test]
async fn a_repository_is_described_by_what_was_read_of_its_document() {
    let store = MemoryStore::new();
    let account = alice();
    account.save(&store);
    let plain = Account::new("plain", 2).record("one", 1, &record("x"));
    plain.save(&store);
    let server = Server::start(&store).await;
    let described = server
        .get(&query("repo.describeRepo", "repo=alice.test"))
        .await
        .json();
    assert_eq!(described["did"], account.did.as_str());
    assert_eq!(described["handle"], "alice.test");
    assert_eq!(described["collections"], json!([THING]));
    assert_eq!(
        described["handleIsCorrect"], false,
        "nobody asked the handle's domain"
    );
    let document = &described["didDoc"];
    assert_eq!(document["id"], account.did.as_str());
    assert_eq!(document["alsoKnownAs"], json!(["at://alice.test"]));
    let service = &document["service"][0];
    assert_eq!(service["serviceEndpoint"], "https://pds.example.com");
    let key = document["verificationMethod"][0]["publicKeyMultibase"].as_str();
    assert!(key.is_some_and(|key| key.starts_with('z')), "{document}");
    let described = server
        .get(&query("repo.describeRepo", &format!("repo={}", plain.did)))
        .await
        .json();
    assert_eq!(described["handle"], "handle.invalid");
    assert!(described["didDoc"].get("service").is_none());
}

#[tokio::test]
async fn missing_blobs_are_those_whose_bytes_are_not_here() {
    let store = MemoryStore::new();
    let mut account = Account::new("missing", 1).blob("held", 1, b"held", "image/png", BlobState::Held);
    let mut want = Vec::new();
    for (number, state) in [
        BlobState::Wanted,
        BlobState::Missing {
            reason: BlobFailure::NotFound,
            tries: 1,
        },
        BlobState::Wanted,
    ]
    .into_iter()
    .enumerate()
    {
        let cid = Cid::of_blob(&[number as u8]);
        account = account.blob_without_bytes(&format!("lost{number}"), 1, cid, "image/png", state);
        want.push(json!({
            "cid": cid.to_string(),
            "recordUri": format!("at://{}/{}", account.did, path(&format!("lost{number}"))),
        }));
    }
    want.sort_by_key(|blob| blob["cid"].as_str().expect("a text").to_owned());
    account.save(&store);
    let server = Server::start(&store).await;
    for limit in 1..=4 {
        let (mut got, mut cursor) = (Vec::new(), String::new());
        loop {
            let rest = format!("did={}&limit={limit}{cursor}", account.did);
            let page = server.get(&query("repo.listMissingBlobs", &rest)).await.json();
            got.extend(page["blobs"].as_array().expect("a list").clone());
            match page["cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(got, want, "limit {limit}");
    }
    // On a PDS the account is the one of the token: there is none here.
    let answer = server.get(&query("repo.listMissingBlobs", "")).await;
    assert_eq!(answer.error(), (401, "AuthMissing".to_owned()));
}

#[tokio::test]
async fn what_is_hidden_is_hidden_from_the_methods_of_records_too() {
    let store = MemoryStore::new();
    let account = alice().status(AccountStatus::Takendown);
    account.save(&store);
    let server = Server::start(&store).await;
    let did = &account.did;
    for (path, name) in [
        (
            query(
                "repo.getRecord",
                &format!("repo={did}&collection={THING}&rkey=k1"),
            ),
            "RepoTakendown",
        ),
        (
            query("repo.listRecords", &format!("repo={did}&collection={THING}")),
            "RepoTakendown",
        ),
        (
            query("repo.describeRepo", &format!("repo={did}")),
            "RepoTakendown",
        ),
        (
            query("repo.listMissingBlobs", &format!("did={did}")),
            "RepoTakendown",
        ),
        (query("repo.describeRepo", "repo=alice.test"), "RepoNotFound"),
        (
            query("identity.resolveHandle", "handle=alice.test"),
            "HandleNotFound",
        ),
        (
            query("sync.getRecord", &format!("did={did}&collection={THING}&rkey=k1")),
            "RepoTakendown",
        ),
        (
            query(
                "sync.getBlocks",
                &format!("did={did}&cids={}", account.head().commit),
            ),
            "RepoTakendown",
        ),
        (
            query("sync.getRepo", &format!("did={did}&since=3jqfcqzm3fo2j")),
            "RepoTakendown",
        ),
    ] {
        assert_eq!(server.get(&path).await.error(), (400, name.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn handles_that_are_known_are_resolved() {
    let store = MemoryStore::new();
    let account = alice();
    account.save(&store);
    let server = Server::start(&store).await;
    let resolve = |handle: &str| query("identity.resolveHandle", &format!("handle={handle}"));
    let found = server.get(&resolve("alice.test")).await;
    assert_eq!(found.json(), json!({ "did": account.did.as_str() }));
    let absent = server.get(&resolve("bob.test")).await;
    assert_eq!(absent.error(), (400, "HandleNotFound".to_owned()));
    assert_eq!(absent.json()["message"], "Unable to resolve handle");
    for bad in [
        "",
        "alice",
        "did:plc:x",
        "a..b",
        &format!("{}.test", "a".repeat(300)),
    ] {
        assert_eq!(
            server.get(&resolve(bad)).await.error(),
            (400, "InvalidRequest".to_owned()),
            "{bad}"
        );
    }
}

fn put_host(store: &MemoryStore, name: &str, cursor: u64) -> HostName {
    let host: HostName = name.parse().expect("a host");
    let row = HostRow {
        cursor: Some(cursor),
        ..HostRow::new(&format!("https://{name}"))
    };
    let mut batch = Batch::new();
    batch.put(Family::Hosts, keyspace::encode_host(&host), row.encode());
    store.write(batch).expect("written");
    host
}

#[tokio::test]
async fn hosts_are_listed_with_where_they_stand() {
    let store = MemoryStore::new();
    alice().save(&store);
    Account::new("gone", 2)
        .status(AccountStatus::Deleted)
        .save(&store);
    let host = put_host(&store, "pds.example.com", 17);
    put_host(&store, "other.example.com", 3);
    let server = Server::start(&store).await;
    server.metrics.host(&host).connected.set(1);
    let pds = json!({ "hostname": "pds.example.com", "seq": 17, "accountCount": 1, "status": "active" });
    let other = json!({ "hostname": "other.example.com", "seq": 3, "accountCount": 0, "status": "offline" });
    let list = |rest: &str| query("sync.listHosts", rest);
    assert_eq!(
        server.get(&list("")).await.json(),
        json!({ "hosts": [other, pds] })
    );
    let first = server.get(&list("limit=1")).await.json();
    assert_eq!(first, json!({ "hosts": [other], "cursor": "other.example.com" }));
    assert_eq!(
        server.get(&list("limit=1&cursor=other.example.com")).await.json(),
        json!({ "hosts": [pds] })
    );
    let status = |host: &str| query("sync.getHostStatus", &format!("hostname={host}"));
    assert_eq!(server.get(&status("pds.example.com")).await.json(), pds);
    let unknown = server.get(&status("unknown.example.com")).await;
    assert_eq!(unknown.error(), (400, "HostNotFound".to_owned()));
    assert_eq!(
        server.get(&status("a%2Fb")).await.error(),
        (400, "InvalidRequest".to_owned())
    );
}

#[tokio::test]
async fn the_server_says_who_it_is() {
    let store = MemoryStore::new();
    let server = Server::start(&store).await;
    let described = server.get(&query("server.describeServer", "")).await.json();
    let did = "did:web:backup.example.com";
    assert_eq!(
        described,
        json!({ "did": did, "availableUserDomains": [], "inviteCodeRequired": true })
    );
    let document: Value = server.get("/.well-known/did.json").await.json();
    assert_eq!(document["id"], did);
    assert_eq!(
        document["service"],
        json!([{
            "id": "#repo_backup",
            "type": "RepoBackupService",
            "serviceEndpoint": "https://backup.example.com",
        }])
    );
    let hidden = Server::start_as(&store, NoBlobArchive, ServeLimits::default(), None).await;
    assert_eq!(hidden.get("/.well-known/did.json").await.status, 404);
    let described = hidden.get(&query("server.describeServer", "")).await.json();
    assert_eq!(
        described["did"],
        format!("did:web:localhost%3A{}", hidden.xrpc.port())
    );
}
