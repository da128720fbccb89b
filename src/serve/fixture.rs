//! For tests: accounts in a memory store, the service over real sockets, and a small HTTP client that takes
//! nothing for granted.

#![allow(clippy::disallowed_methods, reason = "shell: sockets and timers")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use super::admin::{Control, Controlled};
use super::who::Looked;
use super::{
    AdminPassword, BlobArchive, Health, History, Identities, Readiness, ServeLimits, Service, SignUps, Trust,
    bind,
};
use crate::archive::bucket::Bucket;
use crate::clock::Clock;
use crate::identity::document::{Identity, PdsEndpoint};
use crate::identity::plc_log::PlcLog;
use crate::identity::resolver::ResolveError;
use crate::metrics::Metrics;
use crate::mirror::memory::MemoryStore;
use crate::mirror::reader::BLOB_CHUNK_BYTES;
use crate::mirror::rows::{
    AccountRow, AccountStatus, BlobRow, BlobState, Head, RecordValue, Row as _, StoredIdentity, SyncState,
};
use crate::mirror::{Batch, Family, Store as _, keyspace};
use crate::repo::commit::build_commit;
use crate::repo::mst::tree_root;
use crate::repo::signing_key::{Curve, SecretKey};
use crate::types::cid::sha256;
use crate::types::{Cid, Did, Rev, Timestamp};

/// Longer than anything here takes; whatever needs it has failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The admin's password here.
pub(super) const PASSWORD: &str = "correct horse";

/// A daemon that remembers what it was told, and answers as the real one does. One question gives its query back, and
/// one command fails.
#[derive(Default)]
pub(super) struct EchoControl {
    /// Commands, as `name key=value …`.
    pub(super) told: std::sync::Mutex<Vec<String>>,
    /// This command fails.
    pub(super) failing: std::sync::Mutex<Option<&'static str>>,
}

impl Control for EchoControl {
    fn ask<'a>(&'a self, name: &str, query: BTreeMap<String, String>) -> Option<Controlled<'a>> {
        let answer = match name {
            "echo" => serde_json::json!(query),
            "status" => serde_json::json!({
                "version": "1.2.3", "standing": "archiving", "summary": "On its way.",
                "hosts": [{ "last_event": "2026-01-02T03:04:05.678Z" }],
                "accounts": { "held": 3, "records": 5, "record_bytes": 70 },
                "blobs": { "by_state": { "held": 2, "archived": 4, "missing": 1 }, "stored_bytes": 900 },
            }),
            "about" => serde_json::json!({
                "follow": "all", "flushIntervalMs": 1000, "snapshotIntervalMs": 3_600_000,
                "keepWindowSeconds": 60, "removalGraceSeconds": 90,
            }),
            "followed" => serde_json::json!({ "followed": query["host"] == "pds.example.com" }),
            _ => return None,
        };
        Some(Box::pin(std::future::ready(Ok(answer))))
    }

    fn command<'a>(&'a self, name: &str, query: BTreeMap<String, String>) -> Option<Controlled<'a>> {
        if name == "fail" || *self.failing.lock().expect("no panic") == Some("any") {
            return Some(Box::pin(std::future::ready(Err("as asked".to_owned()))));
        }
        let values: Vec<String> = query
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let told = format!("{name} {}", values.join(" "));
        self.told.lock().expect("no panic").push(told);
        let did = query.get("did").cloned().unwrap_or_default();
        let answer = match name {
            "pin" | "unpin" => serde_json::json!({ "did": did, "pinned": name == "pin" }),
            "removal" if query["cancel"] == "false" => {
                serde_json::json!({ "did": did, "due": "2026-01-02T03:04:05.678Z" })
            }
            "follow" => serde_json::json!({ "hostname": "pds.example.com", "follow": query["scope"] }),
            "unfollow" => serde_json::json!({ "hostname": query["host"] }),
            "sign-up" | "removal" | "snapshot-account" | "forget" => serde_json::json!({ "did": did }),
            _ => return None,
        };
        Some(Box::pin(std::future::ready(Ok(answer))))
    }
}

/// Identities that a test sets.
#[derive(Default)]
pub(super) struct Directory {
    /// Documents: signing key and host.
    pub(super) identities: std::sync::Mutex<BTreeMap<Did, Arc<Identity>>>,
    /// Documents that only a refresh gives.
    pub(super) fresh: std::sync::Mutex<BTreeMap<Did, Arc<Identity>>>,
    /// Audit logs.
    pub(super) logs: std::sync::Mutex<BTreeMap<Did, Arc<PlcLog>>>,
    /// How often something was looked up.
    pub(super) looks: std::sync::atomic::AtomicU64,
}

