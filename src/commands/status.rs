#![allow(clippy::disallowed_methods, reason = "shell: asks the daemon, and waits")]
//! `firekeep status`: what an admin asks of a backup, in the order in which he asks it, on one screen.

use std::io::IsTerminal as _;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use super::{SHORT, ask, number, print, size, text};
use crate::config::Config;
use crate::daemon::DaemonError;
use crate::daemon::protection::span;

/// Between two looks of `--watch`.
const WATCH: Duration = Duration::from_secs(2);

/// `firekeep status`
///
/// # Errors
/// When the daemon does not answer.
pub async fn status(config: &Config, watch: bool, json: bool) -> Result<u8, DaemonError> {
    loop {
        let asked = ask(config.admin_listen, Method::GET, "/control/status", SHORT).await;
        let shown = match asked {
            // One object a line, for programs that watch.
            Ok(report) if json && watch => format!("{report}\n"),
            Ok(report) if json => format!("{report:#}\n"),
            Ok(report) => status_text(&report),
            // Who watches wants to see it come back.
            Err(error) if watch && !json => format!("{error}\n"),
            Err(error) => return Err(error),
        };
        if watch && !json && std::io::stdout().is_terminal() {
            print("\x1b[H\x1b[2J")?;
        }
        print(&shown)?;
        if !watch {
            return Ok(0);
        }
        tokio::time::sleep(WATCH).await;
    }
}

fn seconds(value: &Value) -> String {
    span(Duration::try_from_secs_f64(value.as_f64().unwrap_or(0.0).max(0.0)).unwrap_or_default())
}

