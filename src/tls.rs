//! TLS for clients: rustls with ring, and Mozilla's roots from the binary, because an image with nothing but this binary has no
//! certificate files.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

/// Verifies servers against the built-in roots. Nothing is installed process-wide.
pub(crate) fn client_config() -> ClientConfig {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    match ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions() {
        Ok(builder) => builder.with_root_certificates(roots).with_no_client_auth(),
        Err(error) => unreachable!("ring speaks TLS 1.2 and 1.3: {error}"),
    }
}
