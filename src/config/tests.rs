//! Mistakes, each with the line that a person gets to read.

use std::path::Path;
use std::time::Duration;

use super::*;

fn config(file: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
    let mut layers = Layers::default();
    layers.add_file(Path::new("firekeep.toml"), file)?;
    layers.add_env(
        env.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    )?;
    for (name, value) in flags {
        layers.add_flag(name, value)?;
    }
    Config::check(&layers, Path::new("/srv/x"))
}

#[test]
fn pruning_is_off_until_it_is_asked_for() {
    for (file, wanted) in [
        ("", None),
        ("prune_interval = \"off\"", None),
        ("prune_interval = \"1d\"", Some(Duration::from_secs(24 * 3600))),
    ] {
        assert_eq!(
            config(file, &[], &[]).expect("valid").prune_interval,
            wanted,
            "{file}"
        );
    }
}

fn error(file: &str) -> String {
    config(file, &[], &[]).expect_err("a mistake").to_string()
}

#[test]
fn defaults_hold_together() {
    let config = config("", &[], &[]).expect("defaults are valid");
    assert_eq!(config.data_dir, Path::new("/srv/x/firekeep-data"));
    assert_eq!(
        config.archive.url.to_string(),
        "file:///srv/x/firekeep-data/archive"
    );
    assert_eq!(config.listen.to_string(), "127.0.0.1:2585");
    assert_eq!(config.plc_url, "https://plc.directory");
    assert_eq!(config.snapshot_interval, Duration::from_secs(3600));
    assert_eq!(config.prune_interval, None);
    assert_eq!(config.audit_interval, Duration::from_secs(24 * 3600));
    assert_eq!(config.blob_sweep_interval, Duration::from_secs(24 * 3600));
    assert_eq!(config.accounts_gone_percent, 10);
    assert_eq!(config.records_gone_percent, 50);
    assert_eq!(config.archive_check_interval, Duration::from_secs(3600));
    assert!(config.hosts.is_empty() && !config.dev_mode);
}

#[test]
fn flags_win_over_environment_over_file() {
    let file = "listen = \"127.0.0.1:1\"\nadmin_listen = \"127.0.0.1:2\"\nplc_url = \"https://file.test\"";
    let env = [
        ("FIREKEEP_LISTEN", "127.0.0.1:3"),
        ("FIREKEEP_ADMIN_LISTEN", "127.0.0.1:4"),
    ];
    let config = config(file, &env, &[("listen", "127.0.0.1:5")]).expect("valid");
    assert_eq!((config.listen.port(), config.admin_listen.port()), (5, 4));
    assert_eq!(config.plc_url, "https://file.test");
}

#[test]
fn hosts_are_normalised() {
    let config = config(
        "hosts = [\"https://PDS.Example.com:443/\", \"https://b.test:8443\"]",
        &[],
        &[],
    );
    let hosts = config.expect("valid").hosts;
    let shown: Vec<_> = hosts
        .iter()
        .map(|host| (host.name.as_str(), host.url.as_str()))
        .collect();
    assert_eq!(
        shown,
        [
            ("pds.example.com", "https://pds.example.com"),
            ("b.test:8443", "https://b.test:8443")
        ]
    );
}

#[test]
fn each_host_has_its_own_bypass_key_file() {
    let file = "hosts = [\"https://a.test\", \"https://b.test:8443\", \"https://c.test\"]\n\
                bypass_key_files = [\"b.test:8443 = /etc/b.key\", \"A.test=keys/a\"]";
    let config = config(file, &[("FIREKEEP_REQUESTS_PER_SECOND", "0")], &[]).expect("valid");
    let files: Vec<_> = config
        .hosts
        .iter()
        .map(|host| host.bypass_key_file.as_deref())
        .collect();
    assert_eq!(
        files,
        [
            Some(Path::new("/srv/x/keys/a")),
            Some(Path::new("/etc/b.key")),
            None
        ]
    );
    assert_eq!(config.requests_per_second, 0);
}

#[test]
fn a_mistake_in_a_flag_names_the_flag_as_it_is_typed() {
    let error = config("", &[], &[("hosts", "not-a-url")]).expect_err("no URL");
    assert!(error.to_string().starts_with("--host: "), "{error}");
    let error = config("", &[], &[("s3.endpoint", "ftp://x")]).expect_err("no endpoint");
    assert!(error.to_string().starts_with("--s3-endpoint: "), "{error}");
}

