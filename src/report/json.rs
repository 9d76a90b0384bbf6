//! The report as one JSON object.

use crate::report::{Report, Status};

pub(crate) fn document(report: &Report) -> String {
    let document = serde_json::json!({
        "target": report.target,
        "ok": report.is_fine(),
        "interrupted": report.interrupted,
        "left_out": report.left_out,
        "verdict": report.verdict_word(),
        "summary": report.verdict(),
        "passed": report.count(Status::Pass),
        "failed": report.count(Status::Fail),
        "skipped": report.count(Status::Skip),
        "follow": report.count(Status::Follows),
        "duration_ms": report.started.elapsed().as_millis() as u64,
        "checks": report.findings,
    });
    format!("{document:#}\n")
}
