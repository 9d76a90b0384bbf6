//! All manifests together: what they name exists, what must match matches, and each rule fails when it is broken on purpose.
//! The schemas are checked elsewhere (scripts/check-manifests.sh); this is about what no schema knows.

#[path = "manifests/rules.rs"]
mod rules;
#[path = "manifests/set.rs"]
mod set;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use rules::RULES;
use serde_json::{Value, json};
use set::{Set, files, read, strings, text, top};

/// The hops and everything that may stand beside them.
const PODS: &[&str] = &[
    "k8s/base/namespace.yaml",
    "k8s/base/service1.yaml",
    "k8s/base/service2.yaml",
    "k8s/base/service3.yaml",
    "k8s/components/version-v2/service1.yaml",
    "k8s/components/lane-gray/deployments.yaml",
    "k8s/components/lane-blue/deployments.yaml",
    "k8s/components/lane-green/deployments.yaml",
    "k8s/components/network-policy/network-policy.yaml",
    "k8s/components/autoscaling/hpa.yaml",
    "k8s/components/monitoring/pod-monitor.yaml",
    "k8s/components/monitoring/prometheus-rule.yaml",
    "k8s/components/traffic/traffic.yaml",
    "k8s/jaeger/jaeger.yaml",
];

/// What `kubectl apply -k istio` and `kubectl apply -k istio/security` add, and what they count on.
const MESH: &[&str] = &[
    "istio/install.yaml",
    "istio/gateway.yaml",
    "istio/destination-rules.yaml",
    "istio/routes.yaml",
    "istio/telemetry.yaml",
    "istio/security/mutual-tls.yaml",
    "istio/security/authorization.yaml",
    "istio/certificates/acme.yaml",
    "istio/certificates/self-signed.yaml",
];

const GATEWAY_API: &[&str] = &[
    "istio/install.yaml",
    "istio/telemetry.yaml",
    "istio/gateway-api/gateway.yaml",
    "istio/gateway-api/routes.yaml",
    "istio/gateway-api/services.yaml",
    "istio/gateway-api/mesh.yaml",
    "istio/gateway-api/authorization.yaml",
    "istio/security/mutual-tls.yaml",
    "istio/security/authorization.yaml",
];

const GRPC_ROUTE: [&str; 2] = ["istio/gateway-api/grpc.yaml", "istio/security/grpc.yaml"];

fn set(name: &str, parts: &[&[&str]]) -> Set {
    Set::of(name, &parts.concat())
}

/// Every combination of files that a user is told to apply together.
fn apply_sets() -> Vec<Set> {
    let mut sets = vec![set("base", &[PODS, MESH])];
    let scenarios = files("istio/scenarios");
    assert!(scenarios.len() >= 13, "the scenarios were not found: {scenarios:?}");
    for file in scenarios.iter().map(String::as_str).chain([
        "istio/security/lane-needs-jwt.yaml",
        "istio/telemetry-zipkin.yaml",
        "istio/telemetry-zipkin-b3.yaml",
        "istio/telemetry-mesh.yaml",
        "istio/lanes/root.yaml",
        "istio/lanes/strict-green.yaml",
    ]) {
        let more: &[&str] = if file == "istio/scenarios/grpc.yaml" { &["istio/security/grpc.yaml"] } else { &[] };
        sets.push(set(file, &[PODS, MESH, &[file], more]));
    }
    let lanes = ["istio/lanes/root.yaml", "istio/lanes/gray.yaml", "istio/lanes/blue.yaml", "istio/lanes/percentage.yaml"];
    sets.push(set("gray alone", &[PODS, MESH, &lanes[..2]]));
    sets.push(set("every lane", &[PODS, MESH, &lanes]));
    sets.push(set("check as a Job", &[PODS, MESH, &["k8s/components/check/job.yaml"]]));
    let store = ["istio/telemetry-zipkin.yaml", "k8s/components/store/store.yaml"];
    sets.push(set("the store instead of Jaeger", &[PODS, MESH, &store]));
    sets.push(set("gateway API", &[PODS, GATEWAY_API]));
    sets.push(set("gateway API with gRPC", &[PODS, GATEWAY_API, &GRPC_ROUTE]));
    let lanes = ["istio/gateway-api/lanes/gray.yaml", "istio/gateway-api/lanes/blue.yaml"];
    sets.push(set("gateway API with lanes", &[PODS, GATEWAY_API, &lanes]));
    sets.push(set("ambient", &[PODS, GATEWAY_API, &["k8s/overlays/ambient/waypoint.yaml"]]));
    sets
}

