//! The trace backend's API: Jaeger's query API or Zipkin's v2 API, whichever answers.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::HeaderMap;
use reqwest::Url;
use serde_json::Value;

use crate::check::backend::access::{BackendRefusal, Http};
use crate::net::hosts::redacted_url;
use crate::net::trust::Trust;
use crate::report::{CheckId, Finding, Hint};
use crate::text::{quoted, shorten};
use crate::traces::ids::parse_trace_id;
use crate::traces::{REQUEST_ID_TAGS, Span, Trace, TraceId, decode_traces, jaeger};

/// Spans of one trace that are read at most.
const MAX_SPANS: usize = 100_000;
/// However soon a trace has to arrive, the backend may take this long to answer.
const SHORTEST_WAIT: Duration = Duration::from_secs(5);

/// Which API answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    Zipkin,
    Jaeger,
}

impl Api {
    fn name(self) -> &'static str {
        match self {
            Self::Zipkin => "Zipkin v2 API",
            Self::Jaeger => "Jaeger query API",
        }
    }

    fn services_path(self) -> &'static str {
        match self {
            Self::Zipkin => "/api/v2/services",
            Self::Jaeger => "/api/services",
        }
    }

    /// The spans of an answer.
    pub(super) fn decode(self, body: &[u8]) -> Result<Vec<Span>, BackendRefusal> {
        let spans = match self {
            Self::Zipkin => decode_traces(body, MAX_SPANS).map_err(|error| error.to_string()),
            Self::Jaeger => jaeger::decode(body),
        };
        spans.map_err(BackendRefusal::Unreadable)
    }

    /// Whether this is the API's answer to the question for its services.
    fn answers_with(self, body: &[u8]) -> bool {
        serde_json::from_slice(body).is_ok_and(|json: Value| match self {
            Self::Zipkin => json.is_array(),
            Self::Jaeger => json.get("data").is_some() || json.get("errors").is_some(),
        })
    }
}

/// A backend that answered.
pub(crate) struct Backend {
    http: Http,
    pub(super) base: String,
    pub(super) api: Api,
}

/// Finds out what answers at `url`, within about `wait`.
///
/// # Errors
///
/// The finding that says why nothing does.
pub(crate) async fn open(
    url: &Url,
    trust: &Trust,
    headers: HeaderMap,
    wait: Duration,
) -> Result<(Backend, Finding), Box<Finding>> {
    let (shown, wait) = (redacted_url(url.as_str()), wait.max(SHORTEST_WAIT));
    let http =
        Http::new(url, trust, headers, wait).map_err(|why| Box::new(no_backend(&shown, &BackendRefusal::Unreachable(why))))?;
    let mut worst = BackendRefusal::Status(404);
    let search = async {
        for base in bases(url) {
            let http = &http;
            let ask = |api: Api| {
                let url = format!("{base}{}", api.services_path());
                async move { (api, http.fetch(&url).await) }
            };
            let mut asked = FuturesUnordered::from_iter([Api::Zipkin, Api::Jaeger].map(ask));
            while let Some((api, answer)) = asked.next().await {
                match answer {
                    Ok(Some(body)) if api.answers_with(&body) => match errors(&body) {
                        None => return Some((api, base)),
                        Some(why) => worst = BackendRefusal::Errors(why),
                    },
                    Ok(Some(body)) if worst.rank() < 3 => worst = BackendRefusal::Foreign(kind(&body)),
                    Ok(_) => {}
                    Err(refusal) if refusal.rank() > worst.rank() || worst == BackendRefusal::Status(404) => worst = refusal,
                    Err(_) => {}
                }
            }
        }
        None
    };
    match tokio::time::timeout(wait, search).await {
        Ok(Some((api, base))) => {
            let finding = Finding::pass(CheckId::TracesBackend, format!("{} at {base}", api.name()));
            return Ok((Backend { http, base, api }, finding));
        }
        Ok(None) => {}
        Err(_) if worst.rank() < BackendRefusal::DECISIVE => worst = BackendRefusal::TimedOut,
        Err(_) => {}
    }
    let finding = match other_product(&http, url).await {
        Some((text, cause)) => Finding::fail(CheckId::TracesBackend, format!("{text} at {shown}"), Hint::new(cause)),
        None => no_backend(&shown, &worst),
    };
    Err(Box::new(finding))
}

