//! A TLS handshake, and what is wrong with the certificate that was presented or with the connection.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, InvalidMessage};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::net::trust::{PresentedCertificates, Trust};
use crate::net::x509;
use crate::report::Hint;

/// How a handshake ended.
#[derive(Debug)]
pub(crate) struct Handshake {
    /// `TLS 1.3, TLS13_AES_256_GCM_SHA384`, or why there is no connection.
    pub(crate) outcome: Result<String, std::io::Error>,
    pub(crate) seen: Option<PresentedCertificates>,
    pub(crate) took: Duration,
}

/// Shakes hands with `address` for `host`, all of it within `limit`.
pub(crate) async fn handshake(trust: &Trust, host: &str, address: SocketAddr, limit: Duration) -> Handshake {
    let started = Instant::now();
    let mut presented = None;
    let shaking = async {
        let (config, seen) = trust.config().map_err(std::io::Error::other)?;
        presented = Some(seen);
        let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        let socket = TcpStream::connect(address).await?;
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        let tls = stream.get_ref().1;
        let version = match tls.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3".to_owned(),
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2".to_owned(),
            other => format!("{other:?}"),
        };
        let suite = tls.negotiated_cipher_suite().map_or_else(String::new, |suite| format!(", {:?}", suite.suite()));
        let _ = stream.shutdown().await;
        Ok(format!("{version}{suite}"))
    };
    let outcome = timeout(limit, shaking).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    Handshake {
        outcome,
        seen: presented.and_then(|seen| seen.lock().unwrap_or_else(PoisonError::into_inner).take()),
        took: started.elapsed(),
    }
}

/// What is wrong with a certificate, and what to do about it.
pub(crate) fn explain(
    seen: &PresentedCertificates,
    host: &str,
    now: i64,
    has_own: bool,
    gateway_namespace: &str,
) -> Option<(String, Hint)> {
    let error = seen.error.as_ref()?;
    let leaf = &seen.leaf;
    let renew = format!("kubectl get certificate,secret -n {gateway_namespace}");
    let names = leaf.names.join(", ");
    if let Some(workload) = leaf.workload() {
        return Some((format!("The certificate is a sidecar's ({workload}), not a gateway's"), past_the_gateway(host)));
    }
    Some(match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            format!("The certificate expired on {}, {}", x509::date(leaf.not_after), ago(now - leaf.not_after)),
            Hint::new("Nobody renewed it: cert-manager is not running or its challenge fails, or it was made by hand")
                .run(renew)
                .run("kubectl describe challenge -A"),
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            format!("The certificate is not valid before {}", x509::date(leaf.not_before)),
            Hint::new("The clock here or where the certificate was made is wrong").run("date -u"),
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } if leaf.names.is_empty() => (
            format!("The certificate has no subject alternative name (SAN); its subject is {}", leaf.subject),
            Hint::new("Clients ignore the common name since years: make the certificate with a SAN")
                .run(format!("openssl req -x509 -newkey rsa:2048 -nodes -days 90 -subj /CN={host} -addext subjectAltName={} -keyout tls.key -out tls.crt", san_of(host))),
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            format!("The certificate is not for {host}: it names {names}"),
            Hint::new("The Gateway's credentialName is another host's secret, or the URL (with --resolve) should name a host of the certificate")
                .run("kubectl get gateway -A -o yaml | grep -B8 credentialName")
                .run(format!("kubectl get secret -n {gateway_namespace}")),
        ),
        CertificateError::UnknownIssuer if leaf.is_self_issued => (
            format!("The certificate is self-signed ({}) and not trusted here", leaf.subject),
            Hint::new("Nobody but its maker vouches for it. Give that very certificate, or the CA that signed it, with --cacert; --insecure goes on without verifying")
                .run("httpserver check … --cacert tls.crt"),
        ),
        CertificateError::UnknownIssuer => {
            let (trust, cause, alone) = if has_own {
                ("neither public nor in --cacert", "--cacert is another CA's", ", or the server sends its own certificate without the intermediate one")
            } else {
                ("not trusted here", "A private CA: give it with --cacert", ". For a public CA, the server sends its certificate without the intermediate one")
            };
            let cause = format!("{cause}{}", if seen.chain == 1 { alone } else { "" });
            let show = format!("openssl s_client -connect {host}:443 -servername {host} -showcerts </dev/null");
            (format!("The certificate was issued by {}, which is {trust}", leaf.issuer), Hint::new(cause).run(show))
        }
        CertificateError::BadSignature => (
            format!("The certificate's signature is not by {}", leaf.issuer),
            Hint::new("--cacert holds a CA of the same name with another key: an old one").run(renew),
        ),
        other if leaf.is_self_issued => (
            format!("The certificate is self-signed ({}) and not trusted here ({})", leaf.subject, other),
            Hint::new("Give that very certificate with --cacert; --insecure goes on without verifying").run("httpserver check … --cacert tls.crt"),
        ),
        other => (format!("The certificate is refused: {}", other), Hint::new("Not a certificate for a server of this name").run(renew)),
    })
}

/// A request to a hop's own address reaches its sidecar, which requires a client certificate.
pub(crate) fn past_the_gateway(host: &str) -> Hint {
    Hint::new(format!(
        "{host} is a hop's own address. Its sidecar accepts only mutual TLS from the mesh (PeerAuthentication STRICT), and this caller is outside the mesh: ask the gateway, or run check in a pod with a sidecar"
    ))
    .run("kubectl get peerauthentication -A")
    .run("kubectl get virtualservice -A  # the hosts that the gateway serves")
}

