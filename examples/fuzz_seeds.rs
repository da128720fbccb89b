#![allow(clippy::disallowed_methods, reason = "shell: a folder")]
//! Writes what the fuzzers begin with: real bytes of simulated accounts. `fuzz_seeds FOLDER` makes FOLDER/<target>/….

use std::path::Path;

use firekeep::repo::car::{encode_block, encode_header};
use firekeep::sim::SimAccount;
use firekeep::sim::account::{post, post_with_blob};
use firekeep::types::{Cid, Timestamp};

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).expect("usage: fuzz_seeds FOLDER");
    let put = |target: &str, name: &str, bytes: &[u8]| -> std::io::Result<()> {
        let target = Path::new(&folder).join(target);
        std::fs::create_dir_all(&target)?;
        std::fs::write(target.join(name), bytes)
    };
    let mut account = SimAccount::new(1, NOW);
    let blob = Cid::of_blob(b"picture");
    for number in 0..6u64 {
        let record = if number % 2 == 0 {
            post(&format!("text {number}"))
        } else {
            post_with_blob("with a picture", &blob, 7)
        };
        put("record", &format!("{number}"), &record)?;
        let writes = [(format!("app.bsky.feed.post/{number}"), Some(record))];
        let frame = account.commit(number + 1, &writes, NOW);
        put("frame", &format!("commit{number}"), &frame)?;
    }
    let delete = [("app.bsky.feed.post/1".to_owned(), None)];
    put("frame", "delete", &account.commit(9, &delete, NOW))?;
    put("frame", "sync", &account.sync_frame(10, NOW))?;
    put("car", "export", &account.export())?;
    let (root, blocks) = account.lax_blocks(account.rev());
    let mut car = encode_header(&[root]);
    for (cid, bytes) in &blocks {
        encode_block(&mut car, cid, bytes);
    }
    put("car", "lax", &car)?;
    for (index, (_, bytes)) in account.export_blocks().iter().chain(&blocks).enumerate() {
        put("cbor", &format!("{index}"), bytes)?;
        put("node", &format!("{index}"), bytes)?;
    }
    let claims = "{\"iss\":\"did:plc:ewvi7nxzyoun6zhxrhs64oiz\",\"aud\":\"did:web:backup.example.com#repo_backup\",\
                  \"lxm\":\"dev.firekeep.backup.signUp\",\"iat\":1800000000,\"exp\":1800000060,\"jti\":\"one\"}";
    for (name, header) in [
        ("service", "{\"typ\":\"JWT\",\"alg\":\"ES256K\"}"),
        ("rotation", "{\"alg\":\"ES256\",\"kid\":\"did:key:zDnaeh\"}"),
    ] {
        let parts = [
            header.as_bytes(),
            claims.as_bytes(),
            &account.sign(claims.as_bytes()),
        ];
        put("token", name, &parts.join(&0))?;
    }
    put("cbor", "commit", account.commit_block())?;
    let (did, cid, rev) = (account.did(), account.head(), account.rev());
    for (index, name) in [
        "v1/archive.json".to_owned(),
        format!("v1/repos/{did}/{rev}-{cid}.car.zst"),
        format!("v1/repos/{did}/{rev}-{cid}.car.quarantined.zst"),
        format!("v1/repos/{did}/{rev}..{rev}-{cid}.delta.car.zst"),
        format!("v1/blocks/{did}/{blob}"),
        "v1/log/0/1-1.car.zst".to_owned(),
        "v1/writers/0/1.json".to_owned(),
        format!("v1/identity/{did}/2026-11-24T00:00:00.000Z.json"),
    ]
    .iter()
    .enumerate()
    {
        put("object_name", &format!("{index}"), name.as_bytes())?;
    }
    put("identity", "key", account.key().to_did_key().as_bytes())?;
    put("identity", "did", did.as_str().as_bytes())?;
    put("identity", "endpoint", b"https://pds.example.com:8443")?;
    put("log_file", "empty", &encode_header(&[cid]))?;
    Ok(())
}
