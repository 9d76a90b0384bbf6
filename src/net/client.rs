//! The HTTP client of everything but a hop's calls to its next hops.

use bytes::{Bytes, BytesMut};
use reqwest::redirect::Policy;
use rustls::ClientConfig;

/// A client that ignores the environment's proxy, because what it calls is inside the cluster or named by the user, and that follows no
/// redirect: a POST would become a GET, and headers with keys would go to a host that nobody named.
pub(crate) fn builder(tls: ClientConfig) -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy().redirect(Policy::none()).tls_backend_preconfigured(tls)
}

/// The body of an answer; `None` when it is longer than `max` bytes.
///
/// # Errors
///
/// The connection breaks, or the time is up.
pub(crate) async fn read_bounded(answer: &mut reqwest::Response, max: usize) -> reqwest::Result<Option<Bytes>> {
    let mut body = BytesMut::new();
    while let Some(part) = answer.chunk().await? {
        if body.len() + part.len() > max {
            return Ok(None);
        }
        body.extend_from_slice(&part);
    }
    Ok(Some(body.freeze()))
}
