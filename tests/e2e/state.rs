//! A PDS's private state: read while it runs, encrypted, shipped by a daemon that cannot read it, and opened again.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use age::secrecy::ExposeSecret as _;
use age::x25519;
use serde_json::{Value, json};

use crate::support::firekeep::{Ended, Firekeep};
use crate::support::sandbox::Sandbox;
use crate::support::{http, inventory, report, wait_for};

/// What nothing but an opened part may hold.
const SETTINGS: &str = "PDS_JWT_SECRET=a-secret-of-the-pds\n";
const PREFERENCE: &str = "a-tag-that-nobody-else-sees";

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn key_file(sandbox: &Sandbox, name: &str) -> (std::path::PathBuf, String) {
    let key = x25519::Identity::generate();
    let path = sandbox.folder().join(name);
    std::fs::write(&path, key.to_string().expose_secret()).expect("writes");
    (path, key.to_public().to_string())
}

/// Gives an account a private preference.
fn prefer(sandbox: &Sandbox, did: &str) {
    let accounts = std::fs::read_to_string(sandbox.folder().join("box/accounts.json")).expect("reads");
    let accounts: Value = serde_json::from_str(&accounts).expect("JSON");
    let account = accounts.as_array().expect("a list").iter();
    let mut account = account.filter(|account| account["did"] == did);
    let password = &account.next().expect("is known")["password"];
    let url = sandbox.pds_url();
    let login = json!({ "identifier": did, "password": password });
    let session = http::post(&url, "/xrpc/com.atproto.server.createSession", "", &login);
    let session = session.expect("answers").json();
    let bearer = format!("Bearer {}", session["accessJwt"].as_str().expect("a token"));
    let preference = json!({ "$type": "app.bsky.actor.defs#interestsPref", "tags": [PREFERENCE] });
    let body = json!({ "preferences": [preference] });
    let put = http::post(&url, "/xrpc/app.bsky.actor.putPreferences", &bearer, &body);
    let put = put.expect("answers");
    assert_eq!(put.status, 200, "{}", put.text());
}

fn bytes_below(folder: &Path, all: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).expect("lists") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            bytes_below(&path, all);
        } else {
            all.push((path.display().to_string(), std::fs::read(&path).expect("reads")));
        }
    }
}

