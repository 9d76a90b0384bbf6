//! `Authorization: Bearer` (RFC 6750).

use http::{HeaderMap, header};

/// The bearer token of a request; `None` unless it is the only credential.
pub(crate) fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
    // In any case (RFC 9110, 11.1).
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bearer_token_counts_and_no_second_credential() {
        let of = |values: &[&'static str]| {
            let values = values.iter().map(|value| (header::AUTHORIZATION, http::HeaderValue::from_static(value)));
            bearer_token(&values.collect()).map(<[u8]>::to_vec)
        };
        for value in ["Bearer a", "bearer a", "BEARER   a "] {
            assert_eq!(of(&[value]).as_deref(), Some(&b"a"[..]), "{value}");
        }
        for values in [&[][..], &["Basic a"], &["Bearer"], &["a"], &["Bearer a", "Bearer b"], &["Basic a", "Bearer b"]] {
            assert_eq!(of(values), None, "{values:?}");
        }
    }
}
