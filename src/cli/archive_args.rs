//! Flags of the commands that work on an archive alone.

use clap::{Args, Subcommand};

use super::given;

/// Where the archive is, and how to reach it. Everything else of the configuration is not needed.
#[derive(Debug, Clone, Default, Args)]
pub struct ArchiveArgs {
    /// Where the archive is: file:///folder or s3://bucket/prefix
    #[arg(long, value_name = "URL")]
    pub archive: Option<String>,
    /// Where the mirror lives: names the default archive
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// URL of an S3 store that is not AWS
    #[arg(long, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// Region of the bucket
    #[arg(long, value_name = "REGION")]
    pub s3_region: Option<String>,
    /// The bucket in the path, not in the host name
    #[arg(long, value_name = "true|false")]
    pub s3_path_style: Option<String>,
    /// The client's own checksums: when_required or when_supported
    #[arg(long, value_name = "MODE")]
    pub s3_checksum: Option<String>,
    /// File with the access key's id
    #[arg(long, value_name = "FILE")]
    pub s3_access_key_id_file: Option<String>,
    /// File with the secret access key
    #[arg(long, value_name = "FILE")]
    pub s3_secret_access_key_file: Option<String>,
}

impl ArchiveArgs {
    /// The flags that were given: key and value.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        given([
            ("archive", &self.archive),
            ("data_dir", &self.data_dir),
            ("s3.endpoint", &self.s3_endpoint),
            ("s3.region", &self.s3_region),
            ("s3.path_style", &self.s3_path_style),
            ("s3.checksum", &self.s3_checksum),
            ("s3.access_key_id_file", &self.s3_access_key_id_file),
            ("s3.secret_access_key_file", &self.s3_secret_access_key_file),
        ])
    }
}

/// `firekeep verify`
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Where the archive is
    #[command(flatten)]
    pub common: ArchiveArgs,
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
    pub common: ArchiveArgs,
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
    #[arg(long, required = true)]
    pub dry_run: bool,
    /// Where the archive is
    #[command(flatten)]
    pub common: ArchiveArgs,
}
