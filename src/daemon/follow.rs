#![allow(clippy::disallowed_methods, reason = "shell: runs tasks")]
//! One host's stream on its way into the applier: decoded and verified on every core, handed over in order.
//!
//! Frames are taken from the subscriber's queue in chunks; each chunk is verified on its own, several at a
//! time, and their results are awaited in the order of the stream. An event whose key is not at hand is handed
//! over as it is: the applier parks it. Nothing here waits for the network.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::metrics::HostMetrics;
use crate::metrics::labels::{EventKind, FrameReason, ReconnectReason, SeqStage};
use crate::mirror::handle::{ApplierHandle, Stopped};
use crate::mirror::input::{Gap, HostEvent, Input};
use crate::mirror::reader::Mirror;
use crate::mirror::store::{Store, StoreError};
use crate::repo::signing_key::SigningKey;
use crate::stream::session::Loss;
use crate::stream::subscriber::{QueuedFrame, SubscriberEvent};
use crate::types::{Did, HostName};
use crate::verify::{EventBody, FrameContent, KeyLookup, Notice, check_frame};

/// Frames verified in one go.
const CHUNK_FRAMES_MAX: usize = 64;
/// Chunks verified at once, for each host.
const CHUNKS_MAX: usize = 4;
/// Parsed keys that are kept.
const KEYS_MAX: usize = 50_000;

/// What following a host needs.
pub struct Follow {
    /// Which host.
    pub host: HostName,
    /// The mirror, for the keys of accounts.
    pub store: Arc<dyn Store>,
    /// The way to the applier.
    pub applier: ApplierHandle,
    /// Parsed keys, shared by all hosts.
    pub keys: Arc<KeyCache>,
    /// The clock.
    pub clock: Clock,
    /// Counts.
    pub metrics: Arc<HostMetrics>,
}

/// Why following ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The mirror failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The applier is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Keys by their `did:key`, parsed once.
#[derive(Default)]
pub struct KeyCache(Mutex<HashMap<String, Arc<SigningKey>>>);

impl KeyCache {
    fn get(&self, text: &str) -> Option<Arc<SigningKey>> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = keys.get(text) {
            return Some(Arc::clone(key));
        }
        let key = Arc::new(SigningKey::from_did_key(text).ok()?);
        if keys.len() >= KEYS_MAX {
            keys.clear();
        }
        keys.insert(text.to_owned(), Arc::clone(&key));
        Some(key)
    }
}

/// What a chunk of the queue became.
type Verified = Result<Vec<Input>, StoreError>;

