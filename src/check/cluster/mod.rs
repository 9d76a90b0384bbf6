//! `check --cluster`: reads the cluster's objects with the user's own `kubectl`, and names the object and the field behind a finding.
//!
//! In reading order: `command` (runs kubectl), `snapshot` (what is read), `object` (one object), `routing` (how Istio routes),
//! `front` (the gateway), `path` (the way of the request through the objects), `rules` (what is wrong on it), `mistake` (which findings that explains),
//! `data_plane`.
//!
//! Only `kubectl get` is run, and no Secret is read: that one is there shows in the table that `kubectl get secret NAME` prints.

mod command;
mod data_plane;
mod front;
mod istioctl;
mod mistake;
mod object;
mod path;
mod routing;
mod rules;
mod snapshot;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::check::chain::evidence::Xray;
use crate::hop::reply::Tree;
use crate::report::{CheckId, Finding, Hint, Status};
use crate::text::counted;
use crate::values::is_label;
use command::{CommandError, Tool};
use mistake::{Mistake, cause_of};
use object::is_subdomain;
pub(crate) use path::ClusterSubject;
use path::Path;
use snapshot::Snapshot;

/// The options that name a cluster.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ClusterArgs {
    /// Read the cluster's objects with kubectl (get, nothing else), and name the one that is at fault
    #[arg(long)]
    pub cluster: bool,
    /// The context of kubectl [default: its current one]
    #[arg(long, value_name = "NAME", requires = "cluster")]
    pub context: Option<String>,
    /// The kubeconfig of kubectl [default: its own]
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub kubeconfig: Option<PathBuf>,
    /// Run istioctl, too: analyze, and proxy-config, which opens connections to pods and reads what their proxies hold
    #[arg(long, requires = "cluster")]
    pub cluster_istioctl: bool,
}

/// A mistake, and whether a finding was explained by it.
type Known = Arc<Mutex<Vec<(Mistake, bool)>>>;

/// The cluster, as far as it was read.
#[derive(Debug)]
pub(crate) struct Cluster {
    tool: Tool,
    istioctl: Option<Tool>,
    snapshot: Result<Snapshot, CommandError>,
    known: Known,
    tree: Option<Tree>,
}

impl Cluster {
    /// Reads the cluster and looks for mistakes on the way of the request.
    pub(crate) async fn read(args: &ClusterArgs, subject: &ClusterSubject<'_>) -> Self {
        let tool = Tool::new("kubectl", args);
        let namespaces = subject.namespaces();
        let mut snapshot = Snapshot::read(&tool, &namespaces).await;
        if let Ok(snapshot) = &mut snapshot {
            let mut places = vec![subject.gateway_namespace];
            places.extend(namespaces.iter().copied().filter(|name| *name != subject.gateway_namespace));
            snapshot.read_secrets(&tool, &places).await;
        }
        let istioctl = args.cluster_istioctl.then(|| Tool::new("istioctl", args));
        let cluster = Self { tool, istioctl, snapshot, known: Known::default(), tree: None };
        cluster.diagnose(subject);
        cluster
    }

    /// How many pods a hop is meant to have: the replicas of every Deployment whose pods have its label `app`.
    pub(crate) fn pods(&self, hop: &str, namespace: &str) -> Option<u64> {
        let snapshot = self.snapshot.as_ref().ok()?;
        let deployments = snapshot.all("Deployment").into_iter().filter(|one| one.namespace() == namespace);
        let own = deployments.filter(|one| one.text("/spec/template/metadata/labels/app") == hop);
        let replicas: Vec<u64> = own.map(|one| object::number(one.at("/spec/replicas")).unwrap_or(1)).collect();
        (!replicas.is_empty()).then(|| replicas.iter().sum())
    }

    /// The first reply: it names the pods, and pods of other namespaces are read now.
    pub(crate) async fn saw(&mut self, tree: &Tree, subject: &ClusterSubject<'_>) {
        const MOST: usize = 4;
        if let Ok(snapshot) = &mut self.snapshot {
            let mut names: Vec<String> = tree.hops("").map(|(hop, _)| hop.hostname.clone()).collect();
            names.retain(|name| is_subdomain(name) && !snapshot.all("Pod").iter().any(|pod| pod.name() == name));
            for name in names.iter().take(MOST) {
                if let Some(namespace) = snapshot.find_pod(&self.tool, name).await.filter(|namespace| is_label(namespace)) {
                    snapshot.read_namespace(&self.tool, &namespace).await;
                }
            }
        }
        self.tree = Some(tree.clone());
        self.diagnose(subject);
    }

