//! The table of the x-ray: a line per hop.

use crate::check::chain::evidence::{CALLER, RequestId, Xray};
use crate::check::chain::probe::Probe;
use crate::trace_context::{Context, HeaderFamily};

/// The table of the x-ray, 75 columns wide at most.
pub(crate) fn table(probe: &Probe, xray: &Xray) -> Vec<String> {
    let cell = |context: Option<Context>| {
        context.map_or_else(|| "-".to_owned(), |c| format!("{:.8}/{:.8}", c.trace_id.to_string(), c.span_id.to_string()))
    };
    let name = |depth: usize, name: &str| {
        // A deep hop is indented less rather than cut.
        const WIDTH: usize = 12;
        let room = WIDTH.saturating_sub(name.chars().count());
        let text = format!("{}{name}", " ".repeat((2 * depth).min(8).min(room)));
        if text.chars().count() > WIDTH { text.chars().take(WIDTH - 1).chain(['…']).collect() } else { text }
    };
    let line = |a: &str, over: &str, b: &str, c: &str, d: &str, e: &str| {
        format!("{a:<12} {over:<5} {b:<17} {c:<17} {d:<11} {e}").trim_end().to_owned()
    };
    let mut lines = vec![
        line("hop", "over", "W3C trace/span", "B3 trace/span", "request id", "proxy"),
        line(CALLER, "", &cell(HeaderFamily::W3c.read(&probe.headers)), &cell(HeaderFamily::B3.read(&probe.headers)), "sent", ""),
    ];
    for row in &xray.rows {
        let id = match row.request_id {
            RequestId::Kept => "kept",
            RequestId::Replaced => "replaced",
            RequestId::Regenerated => "regenerated",
            RequestId::Missing => "missing",
        };
        let proxy = match (row.proxy.w3c, row.proxy.b3, row.proxy.is_seen()) {
            (true, true, _) => "both",
            (true, false, _) => "W3C",
            (false, true, _) => "B3",
            (false, false, true) => "untraced",
            (false, false, false) => "none",
        };
        if let Some(via) = &row.via {
            lines.push(line(&name(row.depth.saturating_sub(1), &via.name), "", "not a hop", "", "", ""));
        }
        let over = match row.protocol.as_deref() {
            Some("http/1.1") => "http1",
            Some("http/2") => "http2",
            Some("grpc") => "grpc",
            _ => "",
        };
        lines.push(line(&name(row.depth, &row.hop.name), over, &cell(row.w3c), &cell(row.b3), id, proxy));
    }
    lines
}
