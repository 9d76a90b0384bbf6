//! Who may do what at the store's port.
//!
//! A page of another site can make its visitor's browser send requests here, and a name that is pointed at this address (DNS
//! rebinding) makes the browser believe that it is the same site. So spans are taken under any `Host`, because exporters in
//! containers use the store's name, but from no browser; page and queries are answered under a name that is ours; orders are
//! taken from this machine. Who has the access key may read and order under any name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use subtle::ConstantTimeEq as _;

use crate::net::addresses::reachable;
use crate::net::bearer::bearer_token;
use crate::net::{hosts, tls};
use crate::server::ConnectionInfo;
use crate::text::hex::push_hex;

/// Where spans are sent to, and what probes ask: whoever reports or probes uses the name that it knows.
const OPEN_PATHS: [&str; 4] =
    ["/api/v2/spans", "/v1/traces", "/opentelemetry.proto.collector.trace.v1.TraceService/Export", "/health"];

/// Where orders are sent to: their handler asks [`Access::may_order`].
pub(crate) const ORDERS_PATH: &str = "/demo/control";

/// Why a request is refused: the status, and a sentence for whoever tries it by hand.
pub(crate) type AccessRefusal = (StatusCode, &'static str);

/// Who may read and who may give orders. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Access(Arc<Rules>);

#[derive(Debug)]
struct Rules {
    /// Where the page is served.
    addr: SocketAddr,
    /// `--allow-host`.
    allowed: Vec<String>,
    /// `--allow-remote-control`.
    remote: bool,
    key: AccessKey,
}

/// The access key: new for each start.
struct AccessKey(String);

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessKey(***)")
    }
}

impl AccessKey {
    /// # Errors
    ///
    /// The system has no random numbers.
    fn random() -> Result<Self, String> {
        let mut bytes = [0; 16];
        tls::provider().secure_random.fill(&mut bytes).map_err(|_| "the system has no random numbers".to_owned())?;
        let mut text = Vec::new();
        push_hex(&mut text, &bytes);
        Ok(Self(String::from_utf8_lossy(&text).into_owned()))
    }

    /// Takes the same time for every text of the key's length.
    fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl Access {
    /// # Errors
    ///
    /// The system has no random numbers for the key.
    pub(crate) fn new(addr: SocketAddr, allowed: Vec<String>, remote: bool) -> Result<Self, String> {
        Ok(Self(Arc::new(Rules { addr, allowed, remote, key: AccessKey::random()? })))
    }

    /// Where store and page can be reached.
    pub(crate) fn addr(&self) -> SocketAddr {
        reachable(self.0.addr)
    }

    /// The address of the page as it is shown, with the key.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/?key={}", self.addr(), self.0.key.0)
    }

    /// Puts the rule of ingestion and that of page and queries in front of `router`. Orders have one more, in their handler.
    pub(crate) fn guard(&self, router: Router) -> Router {
        let access = self.clone();
        router.layer(middleware::from_fn(move |request: Request, next: Next| {
            let access = access.clone();
            async move {
                let (head, body) = request.into_parts();
                match access.answer(&head) {
                    Some(response) => response,
                    None => next.run(Request::from_parts(head, body)).await,
                }
            }
        }))
    }

    /// The answer to a request that does not reach the router.
    fn answer(&self, head: &Parts) -> Option<Response> {
        let refused = |(status, why): AccessRefusal| Some(text(status, why));
        if OPEN_PATHS.contains(&head.uri.path()) && (head.method == Method::POST || head.uri.path() == "/health") {
            let from_page = head.headers.contains_key(header::ORIGIN);
            return from_page
                .then(|| text(StatusCode::FORBIDDEN, "no web page reports spans here, so nothing with an Origin is taken"));
        }
        if head.uri.path() == ORDERS_PATH {
            return None;
        }
        if let Some(key) = key_in(head.uri.query().unwrap_or_default()) {
            return match self.0.key.is(key.as_bytes()) {
                true => Some(self.exchange(head)),
                false => refused((
                    StatusCode::FORBIDDEN,
                    "the access key is not this start's: the page's URL was printed at the start",
                )),
            };
        }
        self.may_read(head).err().and_then(refused)
    }

