//! The steps of a plan, in order.

use super::{Ending, Findings, Plan, Proof, Standing};
use crate::types::DidMethod;

impl Findings<'_> {
    pub(super) fn list_steps(&self, plan: &mut Plan) {
        let steps = &mut plan.steps;
        let (server, backup) = (&self.server.url, self.backup);
        if plan.proof == Proof::TemporaryKey {
            steps.push(
                "sign and send a first operation: a temporary signing key, all else as it is (the identity still \
                 points to the old PDS)"
                    .to_owned(),
            );
        }
        if *self.standing == Standing::Absent {
            steps.push(format!(
                "make the account at {server}, deactivated, as {}",
                plan.handle
            ));
        }
        steps.push(format!(
            "import {} records ({} bytes)",
            backup.records - backup.withheld.len() as u64,
            backup.car_bytes
        ));
        let held = backup.blobs.len() - plan.missing.len() - plan.too_large.len();
        steps.push(format!("upload {held} blobs ({} bytes)", plan.blob_bytes));
        steps.push(match self.did.method() {
            DidMethod::Plc => {
                format!("sign and send the operation that points the identity to {server}; every other key, service and method stays")
            }
            _ => "wait until the owner has published the changed DID document".to_owned(),
        });
        let last = match plan.ending {
            Ending::Active => "compare what the new PDS has, and activate the account",
            Ending::Deactivated => {
                "compare what the new PDS has, and leave the account deactivated, as it was"
            }
            Ending::TakenDown => "compare what the new PDS has, and take the account down, as it was",
        };
        steps.push(last.to_owned());
        if plan.ending == Ending::Active {
            steps.push("write and delete one record, so that a commit by the new key goes out".to_owned());
        }
    }
}
