//! Mistakes: each is told in one line, with its exit code, and harms nothing.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::support::firekeep::{Ended, Firekeep, Status};
use crate::support::http::NoPds;
use crate::support::sandbox::Sandbox;
use crate::support::{inventory, report};

/// The configuration cannot be used.
const CONFIG: i32 = 78;
/// Another process owns what is needed.
const OWNED: i32 = 11;
/// The command line is wrong.
const USAGE: i32 = 2;
/// Something failed.
const FAILED: i32 = 1;

/// Checks of one mistake after the other, counted.
struct Table<'s> {
    sandbox: &'s Sandbox,
    cases: u32,
}

/// The one line for a person; log lines, which are JSON where stderr is no terminal, may stand before it.
fn the_line(ended: &Ended) -> &str {
    let lines: Vec<&str> = ended
        .stderr
        .lines()
        .filter(|line| !line.starts_with('{'))
        .collect();
    assert_eq!(lines.len(), 1, "one line for a person: {}", ended.stderr);
    assert_eq!(ended.stderr.lines().last(), Some(lines[0]), "it is the last word");
    let line = lines[0].strip_prefix("firekeep: ");
    line.unwrap_or_else(|| panic!("it begins with the program's name: {}", lines[0]))
}

impl Table<'_> {
    /// The mistake is refused with this code, and the line names these things.
    fn refused(&mut self, setup: &Firekeep, code: i32, names: &[&str]) {
        self.told(&setup.refused(), code, names);
    }

    fn told(&mut self, ended: &Ended, code: i32, names: &[&str]) {
        let line = the_line(ended);
        assert_eq!(ended.code, code, "{line}");
        assert_eq!(ended.stdout, "", "{line}");
        for name in names {
            assert!(line.contains(name), "{name:?} is named: {line}");
        }
        self.cases += 1;
    }

    /// The same, and it did not even make its data folder.
    fn refused_early(&mut self, setup: &Firekeep, code: i32, names: &[&str]) {
        self.refused(setup, code, names);
        assert!(!setup.data_dir.exists(), "{names:?} leaves nothing behind");
    }

    /// A Firekeep with a data folder that is not there.
    fn fresh(&self) -> Firekeep {
        Firekeep::bare(self.sandbox, &format!("fresh-{}", self.cases))
    }

    /// The same, with the sandbox's PDS.
    fn following(&self) -> Firekeep {
        Firekeep::new(self.sandbox, &format!("fresh-{}", self.cases))
    }

    fn file(&self, text: &str) -> String {
        let path = self.sandbox.folder().join(format!("config-{}.toml", self.cases));
        std::fs::write(&path, text).expect("a file");
        path.to_str().unwrap().to_owned()
    }
}

#[test]
fn bad_input() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc,s3");
    let accounts = 3;
    sandbox.populate(accounts, 40, 4);

    // A mirror with its archive, which no mistake may touch.
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    let filled = running.wait_filled(accounts);
    running.wait_caught_up(&sandbox);
    running.snapshot();
    let mut table = Table {
        sandbox: &sandbox,
        cases: 0,
    };
    taken(&mut table, &firekeep);
    assert_eq!(running.status().accounts("records"), filled.accounts("records"));
    running.stop();
    let archived = inventory(&firekeep.archive());

    wrong_settings(&mut table);
    wrong_sources(&mut table);
    wrong_hosts(&mut table, &firekeep);
    wrong_folders(&mut table);
    wrong_buckets(&mut table, &firekeep);
    away(&mut table, accounts);

    // Nothing was harmed.
    assert_eq!(
        inventory(&firekeep.archive()),
        archived,
        "the archive is as it was"
    );
    let mut running = firekeep.start();
    let after: Status = running.wait_caught_up(&sandbox);
    for key in ["held", "records", "record_bytes"] {
        assert_eq!(after.accounts(key), filled.accounts(key), "{key}");
    }
    assert_eq!(after.archive("accounts_due"), 0);
    let fetched = running.metrics().count("firekeep_resyncs_total", &[]);
    assert_eq!(fetched, 0, "nothing is fetched again");
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    running.stop();
    let counts = format!(
        "{} mistakes told in a line each, then {}",
        table.cases,
        equal.text()
    );
    report("bad_input", began, &counts);
}

/// What the running Firekeep has.
fn taken(table: &mut Table<'_>, running: &Firekeep) {
    let mut same_folder = table.following();
    same_folder.data_dir.clone_from(&running.data_dir);
    table.refused(&same_folder, OWNED, &[running.data_dir.to_str().unwrap()]);
    for admin in [false, true] {
        let mut same_port = table.following();
        let (port, setting) = if admin {
            same_port.admin = running.admin;
            (running.admin, "admin_listen")
        } else {
            same_port.listen = running.listen;
            (running.listen, "listen")
        };
        table.refused_early(&same_port, CONFIG, &[&port.to_string(), setting, "in use"]);
    }
}

