#![allow(clippy::disallowed_methods, reason = "shell: the network and the clock")]
//! Telling people who do not look: alarms to a webhook, a heartbeat to whoever misses it, and alarms about silence.
//!
//! A heartbeat goes out only while hosts are heard, events applied and the archive takes them; a service that misses it
//! tells the admin, also when this machine is gone. An alarm is told until the webhook takes it; the ones that are
//! open at a start are told once more.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::control::DaemonControl;
use super::protection::{Protection, Reason, span};
use super::supervise::Pulse;
use crate::config::{Webhook, WebhookFormat};
use crate::http::client::{Sent, Upstream};
use crate::http::request::Limits;
use crate::metrics::labels::Outcome;
use crate::mirror::input::Input;
use crate::mirror::keyspace::{AlarmId, AlarmKind};
use crate::mirror::reader::Mirror;
use crate::mirror::rows::AlarmRow;
use crate::mirror::store::StoreError;
use crate::types::{HostName, Timestamp};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// A host, or the archive, that gives nothing for this long raises an alarm.
pub const SILENT_AFTER: Duration = Duration::from_secs(15 * 60);
/// Alarms told at once; the rest follows.
const TOLD_AT_ONCE_MAX: usize = 10;
/// Alarms that are remembered as told.
const TOLD_MAX: usize = 20_000;
/// Longest wait after a webhook took nothing.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// For a write that changes nothing.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Characters of a message that are sent.
const MESSAGE_CHARS_MAX: usize = 1500;

/// What telling needs.
pub struct Notify {
    /// What the daemon knows.
    pub control: Arc<DaemonControl>,
    /// The way out.
    pub upstream: Upstream,
    /// Shows whether the applier answers.
    pub applier_pulse: Arc<Pulse>,
}

/// What stands between two looks.
#[derive(Default)]
struct Seen {
    /// What was told: alarm and since when.
    told: BTreeSet<(AlarmId, Timestamp)>,
    order: VecDeque<(AlarmId, Timestamp)>,
    failures: u32,
    next_try: Option<Timestamp>,
    heartbeat: Option<Timestamp>,
    heartbeat_failing: bool,
    /// Silences that were raised and still last.
    silent: BTreeSet<(Option<HostName>, &'static str)>,
    /// Since when the archive gives nothing.
    archive_silent: Option<Timestamp>,
}

impl Notify {
    /// Tells for as long as it is polled.
    ///
    /// # Errors
    /// When the mirror fails.
    pub async fn run(self) -> Result<(), StoreError> {
        let mut seen = Seen::default();
        loop {
            self.probe().await;
            let now = self.control.clock.now();
            let judged = self.control.protection(&self.control.applier.totals(), now);
            self.silence(&judged, now, &mut seen).await;
            self.beat(&judged, now, &mut seen).await;
            self.tell(now, &mut seen).await?;
            sleep(LOOK).await;
        }
    }

    /// The applier answers a question that changes nothing: the acknowledgement of an alarm that is not there.
    async fn probe(&self) {
        let nobody = Input::Acknowledge {
            alarm: AlarmId {
                host: None,
                kind: AlarmKind::TaskStalled,
                subject: "probe".to_owned(),
            },
            by: String::new(),
        };
        if let Ok(Ok(())) = timeout(PROBE_TIMEOUT, self.control.applier.apply(nobody)).await {
            self.control.supervisor.found_well(&self.applier_pulse);
        }
    }

