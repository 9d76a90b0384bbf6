//! `serve` with all telemetry off. It takes the same options; only the library can switch the access log off.

use httpserver::hop::app::{App, Output};
use httpserver::cli::{Cli, Command, parse};
use httpserver::hop::config::HopConfig;
use httpserver::telemetry::export::Exporter;

#[tokio::main]
async fn main() {
    let Ok(Cli { command: Command::Serve(args) }) = parse(std::env::args_os()) else { panic!("takes the options of serve") };
    let mut config = HopConfig::from_args(*args, &|name| std::env::var(name).ok()).expect("options that fit");
    config.export.spans = Vec::new();
    config.access_log = None;
    let app = App::bind(config, &Output::new()).await.expect("the address is free");
    app.run(std::future::pending()).await;
}
