//! Trees for the tests of this module and of proof and export.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A repository's content.
pub(crate) type Map = BTreeMap<String, Cid>;

/// Blocks by digest.
pub(crate) type Blocks = BTreeMap<Digest, Vec<u8>>;

/// The CID of some record that is told apart by a number.
pub(crate) fn record(number: u64) -> Cid {
    Cid::of_block(&number.to_be_bytes())
}

/// Builds the tree of a map: its root, and its nodes.
pub(crate) fn build(map: &Map) -> (Cid, Blocks) {
    let mut nodes = Blocks::new();
    let mut builder = TreeBuilder::new(|_, cid: Cid, block: &[u8]| {
        assert!(cid.matches(block));
        nodes.insert(*cid.digest(), block.to_vec());
    });
    for (path, record) in map {
        builder.push(path.as_bytes(), *record).unwrap();
    }
    let root = builder.finish();
    (root, nodes)
}

/// Reads a tree back.
pub(crate) fn read(blocks: &Blocks, root: Cid, limits: &WalkLimits) -> Result<Map, MstError> {
    let mut map = Map::new();
    walk(blocks, root, limits, |path, record| {
        map.insert(String::from_utf8(path.to_vec()).unwrap(), record);
        Ok::<_, MstError>(())
    })?;
    Ok(map)
}

/// Collections whose order in the tree is not that of their names: `.` and `-` sort before `/`.
const COLLECTIONS: [&str; 4] = [
    "com.example.foo",
    "com.example.foo.bar",
    "com.example.foo-x.bar",
    "com.example.fooz",
];

/// A path out of a few thousand, so that operations hit what is there, on layers 0 to 5.
pub(crate) fn any_path() -> impl Strategy<Value = String> {
    (0..COLLECTIONS.len(), 0..600_u32)
        .prop_map(|(collection, number)| format!("{}/{number}", COLLECTIONS[collection]))
}

/// A map of up to this many records.
pub(crate) fn any_map(records_max: usize) -> impl Strategy<Value = Map> {
    proptest::collection::btree_map(any_path(), (0..8_u64).prop_map(record), 0..records_max)
}

/// The first keys `com.example.foo/<number>` that are on a layer, in key order.
pub(crate) fn keys_on_layer(layer: u32, count: usize) -> Vec<String> {
    (0_u32..)
        .map(|number| format!("com.example.foo/{number:06}"))
        .filter(|key| layer_of(key.as_bytes()) == layer)
        .take(count)
        .collect()
}
