//! Rules on the source itself, which no compiler holds: every file explains itself and can be read at once, modules
//! use only what stands above them in `src/lib.rs`, pure files stay pure, and nothing unfinished goes in.
//!
//! Each rule has a test that shows it a file which breaks it. Known breaches stand in [`EXCEPTIONS`]; one that is
//! mended must leave the list.

#[path = "tidy/source.rs"]
mod source;

use std::path::Path;

use source::{File, Tree, line_of, paths};

/// Lines of a file without what is compiled for tests alone.
const LINES_MAX: usize = 500;
/// Lines of a file of tests.
const TEST_LINES_MAX: usize = 800;
/// Bytes of any file outside of the tests' data.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// The mark of a file that touches clocks, sockets, files or tasks.
const SHELL_MARK: &str = "reason = \"shell";

/// Modules that stand outside of the order: they put the others together, or stand in for them in tests.
const OUTSIDE_THE_ORDER: [&str; 5] = ["main", "cli", "commands", "daemon", "sim"];

/// What no pure file mentions, in code or in a `use`.
const IMPURE: [&str; 19] = [
    "tokio",
    "tokio_util",
    "futures_util",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "Instant::now",
    "SystemTime::now",
    "async fn",
    "async move",
    "async {",
    "rand::",
];

/// Breaches that are known: rule, file, why it still stands.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "pure_files_are_pure",
        "src/repo/signing_key.rs",
        "aws-lc-rs signs P-256 only with a source of randomness",
    ),
    (
        "pure_files_use_no_shell_files",
        "src/archive/s3/error.rs",
        "the error type of both kinds of store stands beside the store",
    ),
    (
        "pure_files_use_no_shell_files",
        "src/serve/lookup.rs",
        "XrpcError stands among the answers",
    ),
];

type Breach = (String, String); // file, what is wrong

/// Runs a rule on the project, less the known breaches.
fn hold(rule: &str, check: impl Fn(&Tree) -> Vec<Breach>) {
    let tree = Tree::read(Path::new(env!("CARGO_MANIFEST_DIR")));
    let breaches = check(&tree);
    let known = |path: &str| {
        EXCEPTIONS
            .iter()
            .any(|(name, file, _)| *name == rule && *file == path)
    };
    let mut wrong: Vec<String> = breaches
        .iter()
        .filter(|(path, _)| !known(path))
        .map(|(path, what)| format!("{path}: {what}"))
        .collect();
    for (name, file, _) in EXCEPTIONS {
        if *name == rule && !breaches.iter().any(|(path, _)| path == file) {
            wrong.push(format!(
                "{file}: breaks this rule no longer; take it out of EXCEPTIONS"
            ));
        }
    }
    assert!(wrong.is_empty(), "{rule}:\n  {}", wrong.join("\n  "));
}

/// Shows a rule a few files, of which the last must break it, and only that one.
fn must_break(check: impl Fn(&Tree) -> Vec<Breach>, files: &[(&str, &str)], what: &str) {
    let (culprit, _) = files.last().expect("a file");
    let breaches = check(&Tree::of(files));
    assert_eq!(breaches.len(), 1, "{breaches:?}");
    assert_eq!(breaches[0].0, *culprit);
    assert!(breaches[0].1.contains(what), "{breaches:?}");
}

fn must_pass(check: impl Fn(&Tree) -> Vec<Breach>, files: &[(&str, &str)]) {
    assert_eq!(check(&Tree::of(files)), Vec::new());
}

fn breach(file: &File, what: impl Into<String>) -> Breach {
    (file.path.clone(), what.into())
}

// ---- every file explains itself ----

/// `//!` stands first, or right after the inner attributes (or the one `#[cfg]`) that open the file.
fn undocumented(tree: &Tree) -> Vec<Breach> {
    let explained = |file: &File| {
        let mut rest = file.text.as_str();
        while rest.starts_with("#![") {
            let end = file.code[file.text.len() - rest.len()..].find(']');
            rest = end.map_or("", |end| rest[end + 1..].trim_start());
        }
        rest.starts_with("//! ")
    };
    tree.rust()
        .filter(|file| !explained(file))
        .map(|file| breach(file, "does not begin with `//!`"))
        .collect()
}

