//! Variables that look like misspelt ones of ours. They would have no effect, and nobody would notice.

use std::collections::BTreeSet;

use clap::Args as _;
use strsim::osa_distance;

use crate::config::{ServeArgs, otel};

/// What others call the same; no distance between names would find them.
const SYNONYMS: [(&str, &str); 12] = [
    ("PORT", "ADDR"),
    ("ADDRESS", "ADDR"),
    ("LISTEN", "ADDR"),
    ("LISTEN_ADDR", "ADDR"),
    ("LISTEN_ADDRESS", "ADDR"),
    ("BIND_ADDR", "ADDR"),
    ("BIND_ADDRESS", "ADDR"),
    ("UPSTREAM_URL", "UPSTREAM"),
    ("UPSTREAM_URLS", "UPSTREAM"),
    ("UPSTREAM_URI", "UPSTREAM"),
    ("UPSTREAM_URIS", "UPSTREAM"),
    ("LOG_LEVEL", "RUST_LOG"),
];

/// Variables without a flag, because a command line is no place for a secret.
const TOKENS: [&str; 2] = ["ADMIN_TOKEN", "REQUEST_FAULTS_TOKEN"];

/// Warns of each variable of this process that looks like a misspelt one of `serve`.
pub(crate) fn warn_of_misspelt_variables(warn: &dyn Fn(&str)) {
    let known = KnownVariables::of_serve();
    for (name, value) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if let Some(meant) = known.meant(&name, &value.to_string_lossy()) {
            warn(&format!("{} is not a variable of this program and has no effect: did you mean {meant}?", name.escape_debug()));
        }
    }
}

/// The names that are read.
#[derive(Debug)]
struct KnownVariables {
    names: BTreeSet<String>,
    /// Names that mean one of `names`: those of flags whose variable has another one, and [`SYNONYMS`].
    synonyms: Vec<(String, String)>,
}

impl KnownVariables {
    /// From the flags of `serve` with their variables, and the variables without a flag.
    fn of_serve() -> Self {
        let command = ServeArgs::augment_args(clap::Command::new("serve"));
        let of = |arg: &clap::Arg| Some((arg.get_long()?.to_owned(), arg.get_env()?.to_str()?.to_owned()));
        let args: Vec<_> = command.get_arguments().filter_map(of).collect();
        let from_flags = args.iter().map(|(flag, variable)| (flag.replace('-', "_").to_uppercase(), variable.clone()));
        // `NAME` is a variable of some terminals.
        let from_flags = from_flags.filter(|(flag, variable)| flag != variable && flag.contains('_'));
        let synonyms = SYNONYMS.iter().map(|(name, ours)| ((*name).to_owned(), (*ours).to_owned())).chain(from_flags).collect();
        let tokens = TOKENS.map(str::to_owned);
        let names = args.iter().map(|(_, variable)| variable.clone()).chain(otel::known_names()).chain(tokens).collect();
        Self { names, synonyms }
    }

    /// The variable that was probably meant, if `name` is none that is read.
    fn meant(&self, name: &str, value: &str) -> Option<&str> {
        if self.names.contains(name) || is_service_link(name, value) {
            return None;
        }
        let written = name.replace(['-', '.'], "_");
        // Build tools export `name` and `version`; nobody else means a short word in small letters.
        if written.bytes().any(|byte| byte.is_ascii_lowercase()) && written.len() < 8 {
            return None;
        }
        let upper = written.to_uppercase();
        let bare = upper.strip_prefix("HTTPSERVER_").unwrap_or(&upper);
        let synonym = self.synonyms.iter().find(|(synonym, _)| synonym == bare).map(|(_, meant)| meant);
        let exact = || self.names.get(bare);
        let unprefixed = || self.names.iter().find(|known| is_without_prefix(bare, known));
        let near = || {
            // The distance is at least the difference of the lengths: most pairs need no further work, and each start is spared it.
            let candidates = self.names.iter().filter(|known| known.len().abs_diff(bare.len()) <= MOST);
            let distances = candidates.map(|known| (osa_distance(bare, known), known));
            distances.filter(|(distance, known)| is_near(*distance, bare, known)).min().map(|(_, known)| known)
        };
        synonym.or_else(exact).or_else(unprefixed).or_else(near).map(String::as_str)
    }
}

