//! Firekeep.
pub mod repo;
pub mod types;
