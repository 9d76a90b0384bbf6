//! One trace explained: its tree, whether it is complete, and the waterfall that a terminal shows.
//!
//! [`Trace`] puts spans in order, [`Verdict`] compares what arrived with what one request has to leave behind,
//! [`render`] draws. All text in spans is whatever somebody sent: here it loses its control characters and its length.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use crate::demo::store::Store;
use crate::hop::reply::Tree;
use crate::traces::zipkin::{Kind, Parent, Span, SpanId, TraceId, parents};

/// Rows of a waterfall, and calls explained below it; more are counted, not drawn. Beyond this nobody scrolls back.
const MAX_ROWS: usize = 200;
const MAX_CALLS: usize = 16;

/// Below this many columns the waterfall gives up space between its columns and abbreviates kinds.
const NARROW: usize = 90;

/// The headers that hold ids, in the order in which they are shown.
const ID_HEADERS: [&str; 7] =
    ["traceparent", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"];

/// The spans of one trace as a tree, depth first: a parent before its children, children by their clocks.
#[derive(Debug, Clone)]
pub struct Trace {
    id: TraceId,
    rows: Vec<Row>,
    services: Vec<Box<str>>,
    start_us: u64,
    duration_us: u64,
    dropped: u64,
    sent: HashMap<SpanId, Vec<(String, String)>>,
}

/// One span in its place.
#[derive(Debug, Clone)]
pub struct Row {
    /// The span.
    pub span: Arc<Span>,
    /// How many spans are above it.
    pub depth: usize,
    /// The index of its parent's row.
    pub parent: Option<usize>,
    /// The parent that it names but that is not in the trace. Such a span is an orphan and stands at the top.
    pub missing_parent: Option<SpanId>,
    /// No sibling follows.
    last: bool,
}

impl Trace {
    /// Orders the spans of one trace; `None` when there are none. Takes time n log n in the spans, whatever they claim.
    pub fn new(spans: Vec<Arc<Span>>) -> Option<Self> {
        let id = spans.first()?.trace_id;
        let parents = parents(&spans);
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); spans.len()];
        let mut tops = Vec::new();
        for (at, parent) in parents.iter().enumerate() {
            match parent {
                Parent::At(parent) => children[*parent].push(at),
                Parent::Root | Parent::Missing(_) => tops.push(at),
            }
        }
        // A span without a time goes last; ids make the order of equal times the same in every run.
        let clock = |at: &usize| (spans[*at].timestamp.unwrap_or(u64::MAX), spans[*at].id, spans[*at].kind == Some(Kind::Server));
        tops.sort_by_key(clock);
        children.iter_mut().for_each(|siblings| siblings.sort_by_key(clock));

        let mut rows: Vec<Row> = Vec::with_capacity(spans.len());
        // A stack of our own: a hostile trace can be as deep as it has spans.
        let mut next: Vec<(usize, Option<usize>, bool)> = tops.iter().rev().map(|top| (*top, None, true)).collect();
        while let Some((at, parent, last)) = next.pop() {
            let missing_parent = match parents[at] {
                Parent::Missing(id) => Some(id),
                _ => None,
            };
            let depth = parent.map_or(0, |parent: usize| rows[parent].depth + 1);
            let row = rows.len();
            rows.push(Row { span: spans[at].clone(), depth, parent, missing_parent, last });
            let siblings = &children[at];
            next.extend(siblings.iter().enumerate().rev().map(|(n, child)| (*child, Some(row), n + 1 == siblings.len())));
        }

        let mut seen = HashSet::new();
        let names = rows.iter().filter_map(|row| row.span.service());
        let services = names.filter(|name| seen.insert(*name)).map(Box::from).collect();
        let timed = || rows.iter().filter_map(|row| Some((row.span.timestamp?, row.span.duration.unwrap_or(0))));
        let start_us = timed().map(|(start, _)| start).min().unwrap_or(0);
        let end_us = timed().map(|(start, took)| start.saturating_add(took)).max().unwrap_or(0);
        Some(Self { id, services, start_us, duration_us: end_us - start_us, dropped: 0, sent: HashMap::new(), rows })
    }

    /// The trace with this id as the store has it now.
    pub fn load(store: &Store, id: TraceId) -> Option<Self> {
        let mut trace = Self::new(store.trace(id)?)?;
        trace.dropped = store.dropped(id);
        Some(trace)
    }

    /// Adds what the hops say they sent, so that [`render`] shows the very headers that tied a client span to its server span.
    #[must_use]
    pub fn with_reply(mut self, reply: &Tree) -> Self {
        let clients: HashSet<SpanId> =
            self.rows.iter().filter(|row| row.span.kind == Some(Kind::Client)).map(|row| row.span.id).collect();
        let mut hops = vec![reply];
        while let Some(hop) = hops.pop() {
            for call in &hop.upstreams {
                let headers: Vec<(String, String)> = ID_HEADERS
                    .iter()
                    .flat_map(|name| call.sent.get(name).iter().map(move |value| ((*name).to_owned(), value.clone())))
                    .collect();
                let ids = headers.iter().filter(|(name, _)| matches!(name.as_str(), "traceparent" | "b3" | "x-b3-spanid"));
                let sender = ids.flat_map(|(_, value)| value.split('-')).find_map(|part| {
                    let id = (part.len() == 16).then(|| part.parse::<SpanId>().ok())??;
                    clients.contains(&id).then_some(id)
                });
                if let Some(sender) = sender {
                    self.sent.insert(sender, headers);
                }
                if let Some(reply) = &call.reply {
                    hops.push(reply);
                }
            }
        }
        self
    }

    /// The id that all its spans share.
    pub fn id(&self) -> TraceId {
        self.id
    }

    /// The spans, depth first.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The services that reported spans, in the order in which the request reached them.
    pub fn services(&self) -> &[Box<str>] {
        &self.services
    }

    /// When its first span began: microseconds since 1970-01-01 UTC; 0 when no span says.
    pub fn start_us(&self) -> u64 {
        self.start_us
    }

    /// From the beginning of the first span to the end of the last, microseconds.
    pub fn duration_us(&self) -> u64 {
        self.duration_us
    }

    /// How many spans name a parent that is not there.
    pub fn orphans(&self) -> usize {
        self.rows.iter().filter(|row| row.missing_parent.is_some()).count()
    }

    /// How many spans have no parent.
    pub fn roots(&self) -> usize {
        self.rows.iter().filter(|row| row.parent.is_none() && row.missing_parent.is_none()).count()
    }

    /// Whether the missing parent of this row is there after all, but below it: spans that name each other.
    fn names_below(&self, row: &Row) -> bool {
        row.missing_parent.is_some_and(|parent| self.rows.iter().any(|other| other.span.id == parent))
    }

    /// How many spans failed, by the word of those who reported them.
    pub fn errors(&self) -> usize {
        self.rows.iter().filter(|row| row.span.is_error()).count()
    }
}

/// What one request through the chain has to leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expectation {
    /// Services with spans.
    pub services: usize,
    /// Spans of all of them.
    pub spans: usize,
}

