//! Any moment of the past, at random, from the archive alone: what the PDS had then, record by record and blob by blob;
//! and again when retention has run twice, and when records, a blob and an account were erased.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use firekeep::types::Timestamp;
use serde_json::{Value, json};

use crate::support::alone::Alone;
use crate::support::firekeep::Firekeep;
use crate::support::history::History;
use crate::support::sandbox::{NOTES, Sandbox};
use crate::support::{Chance, report, sized};

const ACCOUNTS: u64 = 6;
/// A picture that its record outlives by less than this may be gone before anybody can fetch it.
const SHORT_LIVED: u64 = 5000;

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.expect("after 1970").as_millis()).expect("milliseconds")
}

/// What was counted over all moments.
#[derive(Default)]
struct Seen {
    records: u64,
    blobs: u64,
    fleeting: u64,
    between: u64,
    withheld: u64,
    /// How often each blob was given, by account.
    given: BTreeMap<(String, String), u64>,
}

/// What a person had erased.
#[derive(Default)]
struct Erased {
    /// Records, by account and path.
    records: BTreeSet<(String, String)>,
    blobs: BTreeSet<String>,
}

/// Each of these moments is what the PDS had then, but for what was erased.
fn check(alone: &Alone<'_>, history: &History, moments: &[(String, u64)], erased: &Erased) -> Seen {
    let mut seen = Seen::default();
    for (did, at) in moments {
        let versions = history.of(did);
        let place = versions.partition_point(|version| version.at <= *at) - 1;
        let time = Timestamp::from_micros(at * 1000).to_string();
        let restored = alone.restore_at(did, &time);
        assert_eq!(
            (&restored.rev, &restored.commit),
            (&versions[place].rev, &versions[place].commit),
            "{did} at {time}: another commit than the one that the PDS was at"
        );
        let then = history.records(did, place);
        let gone = |path: &String| erased.records.contains(&(did.clone(), path.clone()));
        let withheld: BTreeSet<String> = then.keys().filter(|path| gone(path)).cloned().collect();
        assert_eq!(restored.withheld, withheld, "{did} at {time}: what is withheld");
        assert!(
            restored.records == then,
            "{did} at {time}: other records than the PDS had"
        );
        for (path, referred) in &restored.blobs {
            for blob in referred {
                assert!(
                    !erased.blobs.contains(blob) || restored.missing.contains(blob),
                    "{blob} was erased"
                );
                if !restored.missing.contains(blob) {
                    seen.blobs += 1;
                    *seen.given.entry((did.clone(), blob.clone())).or_default() += 1;
                    continue;
                }
                if erased.blobs.contains(blob) {
                    continue;
                }
                let lived = history.lifetime(did, place, path);
                assert!(
                    lived.is_some_and(|lived| lived < SHORT_LIVED),
                    "{did} at {time}: blob {blob} of {path}, which lived for {lived:?} ms, is not there"
                );
                seen.fleeting += 1;
            }
        }
        seen.records += restored.records.len() as u64;
        seen.withheld += withheld.len() as u64;
        seen.between += u64::from(place + 1 < versions.len());
    }
    seen
}

