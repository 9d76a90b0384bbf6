//! The variables that OpenTelemetry defines, with their standard names and meanings.
//!
//! As its specification says, names of values are read in any case, and a value that is unknown, malformed or not supported is
//! warned about and counts as not set: a setting for a whole namespace must not keep a hop from serving.

mod values;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::hop::config::HopConfig;
use crate::net::hosts::redacted_input;
use crate::net::tls::{ClientTls, Roots, certified_key, read_file};
use crate::system::workers;
use crate::telemetry::export::{
    ExportOptions, Exporter, LogOptions, MetricOptions, OtlpOptions, OtlpProtocol, Signal, Temporality,
};
use crate::telemetry::tracer::{Sampler, SamplerError};
use crate::trace_context::Propagators;
use crate::values::at_least_one;

use values::{attributes, boolean, delay, timeout, url};

pub(crate) use values::pairs;

pub(super) const HELP: &str = "\
Variables of OpenTelemetry, with their standard meanings; a value that is unknown or not supported is warned about and ignored:
  OTEL_SDK_DISABLED                    true: nothing is exported
  OTEL_SERVICE_NAME                    service.name of spans [default: service.name in OTEL_RESOURCE_ATTRIBUTES, else --name]
  OTEL_RESOURCE_ATTRIBUTES             further attributes of every span: key=value,key=value
  OTEL_EXPORTER_ZIPKIN_ENDPOINT        [default: http://localhost:9411/api/v2/spans]
  OTEL_EXPORTER_OTLP_PROTOCOL          http/protobuf or grpc [default: http/protobuf]
  OTEL_EXPORTER_OTLP_ENDPOINT          [default: http://localhost:4318, of grpc http://localhost:4317]; also …_HEADERS,
                                       …_TIMEOUT, …_COMPRESSION (gzip), …_CERTIFICATE (of the CA), …_CLIENT_CERTIFICATE,
                                       …_CLIENT_KEY: PEM files. Each also per signal: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
  OTEL_METRICS_EXPORTER                otlp, prometheus or none; /metrics answers whatever it is [default: prometheus]
  OTEL_METRIC_EXPORT_INTERVAL          milliseconds between exports [default: 60000], each at most OTEL_METRIC_EXPORT_TIMEOUT
                                       [default: 30000]
  OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE
                                       cumulative, delta or lowmemory [default: cumulative]
  OTEL_METRICS_EXEMPLAR_FILTER         trace_based or always_off, of /metrics, too [default: trace_based]
  OTEL_LOGS_EXPORTER                   otlp, console or none; lines go to stdout and stderr whatever it is [default: none]
  OTEL_BLRP_MAX_QUEUE_SIZE             how many log records wait for the collector [default: 2048]
  OTEL_BLRP_SCHEDULE_DELAY             milliseconds between exports [default: 1000]
  OTEL_PROPAGATORS                     which formats are read (first valid one wins) and written
                                       [default: tracecontext,baggage,b3multi,b3]
  OTEL_TRACES_SAMPLER                  [default: parentbased_always_on], with OTEL_TRACES_SAMPLER_ARG
  OTEL_BSP_MAX_QUEUE_SIZE              how many spans wait for the collector [default: 16384]
  OTEL_BSP_SCHEDULE_DELAY              milliseconds between exports [default: 1000]";

/// Variables that the specification defines and that are warned about because they have no effect here.
const UNSUPPORTED: [(&str, &str); 24] = [
    ("OTEL_CONFIG_FILE", DECLARATIVE),
    ("OTEL_EXPERIMENTAL_CONFIG_FILE", DECLARATIVE),
    ("OTEL_BSP_EXPORT_TIMEOUT", "not supported; OTEL_EXPORTER_OTLP_TIMEOUT is"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", FIXED_BATCH),
    ("OTEL_BLRP_EXPORT_TIMEOUT", "not supported; OTEL_EXPORTER_OTLP_TIMEOUT is"),
    ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", FIXED_BATCH),
    ("OTEL_EXPORTER_ZIPKIN_TIMEOUT", "not supported; it is 10 seconds"),
    ("OTEL_EXPORTER_ZIPKIN_PROTOCOL", "not supported; it is Zipkin v2 JSON"),
    ("OTEL_ENTITIES", "not supported; OTEL_RESOURCE_ATTRIBUTES is"),
    ("OTEL_LOG_LEVEL", "not supported; RUST_LOG is"),
    ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", FIXED_LIMIT),
    ("OTEL_ATTRIBUTE_COUNT_LIMIT", FIXED_COUNT),
    ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", FIXED_LIMIT),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", FIXED_COUNT),
    ("OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT", FIXED_LIMIT),
    ("OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT", FIXED_COUNT),
    ("OTEL_SPAN_EVENT_COUNT_LIMIT", NONE),
    ("OTEL_SPAN_LINK_COUNT_LIMIT", NONE),
    ("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", FIXED_COUNT),
    ("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", FIXED_COUNT),
    ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "not supported; buckets are explicit"),
    ("OTEL_EXPORTER_OTLP_SPAN_INSECURE", "not supported; OTEL_EXPORTER_OTLP_TRACES_INSECURE is"),
    ("OTEL_EXPORTER_PROMETHEUS_HOST", SCRAPED),
    ("OTEL_EXPORTER_PROMETHEUS_PORT", SCRAPED),
];
/// Values of them that are what happens anyway.
const USUAL: [(&str, &str); 5] = [
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512"),
    ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "512"),
    ("OTEL_EXPORTER_ZIPKIN_TIMEOUT", "10000"),
    ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram"),
    ("OTEL_LOG_LEVEL", "info"),
];
const NONE: &str = "not supported; spans have neither events nor links";
const DECLARATIVE: &str = "declarative configuration is not supported; variables and flags are";
const FIXED_BATCH: &str = "not supported; a request has at most 512 items";
const FIXED_COUNT: &str = "not supported; which attributes there are is fixed";
const FIXED_LIMIT: &str = "not supported; a value has at most 1024 bytes";
const SCRAPED: &str = "not supported; /metrics is at the address of --addr (ADDR)";

