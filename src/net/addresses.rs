//! IP addresses as callers and proxies report them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `::1` as `127.0.0.1`, and an IPv4 address that is mapped into IPv6 as IPv4.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if v6.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        address => address,
    }
}

/// An address with or without port, brackets and zone: `10.0.0.7`, `10.0.0.7:1234`, `[fe80::1%eth0]:1234`.
pub(crate) fn parse(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let host = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').filter(|(_, port)| port.is_empty() || is_port(port))?.0,
        None => match text.rsplit_once(':') {
            Some((host, _)) if !host.contains(':') => return Some(text.parse::<SocketAddr>().ok()?.ip()),
            _ => text,
        },
    };
    host.split('%').next()?.parse().ok()
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}

/// The client in `x-forwarded-for`: the first element.
pub(crate) fn first_forwarded_for(value: &str) -> Option<IpAddr> {
    parse(value.split(',').next()?)
}

/// The client in `forwarded` (RFC 7239): `for` of the first element. Obfuscated identifiers and `unknown` are no address.
pub(crate) fn first_forwarded(value: &str) -> Option<IpAddr> {
    let mut pairs = value.split(',').next()?.split(';').filter_map(|pair| pair.split_once('='));
    let (_, node) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    parse(node.trim().trim_matches('"'))
}

/// An address that can be called: what listens on every address is called on loopback.
pub(crate) fn reachable(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        addr.set_ip(if addr.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    addr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_in_their_plainest_form() {
        let shown = |text: &str| canonical(text.parse().unwrap()).to_string();
        assert_eq!(shown("::1"), "127.0.0.1");
        assert_eq!(shown("::ffff:10.0.0.7"), "10.0.0.7");
        assert_eq!(shown("2001:db8::1"), "2001:db8::1");
    }

    #[test]
    fn ports_brackets_and_zones_of_an_address_are_read() {
        for (text, address) in [
            ("10.0.0.7", "10.0.0.7"),
            (" 10.0.0.7:1234 ", "10.0.0.7"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%eth0]:443", "fe80::1"),
        ] {
            assert_eq!(parse(text), Some(address.parse().unwrap()), "{text}");
        }
        for text in ["", "unknown", "_hidden", "10.0.0.7:", "10.0.0.7:x", "10.0.0.7:99999", "[::1", "[::1]443", "[::1]:x", "a%b"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_client_is_the_first_element_of_either_header() {
        let client = Some("203.0.113.7".parse().unwrap());
        assert_eq!(first_forwarded_for("203.0.113.7, 10.0.0.1"), client);
        assert_eq!(first_forwarded_for("203.0.113.7:4711,10.0.0.1"), client);
        assert_eq!(first_forwarded_for("unknown, 203.0.113.7"), None);
        assert_eq!(first_forwarded("for=203.0.113.7;proto=https, for=10.0.0.1"), client);
        assert_eq!(first_forwarded("proto=https; For=\"203.0.113.7:4711\""), client);
        assert_eq!(first_forwarded("for=\"[2001:db8::1]:4711\""), Some("2001:db8::1".parse().unwrap()));
        for none in ["", "for", "for=_hidden", "for=unknown, for=203.0.113.7", "by=203.0.113.7"] {
            assert_eq!(first_forwarded(none), None, "{none}");
        }
    }
}
