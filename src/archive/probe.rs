#![allow(clippy::disallowed_methods, reason = "shell: waits for the store")]
//! What a store really does with the requests that an archive rests on, found out by trying.
//!
//! Stores differ in what they promise and in what they keep of it; some take a condition and ignore it. So before
//! several daemons may rely on one, it is asked: objects are written below a name of their own (`v1/probe/…`, where
//! no object of an archive lies), read, listed, raced for and removed again.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use self::verdict::{CreateOnly, Lock, Probed, Versions};
use super::bucket::{Body, Bucket, BucketError, BucketErrorKind, PutOptions, PutOutcome};
use super::content_type::ContentType;
use super::names;
use crate::clock::Clock;

pub mod verdict;

#[cfg(test)]
mod tests;

/// Creators at once.
const CREATORS: usize = 16;
/// Rounds of them.
const ROUNDS: u32 = 10;
/// Objects that are written, read, listed and removed.
const OBJECTS: usize = 20;
/// How long a list may take to show what was written, before it counts as never.
const LIST_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at it.
const LIST_LOOK: Duration = Duration::from_millis(500);
/// What a probe left behind is removed by a later one after this long.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// What became of a single put that must not replace an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// The store says that it made the object.
    Created,
    /// The store says that there is one.
    Refused,
    /// The store says that another request is under way.
    Conflict,
    /// The store says that it cannot do that.
    Unsupported,
}

/// What became of removing everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Removed {
    pub(super) removed: u64,
    pub(super) left: u64,
}

/// Finds out what a store does. Leaves nothing behind, unless the store does not let us.
///
/// # Errors
/// When the store cannot be used: then nothing is known of it.
pub async fn probe(bucket: &Bucket, clock: &Clock) -> Result<Probed, BucketError> {
    let run = Run {
        bucket,
        prefix: format!(
            "{}{:020}-{:016x}/",
            names::PROBE,
            clock.now().millis(),
            clock.random()
        ),
    };
    let tried = run.all().await;
    let left = run.clean_up(clock).await;
    let mut probed = tried?;
    probed.left_behind = left;
    Ok(probed)
}

struct Run<'b> {
    bucket: &'b Bucket,
    /// Below which everything of this probe lies.
    prefix: String,
}

/// Why what is removed from a bucket may not be gone, for a person; none where it is.
pub async fn old_versions(bucket: &Bucket) -> Option<String> {
    let Bucket::S3(s3) = bucket else { return None };
    let mut versions = s3.probe_versions().await;
    // What a store does not say, what was removed from it tells.
    if versions == Versions::Unknown && s3.probe_old_versions(names::ROOT).await == Some(true) {
        versions = Versions::On;
    }
    remains(versions, s3.probe_lock().await).map(|why| format!("{bucket}: {why}"))
}

/// What a store does to objects that are removed.
fn remains(versions: Versions, lock: Lock) -> Option<&'static str> {
    match (versions, lock) {
        (_, Lock::ByDefault) => Some(
            "its objects are locked for a time: until it is over, what was removed stays there as old versions, and \
             nobody can remove those",
        ),
        (Versions::On | Versions::Suspended, _) => Some(
            "it keeps old versions: what was removed stays there until you remove them, or a lifecycle rule for \
             noncurrent versions does",
        ),
        (Versions::Off | Versions::Unknown, _) => None,
    }
}

