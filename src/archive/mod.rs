//! The archive: what has left the mirror, as plain objects in a local folder or an S3 bucket.
//!
//! Every object is written once, under a name that says what it is ([`names`]); nothing here needs a
//! database to be read again.
//!
//! Pure: [`names`], [`content_type`], [`settings`], [`snapshot_file`].

pub mod content_type;
pub mod names;
pub mod settings;
pub mod snapshot_file;
