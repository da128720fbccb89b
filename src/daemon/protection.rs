//! Protected or not, and why: pure, for it must be right. Status, page and metrics all show what is said here.
//!
//! Doubt is never safe. *Protected* takes all of it: every host followed and heard, nothing older than a limit that is
//! not off this machine, the archive elsewhere and taking what it is given, every account snapshotted, no blob missing,
//! and archive and restore proven not long ago.

mod reason;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::mirror::applier::Totals;
use crate::types::Timestamp;

pub use reason::{Level, Reason};

/// An event that is read and not applied may be this old.
pub const LAG_MAX: Duration = Duration::from_secs(300);
/// A change may be this old and not off the machine.
pub const OFF_MACHINE_MAX: Duration = Duration::from_secs(120);
/// A host may be away this long.
pub const AWAY_MAX: Duration = Duration::from_secs(300);
/// Shorter than this a host that is away is only being connected to again.
pub const AWAY_SHORT: Duration = Duration::from_secs(30);
/// Beyond two intervals, a proof may be this late.
const PROOF_GRACE: Duration = Duration::from_secs(3600);

/// One host, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Its name.
    pub name: String,
    /// Since when its stream is not open; none: it is.
    pub away_for: Option<Duration>,
    /// How old what is read and not applied is.
    pub lag: Duration,
}

/// When something was last proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProofFacts {
    /// When it last went well.
    pub good: Option<Timestamp>,
    /// When it last did not.
    pub bad: Option<Timestamp>,
    /// How often it is to be done.
    pub interval: Duration,
}

/// All that the judgement depends on besides [`Totals`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Now.
    pub now: Timestamp,
    /// Every followed host.
    pub hosts: Vec<HostFacts>,
    /// Whether every one of them was listed to its end.
    pub listed: bool,
    /// Parts of Firekeep that ended or do nothing.
    pub stalled: Vec<String>,
    /// Whether the archive is a folder of this machine.
    pub archive_is_folder: bool,
    /// Whether the archive is open, and took what was last put there.
    pub archive_works: bool,
    /// How old the oldest change is that is not in the archive; zero without any.
    pub off_machine_age: Duration,
    /// Damaged things that the last reading of the archive found.
    pub scrub_findings: u64,
    /// Readings of the whole archive.
    pub scrub: ProofFacts,
    /// Trial restores.
    pub drill: ProofFacts,
}

/// One thing that keeps it from being protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub reason: Reason,
    /// For people: what it is, and what to do where there is something to do.
    pub text: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protection {
    /// In a word.
    pub level: Level,
    /// Why it is no better, the worst first. Empty when it is protected, and only then.
    pub findings: Vec<Finding>,
}

impl Protection {
    /// Judges. The same facts always give the same answer.
    #[must_use]
    pub fn judge(totals: &Totals, facts: &Facts) -> Self {
        let mut findings = Vec::new();
        let mut find = |when: bool, reason: Reason, text: &dyn Fn() -> String| {
            if when {
                let text = text();
                findings.push(Finding { reason, text });
            }
        };
        followed(facts, &mut find);
        archived(totals, facts, &mut find);
        held(totals, facts, &mut find);
        proven(facts, &mut find);
        findings.sort_by_key(|finding| finding.reason);
        let levels = findings.iter().map(|finding| finding.reason.level());
        Self {
            level: levels.max().unwrap_or(Level::Protected),
            findings,
        }
    }

    /// Whether hosts are heard, events applied, and the archive takes them.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        let stopped = |reason| {
            matches!(
                reason,
                Reason::TaskStalled
                    | Reason::HostAway
                    | Reason::Lag
                    | Reason::ArchiveAway
                    | Reason::OffMachineAge
                    | Reason::SpoolFull
            )
        };
        !self.findings.iter().any(|finding| stopped(finding.reason))
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let finding = |finding: &Finding| {
            serde_json::json!({
                "reason": finding.reason.name(),
                "level": finding.reason.level().name(),
                "text": finding.text,
            })
        };
        serde_json::json!({
            "level": self.level.name(),
            "headline": self.level.headline(),
            "sentence": self.sentence(),
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
        })
    }

    /// All of it in one line.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self.findings.first() {
            None => "every account and blob is in the archive, off this machine, and restores".to_owned(),
            Some(first) if self.findings.len() == 1 => first.text.clone(),
            Some(first) => format!("{} (and {} more)", first.text, self.findings.len() - 1),
        }
    }
}

type Find<'f> = dyn FnMut(bool, Reason, &dyn Fn() -> String) + 'f;

fn followed(facts: &Facts, find: &mut Find<'_>) {
    find(!facts.stalled.is_empty(), Reason::TaskStalled, &|| {
        let parts = facts.stalled.join(", ");
        format!("a part of Firekeep has stopped or stands still ({parts}): restart it, and report this")
    });
    for host in &facts.hosts {
        let away = host.away_for.unwrap_or_default();
        let name = &host.name;
        find(away > AWAY_MAX, Reason::HostAway, &|| {
            format!(
                "{name} has not been connected for {}: what it emits is not backed up",
                span(away)
            )
        });
        let connecting = host.away_for.is_some() && away > AWAY_SHORT && away <= AWAY_MAX;
        find(connecting, Reason::Connecting, &|| {
            format!("{name} is being connected to, for {} now", span(away))
        });
        find(host.lag > LAG_MAX, Reason::Lag, &|| {
            format!(
                "{name} is {} behind: its events are read and not applied",
                span(host.lag)
            )
        });
    }
    find(!facts.listed, Reason::NotListed, &|| {
        "not all accounts of all hosts are known yet".to_owned()
    });
}