    /// The cookie for the key, and the same address without the key.
    fn exchange(&self, head: &Parts) -> Response {
        let without: Vec<_> = head.uri.query().unwrap_or_default().split('&').filter(|pair| key_in(pair).is_none()).collect();
        // Two slashes at the beginning would be the address of another host, and browsers read a backslash as a slash.
        let path = format!("/{}", head.uri.path().trim_start_matches(['/', '\\']));
        let location = if without.is_empty() { path } else { format!("{path}?{}", without.join("&")) };
        let cookie = format!("{}={}; Path=/; HttpOnly; SameSite=Strict", cookie_name(host_of(head).as_ref()), self.0.key.0);
        let headers = [(header::LOCATION, location), (header::SET_COOKIE, cookie)];
        let fixed = [(header::CACHE_CONTROL, "no-store"), (header::REFERRER_POLICY, "no-referrer")];
        let mut response = (StatusCode::SEE_OTHER, fixed).into_response();
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }

    fn may_read(&self, head: &Parts) -> Result<(), AccessRefusal> {
        let forbidden = |why| Err((StatusCode::FORBIDDEN, why));
        let host = host_of(head);
        if !self.has_key(head) && !host.as_ref().is_some_and(|host| self.is_readable_under(host)) {
            return forbidden(
                "the Host header is not a name of this store: open the page by the URL that was printed at the start, \
                 or start it with --allow-host NAME",
            );
        }
        if head.headers.contains_key(header::ORIGIN) && !host.is_some_and(|host| self.is_own_origin(head, &host)) {
            return forbidden("the Origin header is another site's");
        }
        // What another site embeds (an image, a script) has no Origin. A link to here is fine.
        let fetch = |name| only(&head.headers, HeaderName::from_static(name)).unwrap_or_default();
        if matches!(fetch("sec-fetch-site"), "cross-site" | "same-site") && fetch("sec-fetch-mode") != "navigate" {
            return forbidden("another site asked for this");
        }
        Ok(())
    }

    /// Why the sender of this may give no orders; `None` when it may.
    pub(crate) fn watching_only(&self, head: &Parts) -> Option<&'static str> {
        if self.has_key(head) {
            None
        } else if !self.is_here(peer(head)) {
            Some(
                "orders are taken from the machine that runs the demo, and from who opens the page by the URL with the access key \
                 that the demo printed at its start",
            )
        } else if !host_of(head).is_some_and(|host| self.is_ours(&host)) {
            Some("the Host header is not a name of this demo: open the page by localhost or by its IP address")
        } else {
            None
        }
    }

    /// # Errors
    ///
    /// Why this is not an order from our own page.
    pub(crate) fn may_order(&self, head: &Parts) -> Result<(), AccessRefusal> {
        if let Some(why) = self.watching_only(head) {
            return Err((StatusCode::FORBIDDEN, why));
        }
        let Some(host) = host_of(head) else { return Err((StatusCode::FORBIDDEN, "the Host header is missing")) };
        if !head.headers.contains_key(header::ORIGIN) {
            return Err((StatusCode::FORBIDDEN, "the Origin header is missing: orders are taken from the demo's own page"));
        }
        if !self.is_own_origin(head, &host) {
            return Err((
                StatusCode::FORBIDDEN,
                "the Origin header is another site's: orders are taken from the demo's own page",
            ));
        }
        // Another site cannot send this type without asking first.
        let kind = only(&head.headers, header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
        if !kind.trim().eq_ignore_ascii_case("application/json") {
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "an order is sent as application/json"));
        }
        Ok(())
    }

    /// Whether the peer is this machine, or others are allowed to be.
    fn is_here(&self, peer: IpAddr) -> bool {
        let (peer, listen) = (peer.to_canonical(), self.0.addr.ip());
        self.0.remote || peer.is_loopback() || (peer == listen && !peer.is_unspecified())
    }

    /// Whether page and queries are answered under this host. An address in numbers cannot be rebound.
    fn is_readable_under(&self, host: &Authority) -> bool {
        let (name, listen) = (name_of(host), self.0.addr.ip());
        let listened = |ip: IpAddr| !ip.is_unspecified() && (ip == listen || listen.is_unspecified() || self.0.remote);
        hosts::is_loopback(name)
            || address(name).is_some_and(listened)
            || self.0.allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }

    /// Whether orders are taken under this host: our own name with our own port. With `--allow-remote-control` any address in
    /// numbers will do, with any port: a container's port is published under another number.
    fn is_ours(&self, host: &Authority) -> bool {
        let ip = address(name_of(host));
        let listened = ip.is_some_and(|ip| ip == self.0.addr.ip() && !ip.is_unspecified());
        let port = host.port_u16().unwrap_or(80) == self.0.addr.port();
        ((hosts::is_loopback(name_of(host)) || listened) && (port || self.0.remote)) || (self.0.remote && ip.is_some())
    }

    /// Whether the one `Origin` is that of `host`. Who has the key may come through a proxy that has a certificate.
    fn is_own_origin(&self, head: &Parts, host: &Authority) -> bool {
        let origin = only(&head.headers, header::ORIGIN).unwrap_or_default();
        let secure = || origin.strip_prefix("https://").filter(|_| self.has_key(head));
        origin.strip_prefix("http://").or_else(secure).is_some_and(|origin| origin.eq_ignore_ascii_case(host.as_str()))
    }

    /// Whether the key came along, as the page's cookie or as a bearer token.
    fn has_key(&self, head: &Parts) -> bool {
        if bearer_token(&head.headers).is_some_and(|key| self.0.key.is(key)) {
            return true;
        }
        let name = cookie_name(host_of(head).as_ref());
        let cookies = head.headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.any(|(cookie, key)| cookie == name && self.0.key.is(key.as_bytes()))
    }
}

