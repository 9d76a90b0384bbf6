//! Who called whom: the dependency graph of Zipkin's API.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::traces::span::{Kind, Span};
use crate::traces::trace::{Parent, parents};

/// How often one service called another.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DependencyLink {
    /// The caller.
    pub parent: Box<str>,
    /// The one called.
    pub child: Box<str>,
    /// Calls.
    pub call_count: u64,
    /// Calls of these that failed; absent in JSON when there are none.
    #[serde(skip_serializing_if = "is_zero")]
    pub error_count: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The calls in some traces, sorted by caller and callee.
#[derive(Debug, Default)]
pub struct Dependencies {
    calls: BTreeMap<(Box<str>, Box<str>), Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    count: u64,
    errors: u64,
}

impl Dependencies {
    /// Adds the calls of one trace, by the rules of Zipkin's `DependencyLinker`: a call counts once, at the server's span; at
    /// the client's only where nothing came of it in this trace (the other side does not report).
    pub fn add(&mut self, spans: &[Arc<Span>]) {
        let parents = parents(spans);
        let mut has_children = vec![false; spans.len()];
        for parent in &parents {
            if let Parent::At(at) = parent {
                has_children[*at] = true;
            }
        }
        let callers = callers(spans, &parents);
        for (at, span) in spans.iter().enumerate() {
            let kind = match span.kind {
                Some(Kind::Client) if has_children[at] => continue,
                Some(kind) => kind,
                None if span.service().is_some() && span.remote_service().is_some() => Kind::Client,
                None => continue,
            };
            self.add_span(span, kind, callers[at].map(|at| &*spans[at]));
        }
    }

    /// The links so far.
    pub fn into_links(self) -> Vec<DependencyLink> {
        let link = |((parent, child), calls): ((_, _), Calls)| DependencyLink {
            parent,
            child,
            call_count: calls.count,
            error_count: calls.errors,
        };
        self.calls.into_iter().map(link).collect()
    }

    fn count(&mut self, parent: Option<&str>, child: Option<&str>, failed: bool) {
        if let (Some(parent), Some(child)) = (parent, child) {
            let calls = self.calls.entry((parent.into(), child.into())).or_default();
            calls.count += 1;
            calls.errors += u64::from(failed);
        }
    }

    /// Counts the call of one span; `caller` is the nearest span above it that is one side of a call.
    fn add_span(&mut self, span: &Span, kind: Kind, caller: Option<&Span>) {
        let (local, remote, error) = (span.service(), span.remote_service(), span.is_error());
        let caller_name = caller.and_then(Span::service);
        match kind {
            Kind::Producer => self.count(local, remote, error),
            Kind::Consumer => self.count(remote, local, error),
            Kind::Client => {
                if caller_name.is_some() && local.is_some() && caller_name != local {
                    // The service between the two reported no server span.
                    self.count(caller_name, local, false);
                }
                self.count(local.or(caller_name), remote, error || failed_above(span, caller));
            }
            Kind::Server => self.count(caller_name.or(remote), local, error || failed_above(span, caller)),
        }
    }
}

/// Whether the client's half of the same call says that it failed.
fn failed_above(span: &Span, caller: Option<&Span>) -> bool {
    caller.is_some_and(|caller| {
        let same_call = span.parent_id == Some(caller.id) || span.id == caller.id;
        caller.service().is_some() && caller.kind == Some(Kind::Client) && same_call && caller.is_error()
    })
}

/// For each span the nearest one above it that is one side of a call. Each chain is walked once.
fn callers(spans: &[Arc<Span>], parents: &[Parent]) -> Vec<Option<usize>> {
    let mut above: Vec<Option<Option<usize>>> = vec![None; spans.len()];
    for start in 0..spans.len() {
        let (mut walked, mut at) = (Vec::new(), start);
        let found = loop {
            if let Some(known) = above[at] {
                break known;
            }
            walked.push(at);
            match parents[at] {
                Parent::At(parent) if spans[parent].kind.is_some() => break Some(parent),
                Parent::At(parent) => at = parent,
                Parent::Root | Parent::Missing(_) => break None,
            }
        };
        for at in walked {
            above[at] = Some(found);
        }
    }
    above.into_iter().map(Option::flatten).collect()
}
