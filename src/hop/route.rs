//! The paths that a hop knows, as the templates that metrics and spans show.

use crate::values::service_number;

/// A known path. `routes.rs` has the endpoint of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Root,
    Hello,
    HelloWho,
    Service,
    HelloService,
    Headers,
    Healthz,
    Readyz,
    Metrics,
    /// Everything else: 404.
    Unmatched,
}

impl Route {
    /// Tells which path this is. Never fails: what is not known is [`Route::Unmatched`].
    pub(crate) fn of(path: &str) -> Self {
        match path {
            "/" => Self::Root,
            "/hello" => Self::Hello,
            "/headers" => Self::Headers,
            "/healthz" => Self::Healthz,
            "/readyz" => Self::Readyz,
            "/metrics" => Self::Metrics,
            _ => match path.strip_prefix("/hello/") {
                Some(who) if is_service(who) => Self::HelloService,
                Some(who) if !who.is_empty() && !who.contains('/') => Self::HelloWho,
                None if is_service(&path[1.min(path.len())..]) => Self::Service,
                _ => Self::Unmatched,
            },
        }
    }

    /// The template, as a label and an attribute; empty when nothing matched.
    pub(crate) fn template(self) -> &'static str {
        match self {
            Self::Root => "/",
            Self::Hello => "/hello",
            Self::HelloWho => "/hello/{who}",
            Self::Service => "/service{n}",
            Self::HelloService => "/hello/service{n}",
            Self::Headers => "/headers",
            Self::Healthz => "/healthz",
            Self::Readyz => "/readyz",
            Self::Metrics => "/metrics",
            Self::Unmatched => "",
        }
    }

    /// Endpoints of the chain: limited, and subject to latency and faults.
    pub(crate) fn is_work(self) -> bool {
        matches!(self, Self::Root | Self::Hello | Self::HelloWho | Self::Service | Self::HelloService)
    }

    /// The two paths that call the next hops.
    pub(crate) fn is_chain(self) -> bool {
        matches!(self, Self::Service | Self::HelloService)
    }

    /// Probes and scrapes: never limited and never traced.
    pub(crate) fn is_ops(self) -> bool {
        matches!(self, Self::Healthz | Self::Readyz | Self::Metrics)
    }
}

/// `service<N>`, N from 0 to 9999 without leading zeros.
fn is_service(segment: &str) -> bool {
    segment.strip_prefix("service").and_then(service_number).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_service_is_0_to_9999_without_leading_zeros() {
        for path in ["/service0", "/service1", "/service9999"] {
            assert_eq!(Route::of(path), Route::Service, "{path}");
            assert_eq!(Route::of(&format!("/hello{path}")), Route::HelloService, "{path}");
        }
        for path in
            ["/service", "/service00", "/service01", "/service10000", "/service+1", "/service-1", "/serviceX", "/service1/"]
        {
            assert_eq!(Route::of(path), Route::Unmatched, "{path}");
        }
        assert_eq!(Route::of("/hello/service01"), Route::HelloWho);
        assert_eq!(Route::of("/hello/golang"), Route::HelloWho);
        for path in ["", "*", "/hello/", "/hello/a/b", "/Hello", "/metricsx"] {
            assert_eq!(Route::of(path), Route::Unmatched, "{path}");
        }
    }
}
