//! The report as text for a terminal of 80 columns.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use crate::report::{Finding, Group, Report, Status};
use crate::text::{plain, terminal};

const WIDTH: usize = 80;

/// Where evidence, cause and commands begin.
const INDENT: &str = "      ";

/// Draws the parts of the report, in colour when standard output is a terminal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terminal {
    pub(crate) color: bool,
}

impl Terminal {
    fn paint(self, style: Style, text: &str) -> String {
        terminal::paint(self.color, style, text)
    }

    pub(crate) fn heading(self, group: Group) -> String {
        format!("\n{}\n", self.paint(Style::new().bold(), group.title()))
    }

    pub(crate) fn finding(self, finding: &Finding) -> String {
        let (mark, style) = match finding.status {
            Status::Pass => ("✓", AnsiColor::Green.on_default()),
            Status::Fail => ("✗", AnsiColor::Red.on_default()),
            Status::Skip => ("-", Style::new().dimmed()),
            Status::Follows => ("↳", Style::new().dimmed()),
        };
        let mut out = format!("  {} {}\n", self.paint(style, mark), wrapped(&finding.text, "    "));
        for line in &finding.detail {
            let _ = writeln!(out, "{INDENT}{}", plain(line));
        }
        if let Some(cause) = finding.follows {
            let place = if finding.group < cause.group() { "below" } else { "above" };
            let _ = writeln!(out, "{INDENT}follows from {}, {place}", cause.name());
        }
        let says_so = |object: &&String| finding.cause.as_ref().is_none_or(|cause| !cause.starts_with(*object));
        if let Some(object) = finding.object.as_ref().filter(says_so) {
            let _ = writeln!(
                out,
                "{INDENT}object {}{}",
                plain(object),
                finding.field.as_ref().map_or_else(String::new, |field| format!(": {}", plain(field)))
            );
        }
        if let Some(cause) = &finding.cause {
            let _ = writeln!(out, "{INDENT}cause  {}", wrapped(cause, "             "));
        }
        for (index, command) in finding.next.iter().enumerate() {
            let _ = writeln!(out, "{INDENT}{}{}", if index == 0 { "next   " } else { "       " }, plain(command));
        }
        out
    }

    pub(crate) fn verdict(self, report: &Report) -> String {
        let color = if report.is_fine() { AnsiColor::Green } else { AnsiColor::Red };
        let head = self.paint(color.on_default().bold(), "Verdict");
        format!("\n{head}  {}\n", wrapped(&report.verdict(), "         "))
    }
}

/// Text of a hop or a gateway, made safe for a terminal, after what takes the place of its indent in the first line.
fn wrapped(text: &str, indent: &str) -> String {
    let lines = terminal::wrapped(indent, indent, &plain(text), WIDTH);
    lines.strip_prefix(indent).unwrap_or(&lines).to_owned()
}
