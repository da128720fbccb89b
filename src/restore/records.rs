//! Records of a backup that an account that lives lacks, or has otherwise: what is written back, and in what portions.
//!
//! What the account has and the backup lacks is newer, and stays.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::types::Cid;

/// Writes that one commit takes. The reference PDS takes 200.
pub const WRITES_MAX: usize = 100;
/// Bytes of JSON that one request takes. The reference PDS takes 150 KiB of it, and a record may be that large alone.
pub const REQUEST_BYTES_MAX: usize = 100_000;
/// Paths of each kind that a text lists.
const NAMES_MAX: usize = 20;

/// How an account that lives differs from a moment of before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Records that were deleted since.
    pub deleted: Vec<(String, Cid)>,
    /// Records that were changed since.
    pub changed: Vec<(String, Cid)>,
    /// Records that are as they were.
    pub equal: usize,
    /// Records that came since.
    pub newer: usize,
}

/// Compares the records whose paths are wanted.
pub fn difference(
    before: &BTreeMap<Box<str>, Cid>,
    now: &BTreeMap<Box<str>, Cid>,
    wanted: impl Fn(&str) -> bool,
) -> Difference {
    let mut difference = Difference::default();
    for (path, cid) in before.iter().filter(|(path, _)| wanted(path)) {
        match now.get(path) {
            None => difference.deleted.push((path.to_string(), *cid)),
            Some(other) if other != cid => difference.changed.push((path.to_string(), *cid)),
            Some(_) => difference.equal += 1,
        }
    }
    let newer = now
        .keys()
        .filter(|path| wanted(path) && !before.contains_key(*path));
    difference.newer = newer.count();
    difference
}

/// Whether a path is of one of these collections, or is one of these paths; of none given, all are.
#[must_use]
pub fn is_wanted(path: &str, collections: &[String]) -> bool {
    collections.is_empty()
        || collections
            .iter()
            .any(|wanted| match path.strip_prefix(wanted.as_str()) {
                Some(rest) => rest.is_empty() || rest.starts_with('/'),
                None => false,
            })
}

impl Difference {
    /// For a person.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (what, list) in [
            ("write back, deleted since", &self.deleted),
            ("put back, changed since", &self.changed),
        ] {
            text.push_str(&format!("  {what}: {} records\n", list.len()));
            for (path, _) in list.iter().take(NAMES_MAX) {
                text.push_str(&format!("    {path}\n"));
            }
            if list.len() > NAMES_MAX {
                text.push_str(&format!("    … and {} more\n", list.len() - NAMES_MAX));
            }
        }
        text.push_str(&format!(
            "  leave as they are: {} that did not change, {} that came since\n",
            self.equal, self.newer
        ));
        text
    }
}

/// One record to be written, for `applyWrites`.
#[must_use]
pub fn write_of(path: &str, value: Value, create: bool) -> Value {
    let (collection, rkey) = path.split_once('/').unwrap_or((path, ""));
    let kind = if create { "create" } else { "update" };
    json!({
        "$type": format!("com.atproto.repo.applyWrites#{kind}"),
        "collection": collection, "rkey": rkey, "value": value,
    })
}

/// How many of these writes, from the first, go into one request: one at least.
#[must_use]
pub fn portion(writes: &[Value]) -> usize {
    let mut bytes = 0;
    let fits = writes.iter().take(WRITES_MAX).take_while(|write| {
        bytes += write.to_string().len();
        bytes <= REQUEST_BYTES_MAX
    });
    fits.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(list: &[(&str, &str)]) -> BTreeMap<Box<str>, Cid> {
        let record = |(path, text): &(&str, &str)| ((*path).into(), Cid::of_block(text.as_bytes()));
        list.iter().map(record).collect()
    }

    #[test]
    fn what_went_and_what_changed_is_found_and_what_is_newer_stays() {
        let before = records(&[("a.b/1", "1"), ("a.b/2", "2"), ("a.bc/1", "3"), ("a.b/3", "same")]);
        let now = records(&[
            ("a.b/2", "other"),
            ("a.b/3", "same"),
            ("a.b/4", "new"),
            ("x.y/1", "new"),
        ]);
        let all = difference(&before, &now, |_| true);
        let paths =
            |list: &[(String, Cid)]| -> Vec<String> { list.iter().map(|(path, _)| path.clone()).collect() };
        assert_eq!(paths(&all.deleted), ["a.b/1", "a.bc/1"]);
        assert_eq!(
            (paths(&all.changed), all.equal, all.newer),
            (vec!["a.b/2".to_owned()], 1, 2)
        );
        let only = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            difference(&before, &now, |path| is_wanted(path, &wanted))
        };
        assert_eq!(paths(&only(&["a.b"]).deleted), ["a.b/1"]);
        assert_eq!(only(&["a.b"]).newer, 1);
        assert_eq!(paths(&only(&["a.b/1", "a.bc"]).deleted), ["a.b/1", "a.bc/1"]);
        assert!(all.text().contains("a.bc/1"));
    }

    #[test]
    fn portions_are_bounded_by_count_and_bytes_and_never_empty() {
        let small: Vec<Value> = (0..250)
            .map(|number| write_of(&format!("a.b/{number}"), json!({}), true))
            .collect();
        assert_eq!(portion(&small), WRITES_MAX);
        assert_eq!(portion(&small[..7]), 7);
        let large = write_of(
            "a.b/c",
            json!({ "text": "x".repeat(REQUEST_BYTES_MAX / 2) }),
            false,
        );
        assert_eq!(portion(&[large.clone(), large.clone(), large]), 1);
        let huge = write_of(
            "a.b/c",
            json!({ "text": "x".repeat(REQUEST_BYTES_MAX * 2) }),
            false,
        );
        assert_eq!(portion(&[huge.clone(), huge]), 1);
        assert_eq!(small[3]["rkey"], "3");
        assert_eq!(small[3]["$type"], "com.atproto.repo.applyWrites#create");
    }
}
