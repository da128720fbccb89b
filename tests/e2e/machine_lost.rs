//! The machine is lost with all that is on it, or another one takes over: what counts is the archive alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::alone::Alone;
use crate::support::firekeep::{Firekeep, Running};
use crate::support::history::{History, Records};
use crate::support::sandbox::Sandbox;
use crate::support::{Chance, inventory, report, sized};

/// What the archive gives is no older than this: `flush_interval`, by default a second, and two more.
const PROMISE: Duration = Duration::from_secs(3);
const ACCOUNTS: u64 = 6;

/// One PDS, and one archive that no data folder holds.
struct Scene {
    sandbox: Sandbox,
    archive: PathBuf,
    url: String,
    /// An account whose repository is replaced from time to time by one that it had before.
    imported: Option<String>,
}

/// What was found while nobody wrote to the archive.
#[derive(Default)]
struct Losses {
    count: u64,
    records: u64,
    blobs: u64,
    /// The age of the oldest commit that a loss cost.
    cost: Duration,
    /// Commits that the losses cost, of all accounts.
    commits: u64,
}

impl Scene {
    fn up() -> Self {
        let sandbox = Sandbox::up("pds,plc");
        sandbox.populate(ACCOUNTS, sized(150, 1000), sized(12, 60));
        // Every account is older than what may be lost.
        std::thread::sleep(PROMISE);
        let archive = sandbox.folder().join("archive");
        let url = format!("file://{}", archive.display());
        Self {
            sandbox,
            archive,
            url,
            imported: None,
        }
    }

    fn machine(&self, name: &str) -> Firekeep {
        Firekeep::new(&self.sandbox, name).args(&["--archive", &self.url])
    }

