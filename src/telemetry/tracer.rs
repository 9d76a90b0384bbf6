//! Sampling, and the contexts of a hop's spans.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use opentelemetry::trace::TraceId;

use crate::telemetry::draws::{DrawPlace, Draws};
use crate::telemetry::ids;
use crate::telemetry::span_queue::{FinishedSpan, SpanQueue};
use crate::trace_context::{Context, Incoming, Sampling};

/// `OTEL_TRACES_SAMPLER`: decides whether a trace is recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// A decision that came with the request is respected.
    parent_based: bool,
    root: RootSampler,
}

/// The decision for a trace that carries none.
#[derive(Debug, Clone, Copy, PartialEq)]
enum RootSampler {
    AlwaysOn,
    AlwaysOff,
    /// The share of trace ids, from 0 to 1.
    Ratio(f64),
}

/// Why a sampler cannot be configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SamplerError {
    /// `OTEL_TRACES_SAMPLER` names no sampler; holds the name.
    UnknownSampler(String),
    /// `OTEL_TRACES_SAMPLER_ARG` is not a ratio from 0 to 1; holds the text.
    InvalidRatio(String),
}

impl fmt::Display for SamplerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownSampler(name) => write!(
                f,
                "unknown sampler '{name}'; accepted: always_on, always_off, traceidratio, \
                 parentbased_always_on, parentbased_always_off, parentbased_traceidratio"
            ),
            Self::InvalidRatio(text) => write!(f, "OTEL_TRACES_SAMPLER_ARG '{text}' is not a ratio from 0 to 1"),
        }
    }
}

impl Error for SamplerError {}

impl Default for Sampler {
    fn default() -> Self {
        Self { parent_based: true, root: RootSampler::AlwaysOn }
    }
}

/// As `OTEL_TRACES_SAMPLER` has it, with the ratio behind it.
impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.parent_based { "parentbased_" } else { "" })?;
        match self.root {
            RootSampler::AlwaysOn => f.write_str("always_on"),
            RootSampler::AlwaysOff => f.write_str("always_off"),
            RootSampler::Ratio(ratio) => write!(f, "traceidratio {ratio}"),
        }
    }
}

impl Sampler {
    /// Parses the values of `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
    ///
    /// # Errors
    ///
    /// [`SamplerError`] when the name is not a sampler of the OpenTelemetry specification, or the argument is no ratio.
    pub fn parse(name: &str, arg: Option<&str>) -> Result<Self, SamplerError> {
        let (parent_based, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let root = match root {
            "always_on" => RootSampler::AlwaysOn,
            "always_off" => RootSampler::AlwaysOff,
            "traceidratio" => {
                let arg = arg.unwrap_or("1.0");
                let ratio = arg.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
                RootSampler::Ratio(ratio.ok_or_else(|| SamplerError::InvalidRatio(arg.to_owned()))?)
            }
            _ => return Err(SamplerError::UnknownSampler(name.to_owned())),
        };
        Ok(Self { parent_based, root })
    }

    fn decide(self, incoming: Sampling, trace_id: TraceId) -> Sampling {
        match incoming {
            Sampling::Debug => Sampling::Debug,
            Sampling::Sample | Sampling::Drop if self.parent_based => incoming,
            _ if self.root.samples(trace_id) => Sampling::Sample,
            _ => Sampling::Drop,
        }
    }
}

impl RootSampler {
    fn samples(self, trace_id: TraceId) -> bool {
        match self {
            Self::AlwaysOn => true,
            Self::AlwaysOff => false,
            Self::Ratio(ratio) if ratio >= 1.0 => true,
            // The lower 63 bits, like `TraceIdRatioBased` of the SDK, so that all hops of a trace decide alike.
            Self::Ratio(ratio) => {
                let low = u128::from_be_bytes(trace_id.to_bytes()) as u64 >> 1;
                (low as f64) < ratio * (1_u64 << 63) as f64
            }
        }
    }
}

/// Starts spans of one hop and records finished ones. Clones share the queues.
#[derive(Debug, Clone)]
pub(crate) struct Tracer {
    sampler: Sampler,
    /// One for each exporter.
    queues: Arc<[Arc<SpanQueue>]>,
}

impl Tracer {
    pub(crate) fn new(sampler: Sampler, queues: Arc<[Arc<SpanQueue>]>) -> Self {
        Self { sampler, queues }
    }

