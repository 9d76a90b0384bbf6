//! Every command line of this program in a guide is one that it accepts.

use std::fs;
use std::process::Command;

use crate::{BINARY, blocks, guides, root};

/// What `scripts/gateway-address.sh` sets, and what lines of lessons set before.
const SET: [(&str, &str); 4] = [
    ("INGRESS_HOST", "192.0.2.1"),
    ("INGRESS_PORT", "80"),
    ("SECURE_INGRESS_PORT", "443"),
    ("id", "4bf92f3577b34da6a3ce929d0e0e4736"),
];

/// The command lines in the shell blocks of a text, continued lines joined.
fn lines(text: &str) -> Vec<String> {
    let all: Vec<_> = text.lines().collect();
    let shell = blocks(text).into_iter().filter(|block| block.info.split_whitespace().next() == Some("sh"));
    let joined = shell.flat_map(|block| {
        all[block.lines].join("\n").replace("\\\n", " ").lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    });
    joined.filter_map(|line| own(&line)).collect()
}

/// The arguments of a line that runs this program, without what the shell does after it.
fn own(line: &str) -> Option<String> {
    let starts = ["httpserver ", "target/release/httpserver ", "cargo run --release -- "];
    let rest = starts.iter().find_map(|start| line.strip_prefix(start))?;
    let end = [" | ", " >", " 2>", " &", "  #", "; "].iter().filter_map(|stop| rest.find(stop)).min().unwrap_or(rest.len());
    Some(rest[..end].trim_end().to_owned())
}

#[test]
fn every_command_line_is_accepted() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for file in guides().iter().filter(|file| !file.ends_with("CHANGELOG.md")) {
        for line in lines(&fs::read_to_string(file).unwrap()) {
            count += 1;
            // clap reads what is left of `--help` first, and stops there.
            let script = format!("\"$0\" {line} --help >/dev/null");
            let mut bash = Command::new("bash");
            bash.args(["-c", &script, BINARY]).current_dir(root()).envs(SET);
            let output = bash.output().unwrap();
            if !output.status.success() {
                wrong.push(format!("{}: httpserver {line}\n{}", file.display(), String::from_utf8_lossy(&output.stderr)));
            }
        }
    }
    assert!(count > 5, "only {count} command lines were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn command_lines_are_read_as_they_are_written() {
    let text = "```sh\ncargo run --release -- demo      # all\nhttpserver check URL \\\n  --count 1 | tail -1\ncurl x\n```\n```\nhttpserver no\n```\n";
    assert_eq!(lines(text), ["demo", "check URL    --count 1"]);
}
