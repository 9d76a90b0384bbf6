//! Text helpers that know nothing of the rest.

mod causes;
pub(crate) mod hex;
pub(crate) mod json;
pub(crate) mod number;
pub(crate) mod time;

pub(crate) use causes::causes;

/// The media type of problem documents (RFC 9457).
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
