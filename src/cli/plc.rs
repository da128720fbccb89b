//! The commands that look at the identity of an account, and change it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::given;

/// `firekeep plc …`
#[derive(Debug, Subcommand)]
pub enum PlcCommand {
    /// Every operation, verified, and what it made of the identity
    Log(PlcArgs),
    /// Whether the log verifies. Exit code 0, or 4 with the operation that does not
    Verify(PlcArgs),
    /// Look at logs again and again, and tell of every new operation: what it changed, and who can undo it for how long
    #[command(after_help = "\
Examples:
  firekeep plc watch did:plc:ewvi7nxzyoun6zhxrhs64oiz
  firekeep plc watch did:plc:… --once         what was done within the last 72 hours; exit code 1 if anything was

The daemon does this for every account that it follows: alarm `identity_changed`.")]
    Watch(PlcWatchArgs),
    /// Undo what a weaker rotation key did within the last 72 hours, after showing it
    #[command(after_help = "\
Examples:
  firekeep plc undo did:plc:… --rotation-key-file alice.key
  firekeep plc undo did:plc:… --rotation-key-file alice.key --cid bafyrei…

The identity says again what it said before that operation. The key stays on this machine.")]
    Undo(PlcUndoArgs),
    /// Change an identity with a rotation key, after showing what changes
    #[command(after_help = "\
Examples:
  firekeep plc update did:plc:… --rotation-key-file alice.key --add-rotation-key did:key:…
  firekeep plc update did:plc:… --rotation-key-file alice.key --drop-rotation-key did:key:… --handle alice.example.com

The key stays on this machine. A wrong --pds or --signing-key makes the account unusable until it is changed back.")]
    Update(PlcUpdateArgs),
    /// Add a rotation key of the user's own, above all others, through the PDS: it mails a token for that
    #[command(after_help = "\
Examples:
  firekeep key generate -o alice.key
  firekeep plc add-key did:plc:… did:key:…             mails the token, and asks for it
  firekeep plc add-key did:plc:… did:key:… --token-file token --yes

Without a key of his own, nobody but the PDS can bring the user's account back.")]
    AddKey(PlcAddKeyArgs),
}

/// Whose log.
#[derive(Debug, Args)]
pub struct PlcArgs {
    /// The account
    pub did: String,
    /// The directory
    #[command(flatten)]
    pub directory: DirectoryArgs,
}

/// Which PLC directory.
#[derive(Debug, Args)]
pub struct DirectoryArgs {
    /// The PLC directory
    #[arg(long, value_name = "URL")]
    pub plc_url: Option<String>,
    /// Allow plain http, loopback and private addresses
    #[arg(long)]
    pub dev_mode: bool,
}

impl DirectoryArgs {
    /// The flags that were given: key and value.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = given([("plc_url", &self.plc_url)]);
        if self.dev_mode {
            settings.push(("dev_mode", "true".to_owned()));
        }
        settings
    }
}

/// `firekeep plc watch`
#[derive(Debug, Args)]
pub struct PlcWatchArgs {
    /// The accounts
    #[arg(required = true, value_name = "DID")]
    pub dids: Vec<String>,
    /// Seconds between two looks, at least 10
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..))]
    pub every: u64,
    /// Look once, tell of the last 72 hours, and end
    #[arg(long)]
    pub once: bool,
    /// The directory
    #[command(flatten)]
    pub directory: DirectoryArgs,
}

/// `firekeep plc undo`
#[derive(Debug, Args)]
pub struct PlcUndoArgs {
    /// The account
    pub did: String,
    /// The first operation to undo; all that followed it go with it. Default: the only one that the key can undo
    #[arg(long, value_name = "CID")]
    pub cid: Option<String>,
    /// How it is signed
    #[command(flatten)]
    pub signer: SignerArgs,
    /// The directory
    #[command(flatten)]
    pub directory: DirectoryArgs,
}

/// With which key, and whether it is asked first.
#[derive(Debug, Args)]
pub struct SignerArgs {
    /// File with a rotation key; hexadecimal or multikey. Without it, it is asked for
    #[arg(long, value_name = "FILE")]
    pub rotation_key_file: Option<PathBuf>,
    /// Only show what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask whether to go on
    #[arg(long)]
    pub yes: bool,
}

/// `firekeep plc update`
#[derive(Debug, Args)]
pub struct PlcUpdateArgs {
    /// The account
    pub did: String,
    /// A rotation key to put above all others; may be given several times, the first one highest
    #[arg(long = "add-rotation-key", value_name = "DID:KEY")]
    pub add_rotation_keys: Vec<String>,
    /// A rotation key to give up; may be given several times
    #[arg(long = "drop-rotation-key", value_name = "DID:KEY")]
    pub drop_rotation_keys: Vec<String>,
    /// Another signing key
    #[arg(long, value_name = "DID:KEY")]
    pub signing_key: Option<String>,
    /// Another handle
    #[arg(long, value_name = "HANDLE")]
    pub handle: Option<String>,
    /// Another PDS
    #[arg(long, value_name = "URL")]
    pub pds: Option<String>,
    /// How it is signed
    #[command(flatten)]
    pub signer: SignerArgs,
    /// The directory
    #[command(flatten)]
    pub directory: DirectoryArgs,
}

/// `firekeep plc add-key`
#[derive(Debug, Args)]
pub struct PlcAddKeyArgs {
    /// The account
    pub did: String,
    /// The key: its public half, as `firekeep key show` prints it
    pub key: String,
    /// File with the account's password at its PDS; no app password. Without it, it is asked for
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// File with the token that the PDS mailed. Without it one is mailed, and asked for
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Only show what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask whether to go on
    #[arg(long)]
    pub yes: bool,
    /// The directory
    #[command(flatten)]
    pub directory: DirectoryArgs,
}
