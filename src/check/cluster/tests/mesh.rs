//! Sidecars, policies, Telemetry and EnvoyFilters.

use super::*;

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
fn a_revision_that_nobody_runs_is_named() {
    let lost = fail(CheckId::PropagationSidecar, "no sidecar").hop("service2");
    let bare = || Unset("Pod service2-7d4b9c6f5-x2x5z", "/spec/initContainers");
    assert_names(vec![(
        vec![
            bare(),
            Set("Namespace shop", "/metadata/labels", json!({"istio.io/rev": "canary"})),
            Add(object(
                "v1",
                "Pod",
                "istio-system",
                "istiod-7d4b9c6f5-x2x5z",
                json!({"metadata": {"labels": {"app": "istiod", "istio.io/rev": "default"}}}),
            )),
        ],
        lost,
        "Namespace shop",
        "metadata.labels[istio.io/rev]",
    )]);
}

/// Where no hop has a sidecar, no hop is unlike the others.
#[test]
fn pods_that_are_all_older_than_the_label_of_their_namespace_are_named() {
    let bare = |pod| Unset(pod, "/spec/initContainers");
    let istiod = json!({"metadata": {"labels": {"app": "istiod", "istio.io/rev": "default"}}});
    let all = |labels: Value| {
        vec![
            bare("Pod service1-7d4b9c6f5-x2x5z"),
            bare("Pod service2-7d4b9c6f5-x2x5z"),
            bare("Pod service3-7d4b9c6f5-x2x5z"),
            Set("Namespace shop", "/metadata/labels", labels),
            Add(object("v1", "Pod", "istio-system", "istiod-7d4b9c6f5-x2x5z", istiod.clone())),
        ]
    };
    for (labels, is_named) in [
        (json!({"istio-injection": "enabled"}), true),
        (json!({"istio.io/rev": "default"}), true),
        (json!({"istio-injection": "disabled"}), false),
        (json!({}), false),
    ] {
        let named = found(all(labels.clone()))
            .into_iter()
            .any(|mistake| mistake.is_always_reported && mistake.field == "metadata.creationTimestamp");
        assert_eq!(named, is_named, "{labels}");
    }
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
        (
            policy(json!({"selector": second, "rules": [{"from": [{"source": {"serviceAccounts": ["shop/service9"]}}]}]})),
            denied(),
            name,
            "spec.rules[0].from[0].source.serviceAccounts",
        ),
        (
            policy(
                json!({"selector": second, "action": "DENY", "rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/8"]}}]}]}),
            ),
            denied(),
            name,
            "spec.rules[0]",
        ),
        // The Service's port is not the one at which the pod listens.
        (
            policy(json!({"selector": second, "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]})),
            denied(),
            name,
            "spec.rules[0].to[0].operation.ports",
        ),
        (
            vec![Add(object(
                "security.istio.io/v1",
                "AuthorizationPolicy",
                "istio-system",
                "p",
                json!({"spec": {"rules": [{"to": [{"operation": {"ports": ["443"]}}]}]}}),
            ))],
            front("403 RBAC: access denied"),
            "AuthorizationPolicy istio-system/p",
            "spec.rules[0].to[0].operation.ports",
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
        (
            vec![Add(net("Sidecar", "default", json!({"egress": [{"hosts": ["./*"]}]})))],
            fail(CheckId::PropagationCoverage, "do not trace").seam("service1", "service2", None).hop("service2"),
            "Sidecar shop/default",
            "spec.egress[0].hosts",
        ),
        (
            vec![Set("Service jaeger-collector", "/spec/ports/0/port", json!(4327))],
            spans(),
            "ConfigMap istio-system/istio",
            "data.mesh",
        ),
        (vec![Remove("Service jaeger-collector")], spans(), "ConfigMap istio-system/istio", "data.mesh"),
        (vec![Remove("Telemetry door")], fail(CheckId::TracesProxies, "no gateway"), telemetry, "metadata.namespace"),
        (
            vec![Add(object("networking.istio.io/v1alpha3", "EnvoyFilter", "shop", "strip", json!({"spec": lua})))],
            fail(CheckId::PropagationW3c, "lost").seam("service1", "service2", None),
            "EnvoyFilter shop/strip",
            "spec.configPatches[0].patch.value",
        ),
    ]);
    let refused = fail(CheckId::TracesBackend, "No trace backend at http://10.0.0.1/jaeger: Connection refused");
    let sampled = found(set("/spec/tracing/0/randomSamplingPercentage", json!(0)));
    assert_eq!(explained(&sampled, &refused), None, "whoever collects the spans is no matter of who makes them: {sampled:#?}");
    let found = found(set("/spec/tracing/0/providers/0/name", json!("jeager")));
    let standing = found.iter().find(|mistake| mistake.is_always_reported).expect("reported without a symptom, too");
    assert!(standing.sentence().ends_with("is jeager, and the mesh has jaeger, zipkin"), "{}", standing.sentence());
}

/// service1 calls service2, a foreign app, whose answer has the reply of service3 in it.
fn through_an_app_of_another_make() -> Tree {
    let reply = |n: usize, upstreams: Value| {
        json!({"service": format!("service{n}"), "version": "v1", "lane": "base", "hostname": format!("service{n}-7d4b9c6f5-x2x5z"), "message": "",
            "path": format!("/service{n}"), "status": 200, "started_at": "2026-01-02T03:04:05Z", "duration_ms": 1.0, "request_id": "r", "trace_id": null,
            "span_id": null, "parent_span_id": null, "sampled": false, "propagation": "forward", "received": {}, "client": {"ip": "10.0.0.9", "identity": null},
            "attempt": 1, "injected": null, "upstreams": upstreams})
    };
    let call = json!({"url": "http://service2/orders", "status": 200, "duration_ms": 1.0, "error": null, "sent": {}, "reply": null,
        "embedded": [reply(3, json!([]))]});
    Tree::parse(reply(1, json!([call])).to_string().as_bytes()).unwrap()
}

#[test]
fn the_way_goes_on_behind_an_app_of_another_make() {
    let tree = through_an_app_of_another_make();
    let found = |changes| found_after(changed(changes), Vec::new(), Some(&tree));
    let filter = json!({"workloadSelector": {"labels": {"app": "service3"}}, "configPatches": [{"applyTo": "HTTP_FILTER", "match": {"context": "SIDECAR_INBOUND"},
        "patch": {"operation": "INSERT_BEFORE", "value": {"name": "lua", "typed_config": {"inline_code": "h:headers():remove(\"traceparent\")"}}}}]});
    let lost = fail(CheckId::PropagationTrace, "lost").seam("service1", "service3", None).hop("service2");
    let mistakes =
        found(vec![Add(object("networking.istio.io/v1alpha3", "EnvoyFilter", "shop", "strip", json!({"spec": filter})))]);
    let wanted = Some(("EnvoyFilter shop/strip".to_owned(), "spec.configPatches[0].patch.value".to_owned()));
    assert_eq!(explained(&mistakes, &lost), wanted, "{mistakes:#?}");
    // The route from the app to the hop behind it counts, too.
    let removes = json!({"request": {"remove": ["traceparent"]}});
    let mistakes = found(vec![Set("VirtualService service3", "/spec/http/0/headers", removes)]);
    let wanted = "VirtualService shop/service3".to_owned();
    assert_eq!(explained(&mistakes, &lost).map(|(object, _)| object), Some(wanted), "{mistakes:#?}");
    // A variable of ours says nothing there.
    let variable = json!([{"name": "DROP_HEADERS", "value": "traceparent"}]);
    let mistakes = found(vec![Set("Deployment service2", "/spec/template/spec/containers/0/env", variable)]);
    assert_eq!(explained(&mistakes, &lost), None, "{mistakes:#?}");
}

/// An entry of another namespace for the host of a Service has no effect: proxies obey the Service.
#[test]
fn an_entry_of_another_namespace_is_no_cause() {
    for host in ["service1.shop.svc.cluster.local", "service2.shop.svc.cluster.local"] {
        let spec = json!({"hosts": [host], "resolution": "STATIC", "endpoints": [{"address": "10.9.9.9"}]});
        let entry = object("networking.istio.io/v1", "ServiceEntry", "istio-system", "left", json!({"spec": spec}));
        let found = found(vec![Add(entry)]);
        assert_eq!(explained(&found, &front("503 connect error")), None);
        assert_eq!(explained(&found, &call(1, "503 connect error")), None);
    }
}
