//! Mistakes in a real cluster, one after the other, and what `check` says of each, with and without `--cluster`. `faults.json` has the
//! table: what is changed, and the cause, object and field that have to be named. Nothing else may be reported as broken.
//!
//! `scripts/e2e-cluster.sh --only check` runs it, with these variables; `FAULTS=name,name` takes some alone, `FAULTS_FILE` another table:
//! `HTTPSERVER`, `INGRESS_HOST`, `INGRESS_PORT`, `SECURE_INGRESS_PORT`, `CACERT`, `TRACES`, and kubectl's own.
//!
//! The table in `docs/check.md` is written from what `check` said.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::claims::Claims;

const HOST: &str = "httpsserver.cncamp.io";
/// How long a change may take to reach every proxy. Envoy drains what it replaced for 45 s.
const SPREADS: Duration = Duration::from_secs(75);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// Runs kubectl in the namespace of the hops, unless the words name another; returns its output.
fn kubectl(words: &[&str], input: Option<&Value>) -> String {
    let mut command = Command::new("kubectl");
    command.args(words);
    if !words.contains(&"-n") {
        command.args(["-n", "httpserver"]);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.map(Value::to_string).unwrap_or_default().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "kubectl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// One run of `check`; its report.
fn check(count: &str, more: &[&str]) -> Value {
    let port = variable("SECURE_INGRESS_PORT");
    let url = format!("https://{HOST}:{port}/http/service0");
    let resolve = format!("{HOST}:{port}:{}", variable("INGRESS_HOST"));
    let output = Command::new(variable("HTTPSERVER"))
        .args(["check", &url, "--resolve", &resolve, "--plain-port", &variable("INGRESS_PORT"), "--cacert", &variable("CACERT")])
        .args(["--traces", &variable("TRACES"), "--traces-wait", "8s", "--count", count])
        .args(["--expect", "service1,service2,service3", "--output", "json"])
        .args(more)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn failures(report: &Value) -> Vec<&Value> {
    report["checks"].as_array().unwrap().iter().filter(|finding| finding["status"] == "fail").collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn texts<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    value[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Everything that a finding says.
fn said(finding: &Value) -> String {
    [vec![text(finding, "text"), text(finding, "cause")], texts(finding, "detail"), texts(finding, "next")]
        .concat()
        .join(" | ")
        .to_lowercase()
}

/// The finding that names the fault; an error when there is none, or when another failure is reported.
fn named<'a>(fault: &Value, report: &'a Value, with_cluster: bool) -> Result<&'a Value, String> {
    let failed = failures(report);
    let is_it = |finding: &&&Value| match with_cluster {
        true => text(finding, "field") == text(fault, "field") && ["*", text(finding, "object")].contains(&text(fault, "object")),
        false => texts(fault, "says").iter().all(|word| said(finding).contains(&word.to_lowercase())),
    };
    let list = || {
        failed
            .iter()
            .map(|finding| {
                format!("\n    {}: {}\n      cause {}", text(finding, "id"), text(finding, "text"), text(finding, "cause"))
            })
            .collect::<String>()
    };
    let Some(hit) = failed.iter().find(is_it) else { return Err(format!("not named; failed:{}", list())) };
    if !["*", text(hit, "id")].contains(&text(fault, "id")) {
        return Err(format!("named by {}, not by {}", text(hit, "id"), text(fault, "id")));
    }
    if failed.len() > 1 { Err(format!("more is reported:{}", list())) } else { Ok(hit) }
}

/// Asks until the fault is named, and it alone.
fn eventually_named(fault: &Value, more: &[&str]) -> Result<Value, String> {
    let started = Instant::now();
    loop {
        let report = check("60", more);
        match named(fault, &report, !more.is_empty()) {
            Ok(finding) => return Ok(finding.clone()),
            Err(why) if started.elapsed() > SPREADS => return Err(why),
            Err(_) => {}
        }
    }
}

/// Runs every command that promises what its output shows, and compares.
fn commands_hold(finding: &Value) -> Result<String, String> {
    let mut ran = 0;
    for command in texts(finding, "next") {
        let Some((line, sign)) = command.rsplit_once("  # ") else { continue };
        let output = Command::new("sh").arg("-c").arg(line).stdin(Stdio::null()).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let compact = |text: &str| text.split_whitespace().collect::<String>();
        let holds = match (sign.strip_prefix("look for: "), sign.starts_with("empty: ")) {
            (Some(sign), _) => compact(&shown).contains(&compact(sign.trim_end_matches('…'))),
            (None, true) => shown.trim().is_empty(),
            // The others say what both kinds of output mean; analyze fails when it finds something.
            (None, false) => {
                output.status.success()
                    || shown.trim().is_empty()
                    || line.contains("| grep")
                    || line.starts_with("istioctl analyze")
            }
        };
        if !holds {
            return Err(format!("{command}\n    printed {shown}"));
        }
        ran += 1;
    }
    Ok(format!("{ran} commands"))
}

/// An address in the pods' network that no pod has, and that none gets soon: they are given in turn.
fn nobodys_address() -> String {
    let pods = kubectl(&["get", "pods", "-A", "-o", "jsonpath={.items[*].status.podIP}"], None);
    let taken: Vec<usize> = pods.split(' ').filter_map(|ip| ip.rsplit_once('.')).map(|(_, last)| last.parse().unwrap()).collect();
    // A pod that is being made has none yet.
    let by_age =
        kubectl(&["get", "pods", "-A", "--sort-by=.metadata.creationTimestamp", "-o", "jsonpath={.items[*].status.podIP}"], None);
    let newest = by_age.split_whitespace().next_back().unwrap_or_default();
    let (net, last) = newest.rsplit_once('.').unwrap();
    let last: usize = last.parse().unwrap();
    let free = (1..=250).map(|n| (last + 100 + n) % 250 + 2).find(|n| !taken.contains(n));
    format!("{net}.{}", free.unwrap())
}

/// An object, as it can be made again.
fn as_it_is(target: &[&str]) -> Value {
    let object = kubectl(&[&["get", "-o", "json"], target].concat(), None);
    let mut object: Value = serde_json::from_str(&object).unwrap();
    for key in ["resourceVersion", "uid", "generation", "creationTimestamp"] {
        object["metadata"].as_object_mut().unwrap().remove(key);
    }
    object
}

/// What has to be undone.
#[derive(Default)]
struct Applied {
    replaced: Vec<Value>,
    removed: Vec<Value>,
    /// Kind and name, and the namespace.
    created: Vec<(String, String)>,
    /// Deployments whose pods have to start anew.
    restarted: Vec<String>,
}

impl Applied {
    fn of(fault: &Value) -> Self {
        let mut applied = Self::default();
        for patch in fault["patch"].as_array().into_iter().flatten() {
            let target: Vec<&str> = patch[0].as_str().unwrap().split(' ').collect();
            applied.replaced.push(as_it_is(&target));
            let (kind, body) = (patch[2].as_str().unwrap_or("json"), patch[1].to_string());
            kubectl(&[&["patch", "--type", kind, "-p", &body], target.as_slice()].concat(), None);
        }
        for title in texts(fault, "remove") {
            let target: Vec<&str> = title.split(' ').collect();
            applied.removed.push(as_it_is(&target));
            kubectl(&[&["delete"], target.as_slice()].concat(), None);
        }
        for object in fault["apply"].as_array().into_iter().flatten() {
            let object: Value = serde_json::from_str(&object.to_string().replace("NOBODY", &nobodys_address())).unwrap();
            let (metadata, group) = (&object["metadata"], text(&object, "apiVersion").split('/').next().unwrap());
            let namespace = text(metadata, "namespace").to_owned();
            kubectl(&["apply", "-n", &namespace, "-f", "-"], Some(&object));
            let title = format!("{}.{group}/{}", text(&object, "kind").to_lowercase(), text(metadata, "name"));
            applied.created.push((title, namespace));
        }
        for name in texts(fault, "restart") {
            kubectl(&["rollout", "restart", "deployment", name], None);
            applied.restarted.push(name.to_owned());
        }
        if fault["settle"] == true || !texts(fault, "restart").is_empty() {
            settled();
        }
        applied
    }

    fn undo(self) {
        for (title, namespace) in &self.created {
            kubectl(&["delete", "-n", namespace, title], None);
        }
        for object in &self.removed {
            kubectl(&["create", "-n", text(&object["metadata"], "namespace"), "-f", "-"], Some(object));
        }
        for object in &self.replaced {
            kubectl(&["replace", "-n", text(&object["metadata"], "namespace"), "-f", "-"], Some(object));
        }
        for name in &self.restarted {
            kubectl(&["rollout", "restart", "deployment", name], None);
        }
        settled();
    }
}

/// Every Deployment has the pods that it wants, and no old one is left.
fn settled() {
    kubectl(&["rollout", "status", "deployment", "--timeout=180s"], None);
    let started = Instant::now();
    while !kubectl(&["get", "pods", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}"], None).trim().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(90), "old pods do not go");
    }
}

fn healthy_again() -> String {
    let started = Instant::now();
    loop {
        let report = check("20", &[]);
        let failed = failures(&report);
        if failed.is_empty() {
            return text(&report, "summary").to_owned();
        }
        assert!(started.elapsed() < 2 * SPREADS, "still broken: {failed:?}");
    }
}

fn table() -> Vec<Value> {
    match std::env::var("FAULTS_FILE") {
        Ok(file) => serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap(),
        Err(_) => serde_json::from_str(include_str!("faults.json")).unwrap(),
    }
}

/// What a cell has in place of a finding.
const NOT_NAMED: &str = "**not named**";

/// The row of the guide: what is wrong, what `check` says, and the object.
fn row(fault: &Value, without: Option<&Value>, with: Option<&Value>) -> String {
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let said = without.map_or_else(
        || format!("{NOT_NAMED} | "),
        |finding| format!("{} | {}", cell(text(finding, "text")), cell(text(finding, "cause"))),
    );
    let object =
        with.map_or_else(|| NOT_NAMED.to_owned(), |finding| format!("`{}: {}`", text(finding, "object"), text(finding, "field")));
    format!("| {} | {said} | {object} |\n", text(fault, "fault"))
}

/// How many rows name the fault, without the objects of the cluster and with them.
fn count(rows: &[String]) -> String {
    let (all, kinds) = (rows.len(), table().iter().map(|fault| text(fault, "kind").to_owned()).collect::<BTreeSet<_>>().len());
    let named = |ends: fn(&str) -> bool| rows.iter().filter(|row| !ends(row.trim_end())).count();
    let without = named(|row| row.contains(&format!("| {NOT_NAMED} |  |")));
    let with = named(|row| row.ends_with(&format!("| {NOT_NAMED} |")));
    format!("{all} mistakes of {kinds} kinds. Named, and nothing else said: {without} without `--cluster`, {with} with it.\n\n")
}

/// Writes the table of the guide: the rows of this run and of earlier ones of this tree, else those that the guide has.
fn write_guide(rows: &Path) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/check.md");
    let guide = std::fs::read_to_string(path).unwrap();
    let (head, rest) = guide.split_once("<!-- faults -->\n").expect("the mark in the guide");
    let (old, tail) = rest.split_once("<!-- end of faults -->").expect("the other mark");
    let of_guide =
        |fault: &str| old.lines().find(|line| line.starts_with(&format!("| {fault} |"))).map(|line| format!("{line}\n"));
    let row = |fault: &Value| {
        let own = std::fs::read_to_string(rows.join(text(fault, "name"))).ok();
        own.or_else(|| of_guide(text(fault, "fault")))
    };
    let found: Vec<String> = table().iter().filter_map(row).collect();
    let mut text = format!(
        "{head}<!-- faults -->\n{}| fault | what `check` says | and the cause | with `--cluster` |\n|---|---|---|---|\n",
        count(&found)
    );
    let _ = write!(text, "{}<!-- end of faults -->{tail}", found.concat());
    std::fs::write(path, text).unwrap();
}

#[test]
fn the_table_of_faults_is_wide_enough_and_no_kind_fills_it() {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for fault in table() {
        *kinds.entry(text(&fault, "kind").to_owned()).or_default() += 1;
    }
    assert!(table().len() >= 40 && kinds.len() >= 20, "{} faults of {} kinds", table().len(), kinds.len());
    assert!(kinds.values().all(|count| *count <= 3), "{kinds:?}");
}

#[tokio::test]
#[ignore = "needs a cluster with Istio and the chain in it"]
async fn every_fault_is_named_with_its_object_and_field_and_nothing_else_is() {
    let only = std::env::var("FAULTS").unwrap_or_default();
    let only: Vec<&str> = only.split(',').filter(|name| !name.is_empty()).collect();
    let known = table();
    let unknown = only.iter().find(|name| !known.iter().any(|fault| text(fault, "name") == **name));
    assert_eq!(unknown, None, "FAULTS: no fault has this name");
    let rows = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("faults");
    std::fs::create_dir_all(&rows).unwrap();
    let mut claims = Claims::default();
    healthy_again();
    for fault in known.iter().filter(|fault| only.is_empty() || only.contains(&text(fault, "name"))) {
        let name = text(fault, "name");
        let applied = Applied::of(fault);
        let without = eventually_named(fault, &[]);
        let with = eventually_named(fault, &["--cluster"]);
        claims.holds(format!("{name}: named"), without.is_ok(), &without);
        claims.holds(format!("{name}: named with {} {}", text(fault, "object"), text(fault, "field")), with.is_ok(), &with);
        for finding in [&with, &without].into_iter().flatten() {
            let held = commands_hold(finding);
            claims.holds(format!("{name}: the commands show what they promise"), held.is_ok(), &held);
        }
        std::fs::write(rows.join(name), row(fault, without.as_ref().ok(), with.as_ref().ok())).unwrap();
        applied.undo();
        claims.claim(format!("{name}: healthy again"), async { healthy_again() }).await;
    }
    if std::env::var_os("FAULTS_FILE").is_none() {
        write_guide(&rows);
    }
    claims.end();
}

#[test]
#[ignore = "needs a cluster with Istio and the chain in it"]
fn fifty_runs_against_the_healthy_cluster_report_nothing() {
    healthy_again();
    for run in 1..=50 {
        let report = check("60", if run % 2 == 0 { &["--cluster"] } else { &[] });
        assert!(failures(&report).is_empty(), "run {run}: {:?}", failures(&report));
    }
}
