//! How much a hop may hold at once, so that all of it together fits the memory and the descriptors that the process has.
//!
//! Every limit is per item; their sum is here. `Capacity::of` chooses the numbers so that what is held when every limit is
//! reached at once, `Capacity::worst_case`, is no more than the memory limit. A connection was measured with a head of 30 KB in
//! it and rounded up; the others are sums of the buffers that an item may fill.

use tokio::sync::Semaphore;

use crate::system::{descriptors, memory};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Code and constants that are touched, stacks, Tokio, certificates, and what the allocator has free for itself.
const BASE: u64 = 20 * MIB;
/// Two batches of spans, one that waits and one on its way, each with 16,384 spans of 240 bytes and 4 MiB of text.
const SPANS: u64 = 16 * MIB;
/// Lines that wait and lines that are being written, of stdout and of stderr.
const LINES: u64 = 4 * MIB;
/// Scrapes until they were sent: an unread one of 200 time series is 100 KiB.
const MAX_SCRAPES: usize = 2 << 20;
/// Time series, and scrapes.
const METRICS: u64 = MIB + MAX_SCRAPES as u64;
/// A connection of a caller: its task, TLS, hyper's buffers with heads in them and an answer that nobody reads, as measured.
const CONNECTION: u64 = 112 * KIB + SOCKET;
/// What the kernel holds for it, as measured: received and not read, and written and not taken. A cgroup of version 2 counts it.
const SOCKET: u64 = 160 * KIB;
/// A request in flight, beside its connection: its exchange, its task, the part of its answer that is not in the budget.
const REQUEST: u64 = 16 * KIB;
/// A call: its connection with hyper's buffers, a whole head in them, and the part of its answer that is not in the budget.
const CALL: u64 = 48 * KIB;
/// A stream: as a request, and a message of it. The buffers of a WebSocket take the place of hyper's, which count for its connection.
const STREAM: u64 = REQUEST + 16 * KIB;
/// The largest message of a WebSocket: it is there three times while it is echoed.
pub(crate) const MAX_MESSAGE: usize = 16 << 10;

/// The most connections, whatever the memory.
const MAX_CONNECTIONS: u64 = 10_000;
/// The most requests in flight, whatever the memory.
const MAX_CONCURRENCY: u64 = 1024;
/// The most bytes of answers, whatever the memory.
const MAX_HELD: u64 = 256 * MIB;
/// Fewer connections or requests than this are of no use; a process with less memory is one that a flag has to fit.
const FEWEST: u64 = 16;
/// For so many requests there is one stream.
const STREAMS_SHARE: u64 = 8;
/// For so many requests there is one spare place.
const SPARE_SHARE: u64 = 8;
/// Descriptors for neither side: standard streams, the runtime's, the listener, exporters, scrapes, certificates, and connections
/// that are accepted before the one that makes room for them is closed.
const RESERVED_DESCRIPTORS: u64 = 64;

/// How the bytes of answers and bodies are divided, in the order of `HeldKind::ALL`.
pub(crate) fn held_budgets(held_bytes: usize) -> [usize; 4] {
    let bodies = held_bytes / 8;
    [held_bytes / 2 - bodies, held_bytes / 2, MAX_SCRAPES, bodies]
}

/// How many streams there may be beside `max_concurrency` requests: they cannot take the places of those.
pub(crate) fn max_streams(max_concurrency: usize) -> usize {
    (max_concurrency / STREAMS_SHARE as usize).clamp(1, Semaphore::MAX_PERMITS)
}

/// How many requests that call nobody may be in flight beside `max_concurrency` requests that wait for next hops.
pub(crate) fn max_spare(max_concurrency: usize) -> usize {
    (max_concurrency / SPARE_SHARE as usize).min(Semaphore::MAX_PERMITS)
}

/// What the process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resources {
    /// In bytes; `None` when it is not known.
    pub(crate) memory: Option<u64>,
    pub(crate) descriptors: u64,
}

impl Resources {
    /// Those of this process, whose soft descriptor limit is raised to the hard one.
    pub(crate) fn of_process() -> Self {
        Self { memory: memory::limit(), descriptors: descriptors::raised_limit() }
    }

    /// The part of one of `hops` hops in one process.
    pub(crate) fn divided_by(self, hops: u16) -> Self {
        let hops = u64::from(hops.max(1));
        Self { memory: self.memory.map(|memory| memory / hops), descriptors: self.descriptors / hops }
    }
}

/// How much a hop may hold at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// `--max-connections`.
    pub max_connections: usize,
    /// `--max-concurrency`.
    pub max_concurrency: usize,
    /// Bytes of answers: of next hops while they are read, and of this hop until they were sent.
    pub held_bytes: usize,
}

