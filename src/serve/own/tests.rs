//! What was, given back as it was; and each error that takes a story.

use serde_json::{Value, json};

use crate::archive::test_archive::{Churn, TestArchive};
use crate::mirror::erased::ErasedMark;
use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::{AccountStatus, Row as _};
use crate::mirror::{Batch, Family, Store as _, keyspace};
use crate::repo::car::parse_car;
use crate::serve::fixture::{Account, Answer, Directory, Server, admin_header, post, record};

struct World {
    store: MemoryStore,
    server: Server,
    account: Account,
    churn: Churn,
    _archive: TestArchive,
}

async fn world() -> World {
    let store = MemoryStore::new();
    let churn = Churn::new(3).run(60);
    let archive = TestArchive::of(&churn).await;
    let mut account = Account::new("alice", 1).record("one", 5, &record("text"));
    account.did = churn.did().clone();
    account.save(&store);
    let server = Server::start(&store).await;
    assert!(server.bucket.set(archive.bucket.clone()).is_ok());
    let key =
        crate::repo::signing_key::SecretKey::from_bytes(crate::repo::signing_key::Curve::K256, &[7; 32]);
    let identity = Directory::identity(&account.did, &key.expect("a scalar"), "pds.elsewhere.com");
    let mut identities = server.directory.identities.lock().expect("no panic");
    identities.insert(account.did.clone(), identity);
    drop(identities);
    World {
        store,
        server,
        account,
        churn,
        _archive: archive,
    }
}

impl World {
    async fn get(&self, method: &str, query: &str) -> Answer {
        let path = format!(
            "/xrpc/dev.firekeep.backup.{method}?did={}{query}",
            self.account.did
        );
        self.server.ask("GET", &path, &admin_header()).await
    }

    async fn ask(&self, method: &str, input: Value) -> Answer {
        let mut body = input;
        body["did"] = self.account.did.as_str().into();
        let path = format!("/xrpc/dev.firekeep.backup.{method}");
        post(self.server.xrpc, &path, &admin_header(), &body.to_string()).await
    }

    fn put(&self, row: &crate::mirror::rows::AccountRow) {
        let mut batch = Batch::new();
        batch.put(
            Family::Accounts,
            keyspace::encode_account(&self.account.did),
            row.encode(),
        );
        self.store.write(batch).expect("written");
    }
}