#[test]
fn every_rule_holds_for_everything_that_is_applied_together() {
    let mut findings = Vec::new();
    for set in apply_sets() {
        for (rule, look) in RULES {
            findings.extend(look(&set).into_iter().map(|finding| format!("{} | {rule} | {finding}", set.name)));
        }
    }
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn every_manifest_is_in_some_set() {
    let used: Vec<String> = apply_sets().iter().flat_map(|set| &set.docs).map(|doc| doc.file.clone()).collect();
    let all = files("k8s").into_iter().chain(files("istio"));
    // Kept by the set only as long as nothing replaces them: a file whose every object is replaced is still listed above.
    let unused: Vec<String> = all.filter(|file| !used.contains(file)).collect();
    assert!(unused.is_empty(), "no rule looks at {unused:?}");
}

/// Breaks one thing in a set; the named rule, and that rule's finding alone, must speak of it.
fn broken(rule: &str, expect: &str, parts: &[&[&str]], spoil: impl FnOnce(&mut Set)) {
    let mut spoiled = set("spoiled", parts);
    let (_, look) = RULES.iter().find(|(name, _)| *name == rule).unwrap_or_else(|| panic!("no rule {rule:?}"));
    assert_eq!(look(&spoiled), Vec::<String>::new(), "{rule}: broken before it is broken");
    spoil(&mut spoiled);
    let findings = look(&spoiled);
    assert!(findings.iter().any(|finding| finding.contains(expect)), "{rule}: {expect:?} is not among {findings:?}");
}

/// Sets the value at a JSON pointer that must be there.
fn put(value: &mut Value, pointer: &str, new: Value) {
    *value.pointer_mut(pointer).unwrap_or_else(|| panic!("nothing at {pointer}")) = new;
}

/// The value of a variable in the container of a Deployment.
fn put_env(set: &mut Set, deployment: &str, variable: &str, new: &str) {
    let env = set.find_mut("Deployment", deployment).pointer_mut("/spec/template/spec/containers/0/env").expect("variables");
    let entry = env.as_array_mut().expect("a list").iter_mut().find(|e| text(e, "/name") == variable).expect("the variable");
    *entry = json!({"name": variable, "value": new});
}

const LABELS: &str = "/spec/template/metadata/labels";

#[test]
fn each_rule_fails_when_it_is_broken_on_purpose() {
    let base: &[&[&str]] = &[PODS, MESH];
    let api: &[&[&str]] = &[PODS, GATEWAY_API];
    let lanes: &[&[&str]] = &[PODS, MESH, &["istio/lanes/root.yaml", "istio/lanes/gray.yaml"]];

    let rule = "hosts of routes are Services";
    broken(rule, "service9", base, |s| {
        put(
            s.find_mut("VirtualService", "service2"),
            "/spec/http/0/route/0/destination/host",
            json!("service9.httpserver.svc.cluster.local"),
        );
    });
    broken(rule, "no port 81", base, |s| {
        put(s.find_mut("VirtualService", "httpserver"), "/spec/http/0/route/0/destination/port/number", json!(81));
    });
    broken(rule, "service1-bass", api, |s| {
        put(s.find_mut("HTTPRoute", "httpserver"), "/spec/rules/0/backendRefs/0/name", json!("service1-bass"));
    });

    let rule = "subsets exist and select pods";
    broken(rule, "no subset bass", base, |s| {
        put(s.find_mut("VirtualService", "httpserver"), "/spec/http/0/route/0/destination/subset", json!("bass"));
    });
    broken(rule, "selects no pod", base, |s| {
        put(s.find_mut("DestinationRule", "service3"), "/spec/subsets/0/labels/version", json!("v9"));
    });
    broken(rule, "does not name lane", base, |s| {
        put(s.find_mut("DestinationRule", "service3"), "/spec/subsets/0/labels", json!({"version": "v1"}));
    });
    broken(rule, "twice", lanes, |s| {
        put(s.find_mut("DestinationRule", "service1-lane-gray"), "/spec/subsets/0/name", json!("base"));
    });

    let rule = "gateways exist and cover the hosts of their routes";
    broken(rule, "no Gateway httpserver/door", base, |s| {
        put(s.find_mut("VirtualService", "httpserver"), "/spec/gateways/0", json!("door"));
    });
    broken(rule, "does not serve httpserver.cncamp.io", base, |s| {
        put(s.find_mut("VirtualService", "httpserver"), "/spec/hosts/0", json!("httpserver.cncamp.io"));
    });
    broken(rule, "does not serve service1.example.org", api, |s| {
        put(s.find_mut("HTTPRoute", "httpserver"), "/spec/hostnames/0", json!("service1.example.org"));
    });
    let with_grpc: &[&[&str]] = &[PODS, GATEWAY_API, &GRPC_ROUTE];
    broken(rule, "does not serve grpc.example.org", with_grpc, |s| {
        put(s.find_mut("GRPCRoute", "grpc"), "/spec/hostnames/0", json!("grpc.example.org"));
    });
    broken("hosts of routes are Services", "service1-rpc", with_grpc, |s| {
        put(s.find_mut("GRPCRoute", "grpc"), "/spec/rules/0/backendRefs/0/name", json!("service1-rpc"));
    });
    for host in ["service1.cncamp.io", "*.cncamp.io"] {
        broken("a host has HTTPRoutes or GRPCRoutes", "is a host of HTTPRoute/httpserver", with_grpc, |s| {
            put(s.find_mut("GRPCRoute", "grpc"), "/spec/hostnames/0", json!(host));
        });
    }
    broken("what is published is allowed", "may not call /httpserver.v1.Chain/Other", with_grpc, |s| {
        put(s.find_mut("GRPCRoute", "grpc"), "/spec/rules/0/matches/0/method/method", json!("Other"));
    });
    broken("delegates have a root", "no root asks", lanes, |s| {
        put(s.find_mut("VirtualService", "service3-lane-gray"), "/metadata/name", json!("service3-lane-grey"));
    });

    let rule = "secrets have the names that the certificate script and cert-manager give";
    broken(rule, "makes no secret cncamp-secret", base, |s| {
        put(s.find_mut("Gateway", "httpserver"), "/spec/servers/0/tls/credentialName", json!("cncamp-secret"));
    });
    broken(rule, "no Gateway uses the secret other", base, |s| {
        put(s.find_mut("Certificate", "httpserver"), "/spec/secretName", json!("other"));
    });
    broken(rule, "does not name service1.cncamp.io", base, |s| {
        put(s.find_mut("Certificate", "httpserver"), "/spec/dnsNames", json!(["httpsserver.cncamp.io"]));
    });
    broken(rule, "beside the gateway's pods", base, |s| {
        put(s.find_mut("Certificate", "httpserver"), "/metadata/namespace", json!("httpserver"));
    });

    let rule = "Services select pods and name their ports";
    broken(rule, "Service/service2 in k8s/base/service2.yaml: selects no pod", base, |s| {
        put(s.find_mut("Service", "service2"), "/spec/selector/app", json!("service-2"));
    });
    broken(rule, "has no port", base, |s| put(s.find_mut("Service", "service2"), "/spec/ports/0/targetPort", json!("web")));
    broken(rule, "without name", base, |s| put(s.find_mut("Service", "service2"), "/spec/ports/0/appProtocol", json!("")));

    let rule = "Deployments select their own pods and nobody else's";
    broken(rule, "also selects the pods of service1-v2", base, |s| {
        put(s.find_mut("Deployment", "service1"), "/spec/selector/matchLabels", json!({"app": "service1", "lane": "base"}));
    });
    broken(rule, "does not select its own", base, |s| {
        put(s.find_mut("Deployment", "service1"), "/spec/selector/matchLabels/version", json!("v9"));
    });

    let rule = "policies, budgets and scalers find what they are for";
    for (kind, name, pointer) in [
        ("PodDisruptionBudget", "service1", "/spec/selector/matchLabels"),
        ("AuthorizationPolicy", "service2", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "service3", "/spec/podSelector/matchLabels"),
        ("PodMonitor", "httpserver", "/spec/selector/matchLabels"),
    ] {
        broken(rule, "selects no pod", base, |s| put(s.find_mut(kind, name), pointer, json!({"app": "nobody"})));
    }
    broken(rule, "no Deployment service7", base, |s| {
        put(s.find_mut("HorizontalPodAutoscaler", "service1"), "/spec/scaleTargetRef/name", json!("service7"));
    });

    let rule = "probes ask the named port";
    let probe = "/spec/template/spec/containers/0/readinessProbe/httpGet";
    broken(rule, "readinessProbe does not ask /readyz", base, |s| {
        put(s.find_mut("Deployment", "service1"), &format!("{probe}/path"), json!("/healthz"));
    });
    broken(rule, "port that is not there", base, |s| {
        put(s.find_mut("Deployment", "service1"), &format!("{probe}/port"), json!("web"));
    });

    let rule = "upstreams are Services, and name their path";
    broken(rule, "no such Service and port", base, |s| put_env(s, "service1", "UPSTREAM", "http://service-2/service2"));
    broken(rule, "another path", base, |s| put_env(s, "service1", "UPSTREAM", "http://service2/service3"));
    broken(rule, "no such Service and port", base, |s| {
        put_env(s, "service1", "OTEL_EXPORTER_OTLP_ENDPOINT", "http://jaeger-collector.istio-system:4319");
    });

    let rule = "timeouts fall along the chain";
    broken(rule, "waits no longer than service2", base, |s| put_env(s, "service1", "UPSTREAM_TIMEOUT", "3s"));
    broken(rule, "gives up before service1 does", base, |s| put_env(s, "service1", "UPSTREAM_TIMEOUT", "5s"));
    broken(rule, "gives up before service1 does", api, |s| {
        put(s.find_mut("HTTPRoute", "httpserver"), "/spec/rules/0/timeouts/backendRequest", json!("4s"));
    });
    broken(rule, "longer than the whole", base, |s| {
        put(s.find_mut("VirtualService", "httpserver"), "/spec/http/0/retries/perTryTimeout", json!("16s"));
    });

    let rule = "grace periods hold the drain";
    broken(rule, "do not hold", base, |s| {
        put(s.find_mut("Deployment", "service1"), "/spec/template/spec/terminationGracePeriodSeconds", json!(20));
    });
    broken(rule, "preStop", base, |s| {
        let container =
            s.find_mut("Deployment", "service1").pointer_mut("/spec/template/spec/containers/0").expect("a container");
        container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 5}}});
    });

    broken("what is published is allowed", "may not call /hello ", base, |s| {
        put(s.find_mut("AuthorizationPolicy", "service1"), "/spec/rules/0/to/0/operation/paths/1", json!("/hola"));
    });
    broken("what is published is allowed", "may not call /metrics", base, |s| {
        put(s.find_mut("VirtualService", "httpserver"), "/spec/http/0/rewrite/uri", json!("/metrics"));
    });
    broken("what is published is allowed", "may not call", api, |s| {
        put(s.find_mut("AuthorizationPolicy", "service1"), "/spec/rules/0/from/0/source/principals", json!(["somebody"]));
    });
    broken("what a hop calls is allowed", "may not call http://service3/service3", base, |s| {
        let principals = "/spec/rules/0/from/0/source/principals";
        put(s.find_mut("AuthorizationPolicy", "service3"), principals, json!(["cluster.local/ns/httpserver/sa/service1"]));
    });
    broken("what a hop calls is allowed", "no ServiceAccount", base, |s| {
        put(s.find_mut("Deployment", "service1"), "/spec/template/spec/serviceAccountName", json!("nobody"));
    });
    broken("one mesh VirtualService per host", "is also in", base, |s| {
        put(s.find_mut("VirtualService", "service3"), "/spec/hosts/0", json!("service2.httpserver.svc.cluster.local"));
    });

    let rule = "pods have the labels that Istio and Kiali need";
    broken(rule, "is not app", base, |s| {
        s.find_mut("Deployment", "service1").pointer_mut(LABELS).expect("labels")["app.kubernetes.io/name"] = json!("httpserver");
    });
    broken(rule, "hides the label version", base, |s| {
        s.find_mut("Deployment", "service1").pointer_mut(LABELS).expect("labels")["app.kubernetes.io/version"] = json!("0.1.0");
    });
    broken(rule, "no label lane", base, |s| {
        let labels = s.find_mut("Deployment", "service1").pointer_mut(LABELS).expect("labels");
        labels.as_object_mut().expect("a map").remove("lane");
    });
    broken("version and lane come from the labels", "LANE", base, |s| put_env(s, "service1", "LANE", "base"));
    broken("no user is 1337", "proxy's user", base, |s| {
        put(s.find_mut("Deployment", "service1"), "/spec/template/spec/securityContext/runAsUser", json!(1337));
    });
    broken("tracing providers are installed", "no provider skywalking", base, |s| {
        put(s.find_mut("Telemetry", "httpserver"), "/spec/tracing/0/providers/0/name", json!("skywalking"));
    });
    broken("tracing providers are installed", "does not trace every request", base, |s| {
        put(s.find_mut("Telemetry", "httpserver"), "/spec/tracing/0/randomSamplingPercentage", json!(1));
    });
    broken("tracing providers are installed", "no such Service and port", base, |s| {
        put(s.find_mut("Service", "jaeger-collector"), "/spec/ports/1/port", json!(4319));
    });
    // The store takes what proxies report by Zipkin and by gRPC, if its Service has the port.
    let store: &[&[&str]] = &[PODS, MESH, &["istio/telemetry-zipkin.yaml", "k8s/components/store/store.yaml"]];
    broken("tracing providers are installed", "provider jaeger: no such Service and port", store, |s| {
        put(s.find_mut("Telemetry", "httpserver"), "/spec/tracing/0/providers/0/name", json!("jaeger"));
        put(s.find_mut("Service", "jaeger-collector"), "/spec/ports/2/port", json!(4319));
    });
    broken("Services select pods and name their ports", "has no port", store, |s| {
        put(s.find_mut("Service", "jaeger-collector"), "/spec/ports/1/targetPort", json!("otlp-thrift"));
    });
    broken("images carry the version of the release", "its image", base, |s| {
        put(s.find_mut("Deployment", "service1"), "/spec/template/spec/containers/0/image", json!("httpserver:latest"));
    });
    broken("retries happen at the gateway only", "multiplies", base, |s| {
        put(s.find_mut("VirtualService", "service2"), "/spec/http/0/retries/attempts", json!(2));
    });
    broken("retries happen at the gateway only", "multiplies", lanes, |s| {
        put(s.find_mut("VirtualService", "service3-lane-gray"), "/spec/http/0/retries/attempts", json!(2));
    });
}

