//! Whether the target can be reached at all: DNS, TCP, TLS, HTTP; port 80 and HSTS.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::hop::reply::{Tree, is_success};

use crate::check::chain::expect::Resolve;
use crate::check::envoy::gateway;
use crate::check::envoy::suggestions::HintContext;
use crate::check::reachability::client::{CheckClient, FrontAnswer, RequestFailure};
use crate::check::reachability::tls;
use crate::net::hosts::{host_of, is_loopback, redacted_url};
use crate::net::hosts::{is_tls, url_port};
use crate::net::trust::Trust;
use crate::net::x509;
use crate::report::{CheckId, Finding, Hint};
use crate::text::quoted;

/// Fewer days of validity left fail the certificate's check, unless it lives so short anyway: what renews it should have done so.
const RENEWED_BY_DAYS: i64 = 7;

/// The first findings: the address of the target, unless it has none.
pub(crate) async fn resolve(url: &reqwest::Url, resolves: &[Resolve]) -> (Vec<Finding>, Option<Vec<SocketAddr>>) {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = url_port(url);
    let given = resolves.iter().find(|resolve| resolve.host == host && resolve.port == port);
    let name = given.map_or(host.as_str(), |resolve| resolve.address.as_str()).to_owned();
    let how = if given.is_some() { " (--resolve)" } else { "" };
    match lookup(&name, port).await {
        Ok(addresses) if !addresses.is_empty() => {
            let mut list: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
            list.dedup();
            let text = if list.len() == 1 && list[0] == host {
                format!("{host} is an address: no DNS needed")
            } else {
                format!("{host} is {}{how}", list.join(", "))
            };
            (vec![Finding::pass(CheckId::ReachDns, text)], Some(addresses))
        }
        failed => {
            let why = match failed {
                Err(error) => error.to_string(),
                Ok(_) => "no address".to_owned(),
            };
            let mut hint = Hint::new(format!("Nobody published {name} in DNS; the tutorials' hosts never are"));
            hint = hint
                .run("kubectl get service istio-ingressgateway -n istio-system  # its address")
                .run(format!("httpserver check {} --resolve {host}:{port}:ADDRESS", quoted(&redacted_url(url.as_str()))));
            let mut findings = vec![Finding::fail(CheckId::ReachDns, format!("{name} does not resolve: {why}"), hint)];
            // A --resolve for another port is a common slip; say it.
            if let Some(other) = resolves.iter().find(|resolve| resolve.host == host && resolve.port != port) {
                findings[0].detail.push(format!("--resolve names port {}, the URL port {port}", other.port));
            }
            (findings, None)
        }
    }
}

async fn lookup(name: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((name, port)).await?.collect())
}

/// Connects to the first address that answers.
pub(crate) async fn connect(addresses: &[SocketAddr], hints: &HintContext, limit: Duration) -> (Finding, Option<SocketAddr>) {
    let started = Instant::now();
    let mut last = String::new();
    let mut refused = false;
    for address in addresses {
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {
                let ms = started.elapsed().as_secs_f64() * 1000.0;
                let kind = if NODE_PORTS.contains(&address.port()) { " (a NodePort, by its number)" } else { "" };
                return (Finding::pass(CheckId::ReachTcp, format!("TCP {address}{kind} accepts, in {ms:.1} ms")), Some(*address));
            }
            Ok(Err(error)) => {
                refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
                last = if refused { format!("{address} refuses the connection") } else { format!("{address}: {error}") };
            }
            Err(_) => last = format!("{address} does not answer"),
        }
    }
    let gateway = &hints.gateway_namespace;
    let hint = match (refused, hints.loopback) {
        (true, true) => {
            Hint::new("Nothing listens on that port of this machine: the server, the port-forward or the demo is not running")
                .run("httpserver demo")
                .run(format!("kubectl port-forward -n {gateway} svc/istio-ingressgateway 8443:443"))
        }
        (true, false) => Hint::new(format!("{}No Gateway opens this port: its `servers` lack it, its `selector` matches no gateway pod, or its tls.mode is PASSTHROUGH and no VirtualService has `tls` routes", behind_node_ports(addresses)))
            .run("kubectl get gateway -A -o yaml | grep -A4 -E 'selector:|number:'")
            .run(format!("kubectl get pods,service -n {gateway} --show-labels"))
            .run(format!("istioctl proxy-config listeners deploy/istio-ingressgateway -n {gateway}")),
        (false, _) => Hint::new("A firewall or security group drops it, or the address is not the gateway's any more")
            .run(format!("kubectl get service istio-ingressgateway -n {gateway}")),
    };
    (Finding::fail(CheckId::ReachTcp, format!("TCP {last}"), hint), None)
}

