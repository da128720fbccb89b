//! A subscription against hosts that behave, misbehave, and are not there.

#![allow(
    clippy::disallowed_methods,
    reason = "test: the subscription runs beside the test"
)]

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

use super::*;
use crate::http::address::AddressPolicy;
use crate::http::test_server::{Step, answer, serve};
use crate::stream::encode::encode_frame;
use crate::stream::frame::{AccountFrame, ErrorFrame, InfoFrame};

/// No test waits this long unless it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A host's end of the wire, driven by the test.
struct Host {
    listener: TcpListener,
}

type HostSocket = WebSocketStream<TcpStream>;

impl Host {
    async fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        Self { listener }
    }

    fn origin(&self) -> String {
        format!("http://{}", self.listener.local_addr().expect("bound"))
    }

    /// The next connection, and the path that it asked for.
    async fn accept(&self) -> (String, HostSocket) {
        let (stream, _) = within(self.listener.accept()).await.expect("a connection");
        let mut path = String::new();
        #[expect(clippy::result_large_err, reason = "the library's signature")]
        let note = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            path = request.uri().to_string();
            Ok(response)
        };
        let socket = accept_hdr_async(stream, note).await.expect("a handshake");
        (path, socket)
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}

/// A subscription under way.
struct Running {
    queue: mpsc::Receiver<SubscriberEvent>,
    gauge: QueueGauge,
    cursor: Arc<AtomicU64>,
    applied: Arc<AtomicU64>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(origin: &str, limits: SubscriberLimits) -> Self {
        Self::start_under(AddressPolicy::new(true, []), origin, limits)
    }

    fn start_under(policy: AddressPolicy, origin: &str, limits: SubscriberLimits) -> Self {
        let upstream = Upstream::new(policy, Clock::system()).expect("root certificates");
        let endpoint = PdsEndpoint::parse(origin, true).expect("an origin");
        let (subscriber, queue) = Subscriber::new(endpoint, upstream, Clock::system(), limits);
        let [cursor, applied] = [0, 0].map(|seq| Arc::new(AtomicU64::new(seq)));
        let asked = (Arc::clone(&cursor), Arc::clone(&applied));
        let start = move || {
            Some(Start {
                cursor: asked.0.load(Ordering::SeqCst),
                applied: asked.1.load(Ordering::SeqCst),
            })
        };
        let (gauge, cancel) = (subscriber.gauge(), CancellationToken::new());
        let run = subscriber.run(start, cancel.clone());
        Self {
            queue,
            gauge,
            cursor,
            applied,
            cancel,
            task: tokio::spawn(run),
        }
    }

    async fn next(&mut self) -> SubscriberEvent {
        within(self.queue.recv()).await.expect("still running")
    }

    async fn connected(&mut self) -> Option<u64> {
        match self.next().await {
            SubscriberEvent::Connected { cursor, .. } => cursor,
            other => panic!("{other:?} instead of a connection"),
        }
    }

    async fn frame(&mut self) -> QueuedFrame {
        match self.next().await {
            SubscriberEvent::Frame(frame) => frame,
            other => panic!("{other:?} instead of a frame"),
        }
    }

    async fn lost(&mut self) -> (Loss, Duration) {
        match self.next().await {
            SubscriberEvent::Lost { loss, at, retry_at } => (loss, retry_at.since(at)),
            other => panic!("{other:?} instead of a loss"),
        }
    }
}

fn event(seq: u64) -> Frame<'static> {
    Frame::Account(AccountFrame {
        seq,
        did: "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("valid"),
        active: true,
        status: None,
        time: None,
    })
}

async fn send(socket: &mut HostSocket, frame: &Frame<'_>) {
    send_bytes(socket, encode_frame(frame)).await;
}

async fn send_bytes(socket: &mut HostSocket, bytes: Vec<u8>) {
    within(socket.send(Message::Binary(bytes.into())))
        .await
        .expect("connected");
}

