//! What a fetch brings of an account.

use super::*;
use crate::mirror::rows::{Head, KeptCar, RecordValue};
use crate::mirror::store::Batch;

impl World {
    pub(crate) fn load(&mut self, account: &SimAccount) -> Input {
        let car = account.export();
        let parsed = parse_car(&car).expect("a CAR");
        let blocks: std::collections::BTreeMap<Digest, &[u8]> = parsed
            .blocks
            .iter()
            .map(|(cid, bytes)| (*cid.digest(), *bytes))
            .collect();
        let number = self.numbers.next().expect("numbers");
        let mut blobs = Vec::new();
        let mut batch = Batch::new();
        let repo = check_repo(
            &blocks,
            parsed.roots[0],
            account.did(),
            &account.key(),
            NOW,
            |path, cid, bytes| {
                let value = RecordValue {
                    rev: account.rev(),
                    digest: *cid.digest(),
                    bytes,
                };
                batch.put(
                    Family::Records,
                    keyspace::encode_record(number, path),
                    value.encode(),
                );
                for blob in scan_record(bytes).blobs {
                    batch.put(
                        Family::BlobRefs,
                        keyspace::encode_blob_ref(number, blob.cid.digest(), path),
                        Vec::new(),
                    );
                    blobs.push(BlobMention {
                        digest: *blob.cid.digest(),
                        mime: blob.mime,
                        size: blob.size,
                    });
                }
                Ok::<(), std::convert::Infallible>(())
            },
        )
        .expect("a proven repository");
        // As the fetcher does it: what is behind ours is kept as it came.
        let row = self.row(account.did());
        let head = row.as_ref().and_then(|row| row.head.as_ref());
        let behind =
            |head: &Head| repo.rev() < head.rev || (repo.rev() == head.rev && repo.cid() != head.commit);
        let content = if head.is_some_and(behind) {
            let mut batch = Batch::new();
            let key = keyspace::encode_blob_data(number, repo.cid().digest(), 0);
            batch.put(Family::BlobData, key, &car[..]);
            self.store.write(batch).expect("writes");
            let car = KeptCar {
                number,
                rev: repo.rev(),
                commit: repo.cid(),
                bytes: car.len() as u64,
                sha256: crate::types::cid::sha256(&car),
                since: NOW,
                archived: false,
                damaged: false,
            };
            FetchedContent::Behind {
                car: Some(car),
                repo,
                blobs,
            }
        } else {
            self.store.write(batch).expect("writes");
            FetchedContent::Loaded {
                account_number: number,
                repo,
                blobs,
            }
        };
        Input::Fetched(Box::new(Fetched {
            did: account.did().clone(),
            from_number: row.map_or(0, |row| row.account_number),
            from_erased: 0,
            identity: self.identity(account),
            content,
            task: self.fetch_task(account.did()),
        }))
    }
}
