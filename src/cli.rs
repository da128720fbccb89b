//! The command line: what can be asked of `firekeep`, and how settings are given as flags.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

mod alarms;
mod archive_args;
mod living;
mod plc;
mod recall;
mod restore;
mod state;
mod setup;

pub use self::alarms::{AlarmArgs, AlarmCommand};
pub use self::archive_args::{
    BucketCommand, DrillArgs, ForgetArgs, PlaceArgs, ProbeArgs, PruneArgs, VerifyArgs,
};
pub use living::{LivingArgs, RestoreBlobsArgs, RestoreRecordsArgs};
pub use plc::{PlcAddKeyArgs, PlcArgs, PlcCommand, PlcUndoArgs, PlcUpdateArgs, PlcWatchArgs, SignerArgs};
pub use recall::{
    AtArgs, CatArgs, DiffArgs, ExportArgs, ExportFormat, HistoryArgs, JudgeArgs, LsArgs, SourceArgs,
};
pub use restore::{CurveArg, KeyCommand, RestoreAccountArgs, RestoreCommand, RestorePdsArgs};
pub use setup::{CheckArgs, InitArgs};
pub use state::{StateBackupArgs, StateCommand, StateExtractArgs, StateListArgs, StateOpenArgs};

/// Real-time backup of AT Protocol PDSes: every commit verified, every blob kept, all of it readable without us.
#[derive(Debug, Parser)]
#[command(
    name = "firekeep",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// The configuration file. Default: firekeep.toml in this folder, if it is there
    #[arg(long, global = true, value_name = "FILE", env = "FIREKEEP_CONFIG")]
    pub config: Option<PathBuf>,

    /// Print JSON instead of text, where a command prints data
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow PDSes and keep the backup: the main job
    #[command(after_help = "\
Examples:
  firekeep run --host https://pds.example.com
  firekeep run --host https://pds.example.com --archive s3://my-bucket/firekeep
  firekeep run                       with everything in firekeep.toml

SIGTERM or Ctrl-C ends it within 30 seconds: it stops reading, makes what it read durable, and archives what is open.")]
    Run(Box<RunArgs>),

    /// Archive a snapshot of every account that changed since its last one, and wait until it is there
    #[command(after_help = "\
Examples:
  firekeep snapshot                  through the running daemon
  firekeep snapshot --json")]
    Snapshot(SettingArgs),

    /// Protected or not and why; off this machine, missing, restorable, disk, bill
    #[command(after_help = "\
Examples:
  firekeep status
  firekeep status --watch
  firekeep status --json | jq .accounts")]
    Status(StatusArgs),

    /// Every account: its standing at its host, and how well our copy follows
    #[command(after_help = "\
Examples:
  firekeep accounts
  firekeep accounts --json | jq '.accounts[] | select(.sync != \"live\")'")]
    Accounts(SettingArgs),

    /// What an admin should look at: rollbacks, mass deletions, repositories that vanished
    #[command(after_help = "\
Examples:
  firekeep alarms
  firekeep alarms ack rollback --host pds.example.com --subject did:plc:…

An alarm stays until it is acknowledged; what it keeps stays longer.")]
    Alarms(AlarmArgs),

    /// How what we hold of an account differs from what its host has now, or from what it was
    #[command(after_help = "\
Examples:
  firekeep diff did:plc:ewvi7nxzyoun6zhxrhs64oiz --live
  firekeep diff did:plc:ewvi7nxzyoun6zhxrhs64oiz --from 2026-01-02 --to 2026-01-03T12:00:00Z
  firekeep diff did:plc:ewvi7nxzyoun6zhxrhs64oiz --from 1d

Exit code 0 when there is no difference, 1 when there is one.")]
    Diff(Box<DiffArgs>),

    /// What the archive knows of an account, moment by moment, or of one record
    #[command(after_help = "\
Examples:
  firekeep history did:plc:ewvi7nxzyoun6zhxrhs64oiz
  firekeep history at://did:plc:ewvi7nxzyoun6zhxrhs64oiz/app.bsky.feed.post/3kabcdefghi2j
  firekeep history did:plc:… --archive s3://my-bucket/firekeep       on any machine")]
    History(Box<HistoryArgs>),

    /// The collections of an account, or the records of one, as they are or were
    #[command(after_help = "\
Examples:
  firekeep ls did:plc:ewvi7nxzyoun6zhxrhs64oiz
  firekeep ls did:plc:ewvi7nxzyoun6zhxrhs64oiz/app.bsky.feed.post --at 2026-01-02T03:04:05Z")]
    Ls(Box<LsArgs>),

    /// A record as JSON, as it is or was
    #[command(after_help = "\
