//! `serve` with all telemetry off. It takes the same options; only the library can switch the access log off.

use httpserver::cli::{Cli, Command, parse};
use httpserver::config::Environment;
use httpserver::hop::app::{App, Output};
use httpserver::hop::config::HopConfig;

#[tokio::main]
async fn main() {
    let Ok(Cli { command: Command::Serve(args) }) = parse(std::env::args_os()) else { panic!("takes the options of serve") };
    let env = Environment { variable: &|name| std::env::var(name).ok(), warn: &|warning| eprintln!("{warning}") };
    let mut config = HopConfig::from_args(*args, &env).expect("options that fit");
    config.export.spans = Vec::new();
    config.access_log = None;
    let app = App::bind(config, &Output::new()).await.expect("the address is free");
    app.run(std::future::pending()).await;
}
