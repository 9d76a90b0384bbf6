//! The draws of a request: random, or with `--seed` a function of the seed, the request, the hop and the place of the draw.

use http::HeaderValue;
use opentelemetry::trace::{SpanId, TraceId};

use crate::telemetry::ids;

/// What is drawn for. The numbers are part of what makes a run repeatable: a new place takes the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum DrawPlace {
    /// `--latency`.
    Latency = 1,
    /// The fault of this index.
    Fault = 2,
    /// The break of this index.
    Break = 3,
    /// The fault or break of this index in `x-fault`.
    Request = 4,
    /// Whether the next hop of this index is called.
    Upstream = 5,
    /// The trace id that a hop begins a trace with.
    Trace = 6,
    /// The request id that a hop makes (0), or that a break writes into a call.
    RequestId = 7,
    /// The context of another request, for `cross-talk`.
    OtherRequest = 8,
    /// The trace that a break writes into the call of this index.
    Broken = 9,
    /// `--request-size`.
    RequestSize = 10,
    /// `--response-size`.
    ResponseSize = 11,
}

/// The draws of one request at one hop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draws(Option<u64>);

impl Draws {
    /// Another draw each time.
    pub(crate) fn random() -> Self {
        Self(None)
    }

    /// Those of the request with this id (its trace's, else its own) at this hop. Every instance of the hop draws the same; a
    /// further attempt does not.
    pub(crate) fn seeded(seed: u64, id: &[u8], hop: &str, attempt: u32) -> Self {
        // FNV-1a over what the draws depend on, with its ends marked.
        let bytes = seed.to_be_bytes().into_iter().chain(attempt.to_be_bytes());
        let bytes = bytes.chain(id.iter().copied()).chain([0xff]).chain(hop.bytes());
        Self(Some(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))))
    }

    /// A number from 0 (included) to 1 (excluded), uniform.
    pub(crate) fn unit(self, place: DrawPlace, index: usize) -> f64 {
        let Some(bits) = self.bits(place, index) else { return ids::unit() };
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// `None`: it is to be random.
    fn bits(self, place: DrawPlace, index: usize) -> Option<u64> {
        let place = (place as u64) << 32 | index as u64;
        self.0.map(|state| mixed(state ^ mixed(place)))
    }

    /// A trace id.
    pub(crate) fn trace_id(self, place: DrawPlace, index: usize) -> TraceId {
        let Some(high) = self.bits(place, index) else { return ids::trace_id() };
        // Never zero, which is no id.
        TraceId::from(u128::from(high) << 64 | u128::from(mixed(high).max(1)))
    }

    /// A span id.
    pub(crate) fn span_id(self, place: DrawPlace, index: usize) -> SpanId {
        self.bits(place, index).map_or_else(ids::span_id, |bits| SpanId::from(mixed(mixed(bits)).max(1)))
    }

    /// A request id.
    pub(crate) fn request_id(self, place: DrawPlace, index: usize) -> HeaderValue {
        ids::request_id_of(self.trace_id(place, index))
    }

    /// The draws follow from a seed.
    pub(crate) fn is_seeded(self) -> bool {
        self.0.is_some()
    }
}

/// SplitMix64: each bit of the input changes half of the output's.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_id_draw_the_same_everywhere_and_for_ever() {
        let draw = |seed, id: u128, hop, attempt, place, at| Draws::seeded(seed, &id.to_be_bytes(), hop, attempt).unit(place, at);
        let one = draw(1, 7, "service2", 1, DrawPlace::Fault, 0);
        assert_eq!(one, draw(1, 7, "service2", 1, DrawPlace::Fault, 0));
        for other in [
            draw(2, 7, "service2", 1, DrawPlace::Fault, 0),
            draw(1, 8, "service2", 1, DrawPlace::Fault, 0),
            draw(1, 7, "service3", 1, DrawPlace::Fault, 0),
            draw(1, 7, "service2", 2, DrawPlace::Fault, 0),
            draw(1, 7, "service2", 1, DrawPlace::Break, 0),
            draw(1, 7, "service2", 1, DrawPlace::Fault, 1),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn rates_are_exact_over_100_000_ids_whether_random_or_counted() {
        const IDS: u32 = 100_000;
        let counted = |n: u32| u128::from(n).to_be_bytes().to_vec();
        let random = |_: u32| ids::trace_id().to_bytes().to_vec();
        let texts = |n: u32| format!("request-{n}").into_bytes();
        for ids in [&counted as &dyn Fn(u32) -> Vec<u8>, &random, &texts] {
            for share in [0.001, 0.05, 0.3, 0.5, 0.99] {
                for place in 0..3 {
                    let drawn = |n: u32| Draws::seeded(42, &ids(n), "service2", 1).unit(DrawPlace::Fault, place);
                    let struck = (0..IDS).filter(|n| drawn(*n) < share).count() as f64;
                    let six_sigma = 6.0 * (f64::from(IDS) * share * (1.0 - share)).sqrt();
                    assert!((struck - f64::from(IDS) * share).abs() <= six_sigma, "{share}: {struck}");
                }
            }
        }
        // Two places are independent: both strike as often as the product says.
        let both = (0..IDS).filter(|n| {
            let draws = Draws::seeded(42, &counted(*n), "service2", 1);
            draws.unit(DrawPlace::Fault, 0) < 0.5 && draws.unit(DrawPlace::Fault, 1) < 0.5
        });
        let both = both.count() as f64;
        assert!((both - 25_000.0).abs() < 6.0 * 137.0, "{both}");
    }
}
