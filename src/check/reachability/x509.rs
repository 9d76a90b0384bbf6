//! What `check` tells about a certificate: names, issuer, validity. Reads DER, trusts nothing, verifies nothing.

/// The parts of a certificate that people ask about.
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
    /// The identity of the workload that it belongs to, when it is no server's of the public web but a mesh's.
    pub(crate) fn workload(&self) -> Option<&str> {
        self.uris.iter().map(String::as_str).find(|uri| uri.starts_with("spiffe://"))
    }
}

/// Reads a certificate; `None` when it is not one.
pub(crate) fn parse(der: &[u8]) -> Option<Certificate> {
    let mut certificate = Der(der).enter(SEQUENCE)?;
    let mut tbs = certificate.enter(SEQUENCE)?;
    tbs.skip_if(0xa0)?;
    tbs.next()?; // serial number
    tbs.next()?; // signature algorithm
    let issuer = tbs.expect(SEQUENCE)?;
    let mut validity = tbs.enter(SEQUENCE)?;
    let (not_before, not_after) = (time(validity.next()?)?, time(validity.next()?)?);
    let subject = tbs.expect(SEQUENCE)?;
    tbs.next()?; // public key
    let (mut names, mut uris) = (Vec::new(), Vec::new());
    while let Some((tag, body)) = tbs.next() {
        if tag == 0xa3 {
            (names, uris) = san(body).unwrap_or_default();
        }
    }
    Some(Certificate {
        subject: name(subject),
        issuer: name(issuer),
        is_self_issued: subject == issuer,
        not_before,
        not_after,
        names,
        uris,
    })
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;

/// A cursor over DER values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let length = if first < 0x80 {
            usize::from(first)
        } else {
            let bytes = usize::from(first & 0x7f);
            if bytes == 0 || bytes > 4 {
                return None;
            }
            let (digits, tail) = rest.split_at_checked(bytes)?;
            rest = tail;
            digits.iter().fold(0_usize, |sum, digit| sum << 8 | usize::from(*digit))
        };
        let (body, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, body))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, body)| body)
    }

    fn enter(&mut self, tag: u8) -> Option<Der<'a>> {
        self.expect(tag).map(Der)
    }

    fn skip_if(&mut self, tag: u8) -> Option<()> {
        if self.0.first() == Some(&tag) {
            self.next()?;
        }
        Some(())
    }
}

/// A distinguished name as people write it.
fn name(der: &[u8]) -> String {
    let mut parts = Vec::new();
    let mut sets = Der(der);
    while let Some((SET, set)) = sets.next() {
        let mut attributes = Der(set);
        while let Some((SEQUENCE, attribute)) = attributes.next() {
            let mut attribute = Der(attribute);
            let (Some(oid), Some((_, value))) = (attribute.expect(OID), attribute.next()) else { continue };
            let key = match oid {
                [0x55, 0x04, 0x03] => "CN",
                [0x55, 0x04, 0x0a] => "O",
                [0x55, 0x04, 0x0b] => "OU",
                _ => continue,
            };
            parts.push(format!("{key}={}", String::from_utf8_lossy(value)));
        }
    }
    if parts.is_empty() { "(no name)".to_owned() } else { parts.join(", ") }
}

/// The DNS names and IP addresses among the extensions, and the URIs.
fn san(extensions: &[u8]) -> Option<(Vec<String>, Vec<String>)> {
    let mut list = Der(extensions).enter(SEQUENCE)?;
    let (mut names, mut uris) = (Vec::new(), Vec::new());
    while let Some((SEQUENCE, extension)) = list.next() {
        let mut extension = Der(extension);
        if extension.expect(OID) != Some(&[0x55, 0x1d, 0x11]) {
            continue;
        }
        extension.skip_if(0x01)?; // critical
        let mut general = Der(extension.expect(OCTETS)?).enter(SEQUENCE)?;
        while let Some((tag, body)) = general.next() {
            match (tag, body.len()) {
                (0x82, _) => names.push(String::from_utf8_lossy(body).into_owned()),
                (0x86, _) => uris.push(String::from_utf8_lossy(body).into_owned()),
                (0x87, 4) => names.push(<[u8; 4]>::try_from(body).map(std::net::Ipv4Addr::from).ok()?.to_string()),
                (0x87, 16) => names.push(<[u8; 16]>::try_from(body).map(std::net::Ipv6Addr::from).ok()?.to_string()),
                _ => {}
            }
        }
    }
    Some((names, uris))
}

/// UTCTime or GeneralizedTime, in UTC, as seconds since 1970.
fn time((tag, body): (u8, &[u8])) -> Option<i64> {
    const UTC_TIME: u8 = 0x17;
    const GENERALIZED: u8 = 0x18;
    let text = std::str::from_utf8(body).ok()?.strip_suffix('Z')?;
    let full = match (tag, text.len()) {
        // RFC 5280: two digits from 50 on are of the 20th century.
        (UTC_TIME, 12) => format!("{}{text}", if text < "50" { "20" } else { "19" }),
        (GENERALIZED, 14) => text.to_owned(),
        _ => return None,
    };
    let part = |from: usize, to: usize| full.get(from..to)?.parse::<i64>().ok();
    let days = days(part(0, 4)?, part(4, 6)?, part(6, 8)?);
    Some(days * 86_400 + part(8, 10)? * 3600 + part(10, 12)? * 60 + part(12, 14)?)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar (Howard Hinnant's `days_from_civil`).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// A time as a date: `2027-03-01`.
pub(crate) fn date(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400) + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days - era * 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + i64::from(month <= 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_tells_its_names_and_dates() {
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
    fn dates_go_there_and_back() {
        for (seconds, text) in [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (1_798_761_599, "2026-12-31"), (-1, "1969-12-31")]
        {
            assert_eq!(date(seconds), text);
        }
        assert_eq!(days(2000, 2, 29) * 86_400, 951_782_400);
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
