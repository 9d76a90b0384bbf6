//! The fields of a request's head that a hop reads beside the carried headers.

use std::net::IpAddr;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};

use crate::net::addresses;
use crate::rpc;
use crate::trace_context::{Carried, X_CALL_BUDGET, X_HOP_COUNT};

/// The fields of a request head that a hop uses, beside the carried headers.
#[derive(Default)]
pub(crate) struct RequestHead {
    /// There will be a span.
    pub(crate) is_traced: bool,
    pub(crate) carried: Carried,
    pub(crate) user_agent: Option<HeaderValue>,
    pub(crate) is_https: Option<bool>,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) hosts: usize,
    /// A transfer encoding that is not just `chunked`.
    pub(crate) odd_encoding: bool,
    pub(crate) real_ip: Option<IpAddr>,
    pub(crate) forwarded_for: Option<IpAddr>,
    pub(crate) forwarded: Option<IpAddr>,
    pub(crate) identity: Option<String>,
    pub(crate) attempt: Option<u32>,
    pub(crate) hops: Option<u32>,
    pub(crate) call_budget: Option<u32>,
    /// The request is a call of gRPC.
    pub(crate) is_grpc: bool,
    pub(crate) grpc_timeout: Option<Duration>,
}

impl RequestHead {
    pub(crate) fn read(&mut self, name: &HeaderName, value: &HeaderValue) {
        let text = || value.to_str().ok();
        match name.as_str() {
            "host" => {
                self.host = Some(value.clone());
                self.hosts += 1;
            }
            "user-agent" if self.is_traced => self.user_agent = Some(value.clone()),
            "x-forwarded-proto" => self.is_https = Some(value.as_bytes().eq_ignore_ascii_case(b"https")),
            "transfer-encoding" => self.odd_encoding |= !value.as_bytes().eq_ignore_ascii_case(b"chunked"),
            "x-real-ip" => self.real_ip = self.real_ip.or_else(|| addresses::parse(text()?)),
            "x-forwarded-for" => {
                self.forwarded_for = self.forwarded_for.or_else(|| addresses::first_forwarded_for(text()?));
            }
            "forwarded" => self.forwarded = self.forwarded.or_else(|| addresses::first_forwarded(text()?)),
            "x-forwarded-client-cert" => self.identity = text().and_then(caller_uri),
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
