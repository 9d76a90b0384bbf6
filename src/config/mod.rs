//! Every flag and variable as plain values. What cannot be read is one clear line, and nothing is started.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use http::HeaderName;

use crate::hop::config::HopConfig;
use crate::hop::fault::{Fault, FaultConfig, Latency};
use crate::hop::reply::MAX_HOPS;
use crate::net::hosts::parse_url;
use crate::server::options::ConnectionOptions;
use crate::server::shutdown::DrainOptions;
use crate::server::tls::{Roots, ServerTls, TlsOptions};
use crate::telemetry::access_log::LogFormat;
use crate::telemetry::export::{Exporter, OtlpOptions};
use crate::telemetry::tracer::Sampler;
use crate::trace_context::carried_names;
use crate::upstream::{FanOut, Target};
use crate::values::{Listen, parse_duration, parse_label, positive_duration, service_number};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "httpserver",
    version,
    about = "The traced demo microservice chain: one binary plays any hop",
    after_help = "Without a command, httpserver serves: `httpserver --addr :8080` is `httpserver serve --addr :8080`.",
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one hop (the default)
    Serve(Box<ServeArgs>),
    /// Run the whole chain, traced, in one process, with the trace store built in; needs nothing else
    Demo(DemoArgs),
    /// Send requests through a deployed chain, verify what came back, say what is broken and why
    Check(Box<crate::check::CheckArgs>),
    /// Exit 0 if `GET /healthz` answers 200; for HEALTHCHECK in an image with no shell
    Health(HealthArgs),
}

/// The options of `serve`.
#[derive(Debug, Clone, Args)]
#[command(after_help = OTEL_HELP)]
pub struct ServeArgs {
    /// Where to listen: `:8080`, `127.0.0.1:8080`, `[::]:8080`; port 0 picks one and the log says which
    #[arg(long, env, default_value = ":8080", value_name = "ADDRESS")]
    pub addr: Listen,
    /// The hop's name in replies, logs and metrics [default: OTEL_SERVICE_NAME, else httpserver]
    #[arg(long, env = "SERVICE_NAME")]
    pub name: Option<String>,
    /// The version label of this instance
    #[arg(long, env = "VERSION", default_value = "v1", value_name = "VERSION", value_parser = parse_label)]
    pub service_version: String,
    /// The lane label of this instance (shown, never used to route); `base` is the baseline
    #[arg(long, env, default_value = "base", value_parser = parse_label)]
    pub lane: String,
    /// A next hop, repeatable: none is the last hop, one a chain, several a fan-out. A URL without a path gets `/service<N+1>`
    #[arg(long, env, value_delimiter = ',', value_name = "URL")]
    pub upstream: Vec<Target>,
    /// How several next hops are called
    #[arg(long, env, default_value = "parallel")]
    pub fan_out: FanOut,
    /// Time per call, whole answer included; a caller must wait longer than the hop below it
    #[arg(long, env, default_value = "5s", value_parser = positive_duration, value_name = "DURATION")]
    pub upstream_timeout: Duration,
    /// Added delay: `20ms`, `10ms..2s` (uniform) or `p50=20ms,p90=80ms,p99=400ms`
    #[arg(long, env, default_value = "0")]
    pub latency: Latency,
    /// What goes wrong and how often, repeatable: `abort=503@10%`, `delay=2s@5%`
    #[arg(long, env, value_delimiter = ',')]
    pub fault: Vec<Fault>,
    /// A header to carry to the next hop beside the built-in ones, repeatable
    #[arg(long, env = "FORWARD_HEADERS", value_delimiter = ',', value_name = "NAME", value_parser = header_name)]
    pub forward_header: Vec<HeaderName>,
    /// A carried header that this hop loses on purpose, repeatable
    #[arg(long, env = "DROP_HEADERS", value_delimiter = ',', value_name = "NAME", value_parser = header_name)]
    pub drop_header: Vec<HeaderName>,
    /// A chain that calls itself ends with 508 after so many hops, at most 256
    #[arg(long, env, default_value = "16", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_HOPS)), value_name = "N")]
    pub max_hops: u32,
    /// More requests in flight get 503 at once
    #[arg(long, env, default_value = "1024", value_parser = at_least_one, value_name = "N")]
    pub max_concurrency: usize,
    /// At this many connections the one idle for longest is closed first
    #[arg(long, env, default_value = "10000", value_parser = at_least_one, value_name = "N")]
    pub max_connections: usize,
    /// A request head must be whole this long after its first byte
    #[arg(long, env, default_value = "10s", value_parser = positive_duration, value_name = "DURATION")]
    pub header_timeout: Duration,
    /// How long a kept-alive connection may be idle; longer than Envoy's pool keeps it (1 h)
    #[arg(long, env, default_value = "65m", value_parser = positive_duration, value_name = "DURATION")]
    pub idle_timeout: Duration,
    /// After SIGTERM: not ready, still serving, this long
    #[arg(long, env, default_value = "5s", value_parser = parse_duration, value_name = "DURATION")]
    pub drain_delay: Duration,
    /// Then finish what is in flight, at most this long
    #[arg(long, env, default_value = "20s", value_parser = parse_duration, value_name = "DURATION")]
    pub drain_timeout: Duration,
    /// Then hand over the last spans and log lines, at most this long
    #[arg(long, env, default_value = "3s", value_parser = parse_duration, value_name = "DURATION")]
    pub flush_timeout: Duration,
    /// The hop's own certificate, a PEM file: serves TLS, HTTP/2 and HTTP/1.1. Reloaded when it changes
    #[arg(long, env, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, a PEM file
    #[arg(long, env, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Callers need a certificate that one of these signed, a PEM file; /healthz and /readyz answer without
    #[arg(long, env, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Who signs the certificates of next hops, a PEM file [default: the public roots]
    #[arg(long, env, value_name = "FILE")]
    pub upstream_ca: Option<PathBuf>,
    /// How access lines look
    #[arg(long, env, default_value = "text")]
    pub log_format: LogFormat,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap takes a doc comment here for the command's own help")]
    pub verbosity: Verbosity,
    /// Where spans go
    #[arg(long, env = "OTEL_TRACES_EXPORTER", default_value = "none", value_name = "EXPORTER")]
    pub trace_exporter: ExporterName,
}

