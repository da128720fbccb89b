#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! The bytes of a backup's records, out of the CAR that was written of it.

use std::io::{BufReader, Seek as _};
use std::path::Path;

use super::{Backup, RestoreError, temporary, unproven};
use crate::archive::block_file::BlockFile;
use crate::repo::car::CarReader;

impl Backup {
    /// Every block that it has, in a temporary file. Those of records that were erased are not among them.
    ///
    /// # Errors
    /// When a temporary file cannot be read or written.
    pub fn blocks(&self, temp_dir: &Path) -> Result<BlockFile, RestoreError> {
        let failed = |error: std::io::Error| temporary(temp_dir, &error);
        let bad = |error: &dyn std::fmt::Display| unproven(&self.facts.place, error);
        let mut file = self.car.try_clone().map_err(failed)?;
        file.rewind().map_err(failed)?;
        let mut car = CarReader::new(BufReader::with_capacity(1 << 20, file)).map_err(|error| bad(&error))?;
        let mut blocks = BlockFile::new(temp_dir).map_err(failed)?;
        let mut block = Vec::new();
        while let Some((cid, _)) = car.next_block(&mut block).map_err(|error| bad(&error))? {
            blocks.put(&cid, &block).map_err(failed)?;
        }
        Ok(blocks)
    }
}
