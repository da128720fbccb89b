//! One tree node as a DAG-CBOR block: `{e: [{k, p, t, v}], l}`.
//!
//! `l` and `t` link the subtrees left of the first entry and right of each entry, or are null; `v`
//! links the record; `p` counts the bytes that a key shares with the key before it in the node, and
//! `k` holds the rest. The decoder is strict: encoding a decoded node gives the same bytes.

use crate::types::cid::CID_BYTES;
use crate::types::{Cid, Codec, SyntaxError};

use super::encode::{LINK_HEAD, NULL, NodeEncoder};
use super::{NODE_ENTRIES_MAX, check_key_shape, layer_of};

/// Why a block is not a node of a canonical tree, or not at this place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NodeFault {
    /// The bytes are not the one canonical encoding of a node.
    #[error("not a canonical node at byte {at}: expected {expected}")]
    Encoding {
        /// Where in the block.
        at: usize,
        /// What should stand there.
        expected: &'static str,
    },
    /// A number or length is written longer than needed.
    #[error("not in shortest form at byte {at}")]
    NotShortest {
        /// Where in the block.
        at: usize,
    },
    /// Bytes follow the node.
    #[error("bytes follow the node at byte {at}")]
    Trailing {
        /// Where in the block.
        at: usize,
    },
    /// A link is not a CID, or not one of a DAG-CBOR block.
    #[error("bad link at byte {at}: {error}")]
    Link {
        /// Where in the block.
        at: usize,
        /// What is wrong with the CID.
        error: SyntaxError,
    },
    /// More entries than [`NODE_ENTRIES_MAX`], or than the caller's lower limit.
    #[error("more than {max} entries in one node")]
    TooManyEntries {
        /// The limit.
        max: usize,
    },
    /// An entry claims a longer prefix than the key before it has.
    #[error("entry {entry} shares more bytes than the key before it has")]
    PrefixTooLong {
        /// Which entry of the node.
        entry: usize,
    },
    /// An entry repeats bytes that it should share with the key before it.
    #[error("entry {entry} does not share its whole prefix with the key before it")]
    PrefixTooShort {
        /// Which entry of the node.
        entry: usize,
    },
    /// A key is not greater than the key before it.
    #[error("keys are not in rising order")]
    KeyOrder,
    /// A key is not a tree key.
    #[error("bad key: {0}")]
    Key(#[from] SyntaxError),
    /// The keys of a node, or a node and its place, are of different layers.
    #[error("a key of layer {found} in a node of layer {expected}")]
    Layer {
        /// The layer that the node is on.
        expected: u32,
        /// The layer of the key.
        found: u32,
    },
    /// A node of layer 0 has a subtree.
    #[error("a subtree below layer 0")]
    BelowLayerZero,
    /// The root is on a higher layer than the caller's limit.
    #[error("the root is on layer {found}, above the limit of {max}")]
    TooDeep {
        /// The root's layer.
        found: u32,
        /// The limit.
        max: u32,
    },
    /// A node without keys and subtrees that is not the empty tree.
    #[error("an empty node inside the tree")]
    Empty,
    /// The root has no keys, only a subtree.
    #[error("the top of the tree is not trimmed")]
    NotTrimmed,
}

/// A decoded node. Its keys are whole, in one buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    left: Option<Cid>,
    layer: Option<u32>,
    entries: Vec<Slot>,
    keys: Vec<u8>,
}

/// An entry whose key ends at `key_end` in the node's buffer and begins where the one before it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    key_end: usize,
    value: Cid,
    right: Option<Cid>,
}

/// One entry of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The whole key: a record's path.
    pub key: &'a [u8],
    /// The record.
    pub value: Cid,
    /// The subtree of the keys between this one and the next.
    pub right: Option<Cid>,
}