impl Directory {
    /// A document with this signing key, at the usual host.
    pub(super) fn identity(did: &Did, key: &SecretKey, host: &str) -> Arc<Identity> {
        Arc::new(Identity {
            did: did.clone(),
            host: PdsEndpoint::parse(&format!("https://{host}"), false).ok(),
            key: Some(key.public()),
            handle: None,
            resolved_at: Timestamp::default(),
        })
    }
}

impl Identities for Arc<Directory> {
    fn identity<'a>(&'a self, did: &'a Did, refresh: bool) -> Looked<'a, Arc<Identity>> {
        self.looks.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let fresh = self
            .fresh
            .lock()
            .expect("no panic")
            .get(did)
            .filter(|_| refresh)
            .cloned();
        let known = self.identities.lock().expect("no panic").get(did).cloned();
        Box::pin(std::future::ready(fresh.or(known).ok_or(ResolveError::NotFound)))
    }

    fn audit_log<'a>(&'a self, did: &'a Did) -> Looked<'a, Arc<PlcLog>> {
        self.looks.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let log = self.logs.lock().expect("no panic").get(did).cloned();
        Box::pin(std::future::ready(log.ok_or(ResolveError::NotFound)))
    }
}

/// The rev of the n-th moment.
pub(super) fn rev(number: u64) -> Rev {
    Rev::from_time(Timestamp::from_micros(1_700_000_000_000_000 + number), 0)
}

/// A DAG-CBOR record that holds a text.
pub(super) fn record(text: &str) -> Vec<u8> {
    let mut out = vec![0xa1, 0x61, b't'];
    crate::repo::cbor::encode::text(&mut out, text);
    out
}

/// One of 900 kB.
pub(super) fn large_record(number: u64) -> Vec<u8> {
    record(&format!("{number}{}", "x".repeat(900_000)))
}

/// An account to be put into a store.
pub(super) struct Account {
    pub(super) did: Did,
    /// DID number; the account number is another.
    pub(super) number: u64,
    pub(super) status: AccountStatus,
    pub(super) loaded: bool,
    handle: Option<String>,
    records: BTreeMap<String, (Rev, Vec<u8>)>,
    refs: Vec<(Cid, String)>,
    blobs: Vec<(Cid, BlobRow, Vec<u8>)>,
}

impl Account {
    /// An account without records. `number` must be its own.
    pub(super) fn new(name: &str, number: u64) -> Self {
        Self {
            did: format!("did:plc:{name:a<24}").parse().expect("valid"),
            number,
            status: AccountStatus::Active,
            loaded: true,
            handle: None,
            records: BTreeMap::new(),
            refs: Vec::new(),
            blobs: Vec::new(),
        }
    }

    /// The number that its records go by.
    pub(super) fn account_number(&self) -> u64 {
        self.number + 1000
    }

    pub(super) fn status(mut self, status: AccountStatus) -> Self {
        self.status = status;
        self
    }

    /// Its DID document claims this handle.
    pub(super) fn handle(mut self, handle: &str) -> Self {
        self.handle = Some(handle.to_owned());
        self
    }

    /// Known, but nothing is loaded yet.
    pub(super) fn unloaded(mut self) -> Self {
        self.loaded = false;
        self
    }

    pub(super) fn record(mut self, rkey: &str, at: u64, bytes: &[u8]) -> Self {
        self.records.insert(path(rkey), (rev(at), bytes.to_vec()));
        self
    }

    /// As many records, of this size each.
    pub(super) fn records(mut self, count: usize, bytes: usize) -> Self {
        for number in 0..count {
            let text = format!("{number:0bytes$}");
            self = self.record(&format!("many{number:06}"), 1, &record(&text));
        }
        self
    }

    /// Twelve records of 900 kB.
    pub(super) fn large_records(mut self) -> Self {
        for number in 0..12 {
            self = self.record(&format!("large{number:02}"), 1, &large_record(number));
        }
        self
    }

    /// A record that refers to a blob, and the blob.
    pub(super) fn blob(self, rkey: &str, at: u64, bytes: &[u8], mime: &str, state: BlobState) -> Self {
        let mut with = self.blob_without_bytes(rkey, at, Cid::of_blob(bytes), mime, state);
        let (_, row, held) = with.blobs.last_mut().expect("just added");
        row.size = Some(bytes.len() as u64);
        if row.state == BlobState::Held {
            *held = bytes.to_vec();
        }
        with
    }

