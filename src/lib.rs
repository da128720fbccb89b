//! Firekeep.
//!
//! The modules stand in the order of the flow: each uses only what stands above it (a blank line between two keeps
//! rustfmt from sorting them; `tests/tidy.rs` keeps the order).

pub mod types;

#[cfg(feature = "daemon")]
pub mod clock;

pub mod repo;

pub mod http;

pub mod identity;

pub mod stream;

pub mod verify;

pub mod mirror;

#[cfg(feature = "daemon")]
pub mod metrics;

pub mod archive;

#[cfg(feature = "daemon")]
pub mod config;

#[cfg(feature = "daemon")]
pub mod serve;

#[cfg(feature = "daemon")]
pub mod daemon;

#[cfg(feature = "daemon")]
pub mod cli;

#[cfg(feature = "daemon")]
pub mod commands;

#[cfg(any(test, feature = "sim"))]
pub mod sim;
