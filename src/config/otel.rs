//! The variables that OpenTelemetry defines, with their standard names and meanings.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use crate::config::ConfigError;
use crate::hop::config::HopConfig;
use crate::net::hosts::parse_url;
use crate::net::tls::{ClientTls, Roots, certified_key, read_file};
use crate::telemetry::export::{Exporter, OtlpOptions};
use crate::telemetry::tracer::Sampler;
use crate::values::at_least_one;

pub(super) const HELP: &str = "\
Variables of OpenTelemetry, with their standard meanings:
  OTEL_SDK_DISABLED                    true: the exporter is none
  OTEL_SERVICE_NAME                    service.name of spans [default: service.name in OTEL_RESOURCE_ATTRIBUTES, else --name]
  OTEL_RESOURCE_ATTRIBUTES             further attributes of every span: key=value,key=value
  OTEL_EXPORTER_ZIPKIN_ENDPOINT        [default: http://localhost:9411/api/v2/spans]
  OTEL_EXPORTER_OTLP_ENDPOINT          [default: http://localhost:4318]; also …_TRACES_ENDPOINT, …_HEADERS, …_TIMEOUT,
                                       …_COMPRESSION (gzip), …_PROTOCOL (http/protobuf), …_CERTIFICATE (of the CA),
                                       …_CLIENT_CERTIFICATE, …_CLIENT_KEY: PEM files
  OTEL_PROPAGATORS                     which formats are read (first valid one wins) and written
                                       [default: tracecontext,baggage,b3multi,b3]
  OTEL_TRACES_SAMPLER                  [default: parentbased_always_on], with OTEL_TRACES_SAMPLER_ARG
  OTEL_BSP_MAX_QUEUE_SIZE              how many spans wait for the collector [default: 16384]
  OTEL_BSP_SCHEDULE_DELAY              milliseconds between exports [default: 1000]";

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

/// Where `check` and `demo` report their own spans (`--report-spans`): as `OTEL_TRACES_EXPORTER` says, `default` where it says
/// nothing, and as the variables of the exporter say.
///
/// # Errors
///
/// A variable whose value is not accepted.
pub(crate) fn caller_exporter(env: &dyn Fn(&str) -> Option<String>, default: Option<Exporter>) -> Result<Exporter, ConfigError> {
    const NAME: &str = "OTEL_TRACES_EXPORTER";
    let variables = Variables::new(env);
    let name = match (variables.get(NAME).as_deref(), default) {
        (None, Some(default)) => return Ok(default),
        (None | Some("otlp"), _) => ExporterName::Otlp,
        (Some("zipkin"), _) => ExporterName::Zipkin,
        (Some("none"), _) => ExporterName::None,
        (Some(other), _) => return Err(ConfigError::value(NAME, other, "--report-spans accepts otlp, zipkin, none")),
    };
    variables.exporter(name)
}

/// Reads variables; an empty one counts as not set.
pub(super) struct Variables<'a> {
    look_up: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Variables<'a> {
    pub(super) fn new(look_up: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { look_up }
    }

    pub(super) fn get(&self, name: &str) -> Option<String> {
        (self.look_up)(name).filter(|value| !value.trim().is_empty())
    }

    /// A variable's value, read by `read`; the error names the variable.
    fn read<T>(&self, name: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        read(&text).map(Some).map_err(|reason| ConfigError::value(name, &text, reason))
    }

    /// The variable of a signal's own, else the one for all signals: its name and value.
    fn otlp(&self, suffix: &str) -> Option<(String, String)> {
        [format!("OTEL_EXPORTER_OTLP_TRACES_{suffix}"), format!("OTEL_EXPORTER_OTLP_{suffix}")]
            .into_iter()
            .find_map(|name| self.get(&name).map(|value| (name, value)))
    }

    pub(super) fn resource_attributes(&self) -> Result<Vec<(String, String)>, ConfigError> {
        Ok(self.read("OTEL_RESOURCE_ATTRIBUTES", pairs)?.unwrap_or_default())
    }

    /// Propagators, sampler and span queue.
    pub(super) fn apply(&self, config: &mut HopConfig) -> Result<(), ConfigError> {
        if let Some(propagators) = self.read("OTEL_PROPAGATORS", FromStr::from_str)? {
            config.propagators = propagators;
        }
        let arg = self.get("OTEL_TRACES_SAMPLER_ARG");
        let read_sampler = |name: &str| Sampler::parse(name, arg.as_deref()).map_err(|error| error.to_string());
        if let Some(sampler) = self.read("OTEL_TRACES_SAMPLER", read_sampler)? {
            config.sampler = sampler;
        }
        if let Some(size) = self.read("OTEL_BSP_MAX_QUEUE_SIZE", at_least_one)? {
            config.span_queue = size;
        }
        if let Some(delay) = self.read("OTEL_BSP_SCHEDULE_DELAY", milliseconds)? {
            config.schedule_delay = delay;
        }
        Ok(())
    }

    pub(super) fn exporter(&self, name: ExporterName) -> Result<Exporter, ConfigError> {
        if self.get("OTEL_SDK_DISABLED").is_some_and(|disabled| disabled.eq_ignore_ascii_case("true")) {
            return Ok(Exporter::None);
        }
        match name {
            ExporterName::None => Ok(Exporter::None),
            ExporterName::Console => Ok(Exporter::Console),
            ExporterName::Zipkin => {
                let endpoint = self.read("OTEL_EXPORTER_ZIPKIN_ENDPOINT", url)?;
                Ok(Exporter::Zipkin { endpoint: endpoint.unwrap_or_else(|| "http://localhost:9411/api/v2/spans".to_owned()) })
            }
            ExporterName::Otlp => Ok(Exporter::Otlp(self.otlp_options()?)),
        }
    }

    fn otlp_options(&self) -> Result<OtlpOptions, ConfigError> {
        if let Some((name, protocol)) = self.otlp("PROTOCOL").filter(|(_, protocol)| protocol != "http/protobuf") {
            return Err(ConfigError::value(&name, &protocol, "accepted: http/protobuf"));
        }
        let endpoint = match self.otlp("ENDPOINT") {
            Some((name, text)) => {
                let endpoint = url(&text).map_err(|reason| ConfigError::value(&name, &text, reason))?;
                // The general endpoint is a base: the signal's path is added.
                if name.contains("TRACES") { endpoint } else { format!("{}/v1/traces", endpoint.trim_end_matches('/')) }
            }
            None => "http://localhost:4318/v1/traces".to_owned(),
        };
        let headers = match self.otlp("HEADERS") {
            // The value may be a secret.
            Some((name, text)) => otlp_headers(&text).map_err(|reason| ConfigError::value(&name, "(not shown)", reason))?,
            None => Vec::new(),
        };
        let timeout = match self.otlp("TIMEOUT") {
            Some((name, text)) => milliseconds(&text).map_err(|reason| ConfigError::value(&name, &text, reason))?,
            None => Duration::from_secs(10),
        };
        let gzip = match self.otlp("COMPRESSION") {
            Some((name, text)) => match text.as_str() {
                "gzip" => true,
                "none" => false,
                _ => return Err(ConfigError::value(&name, &text, "accepted: gzip, none")),
            },
            None => false,
        };
        Ok(OtlpOptions { endpoint, headers, timeout, gzip, tls: self.otlp_tls() })
    }

    /// The certificates of an exporter. A file that cannot be used is left out with a warning: a variable that is set for a
    /// whole namespace must not keep a hop from serving.
    fn otlp_tls(&self) -> ClientTls {
        let file = |suffix| self.otlp(suffix).map(|(name, path)| (name, PathBuf::from(path)));
        let read = |(name, path): (String, PathBuf)| read_file(&name, &path).map(|pem| (name, path, pem));
        let roots = file("CERTIFICATE").map(|(name, path)| Roots::load(&name, &path));
        let own = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(read(cert).and_then(|(cert, cert_path, cert_pem)| {
                let (key, key_path, key_pem) = read(key)?;
                certified_key((&cert, &cert_path, &cert_pem), (&key, &key_path, &key_pem))
            })),
            (Some((name, _)), None) => Some(Err(format!("{name} needs OTEL_EXPORTER_OTLP_CLIENT_KEY"))),
            (None, Some((name, _))) => Some(Err(format!("{name} needs OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"))),
        };
        let roots = roots.transpose().unwrap_or_else(ignored).unwrap_or_default();
        ClientTls { roots, own: own.transpose().unwrap_or_else(ignored) }
    }
}

