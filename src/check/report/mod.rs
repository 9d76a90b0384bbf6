//! What `check` found, and its three forms: text for a terminal of 80 columns, JSON, JUnit.
//!
//! Text is written finding by finding while the run goes on; the other forms when it ends.

pub(crate) mod watch;

use std::fmt::Write as _;
use std::io::Write as _;

use serde::Serialize;

use crate::hop::reply::plain;

/// The parts of a run, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Group {
    /// DNS, TCP, TLS, HTTP.
    Reach,
    /// The hops, in their order.
    Chain,
    /// What happens to headers between them.
    Propagation,
    /// What the trace backend holds.
    Traces,
    /// Swim lanes.
    Lanes,
    /// Statistics over many requests.
    Traffic,
    /// Constant load during a rollout.
    Watch,
}

impl Group {
    fn title(self) -> &'static str {
        match self {
            Self::Reach => "Reach",
            Self::Chain => "Chain",
            Self::Propagation => "Propagation",
            Self::Traces => "Traces",
            Self::Lanes => "Lanes",
            Self::Traffic => "Traffic",
            Self::Watch => "Rollout watch",
        }
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// ✓
    Pass,
    /// ✗
    Fail,
    /// - : not judged; the text says why.
    Skip,
}

impl Status {
    fn mark(self) -> &'static str {
        match self {
            Self::Pass => "✓",
            Self::Fail => "✗",
            Self::Skip => "-",
        }
    }
}

/// Which of the three sides of a seam is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Side {
    /// The hop before the seam did not send what it received.
    Hop,
    /// The hop before sent it and the one behind did not receive it: something between them.
    Between,
    /// The hop behind the seam received a trace and started another.
    NewTrace,
}

/// Where between two hops something happened. `from` is `check` for the first hop's caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Seam {
    /// The hop that calls.
    pub(crate) from: String,
    /// The hop that is called.
    pub(crate) to: String,
    /// The side at fault; `None` where a call failed and no header is in question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) side: Option<Side>,
}

/// A likely cause and the commands that settle it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) cause: String,
    pub(crate) next: Vec<String>,
}

impl Hint {
    pub(crate) fn new(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), next: Vec::new() }
    }

    pub(crate) fn run(mut self, command: impl Into<String>) -> Self {
        self.next.push(command.into());
        self
    }
}

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    pub(crate) group: Group,
    /// A stable name for machines, and for `--skip`: `reach.tls`.
    pub(crate) id: &'static str,
    pub(crate) status: Status,
    /// One sentence.
    pub(crate) text: String,
    /// What stands below it: tables and evidence, shown as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) detail: Vec<String>,
    /// The likely cause of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<String>,
    /// The next commands to run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) next: Vec<String>,
    /// The seam at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seam: Option<Seam>,
    /// The hop in question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hop: Option<String>,
    /// Figures for machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<serde_json::Value>,
}

impl Finding {
    fn new(group: Group, id: &'static str, status: Status, text: impl Into<String>) -> Self {
        Self {
            group,
            id,
            status,
            text: text.into(),
            detail: Vec::new(),
            cause: None,
            next: Vec::new(),
            seam: None,
            hop: None,
            data: None,
        }
    }

    pub(crate) fn pass(group: Group, id: &'static str, text: impl Into<String>) -> Self {
        Self::new(group, id, Status::Pass, text)
    }

    pub(crate) fn fail(group: Group, id: &'static str, text: impl Into<String>, hint: Hint) -> Self {
        Self { cause: Some(hint.cause), next: hint.next, ..Self::new(group, id, Status::Fail, text) }
    }

    /// `text` says what was not judged and why.
    pub(crate) fn skip(group: Group, id: &'static str, text: impl Into<String>) -> Self {
        Self::new(group, id, Status::Skip, text)
    }

    pub(crate) fn line(mut self, line: impl Into<String>) -> Self {
        self.detail.push(line.into());
        self
    }

    pub(crate) fn lines(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.detail.extend(lines);
        self
    }

    pub(crate) fn seam(mut self, from: &str, to: &str, side: Option<Side>) -> Self {
        self.seam = Some(Seam { from: from.to_owned(), to: to.to_owned(), side });
        self
    }

    pub(crate) fn hop(mut self, hop: &str) -> Self {
        self.hop = Some(hop.to_owned());
        self
    }

