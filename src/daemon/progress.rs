#![allow(clippy::disallowed_methods, reason = "shell: a terminal and the clock")]
//! What a person sees while `run` fills the mirror for the first time, and the summary at the end of it.
//!
//! Bars stand on a terminal's stderr; elsewhere a line with counts is logged from time to time. The summary goes
//! to stdout once.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::control::DaemonControl;
use super::protection::Protection;
use crate::mirror::applier::Totals;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Between two lines of counts where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// The summary is given after this long even if something is still missing; it says what.
const SUMMARY_AT_LATEST: Duration = Duration::from_secs(60);

/// Shows progress until the mirror is filled for the first time, then prints the summary.
pub async fn show(control: Arc<DaemonControl>, cancel: CancellationToken) {
    let bar = std::io::stderr().is_terminal().then(new_bar);
    let began = control.clock.now();
    let mut next_line = began.plus(LINE_INTERVAL);
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            () = sleep(LOOK) => {}
        }
        let totals = control.applier.totals();
        let now = control.clock.now();
        match &bar {
            Some(bar) => draw(bar, &totals),
            None if now >= next_line => {
                next_line = now.plus(LINE_INTERVAL);
                let known: u64 = totals.sync.values().sum();
                let wanted = count(&totals, "wanted");
                tracing::info!(
                    accounts = totals.with_head,
                    of = known,
                    blobs_wanted = wanted,
                    "filling the mirror"
                );
            }
            None => {}
        }
        let patience = now.since(began) > SUMMARY_AT_LATEST;
        if patience || control.is_filled() && settled(&control, &totals) {
            if let Some(bar) = &bar {
                bar.finish_and_clear();
            }
            summarise(&control);
            return;
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

/// Whether the first snapshots are done too, where there is an archive to take them.
fn settled(control: &DaemonControl, totals: &Totals) -> bool {
    control.keeper.get().is_none() || (totals.archived == totals.with_head && count(totals, "held") == 0)
}

fn count(totals: &Totals, blobs: &str) -> u64 {
    totals.blobs.get(blobs).copied().unwrap_or(0)
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} accounts  {msg}") {
        bar.set_style(style);
    }
    bar
}

fn draw(bar: &ProgressBar, totals: &Totals) {
    bar.set_length(totals.sync.values().sum());
    bar.set_position(totals.with_head);
    let stored = count(totals, "held") + count(totals, "archived");
    bar.set_message(format!(
        "{} blobs, {} to come, {} archived",
        stored,
        count(totals, "wanted"),
        totals.archived
    ));
}

/// Prints what is followed, what is held, whether it is off this machine, and where to look.
fn summarise(control: &DaemonControl) {
    let totals = control.applier.totals();
    let judged = control.protection(&totals, control.clock.now());
    let text = summary(control, &totals, &judged);
    let mut out = std::io::stdout().lock();
    // A closed stdout must not stop a backup.
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        tracing::debug!("stdout is closed");
    }
}

fn summary(control: &DaemonControl, totals: &Totals, judged: &Protection) -> String {
    let mut text = String::from("\n");
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<10} {value}\n"));
    for (name, url) in control.follower.hosts.all() {
        let connected = control.metrics.host(&name).connected.get() == 1;
        let state = if connected {
            "connected"
        } else {
            "not connected; tried again until it answers"
        };
        line("following", format!("{url} ({state})"));
    }
    let active = totals.accounts.get("active").copied().unwrap_or(0);
    let known: u64 = totals.sync.values().sum();
    line(
        "accounts",
        format!(
            "{} held of {known} known ({active} active), {} records",
            totals.with_head, totals.records
        ),
    );
    let stored = count(totals, "held") + count(totals, "archived");
    let (wanted, missing) = (count(totals, "wanted"), count(totals, "missing"));
    line(
        "blobs",
        format!("{stored} held, {wanted} to come, {missing} missing"),
    );
    line(
        "archive",
        format!(
            "{}, {} of {} accounts are in it",
            control.config.archive.url, totals.archived, totals.with_head
        ),
    );
    line("state", judged.level.headline().to_uppercase());
    for finding in &judged.findings {
        line("", format!("- {}", finding.text));
    }
    line(
        "look at",
        format!("http://{}/  and  firekeep status", control.listen),
    );
    text.push('\n');
    text
}
