//! The pages for people: where the backup stands, and what is held of an account. No script, no build step; every text
//! is there without style too.
//!
//! What they say comes from the same report that `firekeep status --json` prints. The private view is for whoever sits
//! at the machine; the public one names nothing that the PDS does not.

mod account;
mod chrome;
mod status;

pub(super) use account::{private_account, public_account};
pub use chrome::Branding;
pub(super) use chrome::not_here;
pub(super) use status::{front, status};

use maud::{Markup, html};
use serde_json::Value;

/// What a backup of the public data cannot have.
const NOT_COVERED: [(&str, &str); 5] = [
    (
        "E-mail addresses and passwords",
        "they are in no stream; a restored account gets new ones",
    ),
    (
        "Private preferences, mutes and direct messages",
        "they are not in the repository",
    ),
    (
        "The PDS's own keys",
        "without its rotation key, or one of the user's own, an identity cannot be moved",
    ),
    ("Blobs that no record refers to", "a PDS drops them too"),
    ("Permissioned data", "it is synchronised by another protocol"),
];

fn not_covered() -> Markup {
    html! {
        section aria-labelledby="not-covered" {
            h2 id="not-covered" { "What is not covered" }
            dl {
                @for (what, why) in NOT_COVERED {
                    dt { (what) }
                    dd { (why) "." }
                }
            }
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("–")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Digits in groups, for people.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Bytes for people.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

/// A span in seconds, for people.
fn span(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and shown only"
    )]
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min", whole / 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// A moment, to the minute, for people and programs.
fn moment(value: &Value) -> Markup {
    match value.as_str() {
        None => html! { "never" },
        Some(at) => {
            let shown: String = at
                .chars()
                .take(16)
                .map(|c| if c == 'T' { ' ' } else { c })
                .collect();
            html! { time datetime=(at) { (shown) " UTC" } }
        }
    }
}

#[cfg(test)]
mod tests;
