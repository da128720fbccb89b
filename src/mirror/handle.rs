#![allow(
    clippy::disallowed_methods,
    reason = "shell: owns the applier's thread and reads the clock"
)]
//! The applier's thread, and the way to it.
//!
//! Inputs queue up in a bounded channel. While one batch is being synced the next one gathers, so that one
//! sync serves as many inputs as there are. Whoever sent an input with [`ApplierHandle::apply`] is told when
//! it is durable.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::applier::{Applier, Note, Totals};
use super::input::Input;
use super::store::StoreError;
use crate::clock::Clock;

/// Inputs that may wait for the applier.
pub const QUEUE_INPUTS_MAX: usize = 4096;
/// Bytes of frames that may wait for the applier.
pub const QUEUE_BYTES_MAX: u32 = 64 << 20;
/// Inputs that share one sync, at most.
const GROUP_INPUTS_MAX: usize = 1024;

struct Message {
    input: Input,
    durable: Option<oneshot::Sender<()>>,
    /// Counts against [`QUEUE_BYTES_MAX`] until the input is durable.
    place: OwnedSemaphorePermit,
}

/// The applier is gone: the process is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mirror's applier has stopped")]
pub struct Stopped;

/// Sends inputs to the applier. Cheap to clone; the applier ends when all handles are gone.
#[derive(Clone)]
pub struct ApplierHandle {
    inputs: mpsc::Sender<Message>,
    places: Arc<Semaphore>,
    shared: Arc<Shared>,
}

/// What the applier shows to others.
#[derive(Default)]
struct Shared {
    totals: Mutex<Totals>,
    tasks: Notify,
}

impl ApplierHandle {
    /// Queues an input; waits while the queue is full.
    ///
    /// # Errors
    /// When the applier is gone.
    pub async fn send(&self, input: Input) -> Result<(), Stopped> {
        self.enqueue(input, None).await
    }

    /// Queues an input and waits until it is durable.
    ///
    /// # Errors
    /// When the applier is gone: then nobody knows whether it is.
    pub async fn apply(&self, input: Input) -> Result<(), Stopped> {
        let (durable, done) = oneshot::channel();
        self.enqueue(input, Some(durable)).await?;
        done.await.map_err(|_| Stopped)
    }

    async fn enqueue(&self, input: Input, durable: Option<oneshot::Sender<()>>) -> Result<(), Stopped> {
        let bytes = match &input {
            Input::Event(event) => u32::try_from(event.frame.len()).unwrap_or(QUEUE_BYTES_MAX),
            _ => 0,
        };
        let places = Arc::clone(&self.places)
            .acquire_many_owned(bytes.min(QUEUE_BYTES_MAX))
            .await;
        let place = places.map_err(|_| Stopped)?;
        self.inputs
            .send(Message {
                input,
                durable,
                place,
            })
            .await
            .map_err(|_| Stopped)
    }

    /// Totals over all rows, as of the last durable batch.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.shared
            .totals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until tasks were added since the last call.
    pub async fn tasks_added(&self) {
        self.shared.tasks.notified().await;
    }
}

/// Starts the applier's thread. `watch` hears of every durable group; it must not block. The thread ends when
/// every handle is gone, with its result.
///
/// # Errors
/// When the system refuses a thread.
pub fn start(
    mut applier: Applier,
    clock: Clock,
    mut watch: impl FnMut(&[Note], &Totals) + Send + 'static,
) -> std::io::Result<(ApplierHandle, thread::JoinHandle<Result<(), StoreError>>)> {
    let (sender, mut receiver) = mpsc::channel::<Message>(QUEUE_INPUTS_MAX);
    let shared = Arc::new(Shared::default());
    *shared.totals.lock().unwrap_or_else(PoisonError::into_inner) = applier.totals().clone();
    watch(&[], applier.totals());
    let seen = Arc::clone(&shared);
    let thread = thread::Builder::new().name("applier".to_owned()).spawn(move || {
        let mut group = Vec::new();
        while receiver.blocking_recv_many(&mut group, GROUP_INPUTS_MAX) > 0 {
            let (mut inputs, mut waiting) = (Vec::new(), Vec::new());
            for Message {
                input,
                durable,
                place,
            } in group.drain(..)
            {
                inputs.push(input);
                waiting.push((durable, place));
            }
            let outcome = applier.apply(inputs, clock.now())?;
            *seen.totals.lock().unwrap_or_else(PoisonError::into_inner) = applier.totals().clone();
            watch(&outcome.notes, applier.totals());
            for durable in waiting.into_iter().filter_map(|(durable, _)| durable) {
                // Whoever asked may have given up; the input is applied all the same.
                let _gone = durable.send(());
            }
            if outcome.tasks {
                seen.tasks.notify_one();
            }
        }
        Ok(())
    })?;
    let places = Arc::new(Semaphore::new(QUEUE_BYTES_MAX as usize));
    Ok((
        ApplierHandle {
            inputs: sender,
            places,
            shared,
        },
        thread,
    ))
}
