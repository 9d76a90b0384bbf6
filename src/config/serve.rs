//! The options of `serve` and `health`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::HeaderName;

use crate::config::ConfigError;
use crate::config::demo::not_carried;
use crate::config::fan_out::FanOutParser;
use crate::config::otel::{self, Environment, ExporterName};
use crate::hop::capacity::{Capacity, Resources};
use crate::hop::config::{AdminOptions, HopConfig};
use crate::hop::fault::{Fault, FaultConfig};
use crate::hop::identity::Locality;
use crate::hop::latency::Latency;
use crate::hop::limits::MAX_RESPONSE;
use crate::hop::reply::MAX_HOPS;
use crate::hop::request_faults::RequestFaults;
use crate::net::hosts::redacted_input;
use crate::net::tls::Roots;
use crate::server::options::ConnectionOptions;
use crate::server::shutdown::DrainOptions;
use crate::server::tls::{ServerTls, TlsOptions};
use crate::telemetry::access_log::LogFormat;
use crate::trace_context::{Break, is_carried};
use crate::upstream::{FanOut, MAX_REQUEST, Target};
use crate::values::{BASE_LANE, Listen, SizeRange, at_least_one, header_name, parse_duration, parse_label, positive_duration};

/// The options of `serve`.
#[derive(Debug, Clone, Args)]
#[command(after_help = otel::HELP)]
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
    #[arg(long, env, default_value = BASE_LANE, value_parser = parse_label)]
    pub lane: String,
    /// A next hop, repeatable: none is the last hop, one a chain, several a fan-out. `http://`, `https://` (HTTP/2 where the server
    /// offers it), `h2c://` (HTTP/2 in plain text), `grpc://` or `grpcs://` (gRPC). A URL without a path gets `/service<N+1>`
    #[arg(long, env, value_delimiter = ',', value_name = "URL")]
    pub upstream: Vec<Target>,
    /// How several next hops are called: `parallel`, `parallel=N` (so many at once) or `sequential`
    #[arg(long, env, default_value = "parallel", value_parser = FanOutParser, hide_possible_values = true)]
    pub fan_out: FanOut,
    /// Server reflection over gRPC, with which `grpcurl` finds the methods
    #[arg(long, env, default_value = "on")]
    pub grpc_reflection: Switch,
    /// The body of a request goes on to the next hops
    #[arg(long, env)]
    pub forward_body: bool,
    /// The size of a body that is sent on where none is passed on, at most 64KiB: `10KiB`, `1KiB..64KiB`
    #[arg(long, env, value_name = "SIZE")]
    pub request_size: Option<SizeRange<MAX_REQUEST>>,
    /// The size that a reply of the chain has at least, at most 1MiB: `10KiB`, `1KiB..1MiB`
    #[arg(long, env, value_name = "SIZE")]
    pub response_size: Option<SizeRange<MAX_RESPONSE>>,
    /// Time per call, whole answer included; a caller must wait longer than the hop below it
    #[arg(long, env, default_value = "5s", value_parser = positive_duration, value_name = "DURATION")]
    pub upstream_timeout: Duration,
    /// Added delay: `20ms`, `10ms..2s` (uniform) or `p50=20ms,p90=80ms,p99=400ms`
    #[arg(long, env, default_value = "0")]
    pub latency: Latency,
    /// A fault, with its rate or for every request, repeatable: `abort=503@10%`, `delay=2s@5%`, `reset`, `hang`, `truncate`,
    /// `slow-body=1KiB/s`, `limit=10/s`, `cpu=50ms`, `memory=64MiB`, `close`
    #[arg(long, env, value_delimiter = ',')]
    pub fault: Vec<Fault>,
    /// A way to break the trace on purpose, with its rate or for every request, repeatable: `stale-parent`, `new-trace`,
    /// `flip-sampled`, `new-request-id`, `duplicate=NAME`, `join=NAME`, `shorten-b3`, `w3c-only`, `b3-only`, `cross-talk@5%`
    #[arg(long = "break", env = "BREAK", value_delimiter = ',', value_name = "BREAK")]
    pub breaks: Vec<Break>,
    /// The runtime API (configuration, faults, readiness, log level): `127.0.0.1:9901`. Beyond loopback it needs ADMIN_TOKEN, which
    /// callers send as `Authorization: Bearer` [default: none]
    #[arg(long, env, value_name = "ADDRESS")]
    pub admin_addr: Option<Listen>,
    /// Whose `x-fault` acts on a request: nobody's, everybody's, or that of who has REQUEST_FAULTS_TOKEN as `x-fault-token`
    #[arg(long, env, default_value = "off", value_name = "WHOSE")]
    pub request_faults: Whose,
    /// Every draw follows from this number, the trace's id (else the request's) and the hop's name [default: random]
    #[arg(long, env, value_name = "N", value_parser = crate::values::whole::<u64>(0..=u64::MAX))]
    pub seed: Option<u64>,
    /// Not ready for this long after the start
    #[arg(long, env, default_value = "0", value_parser = parse_duration, value_name = "DURATION")]
    pub ready_after: Duration,
    /// How often a failed call is repeated, at most 10: each attempt has the upstream timeout
    #[arg(long, env, default_value = "0", value_parser = crate::values::whole::<u32>(0..=10), value_name = "N")]
    pub retries: u32,
    /// A header to carry to the next hop beside the built-in ones, repeatable
    #[arg(long, env = "FORWARD_HEADERS", value_delimiter = ',', value_name = "NAME", value_parser = header_name)]
    pub forward_header: Vec<HeaderName>,
    /// A carried header that this hop loses on purpose, repeatable
    #[arg(long, env = "DROP_HEADERS", value_delimiter = ',', value_name = "NAME", value_parser = header_name)]
    pub drop_header: Vec<HeaderName>,
    /// A chain that calls itself ends with 508 after so many hops, at most 256
    #[arg(long, env, default_value = "16", value_parser = crate::values::whole::<u32>(1..=MAX_HOPS.into()), value_name = "N")]
    pub max_hops: u32,
    /// Calls that one request makes in all, at every hop together; at the limit the call is not made and the hop answers 508
    #[arg(long, env, default_value = "1000", value_parser = crate::values::whole::<u32>(1..=u32::MAX.into()), value_name = "N")]
    pub max_calls: u32,
    /// More requests in flight get 503 at once [default: from the memory limit, at most 1024]
    #[arg(long, env, value_parser = at_least_one, value_name = "N")]
    pub max_concurrency: Option<usize>,
    /// At this many connections the one idle for longest is closed first [default: from the memory and descriptor limits, at most
    /// 10000]
    #[arg(long, env, value_parser = at_least_one, value_name = "N")]
    pub max_connections: Option<usize>,
    /// A request head must be complete this long after its first byte
    #[arg(long, env, default_value = "10s", value_parser = positive_duration, value_name = "DURATION")]
    pub header_timeout: Duration,
    /// How long a kept-alive connection may be idle; longer than in Envoy's pool (1 h)
    #[arg(long, env, default_value = "65m", value_parser = positive_duration, value_name = "DURATION")]
    pub idle_timeout: Duration,
    /// After SIGTERM: not ready, still serving, this long
    #[arg(long, env, default_value = "5s", value_parser = parse_duration, value_name = "DURATION")]
    pub drain_delay: Duration,
    /// Then finish what is in flight, at most this long
    #[arg(long, env, default_value = "20s", value_parser = parse_duration, value_name = "DURATION")]
    pub drain_timeout: Duration,
    /// Then export the last spans and write the last log lines, at most this long
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
    /// The format of access lines
    #[arg(long, env, default_value = "text")]
    pub log_format: LogFormat,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap takes a doc comment here for the command's own help")]
    pub verbosity: Verbosity,
    /// Where spans go, to one or several [default: none]
    #[arg(long, env = "OTEL_TRACES_EXPORTER", value_delimiter = ',', value_name = "EXPORTER")]
    pub trace_exporter: Vec<ExporterName>,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// It is answered.
    On,
    /// It is not.
    Off,
}

