//! Firekeep.
pub mod types;
pub mod repo;
pub mod stream;
pub mod verify;
pub mod mirror;
