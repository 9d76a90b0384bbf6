//! Gateways: the selector, ports, hosts, TLS.

use serde_json::{Value, json};

use crate::check::cluster::front::{Front, GatewayServer, bare_host};
use crate::check::cluster::mistake::Mistake;
use crate::check::cluster::mistake::Symptom::{self, Answer, Certificate, Connection, Redirect};
use crate::check::cluster::object::{Object, at, covers, is_selected, labels_text, list, number, text, texts};
use crate::check::cluster::path::Path;
use crate::check::cluster::rules::ours::meant;
use crate::check::cluster::snapshot::SecretSeen;

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let Some(front) = &path.front else { return Vec::new() };
    let mut out = Vec::new();
    if front.pods.is_empty() {
        out.extend(no_pods(path));
    }
    out.extend(selectors(path, front));
    if front.servers.is_empty() {
        out.extend(ports_and_hosts(path, front));
    }
    for server in &front.servers {
        out.extend(tls(path, front, *server));
    }
    out.extend(conflict(front));
    out.extend(redirect(path, front));
    out.extend(node_port(front));
    out.into_iter().map(Mistake::front).collect()
}

/// The gateway's Deployment has no pods.
fn no_pods(path: &Path<'_>) -> Vec<Mistake> {
    let is_router = |deployment: &&Object| {
        let containers = deployment.list("/spec/template/spec/containers").iter();
        containers.flat_map(|container| texts(container, "/args")).any(|arg| arg == "router")
    };
    let meant = meant(path, &path.snapshot.all("Gateway"));
    let is_meant = |deployment: &&Object| {
        let labels = deployment.at("/spec/template/metadata/labels");
        meant.iter().any(|gateway| is_selected(labels, gateway.at("/spec/selector")))
    };
    let gateways = path.snapshot.all("Deployment").into_iter().filter(is_router).filter(is_meant);
    let stopped = gateways.filter(|deployment| number(deployment.at("/spec/replicas")) == Some(0));
    stopped.map(|deployment| Mistake::new(deployment, "spec.replicas", "is 0: no gateway runs", &[Connection, Answer])).collect()
}

/// Whether any server of a Gateway names the host.
fn names(gateway: &Object, host: &str) -> bool {
    gateway
        .list("/spec/servers")
        .iter()
        .any(|server| texts(server, "/hosts").iter().any(|pattern| covers(bare_host(pattern), host)))
}

fn selectors(path: &Path<'_>, front: &Front<'_>) -> Vec<Mistake> {
    let Some(pod) = front.pods.first() else { return Vec::new() };
    let all = path.snapshot.all("Gateway").into_iter();
    let others =
        all.filter(|gateway| names(gateway, &path.host) && !front.gateways.iter().any(|own| own.title() == gateway.title()));
    let others: Vec<&Object> = others.filter(|_| front.servers.is_empty()).collect();
    meant(path, &others)
        .into_iter()
        .map(|gateway| {
            let selector = labels_text(gateway.at("/spec/selector"));
            let says =
                format!("is {selector}, and no pod of the gateway has that: {} has istio={}", pod.name(), pod.label("istio"));
            Mistake::new(gateway, "spec.selector", says, &[Connection, Answer, Redirect])
        })
        .collect()
}

/// No server fits: its port, or its hosts.
fn ports_and_hosts(path: &Path<'_>, front: &Front<'_>) -> Vec<Mistake> {
    let (host, port) = (&path.host, front.port);
    let meant: Vec<String> = meant(path, &front.gateways).into_iter().map(Object::title).collect();
    let is_meant = |gateway: &Object| meant.contains(&gateway.title());
    let on_port: Vec<&GatewayServer<'_>> = front.on_port.iter().filter(|(gateway, ..)| is_meant(gateway)).collect();
    if on_port.is_empty() {
        let near = front.gateways.iter().filter(|gateway| is_meant(gateway) && names(gateway, host));
        return near
            .map(|gateway| {
                let numbers: Vec<String> = gateway.list("/spec/servers").iter().map(|server| at(server, "/port/number").to_string()).collect();
                let index = gateway.list("/spec/servers").iter().position(|server| is_tls(server) == path.is_https).unwrap_or(0);
                let says = format!("is {}, and the gateway's Service leads the request to a server of port {port}: none of the Gateway's servers ({}) has it", numbers.get(index).map_or("", String::as_str), numbers.join(", "));
                Mistake::new(gateway, format!("spec.servers[{index}].port.number"), says, &[Connection, Answer])
            })
            .collect();
    }
    on_port
        .into_iter()
        .map(|(gateway, index, server)| {
            let hosts = texts(server, "/hosts").join(", ");
            let says = format!("is {hosts}, and the request asks for {host}");
            Mistake::new(gateway, format!("spec.servers[{index}].hosts"), says, &[Connection, Answer])
        })
        .collect()
}

