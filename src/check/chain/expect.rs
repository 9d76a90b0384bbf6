//! The values that the options of `check` take, each with its parser and a message that says what is accepted.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use opentelemetry::trace::TraceId;
use reqwest::Url;

use crate::net::hosts::http_url;
use crate::traces::ids::parse_trace_id;
use crate::upstream::Target;
use crate::values::{BASE_LANE, is_label, percent, percent_number};

/// The expected hops: a chain, or a tree where one hop calls several.
///
/// `service1,service2,service3` is a chain; `service1(service2,service3)` a hop that calls two; `a,b(c,d)` both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// The hop's name.
    pub name: String,
    /// The hops that it calls, in order.
    pub below: Vec<Expect>,
}

impl Expect {
    /// The hops that are expected below `service`.
    pub(crate) fn below(&self, service: &str) -> Vec<&str> {
        match is_named(service, &self.name) {
            true => self.below.iter().flat_map(Self::names).collect(),
            false => self.below.iter().flat_map(|below| below.below(service)).collect(),
        }
    }

    /// As `--expect` takes it.
    pub(crate) fn option(&self) -> String {
        match self.below.as_slice() {
            [] => self.name.clone(),
            [one] => format!("{},{}", self.name, one.option()),
            many => format!("{}({})", self.name, many.iter().map(Self::nested).collect::<Vec<_>>().join(",")),
        }
    }

    /// Within brackets a comma is between siblings.
    fn nested(&self) -> String {
        match self.below.as_slice() {
            [] => self.name.clone(),
            below => format!("{}({})", self.name, below.iter().map(Self::nested).collect::<Vec<_>>().join(",")),
        }
    }

    /// Every name, in order.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names = vec![self.name.as_str()];
        names.extend(self.below.iter().flat_map(Self::names));
        names
    }
}

impl FromStr for Expect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let accepted = "accepted: hop names in order, `service1,service2,service3`, or `service1(service2,service3)` for a hop that calls several";
        let mut rest = text.trim();
        let hop = chain(&mut rest).ok_or(accepted)?;
        if rest.is_empty() { Ok(hop) } else { Err(accepted.to_owned()) }
    }
}

/// Whether a hop's name is the expected one: the same, or the same with a namespace behind it (`service1.httpserver`).
pub(crate) fn is_named(service: &str, expected: &str) -> bool {
    service == expected || service.strip_prefix(expected).is_some_and(|rest| rest.starts_with('.'))
}

fn name(rest: &mut &str) -> Option<String> {
    let end = rest.find([',', '(', ')']).unwrap_or(rest.len());
    let (name, tail) = rest.split_at(end);
    let name = name.trim();
    let ok = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    *rest = tail;
    ok.then(|| name.to_owned())
}

/// `a,b,c`: each calls the next.
fn chain(rest: &mut &str) -> Option<Expect> {
    let mut hop = siblings(rest)?;
    if let Some(tail) = rest.strip_prefix(',') {
        if !hop.below.is_empty() {
            return None;
        }
        *rest = tail;
        hop.below.push(chain(rest)?);
    }
    Some(hop)
}

