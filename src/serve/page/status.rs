//! The status page, and the front page that the public sees.

use std::fmt::Write as _;

use maud::{Markup, html};
use serde_json::Value;

use super::chrome::{Branding, page};
use super::{grouped, moment, not_covered, number, size, span, text};

/// Points of a day, and the height of their picture.
const DAY_POINTS: u64 = 288;
const HEIGHT: f64 = 48.0;
/// The lag at the upper edge, at least.
const LAG_SHOWN_MIN: f64 = 5.0;

/// Where the backup stands, for the admin.
pub(in crate::serve) fn status(branding: &Branding, report: &Value) -> String {
    let protection = &report["protection"];
    let level = text(&protection["level"]);
    let headline = text(&protection["headline"]);
    let body = html! {
        section class={ "state " (level) } aria-label="State" {
            h1 { (headline) }
            @let findings = list(&protection["findings"]);
            @if findings.is_empty() {
                p { (text(&protection["sentence"])) "." }
            } @else {
                ul { @for finding in findings { li { (text(&finding["text"])) } } }
            }
            @let alarms = number(&report["alarms"]);
            @if alarms > 0 {
                p { strong class="level" { (alarms) " open alarm" @if alarms != 1 { "s" } } ": see below." }
            }
        }
        (facts(report))
        @for host in list(&report["hosts"]) { (host_section(host, report)) }
        (alarm_section(report))
        (not_covered())
        p class="soft" {
            "As of " (moment(&report["now"])) ". This page is for whoever sits at this machine; others see only what the PDS "
            "shows too. " a href="/" { "Look again" } "."
        }
    };
    page(branding, headline, &body)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn facts(report: &Value) -> Markup {
    let (archive, accounts, blobs) = (
        &report["archive"],
        &report["accounts"],
        &report["blobs"]["by_state"],
    );
    let stored = number(&blobs["archived"]) + number(&blobs["held"]);
    let place = if archive["on_this_machine"] == true {
        "on this machine"
    } else {
        "off this machine"
    };
    let open = if archive["open"] == true {
        "works"
    } else {
        "CANNOT BE REACHED"
    };
    let fact = |name: &str, value: Markup| html! { div { dt { (name) } dd { (value) } } };
    html! {
        section aria-labelledby="all" {
            h2 id="all" { "All of it" }
            dl class="facts" {
                (fact("Accounts", html! {
                    (grouped(number(&accounts["held"]))) " held, " (grouped(number(&accounts["by_status"]["active"]))) " active"
                }))
                (fact("Records", html! {
                    (grouped(number(&accounts["records"]))) " (" (size(number(&accounts["record_bytes"]))) ")"
                }))
                (fact("Blobs stored", html! { (grouped(stored)) " (" (size(number(&report["blobs"]["stored_bytes"]))) ")" }))
                (fact("Blobs pending", html! { (grouped(number(&blobs["wanted"]))) }))
                (fact("Blobs missing", html! { (grouped(number(&blobs["missing"]))) }))
                (fact("Oldest change not off the machine", html! {
                    @let age = report["off_machine_seconds"].as_f64().unwrap_or(0.0);
                    @if archive["on_this_machine"] == true { "all of them: the archive is here" }
                    @else if age <= 0.0 { "none" }
                    @else { (span(age)) }
                }))
                (fact("Last snapshot", moment(&report["proof"]["last_snapshot"])))
                (fact("Last trial restore", html! {
                    (moment(&report["proof"]["last_drill"]))
                    @if report["proof"]["drill_failing"] == true { ", FAILED since" }
                }))
                (fact("Archive last found sound", moment(&report["proof"]["last_scrub"])))
                (fact("Archive", html! { (text(&archive["url"])) " (" (place) ", " (open) ")" }))
                (fact("Disk", html! {
                    (size(number(&report["disk"]["free"]))) " free, " (size(number(&report["disk"]["mirror"]))) " used here"
                }))
                (fact("Running for", html! { (span(report["up_seconds"].as_f64().unwrap_or(0.0))) }))
            }
        }
    }
}

fn host_section(host: &Value, report: &Value) -> Markup {
    let name = text(&host["host"]);
    let connected = match host["away_seconds"].as_f64() {
        None => html! { "connected" },
        Some(away) => html! { "NOT CONNECTED for " (span(away)) },
    };
    html! {
        section aria-label=(name) {
            h2 { (name) }
            div class="scroll" tabindex="0" role="region" aria-label={ "Figures of " (name) } {
                table {
                    thead { tr {
                        th scope="col" { "Stream" }
                        th scope="col" class="n" { "Lag" }
                        th scope="col" class="n" { "Off-site age" }
                        th scope="col" class="n" { "Sequence" }
                        th scope="col" class="n" { "Active accounts" }
                        th scope="col" class="n" { "Events waiting" }
                    } }
                    tbody { tr {
                        td { (connected) @if host["listed"] != true { ", not all accounts listed yet" } }
                        td class="n" { (span(host["lag_seconds"].as_f64().unwrap_or(0.0))) }
                        td class="n" { (span(host["off_machine_seconds"].as_f64().unwrap_or(0.0))) }
                        td class="n" { (host["cursor"].as_u64().map_or_else(|| "–".to_owned(), grouped)) }
                        td class="n" { (grouped(number(&host["active"]))) }
                        td class="n" { (grouped(number(&report["accounts"]["parked_events"]))) }
                    } }
                }
            }
            h3 { "Lag of the last day" }
            (day(name, &host["day"], number(&host["day_now"])))
        }
    }
}

/// A day's lag as a picture: a line, and bars where the host was away.
fn day(host: &str, points: &Value, now: u64) -> Markup {
    let points: Vec<(u64, f64, bool)> = list(points)
        .iter()
        .filter_map(|point| Some((point[0].as_u64()?, point[1].as_f64()?, point[2].as_bool()?)))
        .collect();
    if points.is_empty() {
        return html! { p class="soft" { "Nothing was measured yet." } };
    }
    let most = points.iter().map(|(_, lag, _)| *lag).fold(0.0, f64::max);
    let scale = most.max(LAG_SHOWN_MIN);
    let first = now.saturating_sub(DAY_POINTS - 1);
    let (mut path, mut last, mut away) = (String::new(), None, Vec::new());
    for (number, lag, was_away) in &points {
        let Some(x) = number.checked_sub(first).filter(|x| *x < DAY_POINTS) else {
            continue;
        };
        let y = HEIGHT - 2.0 - (lag / scale).min(1.0) * (HEIGHT - 6.0);
        // A gap in what was measured is a gap in the line.
        let step = if last == Some(number.wrapping_sub(1)) {
            'L'
        } else {
            'M'
        };
        write!(path, "{step}{x} {y:.1}h1").expect("a String takes all");
        last = Some(*number);
        if *was_away {
            away.push(x);
        }
    }
    let told = match away.len() {
        0 => format!("Lag of {host} over a day: at most {}, never away.", span(most)),
        count => format!(
            "Lag of {host} over a day: at most {}, away in {count} of {} stretches of five minutes.",
            span(most),
            points.len()
        ),
    };
    html! {
        svg viewBox={ "0 0 " (DAY_POINTS) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(told) {
            @for x in &away { rect class="away" x=(x) y="0" width="1" height=(HEIGHT) {} }
            path class="lag" d=(path) {}
        }
        p class="soft" { (told) @if points.len() < 280 { " Measured since this process began." } }
    }
}

fn alarm_section(report: &Value) -> Markup {
    let alarms = list(&report["alarm_list"]);
    html! {
        section aria-labelledby="alarms" {
            h2 id="alarms" { "Alarms" }
            @if alarms.is_empty() { p { "None is open." } }
            @else {
                ul {
                    @for alarm in alarms {
                        li {
                            strong { (text(&alarm["kind"])) }
                            @if let Some(host) = alarm["host"].as_str() { " at " (host) }
                            ", since " (moment(&alarm["since"])) ": " (text(&alarm["message"]))
                        }
                    }
                }
                p class="soft" { "Close one with " code { "firekeep alarms ack KIND --host HOST --subject SUBJECT" } "." }
            }
        }
    }
}

/// What the public sees: what this is, and its methods.
pub(in crate::serve) fn front(branding: &Branding, base: &str, methods: &[(&str, &[&str])]) -> String {
    let body = html! {
        h1 { "A backup" }
        p {
            "This server follows a PDS and keeps what its accounts publish: records and blobs. It gives them back to "
            "any AT Protocol client that is pointed at " code { (base) } "."
        }
        section aria-labelledby="methods" {
            h2 id="methods" { "Methods" }
            ul {
                @for (nsid, params) in methods {
                    li { code { "/xrpc/" (nsid) @if !params.is_empty() { "?" (params.join("=…&")) "=…" } } }
                }
                li { code { "/xrpc/_health" } }
            }
        }
        (not_covered())
        p { a href="https://atproto.com" { "atproto.com" } " says what the AT Protocol is." }
    };
    page(branding, "A backup", &body)
}
