#![allow(clippy::disallowed_methods, reason = "shell: files, the terminal")]
//! What a restore of a whole PDS will do, and what came of it: for people, for programs, and as a list of what is left
//! for people to do.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Job, Shown, Skipped, Treatment, Whole, failed, state};
use crate::commands::print;
use crate::daemon::{DaemonError, exit};
use crate::restore::book::{Book, Outcome};
use crate::restore::plan::Ending;
use crate::types::Did;

/// Accounts that a text names of each kind.
const NAMED_MAX: usize = 50;
/// The list of what is left to do.
const TODO: &str = "todo.txt";

/// What will be done, in short.
pub(super) fn intent(whole: &Whole<'_>, jobs: &[Job]) -> String {
    let mut text = format!(
        "{} (seen up to seq {})\n  backup    {}\n  new PDS   {} ({})\n",
        whole.host.host, whole.host.highest_seq, whole.place, whole.to, whole.server.did
    );
    for (ending, what) in [
        (Ending::Active, "restored and activated"),
        (Ending::Deactivated, "restored and left deactivated, as they were"),
        (Ending::TakenDown, "restored and taken down, as they were"),
    ] {
        let of = jobs
            .iter()
            .filter(|job| job.treatment == Treatment::Restore(ending));
        let count = of.count();
        if count > 0 {
            let _written = writeln!(text, "  - {count} accounts are {what}");
        }
    }
    for (why, dids) in skipped(jobs) {
        let _written = writeln!(text, "  - {} left out: {why}", dids.len());
    }
    if whole.old_answers {
        let _written = writeln!(
            text,
            "  note: the old PDS still answers at {}: what its users do there from now on is not restored",
            whole.old()
        );
    }
    for fault in whole.host.faults.iter().take(NAMED_MAX) {
        let _written = writeln!(text, "  note: {fault}");
    }
    text
}

/// Who is left out, by the reason.
fn skipped(jobs: &[Job]) -> BTreeMap<String, Vec<&Did>> {
    let mut all: BTreeMap<String, Vec<&Did>> = BTreeMap::new();
    for job in jobs {
        if let Treatment::Skip(why) = &job.treatment {
            all.entry(why.to_string()).or_default().push(&job.did);
        }
    }
    all
}

fn skipped_json(jobs: &[Job]) -> Value {
    let one = |job: &Job| match &job.treatment {
        Treatment::Skip(why) => {
            Some(json!({ "did": job.did.as_str(), "reason": why.label(), "detail": why.to_string() }))
        }
        Treatment::Restore(_) => None,
    };
    jobs.iter().filter_map(one).collect()
}

fn lacks(jobs: &[Job]) -> bool {
    let lack = |job: &Job| matches!(&job.treatment, Treatment::Skip(why) if why.is_a_lack());
    jobs.iter().any(lack)
}

/// Prints the plan of a dry run.
pub(super) fn plan(
    whole: &Whole<'_>,
    jobs: &[Job],
    shown: &[Result<Shown, (Did, String)>],
    as_json: bool,
) -> Result<u8, DaemonError> {
    let fine = || shown.iter().filter_map(|shown| shown.as_ref().ok());
    let sum = |of: fn(&Shown) -> u64| fine().map(of).sum::<u64>();
    let bad = shown
        .iter()
        .any(|shown| shown.as_ref().map_or(true, |shown| !shown.refusals.is_empty()));
    let missing = sum(|shown| shown.missing);
    let code = match (bad, missing > 0 || lacks(jobs)) {
        (true, _) => exit::FAILED,
        (false, true) => exit::INCOMPLETE,
        (false, false) => 0,
    };
    if as_json {
        let accounts = shown.iter().map(|shown| match shown {
            Ok(shown) => json!({
                "did": shown.did.as_str(),
                "handle": shown.handle,
                "ending": state(shown.ending),
                "records": shown.records,
                "blobs": shown.blobs,
                "blobs_missing": shown.missing,
                "bytes": shown.car_bytes + shown.blob_bytes,
                "notes": shown.notes,
                "refusals": shown.refusals,
            }),
            Err((did, error)) => json!({ "did": did.as_str(), "refusals": [error] }),
        });
        let value = json!({
            "host": whole.host.host.as_str(),
            "highest_seq": whole.host.highest_seq,
            "pds": whole.to,
            "old_pds_answers": whole.old_answers,
            "totals": {
                "accounts": shown.len(),
                "records": sum(|shown| shown.records),
                "blobs": sum(|shown| shown.blobs),
                "blobs_missing": missing,
                "bytes": sum(|shown| shown.car_bytes + shown.blob_bytes),
            },
            "accounts": accounts.collect::<Vec<_>>(),
            "skipped": skipped_json(jobs),
        });
        print(&format!("{value:#}\n"))?;
        return Ok(code);
    }
    let mut text = intent(whole, jobs);
    let _written = writeln!(
        text,
        "  {} records ({} bytes), {} blobs ({} bytes), {missing} blobs missing; every backup was proven",
        sum(|shown| shown.records),
        sum(|shown| shown.car_bytes),
        sum(|shown| shown.blobs),
        sum(|shown| shown.blob_bytes)
    );
    for shown in shown {
        match shown {
            Err((did, error)) => {
                let _written = writeln!(text, "{did}\n  cannot: {error}");
            }
            Ok(shown) => {
                let _written = writeln!(
                    text,
                    "{} as {}, {}: {} records, {} blobs ({} missing)",
                    shown.did,
                    shown.handle,
                    state(shown.ending).replace('_', " "),
                    shown.records,
                    shown.blobs,
                    shown.missing
                );
                for note in &shown.notes {
                    let _written = writeln!(text, "  note: {note}");
                }
                for refusal in &shown.refusals {
                    let _written = writeln!(text, "  cannot: {refusal}");
                }
            }
        }
    }
    print(&text)?;
    Ok(code)
}

