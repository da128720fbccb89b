//! The rules, the dashboard and the documents name metrics that exist, and Prometheus's own tool takes them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/monitoring");
const RULES: &str = include_str!("../../deploy/monitoring/firekeep-alerts.yml");
const TESTS: &str = include_str!("../../deploy/monitoring/firekeep-alerts.test.yml");
const DASHBOARD: &str = include_str!("../../deploy/monitoring/firekeep-dashboard.json");
const README: &str = include_str!("../../README.md");

fn scrape() -> String {
    let metrics = Metrics::new();
    metrics.host(&"pds.example.com".parse().expect("host"));
    String::from_utf8(metrics.exposition()).expect("UTF-8")
}

/// Every name in a text that begins as ours do.
fn named(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for prefix in ["firekeep_", "process_"] {
        for (at, _) in text.match_indices(prefix) {
            let before = text[..at].chars().next_back().unwrap_or(' ');
            if before.is_ascii_alphanumeric() || before == '_' || before == '-' {
                continue;
            }
            let name: String = text[at..]
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                .collect();
            found.insert(name);
        }
    }
    found
}

fn unknown(text: &str, scrape: &str) -> Vec<String> {
    let there: BTreeSet<&str> = scrape
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    named(text)
        .into_iter()
        .filter(|name| !there.contains(name.as_str()))
        .collect()
}

/// A question of the dashboard, as Prometheus gets it.
fn questions(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            if let Some(expr) = map.get("expr").and_then(|expr| expr.as_str()) {
                let expr = expr.replace("$__rate_interval", "5m");
                found.push(
                    expr.replace("$job", "firekeep")
                        .replace("$instance", ".*")
                        .replace("$host", ".*"),
                );
            }
            map.values().for_each(|value| questions(value, found));
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| questions(value, found)),
        _ => {}
    }
}

fn dashboard_questions() -> Vec<String> {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
    assert_eq!(
        (&dashboard["uid"], &dashboard["schemaVersion"]),
        (&"firekeep".into(), &39.into())
    );
    let mut found = Vec::new();
    questions(&dashboard, &mut found);
    assert!(found.len() > 30, "{}", found.len());
    found
}

#[test]
fn every_metric_that_is_named_exists() {
    let scrape = scrape();
    for (what, text) in [
        ("rules", RULES),
        ("their tests", TESTS),
        ("dashboard", DASHBOARD),
        ("README", README),
    ] {
        assert!(named(text).len() > 10, "{what}");
        let mut unknown = unknown(text, &scrape);
        // A person is told a histogram by its name; no query finds it by that.
        unknown.retain(|name| what != "README" || !scrape.contains(&format!("# TYPE {name} histogram\n")));
        assert_eq!(unknown, Vec::<String>::new(), "{what}");
    }
    assert_eq!(
        unknown("rate(firekeep_made_up_total[5m])", &scrape),
        ["firekeep_made_up_total"]
    );
}

/// Runs promtool, with something on its stdin. None: it is not installed.
fn promtool(arguments: &[&str], input: &str) -> Option<(bool, String)> {
    let started = Command::new("promtool")
        .args(arguments)
        .current_dir(FOLDER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            let must = std::env::var_os("FIREKEEP_REQUIRE_PROMTOOL").is_some();
            assert!(!must, "promtool (Debian's package prometheus): {error}");
            eprintln!("promtool is not installed: {arguments:?} did not run");
            return None;
        }
    };
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("written");
    drop(stdin);
    let done = child.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    Some((done.status.success(), said))
}

#[test]
fn promtool_takes_rules_their_tests_and_the_scrape() {
    for arguments in [
        &["check", "rules", "firekeep-alerts.yml"][..],
        &["test", "rules", "firekeep-alerts.test.yml"],
    ] {
        let Some((good, said)) = promtool(arguments, "") else {
            return;
        };
        assert!(good, "{arguments:?}: {said}");
    }
    let Some((good, said)) = promtool(&["check", "metrics"], &scrape()) else {
        return;
    };
    assert!(good && said.trim().is_empty(), "{said}");
    let Some((good, said)) = promtool(&["check", "metrics"], "# TYPE firekeep_a counter\nfirekeep_a 1\n")
    else {
        return;
    };
    assert!(!good, "it looks: {said}");
}

#[test]
fn promtool_takes_every_question_of_the_dashboard() {
    let as_rules = |questions: &[String]| {
        let rules = questions
            .iter()
            .enumerate()
            .map(|(index, expr)| serde_json::json!({ "record": format!("q:{index}"), "expr": expr }));
        let rules: Vec<_> = rules.collect();
        // JSON is YAML.
        serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string()
    };
    for (questions, want) in [
        (dashboard_questions(), true),
        (vec!["rate(firekeep_protected".to_owned()], false),
    ] {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(as_rules(&questions).as_bytes()).expect("written");
        let path = file.path().to_str().expect("a path");
        let Some((good, said)) = promtool(&["check", "rules", path], "") else {
            return;
        };
        assert_eq!(good, want, "{said}");
    }
}

#[test]
fn every_rule_is_tested_to_fire_and_to_be_silent() {
    let alerts: Vec<&str> = RULES
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() >= 11);
    for alert in alerts {
        assert!(
            TESTS.contains(&format!("alertname: {alert}}}")),
            "{alert}: silent"
        );
        assert!(
            TESTS.contains(&format!("alertname=\"{alert}\"}}', value: 1")),
            "{alert}: fires"
        );
    }
}
