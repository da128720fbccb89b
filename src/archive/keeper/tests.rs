//! What is there already, and an archive that fails.

use super::*;
use crate::archive::folder::FolderBucket;
use crate::mirror::keyspace;
use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::{KeptCar, Row as _};
use crate::mirror::store::{Batch, Family};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n: a picture";

struct Fixture {
    keeper: Arc<Keeper>,
    blob: BlobKey,
    object: PathBuf,
    root: PathBuf,
    _keep: tempfile::TempDir,
}

/// An archive in a folder.
async fn open(root: &std::path::Path) -> Bucket {
    let bucket = Bucket::Folder(FolderBucket::open(root).await.expect("opens"));
    let options = PutOptions::create(ContentType::json());
    let put = bucket
        .put(names::ARCHIVE, Body::Bytes("{}".into()), &options)
        .await;
    put.expect("puts");
    bucket
}

/// A mirror that holds one blob, and an archive in a folder.
async fn holding(bytes: &[u8]) -> Fixture {
    let keep = tempfile::tempdir().expect("a folder");
    let root = keep.path().join("archive");
    let did: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("a DID");
    let blob = BlobKey {
        did: did.clone(),
        did_number: 7,
        digest: *Cid::of_blob(bytes).digest(),
    };
    let size = bytes.len() as u64;
    let mut row = BlobRow::wanted(Some(size), None, Timestamp::from_micros(1));
    row.state = BlobState::Held;
    let mut batch = Batch::new();
    let (key, data) = (
        keyspace::encode_blob(7, &blob.digest),
        keyspace::encode_blob_data(7, &blob.digest, 0),
    );
    batch.put(Family::Blobs, key, row.encode());
    batch.put(Family::BlobData, data, bytes);
    let store = Arc::new(MemoryStore::new());
    store.write(batch).expect("writes");
    let bucket = open(&root).await;
    let name = BlobName {
        did: DidFolder::try_from(&did).expect("short"),
        blob: blob.digest,
    };
    Fixture {
        keeper: Arc::new(Keeper::new(
            store,
            bucket,
            Clock::manual(Timestamp::from_micros(1)),
            keep.path().to_owned(),
            Arc::new(Metrics::new()),
        )),
        blob,
        object: root.join(name.to_string()),
        root,
        _keep: keep,
    }
}

#[tokio::test]
async fn a_blob_in_the_archive_counts_by_its_hash_and_not_by_its_size() {
    let fixture = holding(PNG).await;
    let archive = || fixture.keeper.blob(fixture.blob.clone(), Vec::new());
    assert!(matches!(archive().await, Ok(Input::BlobArchived { .. })));
    assert_eq!(std::fs::read(&fixture.object).expect("there"), PNG);

    // One bit of what stands there went bad: its size is the same.
    let mut rotten = PNG.to_vec();
    rotten[9] ^= 1;
    std::fs::write(&fixture.object, &rotten).expect("writes");
    assert!(matches!(archive().await, Ok(Input::BlobArchived { .. })));
    assert_eq!(std::fs::read(&fixture.object).expect("there"), PNG);
}

/// What a lax host sends of an account.
fn lax_car(account: &crate::sim::SimAccount) -> (Cid, Vec<u8>) {
    let (commit, blocks) = account.lax_blocks(account.rev());
    let mut sent = crate::repo::car::encode_header(&[commit]);
    for (cid, bytes) in &blocks {
        crate::repo::car::encode_block(&mut sent, cid, bytes);
    }
    (commit, sent)
}

