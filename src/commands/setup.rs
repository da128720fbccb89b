#![allow(clippy::disallowed_methods, reason = "shell: reads and writes files")]
//! The commands that set Firekeep up: `init`, `completions`, `man`.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use clap::CommandFactory as _;

use super::{failed, print};
use crate::cli::{Cli, InitArgs};
use crate::config::{Config, ConfigError, Layers};
use crate::daemon::{DaemonError, exit};

/// No settings file of a PDS is longer.
const PDS_ENV_BYTES_MAX: u64 = 1 << 20;

/// What is taken from a PDS's settings. It holds the PDS's secrets too: nothing else is read from it.
#[derive(Debug, Default, PartialEq, Eq)]
struct PdsEnv {
    hostname: Option<String>,
    plc_url: Option<String>,
    bypass_key: Option<String>,
}

/// `firekeep init`: writes a configuration, after it was checked.
///
/// # Errors
/// When a file cannot be read or written, or is there already; when what would be written is no valid configuration.
pub fn init(args: &InitArgs) -> Result<u8, DaemonError> {
    let env = args
        .from_pds_env
        .as_deref()
        .map(read_pds_env)
        .transpose()?
        .unwrap_or_default();
    let host = match (&args.host, &env.hostname) {
        (Some(host), _) => host.clone(),
        (None, Some(hostname)) => format!("https://{hostname}"),
        (None, None) => {
            return Err(config_error(
                "the file has no PDS_HOSTNAME: name the PDS with --host https://…",
            ));
        }
    };
    let named_key = match (&args.bypass_key_file, &env.bypass_key) {
        (Some(file), Some(key)) => Some((absolute(file)?, key)),
        (Some(_), None) => {
            return Err(config_error(
                "--bypass-key-file: the file has no PDS_RATE_LIMIT_BYPASS_KEY; set one on the PDS first, or leave the flag away",
            ));
        }
        (None, _) => None,
    };
    let text = config_text(
        args,
        &host,
        &env,
        named_key.as_ref().map(|(file, _)| file.as_path()),
    )?;
    check(&text, &args.output)?;
    if args.output.as_os_str() == "-" {
        return print(&text);
    }
    // Both or none: a configuration must not name a key that is not there.
    for file in named_key
        .iter()
        .map(|(file, _)| file.as_path())
        .chain([args.output.as_path()])
    {
        if !args.force && file.exists() {
            return Err(failed(format!(
                "{} is there already, and nothing was changed; --force replaces it",
                file.display()
            )));
        }
    }
    if let Some((file, key)) = &named_key {
        write_file(file, &format!("{key}\n"), 0o600)?;
    }
    write_file(&args.output, &text, 0o644)?;
    let config = args.output.display();
    let archive = match args.archive {
        Some(_) => "",
        None => {
            "\nIt has no archive yet but a folder on this machine, which dies with it: set `archive` to a bucket."
        }
    };
    print(&format!(
        "{config} follows {host}.{archive}\nnext:  firekeep config check --config {config}\nthen:  firekeep run --config {config}\n"
    ))
}

fn read_pds_env(path: &Path) -> Result<PdsEnv, DaemonError> {
    let bad = |why: &dyn std::fmt::Display| {
        config_error(&format!(
            "cannot read {}: {why}; it is root's on most machines: run this command once with sudo",
            path.display()
        ))
    };
    let file = std::fs::File::open(path).map_err(|error| bad(&error))?;
    let mut text = String::new();
    file.take(PDS_ENV_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| bad(&error))?;
    parse_pds_env(&text).map_err(|line| bad(&format!("line {line} is no setting")))
}

/// Reads the lines that matter.
///
/// # Errors
/// The number of the first line that is no setting. (Its text may be a secret.)
fn parse_pds_env(text: &str) -> Result<PdsEnv, usize> {
    let mut found = PdsEnv::default();
    for (number, line) in text.lines().enumerate() {
        let name = line.split('=').next().unwrap_or_default().trim();
        let place = match name {
            "PDS_HOSTNAME" => &mut found.hostname,
            "PDS_DID_PLC_URL" => &mut found.plc_url,
            "PDS_RATE_LIMIT_BYPASS_KEY" => &mut found.bypass_key,
            _ => continue,
        };
        let read = dotenvy::from_read_iter(line.as_bytes()).next();
        let (_, value) = read.and_then(Result::ok).ok_or(number + 1)?;
        if !value.is_empty() {
            *place = Some(value);
        }
    }
    Ok(found)
}

