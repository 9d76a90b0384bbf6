//! Text helpers that know nothing of the rest.

mod causes;
pub(crate) mod escape;
pub(crate) mod hex;
pub(crate) mod number;
pub(crate) mod time;

pub(crate) use causes::causes;
pub(crate) use escape::{misleads, plain};

/// The media type of problem documents (RFC 9457).
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