#[tokio::test]
async fn a_quarantined_car_is_archived_as_it_came_under_a_name_of_its_own() {
    let keep = tempfile::tempdir().expect("a folder");
    let root = keep.path().join("archive");
    let now = Timestamp::from_micros(1_800_000_000_000_000);
    let account = crate::sim::SimAccount::new(3, now);
    let (commit, sent) = lax_car(&account);
    let car = KeptCar {
        number: 9,
        rev: account.rev(),
        commit,
        bytes: sent.len() as u64,
        sha256: crate::types::cid::sha256(&sent),
        since: now,
        archived: false,
        damaged: false,
    };
    let mut row = AccountRow::new(7, "pds.test".parse().expect("a host"), now);
    row.kept_car = Some(car.clone());
    let store = Arc::new(MemoryStore::new());
    let put = |family, key: Vec<u8>, value: Vec<u8>| {
        let mut batch = Batch::new();
        batch.put(family, key, value);
        store.write(batch).expect("writes");
    };
    let keep_row = |row: &AccountRow| {
        put(
            Family::Accounts,
            keyspace::encode_account(account.did()),
            row.encode(),
        );
    };
    keep_row(&row);
    let chunk = |number| keyspace::encode_blob_data(9, commit.digest(), number).to_vec();
    let (first, rest) = sent.split_at(100);
    put(Family::BlobData, chunk(0), first.to_vec());
    let keeper = Arc::new(Keeper::new(
        Arc::clone(&store) as _,
        open(&root).await,
        Clock::manual(now),
        keep.path().to_owned(),
        Arc::new(Metrics::new()),
    ));
    let archive = || keeper.quarantined(account.did().clone(), Vec::new());
    let object = root.join(format!(
        "v1/repos/{}/{}-{commit}.car.quarantined.zst",
        account.did(),
        account.rev()
    ));

    // What is held is not what came: nothing is archived as if it were.
    let flipped = [b"?", &rest[1..]].concat();
    for damaged in [
        None,
        Some(flipped),
        Some(rest[1..].to_vec()),
        Some([rest, b"?"].concat()),
    ] {
        if let Some(damaged) = damaged {
            put(Family::BlobData, chunk(1), damaged);
        }
        let archived = archive().await;
        assert!(
            matches!(archived, Ok(Input::CarDamaged { number: 9, .. })),
            "no later try would find it sound: {archived:?}"
        );
        assert!(!object.exists());
    }
    // What was found so is not tried again.
    if let Some(car) = &mut row.kept_car {
        car.damaged = true;
    }
    keep_row(&row);
    assert!(matches!(archive().await, Ok(Input::TaskDone { .. })));
    row.kept_car = Some(car.clone());
    keep_row(&row);
    put(Family::BlobData, chunk(1), rest.to_vec());
    // The second time its object is there already.
    for _ in 0..2 {
        let archived = archive().await;
        assert!(
            matches!(archived, Ok(Input::CarArchived { number: 9, .. })),
            "{archived:?}"
        );
        let file = File::open(&object).expect("there");
        assert!(zstd::decode_all(file).expect("zstd") == sent, "not what came");
    }
    assert!(!keeper.is_failing());
    // An object of that name that is something else is not taken for it.
    std::fs::write(&object, b"something else").expect("writes");
    assert!(matches!(archive().await, Ok(Input::TaskDelayed { .. })));
    row.kept_car = Some(KeptCar {
        archived: true,
        ..car
    });
    keep_row(&row);
    assert!(matches!(archive().await, Ok(Input::TaskDone { .. })));
}

#[tokio::test]
async fn an_archive_that_refuses_is_failing_until_it_takes_something() {
    let fixture = holding(PNG).await;
    let archive = || fixture.keeper.blob(fixture.blob.clone(), Vec::new());
    assert!(!fixture.keeper.is_failing());
    // A file where the folder of the blobs should be.
    let blocks = fixture.root.join("v1/blocks");
    std::fs::create_dir_all(fixture.root.join("v1")).expect("made");
    std::fs::write(&blocks, "").expect("writes");
    assert!(matches!(archive().await, Ok(Input::TaskDelayed { .. })));
    assert!(fixture.keeper.is_failing());

    std::fs::remove_file(&blocks).expect("removed");
    assert!(matches!(archive().await, Ok(Input::BlobArchived { .. })));
    assert!(!fixture.keeper.is_failing());
}

#[tokio::test]
async fn nothing_is_put_where_the_archive_is_not() {
    let fixture = holding(PNG).await;
    std::fs::remove_file(fixture.root.join(names::ARCHIVE)).expect("as if it were not mounted");
    let archived = fixture.keeper.blob(fixture.blob.clone(), Vec::new()).await;
    assert!(matches!(archived, Ok(Input::TaskDelayed { .. })), "{archived:?}");
    assert!(!fixture.object.exists());
}

/// What a directory says of the fixture's account, with a key.
fn said(did: &Did, key: u8, at: u64) -> crate::identity::resolver::Testimony {
    let key =
        crate::repo::signing_key::SecretKey::from_bytes(crate::repo::signing_key::Curve::K256, &[key; 32]);
    let method = serde_json::json!({
        "id": "#atproto",
        "type": "Multikey",
        "controller": did.as_str(),
        "publicKeyMultibase": key.expect("in range").public().to_multikey(),
    });
    crate::identity::resolver::Testimony {
        document: serde_json::json!({ "id": did.as_str(), "verificationMethod": [method] }),
        plc_log: None,
        read_at: Timestamp::from_micros(at * 1000),
    }
}

