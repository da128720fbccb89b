//! Operations that a person asks for: one that undoes others, or changes what the identity says; and what changes by
//! an operation, line by line.

use serde_json::{Map, Value, json};

use super::{Draft, ROTATION_KEYS_MAX};
use crate::identity::document::PDS_SERVICE_TYPE;
use crate::identity::plc_log::{PlcEntry, PlcLog, RECOVERY_WINDOW, difference};
use crate::repo::signing_key::{SecretKey, SigningKey};
use crate::restore::secret::UserSecret;
use crate::types::Timestamp;

/// An operation that makes others void, which nobody has signed.
pub struct Undo<'a> {
    /// The operation: it says again what the one before them said.
    pub draft: Draft,
    /// The key that may sign it.
    pub key: SecretKey,
    /// Those that it makes void, oldest first.
    pub undone: Vec<&'a PlcEntry>,
    /// Until when the directory takes it.
    pub until: Timestamp,
}

/// The operation that undoes the one with this CID and all that followed; without one, the only one that this key can
/// undo.
///
/// # Errors
/// Why there is none, or which it may be.
pub fn undo<'a>(
    log: &'a PlcLog,
    cid: Option<&str>,
    secret: &UserSecret,
    now: Timestamp,
) -> Result<Undo<'a>, String> {
    let standing: Vec<&PlcEntry> = log.standing().collect();
    let publics: Vec<String> = secret
        .keys()
        .iter()
        .map(|key| key.public().to_did_key())
        .collect();
    let may = |entry: &PlcEntry| log.stronger(entry, now).iter().any(|key| publics.contains(key));
    let place = match cid {
        Some(cid) => {
            let place = standing.iter().position(|entry| entry.cid.to_string() == cid);
            let place = place.ok_or_else(|| {
                match log.entries().iter().any(|entry| entry.cid.to_string() == cid) {
                    true => format!("{cid} was undone already"),
                    false => format!(
                        "the log has no operation {cid}; see `firekeep plc log {}`",
                        log.did()
                    ),
                }
            })?;
            if !may(standing[place]) {
                return Err(why_not(log, standing[place], now));
            }
            place
        }
        None => {
            let all: Vec<usize> = (0..standing.len())
                .filter(|place| may(standing[*place]))
                .collect();
            match all[..] {
                [place] => place,
                [] => return Err(why_not(log, log.last(), now)),
                _ => {
                    let list = all.iter().map(|place| {
                        let entry = standing[*place];
                        format!("\n  {} of {}", entry.cid, entry.created_at)
                    });
                    return Err(format!(
                        "this key can undo several operations; say with --cid which is the first to go (all that \
                         followed it go with it):{}",
                        list.collect::<String>()
                    ));
                }
            }
        }
    };
    let before = standing[place - 1];
    let draft = Draft::after_entry(before).map_err(|error| error.to_string())?;
    let listed = before.state.as_ref().map(|state| &state.rotation_keys[..]);
    // The strongest of what the key may be: digits are of either curve.
    let key = listed.unwrap_or_default().iter().find_map(|listed| {
        secret
            .keys()
            .into_iter()
            .find(|key| key.public().to_did_key() == *listed)
    });
    Ok(Undo {
        draft,
        key: key.expect("it is among them, as was just seen"),
        undone: standing[place..].to_vec(),
        until: standing[place].created_at.plus(RECOVERY_WINDOW),
    })
}

/// Why a key cannot undo an operation.
fn why_not(log: &PlcLog, entry: &PlcEntry, now: Timestamp) -> String {
    let (cid, time) = (entry.cid, entry.created_at);
    if log.entries().first().is_some_and(|first| first.cid == entry.cid) {
        return format!("{cid} is the first operation, which nothing undoes");
    }
    if now.since(time) >= RECOVERY_WINDOW {
        return format!("{cid} is of {time}: more than 72 hours ago, so nobody can undo it any more");
    }
    match log.stronger(entry, now) {
        [] => format!("{cid} was signed by the strongest rotation key of then, so no key can undo it"),
        keys => format!(
            "this key cannot undo {cid} of {time}: only a key that stood above its signer's can, which are: {}",
            keys.join(", ")
        ),
    }
}

/// What a person wants changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Rotation keys to put above all others, the first one highest.
    pub add_keys: Vec<String>,
    /// Rotation keys to give up.
    pub drop_keys: Vec<String>,
    /// Another signing key.
    pub signing_key: Option<SigningKey>,
    /// Another handle.
    pub handle: Option<String>,
    /// Another PDS, by its origin.
    pub pds: Option<String>,
}

