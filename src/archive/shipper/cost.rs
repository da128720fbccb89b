//! What an archive costs in requests: the real shipper and keeper, on a clock that only moves when told to, against a
//! folder whose objects are counted. Every put makes one object, so they are the puts.

use super::*;
use crate::archive::folder::FolderBucket;
use crate::archive::identity::{self, ArchiveId};
use crate::archive::keeper::Keeper;
use crate::config::cost::{Habits, writes_a_month};
use crate::mirror::applier::tests::{NOW, World};
use crate::mirror::applier::{Applier, ApplierLimits};
use crate::mirror::handle;
use crate::mirror::input::BlobKey;
use crate::mirror::keyspace::Task;
use crate::mirror::memory::MemoryStore;
use crate::mirror::numbers::Numbers;
use crate::mirror::store::Batch;
use crate::sim::SimAccount;
use crate::sim::account::{post, post_with_blob};
use crate::types::{Cid, Timestamp};

const ACCOUNTS: u64 = 100;
const WRITES_A_DAY: u64 = 20;
/// Of so many writes one has a picture.
const PICTURE_EVERY: u64 = 10;
const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
/// What a month may cost.
const PUTS_MAX: u64 = 100_000;

/// Many accounts that write now and then, and their archive.
struct Town {
    world: World,
    accounts: Vec<SimAccount>,
    shipper: Arc<Shipper>,
    keeper: Arc<Keeper>,
    clock: Clock,
    dice: u64,
    written: u64,
    folder: tempfile::TempDir,
}

impl Town {
    async fn new(flush_interval: Duration) -> Self {
        // In memory, where there is such a place: a month has many syncs.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let folder = folder.expect("a folder");
        let bucket = FolderBucket::open(&folder.path().join("archive")).await;
        let bucket = Bucket::Folder(bucket.expect("opens"));
        let id = ArchiveId::from_bytes([7; 16]);
        identity::open_or_create(&bucket, id, NOW).await.expect("empty");
        let mut world = World::new();
        let accounts = (1..=ACCOUNTS).map(|number| world.live(number)).collect();
        let claimed = writer::claim(&bucket, "one", None, false, NOW).await;
        world.apply(Input::LogClaimed(claimed.expect("free").log));
        let clock = Clock::manual(NOW);
        // The world goes on making events; its applier works for the shipper.
        let other: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let numbers = Arc::new(Numbers::open(Arc::clone(&other)).expect("empty"));
        let other = Applier::open(other, numbers, ApplierLimits::default()).expect("empty");
        let applier = std::mem::replace(&mut world.applier, other);
        let (applier, _thread) = handle::start(applier, clock.clone(), |_, _| {}).expect("a thread");
        let store: Arc<dyn Store> = world.store.clone();
        let metrics = Arc::new(Metrics::new());
        let keeper = Keeper::new(
            Arc::clone(&store),
            bucket.clone(),
            clock.clone(),
            folder.path().to_owned(),
            Arc::clone(&metrics),
        );
        let shipper = Shipper {
            gate: crate::archive::held::Gate::default(),
            store,
            applier,
            bucket,
            instance: "one".to_owned(),
            clock: clock.clone(),
            metrics,
            flush_interval,
            failures: AtomicU32::new(0),
            paused: AtomicBool::new(false),
            last: Mutex::new(None),
        };
        let mut town = Self {
            world,
            accounts,
            shipper: Arc::new(shipper),
            keeper: Arc::new(keeper),
            clock,
            dice: 1,
            written: 0,
            folder,
        };
        town.work().await;
        town.ship().await;
        town
    }