    fn alone<'a>(&self, firekeep: &'a Firekeep) -> Alone<'a> {
        Alone::new(&self.sandbox, firekeep, &["--archive", &self.url])
    }

    /// What stands in the archive at a loss at that moment, of each account, against the PDS's own history. No
    /// account goes back behind `known`.
    fn check_loss(
        &self,
        firekeep: &Firekeep,
        at: u64,
        known: &mut BTreeMap<String, String>,
        losses: &mut Losses,
    ) {
        let (alone, history) = (self.alone(firekeep), History::read(&self.sandbox));
        for did in &self.sandbox.dids() {
            let restored = alone.restore(did);
            if self.imported.as_ref() == Some(did) {
                // No event tells of an import: the PDS's history does not have it. It never goes back all the same.
                let before = known.insert(did.clone(), restored.rev.clone());
                assert!(
                    before.as_ref() <= Some(&restored.rev),
                    "{did} went back from {before:?}"
                );
                continue;
            }
            let versions = history.of(did);
            let place = versions.iter().position(|version| version.rev == restored.rev);
            let place = place.unwrap_or_else(|| panic!("{did} never was at rev {}", restored.rev));
            assert_eq!(
                versions[place].commit, restored.commit,
                "{did} at {}",
                restored.rev
            );
            assert!(
                history.records(did, place) == restored.records,
                "{did} at {}: the archive gives other records than the PDS had",
                restored.rev
            );

            let promised = at - u64::try_from(PROMISE.as_millis()).expect("seconds");
            let due = versions.partition_point(|version| version.at <= promised);
            let due = due.checked_sub(1).expect("accounts are older than that");
            let lost = versions[place + 1..].iter().filter(|version| version.at <= at);
            let ages: Vec<u64> = lost.map(|version| at - version.at).collect();
            assert!(
                place >= due,
                "{did}: the archive has rev {}, but the PDS was at {} for {} ms when the machine was lost",
                restored.rev,
                versions[due].rev,
                at - versions[due].at
            );
            let then: Records = history.records(did, due);
            let owed = restored
                .blobs
                .iter()
                .filter(|(path, _)| then.get(*path) == restored.records.get(*path));
            for (path, blobs) in owed {
                for blob in blobs {
                    assert!(
                        !restored.missing.contains(blob),
                        "{did}: blob {blob} of {path} is not in the archive"
                    );
                    losses.blobs += 1;
                }
            }

            let before = known.insert(did.clone(), restored.rev.clone());
            assert!(
                before.as_ref() <= Some(&restored.rev),
                "{did} went back from {before:?} to {}",
                restored.rev
            );
            losses.records += restored.records.len() as u64;
            losses.commits += ages.len() as u64;
            let oldest = ages
                .first()
                .map_or(Duration::ZERO, |age| Duration::from_millis(*age));
            losses.cost = losses.cost.max(oldest);
        }
        losses.count += 1;
    }

    /// Every account stands in the archive with its blobs, and follows: from here on the promise holds.
    fn wait_protected(&self, running: &mut Running) {
        running.wait_status("every account is live and in the archive", |status| {
            status.sync("live") == ACCOUNTS
                && status.accounts("held") == ACCOUNTS
                && status.archive("accounts_due") == 0
                && status.blobs("wanted") + status.blobs("held") == 0
        });
    }

    /// Without more traffic the archive alone gives what the PDS has, and proves itself. What `verify` counted.
    ///
    /// A machine that begins with nothing fetches what the PDS has now: the moments between that and the last one of
    /// the machine before it are nowhere, and `verify` says so. Such gaps may be there, one a `handover`, none before
    /// `known`; and nothing else.
    fn settle(
        &self,
        mut running: Running,
        handovers: u64,
        known: &BTreeMap<String, String>,
    ) -> (serde_json::Value, usize) {
        running.wait_caught_up(&self.sandbox);
        running.wait_none_missing();
        running.wait_status("all of it is in the archive", |status| {
            status.archive("changes_due") == 0 && status.blobs("held") == 0
        });
        let firekeep = running.setup.clone();
        let alone = self.alone(&firekeep);
        alone.check_newest(&self.sandbox, self.imported.as_deref());
        // The newest snapshot may be of before the end of the traffic, and refer to a picture that was deleted before
        // anybody could fetch it: `verify` tells of that, rightly. So the newest is of now.
        running.snapshot();
        running.stop();
        let (counts, gaps) = alone.verify();
        for (did, from) in &gaps {
            assert!(
                *from >= known[did],
                "{did}: a gap from {from}, before the first handover"
            );
            let here = gaps.iter().filter(|(other, _)| other == did).count() as u64;
            assert!(here <= handovers, "{did}: {here} gaps, {handovers} handovers");
        }
        (counts, gaps.len())
    }

    /// A machine that nobody told to take over is refused.
    fn check_refused(&self, name: &str) {
        let machine = self.machine(name);
        let refused = machine.refused();
        assert_eq!(refused.code, 11, "{}", refused.stderr);
        assert!(!machine.data_dir.exists(), "it leaves no mirror behind");
        assert!(refused.stderr.contains("--take-over"), "{}", refused.stderr);
    }

    /// Moments of each account that the archive can put together.
    fn moments(&self, firekeep: &Firekeep) -> BTreeSet<(String, String, String)> {
        let alone = self.alone(firekeep);
        let dids = self.sandbox.dids();
        let each = dids.iter().flat_map(|did| {
            let moments = alone.moments(did).into_iter();
            moments.map(|(rev, commit)| (did.clone(), rev, commit))
        });
        each.collect()
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.expect("after 1970").as_millis()).expect("milliseconds")
}

