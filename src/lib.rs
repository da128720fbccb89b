//! Firekeep.
pub mod repo;
pub mod types;
pub mod stream;
