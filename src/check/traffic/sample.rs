//! Sends a series of requests and reduces each answer to a sample.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::hop::reply::{Call, Headers, Injected, Tree};

use crate::check::chain::evidence::CALLER;
use crate::check::chain::probe::Probe;
use crate::check::chain::{self, BreakPoint};
use crate::check::envoy::gateway;
use crate::check::envoy::suggestions::{HintContext, HopRef};
use crate::check::propagation;
use crate::check::reachability::client::{CheckClient, FrontAnswer, RequestFailure};
use crate::report::{Finding, Hint, ProgressLine};

/// One hop in one request.
#[derive(Debug, Clone)]
pub(crate) struct HopSample {
    pub(crate) hop: HopRef,
    /// Who called it: of the first hop without a host.
    pub(crate) caller: HopRef,
    /// How it was asked; empty when its reply does not show it.
    pub(crate) protocol: String,
    pub(crate) version: String,
    pub(crate) lane: String,
    pub(crate) attempt: u32,
    pub(crate) identity: Option<String>,
    /// Milliseconds that the hop itself took, without its calls.
    pub(crate) own_ms: f64,
    /// Milliseconds that it took with them.
    pub(crate) took_ms: f64,
    /// What slowed it or bound it on purpose, as its reply says.
    pub(crate) injected: Vec<String>,
    /// How many calls of its hop this answer stands for: those that a proxy repeated are not in the reply, and neither are the
    /// calls that each of them made in turn.
    pub(crate) calls: u32,
}

#[cfg(test)]
impl HopSample {
    /// An answer of 1 ms, at the first attempt, of a hop in the usual version and lane.
    pub(crate) fn for_tests(name: &str, hostname: &str) -> Self {
        Self {
            hop: HopRef { name: name.to_owned(), hostname: hostname.to_owned(), url: String::new() },
            caller: HopRef::default(),
            protocol: String::new(),
            version: "v1".to_owned(),
            lane: "base".to_owned(),
            attempt: 1,
            identity: None,
            own_ms: 1.0,
            took_ms: 1.0,
            injected: Vec::new(),
            calls: 1,
        }
    }
}

/// How one request ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// 2xx with the chain's reply, and nothing broke.
    Fine,
    /// The tree shows where it broke.
    Broke(Vec<BreakPoint>),
    /// Something answered that is no hop.
    Foreign { status: u16, text: String, hint: Hint },
    /// No answer.
    Failed(RequestFailure),
}

/// One request, reduced to what the statistics need.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Since the start of the series.
    pub(crate) at: Duration,
    pub(crate) took: Duration,
    pub(crate) outcome: Outcome,
    pub(crate) hops: Vec<HopSample>,
    /// The sampling decision of the first hop.
    pub(crate) sampled: Option<bool>,
    /// Where "sampled" became "not sampled" behind it: the hop before and the hop behind.
    pub(crate) ends: Option<(String, String)>,
    /// Between the call of a hop and the answer of the one that it called: both, and milliseconds.
    pub(crate) gaps: Vec<(String, String, f64)>,
    /// Where its trace or its headers broke.
    pub(crate) damage: Vec<Finding>,
}

impl Sample {
    /// Nothing is known yet of the hops.
    pub(crate) fn new(at: Duration, took: Duration, outcome: Outcome) -> Self {
        let (hops, gaps, damage) = (Vec::new(), Vec::new(), Vec::new());
        Self { at, took, outcome, hops, sampled: None, ends: None, gaps, damage }
    }

    pub(crate) fn is_fine(&self) -> bool {
        matches!(self.outcome, Outcome::Fine)
    }

    /// The time of a call that its answer did not take. Of a repeated call the earlier attempts lie in it, too: it says nothing.
    fn gap(&mut self, from: &str, reply: &Tree, call_ms: f64) {
        if reply.attempt <= 1 {
            self.gaps.push((from.to_owned(), reply.service.clone(), (call_ms - reply.duration_ms).max(0.0)));
        }
    }
}

