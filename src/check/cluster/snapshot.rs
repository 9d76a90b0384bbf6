//! What is read of the cluster: each kind once.

use futures_util::StreamExt as _;
use serde_json::Value;

use crate::check::cluster::command::{CommandError, Tool};
use crate::check::cluster::object::{Object, is_subdomain, text};
use crate::values::is_label;

/// A kind that is read, and from where.
#[derive(Debug)]
struct KindToRead {
    /// As kubectl has it, with the group, so that no other kind of this name is meant.
    resource: &'static str,
    scope: KindScope,
}

/// Where objects of a kind matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KindScope {
    /// Everywhere: an object of any namespace may concern the request. Without permission, in the namespaces of the run.
    All,
    /// In the namespaces of the run: too many elsewhere.
    Ours,
    /// The kind has no namespace.
    Cluster,
}

macro_rules! kinds {
    ($($scope:ident $resource:literal)*) => { &[$(KindToRead { resource: $resource, scope: KindScope::$scope }),*] };
}

const KINDS: &[KindToRead] = kinds! {
    Cluster "namespaces"
    All "services"
    Ours "pods"
    Ours "deployments.apps"
    Ours "endpointslices.discovery.k8s.io"
    Ours "networkpolicies.networking.k8s.io"
    All "gateways.networking.istio.io"
    All "virtualservices.networking.istio.io"
    All "destinationrules.networking.istio.io"
    All "serviceentries.networking.istio.io"
    All "workloadentries.networking.istio.io"
    All "sidecars.networking.istio.io"
    All "envoyfilters.networking.istio.io"
    All "peerauthentications.security.istio.io"
    All "authorizationpolicies.security.istio.io"
    All "requestauthentications.security.istio.io"
    All "telemetries.telemetry.istio.io"
    All "wasmplugins.extensions.istio.io"
    All "gateways.gateway.networking.k8s.io"
    All "httproutes.gateway.networking.k8s.io"
    All "referencegrants.gateway.networking.k8s.io"
};

/// The namespace whose objects hold for the whole mesh.
pub(crate) const ROOT_NAMESPACE: &str = "istio-system";

/// One command that was run, and what it brought.
#[derive(Debug, Clone)]
pub(crate) struct Ran {
    pub(crate) line: String,
    /// The kind, for a list.
    pub(crate) resource: &'static str,
    pub(crate) result: Result<usize, CommandError>,
}

/// What the table of `kubectl get secret NAME` shows. The Secret itself is never read.
#[derive(Debug, Clone)]
pub(crate) struct SecretSeen {
    pub(crate) name: String,
    pub(crate) namespace: String,
    /// Its type; `None` when there is no such Secret.
    pub(crate) kind: Option<String>,
    /// The command that shows it.
    pub(crate) command: String,
}

/// Everything that was read.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    objects: Vec<Object>,
    pub(crate) secrets: Vec<SecretSeen>,
    /// The configuration of the mesh, YAML.
    pub(crate) mesh: Option<String>,
    pub(crate) ran: Vec<Ran>,
}

impl Snapshot {
    /// Reads every kind, a few at a time.
    ///
    /// # Errors
    /// Nothing could be read at all: why.
    pub(crate) async fn read(tool: &Tool, namespaces: &[&str]) -> Result<Self, CommandError> {
        const AT_A_TIME: usize = 4;
        let namespaces: Vec<&str> = namespaces.iter().copied().filter(|name| is_label(name)).collect();
        // The first one alone: it fills kubectl's cache of what kinds there are, and shows whether the cluster answers.
        let mut snapshot = Self::default();
        snapshot.add(read_kind(tool, &KINDS[0], &namespaces).await);
        if let Some(Ran {
            result: Err(error @ (CommandError::NotInstalled(_) | CommandError::TimedOut | CommandError::Failed(_))),
            ..
        }) = snapshot.ran.first()
        {
            return Err(error.clone());
        }
        let mut rest =
            futures_util::stream::iter(KINDS[1..].iter().map(|kind| read_kind(tool, kind, &namespaces))).buffered(AT_A_TIME);
        while let Some(read) = rest.next().await {
            snapshot.add(read);
        }
        let words = ["get", "configmap", "istio", "-n", ROOT_NAMESPACE, "-o", "json"];
        let result = tool.run(&words).await.and_then(|bytes| parse(&bytes));
        let mesh = result.as_ref().ok().and_then(|value| value.pointer("/data/mesh")?.as_str().map(str::to_owned));
        snapshot.ran.push(Ran { line: tool.line(&words), resource: "configmaps", result: result.map(|_| 1) });
        snapshot.mesh = mesh;
        match snapshot.ran.iter().find_map(|ran| ran.result.clone().err()) {
            Some(error) if snapshot.ran.iter().all(|ran| ran.result.is_err()) => Err(error),
            _ => Ok(snapshot),
        }
    }

