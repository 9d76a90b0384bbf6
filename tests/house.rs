//! The layout of `src/`: which module may import which, how long files and functions may be, and that a type's name is its own.
//!
//! `ARCHITECTURE.md` has the picture; [`FLOORS`] is the same order as data. Every `crate::` and `super::` path counts, wherever it stands:
//! in a `use`, in a type, in an expression, in a macro's arguments. Code under `#[cfg(test)]` is left out: a test may look from anywhere.
//!
//! `cargo test --test house -- --nocapture` prints the lines of each room.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The rooms, top floor first. A room may import from its own floor's rooms not at all, and from every floor below.
const FLOORS: [&[&str]; 11] = [
    &["main"],
    &["cli", "fuzzing"],
    &["demo", "doctor", "probe"],
    &["check"],
    &["report"],
    &["config"],
    &["hop"],
    &["server", "upstream"],
    &["telemetry"],
    &["trace_context", "traces"],
    &["values", "net", "text", "system", "rpc"],
];

/// Lines of a file without its tests, and of a function with its signature.
const MAX_FILE: usize = 500;
const MAX_FUNCTION: usize = 80;

/// One file of `src/`, without what stands under `#[cfg(test)]`.
struct Source {
    path: PathBuf,
    /// `["hop", "exchange"]` for `src/hop/exchange.rs`; the crate's root is empty.
    module: Vec<String>,
    /// Non-test lines.
    lines: usize,
    /// The modules that it names, from the crate's root, with the line.
    paths: Vec<(Vec<String>, usize)>,
    /// Name, first line and number of lines of each function.
    functions: Vec<(String, usize, usize)>,
    /// Name and line of each type and trait, and of each alias outside functions and `impl` blocks.
    types: Vec<(String, usize)>,
}

/// Collects what a file says of other modules.
struct Reader {
    /// The module that the tokens belong to.
    module: Vec<String>,
    /// How many groups stand around the tokens, modules aside.
    depth: usize,
    source: Source,
}

impl Reader {
    fn read(path: &Path, root: &Path) -> Source {
        let text = fs::read_to_string(path).unwrap();
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut module: Vec<_> =
            path.strip_prefix(root).unwrap().with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
            module.pop();
        }
        let lines = text.lines().count();
        let source = Source {
            path: path.to_owned(),
            module: module.clone(),
            lines,
            paths: Vec::new(),
            functions: Vec::new(),
            types: Vec::new(),
        };
        let mut reader = Self { module, depth: 0, source };
        reader.tokens(tokens);
        reader.source
    }

    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            if let Some(end) = test_item(&tokens[at..]) {
                let (first, last) = (tokens[at].span().start().line, tokens[at + end - 1].span().end().line);
                self.source.lines -= last - first + 1;
                at += end;
                continue;
            }
            match &tokens[at] {
                TokenTree::Ident(ident) if (*ident == "crate" || *ident == "super") && is_path(&tokens[at + 1..]) => {
                    let mut base = if *ident == "crate" { Vec::new() } else { parent(&self.module) };
                    let line = ident.span().start().line;
                    at += 3;
                    while matches!(&tokens[at], TokenTree::Ident(ident) if *ident == "super") {
                        base = parent(&base);
                        at += 3;
                    }
                    at += self.path(base, &tokens[at..], line);
                    continue;
                }
                TokenTree::Ident(ident) if *ident == "mod" => {
                    if let (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) = (tokens.get(at + 1), tokens.get(at + 2))
                    {
                        self.module.push(name.to_string());
                        self.tokens(body.stream());
                        self.module.pop();
                        at += 3;
                        continue;
                    }
                }
                TokenTree::Ident(ident) if *ident == "fn" => self.function(&tokens[at..]),
                // Below the top a `type` is an item of a trait, whose name is the trait's.
                TokenTree::Ident(ident)
                    if ["struct", "enum", "trait"].iter().any(|kind| ident == kind) || self.depth == 0 && *ident == "type" =>
                {
                    if let Some(TokenTree::Ident(name)) = tokens.get(at + 1) {
                        self.source.types.push((name.to_string(), name.span().start().line));
                    }
                }
                TokenTree::Group(group) => {
                    self.depth += 1;
                    self.tokens(group.stream());
                    self.depth -= 1;
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// A path below `base`; a group in braces is one path for each of its members. Returns how many tokens it has.
    fn path(&mut self, mut base: Vec<String>, tokens: &[TokenTree], line: usize) -> usize {
        let mut at = 0;
        loop {
            match tokens.get(at) {
                Some(TokenTree::Ident(ident)) => base.push(ident.to_string()),
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    let members: Vec<_> = group.stream().into_iter().collect();
                    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(comma) if comma.as_char() == ',');
                    for member in members.split(is_comma).filter(|member| !member.is_empty()) {
                        self.path(base.clone(), member, line);
                    }
                    return at + 1;
                }
                _ => break,
            }
            at += 1;
            if !is_path(&tokens[at..]) {
                break;
            }
            at += 2;
        }
        self.source.paths.push((base, line));
        at
    }

    fn function(&mut self, tokens: &[TokenTree]) {
        let Some(TokenTree::Ident(name)) = tokens.get(1) else { return };
        let first = tokens[0].span().start().line;
        for token in &tokens[2..] {
            match token {
                TokenTree::Punct(end) if end.as_char() == ';' => return,
                TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => {
                    let last = body.span_close().end().line;
                    self.source.functions.push((name.to_string(), first, last - first + 1));
                    return;
                }
                _ => {}
            }
        }
    }
}