/// Values that cannot be: told before anything is opened.
fn wrong_settings(table: &mut Table<'_>) {
    table.refused_early(&table.fresh(), CONFIG, &["no PDS to follow", "--host"]);
    let http = table.sandbox.pds_url();
    let hosts: [(&str, &str); 8] = [
        ("pds.example.com", "https://"),
        ("https://", "https://"),
        ("https://pds.example.com/xrpc", "path"),
        ("https://user:word@pds.example.com", "password"),
        ("wss://pds.example.com", "https://"),
        ("ftp://pds.example.com", "https://"),
        ("https://pds example.com", "host"),
        (&http, "dev_mode"),
    ];
    for (host, remedy) in hosts {
        let setup = table.fresh().args(&["--host", host]);
        table.refused_early(&setup, CONFIG, &["hosts", remedy]);
        let ended = setup.refused();
        assert!(
            !ended.stderr.contains("user:word"),
            "no password is shown: {}",
            ended.stderr
        );
    }
    let twice = table.following().args(&["--host", &http]);
    table.refused_early(&twice, CONFIG, &["hosts", "twice"]);
    let plc = table
        .fresh()
        .args(&["--host", &http, "--dev-mode", "--plc-url", "plc"]);
    table.refused_early(&plc, CONFIG, &["plc_url", "https://"]);
    for (flag, value, names) in [
        ("--archive", "ftp://somewhere", ["archive", "s3://"]),
        ("--archive", "backups", ["archive", "file:///"]),
        ("--snapshot-interval", "often", ["snapshot_interval", "1h"]),
        ("--snapshot-interval", "9999d", ["snapshot_interval", "7d"]),
        ("--blob-bytes-max", "huge", ["blob_bytes_max", "MiB"]),
        ("--s3-path-style", "perhaps", ["s3.path_style", "true or false"]),
        ("--log-format", "xml", ["log_format", "json"]),
    ] {
        let setup = table.following().args(&[flag, value]);
        table.refused_early(&setup, CONFIG, &names);
    }
}

/// Keys that do not exist, in each of the three places; and files that are none.
fn wrong_sources(table: &mut Table<'_>) {
    let file = table.file("hosts = []\nsnapshot_intervall = \"1h\"\n");
    let setup = table.following().args(&["--config", &file]);
    table.refused_early(
        &setup,
        CONFIG,
        &[&file, "snapshot_intervall", "did you mean snapshot_interval?"],
    );
    let file = table.file("[s3]\nendpont = \"x\"\n");
    let setup = table.following().args(&["--config", &file]);
    table.refused_early(&setup, CONFIG, &[&file, "s3.endpont", "s3.endpoint"]);
    let file = table.file("hosts = \"https://pds.example.com\"\n");
    let setup = table.fresh().args(&["--config", &file]);
    table.refused_early(&setup, CONFIG, &[&file, "hosts", "must be a list"]);
    let file = table.file("<html><body>not TOML</body></html>\n");
    let setup = table.following().args(&["--config", &file]);
    table.refused_early(&setup, CONFIG, &[&format!("{file}:1"), "not valid TOML"]);
    let setup = table.following().args(&["--config", "/nowhere/firekeep.toml"]);
    table.refused_early(&setup, CONFIG, &["/nowhere/firekeep.toml", "cannot read"]);
    let setup = table.following().env("FIREKEEP_HOST", "https://pds.example.com");
    table.refused_early(&setup, CONFIG, &["FIREKEEP_HOST", "FIREKEEP_HOSTS"]);
    let setup = table.following().env("FIREKEEP_DEV_MODE", "maybe");
    table.refused_early(&setup, CONFIG, &["FIREKEEP_DEV_MODE", "true or false"]);

    // A flag that does not exist is the command line's matter: its own text, its own code.
    let setup = table.following().args(&["--hots", "https://pds.example.com"]);
    let ended = setup.refused();
    assert_eq!(ended.code, USAGE, "{}", ended.stderr);
    assert!(ended.stderr.contains("--hots"), "{}", ended.stderr);
    assert!(!setup.data_dir.exists());
    table.cases += 1;

    // Commands that ask a daemon which is not there.
    for command in ["status", "snapshot", "health"] {
        let setup = table.fresh();
        table.told(
            &setup.ask(&[command]),
            FAILED,
            &["no daemon answers", &setup.admin.to_string()],
        );
    }
}