Examples:
  firekeep cat at://did:plc:ewvi7nxzyoun6zhxrhs64oiz/app.bsky.actor.profile/self --at 2h")]
    Cat(Box<CatArgs>),

    /// An account's repository and blobs as files, as they are or were, from the archive alone
    #[command(after_help = "\
Examples:
  firekeep export did:plc:ewvi7nxzyoun6zhxrhs64oiz
  firekeep export did:plc:… --at 2026-01-02T03:04:05Z -o alice.car --blobs alice.tar
  firekeep export did:plc:… --archive s3://my-bucket/firekeep -o - > alice.car
  firekeep export did:plc:… --format sqlite -o alice.sqlite

The repository is proven before the file appears: its records build the tree that its commit signs. Exit code 3:
something is missing, and named; 4: what the archive holds does not prove; 10: it holds no backup of that moment.")]
    Export(Box<ExportArgs>),

    /// Bring an account, a whole PDS, or what an account lost, back from a backup
    #[command(subcommand)]
    Restore(RestoreCommand),
    /// A PDS's private state: keys, e-mail addresses, passwords, preferences. Always encrypted to its admin
    #[command(subcommand)]
    State(StateCommand),
    /// Make or look at a rotation key. It stays on this machine
    #[command(subcommand)]
    Key(KeyCommand),

    /// The identity of a did:plc: every change of it, verified; and changing it with a rotation key
    #[command(subcommand)]
    Plc(PlcCommand),

    /// Prove an archive from itself alone: every name, block, tree, signature and blob
    #[command(after_help = "\
Examples:
  firekeep verify --archive s3://my-bucket/firekeep --s3-endpoint https://s3.example.com
  firekeep verify --archive file:///srv/archive --rate 20MiB --resume /var/tmp/verify.json
  firekeep verify --sample 5% --json | jq .findings

Exit code 0: sound. 3: sound, and something is not held or could not be read. 4: damaged; every bad object is named,
with what it affects. 10: there is no backup.")]
    Verify(Box<VerifyArgs>),

    /// Restore some accounts from the archive alone into an empty store, and see that they are what they were
    #[command(after_help = "\
Examples:
  firekeep drill                     through the running daemon: compared with the mirror
  firekeep drill --archive s3://my-bucket/firekeep --s3-endpoint https://s3.example.com      on any machine
  firekeep drill --accounts 50 --json

Exit code 0: every account came out whole, proven, and as it was. 4: one did not; the report says which, and why.")]
    Drill(Box<DrillArgs>),

    /// Remove from the archive what the keep.* keys do not ask for: the daemon does it every `prune_interval`, if set
    #[command(after_help = "\
Examples:
  firekeep prune --dry-run                            what would go, and why the rest stays
  firekeep prune --dry-run --json | jq .total
  firekeep prune                                      now, through the daemon; or alone, where none runs

The newest snapshot that proves always stays, and nothing goes of an account that an alarm pins.")]
    Prune(Box<PruneArgs>),

    /// Erase an account, a record or a blob: from the mirror, and from every object of the archive
    #[command(after_help = "\
Examples:
  firekeep forget at://did:plc:ewvi7nxzyoun6zhxrhs64oiz/app.bsky.feed.post/3kabcdefghi2j --dry-run
  firekeep forget bafkrei… --account did:plc:… --yes
  firekeep forget did:plc:… --yes

It asks before it does it, or wants --yes. A record's bytes go, its CID stays: what was before still proves, and says
what is withheld. A note in the archive keeps restores from giving it. Stopped half-way, it goes on when it is asked for
again, or by itself when the daemon runs. Exit code 3: done, and the bucket keeps old versions; 10: nothing of it is held.")]
    Forget(Box<ForgetArgs>),

    /// Look at the store of an archive
    #[command(subcommand)]
    Bucket(BucketCommand),

    /// Make the hash of an admin password, for `admin_password_file`. The password is read from stdin
    #[command(after_help = "\
Examples:
  firekeep admin-password --output admin.hash          asks for it; or: … < password.txt

The admin's name is admin. With it every account is seen over XRPC, whatever its standing, and what was before.")]
    AdminPassword {
        /// The file to write; it must not be there yet
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },

    /// Show or check the configuration
    #[command(subcommand)]
    Config(ConfigCommand),

    /// Write a configuration for the PDS on this machine
    #[command(after_help = "\
Examples:
  sudo firekeep init --from-pds-env /pds/pds.env --archive s3://my-bucket/firekeep -o /etc/firekeep/firekeep.toml
  firekeep init --host https://pds.example.com

Of pds.env it reads PDS_HOSTNAME, PDS_DID_PLC_URL and, with --bypass-key-file, PDS_RATE_LIMIT_BYPASS_KEY; nothing else.
It replaces no file without --force.")]
    Init(InitArgs),

    /// Ask the running daemon whether it is ready: for container health checks. Exit code 0 or 1
    Health(SettingArgs),

    /// Print completions for a shell
    #[command(after_help = "\
