//! Tests of the pages: what they say in each state, who sees which, and how they do in a real browser.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};

use super::*;
use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::AccountStatus;
use crate::serve::fixture::{Account, Server, ask, record};
use crate::serve::{Control, Controlled, NoBlobArchive, ServeLimits};

const STATES: [(&str, &str); 5] = [
    ("protected", "Protected"),
    ("mirrored", "Mirrored, not off this machine"),
    ("catching_up", "Catching up"),
    ("at_risk", "At risk"),
    ("empty", "Nothing to protect yet"),
];

const DID: &str = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";

/// A report as the daemon makes it.
fn report(state: &str) -> Value {
    let headline = STATES.iter().find(|(name, _)| *name == state).expect("a state").1;
    let finding = |text: &str| json!({ "reason": "x", "level": state, "text": text });
    let (findings, held, day): (Vec<_>, u64, Vec<_>) = match state {
        "protected" => (
            Vec::new(),
            37,
            (0..288)
                .map(|n| json!([6_333_000 + n, f64::from(n % 9) / 3.0, false]))
                .collect(),
        ),
        "at_risk" => (
            vec![
                finding(
                    "pds.example.com has not been connected for 2 h 4 min: what it emits is not backed up",
                ),
                finding("3 blobs are missing: their host does not give them; they are tried again"),
            ],
            37,
            (0..200)
                .map(|n| json!([6_333_050 + n, f64::from(n), n > 150]))
                .collect(),
        ),
        "empty" => (
            vec![finding("no account is held: the hosts have none")],
            0,
            Vec::new(),
        ),
        _ => (
            vec![finding("12 accounts are to be fetched")],
            25,
            vec![json!([6_333_287, 4.0, false])],
        ),
    };
    let sentence = "every account and blob is in the archive, off this machine, and restores";
    let alarm = json!({
        "host": "pds.example.com", "kind": "rollback", "subject": DID, "since": "2026-11-24T10:00:00Z",
        "message": "<script>alert(1)</script> the host's repository lacks 3 records",
    });
    let at_risk = state == "at_risk";
    json!({
        "now": "2026-11-24T17:00:00.000Z", "up_seconds": 86_400.0,
        "protection": { "level": state, "headline": headline, "sentence": sentence, "findings": findings },
        "off_machine_seconds": if at_risk { 7440.0 } else { 0.4 },
        "proof": {
            "last_snapshot": "2026-11-24T16:41:00Z",
            "last_drill": if held > 0 { json!("2026-11-24T03:00:00Z") } else { Value::Null },
            "drill_failing": at_risk, "last_scrub": "2026-11-20T03:00:00Z",
        },
        "disk": { "free": 11_000_000_000u64, "mirror": 300_000_000 },
        "alarms": u64::from(at_risk), "alarm_list": if at_risk { vec![alarm] } else { Vec::new() },
        "accounts": {
            "held": held, "by_status": { "active": held }, "records": held * 1303, "record_bytes": held * 500_000,
            "parked_events": 0,
        },
        "blobs": { "by_state": { "archived": held * 220, "held": 0, "wanted": 2, "missing": 3 }, "stored_bytes": 6_200_000_000u64 },
        "archive": {
            "url": if state == "mirrored" { "file:///srv/firekeep/archive" } else { "s3://my-bucket/firekeep" },
            "on_this_machine": state == "mirrored", "open": !at_risk,
        },
        "hosts": [{
            "host": "pds.example.com", "listed": state != "catching_up", "cursor": 184_203, "active": held,
            "lag_seconds": 0.4, "off_machine_seconds": 3.1, "away_seconds": if at_risk { json!(7440.0) } else { Value::Null },
            "day": day, "day_now": 6_333_287u64,
        }],
    })
}

/// An account as the daemon tells it.
fn account() -> Value {
    let point = |kind: &str, from: u64, to: u64| {
        let at = |hour: u64| format!("2026-11-{:02}T{:02}:00:00Z", 1 + hour / 24, hour % 24);
        json!({
            "kind": kind, "rev": "3mgaz7rkmtk2a", "bytes": 48_211, "from": at(from), "to": at(to),
            "from_seconds": from * 3600, "to_seconds": to * 3600,
        })
    };
    json!({
        "did": DID, "handle": "alice.example.com", "host": "pds.example.com", "status": "active", "sync": "live",
        "rev": "3mgaz7rkmtk2a", "rev_time": "2026-11-24T16:00:00Z", "records": 5120, "record_bytes": 2_000_000,
        "archived": true, "verified_at": "2026-11-24T03:00:00Z",
        "blobs": {
            "stored": 212, "bytes": 48_122_931, "pending": 0, "missing": 2,
            "gaps": [{ "cid": "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", "why": "the host says that it has no such blob" }],
        },
        "points": [
            point("snapshot", 1, 1), point("every", 1, 90), point("snapshot", 90, 90), point("gap", 90, 200),
            point("snapshot", 200, 200), point("every", 200, 300),
        ],
        "points_from": 3600.0, "points_to": 300.0 * 3600.0,
        "archive": "s3://my-bucket/firekeep", "archive_flags": " --s3-endpoint https://s3.example.com --s3-region eu-1",
    })
}