/// Who is at the other end of the connection; nobody's address where that is not known.
pub(crate) fn peer(head: &Parts) -> IpAddr {
    head.extensions.get::<ConnectionInfo>().map_or(Ipv4Addr::UNSPECIFIED.into(), |connection| connection.peer.ip())
}

/// The key in a query: `key=…`.
fn key_in(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("key="))
}

/// Cookies of one host are sent to all its ports: two demos must not overwrite each other's.
fn cookie_name(host: Option<&Authority>) -> String {
    format!("httpserver-key-{}", host.and_then(Authority::port_u16).unwrap_or(80))
}

/// A header that is there once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none()).and_then(|value| value.to_str().ok())
}

/// What a request names as its host: `:authority` or the target's, else the one `Host`. `None` when they differ.
fn host_of(head: &Parts) -> Option<Authority> {
    let header = || only(&head.headers, header::HOST).and_then(|host| host.parse::<Authority>().ok());
    match head.uri.authority() {
        Some(target) if head.headers.contains_key(header::HOST) => header().filter(|host| host == target),
        Some(target) => Some(target.clone()),
        None => header(),
    }
}

/// The host without its port and the dot that ends a complete name.
fn name_of(host: &Authority) -> &str {
    let name = host.host();
    name.strip_suffix('.').unwrap_or(name)
}

fn address(name: &str) -> Option<IpAddr> {
    hosts::address_of(name).map(|ip| ip.to_canonical())
}