fn archived(totals: &Totals, facts: &Facts, find: &mut Find<'_>) {
    find(!facts.archive_works, Reason::ArchiveAway, &|| {
        "the archive cannot be reached, or refuses; archiving goes on when it works".to_owned()
    });
    let age = facts.off_machine_age;
    find(age > OFF_MACHINE_MAX, Reason::OffMachineAge, &|| {
        format!("changes have been waiting for the archive for {}", span(age))
    });
    find(totals.unlogged > 0, Reason::SpoolFull, &|| {
        format!(
            "too much waits (spool_bytes_max): changes of {} are archived with their next snapshot only",
            many(totals.unlogged, "account")
        )
    });
    find(totals.without_snapshot > 0, Reason::NotSnapshotted, &|| {
        format!(
            "{} without a snapshot in the archive",
            many(totals.without_snapshot, "account")
        )
    });
    find(facts.archive_is_folder, Reason::SameMachine, &|| {
        "the archive is a folder of this machine: if this disk dies, so does the backup. Point `archive` at \
         s3://bucket/prefix"
            .to_owned()
    });
    let damaged = totals.damaged_cars + facts.scrub_findings;
    find(damaged > 0, Reason::Damaged, &|| {
        format!("{} damaged; `firekeep verify` names them", are(damaged, "thing"))
    });
}

fn held(totals: &Totals, facts: &Facts, find: &mut Find<'_>) {
    let count = |map: &BTreeMap<&'static str, u64>, name: &str| map.get(name).copied().unwrap_or(0);
    let wanted = totals.wanted_active;
    find(wanted > 0, Reason::Filling, &|| {
        format!("{} to be fetched", are(wanted, "account"))
    });
    find(totals.parked > 0, Reason::EventsParked, &|| {
        format!("{} waiting for a key or a fetch", are(totals.parked, "event"))
    });
    let quarantined = count(&totals.sync, "quarantined");
    find(quarantined > 0, Reason::Quarantined, &|| {
        format!(
            "{} not rebuild to what the host signed, and kept as it came; see `firekeep accounts`",
            if quarantined == 1 {
                "1 account does".to_owned()
            } else {
                format!("{quarantined} accounts do")
            }
        )
    });
    let diverged = count(&totals.sync, "diverged");
    find(diverged > 0, Reason::Diverged, &|| {
        format!(
            "of {} the host has less than is held here; see `firekeep alarms`",
            many(diverged, "account")
        )
    });
    let missing = count(&totals.blobs, "missing");
    find(missing > 0, Reason::BlobsMissing, &|| {
        format!(
            "{} missing: their host does not give them; they are tried again",
            are(missing, "blob")
        )
    });
    let (to_come, here) = (count(&totals.blobs, "wanted"), count(&totals.blobs, "held"));
    let open = to_come + here + totals.open_cars;
    find(open > 0, Reason::BlobsOpen, &|| {
        format!(
            "{} to be fetched, {here} on their way to the archive",
            are(to_come, "blob")
        )
    });
    let none = facts.listed && wanted == 0 && totals.with_head == 0 && quarantined == 0;
    find(none, Reason::NoAccounts, &|| {
        "no account is held: the hosts have none".to_owned()
    });
}

fn proven(facts: &Facts, find: &mut Find<'_>) {
    let late = |proof: &ProofFacts| {
        let most = proof.interval.saturating_mul(2) + PROOF_GRACE;
        proof.good.is_some_and(|at| facts.now.since(at) > most)
    };
    let drill = &facts.drill;
    let failed = drill
        .bad
        .is_some_and(|bad| drill.good.is_none_or(|good| bad > good));
    find(failed, Reason::DrillFailed, &|| {
        "the last trial restore failed; `firekeep alarms` says how".to_owned()
    });
    find(drill.good.is_none() && !failed, Reason::DrillPending, &|| {
        "no trial restore was done yet; `firekeep drill` does one".to_owned()
    });
    find(late(drill), Reason::DrillOld, &|| {
        "no trial restore went well for too long".to_owned()
    });
    let scrub = &facts.scrub;
    find(
        scrub.good.is_none() && facts.scrub_findings == 0,
        Reason::ScrubPending,
        &|| "the archive was not read to its end yet; the daemon does it by and by".to_owned(),
    );
    find(late(scrub), Reason::ScrubOld, &|| {
        "the archive was not found sound to its end for too long".to_owned()
    });
}

fn many(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn are(count: u64, what: &str) -> String {
    format!("{} {}", many(count, what), if count == 1 { "is" } else { "are" })
}

/// A span for people: the two largest units.
#[must_use]
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
#[path = "protection_tests.rs"]
mod tests;
