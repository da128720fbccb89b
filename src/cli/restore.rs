//! The commands that bring accounts back, and what belongs to it: keys, and the log of an identity.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{ArchiveArgs, RestoreBlobsArgs, RestoreRecordsArgs, SettingArgs, given};
use crate::restore::plan::Ending;

/// `firekeep restore …`
#[derive(Debug, Subcommand)]
pub enum RestoreCommand {
    /// One account, at a new PDS, with nothing of the old one
    #[command(after_help = "\
Examples:
  firekeep restore account did:plc:… --from s3://my-bucket/firekeep --to https://new.example.com --dry-run
  firekeep restore account did:plc:… --from file:///srv/archive --to https://new.example.com \\
      --handle alice.new.example.com --email alice@example.com --rotation-key-file alice.key
  firekeep restore account did:plc:… --from alice.car --blobs alice-blobs/ --to https://new.example.com …
  firekeep restore account did:plc:… --from https://firekeep.example.com --to https://new.example.com …

Prints a plan first, and asks. Stopped at any time, the same command goes on. The account is activated last.
Exit code 3: restored, and blobs are missing. 4: the backup, or what the new PDS gives, does not prove. 10: no backup.")]
    Account(Box<RestoreAccountArgs>),
    /// Every account of a PDS, at a new one, from the archive and the PDS's rotation key
    #[command(after_help = "\
Examples:
  firekeep restore pds --from s3://my-bucket/firekeep --to https://new.example.com --rotation-key-file pds.key \\
      --passwords-file passwords.tsv --dry-run
  firekeep restore pds --to https://new.example.com --rotation-key-file pds.key --passwords-file passwords.tsv \\
      --handle-domain .new.example.com --table accounts.txt --admin-password-file admin.txt

Prints a plan first, and asks. Stopped at any time, the same command goes on. Each account is activated last, and only if
it was active. Exit code 1: some accounts failed; run it again. 3: all that can be is restored, and something is missing.")]
    Pds(Box<RestorePdsArgs>),
    /// Records that an account lost or changed, back into it where it lives
    #[command(after_help = "\
Examples:
  firekeep restore records did:plc:… --at 2026-01-02T03:04:05Z --dry-run
  firekeep restore records did:plc:… --from s3://my-bucket/firekeep --at 2h --collection app.bsky.feed.post

Writes back what was deleted or changed since then, and leaves alone what came since. Blobs that these records need and
the PDS dropped are uploaded before. Prints a plan first, and asks; can be run again. Exit code 3: some could not be.")]
    Records(Box<RestoreRecordsArgs>),
    /// Blobs that the PDS of an account says it misses, out of a backup
    #[command(after_help = "\
Examples:
  firekeep restore blobs did:plc:… --from s3://my-bucket/firekeep

Exit code 3: some are not in the backup, or the PDS does not take them.")]
    Blobs(Box<RestoreBlobsArgs>),
}

/// `firekeep restore pds`
#[derive(Debug, Args)]
pub struct RestorePdsArgs {
    /// The backup: an archive (file:///…, s3://…). Default: the configured archive
    #[arg(long, value_name = "SOURCE")]
    pub from: Option<String>,
    /// The new PDS
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// Which host of the archive, if it has several
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// File with the rotation key of the old PDS; hexadecimal or multikey
    #[arg(long, value_name = "FILE")]
    pub rotation_key_file: PathBuf,
    /// File for the temporary passwords, made so that only you can read it; an earlier run's is gone on with
    #[arg(long, value_name = "FILE")]
    pub passwords_file: PathBuf,
    /// File with the new PDS's admin password: makes invite codes, and takes down what was taken down
    #[arg(long, value_name = "FILE")]
    pub admin_password_file: Option<PathBuf>,
    /// File with an invite code that can be used often enough
    #[arg(long, value_name = "FILE")]
    pub invite_code_file: Option<PathBuf>,
    /// Handles that the new PDS does not serve go on below this domain
    #[arg(long, value_name = ".DOMAIN")]
    pub handle_domain: Option<String>,
    /// File with a line each account: DID HANDLE EMAIL, - for what is not known
    #[arg(long, value_name = "FILE")]
    pub table: Option<PathBuf>,
    /// Only this account; may be given several times
    #[arg(long, value_name = "DID")]
    pub only: Vec<String>,
    /// Not this account; may be given several times
    #[arg(long, value_name = "DID")]
    pub except: Vec<String>,
    /// Accounts at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub parallel: u8,
    /// A rotation key to give up, such as the old PDS's; may be given several times. All others are kept
    #[arg(long = "drop-rotation-key", value_name = "DID:KEY")]
    pub drop_rotation_keys: Vec<String>,
    /// The new PDS has the host name of the old one, and its sequence was raised above what the old one sent
    #[arg(long)]
    pub sequence_raised: bool,
    /// Where it is kept how far this came. Default: a folder in restore/ in the data folder
    #[arg(long, value_name = "DIR")]
    pub ledger: Option<PathBuf>,
    /// Only prove every backup and print the plan
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

impl RestorePdsArgs {
    /// The flags that were given: key and value.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = self.common.settings();
        settings.extend(self.archive.settings());
        settings.extend(given([("plc_url", &self.plc_url), ("archive", &self.from)]));
        if self.dev_mode {
            settings.push(("dev_mode", "true".to_owned()));
        }
        settings
    }

