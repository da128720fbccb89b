//! Follows every link of a tree that breaks the rules: to tell whether it is all there, never to read it.
//!
//! A node is taken in any form that still is a map with `l` and `e`, and entries with `v` and `t`: unsorted, on
//! the wrong layer, with keys that are no paths, not in canonical CBOR. Nothing is said of keys and their order.

use std::collections::HashSet;

use crate::repo::cbor::lenient::{Malformed, Token, Tokens};
use crate::types::{Cid, Digest};

use super::{BlockSource, MstError};

/// Why a tree is not all there.
#[derive(Debug, thiserror::Error)]
pub enum LaxFault {
    /// A block is missing, or the source could not be read.
    #[error(transparent)]
    Tree(MstError),
    /// A block that is linked to as a node is none, in any form.
    #[error("block {0} cannot be read as a tree node")]
    NotANode(Cid),
}

/// What a node links to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Links {
    subtrees: Vec<Cid>,
    records: Vec<Cid>,
}

/// Visits the CID of each record that a tree links to: in no order that means anything, and those of a node that
/// hangs in several places once. Memory: 32 bytes a node.
///
/// # Errors
/// A [`LaxFault`] for the first node that is missing or none, or whatever `visit` returns.
pub fn walk_lax<S, E>(source: &S, root: Cid, mut visit: impl FnMut(Cid) -> Result<(), E>) -> Result<(), E>
where
    S: BlockSource + ?Sized,
    E: From<LaxFault>,
{
    let mut seen: HashSet<Digest> = HashSet::new();
    let mut open = vec![root];
    while let Some(cid) = open.pop() {
        if !seen.insert(*cid.digest()) {
            continue;
        }
        let block = source
            .block(&cid)
            .map_err(|error| LaxFault::Tree(MstError::Source { cid, error }))?
            .ok_or(LaxFault::Tree(MstError::Missing(cid)))?;
        let links = read_links(&block).map_err(|Malformed| LaxFault::NotANode(cid))?;
        for record in links.records {
            visit(record)?;
        }
        open.extend(links.subtrees);
    }
    Ok(())
}

fn read_links(block: &[u8]) -> Result<Links, Malformed> {
    let mut tokens = Tokens::new(block);
    let mut links = Links::default();
    let mut has_entries = false;
    for _ in 0..map(&mut tokens)? {
        match key(&mut tokens)? {
            "l" => links.subtrees.extend(link(&mut tokens)?),
            "e" => {
                has_entries = true;
                let Token::Array(Some(count)) = tokens.read()? else {
                    return Err(Malformed);
                };
                for _ in 0..count {
                    read_entry(&mut tokens, &mut links)?;
                }
            }
            _ => skip(&mut tokens)?,
        }
    }
    if has_entries { Ok(links) } else { Err(Malformed) }
}

fn read_entry(tokens: &mut Tokens<'_>, links: &mut Links) -> Result<(), Malformed> {
    let mut record = None;
    for _ in 0..map(tokens)? {
        match key(tokens)? {
            "v" => record = link(tokens)?,
            "t" => links.subtrees.extend(link(tokens)?),
            _ => skip(tokens)?,
        }
    }
    links.records.push(record.ok_or(Malformed)?);
    Ok(())
}

fn map(tokens: &mut Tokens<'_>) -> Result<u64, Malformed> {
    match tokens.read()? {
        Token::Map(Some(count)) => Ok(count),
        _ => Err(Malformed),
    }
}

fn key<'a>(tokens: &mut Tokens<'a>) -> Result<&'a str, Malformed> {
    match tokens.read()? {
        Token::Text(Some(text)) => Ok(text),
        _ => Err(Malformed),
    }
}

/// A link, or none where a scalar (`null`) says so.
fn link(tokens: &mut Tokens<'_>) -> Result<Option<Cid>, Malformed> {
    match tokens.read()? {
        Token::Other => Ok(None),
        Token::Tag(42) => match tokens.read()? {
            Token::Bytes(Some([0, cid @ ..])) => Cid::from_bytes(cid).map(Some).map_err(|_| Malformed),
            _ => Err(Malformed),
        },
        _ => Err(Malformed),
    }
}

