#![allow(
    clippy::disallowed_methods,
    reason = "shell: the clock, threads that may block"
)]
//! Every copy in the mirror, proven one after the other: its records build the tree that its head signs.

use std::sync::Arc;
use std::time::Instant;

use tokio::time::sleep;

use super::super::cold_start::{ColdStart, FillError};
use super::{Proof, ProofError};
use crate::mirror::input::Input;
use crate::mirror::keyspace::meta_proof;
use crate::mirror::reader::Mirror;
use crate::mirror::store::{Batch, Family, StoreError};
use crate::repo::export::{ExportError, prove};
use crate::types::Did;

/// The mirror is read so much of the time: one part in so many.
const MIRROR_SHARE: u32 = 5;
/// Accounts of the mirror that are proven between two marks.
const MARK_ACCOUNTS: u32 = 50;

impl Proof {
    pub(super) async fn scrub_mirror(&self) -> Result<(), ProofError> {
        loop {
            self.due("mirror", self.scrub_interval).await?;
            let after = self.store.get(Family::Meta, &meta_proof("mirror_at"))?;
            let mut after = after.map(|did| String::from_utf8_lossy(&did).into_owned());
            let (mut proven, mut damaged) = (0_u64, 0_u64);
            loop {
                let page = Mirror::new(&*self.store).accounts(after.as_deref(), MARK_ACCOUNTS as usize)?;
                let Some((last, _)) = page.last() else { break };
                after = Some(last.to_string());
                for (did, row) in &page {
                    if row.head.is_none() || row.damaged {
                        continue;
                    }
                    let began = Instant::now();
                    match self.prove(did).await? {
                        None => proven += 1,
                        Some(input) => {
                            damaged += 1;
                            self.applier.apply(input).await?;
                            self.give_back(did, row.account_number).await?;
                        }
                    }
                    sleep(began.elapsed() * (MIRROR_SHARE - 1)).await;
                }
                let mut batch = Batch::new();
                batch.put(
                    Family::Meta,
                    meta_proof("mirror_at"),
                    last.to_string().into_bytes(),
                );
                self.store.write(batch)?;
            }
            let mut batch = Batch::new();
            batch.delete(Family::Meta, meta_proof("mirror_at"));
            self.store.write(batch)?;
            let now = self.clock.now();
            self.mark("mirror", now)?;
            if damaged == 0 {
                self.metrics.last_mirror_scrub.set(now.seconds_f64());
                tracing::debug!(proven, "every copy in the mirror proves its head");
            }
        }
    }

    /// Gives the mirror an account out of the archive, whose copy here is damaged: its host may be gone.
    async fn give_back(&self, did: &Did, account_number: u64) -> Result<(), ProofError> {
        let Some(keeper) = self.keeper.get() else {
            return Ok(());
        };
        let around = (keeper.bucket.clone(), self.temp_dir.as_path(), &self.clock);
        let which = (did, account_number);
        match ColdStart::one(&self.store, &self.numbers, around, which, self.dev_mode).await {
            Ok(Some(input)) => {
                self.applier.apply(input).await?;
                tracing::info!(%did, "the archive has given this account back");
            }
            Ok(None) => {}
            Err(FillError::Store(error)) => return Err(error.into()),
            Err(error) => tracing::warn!(%did, %error, "the archive cannot give this account back now"),
        }
        Ok(())
    }

    /// Rebuilds an account's tree; what to tell the applier if that does not come to its head.
    async fn prove(&self, did: &Did) -> Result<Option<Input>, StoreError> {
        let (store, owner) = (Arc::clone(&self.store), did.clone());
        let proven = tokio::task::spawn_blocking(move || {
            let view = store.view();
            let mirror = Mirror::new(&*view);
            let Some(row) = mirror.account(&owner)? else {
                return Ok(None);
            };
            let Some(head) = &row.head else { return Ok(None) };
            match prove(&mirror.rows(row.account_number), head.data) {
                Ok(_) => Ok(None),
                Err(ExportError::Rows(error))
                    if !matches!(error, StoreError::BadRow { .. } | StoreError::Corrupt { .. }) =>
                {
                    Err(error)
                }
                Err(error) => Ok(Some((row.account_number, error.to_string()))),
            }
        });
        let proven = proven
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        Ok(proven.map(|(account_number, detail)| {
            tracing::error!(
                %did,
                detail,
                "the mirror's copy of this account is damaged; it is taken from the archive, or fetched again"
            );
            Input::Damaged {
                did: did.clone(),
                account_number,
                task: Vec::new(),
            }
        }))
    }
}
