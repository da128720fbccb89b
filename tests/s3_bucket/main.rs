//! The archive's store against the real thing: one contract, kept by a folder and by a real S3 server (moto, which
//! the sandbox starts on a free port of the loopback interface).
//!
//! Without the sandbox the S3 half says that it is skipped; with `FIREKEEP_REQUIRE_SANDBOX=1` that is a failure.
//! `FIREKEEP_SANDBOX` names the sandbox's script where it is not `deploy/sandbox/sandbox`.

#![cfg(feature = "daemon")]

mod archive;
mod care;
mod contract;
mod faults;
mod own;
#[path = "../support/proxy.rs"]
#[allow(
    dead_code,
    clippy::disallowed_methods,
    reason = "shared with the end-to-end tests; it waits and measures time"
)]
mod proxy;
mod server;
mod verify;
mod verify_own;

use firekeep::archive::bucket::Bucket;
use firekeep::archive::settings::{ArchiveConfig, S3Input};

/// Each check of the contract, for both kinds of store.
macro_rules! for_both {
    ($checks:ident, $folder:ident, $s3:ident, $($check:ident),* $(,)?) => {
        mod $folder {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $check() {
                    let keep = tempfile::tempdir().expect("a temporary folder");
                    super::$checks::$check(&super::open_folder(keep.path()).await).await;
                }
            )*
        }

        mod $s3 {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $check() {
                    let Some(server) = super::server::running() else { return };
                    super::$checks::$check(&server.open(stringify!($check)).await).await;
                }
            )*
        }
    };
}

for_both! {
    contract, folder, s3,
    what_is_put_can_be_read,
    created_objects_are_never_replaced,
    others_are_replaced_whole,
    odd_names_are_kept,
    empty_objects_are_objects,
    large_files_go_whole,
    files_of_any_length_go_whole,
    lists_page_in_byte_order,
    deletes_are_final_and_may_be_repeated,
    of_racing_creators_one_wins,
    of_racing_large_creators_one_wins,
    other_bytes_than_announced_are_refused,
    names_that_could_be_tricks_are_refused,
    an_empty_bucket_becomes_an_archive,
    a_probe_finds_it_safe_and_leaves_nothing,
    snapshots_stream_through,
}

for_both! {
    verify, verify_folder, verify_s3,
    a_sound_archive_is_sound,
    one_flipped_bit_in_any_object_is_named,
    what_is_removed_is_named_where_something_is_lost,
    what_is_renamed_is_named,
    hostile_names_are_reported_and_obeyed_by_nobody,
    bombs_are_damaged_objects_and_nothing_more,
    a_stopped_verification_goes_on_where_it_was,
    samples_are_repeatable_and_rates_are_kept,
    a_writer_that_was_taken_over_from_is_no_part_of_the_log,
    signatures_trees_and_histories_are_proven,
    a_gap_behind_the_log_is_named_without_any_delta,
}

for_both! {
    care, care_folder, care_s3,
    what_is_no_longer_needed_goes_and_the_rest_verifies,
    what_is_erased_is_gone_everywhere,
}

async fn open_folder(path: &std::path::Path) -> Bucket {
    let url = format!("file://{}", path.display());
    let config = ArchiveConfig::parse(&url, &S3Input::default()).expect("valid");
    Bucket::open(&config).await.expect("opens")
}
