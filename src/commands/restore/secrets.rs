#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "shell: files, the terminal"
)]
//! Secrets come from files or from the terminal, never from the command line, where every user of the machine sees
//! them. Whatever held one is overwritten.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::{DaemonError, failed, secret_of, usage};
use crate::cli::RestoreAccountArgs;
use crate::restore::secret::UserSecret;
use crate::types::{Did, DidMethod};

/// Longest secret.
const BYTES_MAX: u64 = 4096;

/// A small text file, less spaces and line breaks around the text.
pub(in crate::commands) fn read_text(path: &Path) -> Result<Zeroizing<String>, DaemonError> {
    let cannot = |error: std::io::Error| failed(format!("cannot read {}: {error}", path.display()));
    let file = File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.permissions().mode();
    if mode & 0o077 != 0 && std::fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
        eprintln!(
            "firekeep: note: {} can be read by others; chmod 600 it",
            path.display()
        );
    }
    // Of its full size from the beginning: a text that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(BYTES_MAX as usize + 1));
    file.take(BYTES_MAX).read_to_string(&mut text).map_err(cannot)?;
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(failed(format!("{} is empty", path.display())));
    }
    Ok(Zeroizing::new(trimmed.to_owned()))
}

/// A key in a file.
pub(in crate::commands) fn read_secret(path: &Path) -> Result<UserSecret, DaemonError> {
    let text = read_text(path)?;
    secret_of(&text).map_err(|error| failed(format!("{}: {}", path.display(), error.text)))
}

/// The rotation key, from its file or the terminal; a plan can be made without.
pub(super) fn rotation_key(args: &RestoreAccountArgs, did: &Did) -> Result<Option<UserSecret>, DaemonError> {
    let path = args.rotation_key_file.as_deref();
    if path.is_none() && (did.method() != DidMethod::Plc || args.dry_run) {
        return Ok(None);
    }
    key_or_ask(path).map(Some)
}

/// A rotation key, from its file or the terminal.
pub(in crate::commands) fn key_or_ask(path: Option<&Path>) -> Result<UserSecret, DaemonError> {
    if let Some(path) = path {
        return read_secret(path);
    }
    let text = ask(
        "rotation key of the account (hexadecimal or multikey; it is not shown): ",
        "--rotation-key-file",
    )?;
    secret_of(&text)
}

/// The password at the new PDS; a new one is asked for twice.
pub(super) fn password(args: &RestoreAccountArgs, new: bool) -> Result<Zeroizing<String>, DaemonError> {
    let question = "password at the new PDS (it is not shown): ";
    let first = password_or_ask(args.password_file.as_deref(), question)?;
    if args.password_file.is_none() && new && *ask("the same again: ", "--password-file")? != *first {
        return Err(failed(
            "these were two different passwords; nothing was changed".to_owned(),
        ));
    }
    Ok(first)
}

/// A password, from its file or the terminal.
pub(in crate::commands) fn password_or_ask(
    path: Option<&Path>,
    question: &str,
) -> Result<Zeroizing<String>, DaemonError> {
    match path {
        Some(path) => read_text(path),
        None => ask(question, "--password-file"),
    }
}

/// Whether to go on.
pub(in crate::commands) fn confirmed() -> Result<bool, DaemonError> {
    if !std::io::stdin().is_terminal() {
        return Err(usage("nobody is there to be asked whether to go on; say --yes"));
    }
    eprint!("go on? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| failed(format!("cannot read the answer: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Asks on the terminal, without showing what is typed.
pub(in crate::commands) fn ask(question: &str, flag: &str) -> Result<Zeroizing<String>, DaemonError> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty");
    let mut terminal = terminal.map_err(|_| usage(format!("there is no terminal to ask on; give {flag}")))?;
    let cannot =
        |error: &dyn std::fmt::Display| failed(format!("cannot ask on the terminal: {error}; give {flag}"));
    let shown = tcgetattr(&terminal).map_err(|error| cannot(&error))?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    terminal
        .write_all(question.as_bytes())
        .map_err(|error| cannot(&error))?;
    tcsetattr(&terminal, OptionalActions::Flush, &hidden).map_err(|error| cannot(&error))?;
    let mut text = Zeroizing::new(String::with_capacity(BYTES_MAX as usize + 1));
    let read = BufReader::new((&terminal).take(BYTES_MAX)).read_line(&mut text);
    tcsetattr(&terminal, OptionalActions::Flush, &shown).map_err(|error| cannot(&error))?;
    terminal.write_all(b"\n").map_err(|error| cannot(&error))?;
    read.map_err(|error| cannot(&error))?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}
