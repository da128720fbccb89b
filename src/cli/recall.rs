//! The commands that read the archive: what it was like, at which moment.

use clap::{Args, ValueEnum};

use super::{ArchiveArgs, SettingArgs};

/// How an archive is found: as `run` finds it.
#[derive(Debug, Clone, Default, Args)]
pub struct SourceArgs {
    /// Where the archive is
    #[command(flatten)]
    pub archive: ArchiveArgs,
    /// Settings that other commands have too
    #[command(flatten)]
    pub common: SettingArgs,
}

impl SourceArgs {
    /// The flags that were given: key and value.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = self.common.settings();
        settings.extend(self.archive.settings());
        settings
    }
}

/// Which moment is meant.
#[derive(Debug, Clone, Default, Args)]
pub struct AtArgs {
    /// As of this time (2026-01-02T03:04:05Z, 2026-01-02, or "2h" for two hours ago) or rev. Default: the newest
    #[arg(long, value_name = "TIME|REV")]
    pub at: Option<String>,
    /// How moments are judged
    #[command(flatten)]
    pub judge: JudgeArgs,
}

/// How moments are judged.
#[derive(Debug, Clone, Default, Args)]
pub struct JudgeArgs {
    /// Go by the times at which we received events, not by those that the host gave them
    #[arg(long)]
    pub as_received: bool,
    /// A signing key of the account, as did:key, that its commit must be signed with; may be given several times
    #[arg(long = "key", value_name = "DID:KEY")]
    pub keys: Vec<String>,
}

/// `firekeep history`
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// An account, or a record: did:plc:… or at://did:plc:…/collection/rkey
    #[arg(value_name = "DID|URI")]
    pub subject: String,
    /// Which archive
    #[command(flatten)]
    pub source: SourceArgs,
}

/// `firekeep ls`
#[derive(Debug, Args)]
pub struct LsArgs {
    /// An account, or one of its collections: did:plc:…/app.bsky.feed.post
    #[arg(value_name = "DID[/COLLECTION]")]
    pub subject: String,
    /// As of when
    #[command(flatten)]
    pub at: AtArgs,
    /// Which archive
    #[command(flatten)]
    pub source: SourceArgs,
}

/// `firekeep cat`
#[derive(Debug, Args)]
pub struct CatArgs {
    /// The record: at://did:plc:…/collection/rkey
    #[arg(value_name = "URI")]
    pub subject: String,
    /// Its bytes (DAG-CBOR) as they are, not as JSON
    #[arg(long)]
    pub raw: bool,
    /// As of when
    #[command(flatten)]
    pub at: AtArgs,
    /// Which archive
    #[command(flatten)]
    pub source: SourceArgs,
}

/// `firekeep export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The account
    #[arg(value_name = "DID")]
    pub subject: String,
    /// As of when
    #[command(flatten)]
    pub at: AtArgs,
    /// The file to write; - is stdout. Default: one in this folder, named by DID and rev
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<String>,
    /// What to write
    #[arg(long, value_enum, default_value_t = ExportFormat::Car)]
    pub format: ExportFormat,
    /// Every blob that its records refer to, too: as blobs/CID in a folder or a .tar file
    #[arg(long, value_name = "DIR|FILE.tar")]
    pub blobs: Option<String>,
    /// Replace files that are there
    #[arg(long)]
    pub force: bool,
    /// Which archive
    #[command(flatten)]
    pub source: SourceArgs,
}

/// What an export is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ExportFormat {
    /// The repository, as every PDS imports it
    #[default]
    Car,
    /// A line of JSON a record
    Jsonl,
    /// A SQLite database with a table a collection
    Sqlite,
}

impl ExportFormat {
    /// The ending of its files.
    #[must_use]
    pub const fn ending(self) -> &'static str {
        match self {
            Self::Car => "car",
            Self::Jsonl => "jsonl",
            Self::Sqlite => "sqlite",
        }
    }
}

/// `firekeep diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The account
    pub did: String,
    /// Compare with what the host has now
    #[arg(long, required_unless_present = "from", conflicts_with_all = ["from", "to"])]
    pub live: bool,
    /// Compare what the archive holds as of this time or rev …
    #[arg(long, value_name = "TIME|REV")]
    pub from: Option<String>,
    /// … with that of this one. Default: the newest
    #[arg(long, value_name = "TIME|REV", requires = "from")]
    pub to: Option<String>,
    /// How moments are judged
    #[command(flatten)]
    pub judge: JudgeArgs,
    /// Which archive
    #[command(flatten)]
    pub source: SourceArgs,
}