/// What the requests of a series have in common.
#[derive(Clone)]
pub(crate) struct Series {
    pub(crate) client: Arc<CheckClient>,
    pub(crate) context: HintContext,
    /// Sent with every request.
    pub(crate) headers: Headers,
    /// Each request brings headers of its own, as a probe does: what breaks them shows.
    pub(crate) is_marked: bool,
}

impl Series {
    pub(crate) fn new(client: Arc<CheckClient>, context: HintContext, headers: Headers) -> Self {
        Self { client, context, headers, is_marked: false }
    }

    /// Sends `all` requests at the client's rate, those within `span`, each on time whether or not the ones before were
    /// answered. Ends early when `stop` turns true, with what came until then.
    pub(crate) async fn run(
        &self,
        all: u64,
        span: Duration,
        stop: &mut watch::Receiver<bool>,
        progress: &ProgressLine,
        what: &str,
    ) -> Vec<Sample> {
        let mut samples = Vec::new();
        self.run_each(all, span, stop, progress, what, |sample| samples.push(sample)).await;
        samples.sort_by_key(|sample| sample.at);
        samples
    }

    /// As [`Series::run`], with each sample given to `take` when its request has ended.
    pub(crate) async fn run_each(
        &self,
        all: u64,
        span: Duration,
        stop: &mut watch::Receiver<bool>,
        progress: &ProgressLine,
        what: &str,
        mut take: impl FnMut(Sample),
    ) {
        let start = Instant::now();
        let starved = Arc::new(Starvation::new());
        let mut watching = JoinSet::new();
        let watched = starved.clone();
        watching.spawn(async move { watched.watch().await });
        let mut in_flight: JoinSet<Sample> = JoinSet::new();
        let (mut sent, mut ended) = (0, 0);
        let mut take = |done: Result<Sample, _>| {
            if let Ok(sample) = done {
                ended += 1;
                take(sample);
            }
            ended
        };
        let mut shown = 0;
        while sent < all && start.elapsed() < span && !*stop.borrow() {
            tokio::select! {
                () = self.client.turn() => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            if start.elapsed() >= span {
                break;
            }
            sent += 1;
            let (series, starved) = (self.clone(), starved.clone());
            in_flight.spawn(async move { series.one(start, &starved).await });
            while let Some(done) = in_flight.try_join_next() {
                shown = take(done);
            }
            progress.show(what, shown, all);
        }
        loop {
            tokio::select! {
                done = in_flight.join_next() => match done {
                    Some(done) => shown = take(done),
                    None => break,
                },
                // Requests in flight are dropped: their outcome is unknown, which is not a failure.
                _ = stop.wait_for(|stop| *stop), if !*stop.borrow() => {}
            }
            if *stop.borrow() {
                in_flight.abort_all();
                break;
            }
            progress.show(what, shown, all);
        }
        progress.clear();
    }

    /// Calls of the first hop over one connection, where it is called over gRPC, one after the other in the client's turn.
    pub(crate) async fn over_one_connection(&self, all: u64, stop: &watch::Receiver<bool>) -> Vec<Sample> {
        let mut samples = Vec::new();
        let Some(front) = self.client.grpc() else { return samples };
        self.client.turn().await;
        let Ok(mut connection) = front.connect().await else { return samples };
        let start = Instant::now();
        while (samples.len() as u64) < all && !*stop.borrow() {
            self.client.turn().await;
            let (at, sent) = (start.elapsed(), Instant::now());
            let result = connection.call(front, &self.headers).await;
            let has_failed = result.is_err();
            let probe = Probe { headers: self.headers.clone() };
            samples.push(digest(result, &probe, at, sent.elapsed(), Duration::ZERO, &self.context));
            if has_failed {
                break;
            }
        }
        samples
    }

    async fn one(&self, start: Instant, starved: &Starvation) -> Sample {
        let at = start.elapsed();
        let mut probe = Probe { headers: self.headers.clone() };
        if self.is_marked {
            probe.headers.0.extend(Probe::ordinary().headers.0);
        }
        let (sent, before) = (Instant::now(), starved.so_far());
        let result = self.client.send(self.client.url.clone(), &probe.headers).await;
        digest(result, &probe, at, sent.elapsed(), starved.so_far().saturating_sub(before), &self.context)
    }
}

/// How long this process wanted to run and could not, on a machine that is busy with others: no hop and no proxy took that time.
struct Starvation {
    start: Instant,
    late_us: AtomicU64,
    /// When it last ran.
    last_us: AtomicU64,
}

impl Starvation {
    const TICK: Duration = Duration::from_millis(10);
    /// The timer's own resolution, and a little.
    const EXACT: Duration = Duration::from_millis(13);