/// Warns about a variable that cannot be used.
fn ignored<T>(reason: String) -> Option<T> {
    tracing::warn!("{reason}; it is ignored");
    None
}

/// Headers of an export, each of which HTTP accepts: the exporter would leave out any other without an error.
fn otlp_headers(text: &str) -> Result<Vec<(String, String)>, String> {
    let headers = pairs(text)?;
    let fits = |(name, value): &(String, String)| {
        HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok()
    };
    if headers.iter().all(fits) { Ok(headers) } else { Err("written name=value,name=value; one is no HTTP header".to_owned()) }
}

fn url(text: &str) -> Result<String, String> {
    const FORM: &str = "accepted: http://host:port/path or https://…";
    parse_url(text).map_err(|error| format!("{error}; {FORM}"))?;
    Ok(text.trim().to_owned())
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let number = text.parse::<u64>().ok().filter(|ms| *ms > 0).map(Duration::from_millis);
    number.ok_or_else(|| "a number of milliseconds from 1 on is accepted".to_owned())
}

/// `key=value,key=value`, values percent-encoded (W3C Baggage's octet encoding).
pub(crate) fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').ok_or("written key=value,key=value")?;
        let value = percent_decode_str(value.trim()).decode_utf8().map_err(|_| "a value is not percent-encoded UTF-8")?;
        Ok((key.trim().to_owned(), value.into_owned()))
    });
    pairs.collect()
}

/// The variables that are read without a flag must be UTF-8: others would silently count as not set.
///
/// # Errors
///
/// The first one that is not.
pub fn check_environment() -> Result<(), ConfigError> {
    let read_here = |name: &str| name.starts_with("OTEL_") || name == "RUST_LOG";
    for (name, value) in std::env::vars_os() {
        if let (Some(name), None) = (name.to_str().filter(|name| read_here(name)), value.to_str()) {
            return Err(ConfigError::value(name, &value.to_string_lossy(), "not UTF-8 text"));
        }
    }
    Ok(())
}
