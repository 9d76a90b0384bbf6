//! Services that report nothing and pass headers on untouched: what they call stands directly below the call to them.
//!
//! The same picture has a name in front of a service: an alias, a load balancer, a gateway. One call with the spans of several services
//! below it rules that out; where only one service answers, the calls themselves have to show that work was done in between.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::doctor::finding::{FindingId, Level, MIN_COUNT, ServiceFinding, level};
use crate::doctor::forwarded::{Callee, ForwardedCall, MIN_TIMED, Stale, services};
use crate::doctor::peers::{PeerName, stem};
use crate::doctor::system::{System, SystemSpan};
use crate::doctor::timing::{Interval, interval, median, nested};
use crate::traces::{Kind, Span};

/// So many calls are needed where only one service answers.
const MIN_ALONE: usize = 10;
/// A proxy takes less, microseconds.
const WORK_US: i64 = 2_000;

/// Who may stand between a caller and those who answer it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Between {
    Service(usize),
    Name(String),
    /// Behind this service; the calls do not name it.
    Behind(usize),
}

/// The calls to one name.
#[derive(Default)]
struct SilentGroup<'a> {
    name: Option<PeerName<'a>>,
    calls: usize,
    /// Answered by nobody.
    open: Vec<usize>,
    /// Answered by services of another name: the call and their spans.
    passed: Vec<(usize, Vec<usize>)>,
}

/// What was found.
#[derive(Default)]
pub(super) struct Silent {
    pub(super) findings: Vec<ServiceFinding>,
    /// Services whose calls are partly those of somebody who reports nothing, and do not name them.
    pub(super) unclear: HashSet<usize>,
    /// Caller and silent service.
    pub(super) pairs: HashSet<(usize, usize)>,
    /// Other names of services, in lower case: all calls to them are answered by that one, or by several (`None`).
    pub(super) aliases: BTreeMap<String, Option<usize>>,
}

struct SilentSearch<'a> {
    system: &'a System,
    groups: BTreeMap<Between, SilentGroup<'a>>,
    /// Who calls whom.
    edges: HashSet<(usize, usize)>,
    /// Microseconds that a call takes longer than its answer, where the name of the call is that of the answer.
    overhead: Option<i64>,
    /// 0 to 2: how surely the names in calls are those of services.
    convention: i32,
    torn: HashSet<usize>,
}

pub(super) fn silent_services(system: &System, calls: &[ForwardedCall<'_>], stale: &Stale) -> Silent {
    let search = SilentSearch::new(system, calls, stale);
    let mut silent = Silent::default();
    for (between, group) in &search.groups {
        let found = match between {
            Between::Service(service) => search.sometimes(*service, group),
            Between::Name(_) => search.named(group),
            Between::Behind(caller) => search.unnamed(*caller, group),
        };
        let Some(found) = found else {
            let mut answering = group.answering(system).into_iter();
            if let (Between::Name(name), Some(first)) = (between, answering.next()) {
                silent.aliases.insert(name.clone(), answering.next().is_none().then_some(first));
            }
            continue;
        };
        let callers = group.passed.iter().map(|(call, _)| system.spans[*call].service);
        match between {
            Between::Service(service) => silent.pairs.extend(callers.map(|caller| (caller, *service))),
            Between::Behind(_) => silent.unclear.extend(callers),
            Between::Name(_) => {}
        }
        silent.findings.push(found);
    }
    silent
}

impl SilentGroup<'_> {
    fn answering(&self, system: &System) -> BTreeSet<usize> {
        self.passed.iter().flat_map(|(_, answers)| answers).map(|at| system.spans[*at].service).collect()
    }

    /// The calls below which several services answer.
    fn several<'s>(&'s self, system: &'s System) -> impl Iterator<Item = &'s (usize, Vec<usize>)> {
        self.passed.iter().filter(|(_, answers)| answers.len() > 1 && services(system, answers).len() > 1)
    }

    /// Whether somebody who answers does so while the caller waits: else a queue stands there. Instances have clocks of their own, so
    /// not all have to agree; what comes later comes at any time.
    fn is_waited_for(&self, system: &System) -> bool {
        let mut waits: BTreeMap<usize, Vec<(Interval, Vec<Interval>)>> = BTreeMap::new();
        for (call, answers) in self.passed.iter().filter(|(call, _)| !system.spans[*call].span.is_error()) {
            for answer in answers {
                let within = (interval(&system.spans[*answer]), vec![interval(&system.spans[*call])]);
                waits.entry(system.spans[*answer].service).or_default().push(within);
            }
        }
        let fits = |((start, end), outer): &&(Interval, Vec<Interval>)| end - start <= outer[0].1 - outer[0].0;
        let is_within = |pairs: &Vec<(Interval, Vec<Interval>)>| {
            let least = (pairs.len() / 4).max(pairs.len().min(4));
            pairs.iter().filter(fits).count() * 20 >= pairs.len() * 19 && nested(pairs, true) >= least
        };
        waits.values().any(is_within)
    }
}

