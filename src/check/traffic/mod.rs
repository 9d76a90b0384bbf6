//! Many requests, and what they say together: success, latency, versions, retries, identities.

pub(crate) mod lanes;
pub(crate) mod stats;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::hop::reply::{Headers, Tree};

use crate::check::chain::expect::{Split, is_named};
use crate::check::chain::xray::{CALLER, Proxy, Xray};
use crate::check::chain::{self, Break};
use crate::check::envoy::gateway;
use crate::check::envoy::hints::{Hop, Place, Runner};
use crate::check::reachability::client::{Answer, Client, Failure};
use crate::check::report::{CheckId, Finding, Hint, Progress};
use crate::check::traffic::stats::{ALPHA, TELLING};

/// One hop in one request.
#[derive(Debug, Clone)]
pub(crate) struct HopSeen {
    pub(crate) hop: Hop,
    pub(crate) version: String,
    pub(crate) lane: String,
    pub(crate) attempt: u32,
    pub(crate) identity: Option<String>,
    /// Milliseconds that the hop itself took, its calls taken off.
    pub(crate) own_ms: f64,
}

/// How one request ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// 2xx with the chain's reply, and nothing broke.
    Fine,
    /// The tree shows where it broke.
    Broke(Vec<Break>),
    /// Something answered that is no hop.
    Foreign { status: u16, text: String, hint: Hint },
    /// No answer.
    Failed(Failure),
}

/// One request, digested.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Since the start of the series.
    pub(crate) at: Duration,
    pub(crate) took: Duration,
    pub(crate) outcome: Outcome,
    pub(crate) hops: Vec<HopSeen>,
    /// The first hop's word about sampling.
    pub(crate) sampled: Option<bool>,
    pub(crate) has_trace: bool,
}

impl Sample {
    pub(crate) fn is_fine(&self) -> bool {
        matches!(self.outcome, Outcome::Fine)
    }
}

/// What the requests of a series have in common.
#[derive(Clone)]
pub(crate) struct Series {
    pub(crate) client: Arc<Client>,
    pub(crate) place: Place,
    /// What every request carries.
    pub(crate) headers: Headers,
}

impl Series {
    /// Sends `count` requests at the client's rate, each in its turn whether or not the ones before were answered. Ends early
    /// when `stop` turns true, with what came until then.
    pub(crate) async fn run(&self, count: u64, stop: &mut watch::Receiver<bool>, progress: &Progress, what: &str) -> Vec<Sample> {
        self.run_while(|sent, _| sent < count, count, stop, progress, what).await
    }

    /// The same for a span of time.
    pub(crate) async fn run_for(
        &self,
        span: Duration,
        rate: f64,
        stop: &mut watch::Receiver<bool>,
        progress: &Progress,
        what: &str,
    ) -> Vec<Sample> {
        let all = (span.as_secs_f64() * rate).ceil() as u64;
        self.run_while(|_, elapsed| elapsed < span, all, stop, progress, what).await
    }

