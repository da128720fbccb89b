//! CAR files and blobs as people bring them.

use super::*;
use crate::archive::test_archive::START;
use crate::sim::account::SimAccount;

/// A record that refers to a blob.
fn record(number: u8, blob: Option<&[u8]>) -> Vec<u8> {
    use ipld_core::ipld;
    let value = match blob {
        None => ipld!({ "number": number }),
        Some(bytes) => ipld!({
            "number": number,
            "picture": {
                "$type": "blob",
                "ref": ipld_core::cid::Cid::try_from(Cid::of_blob(bytes).to_string().as_str()).expect("a CID"),
                "mimeType": "image/png",
                "size": bytes.len() as i64,
            },
        }),
    };
    serde_ipld_dagcbor::to_vec(&value).expect("encodes")
}

/// An account, and its repository as a CAR.
fn account() -> (SimAccount, Vec<u8>) {
    let mut account = SimAccount::new(1, START);
    let writes: Vec<_> = (0..30u8)
        .map(|n| {
            let picture = [n; 9];
            let blob = (n % 10 == 0).then_some(&picture[..]);
            (format!("app.test.note/{n}"), Some(record(n, blob)))
        })
        .collect();
    // Its first commit is all of it.
    let car = account.write(&writes, START).car();
    (account, car)
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
        std::fs::write(&path, bytes).expect("writes");
        path
    }

    fn open(&self, car: &Path, blobs: Option<&Path>, account: &SimAccount) -> Result<Backup, RestoreError> {
        Backup::of_file(car, blobs, account.did(), &[account.key()], self.0.path())
    }
}

#[test]
fn a_car_is_proven_packed_or_not_and_written_anew() {
    let ((account, car), place) = (account(), Place::new());
    let plain = place.file("a.car", &car);
    let packed = place.file("a.car.zst", &zstd::encode_all(&car[..], 3).expect("packs"));
    for path in [plain, packed] {
        let mut backup = place.open(&path, None, &account).expect("proves");
        let facts = &backup.facts;
        assert_eq!(
            (facts.records, facts.rev, facts.commit),
            (30, account.rev(), account.head())
        );
        assert_eq!(facts.signed_by, Some(account.key().to_did_key()));
        assert_eq!(facts.blobs.len(), 3);
        assert!(
            facts
                .blobs
                .values()
                .all(|blob| blob.held.is_none() && blob.mime == "image/png")
        );
        let size = facts.car_bytes;
        let mut bytes = Vec::new();
        backup.car.read_to_end(&mut bytes).expect("reads");
        assert_eq!(bytes.len() as u64, size);
        let (keys, none) = ([account.key()], BTreeSet::new());
        let again =
            read_car(&bytes[..], "anew", account.did(), &keys, &none, place.0.path()).expect("proves");
        assert_eq!(again.records, backup.records);
        assert_eq!(again.commit, account.head());
    }
}

#[test]
fn what_is_not_the_whole_account_is_refused() {
    let ((account, car), place) = (account(), Place::new());
    let other = SimAccount::new(2, START);
    let did = account.did();
    let read = |bytes: &[u8], did: &Did, key: SigningKey| {
        read_car(bytes, "a.car", did, &[key], &BTreeSet::new(), place.0.path())
    };
    let refused = |bytes: &[u8], did: &Did, key: SigningKey, what: &str| match read(bytes, did, key) {
        Err(RestoreError::Unproven(text)) => assert!(text.contains(what), "{what}: {text}"),
        other => panic!("{what}: {:?}", other.err()),
    };
    assert!(read(&car, did, account.key()).is_ok());
    refused(&car, other.did(), other.key(), "it is the repository of");
    refused(&car, did, other.key(), "not signed by any key");
    refused(b"", did, account.key(), "a.car");
    for cut in [10, car.len() / 2, car.len() - 1] {
        refused(&car[..cut], did, account.key(), "a.car");
    }
    for at in (70..car.len()).step_by(211) {
        let mut bad = car.clone();
        bad[at] ^= 1;
        assert!(read(&bad, did, account.key()).is_err(), "byte {at}");
    }
    // Whole blocks that are not there: the last one is some record or node.
    let mut reader = CarReader::new(&car[..]).expect("a CAR");
    let (mut block, mut without, mut held) = (
        Vec::new(),
        crate::repo::car::encode_header(&[account.head()]),
        None,
    );
    while let Some((cid, _)) = reader.next_block(&mut block).expect("reads") {
        if let Some((cid, block)) = held.replace((cid, block.clone())) {
            crate::repo::car::encode_block(&mut without, &cid, &block);
        }
    }
    assert!(read(&without, did, account.key()).is_err());
}

