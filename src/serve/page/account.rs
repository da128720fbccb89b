//! The page of one account: what can be brought back, what cannot, and the commands that do it.

use maud::{Markup, html};
use serde_json::Value;

use super::chrome::{Branding, page};
use super::{grouped, moment, not_covered, number, size, text};

/// Restore points that are listed; the picture shows all.
const POINTS_SHOWN: usize = 50;
/// Width of the picture.
const WIDTH: f64 = 1000.0;

/// All that is known of an account, for the admin.
pub(in crate::serve) fn private_account(branding: &Branding, account: &Value, base: &str) -> String {
    let did = text(&account["did"]);
    let name = account["handle"].as_str().unwrap_or(did);
    let fact = |name: &str, value: Markup| html! { div { dt { (name) } dd { (value) } } };
    let blobs = &account["blobs"];
    let body = html! {
        h1 { (name) }
        p { code { (did) } " at " (text(&account["host"])) }
        section aria-labelledby="held" {
            h2 id="held" { "What is held" }
            dl class="facts" {
                (fact("At its host", html! { (text(&account["status"])) }))
                (fact("Our copy", html! {
                    (text(&account["sync"])) @if let Some(reason) = account["reason"].as_str() { " (" (reason) ")" }
                }))
                (fact("Newest state", html! { (moment(&account["rev_time"])) }))
                (fact("Rev", html! { code { (text(&account["rev"])) } }))
                (fact("Records", html! {
                    (grouped(number(&account["records"]))) " (" (size(number(&account["record_bytes"]))) ")"
                }))
                (fact("Blobs stored", html! {
                    (grouped(number(&blobs["stored"]))) " (" (size(number(&blobs["bytes"]))) ")"
                }))
                (fact("Blobs pending", html! { (grouped(number(&blobs["pending"]))) }))
                (fact("Blobs missing", html! { (grouped(number(&blobs["missing"]))) }))
                (fact("In the archive", html! {
                    @if account["archived"] == true { "yes, its newest state" } @else { "NOT its newest state" }
                }))
                (fact("Proven last", moment(&account["verified_at"])))
            }
        }
        (points(account))
        (missing(account))
        (restore(account, base))
        section aria-labelledby="key" {
            h2 id="key" { "Can its identity be moved?" }
            p {
                "Only with a rotation key of the account: the user's own, or the old PDS's. "
                code { "firekeep plc log " (did) } " shows which keys it has. Without one that somebody holds, its data "
                "can be read from here, but its identity cannot be moved."
            }
        }
        (not_covered())
    };
    page(branding, name, &body)
}

