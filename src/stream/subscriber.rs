#![allow(clippy::disallowed_methods, reason = "shell: the socket and the clock")]
//! The socket of one host's stream.
//!
//! A [`Subscriber`] connects, drains the socket into a bounded queue, and connects again when the
//! connection is lost, until it is cancelled. It checks of each message that it is a frame and that its number
//! follows; a message that is none never reaches the queue. It decides nothing about accounts, and not from
//! where to go on: before each connection it asks for the cursor.
//!
//! Back-pressure: when the queue is full it stops reading. The host then fills its own buffer, says
//! `ConsumerTooSlow` and hangs up, and the stream goes on from the cursor later. That costs time, not data.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, header};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, error::ProtocolError};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_tls_with_config};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::http::advice;
use crate::http::client::{USER_AGENT, Upstream};
use crate::http::connect::{ConnectError, default_port};
use crate::http::text::printable;
use crate::identity::document::PdsEndpoint;
use crate::types::{HostName, Timestamp};

use super::frame::{FRAME_BYTES_MAX, Frame, FrameError, Severity, decode_frame};
use super::session::{Loss, Said, Session, Start};

/// Characters of a foreign text that are kept.
const TEXT_CHARS_MAX: usize = 200;
/// Time for saying goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that we may owe a host that does not read: pings, pongs, a goodbye.
const WRITE_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Bytes read from the socket at once.
const READ_BUFFER_BYTES: usize = 32 * 1024;

/// The limits of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriberLimits {
    /// Frames that wait for the reader.
    pub queue_frames_max: usize,
    /// Bytes of frames that wait for the reader or are held by it. At most 4 GiB.
    pub queue_bytes_max: u32,
    /// Longest message.
    pub frame_bytes_max: usize,
    /// Time for TLS and the WebSocket handshake.
    pub handshake_timeout: Duration,
    /// Between two pings.
    pub ping_interval: Duration,
    /// The connection is dead after this long without any message, pongs included.
    pub silence_max: Duration,
    /// What was applied before comes again without such a pause, or not at all.
    pub repeat_pause_max: Duration,
}

impl Default for SubscriberLimits {
    fn default() -> Self {
        Self {
            queue_frames_max: 4096,
            queue_bytes_max: 64 * 1024 * 1024,
            frame_bytes_max: FRAME_BYTES_MAX,
            handshake_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(20),
            silence_max: Duration::from_secs(60),
            repeat_pause_max: Duration::from_secs(10),
        }
    }
}

/// What a subscription brings, in order.
#[derive(Debug)]
pub enum SubscriberEvent {
    /// The host opened the stream.
    Connected {
        /// From where on; none: live events only.
        cursor: Option<u64>,
        /// When.
        at: Timestamp,
    },
    /// A frame came.
    Frame(QueuedFrame),
    /// There is no connection any more, or there was none to be had.
    Lost {
        /// Why.
        loss: Loss,
        /// When.
        at: Timestamp,
        /// When we try again.
        retry_at: Timestamp,
    },
}

/// A frame in the queue: whole and strict DAG-CBOR, of a kind that we may or may not know. Its fields may
/// still be bad ([`Severity::RejectEvent`]). It counts against the queue's bytes until it is dropped.
#[derive(Debug)]
pub struct QueuedFrame {
    /// The message. Decode it with [`decode_frame`].
    pub bytes: Bytes,
    /// Its number, if it is an event; it follows the one before on this connection.
    pub seq: Option<u64>,
    /// When it came.
    pub received: Timestamp,
    _place: OwnedSemaphorePermit,
}

/// How full a queue is, for metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct QueueGauge {
    places: Arc<Semaphore>,
    bytes_max: u32,
}

impl QueueGauge {
    /// Bytes of frames that wait or are held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.bytes_max).saturating_sub(self.places.available_permits() as u64)
    }
}

/// A subscription to one host.
#[derive(Debug)]
pub struct Subscriber {
    endpoint: PdsEndpoint,
    upstream: Upstream,
    clock: Clock,
    limits: SubscriberLimits,
    out: mpsc::Sender<SubscriberEvent>,
    places: Arc<Semaphore>,
    session: Session,
    said: Said,
}

