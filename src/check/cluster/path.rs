//! The way of the request through the cluster: the gateway, then every hop, each with the Service, the pods and the Deployment
//! that the objects name, from the reply where there is one and from the configuration where there is none.

use http::Uri;
use reqwest::Url;
use serde_json::Value;

use crate::check::chain::evidence::CALLER;
use crate::check::chain::expect::{Expect, Resolve, is_named};
use crate::check::cluster::front::{Arrival, Front, is_name, is_router};
use crate::check::cluster::object::{Object, at, is_selected, list, number, service_host, service_of, text};
use crate::check::cluster::routing::{Choice, Destination, SeamCall, choose, destinations, virtual_services};
use crate::check::cluster::snapshot::{ROOT_NAMESPACE, Snapshot};
use crate::check::envoy::suggestions::name_of;
use crate::hop::reply::Tree;
use crate::net::hosts::{self, host_of, is_tls, url_port};
use crate::values::{is_label, service_number};

/// One hop.
#[derive(Debug)]
pub(crate) struct Hop<'a> {
    pub(crate) name: String,
    pub(crate) namespace: String,
    /// Which hop calls it; `None`: the gateway, or the caller outside.
    pub(crate) caller: Option<usize>,
    /// How the caller's app calls it.
    pub(crate) call: SeamCall,
    pub(crate) service: Option<&'a Object>,
    /// The pods that the Service selects, and those that answered.
    pub(crate) pods: Vec<&'a Object>,
    pub(crate) deployments: Vec<&'a Object>,
    /// Its reply was there.
    pub(crate) answered: bool,
    /// A foreign app.
    pub(crate) is_foreign: bool,
    /// The VirtualServices that hold for the call, the rule that takes it, and where it sends it.
    pub(crate) routes: Vec<&'a Object>,
    pub(crate) choice: Option<Choice<'a>>,
    pub(crate) destinations: Vec<Destination<'a>>,
}

/// The whole way.
#[derive(Debug)]
pub(crate) struct Path<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) host: String,
    pub(crate) is_https: bool,
    pub(crate) path: String,
    /// The namespace of the chain (`--namespace`).
    namespace: String,
    expect: Option<Expect>,
    /// `None`: the URL leads past every gateway.
    pub(crate) front: Option<Front<'a>>,
    pub(crate) hops: Vec<Hop<'a>>,
}

/// What is checked, for the objects on its way.
#[derive(Debug)]
pub(crate) struct ClusterSubject<'a> {
    pub(crate) url: &'a Url,
    pub(crate) resolve: &'a [Resolve],
    pub(crate) expect: Option<&'a Expect>,
    pub(crate) namespace: &'a str,
    pub(crate) gateway_namespace: &'a str,
}

