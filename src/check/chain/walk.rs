//! Walks over a reply: its hops, and the calls of each. Pure.

use crate::hop::reply::{Call, Tree};

/// The calls of a hop by URL, in a row, and whether they are attempts of one call (`--retries`): all but the last failed. A proxy in
/// between overwrites the number of an attempt, so it does not say so.
fn attempts(tree: &Tree) -> impl Iterator<Item = (&[Call], bool)> {
    tree.upstreams.chunk_by(|a, b| a.url == b.url).map(|row| {
        let (last, before) = row.split_last().map_or((None, row), |(last, before)| (Some(last), before));
        let is_over = last.is_some_and(|last| last.has_failed() || tree.is_success());
        (row, !before.is_empty() && is_over && before.iter().all(Call::has_failed))
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
