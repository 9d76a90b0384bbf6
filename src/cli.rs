//! From the command line to an exit code: 0 fine, 1 a check failed or the server stopped on an error, 2 wrong usage.

use std::env::VarError;
use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::check::{CheckArgs, no_signals};
use crate::config::CommandFailure::{self, Stopped};
use crate::config::{
    ConfigError, DemoArgs, Environment, HealthArgs, ServeArgs, StoreArgs, Verbosity, process_variable, shown_value,
    warn_of_misspelt_variables,
};
use crate::demo::Demo;
use crate::demo::standalone::StoreServer;
use crate::doctor::DoctorArgs;
use crate::hop::app::{App, Output};
use crate::hop::config::HopConfig;
use crate::net::hosts::{is_loopback, redacted_input, redacted_url};
use crate::probe::ProbeArgs;
use crate::server::shutdown::{Signals, Stop};
use crate::system::{descriptors, workers};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "httpserver",
    version,
    about = "The traced demo microservice chain: one binary plays any hop",
    after_help = "Without a command, httpserver serves: `httpserver --addr :8080` is `httpserver serve --addr :8080`."
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
    /// Run the demo's trace store and its page alone; takes Zipkin v2 and OTLP
    Store(StoreArgs),
    /// Send requests through a deployed chain, verify what came back, report what is broken and why
    Check(Box<CheckArgs>),
    /// Read the traces of one request from a backend and report whether they are whole; the request is known by its reply
    Trace(Box<crate::check::TraceArgs>),
    /// Act as an app's caller and its next hop, and report what it does to trace headers
    Probe(Box<ProbeArgs>),
    /// Read a mesh's traces from its backend or from files, and say which service breaks them
    Doctor(DoctorArgs),
    /// Exit 0 if `GET /healthz` answers 200; for HEALTHCHECK in an image with no shell
    Health(HealthArgs),
    /// Print the completions for a shell: `source <(httpserver completions bash)`
    Completions {
        /// The shell that will read them
        shell: clap_complete::Shell,
    },
    /// Print the manual page of the program or of one command: `httpserver manpage check | man -l -`
    Manpage {
        /// The command [default: the program as a whole]
        command: Option<String>,
    },
}

/// What the command line may be: `parse` reads one without a command as `serve`.
fn command() -> clap::Command {
    Cli::command().subcommand_required(false)
}

/// Wrong usage or configuration.
const USAGE: u8 = 2;

/// The exit code of a command that came to its end, or why it did not.
type CommandEnd = Result<u8, CommandFailure>;

/// Runs the command that `args` name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed stdout or stderr changes nothing about the exit code.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let ended = match cli.command {
        Command::Completions { shell } => print(&completions(shell)),
        Command::Manpage { command } => manpage(command.as_deref()),
        command => on_runtime(command),
    };
    ExitCode::from(ended.unwrap_or_else(|failure| {
        eprintln!("httpserver: {failure}");
        failure.exit_code()
    }))
}

/// Runs a command that waits for something: with the threads that the variable asks for.
fn on_runtime(command: Command) -> CommandEnd {
    let variable = std::env::var(workers::VARIABLE);
    let workers = workers::count(variable.as_deref().ok())
        .map_err(|reason| ConfigError::value(workers::VARIABLE, &variable.unwrap_or_default(), reason))?;
    descriptors::require_some()
        .map_err(|error| Stopped(format!("too few files may be open, sockets included (ulimit -n): {error}")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let runtime = runtime.map_err(|error| Stopped(format!("no threads to run on: {error}")))?;
    let ended = match command {
        Command::Serve(args) => runtime.block_on(serve(*args)),
        Command::Demo(args) => runtime.block_on(demo(args)),
        Command::Store(args) => runtime.block_on(store(args)),
        Command::Check(args) => runtime.block_on(crate::check::run(*args)),
        Command::Trace(args) => runtime.block_on(crate::check::run_trace(*args)),
        Command::Probe(args) => runtime.block_on(crate::probe::run(*args)),
        Command::Doctor(args) => runtime.block_on(crate::doctor::run(args)),
        Command::Health(args) => runtime.block_on(health(args)),
        Command::Completions { .. } | Command::Manpage { .. } => Ok(0),
    };
    // What is left on the runtime (a request that was cut off, a name that is being resolved) must not delay the exit.
    runtime.shutdown_timeout(Duration::ZERO);
    ended
}

fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command(), "httpserver", &mut text);
    text
}

fn manpage(name: Option<&str>) -> CommandEnd {
    let mut program = self::command().disable_help_subcommand(true);
    program.build();
    let known: Vec<_> = program.get_subcommands().map(clap::Command::get_name).collect();
    let page = match name {
        None => program.clone(),
        Some(name) => match program.find_subcommand(name) {
            Some(command) => command.clone(),
            None => {
                let reason = format!("no command; accepted: {}", known.join(", "));
                return Err(ConfigError::value("COMMAND", name, reason).into());
            }
        },
    };
    let mut text = Vec::new();
    let made = clap_mangen::Man::new(page).render(&mut text);
    made.map_err(|error| Stopped(format!("the manual page cannot be made: {error}")))?;
    print(&text)
}

