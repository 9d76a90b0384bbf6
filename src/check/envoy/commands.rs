//! Completes the suggested commands, so that they work when pasted: with the options of this run, one kind a command, and with what to look for in
//! their output, also when there is none.

use std::path::Path;

use crate::check::chain::expect::{Expect, Resolve};
use crate::net::hosts::{host_and_port, redacted_url, url_port};
use crate::report::Finding;
use crate::text::quoted;

/// The options of this run that its commands need, too.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunOptions {
    url: String,
    /// The URL's host.
    host: String,
    port: u16,
    /// Where `--resolve` leads the host and port of the URL.
    address: Option<String>,
    curl: String,
    check: String,
    ca: String,
    /// Options of grpcurl.
    grpcurl: String,
}

/// What a run is given on its command line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) url: &'a reqwest::Url,
    pub(crate) resolve: &'a [Resolve],
    pub(crate) cacert: Option<&'a Path>,
    pub(crate) insecure: bool,
    pub(crate) plain_port: Option<u16>,
    pub(crate) expect: Option<&'a Expect>,
}

/// A part of a command, and what its output shows. The first row that fits counts.
const SIGNS: &[(&str, &str)] = &[
    ("x authz check", "look for ACTION and the policy's name; empty: no policy holds for this pod"),
    ("grep -i timeout", "look for a time shorter than the answer takes; empty: no route sets one"),
    ("fault:", "look for abort or delay; empty: no VirtualService injects a fault"),
    ("'destination:'", "look for a host, subset or port that no Service has; empty: no route"),
    ("subsets:", "look for labels that the pods do not have; empty: no DestinationRule has subsets"),
    ("connectionPool:", "look for limits below this load; empty: none is set"),
    ("directResponse:|redirect:", "look for a rule that answers itself; empty: there is none"),
    ("grep exportTo", "look for a namespace that is not the caller's; empty: every namespace may see it"),
    ("grep -A8 ports:", "look for targetPort: it is the port on which the app listens"),
    ("grep ADDR", "look for 127.0.0.1 or another port; empty: the app listens on 8080"),
    ("targetPort", "look for the port on which the app listens"),
    ("appProtocol", "look for http2 or grpc, as the port's name or as its protocol; http is HTTP/1.1"),
    ("grep -i exclude", "look for the port that is called; empty: no port is excluded"),
    ("requestHeadersToRemove", "look for the header; empty: no route removes one"),
    ("'remove:'", "look for the header; empty: no object removes one"),
    ("weight:", "look for the shares; empty: no route has any"),
    ("x-lane", "look for the lane's rule; empty: no route matches the header"),
    ("providers:  #", ""),
    ("extensionProviders", "look for the name that Telemetry gives; empty: the mesh has no tracer"),
    ("randomSamplingPercentage", "look for another rate than the expected one; empty: nobody sets it, which means 1 %"),
    ("grep -i sampling", "look for the rate; empty: the mesh sets none"),
    ("httpsRedirect", "look for the server of port 80; empty: no server redirects"),
    ("strict-transport-security", "look for max-age; empty: no route sets it"),
    ("number: 80", "look for httpsRedirect; empty: no server has port 80"),
    (
        "reason:|message:",
        "look for a reason such as BackendNotFound, InvalidDestination or RefNotPermitted; empty: there is no HTTPRoute",
    ),
    ("selector:|number:", "look for a selector with the gateway's labels and the port; empty: there is no Gateway"),
    ("credentialName", "look for the host and the Secret's name; empty: no Gateway names a Secret"),
    ("grep -A3 tls:", "look for mode: MUTUAL; empty: no server has TLS"),
    ("mode:'", "look for STRICT beside DISABLE or SIMPLE; empty: nothing is set"),
    ("proxy-config endpoints", "look for HEALTHY; empty: no endpoint, the selector or subset finds no pod"),
    ("proxy-config clusters", "look for the port and the subset; empty: this proxy does not know the Service"),
    (
        "proxy-config routes deploy/istio-ingressgateway",
        "look for the host and its VIRTUAL SERVICE; 404 there: no route is bound to it",
    ),
    ("proxy-config routes", "look for the path in MATCH; empty: this proxy has no route to it"),
    ("proxy-config listeners", "look for the port; empty: no Gateway opens one"),
    ("proxy-config secret", "look for ACTIVE; WARMING: the Secret is missing"),
    ("istioctl analyze", "look for Error and Warning; none does not mean that all is right"),
    ("kubectl get endpointslices", "look for addresses; <unset>: the selector finds no pod"),
    ("-o custom-columns", "look for istio-proxy; without it the pod has no sidecar"),
    ("kubectl get pods", "look for READY and the labels; empty: no such pod"),
    ("kubectl get pod ", "look for istio-proxy; empty: no such pod"),
    ("-c istio-proxy", "look for response_flags and upstream_transport_failure_reason; empty: the call did not reach this proxy"),
    ("deploy/istio-ingressgateway --tail", "look for response_flags; empty: the request did not reach the gateway"),
    ("-c httpserver", "look for status and error; empty: the call did not reach this hop"),
    ("--list", "look for UPSTREAM and what differs from its neighbours"),
    ("kubectl get peerauthentication", "look for STRICT; empty: plain text is accepted everywhere"),
    ("kubectl get authorizationpolicy", "look for a policy at that hop; empty: nothing is denied"),
    ("kubectl get requestauthentication", "look for its issuer; empty: nobody asks for a token"),
    ("kubectl get virtualservice", "look for the host and its gateways; empty: there is no route"),
    ("kubectl get gateway", "look for the host; empty: there is no Gateway"),
    ("kubectl get destinationrule", "look for tls; empty: none is set"),
    ("kubectl get envoyfilter", "look for one at that hop; empty: there is none"),
    ("kubectl get serviceentry", "look for the host of a Service; empty: there is none"),
    ("kubectl get sidecar", "look for egress hosts; empty: proxies know every Service"),
    ("kubectl get secret", "look for the name in credentialName"),
    ("kubectl get certificate", "look for READY; an error: cert-manager is not there"),
    ("kubectl get service", "look for the name and the port that are called"),
];

