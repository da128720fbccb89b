//! Tests of inversion and lookup. The published diffs are in `tests/conformance_mst.rs`.

use proptest::prelude::*;

use super::*;
use crate::repo::mst::NodeEncoder;
use crate::repo::mst::fixtures::{Blocks, Map, any_map, any_path, build, keys_on_layer, record};

/// An operation, owned.
#[derive(Debug, Clone)]
struct Op {
    path: String,
    cid: Option<Cid>,
    prev: Option<Cid>,
}

fn borrowed(ops: &[Op]) -> Vec<RecordOp<'_>> {
    ops.iter()
        .map(|op| RecordOp {
            path: op.path.as_bytes(),
            cid: op.cid,
            prev: op.prev,
        })
        .collect()
}

/// Turns wishes (a path, and a record to put or none) into operations that fit the map, and applies them.
fn apply(map: &mut Map, wishes: Vec<(String, Option<u64>)>) -> Vec<Op> {
    let mut ops = Vec::new();
    for (path, wish) in wishes {
        let cid = wish.map(record);
        let prev = match cid {
            Some(cid) => map.insert(path.clone(), cid),
            None => map.remove(&path),
        };
        if cid != prev {
            ops.push(Op { path, cid, prev });
        }
    }
    ops
}

/// Wishes; removals of what is there are likely, for the paths are few.
fn any_wishes(count: usize) -> impl Strategy<Value = Vec<(String, Option<u64>)>> {
    proptest::collection::vec((any_path(), proptest::option::of(8..12_u64)), 1..count)
}