/// A reader that has seen enough, such as `head`, is no failure.
fn print(text: &[u8]) -> CommandEnd {
    match std::io::stdout().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Stopped(format!("cannot write to stdout: {error}"))),
        _ => Ok(0),
    }
}

/// Reads the command line. Without a command it is `serve`. An empty variable is not set, as OpenTelemetry has it: manifests
/// often leave one empty.
///
/// # Errors
///
/// clap's: wrong usage, or the text of `--help` and `--version`.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let first = args.get(1).and_then(|first| first.to_str());
    let for_all = matches!(first, Some("-h" | "--help" | "-V" | "--version"));
    if !for_all && first.is_none_or(|first| first.starts_with('-')) {
        args.insert(1, "serve".into());
    }
    let mut command = tidy_variables(self::command());
    let subcommand = args.get(1).and_then(|name| command.find_subcommand(name)).cloned();
    let parsed = match subcommand.as_ref().and_then(variable_without_text) {
        Some(reason) => Err(command.error(ErrorKind::InvalidUtf8, reason)),
        None => command.try_get_matches_from_mut(&args).and_then(|matches| Cli::from_arg_matches(&matches)),
    };
    parsed.map_err(|error| name_variable(escape_value(error), subcommand.as_ref()))
}

/// Hides the values of variables in the help text, and unsets the empty ones and those of OpenTelemetry: `config::otel` reads
/// them, because a value that is not accepted is no error there.
fn tidy_variables(command: clap::Command) -> clap::Command {
    let tidy = |arg: clap::Arg| {
        let is_otel = arg.get_env().is_some_and(|name| name.to_string_lossy().starts_with("OTEL_"));
        let unset = arg.get_env().and_then(std::env::var_os).is_some_and(|value| is_otel || value.is_empty());
        if unset { arg.env(None) } else { arg.hide_env_values(true) }
    };
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names.into_iter().fold(command.mut_args(tidy), |command, name| command.mut_subcommand(name, tidy_variables))
}

/// The first variable of a command whose value is not UTF-8; clap's own error does not name it.
fn variable_without_text(command: &clap::Command) -> Option<ConfigError> {
    command.get_arguments().filter_map(clap::Arg::get_env).find_map(|name| {
        let value = std::env::var_os(name).filter(|value| value.to_str().is_none())?;
        Some(ConfigError::value(&name.to_string_lossy(), &value.to_string_lossy(), "not UTF-8 text"))
    })
}

/// A value with control characters reaches the terminal escaped, and a URL without what may be a password.
fn escape_value(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) {
        let arg = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(arg)) => arg,
            _ => "",
        };
        let escaped = shown_value(arg, value).escape_debug().to_string();
        error.insert(ContextKind::InvalidValue, ContextValue::String(escaped));
    }
    error
}

