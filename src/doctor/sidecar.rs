//! Apps behind proxies of their own: requests of which the proxy has a span, and the app has none below it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::doctor::finding::{FindingId, Level, MIN_COUNT, ServiceFinding};
use crate::doctor::system::{System, TracerKind};
use crate::traces::{Kind, Span};

/// So many requests are needed, and one in so many.
const LEAST: usize = 10;
const LEAST_SHARE: usize = 20;

/// The server spans of one service.
#[derive(Default)]
struct Behind<'a> {
    /// What the proxy passed on, by whether the app has a span of it.
    covered: Vec<usize>,
    bare: Vec<usize>,
    /// The app's spans that begin traces.
    begun: usize,
    /// What the app serves.
    served: BTreeSet<Option<&'a str>>,
}

/// `pairs`: between whom contexts are lost already.
pub(super) fn apps_missing_below_proxies(system: &System, pairs: &HashSet<(usize, usize)>) -> Vec<ServiceFinding> {
    let mut services: BTreeMap<usize, Behind<'_>> = BTreeMap::new();
    for (at, span) in system.spans.iter().enumerate() {
        if !span.is(Kind::Server) || span.is_health_check() {
            continue;
        }
        let of = services.entry(span.service).or_default();
        if span.tracer != TracerKind::Envoy {
            of.begun += usize::from(span.is_root());
            of.served.insert(endpoint(&span.span));
        } else if has_app_below(system, at) {
            of.covered.push(at);
        } else if !span.is_outbound() && !has_failed(&span.span) {
            of.bare.push(at);
        }
    }
    services
        .into_iter()
        .filter(|(service, _)| !pairs.contains(&(*service, *service)))
        .filter_map(|(service, of)| finding(system, service, of))
        .collect()
}

/// The first part of its path: behind it are ids, and what an app leaves out by right is elsewhere.
fn endpoint(span: &Span) -> Option<&str> {
    let path = span.path().or_else(|| span.tag("http.route"))?;
    path.split('/').find(|part| !part.is_empty())
}

fn has_app_below(system: &System, proxy: usize) -> bool {
    let is_app = |child: &usize| {
        let (child, own) = (&system.spans[*child], &system.spans[proxy]);
        child.service == own.service && child.tracer != TracerKind::Envoy
    };
    system.spans[proxy].children.iter().any(is_app)
}

/// Answered by the proxy itself, or by nobody.
fn has_failed(span: &Span) -> bool {
    span.has_failed() || span.tag("response_flags").is_some_and(|flags| !["", "-"].contains(&flags))
}

fn finding(system: &System, service: usize, of: Behind<'_>) -> Option<ServiceFinding> {
    let is_served = |at: &usize| of.served.contains(&None) || of.served.contains(&endpoint(&system.spans[*at].span));
    let bare: Vec<usize> = of.bare.iter().copied().filter(is_served).collect();
    let (count, all, name) = (bare.len(), bare.len() + of.covered.len(), system.name(service));
    // An app alone, or a proxy whose spans nobody joins: two deployments of one name.
    let begins = of.begun >= MIN_COUNT && of.begun * 3 >= count;
    if of.served.is_empty() || count < LEAST || count * LEAST_SHARE < all || of.covered.is_empty() && !begins {
        return None;
    }
    let (id, why, cause, next) = if begins {
        (
            FindingId::ContextIgnored,
            format!(
                "which begins {} traces of its own: the app does not continue the context that its own proxy writes",
                of.begun
            ),
            "proxy and app speak different formats: the proxy writes B3 and the app reads W3C, or the other way round".to_owned(),
            format!(
                "let OTEL_PROPAGATORS of {name} begin with the format of the mesh's tracing provider (b3multi for Zipkin, tracecontext for OpenTelemetry)"
            ),
        )
    } else {
        (
            FindingId::SamplingDiffers,
            "nor of anything behind it".to_owned(),
            format!(
                "the app of {name} decides about sampling by itself instead of following its proxy (a sampler that is not parent-based), or loses whole batches of spans"
            ),
            format!(
                "compare the samplers: OTEL_TRACES_SAMPLER of {name} should be parentbased_…; then its dropped-spans counter"
            ),
        )
    };
    Some(ServiceFinding {
        id,
        level: Level::Fault,
        service: name.to_owned(),
        peer: None,
        text: format!("{count} of {all} requests that its proxy reports have no span of the app, {why}"),
        cause,
        next,
        run: None,
        count,
        of: all,
        traces: system.examples(bare),
    })
}
