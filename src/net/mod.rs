//! Hosts and addresses as they stand in URLs and headers. Knows nothing of the rest.

pub(crate) mod addresses;
pub(crate) mod hosts;
