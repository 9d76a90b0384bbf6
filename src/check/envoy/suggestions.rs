//! Where a hop runs, and so which commands inspect it: `kubectl` and `istioctl`, `docker compose`, or plain `curl`.

use std::sync::Arc;

use http::Uri;
use http::uri::Authority;

use crate::check::envoy::spans::Evidence;
use crate::hop::reply::Tree;
use crate::net::hosts::{address_of, host_of, is_loopback, redacted_url};
use crate::text::quoted;
use crate::values::service_number;

/// What runs the hops. Known from the host name in the reply, because `check` itself may run anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runner {
    Kubernetes,
    Compose,
    /// Processes that somebody started: `demo`, a shell.
    Local,
}

/// The user's side of every hint: which namespaces the commands name, and what URL was given.
#[derive(Debug, Clone)]
pub(crate) struct HintContext {
    pub(crate) namespace: String,
    pub(crate) gateway_namespace: String,
    /// The URL that is checked.
    pub(crate) url: String,
    /// Whether that URL leads to this machine.
    pub(crate) loopback: bool,
    /// Whether nothing shows that a cluster is behind it.
    pub(crate) is_outside: bool,
    /// What the run has learned until now.
    pub(crate) evidence: Arc<Evidence>,
}

/// One hop as hints see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HopRef {
    pub(crate) name: String,
    /// Empty when the hop never answered.
    pub(crate) hostname: String,
    /// The URL that it was called at.
    pub(crate) url: String,
}

impl HopRef {
    pub(crate) fn of(tree: &Tree, url: &str) -> Self {
        Self { name: tree.service.clone(), hostname: tree.hostname.clone(), url: url.to_owned() }
    }
}

/// What runs a host of this name. Kubernetes ends a pod's name in five letters of an alphabet without vowels; Docker
/// names a container after the start of its id.
pub(crate) fn runner(hostname: &str) -> Runner {
    const SUFFIX: usize = 5;
    let pod = hostname.rsplit_once('-').is_some_and(|(head, tail)| {
        !head.is_empty() && tail.len() == SUFFIX && tail.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b))
    });
    let container = hostname.len() == 12 && hostname.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    match (pod, container) {
        (true, _) => Runner::Kubernetes,
        (_, true) => Runner::Compose,
        _ => Runner::Local,
    }
}

impl HintContext {
    /// What runs this hop. One that never answered is known by its URL: a bare Service name cannot be a local process.
    pub(crate) fn runner(&self, hop: &HopRef) -> Runner {
        if !hop.hostname.is_empty() {
            return runner(&hop.hostname);
        }
        let host = host_of(&hop.url);
        let local = if host.is_empty() { self.loopback } else { is_loopback(&host) };
        if local { Runner::Local } else { Runner::Kubernetes }
    }

    /// What configures a proxy: an object of the cluster, or the configuration of an Envoy where no cluster is seen.
    pub(crate) fn configured_by<'a>(&self, object: &'a str, envoy: &'a str) -> &'a str {
        if self.is_outside { envoy } else { object }
    }

    /// The namespace of a hop: the second label of a Service's DNS name, else the user's.
    pub(crate) fn namespace_of(&self, hop: &HopRef) -> String {
        match host_of(&hop.url).split('.').collect::<Vec<_>>()[..] {
            [_, namespace, "svc", ..] => namespace.to_owned(),
            _ => self.namespace.clone(),
        }
    }

    /// Shows how the hop is configured.
    pub(crate) fn settings(&self, hop: &HopRef) -> String {
        let namespace = self.namespace_of(hop);
        match self.runner(hop) {
            Runner::Kubernetes if hop.hostname.is_empty() => format!("kubectl set env deploy/{} --list -n {namespace}", hop.name),
            Runner::Kubernetes => format!("kubectl set env pod/{} --list -n {namespace}", hop.hostname),
            Runner::Compose => format!("docker inspect -f '{{{{.Config.Env}}}} {{{{.Args}}}}' {}", hop.hostname),
            // Where a foreign app calls is not known.
            Runner::Local => {
                let url = if hop.url.is_empty() { &self.url } else { &hop.url };
                format!("curl -s {}  # its last hop lists what it received", quoted(url))
            }
        }
    }

    /// Shows what the hop logged.
    pub(crate) fn logs(&self, hop: &HopRef) -> String {
        let namespace = self.namespace_of(hop);
        match self.runner(hop) {
            Runner::Kubernetes if hop.hostname.is_empty() => {
                format!("kubectl logs deploy/{} -c httpserver -n {namespace} --tail=20", hop.name)
            }
            Runner::Kubernetes => format!("kubectl logs pod/{} -c httpserver -n {namespace} --tail=20", hop.hostname),
            Runner::Compose => format!("docker logs --tail 20 {}", hop.hostname),
            Runner::Local => format!("curl -s {}  # and its log, where it was started", quoted(&self.ops(hop, "/metrics"))),
        }
    }

    /// Shows the containers of the hop's pods, where a sidecar is `istio-proxy`: among the init containers in Istio of today.
    pub(crate) fn containers(&self, hop: &HopRef) -> String {
        format!(
            "kubectl -n {} get pod -l app={} -o jsonpath='{{range .items[*]}}{{.metadata.name}}: {{.spec.initContainers[*].name}} {{.spec.containers[*].name}}{{\"\\n\"}}{{end}}'",
            self.namespace_of(hop),
            hop.name
        )
    }

