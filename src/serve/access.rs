//! Who sees the private pages on the public listener: only a browser on this machine that nobody stands in front of.
//!
//! A request counts as local when it comes from a loopback address, names an address or `localhost` (a name could have
//! been pointed here), carries no mark of a proxy, was not made by another site's page, and no `public_url` says that
//! others come here too. A proxy that leaves no mark is kept out by `public_url` alone, so documentation asks for it.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{self, HeaderMap};

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Headers that proxies set.
const PROXIED: [&str; 11] = [
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
    "x-original-forwarded-for",
    "cf-connecting-ip",
    "true-client-ip",
    "x-client-ip",
];

/// Whether the private pages are shown.
pub(super) fn is_local(peer: Option<Peer>, headers: &HeaderMap, has_public_url: bool) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let from_here = peer.is_some_and(|Peer(address)| is_loopback(address.ip()));
    let host = text(header::HOST.as_str()).unwrap_or_default();
    let by_a_page = headers.contains_key(header::ORIGIN)
        || text("sec-fetch-site").is_some_and(|site| !matches!(site, "none" | "same-origin"));
    let proxied = PROXIED.iter().any(|name| headers.contains_key(*name));
    from_here && super::admin::is_plain(host) && !by_a_page && !proxied && !has_public_url
}

fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(peer: &str, headers: &[(&'static str, &'static str)], public_url: bool) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, hyper::header::HeaderValue::from_static(value));
        }
        is_local(Some(Peer(peer.parse().expect("an address"))), &map, public_url)
    }

    #[test]
    fn only_a_browser_on_this_machine_sees_the_private_pages() {
        let host = ("host", "127.0.0.1:2585");
        for peer in ["127.0.0.1:5000", "[::1]:5000", "[::ffff:127.0.0.1]:5000"] {
            assert!(seen(peer, &[host], false), "{peer}");
            assert!(seen(
                peer,
                &[("host", "localhost:2585"), ("sec-fetch-site", "none")],
                false
            ));
            assert!(!seen(peer, &[host], true), "others come here too");
        }
        for peer in [
            "192.168.1.7:5000",
            "10.0.0.1:1",
            "[2001:db8::1]:1",
            "[::ffff:10.0.0.1]:1",
        ] {
            assert!(!seen(peer, &[host], false), "{peer}");
        }
        let here = "127.0.0.1:5000";
        assert!(!seen(here, &[], false), "no host");
        assert!(
            !seen(here, &[("host", "backup.example.com")], false),
            "a name that points here"
        );
        for name in PROXIED {
            assert!(!seen(here, &[host, (name, "1")], false), "{name}");
        }
        assert!(!seen(here, &[host, ("origin", "http://127.0.0.1:2585")], false));
        for site in ["cross-site", "same-site"] {
            assert!(!seen(here, &[host, ("sec-fetch-site", site)], false), "{site}");
        }
        assert!(!is_local(None, &HeaderMap::new(), false));
    }
}
