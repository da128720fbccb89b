//! A whole PDS, destroyed and brought back at another one from the archive and its rotation key alone.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;

use crate::support::alone::{blocks, repository};
use crate::support::firekeep::{Ended, Firekeep, signal};
use crate::support::sandbox::Sandbox;
use crate::support::{http, report, sized, wait_for};

/// How accounts stood when their PDS went.
const HIDDEN: [&str; 2] = ["deactivated", "takendown"];

/// What an account was before its PDS went.
struct Before {
    did: String,
    /// `active`, or why nothing, or nothing public, of it may come back.
    fate: &'static str,
    car: Vec<u8>,
    blobs: BTreeSet<String>,
}

struct World {
    sandbox: Sandbox,
    firekeep: Firekeep,
    archive: String,
    rotation: PathBuf,
    passwords: PathBuf,
    admin: PathBuf,
    /// All that a restore ever printed.
    said: String,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn blobs(url: &str, did: &str, authorization: &str) -> BTreeSet<String> {
    let path = format!("/xrpc/com.atproto.sync.listBlobs?did={did}&limit=1000");
    let header = format!("Authorization: {authorization}\r\n");
    let answer = http::ask("GET", url, &path, &header).expect("it answers").json();
    let list = answer["cids"].as_array().expect("a list").iter();
    list.map(|cid| cid.as_str().expect("a CID").to_owned()).collect()
}

fn standing(url: &str, did: &str) -> String {
    let path = format!("/xrpc/com.atproto.sync.getRepoStatus?did={did}");
    let answer = http::get(url, &path).expect("it answers").json();
    match answer["active"].as_bool() {
        Some(true) => "active".to_owned(),
        Some(false) => answer["status"].as_str().expect("a status").to_owned(),
        None => answer["error"].as_str().expect("an error").to_owned(),
    }
}

impl World {
    /// A PDS with accounts of every fate, archived, and destroyed.
    fn lost(accounts: u64) -> (Self, Vec<Before>) {
        let sandbox = Sandbox::up_as(&["--with", "pds,plc", "--pds", "2"]);
        let (n, records, pictures) = (
            accounts.to_string(),
            (accounts * 8).to_string(),
            (accounts * 2).to_string(),
        );
        let sizes = ["--accounts", &n, "--records", &records, "--blobs", &pictures];
        sandbox.run(&[&["populate"], &sizes[..], &["--pds", "pds1"]].concat());
        let archive = format!("file://{}", sandbox.folder().join("archive").display());
        let firekeep = Firekeep::following(&sandbox, "data", &[0]).args(&["--archive", &archive]);
        let mut running = firekeep.start();
        running.wait_filled(accounts);
        running.wait_caught_up(&sandbox);
        running.wait_none_missing();
        let url = sandbox.url_of(0);
        let mut all = Vec::new();
        for (number, did) in sandbox.dids().into_iter().enumerate() {
            let fate = match number {
                0 => "deleted",
                1 => "deactivated",
                2 => "takendown",
                3 => "moved",
                4 => "erased",
                _ => "active",
            };
            all.push(Before {
                car: repository(&url, &did),
                blobs: blobs(&url, &did, ""),
                fate,
                did,
            });
        }
        for account in &all {
            match account.fate {
                "deleted" => drop(sandbox.account("delete", &account.did, &[])),
                "deactivated" => drop(sandbox.account("deactivate", &account.did, &[])),
                "takendown" => sandbox.take_down(&account.did, true),
                "moved" => drop(sandbox.account("move", &account.did, &["--to", "pds2"])),
                "erased" => {
                    let forgotten = firekeep.ask(&["forget", &account.did, "--yes", "--archive", &archive]);
                    assert_eq!(forgotten.code, 0, "{}", forgotten.stderr);
                }
                _ => {}
            }
        }
        running.wait_caught_up(&sandbox);
        running.snapshot();
        running.stop();
        let state = sandbox.folder().join("box").join("state.json");
        let state: Value =
            serde_json::from_str(&std::fs::read_to_string(state).expect("reads")).expect("JSON");
        let secret = |name: &str, text: &str| {
            let path = sandbox.folder().join(name);
            std::fs::write(&path, text).expect("writes");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("sets");
            path
        };
        let rotation = secret(
            "pds.key",
            state["pds"][0]["rotation_key"].as_str().expect("a key"),
        );
        let admin = secret(
            "admin",
            state["pds"][1]["admin_password"].as_str().expect("a password"),
        );
        sandbox.stop("pds1");
        std::fs::remove_dir_all(sandbox.pds_data()).expect("removes");
        // As most PDSes are: by invitation alone.
        sandbox.stop("pds2");
        sandbox.run(&["start", "pds2", "--pds-env", "PDS_INVITE_REQUIRED=true"]);
        let world = Self {
            passwords: sandbox.folder().join("passwords.tsv"),
            firekeep: Firekeep::bare(&sandbox, "restoring"),
            sandbox,
            archive,
            rotation,
            admin,
            said: String::new(),
        };
        (world, all)
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let (to, plc) = (self.sandbox.url_of(1), self.sandbox.plc_url());
        let fixed = [
            "restore",
            "pds",
            "--from",
            &self.archive,
            "--to",
            &to,
            "--plc-url",
            &plc,
            "--dev-mode",
            "--yes",
            "--json",
            "--handle-domain",
            ".pds2.test",
            "--rotation-key-file",
            text(&self.rotation),
            "--passwords-file",
            text(&self.passwords),
            "--data-dir",
            text(&self.firekeep.data_dir),
        ];
        let all = fixed.iter().chain(more);
        all.map(|argument| (*argument).to_owned()).collect()
    }

