//! The archive: what has left the mirror, as plain objects in a local folder or an S3 bucket.
//!
//! Every object is written once, under a name that says what it is ([`names`]); nothing here needs a
//! database to be read again. [`bucket`] is the one door to the store, and both kinds of store pass the same
//! contract tests. A bucket belongs to one archive, told by its `v1/archive.json` ([`identity`]).
//!
//! [`log_cut`] makes segments and deltas, [`shipper`] and [`keeper`] put what there is, [`writer`] says who may.
//! [`reader`] and [`rebuild`] read it again, without a mirror: [`log_chain`] puts the segments in order, [`timeline`]
//! tells an account's moments and how each is put together. [`scrub`] proves it. [`retention`] plans what may go,
//! [`prune`] applies that, and removes segments behind a [`boundary`]; [`erase`] takes out what a person wants gone.
//!
//! Pure: [`names`], [`content_type`], [`boundary`], [`settings`], [`snapshot_file`], [`log_file`], [`log_cut`],
//! [`log_chain`], [`timeline`], [`sealed`], [`identity_file`], [`state_file`], [`state_cut`],
//! [`retention`]. Shell: [`bucket`], [`folder`], [`s3`], [`identity`],
//! [`writer`], [`shipper`], [`keeper`], [`held`], [`reader`], [`rebuild`], [`log_pass`], [`accounts`], [`prune`], [`block_file`],
//! [`probe`]; [`scrub`] and [`erase`] have both.

pub mod boundary;
pub mod content_type;
pub mod erase;
pub mod identity_file;
pub mod log_chain;
pub mod log_cut;
pub mod log_file;
pub mod names;
pub mod retention;
pub mod scrub;
pub mod sealed;
pub mod settings;
pub mod snapshot_file;
pub mod state_cut;
pub mod state_file;
pub mod timeline;

#[cfg(feature = "daemon")]
pub mod accounts;
#[cfg(feature = "daemon")]
pub mod block_file;
#[cfg(feature = "daemon")]
pub mod bucket;
#[cfg(feature = "daemon")]
pub mod folder;
#[cfg(feature = "daemon")]
pub mod held;
#[cfg(feature = "daemon")]
pub mod identity;
#[cfg(feature = "daemon")]
pub mod keeper;
#[cfg(feature = "daemon")]
pub mod log_pass;
#[cfg(feature = "daemon")]
pub mod probe;
#[cfg(feature = "daemon")]
pub mod prune;
#[cfg(feature = "daemon")]
pub mod reader;
#[cfg(feature = "daemon")]
pub mod rebuild;
#[cfg(feature = "daemon")]
pub mod s3;
#[cfg(feature = "daemon")]
pub mod shipper;
#[cfg(feature = "daemon")]
pub mod writer;

#[cfg(all(test, feature = "daemon"))]
pub(crate) mod test_archive;
