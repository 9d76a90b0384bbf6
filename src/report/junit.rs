//! The report as JUnit XML: a test suite per group, a test case per finding.

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use crate::report::{Finding, Report, Status};

pub(crate) fn document(report: &Report) -> String {
    let mut document = quick_junit::Report::new(format!("httpserver {}", report.command));
    document.set_time(report.started.elapsed());
    for of_group in report.findings.chunk_by(|one, next| one.group == next.group) {
        let mut suite = TestSuite::new(of_group[0].group.title());
        suite.add_test_cases(of_group.iter().map(case));
        document.add_test_suite(suite);
    }
    let mut suite = TestSuite::new("Run");
    let mut add = |name: &str, mut status: TestCaseStatus| {
        status.set_message(report.verdict());
        let mut case = TestCase::new(name, status);
        case.set_classname("run");
        suite.add_test_case(case);
    };
    if report.interrupted {
        add("the run came to its end", TestCaseStatus::non_success(NonSuccessKind::Error));
    }
    if report.unseen.is_some() {
        let status =
            if report.is_strict { TestCaseStatus::non_success(NonSuccessKind::Failure) } else { TestCaseStatus::skipped() };
        add("everything was seen", status);
    }
    if !suite.test_cases.is_empty() {
        document.add_test_suite(suite);
    }
    // Writing into memory fails only for a time that XML cannot carry, and the report sets none.
    document.to_string().unwrap_or_default()
}

fn case(finding: &Finding) -> TestCase {
    let mut status = match finding.status {
        Status::Pass => TestCaseStatus::success(),
        Status::Skip | Status::Follows => TestCaseStatus::skipped(),
        Status::Fail => TestCaseStatus::non_success(NonSuccessKind::Failure),
    };
    status.set_message(finding.text.as_str());
    if finding.status == Status::Fail {
        let causes = finding.cause.iter().map(|cause| format!("cause: {cause}"));
        let commands = finding.next.iter().map(|next| format!("next: {next}"));
        let lines: Vec<String> = finding.detail.iter().cloned().chain(causes).chain(commands).collect();
        status.set_description(lines.join("\n"));
    }
    // CI follows a case from run to run by its name: the sentence has figures in it.
    let mut case = TestCase::new(finding.id.name(), status);
    case.set_classname(finding.id.name()).set_system_out(finding.text.as_str());
    case
}