    fn chance(&mut self, below: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    /// Objects of the archive.
    fn objects(&self) -> u64 {
        fn count(folder: &std::path::Path) -> u64 {
            let entries = std::fs::read_dir(folder).expect("a folder");
            let each = entries.map(|entry| entry.expect("an entry").path());
            each.map(|path| if path.is_dir() { count(&path) } else { 1 })
                .sum()
        }
        count(&self.folder.path().join("archive"))
    }

    /// One write of some account, and its picture, if it has one.
    async fn write(&mut self) {
        let which = usize::try_from(self.chance(ACCOUNTS)).expect("few");
        self.written += 1;
        let (text, path) = (
            format!("text {}", self.written),
            format!("app.bsky.feed.post/w{}", self.written),
        );
        let bytes = format!("picture {}", self.written).into_bytes();
        let picture = self.written.is_multiple_of(PICTURE_EVERY);
        let record = if picture {
            post_with_blob(&text, &Cid::of_blob(&bytes), bytes.len() as u64)
        } else {
            post(&text)
        };
        let seq = self.world.seq();
        let account = &mut self.accounts[which];
        let frame = account.commit(seq, &[(path, Some(record))], NOW);
        let event = self.world.event(frame);
        self.shipper.applier.apply(event).await.expect("applies");
        if picture {
            let did = self.accounts[which].did().clone();
            let did_number = self.world.row(&did).expect("known").did_number;
            let blob = BlobKey {
                did,
                did_number,
                digest: *Cid::of_blob(&bytes).digest(),
            };
            let mut batch = Batch::new();
            let key = keyspace::encode_blob_data(did_number, &blob.digest, 0);
            let size = bytes.len() as u64;
            batch.put(Family::BlobData, key, bytes);
            self.world.store.write(batch).expect("writes");
            let stored = Input::BlobStored {
                blob,
                size,
                mime: None,
                task: Vec::new(),
            };
            self.shipper.applier.apply(stored).await.expect("applies");
        }
    }

    /// Does what is due for the archive, as the dispatcher does.
    async fn work(&mut self) {
        loop {
            let now = self.clock.now().millis();
            let due = Mirror::new(&*self.shipper.store).due_tasks(now, 10_000);
            let mut done = 0;
            for due in due.expect("reads") {
                let key = keyspace::encode_task(due.due_ms, &due.task);
                let input = match due.task {
                    Task::Snapshot(did) => self.keeper.snapshot(did, key).await,
                    Task::ArchiveBlob(did, digest) => {
                        let did_number = self.world.row(&did).expect("known").did_number;
                        let blob = BlobKey {
                            did,
                            did_number,
                            digest,
                        };
                        self.keeper.blob(blob, key).await
                    }
                    // What fetches and compares asks no archive.
                    _ => continue,
                };
                self.shipper
                    .applier
                    .apply(input.expect("reads"))
                    .await
                    .expect("applies");
                done += 1;
            }
            if done == 0 {
                return;
            }
        }
    }

    /// Ships what waits, as at the end of an interval.
    async fn ship(&mut self) {
        while !matches!(self.shipper.ship_next().await, Ok(Step::Nothing)) {}
        assert_eq!(self.shipper.applier.totals().unshipped, 0);
    }

    /// Lets time pass in which accounts write `writes` times, at random; the log is shipped once an interval.
    async fn pass(&mut self, time: Duration, writes: u64) {
        let span = u64::try_from(time.as_micros()).expect("days");
        let mut moments: Vec<u64> = (0..writes).map(|_| self.chance(span)).collect();
        moments.sort_unstable();
        let (began, mut next_flush) = (self.clock.now(), None);
        let at = |micros: u64| began.plus(Duration::from_micros(micros));
        for moment in moments {
            let moment = at(moment);
            if next_flush.is_some_and(|flush: Timestamp| flush <= moment) {
                self.ship().await;
                next_flush = None;
            }
            self.clock.advance(moment.since(self.clock.now()));
            self.write().await;
            self.work().await;
            next_flush = next_flush.or(Some(moment.plus(self.shipper.flush_interval)));
        }
        self.clock.advance(at(span).since(self.clock.now()));
        self.ship().await;
        self.work().await;
    }
}

/// Puts of a month, from a part of a day and the snapshots of a week.
async fn puts_a_month(flush_interval: Duration, part: u32) -> u64 {
    let mut town = Town::new(flush_interval).await;
    let first = town.objects();
    town.pass(DAY / part, ACCOUNTS * WRITES_A_DAY / u64::from(part))
        .await;
    let day = (town.objects() - first) * u64::from(part);
    let before = town.objects();
    // Nobody writes: a week later everything that changed is snapshotted, and then nothing costs anything.
    town.pass(DAY * 7, 0).await;
    let week = town.objects() - before;
    assert!(
        week >= 2 * ACCOUNTS,
        "each changed: a snapshot and a delta, {week}"
    );
    let idle = town.objects();
    town.pass(DAY * 30, 0).await;
    assert_eq!(town.objects(), idle, "what does not change costs nothing");
    let days = MONTH.as_secs() / DAY.as_secs();
    day * days + week * days / 7
}

#[tokio::test]
async fn a_month_of_a_hundred_accounts_costs_less_than_a_hundred_thousand_puts() {
    let second = puts_a_month(Duration::from_secs(1), 4).await;
    eprintln!("{ACCOUNTS} accounts of {WRITES_A_DAY} writes a day: {second} puts a month at the defaults");
    assert!(second < PUTS_MAX, "{second}");
    let writes = ACCOUNTS * WRITES_A_DAY * 30;
    assert!(
        second > writes,
        "each write is off the machine by itself: {second}"
    );
    // It is the interval that decides: a longer one gathers more, and a shorter one less.
    let minute = puts_a_month(Duration::from_secs(60), 4).await;
    let quarter = puts_a_month(Duration::from_secs(900), 4).await;
    eprintln!("at flush_interval 1 min: {minute}; 15 min: {quarter}");
    assert!(second > minute + PUTS_MAX / 10 && minute > quarter + PUTS_MAX / 10);
    // What `config check` tells beforehand.
    for (measured, seconds) in [(second, 1), (minute, 60), (quarter, 900)] {
        let told = writes_a_month(&Habits::A_HUNDRED, Duration::from_secs(seconds));
        let ratio = f64::from(u32::try_from(measured).expect("few")) / told;
        assert!(
            (0.85..1.15).contains(&ratio),
            "{measured} measured, {told} told at {seconds} s"
        );
    }
}
