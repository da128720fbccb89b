//! What the applier says, counted for the sweep's table.

use super::world::World;
use crate::mirror::applier::Note;

/// Counts what the applier says.
pub(super) fn count(world: &mut World, note: &Note) {
    world.trace.say(|| format!("note {note:?}"));
    match note {
        Note::Rejected { reason, .. } => world.reason("reject", reason.label()),
        Note::Desynchronized { reason, .. } => world.reason("desync", reason.as_str()),
        Note::Swapped { reason, .. } => world.reason("swapped", reason.as_str()),
        Note::Quarantined { reason, .. } => world.reason("quarantined", reason.as_str()),
        Note::SkippedInQuarantine { .. } => world.reason("note", "skipped_in_quarantine"),
        Note::Unchanged { reason, .. } => world.reason("unchanged", reason.as_str()),
        Note::FetchFailed { failure, .. } => world.reason("fetch failed", failure.label()),
        Note::Applied { .. } => world.reason("note", "applied"),
        Note::Replayed { .. } => world.reason("note", "replayed"),
        Note::Inactive { .. } => world.reason("note", "inactive"),
        Note::Parked { .. } => world.reason("note", "parked"),
        Note::ParkedDropped { .. } => world.reason("note", "parked_dropped"),
        Note::Status { status, .. } => world.reason("status", status),
        Note::HostBehind { .. } => world.reason("note", "host_behind"),
        Note::Listed { .. } => world.reason("note", "listed"),
        Note::Gap { .. } => world.reason("note", "gap"),
        Note::Noncanonical { .. } => world.reason("note", "noncanonical"),
        Note::Moved { .. } => world.reason("note", "moved"),
        Note::BlobMissing { .. } => world.reason("note", "blob_missing"),
        Note::BlobWithheld { withheld: true, .. } => world.reason("note", "blob_withheld"),
        Note::BlobWithheld { .. } => world.reason("note", "blob_given_again"),
        Note::Alarm { kind, .. } => world.reason("alarm", kind.as_str()),
    }
}