    /// Finds the mistakes anew, and keeps what is known of those that were there before.
    fn diagnose(&self, subject: &ClusterSubject<'_>) {
        let Some(path) = self.path(subject) else { return };
        let found = rules::mistakes(&path);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let was_used = |mistake: &Mistake| known.iter().any(|(old, used)| *used && old.sentence() == mistake.sentence());
        *known = found
            .into_iter()
            .map(|mistake| {
                let used = was_used(&mistake);
                (mistake, used)
            })
            .collect();
    }

    fn path(&self, subject: &ClusterSubject<'_>) -> Option<Path<'_>> {
        let snapshot = self.snapshot.as_ref().ok()?;
        Some(Path::new(snapshot, subject, self.tree.as_ref()))
    }

    /// Gives a failure the first mistake that explains it.
    pub(crate) fn explainer(&self) -> impl Fn(&mut Finding) + Send + 'static {
        let known = self.known.clone();
        move |finding| {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            let found = cause_of(known.iter().map(|(mistake, _)| mistake), finding);
            if let Some((mistake, used)) = found.map(|at| &mut known[at]) {
                *used = true;
                mistake.give(finding);
            }
        }
    }

    /// What was read, what carries the requests, and mistakes that no other finding shows.
    pub(crate) async fn findings(&self, subject: &ClusterSubject<'_>, xray: Option<&Xray>) -> Vec<Finding> {
        let snapshot = match &self.snapshot {
            Ok(snapshot) => snapshot,
            Err(error) => return vec![unread(&self.tool, error)],
        };
        let mut out = vec![read(snapshot)];
        out.extend(self.path(subject).and_then(|path| data_plane::finding(&path, xray)));
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let alone = known.iter().filter(|(mistake, used)| mistake.is_always_reported && !used);
            out.extend(alone.map(|(mistake, _)| mistake.finding(Status::Fail)));
        }
        if let Some(istioctl) = &self.istioctl {
            let path = self.path(subject);
            out.extend(istioctl::findings(istioctl, subject.namespace, path.as_ref()).await);
        }
        out
    }
}

fn unread(tool: &Tool, error: &CommandError) -> Finding {
    let cause = match error {
        CommandError::NotInstalled(_) => "--cluster runs your own kubectl, and finds none: install it, or run without --cluster",
        CommandError::Forbidden => {
            "This user may read nothing that --cluster asks for: a role with get and list for these kinds is needed"
        }
        _ => "kubectl does not reach the cluster: its context, its kubeconfig, or the network",
    };
    let hint = Hint::new(cause).run(format!("{}  # look for: the list of namespaces", tool.line(&["get", "namespaces"])));
    Finding::fail(CheckId::ClusterRead, format!("The cluster could not be read: {error}"), hint)
}

/// `1 gateway`, `2 telemetries`. Of a Secret nothing is read but that it is there.
fn number_of(resource: &str, count: usize) -> String {
    let singular = match resource.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None => resource.strip_suffix('s').unwrap_or(resource).to_owned(),
    };
    let only = if resource == "secrets" { " (by name alone)" } else { "" };
    format!("{count} {}{only}", if count == 1 { singular.as_str() } else { resource })
}

/// What was read and what was not. Every command stands in `data`.
fn read(snapshot: &Snapshot) -> Finding {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    let mut missing: Vec<String> = Vec::new();
    let mut refused: Vec<String> = Vec::new();
    for ran in &snapshot.ran {
        let name = ran.resource.split('.').next().unwrap_or_default();
        match &ran.result {
            Ok(count) => match counts.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += count,
                None => counts.push((name, *count)),
            },
            Err(CommandError::NoSuchKind) => missing.push(ran.resource.to_owned()),
            Err(error) => refused.push(format!("{}: {error}", ran.line)),
        }
    }
    let some: Vec<String> = counts.iter().filter(|(_, count)| *count > 0).map(|(name, count)| number_of(name, *count)).collect();
    let commands = counted(snapshot.ran.len(), "command");
    let text = format!("Read with kubectl get, in {commands}: {}", some.join(", "));
    let mut finding = Finding::pass(CheckId::ClusterRead, text);
    if !missing.is_empty() {
        finding = finding.line(format!("not in this cluster: {}", missing.join(", ")));
    }
    for line in refused {
        finding = finding.line(format!("not read: {line}"));
    }
    let example = snapshot
        .ran
        .iter()
        .find(|ran| ran.result.is_ok())
        .map(|ran| format!("ran {} and the like; --output json lists every command", ran.line));
    finding.lines(example).data(serde_json::json!({"ran": snapshot.ran.iter().map(|ran| ran.line.as_str()).collect::<Vec<_>>()}))
}
