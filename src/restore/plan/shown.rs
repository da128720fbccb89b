//! A plan, for people and for programs.

use serde_json::{Value, json};

use super::super::WITHHELD_MAX;
use super::{Findings, Plan};
use crate::identity::plc_log::PlcLog;
use crate::repo::signing_key::SigningKey;
use crate::types::Cid;

impl Findings<'_> {
    /// The plan for people.
    #[must_use]
    pub fn text(&self, plan: &Plan) -> String {
        let backup = self.backup;
        let mut text = format!(
            "{}\n  backup    {} at rev {}, {} records, {} blobs ({} missing)\n",
            self.did,
            backup.place,
            backup.rev,
            backup.records,
            backup.blobs.len(),
            plan.missing.len()
        );
        if let Some(key) = &backup.signed_by {
            text.push_str(&format!(
                "            proven: the tree, and the signature by {key}\n"
            ));
        }
        let pds = self.pds.unwrap_or("no PDS");
        text.push_str(&format!(
            "  identity  {} at {pds}\n",
            self.handle.unwrap_or("no handle")
        ));
        if let (Some(log), Some(place)) = (self.log, plan.key_place) {
            text.push_str(&format!(
                "            {} operations, verified; your key is number {} of its rotation keys\n",
                log.entries().len(),
                place + 1
            ));
        }
        text.push_str(&format!(
            "  new PDS   {} ({})\n",
            self.server.url, self.server.did
        ));
        for step in &plan.steps {
            text.push_str(&format!("  - {step}\n"));
        }
        for warning in &plan.warnings {
            text.push_str(&format!("  note: {warning}\n"));
        }
        for refusal in &plan.refusals {
            text.push_str(&format!("  cannot: {refusal}\n"));
        }
        text
    }

    /// The plan for programs.
    #[must_use]
    pub fn json(&self, plan: &Plan) -> Value {
        let cids = |cids: &[Cid]| -> Value { cids.iter().map(|cid| json!(cid.to_string())).collect() };
        json!({
            "did": self.did.as_str(),
            "backup": {
                "place": self.backup.place,
                "rev": self.backup.rev.to_string(),
                "commit": self.backup.commit.to_string(),
                "signed_by": self.backup.signed_by,
                "records": self.backup.records,
                "withheld": self.backup.withheld.len(),
                "withheld_records": self.backup.withheld.iter().take(WITHHELD_MAX).collect::<Vec<_>>(),
                "car_bytes": self.backup.car_bytes,
                "blobs": self.backup.blobs.len(),
                "blob_bytes": plan.blob_bytes,
                "blobs_missing": cids(&plan.missing),
                "blobs_too_large": cids(&plan.too_large),
            },
            "identity": {
                "handle": self.handle,
                "pds": self.pds,
                "signing_key": self.signing_key.map(SigningKey::to_did_key),
                "operations": self.log.map(|log| log.entries().len()),
                "rotation_keys": self.log.and_then(PlcLog::current).map(|state| &state.rotation_keys),
                "key_place": plan.key_place,
            },
            "server": {
                "url": self.server.url,
                "did": self.server.did,
                "invite_required": self.server.invite_required,
                "verification_required": self.server.verification_required,
                "handle_domains": self.server.domains,
                "blob_bytes_max": self.server.blob_bytes_max,
            },
            "handle": plan.handle,
            "steps": plan.steps,
            "notes": plan.warnings,
            "refusals": plan.refusals,
        })
    }
}
