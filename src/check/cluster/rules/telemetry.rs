//! Telemetry: which proxies report, to whom, and how many requests.

use serde_json::{Value, json};

use crate::check::cluster::mistake::Mistake;
use crate::check::cluster::mistake::Symptom::{self, Headers, Proxies, Sampling, Spans};
use crate::check::cluster::object::{Object, at, list, number, service_of, text};
use crate::check::cluster::path::Path;
use crate::check::cluster::rules::scope::keeping;
use crate::check::cluster::snapshot::ROOT_NAMESPACE;

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    let providers = path.snapshot.mesh.as_deref().map(providers);
    let mut look = |pod: &Object, place: &dyn Fn(Mistake) -> Mistake| {
        let holding = holding(path, pod);
        for telemetry in &holding {
            out.extend(of(telemetry, providers.as_deref()).into_iter().map(place));
        }
        let tracing = holding.iter().flat_map(|telemetry| telemetry.list("/spec/tracing"));
        let name = tracing.flat_map(|tracing| list(tracing, "/providers")).map(|provider| text(provider, "/name")).next();
        let used = providers.iter().flatten().find(|provider| Some(provider.name.as_str()) == name);
        out.extend(used.and_then(|provider| collector(path, pod, provider)).map(place));
        // The nearest object alone decides about providers and rates; further ones fill what it leaves out.
        let traces = holding.iter().any(|telemetry| !telemetry.list("/spec/tracing").is_empty());
        if !traces && path.snapshot.knows("telemetries.telemetry.istio.io") {
            out.extend(missing(path, pod).map(place));
        }
    };
    if let Some(pod) = path.front.as_ref().and_then(|front| front.pods.first()) {
        look(pod, &Mistake::front);
    }
    for hop in &path.hops {
        if let Some(pod) = hop.pods.first() {
            look(pod, &|mistake| mistake.hop(hop));
        }
    }
    out
}

/// The Telemetry objects that hold for a pod, the nearest first.
fn holding<'a>(path: &Path<'a>, pod: &Object) -> Vec<&'a Object> {
    let mut all = path.snapshot.all("Telemetry");
    all.retain(|object| pod.is_targeted_by(object));
    let selects = |object: &Object| object.at("/spec/selector/matchLabels").as_object().is_some_and(|labels| !labels.is_empty());
    let own = all.iter().filter(|object| {
        selects(object) && object.namespace() == pod.namespace() && pod.is_selected_by(object.at("/spec/selector/matchLabels"))
    });
    let whole = |namespace: &str| all.iter().find(|object| !selects(object) && object.namespace() == namespace);
    let root = whole(ROOT_NAMESPACE).filter(|_| pod.namespace() != ROOT_NAMESPACE);
    own.chain(whole(pod.namespace())).chain(root).copied().collect()
}

fn of(telemetry: &Object, providers: Option<&[Provider]>) -> Vec<Mistake> {
    let mut out = Vec::new();
    for (index, tracing) in telemetry.list("/spec/tracing").iter().enumerate() {
        let field = |rest: &str| format!("spec.tracing[{index}].{rest}");
        let new = |rest: &str, says: String, explains: &[Symptom]| Mistake::new(telemetry, field(rest), says, explains);
        for (at_provider, provider) in list(tracing, "/providers").iter().enumerate() {
            let name = text(provider, "/name");
            if let Some(known) = providers.filter(|known| !known.iter().any(|known| known.name == name)) {
                let names: Vec<&str> = known.iter().map(|known| known.name.as_str()).collect();
                let names = if names.is_empty() { "no provider".to_owned() } else { names.join(", ") };
                let says = format!("is {name}, and the mesh has {names}");
                out.push(new(&format!("providers[{at_provider}].name"), says, &[Spans, Proxies, Headers, Sampling]).standing());
            }
        }
        if at(tracing, "/disableSpanReporting").as_bool() == Some(true) {
            out.push(
                new("disableSpanReporting", "is true: the proxy makes spans and reports none".to_owned(), &[Spans]).standing(),
            );
        }
        if at(tracing, "/disableContextPropagation").as_bool() == Some(true) {
            out.push(
                new(
                    "disableContextPropagation",
                    "is true: the proxy writes no trace headers".to_owned(),
                    &[Spans, Headers, Proxies],
                )
                .standing(),
            );
        }
        if let Some(mode) = tracing.pointer("/match/mode").and_then(Value::as_str).filter(|mode| *mode != "CLIENT_AND_SERVER") {
            out.push(new("match.mode", format!("is {mode}: spans of the other side are not covered"), &[Spans, Proxies]));
        }
        match at(tracing, "/randomSamplingPercentage").as_f64() {
            Some(percent) if percent < 100.0 => {
                out.push(new("randomSamplingPercentage", format!("is {percent}"), &[Sampling, Spans, Headers]))
            }
            None if !list(tracing, "/providers").is_empty() => {
                out.push(new(
                    "randomSamplingPercentage",
                    "is not set, which means 1 % (or what the mesh's configuration says)".to_owned(),
                    &[Sampling, Spans],
                ));
            }
            _ => {}
        }
    }
    out
}

