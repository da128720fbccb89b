//! What an archive gives by itself: no mirror, no daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::firekeep::Firekeep;
use super::history::{History, Records};
use super::http;
use super::sandbox::Sandbox;

/// An archive, asked through the commands that need nothing else.
pub struct Alone<'a> {
    firekeep: &'a Firekeep,
    source: Vec<String>,
    out: PathBuf,
}

/// The newest state of an account in the archive.
pub struct Restored {
    /// Its rev.
    pub rev: String,
    /// The commit's CID.
    pub commit: String,
    /// Its records.
    pub records: Records,
    /// The blobs that each record refers to.
    pub blobs: BTreeMap<String, Vec<String>>,
    /// Blobs that the archive does not have.
    pub missing: BTreeSet<String>,
    /// Records whose bytes were erased: their CIDs are in `records`.
    pub withheld: BTreeSet<String>,
}

impl<'a> Alone<'a> {
    /// `source` are the flags that name the archive.
    pub fn new(sandbox: &Sandbox, firekeep: &'a Firekeep, source: &[&str]) -> Self {
        Self {
            firekeep,
            source: source.iter().map(|text| (*text).to_owned()).collect(),
            out: sandbox.folder().join("out"),
        }
    }

    /// A command's exit code, and the JSON that it printed.
    fn ask(&self, arguments: &[&str]) -> (i32, Value) {
        let source: Vec<&str> = self.source.iter().map(String::as_str).collect();
        let done = self.firekeep.ask(&[arguments, &source].concat());
        let told = serde_json::from_str(&done.stdout);
        let told = told.unwrap_or_else(|_| panic!("{arguments:?}: {}{}", done.stdout, done.stderr));
        (done.code, told)
    }

    fn export(&self, did: &str, more: &[&str]) -> (i32, Value, Vec<u8>) {
        let file = self.out.to_str().expect("UTF-8");
        let (code, told) = self.ask(&[&["export", did, "-o", file, "--json", "--force"], more].concat());
        (code, told, std::fs::read(&self.out).expect("the export"))
    }

    /// The CAR of an account's newest state; its rev.
    pub fn car(&self, did: &str) -> (String, Vec<u8>) {
        let (code, told, car) = self.export(did, &[]);
        assert_eq!(code, 0, "export of {did}: {told}");
        (told["rev"].as_str().expect("a rev").to_owned(), car)
    }

    /// An account's newest state, record by record, with its blobs.
    pub fn restore(&self, did: &str) -> Restored {
        self.restored(did, &[])
    }

    /// The same as of a moment.
    pub fn restore_at(&self, did: &str, time: &str) -> Restored {
        self.restored(did, &["--at", time])
    }

