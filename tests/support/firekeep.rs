//! Firekeep as its users have it: a process with flags, a log, two listeners and signals.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::http::{self, Answer};
use super::metrics::Metrics;
use super::sandbox::Sandbox;
use super::{free_port, say, wait_for};

/// A stop takes at most this long: that is a promise, and the only time that decides a verdict.
pub const STOP_PROMISE: Duration = Duration::from_secs(30);

/// How Firekeep is started.
#[derive(Clone)]
pub struct Firekeep {
    home: PathBuf,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// The port of XRPC.
    pub listen: u16,
    /// The port of metrics and administration.
    pub admin: u16,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// How a Firekeep that ended by itself went.
#[derive(Debug)]
pub struct Ended {
    /// The exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it printed to the other stream.
    pub stderr: String,
}

impl Firekeep {
    /// One that follows the sandbox's PDS and keeps its data in `name` below the sandbox's folder.
    pub fn new(sandbox: &Sandbox, name: &str) -> Self {
        let (pds, plc) = (sandbox.pds_url(), sandbox.plc_url());
        Self::bare(sandbox, name).args(&["--host", &pds, "--plc-url", &plc, "--dev-mode"])
    }

    /// One that follows these of its PDSes: `0` is `pds1`.
    pub fn following(sandbox: &Sandbox, name: &str, pdses: &[usize]) -> Self {
        let plc = sandbox.plc_url();
        let bare = Self::bare(sandbox, name).args(&["--plc-url", &plc, "--dev-mode"]);
        let with = |setup: Self, pds: &usize| setup.args(&["--host", &sandbox.url_of(*pds)]);
        pdses.iter().fold(bare, with)
    }

    /// One that follows nothing yet.
    pub fn bare(sandbox: &Sandbox, name: &str) -> Self {
        let home = sandbox.folder().join("home");
        std::fs::create_dir_all(&home).expect("a folder");
        Self {
            home,
            data_dir: sandbox.folder().join(name),
            listen: free_port(),
            admin: free_port(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// With more flags of `run`.
    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|text| (*text).to_owned()));
        self
    }

    /// With a variable of the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The default archive.
    pub fn archive(&self) -> PathBuf {
        self.data_dir.join("archive")
    }

    /// The address of XRPC.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.listen)
    }

    /// A bare command: nothing of our environment or folder reaches it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firekeep"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.home)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.home)
            .stdin(Stdio::null());
        command
    }

    fn run_command(&self) -> Command {
        let mut command = self.command();
        command
            .arg("run")
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--listen", &format!("127.0.0.1:{}", self.listen)])
            .args(["--admin-listen", &format!("127.0.0.1:{}", self.admin)])
            .args(&self.arguments);
        command
    }

    /// Starts it, and does not wait for anything.
    pub fn spawn(&self) -> Running {
        let name = self.data_dir.file_name().expect("a name").to_string_lossy();
        let log = self.home.join(format!("{name}.log"));
        let out = self.home.join(format!("{name}.out"));
        let file = |path: &Path| {
            let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
            opened.expect("a log file")
        };
        let child = self
            .run_command()
            .stdout(file(&out))
            .stderr(file(&log))
            .spawn()
            .expect("firekeep starts");
        Running {
            setup: self.clone(),
            child,
            ended: false,
            log,
            out,
        }
    }

    /// Starts it and waits until it is ready.
    pub fn start(&self) -> Running {
        let mut running = self.spawn();
        running.wait_ready();
        running
    }

    /// Runs it, expecting that it ends by itself.
    pub fn refused(&self) -> Ended {
        let mut command = self.run_command();
        ended(&mut command)
    }

    /// Runs a command of firekeep that knows no daemon.
    pub fn alone(&self, arguments: &[&str]) -> Ended {
        ended(self.command().args(arguments))
    }

    /// Runs another command of firekeep, with the address of this daemon.
    pub fn ask(&self, arguments: &[&str]) -> Ended {
        let mut command = self.command();
        command
            .args(arguments)
            .args(["--admin-listen", &format!("127.0.0.1:{}", self.admin)]);
        ended(&mut command)
    }
}

