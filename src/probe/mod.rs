//! `httpserver probe APP_URL --downstream ADDRESS`: one app from both sides. It is the app's caller and its next hop, and reports what
//! the app does to trace headers.
//!
//! ```text
//!  caller ─► the app ─► listener
//!     └── experiments: what is sent ──► header_outcome: what arrived ──► findings ──► report
//! ```

mod caller;
mod crosstalk;
mod experiments;
mod failures;
mod findings;
mod header_outcome;
mod listener;
mod sent;
mod session;

use std::net::SocketAddr;
use std::path::PathBuf;

use http::{Method, StatusCode};
use reqwest::Url;

use crate::check::{ClientArgs, no_signals};
use crate::config::CommandFailure;
use crate::net::hosts::{http_url, redacted_url};
use crate::report::{CheckId, Group, OutputFormat, Report};
use crate::server::shutdown::Signals;
use crate::text::quoted;
use crate::text::terminal::has_color;
use caller::AppClient;
use listener::Downstream;
use session::Expected;

/// Options of `httpserver probe`.
#[derive(Debug, Clone, clap::Args)]
pub struct ProbeArgs {
    /// The app's URL that makes it call its next hop; `{nonce}` in it is replaced by another text for each request
    #[arg(value_parser = http_url)]
    pub app_url: Url,
    /// Listen here for the app's calls, over HTTP and gRPC: point its next-hop setting at this address (repeatable)
    #[arg(long, value_name = "ADDRESS", required = true, value_parser = address)]
    pub downstream: Vec<ListenAddress>,
    /// Answer the app's calls with this file instead of `{}`, over gRPC as the message instead of an empty one
    #[arg(long, value_name = "FILE")]
    pub downstream_reply: Option<PathBuf>,
    /// The status of these answers
    #[arg(long, value_name = "STATUS", default_value = "200", value_parser = status)]
    pub downstream_status: StatusCode,
    /// Answer by TLS with the certificates in this PEM file
    #[arg(long, value_name = "FILE", requires = "downstream_tls_key")]
    pub downstream_tls_cert: Option<PathBuf>,
    /// The private key of `--downstream-tls-cert`
    #[arg(long, value_name = "FILE", requires = "downstream_tls_cert")]
    pub downstream_tls_key: Option<PathBuf>,
    /// Requests of the test for cross-talk, beside the 65 or so before it, more where some fail; needed with a method other than
    /// GET, which may change something each time [default: 200]
    #[arg(long, value_name = "N", value_parser = crate::values::whole::<u32>(0..=100_000))]
    pub count: Option<u32>,
    /// How many of them at a time
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = crate::values::whole::<u32>(1..=1_000))]
    pub concurrency: u32,
    /// The method
    #[arg(short = 'X', long, default_value = "GET")]
    pub method: Method,
    /// The body of each request; `{nonce}` in it is replaced
    #[arg(long, value_name = "TEXT")]
    pub body: Option<String>,
    /// How the app is called.
    #[command(flatten)]
    pub client: ClientArgs,
    /// What has to pass: some of w3c, b3, b3-single, x-request-id, baggage, tracestate or a carried header's name [default: one
    /// format of trace context, whichever]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub expect: Vec<Expected>,
    /// Report this check but do not let it fail the run (repeatable)
    #[arg(long, value_name = "CHECK")]
    pub skip: Vec<String>,
    /// The form of the report on standard output
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

impl ProbeArgs {
    /// The command of another run like this one, at this URL. What may be secret is for the reader to fill in, in capitals.
    fn again(&self, url: &Url, more: &str) -> String {
        let mut words = vec!["httpserver probe".to_owned(), quoted(&without_secrets(url))];
        let mut put = |name: &str, value: &str| words.push(format!("--{name} {}", quoted(value)));
        self.downstream.iter().for_each(|address| put("downstream", &address.address.to_string()));
        let files = [
            ("downstream-reply", &self.downstream_reply),
            ("downstream-tls-cert", &self.downstream_tls_cert),
            ("downstream-tls-key", &self.downstream_tls_key),
            ("cacert", &self.client.cacert),
        ];
        for (name, file) in files {
            file.iter().for_each(|file| put(name, &file.display().to_string()));
        }
        if self.downstream_status != StatusCode::OK {
            put("downstream-status", self.downstream_status.as_str());
        }
        if self.method != Method::GET {
            put("method", self.method.as_str());
        }
        self.count.iter().for_each(|count| put("count", &count.to_string()));
        self.body.iter().for_each(|body| put("body", body));
        self.client.headers.iter().for_each(|(name, _)| put("header", &format!("{name}: VALUE")));
        if !self.expect.is_empty() {
            put("expect", &self.expect.iter().map(|name| name.0.as_str()).collect::<Vec<_>>().join(","));
        }
        let insecure = if self.client.insecure { " --insecure" } else { "" };
        format!("{}{insecure}{more}", words.join(" "))
    }
}

