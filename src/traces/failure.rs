//! Why a request failed: where it began, in a clause each, from the replies of its hops or from its spans.

use crate::text::{plain, shorten};
use crate::traces::span::{Kind, Span};
use crate::traces::trace::{PlacedSpan, Trace};

/// Names and statuses of a sentence; more are counted.
const NAMED: usize = 8;
const MAX_TEXT: usize = 120;
/// What a hop's span says of an answer that its fault cut.
const CUT_BY_FAULT: &str = "injected_fault";

/// How a request failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    /// The status that its caller received; `None` for no answer, or where nobody says.
    pub status: Option<u16>,
    /// Where it began.
    pub origins: Vec<Origin>,
    /// The services that a call reached, where that is known.
    pub reached: Vec<Box<str>>,
}

/// Where a failure began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A service answered with an error, and none of its calls had failed.
    Answered {
        /// Which.
        service: Box<str>,
        /// With what.
        status: u16,
        /// A fault that was injected did it.
        injected: bool,
    },
    /// A service failed, and says no status.
    Failed {
        /// Which.
        service: Box<str>,
        /// What it says of it.
        why: Box<str>,
    },
    /// A call had no answer that could be used.
    NoAnswer {
        /// Who called.
        caller: Box<str>,
        /// Whom, where that is known.
        callee: Option<Box<str>>,
        /// What came of it.
        why: Box<str>,
        /// A fault that was injected at the called service did it.
        injected: bool,
    },
}

impl Failure {
    /// Reads from its spans how a request failed: from the first server span that failed down to the deepest one below it.
    /// `None` when it did not.
    pub fn of(trace: &Trace) -> Option<Self> {
        let rows = trace.rows();
        let failed = |row: &PlacedSpan| row.span.has_failed();
        let first = rows.iter().position(|row| row.span.kind == Some(Kind::Server)).filter(|first| failed(&rows[*first]))?;
        // A parent stands before its children. Work inside a service may say nothing of a call that failed below it.
        let mut followed = vec![false; rows.len()];
        for (at, row) in rows.iter().enumerate().skip(first) {
            let above = row.parent.is_some_and(|parent| followed[parent]);
            followed[at] = at == first || (above && (failed(row) || row.span.kind.is_none()));
        }
        let mut passed_on = vec![false; rows.len()];
        for at in (first..rows.len()).rev() {
            if let Some(parent) = rows[at].parent.filter(|_| followed[at] && (failed(&rows[at]) || passed_on[at])) {
                passed_on[parent] = true;
            }
        }
        let deepest = (first..rows.len()).filter(|at| followed[*at] && failed(&rows[*at]) && !passed_on[*at]);
        let origins = deepest.map(|at| origin(rows, &rows[at])).take(NAMED).collect();
        Some(Self { status: rows[first].span.http_status(), origins, reached: Vec::new() })
    }

    /// Whether every origin is an answer: what was not reached then was not called.
    pub fn ended_in_answers(&self) -> bool {
        !self.origins.is_empty() && self.origins.iter().all(|origin| !matches!(origin, Origin::NoAnswer { .. }))
    }

    /// Notes the calls whose answer a fault cut, by the word of the services that sent it.
    pub(crate) fn read_faults(mut self, traces: &[Trace]) -> Self {
        let cut: Vec<&str> = traces
            .iter()
            .flat_map(Trace::rows)
            .filter(|row| row.span.kind == Some(Kind::Server) && row.span.tag("error.type") == Some(CUT_BY_FAULT))
            .filter_map(|row| row.span.service())
            .collect();
        self.mark(|callee, _| cut.contains(&callee));
        self
    }

    /// Notes the calls whose answer a fault cut. `is_cut`: by the called service, and why its caller says that it had no answer.
    pub(crate) fn mark(&mut self, is_cut: impl Fn(&str, &str) -> bool) {
        for origin in &mut self.origins {
            if let Origin::NoAnswer { callee: Some(callee), why, injected, .. } = origin {
                *injected |= is_cut(callee, why);
            }
        }
    }