/// A connection on which one good event has passed.
async fn begun(limits: SubscriberLimits) -> (Running, HostSocket) {
    let host = Host::new().await;
    let mut running = Running::start(&host.origin(), limits);
    let (_, mut socket) = host.accept().await;
    assert_eq!(running.connected().await, Some(0));
    send(&mut socket, &event(1)).await;
    assert_eq!(running.frame().await.seq, Some(1));
    (running, socket)
}

#[tokio::test]
async fn frames_are_delivered_and_the_cursor_is_asked_for_again() {
    let host = Host::new().await;
    let mut running = Running::start(&host.origin(), SubscriberLimits::default());
    let (path, mut socket) = host.accept().await;
    assert_eq!(path, "/xrpc/com.atproto.sync.subscribeRepos?cursor=0");
    assert_eq!(running.connected().await, Some(0));
    let info = Frame::Info(InfoFrame {
        name: "OutdatedCursor",
        message: None,
    });
    for frame in [&info, &event(3), &event(9)] {
        send(&mut socket, frame).await;
        let queued = running.frame().await;
        assert_eq!(decode_frame(&queued.bytes).as_ref(), Ok(frame));
        assert_eq!(queued.seq, frame.seq());
    }
    running.cursor.store(3, Ordering::SeqCst);
    let restart = CloseFrame {
        code: CloseCode::Away,
        reason: "back soon".into(),
    };
    socket.close(Some(restart)).await.expect("connected");
    let (loss, wait) = running.lost().await;
    assert_eq!(loss.label(), "restart");
    assert_eq!(wait, Duration::from_secs(1));
    let (path, mut socket) = host.accept().await;
    assert_eq!(path, "/xrpc/com.atproto.sync.subscribeRepos?cursor=3");
    assert_eq!(running.connected().await, Some(3));
    // What was queued but not applied comes again.
    send(&mut socket, &event(9)).await;
    assert_eq!(running.frame().await.seq, Some(9));
}

