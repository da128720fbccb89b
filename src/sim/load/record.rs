//! Records as people's clients write them: likes, follows, posts, reposts and a profile, with the sizes, key
//! shapes and field orders of the real ones.

use crate::repo::cbor::encode;
use crate::types::{Cid, Rev, Timestamp};

use super::super::world::Rng;

/// Of a thousand new records, so many are of each collection; the rest are posts.
const LIKES: u64 = 630;
const FOLLOWS: u64 = 140;
const REPOSTS: u64 = 90;

/// What posts are made of. The first are drawn most, as in any language.
const WORDS: [&str; 64] = [
    "the",
    "to",
    "a",
    "and",
    "of",
    "is",
    "in",
    "it",
    "that",
    "for",
    "you",
    "this",
    "on",
    "not",
    "be",
    "with",
    "my",
    "are",
    "so",
    "just",
    "have",
    "but",
    "all",
    "like",
    "what",
    "was",
    "they",
    "one",
    "people",
    "about",
    "if",
    "at",
    "when",
    "good",
    "time",
    "can",
    "from",
    "more",
    "up",
    "there",
    "really",
    "think",
    "new",
    "today",
    "how",
    "your",
    "who",
    "by",
    "would",
    "never",
    "see",
    "make",
    "morning",
    "because",
    "know",
    "always",
    "finally",
    "pictures",
    "server",
    "weekend",
    "someone",
    "coffee",
    "beautiful",
    "nevertheless",
];

/// A record: its path and its bytes.
pub type Record = (String, Vec<u8>);

/// The next record that an account writes at this time; the time makes its key.
#[must_use]
pub fn next_record(rng: &mut Rng, now: Timestamp) -> Record {
    let key = Rev::from_time(now, (rng.next() & 31) as u16);
    let draw = rng.below(1000);
    let (collection, bytes) = if draw < LIKES {
        ("app.bsky.feed.like", subject("app.bsky.feed.like", rng, now))
    } else if draw < LIKES + FOLLOWS {
        ("app.bsky.graph.follow", follow(rng, now))
    } else if draw < LIKES + FOLLOWS + REPOSTS {
        ("app.bsky.feed.repost", subject("app.bsky.feed.repost", rng, now))
    } else {
        ("app.bsky.feed.post", post(rng, now))
    };
    (format!("{collection}/{key}"), bytes)
}

/// The account's profile, with a picture if it has one.
#[must_use]
pub fn profile(rng: &mut Rng, now: Timestamp, avatar: Option<(&Cid, u64)>) -> Record {
    let mut out = Vec::with_capacity(384);
    encode::map(&mut out, if avatar.is_some() { 5 } else { 4 });
    encode::text(&mut out, "$type");
    encode::text(&mut out, "app.bsky.actor.profile");
    if let Some((cid, size)) = avatar {
        encode::text(&mut out, "avatar");
        encode::map(&mut out, 4);
        encode::text(&mut out, "ref");
        encode::link(&mut out, cid);
        encode::text(&mut out, "size");
        encode::integer(&mut out, i64::try_from(size).unwrap_or(i64::MAX));
        encode::text(&mut out, "$type");
        encode::text(&mut out, "blob");
        encode::text(&mut out, "mimeType");
        encode::text(&mut out, "image/jpeg");
    }
    encode::text(&mut out, "createdAt");
    encode::text(&mut out, &now.to_string());
    encode::text(&mut out, "description");
    encode::text(&mut out, &sentence(rng, 12));
    encode::text(&mut out, "displayName");
    encode::text(&mut out, &sentence(rng, 2));
    ("app.bsky.actor.profile/self".to_owned(), out)
}

/// A like or a repost: both point at somebody's post.
fn subject(kind: &str, rng: &mut Rng, now: Timestamp) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    encode::map(&mut out, 3);
    encode::text(&mut out, "$type");
    encode::text(&mut out, kind);
    encode::text(&mut out, "subject");
    reference(&mut out, rng, now);
    encode::text(&mut out, "createdAt");
    encode::text(&mut out, &now.to_string());
    out
}

