//! The waterfall: a row per span with its bar to scale.

use crate::demo::terminal::canvas::*;
use crate::telemetry::client_tracing::SERVICE;
use crate::traces::ids::zipkin_id;
use crate::traces::{Kind, PlacedSpan, Span, Trace};

/// Where the columns of the waterfall are.
pub(crate) struct Layout {
    label: usize,
    kind_at: usize,
    kind: usize,
    bar_at: usize,
    pub(crate) bar: usize,
    start_end: usize,
    took_end: usize,
    status_at: usize,
    /// Columns per level of the tree, and how many the tree may take at all.
    step: usize,
    rails: usize,
    axis: Axis,
}

impl Layout {
    pub(crate) fn of(trace: &Trace, rows: &[PlacedSpan], style: &Style) -> Self {
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
            let orphan = if trace.is_orphan(row) { 2 } else { 0 };
            (row.depth * step).min(rails) + display_width(&service_of(row, most, style.unicode)) + 1 + name + orphan
        });
        let label = needed.max().unwrap_or(0).clamp(12, most);
        let kind_at = label + gap;
        let bar_at = kind_at + kind + gap;
        let bar = style.width - bar_at - 3 * gap - 2 * TIME - STATUS;
        let start_end = bar_at + bar + gap + TIME;
        let took_end = start_end + gap + TIME;
        let axis = Axis::new(trace.duration_us(), bar);
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
pub(crate) struct Axis {
    total_us: u64,
    pub(crate) ticks: Vec<(usize, String)>,
}