    /// The namespace of a pod that no namespace of the run has.
    pub(crate) async fn find_pod(&mut self, tool: &Tool, name: &str) -> Option<String> {
        let field = format!("metadata.name={name}");
        let words = ["get", "pods", "-A", "--field-selector", field.as_str(), "-o", "json"];
        let result = tool.run(&words).await.and_then(|bytes| parse(&bytes)).map(objects);
        let namespace = result.as_ref().ok().and_then(|pods| pods.first()).map(|pod| pod.namespace().to_owned());
        self.ran.push(Ran { line: tool.line(&words), resource: "pods", result: result.map(|pods| pods.len()) });
        namespace
    }

    /// Reads what is read in the namespaces of the run, in one more.
    pub(crate) async fn read_namespace(&mut self, tool: &Tool, namespace: &str) {
        for kind in KINDS.iter().filter(|kind| kind.scope == KindScope::Ours) {
            self.add(read_kind(tool, kind, &[namespace]).await);
        }
    }

    /// Asks whether the Secrets are there that the Gateways name, in each of `namespaces`.
    pub(crate) async fn read_secrets(&mut self, tool: &Tool, namespaces: &[&str]) {
        const MOST: usize = 16;
        let servers = self.all("Gateway").into_iter().flat_map(|gateway| gateway.list("/spec/servers"));
        let mut names: Vec<String> = servers.map(|server| text(server, "/tls/credentialName").to_owned()).collect();
        names.retain(|name| is_subdomain(name));
        names.sort();
        names.dedup();
        for name in names.iter().take(MOST) {
            for namespace in namespaces.iter().filter(|name| is_label(name)) {
                let words = ["get", "secret", name, "-n", namespace];
                let result = tool.run(&words).await;
                let kind = result.as_ref().ok().and_then(|table| secret_type(&String::from_utf8_lossy(table)));
                if kind.is_some() || matches!(result, Err(CommandError::NotFound)) {
                    let command = match &kind {
                        Some(kind) => format!("{}  # look for: {kind}", tool.line(&words)),
                        None => format!("{}  # look for: not found", tool.line(&words)),
                    };
                    self.secrets.push(SecretSeen { name: name.clone(), namespace: (*namespace).to_owned(), kind, command });
                }
                let result = match result {
                    Ok(_) => Ok(1),
                    Err(CommandError::NotFound) => Ok(0),
                    Err(error) => Err(error),
                };
                self.ran.push(Ran { line: tool.line(&words), resource: "secrets", result });
            }
        }
    }

    fn add(&mut self, read: Vec<(Ran, Vec<Object>)>) {
        for (ran, objects) in read {
            self.ran.push(ran);
            self.objects.extend(objects);
        }
    }

    #[cfg(test)]
    pub(crate) fn of(objects: impl IntoIterator<Item = Value>, mesh: &str) -> Self {
        let mut snapshot = Self { mesh: Some(mesh.to_owned()), ..Self::default() };
        for value in objects {
            let resource = KINDS.iter().map(|kind| kind.resource).find(|resource| is_of(&value, resource));
            snapshot.ran.extend(resource.map(|resource| Ran { line: String::new(), resource, result: Ok(1) }));
            snapshot.objects.push(Object::new(value));
        }
        snapshot
    }

