//! The one list of what can be set. The example file, the README's table, the environment's names and the
//! "did you mean" all come from here.

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text.
    Text,
    /// `true` or `false`.
    Boolean,
    /// A whole number.
    Number,
    /// Texts; in the environment separated by commas.
    List,
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name in the file, with a dot between levels.
    pub name: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// The default, as it would be written; empty: none.
    pub default: &'static str,
    /// What it is, in one sentence.
    pub help: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Key {
    Key {
        name,
        kind,
        default,
        help,
    }
}

/// Every key, in the order in which a reader wants them.
pub const KEYS: [Key; 49] = [
    key(
        "hosts",
        Kind::List,
        "[]",
        "The PDSes to follow: their web addresses.",
    ),
    key(
        "archive",
        Kind::Text,
        "file://<data_dir>/archive",
        "Where the archive is: file:///folder or s3://bucket/prefix.",
    ),
    key("data_dir", Kind::Text, "firekeep-data", "Where the mirror lives."),
    key(
        "state_drop",
        Kind::Text,
        "",
        "Where `firekeep state backup` leaves a PDS's private state, encrypted, to be shipped.",
    ),
    key(
        "plc_url",
        Kind::Text,
        "https://plc.directory",
        "The PLC directory that resolves did:plc.",
    ),
    key(
        "listen",
        Kind::Text,
        "127.0.0.1:2585",
        "Address of XRPC and the status page.",
    ),
    key(
        "admin_listen",
        Kind::Text,
        "127.0.0.1:2586",
        "Address of metrics, health and administration.",
    ),
    key("public_url", Kind::Text, "", "How the public reaches `listen`."),
    key(
        "admin_password_file",
        Kind::Text,
        "",
        "File with the hash of the admin's password for XRPC, as `firekeep admin-password` makes it.",
    ),
    key(
        "follow",
        Kind::Text,
        "all",
        "Which accounts of the PDSes: all, or listed (those that signed up).",
    ),
    key(
        "sign_up",
        Kind::Text,
        "hosts",
        "Who may sign up: off, hosts (accounts of these PDSes), or open (of any PDS, which is then followed for them alone).",
    ),
    key(
        "flush_interval",
        Kind::Text,
        "1s",
        "How often changes are shipped to the archive.",
    ),
    key(
        "snapshot_interval",
        Kind::Text,
        "1h",
        "An account is snapshotted at most this often.",
    ),
    key(
        "audit_interval",
        Kind::Text,
        "1d",
        "How often each account is compared with its host, for what no event told.",
    ),
    key(
        "archive_check_interval",
        Kind::Text,
        "1h",
        "How often it is looked at whether the archive is still there, and the same.",
    ),
    key(
        "prune_interval",
        Kind::Text,
        "off",
        "How often what is no longer needed, by the keep.* keys, goes from the archive; off: nothing goes by itself.",
    ),
    key(
        "scrub_interval",
        Kind::Text,
        "30d",
        "Within this time the daemon reads all of the archive and of the mirror, and proves it.",
    ),
    key(
        "drill_interval",
        Kind::Text,
        "1d",
        "How often the daemon restores some accounts from the archive alone, to see that it can.",
    ),
    key(
        "blob_bytes_max",
        Kind::Text,
        "300MiB",
        "The largest blob that is fetched.",
    ),
    key(
        "spool_bytes_max",
        Kind::Text,
        "10GiB",
        "What waits for the archive takes at most this much of the disk: changes as much, and blobs as much.",
    ),
    key(
        "requests_per_second",
        Kind::Number,
        "20",
        "How often each PDS is asked, at most; 0: as often as its own rate limits allow.",
    ),
    key(
        "bypass_key_files",
        Kind::List,
        "[]",
        "Files with the keys that lift a PDS's rate limits, as \"pds.example.com=/path\".",
    ),
    key(
        "blob_sweep_interval",
        Kind::Text,
        "1d",
        "Within this time a PDS is asked again for every blob, to hide what it took down.",
    ),
    key(
        "accounts_gone_percent",
        Kind::Text,
        "10",
        "An alarm is raised when this share of a PDS's accounts (at least 10) goes off or vanishes within a day.",
    ),
    key(
        "records_gone_percent",
        Kind::Text,
        "50",
        "The same for the records of an account (at least 100) that go within a day.",
    ),
    key(
        "dev_mode",
        Kind::Boolean,
        "false",
        "Allows plain http, loopback and private addresses.",
    ),
    key(
        "log_format",
        Kind::Text,
        "auto",
        "Log lines as text or json; auto: text on a terminal.",
    ),
    key(
        "log_level",
        Kind::Text,
        "info",
        "Which log lines: error, warn, info, debug, trace, or a filter.",
    ),
    key(
        "s3.endpoint",
        Kind::Text,
        "",
        "URL of an S3 store that is not AWS.",
    ),
    key("s3.region", Kind::Text, "", "Region of the bucket."),
    key(
        "s3.path_style",
        Kind::Boolean,
        "",
        "The bucket in the path, not in the host name; true where an endpoint is set.",
    ),
    key(
        "s3.checksum",
        Kind::Text,
        "when_required",
        "The client's own checksums: when_required or when_supported.",
    ),
    key(
        "s3.access_key_id_file",
        Kind::Text,
        "",
        "File with the access key's id; else the standard AWS places.",
    ),
    key(
        "s3.secret_access_key_file",
        Kind::Text,
        "",
        "File with the secret access key.",
    ),
    key(
        "s3.session_token_file",
        Kind::Text,
        "",
        "File with the session token.",
    ),
    key(
        "s3.connect_timeout",
        Kind::Text,
        "5s",
        "How long to wait for a connection to the store.",
    ),
    key(
        "s3.attempt_timeout",
        Kind::Text,
        "5m",
        "How long one attempt of a request may take.",
    ),
    key(
        "s3.idle_timeout",
        Kind::Text,
        "1m",
        "How long an answer may pause.",
    ),
    key(
        "keep.last",
        Kind::Text,
        "3",
        "Of each account, so many of its newest snapshots are kept.",
    ),
    key(
        "keep.hours",
        Kind::Text,
        "24",
        "The newest snapshot of each of the last so many hours that have one.",
    ),
    key("keep.days", Kind::Text, "14", "The same for days."),
    key("keep.weeks", Kind::Text, "8", "The same for weeks."),
    key("keep.months", Kind::Text, "24", "The same for months."),
    key(
        "keep.window",
        Kind::Text,
        "30d",
        "Every moment can be restored that is not older than this.",
    ),
    key(
        "keep.deleted",
        Kind::Text,
        "90d",
        "How long a deleted account's data is kept.",
    ),
    key(
        "keep.withdrawn",
        Kind::Text,
        "30d",
        "How long a blob is kept that no kept moment refers to any more.",
    ),
    key(
        "notify.heartbeat_url",
        Kind::Text,
        "",
        "Asked once a minute while all goes on; a service such as healthchecks.io tells you when it stops.",
    ),
    key(
        "notify.webhook_url",
        Kind::Text,
        "",
        "Where alarms are sent, by POST.",
    ),
    key(
        "notify.webhook_format",
        Kind::Text,
        "json",
        "As what: json, ntfy (https://ntfy.sh/topic) or discord.",
    ),
];

