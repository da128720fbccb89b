//! What every account of a PDS held after every commit, from the PDS's own sequencer: the truth about each rev.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use super::sandbox::Sandbox;

/// Prints every commit: account, rev, CID, when it was sequenced (milliseconds), and what it put and deleted.
const READER: &str = r"
import base64, datetime, json, sqlite3, sys

def cbor(data, at):
    kind, count = data[at] >> 5, data[at] & 31
    at += 1
    if count >= 24:
        size = 1 << (count - 24)
        count, at = int.from_bytes(data[at:at + size], 'big'), at + size
    if kind < 2:
        return count if kind == 0 else -1 - count, at
    if kind < 4:
        raw = data[at:at + count]
        return raw if kind == 2 else raw.decode(), at + count
    if kind == 4:
        found = []
        for _ in range(count):
            item, at = cbor(data, at)
            found.append(item)
        return found, at
    if kind == 5:
        found = {}
        for _ in range(count):
            key, at = cbor(data, at)
            found[key], at = cbor(data, at)
        return found, at
    if kind == 6:
        inner, at = cbor(data, at)
        return 'b' + base64.b32encode(inner[1:]).decode().lower().rstrip('='), at
    return {20: False, 21: True}.get(count), at

base = sqlite3.connect(f'file:{sys.argv[1]}/sequencer.sqlite?mode=ro', uri=True)
rows = base.execute('select event, sequencedAt from repo_seq where eventType = ? and not invalidated order by seq', ('append',))
for event, when in rows:
    event, _ = cbor(bytes(event), 0)
    assert not event['tooBig'], 'a commit that does not say what it did'
    when = datetime.datetime.fromisoformat(when.replace('Z', '+00:00')).timestamp()
    ops = [[op['path'], op['cid']] for op in event['ops']]
    print(json.dumps([event['repo'], event['rev'], event['commit'], int(when * 1000), ops]))
";

/// Paths and CIDs of records.
pub type Records = BTreeMap<String, String>;

/// One commit.
pub struct Version {
    /// Its rev.
    pub rev: String,
    /// Its CID.
    pub commit: String,
    /// When the PDS put it into its stream: milliseconds since 1970.
    pub at: u64,
    ops: Vec<(String, Option<String>)>,
}

/// All commits of all accounts.
pub struct History(BTreeMap<String, Vec<Version>>);

impl History {
    /// Reads the sequencer of the sandbox's PDS, which may be running.
    pub fn read(sandbox: &Sandbox) -> Self {
        let output = Command::new("python3")
            .arg("-c")
            .arg(READER)
            .arg(sandbox.pds_data())
            .output()
            .expect("python3 runs: the sandbox needs it too");
        let failed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the sequencer cannot be read: {failed}");
        let mut accounts = BTreeMap::<String, Vec<Version>>::new();
        for line in String::from_utf8(output.stdout).expect("text").lines() {
            let row: Value = serde_json::from_str(line).expect("JSON");
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            let ops = row[4].as_array().expect("a list").iter();
            let version = Version {
                rev: text(&row[1]),
                commit: text(&row[2]),
                at: row[3].as_u64().expect("a time"),
                ops: ops
                    .map(|op| (text(&op[0]), op[1].as_str().map(str::to_owned)))
                    .collect(),
            };
            accounts.entry(text(&row[0])).or_default().push(version);
        }
        Self(accounts)
    }

    /// The commits of an account, oldest first.
    pub fn of(&self, did: &str) -> &[Version] {
        self.0.get(did).expect("the PDS knows the account")
    }

    /// What the account held after its commit at this place.
    pub fn records(&self, did: &str, at: usize) -> Records {
        let mut records = Records::new();
        for (path, cid) in self.of(did)[..=at].iter().flat_map(|version| &version.ops) {
            match cid {
                Some(cid) => records.insert(path.clone(), cid.clone()),
                None => records.remove(path),
            };
        }
        records
    }

    /// For how many milliseconds what stood at a path after a commit did so; none: it still does.
    pub fn lifetime(&self, did: &str, at: usize, path: &str) -> Option<u64> {
        let versions = self.of(did);
        let touches = |version: &&Version| version.ops.iter().any(|(other, _)| other == path);
        let from = versions[..=at].iter().rev().find(touches)?;
        let to = versions[at + 1..].iter().find(touches)?;
        Some(to.at - from.at)
    }
}
