//! What is written to a terminal: colours, and lines that are broken to a width.

use std::ffi::OsString;
use std::io::IsTerminal as _;

use anstyle::Style;
use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm};

/// Whether standard output is a terminal that shows colours, and the user has not refused them.
pub(crate) fn has_color() -> bool {
    std::io::stdout().is_terminal() && allows_color(|name| std::env::var_os(name))
}

fn allows_color(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    variable("NO_COLOR").is_none_or(|value| value.is_empty()) && knows_sequences(variable("TERM"))
}

/// Whether a terminal of this `TERM` knows control sequences.
pub(crate) fn knows_sequences(term: Option<OsString>) -> bool {
    term.is_none_or(|term| term != "dumb")
}

/// The text in this style, where there are colours.
pub(crate) fn paint(has_color: bool, style: Style, text: &str) -> String {
    if has_color { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

/// Text broken at spaces, the first line after `first`, the others after `rest`. A longer word stands alone and stays whole, so that it
/// can be copied.
pub(crate) fn wrapped(first: &str, rest: &str, text: &str, width: usize) -> String {
    let options = Options::new(width)
        .initial_indent(first)
        .subsequent_indent(rest)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit)
        .break_words(false);
    textwrap::fill(text, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_that_know_them_and_users_that_accept_them() {
        let of = |term: Option<&str>, no_color: Option<&str>| {
            allows_color(|name| if name == "TERM" { term } else { no_color }.map(Into::into))
        };
        assert!(of(Some("xterm"), None) && of(None, None) && of(Some("xterm"), Some("")));
        assert!(!of(Some("dumb"), None) && !of(Some("xterm"), Some("1")));
    }

    #[test]
    fn a_name_is_not_broken_at_its_hyphens() {
        let text = wrapped("  - ", "    ", "calls to my-service-with-a-long-name fail", 20);
        assert_eq!(text, "  - calls to\n    my-service-with-a-long-name\n    fail");
    }
}