    pub(super) fn blob_without_bytes(
        mut self,
        rkey: &str,
        at: u64,
        cid: Cid,
        mime: &str,
        state: BlobState,
    ) -> Self {
        self = self.record(rkey, at, &record(&format!("{rkey} refers to {cid}")));
        self.refs.push((cid, path(rkey)));
        let row = BlobRow {
            state,
            size: None,
            mime: Some(mime.to_owned()),
            first_seen: Timestamp::default(),
            tries: 0,
            withheld_since: None,
            needed_at: None,
        };
        self.blobs.push((cid, row, Vec::new()));
        self
    }

    /// The host withholds the blobs that were added so far.
    pub(super) fn withheld(mut self) -> Self {
        for (_, row, _) in &mut self.blobs {
            row.withheld_since = Some(Timestamp::from_micros(1));
        }
        self
    }

    /// Removes the record, and with it its references, as a delete does.
    pub(super) fn without_record(mut self, rkey: &str) -> Self {
        self.records.remove(&path(rkey));
        self.refs.retain(|(_, referrer)| *referrer != path(rkey));
        self
    }

    pub(super) fn head(&self) -> Head {
        let pairs = self
            .records
            .iter()
            .map(|(path, (_, bytes))| (path.as_bytes(), Cid::of_block(bytes)));
        let data = tree_root(pairs).expect("a valid tree");
        let rev = self
            .records
            .values()
            .map(|(rev, _)| *rev)
            .max()
            .unwrap_or_else(|| rev(0));
        let key = SecretKey::from_bytes(Curve::K256, &[7; 32]).expect("a scalar");
        let commit_block = build_commit(&self.did, rev, data, None, |bytes| key.sign(bytes));
        Head {
            rev,
            commit: Cid::of_block(&commit_block),
            commit_block,
            data,
        }
    }

    pub(super) fn row(&self) -> AccountRow {
        let host = "pds.example.com".parse().expect("valid");
        AccountRow {
            account_number: if self.loaded {
                self.account_number()
            } else {
                keyspace::NO_NUMBER
            },
            upstream: self.status.clone(),
            sync: SyncState::Live,
            head: self.loaded.then(|| self.head()),
            records: self.records.len() as u64,
            identity: self.handle.clone().map(|handle| StoredIdentity {
                key: Some(
                    SecretKey::from_bytes(Curve::K256, &[7; 32])
                        .expect("a scalar")
                        .public()
                        .to_did_key(),
                ),
                host: Some("pds.example.com".to_owned()),
                handle: Some(handle),
                read_at: Timestamp::default(),
            }),
            ..AccountRow::new(self.number, host, Timestamp::default())
        }
    }

    /// Puts it into the store.
    pub(super) fn save(&self, store: &MemoryStore) {
        let mut batch = Batch::new();
        batch.put(
            Family::Accounts,
            keyspace::encode_account(&self.did),
            self.row().encode(),
        );
        for (path, (rev, bytes)) in &self.records {
            let value = RecordValue {
                rev: *rev,
                digest: sha256(bytes),
                bytes,
            };
            let key = keyspace::encode_record(self.account_number(), path.as_bytes());
            batch.put(Family::Records, key, value.encode());
        }
        for (cid, path) in &self.refs {
            let key = keyspace::encode_blob_ref(self.account_number(), cid.digest(), path.as_bytes());
            batch.put(Family::BlobRefs, key, Vec::new());
        }
        for (cid, row, bytes) in &self.blobs {
            batch.put(
                Family::Blobs,
                keyspace::encode_blob(self.number, cid.digest()),
                row.encode(),
            );
            for (index, chunk) in bytes.chunks(BLOB_CHUNK_BYTES).enumerate() {
                let index = u32::try_from(index).expect("few chunks");
                let key = keyspace::encode_blob_data(self.number, cid.digest(), index);
                batch.put(Family::BlobData, key, chunk);
            }
        }
        store.write(batch).expect("written");
    }
}

pub(super) fn path(rkey: &str) -> String {
    format!("com.example.thing/{rkey}")
}