/// Passes over one item, however deep it is.
fn skip(tokens: &mut Tokens<'_>) -> Result<(), Malformed> {
    let mut left = 1u64;
    while left > 0 {
        left -= 1;
        let more = match tokens.read()? {
            Token::Array(Some(count)) => count,
            Token::Map(Some(count)) => count.checked_mul(2).ok_or(Malformed)?,
            Token::Tag(_) => 1,
            Token::Array(None) | Token::Map(None) | Token::Break => return Err(Malformed),
            _ => 0,
        };
        left = left.checked_add(more).ok_or(Malformed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::cbor::encode;

    fn cid(text: &str) -> Cid {
        Cid::of_block(text.as_bytes())
    }

    /// Keys in the wrong order, a field more, a key that is no path.
    fn odd_node() -> Vec<u8> {
        let mut out = Vec::new();
        encode::map(&mut out, 3);
        encode::text(&mut out, "l");
        encode::link(&mut out, &cid("left"));
        encode::text(&mut out, "e");
        encode::array(&mut out, 1);
        encode::map(&mut out, 4);
        encode::text(&mut out, "v");
        encode::link(&mut out, &cid("record"));
        encode::text(&mut out, "t");
        encode::link(&mut out, &cid("right"));
        encode::text(&mut out, "p");
        encode::integer(&mut out, 7);
        encode::text(&mut out, "k");
        encode::bytes(&mut out, b"no path");
        encode::text(&mut out, "x");
        encode::array(&mut out, 2);
        encode::map(&mut out, 0);
        encode::link(&mut out, &cid("of no matter"));
        out
    }

    #[test]
    fn links_are_found_in_any_form() {
        let links = read_links(&odd_node()).expect("a node");
        assert_eq!(links.records, [cid("record")]);
        assert_eq!(links.subtrees, [cid("left"), cid("right")]);
    }

    #[test]
    fn what_is_no_node_is_none() {
        let node = odd_node();
        for end in 0..node.len() {
            assert_eq!(read_links(&node[..end]), Err(Malformed), "cut at {end}");
        }
        let mut no_record = Vec::new();
        encode::map(&mut no_record, 1);
        encode::text(&mut no_record, "e");
        encode::array(&mut no_record, 1);
        encode::map(&mut no_record, 0);
        assert_eq!(read_links(&no_record), Err(Malformed));
        let mut no_entries = Vec::new();
        encode::map(&mut no_entries, 0);
        assert_eq!(read_links(&no_entries), Err(Malformed));
        // Counts that are only claimed cost nothing.
        assert_eq!(
            read_links(&[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            Err(Malformed)
        );
        assert_eq!(
            read_links(&[
                0xa1, 0x61, b'x', 0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
            ]),
            Err(Malformed)
        );
    }

    #[test]
    fn a_missing_node_and_a_node_of_another_kind_are_told_apart() {
        let node = odd_node();
        let root = Cid::of_block(&node);
        let mut blocks = std::collections::BTreeMap::from([(*root.digest(), node)]);
        let walk = |blocks: &std::collections::BTreeMap<Digest, Vec<u8>>| {
            let mut records = Vec::new();
            walk_lax(blocks, root, |cid| {
                records.push(cid);
                Ok::<_, LaxFault>(())
            })
            .map(|()| records)
        };
        assert!(matches!(walk(&blocks), Err(LaxFault::Tree(MstError::Missing(_)))));
        blocks.insert(*cid("right").digest(), vec![0x80]);
        blocks.insert(*cid("left").digest(), vec![0xa1, 0x61, b'e', 0x80]);
        assert!(matches!(walk(&blocks), Err(LaxFault::NotANode(at)) if at == cid("right")));
        blocks.insert(*cid("right").digest(), vec![0xa1, 0x61, b'e', 0x80]);
        assert_eq!(walk(&blocks).expect("all there"), [cid("record")]);
    }
}
