//! The published trees, diffs and repositories, through the tree code.
//!
//! The suites lie outside this repository: in the folder that `FIREKEEP_CONFORMANCE` names, or in
//! `../shared/conformance`. A suite that is not there says so and passes; one that is there must run whole.

#![allow(
    clippy::unwrap_used,
    reason = "tests, whose helpers clippy does not know as such"
)]

mod conformance_mst {
    pub mod kit;
}

use std::collections::{BTreeMap, BTreeSet};

use conformance_mst::kit::{
    Blocks, Map, Op, Rows, WalkError, apply, base64, borrowed, build, cid, cids, index, json, json_lines,
    only, ops, ran, read_car, strings, suite,
};
use firekeep::repo::export::{ExportError, prove};
use firekeep::repo::mst::{
    BuildError, KeyRule, MstError, Node, TreeBuilder, WalkLimits, check_key_shape, common_prefix_len,
    layer_of, walk,
};
use firekeep::repo::proof::{ProofError, RecordOp, invert, prove_prev_data, prove_record};
use firekeep::types::Cid;
use firekeep::types::cid::sha256;
use serde_json::Value;

const SHAPE: WalkLimits = WalkLimits {
    layer_max: 128,
    node_entries_max: 4096,
    records_max: u64::MAX,
    keys: KeyRule::Shape,
};

fn walk_map(blocks: &Blocks, root: Cid, limits: &WalkLimits) -> Result<Map, MstError> {
    let mut map = Map::new();
    walk(blocks, root, limits, |path, record| {
        map.insert(String::from_utf8(path.to_vec()).unwrap(), record);
        Ok::<_, MstError>(())
    })?;
    Ok(map)
}

#[test]
fn interop_key_layers_and_prefixes() {
    let Some(folder) = suite("atproto-interop-tests/mst") else {
        return;
    };
    let heights = json(folder.join("key_heights.json"));
    for case in heights.as_array().unwrap() {
        let key = case["key"].as_str().unwrap();
        assert_eq!(
            u64::from(layer_of(key.as_bytes())),
            case["height"].as_u64().unwrap(),
            "{key}"
        );
    }
    ran("interop mst/key_heights", heights.as_array().unwrap().len(), 9);

    let keys = std::fs::read_to_string(folder.join("example_keys.txt")).unwrap();
    for key in keys.lines() {
        assert_eq!(Some(layer_of(key.as_bytes())), key[1..2].parse().ok(), "{key}");
    }
    ran("interop mst/example_keys", keys.lines().count(), 156);

    let prefixes = json(folder.join("common_prefix.json"));
    for case in prefixes.as_array().unwrap() {
        let text = |name: &str| case[name].as_str().unwrap().as_bytes();
        let len = common_prefix_len(text("left"), text("right"));
        assert_eq!(len as u64, case["len"].as_u64().unwrap(), "{case}");
    }
    ran(
        "interop mst/common_prefix",
        prefixes.as_array().unwrap().len(),
        13,
    );
}

#[test]
fn interop_commit_proofs() {
    let Some(folder) = suite("atproto-interop-tests/firehose") else {
        return;
    };
    let cases = json(folder.join("commit-proof-fixtures.json"));
    let mut left_out = LeftOut::default();
    for case in cases.as_array().unwrap() {
        let name = case["comment"].as_str().unwrap();
        let value = cid(&case["leafValue"]);
        let mut map: Map = strings(&case["keys"])
            .into_iter()
            .map(|key| (key, value))
            .collect();
        let (before, _) = build(&map);
        assert_eq!(before, cid(&case["rootBeforeCommit"]), "{name}");

        let adds = strings(&case["adds"]).into_iter().map(|path| Op {
            path,
            cid: Some(value),
            prev: None,
        });
        let dels = strings(&case["dels"]).into_iter().map(|path| Op {
            path,
            cid: None,
            prev: Some(value),
        });
        let ops: Vec<Op> = adds.chain(dels).collect();
        apply(&mut map, &ops);
        let (after, nodes) = build(&map);
        assert_eq!(after, cid(&case["rootAfterCommit"]), "{name}");

        let proof = cids(&case["blocksInProof"]);
        let blocks = only(&nodes, &proof);
        assert_eq!(invert(&blocks, after, &borrowed(&ops)).unwrap(), before, "{name}");
        // A repository may send its operations in any order.
        let backwards: Vec<Op> = ops.iter().rev().cloned().collect();
        assert_eq!(
            invert(&blocks, after, &borrowed(&backwards)).unwrap(),
            before,
            "{name}"
        );
        left_out.each_of(name, &proof, &blocks, after, &borrowed(&ops), before);
    }
    println!("conformance: interop commit-proof-fixtures: {left_out:?}");
    assert_eq!(
        left_out,
        LeftOut {
            incomplete: 26,
            root: 0,
            spare: 2
        }
    );
    ran(
        "interop firehose/commit-proof-fixtures",
        cases.as_array().unwrap().len(),
        6,
    );
}

