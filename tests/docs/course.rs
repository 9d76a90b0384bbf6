//! Runs the lessons of `docs/course` and the reports of other guides, and compares their outputs.
//!
//! A lesson with [`ALONE`] in its first line needs nothing but this program, and each `cargo test` runs it; of another guide it runs what is below that mark. One with [`IN_MESH`] needs a
//! cluster that kubectl reaches, with Istio and the image in it; but for the sixth, the chain is there, and its certificate in `certs`:
//! `LESSONS=07,08 cargo test --test docs mesh -- --ignored`. One with [`WITH_COLLECTOR`] needs an `otelcol` with tail sampling beside this program: `scripts/e2e.sh collector`. A lesson's `sh` blocks run one after the other in one bash; a `text` block behind one is its
//! output. A block `sh terminal=2` runs beside the others until the next such block, and counts as started when its ports can be
//! connected to. Ids, times and bars are different each time: [`masked`] leaves them out of the comparison. In a block `text about` numbers
//! are chance, too. A line `…` of a block stands for any number of lines: [`alike`].

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{BINARY, Block, blocks, expect, guides, root};

const ALONE: &str = "<!-- run by tests/docs -->";
const IN_MESH: &str = "<!-- run by tests/docs on a cluster -->";
const WITH_COLLECTOR: &str = "<!-- run by tests/docs with an OpenTelemetry Collector -->";

/// The ports that lessons name. Each run takes others of as many digits, so that texts wrap as they do in the lesson.
const PORTS: [u16; 6] = [8080, 8081, 8082, 8083, 9000, 9411];

/// `demo` has its ports by default: here it gets those of this run, unless `--once` picks them. What runs beside replaces its subshell, so
/// that `stop` meets the program itself.
const PRELUDE: &str = r#"exec 2>&1
cd "$(mktemp -d)"
trap 'stop; rm -r "$PWD"' EXIT
httpserver() {
  case "$* " in
    *" --once "*) ;;
    demo\ *) set -- "$@" --port FIRST --store-port STORE ;;
  esac
  if [ "$BASHPID" = $$ ]; then command httpserver "$@"; else exec httpserver "$@"; fi
}
stop() { { kill -KILL $(jobs -p); wait; } 2>/dev/null; }"#;

/// In a mesh: from the top of the repository, as the lessons say. What runs beside is `kubectl`, which takes a moment.
const MESH_PRELUDE: &str = r#"exec 2>&1
cd "ROOT"
trap stop EXIT
stop() { { kill -KILL $(jobs -p); wait; } 2>/dev/null; }"#;

/// Those of this run, in the order of [`PORTS`].
struct Ports([u16; PORTS.len()]);

impl Ports {
    /// In a row: `demo` counts from its first port on.
    fn free(lesson: usize) -> Self {
        let mut first = 2001 + (std::process::id() as u16 % 50) * 100 + lesson as u16 * 20;
        let row = |first: u16| first..first + PORTS.len() as u16;
        while let Some(taken) = row(first).rfind(|port| TcpListener::bind(("127.0.0.1", *port)).is_err()) {
            first = taken + 1;
        }
        Self(std::array::from_fn(|i| first + i as u16))
    }

    /// The text with the ports of this run, or the other way round.
    fn replace(&self, text: &str, back: bool) -> String {
        PORTS.iter().zip(self.0).fold(text.to_owned(), |text, (port, own)| {
            let (from, to) = if back { (own, *port) } else { (*port, own) };
            text.replace(&format!(":{from}"), &format!(":{to}")).replace(&format!("port {from}"), &format!("port {to}"))
        })
    }
}

/// One bash that runs the blocks of a lesson.
pub(crate) struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// `None`: commands and outputs stay as they are.
    ports: Option<Ports>,
}

impl Shell {
    pub(crate) fn new(lesson: usize) -> Self {
        let ports = Ports::free(lesson);
        let [first, .., store] = ports.0;
        let prelude = PRELUDE.replace("FIRST", &first.to_string()).replace("STORE", &store.to_string());
        Self::start(&prelude, Some(ports))
    }

    fn in_mesh() -> Self {
        Self::start(&MESH_PRELUDE.replace("ROOT", root().to_str().unwrap()), None)
    }