    async fn run_while(
        &self,
        go_on: impl Fn(u64, Duration) -> bool,
        all: u64,
        stop: &mut watch::Receiver<bool>,
        progress: &Progress,
        what: &str,
    ) -> Vec<Sample> {
        let start = Instant::now();
        let mut flying: JoinSet<Sample> = JoinSet::new();
        let mut samples = Vec::new();
        let mut sent = 0;
        while go_on(sent, start.elapsed()) && !*stop.borrow() {
            tokio::select! {
                () = self.client.turn() => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            if !go_on(sent, start.elapsed()) {
                break;
            }
            sent += 1;
            let series = self.clone();
            flying.spawn(async move { series.one(start).await });
            while let Some(done) = flying.try_join_next() {
                samples.extend(done.ok());
            }
            progress.show(what, samples.len() as u64, all);
        }
        loop {
            tokio::select! {
                done = flying.join_next() => match done {
                    Some(sample) => samples.extend(sample.ok()),
                    None => break,
                },
                // Those under way are given up: their fate is unknown, and unknown is not failed.
                _ = stop.wait_for(|stop| *stop), if !*stop.borrow() => {}
            }
            if *stop.borrow() {
                flying.abort_all();
                break;
            }
            progress.show(what, samples.len() as u64, all);
        }
        progress.clear();
        samples.sort_by_key(|sample| sample.at);
        samples
    }

    async fn one(&self, start: Instant) -> Sample {
        let at = start.elapsed();
        let sent = Instant::now();
        let result = self.client.send(self.client.url.clone(), &self.headers).await;
        digest(result, at, sent.elapsed(), &self.place)
    }
}

/// Boils one answer down to what the statistics need.
pub(crate) fn digest(result: Result<Answer, Failure>, at: Duration, took: Duration, place: &Place) -> Sample {
    let mut sample = Sample { at, took, outcome: Outcome::Fine, hops: Vec::new(), sampled: None, has_trace: false };
    match result {
        Err(failure) => sample.outcome = Outcome::Failed(failure),
        Ok(answer) => match answer.tree() {
            None => {
                let (text, hint) = gateway::front(&answer, place);
                sample.outcome = Outcome::Foreign { status: answer.status, text, hint };
            }
            Some(tree) => {
                sample.sampled = tree.sampled;
                sample.has_trace = tree.trace_id.is_some();
                chain::visit(&tree, &place.url, 0, &mut |hop, url, _| sample.hops.push(seen(hop, url)));
                let breaks = chain::breaks(&tree, &place.url);
                if !breaks.is_empty() || answer.status >= 300 {
                    sample.outcome = Outcome::Broke(breaks);
                }
            }
        },
    }
    sample
}

fn seen(tree: &Tree, url: &str) -> HopSeen {
    let calls = tree.upstreams.iter().map(|call| call.duration_ms);
    let (sum, longest) = calls.fold((0.0, 0.0_f64), |(sum, longest), ms| (sum + ms, longest.max(ms)));
    // In sequence the calls add up; in parallel the longest counts, and their sum would exceed the hop's own time.
    let below = if sum <= tree.duration_ms { sum } else { longest };
    HopSeen {
        hop: Hop::of(tree, url),
        version: tree.version.clone(),
        lane: tree.lane.clone(),
        attempt: tree.attempt,
        identity: tree.client.identity.as_deref().map(str::to_owned),
        own_ms: (tree.duration_ms - below).max(0.0),
    }
}

/// Everything seen of the hops of one name, in the order in which they first answered.
pub(crate) fn by_hop(samples: &[Sample]) -> Vec<(String, Vec<&HopSeen>)> {
    let mut hops: Vec<(String, Vec<&HopSeen>)> = Vec::new();
    for seen in samples.iter().flat_map(|sample| &sample.hops) {
        match hops.iter_mut().find(|(name, _)| *name == seen.hop.name) {
            Some((_, list)) => list.push(seen),
            None => hops.push((seen.hop.name.clone(), vec![seen])),
        }
    }
    hops
}

/// What the user promised about the traffic.
pub(crate) struct Promise<'a> {
    pub(crate) success: f64,
    pub(crate) splits: &'a [Split],
}

/// The findings of the group.
pub(crate) fn findings(samples: &[Sample], xray: Option<&Xray>, promise: &Promise<'_>, place: &Place) -> Vec<Finding> {
    if samples.is_empty() {
        return vec![Finding::skip(CheckId::TrafficSuccess, "Traffic: skipped, because no request was answered before the end")];
    }
    let mut out = success(samples, promise.success, place);
    out.extend(latency(samples));
    let hops = by_hop(samples);
    if hops.is_empty() {
        return out;
    }
    out.push(versions(&hops));
    for split in promise.splits {
        out.extend(split_findings(&hops, split, place));
    }
    out.push(retries(&hops));
    out.extend(identities(&hops, xray, place));
    out
}

