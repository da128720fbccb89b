//! Restores that others stand in the way of: a directory that refuses or is busy, a PDS that dies midway, an identity
//! that somebody took over. Each says what is wrong, leaves the identity where it was, and goes on later.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::restore::{Before, PASSWORD, World, identity, text};
use crate::support::firekeep::{Ended, signal};
use crate::support::gate::{Gate, Refusal};
use crate::support::http;
use crate::support::{report, wait_for};

#[test]
fn restore_faults() {
    let began = Instant::now();
    let (mut world, accounts) = World::lost(2);
    let [first, second] = &accounts[..] else {
        panic!("two accounts")
    };
    let archive = world.archive.clone();
    let from = ["--from", archive.as_str()];
    world.destroy_pds1();
    let gate = Gate::start(&world.sandbox.plc_url());
    world.plc = gate.url.clone();
    let setting = format!("PDS_DID_PLC_URL={}", gate.url);
    world.sandbox.restart_second(&setting);
    let refused = directory_refuses(&mut world, first, &from, &gate);
    dies_midway(&mut world, first, &from, &gate);
    taken_over(&mut world, second, &from);
    world.check_secrets(&accounts);
    let counts = format!(
        "a directory that refused {refused} operations, a PDS that was killed under a restore, an identity that was \
         taken over: both accounts are back"
    );
    report("restore_faults", began, &counts);
}

fn endpoint(world: &World, account: &Before) -> Value {
    identity(&world.sandbox, &account.did)["data"]["services"]["atproto_pds"]["endpoint"].clone()
}

fn is_absent(world: &World, account: &Before) -> bool {
    let path = format!("/xrpc/com.atproto.sync.getRepoStatus?did={}", account.did);
    http::get(&world.sandbox.url_of(1), &path)
        .expect("answers")
        .status
        == 400
}

const INVALID: Refusal = Refusal {
    status: "400 Bad Request",
    headers: "",
    body: "{\"message\":\"Invalid signature on op\"}",
    times: u64::MAX,
};
const BUSY: Refusal = Refusal {
    status: "429 Too Many Requests",
    headers: "retry-after: 3600\r\n",
    body: "{\"message\":\"Too Many Requests\"}",
    times: u64::MAX,
};

/// The first operation is refused, or put off for too long: there is no account then, and nothing was changed.
fn directory_refuses(world: &mut World, account: &Before, from: &[&str], gate: &Gate) -> u64 {
    let with = [
        "--handle",
        "one-back.pds2.test",
        "--rotation-key-file",
        text(&account.key),
    ];
    let before = identity(&world.sandbox, &account.did);
    let mut refused = 0;
    for (refusal, what) in [
        (INVALID, "Invalid signature on op"),
        (BUSY, "to go on in 60 minutes"),
    ] {
        gate.refuse(refusal);
        let ended = world.restore(account, from, &with, None);
        assert_eq!(ended.code, 1, "{what}: {}", ended.stderr);
        for part in [
            what,
            "did not take the operation",
            "is as before",
            "what was done is in",
        ] {
            assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
        }
        let count = gate.open();
        assert!(count > 0, "the gate was asked");
        refused += count;
        assert_eq!(identity(&world.sandbox, &account.did), before);
        assert!(is_absent(world, account));
    }
    refused
}

/// The new PDS is killed while blobs come, and is back in time; then the directory refuses the operation that would
/// point to it, though it was patient with the first. Meanwhile nobody sees a secret of the process.
fn dies_midway(world: &mut World, account: &Before, from: &[&str], gate: &Gate) {
    let with = [
        "--handle",
        "one-back.pds2.test",
        "--rotation-key-file",
        text(&account.key),
    ];
    gate.refuse(Refusal {
        headers: "retry-after: 1\r\n",
        times: 2,
        ..BUSY
    });
    let cores = world.sandbox.folder().join("cores");
    std::fs::create_dir(&cores).expect("a folder");
    let stopped = Stopped::start(world, account, &[from, &with], "blobs-half", &cores);
    assert_eq!(gate.open(), 2, "a directory that is busy was asked again");
    stopped.check_secrets(world, account);
    // Without the new PDS for good, then with one that comes back.
    let ended = stopped.crash();
    assert!(
        ended.contains("SIGABRT") || ended.contains("signal: 6"),
        "{ended}"
    );
    assert_eq!(
        std::fs::read_dir(&cores).expect("lists").count(),
        0,
        "no core was left"
    );
    assert!(
        leaves_a_core(&world.sandbox.folder().join("control")),
        "others do leave one"
    );
    let stopped = Stopped::start(world, account, &[from, &with], "blobs-half", &cores);
    world.sandbox.kill("pds2");
    gate.refuse(INVALID);
    signal(stopped.pid(), "CONT");
    world.sandbox.start("pds2");
    let ended = world.ended(stopped.wait());
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    for part in [
        "uploading",
        "pointing the identity",
        "still points to the old PDS",
    ] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    assert!(gate.open() > 0, "the directory was asked");
    assert_ne!(endpoint(world, account), world.sandbox.url_of(1).as_str());
    let done = world.restore(account, from, &with, None);
    world.check(account, "one-back.pds2.test", &done);
}