const OTEL_HELP: &str = "\
Variables of OpenTelemetry, with their standard meanings:
  OTEL_SDK_DISABLED                    true: the exporter is none
  OTEL_SERVICE_NAME                    service.name of spans [default: service.name in OTEL_RESOURCE_ATTRIBUTES, else --name]
  OTEL_RESOURCE_ATTRIBUTES             further attributes of every span: key=value,key=value
  OTEL_EXPORTER_ZIPKIN_ENDPOINT        [default: http://localhost:9411/api/v2/spans]
  OTEL_EXPORTER_OTLP_ENDPOINT          [default: http://localhost:4318]; also …_TRACES_ENDPOINT, …_HEADERS, …_TIMEOUT,
                                       …_COMPRESSION (gzip), …_PROTOCOL (http/protobuf)
  OTEL_PROPAGATORS                     which formats are read (first valid one wins) and written
                                       [default: tracecontext,baggage,b3multi,b3]
  OTEL_TRACES_SAMPLER                  [default: parentbased_always_on], with OTEL_TRACES_SAMPLER_ARG
  OTEL_BSP_MAX_QUEUE_SIZE              how many spans wait for the collector [default: 16384]
  OTEL_BSP_SCHEDULE_DELAY              milliseconds between exports [default: 1000]";

/// `-v` and `-q`.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Verbosity {
    /// More diagnostics on stderr (twice for everything); RUST_LOG says it in detail
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Fewer diagnostics: warnings only (twice: errors only)
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "verbose")]
    pub quiet: u8,
}

