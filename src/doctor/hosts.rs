//! One clock for all: how far each host's clock is off is estimated from the calls that join hosts, and its spans are moved by that.

use std::collections::{BTreeMap, HashMap};

use crate::doctor::system::SystemSpan;
use crate::doctor::timing::{TOLERANCE_US, median};
use crate::traces::{Kind, Span};

/// Among so many hosts all are compared; a hostile backend names thousands. Beyond it each service is one host.
const MAX_HOSTS: usize = 2_000;

/// The clock of one host of a service.
#[derive(Debug)]
pub(super) struct HostClock {
    pub(super) service: usize,
    /// As its spans name it; empty where they do not.
    pub(super) host: Box<str>,
    /// Microseconds ahead of most others that it can be compared with.
    pub(super) ahead: i64,
    /// Its spans.
    pub(super) spans: Vec<usize>,
}

/// The bounds of a difference of clocks, microseconds: what is called begins after its caller and ends before it.
type Bounds = (i64, i64);

/// Moves all spans to one clock; returns the clocks as they were.
pub(super) fn align(spans: &mut [SystemSpan]) -> Vec<HostClock> {
    let mut of_span = Vec::new();
    let mut clocks = clocks(spans, &mut of_span, host_of);
    if clocks.len() > MAX_HOSTS {
        of_span.clear();
        clocks = self::clocks(spans, &mut of_span, |_| Box::default());
    }
    if clocks.len() > MAX_HOSTS {
        return clocks;
    }
    let calls = calls(spans, &of_span, clocks.len());
    let mut ahead: Vec<Option<i64>> = vec![None; clocks.len()];
    while let Some(first) = (0..clocks.len()).filter(|at| ahead[*at].is_none()).max_by_key(|at| calls[*at].len()) {
        compare(first, &clocks, &calls, &mut ahead);
    }
    for (clock, ahead) in clocks.iter_mut().zip(&ahead) {
        clock.ahead = ahead.unwrap_or(0);
        for at in &clock.spans {
            let span = &mut spans[*at];
            if span.start > 0 {
                (span.start, span.end) = (span.start - clock.ahead, span.end - clock.ahead);
            }
        }
    }
    clocks
}

/// What the span says of the host that made it; empty where it says nothing. The names are those of OpenTelemetry, Jaeger's clients
/// and Envoy.
pub(super) fn host_of(span: &Span) -> Box<str> {
    const KEYS: [&str; 5] = ["host.name", "hostname", "k8s.pod.name", "service.instance.id", "ip"];
    let proxy = || span.tag("node_id")?.split('~').nth(1);
    let address = || Some(span.local_endpoint.as_ref()?.ipv4?.to_string().into());
    KEYS.iter().find_map(|key| span.tag(key)).or_else(proxy).map(Box::from).or_else(address).unwrap_or_default()
}

fn clocks(spans: &[SystemSpan], of_span: &mut Vec<usize>, host_of: impl Fn(&Span) -> Box<str>) -> Vec<HostClock> {
    let mut known: BTreeMap<(usize, Box<str>), usize> = BTreeMap::new();
    let mut clocks: Vec<HostClock> = Vec::new();
    for (at, span) in spans.iter().enumerate() {
        let host = host_of(&span.span);
        let clock = *known.entry((span.service, host.clone())).or_insert_with(|| {
            clocks.push(HostClock { service: span.service, host, ahead: 0, spans: Vec::new() });
            clocks.len() - 1
        });
        clocks[clock].spans.push(at);
        of_span.push(clock);
    }
    clocks
}

/// Of each host the calls to and from others: the other, and the bounds of how far the other is ahead.
fn calls(spans: &[SystemSpan], of_span: &[usize], hosts: usize) -> Vec<Vec<(usize, Bounds)>> {
    let mut calls: Vec<Vec<(usize, Bounds)>> = vec![Vec::new(); hosts];
    for (at, span) in spans.iter().enumerate().filter(|(_, span)| span.is(Kind::Server) && span.start > 0) {
        let Some((above, caller)) = span.parent.map(|parent| (parent, &spans[parent])) else { continue };
        let (from, to) = (of_span[above], of_span[at]);
        // What lasts longer than its caller waited goes on after the answer. A service of browsers has as many clocks as devices.
        if from != to && !is_device(&caller.span) && caller.start > 0 && span.took() <= caller.took() {
            let (low, high) = (span.end - caller.end, span.start - caller.start);
            calls[from].push((to, (low, high)));
            calls[to].push((from, (-high, -low)));
        }
    }
    calls
}

