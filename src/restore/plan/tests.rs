//! Tables of what was found out, and what the plan says to it.

use serde_json::json;
use zeroize::Zeroizing;

use super::*;
use crate::identity::plc_log::fixtures::{LogMaker, key, secret};
use crate::repo::signing_key::Curve;

const START: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// All that a plan is made from, good as it is; tests spoil it.
struct World {
    log: LogMaker,
    backup: BackupFacts,
    server: ServerFacts,
    standing: Standing,
    owner: HandleOwner,
    given: Given,
    rotation: Option<UserSecret>,
    signer: Option<UserSecret>,
    own: Vec<String>,
    begun: bool,
    activated: bool,
    now: Timestamp,
}

/// The secret of a number, as the fixtures make it.
fn user(number: u8) -> UserSecret {
    let curve = if number.is_multiple_of(2) {
        Curve::K256
    } else {
        Curve::P256
    };
    UserSecret::from_random(curve, Zeroizing::new([number; 32])).expect("in range")
}

fn cid(number: u8) -> Cid {
    Cid::of_block(&[number])
}

fn blob(held: Option<u64>) -> Blob {
    let mime = "image/png".to_owned();
    Blob { mime, held }
}

fn world() -> World {
    let mut log = LogMaker::new(START);
    log.push(LogMaker::operation(&[1, 2], &key(20), "old.test", None), 1);
    World {
        log,
        backup: BackupFacts {
            place: "file:///archive".to_owned(),
            rev: "3kabcdefghi2j".parse().expect("a rev"),
            commit: cid(1),
            signed_by: Some(key(20)),
            records: 10,
            withheld: Vec::new(),
            car_bytes: 1000,
            blobs: BTreeMap::from([(cid(2), blob(Some(50))), (cid(3), blob(Some(70)))]),
            notes: Vec::new(),
        },
        server: ServerFacts {
            url: "https://new.test".to_owned(),
            did: "did:web:new.test".to_owned(),
            domains: vec![".new.test".to_owned()],
            blob_bytes_max: Some(100),
            ..ServerFacts::default()
        },
        standing: Standing::Absent,
        owner: HandleOwner::Nobody,
        given: Given {
            handle: Some("Me.new.test".to_owned()),
            email: true,
            ..Given::default()
        },
        rotation: Some(user(1)),
        signer: None,
        own: Vec::new(),
        begun: false,
        activated: false,
        now: START.plus(30 * DAY),
    }
}

impl World {
    fn plan(&self) -> Plan {
        let did = self.log.did();
        let log = PlcLog::parse(&did, &self.log.answer()).expect("verifies");
        let state = log.current().cloned();
        let findings = Findings {
            did: &did,
            backup: &self.backup,
            server: &self.server,
            log: Some(&log),
            signing_key: state.as_ref().and_then(|state| state.signing_key.as_ref()),
            handle: state.as_ref().and_then(|state| state.handle.as_deref()),
            pds: state.as_ref().and_then(|state| state.pds.as_deref()),
            old_pds_active: false,
            standing: &self.standing,
            owner: &self.owner,
            own_operations: &self.own,
            begun_by_us: self.begun,
            activated_by_us: self.activated,
            rotation: self.rotation.as_ref(),
            signer: self.signer.as_ref(),
            given: &self.given,
            now: self.now,
        };
        let plan = findings.plan();
        let (text, json) = (findings.text(&plan), findings.json(&plan));
        for refusal in &plan.refusals {
            assert!(text.contains(refusal.as_str()));
        }
        assert_eq!(
            json["refusals"].as_array().map(Vec::len),
            Some(plan.refusals.len())
        );
        plan
    }
}

#[test]
fn a_good_plan() {
    let plan = world().plan();
    assert_eq!(plan.refusals, Vec::<String>::new());
    assert_eq!(plan.warnings, Vec::<String>::new());
    assert_eq!((plan.proof, plan.key_place), (Proof::TemporaryKey, Some(0)));
    assert_eq!((plan.handle.as_str(), plan.blob_bytes), ("me.new.test", 120));
    assert_eq!(plan.steps.len(), 7);
    let order = [
        "temporary",
        "make the account",
        "import 10",
        "upload 2",
        "points the identity",
        "activate",
        "write",
    ];
    for (step, what) in plan.steps.iter().zip(order) {
        assert!(step.contains(what), "{step}: {what}");
    }
}

#[test]
fn our_own_operations_are_nothing_new() {
    let mut world = world();
    let next = LogMaker::operation(&[1, 2], &key(22), "old.test", Some(&world.log.last_cid()));
    world.log.push(next, 1);
    world.now = START.plus(DAY);
    assert_eq!(world.plan().warnings.len(), 1);
    world.own = vec![world.log.last_cid()];
    assert_eq!(world.plan().warnings, Vec::<String>::new());
}