/// The options of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// How many services
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u16).range(1..=50), value_name = "N")]
    pub hops: u16,
    /// The address that all of them listen on
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub listen: IpAddr,
    /// The port of service1; service2 has the next one, and so on; 0 takes free ones
    #[arg(long, default_value = "8080")]
    pub port: u16,
    /// The port of the trace store and its page; 0 takes a free one
    #[arg(long, default_value = "9411", value_name = "PORT")]
    pub store_port: u16,
    /// Delay that every hop adds: `20ms`, `10ms..2s` or `p50=20ms,p90=80ms,p99=400ms`
    #[arg(long, default_value = "5ms..60ms")]
    pub latency: Latency,
    /// What goes wrong at one hop, repeatable: `service2:abort=503@10%`, `service3:delay=2s@5%`
    #[arg(long, value_name = "HOP:FAULT")]
    pub fault: Vec<AtHop<Fault>>,
    /// A header that one hop loses on purpose, repeatable: `service2:traceparent`
    #[arg(long, value_name = "HOP:NAME")]
    pub drop_header: Vec<AtHop<CarriedName>>,
    /// service1 calls all others itself; without this they form a chain
    #[arg(long)]
    pub fan_out: Option<FanOut>,
    /// Let other machines than this one send requests and change faults from the page
    #[arg(long)]
    pub allow_remote_control: bool,
    /// A Zipkin that the page links to; every trace is passed on to it: `http://localhost:9412`
    #[arg(long, value_name = "URL", value_parser = base_url)]
    pub zipkin: Option<String>,
    /// A Jaeger that the page links to: `http://localhost:16686`
    #[arg(long, value_name = "URL", value_parser = base_url)]
    pub jaeger: Option<String>,
    /// Send one request, draw its trace, exit: 0 if the trace is complete, else 1. Takes free ports
    #[arg(long)]
    pub once: bool,
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
    /// What it gets.
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
        if carried_names().any(|carried| carried == name.as_str()) {
            return Ok(Self(name));
        }
        Err(not_carried())
    }
}

fn not_carried() -> String {
    let known: Vec<_> = carried_names().collect();
    format!("it is not carried, so it cannot be lost; carried are {}", known.join(", "))
}

/// The options of `health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// What to ask [default: /healthz on loopback, at the port of ADDR]
    #[arg(value_name = "URL")]
    pub url: Option<String>,
    /// Where the server listens
    #[arg(long, env, default_value = ":8080", value_name = "ADDRESS")]
    pub addr: Listen,
    /// Set as for the server: then it is asked by TLS. The certificate of this very host is not verified
    #[arg(long, env, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
}

/// `--trace-exporter`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ExporterName {
    /// No spans; trace headers pass through untouched
    #[default]
    None,
    /// Zipkin v2 JSON
    Zipkin,
    /// OTLP over HTTP, protobuf
    Otlp,
    /// A line per span on stderr
    Console,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n >= 1).ok_or_else(|| "a whole number from 1 on is accepted".into())
}

/// Where a web page lives, without the slash at its end.
fn base_url(text: &str) -> Result<String, String> {
    const FORM: &str = "written http://host:port";
    if parse_url(text).map_err(|error| format!("{error}; {FORM}"))?.query().is_some() {
        return Err(FORM.to_owned());
    }
    Ok(text.trim().trim_end_matches('/').to_owned())
}

fn header_name(text: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(text.trim().as_bytes()).map_err(|_| "not a header name".into())
}