/// What Kubernetes and Docker set for each Service and link: `SERVICE2_PORT`, `SERVICE2_SERVICE_HOST`, `SERVICE2_PORT_80_TCP_ADDR`.
fn is_service_link(name: &str, value: &str) -> bool {
    let address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let of_port = name.split_once("_PORT_").is_some_and(|(_, rest)| rest.starts_with(|first: char| first.is_ascii_digit()));
    name.starts_with("KUBERNETES_")
        || name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || of_port
        || address && name.ends_with("_PORT")
}

/// `ZIPKIN_ENDPOINT`, `TRACES_EXPORTER`: a name of OpenTelemetry's that begins too late.
fn is_without_prefix(name: &str, known: &str) -> bool {
    let begins = ["EXPORTER_", "OTLP_", "ZIPKIN_", "TRACES_"].iter().any(|begin| name.starts_with(begin));
    begins && known.strip_suffix(name).is_some_and(|prefix| prefix == "OTEL_" || prefix == "OTEL_EXPORTER_")
}

/// The largest distance at which a name is near another.
const MOST: usize = 3;

/// A short name has more neighbours that mean something else: `LANG` is not `LANE`, and `MAX_JOBS` not `MAX_HOPS`.
fn is_near(distance: usize, name: &str, known: &str) -> bool {
    let most = match known.len() {
        // One letter more or other makes another common word of a short name: SPEED is not SEED.
        0..=5 if !(is_permutation(name, known) || name.len() < known.len() || name.starts_with(known)) => 0,
        0..=9 => 1,
        10..=19 => 2,
        _ => MOST,
    };
    distance <= most
}

