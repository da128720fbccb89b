//! The command that shows alarms.

use clap::{Args, Subcommand};

use super::SettingArgs;

/// `firekeep alarms`
#[derive(Debug, Args)]
pub struct AlarmArgs {
    /// Settings that other commands have too
    #[command(flatten)]
    pub common: SettingArgs,
    /// What to do with alarms; without it they are listed
    #[command(subcommand)]
    pub command: Option<AlarmCommand>,
}

/// `firekeep alarms …`
#[derive(Debug, Subcommand)]
pub enum AlarmCommand {
    /// Say that an alarm was seen
    Ack {
        /// Its kind, as the list shows it
        kind: String,
        /// Its host
        #[arg(long, value_name = "HOST")]
        host: Option<String>,
        /// Its subject: an account, or nothing for a whole host
        #[arg(long, value_name = "DID")]
        subject: Option<String>,
    },
}