fn no_backend(shown: &str, refusal: &BackendRefusal) -> Finding {
    let hint = Hint::new(refusal.cause());
    let (text, hint) = match refusal {
        BackendRefusal::Status(404) => (format!("No trace backend at {shown}: no API answers"), hint),
        BackendRefusal::Unreachable(why) | BackendRefusal::Tls(why) => (format!("No trace backend at {shown}: {why}"), hint),
        BackendRefusal::Redirect(..) | BackendRefusal::TimedOut | BackendRefusal::Foreign(_) => {
            (format!("No trace backend at {shown}: it {refusal}"), hint)
        }
        _ => return Finding::fail(CheckId::TracesBackend, format!("The trace backend at {shown} {refusal}"), hint),
    };
    let hint = hint
        .run("kubectl port-forward -n istio-system svc/tracing 16686:80  # then --traces http://localhost:16686")
        .run(format!("curl -s {}/api/services", quoted(shown.trim_end_matches('/'))))
        .run(format!("curl -s {}/api/v2/services", quoted(shown.trim_end_matches('/'))));
    Finding::fail(CheckId::TracesBackend, text, hint)
}

/// What an answer is that no API of a backend gives.
fn kind(body: &[u8]) -> &'static str {
    match body.trim_ascii() {
        [] => "nothing",
        [b'<', ..] => "a page (HTML)",
        body if serde_json::from_slice::<Value>(body).is_ok() => "JSON of another kind",
        _ => "something else than JSON",
    }
}

/// Products that people take for a backend, and which URL is wanted instead.
async fn other_product(http: &Http, url: &Url) -> Option<(&'static str, &'static str)> {
    const LIMIT: Duration = Duration::from_secs(2);
    let search = async {
        for base in bases(url) {
            let (health, echo) = (format!("{base}/api/health"), format!("{base}/api/echo"));
            let (health, echo) = tokio::join!(http.fetch(&health), http.fetch(&echo));
            let health = health.ok().flatten().and_then(|body| serde_json::from_slice::<Value>(&body).ok());
            if health.is_some_and(|json| json.get("database").is_some() && json.get("version").is_some()) {
                return Some((
                    "This is Grafana, which shows traces and stores none,",
                    "The URL of its data source is wanted: Jaeger's query API (http://HOST:16686) or Zipkin's (http://HOST:9411). Grafana passes it on at GRAFANA/api/datasources/proxy/uid/UID, with --traces-header 'Authorization: Bearer TOKEN'",
                ));
            }
            if echo.ok().flatten().is_some_and(|body| body.trim_ascii() == b"echo") {
                return Some((
                    "This is Tempo, whose own API is not read,",
                    "The URL of Jaeger's query API in front of Tempo is wanted: tempo-query (http://HOST:16686)",
                ));
            }
        }
        None
    };
    tokio::time::timeout(LIMIT, search).await.ok().flatten()
}

/// Jaeger's errors in an answer that brings no data.
fn errors(body: &[u8]) -> Option<String> {
    const SHOWN: usize = 200;
    let json: Value = serde_json::from_slice(body).ok()?;
    let is_empty = |data: &Value| data.as_array().is_none_or(Vec::is_empty);
    let first = json.get("errors")?.as_array()?.first().filter(|_| json.get("data").is_none_or(is_empty))?;
    if first["code"] == 404 {
        return None;
    }
    let message = first["msg"].as_str().map_or_else(|| first.to_string(), str::to_owned);
    Some(shorten(&message, SHOWN))
}

/// Like [`open`], with the public roots.
///
/// # Errors
///
/// Why nothing answers, on one line.
pub(crate) async fn open_traces(url: &Url, headers: HeaderMap, wait: Duration) -> Result<Backend, String> {
    let trust = Trust::new(None, false)?;
    let opened = open(url, &trust, headers, wait).await;
    let (backend, _) = opened.map_err(|finding| match finding.cause {
        Some(cause) => format!("{}. {cause}", finding.text),
        None => finding.text,
    })?;
    Ok(backend)
}