/// Whose faults act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Whose {
    /// `x-fault` is ignored.
    Off,
    /// Every caller's acts.
    On,
    /// Only that of callers which send the token acts.
    Token,
}

/// `-v` and `-q`.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Verbosity {
    /// More diagnostics on stderr (twice for everything); RUST_LOG sets it in detail
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Fewer diagnostics: warnings only (twice: errors only)
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "verbose")]
    pub quiet: u8,
}

/// The options of `health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// The URL to request [default: /healthz on loopback, at the port of ADDR]
    #[arg(value_name = "URL")]
    pub url: Option<String>,
    /// Where the server listens
    #[arg(long, env, default_value = ":8080", value_name = "ADDRESS")]
    pub addr: Listen,
    /// Set as for the server: then the request is sent over TLS. A certificate on loopback is not verified
    #[arg(long, env, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
}

impl HopConfig {
    /// From the options of `serve` and the variables of OpenTelemetry.
    ///
    /// # Errors
    ///
    /// The first option that cannot be used.
    pub fn from_args(args: ServeArgs, env: &Environment<'_>) -> Result<Self, ConfigError> {
        let otel = otel::Variables::new(env);
        let attributes = otel.resource_attributes();
        let service_name = otel.get("OTEL_SERVICE_NAME");
        let hop_name = || {
            let name = service_name.as_deref()?.trim();
            let named = parse_label(name).map_err(|reason| {
                let name = redacted_input(name);
                otel.warn(format!(
                    "OTEL_SERVICE_NAME: '{}' names the spans, but not the hop: {reason}; --name (SERVICE_NAME) names it",
                    name.escape_debug()
                ));
            });
            named.ok()
        };
        let name = args.name.or_else(hop_name).unwrap_or_else(|| "httpserver".to_owned());
        let name = parse_label(&name).map_err(|error| ConfigError::value("--name (SERVICE_NAME)", &name, error))?;
        let in_attributes = attributes.iter().find(|(key, _)| key == "service.name").map(|(_, value)| value.clone());
        let mut config = Self::new(&name, args.addr);
        config.identity.version = args.service_version;
        config.identity.lane = args.lane;
        config.export.resource.service_name = service_name.or(in_attributes).unwrap_or(name);
        config.identity.place = Locality::of(&attributes);
        config.export.resource.attributes = config.identity.attributes();
        for (key, value) in attributes.into_iter().filter(|(key, _)| key != "service.name") {
            config.export.resource.attributes.retain(|(own, _)| *own != key);
            config.export.resource.attributes.push((key, value));
        }
        config.upstreams = args.upstream;
        config.fan_out = args.fan_out;
        config.grpc_reflection = args.grpc_reflection == Switch::On;
        config.forward_body = args.forward_body;
        config.request_size = args.request_size;
        config.response_size = args.response_size;
        config.upstream_timeout = args.upstream_timeout;
        config.faults = FaultConfig { latency: args.latency, faults: args.fault, breaks: args.breaks };
        let is_carried = |name: &HeaderName| is_carried(name.as_str()) || args.forward_header.contains(name);
        if let Some(name) = args.drop_header.iter().find(|name| !is_carried(name)) {
            return Err(ConfigError::value("--drop-header (DROP_HEADERS)", name.as_str(), not_carried()));
        }
        let is_of_none = |broken: &&Break| broken.kind.header().is_some_and(|name| !is_carried(name));
        if let Some(broken) = config.faults.breaks.iter().find(is_of_none) {
            return Err(ConfigError::value("--break (BREAK)", &broken.to_string(), not_carried()));
        }
        config.request_faults = request_faults(args.request_faults, env)?;
        config.admin = args.admin_addr.map(|listen| admin(listen, env)).transpose()?;
        config.seed = args.seed;
        config.ready_after = args.ready_after;
        config.retries = args.retries;
        config.forward_headers = args.forward_header;
        config.drop_headers = args.drop_header;
        config.max_hops = args.max_hops;
        config.max_calls = args.max_calls;
        let capacity = Capacity::of(Resources::of_process(), config.upstreams.len(), args.max_connections, args.max_concurrency);
        config.connections = ConnectionOptions {
            header_timeout: args.header_timeout,
            idle_timeout: args.idle_timeout,
            ..ConnectionOptions::default()
        };
        config.set_capacity(capacity);
        config.tls = server_tls(args.tls_cert, args.tls_key, args.tls_client_ca)?;
        if let Some(path) = args.upstream_ca {
            config.upstream_roots = Roots::load("--upstream-ca (UPSTREAM_CA)", &path).map_err(ConfigError::File)?;
        }
        config.drain = DrainOptions { delay: args.drain_delay, timeout: args.drain_timeout, flush_timeout: args.flush_timeout };
        config.access_log = Some(args.log_format);
        let named = Some(args.trace_exporter).filter(|named| !named.is_empty());
        config.export.spans = otel.exporters(&named.or_else(|| otel.exporter_names()).unwrap_or_default());
        config.export.metrics = otel.metric_options();
        config.export.logs = otel.log_options();
        otel.warn_of_unused_endpoints(&config.export);
        otel.apply(&mut config);
        Ok(config)
    }
}

