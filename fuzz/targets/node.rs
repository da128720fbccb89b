//! A node of the tree: what decodes encodes to the same bytes, and its keys rise.
#![no_main]

use firekeep::repo::mst::Node;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(node) = Node::decode(bytes) else { return };
    assert_eq!(node.encode(), bytes);
    let keys: Vec<Vec<u8>> = node.entries().map(|entry| entry.key.to_vec()).collect();
    assert!(keys.is_sorted_by(|a, b| a < b));
    for (index, key) in keys.iter().enumerate() {
        assert_eq!(node.find(key), Ok(index));
    }
});