/// Kubernetes' own range of NodePorts.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// A gateway without a load balancer is reached at a node, by other ports than 443 and 80.
fn behind_node_ports(addresses: &[SocketAddr]) -> &'static str {
    let is_usual = addresses.iter().any(|address| matches!(address.port(), 80 | 443));
    if is_usual {
        "The gateway may be behind NodePorts, which `kubectl get service` shows as 443:3xxxx: write that port into the URL and into --resolve. Or: "
    } else {
        ""
    }
}

/// TLS and the certificate. `true`: go on.
pub(crate) async fn tls(
    trust: &Trust,
    host: &str,
    address: SocketAddr,
    hints: &HintContext,
    limit: Duration,
) -> (Vec<Finding>, bool) {
    let shaken = tls::handshake(trust, host, address, limit).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    let mut findings = Vec::new();
    let sni = if host.parse::<std::net::IpAddr>().is_ok() {
        "no SNI, because the host is an address".to_owned()
    } else {
        format!("SNI {host}")
    };
    let ms = shaken.took.as_secs_f64() * 1000.0;
    match (&shaken.outcome, &shaken.seen) {
        (Ok(version), _) => findings.push(Finding::pass(CheckId::ReachTls, format!("{version}, {sni}, in {ms:.1} ms"))),
        (Err(_), Some(seen)) if seen.error.is_some() => {}
        (Err(error), _) => {
            let (text, hint) = tls::why_no_handshake(error, host, address.port(), &hints.gateway_namespace);
            return (vec![Finding::fail(CheckId::ReachTls, text, hint)], false);
        }
    }
    let Some(seen) = shaken.seen else { return (findings, true) };
    let explained = tls::explain(&seen, host, now, trust.has_own(), &hints.gateway_namespace);
    let finding = match explained {
        Some((text, hint)) if trust.is_insecure() => {
            let mut finding =
                Finding::fail(CheckId::ReachCertificate, format!("Certificate not verified (--insecure). {text}"), hint)
                    .into_informational();
            finding.next.clear();
            finding
        }
        Some((text, hint)) => Finding::fail(CheckId::ReachCertificate, text, hint),
        None => {
            let days = (seen.leaf.not_after - now) / 86_400;
            let text = format!(
                "Certificate for {}, issued by {}, expires on {}, in {days} days",
                seen.leaf.names.join(", "),
                seen.leaf.issuer,
                x509::date(seen.leaf.not_after)
            );
            let lifetime = (seen.leaf.not_after - seen.leaf.not_before) / 86_400;
            if days < RENEWED_BY_DAYS.min(lifetime / 10) {
                let hint = Hint::new("Nobody renews it, or only just before the end")
                    .run(format!("kubectl get certificate,secret -n {}", hints.gateway_namespace));
                Finding::fail(CheckId::ReachCertificate, text, hint)
            } else {
                Finding::pass(CheckId::ReachCertificate, text)
            }
        }
    };
    findings.push(finding.data(serde_json::json!({
        "subject": seen.leaf.subject, "issuer": seen.leaf.issuer, "names": seen.leaf.names,
        "not_after": x509::date(seen.leaf.not_after), "chain": seen.chain,
    })));
    let go_on = shaken.outcome.is_ok();
    (findings, go_on)
}

/// What the first request's answer means. What it brings is the chain's.
pub(crate) async fn first(
    answer: Result<FrontAnswer, RequestFailure>,
    client: &CheckClient,
    trust: &Trust,
    address: SocketAddr,
    hints: &HintContext,
    limit: Duration,
) -> (Finding, Option<(Tree, FrontAnswer)>) {
    match answer {
        Ok(answer) if (300..400).contains(&answer.status) => (redirected(client, answer, hints).await, None),
        Ok(answer) => match answer.tree() {
            Some(tree) => {
                let ms = answer.took.as_secs_f64() * 1000.0;
                let broke = if is_success(answer.status) { "" } else { "; what broke stands under Chain" };
                let what = if answer.is_foreign() {
                    format!("an app that is not httpserver, in whose answer the reply of {} stands", tree.service)
                } else {
                    "the chain's reply".to_owned()
                };
                let text = format!("HTTP {} with {what}, in {ms:.1} ms{broke}", answer.status);
                (Finding::pass(CheckId::ReachHttp, text), Some((tree, answer)))
            }
            None => {
                let (text, hint) = gateway::front(&answer, hints);
                (Finding::fail(CheckId::ReachHttp, text, hint).data(serde_json::json!({"status": answer.status})), None)
            }
        },
        Err(failure) => {
            let tls = if !is_tls(&client.url) { probe_tls(client, trust, address, limit).await } else { None };
            (no_answer(&failure, tls, &client.url, hints), None)
        }
    }
}