/// The whole of it.
fn status_text(report: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| out.push_str(&format!("  {name:<18} {value}\n"));
    let protection = &report["protection"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    line("protected?", text(&protection["headline"]).to_uppercase());
    for finding in list(&protection["findings"]) {
        line("", format!("- {}", text(&finding["text"])));
    }
    match number(&report["alarms"]) {
        0 => {}
        n => line(
            "",
            format!(
                "- {n} open ALARM{}: see `firekeep alarms`",
                if n == 1 { "" } else { "S" }
            ),
        ),
    }
    for host in list(&report["hosts"]) {
        let connected = match host["away_seconds"].is_null() {
            true => "connected".to_owned(),
            false => format!("NOT CONNECTED for {}", seconds(&host["away_seconds"])),
        };
        let listed = if host["listed"] == true {
            ""
        } else {
            ", not all accounts listed yet"
        };
        line(
            "",
            format!(
                "{}: {connected}, lag {}, seq {}{listed}",
                text(&host["host"]),
                seconds(&host["lag_seconds"]),
                number(&host["cursor"])
            ),
        );
    }
    off_the_machine(report, &mut line);
    missing(report, &mut line);
    line("", private_text(&report["private_state"]));
    let proof = &report["proof"];
    let at = |value: &Value| {
        value
            .as_str()
            .map_or("never".to_owned(), |at| at.chars().take(16).collect())
    };
    let failing = if proof["drill_failing"] == true {
        ", FAILED since"
    } else {
        ""
    };
    line(
        "could I restore?",
        format!(
            "last trial restore {}{failing}; archive last found sound {}",
            at(&proof["last_drill"]),
            at(&proof["last_scrub"])
        ),
    );
    let disk = &report["disk"];
    line(
        "my disk?",
        format!(
            "{} free, the mirror takes {}",
            size(number(&disk["free"])),
            size(number(&disk["mirror"]))
        ),
    );
    let bill = &report["bill"];
    let whole = |value: &Value| format!("{:.0}", value.as_f64().unwrap_or(0.0));
    line(
        "my bill?",
        match report["archive"]["on_this_machine"] == true {
            true => "none: the archive is a folder".to_owned(),
            false => format!(
                "{} of blobs; about {} writing and {} reading requests a month, as of the last {}",
                size(number(&report["blobs"]["stored_bytes"])),
                whole(&bill["writes_a_month"]),
                whole(&bill["reads_a_month"]),
                seconds(&bill["since_seconds"])
            ),
        },
    );
    out
}

/// What of a PDS no stream tells, and whether it is backed up beside it.
fn private_text(private: &Value) -> String {
    match (private["newest"].as_str(), private["shipped"] == true) {
        (Some(newest), _) => format!("the PDS's own secrets, encrypted, as of {newest}"),
        (None, true) => "NOTHING YET of the PDS's own secrets: does `firekeep state backup` run?".to_owned(),
        (None, false) => {
            "no e-mail addresses, passwords, signing keys and preferences: no stream tells them, and \
                          `firekeep state` is not set up"
                .to_owned()
        }
    }
}

fn off_the_machine(report: &Value, line: &mut impl FnMut(&str, String)) {
    let archive = &report["archive"];
    let open = if archive["open"] == true {
        "open"
    } else {
        "CANNOT BE REACHED"
    };
    let place = if archive["on_this_machine"] == true {
        "ON THIS MACHINE"
    } else {
        "off this machine"
    };
    line(
        "off the box?",
        format!("{} ({open}, {place})", text(&archive["url"])),
    );
    line(
        "",
        format!(
            "{} accounts archived, {} due; {} changes on their way, the oldest {} old",
            number(&archive["accounts_archived"]),
            number(&archive["accounts_due"]),
            number(&archive["changes_due"]),
            seconds(&report["off_machine_seconds"]),
        ),
    );
    match number(&archive["accounts_unlogged"]) {
        0 => {}
        n => line(
            "",
            format!(
                "TOO MUCH WAITS (spool_bytes_max): changes of {n} accounts are archived with their next snapshot only"
            ),
        ),
    }
    if archive["keeps_others_out"] == false {
        line(
            "",
            "this store does not keep a second Firekeep out; one is noticed afterwards: start no other"
                .to_owned(),
        );
    }
    if let Some(trouble) = archive["trouble"].as_str() {
        line("", trouble.to_owned());
    }
}

fn missing(report: &Value, line: &mut impl FnMut(&str, String)) {
    let (accounts, blobs) = (&report["accounts"], &report["blobs"]["by_state"]);
    let by_sync = &accounts["by_sync"];
    line(
        "anything missing?",
        format!(
            "accounts: {} held, {} live, {} to be fetched; {} records, {}",
            number(&accounts["held"]),
            number(&by_sync["live"]),
            number(&by_sync["wanted"]),
            number(&accounts["records"]),
            size(number(&accounts["record_bytes"])),
        ),
    );
    match number(&by_sync["quarantined"]) {
        0 => {}
        n => line(
            "",
            format!(
                "{n} QUARANTINED: they do not rebuild, and are kept as they came; see `firekeep accounts`"
            ),
        ),
    }
    line(
        "",
        format!(
            "blobs: {} archived, {} held here only, {} to come, {} missing; {}",
            number(&blobs["archived"]),
            number(&blobs["held"]),
            number(&blobs["wanted"]),
            number(&blobs["missing"]),
            size(number(&report["blobs"]["stored_bytes"])),
        ),
    );
    match number(&report["blobs"]["withheld"]) {
        0 => {}
        n => line(
            "",
            format!("{n} of them are not served: their host gives them no longer"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn six_questions_are_answered_in_order_on_one_screen() {
        let report = json!({
            "protection": {
                "level": "at_risk", "headline": "At risk",
                "findings": [{ "reason": "host_away", "text": "pds.test has not been connected for 6 min" }],
            },
            "alarms": 2,
            "hosts": [{ "host": "pds.test", "away_seconds": 360.0, "listed": true, "lag_seconds": 0.0, "cursor": 7 }],
            "archive": { "url": "s3://b/p", "open": true, "on_this_machine": false, "accounts_archived": 3 },
            "off_machine_seconds": 4.0,
            "accounts": { "held": 3, "by_sync": { "live": 3 }, "records": 9 },
            "blobs": { "by_state": { "missing": 1 }, "stored_bytes": 2048 },
            "proof": { "last_drill": "2026-11-24T03:00:00Z", "drill_failing": true },
            "disk": { "free": 1 << 30, "mirror": 1 << 20 },
            "bill": { "writes_a_month": 1200.0, "reads_a_month": 30.0, "since_seconds": 3600.0 },
        });
        let text = status_text(&report);
        let mut rest = text.as_str();
        for part in [
            "protected?         AT RISK",
            "not been connected for 6 min",
            "2 open ALARMS",
            "NOT CONNECTED for 6 min",
            "off the box?",
            "s3://b/p (open, off this machine)",
            "the oldest 4 s old",
            "anything missing?",
            "1 missing",
            "could I restore?",
            "2026-11-24T03:00, FAILED since",
            "never",
            "my disk?",
            "1.0 GiB free",
            "my bill?",
            "about 1200 writing and 30 reading requests a month",
        ] {
            let at = rest
                .find(part)
                .unwrap_or_else(|| panic!("{part} in its place: {text}"));
            rest = &rest[at + part.len()..];
        }
        assert!(
            text.lines().count() <= 24 && text.lines().all(|line| line.len() <= 140),
            "{text}"
        );
    }
}
