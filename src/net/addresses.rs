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

/// The first element of a list in a header; empty ones are none (RFC 9110, 5.6.1).
pub(crate) fn first(list: &str) -> &str {
    list.split(',').map(str::trim).find(|element| !element.is_empty()).unwrap_or_default()
}

/// What the first element of `forwarded` (RFC 7239) says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Forwarded {
    /// `for`: an obfuscated identifier and `unknown` are no address.
    pub(crate) client: Option<String>,
    pub(crate) host: Option<String>,
    /// `proto`.
    pub(crate) scheme: Option<String>,
}

/// Reads the first element of a `forwarded`.
pub(crate) fn first_forwarded(value: &str) -> Forwarded {
    let (mut first, mut rest) = (Forwarded::default(), value.trim_start_matches([' ', '\t', ',']));
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquoted(quoted),
            None => {
                let (value, after) = after.split_at(after.find([',', ';']).unwrap_or(after.len()));
                (value.trim().to_owned(), after)
            }
        };
        match name.trim() {
            name if name.eq_ignore_ascii_case("for") => first.client = Some(value),
            name if name.eq_ignore_ascii_case("host") => first.host = Some(value),
            name if name.eq_ignore_ascii_case("proto") => first.scheme = Some(value),
            _ => {}
        }
        match after.trim_start().strip_prefix(';') {
            Some(next) => rest = next,
            None => break,
        }
    }
    first
}

/// A quoted string whose first quote was read, and what is behind it.
fn unquoted(quoted: &str) -> (String, &str) {
    let (mut value, mut is_escaped) = (String::new(), false);
    for (at, letter) in quoted.char_indices() {
        match letter {
            '"' if !is_escaped => return (value, &quoted[at + 1..]),
            '\\' if !is_escaped => {
                is_escaped = true;
                continue;
            }
            _ => value.push(letter),
        }
        is_escaped = false;
    }
    (String::new(), "")
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
        assert_eq!(parse(first("203.0.113.7, 10.0.0.1")), client);
        assert_eq!(parse(first("203.0.113.7:4711,10.0.0.1")), client);
        assert_eq!(parse(first(" , ,203.0.113.7, 10.0.0.1")), client, "empty elements are none");
        assert_eq!(parse(first("unknown, 203.0.113.7")), None);
        let of = |value: &str| parse(&first_forwarded(value).client?);
        assert_eq!(of("for=203.0.113.7;proto=https, for=10.0.0.1"), client);
        assert_eq!(of("proto=https; For=\"203.0.113.7:4711\""), client);
        assert_eq!(of("for=\"[2001:db8::1]:4711\""), Some("2001:db8::1".parse().unwrap()));
        for quoted in [
            "by=\"x;for=6.6.6.6\";for=203.0.113.7",
            "secret=\"a,b\";for=\"203.0.113.7\"",
            "by=\"a\\\"b;for=6.6.6.6\" ; for=203.0.113.7",
            ", for=203.0.113.7",
        ] {
            assert_eq!(of(quoted), client, "{quoted}");
        }
        for none in [
            "",
            "for",
            "for=_hidden",
            "for=unknown, for=203.0.113.7",
            "by=203.0.113.7",
            "by=a, for=203.0.113.7",
            "by=\"open;for=203.0.113.7",
            "by=\"a\"for=203.0.113.7",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
        let first = first_forwarded("for=_a;host=\"a.example:8443\";Proto=https, host=b");
        assert_eq!((first.host.as_deref(), first.scheme.as_deref()), (Some("a.example:8443"), Some("https")));
    }
}