/// Kinds that a cluster may lack: asked for with others, one that is missing fails the whole command.
const CUSTOM: [&str; 11] = [
    "virtualservice",
    "gateway",
    "destinationrule",
    "peerauthentication",
    "authorizationpolicy",
    "requestauthentication",
    "envoyfilter",
    "telemetry",
    "sidecar",
    "serviceentry",
    "certificate",
];

impl RunOptions {
    pub(crate) fn new(given: &Given<'_>) -> Self {
        let host = given.url.host_str().unwrap_or_default().to_owned();
        let port = url_port(given.url);
        let of = |port: u16| given.resolve.iter().find(|resolve| resolve.host == host && resolve.port == port);
        let address = of(port).map(|resolve| resolve.address.clone());
        let (mut curl, mut check) = (String::new(), String::new());
        for resolve in given.resolve {
            let word = format!(" --resolve {}:{}:{}", resolve.host, resolve.port, resolve.address);
            curl.push_str(&word);
            check.push_str(&word);
        }
        let plain = given.plain_port.filter(|plain| of(*plain).is_none());
        if let (Some(plain), Some(address)) = (plain, &address) {
            curl.push_str(&format!(" --resolve {host}:{plain}:{address}"));
        }
        let ca = given.cacert.map(|file| quoted(&file.display().to_string()));
        for words in [&mut curl, &mut check] {
            words.extend(ca.iter().map(|file| format!(" --cacert {file}")));
            words.push_str(if given.insecure { " --insecure" } else { "" });
        }
        check.extend(given.plain_port.iter().map(|port| format!(" --plain-port {port}")));
        let expect = given.expect.map(|expect| quoted(&expect.option()));
        check.extend(expect.iter().map(|expect| format!(" --expect {expect}")));
        Self {
            url: quoted(&redacted_url(given.url.as_str())),
            host,
            port,
            address,
            curl,
            check,
            grpcurl: match (given.insecure, &ca) {
                (true, _) => " -insecure".to_owned(),
                (false, Some(file)) => format!(" -cacert {file}"),
                (false, None) => String::new(),
            },
            ca: ca.map(|file| format!(" -CAfile {file}")).unwrap_or_default(),
        }
    }

