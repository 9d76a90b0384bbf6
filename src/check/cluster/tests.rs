//! The rules on a small cluster in JSON: healthy as it is, and broken in one place at a time.

use serde_json::{Value, json};

use crate::check::cluster::mistake::Mistake;
use crate::check::cluster::path::{Path, Target};
use crate::check::cluster::rules::mistakes;
use crate::check::cluster::snapshot::{SecretSeen, Snapshot};
use crate::check::report::{CheckId, Finding, Hint};

const MESH: &str = "enableTracing: true\nextensionProviders:\n- name: jaeger\n  opentelemetry:\n    port: 4317\n- name: zipkin\nrootNamespace: istio-system\n";

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
    let mut snapshot = Snapshot::of(objects, MESH);
    snapshot.secrets = secrets;
    let url = "https://shop.example.com:30443/http/service0".parse().unwrap();
    let target = Target {
        url: &url,
        address: "192.0.2.1",
        namespace: "shop",
        gateway_namespace: "istio-system",
        expected: &["service1", "service2", "service3"],
    };
    mistakes(&Path::new(&snapshot, &target, None))
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

/// The object and field that explain a finding.
fn explained(found: &[Mistake], finding: &Finding) -> Option<(String, String)> {
    found.iter().find(|mistake| mistake.explains(finding)).map(|mistake| (mistake.object.clone(), mistake.field.clone()))
}

/// Every symptom at every place of a healthy cluster: nothing but what is there by design may be given as a cause.
#[test]
fn a_healthy_cluster_explains_nothing() {
    let found = found(Vec::new());
    assert!(found.iter().all(|mistake| !mistake.stands), "{found:#?}");
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
    ];
    for finding in findings {
        assert_eq!(explained(&found, &finding), None, "{finding:?}");
    }
}

/// A rule is right when it gives the finding that its mistake brings about that object and field.
fn assert_names(rows: Vec<(Vec<Change>, Finding, &str, &str)>) {
    for (changes, finding, object, field) in rows {
        let found = found(changes);
        let wanted = Some((object.to_owned(), field.to_owned()));
        assert_eq!(explained(&found, &finding), wanted, "{finding:?}\n{found:#?}");
    }
}

#[test]
fn gateways_are_named_with_their_field() {
    let gateway = "Gateway shop/door";
    assert_names(vec![
        (
            vec![Set("Gateway door", "/spec/selector", json!({"istio": "ingress"}))],
            fail(CheckId::ReachTcp, "refused"),
            gateway,
            "spec.selector",
        ),
        (
            vec![Set("Gateway door", "/spec/servers/0/hosts", json!(["other.example.com"]))],
            fail(CheckId::ReachTls, "reset"),
            gateway,
            "spec.servers[0].hosts",
        ),
        (
            vec![Set("Gateway door", "/spec/servers/0/port/number", json!(8443))],
            fail(CheckId::ReachTcp, "refused"),
            gateway,
            "spec.servers[0].port.number",
        ),
        (
            vec![Set("Gateway door", "/spec/servers/0/port/protocol", json!("HTTP"))],
            fail(CheckId::ReachTls, "plain"),
            gateway,
            "spec.servers[0].port.protocol",
        ),
        (
            vec![Set("Gateway door", "/spec/servers/0/tls/mode", json!("PASSTHROUGH"))],
            fail(CheckId::ReachTls, "reset"),
            gateway,
            "spec.servers[0].tls.mode",
        ),
        (
            vec![Set("Gateway door", "/spec/servers/0/tls/mode", json!("MUTUAL"))],
            fail(CheckId::ReachTls, "wants"),
            gateway,
            "spec.servers[0].tls.mode",
        ),
        (
            vec![Set("Gateway door", "/spec/servers/0/tls/maxProtocolVersion", json!("TLSV1_1"))],
            fail(CheckId::ReachTls, "old"),
            gateway,
            "spec.servers[0].tls.maxProtocolVersion",
        ),
        (
            vec![Unset("Gateway door", "/spec/servers/1/tls")],
            fail(CheckId::ReachRedirect, "served"),
            gateway,
            "spec.servers[1].tls.httpsRedirect",
        ),
        (
            vec![Set("Gateway door", "/spec/servers/0/hosts", json!(["other/shop.example.com"]))],
            front("404"),
            gateway,
            "spec.servers[0].hosts",
        ),
    ]);
    let named = |secrets| explained(&found_in(cluster(), secrets), &fail(CheckId::ReachTls, "reset"));
    let field = "spec.servers[0].tls.credentialName".to_owned();
    assert_eq!(
        named(vec![secret(None, "istio-system"), secret(Some("kubernetes.io/tls"), "shop")]),
        Some((gateway.to_owned(), field))
    );
    assert_eq!(
        named(vec![secret(Some("kubernetes.io/dockerconfigjson"), "istio-system")]),
        Some(("Secret istio-system/shop-tls".to_owned(), "type".to_owned()))
    );
    let certificate = explained(&found(Vec::new()), &fail(CheckId::ReachCertificate, "expired"));
    assert_eq!(certificate, Some(("Secret istio-system/shop-tls".to_owned(), "data[tls.crt]".to_owned())));
}

