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
                json!({"name": "DROP_HEADERS", "value": "traceparent"}),
            )],
            fail(CheckId::PropagationW3c, "lost").seam("service2", "service3", None),
            deployment,
            "spec.template.spec.containers[0].env[DROP_HEADERS]",
        ),
    ]);
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