/// The key with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The key whose name is nearest, if one is near.
#[must_use]
pub fn nearest(name: &str) -> Option<&'static str> {
    KEYS.iter()
        .map(|key| (strsim::damerau_levenshtein(name, key.name), key.name))
        .filter(|(distance, known)| *distance <= 2.max(known.len() / 3))
        .min()
        .map(|(_, known)| known)
}

impl Key {
    /// Its name in the environment: `FIREKEEP_S3__ENDPOINT`.
    #[must_use]
    pub fn env_name(&self) -> String {
        format!("FIREKEEP_{}", self.name.replace('.', "__").to_ascii_uppercase())
    }
}

/// A complete configuration file, every key with its sentence and its default, commented out.
#[must_use]
pub fn example() -> String {
    let mut text = String::from(
        "# firekeep.toml: every key, with its default. Each can also be set in the environment (FIREKEEP_…, __ between\n\
         # levels) or by a flag of `firekeep run`; flags win over the environment, the environment over this file.\n",
    );
    let mut section = "";
    for key in &KEYS {
        let (level, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if level != section {
            text.push_str(&format!("\n[{level}]\n"));
            section = level;
        }
        let value = match key.kind {
            Kind::Text => format!("{:?}", key.default),
            Kind::Boolean if key.default.is_empty() => "true".to_owned(),
            Kind::Boolean | Kind::Number | Kind::List => key.default.to_owned(),
        };
        text.push_str(&format!("\n# {}\n# {name} = {value}\n", key.help));
    }
    text
}

/// The long name of a key's flag, without dashes before it. One `--host` is one of the `hosts`.
#[must_use]
pub fn flag_name(key: &str) -> String {
    match key {
        "hosts" => "host".to_owned(),
        name => name.replace(['_', '.'], "-"),
    }
}

/// The table of the README.
#[must_use]
pub fn table() -> String {
    let mut text = String::from("| key | flag | default | |\n|---|---|---|---|\n");
    for key in &KEYS {
        let flag = match key.name {
            "s3.session_token_file" | "s3.connect_timeout" | "s3.attempt_timeout" | "s3.idle_timeout" => {
                String::new()
            }
            name if name.starts_with("keep.") || name.starts_with("notify.") => String::new(),
            name => format!("`--{}`", flag_name(name)),
        };
        let default = if key.default.is_empty() {
            String::new()
        } else {
            format!("`{}`", key.default)
        };
        text.push_str(&format!(
            "| `{}` | {flag} | {default} | {} |\n",
            key.name, key.help
        ));
    }
    text
}
