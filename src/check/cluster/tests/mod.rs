//! The rules on a small cluster in JSON: healthy as it is, and broken in one place at a time.

mod gateways;
mod mesh;
mod routes;
mod strangers;
mod workloads;

use serde_json::{Value, json};

use crate::check::cluster::mistake::{Mistake, cause_of};
use crate::check::cluster::path::{ClusterSubject, Path};
use crate::check::cluster::rules::mistakes;
use crate::check::cluster::snapshot::{SecretSeen, Snapshot};
use crate::hop::reply::Tree;
use crate::report::{CheckId, Finding, Hint};

const MESH: &str = "enableTracing: true\nextensionProviders:\n- name: jaeger\n  opentelemetry:\n    port: 4317\n    service: jaeger-collector.istio-system.svc.cluster.local\n- name: zipkin\nrootNamespace: istio-system\n";

fn object(api: &str, kind: &str, namespace: &str, name: &str, mut rest: Value) -> Value {
    rest["apiVersion"] = json!(api);
    rest["kind"] = json!(kind);
    rest["metadata"]["name"] = json!(name);
    if !namespace.is_empty() {
        rest["metadata"]["namespace"] = json!(namespace);
    }
    rest["metadata"]["creationTimestamp"] = json!("2026-01-02T03:04:05Z");
    rest
}

fn net(kind: &str, name: &str, spec: Value) -> Value {
    object("networking.istio.io/v1", kind, "shop", name, json!({"spec": spec}))
}

fn security(kind: &str, name: &str, spec: Value) -> Value {
    object("security.istio.io/v1", kind, "shop", name, json!({"spec": spec}))
}

/// A hop: Service, Deployment, pod, and the mesh's own objects for it.
fn hop(n: usize, objects: &mut Vec<Value>) {
    let name = format!("service{n}");
    let labels = json!({"app": name, "version": "v1", "lane": "base"});
    let mut env = vec![json!({"name": "SERVICE_NAME", "value": name})];
    if n < 3 {
        env.push(json!({"name": "UPSTREAM", "value": format!("http://service{next}/service{next}", next = n + 1)}));
    }
    let app = json!({"name": "httpserver", "ports": [{"name": "http", "containerPort": 8080}], "env": env,
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}}});
    let port = json!({"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"});
    objects.push(object(
        "v1",
        "Service",
        "shop",
        &name,
        json!({"spec": {"selector": {"app": name}, "ports": [port], "clusterIP": format!("10.96.0.{n}")}}),
    ));
    objects.push(object("apps/v1", "Deployment", "shop", &name, json!({"spec": {"replicas": 1, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels, "annotations": {}}, "spec": {"containers": [app], "serviceAccountName": name}}}})));
    objects.push(object(
        "v1",
        "Pod",
        "shop",
        &format!("{name}-7d4b9c6f5-x2x5z"),
        json!({"metadata": {"labels": labels},
        "spec": {"containers": [app], "initContainers": [{"name": "istio-proxy"}], "serviceAccountName": name},
        "status": {"podIP": format!("10.0.0.{n}"), "conditions": [{"type": "Ready", "status": "True"}]}}),
    ));
    let host = format!("{name}.shop.svc.cluster.local");
    objects.push(net(
        "DestinationRule",
        &name,
        json!({"host": host, "subsets": [{"name": "base", "labels": {"version": "v1"}}]}),
    ));
    objects.push(net("VirtualService", &name, json!({"hosts": [host], "http": [{"route": [{"destination": {"host": host, "subset": "base", "port": {"number": 80}}}], "retries": {"attempts": 0}}]})));
}