/// Where an API may be, from what people paste: the page's URL, or one that it shows, below a base path or not.
fn bases(url: &Url) -> Vec<String> {
    const MAX: usize = 6;
    let origin = url.origin().ascii_serialization();
    let path = url.path().trim_end_matches('/');
    let above = std::iter::successors(Some(path), |path| path.rsplit_once('/').map(|(above, _)| above));
    let mut bases: Vec<String> = above.take(MAX).map(|path| format!("{origin}{path}")).collect();
    bases.extend(["", "/jaeger", "/zipkin"].map(|path| format!("{origin}{path}")));
    let mut known: Vec<String> = Vec::new();
    bases.retain(|base| {
        let new = !known.contains(base);
        known.push(base.clone());
        new
    });
    bases
}

impl Backend {
    /// The tree of a trace; `None` while no span of it has arrived.
    pub(crate) async fn trace(&self, id: TraceId) -> Result<Option<Trace>, BackendRefusal> {
        let path = match self.api {
            Api::Zipkin => "/api/v2/trace/",
            Api::Jaeger => "/api/traces/",
        };
        let Some(body) = self.fetch(&format!("{}{path}{id}", self.base)).await? else { return Ok(None) };
        Ok(Trace::of_reports(self.api.decode(&body)?))
    }

    /// The body at a URL of the API; `None` where there is nothing.
    pub(super) async fn fetch(&self, url: &str) -> Result<Option<Bytes>, BackendRefusal> {
        let body = self.http.fetch(url).await?;
        match body.as_deref().filter(|_| self.api == Api::Jaeger).and_then(errors) {
            Some(why) => Err(BackendRefusal::Errors(why)),
            None => Ok(body),
        }
    }

    /// The traces in which a span of the last hour has this request id.
    pub(crate) async fn traces_of(&self, request_id: &str) -> Result<Vec<TraceId>, BackendRefusal> {
        let mut ids = Vec::new();
        for query in self.queries(request_id).await? {
            let answer = self.fetch(query.as_str()).await?.map(|body| serde_json::from_slice::<Value>(&body));
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

    async fn queries(&self, request_id: &str) -> Result<Vec<Url>, BackendRefusal> {
        let url = |path: &str, pairs: &[(&str, &str)]| {
            let url = Url::parse_with_params(&format!("{}{path}", self.base), pairs);
            url.map_err(|error| BackendRefusal::Unreachable(error.to_string()))
        };
        match self.api {
            Api::Zipkin => {
                let query = |tag| format!("{tag}={request_id}");
                let tags = REQUEST_ID_TAGS.map(query);
                tags.iter()
                    .map(|tag| url("/api/v2/traces", &[("annotationQuery", tag), ("lookback", "3600000"), ("limit", "20")]))
                    .collect()
            }
            // Jaeger answers only for one service at a time.
            Api::Jaeger => {
                let services = self.services().await?;
                let tags = |service| REQUEST_ID_TAGS.map(|tag| (service, serde_json::json!({tag: request_id}).to_string()));
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

    pub(super) async fn services(&self) -> Result<Vec<String>, BackendRefusal> {
        let body = self.fetch(&format!("{}{}", self.base, self.api.services_path())).await?.unwrap_or_default();
        let services: Value = serde_json::from_slice(&body).map_err(|error| BackendRefusal::Unreadable(error.to_string()))?;
        Ok(list(&services["data"]).iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// The finding that it answers, and not with traces.
    pub(crate) fn refuses(&self, refusal: &BackendRefusal) -> Finding {
        let text = format!("The {} {refusal}", self.name());
        Finding::fail(CheckId::TracesBackend, text, Hint::new(refusal.cause()))
    }

    /// The API and where it is.
    pub(crate) fn name(&self) -> String {
        format!("{} at {}", self.api.name(), self.base)
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
