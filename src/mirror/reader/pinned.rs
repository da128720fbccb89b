//! What holds an account until a person has looked.

use super::Mirror;
use crate::mirror::rows::AccountRow;
use crate::mirror::store::StoreError;
use crate::types::Did;

impl Mirror<'_> {
    /// Whether something holds an account until a person has looked: a pin, or an alarm of its own or of its host.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn is_pinned(&self, did: &Did, row: &AccountRow) -> Result<bool, StoreError> {
        let alarmed = self.alarms()?.into_iter().any(|(id, alarm)| {
            // What concerns the whole host concerns each of its accounts.
            let ours =
                id.subject == did.as_str() || (id.subject.is_empty() && id.host.as_ref() == Some(&row.host));
            ours && alarm.acknowledged.is_none()
        });
        Ok(alarmed || !row.pins.is_empty())
    }
}