/// Why reading ended.
enum End {
    /// We were asked to stop, or nobody reads the queue any more.
    Stopped,
    Lost(Loss),
}

impl From<Loss> for End {
    fn from(loss: Loss) -> Self {
        Self::Lost(loss)
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl Subscriber {
    /// A subscription that has not begun, and the queue that it will fill.
    #[must_use]
    pub fn new(
        endpoint: PdsEndpoint,
        upstream: Upstream,
        clock: Clock,
        limits: SubscriberLimits,
    ) -> (Self, mpsc::Receiver<SubscriberEvent>) {
        let (out, queue) = mpsc::channel(limits.queue_frames_max);
        let subscriber = Self {
            endpoint,
            upstream,
            clock,
            limits,
            out,
            places: Arc::new(Semaphore::new(limits.queue_bytes_max as usize)),
            session: Session::new(),
            said: Said::default(),
        };
        (subscriber, queue)
    }

    /// How full its queue is.
    #[must_use]
    pub fn gauge(&self) -> QueueGauge {
        QueueGauge {
            places: Arc::clone(&self.places),
            bytes_max: self.limits.queue_bytes_max,
        }
    }

    /// Runs until it is cancelled or nobody reads the queue any more; a host that is down is tried again
    /// and again. `start` is asked before each connection where to begin; none asks for live events only, 0 for
    /// all that the host keeps. Frames that were queued but are not applied yet come again after a new connection.
    pub async fn run(mut self, start: impl Fn() -> Option<Start> + Send, cancel: CancellationToken) {
        let mut last = None;
        loop {
            let start = start();
            let cursor = start.map(|start| start.after(last.as_ref()));
            self.session.dialing(cursor);
            let applied = start.map_or(0, |start| start.applied);
            let Err(End::Lost(loss)) = self.connect_and_read(cursor, applied, &cancel).await else {
                return;
            };
            last = Some(loss.clone());
            let at = self.clock.now();
            let retry_at = self.session.lost(&loss, at, self.clock.random());
            self.log_loss(&loss, retry_at.since(at));
            let lost = SubscriberEvent::Lost { loss, at, retry_at };
            if self.send(lost, &cancel).await.is_err() {
                return;
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = self.out.closed() => return,
                () = sleep(retry_at.since(at)) => {}
            }
        }
    }

    /// Never returns `Ok`: a stream has no good end.
    async fn connect_and_read(
        &mut self,
        cursor: Option<u64>,
        applied: u64,
        cancel: &CancellationToken,
    ) -> Result<std::convert::Infallible, End> {
        let mut socket = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(End::Stopped),
            socket = self.connect(cursor) => socket?,
        };
        let at = self.clock.now();
        self.session.connected(at);
        self.log_connected(cursor);
        let ended = match self.send(SubscriberEvent::Connected { cursor, at }, cancel).await {
            Ok(()) => self.read(&mut socket, applied, cancel).await,
            Err(end) => Err(end),
        };
        if let Err(end) = &ended {
            // Politeness; the connection is given up whatever comes of it.
            timeout(CLOSE_TIMEOUT, socket.close(Some(goodbye(end))))
                .await
                .map(drop)
                .unwrap_or_default();
        }
        ended
    }

    async fn connect(&self, cursor: Option<u64>) -> Result<Socket, Loss> {
        let query = cursor.map_or_else(String::new, |cursor| format!("?cursor={cursor}"));
        let path = format!("/xrpc/com.atproto.sync.subscribeRepos{query}");
        let mut request = self
            .endpoint
            .websocket_url(&path)
            .into_client_request()
            .map_err(|error| Loss::Handshake(words(&error)))?;
        let agent = HeaderValue::from_static(USER_AGENT);
        request.headers_mut().insert(header::USER_AGENT, agent);
        let https = self.endpoint.is_https();
        let (host, port) = split_port(self.endpoint.host(), https);
        let stream = self
            .upstream
            .connector()
            .connect(host, port, https)
            .await
            .map_err(|error| match error {
                ConnectError::Refused(refusal) => Loss::Refused(refusal.to_string()),
                other => Loss::Unreachable(printable(&other.to_string(), TEXT_CHARS_MAX)),
            })?;
        let tls = if https {
            tokio_tungstenite::Connector::Rustls(self.upstream.tls())
        } else {
            tokio_tungstenite::Connector::Plain
        };
        let handshake = client_async_tls_with_config(request, stream, Some(self.socket_config()), Some(tls));
        match timeout(self.limits.handshake_timeout, handshake).await {
            Err(_) => Err(Loss::HandshakeTimeout),
            Ok(Ok((socket, _))) => Ok(socket),
            Ok(Err(error)) => Err(self.handshake_loss(error)),
        }
    }

    fn socket_config(&self) -> WebSocketConfig {
        WebSocketConfig::default()
            .max_message_size(Some(self.limits.frame_bytes_max))
            .max_frame_size(Some(self.limits.frame_bytes_max))
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
    }

    fn handshake_loss(&self, error: tungstenite::Error) -> Loss {
        match error {
            tungstenite::Error::Http(response) => {
                let status = response.status().as_u16();
                Loss::HttpStatus {
                    status,
                    retry_after: self.asked_wait(status, response.headers()),
                }
            }
            tungstenite::Error::Tls(error) => Loss::Tls(words(&error)),
            tungstenite::Error::Io(error) if error.get_ref().is_some_and(|e| e.is::<rustls::Error>()) => {
                Loss::Tls(words(&error))
            }
            tungstenite::Error::Io(error) => Loss::Broken(words(&error)),
            other => Loss::Handshake(words(&other)),
        }
    }

    fn asked_wait(&self, status: u16, headers: &HeaderMap) -> Option<Duration> {
        let now = self.clock.now();
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        header("retry-after")
            .and_then(|value| advice::retry_after(value, now))
            .or_else(|| {
                let reset = header("ratelimit-reset").filter(|_| status == 429)?;
                advice::rate_limit_reset(reset, now)
            })
    }

    async fn read(
        &mut self,
        socket: &mut Socket,
        applied: u64,
        cancel: &CancellationToken,
    ) -> Result<std::convert::Infallible, End> {
        let (mut heard, mut repeated) = (Instant::now(), Instant::now());
        let mut ping_at = heard + self.limits.ping_interval;
        loop {
            let message = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(End::Stopped),
                message = socket.next() => message,
                () = sleep_until(ping_at) => {
                    ping_at = Instant::now() + self.limits.ping_interval;
                    self.ping(socket).await?;
                    continue;
                }
                () = sleep_until(heard + self.limits.silence_max) => return Err(Loss::Silent.into()),
                () = sleep_until(repeated + self.limits.repeat_pause_max), if self.session.is_repeating(applied) => {
                    return Err(Loss::NotRepeated(applied).into());
                }
            };
            match message {
                Some(Ok(Message::Binary(bytes))) => {
                    let frame = self.check(bytes)?;
                    self.enqueue(frame, cancel).await?;
                    repeated = Instant::now();
                }
                Some(Ok(Message::Text(_))) => return Err(Loss::TextFrame.into()),
                Some(Ok(Message::Close(frame))) => return Err(closed(frame).into()),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Err(read_loss(&error).into()),
                None => return Err(Loss::Broken("it ended without a goodbye".to_owned()).into()),
            }
            // Measured after the queue took the frame: while we do not read, the host cannot be heard.
            heard = Instant::now();
        }
    }

