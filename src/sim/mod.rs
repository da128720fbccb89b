//! Simulated accounts and hosts that make real bytes: for tests, the simulation and load.
//!
//! Compiled for tests and with the feature `sim`. Shares the encoders with the rest and none of the checks;
//! what an account should hold is kept as a plain map, never read back from our tree.
//!
//! [`run`] plays a seed: hosts, their users and the directory ([`act`], [`pds`], [`flaws`]), the daemon around the
//! real core ([`daemon`], [`work`], [`fetch`]), its [`bucket`], and the [`oracle`], in one [`world`] with its own time and chance. The same
//! seed gives the same trace.
//!
//! [`load`] makes many accounts and a long stream instead, and nothing goes wrong there: for benchmarks.

pub mod account;
pub mod act;
mod archived;
mod archiving;
mod asked;
pub mod bucket;
pub mod daemon;
pub mod faults;
pub mod fetch;
pub mod flaws;
pub mod load;
mod moves;
pub mod oracle;
pub mod pds;
pub mod run;
pub mod slow_tree;
pub mod sweep;
mod tally;
#[cfg(test)]
mod tests;
pub mod work;
pub mod world;

pub use account::SimAccount;
pub use faults::Fault;
pub use run::{Report, run};
pub use sweep::{Table, sweep};
