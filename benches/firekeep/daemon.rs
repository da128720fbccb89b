//! The daemon and its load, each in a process of its own, and what they are asked.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use firekeep::clock::Clock;
use firekeep::sim::load::serve::LoadServer;
use firekeep::sim::load::{BlockOrder, LoadHost, LoadPlan};

/// Clock ticks of `/proc/<pid>/stat`.
const TICKS_PER_SECOND: f64 = 100.0;
/// Whatever takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(900);
/// The load ends by itself after this long.
const LOAD_LIVES: Duration = Duration::from_secs(3600);

/// What is made up.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Accounts.
    pub accounts: u64,
    /// Records of each.
    pub records: u64,
    /// All have as many.
    pub even: bool,
}

/// A process that is stopped when this is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The load and the daemon that follows it.
pub struct Bench {
    folder: tempfile::TempDir,
    load: SocketAddr,
    _load: Process,
    daemon: Option<Process>,
    xrpc: SocketAddr,
    admin: SocketAddr,
}

impl Bench {
    /// Makes the load; the daemon is not started yet.
    pub fn new(load: Load) -> Self {
        let (address, xrpc, admin) = (free_address(), free_address(), free_address());
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([
            "load",
            &address.to_string(),
            &load.accounts.to_string(),
            &load.records.to_string(),
        ]);
        command.args(load.even.then_some("even")).stdout(Stdio::null());
        let process = Process(command.spawn().expect("this program starts"));
        let bench = Self {
            folder: tempfile::Builder::new()
                .prefix("firekeep-bench-")
                .tempdir()
                .expect("a folder"),
            load: address,
            _load: process,
            daemon: None,
            xrpc,
            admin,
        };
        until("the load is made", || ask(address, "GET", "/load").is_some());
        bench
    }

    /// The daemon's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts the daemon; how long it took until it was ready.
    pub fn start(&mut self) -> Duration {
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a log");
        let url = format!("http://{}", self.load);
        let mut command = Command::new(env!("CARGO_BIN_EXE_firekeep"));
        command.args([
            "run",
            "--dev-mode",
            "--host",
            &url,
            "--plc-url",
            &url,
            "--requests-per-second",
            "0",
        ]);
        command.arg("--data-dir").arg(self.data_dir());
        command.args([
            "--listen",
            &self.xrpc.to_string(),
            "--admin-listen",
            &self.admin.to_string(),
        ]);
        command.stdout(Stdio::null()).stderr(log).stdin(Stdio::null());
        let began = Instant::now();
        self.daemon = Some(Process(command.spawn().expect("firekeep starts")));
        until("firekeep is ready", || {
            ask(self.admin, "GET", "/readyz").is_some_and(|(status, _)| status == 200)
        });
        began.elapsed()
    }

