//! Firekeep.
pub mod mirror;
pub mod types;
