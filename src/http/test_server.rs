//! An HTTP server for tests that says exactly the bytes it is told to, when it is told to.

#![allow(clippy::disallowed_methods, reason = "test: a server beside the test")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// One thing to do with a connection.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Send these bytes.
    Send(Vec<u8>),
    /// Do nothing for a while.
    Wait(Duration),
    /// Do nothing any more, but keep the connection.
    Hang,
}

/// A running server; it ends with the test's runtime.
#[derive(Debug, Clone)]
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl TestServer {
    /// `http://127.0.0.1:<port><path>`
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// How many requests came.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Serves each request (head only, one a connection) with the steps that `respond` gives for it.
pub(crate) async fn serve<F>(respond: F) -> TestServer
where
    F: Fn(&str) -> Vec<Step> + Send + Sync + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let server = TestServer {
        address: listener.local_addr().expect("bound"),
        requests: Arc::default(),
    };
    let (respond, requests) = (Arc::new(respond), Arc::clone(&server.requests));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (respond, requests) = (Arc::clone(&respond), Arc::clone(&requests));
            tokio::spawn(async move { connection(stream, &*respond, &requests).await });
        }
    });
    server
}

async fn connection(
    mut stream: TcpStream,
    respond: &(dyn Fn(&str) -> Vec<Step> + Sync),
    count: &AtomicUsize,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    count.fetch_add(1, Ordering::SeqCst);
    for step in respond(&String::from_utf8_lossy(&head)) {
        match step {
            Step::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Step::Wait(duration) => sleep(duration).await,
            Step::Hang => std::future::pending().await,
        }
    }
}

/// A whole answer: status line, headers, body.
pub(crate) fn answer(status: &str, headers: &[&str], body: &[u8]) -> Vec<Step> {
    let mut out = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n",
        body.len()
    );
    for header in headers {
        out.push_str(header);
        out.push_str("\r\n");
    }
    out.push_str("\r\n");
    vec![Step::Send([out.as_bytes(), body].concat())]
}

/// The head of an answer whose body follows in chunks.
pub(crate) fn chunked() -> Step {
    Step::Send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n".to_vec())
}

/// One chunk.
pub(crate) fn chunk(bytes: &[u8]) -> Step {
    Step::Send([format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
}
