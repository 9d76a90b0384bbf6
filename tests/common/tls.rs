//! Certificates made when a test runs, and a hop that has one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{AccessLog, Hop};

/// A directory of its own that is gone after the test.
pub struct Files(PathBuf);

impl Files {
    pub fn new(test: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tls-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, content: &str) -> String {
        // As a mounted secret does it: the new file takes the old one's place in one step.
        let path = self.path(name);
        std::fs::write(format!("{path}.new"), content).unwrap();
        std::fs::rename(format!("{path}.new"), &path).unwrap();
        path
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub type Authority = CertifiedIssuer<'static, KeyPair>;

pub fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate for `host` and its key, as PEM.
pub fn issued(by: &Authority, host: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, by).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// A hop with a certificate for `localhost` and what is needed to talk to it.
pub struct Secure {
    pub hop: Hop,
    pub files: Files,
    pub authority: Authority,
}

impl Secure {
    pub fn start(test: &str, flags: &[&str]) -> Self {
        Self::start_with(test, flags, AccessLog::Kept)
    }

    /// Like [`Secure::start`], with the access lines elsewhere.
    pub fn start_with(test: &str, flags: &[&str], access_log: AccessLog) -> Self {
        let (files, authority) = (Files::new(test), authority("test"));
        let (cert, key) = issued(&authority, "localhost");
        let (cert, key) = (files.write("tls.crt", &cert), files.write("tls.key", &key));
        files.write("ca.crt", &authority.pem());
        let mut all = vec!["--tls-cert", &cert, "--tls-key", &key];
        all.extend(flags);
        Self { hop: Hop::start_with(&all, &[], access_log), files, authority }
    }

    /// The flags of a hop with the same certificate.
    pub fn flags(&self) -> Vec<String> {
        ["--tls-cert".to_owned(), self.files.path("tls.crt"), "--tls-key".to_owned(), self.files.path("tls.key")].into()
    }

    pub async fn connect(&self, alpn: &[&[u8]], own: Option<&(String, String)>) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TcpStream::connect(self.hop.addr).await?;
        self.connector(alpn, own).connect(name, stream).await
    }

    pub fn connector(&self, alpn: &[&[u8]], own: Option<&(String, String)>) -> TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match own {
            Some((cert, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    /// Status and body of one request on a connection of its own.
    pub async fn get(&self, path: &str, own: Option<&(String, String)>) -> std::io::Result<(u16, String)> {
        let stream = self.connect(&[b"http/1.1"], own).await?;
        let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "localhost").body(Empty::<bytes::Bytes>::new()).unwrap();
        // A connection that a server refuses after the client's side of the handshake can leave hyper's client waiting.
        let answer = tokio::time::timeout(ANSWER, send.send_request(request)).await?.map_err(std::io::Error::other)?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(20);
