//! Accounts whose PDS is gone, brought back at another one with nothing but a backup and a rotation key.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::support::alone::{blocks, repository};
use crate::support::firekeep::{Ended, Firekeep};
use crate::support::http;
use crate::support::report;
use crate::support::sandbox::Sandbox;
use crate::support::stream::Emitted;

/// Where a restore is ended as by a crash, in the order of its steps, and whether the identity may point to the new
/// PDS by then.
const CRASHES: [(&str, bool); 13] = [
    ("proof-signed", false),
    ("proof-sent", false),
    ("account", false),
    ("import-sent", false),
    ("import", false),
    ("blobs-half", false),
    ("blobs", false),
    ("identity-signed", false),
    ("identity-sent", true),
    ("identity", true),
    ("activating", true),
    ("active", true),
    ("written", true),
];

pub(super) const PASSWORD: &str = "a-new-password-of-the-user";

/// What an account was before its PDS went.
pub(super) struct Before {
    pub(super) did: String,
    pub(super) car: Vec<u8>,
    pub(super) blobs: BTreeSet<String>,
    pub(super) identity: Value,
    pub(super) key: PathBuf,
    /// Its signing key, as its PDS had it.
    pub(super) signing_key: PathBuf,
}

pub(super) struct World {
    pub(super) sandbox: Sandbox,
    pub(super) firekeep: Firekeep,
    /// The daemon that followed the lost PDS.
    pub(super) mirror: Firekeep,
    pub(super) archive: String,
    pub(super) password: PathBuf,
    /// All that a restore ever printed.
    pub(super) said: String,
    /// By which way the directory is asked.
    pub(super) plc: String,
}

pub(super) fn identity(sandbox: &Sandbox, did: &str) -> Value {
    serde_json::from_str(&sandbox.account("identity", did, &[])).expect("JSON")
}