/// What a port speaks that does not answer plain HTTP.
enum Tls {
    /// TLS, as any server has it.
    Server,
    /// TLS with the certificate of a workload in a mesh.
    Sidecar(String),
}

/// Tries TLS; `None` when the port does not speak it.
async fn probe_tls(client: &CheckClient, trust: &Trust, address: SocketAddr, limit: Duration) -> Option<Tls> {
    let shaken = tls::handshake(trust, client.url.host_str().unwrap_or_default(), address, limit).await;
    match shaken.seen {
        Some(seen) => Some(seen.leaf.workload().map_or(Tls::Server, |workload| Tls::Sidecar(workload.to_owned()))),
        None => shaken.outcome.is_ok().then_some(Tls::Server),
    }
}

fn no_answer(failure: &RequestFailure, tls: Option<Tls>, url: &reqwest::Url, hints: &HintContext) -> Finding {
    let namespace = &hints.namespace;
    let port = url_port(url);
    let is_grpc = url.scheme().starts_with("grpc");
    if let Some(Tls::Sidecar(workload)) = &tls {
        let text = format!("A sidecar ({workload}) refuses plain text on port {port}: {failure}");
        return Finding::fail(CheckId::ReachHttp, text, tls::past_the_gateway(url.host_str().unwrap_or_default()));
    }
    if tls.is_some() {
        let (scheme, what) = if is_grpc { ("grpc", "gRPC") } else { ("http", "HTTP") };
        let secure = url.as_str().replacen(&format!("{scheme}://"), &format!("{scheme}s://"), 1);
        let hint = Hint::new(format!("The URL says {scheme} and the port speaks TLS: write {scheme}s"))
            .run(format!("httpserver check {}", quoted(&redacted_url(&secure))));
        return Finding::fail(CheckId::ReachHttp, format!("Plain {what} to port {port}, which speaks TLS"), hint);
    }
    if let Some((text, hint)) = gateway::unanswered(hints) {
        return Finding::fail(CheckId::ReachHttp, format!("{text}: {failure}"), hint);
    }
    let (text, hint) = match failure {
        RequestFailure::NotHttp(why) | RequestFailure::Closed(why) if is_grpc => (
            format!("The answer is no HTTP/2, and so no gRPC ({why})"),
            Hint::new("The port speaks HTTP/1.1 alone, or no HTTP at all: gRPC needs HTTP/2 on every part of the way")
                .run(format!("httpserver check {}", quoted(&redacted_url(&url.as_str().replacen("grpc", "http", 1))))),
        ),
        RequestFailure::TimedOut => (
            "No whole answer in time (--timeout)".to_owned(),
            Hint::new("The gateway accepts and nobody answers: a hop hangs and no timeout on the way ends it, or the chain is slower than --timeout")
                .run("kubectl get virtualservice -A -o yaml | grep -i timeout")
                .run(format!("kubectl get pods -n {namespace}")),
        ),
        RequestFailure::Closed(why) => (
            format!("The server closed the connection without an answer ({why})"),
            Hint::new("A sidecar refuses plain text (STRICT mTLS) from a caller outside the mesh, the server crashed, or the port speaks another protocol")
                .run("kubectl get peerauthentication -A")
                .run(format!("kubectl get pods -n {namespace}"))
                .run(format!(
                    "curl -sv --http2-prior-knowledge {}  # an answer: the port speaks HTTP/2 alone",
                    quoted(&redacted_url(url.as_str()))
                )),
        ),
        RequestFailure::Connect(why) => (format!("No connection for the request: {why}"), Hint::new("The port accepted a moment ago: the server restarts, or limits connections").run(format!("kubectl get pods -n {namespace}"))),
        RequestFailure::NotHttp(why) if let Some(means) = tls::alert_in(why) => (
            format!("The server ends the TLS connection: it {means}"),
            Hint::new("The Gateway's tls.mode is MUTUAL; `check` has no client certificate to give").run("kubectl get gateway -A -o yaml | grep -A3 tls:"),
        ),
        RequestFailure::NotHttp(why) => (format!("The answer is no HTTP/1.1 ({why})"), Hint::new("The port speaks another protocol: gRPC, a database, HTTP/2 alone").run(format!("curl -v {}", quoted(&redacted_url(url.as_str()))))),
        RequestFailure::TooLarge => (failure.to_string(), Hint::new("Not a reply of the chain").run(format!("curl -sv -o /dev/null {}", quoted(&redacted_url(url.as_str()))))),
    };
    Finding::fail(CheckId::ReachHttp, text, hint)
}

