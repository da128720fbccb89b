//! A CAR: read whole and as a stream. Both must find the same blocks.
#![no_main]

use firekeep::repo::car::{CarReader, encode_block, encode_header, parse_car};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = parse_car(bytes);
    let mut streamed = Vec::new();
    let mut block = Vec::new();
    let read = CarReader::new(bytes).and_then(|mut reader| {
        while let Some((cid, _)) = reader.next_block(&mut block)? {
            streamed.push((cid, block.clone()));
        }
        Ok(reader.roots().to_vec())
    });
    if let (Ok(whole), Ok(roots)) = (&whole, &read) {
        assert_eq!(&whole.roots, roots);
        assert_eq!(whole.blocks.len(), streamed.len());
        let mut again = encode_header(roots);
        for ((cid, bytes), (other, same)) in whole.blocks.iter().zip(&streamed) {
            assert_eq!((cid, *bytes), (other, &same[..]));
            assert!(cid.matches(bytes), "a block that does not hash to its CID");
            encode_block(&mut again, cid, bytes);
        }
        let parsed = parse_car(&again).expect("what we write is read");
        assert_eq!(parsed.blocks.len(), streamed.len());
    }
});