/// Hosts that do not exist or are no PDS: for a new mirror and for one that holds accounts of another.
fn wrong_hosts(table: &mut Table<'_>, held: &Firekeep) {
    // A name server that does not answer is given up soon.
    let none = table
        .fresh()
        .args(&["--host", "https://no-such-host.invalid"])
        .env("RES_OPTIONS", "timeout:1 attempts:1");
    table.refused_early(&none, CONFIG, &["no-such-host.invalid", "cannot be found"]);
    let not_found = NoPds::start("404 Not Found", "text/html", "<h1>nothing here</h1>");
    let page = NoPds::start("200 OK", "text/html", "<h1>welcome</h1>");
    let other = NoPds::start("200 OK", "application/json", "{\"name\":\"another service\"}");
    let moved = NoPds::start("301 Moved\r\nlocation: https://pds.example.com/", "text/html", "");
    let plc = table.sandbox.plc_url();
    for url in [&not_found.url, &page.url, &other.url, &moved.url, &plc] {
        let fresh = table.fresh().args(&["--host", url, "--dev-mode"]);
        table.refused_early(&fresh, CONFIG, &["hosts", url, "this is no PDS"]);
        let mut holding = table.fresh().args(&["--host", url, "--dev-mode"]);
        holding.data_dir.clone_from(&held.data_dir);
        table.refused(&holding, CONFIG, &["hosts", url, "this is no PDS"]);
    }
}

/// Folders that cannot be written, whoever one is: below a file, and in a file system that makes no files.
fn wrong_folders(table: &mut Table<'_>) {
    let file = table.sandbox.folder().join("a-file");
    std::fs::write(&file, "mine").expect("a file");
    for data_dir in [
        file.clone(),
        file.join("data"),
        PathBuf::from("/sys/firekeep"),
        PathBuf::from("/sys/kernel"),
    ] {
        let mut setup = table.following();
        setup.data_dir = data_dir;
        let shown = setup.data_dir.to_str().unwrap().to_owned();
        table.refused(&setup, CONFIG, &[&shown]);
    }
    for archive in [file.join("archive"), PathBuf::from("/sys/firekeep")] {
        let setup = table
            .following()
            .args(&["--archive", &format!("file://{}", archive.display())]);
        table.refused_early(&setup, CONFIG, &["archive", archive.to_str().unwrap()]);
    }
    let full = table.sandbox.folder().join("a-full-folder");
    std::fs::create_dir(&full).expect("a folder");
    std::fs::write(full.join("something"), "mine").expect("a file");
    let setup = table
        .following()
        .args(&["--archive", &format!("file://{}", full.display())]);
    table.refused_early(&setup, CONFIG, &["archive", "is not empty and holds no archive"]);
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "mine");
    assert!(!Path::new("/sys/firekeep").exists());
}

fn to_bucket(setup: Firekeep, bucket: &str, endpoint: &str, sandbox: &Sandbox) -> Firekeep {
    setup
        .args(&[
            "--archive",
            &format!("s3://{bucket}/x"),
            "--s3-endpoint",
            endpoint,
            "--s3-path-style",
            "true",
        ])
        .args(&["--s3-region", &sandbox.s3("region")])
        .env("AWS_ACCESS_KEY_ID", &sandbox.s3("access_key"))
        .env("AWS_SECRET_ACCESS_KEY", &sandbox.s3("secret_key"))
}

/// A bucket that is not there, and one that does not let us in.
fn wrong_buckets(table: &mut Table<'_>, held: &Firekeep) {
    let endpoint = table.sandbox.s3("endpoint");
    let forbidden = NoPds::start(
        "403 Forbidden",
        "application/xml",
        "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
    );
    for (bucket, endpoint, says) in [
        ("no-such-bucket", endpoint.as_str(), "create the bucket"),
        ("firekeep", forbidden.url.as_str(), "the right to read"),
    ] {
        let url = format!("s3://{bucket}/x");
        let fresh = to_bucket(table.following(), bucket, endpoint, table.sandbox);
        table.refused_early(&fresh, CONFIG, &["archive", &url, says]);
        let mut holding = to_bucket(table.following(), bucket, endpoint, table.sandbox);
        holding.data_dir.clone_from(&held.data_dir);
        table.refused(&holding, CONFIG, &["archive", &url, says]);
    }
    let missing = table.following().args(&[
        "--archive",
        "s3://firekeep/x",
        "--s3-access-key-id-file",
        "/nowhere/id",
    ]);
    table.refused_early(&missing, CONFIG, &["/nowhere/id"]);
}

/// A store that does not answer may be down: Firekeep says so and follows all the same.
fn away(table: &mut Table<'_>, accounts: u64) {
    let nobody = format!("http://127.0.0.1:{}", crate::support::free_port());
    let setup = to_bucket(table.following(), "firekeep", &nobody, table.sandbox);
    let mut running = setup.start();
    let status = running.wait_filled(accounts);
    assert_eq!(status.standing(), "archive_away", "{status:?}");
    assert_eq!(status.0["archive"]["open"], false, "{status:?}");
    let trouble = status.0["archive"]["trouble"].as_str().unwrap_or_default();
    assert!(
        trouble.contains("s3.endpoint") && trouble.contains("refused"),
        "{status:?}"
    );
    assert!(
        running.log().contains("the archive cannot be reached"),
        "{}",
        running.log()
    );
    let said = setup.ask(&["snapshot"]);
    table.told(&said, FAILED, &["the archive is not open"]);
    let equal = table.sandbox.compare(&["--url", &setup.url(), "--no-snapshots"]);
    assert_eq!(equal.accounts, accounts);
    running.stop();
}
