//! The rules: each is a function from the way of the request to the mistakes on it, a file for each group of kinds.

mod entries;
mod filters;
mod gateway_api;
mod gateways;
mod ours;
mod peers;
mod policies;
mod ports;
mod routes;
mod scope;
mod subsets;
mod telemetry;
mod variables;
mod workloads;

use crate::check::cluster::mistake::Mistake;
use crate::check::cluster::path::Path;

pub(crate) use peers::{has_sidecar, is_ambient};

/// Every mistake on the way, the more certain causes first: of several that explain one finding the first is named.
pub(crate) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    const RULES: &[fn(&Path<'_>) -> Vec<Mistake>] = &[
        gateways::mistakes,
        gateway_api::mistakes,
        routes::mistakes,
        subsets::mistakes,
        workloads::mistakes,
        ports::mistakes,
        peers::mistakes,
        policies::mistakes,
        scope::mistakes,
        entries::mistakes,
        filters::mistakes,
        telemetry::mistakes,
        variables::mistakes,
    ];
    let mut out: Vec<Mistake> = Vec::new();
    for mistake in RULES.iter().flat_map(|rule| rule(path)) {
        if !out.contains(&mistake) {
            out.push(mistake);
        }
    }
    out
}
