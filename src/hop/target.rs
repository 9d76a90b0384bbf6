//! Whether a request says which host it is for, so that every server reads the same one (RFC 9112, 3.2; RFC 9113, 8.3.1).

use http::{HeaderValue, Uri, Version};

use crate::net::hosts::is_host_and_port;

/// Whether host and target of a request's head are valid: its one `Host`, and the authority of its target, which wins over
/// `Host` in HTTP/1 and must be the same in HTTP/2.
pub(crate) fn is_valid(uri: &Uri, version: Version, host: Option<&HeaderValue>, hosts: usize) -> bool {
    let host = host.map_or(&b""[..], HeaderValue::as_bytes);
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    // A client that has no host writes an empty `Host` (RFC 9112, 3.2): the hop is for every host.
    let is_host_valid = hosts <= 1 && (host.is_empty() || is_host_and_port(host));
    if !is_host_valid || authority.is_some_and(|authority| !is_host_and_port(authority)) {
        return false;
    }
    match version {
        Version::HTTP_2 => match authority {
            Some(authority) => hosts == 0 || is_same(authority, host, uri.scheme_str()),
            None => !host.is_empty(),
        },
        Version::HTTP_11 => hosts == 1,
        _ => true,
    }
}

/// Whether two hosts are the same, whatever their case, and whether one names the default port.
fn is_same(a: &[u8], b: &[u8], scheme: Option<&str>) -> bool {
    let default = if scheme == Some("https") { &b":443"[..] } else { b":80" };
    let name = |host: &[u8]| -> usize {
        let end = host.strip_suffix(default).or_else(|| host.strip_suffix(b":"));
        end.unwrap_or(host).len()
    };
    a[..name(a)].eq_ignore_ascii_case(&b[..name(b)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid(version: Version, uri: &str, hosts: &[&'static str]) -> bool {
        let host = hosts.last().map(|host| HeaderValue::from_static(host));
        is_valid(&uri.parse().unwrap(), version, host.as_ref(), hosts.len())
    }

    #[test]
    fn http_1_1_has_one_host_that_is_one() {
        for host in ["a", "a:80", "a.b-c_d~e:", "127.0.0.1:65535", "[::1]:80", "[::1]", "a%20b", "", "A", "a:0", "!$&'()*+,;="] {
            assert!(valid(Version::HTTP_11, "/", &[host]), "{host}");
            assert!(valid(Version::HTTP_10, "/", &[host]), "{host}");
        }
        for host in [
            "a b/c@d", "a b", "a/b", "u@a", "u:p@a", "a:99999", "a:65536", "a:-1", "a:+1", "a:x", "a:1:2", ":80", "::1", "[::1",
            "[::1]x", "[x]", "[]", "a%2", "a%zz", "a?b", "a#b", "a\"", "a<b>", "a\\b", "http://a", "a,b c",
        ] {
            assert!(!valid(Version::HTTP_11, "/", &[host]), "{host}");
            assert!(!valid(Version::HTTP_10, "/", &[host]), "{host}");
            assert!(!valid(Version::HTTP_2, "/", &[host]), "{host}");
        }
        assert!(!valid(Version::HTTP_11, "/", &[]) && !valid(Version::HTTP_11, "/", &["a", "a"]));
        assert!(valid(Version::HTTP_10, "/", &[]) && !valid(Version::HTTP_10, "/", &["a", "a"]));
    }

    #[test]
    fn the_authority_of_a_target_wins_and_is_checked_too() {
        assert!(valid(Version::HTTP_11, "http://b/", &["a"]), "another host");
        assert!(valid(Version::HTTP_11, "b:80", &["a"]), "CONNECT");
        assert!(!valid(Version::HTTP_11, "http://b/", &[]), "no host");
        assert!(!valid(Version::HTTP_11, "http://b/", &["a b"]), "an invalid host");
        for uri in ["http://u@b/", "http://u:p@b/", "http://b:99999/", "http://@b/"] {
            assert!(!valid(Version::HTTP_11, uri, &["b"]), "{uri}");
            assert!(!valid(Version::HTTP_2, uri, &[]), "{uri}");
        }
    }

    #[test]
    fn http_2_has_an_authority_or_a_host_or_both_the_same() {
        for (uri, hosts) in [
            ("http://a/", &[][..]),
            ("/", &["a"]),
            ("http://a/", &["a"]),
            ("http://A:80/", &["a"]),
            ("https://a/", &["a:443"]),
            ("http://a:/", &["a:80"]),
            ("http://[::1]:8080/", &["[::1]:8080"]),
        ] {
            assert!(valid(Version::HTTP_2, uri, hosts), "{uri} {hosts:?}");
        }
        for (uri, hosts) in [
            ("/", &[][..]),
            ("/", &[""]),
            ("http://a/", &["b"]),
            ("http://a/", &[""]),
            ("http://a/", &["a:443"]),
            ("https://a/", &["a:80"]),
            ("http://a:8080/", &["a"]),
            ("http://a/", &["a", "a"]),
            ("/", &["a", "a"]),
        ] {
            assert!(!valid(Version::HTTP_2, uri, hosts), "{uri} {hosts:?}");
        }
    }
}