    fn restore(&mut self, more: &[&str]) -> Ended {
        let arguments = self.arguments(more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ended = self.firekeep.ask(&arguments);
        self.said.push_str(&ended.stdout);
        self.said.push_str(&ended.stderr);
        ended
    }

    fn with_admin(&mut self, more: &[&str]) -> Ended {
        let admin = self.admin.clone();
        self.restore(&[&["--admin-password-file", text(&admin)], more].concat())
    }

    /// Kills it when some accounts are done and others are not; how many were.
    fn killed_midway(&mut self) -> usize {
        let book = self.firekeep.data_dir.join("restore").read_dir().ok().map(|_| ());
        assert!(book.is_none(), "nothing was begun by then");
        let out = self.sandbox.folder().join("home").join("killed.out");
        let file = std::fs::File::create(&out).expect("a file");
        let mut command = self.firekeep.command();
        let admin = self.admin.clone();
        command
            .args(self.arguments(&["--parallel", "1", "--admin-password-file", text(&admin)]))
            .stdout(Stdio::null())
            .stderr(file);
        let mut child = command.spawn().expect("it starts");
        let line = std::fs::read(format!("/proc/{}/cmdline", child.id())).expect("its arguments");
        let environment = std::fs::read(format!("/proc/{}/environ", child.id())).expect("its environment");
        self.said.push_str(&String::from_utf8_lossy(&line));
        self.said.push_str(&String::from_utf8_lossy(&environment));
        let done = wait_for("some accounts are done", || {
            let said = std::fs::read_to_string(&out).expect("reads");
            let done = said.lines().filter(|line| line.contains(" records, ")).count();
            if done >= 2 { Ok(done) } else { Err(said) }
        });
        signal(child.id(), "KILL");
        child.wait().expect("it ends");
        done
    }

    fn temporary_passwords(&self) -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(&self.passwords).expect("reads");
        let line = |line: &str| {
            let (did, password) = line.split_once('\t').expect("a tab");
            (did.to_owned(), password.to_owned())
        };
        text.lines().map(line).collect()
    }

