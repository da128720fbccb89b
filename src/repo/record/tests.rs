//! Tests of looking for blobs.

use proptest::prelude::*;

use super::*;
use crate::repo::cbor::encode;

fn blob(name: &str) -> Cid {
    Cid::of_blob(name.as_bytes())
}

fn text(out: &mut Vec<u8>, items: &[&str]) {
    items.iter().for_each(|item| encode::text(out, item));
}

/// `{ref, size, $type, mimeType}` as hosts write it.
fn typed(cid: Cid) -> Vec<u8> {
    let mut out = Vec::new();
    encode::map(&mut out, 4);
    text(&mut out, &["ref"]);
    encode::link(&mut out, &cid);
    text(&mut out, &["size"]);
    encode::integer(&mut out, 1234);
    text(&mut out, &["$type", "blob", "mimeType", "image/jpeg"]);
    out
}

fn legacy(cid: Cid) -> Vec<u8> {
    let mut out = Vec::new();
    encode::map(&mut out, 2);
    text(&mut out, &["cid", &cid.to_string(), "mimeType", "image/png"]);
    out
}

fn found(bytes: &[u8]) -> Vec<Cid> {
    scan_record(bytes)
        .blobs
        .into_iter()
        .map(|blob| blob.cid)
        .collect()
}

fn one(cid: Cid, mime: Option<&str>, size: Option<u64>) -> Vec<BlobRef> {
    vec![BlobRef {
        cid,
        mime: mime.map(str::to_owned),
        size,
    }]
}

#[test]
fn both_forms_are_found_with_what_they_claim() {
    let a = blob("a");
    assert_eq!(
        scan_record(&typed(a)).blobs,
        one(a, Some("image/jpeg"), Some(1234))
    );
    assert_eq!(scan_record(&legacy(a)).blobs, one(a, Some("image/png"), None));
}

#[test]
fn blobs_are_found_at_any_depth_each_once_and_by_cid() {
    let (a, b, c) = (blob("a"), blob("b"), blob("c"));
    let mut record = b"\x84\x81".to_vec();
    record.extend(typed(b));
    record.extend(b"\xa1\x61x");
    record.extend(legacy(a));
    record.extend(typed(c));
    record.extend(typed(b));
    let scan = scan_record(&record);
    assert!(scan.canonical && !scan.broken);
    let mut expected = vec![a, b, c];
    expected.sort();
    assert_eq!(found(&record), expected);
}

#[test]
fn what_only_looks_like_a_blob_is_none() {
    let mut other_type = typed(blob("a"));
    let at = other_type
        .windows(4)
        .position(|window| window == b"blob")
        .expect("there");
    other_type[at] = b'B';
    assert_eq!(found(&other_type), []);

    let mut three_fields = b"\xa3".to_vec();
    three_fields.extend(&legacy(blob("a"))[1..]);
    three_fields.extend(b"\x69zzzzzzzzz\x00");
    assert!(scan_record(&three_fields).canonical);
    assert_eq!(found(&three_fields), []);

    // No host keeps a blob under the dag-cbor codec.
    assert_eq!(found(&typed(Cid::of_block(b"a"))), []);
    assert_eq!(found(&legacy(Cid::of_block(b"a"))), []);
    // A bare link, and a CID in a text.
    let mut link = Vec::new();
    encode::link(&mut link, &blob("a"));
    assert_eq!(found(&link), []);
    assert_eq!(found(b"\x63abc"), []);
}

#[test]
fn odd_claims_are_left_out() {
    let a = blob("a");
    let mut record = b"\xa4\x63ref".to_vec();
    encode::link(&mut record, &a);
    text(&mut record, &["size"]);
    encode::integer(&mut record, -1);
    text(
        &mut record,
        &["$type", "blob", "mimeType", &"x".repeat(MIME_BYTES_MAX + 1)],
    );
    assert_eq!(scan_record(&record).blobs, one(a, None, None));
}

#[test]
fn lax_cbor_is_scanned_too() {
    let a = blob("a");
    // A float, an unsorted map of indefinite length, a chunked text, an integer key, a foreign tag.
    let mut record =
        b"\x9f\xfb\x3f\xf8\x00\x00\x00\x00\x00\x00\x7f\x61a\x61b\xff\xa1\x01\x02\xc1\x00\xbf".to_vec();
    record.extend(b"\x65$type\x64blob\x63ref");
    encode::link(&mut record, &a);
    record.extend(b"\xff\xff");
    let scan = scan_record(&record);
    assert_eq!((scan.canonical, scan.broken), (false, false));
    assert_eq!(scan.blobs, one(a, None, None));
}

#[test]
fn bytes_that_are_no_cbor_are_told_and_scanned_as_far_as_they_go() {
    for bytes in [
        &b""[..],
        b"\x1c",
        b"\xff",
        b"\xa1",
        b"\xa1\x61a",
        b"\x00\x00",
        b"\xbf\x61a\xff",
        b"\xc1",
        b"not CBOR",
    ] {
        let scan = scan_record(bytes);
        assert_eq!((scan.canonical, scan.broken), (false, true), "{bytes:02x?}");
    }
    assert!(scan_record(b"\x9f\xc1\xff").broken, "a tag on a break");
    assert!(
        scan_record(b"\x81\xff").broken,
        "a break in an array of definite length"
    );
    assert!(
        scan_record(b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff\x00").broken,
        "2^64-1 entries"
    );

    let a = blob("a");
    let cut = typed(a);
    assert_eq!(scan_record(&cut[..cut.len() - 1]).blobs, one(a, None, Some(1234)));
}

#[test]
fn depth_is_bounded_and_deep_is_not_broken() {
    let nested = |levels: usize| {
        let mut bytes = vec![0x81; levels];
        bytes.extend(typed(blob("a")));
        bytes
    };
    let deep = scan_record(&nested(SCAN_DEPTH_MAX - 1));
    assert_eq!((deep.canonical, deep.broken, deep.blobs.len()), (false, false, 1));
    for levels in [SCAN_DEPTH_MAX, 1_000_000] {
        let deeper = scan_record(&nested(levels));
        assert_eq!(
            (deeper.canonical, deeper.broken, deeper.blobs.len()),
            (false, false, 0)
        );
    }
    // Tags nest as well, but take no level.
    let tagged = [vec![0xc1; 1_000_000], vec![0x00]].concat();
    assert!(!scan_record(&tagged).broken);
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let scan = scan_record(&bytes);
        prop_assert_eq!(scan.canonical, check_canonical(&bytes).is_ok());
        prop_assert!(!(scan.canonical && scan.broken));
    }

    #[test]
    fn a_blob_is_found_wherever_the_record_is_cut_behind_it(tail in prop::collection::vec(any::<u8>(), 0..50)) {
        let a = blob("a");
        let mut record = b"\x83".to_vec();
        record.extend(typed(a));
        record.extend(tail);
        prop_assert!(found(&record).contains(&a));
    }
}
