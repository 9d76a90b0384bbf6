//! Limits of the server's connections.

use std::time::Duration;

use tokio::sync::Semaphore;

/// How many connections there may be, and how long each of their states may last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// At the cap the connection idle for longest is closed first, those that never sent a request before the others.
    pub max_connections: usize,
    /// A request head must be complete this long after its first byte; after the connect, for the first.
    pub header_timeout: Duration,
    /// How long a kept-alive connection may wait for its next request.
    pub idle_timeout: Duration,
    /// How long an answer may wait until the peer accepts another byte.
    pub write_timeout: Duration,
    /// How long a peer may continue to send after the last answer, or may need to close its side.
    pub linger_timeout: Duration,
    /// How long a request head that is incomplete when the server stops accepting may still take, and how long an HTTP/2
    /// peer may take to answer GOAWAY.
    pub last_head_timeout: Duration,
}

impl ConnectionOptions {
    /// How many HTTP/2 streams all connections together may have beyond the first ones of each: a stream holds a head of up to
    /// 32 KiB and 8 KiB of its answer, and what is reserved for a connection has room for half of that beside its own buffers.
    pub(crate) fn max_streams(&self) -> usize {
        const FEWEST: usize = 100;
        (self.max_connections / 2).clamp(FEWEST, Semaphore::MAX_PERMITS)
    }

    /// How many connections with slow readers are too many: what is left has room for all requests that are worked on by default.
    pub(crate) fn many(&self) -> usize {
        const FEWEST: usize = 16;
        (self.max_connections / 4).max(FEWEST)
    }
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(65 * 60),
            write_timeout: Duration::from_secs(30),
            linger_timeout: Duration::from_secs(2),
            last_head_timeout: Duration::from_millis(500),
        }
    }
}
