//! Firekeep.
pub mod types;
pub mod repo;
pub mod mirror;
