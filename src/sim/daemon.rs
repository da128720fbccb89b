//! A model of the shell around the real core: connections, queues, restarts.
//!
//! What decides anything is the code that ships: `Session`, `check_frame`, `Applier`, on the model store. What
//! is modelled is when things happen: frames arrive one by one and are verified at once with the key that
//! the store has at that moment, their inputs gather until the applier takes them, and a crash loses
//! everything but the synced part of the store (`stream/subscriber.rs`, `daemon/follow.rs`,
//! `mirror/handle.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::bucket::Archive;
use super::faults::Fault;
use super::fetch::Cached;
use super::flaws;
use super::oracle::{Oracle, PARKED_BYTES_MAX, PARKED_FRAMES_MAX, Verdict};
use super::pds::{Network, Opening};
use super::tally;
use super::work::Work;
use super::world::{Event, World};
use crate::mirror::applier::epochs::resume_cursor;
use crate::mirror::applier::{Applier, ApplierLimits};
use crate::mirror::input::{Gap, HostEvent, Input};
use crate::mirror::keyspace::Task;
use crate::mirror::memory::MemoryStore;
use crate::mirror::numbers::Numbers;
use crate::mirror::reader::Mirror;
use crate::mirror::store::{Batch, Family, KeyRange, Store, StoreError, View as _};
use crate::repo::signing_key::SigningKey;
use crate::stream::encode::encode_frame;
use crate::stream::frame::error::Severity;
use crate::stream::frame::{ErrorFrame, Frame, FrameError, InfoFrame, decode_frame};
use crate::stream::session::{Loss, Session};
use crate::types::{Did, HostName};
use crate::verify::{FrameContent, KeyLookup, Notice, check_frame};

/// An account that changes is snapshotted at most this often.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(120);

/// Hosts and accounts are compared this often.
const LISTING_INTERVAL: Duration = Duration::from_secs(1800);
const AUDIT_INTERVAL: Duration = Duration::from_secs(3600);
/// Small enough that some repositories are larger.
const REBUILD_RECORDS_MAX: u64 = 6;

/// The daemon: what a process holds, and the disk under it.
pub struct Daemon {
    /// The disk.
    pub store: MemoryStore,
    /// The archive, on another machine.
    pub archive: Archive,
    pub(super) numbers: Arc<Numbers>,
    applier: Applier,
    links: Vec<Link>,
    queue: Vec<Queued>,
    apply_scheduled: bool,
    /// Raised by each crash: what belonged to an earlier life is dropped.
    pub life: u64,
    pub(super) works: BTreeMap<u64, Work>,
    pub(super) busy: BTreeSet<Task>,
    pub(super) next_work: u64,
    pub(super) work_at: Option<u64>,
    pub(super) resolver: BTreeMap<Did, Cached>,
}

/// One subscription.
#[derive(Default)]
struct Link {
    session: Session,
    open: bool,
    /// Which connection.
    number: u64,
    /// The last number that the host sent on it.
    after: u64,
    /// A `Deliver` is on its way.
    due: bool,
    /// A frame that was overtaken.
    overtaken: Option<Vec<u8>>,
}

/// An input that waits for the applier.
struct Queued {
    input: Input,
    /// The task that is over once it is durable.
    done: Option<Task>,
}

fn shared(store: &MemoryStore) -> Arc<dyn Store> {
    Arc::new(store.clone())
}

fn limits() -> ApplierLimits {
    ApplierLimits {
        parked_frames_max: PARKED_FRAMES_MAX,
        parked_bytes_max: PARKED_BYTES_MAX,
        // Small enough to be reached.
        cached_accounts_max: 4,
        batch_bytes: 8 << 10,
        snapshot_interval: SNAPSHOT_INTERVAL,
        snapshot_latest: 8 * SNAPSHOT_INTERVAL,
        snapshot_changes: 8,
        snapshot_bytes: 16 << 10,
        listing_interval: LISTING_INTERVAL,
        audit_interval: AUDIT_INTERVAL,
        gone_percent: 10,
        deleted_percent: 50,
        spool_bytes_max: 10 << 30,
        rebuild_records_max: REBUILD_RECORDS_MAX,
        rebuild_records_per_group_max: 3 * REBUILD_RECORDS_MAX,
    }
}

