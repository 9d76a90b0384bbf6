//! Text: escaping, hex, numbers, times, terminals, the causes of an error. A leaf: imports nothing of this crate.

mod causes;
pub(crate) mod escape;
pub(crate) mod hex;
pub(crate) mod number;
mod shell;
pub(crate) mod terminal;
pub(crate) mod time;

pub(crate) use causes::{causes, root_cause};
pub(crate) use escape::{misleads, plain, shorten};
pub(crate) use shell::quoted;

/// The media type of problem documents (RFC 9457).
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// A number of things of one kind: `1 span`, `2 spans`.
pub(crate) fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
