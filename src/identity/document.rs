//! DID documents: where one is found, and what it says about an account.
//!
//! Of a document three things count: the first valid `#atproto` signing key, the first `#atproto_pds` service,
//! and the first handle in `alsoKnownAs`. What is not there or malformed is none; only a document that is no
//! JSON object, or of another DID, is an error.
//!
//! Sources: <https://atproto.com/specs/did>, <https://atproto.com/specs/cryptography>.

use std::net::Ipv4Addr;

use serde_json::{Map, Value};

use crate::http::address::check_public_name;
use crate::repo::signing_key::SigningKey;
use crate::types::{Did, DidMethod, HostName, Timestamp};

/// Longest DID document, in bytes.
pub const DOCUMENT_BYTES_MAX: u64 = 64 * 1024;
/// Entries of a list in a document that are looked at.
const ENTRIES_MAX: usize = 256;
/// The type of the service that is an account's PDS.
pub const PDS_SERVICE_TYPE: &str = "AtprotoPersonalDataServer";

/// What a DID document says about an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Whose.
    pub did: Did,
    /// The host that speaks for it; none if the document names no usable one.
    pub host: Option<PdsEndpoint>,
    /// The key that signs its commits; none if the document holds no valid one.
    pub key: Option<SigningKey>,
    /// The handle that it claims; nobody has checked that the handle agrees.
    pub handle: Option<String>,
    /// When the document was fetched.
    pub resolved_at: Timestamp,
}

/// Where a host's XRPC interface is: a scheme, a host and perhaps a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PdsEndpoint {
    https: bool,
    host: HostName,
}

impl PdsEndpoint {
    /// The host as it stands in keys and logs.
    #[must_use]
    pub const fn host(&self) -> &HostName {
        &self.host
    }

    /// Whether it speaks TLS; only in `dev_mode` may it not.
    #[must_use]
    pub const fn is_https(&self) -> bool {
        self.https
    }

    /// Such as `https://pds.example.com`, without a slash at the end.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.host)
    }

    /// The URL of a WebSocket at a path, which begins with a slash.
    #[must_use]
    pub fn websocket_url(&self, path_and_query: &str) -> String {
        let scheme = if self.https { "wss" } else { "ws" };
        format!("{scheme}://{}{path_and_query}", self.host)
    }

    /// Parses `https://host` or `https://host:port`, with or without one slash at the end; http only with
    /// `dev_mode`. Whether the host may be contacted is for the connection to decide.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str, dev_mode: bool) -> Result<Self, EndpointError> {
        let (https, rest) = if let Some(rest) = text.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = text.strip_prefix("http://") {
            if !dev_mode {
                return Err(EndpointError::PlainHttp);
            }
            (false, rest)
        } else {
            return Err(EndpointError::Scheme);
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let default_port = if https { ":443" } else { ":80" };
        let host = authority.strip_suffix(default_port).unwrap_or(authority);
        Ok(Self {
            https,
            host: host.parse().map_err(|_| EndpointError::Host)?,
        })
    }
}

impl std::fmt::Display for PdsEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.origin())
    }
}

/// Why a text is not a host's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Neither https nor http.
    #[error("a host's URL must begin with https://")]
    Scheme,
    /// http outside `dev_mode`.
    #[error("plain http is only allowed in dev_mode")]
    PlainHttp,
    /// What follows is more or less than a host and perhaps a port.
    #[error("a host's URL must be a host name and perhaps a port, without user or path")]
    Host,
}

/// Why a document says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not a JSON object.
    #[error("the DID document is not a JSON object")]
    NotAnObject,
    /// Its `id` is not the DID that was asked for.
    #[error("the DID document is of another DID")]
    OtherDid,
}

