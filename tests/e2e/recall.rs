//! What the archive gives back by itself: no mirror, no daemon, and the PDS as the judge.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::support::firekeep::{Ended, Firekeep};
use crate::support::sandbox::Sandbox;
use crate::support::{http, report, sized};

#[test]
fn recall() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 4;
    sandbox.populate(accounts, sized(120, 1000), sized(12, 60));
    let dids = sandbox.dids();
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    running.wait_filled(accounts);
    running.wait_caught_up(&sandbox);
    running.snapshot();
    let before = running.heads(&dids);
    let earlier: Vec<Vec<u8>> = dids.iter().map(|did| repository(&sandbox, did)).collect();

    sandbox.churn(20, sized(3, 30)).wait().assert_taken();
    running.wait_caught_up(&sandbox);
    running.wait_none_missing();
    running.snapshot();
    running.stop();
    // All that is left is the archive.
    std::fs::rename(firekeep.archive(), sandbox.folder().join("archive")).expect("renames");
    std::fs::remove_dir_all(&firekeep.data_dir).expect("removes");

    let (mut blobs, mut changed) = (0, 0);
    for (did, earlier) in dids.iter().zip(&earlier) {
        let now = repository(&sandbox, did);
        let newest = export(&sandbox, &firekeep, did, &["--blobs", "newest.tar"]);
        assert_eq!(blocks(&newest.0), blocks(&now), "{did}");
        assert_eq!(newest.1["blobs"]["missing"], Value::Array(Vec::new()));
        blobs += newest.1["blobs"]["written"].as_u64().expect("a count");
        let then = export(&sandbox, &firekeep, did, &["--at", &before[did].0]);
        assert_eq!(blocks(&then.0), blocks(earlier), "{did}");
        changed += u64::from(blocks(earlier) != blocks(&now));

        let listed = ask(&sandbox, &firekeep, &["ls", did, "--json"]);
        let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
        assert_eq!(listed["rev"], newest.1["rev"]);
        let moments = ask(&sandbox, &firekeep, &["history", did, "--json"]);
        let moments: Value = serde_json::from_str(&moments.stdout).expect("JSON");
        assert!(moments["moments"].as_array().is_some_and(|moments| !moments.is_empty()));
    }
    assert!(blobs > 0 && changed > 0, "{blobs} blobs, {changed} accounts changed");
    let none = ask(&sandbox, &firekeep, &["export", "did:plc:zzzzzzzzzzzzzzzzzzzzzzzz"]);
    assert_eq!(none.code, 10, "{}", none.stderr);
    let counts = format!(
        "{} repositories and {blobs} blobs from the archive alone equal the PDS's, now and before the churn",
        dids.len()
    );
    report("recall", began, &counts);
}

fn ask(sandbox: &Sandbox, firekeep: &Firekeep, arguments: &[&str]) -> Ended {
    let archive = format!("file://{}", sandbox.folder().join("archive").display());
    firekeep.ask(&[arguments, &["--archive", &archive]].concat())
}

/// Exports an account: the CAR, and what was said of it.
fn export(sandbox: &Sandbox, firekeep: &Firekeep, did: &str, more: &[&str]) -> (Vec<u8>, Value) {
    let path = sandbox.folder().join("out.car");
    let file = path.to_str().expect("UTF-8");
    let done = ask(sandbox, firekeep, &[&["export", did, "-o", file, "--json", "--force"], more].concat());
    assert_eq!(done.code, 0, "export of {did}: {}", done.stderr);
    let car = std::fs::read(Path::new(file)).expect("the export");
    (car, serde_json::from_str(&done.stdout).expect("JSON"))
}

/// What the PDS says an account holds.
fn repository(sandbox: &Sandbox, did: &str) -> Vec<u8> {
    let path = format!("/xrpc/com.atproto.sync.getRepo?did={did}");
    let answer = http::get(&sandbox.pds_url(), &path).expect("the PDS answers");
    assert_eq!(answer.status, 200);
    answer.body
}

/// A CAR's header and blocks, in no order: what stands behind each length.
fn blocks(car: &[u8]) -> BTreeSet<&[u8]> {
    let (mut found, mut rest) = (BTreeSet::new(), car);
    while !rest.is_empty() {
        let (mut length, mut shift) = (0, 0);
        loop {
            let (byte, after) = rest.split_first().expect("a length");
            rest = after;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let (block, after) = rest.split_at(length);
        found.insert(block);
        rest = after;
    }
    found
}
