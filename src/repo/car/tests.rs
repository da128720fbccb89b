//! Tests of reading and writing CARs.

use proptest::prelude::*;

use super::*;

/// A source that yields its bytes in small pieces and is interrupted in between.
struct Drips<'a> {
    bytes: &'a [u8],
    interrupt: bool,
}

impl Read for Drips<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt = !self.interrupt;
        if self.interrupt {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let most = buffer.len().min(7);
        self.bytes.read(&mut buffer[..most])
    }
}

type Blocks = Vec<(Cid, Vec<u8>)>;

fn stream(bytes: &[u8]) -> Result<(Vec<Cid>, Blocks), CarError> {
    let mut reader = CarReader::new(Drips {
        bytes,
        interrupt: false,
    })?;
    let (mut blocks, mut block) = (Vec::new(), b"left over".to_vec());
    while let Some((cid, at)) = reader.next_block(&mut block)? {
        let at = usize::try_from(at).expect("small");
        assert_eq!(bytes[at..][..block.len()], block);
        blocks.push((cid, block.clone()));
    }
    assert_eq!(reader.position(), bytes.len() as u64);
    Ok((reader.roots().to_vec(), blocks))
}

/// Both readers must refuse, with the same text, which is returned.
fn refusal(bytes: &[u8]) -> String {
    let parsed = parse_car(bytes).expect_err("must be refused").to_string();
    assert_eq!(stream(bytes).expect_err("must be refused").to_string(), parsed);
    parsed
}

fn written(roots: &[Cid], blocks: &[(Cid, Vec<u8>)]) -> Vec<u8> {
    let mut out = encode_header(roots);
    for (cid, block) in blocks {
        let before = out.len();
        encode_block(&mut out, cid, block);
        assert_eq!(out.len() - before, block_frame_len(block.len()));
    }
    out
}

fn small() -> (Cid, Vec<u8>) {
    let block = b"\xa1\x61a\x01".to_vec();
    let cid = Cid::of_block(&block);
    (cid, written(&[cid], &[(cid, block)]))
}

/// A CAR whose header is this CBOR.
fn with_header(header: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(&mut out, header.len() as u64);
    out.extend(header);
    out
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        contents in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..400)), 0..20),
        roots in prop::collection::vec(any::<[u8; 32]>(), 0..3),
    ) {
        let roots: Vec<Cid> = roots.into_iter().map(Cid::dag_cbor).collect();
        let blocks: Blocks = contents
            .into_iter()
            .map(|(raw, block)| (if raw { Cid::of_blob(&block) } else { Cid::of_block(&block) }, block))
            .collect();
        let bytes = written(&roots, &blocks);
        let car = parse_car(&bytes).expect("reads back");
        prop_assert_eq!(&car.roots, &roots);
        prop_assert!(car.blocks.iter().map(|(cid, block)| (*cid, block.to_vec())).eq(blocks.iter().cloned()));
        prop_assert_eq!(stream(&bytes).expect("reads back"), (roots, blocks));
    }

    #[test]
    fn a_flipped_bit_never_changes_a_block_unnoticed(at in any::<prop::sample::Index>(), bit in 0..8) {
        let (_, good) = small();
        let mut bytes = good.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        if let Ok(car) = parse_car(&bytes) {
            // Only the roots are free to say anything.
            prop_assert_eq!(car.blocks, parse_car(&good).expect("good").blocks);
            prop_assert!(stream(&bytes).is_ok());
        } else {
            refusal(&bytes);
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), good_start in any::<bool>()) {
        let bytes = if good_start { [encode_header(&[]), bytes].concat() } else { bytes };
        prop_assert_eq!(parse_car(&bytes).is_ok(), stream(&bytes).is_ok());
    }

    #[test]
    fn frame_lengths_are_exact(length in 0usize..70_000) {
        let mut out = Vec::new();
        encode_block(&mut out, &Cid::raw([0; 32]), &vec![0; length]);
        prop_assert_eq!(out.len(), block_frame_len(length));
    }
}

#[test]
fn a_cut_anywhere_but_between_blocks_is_an_error() {
    let (cid, bytes) = small();
    let header = encode_header(&[cid]).len();
    for cut in 0..bytes.len() {
        if cut == header {
            assert_eq!(parse_car(&bytes[..cut]).expect("no blocks").blocks.len(), 0);
        } else {
            let text = refusal(&bytes[..cut]);
            assert!(text.contains("cut short") || cut == 0, "{cut}: {text}");
        }
    }
    // Inside a length of two bytes.
    let long = [&bytes[..], &[0x80]].concat();
    assert_eq!(
        refusal(&long),
        format!(
            "the CAR is cut short: it ends inside a length that begins at byte {}",
            bytes.len()
        )
    );
}

#[test]
fn any_order_duplicates_and_extras_are_tolerated() {
    let blocks: Blocks = (0u8..5).map(|n| (Cid::of_block(&[n]), vec![n])).collect();
    let twice = [&blocks[3..], &blocks[..3], &blocks[..]].concat();
    let bytes = written(&[blocks[0].0, blocks[1].0], &twice);
    assert_eq!(parse_car(&bytes).expect("good").blocks.len(), 10);
    assert_eq!(stream(&bytes).expect("good").1, twice);
}