/// The ways in which requests failed, most frequent first.
fn failures<'a>(samples: &'a [Sample], place: &Place) -> Vec<(String, usize, Finding, Vec<&'a Sample>)> {
    let mut kinds: Vec<(String, usize, Finding, Vec<&Sample>)> = Vec::new();
    for sample in samples {
        let found: Vec<(String, Finding)> = match &sample.outcome {
            Outcome::Fine => continue,
            Outcome::Broke(breaks) => {
                breaks.iter().map(|broken| (broken.key(), broken.finding(CheckId::TrafficSuccess, place))).collect()
            }
            Outcome::Foreign { status, text, hint } => {
                let finding = Finding::fail(CheckId::TrafficSuccess, text.clone(), hint.clone());
                vec![(format!("front: {status}"), finding)]
            }
            Outcome::Failed(failure) => {
                let hint = Hint::new("The front did not answer: see Reach")
                    .run(format!("curl -sv {}", crate::check::envoy::hints::quoted(&place.url)));
                let finding = Finding::fail(CheckId::TrafficSuccess, format!("No answer from the front: {failure}"), hint);
                vec![(format!("front: {failure}"), finding)]
            }
        };
        for (key, finding) in found {
            match kinds.iter_mut().find(|(known, ..)| *known == key) {
                Some((_, count, _, list)) => {
                    *count += 1;
                    list.push(sample);
                }
                None => kinds.push((key, 1, finding, vec![sample])),
            }
        }
    }
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.1));
    kinds
}

fn success(samples: &[Sample], promised: f64, place: &Place) -> Vec<Finding> {
    const SHOWN: usize = 5;
    let all = samples.len();
    let fine = samples.iter().filter(|sample| sample.is_fine()).count();
    let rate = 100.0 * fine as f64 / all as f64;
    let data = serde_json::json!({"requests": all, "succeeded": fine, "percent": rate});
    if fine == all {
        return vec![Finding::pass(CheckId::TrafficSuccess, format!("All {all} requests succeeded")).data(data)];
    }
    let kinds = failures(samples, place);
    let lines = kinds.iter().take(SHOWN).map(|(key, count, ..)| format!("{count:>6} x {key}"));
    if rate >= promised {
        let text = format!("{fine} of {all} requests succeeded ({rate:.2} %), {promised} % promised");
        return vec![Finding::pass(CheckId::TrafficSuccess, text).lines(lines).data(data)];
    }
    kinds
        .iter()
        .take(SHOWN)
        .map(|(_, count, finding, _)| {
            let mut finding = finding.clone();
            finding.text = format!("{count} of {all} requests failed. {}", finding.text);
            finding.data(data.clone())
        })
        .collect()
}