#[test]
fn every_file_says_what_it_is() {
    hold("every_file_says_what_it_is", undocumented);
    must_break(undocumented, &[("src/a.rs", "use std::fmt;\n")], "`//!`");
    must_break(
        undocumented,
        &[("src/a.rs", "#![allow(x)]\nuse a;\n//! Late.\n")],
        "`//!`",
    );
    must_pass(
        undocumented,
        &[(
            "src/a.rs",
            "#![allow(\n    x,\n    reason = \"a] b\"\n)]\n//! What it is.\n",
        )],
    );
}

// ---- every file can be read at once ----

fn too_long(tree: &Tree) -> Vec<Breach> {
    let lines = |file: &File| {
        if file.test {
            return file.text.lines().count();
        }
        // What only tests see is blank here, and does not count; comments and blank lines of the rest do.
        let tests = file
            .code
            .lines()
            .zip(file.product.lines())
            .filter(|(all, product)| all != product)
            .count();
        file.text.lines().count() - tests
    };
    tree.rust()
        .filter_map(|file| {
            let (lines, max) = (lines(file), if file.test { TEST_LINES_MAX } else { LINES_MAX });
            (lines > max).then(|| breach(file, format!("{lines} lines, at most {max}")))
        })
        .collect()
}

#[test]
fn files_are_short() {
    hold("files_are_short", too_long);
    let lines = |count: usize| format!("//! Long.\n{}", "fn a() {}\n".repeat(count));
    must_break(too_long, &[("src/a.rs", &lines(500))], "501 lines");
    must_break(too_long, &[("src/a_tests.rs", &lines(800))], "801 lines");
    must_break(
        too_long,
        &[
            ("src/b.rs", &lines(3)),
            ("src/a.rs", &(lines(450) + "\n//\n".repeat(30).as_str())),
        ],
        "511",
    );
    must_pass(
        too_long,
        &[("src/a.rs", &lines(499)), ("src/b/tests.rs", &lines(799))],
    );
    let with_tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", lines(498), lines(200));
    must_pass(too_long, &[("src/a.rs", &with_tests)]);
}

fn too_large(tree: &Tree) -> Vec<Breach> {
    let data = |path: &str| path.contains("testdata/") || path.starts_with("tests/data/");
    tree.files
        .iter()
        .filter(|file| file.bytes > FILE_BYTES_MAX && !data(&file.path))
        .map(|file| breach(file, format!("{} bytes, at most {FILE_BYTES_MAX}", file.bytes)))
        .collect()
}

#[test]
fn no_file_is_large() {
    hold("no_file_is_large", too_large);
    let text = "x".repeat(256 * 1024);
    must_pass(
        too_large,
        &[("a.json", &text), ("src/testdata/b", &(text.clone() + "x"))],
    );
    must_break(too_large, &[("a.json", &(text.clone() + "x"))], "262145 bytes");
}

// ---- modules use only what stands above them ----

fn module_order(tree: &Tree) -> Vec<String> {
    let lib = tree.files.iter().find(|file| file.path == "src/lib.rs");
    let lines = lib.map_or("", |file| file.code.as_str()).lines();
    lines
        .filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'))
        .map(str::to_owned)
        .collect()
}

/// The module below the crate that a file belongs to.
fn module_of(path: &str) -> &str {
    let inner = path.trim_start_matches("src/").trim_end_matches(".rs");
    inner.split('/').next().unwrap_or_default()
}

