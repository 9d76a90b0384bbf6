//! Counts what a request allocates in a hop, from the accepted bytes to the answer, telemetry included.
//!
//! The hop runs in this process on one thread; the client is another thread that writes prepared bytes and reads into a fixed
//! buffer. Only allocations on the hop's thread are counted, and the exporter is told to wait, so that the figures are the
//! request path's own. Prints a table; the last lines are what telemetry adds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use httpserver::hop::app::{App, Output};
use httpserver::config::Environment;
use httpserver::cli::{Cli, Command, parse};
use httpserver::hop::config::HopConfig;
use httpserver::telemetry::export::Exporter;
use httpserver::telemetry::line_writer::LineWriter;

/// Counts the calls made by threads that ask to be counted.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count(bytes: usize) {
    if COUNTED.get() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is switched on in a hop.
#[derive(Clone, Copy)]
struct Telemetry {
    spans: bool,
    access_log: bool,
}

const OFF: Telemetry = Telemetry { spans: false, access_log: false };
const LOG: Telemetry = Telemetry { spans: false, access_log: true };
const SPANS: Telemetry = Telemetry { spans: true, access_log: false };
const ON: Telemetry = Telemetry { spans: true, access_log: true };

const B3: &str = "x-request-id: 5f0c2a52-6a5f-4b53-b0f6-6a1c5c2d7b11\r\nx-b3-traceid: 463ac35c9f6413ad48485a3953bb6124\r\n\
                  x-b3-spanid: a2fb4a1d1a96d312\r\nx-b3-sampled: 1\r\n";
/// As many headers of as many bytes as [`B3`], none of which is carried.
const OTHERS: &str = "x-rebuest-id: 5f0c2a52-6a5f-4b53-b0f6-6a1c5c2d7b11\r\nx-c3-traceid: 463ac35c9f6413ad48485a3953bb6124\r\n\
                      x-c3-spanid: a2fb4a1d1a96d312\r\nx-c3-sampled: 1\r\n";

fn main() {
    println!("{:<44}{:>12}{:>12}", "request", "allocations", "bytes");
    let measure = |what: &str, telemetry, path: &str, headers: &str, upstream| {
        let (allocations, bytes) = per_request(telemetry, path, headers, upstream);
        println!("{what:<44}{allocations:>12.2}{bytes:>12.0}");
        allocations
    };
    let off = measure("/hello, all off", OFF, "/hello", OTHERS, false);
    let b3 = measure("/hello, all off, B3 and request id", OFF, "/hello", B3, false);
    let log = measure("/hello, access log", LOG, "/hello", B3, false);
    let spans = measure("/hello, spans", SPANS, "/hello", B3, false);
    let on = measure("/hello, all on", ON, "/hello", B3, false);
    measure("/hello, all on, no headers", ON, "/hello", "", false);
    measure("/service2, last hop, all off", OFF, "/service2", B3, false);
    measure("/service2, last hop, all on", ON, "/service2", B3, false);
    measure("/service1, calls one hop, all off", OFF, "/service1", B3, true);
    measure("/service1, calls one hop, all on", ON, "/service1", B3, true);
    println!();
    // Rounded first, so that a warm cache that saves a thousandth is no "-0.00".
    let more = |what: &str, allocations: f64| println!("{what:<44}{:>12.2}", (allocations * 100.0).round() / 100.0 + 0.0);
    more("B3 and request id, carried", b3 - off);
    more("access line", log - b3);
    more("server span and its traceresponse header", spans - b3);
    more("all telemetry of /hello", on - off);
}

/// Allocations and allocated bytes per request of one hop.
fn per_request(telemetry: Telemetry, path: &str, headers: &str, upstream: bool) -> (f64, f64) {
    const WARM: u64 = 500;
    const COUNT: u64 = 2000;
    let next = upstream.then(|| start(OFF, None, false));
    let addr = start(telemetry, next, true);
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: application/json\r\n{headers}\r\n");
    let mut stream = TcpStream::connect(addr).expect("the hop listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let mut ask = |times| {
        let mut answer = [0; 16 << 10];
        for _ in 0..times {
            stream.write_all(request.as_bytes()).expect("the hop reads");
            let mut length = 0;
            loop {
                length += stream.read(&mut answer[length..]).expect("the hop answers");
                if is_whole(&answer[..length]) {
                    break;
                }
            }
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..length]));
        }
    };
    ask(WARM);
    let before = (ALLOCATIONS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
    ask(COUNT);
    let after = (ALLOCATIONS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
    ((after.0 - before.0) as f64 / COUNT as f64, (after.1 - before.1) as f64 / COUNT as f64)
}

/// Whether an answer with a content length is all there.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= end + 4 + length)
}

/// Starts a hop on a thread of its own, which runs until the process ends.
fn start(telemetry: Telemetry, next: Option<SocketAddr>, counted: bool) -> SocketAddr {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut args: Vec<OsString> = ["httpserver", "--addr", "127.0.0.1:0", "--name", "service1"].map(Into::into).into();
            if let Some(next) = next {
                args.extend(["--upstream".into(), format!("http://{next}").into()]);
            }
            let Ok(Cli { command: Command::Serve(args) }) = parse(args) else { panic!("serve takes these options") };
            let mut config = HopConfig::from_args(*args, &Environment { variable: &|_| None, warn: &|_| {} }).expect("options that fit");
            if telemetry.spans {
                // Nobody listens there, and nothing is sent before the process ends.
                config.export.spans = vec![Exporter::Zipkin { endpoint: "http://127.0.0.1:9/api/v2/spans".to_owned() }];
                config.export.schedule_delay = Duration::from_secs(3600);
            }
            if !telemetry.access_log {
                config.access_log = None;
            }
            // Access lines go to stderr: stdout is for the table.
            let stderr = LineWriter::stderr();
            let app = App::bind(config, &Output { stdout: stderr.clone(), stderr, ..Output::new() }).await.expect("a free port");
            tell.send(app.addr()).expect("the caller waits");
            COUNTED.set(counted);
            app.run(std::future::pending()).await;
        });
    });
    told.recv().expect("the hop starts")
}