fn latency(samples: &[Sample]) -> Vec<Finding> {
    let mut times: Vec<f64> =
        samples.iter().filter(|sample| sample.is_fine()).map(|sample| sample.took.as_secs_f64() * 1000.0).collect();
    times.sort_by(f64::total_cmp);
    let at = |q: f64| stats::percentile(&times, q);
    let (Some(p50), Some(p90), Some(p99), Some(max)) = (at(0.5), at(0.9), at(0.99), at(1.0)) else { return Vec::new() };
    let slowest = by_hop(samples)
        .into_iter()
        .filter_map(|(name, seen)| {
            let mut own: Vec<f64> = seen.iter().map(|seen| seen.own_ms).collect();
            own.sort_by(f64::total_cmp);
            Some((name, stats::percentile(&own, 0.5)?))
        })
        .max_by(|a, b| a.1.total_cmp(&b.1));
    let slowest =
        slowest.map_or_else(String::new, |(name, ms)| format!("; the slowest hop is {name}, p50 {ms:.1} ms of its own"));
    let text = format!("Latency p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, longest {max:.1} ms{slowest}");
    vec![
        Finding::pass(CheckId::TrafficLatency, text)
            .data(serde_json::json!({"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "max_ms": max})),
    ]
}

fn tally<'a>(seen: &[&'a HopSeen], of: impl Fn(&'a HopSeen) -> &'a str) -> BTreeMap<&'a str, u64> {
    let mut counts = BTreeMap::new();
    for hop in seen {
        *counts.entry(of(hop)).or_insert(0) += 1;
    }
    counts
}

fn versions(hops: &[(String, Vec<&HopSeen>)]) -> Finding {
    let mut lines = Vec::new();
    let mut data = serde_json::Map::new();
    for (name, seen) in hops {
        let versions = tally(seen, |hop| &hop.version);
        let all = seen.len() as f64;
        let shares: Vec<String> =
            versions.iter().map(|(version, count)| format!("{version} {:.1} %", 100.0 * *count as f64 / all)).collect();
        let hosts = tally(seen, |hop| &hop.hop.hostname).len();
        lines.push(format!("{name:<20} {:<30} {hosts} {}", shares.join(", "), if hosts == 1 { "host" } else { "hosts" }));
        data.insert(name.clone(), serde_json::json!(versions));
    }
    Finding::pass(CheckId::TrafficVersions, "Versions that answered, per hop").lines(lines).data(data.into())
}

fn split_findings(hops: &[(String, Vec<&HopSeen>)], split: &Split, place: &Place) -> Vec<Finding> {
    let judged: Vec<&(String, Vec<&HopSeen>)> = match &split.hop {
        Some(wanted) => hops.iter().filter(|(name, _)| is_named(name, wanted)).collect(),
        None => hops
            .iter()
            .filter(|(_, seen)| {
                let versions = tally(seen, |hop| &hop.version);
                split.shares.iter().filter(|(version, _)| versions.contains_key(version.as_str())).count() > 1
            })
            .collect(),
    };
    let routes = |hint: Hint| {
        hint.run("kubectl get virtualservice -A -o yaml | grep -B8 weight:")
            .run(format!("kubectl get pods -n {} -L app,version", place.namespace))
    };
    if judged.is_empty() {
        return vec![match &split.hop {
            Some(wanted) => Finding::skip(
                CheckId::TrafficSplit,
                format!("Split {split} at {wanted}: not judged, because {wanted} never answered"),
            ),
            None if split.shares.iter().filter(|(_, share)| *share > 0.0).count() < 2 => {
                return hops.first().map(|(name, seen)| judge_split(name, seen, split, place)).into_iter().collect();
            }
            None => {
                let hint = routes(Hint::new(
                    "No weighted route is in force: it is for another host or Gateway, or a version has no pods behind its subset",
                ));
                Finding::fail(
                    CheckId::TrafficSplit,
                    format!("Split {split}: no hop answered in more than one of these versions"),
                    hint,
                )
            }
        }];
    }
    judged.into_iter().map(|(name, seen)| judge_split(name, seen, split, place)).collect()
}

/// The exact test of one hop: binomial for every version, their number taken into account.
fn judge_split(name: &str, seen: &[&HopSeen], split: &Split, place: &Place) -> Finding {
    let counts = tally(seen, |hop| &hop.version);
    let all = seen.len() as u64;
    let tests = if split.shares.len() <= 2 { 1.0 } else { split.shares.len() as f64 };
    let got: Vec<String> = split
        .shares
        .iter()
        .map(|(version, _)| (version.as_str(), counts.get(version.as_str()).copied().unwrap_or(0)))
        .chain(
            counts
                .iter()
                .filter(|(version, _)| !split.shares.iter().any(|(known, _)| known == *version))
                .map(|(version, count)| (*version, *count)),
        )
        .map(|(version, count)| format!("{version}={:.1}", 100.0 * count as f64 / all as f64))
        .collect();
    let stranger = counts.keys().any(|version| !split.shares.iter().any(|(known, _)| known == version));
    let p = split
        .shares
        .iter()
        .map(|(version, share)| stats::binomial(counts.get(version.as_str()).copied().unwrap_or(0), all, share / 100.0))
        .fold(1.0, f64::min);
    let p = if stranger { 0.0 } else { (p * tests).min(1.0) };
    let shift = split.shares.iter().map(|(_, share)| stats::detectable(all, share / 100.0, ALPHA / tests)).fold(0.0, f64::max);
    let data = serde_json::json!({"hop": name, "counts": counts, "p": p, "detectable_points": shift * 100.0});
    let got = got.join(",");
    let finding = if p < ALPHA {
        let cause = if stranger {
            format!(
                "A version answers at {name} that the split does not name: another subset or Deployment behind the same Service"
            )
        } else {
            format!(
                "The weights in force for {name} are others, or its Service balances over all pods because no route with weights applies"
            )
        };
        let hint = Hint::new(cause)
            .run("kubectl get virtualservice -A -o yaml | grep -B8 weight:")
            .run(format!("kubectl get pods -n {} -L app,version", place.namespace));
        let chance = if p > 0.0 { format!("p = {p:.0e}") } else { "impossible by chance".to_owned() };
        Finding::fail(
            CheckId::TrafficSplit,
            format!("Split at {name}: {got} over {all} requests, {split} promised ({chance})"),
            hint,
        )
    } else if shift > TELLING {
        let text = format!(
            "Split at {name}: {got} over {all} requests, {split} promised: too few requests to tell (a shift of {:.1} points would be seen half the time; raise --count)",
            shift * 100.0
        );
        Finding::skip(CheckId::TrafficSplit, text)
    } else {
        let text = format!(
            "Split at {name}: {got} over {all} requests, as promised ({split}; p = {p:.2}; a shift of {:.1} points would be seen half the time)",
            shift * 100.0
        );
        Finding::pass(CheckId::TrafficSplit, text)
    };
    finding.hop(name).data(data)
}

fn retries(hops: &[(String, Vec<&HopSeen>)]) -> Finding {
    let mut lines = Vec::new();
    for (name, seen) in hops {
        let again = seen.iter().filter(|hop| hop.attempt > 1).count();
        if again > 0 {
            let most = seen.iter().map(|hop| hop.attempt).max().unwrap_or(1);
            lines.push(format!("{name:<20} {again} of {} answers needed more than one attempt, {most} at most", seen.len()));
        }
    }
    if lines.is_empty() {
        return Finding::pass(CheckId::TrafficRetries, "No retries: every answer was a first attempt");
    }
    let layers = lines.len();
    let mut text =
        format!("Retries seen at {layers} {}: a proxy in front hid failures", if layers == 1 { "hop" } else { "hops" });
    if layers > 1 {
        text.push_str("; retries at several layers multiply");
    }
    Finding::pass(CheckId::TrafficRetries, text).lines(lines)
}

/// Who called whom, where a proxy vouches for it.
fn identities(hops: &[(String, Vec<&HopSeen>)], xray: Option<&Xray>, place: &Place) -> Vec<Finding> {
    let Some(xray) = xray else { return Vec::new() };
    let is = |name: &str, sign: fn(Proxy) -> bool| xray.rows.iter().any(|row| row.hop.name == name && sign(row.proxy));
    let proxied = |name: &str| is(name, |proxy| proxy.traces() || proxy.envoy);
    // A sidecar that takes the call for bytes can vouch for nobody, mTLS or not.
    let has_sidecar = |name: &str| is(name, |proxy| proxy.sidecar);
    let of = |seen: &[&HopSeen]| -> Vec<String> {
        let mut ids: Vec<String> = seen.iter().filter_map(|hop| hop.identity.clone()).collect();
        ids.sort();
        ids.dedup();
        ids
    };
    let any_identity = hops.iter().any(|(_, seen)| seen.iter().any(|hop| hop.identity.is_some()));
    let any_proxy = hops.iter().any(|(name, _)| proxied(name));
    if !any_identity {
        let why = if any_proxy {
            "no proxy reports a caller's certificate: the hops are called without mTLS, or the proxies do not forward it"
        } else {
            "no proxy is seen in front of any hop"
        };
        return vec![Finding::skip(CheckId::TrafficIdentity, format!("Identities: not judged, because {why}"))];
    }
    let (mut lines, mut bare, mut unproven) = (Vec::new(), Vec::new(), Vec::new());
    for (name, seen) in hops {
        let ids = of(seen);
        let without = seen.iter().filter(|hop| hop.identity.is_none()).count();
        match (proxied(name), ids.is_empty(), without) {
            (_, false, 0) if proxied(name) || has_sidecar(name) => lines.push(format!("{name:<20} called by {}", ids.join(", "))),
            (true, ..) => {
                lines.push(format!("{name:<20} {without} of {} calls without mTLS", seen.len()));
                bare.push(name.as_str());
            }
            (false, false, _) => {
                lines.push(format!("{name:<20} reports {}, and no proxy is seen there", ids.join(", ")));
                unproven.push(name.as_str());
            }
            (false, true, _) if has_sidecar(name) => lines.push(format!("{name:<20} its sidecar does not tell who calls")),
            (false, true, _) => lines.push(format!("{name:<20} no proxy seen in front")),
        }
    }
    // The x-ray saw the hop without a sidecar, and said so: what it is called and calls is in plain text for that reason.
    let missing = xray.without_sidecar();
    let is_missing = |name: &str| missing.iter().any(|known| known.hop.name == name);
    let known = |name: &str| is_missing(name) || caller_of(xray, name).is_some_and(is_missing);
    if !bare.is_empty() && bare.iter().all(|name| known(name)) {
        let names: Vec<&str> = missing.iter().map(|known| known.hop.name.as_str()).collect();
        let text = format!(
            "Identities: not judged at {}, because {} has no sidecar: see Propagation",
            bare.join(", "),
            names.join(", ")
        );
        return vec![Finding::skip(CheckId::TrafficIdentity, text).lines(lines)];
    }
    if !bare.is_empty() {
        let (text, cause, hop) = plaintext(&bare, xray);
        let pods = format!(
            "kubectl get pods -n {} -o custom-columns=POD:.metadata.name,CONTAINERS:.spec.containers[*].name,INIT:.spec.initContainers[*].name",
            place.namespace
        );
        let hint = Hint::new(cause)
            .run(pods)
            .run(format!("kubectl get namespace {} --show-labels", place.namespace))
            .run("kubectl get peerauthentication,destinationrule -A");
        return vec![Finding::fail(CheckId::TrafficIdentity, text, hint).hop(&hop).lines(lines)];
    }
    if unproven.is_empty() {
        return vec![Finding::pass(CheckId::TrafficIdentity, "mTLS with an identity wherever a proxy is seen").lines(lines)];
    }
    let text = format!(
        "Identities: not judged at {}, because no proxy is seen in front and what the caller reports proves nothing",
        unproven.join(", ")
    );
    vec![Finding::skip(CheckId::TrafficIdentity, text).lines(lines)]
}

/// The hop that calls the one of this name.
fn caller_of<'a>(xray: &'a Xray, name: &str) -> Option<&'a str> {
    let at = xray.rows.iter().position(|row| row.hop.name == name)?;
    xray.caller_of(at).map(|row| row.hop.name.as_str())
}

