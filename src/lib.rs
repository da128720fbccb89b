//! Firekeep.
pub mod mirror;
pub mod repo;
pub mod types;