impl Identity {
    /// Reads a DID document.
    ///
    /// # Errors
    /// When it is no JSON object, or not of this DID.
    pub fn from_document(
        did: &Did,
        document: &[u8],
        dev_mode: bool,
        resolved_at: Timestamp,
    ) -> Result<Self, DocumentError> {
        let document: Map<String, Value> =
            serde_json::from_slice(document).map_err(|_| DocumentError::NotAnObject)?;
        if text(&document, "id") != Some(did.as_str()) {
            return Err(DocumentError::OtherDid);
        }
        Ok(Self {
            did: did.clone(),
            host: pds(did, &document, dev_mode),
            key: entries(&document, "verificationMethod").find_map(|method| signing_key(did, method)),
            handle: handle(&document),
            resolved_at,
        })
    }
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

/// The objects of a list; of anything else, none.
fn entries<'a>(document: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Map<String, Value>> {
    document
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .take(ENTRIES_MAX)
        .filter_map(Value::as_object)
}

/// Whether an entry's id is `#fragment`, alone or behind the document's own DID.
fn has_fragment(did: &Did, entry: &Map<String, Value>, fragment: &str) -> bool {
    text(entry, "id").is_some_and(|id| id.strip_prefix(did.as_str()).unwrap_or(id) == fragment)
}

fn signing_key(did: &Did, method: &Map<String, Value>) -> Option<SigningKey> {
    if !has_fragment(did, method, "#atproto") || text(method, "controller") != Some(did.as_str()) {
        return None;
    }
    SigningKey::from_legacy(text(method, "type")?, text(method, "publicKeyMultibase")?).ok()
}

/// The first service that matches counts, even if its endpoint is of no use.
fn pds(did: &Did, document: &Map<String, Value>, dev_mode: bool) -> Option<PdsEndpoint> {
    let service = entries(document, "service").find(|service| {
        has_fragment(did, service, "#atproto_pds") && text(service, "type") == Some(PDS_SERVICE_TYPE)
    })?;
    PdsEndpoint::parse(text(service, "serviceEndpoint")?, dev_mode).ok()
}

fn handle(document: &Map<String, Value>) -> Option<String> {
    let names = document.get("alsoKnownAs")?.as_array()?;
    first_handle(names.iter().filter_map(Value::as_str))
}

/// The first handle among an account's names, in lower case.
#[must_use]
pub fn first_handle<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    names
        .into_iter()
        .take(ENTRIES_MAX)
        .filter_map(|uri| uri.strip_prefix("at://"))
        // A handle is a domain name of two labels or more.
        .find(|name| name.contains('.') && !name.contains(':') && name.parse::<HostName>().is_ok())
        .map(str::to_ascii_lowercase)
}

/// Where a DID's document is found.
///
/// `plc_url` is the directory's, without a slash at the end. `did:web` is looked up on its host alone (AT Protocol
/// knows no paths in it), a public name by https; in `dev_mode` `localhost`, perhaps with a port, by http.
///
/// # Errors
/// When there is no such place.
pub fn document_url(did: &Did, plc_url: &str, dev_mode: bool) -> Result<String, UnresolvableDid> {
    match did.method() {
        DidMethod::Plc => Ok(format!("{plc_url}/{did}")),
        DidMethod::Web => web_url(did, dev_mode),
        DidMethod::Other => Err(UnresolvableDid("neither did:plc nor did:web of a host")),
    }
}

fn web_url(did: &Did, dev_mode: bool) -> Result<String, UnresolvableDid> {
    let id = did.as_str().strip_prefix("did:web:").unwrap_or_default();
    if id == "localhost" || id.starts_with("localhost%3A") {
        let authority: HostName = id
            .replacen("%3A", ":", 1)
            .parse()
            .map_err(|_| UnresolvableDid("not a host name"))?;
        return if dev_mode {
            Ok(format!("http://{authority}/.well-known/did.json"))
        } else {
            Err(UnresolvableDid("localhost is only looked up in dev_mode"))
        };
    }
    // An escaped port, path or user is no letter of a host name.
    let host: HostName = id.parse().map_err(|_| UnresolvableDid("not a host name"))?;
    check_public_name(host.as_str()).map_err(UnresolvableDid)?;
    if host.as_str().parse::<Ipv4Addr>().is_ok() || !host.as_str().contains('.') {
        return Err(UnresolvableDid("not a domain name"));
    }
    Ok(format!("https://{host}/.well-known/did.json"))
}

/// A DID that has no document which we could fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this DID cannot be looked up: {0}")]
pub struct UnresolvableDid(pub &'static str);

#[cfg(test)]
mod tests;
