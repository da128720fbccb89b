//! Turns, one after the other, on a clock that is only a number.

use super::*;

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

fn at(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn advice(headers: &[(&str, &'static str)]) -> Advice {
    let find = |name: &str| {
        headers
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    };
    Advice::read(find, NOW)
}

/// How many turns there are at once.
fn turns(pace: &mut Pace, now: Timestamp) -> usize {
    (0..10_000)
        .take_while(|_| pace.turn(now) == Ok(Duration::ZERO))
        .count()
}

#[test]
fn a_budget_is_spent_at_once_and_comes_back_bit_by_bit() {
    let mut pace = Pace::new(10);
    // Thirty seconds' worth and the one that is due.
    assert_eq!(turns(&mut pace, NOW), 301);
    // The turns of the next two seconds are given out; the one after them is told to come back.
    let mut given = 0;
    let late = loop {
        match pace.turn(NOW) {
            Ok(wait) => given += u32::from(wait <= WAIT_MAX),
            Err(wait) => break wait,
        }
    };
    assert_eq!(given, 19);
    assert_eq!(late, Duration::from_millis(2100));
    assert_eq!(pace.turn(NOW), Err(late), "what was refused takes nothing");
    assert_eq!(turns(&mut pace, at(3)), 9 + 1);
    assert_eq!(turns(&mut pace, at(3600)), 301);
    assert_eq!(turns(&mut Pace::new(0), NOW), 10_000);
}

#[test]
fn what_a_host_asks_for_is_kept() {
    let wait_after = |status, headers: &[(&str, &'static str)]| {
        let mut pace = Pace::new(0);
        pace.heard(status, &advice(headers), NOW);
        pace.turn(NOW).expect_err("paused")
    };
    assert_eq!(wait_after(429, &[("retry-after", "30")]), secs(30));
    assert_eq!(wait_after(503, &[("retry-after", "30")]), secs(30));
    assert_eq!(wait_after(429, &[("ratelimit-reset", "40")]), secs(40));
    assert_eq!(wait_after(429, &[("ratelimit-reset", "1800000050")]), secs(50));
    assert_eq!(wait_after(429, &[("ratelimit-policy", "3000;w=300")]), secs(300));
    assert_eq!(wait_after(429, &[]), PAUSE);
    assert_eq!(
        wait_after(429, &[("retry-after", "soon"), ("ratelimit-reset", "x")]),
        PAUSE
    );
    // An hour at most, whatever it says.
    assert_eq!(wait_after(503, &[("retry-after", "99999999")]), PAUSE_MAX);
    // A good answer, the last one for now.
    let last = [("ratelimit-remaining", "0"), ("ratelimit-reset", "20")];
    assert_eq!(wait_after(200, &last), secs(20));
    let last = [
        ("ratelimit-remaining", "0"),
        ("ratelimit-policy", " 100 ; w=60, 5;w=1"),
    ];
    assert_eq!(wait_after(404, &last), secs(60));

    // What says nothing of the kind pauses nothing.
    let mut pace = Pace::new(0);
    for (status, headers) in [
        (503, vec![]),
        (200, vec![("retry-after", "30")]),
        (500, vec![("ratelimit-reset", "30")]),
        (200, vec![("ratelimit-remaining", "0")]),
        (
            200,
            vec![("ratelimit-remaining", "-1"), ("ratelimit-reset", "30")],
        ),
    ] {
        pace.heard(status, &advice(&headers), NOW);
        assert_eq!(pace.turn(NOW), Ok(Duration::ZERO), "{status} {headers:?}");
    }
    // A pause ends; a shorter one does not cut a longer one short.
    pace.heard(429, &advice(&[("retry-after", "30")]), NOW);
    pace.heard(429, &advice(&[("retry-after", "5")]), NOW);
    assert_eq!(pace.turn(at(10)), Err(secs(20)));
    assert_eq!(pace.turn(at(29)), Ok(secs(1)));
    assert_eq!(pace.turn(at(31)), Ok(Duration::ZERO));
}

#[test]
fn the_rest_of_what_a_host_allows_is_spread() {
    let said = |limit, remaining| {
        advice(&[
            ("ratelimit-limit", limit),
            ("ratelimit-remaining", remaining),
            ("ratelimit-reset", "100"),
        ])
    };
    let mut pace = Pace::new(0);
    pace.heard(200, &said("3000", "301"), NOW);
    assert_eq!(turns(&mut pace, NOW), 10_000);
    pace.heard(200, &said("3000", "99"), NOW);
    assert_eq!(pace.turn(NOW), Ok(Duration::ZERO));
    // One a second from here, whatever comes of another limit that is far away.
    pace.heard(200, &said("6000", "5000"), NOW);
    assert_eq!(pace.turn(NOW), Ok(secs(1)));
    assert_eq!(pace.turn(NOW), Ok(secs(2)));
    assert_eq!(pace.turn(NOW), Err(secs(3)));
    // Tighter, and loose again with the next window.
    pace.heard(200, &said("3000", "9"), at(3));
    assert_eq!(turns(&mut pace, at(3)), 1);
    assert_eq!(pace.turn(at(3)), Err(secs(10)));
    pace.heard(200, &said("3000", "2999"), at(4));
    assert_eq!(turns(&mut pace, at(4)), 10_000);
    pace.heard(200, &said("3000", "9"), at(5));
    assert_eq!(turns(&mut pace, at(106)), 10_000, "the window is over");
}

#[test]
fn a_clock_that_is_set_back_does_not_stop_anything() {
    let mut pace = Pace::new(1);
    assert_eq!(turns(&mut pace, at(100_000)), 31);
    pace.heard(429, &advice(&[("retry-after", "3600")]), at(100_000));
    assert_eq!(pace.turn(at(100_000)), Err(PAUSE_MAX));
    assert_eq!(pace.turn(NOW), Ok(Duration::ZERO));
}

#[test]
fn paces_and_keys_are_each_hosts_own() {
    let key = BypassKey::parse("s3cret\n").expect("a key");
    let hosts = [("a.test".to_owned(), Some(key)), ("b.test:8443".to_owned(), None)];
    let pacing = Pacing::new(1, hosts);
    let none = |_: &str| None;
    pacing.heard("a.test", 429, none, NOW);
    assert_eq!(pacing.turn("a.test", NOW), Err(PAUSE));
    assert_eq!(pacing.turn("b.test:8443", NOW), Ok(Duration::ZERO));
    // The directory, or where a redirect leads to.
    pacing.heard("c.test", 429, none, NOW);
    assert_eq!(pacing.turn("c.test", NOW), Ok(Duration::ZERO));
    assert_eq!(pacing.bypass_key("a.test").map(BypassKey::secret), Some("s3cret"));
    for other in ["b.test:8443", "c.test", "a.test:8443", "x.a.test", ""] {
        assert_eq!(pacing.bypass_key(other), None, "{other}");
    }
    assert!(!format!("{pacing:?}").contains("s3cret"));
}

#[test]
fn keys_are_one_line_of_visible_characters() {
    assert!(BypassKey::parse(" abc-DEF_123 \n").is_ok());
    for bad in ["", " \n", "a b", "a\nb", "a\u{0}", "schlüssel"] {
        assert!(BypassKey::parse(bad).is_err(), "{bad:?}");
    }
    assert!(BypassKey::parse(&"x".repeat(KEY_BYTES_MAX)).is_ok());
    assert!(BypassKey::parse(&"x".repeat(KEY_BYTES_MAX + 1)).is_err());
}
