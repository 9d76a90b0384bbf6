//! The roots of the commands' own clients: public ones plus `--cacert`, and a verifier that records what it received, so that a refused
//! certificate can be explained.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{CertificateError, ClientConfig, RootCertStore};

use crate::net::tls::{ServerCertificate, client_config_with, provider};
use crate::net::x509::{self, Certificate};

/// Whom to trust.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    roots: Arc<RootCertStore>,
    /// The certificates of `--cacert`: a server that presents one of them itself is trusted too, as curl does.
    own: Vec<CertificateDer<'static>>,
    insecure: bool,
}

impl Trust {
    /// Public roots, and those in the PEM file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has no certificate.
    pub(crate) fn new(cacert: Option<&std::path::Path>, insecure: bool) -> Result<Self, String> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let mut own = Vec::new();
        if let Some(path) = cacert {
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| error.to_string())?;
            if certificates.is_empty() {
                return Err("no certificate in it".to_owned());
            }
            for certificate in certificates {
                roots.add(certificate.clone()).map_err(|error| format!("a certificate in it cannot be read: {error}"))?;
                own.push(certificate);
            }
        }
        Ok(Self { roots: Arc::new(roots), own, insecure })
    }

    pub(crate) fn is_insecure(&self) -> bool {
        self.insecure
    }

    pub(crate) fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    /// A client's configuration, and what the server of the last handshake presented.
    ///
    /// # Errors
    ///
    /// rustls's, about the roots.
    pub(crate) fn config(&self) -> Result<(ClientConfig, LastHandshake), String> {
        let webpki = WebPkiServerVerifier::builder_with_provider(self.roots.clone(), provider());
        let webpki = webpki.build().map_err(|error| error.to_string())?;
        let presented = LastHandshake::default();
        let (trust, record) = (self.clone(), presented.clone());
        let config = client_config_with(move |server| {
            let verdict = trust.verify(&webpki, server);
            let error = match &verdict {
                Ok(()) => None,
                Err(rustls::Error::InvalidCertificate(error)) => Some(error.clone()),
                Err(_) => Some(CertificateError::BadEncoding),
            };
            let leaf = x509::parse(server.end_entity).unwrap_or_default();
            let seen = PresentedCertificates { leaf, chain: 1 + server.intermediates.len(), error };
            *record.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
            if trust.insecure { Ok(()) } else { verdict }
        });
        Ok((config, presented))
    }

    fn verify(&self, webpki: &WebPkiServerVerifier, server: &ServerCertificate<'_>) -> Result<(), rustls::Error> {
        let ServerCertificate { end_entity, intermediates, name, ocsp, now } = server;
        let verdict = webpki.verify_server_cert(end_entity, intermediates, name, ocsp, *now).map(|_| ());
        if verdict.is_ok() || !self.own.iter().any(|own| own.as_ref() == end_entity.as_ref()) {
            return verdict;
        }
        // The very certificate that the user trusts, marked as a CA (openssl's default for -x509): name and dates still count.
        let leaf = x509::parse(end_entity).unwrap_or_default();
        let at = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if at > leaf.not_after {
            return Err(CertificateError::Expired.into());
        }
        if at < leaf.not_before {
            return Err(CertificateError::NotValidYet.into());
        }
        let parsed = rustls::server::ParsedCertificate::try_from(*end_entity)?;
        rustls::client::verify_server_name(&parsed, name)
    }
}

/// What the server of the last handshake presented; `None` before the first.
pub(crate) type LastHandshake = Arc<Mutex<Option<PresentedCertificates>>>;

/// The certificates of one handshake, and what is wrong with them.
#[derive(Debug, Clone)]
pub(crate) struct PresentedCertificates {
    pub(crate) leaf: Certificate,
    /// How many certificates the server sent.
    pub(crate) chain: usize,
    pub(crate) error: Option<CertificateError>,
}
