//! What is a secret, and how it is shown.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue};

use crate::text::escape::is_printable_without;

/// What replaces the value of a secret.
pub(super) const MASK: &str = "***";

/// Whether the values of a header are secrets, to be masked wherever headers are shown.
pub fn is_secret(name: &str) -> bool {
    /// Anywhere in the name.
    const PARTS: [&str; 20] = [
        "authoriz",
        "oauth",
        "cookie",
        "token",
        "key",
        "password",
        "passwd",
        "passphrase",
        "passcode",
        "pwd",
        "secret",
        "credential",
        "jwt",
        "oidc",
        "saml",
        "session",
        "csrf",
        "xsrf",
        "signature",
        "assertion",
    ];
    /// Part of a word, or all of it.
    const WORDS: [&str; 15] = [
        "pass",
        "cred",
        "creds",
        "sess",
        "sid",
        "sig",
        "hmac",
        "otp",
        "totp",
        "dpop",
        "principal",
        "bearer",
        "jws",
        "jwe",
        "pin",
    ];
    PARTS.iter().any(|part| name.contains(part))
        || name.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| {
            let is_auth = word.ends_with("auth") || (word.starts_with("auth") && !word.starts_with("author"));
            is_auth || word.ends_with("pass") || WORDS.contains(&word)
        })
}

/// Whether a value has a secret in it, whatever its header's name.
pub(super) fn has_secret(value: &[u8]) -> bool {
    // Ids have none of the marks, and most values are ids.
    !is_printable_without(value, *b".@ ") && (has_token(value) || has_credentials(value) || has_userinfo(value))
}

/// Whether a value is written as `Authorization` is (RFC 9110, 11.4).
fn has_credentials(value: &[u8]) -> bool {
    let mut words = value.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let is_scheme = |word: &[u8]| ["bearer", "basic", "dpop"].iter().any(|scheme| word.eq_ignore_ascii_case(scheme.as_bytes()));
    words.next().is_some_and(is_scheme) && words.next().is_some() && words.next().is_none()
}

/// Whether a value has a URL with a user in it.
fn has_userinfo(value: &[u8]) -> bool {
    if memchr::memchr(b'@', value).is_none() {
        return false;
    }
    let ends = |byte: &u8| matches!(byte, b'/' | b'?' | b'#' | b'"' | b'<' | b'>') || byte.is_ascii_whitespace();
    value
        .windows(3)
        .enumerate()
        .filter(|(_, window)| window == b"://")
        .any(|(at, _)| value[at + 3..].iter().take_while(|byte| !ends(byte)).any(|byte| *byte == b'@'))
}

/// Whether a value is or contains a JSON Web Token: parts of base64url with dots between them, of which the first is a JSON
/// object. A name with dots in it is none.
fn has_token(value: &[u8]) -> bool {
    /// `{"alg":"none"}` and two dots.
    const SHORTEST: usize = 21;
    if value.len() < SHORTEST || !value.contains(&b'.') {
        return false;
    }
    let is_start = |at: &usize| value[*at] == b'e' && (*at == 0 || !is_base64(value[at - 1]));
    (0..=value.len() - SHORTEST).filter(is_start).any(|at| {
        let mut parts = value[at..].split(|byte| *byte == b'.');
        let header = parts.next().unwrap_or_default();
        // AWS pads the parts.
        let second = parts.next().is_some_and(|part| part.iter().all(|byte| is_base64(*byte) || *byte == b'='));
        second && parts.next().is_some() && is_json_object(header)
    })
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

fn is_json_object(base64url: &[u8]) -> bool {
    let digits = base64url.trim_ascii_end();
    let digits = &digits[..digits.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1)];
    let mut json = Vec::with_capacity(digits.len());
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits {
        let six = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return false,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            json.push((bits >> count) as u8);
        }
    }
    json.starts_with(b"{\"") || json.first() == Some(&b'{') && serde_json::from_slice::<serde::de::IgnoredAny>(&json).is_ok()
}