impl Expectation {
    /// One request over `hops` services, each called once: a server span at each, and a client span for each call between
    /// two. A chain and a fan-out from the first hop have the same number of calls.
    pub fn of_hops(hops: usize) -> Self {
        Self { services: hops, spans: (2 * hops).saturating_sub(1) }
    }
}

/// What arrived, compared with what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Traces that the one request became.
    pub traces: usize,
    /// Different services in them.
    pub services: usize,
    /// Spans in them.
    pub spans: usize,
    /// Spans whose parent is missing.
    pub orphans: usize,
    /// A plain sentence for everything that is not as expected; empty when the trace is complete.
    pub deviations: Vec<String>,
}

impl Verdict {
    /// Judges the traces that one request became (one, when all is well).
    pub fn of(traces: &[Trace], expected: Expectation) -> Self {
        const NAMED_ORPHANS: usize = 5;
        let mut names: Vec<&str> = Vec::new();
        for name in traces.iter().flat_map(|trace| &trace.services) {
            if !names.contains(&name.as_ref()) && names.len() <= MAX_ROWS {
                names.push(name);
            }
        }
        let spans = traces.iter().map(|trace| trace.rows.len()).sum();
        let orphans = traces.iter().map(Trace::orphans).sum();
        let mut deviations = Vec::new();
        let mut say = |text: String| deviations.push(text);
        match traces.len() {
            0 => say("No trace arrived: the hops do not report spans, report them elsewhere, or were told not to sample.".into()),
            1 => {}
            n => say(format!(
                "The request became {n} traces instead of 1: a hop did not pass the trace headers on, so the next one began anew."
            )),
        }
        if !traces.is_empty() && names.len() != expected.services {
            let listed = names.iter().take(8).map(|name| clean(name, 40, true)).collect::<Vec<_>>().join(", ");
            let why = if names.len() < expected.services {
                "the others were not reached, do not report, or their spans are still on the way"
            } else {
                "somebody else reports into this trace, a proxy for instance"
            };
            let found = counted(names.len(), "service");
            say(format!("{found} instead of {} reported ({listed}): {why}.", expected.services));
        }
        if !traces.is_empty() && spans != expected.spans {
            let why = if spans < expected.spans {
                "some are still on the way, were lost, or a call was never made"
            } else {
                "a call was made more than once, or somebody else reports too"
            };
            let found = counted(spans, "span");
            say(format!(
                "{found} instead of {} arrived (a server span per service, a client span per call): {why}.",
                expected.spans
            ));
        }
        for trace in traces {
            let alone = trace.roots() == 0 && trace.orphans() == 1;
            let missing = trace.rows.iter().filter_map(|row| Some((row, row.missing_parent?)));
            for (row, parent) in missing.take(NAMED_ORPHANS) {
                let why = if trace.names_below(row) {
                    "that span is its own descendant, so one of the two has a wrong parent"
                } else if alone {
                    "nobody reported that one: the caller sent its id along and reports no span here"
                } else {
                    "nobody reported that one: a hop passed on an id that is not its own, or its span was lost"
                };
                say(format!("Span {} of {} names the parent {parent}, but {why}.", row.span.id, title(row, true)));
            }
            if trace.orphans() > NAMED_ORPHANS {
                say(format!("{} more spans have a parent that nobody reported.", trace.orphans() - NAMED_ORPHANS));
            }
            if trace.roots() > 1 {
                say(format!(
                    "{} spans of trace {} have no parent, and one request has one root: a hop kept the trace id but lost its caller's span id.",
                    trace.roots(),
                    trace.id
                ));
            }
            if trace.dropped > 0 {
                say(format!("The store cut trace {}: {} reports of spans were not kept.", trace.id, trace.dropped));
            }
        }
        Self { traces: traces.len(), services: names.len(), spans, orphans, deviations }
    }

    /// Whether everything is as expected.
    pub fn complete(&self) -> bool {
        self.deviations.is_empty()
    }

    /// The verdict for a terminal: one line when all is well, else a line per deviation below it. Ends with a newline.
    pub fn render(&self, style: &Style) -> String {
        let style = style.usable();
        let mut page = Page::new(&style);
        let counts = format!(
            "{}, {}, {}, {}",
            counted(self.traces, "trace"),
            counted(self.services, "service"),
            counted(self.spans, "span"),
            if self.orphans == 0 { "no orphan".into() } else { counted(self.orphans, "orphan") }
        );
        let mut line = page.line();
        if self.complete() {
            line.put(GOOD, style.pick("✓ complete", "complete")).put(PLAIN, &format!("  {counts}"));
        } else {
            line.put(BAD, style.pick("✗ not complete", "NOT COMPLETE")).put(PLAIN, &format!("  {counts}"));
        }
        page.end(line);
        for deviation in &self.deviations {
            page.paragraph("  - ", "    ", &clean(deviation, usize::MAX, style.unicode));
        }
        page.out
    }
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Columns. Below 60 it is drawn as 60, above 160 as 160.
    pub width: usize,
    /// With ANSI colours. The caller knows about terminals and `NO_COLOR`.
    pub colour: bool,
    /// With block elements and lines; without, everything is ASCII.
    pub unicode: bool,
}

impl Default for Style {
    /// Fit for a file: 100 columns, no colour, ASCII.
    fn default() -> Self {
        Self { width: 100, colour: false, unicode: false }
    }
}

impl Style {
    fn usable(&self) -> Self {
        Self { width: self.width.clamp(60, 160), ..*self }
    }

    fn pick<'a>(&self, unicode: &'a str, ascii: &'a str) -> &'a str {
        if self.unicode { unicode } else { ascii }
    }
}

// SGR parameters. An empty one writes the text as it is.
const PLAIN: &str = "";
const BOLD: &str = "1";
const DIM: &str = "2";
const BAD: &str = "1;31";
const WARN: &str = "33";
const GOOD: &str = "32";

/// Colours of services: told apart by eye and readable on dark and on light ground. Red is kept for errors.
const SERVICE_COLOURS: [&str; 8] = ["38;5;103", "38;5;168", "38;5;134", "38;5;71", "38;5;68", "38;5;172", "38;5;136", "38;5;37"];

/// A colour per service: the name's own as long as no other service of the trace has it, so that a service looks the same
/// in every trace of its chain.
fn service_colours(services: &[Box<str>]) -> HashMap<&str, &'static str> {
    let mut names: Vec<&str> = services.iter().map(AsRef::as_ref).collect();
    names.sort_unstable();
    let mut taken = [false; SERVICE_COLOURS.len()];
    let mut colours = HashMap::new();
    for name in names {
        // FNV-1a: the same in every run and on every machine, which std's hasher does not promise.
        let hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        let own = (hash % SERVICE_COLOURS.len() as u64) as usize;
        let free = (0..SERVICE_COLOURS.len()).map(|step| (own + step) % SERVICE_COLOURS.len()).find(|slot| !taken[*slot]);
        let slot = free.unwrap_or(own);
        taken[slot] = true;
        colours.insert(name, SERVICE_COLOURS[slot]);
    }
    colours
}

