//! Who is told: where alarms and heartbeats go.

use super::{ConfigError, Layers};
use crate::types::HostName;

/// Where alarms are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its URL.
    pub url: String,
    /// What it reads.
    pub format: WebhookFormat,
}

/// What a webhook reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookFormat {
    /// Our own JSON.
    Json,
    /// ntfy's.
    Ntfy,
    /// Discord's.
    Discord,
}

/// Where something is sent. Its path is a secret more often than not: no error shows it.
pub(super) fn notify_url(
    layers: &Layers,
    key: &'static str,
    dev_mode: bool,
) -> Result<Option<String>, ConfigError> {
    let Some(text) = layers.text(key) else {
        return Ok(None);
    };
    let bad = |remedy: &str| Err(layers.error_for(key, "…", remedy));
    let (scheme, rest) = text.trim().split_once("://").unwrap_or_default();
    match scheme {
        "https" => {}
        "http" if dev_mode => {}
        _ => return bad("must be a URL that begins with https://"),
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') || authority.parse::<HostName>().is_err() {
        return bad("must name a host, without user or password");
    }
    if text
        .chars()
        .any(|c| c.is_whitespace() || c.is_control() || c == '#')
    {
        return bad("must hold no blanks and no #");
    }
    Ok(Some(text.trim().to_owned()))
}

pub(super) fn webhook(layers: &Layers, dev_mode: bool) -> Result<Option<Webhook>, ConfigError> {
    let key = "notify.webhook_format";
    let format = match layers.text(key).as_deref() {
        None | Some("json") => WebhookFormat::Json,
        Some("ntfy") => WebhookFormat::Ntfy,
        Some("discord") => WebhookFormat::Discord,
        Some(_) => return Err(layers.error(key, "must be \"json\", \"ntfy\" or \"discord\"")),
    };
    let url = notify_url(layers, "notify.webhook_url", dev_mode)?;
    let topic = |url: &String| {
        url.splitn(4, '/')
            .nth(3)
            .is_some_and(|topic| !topic.is_empty() && !topic.contains(['/', '?']))
    };
    if format == WebhookFormat::Ntfy && url.as_ref().is_some_and(|url| !topic(url)) {
        return Err(layers.error_for(
            "notify.webhook_url",
            "…",
            "must end in a topic, such as \"https://ntfy.sh/my-topic\"",
        ));
    }
    Ok(url.map(|url| Webhook { url, format }))
}
