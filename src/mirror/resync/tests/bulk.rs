//! Large repositories go in as table files: the same rows, all or none.

use std::ops::ControlFlow;

use super::super::load::BULK_BYTES_MIN;
use super::*;
use crate::mirror::spool::Spool;
use crate::repo::signing_key::Curve;
use crate::sim::load::{BlockOrder, LoadAccount};

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

impl World {
    fn rows(&self, number: u64) -> Rows {
        let mut rows = Rows::new();
        let range = keyspace::number_range(number);
        let visit = &mut |key: &[u8], value: &[u8]| {
            rows.push((key[keyspace::NUMBER_BYTES..].to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        };
        self.store.scan(Family::Records, &range, visit).expect("reads");
        rows
    }

    fn spooled(&self, car: &[u8]) -> IndexedCar {
        let mut spool = Spool::new();
        spool.write(car, &self.fetcher.spool_dir).expect("a folder");
        spool.index().expect("a CAR")
    }
}

#[tokio::test]
async fn a_large_repository_goes_in_whole_or_not_at_all() {
    let mut log = LogMaker::new(NOW);
    let key = crate::identity::plc_log::fixtures::key(4);
    log.push(LogMaker::operation(&[2], &key, "pds.test", None), 2);
    let world = World::new(&log, Vec::new(), &key).await;
    let did: Did = "did:plc:abcdefghijklmnopqrstuvwx".parse().expect("a DID");
    let secret = LoadAccount::secret(1, 2, Curve::K256);
    let account = LoadAccount::new(did.clone(), secret, 1, 13_000, false, NOW);
    let whole = account.export(BlockOrder::Hashed);
    let key = account.key();
    let load = |car: &[u8], number| {
        let car = world.spooled(car);
        assert!(car.bytes() >= BULK_BYTES_MIN);
        let head = HeadKey::Current(&key);
        world.fetcher.check_and_load(&car, number, &did, head, None, NOW)
    };

    assert!(matches!(load(&whole, 7), Ok(Judged::Proven(_))));
    let rows = world.rows(7);
    assert_eq!(rows.len() as u64, account.records());
    let car = world.spooled(&whole);
    let head = HeadKey::Current(&key);
    let batches = world.fetcher.load(&car, car.roots()[0], 8, &did, head, NOW);
    assert_eq!(batches.expect("proven").0.records(), account.records());
    assert!(world.rows(8) == rows, "not the rows that batches write");

    // A record is missing: what went in before it was missed is gone again.
    let parsed = parse_car(&whole).expect("a CAR");
    let (_, last) = rows.last().expect("a row");
    let digest = *RecordValue::decode(last).expect("a row").cid().digest();
    let mut cut = encode_header(&parsed.roots);
    for (cid, bytes) in parsed.blocks.iter().filter(|(cid, _)| *cid.digest() != digest) {
        encode_block(&mut cut, cid, bytes);
    }
    assert!(matches!(load(&cut, 9), Ok(Judged::Failed(_))));
    assert!(world.rows(9).is_empty());

    // The store refuses what would mix with rows that are there.
    let mut batch = Batch::new();
    batch.put(
        Family::Records,
        keyspace::encode_record(10, b"app.bsky.feed.post/x"),
        Vec::new(),
    );
    world.store.write(batch).expect("writes");
    assert!(matches!(load(&whole, 10), Err(StoreError::NotEmpty { .. })));
    assert_eq!(world.rows(10).len(), 1);
}
