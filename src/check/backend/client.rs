//! The trace backend's API: Jaeger's query API or Zipkin's v2 API, whichever answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Url;
use serde_json::Value;

use crate::check::backend::jaeger;
use crate::check::envoy::suggestions::quoted;
use crate::check::reachability::client::{MAX_BODY, body};
use crate::check::reachability::tls::Trust;
use crate::check::report::{CheckId, Finding, Hint};
use crate::net::hosts::redacted_url;
use crate::traces::ids::parse_trace_id;
use crate::traces::{Span, Trace, TraceId, decode};

/// Spans of one trace that are read at most.
const MAX_SPANS: usize = 100_000;
/// The tags under which apps and Envoy report the request id.
const REQUEST_TAGS: [&str; 2] = ["request.id", "guid:x-request-id"];

/// Which API answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    Zipkin,
    Jaeger,
}

impl Api {
    /// Whether this is the API's answer to the question for its services.
    fn answers_with(self, body: &[u8]) -> bool {
        serde_json::from_slice(body).is_ok_and(|json: Value| match self {
            Self::Zipkin => json.is_array(),
            Self::Jaeger => json.get("data").is_some(),
        })
    }
}

/// A backend that answered.
pub(crate) struct Backend {
    http: reqwest::Client,
    base: String,
    api: Api,
}

/// Finds out what answers at `url`. Errors: the finding that says why nothing does.
pub(crate) async fn open(url: &Url, trust: &Trust) -> Result<(Backend, Finding), Box<Finding>> {
    const LIMIT: Duration = Duration::from_secs(5);
    let shown = redacted_url(url.as_str());
    let unreachable = |why: String| {
        let hint = Hint::new("Nothing listens there, or it is no Jaeger query API and no Zipkin v2 API")
            .run("kubectl port-forward -n istio-system svc/tracing 16686:80  # then --traces http://localhost:16686")
            .run(format!("curl -s {}/api/services", quoted(shown.trim_end_matches('/'))))
            .run(format!("curl -s {}/api/v2/services", quoted(shown.trim_end_matches('/'))));
        Box::new(Finding::fail(CheckId::TracesBackend, format!("No trace backend at {shown}: {why}"), hint))
    };
    let tls = trust.config().map_err(&unreachable)?.0;
    let http = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(LIMIT)
        .tls_backend_preconfigured(tls)
        .build()
        .map_err(|error| unreachable(error.to_string()))?;
    let mut why = "no API answers".to_owned();
    for base in bases(url) {
        for (api, path) in [(Api::Zipkin, "/api/v2/services"), (Api::Jaeger, "/api/services")] {
            match fetch(&http, &format!("{base}{path}")).await {
                Ok(Some(body)) if api.answers_with(&body) => {
                    let name = match api {
                        Api::Zipkin => "Zipkin v2 API",
                        Api::Jaeger => "Jaeger query API",
                    };
                    let finding = Finding::pass(CheckId::TracesBackend, format!("{name} at {base}"));
                    return Ok((Backend { http, base, api }, finding));
                }
                Ok(_) => {}
                Err(error) => why = error,
            }
        }
    }
    Err(unreachable(why))
}

/// Where an API may be, from what people paste: the page's URL, with or without its path.
fn bases(url: &Url) -> Vec<String> {
    let origin = url.origin().ascii_serialization();
    let path = url.path().trim_end_matches('/');
    let mut bases = vec![format!("{origin}{path}")];
    if let Some((above, _)) = path.rsplit_once('/') {
        bases.push(format!("{origin}{above}"));
    }
    bases.push(origin.clone());
    bases.push(format!("{origin}/jaeger"));
    let mut known: Vec<String> = Vec::new();
    bases.retain(|base| {
        let new = !known.contains(base);
        known.push(base.clone());
        new
    });
    bases
}

