//! Objects of others in the same cluster: older than the chain's, like them, and without effect on its requests.

use super::*;

const OLDER: &str = "2020-01-01T00:00:00Z";

fn other(api: &str, kind: &str, namespace: &str, name: &str, rest: Value) -> Value {
    let mut object = object(api, kind, namespace, name, rest);
    object["metadata"]["creationTimestamp"] = json!(OLDER);
    object
}

fn net_of(namespace: &str, kind: &str, name: &str, spec: Value) -> Value {
    other("networking.istio.io/v1", kind, namespace, name, json!({"spec": spec}))
}

fn secured(namespace: &str, kind: &str, name: &str, spec: Value) -> Value {
    other("security.istio.io/v1", kind, namespace, name, json!({"spec": spec}))
}

/// The objects of the chain, and those of others beside them.
pub(super) fn beside(mut objects: Vec<Value>) -> Vec<Value> {
    objects.extend(gateways());
    objects.extend(routes());
    objects.extend(policies());
    objects.extend(filters());
    objects.extend(workloads());
    objects
}

/// Another gateway for the same host, another host at the same gateway, and a gateway that is not called.
fn gateways() -> Vec<Value> {
    let egress = json!({"istio": "egressgateway"});
    let server = |number: u64, protocol: &str, host: &str, tls: Value| json!({"port": {"number": number, "protocol": protocol, "name": "x"}, "hosts": [host], "tls": tls});
    let mutual = || json!({"mode": "MUTUAL", "credentialName": "other-tls"});
    let status = |kind: &str| json!([{"type": "ResolvedRefs", "status": "False", "reason": kind, "message": "no such thing"}]);
    vec![
        other(
            "v1",
            "Service",
            "istio-system",
            "egress",
            json!({"spec": {"type": "ClusterIP", "selector": egress, "ports": [{"name": "https", "port": 443}, {"name": "http", "port": 80}]}}),
        ),
        other(
            "v1",
            "Pod",
            "istio-system",
            "egress-7d4b9c6f5-x2x5z",
            json!({"metadata": {"labels": egress}, "spec": {"containers": [{"name": "istio-proxy", "args": ["proxy", "router"]}]}}),
        ),
        other(
            "apps/v1",
            "Deployment",
            "istio-system",
            "idle",
            json!({"spec": {"replicas": 0, "template": {"metadata": {"labels": {"istio": "idle"}}, "spec": {"containers": [{"args": ["proxy", "router"]}]}}}}),
        ),
        // The same host, at the other gateway.
        net_of(
            "other",
            "Gateway",
            "door",
            json!({"selector": egress, "servers": [server(443, "HTTPS", "shop.example.com", mutual()), server(80, "HTTP", "shop.example.com", json!({}))]}),
        ),
        // The same gateway, for other hosts, and for all that nobody names more nearly.
        net_of(
            "other",
            "Gateway",
            "near",
            json!({"selector": {"istio": "ingressgateway"}, "servers": [server(443, "HTTPS", "app.other.example", mutual()), server(80, "HTTP", "*.other.example", json!({}))]}),
        ),
        other(
            "gateway.networking.k8s.io/v1",
            "Gateway",
            "other",
            "api",
            json!({"spec": {"gatewayClassName": "istio", "listeners": [{"name": "https", "port": 443}]},
            "status": {"listeners": [{"name": "https", "conditions": status("InvalidCertificateRef")}]}}),
        ),
        other(
            "gateway.networking.k8s.io/v1",
            "HTTPRoute",
            "other",
            "api",
            json!({"spec": {"hostnames": ["shop.example.com"], "parentRefs": [{"name": "api"}, {"kind": "Service", "name": "service2"}],
            "rules": [{"backendRefs": [{"name": "nobody", "port": 80}]}]}, "status": {"parents": [{"conditions": status("BackendNotFound")}]}}),
        ),
    ]
}