    /// Raises an alarm for what says nothing any more, once for each silence.
    async fn silence(&self, judged: &Protection, now: Timestamp, seen: &mut Seen) {
        let mut lasts = BTreeSet::new();
        for host in &self.control.config.hosts {
            let away = self.control.away_for(&host.name, now).unwrap_or_default();
            if away > SILENT_AFTER {
                let kind = AlarmKind::HostSilent;
                let key = (Some(host.name.clone()), kind.as_str());
                if !seen.silent.contains(&key) {
                    let message = format!(
                        "{} has not been connected for {}: what it emits is not backed up, and a PDS keeps its events for \
                         a day or so; see that it runs and can be reached from here",
                        host.name,
                        span(away)
                    );
                    self.raise(Some(&host.name), kind, message).await;
                }
                lasts.insert(key);
            }
        }
        let stands = |reason: Reason| judged.findings.iter().find(|finding| finding.reason == reason);
        let archive = stands(Reason::ArchiveAway).or_else(|| stands(Reason::OffMachineAge));
        let since = archive.map(|_| *seen.archive_silent.get_or_insert(now));
        if archive.is_none() {
            seen.archive_silent = None;
        }
        let own = [
            (
                AlarmKind::ArchiveSilent,
                archive.filter(|_| since.is_some_and(|since| now.since(since) > SILENT_AFTER)),
            ),
            (AlarmKind::TaskStalled, stands(Reason::TaskStalled)),
        ];
        for (kind, finding) in own {
            let Some(finding) = finding else { continue };
            let key = (None, kind.as_str());
            if !seen.silent.contains(&key) {
                self.raise(None, kind, finding.text.clone()).await;
            }
            lasts.insert(key);
        }
        seen.silent = lasts;
    }

    async fn raise(&self, host: Option<&HostName>, kind: AlarmKind, message: String) {
        tracing::error!(alarm = kind.as_str(), "{message}");
        let input = match host {
            Some(host) => Input::HostAlarm {
                host: host.clone(),
                kind,
                message,
            },
            None => Input::OwnAlarm { kind, message },
        };
        // An applier that does not take it is itself what is wrong, and shows as that.
        if timeout(PROBE_TIMEOUT, self.control.applier.send(input))
            .await
            .is_err()
        {
            tracing::error!("the alarm could not be kept: the mirror takes nothing");
        }
    }

    async fn beat(&self, judged: &Protection, now: Timestamp, seen: &mut Seen) {
        let Some(url) = &self.control.config.heartbeat_url else {
            return;
        };
        let due = seen.heartbeat.is_none_or(|last| now.since(last) >= HEARTBEAT);
        if !due || !judged.is_moving() {
            return;
        }
        let (asked, limits) = (Sent::bare(hyper::Method::GET), Limits::document(ANSWER_BYTES_MAX));
        match self.upstream.send(url, asked, &limits).await {
            Ok(_) => {
                seen.heartbeat = Some(now);
                seen.heartbeat_failing = false;
                self.control.metrics.heartbeats.of(Outcome::Ok).inc();
            }
            Err(_) => {
                self.control.metrics.heartbeats.of(Outcome::Error).inc();
                if !std::mem::replace(&mut seen.heartbeat_failing, true) {
                    // The error names the URL, which is not for logs.
                    tracing::warn!("notify.heartbeat_url takes no heartbeat; it is tried again");
                }
            }
        }
    }

