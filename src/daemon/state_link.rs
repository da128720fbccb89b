#![allow(clippy::disallowed_methods, reason = "shell: the drop folder, the archive")]
//! Ships what lies in the drop folder of private state: encrypted files, which this process cannot read. A file goes
//! once its object stands in the archive; that of an account whose data was erased goes without.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::DaemonError;
use super::archive_watch::ArchiveWatch;
use crate::archive::bucket::{Body, Bucket, PutOptions, PutOutcome};
use crate::archive::content_type::ContentType;
use crate::archive::names::{ObjectName, STATE, StateName, StatePart};
use crate::mirror::reader::Mirror;
use crate::mirror::store::Store;
use crate::state::drop_box;
use crate::types::Timestamp;

/// Between two looks at the folder.
const LOOK: Duration = Duration::from_secs(2);
/// After something went wrong.
const PAUSE: Duration = Duration::from_secs(30);
/// The beginning of every file that `age` made.
const AGE: &[u8] = b"age-encryption.org/v1\n";

/// What shipping needs.
pub struct StateLink {
    /// Where the files lie; none: nobody asked for it.
    pub folder: Option<PathBuf>,
    /// There while the archive is open.
    pub bucket: Arc<OnceLock<Bucket>>,
    /// What the newest look at the archive found.
    pub archive: Arc<ArchiveWatch>,
    /// The mirror, which knows what was erased.
    pub store: Arc<dyn Store>,
    /// The newest that stands in the archive.
    pub newest: Arc<Newest>,
}

/// When the newest object of private state was made, as far as it is known.
#[derive(Debug, Default)]
pub struct Newest(Mutex<Option<Timestamp>>);

impl Newest {
    fn see(&self, time: Timestamp) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = (*newest).max(Some(time));
    }

    /// For the status.
    #[must_use]
    pub fn json(&self, asked_for: bool) -> Value {
        let newest = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        json!({ "shipped": asked_for, "newest": newest.map(|time| time.to_string()) })
    }
}

impl StateLink {
    /// Ships until it is cancelled.
    ///
    /// # Errors
    /// None: what goes wrong is told, and tried again.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), DaemonError> {
        let (mut failing, mut listed) = (false, false);
        loop {
            let step = async {
                match self.bucket.get() {
                    Some(bucket) if self.archive.is_good() => self.step(bucket, &mut listed).await,
                    _ => Ok(()),
                }
            };
            let stepped = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                stepped = step => stepped,
            };
            let wait = match stepped {
                Ok(()) => {
                    failing = false;
                    LOOK
                }
                Err(why) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            "cannot ship the PDS's private state: {why}; tried again until it works"
                        );
                    }
                    PAUSE
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = sleep(wait) => {}
            }
        }
    }

    async fn step(&self, bucket: &Bucket, listed: &mut bool) -> Result<(), String> {
        if !*listed {
            self.see_all(bucket).await?;
            *listed = true;
        }
        let Some(folder) = self.folder.clone() else {
            return Ok(());
        };
        let waiting = tokio::task::spawn_blocking(move || drop_box::waiting(&folder));
        let waiting = waiting
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let mut shipped = 0u64;
        for (path, name) in waiting.map_err(|error| error.to_string())? {
            if self.is_erased(&name)? {
                tracing::info!("private state of an account that was erased is not shipped");
            } else {
                ship(bucket, &path, &name).await?;
                self.newest.see(name.time);
                shipped += 1;
            }
            std::fs::remove_file(&path)
                .map_err(|error| format!("cannot remove {}: {error}", path.display()))?;
        }
        if shipped > 0 {
            tracing::info!(
                objects = shipped,
                "the PDS's private state is archived, encrypted"
            );
        }
        Ok(())
    }

    fn is_erased(&self, name: &StateName) -> Result<bool, String> {
        let StatePart::Account(did) = &name.part else {
            return Ok(false);
        };
        let erased = Mirror::new(&*self.store).erased(did.did());
        let erased = erased.map_err(|error| error.to_string())?;
        Ok(erased.is_some_and(|erased| erased.whole))
    }

    async fn see_all(&self, bucket: &Bucket) -> Result<(), String> {
        let mut after: Option<String> = None;
        loop {
            let page = bucket.list(STATE, after.as_deref()).await;
            let page = page.map_err(|error| error.to_string())?;
            for object in &page.objects {
                if let Ok(ObjectName::State(name)) = object.name.parse() {
                    self.newest.see(name.time);
                }
            }
            match page.next {
                Some(next) if after.as_ref().is_none_or(|after| *after < next) => after = Some(next),
                _ => return Ok(()),
            }
        }
    }
}

/// Puts one file. One that stands there already is an earlier try.
async fn ship(bucket: &Bucket, path: &Path, name: &StateName) -> Result<(), String> {
    use std::io::Read as _;
    let bad = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut begin = [0; AGE.len()];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    read.map_err(|error| bad(&error))?;
    if begin != AGE {
        return Err(bad(
            &"it is not encrypted, so it is not shipped; remove it, and find out who wrote it",
        ));
    }
    let object = ObjectName::State(name.clone()).to_string();
    let options = PutOptions::create(ContentType::binary());
    let put = bucket.put(&object, Body::File(path.to_owned()), &options).await;
    match put.map_err(|error| error.to_string())? {
        PutOutcome::Created => Ok(()),
        PutOutcome::AlreadyThere => {
            let size = path.metadata().map_err(|error| bad(&error))?.len();
            let head = bucket.head(&object).await.map_err(|error| error.to_string())?;
            match head {
                Some(head) if head.size == size => Ok(()),
                _ => Err(bad(&"another object of its name stands in the archive")),
            }
        }
    }
}
