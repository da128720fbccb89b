//! The mirror: what is held of every account, on this machine, in one ordered store.
//!
//! [`store`] is the seam to the storage engine, with two engines behind it: [`memory`] (the model, for
//! tests and the simulation) and [`rocks`] (RocksDB). [`keyspace`] says what the keys are and [`rows`] what
//! the values are; nobody else builds or takes apart either. [`reader`] reads them, typed.
//!
//! Records and signed commits are the truth and the tree is derived, so the mirror holds no tree node:
//! the rows of an account, in key order, are the leaves of its tree in tree order.

pub mod applier;
#[cfg(feature = "daemon")]
pub mod blobs;
pub mod erased;
#[cfg(feature = "daemon")]
pub mod handle;
pub mod input;
pub mod keyspace;
#[cfg(feature = "daemon")]
pub mod listing;
#[cfg(feature = "daemon")]
pub mod live;
pub mod memory;
pub mod numbers;
pub mod reader;
#[cfg(feature = "daemon")]
pub mod resync;
#[cfg(feature = "daemon")]
pub mod rocks;
pub mod rows;
#[cfg(feature = "daemon")]
pub mod spool;
pub mod store;
pub mod sweep;

pub use reader::Mirror;
pub use store::{Batch, Durable, Family, KeyRange, Store, StoreError, StoreStats, View};