fn follow(rng: &mut Rng, now: Timestamp) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    encode::map(&mut out, 3);
    encode::text(&mut out, "$type");
    encode::text(&mut out, "app.bsky.graph.follow");
    encode::text(&mut out, "subject");
    encode::text(&mut out, &somebody(rng));
    encode::text(&mut out, "createdAt");
    encode::text(&mut out, &now.to_string());
    out
}

/// A post; two of five are answers.
fn post(rng: &mut Rng, now: Timestamp) -> Vec<u8> {
    let answer = rng.chance(400);
    let mut out = Vec::with_capacity(512);
    encode::map(&mut out, if answer { 5 } else { 4 });
    encode::text(&mut out, "text");
    let words = 3 + rng.below(38);
    encode::text(&mut out, &sentence(rng, words));
    encode::text(&mut out, "$type");
    encode::text(&mut out, "app.bsky.feed.post");
    encode::text(&mut out, "langs");
    encode::array(&mut out, 1);
    encode::text(&mut out, "en");
    if answer {
        encode::text(&mut out, "reply");
        encode::map(&mut out, 2);
        encode::text(&mut out, "root");
        reference(&mut out, rng, now);
        encode::text(&mut out, "parent");
        reference(&mut out, rng, now);
    }
    encode::text(&mut out, "createdAt");
    encode::text(&mut out, &now.to_string());
    out
}

/// A strong reference: `{cid, uri}`, both texts.
fn reference(out: &mut Vec<u8>, rng: &mut Rng, now: Timestamp) {
    let mut digest = [0; 32];
    for part in digest.chunks_exact_mut(8) {
        part.copy_from_slice(&rng.next().to_be_bytes());
    }
    let earlier = Timestamp::from_micros(now.micros() - rng.below(1 << 40));
    let key = Rev::from_time(earlier, (rng.next() & 31) as u16);
    encode::map(out, 2);
    encode::text(out, "cid");
    encode::text(out, &Cid::dag_cbor(digest).to_string());
    encode::text(out, "uri");
    encode::text(out, &format!("at://{}/app.bsky.feed.post/{key}", somebody(rng)));
}

/// Some account of the network: a few are mentioned much, as they are.
fn somebody(rng: &mut Rng) -> String {
    let bits = if rng.chance(300) {
        rng.below(2000)
    } else {
        rng.next() >> 40
    };
    let mut of = Rng::new(bits, "somebody");
    let letters = (0..24).map(|_| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[of.index(32)]));
    format!("did:plc:{}", letters.collect::<String>())
}

fn sentence(rng: &mut Rng, words: u64) -> String {
    let mut out = String::with_capacity(words as usize * 6);
    for number in 0..words {
        if number > 0 {
            out.push(' ');
        }
        // The smaller of two draws: the first words come most.
        let at = rng.index(WORDS.len()).min(rng.index(WORDS.len()));
        out.push_str(WORDS[at]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::cbor::check_canonical;
    use crate::sim::world::START;
    use crate::types::RepoPath;

    #[test]
    fn records_are_strict_of_usual_sizes_and_the_same_for_a_seed() {
        let (mut rng, mut again) = (Rng::new(7, "records"), Rng::new(7, "records"));
        let mut sizes = Vec::new();
        for number in 0..2000 {
            let now = Timestamp::from_micros(START.micros() + number);
            let (path, bytes) = next_record(&mut rng, now);
            path.parse::<RepoPath>().expect("a path");
            check_canonical(&bytes).expect("strict DAG-CBOR");
            assert_eq!((path, bytes.clone()), next_record(&mut again, now));
            sizes.push(bytes.len());
        }
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        // Real frames carry 265 bytes of record on average.
        assert!((200..330).contains(&mean), "{mean}");
        let cid = Cid::of_blob(b"picture");
        check_canonical(&profile(&mut rng, START, Some((&cid, 7))).1).expect("strict");
        check_canonical(&profile(&mut rng, START, None).1).expect("strict");
    }
}
