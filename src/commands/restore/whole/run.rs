#![allow(
    clippy::disallowed_methods,
    reason = "shell: files, the network, the terminal"
)]
//! The accounts of a whole PDS, a few at a time: each as `restore account` does it, with what came of it taken down.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use futures_util::{StreamExt as _, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::{Job, Whole, state};
use crate::daemon::DaemonError;
use crate::restore::account::{Restore, Watcher};
use crate::restore::book::{Book, Outcome};
use crate::restore::ledger::{self, Ledger, Step};
use crate::restore::passwords::Passwords;
use crate::restore::pds::Pds;
use crate::restore::plan::{Ending, Standing};
use crate::restore::whole::Treatment;

/// After so many accounts that failed one after the other, no further one is begun: something larger is wrong.
const FAILURES_MAX: u32 = 5;

impl Whole<'_> {
    /// Restores what is not done yet. True: it was given up in the middle.
    pub(super) async fn run(
        &self,
        jobs: &[Job],
        book: &mut Book,
        passwords: &Mutex<Passwords>,
        invite: Option<&str>,
    ) -> Result<bool, DaemonError> {
        let open: Vec<(&Job, Ending)> = jobs
            .iter()
            .filter_map(|job| match job.treatment {
                Treatment::Restore(ending) => Some((job, ending)),
                Treatment::Skip(_) => None,
            })
            .filter(|(job, ending)| {
                let again = |of: &Outcome| !of.done || (of.blobs_missing > 0 && *ending == Ending::Active);
                book.of(&job.did).is_none_or(again)
            })
            .collect();
        let bar = Bar::new(open.len() as u64);
        let mut outcomes = stream::iter(open)
            .map(|(job, ending)| self.restore(job, ending, passwords, invite))
            .buffer_unordered(usize::from(self.args.parallel));
        let mut failures = 0;
        while let Some(outcome) = outcomes.next().await {
            bar.tell(&outcome);
            failures = if outcome.state == "failed" {
                failures + 1
            } else {
                0
            };
            book.take(outcome)?;
            if failures >= FAILURES_MAX {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn restore(
        &self,
        job: &Job,
        ending: Ending,
        passwords: &Mutex<Passwords>,
        invite: Option<&str>,
    ) -> Outcome {
        match self.try_restore(job, ending, passwords, invite).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::failed(&job.did, "failed", error.text, self.directory.clock.now()),
        }
    }

    async fn try_restore(
        &self,
        job: &Job,
        ending: Ending,
        passwords: &Mutex<Passwords>,
        invite: Option<&str>,
    ) -> Result<Outcome, DaemonError> {
        let now = || self.directory.clock.now();
        let (args, placeholder_email) = self.account(job, ending).await?;
        let path = args.ledger.clone().unwrap_or_default();
        if let Some(outcome) = self.left(job, ending, &path).await? {
            return Ok(Outcome {
                placeholder_email,
                ..outcome
            });
        }
        let found = self.find(job, &args).await?;
        let plan = found.findings().plan();
        if !plan.refusals.is_empty() {
            let why = plan.refusals.join("; ");
            return Ok(Outcome::failed(&job.did, "refused", why, now()));
        }
        let password = passwords.lock().await.of(&job.did)?;
        let mut ledger = Ledger::open(&path, found.fresh(&plan.handle))?;
        let pds = Pds::new(found.directory.http.clone(), &self.to, &job.did, password);
        let restore = Restore {
            did: &job.did,
            pds: &pds,
            pds_did: &self.server.did,
            directory: &found.directory,
            backup: &found.backup,
            plan: &plan,
            rotation: found.rotation.as_deref(),
            signer: None,
            dropped: &args.drop_rotation_keys,
            email: args.email.as_deref(),
            invite,
            verification: None,
            admin: self.admin.as_ref(),
            temp_dir: &std::env::temp_dir(),
            watcher: &Quiet,
        };
        let report = restore.run(&mut ledger).await?;
        let facts = &found.backup.facts;
        let mut details = Vec::new();
        if found.short {
            details.extend(facts.notes.iter().cloned());
        }
        if !facts.withheld.is_empty() {
            details.push(format!(
                "{} records were erased, and stay so",
                facts.withheld.len()
            ));
        }
        for (cid, why) in report.missing.iter().take(20) {
            details.push(format!("blob {cid}: {why}"));
        }
        Ok(Outcome {
            done: true,
            state: state(ending).to_owned(),
            handle_before: job.handle.clone().filter(|handle| *handle != plan.handle),
            handle: Some(plan.handle.clone()),
            placeholder_email,
            incomplete: found.short || !facts.withheld.is_empty(),
            records: facts.records - facts.withheld.len() as u64,
            blobs: report.blobs.0,
            blobs_missing: report.missing.len() as u64,
            ..Outcome::failed(&job.did, "", details.join("; "), now())
        })
    }

    /// One that an earlier run left hidden, which cannot be logged in to any more.
    async fn left(&self, job: &Job, ending: Ending, path: &Path) -> Result<Option<Outcome>, DaemonError> {
        let state_of = ledger::read(path)?.filter(|state| state.pds_did == self.server.did);
        let Some(state_of) = state_of.filter(|_| ending != Ending::Active) else {
            return Ok(None);
        };
        let taken_down = ending == Ending::TakenDown && state_of.has(Step::Compared) && {
            let http = self.directory.http.clone();
            let pds = Pds::new(http, &self.to, &job.did, Zeroizing::default());
            pds.standing().await? == Standing::Other("takendown".to_owned())
        };
        if !taken_down && !state_of.has(Step::Left) {
            return Ok(None);
        }
        let handle = state_of.handle.clone();
        Ok(Some(Outcome {
            done: true,
            state: state(ending).to_owned(),
            handle_before: job.handle.clone().filter(|before| *before != handle),
            handle: Some(handle),
            blobs_missing: state_of.blobs_missing.len() as u64,
            ..Outcome::failed(&job.did, "", String::new(), self.directory.clock.now())
        }))
    }
}

/// The steps of one account among many are not told one by one.
struct Quiet;

impl Watcher for Quiet {
    fn say(&self, _: &str) {}

    fn blobs(&self, _: u64, _: u64) {}
}

/// How many accounts are done, and what came of each.
struct Bar(ProgressBar);

impl Bar {
    fn new(of: u64) -> Self {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(of), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} accounts, {eta} left") {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn tell(&self, outcome: &Outcome) {
        self.0.inc(1);
        let (at, of) = (self.0.position(), self.0.length().unwrap_or_default());
        let (did, state) = (&outcome.did, &outcome.state);
        let rest = match &outcome.handle {
            Some(handle) => format!(
                " as {handle}: {} records, {} blobs",
                outcome.records, outcome.blobs
            ),
            None => format!(": {}", outcome.detail),
        };
        self.0.suspend(|| {
            // Nobody may be there to read it.
            let _unread = writeln!(std::io::stderr(), "firekeep: {at}/{of} {did} {state}{rest}");
        });
    }
}
