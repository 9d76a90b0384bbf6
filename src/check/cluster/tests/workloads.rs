//! Services, pods, Deployments and their variables.

use super::*;

#[test]
fn services_and_pods_are_named_with_their_field() {
    let (service, deployment) = ("Service shop/service2", "Deployment shop/service2");
    let not_ready = || Set("Pod service2-7d4b9c6f5-x2x5z", "/status/conditions/0/status", json!("False"));
    let waits = |reason: &str| {
        vec![
            not_ready(),
            Set("Pod service2-7d4b9c6f5-x2x5z", "/status/containerStatuses", json!([{"state": {"waiting": {"reason": reason}}}])),
        ]
    };
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
        (
            vec![Set("Service service2", "/spec/selector", json!({"lane": "base"}))],
            other_hop("service1", "service2", "service3"),
            service,
            "spec.selector",
        ),
        (
            vec![Set("Service service2", "/spec/ports/0/protocol", json!("UDP"))],
            call(1, "refused"),
            service,
            "spec.ports[0].protocol",
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
    ]);
}

#[test]
fn containers_are_named_with_their_field() {
    let (deployment, gone) = ("Deployment shop/service2", "no healthy upstream");
    let not_ready = || Set("Pod service2-7d4b9c6f5-x2x5z", "/status/conditions/0/status", json!("False"));
    let ended = |name: &str, code: u64, list: &'static str, mut changes: Vec<Change>| {
        let last = json!({"terminated": {"exitCode": code, "reason": "Error"}});
        let status =
            json!([{"name": name, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": last}]);
        changes.extend([not_ready(), Set("Pod service2-7d4b9c6f5-x2x5z", list, status)]);
        changes
    };
    assert_names(vec![
        (
            vec![
                not_ready(),
                Set("Pod service2-7d4b9c6f5-x2x5z", "/spec/containers/0/ports/0/containerPort", json!(9090)),
                Set("Deployment service2", "/spec/template/spec/containers/0/ports/0/containerPort", json!(9090)),
            ],
            call(1, gone),
            deployment,
            "spec.template.spec.containers[0].ports[0].containerPort",
        ),
        (
            ended(
                "httpserver",
                137,
                "/status/containerStatuses",
                vec![Set(
                    "Deployment service2",
                    "/spec/template/spec/containers/0/livenessProbe",
                    json!({"httpGet": {"path": "/live", "port": "http"}}),
                )],
            ),
            call(1, gone),
            deployment,
            "spec.template.spec.containers[0].livenessProbe.httpGet.path",
        ),
        (
            ended(
                "httpserver",
                2,
                "/status/containerStatuses",
                vec![Set("Deployment service2", "/spec/template/spec/containers/0/args", json!(["--nope"]))],
            ),
            call(1, gone),
            deployment,
            "spec.template.spec.containers[0].args",
        ),
        (
            ended(
                "setup",
                1,
                "/status/initContainerStatuses",
                vec![Set(
                    "Deployment service2",
                    "/spec/template/spec/initContainers",
                    json!([{"name": "wait"}, {"name": "setup"}]),
                )],
            ),
            call(1, gone),
            deployment,
            "spec.template.spec.initContainers[1].env",
        ),
        (
            vec![
                not_ready(),
                Set(
                    "Pod service2-7d4b9c6f5-x2x5z",
                    "/status/initContainerStatuses",
                    json!([{"name": "istio-proxy", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]),
                ),
            ],
            call(1, gone),
            deployment,
            "spec.template.metadata.annotations[sidecar.istio.io/proxyImage]",
        ),
    ]);
}

#[test]
fn a_deployment_whose_pods_are_refused_says_why_itself() {
    let (deployment, gone) = ("Deployment shop/service2", "no healthy upstream");
    let refused = |message: &str| {
        let condition = json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}]);
        vec![Remove("Pod service2-7d4b9c6f5-x2x5z"), Set("Deployment service2", "/status/conditions", condition)]
    };
    assert_names(vec![
        (
            refused(
                "pods \"service2-x-\" is forbidden: error looking up service account shop/servce2: serviceaccount \"servce2\" not found",
            ),
            call(1, gone),
            deployment,
            "spec.template.spec.serviceAccountName",
        ),
        (
            refused("pods \"service2-x\" is forbidden: exceeded quota: small"),
            call(1, gone),
            deployment,
            "spec.template.spec.containers[0].resources",
        ),
        (
            refused("pods \"service2-x\" is forbidden: violates PodSecurity \"restricted:latest\": privileged"),
            call(1, gone),
            deployment,
            "spec.template.spec.securityContext",
        ),
    ]);
}