/// The pod of a hop without what makes a version or a lane of it.
fn pod_without_version(deployment: &Value) -> Value {
    let mut pod = deployment.pointer("/spec/template").expect("a template").clone();
    for label in ["version", "lane"] {
        pod.pointer_mut("/metadata/labels").and_then(Value::as_object_mut).expect("labels").remove(label);
    }
    put(&mut pod, "/spec/topologySpreadConstraints/0/labelSelector/matchLabels/lane", Value::Null);
    pod
}

#[test]
fn a_lane_or_a_second_version_is_the_same_pod_as_the_baseline() {
    let set = set("pods", &[PODS]);
    let mut compared = 0;
    for deployment in set.hops() {
        let app = text(&deployment.value, "/spec/template/metadata/labels/app");
        let base = set.find("Deployment", "httpserver", app).expect("the baseline");
        assert_eq!(pod_without_version(&deployment.value), pod_without_version(&base.value), "{}", deployment.at());
        compared += 1;
    }
    assert!(compared >= 10, "only {compared} Deployments were compared");
}

#[test]
fn metrics_and_health_are_published_by_one_scenario_alone() {
    for set in apply_sets() {
        let open = |path: &str| ["/metrics", "/healthz", "/readyz", "/headers"].contains(&path);
        let found: Vec<String> =
            rules::published(&set).into_iter().filter(|(_, _, path)| open(path)).map(|(_, _, path)| path).collect();
        let allowed: &[&str] = if set.name == "istio/scenarios/metrics-for-one-address.yaml" { &["/metrics"] } else { &[] };
        assert_eq!(found, allowed, "{}", set.name);
    }
}

