//! The one endpoint that does something: it sends a request, changes a hop's faults, stops and starts a hop.
//!
//! A page that the user has open elsewhere can make the browser send requests here, and a name that is rebound to this
//! address can even make it believe that it is the same site. So an order is taken only as JSON, which another site cannot
//! send without asking first; only from our own origin; only under a name that is ours; and only from this machine, unless
//! the demo was started with `--allow-remote-control`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;

use crate::demo::control::plan::PlanForm;
use crate::demo::control::state::{DemoState, Sender};
use crate::net::hosts;
use crate::server::ConnectionInfo;
use crate::trace_context::carried_names;

/// The largest order.
const MAX_ORDER: usize = 32 << 10;
/// The most headers of one request, and the longest value.
const MAX_HEADERS: usize = 32;
const MAX_VALUE: usize = 4 << 10;

/// Who may give orders.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    /// Where the page is served.
    pub(crate) addr: SocketAddr,
    /// `--allow-remote-control`.
    pub(crate) remote: bool,
}

impl Access {
    /// Why orders from `peer` are not taken; `None` when they are.
    pub(crate) fn watching_only(&self, peer: IpAddr) -> Option<&'static str> {
        let peer = peer.to_canonical();
        let here = peer.is_loopback() || (peer == self.addr.ip() && !peer.is_unspecified());
        (!here && !self.remote).then_some(
            "orders are taken from the machine that runs the demo; started with --allow-remote-control it takes them from others too",
        )
    }

    /// Whether a browser that says this host speaks to us, and not to a name that somebody pointed here.
    fn is_ours(&self, host: &Authority) -> bool {
        let name = host.host();
        let ip = hosts::address_of(name).map(|ip| ip.to_canonical());
        let local = hosts::is_loopback(name);
        let listened = ip.is_some_and(|ip| ip == self.addr.ip() && !ip.is_unspecified());
        let port = host.port_u16().unwrap_or(80) == self.addr.port();
        // An address in numbers cannot be rebound. Behind a container's published port the number may be another.
        ((local || listened) && (port || self.remote)) || (self.remote && ip.is_some())
    }

    /// Errors: the status and the reason, in words for whoever tries it by hand.
    fn check(&self, peer: IpAddr, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        let forbidden = |why| Err((StatusCode::FORBIDDEN, why));
        if let Some(why) = self.watching_only(peer) {
            return forbidden(why);
        }
        let only = |name: HeaderName| {
            let mut values = headers.get_all(name).iter();
            values.next().filter(|_| values.next().is_none()).and_then(|value| value.to_str().ok())
        };
        let Some(host) = only(header::HOST).and_then(|host| host.parse::<Authority>().ok()).filter(|host| self.is_ours(host))
        else {
            return forbidden("the Host header is not a name of this demo: open the page by localhost or by its IP address");
        };
        let Some(origin) = only(header::ORIGIN) else {
            return forbidden("the Origin header is missing: orders are taken from the demo's own page");
        };
        let same = origin.strip_prefix("http://").is_some_and(|origin| origin.eq_ignore_ascii_case(host.as_str()));
        if !same {
            return forbidden("the Origin header is another site's: orders are taken from the demo's own page");
        }
        let kind = only(header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
        if !kind.trim().eq_ignore_ascii_case("application/json") {
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "an order is sent as application/json"));
        }
        Ok(())
    }
}

/// What can be ordered. Hops are numbered from 1, as in their names.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Order {
    /// Send one request to the first hop, with these headers.
    Send { headers: Vec<(String, String)> },
    /// Change the latency and the faults of a hop.
    Plan { hop: usize, plan: PlanForm },
    /// Stop a hop, or start it again.
    Run { hop: usize, running: bool },
}

fn text(status: StatusCode, message: &str) -> Response {
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    (status, [(header::CONTENT_TYPE, kind)], format!("{message}\n")).into_response()
}

fn json(body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body.into()).into_response()
}

/// Answers `/demo/control`.
pub(crate) async fn control(state: Arc<DemoState>, access: Access, request: Request) -> Response {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        let allow = [(header::ALLOW, HeaderValue::from_static("POST"))];
        return (allow, text(StatusCode::METHOD_NOT_ALLOWED, "orders are sent by POST")).into_response();
    }
    let peer = head.extensions.get::<ConnectionInfo>().map_or(IpAddr::from([0, 0, 0, 0]), |connection| connection.peer);
    if let Err((status, why)) = access.check(peer, &head.headers) {
        return text(status, why);
    }
    let read = Limited::new(body, MAX_ORDER).collect();
    let body = match tokio::time::timeout(std::time::Duration::from_secs(10), read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return text(StatusCode::PAYLOAD_TOO_LARGE, "the order is too large or did not arrive whole"),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the order did not arrive in time"),
    };
    match serde_json::from_slice::<Order>(&body) {
        Ok(order) => match follow(&state, order).await {
            Ok(response) => response,
            Err(why) => text(StatusCode::BAD_REQUEST, &crate::text::plain(&why)),
        },
        Err(error) => text(StatusCode::BAD_REQUEST, &format!("not an order: {}", crate::text::plain(&error.to_string()))),
    }
}

