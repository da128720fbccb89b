//! The records of one generation, as an export scans them.

use std::ops::ControlFlow;

use super::Mirror;
use crate::mirror::rows::RecordValue;
use crate::mirror::store::StoreError;
use crate::repo::export::{RecordRows, RowVisitor};

/// The records of one generation.
#[derive(Clone, Copy)]
pub struct Rows<'v> {
    pub(super) mirror: Mirror<'v>,
    pub(super) account_number: u64,
}

impl Rows<'_> {
    /// As [`Mirror::scan_records`].
    ///
    /// # Errors
    /// As [`Mirror::number`].
    pub fn scan(
        &self,
        from: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], RecordValue<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.mirror.scan_records(self.account_number, from, visit)
    }
}

impl RecordRows for Rows<'_> {
    type Error = StoreError;

    fn scan(&self, from: Option<&[u8]>, visit: &mut RowVisitor<'_>) -> Result<(), StoreError> {
        Rows::scan(self, from, &mut |path, record| {
            visit(path, record.cid(), record.bytes)
        })
    }
}
