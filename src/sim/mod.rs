//! Simulated accounts and hosts that make real bytes: for tests, the simulation and load.
//!
//! Compiled for tests and with the feature `sim`. Shares the encoders with the rest and none of the checks;
//! what an account should hold is kept as a plain map, never read back from our tree.

pub mod account;

pub use account::SimAccount;