proptest! {
    #[test]
    fn undoing_what_was_done_leads_back(
        map in any_map(200), mut wishes in any_wishes(30), removed in 0..20_usize
    ) {
        let (before, _) = build(&map);
        wishes.extend(map.keys().step_by(7).take(removed).map(|path| (path.clone(), None)));
        let mut after = map;
        let ops = apply(&mut after, wishes);
        let (data, nodes) = build(&after);
        prop_assert_eq!(invert(&nodes, data, &borrowed(&ops)).unwrap(), before);
        prop_assert!(prove_prev_data(&nodes, data, &borrowed(&ops), before).is_ok());
    }

    #[test]
    fn whatever_is_missing_the_answer_is_the_right_root_or_incomplete(
        map in any_map(60),
        wishes in any_wishes(6),
        missing in proptest::collection::vec(any::<prop::sample::Index>(), 1..8)
    ) {
        let (before, _) = build(&map);
        let mut after = map;
        let ops = apply(&mut after, wishes);
        let (data, mut nodes) = build(&after);
        for which in missing {
            if let Some(digest) = nodes.keys().nth(which.index(nodes.len().max(1))).copied() {
                nodes.remove(&digest);
            }
        }
        match prove_prev_data(&nodes, data, &borrowed(&ops), before) {
            Ok(()) => prop_assert_eq!(invert(&nodes, data, &borrowed(&ops)).unwrap(), before),
            Err(ProofError::Incomplete(cid)) => prop_assert!(!nodes.contains_key(cid.digest())),
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_change_that_no_operation_names_is_noticed(map in any_map(60), wishes in any_wishes(6)) {
        let (before, _) = build(&map);
        let mut after = map;
        let ops = apply(&mut after, wishes);
        after.insert("com.example.foo/hidden".to_owned(), record(77));
        let (data, nodes) = build(&after);
        let result = prove_prev_data(&nodes, data, &borrowed(&ops), before);
        prop_assert!(matches!(result, Err(ProofError::OtherRoot { .. })), "{:?}", result);
    }

    #[test]
    fn a_lookup_finds_what_is_there_and_proves_what_is_not(map in any_map(100), path in any_path()) {
        let (data, nodes) = build(&map);
        prop_assert_eq!(prove_record(&nodes, data, path.as_bytes()).unwrap(), map.get(&path).copied());
        for (path, cid) in &map {
            prop_assert_eq!(prove_record(&nodes, data, path.as_bytes()).unwrap(), Some(*cid));
        }
    }
}

fn map(keys: &[&str]) -> Map {
    keys.iter().map(|key| ((*key).to_owned(), record(1))).collect()
}

const PATH: &str = "com.example.foo/000000";

fn op(path: &str, cid: Option<u64>, prev: Option<u64>) -> RecordOp<'_> {
    RecordOp {
        path: path.as_bytes(),
        cid: cid.map(record),
        prev: prev.map(record),
    }
}

#[test]
fn operations_that_do_not_fit_the_tree_are_told_apart() {
    let (data, nodes) = build(&map(&[PATH]));
    let undo = |op: RecordOp<'_>| invert(&nodes, data, &[op]);
    assert_eq!(undo(op(PATH, Some(1), None)).unwrap(), build(&Map::new()).0);
    assert!(matches!(
        undo(op(PATH, Some(2), None)),
        Err(ProofError::CreateNotThere)
    ));
    assert!(matches!(
        undo(op("a.b.c/d", Some(1), None)),
        Err(ProofError::CreateNotThere)
    ));
    assert!(matches!(
        undo(op(PATH, Some(2), Some(3))),
        Err(ProofError::UpdateMismatch)
    ));
    assert!(matches!(
        undo(op("a.b.c/d", Some(2), Some(3))),
        Err(ProofError::UpdateMismatch)
    ));
    assert!(matches!(
        undo(op(PATH, None, Some(1))),
        Err(ProofError::DeleteStillThere)
    ));
    assert!(matches!(undo(op(PATH, None, None)), Err(ProofError::EmptyOp)));
    for path in ["", "a", "a/b/c"] {
        assert!(matches!(
            undo(op(path, None, Some(1))),
            Err(ProofError::Malformed(_))
        ));
    }
    assert!(matches!(
        prove_record(&nodes, data, b"a"),
        Err(ProofError::Malformed(_))
    ));
}

#[test]
fn no_operations_need_no_blocks() {
    assert_eq!(invert(&Blocks::new(), record(5), &[]).unwrap(), record(5));
    let root = Cid::of_block(b"absent");
    let result = invert(&Blocks::new(), root, &[op(PATH, Some(1), None)]);
    assert!(matches!(result, Err(ProofError::Incomplete(cid)) if cid == root));
    assert!(matches!(
        prove_record(&Blocks::new(), root, PATH.as_bytes()),
        Err(ProofError::Incomplete(_))
    ));
}

#[test]
fn a_tree_can_grow_from_nothing_and_shrink_to_nothing() {
    let (empty, nothing) = build(&Map::new());
    let high = keys_on_layer(4, 1).remove(0);
    let full = map(&[PATH, &high]);
    let (root, nodes) = build(&full);
    let created = [op(PATH, Some(1), None), op(&high, Some(1), None)];
    assert_eq!(invert(&nodes, root, &created).unwrap(), empty);
    let deleted = [op(PATH, None, Some(1)), op(&high, None, Some(1))];
    assert_eq!(invert(&nothing, empty, &deleted).unwrap(), root);
}

/// A keyless node that the top is trimmed to, and that is not there, may hide the root below it: its
/// CID alone settles nothing, except when it is the expected one.
#[test]
fn an_unseen_top_is_not_taken_for_the_root() {
    let (two, zero) = (keys_on_layer(2, 1).remove(0), keys_on_layer(0, 1).remove(0));
    let (before, _) = build(&map(&[&zero]));
    let (data, mut nodes) = build(&map(&[&zero, &two]));
    let created = [op(&two, Some(1), None)];
    assert!(prove_prev_data(&nodes, data, &created, before).is_ok());
    // Without the root before itself its CID is still known, through the keyless node above it.
    nodes.remove(before.digest());
    assert!(prove_prev_data(&nodes, data, &created, before).is_ok());
    nodes.retain(|digest, _| digest == data.digest());
    let result = prove_prev_data(&nodes, data, &created, before);
    assert!(matches!(result, Err(ProofError::Incomplete(_))), "{result:?}");
}

#[test]
fn undoing_goes_from_the_last_operation_to_the_first() {
    let before = map(&[]);
    let mut after = before.clone();
    let wishes = vec![(PATH.to_owned(), Some(1)), (PATH.to_owned(), Some(2))];
    let ops = apply(&mut after, wishes);
    let (data, nodes) = build(&after);
    assert_eq!(invert(&nodes, data, &borrowed(&ops)).unwrap(), build(&before).0);
    let forwards: Vec<_> = ops.into_iter().rev().collect();
    assert!(matches!(
        invert(&nodes, data, &borrowed(&forwards)),
        Err(ProofError::CreateNotThere)
    ));
}

/// A node with these keys, valid in itself.
fn node(blocks: &mut Blocks, left: Option<Cid>, key: &str, right: Option<Cid>) -> Cid {
    let mut encoder = NodeEncoder::default();
    left.into_iter().for_each(|cid| encoder.attach(cid));
    encoder.push(key.as_bytes(), record(1));
    right.into_iter().for_each(|cid| encoder.attach(cid));
    let mut block = Vec::new();
    encoder.finish(&mut block);
    let cid = Cid::of_block(&block);
    blocks.insert(*cid.digest(), block);
    cid
}

#[test]
fn nodes_in_the_wrong_place_are_refused_when_they_are_needed() {
    let zero = keys_on_layer(0, 2);
    let (one, two) = (keys_on_layer(1, 1).remove(0), keys_on_layer(2, 1).remove(0));
    assert!(zero[1] < one && zero[1] < two);
    let mut blocks = Blocks::new();
    let leaf = node(&mut blocks, None, &zero[0], None);
    let malformed = |blocks: &Blocks, data, path: &str| {
        let undone = invert(blocks, data, &[op(path, Some(1), None)]);
        assert!(matches!(undone, Err(ProofError::Malformed(_))), "{undone:?}");
        let found = prove_record(blocks, data, path.as_bytes());
        assert!(matches!(found, Err(ProofError::Malformed(_))), "{found:?}");
    };
    // The least key right of a greater one; a layer skipped; a subtree below layer 0.
    let right = node(&mut blocks, None, &one, Some(leaf));
    malformed(&blocks, right, "com.example.foo/z");
    let skipped = node(&mut blocks, Some(leaf), &two, None);
    malformed(&blocks, skipped, &zero[1]);
    let below = node(&mut blocks, Some(leaf), &zero[1], None);
    malformed(&blocks, below, &zero[1]);
    let root = node(&mut blocks, Some(below), &one, None);
    malformed(&blocks, root, &zero[1]);
}

#[test]
fn absence_is_proven_without_the_nodes_below_the_key_s_layer() {
    let (low, one) = (keys_on_layer(0, 3), keys_on_layer(1, 3));
    let keys = [&low[0], &one[0], &one[2]].map(String::as_str);
    let (data, mut nodes) = build(&map(&keys));
    nodes.retain(|digest, _| digest == data.digest());
    // Its place is in the root, which does not have it; what hangs there is no matter.
    let absent = "com.example.fon/000003";
    assert_eq!((layer_of(absent.as_bytes()), layer_of(one[1].as_bytes())), (1, 1));
    assert!(absent < low[0].as_str());
    assert_eq!(prove_record(&nodes, data, absent.as_bytes()).unwrap(), None);
    assert_eq!(prove_record(&nodes, data, one[1].as_bytes()).unwrap(), None);
    let below = prove_record(&nodes, data, low[0].as_bytes());
    assert!(matches!(below, Err(ProofError::Incomplete(_))), "{below:?}");
}
