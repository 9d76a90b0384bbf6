//! The options of `demo`.

use std::net::IpAddr;
use std::str::FromStr;

use clap::Args;
use http::HeaderName;

use crate::config::fan_out::FanOutParser;
use crate::config::page::PageArgs;
use crate::hop::latency::Latency;
use crate::hop::request_faults::AddressedFault as Fault;
use crate::trace_context::{carried_names, is_carried};
use crate::upstream::FanOut;
use crate::values::{header_name, service_number};

/// The options of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// How many services
    #[arg(long, default_value = "3", value_parser = crate::values::whole::<u16>(1..=50), value_name = "N")]
    pub hops: u16,
    /// The address that all of them listen on
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub listen: IpAddr,
    /// The port of service1; service2 has the next one, and so on; 0 takes free ones [default: 8080, with --once 0]
    #[arg(long, value_parser = crate::values::whole::<u16>(0..=65_535))]
    pub port: Option<u16>,
    /// The port of the trace store and its page; 0 takes a free one [default: 9411, with --once 0]
    #[arg(long, value_name = "PORT", value_parser = crate::values::whole::<u16>(0..=65_535))]
    pub store_port: Option<u16>,
    /// Delay that every hop adds: `20ms`, `10ms..2s` or `p50=20ms,p90=80ms,p99=400ms`
    #[arg(long, default_value = "5ms..60ms")]
    pub latency: Latency,
    /// A fault or a break at one hop, repeatable: `service2:abort=503@10%`, `service3:delay=2s`, `service2:break=new-trace`
    #[arg(long, value_parser = demo_fault, value_name = "HOP:FAULT")]
    pub fault: Vec<Fault>,
    /// Every draw follows from this number, the trace's id and the hop's name [default: random]
    #[arg(long, value_name = "N", value_parser = crate::values::whole::<u64>(0..=u64::MAX))]
    pub seed: Option<u64>,
    /// A header that one hop loses on purpose, repeatable: `service2:traceparent`
    #[arg(long, value_name = "HOP:NAME")]
    pub drop_header: Vec<AtHop<CarriedName>>,
    /// service1 calls all others itself: `parallel`, `parallel=N` or `sequential`; without this they form a chain
    #[arg(long, value_parser = FanOutParser, hide_possible_values = true)]
    pub fan_out: Option<FanOut>,
    /// Let other machines than this one send requests and change faults from the page
    #[arg(long)]
    pub allow_remote_control: bool,
    /// The trace store's page
    #[command(flatten)]
    pub page: PageArgs,
    /// Send one request, draw its trace, exit: 0 if the trace is complete, else 1
    #[arg(long)]
    pub once: bool,
    /// Report the client span of the demo's own request, to its store or to where OTEL_TRACES_EXPORTER says, so that its trace
    /// has its root (service httpserver-check)
    #[arg(long)]
    pub report_spans: bool,
    /// Print nothing but traces
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Access lines and diagnostics too
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Something for one of the demo's hops: `service2:…`.
#[derive(Debug, Clone, PartialEq)]
pub struct AtHop<T> {
    /// The hop's number, from 1.
    pub hop: u16,
    /// What applies to it.
    pub what: T,
}

impl<T: FromStr<Err = String>> FromStr for AtHop<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("'{text}' names no hop; written service2:…");
        let (hop, what) = text.split_once(':').ok_or_else(form)?;
        let hop = hop.strip_prefix("service").and_then(service_number).filter(|hop| *hop > 0).ok_or_else(form)?;
        Ok(Self { hop, what: what.parse()? })
    }
}

/// The name of a carried header.
#[derive(Debug, Clone, PartialEq)]
pub struct CarriedName(pub HeaderName);

impl FromStr for CarriedName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = header_name(text)?;
        if is_carried(name.as_str()) { Ok(Self(name)) } else { Err(not_carried()) }
    }
}

/// A break can only name a header that the chain carries.
fn demo_fault(text: &str) -> Result<Fault, String> {
    let fault: Fault = text.parse()?;
    match fault.what.header() {
        Some(name) if !is_carried(name.as_str()) => Err(not_carried()),
        _ => Ok(fault),
    }
}

/// Why a header cannot be dropped.
pub(super) fn not_carried() -> String {
    let known: Vec<_> = carried_names().collect();
    format!("the header is not carried; carried are {}", known.join(", "))
}
