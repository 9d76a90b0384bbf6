//! The gateway at which the request arrives, and what listens there.

use serde_json::Value;

use crate::check::cluster::object::{Object, at, covers, list, number, service_of, text};
use crate::check::cluster::snapshot::Snapshot;

/// A server of a Gateway: which of `spec.servers` it is.
pub(crate) type GatewayServer<'a> = (&'a Object, usize, &'a Value);

/// The gateway as the request meets it.
#[derive(Debug, Default)]
pub(crate) struct Front<'a> {
    /// The Service that leads to the gateway's pods.
    pub(crate) service: Option<&'a Object>,
    pub(crate) pods: Vec<&'a Object>,
    /// The port of that Service, by which Gateways number their servers.
    pub(crate) port: u64,
    /// Where the gateway's pods listen for it.
    pub(crate) target: Option<u64>,
    /// The URL's port is a NodePort.
    pub(crate) is_node_port: bool,
    /// The Gateways whose selector finds these pods.
    pub(crate) gateways: Vec<&'a Object>,
    /// Their servers on the port.
    pub(crate) on_port: Vec<GatewayServer<'a>>,
    /// Those of them that name the host.
    pub(crate) servers: Vec<GatewayServer<'a>>,
}

/// The request as it comes to the gateway.
#[derive(Debug)]
pub(crate) struct Arrival<'a> {
    pub(crate) host: &'a str,
    pub(crate) is_https: bool,
    /// The URL's.
    pub(crate) port: u64,
    /// Where the connection goes.
    pub(crate) address: &'a str,
    /// The namespace of the gateway's pods.
    pub(crate) namespace: &'a str,
}

impl<'a> Front<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, arrival: &Arrival<'_>) -> Self {
        let pods = snapshot.all("Pod").into_iter().filter(|pod| pod.namespace() == arrival.namespace);
        let pods: Vec<&Object> = pods.filter(|pod| is_router(pod)).collect();
        let called = arrival.port;
        let leads = |service: &&Object| {
            let selector = service.at("/spec/selector");
            service.namespace() == arrival.namespace
                && selector.is_object()
                && pods.iter().any(|pod| pod.is_selected_by(selector))
        };
        // There may be several gateways: the one at this address, by this port, else the one that is open to the outside.
        let fits = |service: &&Object| {
            let is_node_port = service.list("/spec/ports").iter().any(|port| number(at(port, "/nodePort")) == Some(called));
            let kind = ["ClusterIP", "NodePort", "LoadBalancer"].iter().position(|kind| service.text("/spec/type") == *kind);
            (has_address(service, arrival.address), is_node_port, kind)
        };
        let service = snapshot.all("Service").into_iter().filter(leads).rev().max_by_key(fits);
        let pods: Vec<&Object> = match service {
            Some(service) => pods.into_iter().filter(|pod| pod.is_selected_by(service.at("/spec/selector"))).collect(),
            None => pods,
        };
        let ports = || service.into_iter().flat_map(|service| service.list("/spec/ports"));
        let by_node =
            ports().find(|port| number(at(port, "/nodePort")) == Some(called)).and_then(|port| number(at(port, "/port")));
        let is_own = ports().any(|port| number(at(port, "/port")) == Some(called));
        let usual = if arrival.is_https { 443 } else { 80 };
        let port = by_node.unwrap_or(if is_own { called } else { usual });
        let of = |gateway: &&Object| pods.iter().any(|pod| pod.is_selected_by(gateway.at("/spec/selector")));
        let gateways: Vec<&Object> = snapshot.all("Gateway").into_iter().filter(of).collect();
        let servers = gateways.iter().flat_map(|gateway| {
            gateway.list("/spec/servers").iter().enumerate().map(|(index, server)| (*gateway, index, server))
        });
        // A number that the Service lacks is the port at which the gateway's pods listen.
        let target = ports().find(|own| number(at(own, "/port")) == Some(port)).and_then(|own| number(at(own, "/targetPort")));
        let is_open = |server: &Value| {
            let opened = number(at(server, "/port/number"));
            opened == Some(port) || (opened.is_some() && opened == target)
        };
        let on_port: Vec<GatewayServer<'a>> = servers.filter(|(_, _, server)| is_open(server)).collect();
        let mut servers: Vec<GatewayServer<'a>> =
            on_port.iter().copied().filter(|(_, _, server)| serves(server, arrival.host)).collect();
        if arrival.is_https {
            // Of the servers with TLS the one with the nearest name alone is shown to the client.
            let best = servers.iter().map(|(_, _, server)| nearness(server, arrival.host)).max();
            servers.retain(|(_, _, server)| Some(nearness(server, arrival.host)) == best);
        }
        Self { service, pods, port, target, is_node_port: by_node.is_some(), gateways, on_port, servers }
    }
}

/// Whether a pod is a gateway's: its proxy runs as a router.
pub(crate) fn is_router(pod: &Object) -> bool {
    let args = pod.list("/spec/containers").iter().flat_map(|container| list(container, "/args"));
    args.filter_map(Value::as_str).any(|arg| arg == "router")
}

/// Whether a server of a Gateway names the host, with or without a namespace in front.
fn serves(server: &Value, host: &str) -> bool {
    list(server, "/hosts").iter().filter_map(Value::as_str).any(|pattern| covers(bare_host(pattern), host))
}

/// How near a server's names are to the host: the host itself, else the longer pattern.
fn nearness(server: &Value, host: &str) -> usize {
    let patterns = list(server, "/hosts").iter().filter_map(Value::as_str).map(bare_host);
    let fitting = patterns.filter(|pattern| covers(pattern, host));
    fitting.map(|pattern| if pattern.starts_with('*') { pattern.len() } else { usize::MAX }).max().unwrap_or(0)
}

/// Whether a Service is reached at this address.
fn has_address(service: &Object, address: &str) -> bool {
    let balanced = service.list("/status/loadBalancer/ingress").iter().flat_map(|one| [text(one, "/ip"), text(one, "/hostname")]);
    let own = service.texts("/spec/externalIPs").into_iter().chain([service.text("/spec/clusterIP")]);
    balanced.chain(own).any(|known| !known.is_empty() && known == address) || is_name(address, service)
}

/// The host behind `namespace/`.
pub(crate) fn bare_host(pattern: &str) -> &str {
    pattern.split_once('/').map_or(pattern, |(_, host)| host)
}

/// Whether an address is a Service's name.
pub(crate) fn is_name(address: &str, service: &Object) -> bool {
    service_of(address, service.namespace()) == Some((service.name(), service.namespace()))
}