    /// Completes the commands of a finding. `is_outside`: no cluster runs the hops, so its commands are left out.
    pub(crate) fn complete(&self, finding: &mut Finding, is_outside: bool) {
        // A workload's identity shows a mesh.
        let is_outside = is_outside && !finding.text.contains("spiffe://");
        finding.next.retain(|command| !is_outside || !command.starts_with("kubectl ") && !command.starts_with("istioctl "));
        let commands = std::mem::take(&mut finding.next);
        // What has just failed need not run again.
        let own = format!("httpserver check {}", self.url);
        for command in commands.iter().filter(|command| **command != own).flat_map(|command| one_kind_each(command)) {
            let command = signed(&self.with_options(command));
            if !finding.next.contains(&command) {
                finding.next.push(command);
            }
        }
    }

    fn with_options(&self, command: String) -> String {
        let to_host = !self.host.is_empty() && command.contains(&format!("//{}", self.host));
        if command.starts_with("curl ")
            && let Some(call) = grpc_call(&command, &self.grpcurl)
        {
            return call;
        }
        // curl does not know this scheme.
        let command = match command.strip_prefix("curl ").filter(|rest| rest.contains("h2c://")) {
            Some(rest) => format!("curl --http2-prior-knowledge {}", rest.replace("h2c://", "http://")),
            None => command,
        };
        if let Some(rest) = command.strip_prefix("curl ").filter(|_| to_host && !self.curl.is_empty()) {
            return format!("curl{} {rest}", self.curl);
        }
        if command.starts_with("openssl s_client ") {
            let to = self.address.as_deref().map_or_else(|| self.host.clone(), bracketed);
            let words = command.split(' ').map(|word| match word.strip_prefix(&format!("{}:", self.host)) {
                Some(_) => format!("{to}:{}{}", self.port, self.ca),
                None => word.to_owned(),
            });
            return words.collect::<Vec<_>>().join(" ");
        }
        if let Some(rest) = command.strip_prefix("httpserver check … ") {
            return format!("httpserver check {}{} {rest}", self.url, self.check);
        }
        let is_own = command.starts_with("httpserver check ") && !command.contains("ADDRESS") && to_host;
        if is_own && !self.check.is_empty() {
            let (command, comment) = command
                .split_once("  #")
                .map_or((command.as_str(), String::new()), |(command, comment)| (command, format!("  #{comment}")));
            return format!("{command}{}{comment}", self.check);
        }
        command
    }
}

