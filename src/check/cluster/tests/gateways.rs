//! Gateways, their servers and their Secrets.

use super::*;

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
            vec![Set("Gateway door", "/spec/servers/0/port/number", json!(9443))],
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
    // The port of the pods behind the Service's is as good.
    let by_target = found(vec![Set("Gateway door", "/spec/servers/0/port/number", json!(8443))]);
    assert_eq!(explained(&by_target, &fail(CheckId::ReachTcp, "refused")), None, "{by_target:#?}");
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
