//! A plain HTTP client for small questions to listeners on this machine, and a server that is no PDS.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

/// No answer takes longer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Header lines: name in lower case, value.
    pub headers: Vec<(String, String)>,
    /// What came after the head, without the framing of chunks.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is text")
    }
}

/// GET. `base` is `http://host:port`.
///
/// # Errors
/// When nothing answers.
pub fn get(base: &str, path: &str) -> std::io::Result<Answer> {
    request("GET", base, path)
}

/// HEAD: what comes after the head of the answer is its body, which should be empty.
///
/// # Errors
/// When nothing answers.
pub fn head(base: &str, path: &str) -> std::io::Result<Answer> {
    request("HEAD", base, path)
}

/// A request without a body; header lines each end with CRLF.
///
/// # Errors
/// When nothing answers.
pub fn ask(method: &str, base: &str, path: &str, headers: &str) -> std::io::Result<Answer> {
    send(method, base, path, headers, "")
}

/// POST of JSON, with an `Authorization` header.
///
/// # Errors
/// When nothing answers.
pub fn post(base: &str, path: &str, authorization: &str, body: &Value) -> std::io::Result<Answer> {
    let body = body.to_string();
    let head = format!(
        "authorization: {authorization}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
        body.len()
    );
    send("POST", base, path, &head, &body)
}

/// The value of an `Authorization` header with a name and a password.
pub fn basic(name: &str, password: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = "Basic ".to_owned();
    for chunk in format!("{name}:{password}").as_bytes().chunks(3) {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]);
            text.push(if place <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

fn request(method: &str, base: &str, path: &str) -> std::io::Result<Answer> {
    send(method, base, path, "", "")
}

fn send(method: &str, base: &str, path: &str, headers: &str, body: &str) -> std::io::Result<Answer> {
    let bad = |text: &str| std::io::Error::other(text.to_owned());
    let authority = base.strip_prefix("http://").ok_or_else(|| bad("not http"))?;
    let mut stream = TcpStream::connect(authority)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = find(&answer, b"\r\n\r\n").ok_or_else(|| bad("no end of the head"))?;
    let text = String::from_utf8_lossy(&answer[..end]).into_owned();
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let body = answer.split_off(end + 4);
    let chunked = headers
        .iter()
        .any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked && method != "HEAD" {
        unchunked(&body).ok_or_else(|| bad("the chunks break off"))?
    } else {
        body
    };
    Ok(Answer {
        status: status.ok_or_else(|| bad("no status"))?,
        headers,
        body,
    })
}

fn unchunked(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = find(body, b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).ok()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(body.get(end + 2..end + 2 + size)?);
        body = body.get(end + 2 + size + 2..)?;
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A web server that answers everything with the same page, and is no PDS.
pub struct NoPds {
    /// Its address.
    pub url: String,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl NoPds {
    /// Starts it: `status` is a status line's end such as `404 Not Found`.
    pub fn start(status: &'static str, content_type: &'static str, page: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    line.clear();
                }
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
                    page.len()
                );
                // Whoever asked may be gone.
                let _gone = stream.write_all(answer.as_bytes());
            }
        });
        Self {
            url: format!("http://{address}"),
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for NoPds {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // The loop sees the flag at its next caller.
        let woken = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _panicked = thread.join();
        }
    }
}
