//! Tests of the strict reader, the writer and the lenient reader.

use proptest::prelude::*;

use super::lenient::{Malformed, Token, Tokens};
use super::{CBOR_DEPTH_MAX, CborError, Decoder, Kind, check_canonical, encode, item_len};
use crate::types::Cid;

/// Any value of the data model, for property tests.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Bytes(Vec<u8>),
    Text(String),
    Link(Cid),
    Array(Vec<Value>),
    Map(Vec<(String, Value)>),
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Integer),
        (-300i64..70_000).prop_map(Value::Integer),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Value::Bytes),
        ".{0,40}".prop_map(Value::Text),
        any::<[u8; 32]>().prop_map(|digest| Value::Link(Cid::raw(digest))),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..30).prop_map(Value::Array),
            prop::collection::btree_map("[a-zA-Zé]{0,30}", inner, 0..8).prop_map(|map| {
                let mut entries: Vec<_> = map.into_iter().collect();
                entries.sort_by(|(a, _), (b, _)| (a.len(), a).cmp(&(b.len(), b)));
                Value::Map(entries)
            }),
        ]
    })
}

fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => encode::null(out),
        Value::Bool(value) => encode::boolean(out, *value),
        Value::Integer(value) => encode::integer(out, *value),
        Value::Bytes(value) => encode::bytes(out, value),
        Value::Text(value) => encode::text(out, value),
        Value::Link(value) => encode::link(out, value),
        Value::Array(items) => {
            encode::array(out, items.len());
            items.iter().for_each(|item| write(out, item));
        }
        Value::Map(entries) => {
            encode::map(out, entries.len());
            for (key, value) in entries {
                encode::text(out, key);
                write(out, value);
            }
        }
    }
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, value);
    out
}

fn read(decoder: &mut Decoder<'_>) -> Result<Value, CborError> {
    Ok(match decoder.peek()? {
        Kind::Null => {
            assert!(decoder.null());
            Value::Null
        }
        Kind::Bool => Value::Bool(decoder.boolean()?),
        Kind::Integer => Value::Integer(decoder.integer()?),
        Kind::Bytes => Value::Bytes(decoder.bytes()?.to_vec()),
        Kind::Text => Value::Text(decoder.text()?.to_owned()),
        Kind::Link => Value::Link(decoder.link()?),
        Kind::Array => {
            let count = decoder.array()?;
            Value::Array((0..count).map(|_| read(decoder)).collect::<Result<_, _>>()?)
        }
        Kind::Map => {
            let mut keys = decoder.map()?;
            let mut entries = Vec::new();
            while let Some(key) = keys.next(decoder)? {
                entries.push((key.to_owned(), read(decoder)?));
            }
            Value::Map(entries)
        }
        Kind::Other => return Err(CborError::Simple),
    })
}

