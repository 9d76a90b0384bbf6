//! The limits of the process: its descriptors, its threads, and what follows from them.

use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::{
    Act, Hop, InProcess, PATIENCE, Process, Upstream, answer, binary, eventually, read_answer, run, run_command,
};

/// A hop with these soft and hard limits of open files, and what it says that it takes.
struct Limited {
    hop: Process,
    max_connections: usize,
    max_concurrency: usize,
}

impl Limited {
    fn start(soft: u32, hard: u32, flags: &[&str]) -> Self {
        let own = binary(&[], &[]);
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"")).arg(own.get_program());
        command.args(["--addr", "127.0.0.1:0"]).args(flags).env_clear();
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        let hop = Process::start(command);
        hop.serving_address();
        let line = hop.stderr().into_iter().find(|line| line.contains("serving address=")).unwrap();
        let number = |name: &str| {
            let value = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_else(|| panic!("no {name} in {line}")).parse().unwrap()
        };
        Self { max_connections: number("max_connections"), max_concurrency: number("max_concurrency"), hop }
    }

    /// As many clients as `count` that have had an answer each, or were closed to make room, and stay.
    async fn idle_clients(&self, count: usize) -> Vec<TcpStream> {
        let mut clients = Vec::new();
        for _ in 0..count {
            let mut stream = TcpStream::connect(self.hop.serving_address()).await.unwrap();
            let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let _ = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 1024])).await;
            clients.push(stream);
        }
        clients
    }

    async fn call(&self) -> Option<u16> {
        let mut stream = TcpStream::connect(self.hop.serving_address()).await.ok()?;
        stream.write_all(b"GET /service1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.ok()?;
        Some(read_answer(&mut stream, false).await?.status)
    }

    /// How many of `count` calls through the hop, twenty at once, are not answered with 200.
    async fn failures(&self, count: usize) -> usize {
        let mut failures = 0;
        for _ in 0..count / 20 {
            let calls = (0..20).map(|_| self.call());
            failures += futures_util::future::join_all(calls).await.iter().filter(|status| **status != Some(200)).count();
        }
        failures
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_clients_leave_descriptors_for_calls() {
    let last = Hop::start(&[], &[]);
    for (soft, hard) in [(256, 256), (128, 4096)] {
        let hop = Limited::start(soft, hard, &["--upstream", &last.url("")]);
        let open = hop.max_connections + hop.max_concurrency;
        assert!(open < hard as usize && open > hard as usize / 4, "{open} of {hard}");
        let clients = hop.idle_clients(hop.max_connections + 100).await;
        assert_eq!(hop.failures(200).await, 0, "of 200 calls with {soft} and {hard} descriptors");
        drop(clients);
        assert!(!hop.hop.stderr().iter().any(|line| line.contains("open files")), "{:?}", hop.hop.stderr());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hop_without_descriptors_goes_on_when_there_are_some_again() {
    let last = Hop::start(&[], &[]);
    let hop = Limited::start(64, 64, &["--max-connections", "1000", "--upstream", &last.url("")]);
    assert_eq!(hop.max_connections, 1000, "a flag wins");
    let clients = hop.idle_clients(100).await;
    drop(clients);
    eventually("calls are made again", || async { (hop.failures(20).await == 0).then_some(()) }).await;
}

#[test]
fn a_number_of_threads_that_cannot_be_used_is_one_line() {
    for value in ["0", "-1", "many", "1.5", "99999999999999999999"] {
        let ran = run(&["--addr", "127.0.0.1:0"], &[("TOKIO_WORKER_THREADS", value)]);
        assert_eq!(ran.code, Some(2), "{value}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(ran.stderr.contains("TOKIO_WORKER_THREADS") && ran.stderr.contains(value), "{}", ran.stderr);
        assert!(ran.stderr.contains("accepted: 1 to"), "{}", ran.stderr);
    }
    let hop = Hop::start(&[], &[("TOKIO_WORKER_THREADS", "")]);
    drop(hop);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_next_hops_beyond_the_budget_are_shed_and_small_ones_are_not() {
    // Each answer takes its time, so that they are held together; what the request carries says how large it is.
    let next = Upstream::start(|head| {
        let size: usize = head.one("x-lane").and_then(|size| size.parse().ok()).unwrap_or(0);
        let whole = answer("200 OK", "", &"x".repeat(size));
        let last = whole.len() - 1;
        vec![Act::Send(whole[..last].to_vec()), Act::Pause(Duration::from_millis(300)), Act::Send(whole[last..].to_vec())]
    })
    .await;
    let url = next.url();
    let hop = InProcess::start(|config| {
        config.upstreams = vec![url.parse().unwrap()];
        config.held_bytes = 4 << 20;
    })
    .await;
    let get = async |lane: &str| {
        let mut stream = hop.connect().await;
        let head = format!("GET /service1 HTTP/1.1\r\nhost: a\r\nx-lane: {lane}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        read_answer(&mut stream, false).await.expect("an answer")
    };
    // Of twenty times 900 kB two fit the half of the budget that answers of next hops have.
    let calls = futures_util::future::join_all((0..20).map(|_| get("900000")));
    let small = futures_util::future::join_all((0..20).map(|_| get("4000")));
    let (large, small) = tokio::join!(calls, small);
    let count = |answers: &[crate::common::Answer], status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!(count(&small, 200), 20, "small answers are part of what each request may take");
    let shed = count(&large, 503);
    assert!((10..20).contains(&shed) && count(&large, 200) == 20 - shed, "{shed} of 20 shed");
    for answer in large.iter().filter(|answer| answer.status == 503) {
        assert_eq!(answer.header("retry-after"), Some("1"));
        answer.assert_problem(503);
    }
    let mut stream = hop.connect().await;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let metrics = read_answer(&mut stream, false).await.unwrap().text();
    let line = format!("httpserver_requests_shed_total{{reason=\"upstream_answer\"}} {shed}\n");
    assert!(metrics.contains(&line), "{line}: {metrics}");
    assert!(metrics.contains("httpserver_held_bytes{kind=\"upstream_answer\"} 0\n"), "nothing is left: {metrics}");
    assert_eq!(get("900000").await.status, 200, "and one alone is answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_connections_waits_in_the_queue_and_not_for_a_second_syn() {
    let longest: usize = std::fs::read_to_string("/proc/sys/net/core/somaxconn").map_or(128, |text| text.trim().parse().unwrap());
    let hop = Hop::start(&[], &[]);
    // Nobody accepts while the process is stopped: what connects is in the queue, and what finds no place there never connects.
    hop.signal("STOP");
    let burst = longest.min(1500);
    let connects = (0..burst).map(|_| tokio::time::timeout(PATIENCE, TcpStream::connect(hop.addr)));
    let connected = futures_util::future::join_all(connects).await;
    hop.signal("CONT");
    let missing = connected.iter().filter(|connect| !matches!(connect, Ok(Ok(_)))).count();
    assert_eq!(missing, 0, "of {burst} connects");
}

#[test]
fn too_few_open_files_are_one_line_of_error_and_no_panic() {
    let run = |files: u32, args: &[&str]| {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {files} && exec \"$0\" \"$@\"")).arg(binary(&[], &[]).get_program());
        command.args(args).env_clear();
        run_command(command)
    };
    let nowhere = "http://127.0.0.1:1/healthz";
    for files in 5..20 {
        // None of them could do its work with more of them either.
        for args in [
            &["serve", "--addr", "192.0.2.1:1"][..],
            &["store", "--listen", "192.0.2.1"],
            &["demo", "--listen", "192.0.2.1"],
            &["health", nowhere],
            &["check", nowhere, "--timeout", "1s"],
        ] {
            let ran = run(files, args);
            assert_eq!(ran.code, Some(1), "{files}: {args:?}: {ran:?}");
            let is_short = ran.stderr.lines().count() <= 1 || args[0] == "check";
            assert!(is_short && !ran.stderr.contains("panicked"), "{files}: {args:?}: {ran:?}");
            assert!(files > 12 || ran.stderr.contains("ulimit -n"), "{files}: {args:?}: {ran:?}");
        }
    }
}