    async fn ping(&self, socket: &mut Socket) -> Result<(), Loss> {
        match timeout(self.limits.silence_max, socket.send(Message::Ping(Bytes::new()))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(read_loss(&error)),
            Err(_) => Err(Loss::Silent),
        }
    }

    /// Checks that a message is a frame and that its number follows.
    fn check(&mut self, bytes: Bytes) -> Result<(Bytes, Option<u64>), Loss> {
        let seq = match decode_frame(&bytes) {
            Ok(Frame::Error(error)) => {
                return Err(Loss::ErrorFrame {
                    name: printable(error.error, TEXT_CHARS_MAX),
                    message: printable(error.message.unwrap_or(""), TEXT_CHARS_MAX),
                });
            }
            Ok(frame) => frame.seq(),
            Err(error) if error.severity() == Severity::DropConnection => return Err(Loss::BadFrame(error)),
            Err(FrameError::Event(event)) => event.seq,
            Err(_) => None,
        };
        if let Some(seq) = seq {
            self.session.event(seq).map_err(Loss::Seq)?;
        }
        Ok((bytes, seq))
    }

    async fn enqueue(
        &self,
        (bytes, seq): (Bytes, Option<u64>),
        cancel: &CancellationToken,
    ) -> Result<(), End> {
        let received = self.clock.now();
        // A frame longer than the whole queue takes the whole queue.
        let weight = u32::try_from(bytes.len())
            .unwrap_or(u32::MAX)
            .clamp(1, self.limits.queue_bytes_max);
        let place = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(End::Stopped),
            () = self.out.closed() => return Err(End::Stopped),
            place = Arc::clone(&self.places).acquire_many_owned(weight) => {
                place.expect("the semaphore is never closed")
            }
        };
        let frame = QueuedFrame {
            bytes,
            seq,
            received,
            _place: place,
        };
        self.send(SubscriberEvent::Frame(frame), cancel).await
    }

    async fn send(&self, event: SubscriberEvent, cancel: &CancellationToken) -> Result<(), End> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(End::Stopped),
            sent = self.out.send(event) => sent.map_err(|_| End::Stopped),
        }
    }

    fn log_connected(&mut self, cursor: Option<u64>) {
        let host = self.endpoint.host();
        if self.said.connected() {
            tracing::info!(%host, cursor, "connected to the stream");
        } else {
            tracing::debug!(%host, cursor, "connected to the stream again");
        }
    }

    fn log_loss(&mut self, loss: &Loss, wait: Duration) {
        let host = self.endpoint.host();
        let (reason, retry_in_s) = (loss.label(), wait.as_secs_f32());
        let failures = self.session.failures();
        if self.said.lost(reason, failures) {
            tracing::warn!(%host, reason, retry_in_s, failures, "no stream: {loss}");
        } else {
            tracing::debug!(%host, reason, retry_in_s, failures, "no stream: {loss}");
        }
    }
}