fn routes() -> Vec<Value> {
    let to = |host: &str| json!([{"route": [{"destination": {"host": host}}], "timeout": "1ms", "fault": {"abort": {"httpStatus": 503}}}]);
    let second = "service2.shop.svc.cluster.local";
    vec![
        net_of(
            "other",
            "VirtualService",
            "door",
            json!({"gateways": ["door"], "hosts": ["shop.example.com"], "http": to("app")}),
        ),
        net_of(
            "other",
            "VirtualService",
            "near",
            json!({"gateways": ["near"], "hosts": ["app.other.example"], "http": to("app")}),
        ),
        net_of("other", "VirtualService", "service2", json!({"hosts": ["service2"], "http": to("app")})),
        net_of("other", "VirtualService", "hidden", json!({"exportTo": ["."], "hosts": [second], "http": to("app")})),
        net_of("shop", "VirtualService", "egress", json!({"gateways": ["other/door"], "hosts": [second], "http": to(second)})),
        net_of(
            "other",
            "DestinationRule",
            "service2",
            json!({"host": second, "trafficPolicy": {"tls": {"mode": "DISABLE"}, "connectionPool": {"tcp": {"maxConnections": 1}}}, "subsets": [{"name": "base", "labels": {"version": "v9"}}]}),
        ),
        net_of(
            "other",
            "DestinationRule",
            "api",
            json!({"host": "api.example.com", "subsets": [{"name": "base"}, {"name": "bass"}]}),
        ),
        net_of("other", "DestinationRule", "lost", json!({"host": "nobody", "subsets": [{"name": "base"}, {"name": "bass"}]})),
        net_of("other", "ServiceEntry", "api", json!({"hosts": ["api.example.com"], "endpoints": [{"address": "192.0.2.7"}]})),
        net_of(
            "other",
            "ServiceEntry",
            "service2",
            json!({"exportTo": ["."], "hosts": [second], "endpoints": [{"address": "192.0.2.7"}]}),
        ),
    ]
}

/// What holds in another namespace, or for other pods of this one.
fn policies() -> Vec<Value> {
    let app = json!({"matchLabels": {"app": "other"}});
    let tracing = json!([{"providers": [{"name": "nobody"}], "disableSpanReporting": true, "randomSamplingPercentage": 0}]);
    let waypoint = json!([{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "waypoint"}]);
    let telemetry = |namespace: &str, name: &str, spec: Value| {
        other("telemetry.istio.io/v1", "Telemetry", namespace, name, json!({"spec": spec}))
    };
    let deny = json!([{"from": [{"source": {"principals": ["*"]}}]}, {}]);
    vec![
        secured("other", "PeerAuthentication", "default", json!({"mtls": {"mode": "STRICT"}})),
        secured("shop", "PeerAuthentication", "other", json!({"selector": app, "mtls": {"mode": "DISABLE"}})),
        secured("other", "AuthorizationPolicy", "nobody", json!({})),
        secured("shop", "AuthorizationPolicy", "other", json!({"selector": app, "action": "DENY", "rules": deny})),
        secured(
            "istio-system",
            "AuthorizationPolicy",
            "waypoint",
            json!({"targetRefs": waypoint, "action": "DENY", "rules": deny}),
        ),
        secured("other", "RequestAuthentication", "token", json!({"jwtRules": [{"issuer": "x"}]})),
        secured("shop", "RequestAuthentication", "token", json!({"selector": app, "jwtRules": [{"issuer": "x"}]})),
        telemetry("other", "other", json!({"tracing": tracing})),
        telemetry("shop", "other", json!({"selector": app, "tracing": tracing})),
        telemetry("shop", "waypoint", json!({"targetRefs": waypoint, "tracing": tracing})),
        other(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            "other",
            "none",
            json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}),
        ),
        other(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            "shop",
            "other",
            json!({"spec": {"podSelector": app, "policyTypes": ["Ingress"]}}),
        ),
        net_of("other", "Sidecar", "default", json!({"egress": [{"hosts": ["./*"]}]})),
        net_of(
            "shop",
            "Sidecar",
            "other",
            json!({"workloadSelector": {"labels": {"app": "other"}}, "egress": [{"hosts": ["~/*"]}]}),
        ),
    ]
}

