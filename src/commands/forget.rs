#![allow(clippy::disallowed_methods, reason = "shell: the terminal")]
//! `firekeep forget` and `firekeep prune`: through the daemon, or alone where none runs.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{LONG, ask, failed, number, print, reachable, size, text};
use crate::archive::probe::old_versions;
use crate::archive::prune::Memory;
use crate::cli::ForgetArgs;
use crate::config::Config;
use crate::daemon::care::{Caretaker, Forget};
use crate::daemon::{DaemonError, exit};
use crate::mirror::blobs::query_value;

/// Whether a daemon listens is known within this time.
const CONNECT: Duration = Duration::from_secs(5);

/// Whether a daemon listens on the private address.
async fn daemon_runs(config: &Config) -> bool {
    let address = reachable(config.admin_listen);
    matches!(timeout(CONNECT, TcpStream::connect(address)).await, Ok(Ok(_)))
}

/// `firekeep prune`
///
/// # Errors
/// When the archive is not ours to prune, or cannot be reached.
pub async fn prune(config: &Config, as_json: bool) -> Result<u8, DaemonError> {
    let done = if daemon_runs(config).await {
        ask(config.admin_listen, Method::POST, "/control/prune", LONG).await?
    } else {
        let care = Caretaker::alone(config).await?;
        let (pruned, error) = care.prune(&mut Memory::default(), CancellationToken::new()).await;
        if let Some(error) = error {
            let objects = pruned.objects();
            return Err(failed(format!("{error}; {objects} objects were removed before")));
        }
        json!({
            "archive": care.side.bucket.to_string(),
            "pruned": pruned,
            "old_versions": old_versions(&care.side.bucket).await,
        })
    };
    if as_json {
        return print(&format!("{done:#}\n"));
    }
    print(&pruned_text(&done))
}

fn pruned_text(done: &Value) -> String {
    let pruned = &done["pruned"];
    let mut out = format!(
        "{}: {} accounts looked at\n",
        text(&done["archive"]),
        number(&pruned["accounts"])
    );
    for (kind, counts) in pruned["removed"].as_object().into_iter().flatten() {
        let (objects, bytes) = (number(&counts[0]), number(&counts[1]));
        out.push_str(&format!("  {objects} {kind} removed, {}\n", size(bytes)));
    }
    if pruned["removed"]
        .as_object()
        .is_none_or(serde_json::Map::is_empty)
    {
        out.push_str("  nothing to remove\n");
    }
    if let Some(why) = pruned["held_up"].as_str() {
        out.push_str(&format!("  the log is not removed any further: {why}\n"));
    }
    for did in pruned["unproven"].as_array().into_iter().flatten() {
        out.push_str(&format!(
            "  {}: a snapshot does not prove; run `firekeep verify`\n",
            text(did)
        ));
    }
    if let Some(note) = done["old_versions"].as_str() {
        out.push_str(&format!("  {note}\n"));
    }
    out
}

/// `firekeep forget`
///
/// # Errors
/// When nothing of it is held, it was not confirmed, or cannot be done.
pub async fn forget(config: &Config, args: &ForgetArgs, as_json: bool) -> Result<u8, DaemonError> {
    let usage = |text: String| DaemonError {
        code: exit::USAGE,
        text,
    };
    let forget = Forget::parse(&args.subject, args.account.as_deref()).map_err(usage)?;
    let by = std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .unwrap_or_default();
    let way = match daemon_runs(config).await {
        true => Way::Daemon,
        false => Way::Alone(Box::new(Caretaker::alone(config).await?)),
    };
    let plan = way.forget(config, args, &forget, &by, true).await?;
    if plan["accounts"].as_array().is_none_or(Vec::is_empty) {
        return Err(DaemonError {
            code: exit::NO_BACKUP,
            text: format!(
                "nothing of {} is held, neither here nor in {}; a record that only the history holds is found with \
                 --account",
                args.subject,
                text(&plan["archive"])
            ),
        });
    }
    if args.dry_run {
        return match as_json {
            true => print(&format!("{plan:#}\n")),
            false => print(&forgotten_text(&plan)),
        };
    }
    if !args.yes {
        confirm(&plan).map_err(usage)?;
    }
    let done = way.forget(config, args, &forget, &by, false).await?;
    match as_json {
        true => print(&format!("{done:#}\n"))?,
        false => print(&forgotten_text(&done))?,
    };
    Ok(match done["old_versions"].is_null() {
        true => 0,
        // It is gone from the archive, and its old versions are not.
        false => exit::INCOMPLETE,
    })
}

