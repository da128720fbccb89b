#![allow(clippy::disallowed_methods, reason = "tests")]
//! Retention at random points of a long life: an account writes, its mirror ships, snapshots and falls back, objects
//! rot, time passes, and pruning is cut short wherever it is. Whatever was there of the window before is there after,
//! record by record, with every blob; as long as nothing rots, that is all that was ever shipped.
//!
//! A seed replays exactly but for where a run of pruning is cut short. `FIREKEEP_PRUNE_SEEDS=FROM..TO` plays others.

use std::ops::Range;

use super::super::names::{BlobName, DidFolder, ObjectName};
use super::super::reader::ArchiveReader;
use super::super::test_archive::{Churn, START, TestArchive, blob};
use super::super::timeline::At;
use super::tests::{Case, DAY, NOTHING};
use super::*;
use crate::repo::record::scan_record;
use crate::sim::account::{post, post_with_blob};
use crate::types::Cid;

const BLOBS: u64 = 24;
const HOUR: Duration = Duration::from_secs(3600);

struct World {
    case: Case,
    /// Entries that are in the log, and its next number and last index.
    shipped: usize,
    log: (u64, Option<Cid>),
    /// States that have a snapshot, as they came.
    snapshots: Vec<usize>,
    needed: BTreeMap<Digest, Timestamp>,
    rotten: bool,
    pruned: u64,
    cut_short: u64,
}

impl World {
    async fn new(seed: u64) -> Self {
        let mut churn = Churn::new(seed);
        let archive = TestArchive::new().await;
        archive.snapshot(churn.did(), &churn.states[0]).await;
        let window = DAY * [2, 4, 9][index(churn.roll(3))];
        let last = 1 + u32::try_from(churn.roll(2)).expect("small");
        let days = [0, 3][index(churn.roll(2))];
        let mut case = Case::of(archive, churn).await;
        case.keep = Keep {
            window,
            last,
            days,
            ..NOTHING
        };
        case.now = START;
        Self {
            case,
            shipped: 0,
            log: (1, None),
            snapshots: vec![0],
            needed: BTreeMap::new(),
            rotten: false,
            pruned: 0,
            cut_short: 0,
        }
    }

    fn roll(&mut self, below: u64) -> u64 {
        self.case.churn.roll(below)
    }

    fn blobs_of(&self, state: usize) -> BTreeSet<Digest> {
        let records = self.case.churn.states[state].records.values();
        let blobs = records.flat_map(|record| scan_record(record).blobs);
        blobs.map(|blob| *blob.cid.digest()).collect()
    }

    async fn step(&mut self) {
        match self.roll(12) {
            0..=4 => {
                for _ in 0..=self.roll(3) {
                    self.commit().await;
                }
            }
            5..=6 => self.ship().await,
            7 => self.snapshot(false).await,
            8 => self.snapshot(true).await,
            9 if self.roll(6) == 0 => self.rot().await,
            _ => self.prune().await,
        }
    }

    async fn commit(&mut self) {
        let minutes = 1 + self.roll(600);
        self.case.now = self.case.now.plus(Duration::from_secs(60 * minutes));
        let (now, state) = (self.case.now, self.case.churn.states.len());
        let mut writes = BTreeMap::new();
        for _ in 0..=self.roll(3) {
            let path = format!("app.bsky.feed.post/key{}", self.roll(12));
            let number = self.roll(1 << 30);
            let record = match self.roll(4) {
                0 if self.case.churn.last().records.contains_key(&path) => None,
                1 | 2 => {
                    let picture = blob(number % BLOBS);
                    self.case.archive.blob(self.case.churn.did(), &picture).await;
                    Some(post_with_blob("picture", &Cid::of_blob(&picture), 8))
                }
                _ => Some(post(&format!("text {number}"))),
            };
            writes.insert(path, record);
        }
        let writes: Vec<_> = writes.into_iter().collect();
        self.case.churn.write(&writes, now, now);
        // Needed until now is what came, what went, and what stays.
        for digest in &self.blobs_of(state - 1) | &self.blobs_of(state) {
            self.needed.insert(digest, now);
        }
    }

    /// Three entries a segment; what is left over waits.
    async fn ship(&mut self) {
        let whole = (self.case.churn.entries.len() - self.shipped) / 3 * 3;
        let range = self.shipped..self.shipped + whole;
        let at = (1, self.log.0, self.log.1);
        let (names, prev) = self.case.archive.segments(&[&self.case.churn], range, at).await;
        self.log = (self.log.0 + names.len() as u64, prev);
        self.shipped += whole;
    }

    /// A snapshot, and what leads to it. A mirror that fell back leads there in one step, from an older one.
    async fn snapshot(&mut self, fell_back: bool) {
        let head = self.case.churn.states.len() - 1;
        let newest = *self.snapshots.last().expect("the first");
        if newest == head {
            return;
        }
        let (archive, churn) = (&self.case.archive, &self.case.churn);
        if fell_back {
            let count = self.snapshots.len() as u64;
            let from = self.snapshots[index(self.case.churn.roll(count))];
            let (archive, churn) = (&self.case.archive, &self.case.churn);
            if from < head {
                archive
                    .delta_of(churn, from..head, &[churn.swap(from, head)])
                    .await;
            }
        } else {
            archive.delta(churn, newest..head).await;
        }
        let did = self.case.churn.did();
        self.case
            .archive
            .snapshot(did, &self.case.churn.states[head])
            .await;
        self.snapshots.push(head);
    }

