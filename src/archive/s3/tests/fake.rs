//! The store that misbehaves.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::super::super::bucket::{Body, Bucket, BucketError, PutOptions, PutOutcome};
use super::super::super::content_type::ContentType;
use super::super::super::settings::{ArchiveConfig, S3Input};
use crate::types::cid::sha256;

/// A request as the store sees it.
#[derive(Debug, Clone)]
pub(in crate::archive) struct Seen {
    pub(in crate::archive) method: String,
    /// Path and query.
    pub(in crate::archive) target: String,
    /// Lower case.
    pub(in crate::archive) head: String,
    pub(in crate::archive) body: Vec<u8>,
}

impl Seen {
    pub(in crate::archive) fn is(&self, method: &str, part_of_target: &str) -> bool {
        self.method == method && self.target.contains(part_of_target)
    }
}

/// A store that answers as it is told.
pub(in crate::archive) struct FakeStore {
    pub(in crate::archive) bucket: Bucket,
    seen: Arc<Mutex<Vec<Seen>>>,
    pub(in crate::archive) folder: tempfile::TempDir,
    _server: JoinSet<()>,
}

impl FakeStore {
    /// `answer` gets a request and how many were like it before (same method and target).
    pub(in crate::archive) async fn new(
        answer: impl Fn(&Seen, usize) -> Vec<u8> + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (answer, log) = (answer.clone(), Arc::clone(&log));
                connections.spawn(async move {
                    serve(socket, answer, &log).await;
                });
            }
        });
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("{name}\n")).expect("writes");
            Some(path)
        };
        let input = S3Input {
            endpoint: Some(format!("http://{address}")),
            access_key_id_file: file("id"),
            secret_access_key_file: file("secret"),
            ..S3Input::default()
        };
        let mut config = ArchiveConfig::parse("s3://bucket/prefix", &input).expect("valid");
        config.s3.timeouts.attempt = Duration::from_secs(2);
        config.s3.timeouts.idle = Duration::from_millis(500);
        Self {
            bucket: Bucket::open(&config).await.expect("opens"),
            seen,
            folder,
            _server: server,
        }
    }

    pub(in crate::archive) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    pub(in crate::archive) fn count(&self, method: &str, part_of_target: &str) -> usize {
        self.seen()
            .iter()
            .filter(|seen| seen.is(method, part_of_target))
            .count()
    }

    pub(in crate::archive) async fn create(&self, text: &'static str) -> Result<PutOutcome, BucketError> {
        let options = PutOptions::create(ContentType::json());
        self.bucket.put("v1/x", Body::Bytes(text.into()), &options).await
    }

    pub(in crate::archive) async fn create_large(&self) -> Result<PutOutcome, BucketError> {
        let path = self.folder.path().join("large");
        std::fs::write(&path, vec![7; 17 << 20]).expect("writes");
        let options = PutOptions::create(ContentType::zstd());
        self.bucket.put("v1/x", Body::File(path), &options).await
    }

    pub(in crate::archive) async fn get(&self) -> Result<Option<Bytes>, BucketError> {
        match self.bucket.get("v1/x").await? {
            None => Ok(None),
            Some(object) => object.bytes(1000).await.map(Some),
        }
    }
}

/// Reads one request, answers it, closes the connection.
async fn serve(mut socket: TcpStream, answer: impl Fn(&Seen, usize) -> Vec<u8>, log: &Mutex<Vec<Seen>>) {
    let mut bytes = Vec::new();
    let head_bytes = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if socket.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_bytes]).to_lowercase();
    let first = String::from_utf8_lossy(&bytes[..head_bytes])
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    let field = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let length: usize = field("content-length:")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    if field("expect:").is_some() && socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err() {
        return;
    }
    let mut body = bytes.split_off(head_bytes);
    while body.len() < length {
        if socket.read_buf(&mut body).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let seen = Seen {
        method,
        target,
        head,
        body,
    };
    let before = {
        let mut log = log.lock().expect("no panic");
        let like = |other: &&Seen| other.method == seen.method && other.target == seen.target;
        let before = log.iter().filter(like).count();
        log.push(seen.clone());
        before
    };
    let answer = answer(&seen, before);
    let stalls = answer.ends_with(STALL);
    let sent = socket
        .write_all(answer.strip_suffix(STALL).unwrap_or(&answer))
        .await;
    if sent.is_ok() && stalls {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    drop(socket.shutdown().await);
}

/// At the end of an answer: keeps the connection open without saying any more.
pub(in crate::archive) const STALL: &[u8] = b"<stall>";

pub(in crate::archive) fn answer(status: u16, headers: &str, body: &str) -> Vec<u8> {
    let length = if headers.contains("content-length") {
        String::new()
    } else {
        format!("content-length: {}\r\n", body.len())
    };
    format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{length}{headers}\r\n{body}").into_bytes()
}

pub(in crate::archive) fn refusal(status: u16, code: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>it is so\nindeed</Message></Error>"
    );
    answer(status, "content-type: application/xml\r\n", &body)
}

/// An answer to a HEAD or GET for an object of ours with this text.
pub(in crate::archive) fn object(text: &str, etag: &str, more: &str) -> Vec<u8> {
    let digest = HEXLOWER.encode(&sha256(text.as_bytes()));
    let headers = format!("etag: \"{etag}\"\r\nx-amz-meta-sha256: {digest}\r\n{more}");
    answer(200, &headers, text)
}

/// The same for a HEAD, which has a length but no body.
pub(in crate::archive) fn head_of(text: &str, size: usize, etag: &str) -> Vec<u8> {
    let digest = HEXLOWER.encode(&sha256(text.as_bytes()));
    let headers = format!("content-length: {size}\r\netag: \"{etag}\"\r\nx-amz-meta-sha256: {digest}\r\n");
    answer(200, &headers, "")
}