/// A daemon in a state.
struct Fixed(&'static str);

impl Control for Fixed {
    fn ask<'a>(&'a self, name: &str, _: BTreeMap<String, String>) -> Option<Controlled<'a>> {
        let answer = match name {
            "overview" => report(self.0),
            "account" => account(),
            _ => return None,
        };
        Some(Box::pin(std::future::ready(Ok(answer))))
    }

    fn command<'a>(&'a self, _: &str, _: BTreeMap<String, String>) -> Option<Controlled<'a>> {
        None
    }
}

async fn server(store: &MemoryStore, state: &'static str, public_url: Option<&str>) -> Server {
    Server::start_controlled(
        store,
        NoBlobArchive,
        ServeLimits::default(),
        public_url,
        Fixed(state),
    )
    .await
}

fn body(answer: &crate::serve::fixture::Answer) -> String {
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    String::from_utf8(answer.body.clone()).expect("UTF-8")
}

#[test]
fn each_state_says_itself_and_why() {
    for (state, headline) in STATES {
        let html = status(&Branding::default(), &report(state));
        assert!(html.contains(&format!("<h1>{headline}</h1>")), "{state}");
        assert!(html.contains(&format!("class=\"state {state}\"")), "{state}");
        assert!(html.len() < 40 * 1024, "{state}: {} bytes", html.len());
        assert!(!html.contains("<script"), "{state}");
        assert!(
            !html.contains(" style="),
            "{state}: the policy lets no such attribute through"
        );
        assert!(html.contains("What is not covered"), "{state}");
        for finding in report(state)["protection"]["findings"]
            .as_array()
            .expect("a list")
        {
            assert!(html.contains(text(&finding["text"])), "{state}");
        }
    }
    let html = status(&Branding::default(), &report("at_risk"));
    for part in [
        "NOT CONNECTED for 2 h 4 min",
        "&lt;script&gt;alert(1)",
        "1 open alarm",
        "CANNOT BE REACHED",
        "FAILED since",
        "away in 49 of 200 stretches",
        "8\u{202f}140",
        "184\u{202f}203",
        "10.2 GiB free",
    ] {
        assert!(html.contains(part), "{part}: {html}");
    }
}

#[test]
fn the_account_page_has_points_gaps_and_commands_with_the_address() {
    let html = private_account(&Branding::default(), &account(), "http://localhost:2585");
    for part in [
        "<h1>alice.example.com</h1>",
        "3 snapshots, 1 gap between",
        "<strong>Gap</strong> from",
        "nothing in between can be restored",
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
        "And 1 more.",
        &format!(
            "firekeep restore account {DID} --from http://localhost:2585 --to https://new.example.com --dry-run"
        ),
        &format!(
            "firekeep restore account {DID} --from s3://my-bucket/firekeep --s3-endpoint https://s3.example.com"
        ),
        &format!("'http://localhost:2585/xrpc/com.atproto.sync.getRepo?did={DID}'"),
    ] {
        assert!(html.contains(part), "{part}: {html}");
    }
    let public = public_account(
        &Branding::default(),
        &json!({ "did": DID, "rev": "r" }),
        "https://b.example.com",
    );
    assert!(public.contains("--from https://b.example.com"));
    for private in ["snapshots", "s3://", "Blobs stored", "archive alone"] {
        assert!(!public.contains(private), "{private}");
    }
}