fn filters() -> Vec<Value> {
    let patches = |matched: Value| {
        let all = json!({"code": "remove(\"traceparent\")", "name": "envoy.filters.http.local_ratelimit envoy.filters.http.rbac filters.http.fault"});
        json!([{"applyTo": "HTTP_FILTER", "match": matched, "patch": {"operation": "INSERT_BEFORE", "value": all}}])
    };
    let filter = |namespace: &str, name: &str, spec: Value| {
        other("networking.istio.io/v1alpha3", "EnvoyFilter", namespace, name, json!({"spec": spec}))
    };
    let inbound = json!({"context": "SIDECAR_INBOUND"});
    let another = json!({"context": "SIDECAR_INBOUND", "listener": {"portNumber": 9999}});
    let waypoint = json!([{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "waypoint"}]);
    vec![
        filter("other", "strip", json!({"configPatches": patches(inbound.clone())})),
        filter(
            "shop",
            "other",
            json!({"workloadSelector": {"labels": {"app": "other"}}, "configPatches": patches(inbound.clone())}),
        ),
        filter(
            "istio-system",
            "egress",
            json!({"workloadSelector": {"labels": {"istio": "egressgateway"}}, "configPatches": patches(json!({}))}),
        ),
        filter("istio-system", "waypoint", json!({"targetRefs": waypoint, "configPatches": patches(json!({}))})),
        filter("shop", "port", json!({"configPatches": patches(another)})),
        other("extensions.istio.io/v1alpha1", "WasmPlugin", "other", "code", json!({"spec": {"url": "oci://other"}})),
    ]
}

fn workloads() -> Vec<Value> {
    let app = json!({"app": "other"});
    let slice =
        json!({"metadata": {"labels": {"kubernetes.io/service-name": "service2"}}, "endpoints": [{"addresses": ["192.0.2.7"]}]});
    let pod = json!({"metadata": {"labels": {"app": "service2"}}, "spec": {"containers": [{"name": "app"}]}});
    vec![
        other("v1", "Namespace", "", "other", json!({})),
        other(
            "v1",
            "Service",
            "other",
            "service2",
            json!({"spec": {"selector": {"app": "service2"}, "ports": [{"name": "tcp", "port": 9, "targetPort": 9}]}}),
        ),
        other(
            "apps/v1",
            "Deployment",
            "other",
            "service2",
            json!({"spec": {"replicas": 0, "template": {"metadata": {"labels": {"app": "service2"}}}}}),
        ),
        other(
            "apps/v1",
            "Deployment",
            "shop",
            "other",
            json!({"spec": {"replicas": 0, "selector": {"matchLabels": app}, "template": {"metadata": {"labels": app}}}}),
        ),
        other("v1", "Pod", "other", "service2-x", pod),
        other("discovery.k8s.io/v1", "EndpointSlice", "other", "service2", slice),
        net_of("other", "WorkloadEntry", "service2", json!({"address": "192.0.2.7", "labels": {"app": "service2"}})),
    ]
}

/// A port or a range that is excluded matters only where it is called.
#[test]
fn what_is_excluded_from_a_sidecar_matters_where_it_is_called() {
    let bypass = || fail(CheckId::TrafficIdentity, "plain").seam("service1", "service2", None).hop("service1");
    for (annotation, value, is_named) in [
        ("excludeOutboundPorts", "80", true),
        ("excludeOutboundPorts", "8080,4318", false),
        ("excludeOutboundIPRanges", "10.96.0.0/12", true),
        ("excludeOutboundIPRanges", "169.254.169.254/32", false),
        ("includeOutboundIPRanges", "10.0.0.0/8", false),
        ("includeOutboundIPRanges", "192.168.0.0/16,172.16.0.0/12", true),
        ("includeOutboundIPRanges", "", true),
    ] {
        let name = format!("traffic.sidecar.istio.io/{annotation}");
        let mut objects = cluster();
        let deployment =
            objects.iter_mut().find(|object| object["kind"] == "Deployment" && object["metadata"]["name"] == "service1").unwrap();
        deployment["spec"]["template"]["metadata"]["annotations"][&name] = json!(value);
        let field = format!("spec.template.metadata.annotations[{name}]");
        let wanted = is_named.then(|| ("Deployment shop/service1".to_owned(), field));
        let found = found_in(objects, Vec::new());
        assert_eq!(explained(&found, &bypass()), wanted, "{annotation} {value}: {found:#?}");
    }
}