    pub(crate) fn data(mut self, data: serde_json::Value) -> Self {
        self.data = Some(data);
        self
    }

    /// The same without a failure: what was found, the cause, the next step, and no verdict.
    pub(crate) fn only_told(mut self) -> Self {
        self.status = Status::Skip;
        self
    }
}

/// The forms of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// One line per check, for people.
    #[default]
    Text,
    /// One object.
    Json,
    /// A test suite per group, for CI.
    Junit,
}

/// Collects findings; in text form it writes them as they come.
pub(crate) struct Report {
    target: String,
    output: Output,
    /// Ids that the user does not want judged.
    skip: Vec<String>,
    color: bool,
    findings: Vec<Finding>,
    started: std::time::Instant,
    interrupted: bool,
    out: Box<dyn std::io::Write + Send>,
}

const WIDTH: usize = 80;

impl Report {
    pub(crate) fn new(
        target: String,
        output: Output,
        skip: Vec<String>,
        color: bool,
        out: Box<dyn std::io::Write + Send>,
    ) -> Self {
        let mut report = Self {
            target,
            output,
            skip,
            color,
            findings: Vec::new(),
            started: std::time::Instant::now(),
            interrupted: false,
            out,
        };
        if output == Output::Text {
            let title = format!("httpserver check {}\n", plain(&report.target));
            report.write(&title);
        }
        report
    }

    /// A reader that hung up is no reason to fail: the exit code still tells the verdict.
    fn write(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }

    pub(crate) fn add(&mut self, mut finding: Finding) {
        if finding.status == Status::Fail
            && self.skip.iter().any(|id| finding.id == id || finding.id.starts_with(&format!("{id}.")))
        {
            finding = finding.only_told();
            finding.detail.insert(0, "not judged (--skip)".to_owned());
        }
        if self.output == Output::Text {
            let mut text = String::new();
            if self.findings.last().is_none_or(|last| last.group != finding.group) {
                let _ = writeln!(text, "\n{}", self.paint("1", finding.group.title()));
            }
            self.render(&mut text, &finding);
            self.write(&text);
        }
        self.findings.push(finding);
    }