/// What people have to do now.
fn todo(whole: &Whole<'_>, jobs: &[Job], outcomes: &[&Outcome]) -> Vec<String> {
    let mut todo = Vec::new();
    let done = || outcomes.iter().filter(|outcome| outcome.done);
    if done().next().is_some() {
        todo.push(format!(
            "every user: log in at {} with the temporary password in {}, change it, and make app passwords, \
             preferences and moderation settings anew: they are private, and no part of what a PDS streams",
            whole.to,
            whole.args.passwords_file.display()
        ));
        todo.push(
            "the admin: send each user that password on a safe way, then delete the file; ask the relay to crawl the \
             new PDS (com.atproto.sync.requestCrawl) if it has not yet"
                .to_owned(),
        );
    }
    for outcome in done() {
        let handle = outcome.handle.as_deref().unwrap_or_default();
        if outcome.placeholder_email {
            todo.push(format!(
                "{} ({handle}): its e-mail address is not known, so it cannot reset its password; set it \
                 (com.atproto.admin.updateAccountEmail)",
                outcome.did
            ));
        }
        if let Some(before) = &outcome.handle_before {
            todo.push(format!(
                "{} was {before} and is {handle} now; links to the old handle lead nowhere",
                outcome.did
            ));
        }
        if outcome.blobs_missing > 0 {
            todo.push(format!(
                "{} ({handle}): {} blobs are missing and have to be uploaded anew: {}",
                outcome.did, outcome.blobs_missing, outcome.detail
            ));
        } else if outcome.incomplete {
            todo.push(format!("{} ({handle}): {}", outcome.did, outcome.detail));
        }
    }
    for outcome in outcomes.iter().filter(|outcome| !outcome.done) {
        todo.push(format!("{} is not restored: {}", outcome.did, outcome.detail));
    }
    for job in jobs {
        match &job.treatment {
            Treatment::Skip(Skipped::OwnerFirst) => todo.push(format!(
                "the owner of {}: make a key (`firekeep key generate -o web.key`), publish its public half as #atproto \
                 in the DID document, and run `firekeep restore account {} --to {} --signing-key-file web.key …` with \
                 the admin; it then says what else to publish",
                job.did, job.did, whole.to
            )),
            Treatment::Skip(why) if why.is_a_lack() => todo.push(format!("{}: {why}", job.did)),
            _ => {}
        }
    }
    todo
}

/// Prints what came of it.
pub(super) fn done(
    whole: &Whole<'_>,
    jobs: &[Job],
    book: &Book,
    stopped: bool,
    as_json: bool,
) -> Result<u8, DaemonError> {
    let tried = jobs
        .iter()
        .filter(|job| matches!(job.treatment, Treatment::Restore(_)));
    let (mut outcomes, mut untried) = (Vec::new(), 0u64);
    for job in tried {
        match book.of(&job.did) {
            Some(outcome) => outcomes.push(outcome),
            None => untried += 1,
        }
    }
    let count = |state: &str| outcomes.iter().filter(|outcome| outcome.state == state).count();
    let undone = outcomes.iter().filter(|outcome| !outcome.done).count() as u64 + untried;
    let short = outcomes
        .iter()
        .any(|outcome| outcome.incomplete || outcome.blobs_missing > 0);
    let todo = todo(whole, jobs, &outcomes);
    let path = whole.folder.join(TODO);
    let lines: String = todo.iter().map(|line| format!("- {line}\n")).collect();
    std::fs::write(&path, lines)
        .map_err(|error| failed(format!("cannot write {}: {error}", path.display())))?;
    let code = match (undone > 0, short || lacks(jobs)) {
        (true, _) => exit::FAILED,
        (false, true) => exit::INCOMPLETE,
        (false, false) => 0,
    };
    if as_json {
        let value = json!({
            "host": whole.host.host.as_str(),
            "pds": whole.to,
            "counts": {
                "active": count("active"),
                "deactivated": count("deactivated"),
                "taken_down": count("taken_down"),
                "refused": count("refused"),
                "failed": count("failed"),
                "untried": untried,
                "skipped": jobs.len() as u64 - outcomes.len() as u64 - untried,
            },
            "accounts": outcomes,
            "skipped": skipped_json(jobs),
            "todo": todo,
        });
        print(&format!("{value:#}\n"))?;
        return Ok(code);
    }
    let mut text = format!(
        "at {}: {} accounts active, {} deactivated and {} taken down as they were; {} refused, {} failed, {untried} \
         not tried\n",
        whole.to,
        count("active"),
        count("deactivated"),
        count("taken_down"),
        count("refused"),
        count("failed"),
    );
    for (why, dids) in skipped(jobs) {
        let _written = writeln!(text, "{} left out: {why}", dids.len());
    }
    if stopped {
        text.push_str("several accounts failed one after the other, so no further one was begun\n");
    }
    if undone > 0 {
        text.push_str("run the same command again to go on\n");
    }
    for line in todo.iter().take(NAMED_MAX) {
        let _written = writeln!(text, "- {line}");
    }
    let _written = writeln!(
        text,
        "all of what is left to do ({} lines) is in {}",
        todo.len(),
        path.display()
    );
    print(&text)?;
    Ok(code)
}