fn command(firekeep: &Firekeep, arguments: &[&str]) -> String {
    let done = firekeep.ask(arguments);
    assert_eq!(done.code, 0, "{arguments:?}: {}{}", done.stdout, done.stderr);
    done.stdout
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, told three times")]
fn random_moments() {
    let began = Instant::now();
    let seed = Chance::seed();
    let mut chance = Chance(seed);
    let sandbox = Sandbox::up("pds,plc");
    sandbox.populate(ACCOUNTS, sized(100, 800), sized(10, 60));
    let dids = sandbox.dids();
    sandbox.note(&dids[0], "secret", "not to stay");
    let archive = format!("file://{}", sandbox.folder().join("archive").display());
    // Snapshots and deltas in between, so that moments are put together from all kinds of objects. Of them retention
    // keeps no more than the moments of an hour need.
    let mut firekeep =
        Firekeep::new(&sandbox, "data").args(&["--archive", &archive, "--snapshot-interval", "10s"]);
    for (key, value) in [
        ("LAST", "1"),
        ("HOURS", "0"),
        ("DAYS", "0"),
        ("WEEKS", "0"),
        ("MONTHS", "0"),
        ("WINDOW", "1h"),
        ("WITHDRAWN", "0s"),
    ] {
        firekeep = firekeep.env(&format!("FIREKEEP_KEEP__{key}"), value);
    }
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
    let aside = firekeep.data_dir.with_extension("aside");
    std::fs::rename(&firekeep.data_dir, &aside).expect("the archive alone is left");

    let (alone, history) = (
        Alone::new(&sandbox, &firekeep, &["--archive", &archive]),
        History::read(&sandbox),
    );
    let wanted = sized(12, 200);
    let moments: Vec<(String, u64)> = (0..wanted)
        .map(|number| {
            let micros = chance.below(Duration::from_millis(to - from)).as_micros();
            let at = from + u64::try_from(micros / 1000).expect("milliseconds");
            (dids[usize::try_from(number % ACCOUNTS).expect("few")].clone(), at)
        })
        .collect();
    let first = check(&alone, &history, &moments, &Erased::default());

    // Retention needs the mirror; what it leaves is looked at without.
    std::fs::rename(&aside, &firekeep.data_dir).expect("back");
    let data = firekeep.data_dir.to_str().expect("UTF-8").to_owned();
    let here = ["--data-dir", &data, "--archive", &archive, "--json"];
    let pruned: Vec<Value> = (0..2)
        .map(|_| {
            let text = command(&firekeep, &[&["prune"], &here[..]].concat());
            serde_json::from_str(&text).expect("JSON")
        })
        .collect();
    let removed = |run: usize, kind: &str| pruned[run]["pruned"]["removed"][kind][0].as_u64();
    assert!(
        removed(0, "segments") > Some(0) && removed(0, "snapshots") > Some(0),
        "{pruned:?}"
    );
    assert_eq!(pruned[1]["pruned"]["removed"], json!({}), "nothing more goes");
    alone.verify();
    let second = check(&alone, &history, &moments, &Erased::default());
    assert_eq!((first.records, first.blobs), (second.records, second.blobs));

    // Erased: a record, a blob that a record goes on referring to; and then retention once more.
    let secret = format!("at://{}/{NOTES}/secret", dids[0]);
    let most = second.given.iter().max_by_key(|(_, count)| **count);
    let ((pictured, picture), _) = most.expect("some records have pictures");
    for subject in [&[secret.as_str()][..], &[picture.as_str(), "--account", pictured]] {
        command(&firekeep, &[&["forget"], subject, &["--yes"], &here[..]].concat());
    }
    command(&firekeep, &[&["prune"], &here[..]].concat());
    let erased = Erased {
        records: BTreeSet::from([(dids[0].clone(), format!("{NOTES}/secret"))]),
        blobs: BTreeSet::from([picture.clone()]),
    };
    let third = check(&alone, &history, &moments, &erased);
    assert!(
        third.withheld > 0 && third.blobs < second.blobs,
        "something was erased"
    );
    assert_eq!(third.records, second.records, "what is withheld keeps its place");
    let text = format!(
        "seed {seed}, {}; {wanted} random moments of {} s, {} of them followed by more: each the PDS's commit and \
         {} records of then, proven to its root, with {} blobs ({} references to pictures that were \
         deleted at once); the same when retention had run twice ({} segments, {} snapshots, {} deltas removed), and but \
         for {} records and {} blobs when those were erased",
        churn.text(),
        (to - from) / 1000,
        first.between,
        first.records,
        first.blobs,
        first.fleeting,
        removed(0, "segments").unwrap_or(0),
        removed(0, "snapshots").unwrap_or(0),
        removed(0, "deltas").unwrap_or(0),
        third.withheld,
        second.blobs - third.blobs,
    );
    report("random_moments", began, &text);
}
