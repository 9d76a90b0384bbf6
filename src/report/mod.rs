//! The model of the report: findings and the verdict. The printers are `terminal`, `json` and `junit`; `ids` has the name of every
//! check.
//!
//! Text is written finding by finding while the run goes on; the other forms when it ends.

mod consequences;
pub(crate) mod ids;
mod json;
mod junit;
mod progress;
mod terminal;

use std::io::Write;
use std::time::Instant;

use serde::Serialize;

pub(crate) use ids::{CheckId, Group};
pub(crate) use progress::ProgressLine;

use crate::text::plain;
use consequences::{ANYWHERE, CONSEQUENCES};
use terminal::Terminal;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// ✓
    Pass,
    /// ✗
    Fail,
    /// - : not checked; the text says why.
    Skip,
    /// ↳ : not as it should be, because of a failure that the report already has. Counts as no failure of its own.
    Follows,
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
    pub(crate) id: CheckId,
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
    /// The object that is at fault, as read from the cluster: `DestinationRule httpserver/service2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) object: Option<String>,
    /// The field of that object: `spec.trafficPolicy.tls.mode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    /// The check whose failure this one follows from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) follows: Option<CheckId>,
    /// Figures for machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<serde_json::Value>,
    /// What the failed answer itself says of its cause.
    #[serde(skip)]
    pub(crate) own_cause: Option<OwnCause>,
}

/// A cause that an answer says by itself: no other trouble at that place brings such an answer about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnCause {
    /// A policy denies the caller.
    Denied,
    /// A token is missing.
    Unauthorized,
    /// A rate limit.
    Limited,
    /// The path is not served.
    NotFound,
    /// The fault injection of a proxy.
    Abort,
    /// The fault injection of the hop.
    Fault,
    /// A circle in the chain.
    Loop,
}

impl OwnCause {
    /// Whether other failures may follow from it: pods that answer 5xx on purpose are ejected, or repeated until time is up; a
    /// circle uses up the time of its callers.
    fn has_consequences(self) -> bool {
        matches!(self, Self::Abort | Self::Fault | Self::Loop)
    }
}

impl Finding {
    fn new(id: CheckId, status: Status, text: impl Into<String>) -> Self {
        Self {
            group: id.group(),
            id,
            status,
            text: text.into(),
            detail: Vec::new(),
            cause: None,
            next: Vec::new(),
            seam: None,
            hop: None,
            object: None,
            field: None,
            follows: None,
            data: None,
            own_cause: None,
        }
    }

    pub(crate) fn pass(id: CheckId, text: impl Into<String>) -> Self {
        Self::new(id, Status::Pass, text)
    }

    pub(crate) fn fail(id: CheckId, text: impl Into<String>, hint: Hint) -> Self {
        Self { cause: Some(hint.cause), next: hint.next, ..Self::new(id, Status::Fail, text) }
    }

    /// `text` says what was not checked and why.
    pub(crate) fn skip(id: CheckId, text: impl Into<String>) -> Self {
        Self::new(id, Status::Skip, text)
    }

    /// Whether it is a circle that this hop's call closes.
    pub(crate) fn is_loop_from(&self, hop: &str) -> bool {
        self.own_cause == Some(OwnCause::Loop) && self.seam.as_ref().is_some_and(|seam| seam.from == hop)
    }

    /// Not as it should be, by itself or because of another.
    fn is_broken(&self) -> bool {
        matches!(self.status, Status::Fail | Status::Follows)
    }

