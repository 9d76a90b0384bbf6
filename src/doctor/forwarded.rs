//! Contexts passed on as they came: what stands directly below one call.
//!
//! A call has one answer. Where spans of other services stand beside it, or in its place, somebody copied the headers of the request
//! that it served: a service with spans of its own (a stale context), or one that reports nothing (`silent`).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::doctor::finding::{FindingId, Level, ServiceFinding, level};
use crate::doctor::peers::{PeerName, peer_names, stem};
use crate::doctor::system::{Remote, System};
use crate::doctor::timing::{Interval, interval, nested};
use crate::traces::{Kind, Span};

/// Spans of one trace that are compared for one call; a hostile trace has a million.
const MAX_NEAR: usize = 64;
/// Answers of one call that are compared with each other.
const MAX_ANSWERS: usize = 16;
/// So few calls prove nothing by their times.
pub(super) const MIN_TIMED: usize = 5;

/// Who is called.
#[derive(Debug, Clone, Copy)]
pub(super) enum Callee<'a> {
    /// A service with spans below this call.
    Answers(usize),
    /// A service with spans, but none below this call.
    Elsewhere(usize),
    /// A name of which no span comes.
    Silent(PeerName<'a>),
    /// The call does not name it.
    Unnamed,
}

/// A call, and the spans directly below it.
#[derive(Debug)]
pub(super) struct ForwardedCall<'a> {
    pub(super) at: usize,
    pub(super) callee: Callee<'a>,
    /// The server spans of other services, without those of failed attempts.
    pub(super) answers: Vec<usize>,
    /// No span of another service is below it, and it did not fail.
    pub(super) is_open: bool,
}

/// Every call that is answered by a server span directly below it, or by nobody.
pub(super) fn calls(system: &System) -> Vec<ForwardedCall<'_>> {
    let is_request =
        |span: &Span| !span.tags.keys().any(|key| ["messaging.", "message_bus.", "kafka."].iter().any(|of| key.starts_with(of)));
    let of = |at: usize| {
        let seen = &system.spans[at];
        let (answers, others) = answers(system, at);
        let is_open = !others && !seen.span.is_error() && system.is_outer_client(at) && system.answered_by(at).is_none();
        (others || is_open).then(|| ForwardedCall { at, callee: callee(system, at), answers, is_open })
    };
    // What stands directly below another service is a request that it serves, whatever its kind says.
    let is_own =
        |at: &usize| system.spans[*at].parent.is_none_or(|above| system.spans[above].service == system.spans[*at].service);
    let clients = (0..system.spans.len()).filter(|at| system.spans[*at].is(Kind::Client) && is_own(at));
    clients.filter(|at| system.is_call(*at) && is_request(&system.spans[*at].span)).filter_map(of).collect()
}

/// The answers of a call, and whether spans of others stand below it at all.
fn answers(system: &System, call: usize) -> (Vec<usize>, bool) {
    let service = system.spans[call].service;
    let is_other = |child: &usize| system.spans[*child].service != service && system.spans[*child].is(Kind::Server);
    let others: Vec<usize> = system.spans[call].children.iter().copied().filter(is_other).take(MAX_ANSWERS).collect();
    (others.iter().copied().filter(|at| !system.spans[*at].span.has_failed()).collect(), !others.is_empty())
}

fn callee(system: &System, call: usize) -> Callee<'_> {
    let seen = &system.spans[call];
    let mut names = peer_names(&seen.span);
    // A proxy below its app, or a span around an attempt.
    if let Some(above) = seen.parent.map(|above| &system.spans[above]).filter(|_| names.is_empty())
        && above.is(Kind::Client)
        && above.service == seen.service
    {
        names = peer_names(&above.span);
    }
    let (mut elsewhere, mut silent) = (None, None);
    let near: BTreeSet<usize> = below(system, call).map(|at| system.spans[at].service).collect();
    for name in names {
        match system.by_name.find(name) {
            Some(service) if near.contains(&service) || service == seen.service || name.is_public() => {
                return Callee::Answers(service);
            }
            Some(service) => elsewhere = elsewhere.or(Some(Callee::Elsewhere(service))),
            None => silent = silent.or(Some(Callee::Silent(name))),
        }
    }
    elsewhere.or(silent).unwrap_or(Callee::Unnamed)
}

/// The first spans below one.
fn below(system: &System, at: usize) -> impl Iterator<Item = usize> {
    let mut next: Vec<usize> = vec![at];
    std::iter::from_fn(move || {
        let at = next.pop()?;
        next.extend(system.spans[at].children.iter().take(MAX_NEAR));
        Some(at)
    })
    .skip(1)
    .take(MAX_NEAR)
}

/// Which of these are different services, and not two versions of one.
pub(super) fn services(system: &System, spans: &[usize]) -> BTreeSet<usize> {
    let mut stems = BTreeMap::new();
    for at in spans {
        let service = system.spans[*at].service;
        stems.entry(stem(system.name(service))).or_insert(service);
    }
    stems.into_values().collect()
}

/// Services that pass on the context that they received although they report spans.
#[derive(Default)]
pub(super) struct Stale {
    pub(super) findings: Vec<ServiceFinding>,
    /// The spans that hang beside the service that called them.
    pub(super) beside: HashSet<usize>,
    /// The calls that these spans answer.
    pub(super) calls: HashSet<usize>,
}

