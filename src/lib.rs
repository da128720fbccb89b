//! Firekeep.
pub mod archive;
#[cfg(feature = "daemon")]
pub mod metrics;
pub mod mirror;
pub mod repo;
#[cfg(feature = "daemon")]
pub mod serve;
pub mod types;
