//! From the command line to an exit code: 0 fine, 1 a check failed or the server stopped on an error, 2 wrong usage.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Command, DemoArgs, HealthArgs, ServeArgs, Usage, Verbosity, check_environment, parse};
use crate::demo::{Demo, Unbound};
use crate::hop::app::{App, Output};
use crate::hop::config::HopConfig;
use crate::net::hosts::is_loopback;
use crate::server::shutdown::{Signals, Stop};

/// Wrong usage or configuration.
const USAGE: u8 = 2;

/// Runs the command that `args` name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(Usage::Asked(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(Usage::Wrong(line)) => return wrong(&line),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("httpserver: no threads to run on: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match cli.command {
        Command::Serve(args) => runtime.block_on(serve(*args)),
        Command::Demo(args) => runtime.block_on(demo(args)),
        Command::Check(args) => ExitCode::from(runtime.block_on(crate::check::run(*args))),
        Command::Health(args) => runtime.block_on(health(args)),
    };
    // What is left on the runtime (a request cut off, a name being looked up) must not hold the exit.
    runtime.shutdown_timeout(Duration::ZERO);
    code
}

fn wrong(line: &str) -> ExitCode {
    eprintln!("httpserver: {line}");
    ExitCode::from(USAGE)
}

async fn serve(args: ServeArgs) -> ExitCode {
    let verbosity = args.verbosity;
    if let Err(line) = check_environment() {
        return wrong(&line);
    }
    let config = match HopConfig::from_args(args, &|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(line) => return wrong(&line),
    };
    let output = Output::new();
    if let Err(line) = diagnostics(verbosity, &output) {
        return wrong(&line);
    }
    let flush = output.stderr.clone();
    let code = serve_until_signalled(config, &output).await;
    flush.flush(Duration::from_millis(500));
    code
}

async fn serve_until_signalled(config: HopConfig, output: &Output) -> ExitCode {
    // Before the address is taken: a signal in between must drain, not kill.
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return stopped(&format!("cannot listen to signals: {error}")),
    };
    match App::bind(config, output).await {
        Ok(app) => match until_second_signal(&mut signals, |stop| app.run(stop)).await {
            // A request that outlived the drain timeout is the caller's loss and in the log; the stop itself went as asked.
            Some(_) => ExitCode::SUCCESS,
            None => ExitCode::FAILURE,
        },
        Err(error) => stopped(&error.to_string()),
    }
}

/// Runs until it ends by itself or by the first signal; a second signal ends it at once.
async fn until_second_signal<R: Future>(signals: &mut Signals, run: impl FnOnce(BoxedStop) -> R) -> Option<R::Output> {
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let run = run(Box::pin(async move { stopped.await.unwrap_or(Stop::Now) }));
    let second = async {
        let _ = stop.send(signals.next().await);
        signals.next().await;
    };
    tokio::select! {
        ended = run => Some(ended),
        () = second => {
            tracing::warn!("second signal: stopped at once");
            None
        }
    }
}

type BoxedStop = std::pin::Pin<Box<dyn Future<Output = Stop> + Send>>;

async fn demo(args: DemoArgs) -> ExitCode {
    let output = Output::new();
    // The demo's own pictures are what a person looks at; diagnostics are for when something is wrong.
    let verbosity = match args.verbose {
        0 => Verbosity { quiet: 1, verbose: 0 },
        more => Verbosity { quiet: 0, verbose: more - 1 },
    };
    if let Err(line) = diagnostics(verbosity, &output) {
        return wrong(&line);
    }
    let once = args.once;
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return stopped(&format!("cannot listen to signals: {error}")),
    };
    let code = match Demo::bind(args, &output).await {
        Ok(demo) => match until_second_signal(&mut signals, |stop| demo.run(stop)).await {
            Some(complete) if complete || !once => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        },
        Err(Unbound::Usage(line)) => return wrong(&line),
        Err(Unbound::Address(line)) => return stopped(&line),
    };
    output.stderr.flush(Duration::from_millis(500));
    code
}

fn stopped(line: &str) -> ExitCode {
    eprintln!("httpserver: {line}");
    ExitCode::FAILURE
}

/// Diagnostics go to stderr through the same bounded writer as everything else. Errors: a `RUST_LOG` that cannot be read.
fn diagnostics(verbosity: Verbosity, output: &Output) -> Result<(), String> {
    let level = match (verbosity.verbose, verbosity.quiet) {
        (0, 0) => None,
        (1, _) => Some("info,httpserver=debug"),
        (0, 1) => Some("warn"),
        (0, _) => Some("error"),
        _ => Some("debug,httpserver=trace"),
    };
    let from_variable = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let text = level.or(from_variable.as_deref()).unwrap_or("info");
    // Not `EnvFilter`: what it can do beyond this is to match fields of spans, and there are none. Its regular expressions
    // alone would be a quarter of a megabyte.
    let filter: Targets = text.parse().map_err(|error| {
        format!(
            "invalid value '{}' for RUST_LOG: {error}; accepted: error, warn, info, debug, trace, or module=level",
            text.escape_debug()
        )
    })?;
    let writer = output.stderr.clone();
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
    let subscriber = tracing_subscriber::registry().with(lines).with(filter);
    // Another subscriber is only there in a test's process.
    let _ = subscriber.try_init();
    Ok(())
}

async fn health(args: HealthArgs) -> ExitCode {
    let url = args.url.unwrap_or_else(|| {
        let host = match args.addr.host {
            Some(host) if !host.is_unspecified() => host,
            Some(host) if host.is_ipv6() => std::net::Ipv6Addr::LOCALHOST.into(),
            _ => std::net::Ipv4Addr::LOCALHOST.into(),
        };
        let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/healthz", std::net::SocketAddr::new(host, args.addr.port))
    });
    // On loopback it is this very hop, and its certificate names the service, not 127.0.0.1.
    let uri = url.parse::<http::Uri>().unwrap_or_default();
    let tls = if is_loopback(uri.host().unwrap_or_default()) {
        crate::server::tls::unverified_client_config()
    } else {
        crate::server::tls::client_config()
    };
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_backend_preconfigured(tls)
        .timeout(Duration::from_secs(3))
        .build();
    let answer = match client {
        Ok(client) => client.get(&url).send().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) if answer.status() == http::StatusCode::OK => ExitCode::SUCCESS,
        Ok(answer) => stopped(&format!("{url} answered {}", answer.status())),
        Err(error) if error.is_builder() => {
            wrong(&format!("invalid value '{}' for URL: accepted is http://host:port/path", url.escape_debug()))
        }
        Err(error) => stopped(&format!("{url}: {}", crate::text::causes(&error))),
    }
}