/// A redirect is no answer of the chain: where does it lead, and does it lead anywhere?
async fn redirected(client: &CheckClient, mut answer: FrontAnswer, hints: &HintContext) -> Finding {
    const MOST: usize = 10;
    let first = answer.status;
    let mut at = client.url.clone();
    let mut seen = vec![at.clone()];
    loop {
        let location = answer.header("location").and_then(|to| at.join(to).ok());
        let Some(next) = location else {
            return Finding::fail(
                CheckId::ReachHttp,
                format!("HTTP {} without a place to go to (Location)", answer.status),
                Hint::new("A broken redirect rule").run(format!("curl -sv {}", quoted(&redacted_url(at.as_str())))),
            );
        };
        let looped = seen.contains(&next);
        if looped || seen.len() > MOST {
            let hint = Hint::new(
                "Something in front ends TLS and speaks plain HTTP to a gateway that redirects plain HTTP to https (tls.httpsRedirect), or two rules send the request to each other",
            )
            .run("kubectl get gateway -A -o yaml | grep -B6 httpsRedirect")
            .run(format!("curl -svL --max-redirs 5 {}", quoted(&redacted_url(client.url.as_str()))));
            let path = seen.iter().chain([&next]).take(4);
            let shown = path.map(|url| format!("-> {}", redacted_url(url.as_str())));
            return Finding::fail(
                CheckId::ReachHttp,
                "Redirect loop: the answer leads back to a URL that was asked before",
                hint,
            )
            .lines(shown.map(|line| gateway::clip(&line)));
        }
        let same_host = next.host_str() == client.url.host_str()
            && next.scheme() == at.scheme()
            && next.port_or_known_default() == at.port_or_known_default();
        let from_plain = at.scheme() == "http";
        let end = |next: &reqwest::Url| {
            let mut hint = Hint::new("This is not the chain's own URL")
                .run(format!("httpserver check {}", quoted(&redacted_url(next.as_str()))));
            if next.host_str() != client.url.host_str() {
                hint = Hint::new("Another host answers for this URL: a login page in front of the chain (give its session by --header), or a redirect that leads elsewhere")
                    .run(format!("httpserver check {}", quoted(&redacted_url(next.as_str()))))
                    .run(format!("curl -sv {}  # look for location and set-cookie", quoted(&redacted_url(client.url.as_str()))));
            } else if next.scheme() == "https" && from_plain {
                hint = Hint::new("The gateway sends plain HTTP to https: check the https URL")
                    .run(format!("httpserver check {}", quoted(&redacted_url(next.as_str()))));
            }
            Finding::fail(CheckId::ReachHttp, format!("HTTP {first}: redirected to {}", redacted_url(next.as_str())), hint)
        };
        if !same_host {
            return end(&next);
        }
        seen.push(next.clone());
        at = next;
        match client.get_at(at.clone()).await {
            Ok(more) if (300..400).contains(&more.status) => answer = more,
            Ok(more) if more.tree().is_some() || is_success(more.status) => return end(&at),
            Ok(more) => {
                let (text, hint) = gateway::front(&more, hints);
                return Finding::fail(
                    CheckId::ReachHttp,
                    format!("HTTP {first}: redirected to {}. {text}", redacted_url(at.as_str())),
                    hint,
                );
            }
            Err(failure) => {
                return Finding::fail(
                    CheckId::ReachHttp,
                    format!("HTTP {first}: redirected to {}, and there {failure}", redacted_url(at.as_str())),
                    Hint::new("The redirect leads to a server that does not answer")
                        .run(format!("curl -sv {}", quoted(&redacted_url(at.as_str())))),
                );
            }
        }
    }
}