    fn start(prelude: &str, ports: Option<Ports>) -> Self {
        let collector = std::env::var("OTELCOL_BIN").unwrap_or_default();
        let directories = [BINARY, &collector].map(|binary| Path::new(binary).parent().unwrap_or(Path::new("")).display());
        let path = format!("{}:{}:{}", directories[0], std::env::var("PATH").unwrap(), directories[1]);
        let mut bash = Command::new("bash");
        bash.env("PATH", path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = bash.spawn().expect("bash");
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut shell = Self { child, input, output, ports };
        shell.run(prelude);
        shell
    }

    /// A text with the ports of this run, or with those of the lesson.
    fn replaced(&self, text: &str, back: bool) -> String {
        self.ports.as_ref().map_or_else(|| text.to_owned(), |ports| ports.replace(text, back))
    }

    /// Runs commands to their end and returns what they print.
    pub(crate) fn run(&mut self, commands: &str) -> String {
        let commands = self.replaced(commands, false);
        writeln!(self.input, "{{ {commands}\n}} </dev/null; printf '\\n<<end>>\\n'").unwrap();
        let mut text = String::new();
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "bash ended within:\n{commands}\n{text}");
            if line == "<<end>>\n" {
                break;
            }
            text.push_str(&line);
        }
        let text = text.replace(root().to_str().unwrap(), "/home/you/httpserver");
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let text = self.replaced(text.trim_end(), true).replace(&format!(" {} ", host.trim()), " vm ");
        text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// Runs a command beside the others, in place of the one before it.
    pub(crate) fn beside(&mut self, command: &str) {
        // On 9000 `probe` listens.
        let listens = PORTS.iter().filter(|port| **port != 9000 && command.contains(&format!(":{port}")));
        let listens: Vec<_> = listens.collect();
        let listens = match command {
            _ if command.contains("demo") => vec![&PORTS[0], &PORTS[5]],
            _ if command.contains("scripts/open-jaeger.sh") => vec![&16686],
            _ => listens,
        };
        // kubectl's `port-forward`: the first of `18081:8080` is here.
        let forwarded = command.split_whitespace().filter_map(|word| word.split_once(':'));
        let forwarded = forwarded.filter(|(_, there)| there.parse::<u16>().is_ok()).find_map(|(here, _)| here.parse().ok());
        let listens = forwarded.as_ref().map_or(listens, |port| vec![port]);
        let waits: String = listens
            .iter()
            .map(|port| format!("until (: </dev/tcp/127.0.0.1/:{port}) 2>/dev/null; do sleep 0.1; ((++tries < 600)) || {{ echo 'nothing listens'; break; }}; done; "))
            .collect();
        // The path of the redirection has no colon: it is there for the ports to be replaced.
        let waits = self.replaced(&waits, false).replace("/:", "/");
        let said = self.run(&format!("stop; {{ {command} & }} >/dev/null 2>&1; tries=0; {waits}"));
        assert!(!said.contains("nothing listens"), "after a minute nothing listens where this should:\n{command}");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = writeln!(self.input, "exit");
        let _ = self.child.wait();
    }
}

/// `service1-7654b5779c-pqqgk`: a pod's name, which a Deployment makes.
fn is_pod(word: &str) -> bool {
    let made = |part: Option<&str>, lengths: std::ops::RangeInclusive<usize>| {
        part.is_some_and(|part| {
            lengths.contains(&part.len()) && part.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b))
        })
    };
    let mut parts = word.rsplit('-');
    made(parts.next(), 5..=5) && made(parts.next(), 8..=10) && parts.next().is_some()
}

/// From the range that Kubernetes takes them of.
fn is_node_port(word: &str) -> bool {
    word.len() == 5 && word.parse().is_ok_and(|port: u16| (30_000..=32_767).contains(&port))
}

/// The words of a block as [`masked`] has them, and without any number: how many requests met what is chance, and so is where a sentence
/// with a number in it is wrapped. Of `v1=91.7,v2=8.3` the versions stay.
fn words_about<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let share = |part: &str| part.split_once('=').map_or_else(|| part.to_owned(), |(version, _)| format!("{version}=N"));
    let word = |word: &str| match word {
        _ if !word.bytes().any(|b| b.is_ascii_digit()) => word.to_owned(),
        _ if word.starts_with('v') => word.split(',').map(share).collect::<Vec<_>>().join(","),
        _ => "N".to_owned(),
    };
    lines.flat_map(|line| masked(line).split_whitespace().map(word).collect::<Vec<_>>()).collect()
}

