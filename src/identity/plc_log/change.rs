//! What an operation changed, who can still undo it, and which changes a person should look at.

use serde_json::{Map, Value};

use super::{PlcEntry, PlcLog, RECOVERY_WINDOW};
use crate::types::{Cid, Timestamp};

/// Operations that one message tells of.
const TOLD_MAX: usize = 4;
/// Longest line of it, in characters: what stands in an operation is anybody's.
const LINE_CHARS_MAX: usize = 200;

impl PlcLog {
    /// The operation before this one, if both stand.
    fn before(&self, entry: &PlcEntry) -> Option<&PlcEntry> {
        let mut pairs = self.standing().zip(self.standing().skip(1));
        pairs
            .find(|(_, next)| next.cid == entry.cid)
            .map(|(before, _)| before)
    }

    /// Who can still undo an operation that stands: the keys above its signer's. Empty: nobody, for the strongest key
    /// signed it, it is the first, or it is too old.
    #[must_use]
    pub fn stronger(&self, entry: &PlcEntry, now: Timestamp) -> &[String] {
        match self.before(entry).and_then(|before| before.state.as_ref()) {
            Some(state) if now.since(entry.created_at) < RECOVERY_WINDOW => {
                &state.rotation_keys[..entry.signer.min(state.rotation_keys.len())]
            }
            _ => &[],
        }
    }

    /// What an operation that stands changed, a line each; of the first, all that it says.
    #[must_use]
    pub fn changes(&self, entry: &PlcEntry) -> Vec<String> {
        let before = self.before(entry).map(|before| &before.operation);
        let nothing = Map::new();
        difference(before.unwrap_or(&nothing), &entry.operation)
    }

    /// The operations of the last 72 hours that stand, without the first of the log.
    pub fn recent(&self, now: Timestamp) -> impl Iterator<Item = &PlcEntry> {
        let recent = move |entry: &&PlcEntry| now.since(entry.created_at) < RECOVERY_WINDOW;
        self.standing().skip(1).filter(recent)
    }

    /// One operation that stands, for a person: when, what it changed, and who can undo it for how long.
    #[must_use]
    pub fn told(&self, entry: &PlcEntry, now: Timestamp) -> String {
        let mut text = format!("operation {} of {}", entry.cid, entry.created_at);
        for line in self.changes(entry) {
            let line: String = line
                .chars()
                .filter(|c| !c.is_control())
                .take(LINE_CHARS_MAX)
                .collect();
            text.push_str(&format!("\n  {line}"));
        }
        let left = RECOVERY_WINDOW.saturating_sub(now.since(entry.created_at));
        let hours = left.as_secs().div_ceil(3600);
        text.push_str(&match self.stronger(entry, now) {
            [] if hours == 0 => "\n  it is too old to be undone".to_owned(),
            [] => "\n  nobody can undo it: it was signed by the strongest rotation key".to_owned(),
            keys => format!(
                "\n  it can be undone for {hours} h more, until {}, by a holder of {}: firekeep plc undo {}",
                entry.created_at.plus(RECOVERY_WINDOW),
                keys.join(" or "),
                self.did
            ),
        });
        text
    }

    /// What somebody did to the identity since `known` was its last operation that a person should look at: all but
    /// a mere change of names. None: nothing.
    #[must_use]
    pub fn unexpected(&self, known: &Cid, now: Timestamp) -> Option<String> {
        let place = self.entries.iter().position(|entry| entry.cid == *known);
        let Some(place) = place else {
            return Some(format!(
                "the directory's log of {} no longer holds operation {known}, which it had: what it says now was not \
                 built on what it said",
                self.did
            ));
        };
        let new = &self.entries[place + 1..];
        let known_undone = self.entries[place].nullified;
        let undone = new.iter().filter(|entry| entry.nullified).count() + usize::from(known_undone);
        let standing: Vec<&PlcEntry> = new.iter().filter(|entry| !entry.nullified).collect();
        let serious = |entry: &&&PlcEntry| {
            known_undone
                || self
                    .changes(entry)
                    .iter()
                    .any(|line| !line[2..].starts_with("name "))
        };
        let told: Vec<String> = standing
            .iter()
            .filter(serious)
            .map(|entry| self.told(entry, now))
            .collect();
        if told.is_empty() && undone == 0 {
            return None;
        }
        let mut text = format!("the identity of {} was changed", self.did);
        if undone > 0 {
            text.push_str(&format!("; {undone} operations were undone by a stronger key"));
        }
        for one in told.iter().take(TOLD_MAX) {
            text.push_str(&format!("\n  {one}"));
        }
        if told.len() > TOLD_MAX {
            text.push_str(&format!(
                "\n  and {} more: see firekeep plc log {}",
                told.len() - TOLD_MAX,
                self.did
            ));
        }
        Some(text)
    }
}

