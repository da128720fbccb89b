//! Talking to hosts over HTTP, as a client that trusts none of them.
//!
//! [`address`] says which names and addresses may be contacted, [`text`] makes foreign words printable,
//! [`advice`] reads what a host asks of us in headers, [`pace`] keeps to it, [`request`] holds a request's limits and its failures.
//! [`connect`] opens connections to addresses that were checked, and [`client`] sends requests.

pub mod address;
pub mod advice;
#[cfg(feature = "daemon")]
pub mod client;
#[cfg(feature = "daemon")]
pub mod connect;
pub mod pace;
pub mod request;
#[cfg(all(test, feature = "daemon"))]
pub(crate) mod test_server;
pub mod text;
