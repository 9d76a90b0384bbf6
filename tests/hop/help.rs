//! `--help` and the pages of the reference tell the same flags and variables.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::run;

/// What an option is called: flags on the left, variables on the right.
type Options = BTreeMap<String, BTreeSet<String>>;

fn is_variable(word: &str) -> bool {
    word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).filter(|word| !word.is_empty())
}

/// Flag by flag: the long name and the variable in `[env: NAME=…]`.
fn help_flags(help: &str) -> Options {
    let mut flags = Options::new();
    let mut current = String::new();
    for line in help.lines() {
        let start = line.trim_start();
        if line.starts_with(' ')
            && start.starts_with('-')
            && let Some(flag) = words(start).find(|word| word.starts_with("--"))
        {
            current = flag.to_owned();
            flags.entry(current.clone()).or_default();
        }
        if let Some((_, rest)) = line.split_once("[env: ")
            && let Some(variable) = words(rest).next()
        {
            flags.entry(current.clone()).or_default().insert(variable.to_owned());
        }
    }
    flags.remove("--help");
    flags
}

/// Variables that have no flag: what the last part of the help lists. `…_HEADERS` belongs to the name before it.
fn help_variables(help: &str) -> BTreeSet<String> {
    let after = help.split_once("Variables of OpenTelemetry").map_or("", |(_, after)| after);
    let of_otel = |word: &&str| word.starts_with("OTEL_") && is_variable(word);
    words(after).filter(of_otel).map(str::to_owned).collect()
}

/// The rows `| `--flag` … | `VARIABLE` … |` of the reference.
fn documented_flags(reference: &str) -> Options {
    let rows = reference.lines().filter(|line| line.starts_with("| `--") || line.starts_with("| `-v`"));
    let mut flags = Options::new();
    for row in rows {
        let mut cells = row.trim_matches('|').split('|');
        let flag = words(cells.next().unwrap()).find(|word| word.starts_with('-')).unwrap().to_owned();
        let variables = words(cells.next().unwrap_or_default()).filter(|word| is_variable(word)).map(str::to_owned);
        // Two commands may have a flag of the same name, each in its own table.
        flags.entry(flag).or_default().extend(variables);
    }
    flags
}

/// What stands behind `…`: the end of a name whose beginning the line tells already.
fn endings(text: &str) -> impl Iterator<Item = &str> {
    text.split('…').skip(1).filter_map(|rest| words(rest).next().filter(|word| word.starts_with('_') && is_variable(word)))
}

/// Whether a line tells of a variable, whole or as `OTEL_TRACES_SAMPLER`, `…_ARG`.
fn tells(reference: &str, variable: &str) -> bool {
    reference.lines().any(|line| {
        let shortened = |ending: &str| {
            variable
                .strip_suffix(ending)
                .is_some_and(|start| words(line).any(|word| is_variable(word) && word.starts_with(start)))
        };
        words(line).any(|word| word == variable) || endings(line).any(shortened)
    })
}

#[test]
fn the_reference_tells_every_option_that_the_help_tells_and_no_other() {
    let page = |name: &str| std::fs::read_to_string(format!("{}/docs/reference/{name}.md", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let reference = page("options") + &page("environment");
    let help = run(&["serve", "--help"], &[]).stdout;
    let (told, mut known) = (documented_flags(&reference), help_flags(&help));
    // `-v` and `-q` share a row.
    known.remove("--verbose").expect("there is a -v");
    known.remove("--quiet").expect("there is a -q");
    for (flag, variables) in &known {
        let row = told.get(flag).unwrap_or_else(|| panic!("{flag} has no row in docs/reference"));
        for variable in variables {
            assert!(row.contains(variable), "the row of {flag} in docs/reference does not name {variable}");
        }
    }
    for variable in help_variables(&help) {
        assert!(tells(&reference, &variable), "{variable} of `serve --help` is not in docs/reference");
    }
    for ending in endings(&help) {
        assert!(reference.contains(ending), "…{ending} of `serve --help` is not in docs/reference");
    }
    // The other commands have options of their own, in tables of their own.
    let mut of_all = known;
    let commands = run(&["--help"], &[]).stdout;
    let commands = commands.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    for command in commands.take_while(|line| !line.trim().is_empty()).filter_map(|line| line.split_whitespace().next()) {
        of_all.extend(help_flags(&run(&[command, "--help"], &[]).stdout));
    }
    for (flag, variables) in &told {
        if flag.starts_with("--") {
            assert!(of_all.contains_key(flag), "docs/reference tells of {flag}, which no command has");
        }
        for variable in variables {
            let somewhere = help.contains(variable) || of_all.values().any(|variables| variables.contains(variable));
            assert!(somewhere, "docs/reference tells of {variable} for {flag}, which the help does not name");
        }
    }
}

#[test]
fn the_help_names_every_flag_with_its_variable() {
    let flags = help_flags(&run(&["serve", "--help"], &[]).stdout);
    let one = |flag: &str| flags[flag].iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(
        (one("--addr"), one("--name"), one("--forward-header")),
        (vec!["ADDR"], vec!["SERVICE_NAME"], vec!["FORWARD_HEADERS"])
    );
    assert_eq!(one("--trace-exporter"), ["OTEL_TRACES_EXPORTER"]);
    let without: Vec<_> = flags.iter().filter(|(_, variables)| variables.is_empty()).map(|(flag, _)| flag.as_str()).collect();
    assert_eq!(without, ["--quiet", "--verbose"]);
    let variables = help_variables(&run(&["serve", "--help"], &[]).stdout);
    for variable in ["OTEL_PROPAGATORS", "OTEL_EXPORTER_ZIPKIN_ENDPOINT", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_SDK_DISABLED"] {
        assert!(variables.contains(variable), "{variable}");
    }
}

#[test]
fn rows_are_read_as_they_are_written() {
    let reference = "| flag | variable |\n|---|---|\n| `--name` | `SERVICE_NAME`, else `OTEL_SERVICE_NAME` | `httpserver` | GET it |\n\
                  | `--upstream` (repeatable) | `UPSTREAM` (comma list) | none | x |\n| `-v`, `-q` | `RUST_LOG` | info | x |\n";
    let flags = documented_flags(reference);
    assert_eq!(flags.keys().collect::<Vec<_>>(), ["--name", "--upstream", "-v"]);
    let line = "| `OTEL_TRACES_SAMPLER`, `…_ARG` | x |";
    assert!(tells(line, "OTEL_TRACES_SAMPLER_ARG") && tells(line, "OTEL_TRACES_SAMPLER"));
    assert!(!tells(line, "OTEL_TRACES_EXPORTER") && !tells(line, "OTEL_OTHER_ARG") && !tells(line, "OTEL_TRACES"));
    assert_eq!(flags["--name"].iter().collect::<Vec<_>>(), ["OTEL_SERVICE_NAME", "SERVICE_NAME"]);
}