#[test]
fn every_scenario_says_what_will_be_seen_and_how_to_apply_look_and_undo() {
    let lessons = files("istio/scenarios").into_iter().chain(files("istio/lanes"));
    for file in lessons.chain(["istio/security/lane-needs-jwt.yaml".to_owned()]) {
        let content = std::fs::read_to_string(top().join(&file)).expect("the file");
        let head: String = content.lines().take_while(|line| line.starts_with('#')).collect::<Vec<_>>().join("\n");
        let lower = head.to_lowercase();
        for word in ["what you will see", "#   apply  ", "#   look   ", "#   undo   "] {
            assert!(lower.contains(word), "{file} does not say: {word}");
        }
    }
}

#[test]
fn no_private_key_is_in_the_repository() {
    let list = Command::new("git").args(["ls-files", "-z"]).current_dir(top()).output().expect("git");
    assert!(list.status.success(), "git ls-files: {}", String::from_utf8_lossy(&list.stderr));
    let names: Vec<String> =
        String::from_utf8_lossy(&list.stdout).split('\0').filter(|n| !n.is_empty()).map(str::to_owned).collect();
    assert!(names.len() > 50, "only {} files", names.len());
    // Written in two parts, so that this file does not find itself.
    let marker = ["PRIVATE KEY", "-----"].concat();
    let has_key =
        |name: &&String| std::fs::read(top().join(name)).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(&marker));
    let found: Vec<&String> = names.iter().filter(has_key).collect();
    assert!(found.is_empty(), "a private key in {found:?}");
}