impl Run<'_> {
    async fn all(&self) -> Result<Probed, BucketError> {
        let mut probed = Probed {
            archive: self.bucket.to_string(),
            create_only: CreateOnly::Untried,
            create_only_in_parts: CreateOnly::Untried,
            winners_max: 0,
            races: 0,
            lists_late: false,
            refuses_bad_bodies: None,
            versions: Versions::Off,
            lock: Lock::Off,
            lies: Vec::new(),
            left_behind: 0,
        };
        if let Bucket::S3(s3) = self.bucket {
            (probed.versions, probed.lock) = (s3.probe_versions().await, s3.probe_lock().await);
        }
        self.keeps_what_it_takes(&mut probed).await?;
        if !probed.lies.is_empty() {
            return Ok(probed);
        }
        if let Bucket::S3(s3) = self.bucket {
            // What it does counts more than what it says.
            probed.versions = match (
                s3.probe_old_versions(&self.name("object-")).await,
                probed.versions,
            ) {
                (Some(true), Versions::Off | Versions::Unknown) => Versions::On,
                (Some(false), Versions::Unknown) => Versions::Off,
                (_, said) => said,
            };
        }
        probed.create_only = self.create_only(&mut probed).await?;
        probed.create_only_in_parts = self.create_only_in_parts(&mut probed).await?;
        if let Bucket::S3(s3) = self.bucket {
            probed.refuses_bad_bodies = s3.probe_bad_body(&self.name("bad-body")).await.ok();
        }
        Ok(probed)
    }

    fn name(&self, what: &str) -> String {
        format!("{}{what}", self.prefix)
    }

    /// Written, replaced, listed, removed: each is seen at once.
    async fn keeps_what_it_takes(&self, probed: &mut Probed) -> Result<(), BucketError> {
        let names: Vec<String> = (0..OBJECTS)
            .map(|n| self.name(&format!("object-{n:03}")))
            .collect();
        for text in ["first", "the second"] {
            for name in &names {
                match self.replace(name, &format!("{text} {name}")).await {
                    // The bucket reads back what it writes, and has seen it already. Nobody else writes here.
                    Err(error)
                        if matches!(error.kind, BucketErrorKind::Corrupt | BucketErrorKind::Conflict) =>
                    {
                        probed.lies.push(error.to_string());
                        return Ok(());
                    }
                    put => put?,
                }
                let found = self.read(name).await?;
                if found.as_deref() != Some(format!("{text} {name}").as_bytes()) {
                    let what = match found {
                        None => "it says that it took an object, and does not have it",
                        Some(_) => "it says that it took an object, and gives other bytes back",
                    };
                    probed.lies.push(what.to_owned());
                    return Ok(());
                }
            }
        }
        let mut waited = Duration::ZERO;
        while self.listed("object-").await? != names {
            probed.lists_late = true;
            if waited >= LIST_PATIENCE {
                probed.lies.push("its list never shows what it has".to_owned());
                return Ok(());
            }
            tokio::time::sleep(LIST_LOOK).await;
            waited += LIST_LOOK;
        }
        let page = self
            .bucket
            .list(&self.name("object-"), Some(&names[OBJECTS / 2]))
            .await?;
        let rest: Vec<&String> = page.objects.iter().map(|object| &object.name).collect();
        if rest != names[OBJECTS / 2 + 1..].iter().collect::<Vec<_>>() {
            probed
                .lies
                .push("its list does not go on where it is told to".to_owned());
        }
        for name in &names {
            self.bucket.delete(name).await?;
            if self.bucket.head(name).await?.is_some() {
                probed
                    .lies
                    .push("it says that it removed an object, and still has it".to_owned());
                return Ok(());
            }
        }
        Ok(())
    }

    /// A second creator, then many at once.
    async fn create_only(&self, probed: &mut Probed) -> Result<CreateOnly, BucketError> {
        let name = self.name("create-only");
        let first = self.create(&name, "first".into()).await?;
        if first == Put::Unsupported {
            return Ok(CreateOnly::Unsupported);
        }
        let second = self.create(&name, "second".into()).await?;
        let stored = self.read(&name).await?;
        match (first, second, stored.as_deref()) {
            (Put::Created, Put::Refused | Put::Conflict, Some(b"first")) => {}
            (Put::Created, Put::Created, Some(b"second")) => return Ok(CreateOnly::Ignored),
            (Put::Created, Put::Unsupported, Some(b"first")) => return Ok(CreateOnly::Unsupported),
            (first, second, _) => {
                let what = "it does not say what it does with an object that must not be replaced";
                probed.lies.push(format!("{what} ({first:?}, then {second:?})"));
                return Ok(CreateOnly::Ignored);
            }
        }
        for round in 0..ROUNDS {
            let name = self.name(&format!("race-{round:03}"));
            let tries = (0..CREATORS).map(|n| self.create(&name, format!("creator {n}").into()));
            let mut winners = Vec::new();
            for (n, put) in join_all(tries).await.into_iter().enumerate() {
                if put? == Put::Created {
                    winners.push(format!("creator {n}"));
                }
            }
            probed.races += 1;
            probed.winners_max = probed
                .winners_max
                .max(u32::try_from(winners.len()).unwrap_or(u32::MAX));
            let stored = self.read(&name).await?;
            let of_winner = stored
                .as_ref()
                .is_some_and(|bytes| winners.iter().any(|winner| winner.as_bytes() == &**bytes));
            match winners.len() {
                1 if of_winner => {}
                // All were told that another request is under way: nobody was told a lie.
                0 if stored.is_none() => {}
                0 | 1 => {
                    let what = "of creators at once it tells one that it won, and keeps another one's object";
                    probed.lies.push(what.to_owned());
                    return Ok(CreateOnly::Racy);
                }
                _ => return Ok(CreateOnly::Racy),
            }
        }
        match probed.winners_max {
            1 => Ok(CreateOnly::Honoured),
            _ => Ok(CreateOnly::Racy),
        }
    }

    async fn create_only_in_parts(&self, probed: &mut Probed) -> Result<CreateOnly, BucketError> {
        let Bucket::S3(s3) = self.bucket else {
            // A folder has no parts: large files are linked to their name as small ones are.
            return Ok(probed.create_only);
        };
        let name = self.name("in-parts");
        self.replace(&name, "first").await?;
        let second = s3.probe_create_parts(&name, "second".into()).await?;
        let stored = self.read(&name).await?;
        Ok(match (second, stored.as_deref()) {
            (Put::Refused | Put::Conflict, Some(b"first")) => CreateOnly::Honoured,
            (Put::Created, Some(b"second")) => CreateOnly::Ignored,
            (Put::Unsupported, _) => CreateOnly::Unsupported,
            _ => {
                let what = "it does not say what it does with an object that goes in parts";
                probed.lies.push(what.to_owned());
                CreateOnly::Ignored
            }
        })
    }

    async fn create(&self, name: &str, body: Bytes) -> Result<Put, BucketError> {
        match self.bucket {
            Bucket::S3(s3) => s3.probe_create(name, body).await,
            Bucket::Folder(_) => {
                let options = PutOptions::create(ContentType::binary());
                match self.bucket.put(name, Body::Bytes(body), &options).await? {
                    PutOutcome::Created => Ok(Put::Created),
                    PutOutcome::AlreadyThere => Ok(Put::Refused),
                }
            }
        }
    }

    async fn replace(&self, name: &str, text: &str) -> Result<(), BucketError> {
        let mut options = PutOptions::create(ContentType::binary());
        options.create_only = false;
        let body = Body::Bytes(Bytes::copy_from_slice(text.as_bytes()));
        self.bucket.put(name, body, &options).await.map(drop)
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>, BucketError> {
        match self.bucket.get(name).await? {
            Some(object) => object.bytes(4096).await.map(Some),
            None => Ok(None),
        }
    }

    async fn listed(&self, what: &str) -> Result<Vec<String>, BucketError> {
        let page = self.bucket.list(&self.name(what), None).await?;
        Ok(page.objects.into_iter().map(|object| object.name).collect())
    }

    /// Removes what this probe wrote, and what others left behind long ago. Returns how much could not be.
    async fn clean_up(&self, clock: &Clock) -> u64 {
        let old = format!("{}{:020}", names::PROBE, clock.now().minus(LEFTOVER_AGE).millis());
        let mut left = 0;
        // Ours are fewer than fit on a page. Of the others a page is enough: the next probe takes the next.
        for prefix in [self.prefix.as_str(), names::PROBE] {
            let Ok(page) = self.bucket.list(prefix, None).await else {
                left += 1;
                continue;
            };
            let gone = |name: &str| name.starts_with(&self.prefix) || name < old.as_str();
            for object in page.objects.iter().filter(|object| gone(&object.name)) {
                left += u64::from(self.bucket.delete(&object.name).await.is_err());
            }
        }
        if let Bucket::S3(s3) = self.bucket {
            left += s3.probe_remove_versions(&self.prefix).await.left;
        }
        left
    }
}
