//! What the terminal shows of a trace. All text in spans is from outside: here it loses its control characters and its length.

mod canvas;
mod id_links;
pub(crate) mod printer;
#[cfg(test)]
mod tests;
mod waterfall;

pub use canvas::Style;
pub use id_links::{SentHeaders, render_id_links, sent_headers};
pub use waterfall::render_rows;

use crate::traces::{Trace, Verdict};
use canvas::*;

/// Draws a trace: [`render_rows`], and below it [`render_id_links`]. Ends with a newline.
pub fn render(trace: &Trace, sent: &SentHeaders, style: &Style) -> String {
    format!("{}\n{}", render_rows(trace, style), render_id_links(trace, sent, style))
}

/// The verdict: one line when all is well, else a line below it for how the request failed and for each deviation. Ends with a newline.
pub fn render_verdict(verdict: &Verdict, style: &Style) -> String {
    let style = style.usable();
    let mut canvas = Canvas::new(&style);
    let counts = format!(
        "{}, {}, {}, {}",
        counted(verdict.traces.len(), "trace"),
        counted(verdict.services.len(), "service"),
        counted(verdict.spans, "span"),
        if verdict.orphans.is_empty() { "no orphan".into() } else { counted(verdict.orphans.len(), "orphan") }
    );
    let mut line = canvas.line();
    if verdict.whole {
        line.put(GOOD, style.pick("✓ complete", "complete"));
        line.put(BAD, if verdict.failure.is_some() { ", but the request failed" } else { "" });
    } else {
        line.put(BAD, style.pick("✗ not complete", "NOT COMPLETE"));
    }
    line.put(PLAIN, &format!("  {counts}"));
    canvas.end(line);
    canvas.out + &render_sentences(verdict.failure.iter().chain(&verdict.deviations), &style)
}

/// A line, or more, for each sentence.
pub(crate) fn render_sentences<'a>(sentences: impl Iterator<Item = &'a String>, style: &Style) -> String {
    let style = style.usable();
    let mut canvas = Canvas::new(&style);
    for sentence in sentences {
        canvas.paragraph("  - ", "    ", &clean(sentence, usize::MAX, style.unicode));
    }
    canvas.out
}