/// Two VirtualServices for one host at a gateway are usual: the rules of both hold.
#[test]
fn a_second_virtual_service_of_the_host_is_in_the_way_where_it_takes_the_request() {
    for (path, is_named) in [("/stock", false), ("/http/", true)] {
        let rule = json!({"match": [{"uri": {"prefix": path}}], "route": [{"destination": {"host": "service1"}}]});
        let rival = net_of(
            "shop",
            "VirtualService",
            "rival",
            json!({"gateways": ["door"], "hosts": ["shop.example.com"], "http": [rule]}),
        );
        let found = found(vec![Add(rival)]);
        let named = explained(&found, &front("502")).map(|(object, field)| (object.ends_with("/rival"), field));
        assert_eq!(named.is_some(), is_named, "{path}: {named:?}");
    }
}

#[test]
fn a_name_in_a_filter_is_a_whole_word() {
    let patch = |code: &str| json!({"configPatches": [{"applyTo": "HTTP_FILTER", "patch": {"value": {"inline_code": code}}}]});
    let lost = || fail(CheckId::PropagationB3, "lost").seam("service1", "service2", None);
    for (code, is_named) in [("h:remove('b3')", true), ("h:remove(\"b3\")", true), ("-- web3 sub3-b3x", false)] {
        let filter = object("networking.istio.io/v1alpha3", "EnvoyFilter", "shop", "strip", json!({"spec": patch(code)}));
        assert_eq!(explained(&found(vec![Add(filter)]), &lost()).is_some(), is_named, "{code}");
    }
}

/// The chain at the Gateway API, where Istio's own Gateway and VirtualServices are gone.
fn by_gateway_api() -> Vec<Value> {
    let listener = json!({"name": "https", "port": 443, "hostname": "*.example.com"});
    let rule = |path: &str, port: u64| json!({"matches": [{"path": {"type": "Exact", "value": path}}], "backendRefs": [{"name": "service1", "port": port}]});
    let between = |port: u64| json!({"parentRefs": [{"group": "", "kind": "Service", "name": "service2", "port": 80}], "rules": [{"backendRefs": [{"name": "service2", "port": port}]}]});
    let api =
        |kind: &str, name: &str, spec: Value| object("gateway.networking.k8s.io/v1", kind, "shop", name, json!({"spec": spec}));
    let mut objects = changed(vec![Remove("Gateway door"), Remove("VirtualService door"), Remove("VirtualService service2")]);
    objects.push(api("Gateway", "door", json!({"gatewayClassName": "istio", "listeners": [listener]})));
    let rules = json!([rule("/http/service0", 80), rule("/hello", 80)]);
    objects.push(api(
        "HTTPRoute",
        "door",
        json!({"hostnames": ["shop.example.com"], "parentRefs": [{"name": "door"}], "rules": rules}),
    ));
    objects.push(api("HTTPRoute", "service2", between(80)));
    objects
}

#[test]
fn a_backend_that_is_not_there_is_named_with_the_rule_that_takes_the_request() {
    let set = |name: &str, pointer: &str, value: Value| {
        let mut objects = by_gateway_api();
        let route =
            objects.iter_mut().find(|object| object["kind"] == "HTTPRoute" && object["metadata"]["name"] == name).unwrap();
        *route.pointer_mut(pointer).unwrap() = value;
        objects
    };
    let first = "/spec/rules/0/backendRefs/0";
    for (objects, finding, object, field) in [
        (
            set("door", &format!("{first}/port"), json!(8080)),
            front("500"),
            "HTTPRoute shop/door",
            "spec.rules[0].backendRefs[0].port",
        ),
        (
            set("door", &format!("{first}/name"), json!("servce1")),
            front("500"),
            "HTTPRoute shop/door",
            "spec.rules[0].backendRefs[0].name",
        ),
        (
            set("service2", &format!("{first}/port"), json!(8080)),
            call(1, "500"),
            "HTTPRoute shop/service2",
            "spec.rules[0].backendRefs[0].port",
        ),
    ] {
        for objects in [objects.clone(), beside(objects)] {
            let found = found_in(objects, Vec::new());
            assert_eq!(explained(&found, &finding), Some((object.to_owned(), field.to_owned())), "{found:#?}");
        }
    }
    // Another rule of the route is not on the way.
    for objects in [by_gateway_api(), set("door", "/spec/rules/1/backendRefs/0/port", json!(8080))] {
        let found = found_in(beside(objects), Vec::new());
        assert_eq!(explained(&found, &front("500")), None, "{found:#?}");
    }
}