/// A line without what differs from run to run: ids, times, sizes, the bars of a waterfall and the width of columns.
fn masked(line: &str) -> String {
    let bars = |c: char| ('\u{2580}'..='\u{259f}').contains(&c) || c == '┊';
    if let Some(name) = ["date:", "content-length:"].into_iter().find(|name| line.starts_with(name)) {
        return name.to_owned();
    }
    // How many is chance.
    let line = line.strip_suffix("requests failed").map_or(line, |rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    let line = line.replace(bars, " ");
    let mut parts = line.split("127.0.0.1:");
    let mut line = parts.next().unwrap().to_owned();
    parts.for_each(|part| line.extend(["127.0.0.1", part.trim_start_matches(|c: char| c.is_ascii_digit())]));
    let mut words: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let has_id = |text: &str| {
            text.split(|c: char| !c.is_ascii_alphanumeric())
                .any(|part| part.len() >= 8 && part.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        let number = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b':')
        };
        let unit = ["ms", "us", "s", "B", ""].iter().any(|unit| bare.strip_suffix(unit).is_some_and(number));
        let unit = unit && (!number(bare) || bare.contains('.'));
        let time = bare.starts_with("20") && bare.contains('T');
        let word = match () {
            () if time || unit || is_pod(bare) || is_node_port(bare) => "N".to_owned(),
            // Not what is around an id: the names of fields stay.
            () if has_id(word) => {
                let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '…');
                let chunks = word.split_inclusive(|c| !is_part(c)).map(|chunk| {
                    let text = chunk.trim_end_matches(|c| !is_part(c));
                    let varies = has_id(text) || text.starts_with(|c: char| c.is_ascii_digit());
                    if varies { format!("N{}", &chunk[text.len()..]) } else { chunk.to_owned() }
                });
                chunks.collect()
            }
            () => word.to_owned(),
        };
        if word != "N" || words.last().is_none_or(|last| last != "N") {
            words.push(word);
        }
    }
    words.join(" ")
}

/// Whether what is printed is what is written, line by line or word by word, where `…` is written for any number of them, or none.
fn alike(written: &[String], printed: &[String]) -> bool {
    match written.split_first() {
        None => printed.is_empty(),
        Some((line, rest)) if line == "…" => (0..=printed.len()).any(|left_out| alike(rest, &printed[left_out..])),
        Some((line, rest)) => printed.first() == Some(line) && alike(rest, &printed[1..]),
    }
}

fn lessons(mark: &str) -> Vec<PathBuf> {
    let mut files = guides();
    files.retain(|file| fs::read_to_string(file).is_ok_and(|text| text.lines().any(|line| line == mark)));
    files
}

/// The lesson with the outputs of this run, where they differ in more than what is masked.
fn lesson(text: &str, shell: &mut Shell) -> String {
    let lines: Vec<_> = text.lines().collect();
    let mut result = String::new();
    let (mut written, mut commands, mut output) = (0, String::new(), None);
    let mark = lines.iter().position(|line| line.starts_with("<!-- run by tests/docs")).expect("a mark");
    for Block { info, lines: range } in blocks(text).into_iter().filter(|block| block.lines.start > mark) {
        match info.as_str() {
            "sh" => {
                commands = lines[range].join("\n");
                output = Some(shell.run(&commands));
            }
            "sh terminal=2" => shell.beside(&lines[range].join("\n")),
            "text" | "text about" => {
                let mut new = output.take().expect("a block of commands before an output");
                let seen = |lines: &[&str]| match info.as_str() {
                    "text" => lines.iter().map(|line| masked(line)).collect(),
                    _ => words_about(lines.iter().copied()),
                };
                let same = |new: &str| alike(&seen(&lines[range.clone()]), &seen(&new.lines().collect::<Vec<_>>()));
                // A hop writes a line after its answer: what only reads files is read again until the line is there.
                let deadline = Instant::now() + Duration::from_secs(20);
                while !same(&new) && commands.lines().all(|line| line.starts_with("cat ")) && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(50));
                    new = shell.run(&commands);
                }
                let same = same(&new);
                lines[written..range.start].iter().for_each(|line| result.push_str(&format!("{line}\n")));
                written = if same { range.start } else { range.end };
                result.push_str(if same { "" } else { &new });
            }
            _ => {}
        }
    }
    lines[written..].iter().for_each(|line| result.push_str(&format!("{line}\n")));
    result
}

#[test]
fn every_lesson_prints_what_it_says() {
    let lessons = lessons(ALONE);
    assert!(lessons.len() >= 8, "{lessons:?}");
    // Side by side: most of a lesson is waiting.
    std::thread::scope(|scope| {
        for (i, path) in lessons.iter().enumerate() {
            let run = move || {
                let text = fs::read_to_string(path).unwrap();
                expect(path, &lesson(&text, &mut Shell::new(i)), masked);
            };
            scope.spawn(run);
        }
    });
}

