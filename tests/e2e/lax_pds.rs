//! A PDS that signs a tree which its records do not build: what it gives is kept as it came, and heals.

use std::time::Instant;

use serde_json::Value;

use crate::support::firekeep::{Firekeep, Running};
use crate::support::sandbox::Sandbox;
use crate::support::{http, report};

/// The account is quarantined at this head, and what is kept of it stands in the archive.
fn wait_kept(running: &mut Running, did: &str, head: &Value) -> Value {
    running.wait_account(did, "it is kept, and archived", |account| {
        account["sync"] == "quarantined"
            && account["kept_car"]["commit"] == head["cid"]
            && account["kept_car"]["archived"] == true
    })
}

#[test]
fn lax_pds() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 3;
    sandbox.populate(accounts, 90, 6);
    let dids = sandbox.dids();
    let did = &dids[0];
    let audits: &[&str] = &["--audit-interval", "2s"];
    let firekeep = Firekeep::new(&sandbox, "data").args(audits);
    let mut running = firekeep.start();
    running.wait_filled(accounts);
    running.wait_caught_up(&sandbox);
    let proven = running.heads(&dids);
    let get_repo = format!("/xrpc/com.atproto.sync.getRepo?did={did}");
    let ours = running.get(&get_repo).body;

    // Nobody tells of it: an audit finds it. (One that meets a PDS that is down comes again in minutes.)
    running.stop();
    sandbox.stop("pds1");
    let head: Value = serde_json::from_str(&sandbox.account("lax", did, &[])).expect("JSON");
    sandbox.start("pds1");
    let mut running = firekeep.start();
    let theirs = http::get(&sandbox.pds_url(), &get_repo)
        .expect("the PDS answers")
        .body;
    wait_kept(&mut running, did, &head);
    let said = running.alarm("quarantine", did);
    assert!(said.contains("does not rebuild"), "{said}");

    // Ours stays what it was, and is what is served; theirs stands in the archive, byte for byte.
    assert_eq!(running.heads(&dids), proven);
    assert!(running.get(&get_repo).body == ours, "our proven copy is served");
    let (rev, cid) = (head["rev"].as_str().unwrap(), head["cid"].as_str().unwrap());
    let object = format!("v1/repos/{did}/{rev}-{cid}.car.quarantined.zst");
    let packed = std::fs::read(firekeep.archive().join(object)).expect("the object");
    let unpacked = zstd::stream::decode_all(&packed[..]).expect("plain zstd");
    assert!(unpacked == theirs, "what is archived is what the PDS gives");
    let archive = format!("file://{}", firekeep.archive().display());
    let verified = firekeep
        .command()
        .args(["verify", "--archive", &archive])
        .output();
    let verified = verified.expect("verify runs");
    assert!(verified.status.success(), "{verified:?}");

    // Whoever never had a proven copy gives it as what it is.
    let late = Firekeep::new(&sandbox, "late").args(audits);
    let mut later = late.start();
    wait_kept(&mut later, did, &head);
    assert!(later.get(&get_repo).body == theirs, "served as it came");

    // The PDS mends its tree, and the account writes: both are well again.
    sandbox.stop("pds1");
    sandbox.run(&["account", "unlax", "--did", did]);
    sandbox.start("pds1");
    let written = sandbox.post(did, "in a sound tree again");
    for (running, firekeep) in [(&mut running, &firekeep), (&mut later, &late)] {
        running.wait_account(did, "it is well again", |account| {
            account["sync"] == "live" && account["commit"] == written.as_str()
        });
        running.wait_caught_up(&sandbox);
        let equal = sandbox.compare(&["--url", &firekeep.url(), "--no-snapshots", "--wait", "60"]);
        assert_eq!(equal.accounts, accounts);
    }
    running.stop();
    later.stop();
    let counts = format!(
        "a tree of {} records that does not rebuild: {} bytes kept as they came, archived, served where nothing \
         else is held; healed by the next write",
        head["records"],
        theirs.len()
    );
    report("lax_pds", began, &counts);
}