fn is_tls(server: &Value) -> bool {
    matches!(text(server, "/port/protocol").to_ascii_uppercase().as_str(), "HTTPS" | "TLS")
}

fn tls(path: &Path<'_>, front: &Front<'_>, (gateway, index, server): GatewayServer<'_>) -> Vec<Mistake> {
    let field = |rest: &str| format!("spec.servers[{index}].{rest}");
    let mode = text(server, "/tls/mode");
    let mut out = Vec::new();
    if path.is_https && !is_tls(server) {
        let says = format!("is {}: the gateway speaks no TLS on this port", text(server, "/port/protocol"));
        return vec![Mistake::new(gateway, field("port.protocol"), says, &[Connection, Answer])];
    }
    if !path.is_https {
        return out;
    }
    match mode {
        "PASSTHROUGH" | "AUTO_PASSTHROUGH" => {
            let has_route = path.snapshot.all("VirtualService").into_iter().any(|service| {
                let routes = service.list("/spec/tls").iter().flat_map(|route| list(route, "/match"));
                routes.flat_map(|one| texts(one, "/sniHosts")).any(|pattern| covers(pattern, &path.host))
            });
            let why = if has_route {
                "and the hop behind it speaks no TLS"
            } else {
                "and no VirtualService has a `tls` route for this host: its `http` routes do not hold for such a server"
            };
            out.push(Mistake::new(
                gateway,
                field("tls.mode"),
                format!("is {mode}: the gateway passes TLS on without ending it, {why}"),
                &[Connection, Answer],
            ));
        }
        "MUTUAL" | "ISTIO_MUTUAL" => {
            out.push(Mistake::new(
                gateway,
                field("tls.mode"),
                format!("is {mode}: the gateway demands a certificate of every caller, and check shows none"),
                &[Connection, Answer],
            ));
        }
        _ => {}
    }
    for (name, bad) in [("maxProtocolVersion", ["TLSV1_0", "TLSV1_1"]), ("minProtocolVersion", ["TLSV1_4", ""])] {
        let value = text(server, &format!("/tls/{name}"));
        if !value.is_empty() && bad.contains(&value) {
            out.push(Mistake::new(
                gateway,
                field(&format!("tls.{name}")),
                format!("is {value}: clients of today speak TLS 1.2 and 1.3"),
                &[Connection],
            ));
        }
    }
    if !list(server, "/tls/cipherSuites").is_empty() {
        let suites = texts(server, "/tls/cipherSuites").join(", ");
        out.push(Mistake::new(
            gateway,
            field("tls.cipherSuites"),
            format!("is {suites}, and the client shares none of them"),
            &[Connection],
        ));
    }
    if !matches!(mode, "PASSTHROUGH" | "AUTO_PASSTHROUGH" | "ISTIO_MUTUAL") {
        out.extend(secret(path, front, (gateway, index, server)));
    }
    out
}