/// A plain text answer. It may hold parts of what was sent, so no browser may guess another type.
pub(crate) fn text(status: StatusCode, message: impl fmt::Display) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (status, headers, format!("{message}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn access(addr: &str, remote: bool) -> Access {
        Access::new(addr.parse().unwrap(), vec!["store".to_owned()], remote).unwrap()
    }

    fn head(method: &str, uri: &str, peer: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let peer = (peer.parse::<IpAddr>().unwrap(), 1).into();
        request
            .extension(ConnectionInfo {
                peer,
                is_tls: false,
                certificate: crate::server::ClientCertificate::default(),
                connection: None,
            })
            .body(())
            .unwrap()
            .into_parts()
            .0
    }

    fn status(access: &Access, head: &Parts) -> u16 {
        access.answer(head).map_or(200, |response| response.status().as_u16())
    }

    fn is_ours(access: &Access, host: &str) -> bool {
        host.parse::<Authority>().is_ok_and(|host| access.is_ours(&host))
    }

    #[test]
    fn orders_need_a_loopback_name_or_address_with_our_port_or_the_address_listened_on() {
        let local = access("127.0.0.1:9411", false);
        for host in ["localhost:9411", "LocalHost:9411", "localhost.:9411", "127.0.0.1:9411", "127.0.0.2:9411", "[::1]:9411"] {
            assert!(is_ours(&local, host), "{host}");
        }
        for host in [
            "evil.example:9411",
            "localhost.evil.example:9411",
            "127.0.0.1.evil.example:9411",
            "localhost",
            "localhost:80",
            "store:9411",
        ] {
            assert!(!is_ours(&local, host), "{host}");
            assert!(!is_ours(&access("0.0.0.0:9411", false), host), "{host}");
        }
        assert!(!is_ours(&local, "192.168.7.9:9411"));
        assert!(is_ours(&access("192.168.7.9:9411", false), "192.168.7.9:9411"));
        assert!(!is_ours(&access("0.0.0.0:9411", false), "0.0.0.0:9411"));
        let remote = access("0.0.0.0:9411", true);
        assert!(is_ours(&remote, "192.168.7.9:19411") && is_ours(&remote, "localhost:19411"));
        assert!(!is_ours(&remote, "evil.example:9411"));
        assert!(is_ours(&access("127.0.0.1:80", false), "localhost"));
    }

    #[test]
    fn only_this_machine_gives_orders_unless_others_are_allowed_or_have_the_key() {
        let everywhere = access("0.0.0.0:9411", false);
        let from = |access: &Access, peer: &str, more: &[(&str, &str)]| {
            let headers =
                [&[("host", "localhost:9411"), ("origin", "http://localhost:9411"), ("content-type", "application/json")], more]
                    .concat();
            access.may_order(&head("POST", "/demo/control", peer, &headers)).is_ok()
        };
        for here in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert!(from(&everywhere, here, &[]), "{here}");
        }
        let cookie = format!("a=b; httpserver-key-9411={}", everywhere.0.key.0);
        for there in ["192.168.7.9", "0.0.0.0", "172.17.0.1", "2001:db8::1"] {
            assert!(!from(&everywhere, there, &[]), "{there}");
            assert!(from(&access("0.0.0.0:9411", true), there, &[]), "{there}");
            assert!(from(&everywhere, there, &[("cookie", &cookie)]), "{there}");
            assert!(!from(&everywhere, there, &[("cookie", &cookie.replace("9411", "9412"))]), "another demo's cookie");
        }
        // A page on another port of this host is the same site: the browser sends the cookie along.
        let other_port = [
            ("host", "localhost:9411"),
            ("origin", "http://localhost:8000"),
            ("content-type", "application/json"),
            ("cookie", &cookie),
        ];
        assert!(everywhere.may_order(&head("POST", "/demo/control", "127.0.0.1", &other_port)).is_err());
    }

    #[test]
    fn page_and_queries_are_answered_under_our_names_or_with_the_key() {
        let local = access("127.0.0.1:9411", false);
        let get =
            |access: &Access, headers: &[(&str, &str)]| status(access, &head("GET", "/api/v2/traces", "127.0.0.1", headers));
        for host in [
            "localhost:9411",
            "LOCALHOST",
            "localhost.:9411",
            "127.0.0.1:19411",
            "[::1]:9411",
            "store:9411",
            "STORE.",
            "[::ffff:127.0.0.1]",
        ] {
            assert_eq!(get(&local, &[("host", host)]), 200, "{host}");
        }
        let key = local.0.key.0.clone();
        for host in
            ["evil.example:9411", "localhost.evil.example", "store.evil.example", "10.0.0.7:9411", "0.0.0.0:9411", "", "a b"]
        {
            assert_eq!(get(&local, &[("host", host)]), 403, "{host}");
            let bearer = format!("Bearer {key}");
            assert_eq!(get(&local, &[("host", host), ("authorization", &bearer)]), 200, "{host}");
        }
        assert_eq!(get(&local, &[]), 403);
        assert_eq!(get(&local, &[("host", "localhost"), ("host", "evil.example")]), 403);
        assert_eq!(get(&local, &[("host", "evil.example:9411"), ("cookie", &format!("httpserver-key-9411={key}"))]), 200);
        assert_eq!(get(&local, &[("host", "evil.example:9411"), ("cookie", "httpserver-key-9411=")]), 403);
        // An address in numbers cannot be rebound; nobody is at 0.0.0.0.
        let everywhere = access("[::]:9411", false);
        assert_eq!(get(&everywhere, &[("host", "10.0.0.7:9411")]), 200);
        assert_eq!(get(&everywhere, &[("host", "[::]:9411")]), 403);
        // HTTP/2 names the host in the target, and what differs from it is refused.
        let h2 = |uri: &str, headers: &[(&str, &str)]| status(&local, &head("GET", uri, "127.0.0.1", headers));
        assert_eq!(h2("http://localhost:9411/", &[]), 200);
        assert_eq!(h2("http://evil.example:9411/", &[]), 403);
        assert_eq!(h2("http://evil.example:9411/", &[("host", "localhost:9411")]), 403);
        // What another site embeds, asks for, or links to.
        let fetched = |more: &[(&str, &str)]| get(&local, &[&[("host", "localhost:9411")], more].concat());
        for (headers, expected) in [
            (&[("origin", "http://localhost:9411")][..], 200),
            (&[("origin", "http://localhost:8000")], 403),
            (&[("origin", "null")], 403),
            (&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], 403),
            (&[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")], 403),
            (&[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")], 200),
            (&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], 200),
        ] {
            assert_eq!(fetched(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn spans_are_taken_under_any_host_and_from_no_browser() {
        let local = access("127.0.0.1:9411", false);
        for path in ["/api/v2/spans", "/v1/traces"] {
            let post = |headers: &[(&str, &str)]| status(&local, &head("POST", path, "10.0.0.7", headers));
            assert_eq!(post(&[("host", "store.observability:9411")]), 200);
            for origin in ["http://evil.example", "null", "", "http://localhost:9411"] {
                assert_eq!(
                    post(&[("host", "localhost:9411"), ("origin", origin), ("content-type", "text/plain")]),
                    403,
                    "{origin}"
                );
            }
        }
        assert_eq!(status(&local, &head("GET", "/health", "10.0.0.7", &[("host", "10.1.1.1:9411")])), 200, "a probe's");
        assert_eq!(status(&local, &head("GET", "/api/v2/spans?serviceName=a", "10.0.0.7", &[("host", "evil.example")])), 403);
    }

    #[test]
    fn the_key_becomes_a_cookie_and_leaves_the_address() {
        let local = access("0.0.0.0:9411", false);
        let key = local.0.key.0.clone();
        assert_ne!(key, access("0.0.0.0:9411", false).0.key.0, "new for each start");
        assert!(key.len() == 32 && local.url() == format!("http://127.0.0.1:9411/?key={key}"));
        assert!(!format!("{local:?}").contains(&key));
        let get = |uri: &str| local.answer(&head("GET", uri, "172.17.0.1", &[("host", "demo.example:19411")])).unwrap();
        for (uri, location) in [
            (format!("/?key={key}"), "/"),
            (format!("/api/v2/traces?limit=5&key={key}&lookback=1"), "/api/v2/traces?limit=5&lookback=1"),
            (format!("//evil.example/?key={key}"), "/evil.example/"),
            (format!("/\\evil.example/?key={key}"), "/evil.example/"),
        ] {
            let response = get(&uri);
            assert_eq!((response.status().as_u16(), response.headers()[header::LOCATION].to_str().unwrap()), (303, location));
            let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap();
            assert_eq!(cookie, format!("httpserver-key-19411={key}; Path=/; HttpOnly; SameSite=Strict"));
        }
        for wrong in ["", "0", &key[1..], &key.to_uppercase().replace(|c: char| c.is_ascii_digit(), "A")] {
            let response = get(&format!("/?key={wrong}"));
            assert_eq!((response.status().as_u16(), response.headers().get(header::SET_COOKIE)), (403, None), "{wrong}");
        }
    }
}