#[test]
#[ignore = "needs an OpenTelemetry Collector: scripts/e2e.sh collector"]
fn every_lesson_with_a_collector_prints_what_it_says() {
    let lessons = lessons(WITH_COLLECTOR);
    assert!(!lessons.is_empty());
    for (i, path) in lessons.iter().enumerate() {
        let text = fs::read_to_string(path).unwrap();
        expect(path, &lesson(&text, &mut Shell::new(i)), masked);
    }
}

#[test]
#[ignore = "needs a cluster with Istio, and changes what is in it"]
fn every_lesson_in_the_mesh_prints_what_it_says() {
    let named = std::env::var("LESSONS").unwrap_or_default();
    let named: Vec<_> = named.split(',').collect();
    let wanted = |path: &PathBuf| named.iter().any(|name| path.file_name().unwrap().to_str().unwrap().starts_with(name));
    let lessons: Vec<_> = lessons(IN_MESH).into_iter().filter(wanted).collect();
    assert!(!lessons.is_empty(), "no lesson is called so");
    for path in lessons {
        let begun = std::time::Instant::now();
        let text = fs::read_to_string(&path).unwrap();
        expect(&path, &lesson(&text, &mut Shell::in_mesh()), masked);
        println!("{}: {:.0?}", path.display(), begun.elapsed());
    }
}

/// The test runs both in one bash, a reader does not.
#[test]
fn a_second_terminal_has_no_variable_of_the_first() {
    for path in guides() {
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        for block in blocks(&text).into_iter().filter(|block| block.info == "sh terminal=2") {
            let command = lines[block.lines].join("\n");
            let named = command.split('$').skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '{'));
            assert!(!named, "{}: {command}", path.display());
        }
    }
}

#[test]
fn ids_and_times_are_masked_and_nothing_else() {
    let same = |a: &str, b: &str| assert_eq!(masked(a), masked(b));
    same("└╴service1 GET    client  ┊  ▐██▉   46.1ms   67.6ms  200", "└╴service1 GET client █▉ 1ms 1.2s  200");
    same("service1  v1 vm   123.4 ms", "service1  v1  vm  9.25 ms");
    same("trace 1deb2532a9177a4225a852145b3ea2cb  3 services", "trace 2deb2532a9177a4225a852145b3ea2cb  3 services");
    same("service1-7654b5779c-pqqgk   2/2", "service1-59bf55cd4-rvgf5 2/2");
    same("TCP 10.244.0.1:30671 accepts, port 32377", "TCP 10.0.0.7:31000 accepts, port 30000");
    same(r#"{trace_id="1deb2532a9177a42",span_id="1deb2532"} 0.1"#, r#"{trace_id="00000000a9177a42",span_id="2deb2532"} 0.2"#);
    assert_ne!(masked(r#"{trace_id="1deb2532a9177a42",span_id="1deb2532"}"#), masked(r#"{trace_id="1deb2532a9177a42"}"#));
    assert_ne!(masked("service1-gray 2/2"), masked("service2-gray 2/2"));
    let about = |text: &'static str| words_about(text.lines());
    assert_eq!(about("  21 v1\n  9 v2"), about("  9 v1\n  21 v2"));
    assert_eq!(about("✗ 7 of 100 failed: v1=91.7,v2=8.3"), about("✗ 10 of 100\nfailed: v1=90,v2=10"));
    for (a, b) in
        [("21 v1", "21 v2"), ("7 of 100 failed", "7 of 100 succeeded"), ("v1=9,v2=1", "v1=9,v3=1"), ("9 v1", "9 v1\n1 v2")]
    {
        assert_ne!(about(a), about(b));
    }
    same("service  span  kind  0   50ms   start", "service  span  kind 0  20ms  40ms start");
    for (a, b) in [("3 services · 5 spans", "2 services · 5 spans"), ("200", "503"), ("v1", "v2"), ("✓ complete", "✗ complete")]
    {
        assert_ne!(masked(a), masked(b));
    }
}

#[test]
fn an_ellipsis_stands_for_lines_and_for_nothing_else() {
    let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let same = |written: &str, printed: &str| alike(&lines(written), &lines(printed));
    assert!(same("a b", "a b") && same("a … c", "a b b c") && same("a … c", "a c") && same("… c", "c c") && same("a …", "a"));
    assert!(!same("a b", "a") && !same("a", "a b") && !same("a … c", "a b") && !same("… b", "a b c") && !same("a… b", "ax b"));
}
