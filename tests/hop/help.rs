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
fn the_usage_says_that_the_command_may_be_left_out() {
    assert!(run(&["--help"], &[]).stdout.contains("Usage: httpserver [COMMAND]"));
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

/// What bash offers after these words, with the completions that the program prints.
fn offered(words: &str) -> Vec<String> {
    let completions = run(&["completions", "bash"], &[]).stdout;
    let script = format!(
        "{completions}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
         _httpserver httpserver \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    let output = std::process::Command::new("bash").args(["-c", &script]).output().expect("bash");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn completions_have_every_command_and_its_flags() {
    assert_eq!(offered("httpserver che"), ["check"]);
    assert_eq!(offered("httpserver check --expect-s"), ["--expect-sampling", "--expect-success", "--expect-split"]);
    assert_eq!(offered("httpserver serve --fan-out s"), ["sequential"]);
    let flags: Vec<_> = help_flags(&run(&["serve", "--help"], &[]).stdout).into_keys().collect();
    for (shell, flag) in [("zsh", "--"), ("fish", "-l "), ("elvish", "--"), ("powershell", "--")] {
        let script = run(&["completions", shell], &[("ADDR", ":1")]);
        assert_eq!((script.code, script.stderr.as_str()), (Some(0), ""), "{shell}");
        for name in &flags {
            assert!(script.stdout.contains(&name.replacen("--", flag, 1)), "{shell}: {name}");
        }
    }
    let refused = run(&["completions", "tcsh"], &[]);
    assert!(refused.code == Some(2) && refused.stderr.contains("tcsh") && refused.stderr.contains("fish"), "{refused:?}");
}

#[test]
fn manual_pages_have_every_flag_and_no_value_of_this_machine() {
    let plain = |page: &str| page.replace("\\-", "-").replace("\\fR", "");
    let whole = plain(&run(&["manpage"], &[]).stdout);
    let commands = ["serve", "demo", "store", "check", "trace", "probe", "doctor", "health", "completions", "manpage"];
    for command in commands {
        assert!(whole.contains(&format!("httpserver-{command}(1)")), "{command}: {whole}");
        let page = run(&["manpage", command], &[("ADDR", "192.0.2.7:1"), ("OTEL_TRACES_EXPORTER", "zipkin")]);
        assert_eq!((page.code, page.stderr.as_str()), (Some(0), ""), "{command}");
        assert!(
            page.stdout.contains(&format!(".TH httpserver-{command} 1")) && !page.stdout.contains("192.0.2.7"),
            "{}",
            page.stdout
        );
        for (flag, variables) in help_flags(&run(&[command, "--help"], &[]).stdout) {
            let text = plain(&page.stdout);
            assert!(text.contains(&flag), "{command}: {flag}");
            assert!(variables.iter().all(|variable| text.contains(variable.as_str())), "{command}: {variables:?}");
        }
    }
    let refused = run(&["manpage", "sevre"], &[]);
    assert!(refused.code == Some(2) && refused.stderr.contains("sevre") && refused.stderr.contains("serve, demo"), "{refused:?}");
}
