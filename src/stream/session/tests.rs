//! The table of waits, and the rule of rising numbers.

use super::*;

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);
/// Gives the highest jitter whatever the ceiling: each ceiling of the ladder plus one divides into it evenly.
const LONGEST: u64 = u64::MAX;

fn closed(code: u16) -> Loss {
    Loss::Closed {
        code: Some(code),
        reason: String::new(),
    }
}

fn status(status: u16, retry_after: Option<u64>) -> Loss {
    Loss::HttpStatus {
        status,
        retry_after: retry_after.map(Duration::from_secs),
    }
}

/// The wait after a loss, with the least jitter.
fn shortest(session: &mut Session, loss: &Loss) -> Duration {
    session.lost(loss, NOW, 0).since(NOW)
}

fn failing(times: u32) -> Session {
    let mut session = Session::new();
    for _ in 0..times {
        session.dialing(Some(0));
        session.lost(&Loss::Silent, NOW, 0);
    }
    session
}

#[test]
fn ceilings_double_from_a_second_to_five_minutes() {
    let ceilings: Vec<u64> = (0..11).map(|n| ceiling(n).as_secs()).collect();
    assert_eq!(ceilings, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    assert_eq!(ceiling(u32::MAX), WAIT_MAX);
}

#[test]
fn jitter_covers_the_whole_range_and_no_more() {
    let ceiling = Duration::from_secs(1);
    assert_eq!(jitter(ceiling, 0), Duration::ZERO);
    assert_eq!(jitter(ceiling, 1_000_000), ceiling);
    assert_eq!(jitter(ceiling, 1_000_001), Duration::ZERO);
    assert!(jitter(WAIT_MAX, LONGEST) <= WAIT_MAX);
}

#[test]
fn failures_add_up_until_an_event_comes() {
    let mut session = failing(8);
    assert_eq!(session.failures(), 8);
    session.dialing(Some(10));
    session.connected(NOW);
    assert_eq!(session.failures(), 8, "connecting alone is no progress");
    assert_eq!(session.event(11), Ok(Order::Next));
    assert_eq!(session.failures(), 0);
    let wait = session.lost(&Loss::Silent, NOW, 1_000_000).since(NOW);
    assert_eq!(wait, WAIT_FLOOR + WAIT_FIRST);
}

#[test]
fn the_same_event_again_is_no_progress() {
    let mut session = Session::new();
    for round in 0..5 {
        session.dialing(Some(10));
        session.connected(NOW);
        assert_eq!(session.event(11), Ok(Order::Next));
        session.lost(&Loss::TextFrame, NOW, 0);
        assert_eq!(session.failures(), round + 1);
    }
}

#[test]
fn a_minute_of_quiet_connection_is_progress() {
    for (held, failures) in [(59, 6), (60, 1)] {
        let mut session = failing(5);
        session.dialing(Some(10));
        session.connected(NOW);
        session.lost(&closed(1006), NOW.plus(Duration::from_secs(held)), 0);
        assert_eq!(session.failures(), failures, "after {held} s");
    }
}

#[test]
fn a_restart_of_the_host_costs_a_second_once() {
    let mut session = failing(5);
    session.dialing(Some(10));
    session.connected(NOW);
    session.event(11).expect("rises");
    assert_eq!(shortest(&mut session, &closed(1001)), WAIT_RESTART);
    // A host that says so at once, again and again, climbs the ladder like any other.
    let mut session = failing(5);
    session.dialing(Some(10));
    session.connected(NOW);
    let wait = session.lost(&closed(1001), NOW, 32_000_000).since(NOW);
    assert_eq!(wait, WAIT_FLOOR + Duration::from_secs(32));
}

#[test]
fn a_refused_cursor_costs_a_second_and_not_for_ever() {
    let future = Loss::ErrorFrame {
        name: "FutureCursor".to_owned(),
        message: String::new(),
    };
    let mut session = failing(5);
    session.dialing(Some(10));
    session.connected(NOW);
    assert_eq!(session.lost(&future, NOW, 32_000_000).since(NOW), WAIT_RESTART);
    // A host that refuses the beginning is to be left alone.
    session.dialing(Some(0));
    session.connected(NOW);
    let wait = session.lost(&future, NOW, 64_000_000).since(NOW);
    assert_eq!(wait, WAIT_FLOOR + Duration::from_secs(64));
}

#[test]
fn the_host_may_ask_for_time() {
    assert_eq!(
        shortest(&mut failing(0), &status(429, Some(40))),
        Duration::from_secs(40)
    );
    assert_eq!(
        shortest(&mut failing(0), &status(429, Some(u64::MAX))),
        RETRY_AFTER_MAX
    );
    assert_eq!(shortest(&mut failing(0), &status(429, Some(0))), WAIT_FLOOR);
    assert_eq!(shortest(&mut failing(0), &status(503, None)), WAIT_FLOOR);
    assert_eq!(
        shortest(&mut failing(0), &status(501, Some(1))),
        WAIT_NOT_IMPLEMENTED + WAIT_FLOOR
    );
}

#[test]
fn numbers_must_rise_on_one_connection() {
    let mut session = Session::new();
    session.dialing(Some(10));
    assert_eq!(session.event(10), Ok(Order::Repeat), "the cursor itself, once");
    assert_eq!(
        session.event(10),
        Err(SeqFault {
            previous: 10,
            got: 10
        })
    );
    assert_eq!(session.event(11), Ok(Order::Next));
    assert_eq!(session.event(500), Ok(Order::Next), "gaps are legal");
    assert_eq!(
        session.event(500),
        Err(SeqFault {
            previous: 500,
            got: 500
        })
    );
    assert_eq!(
        session.event(499),
        Err(SeqFault {
            previous: 500,
            got: 499
        })
    );
}

#[test]
fn numbers_before_the_cursor_are_a_fault() {
    let mut session = Session::new();
    session.dialing(Some(10));
    assert_eq!(session.event(9), Err(SeqFault { previous: 10, got: 9 }));
    // A lower cursor on the next connection is the caller's word, and replays are welcome.
    session.dialing(Some(0));
    assert_eq!(session.event(1), Ok(Order::Next));
    session.dialing(None);
    assert_eq!(session.event(1), Ok(Order::Next));
}

#[test]
fn reasons_have_labels_and_words() {
    let error = |name: &str| Loss::ErrorFrame {
        name: name.to_owned(),
        message: "cursor in the future".to_owned(),
    };
    for (loss, label, words) in [
        (
            error("FutureCursor"),
            "future_cursor",
            "host ended the stream: FutureCursor: cursor in the future",
        ),
        (error("ConsumerTooSlow"), "consumer_too_slow", ""),
        (error("Other"), "error_frame", ""),
        (closed(1001), "restart", "host closed the stream (code 1001)"),
        (closed(1008), "closed", ""),
        (status(429, None), "rate_limited", ""),
        (status(404, None), "http_status", ""),
        (
            Loss::Seq(SeqFault { previous: 7, got: 3 }),
            "seq_fault",
            "sequence number 3 came after 7: the host's numbering went back",
        ),
    ] {
        assert_eq!(loss.label(), label);
        if !words.is_empty() {
            assert_eq!(loss.to_string(), words);
        }
    }
}

#[test]
fn the_log_says_each_thing_once() {
    let mut said = Said::default();
    assert!(said.lost("unreachable", 1), "the first try");
    assert!(!said.lost("unreachable", 2));
    assert!(said.lost("tls", 3), "another reason");
    assert!(!said.lost("tls", 4));
    assert!(said.lost("tls", 5), "it persists");
    assert!(!said.lost("tls", 6));
    assert!(said.connected());
    assert!(said.lost("closed", 1), "after progress");
    assert!(said.connected());
    assert!(said.lost("closed", 1), "after progress again");
    // A host that opens the stream and hangs up at once, over and over.
    assert!(said.connected());
    for failures in 2..=4 {
        assert!(!said.lost("closed", failures));
        assert!(!said.connected());
    }
}