#[test]
fn routes_are_named_with_their_field() {
    let (door, second) = ("VirtualService shop/door", "VirtualService shop/service2");
    let removed = fail(CheckId::PropagationW3c, "lost").seam("service1", "service2", None);
    assert_names(vec![
        (vec![Set("VirtualService door", "/spec/hosts", json!(["ship.example.com"]))], front("404"), door, "spec.hosts"),
        (vec![Unset("VirtualService door", "/spec/gateways")], front("404"), door, "spec.gateways"),
        (vec![Set("VirtualService door", "/spec/gateways", json!(["mesh"]))], front("404"), door, "spec.gateways"),
        (vec![Set("VirtualService door", "/spec/gateways", json!(["dor"]))], front("404"), door, "spec.gateways"),
        (vec![Set("VirtualService door", "/spec/exportTo", json!(["."]))], front("404"), door, "spec.exportTo"),
        (
            vec![Set("VirtualService door", "/spec/http/0/match/0/uri/exact", json!("/http/service9"))],
            front("404"),
            door,
            "spec.http[0].match",
        ),
        (
            vec![Set("VirtualService door", "/spec/http/0/rewrite/uri", json!("/servce0"))],
            front("404"),
            door,
            "spec.http[0].rewrite.uri",
        ),
        (
            vec![Set("VirtualService door", "/spec/http/0/route/0/destination/host", json!("service1.shop"))],
            front("503"),
            door,
            "spec.http[0].route[0].destination.host",
        ),
        (
            vec![Set("VirtualService door", "/spec/http/0/route/0/destination/port/number", json!(8080))],
            front("503"),
            door,
            "spec.http[0].route[0].destination.port.number",
        ),
        (
            vec![Set("VirtualService door", "/spec/http/0/route/0/destination/subset", json!("bass"))],
            front("503"),
            door,
            "spec.http[0].route[0].destination.subset",
        ),
        (
            vec![Set("VirtualService door", "/spec/http/0/timeout", json!("5ms"))],
            front("504 timed out"),
            door,
            "spec.http[0].timeout",
        ),
        (
            vec![Set(
                "VirtualService service2",
                "/spec/http/0/fault",
                json!({"abort": {"httpStatus": 503, "percentage": {"value": 10}}}),
            )],
            call(1, "503"),
            second,
            "spec.http[0].fault.abort",
        ),
        (
            vec![Set("VirtualService service2", "/spec/http/0/fault", json!({"delay": {"fixedDelay": "7s"}}))],
            call(1, "timed out"),
            second,
            "spec.http[0].fault.delay",
        ),
        (
            vec![Set("VirtualService service2", "/spec/http/0/directResponse", json!({"status": 418}))],
            call(1, "418"),
            second,
            "spec.http[0].directResponse.status",
        ),
        (
            vec![Set("VirtualService service2", "/spec/http/0/headers", json!({"request": {"remove": ["traceparent"]}}))],
            removed,
            second,
            "spec.http[0].headers.request.remove",
        ),
        (
            vec![Set("VirtualService service2", "/spec/http/0/retries", json!({"attempts": 5}))],
            fail(CheckId::TrafficRetries, "51 % retried"),
            second,
            "spec.http[0].retries.attempts",
        ),
        (
            vec![Set("VirtualService service2", "/spec/http/0/match", json!([{"headers": {"x": {"exact": "y"}}}]))],
            call(1, "404"),
            second,
            "spec.http[0].match",
        ),
    ]);
    let mut older = net(
        "VirtualService",
        "older",
        json!({"hosts": ["service2"], "http": [{"route": [{"destination": {"host": "service3"}}]}]}),
    );
    older["metadata"]["creationTimestamp"] = json!("2025-01-01T00:00:00Z");
    assert_names(vec![(vec![Add(older)], call(1, "404"), "VirtualService shop/older", "spec.hosts[0]")]);
}

