//! Addresses and names that must be refused, and their neighbours that must not.

use super::*;

fn host(text: &str) -> HostName {
    text.parse().expect("valid")
}

#[test]
fn only_globally_routed_addresses_pass() {
    let refused = [
        "0.0.0.0",
        "0.255.255.255",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.0",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "192.175.48.6",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::2",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:10::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "3fff:fff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fdff::1",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
    ];
    for text in refused {
        let address = text.parse().expect("an address");
        assert!(special_use(address).is_some(), "{text} passed");
    }
    let allowed = [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.1",
        "192.0.1.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2606:4700::1111",
        "2a00::1",
        "3ffe::1",
        "3fff:1000::1",
    ];
    for text in allowed {
        let address = text.parse().expect("an address");
        assert_eq!(special_use(address), None, "{text}");
    }
}

#[test]
fn names_that_mean_something_local_are_refused() {
    for name in [
        "localhost",
        "LOCALHOST:443",
        "foo.localhost",
        "printer.local",
        "pds.internal",
        "1.0.0.127.in-addr.arpa",
        "x.onion",
        "127.0.0.1",
        "127.0.0.1:8080",
        "10.1.2.3",
        "0",
        "127.1",
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0X7F.0x1",
        "pds.example.com.",
        "[::1]",
        "[::1]:443",
        "[::ffff:10.0.0.1]",
        "[not an address]",
    ] {
        assert!(check_public_name(name).is_err(), "{name} passed");
    }
    for name in [
        "pds.example.com",
        "pds.example.com:8443",
        "plc.test",
        "xn--bcher-kva.example",
        "0x.example.com",
        "8.8.8.8",
        "localhost.example.com",
        "[2606:4700::1111]",
    ] {
        assert_eq!(check_public_name(name), Ok(()), "{name}");
    }
}

#[test]
fn the_policy_exempts_the_admins_own_hosts_only() {
    let policy = AddressPolicy::new(false, [host("pds.internal"), host("10.0.0.5:3000")]);
    let private: IpAddr = "10.0.0.5".parse().expect("an address");
    assert_eq!(policy.check_host("pds.internal", true), Ok(()));
    assert_eq!(policy.check_address("pds.internal", private), Ok(()));
    assert_eq!(policy.check_address("PDS.internal", private), Ok(()));
    assert_eq!(policy.check_host("10.0.0.5:3000", true), Ok(()));
    assert_eq!(policy.check_address("10.0.0.5:3000", private), Ok(()));
    // Another port of the same machine is another host.
    assert!(policy.check_address("10.0.0.5:3001", private).is_err());
    assert!(policy.check_host("pds.internal:8443", true).is_err());
    assert!(matches!(
        policy.check_address("pds.example.com", private),
        Err(Refusal::Address { why: "private", .. })
    ));
    assert!(matches!(
        policy.check_host("other.internal", true),
        Err(Refusal::Name { .. })
    ));
    // Not even the admin's own host without TLS.
    assert!(matches!(
        policy.check_host("pds.internal", false),
        Err(Refusal::PlainHttp { .. })
    ));
}

#[test]
fn dev_mode_refuses_nothing() {
    let policy = AddressPolicy::new(true, []);
    let private: IpAddr = "127.0.0.1".parse().expect("an address");
    assert_eq!(policy.check_host("localhost:2583", false), Ok(()));
    assert_eq!(policy.check_address("localhost:2583", private), Ok(()));
}