impl HopConfig {
    /// From the options of `serve` and the variables of OpenTelemetry, which `env` looks up. Errors: one line that names the
    /// variable or flag, its value and what is accepted.
    pub fn from_args(args: ServeArgs, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let env = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        let attributes = match env("OTEL_RESOURCE_ATTRIBUTES") {
            Some(text) => pairs(&text).map_err(|error| invalid("OTEL_RESOURCE_ATTRIBUTES", &text, &error))?,
            None => Vec::new(),
        };
        let service_name = env("OTEL_SERVICE_NAME");
        let name = args.name.or_else(|| service_name.clone()).unwrap_or_else(|| "httpserver".to_owned());
        let name = parse_label(&name).map_err(|error| invalid("--name (SERVICE_NAME)", &name, &error))?;
        let in_attributes = attributes.iter().find(|(key, _)| key == "service.name").map(|(_, value)| value.clone());
        let mut config = Self::new(&name, args.addr);
        config.identity.version = args.service_version;
        config.identity.lane = args.lane;
        config.resource.service_name = service_name.or(in_attributes).unwrap_or(name);
        config.resource.attributes = config.identity.attributes();
        for (key, value) in attributes.into_iter().filter(|(key, _)| key != "service.name") {
            config.resource.attributes.retain(|(own, _)| *own != key);
            config.resource.attributes.push((key, value));
        }
        config.upstreams = args.upstream;
        config.fan_out = args.fan_out;
        config.upstream_timeout = args.upstream_timeout;
        config.faults = FaultConfig { latency: args.latency, faults: args.fault };
        for name in &args.drop_header {
            if !carried_names().any(|carried| carried == name.as_str()) && !args.forward_header.contains(name) {
                return Err(invalid("--drop-header (DROP_HEADERS)", name.as_str(), &not_carried()));
            }
        }
        config.forward_headers = args.forward_header;
        config.drop_headers = args.drop_header;
        config.max_hops = args.max_hops;
        config.max_concurrency = args.max_concurrency;
        config.connections = ConnectionOptions {
            max_connections: args.max_connections,
            header_timeout: args.header_timeout,
            idle_timeout: args.idle_timeout,
            ..ConnectionOptions::default()
        };
        config.tls = match (args.tls_cert, args.tls_key, args.tls_client_ca) {
            (None, None, None) => None,
            (Some(cert), Some(key), client_ca) => Some(ServerTls::load(TlsOptions { cert, key, client_ca })?),
            (None, None, Some(_)) => {
                return Err("--tls-client-ca (TLS_CLIENT_CA) needs --tls-cert (TLS_CERT) and --tls-key (TLS_KEY)".into());
            }
            (_, None, _) => return Err("--tls-cert (TLS_CERT) needs --tls-key (TLS_KEY), the certificate's private key".into()),
            (None, ..) => return Err("--tls-key (TLS_KEY) needs --tls-cert (TLS_CERT), the key's certificate".into()),
        };
        if let Some(path) = args.upstream_ca {
            config.upstream_roots = Roots::load("--upstream-ca (UPSTREAM_CA)", &path)?;
        }
        config.drain = DrainOptions { delay: args.drain_delay, timeout: args.drain_timeout, flush_timeout: args.flush_timeout };
        config.access_log = Some(args.log_format);
        config.exporter = exporter(args.trace_exporter, &env)?;
        if let Some(text) = env("OTEL_PROPAGATORS") {
            config.propagators = text.parse().map_err(|error: String| invalid("OTEL_PROPAGATORS", &text, &error))?;
        }
        if let Some(name) = env("OTEL_TRACES_SAMPLER") {
            let arg = env("OTEL_TRACES_SAMPLER_ARG");
            let sampler = Sampler::parse(&name, arg.as_deref());
            config.sampler = sampler.map_err(|error| invalid("OTEL_TRACES_SAMPLER", &name, &error.to_string()))?;
        }
        if let Some(text) = env("OTEL_BSP_MAX_QUEUE_SIZE") {
            config.span_queue = at_least_one(&text).map_err(|error| invalid("OTEL_BSP_MAX_QUEUE_SIZE", &text, &error))?;
        }
        if let Some(text) = env("OTEL_BSP_SCHEDULE_DELAY") {
            config.schedule_delay = milliseconds("OTEL_BSP_SCHEDULE_DELAY", &text)?;
        }
        Ok(config)
    }
}

