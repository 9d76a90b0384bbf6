//! What one request shows of every hop and every seam: the evidence that the findings are made from.

use crate::check::envoy::suggestions::{HopRef, Runner, name_of, runner};
use crate::hop::reply::Propagation;
use crate::report::Side;
use crate::trace_context::{Context, HeaderFamily, Mangling};
use crate::traces::TraceId;

/// The caller's name in every seam in front of the first hop.
pub(crate) const CALLER: &str = "check";

/// Something that went wrong with a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeaderChange {
    /// It was there before and is not there behind.
    Lost(String),
    /// Its value changed.
    Changed { name: String, before: String, after: String },
    /// Its values were damaged in a way that has a name.
    Mangled { name: String, how: Mangling, values: String },
    /// The context in this format was valid before and is not behind: this header's value.
    Invalid { format: HeaderFamily, name: String, value: String },
    /// The trace id in this format changed.
    Trace { format: HeaderFamily, before: String, after: String },
    /// The sampling decision was turned round.
    Sampled { before: bool, after: bool },
    /// The hop has spans of its own and sent this id of the span that it received on.
    StaleParent { span: String },
    /// The hop received these traces and started another.
    NewTrace { received: Vec<(HeaderFamily, String)>, started: String },
    /// The hop read `read` where the proxies speak `fresh`; `trace` says that it even joined another trace.
    Order { fresh: HeaderFamily, read: HeaderFamily, trace: bool },
}

impl HeaderChange {
    /// The header that it is about; of a context the one that names it.
    pub(crate) fn header(&self) -> Option<String> {
        match self {
            Self::Lost(name) | Self::Changed { name, .. } | Self::Mangled { name, .. } | Self::Invalid { name, .. } => {
                Some(name.clone())
            }
            Self::Trace { format, .. } => Some(format.header().to_owned()),
            Self::Sampled { .. } | Self::StaleParent { .. } | Self::NewTrace { .. } | Self::Order { .. } => None,
        }
    }
}

/// Everything that went wrong on one side of one seam.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeamFault {
    pub(crate) from: HopRef,
    pub(crate) to: HopRef,
    pub(crate) side: Side,
    /// What the hop that is in question says of itself.
    pub(crate) mode: Option<Propagation>,
    /// A foreign app that stands between the two.
    pub(crate) via: Option<ForeignApp>,
    pub(crate) effects: Vec<HeaderChange>,
}

/// A foreign app, known by the URL that a hop calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignApp {
    pub(crate) name: String,
    pub(crate) url: String,
}

impl ForeignApp {
    pub(crate) fn at(url: &str) -> Self {
        Self { name: name_of(url), url: url.to_owned() }
    }
}

impl SeamFault {
    /// Whether a trace context is among what was lost or replaced.
    pub(crate) fn breaks(&self, format: HeaderFamily) -> bool {
        self.effects.iter().any(|effect| match effect {
            HeaderChange::Lost(name) => format.has(name),
            HeaderChange::Trace { format: of, .. } | HeaderChange::Invalid { format: of, .. } => *of == format,
            HeaderChange::NewTrace { received, .. } => received.iter().any(|(of, _)| *of == format),
            HeaderChange::Order { .. } => true,
            HeaderChange::Changed { name, .. } | HeaderChange::Mangled { name, .. } => format.has(name),
            HeaderChange::Sampled { .. } | HeaderChange::StaleParent { .. } => false,
        })
    }

    /// Whether this header is in question.
    pub(crate) fn touches(&self, header: &str) -> bool {
        self.effects.iter().any(|effect| match effect {
            HeaderChange::Lost(name) | HeaderChange::Changed { name, .. } | HeaderChange::Mangled { name, .. } => name == header,
            _ => false,
        })
    }
}

/// What stands between a hop and its caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Proxy {
    /// Wrote a span of its own into `traceparent`.
    pub(crate) w3c: bool,
    /// Wrote a span of its own into B3.
    pub(crate) b3: bool,
    /// Reported the caller's certificate: a proxy with mTLS, traced or not.
    pub(crate) identity: bool,
    /// Set Envoy's digit in the request id, or counts attempts: a proxy, traced or not.
    pub(crate) envoy: bool,
    /// Called the app from the address that Istio's sidecars use for nothing else: a sidecar of the hop's own, whether or not it
    /// knows that the call is HTTP.
    pub(crate) sidecar: bool,
}