/// The URL with `VALUE` for each value of its query but a nonce, and with `USER:PASSWORD` for those.
fn without_secrets(url: &Url) -> String {
    let mut shown = redacted_url(url.as_str()).replace("%7Bnonce%7D", "{nonce}");
    if !url.username().is_empty() || url.password().is_some() {
        shown = shown.replacen("://", "://USER:PASSWORD@", 1);
    }
    let pair = |pair: &str| match pair.split_once('=') {
        Some((name, "{nonce}" | "%7Bnonce%7D")) => format!("{name}={{nonce}}"),
        Some((name, _)) => format!("{name}=VALUE"),
        None => "VALUE".to_owned(),
    };
    let query = url.query().map(|query| query.split('&').map(pair).collect::<Vec<_>>().join("&"));
    query.map_or(shown.clone(), |query| format!("{shown}?{query}"))
}

/// Where the app's calls are awaited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress {
    address: SocketAddr,
    /// It was written with the scheme of TLS.
    is_tls: bool,
}

fn address(text: &str) -> Result<ListenAddress, String> {
    let schemes = [("http://", false), ("h2c://", false), ("grpc://", false), ("https://", true), ("grpcs://", true)];
    let (text, is_tls) =
        schemes.into_iter().find_map(|(scheme, is_tls)| Some((text.strip_prefix(scheme)?, is_tls))).unwrap_or((text, false));
    let with_host = if text.starts_with(':') { format!("127.0.0.1{text}") } else { text.replace("localhost:", "127.0.0.1:") };
    let address = with_host.parse();
    let address = address.map_err(|_| "accepted: an address to listen on, like `127.0.0.1:9001` or `0.0.0.0:9001`".to_owned())?;
    Ok(ListenAddress { address, is_tls })
}

fn status(text: &str) -> Result<StatusCode, String> {
    let status = text.parse::<u16>().ok().filter(|status| (200..=599).contains(status));
    status.and_then(|status| StatusCode::from_u16(status).ok()).ok_or_else(|| "accepted: a status from 200 to 599".to_owned())
}

/// Runs the experiments and writes the report to standard output. Returns the exit code: 0 the app passes, 1 it does not or the run
/// was interrupted.
///
/// # Errors
///
/// Wrong usage, or an address that cannot be had: nothing was sent.
pub async fn run(args: ProbeArgs) -> Result<u8, CommandFailure> {
    let (caller, downstream) = prepare(&args).await?;
    let mut signals = Signals::listen().map_err(no_signals)?;
    let color = has_color();
    let out = Box::new(std::io::stdout());
    let mut report = Report::of_command("probe", redacted_url(args.app_url.as_str()), args.output, args.skip.clone(), color, out);
    let interrupted = tokio::select! {
        () = experiments::run(&args, &caller, &downstream, &mut report) => false,
        _ = signals.next() => true,
    };
    if interrupted {
        report.interrupt(None, Vec::new());
    }
    downstream.stop().await;
    report.finish();
    Ok(u8::from(!report.is_fine()))
}

/// The address of these to which the app's URL leads.
async fn own_listener(url: &Url, listening: &[SocketAddr]) -> Option<SocketAddr> {
    let (host, port) = (url.host_str()?.trim_matches(['[', ']']), url.port_or_known_default()?);
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.ok()?.collect();
    for own in listening.iter().filter(|own| own.port() == port) {
        for ip in addresses.iter().map(SocketAddr::ip) {
            // All addresses of this machine are those that can be had here.
            let is_here = own.ip() == ip || ip.is_unspecified();
            if is_here || (own.ip().is_unspecified() && tokio::net::UdpSocket::bind((ip, 0)).await.is_ok()) {
                return Some(*own);
            }
        }
    }
    None
}

/// Reads what the options name and takes the addresses.
async fn prepare(args: &ProbeArgs) -> Result<(AppClient, Downstream), CommandFailure> {
    let usage = CommandFailure::Usage;
    if args.method != Method::GET && args.count.is_none() {
        let why = "each request may change something, and about 65 are sent beside those of --count, more where some fail";
        return Err(usage(format!(
            "--method {}: {why}; accepted: this method with --count N, 0 for no test for cross-talk",
            args.method
        )));
    }
    let checks: Vec<&str> = CheckId::ALL.iter().filter(|id| id.group() == Group::Probe).map(|id| id.name()).collect();
    if let Some(unknown) = args.skip.iter().find(|skip| !checks.contains(&skip.as_str())) {
        return Err(usage(format!("--skip {unknown}: no such check; accepted: {}", checks.join(", "))));
    }
    if let Some(ListenAddress { address, .. }) =
        args.downstream.iter().find(|one| one.is_tls && args.downstream_tls_cert.is_none())
    {
        let why = "TLS needs a certificate; accepted: with --downstream-tls-cert and --downstream-tls-key";
        return Err(usage(format!("--downstream https:// or grpcs://{address}: {why}, or http://, h2c:// and grpc://")));
    }
    let trust = args.client.trust().map_err(usage)?;
    let downstream = Downstream::bind(args).await?;
    if let Some(address) = own_listener(&args.app_url, &downstream.addresses).await {
        let why = "this is the address of --downstream, where probe itself listens, and not the app";
        return Err(usage(format!(
            "{}: {why}; accepted: the app's URL, and {address} as its next hop",
            without_secrets(&args.app_url)
        )));
    }
    let caller = AppClient::new(args, &trust).map_err(usage)?;
    Ok((caller, downstream))
}