/// Plain text into a hop and out of it again: that hop has no sidecar. Plain text into one alone: itself, or its caller.
fn plaintext(bare: &[&str], xray: &Xray) -> (String, String, String) {
    let middle = bare.iter().find(|name| bare.iter().any(|other| caller_of(xray, other) == Some(**name)));
    let first = bare.first().copied().unwrap_or_default();
    let is_last = xray.rows.last().is_some_and(|row| row.hop.name == first);
    let is_own = |name: &str| xray.rows.iter().any(|row| row.hop.name == name && row.proxy.is_own_sidecar());
    let off =
        |name: &str| format!("mTLS is off for {name}: PeerAuthentication DISABLE, or a DestinationRule with tls.mode DISABLE");
    match middle {
        Some(name) => (
            format!("{name} is called and calls without mTLS, while other hops use it: it has no sidecar"),
            format!(
                "Injection is missing at {name}: its pod is older than the namespace's label, or has sidecar.istio.io/inject: \"false\""
            ),
            (*name).to_owned(),
        ),
        None if is_own(first) && caller_of(xray, first).is_some_and(is_own) => (
            format!("{first} is called without mTLS, while other hops use it"),
            format!("{}. Else the mesh does not know the port of Service {first} as HTTP (its name, or appProtocol)", off(first)),
            first.to_owned(),
        ),
        None if is_last => (
            format!("{first} is called without mTLS, while other hops use it"),
            format!("{first} has no sidecar (its pod is older than the namespace's label), or {}", off(first)),
            first.to_owned(),
        ),
        None => {
            let caller = caller_of(xray, first).unwrap_or(CALLER);
            (
                format!("{first} is called without mTLS, while other hops use it"),
                format!("{caller} calls from outside the mesh, or {}", off(first)),
                first.to_owned(),
            )
        }
    }
}

