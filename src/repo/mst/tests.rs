//! Tests of the node codec, the builder and the walk. The published trees are in
//! `tests/conformance_mst.rs`.

use proptest::prelude::*;

use super::fixtures::{Blocks, Map, any_map, build, keys_on_layer, read, record};
use super::*;

/// The root of the empty tree, as every implementation has it.
const EMPTY_ROOT: &str = "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm";

const LINK: [u8; 5] = [0xd8, 0x2a, 0x58, 0x25, 0x00];

/// One entry with its suffix, prefix length and links as given, whatever they are.
fn entry(suffix: &[u8], prefix: u8, right: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0xa4, 0x61, b'k', 0x58, suffix.len() as u8];
    if suffix.len() < 24 {
        out.truncate(3);
        out.push(0x40 | suffix.len() as u8);
    }
    out.extend_from_slice(suffix);
    out.extend_from_slice(&[0x61, b'p', prefix, 0x61, b't']);
    out.extend_from_slice(right);
    out.extend_from_slice(&[0x61, b'v']);
    out.extend_from_slice(value);
    out
}

fn link(cid: Cid) -> Vec<u8> {
    [&LINK[..], &cid.to_bytes()].concat()
}

fn node(entries: &[Vec<u8>], left: &[u8]) -> Vec<u8> {
    let mut out = vec![0xa2, 0x61, b'e', 0x80 | entries.len() as u8];
    out.extend(entries.concat());
    out.extend_from_slice(&[0x61, b'l']);
    out.extend_from_slice(left);
    out
}

/// A node with these entries `(key, subtree)` below one another, valid in itself.
fn encode(left: Option<Cid>, entries: &[(&str, Option<Cid>)]) -> Vec<u8> {
    let mut encoder = NodeEncoder::default();
    left.into_iter().for_each(|cid| encoder.attach(cid));
    for (key, right) in entries {
        encoder.push(key.as_bytes(), record(0));
        right.iter().for_each(|cid| encoder.attach(*cid));
    }
    let mut block = Vec::new();
    encoder.finish(&mut block);
    block
}

/// Adds a block to a source and returns its CID.
fn put(blocks: &mut Blocks, block: Vec<u8>) -> Cid {
    let cid = Cid::of_block(&block);
    blocks.insert(*cid.digest(), block);
    cid
}

