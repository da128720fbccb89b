#![allow(clippy::disallowed_methods, reason = "shell: files")]
//! A repository's records as JSON Lines and as a SQLite database.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use rusqlite::Connection;
use serde_json::json;

use super::{DaemonError, Found, failed, shown};

/// What was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Records.
    pub(super) records: u64,
    /// Records that have no JSON form: their bytes stand there instead.
    pub(super) as_bytes: u64,
}

/// Writes a line a record: `{"uri", "cid", "value"}`; a withheld record has no value.
///
/// # Errors
/// When the records cannot be read, or `out` refuses.
pub(super) fn write_jsonl(found: &Found, out: &mut impl Write) -> Result<Written, DaemonError> {
    let rebuilt = &found.rebuilt;
    let mut written = Written::default();
    let error = |error: std::io::Error| failed(format!("cannot write the records: {error}"));
    for (path, cid) in &rebuilt.records {
        let mut line = json!({ "uri": format!("at://{}/{path}", rebuilt.did), "cid": cid.to_string() });
        match rebuilt.record(cid).map_err(error)? {
            Some(bytes) => {
                let (value, note) = shown(&bytes);
                written.as_bytes += u64::from(note.is_some());
                line["value"] = value;
            }
            None => line["withheld"] = true.into(),
        }
        serde_json::to_writer(&mut *out, &line).map_err(|fault| error(fault.into()))?;
        out.write_all(b"\n").map_err(error)?;
        written.records += 1;
    }
    out.flush().map_err(error)?;
    Ok(written)
}

/// Fills the empty file at `path` with a database: a table a collection, named by it, with the columns `rkey`, `cid`
/// and `value` (JSON; null where the record is withheld), and a table `_export` that says what it is of.
///
/// # Errors
/// When the records cannot be read, or the database cannot be written.
pub(super) fn write_sqlite(found: &Found, path: &Path) -> Result<Written, DaemonError> {
    let error = |error: rusqlite::Error| failed(format!("cannot write the database: {error}"));
    let mut db = Connection::open(path).map_err(error)?;
    // The file has no name yet: after a crash there is nothing to recover.
    db.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
        .map_err(error)?;
    let batch = db.transaction().map_err(error)?;
    let written = fill(found, &batch)?;
    batch.commit().map_err(error)?;
    db.close().map_err(|(_, fault)| error(fault))?;
    Ok(written)
}

fn fill(found: &Found, db: &Connection) -> Result<Written, DaemonError> {
    let error = |error: rusqlite::Error| failed(format!("cannot write the database: {error}"));
    let rebuilt = &found.rebuilt;
    db.execute_batch("CREATE TABLE _export (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        .map_err(error)?;
    for (key, value) in [
        ("did", rebuilt.did.to_string()),
        ("rev", rebuilt.rev.to_string()),
        ("commit", rebuilt.commit.to_string()),
        ("time", found.moment.time.to_string()),
    ] {
        db.execute("INSERT INTO _export VALUES (?1, ?2)", (key, value))
            .map_err(error)?;
    }
    let mut written = Written::default();
    let mut tables = BTreeSet::new();
    let mut open: Option<(&str, rusqlite::Statement<'_>)> = None;
    for (path, cid) in &rebuilt.records {
        let (collection, rkey) = path.split_once('/').unwrap_or((path, ""));
        if open.as_ref().is_none_or(|(name, _)| *name != collection) {
            let table = table_name(collection, &mut tables);
            let create = format!(
                "CREATE TABLE {table} (rkey TEXT PRIMARY KEY, cid TEXT NOT NULL, value TEXT) WITHOUT ROWID"
            );
            db.execute_batch(&create).map_err(error)?;
            let insert = db.prepare(&format!("INSERT INTO {table} VALUES (?1, ?2, ?3)"));
            open = Some((collection, insert.map_err(error)?));
        }
        let Some((_, insert)) = &mut open else { continue };
        let bytes = rebuilt.record(cid).map_err(|fault| failed(fault.to_string()))?;
        let value = bytes.map(|bytes| {
            let (value, note) = shown(&bytes);
            written.as_bytes += u64::from(note.is_some());
            value.to_string()
        });
        insert.execute((rkey, cid.to_string(), value)).map_err(error)?;
        written.records += 1;
    }
    Ok(written)
}

/// The quoted name of a collection's table. SQLite does not tell upper from lower case, collections do.
fn table_name(collection: &str, taken: &mut BTreeSet<String>) -> String {
    let mut name = collection.to_owned();
    let mut count = 1;
    while !taken.insert(name.to_ascii_lowercase()) {
        count += 1;
        name = format!("{collection} ({count})");
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_differ_in_case_alone_get_names_of_their_own() {
        let mut taken = BTreeSet::new();
        assert_eq!(table_name("a.b.cd", &mut taken), "\"a.b.cd\"");
        assert_eq!(table_name("a.b.cD", &mut taken), "\"a.b.cD (2)\"");
        assert_eq!(table_name("a.b.CD", &mut taken), "\"a.b.CD (3)\"");
    }
}
