//! What every drawing shares: how to draw, colours, widths of text, lines that know how wide they are.

use std::collections::HashMap;
use std::fmt::Write as _;

use unicode_width::UnicodeWidthChar as _;

pub(crate) use crate::text::counted;
use crate::text::escape::is_unsafe;
use crate::text::terminal::wrapped;
use crate::traces::{Kind, PlacedSpan};

/// Rows of a drawing; more are counted, not drawn. Beyond this nobody scrolls back.
pub(crate) const MAX_ROWS: usize = 200;

/// Below this many columns the waterfall gives up space between its columns and abbreviates kinds.
pub(crate) const NARROW: usize = 90;

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
    pub(crate) fn usable(&self) -> Self {
        Self { width: self.width.clamp(60, 160), ..*self }
    }

    pub(crate) fn pick<'a>(&self, unicode: &'a str, ascii: &'a str) -> &'a str {
        if self.unicode { unicode } else { ascii }
    }
}

// SGR parameters. An empty one writes the text as it is.
pub(crate) const PLAIN: &str = "";
pub(crate) const BOLD: &str = "1";
pub(crate) const DIM: &str = "2";
pub(crate) const BAD: &str = "1;31";
pub(crate) const WARN: &str = "33";
pub(crate) const GOOD: &str = "32";

/// Colours of services: distinct, and readable on a dark and on a light background. Red is reserved for errors.
pub(crate) const SERVICE_COLOURS: [&str; 8] =
    ["38;5;103", "38;5;168", "38;5;134", "38;5;71", "38;5;68", "38;5;172", "38;5;136", "38;5;37"];

/// A colour per service: the name's own as long as no other service of the trace has it, so that a service has the same colour
/// in every trace of its chain.
pub(crate) fn service_colours(services: &[Box<str>]) -> HashMap<&str, &'static str> {
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

/// Columns that a text takes on a terminal.
pub(crate) fn display_width(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// Text of others, safe on a terminal and at most `max` columns: control characters, and those that reorder or hide text,
/// are shown as escapes; what is too long is cut.
pub(crate) fn clean(text: &str, max: usize, unicode: bool) -> String {
    let mut out = String::new();
    let mut width = 0;
    let mut cut_at = 0;
    let mark = if unicode { '…' } else { '~' };
    for c in text.chars() {
        let before = out.len();
        // Joiners, too: what they join has another width.
        if is_unsafe(c) || matches!(c, '\u{200c}' | '\u{200d}') {
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
pub(crate) fn title(row: &PlacedSpan, unicode: bool) -> String {
    let kind = row.span.kind.map_or("local", Kind::as_str);
    let name = clean(row.span.name.as_deref().unwrap_or("(no name)"), 60, unicode);
    format!("{} {kind} {name}", service_of(row, 40, unicode))
}

pub(crate) fn service_of(row: &PlacedSpan, max: usize, unicode: bool) -> String {
    clean(row.span.service().unwrap_or("(no service)"), max, unicode)
}

pub(crate) fn colour_of(row: &PlacedSpan, colours: &HashMap<&str, &'static str>) -> &'static str {
    row.span.service().and_then(|name| colours.get(name).copied()).unwrap_or(PLAIN)
}

/// A length of time in at most 7 columns.
pub(crate) fn time(us: u64) -> String {
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
pub(crate) fn tick(us: u64) -> String {
    let (value, unit) = if us >= 1_000_000 { (us as f64 / 1e6, "s") } else { (us as f64 / 1e3, "ms") };
    format!("{value}{unit}")
}

/// A line that knows its width on the screen, whatever colours are in it.
pub(crate) struct Line {
    text: String,
    pub(crate) width: usize,
    colour: bool,
}

impl Line {
    pub(crate) fn put(&mut self, sgr: &str, text: &str) -> &mut Self {
        if self.colour && !sgr.is_empty() && !text.trim().is_empty() {
            let _ = write!(self.text, "\x1b[{sgr}m{text}\x1b[0m");
        } else {
            self.text.push_str(text);
        }
        self.width += display_width(text);
        self
    }

    pub(crate) fn pad_to(&mut self, column: usize) -> &mut Self {
        while self.width < column {
            self.text.push(' ');
            self.width += 1;
        }
        self
    }

    pub(crate) fn right(&mut self, sgr: &str, text: &str, column: usize) -> &mut Self {
        self.pad_to(column.saturating_sub(display_width(text))).put(sgr, text)
    }
}

pub(crate) struct Canvas<'a> {
    pub(crate) style: &'a Style,
    pub(crate) out: String,
}

impl<'a> Canvas<'a> {
    pub(crate) fn new(style: &'a Style) -> Self {
        Self { style, out: String::new() }
    }

    pub(crate) fn line(&self) -> Line {
        Line { text: String::new(), width: 0, colour: self.style.colour }
    }

    pub(crate) fn end(&mut self, line: Line) {
        self.out.push_str(line.text.trim_end());
        self.out.push('\n');
    }

    pub(crate) fn blank(&mut self) {
        self.out.push('\n');
    }

    pub(crate) fn one(&mut self, sgr: &str, text: &str) {
        let mut line = self.line();
        line.put(sgr, text);
        self.end(line);
    }

    /// Words broken to the width, the first line after `first`, the others after `rest`.
    pub(crate) fn paragraph(&mut self, first: &str, rest: &str, text: &str) {
        self.out.push_str(wrapped(first, rest, text, self.style.width).trim_end());
        self.blank();
    }
}
