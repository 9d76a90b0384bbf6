//! VirtualServices and DestinationRules.

use super::*;

#[test]
fn routes_of_the_gateway_are_named_with_their_field() {
    let door = "VirtualService shop/door";
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
            vec![Set("VirtualService door", "/spec/http/0/match/0/uri", json!({"regex": "/http"}))],
            front("404"),
            door,
            "spec.http[0].match",
        ),
        (
            vec![Set("VirtualService door", "/spec/http/0/route/0/destination/host", json!("service2.shop.svc.cluster.local"))],
            other_hop("check", "service1", "service2"),
            door,
            "spec.http[0].route[0].destination.host",
        ),
        (vec![Remove("Gateway door")], fail(CheckId::ReachTcp, "refused"), door, "spec.gateways"),
        (vec![Remove("VirtualService door")], front("404"), "Gateway shop/door", "spec.servers[0].hosts"),
        (
            vec![
                Set("VirtualService door", "/metadata/namespace", json!("default")),
                Set("VirtualService door", "/spec/http/0/route/0/destination/host", json!("service1")),
            ],
            front("404"),
            "VirtualService default/door",
            "spec.gateways",
        ),
        (
            vec![Set("Service service1", "/spec/ports/0/port", json!(8080))],
            front("503"),
            "Service shop/service1",
            "spec.ports[0].port",
        ),
    ]);
}

#[test]
fn routes_between_hops_are_named_with_their_field() {
    let second = "VirtualService shop/service2";
    let removed = fail(CheckId::PropagationW3c, "lost").seam("service1", "service2", None);
    assert_names(vec![
        (
            vec![Set("VirtualService service2", "/spec/http/0/rewrite", json!({"uri": "/stock"}))],
            call(1, "got 404: There is no such path here"),
            second,
            "spec.http[0].rewrite.uri",
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
        (
            vec![Set("VirtualService service2", "/spec/http/0/headers", json!({"request": {"set": {"x-lane": "gray"}}}))],
            fail(CheckId::PropagationLane, "changed").seam("service1", "service2", None),
            second,
            "spec.http[0].headers.request.set",
        ),
        (
            vec![Set("Service service2", "/spec/ports/0/port", json!(8080))],
            call(1, "503"),
            "Service shop/service2",
            "spec.ports[0].port",
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
            vec![Set("DestinationRule service2", "/metadata/namespace", json!("default"))],
            call(1, "503"),
            "DestinationRule default/service2",
            "metadata.namespace",
        ),
        (
            vec![Remove("DestinationRule service2")],
            call(1, "503"),
            "VirtualService shop/service2",
            "spec.http[0].route[0].destination.subset",
        ),
    ]);
}

/// Of several rules for a host the one with the nearest name holds, and nothing of the others.
#[test]
fn a_rule_for_a_wider_pattern_is_no_cause_beside_a_nearer_one() {
    let wide = |host: &str| {
        let spec = json!({"host": host, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}});
        Add(net("DestinationRule", "wide", spec))
    };
    assert_eq!(explained(&found(vec![wide("*.shop.svc.cluster.local")]), &call(1, "503")), None);
    let alone =
        found(vec![Remove("VirtualService service2"), Remove("DestinationRule service2"), wide("*.shop.svc.cluster.local")]);
    let named = Some(("DestinationRule shop/wide".to_owned(), "spec.trafficPolicy.tls.mode".to_owned()));
    assert_eq!(explained(&alone, &call(1, "503")), named);
}
