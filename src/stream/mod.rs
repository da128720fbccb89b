//! The stream of a host: `com.atproto.sync.subscribeRepos`.
//!
//! [`frame`] decodes one WebSocket message, [`encode`] makes one (for tests and simulated hosts), [`session`]
//! decides when to connect again, and [`subscriber`] owns the socket. Nothing here knows about
//! repositories, accounts' states or the store: what a frame claims is checked by `verify`.

pub mod encode;
mod field;
pub mod frame;
pub mod session;
#[cfg(feature = "daemon")]
pub mod subscriber;
