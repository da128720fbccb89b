//! Tests of the listener over real sockets: each limit is made to fire.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use hyper::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::*;
use crate::serve::response::{self, Piece};

/// Long enough for anything in these tests; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers `/` with a word and anything else with an endless body.
struct Fixture {
    /// Endless bodies that are being produced.
    streams: Arc<AtomicUsize>,
}

impl Answer for Fixture {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() == "/" {
            return response::text(StatusCode::OK, "word");
        }
        let (sender, pieces) = mpsc::channel(1);
        let streams = Arc::clone(&self.streams);
        streams.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            while sender
                .send(Piece::Data(Bytes::from_static(&[0; 16 * 1024])))
                .await
                .is_ok()
            {}
            streams.fetch_sub(1, Ordering::SeqCst);
        });
        Response::new(Body::pieces(pieces, u64::MAX >> 1))
    }

    fn refusal(&self) -> Response<Body> {
        response::XrpcError::Busy.response()
    }
}

struct Running {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    streams: Arc<AtomicUsize>,
    shutdown: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

async fn run(limits: ServeLimits) -> Running {
    let listener = bind("127.0.0.1:0".parse().expect("address"), "listen").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (metrics, shutdown) = (Arc::new(Metrics::new()), CancellationToken::new());
    let streams = Arc::new(AtomicUsize::new(0));
    let fixture = Arc::new(Fixture {
        streams: Arc::clone(&streams),
    });
    let ended = tokio::spawn(listen(
        listener,
        fixture,
        Arc::new(limits),
        Arc::clone(&metrics),
        shutdown.clone(),
    ));
    Running {
        address,
        metrics,
        streams,
        shutdown,
        ended,
    }
}

fn quick() -> ServeLimits {
    ServeLimits {
        header_timeout: Duration::from_millis(300),
        reader_patience: Duration::from_millis(300),
        drain_timeout: Duration::from_millis(300),
        ..ServeLimits::default()
    }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("listening")
    }

