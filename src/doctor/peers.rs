//! Whom a client span names at its other end: a service, another name of one, a host.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::net::addresses;
use crate::traces::{HOST_TAGS, Span, URL_TAGS};

/// Parts of names that say where or how a service runs, not which one it is.
const GENERIC: [&str; 27] = [
    "svc",
    "service",
    "services",
    "server",
    "srv",
    "app",
    "api",
    "http",
    "https",
    "grpc",
    "internal",
    "lb",
    "vip",
    "prod",
    "production",
    "dev",
    "staging",
    "stage",
    "blue",
    "green",
    "canary",
    "stable",
    "primary",
    "shadow",
    "mirror",
    "default",
    "headless",
];
/// Parts of the names of proxies, which pass requests on by their nature.
const PROXIES: [&str; 32] = [
    "lb",
    "elb",
    "alb",
    "nlb",
    "loadbalancer",
    "balancer",
    "gateway",
    "gw",
    "apigateway",
    "ingress",
    "egress",
    "proxy",
    "nginx",
    "haproxy",
    "envoy",
    "traefik",
    "kong",
    "apisix",
    "router",
    "edge",
    "vip",
    "cdn",
    "cloudfront",
    "linkerd",
    "istio",
    "dapr",
    "sidecar",
    "mesh",
    "waypoint",
    "varnish",
    "www",
    "frontdoor",
];

/// A name at the other end of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerName<'a> {
    /// Without a port; of an address there is none.
    pub(super) name: &'a str,
    /// The name of a service by convention, where others are names of hosts.
    pub(super) is_service: bool,
}

impl<'a> PeerName<'a> {
    /// The name without namespace and domain, and without what a Deployment appends for a pod.
    pub(super) fn label(self) -> &'a str {
        without_pod(self.name.split('.').next().unwrap_or(self.name))
    }

    /// A name of the public DNS: its first part is no service of a mesh.
    pub(super) fn is_public(self) -> bool {
        let mut labels = self.name.rsplit('.');
        let (last, count) = (labels.next().unwrap_or_default(), self.name.split('.').count());
        let is_private = ["local", "internal", "consul", "svc", "cluster", "lan", "localdomain"].contains(&last);
        let is_known = ["com", "org", "net", "io", "dev", "cloud", "app"].contains(&last);
        !is_private && (count > 2 && self.name.split('.').nth(2) != Some("svc") || count == 2 && is_known)
    }

    /// Whether the name says that a proxy or a load balancer stands there.
    pub(super) fn is_proxy(self) -> bool {
        let is_proxy = |token: String| PROXIES.contains(&token.trim_end_matches(|c: char| c.is_ascii_digit()));
        tokens(self.label()).any(is_proxy) || self.name.contains(".elb.")
    }
}

/// The names that a client span has for the one that it calls, the best first.
pub(super) fn peer_names(span: &Span) -> Vec<PeerName<'_>> {
    let hosts = HOST_TAGS.iter().filter_map(|key| host(span.tag(key)?));
    let hosts: Vec<&str> = hosts.chain(URL_TAGS.iter().filter_map(|key| host(url_host(span.tag(key)?)?))).collect();
    // Exporters write a host's name there where they know no service's.
    let remote = span.remote_service().and_then(host).map(|name| PeerName { name, is_service: !hosts.contains(&name) });
    let peer = span.tag("peer.service").and_then(host).map(|name| PeerName { name, is_service: true });
    let cluster = span.tag("upstream_cluster").filter(|cluster| !cluster.ends_with("Cluster"));
    let cluster = cluster
        .and_then(|cluster| Some(PeerName { name: host(cluster.rsplit('|').next()?)?, is_service: cluster.contains('|') }));
    let mut names: Vec<PeerName<'_>> = Vec::new();
    let all = peer.into_iter().chain(cluster).chain(remote);
    for name in all.chain(hosts.into_iter().map(|name| PeerName { name, is_service: false })) {
        if names.iter().all(|known| known.name != name.name) {
            names.push(name);
        }
    }
    names
}

