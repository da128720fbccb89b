//! Each way of a store to be another than it says, on a small store in memory, is found and said.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::super::s3::tests::fake::{FakeStore, Seen, answer, refusal};
use super::super::settings::{ArchiveConfig, S3Input};
use super::verdict::Class;
use super::*;
use crate::types::Timestamp;

/// How the store in memory is other than it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// Takes `If-None-Match`, and replaces.
    IgnoresConditions,
    /// Says that it has none.
    NoConditions,
    /// Of creators at once, several are told that they won.
    Racy,
    /// Says that it stored what it did not.
    Drops,
    /// Gives what was there before.
    Stale,
    /// Lists nothing of the last writes at first.
    ListsLate,
    /// Never lists one object.
    ListsNever,
    /// Says that it removed what it keeps.
    Keeps,
    /// Keeps old versions and locks.
    Versioned,
    /// Keeps old versions, and says nothing of it.
    SecretlyVersioned,
}

#[derive(Default)]
struct Memory {
    objects: BTreeMap<String, Vec<u8>>,
    digests: BTreeMap<String, String>,
    lists: usize,
    writes: usize,
}

impl Memory {
    fn answer(&mut self, flaw: Flaw, seen: &Seen) -> Vec<u8> {
        let (path, query) = seen.target.split_once('?').unwrap_or((&seen.target, ""));
        let key = decode(path.trim_start_matches("/bucket").trim_start_matches('/'));
        match &*seen.method {
            "GET" if query.contains("versioning") && flaw == Flaw::SecretlyVersioned => {
                refusal(403, "AccessDenied")
            }
            "GET" if query.contains("versioning") => {
                let status = if flaw == Flaw::Versioned {
                    "<Status>Enabled</Status>"
                } else {
                    ""
                };
                answer(
                    200,
                    "",
                    &format!("<VersioningConfiguration>{status}</VersioningConfiguration>"),
                )
            }
            "GET" if query.contains("object-lock") && flaw == Flaw::Versioned => answer(
                200,
                "",
                "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
                 <Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>",
            ),
            "GET" if query.contains("object-lock") => refusal(404, "ObjectLockConfigurationNotFoundError"),
            "GET" if query.contains("versions") && flaw == Flaw::SecretlyVersioned => answer(
                200,
                "",
                "<ListVersionsResult><Version><Key>x</Key><VersionId>1</VersionId><IsLatest>false</IsLatest></Version>\
                 </ListVersionsResult>",
            ),
            "GET" if query.contains("versions") => answer(200, "", "<ListVersionsResult/>"),
            "GET" if key.is_empty() => self.list(flaw, query),
            "POST" => refusal(501, "NotImplemented"),
            "PUT" => self.put(flaw, seen, key),
            "DELETE" => {
                if flaw != Flaw::Keeps {
                    self.objects.remove(&key);
                }
                answer(204, "", "")
            }
            _ => self.get(&key, seen.method == "HEAD"),
        }
    }

    fn put(&mut self, flaw: Flaw, seen: &Seen, key: String) -> Vec<u8> {
        let conditional = seen.head.contains("if-none-match");
        self.writes += 1;
        if conditional {
            let there = self.objects.contains_key(&key);
            match flaw {
                Flaw::NoConditions => return refusal(501, "NotImplemented"),
                Flaw::IgnoresConditions => {}
                Flaw::Racy if key.contains("race-") && self.writes.is_multiple_of(5) => {}
                _ if there => return refusal(412, "PreconditionFailed"),
                _ => {}
            }
        }
        if flaw == Flaw::Stale && self.objects.contains_key(&key)
            || flaw == Flaw::Drops && key.contains("003")
        {
            return answer(200, "", "");
        }
        let digest = seen
            .head
            .lines()
            .find_map(|line| line.strip_prefix("x-amz-meta-sha256: "));
        self.digests
            .insert(key.clone(), digest.unwrap_or_default().to_owned());
        self.objects.insert(key, seen.body.clone());
        answer(200, "", "")
    }

    fn get(&self, key: &str, head: bool) -> Vec<u8> {
        let Some(bytes) = self.objects.get(key) else {
            return match head {
                true => answer(404, "", ""),
                false => refusal(404, "NoSuchKey"),
            };
        };
        let text = String::from_utf8_lossy(bytes).into_owned();
        let digest = self.digests.get(key).filter(|digest| !digest.is_empty());
        let digest = digest.map_or(String::new(), |digest| format!("x-amz-meta-sha256: {digest}\r\n"));
        let headers = format!("content-length: {}\r\n{digest}", text.len());
        answer(200, &headers, if head { "" } else { &text })
    }

    fn list(&mut self, flaw: Flaw, query: &str) -> Vec<u8> {
        let field = |name: &str| {
            let found = query.split('&').find_map(|part| part.strip_prefix(name));
            decode(found.unwrap_or_default())
        };
        let (prefix, after) = (field("prefix="), field("start-after="));
        self.lists += 1;
        let hidden = |key: &str| match flaw {
            Flaw::ListsLate => self.lists < 3 && key.contains("019"),
            Flaw::ListsNever => key.contains("007"),
            _ => false,
        };
        let keys = self
            .objects
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix) && key.as_str() > after.as_str() && !hidden(key));
        let keys = keys.map(|(key, bytes)| {
            format!(
                "<Contents><Key>{key}</Key><Size>{}</Size></Contents>",
                bytes.len()
            )
        });
        let keys: String = keys.collect();
        answer(
            200,
            "",
            &format!("<ListBucketResult><IsTruncated>false</IsTruncated>{keys}</ListBucketResult>"),
        )
    }
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8_lossy()
        .into_owned()
}