impl Node {
    /// Decodes a node and checks all that can be seen in it alone: canonical form, exact prefixes, the
    /// keys' shape and order, one layer for all of them.
    ///
    /// # Errors
    /// The rule that the block breaks.
    pub fn decode(block: &[u8]) -> Result<Self, NodeFault> {
        let mut reader = Reader { block, at: 0 };
        reader.expect(&[0xa2, 0x61, b'e'], "a map of e and l, e first")?;
        let count = reader.head(4, "an array of entries")?;
        if count > NODE_ENTRIES_MAX as u64 {
            return Err(NodeFault::TooManyEntries {
                max: NODE_ENTRIES_MAX,
            });
        }
        let mut node = Self {
            left: None,
            layer: None,
            // The count is only declared: reserve what the bytes at hand can hold.
            entries: Vec::with_capacity((count as usize).min(block.len() / ENTRY_BYTES_MIN)),
            keys: Vec::with_capacity(block.len().min(1024)),
        };
        for _ in 0..count {
            node.decode_entry(&mut reader)?;
        }
        reader.expect(&[0x61, b'l'], "the field l")?;
        node.left = reader.link_or_null()?;
        if reader.at != block.len() {
            return Err(NodeFault::Trailing { at: reader.at });
        }
        Ok(node)
    }

    fn decode_entry(&mut self, reader: &mut Reader<'_>) -> Result<(), NodeFault> {
        reader.expect(&[0xa4, 0x61, b'k'], "an entry of k, p, t and v, k first")?;
        let suffix = reader.bytes("the rest of the key")?;
        reader.expect(&[0x61, b'p'], "the field p")?;
        let prefix = reader.head(0, "the length of the prefix")?;
        reader.expect(&[0x61, b't'], "the field t")?;
        let right = reader.link_or_null()?;
        reader.expect(&[0x61, b'v'], "the field v")?;
        let value = reader.link()?;
        self.push_key(prefix, suffix)?;
        self.entries.push(Slot {
            key_end: self.keys.len(),
            value,
            right,
        });
        Ok(())
    }

    /// Appends the key made of a prefix of the last one and a suffix.
    fn push_key(&mut self, prefix: u64, suffix: &[u8]) -> Result<(), NodeFault> {
        let entry = self.entries.len();
        let last_start = match entry {
            0 | 1 => 0,
            _ => self.entries[entry - 2].key_end,
        };
        let start = self.keys.len();
        let last_len = start - last_start;
        let prefix = usize::try_from(prefix)
            .ok()
            .filter(|&prefix| prefix <= last_len)
            .ok_or(NodeFault::PrefixTooLong { entry })?;
        if entry > 0 {
            let Some(&first) = suffix.first() else {
                return Err(NodeFault::KeyOrder);
            };
            match self.keys[last_start..start].get(prefix) {
                Some(&old) if old == first => return Err(NodeFault::PrefixTooShort { entry }),
                Some(&old) if old > first => return Err(NodeFault::KeyOrder),
                _ => {}
            }
        }
        self.keys.extend_from_within(last_start..last_start + prefix);
        self.keys.extend_from_slice(suffix);
        let key = &self.keys[start..];
        check_key_shape(key)?;
        let found = layer_of(key);
        match self.layer {
            Some(expected) if expected != found => Err(NodeFault::Layer { expected, found }),
            _ => {
                self.layer = Some(found);
                Ok(())
            }
        }
    }

    /// The subtree of the keys before the first entry.
    #[must_use]
    pub const fn left(&self) -> Option<Cid> {
        self.left
    }

    /// The layer of the keys, or `None` when the node has none.
    #[must_use]
    pub const fn layer(&self) -> Option<u32> {
        self.layer
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry. A subtree may still hang to the left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry at this position.
    #[must_use]
    pub fn entry(&self, index: usize) -> Option<Entry<'_>> {
        let slot = self.entries.get(index)?;
        let start = match index {
            0 => 0,
            _ => self.entries[index - 1].key_end,
        };
        Some(Entry {
            key: &self.keys[start..slot.key_end],
            value: slot.value,
            right: slot.right,
        })
    }

