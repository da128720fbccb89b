//! Who an account is: its signing key and the host that speaks for it.
//!
//! [`document`] reads DID documents and says where each is found; [`plc_log`] checks the history of a `did:plc`;
//! [`resolver`] fetches and remembers them. [`token`] reads what callers prove themselves with, and [`authority`] says
//! which rotation key is its owner's alone.

pub mod authority;
pub mod document;
pub mod plc_log;
#[cfg(feature = "daemon")]
pub mod resolver;
pub mod token;