#[test]
fn destination_rules_are_named_with_their_field() {
    let second = "DestinationRule shop/service2";
    let set = |pointer, value| vec![Set("DestinationRule service2", pointer, value)];
    let strict = || Add(security("PeerAuthentication", "default", json!({"mtls": {"mode": "STRICT"}})));
    let mut disabled = set("/spec/trafficPolicy", json!({"tls": {"mode": "DISABLE"}}));
    disabled.push(strict());
    let found = found(disabled);
    let mistake = found.iter().find(|mistake| mistake.explains(&call(1, "503"))).unwrap();
    assert!(
        mistake.sentence().starts_with(
            "DestinationRule shop/service2: spec.trafficPolicy.tls.mode is DISABLE, PeerAuthentication shop/default is STRICT"
        ),
        "{}",
        mistake.sentence()
    );
    assert_names(vec![
        (set("/spec/subsets/0/labels/version", json!("v9")), call(1, "no healthy upstream"), second, "spec.subsets[0].labels"),
        (set("/spec/host", json!("servce2.shop.svc.cluster.local")), call(1, "503"), second, "spec.host"),
        (
            set("/spec/subsets/0/trafficPolicy", json!({"tls": {"mode": "SIMPLE"}})),
            call(1, "503"),
            second,
            "spec.subsets[0].trafficPolicy.tls.mode",
        ),
        (
            set("/spec/trafficPolicy", json!({"portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}]})),
            call(1, "503"),
            second,
            "spec.trafficPolicy.portLevelSettings[0].tls.mode",
        ),
        (
            set(
                "/spec/trafficPolicy",
                json!({"connectionPool": {"tcp": {"maxConnections": 1}, "http": {"http1MaxPendingRequests": 1}}}),
            ),
            call(1, "503 overflow"),
            second,
            "spec.trafficPolicy.connectionPool.http.http1MaxPendingRequests",
        ),
        (
            set("/spec/trafficPolicy", json!({"outlierDetection": {"consecutive5xxErrors": 1}})),
            call(1, "no healthy upstream"),
            second,
            "spec.trafficPolicy.outlierDetection",
        ),
        (
            vec![Set("DestinationRule service1", "/spec/exportTo", json!(["."]))],
            front("503"),
            "DestinationRule shop/service1",
            "spec.exportTo",
        ),
        (
            vec![Remove("DestinationRule service2")],
            call(1, "503"),
            "VirtualService shop/service2",
            "spec.http[0].route[0].destination.subset",
        ),
    ]);
}

#[test]
fn services_pods_and_deployments_are_named_with_their_field() {
    let (service, deployment, caller) = ("Service shop/service2", "Deployment shop/service2", "Deployment shop/service1");
    let upstream = "spec.template.spec.containers[0].env[UPSTREAM]";
    let not_ready = || Set("Pod service2-7d4b9c6f5-x2x5z", "/status/conditions/0/status", json!("False"));
    let waits = |reason: &str| {
        vec![
            not_ready(),
            Set("Pod service2-7d4b9c6f5-x2x5z", "/status/containerStatuses", json!([{"state": {"waiting": {"reason": reason}}}])),
        ]
    };
    let up = |value: &str| vec![Set("Deployment service1", "/spec/template/spec/containers/0/env/1/value", json!(value))];
    let gone = "no healthy upstream";
    assert_names(vec![
        (vec![Set("Service service2", "/spec/selector", json!({"app": "servce2"}))], call(1, gone), service, "spec.selector"),
        (
            vec![Set("Service service2", "/spec/ports/0/targetPort", json!(9090))],
            call(1, "503"),
            service,
            "spec.ports[0].targetPort",
        ),
        (
            vec![Set("Service service2", "/spec/ports/0/targetPort", json!("web"))],
            call(1, gone),
            service,
            "spec.ports[0].targetPort",
        ),
        (
            vec![Set("Service service2", "/spec/ports/0/appProtocol", json!("tcp"))],
            fail(CheckId::PropagationCoverage, "bytes").seam("service1", "service2", None),
            service,
            "spec.ports[0].appProtocol",
        ),
        (
            vec![
                Unset("Service service2", "/spec/ports/0/appProtocol"),
                Set("Service service2", "/spec/ports/0/name", json!("tcp-web")),
            ],
            fail(CheckId::PropagationCoverage, "bytes").seam("service1", "service2", None),
            service,
            "spec.ports[0].name",
        ),
        (
            vec![Set("Deployment service2", "/spec/replicas", json!(0)), Remove("Pod service2-7d4b9c6f5-x2x5z")],
            call(1, gone),
            deployment,
            "spec.replicas",
        ),
        (waits("ImagePullBackOff"), call(1, gone), deployment, "spec.template.spec.containers[0].image"),
        (waits("CrashLoopBackOff"), call(1, gone), deployment, "spec.template.spec.containers[0].env"),
        (
            vec![
                not_ready(),
                Set("Deployment service2", "/spec/template/spec/containers/0/readinessProbe/httpGet/path", json!("/ready")),
            ],
            call(1, gone),
            deployment,
            "spec.template.spec.containers[0].readinessProbe.httpGet.path",
        ),
        (
            vec![
                not_ready(),
                Set("Deployment service2", "/spec/template/spec/containers/0/readinessProbe/httpGet/port", json!(9090)),
            ],
            call(1, gone),
            deployment,
            "spec.template.spec.containers[0].readinessProbe.httpGet.port",
        ),
        (
            vec![Set(
                "Deployment service2",
                "/spec/template/spec/containers/0/env/0",
                json!({"name": "ADDR", "value": "127.0.0.1:8080"}),
            )],
            call(1, "503"),
            deployment,
            "spec.template.spec.containers[0].env[ADDR]",
        ),
        (
            up("http://servce2/service2"),
            fail(CheckId::ChainHops, "no such host").seam("service1", "servce2", None).hop("servce2"),
            caller,
            upstream,
        ),
        (up("http://service2:8080/service2"), call(1, "refused"), caller, upstream),
        (
            up("http://10.0.0.2:8080/service2"),
            fail(CheckId::PropagationCoverage, "no proxy").seam("service1", "service2", None),
            caller,
            upstream,
        ),
        (
            up("http://service3/service3"),
            fail(CheckId::ChainOrder, "Expected service2").seam("service1", "service2", None),
            caller,
            upstream,
        ),
        (
            vec![Set(
                "Deployment service2",
                "/spec/template/spec/containers/0/env/0",
                json!({"name": "FAULT", "value": "abort=503@10%"}),
            )],
            call(1, "503"),
            deployment,
            "spec.template.spec.containers[0].env[FAULT]",
        ),
        (
            vec![Set(
                "Deployment service2",
                "/spec/template/spec/containers/0/env/0",
                json!({"name": "DROP_HEADERS", "value": "traceparent"}),
            )],
            fail(CheckId::PropagationW3c, "lost").seam("service2", "service3", None),
            deployment,
            "spec.template.spec.containers[0].env[DROP_HEADERS]",
        ),
    ]);
}

#[test]
fn sidecars_scopes_and_endpoints_are_named_with_their_field() {
    let lost = || fail(CheckId::PropagationSidecar, "no sidecar").hop("service2");
    let entry =
        json!({"hosts": ["service2.shop.svc.cluster.local"], "resolution": "STATIC", "endpoints": [{"address": "10.9.9.9"}]});
    let slice =
        json!({"metadata": {"labels": {"kubernetes.io/service-name": "service2"}}, "endpoints": [{"addresses": ["10.9.9.9"]}]});
    let bare = || Unset("Pod service2-7d4b9c6f5-x2x5z", "/spec/initContainers");
    assert_names(vec![
        (vec![bare()], lost(), "Pod shop/service2-7d4b9c6f5-x2x5z", "metadata.creationTimestamp"),
        (
            vec![bare(), Set("Deployment service2", "/spec/template/metadata/labels/sidecar.istio.io~1inject", json!("false"))],
            lost(),
            "Deployment shop/service2",
            "spec.template.metadata.labels[sidecar.istio.io/inject]",
        ),
        (
            vec![bare(), Unset("Namespace shop", "/metadata/labels/istio-injection")],
            lost(),
            "Namespace shop",
            "metadata.labels[istio-injection]",
        ),
        (
            vec![Set(
                "Deployment service2",
                "/spec/template/metadata/annotations/traffic.sidecar.istio.io~1excludeInboundPorts",
                json!("8080"),
            )],
            fail(CheckId::TrafficIdentity, "plain").hop("service2"),
            "Deployment shop/service2",
            "spec.template.metadata.annotations[traffic.sidecar.istio.io/excludeInboundPorts]",
        ),
        (
            vec![bare(), Add(security("PeerAuthentication", "default", json!({"mtls": {"mode": "STRICT"}})))],
            call(2, "reset"),
            "Pod shop/service2-7d4b9c6f5-x2x5z",
            "metadata.creationTimestamp",
        ),
        (
            vec![Add(net(
                "Sidecar",
                "default",
                json!({"egress": [{"hosts": ["./service2.shop.svc.cluster.local", "istio-system/*"]}]}),
            ))],
            call(2, "502"),
            "Sidecar shop/default",
            "spec.egress[0].hosts",
        ),
        (
            vec![Set("Service service1", "/metadata/annotations/networking.istio.io~1exportTo", json!("."))],
            front("503"),
            "Service shop/service1",
            "metadata.annotations[networking.istio.io/exportTo]",
        ),
        (
            vec![Add(net("ServiceEntry", "left", entry))],
            call(1, "503 connect error"),
            "ServiceEntry shop/left",
            "spec.endpoints[0].address",
        ),
        (
            vec![Add(object("discovery.k8s.io/v1", "EndpointSlice", "shop", "left", slice))],
            call(1, "503 connect error"),
            "EndpointSlice shop/left",
            "endpoints[0].addresses",
        ),
    ]);
}

#[test]
fn policies_are_named_with_their_field() {
    let policy = |spec: Value| vec![Add(security("AuthorizationPolicy", "p", spec))];
    let second = json!({"matchLabels": {"app": "service2"}});
    let from = |principal: &str| json!([{"from": [{"source": {"principals": [principal]}}]}]);
    let own = "cluster.local/ns/shop/sa/service1";
    let (name, denied) = ("AuthorizationPolicy shop/p", || call(1, "403 RBAC: access denied"));
    let allowed = policy(json!({"selector": second, "rules": from(own)}));
    assert_eq!(explained(&found(allowed), &denied()), None);
    let jwt = json!([{"from": [{"source": {"requestPrincipals": ["*"]}}]}]);
    assert_names(vec![
        (policy(json!({"selector": second, "action": "DENY", "rules": from("*")})), denied(), name, "spec.rules[0]"),
        (policy(json!({})), denied(), name, "spec.rules"),
        (
            policy(json!({"selector": second, "rules": from("cluster.local/ns/shop/sa/other")})),
            denied(),
            name,
            "spec.rules[0].from[0].source.principals",
        ),
        (
            policy(json!({"selector": second, "rules": [{"to": [{"operation": {"methods": ["POST"]}}]}]})),
            denied(),
            name,
            "spec.rules[0].to[0].operation.methods",
        ),
        (
            policy(json!({"selector": second, "rules": [{"to": [{"operation": {"paths": ["/service9"]}}]}]})),
            denied(),
            name,
            "spec.rules[0].to[0].operation.paths",
        ),
        (policy(json!({"selector": second, "rules": jwt})), denied(), name, "spec.rules[0].from[0].source.requestPrincipals"),
        (
            vec![Add(object(
                "networking.k8s.io/v1",
                "NetworkPolicy",
                "shop",
                "n",
                json!({"spec": {"podSelector": second, "policyTypes": ["Ingress"]}}),
            ))],
            call(1, "timed out"),
            "NetworkPolicy shop/n",
            "spec.ingress",
        ),
    ]);
}

#[test]
fn telemetry_and_filters_are_named_with_their_field() {
    let telemetry = "Telemetry shop/shop";
    let set = |pointer, value| vec![Set("Telemetry shop", pointer, value)];
    let spans = || fail(CheckId::TracesProxies, "no spans").hop("service2");
    let lua = json!({"configPatches": [{"applyTo": "HTTP_FILTER", "match": {"context": "SIDECAR_INBOUND"}, "patch": {"operation": "INSERT_BEFORE",
        "value": {"name": "lua", "typed_config": {"inline_code": "h:headers():remove(\"traceparent\")"}}}}]});
    assert_names(vec![
        (set("/spec/tracing/0/providers/0/name", json!("jeager")), spans(), telemetry, "spec.tracing[0].providers[0].name"),
        (set("/spec/tracing/0/disableSpanReporting", json!(true)), spans(), telemetry, "spec.tracing[0].disableSpanReporting"),
        (
            set("/spec/tracing/0/randomSamplingPercentage", json!(1)),
            fail(CheckId::TracesSampling, "1 %"),
            telemetry,
            "spec.tracing[0].randomSamplingPercentage",
        ),
        (vec![Remove("Telemetry door")], fail(CheckId::TracesProxies, "no gateway"), telemetry, "metadata.namespace"),
        (
            vec![Add(object("networking.istio.io/v1alpha3", "EnvoyFilter", "shop", "strip", json!({"spec": lua})))],
            fail(CheckId::PropagationW3c, "lost").seam("service1", "service2", None),
            "EnvoyFilter shop/strip",
            "spec.configPatches[0].patch.value",
        ),
    ]);
    let found = found(set("/spec/tracing/0/providers/0/name", json!("jeager")));
    let standing = found.iter().find(|mistake| mistake.stands).expect("reported without a symptom, too");
    assert!(standing.sentence().ends_with("is jeager, and the mesh has jaeger, zipkin"), "{}", standing.sentence());
}
