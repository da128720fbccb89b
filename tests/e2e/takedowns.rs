//! What an admin takes down piece by piece: no event tells of it.

use std::time::Instant;

use crate::support::firekeep::{Firekeep, Running};
use crate::support::sandbox::Sandbox;
use crate::support::{http, report, wait_for};

/// What Firekeep says of a blob.
fn served(running: &Running, did: &str, cid: &str) -> u16 {
    let answer = running.get(&format!("/xrpc/com.atproto.sync.getBlob?did={did}&cid={cid}"));
    if answer.status != 200 {
        assert_eq!(answer.json()["error"], "BlobNotFound");
    }
    answer.status
}

fn wait_served(running: &Running, did: &str, cid: &str, status: u16) {
    wait_for(&format!("the blob is answered with {status}"), || {
        let found = served(running, did, cid);
        if found == status { Ok(()) } else { Err(found) }
    });
}

#[test]
fn a_blob_that_is_taken_down_is_hidden_and_kept_and_comes_back() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    sandbox.populate(2, 10, 2);
    let did = sandbox.dids()[0].clone();
    let (_, _, taken) = sandbox.picture(&did);
    let (record, record_cid, other) = sandbox.picture(&did);
    let firekeep = Firekeep::new(&sandbox, "data").args(&["--blob-sweep-interval", "10s"]);
    let mut running = firekeep.start();
    running.wait_filled(2);
    running.snapshot();
    assert_eq!(
        (served(&running, &did, &taken), served(&running, &did, &other)),
        (200, 200)
    );

    sandbox.takedown("takedown", &did, &["--blob", &taken]);
    wait_served(&running, &did, &taken, 400);
    assert_eq!(served(&running, &did, &other), 200, "only that one");
    let status = running.wait_status("it is counted", |status| status.0["blobs"]["withheld"] == 1);
    assert_eq!(status.blobs("missing"), 0, "it is not missing: {status:?}");
    assert_eq!(running.metrics().count("firekeep_blobs_withheld", &[]), 1);
    let kept = firekeep.archive().join("v1/blocks").join(&did).join(&taken);
    assert!(kept.is_file(), "it is kept: {}", kept.display());

    // A PDS that is down, and then a restart of ours, change nothing of what is known.
    sandbox.stop("pds1");
    let stopped = running.stop();
    running = firekeep.start();
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(served(&running, &did, &taken), 400, "hidden stays hidden");
    assert_eq!(
        served(&running, &did, &other),
        200,
        "a host that is down takes nothing down"
    );
    sandbox.start("pds1");

    sandbox.takedown("untakedown", &did, &["--blob", &taken]);
    wait_served(&running, &did, &taken, 200);
    running.wait_status("none is counted", |status| status.0["blobs"]["withheld"] == 0);

    // A record that is taken down: the PDS goes on giving it to whoever mirrors it, and so do we.
    sandbox.takedown("takedown", &did, &["--record", &record, "--cid", &record_cid]);
    let rkey = record.rsplit('/').next().expect("an rkey");
    let hidden =
        format!("/xrpc/com.atproto.repo.getRecord?repo={did}&collection=app.bsky.feed.post&rkey={rkey}");
    let pds = sandbox.pds_url();
    assert_eq!(
        http::get(&pds, &hidden).expect("answers").status,
        400,
        "the PDS hides it"
    );
    let proof =
        format!("/xrpc/com.atproto.sync.getRecord?did={did}&collection=app.bsky.feed.post&rkey={rkey}");
    let theirs = http::get(&pds, &proof).expect("answers");
    let holds = |body: &[u8], text: &[u8]| body.windows(text.len()).any(|part| part == text);
    assert!(
        theirs.status == 200 && holds(&theirs.body, b"app.bsky.embed.images"),
        "and gives it, with its proof, to whoever mirrors it"
    );
    let head = |base: &str| {
        let path = format!("/xrpc/com.atproto.sync.getLatestCommit?did={did}");
        http::get(base, &path).expect("answers").json()["cid"].clone()
    };
    assert_eq!(head(&pds), head(&firekeep.url()), "which is the one that we hold");
    let rounds = running
        .metrics()
        .find("firekeep_blob_sweep_timestamp_seconds", &[]);
    assert!(rounds.is_some_and(|at| at > 0.0), "{rounds:?}");
    running.stop();
    let counts = format!(
        "1 blob hidden, kept, hidden over a restart with the PDS down (stop {} ms), given again",
        stopped.as_millis()
    );
    report("takedowns", began, &counts);
}

/// What no host ever gave cannot be in the archive: the mirror knows that, the archive alone does not.
#[test]
fn a_blob_that_was_never_given_is_not_lost() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    sandbox.populate(2, 10, 2);
    let did = sandbox.dids()[0].clone();
    let (_, _, never) = sandbox.picture(&did);
    sandbox.takedown("takedown", &did, &["--blob", &never]);
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    running.wait_filled(2);
    running.wait_status("it is missing", |status| status.blobs("missing") == 1);
    running.snapshot();
    let archive = firekeep.archive();
    let verify = |data_dir: &std::path::Path| {
        let mut command = firekeep.command();
        let url = format!("file://{}", archive.display());
        command.args(["verify", "--json", "--archive", &url, "--data-dir"]);
        let done = command.arg(data_dir).output().expect("starts");
        let told: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
        (done.status.code(), told["findings"]["counts"].clone())
    };
    // Beside the daemon, then from the archive alone.
    let (code, counts) = verify(&firekeep.data_dir);
    assert_eq!((code, &counts), (Some(3), &serde_json::json!({ "not_given": 1 })));
    let (code, counts) = verify(&sandbox.folder().join("nothing"));
    assert_eq!(
        (code, &counts),
        (Some(4), &serde_json::json!({ "missing_blob": 1 }))
    );
    // One that is lost is lost, whatever the mirror knows of others.
    let held = std::fs::read_dir(archive.join("v1/blocks").join(&did)).expect("blobs");
    let held = held.flatten().next().expect("one").path();
    std::fs::remove_file(&held).expect("removes");
    let (code, counts) = verify(&firekeep.data_dir);
    let expected = serde_json::json!({ "not_given": 1, "missing_blob": 1 });
    assert_eq!((code, counts), (Some(4), expected));
    running.stop();
    report(
        "never_given",
        began,
        "verify beside the mirror: 1 not given (3); alone: 1 missing (4)",
    );
}