    /// The context of the server span, which continues the incoming trace or starts one; `true` when it starts one.
    pub(crate) fn server_context(&self, incoming: &Incoming, draws: Draws) -> (Context, bool) {
        match incoming.context {
            Some(caller) => {
                let mut context = caller.child(ids::span_id());
                context.sampling = self.sampler.decide(caller.sampling, caller.trace_id);
                (context, false)
            }
            None => {
                let trace_id = draws.trace_id(DrawPlace::Trace, 0);
                let sampling = self.sampler.decide(incoming.sampling, trace_id);
                (
                    Context { trace_id, short_trace_id: false, random: true, span_id: ids::span_id(), parent_id: None, sampling },
                    true,
                )
            }
        }
    }

    /// Queues a finished span if its trace is sampled. Never blocks; a span that does not fit is dropped and counted.
    pub(crate) fn record(&self, span: &FinishedSpan<'_>) {
        if span.context.sampling.is_sampled() {
            self.queues.iter().for_each(|queue| queue.push(span));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::SpanId;
    use opentelemetry_sdk::trace::{Sampler as SdkSampler, ShouldSample as _};

    #[test]
    fn the_receiver_decides_where_the_caller_did_not() {
        let tracer = Tracer::new(Sampler::default(), Arc::new([]));
        let caller = Context {
            trace_id: ids::trace_id(),
            short_trace_id: false,
            random: false,
            span_id: SpanId::from(1),
            parent_id: None,
            sampling: Sampling::Deferred,
        };
        let (server, new) =
            tracer.server_context(&Incoming { context: Some(caller), sampling: Sampling::Deferred }, Draws::random());
        assert!(!new);
        assert_eq!((server.trace_id, server.parent_id), (caller.trace_id, Some(caller.span_id)));
        assert_eq!(server.sampling, Sampling::Sample);
    }

    #[test]
    fn samplers_do_what_their_names_say() {
        let decide =
            |name: &str, arg, incoming| Sampler::parse(name, arg).unwrap().decide(incoming, TraceId::from(u128::MAX >> 1));
        assert_eq!(decide("parentbased_always_on", None, Sampling::Drop), Sampling::Drop);
        assert_eq!(decide("always_on", None, Sampling::Drop), Sampling::Sample);
        assert_eq!(decide("parentbased_always_off", None, Sampling::Deferred), Sampling::Drop);
        assert_eq!(decide("always_off", None, Sampling::Sample), Sampling::Drop);
        assert_eq!(decide("always_off", None, Sampling::Debug), Sampling::Debug);
        assert_eq!(decide("traceidratio", Some("0"), Sampling::Sample), Sampling::Drop);
        assert_eq!(decide("traceidratio", Some("1"), Sampling::Drop), Sampling::Sample);
        assert_eq!(Sampler::parse("sometimes", None), Err(SamplerError::UnknownSampler("sometimes".into())));
        assert_eq!(Sampler::parse("traceidratio", Some("2")), Err(SamplerError::InvalidRatio("2".into())));
    }

    #[test]
    fn the_ratio_sampler_decides_like_the_sdk() {
        for ratio in ["0", "0.001", "0.25", "0.5", "0.999", "1"] {
            let own = Sampler::parse("traceidratio", Some(ratio)).unwrap();
            let sdk = SdkSampler::TraceIdRatioBased(ratio.parse().unwrap());
            let mut sampled = 0;
            for _ in 0..10_000 {
                let id = ids::trace_id();
                let decision = sdk.should_sample(None, id, "", &opentelemetry::trace::SpanKind::Server, &[], &[]).decision;
                let expected = decision == opentelemetry_sdk::trace::SamplingDecision::RecordAndSample;
                assert_eq!(own.decide(Sampling::Deferred, id) == Sampling::Sample, expected, "{ratio} {id}");
                sampled += u32::from(expected);
            }
            if ratio == "0.25" {
                // Standard deviation 43: six of them.
                assert!((2_240..=2_760).contains(&sampled), "{sampled}");
            }
        }
    }
}