/// `a` or `a(b,c)`: a calls both.
fn siblings(rest: &mut &str) -> Option<Expect> {
    let name = name(rest)?;
    let mut below = Vec::new();
    if let Some(tail) = rest.strip_prefix('(') {
        *rest = tail;
        loop {
            below.push(siblings(rest)?);
            if let Some(tail) = rest.strip_prefix(',') {
                *rest = tail;
            } else {
                *rest = rest.strip_prefix(')')?.trim_start();
                break;
            }
        }
    }
    Some(Expect { name, below })
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.below.as_slice() {
            [] => Ok(()),
            [one] => write!(f, " -> {one}"),
            many => {
                f.write_str(" -> (")?;
                for (i, hop) in many.iter().enumerate() {
                    write!(f, "{}{hop}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
        }
    }
}

/// What concerns one hop: `service2:…`, or `…` for no certain one.
fn of_hop(text: &str) -> Option<(Option<String>, &str)> {
    match text.split_once(':') {
        Some((hop, rest)) => {
            Some((Some(hop.trim().to_owned()).filter(|hop| !hop.is_empty()), rest)).filter(|(hop, _)| hop.is_some())
        }
        None => Some((None, text)),
    }
}

/// A promised split over versions, in percent: `v1=90,v2=10`, or `service2:v1=90,v2=10` for one hop.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// The hop; without one, every hop that shows more than one of the versions.
    pub hop: Option<String>,
    /// Versions and their shares, percent; they add up to 100.
    pub shares: Vec<(String, f64)>,
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let accepted = "accepted: shares in percent that add up to 100, `v1=90,v2=10` or `service2:v1=90,v2=10`";
        let (hop, list) = of_hop(text).ok_or(accepted)?;
        let mut shares: Vec<(String, f64)> = Vec::new();
        for part in list.split(',') {
            let (version, share) = part.split_once('=').ok_or(accepted)?;
            let version = version.trim();
            let share = percent(share).map_err(|_| accepted)?;
            if version.is_empty() || shares.iter().any(|(known, _)| known == version) {
                return Err(accepted.to_owned());
            }
            shares.push((version.to_owned(), share));
        }
        let sum: f64 = shares.iter().map(|(_, share)| share).sum();
        if (sum - 100.0).abs() > 1e-6 {
            return Err(format!("the shares add up to {sum}, not to 100; {accepted}"));
        }
        Ok(Self { hop, shares })
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (version, share)) in self.shares.iter().enumerate() {
            write!(f, "{}{version}={share}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// A limit to the time of a share of the answers: `p99=500ms`, or `service2:p99=100ms` for one hop.
#[derive(Debug, Clone, PartialEq)]
pub struct LatencyLimit {
    /// The hop, with everything below it; without one, the whole request.
    pub hop: Option<String>,
    /// The share, percent.
    pub percent: f64,
    /// The longest time.
    pub limit: Duration,
}

impl FromStr for LatencyLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let accepted = "accepted: a percentile and a time, `p99=500ms` or `service2:p99=100ms`";
        let (hop, rest) = of_hop(text).ok_or(accepted)?;
        let (share, limit) = rest.split_once('=').ok_or(accepted)?;
        let share = share.trim().strip_prefix('p').and_then(percent_number).filter(|share| *share > 0.0).ok_or(accepted)?;
        let limit = crate::values::positive_duration(limit.trim()).map_err(|why| format!("{why}; {accepted}"))?;
        Ok(Self { hop, percent: share, limit })
    }
}

impl fmt::Display for LatencyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hop = self.hop.as_ref().map_or_else(String::new, |hop| format!("{hop}:"));
        write!(f, "{hop}p{}={}", self.percent, humantime::format_duration(self.limit))
    }
}

/// Who has to call a hop: `service2=spiffe://cluster.local/ns/httpserver/sa/service1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The hop that is called.
    pub hop: String,
    /// The caller's identity.
    pub identity: String,
}

impl FromStr for Principal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let accepted = "accepted: a hop and its caller, `service2=spiffe://cluster.local/ns/httpserver/sa/service1`";
        let (hop, identity) = text.split_once('=').ok_or(accepted)?;
        let (hop, identity) = (hop.trim(), identity.trim());
        if hop.is_empty() || identity.strip_prefix("spiffe://").is_none_or(str::is_empty) {
            return Err(accepted.to_owned());
        }
        Ok(Self { hop: hop.to_owned(), identity: identity.to_owned() })
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.hop, self.identity)
    }
}

/// `HOST:PORT:ADDRESS`, as curl has it; the address may also be a name, resolved when the run starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolve {
    /// The host in the URL, lower case.
    pub host: String,
    /// The port in the URL.
    pub port: u16,
    /// Where it leads: an IP address or a name.
    pub address: String,
}

impl FromStr for Resolve {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let accepted = "accepted: HOST:PORT:ADDRESS, like `httpsserver.cncamp.io:443:10.0.0.5`";
        let mut parts = text.splitn(3, ':');
        let (host, port, address) = (parts.next().unwrap_or(""), parts.next().ok_or(accepted)?, parts.next().ok_or(accepted)?);
        let port = port.parse().map_err(|_| accepted)?;
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let named = !address.is_empty()
            && address.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
            && !all_digits(address);
        if host.is_empty() || port == 0 || !(address.parse::<IpAddr>().is_ok() || named) {
            return Err(accepted.to_owned());
        }
        Ok(Self { host: host.to_ascii_lowercase(), port, address: address.to_owned() })
    }
}

/// Numbers and dots that are no IP address are a slip, not a name.
fn all_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// A lane's name: a DNS label, as Kubernetes and the lane routes have it.
pub(crate) fn lane(text: &str) -> Result<String, String> {
    match (is_label(text), text) {
        (true, BASE_LANE) => Err("`base` is the baseline, which is always walked; accepted: the name of another lane".to_owned()),
        (true, _) => Ok(text.to_owned()),
        _ => Err("accepted: a lane's name in lower-case letters, digits and `-`, like `gray`".to_owned()),
    }
}