#[test]
#[expect(clippy::too_many_lines, reason = "one list of mistakes")]
fn each_mistake_names_key_value_and_remedy() {
    let cases = [
        (
            "archiv = \"x\"",
            "key \"archiv\" is not known; did you mean archive?",
        ),
        (
            "[s3]\nendpiont = \"x\"",
            "key \"s3.endpiont\" is not known; did you mean s3.endpoint?",
        ),
        ("zzz = 1", "`firekeep config example` shows every key"),
        (
            "hosts = \"https://a.test\"",
            "hosts = \"\\\"https://a.test\\\"\": must be a list of texts",
        ),
        ("hosts = [\"a.test\"]", "hosts = \"a.test\": must be a URL"),
        ("hosts = [\"http://a.test\"]", "use https, or set dev_mode = true"),
        ("hosts = [\"wss://a.test\"]", "beginning with https://"),
        ("hosts = [\"https://a.test/xrpc\"]", "without a path"),
        (
            "hosts = [\"https://u:secret@a.test\"]",
            "must hold no user or password",
        ),
        ("hosts = [\"https://a_b.test\"]", "not a valid host name"),
        (
            "hosts = [\"https://a.test\", \"https://A.test/\"]",
            "is named twice",
        ),
        ("listen = \"2585\"", "must be an address and a port"),
        ("listen = \"127.0.0.1:2586\"", "must not be the address of listen"),
        (
            "snapshot_interval = \"1 fortnight\"",
            "must be a whole number with ms, s, m, h or d",
        ),
        ("snapshot_interval = \"8d\"", "must be from 1s to 7d"),
        ("audit_interval = \"8d\"", "must be from 1s to 7d"),
        (
            "prune_interval = \"never\"",
            "\"off\" if nothing is to go by itself",
        ),
        ("prune_interval = \"31d\"", "must be from 1s to 30d"),
        ("prune_interval = \"500ms\"", "must be from 1s to 30d"),
        ("blob_sweep_interval = \"9s\"", "must be from 10s to 30d"),
        ("archive_check_interval = \"2d\"", "must be from 1s to 1d"),
        (
            "accounts_gone_percent = \"0\"",
            "must be a whole number from 1 to 100",
        ),
        (
            "accounts_gone_percent = \"101\"",
            "must be a whole number from 1 to 100",
        ),
        (
            "records_gone_percent = \"0\"",
            "must be a whole number from 1 to 100",
        ),
        (
            "accounts_gone_percent = \"few\"",
            "must be a whole number from 1 to 100",
        ),
        (
            "blob_bytes_max = \"5\"",
            "must be a whole number with B, KiB, MiB or GiB",
        ),
        ("dev_mode = \"yes\"", "must be true or false"),
        ("requests_per_second = \"20\"", "must be a whole number"),
        ("requests_per_second = -1", "must be from 0 to 10000"),
        ("requests_per_second = 10001", "must be from 0 to 10000"),
        (
            "bypass_key_files = [\"/etc/key\"]",
            "must be a followed PDS and a file",
        ),
        (
            "bypass_key_files = [\"a.test=\"]",
            "must be a followed PDS and a file",
        ),
        (
            "bypass_key_files = [\"a.test=/etc/key\"]",
            "names no PDS that `hosts` names",
        ),
        (
            "hosts = [\"https://a.test\"]\nbypass_key_files = [\"a.test=x\", \"A.test=y\"]",
            "names a second file",
        ),
        ("archive = \"/srv/archive\"", "write \"file:///srv/archive\""),
        ("archive = \"s3://x\"", "a bucket's name is 3 to 63"),
        ("log_format = \"xml\"", "must be \"auto\", \"text\" or \"json\""),
        ("keep.last = \"-1\"", "must be a whole number from 0 to 100000"),
        ("keep.window = \"9999999d\"", "must be from 0ms to 36500d"),
        ("a = [", "firekeep.toml:1: not valid TOML"),
        ("plc_url = \"ftp://x.test\"", "must begin with https://"),
    ];
    for (file, expected) in cases {
        let text = error(file);
        assert!(text.contains(expected), "{file}: {text}");
        assert!(!text.contains('\n'), "one line: {text}");
        assert!(
            text.starts_with("firekeep.toml") || text.contains("(default)"),
            "says where: {text}"
        );
        assert!(!text.contains("secret"), "no secret is shown: {text}");
    }
}

#[test]
fn unknown_variables_are_refused_and_ours_are_not() {
    let run = |name: &str| {
        config("", &[(name, "x")], &[])
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert_eq!(run("FIREKEEP_CACHE"), Ok(()));
    assert_eq!(run("PATH"), Ok(()));
    let text = run("FIREKEEP_ARCHIV").expect_err("unknown");
    assert_eq!(
        text,
        "environment variable FIREKEEP_ARCHIV is not known; did you mean FIREKEEP_ARCHIVE?"
    );
    let text = config("", &[("FIREKEEP_DEV_MODE", "maybe")], &[])
        .expect_err("not a truth value")
        .to_string();
    assert_eq!(
        text,
        "environment variable FIREKEEP_DEV_MODE: dev_mode = \"maybe\": must be true or false"
    );
}

#[test]
fn durations_and_sizes_round_trip() {
    for text in ["250ms", "30s", "5m", "1h", "7d"] {
        assert_eq!(parse_duration(text).map(show_duration).as_deref(), Some(text));
    }
    for text in ["", "s", "-1s", "1.5h", "99999999999999999999d", "1 week"] {
        assert_eq!(parse_duration(text), None, "{text:?}");
    }
    assert_eq!(parse_size("300MiB"), Some(300 << 20));
    assert_eq!(parse_size("99999999999GiB"), None);
}

#[test]
fn the_readme_has_the_table() {
    let readme = include_str!("../../README.md");
    let table = keys::table();
    assert!(readme.contains(&table), "README.md lacks this table:\n{table}");
}

#[test]
fn every_flag_of_the_table_exists() {
    use clap::CommandFactory as _;

    let command = crate::cli::Cli::command();
    let run = command.find_subcommand("run").expect("there");
    for row in keys::table().lines().skip(2) {
        let flag = row.split('|').nth(2).unwrap_or_default().trim().trim_matches('`');
        let known = |arg: &clap::Arg| arg.get_long().is_some_and(|long| format!("--{long}") == flag);
        assert!(flag.is_empty() || run.get_arguments().any(known), "{flag}");
    }
}

#[test]
fn the_example_is_a_valid_file() {
    let example = keys::example();
    config(&example, &[], &[]).expect("all comments");
    // And so is every line of it without its comment mark.
    let set: String = example
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(line) if line.contains(" = ") && !line.contains("\"\"") && !line.starts_with("archive") => {
                line
            }
            Some(_) => "",
            None => line,
        })
        .fold(String::new(), |text, line| text + line + "\n");
    config(&set, &[], &[]).expect("defaults can be written out");
}
