//! Twenty accounts, followed live; then everything is compared.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::alone::{Alone, blocks, repository};
use crate::support::firekeep::{Firekeep, Running, Status};
use crate::support::metrics::Metrics;
use crate::support::sandbox::{Compared, Sandbox};
use crate::support::stream::Emitted;
use crate::support::{http, report, sized, wait_for};

#[test]
fn main_job() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let (accounts, records, blobs) = (20, sized(1000, 3000), sized(30, 120));
    sandbox.populate(accounts, records, blobs);

    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    let filled = running.wait_filled(accounts);
    assert_eq!(filled.accounts("records"), records);
    assert_eq!(filled.blobs("held") + filled.blobs("archived"), blobs);
    let before = Emitted::read(&sandbox).last();

    let churn = sandbox.churn(25, sized(8, 90)).wait();
    churn.assert_taken();
    assert!(
        churn.creates > 0 && churn.updates > 0 && churn.deletes > 0 && churn.blobs > 0,
        "{churn:?}"
    );
    let caught_up = running.wait_caught_up(&sandbox);
    assert_eq!(
        caught_up.standing(),
        "not_off_machine",
        "a folder is no other machine"
    );

    // The command answers when everything stands in the archive: so the comparison does not wait.
    let snapshotted = running.snapshot();
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!(equal.accounts, accounts);
    assert_eq!(
        equal.snapshots, accounts,
        "a snapshot of every account was opened"
    );
    assert!(
        equal.blobs > 0 && equal.archived_blobs == equal.blobs,
        "{equal:?}"
    );

    let emitted = Emitted::read(&sandbox);
    check_status(&mut running, &emitted, &equal);
    check_metrics(&running, &emitted, before, accounts);
    check_listeners(&running, &sandbox);
    check_commands(&running);
    let applied = emitted.commits_after(before);

    let stopped = running.stop();
    check_archive(&firekeep, &equal);
    let counts = format!(
        "{}, {applied} commits applied live once each, {snapshotted} accounts snapshotted on command, {}, stop {} ms",
        churn.text(),
        equal.text(),
        stopped.as_millis()
    );
    report("main_job", began, &counts);
}