/// The Secret of a server: that it is there, in the right place, and of a type that Istio reads.
fn secret(path: &Path<'_>, front: &Front<'_>, (gateway, index, server): GatewayServer<'_>) -> Vec<Mistake> {
    let field = format!("spec.servers[{index}].tls.credentialName");
    let name = text(server, "/tls/credentialName");
    let namespace = front.pods.first().map_or("", |pod| pod.namespace());
    if name.is_empty() {
        let by_file = ["/tls/serverCertificate", "/tls/credentialNames/0"].iter().any(|pointer| !at(server, pointer).is_null());
        let missing = Mistake::new(gateway, field, "is not set: the server has no certificate", &[Connection]);
        return if by_file { Vec::new() } else { vec![missing] };
    }
    let seen = |place: &str| path.snapshot.secrets.iter().find(|secret| secret.name == name && secret.namespace == place);
    match seen(namespace) {
        Some(secret) => match &secret.kind {
            Some(kind) if kind == "kubernetes.io/tls" => {
                let says = format!("is the certificate that the gateway shows: {} names it in {field}", gateway.title());
                vec![of_secret(secret, "data[tls.crt]", &says, Certificate)]
            }
            Some(kind) => {
                let says = format!(
                    "is {kind}; the gateway reads the keys tls.crt and tls.key of the type kubernetes.io/tls (of Opaque, cert and key)"
                );
                vec![of_secret(secret, "type", &says, Connection)]
            }
            None => {
                let elsewhere = path.snapshot.secrets.iter().find(|other| other.name == name && other.kind.is_some());
                let hint = elsewhere.map_or_else(String::new, |other| format!("; there is one in {}", other.namespace));
                let says =
                    format!("is {name}, and there is no Secret {name} in {namespace}, the namespace of the gateway's pods{hint}");
                vec![Mistake::new(gateway, field, says, &[Connection]).shown_by(&secret.command)]
            }
        },
        None => Vec::new(),
    }
}

fn of_secret(secret: &SecretSeen, field: &str, says: &str, explains: Symptom) -> Mistake {
    let metadata = json!({"name": secret.name, "namespace": secret.namespace});
    let object = Object::new(json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata}));
    Mistake::new(&object, field, says, &[explains]).shown_by(&secret.command)
}

/// Two Gateways for one host and port: the older one counts.
fn conflict(front: &Front<'_>) -> Option<Mistake> {
    let (first, second) =
        (front.servers.first()?, front.servers.iter().find(|(gateway, ..)| gateway.title() != front.servers[0].0.title())?);
    let settings =
        |server: &Value| (text(server, "/tls/mode").to_owned(), text(server, "/tls/credentialName").to_owned(), is_tls(server));
    if settings(first.2) == settings(second.2) {
        return None;
    }
    let says = format!(
        "names hosts of {} on the same port with other TLS settings: only the older one of the two counts",
        first.0.title()
    );
    Some(Mistake::new(second.0, format!("spec.servers[{}].hosts", second.1), says, &[Connection, Answer]))
}

/// The Service's own port was called at an address where only its NodePort is open.
fn node_port(front: &Front<'_>) -> Option<Mistake> {
    let service = front.service.filter(|service| service.text("/spec/type") == "NodePort" && !front.is_node_port)?;
    let ports = service.list("/spec/ports").iter().enumerate();
    let (index, port) = ports.into_iter().find(|(_, port)| number(at(port, "/port")) == Some(front.port))?;
    let node = number(at(port, "/nodePort"))?;
    let says = format!(
        "is {node}: outside the cluster the gateway is reached at a node, by that port; write it into the URL and into --resolve"
    );
    Some(Mistake::new(service, format!("spec.ports[{index}].nodePort"), says, &[Connection]))
}

/// Plain HTTP that is served, or not redirected.
fn redirect(path: &Path<'_>, front: &Front<'_>) -> Vec<Mistake> {
    let meant = meant(path, &front.gateways);
    let servers = meant.iter().flat_map(|gateway| {
        gateway.list("/spec/servers").iter().enumerate().map(move |(index, server)| (*gateway, index, server))
    });
    servers
        .filter(|(_, _, server)| {
            !is_tls(server) && texts(server, "/hosts").iter().any(|pattern| covers(bare_host(pattern), &path.host))
        })
        .filter(|(_, _, server)| at(server, "/tls/httpsRedirect").as_bool() != Some(true))
        .map(|(gateway, index, _)| {
            Mistake::new(
                gateway,
                format!("spec.servers[{index}].tls.httpsRedirect"),
                "is not set: plain HTTP is served, not redirected",
                &[Redirect],
            )
        })
        .collect()
}
