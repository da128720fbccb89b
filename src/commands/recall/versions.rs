#![allow(clippy::disallowed_methods, reason = "shell: the archive")]
//! `firekeep history`: the moments of an account, and the versions of a record.

use serde_json::{Value, json};

use super::{Account, Answer, unread};
use crate::archive::rebuild::RebuildError;
use crate::archive::timeline::{Gap, Moment, MomentKind};
use crate::daemon::{DaemonError, exit};
use crate::types::{AccountStatus, Cid, RepoPath};

/// Every moment, gap and standing of an account.
pub(super) fn of_account(account: &Account) -> Answer {
    let line = &account.line;
    let (rebuildable, gaps) = (line.rebuildable(), line.gaps());
    let mut text = format!(
        "{:<24}  {:<13}  {:<8}  {:>7}  {:>7}\n",
        "time", "rev", "by", "put", "deleted"
    );
    let mut moments = Vec::new();
    for (moment, can) in line.moments.iter().zip(&rebuildable) {
        if let Some(gap) = gaps.iter().find(|gap| gap.before == moment.rev) {
            text.push_str(&format!("  … {}\n", gap_text(gap)));
        }
        let counts = match moment.kind {
            MomentKind::Commit | MomentKind::Swap => [moment.ops.0.to_string(), moment.ops.1.to_string()],
            MomentKind::Loaded | MomentKind::Snapshot => ["-".to_owned(), "-".to_owned()],
        };
        text.push_str(&format!(
            "{:<24}  {:<13}  {:<8}  {:>7}  {:>7}{}{}\n",
            moment.time.to_string(),
            moment.rev.to_string(),
            moment.kind.label(),
            counts[0],
            counts[1],
            if moment.snapshot { "  snapshot" } else { "" },
            if *can { "" } else { "  CANNOT BE PUT TOGETHER" },
        ));
        moments.push(moment_json(moment, *can));
    }
    for standing in &line.standings {
        let (status, host) = (status_text(&standing.status), &standing.host);
        text.push_str(&format!("{}  {status} at {host}\n", standing.received));
    }
    let value = json!({
        "did": account.did.as_str(),
        "archive": account.reader.place(),
        "moments": moments,
        "gaps": gaps.iter().map(gap_json).collect::<Value>(),
        "standings": line.standings.iter().map(|standing| json!({
            "received": standing.received.to_string(),
            "host": standing.host.as_str(),
            "status": status_text(&standing.status),
        })).collect::<Value>(),
        "faults": account.line.faults.iter().map(|fault| json!({
            "object": fault.object,
            "detail": fault.detail,
        })).collect::<Value>(),
    });
    let mut answer = account.answer(Vec::new(), text.into_bytes(), value);
    let lost = rebuildable.iter().filter(|can| !**can).count();
    if lost > 0 {
        answer.notes.push(format!(
            "{lost} moments cannot be put together: no snapshot in the archive leads to them without a gap"
        ));
    }
    if line.is_damaged() {
        answer.code = exit::INCOMPLETE;
        answer
            .notes
            .push("something of this account is missing from the archive, or damaged: see above".to_owned());
    }
    answer
}

fn gap_text(gap: &Gap) -> String {
    let Gap {
        after,
        before,
        broken,
    } = gap;
    if *broken {
        format!("MISSING: what leads from rev {after} to the one before rev {before}")
    } else {
        format!("moments between rev {after} and rev {before} are not kept")
    }
}

fn gap_json(gap: &Gap) -> Value {
    json!({ "after": gap.after.to_string(), "before": gap.before.to_string(), "missing": gap.broken })
}

fn status_text(status: &AccountStatus) -> &str {
    match status.wire_name() {
        Some("") => "inactive",
        Some(name) => name,
        None => "active",
    }
}

fn moment_json(moment: &Moment, can: bool) -> Value {
    json!({
        "rev": moment.rev.to_string(),
        "commit": moment.commit.to_string(),
        "time": moment.time.to_string(),
        "received": moment.received.to_string(),
        "by": moment.kind.label(),
        "host": moment.host.as_ref().map(|host| host.as_str()),
        "seq": moment.seq,
        "since": moment.since.map(|rev| rev.to_string()),
        "put": moment.ops.0,
        "deleted": moment.ops.1,
        "snapshot": moment.snapshot,
        "can_be_put_together": can,
    })
}

/// A version of a record, or its absence.
struct Version<'a> {
    moment: &'a Moment,
    cid: Option<Cid>,
    /// It came about then; else at an unknown time before.
    then: bool,
}

impl Version<'_> {
    const fn label(&self) -> &'static str {
        match (self.cid.is_some(), self.then) {
            (true, true) => "put",
            (false, true) => "deleted",
            (true, false) => "there by then",
            (false, false) => "gone by then",
        }
    }
}

/// Every version of a record. Where no entry tells what an account held, its snapshot does.
pub(super) async fn of_record(account: &Account, path: &RepoPath) -> Result<Answer, DaemonError> {
    let line = &account.line;
    let (mut versions, mut notes) = (Vec::new(), Vec::new());
    // What stood there, as far as is known: none at first, then a record or nothing.
    let mut known: Option<Option<Cid>> = None;
    for (index, moment) in line.moments.iter().enumerate() {
        let goes_on = index > 0 && moment.since == Some(line.moments[index - 1].rev);
        if let Some(cid) = line.versions.get(&moment.rev).filter(|_| moment.since.is_some()) {
            known = Some(*cid);
            versions.push(Version {
                moment,
                cid: *cid,
                then: true,
            });
            continue;
        }
        if goes_on {
            continue;
        }
        let seen = match moment.snapshot {
            true => match account.reader.rebuild(&account.did, line, index, &[]).await {
                Ok(rebuilt) => Some(rebuilt.records.get(path.as_str()).copied()),
                Err(RebuildError::Read(error)) => return Err(unread(&error)),
                Err(error) => {
                    notes.push(error.to_string());
                    None
                }
            },
            false => None,
        };
        if let Some(cid) = seen
            && known.unwrap_or_default() != cid
        {
            versions.push(Version {
                moment,
                cid,
                then: false,
            });
        }
        known = seen;
    }
    if versions.is_empty() {
        let text = format!(
            "no version of {path} in what {} has of {}",
            account.reader.place(),
            account.did
        );
        let text = [vec![text], account.faults(), notes].concat().join("\n  ");
        let code = exit::NO_BACKUP;
        return Err(DaemonError { code, text });
    }
    let mut text = String::new();
    let mut list = Vec::new();
    for version in &versions {
        let Version { moment, cid, .. } = version;
        let shown = cid.map_or_else(String::new, |cid| cid.to_string());
        let line = format!(
            "{}  {}  {:<13}  {shown}",
            moment.time,
            moment.rev,
            version.label()
        );
        text.push_str(line.trim_end());
        text.push('\n');
        list.push(json!({
            "rev": moment.rev.to_string(),
            "time": moment.time.to_string(),
            "received": moment.received.to_string(),
            "what": version.label(),
            "cid": cid.map(|cid| cid.to_string()),
        }));
    }
    let value = json!({
        "uri": format!("at://{}/{path}", account.did),
        "archive": account.reader.place(),
        "versions": list,
    });
    let mut answer = account.answer(Vec::new(), text.into_bytes(), value);
    if line.is_damaged() || !notes.is_empty() {
        answer.code = exit::INCOMPLETE;
        notes.push(
            "something of this account is missing from the archive, or damaged: there may be more versions"
                .to_owned(),
        );
    }
    answer.notes.append(&mut notes);
    Ok(answer)
}
