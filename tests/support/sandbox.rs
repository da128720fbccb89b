//! The sandbox: the real PDS, PLC directory and S3 server that `deploy/sandbox/sandbox` starts.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::{http, say};

/// A collection whose keys may be any.
pub const NOTES: &str = "com.example.sandbox.note";

/// One sandbox in a folder of its own. Everything that it started is stopped when this is dropped.
pub struct Sandbox {
    folder: tempfile::TempDir,
}

/// What `sandbox compare` counted when all was equal.
#[derive(Debug, Clone, Copy)]
pub struct Compared {
    /// Accounts that are equal.
    pub accounts: u64,
    /// Records of these.
    pub records: u64,
    /// Blobs that the mirror gave as the PDS does.
    pub blobs: u64,
    /// Snapshots that were opened with `zstd -d`, read and proven.
    pub snapshots: u64,
    /// Blobs of the archive.
    pub archived_blobs: u64,
}

impl Compared {
    /// For the line of counts.
    pub fn text(&self) -> String {
        format!(
            "equal: {} accounts, {} records, {} blobs, {} snapshots, {} archived blobs",
            self.accounts, self.records, self.blobs, self.snapshots, self.archived_blobs
        )
    }
}

/// A command of the sandbox, on no particular folder yet.
fn script() -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/sandbox/sandbox"));
    command.stdin(Stdio::null());
    command
}

/// What a command said, as one text for a panic.
fn told(output: &Output) -> String {
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    format!(
        "{}\n{}\n{}",
        output.status,
        said(&output.stdout),
        said(&output.stderr)
    )
}

impl Sandbox {
    /// Starts a sandbox with these services (`pds,plc,s3`). A sandbox that cannot be installed fails the test.
    pub fn up(with: &str) -> Self {
        Self::up_as(&["--with", with])
    }

    /// The same, with other options of `sandbox up`: `--pds 2`, `--pds-version`, `--pds-env`.
    pub fn up_as(options: &[&str]) -> Self {
        let installed = script()
            .arg("install")
            .output()
            .expect("the sandbox's script runs");
        assert!(
            installed.status.success(),
            "the sandbox cannot be installed, so nothing was tested: {}",
            told(&installed)
        );
        let folder = tempfile::Builder::new()
            .prefix("firekeep-e2e-")
            .tempdir()
            .expect("a temporary folder");
        let sandbox = Self { folder };
        let mut arguments = vec!["up"];
        arguments.extend(options);
        sandbox.run(&arguments);
        sandbox
    }

