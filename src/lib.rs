//! Firekeep.
#[cfg(feature = "daemon")]
pub mod clock;
pub mod http;
pub mod identity;
pub mod repo;
pub mod stream;
pub mod types;
