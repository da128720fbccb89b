//! Which names and addresses may be contacted on a stranger's word.
//!
//! Hosts come out of DID documents, which anybody can write, so a request may be aimed at this machine or
//! its neighbours (a cloud's metadata service, a database). Only addresses that the global internet routes
//! to are allowed: the test is on the address that is then connected to, never on a name alone. A
//! host that the admin configured himself may stand anywhere; so may any host in `dev_mode`.
//!
//! Source: the IANA special-purpose address registries (RFC 6890 and its updates).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::HostName;

/// Why a host or an address may not be contacted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The address is not one that the global internet routes to.
    #[error(
        "{host} leads to {address}, which is not on the public internet ({why}); hosts that you name in the \
         configuration are exempt"
    )]
    Address {
        /// Host as it was asked for.
        host: String,
        /// What it leads to.
        address: IpAddr,
        /// What kind of address that is.
        why: &'static str,
    },
    /// The name can only mean something local.
    #[error("{host} is not a public name ({why}); hosts that you name in the configuration are exempt")]
    Name {
        /// Host as it was asked for.
        host: String,
        /// The rule.
        why: &'static str,
    },
    /// Plain http outside `dev_mode`.
    #[error("{host} would be contacted without TLS; only dev_mode allows plain http")]
    PlainHttp {
        /// Host as it was asked for.
        host: String,
    },
}

/// Who may be contacted.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    /// Everybody, anywhere, without TLS too.
    dev_mode: bool,
    /// Without TLS; `dev_mode`, but for tests.
    plain_http: bool,
    /// The admin's own hosts, with their port where it is not 443 (80 for http).
    trusted: BTreeSet<HostName>,
}

impl AddressPolicy {
    /// With `dev_mode` nothing is refused; the trusted hosts may have any address.
    #[must_use]
    pub fn new(dev_mode: bool, trusted: impl IntoIterator<Item = HostName>) -> Self {
        Self {
            dev_mode,
            plain_http: dev_mode,
            trusted: trusted.into_iter().collect(),
        }
    }

    /// The same without the demand for TLS, so that tests can show the other rules.
    #[cfg(all(test, feature = "daemon"))]
    pub(crate) fn with_plain_http(mut self) -> Self {
        self.plain_http = true;
        self
    }

    /// Whether `dev_mode` is on.
    #[must_use]
    pub const fn dev_mode(&self) -> bool {
        self.dev_mode
    }

    /// Whether this host may have any address. `authority` is the host, with its port where the URL has one.
    #[must_use]
    pub fn is_trusted(&self, authority: &str) -> bool {
        self.dev_mode
            || authority
                .parse::<HostName>()
                .is_ok_and(|host| self.trusted.contains(&host))
    }

    /// Checks a host before its name is looked up.
    ///
    /// # Errors
    /// When it must not be contacted whatever its address.
    pub fn check_host(&self, authority: &str, https: bool) -> Result<(), Refusal> {
        if self.dev_mode {
            return Ok(());
        }
        if !https && !self.plain_http {
            return Err(Refusal::PlainHttp {
                host: authority.to_owned(),
            });
        }
        if self.is_trusted(authority) {
            return Ok(());
        }
        check_public_name(authority).map_err(|why| Refusal::Name {
            host: authority.to_owned(),
            why,
        })
    }

    /// Checks an address that the host's name led to.
    ///
    /// # Errors
    /// When it must not be contacted.
    pub fn check_address(&self, authority: &str, address: IpAddr) -> Result<(), Refusal> {
        if self.is_trusted(authority) {
            return Ok(());
        }
        match special_use(address) {
            None => Ok(()),
            Some(why) => Err(Refusal::Address {
                host: authority.to_owned(),
                address,
                why,
            }),
        }
    }
}

/// Checks that a host (with or without a port) is a name that can be public, or a public IPv4 address in the
/// usual form. `localhost`, names under reserved domains and numbers that some resolvers take for an
/// address (`0x7f000001`, `2130706433`, `127.1`) are not.
///
/// # Errors
/// The rule that it breaks.
pub fn check_public_name(authority: &str) -> Result<(), &'static str> {
    let host = match authority.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.split(']').next().unwrap_or(rest);
            let address: Ipv6Addr = inner.parse().map_err(|_| "malformed IPv6 address")?;
            return special_use(address.into()).map_or(Ok(()), Err);
        }
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return special_use(address.into()).map_or(Ok(()), Err);
    }
    let last = host.rsplit('.').next().unwrap_or(host);
    if last.is_empty() {
        return Err("ends in a dot");
    }
    let is_number = last.bytes().all(|b| b.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .or_else(|| last.strip_prefix("0X"))
            .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    if is_number {
        return Err("a number that may be taken for an address");
    }
    // RFC 6761, RFC 6762, RFC 7686, RFC 8375, RFC 9476, and ICANN's .internal. `.test` and `.example` stay:
    // they lead nowhere on the internet, and tests use them.
    let local = [
        "localhost",
        "local",
        "internal",
        "arpa",
        "onion",
        "invalid",
        "alt",
    ];
    if local.iter().any(|suffix| last.eq_ignore_ascii_case(suffix)) {
        return Err("reserved for local use");
    }
    Ok(())
}

/// What a special-purpose address is for; none for a globally routed unicast address.
#[must_use]
pub const fn special_use(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_use_v4(address),
        IpAddr::V6(address) => special_use_v6(address),
    }
}

const fn special_use_v4(address: Ipv4Addr) -> Option<&'static str> {
    Some(match address.octets() {
        [0, ..] => "this network",
        [127, ..] => "loopback",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "private",
        [100, 64..=127, ..] => "shared address space of providers",
        [169, 254, ..] => "link-local",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "documentation",
        [192, 0, 0, _] => "protocol assignments",
        [192, 88, 99, _] => "6to4 relay",
        [192, 31, 196, _] | [192, 52, 193, _] | [192, 175, 48, _] => "anycast service",
        [198, 18 | 19, ..] => "benchmarking",
        [224..=239, ..] => "multicast",
        [240..=255, ..] => "reserved",
        _ => return None,
    })
}

/// Only 2000::/3 is given out for global unicast; inside it some blocks are set apart, and some carry an IPv4
/// address that decides.
const fn special_use_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    Some(match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => "unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        [0, 0, 0, 0, 0, 0xffff, ..] => "IPv4-mapped",
        [0x64, 0xff9b, ..] => "NAT64",
        [0x100, 0, 0, 0 | 1, ..] => "discard-only",
        [0xfc00..=0xfdff, ..] => "unique local",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xff00..=0xffff, ..] => "multicast",
        [0x2002, ..] => "6to4",
        [0x2001, 0, ..] => "Teredo",
        [0x2001, 0..=0x1ff, ..] => "protocol assignments",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "documentation",
        [0x2620, 0x4f, 0x8000, ..] => "anycast service",
        [0x2000..=0x3fff, ..] => return None,
        _ => "not global unicast",
    })
}

#[cfg(test)]
mod tests;