Examples:
  firekeep completions bash > /etc/bash_completion.d/firekeep
  firekeep completions zsh > ~/.zfunc/_firekeep")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },

    /// Write the manual pages into a folder
    #[command(after_help = "\
Example:
  firekeep man /usr/local/share/man/man1")]
    Man {
        /// The folder; it is made if it is not there
        folder: PathBuf,
    },
}

/// `firekeep status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Settings that other commands have too
    #[command(flatten)]
    pub common: SettingArgs,
    /// Show it again every two seconds
    #[arg(long)]
    pub watch: bool,
}

/// `firekeep config …`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print a complete, commented configuration file
    Example,
    /// Print the configuration that is in force, and where each value comes from
    Print(Box<RunArgs>),
    /// Check the configuration, then try hosts, directory, archive and disk, and say what it costs; changes nothing
    #[command(after_help = "\
Exit code 0: all is well. 3: the configuration is valid, and something does not answer. 78: it cannot be used.")]
    Check(Box<CheckArgs>),
}

/// Settings that every command needs to find the data and the daemon.
#[derive(Debug, Clone, Default, Args)]
pub struct SettingArgs {
    /// Where the mirror lives
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Address of metrics, health and administration
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    pub admin_listen: Option<String>,
}

/// Where the archive is, and how to reach it.
#[derive(Debug, Clone, Default, Args)]
pub struct ArchiveArgs {
    /// Where the archive is: file:///folder or s3://bucket/prefix
    #[arg(long, value_name = "URL")]
    pub archive: Option<String>,
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
            ("s3.endpoint", &self.s3_endpoint),
            ("s3.region", &self.s3_region),
            ("s3.path_style", &self.s3_path_style),
            ("s3.checksum", &self.s3_checksum),
            ("s3.access_key_id_file", &self.s3_access_key_id_file),
            ("s3.secret_access_key_file", &self.s3_secret_access_key_file),
        ])
    }
}

/// What a person said at this start alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Said {
    /// The archive may be another one than before.
    pub new_archive: bool,
    /// This mirror becomes the archive's writer in another one's place.
    pub take_over: bool,
}

/// Every setting as a flag.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// A PDS to follow; may be given several times
    #[arg(long = "host", value_name = "URL")]
    pub hosts: Vec<String>,
    /// Where the archive is
    #[command(flatten)]
    pub archive: ArchiveArgs,
    /// Settings that other commands have too
    #[command(flatten)]
    pub common: SettingArgs,
    /// Where `firekeep state backup` leaves a PDS's private state
    #[arg(long, value_name = "DIR")]
    pub state_drop: Option<String>,
    /// The PLC directory that resolves did:plc
    #[arg(long, value_name = "URL")]
    pub plc_url: Option<String>,
    /// Address of XRPC and the status page
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// How the public reaches that address
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// File with the hash of the admin's password for XRPC, as `firekeep admin-password` makes it
    #[arg(long, value_name = "FILE")]
    pub admin_password_file: Option<String>,
    /// Which accounts of the PDSes: all, or listed (those that signed up)
    #[arg(long, value_name = "all|listed")]
    pub follow: Option<String>,
    /// Who may sign up: off, hosts (accounts of these PDSes), or open (of any PDS)
    #[arg(long, value_name = "off|hosts|open")]
    pub sign_up: Option<String>,
    /// How often changes are shipped to the archive
    #[arg(long, value_name = "DURATION")]
    pub flush_interval: Option<String>,
    /// An account is snapshotted at most this often
    #[arg(long, value_name = "DURATION")]
    pub snapshot_interval: Option<String>,
    /// How often each account is compared with its host
    #[arg(long, value_name = "DURATION")]
    pub audit_interval: Option<String>,
    /// How often it is looked at whether the archive is still there, and the same
    #[arg(long, value_name = "DURATION")]
    pub archive_check_interval: Option<String>,
    /// How often what is no longer needed goes from the archive
    #[arg(long, value_name = "DURATION")]
    pub prune_interval: Option<String>,
    /// Within this time all of the archive and of the mirror is read and proven
    #[arg(long, value_name = "DURATION")]
    pub scrub_interval: Option<String>,
    /// How often some accounts are restored from the archive alone, for a trial
    #[arg(long, value_name = "DURATION")]
    pub drill_interval: Option<String>,
    /// The largest blob that is fetched
    #[arg(long, value_name = "SIZE")]
    pub blob_bytes_max: Option<String>,
    /// What waits for the archive takes at most this much of the disk: changes as much, and blobs as much
    #[arg(long, value_name = "SIZE")]
    pub spool_bytes_max: Option<String>,
    /// How often each PDS is asked, at most; 0: as often as its own rate limits allow
    #[arg(long, value_name = "NUMBER")]
    pub requests_per_second: Option<String>,
    /// Files with the keys that lift a PDS's rate limits, as pds.example.com=/path; separated by commas
    #[arg(long, value_name = "HOST=FILE")]
    pub bypass_key_files: Option<String>,
    /// Within this time a PDS is asked again for every blob, to hide what it took down
    #[arg(long, value_name = "DURATION")]
    pub blob_sweep_interval: Option<String>,
    /// An alarm is raised when this share of a PDS's accounts goes off or vanishes within a day
    #[arg(long, value_name = "PERCENT")]
    pub accounts_gone_percent: Option<String>,
    /// The same for the records of an account that go within a day
    #[arg(long, value_name = "PERCENT")]
    pub records_gone_percent: Option<String>,
    /// Allow plain http, loopback and private addresses
    #[arg(long)]
    pub dev_mode: bool,
    /// Log lines as text or json
    #[arg(long, value_name = "auto|text|json")]
    pub log_format: Option<String>,
    /// Which log lines: error, warn, info, debug, trace, or a filter
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Archive everything again, though this is not the archive that the mirror was archived to before
    #[arg(long)]
    pub new_archive: bool,
    /// Write to the archive in the place of another Firekeep, which is gone or is to stop
    #[arg(long)]
    pub take_over: bool,
}

