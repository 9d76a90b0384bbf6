//! Random systems: services that call each other, their tracers, and one thing that is wrong with them, or nothing.
//!
//! It makes spans from what a request does and from what each kind of tracer reports of it. How `doctor` judges is not known here.

use serde_json::{Value, json};

/// Numbers that follow from a seed: splitmix64.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub(super) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    pub(super) fn chance(&mut self, p: f64) -> bool {
        self.share() < p
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tracer {
    OpenTelemetry,
    Zipkin,
    Envoy,
}

/// What one service does wrong, in this share of its requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    /// Its calls carry no context; `spans`: they are reported all the same.
    Drops { spans: bool, rate: f64 },
    /// It begins a trace whatever it receives.
    Ignores,
    /// It continues contexts and reports nothing.
    Silent,
    /// It copies the headers that it received to its calls, untouched, and reports nothing.
    Forwards { rate: f64 },
    /// It loses some of its server spans.
    Loses { rate: f64 },
    /// It decides about sampling by itself.
    Samples { rate: f64 },
    /// It passes on what it received beside spans of its own.
    Stale,
    /// Its server spans are marked as client spans.
    Kind,
}

/// Somebody outside, without a tracer, who asks several services on the paths of users.
#[derive(Debug, Clone, PartialEq)]
enum Asks {
    Nobody,
    /// All of them now and then, with this many microseconds between two; `waits`: the next one when the last has answered.
    Monitor {
        gap: i64,
        waits: bool,
    },
    /// These, each time that a user comes, one after the other.
    Page {
        services: Vec<usize>,
        gap: i64,
    },
}