/// `kill -9`, and the data folder is gone, while the PDS goes on; the next machine has nothing but the archive.
#[test]
fn machine_lost() {
    let began = Instant::now();
    let seed = Chance::seed();
    let mut chance = Chance(seed);
    let mut scene = Scene::up();
    let odd = scene.sandbox.dids()[0].clone();
    let car = scene.sandbox.folder().join("older.car");
    let file = ["--file", car.to_str().expect("UTF-8")];
    scene.sandbox.account("export", &odd, &file);
    scene.imported = Some(odd.clone());
    let mut imports = 0;
    let churn = scene.sandbox.churn(20, 3600);
    let (mut losses, mut known) = (Losses::default(), BTreeMap::new());
    let mut first = BTreeMap::new();
    let (wanted, mut early) = (sized(3, 20), 0);
    let mut moments = BTreeSet::new();
    while losses.count < wanted {
        let machine = scene.machine(&format!("machine-{}", losses.count));
        let machine = match losses.count {
            0 => machine,
            _ => machine.args(&["--take-over"]),
        };
        let mut running = machine.start();
        scene.wait_protected(&mut running);
        if losses.count % 3 == 0 {
            // Over an active account, silently: its next commits build on what nobody was told of.
            scene.sandbox.account("import", &odd, &file);
            imports += 1;
        }
        std::thread::sleep(chance.below(Duration::from_secs(5)));
        let at = now();
        running.kill_nine();
        std::fs::remove_dir_all(&machine.data_dir).expect("removes");
        scene.check_loss(&machine, at, &mut known, &mut losses);
        if first.is_empty() {
            first.clone_from(&known);
        }
        moments.extend(scene.moments(&machine));

        // The next one is lost at once, before it has everything: nothing may be worse than before.
        if losses.count < wanted {
            let next = scene.machine("early").args(&["--take-over"]);
            let running = next.spawn();
            std::thread::sleep(chance.below(Duration::from_millis(1500)));
            running.kill_nine();
            // It may not have come as far as making one.
            if next.data_dir.exists() {
                std::fs::remove_dir_all(&next.data_dir).expect("removes");
            }
            let alone = scene.alone(&next);
            for (did, rev) in &known {
                let (now, _) = alone.car(did);
                assert!(now >= *rev, "{did} went back from {rev} to {now}");
            }
            early += 1;
        }
    }
    let before = inventory(&scene.archive);
    scene.check_refused("untold");
    assert_eq!(inventory(&scene.archive), before, "nothing is changed");

    let last = scene.machine("last").args(&["--take-over"]);
    let mut running = last.start();
    scene.wait_protected(&mut running);
    let churn = churn.end();
    churn.assert_taken();
    let (counts, gaps) = scene.settle(running, losses.count + early, &first);
    let after = scene.moments(&last);
    let gone: Vec<_> = moments.difference(&after).take(5).collect();
    assert!(gone.is_empty(), "moments that the archive had: {gone:?}");
    let text = format!(
        "seed {seed}, {} machines lost under load ({}) and {early} more at once after a take-over, {imports} silent \
         imports of an older state; from the archive alone {} records and {} blobs as the PDS had them; lost at most the \
         last {} ms ({} commits in all); untold take-over refused with 11; {} moments before the last loss still there; \
         verify: {gaps} gaps where a machine began, else sound: {}",
        losses.count,
        churn.text(),
        losses.records,
        losses.blobs,
        losses.cost.as_millis(),
        losses.commits,
        moments.len(),
        counts["objects"]
    );
    report("machine_lost", began, &text);
}

/// The first daemon still runs when a person says that the second one takes over.
#[test]
fn taken_over() {
    let began = Instant::now();
    let scene = Scene::up();
    let churn = scene.sandbox.churn(20, 3600);
    let first = scene.machine("first");
    let mut running = first.start();
    scene.wait_protected(&mut running);
    std::thread::sleep(Duration::from_secs(3));
    scene.check_refused("untold");
    let cursor = running.status().cursor();
    running.wait_status("the first one goes on", |status| {
        status.cursor() > cursor && status.archive("changes_due") == 0
    });

    let second = scene.machine("second").args(&["--take-over"]);
    // What stands in the archive at this moment was acknowledged by the first.
    let before = scene.moments(&first);
    let took = Instant::now();
    let mut other = second.start();
    let (code, said) = running.wait_end();
    let took = took.elapsed();
    assert_eq!(code, Some(11), "{said}");
    assert!(
        said.contains("another Firekeep has taken over") && said.contains("--take-over"),
        "{said}"
    );
    // It does not come back by itself: a supervisor that starts it again changes nothing.
    let again = first.refused();
    assert_eq!(again.code, 11, "{}", again.stderr);

    scene.wait_protected(&mut other);
    std::thread::sleep(Duration::from_secs(2));
    let churn = churn.end();
    churn.assert_taken();
    let mut known = BTreeMap::new();
    for (did, rev, _) in &before {
        known.insert(did.clone(), rev.clone());
    }
    let (counts, gaps) = scene.settle(other, 1, &known);
    let after = scene.moments(&second);
    let gone: Vec<_> = before.difference(&after).take(5).collect();
    assert!(gone.is_empty(), "moments that the first had archived: {gone:?}");
    let text = format!(
        "{}; the first ended with 11 within {} ms of the second's start; {} moments of the first still there of {}; \
         verify: {gaps} gaps at the take-over, else sound: {}",
        churn.text(),
        took.as_millis(),
        before.len(),
        after.len(),
        counts["objects"]
    );
    report("taken_over", began, &text);
}