#[test]
fn kustomizations_name_every_file_beside_them() {
    let mut seen = 0;
    for folder in ["k8s/base", "k8s/jaeger", "istio/gateway-api"].map(str::to_owned).into_iter().chain(components()) {
        let kustomization = read(&format!("{folder}/kustomization.yaml")).remove(0);
        let named = strings(&kustomization.value, "/resources");
        let beside = files(&folder).into_iter().filter_map(|f| f.strip_prefix(&format!("{folder}/")).map(str::to_owned));
        // Clusters with an older Gateway API have no GRPCRoute.
        let is_optional = |file: &str| folder == "istio/gateway-api" && file == "grpc.yaml";
        for file in beside.filter(|file| !file.contains('/') && !is_optional(file)) {
            assert!(named.contains(&file.as_str()), "{folder}: {file} is not in its kustomization");
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} files were looked at");
}

fn components() -> Vec<String> {
    let entries = std::fs::read_dir(top().join("k8s/components")).expect("the components");
    entries.map(|e| format!("k8s/components/{}", e.expect("an entry").file_name().to_string_lossy())).collect()
}

/// A server with the environment of a Deployment's container, on a port of its own; ends with this value.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing is asserted about the end, and the test may already be failing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts it and waits until its log says where it listens; panics with what it said if it ends first.
    fn start(environment: &[(String, String)]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_httpserver"));
        command.arg("serve").env_clear().envs(environment.iter().cloned()).env("ADDR", "127.0.0.1:0").env("LOG_FORMAT", "text");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the server starts");
        let mut said = String::new();
        for line in BufReader::new(child.stderr.take().expect("its log")).lines().map_while(Result::ok) {
            // The runtime API, which has an address of its own, may be announced before.
            let address = line.split_once(" serving address=").and_then(|(_, rest)| rest.split_whitespace().next());
            if let Some(address) = address {
                return Server { address: address.to_owned(), child };
            }
            said += &line;
        }
        let status = child.wait().expect("its exit");
        panic!("the server ended with {status}: {said}");
    }

    fn status_of(&self, path: &str) -> u16 {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
    }
}