/// How a caller's tracer names whom it calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    Nobody,
    /// Zipkin's remote endpoint.
    Endpoint,
    /// This attribute has the name of the host.
    Attribute(&'static str),
    /// This attribute has the URL.
    Url(&'static str),
    /// This attribute has the name of the host with namespace and domain of the cluster.
    Domain(&'static str),
}

pub(super) const NAMINGS: [Naming; 9] = [
    Naming::Endpoint,
    Naming::Attribute("peer.service"),
    Naming::Attribute("server.address"),
    Naming::Attribute("net.peer.name"),
    Naming::Attribute("http.host"),
    Naming::Url("url.full"),
    Naming::Url("http.url"),
    Naming::Domain("server.address"),
    Naming::Nobody,
];

pub(super) struct System {
    pub(super) names: Vec<String>,
    tracers: Vec<Tracer>,
    /// Whom each service calls, and how often.
    calls: Vec<Vec<(usize, f64)>>,
    entries: Vec<usize>,
    skews: Vec<i64>,
    pub(super) faulty: Option<(usize, Fault)>,
    /// Between two requests on average, microseconds.
    gap: f64,
    naming: Naming,
    /// The host under which each service is called, and what a load balancer there takes, microseconds.
    hosts: Vec<(String, i64)>,
    asks: Asks,
}

#[derive(Clone, Copy)]
struct Context {
    trace: u64,
    span: u64,
    sampled: bool,
}

impl System {
    pub(super) fn random(seed: u64, fault: bool) -> Self {
        let mut r = Random::new(seed);
        let n = 4 + r.below(7) as usize;
        let names: Vec<String> = (0..n).map(|i| format!("{}{i}", ["orders", "cart", "rates", "stock", "mail"][i % 5])).collect();
        let mesh = r.below(4);
        let tracers = (0..n)
            .map(|_| match mesh {
                0 => Tracer::Envoy,
                1 => Tracer::OpenTelemetry,
                2 => Tracer::Zipkin,
                _ => [Tracer::OpenTelemetry, Tracer::Zipkin][r.below(2) as usize],
            })
            .collect();
        let mut calls = vec![Vec::new(); n];
        // Everybody is called by somebody before it, so that every service is reached.
        for callee in 1..n {
            let caller = r.below(callee as u64) as usize;
            calls[caller].push((callee, [1.0, 1.0, 0.8, 0.6][r.below(4) as usize]));
            if r.chance(0.2) {
                let other = r.below(callee as u64) as usize;
                if other != caller {
                    calls[other].push((callee, 0.7));
                }
            }
        }
        let mut entries = vec![0];
        if r.chance(0.3) {
            entries.push(r.below(n as u64) as usize);
        }
        let skewed = r.chance(0.4);
        let skews = (0..n).map(|_| if skewed && r.chance(0.4) { r.below(3_000_000) as i64 - 1_500_000 } else { 0 }).collect();
        let gap = [20_000.0, 200_000.0, 2_000_000.0, 15_000_000.0][r.below(4) as usize];
        let naming = if r.chance(0.6) { NAMINGS[r.below(8) as usize] } else { Naming::Nobody };
        let aliased = r.chance(0.4);
        let hosts =
            names.iter().map(|name| if aliased && r.chance(0.4) { alias(&mut r, name) } else { (name.clone(), 0) }).collect();
        let mut system = Self { names, tracers, calls, entries, skews, faulty: None, gap, naming, hosts, asks: Asks::Nobody };
        if fault {
            system.plant(&mut r);
        }
        system
    }

    /// A healthy system with a monitor or a page that asks its services itself.
    pub(super) fn asked(seed: u64) -> Self {
        let mut system = Self::random(seed, false);
        let mut r = Random::new(seed ^ 0x6d6f);
        system.gap = system.gap.max(200_000.0);
        let gap = [1_000, 4_000, 20_000, 150_000][r.below(4) as usize];
        let several = 2 + r.below(3) as usize;
        system.asks = match r.below(3) {
            0 => Asks::Page { services: (0..several).map(|_| r.below(system.names.len() as u64) as usize).collect(), gap },
            n => Asks::Monitor { gap, waits: n == 1 },
        };
        system
    }

    /// A system in which one service forwards headers in this share of its requests; hosts' clocks differ by `skew` microseconds.
    pub(super) fn forwarding(seed: u64, rate: f64, skew: i64, naming: Naming) -> Self {
        let mut system = Self::random(seed, false);
        let mut r = Random::new(seed ^ 0xf0f0);
        let inner: Vec<usize> = (1..system.names.len()).filter(|i| !system.entries.contains(i)).collect();
        let through: Vec<usize> = inner.iter().copied().filter(|i| !system.calls[*i].is_empty()).collect();
        let service = *through.get(r.below(through.len().max(1) as u64) as usize).unwrap_or(&inner[0]);
        if through.is_empty() {
            let last = system.names.len() - 1;
            let callee = if service == last { last - 1 } else { last };
            system.calls[service].push((callee.max(1), 1.0));
            system.calls[callee].retain(|(called, _)| *called != service);
        }
        system.skews.iter_mut().for_each(|of| *of = [0, skew, -skew][r.below(3) as usize]);
        system.naming = naming;
        system.hosts[service] = (system.names[service].clone(), 0);
        system.faulty = Some((service, Fault::Forwards { rate }));
        system
    }

    /// Whether each caller's spans name the faulty service.
    pub(super) fn is_named(&self) -> bool {
        let service = self.faulty.unwrap().0;
        let calls = |caller: &usize| self.calls[*caller].iter().any(|(callee, _)| *callee == service);
        self.naming != Naming::Nobody || (0..self.names.len()).filter(calls).all(|caller| self.tracers[caller] == Tracer::Envoy)
    }

    /// The name under which others reach a service.
    pub(super) fn host(&self, service: usize) -> &str {
        &self.hosts[service].0
    }

    /// The attributes of a call, and the name of its remote endpoint.
    fn peer(&self, caller: usize, callee: usize) -> (Vec<(&'static str, String)>, Option<String>) {
        let host = self.hosts[callee].0.clone();
        let is_address = host.parse::<std::net::IpAddr>().is_ok();
        let mut tags = match self.tracers[caller] {
            Tracer::Envoy => {
                // The mesh knows the name behind an address.
                let host = if is_address { &self.names[callee] } else { &host };
                let cluster = format!("outbound|80||{host}.shop.svc.cluster.local");
                return (vec![("component", "proxy".to_owned()), ("upstream_cluster", cluster)], None);
            }
            Tracer::OpenTelemetry => vec![("otel.scope.name", "http".to_owned())],
            Tracer::Zipkin => vec![],
        };
        match self.naming {
            Naming::Nobody => {}
            Naming::Endpoint => return (tags, Some(host)),
            Naming::Attribute(key) => tags.push((key, host)),
            Naming::Url(key) => tags.push((key, format!("http://{host}:8080/x"))),
            Naming::Domain(key) if is_address => tags.push((key, host)),
            Naming::Domain(key) => tags.push((key, format!("{host}.shop.svc.cluster.local"))),
        }
        (tags, None)
    }

    fn plant(&mut self, r: &mut Random) {
        let rate = [1.0, 1.0, 0.5, 0.2, 0.1][r.below(5) as usize];
        let callers: Vec<usize> = (0..self.names.len()).filter(|i| !self.calls[*i].is_empty()).collect();
        let inner: Vec<usize> = (1..self.names.len()).filter(|i| !self.entries.contains(i)).collect();
        let through: Vec<usize> = inner.iter().copied().filter(|i| !self.calls[*i].is_empty()).collect();
        let pick = |r: &mut Random, from: &[usize]| from.get(r.below(from.len().max(1) as u64) as usize).copied();
        let otel = |service: usize| self.tracers[service] != Tracer::Envoy;
        let planted = match r.below(8) {
            0..=2 => pick(r, &callers).map(|s| (s, Fault::Drops { spans: r.chance(0.6) || !otel(s), rate })),
            3 => pick(r, &inner).filter(|s| otel(*s)).map(|s| (s, Fault::Ignores)),
            4 => pick(r, &through).map(|s| (s, Fault::Silent)),
            5 => pick(r, &through).map(|s| (s, Fault::Loses { rate: rate.min(0.5) })),
            6 => pick(r, &inner).map(|s| (s, Fault::Samples { rate: rate.min(0.5) })),
            _ if r.chance(0.5) => pick(r, &through).filter(|s| otel(*s)).map(|s| (s, Fault::Stale)),
            _ => pick(r, &inner).filter(|s| otel(*s)).map(|s| (s, Fault::Kind)),
        };
        self.faulty = planted.or_else(|| Some((callers[0], Fault::Drops { spans: true, rate: 1.0 })));
    }

    fn fault(&self, service: usize) -> Option<Fault> {
        self.faulty.filter(|(faulty, _)| *faulty == service).map(|(_, fault)| fault)
    }

    /// The spans of this many requests, and of timers that call services by themselves.
    pub(super) fn spans(&self, seed: u64, requests: usize) -> Vec<Value> {
        let mut made = Made { system: self, r: Random::new(seed ^ 0xabcd), spans: Vec::new() };
        let begin = 1_780_000_000_000_000i64;
        let mut now = begin as f64;
        for _ in 0..requests {
            now += -self.gap * (1.0 - made.r.share()).ln();
            let entry = self.entries[made.r.below(self.entries.len() as u64) as usize];
            match &self.asks {
                Asks::Page { services, gap } => made.ask(&[&[entry], services.as_slice()].concat(), now as i64, *gap, true),
                _ => made.entry(entry, now as i64),
            }
        }
        let long = now - begin as f64;
        // A timer that calls a service from outside every trace, and one that is a service and traces its own work.
        for _ in 0..20 {
            let at = begin + (made.r.share() * long) as i64;
            let callee = made.r.below(self.names.len() as u64) as usize;
            if self.faulty.is_none_or(|(faulty, _)| faulty != callee) && made.r.chance(0.5) {
                made.entry(callee, at);
            } else {
                let id = made.r.next() | 1;
                made.push(id, id, None, "nightly-timer", "CLIENT", "job", at, 900, (&[], None), 0);
            }
        }
        if let Asks::Monitor { gap, waits } = self.asks {
            let all: Vec<usize> = (0..self.names.len()).collect();
            (0..25).for_each(|n| made.ask(&all, begin + (long * (n as f64 + 0.5) / 25.0) as i64, gap, waits));
        }
        made.spans
    }
}

/// Another name under which a service is reached, and what stands there takes.
fn alias(r: &mut Random, name: &str) -> (String, i64) {
    let n = r.below(200);
    match r.below(8) {
        0 => (format!("{name}-svc"), 0),
        1 => (format!("{name}-7c9d5b8f6d-x2k4q"), 0),
        2 => (format!("{name}service"), 0),
        3 | 4 => (format!("10.1.2.{n}"), 0),
        5 => (["atlas", "hermes", "titan", "juno"][r.below(4) as usize].to_owned(), 0),
        6 => (format!("lb-{n}"), 100 + r.below(1_000) as i64),
        _ => (format!("vip{n}"), 100 + r.below(1_000) as i64),
    }
}

struct Made<'a> {
    system: &'a System,
    r: Random,
    spans: Vec<Value>,
}

impl Made<'_> {
    #[expect(clippy::too_many_arguments, reason = "a span has that many fields")]
    fn push(
        &mut self,
        trace: u64,
        id: u64,
        parent: Option<u64>,
        service: &str,
        kind: &str,
        name: &str,
        start: i64,
        took: i64,
        (tags, remote): (&[(&str, String)], Option<String>),
        skew: i64,
    ) {
        let tags: serde_json::Map<String, Value> = tags.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let mut span = json!({"traceId": format!("{trace:016x}"), "id": format!("{id:016x}"), "kind": kind, "name": name,
            "timestamp": start + skew, "duration": took.max(1), "localEndpoint": {"serviceName": service}, "tags": tags});
        if let Some(parent) = parent {
            span["parentId"] = json!(format!("{parent:016x}"));
        }
        if let Some(remote) = remote {
            span["remoteEndpoint"] = json!({"serviceName": remote});
        }
        self.spans.push(span);
    }

    fn entry(&mut self, service: usize, at: i64) {
        self.serve(service, None, at, 0);
    }

    /// Somebody outside asks these services, one after the other.
    fn ask(&mut self, services: &[usize], mut at: i64, gap: i64, waits: bool) {
        for &service in services {
            let took = self.serve(service, None, at, 0);
            at += gap / 2 + self.r.below(gap as u64 / 2) as i64 + if waits { took } else { 0 };
        }
    }

    /// Serves a request that arrives at `at`; returns how long it took.
    fn serve(&mut self, service: usize, received: Option<Context>, at: i64, depth: usize) -> i64 {
        let system = self.system;
        let fault = system.fault(service);
        let envoy = system.tracers[service] == Tracer::Envoy;
        let received = received.filter(|_| fault != Some(Fault::Ignores));
        let own = self.r.next() | 1;
        let begun = received.is_none();
        let mut context =
            Context { trace: received.map_or(own, |c| c.trace), span: own, sampled: received.is_none_or(|c| c.sampled) };
        if let Some(Fault::Samples { rate }) = fault {
            context.sampled &= !self.r.chance(rate);
        }
        let forwards = matches!(fault, Some(Fault::Forwards { rate }) if self.r.chance(rate));
        let reports = context.sampled && fault != Some(Fault::Silent) && !forwards;
        let lost = matches!(fault, Some(Fault::Loses { rate }) if self.r.chance(rate));
        let drops = matches!(fault, Some(Fault::Drops { rate, .. }) if self.r.chance(rate));
        let mut took = 300 + self.r.below(4_000) as i64;
        let calls = if depth < 8 { system.calls[service].clone() } else { Vec::new() };
        for (callee, share) in calls {
            if !self.r.chance(share) {
                continue;
            }
            let call_at = at + took;
            let call = self.r.next() | 1;
            let mut sent = Context { span: call, ..context };
            let mut parent = Some(own);
            let mut reported = reports;
            if let Some(Fault::Drops { spans, .. }) = fault.filter(|_| drops) {
                reported &= spans;
                if envoy {
                    // The app lost the headers: its proxy begins a trace.
                    (sent.trace, parent) = (call, None);
                }
            }
            let goes_on = match fault {
                Some(Fault::Drops { .. }) if drops && !envoy => None,
                Some(Fault::Stale) => Some(received.unwrap_or(sent)),
                _ if forwards => received,
                _ => Some(sent),
            };
            let wire = 200 + self.r.below(800) as i64 + system.hosts[callee].1;
            let inner = self.serve(callee, goes_on, call_at + wire, depth + 1);
            let waited = inner + 2 * wire;
            if reported {
                let name = &system.names[service];
                let service_name = if envoy { format!("{name}.shop") } else { name.clone() };
                let (tags, remote) = system.peer(service, callee);
                self.push(
                    sent.trace,
                    call,
                    parent,
                    &service_name,
                    "CLIENT",
                    "GET",
                    call_at,
                    waited,
                    (&tags, remote),
                    system.skews[service],
                );
            }
            took += waited + 50 + self.r.below(1_500) as i64;
        }
        took += 100 + self.r.below(1_000) as i64;
        if reports && !lost {
            let name = &system.names[service];
            let (service_name, tags) = match system.tracers[service] {
                Tracer::Envoy => (format!("{name}.shop"), vec![("component", "proxy".to_owned())]),
                Tracer::OpenTelemetry => (name.clone(), vec![("otel.scope.name", "http".to_owned())]),
                Tracer::Zipkin => (name.clone(), vec![]),
            };
            let parent = received.map(|c| c.span).filter(|_| !begun);
            let kind = if fault == Some(Fault::Kind) { "CLIENT" } else { "SERVER" };
            self.push(context.trace, own, parent, &service_name, kind, "GET /x", at, took, (&tags, None), system.skews[service]);
        }
        took
    }
}
