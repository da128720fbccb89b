//! The root of a repository's tree, built slowly and straight from the specification: the oracle's second
//! opinion. Shares no code with `repo::mst` or `repo::cbor`.
//!
//! Source: <https://atproto.com/specs/repository#mst-structure>.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// A DAG-CBOR CID's digest.
type Hash = [u8; 32];

/// The digest of the root node over these records.
#[must_use]
pub fn root(records: &BTreeMap<String, Vec<u8>>) -> Hash {
    build(records, &mut Vec::new())
}

/// Every node of the tree over these records.
#[must_use]
pub fn nodes(records: &BTreeMap<String, Vec<u8>>) -> Vec<Vec<u8>> {
    let mut nodes = Vec::new();
    build(records, &mut nodes);
    nodes
}

fn build(records: &BTreeMap<String, Vec<u8>>, nodes: &mut Vec<Vec<u8>>) -> Hash {
    let leaves: Vec<Leaf> = records
        .iter()
        .map(|(path, bytes)| Leaf {
            layer: layer(path.as_bytes()),
            path: path.as_bytes().to_vec(),
            record: hash(bytes),
        })
        .collect();
    let top = leaves.iter().map(|leaf| leaf.layer).max().unwrap_or(0);
    node(&leaves, top, nodes)
}

struct Leaf {
    layer: u32,
    path: Vec<u8>,
    record: Hash,
}

fn hash(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// Half the number of leading zero bits of the path's hash.
fn layer(path: &[u8]) -> u32 {
    let digest = hash(path);
    let mut zeros = 0;
    for byte in digest {
        zeros += byte.leading_zeros();
        if byte != 0 {
            break;
        }
    }
    zeros / 2
}

/// The node of a layer over these leaves, none of which lies above it.
fn node(leaves: &[Leaf], layer: u32, nodes: &mut Vec<Vec<u8>>) -> Hash {
    let mut entries: Vec<(&Leaf, &[Leaf])> = Vec::new();
    let first = leaves
        .iter()
        .position(|leaf| leaf.layer == layer)
        .unwrap_or(leaves.len());
    let left = &leaves[..first];
    let mut rest = &leaves[first..];
    while let Some((leaf, after)) = rest.split_first() {
        let next = after
            .iter()
            .position(|leaf| leaf.layer == layer)
            .unwrap_or(after.len());
        entries.push((leaf, &after[..next]));
        rest = &after[next..];
    }
    let mut below = |leaves: &[Leaf]| (!leaves.is_empty()).then(|| node(leaves, layer - 1, nodes));

    let mut out = vec![0xa2, 0x61, b'e'];
    head(&mut out, 4, entries.len());
    let mut before: &[u8] = b"";
    for (leaf, right) in entries {
        let shared = before.iter().zip(&leaf.path).take_while(|(a, b)| a == b).count();
        out.extend([0xa4, 0x61, b'k']);
        head(&mut out, 2, leaf.path.len() - shared);
        out.extend(&leaf.path[shared..]);
        out.extend([0x61, b'p']);
        head(&mut out, 0, shared);
        out.extend([0x61, b't']);
        link(&mut out, below(right));
        out.extend([0x61, b'v']);
        link(&mut out, Some(leaf.record));
        before = &leaf.path;
    }
    out.extend([0x61, b'l']);
    link(&mut out, below(left));
    let hash = hash(&out);
    nodes.push(out);
    hash
}

fn head(out: &mut Vec<u8>, major: u8, value: usize) {
    match value {
        0..24 => out.push(major << 5 | u8::try_from(value).expect("below 24")),
        24..256 => out.extend([major << 5 | 24, u8::try_from(value).expect("below 256")]),
        _ => {
            out.push(major << 5 | 25);
            out.extend(
                u16::try_from(value)
                    .expect("simulated repositories are small")
                    .to_be_bytes(),
            );
        }
    }
}

fn link(out: &mut Vec<u8>, digest: Option<Hash>) {
    match digest {
        None => out.push(0xf6),
        Some(digest) => {
            out.extend([0xd8, 42, 0x58, 37, 0x00, 0x01, 0x71, 0x12, 0x20]);
            out.extend(digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digest: Hash) -> String {
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_empty_tree_is_the_published_one() {
        // bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm, as in the interoperability tests.
        let cid: crate::types::Cid = "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"
            .parse()
            .expect("a CID");
        assert_eq!(hex(root(&BTreeMap::new())), hex(*cid.digest()));
    }
}
