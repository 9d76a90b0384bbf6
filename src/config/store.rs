//! The options of `store`.

use std::net::IpAddr;

use clap::Args;

use crate::config::page::PageArgs;

/// The options of `store`.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub listen: IpAddr,
    /// The port of the page, of queries, and of spans in Zipkin's format and in OTLP, over HTTP and gRPC; 0 takes a free one
    #[arg(long, default_value = "9411", value_parser = crate::values::whole::<u16>(0..=65_535))]
    pub port: u16,
    /// The usual port of OTLP over HTTP, where spans are taken, too; 0 takes a free one
    #[arg(long, default_value = "4318", value_name = "PORT", value_parser = crate::values::whole::<u16>(0..=65_535))]
    pub otlp_port: u16,
    /// The usual port of OTLP over gRPC, where spans are taken, too; 0 takes a free one
    #[arg(long, default_value = "4317", value_name = "PORT", value_parser = crate::values::whole::<u16>(0..=65_535))]
    pub otlp_grpc_port: u16,
    /// The trace store's page
    #[command(flatten)]
    pub page: PageArgs,
    /// Print nothing
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More diagnostics
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}
