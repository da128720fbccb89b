#![allow(clippy::disallowed_methods, reason = "shell: streams bodies")]
//! The bodies of answers.
//!
//! A streamed body ends well only when its producer says so (`Piece::End`). If the producer fails, or just
//! goes away, the connection is cut, so no caller can take half of a repository for all of it.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream::{BoxStream, StreamExt as _};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::metrics::labels::Endpoint;

/// A part of a streamed body.
pub(super) enum Piece {
    /// Some bytes, not empty.
    Data(Bytes),
    /// All bytes were sent.
    End,
    /// The rest cannot be sent.
    Cut(io::Error),
}

/// The body of an answer.
pub struct Body {
    source: Source,
    /// Codes the bytes, until its end was given out.
    gzip: Option<Box<GzEncoder<Vec<u8>>>>,
    is_coded: bool,
    tally: Option<Tally>,
}

enum Source {
    Whole(Bytes),
    Pieces {
        pieces: mpsc::Receiver<Piece>,
        length: u64,
    },
    Pulled {
        chunks: BoxStream<'static, io::Result<Bytes>>,
        length: u64,
    },
    /// No bytes; the length that they would have, if it is known. For HEAD.
    Absent(Option<u64>),
    Ended,
}

/// Counts the bytes and the time of one answer, and reports when the body is dropped.
struct Tally {
    metrics: Arc<Metrics>,
    endpoint: Endpoint,
    started: Instant,
    bytes: u64,
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.metrics
            .http_duration
            .of(self.endpoint)
            .observe(self.started.elapsed().as_secs_f64());
        self.metrics
            .http_response_bytes
            .of(self.endpoint)
            .inc_by(self.bytes);
    }
}

impl Body {
    const fn of(source: Source) -> Self {
        Self {
            source,
            gzip: None,
            is_coded: false,
            tally: None,
        }
    }

    /// A body that is there already.
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::of(Source::Whole(bytes.into()))
    }

    /// A body of this length that a producer sends.
    pub(super) const fn pieces(pieces: mpsc::Receiver<Piece>, length: u64) -> Self {
        Self::of(Source::Pieces { pieces, length })
    }

    /// A body of this length that is pulled out of a stream.
    pub(super) fn pulled(chunks: BoxStream<'static, io::Result<Bytes>>, length: u64) -> Self {
        Self::of(Source::Pulled { chunks, length })
    }

    /// No body, in the answer to a HEAD; the length that it would have, if it is known.
    pub(super) const fn absent(length: Option<u64>) -> Self {
        Self::of(Source::Absent(length))
    }

    /// The same, gzipped: its length is known only at its end.
    pub(super) fn gzipped(mut self) -> Self {
        self.gzip = Some(Box::new(GzEncoder::new(Vec::new(), Compression::fast())));
        self.is_coded = true;
        self
    }

    /// Its bytes, if they are there already.
    pub(super) const fn bytes(&self) -> Option<&Bytes> {
        match &self.source {
            Source::Whole(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Its length, if it is known.
    pub(super) fn length(&self) -> Option<u64> {
        self.size_hint().exact()
    }

    /// Reports this body's bytes and time to the metrics when it is done or dropped.
    pub(super) fn tallied(mut self, metrics: &Arc<Metrics>, endpoint: Endpoint, started: Instant) -> Self {
        let metrics = Arc::clone(metrics);
        self.tally = Some(Tally {
            metrics,
            endpoint,
            started,
            bytes: 0,
        });
        self
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let next = match &mut self.source {
            Source::Whole(bytes) => Some(std::mem::take(bytes))
                .filter(|bytes| !bytes.is_empty())
                .map(Ok),
            Source::Pieces { pieces, .. } => match ready!(pieces.poll_recv(cx)) {
                Some(Piece::Data(bytes)) => Some(Ok(bytes)),
                Some(Piece::End) => None,
                Some(Piece::Cut(error)) => Some(Err(error)),
                None => Some(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "producer stopped",
                ))),
            },
            Source::Pulled { chunks, .. } => ready!(chunks.poll_next_unpin(cx)),
            Source::Absent(_) | Source::Ended => None,
        };
        match (&next, &mut self.source) {
            (Some(Ok(bytes)), Source::Pieces { length, .. } | Source::Pulled { length, .. }) => {
                *length = length.saturating_sub(bytes.len() as u64);
            }
            _ => self.source = Source::Ended,
        }
        Poll::Ready(next)
    }
}

impl Body {
    fn poll_coded(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        while let Some(mut gzip) = self.gzip.take() {
            let Poll::Ready(next) = self.poll_data(cx) else {
                self.gzip = Some(gzip);
                return Poll::Pending;
            };
            let coded = match next {
                Some(Ok(bytes)) => {
                    gzip.write_all(&bytes)?;
                    let coded = std::mem::take(gzip.get_mut());
                    self.gzip = Some(gzip);
                    coded
                }
                // The end is coded only when the producer has said that all is sent.
                None => gzip.finish()?,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            };
            if !coded.is_empty() {
                return Poll::Ready(Some(Ok(coded.into())));
            }
        }
        Poll::Ready(None)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let next = match self.is_coded {
            true => ready!(self.poll_coded(cx)),
            false => ready!(self.poll_data(cx)),
        };
        if let (Some(Ok(bytes)), Some(tally)) = (&next, &mut self.tally) {
            tally.bytes += bytes.len() as u64;
        }
        Poll::Ready(next.map(|result| result.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        if self.is_coded {
            return self.gzip.is_none();
        }
        // A stream is over only once its end was read, even if every byte of its length was.
        match &self.source {
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Pieces { .. } | Source::Pulled { .. } => false,
            Source::Absent(_) | Source::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_coded {
            return SizeHint::default();
        }
        match &self.source {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Pieces { length, .. } | Source::Pulled { length, .. } => SizeHint::with_exact(*length),
            Source::Absent(length) => length.map_or_else(SizeHint::default, SizeHint::with_exact),
            Source::Ended => SizeHint::with_exact(0),
        }
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
