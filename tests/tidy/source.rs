//! The project's files as the rules see them: text, code without comments and texts, code without tests, paths.

use std::fs;
use std::path::Path;

/// One file of the project.
pub struct File {
    /// From the project's folder, with `/`.
    pub path: String,
    /// All of it; empty if it is no text.
    pub text: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Rust only: the same lines, with comments and the insides of texts made blank.
    pub code: String,
    /// Rust only: `code`, with the items that are compiled for tests alone made blank as well.
    pub product: String,
    /// Rust only: all of it is compiled for tests alone.
    pub test: bool,
}

/// All files of the project, or a few that a test made up.
pub struct Tree {
    pub files: Vec<File>,
}

/// Folders that hold what is built, fetched or run, never source.
const NOT_OURS: [&str; 6] = [
    ".git",
    "target",
    "node_modules",
    "firekeep-data",
    "sandbox-data",
    "fuzz/target",
];

impl Tree {
    /// Reads the project in `root`.
    pub fn read(root: &Path) -> Tree {
        let mut files = Vec::new();
        collect(root, "", &mut files);
        Tree::new(files)
    }

    /// Files that are not on any disk: path and text.
    pub fn of(files: &[(&str, &str)]) -> Tree {
        let file = |(path, text): &(&str, &str)| (String::from(*path), text.as_bytes().to_vec());
        Tree::new(files.iter().map(file).collect())
    }

    fn new(files: Vec<(String, Vec<u8>)>) -> Tree {
        let mut files: Vec<File> = files.into_iter().map(|(path, bytes)| file(path, bytes)).collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let test_modules: Vec<String> = files.iter().flat_map(test_modules).collect();
        for file in &mut files {
            let stem = file.path.trim_end_matches(".rs");
            let below = |module: &String| stem == module || stem.starts_with(&format!("{module}/"));
            file.test = file.path.ends_with(".rs")
                && (file.path.starts_with("tests/")
                    || file.path.ends_with("/tests.rs")
                    || file.path.ends_with("_tests.rs")
                    || file.path.contains("/tests/")
                    || test_modules.iter().any(below));
        }
        Tree { files }
    }

    /// The Rust files.
    pub fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }

    /// The Rust files that are part of the product.
    pub fn product(&self) -> impl Iterator<Item = &File> {
        self.rust()
            .filter(|file| !file.test && file.path.starts_with("src/"))
    }

    /// The file of a module, or of the longest part of a path that is a module: `["mirror", "store", "Batch"]`.
    pub fn module_file(&self, path: &[&str]) -> Option<&File> {
        (1..=path.len()).rev().find_map(|length| {
            let stem = format!("src/{}", path[..length].join("/"));
            let (flat, folder) = (format!("{stem}.rs"), format!("{stem}/mod.rs"));
            self.files
                .iter()
                .find(|file| file.path == flat || file.path == folder)
        })
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, Vec<u8>)>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("read {}: {error}", folder.display()));
    for entry in entries {
        let entry = entry.expect("a readable folder");
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().expect("a file type");
        if NOT_OURS.contains(&path.as_str()) || path.ends_with("/node_modules") || path.ends_with(".log") {
            continue;
        }
        if kind.is_dir() {
            collect(&entry.path(), &format!("{path}/"), files);
        } else if kind.is_file() && path != ".git" {
            let bytes = fs::read(entry.path()).unwrap_or_else(|error| panic!("read {path}: {error}"));
            files.push((path, bytes));
        }
    }
}

fn file(path: String, bytes: Vec<u8>) -> File {
    let length = bytes.len() as u64;
    let text = String::from_utf8(bytes).unwrap_or_default();
    let (mut code, mut product) = (String::new(), String::new());
    if path.ends_with(".rs") {
        code = blank_comments_and_texts(&text);
        product = blank_tests(&code);
    }
    File {
        path,
        text,
        bytes: length,
        code,
        product,
        test: false,
    }
}

/// The modules that a file declares for tests alone, as paths without `.rs`.
fn test_modules(file: &File) -> Vec<String> {
    let folder = match file
        .path
        .strip_suffix("/mod.rs")
        .or(file.path.strip_suffix("/lib.rs"))
    {
        Some(folder) => folder.to_owned(),
        None => file.path.trim_end_matches(".rs").to_owned(),
    };
    let mut modules = Vec::new();
    for (start, _) in file.code.match_indices("#[cfg(") {
        let Some((attribute, item)) = file.code[start..].split_once(']') else {
            continue;
        };
        let words: Vec<&str> = item.split_whitespace().take(3).collect();
        let name = match words.as_slice() {
            ["mod", name, ..] | [_, "mod", name] => name.strip_suffix(';'),
            _ => None,
        };
        if let (true, Some(name)) = (only_for_tests(attribute), name) {
            modules.push(format!("{folder}/{name}"));
        }
    }
    modules
}