    /// The entries in key order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry<'_>> {
        let mut start = 0;
        self.entries.iter().map(move |slot| {
            let key = &self.keys[start..slot.key_end];
            start = slot.key_end;
            Entry {
                key,
                value: slot.value,
                right: slot.right,
            }
        })
    }

    /// Finds a key: `Ok` with the position of its entry, or `Err` with the number of keys before it,
    /// which is also the number of the subtree that could hold it (0 is the left one).
    ///
    /// # Errors
    /// When the key has no entry here, as said above.
    pub fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entry(middle).expect("the middle lies below the length");
            match entry.key.cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    /// The subtree with this number: 0 is left of all entries, `n` right of the nth.
    #[must_use]
    pub fn subtree(&self, number: usize) -> Option<Cid> {
        match number {
            0 => self.left,
            n => self.entries.get(n - 1).and_then(|slot| slot.right),
        }
    }

    /// The canonical block, the same bytes that were decoded.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = NodeEncoder::default();
        if let Some(left) = self.left {
            encoder.attach(left);
        }
        for entry in self.entries() {
            encoder.push(entry.key, entry.value);
            if let Some(right) = entry.right {
                encoder.attach(right);
            }
        }
        let mut block = Vec::new();
        encoder.finish(&mut block);
        block
    }
}

/// Less than the shortest entry: four one-letter names, heads and one link.
const ENTRY_BYTES_MIN: usize = 50;

/// Reads the one canonical form of what a node can hold.
struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, expected: &'static str) -> Result<&'a [u8], NodeFault> {
        let bytes = self.block[self.at..].get(..len).ok_or(NodeFault::Encoding {
            at: self.at,
            expected,
        })?;
        self.at += len;
        Ok(bytes)
    }

    fn expect(&mut self, literal: &[u8], expected: &'static str) -> Result<(), NodeFault> {
        if !self.block[self.at..].starts_with(literal) {
            return Err(NodeFault::Encoding {
                at: self.at,
                expected,
            });
        }
        self.at += literal.len();
        Ok(())
    }

    /// The argument of a head of this major type, which must be in shortest form.
    fn head(&mut self, major: u8, expected: &'static str) -> Result<u64, NodeFault> {
        let at = self.at;
        let initial = self.take(1, expected)?[0];
        let (width, least) = match initial & 0x1f {
            _ if initial >> 5 != major => return Err(NodeFault::Encoding { at, expected }),
            small @ 0..24 => return Ok(u64::from(small)),
            24 => (1, 24),
            25 => (2, 1 << 8),
            26 => (4, 1 << 16),
            27 => (8, 1 << 32),
            _ => return Err(NodeFault::Encoding { at, expected }),
        };
        let argument = self
            .take(width, expected)?
            .iter()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        if argument < least {
            return Err(NodeFault::NotShortest { at });
        }
        Ok(argument)
    }

    fn bytes(&mut self, expected: &'static str) -> Result<&'a [u8], NodeFault> {
        let at = self.at;
        let len = self.head(2, expected)?;
        let len = usize::try_from(len).map_err(|_| NodeFault::Encoding { at, expected })?;
        self.take(len, expected)
    }

    fn link_or_null(&mut self) -> Result<Option<Cid>, NodeFault> {
        if self.block[self.at..].first() == Some(&NULL) {
            self.at += 1;
            return Ok(None);
        }
        self.link().map(Some)
    }

    fn link(&mut self) -> Result<Cid, NodeFault> {
        self.expect(&LINK_HEAD, "a link")?;
        let at = self.at;
        let cid = Cid::from_bytes(self.take(CID_BYTES, "a CID of 36 bytes")?)
            .map_err(|error| NodeFault::Link { at, error })?;
        match cid.codec() {
            Codec::DagCbor => Ok(cid),
            Codec::Raw => Err(NodeFault::Link {
                at,
                error: SyntaxError::new("tree link", "must be to a DAG-CBOR block"),
            }),
        }
    }
}
