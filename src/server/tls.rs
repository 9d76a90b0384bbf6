//! TLS, with rustls and ring: the hop's own certificate, reloaded when its files change, and what clients trust.
//!
//! Clients trust Mozilla's roots from the binary, because an image with nothing but this binary has no certificate files, or
//! the file that `--upstream-ca` names. Nothing is installed process-wide.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

/// How often the files are looked at. cert-manager and the kubelet replace them hours before they expire.
const RELOAD: Duration = Duration::from_secs(2);

/// `--tls-cert`, `--tls-key` and `--tls-client-ca`: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// The certificate and what leads to its root.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs the certificates of callers; `None` asks for none.
    pub client_ca: Option<PathBuf>,
}

/// The hop's own certificate. Clones share it.
#[derive(Clone)]
pub struct ServerTls(Arc<Shared>);

struct Shared {
    options: TlsOptions,
    current: RwLock<Arc<AcceptorState>>,
    /// What the files held when they were last looked at, whether it was any good or not.
    seen: Mutex<Files>,
}

/// What a handshake is made with.
pub(crate) struct AcceptorState {
    pub(crate) config: Arc<ServerConfig>,
    /// Callers are asked for a certificate.
    pub(crate) asks_for_certificate: bool,
    pair: Arc<CertifiedKey>,
}

#[derive(PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerTls").field(&self.0.options).finish()
    }
}

impl ServerTls {
    /// Reads the files. Errors: one line that names the flag, the file and what is wrong with it.
    pub fn load(options: TlsOptions) -> Result<Self, String> {
        let files = Files::read(&options)?;
        let current = RwLock::new(Arc::new(files.acceptor_state(&options)?));
        Ok(Self(Arc::new(Shared { options, current, seen: Mutex::new(files) })))
    }

    /// What the next handshake is made with.
    pub(crate) fn current(&self) -> Arc<AcceptorState> {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows the files for as long as it is polled. What is no good is said once, and the old pair stays.
    pub(crate) async fn watch_files(self) {
        let mut said = String::new();
        loop {
            tokio::time::sleep(RELOAD).await;
            let tls = self.clone();
            // A mounted volume may be slow.
            let Ok(reloaded) = tokio::task::spawn_blocking(move || tls.reload()).await else { continue };
            match reloaded {
                Ok(false) => {}
                Ok(true) => {
                    said.clear();
                    tracing::info!(cert = %self.0.options.cert.display(), "the TLS certificate was reloaded");
                }
                Err(error) if error == said => {}
                Err(error) => {
                    tracing::warn!(error, "the TLS certificate was not reloaded; the old one stays");
                    said = error;
                }
            }
        }
    }

    fn reload(&self) -> Result<bool, String> {
        let files = Files::read(&self.0.options)?;
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == files {
            return Ok(false);
        }
        // Certificate and key are often replaced one after the other: what does not fit now is looked at again when it
        // changes.
        let state = files.acceptor_state(&self.0.options);
        *seen = files;
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state?);
        Ok(true)
    }
}

impl Files {
    fn read(options: &TlsOptions) -> Result<Self, String> {
        Ok(Self {
            cert: read("--tls-cert (TLS_CERT)", &options.cert)?,
            key: read("--tls-key (TLS_KEY)", &options.key)?,
            client_ca: options.client_ca.as_ref().map(|path| read("--tls-client-ca (TLS_CLIENT_CA)", path)).transpose()?,
        })
    }

    fn acceptor_state(&self, options: &TlsOptions) -> Result<AcceptorState, String> {
        let provider = provider();
        let chain = certificates("--tls-cert (TLS_CERT)", &options.cert, &self.cert)?;
        let wrong_key = |why: &dyn fmt::Display| wrong("--tls-key (TLS_KEY)", &options.key, why);
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| wrong_key(&"no PEM private key in it"))?;
        let pair = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => wrong_key(&format!("not the key of {}", options.cert.display())),
            error => wrong_key(&error),
        })?;
        let pair = Arc::new(pair);
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match (&options.client_ca, &self.client_ca) {
            (Some(path), Some(pem)) => {
                const FLAG: &str = "--tls-client-ca (TLS_CLIENT_CA)";
                let roots = Arc::new(roots(FLAG, path, pem)?);
                // Without a certificate a caller gets in, because a kubelet that probes has none; `app` then lets it see the
                // probes' endpoints and nothing else. One that is shown must be good.
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).allow_unauthenticated().build();
                builder.with_client_cert_verifier(verifier.map_err(|error| wrong(FLAG, path, &error))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(pair.clone())));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(AcceptorState { config: Arc::new(config), asks_for_certificate: options.client_ca.is_some(), pair })
    }
}

/// Shows the hop's own certificate to a next hop that asks for one: always the current one.
impl ResolvesClientCert for ServerTls {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let pair = self.current().pair.clone();
        pair.key.choose_scheme(schemes).is_some().then_some(pair)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Whom a client trusts.
#[derive(Debug, Clone)]
pub struct Roots(Arc<RootCertStore>);

impl Default for Roots {
    /// Mozilla's.
    fn default() -> Self {
        Self(Arc::new(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }))
    }
}

impl Roots {
    /// The certificates of a PEM file and no others. Errors: one line that names `flag`, the file and what is wrong with it.
    pub fn load(flag: &str, path: &Path) -> Result<Self, String> {
        roots(flag, path, &read(flag, path)?).map(|roots| Self(Arc::new(roots)))
    }
}

/// Verifies servers against the public roots.
pub(crate) fn client_config() -> ClientConfig {
    hop_client_config(Roots::default(), None)
}

/// Verifies next hops against `roots`, and shows the `own` certificate to those that ask for one.
pub(crate) fn hop_client_config(roots: Roots, own: Option<ServerTls>) -> ClientConfig {
    let builder = client_builder().with_root_certificates(roots.0);
    match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(own)),
        None => builder.with_no_client_auth(),
    }
}

/// Verifies nothing: for asking the hop in the same container how it is, whose certificate names another host.
pub(crate) fn unverified_client_config() -> ClientConfig {
    client_builder().dangerous().with_custom_certificate_verifier(Arc::new(NoVerification(provider()))).with_no_client_auth()
}

fn client_builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    match ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions() {
        Ok(builder) => builder,
        Err(error) => unreachable!("ring speaks TLS 1.2 and 1.3: {error}"),
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| wrong(flag, path, &format!("cannot be read: {error}")))
}

fn wrong(flag: &str, path: &Path, why: &dyn fmt::Display) -> String {
    format!("invalid value '{}' for {flag}: {why}; accepted: a PEM file", path.display().to_string().escape_debug())
}

fn certificates(flag: &str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| wrong(flag, path, &error))?;
    if certificates.is_empty() { Err(wrong(flag, path, &"no PEM certificate in it")) } else { Ok(certificates) }
}

fn roots(flag: &str, path: &Path, pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(flag, path, pem)? {
        roots.add(certificate).map_err(|error| wrong(flag, path, &error))?;
    }
    Ok(roots)
}

/// Takes every certificate.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