fn only_for_tests(attribute: &str) -> bool {
    attribute.starts_with("#[cfg(test)") || attribute.starts_with("#[cfg(all(test,")
}

/// Blanks the items behind `#[cfg(test)]`; lines stay where they are.
fn blank_tests(code: &str) -> String {
    let mut out = code.to_owned();
    let mut from = 0;
    while let Some(found) = out[from..].find("#[cfg(") {
        let start = from + found;
        from = start + 1;
        if only_for_tests(&out[start..]) {
            let end = start + item_length(&out[start..]);
            out.replace_range(start..end, &blank(&out[start..end]));
        }
    }
    out
}

/// The length of an item with its attributes: to its `;`, or to the brace that closes its first one.
fn item_length(code: &str) -> usize {
    let (mut braces, mut brackets) = (0_usize, 0_usize);
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'[' | b'(' => brackets += 1,
            b']' | b')' => brackets = brackets.saturating_sub(1),
            b'{' => braces += 1,
            b'}' if braces <= 1 => return at + 1,
            b'}' => braces -= 1,
            b';' if braces == 0 && brackets == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Every byte but line ends becomes a space; so positions stay what they were.
fn blank(text: &str) -> String {
    let keep = |byte: u8| if byte == b'\n' { '\n' } else { ' ' };
    text.bytes().map(keep).collect()
}

/// Blanks comments, and what stands between the quotes of texts and characters.
pub fn blank_comments_and_texts(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_word = false; // an `r` or `b` that ends a name begins no raw text
    while let Some(first) = rest.chars().next() {
        let opaque = if in_word { 0 } else { opaque_length(rest) };
        let opaque = if opaque == 0 && first == '"' {
            quoted_length(rest)
        } else {
            opaque
        };
        if opaque == 0 {
            // Letters of other scripts stand in no code that a rule looks for; blanks keep the positions.
            if first.is_ascii() {
                out.push(first);
            } else {
                out.push_str(&blank(&rest[..first.len_utf8()]));
            }
            in_word = first.is_ascii_alphanumeric() || first == '_';
            rest = &rest[first.len_utf8()..];
        } else {
            out.push_str(&blank(&rest[..opaque]));
            in_word = false;
            rest = &rest[opaque..];
        }
    }
    out
}

/// The length of the comment, raw text or character that begins here; 0 if none does.
fn opaque_length(rest: &str) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_length(rest);
    }
    let prefix = rest.len() - rest.trim_start_matches(['b', 'c', 'r']).len();
    if (1..=2).contains(&prefix) {
        let after = &rest[prefix..];
        let hashes = after.len() - after.trim_start_matches('#').len();
        if rest[..prefix].ends_with('r') && after[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = prefix + hashes + 1;
            return rest[body..]
                .find(&end)
                .map_or(rest.len(), |at| body + at + end.len());
        }
        return 0;
    }
    if rest.starts_with('\'') {
        return character_length(rest);
    }
    0
}

fn block_comment_length(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest.as_bytes()[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.as_bytes()[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// A character in quotes; 0 for a lifetime.
fn character_length(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => rest[3..].find('\'').map_or(rest.len(), |at| at + 4),
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}

fn quoted_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The number of the line at a position, from 1.
pub fn line_of(code: &str, at: usize) -> usize {
    code[..at].bytes().filter(|byte| *byte == b'\n').count() + 1
}

/// Every path that a `use` names in full, groups written out, with its line: `use a::{b, c::D as _}` gives `a::b`
/// and `a::c::D`. Then every path elsewhere that begins with `crate::`.
pub fn paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let begins = code[..at]
            .trim_end_matches(' ')
            .ends_with(['\n', ';', '{', '}', ')'])
            || at == 0
            || code[..at].trim_end().ends_with("pub");
        let Some((tree, _)) = code[at + 4..].split_once(';') else {
            continue;
        };
        if begins {
            expand("", tree.trim(), line_of(code, at), &mut found);
        }
    }
    for (at, _) in code.match_indices("crate::") {
        let path: String = code[at..]
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || "_:".contains(*c))
            .collect();
        found.push((line_of(code, at), path));
    }
    found
}

fn expand(prefix: &str, tree: &str, line: usize, found: &mut Vec<(usize, String)>) {
    let tree = tree.trim();
    if let Some((head, group)) = tree.split_once('{') {
        let group = group.rfind('}').map_or(group, |end| &group[..end]);
        for part in split_group(group) {
            expand(&format!("{prefix}{}", head.trim()), part, line, found);
        }
    } else if !tree.is_empty() {
        let name = tree.split_whitespace().next().unwrap_or_default();
        found.push((line, format!("{prefix}{name}")));
    }
}

/// Splits at the commas outside of inner groups.
fn split_group(group: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_usize, 0);
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&group[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[from..]);
    parts
}