/// Headers of an export that the transport depends on.
const OWN_HEADERS: [&str; 7] =
    ["content-length", "content-encoding", "content-type", "transfer-encoding", "host", "connection", "te"];

/// A kind of exporter, as `--trace-exporter` names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ExporterName {
    /// No spans; trace headers pass through untouched
    #[default]
    None,
    /// Zipkin v2 JSON
    Zipkin,
    /// OTLP, as OTEL_EXPORTER_OTLP_PROTOCOL says
    Otlp,
    /// A line per span on stderr
    Console,
}

/// Every name that is read here, and that the specification defines for the exporters of OTLP.
pub(super) fn known_names() -> impl Iterator<Item = String> {
    const SUFFIXES: [&str; 9] = [
        "ENDPOINT",
        "HEADERS",
        "TIMEOUT",
        "COMPRESSION",
        "PROTOCOL",
        "CERTIFICATE",
        "CLIENT_CERTIFICATE",
        "CLIENT_KEY",
        "INSECURE",
    ];
    let in_help = HELP.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("OTEL_"));
    let of_otlp = [Signal::Traces, Signal::Metrics, Signal::Logs]
        .into_iter()
        .flat_map(|signal| SUFFIXES.map(|suffix| otlp_names(signal, suffix)));
    let others = UNSUPPORTED.into_iter().map(|(name, _)| name).chain([workers::VARIABLE, "RUST_LOG"]);
    in_help.chain(others).map(str::to_owned).chain(of_otlp.flatten())
}

/// The variables of a process, and where what is wrong with them goes.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// The value of a variable.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Warns about a variable that cannot be used.
    pub warn: &'a dyn Fn(&str),
}

/// A variable of this process. One that is not UTF-8 text is warned about and counts as not set.
pub(crate) fn process_variable(name: &str, warn: &dyn Fn(&str)) -> Option<String> {
    let value = std::env::var_os(name)?;
    let text = value.into_string();
    text.map_err(|value| warn(&format!("{name}: '{}' is ignored: not UTF-8 text", value.to_string_lossy().escape_debug()))).ok()
}

