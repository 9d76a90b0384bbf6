//! What carries the requests at each hop, by its objects and by signs in the traffic; and how many spans one request is due.

use crate::check::chain::evidence::{HopEvidence, Xray};
use crate::check::cluster::object::Object;
use crate::check::cluster::path::{Hop, Path};
use crate::check::cluster::rules::{has_sidecar, is_ambient};
use crate::hop::reply::Propagation;
use crate::report::{CheckId, Finding};
use crate::text::counted;

/// What stands between a hop and its callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DataPlane {
    Sidecar,
    /// ztunnel alone: mutual TLS, and nothing of HTTP.
    Ambient,
    /// ztunnel, and a waypoint that reads HTTP.
    Waypoint,
    None,
}

impl DataPlane {
    fn of(path: &Path<'_>, hop: &Hop<'_>) -> Option<Self> {
        let pod = hop.pods.first()?;
        if has_sidecar(pod) {
            return Some(Self::Sidecar);
        }
        let namespace = path.snapshot.find("Namespace", "", pod.namespace());
        let mode = |object: &Object| object.label("istio.io/dataplane-mode") == "ambient";
        if !is_ambient(pod) && !mode(pod) && !namespace.is_some_and(mode) {
            return Some(Self::None);
        }
        let waypoint = |object: &Object| !matches!(object.label("istio.io/use-waypoint"), "" | "none");
        let has_waypoint = waypoint(pod) || hop.service.is_some_and(waypoint) || namespace.is_some_and(waypoint);
        Some(if has_waypoint { Self::Waypoint } else { Self::Ambient })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Ambient => "ambient (ztunnel alone)",
            Self::Waypoint => "ambient with a waypoint",
            Self::None => "none",
        }
    }

    /// Spans of the proxies for one call of a hop that makes `calls` itself.
    fn spans(self, calls: usize) -> usize {
        match self {
            Self::Sidecar => 1 + calls,
            Self::Waypoint => 1,
            Self::Ambient | Self::None => 0,
        }
    }
}

/// Signs of proxies in the traffic.
fn signs(row: &HopEvidence) -> String {
    let proxy = row.proxy;
    let signs = [
        (proxy.traces(), "its calls are traced by a proxy"),
        (proxy.identity, "its caller's identity is reported"),
        (proxy.sidecar, "it is called from a sidecar's address"),
        (proxy.envoy, "Envoy counts its calls"),
    ];
    let seen: Vec<&str> = signs.into_iter().filter(|(seen, _)| *seen).map(|(_, text)| text).collect();
    if seen.is_empty() { "no sign of a proxy".to_owned() } else { seen.join(", ") }
}

/// The finding; `None` when no hop is known.
pub(super) fn finding(path: &Path<'_>, xray: Option<&Xray>) -> Option<Finding> {
    let planes: Vec<(&Hop<'_>, Option<DataPlane>)> = path.hops.iter().map(|hop| (hop, DataPlane::of(path, hop))).collect();
    if planes.iter().all(|(_, plane)| plane.is_none()) {
        return None;
    }
    let row = |hop: &Hop<'_>| xray.and_then(|xray| xray.rows.iter().find(|row| row.hop.name == hop.name));
    let lines = planes.iter().map(|(hop, plane)| {
        let seen = row(hop).map_or_else(|| "not seen in the traffic".to_owned(), signs);
        format!("{:<12} {:<24} {seen}", hop.name, plane.map_or("unknown: no pod", DataPlane::name))
    });
    let calls = |at: usize| path.hops.iter().filter(|hop| hop.caller == Some(at)).count();
    let gateway = if path.front.is_some() { 2 } else { 0 };
    let proxies: usize =
        gateway + planes.iter().enumerate().filter_map(|(at, (_, plane))| Some(plane.as_ref()?.spans(calls(at)))).sum::<usize>();
    let reports = |hop: &Hop<'_>| row(hop).is_some_and(|row| row.mode == Propagation::Continue);
    let apps: usize = planes.iter().enumerate().filter(|(_, (hop, _))| reports(hop)).map(|(at, _)| 1 + calls(at)).sum();
    let mut kinds: Vec<&str> = planes.iter().filter_map(|(_, plane)| plane.map(DataPlane::name)).collect();
    kinds.dedup();
    let what = match kinds[..] {
        [one] => format!("{one} at every hop"),
        _ => planes
            .iter()
            .map(|(hop, plane)| format!("{} {}", hop.name, plane.map_or("unknown", DataPlane::name)))
            .collect::<Vec<_>>()
            .join(", "),
    };
    let due = if xray.is_some() {
        format!("; one traced request makes {}: {proxies} of proxies, {apps} of the hops", counted(proxies + apps, "span"))
    } else {
        String::new()
    };
    let data = serde_json::json!({
        "hops": planes.iter().map(|(hop, plane)| serde_json::json!({"hop": hop.name, "data_plane": plane.map(DataPlane::name)})).collect::<Vec<_>>(),
        "spans": {"proxies": proxies, "hops": apps},
    });
    Some(Finding::pass(CheckId::ClusterDataPlane, format!("Data plane: {what}{due}")).lines(lines).data(data))
}
