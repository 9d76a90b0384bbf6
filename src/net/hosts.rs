//! Hosts, ports and URLs as texts.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use http::Uri;
use reqwest::Url;

/// `host:port`, `host` or `[::1]:port`, an address without its brackets; the port is the scheme's when it is not given.
pub(crate) fn host_and_port<'a>(host: &'a str, scheme: &str) -> (&'a str, u16) {
    let usual = usual_port(scheme);
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, port.parse().unwrap_or(usual)),
        _ => (host, usual),
    };
    (name.trim_matches(['[', ']']), port)
}

/// The port of URLs of this scheme that name none.
pub(crate) fn usual_port(scheme: &str) -> u16 {
    if matches!(scheme, "https" | "grpcs") { 443 } else { 80 }
}

/// The port of a URL: its own, or that of its scheme.
pub(crate) fn port_of(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or_else(|| usual_port(uri.scheme_str().unwrap_or_default()))
}

/// The port of a URL: its own, or that of its scheme.
pub(crate) fn url_port(url: &Url) -> u16 {
    url.port().unwrap_or_else(|| usual_port(url.scheme()))
}

/// Whether a URL is called by TLS.
pub(crate) fn is_tls(url: &Url) -> bool {
    matches!(url.scheme(), "https" | "grpcs")
}

/// An http or https URL with a host and a port that can be connected to.
pub(crate) fn http_url(text: &str) -> Result<Url, String> {
    let url = text.trim().parse::<Url>().ok().filter(|url| parse_url(url.as_str()).is_ok());
    url.ok_or_else(|| "accepted: an http or https URL, like `http://127.0.0.1:8080/service1`".to_owned())
}

/// Whether a text is `uri-host [":" port]` (RFC 9110, 7.2): a name or an address, no user, and a port that exists.
pub(crate) fn is_host_and_port(text: &[u8]) -> bool {
    let (is_host, port) = match text {
        [b'[', rest @ ..] => match rest.iter().position(|byte| *byte == b']') {
            Some(end) => (std::str::from_utf8(&rest[..end]).is_ok_and(|host| host.parse::<Ipv6Addr>().is_ok()), &rest[end + 1..]),
            None => return false,
        },
        _ => {
            let (name, port) = text.split_at(text.iter().position(|byte| *byte == b':').unwrap_or(text.len()));
            (!name.is_empty() && is_registered_name(name), port)
        }
    };
    let is_port = match port {
        [] | [b':'] => true,
        [b':', digits @ ..] => {
            let number = digits.iter().try_fold(0_u32, |number, byte| match byte {
                b'0'..=b'9' => Some(number * 10 + u32::from(byte - b'0')).filter(|number| *number <= u32::from(u16::MAX)),
                _ => None,
            });
            number.is_some()
        }
        _ => false,
    };
    is_host && is_port
}

/// `reg-name` (RFC 3986, 3.2.2), which an IPv4 address is, too.
fn is_registered_name(name: &[u8]) -> bool {
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        let is_valid = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => true,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => true,
            b'%' => (0..2).all(|_| bytes.next().is_some_and(u8::is_ascii_hexdigit)),
            _ => false,
        };
        if !is_valid {
            return false;
        }
    }
    true
}

/// The address that a URL's or a header's host is, if it is no name; brackets of IPv6 are read.
pub(crate) fn address_of(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// The host of a URL, without port and the brackets of IPv6; empty when there is none.
pub(crate) fn host_of(url: &str) -> String {
    let uri: Uri = url.parse().unwrap_or_default();
    uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned()
}

/// Whether a host is this machine, by an address or by the name `localhost`, which may end in a dot.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    address_of(host).map_or(host.eq_ignore_ascii_case("localhost"), |address| address.to_canonical().is_loopback())
}

/// Why a text is not an `http` or `https` URL that can be called.
#[derive(Debug)]
pub enum UrlError {
    /// Not a URL.
    Syntax(http::uri::InvalidUri),
    /// Another scheme than `http` and `https`, or no host.
    SchemeOrHost,
    /// A port that is not a number from 1 to 65535.
    Port,
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(error) => error.fmt(f),
            Self::SchemeOrHost => f.write_str("neither http nor https, or no host"),
            Self::Port => f.write_str("the port is not a number from 1 to 65535"),
        }
    }
}

impl std::error::Error for UrlError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Syntax(error) => Some(error),
            Self::SchemeOrHost | Self::Port => None,
        }
    }
}

/// An `http` or `https` URL with a host and, if it names one, a port that exists.
///
/// # Errors
///
/// [`UrlError`] names what is wrong; it does not repeat the text, which may contain a password.
pub(crate) fn parse_url(text: &str) -> Result<Uri, UrlError> {
    let uri: Uri = text.trim().parse().map_err(UrlError::Syntax)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(UrlError::SchemeOrHost);
    }
    if has_usable_port(&uri) { Ok(uri) } else { Err(UrlError::Port) }
}

