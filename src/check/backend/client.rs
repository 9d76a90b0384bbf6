//! The trace backend's API: Jaeger's query API or Zipkin's v2 API, whichever answers.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::Url;
use serde_json::Value;

use crate::check::envoy::suggestions::quoted;
use crate::check::reachability::client::{MAX_BODY, body};
use crate::check::reachability::tls::Trust;
use crate::check::report::{CheckId, Finding, Hint};
use crate::net::hosts::redacted_url;
use crate::traces::ids::parse_trace_id;
use crate::traces::{Span, Trace, TraceId, decode, decode_traces, jaeger};

/// Spans of one trace that are read at most.
const MAX_SPANS: usize = 100_000;
/// Traces that one answer has at most, and the shortest time that is asked for.
const WINDOW_TRACES: usize = 200;
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);
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

/// Like [`open`], with the public roots. Errors: why nothing answers, on one line.
pub(crate) async fn open_traces(url: &Url) -> Result<Backend, String> {
    let trust = Trust::new(None, false)?;
    let (backend, _) = open(url, &trust).await.map_err(|finding| finding.text)?;
    Ok(backend)
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
                let services = self.services().await?;
                let tags = |service| REQUEST_TAGS.map(|tag| (service, serde_json::json!({tag: request_id}).to_string()));
                services
                    .iter()
                    .flat_map(tags)
                    .map(|(service, tags)| {
                        let pairs = [("service", service.as_str()), ("tags", &tags), ("lookback", "1h"), ("limit", "20")];
                        url("/api/traces", &pairs)
                    })
                    .collect()
            }
        }
    }

    /// The spans of the last `limit` traces within `lookback`, of one service or of all. Reads a time window at a time, the
    /// youngest first; a window with more traces than one answer has is halved.
    ///
    /// # Errors
    ///
    /// The backend's failure, in words.
    pub(crate) async fn recent(&self, service: Option<&str>, lookback: Duration, limit: usize) -> Result<Vec<Span>, String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let services = match (self.api, service) {
            (_, Some(name)) => vec![Some(name.to_owned())],
            (Api::Zipkin, None) => vec![None],
            // Jaeger answers only for one service at a time.
            (Api::Jaeger, None) => self.services().await?.into_iter().map(Some).collect(),
        };
        let (mut spans, mut traces) = (Vec::new(), HashSet::new());
        for service in services {
            let mut windows = vec![(now.saturating_sub(lookback), now)];
            let mut of_service = 0;
            while let Some((from, to)) = windows.pop().filter(|_| of_service < limit) {
                let found = self.window(service.as_deref(), from, to).await?;
                let ids: HashSet<TraceId> = found.iter().map(|span| span.trace_id).collect();
                if ids.len() >= WINDOW_TRACES && to - from > SHORTEST_WINDOW {
                    let middle = from + (to - from) / 2;
                    windows.extend([(from, middle), (middle, to)]);
                    continue;
                }
                of_service += ids.len();
                spans.extend(found.into_iter().filter(|span| !traces.contains(&span.trace_id)));
                traces.extend(ids);
            }
        }
        Ok(spans)
    }

    async fn window(&self, service: Option<&str>, from: Duration, to: Duration) -> Result<Vec<Span>, String> {
        let limit = WINDOW_TRACES.to_string();
        let (path, mut pairs) = match self.api {
            Api::Zipkin => {
                let pairs = [("endTs", to.as_millis().to_string()), ("lookback", (to - from).as_millis().max(1).to_string())];
                ("/api/v2/traces", Vec::from(pairs))
            }
            Api::Jaeger => {
                let pairs = [("start", from.as_micros().to_string()), ("end", to.as_micros().to_string())];
                ("/api/traces", Vec::from(pairs))
            }
        };
        pairs.push(("limit", limit));
        if let Some(service) = service {
            let key = if self.api == Api::Zipkin { "serviceName" } else { "service" };
            pairs.push((key, service.to_owned()));
        }
        let url = Url::parse_with_params(&format!("{}{path}", self.base), &pairs).map_err(|error| error.to_string())?;
        let body = fetch(&self.http, url.as_str()).await?.ok_or_else(|| format!("{path} did not answer with 200"))?;
        match self.api {
            Api::Zipkin => decode_traces(&body, MAX_SPANS).map_err(|error| error.to_string()),
            Api::Jaeger => jaeger::decode(&body),
        }
    }

    async fn services(&self) -> Result<Vec<String>, String> {
        let body = fetch(&self.http, &format!("{}/api/services", self.base)).await?.unwrap_or_default();
        let services: Value = serde_json::from_slice(&body).unwrap_or_default();
        Ok(list(&services["data"]).iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// The API and where it is.
    pub(crate) fn name(&self) -> String {
        let api = match self.api {
            Api::Zipkin => "Zipkin v2 API",
            Api::Jaeger => "Jaeger query API",
        };
        format!("{api} at {}", self.base)
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
