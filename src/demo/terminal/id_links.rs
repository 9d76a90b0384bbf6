//! How the hops are tied together: the ids of every span, and for every call the headers in which they travelled.

use std::collections::{HashMap, HashSet};

use crate::demo::terminal::canvas::*;
use crate::hop::reply::{Headers, Tree};
use crate::trace_context::HeaderFamily;
use crate::traces::ids::{parse_span_id, zipkin_id};
use crate::traces::{Kind, PlacedSpan, SpanId, Trace};

/// Calls explained; more are counted.
const MAX_CALLS: usize = 16;

/// The headers that hold ids, in the order in which they are shown.
const ID_HEADERS: [&str; 7] =
    ["traceparent", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"];

/// The headers that the hops say they sent, by the client span whose id they carry.
pub type SentHeaders = HashMap<SpanId, Vec<(String, String)>>;

/// Reads from a reply what the hops sent, so that [`render_id_links`] shows the very headers that tied a client span to its server
/// span.
pub fn sent_headers(trace: &Trace, reply: &Tree) -> SentHeaders {
    let clients: HashSet<SpanId> =
        trace.rows().iter().filter(|row| row.span.kind == Some(Kind::Client)).map(|row| row.span.id).collect();
    let mut sent = HashMap::new();
    for call in reply.hops("").flat_map(|(hop, _)| &hop.upstreams) {
        let headers: Vec<(String, String)> = ID_HEADERS
            .iter()
            .flat_map(|name| call.sent.get(name).iter().map(move |value| ((*name).to_owned(), value.clone())))
            .collect();
        let read = HeaderFamily::ALL.into_iter().filter_map(|family| Some(family.read(&call.sent)?.span_id));
        // A hop that loses the trace id on purpose may still send its span's.
        let alone = call.sent.get("x-b3-spanid").iter().filter_map(|id| parse_span_id(id).ok());
        if let Some(sender) = read.chain(alone).find(|id| clients.contains(id)) {
            sent.insert(sender, headers);
        }
    }
    sent
}

/// Whether a call says that the trace is not sampled.
fn says_unsampled(headers: &[(String, String)]) -> bool {
    let headers = Headers(headers.iter().map(|(name, value)| (name.clone(), vec![value.clone()])).collect());
    HeaderFamily::read_all(&headers).iter().any(|(_, context)| context.sampling.decision() == Some(false))
}

/// How the hops are tied together: the ids of every span, and for every call the headers in which they travelled. Ends with
/// a newline.
pub fn render_id_links(trace: &Trace, sent: &SentHeaders, style: &Style) -> String {
    let style = style.usable();
    let mut canvas = Canvas::new(&style);
    let colours = service_colours(trace.services());
    ids(&mut canvas, trace, &|row| colour_of(row, &colours));
    calls(&mut canvas, trace, sent, &|row| colour_of(row, &colours));
    canvas.out
}

fn ids(canvas: &mut Canvas<'_>, trace: &Trace, colour: &dyn Fn(&PlacedSpan) -> &'static str) {
    let style = canvas.style;
    canvas.one(BOLD, "How the hops are tied together");
    canvas.blank();
    let mut line = canvas.line();
    line.put(DIM, "  trace id  ").put(BOLD, &trace.id().to_string());
    canvas.end(line);
    canvas.paragraph(
        "            ",
        "            ",
        &format!(
            "the same in {}: that is what makes them one trace",
            if trace.rows().len() == 1 { "every span".into() } else { format!("all {} spans", trace.rows().len()) }
        ),
    );
    canvas.blank();
    let mut line = canvas.line();
    let arrow = style.pick(" ← ", " <- ");
    let parent_at = 2 + 16 + display_width(arrow);
    let label_at = parent_at + 16 + 2;
    line.put(DIM, "  span id").pad_to(parent_at).put(DIM, "parent id").pad_to(label_at).put(DIM, "reported by");
    canvas.end(line);
    let shown = &trace.rows()[..trace.rows().len().min(MAX_ROWS)];
    let widest = if style.width < 80 { 10 } else { 24 };
    let services = shown.iter().map(|row| display_width(&service_of(row, widest, style.unicode))).max().unwrap_or(0);
    for row in shown {
        let mut line = canvas.line();
        line.put(PLAIN, "  ").put(colour(row), &row.span.id.to_string());
        let parent = row.parent.map(|at| &trace.rows()[at]);
        match (parent, row.missing_parent) {
            // One id for both halves of a call: the parent's row has the same id, and what stands above both is named.
            (Some(parent), _) if parent.span.id == row.span.id => {
                line.put(DIM, arrow).put(DIM, "shares its id");
            }
            (Some(parent), _) => {
                line.put(DIM, arrow).put(colour(parent), &parent.span.id.to_string());
            }
            (None, Some(missing)) => {
                line.put(DIM, arrow).put(WARN, &missing.to_string());
            }
            (None, None) => {
                line.pad_to(parent_at).put(DIM, "none, the root");
            }
        }
        line.pad_to(label_at).put(colour(row), &service_of(row, widest, style.unicode)).pad_to(label_at + services + 1);
        line.put(DIM, row.span.kind.map_or("local", Kind::as_str)).put(PLAIN, " ");
        let room = style.width.saturating_sub(line.width);
        line.put(PLAIN, &clean(row.span.name.as_deref().unwrap_or_default(), room, style.unicode));
        canvas.end(line);
    }
}

fn calls(canvas: &mut Canvas<'_>, trace: &Trace, sent: &SentHeaders, colour: &dyn Fn(&PlacedSpan) -> &'static str) {
    let style = canvas.style;
    let mut answered: HashMap<usize, Vec<usize>> = HashMap::new();
    for (at, row) in trace.rows().iter().enumerate() {
        if let (Some(Kind::Server), Some(parent)) = (row.span.kind, row.parent)
            && trace.rows()[parent].span.kind == Some(Kind::Client)
        {
            answered.entry(parent).or_default().push(at);
        }
    }
    let clients = trace.rows().iter().enumerate().filter(|(_, row)| row.span.kind == Some(Kind::Client));
    let total = clients.clone().count();
    for (at, client) in clients.take(MAX_CALLS) {
        let servers: Vec<&PlacedSpan> =
            answered.get(&at).into_iter().flatten().take(MAX_CALLS).map(|at| &trace.rows()[*at]).collect();
        let widest = style.width / 2 - 4;
        let from = service_of(client, widest, style.unicode);
        canvas.blank();
        let mut line = canvas.line();
        line.put(PLAIN, "  ").put(colour(client), &from).put(DIM, style.pick(" → ", " -> "));
        match servers.first() {
            Some(server) => line.put(colour(server), &service_of(server, widest, style.unicode)),
            None => line.put(WARN, "no server span"),
        };
        canvas.end(line);
        match sent.get(&client.span.id) {
            Some(headers) => {
                canvas.one(DIM, "    sent in the headers of the call:");
                for (name, value) in headers {
                    header(canvas, trace, name, value, client, colour(client));
                }
            }
            None => {
                canvas.paragraph("    ", "    ", "the span id travels with the call in one of these headers, or in both:");
                let id = client.span.id.to_string();
                header(canvas, trace, "traceparent", &format!("00-{}-{id}-01", trace.id()), client, colour(client));
                header(canvas, trace, "x-b3-spanid", &id, client, colour(client));
            }
        }
        let id = client.span.id;
        if servers.is_empty() {
            let is_unsampled = sent.get(&client.span.id).is_some_and(|headers| says_unsampled(headers));
            let why = if is_unsampled {
                "the call says \"not sampled\", so the other side reports nothing"
            } else {
                "the other side was not reached, does not report, or its spans are still on the way"
            };
            canvas.paragraph("    ", "    ", &format!("no server span names this call's id as its parent: {why}"));
        }
        for server in servers {
            let to = service_of(server, 40, style.unicode);
            let text = if server.span.id == id {
                format!("{to} took {id} over as the id of its own half of the call (B3 allows that)")
            } else {
                format!("{to} made {id} the parent of its own span {}", server.span.id)
            };
            canvas.paragraph("    ", "    ", &text);
        }
    }
    if total > MAX_CALLS {
        canvas.blank();
        canvas.one(DIM, &format!("  ... and {} more calls", total - MAX_CALLS));
    }
}

/// One header, the ids in it marked: the trace's bold, the calling span's in its service's colour.
fn header(canvas: &mut Canvas<'_>, trace: &Trace, name: &str, value: &str, client: &PlacedSpan, colour: &str) {
    const NAME: usize = 19;
    let style = canvas.style;
    let mut line = canvas.line();
    line.put(PLAIN, "      ").put(DIM, name);
    if 6 + NAME + display_width(value) <= style.width {
        line.pad_to(6 + NAME);
    } else if line.width + 1 + display_width(value) <= style.width {
        line.put(PLAIN, " ");
    } else {
        canvas.end(line);
        line = canvas.line();
        line.put(PLAIN, "    ");
    }
    let value = clean(value, style.width - line.width, style.unicode);
    let (trace_id, span_id) = (zipkin_id(trace.id()), client.span.id.to_string());
    let mut rest = value.as_str();
    while !rest.is_empty() {
        let found = [(trace_id.as_str(), BOLD), (span_id.as_str(), colour)]
            .into_iter()
            .filter_map(|(id, sgr)| rest.find(id).map(|at| (at, id.len(), sgr)))
            .min();
        let Some((at, length, sgr)) = found else { break };
        line.put(PLAIN, &rest[..at]).put(sgr, &rest[at..at + length]);
        rest = &rest[at + length..];
    }
    line.put(PLAIN, rest);
    canvas.end(line);
}
