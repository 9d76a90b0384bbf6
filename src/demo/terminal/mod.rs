//! What the terminal shows.

pub mod waterfall;