/// A running service.
pub(super) struct Server {
    pub(super) xrpc: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) control: Arc<EchoControl>,
    pub(super) directory: Arc<Directory>,
    pub(super) bucket: Arc<std::sync::OnceLock<Bucket>>,
    pub(super) clock: Clock,
    pub(super) shutdown: CancellationToken,
    pub(super) task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(store: &MemoryStore) -> Self {
        Self::start_with(store, super::NoBlobArchive, ServeLimits::default()).await
    }

    pub(super) async fn start_with(
        store: &MemoryStore,
        blobs: impl BlobArchive,
        limits: ServeLimits,
    ) -> Self {
        Self::start_as(store, blobs, limits, Some("https://backup.example.com")).await
    }

    pub(super) async fn start_as(
        store: &MemoryStore,
        blobs: impl BlobArchive,
        limits: ServeLimits,
        public_url: Option<&str>,
    ) -> Self {
        let echo: Arc<EchoControl> = Arc::default();
        let control = Arc::clone(&echo) as Arc<dyn Control>;
        Self::start_told(store, blobs, limits, public_url, (control, echo)).await
    }

    pub(super) async fn start_controlled(
        store: &MemoryStore,
        blobs: impl BlobArchive,
        limits: ServeLimits,
        public_url: Option<&str>,
        control: impl Control,
    ) -> Self {
        let control = (Arc::new(control) as Arc<dyn Control>, Arc::default());
        Self::start_told(store, blobs, limits, public_url, control).await
    }

    async fn start_told(
        store: &MemoryStore,
        blobs: impl BlobArchive,
        limits: ServeLimits,
        public_url: Option<&str>,
        (told, control): (Arc<dyn Control>, Arc<EchoControl>),
    ) -> Self {
        let free = || bind("127.0.0.1:0".parse().expect("address"), "listen").expect("a free port");
        let (xrpc, admin) = (free(), free());
        let (metrics, health) = (Arc::new(Metrics::new()), Arc::new(Health::default()));
        let (directory, bucket) = (Arc::default(), Arc::default());
        let clock = Clock::manual(Timestamp::from_micros(1_700_000_000_000_000));
        let shutdown = CancellationToken::new();
        health.set(Readiness::Ready);
        let service = Service {
            store: Arc::new(store.clone()),
            blobs: Arc::new(blobs),
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
            control: told,
            limits,
            public_url: public_url.map(str::to_owned),
            trust: Trust {
                identities: Arc::new(Arc::clone(&directory)),
                clock: clock.clone(),
                admin: Some(AdminPassword::cheap(PASSWORD)),
            },
            history: History::new(Arc::clone(&bucket), std::env::temp_dir()),
            sign_ups: SignUps::Hosts,
            branding: super::Branding::default(),
        };
        let addresses = [&xrpc, &admin].map(|listener| listener.local_addr().expect("bound"));
        let task = tokio::spawn(service.run(xrpc, admin, shutdown.clone()));
        Self {
            xrpc: addresses[0],
            admin: addresses[1],
            metrics,
            health,
            control,
            directory,
            bucket,
            clock,
            shutdown,
            task,
        }
    }

    /// GETs a path of the public listener.
    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }

    /// Asks the public listener with further header lines, each ended by CRLF.
    pub(super) async fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        ask(self.xrpc, method, path, headers).await
    }

    /// Sends a GET over a connection that takes little unless it is read.
    pub(super) async fn open_narrow(&self, path: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.set_recv_buffer_size(8 * 1024).expect("settable");
        let mut stream = socket.connect(self.xrpc).await.expect("listening");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream
    }

    pub(super) async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let wait = async {
            while !done(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("never: {what}"));
    }
}

/// A header line with which the admin asks.
pub(super) fn admin_header() -> String {
    let basic = data_encoding::BASE64.encode(format!("admin:{PASSWORD}").as_bytes());
    format!("authorization: Basic {basic}\r\n")
}

/// A POST of JSON, with further header lines.
pub(super) async fn post(address: SocketAddr, path: &str, headers: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("listening");
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    Answer::read(&mut stream).await
}

/// One request on its own connection.
pub(super) async fn ask(address: SocketAddr, method: &str, path: &str, headers: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("listening");
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    Answer::read(&mut stream).await
}

/// An answer as it came over the wire.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// Reads until the connection is closed.
    pub(super) async fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A reset after the answer is how a cut answer may end.
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes))
            .await
            .expect("closed in time")
            .ok();
        let end = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .expect("a whole head");
        let body = bytes.split_off(end + 4);
        let head = String::from_utf8(bytes).expect("ASCII");
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .expect("a status line");
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        assert!(
            !headers.contains_key("transfer-encoding"),
            "every length is known: {headers:?}"
        );
        Self {
            status: status.parse().expect("a number"),
            headers,
            body,
        }
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Whether the body is as long as was announced.
    pub(super) fn is_whole(&self) -> bool {
        self.header("content-length").parse() == Ok(self.body.len())
    }

    pub(super) fn json(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), "application/json; charset=utf-8");
        assert!(self.is_whole());
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// Status and name of an error.
    pub(super) fn error(&self) -> (u16, String) {
        assert_eq!(self.header("cache-control"), "private, no-store");
        let body = self.json();
        assert!(body["message"].is_string(), "{body}");
        (self.status, body["error"].as_str().expect("a name").to_owned())
    }
}