/// The number of tokens of an item under `#[cfg(test)]` (or `#[test]`), if the tokens begin with one.
fn test_item(tokens: &[TokenTree]) -> Option<usize> {
    let (TokenTree::Punct(hash), TokenTree::Group(attribute)) = (tokens.first()?, tokens.get(1)?) else { return None };
    let text = attribute.stream().to_string().replace(' ', "");
    if hash.as_char() != '#' || attribute.delimiter() != Delimiter::Bracket || !text.starts_with("cfg(test") {
        return None;
    }
    let is_end = |token: &TokenTree| match token {
        TokenTree::Punct(end) => end.as_char() == ';',
        TokenTree::Group(body) => body.delimiter() == Delimiter::Brace,
        _ => false,
    };
    Some(2 + tokens[2..].iter().position(is_end)? + 1)
}

/// Whether the tokens begin with `::`.
fn is_path(tokens: &[TokenTree]) -> bool {
    let colon = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(colon)) if colon.as_char() == ':');
    colon(tokens.first()) && colon(tokens.get(1))
}

fn parent(module: &[String]) -> Vec<String> {
    module[..module.len().saturating_sub(1)].to_vec()
}

fn sources() -> Vec<Source> {
    fn collect(folder: &Path, root: &Path, sources: &mut Vec<Source>) {
        let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                collect(&path, root, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.to_string_lossy().ends_with("tests.rs")
            {
                sources.push(Reader::read(&path, root));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    collect(&root, &root, &mut sources);
    assert!(sources.len() > 30, "{} files: is this the source?", sources.len());
    sources
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

#[test]
fn every_room_stands_on_a_floor_and_imports_only_from_below() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.module.is_empty()) {
        let room = &source.module[0];
        let Some(own) = floor(room) else {
            wrong.push(format!("{}: the room {room} is on no floor", source.path.display()));
            continue;
        };
        for (path, line) in &source.paths {
            let Some(other) = path.first().filter(|other| *other != room) else { continue };
            // What is no room is a name that lib.rs exports.
            match floor(other) {
                Some(below) if below > own => {}
                _ => wrong.push(format!("{}:{line}: {room} imports {}", source.path.display(), path.join("::"))),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = sources();
    let by_module: BTreeMap<_, _> = sources.iter().enumerate().map(|(i, source)| (source.module.clone(), i)).collect();
    // The file that defines a path: the one of its longest prefix that is a module. The crate's root only lists modules.
    let file_of = |path: &[String]| (1..=path.len()).rev().find_map(|length| by_module.get(&path[..length]).copied());
    let imports: Vec<BTreeSet<usize>> = sources
        .iter()
        .enumerate()
        .map(|(i, source)| source.paths.iter().filter_map(|(path, _)| file_of(path)).filter(|other| *other != i).collect())
        .collect();
    let reach = |from: usize| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            open.extend(imports[file].iter().filter(|next| reached.insert(**next)));
        }
        reached
    };
    let reached: Vec<_> = (0..sources.len()).map(reach).collect();
    let circle: Vec<_> = (0..sources.len())
        .filter(|file| reached[*file].contains(file))
        .map(|file| sources[file].path.display().to_string())
        .collect();
    assert!(circle.is_empty(), "in a circle of imports:\n{}", circle.join("\n"));
}

#[test]
fn files_and_functions_can_be_read_in_a_sitting() {
    let mut long = Vec::new();
    for source in sources() {
        if source.lines > MAX_FILE {
            long.push(format!("{}: {} lines without tests", source.path.display(), source.lines));
        }
        for (name, line, lines) in source.functions.iter().filter(|(_, _, lines)| *lines > MAX_FUNCTION) {
            long.push(format!("{}:{line}: {name} has {lines} lines", source.path.display()));
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn no_two_types_have_one_name() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources() {
        for (name, line) in &source.types {
            places.entry(name.clone()).or_default().push(format!("{}:{line}", source.path.display()));
        }
    }
    assert!(places.len() > 300, "{} types: is this the source?", places.len());
    let shared: Vec<_> =
        places.iter().filter(|(_, at)| at.len() > 1).map(|(name, at)| format!("{name}: {}", at.join(", "))).collect();
    assert!(shared.is_empty(), "one name for several types:\n{}", shared.join("\n"));
}

#[test]
fn the_lines_of_each_room_are_printed() {
    let mut rooms: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for source in sources() {
        let room = source.module.first().cloned().unwrap_or_else(|| "lib".to_owned());
        let (files, lines) = rooms.entry(room).or_default();
        *files += 1;
        *lines += source.lines;
    }
    println!("{:>8} {:>6}  room (lines without tests)", "lines", "files");
    for (room, (files, lines)) in &rooms {
        println!("{lines:>8} {files:>6}  {room}");
    }
    println!(
        "{:>8} {:>6}  in all",
        rooms.values().map(|room| room.1).sum::<usize>(),
        rooms.values().map(|room| room.0).sum::<usize>()
    );
    for room in FLOORS.concat() {
        assert!(rooms.contains_key(room), "no room {room} in src/");
    }
}

/// Words that stand for a technical term, each with the term. Names in the code count, too.
const BANNED: [(&str, &str); 26] = [
    ("thrown away", "discarded"),
    ("onion", "layers"),
    (" in hand", "in flight"),
    ("not judged", "not checked"),
    ("judged", "checked or compared"),
    ("Judged", "what was found"),
    ("fn judge", "what it compares"),
    ("a stranger", "a foreign response"),
    ("Stranger", "ForeignApp"),
    ("another make", "a foreign app; to users: an app that is not httpserver"),
    (" Errors: ", "a section # Errors"),
    ("autopsy", "what it collects"),
    ("foresee", "expect"),
    ("render_ties", "id_links"),
    ("quiet_one", "silent_sidecar"),
    ("enum Mood", "a mode"),
    ("enum Fate", "an outcome"),
    ("enum Place", "a scope"),
    ("enum Effect", "a change"),
    ("struct Lease", "PooledCall"),
    ("fn look(", "what it collects"),
    ("fn told(", "a message"),
    ("fn said(", "a text"),
    ("fn keep(", "record or insert"),
    ("fn follow(", "execute or check"),
    ("fn held(", "what is stored"),
];

#[test]
fn comments_and_guides_use_the_technical_term() {
    fn texts(path: &Path, files: &mut Vec<PathBuf>) {
        if path.is_dir() {
            fs::read_dir(path).unwrap().for_each(|entry| texts(&entry.unwrap().path(), files));
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "md") {
            files.push(path.to_owned());
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for path in ["src", "docs", "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"] {
        texts(&root.join(path), &mut files);
    }
    let mut wrong = Vec::new();
    for file in &files {
        for (i, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
            for (word, term) in BANNED.iter().filter(|(word, _)| line.contains(word)) {
                wrong.push(format!("{}:{}: write {term} for {}", file.display(), i + 1, word.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
