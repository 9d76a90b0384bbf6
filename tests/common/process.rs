//! The binary as a process: how it is started, what it has printed, where it listens, how it ends.

use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{PATIENCE, lock, wait_until};

/// The binary that is tested, the one of this build or the one that `HTTPSERVER` names, with nothing of this process's environment:
/// a variable set in CI must not change a test.
pub fn httpserver() -> Command {
    let path = std::env::var_os("HTTPSERVER").unwrap_or_else(|| env!("CARGO_BIN_EXE_httpserver").into());
    let mut command = Command::new(path);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// [`httpserver`] with these arguments and variables.
pub fn binary(args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = httpserver();
    command.args(args).envs(env.iter().copied());
    command
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `httpserver` with `args` until it ends by itself; fails the test when it does not.
pub fn run(args: &[&str], env: &[(&str, &str)]) -> Ran {
    run_command(binary(args, env))
}

/// Like [`run`], for a command that was made from [`httpserver`] by hand, say with a value that is not text.
pub fn run_command(mut command: Command) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let whole = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = from.read_to_string(&mut text);
            text
        })
    };
    let (stdout, stderr) = (whole(Box::new(stdout)), whole(Box::new(stderr)));
    let status = end_of(&mut child);
    Ran { code: status.code(), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn end_of(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the process did not end in {PATIENCE:?}");
        }
        std::thread::sleep(super::POLL);
    }
}

/// What a process has written so far, line by line.
#[derive(Debug, Clone, Default)]
struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
    /// The pipe is closed at its next line.
    unwanted: Arc<AtomicBool>,
}

impl Lines {
    fn read(from: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let kept = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                lock(&kept.lines).push(String::from_utf8_lossy(&line).into_owned());
                if kept.unwanted.load(Ordering::Relaxed) {
                    break;
                }
            }
            kept.ended.store(true, Ordering::Relaxed);
        });
        lines
    }

    fn all(&self) -> Vec<String> {
        lock(&self.lines).clone()
    }
}

/// A process that goes on until it is told to end. It is killed when the value is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: Lines,
    stderr: Lines,
    /// Holds a stdout that nobody reads open.
    _unread: Option<ChildStdout>,
}

impl Process {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the binary starts");
        let (stdout, stderr) = (child.stdout.take().map(Lines::read), child.stderr.take().map(Lines::read));
        Self { child, stdout: stdout.unwrap_or_default(), stderr: stderr.unwrap_or_default(), _unread: None }
    }

    /// With a stdout that nobody here reads, a pipe or whatever the command has.
    pub fn start_unread(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the binary starts");
        let (unread, stderr) = (child.stdout.take(), Lines::read(child.stderr.take().unwrap()));
        Self { child, stdout: Lines::default(), stderr, _unread: unread }
    }

    /// What `find` makes of the first line of `lines` that it knows; fails the test when the process ends without it.
    fn find<T>(&self, lines: &Lines, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let (mut read, mut last) = (0, false);
        wait_until(&format!("the process prints {what}"), || {
            // Read before the lines: whatever was printed before the end is there by then.
            let ended = lines.ended.load(Ordering::Relaxed);
            let all = lock(&lines.lines);
            if let Some(found) = all[read..].iter().find_map(|line| find(line)) {
                return Some(found);
            }
            assert!(!(ended && last), "it ended without {what}: {all:#?}\n{:#?}", self.stderr.all());
            (read, last) = (all.len(), ended);
            None
        })
    }

    /// Waits for a line of stdout that has this text.
    pub fn until_printed(&self, text: &str) -> String {
        self.find(&self.stdout, text, |line| line.contains(text).then(|| line.to_owned()))
    }

    /// Closes the pipe of stdout as soon as the next line comes.
    pub fn stop_reading(&self) {
        self.stdout.unwanted.store(true, Ordering::Relaxed);
    }

    /// Whether nobody reads stdout any more.
    pub fn is_unread(&self) -> bool {
        self.stdout.ended.load(Ordering::Relaxed)
    }

    pub fn stdout(&self) -> Vec<String> {
        self.stdout.all()
    }

    pub fn stderr(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Where `serve` says that it listens: the only place that reads it.
    pub fn serving_address(&self) -> SocketAddr {
        self.find(&self.stderr, "serving address=", |line| line.split_once("serving address=")?.1.split(' ').next()?.parse().ok())
    }

    /// Where `demo` says that this part of it listens (`service1`, `page`, `traces`): the only place that reads it.
    pub fn demo_address(&self, part: &str) -> SocketAddr {
        self.find(&self.stdout, part, |line| {
            let mut words = line.split_whitespace();
            let url = words.next().filter(|word| *word == part).and(words.next())?;
            url.strip_prefix("http://")?.split('/').next()?.parse().ok()
        })
    }

    /// The access key in the URL of the page.
    pub fn page_key(&self) -> String {
        self.find(&self.stdout, "page", |line| Some(line.split_once("?key=")?.1.split_whitespace().next()?.to_owned()))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Sends the process a signal: `TERM`, `INT`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success(), "no such process");
    }

    /// Waits for the process's end.
    pub fn ended(&mut self) -> ExitStatus {
        end_of(&mut self.child)
    }

    /// Ends the process without a chance to say anything.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running `httpserver demo` on free ports. It is killed when the value is dropped.
#[derive(Debug)]
pub struct Demo {
    pub process: Process,
    /// Where its first hop listens.
    pub front: SocketAddr,
    pub page: SocketAddr,
    /// Where its trace store listens.
    pub store: SocketAddr,
}

impl Demo {
    pub fn start(flags: &[&str]) -> Self {
        let mut command = httpserver();
        command.args(["demo", "--port", "0", "--store-port", "0"]).args(flags);
        let process = Process::start(command);
        let [front, page, store] = ["service1", "page", "traces"].map(|part| process.demo_address(part));
        Self { process, front, page, store }
    }
}
