//! The archive of a simulation: a bucket that fails, is slow, loses its answers, and is emptied.
//!
//! What is put there is what ships: the object names of `archive/names.rs`, the files of
//! `archive/snapshot_file.rs`. When something is put is modelled (`archive/keeper.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::faults::Fault;
use super::world::World;
use crate::archive::names::{BlobName, DidFolder, QuarantinedName, SnapshotName};
use crate::archive::snapshot_file::SnapshotEncoder;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AccountRow, Head, KeptCar};
use crate::mirror::store::View;
use crate::repo::export::prove;
use crate::types::{Did, Digest};

/// As in `archive/keeper.rs`, where it grows to a minute.
const RETRY: Duration = Duration::from_secs(20);
/// Permille of requests that meet each fault.
const FAULT_PERMILLE: u64 = 60;

/// The archive, on another machine.
#[derive(Debug)]
pub struct Archive {
    /// Which one it is: it gets another id when it is emptied.
    pub id: String,
    /// What stands there, by name.
    pub objects: BTreeMap<String, Vec<u8>>,
}

/// What came of a request.
pub(super) enum Put {
    /// It stands there.
    Stored,
    /// As far as we know it does not: again after this time.
    Failed(Duration),
}

impl Default for Archive {
    fn default() -> Self {
        Self {
            id: "archive 0".to_owned(),
            objects: BTreeMap::new(),
        }
    }
}

impl Archive {
    /// Everything in it is gone; what is there now is another archive.
    pub fn empty(&mut self, number: u64) {
        self.objects.clear();
        self.id = format!("archive {number}");
    }

    /// Puts an object, if the bucket lets us. One that stands there under this name is kept: the names of
    /// snapshots and blobs say what is in them.
    pub(super) fn put(&mut self, world: &mut World, name: String, bytes: Vec<u8>) -> Put {
        if world.strikes(Fault::BucketError, FAULT_PERMILLE) {
            return Put::Failed(RETRY);
        }
        self.objects.entry(name).or_insert(bytes);
        if world.strikes(Fault::BucketAnswerLost, FAULT_PERMILLE) {
            return Put::Failed(RETRY);
        }
        Put::Stored
    }
}

/// How long a request takes.
pub(super) fn duration(world: &mut World) -> Duration {
    if world.strikes(Fault::BucketSlow, FAULT_PERMILLE) {
        world.net_rng.millis(5_000, 300_000)
    } else {
        world.net_rng.millis(1, 1_500)
    }
}

/// The name of a blob's object.
pub(super) fn blob_name(did: &Did, digest: Digest) -> String {
    let did = DidFolder::try_from(did).expect("simulated DIDs are short");
    BlobName { did, blob: digest }.to_string()
}

/// The name of the object of a CAR that is kept as it came. (Here it is not packed.)
pub(super) fn kept_name(did: &Did, car: &KeptCar) -> String {
    let name = QuarantinedName {
        did: DidFolder::try_from(did).expect("simulated DIDs are short"),
        rev: car.rev,
        commit: *car.commit.digest(),
        edition: 0,
    };
    name.to_string()
}

/// A snapshot of an account as of one moment: its name and its file. None if the rows do not prove the head.
pub(super) fn snapshot(
    view: &dyn View,
    did: &Did,
    row: &AccountRow,
    head: &Head,
) -> Option<(String, Vec<u8>)> {
    let mirror = Mirror::new(view);
    let rows = mirror.rows(row.account_number);
    let proven = prove(&rows, head.data).ok()?;
    let plain_bytes = proven.car_bytes(head.commit_block.len());
    let mut encoder = SnapshotEncoder::new(Vec::new(), Some(plain_bytes)).expect("memory");
    proven
        .write_car(&rows, head.commit, &head.commit_block, &mut encoder)
        .ok()?;
    let (file, _) = encoder.finish().expect("as announced");
    let name = SnapshotName {
        did: DidFolder::try_from(did).expect("simulated DIDs are short"),
        rev: head.rev,
        commit: *head.commit.digest(),
        edition: 0,
    };
    Some((name.to_string(), file))
}
