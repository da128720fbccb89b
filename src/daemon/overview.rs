#![allow(clippy::disallowed_methods, reason = "shell: reads the mirror and the clock")]
//! What is measured from time to time and judged: where the backup stands, for metrics, `status` and the page alike.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use serde_json::{Value, json};

use super::control::DaemonControl;
use super::history::POINT;
use super::protection::{Facts, HostFacts, Level, ProofFacts, Protection};
use crate::metrics::labels::{
    Label as _, Outcome, ProtectionLabel, SeqStage, StoreOp, TaskLabel, UnprotectedLabel,
};
use crate::mirror::applier::Totals;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::OutboxEntry;
use crate::mirror::store::StoreError;
use crate::types::{HostName, Timestamp};

/// Entries of the log that are looked at for each host's oldest. Past them the oldest of all stands for it.
const OUTBOX_LOOK: usize = 2000;
/// Alarms on the page.
const ALARMS_SHOWN: usize = 50;

/// The oldest change of a host that is not in the archive.
#[derive(Debug, Clone, Copy)]
struct Undurable {
    received: Timestamp,
    seq: u64,
}

impl DaemonControl {
    /// Where the backup stands, from what is known now.
    #[must_use]
    pub fn protection(&self, totals: &Totals, now: Timestamp) -> Protection {
        let seconds = |value: f64| Duration::try_from_secs_f64(value.max(0.0)).unwrap_or(Duration::MAX);
        let host = |name: &HostName| HostFacts {
            name: name.to_string(),
            away_for: self.away_for(name, now),
            lag: seconds(self.metrics.host(name).replication_lag.get()),
        };
        let at = |gauge: &prometheus::Gauge| {
            let at = gauge.get();
            (at > 0.0).then(|| Timestamp::from_micros(0).plus(seconds(at)))
        };
        let facts = Facts {
            now,
            hosts: self
                .config
                .hosts
                .iter()
                .map(|configured| host(&configured.name))
                .collect(),
            listed: self.hosts_listed().unwrap_or(false),
            stalled: self.supervisor.look().into_iter().map(str::to_owned).collect(),
            archive_is_folder: self.config.archive.url.is_folder(),
            archive_works: self.archive_works(),
            off_machine_age: seconds(self.metrics.log_oldest.get()),
            scrub_findings: u64::try_from(self.metrics.scrub_findings.get()).unwrap_or(0),
            scrub: ProofFacts {
                good: at(&self.metrics.last_scrub),
                bad: None,
                interval: self.config.scrub_interval,
            },
            drill: ProofFacts {
                good: at(&self.metrics.last_drill),
                bad: at(&self.metrics.last_failed_drill),
                interval: self.config.drill_interval,
            },
        };
        Protection::judge(totals, &facts)
    }

    /// How long this process runs.
    pub(super) fn up(&self, now: Timestamp) -> Duration {
        now.since(self.history.lock().unwrap_or_else(PoisonError::into_inner).began)
    }

    /// Since when a host's stream is not open; none: it is.
    #[must_use]
    pub fn away_for(&self, host: &HostName, now: Timestamp) -> Option<Duration> {
        // The stream's own word is newer than the last look.
        if self.metrics.host(host).connected.get() == 1 {
            return None;
        }
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        Some(history.away_for(host, now).unwrap_or_default())
    }

