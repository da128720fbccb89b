//! One frame of a stream: decoded, verified as far as its own bytes and the account's key allow.
//!
//! The same function serves the live stream and the replay of parked frames, so a frame means the same
//! whenever it is read.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::{CommitProof, RejectReason, VerifiedSync, check_commit, check_sync};
use crate::repo::signing_key::SigningKey;
use crate::stream::frame::{FieldError, Frame, FrameError, decode_frame};
use crate::types::{AccountStatus, Did, Rev, Timestamp};

/// What is known about who may speak for an account.
#[derive(Debug, Clone)]
pub enum KeyLookup {
    /// This host may, with this key.
    Key(Arc<SigningKey>),
    /// Not resolved: the event cannot be judged yet.
    Unknown,
    /// The DID document names another host, or no key.
    NotThisHost,
}

/// An event with a sequence number.
#[derive(Debug, Clone)]
pub struct CheckedEvent {
    /// The host's sequence number.
    pub seq: u64,
    /// When the host says that it happened. Not trusted; used for lag alone.
    pub time: Option<Timestamp>,
    /// What tells it from another event under the same number.
    pub fingerprint: u64,
    /// What it is.
    pub body: EventBody,
}

/// What an event says, with the proof where it carries one.
#[derive(Debug, Clone)]
pub enum EventBody {
    /// `#commit`
    Commit {
        /// Whose.
        did: Did,
        /// The rev that it claims.
        rev: Rev,
        /// The proof, or why there is none.
        checked: Checked<CommitProof>,
    },
    /// `#sync`
    Sync {
        /// Whose.
        did: Did,
        /// The rev that it claims.
        rev: Rev,
        /// The proof, or why there is none.
        checked: Checked<Box<VerifiedSync>>,
    },
    /// `#identity`: look again.
    Identity {
        /// Whose.
        did: Did,
    },
    /// `#account`: what the host says of the account's standing there.
    Account {
        /// Whose.
        did: Did,
        /// Its standing.
        status: AccountStatus,
    },
    /// An event whose fields are not as they must be.
    Malformed {
        /// Whose, if that could be read.
        did: Option<Did>,
        /// The gate that it fails.
        reason: RejectReason,
    },
}

impl EventBody {
    /// Whose, if it says so.
    #[must_use]
    pub const fn did(&self) -> Option<&Did> {
        match self {
            Self::Commit { did, .. }
            | Self::Sync { did, .. }
            | Self::Identity { did }
            | Self::Account { did, .. } => Some(did),
            Self::Malformed { did, .. } => did.as_ref(),
        }
    }
}

/// The outcome of verification.
#[derive(Debug, Clone)]
pub enum Checked<T> {
    /// Proven.
    Verified(T),
    /// The account's key is not at hand.
    NoKey,
    /// Not accepted.
    Rejected(RejectReason),
}

impl<T> Checked<T> {
    /// The gate that refused it, if one did.
    #[must_use]
    pub const fn rejection(&self) -> Option<RejectReason> {
        match self {
            Self::Rejected(reason) => Some(*reason),
            Self::Verified(_) | Self::NoKey => None,
        }
    }

    /// The proof, if there is one.
    #[must_use]
    pub const fn proof(&self) -> Option<&T> {
        match self {
            Self::Verified(proof) => Some(proof),
            Self::Rejected(_) | Self::NoKey => None,
        }
    }
}

/// A message that is no event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// `#info`
    Info {
        /// Such as `OutdatedCursor`.
        name: String,
        /// For people.
        message: Option<String>,
    },
    /// An error frame; the host closes after it.
    Error {
        /// Such as `FutureCursor` or `ConsumerTooSlow`.
        error: String,
        /// For people.
        message: Option<String>,
    },
}

/// What a frame holds.
#[derive(Debug, Clone)]
pub enum FrameContent {
    /// An event with a sequence number.
    Event(CheckedEvent),
    /// A message without one.
    Notice(Notice),
    /// Something unknown without a sequence number: ignored, as the specification asks.
    Ignored,
}

