//! A next hop: its URL, as it is configured and as it is called.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use http::header::InvalidHeaderValue;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};

use crate::net::hosts::{UrlError, parse_url, port_of, redacted_url, usual_port};
use crate::rpc::CALL;
use crate::upstream::client::Protocol;
use crate::values::{MAX_SERVICE_NUMBER, percent_number, percent_text, service_number};

/// A next hop.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub(super) protocol: Protocol,
    /// With the scheme of the connection, `http` or `https`.
    pub(super) uri: Uri,
    /// As it is shown: without query.
    url: String,
    has_path: bool,
    /// The N of a path `/service<N>`.
    service: Option<u16>,
    /// An address without its brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// As a label.
    pub(super) port_text: String,
    /// Scheme, host and port, as spans show them.
    pub(super) base_url: String,
    /// The value of the `host` header.
    pub(super) authority: HeaderValue,
    /// The share of the requests that it is called for, from 0 to 1.
    pub(super) share: f64,
}

impl Target {
    /// Where a request for `/service<n>` goes on to: path and query, and the URL as it is shown. A URL without a path gets
    /// the path `/service<n+1>`.
    ///
    /// A call of gRPC has its method for a path; what is shown is what it means.
    pub(crate) fn path(&self, n: u16) -> (PathAndQuery, Cow<'_, str>) {
        if self.protocol == Protocol::Grpc {
            let url = if self.has_path { Cow::Borrowed(&*self.url) } else { format!("{}/service{}", self.url, next(n)).into() };
            return (PathAndQuery::from_static(CALL), url);
        }
        if !self.has_path {
            let path = format!("/service{}", n + 1);
            let url = Cow::Owned([&*self.url, &path].concat());
            if let Ok(path) = PathAndQuery::try_from(path) {
                return (path, url);
            }
        }
        let path = self.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        (path, Cow::Borrowed(&*self.url))
    }
}

/// The last number that a call of gRPC can have is its own next one.
fn next(n: u16) -> u16 {
    (n + 1).min(MAX_SERVICE_NUMBER)
}

/// As it is configured, without query.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.share < 1.0 {
            write!(f, "{}=", percent_text(self.share))?;
        }
        f.write_str(&self.url)
    }
}

impl Target {
    /// The N that a request for `/service<n>` goes on with.
    pub(super) fn service(&self, n: u16) -> u16 {
        self.service.filter(|_| self.has_path).unwrap_or(next(n))
    }

    pub(super) fn is_grpc(&self) -> bool {
        self.protocol == Protocol::Grpc
    }
}

/// Why a text is no [`Target`]. The messages do not repeat the text, which may hold a password.
#[derive(Debug)]
pub enum TargetError {
    /// Not an `http`, `https`, `h2c`, `grpc` or `grpcs` URL with a host and a usable port.
    Url(UrlError),
    /// A user name in the URL, which would have to be sent as credentials.
    UserName,
    /// A path that a call of gRPC cannot have.
    GrpcPath,
    /// The share of the requests is not from 0 % to 100 %.
    Share,
    /// The host cannot be the value of a `host` header.
    Host(InvalidHeaderValue),
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(UrlError::SchemeOrHost) => f.write_str("no scheme that is accepted, or no host")?,
            Self::Url(error) => error.fmt(f)?,
            Self::UserName => f.write_str("a user name in the URL is not supported")?,
            Self::GrpcPath => f.write_str("gRPC has no path but /service<N>, N from 0 to 9999")?,
            Self::Share => f.write_str("the share of the requests is not from 0% to 100%")?,
            Self::Host(error) => error.fmt(f)?,
        }
        f.write_str("; a next hop is written http://service2/service2, https://host:port/path, h2c://service2, grpc://service2 or grpcs://host:port; 20%=URL is called for a fifth of the requests")
    }
}

