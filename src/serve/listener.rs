//! The HTTP listener: accepts connections within limits, serves HTTP/1.1, and ends when told to.
//!
//! What it guards against, each with its limit in [`ServeLimits`]: too many connections, heads that trickle in
//! or never end, idle connections, readers that take their answer too slowly, and answers that would outlive a
//! shutdown. HTTP/2 is left to the proxy in front.

#![allow(clippy::disallowed_methods, reason = "shell: sockets and timers")]

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::access::Peer;
use super::limits::ServeLimits;
use super::response::Body;
use crate::metrics::Metrics;
use crate::metrics::labels::CloseReason;

/// Connections past the limit that are told so at once; those past these are closed without a word.
const REFUSALS_MAX: usize = 32;
/// Pause after an accept failed for want of a resource, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has the port.
    #[error(
        "cannot listen on {address}: the port is in use; is Firekeep running already? \
         If another program has it, choose another address with `{setting}`"
    )]
    InUse {
        /// The address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
    },
    /// No such address here.
    #[error("cannot listen on {address}: this machine has no such address; change `{setting}`")]
    NotHere {
        /// The address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
    },
    /// The system does not allow it.
    #[error(
        "cannot listen on {address}: permission denied; ports below 1024 need a privilege, so put a proxy \
         in front or choose a higher port with `{setting}`"
    )]
    Forbidden {
        /// The address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
    },
    /// Anything else.
    #[error("cannot listen on {address} (`{setting}`)")]
    Other {
        /// The address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Bytes that the kernel may hold for a reader. Left to itself it holds megabytes, and reports no progress until
/// a third of them is taken: a slow reader could not be told from one that stands still, and the memory of a
/// full house would be a gigabyte. 208 KiB is what Linux grants without a privilege.
const SEND_BUFFER_BYTES: u32 = 208 * 1024;
/// Connections that the kernel may hold before they are accepted.
const BACKLOG: u32 = 1024;

/// Opens a listening socket on the address that `setting` names.
///
/// # Errors
/// [`BindError`], which says what to do.
pub fn bind(address: SocketAddr, setting: &'static str) -> Result<TcpListener, BindError> {
    open(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address, setting },
        io::ErrorKind::AddrNotAvailable => BindError::NotHere { address, setting },
        io::ErrorKind::PermissionDenied => BindError::Forbidden { address, setting },
        _ => BindError::Other {
            address,
            setting,
            source,
        },
    })
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    // A restart must not wait for the last run's connections to be forgotten.
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What answers requests.
pub(super) trait Answer: Send + Sync + 'static {
    /// Answers one request.
    fn answer(self: Arc<Self>, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;
    /// The answer to any request on a connection past the limit.
    fn refusal(&self) -> Response<Body>;
}

/// Serves connections until `shutdown`, then lets open answers finish for `drain_timeout`.
pub(super) async fn listen<A: Answer>(
    listener: TcpListener,
    answer: Arc<A>,
    limits: Arc<ServeLimits>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => {
                report_panic(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error, &shutdown).await;
                continue;
            }
        };
        let (place, refused) = match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => (place, false),
            Err(_) => {
                metrics.http_connections_closed.of(CloseReason::Full).inc();
                match Arc::clone(&refusals).try_acquire_owned() {
                    Ok(place) => (place, true),
                    Err(_) => continue,
                }
            }
        };
        let connection = Connection {
            answer: Arc::clone(&answer),
            limits: Arc::clone(&limits),
            metrics: Arc::clone(&metrics),
            shutdown: shutdown.clone(),
            refused,
        };
        connections.spawn(async move {
            connection.serve(stream).await;
            drop(place);
        });
    }
    drop(listener);
    drain(connections, &limits, &metrics).await;
}

/// Waits for open answers, then closes what is left.
async fn drain(mut connections: JoinSet<()>, limits: &ServeLimits, metrics: &Metrics) {
    let all_ended = async {
        while let Some(ended) = connections.join_next().await {
            report_panic(ended);
        }
    };
    if tokio::time::timeout(limits.drain_timeout, all_ended)
        .await
        .is_err()
    {
        let left = connections.len();
        tracing::warn!(connections = left, "closed connections that did not end in time");
        metrics
            .http_connections_closed
            .of(CloseReason::Shutdown)
            .inc_by(left as u64);
        connections.shutdown().await;
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task failed");
    }
}