#[test]
fn private_state() {
    let began = Instant::now();
    // A PDS keeps preferences only where it knows an AppView.
    let view = [
        "--pds-env",
        "PDS_BSKY_APP_VIEW_URL=https://view.invalid",
        "--pds-env",
        "PDS_BSKY_APP_VIEW_DID=did:web:view.invalid",
    ];
    let sandbox = Sandbox::up_as(&[&["--with", "pds,plc"], &view[..]].concat());
    sandbox.populate(3, 6, 0);
    let dids = sandbox.dids();
    prefer(&sandbox, &dids[0]);
    let drop = sandbox.folder().join("drop");
    std::fs::create_dir(&drop).expect("makes");
    let settings = sandbox.folder().join("pds.env");
    std::fs::write(&settings, SETTINGS).expect("writes");
    let (own, public) = key_file(&sandbox, "own.key");
    let (other, _) = key_file(&sandbox, "other.key");
    let firekeep = Firekeep::new(&sandbox, "data").args(&["--state-drop", text(&drop)]);
    let mut running = firekeep.start();
    running.wait_filled(3);
    let data = sandbox.pds_data();
    let host = sandbox.pds_url().trim_start_matches("http://").to_owned();
    let run = |more: &[&str]| -> Ended {
        let mut command = firekeep.command();
        let fixed = [
            "state",
            "backup",
            "--json",
            "--pds-dir",
            text(&data),
            "--host",
            &host,
        ];
        command.args(fixed).args(["--drop", text(&drop)]).args(more);
        let output = command.output().expect("firekeep runs");
        Ended {
            code: output.status.code().expect("it ends"),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    };
    let refused = run(&[]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("no recipient"), "{}", refused.stderr);
    assert!(inventory(&drop).is_empty(), "nothing was written");
    // Who reads a database that is in use marks that in the memory that its users share.
    let looked = || -> BTreeSet<String> {
        let all = inventory(&data).into_iter();
        // The PDS runs: it closes what it does not use, and its empty write-ahead logs go with that.
        all.filter(|line| !line.contains("-shm ") && !line.contains("-wal 0 "))
            .collect()
    };
    let before = looked();
    let to = ["--recipient", public.as_str()];
    let short = run(&to);
    assert_eq!(short.code, 3, "there is no pds.env there: {}", short.stderr);
    let first: Value = serde_json::from_str(&short.stdout).expect("JSON");
    assert_eq!(first["written"], 6, "three accounts, three databases: {first}");
    let whole = [&to[..], &["--env-file", text(&settings)]].concat();
    let second = run(&whole);
    assert_eq!(second.code, 0, "{}", second.stderr);
    let second: Value = serde_json::from_str(&second.stdout).expect("JSON");
    assert_eq!(
        (&second["written"], &second["unchanged"]),
        (&json!(1), &json!(6)),
        "only what changed"
    );
    assert_eq!(before, looked(), "the PDS's folder is as it was");
    shipped(&drop);
    let asked = firekeep.ask(&["status", "--json"]);
    let status: Value = serde_json::from_str(&asked.stdout).expect("JSON");
    assert!(status["private_state"]["newest"].is_string(), "{status:#}");
    let archive = format!("file://{}", firekeep.archive().display());
    let from = ["--archive", archive.as_str()];
    opened(&firekeep, &from, (&own, &other));
    erased(&firekeep, &from, &dids[2], &run, &whole, &drop);
    extracted(&sandbox, &firekeep, &from, &own, &dids);
    running.stop();
    nothing_in_plain(&sandbox, &firekeep, &dids);
    report(
        "private state",
        began,
        "7 parts of a running PDS, shipped, opened, erased",
    );
}

/// Waits until the daemon has taken everything.
fn shipped(drop: &Path) {
    wait_for("all is shipped", || {
        let left = inventory(drop);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

fn opened(firekeep: &Firekeep, from: &[&str], (own, other): (&Path, &Path)) {
    let list = firekeep.ask(&[&["state", "list", "--json"], from].concat());
    let list: Value = serde_json::from_str(&list.stdout).expect("JSON");
    assert_eq!(list["state"].as_array().map(Vec::len), Some(7), "{list:#}");
    for (key, code) in [(own, 0), (other, 4)] {
        let verify = ["state", "verify", "--json", "--identity-file", text(key)];
        let done = firekeep.ask(&[&verify, from].concat());
        assert_eq!(done.code, code, "{}{}", done.stdout, done.stderr);
    }
}

/// An account that is erased goes from there too, and does not come back with the next backup.
fn erased(
    firekeep: &Firekeep,
    from: &[&str],
    did: &str,
    run: &dyn Fn(&[&str]) -> Ended,
    whole: &[&str],
    drop: &Path,
) {
    let forgotten = firekeep.ask(&[&["forget", did, "--yes"], from].concat());
    assert_eq!(forgotten.code, 0, "{}", forgotten.stderr);
    let again = run(&[whole, &["--all"]].concat());
    assert_eq!(again.code, 0, "{}", again.stderr);
    shipped(drop);
    let list = firekeep.ask(&[&["state", "list", "--all", "--json"], from].concat());
    assert!(!list.stdout.contains(did), "{}", list.stdout);
    let list: Value = serde_json::from_str(&list.stdout).expect("JSON");
    assert_eq!(list["state"].as_array().map(Vec::len), Some(12), "{list:#}");
}

fn extracted(sandbox: &Sandbox, firekeep: &Firekeep, from: &[&str], own: &Path, dids: &[String]) {
    let out = sandbox.folder().join("out");
    let extract = [
        "state",
        "extract",
        "--to",
        text(&out),
        "--identity-file",
        text(own),
    ];
    let done = firekeep.ask(&[&extract, from].concat());
    assert_eq!(done.code, 0, "{}", done.stderr);
    let there = inventory(&out);
    for file in [
        "account.sqlite",
        "sequencer.sqlite",
        "did_cache.sqlite",
        "pds.env",
    ] {
        assert!(
            there.iter().any(|name| name.starts_with(&format!("{file} "))),
            "{file}: {there:?}"
        );
    }
    assert!(!there.iter().any(|name| name.contains(&dids[2])), "{there:?}");
    assert_eq!(
        std::fs::read_to_string(out.join("pds.env")).expect("reads"),
        SETTINGS
    );
    for did in &dids[..2] {
        let of = |data: &Path| {
            let shards = std::fs::read_dir(data.join("actors")).expect("lists");
            let mut places = shards.map(|shard| shard.expect("an entry").path().join(did));
            places.find(|place| place.is_dir()).expect("the account's folder")
        };
        let (theirs, ours) = (of(&sandbox.pds_data()), of(&out));
        assert_eq!(
            theirs.parent().unwrap().file_name(),
            ours.parent().unwrap().file_name()
        );
        let key = |folder: &Path| std::fs::read(folder.join("key")).expect("reads");
        assert_eq!(key(&theirs), key(&ours), "{did}");
    }
    let shards = std::fs::read_dir(out.join("actors")).expect("lists");
    let mut places = shards.map(|shard| shard.expect("an entry").path().join(&dids[0]));
    let place = places.find(|place| place.is_dir()).expect("the account's folder");
    let preferences = std::fs::read_to_string(place.join("preferences.json")).expect("reads");
    assert!(preferences.contains(PREFERENCE), "{preferences}");
    let again = firekeep.ask(&[&extract, from].concat());
    assert_eq!(
        again.code, 1,
        "what is there is not written over: {}",
        again.stderr
    );
    std::fs::remove_dir_all(out).expect("removes");
}

/// No secret stands in the archive, the mirror, or a log.
fn nothing_in_plain(sandbox: &Sandbox, firekeep: &Firekeep, dids: &[String]) {
    let mut all = Vec::new();
    for folder in [&firekeep.data_dir, &sandbox.folder().join("home")] {
        bytes_below(folder, &mut all);
    }
    let seen = sandbox.folder().join("drop.seen.json");
    all.push(("seen".to_owned(), std::fs::read(seen).expect("reads")));
    let mut secrets = vec![b"a-secret-of-the-pds".to_vec(), PREFERENCE.as_bytes().to_vec()];
    for did in dids {
        let shards = std::fs::read_dir(sandbox.pds_data().join("actors")).expect("lists");
        let mut places = shards.map(|shard| shard.expect("an entry").path().join(did));
        let place = places.find(|place| place.is_dir()).expect("the account's folder");
        secrets.push(std::fs::read(place.join("key")).expect("a key"));
    }
    for (name, bytes) in &all {
        for secret in &secrets {
            let holds = bytes.windows(secret.len()).any(|window| window == &secret[..]);
            assert!(!holds, "{name} holds a secret");
        }
    }
}