/// A spoilt world, and what the plan must say to it.
type Case = (fn(&mut World), &'static str);

#[test]
fn what_stands_in_the_way_is_refused() {
    let cases: [Case; 19] = [
        (|w| w.standing = Standing::Deactivated, "--overwrite"),
        (|w| w.rotation = None, "needs a rotation key"),
        (|w| w.rotation = Some(user(9)), "is not one of the identity's"),
        (|w| w.backup.signed_by = None, "could not be checked"),
        (|w| w.given.email = false, "--email"),
        (|w| w.server.invite_required = true, "--invite-code-file"),
        (|w| w.server.verification_required = true, "--verification-code"),
        (
            |w| w.given.handle = Some("me.elsewhere.test".into()),
            "_atproto.me.elsewhere.test",
        ),
        (|w| w.given.handle = None, "someone.test"),
        (
            |w| w.owner = HandleOwner::Other("did:plc:b".into()),
            "belongs to did:plc:b",
        ),
        (|w| w.standing = Standing::Active, "active: there is nothing"),
        (|w| w.standing = Standing::Other("takendown".into()), "takendown"),
        (|w| w.signer = Some(user(9)), "not the account's signing key"),
        (
            |w| w.given.dropped = vec![key(9)],
            "no rotation key of this identity",
        ),
        (
            |w| {
                let next =
                    LogMaker::operation(&[1, 2, 3, 4, 5], &key(20), "old.test", Some(&w.log.last_cid()));
                w.log.push(next, 1);
            },
            "--drop-rotation-key",
        ),
        (
            |w| {
                let tombstone = json!({ "type": "plc_tombstone", "prev": w.log.last_cid() });
                w.log.push(tombstone, 1);
            },
            "tombstone",
        ),
        (
            // The key was taken out.
            |w| {
                let next = LogMaker::operation(&[2], &key(20), "old.test", Some(&w.log.last_cid()));
                w.log.push(next, 2);
            },
            "no longer in the identity's list",
        ),
        (
            // Its operation was undone by a stronger key, and with it the key.
            |w| {
                let first = w.log.last_cid();
                w.log.push(
                    LogMaker::operation(&[1, 2, 9], &key(20), "x.test", Some(&first)),
                    2,
                );
                w.log.later(Duration::from_secs(60));
                w.log.push(
                    LogMaker::operation(&[1, 2], &key(20), "old.test", Some(&first)),
                    1,
                );
                w.log.entries[1]["nullified"] = true.into();
                w.rotation = Some(user(9));
            },
            "no longer in the identity's list",
        ),
        (
            |w| {
                w.given.dropped = vec![key(2)];
                w.given.handle = Some("me.old.test".into());
            },
            "does not give handles like me.old.test",
        ),
    ];
    for (spoil, what) in cases {
        let mut world = world();
        spoil(&mut world);
        let plan = world.plan();
        let found = plan.refusals.iter().any(|refusal| refusal.contains(what));
        assert!(found, "{what}: {:?}", plan.refusals);
    }
}

#[test]
fn what_should_be_known_is_said_and_not_refused() {
    let cases: [Case; 6] = [
        (|w| w.rotation = Some(user(2)), "number 2 in the list"),
        (
            |w| w.backup.withheld = vec!["a.b.c/1".into(), "a.b.c/2".into()],
            "2 records were erased from the backup, and stay erased: only their names are restored: a.b.c/1, a.b.c/2",
        ),
        (
            |w| drop(w.backup.blobs.insert(cid(4), blob(None))),
            "not in the backup",
        ),
        (
            |w| drop(w.backup.blobs.insert(cid(4), blob(Some(101)))),
            "larger than the 100 bytes",
        ),
        (
            |w| {
                let next = LogMaker::operation(&[1, 2], &key(22), "old.test", Some(&w.log.last_cid()));
                w.log.later(DAY);
                w.log.push(next, 2);
                w.now = START.plus(2 * DAY);
            },
            "can undo it for 48 h more",
        ),
        (
            |w| {
                let first = w.log.last_cid();
                w.log
                    .push(LogMaker::operation(&[1, 2], &key(22), "x.test", Some(&first)), 2);
                w.log.later(Duration::from_secs(60));
                w.log.push(
                    LogMaker::operation(&[1, 2], &key(20), "old.test", Some(&first)),
                    1,
                );
                w.log.entries[1]["nullified"] = true.into();
            },
            "1 operations of the log were undone",
        ),
    ];
    for (change, what) in cases {
        let mut world = world();
        change(&mut world);
        let plan = world.plan();
        assert_eq!(plan.refusals, Vec::<String>::new(), "{what}");
        assert!(
            plan.warnings.iter().any(|warning| warning.contains(what)),
            "{what}: {:?}",
            plan.warnings
        );
    }
}

#[test]
fn an_account_that_is_there_needs_neither_proof_nor_invite() {
    let mut world = world();
    world.standing = Standing::Deactivated;
    world.begun = true;
    world.server.invite_required = true;
    world.given.email = false;
    let plan = world.plan();
    assert_eq!((plan.refusals.len(), plan.proof), (0, Proof::NotNeeded));
    assert_eq!(plan.steps.len(), 5);
    world.standing = Standing::Active;
    world.activated = true;
    assert_eq!(world.plan().refusals.len(), 0);
}

#[test]
fn a_saved_signing_key_makes_the_first_operation_needless() {
    let mut world = world();
    world.signer = Some(user(20));
    let plan = world.plan();
    assert_eq!((plan.refusals.len(), plan.proof), (0, Proof::SigningKey));
    assert!(!plan.steps[0].contains("temporary"));
}

#[test]
fn the_key_that_signs_is_the_listed_one() {
    let world = world();
    let log = PlcLog::parse(&world.log.did(), &world.log.answer()).expect("verifies");
    // Digits fit both curves; only number 1, of P-256, is listed.
    let digits = UserSecret::parse(&"01".repeat(32)).expect("reads");
    let (place, key) = rotation_key(&log, &digits).expect("listed");
    assert_eq!((place, key.public()), (0, secret(1).public()));
}
