//! An account that lives gets back what it lost, and a rotation key of its own; a daemon tells who changed its identity.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::Value;

use super::restore::{blobs, identity, text};
use crate::support::alone::{blocks, repository};
use crate::support::firekeep::{Ended, Firekeep};
use crate::support::sandbox::{NOTES, Sandbox};
use crate::support::{report, wait_for};

struct World {
    sandbox: Sandbox,
    firekeep: Firekeep,
    did: String,
    password: std::path::PathBuf,
}

impl World {
    fn ask(&self, what: &[&str], more: &[&str]) -> (Ended, Value) {
        let plc = self.sandbox.plc_url();
        let fixed = [
            "--plc-url",
            &plc,
            "--dev-mode",
            "--json",
            "--password-file",
            text(&self.password),
        ];
        let ended = self.firekeep.ask(&[what, &[&self.did], &fixed, more].concat());
        let said = serde_json::from_str(&ended.stdout).unwrap_or_default();
        (ended, said)
    }

    fn url(&self) -> String {
        self.sandbox.pds_url()
    }
}

#[test]
fn restore_living() {
    let began = Instant::now();
    let sandbox = Sandbox::up_as(&["--with", "pds,plc"]);
    let did = sandbox.create_account("alice", "pds1");
    let password = sandbox.folder().join("password");
    std::fs::write(&password, "password-of-alice").expect("writes");
    let firekeep = Firekeep::new(&sandbox, "data");
    let world = World {
        sandbox,
        firekeep,
        did,
        password,
    };
    let mut running = world.firekeep.start();
    for rkey in ["n0", "n1", "n2"] {
        world.sandbox.note(&world.did, rkey, "as it was");
    }
    let (_, _, picture) = world.sandbox.picture(&world.did);
    running.wait_caught_up(&world.sandbox);
    running.snapshot();
    let written = records(&world, &running, &picture);
    let told = own_key(&world, &running);
    running.stop();
    report(
        "restore_living",
        began,
        &format!("{written} records written back; {told}"),
    );
}

/// Records that were deleted or changed come back, with the blob that the PDS dropped; what is newer stays.
fn records(world: &World, running: &crate::support::firekeep::Running, picture: &str) -> u64 {
    let (did, sandbox) = (&world.did, &world.sandbox);
    let before = repository(&world.url(), did);
    let archive = format!("file://{}", world.firekeep.archive().display());
    let listed = running.setup.ask(&["accounts", "--json"]);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let rev = listed["accounts"][0]["rev"].as_str().expect("a rev");
    let from = ["--from", &archive, "--at", rev];
    let (ended, said) = world.ask(&["restore", "records"], &[&from[..], &["--yes"]].concat());
    assert_eq!((ended.code, &said["written"]), (0, &0.into()), "{}", ended.stderr);
    // The post with the picture, a note, and the text of another; a new one comes.
    sandbox.delete_note(did, "n0");
    sandbox.note(did, "n1", "changed");
    sandbox.note(did, "new", "newer");
    delete_posts(world);
    assert!(
        !blobs(&world.url(), did).contains(picture),
        "the PDS dropped the blob"
    );
    let only = [NOTES, "--dry-run"];
    let dry = world.ask(
        &["restore", "records"],
        &[&from[..], &["--collection"], &only].concat(),
    );
    assert_eq!(dry.0.code, 0, "{}", dry.0.stderr);
    assert_eq!(dry.1["deleted"], serde_json::json!([format!("{NOTES}/n0")]));
    assert_eq!(dry.1["changed"], serde_json::json!([format!("{NOTES}/n1")]));
    assert_eq!((&dry.1["newer"], &dry.1["written"]), (&1.into(), &0.into()));
    // Out of a CAR without blobs: the record that needs one cannot be, the others are.
    let car = sandbox.folder().join("alice.car");
    std::fs::write(&car, &before).expect("writes");
    let bare = ["--from", text(&car), "--yes"];
    let (ended, said) = world.ask(&["restore", "records"], &bare);
    assert_eq!((ended.code, &said["written"]), (3, &2.into()), "{}", ended.stderr);
    let why = said["left"][0]["why"].as_str().expect("a reason");
    assert!(
        why.contains(picture) && why.contains("not in the backup"),
        "{why}"
    );
    let (ended, said) = world.ask(&["restore", "records"], &[&from[..], &["--yes"]].concat());
    assert_eq!((ended.code, &said["written"]), (0, &1.into()), "{}", ended.stderr);
    assert!(blobs(&world.url(), did).contains(picture));
    // The same without the newer note is the tree of before: only the commit is another.
    sandbox.delete_note(did, "new");
    let now = repository(&world.url(), did);
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (blocks(&before), blocks(&now));
    assert_eq!(
        (old.difference(&new).count(), new.difference(&old).count()),
        (2, 2)
    );
    let (ended, _) = world.ask(&["restore", "records"], &["--from", "/nowhere.car", "--yes"]);
    assert_eq!(ended.code, 1);
    3
}