impl ClusterSubject<'_> {
    /// Where `--resolve` leads, else the URL's own host.
    fn address(&self) -> &str {
        let host = self.url.host_str().unwrap_or_default();
        let port = url_port(self.url);
        let given = self.resolve.iter().find(|resolve| resolve.host == host && resolve.port == port);
        given.map_or(host, |resolve| resolve.address.as_str())
    }

    /// The namespaces whose pods are read.
    pub(crate) fn namespaces(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in [self.namespace, self.gateway_namespace, ROOT_NAMESPACE] {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

impl Hop<'_> {
    /// The name that the mesh has for the called Service.
    pub(crate) fn full_name(&self) -> String {
        let service =
            self.service.map_or((self.name.as_str(), self.namespace.as_str()), |service| (service.name(), service.namespace()));
        service_host(service.0, service.1)
    }

    /// The port of the Service that is called.
    pub(crate) fn service_port(&self) -> Option<(usize, &Value)> {
        let ports = self.service?.list("/spec/ports");
        let called = self.call.port;
        let found = ports.iter().enumerate().find(|(_, port)| number(at(port, "/port")) == called);
        found.or_else(|| ports.iter().enumerate().next().filter(|_| called.is_none()))
    }

    /// The port on which the app listens, by the Service.
    pub(crate) fn target_port(&self) -> Option<u64> {
        let (_, port) = self.service_port()?;
        match at(port, "/targetPort") {
            Value::String(name) => self.pods.iter().find_map(|pod| named_port(pod.at("/spec"), name)),
            Value::Null => number(at(port, "/port")),
            target => number(target),
        }
    }

    pub(crate) fn labels(&self) -> &Value {
        let deployed = || self.deployments.first().map(|deployment| deployment.at("/spec/template/metadata/labels"));
        self.pods.first().map(|pod| pod.at("/metadata/labels")).or_else(deployed).unwrap_or(&Value::Null)
    }
}

/// The number of a container port of this name.
pub(crate) fn named_port(spec: &Value, name: &str) -> Option<u64> {
    let ports = list(spec, "/containers").iter().flat_map(|container| list(container, "/ports"));
    ports.filter(|port| text(port, "/name") == name).find_map(|port| number(at(port, "/containerPort")))
}

impl<'a> Path<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, subject: &ClusterSubject<'_>, tree: Option<&Tree>) -> Self {
        let url = subject.url;
        let mut path = Self {
            snapshot,
            host: url.host_str().unwrap_or_default().to_ascii_lowercase(),
            is_https: is_tls(url),
            path: url.path().to_owned(),
            namespace: subject.namespace.to_owned(),
            expect: subject.expect.cloned(),
            front: None,
            hops: Vec::new(),
        };
        let arrival = Arrival {
            host: &path.host,
            is_https: path.is_https,
            port: u64::from(url_port(url)),
            address: subject.address(),
            namespace: subject.gateway_namespace,
        };
        path.front = (!path.is_past_gateways(subject)).then(|| Front::new(snapshot, &arrival));
        path.first_hop(subject, tree);
        path
    }

    /// Whether the address is a pod's or a Service's own.
    fn is_past_gateways(&self, subject: &ClusterSubject<'_>) -> bool {
        let address = subject.address();
        let is = |value: &str| !value.is_empty() && value == address;
        let is_pod = self.snapshot.all("Pod").into_iter().any(|pod| is(pod.text("/status/podIP")) && !is_router(pod));
        let is_service = self.snapshot.all("Service").into_iter().any(|service| {
            service.namespace() == subject.namespace && (is(service.text("/spec/clusterIP")) || is_name(address, service))
        });
        let has_router = self.snapshot.all("Pod").into_iter().any(is_router);
        is_pod || is_service || !has_router && self.snapshot.all("Gateway").is_empty() && self.snapshot.api_gateways().is_empty()
    }

    /// The first hop, and from it all others.
    fn first_hop(&mut self, subject: &ClusterSubject<'_>, tree: Option<&Tree>) {
        let gateway = self.front.as_ref();
        let gateways = gateway.map_or_else(Vec::new, |front| {
            let names = front.servers.iter().map(|(gateway, ..)| format!("{}/{}", gateway.namespace(), gateway.name()));
            names.collect()
        });
        let call = SeamCall { host: self.host.clone(), port: gateway.map(|front| front.port), path: self.path.clone(), gateways };
        let labels = gateway.and_then(|front| front.pods.first()).map_or(&Value::Null, |pod| pod.at("/metadata/labels"));
        let routes = match gateway {
            Some(_) => virtual_services(self.snapshot, &call, subject.gateway_namespace),
            None => Vec::new(),
        };
        let choice = choose(self.snapshot, &routes, &call, labels, subject.gateway_namespace);
        let destinations = choice.as_ref().map(destinations).unwrap_or_default();
        let routed = destinations
            .iter()
            .find_map(|to| service_of(&to.host, ""))
            .map(|(name, namespace)| (name.to_owned(), namespace.to_owned()));
        let pod = tree.and_then(|tree| self.pod(&tree.hostname));
        let expected = subject.expect.and_then(|expect| expect.names().first().map(|name| (*name).to_owned()));
        let name = match (tree, expected, &routed) {
            (Some(tree), ..) => tree.service.clone(),
            (None, Some(expected), _) => expected,
            (None, None, Some((name, _))) => name.clone(),
            (None, None, None) => return,
        };
        let namespace = pod.map(|pod| pod.namespace().to_owned()).or(routed.as_ref().map(|(_, namespace)| namespace.clone()));
        let namespace = namespace.filter(|name| !name.is_empty()).unwrap_or_else(|| subject.namespace.to_owned());
        let selects = |pod: &Object| self.snapshot.all("Service").into_iter().find(|service| selects(service, pod));
        let service = pod.and_then(selects).or_else(|| self.snapshot.service(base_name(&name), &namespace));
        let to = destinations.iter().find_map(|to| to.port);
        let rewritten = choice.and_then(|choice| rewritten(choice.rule, &self.path)).unwrap_or_else(|| self.path.clone());
        let hop = Hop {
            name,
            namespace,
            caller: None,
            call: SeamCall { port: to, path: rewritten, ..call },
            service,
            pods: pod.into_iter().collect(),
            deployments: Vec::new(),
            answered: tree.is_some(),
            is_foreign: false,
            routes,
            choice,
            destinations,
        };
        self.add(hop, tree);
    }

    /// Adds a hop with everything that is known of it, and the hops that it calls.
    fn add(&mut self, mut hop: Hop<'a>, tree: Option<&Tree>) {
        const MOST: usize = 64;
        let pods = self.snapshot.all("Pod").into_iter().filter(|pod| hop.service.is_some_and(|service| selects(service, pod)));
        for pod in pods.collect::<Vec<_>>() {
            if !hop.pods.iter().any(|known| known.name() == pod.name()) {
                hop.pods.push(pod);
            }
        }
        let name = base_name(&hop.name).to_owned();
        let ours = self.snapshot.all("Deployment").into_iter().filter(|deployment| deployment.namespace() == hop.namespace);
        let runs = |deployment: &&Object| {
            let labels = deployment.at("/spec/template/metadata/labels");
            let wanted = deployment.at("/spec/selector/matchLabels");
            hop.pods.iter().any(|pod| pod.is_selected_by(wanted))
                || hop.service.is_some_and(|service| is_wanted(service.at("/spec/selector"), labels))
                || deployment.name() == name
        };
        hop.deployments = ours.filter(runs).collect();
        let at = self.hops.len();
        let (namespace, labels) = (hop.namespace.clone(), hop.labels().clone());
        let configured = if tree.is_none() { configured_calls(&hop) } else { Vec::new() };
        self.hops.push(hop);
        for url in configured {
            if self.hops.len() < MOST && !self.is_above(at, &url) {
                let next = self.next_hop(at, &url, None, (&namespace, &labels));
                self.add(next, None);
            }
        }
        for call in tree.into_iter().flat_map(|tree| &tree.upstreams) {
            if self.hops.len() >= MOST || self.is_above(at, &call.url) {
                continue;
            }
            let next = self.next_hop(at, &call.url, call.reply.as_deref(), (&namespace, &labels));
            let foreign_app = self.hops.len();
            self.add(Hop { is_foreign: call.is_foreign(), ..next }, call.reply.as_deref());
            let (namespace, labels) = (self.hops[foreign_app].namespace.clone(), self.hops[foreign_app].labels().clone());
            for reply in &call.embedded {
                let url = self.url_of(reply, &namespace);
                if self.hops.len() < MOST && !self.is_above(foreign_app, &url) {
                    let next = self.next_hop(foreign_app, &url, Some(reply), (&namespace, &labels));
                    self.add(next, Some(reply));
                }
            }
        }
    }

    /// Where a foreign app called a hop: no reply has that, so it is the Service of the hop's pod, at its first port.
    fn url_of(&self, tree: &Tree, from: &str) -> String {
        let pod = self.pod(&tree.hostname);
        let service = pod.and_then(|pod| self.snapshot.all("Service").into_iter().find(|service| selects(service, pod)));
        let (name, namespace) = service.map_or((base_name(&tree.service), from), |service| (service.name(), service.namespace()));
        let port = service.and_then(|service| number(at(service.list("/spec/ports").first()?, "/port"))).unwrap_or(80);
        format!("http://{}:{port}{}", service_host(name, namespace), tree.path)
    }

    /// Whether this URL leads back to a hop above: a loop, which would have no end.
    fn is_above(&self, at: usize, url: &str) -> bool {
        let name = name_of(url);
        std::iter::successors(Some(at), |at| self.hops[*at].caller).any(|at| base_name(&self.hops[at].name) == name)
    }

    fn next_hop(&self, caller: usize, url: &str, reply: Option<&Tree>, (from, labels): (&str, &Value)) -> Hop<'a> {
        let host = host_of(url);
        let uri = url.parse::<Uri>().unwrap_or_default();
        let (port, path) = (u64::from(hosts::port_of(&uri)), uri.path().to_owned());
        let pod = reply.and_then(|tree| self.pod(&tree.hostname));
        let called = service_of(&host, from);
        let service = called.and_then(|(name, namespace)| self.snapshot.service(name, namespace));
        let namespace = pod
            .map(Object::namespace)
            .or(service.map(Object::namespace))
            .or(called.map(|(_, namespace)| namespace))
            .unwrap_or(from)
            .to_owned();
        let full = service.map_or_else(|| host.clone(), |service| service_host(service.name(), service.namespace()));
        let call = SeamCall { host: full.clone(), port: Some(port), path, gateways: vec!["mesh".to_owned()] };
        let routes = virtual_services(self.snapshot, &call, from);
        let choice = choose(self.snapshot, &routes, &call, labels, from);
        let mut to = choice.as_ref().map(destinations).unwrap_or_default();
        if to.is_empty() {
            to.push(Destination { index: None, host: full, subset: None, port: Some(port), weight: None });
        }
        Hop {
            name: reply.map_or_else(|| name_of(url), |tree| tree.service.clone()),
            namespace,
            caller: Some(caller),
            call: SeamCall { host, ..call },
            service,
            pods: pod.into_iter().collect(),
            deployments: Vec::new(),
            answered: reply.is_some(),
            is_foreign: false,
            routes,
            choice,
            destinations: to,
        }
    }

    /// Whether a namespace is the chain's.
    pub(crate) fn is_ours(&self, namespace: &str) -> bool {
        namespace == self.namespace || self.hops.iter().any(|hop| hop.namespace == namespace)
    }

    /// The name of the hop that is expected first.
    pub(crate) fn expected_first(&self) -> Option<&str> {
        Some(&self.expect.as_ref()?.name)
    }

    pub(crate) fn expects(&self, name: &str) -> bool {
        self.expect.as_ref().is_some_and(|expect| expect.names().iter().any(|expected| is_named(name, expected)))
    }

    /// Whether a hop calls those, by its `UPSTREAM`, that it is expected to call.
    pub(crate) fn calls_as_expected(&self, hop: &Hop<'_>) -> bool {
        fn node<'e>(expect: &'e Expect, name: &str) -> Option<&'e Expect> {
            if is_named(name, &expect.name) { Some(expect) } else { expect.below.iter().find_map(|below| node(below, name)) }
        }
        let Some(expected) = self.expect.as_ref().and_then(|expect| node(expect, &hop.name)) else { return false };
        let called = configured_calls(hop);
        let mut pairs = called.iter().zip(&expected.below);
        called.len() == expected.below.len() && pairs.all(|(url, below)| is_named(&name_of(url), &below.name))
    }

    /// A pod by the name that a reply has.
    fn pod(&self, name: &str) -> Option<&'a Object> {
        self.snapshot.all("Pod").into_iter().find(|pod| pod.name() == name)
    }

    /// The name of a hop's caller, as findings have it.
    pub(crate) fn caller_name(&self, hop: &Hop<'_>) -> &str {
        hop.caller.map_or(CALLER, |at| &self.hops[at].name)
    }

    /// The pods that call a hop: another hop's, or the gateway's.
    pub(crate) fn calling_pods(&self, hop: &Hop<'_>) -> &[&'a Object] {
        match hop.caller {
            Some(at) => &self.hops[at].pods,
            None => self.front.as_ref().map_or(&[], |front| &front.pods),
        }
    }

    /// The hops that a hop calls.
    pub(crate) fn called_by(&self, hop: &Hop<'_>) -> impl Iterator<Item = &Hop<'a>> {
        let at = self.hops.iter().position(|own| std::ptr::eq(own, hop));
        self.hops.iter().filter(move |next| at.is_some() && next.caller == at)
    }

    /// The ports at which a hop calls others.
    pub(crate) fn called_ports(&self, hop: &Hop<'_>) -> impl Iterator<Item = u64> {
        self.called_by(hop).filter_map(|next| next.call.port)
    }

    /// The namespace of a hop's caller.
    pub(crate) fn calling_namespace(&self, hop: &Hop<'_>) -> &str {
        match hop.caller {
            Some(at) => &self.hops[at].namespace,
            None => self.front.as_ref().and_then(|front| front.pods.first()).map_or("", |pod| pod.namespace()),
        }
    }
}