fn request_faults(whose: Whose, env: &Environment<'_>) -> Result<RequestFaults, ConfigError> {
    let token = (env.variable)("REQUEST_FAULTS_TOKEN").filter(|token| !token.is_empty());
    Ok(match whose {
        Whose::Off => RequestFaults::Off,
        Whose::On => {
            if token.is_some() {
                (env.warn)(
                    "REQUEST_FAULTS_TOKEN has no effect with --request-faults on (REQUEST_FAULTS): everybody's x-fault acts; \
                     with token only of those who have it",
                );
            }
            RequestFaults::On
        }
        Whose::Token => {
            let (option, needs) = ("--request-faults token (REQUEST_FAULTS)", "the variable REQUEST_FAULTS_TOKEN");
            RequestFaults::Token(token.ok_or(ConfigError::Incomplete { option, needs })?)
        }
    })
}

fn admin(listen: Listen, env: &Environment<'_>) -> Result<AdminOptions, ConfigError> {
    let token = (env.variable)("ADMIN_TOKEN").filter(|token| !token.is_empty());
    if token.is_none() && !listen.host.is_some_and(|host| host.is_loopback()) {
        let needs = "the variable ADMIN_TOKEN, because it listens beyond loopback";
        return Err(ConfigError::Incomplete { option: "--admin-addr (ADMIN_ADDR)", needs });
    }
    Ok(AdminOptions { listen, token })
}