    /// The restore of one of the accounts.
    #[must_use]
    pub fn account(&self, did: &str) -> RestoreAccountArgs {
        RestoreAccountArgs {
            did: did.to_owned(),
            from: None,
            to: self.to.clone(),
            at: None,
            blobs: None,
            rotation_key_file: Some(self.rotation_key_file.clone()),
            signing_key_file: None,
            password_file: None,
            handle: None,
            email: None,
            invite_code_file: self.invite_code_file.clone(),
            verification_code: None,
            drop_rotation_keys: Vec::new(),
            keys: Vec::new(),
            ledger: None,
            overwrite: false,
            dry_run: self.dry_run,
            yes: true,
            plc_url: None,
            dev_mode: self.dev_mode,
            ending: Ending::Active,
            archive: self.archive.clone(),
            common: self.common.clone(),
        }
    }
}

/// `firekeep restore account`
#[derive(Debug, Args)]
pub struct RestoreAccountArgs {
    /// The account
    pub did: String,
    /// The backup: an archive (file:///…, s3://…), a .car or .car.zst file, or a running Firekeep (https://…). Default:
    /// the configured archive
    #[arg(long, value_name = "SOURCE")]
    pub from: Option<String>,
    /// The new PDS
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// Of an archive: as of this time or rev. Default: the newest
    #[arg(long, value_name = "TIME|REV")]
    pub at: Option<String>,
    /// To a .car file: the blobs, named by their CID, in a folder or a tar file
    #[arg(long, value_name = "DIR|FILE.tar")]
    pub blobs: Option<PathBuf>,
    /// File with a rotation key of the account; hexadecimal or multikey. Without it, it is asked for
    #[arg(long, value_name = "FILE")]
    pub rotation_key_file: Option<PathBuf>,
    /// File with the account's signing key, if it was saved: spares the temporary one
    #[arg(long, value_name = "FILE")]
    pub signing_key_file: Option<PathBuf>,
    /// File with the password that the account gets, or got, at the new PDS. Without it, it is asked for
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// The handle at the new PDS. Default: the one it has
    #[arg(long, value_name = "HANDLE")]
    pub handle: Option<String>,
    /// The e-mail address for the new PDS
    #[arg(long, value_name = "ADDRESS")]
    pub email: Option<String>,
    /// File with an invite code
    #[arg(long, value_name = "FILE")]
    pub invite_code_file: Option<PathBuf>,
    /// The answer to the new PDS's captcha
    #[arg(long, value_name = "CODE")]
    pub verification_code: Option<String>,
    /// A rotation key to give up, such as the old PDS's; may be given several times. All others are kept
    #[arg(long = "drop-rotation-key", value_name = "DID:KEY")]
    pub drop_rotation_keys: Vec<String>,
    /// A key, beside those of its identity, that may have signed the backup; may be given several times
    #[arg(long = "key", value_name = "DID:KEY")]
    pub keys: Vec<String>,
    /// Where it is kept how far this came. Default: restore/DID.json in the data folder
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Replace what a deactivated account holds that is there already
    #[arg(long)]
    pub overwrite: bool,
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
    /// How it is to stand in the end; a whole PDS says it of each account
    #[arg(skip)]
    pub ending: Ending,
    /// How the archive is reached
    #[command(flatten)]
    pub archive: ArchiveArgs,
    /// Settings that other commands have too
    #[command(flatten)]
    pub common: SettingArgs,
}

impl RestoreAccountArgs {
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

/// The curve of a new key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum CurveArg {
    /// secp256k1
    #[default]
    K256,
    /// NIST P-256
    P256,
}

/// `firekeep key …`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a new key, write it to a file that only you can read, and print its public half
    #[command(after_help = "\
Examples:
  firekeep key generate -o alice.key

Keep a copy where the PDS cannot lose it. It is of use once it stands among the account's rotation keys.")]
    Generate {
        /// Its curve
        #[arg(long, value_enum, default_value_t = CurveArg::K256)]
        curve: CurveArg,
        /// The file to write; it must not be there yet
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Print the public half of a key in a file
    Show {
        /// The file
        file: PathBuf,
    },
}
