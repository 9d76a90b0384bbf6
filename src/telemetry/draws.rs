//! The draws of a request: random, or with `--seed` a function of the seed, the request, the hop and the place of the draw.

use crate::telemetry::ids;

/// What is drawn for. The numbers are part of what makes a run repeatable: a new place takes the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Place {
    /// `--latency`.
    Latency = 1,
    /// The fault of this index.
    Fault = 2,
    /// The break of this index.
    Break = 3,
}

/// The draws of one request at one hop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draws(Option<u64>);

impl Draws {
    /// Another draw each time.
    pub(crate) fn random() -> Self {
        Self(None)
    }

    /// A number from 0 (included) to 1 (excluded), uniform.
    pub(crate) fn unit(self, place: Place, index: usize) -> f64 {
        let Some(state) = self.0 else { return ids::unit() };
        let place = (place as u64) << 32 | index as u64;
        (mixed(state ^ mixed(place)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// SplitMix64: each bit of the input changes half of the output's.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