    pub(crate) fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        for finding in findings {
            self.add(finding);
        }
    }

    pub(crate) fn interrupt(&mut self) {
        self.interrupted = true;
    }

    pub(crate) fn failed(&self) -> bool {
        self.count(Status::Fail) > 0
    }

    /// Nothing failed, and the run came to its end.
    pub(crate) fn is_fine(&self) -> bool {
        !self.failed() && !self.interrupted
    }

    fn count(&self, status: Status) -> usize {
        self.findings.iter().filter(|finding| finding.status == status).count()
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn render(&self, out: &mut String, finding: &Finding) {
        let code = match finding.status {
            Status::Pass => "32",
            Status::Fail => "31",
            Status::Skip => "2",
        };
        let lines = wrap(&plain(&finding.text), WIDTH - 4);
        for (i, line) in lines.iter().enumerate() {
            match i {
                0 => {
                    let _ = writeln!(out, "  {} {line}", self.paint(code, finding.status.mark()));
                }
                _ => {
                    let _ = writeln!(out, "    {line}");
                }
            }
        }
        for line in &finding.detail {
            let _ = writeln!(out, "      {}", plain(line));
        }
        if let Some(cause) = &finding.cause {
            for (i, line) in wrap(&plain(cause), WIDTH - 13).iter().enumerate() {
                let _ = writeln!(out, "      {}{line}", if i == 0 { "cause  " } else { "       " });
            }
        }
        for (i, command) in finding.next.iter().enumerate() {
            let _ = writeln!(out, "      {}{}", if i == 0 { "next   " } else { "       " }, plain(command));
        }
    }

    /// The verdict in one line.
    pub(crate) fn verdict(&self) -> String {
        let (passed, failed, skipped) = (self.count(Status::Pass), self.count(Status::Fail), self.count(Status::Skip));
        let judged = passed + failed;
        let so_far = if self.interrupted { "interrupted, so far " } else { "" };
        if failed == 0 {
            let state = if self.interrupted { "nothing broken" } else { "healthy" };
            return format!("{so_far}{state}: {passed} checks passed, {skipped} skipped");
        }
        let failures = || self.findings.iter().filter(|finding| finding.status == Status::Fail);
        let main = failures().find(|finding| finding.seam.is_some()).or_else(|| failures().next());
        let main = main.map_or_else(String::new, |finding| format!(". {}", finding.text));
        format!("{so_far}broken: {failed} of {judged} checks failed, {skipped} skipped{main}")
    }

    /// Writes what is still to be written: the verdict line, or the whole report in the other forms.
    pub(crate) fn finish(&mut self) {
        let text = match self.output {
            Output::Text => {
                let code = if self.is_fine() { "1;32" } else { "1;31" };
                let mut text = String::from("\n");
                for (i, line) in wrap(&plain(&self.verdict()), WIDTH - 9).iter().enumerate() {
                    let head = if i == 0 { self.paint(code, "Verdict") } else { " ".repeat(7) };
                    let _ = writeln!(text, "{head}  {line}");
                }
                text
            }
            Output::Json => self.json(),
            Output::Junit => self.junit(),
        };
        self.write(&text);
    }

    fn json(&self) -> String {
        let report = serde_json::json!({
            "target": self.target,
            "ok": self.is_fine(),
            "interrupted": self.interrupted,
            "verdict": self.verdict(),
            "passed": self.count(Status::Pass),
            "failed": self.count(Status::Fail),
            "skipped": self.count(Status::Skip),
            "duration_ms": self.started.elapsed().as_millis() as u64,
            "checks": self.findings,
        });
        format!("{report:#}\n")
    }

    fn junit(&self) -> String {
        let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let _ = writeln!(
            out,
            "<testsuites name=\"httpserver check\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" errors=\"{}\" time=\"{:.3}\">",
            self.findings.len() + usize::from(self.interrupted),
            self.count(Status::Fail),
            self.count(Status::Skip),
            usize::from(self.interrupted),
            self.started.elapsed().as_secs_f64()
        );
        let mut groups: Vec<Group> = self.findings.iter().map(|finding| finding.group).collect();
        groups.dedup();
        for group in groups {
            let of_group: Vec<&Finding> = self.findings.iter().filter(|finding| finding.group == group).collect();
            let count = |status| of_group.iter().filter(|finding| finding.status == status).count();
            let _ = writeln!(
                out,
                "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" errors=\"0\">",
                escape(group.title()),
                of_group.len(),
                count(Status::Fail),
                count(Status::Skip)
            );
            for finding in of_group {
                let _ = write!(out, "    <testcase classname=\"{}\" name=\"{}\"", finding.id, escape(&finding.text));
                let mut more = finding.detail.clone();
                more.extend(finding.cause.iter().map(|cause| format!("cause: {cause}")));
                more.extend(finding.next.iter().map(|next| format!("next: {next}")));
                let more = escape(&more.join("\n"));
                let _ = match finding.status {
                    Status::Pass => writeln!(out, "/>"),
                    Status::Skip => writeln!(out, "><skipped message=\"{}\"/></testcase>", escape(&finding.text)),
                    Status::Fail => {
                        writeln!(out, "><failure message=\"{}\">{more}</failure></testcase>", escape(&finding.text))
                    }
                };
            }
            let _ = writeln!(out, "  </testsuite>");
        }
        if self.interrupted {
            out.push_str("  <testsuite name=\"Run\" tests=\"1\" failures=\"0\" skipped=\"0\" errors=\"1\">\n");
            out.push_str(
                "    <testcase classname=\"run\" name=\"the run came to its end\"><error message=\"interrupted\"/></testcase>\n",
            );
            out.push_str("  </testsuite>\n");
        }
        out.push_str("</testsuites>\n");
        out
    }
}

/// Text for an XML attribute or element: markup escaped, characters that XML 1.0 forbids replaced.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Breaks text at spaces so that no line has more than `width` characters; a longer word stands alone and stays whole.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines.push(String::new());
            used = 0;
        }
        let Some(line) = lines.last_mut() else { continue };
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += length;
    }
    lines
}

/// A progress line on standard error, for a person who waits. Does nothing when standard error is no terminal, or one that knows
/// no control sequences.
pub(crate) struct Progress {
    on: bool,
    /// When the line was last drawn.
    drawn: std::sync::Mutex<Option<std::time::Instant>>,
}