#[test]
fn the_pds_looks_are_taken_where_they_can_be() {
    let variables = |pairs: &'static [(&str, &str)]| {
        Branding::from_variables(|name| {
            pairs
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    };
    let good = variables(&[
        ("PDS_SERVICE_NAME", "Mine & <yours>"),
        ("PDS_LOGO_URL", "https://cdn.example.com/logo.png"),
        ("PDS_PRIMARY_COLOR", "#aB12cd"),
        ("PDS_HOME_URL", "https://example.com"),
    ]);
    let html = status(&good, &report("protected"));
    for part in [
        "Mine &amp; &lt;yours&gt; backup",
        "--accent:#aB12cd",
        "src=\"https://cdn.example.com/logo.png\"",
        "home</a>",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert!(
        good.policy()
            .contains("; img-src https://cdn.example.com/logo.png; ")
    );
    for bad in [
        variables(&[("PDS_PRIMARY_COLOR", "#fff}body{display:none")]),
        variables(&[("PDS_PRIMARY_COLOR", "url(https://evil.test)")]),
        variables(&[("PDS_LOGO_URL", "https://a.test/x; script-src *")]),
        variables(&[("PDS_LOGO_URL", "javascript:alert(1)")]),
        variables(&[("PDS_HOME_URL", "http://a.test")]),
        variables(&[("PDS_SERVICE_NAME", "\u{7} ")]),
    ] {
        assert_eq!(bad, Branding::default());
    }
}

#[tokio::test]
async fn the_private_pages_are_for_this_machine_and_no_script_of_another_origin_reads_them() {
    let store = MemoryStore::new();
    Account::new("alice", 1)
        .handle("alice.test")
        .record("one", 5, &record("text"))
        .save(&store);
    let gone = Account::new("gone", 2)
        .handle("gone.test")
        .status(AccountStatus::Takendown);
    gone.save(&store);
    let here = server(&store, "at_risk", None).await;
    let answer = here.get("/").await;
    assert_eq!(answer.status, 200);
    assert!(body(&answer).contains("At risk"));
    for header in ["access-control-allow-origin", "access-control-expose-headers"] {
        assert_eq!(answer.header(header), "", "{header}");
    }
    assert_eq!(answer.header("cross-origin-resource-policy"), "same-origin");
    let policy = answer.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert_eq!(answer.header("x-frame-options"), "DENY");
    assert_eq!(answer.header("cache-control"), "private, no-store");
    assert!(body(&here.get("/account?account=alice.test").await).contains("3 snapshots"));
    // What would let others in.
    for headers in [
        "X-Forwarded-For: 10.0.0.1\r\n",
        "Origin: https://evil.test\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
    ] {
        for path in ["/", "/account/alice.test"] {
            let html = body(&here.ask("GET", path, headers).await);
            assert!(
                !html.contains("At risk") && !html.contains("snapshots") && !html.contains("s3://"),
                "{headers}"
            );
        }
    }
    let public = server(&store, "at_risk", Some("https://backup.example.com")).await;
    let html = body(&public.get("/").await);
    for private in ["At risk", "pds.example.com", "Alarm", "s3://", "184"] {
        assert!(!html.contains(private), "{private}");
    }
    assert!(html.contains("/xrpc/com.atproto.sync.getRepo?did=…"));
    let html = body(&public.get("/account/alice.test").await);
    assert!(html.contains("--from https://backup.example.com") && !html.contains("snapshots"));
    // Taken down, unknown and nonsense look the same.
    let gone_page = public.get(&format!("/account/{}", gone.did)).await;
    assert_eq!(gone_page.status, 404);
    for path in [
        "/account/did:plc:aaaaaaaaaaaaaaaaaaaaaaaa",
        "/account/gone.test",
        "/account/%00%3Cb%3E",
        "/account",
    ] {
        let answer = ask(public.xrpc, "GET", path, "").await;
        assert!(answer.status == 404 && answer.body == gone_page.body, "{path}");
    }
}

/// A real browser loads every page in every state, light, dark and narrow: no console message, no breach of the
/// policy, no finding of axe. `scripts/pages` installs what it needs.
#[tokio::test(flavor = "multi_thread")]
async fn pages_in_a_browser() {
    let must = std::env::var_os("FIREKEEP_REQUIRE_BROWSER").is_some();
    let Some(modules) = std::env::var_os("FIREKEEP_PAGES_MODULES") else {
        assert!(!must, "FIREKEEP_PAGES_MODULES is not set: run scripts/pages");
        eprintln!("pages_in_a_browser did not run: no browser is set up; scripts/pages does it");
        return;
    };
    let store = MemoryStore::new();
    Account::new("alice", 1)
        .handle("alice.test")
        .record("one", 5, &record("text"))
        .save(&store);
    let mut servers = Vec::new();
    for (state, _) in STATES {
        servers.push((state, server(&store, state, None).await));
    }
    servers.push((
        "public",
        server(&store, "protected", Some("https://backup.example.com")).await,
    ));
    let mut command = Command::new("node");
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/pages.mjs"))
        .arg(modules);
    for (state, server) in &servers {
        let base = format!("http://localhost:{}", server.xrpc.port());
        command.arg(format!("{state}={base}/"));
        if matches!(*state, "at_risk" | "public") {
            command.arg(format!("{state}-account={base}/account/alice.test"));
        }
    }
    let done = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("runs");
    let done = done.expect("node starts");
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    eprintln!("{said}");
}
