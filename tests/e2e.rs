//! The main job, end to end: the real PDS, PLC directory and S3 server, and Firekeep as a process of its own.
//!
//! `cargo test --test e2e -- --test-threads=1`. Each test starts the services that it needs through
//! `deploy/sandbox/sandbox`, which is the judge too (`sandbox compare`: the reference library, and plain `zstd -d`),
//! and stops them again. Where the sandbox cannot be installed the tests fail: they never skip. Each prints one line
//! of counts. `FIREKEEP_E2E_FULL=1` makes the long form, `FIREKEEP_E2E_SEED` chooses other moments to kill at,
//! `FIREKEEP_E2E_KEEP=1` keeps the folders.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests, which run processes and measure time"
)]

mod support;

#[path = "e2e/accounts.rs"]
mod accounts;
#[path = "e2e/archives.rs"]
mod archives;
#[path = "e2e/arroba.rs"]
mod arroba;
#[path = "e2e/bad_input.rs"]
mod bad_input;
#[path = "e2e/clients.rs"]
mod clients;
#[path = "e2e/cold_start.rs"]
mod cold_start;
#[path = "e2e/drill.rs"]
mod drill;
#[path = "e2e/forget.rs"]
mod forget;
#[path = "e2e/kill_nine.rs"]
mod kill_nine;
#[path = "e2e/lax_pds.rs"]
mod lax_pds;
#[path = "e2e/machine_lost.rs"]
mod machine_lost;
#[path = "e2e/main_job.rs"]
mod main_job;
#[path = "e2e/migration.rs"]
mod migration;
#[path = "e2e/moments.rs"]
mod moments;
#[path = "e2e/old_pds.rs"]
mod old_pds;
#[path = "e2e/outages.rs"]
mod outages;
#[path = "e2e/own_methods.rs"]
mod own_methods;
#[path = "e2e/overview.rs"]
mod overview;
#[path = "e2e/recall.rs"]
mod recall;
#[path = "e2e/restore.rs"]
mod restore;
#[path = "e2e/restore_faults.rs"]
mod restore_faults;
#[path = "e2e/restore_living.rs"]
mod restore_living;
#[path = "e2e/restore_pds.rs"]
mod restore_pds;
#[path = "e2e/restore_web.rs"]
mod restore_web;
#[path = "e2e/rollback.rs"]
mod rollback;
#[path = "e2e/state.rs"]
mod state;
#[path = "e2e/store_faults.rs"]
mod store_faults;
#[path = "e2e/takedowns.rs"]
mod takedowns;
#[path = "e2e/window.rs"]
mod window;
