//! Firekeep.
pub mod types;

pub mod archive;
