//! Firekeep.
pub mod archive;
#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod clock;
#[cfg(feature = "daemon")]
pub mod commands;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod http;
pub mod identity;
#[cfg(feature = "daemon")]
pub mod metrics;
pub mod mirror;
pub mod repo;
#[cfg(feature = "daemon")]
pub mod serve;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod stream;
pub mod types;
pub mod verify;
