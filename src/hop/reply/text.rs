//! The text form of a reply, for people: a line per hop, and below a hop that calls nobody the headers it received.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::{Call, Injected, Tree};
use crate::text::plain;
use crate::values::BASE_LANE;

impl Tree {
    /// The tree for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write_text(&mut text, "", "");
        text
    }

    /// The same with a last line that makes it as long as `size`, where it is shorter.
    pub(crate) fn to_padded_text(&self, size: usize) -> String {
        const PADDING: &str = "  padding: ";
        let mut text = self.to_text();
        if let Some(missing) = size.checked_sub(text.len() + PADDING.len() + 1) {
            text.extend([PADDING, &"x".repeat(missing), "\n"]);
        }
        text
    }

    /// Appends the hop, its line behind `head`, and everything below it, each line behind `below`. By recursion: `Tree::parse`
    /// bounds the depth.
    fn write_text(&self, out: &mut String, head: &str, below: &str) {
        self.write_hop(out, head);
        if head.is_empty() {
            let _ = writeln!(out, "{below}  {}", plain(&self.message));
            let trace = self.trace_id.as_deref().map_or(Cow::Borrowed("none"), plain);
            let _ = writeln!(out, "{below}  request {}  trace {trace}", plain(&self.request_id));
        }
        for (i, call) in self.upstreams.iter().enumerate() {
            let last = i + 1 == self.upstreams.len();
            let (branch, under) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            match &call.reply {
                Some(reply) => {
                    reply.write_text(out, &format!("{below}{branch}"), &format!("{below}{under}"));
                    if let Some(error) = &call.error {
                        let _ = writeln!(out, "{below}{under}✗ {}", plain(error));
                    }
                }
                None => {
                    write_call(call, out, &format!("{below}{branch}"));
                    for (i, reply) in call.embedded.iter().enumerate() {
                        let last = i + 1 == call.embedded.len();
                        let (inner, deeper) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                        reply.write_text(out, &format!("{below}{under}{inner}"), &format!("{below}{under}{deeper}"));
                    }
                }
            }
        }
        if self.upstreams.is_empty() && self.is_success() {
            let _ = writeln!(out, "{below}  received:");
            for (name, values) in &self.received.0 {
                for value in values {
                    let _ = writeln!(out, "{below}    {}: {}", plain(name), plain(value));
                }
            }
        }
    }

    /// Appends the hop's own line.
    fn write_hop(&self, out: &mut String, head: &str) {
        let _ = write!(
            out,
            "{head}{} {} {}  {}  {:.1}ms",
            plain(&self.service),
            plain(&self.version),
            plain(&self.hostname),
            self.status,
            self.duration_ms
        );
        if self.lane != BASE_LANE {
            let _ = write!(out, "  lane={}", plain(&self.lane));
        }
        if self.attempt > 1 {
            let _ = write!(out, "  attempt={}", self.attempt);
        }
        if let Some(Injected { delay_ms, abort_status, faults, breaks, error }) = &self.injected {
            out.push_str("  injected:");
            if let Some(ms) = delay_ms {
                let _ = write!(out, " delay={ms}ms");
            }
            if let Some(status) = abort_status {
                let _ = write!(out, " abort={status}");
            }
            for other in faults.iter().chain(breaks) {
                let _ = write!(out, " {other}");
            }
            if let Some(error) = error {
                let _ = write!(out, " nothing: {error}");
            }
        }
        out.push('\n');
    }
}

/// Appends the line of a call that has no reply.
fn write_call(call: &Call, out: &mut String, head: &str) {
    let _ = write!(out, "{head}{}  ", plain(&call.url));
    let _ = match call.status {
        Some(status) => write!(out, "{status}"),
        None => write!(out, "no answer"),
    };
    let _ = write!(out, "  {:.1}ms", call.duration_ms);
    let _ = match &call.error {
        Some(error) => writeln!(out, "  ✗ {}", plain(error)),
        None => writeln!(out, "  (not a hop of ours)"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hop::reply::Headers;
    use crate::hop::reply::tests::LEAF;

    #[test]
    fn the_text_names_the_broken_call_and_never_sends_a_control_character() {
        let mut tree = Tree::parse(LEAF.as_bytes()).unwrap();
        let text = tree.to_text();
        assert!(text.contains("lane=gray") && text.contains("attempt=2") && text.contains("delay=2000ms"), "{text}");
        assert!(text.contains("received:") && text.contains("x-request-id: r"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        tree.status = 502;
        tree.upstreams.push(Call {
            url: "http://service3/service3".into(),
            protocol: None,
            status: None,
            duration_ms: 1.0,
            error: Some("connection refused".into()),
            sent: Headers::default(),
            reply: None,
            embedded: Vec::new(),
        });
        let text = tree.to_text();
        assert!(text.contains("└─ http://service3/service3  no answer  1.0ms  ✗ connection refused"), "{text}");
    }
}
