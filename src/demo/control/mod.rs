//! What the page shows of the hops and what it changes in them.

pub(crate) mod live;
pub(crate) mod orders;
pub(crate) mod panel;