/// The addresses that a client span has for the one that it calls.
pub(super) fn peer_addresses(span: &Span) -> impl Iterator<Item = IpAddr> {
    let hosts = HOST_TAGS.iter().filter_map(|key| span.tag(key));
    let urls = URL_TAGS.iter().filter_map(|key| url_host(span.tag(key)?));
    let remote = span.remote_endpoint.as_ref().and_then(|remote| Some(IpAddr::V4(remote.ipv4?)));
    let sockets = ["network.peer.address", "net.sock.peer.addr"].into_iter().filter_map(|key| span.tag(key));
    hosts.chain(urls).chain(sockets).filter_map(addresses::parse).chain(remote).filter(|address| !address.is_loopback())
}

/// The addresses that a server span has for the one that called.
pub(super) fn caller_addresses(span: &Span) -> impl Iterator<Item = IpAddr> {
    const KEYS: [&str; 6] =
        ["client.address", "network.peer.address", "net.sock.peer.addr", "net.peer.ip", "peer.address", "peer.ipv4"];
    let remote = span.remote_endpoint.as_ref().and_then(|remote| Some(IpAddr::V4(remote.ipv4?)));
    let tags = KEYS.into_iter().filter_map(|key| span.tag(key));
    tags.filter_map(addresses::parse).chain(remote).filter(|address| !address.is_loopback())
}

/// The addresses of the host that made a span.
pub(super) fn own_addresses(span: &Span) -> impl Iterator<Item = IpAddr> {
    let local = span.local_endpoint.as_ref().and_then(|local| Some(IpAddr::V4(local.ipv4?)));
    let tags = ["ip", "host.ip", "k8s.pod.ip"].into_iter().filter_map(|key| span.tag(key));
    let proxy = span.tag("node_id").and_then(|node| node.split('~').nth(1));
    tags.chain(proxy).filter_map(addresses::parse).chain(local).filter(|address| !address.is_loopback())
}

fn url_host(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
    Some(authority.rsplit('@').next().unwrap_or(authority))
}

/// The name of a host without its port; `None` for an address, and for this host.
fn host(text: &str) -> Option<&str> {
    if text.starts_with(['[', '/']) || text.parse::<IpAddr>().is_ok() {
        return None;
    }
    let name = url_host(text).unwrap_or(text).split(':').next()?.trim_end_matches('.');
    // Hosts of AWS are named by their addresses.
    let is_numbered = || {
        let label = name.split('.').next().unwrap_or(name);
        label.strip_prefix("ip-").is_some_and(|rest| rest.split('-').all(|part| part.parse::<u8>().is_ok()))
    };
    let is_nobody = name.is_empty() || name == "localhost" || name == "unknown" || name == "host.docker.internal";
    (!is_nobody && name.parse::<IpAddr>().is_err() && !is_numbered()).then_some(name)
}

/// Without `-7d9f8b6c5-x2x4z`.
fn without_pod(label: &str) -> &str {
    let is_random = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let parts = label.rsplit_once('-').and_then(|(front, pod)| Some((front.rsplit_once('-')?, pod)));
    let is_pod = |set: &str, pod: &str| {
        pod.len() == 5
            && (8..=10).contains(&set.len())
            && is_random(pod)
            && is_random(set)
            && set.bytes().any(|b| b.is_ascii_digit())
    };
    parts.filter(|((_, set), pod)| is_pod(set, pod)).map_or(label, |((name, _), _)| name)
}

/// Without the `-0` of a StatefulSet's pod.
fn without_ordinal(label: &str) -> &str {
    let is_ordinal = |part: &str| (1..4).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    label.rsplit_once('-').filter(|(_, part)| is_ordinal(part)).map_or(label, |(front, _)| front)
}

fn tokens(label: &str) -> impl Iterator<Item = String> {
    label.split(|c: char| !c.is_alphanumeric()).filter(|token| !token.is_empty()).map(str::to_lowercase)
}

/// What two names of one service have in common.
pub(super) fn stem(label: &str) -> String {
    let is_version = |token: &str| token.strip_prefix('v').is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    let special = |token: &String| !GENERIC.contains(&token.as_str()) && !is_version(token);
    let special: String = tokens(label).filter(special).collect();
    let suffix = ["service", "server", "svc", "api"].into_iter().find_map(|suffix| special.strip_suffix(suffix));
    match suffix.filter(|rest| rest.len() >= 3) {
        Some(rest) => rest.to_owned(),
        None if special.is_empty() => tokens(label).collect(),
        None => special,
    }
}

/// The services by their names.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// In lower case.
    exact: HashMap<String, usize>,
    /// `None`: several services have it.
    stems: HashMap<String, Option<usize>>,
}

