//! Who an account is: its signing key and the host that speaks for it.
//!
//! [`document`] reads DID documents and says where each is found; [`resolver`] fetches and remembers them.

pub mod document;
#[cfg(feature = "daemon")]
pub mod resolver;