    /// Shows the containers of every pod of the hops, init containers too.
    pub(crate) fn all_containers(&self) -> String {
        format!(
            "kubectl get pods -n {} -o custom-columns=POD:.metadata.name,CONTAINERS:.spec.containers[*].name,INIT:.spec.initContainers[*].name",
            self.namespace
        )
    }

    /// Shows the tracing providers that Telemetry resources name, and those that the mesh has.
    pub(crate) fn providers(&self) -> Vec<String> {
        vec![
            "kubectl get telemetry -A -o yaml | grep -A2 providers:  # must be one of the next".to_owned(),
            "kubectl -n istio-system get configmap istio -o yaml | grep -A20 extensionProviders: | grep name:".to_owned(),
        ]
    }

    /// Whether the hop runs at all.
    pub(crate) fn is_up(&self, hop: &HopRef) -> Vec<String> {
        let namespace = self.namespace_of(hop);
        match self.runner(hop) {
            Runner::Kubernetes => vec![
                format!("kubectl get pods -n {namespace} -l app={}", hop.name),
                format!("kubectl get endpointslices -n {namespace} -l kubernetes.io/service-name={}", hop.name),
            ],
            Runner::Compose => {
                vec![format!("docker compose ps {}", hop.name), format!("docker compose logs --tail 20 {}", hop.name)]
            }
            Runner::Local => vec![format!("curl -v {}", quoted(&self.ops(hop, "/healthz")))],
        }
    }

    /// The checked URL with another path.
    pub(crate) fn other_path(&self, path: &str) -> String {
        Self::with_path(&self.url, path)
    }

    /// The hop's URL with another path.
    fn ops(&self, hop: &HopRef, path: &str) -> String {
        Self::with_path(if hop.url.is_empty() { &self.url } else { &hop.url }, path)
    }

    fn with_path(url: &str, path: &str) -> String {
        let uri = url.parse::<Uri>().unwrap_or_default();
        format!("{}://{}{path}", uri.scheme_str().unwrap_or("http"), uri.authority().map_or("", Authority::as_str))
    }
}

/// The likely name of the hop that a URL leads to: the Service's name, else the path's `service<N>`, else host and port.
pub(crate) fn name_of(url: &str) -> String {
    let host = host_of(url);
    if !host.is_empty() && !is_loopback(&host) && address_of(&host).is_none() {
        return host.split('.').next().unwrap_or(&host).to_owned();
    }
    let uri = url.parse::<Uri>().unwrap_or_default();
    let is_service = |part: &&str| part.strip_prefix("service").is_some_and(|digits| service_number(digits).is_some());
    let name = uri.path().rsplit('/').find(is_service).or(uri.authority().map(Authority::as_str));
    name.map_or_else(|| redacted_url(url), str::to_owned)
}

#[cfg(test)]
impl HintContext {
    /// A chain behind a gateway, of which nothing is known.
    pub(crate) fn for_tests() -> Self {
        Self {
            namespace: "httpserver".into(),
            gateway_namespace: "istio-system".into(),
            url: "http://x/service1".into(),
            loopback: false,
            is_outside: false,
            evidence: Arc::default(),
        }
    }
}

/// What a hop does on purpose, and who may have ordered it.
pub(crate) fn on_purpose(hop: &str, does: &str, option: &str) -> String {
    format!("{hop} {does} ({option}, x-fault, or its admin API)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> HintContext {
        HintContext { url: "http://127.0.0.1:8080/service1".into(), loopback: true, ..HintContext::for_tests() }
    }

    #[test]
    fn a_host_name_tells_what_runs_it() {
        assert_eq!(runner("service1-7d4b9c6f5-x2x5z"), Runner::Kubernetes);
        assert_eq!(runner("0123456789ab"), Runner::Compose);
        assert_eq!(runner("my-laptop"), Runner::Local);
        assert_eq!(runner("vm"), Runner::Local);
    }

    #[test]
    fn a_url_names_its_hop() {
        for (url, name) in [
            ("http://service2/service2", "service2"),
            ("http://service2.other.svc.cluster.local:80/x", "service2"),
            ("http://127.0.0.1:8081/hello/service3?x=/service9", "service3"),
            ("http://[::1]:8081/service2", "service2"),
            ("http://127.0.0.1:8081/", "127.0.0.1:8081"),
        ] {
            assert_eq!(name_of(url), name, "{url}");
        }
    }

    #[test]
    fn commands_name_the_pod_its_namespace_and_nothing_unquoted() {
        let hop = HopRef {
            name: "service2".into(),
            hostname: "service2-7d4b9c6f5-x2x5z".into(),
            url: "http://service2.shop.svc.cluster.local/service2".into(),
        };
        assert_eq!(place().settings(&hop), "kubectl set env pod/service2-7d4b9c6f5-x2x5z --list -n shop");
        let gone = HopRef { hostname: String::new(), url: "http://service2/service2".into(), ..hop };
        assert_eq!(place().is_up(&gone)[0], "kubectl get pods -n httpserver -l app=service2");
        assert_eq!(quoted("http://x/a?b=1&c"), "'http://x/a?b=1&c'");
    }
}
