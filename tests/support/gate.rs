//! A gate before a service: lets requests through, or answers them itself as the test says.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Nothing takes longer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What is answered to POSTs instead of letting them through: the end of a status line, header lines that each end with
/// CRLF, a body, and how often.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// `429 Too Many Requests`
    pub status: &'static str,
    /// `retry-after: 1\r\n`
    pub headers: &'static str,
    /// JSON.
    pub body: &'static str,
    /// How many are answered so; what comes after goes through.
    pub times: u64,
}

#[derive(Default)]
struct State {
    refusal: Mutex<Option<Refusal>>,
    refused: AtomicU64,
    stop: AtomicBool,
}

/// The gate. Everything ends when it is dropped.
pub struct Gate {
    /// Its address. A PDS takes no directory whose URL has an IP address.
    pub url: String,
    state: Arc<State>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Gate {
    /// Before this service: `http://host:port`.
    pub fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let upstream = upstream.strip_prefix("http://").expect("plain HTTP").to_owned();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (state, upstream) = (Arc::clone(&shared), upstream.clone());
                if let Ok(client) = client {
                    // Whoever asked may be gone.
                    std::thread::spawn(move || drop(pass(client, &upstream, &state)));
                }
            }
        });
        Self {
            url: format!("http://localhost:{port}"),
            state,
            thread: Some(thread),
        }
    }

    /// From now on POSTs are answered so.
    pub fn refuse(&self, refusal: Refusal) {
        self.state.refused.store(0, Ordering::SeqCst);
        *self.state.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
    }

    /// From now on everything goes through; how many did not.
    pub fn open(&self) -> u64 {
        *self.state.refusal.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.state.refused.load(Ordering::SeqCst)
    }
}

/// One request of a connection, which then ends.
fn pass(client: TcpStream, upstream: &str, state: &State) -> std::io::Result<()> {
    client.set_read_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        if !lower.starts_with("connection:") {
            head.push_str(&line);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut client = client;
    if head.starts_with("POST") {
        let refusal = state
            .refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(refusal) = refusal.filter(|refusal| state.refused.load(Ordering::SeqCst) < refusal.times)
        {
            state.refused.fetch_add(1, Ordering::SeqCst);
            let Refusal {
                status,
                headers,
                body,
                ..
            } = refusal;
            let length = body.len();
            let kind = "content-type: application/json\r\nconnection: close\r\n";
            let head = format!("HTTP/1.1 {status}\r\n{kind}content-length: {length}\r\n{headers}\r\n");
            return client.write_all(format!("{head}{body}").as_bytes());
        }
    }
    let mut server = TcpStream::connect(upstream)?;
    server.set_read_timeout(Some(TIMEOUT))?;
    server.write_all(format!("{head}connection: close\r\n\r\n").as_bytes())?;
    server.write_all(&body)?;
    std::io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Both)
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        // The loop sees the flag at its next caller.
        let woken = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _panicked = thread.join();
        }
    }
}
