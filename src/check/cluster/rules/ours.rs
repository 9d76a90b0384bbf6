//! What is the chain's, among the objects of a cluster that others use, too.

use crate::check::cluster::object::{Object, full_host, list, service_of, text};
use crate::check::cluster::path::Path;
use crate::check::cluster::routing::{is_bound, names_host};

/// Whether a VirtualService is the chain's, or leads to it.
pub(super) fn leads_here(path: &Path<'_>, service: &Object) -> bool {
    let routes = service.list("/spec/http").iter().flat_map(|rule| list(rule, "/route"));
    let mut hosts = routes.map(|route| full_host(text(route, "/destination/host"), service.namespace()));
    path.is_ours(service.namespace())
        || hosts.any(|host| service_of(&host, "").is_some_and(|(_, namespace)| path.is_ours(namespace)))
}

/// Those Gateways that are meant for the request, although something in them may not fit: what a VirtualService of the chain for
/// this host is bound to, else the chain's own. Others serve somebody else.
pub(super) fn meant<'a>(path: &Path<'a>, gateways: &[&'a Object]) -> Vec<&'a Object> {
    let mut services = path.snapshot.all("VirtualService");
    services.retain(|service| leads_here(path, service) && names_host(service, &path.host));
    let is_bound_by_one = |gateway: &&&Object| {
        let name = [format!("{}/{}", gateway.namespace(), gateway.name())];
        services.iter().any(|service| is_bound(service, &name))
    };
    let bound: Vec<&Object> = gateways.iter().filter(is_bound_by_one).copied().collect();
    if bound.is_empty() { gateways.iter().copied().filter(|gateway| path.is_ours(gateway.namespace())).collect() } else { bound }
}