fn is_permutation(a: &str, b: &str) -> bool {
    let sorted = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.sort_unstable();
        bytes
    };
    sorted(a) == sorted(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_is_known_by_the_one_that_was_meant() {
        let known = KnownVariables::of_serve();
        for (name, meant) in [
            ("UPSTREAMS", "UPSTREAM"),
            ("UPSTREAM_URIS", "UPSTREAM"),
            ("UPSTEAM", "UPSTREAM"),
            ("upstream", "UPSTREAM"),
            ("UPSTREAM-TIMEOUT", "UPSTREAM_TIMEOUT"),
            ("UPSTREAM_TIME_OUT", "UPSTREAM_TIMEOUT"),
            ("HTTPSERVER_UPSTREAM", "UPSTREAM"),
            ("PORT", "ADDR"),
            ("ADR", "ADDR"),
            ("ADDRS", "ADDR"),
            ("LANES", "LANE"),
            ("LAEN", "LANE"),
            ("SEEDS", "SEED"),
            ("ADMIN_TOKENS", "ADMIN_TOKEN"),
            ("REQUEST_FAULT_TOKEN", "REQUEST_FAULTS_TOKEN"),
            ("FAULTS", "FAULT"),
            ("FANOUT", "FAN_OUT"),
            ("MAXHOPS", "MAX_HOPS"),
            ("MAX_CONNECTION", "MAX_CONNECTIONS"),
            ("DROP_HEADER", "DROP_HEADERS"),
            ("FORWARD_HEADER", "FORWARD_HEADERS"),
            ("SERVICENAME", "SERVICE_NAME"),
            ("SERVICE_VERSION", "VERSION"),
            ("LOG_FROMAT", "LOG_FORMAT"),
            ("LOG_LEVEL", "RUST_LOG"),
            ("TRACE_EXPORTER", "OTEL_TRACES_EXPORTER"),
            ("OTEL_TRACE_EXPORTER", "OTEL_TRACES_EXPORTER"),
            ("otel_traces_exporter", "OTEL_TRACES_EXPORTER"),
            ("OTEL_TRACE_SAMPLER", "OTEL_TRACES_SAMPLER"),
            ("OTEL_PROPAGATOR", "OTEL_PROPAGATORS"),
            ("OTEL_SERVICENAME", "OTEL_SERVICE_NAME"),
            ("OTEL_EXPORTER_OTLP_ENPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
            ("OTEL_EXPORTER_OTLP_TRACE_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
            ("OTEL_EXPORTER_OTLP_METRIC_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS"),
            ("OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
            ("ZIPKIN_ENDPOINT", "OTEL_EXPORTER_ZIPKIN_ENDPOINT"),
            ("TOKIO_WORKER_THREAD", "TOKIO_WORKER_THREADS"),
        ] {
            assert_eq!(known.meant(name, "x"), Some(meant), "{name}");
        }
    }

    #[test]
    fn what_is_read_and_what_is_somebody_elses_is_no_alarm() {
        let known = KnownVariables::of_serve();
        for name in &known.names {
            assert_eq!(known.meant(name, "x"), None, "{name}");
        }
        // What OpenTelemetry defines beside what is read here.
        let opentelemetry = "OTEL_LOG_LEVEL OTEL_BSP_EXPORT_TIMEOUT OTEL_BSP_MAX_EXPORT_BATCH_SIZE OTEL_BLRP_EXPORT_TIMEOUT \
            OTEL_BLRP_MAX_EXPORT_BATCH_SIZE OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT OTEL_ATTRIBUTE_COUNT_LIMIT OTEL_SPAN_EVENT_COUNT_LIMIT \
            OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT OTEL_SPAN_LINK_COUNT_LIMIT OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT \
            OTEL_EXPORTER_PROMETHEUS_HOST OTEL_EXPORTER_PROMETHEUS_PORT OTEL_EXPORTER_ZIPKIN_TIMEOUT OTEL_EXPORTER_JAEGER_ENDPOINT \
            OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION OTEL_ENTITIES OTEL_SEMCONV_STABILITY_OPT_IN OTEL_NODE_IP OTEL_POD_IP \
            OTEL_RESOURCE_ATTRIBUTES_POD_NAME OTEL_RESOURCE_ATTRIBUTES_NODE_NAME OTEL_GO_X_EXEMPLAR OTEL_INSTRUMENTATION_HTTP_CLIENT";
        let shells = "PATH HOME PWD OLDPWD SHLVL SHELL USER LOGNAME NAME HOST HOSTNAME HOSTTYPE LANG LANGUAGE LC_ALL TERM TZ EDITOR PAGER DISPLAY \
            MAIL TMPDIR XDG_RUNTIME_DIR SSH_AUTH_SOCK SSH_CONNECTION DEBUG CI NO_COLOR CLICOLOR_FORCE LS_COLORS INVOCATION_ID JOURNAL_STREAM \
            LISTEN_FDS LISTEN_PID NOTIFY_SOCKET WATCHDOG_USEC MAINPID http_proxy https_proxy no_proxy name version system out";
        let others = "SSL_CERT SSL_CERT_FILE SSL_CERT_DIR VAULT VAULT_ADDR CONSUL_HTTP_ADDR NODE_ENV NODE_NAME POD_NAME POD_NAMESPACE POD_IP \
            HOST_IP SERVICE_ACCOUNT INSTANCE_IP ISTIO_META_MESH_ID TRUST_DOMAIN PROXY_CONFIG MAX_JOBS MAKEFLAGS CARGO_HOME RUSTFLAGS RUST_BACKTRACE \
            RUST_MIN_STACK MALLOC_CONF _RJEM_MALLOC_CONF VERSION_ID BUILD_VERSION SPEED TIMEOUT THREADS WORKERS REPLICAS REGION ZONE AWS_REGION \
            GITHUB_SHA GITHUB_TOKEN GITLAB_CI CI_COMMIT_SHA RUNNER_OS KUBECONFIG DOCKER_HOST GOPATH JAVA_HOME PYTHONPATH DEFAULT FAULTLINE BREAKPOINT";
        for name in [opentelemetry, shells, others].into_iter().flat_map(str::split_whitespace) {
            assert_eq!(known.meant(name, "x"), None, "{name}");
        }
    }

    #[test]
    fn what_is_set_for_a_service_is_no_alarm_whatever_the_service_is_called() {
        let known = KnownVariables::of_serve();
        for service in [
            "SERVICE2",
            "KUBERNETES",
            "UPSTREAM",
            "UPSTREAMS",
            "ADDR",
            "LANE",
            "SERVICE",
            "HTTPSERVER",
            "MAX",
            "OTEL_EXPORTER_OTLP",
        ] {
            for (suffix, value) in [
                ("_PORT", "tcp://10.96.0.1:80"),
                ("_SERVICE_HOST", "10.96.0.1"),
                ("_SERVICE_PORT", "80"),
                ("_SERVICE_PORT_HTTP", "80"),
                ("_PORT_80_TCP", "tcp://10.96.0.1:80"),
                ("_PORT_80_TCP_PROTO", "tcp"),
                ("_PORT_80_TCP_PORT", "80"),
                ("_PORT_80_TCP_ADDR", "10.96.0.1"),
            ] {
                assert_eq!(known.meant(&format!("{service}{suffix}"), value), None, "{service}{suffix}");
            }
        }
    }
}