/// What `check` calls first: as [`http_url`], or a hop over gRPC.
pub(crate) fn front(text: &str) -> Result<Url, String> {
    let text = text.trim();
    if !text.starts_with("grpc") {
        return http_url(text).map_err(|accepted| format!("{accepted}, or grpc:// and grpcs:// as in `grpc://127.0.0.1:8080`"));
    }
    let given = text.parse::<Url>().ok().filter(|given| given.username().is_empty() && text.parse::<Target>().is_ok());
    given.ok_or_else(|| {
        "accepted: a gRPC URL without a path, or with /service<N>, like `grpc://127.0.0.1:8080/service1`".to_owned()
    })
}

/// The trace of one request, as `--trace-id` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChosenTrace {
    pub(crate) id: TraceId,
    /// 64 bits: B3 has it as it is, W3C padded with zeros.
    pub(crate) is_short: bool,
}

impl FromStr for ChosenTrace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match parse_trace_id(text) {
            Ok(id) if matches!(text.len(), 16 | 32) => Ok(Self { id, is_short: text.len() == 16 }),
            _ => Err("accepted: 32 or 16 hex digits, not all of them 0".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expectation_is_a_chain_or_a_tree() {
        for (text, shown) in [
            ("service1", "service1"),
            ("service1,service2,service3", "service1 -> service2 -> service3"),
            ("service1(service2,service3)", "service1 -> (service2, service3)"),
            ("a,b(c(d),e)", "a -> b -> (c -> d, e)"),
        ] {
            let expect: Expect = text.parse().unwrap();
            assert_eq!(expect.to_string(), shown);
            assert_eq!(expect.option().parse::<Expect>(), Ok(expect.clone()), "{text}");
        }
        for bad in ["", ",", "a,", "a(", "a()", "a)b", "a b", "a(b)c", "a(b),c"] {
            assert!(bad.parse::<Expect>().is_err(), "{bad}");
        }
        let expect = "a,b,c".parse::<Expect>().unwrap();
        assert_eq!((expect.below("a"), expect.below("b"), expect.below("c")), (vec!["b", "c"], vec!["c"], vec![]));
    }

    #[test]
    fn a_split_adds_up_to_100() {
        let split: Split = "service2:v1=90,v2=10".parse().unwrap();
        assert_eq!(split, Split { hop: Some("service2".into()), shares: vec![("v1".into(), 90.0), ("v2".into(), 10.0)] });
        assert!("v1=33.3,v2=33.3,v3=33.4".parse::<Split>().is_ok());
        for bad in ["v1=90,v2=20", "v1", "v1=90,v1=10", "=100", "v1=-10,v2=110", ":v1=100", "v1=x"] {
            assert!(bad.parse::<Split>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_latency_limit_and_a_principal_name_what_they_are_about() {
        for text in ["p99=500ms", "service2:p99.9=1s 500ms"] {
            assert_eq!(text.parse::<LatencyLimit>().unwrap().to_string(), text);
        }
        for bad in ["99=1s", "p99", "p0=1s", "p101=1s", ":p99=1s", "p99=0", "p99=x"] {
            assert!(bad.parse::<LatencyLimit>().is_err(), "{bad}");
        }
        let principal: Principal = "service2=spiffe://x/ns/a/sa/b".parse().unwrap();
        assert_eq!((principal.hop.as_str(), principal.identity.as_str()), ("service2", "spiffe://x/ns/a/sa/b"));
        for bad in ["service2", "=spiffe://x", "service2=spiffe://", "service2=b"] {
            assert!(bad.parse::<Principal>().is_err(), "{bad}");
        }
    }

    #[test]
    fn resolve_reads_what_curl_reads_and_a_name() {
        let of = |text: &str| text.parse::<Resolve>().map(|resolve| resolve.address);
        assert_eq!(of("a.io:443:10.0.0.5"), Ok("10.0.0.5".into()));
        assert_eq!(of("a.io:443:[::1]"), Ok("::1".into()));
        assert_eq!(of("a.io:443:istio-ingressgateway.istio-system"), Ok("istio-ingressgateway.istio-system".into()));
        for bad in ["a.io:10.0.0.5", "a.io:443", "a.io:x:10.0.0.5", "a.io:443:10.0.0", "a.io:443:", ":443:10.0.0.5"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_lane_is_a_label_and_not_the_baseline() {
        assert_eq!(lane("gray"), Ok("gray".into()));
        for bad in ["", "Gray", "gray lane", "-gray", "gray=1", "base", "gräy"] {
            assert!(lane(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_have_bounds() {
        assert!(http_url("ftp://x").is_err() && http_url("127.0.0.1:80").is_err() && http_url("http://x:0/").is_err());
        assert!(http_url("http://127.0.0.1:8080/service1").is_ok());
    }
}
