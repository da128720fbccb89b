//! Tests of the metrics: what a scraper sees.

use super::labels::{RejectReason, ResyncReason, ResyncResult};
use super::*;

fn names(text: &str) -> Vec<(&str, &str)> {
    text.lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect()
}

fn text(metrics: &Metrics) -> String {
    String::from_utf8(metrics.exposition()).expect("UTF-8")
}

#[test]
fn every_name_is_there_at_zero_before_anything_happened() {
    let metrics = Metrics::new();
    metrics.host(&"pds.example.com".parse().expect("host"));
    let text = text(&metrics);
    let golden = include_str!("golden.txt");
    let listed: String = names(&text)
        .iter()
        .map(|(name, kind)| format!("{name} {kind}\n"))
        .collect();
    assert_eq!(
        listed, golden,
        "the set of metrics changed: mend metrics/golden.txt and the rules that use it"
    );
    for line in text
        .lines()
        .filter(|line| line.starts_with("firekeep_") && !line.contains("build_info"))
    {
        assert!(line.ends_with(" 0"), "{line}");
    }
    assert!(text.contains(&format!(
        "firekeep_build_info{{commit=\"unknown\",version=\"{}\"}} 1",
        env!("CARGO_PKG_VERSION")
    )));
}

#[test]
fn names_follow_the_conventions() {
    let metrics = Metrics::new();
    metrics.host(&"pds.example.com".parse().expect("host"));
    let text = text(&metrics);
    for (name, kind) in names(&text) {
        assert!(
            name.starts_with("firekeep_") || name.starts_with("process_"),
            "{name}"
        );
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert_eq!(
            name.ends_with("_duration_seconds"),
            kind == "histogram",
            "{name} is a {kind}"
        );
    }
    assert!(!text.contains("did:"));
}

#[test]
fn series_are_bounded() {
    let metrics = Metrics::new();
    let before = text(&metrics).lines().count();
    metrics.host(&"a.example.com".parse().expect("host"));
    let one = text(&metrics).lines().count();
    metrics.host(&"b.example.com".parse().expect("host"));
    metrics.host(&"b.example.com".parse().expect("host"));
    let two = text(&metrics).lines().count();
    // The names of the host families come with the first host.
    assert!(
        two - one < 190 && one - before >= two - one,
        "{before} {one} {two}"
    );
    // Some forty methods are served, each with a histogram.
    assert!(before < 1200, "{before}");
}

#[test]
fn hosts_past_the_limit_share_one_series() {
    let metrics = Metrics::new();
    for number in 0..METRIC_HOSTS_MAX + 2 {
        let host = format!("h{number}.example.com").parse().expect("host");
        metrics.host(&host).connected.inc();
    }
    let text = text(&metrics);
    assert!(text.contains("firekeep_upstream_connected{host=\"_other\"} 2\n"));
    assert!(!text.contains(&format!("h{METRIC_HOSTS_MAX}.example.com")));
}

#[test]
fn each_value_of_a_label_has_its_own_series() {
    let metrics = Metrics::new();
    let host = metrics.host(&"pds.example.com".parse().expect("host"));
    host.resyncs
        .of(ResyncReason::ChainBroken, ResyncResult::Refused)
        .inc();
    host.events_rejected.of(RejectReason::BadSignature).inc_by(2);
    metrics.blobs.of(BlobLabel::Missing).set(3);
    metrics.count_http_request(HttpMethod::Head, Endpoint::GetBlob, 400);
    let text = text(&metrics);
    for line in [
        "firekeep_resyncs_total{host=\"pds.example.com\",reason=\"chain_broken\",result=\"refused\"} 1",
        "firekeep_events_rejected_total{host=\"pds.example.com\",reason=\"bad_signature\"} 2",
        "firekeep_blobs{state=\"missing\"} 3",
        "firekeep_http_requests_total{code=\"400\",method=\"HEAD\",nsid=\"com.atproto.sync.getBlob\"} 1",
    ] {
        assert!(text.lines().any(|have| have == line), "{line}");
    }
}

#[test]
fn texts_name_their_value() {
    assert_eq!(ResyncReason::named("moved"), Some(ResyncReason::Moved));
    assert_eq!(ResyncReason::named("Moved"), None);
}