/// Whether the mesh samples as promised: over requests that brought no decision.
pub(crate) fn sampling(samples: &[Sample], promised: f64, xray: Option<&Xray>, place: &Place) -> Finding {
    let decided: Vec<bool> = samples.iter().filter_map(|sample| sample.sampled).collect();
    if decided.is_empty() {
        return Finding::skip(
            CheckId::TracesSampling,
            "Sampling: not judged, because no hop and no proxy made a decision in requests without trace context",
        );
    }
    let (yes, all) = (decided.iter().filter(|yes| **yes).count() as u64, decided.len() as u64);
    let rate = 100.0 * yes as f64 / all as f64;
    let p = stats::binomial(yes, all, promised / 100.0);
    let shift = stats::detectable(all, promised / 100.0, ALPHA) * 100.0;
    let data = serde_json::json!({"sampled": yes, "requests": all, "percent": rate, "promised": promised, "p": p});
    let text = format!("{yes} of {all} requests that bring no trace context are sampled ({rate:.1} %)");
    let finding = if p < ALPHA {
        let name = samples.iter().find_map(|sample| sample.hops.first()).map(|seen| seen.hop.clone());
        // Envoy's Zipkin tracer obeys a caller's decision, its OpenTelemetry tracer does not.
        let asked = if xray.is_some_and(|xray| !xray.decided.is_empty()) {
            "The proxies here apply it to callers that asked to be sampled, too"
        } else {
            "A caller's own decision overrides it, so a trace asked for by hand still shows"
        };
        let mut hint = Hint::new(format!(
            "The sampling rate in force is not {promised} %: randomSamplingPercentage of the Telemetry resource (1 % when nobody sets it), or OTEL_TRACES_SAMPLER. {asked}. --expect-sampling says what is meant"
        ));
        match name {
            Some(hop) if place.runner(&hop) == Runner::Local => hint = hint.run(place.settings(&hop)),
            _ => {
                hint = hint
                    .run("kubectl get telemetry -A -o yaml | grep -B12 randomSamplingPercentage")
                    .run("kubectl get configmap istio -n istio-system -o yaml | grep -i sampling")
            }
        }
        Finding::fail(CheckId::TracesSampling, format!("{text}, {promised} % promised"), hint)
    } else if shift > TELLING * 100.0 {
        Finding::skip(
            CheckId::TracesSampling,
            format!(
                "{text}, {promised} % promised: too few requests to tell (a shift of {shift:.1} points would be seen half the time; raise --count)"
            ),
        )
    } else {
        Finding::pass(CheckId::TracesSampling, text)
    };
    finding.data(data)
}