/// HSTS in the answer, and what the plain port does.
pub(crate) async fn hardening(client: &CheckClient, answer: &FrontAnswer, plain_port: Option<u16>) -> Vec<Finding> {
    let url = &client.url;
    if client.is_grpc() {
        return vec![Finding::skip(CheckId::ReachRedirect, "Redirect to https and HSTS: skipped, because the URL is gRPC")];
    }
    if url.scheme() != "https" {
        return vec![Finding::skip(CheckId::ReachRedirect, "Redirect to https and HSTS: skipped, because the URL is plain HTTP")];
    }
    let mut findings = vec![plain(client, plain_port).await];
    let host = url.host_str().unwrap_or_default();
    let is_address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok();
    findings.push(match answer.header("strict-transport-security") {
        Some(value) if max_age(value).is_some_and(|age| age > 0) => Finding::pass(CheckId::ReachHsts, format!("HSTS: {}", gateway::clip(value))),
        Some(value) => Finding::fail(CheckId::ReachHsts, format!("HSTS without effect: {}", gateway::clip(value)), Hint::new("max-age is missing or 0, which tells browsers to forget it")),
        None if is_address || is_loopback(host) => {
            Finding::skip(CheckId::ReachHsts, "HSTS: skipped, because browsers ignore it for an address or localhost")
        }
        None => Finding::fail(
            CheckId::ReachHsts,
            "No HSTS: the answer has no strict-transport-security header",
            Hint::new("Browsers go on trying plain HTTP first. Add it in the route: headers.response.set of the VirtualService; --skip reach.hsts if that is meant so")
                .run("kubectl get virtualservice -A -o yaml | grep -i strict-transport-security"),
        ),
    });
    findings
}

fn max_age(value: &str) -> Option<u64> {
    value
        .split(';')
        .find_map(|part| part.trim().to_ascii_lowercase().strip_prefix("max-age=").map(|age| age.trim_matches('"').to_owned()))?
        .parse()
        .ok()
}

async fn plain(client: &CheckClient, plain_port: Option<u16>) -> Finding {
    let port = match (plain_port, url_port(&client.url)) {
        (Some(port), _) => port,
        (None, 443) => 80,
        (None, port) => {
            return Finding::skip(
                CheckId::ReachRedirect,
                format!(
                    "Redirect to https: skipped, because the URL names port {port}; --plain-port says where its plain HTTP is"
                ),
            );
        }
    };
    let mut url = client.url.clone();
    if url.set_scheme("http").is_err() || url.set_port(Some(port)).is_err() {
        return Finding::skip(CheckId::ReachRedirect, "Redirect to https: skipped, because the URL has no plain form");
    }
    match client.get_at(url.clone()).await {
        Ok(answer) if (300..400).contains(&answer.status) => {
            let to = answer.header("location").unwrap_or_default();
            let host = to.starts_with("https://").then(|| host_of(to));
            let own = host_of(url.as_str());
            if let Some(other) = host.as_ref().filter(|host| **host != own) {
                let hint = Hint::new("The redirect names a host of its own instead of the one that was asked for: whoever types the name without https lands there")
                    .run(format!("curl -sv -o /dev/null {}  # look for location", quoted(&redacted_url(url.as_str()))));
                let text = format!("Plain HTTP on port {port} is redirected to another host: {}", gateway::clip(other));
                Finding::fail(CheckId::ReachRedirect, text, hint)
            } else if host.is_some() {
                Finding::pass(
                    CheckId::ReachRedirect,
                    format!("Plain HTTP on port {port} is redirected to https ({})", answer.status),
                )
            } else {
                let hint = Hint::new("A redirect, and not to TLS").run("kubectl get gateway -A -o yaml | grep -B6 httpsRedirect");
                Finding::fail(
                    CheckId::ReachRedirect,
                    format!("Plain HTTP on port {port} is redirected to {}", gateway::clip(&redacted_url(to))),
                    hint,
                )
            }
        }
        Ok(answer) if is_success(answer.status) => {
            let hint = Hint::new("The Gateway's server for port 80 lacks tls.httpsRedirect: true, and a route serves it: what should be secret travels in the clear")
                .run("kubectl get gateway -A -o yaml | grep -B4 -A6 'number: 80'");
            Finding::fail(CheckId::ReachRedirect, format!("Plain HTTP on port {port} is served, not redirected to https"), hint)
        }
        Ok(answer) => Finding::skip(
            CheckId::ReachRedirect,
            format!("Redirect to https: skipped, because port {port} answers {}: it serves nothing there", answer.status),
        ),
        Err(RequestFailure::Connect(_) | RequestFailure::TimedOut) => {
            Finding::skip(CheckId::ReachRedirect, format!("Redirect to https: skipped, because nothing answers on port {port}"))
        }
        Err(failure) => {
            Finding::skip(CheckId::ReachRedirect, format!("Redirect to https: skipped, because on port {port} {failure}"))
        }
    }
}
