//! Flags of the commands that set Firekeep up.

use std::path::PathBuf;

use clap::Args;

use super::RunArgs;

/// `firekeep init`
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// The settings file of a PDS on this machine
    #[arg(long, value_name = "FILE", required_unless_present = "host")]
    pub from_pds_env: Option<PathBuf>,
    /// The PDS to follow. Default: the one that the settings file names
    #[arg(long, value_name = "URL")]
    pub host: Option<String>,
    /// Where the archive is to be: file:///folder or s3://bucket/prefix
    #[arg(long, value_name = "URL")]
    pub archive: Option<String>,
    /// URL of an S3 store that is not AWS
    #[arg(long, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// Region of the bucket
    #[arg(long, value_name = "REGION")]
    pub s3_region: Option<String>,
    /// File with the access key's id
    #[arg(long, value_name = "FILE")]
    pub s3_access_key_id_file: Option<String>,
    /// File with the secret access key
    #[arg(long, value_name = "FILE")]
    pub s3_secret_access_key_file: Option<String>,
    /// Where the mirror is to live
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Put the key that lifts the PDS's rate limits into this file (mode 0600), and name it in the configuration
    #[arg(long, value_name = "FILE", requires = "from_pds_env")]
    pub bypass_key_file: Option<PathBuf>,
    /// The configuration file to write; - prints it
    #[arg(short, long, value_name = "FILE", default_value = "firekeep.toml")]
    pub output: PathBuf,
    /// Replace files that are there
    #[arg(long)]
    pub force: bool,
}

/// `firekeep config check`
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// What is to be checked
    #[command(flatten)]
    pub run: RunArgs,
    /// Contact nothing
    #[arg(long)]
    pub offline: bool,
}
