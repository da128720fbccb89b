//! What the PDS has emitted, read from its own sequencer: the truth about the stream.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::sandbox::Sandbox;

/// Prints every event's number, account, type, rev, and whether it has a key `prevData`. The rev of a commit or sync event stands in its CBOR as a
/// text of 13 characters under the key `rev`.
const READER: &str = r"
import json, re, sqlite3, sys
base = sqlite3.connect(f'file:{sys.argv[1]}/sequencer.sqlite?mode=ro', uri=True)
rows = base.execute('select seq, did, eventType, event, invalidated from repo_seq order by seq')
rev = re.compile(rb'crevm([2-7a-z]{13})')
for seq, did, kind, event, invalidated in rows:
    if not invalidated:
        found = rev.search(bytes(event))
        print(json.dumps([seq, did, kind, found.group(1).decode() if found else None, b'hprevData' in bytes(event)]))
";

/// Everything that a PDS has emitted.
pub struct Emitted {
    events: Vec<Event>,
}

struct Event {
    seq: u64,
    did: String,
    kind: String,
    rev: Option<String>,
    prev_data: bool,
}

impl Emitted {
    /// Reads the sequencer of the sandbox's PDS, which may be running.
    pub fn read(sandbox: &Sandbox) -> Self {
        Self::of(&sandbox.pds_data())
    }

    /// Reads the sequencer in a PDS's folder.
    pub fn of(folder: &Path) -> Self {
        let output = Command::new("python3")
            .arg("-c")
            .arg(READER)
            .arg(folder)
            .output()
            .expect("python3 runs: the sandbox needs it too");
        assert!(
            output.status.success(),
            "the sequencer cannot be read: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).expect("text");
        let event = |line: &str| {
            let row: Value = serde_json::from_str(line).expect("JSON");
            Event {
                seq: row[0].as_u64().expect("a number"),
                did: row[1].as_str().expect("a DID").to_owned(),
                kind: row[2].as_str().expect("a type").to_owned(),
                rev: row[3].as_str().map(str::to_owned),
                prev_data: row[4] == true,
            }
        };
        Self {
            events: text.lines().map(event).collect(),
        }
    }

    /// The last number.
    pub fn last(&self) -> u64 {
        self.events.last().map_or(0, |event| event.seq)
    }

    /// What was told of an account, in order: the types of its events.
    pub fn of_account(&self, did: &str) -> Vec<&str> {
        let own = self.events.iter().filter(|event| event.did == did);
        own.map(|event| event.kind.as_str()).collect()
    }

    /// How many commits have numbers above this one.
    pub fn commits_after(&self, seq: u64) -> u64 {
        let commits = self.events.iter().filter(|event| event.kind == "append");
        commits.filter(|event| event.seq > seq).count() as u64
    }

    /// How many events say what they build on.
    pub fn with_prev_data(&self) -> usize {
        self.events.iter().filter(|event| event.prev_data).count()
    }

    /// Each account's rev after the event of this number.
    pub fn revs_at(&self, seq: u64) -> BTreeMap<String, String> {
        let mut revs = BTreeMap::new();
        for event in self.events.iter().filter(|event| event.seq <= seq) {
            if let Some(rev) = &event.rev {
                revs.insert(event.did.clone(), rev.clone());
            }
        }
        revs
    }
}
