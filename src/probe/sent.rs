//! What was sent in a run: whose a call is, and whose context it carries.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use http::HeaderMap;
use opentelemetry::trace::TraceId;

use crate::probe::header_outcome;
use crate::probe::listener::AppCall;

/// Every id that was sent one request at a time.
#[derive(Debug, Default)]
pub(super) struct RunLog {
    traces: HashSet<TraceId>,
    /// When the request of each nonce had its answer.
    nonces: HashMap<String, Instant>,
    /// Calls that earlier requests did not lead to in time.
    owed: usize,
    /// Calls that came in the time of another request.
    pub(super) strays: usize,
    /// How long after its answer such a call came, where its nonce says whose it is.
    pub(super) latest: Duration,
    /// Calls that carry the trace of an earlier request, and all.
    pub(super) leaked: usize,
    pub(super) calls: usize,
}

impl RunLog {
    /// Whether a call is that of another request, by the nonce in it.
    pub(super) fn is_of_another(&self, call: &AppCall, nonce: &str) -> bool {
        call.find(|word| (word == nonce).then_some(())).is_none() && self.nonce_in(call).is_some()
    }

    fn nonce_in(&self, call: &AppCall) -> Option<Instant> {
        call.find(|word| self.nonces.get(word).copied())
    }

    pub(super) fn has(&self, trace: TraceId) -> bool {
        self.traces.contains(&trace)
    }

    /// A request with these headers and this nonce was answered, and these calls came until now, of `expected`. Returns its own.
    pub(super) fn take(
        &mut self,
        headers: &HeaderMap,
        (nonce, answered): (&str, Instant),
        expected: usize,
        calls: Vec<AppCall>,
    ) -> Vec<AppCall> {
        let own = header_outcome::trace_ids(headers);
        let mut kept = Vec::new();
        for call in calls {
            let traces = header_outcome::trace_ids(&call.headers);
            let is_foreign = traces.iter().any(|trace| self.has(*trace) && !own.contains(trace));
            if self.is_of_another(&call, nonce) {
                let late = self.nonce_in(&call).map_or(Duration::ZERO, |answered| call.at.saturating_duration_since(answered));
                self.latest = self.latest.max(late);
                self.strays += 1;
            } else if is_foreign && self.owed > 0 && call.find(|word| (word == nonce).then_some(())).is_none() {
                self.owed -= 1;
                self.strays += 1;
            } else {
                self.leaked += usize::from(is_foreign);
                kept.push(call);
            }
        }
        self.calls += kept.len();
        self.owed += expected.saturating_sub(kept.len());
        self.traces.extend(own);
        self.nonces.insert(nonce.to_owned(), answered);
        kept
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::probe::header_outcome::{fresh, written};
    use crate::trace_context::WireFormat;

    fn call(headers: &HeaderMap, uri: &str) -> AppCall {
        let (headers, uri, body) = (headers.clone(), uri.parse().unwrap(), axum::body::Bytes::new());
        AppCall { method: Method::GET, uri, headers, body, at: Instant::now(), to: ([127, 0, 0, 1], 1).into() }
    }

    #[test]
    fn a_call_that_comes_late_is_that_of_its_request_and_a_trace_that_stays_is_a_leak() {
        let requests: Vec<HeaderMap> = (0..3).map(|_| written(&[(WireFormat::B3Multi, fresh())])).collect();
        let nonces = ["00000000000000a1", "00000000000000a2", "00000000000000a3"];
        let path = |n: usize| format!("/x/{}", nonces[n]);
        let mut sent = RunLog::default();
        let mut ask = |n: usize, calls: Vec<AppCall>| {
            let kept = sent.take(&requests[n], (nonces[n], Instant::now()), 1, calls).len();
            (kept, sent.strays, sent.leaked)
        };
        // By its nonce, and without one by being owed.
        assert_eq!(ask(0, vec![]), (0, 0, 0));
        assert_eq!(ask(1, vec![call(&requests[0], &path(0))]), (0, 1, 0));
        assert_eq!(ask(2, vec![call(&requests[0], "/x")]), (0, 2, 0));
        let mut sent = RunLog::default();
        sent.take(&requests[0], (nonces[0], Instant::now()), 1, vec![call(&requests[0], "/x")]);
        sent.take(&requests[1], (nonces[1], Instant::now()), 1, vec![call(&requests[0], &path(1))]);
        assert_eq!((sent.strays, sent.leaked, sent.calls), (0, 1, 2));
        // A context that is not valid names the trace that an app may continue all the same.
        let mut damaged = requests[0].clone();
        damaged.insert("x-b3-spanid", "0000000000000000".parse().unwrap());
        sent.take(&damaged, (nonces[2], Instant::now()), 1, vec![call(&requests[0], "/x")]);
        assert_eq!((sent.strays, sent.leaked, sent.calls), (0, 1, 3));
    }
}
