//! Firekeep.
#[cfg(feature = "daemon")]
pub mod metrics;
pub mod types;
