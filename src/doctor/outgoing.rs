//! Calls that begin traces: client spans without a parent at a service that was serving a request just then, or had just answered one.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::doctor::begun::Search;
use crate::doctor::hosts::host_of;
use crate::doctor::system::Remote;
use crate::doctor::timing::{Interval, Pair, Timeline, interval};
use crate::traces::Kind;

/// How long behind the answer work is still that of its request, microseconds.
const BEHIND_US: i64 = 5_000;
/// Hosts are compared side by side, so far from each other, microseconds.
const APART_US: i64 = 1 << 52;
/// Beyond it times would overflow.
const MAX_APART: i64 = 1_000;

impl Search<'_> {
    pub(super) fn calls_that_begin_traces(&mut self) {
        let begins = |kind| !matches!(kind, Some(Kind::Server | Kind::Consumer));
        for (service, roots) in self.roots(begins) {
            let mut by_callee: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
            for root in roots {
                let callee = match self.system.callee(root) {
                    Remote::Reports(callee) => Some(callee),
                    Remote::Silent(_) | Remote::Unnamed => None,
                };
                by_callee.entry(callee).or_default().push(root);
            }
            for (callee, roots) in by_callee {
                let entries = self.without_call(service, callee);
                let mut pairs = self.inside(&roots, &entries, false).pairs;
                if pairs.is_empty() {
                    pairs = self.beside(&roots, &entries);
                }
                if !pairs.is_empty() && callee.is_some() {
                    // Whether the request around it was recorded or not: none has a context.
                    let placed: HashSet<usize> = pairs.iter().map(|(root, _)| *root).collect();
                    let is_left = |root: &&usize| !placed.contains(root) && !self.is_timer(**root);
                    pairs.extend(roots.iter().filter(is_left).map(|root| (*root, *root)));
                }
                self.take(service, callee.unwrap_or(service), pairs, None);
            }
        }
    }

    /// Roots that begin in the work of their own host, or right behind it: what a request leaves to another thread goes on after the
    /// answer. No clocks differ there, and of one host fewer spans are open at a time than of all.
    fn beside(&self, roots: &[usize], entries: &[usize]) -> Vec<Pair> {
        let spans = &self.system.spans;
        let mut hosts: HashMap<Box<str>, i64> = HashMap::new();
        let mut shift = |at: usize| {
            let host = Some(host_of(&spans[at].span)).filter(|host| !host.is_empty() && spans[at].start > 0)?;
            let next = hosts.len() as i64;
            let n = *hosts.entry(host).or_insert(next);
            (n < MAX_APART).then_some(n * APART_US)
        };
        let begins = |(at, shift): (usize, i64)| (at, (spans[at].start + shift, spans[at].start + shift));
        let work = |(at, shift): (usize, i64)| {
            let (start, end) = interval(&spans[at]);
            (at, (start + shift, end + shift + BEHIND_US))
        };
        let calls = roots.iter().filter(|at| spans[**at].is(Kind::Client));
        let roots: Vec<(usize, Interval)> = calls.filter_map(|at| Some((*at, shift(*at)?))).map(begins).collect();
        let entries: Vec<(usize, Interval)> = entries.iter().filter_map(|at| Some((*at, shift(*at)?))).map(work).collect();
        let found = Timeline::new(entries).matches(&roots, 0);
        found.unwrap_or_default().pairs
    }
}
