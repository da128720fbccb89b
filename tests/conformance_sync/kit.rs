//! What the suites share: where they lie, a mirror on the model store, a directory, and a host that serves
//! what it is told to.
//!
//! Frames go the daemon's way: verified with the key that the account's row holds, then through the applier;
//! fetches and resolutions are the tasks that the applier left in the store.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use firekeep::mirror::applier::{Applier, ApplierLimits, Note};
use firekeep::mirror::input::{
    BlobMention, FetchFailure, Fetched, FetchedContent, Gap, HostEvent, Input, ListedPage, ListedRepo,
};
use firekeep::mirror::keyspace::{self, Task};
use firekeep::mirror::memory::MemoryStore;
use firekeep::mirror::numbers::Numbers;
use firekeep::mirror::reader::Mirror;
use firekeep::mirror::rows::{AccountRow, DesyncReason, Listing, RecordValue, StoredIdentity, SyncState};
use firekeep::mirror::store::{Batch, Family, KeyRange, Store, View as _};
use firekeep::repo::car::CarReader;
use firekeep::repo::commit::Commit;
use firekeep::repo::export::{RecordRows, prove};
use firekeep::repo::record::scan_record;
use firekeep::repo::signing_key::SigningKey;
use firekeep::stream::frame::decode_frame;
use firekeep::stream::session::Session;
use firekeep::types::cid::sha256;
use firekeep::types::{AccountStatus, Cid, Did, Digest, HostName, Timestamp};
use firekeep::verify::{FrameContent, KeyLookup, Notice, VerifiedRepo, check_frame, check_repo};
use ipld_core::ipld::Ipld;
use serde_json::Value;

/// After every vector's rev but the one from the year 2099: 2026-01-01.
pub const NOW: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

/// A suite's file or folder, or `None` after saying that it did not run. Where the suites are, each must be.
pub fn suite(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("FIREKEEP_CONFORMANCE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/conformance"),
        PathBuf::from,
    );
    if !folder.is_dir() {
        println!(
            "conformance: {name} did not run: {} is not there",
            folder.display()
        );
        return None;
    }
    let path = folder.join(name);
    assert!(path.exists(), "the suites are there, but not {name}");
    Some(path)
}

/// Says how many cases ran and demands that it is all of them.
pub fn ran(name: &str, cases: usize, expected: usize) {
    println!("conformance: {name}: {cases} cases");
    assert_eq!(cases, expected, "{name}: not all cases ran");
}

pub fn json(path: &std::path::Path) -> Value {
    let bytes = std::fs::read(path).expect("readable");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// The JSON files of a folder, by name.
pub fn json_files(folder: &std::path::Path) -> BTreeMap<String, Value> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("readable").path());
    paths
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, json(&path))
        })
        .collect()
}

pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is a text"))
}

pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

pub fn bytes(value: &Value, key: &str) -> Vec<u8> {
    data_encoding::BASE64
        .decode(text(value, key).as_bytes())
        .expect("base64")
}

pub fn did(text: &str) -> Did {
    text.parse().expect("a DID")
}

/// What a document says of an account: the key, and the host that it names.
#[derive(Clone)]
pub struct Doc {
    pub key: SigningKey,
    pub host: String,
}

impl Doc {
    /// From `{signing_key, pds}`.
    pub fn of_account(account: &Value) -> Self {
        Self {
            key: SigningKey::from_did_key(text(account, "signing_key")).expect("a key"),
            host: host_of(text(account, "pds")),
        }
    }

    /// From a DID document.
    pub fn of_document(document: &Value) -> Self {
        let key = text(&document["verificationMethod"][0], "publicKeyMultibase");
        Self {
            key: SigningKey::from_multikey(key).expect("a key"),
            host: host_of(text(&document["service"][0], "serviceEndpoint")),
        }
    }

    fn stored(&self) -> StoredIdentity {
        StoredIdentity {
            key: Some(self.key.to_did_key()),
            host: Some(self.host.clone()),
            handle: None,
            read_at: NOW,
        }
    }
}

fn host_of(url: &str) -> String {
    url.trim_start_matches("https://").to_owned()
}