    /// Stops the daemon as an admin does.
    pub fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let pid = daemon.0.id().to_string();
            let told = Command::new("kill").args(["-TERM", &pid]).status();
            told.expect("kill is there");
            daemon.0.wait().expect("it is our child");
        }
    }

    /// Waits until so many accounts follow.
    pub fn until_live(&self, accounts: u64) {
        until("all accounts follow", || {
            self.metric("firekeep_account_sync{state=\"live\"}") >= accounts as f64
        });
    }

    /// Waits until nothing is left to do.
    pub fn until_quiet(&self) {
        let mut before = -1.0;
        until("firekeep is quiet", || {
            std::thread::sleep(Duration::from_millis(700));
            let now = self.cpu();
            let quiet = now - before < 0.05;
            before = now;
            quiet
        });
    }

    /// Makes frames, before any is sent.
    pub fn make(&self, events: u64) {
        let path = format!("/load/make?events={events}");
        ask(self.load, "POST", &path).expect("the load answers");
    }

    /// Sends what is made, at once or at a rate.
    pub fn send(&self, rate: Option<u64>) {
        let rate = rate.map_or_else(String::new, |rate| format!("?rate={rate}"));
        ask(self.load, "POST", &format!("/load/send{rate}")).expect("the load answers");
    }

    /// Waits until the event of this number is durable.
    pub fn until_applied(&self, seq: u64) {
        let name = format!("firekeep_last_seq{{host=\"{}\",stage=\"applied\"}}", self.load);
        until("all is applied", || self.metric(&name) >= seq as f64);
    }

    /// Waits until nothing waits for the archive.
    pub fn until_shipped(&self) {
        until("all is shipped", || {
            self.metric("firekeep_log_unshipped_entries") == 0.0
        });
    }

    /// A metric by its name and labels; 0 if it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        let Some((200, body)) = ask(self.admin, "GET", "/metrics") else {
            return 0.0;
        };
        value(&String::from_utf8_lossy(&body), name)
    }

    /// The upper bound of the bucket of a histogram that holds this share of what was observed since `before`.
    pub fn quantile(&self, name: &str, share: f64, before: &str) -> f64 {
        let now = self.exposition();
        let buckets = now.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?.strip_prefix("_bucket{le=\"")?;
            let (bound, count) = rest.split_once("\"} ")?;
            let old = value(before, &format!("{name}_bucket{{le=\"{bound}\"}}"));
            Some((
                bound.parse().unwrap_or(f64::INFINITY),
                count.parse::<f64>().ok()? - old,
            ))
        });
        let buckets: Vec<(f64, f64)> = buckets.collect();
        let all = buckets.last().map_or(0.0, |(_, count)| *count);
        assert!(all > 0.0, "nothing was observed by {name}");
        let found = buckets.iter().find(|(_, count)| *count >= all * share);
        found.map_or(f64::INFINITY, |(bound, _)| *bound)
    }

    /// All metrics.
    pub fn exposition(&self) -> String {
        let (_, body) = ask(self.admin, "GET", "/metrics").expect("firekeep answers");
        String::from_utf8_lossy(&body).into_owned()
    }

    /// CPU-seconds of the daemon so far.
    pub fn cpu(&self) -> f64 {
        let text = self.proc("stat");
        let after = text.rsplit_once(") ").expect("a name in parentheses").1;
        let fields: Vec<f64> = after
            .split(' ')
            .map(|field| field.parse().unwrap_or(0.0))
            .collect();
        (fields[11] + fields[12]) / TICKS_PER_SECOND
    }

    /// MiB that the daemon has in memory now, and had at most.
    pub fn memory(&self) -> (f64, f64) {
        let text = self.proc("status");
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            kib.expect("Linux tells") / 1024.0
        };
        (of("VmRSS:"), of("VmHWM:"))
    }

    /// Forgets what the daemon had at most.
    pub fn reset_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("it is our child");
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.pid())).expect("firekeep runs")
    }

    fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("it was started").0.id()
    }

    /// The first account's DID.
    pub fn first_did(&self) -> String {
        self.dids(1).remove(0)
    }

    /// `getRepo` of the mirror, thrown away: bytes, and the time to the first of them. `pause`: between two reads.
    pub fn get_repo(&self, did: &str, pause: Option<Duration>) -> (u64, Duration) {
        let began = Instant::now();
        let mut stream = request(
            self.xrpc,
            "GET",
            &format!("/xrpc/com.atproto.sync.getRepo?did={did}"),
        )
        .expect("firekeep answers");
        let mut buffer = vec![0; 256 << 10];
        let mut first = None;
        let mut bytes = 0;
        loop {
            let read = stream.read(&mut buffer).expect("it is sent whole");
            first.get_or_insert_with(|| began.elapsed());
            if read == 0 {
                return (bytes, first.unwrap_or_default());
            }
            bytes += read as u64;
            if let Some(pause) = pause {
                std::thread::sleep(pause);
            }
        }
    }

    /// The lengths of the CARs that the host would send of its first accounts, at most a thousand, summed.
    pub fn car_bytes(&self, accounts: usize) -> u64 {
        self.dids(accounts)
            .iter()
            .map(|did| self.raw_car(did).len() as u64)
            .sum()
    }

    /// Some of those as the mirror exports them, one behind the other.
    pub fn exports(&self, accounts: usize) -> Vec<u8> {
        let export = |did: &String| {
            let path = format!("/xrpc/com.atproto.sync.getRepo?did={did}");
            ask(self.xrpc, "GET", &path).expect("firekeep answers").1
        };
        self.dids(accounts).iter().flat_map(export).collect()
    }

    fn dids(&self, accounts: usize) -> Vec<String> {
        let path = format!("/xrpc/com.atproto.sync.listRepos?limit={accounts}");
        let (_, body) = ask(self.load, "GET", &path).expect("it answers");
        let page: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let repos = page["repos"].as_array().expect("a list").iter();
        repos
            .map(|repo| repo["did"].as_str().expect("a DID").to_owned())
            .collect()
    }

    fn raw_car(&self, did: &str) -> Vec<u8> {
        let path = format!("/xrpc/com.atproto.sync.getRepo?did={did}");
        ask(self.load, "GET", &path).expect("it answers").1
    }
}

/// Bytes of the files below a folder whose names end so.
pub fn files_bytes(folder: &Path, end: &str) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            bytes += files_bytes(&path, end);
        } else if path.to_string_lossy().ends_with(end) {
            bytes += entry.metadata().map_or(0, |found| found.len());
        }
    }
    bytes
}

/// The other half of this program: `load ADDRESS ACCOUNTS RECORDS [even]`.
pub fn serve_load(words: &[&str]) -> ExitCode {
    let plan = |address: &str, accounts: &str, records: &str| {
        Some(LoadPlan {
            seed: 1,
            url: format!("http://{address}"),
            accounts: accounts.parse().ok()?,
            records: records.parse().ok()?,
            even: words.last() == Some(&"even"),
            p256_percent: 0,
            pictures: false,
            until: Clock::system().now().minus(Duration::from_secs(24 * 3600)),
        })
    };
    let [address, accounts, records, ..] = *words else {
        return ExitCode::from(2);
    };
    let Some(plan) = plan(address, accounts, records) else {
        return ExitCode::from(2);
    };
    let server = LoadServer::new(LoadHost::make(&plan), plan.seed, BlockOrder::Hashed);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .expect("a free address");
        // Nobody is left to tell when it fails.
        tokio::time::timeout(LOAD_LIVES, server.serve(listener))
            .await
            .map(drop)
            .ok();
    });
    ExitCode::SUCCESS
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("bound")
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(
            began.elapsed() < PATIENCE,
            "{what}: not within {} s",
            PATIENCE.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn value(exposition: &str, name: &str) -> f64 {
    let line = exposition
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

fn request(address: SocketAddr, method: &str, path: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    Some(stream)
}

/// One request; status and body.
fn ask(address: SocketAddr, method: &str, path: &str) -> Option<(u16, Vec<u8>)> {
    let mut answer = Vec::new();
    request(address, method, path)?.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let status = std::str::from_utf8(&answer[..end])
        .ok()?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()?;
    Some((status, answer.split_off(end + 4)))
}
