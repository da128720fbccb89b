//! How RocksDB is set up, for machines with little memory: one cache and one budget of write buffers for all
//! families, indexes and filters inside the cache, few open files.

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, InfoLogger, LogLevel,
    LruCacheOptions, Options, SliceTransform, WriteBufferManager,
};

use crate::mirror::keyspace::{BLOB_KEY_BYTES, NUMBER_BYTES};
use crate::mirror::store::Family;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// What may be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RocksOptions {
    /// Bytes of the cache of blocks, indexes and filters. Default 32 MiB.
    pub cache_bytes: usize,
    /// Bytes of all write buffers together; past it the largest is written out. Default 40 MiB.
    pub write_buffer_bytes: usize,
    /// Threads for flushes and compactions. Default 2.
    pub background_jobs: u16,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 32 * MIB,
            write_buffer_bytes: 40 * MIB,
            background_jobs: 2,
        }
    }
}

/// Files that may be open at once.
const OPEN_FILES_MAX: i32 = 512;
/// Bytes of log, after which the write buffers that keep it alive are written out: bounds a restart.
const WAL_BYTES_MAX: u64 = 64 * MIB as u64;
/// A manifest is rewritten past this size. It names first and last keys, so it must not keep old ones long.
const MANIFEST_BYTES_MAX: usize = MIB;
/// Version of the table format, pinned: RocksDB's default moves.
const TABLE_FORMAT: i32 = 6;
/// Values from this size on live in blob files, where the family has them.
const BLOB_FILE_VALUE_BYTES: u64 = 4 * KIB as u64;
/// A blob file is closed at this size.
const BLOB_FILE_BYTES: u64 = 64 * MIB as u64;

/// Blob files whose oldest quarter is half garbage are rewritten, as part of compactions.
pub(super) const BLOB_GC_USUAL: [(&str, &str); 2] = [
    ("blob_garbage_collection_age_cutoff", "0.25"),
    ("blob_garbage_collection_force_threshold", "0.5"),
];

/// Every blob file that a compaction meets is rewritten: nothing that was deleted stays behind.
pub(super) const BLOB_GC_EVERYTHING: [(&str, &str); 1] = [("blob_garbage_collection_age_cutoff", "1.0")];

/// A cache of this size. Few parts: in RocksDB's default of half a megabyte each, a large block would not
/// stay.
pub(super) fn cache(bytes: usize) -> Cache {
    let mut options = LruCacheOptions::default();
    options.set_capacity(bytes);
    options.set_num_shard_bits(1);
    Cache::new_lru_cache_opts(&options)
}

/// Options of the database.
pub(super) fn database(options: &RocksOptions, buffers: &WriteBufferManager) -> Options {
    let mut db = Options::default();
    db.set_paranoid_checks(true);
    db.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    db.set_track_and_verify_wals_in_manifest(true);
    db.set_manual_wal_flush(false);
    db.set_max_total_wal_size(WAL_BYTES_MAX);
    db.set_max_manifest_file_size(MANIFEST_BYTES_MAX);
    db.set_write_buffer_manager(buffers);
    db.set_max_open_files(OPEN_FILES_MAX);
    db.set_max_background_jobs(i32::from(options.background_jobs));
    db.set_bytes_per_sync(MIB as u64);
    db.set_skip_stats_update_on_db_open(true);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    // RocksDB's own log file would hold keys, and a reader would turn over the writer's.
    db.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, |level, text| {
        let text = text.trim_end();
        match level {
            LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "firekeep::rocksdb", "{text}"),
            LogLevel::Warn => tracing::warn!(target: "firekeep::rocksdb", "{text}"),
            // The dump of all options at each open comes as a "header", which no level keeps out.
            _ => {}
        }
    }));
    db
}

/// Options of a family.
pub(super) fn family(family: Family, cache: &Cache) -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(write_buffer_bytes(family));
    options.set_compression_type(DBCompressionType::Lz4);
    if stays(family) {
        options.set_bottommost_compression_type(DBCompressionType::Zstd);
    }
    options.set_block_based_table_factory(&table(family, cache));
    if let Some(bytes) = prefix_bytes(family) {
        options.set_prefix_extractor(SliceTransform::create_fixed_prefix(bytes));
    }
    if family == Family::BlobData {
        // Blobs are images and videos: compressed already.
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_FILE_VALUE_BYTES);
        options.set_blob_file_size(BLOB_FILE_BYTES);
        options.set_blob_compression_type(DBCompressionType::None);
        options.set_enable_blob_gc(true);
        options.set_blob_gc_age_cutoff(0.25);
        options.set_blob_gc_force_threshold(0.5);
    }
    options
}

fn table(family: Family, cache: &Cache) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(16 * KIB);
    table.set_format_version(TABLE_FORMAT);
    // Indexes and filters come in parts, of which a small cache holds those in use.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let point_gets = matches!(
        family,
        Family::Accounts | Family::Records | Family::Journal | Family::Blobs | Family::BlobData
    );
    if point_gets || prefix_bytes(family).is_some() {
        table.set_bloom_filter(10.0, false);
        table.set_whole_key_filtering(point_gets);
    }
    table
}

/// The part of a key that scans stay within: an account's number, or an account's blob.
pub(super) const fn prefix_bytes(family: Family) -> Option<usize> {
    match family {
        Family::Records | Family::Journal => Some(NUMBER_BYTES),
        Family::BlobRefs => Some(BLOB_KEY_BYTES),
        _ => None,
    }
}

/// Whether rows stay for long: what is deleted again soon is not worth the time that packing it well takes.
const fn stays(family: Family) -> bool {
    !matches!(
        family,
        Family::Journal | Family::Outbox | Family::Parked | Family::Tasks
    )
}

const fn write_buffer_bytes(family: Family) -> usize {
    match family {
        Family::Records => 16 * MIB,
        Family::BlobData => 8 * MIB,
        Family::Journal | Family::BlobRefs => 4 * MIB,
        _ => 2 * MIB,
    }
}