fn used_from_below(tree: &Tree) -> Vec<Breach> {
    let order = module_order(tree);
    let place = |module: &str| order.iter().position(|name| name == module);
    let mut breaches = Vec::new();
    for file in tree.product() {
        let own = module_of(&file.path);
        let (Some(own_place), false) = (place(own), OUTSIDE_THE_ORDER.contains(&own)) else {
            continue;
        };
        for (line, path) in paths(&file.product) {
            let Some(used) = path
                .strip_prefix("crate::")
                .and_then(|rest| rest.split("::").next())
            else {
                continue;
            };
            if place(used).is_some_and(|used_place| used_place > own_place) {
                breaches.push(breach(
                    file,
                    format!("line {line}: {own} stands above {used} in src/lib.rs, and uses it"),
                ));
            }
        }
    }
    breaches.dedup();
    breaches
}

#[test]
fn modules_use_only_what_stands_above_them() {
    hold("modules_use_only_what_stands_above_them", used_from_below);
    assert!(module_order(&Tree::read(Path::new(env!("CARGO_MANIFEST_DIR")))).len() > 5);
    let lib = (
        "src/lib.rs",
        "//! Map.\npub mod types;\n#[cfg(feature = \"x\")]\npub mod repo;\n\npub mod daemon;\n",
    );
    must_break(
        used_from_below,
        &[lib, ("src/types/a.rs", "use crate::repo::Car;\n")],
        "line 1: types stands above repo",
    );
    must_break(
        used_from_below,
        &[lib, ("src/types.rs", "fn a() {\n  crate::repo::b();\n}\n")],
        "line 2",
    );
    must_pass(
        used_from_below,
        &[
            lib,
            ("src/repo/a.rs", "use crate::types::Cid;\nuse crate::repo::b;\n"),
            ("src/daemon.rs", "use crate::{types, repo};\n"),
            (
                "src/types/b.rs",
                "// crate::repo\n#[cfg(test)]\nmod tests {\n    use crate::repo::Car;\n}\n",
            ),
            ("src/types/tests.rs", "use crate::repo::Car;\n"),
        ],
    );
    must_break(
        used_from_below,
        &[
            lib,
            (
                "src/types.rs",
                "use crate::{\n    types,\n    repo::{Car, x},\n};\n",
            ),
        ],
        "repo",
    );
}

// ---- pure files stay pure ----

/// Whether an inner attribute of the file, before or after its `//!`, carries the mark.
fn is_shell(file: &File) -> bool {
    file.text.match_indices("#![allow(").any(|(at, _)| {
        let attribute = file.text[at..].split(")]").next().unwrap_or_default();
        (at == 0 || file.text[..at].ends_with('\n')) && attribute.contains(SHELL_MARK)
    })
}

fn is_pure(file: &File) -> bool {
    !is_shell(file) && file.path != "src/main.rs"
}

fn impure(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in tree.product().filter(|file| is_pure(file)) {
        let used = paths(&file.product);
        for what in IMPURE {
            let begins = |path: &str| path == what || path.starts_with(&format!("{what}::"));
            let line = used.iter().find(|(_, path)| begins(path)).map(|(line, _)| *line);
            let line = line.or_else(|| word(&file.product, what).map(|at| line_of(&file.product, at)));
            if let Some(line) = line {
                breaches.push(breach(
                    file,
                    format!("line {line}: a file without the shell mark mentions {what}"),
                ));
                break; // one is enough to know the file
            }
        }
    }
    breaches
}

/// Where `what` stands in the code, not as the end of a longer name.
fn word(code: &str, what: &str) -> Option<usize> {
    let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let ends_in_name = what.ends_with(name);
    code.match_indices(what).map(|(at, _)| at).find(|at| {
        let longer = ends_in_name && code[at + what.len()..].starts_with(name);
        !code[..*at].ends_with(name) && !longer
    })
}