    /// The folder; `box` below it is the sandbox's own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn own_folder(&self) -> PathBuf {
        self.folder().join("box")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = script();
        let (name, rest) = arguments.split_first().expect("a command");
        command.arg(name).arg("--dir").arg(self.own_folder()).args(rest);
        command
    }

    /// Runs a command that must succeed; what it printed.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self
            .command(arguments)
            .output()
            .expect("the sandbox's script runs");
        assert!(
            output.status.success(),
            "sandbox {} failed: {}",
            arguments.join(" "),
            told(&output)
        );
        String::from_utf8(output.stdout).expect("it prints text")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.run(arguments);
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON: {error}\n{text}"))
    }

    fn file(&self, name: &str) -> Value {
        let text = std::fs::read_to_string(self.own_folder().join(name)).expect("the sandbox's file");
        serde_json::from_str(&text).expect("it is JSON")
    }

    /// What `sandbox.json` says.
    pub fn info(&self) -> Value {
        self.file("sandbox.json")
    }

    fn text(&self, pointer: &str) -> String {
        let info = self.info();
        let value = info.pointer(pointer).and_then(Value::as_str);
        value
            .unwrap_or_else(|| panic!("sandbox.json has no {pointer}"))
            .to_owned()
    }

    /// The first PDS's address.
    pub fn pds_url(&self) -> String {
        self.url_of(0)
    }

    /// The first PDS's folder.
    pub fn pds_data(&self) -> PathBuf {
        PathBuf::from(self.text("/pds/0/data_dir"))
    }

    /// A PDS's address: `0` is `pds1`.
    pub fn url_of(&self, pds: usize) -> String {
        self.text(&format!("/pds/{pds}/url"))
    }

    fn copy_of_pds(&self) -> PathBuf {
        self.folder().join("copy-of-pds1")
    }

    /// Copies all that the first PDS has, which must be stopped.
    pub fn back_up_pds(&self) {
        copy_folder(&self.pds_data(), &self.copy_of_pds());
    }

    /// Puts that copy in the place of what the first PDS has, which must be stopped.
    pub fn restore_pds(&self) {
        let data = self.pds_data();
        std::fs::remove_dir_all(&data).expect("the PDS's folder");
        copy_folder(&self.copy_of_pds(), &data);
    }

    /// One of the acts of `sandbox account`; what it printed.
    pub fn account(&self, act: &str, did: &str, options: &[&str]) -> String {
        let mut arguments = vec!["account", act, "--did", did];
        arguments.extend(options);
        self.run(&arguments)
    }

    /// Makes an account at a PDS (`pds2`); its DID.
    pub fn create_account(&self, handle: &str, pds: &str) -> String {
        let made = self.json(&["account", "create", "--handle", handle, "--pds", pds]);
        made["did"].as_str().expect("a DID").to_owned()
    }

    /// What the admin of the first PDS does to an account, as quickly as it can be done.
    pub fn take_down(&self, did: &str, applied: bool) {
        let body = serde_json::json!({
            "subject": { "$type": "com.atproto.admin.defs#repoRef", "did": did },
            "takedown": { "applied": applied, "ref": "a test" },
        });
        let (url, password) = (self.pds_url(), self.text("/pds/0/admin_password"));
        let path = "/xrpc/com.atproto.admin.updateSubjectStatus";
        let answer = http::post(&url, path, &http::basic("admin", &password), &body);
        let answer = answer.expect("the PDS answers");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// The PLC directory's address.
    pub fn plc_url(&self) -> String {
        self.text("/plc/url")
    }

    /// A value of the S3 server: `endpoint`, `bucket`, `region`, `access_key`, `secret_key`.
    pub fn s3(&self, key: &str) -> String {
        self.text(&format!("/s3/{key}"))
    }

    /// The DIDs of all accounts.
    pub fn dids(&self) -> Vec<String> {
        let accounts = self.file("accounts.json");
        let dids = accounts.as_array().expect("a list").iter();
        dids.map(|account| account["did"].as_str().expect("a DID").to_owned())
            .collect()
    }

    /// Makes accounts, records and blobs.
    pub fn populate(&self, accounts: u64, records: u64, blobs: u64) {
        let (a, r, b) = (accounts.to_string(), records.to_string(), blobs.to_string());
        let made = self.json(&["populate", "--accounts", &a, "--records", &r, "--blobs", &b]);
        assert_eq!(made["records"], records, "populate makes what is asked for");
        assert_eq!(made["blobs"], blobs, "populate makes what is asked for");
    }

    /// Stops a service.
    pub fn stop(&self, service: &str) {
        self.run(&["stop", service]);
    }

    /// Kills a service.
    pub fn kill(&self, service: &str) {
        self.run(&["kill", service]);
    }

    /// Starts the second PDS again with this setting, which it keeps.
    pub fn restart_second(&self, setting: &str) {
        self.stop("pds2");
        self.run(&["start", "pds2", "--pds-env", setting]);
    }

    /// The first PDS's rotation key, in a file of its own.
    pub fn rotation_key(&self) -> PathBuf {
        let state = self.file("state.json");
        let key = state["pds"][0]["rotation_key"].as_str().expect("a key");
        let path = self.folder().join("pds1.key");
        std::fs::write(&path, key).expect("writes");
        path
    }

    /// The token that the first PDS mailed to an account for an operation of its identity: out of its own database, for
    /// no mail is sent here.
    pub fn mailed_token(&self, did: &str) -> String {
        const READER: &str = "import sqlite3, sys\n\
            base = sqlite3.connect(f'file:{sys.argv[1]}/account.sqlite?mode=ro', uri=True)\n\
            print(base.execute(\"select token from email_token where did = ? and purpose = 'plc_operation'\", \
            (sys.argv[2],)).fetchone()[0])";
        let mut command = Command::new("python3");
        let output = command
            .args(["-c", READER])
            .arg(self.pds_data())
            .arg(did)
            .output();
        let output = output.expect("python3 runs: the sandbox needs it too");
        assert!(output.status.success(), "{}", told(&output));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// Starts a service again.
    pub fn start(&self, service: &str) {
        self.run(&["start", service]);
    }

    /// Writes a post; answers its commit's CID.
    pub fn post(&self, did: &str, text: &str) -> String {
        let made = self.json(&["record", "put", "--did", did, "--text", text]);
        made["commit"]["cid"].as_str().expect("a commit").to_owned()
    }

    /// Writes a post with a new picture; the blob's CID.
    pub fn post_picture(&self, did: &str) -> String {
        let made = self.json(&["record", "put", "--did", did, "--picture"]);
        made["blob"].as_str().expect("a blob").to_owned()
    }

    /// Writes a record of [`NOTES`] under this key, or replaces it.
    pub fn note(&self, did: &str, rkey: &str, text: &str) {
        self.run(&[
            "record",
            "put",
            "--collection",
            NOTES,
            "--did",
            did,
            "--rkey",
            rkey,
            "--text",
            text,
        ]);
    }

    /// Deletes such a record.
    pub fn delete_note(&self, did: &str, rkey: &str) {
        self.run(&[
            "record",
            "delete",
            "--collection",
            NOTES,
            "--did",
            did,
            "--rkey",
            rkey,
        ]);
    }

    /// Writes a post with a picture; answers its address, its CID and the blob's CID.
    pub fn picture(&self, did: &str) -> (String, String, String) {
        let made = self.json(&["record", "put", "--did", did, "--picture"]);
        let text = |key: &str| made[key].as_str().expect("a text").to_owned();
        (text("uri"), text("cid"), text("blob"))
    }

    /// The admin takes down, or gives back, an account or (with `--blob CID`, `--record URI --cid CID`) part of it.
    pub fn takedown(&self, act: &str, did: &str, subject: &[&str]) {
        let mut arguments = vec!["account", act, "--did", did];
        arguments.extend(subject);
        self.run(&arguments);
    }

    /// Begins live traffic.
    pub fn churn(&self, rate: u64, seconds: u64) -> Churn {
        let (r, s) = (rate.to_string(), seconds.to_string());
        let seed = (super::random() % 1_000_000).to_string();
        let mut command = self.command(&["churn", "--rate", &r, "--seconds", &s, "--seed", &seed]);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the sandbox's script runs");
        Churn { child: Some(child) }
    }

    /// Compares, and panics with the differences when there are any.
    pub fn compare(&self, options: &[&str]) -> Compared {
        let output = self.compared(options);
        assert!(
            output.status.code() == Some(0),
            "compare {}: {}",
            options.join(" "),
            shortened(&told(&output))
        );
        let found: Value = serde_json::from_slice(&output.stdout).expect("compare prints JSON");
        let count = |key: &str| found["counts"][key].as_u64().expect("a count");
        Compared {
            accounts: count("accounts"),
            records: count("records"),
            blobs: count("blobs"),
            snapshots: count("snapshots"),
            archived_blobs: count("archived_blobs"),
        }
    }

    /// The differences that `compare` finds, one by one: what each says.
    pub fn differences(&self, options: &[&str]) -> Vec<String> {
        let output = self.compared(options);
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "compare {}: {}",
            options.join(" "),
            told(&output)
        );
        let found: Value = serde_json::from_slice(&output.stdout).expect("compare prints JSON");
        let list = found["differences"].as_array().expect("a list").iter();
        list.map(|one| one["what"].as_str().expect("a text").to_owned())
            .collect()
    }

    fn compared(&self, options: &[&str]) -> Output {
        let mut command = self.command(&["compare", "--json"]);
        command.args(options).output().expect("the sandbox's script runs")
    }
}