impl SettingArgs {
    /// The flags that were given: key and value.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        given([("data_dir", &self.data_dir), ("admin_listen", &self.admin_listen)])
    }
}

impl RunArgs {
    /// What is said of this start alone.
    #[must_use]
    pub const fn said(&self) -> Said {
        Said {
            new_archive: self.new_archive,
            take_over: self.take_over,
        }
    }

    /// The flags that were given: key and value.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = self.common.settings();
        settings.extend(self.archive.settings());
        if !self.hosts.is_empty() {
            settings.push(("hosts", self.hosts.join(",")));
        }
        if self.dev_mode {
            settings.push(("dev_mode", "true".to_owned()));
        }
        settings.extend(given([
            ("state_drop", &self.state_drop),
            ("plc_url", &self.plc_url),
            ("listen", &self.listen),
            ("public_url", &self.public_url),
            ("admin_password_file", &self.admin_password_file),
            ("follow", &self.follow),
            ("sign_up", &self.sign_up),
            ("flush_interval", &self.flush_interval),
            ("snapshot_interval", &self.snapshot_interval),
            ("audit_interval", &self.audit_interval),
            ("archive_check_interval", &self.archive_check_interval),
            ("prune_interval", &self.prune_interval),
            ("scrub_interval", &self.scrub_interval),
            ("drill_interval", &self.drill_interval),
            ("blob_bytes_max", &self.blob_bytes_max),
            ("spool_bytes_max", &self.spool_bytes_max),
            ("requests_per_second", &self.requests_per_second),
            ("bypass_key_files", &self.bypass_key_files),
            ("blob_sweep_interval", &self.blob_sweep_interval),
            ("accounts_gone_percent", &self.accounts_gone_percent),
            ("records_gone_percent", &self.records_gone_percent),
            ("log_format", &self.log_format),
            ("log_level", &self.log_level),
        ]));
        settings
    }
}

fn given<const N: usize>(flags: [(&'static str, &Option<String>); N]) -> Vec<(&'static str, String)> {
    flags
        .into_iter()
        .filter_map(|(key, value)| Some((key, value.clone()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_daemon_can_be_named_after_the_last_word() {
        let words = [
            "firekeep",
            "alarms",
            "ack",
            "rollback",
            "--admin-listen",
            "127.0.0.1:1",
        ];
        let Ok(Cli {
            command: Command::Alarms(args),
            ..
        }) = Cli::try_parse_from(words)
        else {
            panic!("parses")
        };
        assert_eq!(args.common.admin_listen.as_deref(), Some("127.0.0.1:1"));
    }

    #[test]
    fn flags_are_settings() {
        let cli = Cli::try_parse_from([
            "firekeep",
            "run",
            "--host",
            "https://a.test",
            "--host",
            "https://b.test",
            "--dev-mode",
        ]);
        let Ok(Cli {
            command: Command::Run(args),
            ..
        }) = cli
        else {
            panic!("parses")
        };
        let settings = args.settings();
        assert!(settings.contains(&("hosts", "https://a.test,https://b.test".to_owned())));
        assert!(settings.contains(&("dev_mode", "true".to_owned())));
        for (key, _) in settings {
            assert!(crate::config::keys::find(key).is_some(), "{key}");
        }
    }
}
