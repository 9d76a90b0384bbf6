//! `httpserver store`: the demo's store and its page, without the chain.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::config::{CommandFailure, StoreArgs};
use crate::demo::access::Access;
use crate::demo::control::state::{DemoState, Links};
use crate::demo::control::until;
use crate::demo::store::{Store, forward};
use crate::demo::{page, taken};
use crate::hop::app::{Output, listen};
use crate::net::addresses::reachable;
use crate::server::shutdown::Stop;
use crate::server::{self, ServerConfig};
use crate::values::Listen;

/// How long requests may take to end.
const DRAIN: Duration = Duration::from_secs(1);

/// A store: its addresses taken, nothing served yet.
#[derive(Debug)]
pub struct StoreServer {
    state: Arc<DemoState>,
    access: Access,
    listener: TcpListener,
    otlp: TcpListener,
    otlp_addr: SocketAddr,
    grpc: TcpListener,
    grpc_addr: SocketAddr,
    output: Output,
    quiet: bool,
}

impl StoreServer {
    /// Takes the addresses.
    ///
    /// # Errors
    ///
    /// One of them cannot be had.
    pub async fn bind(args: StoreArgs, output: &Output) -> Result<Self, CommandFailure> {
        let at = |port: u16| Listen { host: Some(args.listen), port };
        let otherwise = "--port 0, --otlp-port 0 and --otlp-grpc-port 0 take free ones";
        let listener = listen(at(args.port)).await.map_err(|error| taken(&error, otherwise))?;
        let otlp = listen(at(args.otlp_port)).await.map_err(|error| taken(&error, otherwise))?;
        let grpc = listen(at(args.otlp_grpc_port)).await.map_err(|error| taken(&error, otherwise))?;
        let addr = |listener: &TcpListener| listener.local_addr().map_err(|error| CommandFailure::Stopped(error.to_string()));
        let links = Links::from(&args.page);
        let state =
            DemoState::new(Vec::new(), None, Store::new(), links, watch::Sender::new(())).map_err(CommandFailure::Stopped)?;
        Ok(Self {
            state: Arc::new(state),
            access: Access::new(addr(&listener)?, args.page.allow_host, false).map_err(CommandFailure::Stopped)?,
            otlp_addr: reachable(addr(&otlp)?),
            grpc_addr: reachable(addr(&grpc)?),
            grpc,
            listener,
            otlp,
            output: output.clone(),
            quiet: args.quiet,
        })
    }

    /// Serves until `shutdown` resolves.
    pub async fn run(self, shutdown: impl Future<Output = Stop>) {
        let (stop, stopped) = watch::channel(false);
        if !self.quiet {
            let text = self.introduction();
            self.output.stdout.line(|out| out.extend_from_slice(text.as_bytes()));
        }
        let Self { state, access, listener, otlp, grpc, output, .. } = self;
        if let Some(zipkin) = state.links.zipkin.clone() {
            tokio::spawn(forward::forward(state.store.clone(), zipkin, stopped.clone()));
        }
        let ingestion = access.guard(state.store.otlp_router());
        let router = state.store.router().merge(page::router(state, access.clone(), stopped.clone()));
        let serving =
            [(listener, access.guard(router)), (otlp, ingestion.clone()), (grpc, ingestion)].map(|(listener, router)| {
                tokio::spawn(server::serve(ServerConfig::plain(listener), router, until(stopped.clone()), DRAIN))
            });
        shutdown.await;
        let _ = stop.send(true);
        for serving in serving {
            let _ = serving.await;
        }
        let _ = tokio::task::spawn_blocking(move || output.stdout.flush(DRAIN)).await;
    }

    /// Where spans are sent to and where they are seen.
    fn introduction(&self) -> String {
        let (store, otlp) = (self.access.addr(), self.otlp_addr);
        let mut text = String::new();
        let _ = writeln!(text, "  {:<10} http://{store}/api/v2/spans  (Zipkin v2 JSON; OTLP, too)", "traces");
        let _ = writeln!(text, "  {:<10} http://{otlp}/v1/traces  (OTLP over HTTP: protobuf and JSON)", "otlp");
        let _ = writeln!(text, "  {:<10} http://{}  (OTLP over gRPC; each port takes both)", "grpc", self.grpc_addr);
        let _ = writeln!(text, "  {:<10} {}  (open it in a browser and watch)", "page", self.access.url());
        let _ = writeln!(
            text,
            "\nReport to it:\n\n  OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf OTEL_EXPORTER_OTLP_ENDPOINT=http://{otlp} your-app\n  \
             OTEL_EXPORTER_OTLP_PROTOCOL=grpc OTEL_EXPORTER_OTLP_ENDPOINT=http://{} your-app\n",
            self.grpc_addr
        );
        text
    }
}