/// Whether a Service's selector finds a pod.
pub(crate) fn selects(service: &Object, pod: &Object) -> bool {
    service.namespace() == pod.namespace() && is_wanted(service.at("/spec/selector"), pod.at("/metadata/labels"))
}

/// A Service without a selector selects nothing.
fn is_wanted(selector: &Value, labels: &Value) -> bool {
    selector.as_object().is_some_and(|selector| !selector.is_empty()) && is_selected(labels, selector)
}

/// A hop's name without a namespace behind it.
pub(crate) fn base_name(name: &str) -> &str {
    name.split('.').next().filter(|name| is_label(name)).unwrap_or(name)
}

/// Whether a hop answers this path as a part of the chain.
pub(crate) fn is_of_chain(path: &str) -> bool {
    let digits = path.strip_prefix("/hello").unwrap_or(path).strip_prefix("/service");
    digits.is_some_and(|digits| service_number(digits).is_some())
}

/// The path behind `rewrite.uri`, which replaces what `match.uri` names.
pub(crate) fn rewritten(rule: &Value, path: &str) -> Option<String> {
    let uri = at(rule, "/rewrite/uri").as_str()?;
    let prefixes = list(rule, "/match").iter().filter_map(|one| at(one, "/uri/prefix").as_str());
    let prefix = prefixes.filter(|prefix| path.starts_with(prefix)).max_by_key(|prefix| prefix.len());
    Some(prefix.map_or_else(|| uri.to_owned(), |prefix| format!("{uri}{}", &path[prefix.len()..])))
}