enum Way {
    Daemon,
    Alone(Box<Caretaker>),
}

impl Way {
    async fn forget(
        &self,
        config: &Config,
        args: &ForgetArgs,
        forget: &Forget,
        by: &str,
        dry_run: bool,
    ) -> Result<Value, DaemonError> {
        match self {
            Self::Daemon => {
                let path = format!(
                    "/control/forget?subject={}&account={}&by={}&dry_run={dry_run}",
                    query_value(&args.subject),
                    query_value(args.account.as_deref().unwrap_or_default()),
                    query_value(by),
                );
                ask(config.admin_listen, Method::POST, &path, LONG).await
            }
            Self::Alone(care) => {
                let done = care.forget(forget, by, dry_run, CancellationToken::new());
                done.await.map_err(failed)
            }
        }
    }
}

/// Asks on a terminal; elsewhere `--yes` must be said.
fn confirm(plan: &Value) -> Result<(), String> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err("this cannot be taken back: say --yes, or look at it first with --dry-run".to_owned());
    }
    let mut out = std::io::stderr().lock();
    let asked = write!(
        out,
        "{}This cannot be taken back. Type \"forget\" to go on: ",
        forgotten_text(plan)
    )
    .and_then(|()| out.flush());
    let mut line = String::new();
    match asked.and_then(|()| input.lock().read_line(&mut line)) {
        Ok(_) if line.trim() == "forget" => Ok(()),
        _ => Err("nothing was erased".to_owned()),
    }
}

fn forgotten_text(done: &Value) -> String {
    let dry = done["dry_run"] == true;
    let mut out = String::new();
    for account in done["accounts"].as_array().into_iter().flatten() {
        let count = |key: &str| account[key].as_array().map_or(0, Vec::len);
        let did = text(&account["did"]);
        let (records, blobs) = (count("records"), count("blobs"));
        let what = match (records, blobs) {
            (0, 0) => "all of it".to_owned(),
            _ => format!("{records} records and {blobs} blobs"),
        };
        out.push_str(&match dry {
            true => format!(
                "{did}: {what} would be erased, here and in {}\n",
                text(&done["archive"])
            ),
            false => format!(
                "{did}: {what} erased; {} objects written again, {} removed; looked for again in a day\n",
                number(&account["rewritten"]),
                number(&account["removed"])
            ),
        });
        match (number(&account["still_live"]), records + blobs) {
            (0, _) => {}
            (_, 0) => out.push_str("  it is active at its host: nothing of it is taken from there again\n"),
            (live, _) => out.push_str(&format!(
                "  {live} of them are live at its host: hidden here, and kept out of every fetch until it has deleted them\n"
            )),
        }
    }
    if let Some(note) = done["old_versions"].as_str() {
        out.push_str(&format!("{note}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said() {
        let account = json!({
            "did": "did:web:a.b", "records": ["x"], "blobs": [], "still_live": 1, "rewritten": 3, "removed": 3,
        });
        let done =
            json!({ "archive": "file:///a", "dry_run": false, "accounts": [account], "old_versions": null });
        let said = forgotten_text(&done);
        assert!(
            said.contains("1 records and 0 blobs erased; 3 objects written again"),
            "{said}"
        );
        assert!(said.contains("live at its host"), "{said}");
        let mut dry = done;
        dry["dry_run"] = true.into();
        dry["old_versions"] = "old versions stay".into();
        let said = forgotten_text(&dry);
        assert!(
            said.contains("would be erased") && said.contains("old versions stay"),
            "{said}"
        );
        let pruned = json!({
            "archive": "file:///a", "old_versions": null,
            "pruned": { "accounts": 2, "removed": { "deltas": [3, 2048] }, "held_up": null, "unproven": [] },
        });
        assert!(
            pruned_text(&pruned).contains("3 deltas removed, 2.0 KiB"),
            "{}",
            pruned_text(&pruned)
        );
    }
}
