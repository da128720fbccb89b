//! Firekeep.
pub mod types;
