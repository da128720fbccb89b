#![allow(clippy::disallowed_methods, reason = "shell: waits for the bucket")]
//! What the hosts' states tell of snapshots: each is there, or a newer one.

use super::account::Objects;
use super::log_chain::Stretch;
use super::read::Outcome;
use super::report::Fault;
use super::run::Scrub;
use crate::archive::names::{DidFolder, ErasedName};
use crate::types::Did;

impl Scrub<'_> {
    /// The snapshot of which its host's state tells is there, or a newer one: retention never takes the newest.
    pub(super) async fn check_told(&mut self, did: &Did, folder: &DidFolder, objects: &Objects) {
        let Some((time, Some(rev))) = self.told.get(did).copied() else {
            return;
        };
        if objects.snapshots.first().is_some_and(|newest| newest.rev >= rev) {
            return;
        }
        // It may have been removed since the notes were read.
        let name = ErasedName { did: folder.clone() };
        if let Outcome::Sound(note) = self.read_erased(&name).await
            && note.let_go_since(time)
        {
            return;
        }
        let detail = format!(
            "at {time} there was a snapshot of rev {rev}, and now there is none of that rev or a later one"
        );
        let affects = match objects.snapshots.first() {
            Some(newest) => format!(
                "what {did} held behind rev {}, but for what deltas and the log hold",
                newest.rev
            ),
            None => format!("{did} cannot be restored"),
        };
        let object = format!("{}{did}/", crate::archive::names::REPOS);
        self.find(Fault::NoSnapshot, &object, Some(did), detail, affects);
    }

    /// Nothing is there of it, and nothing need be: what the log still says of it leads nowhere any more.
    pub(super) fn is_let_go(&self, did: &Did, objects: &Objects) -> bool {
        let nothing = objects.snapshots.is_empty() && objects.deltas.is_empty();
        let note = self.erased.get(did).filter(|_| nothing);
        let mut stretches = self.state.log.stretches(did).iter().map(Stretch::span);
        note.is_some_and(|note| stretches.all(|(_, last, _)| note.lets_go(last)))
    }
}