impl Follow {
    /// Hands over what the subscriber brings, until its queue ends (then all of it was handed over) or `cancel`.
    ///
    /// # Errors
    /// When the mirror fails or the applier is gone.
    pub async fn run(
        self: Arc<Self>,
        mut queue: mpsc::Receiver<SubscriberEvent>,
        cancel: CancellationToken,
    ) -> Result<(), FollowError> {
        let mut chunks: FuturesOrdered<BoxFuture<'static, Verified>> = FuturesOrdered::new();
        let mut taken = Vec::with_capacity(CHUNK_FRAMES_MAX);
        let mut open = true;
        while open || !chunks.is_empty() {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                Some(inputs) = chunks.next(), if !chunks.is_empty() => {
                    for input in inputs? {
                        self.applier.send(input).await?;
                    }
                }
                count = queue.recv_many(&mut taken, CHUNK_FRAMES_MAX), if open && chunks.len() < CHUNKS_MAX => {
                    open = count > 0;
                    if open {
                        let (this, events) = (Arc::clone(&self), std::mem::take(&mut taken));
                        let verifying = tokio::task::spawn_blocking(move || this.verify(events));
                        chunks.push_back(Box::pin(async {
                            verifying.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
                        }));
                    }
                }
            }
        }
        Ok(())
    }

    fn verify(&self, events: Vec<SubscriberEvent>) -> Verified {
        let mut inputs = Vec::with_capacity(events.len());
        for event in events {
            match event {
                SubscriberEvent::Frame(frame) => inputs.extend(self.verify_frame(frame)?),
                SubscriberEvent::Connected { .. } => {
                    self.metrics.connected.set(1);
                    inputs.push(Input::Connected {
                        host: self.host.clone(),
                    });
                }
                SubscriberEvent::Lost { loss, .. } => {
                    self.metrics.connected.set(0);
                    self.metrics.reconnects.of(reconnect_label(&loss)).inc();
                    if let Loss::BadFrame(_) = loss {
                        self.metrics.frames_rejected.of(FrameReason::Cbor).inc();
                    }
                    if loss.label() == "future_cursor" {
                        inputs.push(Input::Gap {
                            host: self.host.clone(),
                            gap: Gap::CursorFromFuture,
                        });
                    } else if loss.is_garbled() {
                        inputs.push(Input::Gap {
                            host: self.host.clone(),
                            gap: Gap::Garbled,
                        });
                    }
                }
            }
        }
        Ok(inputs)
    }

    fn verify_frame(&self, frame: QueuedFrame) -> Result<Option<Input>, StoreError> {
        let mut failed = None;
        let key_of = |did: &Did| {
            self.key_of(did).unwrap_or_else(|error| {
                failed = Some(error);
                KeyLookup::Unknown
            })
        };
        let content = check_frame(&frame.bytes, key_of, self.clock.now());
        if let Some(error) = failed {
            return Err(error);
        }
        let event = match content {
            Ok(FrameContent::Event(event)) => event,
            Ok(FrameContent::Notice(Notice::Info { name, message })) => {
                self.metrics.events_received.of(EventKind::Info).inc();
                tracing::info!(host = %self.host, name, message, "the host says");
                let gap = Input::Gap {
                    host: self.host.clone(),
                    gap: Gap::CursorOutdated,
                };
                return Ok((name == "OutdatedCursor").then_some(gap));
            }
            Ok(FrameContent::Notice(Notice::Error { .. }) | FrameContent::Ignored) => {
                self.metrics.events_received.of(EventKind::Unknown).inc();
                return Ok(None);
            }
            // The subscriber lets only strict frames through.
            Err(error) => {
                tracing::warn!(host = %self.host, %error, "a frame cannot be read");
                return Ok(None);
            }
        };
        self.metrics.events_received.of(kind_of(&event.body)).inc();
        self.metrics
            .last_seq
            .of(SeqStage::Received)
            .set(i64::try_from(event.seq).unwrap_or(i64::MAX));
        Ok(Some(Input::Event(HostEvent {
            host: self.host.clone(),
            received: frame.received,
            frame: frame.bytes.clone(),
            event,
        })))
    }

    /// Who may speak for an account, as the mirror knows it.
    fn key_of(&self, did: &Did) -> Result<KeyLookup, StoreError> {
        let row = Mirror::new(&*self.store).account(did)?;
        let Some(identity) = row.and_then(|row| row.identity) else {
            return Ok(KeyLookup::Unknown);
        };
        if !identity.speaks_at(&self.host) {
            return Ok(KeyLookup::NotThisHost);
        }
        let key = identity.key.as_deref().and_then(|text| self.keys.get(text));
        Ok(key.map_or(KeyLookup::NotThisHost, KeyLookup::Key))
    }
}

const fn kind_of(body: &EventBody) -> EventKind {
    match body {
        EventBody::Commit { .. } => EventKind::Commit,
        EventBody::Sync { .. } => EventKind::Sync,
        EventBody::Identity { .. } => EventKind::Identity,
        EventBody::Account { .. } => EventKind::Account,
        EventBody::Malformed { .. } => EventKind::Unknown,
    }
}

const fn reconnect_label(loss: &Loss) -> ReconnectReason {
    match loss {
        Loss::Refused(_)
        | Loss::Unreachable(_)
        | Loss::Tls(_)
        | Loss::HttpStatus { .. }
        | Loss::Handshake(_)
        | Loss::HandshakeTimeout => ReconnectReason::Connect,
        Loss::Closed { .. } => ReconnectReason::Closed,
        Loss::Broken(_) => ReconnectReason::Broken,
        Loss::Silent | Loss::NotRepeated(_) => ReconnectReason::Silent,
        Loss::ErrorFrame { .. } => ReconnectReason::ErrorFrame,
        Loss::Protocol(_) | Loss::FrameTooLong | Loss::TextFrame | Loss::BadFrame(_) | Loss::Seq(_) => {
            ReconnectReason::Protocol
        }
    }
}