async fn follow(state: &DemoState, order: Order) -> Result<Response, String> {
    let handle =
        |hop: usize| hop.checked_sub(1).and_then(|at| state.hops.get(at)).ok_or_else(|| format!("there is no service{hop}"));
    match order {
        Order::Send { headers } => {
            let (_, answer) = state.send(Sender::Page, header_map(headers)?).await;
            Ok(json(answer))
        }
        Order::Plan { hop, plan } => {
            let faults = handle(hop)?.faults();
            faults.set(plan.plan(&faults.config())?);
            state.altered.send_replace(());
            Ok(json("{}"))
        }
        Order::Run { hop, running } => {
            handle(hop)?.running.send_replace(running);
            state.altered.send_replace(());
            Ok(json("{}"))
        }
    }
}

/// Only headers that the chain carries: the page sends nothing else, and nobody else is to reach the hop with more.
fn header_map(headers: Vec<(String, String)>) -> Result<HeaderMap, String> {
    if headers.len() > MAX_HEADERS {
        return Err(format!("a request takes up to {MAX_HEADERS} headers from here"));
    }
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if !carried_names().any(|carried| carried.eq_ignore_ascii_case(&name)) {
            return Err(format!("the header '{name}' is not one that the chain carries"));
        }
        if value.len() > MAX_VALUE {
            return Err(format!("the value of {name} is longer than {MAX_VALUE} bytes"));
        }
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("'{name}' is not a header's name"))?;
        let value =
            HeaderValue::from_str(&value).map_err(|_| format!("the value of {name} has characters that a header cannot have"))?;
        map.append(name, value);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(addr: &str, remote: bool) -> Access {
        Access { addr: addr.parse().unwrap(), remote }
    }

    fn is_ours(access: Access, host: &str) -> bool {
        host.parse::<Authority>().is_ok_and(|host| access.is_ours(&host))
    }

    #[test]
    fn a_host_is_ours_by_a_loopback_name_or_address_with_our_port_or_by_the_address_listened_on() {
        let local = access("127.0.0.1:9411", false);
        for host in ["localhost:9411", "LocalHost:9411", "127.0.0.1:9411", "127.0.0.2:9411", "[::1]:9411"] {
            assert!(is_ours(local, host), "{host}");
        }
        for host in
            ["evil.example:9411", "localhost.evil.example:9411", "127.0.0.1.evil.example:9411", "localhost", "localhost:80"]
        {
            assert!(!is_ours(local, host), "{host}");
            assert!(!is_ours(access("0.0.0.0:9411", false), host), "{host}");
        }
        assert!(!is_ours(local, "192.168.7.9:9411"));
        assert!(is_ours(access("192.168.7.9:9411", false), "192.168.7.9:9411"));
        assert!(!is_ours(access("0.0.0.0:9411", false), "0.0.0.0:9411"));
        let remote = access("0.0.0.0:9411", true);
        assert!(is_ours(remote, "192.168.7.9:19411") && is_ours(remote, "localhost:19411"));
        assert!(!is_ours(remote, "evil.example:9411"));
        assert!(is_ours(access("127.0.0.1:80", false), "localhost"));
    }

    #[test]
    fn only_this_machine_gives_orders_unless_others_are_allowed() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let everywhere = access("0.0.0.0:9411", false);
        for here in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(everywhere.watching_only(ip(here)), None, "{here}");
        }
        for there in ["192.168.7.9", "0.0.0.0", "172.17.0.1", "2001:db8::1"] {
            assert!(everywhere.watching_only(ip(there)).is_some(), "{there}");
            assert_eq!(access("0.0.0.0:9411", true).watching_only(ip(there)), None, "{there}");
        }
        assert_eq!(access("192.168.7.9:9411", false).watching_only(ip("192.168.7.9")), None);
    }

    #[test]
    fn only_carried_headers_are_sent() {
        let map = |name: &str, value: &str| header_map(vec![(name.into(), value.into())]);
        assert!(map("traceparent", "x").is_ok() && map("X-Lane", "gray").is_ok());
        assert!(map("cookie", "x").is_err() && map("host", "x").is_err() && map("x-lane", "a\r\nb: c").is_err());
        assert!(map("baggage", &"x".repeat(5000)).is_err());
    }
}
