//! Measurements that a load generator does not make.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Starts a server and prints how many microseconds passed from there to its first 200.
pub fn first_200(addr: &str, path: &str, command: &[&str]) {
    let addr: SocketAddr = addr.parse().expect("an address");
    let begun = Instant::now();
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    while begun.elapsed() < Duration::from_secs(10) && !answers(addr, path) {
        std::thread::sleep(Duration::from_micros(50));
    }
    let took = begun.elapsed();
    let _ = child.kill();
    let _ = child.wait();
    println!("{}", took.as_micros());
}

fn answers(addr: SocketAddr, path: &str) -> bool {
    let get = || {
        let mut stream = TcpStream::connect(addr)?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok::<_, std::io::Error>(answer == *b"HTTP/1.1 200")
    };
    get().unwrap_or(false)
}

/// Opens a connection, sends one request, closes it; `count` times. Prints how many were answered with 200.
pub fn connections(addr: &str, path: &str, count: u64) {
    let addr: SocketAddr = addr.parse().expect("an address");
    println!("{}", (0..count).filter(|_| answers(addr, path)).count());
}