fn cluster() -> Vec<Value> {
    let mut objects = vec![
        object("v1", "Namespace", "", "shop", json!({"metadata": {"labels": {"istio-injection": "enabled"}}})),
        object("v1", "Namespace", "", "istio-system", json!({})),
        object(
            "v1",
            "Service",
            "istio-system",
            "istio-ingressgateway",
            json!({"spec": {"type": "NodePort", "selector": {"istio": "ingressgateway"},
            "ports": [{"name": "https", "port": 443, "nodePort": 30443, "targetPort": 8443}, {"name": "http", "port": 80, "nodePort": 30080, "targetPort": 8080}]}}),
        ),
        object(
            "v1",
            "Pod",
            "istio-system",
            "istio-ingressgateway-7d4b9c6f5-x2x5z",
            json!({"metadata": {"labels": {"istio": "ingressgateway"}},
            "spec": {"containers": [{"name": "istio-proxy", "args": ["proxy", "router"]}], "serviceAccountName": "gateway"}}),
        ),
        net(
            "Gateway",
            "door",
            json!({"selector": {"istio": "ingressgateway"}, "servers": [
            {"port": {"number": 443, "protocol": "HTTPS", "name": "https"}, "hosts": ["shop.example.com"], "tls": {"mode": "SIMPLE", "credentialName": "shop-tls"}},
            {"port": {"number": 80, "protocol": "HTTP", "name": "http"}, "hosts": ["shop.example.com"], "tls": {"httpsRedirect": true}}]}),
        ),
        net(
            "VirtualService",
            "door",
            json!({"gateways": ["door"], "hosts": ["shop.example.com"], "http": [
            {"match": [{"uri": {"exact": "/http/service0"}}], "rewrite": {"uri": "/service0"}, "timeout": "15s",
             "route": [{"destination": {"host": "service1.shop.svc.cluster.local", "subset": "base", "port": {"number": 80}}}]}]}),
        ),
        object(
            "v1",
            "Service",
            "istio-system",
            "jaeger-collector",
            json!({"spec": {"ports": [{"name": "otlp-grpc", "port": 4317}, {"name": "otlp-http", "port": 4318}]}}),
        ),
        object(
            "telemetry.istio.io/v1",
            "Telemetry",
            "shop",
            "shop",
            json!({"spec": {"tracing": [{"providers": [{"name": "jaeger"}], "randomSamplingPercentage": 100}]}}),
        ),
        object(
            "telemetry.istio.io/v1",
            "Telemetry",
            "istio-system",
            "door",
            json!({"spec": {"selector": {"matchLabels": {"istio": "ingressgateway"}},
            "tracing": [{"providers": [{"name": "jaeger"}], "randomSamplingPercentage": 100}]}}),
        ),
    ];
    (1..=3).for_each(|n| hop(n, &mut objects));
    objects
}