/// From where an Istio sidecar calls the app that it stands beside.
pub(crate) const SIDECAR_CALLS_FROM: [&str; 2] = ["127.0.0.6", "::6"];

impl Proxy {
    pub(crate) fn traces(self) -> bool {
        self.w3c || self.b3
    }

    pub(crate) fn wrote(self, format: HeaderFamily) -> bool {
        match format {
            HeaderFamily::W3c => self.w3c,
            HeaderFamily::B3 => self.b3,
        }
    }

    pub(crate) fn is_seen(self) -> bool {
        self.traces() || self.identity || self.envoy || self.sidecar
    }

    /// Whether the hop has a sidecar of its own for certain. A traced call proves none: the caller's sidecar may have written it.
    pub(crate) fn is_own_sidecar(self) -> bool {
        self.identity || self.sidecar
    }
}

/// One hop of the x-ray's table.
#[derive(Debug, Clone)]
pub(crate) struct HopEvidence {
    pub(crate) hop: HopRef,
    /// 0 for the first hop.
    pub(crate) depth: usize,
    /// A foreign app through which its caller reached it.
    pub(crate) via: Option<ForeignApp>,
    pub(crate) mode: Propagation,
    /// How it was asked, as its reply shows it.
    pub(crate) protocol: Option<String>,
    pub(crate) w3c: Option<Context>,
    pub(crate) b3: Option<Context>,
    pub(crate) request_id: RequestId,
    pub(crate) proxy: Proxy,
    /// Which of `baggage`, `tracestate` and `x-lane` arrived.
    pub(crate) others: Vec<&'static str>,
    /// What it broke on purpose, as its reply says.
    pub(crate) breaks: Vec<String>,
}

impl HopEvidence {
    pub(crate) fn context(&self, format: HeaderFamily) -> Option<&Context> {
        match format {
            HeaderFamily::W3c => self.w3c.as_ref(),
            HeaderFamily::B3 => self.b3.as_ref(),
        }
    }
}

/// What became of `x-request-id` on its way to a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestId {
    Kept,
    /// Another one, given by the edge to a caller from outside.
    Replaced,
    /// Another one in the middle of the chain.
    Regenerated,
    Missing,
}

/// From a hop to one that it called, or that a foreign app called for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Which of its calls.
    pub(crate) call: usize,
    /// Which of the call's replies.
    pub(crate) reply: usize,
    pub(crate) is_foreign: bool,
}

/// A format that a continuing hop received and did not write on. Whether that is a fault depends on what the hop reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unwritten {
    /// To the hop, from the first one on.
    pub(crate) path: Vec<Step>,
    pub(crate) format: HeaderFamily,
    pub(crate) from: HopRef,
    pub(crate) to: HopRef,
    /// The headers that are gone.
    pub(crate) names: Vec<String>,
}

/// The picture of one request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Xray {
    /// The traces that the request brought.
    pub(crate) brought: Vec<TraceId>,
    pub(crate) faults: Vec<SeamFault>,
    pub(crate) rows: Vec<HopEvidence>,
    /// Open questions: see [`Xray::settle`].
    pub(crate) unwritten: Vec<Unwritten>,
    /// Formats that hops leave out by configuration, harmless where nobody speaks them.
    pub(crate) left_out: Vec<(HopRef, HeaderFamily)>,
    /// What foreign apps leave out while the trace goes on through them.
    pub(crate) withheld: Vec<Withheld>,
    /// Calls behind which nothing could be seen: the caller and the called.
    pub(crate) unobserved: Vec<(HopRef, HopRef)>,
    /// Sampling decisions that tracing proxies took instead of the one that came in.
    pub(crate) decided: Vec<Decided>,
}

/// Headers that a foreign app received from one hop and did not pass on to another.
#[derive(Debug, Clone)]
pub(crate) struct Withheld {
    pub(crate) via: ForeignApp,
    pub(crate) from: HopRef,
    pub(crate) to: HopRef,
    pub(crate) effects: Vec<HeaderChange>,
}

/// A hop that injection left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MissingSidecar<'a> {
    /// Its row.
    pub(crate) at: usize,
    pub(crate) hop: &'a HopRef,
    /// Its call came from another address than sidecars have. Plain text around a hop alone may have another cause: mTLS that
    /// is switched off.
    pub(crate) is_certain: bool,
}