    /// Whether `cause` explains this failure: the same field of the same object, the same cause at the same
    /// place, or one whose consequence it is known to be.
    fn follows_from(&self, cause: &Self) -> bool {
        let is_object = self.object.is_some() && (&self.object, &self.field) == (&cause.object, &cause.field);
        if is_object || ((&self.cause, &self.seam) == (&cause.cause, &cause.seam) && self.hop == cause.hop) {
            return true;
        }
        let same_seam =
            self.seam.as_ref().zip(cause.seam.as_ref()).is_some_and(|(own, of)| (&own.from, &own.to) == (&of.from, &of.to));
        let also = |hop: &str| {
            let hops = cause.data.iter().filter_map(|data| data["hops"].as_array()).flatten();
            hops.into_iter().any(|other| other == hop)
        };
        let same_hop = self.hop.as_ref().is_some_and(|hop| {
            cause.hop.as_ref() == Some(hop)
                || cause.seam.as_ref().is_some_and(|seam| seam.from == *hop || seam.to == *hop)
                || also(hop)
        });
        if self.id == CheckId::TrafficSuccess && self.seam.as_ref().is_some_and(|seam| cause.is_loop_from(&seam.from)) {
            return true;
        }
        let is_independent = match (self.own_cause, cause.own_cause) {
            (Some(own), other) => other != Some(own),
            (None, Some(other)) => !other.has_consequences(),
            (None, None) => false,
        };
        let causes: &[CheckId] = CONSEQUENCES.iter().find(|(id, _)| *id == self.id).map_or(&[], |(_, causes)| causes);
        (same_seam && !is_independent || (self.seam.is_none() && same_hop)) && causes.contains(&cause.id)
            || ANYWHERE.iter().any(|(id, causes)| *id == self.id && causes.contains(&cause.id))
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

    pub(crate) fn own_cause(mut self, cause: Option<OwnCause>) -> Self {
        self.own_cause = cause;
        self
    }

    /// Makes a failure the consequence of another, where the report has that one; it has the cause and the commands then.
    pub(crate) fn following(mut self, cause: CheckId) -> Self {
        (self.status, self.follows) = (Status::Follows, Some(cause));
        self
    }

    /// Downgrades a failure to information: text, cause and commands stay, and it does not fail the run.
    pub(crate) fn into_informational(mut self) -> Self {
        self.status = Status::Skip;
        self
    }
}

/// The forms of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OutputFormat {
    /// One line per check, for people.
    #[default]
    Text,
    /// One object.
    Json,
    /// A test suite per group, for CI.
    Junit,
}

/// Completes a finding.
type Prepare = Box<dyn Fn(&mut Finding) + Send>;

/// Collects findings; in text form it writes them as they come.
pub(crate) struct Report {
    command: &'static str,
    target: String,
    output: OutputFormat,
    /// Names of checks and groups whose failures do not count.
    skip: Vec<String>,
    terminal: Terminal,
    findings: Vec<Finding>,
    /// What will be reported later and is the cause of what comes before it.
    expected_causes: Vec<Finding>,
    started: Instant,
    interrupted: bool,
    /// What stopped the run, where it was no signal.
    stopped_by: Option<String>,
    /// The parts that the run did not come to.
    left_out: Vec<Group>,
    /// What could not be seen, so that nothing is known of it: a sentence.
    unseen: Option<String>,
    /// Whether what could not be seen fails the run.
    is_strict: bool,
    out: Box<dyn Write + Send>,
    /// Gives a failure the cause that the cluster's objects show, and commands the options of this run.
    prepare: Option<Prepare>,
}

impl Report {
    pub(crate) fn new(target: String, output: OutputFormat, skip: Vec<String>, color: bool, out: Box<dyn Write + Send>) -> Self {
        Self::of_command("check", target, output, skip, color, out)
    }

    /// The report of another command that examines something.
    pub(crate) fn of_command(
        command: &'static str,
        target: String,
        output: OutputFormat,
        skip: Vec<String>,
        color: bool,
        out: Box<dyn Write + Send>,
    ) -> Self {
        let (terminal, findings, started) = (Terminal { color }, Vec::new(), Instant::now());
        let (stopped_by, left_out) = (None, Vec::new());
        let mut report = Self {
            command,
            target,
            output,
            skip,
            terminal,
            findings,
            expected_causes: Vec::new(),
            started,
            interrupted: false,
            stopped_by,
            left_out,
            unseen: None,
            is_strict: false,
            out,
            prepare: None,
        };
        if output == OutputFormat::Text {
            let title = format!("httpserver {command} {}\n", plain(&report.target));
            report.write(&title);
        }
        report
    }

    /// A reader that hung up is no reason to fail: the exit code still carries the verdict.
    fn write(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }

    /// From now on `prepare` completes every finding before it is reported.
    pub(crate) fn prepare_with(&mut self, prepare: impl Fn(&mut Finding) + Send + 'static) {
        self.prepare = Some(Box::new(prepare));
    }

    /// Names causes that are reported later.
    pub(crate) fn expect_causes(&mut self, causes: Vec<Finding>) {
        self.expected_causes = causes;
    }

    pub(crate) fn add(&mut self, mut finding: Finding) {
        let name = finding.id.name();
        if finding.status == Status::Fail && self.skip.iter().any(|skip| name == skip || finding.group.name() == skip) {
            finding = finding.into_informational();
            finding.detail.insert(0, "failed, and does not count (--skip)".to_owned());
        }
        if let Some(prepare) = &self.prepare {
            prepare(&mut finding);
        }
        if finding.status == Status::Fail
            && let Some(cause) = self
                .findings
                .iter()
                .chain(&self.expected_causes)
                .find(|known| known.is_broken() && known.follows != Some(finding.id) && finding.follows_from(known))
        {
            finding = finding.following(cause.follows.unwrap_or(cause.id));
        }
        if let Some(cause) = finding.follows {
            // What `--skip` leaves out is not told by its consequences either.
            let is_there = self.findings.iter().any(|known| known.id == cause && known.status != Status::Pass);
            if is_there || self.expected_causes.iter().any(|known| known.id == cause || known.follows == Some(cause)) {
                (finding.cause, finding.next) = (None, Vec::new());
            } else {
                (finding.status, finding.follows) = (Status::Fail, None);
            }
        }
        if self.output == OutputFormat::Text {
            let begins = self.findings.last().is_none_or(|last| last.group != finding.group);
            let heading = if begins { self.terminal.heading(finding.group) } else { String::new() };
            self.write(&(heading + &self.terminal.finding(&finding)));
        }
        self.findings.push(finding);
    }