/// Whether a URL has no port or one that exists. `Uri` accepts any digits, and what is no port would silently be 80.
fn has_usable_port(uri: &Uri) -> bool {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, host_and_port)| host_and_port);
    let port = host_and_port.strip_prefix(uri.host().unwrap_or_default()).unwrap_or_default();
    port.is_empty() || uri.port_u16().is_some_and(|port| port != 0)
}

/// A URL as it is shown: without user, password, query and fragment, which may contain secrets. Also reads a relative reference
/// as it stands in a `Location`, and returns what is no URL up to its first `?` or `#`.
pub(crate) fn redacted_url(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = match url.split_once("//") {
        Some((scheme, rest)) if scheme.is_empty() || scheme.ends_with(':') => (scheme, rest),
        _ => return url.to_owned(),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}//{host}{path}")
}

/// A value that was to be a URL, for an error message: without what could be a password, however the URL is malformed.
pub(crate) fn redacted_input(text: &str) -> Cow<'_, str> {
    let Some((before, host)) = text.rsplit_once('@') else {
        return if text.contains("://") { redacted_url(text).into() } else { text.into() };
    };
    let scheme = before.split_once("//").map_or("", |(scheme, _)| scheme);
    let slashes = if scheme.is_empty() { "" } else { "//" };
    format!("{scheme}{slashes}***@{}", redacted_url(host)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_split_from_its_port() {
        assert_eq!(host_and_port("service2", "http"), ("service2", 80));
        assert_eq!(host_and_port("service2:8080", "https"), ("service2", 8080));
        assert_eq!(host_and_port("[::1]:8080", "http"), ("::1", 8080));
        assert_eq!(host_and_port("[::1]", "http"), ("::1", 80));
        assert_eq!(host_and_port("::1", "https"), ("::1", 443));
        assert_eq!(host_and_port("service2", "grpcs"), ("service2", 443));
        for (url, port) in [
            ("http://a", 80),
            ("h2c://a/x", 80),
            ("grpc://a", 80),
            ("https://a", 443),
            ("grpcs://a", 443),
            ("grpcs://a:8443", 8443),
            ("https://[::1]:1/", 1),
        ] {
            assert_eq!(port_of(&url.parse().unwrap()), port, "{url}");
        }
    }

    #[test]
    fn the_host_of_a_url_has_no_port_user_or_brackets() {
        for (url, host) in
            [("http://a.b:80/c?d", "a.b"), ("https://u:p@a/", "a"), ("http://[::1]:8081/", "::1"), ("", ""), ("/a", "")]
        {
            assert_eq!(host_of(url), host, "{url}");
        }
    }

    #[test]
    fn loopback_is_known_by_name_and_by_address() {
        for host in ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "localhost.example.com", "10.0.0.1", "0.0.0.0", "service1", "[::]"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_url_needs_scheme_host_and_a_port_that_exists() {
        for good in ["http://a", " https://a:1/b?c ", "http://[::1]:65535", "http://u:p@a:80/"] {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "/a", "ftp://a", "http://", "http://a b", "http://a:99999", "http://a:0", "http://u@a:0"] {
            let error = parse_url(bad).expect_err(bad).to_string();
            assert!(!error.is_empty(), "{bad}");
        }
    }

    #[test]
    fn a_shown_url_has_no_user_password_or_query() {
        for (url, shown) in [
            ("http://a:80/b", "http://a:80/b"),
            ("http://user:pass@a/b?token=x#y", "http://a/b"),
            ("https://user:p@ss@a", "https://a"),
            ("//u:p@a/b?c", "//a/b"),
            ("/login?code=1", "/login"),
            ("?code=1", ""),
            ("http://a/b@c", "http://a/b@c"),
            ("http://a?next=http://u:p@b", "http://a"),
            ("/redirect//x@y", "/redirect//x@y"),
            ("no url", "no url"),
        ] {
            assert_eq!(redacted_url(url), shown, "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_repeated_without_what_may_be_a_password() {
        for (text, shown) in [
            ("http://a:99999/b?token=x", "http://a:99999/b"),
            ("ftp://u:p@a/b?c", "ftp://***@a/b"),
            ("http://user:p/ss@host/x", "http://***@host/x"),
            ("http://user:p?ss@host", "http://***@host"),
            ("user:pass@zipkin:9411", "***@zipkin:9411"),
            ("zipkin:9411", "zipkin:9411"),
            ("abort=503@10%", "***@10%"),
        ] {
            assert_eq!(redacted_input(text), shown, "{text}");
        }
    }
}