/// Decodes and verifies one frame.
///
/// # Errors
/// When the frame is not two strict DAG-CBOR objects: then the connection cannot be trusted any longer.
pub fn check_frame(
    bytes: &[u8],
    key_of: impl FnOnce(&Did) -> KeyLookup,
    now: Timestamp,
) -> Result<FrameContent, FrameError> {
    let event = |seq, time, fingerprint, body| {
        FrameContent::Event(CheckedEvent {
            seq,
            time,
            fingerprint,
            body,
        })
    };
    let frame = match decode_frame(bytes) {
        Ok(frame) => frame,
        Err(FrameError::Event(bad)) => {
            let Some(seq) = bad.seq else {
                return Ok(FrameContent::Ignored);
            };
            let print = fingerprint("malformed", bytes, &[]);
            let reason = field_reason(&bad.error);
            let did = bad.did;
            return Ok(event(seq, None, print, EventBody::Malformed { did, reason }));
        }
        Err(error) => return Err(error),
    };
    Ok(match frame {
        Frame::Commit(frame) => {
            let checked = judge(key_of(&frame.did), |key| check_commit(&frame, key, now));
            let (rev, commit) = (frame.rev.to_bits().to_be_bytes(), frame.commit.to_bytes());
            let print = fingerprint("commit", frame.did.as_str().as_bytes(), &[&rev, &commit]);
            event(
                frame.seq,
                frame.time,
                print,
                EventBody::Commit {
                    did: frame.did,
                    rev: frame.rev,
                    checked,
                },
            )
        }
        Frame::Sync(frame) => {
            let checked = judge(key_of(&frame.did), |key| {
                check_sync(&frame, key, now).map(Box::new)
            });
            let rev = frame.rev.to_bits().to_be_bytes();
            let print = fingerprint("sync", frame.did.as_str().as_bytes(), &[&rev]);
            event(
                frame.seq,
                frame.time,
                print,
                EventBody::Sync {
                    did: frame.did,
                    rev: frame.rev,
                    checked,
                },
            )
        }
        Frame::Identity(frame) => {
            let print = fingerprint("identity", frame.did.as_str().as_bytes(), &[&micros(frame.time)]);
            event(
                frame.seq,
                frame.time,
                print,
                EventBody::Identity { did: frame.did },
            )
        }
        Frame::Account(frame) => {
            let status = AccountStatus::from_wire(frame.active, frame.status);
            let print = fingerprint("account", frame.did.as_str().as_bytes(), &[&micros(frame.time)]);
            event(
                frame.seq,
                frame.time,
                print,
                EventBody::Account {
                    did: frame.did,
                    status,
                },
            )
        }
        Frame::Info(info) => FrameContent::Notice(Notice::Info {
            name: info.name.to_owned(),
            message: info.message.map(str::to_owned),
        }),
        Frame::Error(error) => FrameContent::Notice(Notice::Error {
            error: error.error.to_owned(),
            message: error.message.map(str::to_owned),
        }),
        // What an unknown type's `seq` counts is unknown: the cursor does not move by it.
        Frame::Unknown(_) => FrameContent::Ignored,
    })
}

/// Which gate an event fails whose fields break a rule of the lexicon.
fn field_reason(error: &FieldError) -> RejectReason {
    match error {
        FieldError::TooLong { field: "blocks", .. } => RejectReason::BlocksTooLarge,
        FieldError::TooManyOps(_) => RejectReason::TooManyOps,
        FieldError::OpNotMap
        | FieldError::UnknownAction
        | FieldError::OpCidMissing(_)
        | FieldError::DeleteWithCid
        | FieldError::CreateWithPrev => RejectReason::OpShape,
        FieldError::Syntax("path", _) => RejectReason::OpPath,
        FieldError::NotABlock(_) | FieldError::Syntax("commit" | "prevData" | "cid" | "prev", _) => {
            RejectReason::CidForm
        }
        _ => RejectReason::Field,
    }
}

fn judge<T>(lookup: KeyLookup, check: impl FnOnce(&SigningKey) -> Result<T, RejectReason>) -> Checked<T> {
    match lookup {
        KeyLookup::Unknown => Checked::NoKey,
        KeyLookup::NotThisHost => Checked::Rejected(RejectReason::WrongHost),
        KeyLookup::Key(key) => match check(&key) {
            Ok(proof) => Checked::Verified(proof),
            Err(reason) => Checked::Rejected(reason),
        },
    }
}

/// The first 8 bytes of a hash over what an event is about: the same for the same event, however often a host
/// encodes it anew.
fn fingerprint(kind: &str, subject: &[u8], parts: &[&[u8]]) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(kind);
    hasher.update([0]);
    hasher.update(subject);
    for part in parts {
        hasher.update([0]);
        hasher.update(part);
    }
    let digest: [u8; 32] = hasher.finalize().into();
    let (head, _) = digest.split_first_chunk::<8>().expect("32 bytes");
    u64::from_be_bytes(*head)
}

fn micros(time: Option<Timestamp>) -> [u8; 8] {
    time.map_or(0, Timestamp::micros).to_be_bytes()
}
