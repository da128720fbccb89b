//! The commands for a PDS's private state.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::SourceArgs;

/// `firekeep state …`
#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// Read a PDS's data folder, and leave what changed, encrypted, where the daemon picks it up. For root, on a timer
    #[command(after_help = "\
Examples:
  firekeep state backup --pds-dir /pds --host pds.example.com --drop /var/spool/firekeep-state \\
      --recipients-file /etc/firekeep/recipients

Reads only. Nothing is written but encrypted. The recipients are age public keys (age1…); their secret half belongs on
another machine. Exit code 0: done, or nothing had changed. 3: done, and something was not there.")]
    Backup(Box<StateBackupArgs>),
    /// What the archive holds of it: names, times and sizes. Needs no key
    List(Box<StateListArgs>),
    /// Open every newest object with a key, and check it. Exit code 0: all is whole. 4: something is not
    Verify(Box<StateOpenArgs>),
    /// Open it with a key, into a new folder laid out as a PDS's own
    #[command(after_help = "\
Examples:
  firekeep state extract --to ./pds-state --identity-file key.txt --archive s3://my-bucket/firekeep

The folder holds every secret of the PDS: only you can read it, and it belongs on no disk for longer than it is needed.
What was erased of accounts is left out.")]
    Extract(Box<StateExtractArgs>),
}

/// `firekeep state backup`
#[derive(Debug, Args)]
pub struct StateBackupArgs {
    /// The PDS's data folder
    #[arg(long, value_name = "DIR")]
    pub pds_dir: PathBuf,
    /// The PDS's host name, as the daemon follows it
    #[arg(long, value_name = "HOST")]
    pub host: String,
    /// Where to leave it: the daemon's `state_drop`
    #[arg(long, value_name = "DIR")]
    pub drop: PathBuf,
    /// The PDS's settings. Default: pds.env in its data folder
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Who can open it: an age public key; may be given several times
    #[arg(long = "recipient", value_name = "age1…")]
    pub recipients: Vec<String>,
    /// File with such keys, one a line
    #[arg(long, value_name = "FILE")]
    pub recipients_file: Option<PathBuf>,
    /// Where it is kept what was backed up already. Default: beside the drop folder, with .seen.json behind its name
    #[arg(long, value_name = "FILE")]
    pub seen: Option<PathBuf>,
    /// Everything, whether it changed or not
    #[arg(long)]
    pub all: bool,
}

/// `firekeep state list`
#[derive(Debug, Args)]
pub struct StateListArgs {
    /// Only of this PDS
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Every object, not only the newest of each part
    #[arg(long)]
    pub all: bool,
    /// Which archive
    #[command(flatten)]
    pub source: SourceArgs,
}

/// What opening needs.
#[derive(Debug, Args)]
pub struct StateOpenArgs {
    /// Of this PDS, if the archive has several
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// File with the secret key, as age-keygen writes it
    #[arg(long, value_name = "FILE")]
    pub identity_file: PathBuf,
    /// As of this time (2026-01-02T03:04:05Z). Default: the newest
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// Which archive
    #[command(flatten)]
    pub source: SourceArgs,
}

/// `firekeep state extract`
#[derive(Debug, Args)]
pub struct StateExtractArgs {
    /// The folder to make; it must not be there yet
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// What to open
    #[command(flatten)]
    pub open: StateOpenArgs,
}
