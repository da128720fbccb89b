//! Verification of an archive from the archive alone: no mirror, no daemon, no directory.
//!
//! Every name is one of an archive's; every object holds what its name says, byte for byte where the name is a hash;
//! every snapshot rebuilds to the root that its commit signs, every delta leads there from the snapshot before it, and
//! signatures fit a key of the account's identity objects, where there are any; segments follow each other from where the
//! log begins, and each account's changes build on something that is held; every blob that a newest snapshot refers to is there. What is not there is asked for once more before it is
//! said to be missing: a list proves nothing.
//!
//! A folder keeps no digest beside a file. So what of a file's bytes does not change what they mean (an unused bit in
//! a zstd frame's head) goes unnoticed there, and nothing is lost by it.
//!
//! Pure: [`content`], [`inventory`], [`log_chain`], [`replay`], [`report`], [`state`]. Shell: [`run`] and what belongs to it.

pub mod content;
pub mod inventory;
pub mod log_chain;
pub mod replay;
pub mod report;
pub mod state;

#[cfg(feature = "daemon")]
mod account;
#[cfg(feature = "daemon")]
mod begin;
#[cfg(feature = "daemon")]
mod log;
#[cfg(feature = "daemon")]
mod read;
#[cfg(feature = "daemon")]
pub mod run;
#[cfg(feature = "daemon")]
mod told;
#[cfg(all(test, feature = "daemon"))]
mod told_tests;

pub use report::{Fault, Finding, Report};
pub use state::{Checkpoint, Sample};
