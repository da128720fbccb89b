//! A proxy before a real S3 server, that does what stores and networks do on bad days. Each fault is counted: one that
//! never fired proves nothing.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What happens to a request instead of what should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// 503 without an effect.
    Unavailable,
    /// 500, though it has taken effect.
    FailedAfter,
    /// The answer takes its time.
    Slow,
    /// The connection breaks before there is any effect.
    ResetBefore,
    /// It breaks after it.
    ResetAfter,
    /// The answer breaks off in its middle.
    Truncated,
    /// A list that lacks what was put in the last seconds.
    StaleList,
    /// 403.
    Denied,
    /// 404: there is no such bucket.
    BucketGone,
    /// The condition on a write is ignored, as some stores do: whatever is there is replaced.
    Unconditional,
}

impl Fault {
    /// All that end, or seem to end, a request, or falsify its answer.
    pub const PASSING: [Self; 9] = [
        Self::Unavailable,
        Self::FailedAfter,
        Self::Slow,
        Self::ResetBefore,
        Self::ResetAfter,
        Self::Truncated,
        Self::StaleList,
        Self::Denied,
        Self::BucketGone,
    ];
}

/// What a stale list lacks.
const STALE: Duration = Duration::from_secs(3);
/// How long a slow answer takes.
const SLOW: Duration = Duration::from_millis(600);
/// Nothing takes longer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Objects whose time of writing is remembered.
const WRITTEN_MAX: usize = 10_000;

#[derive(Default)]
struct State {
    /// Which faults may happen, and to how many in a thousand requests.
    faults: Mutex<Vec<(Fault, u64)>>,
    fired: Mutex<BTreeMap<Fault, u64>>,
    requests: Mutex<BTreeMap<String, u64>>,
    written: Mutex<Vec<(String, Instant)>>,
    chance: Mutex<u64>,
    stop: AtomicBool,
    /// Nobody answers.
    away: AtomicBool,
}

/// The proxy. Everything ends when it is dropped.
pub struct Proxy {
    /// Its address: the endpoint.
    pub url: String,
    state: Arc<State>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Starts one before this server: `http://host:port`.
    pub fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let upstream = upstream.strip_prefix("http://").expect("plain HTTP").to_owned();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                let (state, upstream) = (Arc::clone(&shared), upstream.clone());
                // Ends with its only request.
                std::thread::spawn(move || {
                    let _broken = serve(client, &upstream, &state);
                });
            }
        });
        Self {
            url,
            state,
            thread: Some(thread),
        }
    }

    /// From now on these faults happen, each to so many in a thousand of the requests that it can happen to.
    pub fn faults(&self, faults: &[(Fault, u64)]) {
        *lock(&self.state.faults) = faults.to_vec();
    }

    /// No faults any more.
    pub fn clear(&self) {
        self.faults(&[]);
        self.away(false);
    }

    /// Whether nobody answers at all.
    pub fn away(&self, away: bool) {
        self.state.away.store(away, Ordering::SeqCst);
    }

    /// How often a fault happened.
    pub fn fired(&self, fault: Fault) -> u64 {
        lock(&self.state.fired).get(&fault).copied().unwrap_or(0)
    }

    /// Panics unless each of these happened; what happened how often.
    pub fn assert_fired(&self, faults: &[Fault]) -> String {
        let counted: Vec<_> = faults.iter().map(|fault| (*fault, self.fired(*fault))).collect();
        assert!(
            counted.iter().all(|(_, count)| *count > 0),
            "a fault that never happened proves nothing: {counted:?}"
        );
        let texts: Vec<_> = counted
            .iter()
            .map(|(fault, count)| format!("{fault:?} {count}"))
            .collect();
        texts.join(", ")
    }

    /// Requests since the start, by method.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        lock(&self.state.requests).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        // The loop sees the flag at its next caller.
        let woken = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _panicked = thread.join();
        }
    }
}

