//! The addresses of a next hop's name, in another order for each new connection.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::vec;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower_service::Service;

use crate::telemetry::ids;

type Lookup = dyn Fn(Name) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

/// Resolves a name for each new connection, and begins with another of its addresses each time. The connector goes on with the
/// others when one cannot be reached. Clones share the turn.
#[derive(Clone)]
pub(crate) struct RotatingResolver {
    lookup: Arc<Lookup>,
    /// Counts the connections. The start is random, or every hop of a deployment would begin with the same address.
    turn: Arc<AtomicUsize>,
}

impl RotatingResolver {
    /// By `getaddrinfo`, which reads the search domains of Kubernetes and `/etc/hosts`.
    pub(crate) fn system() -> Self {
        Self::new(|name| GaiResolver::new().call(name).map(|found| found.map(Iterator::collect)).boxed())
    }

    pub(super) fn new(lookup: impl Fn(Name) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static) -> Self {
        let turn = u64::from_be_bytes(ids::span_id().to_bytes()) as usize;
        Self { lookup: Arc::new(lookup), turn: Arc::new(AtomicUsize::new(turn)) }
    }
}

impl fmt::Debug for RotatingResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotatingResolver").field("turn", &self.turn).finish_non_exhaustive()
    }
}

impl Service<Name> for RotatingResolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<vec::IntoIter<SocketAddr>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (found, turn) = ((self.lookup)(name), self.turn.clone());
        async move { Ok(rotated(found.await?, turn.fetch_add(1, Ordering::Relaxed)).into_iter()) }.boxed()
    }
}

/// The family that the system ranks first stays first. Within a family the order is by number, so that a name server that
/// itself rotates the addresses does not undo the turn.
fn rotated(mut addresses: Vec<SocketAddr>, turn: usize) -> Vec<SocketAddr> {
    let Some(ipv4) = addresses.first().map(SocketAddr::is_ipv4) else { return addresses };
    let is_preferred = |address: &SocketAddr| address.is_ipv4() == ipv4;
    addresses.sort_unstable_by_key(|address| (!is_preferred(address), *address));
    addresses.dedup();
    let count = addresses.partition_point(is_preferred);
    let (preferred, others) = addresses.split_at_mut(count);
    for family in [preferred, others].into_iter().filter(|family| !family.is_empty()) {
        family.rotate_left(turn % family.len());
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_the_preferred_family_has_its_turn() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let found = ["10.0.0.3:0", "[2001:db8::2]:0", "10.0.0.1:0", "10.0.0.2:0", "[2001:db8::1]:0", "10.0.0.1:0"];
        for (turn, order) in [
            (0, ["10.0.0.1:0", "10.0.0.2:0", "10.0.0.3:0", "[2001:db8::1]:0", "[2001:db8::2]:0"]),
            (1, ["10.0.0.2:0", "10.0.0.3:0", "10.0.0.1:0", "[2001:db8::2]:0", "[2001:db8::1]:0"]),
            (5, ["10.0.0.3:0", "10.0.0.1:0", "10.0.0.2:0", "[2001:db8::2]:0", "[2001:db8::1]:0"]),
        ] {
            assert_eq!(rotated(addresses(&found), turn), addresses(&order), "turn {turn}");
        }
        assert_eq!(rotated(addresses(&["[::1]:0", "127.0.0.1:0"]), 1), addresses(&["[::1]:0", "127.0.0.1:0"]));
        assert_eq!(rotated(vec![], 7), vec![]);
    }
}
