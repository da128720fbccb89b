//! Commits that are not as they must be: each breaks one rule and keeps the others.

use super::account::{CommitParts, PartOp, SimAccount, post};
use super::faults::Fault;
use super::world::{Rng, World};
use crate::stream::encode::encode_frame;
use crate::stream::frame::{Action, ErrorFrame, Frame, UnknownFrame};
use crate::types::{Cid, Did, Rev, Timestamp};

/// Flaws of a frame alone: the commit in it is the account's, or could be.
pub const OF_FRAMES: [Fault; 13] = [
    Fault::LegacyCommit,
    Fault::BadField,
    Fault::DuplicatePath,
    Fault::BlocksCut,
    Fault::BlockFlipped,
    Fault::RootSwapped,
    Fault::CommitDropped,
    Fault::CommitGarbage,
    Fault::RevSwapped,
    Fault::RecordDropped,
    Fault::NodeDropped,
    Fault::OpChanged,
    Fault::PrevDataChanged,
];

/// Flaws of a commit that never was the account's.
pub const OF_FORGERIES: [Fault; 6] = [
    Fault::HighS,
    Fault::WrongKey,
    Fault::FutureRev,
    Fault::DidSwapped,
    Fault::NodeGarbage,
    Fault::RecordTooLarge,
];

/// The frame of a commit, with a flaw. None if this commit cannot have it.
pub fn spoil(
    flaw: Fault,
    mut parts: CommitParts,
    seq: u64,
    now: Timestamp,
    rng: &mut Rng,
) -> Option<Vec<u8>> {
    match flaw {
        Fault::LegacyCommit => {
            parts.prev_data = None;
            parts.since = None;
            for op in &mut parts.ops {
                op.prev = None;
            }
        }
        Fault::BadField => return bad_field(parts, seq, now, rng),
        Fault::DuplicatePath => {
            let op = parts.ops.first()?.clone();
            parts.ops.push(op);
        }
        Fault::BlocksCut => {
            let car = parts.car();
            return Some(parts.frame_with(&car[..car.len() - 3], seq, now));
        }
        Fault::BlockFlipped => {
            let bytes = &mut parts.nodes.first_mut()?.1;
            let at = rng.index(bytes.len());
            bytes[at] ^= 1 << rng.below(8);
        }
        Fault::RootSwapped => parts.root = parts.nodes.first()?.0,
        Fault::CommitDropped => parts.commit.1.clear(),
        Fault::CommitGarbage => {
            let garbage = post("no commit");
            parts.commit = (Cid::of_block(&garbage), garbage);
            parts.root = parts.commit.0;
        }
        Fault::RevSwapped => parts.rev = later(parts.rev),
        Fault::RecordDropped => drop(parts.records.pop()?),
        Fault::NodeDropped => drop(parts.nodes.pop()?),
        Fault::OpChanged => {
            let op = parts.ops.iter_mut().find(|op| op.cid.is_some())?;
            op.cid = Some(Cid::of_block(b"another record"));
        }
        Fault::PrevDataChanged => parts.prev_data = Some(Cid::of_block(b"another tree")),
        _ => return None,
    }
    Some(parts.frame(seq, now))
}

/// One of the fields is not what the lexicon says.
fn bad_field(mut parts: CommitParts, seq: u64, now: Timestamp, rng: &mut Rng) -> Option<Vec<u8>> {
    let op = parts.ops.iter_mut().find(|op| op.cid.is_some())?;
    match rng.below(5) {
        0 => op.path = "no path".to_owned(),
        1 => op.cid = None,
        2 => op.cid = Some(Cid::of_blob(b"a blob is no record")),
        3 => {
            let op = op.clone();
            let many = (0..201).map(|number| PartOp {
                path: format!("app.bsky.feed.post/many{number}"),
                ..op.clone()
            });
            parts.ops = many.collect();
        }
        _ => {
            let mut frame = parts.frame(seq, now);
            let rev = parts.rev.to_string();
            let at = frame
                .windows(rev.len())
                .position(|window| window == rev.as_bytes())?;
            frame[at..at + rev.len()].fill(b'!');
            return Some(frame);
        }
    }
    Some(parts.frame(seq, now))
}

fn later(rev: Rev) -> Rev {
    Rev::from_bits(rev.to_bits() + 1024).expect("far from the end of time")
}

/// The frame of a commit that the account never made.
pub fn forge(flaw: Fault, account: &SimAccount, other: &Did, seq: u64, now: Timestamp) -> Vec<u8> {
    let mut twin = account.clone();
    if flaw == Fault::WrongKey {
        twin.rotate_key(u64::from(u32::MAX));
    }
    let size = if flaw == Fault::RecordTooLarge { 1 << 20 } else { 1 };
    let writes = [(
        "app.bsky.feed.post/forged".to_owned(),
        Some(post(&"x".repeat(size))),
    )];
    let mut parts = match flaw {
        Fault::FutureRev => {
            let then = now.plus(std::time::Duration::from_secs(3600));
            twin.write_as(&writes, Rev::from_time(then, 0))
        }
        _ => twin.write(&writes, now),
    };
    match flaw {
        Fault::HighS => parts.commit = twin.sign_high(twin.rev(), twin.data()),
        Fault::DidSwapped => parts.did = other.clone(),
        Fault::NodeGarbage => {
            let garbage = post("no node");
            let cid = Cid::of_block(&garbage);
            parts.commit = twin.sign_over(twin.rev(), cid);
            parts.nodes = vec![(cid, garbage)];
            parts.ops = vec![PartOp {
                action: Action::Create,
                path: writes[0].0.clone(),
                cid: Some(parts.records[0].0),
                prev: None,
            }];
        }
        _ => {}
    }
    parts.root = parts.commit.0;
    parts.frame(seq, now)
}

/// Something on the wire that is no event of the host, sometimes.
pub(super) fn odd_frame(world: &mut World) -> Option<Vec<u8>> {
    if world.strikes(Fault::GarbageFrame, 10) {
        return Some((0..20).map(|_| world.net_rng.next().to_le_bytes()[0]).collect());
    }
    if world.strikes(Fault::UnknownFrame, 20) {
        return Some(encode_frame(&Frame::Unknown(UnknownFrame {
            op: 1,
            t: Some("#news"),
            seq: Some(1 << 50),
        })));
    }
    world.strikes(Fault::ConsumerTooSlow, 10).then(|| {
        encode_frame(&Frame::Error(ErrorFrame {
            error: "ConsumerTooSlow",
            message: None,
        }))
    })
}
