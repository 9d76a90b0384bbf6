//! What follows a 101: from there on the bytes of an HTTP/1.1 connection are the service's. The connection's task runs its
//! protocol, so that caps, write timeout and drain are those of every connection; with hyper's own upgrades it would end there.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// What is left of a connection.
pub(crate) trait UpgradedIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> UpgradedIo for T {}

type UpgradedProtocol = dyn for<'a> FnOnce(&'a mut dyn UpgradedIo, Bytes) -> BoxFuture<'a, ()> + Send;

/// An extension of an answer with the status 101: what is then spoken on the connection, of which some bytes were read already.
#[derive(Clone)]
pub(crate) struct Upgrade(Arc<Mutex<Option<Box<UpgradedProtocol>>>>);

impl Upgrade {
    pub(crate) fn new(
        protocol: impl for<'a> FnOnce(&'a mut dyn UpgradedIo, Bytes) -> BoxFuture<'a, ()> + Send + 'static,
    ) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(protocol)))))
    }

    /// Resolves when the protocol has ended.
    pub(crate) async fn run(self, io: &mut dyn UpgradedIo, read: Bytes) {
        let protocol = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(protocol) = protocol {
            protocol(io, read).await;
        }
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgrade")
    }
}