/// Columns that a character takes on a terminal. The wide ones are those of East Asian scripts and emoji.
fn columns(c: char) -> usize {
    match u32::from(c) {
        0x300..=0x36f | 0x483..=0x489 | 0x591..=0x5bd | 0x1ab0..=0x1aff | 0x1dc0..=0x1dff | 0x20d0..=0x20ff | 0xfe00..=0xfe0f => {
            0
        }
        0x1100..=0x115f
        | 0x2e80..=0x303e
        | 0x3041..=0x4dbf
        | 0x4e00..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f680..=0x1f6ff
        | 0x1f900..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

fn display_width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// Text of others, safe on a terminal and at most `max` columns: control characters, and those that reorder or hide text,
/// are shown as escapes; what is too long is cut.
fn clean(text: &str, max: usize, unicode: bool) -> String {
    let mut out = String::new();
    let mut width = 0;
    let mut cut_at = 0;
    let mark = if unicode { '…' } else { '~' };
    for c in text.chars() {
        let hidden = matches!(u32::from(c), 0xad | 0x61c | 0x180e | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff0..=0xfffb | 0xe0000..=0xe0fff);
        let before = out.len();
        if c.is_control() || hidden {
            out.extend(c.escape_unicode());
        } else if !unicode && !c.is_ascii() {
            out.push('?');
        } else {
            out.push(c);
        }
        width += display_width(&out[before..]);
        if width < max {
            cut_at = out.len();
        }
        // A letter can wear any number of marks that take no column.
        if width > max || out.len() / 8 > max {
            out.truncate(cut_at);
            if max > 0 {
                out.push(mark);
            }
            break;
        }
    }
    out
}

/// `service2 server GET /service{n}`
fn title(row: &Row, unicode: bool) -> String {
    let kind = row.span.kind.map_or("local", Kind::as_str);
    let name = clean(row.span.name.as_deref().unwrap_or("(no name)"), 60, unicode);
    format!("{} {kind} {name}", service_of(row, 40, unicode))
}

fn service_of(row: &Row, max: usize, unicode: bool) -> String {
    clean(row.span.service().unwrap_or("(no service)"), max, unicode)
}

/// A length of time in at most 7 columns.
fn time(us: u64) -> String {
    let ms = us as f64 / 1e3;
    match us {
        0 => "0ms".into(),
        1..10_000 => format!("{ms:.2}ms"),
        10_000..999_950 => format!("{ms:.1}ms"),
        999_950..100_000_000 => format!("{:.2}s", ms / 1e3),
        100_000_000..1_000_000_000_000 => format!("{:.0}s", ms / 1e3),
        _ => format!("{:.0}d", (ms / 86_400_000.0).min(999_999.0)),
    }
}

/// A point on the axis, without the zeros that say nothing.
fn tick(us: u64) -> String {
    let (value, unit) = if us >= 1_000_000 { (us as f64 / 1e6, "s") } else { (us as f64 / 1e3, "ms") };
    format!("{value}{unit}")
}

/// A line that knows its width on the screen, whatever colours are in it.
struct Line {
    text: String,
    width: usize,
    colour: bool,
}

impl Line {
    fn put(&mut self, sgr: &str, text: &str) -> &mut Self {
        if self.colour && !sgr.is_empty() && !text.trim().is_empty() {
            let _ = write!(self.text, "\x1b[{sgr}m{text}\x1b[0m");
        } else {
            self.text.push_str(text);
        }
        self.width += display_width(text);
        self
    }

    fn pad_to(&mut self, column: usize) -> &mut Self {
        while self.width < column {
            self.text.push(' ');
            self.width += 1;
        }
        self
    }

    fn right(&mut self, sgr: &str, text: &str, column: usize) -> &mut Self {
        self.pad_to(column.saturating_sub(display_width(text))).put(sgr, text)
    }
}

struct Page<'a> {
    style: &'a Style,
    out: String,
}

impl<'a> Page<'a> {
    fn new(style: &'a Style) -> Self {
        Self { style, out: String::new() }
    }

    fn line(&self) -> Line {
        Line { text: String::new(), width: 0, colour: self.style.colour }
    }

    fn end(&mut self, line: Line) {
        self.out.push_str(line.text.trim_end());
        self.out.push('\n');
    }

    fn blank(&mut self) {
        self.out.push('\n');
    }

    fn one(&mut self, sgr: &str, text: &str) {
        let mut line = self.line();
        line.put(sgr, text);
        self.end(line);
    }

    /// Words broken to the width, the first line after `first`, the others after `rest`.
    fn paragraph(&mut self, first: &str, rest: &str, text: &str) {
        let mut line = self.line();
        line.put(PLAIN, first);
        let mut empty = true;
        for word in text.split(' ') {
            if !empty && line.width + 1 + display_width(word) > self.style.width {
                let full = std::mem::replace(&mut line, self.line());
                self.end(full);
                line.put(PLAIN, rest);
                empty = true;
            }
            if !empty {
                line.put(PLAIN, " ");
            }
            line.put(PLAIN, word);
            empty = false;
        }
        self.end(line);
    }
}

/// Where the columns of the waterfall are.
struct Layout {
    label: usize,
    kind_at: usize,
    kind: usize,
    bar_at: usize,
    bar: usize,
    start_end: usize,
    took_end: usize,
    status_at: usize,
    /// Columns per level of the tree, and how many the tree may take at all.
    step: usize,
    rails: usize,
    axis: Axis,
}

impl Layout {
    fn of(trace: &Trace, rows: &[Row], style: &Style) -> Self {
        const TIME: usize = 7;
        const STATUS: usize = 5;
        let narrow = style.width < NARROW;
        let gap = if narrow { 1 } else { 2 };
        let queues = rows.iter().any(|row| matches!(row.span.kind, Some(Kind::Producer | Kind::Consumer)));
        let kind = if narrow {
            3
        } else if queues {
            8
        } else {
            6
        };
        let deepest = rows.iter().map(|row| row.depth).max().unwrap_or(0);
        let most = style.width * 2 / 5 - 1;
        let step = if deepest <= 6 { 2 } else { 1 };
        let rails = (deepest * step).min(most / 2);
        let needed = rows.iter().map(|row| {
            let name = display_width(&clean(row.span.name.as_deref().unwrap_or_default(), most, style.unicode));
            let orphan = if row.missing_parent.is_some() { 2 } else { 0 };
            (row.depth * step).min(rails) + display_width(&service_of(row, most, style.unicode)) + 1 + name + orphan
        });
        let label = needed.max().unwrap_or(0).clamp(12, most);
        let kind_at = label + gap;
        let bar_at = kind_at + kind + gap;
        let bar = style.width - bar_at - 3 * gap - 2 * TIME - STATUS;
        let start_end = bar_at + bar + gap + TIME;
        let took_end = start_end + gap + TIME;
        let axis = Axis::new(trace.duration_us, bar);
        Self { label, kind_at, kind, bar_at, bar, start_end, took_end, status_at: took_end + gap, step, rails, axis }
    }

    fn kind<'k>(&self, kind: Option<Kind>) -> &'k str {
        let name = kind.map_or("local", Kind::as_str);
        match (self.kind, kind) {
            (3, Some(Kind::Client)) => "cli",
            (3, Some(Kind::Server)) => "srv",
            _ => &name[..name.len().min(self.kind)],
        }
    }
}

/// The time axis: round steps, a label to each.
struct Axis {
    total_us: u64,
    ticks: Vec<(usize, String)>,
}

impl Axis {
    fn new(total_us: u64, width: usize) -> Self {
        // At most a label per 7 columns, at steps of 1, 2 or 5 times a power of ten.
        let most = (width / 7).max(1) as u64;
        let mut steps = (0..=18).flat_map(|power| [1, 2, 5].map(|factor| factor * 10_u64.pow(power)));
        let step = steps.find(|step| total_us / step <= most).unwrap_or(u64::MAX);
        let mut ticks = Vec::new();
        if total_us > 0 {
            let mut at = 0_u64;
            while at < total_us && ticks.len() <= width {
                let column = (u128::from(at) * width as u128 / u128::from(total_us)) as usize;
                ticks.push((column, if at == 0 { "0".into() } else { tick(at) }));
                let Some(next) = at.checked_add(step) else { break };
                at = next;
            }
        }
        Self { total_us, ticks }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cell {
    Free,
    Grid,
    Bar(char),
}

/// The bar of one span: filled to an eighth of a column at its end, and to what there are characters for at its beginning.
fn bar(span: &Span, trace: &Trace, layout: &Layout, unicode: bool) -> Vec<Cell> {
    let mut cells = vec![Cell::Free; layout.bar];
    for (column, _) in &layout.axis.ticks {
        if let Some(cell) = cells.get_mut(*column) {
            *cell = Cell::Grid;
        }
    }
    let (Some(begin), true) = (span.timestamp, layout.axis.total_us > 0) else { return cells };
    let full = layout.bar as u128 * 8;
    let eighth = |us: u64| u128::from(us).saturating_mul(full) / u128::from(layout.axis.total_us);
    let begin = begin.saturating_sub(trace.start_us);
    let from = eighth(begin).min(full - 1);
    let to = eighth(begin.saturating_add(span.duration.unwrap_or(0))).clamp(from + 1, full);
    for (at, cell) in cells.iter_mut().enumerate() {
        let (low, high) = (at as u128 * 8, at as u128 * 8 + 8);
        if to <= low || from >= high {
            continue;
        }
        let (a, b) = (from.max(low) - low, to.min(high) - low);
        let covered = b - a;
        if unicode {
            *cell = Cell::Bar(match (a, b) {
                (0, b) => ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'][b as usize - 1],
                (_, 8) if covered >= 6 => '█',
                (_, 8) if covered >= 3 => '▐',
                (_, 8) => '▕',
                (a, _) if a < 4 => '▎',
                _ => '▕',
            });
        } else if covered >= 4 {
            *cell = Cell::Bar('=');
        } else if to - from < 8 && low <= from {
            // Shorter than a column, but it was there.
            *cell = Cell::Bar('|');
        }
    }
    cells
}

/// Draws a trace: [`render_rows`], and below it [`render_ties`]. Ends with a newline.
pub fn render(trace: &Trace, style: &Style) -> String {
    format!("{}\n{}", render_rows(trace, style), render_ties(trace, style))
}

/// The waterfall alone: a header line, and a row per span with its bar to scale. Ends with a newline.
pub fn render_rows(trace: &Trace, style: &Style) -> String {
    let style = style.usable();
    let mut page = Page::new(&style);
    let colours = service_colours(&trace.services);
    head(&mut page, trace);
    page.blank();
    rows(&mut page, trace, &|row| colour_of(row, &colours));
    page.out
}

/// How the hops are tied together: the ids of every span, and for every call the headers in which they travelled. Ends with
/// a newline.
pub fn render_ties(trace: &Trace, style: &Style) -> String {
    let style = style.usable();
    let mut page = Page::new(&style);
    let colours = service_colours(&trace.services);
    ids(&mut page, trace, &|row| colour_of(row, &colours));
    calls(&mut page, trace, &|row| colour_of(row, &colours));
    page.out
}

fn colour_of(row: &Row, colours: &HashMap<&str, &'static str>) -> &'static str {
    row.span.service().and_then(|name| colours.get(name).copied()).unwrap_or(PLAIN)
}

fn head(page: &mut Page<'_>, trace: &Trace) {
    let mut line = page.line();
    line.put(DIM, "trace ").put(BOLD, &trace.id.to_string());
    // With a count of everything the line can be 100 columns long.
    if page.style.width < NARROW {
        page.end(line);
        line = page.line();
    } else {
        line.put(PLAIN, "  ");
    }
    let dot = page.style.pick(" · ", ", ");
    line.put(PLAIN, &counted(trace.services.len(), "service")).put(DIM, dot);
    line.put(PLAIN, &counted(trace.rows.len(), "span")).put(DIM, dot);
    line.put(PLAIN, &time(trace.duration_us));
    if trace.errors() > 0 {
        line.put(DIM, dot).put(BAD, &counted(trace.errors(), "error"));
    }
    if trace.orphans() > 0 {
        line.put(DIM, dot).put(WARN, &counted(trace.orphans(), "orphan"));
    }
    page.end(line);
}

fn rows(page: &mut Page<'_>, trace: &Trace, colour: &dyn Fn(&Row) -> &'static str) {
    let style = page.style;
    let shown = &trace.rows[..trace.rows.len().min(MAX_ROWS)];
    let layout = Layout::of(trace, shown, style);

    let mut line = page.line();
    line.put(DIM, "service  span")
        .pad_to(layout.kind_at)
        .put(DIM, if layout.kind < 4 { "" } else { "kind" })
        .pad_to(layout.bar_at);
    for (n, (column, label)) in layout.axis.ticks.iter().enumerate() {
        let end = layout.axis.ticks.get(n + 1).map_or(layout.bar, |(next, _)| next.saturating_sub(1));
        if column + label.len() <= end {
            line.pad_to(layout.bar_at + column).put(DIM, label);
        }
    }
    line.right(DIM, "start", layout.start_end).right(DIM, "took", layout.took_end);
    line.pad_to(layout.status_at).put(DIM, "code");
    page.end(line);

    let mut open: Vec<bool> = Vec::new();
    for row in shown {
        let mut line = page.line();
        line.put(DIM, &rails(row, &mut open, &layout, style));
        if row.missing_parent.is_some() {
            line.put(WARN, "? ");
        }
        let room = layout.label.saturating_sub(line.width);
        let service = service_of(row, room, style.unicode);
        line.put(colour(row), &service);
        let room = layout.label.saturating_sub(line.width + 1);
        if room > 1 {
            line.put(PLAIN, " ").put(PLAIN, &clean(row.span.name.as_deref().unwrap_or_default(), room, style.unicode));
        }
        line.pad_to(layout.kind_at).put(DIM, layout.kind(row.span.kind)).pad_to(layout.bar_at);

        let failed = row.span.is_error();
        let cells = bar(&row.span, trace, &layout, style.unicode);
        for run in cells.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b)) {
            let text: String = run
                .iter()
                .map(|cell| match cell {
                    Cell::Free => ' ',
                    Cell::Grid => style.pick("┊", ":").chars().next().unwrap_or(' '),
                    Cell::Bar(c) => *c,
                })
                .collect();
            let sgr = match run[0] {
                Cell::Bar(_) if failed => "31",
                Cell::Bar(_) => colour(row),
                _ => DIM,
            };
            line.put(sgr, &text);
        }
        let start = row.span.timestamp.map_or_else(|| "?".into(), |at| time(at.saturating_sub(trace.start_us)));
        line.right(DIM, &start, layout.start_end);
        line.right(PLAIN, &row.span.duration.map_or_else(|| "?".into(), time), layout.took_end).pad_to(layout.status_at);
        let status = clean(row.span.http_status().unwrap_or_default(), 3, style.unicode);
        if failed {
            line.put(
                BAD,
                &format!("{}{}", if status.is_empty() { "err ".into() } else { format!("{status} ") }, style.pick("✗", "!")),
            );
        } else {
            line.put(DIM, &status);
        }
        page.end(line);
    }
    if trace.rows.len() > shown.len() {
        page.one(DIM, &format!("... and {} more spans", trace.rows.len() - shown.len()));
    }
    if trace.dropped > 0 {
        page.one(WARN, &format!("The store cut this trace: {} reports of spans were not kept.", trace.dropped));
    }
    for row in shown.iter().filter(|row| row.missing_parent.is_some()).take(5) {
        let parent = row.missing_parent.map(|id| id.to_string()).unwrap_or_default();
        let why = if trace.names_below(row) {
            "That span stands below it: the two name each other."
        } else {
            "Nobody reported that span."
        };
        let text = format!("{} says that span {parent} called it. {why}", title(row, style.unicode));
        page.paragraph("? ", "  ", &text);
    }
}

/// The lines of the tree before a row. `open` says for each level above whether a sibling is still to come.
fn rails(row: &Row, open: &mut Vec<bool>, layout: &Layout, style: &Style) -> String {
    open.truncate(row.depth);
    let mut text = String::new();
    if row.depth > 0 {
        let levels = layout.rails / layout.step;
        let first = (row.depth + 1).saturating_sub(levels).max(1);
        if first > 1 {
            text.push_str(style.pick("…", "~"));
        }
        // The mark above takes one level's place.
        for more in &open[(if first > 1 { first + 1 } else { 1 }).min(row.depth)..row.depth] {
            text.push_str(if *more { style.pick("│", "|") } else { " " });
            text.push_str(&" "[..layout.step - 1]);
        }
        text.push_str(if row.last { style.pick("└", "`") } else { style.pick("├", "|") });
        if layout.step > 1 {
            text.push_str(style.pick("╴", "-"));
        }
    }
    open.push(!row.last);
    text
}

fn ids(page: &mut Page<'_>, trace: &Trace, colour: &dyn Fn(&Row) -> &'static str) {
    let style = page.style;
    page.one(BOLD, "How the hops are tied together");
    page.blank();
    let mut line = page.line();
    line.put(DIM, "  trace id  ").put(BOLD, &trace.id.to_w3c());
    page.end(line);
    page.paragraph(
        "            ",
        "            ",
        &format!(
            "the same in {}: that is what makes them one trace",
            if trace.rows.len() == 1 { "every span".into() } else { format!("all {} spans", trace.rows.len()) }
        ),
    );
    page.blank();
    let mut line = page.line();
    let arrow = style.pick(" ← ", " <- ");
    let parent_at = 2 + 16 + display_width(arrow);
    let label_at = parent_at + 16 + 2;
    line.put(DIM, "  span id").pad_to(parent_at).put(DIM, "parent id").pad_to(label_at).put(DIM, "reported by");
    page.end(line);
    let shown = &trace.rows[..trace.rows.len().min(MAX_ROWS)];
    let widest = if style.width < 80 { 10 } else { 24 };
    let services = shown.iter().map(|row| display_width(&service_of(row, widest, style.unicode))).max().unwrap_or(0);
    for row in shown {
        let mut line = page.line();
        line.put(PLAIN, "  ").put(colour(row), &row.span.id.to_string());
        let parent = row.parent.map(|at| &trace.rows[at]);
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
        page.end(line);
    }
}

fn calls(page: &mut Page<'_>, trace: &Trace, colour: &dyn Fn(&Row) -> &'static str) {
    let style = page.style;
    let mut answered: HashMap<usize, Vec<usize>> = HashMap::new();
    for (at, row) in trace.rows.iter().enumerate() {
        if let (Some(Kind::Server), Some(parent)) = (row.span.kind, row.parent)
            && trace.rows[parent].span.kind == Some(Kind::Client)
        {
            answered.entry(parent).or_default().push(at);
        }
    }
    let clients = trace.rows.iter().enumerate().filter(|(_, row)| row.span.kind == Some(Kind::Client));
    let total = clients.clone().count();
    for (at, client) in clients.take(MAX_CALLS) {
        let servers: Vec<&Row> = answered.get(&at).into_iter().flatten().take(MAX_CALLS).map(|at| &trace.rows[*at]).collect();
        let widest = style.width / 2 - 4;
        let from = service_of(client, widest, style.unicode);
        page.blank();
        let mut line = page.line();
        line.put(PLAIN, "  ").put(colour(client), &from).put(DIM, style.pick(" → ", " -> "));
        match servers.first() {
            Some(server) => line.put(colour(server), &service_of(server, widest, style.unicode)),
            None => line.put(WARN, "no server span"),
        };
        page.end(line);
        match trace.sent.get(&client.span.id) {
            Some(headers) => {
                page.one(DIM, "    sent in the headers of the call:");
                for (name, value) in headers {
                    header(page, trace, name, value, client, colour(client));
                }
            }
            None => {
                page.paragraph("    ", "    ", "the span id travels with the call in one of these headers, or in both:");
                let id = client.span.id.to_string();
                header(page, trace, "traceparent", &format!("00-{}-{id}-01", trace.id.to_w3c()), client, colour(client));
                header(page, trace, "x-b3-spanid", &id, client, colour(client));
            }
        }
        let id = client.span.id;
        if servers.is_empty() {
            let text = "no server span names this call's id as its parent: the other side was not reached, does not report, or its spans are still on the way";
            page.paragraph("    ", "    ", text);
        }
        for server in servers {
            let to = service_of(server, 40, style.unicode);
            let text = if server.span.id == id {
                format!("{to} took {id} over as the id of its own half of the call (B3 allows that)")
            } else {
                format!("{to} made {id} the parent of its own span {}", server.span.id)
            };
            page.paragraph("    ", "    ", &text);
        }
    }
    if total > MAX_CALLS {
        page.blank();
        page.one(DIM, &format!("  ... and {} more calls", total - MAX_CALLS));
    }
}

/// One header, the ids in it marked: the trace's bold, the calling span's in its service's colour.
fn header(page: &mut Page<'_>, trace: &Trace, name: &str, value: &str, client: &Row, colour: &str) {
    const NAME: usize = 19;
    let style = page.style;
    let mut line = page.line();
    line.put(PLAIN, "      ").put(DIM, name);
    if 6 + NAME + display_width(value) <= style.width {
        line.pad_to(6 + NAME);
    } else if line.width + 1 + display_width(value) <= style.width {
        line.put(PLAIN, " ");
    } else {
        page.end(line);
        line = page.line();
        line.put(PLAIN, "    ");
    }
    let value = clean(value, style.width - line.width, style.unicode);
    let (trace_id, span_id) = (trace.id.to_string(), client.span.id.to_string());
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
    page.end(line);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::traces::zipkin::decode;

    const T0: u64 = 1_700_000_000_000_000;
    const WIDE: Style = Style { width: 100, colour: false, unicode: true };

    fn trace(spans: &Value) -> Trace {
        let spans = decode(spans.to_string().as_bytes(), 100_000).unwrap_or_else(|refused| panic!("{refused:?}"));
        Trace::new(spans.into_iter().map(Arc::new).collect()).unwrap()
    }

    fn span(id: &str, parent: Option<&str>, kind: &str, service: &str, at: u64, took: u64) -> Value {
        let number = service.trim_start_matches("service");
        let name = if kind == "SERVER" { format!("GET /service{number}") } else { "GET".into() };
        json!({"traceId": "4bf92f3577b34da6a3ce929d0e0e4736", "id": id, "parentId": parent, "kind": kind, "name": name,
            "timestamp": T0 + at, "duration": took, "localEndpoint": {"serviceName": service},
            "tags": {"http.response.status_code": "200"}})
    }

    /// service1 -> service2 -> service3, not in order.
    fn chain() -> Value {
        json!([
            span("b7ad6b7169203331", Some("53995c3f42cd8ad8"), "SERVER", "service2", 8_200, 31_000),
            span("53995c3f42cd8ad8", Some("00f067aa0ba902b7"), "CLIENT", "service1", 7_400, 32_600),
            span("00f067aa0ba902b7", None, "SERVER", "service1", 0, 42_300),
            span("a2fb4a1d1a96d312", Some("3b9aca0012345678"), "SERVER", "service3", 21_100, 17_012),
            span("3b9aca0012345678", Some("b7ad6b7169203331"), "CLIENT", "service2", 20_050, 18_900),
        ])
    }

    /// The row of the waterfall that holds all of these words.
    fn row_with(trace: &Trace, words: &[&str]) -> String {
        let drawn = render_rows(trace, &WIDE);
        let found = drawn.lines().find(|line| words.iter().all(|word| line.contains(word)));
        found.unwrap_or_else(|| panic!("no row with {words:?} in\n{drawn}")).to_owned()
    }

    #[test]
    fn spans_in_any_order_become_a_tree_from_the_front_to_the_last_hop() {
        let trace = trace(&chain());
        let tree: Vec<_> = trace.rows().iter().map(|row| (row.depth, row.parent, row.span.service().unwrap())).collect();
        let expected = [
            (0, None, "service1"),
            (1, Some(0), "service1"),
            (2, Some(1), "service2"),
            (3, Some(2), "service2"),
            (4, Some(3), "service3"),
        ];
        assert_eq!(tree, expected);
        assert_eq!(trace.services().iter().map(AsRef::as_ref).collect::<Vec<_>>(), ["service1", "service2", "service3"]);
        assert_eq!((trace.start_us(), trace.duration_us(), trace.orphans(), trace.roots()), (T0, 42_300, 0, 1));
        assert!(Trace::new(Vec::new()).is_none());
    }

    #[test]
    fn children_stand_in_the_order_of_their_clocks() {
        let trace = trace(&json!([
            span("1", None, "SERVER", "service1", 0, 100),
            span("2", Some("1"), "CLIENT", "service1", 30, 10),
            span("3", Some("1"), "CLIENT", "service1", 10, 10),
            span("4", Some("1"), "CLIENT", "service1", 20, 10),
        ]));
        let ids: Vec<_> = trace.rows().iter().map(|row| row.span.id.to_string()[15..].to_owned()).collect();
        assert_eq!(ids, ["1", "3", "4", "2"]);
        let drawn = render_rows(&trace, &WIDE);
        assert_eq!(drawn.matches("├╴").count(), 2, "{drawn}");
        assert_eq!(drawn.matches("└╴").count(), 1, "{drawn}");
    }

    #[test]
    fn the_waterfall_of_a_chain_looks_like_this() {
        let ascii = Style { width: 80, ..Style::default() };
        let expected = "\
trace 4bf92f3577b34da6a3ce929d0e0e4736
3 services, 5 spans, 42.3ms

service  span                      0         20ms            start    took code
";
        let drawn = render_rows(&trace(&chain()), &ascii);
        assert!(drawn.starts_with(expected), "{drawn}");
        let expected = "\
service1 GET /service1         srv
`-service1 GET                 cli
  `-service2 GET /service2     srv
    `-service2 GET             cli
      `-service3 GET /service3 srv";
        let labels: Vec<&str> = drawn.lines().skip(4).map(|line| &line[..34]).collect();
        assert_eq!(labels, expected.lines().collect::<Vec<_>>(), "{drawn}");
        let figures: Vec<String> =
            drawn.lines().skip(4).map(|line| line.split_whitespace().rev().take(3).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            figures,
            ["200 42.3ms 0ms", "200 32.6ms 7.40ms", "200 31.0ms 8.20ms", "200 18.9ms 20.1ms", "200 17.0ms 21.1ms"]
        );
    }

    #[test]
    fn bars_are_to_scale_to_an_eighth_of_a_column() {
        let spans = |from, took| {
            json!([span("1", None, "SERVER", "service1", 0, 80_000), span("2", Some("1"), "CLIENT", "service1", from, took)])
        };
        for unicode in [true, false] {
            let style = Style { unicode, ..WIDE };
            for (from, took) in [(0, 80_000), (0, 40_000), (20_000, 20_000), (79_999, 1), (80_000, 0), (0, 1), (33_333, 20_123)] {
                let trace = trace(&spans(from, took));
                let layout = Layout::of(&trace, &trace.rows, &style);
                let cells = bar(&trace.rows[1].span, &trace, &layout, unicode);
                let filled = |cell: &Cell| match cell {
                    Cell::Bar('▕' | '▏') => 0.125,
                    Cell::Bar('▎') => 0.25,
                    Cell::Bar('▍') => 0.375,
                    Cell::Bar('▌' | '▐') => 0.5,
                    Cell::Bar('▋') => 0.625,
                    Cell::Bar('▊') => 0.75,
                    Cell::Bar('▉') => 0.875,
                    Cell::Bar(_) => 1.0,
                    _ => 0.0,
                };
                let drawn: f64 = cells.iter().map(filled).sum();
                let exact = took as f64 / 80_000.0 * layout.bar as f64;
                assert!(drawn > 0.0 && (drawn - exact).abs() <= 1.0, "{from}+{took}: {drawn} for {exact}");
                let first = cells.iter().position(|cell| matches!(cell, Cell::Bar(_))).unwrap();
                let exact = from as f64 / 80_000.0 * layout.bar as f64;
                assert!((first as f64 - exact).abs() <= 1.0, "{from}+{took}: begins at {first} for {exact}");
            }
        }
    }

    #[test]
    fn the_axis_has_round_steps_and_as_many_as_there_is_room_for() {
        let labels = |total, width| Axis::new(total, width).ticks.into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        assert_eq!(labels(42_300, 40), ["0", "10ms", "20ms", "30ms", "40ms"]);
        assert_eq!(labels(42_300, 12), ["0"]);
        assert_eq!(labels(3_000_000, 40), ["0", "1s", "2s"]);
        assert_eq!(labels(1, 40), ["0"]);
        assert_eq!(labels(900, 40), ["0", "0.2ms", "0.4ms", "0.6ms", "0.8ms"]);
        assert_eq!(labels(0, 40), [""; 0]);
        assert!(labels(u64::MAX, 40).len() < 8);
    }

    #[test]
    fn times_take_at_most_seven_columns() {
        for (us, text) in [
            (0, "0ms"),
            (1, "0.00ms"),
            (850, "0.85ms"),
            (9_999, "10.00ms"),
            (12_345, "12.3ms"),
            (999_949, "999.9ms"),
            (999_950, "1.00s"),
            (1_234_567, "1.23s"),
            (99_999_999, "100.00s"),
            (123_456_789, "123s"),
        ] {
            assert_eq!(time(us), text);
        }
        for power in 0..64 {
            assert!(time(1 << power).len() <= 7, "{}", time(1 << power));
        }
        assert!(time(u64::MAX).len() <= 7);
    }

    /// What a hostile or broken reporter may send, in one trace.
    fn hostile() -> Value {
        json!([
            {"traceId": "f", "id": "1", "kind": "SERVER", "name": "\u{1b}[2J\u{7}\r\nGET\u{202e}evil\u{200b}", "timestamp": T0, "duration": 5000,
                "localEndpoint": {"serviceName": "\u{9b}31mservice"}, "tags": {"http.status_code": "\u{1b}c", "error": ""}},
            {"traceId": "f", "id": "2", "parentId": "1", "kind": "CLIENT", "name": "x".repeat(5000), "timestamp": u64::MAX, "duration": u64::MAX,
                "localEndpoint": {"serviceName": "長い名前".repeat(500)}},
            {"traceId": "f", "id": "3", "parentId": "2", "kind": "SERVER", "name": format!("a{}", "\u{301}".repeat(5000)), "timestamp": 1,
                "localEndpoint": {"serviceName": "長い名前".repeat(499)}},
            {"traceId": "f", "id": "4", "parentId": "99", "kind": "PRODUCER", "name": "👩🏽‍💻 sends"},
            {"traceId": "f", "id": "5", "parentId": "6"}, {"traceId": "f", "id": "6", "parentId": "5"},
            {"traceId": "f", "id": "7"},
        ])
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_none_holds_a_control_character() {
        let deep: Value = (1..=40)
            .map(|n| {
                span(
                    &format!("{n:x}"),
                    (n > 1).then(|| format!("{:x}", n - 1)).as_deref(),
                    "SERVER",
                    &format!("service{n}"),
                    n,
                    100 - n,
                )
            })
            .collect();
        for spans in [chain(), hostile(), deep] {
            let trace = trace(&spans);
            let verdict = Verdict::of(std::slice::from_ref(&trace), Expectation::of_hops(3));
            for unicode in [true, false] {
                for width in [0, 60, 61, 72, 80, 89, 90, 100, 131, 160, 5000] {
                    let style = Style { width, colour: false, unicode };
                    let text = render(&trace, &style) + &verdict.render(&style);
                    for line in text.lines() {
                        assert!(display_width(line) <= width.clamp(60, 160), "{width}: {}: {line}\n{text}", display_width(line));
                        assert!(
                            !line
                                .chars()
                                .any(|c| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')),
                            "{line:?}"
                        );
                        assert!(unicode || line.is_ascii(), "{line}");
                        assert!(line.len() < 4000);
                    }
                    let coloured = render(&trace, &Style { colour: true, ..style });
                    let mut bare = coloured.replace("\x1b[0m", "");
                    for sgr in SERVICE_COLOURS.iter().chain(&[BOLD, DIM, BAD, WARN, GOOD, "31"]) {
                        bare = bare.replace(&format!("\x1b[{sgr}m"), "");
                    }
                    assert!(!bare.contains('\u{1b}'), "a sequence that is not ours: {bare:?}");
                }
            }
        }
    }

    #[test]
    fn times_that_make_no_sense_are_drawn_all_the_same() {
        let nothing = trace(&json!([{"traceId": "f", "id": "1"}, {"traceId": "f", "id": "2", "parentId": "1"}]));
        assert_eq!((nothing.start_us(), nothing.duration_us()), (0, 0));
        assert!(render_rows(&nothing, &WIDE).lines().last().unwrap().ends_with("?        ?"), "{}", render_rows(&nothing, &WIDE));
        let all = trace(&json!([{"traceId": "f", "id": "1", "timestamp": 1, "duration": u64::MAX}]));
        assert_eq!(all.duration_us(), u64::MAX - 1);
        assert!(render_rows(&all, &WIDE).contains("999999d"));
    }

    #[test]
    fn a_trace_of_thousands_is_cut_and_counted_however_it_is_shaped() {
        for chained in [true, false] {
            let spans: Value = (1..=5000)
                .map(|n| {
                    let parent = (n > 1).then(|| format!("{:x}", if chained { n - 1 } else { 1 }));
                    span(&format!("{n:x}"), parent.as_deref(), "CLIENT", &format!("service{n}"), n, 5)
                })
                .collect();
            let text = render(&trace(&spans), &WIDE);
            assert!(text.contains("... and 4800 more spans") && text.contains("... and 4984 more calls"));
            assert!(text.lines().count() < 800, "{}", text.lines().count());
        }
    }

    #[test]
    fn failed_spans_and_orphans_are_marked() {
        let mut spans = chain();
        spans[0]["tags"] = json!({"http.status_code": "503", "error": "503"});
        spans[3]["parentId"] = json!("dead");
        spans[4]["tags"] = json!({"error": "connection refused"});
        let trace = trace(&spans);
        assert!(row_with(&trace, &["service2", "server"]).ends_with("503 ✗"));
        assert!(row_with(&trace, &["service2", "client"]).ends_with("err ✗"));
        assert!(row_with(&trace, &["service3", "server"]).starts_with("? service3"));
        assert!(row_with(&trace, &["2 errors", "1 orphan"]).starts_with("trace 4bf9"));
        row_with(&trace, &["? service3 server GET /service3 says that span 000000000000dead called it."]);
    }

    #[test]
    fn the_ids_show_who_is_whose_parent_and_every_call_shows_how_its_id_travelled() {
        let text = render_ties(&trace(&chain()), &WIDE);
        for line in [
            "  00f067aa0ba902b7   none, the root    service1 server GET /service1",
            "  b7ad6b7169203331 ← 53995c3f42cd8ad8  service2 server GET /service2",
            "  service1 → service2",
            "      traceparent        00-4bf92f3577b34da6a3ce929d0e0e4736-53995c3f42cd8ad8-01",
            "    service2 made 53995c3f42cd8ad8 the parent of its own span b7ad6b7169203331",
            "  service2 → service3",
        ] {
            assert!(text.lines().any(|drawn| drawn == line), "no line {line:?} in\n{text}");
        }
    }

    #[test]
    fn a_call_without_a_server_span_and_a_shared_id_are_told() {
        let mut served = span("2", Some("1"), "SERVER", "service2", 5, 10);
        served["shared"] = json!(true);
        let text = render_ties(
            &trace(&json!([
                span("1", None, "SERVER", "service1", 0, 100),
                span("2", Some("1"), "CLIENT", "service1", 1, 50),
                span("3", Some("1"), "CLIENT", "service1", 60, 5),
                served,
            ])),
            &WIDE,
        );
        assert!(text.contains("← shares its id"), "{text}");
        assert!(text.contains("service2 took 0000000000000002 over as the id of its own half of the call"), "{text}");
        assert!(text.contains("service1 → no server span"), "{text}");
    }

    #[test]
    fn with_the_reply_the_very_headers_that_were_sent_are_shown() {
        let hop = |service: &str, upstreams: Value| {
            json!({"service": service, "version": "v1", "lane": "base", "hostname": "h", "message": "", "path": "/", "status": 200,
                "started_at": "2026-01-02T03:04:05.678901Z", "duration_ms": 1.0, "request_id": "r", "trace_id": null, "span_id": null,
                "parent_span_id": null, "sampled": true, "propagation": "continue", "received": {},
                "client": {"ip": "127.0.0.1", "identity": null}, "attempt": 1, "injected": null, "upstreams": upstreams})
        };
        let call = |sent: Value, reply: Value| json!([{"url": "http://x", "status": 200, "duration_ms": 1.0, "error": null, "sent": sent, "reply": reply}]);
        let second = hop("service2", call(json!({"b3": ["4bf92f3577b34da6a3ce929d0e0e4736-3b9aca0012345678-1"]}), Value::Null));
        let sent = json!({
            "x-b3-spanid": ["53995c3f42cd8ad8"], "x-b3-parentspanid": ["00f067aa0ba902b7"], "x-b3-sampled": ["1\u{1b}[31m"],
            "x-request-id": ["r"], "x-b3-traceid": ["4bf92f3577b34da6a3ce929d0e0e4736"]
        });
        let first = hop("service1", call(sent, second));
        let reply = Tree::parse(first.to_string().as_bytes()).unwrap();
        let text = render_ties(&trace(&chain()).with_reply(&reply), &WIDE);
        let expected = "  service1 → service2
    sent in the headers of the call:
      x-b3-traceid       4bf92f3577b34da6a3ce929d0e0e4736
      x-b3-spanid        53995c3f42cd8ad8
      x-b3-parentspanid  00f067aa0ba902b7
      x-b3-sampled       1\\u{1b}[31m
    service2 made";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("      b3                 4bf92f3577b34da6a3ce929d0e0e4736-3b9aca0012345678-1\n"), "{text}");
        assert!(!text.contains("in one of these headers"), "{text}");
    }

    #[test]
    fn a_service_keeps_its_colour_and_shares_it_with_no_other() {
        let names = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect::<Vec<Box<str>>>();
        let (one, other) = (names(&["service1", "service2", "service3"]), names(&["service3", "service1", "service2"]));
        assert_eq!(service_colours(&one), service_colours(&other), "whatever order they came in");
        let eight = names(&["a", "b", "c", "d", "e", "f", "g", "h"]);
        assert_eq!(service_colours(&eight).values().collect::<HashSet<_>>().len(), 8);
        let text = render_rows(&trace(&chain()), &Style { colour: true, ..WIDE });
        for colour in service_colours(&one).values() {
            assert!(text.contains(&format!("\x1b[{colour}m")), "{text}");
        }
    }

    #[test]
    fn a_whole_chain_is_complete_and_every_deviation_has_its_sentence() {
        let verdict = Verdict::of(&[trace(&chain())], Expectation::of_hops(3));
        assert!(verdict.complete());
        assert_eq!((verdict.traces, verdict.services, verdict.spans, verdict.orphans), (1, 3, 5, 0));
        assert_eq!(verdict.render(&WIDE), "✓ complete  1 trace, 3 services, 5 spans, no orphan\n");
        assert_eq!(verdict.render(&Style::default()), "complete  1 trace, 3 services, 5 spans, no orphan\n");

        let told = |traces: &[Trace], hops: usize| Verdict::of(traces, Expectation::of_hops(hops)).deviations;
        assert!(told(&[], 3)[0].starts_with("No trace arrived"));
        assert_eq!(told(&[], 3).len(), 1);
        let short = told(&[trace(&chain())], 4);
        assert!(short[0].starts_with("3 services instead of 4 reported (service1, service2, service3)"), "{short:?}");
        assert!(short[1].starts_with("5 spans instead of 7 arrived"), "{short:?}");
        let many = told(&[trace(&chain())], 2);
        assert!(many[0].contains("somebody else") && many[1].contains("more than once"), "{many:?}");

        let mut torn = chain();
        torn[3]["parentId"] = json!("dead");
        let torn = told(&[trace(&torn)], 3);
        assert_eq!(torn.len(), 1, "{torn:?}");
        assert!(torn[0].starts_with("Span a2fb4a1d1a96d312 of service3 server GET /service3 names the parent 000000000000dead"));

        let mut called = chain();
        called[2]["parentId"] = json!("dead");
        let called = told(&[trace(&called)], 3);
        assert!(called[0].contains("the caller sent its id along"), "{called:?}");

        let mut two_roots = chain();
        two_roots[3]["parentId"] = Value::Null;
        assert!(told(&[trace(&two_roots)], 3)[0].starts_with("2 spans of trace 4bf9"));

        let apart: Vec<Value> = chain().as_array().unwrap().clone();
        let (mut front, mut back) = (apart[..3].to_vec(), apart[3..].to_vec());
        front.swap(0, 1);
        back.iter_mut().for_each(|span| span["traceId"] = json!("beef"));
        let apart = Verdict::of(&[trace(&front.into()), trace(&back.into())], Expectation::of_hops(3));
        assert_eq!((apart.traces, apart.services, apart.spans, apart.orphans), (2, 3, 5, 1));
        assert!(apart.deviations[0].starts_with("The request became 2 traces instead of 1"), "{apart:?}");
    }

    #[test]
    fn a_cut_trace_says_so() {
        let store = Store::with_limits(crate::demo::store::Limits { trace_spans: 4, ..Default::default() });
        store.insert(decode(chain().to_string().as_bytes(), 10).unwrap());
        let id = "4bf92f3577b34da6a3ce929d0e0e4736".parse().unwrap();
        let trace = Trace::load(&store, id).unwrap();
        assert!(render(&trace, &WIDE).contains("The store cut this trace: 1 reports of spans were not kept."));
        let verdict = Verdict::of(&[trace], Expectation { services: 3, spans: 4 });
        assert!(verdict.deviations.iter().any(|told| told.contains("The store cut trace")), "{verdict:?}");
        assert!(Trace::load(&store, "1".parse().unwrap()).is_none());
    }
}