/// A proxy's own word about sampling. One that traces rolls its own dice even for a caller that asked to be sampled, so at a rate
/// below 100 % this is configured behaviour, and a question of the rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decided {
    pub(crate) from: HopRef,
    pub(crate) to: HopRef,
    pub(crate) before: bool,
    pub(crate) after: bool,
}

impl Xray {
    /// What this hop broke on purpose, as text.
    pub(crate) fn broken_by(&self, hop: &HopRef) -> Option<String> {
        let row = self.rows.iter().find(|row| row.hop == *hop)?;
        (!row.breaks.is_empty()).then(|| row.breaks.join(", "))
    }

    /// Whether any proxy is seen to speak this format.
    pub(crate) fn mesh_speaks(&self, format: HeaderFamily) -> bool {
        self.rows.iter().any(|row| row.proxy.wrote(format))
    }

    /// The hop that calls the one in this row; `None` for the first.
    pub(crate) fn caller_of(&self, at: usize) -> Option<&HopEvidence> {
        let row = self.rows.get(at)?;
        let steps = 1 + usize::from(row.via.is_some());
        self.rows[..at].iter().rev().find(|above| above.depth + steps == row.depth)
    }

    /// The hops that this row's calls and that answered.
    pub(crate) fn called_by(&self, at: usize) -> impl Iterator<Item = &HopEvidence> {
        let depth = self.rows.get(at).map_or(0, |row| row.depth);
        let below = self.rows.iter().skip(at + 1).take_while(move |row| row.depth > depth);
        below.filter(move |row| row.depth == depth + 1 && row.via.is_none())
    }

    /// Hops without a sidecar of their own in a mesh whose other hops have one: nobody vouches for their caller, and nobody vouches
    /// for them where they call.
    pub(crate) fn without_sidecar(&self) -> Vec<MissingSidecar<'_>> {
        let addressed = self.rows.iter().any(|row| row.proxy.sidecar);
        let vouched = self.rows.iter().any(|row| row.proxy.identity);
        // A sidecar that takes a call for bytes vouches for nobody, so its silence says nothing.
        let reads = |row: &HopEvidence| row.proxy.traces() || row.proxy.envoy || (row.proxy.sidecar && !self.mesh_traces());
        let mut out: Vec<MissingSidecar<'_>> = Vec::new();
        for (at, row) in self.rows.iter().enumerate().filter(|(_, row)| !row.proxy.is_own_sidecar()) {
            let called: Vec<&HopEvidence> = self.called_by(at).collect();
            // A gateway reports its own caller's address to the first hop; and where no sidecar reports the address, they work otherwise.
            let by_address = addressed && row.depth > 0;
            let by_silence = vouched && !called.is_empty() && called.iter().all(|next| reads(next));
            let is_vouched_for = called.iter().any(|next| next.proxy.identity);
            if (by_address || by_silence) && !is_vouched_for && !out.iter().any(|known| *known.hop == row.hop) {
                out.push(MissingSidecar { at, hop: &row.hop, is_certain: by_address });
            }
        }
        out
    }

    /// Whether nothing shows that a cluster runs the hops.
    pub(crate) fn is_outside(&self) -> bool {
        self.rows.iter().all(|row| !row.proxy.is_own_sidecar() && runner(&row.hop.hostname) != Runner::Kubernetes)
    }

    /// Whether any proxy is seen to trace.
    pub(crate) fn mesh_traces(&self) -> bool {
        HeaderFamily::ALL.into_iter().any(|format| self.mesh_speaks(format))
    }

    /// Whether there is nobody who could begin a trace where a request brings none.
    pub(crate) fn is_untraced(&self) -> bool {
        self.rows.iter().all(|row| row.mode == Propagation::Forward && !row.proxy.is_seen())
    }

    /// Adds what went wrong on one side of a seam.
    pub(crate) fn fault(
        &mut self,
        from: &HopRef,
        to: &HopRef,
        side: Side,
        mode: Option<Propagation>,
        effects: Vec<HeaderChange>,
    ) {
        if effects.is_empty() {
            return;
        }
        match self.faults.iter_mut().find(|known| known.from == *from && known.to == *to && known.side == side) {
            Some(known) => known.effects.extend(effects),
            None => self.faults.push(SeamFault { from: from.clone(), to: to.clone(), side, mode, via: None, effects }),
        }
    }
}