    /// Connects with a small receive buffer, so that what is not read stays with the server.
    async fn connect_narrow(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.set_recv_buffer_size(8 * 1024).expect("settable");
        socket.connect(self.address).await.expect("listening")
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        self.metrics.http_connections_closed.of(reason).get()
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
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

async fn send(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.expect("sent");
}

/// Everything until the other side closes; a reset counts as closing.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut out = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut out))
        .await
        .expect("closed in time");
    if let Err(error) = read {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    String::from_utf8(out).expect("ASCII")
}

#[tokio::test]
async fn a_head_that_trickles_in_is_cut_off() {
    let running = run(quick()).await;
    let mut stream = running.connect().await;
    send(&mut stream, "GET / HTTP/1.1\r\nHost: x\r\n").await;
    let mut trickle = running.connect().await;
    send(&mut trickle, "GET / HTTP/1.1\r\n").await;
    let (mut reader, mut writer) = trickle.into_split();
    let trickler = async {
        while writer.write_all(b"X: y\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut out = Vec::new();
    tokio::select! {
        biased;
        _ = reader.read_to_end(&mut out) => {}
        () = trickler => {}
        () = tokio::time::sleep(PATIENCE) => panic!("the trickler was never cut off"),
    }
    assert_eq!(read_all(&mut stream).await, "");
    running
        .until("both counted", |r| r.closed(CloseReason::HeaderTimeout) == 2)
        .await;
}

#[tokio::test]
async fn an_idle_connection_serves_again_and_then_is_closed() {
    let running = run(quick()).await;
    let mut stream = running.connect().await;
    for _ in 0..2 {
        send(&mut stream, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let mut answer = vec![0; 15];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(answer, b"HTTP/1.1 200 OK");
        let mut byte = [0];
        while !answer.ends_with(b"word") {
            stream.read_exact(&mut byte).await.expect("the rest");
            answer.push(byte[0]);
        }
    }
    assert_eq!(read_all(&mut stream).await, "");
    running
        .until("closed", |r| r.metrics.http_connections.get() == 0)
        .await;
}

#[tokio::test]
async fn a_reader_that_stands_still_is_dropped_and_its_producer_stops() {
    let limits = ServeLimits {
        reader_bytes_per_second_min: 1 << 20,
        ..quick()
    };
    let running = run(limits).await;
    let mut stream = running.connect_narrow().await;
    send(&mut stream, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await;
    running
        .until("producing", |r| r.streams.load(Ordering::SeqCst) == 1)
        .await;
    running
        .until("dropped", |r| r.closed(CloseReason::SlowReader) == 1)
        .await;
    running
        .until("stopped", |r| r.streams.load(Ordering::SeqCst) == 0)
        .await;
    running
        .until("closed", |r| r.metrics.http_connections.get() == 0)
        .await;
}

#[tokio::test]
async fn a_slow_reader_above_the_floor_is_kept_past_its_patience() {
    let patience = Duration::from_secs(1);
    let limits = ServeLimits {
        reader_bytes_per_second_min: 1024,
        reader_patience: patience,
        ..quick()
    };
    let running = run(limits).await;
    let mut stream = running.connect_narrow().await;
    send(&mut stream, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let (begun, mut buffer) = (Instant::now(), vec![0; 256 * 1024]);
    while begun.elapsed() < patience * 3 {
        let read = stream.read(&mut buffer).await.expect("still served");
        assert!(read > 0, "closed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(running.closed(CloseReason::SlowReader), 0);
}

#[tokio::test]
async fn connections_past_the_limit_are_told_to_come_back() {
    let running = run(ServeLimits {
        connections_max: 1,
        ..ServeLimits::default()
    })
    .await;
    let mut first = running.connect().await;
    send(&mut first, "GET / HTTP/1.1\r\nHost: x\r\n").await;
    running
        .until("open", |r| r.metrics.http_connections.get() == 1)
        .await;
    let mut second = running.connect().await;
    send(&mut second, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let answer = read_all(&mut second).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 5"),
        "{answer}"
    );
    assert_eq!(running.closed(CloseReason::Full), 1);
    drop(first);
    running
        .until("free again", |r| r.metrics.http_connections.get() == 0)
        .await;
    let mut third = running.connect().await;
    send(
        &mut third,
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(read_all(&mut third).await.ends_with("word"));
}

#[tokio::test]
async fn connections_past_the_refusals_are_closed_without_a_word() {
    let running = run(ServeLimits {
        connections_max: 0,
        ..ServeLimits::default()
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..REFUSALS_MAX {
        held.push(running.connect().await);
    }
    running
        .until("all held", |r| {
            r.metrics.http_connections.get() == i64::try_from(REFUSALS_MAX).expect("small")
        })
        .await;
    assert_eq!(read_all(&mut running.connect().await).await, "");
}

#[tokio::test]
async fn heads_that_are_too_large_or_malformed_are_refused() {
    let running = run(ServeLimits::default()).await;
    let uri = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(20_000));
    let field = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(20_000));
    let fields = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(65));
    for (request, status) in [
        (uri.as_str(), "HTTP/1.1 431"),
        (&field, "HTTP/1.1 431"),
        (&fields, "HTTP/1.1 431"),
        ("GET / HTTP/1.1\r\nHost: x\r\nA b\r\n\r\n", "HTTP/1.1 400"),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 400",
        ),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 400",
        ),
        ("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", "HTTP/1.1 400"),
        ("\0\0\0\0\r\n\r\n", "HTTP/1.1 400"),
    ] {
        let mut stream = running.connect().await;
        // The other side may close before it has read all of it.
        let sent = stream.write_all(request.as_bytes()).await;
        let answer = read_all(&mut stream).await;
        assert!(
            answer.starts_with(status) || sent.is_err(),
            "{answer:?} for {:?}",
            &request[..40.min(request.len())]
        );
    }
}

#[tokio::test]
async fn a_shutdown_lets_answers_end_but_not_forever() {
    let running = run(ServeLimits {
        reader_patience: PATIENCE,
        ..quick()
    })
    .await;
    let mut idle = running.connect().await;
    send(&mut idle, "GET / HTTP/1.1\r\nHost: x\r\n").await;
    let mut endless = running.connect_narrow().await;
    send(&mut endless, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await;
    running
        .until("producing", |r| r.streams.load(Ordering::SeqCst) == 1)
        .await;
    running
        .until("both open", |r| r.metrics.http_connections.get() == 2)
        .await;
    running.shutdown.cancel();
    running
        .until("the listener has ended", |r| r.ended.is_finished())
        .await;
    assert!(running.closed(CloseReason::Shutdown) >= 1);
    assert_eq!(running.metrics.http_connections.get(), 0);
    running
        .until("stopped", |r| r.streams.load(Ordering::SeqCst) == 0)
        .await;
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn a_listener_that_cannot_open_says_what_to_do() {
    let taken = bind("127.0.0.1:0".parse().expect("address"), "listen").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let error = bind(address, "admin_listen").expect_err("in use");
    assert!(matches!(error, BindError::InUse { .. }));
    let text = error.to_string();
    assert!(
        text.contains(&address.to_string()) && text.contains("in use") && text.contains("`admin_listen`")
    );
    let error = bind("203.0.113.1:1".parse().expect("address"), "listen").expect_err("not here");
    assert!(matches!(error, BindError::NotHere { .. }), "{error}");
}