impl std::error::Error for TargetError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Url(error) => Some(error),
            Self::UserName | Self::GrpcPath | Self::Share => None,
            Self::Host(error) => Some(error),
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (share, text) = match text.trim().split_once("%=") {
            Some((percent, url)) if !percent.contains("://") => (percent_number(percent).ok_or(TargetError::Share)? / 100.0, url),
            _ => (1.0, text),
        };
        let (protocol, connected) = match text.trim().split_once("://") {
            Some(("h2c", rest)) => (Protocol::Http2, Cow::Owned(format!("http://{rest}"))),
            Some(("grpc", rest)) => (Protocol::Grpc, Cow::Owned(format!("http://{rest}"))),
            Some(("grpcs", rest)) => (Protocol::Grpc, Cow::Owned(format!("https://{rest}"))),
            _ => (Protocol::Http, Cow::Borrowed(text)),
        };
        let uri = parse_url(&connected).map_err(TargetError::Url)?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(TargetError::UserName);
        }
        let url = text.trim();
        let has_path = uri.path() != "/" || uri.query().is_some() || url.ends_with('/');
        let service = uri.path().strip_prefix("/service").and_then(service_number);
        if protocol == Protocol::Grpc && has_path && (service.is_none() || uri.query().is_some()) {
            return Err(TargetError::GrpcPath);
        }
        let host = uri.host().unwrap_or_default();
        let scheme = uri.scheme_str().unwrap_or_default();
        let port = port_of(&uri);
        let authority = if port == usual_port(scheme) { host.to_owned() } else { format!("{host}:{port}") };
        let base_url = format!("{scheme}://{authority}");
        let authority = HeaderValue::from_str(&authority).map_err(TargetError::Host)?;
        Ok(Self {
            protocol,
            service,
            url: redacted_url(url),
            has_path,
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            port_text: port.to_string(),
            base_url,
            authority,
            share,
            uri,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_path_gets_the_next_service() {
        let path = |text: &str| {
            let target = text.parse::<Target>().unwrap();
            let (path, url) = target.path(1);
            (path.to_string(), url.into_owned())
        };
        for (text, called, shown) in [
            ("http://service2", "/service2", "http://service2/service2"),
            ("http://service2:8080", "/service2", "http://service2:8080/service2"),
            ("http://service2/", "/", "http://service2/"),
            ("h2c://service2:8080", "/service2", "h2c://service2:8080/service2"),
            ("http://[::1]:8080", "/service2", "http://[::1]:8080/service2"),
            ("http://service2/service7?token=x", "/service7?token=x", "http://service2/service7"),
        ] {
            assert_eq!(path(text), (called.to_owned(), shown.to_owned()), "{text}");
        }
        let shown = |text: &str| text.parse::<Target>().unwrap().to_string();
        for (text, written) in [
            ("20%=http://service2:8080/x?token=y", "20%=http://service2:8080/x"),
            (" 0.7 %=grpc://service2", "0.7%=grpc://service2"),
            ("100%=http://service2", "http://service2"),
            ("0%=http://service2", "0%=http://service2"),
        ] {
            assert_eq!(shown(text), written);
        }
        assert_eq!(path("grpc://service2:8080"), (CALL.to_owned(), "grpc://service2:8080/service2".to_owned()));
        assert_eq!(path("grpcs://a/service7"), (CALL.to_owned(), "grpcs://a/service7".to_owned()));
        let service = |text: &str| text.parse::<Target>().unwrap().service(1);
        assert_eq!((service("grpc://a"), service("grpc://a/service7"), service("grpc://a/service0")), (2, 7, 0));
        let last = "grpc://a".parse::<Target>().unwrap();
        assert_eq!((last.path(9999).1.into_owned(), last.service(9999)), ("grpc://a/service9999".to_owned(), 9999));
        for bad in ["grpc://a/", "grpc://a/x", "grpc://a/service01", "grpc://a/service1?b=c", "grpc://", "grpc:a", "GRPC2://a"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
        for bad in
            ["", "service2", "/service2", "ftp://a", "http://", "http://u:p@h/", "http://a b", "http://a:99999", "http://a:0"]
        {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
