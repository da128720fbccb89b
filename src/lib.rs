//! Firekeep: the real-time backup of AT Protocol PDSes.
//!
//! One binary beside a PDS. It follows `com.atproto.sync.subscribeRepos`, verifies every commit, applies it and
//! its blobs to a mirror at once, archives what it holds as plain files, and gives it back.
//!
//! # The map
//!
//! Modules stand in the order of the data's flow; each uses only what stands above it (`tests/tidy.rs` holds
//! that). *Pure* files know no clock, chance, socket, file or async, and take `now` as an argument; *shell* files
//! open with an `allow` that says so.
//!
//! ```text
//!     subscribeRepos ─► stream ─► verify ─► applier ─► mirror (RocksDB)
//!                                             ▲          ├─► serve   (XRPC, metrics)
//!        listRepos, getRepo ─► resync ────────┤          └─► archive (log, snapshots, blobs)
//!        getBlob, listBlobs ─► blobs ─────────┘
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`types`] | the vocabulary: parsed once, then valid |
//! | [`repo`] | formats: CBOR, CAR, commits, keys, the tree, its proofs, exports |
//! | [`http`] | the client that trusts no host |
//! | [`identity`] | DID documents and the PLC log |
//! | [`stream`] | one host's frames, and when to connect again |
//! | [`verify`] | the only place that makes a `Verified…` value |
//! | [`mirror`] | rows, the applier that owns them, and what fetches for it |
//! | [`metrics`] | every metric, declared once |
//! | [`archive`] | objects in a folder or a bucket, and what they give back |
//! | [`restore`] | an account at a new PDS, from a backup and a rotation key |
//! | [`state`] | a PDS's private state, encrypted to its admin |
//! | [`serve`] | XRPC, health, and the daemon's own commands |
//! | [`config`], [`cli`], [`daemon`], [`commands`] | settings, the command line, every task, and what asks a daemon |
//!
//! # Architecture invariants
//!
//! - **Records and signed commits are the truth; the tree is derived.** The mirror holds no tree node. Every
//!   export and every snapshot rebuilds the tree and must arrive at the signed root, before its first byte.
//! - **Effect and cursor are one batch.** [`mirror::applier`] stages one atomic, synced batch for many events:
//!   records, account rows, journal, parked frames, tasks *and each host's cursor*.
//! - **Evidence in types.** The applier takes [`verify::VerifiedCommit`] and [`verify::VerifiedRepo`], which only
//!   `verify` can make. What is told to the outside takes a [`mirror::Durable`].
//! - **No event waits for the network.** Without a key, or while its repository is fetched, a frame is parked in
//!   the same batch, within a bound; past the bound it is dropped, and the fetch has to reach its rev.
//! - **Swap, don't mutate.** A fetched repository is loaded under an account number of its own; one small batch
//!   points the DID at it. Numbers are never used again.
//! - **No message from upstream removes the last good copy.** What looks like loss raises an alarm and keeps what
//!   we hold.
//! - **Upstream data never stops us; our own corruption always does.** The first is counted with a reason from a
//!   closed list, the second ends the process with a line that says what to do.
//!
//! # Glossary
//!
//! *host*: a PDS that we follow. *seq, cursor, epoch*: its numbers, the last one applied, one unbroken numbering.
//! *head*: the commit, rev and data root that we hold of an account. *generation*: one loaded repository, by
//! account number. *parked*: waits for a key or a fetch. *wanted, live, diverged*: to be fetched; follows; the
//! host is behind us. *quarantined*: signed and all there, but it does not rebuild; its CAR is kept. *snapshot*: an
//! object in the archive. *read view*: a consistent look at the store.

pub mod types;
#[cfg(feature = "daemon")]
pub mod clock;
pub mod repo;
pub mod http;
pub mod identity;
pub mod stream;
pub mod verify;
pub mod mirror;
#[cfg(feature = "daemon")]
pub mod metrics;
pub mod archive;
pub mod restore;
pub mod state;
#[cfg(feature = "daemon")]
pub mod serve;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod commands;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
