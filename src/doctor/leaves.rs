//! Services that are called by name and of which nothing is known: no span of them, and none behind them.

use std::collections::{BTreeMap, BTreeSet};

use crate::doctor::finding::{FindingId, Level, MIN_COUNT, ServiceFinding};
use crate::doctor::peers::{PeerName, peer_names};
use crate::doctor::silent::is_request;
use crate::doctor::system::System;

/// The calls to one name.
#[derive(Default)]
struct Leaf {
    open: Vec<usize>,
    callers: BTreeSet<usize>,
    is_answered: bool,
}

/// A note for each. `known`: names that other findings have, and other names of services, in lower case.
pub(super) fn unreported(system: &System, known: impl Fn(&str) -> bool) -> Vec<ServiceFinding> {
    let mut leaves: BTreeMap<String, Leaf> = BTreeMap::new();
    let clients = (0..system.spans.len()).filter(|at| system.is_outer_client(*at) && is_request(&system.spans[*at].span));
    for at in clients {
        let names = peer_names(&system.spans[at].span);
        if names.iter().any(|name| system.by_name.find(*name).is_some() || name.is_public()) {
            continue;
        }
        let Some(name) = names.into_iter().find(|name| is_of_the_mesh(*name)) else { continue };
        let leaf = leaves.entry(name.label().to_lowercase()).or_default();
        leaf.is_answered |= system.answered_by(at).is_some();
        leaf.callers.insert(system.spans[at].service);
        leaf.open.push(at);
    }
    let is_leaf = |(name, leaf): &(String, Leaf)| !leaf.is_answered && leaf.open.len() >= MIN_COUNT && !known(name);
    leaves.into_iter().filter(is_leaf).map(|(name, leaf)| note(system, name, &leaf)).collect()
}

/// A service's name by convention, a host that only a resolver inside knows, or one of the cluster's own domain.
fn is_of_the_mesh(name: PeerName<'_>) -> bool {
    name.is_service || !name.name.contains('.') || name.name.split('.').nth(2) == Some("svc") || name.name.ends_with(".svc")
}

fn note(system: &System, name: String, leaf: &Leaf) -> ServiceFinding {
    let callers: Vec<&str> = leaf.callers.iter().map(|caller| system.name(*caller)).collect();
    let calls = leaf.open.len();
    ServiceFinding {
        id: FindingId::ServiceSilent,
        level: Level::Note,
        peer: (callers.len() == 1).then(|| callers[0].to_owned()),
        text: format!(
            "it is called {calls} times by {}, and there is no span of it, nor of anything behind it",
            callers.join(", ")
        ),
        cause: "it is not instrumented, or reports to another backend; what it calls begins traces of its own, or none"
            .to_owned(),
        next: format!(
            "if {name} is a service of yours, instrument it; if not (a database, somebody else's), nothing is to be mended"
        ),
        run: None,
        count: calls,
        of: calls,
        traces: system.examples(leaf.open.iter().copied()),
        service: name,
    }
}