    /// Who of these was called without an answer.
    pub(crate) fn called_in_vain(&self, names: &[Box<str>]) -> Vec<Box<str>> {
        let callees = self.origins.iter().filter_map(|origin| match origin {
            Origin::NoAnswer { callee, .. } => callee.as_ref(),
            Origin::Answered { .. } | Origin::Failed { .. } => None,
        });
        callees.filter(|callee| names.contains(callee)).cloned().collect()
    }

    /// `The request failed with 502: service4 answered 503, by its injected fault; so service5 was never called.`
    pub(crate) fn sentence(&self, never_called: &[Box<str>]) -> String {
        let status = self.status.map_or_else(String::new, |status| format!(" with {status}"));
        let mut text = format!("The request failed{status}");
        let clauses: Vec<_> = self.origins.iter().take(NAMED).map(Origin::clause).collect();
        if !clauses.is_empty() {
            text += &format!(": {}", clauses.join(", and "));
        }
        if !never_called.is_empty() {
            let were = if never_called.len() == 1 { "was" } else { "were" };
            text += &format!("; so {} {were} never called", listed(never_called));
        }
        text + "."
    }
}

impl Origin {
    fn clause(&self) -> String {
        match self {
            Self::Answered { service, status, injected } => {
                let fault = if *injected { ", by its injected fault" } else { "" };
                format!("{} answered {status}{fault}", shorten(service, MAX_TEXT))
            }
            Self::Failed { service, why } => {
                format!("{} failed ({})", shorten(service, MAX_TEXT), plain(&shorten(why, MAX_TEXT)))
            }
            Self::NoAnswer { caller, callee: Some(callee), why, injected: true } => format!(
                "{} gave {} no whole answer, by its injected fault ({})",
                shorten(callee, MAX_TEXT),
                shorten(caller, MAX_TEXT),
                plain(&shorten(why, MAX_TEXT))
            ),
            Self::NoAnswer { caller, callee, why, .. } => {
                let callee = callee.as_ref().map_or_else(|| "its next hop".to_owned(), |callee| shorten(callee, MAX_TEXT));
                format!("{} called {callee} in vain ({})", shorten(caller, MAX_TEXT), plain(&shorten(why, MAX_TEXT)))
            }
        }
    }
}

/// What the deepest failed span of its branch says.
fn origin<'a>(rows: &'a [PlacedSpan], mut row: &'a PlacedSpan) -> Origin {
    // Work inside a service counts as its service's.
    while let (None, Some(parent)) = (row.span.kind, row.parent) {
        row = &rows[parent];
    }
    let name = |span: &Span| Box::from(span.service().unwrap_or("a service that does not say its name"));
    let why = |span: &Span| Box::from(span.first_tag(&["error.type", "error"]).unwrap_or("it failed"));
    let status = row.span.http_status().filter(|status| *status >= 400);
    let caller = row.parent.map(|at| &rows[at]).filter(|above| above.span.kind == Some(Kind::Client));
    match (row.span.kind, status, caller) {
        (Some(Kind::Server), None, Some(above)) => Origin::NoAnswer {
            caller: name(&above.span),
            callee: row.span.service().map(Box::from),
            why: why(&above.span),
            injected: false,
        },
        (Some(Kind::Server), Some(status), _) => Origin::Answered { service: name(&row.span), status, injected: false },
        (Some(Kind::Server), None, None) => Origin::Failed { service: name(&row.span), why: why(&row.span) },
        _ => {
            let callee = row.span.callee().map(Box::from);
            Origin::NoAnswer { caller: name(&row.span), callee, why: why(&row.span), injected: false }
        }
    }
}