#[test]
fn a_block_that_does_not_match_its_cid_is_refused() {
    let (cid, mut bytes) = small();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert!(matches!(parse_car(&bytes), Err(CarError::Hash { cid: named, .. }) if named == cid));
    let text = refusal(&bytes);
    assert!(
        text.contains(&cid.to_string()) && text.contains(&format!("byte {}", last - 3)),
        "{text}"
    );
}

#[test]
fn declared_lengths_are_bounded() {
    let block = vec![7; CAR_BLOCK_BYTES_MAX];
    let largest = written(&[], &[(Cid::of_blob(&block), block.clone())]);
    assert_eq!(parse_car(&largest).expect("at the limit").blocks.len(), 1);
    assert_eq!(stream(&largest).expect("at the limit").1.len(), 1);

    let block = vec![7; CAR_BLOCK_BYTES_MAX + 1];
    let larger = written(&[], &[(Cid::of_blob(&block), block)]);
    assert!(matches!(parse_car(&larger), Err(CarError::BlockLength { .. })));
    refusal(&larger);

    let huge = [
        encode_header(&[]),
        vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    ]
    .concat();
    assert!(matches!(parse_car(&huge), Err(CarError::BlockLength { length, .. }) if length == (1 << 63) - 1));
    refusal(&huge);
}

#[test]
fn malformed_varints_are_refused() {
    for varint in [&[0x80, 0x00][..], &[0xa5, 0x80, 0x00], &[0xff; 10], &[0xff; 30]] {
        let bytes = [encode_header(&[]), varint.to_vec()].concat();
        assert!(
            matches!(parse_car(&bytes), Err(CarError::Varint { .. })),
            "{varint:02x?}"
        );
        refusal(&bytes);
    }
}

#[test]
fn blocks_without_a_usable_cid_are_refused() {
    // An empty section, a section shorter than a CID, a CIDv0, an identity hash.
    let sections: [&[u8]; 4] = [
        b"",
        b"\x01\x71\x12\x20",
        &[0x12; 60],
        b"\x01\x55\x00\x04abcdefghijklmnopqrstuvwxyz0123456789",
    ];
    for section in sections {
        let mut bytes = encode_header(&[]);
        encode_varint(&mut bytes, section.len() as u64);
        bytes.extend(section);
        assert!(
            matches!(parse_car(&bytes), Err(CarError::ForeignCid { .. })),
            "{section:02x?}"
        );
        refusal(&bytes);
    }
}

#[test]
fn headers_are_checked() {
    let is = |header: &[u8], wanted: fn(&CarError) -> bool| {
        let bytes = with_header(header);
        let error = parse_car(&bytes).expect_err("must be refused");
        assert!(wanted(&error), "{error}");
        refusal(&bytes);
    };
    is(b"", |e| matches!(e, CarError::HeaderLength { length: 0 }));
    is(&[0; CAR_HEADER_BYTES_MAX + 1], |e| {
        matches!(e, CarError::HeaderLength { length: 65_537 })
    });
    is(b"\xa1\x67version\x02", |e| matches!(e, CarError::Version(2)));
    is(b"\xa2\x65roots\x80\x67version\x02", |e| {
        matches!(e, CarError::Version(2))
    });
    is(b"\xa1\x67version\x01", |e| {
        matches!(e, CarError::HeaderField("roots"))
    });
    is(b"\xa1\x65roots\x80", |e| {
        matches!(e, CarError::HeaderField("version"))
    });
    is(b"\x80", |e| {
        matches!(e, CarError::Header(CborError::Unexpected { .. }))
    });
    is(b"\xa1\x00\x00", |e| {
        matches!(e, CarError::Header(CborError::KeyNotText))
    });
    is(b"\xa1\x65roots\x81\x60", |e| {
        matches!(e, CarError::Header(CborError::Unexpected { .. }))
    });
    is(b"\xa2\x65roots\x80\x65roots\x80", |e| {
        matches!(e, CarError::Header(CborError::DuplicateKey))
    });
    is(b"\xa2\x65roots\x80\x67version\x01\x00", |e| {
        matches!(e, CarError::Header(CborError::TrailingBytes))
    });
    is(b"<html><body>502</body>", |e| matches!(e, CarError::Header(_)));
    // Order and unknown keys are free.
    let odd = with_header(b"\xa3\x67version\x01\x61x\xf5\x65roots\x80");
    assert_eq!(parse_car(&odd).expect("good").roots, []);
    assert!(stream(&odd).is_ok());
}

#[test]
fn an_empty_file_is_refused() {
    assert!(matches!(
        parse_car(b""),
        Err(CarError::HeaderLength { length: 0 })
    ));
    refusal(b"");
}

#[test]
fn a_failing_source_is_reported_as_such() {
    struct Fails;
    impl Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("disk on fire"))
        }
    }
    let (_, bytes) = small();
    let mut reader = CarReader::new(bytes[..bytes.len() - 1].chain(Fails)).expect("header is there");
    let error = reader.next_block(&mut Vec::new()).expect_err("source fails");
    assert_eq!(error.to_string(), "read CAR: disk on fire");
    assert!(matches!(CarReader::new(Fails), Err(CarError::Io(_))));
}