/// The archive proves itself, without the daemon and its mirror.
fn check_archive(firekeep: &Firekeep, equal: &Compared) {
    let url = format!("file://{}", firekeep.archive().display());
    let mut verify = firekeep.command();
    let out = verify.args(["verify", "--json", "--archive", &url]).output();
    let out = out.expect("starts");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(
        out.status.code(),
        Some(0),
        "{said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let counts = &serde_json::from_str::<serde_json::Value>(&said).expect("JSON")["counts"];
    assert_eq!(counts["accounts"], equal.accounts, "{counts}");
    assert_eq!(
        counts["objects"]["blobs"]["sound"], counts["objects"]["blobs"]["listed"],
        "{counts}"
    );
    let (deltas, segments) = (
        &counts["objects"]["deltas"]["sound"],
        &counts["objects"]["segments"]["sound"],
    );
    assert!(
        deltas.as_u64() > Some(0) && segments.as_u64() > Some(0),
        "{counts}"
    );
    assert_eq!(
        counts["deltas_told"], *deltas,
        "every delta leads to its signed root: {counts}"
    );
}

/// The status tells what is there.
fn check_status(running: &mut Running, emitted: &Emitted, equal: &Compared) {
    let status: Status = running.wait_none_missing();
    assert_eq!(status.accounts("held"), equal.accounts, "{status:?}");
    assert_eq!(status.sync("live"), equal.accounts, "{status:?}");
    // Kept by differences from commit to commit: a commit that was applied twice would show here.
    assert_eq!(status.accounts("records"), equal.records, "{status:?}");
    assert_eq!(status.accounts("parked_events"), 0, "{status:?}");
    assert_eq!(
        status.0["accounts"]["by_status"]["active"], equal.accounts,
        "{status:?}"
    );
    assert_eq!(status.blobs("held"), 0, "snapshot archives blobs too: {status:?}");
    // Those whose records were deleted since are kept too.
    assert!(status.blobs("archived") >= equal.blobs, "{status:?}");
    assert_eq!(status.archive("accounts_archived"), equal.accounts, "{status:?}");
    assert_eq!(status.archive("accounts_due"), 0, "{status:?}");
    assert_eq!(status.0["archive"]["on_this_machine"], true, "{status:?}");
    assert_eq!(status.cursor(), emitted.last(), "{status:?}");
    assert!(status.connected(), "{status:?}");
    assert_eq!(status.host()["listed"], true, "{status:?}");
}

/// In one life without an interruption the metrics are exact.
fn check_metrics(running: &Running, emitted: &Emitted, before: u64, accounts: u64) {
    let metrics: Metrics = running.metrics();
    let count = |name: &str, labels: &[(&str, &str)]| metrics.count(name, labels);
    let received = count("firekeep_events_received_total", &[("kind", "commit")]);
    assert_eq!(received, emitted.commits_after(0), "each commit is received once");
    let applied = count("firekeep_events_applied_total", &[("kind", "commit")]);
    assert_eq!(
        applied,
        emitted.commits_after(before),
        "each commit since the fetch is applied once"
    );
    assert_eq!(count("firekeep_events_rejected_total", &[]), 0);
    assert_eq!(count("firekeep_frames_rejected_total", &[]), 0);
    assert_eq!(
        count("firekeep_resyncs_total", &[("result", "loaded")]),
        accounts,
        "fetched once each"
    );
    assert_eq!(count("firekeep_upstream_connected", &[]), 1);
    assert_eq!(count("firekeep_accounts", &[("status", "active")]), accounts);
    assert_eq!(count("firekeep_account_sync", &[("state", "live")]), accounts);
    assert_eq!(count("firekeep_account_sync", &[]), accounts);
    assert!(
        count("firekeep_snapshots_total", &[("result", "ok")]) >= 2 * accounts - 1,
        "at first, and on command"
    );
    assert_eq!(count("firekeep_snapshots_total", &[("result", "error")]), 0);
    assert!(count("firekeep_data_dir_free_bytes", &[]) > 0);
    let resident = count("process_resident_memory_bytes", &[]);
    assert!((1 << 20..1 << 30).contains(&resident), "{resident} bytes");
    let blobs = count("firekeep_blobs", &[("state", "archived")]);
    assert!(
        count("firekeep_blob_fetches_total", &[("result", "ok")]) >= blobs,
        "each was fetched"
    );
    assert!(
        count(
            "firekeep_object_store_requests_total",
            &[("op", "put"), ("result", "ok")]
        ) > blobs
    );
    // Measured from time to time.
    wait_for("the gauges of the stream arrive at its end", || {
        let metrics = running.metrics();
        let applied = metrics.count("firekeep_last_seq", &[("stage", "applied")]);
        let lag = metrics.find("firekeep_replication_lag_seconds", &[]);
        if (applied, lag) == (emitted.last(), Some(0.0)) {
            Ok(())
        } else {
            Err((applied, lag))
        }
    });
}

fn check_listeners(running: &Running, sandbox: &Sandbox) {
    let health = running.get("/xrpc/_health");
    assert_eq!(health.status, 200);
    assert_eq!(health.json()["version"], env!("CARGO_PKG_VERSION"));

    let pds = sandbox.pds_url();
    let (did, cid) = some_blob(&pds, &sandbox.dids());
    let path = format!("/xrpc/com.atproto.sync.getBlob?did={did}&cid={cid}");
    let theirs = http::get(&pds, &path).expect("the PDS answers");
    let (whole, head) = (running.get(&path), running.head(&path));
    assert_eq!((whole.status, head.status), (200, 200));
    assert_eq!(whole.body, theirs.body);
    assert!(head.body.is_empty(), "HEAD has no body");
    let length = theirs.body.len().to_string();
    for name in ["content-length", "content-type"] {
        assert_eq!(head.header(name), whole.header(name), "{name}");
    }
    assert_eq!(head.header("content-length"), Some(length.as_str()));
    assert_eq!(head.header("content-type"), theirs.header("content-type"));

    let unknown = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    let none = running.get(&format!("/xrpc/com.atproto.sync.getRepo?did={unknown}"));
    assert_eq!(
        (none.status, &none.json()["error"]),
        (400, &"RepoNotFound".into())
    );
    let none = running.head(&format!("/xrpc/com.atproto.sync.getBlob?did={unknown}&cid={cid}"));
    assert_eq!((none.status, none.body.len()), (400, 0));
}

/// A blob that the PDS lists.
fn some_blob(pds: &str, dids: &[String]) -> (String, String) {
    for did in dids {
        let list = http::get(pds, &format!("/xrpc/com.atproto.sync.listBlobs?did={did}"));
        let list = list.expect("the PDS answers").json();
        if let Some(cid) = list["cids"].get(0).and_then(serde_json::Value::as_str) {
            return (did.clone(), cid.to_owned());
        }
    }
    panic!("no account has a blob");
}

/// What a person sees.
fn check_commands(running: &Running) {
    let ready = running.setup.ask(&["health"]);
    assert_eq!((ready.code, ready.stdout.as_str()), (0, "ready\n"));
    let status = running.setup.ask(&["status"]);
    assert_eq!(status.code, 0);
    assert!(
        status
            .stdout
            .contains("- the archive is a folder of this machine"),
        "{}",
        status.stdout
    );
    let nothing = running.setup.ask(&["snapshot"]);
    assert_eq!(nothing.code, 0);
    assert!(nothing.stdout.starts_with("nothing to do"), "{}", nothing.stdout);
    // It comes when the first snapshots stand, or a minute after the start.
    let summary = wait_for("the summary", || {
        let printed = running.printed();
        if printed.contains("look at") {
            Ok(printed)
        } else {
            Err(printed)
        }
    });
    assert!(
        summary.contains("- the archive is a folder of this machine"),
        "{summary}"
    );
    assert!(summary.contains("20 held of 20 known"), "{summary}");
}

/// SIGTERM in the middle of everything: what was applied is archived, and the next start goes on from there.
/// What a service manager was told, as it comes; and the name of its socket.
fn service_manager(sandbox: &Sandbox) -> (Arc<Mutex<Vec<String>>>, String) {
    let path = sandbox.folder().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let words = Arc::clone(&told);
    std::thread::spawn(move || {
        let mut bytes = [0u8; 4096];
        while let Ok(length) = socket.recv(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            words
                .lock()
                .expect("unpoisoned")
                .extend(text.lines().map(str::to_owned));
        }
    });
    (told, path.to_str().expect("UTF-8").to_owned())
}

/// All that it was told so far.
fn words_to(told: &Mutex<Vec<String>>) -> Vec<String> {
    told.lock().expect("unpoisoned").clone()
}

#[test]
fn stop_under_load() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 8;
    sandbox.populate(accounts, 300, 12);
    // As systemd starts it: with a socket for what it says, and a watchdog.
    let (told, socket) = service_manager(&sandbox);
    let firekeep = Firekeep::new(&sandbox, "data")
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "1000000");
    let archive = firekeep.archive();
    let archive = archive.to_str().unwrap();
    let mut running = firekeep.start();
    let filled = running.wait_filled(accounts);
    let said = words_to(&told);
    assert_eq!(
        said.iter().filter(|word| *word == "READY=1").count(),
        1,
        "{said:?}"
    );
    assert!(said.contains(&"WATCHDOG=1".to_owned()), "{said:?}");
    assert!(!said.contains(&"STOPPING=1".to_owned()), "{said:?}");

    let churn = sandbox.churn(30, 600);
    let under_load = running.wait_status("it applies live events", |status| {
        status.cursor() >= filled.cursor() + sized(60, 600)
    });
    let stopped = running.stop();
    let said = words_to(&told);
    assert!(said.contains(&"STOPPING=1".to_owned()), "{said:?}");
    std::thread::sleep(Duration::from_millis(300));
    let churn = churn.end();
    churn.assert_taken();

    // With the PDS away the mirror shows what it held when it stopped.
    sandbox.stop("pds1");
    let mut running = firekeep.start();
    let held = running.status();
    assert!(held.cursor() >= under_load.cursor(), "{held:?}");
    assert_eq!(
        held.blobs("held"),
        0,
        "every blob that was here was archived: {held:?}"
    );
    assert_eq!(
        (held.archive("accounts_due"), held.archive("changes_due")),
        (0, 0),
        "every change was archived: {held:?}"
    );
    // The newest may stand in the log alone: so what counts is what the archive gives.
    let url = format!("file://{archive}");
    let alone = Alone::new(&sandbox, &firekeep, &["--archive", &url]);
    let heads = running.heads(&sandbox.dids());
    assert_eq!(heads.len() as u64, accounts);
    let mut in_log = 0;
    for (did, (rev, cid)) in &heads {
        let (restored, car) = alone.car(did);
        assert_eq!(restored, *rev, "{did}");
        assert!(
            blocks(&car) == blocks(&repository(&firekeep.url(), did)),
            "{did} at {rev}: the archive gives something else than the mirror"
        );
        let name = format!("v1/repos/{did}/{rev}-{cid}.car.zst");
        in_log += u64::from(!firekeep.archive().join(&name).is_file());
    }

    sandbox.start("pds1");
    let emitted = Emitted::read(&sandbox);
    running.wait_caught_up(&sandbox);
    let missed = emitted.commits_after(held.cursor());
    let metrics = running.metrics();
    let applied = metrics.count("firekeep_events_applied_total", &[("kind", "commit")]);
    assert_eq!(applied, missed, "exactly what came while it was down is applied");
    assert_eq!(
        metrics.count("firekeep_resyncs_total", &[]),
        0,
        "and nothing is fetched again"
    );
    // The snapshots of then still prove, beside those of now.
    let then = sandbox.differences(&["--archive", archive, "--old-snapshots"]);
    let unproven: Vec<_> = then.iter().filter(|what| what.contains("snapshot")).collect();
    assert!(unproven.is_empty(), "{unproven:?}");
    running.snapshot();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    running.stop();
    let counts = format!(
        "{}, stop under load {} ms, {} events before it, {accounts} heads from the archive alone ({in_log} of them by its \
         log), {missed} commits after it applied, 0 fetched again, {}",
        churn.text(),
        stopped.as_millis(),
        held.cursor() - filled.cursor(),
        equal.text()
    );
    report("stop_under_load", began, &counts);
}