impl Names {
    pub(super) fn new(names: &[Box<str>]) -> Self {
        let mut stems: HashMap<String, Option<usize>> = HashMap::new();
        for (at, name) in names.iter().enumerate() {
            stems.entry(stem(name.split('.').next().unwrap_or(name))).and_modify(|known| *known = None).or_insert(Some(at));
        }
        Self { exact: names.iter().enumerate().map(|(at, name)| (name.to_lowercase(), at)).collect(), stems }
    }

    /// The service with exactly this name.
    pub(super) fn exact(&self, name: &str) -> Option<usize> {
        self.exact.get(&name.to_lowercase()).copied()
    }

    /// The service that is called by this name: its own, one with namespace and domain, a pod's, or a similar one.
    pub(super) fn find(&self, peer: PeerName<'_>) -> Option<usize> {
        // The first part of a name of the public DNS is no service: `api.stripe.com`.
        if peer.is_public() {
            return self.exact(peer.name);
        }
        let mut labels = peer.name.splitn(3, '.');
        let (app, namespace) = (labels.next().unwrap_or_default(), labels.next());
        let in_namespace = || self.exact(&format!("{app}.{}", namespace?));
        let known = self.exact(peer.name).or_else(in_namespace).or_else(|| self.exact(app)).or_else(|| self.exact(peer.label()));
        let known = known.or_else(|| self.exact(without_ordinal(peer.label())));
        known.or_else(|| *self.stems.get(&stem(without_ordinal(peer.label())))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::decode;

    fn named(span: &str) -> Vec<(String, bool)> {
        let span = format!(r#"[{{"traceId":"1","id":"2","kind":"CLIENT",{span}}}]"#);
        let span = decode(span.as_bytes(), 1).unwrap().remove(0);
        peer_names(&span).into_iter().map(|name| (name.name.to_owned(), name.is_service)).collect()
    }

    #[test]
    fn names_of_services_come_first_and_addresses_are_none() {
        for (span, expected) in [
            (r#""remoteEndpoint":{"serviceName":"cart"}"#, vec![("cart", true)]),
            // OpenTelemetry's exporter for Zipkin writes the host there.
            (r#""remoteEndpoint":{"serviceName":"lb1"},"tags":{"server.address":"lb1"}"#, vec![("lb1", false)]),
            (
                r#""tags":{"http.url":"http://u:p@cart.shop:8080/x","peer.service":"basket"}"#,
                vec![("basket", true), ("cart.shop", false)],
            ),
            (
                r#""tags":{"upstream_cluster":"outbound|80|v1|cart.shop.svc.cluster.local"}"#,
                vec![("cart.shop.svc.cluster.local", true)],
            ),
            (r#""tags":{"upstream_cluster":"PassthroughCluster","http.host":"10.0.0.7:80"}"#, vec![]),
            (r#""tags":{"server.address":"::1","net.peer.name":"[fe80::1]:80","http.host":"localhost:80"}"#, vec![]),
            (r#""tags":{"server.address":"ip-10-0-3-7.ec2.internal"}"#, vec![]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(name, is_service)| (name.to_owned(), is_service)).collect();
            assert_eq!(named(span), expected, "{span}");
        }
    }

    #[test]
    fn a_service_is_known_by_its_other_names() {
        let names = ["cart", "cart2", "orders.shop", "orders.test", "Payment-Service"].map(Box::from);
        let names = Names::new(&names);
        let find = |name| names.find(PeerName { name, is_service: false });
        for name in [
            "cart",
            "CART",
            "cart.shop.svc.cluster.local",
            "cart-svc",
            "cartservice",
            "cart-v2",
            "cart-7d9f8b6c5-x2x4z",
            "cart-0",
        ] {
            assert_eq!(find(name), Some(0), "{name}");
        }
        assert_eq!((find("orders.test"), find("orders.test.svc")), (Some(3), Some(3)));
        assert_eq!(find("payment"), Some(4));
        for name in ["orders", "cart3", "lb", "cart-history"] {
            assert_eq!(find(name), None, "{name}");
        }
        let is_public = |name| PeerName { name, is_service: false }.is_public();
        assert!(
            is_public("shop.example.com") && is_public("example.com") && !is_public("cart.shop.svc") && !is_public("cart.shop")
        );
    }
}
