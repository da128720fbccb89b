#![allow(clippy::disallowed_methods, reason = "shell: a terminal and the clock")]
//! What a person sees while a mirror is filled from its archive: a bar on a terminal, a line of counts elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::clock::Clock;
use crate::types::Timestamp;

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The bar, or the lines.
pub(super) struct Shown {
    bar: Option<ProgressBar>,
    clock: Clock,
    next_line: Timestamp,
}

impl Shown {
    pub(super) fn new(clock: &Clock) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            bar,
            clock: clock.clone(),
            next_line: clock.now().plus(LINE_INTERVAL),
        }
    }

    /// Segments of the log that are read.
    pub(super) fn segments(&mut self, read: u64, of: u64) {
        self.show(read, of, "segments of the archive's log");
    }

    /// Accounts that are in the mirror.
    pub(super) fn accounts(&mut self, done: u64, of: u64, records: u64) {
        self.show(done, of, &format!("accounts from the archive, {records} records"));
    }

    fn show(&mut self, done: u64, of: u64, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(of);
                bar.set_position(done);
                bar.set_message(what.to_owned());
            }
            None if self.clock.now() >= self.next_line => {
                self.next_line = self.clock.now().plus(LINE_INTERVAL);
                tracing::info!("filling the mirror from its archive: {done} of {of} {what}");
            }
            None => {}
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