/// Adds to an error of a flag which variable sets it: the value may have come from there, and clap names the flag alone.
fn name_variable(mut error: clap::Error, command: Option<&clap::Command>) -> clap::Error {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else { return error };
    let flag = shown.split([' ', '=']).next().unwrap_or_default();
    let arg = command.and_then(|command| {
        command.get_arguments().find(|arg| arg.get_long().is_some_and(|long| flag.strip_prefix("--") == Some(long)))
    });
    if let Some(variable) = arg.and_then(clap::Arg::get_env) {
        let tip = format!("the variable {} sets {flag}, too", variable.to_string_lossy());
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

async fn serve(args: ServeArgs) -> CommandEnd {
    let verbosity = args.verbosity;
    let output = Output::new();
    // Before the variables are read: those of OpenTelemetry that cannot be used are warned about.
    let warn = |text: &str| tracing::warn!("{text}");
    let env = Environment { variable: &|name| process_variable(name, &warn), warn: &warn };
    let config = diagnostics(verbosity, &output).and_then(|()| {
        warn_of_misspelt_variables(&warn);
        HopConfig::from_args(args, &env)
    });
    let ended = match config {
        Ok(config) => serve_until_signalled(config, &output).await,
        Err(error) => Err(error.into()),
    };
    output.stderr.flush(Duration::from_millis(500));
    ended
}

async fn serve_until_signalled(config: HopConfig, output: &Output) -> CommandEnd {
    // Before the address is bound: a signal in between must drain, not kill.
    let mut signals = Signals::listen().map_err(no_signals)?;
    let app = App::bind(config, output).await?;
    // A request that outlived the drain timeout is the caller's loss and in the log; the stop itself went as asked.
    Ok(u8::from(until_second_signal(&mut signals, |stop| app.run(stop)).await.is_none()))
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

/// Their output is drawings and addresses; diagnostics are for failures.
fn quietly(verbose: u8) -> Verbosity {
    match verbose {
        0 => Verbosity { quiet: 1, verbose: 0 },
        more => Verbosity { quiet: 0, verbose: more - 1 },
    }
}

async fn demo(args: DemoArgs) -> CommandEnd {
    let once = args.once;
    foreground(args.verbose, async |output, signals| {
        let demo = Demo::bind(args, output).await?;
        Ok(until_second_signal(signals, |stop| demo.run(stop)).await.map(|complete| complete || !once))
    })
    .await
}

async fn store(args: StoreArgs) -> CommandEnd {
    foreground(args.verbose, async |output, signals| {
        let store = StoreServer::bind(args, output).await?;
        Ok(until_second_signal(signals, |stop| store.run(stop)).await.map(|()| true))
    })
    .await
}

/// Runs `run` with what a command at a terminal needs, and makes an exit code of what came of it; `None` is a second signal.
async fn foreground(
    verbose: u8,
    run: impl AsyncFnOnce(&Output, &mut Signals) -> Result<Option<bool>, CommandFailure>,
) -> CommandEnd {
    let output = Output::new();
    diagnostics(quietly(verbose), &output)?;
    let mut signals = Signals::listen().map_err(no_signals)?;
    let ended = run(&output, &mut signals).await;
    output.stderr.flush(Duration::from_millis(500));
    Ok(u8::from(ended? != Some(true)))
}

const LEVELS: &str = "accepted: error, warn, info, debug, trace, or module=level";

/// Diagnostics go to stderr through the same bounded writer as everything else.
fn diagnostics(verbosity: Verbosity, output: &Output) -> Result<(), ConfigError> {
    let level = match (verbosity.verbose, verbosity.quiet) {
        (0, 0) => None,
        (1, _) => Some("info,httpserver=debug"),
        (0, 1) => Some("warn"),
        (0, _) => Some("error"),
        _ => Some("debug,httpserver=trace"),
    };
    let from_variable = match std::env::var("RUST_LOG") {
        Err(VarError::NotUnicode(value)) => {
            return Err(ConfigError::value("RUST_LOG", &value.to_string_lossy(), "not UTF-8 text"));
        }
        other => other.ok().filter(|text| !text.is_empty()),
    };
    let text = level.or(from_variable.as_deref()).unwrap_or("info");
    // Not `EnvFilter`: what it can do beyond this is to match fields of spans, and there are none. Its regular expressions
    // alone would be a quarter of a megabyte.
    let filter: Targets = text.parse().map_err(|error| {
        let reason = format!("{error}; {LEVELS}");
        ConfigError::value("RUST_LOG", text, reason)
    })?;
    let writer = output.stderr.clone();
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
    let (filter, handle) = reload::Layer::new(filter);
    output.log_level.changes_by(move |text, announce| {
        // A word that is no level would be a module, and everything else silent.
        let is_level = |one: &str| !one.is_empty() && one.parse::<LevelFilter>().is_ok();
        let is_directive = |one: &str| match one.split_once('=') {
            Some((module, level)) => !module.trim().is_empty() && is_level(level.trim()),
            None => is_level(one.trim()),
        };
        if !text.split(',').all(is_directive) {
            return Err(format!("'{text}' is no level; {LEVELS}"));
        }
        let filter: Targets = text.parse().map_err(|error| format!("'{text}': {error}; {LEVELS}"))?;
        // At the level before or at the one after, whichever shows it.
        let is_announced = announce();
        handle.reload(filter).map_err(|error| error.to_string())?;
        if !is_announced {
            announce();
        }
        Ok(())
    });
    let subscriber = tracing_subscriber::registry().with(lines).with(output.diagnostics.clone()).with(filter);
    // Another subscriber is only there in a test's process.
    let _ = subscriber.try_init();
    Ok(())
}

async fn health(args: HealthArgs) -> CommandEnd {
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
        crate::net::tls::unverified_client_config()
    } else {
        crate::net::tls::client_config()
    };
    let answer = match crate::net::client::builder(tls).timeout(Duration::from_secs(3)).build() {
        Ok(client) => client.get(&url).send().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) if answer.status() == http::StatusCode::OK => Ok(0),
        Ok(answer) => Err(Stopped(format!("{} answered {}", redacted_url(&url), answer.status()))),
        Err(error) if error.is_builder() => {
            let url = redacted_input(&url).escape_debug().to_string();
            Err(CommandFailure::Usage(format!("invalid value '{url}' for URL: accepted is http://host:port/path")))
        }
        Err(error) => Err(Stopped(format!("{}: {}", redacted_url(&url), crate::text::causes(&error.without_url())))),
    }
}