/// An accept that failed for one connection costs nothing; one that failed for want of a resource is tried
/// again a little later.
async fn pause_after(error: &io::Error, shutdown: &CancellationToken) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    ) {
        return;
    }
    tracing::warn!(%error, "cannot accept connections");
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
    }
}

/// One accepted connection.
struct Connection<A> {
    answer: Arc<A>,
    limits: Arc<ServeLimits>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    refused: bool,
}

impl<A: Answer> Connection<A> {
    async fn serve(&self, stream: TcpStream) {
        // Small answers should not wait for more.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "connection is gone already");
            return;
        }
        let _open = OpenConnection::count(&self.metrics);
        let peer = stream.peer_addr().ok().map(Peer);
        let io = WatchedIo::new(stream, &self.limits);
        let service = service_fn(|mut request: Request<Incoming>| async move {
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            Ok::<_, Infallible>(if self.refused {
                self.answer.refusal()
            } else {
                Arc::clone(&self.answer).answer(request).await
            })
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_headers(self.limits.header_count_max)
            .max_buf_size(self.limits.header_bytes_max)
            .keep_alive(!self.refused);
        let mut connection = pin!(builder.serve_connection(io, service));
        let ended = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            ended = connection.as_mut() => ended,
        };
        if let Err(error) = ended {
            self.count(&error);
        }
    }

    fn count(&self, error: &hyper::Error) {
        let slow = std::error::Error::source(error)
            .and_then(|source| source.downcast_ref::<io::Error>())
            .is_some_and(|source| source.get_ref().is_some_and(|inner| inner.is::<TooSlow>()));
        let reason = match (slow, error.is_timeout()) {
            (true, _) => CloseReason::SlowReader,
            (false, true) => CloseReason::HeaderTimeout,
            (false, false) => return tracing::debug!(%error, "connection ended"),
        };
        self.metrics.http_connections_closed.of(reason).inc();
    }
}

/// Counts a connection as open for as long as it lives, however it ends.
struct OpenConnection<'a>(&'a Metrics);

impl<'a> OpenConnection<'a> {
    fn count(metrics: &'a Metrics) -> Self {
        metrics.http_connections.inc();
        Self(metrics)
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.http_connections.dec();
    }
}

/// The reader took its answer below the floor.
#[derive(Debug, thiserror::Error)]
#[error("reader is too slow")]
struct TooSlow;

/// A connection that gives up on a reader which is too slow.
///
/// The reader has an account of patience. Time in which bytes wait for it is taken from the account; each byte
/// it takes pays in what that byte may cost at the floor rate; the account never holds more than it began with.
/// A reader at or above the floor never runs dry, however long the answer, and one that stands still is gone
/// when the patience is. Time in which nothing waits for the reader costs nothing.
struct WatchedIo {
    inner: TokioIo<TcpStream>,
    patience_max: Duration,
    patience: Duration,
    bytes_per_second_min: u32,
    /// Since when bytes wait for the reader, and when the patience ends.
    blocked: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl WatchedIo {
    fn new(stream: TcpStream, limits: &ServeLimits) -> Self {
        Self {
            inner: TokioIo::new(stream),
            patience_max: limits.reader_patience,
            patience: limits.reader_patience,
            bytes_per_second_min: limits.reader_bytes_per_second_min.max(1),
            blocked: None,
        }
    }

    fn watch(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match wrote {
            Poll::Ready(Ok(bytes)) => {
                if let Some((since, _)) = self.blocked.take() {
                    self.patience = self.patience.saturating_sub(since.elapsed());
                }
                let micros = (bytes as u64).saturating_mul(1_000_000) / u64::from(self.bytes_per_second_min);
                self.patience = (self.patience + Duration::from_micros(micros)).min(self.patience_max);
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                let (_, timer) = self
                    .blocked
                    .get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(self.patience))));
                timer
                    .as_mut()
                    .poll(cx)
                    .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, TooSlow)))
            }
        }
    }
}

impl Read for WatchedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl Write for WatchedIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