    async fn rot(&mut self) {
        let names = self.case.names().await;
        let all: Vec<_> = names
            .iter()
            .filter(|name| matches!(name, ObjectName::Snapshot(_) | ObjectName::Delta(_)))
            .collect();
        let name = all[index(self.case.churn.roll(all.len() as u64))].to_string();
        let path = self.case.archive.path(&name);
        let mut bytes = std::fs::read(&path).expect("reads");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::write(&path, bytes).expect("writes");
        self.rotten = true;
    }

    /// What the mirror would say.
    fn tell(&self) {
        let head = self.blobs_of(self.case.churn.states.len() - 1);
        let mut blobs = self.case.held.blobs.lock().expect("one thread");
        for (digest, needed) in &self.needed {
            let known = match head.contains(digest) {
                true => KnownBlob::Referenced,
                false => KnownBlob::Unreferenced(*needed),
            };
            blobs.insert(*digest, known);
        }
        let waiting = self.shipped + 1..self.case.churn.states.len();
        let waiting = waiting.flat_map(|state| self.blobs_of(state)).collect();
        *self.case.held.waiting.lock().expect("one thread") = waiting;
    }

    /// States that were so at a moment of the window.
    fn window(&self) -> Range<usize> {
        let start = self.case.now.minus(self.case.keep.window);
        let states = &self.case.churn.states;
        let first = states.partition_point(|state| state.time <= start);
        first.saturating_sub(1)..states.len()
    }

    /// States of the window that the archive gives, each of them as it was, and with all its blobs.
    async fn given(&self) -> BTreeSet<usize> {
        let (case, did) = (&self.case, self.case.churn.did());
        let reader = ArchiveReader::of_bucket(case.archive.bucket.clone(), case.archive.folder.path());
        let reader = reader.await.expect("opens");
        let line = reader.timeline(did, None).await.expect("reads");
        let mut given = BTreeSet::new();
        for state in self.window() {
            let then = &case.churn.states[state];
            let Ok(choice) = line.choose(At::Rev(then.rev)) else {
                continue;
            };
            let Ok(rebuilt) = reader.rebuild(did, &line, choice.index, &[]).await else {
                continue;
            };
            let records = rebuilt.records.iter();
            let held: BTreeMap<String, Cid> = records.map(|(path, cid)| (path.to_string(), *cid)).collect();
            let records = then.records.iter();
            let was = records.map(|(path, bytes)| (path.clone(), Cid::of_block(bytes)));
            assert_eq!(held, was.collect(), "state {state}");
            for blob in self.blobs_of(state) {
                let did = DidFolder::try_from(did).expect("short");
                let name = BlobName { did, blob }.to_string();
                let there = case.archive.bucket.head(&name).await.expect("asks");
                assert!(there.is_some(), "a blob of state {state} is not there: {name}");
            }
            given.insert(state);
        }
        given
    }

    async fn prune(&mut self) {
        let hours = 1 + u32::try_from(self.roll(90)).expect("small");
        self.case.now = self.case.now.plus(HOUR * hours);
        self.tell();
        let before = self.given().await;
        let cancel = CancellationToken::new();
        let cut = (self.roll(3) == 0).then(|| self.case.churn.roll(8));
        let most = self
            .case
            .names()
            .await
            .len()
            .saturating_sub(index(cut.unwrap_or(0)));
        let (stop, bucket) = (cancel.clone(), self.case.archive.bucket.clone());
        let watch = cut.map(|_| {
            tokio::spawn(async move {
                while bucket.list("v1/", None).await.expect("lists").objects.len() > most {
                    tokio::task::yield_now().await;
                }
                stop.cancel();
            })
        });
        if self.roll(3) == 0 {
            // The process began anew.
            self.case.memory = Memory::default();
        }
        let mut pruned = Pruned::default();
        let ended = self.case.prune_until(cancel, &mut pruned).await;
        if let Some(watch) = watch {
            watch.abort();
        }
        match ended {
            Ok(()) => {}
            Err(PruneError::Cancelled) => self.cut_short += 1,
            Err(error) => panic!("pruning failed: {error}"),
        }
        self.pruned += pruned.objects();
        let after = self.given().await;
        let lost: Vec<_> = before.difference(&after).collect();
        assert!(lost.is_empty(), "states {lost:?} are lost: {pruned:?}");
        if !self.rotten {
            let all = self.window().filter(|state| *state <= self.shipped);
            let missing: Vec<_> = all.filter(|state| !after.contains(state)).collect();
            assert!(missing.is_empty(), "states {missing:?} are not there");
            let report = self.case.report().await;
            assert_ne!(report.exit_code(), 4, "{}", report.text());
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("small")
}

#[tokio::test]
async fn whatever_happens_the_window_is_whole() {
    let seeds = std::env::var("FIREKEEP_PRUNE_SEEDS").ok();
    let seeds = seeds.as_deref().and_then(|text| text.split_once(".."));
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let seeds = seeds.map_or(1..7, |(from, to)| number(from)..number(to));
    let (mut pruned, mut cut_short, mut rotten) = (0, 0, 0);
    for seed in seeds.clone() {
        let mut world = World::new(seed).await;
        let play = async {
            for _ in 0..60 {
                world.step().await;
            }
            world.prune().await;
        };
        let played = std::panic::AssertUnwindSafe(play);
        if let Err(panic) = futures_util::FutureExt::catch_unwind(played).await {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
        pruned += world.pruned;
        cut_short += world.cut_short;
        rotten += u64::from(world.rotten);
    }
    println!(
        "seeds {seeds:?}: {pruned} objects removed, {cut_short} runs cut short, {rotten} lives with rot"
    );
    assert!(pruned > 0 && cut_short > 0, "{pruned} {cut_short}");
}