fn exporter(name: ExporterName, env: &dyn Fn(&str) -> Option<String>) -> Result<Exporter, String> {
    if env("OTEL_SDK_DISABLED").is_some_and(|disabled| disabled.eq_ignore_ascii_case("true")) {
        return Ok(Exporter::None);
    }
    let either = |what: &str| {
        [format!("OTEL_EXPORTER_OTLP_TRACES_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")]
            .into_iter()
            .find_map(|name| env(&name).map(|value| (name, value)))
    };
    match name {
        ExporterName::None => Ok(Exporter::None),
        ExporterName::Console => Ok(Exporter::Console),
        ExporterName::Zipkin => {
            let endpoint =
                env("OTEL_EXPORTER_ZIPKIN_ENDPOINT").unwrap_or_else(|| "http://localhost:9411/api/v2/spans".to_owned());
            Ok(Exporter::Zipkin { endpoint: url("OTEL_EXPORTER_ZIPKIN_ENDPOINT", &endpoint)? })
        }
        ExporterName::Otlp => {
            if let Some((name, protocol)) = either("PROTOCOL").filter(|(_, protocol)| protocol != "http/protobuf") {
                return Err(invalid(&name, &protocol, "accepted: http/protobuf"));
            }
            let endpoint = match either("ENDPOINT") {
                Some((name, endpoint)) if name.contains("TRACES") => url(&name, &endpoint)?,
                // The general endpoint is a base: the signal's path is added.
                Some((name, endpoint)) => format!("{}/v1/traces", url(&name, &endpoint)?.trim_end_matches('/')),
                None => "http://localhost:4318/v1/traces".to_owned(),
            };
            let headers = match either("HEADERS") {
                Some((name, text)) => {
                    let headers = pairs(&text).map_err(|error| invalid(&name, "(not shown)", &error))?;
                    // The exporter would leave such a header out without a word.
                    let fits = |(name, value): &(String, String)| {
                        HeaderName::from_bytes(name.as_bytes()).is_ok() && http::HeaderValue::from_str(value).is_ok()
                    };
                    if !headers.iter().all(fits) {
                        return Err(invalid(&name, "(not shown)", "written name=value,name=value; one is no HTTP header"));
                    }
                    headers
                }
                None => Vec::new(),
            };
            let timeout = match either("TIMEOUT") {
                Some((name, text)) => milliseconds(&name, &text)?,
                None => Duration::from_secs(10),
            };
            let gzip = match either("COMPRESSION") {
                Some((name, text)) => match text.as_str() {
                    "gzip" => true,
                    "none" => false,
                    _ => return Err(invalid(&name, &text, "accepted: gzip, none")),
                },
                None => false,
            };
            Ok(Exporter::Otlp(OtlpOptions { endpoint, headers, timeout, gzip }))
        }
    }
}

fn invalid(name: &str, value: &str, why: &str) -> String {
    format!("invalid value '{}' for {name}: {why}", value.escape_debug())
}

fn url(name: &str, text: &str) -> Result<String, String> {
    const FORM: &str = "accepted: http://host:port/path or https://…";
    parse_url(text).map_err(|error| invalid(name, text, &format!("{error}; {FORM}")))?;
    Ok(text.trim().to_owned())
}

fn milliseconds(name: &str, text: &str) -> Result<Duration, String> {
    let number = text.parse::<u64>().ok().filter(|ms| *ms > 0).map(Duration::from_millis);
    number.ok_or_else(|| invalid(name, text, "a number of milliseconds from 1 on is accepted"))
}

/// The variables that are read without a flag must be text: one that is not would count as not set, and nobody would know.
/// Errors: one line that names it.
pub fn check_environment() -> Result<(), String> {
    let read_here = |name: &str| name.starts_with("OTEL_") || name == "RUST_LOG";
    for (name, value) in std::env::vars_os() {
        if let (Some(name), None) = (name.to_str().filter(|name| read_here(name)), value.to_str()) {
            return Err(not_text(name, &value));
        }
    }
    Ok(())
}

fn not_text(name: &str, value: &std::ffi::OsStr) -> String {
    invalid(name, &value.to_string_lossy(), "not UTF-8 text")
}

/// `key=value,key=value`, values percent-encoded (W3C Baggage's octet encoding).
pub(crate) fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or("written key=value,key=value")?;
        let value = percent_decoded(value.trim()).ok_or("a value is not percent-encoded UTF-8")?;
        pairs.push((key.trim().to_owned(), value));
    }
    Ok(pairs)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Why there is nothing to run.
#[derive(Debug)]
pub enum Usage {
    /// `--help` or `--version`: the text for stdout; exit code 0.
    Asked(String),
    /// One line for stderr; exit code 2.
    Wrong(String),
}

/// Reads the command line. Empty variables count as not set, as OpenTelemetry has it: manifests often leave one empty.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Usage> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let first = args.get(1).and_then(|first| first.to_str());
    let for_all = matches!(first, Some("-h" | "--help" | "-V" | "--version"));
    if !for_all && first.is_none_or(|first| first.starts_with('-')) {
        args.insert(1, "serve".into());
    }
    let command = with_tidy_variables(Cli::command());
    let parsed = command.clone().try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Usage::Asked(error.render().to_string())
        }
        _ => Usage::Wrong(one_line(&error, &command, &args)),
    })
}

/// Help names the variables and not what they hold here; an empty variable is taken as not set.
fn with_tidy_variables(command: clap::Command) -> clap::Command {
    let tidy = |arg: clap::Arg| {
        let empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
        if empty { arg.env(None) } else { arg.hide_env_values(true) }
    };
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names.into_iter().fold(command.mut_args(tidy), |command, name| command.mut_subcommand(name, with_tidy_variables))
}

