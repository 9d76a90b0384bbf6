//! Whether a root can be the answer of a call: path, address and caller, where both spans name them.
//!
//! How far these can be relied on is learned from the calls that are answered: a gateway may change paths, and a balancer addresses.

use std::collections::BTreeMap;

use crate::doctor::peers::{own_addresses, peer_addresses};
use crate::doctor::silent::path;
use crate::doctor::system::{Remote, System};
use crate::doctor::timing::Pair;
use crate::traces::Kind;

/// What the two spans of a call have in common in this system.
pub(super) struct Direct<'a> {
    system: &'a System,
    by_path: bool,
    by_address: bool,
    by_caller: bool,
}

/// How often two spans agree, where both say something.
#[derive(Default)]
struct Agreement {
    agree: usize,
    known: usize,
}

impl Agreement {
    fn add(&mut self, agrees: Option<bool>) {
        self.known += usize::from(agrees.is_some());
        self.agree += usize::from(agrees == Some(true));
    }

    fn holds(&self) -> bool {
        const LEAST: usize = 20;
        self.known >= LEAST && self.agree * 20 >= self.known * 19
    }
}

impl<'a> Direct<'a> {
    pub(super) fn new(system: &'a System) -> Self {
        let (mut paths, mut addresses, mut callers) = (Agreement::default(), Agreement::default(), Agreement::default());
        for (at, span) in system.spans.iter().enumerate().filter(|(_, span)| span.is(Kind::Server)) {
            let Some(call) = span.parent.filter(|parent| system.spans[*parent].service != span.service) else { continue };
            paths.add(same_path(system, at, call));
            addresses.add(same_address(system, at, call));
            callers.add(same_caller(system, at, call));
        }
        Self { system, by_path: paths.holds(), by_address: addresses.holds(), by_caller: callers.holds() }
    }

    /// Whether the root came from the service around it.
    fn is_from(&self, (root, outer): Pair) -> bool {
        !self.by_caller || same_caller(self.system, root, outer) != Some(false)
    }

    /// Whether the root may be what answers the call around it.
    fn is_answer(&self, (root, call): Pair) -> bool {
        (!self.by_path || same_path(self.system, root, call) != Some(false))
            && (!self.by_address || same_address(self.system, root, call) != Some(false))
    }

    /// The pairs of caller and root without those of somebody in between; or, where that are most, those, with who it is. `silent`: who
    /// was called; `is_named`: the callee was, by its name.
    pub(super) fn sorted(&self, pairs: Vec<Pair>, silent: Option<&str>, is_named: bool) -> (Vec<Pair>, Option<Box<str>>) {
        let is_known = |call: usize| is_named || silent.is_some() || !self.system.spans[call].is(Kind::Client);
        let fits = |pair: &Pair| self.is_from(*pair) && (is_known(pair.1) || self.is_answer(*pair));
        let (direct, others): (Vec<Pair>, Vec<Pair>) = pairs.into_iter().partition(fits);
        if direct.len() >= others.len() {
            return (direct, silent.map(Box::from));
        }
        let mut names: BTreeMap<Box<str>, usize> = BTreeMap::new();
        others.iter().filter_map(|pair| self.between(*pair)).for_each(|name| *names.entry(name).or_default() += 1);
        let name = names.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name);
        if name.is_some() { (others, name) } else { (direct, silent.map(Box::from)) }
    }

    /// Who was called and called the root.
    fn between(&self, (root, call): Pair) -> Option<Box<str>> {
        let system = self.system;
        if let Some(caller) = system.caller(root).filter(|_| self.by_caller) {
            return Some(system.name(caller).into());
        }
        if let Remote::Silent(name) = system.remote(call) {
            return Some(name);
        }
        let seen = &system.spans[call].span;
        let address = || Some(format!("the service at {}", peer_addresses(seen).next()?).into());
        let first = path(seen).and_then(|path| path.split('/').find(|part| !part.is_empty()));
        first.map(|first| format!("the service behind /{first}").into()).or_else(address)
    }
}

fn same_path(system: &System, server: usize, call: usize) -> Option<bool> {
    let (called, served) = (path(&system.spans[call].span)?, path(&system.spans[server].span)?);
    Some(called.ends_with(served) || served.ends_with(called))
}

fn same_address(system: &System, server: usize, call: usize) -> Option<bool> {
    let mut own = own_addresses(&system.spans[server].span).peekable();
    own.peek()?;
    let called: Vec<_> = peer_addresses(&system.spans[call].span).collect();
    (!called.is_empty()).then(|| own.any(|address| called.contains(&address)))
}

fn same_caller(system: &System, server: usize, caller: usize) -> Option<bool> {
    Some(system.caller(server)? == system.spans[caller].service)
}