/// The URLs in `UPSTREAM` of a hop.
fn configured_calls(hop: &Hop<'_>) -> Vec<String> {
    if hop.is_foreign {
        return Vec::new();
    }
    let Some((_, _, value)) = env(hop, "UPSTREAM") else { return Vec::new() };
    let urls = value.split(',').map(|part| part.trim().split_once("%=").map_or(part.trim(), |(_, url)| url));
    urls.filter(|url| !url.is_empty()).map(str::to_owned).collect()
}

/// A variable of the hop's app: the object that sets it, the field and the value. The pods show what runs; their Deployment is
/// where it is changed.
pub(crate) fn env<'a>(hop: &Hop<'a>, name: &str) -> Option<(&'a Object, String, &'a str)> {
    envs(hop, name).into_iter().next()
}

/// The same of every Deployment of the hop: lanes and versions have their own.
pub(crate) fn envs<'a>(hop: &Hop<'a>, name: &str) -> Vec<(&'a Object, String, &'a str)> {
    let of = |object: &'a Object, spec: &'a Value, prefix: &str| {
        list(spec, "/containers").iter().enumerate().find_map(|(index, container)| {
            let variable = list(container, "/env").iter().find(|variable| text(variable, "/name") == name)?;
            Some((object, format!("{prefix}.containers[{index}].env[{name}]"), at(variable, "/value").as_str()?))
        })
    };
    let deployed = hop.deployments.iter().filter_map(|object| of(object, object.at("/spec/template/spec"), "spec.template.spec"));
    let deployed: Vec<_> = deployed.collect();
    if deployed.is_empty() {
        hop.pods.iter().filter_map(|object| of(object, object.at("/spec"), "spec")).collect()
    } else {
        deployed
    }
}
