//! Runs the lessons of `docs/course` that need nothing but this program, and compares their outputs.
//!
//! A lesson is run when its first lines have [`MARK`]. Its `sh` blocks run one after the other in one bash; a `text` block behind one is its
//! output. A block `sh terminal=2` runs beside the others until the next such block, and counts as started when its ports can be
//! connected to. Ids, times and bars are different each time: [`masked`] leaves them out of the comparison.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::{BINARY, Block, blocks, expect, root};

const MARK: &str = "<!-- run by tests/docs -->";

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

struct Ports([u16; PORTS.len()]);

impl Ports {
    fn free(lesson: usize) -> Self {
        let mut next = 2000 + (std::process::id() as u16 % 50) * 100 + lesson as u16 * 20;
        let mut free = || {
            next += 1;
            while TcpListener::bind(("127.0.0.1", next)).is_err() {
                next += 1;
            }
            next
        };
        Self(std::array::from_fn(|_| free()))
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
    ports: Ports,
}

impl Shell {
    pub(crate) fn new(lesson: usize) -> Self {
        let ports = Ports::free(lesson);
        let directory = Path::new(BINARY).parent().unwrap();
        let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.env("PATH", path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = bash.spawn().expect("bash");
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut shell = Self { child, input, output, ports };
        let [first, .., store] = shell.ports.0;
        shell.run(&PRELUDE.replace("FIRST", &first.to_string()).replace("STORE", &store.to_string()));
        shell
    }

    /// Runs commands to their end and returns what they print.
    pub(crate) fn run(&mut self, commands: &str) -> String {
        let commands = self.ports.replace(commands, false);
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
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let text = self.ports.replace(text.trim_end(), true).replace(&format!(" {} ", host.trim()), " vm ");
        text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// Runs a command beside the others, in place of the one before it.
    pub(crate) fn beside(&mut self, command: &str) {
        let listens: Vec<_> = PORTS.iter().filter(|port| command.contains(&format!(":{port}"))).collect();
        let listens = if command.contains("demo") { vec![&PORTS[0], &PORTS[5]] } else { listens };
        let waits: String = listens
            .iter()
            .map(|port| format!("until (: </dev/tcp/127.0.0.1/:{port}) 2>/dev/null; do sleep 0.1; done; "))
            .collect();
        // The path of the redirection has no colon: it is there for the ports to be replaced.
        let waits = self.ports.replace(&waits, false).replace("/:", "/");
        self.run(&format!("stop; {{ {command} & }} >/dev/null 2>&1; {waits}"));
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = writeln!(self.input, "exit");
        let _ = self.child.wait();
    }
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
        let hex = bare
            .split(|c: char| !c.is_ascii_alphanumeric())
            .any(|part| part.len() >= 8 && part.bytes().all(|b| b.is_ascii_hexdigit()));
        let number =
            |text: &str| text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let unit = ["ms", "us", "s", "B", ""].iter().any(|unit| bare.strip_suffix(unit).is_some_and(number));
        let unit = unit && (!number(bare) || bare.contains('.'));
        let time = bare.starts_with("20") && bare.contains('T');
        let word = if hex || time || unit { "N" } else { word };
        if word != "N" || words.last().is_none_or(|last| last != "N") {
            words.push(word.to_owned());
        }
    }
    words.join(" ")
}

fn lessons() -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(root().join("docs/course")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| fs::read_to_string(file).is_ok_and(|text| text.contains(MARK)));
    files.sort();
    files
}

/// The lesson with the outputs of this run, where they differ in more than what is masked.
fn lesson(text: &str, shell: &mut Shell) -> String {
    let lines: Vec<_> = text.lines().collect();
    let mut result = String::new();
    let (mut written, mut output) = (0, None);
    for Block { info, lines: range } in blocks(text) {
        match info.as_str() {
            "sh" => output = Some(shell.run(&lines[range].join("\n"))),
            "sh terminal=2" => shell.beside(&lines[range].join("\n")),
            "text" => {
                let new = output.take().expect("a block of commands before an output");
                let same = new.lines().map(masked).eq(lines[range.clone()].iter().map(|line| masked(line)));
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
    let lessons = lessons();
    assert!(!lessons.is_empty());
    for (i, path) in lessons.iter().enumerate() {
        let text = fs::read_to_string(path).unwrap();
        expect(path, &lesson(&text, &mut Shell::new(i)), masked);
    }
}

#[test]
fn ids_and_times_are_masked_and_nothing_else() {
    let same = |a: &str, b: &str| assert_eq!(masked(a), masked(b));
    same("└╴service1 GET    client  ┊  ▐██▉   46.1ms   67.6ms  200", "└╴service1 GET client █▉ 1ms 1.2s  200");
    same("service1  v1 vm   123.4 ms", "service1  v1  vm  9.25 ms");
    same("trace 1deb2532a9177a4225a852145b3ea2cb  3 services", "trace 2deb2532a9177a4225a852145b3ea2cb  3 services");
    same("service  span  kind  0   50ms   start", "service  span  kind 0  20ms  40ms start");
    for (a, b) in [("3 services · 5 spans", "2 services · 5 spans"), ("200", "503"), ("v1", "v2"), ("✓ complete", "✗ complete")]
    {
        assert_ne!(masked(a), masked(b));
    }
}