/// What is wrong, in one line: clap's own errors take several.
fn one_line(error: &clap::Error, command: &clap::Command, args: &[OsString]) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let subcommand = args.get(1).and_then(|name| command.find_subcommand(name));
    let name = text(ContextKind::InvalidArg).map(|arg| {
        let flag = arg.split([' ', '=']).next().unwrap_or_default().to_owned();
        let variable = subcommand
            .into_iter()
            .flat_map(clap::Command::get_arguments)
            .find(|arg| arg.get_long().is_some_and(|long| flag == format!("--{long}")))
            .and_then(|arg| arg.get_env());
        match variable.and_then(std::ffi::OsStr::to_str) {
            Some(variable) => format!("{flag} ({variable})"),
            None => flag,
        }
    });
    let see = format!("see httpserver {}--help", subcommand.map_or(String::new(), |command| format!("{} ", command.get_name())));
    match (error.kind(), name) {
        (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(name)) => {
            let value = text(ContextKind::InvalidValue).unwrap_or_default();
            let why = match (std::error::Error::source(error), text(ContextKind::ValidValue)) {
                (Some(source), _) => source.to_string(),
                (None, Some(valid)) => format!("accepted: {valid}"),
                (None, None) => "it needs a value".to_owned(),
            };
            invalid(&name, &value, &why)
        }
        (ErrorKind::InvalidUtf8, _) => {
            let variables = subcommand.into_iter().flat_map(clap::Command::get_arguments).filter_map(clap::Arg::get_env);
            let values = variables.filter_map(|name| Some((name.to_string_lossy(), std::env::var_os(name)?)));
            let mut unreadable = values.filter(|(_, value)| value.to_str().is_none());
            match (args.iter().find(|arg| arg.to_str().is_none()), unreadable.next()) {
                (Some(arg), _) => format!("the argument '{}' is not UTF-8 text; {see}", arg.to_string_lossy().escape_debug()),
                (None, Some((name, value))) => not_text(&name, &value),
                (None, None) => format!("an argument is not UTF-8 text; {see}"),
            }
        }
        (ErrorKind::UnknownArgument, Some(name)) => {
            let suggestion = text(ContextKind::SuggestedArg).map_or(String::new(), |arg| format!("did you mean {arg}? "));
            format!("unknown flag or argument '{name}'; {suggestion}{see}")
        }
        (ErrorKind::InvalidSubcommand, _) => {
            let name = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            let known: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
            format!("unknown command '{name}'; accepted: {}", known.join(", "))
        }
        _ => {
            let rendered = error.render().to_string();
            let first = rendered.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            format!("{}; {see}", first.trim_start_matches("error: ").trim_end_matches(':'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(args: &[&str]) -> Result<ServeArgs, String> {
        let args = ["httpserver", "serve"].iter().chain(args).map(OsString::from);
        match parse(args) {
            Ok(Cli { command: Command::Serve(args) }) => Ok(*args),
            Ok(_) => unreachable!("serve was asked for"),
            Err(Usage::Wrong(line) | Usage::Asked(line)) => Err(line),
        }
    }

    fn config(args: &[&str], env: &[(&str, &str)]) -> Result<HopConfig, String> {
        let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        HopConfig::from_args(serve(args)?, &env)
    }

    #[test]
    fn an_address_is_a_port_or_an_address_with_a_port() {
        let listen = |text: &str| text.parse::<Listen>();
        assert_eq!(listen(":8080"), Ok(Listen { host: None, port: 8080 }));
        assert_eq!(listen("[::1]:0").unwrap().to_string(), "[::1]:0");
        for bad in ["", "8080", ":", ":99999", "localhost:8080", "127.0.0.1", "::1"] {
            assert!(listen(bad).unwrap_err().contains("accepted"), "{bad}");
        }
    }

    #[test]
    fn the_names_of_a_hop_and_its_spans_have_their_order() {
        let names = |args: &[&str], env: &[(&str, &str)]| {
            let config = config(args, env).unwrap();
            (config.identity.name, config.resource.service_name)
        };
        let both = |name: &str| (name.to_owned(), name.to_owned());
        assert_eq!(names(&[], &[]), both("httpserver"));
        assert_eq!(names(&[], &[("OTEL_SERVICE_NAME", "otel")]), both("otel"));
        assert_eq!(names(&["--name", "a"], &[("OTEL_SERVICE_NAME", "otel")]), ("a".into(), "otel".into()));
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=ra,k8s.pod.name=p%2C1");
        assert_eq!(names(&["--name", "a"], &[attributes]), ("a".into(), "ra".into()));
        assert!(config(&[], &[attributes]).unwrap().resource.attributes.contains(&("k8s.pod.name".into(), "p,1".into())));
    }

    #[test]
    fn the_otlp_endpoint_is_a_base_or_whole() {
        let endpoint = |env: &[(&str, &str)]| match config(&["--trace-exporter", "otlp"], env).unwrap().exporter {
            Exporter::Otlp(options) => options.endpoint,
            other => panic!("{other:?}"),
        };
        assert_eq!(endpoint(&[]), "http://localhost:4318/v1/traces");
        assert_eq!(endpoint(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/")]), "http://c:4318/v1/traces");
        assert_eq!(endpoint(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c/x")]), "http://c/x");
    }

    #[test]
    fn a_wrong_variable_is_named_with_what_is_accepted() {
        for (args, env, name) in [
            (&["--trace-exporter", "otlp"][..], ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), "http/protobuf"),
            (&["--trace-exporter", "otlp"], ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"), "gzip"),
            (&["--trace-exporter", "otlp"], ("OTEL_EXPORTER_OTLP_TIMEOUT", "1s"), "milliseconds"),
            (&["--trace-exporter", "zipkin"], ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", "zipkin:9411"), "http://"),
            (&[], ("OTEL_PROPAGATORS", "jaeger"), "tracecontext"),
            (&[], ("OTEL_TRACES_SAMPLER", "some"), "always_on"),
            (&[], ("OTEL_BSP_MAX_QUEUE_SIZE", "0"), "1 on"),
            (&[], ("OTEL_RESOURCE_ATTRIBUTES", "nothing"), "key=value"),
        ] {
            let error = config(args, &[env]).unwrap_err();
            assert!(error.contains(env.0) && error.contains(env.1) && error.contains(name), "{error}");
            assert_eq!(error.lines().count(), 1);
        }
        assert_eq!(config(&["--trace-exporter", "otlp"], &[("OTEL_SDK_DISABLED", "TRUE")]).unwrap().exporter, Exporter::None);
    }

    #[test]
    fn a_wrong_flag_is_one_line_with_flag_variable_value_and_what_is_accepted() {
        for (args, parts) in [
            (&["--addr", "nowhere"][..], &["--addr", "(ADDR)", "nowhere", ":8080"][..]),
            (&["--latency", "2s..1s"], &["--latency", "(LATENCY)", "2s..1s", "low..high"]),
            (&["--upstream", "service2"], &["--upstream", "(UPSTREAM)", "service2", "http://"]),
            (&["--fault", "abort=503@110%"], &["--fault", "(FAULT)", "110%", "0% to 100%"]),
            (&["--fan-out", "both"], &["--fan-out", "(FAN_OUT)", "both", "parallel, sequential"]),
            (&["--trace-exporter", "jaeger"], &["--trace-exporter", "(OTEL_TRACES_EXPORTER)", "none, zipkin, otlp, console"]),
            (&["--max-hops", "0"], &["--max-hops", "(MAX_HOPS)", "0"]),
            (&["--max-hops", "257"], &["--max-hops", "(MAX_HOPS)", "257", "256"]),
            (&["--drain-delay", "ten"], &["--drain-delay", "(DRAIN_DELAY)", "ten", "20ms"]),
            (&["--upstreams", "x"], &["--upstreams", "--upstream"]),
            (&["--drop-header", "x-mine"], &["--drop-header", "(DROP_HEADERS)", "x-mine", "traceparent"]),
            (&["--service-version", "a\nb"], &["--service-version", "(VERSION)", "printable"]),
        ] {
            let error = config(args, &[]).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{args:?}: {error}");
            assert_eq!(error.trim().lines().count(), 1, "{error}");
        }
    }
}