/// A browser or a phone.
fn is_device(span: &Span) -> bool {
    span.tag("telemetry.sdk.language") == Some("webjs")
        || span.tags.keys().any(|key| key.starts_with("browser.") || key.starts_with("device."))
}

/// Gives `first` and all that calls join with it their place on one clock: the one that most of them have.
fn compare(first: usize, clocks: &[HostClock], calls: &[Vec<(usize, Bounds)>], ahead: &mut [Option<i64>]) {
    let mut joined = vec![first];
    // Bounds on the one clock, of hosts that have no place yet.
    let mut bounds: HashMap<usize, Vec<Bounds>> = HashMap::new();
    // Clocks that hosts share, with how many spans were read by them.
    let mut shared: Vec<(i64, usize)> = Vec::new();
    let mut next = Some((first, 0));
    while let Some((host, offset)) = next {
        ahead[host] = Some(offset);
        match shared.iter_mut().find(|(at, _)| *at == offset) {
            Some((_, spans)) => *spans += clocks[host].spans.len(),
            None => shared.push((offset, clocks[host].spans.len())),
        }
        for (other, (low, high)) in calls[host].iter().filter(|(other, _)| ahead[*other].is_none()) {
            bounds.entry(*other).or_default().push((offset + low, offset + high));
        }
        // The host of which most is known comes first: what it adds is then known of others, too.
        let best = bounds.iter().max_by_key(|(host, bounds)| (bounds.len(), std::cmp::Reverse(**host))).map(|(host, _)| *host);
        next = best.and_then(|host| Some((host, place(&bounds.remove(&host)?, &shared)?)));
        joined.extend(next.map(|(host, _)| host));
    }
    let most = shared.iter().max_by_key(|(_, spans)| *spans).map_or(0, |(at, _)| *at);
    for host in joined {
        ahead[host] = ahead[host].map(|at| at - most);
    }
}

/// A clock within the bounds: one that others have, else the middle.
fn place(bounds: &[Bounds], shared: &[(i64, usize)]) -> Option<i64> {
    let mut lows: Vec<i64> = bounds.iter().map(|(low, _)| *low).collect();
    let mut highs: Vec<i64> = bounds.iter().map(|(_, high)| *high).collect();
    lows.sort_unstable();
    highs.sort_unstable();
    // The tightest bounds but for those of calls that are not what they seem.
    let rest = bounds.len() / 8;
    let (mut low, mut high) = (lows[bounds.len() - 1 - rest], highs[rest]);
    if low > high + TOLERANCE_US {
        (low, high) = (median(lows)?, median(highs)?);
    }
    let (low, high) = (low.min(high), high.max(low));
    let within = (low - TOLERANCE_US / 2)..=(high + TOLERANCE_US / 2);
    let known = shared.iter().filter(|(at, _)| within.contains(at)).max_by_key(|(_, spans)| *spans);
    Some(known.map_or(i64::midpoint(low, high), |(at, _)| *at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::system::System;
    use crate::traces::{Trace, decode};

    /// Each call has a host of its own at the callee, whose clock is 40 s ahead.
    fn system(calls: u32) -> System {
        let trace = |n: u32| {
            let (id, ip) = (format!("{:016x}", n + 1), std::net::Ipv4Addr::from(0x0a00_0000 + n));
            let (start, ahead) = (1_780_000_000_000_000 + u64::from(n) * 1_000_000, 40_000_000);
            let spans = format!(
                r#"[{{"traceId":"{id}","id":"{id}","kind":"CLIENT","timestamp":{start},"duration":20000,"localEndpoint":{{"serviceName":"a"}}}},
                    {{"traceId":"{id}","id":"00000000000000ff","parentId":"{id}","kind":"SERVER","timestamp":{},"duration":18000,"localEndpoint":{{"serviceName":"b","ipv4":"{ip}"}}}}]"#,
                start + 1_000 + ahead
            );
            Trace::of_reports(decode(spans.as_bytes(), 2).unwrap()).unwrap()
        };
        System::new(&(0..calls).map(trace).collect::<Vec<_>>())
    }

    #[test]
    fn with_too_many_hosts_to_compare_each_service_is_one_and_its_clock_is_still_put_right() {
        for (calls, hosts) in [(10, 11), (u32::try_from(MAX_HOSTS).unwrap() + 10, 2)] {
            let mut system = system(calls);
            let clocks = align(&mut system.spans);
            assert_eq!(clocks.len(), hosts);
            for span in system.spans.iter().filter(|span| span.is(Kind::Server)) {
                let caller = &system.spans[span.parent.unwrap()];
                assert!(caller.start <= span.start && span.end <= caller.end, "{calls} calls");
            }
        }
    }
}
