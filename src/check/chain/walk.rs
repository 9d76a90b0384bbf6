//! Walks over a reply: its hops, and the calls of each. Pure.

use crate::hop::reply::{Call, Tree};

pub(super) fn is_ok(status: u16) -> bool {
    (200..300).contains(&status)
}

pub(super) fn has_failed(call: &Call) -> bool {
    call.error.is_some() || !call.status.is_some_and(is_ok)
}

/// The calls of a hop by URL, in a row, and whether they are attempts of one call (`--retries`): all but the last failed. A proxy in
/// between overwrites the number of an attempt, so it does not say so.
fn attempts(tree: &Tree) -> impl Iterator<Item = (&[Call], bool)> {
    tree.upstreams.chunk_by(|a, b| a.url == b.url).map(|row| {
        let (last, before) = row.split_last().map_or((None, row), |(last, before)| (Some(last), before));
        let is_over = last.is_some_and(|last| has_failed(last) || is_ok(tree.status));
        (row, !before.is_empty() && is_over && before.iter().all(has_failed))
    })
}

/// Each call, and which of the hop's own attempts it is.
pub(crate) fn numbered(tree: &Tree) -> impl Iterator<Item = (&Call, u32)> {
    attempts(tree).flat_map(|(row, is_one)| (1_u32..).zip(row).map(move |(n, call)| (call, if is_one { n } else { 1 })))
}

/// The calls that count: of several attempts the last.
pub(super) fn settled(tree: &Tree) -> impl Iterator<Item = &Call> {
    attempts(tree).flat_map(|(row, is_one)| &row[if is_one { row.len() - 1 } else { 0 }..])
}

/// How many hops answered.
pub(crate) fn hops(tree: &Tree) -> usize {
    1 + tree.upstreams.iter().flat_map(Call::replies).map(hops).sum::<usize>()
}

/// Every hop that answered, in order, with the path to it.
pub(crate) fn visit<'a>(tree: &'a Tree, url: &'a str, depth: usize, see: &mut dyn FnMut(&'a Tree, &'a str, usize)) {
    see(tree, url, depth);
    for call in &tree.upstreams {
        if let Some(reply) = &call.reply {
            visit(reply, &call.url, depth + 1, see);
        }
        // Where an app of another make calls is not known.
        call.embedded.iter().for_each(|reply| visit(reply, "", depth + 2, see));
    }
}
