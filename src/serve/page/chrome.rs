//! What all pages share: head, style and its policy, and the PDS's own looks.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};

/// The PDS's own looks, by the variables that it takes itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Branding {
    /// `PDS_SERVICE_NAME`
    name: Option<String>,
    /// `PDS_LOGO_URL`, an `https` address
    logo: Option<String>,
    /// `PDS_HOME_URL`
    home: Option<String>,
    /// `PDS_SUPPORT_URL`
    support: Option<String>,
    /// `PDS_PRIMARY_COLOR`, as `#rgb` or `#rrggbb`
    color: Option<String>,
}

impl Branding {
    /// From the environment. What cannot be used is left out.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let url = |name: &str| variable(name).filter(|url| is_plain_url(url));
        let is_color = |text: &String| {
            matches!(text.len(), 4 | 7)
                && text.starts_with('#')
                && text[1..].bytes().all(|b| b.is_ascii_hexdigit())
        };
        Self {
            name: variable("PDS_SERVICE_NAME")
                .map(|name| {
                    name.chars()
                        .filter(|c| !c.is_control())
                        .take(80)
                        .collect::<String>()
                })
                .filter(|name| !name.trim().is_empty()),
            logo: url("PDS_LOGO_URL"),
            home: url("PDS_HOME_URL"),
            support: url("PDS_SUPPORT_URL"),
            color: variable("PDS_PRIMARY_COLOR").filter(is_color),
        }
    }

    fn style(&self) -> String {
        let accent = self.color.as_deref().unwrap_or("#1d6fd8");
        format!(":root{{--accent:{accent}}}{STYLE}")
    }

    /// The policy of every page: nothing but our own style, and the logo where there is one.
    pub(in crate::serve) fn policy(&self) -> String {
        let style = data_encoding::BASE64.encode(&Sha256::digest(self.style()));
        let logo = self
            .logo
            .as_ref()
            .map_or(String::new(), |logo| format!("; img-src {logo}"));
        format!(
            "default-src 'none'; style-src 'sha256-{style}'{logo}; base-uri 'none'; form-action 'self'; \
             frame-ancestors 'none'"
        )
    }
}

/// An `https` address that holds nothing which could end an attribute, or a directive of the policy.
fn is_plain_url(url: &str) -> bool {
    let plain = |b: u8| b.is_ascii_graphic() && !b"\"'<>;,\\`*?#".contains(&b);
    url.len() <= 500 && url.starts_with("https://") && url.len() > 8 && url.bytes().all(plain)
}

const STYLE: &str = include_str!("style.css");

/// A whole page.
pub(super) fn page(branding: &Branding, title: &str, body: &Markup) -> String {
    let name = branding.name.as_deref().unwrap_or("Firekeep");
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) " · " (name) " backup" }
                style { (PreEscaped(branding.style())) }
            }
            body {
                header {
                    a href="/" class="name" {
                        @if let Some(logo) = &branding.logo {
                            img src=(logo) alt="" height="32";
                        }
                        (name) " backup"
                    }
                    form action="/account" method="get" role="search" {
                        label for="account" { "Account" }
                        input id="account" name="account" placeholder="handle or DID" autocomplete="off"
                            spellcheck="false" required;
                        button { "Show" }
                    }
                }
                main { (body) }
                footer {
                    p {
                        "Firekeep " (env!("CARGO_PKG_VERSION")) ", a backup of AT Protocol repositories and their blobs"
                        @if let Some(home) = &branding.home { " · " a href=(home) { "home" } }
                        @if let Some(support) = &branding.support { " · " a href=(support) { "support" } }
                    }
                }
            }
        }
    }
    .into_string()
}

/// What cannot be shown.
pub(in crate::serve) fn not_here(branding: &Branding, what: &str) -> String {
    let body = html! {
        h1 { "Not here" }
        p { (what) }
        p { a href="/" { "Back to the front page" } }
    };
    page(branding, "Not here", &body)
}
