//! Firekeep.
#[cfg(feature = "daemon")]
pub mod metrics;
#[cfg(feature = "daemon")]
pub mod serve;
pub mod types;
