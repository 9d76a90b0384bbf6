//! Addresses for servers that must know theirs before they start, and for calls to nobody.
#![allow(unreachable_pub, reason = "of some test binaries it is a part of a part")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Where the system's own range begins at the earliest (Linux 32768, others later), without Kubernetes' node ports.
const END: u16 = 30000;
const BEGIN: u16 = 20000;

static GIVEN: AtomicU16 = AtomicU16::new(0);

/// An address of loopback on which nobody listens. It is below the range from which connections and servers on port 0 get theirs, and
/// given out once in a process: so nobody else takes it before the test does, or while nobody shall be there.
pub fn free_addr() -> SocketAddr {
    // Tests that run at the same time in another process begin somewhere else.
    let begin = std::process::id() as u16;
    (0..END - BEGIN)
        .map(|_| begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % (END - BEGIN) + BEGIN)
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .find(|addr| TcpListener::bind(addr).is_ok())
        .expect("a free port")
}
