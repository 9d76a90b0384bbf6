//! TLS of clients, with rustls and ring, and certificates read from PEM files.
//!
//! Clients trust Mozilla's roots from the binary, because an image with nothing but this binary has no certificate files, or
//! the file that a flag names. Nothing is installed process-wide.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier};

/// Why a PEM file cannot be used, on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidFile {
    /// The flag or variable that names the file.
    pub flag: String,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for InvalidFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flag, path, why } = self;
        write!(f, "invalid value '{}' for {flag}: {why}; accepted: a PEM file", path.display().to_string().escape_debug())
    }
}

impl std::error::Error for InvalidFile {}

/// The roots that a client trusts.
#[derive(Debug, Clone)]
pub struct Roots(Arc<RootCertStore>);

impl Default for Roots {
    /// Mozilla's.
    fn default() -> Self {
        Self(Arc::new(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }))
    }
}

impl Roots {
    /// The certificates of a PEM file and no others.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has no certificate.
    pub fn load(flag: &str, path: &Path) -> Result<Self, InvalidFile> {
        roots(flag, path, &read_file(flag, path)?).map(|roots| Self(Arc::new(roots)))
    }
}

/// Whom a client trusts, and the certificate that it presents to servers that ask for one.
#[derive(Debug, Clone, Default)]
pub struct ClientTls {
    /// Whose certificates are trusted.
    pub roots: Roots,
    /// The client's own certificate.
    pub own: Option<Arc<CertifiedKey>>,
}

impl ClientTls {
    pub(crate) fn config(self) -> ClientConfig {
        hop_client_config(self.roots, self.own.map(|own| Arc::new(SingleCertAndKey::from(own)) as _))
    }
}

/// The same certificates, wherever they were read from.
impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        let same_key = match (&self.own, &other.own) {
            (Some(one), Some(two)) => one.cert == two.cert,
            (None, None) => true,
            _ => false,
        };
        same_key && self.roots.0.roots == other.roots.0.roots
    }
}

/// Verifies servers against the public roots.
pub(crate) fn client_config() -> ClientConfig {
    hop_client_config(Roots::default(), None)
}

/// Verifies next hops against `roots`, and presents the `own` certificate to those that ask for one.
pub(crate) fn hop_client_config(roots: Roots, own: Option<Arc<dyn ResolvesClientCert>>) -> ClientConfig {
    let builder = client_builder().with_root_certificates(roots.0);
    match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    }
}

/// Verifies nothing: for the health check of the hop in the same container, whose certificate names another host.
pub(crate) fn unverified_client_config() -> ClientConfig {
    client_config_with(|_| Ok(()))
}

/// Accepts the servers that `verify` accepts.
pub(crate) fn client_config_with(
    verify: impl Fn(&ServerCertificate<'_>) -> Result<(), rustls::Error> + Send + Sync + 'static,
) -> ClientConfig {
    let verifier = CustomVerifier { verify: Box::new(verify), provider: provider() };
    client_builder().dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
}

fn client_builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    match ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions() {
        Ok(builder) => builder,
        Err(error) => unreachable!("ring speaks TLS 1.2 and 1.3: {error}"),
    }
}

/// What computes.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads the file that a flag names.
///
/// # Errors
///
/// The file cannot be read.
pub(crate) fn read_file(flag: &str, path: &Path) -> Result<Vec<u8>, InvalidFile> {
    std::fs::read(path).map_err(|error| invalid_file(flag, path, &format!("cannot be read: {error}")))
}

/// A PEM file that a flag or a variable names and that cannot be used.
pub(crate) fn invalid_file(flag: &str, path: &Path, why: &dyn fmt::Display) -> InvalidFile {
    InvalidFile { flag: flag.to_owned(), path: path.to_owned(), why: why.to_string() }
}

/// The certificates in a PEM file: at least one.
pub(crate) fn certificates(flag: &str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, InvalidFile> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| invalid_file(flag, path, &error))?;
    if certificates.is_empty() { Err(invalid_file(flag, path, &"no PEM certificate in it")) } else { Ok(certificates) }
}

/// The certificates in a PEM file as roots.
pub(crate) fn roots(flag: &str, path: &Path, pem: &[u8]) -> Result<RootCertStore, InvalidFile> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(flag, path, pem)? {
        roots.add(certificate).map_err(|error| invalid_file(flag, path, &error))?;
    }
    Ok(roots)
}

/// A certificate and its private key; both are named by their flag and file.
pub(crate) fn certified_key(
    (cert_flag, cert, cert_pem): (&str, &Path, &[u8]),
    (key_flag, key, key_pem): (&str, &Path, &[u8]),
) -> Result<Arc<CertifiedKey>, InvalidFile> {
    let chain = certificates(cert_flag, cert, cert_pem)?;
    let wrong_key = |why: &dyn fmt::Display| invalid_file(key_flag, key, why);
    let der = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| wrong_key(&"no PEM private key in it"))?;
    let pair = CertifiedKey::from_der(chain, der, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => wrong_key(&format!("not the key of {}", cert.display())),
        error => wrong_key(&error),
    })?;
    Ok(Arc::new(pair))
}

/// What a server presents in a handshake, and to whom.
pub(crate) struct ServerCertificate<'a> {
    pub(crate) end_entity: &'a CertificateDer<'a>,
    pub(crate) intermediates: &'a [CertificateDer<'a>],
    pub(crate) name: &'a ServerName<'a>,
    pub(crate) ocsp: &'a [u8],
    pub(crate) now: UnixTime,
}

type Verify = dyn Fn(&ServerCertificate<'_>) -> Result<(), rustls::Error> + Send + Sync;

/// A rustls verifier: `verify` decides about the certificate, ring about the signatures made with it.
struct CustomVerifier {
    verify: Box<Verify>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for CustomVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomVerifier")
    }
}

impl ServerCertVerifier for CustomVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        (self.verify)(&ServerCertificate { end_entity, intermediates, name, ocsp, now })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