#[test]
fn variables_are_named_with_their_field() {
    let (deployment, caller) = ("Deployment shop/service2", "Deployment shop/service1");
    let upstream = "spec.template.spec.containers[0].env[UPSTREAM]";
    let up = |value: &str| vec![Set("Deployment service1", "/spec/template/spec/containers/0/env/1/value", json!(value))];
    assert_names(vec![
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
        (up("http://service2/stock"), call(1, "got 404: There is no such path here"), caller, upstream),
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
                "Deployment service3",
                "/spec/template/spec/containers/0/env/0",
                json!({"name": "FAULT", "value": "abort=503@10%"}),
            )],
            fail(CheckId::TrafficRetries, "12 % of the answers were retried").hop("service1"),
            "Deployment shop/service3",
            "spec.template.spec.containers[0].env[FAULT]",
        ),
        (
            vec![Set(
                "Deployment service2",
                "/spec/template/spec/containers/0/env/0",
                json!({"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://jaeger-collector.istio-system.svc.cluster.local:4317"}),
            )],
            fail(CheckId::TracesServices, "service2 does not report").hop("service2"),
            deployment,
            "spec.template.spec.containers[0].env[OTEL_EXPORTER_OTLP_ENDPOINT]",
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
fn a_collector_without_a_port_is_called_at_that_of_its_scheme() {
    let is_wrong = |port: u16| {
        let url = json!({"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "https://jaeger-collector.istio-system"});
        let found = found(vec![
            Set("Service jaeger-collector", "/spec/ports", json!([{"port": port}])),
            Set("Deployment service2", "/spec/template/spec/containers/0/env/0", url),
        ]);
        found.iter().any(|mistake| mistake.field.contains("OTLP_ENDPOINT"))
    };
    assert_eq!((is_wrong(443), is_wrong(80)), (false, true));
}

#[test]
fn what_repeats_calls_is_not_what_makes_them_fail() {
    assert_names(vec![(
        vec![
            Set("VirtualService door", "/spec/http/0/retries", json!({"attempts": 3, "perTryTimeout": "5s"})),
            Set(
                "Deployment service3",
                "/spec/template/spec/containers/0/env/0",
                json!({"name": "FAULT", "value": "abort=503@10%"}),
            ),
        ],
        fail(CheckId::TrafficRetries, "12 % of the answers were retried").hop("service1"),
        "Deployment shop/service3",
        "spec.template.spec.containers[0].env[FAULT]",
    )]);
}

/// A hop under another name than its Service's is no matter of who calls it.
#[test]
fn a_hop_that_answers_under_another_name_is_named_by_its_own_variable() {
    let reply = |service: &str, n: usize, upstreams: Value| {
        json!({"service": service, "version": "v1", "lane": "base", "hostname": format!("service{n}-7d4b9c6f5-x2x5z"), "message": "",
            "path": format!("/service{n}"), "status": 200, "started_at": "2026-01-02T03:04:05Z", "duration_ms": 1.0, "request_id": "r", "trace_id": null,
            "span_id": null, "parent_span_id": null, "sampled": false, "propagation": "forward", "received": {}, "client": {"ip": "10.0.0.9", "identity": null},
            "attempt": 1, "injected": null, "upstreams": upstreams})
    };
    let call = |url: &str, reply: Value| json!({"url": url, "status": 200, "duration_ms": 1.0, "error": null, "sent": {}, "reply": reply});
    let second = reply("stock", 2, json!([call("http://service3/service3", reply("service3", 3, json!([])))]));
    let tree = reply("service1", 1, json!([call("http://service2/service2", second)]));
    let tree = Tree::parse(tree.to_string().as_bytes()).unwrap();
    let name = Set("Deployment service2", "/spec/template/spec/containers/0/env/0/value", json!("stock"));
    let found = found_after(changed(vec![name]), Vec::new(), Some(&tree));
    let wanted = Some(("Deployment shop/service2".to_owned(), "spec.template.spec.containers[0].env[SERVICE_NAME]".to_owned()));
    assert_eq!(explained(&found, &other_hop("service1", "service2", "stock")), wanted, "{found:#?}");
}
