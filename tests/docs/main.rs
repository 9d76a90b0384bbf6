//! The guides are true: the options are those of the help, links lead somewhere, commands are accepted, and the course prints what it says.
//!
//! `UPDATE_DOCS=yes cargo test --test docs` writes what can be written: `docs/reference/options.md`, `environment.md`, `exit-codes.md`, and
//! the outputs in `docs/course`.

mod commands;
mod course;
mod exit_codes;
mod links;
mod reference;

use std::fs;
use std::path::{Path, PathBuf};

const BINARY: &str = env!("CARGO_BIN_EXE_httpserver");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every guide of the project.
fn guides() -> Vec<PathBuf> {
    fn collect(path: &Path, files: &mut Vec<PathBuf>) {
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "target" && name != "node_modules" && (!name.starts_with('.') || path == root()) {
            fs::read_dir(path).unwrap().for_each(|entry| collect(&entry.unwrap().path(), files));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path.to_owned());
        }
    }
    let mut files = Vec::new();
    collect(root(), &mut files);
    files.sort();
    files
}

/// Compares a file with what it should be, or writes it. The error shows the first line that differs as `seen` shows it.
fn expect(path: &Path, text: &str, seen: fn(&str) -> String) {
    let old = fs::read_to_string(path).unwrap();
    if old == text {
        return;
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return fs::write(path, text).unwrap();
    }
    let mut lines = old.lines().zip(text.lines()).enumerate();
    let (line, (old, new)) =
        lines.find(|(_, (old, new))| seen(old) != seen(new)).unwrap_or((old.lines().count(), ("", "more or fewer lines")));
    let at = format!("{}:{}", path.display(), line + 1);
    panic!("{at} has\n  {old}\nand should have\n  {new}\nWrite it with: UPDATE_DOCS=yes cargo test --test docs");
}

/// A fenced block: where its text begins and ends in the file's lines, and the words behind the fence.
struct Block {
    info: String,
    lines: std::ops::Range<usize>,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, usize)> = None;
    for (i, line) in text.lines().enumerate() {
        let Some(info) = line.trim_start().strip_prefix("```") else { continue };
        match open.take() {
            Some((info, begin)) => blocks.push(Block { info, lines: begin..i }),
            None => open = Some((info.trim().to_owned(), i + 1)),
        }
    }
    assert!(open.is_none(), "a block of code is not closed");
    blocks
}

#[test]
fn blocks_are_read_as_they_are_written() {
    let found = blocks("a\n```sh\nb\nc\n```\nd\n   ```\n   e\n   ```\n");
    let found: Vec<_> = found.iter().map(|block| (block.info.as_str(), block.lines.clone())).collect();
    assert_eq!(found, [("sh", 2..4), ("", 7..8)]);
}
