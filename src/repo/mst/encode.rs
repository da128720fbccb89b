//! Writes nodes, for the builder, the inversion and the export alike.

use crate::types::Cid;

/// What stands for a subtree that is not there.
pub(super) const NULL: u8 = 0xf6;

/// Tag 42, a byte string of 37 bytes, and the zero that stands before a binary CID in CBOR.
pub(super) const LINK_HEAD: [u8; 5] = [0xd8, 0x2a, 0x58, 0x25, 0x00];

/// Writes one node after the other, each entry as soon as it is known; a subtree may follow later.
#[derive(Debug, Default)]
pub(crate) struct NodeEncoder {
    left: Option<Cid>,
    /// The entries so far, the last one without its `t` and `v`.
    body: Vec<u8>,
    count: usize,
    last_key: Vec<u8>,
    open: Option<OpenEntry>,
}

/// The last entry, whose subtree is not known yet.
#[derive(Debug, Clone, Copy)]
struct OpenEntry {
    value: Cid,
    right: Option<Cid>,
}

impl NodeEncoder {
    /// How many entries were pushed since the last node.
    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is neither an entry nor a subtree.
    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0 && self.left.is_none()
    }

    /// Hangs a subtree behind the last entry, or left of the first.
    pub(crate) const fn attach(&mut self, subtree: Cid) {
        match &mut self.open {
            Some(entry) => entry.right = Some(subtree),
            None => self.left = Some(subtree),
        }
    }

    /// Appends an entry. Keys must rise; whoever calls has checked that.
    pub(crate) fn push(&mut self, key: &[u8], value: Cid) {
        self.seal();
        let prefix = common_prefix_len(&self.last_key, key);
        self.body.extend_from_slice(&[0xa4, 0x61, b'k']);
        put_head(&mut self.body, 2, key.len() - prefix);
        self.body.extend_from_slice(&key[prefix..]);
        self.body.extend_from_slice(&[0x61, b'p']);
        put_head(&mut self.body, 0, prefix);
        self.last_key.truncate(prefix);
        self.last_key.extend_from_slice(&key[prefix..]);
        self.open = Some(OpenEntry { value, right: None });
        self.count += 1;
    }

    /// Writes the node into `block`, replacing what it held, and begins the next one.
    pub(crate) fn finish(&mut self, block: &mut Vec<u8>) {
        self.seal();
        block.clear();
        block.extend_from_slice(&[0xa2, 0x61, b'e']);
        put_head(block, 4, self.count);
        block.extend_from_slice(&self.body);
        block.extend_from_slice(&[0x61, b'l']);
        put_link_or_null(block, self.left.take());
        self.body.clear();
        self.last_key.clear();
        self.count = 0;
    }

    fn seal(&mut self) {
        if let Some(OpenEntry { value, right }) = self.open.take() {
            self.body.extend_from_slice(&[0x61, b't']);
            put_link_or_null(&mut self.body, right);
            self.body.extend_from_slice(&[0x61, b'v']);
            put_link_or_null(&mut self.body, Some(value));
        }
    }
}

/// How many leading bytes two keys share.
#[must_use]
pub fn common_prefix_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// A head in shortest form.
fn put_head(out: &mut Vec<u8>, major: u8, argument: usize) {
    let initial = major << 5;
    let be = (argument as u64).to_be_bytes();
    match argument as u64 {
        0..24 => out.push(initial | be[7]),
        24..0x100 => out.extend_from_slice(&[initial | 24, be[7]]),
        0x100..0x1_0000 => out.extend_from_slice(&[initial | 25, be[6], be[7]]),
        0x1_0000..0x1_0000_0000 => {
            out.push(initial | 26);
            out.extend_from_slice(&be[4..]);
        }
        _ => {
            out.push(initial | 27);
            out.extend_from_slice(&be);
        }
    }
}

fn put_link_or_null(out: &mut Vec<u8>, link: Option<Cid>) {
    match link {
        None => out.push(NULL),
        Some(cid) => {
            out.extend_from_slice(&LINK_HEAD);
            out.extend_from_slice(&cid.to_bytes());
        }
    }
}
