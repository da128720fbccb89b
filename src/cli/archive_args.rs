//! Flags of the commands that work on an archive alone.

use clap::{Args, Subcommand};

use super::{ArchiveArgs, given};

/// Where the archive is, and how to reach it. Everything else of the configuration is not needed.
#[derive(Debug, Clone, Default, Args)]
pub struct PlaceArgs {
    /// Where the archive is
    #[command(flatten)]
    pub archive: ArchiveArgs,
    /// Where the mirror lives: names the default archive
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
}

impl PlaceArgs {
    /// The flags that were given: key and value.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = self.archive.settings();
        settings.extend(given([("data_dir", &self.data_dir)]));
        settings
    }
}

/// `firekeep verify`
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Where the archive is
    #[command(flatten)]
    pub common: PlaceArgs,
    /// Read only so many of the objects, such as 5%. Names are always all checked
    #[arg(long, value_name = "PERCENT")]
    pub sample: Option<String>,
    /// Chooses the sample: the same number, the same objects. Default: another one each time
    #[arg(long, value_name = "NUMBER", requires = "sample")]
    pub seed: Option<u64>,
    /// Read at most so much a second, such as 10MiB
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<String>,
    /// Keep in this file how far it came, and go on from there if it was stopped
    #[arg(long, value_name = "FILE")]
    pub resume: Option<std::path::PathBuf>,
}

/// `firekeep drill`
#[derive(Debug, Clone, Args)]
pub struct DrillArgs {
    /// Which archive. Without it the running daemon is asked
    #[command(flatten)]
    pub common: PlaceArgs,
    /// How many accounts
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    pub accounts: u32,
    /// Chooses them: the same number, the same accounts. Default: others each time
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Where the daemon answers
    #[arg(long, value_name = "ADDRESS")]
    pub admin_listen: Option<String>,
}

impl DrillArgs {
    /// The flags that were given: key and value.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = self.common.settings();
        settings.extend(given([("admin_listen", &self.admin_listen)]));
        settings
    }
}

/// `firekeep bucket …`
#[derive(Debug, Clone, Subcommand)]
pub enum BucketCommand {
    /// Find out what a store really does: conditional writes raced, lists, versions, locks
    #[command(after_help = "\
Examples:
  firekeep bucket probe s3://my-bucket/firekeep --s3-endpoint https://s3.example.com
  firekeep bucket probe file:///srv/archive

Writes some hundred small objects below v1/probe/ and removes them again.
Exit code 0: the store itself keeps a second writer out. 3: it does not; start only one daemon on it. 4: it does not keep
what it takes.")]
    Probe(Box<ProbeArgs>),
}

/// `firekeep bucket probe`
#[derive(Debug, Clone, Args)]
pub struct ProbeArgs {
    /// The store: s3://bucket/prefix or file:///folder. Default: the configured archive
    pub url: Option<String>,
    /// How to reach it
    #[command(flatten)]
    pub common: PlaceArgs,
}

impl ProbeArgs {
    /// The flags that were given: key and value.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = self.common.settings();
        settings.extend(self.url.clone().map(|url| ("archive", url)));
        settings
    }
}

/// `firekeep prune`
#[derive(Debug, Clone, Args)]
pub struct PruneArgs {
    /// Only print what would go, and why the rest stays
    #[arg(long)]
    pub dry_run: bool,
    /// Address of the daemon's administration
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin_listen: Option<String>,
    /// Where the archive is
    #[command(flatten)]
    pub common: PlaceArgs,
}

/// `firekeep forget`
#[derive(Debug, Clone, Args)]
pub struct ForgetArgs {
    /// did:…, at://did:…/collection/rkey, or a CID
    pub subject: String,
    /// Whose, where the subject is a CID
    #[arg(long, value_name = "DID")]
    pub account: Option<String>,
    /// Only print what would be erased
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, conflicts_with = "dry_run")]
    pub yes: bool,
    /// Address of the daemon's administration
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin_listen: Option<String>,
    /// Where the archive is
    #[command(flatten)]
    pub common: PlaceArgs,
}

impl PruneArgs {
    /// The flags that were given: key and value.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = self.common.settings();
        settings.extend(given([("admin_listen", &self.admin_listen)]));
        settings
    }
}

impl ForgetArgs {
    /// The flags that were given: key and value.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = self.common.settings();
        settings.extend(given([("admin_listen", &self.admin_listen)]));
        settings
    }
}
