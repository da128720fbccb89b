//! The load generator's host: its accounts, their frames made beforehand, and their logs in a directory.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::world::Rng;
use super::account::LoadAccount;
use crate::identity::plc_log::fixtures::{self, LogMaker};
use crate::repo::signing_key::Curve;
use crate::types::{Did, Timestamp};

/// What is made.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// The same seed, the same load.
    pub seed: u64,
    /// The host's own URL, for DID documents.
    pub url: String,
    /// Accounts.
    pub accounts: u64,
    /// Records of each account, about: half have fewer, a few have many more.
    pub records: u64,
    /// All have as many.
    pub even: bool,
    /// Of a hundred accounts, so many sign on P-256.
    pub p256_percent: u64,
    /// Whether accounts have a picture.
    pub pictures: bool,
    /// When the newest record was written, before the frames.
    pub until: Timestamp,
}

/// A host that stands still, and the frames of what happens then.
pub struct LoadHost {
    /// By number.
    pub accounts: Vec<LoadAccount>,
    /// Who has which number.
    pub numbers: BTreeMap<Did, usize>,
    /// Audit logs, by number.
    pub logs: Vec<Value>,
    /// `#commit`s, with the numbers from 1 on.
    pub frames: Vec<Bytes>,
}

impl LoadHost {
    /// Makes everything.
    #[must_use]
    pub fn make(plan: &LoadPlan) -> Self {
        let mut rng = Rng::new(plan.seed, "host");
        let mut host = Self {
            accounts: Vec::new(),
            numbers: BTreeMap::new(),
            logs: Vec::new(),
            frames: Vec::new(),
        };
        for number in 0..plan.accounts {
            let curve = if rng.below(100) < plan.p256_percent {
                Curve::P256
            } else {
                Curve::K256
            };
            let secret = LoadAccount::secret(plan.seed, number, curve);
            let log = audit_log(plan, number, &secret.public().to_did_key());
            let did: Did = log[0]["did"].as_str().expect("a text").parse().expect("a DID");
            let records = if plan.even {
                plan.records
            } else {
                skewed(&mut rng, plan.records)
            };
            host.numbers.insert(did.clone(), host.accounts.len());
            host.logs.push(log);
            let account = LoadAccount::new(did, secret, plan.seed, records, plan.pictures, plan.until);
            host.accounts.push(account);
        }
        host
    }

    /// Makes so many more frames. Accounts write with the same chance; only the last state of each is kept, so
    /// exports are of the moment after the last frame.
    pub fn write(&mut self, seed: u64, events: u64) {
        let mut rng = Rng::new(seed, "events");
        let len = self.accounts.len();
        for _ in 0..events {
            let seq = self.frames.len() as u64 + 1;
            let account = &mut self.accounts[rng.index(len)];
            self.frames.push(account.write(seq).into());
        }
    }

    /// The DID document of the account of this number, as the directory gives it.
    #[must_use]
    pub fn document(&self, number: usize) -> Value {
        let account = &self.accounts[number];
        let operation = &self.logs[number][0]["operation"];
        json!({
            "@context": ["https://www.w3.org/ns/did/v1"],
            "id": account.did().as_str(),
            "alsoKnownAs": operation["alsoKnownAs"],
            "verificationMethod": [{
                "id": format!("{}#atproto", account.did()),
                "type": "Multikey",
                "controller": account.did().as_str(),
                "publicKeyMultibase": account.key().to_multikey(),
            }],
            "service": [{
                "id": "#atproto_pds",
                "type": "AtprotoPersonalDataServer",
                "serviceEndpoint": operation["services"]["atproto_pds"]["endpoint"],
            }],
        })
    }
}

fn audit_log(plan: &LoadPlan, number: u64, signing: &str) -> Value {
    let mut operation = LogMaker::operation(&[2], signing, "replaced", None);
    operation["alsoKnownAs"] = json!([format!("at://user{number}.load.test")]);
    operation["services"]["atproto_pds"]["endpoint"] = plan.url.clone().into();
    let message = serde_ipld_dagcbor::to_vec(&operation).expect("encodes");
    let mut log = LogMaker::new(plan.until);
    log.push_with_sig(operation, &fixtures::secret(2).sign(&message));
    Value::Array(log.entries)
}

/// Sizes as they are on a real host: half below a third of the mean, and some of ten times as much.
fn skewed(rng: &mut Rng, mean: u64) -> u64 {
    let part = match rng.below(100) {
        0..50 => rng.below(30),
        50..80 => 30 + rng.below(70),
        80..95 => 100 + rng.below(200),
        _ => 300 + rng.below(700),
    };
    (mean * part / 88).max(1)
}