fn copy_folder(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "{} is copied",
        from.display()
    );
}

/// The beginning of a long text: a mirror that lost everything would fill the log.
fn shortened(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().take(60).collect();
    if text.lines().count() > lines.len() {
        lines.push("…");
    }
    lines.join("\n")
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // `down` goes by process id, of what this sandbox has started.
        let downed = self.command(&["down"]).output();
        if !downed.as_ref().is_ok_and(|output| output.status.success()) {
            say(&format!(
                "e2e: the sandbox in {} could not be stopped",
                self.own_folder().display()
            ));
        }
        if std::env::var_os("FIREKEEP_E2E_KEEP").is_some() {
            self.folder.disable_cleanup(true);
            say(&format!("e2e: kept {}", self.folder().display()));
        }
    }
}

/// Live traffic, while it lasts.
pub struct Churn {
    child: Option<Child>,
}

/// What live traffic did.
#[derive(Debug, Clone, Copy)]
pub struct Churned {
    /// Commits that the PDS acknowledged.
    pub commits: u64,
    /// Records made.
    pub creates: u64,
    /// Records changed.
    pub updates: u64,
    /// Records deleted.
    pub deletes: u64,
    /// Blobs uploaded.
    pub blobs: u64,
    /// Writes that failed: most often because the PDS was down.
    pub errors: u64,
}

impl Churned {
    /// Panics unless the PDS took the writes. A few may fail while it is up: the traffic now and then deletes a like
    /// that the PDS has replaced by a newer one of the same post.
    pub fn assert_taken(&self) {
        assert!(self.commits > 0 && self.errors * 20 <= self.commits, "{self:?}");
    }

    /// For the line of counts.
    pub fn text(&self) -> String {
        format!(
            "churn {} commits ({} creates, {} updates, {} deletes, {} blobs)",
            self.commits, self.creates, self.updates, self.deletes, self.blobs
        )
    }
}

impl Churn {
    /// Waits until it ends by itself.
    pub fn wait(mut self) -> Churned {
        let mut child = self.child.take().expect("it is waited for once");
        let mut text = String::new();
        let mut out = child.stdout.take().expect("its output is piped");
        out.read_to_string(&mut text).expect("it prints text");
        let status = child.wait().expect("it ends");
        assert!(status.success(), "churn failed: {status}\n{text}");
        let did: Value = serde_json::from_str(&text).expect("churn prints JSON");
        let count = |key: &str| did[key].as_u64().expect("a count");
        Churned {
            commits: count("commits"),
            creates: count("creates"),
            updates: count("updates"),
            deletes: count("deletes"),
            blobs: count("blobs"),
            errors: count("errors"),
        }
    }

    /// Asks it to end, and waits.
    pub fn end(self) -> Churned {
        let pid = self.child.as_ref().expect("it runs").id();
        super::firekeep::signal(pid, "TERM");
        self.wait()
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended in this moment.
            let _ended = child.kill();
            let _status = child.wait();
        }
    }
}