fn config_text(
    args: &InitArgs,
    host: &str,
    env: &PdsEnv,
    bypass_key_file: Option<&Path>,
) -> Result<String, DaemonError> {
    let mut text = String::from(
        "# Firekeep's configuration. `firekeep config example` prints every key, with what it does.\n\n",
    );
    let list = |value: String| toml::Value::Array(vec![toml::Value::String(value)]);
    let mut line = |name: &str, value: toml::Value| text.push_str(&format!("{name} = {value}\n"));
    line("hosts", list(host.to_owned()));
    let plain = [
        ("archive", args.archive.as_ref()),
        ("data_dir", args.data_dir.as_ref()),
        ("plc_url", env.plc_url.as_ref()),
    ];
    for (name, value) in plain {
        if let Some(value) = value {
            line(name, toml::Value::String(value.clone()));
        }
    }
    if let Some(file) = bypass_key_file {
        let name = host
            .split_once("://")
            .map_or(host, |(_, name)| name)
            .trim_end_matches('/');
        line("bypass_key_files", list(format!("{name}={}", file.display())));
    }
    let store = [
        ("endpoint", &args.s3_endpoint),
        ("region", &args.s3_region),
        ("access_key_id_file", &args.s3_access_key_id_file),
        ("secret_access_key_file", &args.s3_secret_access_key_file),
    ];
    if store.iter().any(|(_, value)| value.is_some()) {
        text.push_str("\n[s3]\n");
        for (name, value) in store {
            if let Some(value) = value {
                text.push_str(&format!("{name} = {}\n", toml::Value::String(value.clone())));
            }
        }
    }
    Ok(text)
}

/// What would be written must be a configuration that `run` takes.
fn check(text: &str, path: &Path) -> Result<(), DaemonError> {
    let bad = |error: ConfigError| config_error(&format!("nothing was written: {error}"));
    let mut layers = Layers::default();
    layers.add_file(path, text).map_err(bad)?;
    let cwd = std::env::current_dir().map_err(|error| failed(format!("this folder is gone: {error}")))?;
    Config::check(&layers, &cwd).map(|_| ()).map_err(bad)
}

fn absolute(path: &Path) -> Result<std::path::PathBuf, DaemonError> {
    std::path::absolute(path).map_err(|error| failed(format!("{}: {error}", path.display())))
}

/// Writes a file whole, or not at all.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), DaemonError> {
    let cannot = |error: std::io::Error| failed(format!("cannot write {}: {error}", path.display()));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = folder.join(format!(".{name}.{}", std::process::id()));
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh);
    let written = file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    });
    if written.is_err() {
        std::fs::remove_file(&fresh).ok();
    }
    written.map_err(cannot)
}