#[tokio::test]
async fn every_moment_is_given_back_as_it_was() {
    let world = world().await;
    for index in [0, 17, 40, 59, 60] {
        let then = &world.churn.states[index];
        let by_rev = world.get("getRepoAt", &format!("&rev={}", then.rev)).await;
        assert_eq!(by_rev.status, 200, "{index}");
        assert_eq!(by_rev.header("firekeep-rev"), then.rev.to_string());
        assert!(by_rev.is_whole());
        let car = parse_car(&by_rev.body).expect("a CAR");
        assert_eq!(car.roots, [then.commit.0]);
        for bytes in then.records.values() {
            assert!(
                car.blocks.iter().any(|(_, block)| *block == &bytes[..]),
                "{index}"
            );
        }
        let at = world.churn.at(then.time).expect("a state");
        let by_time = world.get("getRepoAt", &format!("&time={}", then.time)).await;
        assert_eq!(by_time.header("firekeep-rev"), at.rev.to_string());
        for (path, bytes) in then.records.iter().take(2) {
            let (collection, rkey) = path.split_once('/').expect("a path");
            let query = format!("&collection={collection}&rkey={rkey}&rev={}", then.rev);
            let record = world.get("getRecordAt", &query).await.json();
            assert_eq!(record["cid"], crate::types::Cid::of_block(bytes).to_string());
        }
    }
    // Pages go back to the first one, each once.
    let (mut revs, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = world
            .get("listRevisions", &format!("&limit=25{cursor}"))
            .await
            .json();
        let list = page["revisions"].as_array().expect("a list");
        revs.extend(
            list.iter()
                .map(|one| one["rev"].as_str().expect("a rev").to_owned()),
        );
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let expected: Vec<String> = world
        .churn
        .states
        .iter()
        .rev()
        .map(|then| then.rev.to_string())
        .collect();
    assert_eq!(revs, expected);
    let snapshots = world.get("listSnapshots", "").await.json();
    assert_eq!(snapshots["snapshots"].as_array().map(Vec::len), Some(2));
    let proof = world.ask("verify", json!({})).await.json();
    assert_eq!(
        (&proof["mirror"]["ok"], &proof["archive"]["ok"]),
        (&true.into(), &true.into()),
        "{proof}"
    );
}

#[tokio::test]
async fn moments_and_records_that_are_not_there_say_so() {
    let world = world().await;
    let first = &world.churn.states[0];
    let one = "&collection=a.b.c&rkey=gone";
    for (method, query, name) in [
        (
            "getRepoAt",
            "&time=2001-01-01T00:00:00Z".to_owned(),
            "MomentNotFound",
        ),
        ("getRepoAt", "&rev=2222222222222".to_owned(), "MomentNotFound"),
        (
            "getRepoAt",
            format!("&rev={}&time=2001-01-01T00:00:00Z", first.rev),
            "InvalidRequest",
        ),
        ("getRecordAt", one.to_owned(), "RecordNotFound"),
        ("getRecordAt", format!("{one}&time=yesterday"), "InvalidRequest"),
    ] {
        let answer = world.get(method, &query).await;
        assert_eq!(answer.error(), (400, name.to_owned()), "{method} {query}");
        let text = answer.json()["message"].to_string();
        assert!(!text.contains("firekeep history"), "{text}");
    }
}

#[tokio::test]
async fn nothing_of_it_is_for_the_public() {
    let world = world().await;
    for (method, query) in [
        ("listSnapshots", ""),
        ("listRevisions", ""),
        ("getRepoAt", ""),
        ("getRecordAt", "&collection=a.b.c&rkey=d"),
    ] {
        let path = format!(
            "/xrpc/dev.firekeep.backup.{method}?did={}{query}",
            world.account.did
        );
        assert_eq!(
            world.server.get(&path).await.error(),
            (401, "AuthMissing".to_owned()),
            "{method}"
        );
        assert_eq!(world.server.ask("POST", &path, "").await.status, 405);
    }
    for method in [
        "pin",
        "unpin",
        "verify",
        "followHost",
        "unfollowHost",
        "signUp",
        "removeAccount",
    ] {
        let path = format!("/xrpc/dev.firekeep.backup.{method}");
        let body = json!({
            "did": world.account.did.as_str(), "url": "https://a.example", "hostname": "a.example",
        });
        let answer = post(world.server.xrpc, &path, "", &body.to_string()).await;
        assert_eq!(answer.error(), (401, "AuthMissing".to_owned()), "{method}");
        assert_eq!(world.server.get(&path).await.status, 405, "{method}");
    }
    assert!(world.server.control.told.lock().expect("no panic").is_empty());
}

#[tokio::test]
async fn each_error_that_takes_a_story() {
    let world = world().await;
    let name = |answer: Answer| answer.error();
    // By the admin a host is added for a sign-up; that fails here, and is told.
    *world.server.control.failing.lock().expect("no panic") = Some("any");
    for (method, input) in [
        ("signUp", json!({})),
        ("followHost", json!({ "url": "https://a.example" })),
        ("pin", json!({})),
        ("unpin", json!({})),
        ("requestSnapshot", json!({})),
        ("removeAccount", json!({})),
        ("removeAccount", json!({ "now": true })),
    ] {
        assert_eq!(
            name(world.ask(method, input).await),
            (400, "NotDone".to_owned()),
            "{method}"
        );
    }
    *world.server.control.failing.lock().expect("no panic") = None;
    assert_eq!(
        name(world.ask("requestSnapshot", json!({})).await),
        (429, "TooManyRequests".to_owned())
    );
    assert_eq!(
        name(
            world
                .ask("unfollowHost", json!({ "hostname": "a.example" }))
                .await
        )
        .1,
        "HostNotFound"
    );
    assert_eq!(
        name(
            world
                .ask("followHost", json!({ "url": "x", "follow": "some" }))
                .await
        )
        .1,
        "InvalidRequest"
    );
    // Its document names a PDS that is not followed: the admin may have it followed.
    assert_eq!(world.ask("signUp", json!({})).await.status, 200);
    let told = world.server.control.told.lock().expect("no panic").clone();
    assert!(
        told.iter()
            .any(|told| told.starts_with("follow scope=listed url=https://pds.elsewhere.com")),
        "{told:?}"
    );
    // Others may not.
    let token = crate::restore::token::service_token(
        &crate::repo::signing_key::SecretKey::from_bytes(crate::repo::signing_key::Curve::K256, &[7; 32])
            .expect("a scalar"),
        &world.account.did,
        "did:web:backup.example.com",
        "dev.firekeep.backup.signUp",
        world.server.clock.now(),
        1,
    );
    let headers = format!("authorization: Bearer {}\r\n", *token);
    let refused = post(
        world.server.xrpc,
        "/xrpc/dev.firekeep.backup.signUp",
        &headers,
        "",
    )
    .await;
    assert_eq!(name(refused), (400, "HostNotFollowed".to_owned()));
    let mut row = world.account.row();
    row.erased = Some(ErasedMark::Whole);
    world.put(&row);
    assert_eq!(
        name(world.ask("signUp", json!({})).await),
        (400, "AccountErased".to_owned())
    );
    assert_eq!(
        world.ask("removeAccount", json!({})).await.json()["removed"],
        true
    );
    world
        .server
        .directory
        .identities
        .lock()
        .expect("no panic")
        .clear();
    world.put(&world.account.row());
    assert_eq!(
        name(world.ask("signUp", json!({})).await),
        (400, "NoHost".to_owned())
    );
}

#[tokio::test]
async fn of_a_hidden_account_little_is_told() {
    let mut world = world().await;
    let public = |world: &World| {
        let path = format!(
            "/xrpc/dev.firekeep.backup.getAccountStatus?did={}",
            world.account.did
        );
        let address = world.server.xrpc;
        async move { crate::serve::fixture::ask(address, "GET", &path, "").await }
    };
    let status = public(&world).await.json();
    assert_eq!((&status["active"], &status["records"]), (&true.into(), &1.into()));
    world.account.status = AccountStatus::Takendown;
    world.account.save(&world.store);
    let status = public(&world).await.json();
    assert_eq!(status["status"], "takendown");
    assert!(
        status.get("records").is_none() && status.get("rev").is_none(),
        "{status}"
    );
    assert_eq!(
        world.get("getAccountStatus", "").await.json()["records"],
        1,
        "the admin sees it"
    );
    world.account.status = AccountStatus::Deleted;
    world.account.save(&world.store);
    assert_eq!(public(&world).await.error().1, "RepoNotFound");
}
