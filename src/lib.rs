//! Firekeep.
pub mod types;
pub mod stream;