impl Draft {
    /// With what is wanted, and nothing else changed.
    ///
    /// # Errors
    /// When it cannot be, or changes nothing.
    pub fn with(mut self, wanted: &Wanted) -> Result<Self, String> {
        let before = self.clone();
        let mut keys = self.rotation_keys();
        for key in &wanted.drop_keys {
            if !keys.contains(key) {
                return Err(format!(
                    "{key} is no rotation key of this identity, which are: {}",
                    keys.join(", ")
                ));
            }
            keys.retain(|kept| kept != key);
        }
        keys.retain(|kept| !wanted.add_keys.contains(kept));
        let mut all: Vec<String> = Vec::new();
        for key in wanted.add_keys.iter().chain(&keys) {
            if !all.contains(key) {
                all.push(key.clone());
            }
        }
        if all.is_empty() {
            return Err(
                "no rotation key would be left: nobody could ever change the identity again".to_owned(),
            );
        }
        if all.len() > ROTATION_KEYS_MAX {
            return Err(format!(
                "there would be {} rotation keys, and at most {ROTATION_KEYS_MAX} are allowed; name one to give up \
                 with --drop-rotation-key, out of: {}",
                all.len(),
                keys.join(", ")
            ));
        }
        self.0.insert("rotationKeys".to_owned(), json!(all));
        if let Some(key) = &wanted.signing_key {
            self = self.with_signing_key(key);
        }
        if let Some(pds) = &wanted.pds {
            let service = json!({ "type": PDS_SERVICE_TYPE, "endpoint": pds });
            self.object("services").insert("atproto_pds".to_owned(), service);
        }
        if let Some(handle) = &wanted.handle {
            let names = self.0.get("alsoKnownAs").and_then(Value::as_array);
            let mut names = names.cloned().unwrap_or_default();
            let is_handle = |name: &Value| name.as_str().is_some_and(|name| name.starts_with("at://"));
            match names.iter().position(is_handle) {
                Some(place) => names[place] = format!("at://{handle}").into(),
                None => names.insert(0, format!("at://{handle}").into()),
            }
            self.0.insert("alsoKnownAs".to_owned(), names.into());
        }
        if self == before {
            return Err("the identity says all that already".to_owned());
        }
        Ok(self)
    }

    /// What it changes of what the identity says now: a line each, what goes with `-` and what comes with `+`.
    #[must_use]
    pub fn difference(&self, log: &PlcLog) -> Vec<String> {
        let before = Self::after(log).map(|draft| draft.0).unwrap_or_default();
        difference(&before, &self.0)
    }

