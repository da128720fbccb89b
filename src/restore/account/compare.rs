#![allow(clippy::disallowed_methods, reason = "shell: the network, files")]
//! What the new PDS has, compared with what it should have: by its own counts before it is activated, and record by
//! record by what it gives.

use std::io::BufReader;

use super::{CAR_BYTES_MAX, Report, Restore};
use crate::identity::plc_log::RECOVERY_WINDOW;
use crate::repo::signing_key::SigningKey;
use crate::restore::RestoreError;
use crate::restore::ledger::{Ledger, Step};
use crate::restore::plan::Ending;
use crate::restore::source::read_car;
use crate::types::DidMethod;

impl Restore<'_> {
    /// Compares what the PDS says that it has with what was planned, before it is activated.
    pub(super) async fn compare_status(&self, ledger: &Ledger) -> Result<(), RestoreError> {
        let status = self.pds.status().await?;
        let facts = &self.backup.facts;
        let not = |what: String| {
            Err(RestoreError::Unproven(format!(
                "{} {what}: the account was not activated; run the same command again",
                self.pds.url
            )))
        };
        if !status.valid_did {
            return not("does not find itself in the identity".to_owned());
        }
        let wanted = facts.records - facts.withheld.len() as u64;
        if status.indexed_records != wanted {
            return not(format!("has {} records of {wanted}", status.indexed_records));
        }
        let left = ledger.state().blobs_missing.len() as u64;
        if status.imported_blobs + left < status.expected_blobs {
            return not(format!(
                "has {} blobs of {}",
                status.imported_blobs, status.expected_blobs
            ));
        }
        Ok(())
    }

    /// Reads the repository back as everybody gets it, and compares record by record.
    pub(super) async fn read_back(&self, ledger: &Ledger) -> Result<Report, RestoreError> {
        self.watcher.say("reading the repository back and comparing it");
        let (log, key) = match self.did.method() {
            DidMethod::Plc => {
                let log = self.directory.log(self.did).await?;
                let key = log.current().and_then(|state| state.signing_key.clone());
                (Some(log), key)
            }
            _ => (None, self.directory.document(self.did).await?.key),
        };
        let file = tempfile::tempfile_in(self.temp_dir);
        let file = file.map_err(|error| RestoreError::Failed(format!("a temporary file: {error}")))?;
        let hidden = self.plan.ending != Ending::Active;
        let file = self.pds.read_back(file, CAR_BYTES_MAX, hidden).await?;
        let status = self.pds.status().await?;
        let mut keys: Vec<SigningKey> = key.iter().cloned().collect();
        if let (Some(log), true) = (&log, hidden) {
            // Nothing was written there yet: the commit is the one that was imported.
            keys.extend(log.signing_keys().iter().map(|logged| logged.key().clone()));
        }
        // What was erased is named by its tree, and nobody has it.
        let held = &self.backup.records;
        let withheld = self.backup.facts.withheld.iter();
        let withheld = withheld.filter_map(|path| held.get(path).copied()).collect();
        let file = BufReader::new(file);
        let given = read_car(file, &self.pds.url, self.did, &keys, &withheld, self.temp_dir)?;
        let compared = !ledger.state().has(Step::Compared);
        if compared {
            let differs = |path: &str| given.records.get(path) != held.get(path);
            let both = held.keys().chain(given.records.keys());
            let different = both.map(|path| &**path).filter(|path| differs(path));
            let different: Vec<&str> = different.take(10).collect();
            if !different.is_empty() {
                return Err(RestoreError::Unproven(format!(
                    "{} gives other records than the backup has: {} (somebody may have written meanwhile)",
                    self.pds.url,
                    different.join(", ")
                )));
            }
        }
        Ok(Report {
            records: compared.then_some(self.backup.facts.records),
            blobs: (status.imported_blobs, status.expected_blobs),
            missing: ledger.state().blobs_missing.clone(),
            rev: given.rev.to_string(),
            signing_key: key.map(|key| key.to_did_key()),
            undoable_until: log
                .as_ref()
                .map(|log| log.last().created_at.plus(RECOVERY_WINDOW)),
        })
    }
}