fn delete_posts(world: &World) {
    let list = crate::support::http::get(
        &world.url(),
        &format!(
            "/xrpc/com.atproto.repo.listRecords?repo={}&collection=app.bsky.feed.post",
            world.did
        ),
    );
    for record in list.expect("answers").json()["records"]
        .as_array()
        .expect("a list")
    {
        let uri = record["uri"].as_str().expect("a URI");
        let rkey = uri.rsplit('/').next().expect("a key");
        let fixed = [
            "record",
            "delete",
            "--collection",
            "app.bsky.feed.post",
            "--did",
            &world.did,
        ];
        world.sandbox.run(&[&fixed[..], &["--rkey", rkey]].concat());
    }
}

/// Who could restore the account today.
fn restorable(running: &crate::support::firekeep::Running) -> String {
    let listed = running.setup.ask(&["accounts", "--json"]);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let by = &listed["accounts"][0]["restore"]["by"];
    by.as_str().expect("a word").to_owned()
}

/// The PDS signs a key of the user's own into the identity, with the token that it mails; the daemon tells of it.
fn own_key(world: &World, running: &crate::support::firekeep::Running) -> String {
    let did = &world.did;
    let file = world.sandbox.folder().join("alice.key");
    let made = world
        .firekeep
        .alone(&["key", "generate", "-o", text(&file), "--json"]);
    let made: Value = serde_json::from_str(&made.stdout).expect("JSON");
    let key = made["keys"][0]["did_key"].as_str().expect("a key").to_owned();
    let before = identity(&world.sandbox, did);
    let add = |more: &[&str]| -> (Ended, Value) {
        let plc = world.sandbox.plc_url();
        let fixed = [
            "plc",
            "add-key",
            did,
            &key,
            "--plc-url",
            &plc,
            "--dev-mode",
            "--json",
            "--password-file",
        ];
        let ended = world
            .firekeep
            .alone(&[&fixed[..], &[text(&world.password)], more].concat());
        let said = serde_json::from_str(&ended.stdout).unwrap_or_default();
        (ended, said)
    };
    assert_eq!(restorable(running), "pds_only");
    let (dry, said) = add(&["--dry-run"]);
    assert_eq!((dry.code, &said["done"]), (0, &false.into()), "{}", dry.stderr);
    let (mailed, _) = add(&["--yes"]);
    assert_eq!(mailed.code, 3, "{}", mailed.stderr);
    assert!(mailed.stderr.contains("mailed a token"), "{}", mailed.stderr);
    let token = world.sandbox.folder().join("token");
    std::fs::write(&token, "AAAAA-AAAAA").expect("writes");
    let with = ["--token-file", text(&token), "--yes"];
    let (wrong, _) = add(&with);
    assert_eq!(wrong.code, 1, "{}", wrong.stderr);
    assert!(wrong.stderr.contains("InvalidToken"), "{}", wrong.stderr);
    assert_eq!(identity(&world.sandbox, did), before, "nothing was changed");
    std::fs::write(&token, world.sandbox.mailed_token(did)).expect("writes");
    let (done, said) = add(&with);
    assert_eq!((done.code, &said["done"]), (0, &true.into()), "{}", done.stderr);
    let after = identity(&world.sandbox, did)["data"].clone();
    assert_eq!(after["rotationKeys"][0], key.as_str());
    let kept = before["data"]["rotationKeys"].as_array().expect("a list");
    assert_eq!(
        after["rotationKeys"].as_array().map(|all| &all[1..]),
        Some(&kept[..])
    );
    let (again, _) = add(&["--dry-run"]);
    assert!(again.stderr.contains("already"), "{}", again.stderr);
    let message = wait_for("the daemon tells that the identity was changed", || {
        let alarms = running.alarms();
        let told = alarms
            .iter()
            .any(|(kind, subject)| kind == "identity_changed" && subject == did);
        if told {
            Ok(running.alarm("identity_changed", did))
        } else {
            Err(alarms)
        }
    });
    assert!(message.contains(&format!("+ rotation key 1  {key}")), "{message}");
    assert_eq!(restorable(running), "user");
    "a key of the user's own, and an alarm that tells of it".to_owned()
}