#[test]
fn pure_files_are_pure() {
    hold("pure_files_are_pure", impure);
    for (code, what) in [
        ("use tokio::sync::mpsc;", "tokio"),
        ("use std::{fmt, fs::File};", "std::fs"),
        ("use std::time::{Duration, Instant};", "std::time::Instant"),
        ("fn a() { std::thread::sleep(d) }", "std::thread"),
        ("pub async fn a() {}", "async fn"),
        ("use std::net::{IpAddr, TcpStream};", "std::net::TcpStream"),
        ("fn a() -> u64 { rand::random() }", "rand::"),
        ("fn a() { let now = SystemTime::now(); }", "SystemTime::now"),
    ] {
        must_break(impure, &[("src/a.rs", code)], what);
    }
    must_pass(
        impure,
        &[
            (
                "src/a.rs",
                "#![allow(clippy::disallowed_methods, reason = \"shell: files\")]\n//! A.\nuse std::fs;\n",
            ),
            (
                "src/b.rs",
                "//! Nothing of tokio.\nuse std::net::IpAddr;\nconst TEXT: &str = \"tokio\"; // std::fs\n",
            ),
            (
                "src/c.rs",
                "//! C.\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\nfn operand::a() {}\n",
            ),
            ("src/c/tests.rs", "use tokio::spawn;\n"),
            ("src/d.rs", "#[cfg(test)]\nmod fixture;\n"),
            ("src/d/fixture.rs", "use tokio::spawn;\n"),
        ],
    );
}

/// Bans that clippy would lift for a file without anybody seeing why.
fn unmarked(tree: &Tree) -> Vec<Breach> {
    tree.product()
        .filter(|file| file.code.contains("clippy::disallowed_methods") && !is_shell(file))
        .filter(|file| file.path != "src/main.rs")
        .map(|file| {
            breach(
                file,
                "lifts the ban on impure calls without the shell mark at its top",
            )
        })
        .collect()
}

#[test]
fn only_shell_files_lift_the_bans() {
    hold("only_shell_files_lift_the_bans", unmarked);
    must_break(
        unmarked,
        &[("src/a.rs", "//! A.\n#![allow(clippy::disallowed_methods)]\n")],
        "shell mark",
    );
    must_break(
        unmarked,
        &[(
            "src/a.rs",
            "//! A.\n#[allow(clippy::disallowed_methods, reason = \"shell\")]\nfn a() {}\n",
        )],
        "mark",
    );
}

/// The modules that a pure file names, where they are shell.
fn shell_used(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in tree.product().filter(|file| is_pure(file)) {
        let own: Vec<&str> = module_path(&file.path);
        for (line, path) in paths(&file.product) {
            let parts: Vec<&str> = path.split("::").collect();
            let absolute: Vec<&str> = match parts.as_slice() {
                ["crate", rest @ ..] => rest.to_vec(),
                ["super", rest @ ..] => {
                    let ups = 1 + rest.iter().take_while(|part| **part == "super").count();
                    let kept = own.len().saturating_sub(ups);
                    own[..kept].iter().chain(&rest[ups - 1..]).copied().collect()
                }
                _ => continue,
            };
            if let Some(used) = tree.module_file(&absolute).filter(|used| is_shell(used)) {
                breaches.push(breach(
                    file,
                    format!("line {line}: a pure file uses the shell file {}", used.path),
                ));
            }
        }
    }
    breaches.dedup();
    breaches
}

/// `src/mirror/rows/codec.rs` is `["mirror", "rows", "codec"]`.
fn module_path(path: &str) -> Vec<&str> {
    let inner = path.trim_start_matches("src/").trim_end_matches(".rs");
    inner
        .split('/')
        .filter(|part| *part != "mod" && *part != "lib")
        .collect()
}

#[test]
fn pure_files_use_no_shell_files() {
    hold("pure_files_use_no_shell_files", shell_used);
    let shell = (
        "src/a/disk.rs",
        "#![allow(clippy::disallowed_methods, reason = \"shell: files\")]\n//! Disk.\n",
    );
    must_break(
        shell_used,
        &[shell, ("src/b.rs", "use crate::a::disk::Disk;\n")],
        "src/a/disk.rs",
    );
    must_break(
        shell_used,
        &[shell, ("src/a/c.rs", "use super::disk::Disk;\n")],
        "line 1",
    );
    must_pass(
        shell_used,
        &[
            shell,
            ("src/a/mod.rs", "pub mod disk;\n"),
            (
                "src/a/c.rs",
                "use super::Name;\nuse crate::a::plan;\n#[cfg(test)]\nmod tests {\n    use crate::a::disk;\n}\n",
            ),
        ],
    );
}

