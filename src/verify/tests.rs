//! Every gate fires: a good frame of a simulated account, with one thing wrong at a time.

mod draft;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::commit::{BLOCKS_BYTES_MAX, FUTURE_REV_MAX, OPS_MAX, RECORD_BYTES_MAX};
use super::*;
use crate::repo::signing_key::Curve;
use crate::sim::account::post;
use crate::stream::frame::Action;
use crate::types::{Cid, Rev, Timestamp};
use draft::{Draft, NOW, OTHER_DID, Op, blocks_of, high_s};

const CURVES: [Curve; 2] = [Curve::K256, Curve::P256];

/// What a frame comes to: the proof, or the gate.
fn outcome(draft: &Draft) -> Result<CommitProof, RejectReason> {
    let key = Arc::new(draft.account.key());
    let lookup = |_: &crate::types::Did| match draft.may_speak {
        true => KeyLookup::Key(Arc::clone(&key)),
        false => KeyLookup::NotThisHost,
    };
    match check_frame(&draft.frame(), lookup, NOW) {
        Ok(FrameContent::Event(event)) => match event.body {
            EventBody::Commit {
                checked: Checked::Verified(proof),
                ..
            } => Ok(proof),
            EventBody::Commit {
                checked: Checked::Rejected(reason),
                ..
            }
            | EventBody::Malformed { reason, .. } => Err(reason),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

type Mutation = fn(&mut Draft);
type Case = (RejectReason, &'static str, Mutation);

/// Each mutation of a good draft, and the gate that must refuse it.
const CASES: &[Case] = {
    use RejectReason as R;
    &[
        (R::Field, "the DID is none", |d| d.patch(b"did:plc:", b"dad:plc:")),
        (R::Field, "the rev is none", |d| {
            let rev = d.rev.to_string();
            d.patch(rev.as_bytes(), b"not-a-rev-at-");
        }),
        (R::FutureRev, "a microsecond past the bound", |d| {
            let late = NOW.plus(FUTURE_REV_MAX).micros() + 1;
            d.sign_with(|commit| commit.rev = Rev::from_time(Timestamp::from_micros(late), 0));
            d.rev = Rev::from_time(Timestamp::from_micros(late), 0);
        }),
        (R::BlocksTooLarge, "more than 2 MB", |d| {
            let room = BLOCKS_BYTES_MAX - d.car().len();
            d.blocks.push(vec![7; room]);
        }),
        (R::TooManyOps, "201 operations", |d| {
            while d.ops.len() <= OPS_MAX {
                let path = format!("app.bsky.feed.post/n{}", d.ops.len());
                d.ops.push(Op::new(Action::Create, &path, d.ops[0].cid, None));
            }
        }),
        (R::DuplicatePath, "one operation twice", |d| {
            d.ops.push(d.ops[0].clone())
        }),
        (R::DuplicatePath, "created and deleted", |d| {
            let path = d.ops[0].path.clone();
            d.ops.push(Op::new(Action::Delete, &path, None, d.ops[0].cid));
        }),
        (R::OpShape, "a create without a CID", |d| d.ops[0].cid = None),
        (R::OpShape, "a create with a prev", |d| {
            d.ops[0].prev = d.ops[0].cid
        }),
        (R::OpShape, "an update without a CID", |d| d.ops[1].cid = None),
        (R::OpShape, "a delete with a CID", |d| d.ops[2].cid = d.ops[0].cid),
        (R::OpShape, "an unknown action", |d| d.patch(b"create", b"upsert")),
        (R::OpPath, "no collection", |d| d.ops[0].path = "new".to_owned()),
        (R::OpPath, "three segments", |d| d.ops[0].path.push_str("/x")),
        (R::OpPath, "a folder up", |d| {
            d.ops[0].path = "app.bsky.feed.post/..".to_owned();
        }),
        (R::OpPath, "a record key of 513 characters", |d| {
            d.ops[0].path = format!("app.bsky.feed.post/{}", "k".repeat(513));
        }),
        (R::CidForm, "the commit is raw", |d| d.commit = raw(d.commit)),
        (R::CidForm, "prevData is raw", |d| {
            d.prev_data = d.prev_data.map(raw)
        }),
        (R::CidForm, "a record is raw", |d| {
            d.ops[0].cid = d.ops[0].cid.map(raw)
        }),
        (R::CidForm, "a record before is raw", |d| {
            d.ops[1].prev = d.ops[1].prev.map(raw);
        }),
        (R::CarMalformed, "cut inside a block", |d| {
            let mut car = d.car();
            car.truncate(car.len() - 1);
            d.car = Some(car);
        }),
        (R::CarMalformed, "empty", |d| d.car = Some(Vec::new())),
        (R::CarMalformed, "a section without an end", |d| {
            let mut car = d.car();
            car.extend_from_slice(&[0xff; 12]);
            d.car = Some(car);
        }),
        (R::CarMalformed, "version 2", |d| {
            let mut car = d.car();
            let at = car.windows(8).position(|w| w == b"gversion").expect("a header");
            car[at + 8] = 2;
            d.car = Some(car);
        }),
        (R::BlockHash, "a bit of the last block", |d| {
            let mut car = d.car();
            *car.last_mut().expect("a block") ^= 1;
            d.car = Some(car);
        }),
        (R::RootMismatch, "no root", |d| d.roots.clear()),
        (R::RootMismatch, "the commit is the second root", |d| {
            let node = blocks_of(d).1;
            d.roots.insert(0, node);
        }),
        (R::RootMismatch, "the event names another commit", |d| {
            d.commit = Cid::of_block(b"other")
        }),
        (R::CommitMissing, "the commit block is left out", |d| {
            d.drop_block(&d.commit.clone())
        }),
        (R::CommitMalformed, "version 4", |d| {
            d.sign_with(|commit| commit.version = 4)
        }),
        (R::CommitMalformed, "version 2", |d| {
            d.sign_with(|commit| commit.version = 2)
        }),
        (R::CommitMalformed, "no prev", |d| {
            d.sign_with(|commit| commit.with_prev = false)
        }),
        (R::CommitMalformed, "63 bytes of signature", |d| {
            d.sign_with(|commit| commit.sig_bytes = 63)
        }),
        (R::CommitMalformed, "keys out of order", |d| {
            d.sign_with(|commit| commit.sorted = false)
        }),
        (R::CommitMalformed, "the tree is a raw block", |d| {
            d.sign_with(|commit| commit.data = raw(commit.data));
        }),
        (R::CommitMalformed, "it is a tree node", |d| {
            d.commit = blocks_of(d).1;
            d.roots = vec![d.commit];
        }),
        (R::DidMismatch, "signed for another account", |d| {
            d.sign_with(|commit| commit.did = OTHER_DID.to_owned());
        }),
        (R::RevMismatch, "the event's rev is another", |d| {
            d.rev = Rev::from_bits(d.rev.to_bits() + 1).expect("a rev");
        }),
        (R::BadSignature, "by another key", |d| d.account.rotate_key(9)),
        (R::BadSignature, "a bit differs", |d| {
            d.sign_with(|commit| commit.change_sig = |sig, _| sig[7] ^= 1);
        }),
        (R::BadSignature, "of another message", |d| {
            d.sign_with(|commit| commit.signed_rev = Some(Rev::from_time(NOW, 3)));
        }),
        (R::HighS, "the other form", |d| {
            d.sign_with(|commit| commit.change_sig = high_s)
        }),
        (R::WrongHost, "the document names another host", |d| {
            d.may_speak = false
        }),
        (R::RecordTooLarge, "a byte over 1 MiB", |d| {
            *d = Draft::with_record(d.curve, vec![b'x'; RECORD_BYTES_MAX + 1]);
        }),
        (R::TreeMalformed, "the root is no node", |d| {
            d.replace_root(b"\xa1aex")
        }),
        (R::TreeMalformed, "the root is no CBOR", |d| {
            d.replace_root(b"\xff")
        }),
        (R::TreeMalformed, "the root is a record", |d| {
            d.replace_root(&post("no node"))
        }),
        (R::ProofIncomplete, "the root is left out", |d| {
            let root = blocks_of(d).1;
            d.drop_block(&root);
        }),
        (R::OpMismatch, "created, but not there", |d| {
            d.ops.push(Op::new(
                Action::Create,
                "app.bsky.feed.post/zz",
                d.ops[0].cid,
                None,
            ));
        }),
        (R::OpMismatch, "created as another record", |d| {
            d.ops[0].cid = d.ops[1].cid
        }),
        (R::OpMismatch, "updated to another record", |d| {
            d.ops[1].cid = d.ops[0].cid
        }),
        (R::OpMismatch, "deleted, but there", |d| {
            let prev = d.ops[1].prev;
            d.ops
                .push(Op::new(Action::Delete, "app.bsky.feed.post/r5", None, prev));
        }),
        (R::PrevDataMismatch, "another tree before", |d| {
            d.prev_data = Some(Cid::of_block(b"other"))
        }),
        (R::PrevDataMismatch, "an operation is hidden", |d| _ = d.ops.pop()),
        (R::PrevDataMismatch, "an update hides what was there", |d| {
            d.ops[1].prev = d.ops[2].prev
        }),
        (R::PrevDataMismatch, "a delete names another record", |d| {
            d.ops[2].prev = d.ops[1].prev
        }),
        (R::PrevDataMismatch, "an update is called a create", |d| {
            let path = d.ops[1].path.clone();
            d.ops[1] = Op::new(Action::Create, &path, d.ops[1].cid, None);
        }),
        (R::PrevDataMismatch, "nothing is said to have changed", |d| {
            d.ops.clear()
        }),
    ]
};

/// Gates that need the mirror's own rows: the applier's tests make them fire.
const OF_THE_APPLIER: [RejectReason; 4] = [
    RejectReason::RecordMissing,
    RejectReason::Legacy,
    RejectReason::ChainBroken,
    RejectReason::Forked,
];

fn raw(cid: Cid) -> Cid {
    Cid::raw(*cid.digest())
}

#[test]
fn every_gate_refuses_what_it_is_there_for() {
    let mut fired = BTreeSet::from(OF_THE_APPLIER);
    for curve in CURVES {
        for (reason, what, mutate) in CASES {
            let mut draft = Draft::good(curve);
            mutate(&mut draft);
            match outcome(&draft) {
                Err(found) => assert_eq!(found, *reason, "{curve:?}: {what}"),
                Ok(proof) => panic!("{curve:?}: {what}: {proof:?}"),
            }
            fired.insert(*reason);
        }
    }
    let silent: Vec<_> = RejectReason::ALL
        .iter()
        .filter(|reason| !fired.contains(reason))
        .collect();
    assert!(silent.is_empty(), "nothing makes these fire: {silent:?}");
}

#[test]
fn what_is_tolerated_passes() {
    let cases: &[(&str, Mutation)] = &[
        ("as it is", |_| {}),
        ("blocks in another order", |d| d.blocks.reverse()),
        ("every block twice", |d| d.blocks.extend(d.blocks.clone())),
        ("a block that nobody asked for", |d| {
            d.blocks.push(b"extra".to_vec())
        }),
        ("a second root", |d| d.roots.push(Cid::of_block(b"other"))),
        ("operations in another order", |d| d.ops.reverse()),
        ("the deprecated flag", |d| d.too_big = true),
        ("no time", |d| d.time = None),
        ("another since", |d| d.since = None),
        ("an unknown field in the commit", |d| {
            d.sign_with(|commit| commit.with_extra = true)
        }),
        ("a prev commit", |d| {
            d.sign_with(|commit| commit.prev = Some(Cid::of_block(b"before")))
        }),
        ("a rev at the very bound", |d| {
            let rev = Rev::from_time(NOW.plus(FUTURE_REV_MAX), 1023);
            d.sign_with(|commit| commit.rev = rev);
            d.rev = rev;
        }),
        ("a record of 1 MiB", |d| {
            *d = Draft::with_record(d.curve, vec![b'x'; RECORD_BYTES_MAX]);
        }),
        ("a record that is no CBOR", |d| {
            *d = Draft::with_record(d.curve, b"\xff\xff".to_vec())
        }),
        ("200 operations", |d| *d = Draft::with_creates(d.curve, OPS_MAX)),
        ("no operation", |d| *d = Draft::with_creates(d.curve, 0)),
    ];
    for curve in CURVES {
        for (what, mutate) in cases {
            let mut draft = Draft::good(curve);
            mutate(&mut draft);
            match outcome(&draft) {
                Ok(CommitProof::Inverted(commit)) => {
                    assert_eq!(commit.ops().len(), draft.ops.len(), "{what}");
                    assert!(draft.commit.matches(commit.signed().block()), "{what}");
                }
                other => panic!("{curve:?}: {what}: {other:?}"),
            }
        }
    }
}

/// Whatever node is left out, the answer is the truth or "incomplete": never another root, never "forged".
#[test]
fn a_missing_node_never_looks_like_a_forgery() {
    let (mut proven, mut incomplete) = (0, 0);
    for cid in Draft::good(Curve::K256).node_cids() {
        let mut draft = Draft::good(Curve::K256);
        draft.drop_block(&cid);
        match outcome(&draft) {
            Ok(_) => proven += 1,
            Err(RejectReason::ProofIncomplete) => incomplete += 1,
            Err(other) => panic!("{cid}: {other:?}"),
        }
    }
    assert!(proven > 0 && incomplete >= 3, "{proven} {incomplete}");
}

/// The proof stands without the record; whether the mirror has it is not for this module to say.
#[test]
fn a_record_that_was_left_out_is_marked() {
    let mut draft = Draft::good(Curve::K256);
    let cid = draft.ops[0].cid.expect("a create");
    draft.drop_block(&cid);
    let Ok(CommitProof::Inverted(commit)) = outcome(&draft) else {
        panic!("the tree proves it");
    };
    let left_out = |op: &VerifiedOp| matches!(op, VerifiedOp::Put { bytes: None, .. });
    assert_eq!(commit.ops().iter().filter(|op| left_out(op)).count(), 1);
}

#[test]
fn a_commit_of_an_older_host_proves_its_new_records_only() {
    let legacy: [(&str, Mutation); 3] = [
        ("no prevData", |d| d.prev_data = None),
        ("no prev in an update", |d| d.ops[1].prev = None),
        ("no prev at all", |d| {
            d.prev_data = None;
            d.ops.iter_mut().for_each(|op| op.prev = None);
        }),
    ];
    for (what, older) in legacy {
        let mut draft = Draft::good(Curve::P256);
        older(&mut draft);
        match outcome(&draft) {
            Ok(CommitProof::Legacy(commit)) => {
                assert_eq!(commit.ops().len(), 3, "{what}");
                assert_eq!(commit.prev_data(), draft.prev_data);
            }
            other => panic!("{what}: {other:?}"),
        }
        let wrong: [(RejectReason, Mutation); 7] = [
            (RejectReason::BadSignature, |d| d.account.rotate_key(9)),
            (RejectReason::HighS, |d| {
                d.sign_with(|commit| commit.change_sig = high_s)
            }),
            (RejectReason::RevMismatch, |d| {
                d.rev = Rev::from_bits(d.rev.to_bits() + 1).expect("a rev");
            }),
            (RejectReason::OpMismatch, |d| d.ops[0].cid = d.ops[1].cid),
            (RejectReason::OpMismatch, |d| {
                d.ops[2].path = "app.bsky.feed.post/r5".to_owned()
            }),
            (RejectReason::ProofIncomplete, |d| {
                let root = blocks_of(d).1;
                d.drop_block(&root);
            }),
            (RejectReason::TreeMalformed, |d| d.replace_root(&post("no node"))),
        ];
        for (reason, mutate) in wrong {
            let mut draft = Draft::good(Curve::P256);
            older(&mut draft);
            mutate(&mut draft);
            assert_eq!(outcome(&draft).expect_err("refused"), reason, "{what}");
        }
    }
}

#[test]
fn a_sync_passes_the_same_gates() {
    type SyncCase = (Result<(), RejectReason>, &'static str, Mutation);
    let cases: &[SyncCase] = &[
        (Ok(()), "as it is", |_| {}),
        // After an import the event's rev is newer than the commit's.
        (Ok(()), "the event's rev is another", |d| {
            d.rev = Rev::from_time(NOW, 9)
        }),
        (Err(RejectReason::BlocksTooLarge), "more than 10 kB", |d| {
            d.blocks.push(vec![7; 10_000])
        }),
        (Err(RejectReason::FutureRev), "from the future", |d| {
            d.rev = Rev::from_time(NOW.plus(FUTURE_REV_MAX + Duration::from_millis(1)), 0);
        }),
        (Err(RejectReason::CarMalformed), "empty", |d| {
            d.car = Some(Vec::new())
        }),
        (Err(RejectReason::RootMismatch), "no root", |d| d.roots.clear()),
        (Err(RejectReason::BlockHash), "a bit differs", |d| {
            let mut car = d.car();
            *car.last_mut().expect("a block") ^= 1;
            d.car = Some(car);
        }),
        (Err(RejectReason::CommitMissing), "no block", |d| d.blocks.clear()),
        (Err(RejectReason::CommitMalformed), "version 2", |d| {
            d.sign_with(|commit| commit.version = 2)
        }),
        (Err(RejectReason::DidMismatch), "another account's", |d| {
            d.sign_with(|commit| commit.did = OTHER_DID.to_owned());
        }),
        (Err(RejectReason::BadSignature), "by another key", |d| {
            d.account.rotate_key(9)
        }),
        (Err(RejectReason::HighS), "the other form", |d| {
            d.sign_with(|commit| commit.change_sig = high_s)
        }),
        (Err(RejectReason::WrongHost), "not this host's", |d| {
            d.may_speak = false
        }),
    ];
    for curve in CURVES {
        for (expected, what, mutate) in cases {
            let mut draft = Draft::good(curve);
            let commit = draft.commit;
            draft.blocks.retain(|block| commit.matches(block));
            mutate(&mut draft);
            let key = Arc::new(draft.account.key());
            let lookup = |_: &crate::types::Did| match draft.may_speak {
                true => KeyLookup::Key(Arc::clone(&key)),
                false => KeyLookup::NotThisHost,
            };
            let found = match check_frame(&draft.sync_frame(), lookup, NOW) {
                Ok(FrameContent::Event(event)) => match event.body {
                    EventBody::Sync {
                        checked: Checked::Verified(sync),
                        ..
                    } => {
                        assert!(draft.commit.matches(sync.signed().block()), "{what}");
                        assert_eq!(sync.event_rev(), draft.rev);
                        Ok(())
                    }
                    EventBody::Sync {
                        checked: Checked::Rejected(reason),
                        ..
                    }
                    | EventBody::Malformed { reason, .. } => Err(reason),
                    other => panic!("{what}: {other:?}"),
                },
                other => panic!("{what}: {other:?}"),
            };
            assert_eq!(&found, expected, "{curve:?}: {what}");
        }
    }
}

/// The gates hold for frames that did not come through the decoder, too.
#[test]
fn the_limits_hold_without_the_decoder() {
    let key = Draft::good(Curve::K256).account.key();
    let mut large = Draft::good(Curve::K256);
    large.blocks.push(vec![7; BLOCKS_BYTES_MAX]);
    let mut many = Draft::with_creates(Curve::K256, OPS_MAX);
    many.ops.push(many.ops[0].clone());
    let mut shape = Draft::good(Curve::K256);
    shape.ops[2].cid = shape.ops[0].cid;
    let mut new = Draft::good(Curve::K256);
    new.ops[0].prev = new.ops[0].cid;
    let mut without = Draft::good(Curve::K256);
    without.ops[1].cid = None;
    for (draft, reason) in [
        (new, RejectReason::OpShape),
        (without, RejectReason::OpShape),
        (large, RejectReason::BlocksTooLarge),
        (many, RejectReason::TooManyOps),
        (shape, RejectReason::OpShape),
    ] {
        let car = draft.car();
        let checked = check_commit(&draft.commit_frame(&car), &key, NOW);
        assert_eq!(checked.expect_err("refused"), reason);
    }
}