    fn new() -> Self {
        Self { start: Instant::now(), late_us: AtomicU64::new(0), last_us: AtomicU64::new(0) }
    }

    fn us(time: Duration) -> u64 {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
    }

    /// What is open: the time since it last ran, beyond a tick.
    fn open(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.last_us.load(Ordering::Relaxed)).saturating_sub(Self::us(Self::EXACT))
    }

    fn so_far(&self) -> Duration {
        Duration::from_micros(self.late_us.load(Ordering::Relaxed) + self.open(Self::us(self.start.elapsed())))
    }

    async fn watch(&self) {
        loop {
            tokio::time::sleep(Self::TICK).await;
            let now = Self::us(self.start.elapsed());
            self.late_us.fetch_add(self.open(now), Ordering::Relaxed);
            self.last_us.store(now, Ordering::Relaxed);
        }
    }
}

/// Reduces one answer to what the statistics need.
/// `starved`: of the time that it took, what this process lost by itself.
fn digest(
    result: Result<FrontAnswer, RequestFailure>,
    probe: &Probe,
    at: Duration,
    took: Duration,
    starved: Duration,
    hints: &HintContext,
) -> Sample {
    let mut sample = Sample::new(at, took, Outcome::Fine);
    match result {
        Err(failure) => sample.outcome = Outcome::Failed(failure),
        Ok(answer) => match answer.tree() {
            None => {
                let (text, hint) = gateway::front(&answer, hints);
                sample.outcome = Outcome::Foreign { status: answer.status, text, hint };
            }
            Some(tree) => {
                sample.sampled = tree.sampled;
                sample.ends = sampling_ends(&tree);
                sample.damage = propagation::damage(probe, &tree, hints);
                if !hints.evidence.is_front_foreign {
                    sample.gap(CALLER, &tree, answer.waited.saturating_sub(starved).as_secs_f64() * 1000.0);
                }
                walk(&tree, &hints.url, &HopRef::default(), attempts(&tree), &mut sample);
                let breaks = chain::breaks(&tree, &hints.url);
                if !breaks.is_empty() || answer.status >= 300 {
                    sample.outcome = Outcome::Broke(breaks);
                }
            }
        },
    }
    sample
}

fn sampling_ends(tree: &Tree) -> Option<(String, String)> {
    tree.upstreams.iter().flat_map(Call::replies).find_map(|reply| {
        if tree.sampled == Some(true) && reply.sampled == Some(false) {
            return Some((tree.service.clone(), reply.service.clone()));
        }
        sampling_ends(reply)
    })
}

/// `calls`: those that this answer stands for.
fn walk(tree: &Tree, url: &str, caller: &HopRef, calls: u32, sample: &mut Sample) {
    let hop = hop_sample(tree, url, caller, calls);
    let own = hop.hop.clone();
    sample.hops.push(hop);
    let mut before: Option<(&str, u32)> = None;
    for (call, attempt, reply) in
        chain::numbered(tree).filter_map(|(call, attempt)| Some((call, attempt, call.reply.as_deref()?)))
    {
        sample.gap(&tree.service, reply, call.duration_ms);
        // A hop shows each of its own attempts, a proxy the last.
        let shown = before.filter(|(url, attempt)| *url == call.url && *attempt < reply.attempt).map_or(0, |(_, shown)| shown);
        before = Some((&call.url, reply.attempt));
        let at = sample.hops.len();
        walk(reply, &call.url, &own, calls.saturating_mul(attempts(reply) - shown), sample);
        sample.hops[at].attempt = sample.hops[at].attempt.max(attempt);
    }
    let embedded = tree.upstreams.iter().flat_map(|call| &call.embedded);
    embedded.for_each(|reply| walk(reply, "", &HopRef::default(), calls.saturating_mul(attempts(reply)), sample));
}

