//! The commands that give an account that lives back what it lost.

use std::path::PathBuf;

use clap::Args;

use super::{ArchiveArgs, SettingArgs, given};

/// `firekeep restore records`
#[derive(Debug, Args)]
pub struct RestoreRecordsArgs {
    /// Only this collection, or this one record (`collection/rkey`); may be given several times
    #[arg(long = "collection", value_name = "NSID[/RKEY]")]
    pub collections: Vec<String>,
    /// Which account, from where
    #[command(flatten)]
    pub living: LivingArgs,
}

/// `firekeep restore blobs`
#[derive(Debug, Args)]
pub struct RestoreBlobsArgs {
    /// Which account, from where
    #[command(flatten)]
    pub living: LivingArgs,
}

/// An account that lives, and a backup of it.
#[derive(Debug, Args)]
pub struct LivingArgs {
    /// The account
    pub did: String,
    /// The backup: an archive (file:///…, s3://…), a .car or .car.zst file, or a running Firekeep (https://…). Default:
    /// the configured archive
    #[arg(long, value_name = "SOURCE")]
    pub from: Option<String>,
    /// Of an archive: as of this time or rev. Default: the newest
    #[arg(long, value_name = "TIME|REV")]
    pub at: Option<String>,
    /// To a .car file: the blobs, named by their CID, in a folder or a tar file
    #[arg(long, value_name = "DIR|FILE.tar")]
    pub blobs: Option<PathBuf>,
    /// Its PDS. Default: the one that its identity names
    #[arg(long, value_name = "URL")]
    pub pds: Option<String>,
    /// File with the account's password there. Without it, it is asked for
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// A key, beside those of its identity, that may have signed the backup; may be given several times
    #[arg(long = "key", value_name = "DID:KEY")]
    pub keys: Vec<String>,
    /// Only print the plan
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask whether to go on
    #[arg(long)]
    pub yes: bool,
    /// The PLC directory
    #[arg(long, value_name = "URL")]
    pub plc_url: Option<String>,
    /// Allow plain http, loopback and private addresses
    #[arg(long)]
    pub dev_mode: bool,
    /// How the archive is reached
    #[command(flatten)]
    pub archive: ArchiveArgs,
    /// Settings that other commands have too
    #[command(flatten)]
    pub common: SettingArgs,
}

impl LivingArgs {
    /// The flags that were given: key and value.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = self.common.settings();
        settings.extend(self.archive.settings());
        settings.extend(given([("plc_url", &self.plc_url)]));
        if self.dev_mode {
            settings.push(("dev_mode", "true".to_owned()));
        }
        let from = self.from.iter();
        let archive = from.filter(|from| from.starts_with("file://") || from.starts_with("s3://"));
        settings.extend(archive.map(|url| ("archive", url.clone())));
        settings
    }
}