impl<'a> SilentSearch<'a> {
    fn new(system: &'a System, calls: &[ForwardedCall<'a>], stale: &Stale) -> Self {
        let mut groups: BTreeMap<Between, SilentGroup<'a>> = BTreeMap::new();
        let (mut overheads, mut known) = (Vec::new(), HashSet::new());
        for call in calls.iter().filter(|call| !stale.calls.contains(&call.at)) {
            let seen = &system.spans[call.at];
            let (between, name) = match call.callee {
                Callee::Answers(service) => {
                    if let [answer] = *call.answers
                        && system.spans[answer].service == service
                    {
                        overheads.push(seen.took() - system.spans[answer].took());
                        known.insert(service);
                    }
                    groups.entry(Between::Service(service)).or_default().calls += 1;
                    continue;
                }
                Callee::Elsewhere(service) => (Between::Service(service), None),
                Callee::Silent(name) => (Between::Name(name.label().to_lowercase()), Some(name)),
                Callee::Unnamed => (Between::Behind(seen.service), None),
            };
            let group = groups.entry(between).or_default();
            group.calls += 1;
            group.name = group.name.filter(|known| known.is_service).or(name);
            let answers: Vec<usize> = call.answers.iter().copied().filter(|at| !stale.beside.contains(at)).collect();
            if call.is_open {
                group.open.push(call.at);
            } else if !answers.is_empty() {
                group.passed.push((call.at, answers));
            }
        }
        let edge = |span: &SystemSpan| Some((system.spans[span.parent?].service, span.service));
        let edges = system.spans.iter().filter(|span| span.is(Kind::Server)).filter_map(edge).collect();
        let torn = system.spans.iter().filter(|span| span.is_orphan).map(|span| span.trace).collect();
        let is_name =
            |(between, group): &(&Between, &SilentGroup<'_>)| matches!(between, Between::Name(_)) && !group.passed.is_empty();
        let (known, other) = (known.len(), groups.iter().filter(is_name).count());
        let convention = i32::from(known >= other.max(1)) + i32::from(known >= 2 && other == 1);
        Self { system, groups, edges, overhead: median(overheads), convention, torn }
    }

    /// A service that reports at other times.
    fn sometimes(&self, service: usize, group: &SilentGroup<'_>) -> Option<ServiceFinding> {
        let system = self.system;
        // Its timers and health checks are seen, and no request.
        if system.entries(service).iter().all(|(at, _)| system.spans[*at].is_root()) {
            return self.never(group, system.name(service), 2);
        }
        let calls = |at: &usize| self.edges.contains(&(service, system.spans[*at].service));
        let is_between = |answers: &[usize]| services(system, answers).len() > 1 || answers.iter().any(calls);
        let passed: Vec<_> = group.passed.iter().filter(|(_, answers)| is_between(answers)).cloned().collect();
        let group = SilentGroup { name: None, calls: group.calls, open: Vec::new(), passed };
        let is_fault = level(group.passed.len(), group.calls) == Level::Fault && group.is_waited_for(system);
        is_fault.then(|| self.finding(system.name(service), &group, Some(service)))
    }

    /// A name of which no span comes.
    fn named(&self, group: &SilentGroup<'_>) -> Option<ServiceFinding> {
        let name = group.name?;
        let prior = i32::from(name.is_service) + self.convention - 2 * i32::from(name.is_public());
        self.never(group, name.label(), prior)
    }

    fn never(&self, group: &SilentGroup<'_>, name: &str, prior: i32) -> Option<ServiceFinding> {
        let several = group.several(self.system).count();
        let is_one_of_many = several >= MIN_COUNT && several * 20 >= group.passed.len() && group.is_waited_for(self.system);
        (is_one_of_many || self.alone(group, name, prior)).then(|| self.finding(name, group, None))
    }

    /// Whether calls to this name that one service answers each time show that somebody worked in between. `prior`: how surely it is
    /// the name of a service and not of a host.
    fn alone(&self, group: &SilentGroup<'_>, name: &str, prior: i32) -> bool {
        let system = self.system;
        let answering = group.answering(system);
        if group.passed.len() < MIN_ALONE || !group.is_waited_for(system) {
            return false;
        }
        let is_proxy = |name: &str| PeerName { name, is_service: false }.is_proxy();
        let proxies = is_proxy(name) || answering.iter().any(|service| is_proxy(system.name(*service)));
        let named = stem(name);
        let is_related = |service: &usize| {
            let other = stem(system.name(*service));
            named.contains(&other) || other.contains(&named)
        };
        let against = 2 * i32::from(proxies) + i32::from(answering.iter().any(is_related)) + i32::from(answering.len() > 1);
        let repeated = group.passed.iter().filter(|(_, answers)| answers.len() > 1).count() * 5 >= group.passed.len();
        let signs = self.work(group) + i32::from(self.skips(group)) + 2 * i32::from(self.other_path(group)) + i32::from(repeated);
        signs > 0 && signs + prior - against >= 3
    }

    /// How much longer than others these calls take beside their answers.
    fn work(&self, group: &SilentGroup<'_>) -> i32 {
        let took = |at: &usize| self.system.spans[*at].took();
        let beside = |(call, answers): &(usize, Vec<usize>)| took(call) - answers.iter().map(took).sum::<i64>();
        let (Some(usual), Some(here)) = (self.overhead, median(group.passed.iter().map(beside).collect())) else { return 0 };
        let more = here - usual.max(0);
        i32::from(more >= WORK_US.max(2 * usual)) + i32::from(more >= (3 * WORK_US).max(4 * usual))
    }

    /// Whether some of these calls have no answer and took less time for it.
    fn skips(&self, group: &SilentGroup<'_>) -> bool {
        let took = |at: &usize| self.system.spans[*at].took();
        let whole = |at: &&usize| !self.torn.contains(&self.system.spans[**at].trace);
        let open: Vec<i64> = group.open.iter().filter(whole).map(took).collect();
        let passed = group.passed.iter().map(|(call, _)| took(call)).collect();
        let is_often = open.len() >= MIN_TIMED && open.len() * 12 >= group.calls;
        is_often && median(open).zip(median(passed)).is_some_and(|(open, passed)| open * 4 < passed * 3)
    }

    /// Whether the callee serves another path than the caller calls.
    fn other_path(&self, group: &SilentGroup<'_>) -> bool {
        let other = |(call, answers): &&(usize, Vec<usize>)| {
            let called = path(&self.system.spans[*call].span);
            let served = answers.first().and_then(|answer| path(&self.system.spans[*answer].span));
            called.zip(served).is_some_and(|(called, served)| !called.ends_with(served) && !served.ends_with(called))
        };
        group.passed.iter().filter(other).count() * 10 >= group.passed.len() * 9
    }

    /// Several services below calls that name nobody.
    fn unnamed(&self, caller: usize, group: &SilentGroup<'_>) -> Option<ServiceFinding> {
        let system = self.system;
        let several = SilentGroup {
            name: None,
            calls: group.calls,
            open: Vec::new(),
            passed: group.several(system).filter(|(call, _)| is_request(&system.spans[*call].span)).cloned().collect(),
        };
        if level(several.passed.len(), several.calls) == Level::Note || !several.is_waited_for(system) {
            return None;
        }
        let suspect = self.usual_callee(caller, &several);
        let name = suspect.map(|service| system.name(service).to_owned());
        let answering = self.names(&several);
        let between = format!("between {} and {}", system.name(caller), answering.join(", "));
        let mut finding = self.finding(&name.unwrap_or(between), &several, suspect);
        if suspect.is_none() {
            finding.text = format!(
                "a service stands there that passes headers on untouched and reports no span: {} of {} calls of {} have the spans of several services directly below them",
                finding.count,
                finding.of,
                system.name(caller)
            );
            finding.next = format!(
                "find whom {} calls (its client spans do not name it) and instrument that; if it is one of {}, it has to send its own context instead of the received one",
                system.name(caller),
                answering.join(", ")
            );
            finding.cause =
                "that service is not instrumented, and copies the trace headers of the request that it serves to its calls"
                    .to_owned();
        }
        Some(finding)
    }

    /// The one service that this caller calls at other times, that calls all who answer, and that has no span in these traces.
    fn usual_callee(&self, caller: usize, group: &SilentGroup<'_>) -> Option<usize> {
        let system = self.system;
        let answering = group.answering(system);
        let traces: HashSet<usize> = group.passed.iter().map(|(call, _)| system.spans[*call].trace).collect();
        let absent = |service: usize| {
            let present = system.entries(service).iter().map(|(at, _)| system.spans[*at].trace).collect::<HashSet<_>>();
            present.len() >= MIN_COUNT && present.intersection(&traces).count() * 10 <= traces.len()
        };
        let calls_all = |service: &usize| {
            self.edges.contains(&(caller, *service)) && answering.iter().all(|callee| self.edges.contains(&(*service, *callee)))
        };
        let mut found = (0..system.names.len()).filter(calls_all).filter(|service| absent(*service));
        let only = found.next()?;
        found.next().is_none().then_some(only)
    }

    fn names(&self, group: &SilentGroup<'_>) -> Vec<&'a str> {
        group.answering(self.system).into_iter().map(|service| self.system.name(service)).collect()
    }

    fn finding(&self, name: &str, group: &SilentGroup<'_>, reports: Option<usize>) -> ServiceFinding {
        let system = self.system;
        let (count, of, answering) = (group.passed.len(), group.calls, self.names(group));
        let callers: BTreeSet<&str> = group.passed.iter().map(|(call, _)| system.name(system.spans[*call].service)).collect();
        let (callers, listed) = (callers.into_iter().collect::<Vec<_>>().join(", "), answering.join(", "));
        let below =
            format!("the spans of {listed} stand directly below the call of {callers}: it passes the context on untouched");
        let (text, cause, next) = if reports.is_some() {
            (
                format!("{count} of {of} calls to it have no span of it, and {below}"),
                format!(
                    "some instances or endpoints of {name} are not instrumented or decide about sampling by themselves, and copy the trace headers of the request to their calls"
                ),
                format!(
                    "compare the instances and endpoints of {name} that served these requests with the others: version, SDK, sampler"
                ),
            )
        } else {
            (
                format!("it reports no span: in {count} of {of} calls to it {below}"),
                format!("{name} is not instrumented, and copies the trace headers of the request that it serves to its calls"),
                format!(
                    "instrument {name}; if it is a proxy or another name of {listed}, let the callers name the service (peer.service)"
                ),
            )
        };
        ServiceFinding {
            id: FindingId::ServiceSilent,
            level: Level::Fault,
            service: name.to_owned(),
            peer: answering.first().map(|name| (*name).to_owned()),
            text,
            cause,
            next,
            run: None,
            count,
            of,
            traces: system.examples(group.passed.iter().map(|(call, _)| *call)),
        }
    }
}

/// A call over HTTP or gRPC, and not a span around several.
pub(super) fn is_request(span: &Span) -> bool {
    const MARKS: [&str; 9] = ["http.", "url.", "rpc.", "grpc.", "server.", "net.", "network.", "upstream_", "peer."];
    let is_method = |name: &str| ["get", "post", "put", "patch", "delete", "head"].contains(&name.to_lowercase().as_str());
    let verb = || span.name.as_deref().and_then(|name| name.split(' ').next()).is_some_and(is_method);
    span.tags.keys().any(|key| MARKS.iter().any(|mark| key.starts_with(mark))) || verb()
}

/// The path of a request, longer than `/`, without templates.
pub(super) fn path(span: &Span) -> Option<&str> {
    let path = span.path().or_else(|| span.tag("http.route"))?.trim_end_matches('/');
    (path.len() > 1 && !path.contains(['{', ':', '<', '*'])).then_some(path)
}
