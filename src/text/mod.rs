//! Text helpers that know nothing of the rest.

mod causes;
pub(crate) mod hex;
pub(crate) mod json;

pub(crate) use causes::causes;