/// A header's value for people and JSON: masked when it is a secret, its URLs without their queries, lossy when it is not UTF-8.
pub(crate) fn redacted<'a>(name: &HeaderName, value: &'a HeaderValue) -> Cow<'a, str> {
    if is_secret(name.as_str()) { MASK.into() } else { redacted_value(value.as_bytes()) }
}

/// The same of a value whose name says nothing.
pub(crate) fn redacted_value(value: &[u8]) -> Cow<'_, str> {
    if has_secret(value) {
        return MASK.into();
    }
    match without_queries(value) {
        Cow::Borrowed(value) => String::from_utf8_lossy(value),
        Cow::Owned(value) => String::from_utf8_lossy(&value).into_owned().into(),
    }
}

/// A value with its URLs, paths included, up to their queries and fragments.
pub(super) fn without_queries(value: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'?', b'#', value).is_none() {
        return value.into();
    }
    let is_end = |byte: &u8| matches!(byte, b'"' | b'<' | b'>') || byte.is_ascii_whitespace();
    let mut shown = Vec::with_capacity(value.len());
    for word in value.split_inclusive(is_end) {
        let (word, end) = word.split_at(word.len() - usize::from(word.last().is_some_and(is_end)));
        shown.extend_from_slice(&word[..query(word).unwrap_or(word.len())]);
        shown.extend_from_slice(end);
    }
    shown.into()
}