    /// Every account is what it was, or is not there.
    fn check(&self, accounts: &[Before], said: &Value) {
        let url = self.sandbox.url_of(1);
        let password = std::fs::read_to_string(&self.admin).expect("reads");
        let admin = http::basic("admin", &password);
        let passwords = self.temporary_passwords();
        for account in accounts {
            let did = &account.did;
            let wanted = match account.fate {
                "deleted" | "erased" => "RepoNotFound",
                "moved" => "active",
                fate => fate,
            };
            assert_eq!(standing(&url, did), wanted, "{did}");
            let restored = account.fate == "active" || HIDDEN.contains(&account.fate);
            assert_eq!(passwords.contains_key(did), restored, "{did} {}", account.fate);
            if !restored {
                let skipped = said["skipped"].as_array().expect("a list").iter();
                let mut skipped = skipped.filter(|skipped| skipped["did"] == did.as_str());
                assert_eq!(skipped.next().expect("is named")["reason"], account.fate);
                continue;
            }
            let path = format!("/xrpc/com.atproto.sync.getRepo?did={did}");
            let header = format!("Authorization: {admin}\r\n");
            let now = http::ask("GET", &url, &path, &header).expect("answers");
            assert_eq!(now.status, 200, "{}", now.text());
            let (old, new) = (blocks(&account.car), blocks(&now.body));
            // The tree of before. Where nothing was written there, the commit of before too.
            let changed = if account.fate == "active" { 2 } else { 0 };
            let differences = (old.difference(&new).count(), new.difference(&old).count());
            assert_eq!(differences, (changed, changed), "{did} {}", account.fate);
            assert_eq!(blobs(&url, did, &admin), account.blobs, "{did}");
            let data = http::get(&self.sandbox.plc_url(), &format!("/{did}/data"));
            let data = data.expect("answers").json();
            assert_eq!(data["services"]["atproto_pds"]["endpoint"], url.as_str());
            let outcomes = said["accounts"].as_array().expect("a list").iter();
            let mut outcomes = outcomes.filter(|outcome| outcome["did"] == did.as_str());
            let outcome = outcomes.next().expect("is told of");
            let handle = outcome["handle"].as_str().expect("a handle");
            assert!(handle.ends_with(".pds2.test"), "{handle}");
            assert_eq!(data["alsoKnownAs"][0], format!("at://{handle}"));
            if account.fate == "active" {
                let with = [
                    "--to",
                    "pds2",
                    "--handle",
                    handle,
                    "--password",
                    &passwords[did.as_str()],
                ];
                self.sandbox.account("adopt", did, &with);
            }
        }
    }

    /// No secret stands in what was said, in the arguments, or in any file but its own.
    fn check_secrets(&self) {
        let mut texts = vec![("what was printed".to_owned(), self.said.clone().into_bytes())];
        for folder in [&self.firekeep.data_dir, &self.sandbox.folder().join("home")] {
            files(folder, &mut texts);
        }
        for part in ["accounts.jsonl", "todo.txt", "killed.out"] {
            assert!(texts.iter().any(|(name, _)| name.ends_with(part)), "{part}");
        }
        let mut secrets: Vec<String> = self.temporary_passwords().into_values().collect();
        for file in [&self.rotation, &self.admin] {
            secrets.push(std::fs::read_to_string(file).expect("reads"));
        }
        for (name, text) in &texts {
            let holds = |what: &[u8]| text.windows(what.len()).any(|window| window == what);
            for secret in &secrets {
                assert!(!holds(secret.as_bytes()), "{name} holds a secret");
            }
            assert!(!holds(b"eyJ0eXAi"), "{name} holds a token");
        }
        let mode = self.passwords.metadata().expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

fn files(folder: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).expect("lists") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).expect("reads")));
        }
    }
}

#[test]
fn restore_pds_from_the_archive_alone() {
    let began = Instant::now();
    let count = sized(8, 50);
    let (mut world, accounts) = World::lost(count);
    let restored = accounts.len() - 3;
    refused(&mut world, &accounts);
    let killed_after = world.killed_midway();
    let done = world.with_admin(&[]);
    assert_eq!(done.code, 0, "{}\n{}", done.stdout, done.stderr);
    let said: Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!(said["counts"]["active"], restored - 2, "{said:#}");
    assert_eq!(said["counts"]["deactivated"], 1);
    assert_eq!(said["counts"]["taken_down"], 1);
    world.check(&accounts, &said);
    let again = world.with_admin(&[]);
    assert_eq!(again.code, 0, "what is done is not done again: {}", again.stderr);
    assert!(!again.stderr.contains(" records, "), "{}", again.stderr);
    let equal = followed(&world, &accounts);
    world.check_secrets();
    let counts = format!(
        "{restored} of {count} accounts of a destroyed PDS are back, killed after {killed_after}; {equal}"
    );
    report("restore pds", began, &counts);
}

