//! Load: one host with many accounts of realistic content, reproducible from a seed.
//!
//! Pure but for [`serve`], which puts a [`LoadHost`] on a socket. `examples/loadgen.rs` is the program, and
//! `benches/` measure with it. Signatures on P-256 are drawn by AWS-LC, so the CIDs of those accounts' commits
//! differ between two runs; all else is the same.

pub mod account;
pub mod host;
pub mod record;
#[cfg(feature = "daemon")]
pub mod serve;
pub mod tree;

pub use account::{BlockOrder, LoadAccount};
pub use host::{LoadHost, LoadPlan};