/// Where the query or the fragment begins in a word that is, or has in it, a URL or a path.
fn query(word: &[u8]) -> Option<usize> {
    let at = memchr::memchr2(b'?', b'#', word)?;
    let is_url = word.windows(3).any(|window| window == b"://") || word.starts_with(b"/");
    let is_relative = word[at] == b'?' && (word[..at].contains(&b'/') || word[at..].contains(&b'='));
    (is_url || is_relative).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace_context::carried_names;

    #[test]
    fn names_of_secrets_are_known_by_their_parts_and_others_are_not_taken_for_them() {
        let secrets = "authorization proxy-authorization x-authorization cookie set-cookie x-cookie2 x-api-key apikey x-auth x-auth-user \
            x-authn x-userauth x-authentication x-oauth-data x-token id-token x-amzn-oidc-data x-amzn-oidc-identity x-amzn-oidc-accesstoken \
            x-goog-iap-jwt-assertion cf-access-jwt-assertion x-jwt jwt x-jwt-payload dpop x-session-id session x-sid x-csrf x-xsrf-state \
            x-pass x-passwd x-password x-userpass x-pwd x-db-pwd x-signature x-hub-signature-256 signature-input x-amz-sig x-saml-response \
            x-ms-client-principal x-ms-client-principal-id x-assertion x-credential x-aws-credentials x-creds x-secret client-secret x-otp \
            x-vault-token x-functions-key x-pin x-bearer private-token x-passphrase x-hmac";
        for name in secrets.split_whitespace() {
            assert!(is_secret(name), "{name}");
        }
        let others = "x-request-id x-correlation-id x-trace-id x-span-id x-hop-count x-call-budget x-tenant x-author x-authority \
            x-forwarded-for x-forwarded-client-cert x-real-ip user-agent host accept content-type content-length date etag referer via \
            x-envoy-attempt-count x-envoy-peer-metadata x-envoy-decorator-operation x-passenger x-compassion keep-alive sec-fetch-site \
            x-design x-signal x-side x-residence x-spinner x-opinion x-principality traceresponse x-fault";
        for name in others.split_whitespace().chain(carried_names()) {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn a_token_is_known_by_its_shape_wherever_it_stands() {
        // {"alg":"HS256"} {"sub":"1"}, {"alg":"none"}, and a header with white space.
        let signed = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl";
        let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.";
        let spaced = "eyAiYWxnIjogIkhTMjU2IiB9.eyJzdWIiOiIxIn0.c2ln";
        let lines = "ewogImFsZyI6ICJIUzI1NiIKfQ==.eyJzdWIiOiIxIn0=.c2ln";
        let encrypted = "eyJhbGciOiJSU0EtT0FFUCJ9.OKOawDo.48V1_ALb6US04U3b.5eym8TW_c8SuK0lt.XFBoMYUZodetZdvT";
        for token in [signed, unsigned, spaced, lines, encrypted] {
            for around in
                ["{}", "Bearer {}", "bearer  {}", "DPoP {}", "a=1; jwt={}", "user={},b=2", "\"{}\"", "https://a.b.c/?t={}"]
            {
                let value = around.replace("{}", token);
                assert!(has_token(value.as_bytes()), "{value}");
            }
        }
        for value in [
            "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01",
            "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1",
            "463ac35c9f6413ad48485a3953bb6124",
            "a2fb4a1d1a96d312",
            "dd=s:1;t.dm:-4;t.usr.id:baz64,rojo=00f067aa0ba902b7",
            "55de150c-e1dc-41dd-88bc-94c1533d4514",
            "eyewear.shop.example.com.and.more",
            "eyBub3QganNvbiBvYmplY3Q.eyJzdWIiOiIxIn0.c2ln",
            "eyJhbGciOiJIUzI1NiJ9.one-dot-alone",
            "1-MWYyZDRiZjQ3Yg==-YjM3-3-bWVzaC1zdmM=-d2ViYXBw-L3Byb2R1Y3Q=",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
            "10.0.0.7, 10.0.0.8, 192.168.100.200",
            "text/html,application/xhtml+xml,application/xml;q=0.9",
            "",
        ] {
            assert!(!has_token(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn credentials_and_users_of_urls_are_secrets_under_any_name() {
        for value in [
            "Bearer 2YotnFZFEjr1zCsicMWpAA",
            "bearer  opaque",
            "Basic dXNlcjpwYXNz",
            "BASIC dXNlcjpwYXNz==",
            "DPoP opaque",
            "https://user:pass@a.example/",
            "https://user@a.example",
            "a, ftp://u:p@b/c",
            "<redis://:p@cache:6379>; rel=x",
        ] {
            let value = HeaderValue::from_static(value);
            assert_eq!(redacted(&HeaderName::from_static("referer"), &value), MASK, "{value:?}");
        }
        for value in [
            "bearer",
            "Basic",
            "bearers of news",
            "the bearer token",
            "https://a.example/@user",
            "https://a.example a@b",
            "a@b",
            "://",
            "https://",
        ] {
            let value = HeaderValue::from_static(value);
            assert_eq!(redacted(&HeaderName::from_static("referer"), &value), value.to_str().unwrap());
        }
    }

    #[test]
    fn urls_are_shown_without_queries_under_any_name() {
        for (value, shown) in [
            ("https://a.example/?q=a@b", "https://a.example/"),
            ("https://a.example/b?code=1&token=2#f", "https://a.example/b"),
            ("https://a.example?code=1", "https://a.example"),
            ("https://a.example/b#access_token=1", "https://a.example/b"),
            ("/service1?token=secret", "/service1"),
            ("/callback#id_token=1", "/callback"),
            ("?code=1", ""),
            ("b/c?code=1", "b/c"),
            ("login.html?code=1", "login.html"),
            ("0; url=https://a/b?c=1", "0; url=https://a/b"),
            ("<https://a/b?page=2>; rel=\"next\", <c?page=3>; rel=last", "<https://a/b>; rel=\"next\", <c>; rel=last"),
            ("Bot/1.0 (+http://a/b?c=d) x/2", "Bot/1.0 (+http://a/b x/2"),
            ("id=http://a/b?c=1", "id=http://a/b"),
            ("what? yes", "what? yes"),
            ("C# and F#", "C# and F#"),
            ("https://a.example/b", "https://a.example/b"),
        ] {
            let header = HeaderValue::from_static(value);
            for name in ["referer", "x-envoy-original-path", "x-anything"] {
                assert_eq!(redacted(&HeaderName::from_static(name), &header), shown, "{value}");
            }
        }
    }
}
