//! The parts of a certificate that `check` reports: names, issuer, validity. Verifies nothing.

use std::net::{Ipv4Addr, Ipv6Addr};

use x509_parser::prelude::{ASN1Time, FromDer as _, GeneralName, X509Certificate, X509Name};

/// The parts of a certificate that a report names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Certificate {
    /// The subject as `CN=…, O=…`.
    pub(crate) subject: String,
    pub(crate) issuer: String,
    /// Subject and issuer are the same name.
    pub(crate) is_self_issued: bool,
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// DNS names and IP addresses of the subject alternative name; empty when there is none.
    pub(crate) names: Vec<String>,
    /// The URIs there: a workload's identity in a mesh is one, `spiffe://…`.
    pub(crate) uris: Vec<String>,
}

impl Certificate {
    /// The SPIFFE identity, when the certificate belongs to a workload of a mesh and not to a server of the public web.
    pub(crate) fn workload(&self) -> Option<&str> {
        self.uris.iter().map(String::as_str).find(|uri| uri.starts_with("spiffe://"))
    }
}

/// Parses a DER certificate; `None` when it is not one.
pub(crate) fn parse(der: &[u8]) -> Option<Certificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let (subject, issuer) = (certificate.subject(), certificate.issuer());
    let mut parsed = Certificate {
        subject: name(subject),
        issuer: name(issuer),
        is_self_issued: subject.as_raw() == issuer.as_raw(),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        ..Certificate::default()
    };
    let alternative = certificate.subject_alternative_name().ok().flatten();
    for general in alternative.iter().flat_map(|extension| &extension.value.general_names) {
        match general {
            GeneralName::DNSName(name) => parsed.names.push((*name).to_owned()),
            GeneralName::URI(uri) => parsed.uris.push((*uri).to_owned()),
            GeneralName::IPAddress(bytes) => parsed.names.extend(ip(bytes)),
            _ => {}
        }
    }
    Some(parsed)
}

/// A distinguished name, reduced to common name and organization.
fn name(name: &X509Name<'_>) -> String {
    let parts: Vec<String> = name
        .iter_attributes()
        .filter_map(|attribute| {
            let key = match attribute.attr_type().to_id_string().as_str() {
                "2.5.4.3" => "CN",
                "2.5.4.10" => "O",
                "2.5.4.11" => "OU",
                _ => return None,
            };
            Some(format!("{key}={}", String::from_utf8_lossy(attribute.as_slice())))
        })
        .collect();
    if parts.is_empty() { "(no name)".to_owned() } else { parts.join(", ") }
}

fn ip(bytes: &[u8]) -> Option<String> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(|octets| Ipv4Addr::from(octets).to_string());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|octets| Ipv6Addr::from(octets).to_string());
    v4().or_else(|_| v6()).ok()
}

/// The date of a time in seconds since 1970: `2027-03-01`.
pub(crate) fn date(seconds: i64) -> String {
    ASN1Time::from_timestamp(seconds).map_or_else(|_| format!("{seconds} s"), |time| time.to_datetime().date().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_dates_of_a_certificate_are_parsed() {
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned(), "10.0.0.5".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "a.example");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "cncamp");
        params.not_before = rcgen::date_time_ymd(2026, 2, 28);
        params.not_after = rcgen::date_time_ymd(2052, 3, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parse(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(certificate.names, ["a.example", "10.0.0.5"]);
        assert_eq!(certificate.subject, "CN=a.example, O=cncamp");
        assert!(certificate.is_self_issued);
        assert_eq!(date(certificate.not_before), "2026-02-28");
        assert_eq!(date(certificate.not_after), "2052-03-01");
    }

    #[test]
    fn a_time_is_shown_as_its_date() {
        for (seconds, text) in [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (1_798_761_599, "2026-12-31"), (-1, "1969-12-31")]
        {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn bytes_that_are_no_certificate_are_none_and_never_a_panic() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
        let key = rcgen::KeyPair::generate().unwrap();
        let der = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap();
        for cut in 0..der.der().len() {
            let _ = parse(&der.der()[..cut]);
        }
        let mut bytes = der.der().to_vec();
        for i in 0..bytes.len() {
            bytes[i] ^= 0xff;
            let _ = parse(&bytes);
            bytes[i] ^= 0xff;
        }
    }
}