fn fault(result: Result<Map, MstError>) -> NodeFault {
    match result {
        Err(MstError::Node { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_decodes_to_what_was_encoded() {
    let keys = keys_on_layer(0, 3);
    let block = encode(
        Some(record(1)),
        &[(&keys[0], None), (&keys[1], Some(record(2))), (&keys[2], None)],
    );
    let node = Node::decode(&block).unwrap();
    assert_eq!(node.encode(), block);
    assert_eq!((node.len(), node.is_empty(), node.layer()), (3, false, Some(0)));
    assert_eq!(
        (0..4).map(|n| node.subtree(n)).collect::<Vec<_>>(),
        [Some(record(1)), None, Some(record(2)), None]
    );
    assert!(
        node.entries()
            .map(|entry| entry.key)
            .eq(keys.iter().map(String::as_bytes))
    );
    assert_eq!(node.find(keys[1].as_bytes()), Ok(1));
    assert_eq!(node.find(b"a/b"), Err(0));
    assert_eq!(node.find(b"z/b"), Err(3));
    assert_eq!(node.entry(3), None);
}

#[test]
fn nodes_in_another_form_are_refused() {
    let at = |block: &[u8]| match Node::decode(block) {
        Err(NodeFault::Encoding { at, .. }) => at,
        other => panic!("{other:?}"),
    };
    assert_eq!(at(&[]), 0);
    assert_eq!(at(b"\xa1\x61e\x80"), 0, "no l");
    assert_eq!(at(b"\xa2\x61l\xf6\x61e\x80"), 0, "l before e");
    assert_eq!(at(b"\xa2\x61e\xf6\x61l\xf6"), 3, "e is null");
    assert_eq!(at(b"\xa2\x61e\x9f\xff\x61l\xf6"), 3, "indefinite length");
    assert_eq!(at(b"\xbf\x61e\x80\x61l\xf6\xff"), 0, "indefinite map");
    assert_eq!(at(b"\xa2\x61e\x80\x61l\xf7"), 6, "undefined");
    assert_eq!(at(b"\xa3\x61e\x80\x61l\xf6\x61x\xf6"), 0, "another field");
    assert_eq!(at(b"\xa2\x61e\x81\xa3"), 4, "entry without a field");
    assert_eq!(
        at(b"\xa2\x61e\x81\xa4\x61k\x5b\xff\xff\xff\xff\xff\xff\xff\xff"),
        16,
        "huge key"
    );
    assert_eq!(
        Node::decode(b"\xa2\x61e\x80\x61l\xf6\x00"),
        Err(NodeFault::Trailing { at: 7 })
    );
    assert_eq!(
        Node::decode(b"\xa2\x61e\x98\x17"),
        Err(NodeFault::NotShortest { at: 3 })
    );
    assert_eq!(
        Node::decode(b"\xa2\x61e\x99\x00\xff"),
        Err(NodeFault::NotShortest { at: 3 })
    );
    assert_eq!(
        Node::decode(b"\xa2\x61e\x9a\x00\x00\xff\xff"),
        Err(NodeFault::NotShortest { at: 3 })
    );
    assert_eq!(
        Node::decode(b"\xa2\x61e\x9b\x00\x00\x00\x00\xff\xff\xff\xff"),
        Err(NodeFault::NotShortest { at: 3 })
    );
    let many = NodeFault::TooManyEntries {
        max: NODE_ENTRIES_MAX,
    };
    assert_eq!(Node::decode(b"\xa2\x61e\x99\x10\x01"), Err(many));
    assert_eq!(
        Node::decode(b"\xa2\x61e\x9b\xff\xff\xff\xff\xff\xff\xff\xff"),
        Err(many)
    );
}

#[test]
fn keys_in_another_form_are_refused() {
    let (v, null) = (link(record(0)), vec![0xf6]);
    // Two keys of layer 0 that share 21 bytes.
    assert_eq!(
        (
            layer_of(b"com.example.foo/000000"),
            layer_of(b"com.example.foo/000001")
        ),
        (0, 0)
    );
    let first = entry(b"com.example.foo/000000", 0, &null, &v);
    let second = |suffix: &[u8], prefix| node(&[first.clone(), entry(suffix, prefix, &null, &v)], &null);
    assert!(Node::decode(&second(b"1", 21)).is_ok());

    assert_eq!(
        Node::decode(&second(b"", 21)),
        Err(NodeFault::KeyOrder),
        "a key that is a prefix"
    );
    assert_eq!(
        Node::decode(&second(b"com.example.foo/000001", 0)),
        Err(NodeFault::PrefixTooShort { entry: 1 })
    );
    assert_eq!(
        Node::decode(&second(b"com.example.foo/000000", 0)),
        Err(NodeFault::PrefixTooShort { entry: 1 })
    );
    assert_eq!(
        Node::decode(&second(b"", 22)),
        Err(NodeFault::KeyOrder),
        "the same key again"
    );
    assert_eq!(
        Node::decode(&second(b"1", 23)),
        Err(NodeFault::PrefixTooLong { entry: 1 })
    );
    assert_eq!(Node::decode(&second(b"a", 0)), Err(NodeFault::KeyOrder));
    assert_eq!(
        Node::decode(&node(&[entry(b"a/b", 1, &null, &v)], &null)),
        Err(NodeFault::PrefixTooLong { entry: 0 })
    );
    assert!(matches!(
        Node::decode(&node(&[entry(b"ab", 0, &null, &v)], &null)),
        Err(NodeFault::Key(_))
    ));
    let (low, high) = (keys_on_layer(0, 1).remove(0), keys_on_layer(1, 1).remove(0));
    assert!(low < high);
    let mixed = encode(None, &[(&low, None), (&high, None)]);
    assert_eq!(
        Node::decode(&mixed),
        Err(NodeFault::Layer {
            expected: 0,
            found: 1
        })
    );
}

#[test]
fn links_other_than_to_blocks_are_refused() {
    let (v, null) = (link(record(0)), vec![0xf6]);
    let raw = link(Cid::of_blob(b"x"));
    let mut cid_version_0 = v.clone();
    cid_version_0[5] = 0;
    let key = b"com.example.foo/000000";
    for bad in [&raw, &cid_version_0] {
        for block in [
            node(&[], bad),
            node(&[entry(key, 0, bad, &v)], &null),
            node(&[entry(key, 0, &null, bad)], &null),
        ] {
            assert!(
                matches!(Node::decode(&block), Err(NodeFault::Link { .. })),
                "{block:?}"
            );
        }
    }
    // A record that is null, and a link whose byte string lacks the leading zero.
    assert!(matches!(
        Node::decode(&node(&[entry(key, 0, &null, &null)], &null)),
        Err(NodeFault::Encoding { .. })
    ));
    let mut bare = v;
    bare[4] = 1;
    assert!(matches!(
        Node::decode(&node(&[], &bare)),
        Err(NodeFault::Encoding { .. })
    ));
}

proptest! {
    #[test]
    fn a_damaged_node_is_refused_or_encodes_to_itself(
        map in any_map(40), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()
    ) {
        for block in build(&map).1.values() {
            let mut damaged = block.clone();
            let at = at.index(block.len());
            damaged[at] = byte;
            if cut {
                damaged.truncate(at);
                prop_assert!(Node::decode(&damaged).is_err());
            } else if let Ok(node) = Node::decode(&damaged) {
                prop_assert_eq!(node.encode(), damaged);
            }
        }
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Node::decode(&bytes).is_err());
    }

    #[test]
    fn a_tree_reads_back_as_the_map_it_was_built_from(map in any_map(300)) {
        let (root, nodes) = build(&map);
        prop_assert_eq!(read(&nodes, root, &WalkLimits::default()).unwrap(), map.clone());
        let stats = walk(&nodes, root, &WalkLimits::default(), |_, _| Ok::<_, MstError>(())).unwrap();
        prop_assert_eq!((stats.nodes, stats.records), (nodes.len() as u64, map.len() as u64));
        prop_assert_eq!(stats.node_bytes, nodes.values().map(|block| block.len() as u64).sum::<u64>());
        prop_assert_eq!(tree_root(map.iter().map(|(path, cid)| (path.as_bytes(), *cid))).unwrap(), root);
        // The tree depends on the map alone: any change of it changes the root, and undoing it restores it.
        let mut other = map.clone();
        other.insert("com.example.foo/new".to_owned(), record(99));
        prop_assert_ne!(build(&other).0, root);
        other.remove("com.example.foo/new");
        prop_assert_eq!(build(&other).0, root);
    }

    #[test]
    fn a_tree_without_one_of_its_nodes_is_never_whole(
        map in any_map(100), which in any::<prop::sample::Index>()
    ) {
        let (root, mut nodes) = build(&map);
        let missing = *which.get(&nodes.keys().copied().collect::<Vec<_>>());
        nodes.remove(&missing);
        match read(&nodes, root, &WalkLimits::default()) {
            Err(MstError::Missing(cid)) => prop_assert_eq!(cid.digest(), &missing),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

#[test]
fn layers_are_halved_zero_bits() {
    // From the published key heights.
    assert_eq!(layer_of(b""), 0);
    assert_eq!(layer_of(b"blue"), 1);
    assert_eq!(layer_of(b"app.bsky.feed.post/9adeb165882c"), 8);
}

#[test]
fn order_is_that_of_bytes_not_of_collections() {
    let paths = [
        "com.example.foo-x.bar/x",
        "com.example.foo.bar/x",
        "com.example.foo/x",
    ];
    let pairs = |paths: [&'static str; 3]| paths.map(|path| (path.as_bytes(), record(1)));
    assert!(tree_root(pairs(paths)).is_ok());
    let by_collection = [paths[2], paths[0], paths[1]];
    assert_eq!(tree_root(pairs(by_collection)), Err(BuildError::NotSorted));
}

#[test]
fn the_empty_tree_has_one_empty_node() {
    let (root, nodes) = build(&Map::new());
    assert_eq!(root.to_string(), EMPTY_ROOT);
    assert_eq!(read(&nodes, root, &WalkLimits::default()).unwrap(), Map::new());
}

#[test]
fn the_builder_refuses_what_is_no_tree() {
    let mut builder = TreeBuilder::new(|_, _, _: &[u8]| {});
    builder.push(b"a/b", record(1)).unwrap();
    assert_eq!(builder.push(b"a/b", record(1)), Err(BuildError::NotSorted));
    assert_eq!(builder.push(b"a/a", record(1)), Err(BuildError::NotSorted));
    assert_eq!(
        builder.push(b"a/c", Cid::of_blob(b"x")),
        Err(BuildError::NotARecord)
    );
    for key in [
        &b""[..],
        b"b",
        b"b/",
        b"/b",
        b"b/c/d",
        b"b/\xc3\xa9",
        b"b/c d",
        &[b'b'; 1025],
    ] {
        assert!(
            matches!(builder.push(key, record(1)), Err(BuildError::Key(_))),
            "{key:?}"
        );
    }
    // A refused push leaves the tree as it was.
    assert_eq!(builder.finish(), tree_root([(&b"a/b"[..], record(1))]).unwrap());
}

#[test]
fn a_node_holds_4096_entries_and_not_one_more() {
    let keys = keys_on_layer(0, NODE_ENTRIES_MAX + 1);
    let mut blocks = Blocks::new();
    let mut builder = TreeBuilder::new(|_, cid: Cid, block: &[u8]| {
        blocks.insert(*cid.digest(), block.to_vec());
    });
    for key in &keys[..NODE_ENTRIES_MAX] {
        builder.push(key.as_bytes(), record(0)).unwrap();
    }
    assert_eq!(
        builder.push(keys[NODE_ENTRIES_MAX].as_bytes(), record(0)),
        Err(BuildError::NodeFull)
    );
    let root = builder.finish();
    assert_eq!(
        read(&blocks, root, &WalkLimits::default()).unwrap().len(),
        NODE_ENTRIES_MAX
    );
    let limits = WalkLimits {
        node_entries_max: NODE_ENTRIES_MAX - 1,
        ..WalkLimits::default()
    };
    assert_eq!(
        fault(read(&blocks, root, &limits)),
        NodeFault::TooManyEntries {
            max: NODE_ENTRIES_MAX - 1
        }
    );
}

#[test]
fn the_walk_keeps_its_limits() {
    let low = keys_on_layer(0, 1).remove(0);
    let map: Map = [
        (low, record(1)),
        ("app.bsky.feed.post/9adeb165882c".to_owned(), record(2)),
    ]
    .into();
    let (root, nodes) = build(&map);
    assert_eq!(
        nodes.len(),
        9,
        "seven keyless nodes lead from layer 8 down to layer 0"
    );
    let limits = WalkLimits {
        layer_max: 8,
        records_max: 2,
        ..WalkLimits::default()
    };
    assert_eq!(read(&nodes, root, &limits).unwrap(), map);
    let shallow = WalkLimits {
        layer_max: 7,
        ..limits
    };
    assert_eq!(
        fault(read(&nodes, root, &shallow)),
        NodeFault::TooDeep { found: 8, max: 7 }
    );
    let few = WalkLimits {
        records_max: 1,
        ..limits
    };
    assert!(matches!(
        read(&nodes, root, &few),
        Err(MstError::TooManyRecords(1))
    ));
}

#[test]
fn the_walk_wants_record_paths_unless_told_otherwise() {
    let map: Map = [("coll/a".to_owned(), record(1))].into();
    let (root, nodes) = build(&map);
    assert!(matches!(
        fault(read(&nodes, root, &WalkLimits::default())),
        NodeFault::Key(_)
    ));
    let limits = WalkLimits {
        keys: KeyRule::Shape,
        ..WalkLimits::default()
    };
    assert_eq!(read(&nodes, root, &limits).unwrap(), map);
}

#[test]
fn trees_of_another_structure_are_refused() {
    let limits = WalkLimits {
        keys: KeyRule::Shape,
        ..WalkLimits::default()
    };
    let low = keys_on_layer(0, 2);
    let (one, two) = (keys_on_layer(1, 2), keys_on_layer(2, 1));
    let mut blocks = Blocks::new();
    let empty = put(&mut blocks, encode(None, &[]));
    let leaf = put(&mut blocks, encode(None, &[(&low[0], None)]));
    let wrong = |blocks: &mut Blocks, block: Vec<u8>| {
        let root = put(blocks, block);
        fault(read(blocks, root, &limits))
    };
    assert_eq!(wrong(&mut blocks, encode(Some(leaf), &[])), NodeFault::NotTrimmed);
    assert_eq!(
        wrong(&mut blocks, encode(Some(empty), &[(&one[0], None)])),
        NodeFault::Empty
    );
    assert_eq!(
        wrong(&mut blocks, encode(Some(leaf), &[(&low[1], None)])),
        NodeFault::BelowLayerZero
    );
    assert_eq!(
        wrong(&mut blocks, encode(Some(leaf), &[(&two[0], None)])),
        NodeFault::Layer {
            expected: 1,
            found: 0
        }
    );
    // A keyless node counts as a layer: below layer 0 there is none.
    let keyless = put(&mut blocks, encode(Some(leaf), &[]));
    assert_eq!(
        wrong(&mut blocks, encode(Some(keyless), &[(&one[0], None)])),
        NodeFault::BelowLayerZero
    );
    // The leaf's key is the least of all; here it hangs to the right of a greater one.
    assert!(low[0] < one[0]);
    assert_eq!(
        wrong(&mut blocks, encode(None, &[(&one[0], Some(leaf))])),
        NodeFault::KeyOrder
    );
    // The same subtree twice.
    let twice = encode(Some(leaf), &[(&one[0], Some(leaf)), (&one[1], None)]);
    assert_eq!(wrong(&mut blocks, twice), NodeFault::KeyOrder);
}

#[test]
fn a_source_that_cannot_be_read_is_not_a_missing_block() {
    struct Broken;
    impl BlockSource for Broken {
        fn block(&self, _: &Cid) -> io::Result<Option<Cow<'_, [u8]>>> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    let result = walk(&Broken, record(1), &WalkLimits::default(), |_, _| {
        Ok::<_, MstError>(())
    });
    let error = result.unwrap_err();
    assert!(matches!(error, MstError::Source { .. }));
    assert!(error.to_string().ends_with("the disk is gone"));
}

#[test]
fn the_visitor_can_stop_the_walk() {
    let map: Map = keys_on_layer(0, 3)
        .into_iter()
        .map(|key| (key, record(1)))
        .collect();
    let (root, nodes) = build(&map);
    let mut seen = 0;
    let result = walk(&nodes, root, &WalkLimits::default(), |_, record| {
        seen += 1;
        if seen == 2 {
            Err(MstError::Missing(record))
        } else {
            Ok(())
        }
    });
    assert!(matches!(result, Err(MstError::Missing(_))));
    assert_eq!(seen, 2);
}