#[test]
fn what_was_erased_may_be_absent_and_is_named_by_the_tree() {
    let ((account, car), place) = (account(), Place::new());
    let keys = [account.key()];
    let read = |bytes: &[u8], withheld: &BTreeSet<Cid>| {
        read_car(bytes, "a.car", account.did(), &keys, withheld, place.0.path())
    };
    let whole = read(&car, &BTreeSet::new()).expect("proves");
    let mut records = whole.records.values().copied();
    let (erased, other) = (records.next().expect("some"), records.next_back().expect("more"));
    let without = |gone: &[Cid]| {
        let mut reader = CarReader::new(&car[..]).expect("a CAR");
        let (mut block, mut out) = (Vec::new(), crate::repo::car::encode_header(&[account.head()]));
        while let Some((cid, _)) = reader.next_block(&mut block).expect("reads") {
            if !gone.contains(&cid) {
                crate::repo::car::encode_block(&mut out, &cid, &block);
            }
        }
        out
    };
    let noted = BTreeSet::from([erased]);
    let given = read(&without(&[erased]), &noted).expect("proves");
    assert_eq!(given.records, whole.records, "compared by CID");
    // Nothing else may be absent.
    assert!(read(&without(&[erased]), &BTreeSet::new()).is_err());
    assert!(read(&without(&[erased, other]), &noted).is_err());
}

#[tokio::test]
async fn blobs_come_from_a_folder_or_a_tar_and_are_hashed() {
    let ((account, car), place) = (account(), Place::new());
    let car = place.file("a.car", &car);
    let cid = |n: u8| Cid::of_blob(&[n; 9]);
    // One is there, one is damaged, one is missing.
    for (n, bytes) in [(0u8, [0; 9]), (10, [11; 9])] {
        place.file(&format!("blobs/{}", cid(n)), &bytes);
    }
    let tar_path = place.0.path().join("b.tar");
    let mut tar = tar::Builder::new(File::create(&tar_path).expect("makes"));
    tar.append_dir_all("blobs", place.0.path().join("blobs"))
        .expect("packs");
    tar.finish().expect("packs");
    let folder = place.0.path().to_owned();
    for blobs in [folder.clone(), folder.join("blobs"), tar_path] {
        let backup = place.open(&car, Some(&blobs), &account).expect("proves");
        let held = |n| backup.facts.blobs[&cid(n)].held;
        assert_eq!((held(0), held(10), held(20)), (Some(9), Some(9), None));
        let mut found = String::new();
        for n in [0, 10, 20] {
            match backup.blobs.fetch(&cid(n), &folder).await.expect("reads") {
                Fetched::Whole(mut file, size) => {
                    let mut bytes = Vec::new();
                    file.read_to_end(&mut bytes).expect("reads");
                    assert_eq!((bytes, size), (vec![0; 9], 9));
                    found.push('w');
                }
                Fetched::Damaged(why) => {
                    assert!(why.contains("do not hash"), "{why}");
                    found.push('d');
                }
                Fetched::Missing => found.push('m'),
            }
        }
        assert_eq!(found, "wdm", "{}", blobs.display());
    }
    let none = place.open(&car, Some(Path::new("/nowhere.tar")), &account);
    assert!(
        none.err()
            .is_some_and(|error| error.to_string().contains("/nowhere.tar"))
    );
}