impl Daemon {
    /// Starts on an empty disk.
    ///
    /// # Errors
    /// When the core refuses.
    pub fn start(world: &mut World, net: &Network) -> Result<Self, StoreError> {
        let store = MemoryStore::new();
        let numbers = Arc::new(Numbers::open(shared(&store))?);
        let applier = Applier::open(shared(&store), Arc::clone(&numbers), limits())?;
        let mut daemon = Self {
            store,
            archive: Archive::default(),
            numbers,
            applier,
            links: Vec::new(),
            queue: Vec::new(),
            apply_scheduled: false,
            life: 0,
            works: BTreeMap::new(),
            busy: BTreeSet::new(),
            next_work: 0,
            work_at: None,
            resolver: BTreeMap::new(),
        };
        daemon.begin(world, net)?;
        Ok(daemon)
    }

    fn begin(&mut self, world: &mut World, net: &Network) -> Result<(), StoreError> {
        self.applier.drop_orphans()?;
        for (host, pds) in net.hosts.iter().enumerate() {
            if !pds.followed {
                self.links.resize_with(net.hosts.len(), Link::default);
                continue;
            }
            self.applier
                .ensure_host(&pds.name, &format!("https://{}", pds.name))?;
            let number = self.links.get(host).map_or(0, |link| link.number + 1);
            let link = Link {
                number,
                ..Link::default()
            };
            match self.links.get_mut(host) {
                Some(old) => *old = link,
                None => self.links.push(link),
            }
            let wait = world.daemon_rng.millis(1, 2_000);
            world.after(
                wait,
                Event::Dial {
                    life: self.life,
                    host,
                },
            );
        }
        self.send(
            world,
            Input::ArchiveLinked {
                id: self.archive.id.clone(),
            },
            None,
        );
        self.plan(world);
        Ok(())
    }

    /// The power goes: a prefix of what was not synced survives. Then everything begins again, with power for so
    /// many batches if that is said.
    ///
    /// # Errors
    /// When the core does not open what the crash left, or the power goes again.
    pub fn crash(
        &mut self,
        world: &mut World,
        net: &Network,
        batches: Option<u64>,
    ) -> Result<(), StoreError> {
        let unsynced = self.store.unsynced();
        let keep = world.daemon_rng.index(unsynced + 1);
        let lost = self.store.crash(keep);
        world
            .trace
            .say(|| format!("crash: {lost} of {unsynced} unsynced batches lost"));
        if let Some(batches) = batches {
            self.store.lose_power_after(batches);
        }
        self.life += 1;
        self.queue.clear();
        self.works.clear();
        self.busy.clear();
        self.resolver.clear();
        self.apply_scheduled = false;
        self.work_at = None;
        self.numbers = Arc::new(Numbers::open(shared(&self.store))?);
        self.applier = Applier::open(shared(&self.store), Arc::clone(&self.numbers), limits())?;
        self.begin(world, net)
    }