    pub(crate) fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.add(finding));
    }

    /// Whether this part of a run has reported.
    pub(crate) fn has(&self, part: Group) -> bool {
        self.findings.iter().any(|finding| finding.group == part)
    }

    /// The run ends early. `by`: what stopped it, where it was no signal. `parts`: of a whole run.
    pub(crate) fn interrupt(&mut self, by: Option<String>, parts: Vec<Group>) {
        self.interrupted = true;
        self.stopped_by = by;
        self.left_out = parts.into_iter().filter(|part| !self.has(*part)).collect();
    }

    /// Which part of the chain was not seen, if any. `is_strict`: that fails the run.
    pub(crate) fn leave_unseen(&mut self, what: Option<String>, is_strict: bool) {
        (self.unseen, self.is_strict) = (what, is_strict);
    }

    /// Nothing failed, the run came to its end, and everything was seen that has to be.
    pub(crate) fn is_fine(&self) -> bool {
        self.count(Status::Fail) == 0 && !self.interrupted && !(self.is_strict && self.unseen.is_some())
    }

    /// The verdict for machines.
    fn verdict_word(&self) -> &'static str {
        if self.count(Status::Fail) > 0 {
            "broken"
        } else if self.interrupted || self.unseen.is_some() {
            "unknown"
        } else {
            "healthy"
        }
    }

    fn count(&self, status: Status) -> usize {
        self.findings.iter().filter(|finding| finding.status == status).count()
    }

    /// The verdict in one line.
    pub(crate) fn verdict(&self) -> String {
        let (passed, failed, skipped) = (self.count(Status::Pass), self.count(Status::Fail), self.count(Status::Skip));
        let mut so_far = String::new();
        if self.interrupted {
            let by = self.stopped_by.as_ref().map_or_else(String::new, |by| format!(" by {by}"));
            let titles: Vec<&str> = self.left_out.iter().map(|part| part.title()).collect();
            let without = if titles.is_empty() { String::new() } else { format!(" (left out: {})", titles.join(", ")) };
            so_far = format!("interrupted{by}{without}, so far ");
        }
        if failed == 0 {
            let state = match (&self.unseen, self.interrupted) {
                (Some(unseen), false) if self.is_strict => {
                    format!("failed by --strict, as not everything could be seen: {unseen}; ")
                }
                (Some(unseen), false) => format!("healthy as far as it can be seen: {unseen}; "),
                (None, false) => "healthy: ".to_owned(),
                (_, true) => "nothing broken: ".to_owned(),
            };
            return format!("{so_far}{state}{passed} checks passed, {skipped} skipped");
        }
        let failures = || self.findings.iter().filter(|finding| finding.status == Status::Fail);
        let main = failures().find(|finding| finding.seam.is_some()).or_else(|| failures().next());
        let main = main.map_or_else(String::new, |finding| format!(". {}", finding.text));
        format!("{so_far}broken: {failed} of {} checks failed, {skipped} skipped{main}", passed + failed)
    }

    /// Writes what is still to be written: the verdict line, or the whole report in the other forms.
    pub(crate) fn finish(&mut self) {
        let text = match self.output {
            OutputFormat::Text => self.terminal.verdict(self),
            OutputFormat::Json => json::document(self),
            OutputFormat::Junit => junit::document(self),
        };
        self.write(&text);
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

    fn run(output: OutputFormat, skip: &[&str]) -> (String, Report) {
        let page = Page::default();
        let skip = skip.iter().map(|id| (*id).to_owned()).collect();
        let mut report = Report::new("http://x/service1".into(), output, skip, false, Box::new(page.clone()));
        report.add(Finding::pass(CheckId::ReachTcp, "TCP 10.0.0.5:443 accepts"));
        report.add(Finding::skip(CheckId::ReachHsts, "HSTS: skipped, because the URL is plain HTTP"));
        report.add(
            Finding::fail(
                CheckId::PropagationHeaders,
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
        let (text, report) = run(OutputFormat::Text, &[]);
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
        let (text, _) = run(OutputFormat::Json, &[]);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["ok"], false);
        assert_eq!(json["checks"][2]["seam"], serde_json::json!({"from": "service2", "to": "service3", "side": "hop"}));
    }

    #[test]
    fn a_failure_with_the_cause_and_the_place_of_another_is_its_consequence() {
        let mut report = Report::new("x".into(), OutputFormat::Json, Vec::new(), false, Box::new(Page::default()));
        let fail = |id, to| Finding::fail(id, "Calls fail", Hint::new("no pod is ready")).seam("service1", to, None);
        report.extend([
            fail(CheckId::ChainHops, "service2"),
            fail(CheckId::TrafficSuccess, "service2"),
            fail(CheckId::TrafficSuccess, "service3"),
            // Some of the calls over the broken seam fail in another way, and a proxy far above repeats them.
            Finding::fail(CheckId::TrafficSuccess, "Calls end", Hint::new("slow")).seam("service1", "service2", None),
            Finding::fail(CheckId::TrafficTimes, "Calls wait", Hint::new("held")).seam("service1", "service2", None),
            Finding::fail(CheckId::TrafficTimes, "Others wait", Hint::new("held")).seam("service2", "service3", None),
            Finding::fail(CheckId::TrafficRetries, "Retries", Hint::new("calls fail")).hop("service0"),
            // A reply that a cache keeps shows in the probe and, in another way, in some of the other requests.
            Finding::fail(CheckId::PropagationTrace, "One reply comes back", Hint::new("a cache"))
                .seam("check", "service1", None),
            Finding::fail(CheckId::TrafficPropagation, "In 78 of 100", Hint::new("mixed up")).seam("check", "service1", None),
            Finding::fail(CheckId::TrafficPropagation, "In 5 of 100", Hint::new("lost")).seam("service1", "service2", None),
        ]);
        let status = report.findings.iter().map(|finding| (finding.status, finding.follows)).collect::<Vec<_>>();
        let counted = (Status::Fail, None);
        let follows = (Status::Follows, Some(CheckId::ChainHops));
        let cached = (Status::Follows, Some(CheckId::PropagationTrace));
        assert_eq!(status, [counted, follows, counted, follows, follows, counted, follows, counted, cached, counted]);
        assert!(report.verdict().starts_with("broken: 5 of 5 checks failed"), "{}", report.verdict());
    }

    #[test]
    fn a_consequence_of_what_did_not_fail_is_a_failure_itself() {
        let orphans = || Finding::fail(CheckId::TracesOrphans, "1 orphan", Hint::new("a proxy reports nothing").run("kubectl"));
        let lost = |status: fn(CheckId, &str) -> Finding| {
            let mut report = Report::new("x".into(), OutputFormat::Json, Vec::new(), false, Box::new(Page::default()));
            report.extend([status(CheckId::TracesServices, "Reports"), orphans().following(CheckId::TracesServices)]);
            let Finding { status, follows, cause, next, .. } = report.findings.remove(1);
            (status, follows, cause.is_some(), next.len())
        };
        assert_eq!(lost(|id, text| Finding::pass(id, text)), (Status::Fail, None, true, 1));
        let follows = (Status::Follows, Some(CheckId::TracesServices), false, 0);
        assert_eq!(lost(|id, text| Finding::fail(id, text, Hint::default())), follows);
        assert_eq!(lost(|id, text| Finding::fail(id, text, Hint::default()).into_informational()), follows);
    }

    /// Two mistakes may be at one seam: what an answer says of its own cause is no consequence of another.
    #[test]
    fn a_second_failure_at_a_seam_counts_where_its_answer_says_another_cause() {
        use OwnCause::{Abort, Denied, Fault, Limited};
        for (first, second, is_counted) in [
            (None, Some(Denied), true),
            (Some(Denied), None, true),
            (Some(Limited), Some(Denied), true),
            (Some(Denied), Some(Denied), false),
            (Some(Fault), None, false),
            (Some(Abort), None, false),
            (Some(Abort), Some(Fault), true),
            (None, None, false),
        ] {
            let mut report = Report::new("x".into(), OutputFormat::Json, Vec::new(), false, Box::new(Page::default()));
            let fail = |id, text, own| {
                Finding::fail(id, text, Hint::new(text)).seam("service1", "service2", None).hop("service2").own_cause(own)
            };
            report.extend([fail(CheckId::ChainHops, "one", first), fail(CheckId::TrafficSuccess, "another", second)]);
            let wanted = if is_counted { Status::Fail } else { Status::Follows };
            assert_eq!(report.findings[1].status, wanted, "{first:?}, then {second:?}");
        }
    }

    #[test]
    fn json_names_the_object_and_the_field() {
        let mut finding = Finding::fail(CheckId::ChainHops, "Calls fail", Hint::new("tls.mode is DISABLE"));
        finding.object = Some("DestinationRule httpserver/service2".into());
        finding.field = Some("spec.trafficPolicy.tls.mode".into());
        let json = serde_json::to_value(finding).unwrap();
        assert_eq!(
            (json["object"].as_str(), json["field"].as_str()),
            (Some("DestinationRule httpserver/service2"), Some("spec.trafficPolicy.tls.mode"))
        );
    }

    #[test]
    fn junit_is_well_formed_whatever_the_text_holds() {
        let (text, _) = run(OutputFormat::Junit, &[]);
        for part in [" tests=\"3\"", " failures=\"1\"", " skipped=\"1\""] {
            assert!(text.lines().nth(1).unwrap().contains(part), "{part} in {text}");
        }
        assert!(text.contains("&quot;traceparent&quot; &amp; &lt;b3&gt;") && !text.contains('\u{1b}'), "{text}");
        assert_eq!(text.matches("<testcase").count(), 3);
    }

    #[test]
    fn a_skipped_id_is_reported_but_not_checked() {
        let (text, report) = run(OutputFormat::Text, &["propagation"]);
        assert!(report.is_fine(), "{text}");
        assert!(text.contains("failed, and does not count (--skip)"), "{text}");
    }

    #[test]
    fn an_interrupted_run_is_not_fine() {
        let mut report = Report::new("x".into(), OutputFormat::Json, Vec::new(), false, Box::new(Page::default()));
        report.add(Finding::pass(CheckId::ReachTcp, "TCP"));
        assert!(report.is_fine());
        report.interrupt(None, vec![Group::Reach, Group::Traffic]);
        let verdict = report.verdict();
        assert!(!report.is_fine() && verdict.starts_with("interrupted (left out: Traffic), so far nothing broken"), "{verdict}");
    }
}
