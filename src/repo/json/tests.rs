//! Records and their JSON; what has none.

use serde_json::json;

use super::*;
use crate::sim::account::post_with_blob;

#[test]
fn a_record_with_everything() {
    let blob = Cid::of_blob(b"a picture");
    let value = record_to_json(&post_with_blob("héllo", &blob, 9)).expect("a record");
    let expected = json!({
        "$type": "app.bsky.feed.post",
        "text": "héllo",
        "picture": {
            "$type": "blob",
            "ref": { "$link": blob.to_string() },
            "mimeType": "image/png",
            "size": 9,
        },
    });
    assert_eq!(value, expected);
}

#[test]
fn every_kind_of_item() {
    for (bytes, expected) in [
        (&[0x18, 0x18][..], json!(24)),
        (
            &[0x1b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            json!(u64::MAX),
        ),
        (&[0x38, 0x63], json!(-100)),
        (
            &[0x3b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            json!(i64::MIN),
        ),
        (&[0x43, 1, 2, 3], json!({"$bytes": "AQID"})),
        (&[0x82, 0xf4, 0xf6], json!([false, null])),
        (&[0xf5], json!(true)),
        // What is not strict: an unsorted map, lengths to a break, chunks, floats.
        (
            &[0xbf, 0x61, b'b', 0x01, 0x61, b'a', 0x02, 0xff],
            json!({"a": 2, "b": 1}),
        ),
        (&[0x7f, 0x61, b'a', 0x61, b'b', 0xff], json!("ab")),
        (&[0x9f, 0x01, 0xff], json!([1])),
        (&[0xf9, 0x3c, 0x00], json!(1.0)),
        (&[0xf9, 0xc5, 0x00], json!(-5.0)),
        (&[0xfa, 0x3f, 0xc0, 0x00, 0x00], json!(1.5)),
        (
            &[0xfb, 0x40, 0x09, 0x21, 0xfb, 0x54, 0x44, 0x2d, 0x18],
            json!(std::f64::consts::PI),
        ),
    ] {
        assert_eq!(record_to_json(bytes), Ok(expected), "{bytes:x?}");
    }
}

#[test]
fn what_json_cannot_say_is_refused() {
    let deep = vec![0x81; JSON_DEPTH_MAX + 1];
    for (bytes, what) in [
        (&[][..], "ends"),
        (&[0x42, 1], "ends"),
        (&[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "ends"),
        (&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "ends"),
        (&[0x01, 0x01], "bytes follow"),
        (&[0xa1, 0x01, 0x02], "key is no text"),
        (&[0xa2, 0x61, b'a', 0x02, 0x61, b'a', 0x02], "twice"),
        (&[0xc1, 0x01], "tag"),
        (&[0xd8, 0x2a, 0x41, 0x00], "no CID"),
        (&[0xf9, 0x7e, 0x00], "no number"),
        (&[0xfb, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0], "no number"),
        (&[0xf0], "simple value"),
        (&[0xff], "stray break"),
        (&[0x1c], "reserved"),
        (&[0x61, 0xff], "UTF-8"),
        (
            &[0x3b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            "below 64 bits",
        ),
        (&deep, "deeply"),
    ] {
        let refused = record_to_json(bytes).expect_err("no JSON form").to_string();
        assert!(refused.contains(what), "{bytes:x?}: {refused}");
    }
}

#[test]
fn a_record_of_too_many_values_is_refused_and_what_it_took_is_counted() {
    // Three byte strings in an array, each of one byte: four values.
    let record = [0x83, 0x40, 0x40, 0x40];
    let mut left = 4;
    assert!(record_to_json_within(&record, &mut left).is_ok());
    assert_eq!(left, 0);
    let mut left = 3;
    let refused = record_to_json_within(&record, &mut left).expect_err("one too many");
    assert!(refused.to_string().contains("too many values"), "{refused}");
}