impl Stale {
    pub(super) fn extend(&mut self, other: Self) {
        self.findings.extend(other.findings);
        self.beside.extend(other.beside);
        self.calls.extend(other.calls);
    }
}

/// Two spans below one call; the first may have made the call that the second answers.
struct Beside {
    host: usize,
    guest: usize,
    is_named: bool,
}

pub(super) fn stale_contexts(system: &System, calls: &[ForwardedCall<'_>], skews: &HashMap<(usize, usize), i64>) -> Stale {
    let mut pairs: BTreeMap<(usize, usize), Vec<Beside>> = BTreeMap::new();
    for call in calls.iter().filter(|call| call.answers.len() > 1 && services(system, &call.answers).len() > 1) {
        for &host in &call.answers {
            let service = system.spans[host].service;
            let is_named = matches!(call.callee, Callee::Answers(named) if named == service);
            for &guest in call.answers.iter().filter(|guest| system.spans[**guest].service != service) {
                pairs.entry((service, system.spans[guest].service)).or_default().push(Beside { host, guest, is_named });
            }
        }
    }
    let callers: HashSet<usize> = calls.iter().map(|call| system.spans[call.at].service).collect();
    let (mut stale, mut open) = (Stale::default(), HashMap::new());
    for ((service, callee), besides) in pairs {
        let (count, of) = (besides.len(), system.entries(service).len().max(besides.len()));
        for beside in &besides {
            open.entry(beside.host).or_insert_with(|| open_calls(system, beside.host));
        }
        let known = KnownNames {
            system,
            open: &open,
            differs: skews.get(&(service, callee)).is_some_and(|skew| *skew != 0),
            reports_calls: callers.contains(&service),
        };
        if level(count, of) == Level::Fault && known.passes_on(callee, &besides) {
            stale.findings.push(finding(system, (service, callee), &besides, of));
            stale.beside.extend(besides.iter().map(|beside| beside.guest));
            stale.calls.extend(besides.iter().flat_map(|beside| &open[&beside.host]));
        }
        // However rare, such a call has its answer.
        let answered = |at: &&usize| known.system.named_remote(**at) == Remote::Reports(callee);
        stale.calls.extend(besides.iter().flat_map(|beside| &open[&beside.host]).filter(answered));
    }
    stale
}

/// The calls of a service below one of its server spans that nobody answers below them.
fn open_calls(system: &System, host: usize) -> Vec<usize> {
    let service = system.spans[host].service;
    let own = below(system, host).filter(|at| system.spans[*at].service == service && system.spans[*at].is(Kind::Client));
    own.filter(|at| system.answered_by(*at).is_none()).collect()
}

/// What is known of a service beside whose spans others stand.
struct KnownNames<'a> {
    system: &'a System,
    /// The calls below each of its spans that nobody answers below them.
    open: &'a HashMap<usize, Vec<usize>>,
    /// Its clock and that of the others are known to differ.
    differs: bool,
    reports_calls: bool,
}

impl KnownNames<'_> {
    /// Whether the hosts made the calls that their guests answer: they report calls to the guests' service without an answer, or the
    /// guests lie inside such calls. Of a service that reports no calls at all the caller's name for it has to say so.
    fn passes_on(&self, callee: usize, besides: &[Beside]) -> bool {
        let most = |count: usize| count * 2 >= besides.len();
        let span = |at: usize| interval(&self.system.spans[at]);
        let reports = |at: &usize| matches!(self.system.named_remote(*at), Remote::Reports(service) if service == callee);
        if most(besides.iter().filter(|beside| self.open[&beside.host].iter().any(reports)).count()) {
            return true;
        }
        // Calls that name nobody, or somebody by another name.
        let others = |beside: &Beside| -> Vec<Interval> {
            let calls = self.open[&beside.host].iter();
            calls.filter(|at| !matches!(self.system.named_remote(**at), Remote::Reports(_))).map(|at| span(*at)).collect()
        };
        let within: Vec<_> = besides.iter().map(|beside| (span(beside.guest), others(beside))).collect();
        if most(within.iter().filter(|(_, calls)| !calls.is_empty()).count()) {
            return nested(&within, besides.len() >= MIN_TIMED) * 4 >= besides.len() * 3;
        }
        let is_named = most(besides.iter().filter(|beside| beside.is_named).count());
        let within: Vec<_> = besides.iter().map(|beside| (span(beside.guest), vec![span(beside.host)])).collect();
        let is_inside = || nested(&within, self.differs) * 10 >= besides.len() * 9;
        is_named && besides.len() >= MIN_TIMED && !self.reports_calls && is_inside()
    }
}

fn finding(system: &System, (service, callee): (usize, usize), besides: &[Beside], of: usize) -> ServiceFinding {
    let (name, to, count) = (system.name(service), system.name(callee), besides.len());
    ServiceFinding {
        id: FindingId::ContextStale,
        level: Level::Fault,
        service: name.to_owned(),
        peer: Some(to.to_owned()),
        text: format!(
            "{count} of {of} requests: {to} hangs beside it instead of below it, for it passes on the context that it received instead of its own"
        ),
        cause: "it copies the trace headers of the request by hand although its tracer makes spans of its own".to_owned(),
        next: format!("let the tracer of {name} inject the headers, and copy only x-request-id and the like"),
        run: None,
        count,
        of,
        traces: system.examples(besides.iter().map(|beside| beside.guest)),
    }
}