impl Capacity {
    /// What fits `resources` where each request makes `calls` calls. What is set by a flag is not changed, and leaves less for
    /// the others.
    pub(crate) fn of(resources: Resources, calls: usize, connections: Option<usize>, concurrency: Option<usize>) -> Self {
        let calls = calls as u64;
        let free = resources.memory.unwrap_or(u64::MAX).saturating_sub(BASE + SPANS + LINES + METRICS);
        let free_descriptors = resources.descriptors.saturating_sub(RESERVED_DESCRIPTORS);
        let held = (free / 4).min(MAX_HELD);
        let spare = if calls > 0 { REQUEST / SPARE_SHARE } else { 0 };
        let request = REQUEST + calls * CALL + STREAM / STREAMS_SHARE + spare;
        // A quarter of the connections is in no request then: one of them can be closed for a new one, whose request gets an answer.
        let by_descriptors =
            (free_descriptors / 2).checked_div(calls).unwrap_or(u64::MAX).min(free_descriptors * 3 / (3 * calls + 4));
        let by_connections = (free - held).saturating_mul(3) / (4 * CONNECTION + 3 * request);
        let concurrency = concurrency.map_or_else(
            || (free / 4 / request).min(by_descriptors).min(by_connections).clamp(FEWEST, MAX_CONCURRENCY),
            |concurrency| concurrency as u64,
        );
        let left = free.saturating_sub(held).saturating_sub(concurrency.saturating_mul(request));
        let left_descriptors = free_descriptors.saturating_sub(concurrency.saturating_mul(calls));
        let connections = connections.map_or_else(
            || (left / CONNECTION).min(left_descriptors).clamp(FEWEST, MAX_CONNECTIONS),
            |connections| connections as u64,
        );
        Self { max_connections: connections as usize, max_concurrency: concurrency as usize, held_bytes: held as usize }
    }

    /// The bytes that are held when every limit is reached at once.
    #[cfg(test)]
    fn worst_case(&self, calls: usize) -> u64 {
        let connections = self.max_connections as u64 * CONNECTION;
        let requests = self.max_concurrency as u64 * (REQUEST + calls as u64 * CALL);
        let streams = max_streams(self.max_concurrency) as u64 * STREAM;
        let spare = if calls > 0 { max_spare(self.max_concurrency) as u64 * REQUEST } else { 0 };
        BASE + SPANS + LINES + METRICS + connections + requests + streams + spare + self.held_bytes as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(memory: Option<u64>, descriptors: u64, calls: usize) -> Capacity {
        Capacity::of(Resources { memory, descriptors }, calls, None, None)
    }

    #[test]
    fn everything_at_once_fits_the_memory() {
        for mib in [64, 128, 256, 512, 1024, 64 << 10] {
            for calls in [0, 1, 2, 10] {
                let capacity = of(Some(mib * MIB), 1 << 20, calls);
                assert!(capacity.worst_case(calls) <= mib * MIB, "{mib} MiB, {calls} calls: {capacity:?}");
                assert!(
                    capacity.max_connections >= 16 && capacity.max_concurrency >= 16,
                    "{mib} MiB, {calls} calls: {capacity:?}"
                );
            }
        }
        // What a hop of the manifests has.
        let capacity = of(Some(128 * MIB), 1 << 20, 1);
        assert!(capacity.max_connections >= 200 && capacity.max_concurrency >= 128, "{capacity:?}");
    }

    #[test]
    fn with_memory_enough_the_fixed_limits_hold() {
        for memory in [None, Some(8 << 30)] {
            let capacity = of(memory, 1 << 20, 3);
            assert_eq!((capacity.max_connections, capacity.max_concurrency), (10_000, 1024), "{memory:?}");
            assert_eq!(capacity.held_bytes as u64, MAX_HELD);
        }
    }

    #[test]
    fn connections_and_calls_have_their_own_descriptors() {
        for descriptors in [256, 1024, 4096, 20_000] {
            for calls in [0, 1, 3, 5] {
                let capacity = of(None, descriptors, calls);
                let open = capacity.max_connections + capacity.max_concurrency * calls;
                assert!(open as u64 + RESERVED_DESCRIPTORS <= descriptors, "{descriptors}, {calls} calls: {capacity:?}");
                let unused = capacity.max_connections - capacity.max_concurrency;
                assert!(unused >= capacity.max_connections / 4, "{descriptors}, {calls} calls: {capacity:?}");
            }
        }
        // Nothing fits so few; the hop starts all the same.
        assert_eq!(of(Some(MIB), 10, 1).max_connections, 16);
    }

    #[test]
    fn a_flag_wins_and_leaves_less_for_the_others() {
        let resources = Resources { memory: Some(128 * MIB), descriptors: 4096 };
        let derived = Capacity::of(resources, 1, None, None);
        let capacity = Capacity::of(resources, 1, Some(7), None);
        assert_eq!(capacity, Capacity { max_connections: 7, ..derived });
        let capacity = Capacity::of(resources, 1, None, Some(5));
        assert_eq!(capacity.max_concurrency, 5);
        assert!(capacity.max_connections > derived.max_connections);
        let capacity = Capacity::of(resources, 1, None, Some(100_000));
        assert_eq!((capacity.max_concurrency, capacity.max_connections), (100_000, 16));
    }
}