/// The body at a URL; `None` with another status than success. A redirect is not followed: it would lead to a login page, or
/// to a host that nobody named.
async fn fetch(http: &reqwest::Client, url: &str) -> Result<Option<Bytes>, String> {
    let request = http.get(url).header(http::header::ACCEPT, "application/json");
    let mut answer = request.send().await.map_err(|error| cause(&error))?;
    if let Some(to) = answer.headers().get(http::header::LOCATION).filter(|_| answer.status().is_redirection()) {
        let to = redacted_url(&String::from_utf8_lossy(to.as_bytes()));
        return Err(format!("it redirects ({}) to {}, which is not followed", answer.status().as_u16(), to.escape_debug()));
    }
    if !answer.status().is_success() {
        return Ok(None);
    }
    let body = body(&mut answer).await.map_err(|error| cause(&error))?;
    body.map(Some).ok_or_else(|| format!("its answer is longer than {} MiB", MAX_BODY >> 20))
}

fn cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

impl Backend {
    /// The tree of a trace; `None` while no span of it has arrived.
    pub(crate) async fn trace(&self, id: TraceId) -> Result<Option<Trace>, String> {
        let path = match self.api {
            Api::Zipkin => "/api/v2/trace/",
            Api::Jaeger => "/api/traces/",
        };
        let Some(body) = fetch(&self.http, &format!("{}{path}{id}", self.base)).await? else { return Ok(None) };
        let spans = match self.api {
            Api::Zipkin => decode(&body, MAX_SPANS).map_err(|error| error.to_string()),
            Api::Jaeger => jaeger::decode(&body),
        };
        let spans: Vec<Span> = spans.map_err(|error| format!("its answer is not what the API says: {error}"))?;
        Ok(Trace::new(spans.into_iter().map(Arc::new).collect()))
    }

    /// The traces in which a span of the last hour has this request id.
    pub(crate) async fn traces_of(&self, request_id: &str) -> Result<Vec<TraceId>, String> {
        let mut ids = Vec::new();
        for query in self.queries(request_id).await? {
            let answer = fetch(&self.http, query.as_str()).await?.map(|body| serde_json::from_slice::<Value>(&body));
            let Some(Ok(answer)) = answer else { continue };
            let found: Vec<&Value> = match self.api {
                Api::Zipkin => list(&answer).iter().filter_map(|trace| trace.get(0)?.get("traceId")).collect(),
                Api::Jaeger => list(&answer["data"]).iter().filter_map(|trace| trace.get("traceID")).collect(),
            };
            for id in found.into_iter().filter_map(|id| parse_trace_id(id.as_str()?).ok()) {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        Ok(ids)
    }

    async fn queries(&self, request_id: &str) -> Result<Vec<Url>, String> {
        let url = |path: &str, pairs: &[(&str, &str)]| {
            Url::parse_with_params(&format!("{}{path}", self.base), pairs).map_err(|error| error.to_string())
        };
        match self.api {
            Api::Zipkin => {
                let query = |tag| format!("{tag}={request_id}");
                let tags = REQUEST_TAGS.map(query);
                tags.iter()
                    .map(|tag| url("/api/v2/traces", &[("annotationQuery", tag), ("lookback", "3600000"), ("limit", "20")]))
                    .collect()
            }
            // Jaeger answers only for one service at a time.
            Api::Jaeger => {
                let body = fetch(&self.http, &format!("{}/api/services", self.base)).await?.unwrap_or_default();
                let services: Value = serde_json::from_slice(&body).unwrap_or_default();
                let services = list(&services["data"]).iter().filter_map(Value::as_str);
                services
                    .flat_map(|service| REQUEST_TAGS.map(|tag| (service, serde_json::json!({tag: request_id}).to_string())))
                    .map(|(service, tags)| {
                        let pairs = [("service", service), ("tags", &tags), ("lookback", "1h"), ("limit", "20")];
                        url("/api/traces", &pairs)
                    })
                    .collect()
            }
        }
    }

    /// Where a person finds the trace.
    pub(crate) fn page(&self, id: TraceId) -> String {
        match self.api {
            Api::Zipkin => format!("{}/api/v2/trace/{id}", self.base),
            Api::Jaeger => format!("{}/trace/{id}", self.base),
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}
