//! TLS of the server: its certificate and the CA of its clients, reloaded when their files change.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureScheme};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

pub use crate::net::tls::InvalidFile;
use crate::net::tls::{certified_key, invalid_file, provider, read_file, roots};

/// How often the files are polled. cert-manager and the kubelet replace them hours before they expire.
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

/// The server's certificate. Clones share it.
#[derive(Clone)]
pub struct ServerTls(Arc<WatchedFiles>);

struct WatchedFiles {
    options: TlsOptions,
    current: RwLock<Arc<AcceptorState>>,
    /// File contents at the last poll, valid or not.
    last_read: Mutex<PemFiles>,
}

/// What a handshake uses.
pub(crate) struct AcceptorState {
    pub(crate) config: Arc<ServerConfig>,
    /// Callers are asked for a certificate.
    pub(crate) asks_for_certificate: bool,
    pair: Arc<CertifiedKey>,
}

#[derive(PartialEq, Eq)]
struct PemFiles {
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
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// A file cannot be read, has nothing of its kind in it, or the key is not the certificate's.
    pub fn load(options: TlsOptions) -> Result<Self, InvalidFile> {
        let files = PemFiles::read(&options)?;
        let current = RwLock::new(Arc::new(files.acceptor_state(&options)?));
        Ok(Self(Arc::new(WatchedFiles { options, current, last_read: Mutex::new(files) })))
    }

    /// What the next handshake uses.
    pub(crate) fn current(&self) -> Arc<AcceptorState> {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Polls the files and reloads them when they change. An invalid file is reported once, and the old state stays.
    pub(crate) async fn watch_files(self) {
        let mut reported = None;
        loop {
            tokio::time::sleep(RELOAD).await;
            let tls = self.clone();
            // A mounted volume may be slow.
            let Ok(reloaded) = tokio::task::spawn_blocking(move || tls.reload()).await else { continue };
            match reloaded {
                Ok(false) => {}
                Ok(true) => {
                    reported = None;
                    tracing::info!(cert = %self.0.options.cert.display(), "the TLS certificate was reloaded");
                }
                Err(error) if reported.as_ref() == Some(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "the TLS certificate was not reloaded; the old one stays");
                    reported = Some(error);
                }
            }
        }
    }

    fn reload(&self) -> Result<bool, InvalidFile> {
        let files = PemFiles::read(&self.0.options)?;
        let mut last_read = self.0.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        if *last_read == files {
            return Ok(false);
        }
        // Certificate and key are often replaced one after the other: a pair that does not fit is read again when it changes.
        let state = files.acceptor_state(&self.0.options);
        *last_read = files;
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state?);
        Ok(true)
    }
}

impl PemFiles {
    fn read(options: &TlsOptions) -> Result<Self, InvalidFile> {
        Ok(Self {
            cert: read_file("--tls-cert (TLS_CERT)", &options.cert)?,
            key: read_file("--tls-key (TLS_KEY)", &options.key)?,
            client_ca: options.client_ca.as_ref().map(|path| read_file("--tls-client-ca (TLS_CLIENT_CA)", path)).transpose()?,
        })
    }

    fn acceptor_state(&self, options: &TlsOptions) -> Result<AcceptorState, InvalidFile> {
        let provider = provider();
        let pair = certified_key(
            ("--tls-cert (TLS_CERT)", &options.cert, &self.cert),
            ("--tls-key (TLS_KEY)", &options.key, &self.key),
        )?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| invalid_file("--tls-cert (TLS_CERT)", &options.cert, &error))?;
        let builder = match (&options.client_ca, &self.client_ca) {
            (Some(path), Some(pem)) => {
                const FLAG: &str = "--tls-client-ca (TLS_CLIENT_CA)";
                let roots = Arc::new(roots(FLAG, path, pem)?);
                // A peer without a certificate is let in, because a kubelet that probes has none; the service answers it by
                // `ClientCertificate::is_missing`. A certificate that is presented must be valid.
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).allow_unauthenticated().build();
                builder.with_client_cert_verifier(verifier.map_err(|error| invalid_file(FLAG, path, &error))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(pair.clone())));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(AcceptorState { config: Arc::new(config), asks_for_certificate: options.client_ca.is_some(), pair })
    }
}

/// Who a certificate names: its SPIFFE URI, else another URI, else its subject, else a DNS name or an email address.
pub(crate) fn identity(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    const MAX: usize = 1024;
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten().map(|names| &names.value.general_names[..]);
    let uris = || {
        let uri = |name: &GeneralName<'_>| if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None };
        names.unwrap_or_default().iter().filter_map(uri)
    };
    let uri = uris().find(|uri| uri.starts_with("spiffe://")).or_else(|| uris().next());
    let subject = || Some(certificate.subject().to_string()).filter(|subject| !subject.is_empty());
    let other = || {
        names?.iter().find_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) => Some((*name).to_owned()),
            _ => None,
        })
    };
    let name = uri.or_else(subject).or_else(other);
    name.filter(|name| !name.is_empty() && name.len() <= MAX).map(Arc::from)
}

/// Presents the same certificate, always the current one, to a next hop that asks for one.
impl ResolvesClientCert for ServerTls {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let pair = self.current().pair.clone();
        pair.key.choose_scheme(schemes).is_some().then_some(pair)
    }

    fn has_certs(&self) -> bool {
        true
    }
}
