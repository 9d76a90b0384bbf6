//! `docs/reference/options.md` and `environment.md` are written from `--help`; the other pages are compared with the program.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::course::Shell;
use crate::{BINARY, expect, root};

const HELP: [&str; 2] = ["<!-- from the help: begin -->\n", "<!-- from the help: end -->"];
const OTEL: &str = "Variables of OpenTelemetry";

fn help(args: &[&str]) -> String {
    let output = Command::new(BINARY).args(args).arg("--help").env_clear().output().unwrap();
    assert!(output.status.success(), "help of {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn commands() -> Vec<String> {
    let help = help(&[]);
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    list.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Takes `[name: …]` out of a text.
fn tag(text: &mut String, name: &str) -> Option<String> {
    let begin = text.find(&format!("[{name}: "))?;
    let end = begin + text[begin..].find(']')?;
    let value = text[begin + name.len() + 3..end].to_owned();
    text.replace_range(begin..=end, "");
    Some(value)
}

/// A row of the table from an option's lines: its names, what they mean, and clap's remarks in brackets.
fn row(names: &str, meaning: &str) -> String {
    let mut meaning = meaning.replace('|', "\\|");
    let code = |value: Option<String>| value.map_or_else(String::new, |value| format!("`{value}`"));
    let (variable, default) = (tag(&mut meaning, "env"), tag(&mut meaning, "default"));
    // A default in words is no value.
    let default = if default.as_ref().is_some_and(|text| text.contains(' ')) { default.unwrap() } else { code(default) };
    format!(
        "| `{names}` | {} | {default} | {} |\n",
        code(variable),
        meaning.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ;", ";")
    )
}

/// The rows for the arguments and options of one command.
fn rows(help: &str) -> String {
    let mut options: Vec<(String, String)> = Vec::new();
    let end = help.find(OTEL).unwrap_or(help.len());
    let lists = help[..end].lines().skip_while(|line| *line != "Arguments:" && *line != "Options:");
    for line in lists {
        let text = line.trim_start();
        let depth = line.len() - text.len();
        if (1..10).contains(&depth) && text.starts_with(['-', '<', '[']) {
            let (names, meaning) = text.split_once("  ").unwrap_or((text, ""));
            options.push((names.to_owned(), meaning.trim().to_owned()));
        } else if let (true, Some((_, meaning))) = (depth > 0, options.last_mut()) {
            // `- parallel:   All at once` is one of the possible values.
            let value = text.strip_prefix("- ").and_then(|value| value.split_once(':'));
            match value {
                Some((name, what)) => *meaning = format!("{}; `{name}`: {}", meaning.trim_end(), what.trim()),
                None if text == "Possible values:" => {}
                None => *meaning = format!("{meaning} {text}"),
            }
        }
    }
    let shown = options.iter().filter(|(names, _)| names != "-h, --help");
    shown.map(|(names, meaning)| row(names, meaning)).collect()
}

fn section(command: &str) -> String {
    let help = help(&[command]);
    let usage = help.lines().find_map(|line| line.strip_prefix("Usage: ")).expect("a usage line");
    let (about, rows) = (help.lines().next().unwrap(), rows(&help));
    format!("\n## `{command}`\n\n{about}.\n\n`{usage}`\n\n| option | variable | default | meaning |\n|---|---|---|---|\n{rows}")
}

/// What stands between the two marks of a page, replaced.
pub(crate) fn replaced(page: &str, [begin, end]: [&str; 2], text: &str) -> String {
    let (before, rest) = page.split_once(begin).expect("the first mark");
    let (_, after) = rest.split_once(end).expect("the second mark");
    format!("{before}{begin}{text}{end}{after}")
}

#[test]
fn the_reference_has_every_option_as_the_help_has_it() {
    let commands = commands();
    assert!(commands.iter().any(|command| command == "serve"), "{commands:?}");
    let path = root().join("docs/reference/options.md");
    let sections: String = commands.iter().map(|command| section(command)).collect();
    expect(&path, &replaced(&fs::read_to_string(&path).unwrap(), HELP, &format!("{sections}\n")), str::to_owned);
}

#[test]
fn the_reference_has_the_variables_of_opentelemetry_as_the_help_has_them() {
    let help = help(&["serve"]);
    let (_, variables) =
        help.split_once(OTEL).and_then(|(_, rest)| rest.split_once('\n')).expect("they are at the end of the help");
    let path = root().join("docs/reference/environment.md");
    expect(
        &path,
        &replaced(&fs::read_to_string(&path).unwrap(), HELP, &format!("\n```\n{}\n```\n\n", variables.trim_end())),
        str::to_owned,
    );
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs/reference").join(name)).unwrap()
}

/// What stands between backticks.
fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_reference_has_every_carried_header_and_no_other() {
    let page = page("headers.md");
    let list = page.split("\n\n").nth(2).unwrap();
    let listed: Vec<_> = code(list).into_iter().filter(|name| !name.starts_with("--")).collect();
    assert_eq!(listed, httpserver::trace_context::carried_names().collect::<Vec<_>>());
}

#[test]
fn the_reference_has_the_limits_of_a_request_as_they_are() {
    let page = page("limits.md");
    let limits = httpserver::hop::limits::RequestLimits::default();
    for row in [
        format!("| request head | {} KiB or {} fields | 431 |", limits.head_bytes >> 10, limits.head_fields),
        format!("| request body | {} KiB | 413 |", limits.body_bytes >> 10),
        format!("| request body, time after its head | {} s | 408 |", limits.body_timeout.as_secs()),
        format!("| answer of a next hop | {} MiB | ", httpserver::hop::limits::MAX_RESPONSE >> 20),
    ] {
        assert!(page.contains(&row), "docs/reference/limits.md does not have {row}");
    }
}

#[test]
fn every_endpoint_of_the_reference_answers() {
    let page = page("endpoints.md");
    let (hop, store) = page.split_once("## The store").unwrap();
    let of_hop = code(hop).into_iter().filter_map(|code| code.strip_prefix("GET "));
    let of_hop: Vec<_> =
        of_hop.map(|path| path.replace("<who>", "ada").replace("<N>", "1").replace("interval=1s", "interval=10ms")).collect();
    let of_store: Vec<_> =
        code(store).into_iter().filter(|code| code.starts_with("GET /api/") || code.starts_with("/api/")).collect();
    assert!(of_hop.len() > 7 && of_store.len() > 3, "{of_hop:?} {of_store:?}");
    let mut shell = Shell::new(47);
    shell.beside("httpserver demo");
    let mut status = |port: u16, path: &str| {
        let asked = format!("curl -s -o answer -w '%{{http_code}}' 'http://127.0.0.1:{port}{path}'; rm answer");
        shell.run(&asked).trim().to_owned()
    };
    for path in of_hop {
        // A WebSocket is asked for by an upgrade.
        let expected = if path == "/ws" { "426" } else { "200" };
        assert_eq!(status(8080, &path), expected, "{path}");
    }
    for path in of_store {
        let path = path.trim_start_matches("GET ").replace("{id}", "cccccccccccccccccccccccccccccccc");
        // 404 is what a trace is answered with that nobody sent, and 400 a query without a parameter.
        let status = status(9411, &path);
        let unknown = status == "404" && path.starts_with("/api/v2/trace/") || status == "400" && path == "/api/v2/spans";
        assert!(status == "200" || unknown, "{path}: {status}");
    }
}

#[test]
fn the_reference_has_every_metric_of_a_hop() {
    let page = page("metrics.md");
    let mut shell = Shell::new(49);
    shell.beside("httpserver demo");
    let metrics = shell.run("curl -s http://127.0.0.1:8080/service1 >served; curl -s http://127.0.0.1:8080/metrics");
    let names = metrics.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next());
    let names: Vec<_> = names.filter(|name| !name.starts_with("process_")).collect();
    assert!(names.len() > 10, "{metrics}");
    let missing: Vec<_> = names.into_iter().filter(|name| !page.contains(&format!("`{name}"))).collect();
    assert!(missing.is_empty(), "docs/reference/metrics.md has no row for {missing:?}");
    let table = page.split_once("## Access lines").unwrap().0;
    let listed = code(table).into_iter().filter(|name| name.starts_with("httpserver_"));
    let gone: Vec<_> = listed.filter(|name| !metrics.contains(&format!("# HELP {} ", name.split('{').next().unwrap()))).collect();
    assert!(gone.is_empty(), "docs/reference/metrics.md has what a hop does not have: {gone:?}");
}

#[test]
fn the_reference_has_every_field_of_a_reply() {
    let page = page("reply.md");
    let mut shell = Shell::new(48);
    shell.beside("httpserver demo");
    let reply = shell.run("curl -s -H 'accept: application/json' http://127.0.0.1:8080/service1");
    // A name is what stands between quotes in front of a colon. Headers are not fields, and have a page of their own.
    let parts: Vec<_> = reply.split('"').collect();
    let names = parts.windows(2).filter(|pair| pair[1].starts_with(':')).map(|pair| pair[0]);
    let fields: Vec<_> = names.filter(|name| !name.starts_with("x-") && *name != "traceparent").collect();
    assert!(fields.len() > 20 && fields.contains(&"upstreams"), "{reply}");
    let missing: BTreeSet<_> = fields.into_iter().filter(|name| !page.contains(&format!("\"{name}\""))).collect();
    assert!(missing.is_empty(), "docs/reference/reply.md does not have {missing:?}");
}

#[test]
fn rows_are_made_from_both_layouts_of_the_help() {
    let long = "About\n\nUsage: x\n\nOptions:\n      --addr <ADDR>\n          Where: `:8080`, `[::]:8080`\n          \n          [env: ADDR]\n          \
                [default: :8080]\n\n      --how <HOW>\n          How\n\n          Possible values:\n          - all:  All | none\n          - one: One\n          \n\
                \x20         [default: all]\n\n  -h, --help\n          Print help\n\nVariables of OpenTelemetry:\n  --no\n";
    assert_eq!(
        rows(long),
        "| `--addr <ADDR>` | `ADDR` | `:8080` | Where: `:8080`, `[::]:8080` |\n| `--how <HOW>` |  | `all` | How; `all`: All \\| none; `one`: One |\n"
    );
    let short = "A\n\nArguments:\n  [URL]  The URL [default: /healthz on loopback]\n\nOptions:\n  -q, --quiet  Nothing\n";
    assert_eq!(rows(short), "| `[URL]` |  | /healthz on loopback | The URL |\n| `-q, --quiet` |  |  | Nothing |\n");
}
