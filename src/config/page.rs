//! The options of the page that `demo` and `store` share.

use clap::Args;

use crate::net::hosts::parse_url;

/// Who may see the page, and what it links to.
#[derive(Debug, Clone, Args)]
pub struct PageArgs {
    /// A name under which the page and its queries are answered, too, repeatable: `store`
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    pub allow_host: Vec<String>,
    /// A Zipkin that the page links to; every trace is passed on to it: `http://localhost:9412`
    #[arg(long, value_name = "URL", value_parser = base_url)]
    pub zipkin: Option<String>,
    /// A Jaeger that the page links to: `http://localhost:16686`
    #[arg(long, value_name = "URL", value_parser = base_url)]
    pub jaeger: Option<String>,
}

/// Where a web page lives, without the slash at its end.
fn base_url(text: &str) -> Result<String, String> {
    const FORM: &str = "written http://host:port";
    if parse_url(text).map_err(|error| format!("{error}; {FORM}"))?.query().is_some() {
        return Err(FORM.to_owned());
    }
    Ok(text.trim().trim_end_matches('/').to_owned())
}

/// A host as it stands in a `Host` header: a name or an address, without a port.
fn host_name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let bracketed = if name.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{name}]") } else { name.to_owned() };
    match bracketed.parse::<http::uri::Authority>() {
        Ok(host) if host.host() == bracketed => Ok(bracketed),
        _ => Err("written as a host without scheme and port: `store`, `traces.example.com`".to_owned()),
    }
}
