//! What `cargo deny` looks at without a network, for every change: sources, licences, crates that are not wanted, duplicates. The rules
//! are those of `deny.toml`; `cargo deny` itself takes longer to install than everything else that is checked, and knows advisories, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The quoted texts of an array in a section of deny.toml; of tables in it those of their key `crate`.
fn listed(text: &str, section: &str, key: &str) -> Vec<String> {
    let lines = text.lines().skip_while(|line| line.trim() != format!("[{section}]")).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('[')).skip_while(|line| *line != format!("{key} = [")).skip(1);
    lines
        .take_while(|line| *line != "]")
        .filter_map(|line| Some(line.split_once("crate = ").map_or(line, |(_, rest)| rest).split('"').nth(1)?.to_owned()))
        .collect()
}

/// Whether a licence expression (SPDX) can be met with the licences in `allowed`.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    /// Alternatives, down to the closing parenthesis or the end.
    fn any(words: &mut Vec<&str>, allowed: &[String]) -> bool {
        let mut met = all(words, allowed);
        while words.last() == Some(&"OR") {
            words.pop();
            met |= all(words, allowed);
        }
        met
    }
    fn all(words: &mut Vec<&str>, allowed: &[String]) -> bool {
        let mut met = one(words, allowed);
        while words.last() == Some(&"AND") {
            words.pop();
            met &= one(words, allowed);
        }
        met
    }
    fn one(words: &mut Vec<&str>, allowed: &[String]) -> bool {
        let mut name = words.pop().expect("a licence").to_owned();
        if name == "(" {
            let met = any(words, allowed);
            assert_eq!(words.pop(), Some(")"));
            return met;
        }
        if words.last() == Some(&"WITH") {
            words.pop();
            name = format!("{name} WITH {}", words.pop().expect("an exception"));
        }
        allowed.contains(&name)
    }
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words: Vec<_> = spaced.split_whitespace().rev().collect();
    let met = any(&mut words, allowed);
    assert!(words.is_empty(), "{expression} is not read to its end");
    met
}

/// Every package that is linked into the binary on this system, or that builds it.
fn shipped() -> Vec<Value> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes: BTreeMap<_, _> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| (node["id"].as_str().unwrap(), node)).collect();
    let (mut found, mut waiting) = (BTreeSet::new(), vec![metadata["resolve"]["root"].as_str().unwrap()]);
    while let Some(id) = waiting.pop() {
        if found.insert(id) {
            let below = nodes[id]["deps"].as_array().unwrap().iter();
            let wanted = below.filter(|dep| dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev"));
            waiting.extend(wanted.map(|dep| dep["pkg"].as_str().unwrap()));
        }
    }
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.filter(|package| found.contains(package["id"].as_str().unwrap())).cloned().collect()
}

#[test]
fn what_is_shipped_keeps_to_the_rules_of_deny_toml() {
    let rules = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml")).unwrap();
    let (allowed, unwanted, skipped) =
        (listed(&rules, "licenses", "allow"), listed(&rules, "bans", "deny"), listed(&rules, "bans", "skip"));
    assert!(allowed.len() > 3 && unwanted.len() > 2 && !skipped.is_empty(), "{allowed:?} {unwanted:?} {skipped:?}");
    let packages = shipped();
    assert!(packages.len() > 100, "{}", packages.len());
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in &packages {
        let (name, version) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        assert!(package["source"] == CRATES_IO || name == "httpserver", "{name} comes from {}", package["source"]);
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(!licence.is_empty() && is_met(licence, &allowed), "{name} {version} is under {licence}");
        assert!(!unwanted.iter().any(|unwanted| unwanted == name), "{name} is in the binary");
        let is_skipped = skipped.iter().any(|skip| {
            let (known, from) = skip.split_once('@').unwrap();
            known == name && (version == from || version.starts_with(&format!("{from}.")))
        });
        if !is_skipped {
            versions.entry(name).or_default().push(version);
        }
    }
    versions.retain(|_, versions| versions.len() > 1);
    assert!(versions.is_empty(), "more than one version of {versions:?}");
}

#[test]
fn rules_and_expressions_are_read_as_they_are_written() {
    let rules = "[a]\nallow = [\n  \"no\",\n]\n[b]\nallow = [\n  \"X\", # why\n  \"Y WITH z\",\n]\ndeny = [\n  { crate = \"c@1\", reason = \"r\" },\n]\n";
    let allowed = listed(rules, "b", "allow");
    assert_eq!(allowed, ["X", "Y WITH z"]);
    assert_eq!(listed(rules, "b", "deny"), ["c@1"]);
    for met in ["X", "X OR N", "N OR X", "N/X", "Y WITH z", "X AND (N OR Y WITH z)", "(X)"] {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in ["N", "X AND N", "Y", "N OR M", "(X OR Y WITH z) AND N", "X WITH z"] {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}

/// The files that a source of `src/` includes, but for those of its tests, as paths from the top.
fn included(source: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(source).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.split("include")
        .skip(1)
        .filter_map(|rest| rest.strip_prefix("_str!(\"").or(rest.strip_prefix("_bytes!(\"")).or(rest.strip_prefix("!(\"")))
        .filter_map(|rest| rest.split('"').next())
        .map(|name| source.parent().unwrap().join(name).canonicalize().unwrap())
        .collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: PathBuf| match path.is_dir() {
        true => sources(&path),
        false => vec![path],
    };
    entries.flat_map(of).filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn the_image_is_built_from_all_that_the_sources_include() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().unwrap();
    let read = |name: &str| fs::read_to_string(top.join(name)).unwrap();
    let (dockerfile, sent) = (read("Dockerfile"), read(".dockerignore"));
    let mut folders = BTreeSet::new();
    for source in sources(&top.join("src")) {
        for file in included(&source) {
            folders
                .insert(file.strip_prefix(&top).unwrap().components().next().unwrap().as_os_str().to_str().unwrap().to_owned());
        }
    }
    assert!(folders.contains("proto"), "{folders:?}");
    for folder in folders {
        assert!(dockerfile.contains(&format!("\nCOPY {folder} {folder}\n")), "Dockerfile copies no {folder}");
        assert!(sent.lines().any(|line| line == format!("!{folder}")), ".dockerignore leaves {folder} out");
    }
}