#[tokio::test]
async fn a_host_that_does_not_repeat_what_it_sent_is_asked_for_what_follows_it() {
    let limits = SubscriberLimits {
        repeat_pause_max: Duration::from_millis(300),
        ..SubscriberLimits::default()
    };
    let host = Host::new().await;
    let mut running = Running::start(&host.origin(), limits);
    let (_, socket) = host.accept().await;
    running.connected().await;
    // A connection that had nothing to repeat may be quiet.
    let quiet = timeout(limits.repeat_pause_max * 3, running.queue.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    running.cursor.store(3, Ordering::SeqCst);
    running.applied.store(9, Ordering::SeqCst);
    drop(socket);
    running.lost().await;
    let (path, mut socket) = host.accept().await;
    assert_eq!(path, "/xrpc/com.atproto.sync.subscribeRepos?cursor=3");
    running.connected().await;
    for seq in [5, 7] {
        send(&mut socket, &event(seq)).await;
        running.frame().await;
    }
    let (loss, wait) = running.lost().await;
    assert_eq!((loss, wait), (Loss::NotRepeated(9), Duration::from_secs(1)));
    let (path, mut socket) = host.accept().await;
    assert_eq!(path, "/xrpc/com.atproto.sync.subscribeRepos?cursor=9");
    running.connected().await;
    // It had only left one out: that connection stays.
    let quiet = timeout(limits.repeat_pause_max * 3, running.queue.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    // The next one begins early again, and all of it is repeated.
    socket.close(None).await.expect("connected");
    running.lost().await;
    let (path, mut socket) = host.accept().await;
    assert_eq!(path, "/xrpc/com.atproto.sync.subscribeRepos?cursor=3");
    running.connected().await;
    send(&mut socket, &event(9)).await;
    running.frame().await;
    let quiet = timeout(limits.repeat_pause_max * 3, running.queue.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn a_message_over_the_limit_ends_the_connection() {
    let limits = SubscriberLimits {
        frame_bytes_max: 1000,
        ..SubscriberLimits::default()
    };
    let (mut running, mut socket) = begun(limits).await;
    send_bytes(&mut socket, vec![0xa0; 1001]).await;
    assert_eq!(running.lost().await.0, Loss::FrameTooLong);
}

#[tokio::test]
async fn garbage_ends_the_connection_and_is_not_delivered() {
    let (mut running, mut socket) = begun(SubscriberLimits::default()).await;
    send_bytes(&mut socket, vec![0xff; 10]).await;
    let (loss, _) = running.lost().await;
    assert_eq!(loss.label(), "bad_frame");
    // We say why we hang up.
    let goodbye = within(socket.next()).await.expect("a message").expect("whole");
    assert!(
        matches!(goodbye, Message::Close(Some(ref close)) if close.code == CloseCode::Protocol),
        "{goodbye:?}"
    );
}

#[tokio::test]
async fn what_is_no_web_socket_ends_the_connection() {
    let (mut running, mut socket) = begun(SubscriberLimits::default()).await;
    // A binary message of two bytes with a bit set that nothing has given a meaning.
    let bytes = [0x82 | 0x40, 2, 0, 0];
    tokio::io::AsyncWriteExt::write_all(socket.get_mut(), &bytes)
        .await
        .expect("connected");
    let (loss, _) = running.lost().await;
    assert_eq!(loss.label(), "protocol");
    assert!(loss.is_garbled());
    // A connection that only ends is none of that.
    let (mut running, socket) = begun(SubscriberLimits::default()).await;
    drop(socket);
    let (loss, _) = running.lost().await;
    assert_eq!(loss.label(), "broken");
    assert!(!loss.is_garbled());
}

#[tokio::test]
async fn text_ends_the_connection() {
    let (mut running, mut socket) = begun(SubscriberLimits::default()).await;
    socket.send(Message::Text("{}".into())).await.expect("connected");
    assert_eq!(running.lost().await.0, Loss::TextFrame);
}

#[tokio::test]
async fn a_number_that_does_not_rise_ends_the_connection() {
    for (seq, previous) in [(1, 1), (5, 7)] {
        let (mut running, mut socket) = begun(SubscriberLimits::default()).await;
        if previous > 1 {
            send(&mut socket, &event(previous)).await;
            running.frame().await;
        }
        send(&mut socket, &event(seq)).await;
        let (loss, _) = running.lost().await;
        assert!(
            matches!(loss, Loss::Seq(fault) if fault.got == seq && fault.previous == previous),
            "{loss}"
        );
    }
}

#[tokio::test]
async fn a_bad_field_does_not_end_the_connection() {
    let (mut running, mut socket) = begun(SubscriberLimits::default()).await;
    let mut bytes = encode_frame(&event(2));
    let at = bytes.windows(3).position(|w| w == b"did").expect("a key");
    // Renames `did`, in an order that is still right.
    bytes[at + 2] = b'b';
    send_bytes(&mut socket, bytes).await;
    let frame = running.frame().await;
    assert_eq!(frame.seq, Some(2));
    assert!(matches!(decode_frame(&frame.bytes), Err(FrameError::Event(_))));
    send(&mut socket, &event(3)).await;
    assert_eq!(running.frame().await.seq, Some(3));
}

#[tokio::test]
async fn an_error_frame_ends_the_connection_with_its_name() {
    let (mut running, mut socket) = begun(SubscriberLimits::default()).await;
    let error = Frame::Error(ErrorFrame {
        error: "FutureCursor",
        message: Some("Cursor in\nthe future."),
    });
    send(&mut socket, &error).await;
    let (loss, _) = running.lost().await;
    assert_eq!(loss.label(), "future_cursor");
    assert_eq!(
        loss.to_string(),
        "host ended the stream: FutureCursor: Cursor in?the future."
    );
}

#[tokio::test]
async fn a_connection_that_breaks_is_noticed() {
    let (mut running, socket) = begun(SubscriberLimits::default()).await;
    drop(socket);
    assert_eq!(running.lost().await.0.label(), "broken");
}

#[tokio::test]
async fn a_slow_reader_holds_the_host_back_and_loses_nothing() {
    let limits = SubscriberLimits {
        queue_frames_max: 2,
        queue_bytes_max: 20_000,
        silence_max: Duration::from_millis(300),
        ping_interval: Duration::from_secs(30),
        ..SubscriberLimits::default()
    };
    let (mut running, mut socket) = begun(limits).await;
    let sending = tokio::spawn(async move {
        for seq in 2..=200 {
            send_bytes(&mut socket, padded(seq, 9_000)).await;
        }
        socket
    });
    // Longer than the silence that would end a connection which we read.
    sleep(Duration::from_millis(600)).await;
    assert!(running.gauge.bytes() > 9_000 && running.gauge.bytes() <= 20_000);
    for seq in 2..=200 {
        assert_eq!(running.frame().await.seq, Some(seq));
    }
    assert_eq!(running.gauge.bytes(), 0);
    sending.await.expect("all sent");
}

/// An event of at least this many bytes: with a field that nobody knows.
fn padded(seq: u64, bytes: usize) -> Vec<u8> {
    let mut frame = encode_frame(&event(seq));
    let header = crate::repo::cbor::item_len(&frame).expect("strict");
    frame[header] += 1;
    crate::repo::cbor::encode::text(&mut frame, "padding");
    crate::repo::cbor::encode::bytes(&mut frame, &vec![0; bytes]);
    frame
}

#[tokio::test]
async fn a_frame_longer_than_the_queue_passes_alone() {
    let limits = SubscriberLimits {
        queue_bytes_max: 100,
        ..SubscriberLimits::default()
    };
    let (mut running, mut socket) = begun(limits).await;
    send_bytes(&mut socket, padded(2, 5_000)).await;
    assert_eq!(running.frame().await.seq, Some(2));
}

#[tokio::test]
async fn a_host_that_does_not_even_answer_pings_is_dead() {
    let limits = SubscriberLimits {
        ping_interval: Duration::from_millis(50),
        silence_max: Duration::from_millis(300),
        ..SubscriberLimits::default()
    };
    // Kept open, never read: so no pong is ever sent.
    let (mut running, _socket) = begun(limits).await;
    assert_eq!(running.lost().await.0, Loss::Silent);
}

#[tokio::test]
async fn a_quiet_host_that_answers_pings_is_alive() {
    let limits = SubscriberLimits {
        ping_interval: Duration::from_millis(100),
        silence_max: Duration::from_secs(2),
        ..SubscriberLimits::default()
    };
    let (mut running, mut socket) = begun(limits).await;
    let mut pings = 0;
    // Three seconds without an event: only the answers keep it alive.
    while pings < 30 {
        // Reading is what answers a ping.
        match within(socket.next()).await {
            Some(Ok(Message::Ping(_))) => pings += 1,
            other => panic!("{other:?}"),
        }
    }
    send(&mut socket, &event(2)).await;
    assert_eq!(running.frame().await.seq, Some(2));
}

#[tokio::test]
async fn a_host_that_refuses_the_handshake_is_left_alone_for_as_long_as_it_asks() {
    let body = br#"{"error":"RateLimitExceeded"}"#;
    for (status, header, label, least, most) in [
        ("429 Too Many Requests", "retry-after: 40", "rate_limited", 40, 40),
        (
            "429 Too Many Requests",
            "ratelimit-reset: 50",
            "rate_limited",
            50,
            50,
        ),
        ("503 Service Unavailable", "x: y", "http_status", 0, 2),
        (
            "501 Not Implemented",
            "x: y",
            "http_status",
            6 * 3600,
            6 * 3600 + 2,
        ),
        ("301 Moved", "location: http://127.0.0.1/", "http_status", 0, 2),
    ] {
        let server = serve(move |_| answer(status, &[header], body)).await;
        let mut running = Running::start(&server.url(""), SubscriberLimits::default());
        let (loss, wait) = running.lost().await;
        assert_eq!(loss.label(), label, "{status}: {loss}");
        assert!((least..=most).contains(&wait.as_secs()), "{status}: {wait:?}");
        assert_eq!(server.requests(), 1);
    }
}

#[tokio::test]
async fn a_host_that_accepts_and_says_nothing_runs_into_the_handshake_limit() {
    let server = serve(|_| vec![Step::Hang]).await;
    let limits = SubscriberLimits {
        handshake_timeout: Duration::from_millis(100),
        ..SubscriberLimits::default()
    };
    let mut running = Running::start(&server.url(""), limits);
    assert_eq!(running.lost().await.0, Loss::HandshakeTimeout);
}

#[tokio::test]
async fn a_host_that_speaks_no_websocket_is_a_failed_handshake() {
    let server = serve(|_| answer("101 Switching Protocols", &["upgrade: websocket"], b"")).await;
    let mut running = Running::start(&server.url(""), SubscriberLimits::default());
    assert_eq!(running.lost().await.0.label(), "handshake");
    // And one without TLS where TLS is expected.
    let server = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let origin = format!("https://{}", server.local_addr().expect("bound"));
    let mut running = Running::start(&origin, SubscriberLimits::default());
    let (mut stream, _) = within(server.accept()).await.expect("a connection");
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .await
        .expect("open");
    assert_eq!(running.lost().await.0.label(), "tls");
}

#[tokio::test]
async fn a_host_that_is_down_is_tried_until_it_is_up() {
    let host = Host::new().await;
    let (origin, address) = (host.origin(), host.listener.local_addr().expect("bound"));
    drop(host);
    let mut running = Running::start(&origin, SubscriberLimits::default());
    let (loss, wait) = running.lost().await;
    assert_eq!(loss.label(), "unreachable");
    assert!(wait <= Duration::from_millis(1250), "{wait:?}");
    let listener = TcpListener::bind(address).await.expect("the port is still free");
    let host = Host { listener };
    let (_, mut socket) = host.accept().await;
    while !matches!(running.next().await, SubscriberEvent::Connected { .. }) {}
    send(&mut socket, &event(1)).await;
    assert_eq!(running.frame().await.seq, Some(1));
}

#[tokio::test]
async fn a_private_address_is_refused() {
    let host = Host::new().await;
    let policy = AddressPolicy::new(false, []).with_plain_http();
    let mut running = Running::start_under(policy, &host.origin(), SubscriberLimits::default());
    assert_eq!(running.lost().await.0.label(), "refused_address");
}

#[tokio::test]
async fn it_stops_when_told_to_and_says_goodbye() {
    let (running, mut socket) = begun(SubscriberLimits::default()).await;
    running.cancel.cancel();
    let goodbye = within(socket.next()).await.expect("a message").expect("whole");
    assert!(
        matches!(goodbye, Message::Close(Some(ref close)) if close.code == CloseCode::Away),
        "{goodbye:?}"
    );
    drop(socket);
    within(running.task).await.expect("no panic");
}

#[tokio::test]
async fn it_stops_while_it_waits_and_while_the_queue_is_full() {
    let server = serve(|_| answer("501 Not Implemented", &[], b"")).await;
    let mut waiting = Running::start(&server.url(""), SubscriberLimits::default());
    waiting.lost().await;
    waiting.cancel.cancel();
    within(waiting.task).await.expect("no panic");
    let limits = SubscriberLimits {
        queue_frames_max: 1,
        ..SubscriberLimits::default()
    };
    let (full, mut socket) = begun(limits).await;
    for seq in 2..10 {
        send(&mut socket, &event(seq)).await;
    }
    full.cancel.cancel();
    within(full.task).await.expect("no panic");
}

#[tokio::test]
async fn it_stops_when_nobody_reads_any_more() {
    let server = serve(|_| answer("501 Not Implemented", &[], b"")).await;
    let mut running = Running::start(&server.url(""), SubscriberLimits::default());
    running.lost().await;
    drop(running.queue);
    within(running.task).await.expect("no panic");
}