/// What differs between two operations: a line each, what went with `-` and what came with `+`.
#[must_use]
pub fn difference(before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<String> {
    let (before, after) = (lines(before), lines(after));
    let gone = before.iter().filter(|line| !after.contains(line));
    let come = after.iter().filter(|line| !before.contains(line));
    gone.map(|line| format!("- {line}"))
        .chain(come.map(|line| format!("+ {line}")))
        .collect()
}

/// What an operation says, line by line.
fn lines(operation: &Map<String, Value>) -> Vec<String> {
    let shown = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let list = |key: &str| operation.get(key).and_then(Value::as_array).into_iter().flatten();
    let text = |key: &str| operation.get(key).filter(|value| value.is_string()).map(shown);
    let mut lines = Vec::new();
    match operation.get("type").and_then(Value::as_str) {
        Some("plc_tombstone") => lines.push("the identity is given up (a tombstone)".to_owned()),
        // The form of the first operations.
        Some("create") => {
            let keys = [text("recoveryKey"), text("signingKey")].into_iter().flatten();
            let keys = keys.enumerate();
            lines.extend(keys.map(|(place, key)| format!("rotation key {}  {key}", place + 1)));
            lines.extend(text("signingKey").map(|key| format!("verification method atproto  {key}")));
            lines.extend(text("service").map(|url| format!("service atproto_pds  {url}")));
            lines.extend(text("handle").map(|handle| format!("name  at://{handle}")));
        }
        _ => {}
    }
    for (place, key) in list("rotationKeys").enumerate() {
        lines.push(format!("rotation key {}  {}", place + 1, shown(key)));
    }
    for (what, key) in [
        ("verification method", "verificationMethods"),
        ("service", "services"),
    ] {
        for (name, value) in operation
            .get(key)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let value = value.get("endpoint").unwrap_or(value);
            lines.push(format!("{what} {name}  {}", shown(value)));
        }
    }
    lines.extend(list("alsoKnownAs").map(|name| format!("name  {}", shown(name))));
    lines
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::fixtures::{LogMaker, key};
    use super::*;
    use serde_json::json;

    const START: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn log(maker: &LogMaker) -> PlcLog {
        PlcLog::parse(&maker.did(), &maker.answer()).expect("verifies")
    }

    fn maker() -> LogMaker {
        let mut maker = LogMaker::new(START);
        maker.push(LogMaker::operation(&[1, 2], &key(20), "a.test", None), 1);
        maker.later(HOUR);
        maker
    }

    fn next(maker: &mut LogMaker, keys: &[u8], signing: u8, host: &str, signer: u8) {
        let prev = maker.last_cid();
        maker.push(
            LogMaker::operation(keys, &key(signing), host, Some(&prev)),
            signer,
        );
        maker.later(HOUR);
    }

    #[test]
    fn each_kind_of_change_raises_and_a_new_name_does_not() {
        // A P-256 signature is another each time, and with it the whole log.
        let start = maker();
        let first = log(&start).last().cid;
        let now = START.plus(HOUR * 2);
        let cases: [(&[u8], u8, &str, &str); 4] = [
            (&[2], 20, "a.test", "- rotation key 1"),
            (&[3, 1, 2], 20, "a.test", "+ rotation key 1"),
            (&[1, 2], 21, "a.test", "+ verification method atproto"),
            (&[1, 2], 20, "b.test", "+ service atproto_pds  https://b.test"),
        ];
        for (keys, signing, host, what) in cases {
            let mut maker = start.clone();
            next(&mut maker, keys, signing, host, 2);
            let log = log(&maker);
            let told = log.unexpected(&first, now).expect("it is told");
            assert!(told.contains(what), "{told}");
            assert!(told.contains("for 71 h more") && told.contains(&key(1)), "{told}");
            assert_eq!(
                log.unexpected(&log.last().cid, now),
                None,
                "what is known is not told again"
            );
        }
        let mut named = start.clone();
        let prev = named.last_cid();
        let mut operation = LogMaker::operation(&[1, 2], &key(20), "a.test", Some(&prev));
        operation["alsoKnownAs"] = json!(["at://new.test"]);
        named.push(operation, 2);
        assert_eq!(log(&named).unexpected(&first, now), None);
        let mut gone = start.clone();
        let tombstone = json!({ "type": "plc_tombstone", "prev": gone.last_cid() });
        gone.push(tombstone, 2);
        let told = log(&gone).unexpected(&first, now).expect("it is told");
        assert!(told.contains("given up"), "{told}");
    }

    #[test]
    fn what_was_undone_is_told_and_who_can_undo_depends_on_the_time() {
        let mut maker = maker();
        next(&mut maker, &[2], 20, "evil.test", 2);
        let evil = log(&maker).last().cid;
        let told = |now| log(&maker).told(log(&maker).last(), now);
        assert!(told(START.plus(HOUR * 73)).contains("too old"));
        assert!(told(START.plus(HOUR * 72)).contains("for 1 h more"));
        assert_eq!(log(&maker).recent(START.plus(HOUR * 72)).count(), 1);
        assert_eq!(log(&maker).recent(START.plus(HOUR * 73)).count(), 0);
        let genesis = maker.cid(0);
        maker.push(
            LogMaker::operation(&[1, 2], &key(20), "a.test", Some(&genesis)),
            1,
        );
        maker.entries[1]["nullified"] = true.into();
        let log = log(&maker);
        let text = log.unexpected(&evil, START.plus(HOUR * 3)).expect("it is told");
        assert!(text.contains("1 operations were undone"), "{text}");
        assert!(text.contains("nobody can undo it"), "{text}");
    }

    #[test]
    fn a_log_that_lost_what_it_had_is_told() {
        let other = Cid::of_block(b"another");
        let told = log(&maker()).unexpected(&other, START).expect("it is told");
        assert!(told.contains("no longer holds"), "{told}");
    }

    #[test]
    fn the_oldest_form_reads_as_what_follows_it() {
        let create = json!({
            "type": "create", "signingKey": key(2), "recoveryKey": key(1), "handle": "a.test",
            "service": "https://a.test", "prev": null,
        });
        let Value::Object(create) = create else {
            panic!("a map")
        };
        let Value::Object(mut modern) = LogMaker::operation(&[1, 2], &key(2), "a.test", None) else {
            panic!("a map")
        };
        modern.insert("alsoKnownAs".to_owned(), json!(["at://a.test"]));
        assert_eq!(difference(&create, &modern), Vec::<String>::new());
    }
}
