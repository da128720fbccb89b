//! What is asked for: an account, a collection or a record, and a moment.

use crate::archive::timeline::At;
use crate::config::parse_duration;
use crate::repo::signing_key::SigningKey;
use crate::types::{Did, Nsid, RepoPath, Rev, Timestamp};

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The account.
    pub did: Did,
    /// Which part of it.
    pub part: Part,
}

/// Which part of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Account,
    /// A collection.
    Collection(String),
    /// A record.
    Record(RepoPath),
}

impl Subject {
    /// Reads `did:…`, `did:…/collection` or `did:…/collection/rkey`, with or without `at://` before it.
    ///
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix("at://").unwrap_or(text);
        let (did, part) = match bare.trim_end_matches('/').split_once('/') {
            None => (bare.trim_end_matches('/'), Part::Account),
            Some((did, rest)) if rest.contains('/') => {
                let path = rest.parse::<RepoPath>();
                (
                    did,
                    Part::Record(path.map_err(|error| format!("{text:?}: {error}"))?),
                )
            }
            Some((did, collection)) => {
                let nsid = collection.parse::<Nsid>();
                let nsid = nsid.map_err(|error| format!("{text:?}: the collection is {error}"))?;
                (did, Part::Collection(nsid.as_str().to_owned()))
            }
        };
        if !did.starts_with("did:") {
            return Err(format!(
                "{text:?} does not begin with a DID; an archive is searched by DIDs, such as \
                 did:plc:ewvi7nxzyoun6zhxrhs64oiz (handles change hands)"
            ));
        }
        let did = did.parse().map_err(|error| format!("{text:?}: {error}"))?;
        Ok(Self { did, part })
    }
}

/// Reads a moment: a time, a date, how long ago, or a rev. None: the newest.
///
/// # Errors
/// What to write.
pub fn parse_at(text: Option<&str>, as_received: bool, now: Timestamp) -> Result<At, String> {
    let at = |time| {
        if as_received {
            At::Received(time)
        } else {
            At::Time(time)
        }
    };
    let Some(text) = text else {
        return Ok(At::Newest);
    };
    if let Ok(rev) = text.parse::<Rev>() {
        return Ok(At::Rev(rev));
    }
    if let Some(ago) = parse_duration(text) {
        return Ok(at(now.minus(ago)));
    }
    let is_date = text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    let time = match is_date {
        true => format!("{text}T00:00:00Z").parse(),
        false => text.parse(),
    };
    time.map(at).map_err(|_| {
        format!(
            "{text:?} is no moment; write a time (2026-01-02T03:04:05Z, or with an offset), a date (its first \
             moment in UTC), how long ago (90s, 30m, 2h, 7d), or a rev (13 characters)"
        )
    })
}

/// Reads the keys that a commit may be signed with.
///
/// # Errors
/// Which is none.
pub fn parse_keys(texts: &[String]) -> Result<Vec<SigningKey>, String> {
    let keys = texts
        .iter()
        .map(|text| SigningKey::from_did_key(text).map_err(|error| format!("--key {text:?}: {error}")));
    keys.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DID: &str = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";

    #[test]
    fn subjects() {
        let part = |text: &str| Subject::parse(text).expect("a subject").part;
        for text in [DID, &format!("at://{DID}"), &format!("at://{DID}/")] {
            assert_eq!(part(text), Part::Account, "{text}");
        }
        let collection = Part::Collection("app.bsky.feed.post".to_owned());
        assert_eq!(part(&format!("{DID}/app.bsky.feed.post")), collection);
        assert_eq!(part(&format!("at://{DID}/app.bsky.feed.post/")), collection);
        let record = "app.bsky.feed.post/3kabcdefghi2j".parse().expect("a path");
        assert_eq!(
            part(&format!("at://{DID}/app.bsky.feed.post/3kabcdefghi2j")),
            Part::Record(record)
        );
        for (text, what) in [
            ("alice.example.com", "handles"),
            ("at://alice.example.com/app.bsky.feed.post/x", "handles"),
            ("did:plc", "DID"),
            (&format!("{DID}/../x/y"), "not a valid"),
            (&format!("{DID}/app.bsky.feed.post/.."), "not a valid"),
            (&format!("{DID}/nonsense"), "collection"),
            ("", "handles"),
        ] {
            let error = Subject::parse(text).expect_err(text);
            assert!(
                error.to_lowercase().contains(&what.to_lowercase()),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn moments() {
        let now: Timestamp = "2026-01-02T12:00:00Z".parse().expect("a time");
        let at = |text: &str| parse_at(Some(text), false, now).expect("a moment");
        let time = |text: &str| At::Time(text.parse().expect("a time"));
        assert_eq!(parse_at(None, true, now), Ok(At::Newest));
        assert_eq!(at("2026-01-02T03:04:05.5+01:00"), time("2026-01-02T02:04:05.5Z"));
        assert_eq!(at("2026-01-02"), time("2026-01-02T00:00:00Z"));
        assert_eq!(at("2h"), time("2026-01-02T10:00:00Z"));
        assert_eq!(
            at("3k2yihcrp6f2c"),
            At::Rev("3k2yihcrp6f2c".parse().expect("a rev"))
        );
        let received = parse_at(Some("1d"), true, now);
        assert_eq!(
            received,
            Ok(At::Received("2026-01-01T12:00:00Z".parse().expect("a time")))
        );
        for text in ["yesterday", "2026-13-01", "", "3k2yihcrp6f2", "2026-01-02 03:04"] {
            assert!(parse_at(Some(text), false, now).is_err(), "{text}");
        }
    }
}