/// Runs to the end; a process that goes on instead is killed, and that is told.
fn ended(command: &mut Command) -> Ended {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("firekeep starts");
    // Read meanwhile: more than a pipe holds would keep it from ending.
    let pid = child.id();
    let (done, patience) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let late = patience.recv_timeout(super::PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if late {
            signal(pid, "KILL");
        }
        late
    });
    let output = child.wait_with_output().expect("its output");
    drop(done);
    if watchdog.join().expect("it does not panic") {
        panic!("firekeep did not end by itself: {command:?}\n{}", told(&output));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended {
        code: output
            .status
            .code()
            .unwrap_or_else(|| panic!("firekeep was ended by a signal: {}", told(&output))),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Sends a signal to a process of ours. The shell's own `kill` is on every machine.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("sh")
        .arg("-c")
        .arg(format!("kill -{name} {pid}"))
        .status();
    assert!(sent.is_ok_and(|status| status.success()), "process {pid} is gone");
}

/// A Firekeep that runs; killed, by its own process id, when this is dropped.
pub struct Running {
    /// How it was started.
    pub setup: Firekeep,
    child: Child,
    ended: bool,
    log: PathBuf,
    out: PathBuf,
}

impl Running {
    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The log so far, of all lives with this data folder.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log")
    }

    /// What it printed to stdout so far.
    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.out).expect("what it printed")
    }

    /// Panics when the process has ended.
    fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().expect("a child") {
            self.ended = true;
            panic!("firekeep ended by itself: {status}\n{}", self.tail());
        }
    }

    fn tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    fn wait_ready(&mut self) {
        let admin = self.admin_url();
        wait_for("firekeep is ready", || {
            self.assert_alive();
            match http::get(&admin, "/readyz") {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(error) => Err(error.to_string()),
            }
        });
    }

    /// Where it is administered.
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.setup.admin)
    }

    /// Asks the private listener for what `firekeep status --json` prints, through that command.
    pub fn status(&mut self) -> Status {
        self.assert_alive();
        let said = self.setup.ask(&["status", "--json"]);
        assert_eq!(said.code, 0, "firekeep status: {}", said.stderr);
        Status(serde_json::from_str(&said.stdout).expect("status prints JSON"))
    }

    /// Waits until the status is as it should be; `fit` answers why it is not.
    pub fn wait_status(&mut self, what: &str, fit: impl Fn(&Status) -> bool) -> Status {
        wait_for(what, || {
            let status = self.status();
            if fit(&status) { Ok(status) } else { Err(status.0) }
        })
    }

    /// Waits until every account and every blob is here.
    pub fn wait_filled(&mut self, accounts: u64) -> Status {
        self.wait_status("the mirror is filled", |status| {
            status.accounts("held") == accounts && status.host()["listed"] == true && status.settled()
        })
    }

    /// Waits until everything that the PDS has emitted is applied, and no blob is still to come.
    pub fn wait_caught_up(&mut self, sandbox: &Sandbox) -> Status {
        let last = super::stream::Emitted::read(sandbox).last();
        self.wait_status(&format!("event {last} is applied"), |status| {
            status.cursor() >= last && status.settled()
        })
    }

    /// Waits until no blob counts as missing. One whose record was deleted before it could be fetched counts until it
    /// is asked for once more, some seconds later.
    pub fn wait_none_missing(&mut self) -> Status {
        self.wait_status("no blob is missing", |status| status.blobs("missing") == 0)
    }

    /// Runs a command that prints JSON; its exit code and what it printed.
    fn told(&self, arguments: &[&str]) -> (i32, Value) {
        let said = self.setup.ask(arguments);
        let what = arguments.join(" ");
        let printed = serde_json::from_str(&said.stdout);
        let printed = printed.unwrap_or_else(|_| panic!("firekeep {what}: {}{}", said.stdout, said.stderr));
        (said.code, printed)
    }

    /// What `firekeep alarms --json` lists: of each its kind and subject.
    pub fn alarms(&self) -> Vec<(String, String)> {
        let (code, told) = self.told(&["alarms", "--json"]);
        assert_eq!(code, 0, "{told}");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let alarms = told["alarms"].as_array().expect("a list").iter();
        alarms
            .map(|one| (text(&one["kind"]), text(&one["subject"])))
            .collect()
    }

    /// The message of an alarm that stands.
    pub fn alarm(&self, kind: &str, subject: &str) -> String {
        let (_, told) = self.told(&["alarms", "--json"]);
        let mut alarms = told["alarms"].as_array().expect("a list").iter();
        let found = alarms.find(|one| one["kind"] == kind && one["subject"] == subject);
        let found = found.unwrap_or_else(|| panic!("no alarm {kind} {subject}: {told}"));
        found["message"].as_str().expect("a text").to_owned()
    }

    /// What `firekeep accounts --json` says of an account.
    pub fn account(&self, did: &str) -> Value {
        let (code, told) = self.told(&["accounts", "--json"]);
        assert_eq!(code, 0, "{told}");
        let mut accounts = told["accounts"].as_array().expect("a list").iter();
        let found = accounts.find(|account| account["did"] == did);
        found.cloned().unwrap_or(Value::Null)
    }

    /// Waits until `firekeep accounts` says this of an account.
    pub fn wait_account(&mut self, did: &str, what: &str, fit: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || {
            self.assert_alive();
            let account = self.account(did);
            if fit(&account) { Ok(account) } else { Err(account) }
        })
    }

    /// Waits until the commit of this CID is what it serves as an account's head.
    pub fn wait_head(&mut self, did: &str, commit: &str) {
        wait_for(&format!("{did} is at {commit}"), || {
            self.assert_alive();
            let head = self.heads(&[did.to_owned()]).remove(did);
            if head.as_ref().is_some_and(|(_, cid)| cid == commit) {
                Ok(())
            } else {
                Err(head)
            }
        });
    }

    /// What `firekeep diff --live --json` finds; whether it says that the head is equal.
    pub fn diff(&self, did: &str) -> (bool, Value) {
        let (code, told) = self.told(&["diff", did, "--live", "--json"]);
        assert!(matches!(code, 0 | 1), "{told}");
        (code == 0, told)
    }

    /// Archives all that is open.
    pub fn snapshot(&mut self) -> u64 {
        let said = self.setup.ask(&["snapshot", "--json"]);
        assert_eq!(said.code, 0, "firekeep snapshot: {}", said.stderr);
        let done: Value = serde_json::from_str(&said.stdout).expect("snapshot prints JSON");
        done["accounts"].as_u64().expect("a count")
    }

    /// A reading of its metrics.
    pub fn metrics(&self) -> Metrics {
        let answer = http::get(&self.admin_url(), "/metrics").expect("metrics");
        assert_eq!(answer.status, 200);
        Metrics::parse(&answer.text())
    }

    /// The same, if it answers: it may not be ready yet.
    pub fn metrics_if_there(&self) -> Option<Metrics> {
        let answer = http::get(&self.admin_url(), "/metrics").ok()?;
        (answer.status == 200).then(|| Metrics::parse(&answer.text()))
    }

    /// A question to its XRPC listener.
    pub fn get(&self, path: &str) -> Answer {
        http::get(&self.setup.url(), path).expect("XRPC answers")
    }

    /// HEAD at its XRPC listener.
    pub fn head(&self, path: &str) -> Answer {
        http::head(&self.setup.url(), path).expect("XRPC answers")
    }

    /// The heads that it serves: rev and commit CID of each account that it gives.
    pub fn heads(&self, dids: &[String]) -> BTreeMap<String, (String, String)> {
        let head = |did: &String| {
            let answer = self.get(&format!("/xrpc/com.atproto.sync.getLatestCommit?did={did}"));
            let body = answer.json();
            let text = |key: &str| body[key].as_str().map(str::to_owned);
            (answer.status == 200).then(|| {
                (
                    did.clone(),
                    (text("rev").expect("a rev"), text("cid").expect("a CID")),
                )
            })
        };
        dids.iter().filter_map(head).collect()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Kills it, as a power cut would.
    pub fn kill_nine(mut self) {
        self.assert_alive();
        self.child.kill().expect("it can be killed");
        let status = self.child.wait().expect("it ends");
        self.ended = true;
        assert_eq!(status.code(), None, "it was killed: {status}");
    }

    /// Waits until it ends by itself; its exit code, and the last line that it logged.
    pub fn wait_end(mut self) -> (Option<i32>, String) {
        let status = wait_for("firekeep ends by itself", || {
            self.child.try_wait().expect("a child").ok_or("it runs")
        });
        self.ended = true;
        let log = self.log();
        (status.code(), log.lines().last().unwrap_or_default().to_owned())
    }

    /// Asks it to stop; it must do so with exit code 0 and within the promised time. How long it took.
    pub fn stop(mut self) -> Duration {
        self.assert_alive();
        let began = Instant::now();
        signal(self.pid(), "TERM");
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(
                began.elapsed() <= STOP_PROMISE,
                "firekeep did not stop within {} s\n{}",
                STOP_PROMISE.as_secs(),
                self.tail()
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        self.ended = true;
        assert_eq!(
            status.code(),
            Some(0),
            "firekeep stops with 0: {status}\n{}",
            self.tail()
        );
        began.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            // It may have ended in this moment.
            let _ended = self.child.kill();
            let _status = self.child.wait();
        }
        if std::thread::panicking() {
            say(&format!("e2e: the end of firekeep's log:\n{}", self.tail()));
        }
    }
}

