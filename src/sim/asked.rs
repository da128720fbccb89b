//! A model of asking hosts again for blobs that are held (`Workshop::sweep`, `BlobFetcher::ask`).

use std::time::Duration;

use super::daemon::Daemon;
use super::faults::Fault;
use super::pds::{Network, Refusal};
use super::work::Work;
use super::world::World;
use crate::mirror::input::{BlobKey, BlobVerdict, Input};
use crate::mirror::reader::Mirror;
use crate::mirror::store::StoreError;
use crate::mirror::sweep::{Answer, Batch};
use crate::types::HostName;

/// Within this time a host is asked again for every blob: far shorter than it would be, for a run is short too.
const SWEEP_INTERVAL: Duration = Duration::from_secs(240);
/// After a host could not say.
const RETRY: Duration = Duration::from_secs(120);

impl Daemon {
    pub(super) fn sweep(
        &self,
        world: &mut World,
        net: &Network,
        host: HostName,
        work: &Work,
    ) -> Result<Input, StoreError> {
        let task = work.key.clone();
        let mirror = Mirror::new(&self.store);
        let Some(mark) = mirror.host(&host)?.and_then(|row| row.sweep) else {
            return Ok(Input::TaskDone { task });
        };
        let mut batch = Batch::next(&mirror, &host, mark, world.now, SWEEP_INTERVAL)?;
        while let Some(blob) = batch.ask() {
            let answer = ask(world, net, &host, blob);
            batch.take(answer);
        }
        let (verdicts, mark) = batch.finish(world.now);
        Ok(Input::BlobsSwept {
            host,
            verdicts,
            mark,
            task,
        })
    }
}

/// Asks for one blob that was withheld.
pub(super) fn ask_again(world: &mut World, net: &Network, blob: BlobKey, work: &Work) -> Input {
    let task = work.key.clone();
    let Some(host) = work.row.as_ref().map(|row| row.host.clone()) else {
        return Input::TaskDone { task };
    };
    let served = match ask(world, net, &host, &blob) {
        Answer::Served => true,
        Answer::Withheld => false,
        Answer::AccountOff => return Input::TaskDone { task },
        Answer::Unclear | Answer::Away(_) => {
            return Input::TaskDelayed {
                key: task,
                task: work.task.clone(),
                retry_at: world.now.plus(RETRY),
            };
        }
    };
    let verdict = BlobVerdict { blob, served };
    Input::BlobAsked { host, verdict, task }
}

/// Whether the host gives a blob.
fn ask(world: &mut World, net: &Network, host: &HostName, blob: &BlobKey) -> Answer {
    let pds = net.hosts.iter().find(|pds| pds.name == *host);
    match pds {
        _ if world.strikes(Fault::ServerError, 150) => Answer::Unclear,
        None => Answer::Away(None),
        Some(pds) => match pds.blob(&blob.did, &blob.digest, world.now) {
            Ok(_) => Answer::Served,
            Err(Refusal::Unreachable) => Answer::Away(None),
            // A host that knows the account, but not the blob.
            Err(Refusal::NotFound) if pds.served(&blob.did).is_ok() => Answer::Withheld,
            Err(Refusal::NotFound) => Answer::AccountOff,
            Err(Refusal::Inactive(_)) => Answer::AccountOff,
        },
    }
}