/// What `getRepo` and `getLatestCommit` serve of an account.
#[derive(Clone)]
pub enum Served {
    /// This file.
    Car(Vec<u8>),
    /// What we hold is the host's head.
    OurHead,
}

/// An account's state, in the vectors' terms. The records were proven against the signed root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub rev: String,
    pub data: String,
    pub commit: String,
    pub records: u64,
    pub digest: String,
}

impl State {
    pub fn of_json(value: &Value) -> Self {
        Self {
            rev: text(value, "rev").to_owned(),
            data: text(value, "data").to_owned(),
            commit: text(value, "commit").to_owned(),
            records: value["records"].as_u64().expect("a number"),
            digest: text(value, "digest").to_owned(),
        }
    }
}

/// What became of a frame.
#[derive(Debug)]
pub enum Taken {
    /// The applier judged it.
    Notes(Vec<Note>),
    /// The connection is dropped.
    DropConnection,
    /// The host closes.
    Closed,
    /// Nothing.
    Ignored,
}

pub struct World {
    pub store: Arc<MemoryStore>,
    now: Timestamp,
    session: Session,
    numbers: Arc<Numbers>,
    applier: Applier,
    pub host: HostName,
    /// The directory.
    pub docs: BTreeMap<Did, Doc>,
    /// The host.
    pub repos: BTreeMap<Did, Served>,
    /// How often an identity was looked up again.
    pub refreshes: usize,
    /// How many fetches brought a repository, or found ours to be the host's.
    pub fetches: usize,
}

impl World {
    pub fn new(host: &str) -> Self {
        let store = Arc::new(MemoryStore::default());
        let (numbers, applier) = open(&store);
        let mut world = Self {
            store,
            now: NOW,
            session: Session::new(),
            numbers,
            applier,
            host: host.parse().expect("a host name"),
            docs: BTreeMap::new(),
            repos: BTreeMap::new(),
            refreshes: 0,
            fetches: 0,
        };
        let url = format!("https://{host}");
        world.applier.ensure_host(&world.host, &url).expect("writes");
        world
    }

    /// The process dies, and what was not synced is gone; a new one opens what is left.
    pub fn crash(&mut self) {
        self.store.crash(0);
        (self.numbers, self.applier) = open(&self.store);
        self.applier.drop_orphans().expect("writes");
    }

    /// Makes accounts known and loads what the host serves of them; the stream stands at `cursor`.
    pub fn begin(&mut self, dids: &[Did], cursor: u64) {
        let repos = dids.iter().map(|did| ListedRepo {
            did: did.clone(),
            head: None,
            status: AccountStatus::Active,
        });
        let page = Input::Listed(ListedPage {
            host: self.host.clone(),
            repos: repos.collect(),
            asked_at: self.asked_at(),
            listing: Listing::Finished { at: NOW },
            task: None,
        });
        self.apply(page);
        self.work();
        let mut row = Mirror::new(&*self.store)
            .host(&self.host)
            .expect("reads")
            .expect("a host");
        (row.cursor, row.highest_seq) = (Some(cursor), cursor);
        let mut batch = Batch::new();
        let value = firekeep::mirror::rows::Row::encode(&row);
        batch.put(Family::Hosts, keyspace::encode_host(&self.host), value);
        self.store.write_durable(batch).expect("writes").into_inner();
        self.crash();
        self.dial(Some(cursor));
        (self.refreshes, self.fetches) = (0, 0);
    }

    pub fn apply(&mut self, input: Input) -> Vec<Note> {
        let outcome = self.applier.apply(vec![input], self.now);
        outcome.expect("the model store does not fail").notes
    }

    /// A scrub found that what is held does not prove its head.
    pub fn damaged(&mut self, did: &Did) {
        let account_number = self.row(did).expect("known").account_number;
        self.apply(Input::Damaged {
            did: did.clone(),
            account_number,
            task: Vec::new(),
        });
    }

    pub fn cursor(&self) -> Option<u64> {
        let row = Mirror::new(&*self.store).host(&self.host).expect("reads");
        row.and_then(|row| row.cursor)
    }

