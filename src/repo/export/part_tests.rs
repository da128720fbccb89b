//! Tests of the parts of a repository, against whole trees and the reader of proofs.

use std::collections::HashMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::super::RowVisitor;
use super::*;
use crate::repo::mst::fixtures::{any_map, build as build_map};
use crate::repo::mst::{BlockSource as _, Node};
use crate::repo::proof::prove_record;
use crate::types::Timestamp;

fn record_of(path: &str) -> Vec<u8> {
    path.bytes().rev().collect()
}

fn rev(number: u64) -> Rev {
    Rev::from_time(Timestamp::from_micros(1_700_000_000_000_000 + number), 0)
}

/// Records by path: the rev of each, and its bytes.
struct Rows(BTreeMap<String, (Rev, Vec<u8>)>);

impl Rows {
    fn new<'a>(paths: impl IntoIterator<Item = &'a String>) -> Self {
        let row = |(number, path): (usize, &String)| (path.clone(), (rev(number as u64), record_of(path)));
        Self(paths.into_iter().enumerate().map(row).collect())
    }

    fn tree(&self) -> (Cid, crate::repo::mst::fixtures::Blocks) {
        build_map(
            &self
                .0
                .iter()
                .map(|(path, (_, bytes))| (path.clone(), Cid::of_block(bytes)))
                .collect(),
        )
    }

    fn scan_revs(&self, visit: &mut RevVisitor<'_>) -> Result<(), Infallible> {
        for (path, (rev, bytes)) in &self.0 {
            if visit(path.as_bytes(), Cid::of_block(bytes), *rev, bytes).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl RecordRows for Rows {
    type Error = Infallible;

    fn scan(&self, from: Option<&[u8]>, visit: &mut RowVisitor<'_>) -> Result<(), Infallible> {
        assert_eq!(from, None);
        for (path, (_, bytes)) in &self.0 {
            if visit(path.as_bytes(), Cid::of_block(bytes), bytes).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The nodes on the way down to a path, as the reference library goes: into the subtree before the first entry that
/// is not less, until there is none.
fn way(root: Cid, blocks: &crate::repo::mst::fixtures::Blocks, path: &[u8]) -> Vec<Cid> {
    let (mut way, mut at) = (vec![root], root);
    loop {
        let node = Node::decode(&blocks[at.digest()]).unwrap();
        let number = match node.find(path) {
            Ok(_) => return way,
            Err(number) => number,
        };
        let Some(child) = node.subtree(number) else {
            return way;
        };
        way.push(child);
        at = child;
    }
}

fn check(rows: &Rows, path: &str) {
    let (root, blocks) = rows.tree();
    let proof = prove_path(rows, root, path.as_bytes()).unwrap();
    let cids: Vec<Cid> = proof.nodes.iter().map(|(cid, _)| *cid).collect();
    assert_eq!(cids, way(root, &blocks, path.as_bytes()), "{path}");
    let given: HashMap<_, _> = proof
        .nodes
        .iter()
        .map(|(cid, bytes)| (*cid.digest(), bytes.clone()))
        .collect();
    assert!(proof.nodes.iter().all(|(cid, bytes)| cid.matches(bytes)));
    let want = rows.0.get(path).map(|(_, bytes)| Cid::of_block(bytes));
    assert_eq!(proof.record.map(|(cid, _)| cid), want);
    assert_eq!(
        prove_record(&given, root, path.as_bytes()).unwrap(),
        want,
        "{path}"
    );
}

proptest! {
    #[test]
    fn a_proof_is_the_way_that_the_reference_library_goes(map in any_map(60), other in any_map(60)) {
        let rows = Rows::new(map.keys());
        for path in map.keys().chain(other.keys()).take(24) {
            check(&rows, path);
        }
        check(&rows, "a.b.c/-");
        check(&rows, "zz.zz.zz/zzzz");
    }

    #[test]
    fn what_is_newer_completes_an_older_copy(map in any_map(60), since in 0u64..40) {
        let rows = Rows::new(map.keys());
        let (root, blocks) = rows.tree();
        let mut got = BTreeMap::new();
        let out = |cid: Cid, bytes: &[u8]| {
            assert!(cid.matches(bytes));
            got.insert(cid, bytes.to_vec());
            Ok(())
        };
        each_newer_block(|visit| rows.scan_revs(visit), root, rev(since), out).unwrap();
        for digest in blocks.keys() {
            prop_assert!(got.contains_key(&Cid::dag_cbor(*digest)));
        }
        let newer = rows.0.values().filter(|(at, _)| *at > rev(since));
        let newer: BTreeSet<Cid> = newer.map(|(_, bytes)| Cid::of_block(bytes)).collect();
        prop_assert!(newer.iter().all(|cid| got.contains_key(cid)));
        prop_assert_eq!(got.len(), blocks.len() + newer.len());
    }
}

fn paths(count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("com.example.thing/{number:04}"))
        .collect()
}

#[test]
fn an_empty_repository_proves_that_nothing_is_there() {
    check(&Rows::new(&[]), "com.example.thing/1");
}

#[test]
fn blocks_are_found_among_records_and_nodes_and_nothing_else() {
    let rows = Rows::new(&paths(300));
    let (root, blocks) = rows.tree();
    let record = Cid::of_block(&record_of("com.example.thing/0123"));
    let nodes: Vec<Cid> = blocks
        .keys()
        .take(2)
        .map(|digest| Cid::dag_cbor(*digest))
        .collect();
    let wanted: BTreeSet<Cid> = [record, root, nodes[0], nodes[1], Cid::of_block(b"foreign")].into();
    let found = find_blocks(&rows, root, &wanted, 1 << 20)
        .unwrap()
        .expect("they fit");
    let mut want = wanted.clone();
    want.remove(&Cid::of_block(b"foreign"));
    assert_eq!(found.keys().copied().collect::<BTreeSet<_>>(), want);
    assert!(found.iter().all(|(cid, bytes)| cid.matches(bytes)));
    for node in nodes {
        assert!(blocks.block(&node).unwrap().is_some());
    }
    let bytes: usize = found.values().map(Vec::len).sum();
    assert!(find_blocks(&rows, root, &wanted, bytes).unwrap().is_some());
    assert_eq!(find_blocks(&rows, root, &wanted, bytes - 1).unwrap(), None);
}

#[test]
fn rows_of_another_tree_give_nothing() {
    let rows = Rows::new(&paths(40));
    let (root, _) = rows.tree();
    let mut fewer = Rows::new(&paths(40));
    fewer.0.remove("com.example.thing/0007");
    let path = b"com.example.thing/0001";
    assert!(prove_path(&rows, root, path).is_ok());
    let error = prove_path(&fewer, root, path).unwrap_err();
    assert!(matches!(error, ExportError::OtherRoot { signed, .. } if signed == root));
    let wanted = BTreeSet::from([Cid::of_block(&record_of("com.example.thing/0001"))]);
    assert!(find_blocks(&fewer, root, &wanted, 1 << 20).is_err());
    let newer = |rows: &Rows, out: &dyn Fn() -> io::Result<()>| {
        each_newer_block(|visit| rows.scan_revs(visit), root, rev(0), |_, _| out())
    };
    assert!(newer(&rows, &|| Ok(())).is_ok());
    assert!(matches!(
        newer(&fewer, &|| Ok(())),
        Err(ExportError::OtherRoot { .. })
    ));
    let refused = newer(&rows, &|| Err(io::Error::other("full")));
    assert!(matches!(refused, Err(ExportError::Write(_))));
}

/// Rows whose bytes are not those of their CIDs.
struct Damaged(Rows);

impl RecordRows for Damaged {
    type Error = Infallible;

    fn scan(&self, from: Option<&[u8]>, visit: &mut RowVisitor<'_>) -> Result<(), Infallible> {
        self.0.scan(from, &mut |path, cid, _| visit(path, cid, b"other"))
    }
}

#[test]
fn a_damaged_record_is_never_given() {
    let rows = Rows::new(&paths(40));
    let (root, _) = rows.tree();
    let damaged = Damaged(rows);
    let error = prove_path(&damaged, root, b"com.example.thing/0001").unwrap_err();
    assert!(matches!(error, ExportError::RecordHash { .. }));
    assert!(
        prove_path(&damaged, root, b"com.example.thing/none").is_ok(),
        "the tree is whole"
    );
    let wanted = BTreeSet::from([Cid::of_block(&record_of("com.example.thing/0001"))]);
    assert!(matches!(
        find_blocks(&damaged, root, &wanted, 1 << 20),
        Err(ExportError::RecordHash { .. })
    ));
}
