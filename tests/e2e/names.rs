//! What becomes of calls when the addresses of a next hop's name change: a rollout, a scale-out from one to four, a name that moves. The
//! hop reads a resolv.conf of its own, in a mount namespace, which names a DNS server of this test on loopback.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

use crate::claims::Claims;
use crate::common::ports::free_addr;
use crate::common::{AccessLog, Hop, Process, httpserver};
use crate::load::{Load, Loading};
use crate::mesh::folder;

/// Where the DNS server listens, and the next hops: on one port.
const DNS: Ipv4Addr = Ipv4Addr::new(127, 53, 0, 1);
/// A connection lives for 90 to 120 s; both copies' share is looked at after it.
const SPREAD_WITHIN: Duration = Duration::from_secs(120);
const RATE: f64 = 50.0;

/// A name server that has one name.
#[derive(Clone, Default)]
struct Name(Arc<Mutex<Vec<Ipv4Addr>>>);

impl Name {
    async fn serve(&self) {
        let socket = UdpSocket::bind((DNS, 53)).await.expect("port 53 of 127.53.0.1 is free, and this is root");
        let name = self.clone();
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, peer)) = socket.recv_from(&mut query).await {
                let _ = socket.send_to(&name.answer(&query[..length]), peer).await;
            }
        });
    }

    fn set(&self, copies: &[u8]) {
        *self.0.lock().unwrap() = copies.iter().map(|copy| address(*copy)).collect();
    }

    /// RFC 1035, 4.1: the question comes back with its addresses; no other record is there.
    fn answer(&self, query: &[u8]) -> Vec<u8> {
        let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap_or_default() + 5;
        let is_ipv4 = query.get(end - 4..end - 2) == Some(&[0, 1]);
        let addresses = if is_ipv4 { self.0.lock().unwrap().clone() } else { Vec::new() };
        let mut answer = [&query[..2], &[0x85, 0x80, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0], &query[12..end]].concat();
        for address in addresses {
            // The name of the question, A, IN, five seconds, four bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
            answer.extend(address.octets());
        }
        answer
    }
}

fn address(copy: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 54, 0, copy)
}

struct Copies {
    port: u16,
    running: BTreeMap<u8, Hop>,
}

impl Copies {
    async fn start(&mut self, copy: u8) {
        let addr = format!("{}:{}", address(copy), self.port);
        let flags = ["--addr", &addr, "--name", "service2", "--drain-delay", "6s"];
        self.running.insert(copy, Hop::start_with(&flags, &[], AccessLog::To(Stdio::null())));
    }

    /// As Kubernetes does it: the address leaves the name, and the process gets SIGTERM.
    fn stop(&mut self, copy: u8) -> Option<i32> {
        let mut hop = self.running.remove(&copy).expect("it runs");
        hop.signal("TERM");
        tokio::task::block_in_place(|| hop.ended()).code()
    }

    /// How many requests each copy has answered.
    async fn served(&self) -> BTreeMap<u8, u64> {
        let mut served = BTreeMap::new();
        for (copy, hop) in &self.running {
            let labels = [("http_route", "/service{n}")];
            served.insert(*copy, hop.metrics().await.sum("http_server_request_duration_seconds_count", &labels) as u64);
        }
        served
    }

    /// How long it takes until each copy answers its share of the requests, half of it at least; `None` when it does not.
    async fn spread(&self) -> Option<Duration> {
        let begun = Instant::now();
        while begun.elapsed() < SPREAD_WITHIN {
            let before = self.served().await;
            tokio::time::sleep(Duration::from_secs(4)).await;
            let after = self.served().await;
            let answered: Vec<_> = after.iter().map(|(copy, count)| count - before[copy]).collect();
            let share = answered.iter().sum::<u64>() / answered.len() as u64;
            if share > 0 && answered.iter().all(|count| *count >= share / 2) {
                return Some(begun.elapsed());
            }
        }
        None
    }
}

/// The hop whose next hop has that name.
fn caller(port: u16) -> Process {
    let folder = folder("names");
    let resolv = folder.join("resolv.conf");
    std::fs::write(&resolv, format!("nameserver {DNS}\noptions timeout:1\n")).unwrap();
    let binary = httpserver();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\""]).arg(&resolv);
    command.arg(binary.get_program()).args(["--addr", "127.0.0.1:0", "--name", "service1", "--upstream"]);
    command.arg(format!("http://service2.test:{port}")).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Process::start(command)
}

fn load(addr: SocketAddr) -> Loading {
    Load { addr, path: "/service1", rate: RATE, connections: 64, duration: Duration::from_secs(3600) }.start()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root and seven minutes: scripts/e2e.sh names"]
async fn a_name_that_changes_loses_no_request_and_spreads() {
    let (name, mut claims) = (Name::default(), Claims::default());
    name.serve().await;
    let mut copies = Copies { port: free_addr().port(), running: BTreeMap::new() };
    copies.start(1).await;
    name.set(&[1]);
    let caller = caller(copies.port);
    let loading = load(caller.serving_address());
    tokio::time::sleep(Duration::from_secs(5)).await;

    for copy in 2..=4 {
        copies.start(copy).await;
    }
    name.set(&[1, 2, 3, 4]);
    let spread = copies.spread().await;
    let took = spread.map_or_else(String::new, |took| format!(" after {:.0} s", took.as_secs_f64()));
    claims.holds(format!("from one address to four: each answers its share{took}"), spread.is_some(), copies.served().await);

    let mut codes = Vec::new();
    for copy in 1..=4 {
        copies.start(copy + 4).await;
        let names: Vec<u8> = (copy + 1..=copy + 4).collect();
        name.set(&names);
        codes.push(copies.stop(copy));
    }
    let spread = copies.spread().await;
    let took = spread.map_or_else(String::new, |took| format!(", and spread after {:.0} s", took.as_secs_f64()));
    let all_ended = codes.iter().all(|code| *code == Some(0));
    claims.holds(format!("a rollout of all four: every one ended with 0{took}"), all_ended && spread.is_some(), &codes);

    // Where it was, all live on: nothing tells the caller but the name.
    copies.start(9).await;
    copies.start(10).await;
    name.set(&[9, 10]);
    let begun = Instant::now();
    let moved = loop {
        let before = copies.served().await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let after = copies.served().await;
        let at_old = (5..=8).map(|copy| after[&copy] - before[&copy]).sum::<u64>();
        if at_old == 0 || begun.elapsed() > SPREAD_WITHIN + Duration::from_secs(8) {
            break (at_old == 0).then(|| begun.elapsed());
        }
    };
    let took = moved.map_or_else(String::new, |took| format!(" after {:.0} s", took.as_secs_f64()));
    claims.holds(format!("a name that moves: no request where it was{took}"), moved.is_some(), copies.served().await);

    let report = loading.stop();
    let (ok, failed) = (report.of(200), report.others(&[200]));
    claims.holds(format!("no request failed: {}, p99 {} ms", ok.count, ok.p99_ms), failed.is_empty() && ok.count > 0, failed);
    claims.end();
}
