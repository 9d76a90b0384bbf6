//! Every relative link of a guide leads to a file that is there, and to a heading that it has.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::guides;

/// The text without blocks of code and without code in a line: links in there are examples.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            // Code with a link around it stays a link: only what is between two backticks goes.
            line.split('`').step_by(2).for_each(|part| prose.push_str(part));
        }
        prose.push('\n');
    }
    prose
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        let heading = line.trim_start_matches('#');
        if fenced || heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let first = anchor(heading);
        let next = (1..).map(|n| format!("{first}-{n}"));
        let free = std::iter::once(first.clone()).chain(next).find(|name| !anchors.contains(name));
        anchors.extend(free);
    }
    anchors
}

/// What is wrong with a link from a file.
fn broken(file: &Path, target: &str) -> Option<String> {
    let (path, fragment) = target.split_once('#').map_or((target, None), |(path, fragment)| (path, Some(fragment)));
    let there = if path.is_empty() { file.to_owned() } else { file.parent().unwrap().join(path) };
    if !there.exists() {
        return Some(format!("{}: there is no {path}", file.display()));
    }
    let fragment = fragment?;
    let found = there.is_file() && anchors(&fs::read_to_string(&there).unwrap()).contains(fragment);
    (!found).then(|| format!("{}: {} has no heading #{fragment}", file.display(), there.display()))
}

#[test]
fn every_link_leads_somewhere() {
    let (mut wrong, mut links) = (Vec::new(), 0);
    for file in guides() {
        let text = prose(&fs::read_to_string(&file).unwrap());
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', ' ', '\n']).next().unwrap();
            if !target.contains("://") && !target.starts_with("mailto:") {
                links += 1;
                wrong.extend(broken(&file, target));
            }
        }
    }
    assert!(links > 50, "only {links} links were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn headings_and_links_are_read_as_they_are_written() {
    let text = "# The four tutorials, line by line\n## `serve`\n```\n# no\n```\n## Who may do what?\n## `serve`\n#no\n";
    let expected = ["serve", "serve-1", "the-four-tutorials-line-by-line", "who-may-do-what"].map(str::to_owned);
    assert_eq!(anchors(text), BTreeSet::from(expected));
    assert_eq!(prose("[`a`](b) and `[c](d)`\n```\n[e](f)\n```"), "[](b) and \n\n\n\n");
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    assert!(
        broken(&here, "no-such.md").is_some()
            && broken(&here, "docs/check.md#no-such").is_some()
            && broken(&here, "#nowhere").is_some()
    );
    assert!(broken(&here, "docs/reference").is_none() && broken(&here, "#what-you-see").is_none());
}
