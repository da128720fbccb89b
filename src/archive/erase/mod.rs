//! Erasing: what a person wants gone, out of the mirror and out of every object of the archive.
//!
//! The [`note`] comes first: from then on restores obey it, whatever still stands in an object. Then the mirror lets
//! go of the bytes, then every object that holds some of them is written again without them, under a new name, read
//! back, and the old one removed; objects that hold nothing else are removed. Every step can be done again, so an
//! erasure that was cut short is taken up where it was. At last everything is read once more, and again a day later.
//!
//! A record is erased by its bytes alone: its CID stays, so trees still prove, and an export says what is withheld.
//!
//! Pure: [`note`], [`survey`]. Shell: [`run`], and how objects are written again.

pub mod note;
pub mod survey;

#[cfg(feature = "daemon")]
mod rewrite;
#[cfg(feature = "daemon")]
pub mod run;
#[cfg(all(test, feature = "daemon"))]
mod tests;