    /// The objects of a kind, oldest first.
    pub(crate) fn all(&self, kind: &str) -> Vec<&Object> {
        let istio = kind == "Gateway";
        let mut all: Vec<&Object> = self
            .objects
            .iter()
            .filter(|object| object.kind() == kind && (!istio || object.text("/apiVersion").contains("istio.io")))
            .collect();
        all.sort_by_key(|object| object.age_order());
        all
    }

    /// The Gateways of the Gateway API, which share their name with Istio's own.
    pub(crate) fn api_gateways(&self) -> Vec<&Object> {
        self.objects.iter().filter(|object| object.kind() == "Gateway" && object.text("/apiVersion").contains("k8s.io")).collect()
    }

    pub(crate) fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<&Object> {
        self.all(kind).into_iter().find(|object| object.namespace() == namespace && object.name() == name)
    }

    pub(crate) fn service(&self, name: &str, namespace: &str) -> Option<&Object> {
        self.find("Service", namespace, name)
    }

    /// The Services with a name that is close to this one, or the same one in another namespace: `service1 in shop`.
    pub(crate) fn services_like(&self, name: &str) -> Vec<&Object> {
        self.all("Service").into_iter().filter(|service| service.name() == name || is_close(service.name(), name)).collect()
    }

    /// Whether a kind could be read, and so its absence means something.
    pub(crate) fn knows(&self, resource: &str) -> bool {
        self.ran.iter().any(|ran| ran.resource == resource && ran.result.is_ok())
    }
}

/// Whether an object is of a resource of [`KINDS`].
#[cfg(test)]
fn is_of(value: &Value, resource: &str) -> bool {
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    let kind = value["kind"].as_str().unwrap_or_default().to_lowercase();
    let stem = kind.trim_end_matches('y');
    plural.starts_with(stem)
        && value["apiVersion"].as_str().is_some_and(|version| version.split_once('/').map_or("", |(group, _)| group) == group)
}

/// One letter more, less, other, or two exchanged.
fn is_close(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let head = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let tail = a[head..].iter().rev().zip(b[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[head..a.len() - tail], &b[head..b.len() - tail]);
    a != b && (a.len().max(b.len()) <= 1 || (a.len() == 2 && b.len() == 2 && a[0] == b[1] && a[1] == b[0]))
}

async fn read_kind(tool: &Tool, kind: &KindToRead, namespaces: &[&str]) -> Vec<(Ran, Vec<Object>)> {
    let run = async |words: Vec<&str>| {
        let result = tool.run(&words).await.and_then(|bytes| parse(&bytes)).map(objects);
        let (result, objects) = match result {
            Ok(objects) => (Ok(objects.len()), objects),
            Err(error) => (Err(error), Vec::new()),
        };
        (Ran { line: tool.line(&words), resource: kind.resource, result }, objects)
    };
    let mut out = Vec::new();
    if kind.scope != KindScope::Ours {
        let everywhere: &[&str] = if kind.scope == KindScope::All { &["-A"] } else { &[] };
        let read = run([&["get", kind.resource], everywhere, &["-o", "json"]].concat()).await;
        let is_refused = matches!(read.0.result, Err(CommandError::Forbidden | CommandError::TooLarge | CommandError::TimedOut));
        if !is_refused || kind.scope == KindScope::Cluster {
            return vec![read];
        }
    }
    for namespace in namespaces {
        out.push(run(vec!["get", kind.resource, "-n", namespace, "-o", "json"]).await);
    }
    out
}

/// The second column of the table's second line.
fn secret_type(table: &str) -> Option<String> {
    table.lines().nth(1)?.split_whitespace().nth(1).map(str::to_owned)
}

fn parse(bytes: &[u8]) -> Result<Value, CommandError> {
    serde_json::from_slice(bytes).map_err(|error| CommandError::Failed(format!("no JSON: {error}")))
}

fn objects(list: Value) -> Vec<Object> {
    match list {
        Value::Object(mut list) => match list.remove("items") {
            Some(Value::Array(items)) => items.into_iter().map(Object::new).collect(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}
