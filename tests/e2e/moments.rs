//! Any moment of the past, at random, from the archive alone: what the PDS had then, record by record and blob by blob.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use firekeep::types::Timestamp;

use crate::support::alone::Alone;
use crate::support::firekeep::Firekeep;
use crate::support::history::History;
use crate::support::sandbox::Sandbox;
use crate::support::{Chance, report, sized};

const ACCOUNTS: u64 = 6;
/// A picture that its record outlives by less than this may be gone before anybody can fetch it.
const SHORT_LIVED: u64 = 5000;

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.expect("after 1970").as_millis()).expect("milliseconds")
}

#[test]
fn random_moments() {
    let began = Instant::now();
    let seed = Chance::seed();
    let mut chance = Chance(seed);
    let sandbox = Sandbox::up("pds,plc");
    sandbox.populate(ACCOUNTS, sized(100, 800), sized(10, 60));
    let archive = format!("file://{}", sandbox.folder().join("archive").display());
    // Snapshots and deltas in between, so that moments are put together from all kinds of objects.
    let firekeep =
        Firekeep::new(&sandbox, "data").args(&["--archive", &archive, "--snapshot-interval", "10s"]);
    let mut running = firekeep.start();
    running.wait_status("every account is live and in the archive", |status| {
        status.sync("live") == ACCOUNTS
            && status.accounts("held") == ACCOUNTS
            && status.archive("accounts_due") == 0
    });
    let from = now();
    let churn = sandbox.churn(25, 3600);
    for _ in 0..sized(2, 8) {
        std::thread::sleep(Duration::from_secs(sized(3, 15)));
        running.snapshot();
    }
    std::thread::sleep(Duration::from_secs(2));
    let to = now();
    let churn = churn.end();
    churn.assert_taken();
    running.wait_caught_up(&sandbox);
    running.wait_none_missing();
    running.wait_status("all of it is in the archive", |status| {
        status.archive("changes_due") == 0 && status.blobs("held") == 0
    });
    running.stop();
    std::fs::remove_dir_all(&firekeep.data_dir).expect("the archive alone is left");

    let (alone, history) = (
        Alone::new(&sandbox, &firekeep, &["--archive", &archive]),
        History::read(&sandbox),
    );
    let dids = sandbox.dids();
    let (mut records, mut blobs, mut fleeting, mut between) = (0, 0, 0, 0);
    let wanted = sized(24, 200);
    for number in 0..wanted {
        let micros = chance.below(Duration::from_millis(to - from)).as_micros();
        let at = from + u64::try_from(micros / 1000).expect("milliseconds");
        let did = &dids[usize::try_from(number % ACCOUNTS).expect("few")];
        let versions = history.of(did);
        let place = versions.partition_point(|version| version.at <= at) - 1;
        let time = Timestamp::from_micros(at * 1000).to_string();
        let restored = alone.restore_at(did, &time);
        assert_eq!(
            (&restored.rev, &restored.commit),
            (&versions[place].rev, &versions[place].commit),
            "{did} at {time}: another commit than the one that the PDS was at"
        );
        assert!(
            restored.records == history.records(did, place),
            "{did} at {time}: other records than the PDS had"
        );
        for (path, referred) in &restored.blobs {
            for blob in referred {
                if !restored.missing.contains(blob) {
                    blobs += 1;
                    continue;
                }
                let lived = history.lifetime(did, place, path);
                assert!(
                    lived.is_some_and(|lived| lived < SHORT_LIVED),
                    "{did} at {time}: blob {blob} of {path}, which lived for {lived:?} ms, is not there"
                );
                fleeting += 1;
            }
        }
        records += restored.records.len() as u64;
        between += u64::from(place + 1 < versions.len());
    }
    let text = format!(
        "seed {seed}, {}; {wanted} random moments of {} s, {between} of them followed by more: each the PDS's commit and \
         {records} records of then, proven to its root, with {blobs} blobs ({fleeting} references to pictures that were \
         deleted at once)",
        churn.text(),
        (to - from) / 1000
    );
    report("random_moments", began, &text);
}
