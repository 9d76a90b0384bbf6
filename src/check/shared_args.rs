//! Options that several commands have, each declared once.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use reqwest::Url;

use crate::check::backend::SecretHeader;
use crate::net::hosts::http_url;
use crate::net::trust::Trust;
use crate::values;

/// How an app is called.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientArgs {
    /// Send this header with every request (repeatable)
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = values::header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Trust the certificates in this PEM file, too
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Do not verify the certificate; `check` still reports problems
    #[arg(short = 'k', long)]
    pub insecure: bool,
    /// How long one request may take
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = values::positive_duration)]
    pub timeout: Duration,
}

impl ClientArgs {
    /// Reads the file of `--cacert`.
    ///
    /// # Errors
    ///
    /// One line that names the flag, the file and what is accepted.
    pub(crate) fn trust(&self) -> Result<Trust, String> {
        Trust::new(self.cacert.as_deref(), self.insecure).map_err(|why| {
            let path = self.cacert.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
            format!("--cacert {path}: {why}; accepted: a PEM file with at least one certificate")
        })
    }
}

/// Where traces are read.
#[derive(Debug, Clone, clap::Args)]
pub struct BackendArgs {
    /// Read traces from this Jaeger query API or Zipkin v2 API
    #[arg(long, value_name = "URL", value_parser = http_url)]
    pub traces: Option<Url>,
    /// Send this header to the trace backend, for example a token; it is never shown (repeatable)
    #[arg(long, value_name = "NAME: VALUE", requires = "traces")]
    pub traces_header: Vec<SecretHeader>,
    /// How long the trace backend may take for an answer, and a trace that is awaited to arrive whole
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::positive_duration)]
    pub traces_wait: Duration,
}

/// The form of a result on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TextOrJson {
    /// For people.
    Text,
    /// One object.
    Json,
}