/// What of an account the PDS shows too.
pub(in crate::serve) fn public_account(branding: &Branding, account: &Value, base: &str) -> String {
    let did = text(&account["did"]);
    let name = account["handle"].as_str().unwrap_or(did);
    let body = html! {
        h1 { (name) }
        p { code { (did) } }
        p { "Held at rev " code { (text(&account["rev"])) } "." }
        (restore(account, base))
        (not_covered())
    };
    page(branding, name, &body)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A point as the daemon tells it: a snapshot, or a stretch of which every moment can be had.
fn points(account: &Value) -> Markup {
    let all = list(&account["points"]);
    let (from, to) = (account["points_from"].as_f64(), account["points_to"].as_f64());
    let gaps = all.iter().filter(|point| point["kind"] == "gap").count();
    let snapshots = all.iter().filter(|point| point["kind"] == "snapshot").count();
    let told = format!(
        "{snapshots} snapshot{}, {gaps} gap{} between what can be restored.",
        if snapshots == 1 { "" } else { "s" },
        if gaps == 1 { "" } else { "s" }
    );
    html! {
        section aria-labelledby="points" {
            h2 id="points" { "Restore points" }
            @if let Some(why) = account["points_error"].as_str() {
                p { "The archive cannot be listed: " (why) }
            } @else if all.is_empty() {
                p { "None yet: no snapshot of it stands in the archive." }
            } @else {
                @if let (Some(from), Some(to)) = (from, to) {
                    @let width = (to - from).max(1.0);
                    @let x = |value: &Value| (value.as_f64().unwrap_or(from) - from) / width * (WIDTH - 6.0);
                    svg class="line" viewBox={ "0 0 " (WIDTH) " 40" } preserveAspectRatio="none" role="img" aria-label=(told) {
                        @for point in all {
                            @let (start, end) = (x(&point["from_seconds"]), x(&point["to_seconds"]));
                            @match text(&point["kind"]) {
                                "snapshot" => { rect class="point" x={ (format!("{end:.1}")) } y="6" width="6" height="28" {} }
                                "every" => { rect class="span" x={ (format!("{start:.1}")) } y="16"
                                    width={ (format!("{:.1}", (end - start).max(2.0))) } height="8" {} }
                                _ => { rect class="gap" x={ (format!("{start:.1}")) } y="18"
                                    width={ (format!("{:.1}", (end - start).max(2.0))) } height="4" {} }
                            }
                        }
                    }
                }
                p class="soft" { (told) " Newest first; every moment of a stretch can be restored." }
                ol reversed {
                    @for point in all.iter().rev().take(POINTS_SHOWN) {
                        li {
                            @match text(&point["kind"]) {
                                "snapshot" => {
                                    (moment(&point["to"])) ": snapshot at rev " code { (text(&point["rev"])) }
                                    ", " (size(number(&point["bytes"])))
                                }
                                "every" => { (moment(&point["from"])) " to " (moment(&point["to"])) ": every moment" }
                                _ => {
                                    strong { "Gap" } " from " (moment(&point["from"])) " to " (moment(&point["to"]))
                                    ": nothing in between can be restored"
                                }
                            }
                        }
                    }
                }
                @if all.len() > POINTS_SHOWN {
                    p { "And " (all.len() - POINTS_SHOWN) " older ones: " code { "firekeep history " (text(&account["did"])) } }
                }
            }
        }
    }
}

fn missing(account: &Value) -> Markup {
    let gaps = list(&account["blobs"]["gaps"]);
    html! {
        section aria-labelledby="gaps" {
            h2 id="gaps" { "Blobs that are not held" }
            @if gaps.is_empty() { p { "None." } }
            @else {
                ul { @for gap in gaps { li { code { (text(&gap["cid"])) } ": " (text(&gap["why"])) } } }
                @let more = number(&account["blobs"]["missing"]) + number(&account["blobs"]["pending"]);
                @if more > gaps.len() as u64 { p { "And " (more - gaps.len() as u64) " more." } }
            }
        }
    }
}

/// The commands, with this server's address in them.
fn restore(account: &Value, base: &str) -> Markup {
    let did = text(&account["did"]);
    let file = did.rsplit(':').next().unwrap_or("account");
    let (archive, flags) = (
        account["archive"].as_str(),
        account["archive_flags"].as_str().unwrap_or(""),
    );
    html! {
        section aria-labelledby="restore" {
            h2 id="restore" { "Bring it back" }
            h3 { "To a new PDS, from this server" }
            pre tabindex="0" {
                "firekeep restore account " (did) " --from " (base) " --to https://new.example.com --dry-run"
            }
            @if let Some(archive) = archive {
                h3 { "To a new PDS, from the archive alone" }
                pre tabindex="0" {
                    "firekeep restore account " (did) " --from " (archive) (flags) " --to https://new.example.com --dry-run"
                }
                h3 { "As it was at some moment, as files" }
                pre tabindex="0" {
                    "firekeep export " (did) " --archive " (archive) (flags) " --at 1d -o " (file) ".car --blobs " (file) ".tar"
                }
            }
            h3 { "By hand, with any client" }
            pre tabindex="0" {
                "curl -o " (file) ".car '" (base) "/xrpc/com.atproto.sync.getRepo?did=" (did) "'\n"
                "goat repo import " (file) ".car\n"
                "curl '" (base) "/xrpc/com.atproto.sync.listBlobs?did=" (did) "'\n"
                "curl -O '" (base) "/xrpc/com.atproto.sync.getBlob?did=" (did) "&cid=CID'"
            }
            p { a href={ "/xrpc/com.atproto.sync.getRepo?did=" (did) } download={ (file) ".car" } { "Download the CAR" } }
        }
    }
}