#[tokio::test]
async fn an_identity_is_archived_at_each_change_and_not_otherwise() {
    let fixture = holding(PNG).await;
    let did = fixture.blob.did.clone();
    let mut row = AccountRow::new(7, "pds.test".parse().expect("a host"), Timestamp::default());
    let put = |row: &AccountRow| {
        let mut batch = Batch::new();
        batch.put(Family::Accounts, keyspace::encode_account(&did), row.encode());
        fixture.keeper.store.write(batch).expect("writes");
    };
    let archive = |key, at| {
        fixture
            .keeper
            .identity(did.clone(), said(&did, key, at), Vec::new())
    };
    put(&row);
    let Ok(Input::IdentityArchived { digest, .. }) = archive(7, 1).await else {
        panic!("it is archived");
    };
    // Killed before that was noted: the same object is ours.
    assert!(matches!(archive(7, 1).await, Ok(Input::IdentityArchived { .. })));
    row.identity_archived = Some(digest);
    put(&row);
    assert!(
        matches!(archive(7, 2).await, Ok(Input::TaskDone { .. })),
        "nothing new"
    );
    // The clock was set back to a moment that has one of other content: at another moment, then.
    assert!(matches!(archive(8, 1).await, Ok(Input::TaskDelayed { .. })));
    let Ok(Input::IdentityArchived { digest: other, .. }) = archive(8, 3).await else {
        panic!("a change is archived");
    };
    assert_ne!(digest, other);
    // Of an erased account nothing is put any more, whatever its directory says.
    row.erased = Some(crate::mirror::erased::ErasedMark::Whole);
    put(&row);
    assert!(matches!(archive(9, 4).await, Ok(Input::TaskDone { .. })));

    let folder = fixture.root.join(format!("v1/identity/{did}"));
    assert_eq!(std::fs::read_dir(folder).expect("there").count(), 2);
    let reader =
        crate::archive::reader::ArchiveReader::of_bucket(fixture.keeper.bucket.clone(), &fixture.root);
    let reader = reader.await.expect("opens");
    let (files, unusable) = reader.identities(&did).await.expect("reads");
    let keys: Vec<_> = files.iter().map(|file| file.keys().expect("keys")).collect();
    assert_eq!((keys.len(), keys.concat().len(), unusable.len()), (2, 2, 0));
}

/// As many changes as fill two deltas, one made after the other.
#[tokio::test]
async fn what_led_to_a_snapshot_goes_before_it_in_as_many_deltas_as_it_takes() {
    use crate::mirror::applier::tests::{NOW, World, write};

    let keep = tempfile::tempdir().expect("a folder");
    let root = keep.path().join("archive");
    let mut world = World::new();
    let mut account = world.live(1);
    let mut row = world.row(account.did()).expect("known");
    let head = row.head.clone().expect("loaded");
    row.snapshot = Some(crate::mirror::rows::SnapshotMark {
        rev: head.rev,
        commit: head.commit,
        at: NOW,
        bytes: 1,
    });
    world.put_row(account.did(), &row);
    for n in 0..30 {
        let writes: Vec<_> = (0..100).map(|k| write(&format!("n{n}-{k}"), "x")).collect();
        world.commit(&mut account, &writes);
    }
    let keeper = Arc::new(Keeper::new(
        Arc::clone(&world.store) as _,
        open(&root).await,
        Clock::manual(NOW),
        keep.path().to_owned(),
        Arc::new(Metrics::new()),
    ));
    let stored = keeper.snapshot(account.did().clone(), Vec::new()).await;
    assert!(matches!(stored, Ok(Input::SnapshotStored(_))), "{stored:?}");
    let folder = root.join(format!("v1/repos/{}", account.did()));
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .expect("there")
        .map(|entry| entry.expect("reads").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    let [first, second, snapshot] = &*names else {
        panic!("{names:?}")
    };
    assert!(first.starts_with(&format!("{}..", head.rev)), "{first}");
    let between = first
        .split("..")
        .nth(1)
        .and_then(|rest| rest.get(..13))
        .expect("a rev");
    assert!(
        second.starts_with(&format!("{between}..{}-", account.rev())),
        "{second}"
    );
    assert!(snapshot.starts_with(&format!("{}-", account.rev())), "{snapshot}");
}