/// The environment that Kubernetes would give the container: literals, labels, and `$(NAME)` filled in.
fn environment(deployment: &set::Doc) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for entry in set::items(deployment.container(), "/env") {
        let field = text(entry, "/valueFrom/fieldRef/fieldPath");
        let label = field.strip_prefix("metadata.labels['").and_then(|rest| rest.strip_suffix("']"));
        let mut value = match label {
            Some(label) => text(deployment.pod_labels(), &format!("/{label}")).to_owned(),
            None if !field.is_empty() => "from-the-cluster".to_owned(),
            None => text(entry, "/value").to_owned(),
        };
        for (earlier, is) in &found {
            value = value.replace(&format!("$({earlier})"), is);
        }
        assert!(!value.contains("$("), "{}: {value} refers to a variable that does not stand before it", deployment.at());
        found.push((text(entry, "/name").to_owned(), value));
    }
    found
}

/// Every Deployment of our server in any manifest, once.
fn every_hop() -> Vec<set::Doc> {
    let all = files("k8s").into_iter().chain(files("istio")).flat_map(|file| read(&file));
    all.filter(|doc| doc.kind() == "Deployment" && text(doc.container(), "/name") == "httpserver").collect()
}

/// (name, value) of every variable that a component's patch sets.
fn variables_of_components() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in components() {
        let kustomization = read(&format!("{folder}/kustomization.yaml")).remove(0);
        for patch in set::items(&kustomization.value, "/patches").map(|patch| text(patch, "/patch").to_owned()) {
            let patch: Value = serde_saphyr::from_str(&patch).expect("a patch is YAML");
            for entry in set::items(&patch, "/spec/template/spec/containers/0/env") {
                found.push((text(entry, "/name").to_owned(), text(entry, "/value").to_owned()));
            }
        }
    }
    assert!(found.len() >= 4, "the components set {found:?}");
    found
}

