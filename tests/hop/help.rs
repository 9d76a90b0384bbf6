//! `--help` names every flag with its variable. `tests/docs` compares it with the reference.

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