#[test]
fn atproto_known_roots_and_key_syntax() {
    let Some(folder) = suite("atproto") else { return };
    let cases = json(folder.join("mst-known-roots.json"));
    for case in cases.as_array().unwrap() {
        let value = cid(&case["value"]);
        let map: Map = strings(&case["keys"])
            .into_iter()
            .map(|key| (key, value))
            .collect();
        let (root, nodes) = build(&map);
        assert_eq!(root, cid(&case["root"]), "{}", case["name"]);
        let blocks = nodes
            .into_iter()
            .map(|(cid, block)| (*cid.digest(), block))
            .collect();
        assert_eq!(walk_map(&blocks, root, &SHAPE).unwrap(), map, "{}", case["name"]);
    }
    ran(
        "atproto mst-known-roots",
        cases.as_array().unwrap().len(),
        KNOWN_ROOTS,
    );

    let syntax = json(folder.join("mst-key-syntax.json"));
    let value = Cid::of_block(b"record");
    let push = |key: &str| TreeBuilder::new(|_, _, _: &[u8]| {}).push(key.as_bytes(), value);
    let (allow, reject) = (strings(&syntax["allow"]), strings(&syntax["reject"]));
    for key in &allow {
        assert!(check_key_shape(key.as_bytes()).is_ok(), "{key}");
        assert_eq!(push(key), Ok(()), "{key}");
    }
    for key in &reject {
        assert!(check_key_shape(key.as_bytes()).is_err(), "{key}");
        assert!(matches!(push(key), Err(BuildError::Key(_))), "{key}");
    }
    ran("atproto mst-key-syntax", allow.len() + reject.len(), KEY_SYNTAX);
}

const KNOWN_ROOTS: usize = 11;
const KEY_SYNTAX: usize = 31;

/// A tree file of the suite: no commit, nodes sorted by CID bytes.
struct TreeFile {
    root: Cid,
    nodes: BTreeMap<Cid, Vec<u8>>,
    map: Map,
}

fn read_tree(bytes: &[u8]) -> TreeFile {
    let (root, blocks) = read_car(bytes);
    let map = walk_map(&index(blocks.clone()), root, &SHAPE).unwrap();
    let (rebuilt, nodes) = build(&map);
    assert_eq!(rebuilt, root);
    // Byte for byte: the same nodes in the same order, hence the same file.
    let sorted: Vec<_> = nodes.iter().map(|(cid, block)| (*cid, block.clone())).collect();
    assert_eq!(sorted, blocks);
    TreeFile { root, nodes, map }
}

/// What came of leaving out one node after the other.
#[derive(Debug, Default, PartialEq, Eq)]
struct LeftOut {
    /// Undoing said that just this node is missing.
    incomplete: usize,
    /// The right root all the same: this node is the root, which the edits leave alone, known by its CID.
    root: usize,
    /// The right root all the same: a neighbour that the edits do not reach.
    spare: usize,
}