impl Axis {
    pub(crate) fn new(total_us: u64, width: usize) -> Self {
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
pub(crate) enum Cell {
    Free,
    Grid,
    Bar(char),
}

/// The bar of one span: filled to an eighth of a column at its end, and to what there are characters for at its beginning.
pub(crate) fn bar(span: &Span, trace: &Trace, layout: &Layout, unicode: bool) -> Vec<Cell> {
    let mut cells = vec![Cell::Free; layout.bar];
    for (column, _) in &layout.axis.ticks {
        if let Some(cell) = cells.get_mut(*column) {
            *cell = Cell::Grid;
        }
    }
    let (Some(begin), true) = (span.timestamp, layout.axis.total_us > 0) else { return cells };
    let full = layout.bar as u128 * 8;
    let eighth = |us: u64| u128::from(us).saturating_mul(full) / u128::from(layout.axis.total_us);
    let begin = begin.saturating_sub(trace.start_us());
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

/// The waterfall alone: a header line, and a row per span with its bar to scale. Ends with a newline.
pub fn render_rows(trace: &Trace, style: &Style) -> String {
    let style = style.usable();
    let mut canvas = Canvas::new(&style);
    let colours = service_colours(trace.services());
    head(&mut canvas, trace);
    canvas.blank();
    rows(&mut canvas, trace, &|row| colour_of(row, &colours));
    canvas.out
}

fn head(canvas: &mut Canvas<'_>, trace: &Trace) {
    let mut line = canvas.line();
    line.put(DIM, "trace ").put(BOLD, &zipkin_id(trace.id()));
    // With a count of everything the line can be 100 columns long.
    if canvas.style.width < NARROW {
        canvas.end(line);
        line = canvas.line();
    } else {
        line.put(PLAIN, "  ");
    }
    let dot = canvas.style.pick(" · ", ", ");
    // The report of who sent the request is drawn, and counts as no service that took part in it.
    let own = usize::from(trace.rows().first().is_some_and(is_callers));
    line.put(PLAIN, &counted(trace.services().len().saturating_sub(own), "service")).put(DIM, dot);
    line.put(PLAIN, &counted(trace.rows().len() - own, "span")).put(DIM, dot);
    line.put(PLAIN, &time(trace.duration_us()));
    if trace.errors() > 0 {
        line.put(DIM, dot).put(BAD, &counted(trace.errors(), "error"));
    }
    if trace.orphans() > 0 {
        line.put(DIM, dot).put(WARN, &counted(trace.orphans(), "orphan"));
    }
    canvas.end(line);
}

/// Whether a span is what `check` or the demo reports of its own request.
pub(crate) fn is_callers(row: &PlacedSpan) -> bool {
    row.parent.is_none() && row.span.kind == Some(Kind::Client) && row.span.service() == Some(SERVICE)
}

fn rows(canvas: &mut Canvas<'_>, trace: &Trace, colour: &dyn Fn(&PlacedSpan) -> &'static str) {
    let style = canvas.style;
    let shown = &trace.rows()[..trace.rows().len().min(MAX_ROWS)];
    let layout = Layout::of(trace, shown, style);

    axis(canvas, &layout);
    let mut open: Vec<bool> = Vec::new();
    for row in shown {
        let rails = rails(row, &mut open, &layout, style);
        span_line(canvas, trace, row, &rails, &layout, colour(row));
    }
    if trace.rows().len() > shown.len() {
        canvas.one(DIM, &format!("... and {} more spans", trace.rows().len() - shown.len()));
    }
    if trace.dropped() > 0 {
        canvas.one(WARN, &format!("The store cut this trace: {} reports of spans were not kept.", trace.dropped()));
    }
    for note in trace.notes() {
        canvas.paragraph("", "", &clean(&note, usize::MAX, style.unicode));
    }
    for row in shown.iter().filter(|row| trace.is_orphan(row)).take(5) {
        let parent = row.missing_parent.map(|id| id.to_string()).unwrap_or_default();
        let why = if trace.names_descendant(row) {
            "That span stands below it: the two name each other."
        } else {
            "Nobody reported that span."
        };
        let text = format!("{} says that span {parent} called it. {why}", title(row, style.unicode));
        canvas.paragraph("? ", "  ", &text);
    }
}

/// The line above the rows, with the labels of the axis.
fn axis(canvas: &mut Canvas<'_>, layout: &Layout) {
    let mut line = canvas.line();
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
    canvas.end(line);
}

/// The line of one span, its bar in `colour`.
fn span_line(canvas: &mut Canvas<'_>, trace: &Trace, row: &PlacedSpan, rails: &str, layout: &Layout, colour: &str) {
    let style = canvas.style;
    let mut line = canvas.line();
    line.put(DIM, rails);
    if trace.is_orphan(row) {
        line.put(WARN, "? ");
    }
    let room = layout.label.saturating_sub(line.width);
    let service = service_of(row, room, style.unicode);
    line.put(colour, &service);
    let room = layout.label.saturating_sub(line.width + 1);
    if room > 1 {
        line.put(PLAIN, " ").put(PLAIN, &clean(row.span.name.as_deref().unwrap_or_default(), room, style.unicode));
    }
    line.pad_to(layout.kind_at).put(DIM, layout.kind(row.span.kind)).pad_to(layout.bar_at);

    let failed = row.span.is_error();
    let cells = bar(&row.span, trace, layout, style.unicode);
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
            Cell::Bar(_) => colour,
            _ => DIM,
        };
        line.put(sgr, &text);
    }
    let start = row.span.timestamp.map_or_else(|| "?".into(), |at| time(at.saturating_sub(trace.start_us())));
    line.right(DIM, &start, layout.start_end);
    line.right(PLAIN, &row.span.duration.map_or_else(|| "?".into(), time), layout.took_end).pad_to(layout.status_at);
    let status = row.span.http_status().map_or_else(String::new, |status| status.to_string());
    if failed {
        line.put(
            BAD,
            &format!("{}{}", if status.is_empty() { "err ".into() } else { format!("{status} ") }, style.pick("✗", "!")),
        );
    } else {
        line.put(DIM, &status);
    }
    canvas.end(line);
}

/// The lines of the tree before a row. `open` says for each level above whether a sibling is still to come.
fn rails(row: &PlacedSpan, open: &mut Vec<bool>, layout: &Layout, style: &Style) -> String {
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
        text.push_str(if row.is_last { style.pick("└", "`") } else { style.pick("├", "|") });
        if layout.step > 1 {
            text.push_str(style.pick("╴", "-"));
        }
    }
    open.push(!row.is_last);
    text
}
