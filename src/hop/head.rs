//! The fields of a request's head that a hop reads beside the carried headers.

use std::net::IpAddr;
use std::time::Duration;

use http::Uri;
use http::header::{HeaderName, HeaderValue};

use crate::net::addresses::{self, Forwarded, first_forwarded};
use crate::net::hosts::is_host_and_port;
use crate::rpc;
use crate::trace_context::{Carried, X_CALL_BUDGET, X_HOP_COUNT, redacted_value};

/// The fields of a request head that a hop uses, beside the carried headers.
#[derive(Default)]
pub(crate) struct RequestHead {
    /// There will be a span.
    is_traced: bool,
    pub(crate) carried: Carried,
    pub(crate) user_agent: Option<HeaderValue>,
    is_https: Option<bool>,
    /// Only kept for a span.
    forwarded_host: Option<HeaderValue>,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) hosts: usize,
    /// A transfer encoding that is not just `chunked`.
    pub(crate) odd_encoding: bool,
    real_ip: Option<IpAddr>,
    forwarded_for: Option<IpAddr>,
    forwarded: Option<Box<Forwarded>>,
    pub(crate) identity: Option<String>,
    pub(crate) attempt: Option<u32>,
    pub(crate) hops: Option<u32>,
    pub(crate) call_budget: Option<u32>,
    /// The request is a call of gRPC.
    pub(crate) is_grpc: bool,
    pub(crate) grpc_timeout: Option<Duration>,
}

impl RequestHead {
    pub(crate) fn new(is_traced: bool) -> Self {
        Self { is_traced, ..Self::default() }
    }

    pub(crate) fn read(&mut self, name: &HeaderName, value: &HeaderValue) {
        let text = || value.to_str().ok();
        match name.as_str() {
            "host" => {
                self.host = Some(value.clone());
                self.hosts += 1;
            }
            "user-agent" if self.is_traced => self.user_agent = Some(value.clone()),
            "x-forwarded-proto" => self.is_https = self.is_https.or_else(|| is_https(addresses::first(text()?))),
            "x-forwarded-host" if self.is_traced && self.forwarded_host.is_none() => {
                self.forwarded_host = text().and_then(|list| host(addresses::first(list)));
            }
            "transfer-encoding" => self.odd_encoding |= !value.as_bytes().eq_ignore_ascii_case(b"chunked"),
            "x-real-ip" => self.real_ip = self.real_ip.or_else(|| addresses::parse(text()?)),
            "x-forwarded-for" => {
                self.forwarded_for = self.forwarded_for.or_else(|| addresses::parse(addresses::first(text()?)));
            }
            "forwarded" if self.forwarded.is_none() => self.forwarded = text().map(|list| first_forwarded(list).into()),
            "x-forwarded-client-cert" => {
                self.identity = text().and_then(caller_uri).map(|uri| redacted_value(uri.as_bytes()).into_owned())
            }
            "content-type" => self.is_grpc = rpc::is_grpc(value.as_bytes()),
            "grpc-timeout" => self.grpc_timeout = text().and_then(rpc::timeout::parse),
            "x-envoy-attempt-count" => self.attempt = text().and_then(|count| count.parse().ok()).filter(|count| *count > 0),
            // Of several values the one that ends a loop sooner.
            _ if *name == X_HOP_COUNT => self.hops = self.hops.max(text().and_then(|count| count.parse().ok())),
            _ if *name == X_CALL_BUDGET => {
                self.call_budget = self.call_budget.into_iter().chain(text().and_then(|count| count.parse().ok())).min();
            }
            _ => {}
        }
    }

    /// The client, as proxies report it.
    pub(crate) fn client(&self) -> Option<IpAddr> {
        let forwarded = || addresses::parse(self.forwarded.as_ref()?.client.as_deref()?);
        self.real_ip.or(self.forwarded_for).or_else(forwarded)
    }

    /// Whether the original request came by TLS, as proxies report it.
    pub(crate) fn is_https(&self) -> Option<bool> {
        self.is_https.or_else(|| is_https(self.forwarded.as_ref()?.scheme.as_deref()?))
    }

    /// The host of the original request, as proxies report it, else of this one. What is no valid host may have a password in
    /// it, and is none.
    pub(crate) fn original_host(&mut self, uri: &Uri, is_valid: bool) -> Option<HeaderValue> {
        // In HTTP/2 and in absolute form the target names the host, and `Host` is ignored (RFC 9112, 3.2.2).
        let mut own = || match uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => self.host.take().filter(|host| !host.is_empty()),
        };
        let forwarded = || host(self.forwarded.as_ref()?.host.as_deref()?);
        self.forwarded_host.take().or_else(forwarded).or_else(|| if is_valid { own() } else { None })
    }
}

fn is_https(scheme: &str) -> Option<bool> {
    (!scheme.is_empty()).then(|| scheme.eq_ignore_ascii_case("https"))
}

/// A valid host that a proxy reports.
fn host(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok().filter(|host| is_host_and_port(host.as_bytes()))
}

/// The caller's URI from `x-forwarded-client-cert`: of the last element, which the nearest proxy added.
/// Form: `By=…;Hash=…;Subject="…";URI=spiffe://…,By=…`; values with `,` `;` `=` are quoted.
pub(crate) fn caller_uri(xfcc: &str) -> Option<String> {
    const MAX: usize = 1024;
    let mut uri = None;
    let mut rest = xfcc;
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.match_indices('"').find(|(i, _)| !quoted[..*i].ends_with('\\'))?.0;
                (&quoted[..end], &quoted[end + 1..])
            }
            None => after.split_at(after.find([',', ';']).unwrap_or(after.len())),
        };
        if name.trim().eq_ignore_ascii_case("URI") {
            uri = Some(value);
        }
        // A comma begins the next proxy's element: the element before is about an earlier call.
        if after.starts_with(',') {
            uri = None;
        }
        rest = after.strip_prefix([',', ';']).unwrap_or(after);
        if rest.len() == after.len() && !rest.is_empty() {
            return None;
        }
    }
    uri.filter(|uri| !uri.is_empty() && uri.len() <= MAX).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_identity_is_the_uri_of_the_nearest_proxys_element() {
        let uri = |xfcc: &str| caller_uri(xfcc);
        assert_eq!(uri("By=spiffe://a;Hash=1;URI=spiffe://b"), Some("spiffe://b".into()));
        assert_eq!(uri("URI=spiffe://old,By=spiffe://a;URI=spiffe://new"), Some("spiffe://new".into()));
        assert_eq!(uri(r#"By=a;Subject="CN=x,O=\"y\";URI=spiffe://forged";URI=spiffe://b"#), Some("spiffe://b".into()));
        assert_eq!(uri("URI=spiffe://old,By=spiffe://a;Hash=1"), None);
        for bad in ["", "=", "URI", "URI=", "Subject=\"open", "a=\"b\"c"] {
            assert_eq!(uri(bad), None, "{bad}");
        }
    }
}