/// What `firekeep status --json` printed.
#[derive(Debug, Clone)]
pub struct Status(pub Value);

impl Status {
    /// A number below `accounts`.
    pub fn accounts(&self, key: &str) -> u64 {
        self.0["accounts"][key].as_u64().expect("a count")
    }

    /// Accounts in a sync state.
    pub fn sync(&self, state: &str) -> u64 {
        self.0["accounts"]["by_sync"][state].as_u64().unwrap_or(0)
    }

    /// Blobs in a state.
    pub fn blobs(&self, state: &str) -> u64 {
        self.0["blobs"]["by_state"][state].as_u64().unwrap_or(0)
    }

    /// A number below `archive`.
    pub fn archive(&self, key: &str) -> u64 {
        self.0["archive"][key].as_u64().expect("a count")
    }

    /// The one host.
    pub fn host(&self) -> &Value {
        assert_eq!(
            self.0["hosts"].as_array().map(Vec::len),
            Some(1),
            "one host: {}",
            self.0
        );
        &self.0["hosts"][0]
    }

    /// Whether the stream is open.
    pub fn connected(&self) -> bool {
        self.host()["connected"] == true
    }

    /// Where the stream stands.
    pub fn cursor(&self) -> u64 {
        self.host()["cursor"].as_u64().unwrap_or(0)
    }

    /// The word for how well all is protected.
    pub fn standing(&self) -> &str {
        self.0["standing"].as_str().expect("a word")
    }

    /// Whether nothing is waited for: no account, no event, no blob.
    pub fn settled(&self) -> bool {
        self.sync("wanted") == 0 && self.accounts("parked_events") == 0 && self.blobs("wanted") == 0
    }
}