    pub fn row(&self, did: &Did) -> Option<AccountRow> {
        Mirror::new(&*self.store).account(did).expect("reads")
    }

    /// The key that the daemon would verify with.
    fn lookup(&self, did: &Did) -> KeyLookup {
        let Some(identity) = self.row(did).and_then(|row| row.identity) else {
            return KeyLookup::Unknown;
        };
        let key = identity.key.as_deref().map(SigningKey::from_did_key);
        match key {
            Some(Ok(key)) if identity.speaks_at(&self.host) => KeyLookup::Key(Arc::new(key)),
            _ => KeyLookup::NotThisHost,
        }
    }

    /// Connects anew, asking for what comes after `cursor`.
    pub fn dial(&mut self, cursor: Option<u64>) {
        self.session.dialing(cursor);
    }

    /// One message of the host's stream. When the connection is dropped, it is there again at once, from the
    /// stored cursor.
    pub fn frame(&mut self, frame: &[u8]) -> Taken {
        if let Ok(decoded) = decode_frame(frame)
            && let Some(seq) = decoded.seq()
            && self.session.event(seq).is_err()
        {
            self.dial(self.cursor());
            return Taken::DropConnection;
        }
        match check_frame(frame, |did| self.lookup(did), self.now) {
            Err(_) => Taken::DropConnection,
            Ok(FrameContent::Event(event)) => Taken::Notes(self.apply(Input::Event(HostEvent {
                host: self.host.clone(),
                received: self.now,
                frame: frame.to_vec().into(),
                event,
            }))),
            Ok(FrameContent::Notice(Notice::Info { name, .. })) if name == "OutdatedCursor" => {
                let host = self.host.clone();
                let gap = Gap::CursorOutdated;
                Taken::Notes(self.apply(Input::Gap { host, gap }))
            }
            Ok(FrameContent::Notice(Notice::Info { .. }) | FrameContent::Ignored) => Taken::Ignored,
            Ok(FrameContent::Notice(Notice::Error { .. })) => Taken::Closed,
        }
    }

    /// Does the work that is due: identities, listings, fetches.
    pub fn work(&mut self) -> Vec<Note> {
        let mut notes = Vec::new();
        loop {
            let tasks = Mirror::new(&*self.store)
                .due_tasks(self.now.millis(), 10_000)
                .expect("reads");
            let ours = tasks.into_iter().find(|due| {
                matches!(
                    due.task,
                    Task::FetchRepo(_) | Task::ResolveIdentity(_) | Task::ListRepos(_)
                )
            });
            let Some(due) = ours else { return notes };
            let (task, key) = (due.task.clone(), keyspace::encode_task(due.due_ms, &due.task));
            let input = match task {
                Task::FetchRepo(did) => self.fetch(did, key),
                Task::ResolveIdentity(did) => {
                    self.refreshes += 1;
                    Input::Identity {
                        resolved: self.docs.get(&did).map(Doc::stored),
                        did,
                        task: key,
                        retry_at: self.now.plus(Duration::from_secs(3600)),
                    }
                }
                _ => self.listing(key),
            };
            notes.extend(self.apply(input));
        }
    }

    /// Loads what the host serves of every account as a fetch would, and never says so.
    pub fn load_and_forget(&self) {
        for (did, served) in &self.repos {
            if let (Served::Car(car), Some(doc)) = (served, self.docs.get(did)) {
                let number = self.numbers.next().expect("numbers");
                _ = self.load(car, number, did, &doc.key);
            }
        }
    }

    /// As [`World::work`], and waits for work that is to be tried again within minutes.
    pub fn settle(&mut self) {
        for _ in 0..10 {
            self.work();
            self.now = self.now.plus(Duration::from_secs(60));
        }
    }

    /// After what came last: nothing overtakes an answer here.
    fn asked_at(&self) -> Timestamp {
        self.now.plus(Duration::from_millis(1))
    }

    fn listing(&self, task: Vec<u8>) -> Input {
        let repos = self.repos.iter().map(|(did, served)| ListedRepo {
            did: did.clone(),
            head: self.host_head(did, served),
            status: AccountStatus::Active,
        });
        Input::Listed(ListedPage {
            host: self.host.clone(),
            repos: repos.collect(),
            asked_at: self.asked_at(),
            listing: Listing::Finished { at: NOW },
            task: Some(task),
        })
    }