/// No Telemetry with tracing covers a pod.
fn missing(path: &Path<'_>, pod: &Object) -> impl Iterator<Item = Mistake> {
    let namespace = pod.namespace();
    // Where others trace, one that would fit is named: its selector, or its namespace.
    let of_hops: Vec<&Object> = path.hops.iter().filter_map(|hop| hop.pods.first()).flat_map(|pod| holding(path, pod)).collect();
    let others = path.snapshot.all("Telemetry").into_iter().filter(|telemetry| {
        let is_near = telemetry.namespace() == namespace || of_hops.contains(telemetry);
        is_near && !telemetry.list("/spec/tracing").is_empty()
    });
    let mut near: Vec<&Object> = others.collect();
    near.sort_by_key(|telemetry| telemetry.namespace() != namespace);
    near.into_iter()
        .take(1)
        .map(|telemetry| {
            let selector = telemetry.at("/spec/selector/matchLabels");
            let explains = &[Spans, Proxies, Sampling, Headers];
            if telemetry.namespace() == namespace && selector.is_object() {
                let says = format!(
                    "is {}, which the pods there do not have, and no other Telemetry with tracing covers them",
                    crate::check::cluster::object::labels_text(selector)
                );
                return Mistake::new(telemetry, "spec.selector.matchLabels", says, explains);
            }
            let says = format!(
                "is {}: it does not cover the pods in {namespace}, and no other Telemetry with tracing does",
                telemetry.namespace()
            );
            Mistake::new(telemetry, "metadata.namespace", says, explains)
        })
        .collect::<Vec<_>>()
        .into_iter()
}

/// Where a proxy reports: a provider that the mesh has.
#[derive(Debug, Default)]
struct Provider {
    name: String,
    /// The collector's host, and the port of its Service.
    service: String,
    port: Option<u64>,
}

/// The `extensionProviders` of the mesh's configuration: YAML as istiod writes it, read line by line.
fn providers(mesh: &str) -> Vec<Provider> {
    let list = mesh.lines().skip_while(|line| !line.starts_with("extensionProviders:")).skip(1);
    let mut out: Vec<Provider> = Vec::new();
    for line in list.take_while(|line| line.starts_with([' ', '-'])) {
        if line.trim_start().starts_with("- ") && line.find('-') <= Some(2) {
            out.push(Provider::default());
        }
        let (Some(provider), Some((key, value))) = (out.last_mut(), line.trim_start_matches([' ', '-']).split_once(':')) else {
            continue;
        };
        let value = value.trim().trim_matches(['"', '\'']);
        match key {
            "name" if provider.name.is_empty() => provider.name = value.to_owned(),
            // `namespace/host` is a way to write it.
            "service" => provider.service = value.rsplit('/').next().unwrap_or(value).to_owned(),
            "port" => provider.port = value.parse().ok(),
            _ => {}
        }
    }
    out
}

/// The collector that a pod's proxy cannot report to: it is not there, or a Sidecar hides it.
fn collector(path: &Path<'_>, pod: &Object, provider: &Provider) -> Option<Mistake> {
    let Provider { name, service: host, port } = provider;
    let (service, namespace) = service_of(host, ROOT_NAMESPACE)?;
    let explains = &[Spans, Proxies, Headers, Sampling];
    let is_entry = path.snapshot.all("ServiceEntry").iter().any(|entry| entry.texts("/spec/hosts").contains(&host.as_str()));
    let found = path.snapshot.service(service, namespace);
    let ports: Vec<u64> =
        found.into_iter().flat_map(|found| found.list("/spec/ports")).filter_map(|port| number(at(port, "/port"))).collect();
    let wrong = match (found, port) {
        (None, _) if !is_entry && path.snapshot.knows("services") => {
            Some(("service", host.clone(), format!("and there is no Service {service} in {namespace}")))
        }
        (Some(found), Some(port)) if !ports.contains(port) => {
            let ports = ports.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            Some(("port", port.to_string(), format!("and {} has {ports}", found.title())))
        }
        _ => None,
    };
    if let Some((key, value, why)) = wrong {
        let metadata = json!({"name": "istio", "namespace": ROOT_NAMESPACE});
        let mesh = Object::new(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}));
        let says = format!("has the {key} {value} for the provider {name}, {why}: no span of a proxy arrives");
        let next =
            format!("kubectl get configmap istio -n {ROOT_NAMESPACE} -o jsonpath='{{.data.mesh}}'  # look for: {key}: {value}");
        return Some(Mistake::new(&mesh, "data.mesh", says, explains).shown_by(&next).standing());
    }
    let is_gateway = crate::check::cluster::front::is_router(pod);
    let (sidecar, hosts) = keeping(path.snapshot, pod, host).filter(|_| !is_gateway)?;
    let says = format!("is {hosts}, which lacks {host}: the proxies do not know the collector of the provider {name}");
    Some(Mistake::new(sidecar, "spec.egress[0].hosts", says, explains))
}