impl Progress {
    /// How long a line stands at least: a terminal at the other end of the world need not draw every request.
    const STANDS: std::time::Duration = std::time::Duration::from_millis(50);

    pub(crate) fn new(is_terminal: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { on: is_terminal && !dumb, drawn: std::sync::Mutex::new(None) }
    }

    /// `done` of `all`, and what is being done.
    pub(crate) fn show(&self, what: &str, done: u64, all: u64) {
        if !self.on {
            return;
        }
        let mut drawn = self.drawn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if done < all && drawn.is_some_and(|at| at.elapsed() < Self::STANDS) {
            return;
        }
        *drawn = Some(std::time::Instant::now());
        const CELLS: u64 = 24;
        let filled = (CELLS * done.min(all)).checked_div(all).unwrap_or(0);
        let bar: String = (0..CELLS).map(|cell| if cell < filled { '█' } else { '░' }).collect();
        // Without wrapping, so that a window narrower than the line has one line to take away again.
        let _ = write!(std::io::stderr(), "\r\u{1b}[2K\u{1b}[?7l  {bar} {done}/{all} {what}\u{1b}[?7h");
        let _ = std::io::stderr().flush();
    }

    /// Takes the line away, if there is one.
    pub(crate) fn clear(&self) {
        let mut drawn = self.drawn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if drawn.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\u{1b}[2K");
            let _ = std::io::stderr().flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn run(output: Output, skip: &[&str]) -> (String, Report) {
        let page = Page::default();
        let skip = skip.iter().map(|id| (*id).to_owned()).collect();
        let mut report = Report::new("http://x/service1".into(), output, skip, false, Box::new(page.clone()));
        report.add(Finding::pass(Group::Reach, "reach.tcp", "TCP 10.0.0.5:443 accepts"));
        report.add(Finding::skip(Group::Reach, "reach.hsts", "HSTS: skipped, because the URL is plain HTTP"));
        report.add(
            Finding::fail(
                Group::Propagation,
                "propagation.headers",
                "Trace broke between service2 and service3: service2 received \"traceparent\" & <b3> and did not send them\u{1b}[31m",
                Hint::new("DROP_HEADERS names them").run("kubectl get deploy service2 -n httpserver -o yaml | grep -A1 DROP_HEADERS"),
            )
            .seam("service2", "service3", Some(Side::Hop)),
        );
        report.finish();
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        (text, report)
    }

    #[test]
    fn text_fits_80_columns_and_sends_no_control_character() {
        let (text, report) = run(Output::Text, &[]);
        assert!(text.lines().all(|line| line.chars().count() <= 80 || line.contains("kubectl")), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        for part in [
            "\nReach\n  ✓ TCP",
            "  - HSTS",
            "  ✗ Trace broke between",
            "cause  DROP",
            "next   kubectl",
            "Verdict  broken: 1 of 2",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!report.is_fine());
    }

    #[test]
    fn json_holds_the_seam_and_its_side() {
        let (text, _) = run(Output::Json, &[]);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["ok"], false);
        assert_eq!(json["checks"][2]["seam"], serde_json::json!({"from": "service2", "to": "service3", "side": "hop"}));
    }

    #[test]
    fn junit_is_well_formed_whatever_the_text_holds() {
        let (text, _) = run(Output::Junit, &[]);
        assert!(text.contains("tests=\"3\" failures=\"1\" skipped=\"1\""), "{text}");
        assert!(text.contains("&quot;traceparent&quot; &amp; &lt;b3&gt;") && !text.contains('\u{1b}'), "{text}");
        assert_eq!(text.matches("<testcase").count(), 3);
    }

    #[test]
    fn a_skipped_id_is_told_but_not_judged() {
        let (text, report) = run(Output::Text, &["propagation"]);
        assert!(report.is_fine(), "{text}");
        assert!(text.contains("not judged (--skip)"), "{text}");
    }

    #[test]
    fn an_interrupted_run_is_not_fine() {
        let mut report = Report::new("x".into(), Output::Json, Vec::new(), false, Box::new(Page::default()));
        report.add(Finding::pass(Group::Reach, "reach.tcp", "TCP"));
        assert!(report.is_fine());
        report.interrupt();
        assert!(!report.is_fine() && report.verdict().starts_with("interrupted"), "{}", report.verdict());
    }
}