    /// Measures ages, notes the day, and shows the judgement as metrics.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    pub(super) fn look_at_all(&self, now: Timestamp) -> Result<(), StoreError> {
        self.measure_undurable(now)?;
        self.measure_alarms()?;
        {
            let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
            for host in &self.config.hosts {
                let shown = self.metrics.host(&host.name);
                let is_open = shown.connected.get() == 1;
                history.note(&host.name, now, is_open, shown.replication_lag.get());
            }
        }
        let judged = self.protection(&self.applier.totals(), now);
        self.metrics
            .protected
            .set(i64::from(judged.level == Level::Protected));
        for label in ProtectionLabel::ALL {
            let stands = label.text() == judged.level.name();
            self.metrics.protection.of(*label).set(i64::from(stands));
        }
        for label in UnprotectedLabel::ALL {
            let mut stand = judged.findings.iter().map(|finding| finding.reason.name());
            let stands = stand.any(|reason| reason == label.text());
            self.metrics.unprotected.of(*label).set(i64::from(stands));
        }
        self.metrics
            .snapshot_interval
            .set(self.config.snapshot_interval.as_secs_f64());
        self.metrics.last_look.set(now.seconds_f64());
        Ok(())
    }

    /// How old the oldest change of each host is that is not in the archive, and up to which number it has all.
    fn measure_undurable(&self, now: Timestamp) -> Result<(), StoreError> {
        let view = self.store.view();
        let mirror = Mirror::new(&*view);
        let entries = mirror.outbox(0, OUTBOX_LOOK)?;
        let all_seen = entries.len() < OUTBOX_LOOK;
        let mut oldest: BTreeMap<HostName, Undurable> = BTreeMap::new();
        for (_, entry) in entries {
            let (host, known) = match &entry {
                OutboxEntry::Change {
                    host,
                    did_number,
                    rev,
                    ..
                } => {
                    if oldest.contains_key(host) {
                        continue;
                    }
                    let journalled = mirror.journal_entry(*did_number, *rev)?;
                    (host, journalled.map(|entry| (entry.received, entry.seq)))
                }
                OutboxEntry::Loaded { host, received, .. } | OutboxEntry::Account { host, received, .. } => {
                    (host, Some((*received, 0)))
                }
            };
            if let Some((received, seq)) = known {
                oldest.entry(host.clone()).or_insert(Undurable { received, seq });
            }
        }
        let oldest_of_all = oldest.values().map(|oldest| oldest.received).min();
        let age = |at: Option<Timestamp>| at.map_or(0.0, |at| now.since(at).as_secs_f64());
        self.metrics.log_oldest.set(age(oldest_of_all));
        for (name, row) in mirror.hosts()? {
            let shown = self.metrics.host(&name);
            let own = oldest.get(&name);
            let unknown = own.is_none() && !all_seen;
            let received = own.map(|own| own.received);
            shown
                .undurable_age
                .set(age(if unknown { oldest_of_all } else { received }));
            let durable = match own {
                None if unknown => continue,
                None => row.cursor.unwrap_or(0),
                // What was fetched has no number: what was durable before it still is.
                Some(own) if own.seq == 0 => continue,
                Some(own) => own.seq - 1,
            };
            let shown = shown.last_seq.of(SeqStage::Durable);
            shown.set(i64::try_from(durable).unwrap_or(i64::MAX));
        }
        Ok(())
    }

    fn measure_alarms(&self) -> Result<(), StoreError> {
        let mut open: BTreeMap<Option<HostName>, i64> = BTreeMap::new();
        for (id, row) in Mirror::new(&*self.store).alarms()? {
            if row.acknowledged.is_none() {
                *open.entry(id.host).or_default() += 1;
            }
        }
        let count = |host: &Option<HostName>| open.get(host).copied().unwrap_or(0);
        self.metrics.own_alarms_open.set(count(&None));
        for host in &self.config.hosts {
            self.metrics
                .host(&host.name)
                .alarms_open
                .set(count(&Some(host.name.clone())));
        }
        Ok(())
    }

    /// When things were last proven.
    pub(super) fn proof_json(&self) -> Value {
        let metrics = &self.metrics;
        let at = |gauge: &prometheus::Gauge| {
            let at = Duration::try_from_secs_f64(gauge.get().max(0.0)).unwrap_or_default();
            (!at.is_zero()).then(|| Timestamp::from_micros(0).plus(at).to_string())
        };
        json!({
            "last_snapshot": at(&metrics.last_snapshot),
            "last_drill": at(&metrics.last_drill),
            "drill_failing": metrics.last_failed_drill.get() > metrics.last_drill.get(),
            "last_scrub": at(&metrics.last_scrub),
            "damaged": metrics.scrub_findings.get(),
        })
    }

    /// What the archive's store was asked since the start, for a bill.
    #[expect(clippy::cast_precision_loss, reason = "shown as about so many")]
    pub(super) fn bill_json(&self, now: Timestamp) -> Value {
        const MONTH: f64 = 30.0 * 24.0 * 3600.0;
        let asked = |ops: &[StoreOp]| {
            let of = |op: &StoreOp| {
                let both = [Outcome::Ok, Outcome::Error]
                    .map(|result| self.metrics.store_requests.of(*op, result).get());
                both.iter().sum::<u64>()
            };
            ops.iter().map(of).sum::<u64>() as f64
        };
        let seconds = self.up(now).as_secs_f64().max(1.0);
        json!({
            "since_seconds": seconds,
            "writes_a_month": (asked(&[StoreOp::Put, StoreOp::List]) / seconds * MONTH).round(),
            "reads_a_month": (asked(&[StoreOp::Get, StoreOp::Head]) / seconds * MONTH).round(),
        })
    }

    /// The status, and what only the page shows.
    ///
    /// # Errors
    /// When the mirror cannot be read.
    pub fn overview(&self) -> Result<Value, StoreError> {
        let mut report = self.report()?;
        let now = self.clock.now();
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        for host in report["hosts"].as_array_mut().into_iter().flatten() {
            let name: Option<HostName> = host["host"].as_str().and_then(|name| name.parse().ok());
            let day = name.map_or_else(Vec::new, |name| history.day(&name));
            let points: Vec<_> = day
                .iter()
                .map(|point| json!([point.number, point.lag, point.away]))
                .collect();
            host["day"] = points.into();
            host["day_now"] = (now.millis() / u64::try_from(POINT.as_millis()).unwrap_or(u64::MAX)).into();
        }
        drop(history);
        let alarms = Mirror::new(&*self.store).alarms()?;
        let open = alarms.into_iter().filter(|(_, row)| row.acknowledged.is_none());
        let shown = open.take(ALARMS_SHOWN).map(|(id, row)| {
            json!({
                "host": id.host.map(|host| host.to_string()),
                "kind": id.kind.as_str(),
                "subject": id.subject,
                "since": row.since.to_string(),
                "message": row.message,
            })
        });
        report["alarm_list"] = shown.collect();
        Ok(report)
    }

    /// For tests on one machine: ends a task, or makes it hang, so that its being missed can be seen.
    pub(super) fn break_task(&self, query: &BTreeMap<String, String>) -> Result<Value, String> {
        let name = query.get("task").map(String::as_str).unwrap_or_default();
        let label = TaskLabel::named(name).ok_or_else(|| format!("there is no task {name:?}"))?;
        let ends = query.get("how").is_some_and(|how| how == "end");
        Ok(json!({ "broken": self.supervisor.break_tasks(label, ends) }))
    }
}