proptest! {
    #[test]
    fn what_is_written_is_strict_and_reads_back(value in values()) {
        let bytes = encoded(&value);
        prop_assert_eq!(check_canonical(&bytes), Ok(()));
        let mut decoder = Decoder::new(&bytes);
        prop_assert_eq!(read(&mut decoder), Ok(value));
        prop_assert_eq!(decoder.end(), Ok(()));
    }

    #[test]
    fn every_cut_is_truncated_and_every_tail_is_trailing(value in values(), tail in 0u8..) {
        let mut bytes = encoded(&value);
        for cut in 0..bytes.len().min(200) {
            prop_assert_eq!(check_canonical(&bytes[..cut]), Err(CborError::Truncated), "cut at {}", cut);
        }
        let length = bytes.len();
        bytes.push(tail);
        prop_assert_eq!(check_canonical(&bytes), Err(CborError::TrailingBytes));
        prop_assert_eq!(item_len(&bytes), Ok(length));
    }

    /// One value, one encoding: whatever is accepted is what an independent encoder writes for it.
    #[test]
    fn an_independent_codec_agrees(value in values(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = encoded(&value);
        let at = at.index(bytes.len());
        bytes[at] = with;
        let theirs = serde_ipld_dagcbor::from_slice::<ipld_core::ipld::Ipld>(&bytes);
        if check_canonical(&bytes).is_ok() {
            let value = theirs.expect("an independent decoder must accept it");
            prop_assert_eq!(serde_ipld_dagcbor::to_vec(&value).expect("encodes"), bytes);
        } else if let Ok(value) = theirs {
            // What they accept beyond us: floats, integers beyond 64 bits signed, foreign CIDs.
            prop_assert!(beyond_the_profile(&value), "{:?}", check_canonical(&bytes));
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let strict = check_canonical(&bytes);
        prop_assert_eq!(strict.is_ok(), item_len(&bytes) == Ok(bytes.len()));
        let mut decoder = Decoder::new(&bytes);
        while let Ok(item) = decoder.skip() {
            prop_assert!(!item.is_empty());
        }
        let mut tokens = Tokens::new(&bytes);
        while tokens.read().is_ok() {}
    }

    #[test]
    fn the_lenient_reader_passes_over_every_strict_item(value in values()) {
        let bytes = encoded(&value);
        let mut tokens = Tokens::new(&bytes);
        while !tokens.is_at_end() {
            prop_assert!(tokens.read().is_ok());
        }
        prop_assert_eq!(tokens.read(), Err(Malformed));
    }
}

fn beyond_the_profile(value: &ipld_core::ipld::Ipld) -> bool {
    use ipld_core::ipld::Ipld;
    match value {
        Ipld::Float(_) => true,
        Ipld::Integer(value) => i64::try_from(*value).is_err(),
        Ipld::Link(cid) => Cid::from_bytes(&cid.to_bytes()).is_err(),
        Ipld::List(items) => items.iter().any(beyond_the_profile),
        Ipld::Map(entries) => entries.values().any(beyond_the_profile),
        _ => false,
    }
}

#[test]
fn every_rule_fires() {
    let cases: &[(&[u8], CborError)] = &[
        (b"", CborError::Truncated),
        (b"\x18", CborError::Truncated),
        (b"\x81", CborError::Truncated),
        (b"\x00\x00", CborError::TrailingBytes),
        (b"\x18\x17", CborError::NotShortest),
        (b"\x59\x00\xff", CborError::NotShortest),
        (b"\x1a\x00\x00\xff\xff", CborError::NotShortest),
        (b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff", CborError::NotShortest),
        (b"\x9f\xff", CborError::Indefinite),
        (b"\x7f\xff", CborError::Indefinite),
        (b"\xff", CborError::Indefinite),
        (b"\x1c", CborError::Reserved),
        (b"\xfd", CborError::Reserved),
        (b"\x1b\x80\x00\x00\x00\x00\x00\x00\x00", CborError::IntegerRange),
        (b"\x3b\x80\x00\x00\x00\x00\x00\x00\x00", CborError::IntegerRange),
        (b"\xf9\x3c\x00", CborError::Float),
        (b"\xfb\x3f\xf8\x00\x00\x00\x00\x00\x00", CborError::Float),
        (b"\xf7", CborError::Simple),
        (b"\xf8\x20", CborError::Simple),
        (b"\xc1\x00", CborError::Tag(1)),
        (b"\xd8\x2b\x40", CborError::Tag(43)),
        (b"\xd8\x2a\x41\x00", CborError::BadCid),
        (b"\xd8\x2a\x60", CborError::BadCid),
        (b"\xd8\x2a\xd8\x2a\x41\x00", CborError::BadCid),
        (b"\x61\xff", CborError::Utf8),
        (b"\xa1\x61\xff\x00", CborError::Utf8),
        (b"\xa1\x00\x00", CborError::KeyNotText),
        (b"\xa1\x41a\x00", CborError::KeyNotText),
        (b"\xa2\x61b\x00\x61a\x00", CborError::KeyOrder),
        (b"\xa2\x62aa\x00\x61b\x00", CborError::KeyOrder),
        (b"\xa2\x61a\x00\x61a\x00", CborError::DuplicateKey),
    ];
    for (bytes, error) in cases {
        assert_eq!(check_canonical(bytes), Err(*error), "{bytes:02x?}");
    }
}

#[test]
fn the_ends_of_the_integer_range_are_read() {
    for value in [
        i64::MIN,
        -257,
        -256,
        -25,
        -24,
        -1,
        0,
        23,
        24,
        255,
        256,
        65_535,
        65_536,
        i64::MAX,
    ] {
        let mut bytes = Vec::new();
        encode::integer(&mut bytes, value);
        assert_eq!(check_canonical(&bytes), Ok(()));
        assert_eq!(Decoder::new(&bytes).integer(), Ok(value));
    }
}

#[test]
fn depth_has_a_limit() {
    for (open, key) in [(0x81, &b""[..]), (0xa1, b"\x61a")] {
        let nested = |levels: usize| {
            let mut bytes: Vec<u8> = Vec::new();
            for _ in 0..levels {
                bytes.push(open);
                bytes.extend(key);
            }
            bytes.push(0xf6);
            bytes
        };
        assert_eq!(check_canonical(&nested(CBOR_DEPTH_MAX)), Ok(()));
        assert_eq!(
            check_canonical(&nested(CBOR_DEPTH_MAX + 1)),
            Err(CborError::TooDeep)
        );
        assert_eq!(check_canonical(&nested(1_000_000)), Err(CborError::TooDeep));
    }
}

#[test]
fn declared_lengths_are_checked_against_the_input() {
    // Every major type with a length, at 2^63-1 and at one more than is there.
    for major in [0x40u8, 0x60, 0x80, 0xa0] {
        let huge = [
            &[major | 27][..],
            &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ]
        .concat();
        assert_eq!(check_canonical(&huge), Err(CborError::Truncated));
        let mut decoder = Decoder::new(&huge);
        let refused = match major {
            0x80 => decoder.array().map(|_| ()),
            0xa0 => decoder.map().map(|_| ()),
            _ => decoder.skip().map(|_| ()),
        };
        assert_eq!(refused, Err(CborError::Truncated));
    }
    // Two entries are four items at least.
    assert_eq!(
        Decoder::new(b"\xa2\x61a\x00").map().map(|keys| keys.left()),
        Err(CborError::Truncated)
    );
}

#[test]
fn another_kind_than_asked_for_is_named() {
    assert_eq!(
        Decoder::new(b"\x61a").integer(),
        Err(CborError::Unexpected {
            wanted: Kind::Integer,
            found: Kind::Text
        })
    );
    let found = |bytes| Decoder::new(bytes).text().expect_err("no text").to_string();
    assert_eq!(found(b"\x00"), "expected CBOR text, found integer");
    assert_eq!(found(b"\xf6"), "expected CBOR text, found null");
    assert_eq!(found(b"\xfb"), "expected CBOR text, found float or simple value");
    assert!(Decoder::new(b"").boolean().is_err());
    assert!(Decoder::new(b"\xf6").boolean().is_err());
    assert!(!Decoder::new(b"\xf5").null());
    assert!(!Decoder::new(b"").null());
}

#[test]
fn links_to_blake3_are_data_but_no_repository_link() {
    let mut bytes = Vec::new();
    encode::link(&mut bytes, &Cid::of_block(b"x"));
    let hash_code = bytes.len() - 34;
    bytes[hash_code] = 0x1e;
    assert_eq!(check_canonical(&bytes), Ok(()));
    assert_eq!(Decoder::new(&bytes).link(), Err(CborError::BadCid));
}

#[test]
fn a_frame_splits_at_its_first_item() {
    let frame = b"\xa2\x61t\x67#commit\x62op\x01\xa0";
    assert_eq!(item_len(frame), Ok(15));
    let mut decoder = Decoder::new(frame);
    assert_eq!(decoder.skip(), Ok(&frame[..15]));
    assert_eq!((decoder.position(), decoder.rest()), (15, &frame[15..]));
    assert_eq!(decoder.end(), Err(CborError::TrailingBytes));
}

#[test]
fn the_lenient_reader_takes_what_the_strict_one_refuses() {
    let tokens = |bytes: &'static [u8]| {
        let mut tokens = Tokens::new(bytes);
        let mut all = Vec::new();
        while !tokens.is_at_end() {
            all.push(tokens.read()?);
        }
        Ok::<_, Malformed>(all)
    };
    assert_eq!(tokens(b"\x18\x01"), Ok(vec![Token::Unsigned(1)]));
    assert_eq!(
        tokens(b"\xfb\x3f\xf8\x00\x00\x00\x00\x00\x00"),
        Ok(vec![Token::Other])
    );
    assert_eq!(tokens(b"\xf7\x20"), Ok(vec![Token::Other, Token::Other]));
    assert_eq!(tokens(b"\xc1\x00"), Ok(vec![Token::Tag(1), Token::Unsigned(0)]));
    assert_eq!(tokens(b"\x9f\xff"), Ok(vec![Token::Array(None), Token::Break]));
    assert_eq!(tokens(b"\xbf\xff"), Ok(vec![Token::Map(None), Token::Break]));
    assert_eq!(tokens(b"\x7f\x61a\x61b\xff"), Ok(vec![Token::Text(None)]));
    assert_eq!(
        tokens(b"\x5f\x41a\xff\x40"),
        Ok(vec![Token::Bytes(None), Token::Bytes(Some(b""))])
    );
    assert_eq!(tokens(b"\x61\xff"), Ok(vec![Token::Text(None)]));
    for malformed in [
        &b"\x1c"[..],
        b"\x18",
        b"\x61",
        b"\x7f\x41a\xff",
        b"\x7f\x7f\xff\xff",
        b"\x7f\x61a",
        b"\x1f",
    ] {
        assert_eq!(tokens(malformed), Err(Malformed), "{malformed:02x?}");
    }
}
