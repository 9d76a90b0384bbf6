//! Text helpers that know nothing of the rest.

pub(crate) mod json;