impl LeftOut {
    fn each_of(
        &mut self,
        name: &str,
        proof: &[Cid],
        blocks: &Blocks,
        after: Cid,
        ops: &[RecordOp<'_>],
        before: Cid,
    ) {
        for missing in proof {
            let mut blocks = blocks.clone();
            blocks.remove(missing.digest());
            match prove_prev_data(&blocks, after, ops, before) {
                Err(ProofError::Incomplete(cid)) if cid == *missing => self.incomplete += 1,
                Ok(()) if *missing == before => self.root += 1,
                Ok(()) => self.spare += 1,
                other => panic!("{name} without {missing}: {other:?}"),
            }
        }
    }
}

/// Checks one diff, and that leaving out a needed node is noticed.
fn check_diff(name: &str, a: &TreeFile, b: &TreeFile, results: &Value, left_out: &mut LeftOut) {
    let difference = |from: &TreeFile, minus: &TreeFile| -> BTreeSet<Cid> {
        from.nodes
            .keys()
            .filter(|cid| !minus.nodes.contains_key(cid))
            .copied()
            .collect()
    };
    let set = |value: &Value| cids(value).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(difference(b, a), set(&results["created_nodes"]), "{name}");
    assert_eq!(difference(a, b), set(&results["deleted_nodes"]), "{name}");
    let ops = ops(&results["record_ops"]);
    let mut map = a.map.clone();
    apply(&mut map, &ops);
    assert_eq!(map, b.map, "{name}");

    let needed = cids(&results["inductive_proof_nodes"]);
    let blocks = only(&b.nodes, &needed);
    let ops = borrowed(&ops);
    assert_eq!(invert(&blocks, b.root, &ops).unwrap(), a.root, "{name}");
    prove_prev_data(&blocks, b.root, &ops, a.root).unwrap();
    left_out.each_of(name, &needed, &blocks, b.root, &ops, a.root);
}

#[test]
fn mst_test_suite() {
    let Some(folder) = suite("mst-test-suite") else {
        return;
    };
    let mut trees = BTreeMap::new();
    for entry in std::fs::read_dir(folder.join("cars/exhaustive")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        trees.insert(
            format!("./cars/exhaustive/{name}"),
            read_tree(&std::fs::read(path).unwrap()),
        );
    }
    ran("mst-test-suite trees", trees.len(), 96);

    let (mut cases, mut left_out) = (0, LeftOut::default());
    for case in json_lines(folder.join("mst-diff.jsonl")) {
        let name = case["name"].as_str().unwrap();
        let tree = |side: &str| &trees[case["inputs"][side].as_str().unwrap()];
        let (a, b) = (tree("mst_a"), tree("mst_b"));
        check_diff(name, a, b, &case["results"], &mut left_out);
        // The nodes of a lookup prove each path of the diff, in or out.
        let proof = only(&b.nodes, &cids(&case["results"]["proof_nodes"]));
        for op in ops(&case["results"]["record_ops"]) {
            let found = prove_record(&proof, b.root, op.path.as_bytes()).unwrap();
            assert_eq!(found, op.cid, "{name} {}", op.path);
        }
        cases += 1;
    }
    println!("conformance: mst-test-suite: {left_out:?}");
    assert_eq!(
        left_out,
        LeftOut {
            incomplete: 6009,
            root: 32,
            spare: 0
        }
    );
    ran("mst-test-suite diffs", cases, 2000);
}

#[test]
fn synthetic_diffs() {
    let Some(folder) = suite("synthetic/mst") else {
        return;
    };
    let (mut cases, mut left_out) = (0, LeftOut::default());
    for case in json_lines(folder.join("diffs.jsonl")) {
        let name = case["name"].as_str().unwrap();
        let tree = |map: &str, root: &str| {
            let map: Map = case[map]
                .as_object()
                .unwrap()
                .iter()
                .map(|(path, value)| (path.clone(), cid(value)))
                .collect();
            let (built, nodes) = build(&map);
            assert_eq!(built, cid(&case[root]), "{name}");
            TreeFile {
                root: built,
                nodes,
                map,
            }
        };
        let (a, b) = (tree("a", "root_a"), tree("b", "root_b"));
        for (text, block) in case["inductive_blocks"].as_object().unwrap() {
            assert_eq!(
                b.nodes[&text.parse::<Cid>().unwrap()],
                base64(block.as_str().unwrap()),
                "{name}"
            );
        }
        check_diff(name, &a, &b, &case, &mut left_out);
        let paths = only(&b.nodes, &cids(&case["path_nodes"]));
        for op in ops(&case["record_ops"]) {
            assert_eq!(
                prove_record(&paths, b.root, op.path.as_bytes()).unwrap(),
                op.cid,
                "{name} {}",
                op.path
            );
        }
        cases += 1;
    }
    println!("conformance: synthetic mst/diffs: {left_out:?}");
    assert_eq!(
        left_out,
        LeftOut {
            incomplete: 906,
            root: 9,
            spare: 0
        }
    );
    ran("synthetic mst/diffs", cases, 300);
}

#[test]
fn indigo_firehose_commits() {
    let Some(folder) = suite("indigo/firehose-commits") else {
        return;
    };
    let invert_frame = |seq: u64| {
        let body = json(folder.join(format!("firehose_commit_{seq}.json")));
        let (root, blocks) = read_car(&base64(body["blocks"]["$bytes"].as_str().unwrap()));
        let blocks = index(blocks);
        let data = commit_data(&blocks[root.digest()]);
        let ops: Vec<(String, Cid)> = body["ops"]
            .as_array()
            .unwrap()
            .iter()
            .map(|op| (op["path"].as_str().unwrap().to_owned(), cid(&op["cid"]["$link"])))
            .collect();
        let ops: Vec<_> = ops
            .iter()
            .map(|(path, cid)| RecordOp {
                path: path.as_bytes(),
                cid: Some(*cid),
                prev: None,
            })
            .collect();
        invert(&blocks, data, &ops)
    };
    let trimmed = "bafyreicfeeojgjj7gtgl6go25tk5jmcuoytjp5hhulbdd7gwzk7gtqw3ka";
    assert_eq!(invert_frame(4_623_075_231).unwrap(), trimmed.parse().unwrap());
    assert!(matches!(
        invert_frame(4_621_317_030),
        Err(ProofError::Incomplete(_))
    ));
    ran("indigo firehose-commits", 2, 2);
}

/// The link in a commit's `data` field.
fn commit_data(block: &[u8]) -> Cid {
    let field = b"\x64data\xd8\x2a\x58\x25\x00";
    let at = block
        .windows(field.len())
        .position(|window| window == field)
        .unwrap()
        + field.len();
    Cid::from_bytes(&block[at..at + 36]).unwrap()
}

/// Walks a whole repository, demanding each record's block too.
fn read_repo(blocks: &Blocks, data: Cid) -> Result<Rows, WalkError> {
    let mut rows = BTreeMap::new();
    walk(blocks, data, &WalkLimits::default(), |path, record| {
        let bytes = blocks.get(record.digest()).ok_or(WalkError::NoRecord(record))?;
        rows.insert(String::from_utf8(path.to_vec()).unwrap(), (record, bytes.clone()));
        Ok::<_, WalkError>(())
    })?;
    Ok(Rows(rows))
}

fn check_full_repo(name: &str, case: &Value, root: Cid, blocks: &Blocks) {
    let data = cid(&case["data"]);
    let rows = read_repo(blocks, data).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let lines: String = rows
        .0
        .iter()
        .map(|(path, (cid, _))| format!("{path} {cid}\n"))
        .collect();
    let digest = data_encoding::HEXLOWER.encode(&sha256(lines.as_bytes()));
    assert_eq!(digest, case["digest"].as_str().unwrap(), "{name}");
    assert_eq!(rows.0.len() as u64, case["records"].as_u64().unwrap(), "{name}");

    let proven = prove(&rows, data).unwrap();
    assert_eq!(
        proven.record_bytes(),
        case["record_bytes"].as_u64().unwrap(),
        "{name}"
    );
    let commit = &blocks[root.digest()];
    let mut car = Vec::new();
    let stats = proven.write_car(&rows, root, commit, &mut car).unwrap();
    assert_eq!(stats.bytes, car.len() as u64, "{name}");
    assert_eq!(proven.car_bytes(commit.len()), stats.bytes, "{name}");
    let (again, exported) = read_car(&car);
    assert_eq!(again, root, "{name}");
    assert_eq!(exported[0].0, root, "{name}: the commit comes first");
    assert_eq!(index(exported), *blocks, "{name}");

    // One flipped byte in any record, and nothing is written.
    for path in rows.0.keys() {
        let mut damaged = rows.0.clone();
        *damaged.get_mut(path).unwrap().1.last_mut().unwrap() ^= 1;
        assert!(
            matches!(prove(&Rows(damaged), data), Err(ExportError::RecordHash { .. })),
            "{name} {path}"
        );
    }
}

fn check_slice(name: &str, case: &Value, blocks: &Blocks) {
    let data = cid(&case["data"]);
    let full = read_repo(blocks, data);
    assert!(
        matches!(full, Err(WalkError::Tree(MstError::Missing(_)))),
        "{name} passed as a full export"
    );
    let mut rows = BTreeMap::new();
    for path in strings(&case["present_records"]) {
        let record = prove_record(blocks, data, path.as_bytes())
            .unwrap()
            .expect("the record is in the tree");
        rows.insert(path, (record, blocks[record.digest()].clone()));
    }
    assert!(
        matches!(prove(&Rows(rows), data), Err(ExportError::OtherRoot { .. })),
        "{name}"
    );

    let (mut listed, mut links) = (0, vec![data]);
    while let Some(link) = links.pop() {
        if let Some(block) = blocks.get(link.digest()) {
            let node = Node::decode(block).unwrap();
            listed += node.len() as u64;
            links.extend((0..=node.len()).filter_map(|number| node.subtree(number)));
        }
    }
    assert_eq!(listed, case["listed_keys"].as_u64().unwrap(), "{name}");
}

#[test]
fn repo_cars() {
    let Some(folder) = suite("repo-cars") else { return };
    let cases = json(folder.join("expected.json"));
    let mut slices = 0;
    for case in cases.as_array().unwrap() {
        let name = case["file"].as_str().unwrap();
        let bytes = std::fs::read(folder.join(name)).unwrap();
        let (root, blocks) = read_car(&bytes);
        assert_eq!(root, cid(&case["root"]), "{name}");
        let blocks = index(blocks);
        if case["complete"].as_bool().unwrap() {
            check_full_repo(name, case, root, &blocks);
        } else {
            check_slice(name, case, &blocks);
            slices += 1;
        }
    }
    assert_eq!(slices, 2);
    ran("repo-cars", cases.as_array().unwrap().len(), 7);
}

/// The files of `synthetic/repo-car` whose fault is in the tree: the walk must tell good from bad.
#[test]
fn synthetic_repo_trees() {
    let Some(folder) = suite("synthetic/repo-car") else {
        return;
    };
    let vectors = json(folder.join("vectors-a.json"));
    let mut cases = 0;
    for case in vectors["vectors"].as_array().unwrap() {
        let name = case["id"].as_str().unwrap();
        if !["tree", "completeness", "valid"].contains(&case["class"].as_str().unwrap())
            || name == "miss-commit"
        {
            continue;
        }
        let (root, blocks) = read_car(&base64(case["car_b64"].as_str().unwrap()));
        let blocks = index(blocks);
        let data = commit_data(&blocks[root.digest()]);
        let rows = read_repo(&blocks, data);
        // Records are opaque here: whether they are good CBOR is not the tree's business.
        if case["expect"] == "accept" || name == "rec-not-cbor" {
            let rows = rows.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            let lines: String = rows
                .0
                .iter()
                .map(|(path, (cid, _))| format!("{path} {cid}\n"))
                .collect();
            let digest = data_encoding::HEXLOWER.encode(&sha256(lines.as_bytes()));
            assert_eq!(digest, case["state"]["digest"].as_str().unwrap(), "{name}");
            prove(&rows, data).unwrap();
        } else {
            let error = rows.err().unwrap_or_else(|| panic!("{name} passed"));
            let in_tree = matches!(error, WalkError::Tree(MstError::Node { .. }));
            assert_eq!(in_tree, case["class"] == "tree", "{name}: {error:?}");
        }
        cases += 1;
    }
    ran("synthetic repo-car trees", cases, SYNTHETIC_TREES);
}

const SYNTHETIC_TREES: usize = 27;
