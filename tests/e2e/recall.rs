//! What the archive gives back by itself: no mirror, no daemon, and the PDS as the judge.

use std::time::Instant;

use serde_json::Value;

use crate::support::alone::{blocks, repository};
use crate::support::firekeep::Firekeep;
use crate::support::sandbox::Sandbox;
use crate::support::{report, sized};

#[test]
fn recall() {
    let sandbox = Sandbox::up("pds,plc");
    let archive = format!("file://{}", sandbox.folder().join("archive").display());
    let firekeep = Firekeep::new(&sandbox, "data");
    recalled("recall", &sandbox, &firekeep, &["--archive", &archive]);
}

#[test]
fn recall_from_s3() {
    let sandbox = Sandbox::up("pds,plc,s3");
    let firekeep = Firekeep::new(&sandbox, "data")
        .env("AWS_ACCESS_KEY_ID", &sandbox.s3("access_key"))
        .env("AWS_SECRET_ACCESS_KEY", &sandbox.s3("secret_key"));
    let (url, endpoint) = (
        format!("s3://{}/here", sandbox.s3("bucket")),
        sandbox.s3("endpoint"),
    );
    let region = sandbox.s3("region");
    let source = [
        "--archive",
        &url,
        "--s3-endpoint",
        &endpoint,
        "--s3-region",
        &region,
    ];
    recalled("recall_from_s3", &sandbox, &firekeep, &source);
}

/// Fills an archive, throws everything else away, and asks it for what the PDS has and had.
fn recalled(name: &str, sandbox: &Sandbox, firekeep: &Firekeep, source: &[&str]) {
    let began = Instant::now();
    let accounts = 4;
    sandbox.populate(accounts, sized(120, 1000), sized(12, 60));
    let dids = sandbox.dids();
    let mut running = firekeep.clone().args(source).start();
    running.wait_filled(accounts);
    running.wait_caught_up(sandbox);
    running.snapshot();
    let before = running.heads(&dids);
    let earlier: Vec<Vec<u8>> = dids
        .iter()
        .map(|did| repository(&sandbox.pds_url(), did))
        .collect();

    sandbox.churn(20, sized(3, 30)).wait().assert_taken();
    running.wait_caught_up(sandbox);
    running.wait_none_missing();
    running.snapshot();
    running.stop();
    std::fs::remove_dir_all(&firekeep.data_dir).expect("removes");

    let out = sandbox.folder().join("out.car");
    let ask = |arguments: &[&str]| firekeep.ask(&[arguments, source].concat());
    let export = |did: &str, more: &[&str]| {
        let file = out.to_str().expect("UTF-8");
        let done = ask(&[&["export", did, "-o", file, "--json", "--force"], more].concat());
        assert_eq!(done.code, 0, "export of {did}: {}", done.stderr);
        let said: Value = serde_json::from_str(&done.stdout).expect("JSON");
        (std::fs::read(&out).expect("the export"), said)
    };
    let json = |arguments: &[&str]| -> Value {
        let done = ask(arguments);
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
        serde_json::from_str(&done.stdout).expect("JSON")
    };
    let (mut blobs, mut changed) = (0, 0);
    for (did, earlier) in dids.iter().zip(&earlier) {
        let now = repository(&sandbox.pds_url(), did);
        let newest = export(did, &["--blobs", "newest.tar"]);
        assert_eq!(blocks(&newest.0), blocks(&now), "{did}");
        assert_eq!(newest.1["blobs"]["missing"], Value::Array(Vec::new()));
        blobs += newest.1["blobs"]["written"].as_u64().expect("a count");
        let then = export(did, &["--at", &before[did].0]);
        assert_eq!(blocks(&then.0), blocks(earlier), "{did}");
        changed += u64::from(blocks(earlier) != blocks(&now));
        assert_eq!(json(&["ls", did, "--json"])["rev"], newest.1["rev"]);
        let moments = json(&["history", did, "--json"]);
        assert!(
            moments["moments"]
                .as_array()
                .is_some_and(|moments| !moments.is_empty())
        );
    }
    assert!(
        blobs > 0 && changed > 0,
        "{blobs} blobs, {changed} accounts changed"
    );
    let none = ask(&["export", "did:plc:zzzzzzzzzzzzzzzzzzzzzzzz"]);
    assert_eq!(none.code, 10, "{}", none.stderr);
    let counts = format!(
        "{} repositories and {blobs} blobs from the archive alone equal the PDS's, now and before the churn",
        dids.len()
    );
    report(name, began, &counts);
}
