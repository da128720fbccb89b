//! Firekeep.
pub mod types;
#[cfg(feature = "daemon")]
pub mod clock;
pub mod repo;
pub mod http;
pub mod stream;
pub mod verify;
pub mod mirror;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