/// Host and port of a host name that may hold a port.
fn split_port(host: &HostName, https: bool) -> (&str, u16) {
    let text = host.as_str();
    match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().unwrap_or(default_port(https))),
        None => (text, default_port(https)),
    }
}

fn words(error: &impl std::fmt::Display) -> String {
    printable(&error.to_string(), TEXT_CHARS_MAX)
}

fn closed(frame: Option<CloseFrame>) -> Loss {
    Loss::Closed {
        code: frame.as_ref().map(|frame| frame.code.into()),
        reason: frame.map_or_else(String::new, |frame| {
            printable(frame.reason.as_str(), TEXT_CHARS_MAX)
        }),
    }
}

fn read_loss(error: &tungstenite::Error) -> Loss {
    match error {
        tungstenite::Error::Capacity(_) => Loss::FrameTooLong,
        tungstenite::Error::Utf8(_) => Loss::TextFrame,
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            Loss::Broken(words(error))
        }
        tungstenite::Error::Protocol(_) => Loss::Protocol(words(error)),
        other => Loss::Broken(words(other)),
    }
}

/// What we say when we hang up.
fn goodbye(end: &End) -> CloseFrame {
    let (code, reason) = match end {
        End::Stopped => (CloseCode::Away, "going away"),
        End::Lost(Loss::FrameTooLong) => (CloseCode::Size, "message too long"),
        End::Lost(Loss::TextFrame) => (CloseCode::Unsupported, "text message"),
        End::Lost(Loss::BadFrame(_) | Loss::Seq(_)) => (CloseCode::Protocol, "not a valid frame"),
        End::Lost(_) => (CloseCode::Normal, ""),
    };
    CloseFrame {
        code,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests;
