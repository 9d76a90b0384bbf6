//! The report: what each service did, a score, and the findings.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::doctor::finding::{FindingId, Level, ServiceFinding};
use crate::doctor::system::{System, TracerKind};
use crate::text::terminal::{paint, wrapped};
use crate::text::{counted, plain};
use crate::traces::Kind;
use crate::traces::ids::zipkin_id;

/// One service and how well its calls can be followed.
#[derive(Debug, Serialize)]
struct ServiceRow {
    service: String,
    tracer: TracerKind,
    spans: usize,
    calls_in: usize,
    calls_out: usize,
    /// 100 less the share of its calls that a fault concerns, rounded down.
    score: u32,
}

/// What `doctor` found.
#[derive(Debug, Serialize)]
pub(super) struct DoctorReport {
    source: String,
    traces: usize,
    spans: usize,
    /// No fault was found.
    ok: bool,
    services: Vec<ServiceRow>,
    findings: Vec<ServiceFinding>,
}

impl DoctorReport {
    /// `only`: of this service.
    pub(super) fn new(
        system: &System,
        source: String,
        traces: usize,
        mut findings: Vec<ServiceFinding>,
        only: Option<&str>,
    ) -> Self {
        let mut rows: Vec<ServiceRow> = (0..system.names.len())
            .map(|service| ServiceRow {
                service: system.name(service).to_owned(),
                tracer: system.tracer(service),
                spans: 0,
                calls_in: system.calls_in(service),
                calls_out: 0,
                score: 100,
            })
            .collect();
        for (at, span) in system.spans.iter().enumerate() {
            rows[span.service].spans += 1;
            let out = system.is_outer_client(at) || span.is(Kind::Producer);
            rows[span.service].calls_out += usize::from(out);
        }
        let faults = || findings.iter().filter(|finding| finding.level == Level::Fault);
        for row in &mut rows {
            row.score = score(faults().filter(|finding| finding.service == row.service));
        }
        for finding in faults() {
            if rows.iter().all(|row| row.service != finding.service) {
                rows.push(ServiceRow {
                    service: finding.service.clone(),
                    tracer: TracerKind::None,
                    spans: 0,
                    calls_in: 0,
                    calls_out: 0,
                    score: score(faults().filter(|other| other.service == finding.service)),
                });
            }
        }
        if let Some(only) = only {
            findings.retain(|finding| finding.concerns(only));
            let is_shown = |name: &str| name.eq_ignore_ascii_case(only) || findings.iter().any(|finding| finding.service == name);
            rows.retain(|row| is_shown(&row.service));
        }
        rows.sort_by(|a, b| a.score.cmp(&b.score).then_with(|| a.service.cmp(&b.service)));
        let ok = findings.iter().all(|finding| finding.level == Level::Note);
        Self { source, traces, spans: system.spans.len(), ok, services: rows, findings }
    }

    pub(super) fn lowest_score(&self) -> u32 {
        self.services.iter().map(|row| row.score).min().unwrap_or(0)
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string_pretty(self).map(|text| text + "\n").unwrap_or_default()
    }

    pub(super) fn text(&self, color: bool) -> String {
        let paint = |style: Style, text: &str| paint(color, style, text);
        let bold = Style::new().bold();
        let read = format!("{} and {}", counted(self.traces, "trace"), counted(self.spans, "span"));
        let mut out = format!("httpserver doctor {}: {read}\n", plain(&self.source));
        if self.traces == 0 {
            out.push_str("\nNothing to read: no trace in this time, or none of this service.\n");
            return out;
        }
        let _ = writeln!(out, "\n{}", paint(bold, "Services"));
        let widest = self.services.iter().map(|row| plain(&row.service).chars().count()).max().unwrap_or(0).clamp(7, 40);
        let _ = writeln!(out, "  {:widest$}  score  calls in  calls out  reported by", "service");
        for row in &self.services {
            let style = if row.score < 100 { AnsiColor::Red.on_default() } else { AnsiColor::Green.on_default() };
            let score = paint(style, &format!("{:5}", row.score));
            let name = plain(&row.service);
            let _ = writeln!(out, "  {name:widest$}  {score}  {:8}  {:9}  {}", row.calls_in, row.calls_out, row.tracer.as_str());
        }
        for (level, title) in [(Level::Fault, "What breaks the picture"), (Level::Note, "Worth knowing")] {
            let findings: Vec<&ServiceFinding> = self.findings.iter().filter(|finding| finding.level == level).collect();
            if findings.is_empty() {
                continue;
            }
            let _ = writeln!(out, "\n{}", paint(bold, title));
            for finding in findings {
                let mark = if level == Level::Fault { paint(AnsiColor::Red.on_default(), "✗") } else { "-".to_owned() };
                out.push_str(&finding_text(finding, &mark));
            }
        }
        let faults = self.findings.iter().filter(|finding| finding.level == Level::Fault).count();
        let services = self.services.iter().filter(|row| row.score < 100).count();
        let silent = self.findings.iter().filter(|finding| finding.id == FindingId::ServiceSilent).count();
        let verdict = if faults == 0 && silent == 0 {
            "every trace that was read goes on from service to service".to_owned()
        } else if faults == 0 {
            format!("no fault; nothing is known of {}", counted(silent, "called service"))
        } else {
            format!("{} at {}", counted(faults, "fault"), counted(services, "service"))
        };
        let style = if faults == 0 { AnsiColor::Green } else { AnsiColor::Red };
        let _ = writeln!(out, "\n{}  {verdict}", paint(style.on_default().bold(), "Verdict"));
        out
    }
}

/// 100 less the share of a service's calls that its faults concern. Faults of one kind are of different calls, those of different kinds
/// may be of the same.
fn score<'f>(faults: impl Iterator<Item = &'f ServiceFinding>) -> u32 {
    let mut kinds: BTreeMap<FindingId, (usize, usize)> = BTreeMap::new();
    for fault in faults {
        let (count, of) = kinds.entry(fault.id).or_default();
        (*count, *of) = (*count + fault.count, *of + fault.of);
    }
    let share = |(count, of): &(usize, usize)| *count as f64 / (*of).max(1) as f64;
    let worst = kinds.values().map(share).reduce(f64::max);
    worst.map_or(100, |share| (100.0 * (1.0 - share)).clamp(0.0, 99.0) as u32)
}

fn finding_text(finding: &ServiceFinding, mark: &str) -> String {
    const WIDTH: usize = 80;
    let wrapped = |first: &str, rest: &str, text: &str| wrapped(first, rest, &plain(text), WIDTH);
    let line = wrapped("    ", "    ", &format!("{}: {}", finding.service, finding.text));
    let ids: Vec<String> = finding.traces.iter().map(|id| zipkin_id(*id)).collect();
    // One line, however long: it is to be pasted.
    let run = finding.run.map_or_else(String::new, |command| format!("      run    {command}\n"));
    format!(
        "  {mark} {}\n{}\n{}\n{run}      trace  {}\n",
        line.trim_start(),
        wrapped("      cause  ", "             ", &finding.cause),
        wrapped("      next   ", "             ", &finding.next),
        ids.join("\n             "),
    )
}