/// What calls a hop whose URL is gRPC, in place of curl.
fn grpc_call(command: &str, options: &str) -> Option<String> {
    let url = command.split(' ').map(|word| word.trim_matches('\'')).find(|word| word.starts_with("grpc"))?;
    let (scheme, rest) = url.split_once("://")?;
    let (host, port) = host_and_port(rest.split('/').next()?, scheme);
    let host = bracketed(host);
    let plain = if scheme == "grpc" { " -plaintext" } else { options };
    let comment = command.split_once("  #").map_or_else(String::new, |(_, comment)| format!("  #{comment}"));
    Some(format!("grpcurl{plain} {host}:{port} httpserver.v1.Chain/Call{comment}"))
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// `kubectl get a,b …` as a command for each kind; Istio's Gateway by its full name, which the Gateway API has, too.
fn one_kind_each(command: &str) -> Vec<String> {
    let Some((head, rest)) = command.split_once("kubectl get ") else { return vec![command.to_owned()] };
    let (kinds, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let all: Vec<&str> = kinds.split(',').collect();
    let split = all.len() > 1 && all.iter().any(|kind| CUSTOM.contains(kind));
    let full = |kind: &str| if kind == "gateway" { "gateways.networking.istio.io".to_owned() } else { kind.to_owned() };
    let of = |kinds: String| format!("{head}kubectl get {kinds} {rest}").trim_end().to_owned();
    if split { all.into_iter().map(|kind| of(full(kind))).collect() } else { vec![of(full(kinds))] }
}

/// With what to look for in its output, unless it says so itself.
fn signed(command: &str) -> String {
    if command.contains("  #") {
        return command.to_owned();
    }
    match SIGNS.iter().find(|(part, _)| command.contains(part)) {
        Some((_, sign)) if !sign.is_empty() => format!("{command}  # {sign}"),
        _ => command.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{CheckId, Hint};

    #[test]
    fn commands_run_as_they_stand() {
        let options = RunOptions::new(&Given {
            url: &"http://127.0.0.1:8080/service1".parse().unwrap(),
            resolve: &[],
            cacert: None,
            insecure: false,
            plain_port: None,
            expect: None,
        });
        let hint = Hint::new("")
            .run("curl -v h2c://127.0.0.1:8081/healthz")
            .run("httpserver check http://127.0.0.1:8080/service1")
            .run("kubectl get service -n x -o custom-columns=NAME:.metadata.name,PORTS:.spec.ports[*].targetPort");
        let mut finding = Finding::fail(CheckId::ReachHttp, "", hint);
        let kept = RunOptions::default();
        let mut outside = finding.clone();
        kept.complete(&mut outside, true);
        assert!(!outside.next.is_empty() && outside.next.iter().all(|command| !command.contains("kubectl")), "{outside:?}");
        options.complete(&mut finding, false);
        let ports = "kubectl get service -n x -o custom-columns=NAME:.metadata.name,PORTS:.spec.ports[*].targetPort  # look for the port on which the app listens";
        assert_eq!(finding.next, ["curl --http2-prior-knowledge -v http://127.0.0.1:8081/healthz", ports]);
    }

    #[test]
    fn commands_carry_the_options_of_the_run() {
        let url = "https://shop.example.com:30443/x".parse().unwrap();
        let resolve = ["shop.example.com:30443:192.0.2.1".parse().unwrap()];
        let expect = "a,b(c,d)".parse().unwrap();
        let given = Given {
            url: &url,
            resolve: &resolve,
            cacert: Some(Path::new("my ca.crt")),
            insecure: false,
            plain_port: Some(30080),
            expect: Some(&expect),
        };
        let hint = Hint::new("")
            .run("curl -sv https://shop.example.com:30443/x")
            .run("curl -s http://127.0.0.1:9411/api")
            .run("openssl s_client -connect shop.example.com:30443 -servername shop.example.com </dev/null")
            .run("httpserver check https://shop.example.com:30443/y")
            .run("kubectl get destinationrule,peerauthentication -A")
            .run("kubectl get gateway -A -o yaml | grep -A3 tls:")
            .run("kubectl get pods,endpointslices -n shop");
        let mut finding = Finding::fail(CheckId::ReachHttp, "", hint);
        RunOptions::new(&given).complete(&mut finding, false);
        let options = "--resolve shop.example.com:30443:192.0.2.1";
        let wanted = [
            format!("curl {options} --resolve shop.example.com:30080:192.0.2.1 --cacert 'my ca.crt' -sv https://shop.example.com:30443/x"),
            "curl -s http://127.0.0.1:9411/api".to_owned(),
            "openssl s_client -connect 192.0.2.1:30443 -CAfile 'my ca.crt' -servername shop.example.com </dev/null".to_owned(),
            format!("httpserver check https://shop.example.com:30443/y {options} --cacert 'my ca.crt' --plain-port 30080 --expect 'a,b(c,d)'"),
            "kubectl get destinationrule -A  # look for tls; empty: none is set".to_owned(),
            "kubectl get peerauthentication -A  # look for STRICT; empty: plain text is accepted everywhere".to_owned(),
            "kubectl get gateways.networking.istio.io -A -o yaml | grep -A3 tls:  # look for mode: MUTUAL; empty: no server has TLS".to_owned(),
            "kubectl get pods,endpointslices -n shop  # look for READY and the labels; empty: no such pod".to_owned(),
        ];
        assert_eq!(finding.next, wanted);
    }
}