    async fn tell(&self, now: Timestamp, seen: &mut Seen) -> Result<(), StoreError> {
        let Some(webhook) = &self.control.config.webhook else {
            return Ok(());
        };
        if seen.next_try.is_some_and(|at| now < at) {
            return Ok(());
        }
        let alarms = Mirror::new(&*self.control.store).alarms()?;
        let open = alarms.into_iter().filter(|(_, row)| row.acknowledged.is_none());
        let fresh: Vec<_> = open
            .filter(|(id, row)| !seen.told.contains(&(id.clone(), row.since)))
            .collect();
        for (id, row) in fresh.into_iter().take(TOLD_AT_ONCE_MAX) {
            let (url, body) = message(webhook, &id, &row);
            let sent = self
                .upstream
                .send(&url, Sent::json(&body), &Limits::document(ANSWER_BYTES_MAX))
                .await;
            if sent.is_err() {
                self.control.metrics.webhooks.of(Outcome::Error).inc();
                if seen.failures == 0 {
                    tracing::warn!("notify.webhook_url takes no alarm; it is tried again until it does");
                }
                seen.failures = seen.failures.saturating_add(1);
                let wait = LOOK.saturating_mul(1 << seen.failures.min(10)).min(WAIT_MAX);
                seen.next_try = Some(now.plus(wait));
                return Ok(());
            }
            self.control.metrics.webhooks.of(Outcome::Ok).inc();
            seen.failures = 0;
            let told = (id, row.since);
            seen.order.push_back(told.clone());
            seen.told.insert(told);
            while seen.order.len() > TOLD_MAX {
                if let Some(old) = seen.order.pop_front() {
                    seen.told.remove(&old);
                }
            }
        }
        Ok(())
    }
}

/// Where an alarm goes, and as what.
fn message(webhook: &Webhook, id: &AlarmId, row: &AlarmRow) -> (String, Value) {
    let text: String = row.message.chars().take(MESSAGE_CHARS_MAX).collect();
    let host = id.host.as_ref().map(HostName::as_str);
    let title = format!(
        "Firekeep: {}{}",
        id.kind.as_str(),
        host.map_or(String::new(), |host| format!(" at {host}"))
    );
    match webhook.format {
        WebhookFormat::Json => (
            webhook.url.clone(),
            json!({
                "type": "firekeep.alarm",
                "version": env!("CARGO_PKG_VERSION"),
                "kind": id.kind.as_str(),
                "host": host,
                "subject": id.subject,
                "since": row.since.to_string(),
                "message": text,
            }),
        ),
        // https://docs.ntfy.sh/publish/#publish-as-json: to the root, with the topic in the body.
        WebhookFormat::Ntfy => {
            let (root, topic) = webhook.url.rsplit_once('/').unwrap_or((&webhook.url, ""));
            let body = json!({
                "topic": topic,
                "title": title,
                "message": text,
                "priority": 4,
                "tags": ["rotating_light"],
            });
            (format!("{root}/"), body)
        }
        // https://discord.com/developers/docs/resources/webhook: nobody is mentioned, whatever the text says.
        WebhookFormat::Discord => (
            webhook.url.clone(),
            json!({ "content": format!("**{title}**\n{text}"), "allowed_mentions": { "parse": [] } }),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_gets_what_it_reads() {
        let id = AlarmId {
            host: Some("pds.test".parse().expect("valid")),
            kind: AlarmKind::Rollback,
            subject: "did:plc:a".to_owned(),
        };
        let row = AlarmRow {
            since: Timestamp::from_micros(1_900_000_000_000_000),
            message: format!("@everyone {}", "x".repeat(5000)),
            pinned: Vec::new(),
            acknowledged: None,
        };
        let told = |format, url: &str| {
            message(
                &Webhook {
                    url: url.to_owned(),
                    format,
                },
                &id,
                &row,
            )
        };
        let (url, json) = told(WebhookFormat::Json, "https://hook.test/a");
        assert_eq!(
            (url.as_str(), &json["kind"], &json["host"]),
            ("https://hook.test/a", &json!("rollback"), &json!("pds.test"))
        );
        let (url, ntfy) = told(WebhookFormat::Ntfy, "https://ntfy.sh/my-topic");
        assert_eq!(
            (url.as_str(), &ntfy["topic"]),
            ("https://ntfy.sh/", &json!("my-topic"))
        );
        assert_eq!(ntfy["title"], "Firekeep: rollback at pds.test");
        let (_, discord) = told(
            WebhookFormat::Discord,
            "https://discord.com/api/webhooks/1/secret",
        );
        assert_eq!(discord["allowed_mentions"]["parse"], json!([]));
        let length = discord["content"].as_str().expect("a text").chars().count();
        assert!(length <= 2000, "{length}: Discord takes no more");
    }
}
