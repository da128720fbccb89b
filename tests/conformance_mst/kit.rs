//! What the suites share: where they lie, JSON, a CAR reader, trees in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;

use data_encoding::BASE64_NOPAD;
use firekeep::repo::export::{RecordRows, RowVisitor};
use firekeep::repo::mst::{MstError, TreeBuilder};
use firekeep::repo::proof::RecordOp;
use firekeep::types::{Cid, Digest};
use serde_json::Value;

/// Blocks by digest, as a source for the code under test.
pub type Blocks = BTreeMap<Digest, Vec<u8>>;

/// A repository's content: path to record.
pub type Map = BTreeMap<String, Cid>;

/// The folder of a suite, or `None` after saying that it is not there.
pub fn suite(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("FIREKEEP_CONFORMANCE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/conformance"),
        PathBuf::from,
    );
    let folder = folder.join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("conformance: {name} did not run: folder not found");
    None
}

/// Says how many cases ran and demands that it is all of them.
pub fn ran(name: &str, cases: usize, expected: usize) {
    println!("conformance: {name}: {cases} cases");
    assert_eq!(cases, expected, "{name}: not all cases ran");
}

pub fn json(path: PathBuf) -> Value {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

pub fn json_lines(path: PathBuf) -> Vec<Value> {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

pub fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

pub fn cid(value: &Value) -> Cid {
    value.as_str().unwrap().parse().unwrap()
}

pub fn cids(value: &Value) -> Vec<Cid> {
    value.as_array().unwrap().iter().map(cid).collect()
}

pub fn base64(text: &str) -> Vec<u8> {
    BASE64_NOPAD
        .decode(text.trim_end_matches('=').as_bytes())
        .unwrap()
}

/// A CAR's root and blocks. Panics on anything but a well-formed file whose blocks hash to their CIDs.
pub fn read_car(bytes: &[u8]) -> (Cid, Vec<(Cid, Vec<u8>)>) {
    let mut rest = bytes;
    let header = section(&mut rest);
    let at = header
        .windows(5)
        .position(|window| window == b"\xd8\x2a\x58\x25\x00")
        .expect("a root")
        + 5;
    let root = Cid::from_bytes(&header[at..at + 36]).unwrap();
    let mut blocks = Vec::new();
    while !rest.is_empty() {
        let block = section(&mut rest);
        let (cid, block) = block.split_at(36);
        let cid = Cid::from_bytes(cid).unwrap();
        assert!(cid.matches(block), "{cid}");
        blocks.push((cid, block.to_vec()));
    }
    (root, blocks)
}

fn section<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let mut len = 0;
    for shift in (0..35).step_by(7) {
        let byte = rest[0];
        *rest = &rest[1..];
        len |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    let (section, after) = rest.split_at(len);
    *rest = after;
    section
}

pub fn index(blocks: Vec<(Cid, Vec<u8>)>) -> Blocks {
    blocks
        .into_iter()
        .map(|(cid, block)| (*cid.digest(), block))
        .collect()
}

/// Builds the tree of a map: its root and nodes.
pub fn build(map: &Map) -> (Cid, BTreeMap<Cid, Vec<u8>>) {
    let mut nodes = BTreeMap::new();
    let mut builder = TreeBuilder::new(|_, cid, block: &[u8]| {
        nodes.insert(cid, block.to_vec());
    });
    for (path, record) in map {
        builder.push(path.as_bytes(), *record).unwrap();
    }
    let root = builder.finish();
    (root, nodes)
}

/// The given nodes alone.
pub fn only(nodes: &BTreeMap<Cid, Vec<u8>>, wanted: &[Cid]) -> Blocks {
    wanted
        .iter()
        .map(|cid| (*cid.digest(), nodes[cid].clone()))
        .collect()
}

/// One operation, owned.
#[derive(Debug, Clone)]
pub struct Op {
    pub path: String,
    pub cid: Option<Cid>,
    pub prev: Option<Cid>,
}

/// Operations in the form of the diff suites.
pub fn ops(value: &Value) -> Vec<Op> {
    let link = |value: &Value| value.as_str().map(|text| text.parse().unwrap());
    let op = |op: &Value| Op {
        path: op["rpath"].as_str().unwrap().to_owned(),
        cid: link(&op["new_value"]),
        prev: link(&op["old_value"]),
    };
    value.as_array().unwrap().iter().map(op).collect()
}

pub fn borrowed(ops: &[Op]) -> Vec<RecordOp<'_>> {
    ops.iter()
        .map(|op| RecordOp {
            path: op.path.as_bytes(),
            cid: op.cid,
            prev: op.prev,
        })
        .collect()
}

/// Applies operations to a map, demanding that each fits.
pub fn apply(map: &mut Map, ops: &[Op]) {
    for op in ops {
        let old = match op.cid {
            Some(cid) => map.insert(op.path.clone(), cid),
            None => map.remove(&op.path),
        };
        assert_eq!(old, op.prev, "{}", op.path);
    }
}

/// Why a repository is not whole.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    #[error(transparent)]
    Tree(#[from] MstError),
    #[error("record {0} is missing")]
    NoRecord(Cid),
}

/// Records as rows of a store.
pub struct Rows(pub BTreeMap<String, (Cid, Vec<u8>)>);

impl RecordRows for Rows {
    type Error = Infallible;

    fn scan(&self, from: Option<&[u8]>, visit: &mut RowVisitor<'_>) -> Result<(), Infallible> {
        let from = std::str::from_utf8(from.unwrap_or_default()).unwrap();
        for (path, (cid, bytes)) in self.0.range(from.to_owned()..) {
            if visit(path.as_bytes(), *cid, bytes).is_break() {
                break;
            }
        }
        Ok(())
    }
}