fn server_tls(cert: Option<PathBuf>, key: Option<PathBuf>, client_ca: Option<PathBuf>) -> Result<Option<ServerTls>, ConfigError> {
    const CERT: &str = "--tls-cert (TLS_CERT)";
    const KEY: &str = "--tls-key (TLS_KEY)";
    let incomplete = |option, needs| Err(ConfigError::Incomplete { option, needs });
    match (cert, key, client_ca) {
        (None, None, None) => Ok(None),
        (Some(cert), Some(key), client_ca) => {
            ServerTls::load(TlsOptions { cert, key, client_ca }).map(Some).map_err(ConfigError::File)
        }
        (None, None, Some(_)) => incomplete("--tls-client-ca (TLS_CLIENT_CA)", "--tls-cert (TLS_CERT) and --tls-key (TLS_KEY)"),
        (_, None, _) => incomplete(CERT, "--tls-key (TLS_KEY), the certificate's private key"),
        (None, ..) => incomplete(KEY, "--tls-cert (TLS_CERT), the key's certificate"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use std::cell::RefCell;

    use super::*;
    use crate::telemetry::export::Exporter;
    use crate::telemetry::tracer::Sampler;
    use crate::trace_context::Propagators;

    #[derive(Parser)]
    struct Serve {
        #[command(flatten)]
        args: ServeArgs,
    }

    fn config(args: &[&str], env: &[(&str, &str)]) -> Result<HopConfig, ConfigError> {
        with_warnings(args, env).map(|(config, _)| config)
    }

    fn with_warnings(args: &[&str], env: &[(&str, &str)]) -> Result<(HopConfig, Vec<String>), ConfigError> {
        let variable = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let warnings = RefCell::<Vec<String>>::default();
        let warn = |text: &str| RefCell::borrow_mut(&warnings).push(text.to_owned());
        let args = Serve::parse_from(["serve"].iter().chain(args)).args;
        let config = HopConfig::from_args(args, &Environment { variable: &variable, warn: &warn })?;
        Ok((config, warnings.into_inner()))
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
            (config.identity.name, config.export.resource.service_name)
        };
        let both = |name: &str| (name.to_owned(), name.to_owned());
        assert_eq!(names(&[], &[]), both("httpserver"));
        assert_eq!(names(&[], &[("OTEL_SERVICE_NAME", "otel")]), both("otel"));
        assert_eq!(names(&["--name", "a"], &[("OTEL_SERVICE_NAME", "otel")]), ("a".into(), "otel".into()));
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=ra,k8s.pod.name=p%2C1");
        assert_eq!(names(&["--name", "a"], &[attributes]), ("a".into(), "ra".into()));
        assert!(config(&[], &[attributes]).unwrap().export.resource.attributes.contains(&("k8s.pod.name".into(), "p,1".into())));
    }

    #[test]
    fn the_otlp_endpoint_is_a_base_or_whole() {
        let endpoint = |env: &[(&str, &str)]| match &config(&["--trace-exporter", "otlp"], env).unwrap().export.spans[..] {
            [Exporter::Otlp(options)] => options.endpoint.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(endpoint(&[]), "http://localhost:4318/v1/traces");
        assert_eq!(endpoint(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/")]), "http://c:4318/v1/traces");
        assert_eq!(endpoint(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c/x")]), "http://c/x");
    }

    #[test]
    fn a_variable_that_cannot_be_used_is_named_with_what_is_accepted_and_counts_as_not_set() {
        let otlp = &["--trace-exporter", "otlp"][..];
        for (args, env, accepted) in [
            (otlp, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"), "http/protobuf"),
            (otlp, ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"), "gzip"),
            (otlp, ("OTEL_EXPORTER_OTLP_TIMEOUT", "1s"), "milliseconds"),
            (otlp, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"), "http://"),
            (otlp, ("OTEL_SDK_DISABLED", "yes"), "true, false"),
            (&["--trace-exporter", "zipkin"], ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", "zipkin:9411"), "http://"),
            (&[], ("OTEL_PROPAGATORS", "jaeger"), "tracecontext"),
            (&[], ("OTEL_TRACES_SAMPLER", "some"), "always_on"),
            (&[], ("OTEL_BSP_MAX_QUEUE_SIZE", "0"), "1 on"),
            (&[], ("OTEL_BSP_SCHEDULE_DELAY", "1s"), "milliseconds"),
            (&[], ("OTEL_RESOURCE_ATTRIBUTES", "nothing"), "key=value"),
            (&[], ("OTEL_TRACES_EXPORTER", "jaeger"), "zipkin"),
            (&[], ("OTEL_METRICS_EXPORTER", "console"), "prometheus"),
            (&[], ("OTEL_LOGS_EXPORTER", "loki"), "console"),
            (&[], ("OTEL_CONFIG_FILE", "/etc/otel.yaml"), "not supported"),
        ] {
            let (config, warnings) = with_warnings(args, &[env]).unwrap();
            let [warning] = &warnings[..] else { panic!("{env:?}: {warnings:?}") };
            assert!(warning.contains(env.0) && warning.contains(env.1) && warning.contains(accepted), "{warning}");
            assert_eq!(warning.lines().count(), 1);
            let without = with_warnings(args, &[]).unwrap().0;
            assert_eq!(format!("{config:?}"), format!("{without:?}"), "{env:?}");
        }
    }

    #[test]
    fn a_timeout_of_0_is_none_and_a_delay_of_0_the_shortest() {
        let env = [
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_METRICS_EXPORTER", "otlp"),
            ("OTEL_LOGS_EXPORTER", "otlp"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_METRIC_EXPORT_TIMEOUT", "0"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
            ("OTEL_BSP_SCHEDULE_DELAY", "0"),
            ("OTEL_BLRP_SCHEDULE_DELAY", "0"),
        ];
        let (config, warnings) = with_warnings(&[], &env).unwrap();
        assert_eq!(warnings, [""; 0]);
        let export = config.export;
        let (metrics, logs) = (export.metrics.unwrap(), export.logs.unwrap());
        let [Exporter::Otlp(traces)] = &export.spans[..] else { panic!("one exporter") };
        let timeouts = [traces.timeout, metrics.otlp.timeout, metrics.timeout, logs.otlp.timeout];
        assert!(timeouts.iter().all(|timeout| *timeout > Duration::from_hours(24)), "{timeouts:?}");
        assert_eq!([export.schedule_delay, metrics.interval, logs.schedule_delay], [Duration::from_millis(1); 3]);
    }

    #[test]
    fn what_is_not_supported_is_warned_about_unless_it_asks_for_what_happens_anyway() {
        let warned = |name: &'static str, value: &'static str| with_warnings(&[], &[(name, value)]).unwrap().1.len();
        for (name, usual) in [
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512"),
            ("OTEL_EXPORTER_ZIPKIN_TIMEOUT", "10000"),
            ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "Explicit_Bucket_Histogram"),
            ("OTEL_LOG_LEVEL", "INFO"),
        ] {
            assert_eq!((warned(name, usual), warned(name, "256")), (0, 1), "{name}");
        }
        for name in
            ["OTEL_SPAN_EVENT_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT", "OTEL_ENTITIES", "OTEL_EXPORTER_ZIPKIN_PROTOCOL"]
        {
            assert_eq!(warned(name, "1"), 1, "{name}");
        }
    }

    #[test]
    fn a_signals_own_timeout_wins_over_the_one_for_all() {
        let env = [
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_METRICS_EXPORTER", "otlp"),
            ("OTEL_LOGS_EXPORTER", "otlp"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2000"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "3000"),
            ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "later"),
            ("OTEL_METRIC_EXPORT_TIMEOUT", "4000"),
        ];
        let (config, warnings) = with_warnings(&[], &env).unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let export = config.export;
        let [Exporter::Otlp(traces)] = &export.spans[..] else { panic!("one exporter") };
        let (metrics, logs) = (export.metrics.unwrap(), export.logs.unwrap());
        let timeouts = [traces.timeout, metrics.otlp.timeout, logs.otlp.timeout, metrics.timeout];
        assert_eq!(timeouts, [2, 3, 1, 4].map(Duration::from_secs));
    }

    #[test]
    fn a_service_name_that_is_no_name_of_a_hop_names_the_spans_and_is_not_called_ignored() {
        let env = [("OTEL_SERVICE_NAME", "bücher")];
        let (config, warnings) = with_warnings(&[], &env).unwrap();
        assert_eq!((&*config.identity.name, &*config.export.resource.service_name), ("httpserver", "bücher"));
        assert!(warnings.len() == 1 && !warnings[0].contains("ignored") && warnings[0].contains("--name"), "{warnings:?}");
        assert_eq!(with_warnings(&["--name", "a"], &env).unwrap().1, [""; 0]);
    }

    #[test]
    fn a_token_that_nobody_needs_is_warned_about() {
        let warnings = |args: &[&str]| with_warnings(args, &[("REQUEST_FAULTS_TOKEN", "s3cret")]).unwrap().1;
        let [warning] = &warnings(&["--request-faults", "on"])[..] else { panic!("no warning") };
        assert!(warning.contains("REQUEST_FAULTS_TOKEN has no effect") && !warning.contains("s3cret"), "{warning}");
        assert_eq!(warnings(&["--request-faults", "token"]), [""; 0]);
        assert_eq!(warnings(&[]), [""; 0]);
    }

    #[test]
    fn names_of_values_are_read_in_any_case_and_several_exporters_are_a_list() {
        let exporters = |args: &[&str], env: &[(&str, &str)]| {
            let (config, warnings) = with_warnings(args, env).unwrap();
            assert_eq!(warnings, [""; 0]);
            config.export.spans
        };
        let named = |names| exporters(&[], &[("OTEL_TRACES_EXPORTER", names)]);
        let zipkin = Exporter::Zipkin { endpoint: "http://localhost:9411/api/v2/spans".into() };
        assert_eq!(named("ZipKin, CONSOLE,zipkin"), [zipkin.clone(), Exporter::Console]);
        assert_eq!(named("logging"), [Exporter::Console]);
        assert_eq!(named("None"), []);
        assert_eq!(exporters(&["--trace-exporter", "console,zipkin"], &[]), [Exporter::Console, zipkin.clone()]);
        assert_eq!(exporters(&["--trace-exporter", "zipkin"], &[("OTEL_TRACES_EXPORTER", "otlp")]), [zipkin]);
        assert_eq!(exporters(&["--trace-exporter", "zipkin"], &[("OTEL_SDK_DISABLED", "TRUE")]), []);
        let env = [("OTEL_EXPORTER_OTLP_COMPRESSION", "GZip"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "HTTP/Protobuf")];
        let [Exporter::Otlp(options)] = &exporters(&["--trace-exporter", "otlp"], &env)[..] else { panic!("one exporter") };
        assert!(options.gzip);
        let sampler = |name, arg| {
            let env = [("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", arg)];
            with_warnings(&[], &env).map(|(config, warnings)| (config.sampler, warnings.len())).unwrap()
        };
        assert_eq!(
            sampler("ParentBased_TraceIdRatio", "0.5").0,
            Sampler::parse("parentbased_traceidratio", Some("0.5")).unwrap()
        );
        // What is wrong with an argument is no reason to sample otherwise than the sampler does without it.
        assert_eq!(sampler("traceidratio", "2"), (Sampler::parse("traceidratio", None).unwrap(), 1));
        let propagators = with_warnings(&[], &[("OTEL_PROPAGATORS", "B3,jaeger,TraceContext")]).unwrap();
        assert_eq!((propagators.0.propagators, propagators.1.len()), (Propagators::from_names(["b3", "tracecontext"]).0, 1));
    }
}