    fn host_head(&self, did: &Did, served: &Served) -> Option<Cid> {
        match served {
            Served::OurHead => self.row(did)?.head.map(|head| head.commit),
            Served::Car(car) => CarReader::new(Cursor::new(car)).ok()?.roots().first().copied(),
        }
    }

    /// Does what the daemon's fetch does, in the same order.
    fn fetch(&mut self, did: Did, task: Vec<u8>) -> Input {
        let row = self.row(&did).expect("an account that is fetched has a row");
        let SyncState::Wanted { reason, .. } = row.sync else {
            return Input::TaskDone { task };
        };
        let retry_at = self.now.plus(Duration::from_secs(3600));
        let attempt = if row.upstream.is_active() {
            self.attempt(&did, &row, reason)
        } else {
            Err(FetchFailure::Inactive(row.upstream.clone()))
        };
        match attempt {
            Err(failure) => Input::FetchFailed {
                did,
                host: row.host,
                failure,
                asked_at: self.asked_at(),
                task,
                retry_at,
            },
            Ok((identity, content)) => {
                self.fetches += 1;
                Input::Fetched(Box::new(Fetched {
                    did,
                    from_number: row.account_number,
                    identity,
                    content,
                    from_erased: 0,
                    task,
                }))
            }
        }
    }

    fn attempt(
        &self,
        did: &Did,
        row: &AccountRow,
        reason: DesyncReason,
    ) -> Result<(StoredIdentity, FetchedContent), FetchFailure> {
        let doc = self.docs.get(did);
        let doc = doc.ok_or_else(|| FetchFailure::NoIdentity("no document".to_owned()))?;
        if !doc.stored().speaks_at(&row.host) {
            return Err(FetchFailure::NotThisHost(doc.stored()));
        }
        let served = self.repos.get(did).ok_or(FetchFailure::NotFound)?;
        if let Some(head) = &row.head
            && reason != DesyncReason::CopyDamaged
            && self.host_head(did, served) == Some(head.commit)
        {
            let commit = head.commit;
            return Ok((doc.stored(), FetchedContent::Unchanged { commit }));
        }
        let Served::Car(car) = served else {
            return Err(FetchFailure::NotFound);
        };
        let account_number = self.numbers.next().expect("numbers");
        let loaded = self.load(car, account_number, did, &doc.key);
        let (repo, blobs) = loaded.map_err(|fault| {
            let (from, to) = keyspace::number_bounds(account_number);
            let mut batch = Batch::new();
            for family in [Family::Records, Family::BlobRefs] {
                batch.delete_range(family, from, to);
            }
            self.store.write(batch).expect("writes");
            FetchFailure::Unproven(fault)
        })?;
        let content = FetchedContent::Loaded {
            account_number,
            repo,
            blobs,
        };
        Ok((doc.stored(), content))
    }

    /// Hashes and indexes a CAR, then proves it whole while its records go into the store.
    pub fn load(
        &self,
        car: &[u8],
        number: u64,
        did: &Did,
        key: &SigningKey,
    ) -> Result<(VerifiedRepo, Vec<BlobMention>), String> {
        let mut reader = CarReader::new(Cursor::new(car)).map_err(|error| error.to_string())?;
        let root = *reader.roots().first().ok_or("no root")?;
        let (mut blocks, mut block) = (BTreeMap::<Digest, Vec<u8>>::new(), Vec::new());
        while let Some((cid, _)) = reader.next_block(&mut block).map_err(|error| error.to_string())? {
            blocks.insert(*cid.digest(), block.clone());
        }
        let commit = blocks.get(root.digest()).ok_or("no commit")?;
        let rev = Commit::decode(commit).map_err(|error| error.to_string())?.rev;
        let mut blobs = BTreeMap::new();
        let repo = check_repo(&blocks, root, did, key, NOW, |path, cid, bytes| {
            let mut batch = Batch::new();
            let digest = *cid.digest();
            let value = RecordValue { rev, digest, bytes };
            let key = keyspace::encode_record(number, path);
            batch.put(Family::Records, key, value.encode());
            for blob in scan_record(bytes).blobs {
                let digest = *blob.cid.digest();
                let key = keyspace::encode_blob_ref(number, &digest, path);
                batch.put(Family::BlobRefs, key, Vec::new());
                let (mime, size) = (blob.mime, blob.size);
                blobs.entry(digest).or_insert(BlobMention { digest, mime, size });
            }
            self.store.write(batch)
        });
        let repo = repo.map_err(|fault| fault.to_string())?;
        Ok((repo, blobs.into_values().collect()))
    }