/// A Firekeep that follows the new PDS finds every account that is public there whole, and the others hidden.
fn followed(world: &World, accounts: &[Before]) -> String {
    let follower = Firekeep::following(&world.sandbox, "follower", &[1]);
    let mut running = follower.start();
    let public = accounts
        .iter()
        .filter(|account| ["active", "moved"].contains(&account.fate));
    let public = public.count() as u64;
    running.wait_status("it has all", |status| {
        // What is hidden cannot be fetched, so it is never settled.
        status.sync("live") >= public && status.connected()
    });
    running.wait_none_missing();
    running.snapshot();
    let (archive, url) = (follower.archive(), follower.url());
    let of = [
        "--pds",
        "pds2",
        "--url",
        &url,
        "--archive",
        text(&archive),
        "--wait",
        "30",
    ];
    let equal = world.sandbox.compare(&of);
    assert_eq!(equal.accounts, public);
    running.stop();
    equal.text()
}

/// What must not be begun, and what a plan says; nothing is changed by any of it.
fn refused(world: &mut World, accounts: &[Before]) {
    let restored = accounts.len() - 3;
    let active = &accounts.last().expect("one").did;
    let dry = world.with_admin(&["--dry-run"]);
    assert_eq!(dry.code, 0, "{}\n{}", dry.stdout, dry.stderr);
    let plan: Value = serde_json::from_str(&dry.stdout).expect("JSON");
    assert_eq!(plan["totals"]["accounts"], restored);
    let blobs = accounts
        .iter()
        .filter(|account| account.fate == "active" || HIDDEN.contains(&account.fate))
        .map(|account| account.blobs.len());
    assert_eq!(plan["totals"]["blobs"], blobs.sum::<usize>());
    assert_eq!(plan["totals"]["blobs_missing"], 0);
    let only = world.with_admin(&["--dry-run", "--only", active]);
    let plan: Value = serde_json::from_str(&only.stdout).expect("JSON");
    assert_eq!(plan["totals"]["accounts"], 1, "{}", only.stderr);
    let except = world.with_admin(&["--dry-run", "--except", active]);
    let plan: Value = serde_json::from_str(&except.stdout).expect("JSON");
    assert_eq!(plan["totals"]["accounts"], restored - 1, "{}", except.stderr);
    // Without the admin, nobody would keep down what was taken down; nor is there an invite code.
    let alone = world.restore(&["--dry-run"]);
    assert_eq!(alone.code, 1, "{}", alone.stderr);
    for what in ["needs_admin", "--invite-code-file"] {
        assert!(alone.stdout.contains(what), "{what}: {}", alone.stdout);
    }
    let unknown = world.restore(&["--only", "did:plc:ewvi7nxzyoun6zhxrhs64oiz"]);
    assert_eq!(unknown.code, 2, "{}", unknown.stderr);
    let open = world.sandbox.folder().join("open.tsv");
    std::fs::write(&open, "").expect("writes");
    let rotation = world.rotation.clone();
    let wrong = world.sandbox.folder().join("wrong.key");
    std::fs::write(&wrong, "11".repeat(32)).expect("writes");
    world.rotation = wrong;
    let other = world.with_admin(&["--dry-run"]);
    assert_eq!(other.code, 1, "{}", other.stderr);
    assert!(other.stdout.contains("is not one of the identity's"));
    world.rotation = rotation;
    let own = std::mem::replace(&mut world.passwords, open);
    let shown = world.with_admin(&[]);
    assert_eq!(shown.code, 1, "{}", shown.stderr);
    assert!(shown.stderr.contains("others can read it"), "{}", shown.stderr);
    world.passwords = own;
    for account in accounts.iter().filter(|account| account.fate != "moved") {
        assert_eq!(standing(&world.sandbox.url_of(1), &account.did), "RepoNotFound");
    }
}
