#![allow(clippy::disallowed_methods, reason = "shell: the bucket, the clock")]
//! `firekeep prune --dry-run`: what may go from the archive, by the list of its names.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{existing, failed, print, size};
use crate::archive::bucket::BucketError;
use crate::archive::names::{ObjectName, REPOS};
use crate::archive::retention::{Delta, Fate, Holdings, Keep, Plan, Planned, Proof, Snapshot, plan};
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::{DaemonError, exit};
use crate::types::{Did, Timestamp};

/// How many objects and bytes stay, and go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Total {
    kept: (u64, u64),
    gone: (u64, u64),
}

/// `firekeep prune --dry-run`. Prints account by account, so that memory does not grow with the archive.
///
/// # Errors
/// When the archive cannot be listed, or is empty.
pub async fn dry_run(config: &Config, as_json: bool) -> Result<u8, DaemonError> {
    let broken = |error: BucketError| failed(error.to_string());
    let bucket = existing(config).await?;
    let now = Clock::system().now();
    let mut total = Total::default();
    let mut accounts = 0_u64;
    let mut current: Option<(Did, Holdings)> = None;
    let mut after: Option<String> = None;
    if as_json {
        print("{\"accounts\": [")?;
    }
    let mut show = |did: &Did, holdings: &Holdings| {
        let planned = plan(holdings, &config.keep, now);
        add(&mut total, &planned);
        let text = match as_json {
            true => format!(
                "{}{}\n",
                if accounts == 0 { "" } else { "," },
                json_of(did, &planned)
            ),
            false => text_of(did, &planned),
        };
        accounts += 1;
        print(&text)
    };
    loop {
        let page = bucket.list(REPOS, after.as_deref()).await.map_err(broken)?;
        for object in &page.objects {
            let name: ObjectName = match object.name.parse() {
                Ok(name) => name,
                // Not ours: never planned for.
                Err(_) => continue,
            };
            let did = match &name {
                ObjectName::Snapshot(name) => name.did.did(),
                ObjectName::Delta(name) => name.did().did(),
                _ => continue,
            };
            if let Some((before, holdings)) = current.take_if(|(before, _)| before != did) {
                show(&before, &holdings)?;
            }
            let (_, holdings) = current.get_or_insert_with(|| (did.clone(), Holdings::default()));
            collect(holdings, &name, object.size);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    if let Some((did, holdings)) = current {
        show(&did, &holdings)?;
    }
    if as_json {
        let total = json!({ "kept": counts(total.kept), "gone": counts(total.gone) });
        print(&format!(
            "], \"accounts_listed\": {accounts}, \"total\": {total}}}\n"
        ))?;
    } else if accounts > 0 {
        print(&summary(accounts, &total, &config.keep, now))?;
    }
    if accounts == 0 {
        return Err(DaemonError {
            code: exit::NO_BACKUP,
            text: format!("{bucket} holds no snapshot: there is nothing to plan for"),
        });
    }
    Ok(0)
}

fn collect(holdings: &mut Holdings, name: &ObjectName, bytes: u64) {
    match name {
        ObjectName::Snapshot(name) => holdings.snapshots.push(Snapshot {
            rev: name.rev,
            bytes,
            // A list proves nothing.
            proof: Proof::Unknown,
        }),
        ObjectName::Delta(name) => holdings.deltas.push(Delta {
            from: name.from(),
            to: name.to(),
            bytes,
            steps: None,
        }),
        _ => {}
    }
}

fn add(total: &mut Total, planned: &Plan) {
    let snapshots = planned
        .snapshots
        .iter()
        .map(|planned| (planned.stays(), planned.what.bytes));
    let deltas = planned
        .deltas
        .iter()
        .map(|planned| (planned.stays(), planned.what.bytes));
    for (stays, bytes) in snapshots.chain(deltas) {
        let (count, sum) = if stays { &mut total.kept } else { &mut total.gone };
        *count += 1;
        *sum = sum.saturating_add(bytes);
    }
}

/// Every object with what becomes of it and why, in rev order of its kind.
fn lines(planned: &Plan) -> Vec<(String, u64, &Fate)> {
    let snapshots = planned.snapshots.iter();
    let snapshots =
        snapshots.map(|Planned { what, fate }| (format!("snapshot {}", what.rev), what.bytes, fate));
    let deltas = planned.deltas.iter();
    let deltas =
        deltas.map(|Planned { what, fate }| (format!("delta {}..{}", what.from, what.to), what.bytes, fate));
    snapshots.chain(deltas).collect()
}

fn text_of(did: &Did, planned: &Plan) -> String {
    let mut out = format!("{did}\n");
    for (what, bytes, fate) in lines(planned) {
        let line = match fate {
            Fate::Keep(reasons) => format!("  keep   {what}  {}  ({})", size(bytes), labels(reasons)),
            Fate::Delete(gone) => format!("  delete {what}  {}  ({})", size(bytes), labels([gone])),
        };
        // A String takes all.
        writeln!(out, "{line}").unwrap_or_default();
    }
    out
}

fn labels<T: serde::Serialize>(reasons: impl IntoIterator<Item = T>) -> String {
    let labels = reasons
        .into_iter()
        .map(|reason| match serde_json::to_value(reason) {
            Ok(Value::String(label)) => label.replace('_', " "),
            _ => "?".to_owned(),
        });
    labels.collect::<Vec<_>>().join(", ")
}

fn json_of(did: &Did, planned: &Plan) -> Value {
    let objects = lines(planned)
        .into_iter()
        .map(|(what, bytes, fate)| json!({ "object": what, "bytes": bytes, "fate": fate }));
    json!({ "did": did.as_str(), "objects": objects.collect::<Vec<_>>() })
}

fn counts((objects, bytes): (u64, u64)) -> Value {
    json!({ "objects": objects, "bytes": bytes })
}

fn summary(accounts: u64, total: &Total, keep: &Keep, now: Timestamp) -> String {
    let from = now.minus(keep.window);
    let mut out = format!("\n{accounts} accounts; what can be restored of any moment since {from} stays\n");
    for (what, (objects, bytes)) in [("stay", total.kept), ("would go", total.gone)] {
        writeln!(out, "  {objects} snapshots and deltas {what}, {}", size(bytes)).unwrap_or_default();
    }
    out.push_str(
        "Nothing was deleted. Pinned and deleted accounts are known to the daemon, not to this list: of a pinned one \
         nothing goes.\n",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Rev;

    #[test]
    fn each_object_is_shown_with_its_reasons() {
        let now = Timestamp::from_micros(1_780_000_000_000_000);
        let ago = |days: u64| Rev::from_time(now.minus(std::time::Duration::from_secs(days * 86_400)), 0);
        let snapshot = |days| Snapshot {
            rev: ago(days),
            bytes: 1024,
            proof: Proof::Unknown,
        };
        let holdings = Holdings {
            snapshots: vec![snapshot(9), snapshot(8), snapshot(0)],
            ..Holdings::default()
        };
        let keep = Keep {
            last: 1,
            hours: 0,
            days: 0,
            weeks: 0,
            months: 0,
            window: std::time::Duration::ZERO,
            deleted: std::time::Duration::ZERO,
            withdrawn: std::time::Duration::ZERO,
        };
        let planned = plan(&holdings, &keep, now);
        let did: Did = "did:web:a.example.com".parse().expect("valid");
        let text = text_of(&did, &planned);
        assert_eq!(text.matches("delete snapshot").count(), 2, "{text}");
        assert!(
            text.contains("(not needed)") && text.contains("(newest, last, window base)"),
            "{text}"
        );
        assert_eq!(
            json_of(&did, &planned)["objects"][0]["fate"]["delete"],
            "not_needed"
        );
        let mut total = Total::default();
        add(&mut total, &planned);
        assert_eq!((total.kept, total.gone), ((1, 1024), (2, 2048)));
    }
}