fn san_of(host: &str) -> String {
    if host.parse::<std::net::IpAddr>().is_ok() { format!("IP:{host}") } else { format!("DNS:{host}") }
}

/// A span of time in days, or hours when it is short.
pub(crate) fn ago(seconds: i64) -> String {
    match seconds / 86_400 {
        0 => format!("{} hours ago", (seconds / 3600).max(0)),
        1 => "1 day ago".to_owned(),
        days => format!("{days} days ago"),
    }
}

/// What a server that ends a handshake by this alert demands or lacks; its callers here present no client certificate.
pub(crate) fn alert_means(alert: &str) -> Option<&'static str> {
    Some(match alert {
        "CertificateRequired"
        | "BadCertificate"
        | "UnknownCA"
        | "CertificateUnknown"
        | "CertificateExpired"
        | "CertificateRevoked"
        | "UnsupportedCertificate"
        | "AccessDenied"
        | "NoCertificate" => "demands a client certificate (mutual TLS), and its caller presents none",
        "ProtocolVersion" => "speaks neither TLS 1.2 nor TLS 1.3, or not the one that its caller does",
        "HandshakeFailure" | "InsufficientSecurity" => {
            "has no cipher suite or kind of key in common with its caller, or demands a client certificate (mutual TLS)"
        }
        "UnrecognisedName" => "has no certificate for the name that is called (SNI)",
        "NoApplicationProtocol" => "does not offer the version of HTTP that its caller asks for (ALPN)",
        "InternalError" => "fails itself: it has no certificate for the name that is called (SNI), or cannot use its own",
        _ => return None,
    })
}

/// The same for the error of a connection that such an alert ended.
pub(crate) fn alert_in(error: &str) -> Option<&'static str> {
    let (_, alert) = error.split_once("received fatal alert: ")?;
    alert_means(alert.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default())
}

/// Why a handshake failed before any certificate was verified.
pub(crate) fn why_no_handshake(error: &std::io::Error, host: &str, port: u16, gateway_namespace: &str) -> (String, Hint) {
    use std::io::ErrorKind;
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let secret = |hint: Hint| {
        hint.run("kubectl get gateway -A -o yaml | grep -A6 -E 'hosts:|credentialName'")
            .run(format!("kubectl get secret -n {gateway_namespace}"))
            .run(format!("istioctl proxy-config secret deploy/istio-ingressgateway -n {gateway_namespace}"))
    };
    let s_client = format!("openssl s_client -connect {host}:{port} -servername {host} </dev/null");
    match tls {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion | InvalidMessage::MessageTooLarge)) => (
            format!("Port {port} speaks plain HTTP, not TLS"),
            Hint::new("The URL asks for TLS (https, grpcs) and the server there has none: write http or grpc, or the Gateway's server on this port lacks `tls:` (protocol: HTTPS)")
                .run(format!("curl -v http://{host}:{port}/")),
        ),
        Some(rustls::Error::PeerIncompatible(_)) => (
            "The server speaks no TLS version above 1.1, or no cipher suite of today".to_owned(),
            Hint::new("Its minimum or maximum version is set too low: minProtocolVersion: TLSV1_2 in the Gateway").run(s_client),
        ),
        Some(rustls::Error::AlertReceived(AlertDescription::UnrecognisedName)) => (
            format!("The server has no certificate for the name {host} (SNI)"),
            secret(Hint::new("No server of the Gateway has this host, or the URL's host is not the published one (use --resolve)")),
        ),
        Some(rustls::Error::AlertReceived(alert)) => {
            let alert = format!("{alert:?}");
            let Some(means) = alert_means(&alert) else {
                return (format!("The server refused the TLS handshake: {alert}"), secret(Hint::new("The server's log says why")));
            };
            let text = format!("The server refuses the TLS handshake ({alert}): it {means}");
            let hint = match alert.as_str() {
                "ProtocolVersion" | "HandshakeFailure" | "InsufficientSecurity" => {
                    Hint::new("minProtocolVersion, maxProtocolVersion, cipherSuites or tls.mode of the Gateway's server, or the same of another server").run(s_client)
                }
                "InternalError" => secret(Hint::new("The server's log says why")),
                _ => Hint::new("The Gateway's tls.mode is MUTUAL; `check` has no client certificate to give").run("kubectl get gateway -A -o yaml | grep -A3 tls:"),
            };
            (text, hint)
        }
        Some(error) => (format!("TLS failed: {error}"), Hint::new("What answers there does not speak TLS as it should").run(s_client)),
        None if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => (
            "The server accepted the connection and sent no TLS answer in time".to_owned(),
            Hint::new("Something between accepts connections for a server that is not there, or the port speaks another protocol").run(format!("curl -v http://{host}:{port}/")),
        ),
        None => (
            format!("The server closed the connection in the TLS handshake, before any certificate ({})", error.kind()),
            secret(Hint::new(format!(
                "Envoy does that when no server of the Gateway matches the name {host} (SNI), or when the Gateway's secret is missing: it must be in the namespace of the gateway's pod ({gateway_namespace}), under the name in credentialName"
            ))),
        ),
    }
}