    /// What is held of an account, after rebuilding its tree; `None` before its first load.
    pub fn state(&self, did: &Did) -> Option<State> {
        let row = self.row(did)?;
        let head = row.head?;
        assert!(head.commit.matches(&head.commit_block));
        let rows = Mirror::new(&*self.store).rows(row.account_number);
        let proven = prove(&rows, head.data).expect("what is held proves its head");
        assert_eq!(proven.records(), row.records);
        let (mut lines, mut bytes_held) = (Vec::new(), 0);
        let scanned = RecordRows::scan(&rows, None, &mut |path, cid, bytes| {
            lines.extend_from_slice(path);
            lines.extend_from_slice(format!(" {cid}\n").as_bytes());
            bytes_held += bytes.len() as u64;
            std::ops::ControlFlow::Continue(())
        });
        scanned.expect("reads");
        assert_eq!(bytes_held, row.record_bytes);
        Some(State {
            rev: head.rev.to_string(),
            data: head.data.to_string(),
            commit: head.commit.to_string(),
            records: row.records,
            digest: data_encoding::HEXLOWER.encode(&sha256(&lines)),
        })
    }

    /// How many rows of a family there are.
    pub fn rows_of(&self, family: Family) -> usize {
        let mut rows = 0;
        let scanned = self.store.scan(family, &KeyRange::all(), &mut |_, _| {
            rows += 1;
            std::ops::ControlFlow::Continue(())
        });
        scanned.expect("reads");
        rows
    }
}

fn open(store: &Arc<MemoryStore>) -> (Arc<Numbers>, Applier) {
    let shared: Arc<dyn Store> = Arc::clone(store) as _;
    let numbers = Arc::new(Numbers::open(Arc::clone(&shared)).expect("opens"));
    let applier = Applier::open(shared, Arc::clone(&numbers), ApplierLimits::default());
    (numbers, applier.expect("opens"))
}

/// AT Protocol's JSON form of data, as DAG-CBOR.
fn to_ipld(value: &Value) -> Ipld {
    match value {
        Value::Null => Ipld::Null,
        Value::Bool(value) => Ipld::Bool(*value),
        Value::Number(value) => Ipld::Integer(value.as_i64().expect("an integer").into()),
        Value::String(value) => Ipld::String(value.clone()),
        Value::Array(items) => Ipld::List(items.iter().map(to_ipld).collect()),
        Value::Object(map) => {
            if let (1, Some(link)) = (map.len(), map.get("$link")) {
                let cid: Cid = link.as_str().expect("a text").parse().expect("a CID");
                return Ipld::Link(cid.to_bytes().as_slice().try_into().expect("a CID"));
            }
            if let (1, Some(bytes)) = (map.len(), map.get("$bytes")) {
                let text = bytes.as_str().expect("a text").trim_end_matches('=');
                return Ipld::Bytes(
                    data_encoding::BASE64_NOPAD
                        .decode(text.as_bytes())
                        .expect("base64"),
                );
            }
            Ipld::Map(
                map.iter()
                    .map(|(key, value)| (key.clone(), to_ipld(value)))
                    .collect(),
            )
        }
    }
}

/// A frame of a JSON header and body.
pub fn to_frame(header: &Value, body: &Value) -> Vec<u8> {
    let cbor = |value| serde_ipld_dagcbor::to_vec(&to_ipld(value)).expect("plain data");
    [cbor(header), cbor(body)].concat()
}