// ---- the order of what happens ----

fn unbiased(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in tree.rust() {
        for (at, found) in file.code.match_indices("select!") {
            let body = file.code[at + found.len()..].trim_start();
            let first = body.strip_prefix('{').map_or("", str::trim_start);
            if !first.starts_with("biased;") {
                breaches.push(breach(
                    file,
                    format!("line {}: select! without biased;", line_of(&file.code, at)),
                ));
            }
        }
    }
    breaches
}

#[test]
fn every_select_is_biased() {
    hold("every_select_is_biased", unbiased);
    must_break(
        unbiased,
        &[(
            "src/a.rs",
            "//! A.\nfn a() { tokio::select! {\n  a = b => {}\n} }\n",
        )],
        "line 2",
    );
    must_pass(
        unbiased,
        &[(
            "src/a.rs",
            "fn a() { tokio::select! { // first things first\n  biased;\n  a = b => {}\n} }\n",
        )],
    );
}

// ---- nothing unfinished, nothing of one machine ----

/// Words that no Rust file holds, in code or comments. Written apart, for this file is read too.
const RUST_WORDS: [&str; 6] = [
    concat!("to", "do!"),
    concat!("unimple", "mented!"),
    concat!("db", "g!"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("#[ig", "nore"),
];
/// Paths of one machine, which no file holds.
const MACHINE_PATHS: [&str; 2] = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];

fn unfinished(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for file in &tree.files {
        let words: &[&str] = if file.path.ends_with(".rs") {
            &RUST_WORDS
        } else {
            &[]
        };
        for what in words.iter().chain(&MACHINE_PATHS) {
            if let Some(at) = file.text.find(what) {
                breaches.push(breach(file, format!("line {}: {what}", line_of(&file.text, at))));
            }
        }
    }
    breaches
}

#[test]
fn nothing_is_unfinished_or_of_one_machine() {
    hold("nothing_is_unfinished_or_of_one_machine", unfinished);
    for what in RUST_WORDS.iter().chain(&MACHINE_PATHS) {
        must_break(unfinished, &[("src/a.rs", &format!("//! A.\n// {what}\n"))], what);
    }
    must_break(
        unfinished,
        &[("README.md", &format!("see {}x", MACHINE_PATHS[0]))],
        "line 1",
    );
    must_pass(
        unfinished,
        &[
            ("README.md", &format!("{} is for later", RUST_WORDS[3])),
            ("src/a.rs", "//! todo list\n"),
        ],
    );
}

// ---- how the rules read source ----

#[test]
fn comments_and_texts_are_no_code() {
    for (text, code) in [
        (r#"a "b // \" c" d"#, "a               d"),
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d */ e", "a                     e"),
        (r##"r#"a " b"# c"##, "           c"),
        (r"'{' <'a> '\'' x", "    <'a>      x"),
        (r#"for"a""#, "for   "),
        (r#"b"{" br"{" c"#, "b          c"),
    ] {
        let blanked = source::blank_comments_and_texts(text);
        assert_eq!(
            blanked.split_whitespace().collect::<Vec<_>>(),
            code.split_whitespace().collect::<Vec<_>>(),
            "{text}"
        );
        assert_eq!(blanked.len(), text.len(), "{text}: positions moved");
    }
}

#[test]
fn groups_of_a_use_are_written_out() {
    let all: Vec<String> =
        paths("use a::{b, c::{D as _, e}};\npub use crate::f;\nfn g() { crate::h::i() }\n")
            .into_iter()
            .map(|(line, path)| format!("{line} {path}"))
            .collect();
    assert_eq!(
        all,
        [
            "1 a::b",
            "1 a::c::D",
            "1 a::c::e",
            "2 crate::f",
            "2 crate::f",
            "3 crate::h::i"
        ]
    );
}