/// `service4, service5 and service6`
pub(crate) fn listed(names: &[Box<str>]) -> String {
    let shown: Vec<_> = names.iter().take(NAMED).map(|name| shorten(name, MAX_TEXT)).collect();
    match (shown.split_last(), names.len().saturating_sub(NAMED)) {
        (Some((last, [])), 0) => last.clone(),
        (Some((last, others)), 0) => format!("{} and {last}", others.join(", ")),
        (_, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::traces::{ExpectedTrace, Verdict, decode};

    /// Spans in short: id, parent, kind, service, and the status or `-`, one a line.
    fn trace(text: &str) -> Trace {
        let spans: Vec<_> = text
            .lines()
            .map(|line| {
                let [id, parent, kind, service, status] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                    panic!("{line}")
                };
                let mut span =
                    serde_json::json!({"traceId": "a", "id": id, "localEndpoint": {"serviceName": service}, "tags": {}});
                if parent != "-" {
                    span["parentId"] = parent.into();
                }
                if kind != "INTERNAL" {
                    span["kind"] = kind.into();
                }
                match status.parse::<u16>() {
                    Ok(status) => span["tags"]["http.response.status_code"] = status.to_string().into(),
                    Err(_) => span["tags"] = serde_json::json!({"error": status, "error.type": status}),
                }
                span
            })
            .collect();
        let json = serde_json::to_vec(&spans).unwrap();
        Trace::new(decode(&json, 99).unwrap().into_iter().map(Arc::new).collect()).unwrap()
    }

    fn sentence(text: &str) -> Option<String> {
        Failure::of(&trace(text)).map(|failure| failure.sentence(&[]))
    }

    #[test]
    fn a_failure_is_followed_to_where_it_began() {
        let chain = |last: &str| format!("1 - SERVER front 502\n2 1 CLIENT front 502\n3 2 SERVER middle 502\n{last}");
        let answered = sentence(&chain("4 3 CLIENT middle 503\n5 4 SERVER back 503"));
        assert_eq!(answered.as_deref(), Some("The request failed with 502: back answered 503."));
        let alone = sentence(&chain("4 3 CLIENT middle connection_refused"));
        assert_eq!(
            alone.as_deref(),
            Some("The request failed with 502: middle called its next hop in vain (connection_refused).")
        );
        let late = sentence(&chain("4 3 CLIENT middle timeout\n5 4 SERVER back canceled"));
        assert_eq!(late.as_deref(), Some("The request failed with 502: middle called back in vain (timeout)."));
        let inside = sentence("1 - SERVER shop 500\n2 1 INTERNAL shop sql");
        assert_eq!(inside.as_deref(), Some("The request failed with 500: shop answered 500."));
        let two = sentence(
            "1 - SERVER a 502\n2 1 CLIENT a 500\n3 2 SERVER b 500\n4 1 CLIENT a 503\n5 4 SERVER c 503\n6 1 CLIENT a 200",
        );
        assert_eq!(two.as_deref(), Some("The request failed with 502: b answered 500, and c answered 503."));
        let silent = sentence("1 - SERVER shop stock\n2 1 CLIENT shop 200");
        assert_eq!(silent.as_deref(), Some("The request failed: shop failed (stock)."));
        assert_eq!(sentence("1 - SERVER front 200\n2 1 CLIENT front 503"), None, "the caller coped with it");
        assert_eq!(sentence("1 - SERVER front 404"), None);
    }

    #[test]
    fn a_verdict_says_what_failed_and_who_was_never_called_because_of_it() {
        let hops: Vec<Box<str>> = (1..=4).map(|n| format!("service{n}").into()).collect();
        let expected = ExpectedTrace { hops, ..ExpectedTrace::of_hops(4) };
        let text = "1 - SERVER service1 502\n2 1 CLIENT service1 503\n3 2 SERVER service2 503";
        let verdict = Verdict::of(&[trace(text)], &expected);
        let failure = "The request failed with 502: service2 answered 503; so service3 and service4 were never called.";
        assert_eq!(verdict.failure.as_deref(), Some(failure));
        assert_eq!(
            verdict.deviations,
            ["2 services instead of 4 reported (service1, service2): service3 and service4 were never called."]
        );
        // The reply knows of the fault.
        let origin = Origin::Answered { service: "service2".into(), status: 503, injected: true };
        let reply = Failure { status: Some(502), origins: vec![origin], reached: vec!["service1".into(), "service2".into()] };
        let verdict = Verdict::of(&[trace(text)], &ExpectedTrace { failure: Some(reply.clone()), ..expected.clone() });
        assert!(verdict.failure.unwrap().contains("service2 answered 503, by its injected fault; so"));
        // One that was reached does not report; and where a call had no answer nobody knows what is below it.
        let reached = Failure { reached: (1..=3).map(|n| format!("service{n}").into()).collect(), ..reply };
        let verdict = Verdict::of(&[trace(text)], &ExpectedTrace { failure: Some(reached), ..expected.clone() });
        assert!(verdict.deviations[0].contains("the others were not reached, do not report"), "{verdict:?}");
        let verdict = Verdict::of(&[trace(&text.replace("SERVER service2 503", "SERVER service2 canceled"))], &expected);
        assert!(!verdict.failure.unwrap().contains("never called"));
        let origin =
            Origin::NoAnswer { caller: "service1".into(), callee: Some("service2".into()), why: "late".into(), injected: false };
        let late = Failure { status: Some(504), origins: vec![origin], reached: vec!["service1".into()] };
        let verdict = Verdict::of(
            &[trace("1 - SERVER service1 504\n2 1 CLIENT service1 timeout")],
            &ExpectedTrace { failure: Some(late), ..expected },
        );
        assert!(
            verdict.deviations[0]
                .ends_with("service2 was called in vain and has not reported; nobody knows of service3 and service4."),
            "{verdict:?}"
        );
    }

    #[test]
    fn an_answer_that_a_fault_cut_is_said_to_be_cut_by_it() {
        let text = "1 - SERVER a 502\n2 1 CLIENT a broken_answer\n3 2 SERVER b injected_fault";
        let verdict = Verdict::of(&[trace(text)], &ExpectedTrace::default());
        let said = "The request failed with 502: b gave a no whole answer, by its injected fault (broken_answer).";
        assert_eq!(verdict.failure.as_deref(), Some(said));
    }

    #[test]
    fn what_was_not_sampled_is_said_to_be_not_sampled() {
        let hops: Vec<Box<str>> = (1..=3).map(|n| format!("service{n}").into()).collect();
        let breaks = vec!["The sampling decision flipped between service2 and service3.".to_owned()];
        let expected = ExpectedTrace { hops, breaks, sampling_ends: true, ..ExpectedTrace::of_hops(3) };
        let text = "1 - SERVER service1 200\n2 1 CLIENT service1 200\n3 2 SERVER service2 200\n4 3 CLIENT service2 200";
        let verdict = Verdict::of(&[trace(text)], &expected);
        let said = "2 services instead of 3 reported (service1, service2): the rest is not sampled.";
        assert_eq!(verdict.deviations[0], said);
        assert!(verdict.deviations[1].ends_with("the rest is not sampled."), "{verdict:?}");
        assert!(!verdict.deviations.join(" ").contains("on the way"), "{verdict:?}");
    }

    #[test]
    fn an_id_that_was_used_again_is_no_broken_trace() {
        let again = trace(
            "1 9 SERVER front 200\n2 1 CLIENT front 200\n3 2 SERVER back 200\n4 9 SERVER front 200\n5 4 CLIENT front 200\n6 5 SERVER back 200",
        );
        let expected = ExpectedTrace { caller: crate::traces::Caller::Unknown, ..ExpectedTrace::default() };
        let verdict = Verdict::of(&[again], &expected);
        assert_eq!((verdict.requests, verdict.whole, verdict.orphans.len()), (2, true, 0), "{verdict:?}");
        let lost = trace("1 9 SERVER front 200\n2 1 CLIENT front 200\n4 8 SERVER back 200");
        assert_eq!(Verdict::of(&[lost], &expected).requests, 1);
    }
}