impl std::fmt::Debug for Environment<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Environment")
    }
}

/// Where `check` and `demo` report their own spans (`--report-spans`): as `OTEL_TRACES_EXPORTER` says, `default` where it says
/// nothing, and as the variables of the exporter say.
pub(crate) fn caller_exporters(env: &Environment<'_>, default: Option<Exporter>) -> Vec<Exporter> {
    let variables = Variables::new(env);
    match (variables.exporter_names(), default) {
        (Some(names), _) => variables.exporters(&names),
        (None, Some(default)) => vec![default],
        (None, None) => variables.exporters(&[ExporterName::Otlp]),
    }
}

/// Reads variables; an empty one counts as not set.
pub(super) struct Variables<'a> {
    env: &'a Environment<'a>,
    /// What was warned about: a variable may be read for each signal.
    warned: RefCell<BTreeSet<String>>,
}

impl<'a> Variables<'a> {
    pub(super) fn new(env: &'a Environment<'a>) -> Self {
        Self { env, warned: RefCell::default() }
    }

    pub(super) fn get(&self, name: &str) -> Option<String> {
        (self.env.variable)(name).filter(|value| !value.trim().is_empty())
    }

    /// The values of a list, in lower case.
    fn list(&self, name: &str) -> Option<Vec<String>> {
        let text = self.get(name)?.to_ascii_lowercase();
        Some(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
    }

    /// A variable's value, read by `read`, which says what is accepted.
    pub(super) fn read<T>(&self, name: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.get(name)?;
        read(text.trim()).map_err(|reason| self.ignored(name, &text, &reason)).ok()
    }

    /// Warns about a value that counts as not set.
    fn ignored(&self, name: &str, value: &str, reason: &str) {
        self.warn(format!("{name}: '{}' is ignored: {reason}", redacted_input(value).escape_debug()));
    }

    pub(super) fn warn(&self, line: String) {
        let mut warned = self.warned.borrow_mut();
        if !warned.contains(&line) {
            (self.env.warn)(&line);
            warned.insert(line);
        }
    }

    /// The variable of the signal's own, else the one for all signals, read by `read`, which also gets its name.
    fn otlp<T>(&self, signal: Signal, suffix: &str, read: impl Fn(&str, &str) -> Result<T, String>) -> Option<T> {
        otlp_names(signal, suffix).iter().find_map(|name| self.read(name, |text| read(name, text)))
    }

    pub(super) fn resource_attributes(&self) -> Vec<(String, String)> {
        let all = self.read("OTEL_RESOURCE_ATTRIBUTES", attributes).unwrap_or_default();
        // Of several with one key the last wins.
        let is_last = |at: &usize| !all[at + 1..].iter().any(|(key, _)| *key == all[*at].0);
        (0..all.len()).filter(is_last).map(|at| all[at].clone()).collect()
    }

    /// Propagators, sampler and span queue.
    pub(super) fn apply(&self, config: &mut HopConfig) {
        self.warn_of_unsupported();
        if let Some(names) = self.list("OTEL_PROPAGATORS") {
            let (propagators, unknown) = Propagators::from_names(names.iter().map(String::as_str));
            for name in &unknown {
                self.ignored("OTEL_PROPAGATORS", name, "accepted: tracecontext, baggage, b3, b3multi, none");
            }
            // With no name that is known it counts as not set.
            if unknown.len() < names.len() {
                config.propagators = propagators;
            }
        }
        if let Some(sampler) = self.read("OTEL_TRACES_SAMPLER", |name| self.sampler(name)) {
            config.sampler = sampler;
        }
        if let Some(size) = self.read("OTEL_BSP_MAX_QUEUE_SIZE", at_least_one) {
            config.export.span_queue = size;
        }
        if let Some(delay) = self.read("OTEL_BSP_SCHEDULE_DELAY", delay) {
            config.export.schedule_delay = delay;
        }
        let exemplars = self.read("OTEL_METRICS_EXEMPLAR_FILTER", |text| match text.to_ascii_lowercase().as_str() {
            "trace_based" => Ok(true),
            "always_off" => Ok(false),
            _ => Err("accepted: trace_based, always_off".to_owned()),
        });
        config.export.exemplars = exemplars.unwrap_or(true);
    }

    fn sampler(&self, name: &str) -> Result<Sampler, String> {
        const ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
        let (name, arg) = (name.to_ascii_lowercase(), self.get(ARG));
        let parsed = Sampler::parse(&name, arg.as_deref().map(str::trim)).or_else(|error| match error {
            SamplerError::InvalidRatio(arg) => {
                self.ignored(ARG, &arg, "accepted: a ratio from 0 to 1");
                Sampler::parse(&name, None)
            }
            unknown => Err(unknown),
        });
        parsed.map_err(|error| error.to_string())
    }

    /// Warns of what the specification defines and this program does not have: nothing is ignored silently.
    fn warn_of_unsupported(&self) {
        let is_usual = |name: &str, value: &str| USUAL.contains(&(name, value.trim().to_ascii_lowercase().as_str()));
        for (name, reason) in UNSUPPORTED {
            if let Some(value) = self.get(name).filter(|value| !is_usual(name, value)) {
                self.ignored(name, &value, reason);
            }
        }
    }

    /// Warns of endpoints that nothing is sent to, because no exporter of their kind is on.
    pub(super) fn warn_of_unused_endpoints(&self, export: &ExportOptions) {
        const TRACES: &str = "OTEL_TRACES_EXPORTER (--trace-exporter)";
        if self.is_disabled() {
            return;
        }
        let spans = |wanted: fn(&Exporter) -> bool| export.spans.iter().any(wanted);
        let otlp = [
            (Signal::Traces, TRACES, spans(|exporter| matches!(exporter, Exporter::Otlp(_)))),
            (Signal::Metrics, "OTEL_METRICS_EXPORTER", export.metrics.is_some()),
            (Signal::Logs, "OTEL_LOGS_EXPORTER", export.logs.is_some()),
        ];
        let own = otlp.map(|(signal, switch, on)| (otlp_names(signal, "ENDPOINT")[0].clone(), switch, "otlp", on));
        let zipkin = spans(|exporter| matches!(exporter, Exporter::Zipkin { .. }));
        let all = [
            ("OTEL_EXPORTER_ZIPKIN_ENDPOINT".to_owned(), TRACES, "zipkin", zipkin),
            ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), TRACES, "otlp", otlp.iter().any(|(_, _, on)| *on)),
        ];
        for (name, switch, exporter, _) in own.into_iter().chain(all).filter(|(.., on)| !on) {
            if self.get(&name).is_some() {
                self.warn(format!("{name} is set, but nothing is sent there: {switch} does not name {exporter}"));
            }
        }
    }

    /// `OTEL_METRICS_EXPORTER` and what belongs to it; `None`: `/metrics` alone.
    pub(super) fn metric_options(&self) -> Option<MetricOptions> {
        if !self.names_otlp("OTEL_METRICS_EXPORTER", &["otlp", "prometheus", "none"]) {
            return None;
        }
        let temporality =
            self.otlp(Signal::Metrics, "TEMPORALITY_PREFERENCE", |_, text| match text.to_ascii_lowercase().as_str() {
                "cumulative" => Ok(Temporality::Cumulative),
                "delta" => Ok(Temporality::Delta),
                "lowmemory" => Ok(Temporality::LowMemory),
                _ => Err("accepted: cumulative, delta, lowmemory".to_owned()),
            });
        Some(MetricOptions {
            otlp: self.otlp_options(Signal::Metrics),
            interval: self.read("OTEL_METRIC_EXPORT_INTERVAL", delay).unwrap_or(Duration::from_secs(60)),
            timeout: self.read("OTEL_METRIC_EXPORT_TIMEOUT", timeout).unwrap_or(Duration::from_secs(30)),
            temporality: temporality.unwrap_or_default(),
        })
    }

    /// `OTEL_LOGS_EXPORTER` and what belongs to it; `None`: lines alone.
    pub(super) fn log_options(&self) -> Option<LogOptions> {
        self.names_otlp("OTEL_LOGS_EXPORTER", &["otlp", "console", "none"]).then(|| LogOptions {
            otlp: self.otlp_options(Signal::Logs),
            queue: self.read("OTEL_BLRP_MAX_QUEUE_SIZE", at_least_one).unwrap_or(2048),
            schedule_delay: self.read("OTEL_BLRP_SCHEDULE_DELAY", delay).unwrap_or(Duration::from_secs(1)),
        })
    }

    /// Whether a list of exporters has `otlp`, and nothing is disabled. What is not in `known` is warned about.
    fn names_otlp(&self, name: &str, known: &[&str]) -> bool {
        let names = self.list(name).unwrap_or_default();
        for unknown in names.iter().filter(|name| !known.contains(&name.as_str())) {
            self.ignored(name, unknown, &format!("accepted: {}", known.join(", ")));
        }
        names.iter().any(|name| name == "otlp") && !self.is_disabled()
    }

    fn is_disabled(&self) -> bool {
        self.read("OTEL_SDK_DISABLED", boolean).unwrap_or(false)
    }

    /// What `OTEL_TRACES_EXPORTER` names; `None` when it is not set, or names nothing that is known.
    pub(super) fn exporter_names(&self) -> Option<Vec<ExporterName>> {
        const NAME: &str = "OTEL_TRACES_EXPORTER";
        let names = self.list(NAME)?.into_iter().filter_map(|name| match name.as_str() {
            "none" => Some(ExporterName::None),
            "zipkin" => Some(ExporterName::Zipkin),
            "otlp" => Some(ExporterName::Otlp),
            // The second is the older name.
            "console" | "logging" => Some(ExporterName::Console),
            _ => {
                self.ignored(NAME, &name, "accepted: none, zipkin, otlp, console");
                None
            }
        });
        Some(names.collect::<Vec<_>>()).filter(|names| !names.is_empty())
    }

    pub(super) fn exporters(&self, names: &[ExporterName]) -> Vec<Exporter> {
        let disabled = self.is_disabled();
        let mut exporters = Vec::new();
        for name in names.iter().filter(|_| !disabled) {
            let exporter = match name {
                ExporterName::None => continue,
                ExporterName::Console => Exporter::Console,
                ExporterName::Zipkin => {
                    let endpoint = self.read("OTEL_EXPORTER_ZIPKIN_ENDPOINT", url);
                    Exporter::Zipkin { endpoint: endpoint.unwrap_or_else(|| "http://localhost:9411/api/v2/spans".to_owned()) }
                }
                ExporterName::Otlp => Exporter::Otlp(self.otlp_options(Signal::Traces)),
            };
            if !exporters.contains(&exporter) {
                exporters.push(exporter);
            }
        }
        exporters
    }

    fn otlp_options(&self, signal: Signal) -> OtlpOptions {
        let protocol = self.otlp(signal, "PROTOCOL", |_, text| match text.to_ascii_lowercase().as_str() {
            "http/protobuf" => Ok(OtlpProtocol::HttpProtobuf),
            "grpc" => Ok(OtlpProtocol::Grpc),
            _ => Err("accepted: http/protobuf, grpc".to_owned()),
        });
        let protocol = protocol.unwrap_or_default();
        let endpoint = self.otlp(signal, "ENDPOINT", |name, text| match protocol {
            OtlpProtocol::Grpc => self.grpc_endpoint(signal, text),
            OtlpProtocol::HttpProtobuf if name == otlp_names(signal, "ENDPOINT")[0] => url(text),
            // The general endpoint is a base: the signal's path is added.
            OtlpProtocol::HttpProtobuf => {
                let base = url(text)?;
                let (base, query) = base.split_at(base.find(['?', '#']).unwrap_or(base.len()));
                Ok(format!("{}{}{query}", base.trim_end_matches('/'), signal.path()))
            }
        });
        let gzip = self.otlp(signal, "COMPRESSION", |_, text| match text.to_ascii_lowercase().as_str() {
            "gzip" => Ok(true),
            "none" => Ok(false),
            _ => Err("accepted: gzip, none".to_owned()),
        });
        let default = OtlpOptions::new(signal, protocol);
        OtlpOptions {
            endpoint: endpoint.unwrap_or(default.endpoint),
            headers: self.otlp_headers(signal).unwrap_or_default(),
            timeout: self.otlp(signal, "TIMEOUT", |_, text| timeout(text)).unwrap_or(default.timeout),
            gzip: gzip.unwrap_or(default.gzip),
            tls: self.otlp_tls(signal),
            protocol,
        }
    }

    /// A URL, or `host:port` as gRPC's libraries have it: then `…_INSECURE` says whether there is TLS.
    fn grpc_endpoint(&self, signal: Signal, text: &str) -> Result<String, String> {
        if text.contains("://") {
            return url(text);
        }
        let insecure = self.otlp(signal, "INSECURE", |_, text| boolean(text)).unwrap_or(false);
        url(&format!("{}://{text}", if insecure { "http" } else { "https" }))
    }

    /// Headers of an export, each of which HTTP accepts. The values may be secrets, and are not repeated.
    fn otlp_headers(&self, signal: Signal) -> Option<Vec<(String, String)>> {
        let fits = |(name, value): &(String, String)| {
            HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok()
        };
        otlp_names(signal, "HEADERS").iter().find_map(|name| match pairs(&self.get(name)?) {
            Ok(mut headers) if headers.iter().all(fits) => {
                let is_own = |(header, _): &(String, String)| OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(header));
                for own in headers.extract_if(.., |header| is_own(header)) {
                    self.ignored(name, &own.0, "the exporter sets this header itself");
                }
                Some(headers)
            }
            Ok(_) => {
                self.ignored(name, "(not shown)", "accepted: name=value,name=value; one is no HTTP header");
                None
            }
            Err(reason) => {
                self.ignored(name, "(not shown)", &reason);
                None
            }
        })
    }

    /// The certificates of an exporter.
    fn otlp_tls(&self, signal: Signal) -> ClientTls {
        const KEY: &str = "CLIENT_KEY";
        let roots = self
            .otlp(signal, "CERTIFICATE", |name, path| Roots::load(name, &PathBuf::from(path)).map_err(|error| error.to_string()));
        let read = |name: &str, path: &str| {
            let path = PathBuf::from(path);
            let pem = read_file(name, &path).map_err(|error| error.to_string())?;
            Ok((name.to_owned(), path, pem))
        };
        let own = match (self.otlp(signal, "CLIENT_CERTIFICATE", read), self.otlp(signal, KEY, read)) {
            (None, None) => None,
            (Some((cert, cert_path, cert_pem)), Some((key, key_path, key_pem))) => {
                let pair = certified_key((&cert, &cert_path, &cert_pem), (&key, &key_path, &key_pem));
                pair.map_err(|reason| self.warn(format!("{reason}; it is ignored"))).ok()
            }
            (Some((name, path, _)), None) => {
                self.ignored(&name, &path.display().to_string(), "it needs OTEL_EXPORTER_OTLP_CLIENT_KEY");
                None
            }
            (None, Some((name, path, _))) => {
                self.ignored(&name, &path.display().to_string(), "it needs OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE");
                None
            }
        };
        ClientTls { roots: roots.unwrap_or_default(), own }
    }
}

/// The names of a variable of the exporters: the signal's own, and the one for all signals.
fn otlp_names(signal: Signal, suffix: &str) -> [String; 2] {
    [format!("OTEL_EXPORTER_OTLP_{}_{suffix}", signal.in_variables()), format!("OTEL_EXPORTER_OTLP_{suffix}")]
}