pub(super) fn blobs(url: &str, did: &str) -> BTreeSet<String> {
    let answer = http::get(
        url,
        &format!("/xrpc/com.atproto.sync.listBlobs?did={did}&limit=1000"),
    );
    let answer = answer.expect("it answers").json();
    let list = answer["cids"].as_array().expect("a list").iter();
    list.map(|cid| cid.as_str().expect("a CID").to_owned()).collect()
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

impl World {
    /// Accounts with user-held keys above their PDS's, archived; then that PDS is destroyed.
    pub(super) fn lost(accounts: u64) -> (Self, Vec<Before>) {
        let sandbox = Sandbox::up_as(&["--with", "pds,plc", "--pds", "2"]);
        let count = accounts.to_string();
        let (records, pictures) = ("60", "9");
        let sizes = ["--accounts", &count, "--records", records, "--blobs", pictures];
        sandbox.run(&[&["populate"], &sizes[..], &["--pds", "pds1"]].concat());
        let archive = format!("file://{}", sandbox.folder().join("archive").display());
        let firekeep = Firekeep::following(&sandbox, "data", &[0]);
        let mut running = firekeep.clone().args(&["--archive", &archive]).start();
        running.wait_filled(accounts);
        let mut all = Vec::new();
        for (number, did) in sandbox.dids().into_iter().enumerate() {
            let key = sandbox.folder().join(format!("user{number}.key"));
            let curve = if number % 2 == 0 { "k256" } else { "p256" };
            let mut command = firekeep.command();
            command.args(["key", "generate", "--curve", curve, "-o", text(&key), "--json"]);
            let made = command.output().expect("firekeep runs");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
            let public = made["keys"][0]["did_key"].as_str().expect("a key");
            sandbox.account("add-key", &did, &["--key", public]);
            sandbox.post_picture(&did);
            // Larger than the repository.
            sandbox.run(&["record", "put", "--did", &did, "--picture", "--pad", "40000"]);
            let url = sandbox.url_of(0);
            let signing_key = sandbox.folder().join(format!("signing{number}.key"));
            let bytes =
                std::fs::read(find(&sandbox.pds_data().join("actors"), &did).join("key")).expect("a key");
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            std::fs::write(&signing_key, digits).expect("writes");
            all.push(Before {
                signing_key,
                car: repository(&url, &did),
                blobs: blobs(&url, &did),
                identity: identity(&sandbox, &did),
                key,
                did,
            });
        }
        running.wait_caught_up(&sandbox);
        running.wait_none_missing();
        running.snapshot();
        running.stop();
        let mut mirror = firekeep.clone().args(&["--archive", &archive]);
        mirror.data_dir = sandbox.folder().join("mirror");
        std::fs::rename(&firekeep.data_dir, &mirror.data_dir).expect("renames");
        let password = sandbox.folder().join("password");
        std::fs::write(&password, format!("{PASSWORD}\n")).expect("writes");
        let plc = sandbox.plc_url();
        let world = Self {
            plc,
            sandbox,
            firekeep,
            mirror,
            archive,
            password,
            said: String::new(),
        };
        (world, all)
    }

    pub(super) fn destroy_pds1(&self) {
        self.sandbox.stop("pds1");
        std::fs::remove_dir_all(self.sandbox.pds_data()).expect("removes");
    }

    /// The command line of a restore to the second PDS.
    pub(super) fn arguments(&self, account: &Before, more: &[&[&str]]) -> Vec<String> {
        let email = format!("{}@mail.test", account.key.file_stem().expect("a name").display());
        let (to, password, data) = (self.sandbox.url_of(1), &self.password, &self.firekeep.data_dir);
        let fixed = [
            "restore",
            "account",
            &account.did,
            "--to",
            &to,
            "--plc-url",
            &self.plc,
            "--dev-mode",
            "--yes",
        ];
        let given = [
            "--json",
            "--email",
            &email,
            "--password-file",
            text(password),
            "--data-dir",
            text(data),
        ];
        let all = fixed.iter().chain(&given).chain(more.iter().copied().flatten());
        all.map(ToString::to_string).collect()
    }

    pub(super) fn restore(
        &mut self,
        account: &Before,
        from: &[&str],
        more: &[&str],
        crash: Option<&str>,
    ) -> Ended {
        let mut firekeep = self.firekeep.clone();
        if let Some(point) = crash {
            firekeep = firekeep.env("RESTORE_CRASH_AT", point);
        }
        let arguments = self.arguments(account, &[from, more]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.ended(firekeep.ask(&arguments))
    }

    /// Remembers what a command printed.
    pub(super) fn ended(&mut self, ended: Ended) -> Ended {
        self.said.push_str(&ended.stdout);
        self.said.push_str(&ended.stderr);
        ended
    }

    /// The account at the second PDS is what it was, and can be used.
    pub(super) fn check(&self, account: &Before, handle: &str, done: &Ended) {
        assert_eq!(done.code, 0, "{}", done.stderr);
        let did = &account.did;
        let said: Value = serde_json::from_str(&done.stdout).expect("JSON");
        assert_eq!(said["blobs"], said["blobs_expected"]);
        assert_eq!(said["blobs"], account.blobs.len());
        let url = self.sandbox.url_of(1);
        // The tree of before: only the commit is another, signed by the new PDS, and the header that names it.
        let now = repository(&url, did);
        let (old, new) = (blocks(&account.car), blocks(&now));
        assert_eq!(
            (old.difference(&new).count(), new.difference(&old).count()),
            (2, 2),
            "{did}"
        );
        assert_eq!(blobs(&url, did), account.blobs);
        let (was, is) = (&account.identity["data"], &identity(&self.sandbox, did)["data"]);
        let keys = |of: &Value| -> Vec<Value> { of["rotationKeys"].as_array().expect("a list").clone() };
        let (kept, all) = (keys(was), keys(is));
        assert_eq!(
            all[..kept.len()],
            kept,
            "every rotation key is kept, in its place"
        );
        assert_eq!(all.len(), kept.len() + 1, "and the new PDS's comes last");
        assert_eq!(is["services"]["atproto_pds"]["endpoint"], url.as_str());
        assert_eq!(
            is["services"]["atproto_labeler"],
            was["services"]["atproto_labeler"]
        );
        assert_eq!(
            is["verificationMethods"]["atproto_label"],
            was["verificationMethods"]["atproto_label"]
        );
        assert_eq!(
            is["alsoKnownAs"],
            serde_json::json!([format!("at://{handle}"), "https://me.test"])
        );
        // It logs in with its new password, and writes.
        self.sandbox.account(
            "adopt",
            did,
            &["--to", "pds2", "--handle", handle, "--password", PASSWORD],
        );
        self.sandbox.post_picture(did);
    }

    /// No secret stands in what was said, or in any file but its own.
    pub(super) fn check_secrets(&self, accounts: &[Before]) {
        let mut texts = vec![("what was printed".to_owned(), self.said.clone().into_bytes())];
        for folder in [&self.firekeep.data_dir, &self.sandbox.folder().join("home")] {
            files(folder, &mut texts);
        }
        assert!(
            texts.iter().any(|(name, _)| name.contains("/restore/")),
            "the ledgers are among them"
        );
        let mut secrets = vec![PASSWORD.to_owned()];
        for account in accounts {
            let key = std::fs::read_to_string(&account.key).expect("reads");
            secrets.push(key.trim()[1..].to_owned());
            secrets.push(std::fs::read_to_string(&account.signing_key).expect("reads"));
        }
        for (name, text) in &texts {
            for secret in &secrets {
                let found = text
                    .windows(secret.len())
                    .any(|window| window == secret.as_bytes());
                assert!(!found, "{name} holds a secret");
            }
            let token = text.windows(8).any(|window| window == b"eyJ0eXAi");
            assert!(!token, "{name} holds a token");
        }
    }
}

/// A PDS keeps each account below two letters of a hash.
fn find(actors: &Path, did: &str) -> PathBuf {
    let shards = std::fs::read_dir(actors).expect("lists");
    let mut places = shards.map(|shard| shard.expect("an entry").path().join(did));
    places.find(|place| place.is_dir()).expect("the account's folder")
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
fn restore() {
    let began = Instant::now();
    let (mut world, accounts) = World::lost(3);
    let [first, second, third] = &accounts[..] else {
        panic!("three accounts")
    };
    let archive = world.archive.clone();
    let from_archive = ["--from", archive.as_str()];
    let (car, folder) = (
        world.sandbox.folder().join("b.car"),
        world.sandbox.folder().join("b"),
    );
    let (out, blobs) = (["-o", text(&car)], ["--blobs", text(&folder)]);
    let export = [
        &["export", &second.did, "--archive", &archive],
        &out[..],
        &blobs[..],
    ]
    .concat();
    let exported = world.firekeep.ask(&export);
    assert_eq!(exported.code, 0, "{}", exported.stderr);
    let from_car = ["--from", text(&car), "--blobs", text(&folder)];
    world.destroy_pds1();
    refused(&mut world, first, second, &from_archive, &from_car);
    killed_everywhere(&mut world, first, &from_archive);
    from_bare_files(&mut world, second, &from_car);
    from_a_daemon(&mut world, third);
    let equal = followed(&world, &accounts);
    world.check_secrets(&accounts);
    let counts = format!(
        "3 accounts of a destroyed PDS are back, one of them killed {} times on the way; {equal}",
        CRASHES.len(),
    );
    report("restore", began, &counts);
}

/// From the archive; killed at every boundary, each time gone on with.
fn killed_everywhere(world: &mut World, account: &Before, from: &[&str]) {
    let key = ["--rotation-key-file", text(&account.key)];
    let with = [["--handle", "one-back.pds2.test"], key].concat();
    for (point, moved) in CRASHES {
        let crashed = world.restore(account, from, &with, Some(point));
        assert_eq!(crashed.code, 99, "{point}: {}", crashed.stderr);
        if point == "blobs-half" {
            away(world, account, from, &with);
        }
        let data = http::get(&world.sandbox.plc_url(), &format!("/{}/data", account.did));
        let data = data.expect("answers").json();
        let pds = &data["services"]["atproto_pds"]["endpoint"];
        assert_eq!(*pds == world.sandbox.url_of(1).as_str(), moved, "{point}");
    }
    let done = world.restore(account, from, &with, None);
    world.check(account, "one-back.pds2.test", &done);
    let operations = &identity(&world.sandbox, &account.did)["operations"];
    assert_eq!(
        *operations, 4,
        "each operation was sent once: genesis, the user's key, a temporary key, the move"
    );
}

/// From a bare CAR and a folder, with a key of the other curve. What the new PDS refuses is said, and can be mended.
fn from_bare_files(world: &mut World, account: &Before, from: &[&str]) {
    let key = ["--rotation-key-file", text(&account.key)];
    let reserved = world.restore(
        account,
        from,
        &[["--handle", "first.pds2.test"], key].concat(),
        None,
    );
    assert_eq!(reserved.code, 1, "{}", reserved.stderr);
    for what in [
        "Reserved handle",
        "choose another handle",
        "still points to the old PDS",
    ] {
        assert!(reserved.stderr.contains(what), "{what}: {}", reserved.stderr);
    }
    let with = [["--handle", "two-back.pds2.test"], key].concat();
    invited(world, account, from, &with);
    // Without its blobs first: they are named, and come when they are given.
    let short = world.restore(account, &from[..2], &with, None);
    assert_eq!(short.code, 3, "{}", short.stderr);
    let said: Value = serde_json::from_str(&short.stdout).expect("JSON");
    let missing = said["blobs_missing"].as_array().map(Vec::len);
    assert_eq!(missing, Some(account.blobs.len()));
    let order = [
        "making the account",
        "importing",
        "uploading",
        "pointing",
        "activating",
    ];
    let places: Vec<usize> = order
        .iter()
        .map(|what| short.stderr.find(what).expect(what))
        .collect();
    assert!(places.is_sorted(), "{}", short.stderr);
    filled_up(world, account, from);
    let done = world.restore(account, from, &with, None);
    world.check(account, "two-back.pds2.test", &done);
    let again = world.restore(account, from, &with, None);
    assert_eq!(
        again.code, 0,
        "a restore that is done is not done again: {}",
        again.stderr
    );
}

/// The account lives, and its PDS says which blobs it misses: they come out of the backup.
fn filled_up(world: &mut World, account: &Before, from: &[&str]) {
    let (plc, password) = (world.plc.clone(), world.password.clone());
    let fixed = [
        "restore",
        "blobs",
        &account.did,
        "--plc-url",
        &plc,
        "--dev-mode",
        "--json",
        "--password-file",
    ];
    let with = [&fixed[..], &[text(&password), "--yes"], from].concat();
    let without = [&fixed[..], &[text(&password), "--yes"], &from[..2]].concat();
    let count = account.blobs.len();
    for (arguments, code, uploaded) in [(&without, 3, 0), (&with, 0, count), (&with, 0, 0)] {
        let ended = world.firekeep.ask(arguments);
        let ended = world.ended(ended);
        assert_eq!(ended.code, code, "{}", ended.stderr);
        let said: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        assert_eq!(said["uploaded"], uploaded, "{said}");
        assert_eq!(
            said["left"].as_array().map(Vec::len),
            Some(if code == 3 { count } else { 0 })
        );
    }
    assert_eq!(blobs(&world.sandbox.url_of(1), &account.did), account.blobs);
}

/// A PDS that wants an invite is told of before anything is sent; one that refuses it is quoted.
fn invited(world: &mut World, account: &Before, from: &[&str], with: &[&str]) {
    world.sandbox.restart_second("PDS_INVITE_REQUIRED=true");
    let code = world.sandbox.folder().join("invite");
    std::fs::write(&code, "nobody-knows-this").expect("writes");
    let wrong = [with, &["--invite-code-file", text(&code)]].concat();
    for (with, what) in [(with, "--invite-code-file"), (&wrong, "InvalidInviteCode")] {
        let ended = world.restore(account, from, with, None);
        assert_eq!(ended.code, 1, "{what}: {}", ended.stderr);
        assert!(ended.stderr.contains(what), "{what}: {}", ended.stderr);
    }
    world.sandbox.restart_second("PDS_INVITE_REQUIRED=false");
}

/// From a running Firekeep, and with the saved signing key: no temporary one is needed.
fn from_a_daemon(world: &mut World, account: &Before) {
    let mirror = world.mirror.start();
    let url = world.mirror.url();
    let keys = ["--rotation-key-file", text(&account.key)];
    let signing = ["--signing-key-file", text(&account.signing_key)];
    let with = [["--handle", "three-back.pds2.test"], keys, signing].concat();
    // Blobs that are too large for the new PDS are named before anything is done.
    world.sandbox.restart_second("PDS_BLOB_UPLOAD_LIMIT=50");
    let dry = world.restore(
        account,
        &["--from", &url],
        &[&with[..], &["--dry-run"]].concat(),
        None,
    );
    assert_eq!(dry.code, 3, "{}", dry.stderr);
    let plan: Value = serde_json::from_str(&dry.stdout).expect("JSON");
    let large = plan["backup"]["blobs_too_large"].as_array();
    assert_eq!(large.map(Vec::len), Some(account.blobs.len()));
    world.sandbox.restart_second("PDS_BLOB_UPLOAD_LIMIT=");
    let done = world.restore(account, &["--from", &url], &with, None);
    let admin = format!("http://127.0.0.1:{}", world.mirror.admin);
    let metrics = http::get(&admin, "/metrics").expect("answers").text();
    assert!(metrics.contains("firekeep_"));
    world.said.push_str(&metrics);
    mirror.stop();
    assert_eq!(identity(&world.sandbox, &account.did)["operations"], 3);
    world.check(account, "three-back.pds2.test", &done);
}

/// The stream of the new PDS tells each account only when it is whole, and a second Firekeep verifies it all.
fn followed(world: &World, accounts: &[Before]) -> String {
    let info = world.sandbox.info();
    let pds2 = info["pds"][1]["data_dir"].as_str().expect("a folder");
    let emitted = Emitted::of(Path::new(pds2));
    for account in accounts {
        // Nothing of an empty repository: the first commit that the network hears of is the whole one.
        let told = emitted.of_account(&account.did);
        assert_eq!(told[..4], ["identity", "account", "identity", "sync"], "{told:?}");
        assert!(
            told.len() > 4 && told[4..].iter().all(|kind| *kind == "append"),
            "{told:?}"
        );
    }
    let follower = Firekeep::following(&world.sandbox, "follower", &[1]);
    let mut running = follower.start();
    running.wait_status("it has all", |status| {
        status.sync("live") == 4 && status.settled()
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
    assert_eq!(equal.accounts, 4);
    running.stop();
    equal.text()
}

/// Without the new PDS, or the directory, nothing goes on and nothing is lost.
fn away(world: &mut World, account: &Before, from: &[&str], with: &[&str]) {
    for service in ["pds2", "plc"] {
        world.sandbox.stop(service);
        let ended = world.restore(account, from, with, None);
        assert_eq!(ended.code, 1, "{service}: {}", ended.stderr);
        world.sandbox.start(service);
    }
}

/// What must not be begun, with the reason and without a trace in the identity.
fn refused(world: &mut World, first: &Before, second: &Before, from_archive: &[&str], from_car: &[&str]) {
    let before = identity(&world.sandbox, &first.did);
    world.sandbox.create_account("taken", "pds2");
    let key = ["--rotation-key-file", text(&first.key)];
    let other = ["--rotation-key-file", text(&second.key)];
    let handle = ["--handle", "one-back.pds2.test"];
    let cases: [(&[&str], Vec<&str>, i32, &str); 7] = [
        (
            from_archive,
            [other, handle].concat(),
            1,
            "is not one of the identity's",
        ),
        (from_car, [key, handle].concat(), 4, "it is the repository of"),
        (
            from_archive,
            [key, ["--handle", "taken.pds2.test"]].concat(),
            1,
            "belongs to did:plc:",
        ),
        (
            from_archive,
            [key, ["--handle", "one-back.pds1.test"]].concat(),
            1,
            "choose one with --handle",
        ),
        (from_archive, key.to_vec(), 1, "choose one with --handle"),
        (
            &["--from", "/nowhere.car"],
            [key, handle].concat(),
            1,
            "cannot read /nowhere.car",
        ),
        (
            &["--from", "file:///nowhere"],
            [key, handle].concat(),
            10,
            "no archive",
        ),
    ];
    for (from, more, code, what) in cases {
        let ended = world.restore(first, from, &more, None);
        assert_eq!(ended.code, code, "{what}: {}", ended.stderr);
        assert!(ended.stderr.contains(what), "{what}: {}", ended.stderr);
    }
    let dry = world.restore(
        first,
        from_archive,
        &[&key[..], &handle, &["--dry-run"]].concat(),
        None,
    );
    assert_eq!(dry.code, 0, "{}", dry.stderr);
    let plan: Value = serde_json::from_str(&dry.stdout).expect("JSON");
    assert_eq!(plan["backup"]["blobs"], first.blobs.len());
    assert_eq!(plan["identity"]["key_place"], 0);
    assert_eq!(plan["steps"].as_array().map(Vec::len), Some(7));
    assert_eq!(identity(&world.sandbox, &first.did), before, "nothing was sent");
    assert!(!world.firekeep.data_dir.exists(), "no ledger was begun");
}