/// `firekeep completions SHELL`
///
/// # Errors
/// When stdout cannot be written to.
pub fn completions(shell: clap_complete::Shell) -> Result<u8, DaemonError> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "firekeep", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// `firekeep man FOLDER`: a page for the program, and one for each command.
///
/// # Errors
/// When the folder cannot be written to.
pub fn man(folder: &Path) -> Result<u8, DaemonError> {
    let cannot = |error: std::io::Error| failed(format!("cannot write into {}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(cannot)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(cannot)?;
    let pages = std::fs::read_dir(folder).map_err(cannot)?;
    let pages = pages
        .flatten()
        .filter(|page| page.file_name().to_string_lossy().starts_with("firekeep"));
    print(&format!(
        "{} pages in {}; look: man {}/firekeep.1\n",
        pages.count(),
        folder.display(),
        folder.display()
    ))
}

fn config_error(text: &str) -> DaemonError {
    DaemonError {
        code: exit::CONFIG,
        text: text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(folder: &Path, env: &str) -> InitArgs {
        let file = folder.join("pds.env");
        std::fs::write(&file, env).expect("writes");
        InitArgs {
            from_pds_env: Some(file),
            host: None,
            archive: Some("s3://bucket/firekeep".to_owned()),
            s3_endpoint: Some("https://s3.example.com".to_owned()),
            s3_region: Some("eu-1".to_owned()),
            s3_access_key_id_file: None,
            s3_secret_access_key_file: None,
            data_dir: Some("/var/lib/firekeep".to_owned()),
            bypass_key_file: None,
            output: folder.join("firekeep.toml"),
            force: false,
        }
    }

    const ENV: &str = "PDS_HOSTNAME=pds.example.com\nPDS_JWT_SECRET=secret1\n# a remark\n\nPDS_ADMIN_PASSWORD=\"secret2\"\n\
                       PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX=secret3\nPDS_RATE_LIMIT_BYPASS_KEY='let me in'\n\
                       PDS_DID_PLC_URL=https://plc.directory\n";

    #[test]
    fn a_pds_s_settings_become_a_configuration_without_its_secrets() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut args = args(folder.path(), ENV);
        args.bypass_key_file = Some(folder.path().join("bypass"));
        assert_eq!(init(&args).map_err(|error| error.text), Ok(0));
        let text = std::fs::read_to_string(&args.output).expect("written");
        let value: toml::Table = text.parse().expect("TOML");
        assert_eq!(value["hosts"][0].as_str(), Some("https://pds.example.com"));
        assert_eq!(value["archive"].as_str(), Some("s3://bucket/firekeep"));
        assert_eq!(value["s3"]["endpoint"].as_str(), Some("https://s3.example.com"));
        let key = folder.path().join("bypass");
        assert_eq!(
            value["bypass_key_files"][0].as_str(),
            Some(format!("pds.example.com={}", key.display()).as_str())
        );
        for secret in ["secret", "let me in"] {
            assert!(!text.contains(secret), "{text}");
        }
        assert_eq!(std::fs::read_to_string(&key).expect("written"), "let me in\n");
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&key).expect("there"));
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_replaced_and_nothing_half_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut args = args(folder.path(), ENV);
        std::fs::write(&args.output, "mine").expect("writes");
        args.bypass_key_file = Some(folder.path().join("bypass"));
        let error = init(&args).expect_err("it is there");
        assert!(error.text.contains("--force"), "{}", error.text);
        assert_eq!(std::fs::read_to_string(&args.output).expect("there"), "mine");
        assert!(!folder.path().join("bypass").exists());
        args.force = true;
        assert_eq!(init(&args).map_err(|error| error.text), Ok(0));
        assert_ne!(std::fs::read_to_string(&args.output).expect("there"), "mine");
    }

    #[test]
    fn what_cannot_be_is_said_and_writes_nothing() {
        /// What is wrong, what is told, and how to make it so.
        type Case = (&'static str, &'static str, fn(&mut InitArgs));
        let cases: [Case; 5] = [
            ("no name", "PDS_HOSTNAME", |args| {
                std::fs::write(args.from_pds_env.as_ref().expect("set"), "PDS_PORT=3000\n").expect("writes");
            }),
            ("no file", "sudo", |args| {
                args.from_pds_env = Some("/nowhere/pds.env".into())
            }),
            ("no key", "PDS_RATE_LIMIT_BYPASS_KEY", |args| {
                std::fs::write(
                    args.from_pds_env.as_ref().expect("set"),
                    "PDS_HOSTNAME=a.example\n",
                )
                .expect("writes");
                args.bypass_key_file = Some("/nowhere/key".into());
            }),
            ("no archive", "archive", |args| {
                args.archive = Some("ftp://x".to_owned())
            }),
            ("a broken line", "line 1", |args| {
                std::fs::write(args.from_pds_env.as_ref().expect("set"), "PDS_HOSTNAME='open\n")
                    .expect("writes");
            }),
        ];
        for (what, told, change) in cases {
            let folder = tempfile::tempdir().expect("a folder");
            let mut args = args(folder.path(), ENV);
            change(&mut args);
            let error = init(&args).expect_err(what);
            assert_eq!(error.code, exit::CONFIG, "{what}: {}", error.text);
            assert!(error.text.contains(told), "{what}: {}", error.text);
            assert!(!args.output.exists(), "{what}");
        }
    }

    #[test]
    fn every_command_has_a_page_and_every_shell_its_completions() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(man(folder.path()).map_err(|error| error.text), Ok(0));
        for command in Cli::command().get_subcommands() {
            let page = folder.path().join(format!("firekeep-{}.1", command.get_name()));
            let text =
                std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            assert!(text.contains(".SH"), "{}", page.display());
        }
        let mut text = Vec::new();
        clap_complete::generate(
            clap_complete::Shell::Bash,
            &mut Cli::command(),
            "firekeep",
            &mut text,
        );
        assert!(String::from_utf8_lossy(&text).contains("--archive"));
    }
}