/// A request, read to its end.
struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    fn read(client: &mut TcpStream) -> std::io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 << 10];
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            match client.read(&mut buffer)? {
                0 => return Ok(None),
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        };
        let mut body = bytes.split_off(end);
        let head = String::from_utf8_lossy(&bytes).into_owned();
        let request = Self {
            head,
            body: Vec::new(),
        };
        assert!(
            !request.has("transfer-encoding"),
            "the length of a body is told before it"
        );
        let length = request
            .field("content-length")
            .map_or(0, |text| text.parse().unwrap_or(0));
        if request.has("expect") {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        while body.len() < length {
            match client.read(&mut buffer)? {
                0 => return Ok(None),
                count => body.extend_from_slice(&buffer[..count]),
            }
        }
        Ok(Some(Self { body, ..request }))
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn has(&self, name: &str) -> bool {
        self.field(name).is_some()
    }

    fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    fn is_list(&self) -> bool {
        self.method() == "GET" && self.target().contains("list-type=2")
    }

    /// The object's key, as it is written in the path.
    fn key(&self) -> &str {
        let path = self.target().split('?').next().unwrap_or_default();
        path.trim_start_matches('/')
            .split_once('/')
            .map_or("", |(_, key)| key)
    }

    /// Without these headers, and the last one of its connection.
    fn without(&self, names: &[&str]) -> Vec<u8> {
        let mut head = String::new();
        for (at, line) in self.head.trim_end().lines().enumerate() {
            let name = line.split(':').next().unwrap_or_default();
            let drop = |unwanted: &&str| name.eq_ignore_ascii_case(unwanted);
            if at == 0 || !names.iter().chain(&["connection", "expect"]).any(drop) {
                head.push_str(line);
                head.push_str("\r\n");
            }
        }
        head.push_str("connection: close\r\n\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

impl State {
    fn chance(&self) -> u64 {
        let mut state = lock(&self.chance);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 1000
    }

    /// What is to happen to a request.
    fn choose(&self, request: &Request) -> Option<Fault> {
        let faults = lock(&self.faults).clone();
        faults.into_iter().find_map(|(fault, rate)| {
            let fits = match fault {
                Fault::StaleList => request.is_list(),
                Fault::Unconditional => request.has("if-none-match"),
                _ => true,
            };
            (fits && self.chance() < rate).then_some(fault)
        })
    }

    fn fire(&self, fault: Fault) {
        *lock(&self.fired).entry(fault).or_default() += 1;
    }

    fn wrote(&self, request: &Request) {
        if request.method() == "PUT" {
            let mut written = lock(&self.written);
            if written.len() >= WRITTEN_MAX {
                written.drain(..WRITTEN_MAX / 2);
            }
            written.push((request.key().replace("%3A", ":"), Instant::now()));
        }
    }

    /// The list, as it was some seconds ago. Whether anything is missing in it.
    fn stale(&self, answer: &[u8]) -> Option<Vec<u8>> {
        let mut text = String::from_utf8(answer.to_vec()).ok()?;
        let before = text.len();
        for (key, at) in lock(&self.written).iter() {
            let tag = format!("<Key>{key}</Key>");
            if at.elapsed() < STALE
                && let Some(found) = text.find(&tag)
                && let Some(from) = text[..found].rfind("<Contents>")
                && let Some(to) = text[found..].find("</Contents>")
            {
                text.replace_range(from..found + to + "</Contents>".len(), "");
            }
        }
        if text.len() == before {
            return None;
        }
        let (head, body) = text.split_once("\r\n\r\n")?;
        let head: Vec<&str> = head
            .lines()
            .filter(|line| !line.to_ascii_lowercase().starts_with("content-length:"))
            .collect();
        let head = head.join("\r\n");
        Some(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes())
    }
}

fn refusal(status: &str, code: &str, request: &Request) -> Vec<u8> {
    let body = match request.method() {
        "HEAD" => String::new(),
        _ => format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as it was told</Message></Error>"
        ),
    };
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/xml\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn forward(upstream: &str, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(upstream)?;
    server.set_read_timeout(Some(TIMEOUT))?;
    server.write_all(bytes)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}

/// One request.
fn serve(mut client: TcpStream, upstream: &str, state: &State) -> std::io::Result<()> {
    client.set_read_timeout(Some(TIMEOUT))?;
    if state.away.load(Ordering::SeqCst) {
        return client.shutdown(Shutdown::Both);
    }
    let Some(request) = Request::read(&mut client)? else {
        return Ok(());
    };
    *lock(&state.requests)
        .entry(request.method().to_owned())
        .or_default() += 1;
    let fault = state.choose(&request);
    if let Some(fault) = fault.filter(|fault| *fault != Fault::StaleList) {
        state.fire(fault);
    }
    let refused = match fault {
        Some(Fault::ResetBefore) => return client.shutdown(Shutdown::Both),
        Some(Fault::Unavailable) => Some(refusal("503 Slow Down", "SlowDown", &request)),
        Some(Fault::Denied) => Some(refusal("403 Forbidden", "AccessDenied", &request)),
        Some(Fault::BucketGone) => Some(refusal("404 Not Found", "NoSuchBucket", &request)),
        _ => None,
    };
    if let Some(refused) = refused {
        return client.write_all(&refused);
    }
    let bytes = match fault {
        Some(Fault::Unconditional) => request.without(&["if-none-match"]),
        _ => request.without(&[]),
    };
    let mut answer = forward(upstream, &bytes)?;
    state.wrote(&request);
    match fault {
        Some(Fault::ResetAfter) => return client.shutdown(Shutdown::Both),
        Some(Fault::FailedAfter) => answer = refusal("500 Internal Server Error", "InternalError", &request),
        Some(Fault::Slow) => std::thread::sleep(SLOW),
        Some(Fault::Truncated) => answer.truncate(answer.len() * 2 / 3),
        Some(Fault::StaleList) => {
            if let Some(stale) = state.stale(&answer) {
                state.fire(Fault::StaleList);
                answer = stale;
            }
        }
        _ => {}
    }
    client.write_all(&answer)
}
