//! Every package has one job: the table "Packages" in ARCHITECTURE.md and the dependencies in Cargo.toml are the same list.

use std::collections::BTreeSet;

/// The names in backticks in the first column of the table under a heading that contains "Packages".
fn table(architecture: &str) -> BTreeSet<String> {
    let section = architecture.lines().skip_while(|line| !(line.starts_with('#') && line.contains("Packages"))).skip(1);
    let rows = section.take_while(|line| !line.starts_with('#')).filter_map(|line| line.trim().strip_prefix('|'));
    let first = rows.filter_map(|row| row.split('|').next()).filter(|cell| cell.contains('`'));
    first.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(|name| name.trim().to_owned()).collect()
}

/// The names in one section of Cargo.toml.
fn section(manifest: &str, name: &str) -> BTreeSet<String> {
    let lines = manifest.lines().skip_while(|line| line.trim() != format!("[{name}]")).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines
        .filter(|line| line.starts_with(|first: char| first.is_ascii_alphanumeric()))
        .filter_map(|line| Some(line.split_once('=')?.0.trim().to_owned()))
        .collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn the_table_of_packages_is_the_list_of_dependencies() {
    let root = env!("CARGO_MANIFEST_DIR");
    let manifest = std::fs::read_to_string(format!("{root}/Cargo.toml")).unwrap();
    let architecture = std::fs::read_to_string(format!("{root}/ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
    let (told, used) = (table(&architecture), section(&manifest, "dependencies"));
    // What only tests and benches use may have a row, but need not.
    let for_tests = section(&manifest, "dev-dependencies");
    let missing: Vec<_> = used.difference(&told).collect();
    let extra: Vec<_> = told.iter().filter(|name| !used.contains(*name) && !for_tests.contains(*name)).collect();
    assert!(!used.is_empty() && !told.is_empty());
    assert!(missing.is_empty(), "these dependencies have no row in ARCHITECTURE.md, \"Packages\": {missing:?}");
    assert!(extra.is_empty(), "these rows of ARCHITECTURE.md, \"Packages\", are no dependencies: {extra:?}");
}

#[test]
fn rows_and_sections_are_read_as_they_are_written() {
    let text = "# A\n| `no` | x |\n## Packages and their jobs\nWhy `not`.\n\n| package | job |\n|---|---|\n| `axum`, `tokio` | a `Router` |\n\
                | `hyper` | b |\n\n## Next\n| `after` | x |\n";
    assert_eq!(table(text), set(["axum", "tokio", "hyper"]));
    let manifest = "[package]\nname = \"x\"\n[dependencies]\n# why\naxum = { version = \"1\" }\nbytes = \"1\"\n\n[dev-dependencies]\nprost = \"1\"\n";
    assert_eq!(section(manifest, "dependencies"), set(["axum", "bytes"]));
    assert_eq!(section(manifest, "dev-dependencies"), set(["prost"]));
}