    fn restored(&self, did: &str, more: &[&str]) -> Restored {
        let tar = self.out.with_extension("tar");
        let blobs = ["--format", "jsonl", "--blobs", tar.to_str().expect("UTF-8")];
        let (code, told, lines) = self.export(did, &[&blobs, more].concat());
        let missing = texts(&told["blobs"]["missing"]);
        let withheld: BTreeSet<String> = texts(&told["withheld"]).into_iter().collect();
        let whole = missing.is_empty() && withheld.is_empty();
        assert_eq!(code == 0, whole, "export of {did}: {told}");
        assert!(matches!(code, 0 | 3), "export of {did}: {code} {told}");
        assert_eq!(told["complete"], true, "export of {did}: {told}");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let (mut records, mut referred) = (Records::new(), BTreeMap::new());
        for line in String::from_utf8(lines).expect("text").lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let uri = text(&line["uri"]);
            let path = uri.strip_prefix(&format!("at://{did}/"));
            let path = path.expect("a record of this account").to_owned();
            let mut blobs = Vec::new();
            blobs_of(&line["value"], &mut blobs);
            if !blobs.is_empty() {
                referred.insert(path.clone(), blobs);
            }
            records.insert(path, text(&line["cid"]));
        }
        let missing: BTreeSet<String> = missing.into_iter().collect();
        let given: BTreeSet<&String> = referred
            .values()
            .flatten()
            .filter(|cid| !missing.contains(*cid))
            .collect();
        let listed = Command::new("tar")
            .arg("-tf")
            .arg(&tar)
            .output()
            .expect("tar runs");
        let listed = String::from_utf8(listed.stdout).expect("text");
        let there: BTreeSet<String> = listed
            .lines()
            .filter_map(|name| Some(name.rsplit_once('/')?.1.to_owned()))
            .collect();
        assert!(
            there.iter().filter(|name| !name.is_empty()).eq(given),
            "export of {did}: the blobs in the tar are not those of the records"
        );
        Restored {
            rev: text(&told["rev"]),
            commit: text(&told["commit"]),
            records,
            blobs: referred,
            missing,
            withheld,
        }
    }

    /// The archive alone gives what the PDS has now, of every account, with every blob. How many records that are.
    /// The history of `silent` does not tell all.
    pub fn check_newest(&self, sandbox: &Sandbox, silent: Option<&str>) -> u64 {
        let (history, mut count) = (History::read(sandbox), 0);
        for did in &sandbox.dids() {
            let (_, car) = self.car(did);
            let theirs = repository(&sandbox.pds_url(), did);
            assert!(blocks(&car) == blocks(&theirs), "{did}: not what the PDS has now");
            let restored = self.restore(did);
            assert!(restored.missing.is_empty(), "{did}: {:?}", restored.missing);
            let last = history.of(did).len() - 1;
            assert!(
                silent == Some(did) || restored.records == history.records(did, last),
                "{did}: not the records of now"
            );
            count += restored.records.len() as u64;
        }
        count
    }

    /// The moments of an account that can be put together: rev and commit.
    pub fn moments(&self, did: &str) -> BTreeSet<(String, String)> {
        let (code, told) = self.ask(&["history", did, "--json"]);
        assert_eq!(code, 0, "history of {did}: {told}");
        let moments = told["moments"].as_array().expect("a list").iter();
        let can = moments.filter(|moment| moment["can_be_put_together"] == true);
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        can.map(|moment| (text(&moment["rev"]), text(&moment["commit"])))
            .collect()
    }

    /// `firekeep verify` finds nothing but gaps between moments: its counts, and of each gap the account and the rev
    /// before it.
    pub fn verify(&self) -> (Value, Vec<(String, String)>) {
        let mut command = self.firekeep.command();
        let done = command.args(["verify", "--json"]).args(&self.source).output();
        let done = done.expect("firekeep starts");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, notes) = (said(&done.stdout), said(&done.stderr));
        let told: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("verify: {out}{notes}"));
        let found = told["findings"]["kept"].as_array().expect("a list");
        let gap = |one: &Value| {
            assert_eq!(one["fault"], "gap", "verify: {out}");
            let detail = one["detail"].as_str().expect("a text");
            let from = detail
                .split("between rev ")
                .nth(1)
                .and_then(|rest| rest.get(..13));
            let did = one["did"].as_str().expect("a DID");
            (did.to_owned(), from.expect("a rev").to_owned())
        };
        let gaps: Vec<_> = found.iter().map(gap).collect();
        let code = if gaps.is_empty() { 0 } else { 3 };
        assert_eq!(done.status.code(), Some(code), "verify: {out}{notes}");
        (told["counts"].clone(), gaps)
    }
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list").iter();
    list.map(|one| one.as_str().expect("a text").to_owned()).collect()
}

fn blobs_of(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) if map.get("$type").is_some_and(|kind| kind == "blob") => {
            found.push(value["ref"]["$link"].as_str().expect("a CID").to_owned());
        }
        Value::Object(map) => map.values().for_each(|value| blobs_of(value, found)),
        Value::Array(list) => list.iter().for_each(|value| blobs_of(value, found)),
        _ => {}
    }
}

/// What a PDS, or a mirror, at this address says that an account holds.
pub fn repository(url: &str, did: &str) -> Vec<u8> {
    let path = format!("/xrpc/com.atproto.sync.getRepo?did={did}");
    let answer = http::get(url, &path).expect("it answers");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.body
}

/// A CAR's header and blocks, in no order: what stands behind each length.
pub fn blocks(car: &[u8]) -> BTreeSet<&[u8]> {
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