fn attempts(reply: &Tree) -> u32 {
    reply.attempt.max(1)
}

/// The most calls that a hop received for one request.
pub(crate) fn most_calls(samples: &[Sample], name: &str) -> u32 {
    let of = |sample: &Sample| {
        let answers = sample.hops.iter().filter(|answer| answer.hop.name == name);
        answers.fold(0_u32, |all, answer| all.saturating_add(answer.calls))
    };
    samples.iter().map(of).max().unwrap_or(0)
}

fn hop_sample(tree: &Tree, url: &str, caller: &HopRef, calls: u32) -> HopSample {
    let times = tree.upstreams.iter().map(|call| call.duration_ms);
    let (sum, longest) = times.fold((0.0, 0.0_f64), |(sum, longest), ms| (sum + ms, longest.max(ms)));
    // In sequence the calls add up; in parallel the longest counts, and their sum would exceed the hop's own time.
    let below = if sum <= tree.duration_ms { sum } else { longest };
    HopSample {
        hop: HopRef::of(tree, url),
        caller: caller.clone(),
        protocol: tree.protocol.as_deref().unwrap_or_default().to_owned(),
        version: tree.version.clone(),
        lane: tree.lane.clone(),
        attempt: tree.attempt,
        identity: tree.client.identity.as_deref().map(str::to_owned),
        took_ms: tree.duration_ms,
        injected: tree.injected.as_ref().map(slowed).unwrap_or_default(),
        calls,
        own_ms: (tree.duration_ms - below).max(0.0),
    }
}

/// What a hop did on purpose that is no failure and breaks no trace.
fn slowed(injected: &Injected) -> Vec<String> {
    let delay = injected.delay_ms.map(|ms| format!("a delay of {ms} ms"));
    delay.into_iter().chain(injected.faults.iter().cloned()).collect()
}

/// Every answer of the hops of one name.
pub(crate) struct HopSamples<'a> {
    pub(crate) name: &'a str,
    pub(crate) answers: Vec<&'a HopSample>,
}

impl<'a> HopSamples<'a> {
    /// How many answers have each value of a property, in the order of the values.
    pub(crate) fn tally(&self, of: impl Fn(&'a HopSample) -> &'a str) -> BTreeMap<&'a str, u64> {
        let mut counts = BTreeMap::new();
        for answer in &self.answers {
            *counts.entry(of(answer)).or_insert(0) += 1;
        }
        counts
    }
}

/// The answers by hop, in the order in which the hops first answered.
pub(crate) fn by_hop<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Vec<HopSamples<'a>> {
    let mut hops: Vec<HopSamples<'a>> = Vec::new();
    for answer in samples.into_iter().flat_map(|sample| &sample.hops) {
        match hops.iter_mut().find(|hop| hop.name == answer.hop.name) {
            Some(hop) => hop.answers.push(answer),
            None => hops.push(HopSamples { name: &answer.hop.name, answers: vec![answer] }),
        }
    }
    hops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_time_in_which_this_process_does_not_run_is_counted() {
        let starved = Arc::new(Starvation::new());
        let watched = starved.clone();
        let watching = tokio::spawn(async move { watched.watch().await });
        let before = starved.so_far();
        // The one thread of this runtime stands still, as a process does that gets no processor.
        std::thread::sleep(Duration::from_millis(300));
        let late = starved.so_far() - before;
        assert!(late >= Duration::from_millis(250), "{late:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(starved.so_far() - before >= late, "it is counted once it runs again, too");
        watching.abort();
    }
}
