//! Serving: the mirror, given back to anyone over XRPC; metrics and health on a second, private listener.
//!
//! A request goes down this list: [`listener`] takes the connection and guards its limits, `xrpc` (public) or
//! `admin` (private) routes it, [`params`] parses what the caller sent into types, `lookup` decides what the public
//! may see, `export` and [`blob`] stream what is large, and [`response`] says how answers and errors look.
//!
//! Callers prove who they are to `who`; [`own`] answers what only a backup can be asked.
//!
//! Architecture invariants: nothing unproven is served as good (a repository is proven before its first byte, a
//! blob before its last); what is hidden upstream is hidden here; nothing is fetched for a caller.

mod about;
mod access;
mod admin;
#[cfg(test)]
mod admin_tests;
pub mod blob;
mod body;
mod coding;
mod directory;
mod export;
#[cfg(test)]
mod fixture;
pub mod health;
#[cfg(test)]
mod lexicon_tests;
pub mod limits;
pub mod listener;
mod lookup;
mod methods;
pub mod own;
mod page;
pub mod params;
pub mod password;
mod range;
mod records;
pub mod response;
pub mod service;
mod sync;
pub mod who;
mod xrpc;

pub use admin::{CONTROL_HEADER, Control, Controlled};
pub use blob::{ArchivedBlob, BlobArchive, NoBlobArchive};
pub use health::{Health, Readiness};
pub use limits::ServeLimits;
pub use listener::{BindError, bind};
pub use own::{History, SignUps};
pub use page::Branding;
pub use password::AdminPassword;
pub use response::XrpcError;
pub use service::Service;
pub use who::{Identities, Trust};