fn clock() -> Clock {
    Clock::manual(Timestamp::from_micros(1_780_000_000_000_000))
}

async fn store(flaw: Flaw) -> (FakeStore, Arc<Mutex<Memory>>) {
    let memory = Arc::new(Mutex::new(Memory::default()));
    let inner = Arc::clone(&memory);
    let store = FakeStore::new(move |seen, _| inner.lock().expect("no panic").answer(flaw, seen)).await;
    (store, memory)
}

async fn of(flaw: Flaw) -> (Probed, BTreeMap<String, Vec<u8>>) {
    let (store, memory) = store(flaw).await;
    let probed = probe(&store.bucket, &clock()).await.expect("a usable store");
    let left = memory.lock().expect("no panic").objects.clone();
    (probed, left)
}

#[tokio::test]
async fn a_sound_store_is_safe_and_left_clean() {
    let (probed, left) = of(Flaw::None).await;
    assert_eq!(probed.lies, [""; 0]);
    assert_eq!(
        (probed.class(), probed.create_only),
        (Class::SeveralWriters, CreateOnly::Honoured)
    );
    assert_eq!(
        (probed.races, probed.winners_max, probed.left_behind),
        (ROUNDS, 1, 0)
    );
    assert_eq!((probed.versions, probed.lock), (Versions::Off, Lock::Off));
    assert_eq!(probed.create_only_in_parts, CreateOnly::Unsupported);
    assert_eq!(probed.refuses_bad_bodies, Some(false));
    assert_eq!(left, BTreeMap::new());
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_told_from_one_that_has_none() {
    for (flaw, create_only) in [
        (Flaw::IgnoresConditions, CreateOnly::Ignored),
        (Flaw::NoConditions, CreateOnly::Unsupported),
        (Flaw::Racy, CreateOnly::Racy),
    ] {
        let (probed, left) = of(flaw).await;
        assert_eq!(
            (probed.create_only, probed.class()),
            (create_only, Class::OneWriter),
            "{flaw:?}"
        );
        assert!(probed.lies.is_empty(), "{flaw:?}: {:?}", probed.lies);
        assert!(left.is_empty(), "{flaw:?}");
    }
    assert!(of(Flaw::Racy).await.0.winners_max > 1);
}

#[tokio::test]
async fn a_store_that_does_not_keep_what_it_takes_is_refused() {
    for flaw in [Flaw::Stale, Flaw::Drops, Flaw::Keeps] {
        let (probed, _) = of(flaw).await;
        assert_eq!(probed.class(), Class::Refused, "{flaw:?}");
        assert_eq!(probed.lies.len(), 1, "{flaw:?}: {:?}", probed.lies);
    }
}

#[tokio::test]
async fn a_list_that_comes_late_is_said_and_one_that_never_comes_refused() {
    let (probed, _) = of(Flaw::ListsLate).await;
    assert!(probed.lists_late && probed.lies.is_empty(), "{:?}", probed.lies);
    assert_eq!(probed.class(), Class::OneWriter);
    let (probed, _) = of(Flaw::ListsNever).await;
    assert_eq!(probed.class(), Class::Refused);
}

#[tokio::test]
async fn versions_and_locks_are_said() {
    let (probed, _) = of(Flaw::Versioned).await;
    assert_eq!((probed.versions, probed.lock), (Versions::On, Lock::ByDefault));
    assert!(probed.text().contains("nothing can be deleted"));
    assert_eq!(of(Flaw::SecretlyVersioned).await.0.versions, Versions::On);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_safe_and_old_leftovers_go() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = ArchiveConfig::parse(
        &format!("file://{}", folder.path().display()),
        &S3Input::default(),
    );
    let bucket = Bucket::open(&config.expect("valid")).await.expect("opens");
    let now = clock().now();
    let leftover = |ago: Duration| format!("{}{:020}-x/y", names::PROBE, now.minus(ago).millis());
    let (old, young) = (leftover(LEFTOVER_AGE * 2), leftover(LEFTOVER_AGE / 2));
    for name in [&old, &young] {
        let options = PutOptions::create(ContentType::binary());
        bucket
            .put(name, Body::Bytes("x".into()), &options)
            .await
            .expect("writes");
    }
    let probed = probe(&bucket, &clock()).await.expect("usable");
    assert_eq!((probed.class(), probed.exit_code()), (Class::SeveralWriters, 0));
    assert_eq!(probed.create_only_in_parts, CreateOnly::Honoured);
    let left = bucket.list("", None).await.expect("readable").objects;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].name, young);
    // An archive can be made there all the same.
    let id = super::super::identity::ArchiveId::from_bytes([1; 16]);
    assert!(
        super::super::identity::open_or_create(&bucket, id, now)
            .await
            .is_ok()
    );
}
