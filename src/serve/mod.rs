//! Serving: the mirror, given back over XRPC; metrics and health on a second listener.

pub mod health;
pub mod limits;
pub mod listener;
pub mod params;
pub mod response;

pub use health::{Health, Readiness};
pub use limits::ServeLimits;
pub use listener::{BindError, bind};
pub use response::XrpcError;