/// Somebody with the PDS's key takes the user's out. The user's cannot sign then, can undo that, and can be used again.
fn taken_over(world: &mut World, account: &Before, from: &[&str]) {
    let key = ["--rotation-key-file", text(&account.key)];
    let pds_key = world.sandbox.rotation_key();
    let thief = ["--rotation-key-file", text(&pds_key)];
    let user = identity(&world.sandbox, &account.did)["data"]["rotationKeys"][0].clone();
    let user = user.as_str().expect("a key");
    let plc = world.plc.clone();
    let act = |world: &mut World, act: &str, more: &[&str]| -> Ended {
        let fixed = ["plc", act, &account.did, "--plc-url", &plc, "--dev-mode"];
        let ended = world.firekeep.alone(&[&fixed, more].concat());
        world.ended(ended)
    };
    let drop = ["--drop-rotation-key", user, "--yes"];
    let taken = act(world, "update", &[&thief[..], &drop].concat());
    assert_eq!(taken.code, 0, "{}", taken.stderr);
    let with = [["--handle", "two-back.pds2.test"], key].concat();
    let ended = world.restore(account, from, &with, None);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    for part in ["no longer in the identity's list", "firekeep plc undo"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    let watched = act(world, "watch", &["--once"]);
    assert_eq!(watched.code, 1, "{}", watched.stderr);
    for part in ["- rotation key 1", "for 72 h more", user] {
        assert!(watched.stdout.contains(part), "{part}: {}", watched.stdout);
    }
    let weak = act(world, "undo", &[&thief[..], &["--yes"]].concat());
    assert_eq!(weak.code, 1);
    assert!(
        weak.stderr.contains("cannot undo") && weak.stderr.contains(user),
        "{}",
        weak.stderr
    );
    let before = identity(&world.sandbox, &account.did);
    // Two operations of weaker keys can be undone by then: the sandbox's own, which put the user's key there, cannot.
    let dry = act(world, "undo", &[&key[..], &["--dry-run"]].concat());
    assert_eq!(dry.code, 0, "{}", dry.stderr);
    assert!(
        dry.stdout.contains(&format!("+ rotation key 1  {user}")),
        "{}",
        dry.stdout
    );
    assert_eq!(
        identity(&world.sandbox, &account.did),
        before,
        "a dry run sends nothing"
    );
    let undone = act(world, "undo", &[&key[..], &["--yes"]].concat());
    assert_eq!(undone.code, 0, "{}", undone.stderr);
    assert_eq!(
        identity(&world.sandbox, &account.did)["data"],
        account.identity["data"]
    );
    // The new PDS takes no such large repository, and then no large blobs, at first.
    world.sandbox.restart_second("PDS_BLOB_UPLOAD_LIMIT=50");
    let tight = world.restore(account, from, &with, None);
    assert_eq!(tight.code, 1, "{}", tight.stderr);
    for part in ["answered 413", "was not activated", "PDS_BLOB_UPLOAD_LIMIT"] {
        assert!(tight.stderr.contains(part), "{part}: {}", tight.stderr);
    }
    assert_ne!(endpoint(world, account), world.sandbox.url_of(1).as_str());
    // A log with an operation that was undone is as good as any.
    world.sandbox.restart_second("PDS_BLOB_UPLOAD_LIMIT=30000");
    let short = world.restore(account, from, &with, None);
    assert_eq!(short.code, 3, "{}", short.stderr);
    assert!(
        short.stderr.contains("were undone by a stronger key"),
        "{}",
        short.stderr
    );
    let said: Value = serde_json::from_str(&short.stdout).expect("JSON");
    assert_eq!(said["blobs_missing"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        said["blobs_missing"][0]["why"],
        "it is larger than the new PDS takes"
    );
    world.sandbox.restart_second("PDS_BLOB_UPLOAD_LIMIT=");
    let done = world.restore(account, from, &with, None);
    world.check(account, "two-back.pds2.test", &done);
}

/// A restore that waits at a point, allowed to leave a core in a folder.
struct Stopped {
    child: std::process::Child,
}

impl Stopped {
    fn start(world: &World, account: &Before, more: &[&[&str]], point: &str, folder: &Path) -> Self {
        let arguments = world.arguments(account, more);
        let mut command = unlimited(folder);
        command.arg(env!("CARGO_BIN_EXE_firekeep")).args(&arguments);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("RESTORE_STOP_AT", point);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let pid = child.id();
        wait_for(&format!("the restore stops at {point}"), || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
            assert_ne!(state, Some('Z'), "it ended before {point}");
            if state == Some('T') { Ok(()) } else { Err(state) }
        });
        Self { child }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What every user of the machine can see of it.
    fn check_secrets(&self, world: &World, account: &Before) {
        let key = std::fs::read_to_string(&account.key).expect("reads");
        for file in ["cmdline", "environ"] {
            let seen = std::fs::read(format!("/proc/{}/{file}", self.pid())).expect("reads");
            let seen = String::from_utf8_lossy(&seen);
            assert!(!seen.contains(PASSWORD) && !seen.contains(key.trim()), "{file}");
            assert!(
                file != "cmdline" || seen.contains(text(&world.password)),
                "it is our process"
            );
        }
    }

    /// Crashes it; how it ended.
    fn crash(mut self) -> String {
        signal(self.pid(), "ABRT");
        signal(self.pid(), "CONT");
        self.child.wait().expect("it ends").to_string()
    }

    fn wait(self) -> Ended {
        let output = self.child.wait_with_output().expect("it ends");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended {
            code: output.status.code().expect("it ends by itself"),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

/// A shell that runs its arguments in a folder, where they may leave cores.
fn unlimited(folder: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .current_dir(folder)
        .args(["-c", "ulimit -c unlimited; exec \"$@\"", "sh"]);
    command
}

/// Whether a program that crashes here leaves a core: else that ours left none says nothing.
fn leaves_a_core(folder: &Path) -> bool {
    std::fs::create_dir_all(folder).expect("a folder");
    let ended = unlimited(folder).args(["sh", "-c", "kill -ABRT $$"]).status();
    assert!(ended.is_ok_and(|status| !status.success()));
    std::fs::read_dir(folder).expect("lists").count() > 0
}