    /// Whether an operation of somebody else, which names the same one before it, says the same as this one.
    ///
    /// # Errors
    /// In which line it does not.
    pub fn check_same(&self, operation: &Map<String, Value>) -> Result<(), String> {
        let mut theirs = operation.clone();
        theirs.remove("sig");
        let keys = self.0.keys().chain(theirs.keys());
        match keys.into_iter().find(|key| self.0.get(*key) != theirs.get(*key)) {
            None => Ok(()),
            Some(key) => Err(format!("it has another {key:?} than was asked for")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::plc_log::fixtures::{LogMaker, key, secret};

    const START: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn user(number: u8) -> UserSecret {
        UserSecret::parse(&format!("{number:02x}").repeat(32)).expect("a key")
    }

    fn log(maker: &LogMaker) -> PlcLog {
        PlcLog::parse(&maker.did(), &maker.answer()).expect("verifies")
    }

    /// The user's key 1 above the PDS's key 2, which takes the user's out an hour later, and then moves the account.
    fn stolen() -> LogMaker {
        let mut maker = LogMaker::new(START);
        maker.push(LogMaker::operation(&[1, 2], &key(20), "old.test", None), 1);
        maker.later(HOUR);
        let prev = maker.last_cid();
        maker.push(LogMaker::operation(&[2], &key(20), "old.test", Some(&prev)), 2);
        maker.later(HOUR);
        let prev = maker.last_cid();
        maker.push(LogMaker::operation(&[2], &key(21), "evil.test", Some(&prev)), 2);
        maker
    }

    #[test]
    fn a_stronger_key_undoes_what_took_it_out_and_all_after_it() {
        let mut maker = stolen();
        let now = START.plus(HOUR * 3);
        let before = log(&maker);
        let undo = undo(&before, None, &user(1), now).expect("it may");
        assert_eq!(undo.undone.len(), 2);
        assert_eq!(undo.until, START.plus(HOUR * 73));
        assert_eq!(
            undo.draft.difference(&before),
            [
                format!("- rotation key 1  {}", key(2)),
                format!("- verification method atproto  {}", key(21)),
                "- service atproto_pds  https://evil.test".to_owned(),
                format!("+ rotation key 1  {}", key(1)),
                format!("+ rotation key 2  {}", key(2)),
                format!("+ verification method atproto  {}", key(20)),
                "+ service atproto_pds  https://old.test".to_owned(),
            ]
        );
        let signed = undo.draft.sign(&undo.key).expect("signs");
        maker.later(HOUR);
        maker.push_signed(Value::Object(signed.json));
        for entry in &mut maker.entries[1..3] {
            entry["nullified"] = true.into();
        }
        let state = log(&maker).current().cloned().expect("stands");
        assert_eq!(state.rotation_keys, [key(1), key(2)]);
        assert_eq!(state.pds.as_deref(), Some("https://old.test"));
    }

    #[test]
    fn what_cannot_be_undone_is_said_with_the_reason() {
        let maker = stolen();
        let log = log(&maker);
        let now = START.plus(HOUR * 3);
        let cid = |place| maker.cid(place);
        let error = |cid: Option<&str>, key, now| match undo(&log, cid, &user(key), now) {
            Ok(_) => panic!("undone"),
            Err(error) => error,
        };
        // The PDS's own key is no stronger than itself.
        assert!(
            error(Some(&cid(1)), 2, now).contains(&key(1)),
            "who could is named"
        );
        assert!(error(None, 9, now).contains("strongest rotation key"));
        assert!(error(Some(&cid(0)), 1, now).contains("the first operation"));
        assert!(error(Some("bafy"), 1, now).contains("has no operation bafy"));
        assert!(error(Some(&cid(1)), 1, START.plus(HOUR * 73)).contains("more than 72 hours"));
        assert!(error(None, 1, START.plus(HOUR * 100)).contains("more than 72 hours"));
        assert_eq!(log.stronger(&log.entries()[1], now), [key(1)]);
        assert!(log.stronger(&log.entries()[1], START.plus(HOUR * 73)).is_empty());
        assert!(log.stronger(&log.entries()[2], now).is_empty());
    }

    #[test]
    fn of_several_one_has_to_be_named() {
        let mut maker = LogMaker::new(START);
        maker.push(LogMaker::operation(&[1, 2], &key(20), "a.test", None), 1);
        for host in ["b.test", "c.test"] {
            let prev = maker.last_cid();
            maker.push(LogMaker::operation(&[1, 2], &key(20), host, Some(&prev)), 2);
        }
        let log = log(&maker);
        let Err(error) = undo(&log, None, &user(1), START) else {
            panic!("one of two was chosen")
        };
        assert!(
            error.contains(&maker.cid(1)) && error.contains(&maker.cid(2)),
            "{error}"
        );
        let last = undo(&log, Some(&maker.cid(2)), &user(1), START).expect("it may");
        assert_eq!((last.undone.len(), last.undone[0].cid), (1, log.last().cid));
        // One that was undone is not undone again.
        let signed = last.draft.sign(&last.key).expect("signs");
        maker.push_signed(Value::Object(signed.json));
        maker.entries[2]["nullified"] = true.into();
        let log = PlcLog::parse(&maker.did(), &maker.answer()).expect("verifies");
        let Err(error) = undo(&log, Some(&maker.cid(2)), &user(1), START) else {
            panic!("undone twice")
        };
        assert!(error.contains("already"), "{error}");
    }

    #[test]
    fn a_change_changes_what_is_wanted_and_no_more() {
        let mut maker = LogMaker::new(START);
        let mut first = LogMaker::operation(&[1, 2], &key(20), "a.test", None);
        first["alsoKnownAs"] = json!(["https://me.test", "at://a.test"]);
        maker.push(first, 1);
        let log = log(&maker);
        let draft = Draft::after(&log).expect("follows");
        let wanted = Wanted {
            add_keys: vec![key(3), key(2)],
            drop_keys: vec![key(1)],
            signing_key: Some(secret(9).public()),
            handle: Some("b.test".to_owned()),
            pds: Some("https://b.test".to_owned()),
        };
        let changed = draft.clone().with(&wanted).expect("changes");
        assert_eq!(changed.rotation_keys(), [key(3), key(2)]);
        assert_eq!(
            changed.0["alsoKnownAs"],
            json!(["https://me.test", "at://b.test"])
        );
        assert_eq!(
            changed.difference(&log).len(),
            8,
            "{:?}",
            changed.difference(&log)
        );
        assert_eq!(changed.check_same(&changed.0), Ok(()));
        assert!(draft.check_same(&changed.0).is_err());
        maker.push_signed(Value::Object(changed.sign(&secret(1)).expect("signs").json));
        let state = self::log(&maker).current().cloned().expect("stands");
        assert_eq!(
            (state.pds.as_deref(), state.handle.as_deref()),
            (Some("https://b.test"), Some("b.test"))
        );
        let error = |wanted: Wanted| draft.clone().with(&wanted).expect_err("refused");
        let keys = |add: &[u8], drop: &[u8]| Wanted {
            add_keys: add.iter().map(|number| key(*number)).collect(),
            drop_keys: drop.iter().map(|number| key(*number)).collect(),
            ..Wanted::default()
        };
        assert!(error(keys(&[], &[1, 2])).contains("no rotation key would be left"));
        assert!(error(keys(&[3, 4, 5, 6], &[])).contains("at most 5"));
        assert!(error(keys(&[], &[7])).contains("no rotation key of this identity"));
        assert!(error(keys(&[1], &[])).contains("already"));
        assert!(error(Wanted::default()).contains("already"));
    }
}