    /// A bit of a record of this account flips on the disk. None if it has no copy, or one that nothing will
    /// read again soon.
    pub fn rot(&mut self, world: &mut World, did: &Did) -> Option<u64> {
        let row = Mirror::new(&self.store).account(did).ok()??;
        if row.head.is_none() || row.is_snapshotted() {
            return None;
        }
        let (from, to) = crate::mirror::keyspace::number_bounds(row.account_number);
        let mut rows = Vec::new();
        let range = KeyRange::new(from.to_vec(), to.to_vec());
        self.store
            .scan(Family::Records, &range, &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                std::ops::ControlFlow::Continue(())
            })
            .ok()?;
        if rows.is_empty() {
            return None;
        }
        let (key, mut value) = rows.swap_remove(world.daemon_rng.index(rows.len()));
        let at = 40 + world.daemon_rng.index(value.len() - 40);
        value[at] ^= 1 << world.daemon_rng.below(8);
        let mut batch = Batch::new();
        batch.put(Family::Records, key, value);
        self.store.write_durable(batch).ok()?.into_inner();
        Some(row.account_number)
    }

    // streams

    /// Dials a host.
    pub fn dial(&mut self, world: &mut World, net: &mut Network, host: usize) {
        let cursor = Mirror::new(&self.store)
            .host(&net.hosts[host].name)
            .ok()
            .flatten();
        let cursor = resume_cursor(cursor.as_ref(), world.now);
        let pds = &mut net.hosts[host];
        let link = &mut self.links[host];
        link.session.dialing(Some(cursor));
        link.number += 1;
        (link.after, link.due, link.overtaken) = (cursor, false, None);
        if pds.down {
            return self.lost(world, net, host, &Loss::Unreachable("down".to_owned()));
        }
        link.session.connected(world.now);
        link.open = true;
        let opening = pds.open(cursor);
        link.after = cursor.max(pds.books.forgotten_to);
        world
            .trace
            .say(|| format!("{} dialled with cursor {cursor}: {opening:?}", pds.name));
        let name = pds.name.clone();
        if std::mem::take(&mut pds.went_back) && cursor > 0 {
            world.fire(match opening {
                Opening::Future => Fault::RollbackLoud,
                _ => Fault::RollbackSilent,
            });
        }
        self.send(world, Input::Connected { host: name }, None);
        let hello = match opening {
            Opening::Open => None,
            Opening::Outdated => Some(Frame::Info(InfoFrame {
                name: "OutdatedCursor",
                message: None,
            })),
            Opening::Future => Some(Frame::Error(ErrorFrame {
                error: "FutureCursor",
                message: None,
            })),
        };
        if let Some(hello) = hello {
            let frame = encode_frame(&hello);
            if let Err(loss) = self.receive(world, net, host, frame) {
                return self.lost(world, net, host, &loss);
            }
        }
        self.poke(world, net, host);
    }

    /// The host has something to send, perhaps.
    pub fn poke(&mut self, world: &mut World, net: &Network, host: usize) {
        let link = &mut self.links[host];
        if !link.open || link.due || net.hosts[host].next_event(link.after).is_none() {
            return;
        }
        link.due = true;
        let wait = world.net_rng.millis(1, 80);
        let number = link.number;
        world.after(wait, Event::Deliver { host, link: number });
    }

    /// A connection breaks.
    pub fn hang_up(&mut self, world: &mut World, net: &Network, host: usize, loss: &Loss) {
        if self.links[host].open {
            self.lost(world, net, host, loss);
        }
    }

    /// The next frame of a host arrives, or something else does.
    pub fn deliver(&mut self, world: &mut World, net: &mut Network, host: usize, number: u64) {
        if self.links[host].number != number || !self.links[host].open {
            return;
        }
        self.links[host].due = false;
        if let Some(overtaken) = self.links[host].overtaken.take() {
            // The later one came first; what the earlier one said may never be heard again.
            let loss = self.receive(world, net, host, overtaken).err();
            let loss = loss.unwrap_or(Loss::Silent);
            return self.lost(world, net, host, &loss);
        }
        let Some(event) = net.hosts[host].next_event(self.links[host].after).cloned() else {
            return;
        };
        if world.strikes(Fault::CutConnection, 15) {
            let half = event.frame[..event.frame.len() / 2].to_vec();
            let loss = self.receive(world, net, host, half).err();
            return self.lost(world, net, host, &loss.unwrap_or(Loss::Silent));
        }
        let odd = flaws::odd_frame(world);
        let twice = world.strikes(Fault::DuplicateFrame, 15);
        let mut frames: Vec<Vec<u8>> = odd.into_iter().collect();
        let next = net.hosts[host].next_event(event.seq).cloned();
        if let Some(next) = next.filter(|_| world.strikes(Fault::ReorderedFrames, 15)) {
            net.hosts[host].overtaken.insert(event.seq);
            self.links[host].overtaken = Some(event.frame);
            self.links[host].after = next.seq;
            frames.push(next.frame);
        } else {
            self.links[host].after = event.seq;
            if twice {
                frames.push(event.frame.clone());
            }
            frames.push(event.frame);
        }
        for frame in frames {
            if let Err(loss) = self.receive(world, net, host, frame) {
                return self.lost(world, net, host, &loss);
            }
        }
        if self.links[host].overtaken.is_some() {
            self.links[host].due = true;
            world.after(Duration::from_millis(1), Event::Deliver { host, link: number });
        }
        self.poke(world, net, host);
    }

    /// What the subscriber does with a message, then what the verifier does with the frame.
    fn receive(&mut self, world: &mut World, net: &Network, host: usize, frame: Vec<u8>) -> Result<(), Loss> {
        let frame = Bytes::from(frame);
        let seq = match decode_frame(&frame) {
            Ok(Frame::Error(error)) => {
                return Err(Loss::ErrorFrame {
                    name: error.error.to_owned(),
                    message: String::new(),
                });
            }
            Ok(frame) => frame.seq(),
            Err(error) if error.severity() == Severity::DropConnection => return Err(Loss::BadFrame(error)),
            Err(FrameError::Event(event)) => event.seq,
            Err(_) => None,
        };
        if let Some(seq) = seq {
            self.links[host].session.event(seq).map_err(Loss::Seq)?;
        }
        let name = net.hosts[host].name.clone();
        match check_frame(&frame, |did| self.key_of(&name, did), world.now) {
            Ok(FrameContent::Event(event)) => {
                let event = HostEvent {
                    host: name,
                    received: world.now,
                    frame,
                    event,
                };
                self.send(world, Input::Event(event), None);
            }
            Ok(FrameContent::Notice(Notice::Info { name: word, .. })) if word == "OutdatedCursor" => {
                let gap = Gap::CursorOutdated;
                self.send(world, Input::Gap { host: name, gap }, None);
            }
            Ok(_) | Err(_) => {}
        }
        Ok(())
    }

    fn key_of(&self, host: &HostName, did: &Did) -> KeyLookup {
        let row = Mirror::new(&self.store).account(did).ok().flatten();
        let Some(identity) = row.and_then(|row| row.identity) else {
            return KeyLookup::Unknown;
        };
        if !identity.speaks_at(host) {
            return KeyLookup::NotThisHost;
        }
        let key = identity
            .key
            .as_deref()
            .and_then(|text| SigningKey::from_did_key(text).ok());
        key.map_or(KeyLookup::NotThisHost, |key| KeyLookup::Key(Arc::new(key)))
    }

    fn lost(&mut self, world: &mut World, net: &Network, host: usize, loss: &Loss) {
        world.reason("loss", loss.label());
        world
            .trace
            .say(|| format!("{} lost: {loss}", net.hosts[host].name));
        let link = &mut self.links[host];
        link.open = false;
        let random = world.daemon_rng.next();
        let retry_at = link.session.lost(loss, world.now, random);
        if loss.label() == "future_cursor" {
            let input = Input::Gap {
                host: net.hosts[host].name.clone(),
                gap: Gap::CursorFromFuture,
            };
            self.send(world, input, None);
        }
        let life = self.life;
        world.at(retry_at, Event::Dial { life, host });
    }

    // the applier

    /// Queues an input.
    pub(super) fn send(&mut self, world: &mut World, input: Input, done: Option<Task>) {
        self.queue.push(Queued { input, done });
        if !self.apply_scheduled {
            self.apply_scheduled = true;
            let wait = world.daemon_rng.millis(0, 40);
            world.after(wait, Event::Apply { life: self.life });
        }
    }

    /// The applier takes what has gathered.
    ///
    /// # Errors
    /// When the core fails, or a promise is broken.
    pub fn apply(&mut self, world: &mut World, oracle: &mut Oracle) -> Verdict {
        self.apply_scheduled = false;
        let mut inputs = Vec::new();
        for Queued { input, done } in std::mem::take(&mut self.queue) {
            inputs.push(input);
            if let Some(task) = done {
                self.busy.remove(&task);
            }
        }
        let outcome = self
            .applier
            .apply(inputs, world.now)
            .map_err(|error| error.to_string())?;
        for note in &outcome.notes {
            tally::count(world, note);
        }
        oracle.check_step(&*self.store.view())?;
        self.plan(world);
        Ok(())
    }

    /// The totals that the applier keeps are those of the rows.
    ///
    /// # Errors
    /// When they are not.
    pub fn check_totals(&self) -> Verdict {
        let counted = Applier::open(shared(&self.store), Arc::clone(&self.numbers), limits());
        let counted = counted.map_err(|error| error.to_string())?;
        let nonzero = |totals: &crate::mirror::applier::Totals| {
            let mut totals = totals.clone();
            totals.accounts.retain(|_, count| *count > 0);
            totals.sync.retain(|_, count| *count > 0);
            totals.blobs.retain(|_, count| *count > 0);
            totals.active.retain(|_, count| *count > 0);
            totals
        };
        let (ours, rows) = (nonzero(self.applier.totals()), nonzero(counted.totals()));
        if ours == rows {
            Ok(())
        } else {
            Err(format!(
                "totals drifted: {ours:?} are kept, the rows say {rows:?}"
            ))
        }
    }
}