#[test]
fn the_binary_knows_every_variable_in_the_manifests() {
    let help = Command::new(env!("CARGO_BIN_EXE_httpserver")).args(["serve", "--help"]).output().expect("help");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let known = |name: &str| help.split(|c: char| !c.is_ascii_uppercase() && c != '_').any(|word| word == name);
    assert!(known("UPSTREAM") && !known("UPSTREAMS"), "the help is not read as it should be");
    for hop in every_hop() {
        let environment = environment(&hop);
        for (name, _) in &environment {
            // A helper is a variable that only fills in others.
            let helper = set::items(hop.container(), "/env").any(|entry| text(entry, "/value").contains(&format!("$({name})")));
            assert!(helper || known(name), "{}: the binary knows no {name}", hop.at());
        }
    }
    for (name, _) in variables_of_components() {
        assert!(known(&name), "a component sets {name}, which the binary does not know");
    }
}

#[test]
fn the_binary_starts_with_the_environment_of_every_deployment_and_answers_its_probes() {
    let hops = every_hop();
    assert!(hops.len() >= 15, "only {} Deployments", hops.len());
    for hop in &hops {
        let server = Server::start(&environment(hop));
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let path = text(hop.container(), &format!("/{probe}/httpGet/path"));
            assert_eq!(server.status_of(path), 200, "{}: {probe} {path}", hop.at());
        }
    }
    let base = hops.iter().find(|hop| hop.name() == "service1").expect("service1");
    for (name, value) in variables_of_components() {
        let mut environment = environment(base);
        environment.retain(|(other, _)| *other != name);
        // Another test of another checkout may have that port.
        let value = if name == "ADMIN_ADDR" { "127.0.0.1:0".to_owned() } else { value };
        environment.push((name, value));
        assert_eq!(Server::start(&environment).status_of("/readyz"), 200, "{environment:?}");
    }
}

#[test]
fn the_binary_serves_what_is_published_and_the_port_that_is_named() {
    let help = Command::new(env!("CARGO_BIN_EXE_httpserver")).args(["serve", "--help"]).output().expect("help");
    assert!(
        String::from_utf8_lossy(&help.stdout).contains("[default: :8080]"),
        "the port of the manifests is the default of ADDR"
    );
    for hop in every_hop() {
        assert_eq!(set::at(hop.container(), "/ports/0/containerPort").as_u64(), Some(8080), "{}", hop.at());
        assert_eq!(hop.env("ADDR"), None, "{}", hop.at());
    }
    // The last hop: it answers by itself.
    let server = Server::start(&[]);
    let mut paths: Vec<String> = apply_sets().iter().flat_map(rules::published).map(|(_, _, path)| path).collect();
    paths.extend(["/service2".to_owned(), "/service3".to_owned()]);
    paths.sort();
    paths.dedup();
    assert!(paths.len() >= 8, "only {paths:?} are published");
    for path in paths {
        // A method of gRPC is there, and answers no GET.
        let expected = if path.starts_with("/httpserver.v1.") { 405 } else { 200 };
        assert_eq!(server.status_of(&path), expected, "{path}");
    }
    assert_eq!(server.status_of("/not-a-path"), 404);
}