/// A change of the healthy cluster.
enum Change {
    /// Sets the value at a pointer of an object, `Kind name`.
    Set(&'static str, &'static str, Value),
    /// Takes the value away.
    Unset(&'static str, &'static str),
    Add(Value),
    Remove(&'static str),
}

use Change::{Add, Remove, Set, Unset};

fn changed(changes: Vec<Change>) -> Vec<Value> {
    let mut objects = cluster();
    let position = |objects: &[Value], title: &str| {
        let (kind, name) = title.split_once(' ').unwrap();
        objects
            .iter()
            .position(|object| object["kind"] == kind && object["metadata"]["name"] == name)
            .unwrap_or_else(|| panic!("{title}"))
    };
    for change in changes {
        match change {
            Set(title, pointer, value) => {
                let at = position(&objects, title);
                let mut place = &mut objects[at];
                for part in pointer.trim_start_matches('/').split('/') {
                    let part = part.replace("~1", "/");
                    place = match part.parse::<usize>() {
                        Ok(index) if place.is_array() => &mut place[index],
                        _ => &mut place[part.as_str()],
                    };
                }
                *place = value;
            }
            Unset(title, pointer) => {
                let at = position(&objects, title);
                let (parent, last) = pointer.rsplit_once('/').unwrap();
                objects[at].pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(last).unwrap();
            }
            Add(object) => objects.push(object),
            Remove(title) => {
                let at = position(&objects, title);
                objects.remove(at);
            }
        }
    }
    objects
}

fn secret(kind: Option<&str>, namespace: &str) -> SecretSeen {
    SecretSeen {
        name: "shop-tls".into(),
        namespace: namespace.into(),
        kind: kind.map(str::to_owned),
        command: "kubectl get secret shop-tls".into(),
    }
}

fn found_in(objects: Vec<Value>, secrets: Vec<SecretSeen>) -> Vec<Mistake> {
    found_after(objects, secrets, None)
}

/// What is found once a reply has shown which pods answered.
fn found_after(objects: Vec<Value>, secrets: Vec<SecretSeen>, tree: Option<&Tree>) -> Vec<Mistake> {
    let mut snapshot = Snapshot::of(objects, MESH);
    snapshot.secrets = secrets;
    let url = "https://shop.example.com:30443/http/service0".parse().unwrap();
    let expect = "service1,service2,service3".parse().unwrap();
    let resolve = ["shop.example.com:30443:192.0.2.1".parse().unwrap()];
    let subject = ClusterSubject {
        url: &url,
        resolve: &resolve,
        expect: Some(&expect),
        namespace: "shop",
        gateway_namespace: "istio-system",
    };
    mistakes(&Path::new(&snapshot, &subject, tree))
}

fn found(changes: Vec<Change>) -> Vec<Mistake> {
    found_in(changed(changes), vec![secret(Some("kubernetes.io/tls"), "istio-system")])
}

fn fail(id: CheckId, text: &str) -> Finding {
    Finding::fail(id, text, Hint::new("a likely cause"))
}

/// A failed call from one hop to the next.
fn call(n: usize, text: &str) -> Finding {
    fail(CheckId::ChainHops, text)
        .seam(&format!("service{n}"), &format!("service{}", n + 1), None)
        .hop(&format!("service{}", n + 1))
}

fn front(text: &str) -> Finding {
    fail(CheckId::ReachHttp, text)
}

/// Another hop answered than the expected one.
fn other_hop(from: &str, expected: &str, answered: &str) -> Finding {
    let text = format!("Expected {expected} behind {from}, and {answered} answered");
    fail(CheckId::ChainOrder, &text).seam(from, expected, None).hop(answered)
}

/// The object and field that explain a finding.
fn explained(found: &[Mistake], finding: &Finding) -> Option<(String, String)> {
    cause_of(found.iter(), finding).map(|at| (found[at].object.clone(), found[at].field.clone()))
}

/// A rule is right when it gives the finding that its mistake brings about that object and field, also in a cluster with others.
fn assert_names(rows: Vec<(Vec<Change>, Finding, &str, &str)>) {
    for (changes, finding, object, field) in rows {
        let wanted = Some((object.to_owned(), field.to_owned()));
        let objects = changed(changes);
        for objects in [objects.clone(), strangers::beside(objects)] {
            let found = found_in(objects, vec![secret(Some("kubernetes.io/tls"), "istio-system")]);
            assert_eq!(explained(&found, &finding), wanted, "{finding:?}\n{found:#?}");
        }
    }
}

/// Every symptom at every place of a healthy cluster: nothing but what is there by design may be given as a cause.
#[test]
fn a_healthy_cluster_explains_nothing() {
    explains_nothing(cluster());
    explains_nothing(strangers::beside(cluster()));
}

fn explains_nothing(objects: Vec<Value>) {
    let found = found_in(objects, vec![secret(Some("kubernetes.io/tls"), "istio-system")]);
    assert!(found.iter().all(|mistake| !mistake.is_always_reported), "{found:#?}");
    let plain = "an answer without a reply";
    let findings = [
        front(plain),
        call(1, plain),
        call(2, plain),
        fail(CheckId::ReachTls, "reset"),
        fail(CheckId::ReachRedirect, "served"),
        fail(CheckId::PropagationTrace, "lost").seam("service1", "service2", None),
        fail(CheckId::TracesServices, "missing"),
        fail(CheckId::TrafficIdentity, "plain").hop("service2"),
        fail(CheckId::TrafficRetries, "retried"),
        call(1, "403 RBAC"),
        call(1, "overflow"),
        call(2, "no healthy upstream"),
        call(1, "timed out"),
        call(2, "429 local_rate_limited"),
        front("404"),
        front("401"),
        fail(CheckId::ReachTcp, "refused"),
        fail(CheckId::TracesSampling, "1 %"),
        fail(CheckId::TracesProxies, "no spans").hop("service2"),
        fail(CheckId::PropagationSidecar, "no sidecar").hop("service2"),
        fail(CheckId::PropagationCoverage, "bytes").seam("service1", "service2", None),
        fail(CheckId::TrafficTimes, "slower").seam("service1", "service2", None),
    ];
    for finding in findings {
        assert_eq!(explained(&found, &finding), None, "{finding:?}\n{found:#?}");
    }
}
