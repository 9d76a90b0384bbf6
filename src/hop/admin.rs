//! `--admin-addr`: the runtime API of a hop, on a port of its own. It shows the configuration and changes faults, readiness and
//! the level of the log, until the hop ends.
//!
//! On loopback nobody else can reach it, but a page in a browser there can: so `Host` has to be a loopback name and `Origin`
//! has to be absent. Elsewhere, or where one is set, the token is needed. Where it listens decides, not who calls: behind a
//! sidecar every peer is 127.0.0.1.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;

use crate::hop::config::{AdminOptions, HopConfig};
use crate::hop::error::PROBLEM_JSON;
use crate::hop::fault::{FAULTS, FaultsForm};
use crate::hop::state::Node;
use crate::hop::target;
use crate::net::bearer::bearer_token;
use crate::net::hosts::{host_and_port, is_loopback};
use crate::telemetry::export::{Exporter, LogOptions, MetricOptions};
use crate::telemetry::log_level::LogLevel;
use crate::trace_context::BREAKS;

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) node: Arc<Node>,
    pub(crate) options: AdminOptions,
    pub(crate) log_level: LogLevel,
    /// From [`effective`].
    pub(crate) config: Value,
}

/// The API.
pub(crate) fn router(admin: Arc<Admin>) -> Router {
    const MAX_BODY: usize = 32 << 10;
    Router::new()
        .route("/config", get(config))
        .route("/faults", get(faults).put(set_faults).delete(reset_faults))
        .route("/ready", put(set_ready))
        .route("/log-level", put(set_log_level))
        .method_not_allowed_fallback(|| async { problem(StatusCode::METHOD_NOT_ALLOWED, "Allow names the methods of this path") })
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "the paths are /config, /faults, /ready and /log-level") })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(admin.clone(), guard))
        .with_state(admin)
}

/// The configuration that is in force, without secrets.
pub(crate) fn effective(config: &HopConfig) -> Value {
    let export = &config.export;
    let seconds = |time: std::time::Duration| humantime::format_duration(time).to_string();
    let names = |names: &[http::HeaderName]| names.iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>();
    json!({
        "name": config.identity.name, "version": config.identity.version, "lane": config.identity.lane,
        "hostname": config.identity.hostname,
        "addr": config.listen.to_string(),
        "upstreams": config.upstreams.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "fan_out": config.fan_out.to_string(), "upstream_timeout": seconds(config.upstream_timeout), "retries": config.retries,
        "request_faults": config.request_faults.name(), "seed": config.seed, "ready_after": seconds(config.ready_after),
        "forward_headers": names(&config.forward_headers), "drop_headers": names(&config.drop_headers),
        "request_size": config.request_size.map(|size| size.to_string()),
        "response_size": config.response_size.map(|size| size.to_string()),
        "forward_body": config.forward_body, "grpc_reflection": config.grpc_reflection,
        "max_hops": config.max_hops, "max_calls": config.max_calls, "max_concurrency": config.max_concurrency,
        "max_connections": config.connections.max_connections, "held_bytes": config.held_bytes,
        "header_timeout": seconds(config.connections.header_timeout), "idle_timeout": seconds(config.connections.idle_timeout),
        "drain_delay": seconds(config.drain.delay), "drain_timeout": seconds(config.drain.timeout),
        "flush_timeout": seconds(config.drain.flush_timeout),
        "tls": config.tls.is_some(),
        "traces": export.spans.iter().map(Exporter::to_string).collect::<Vec<_>>(),
        "metrics": export.metrics.iter().map(|MetricOptions { otlp, .. }| otlp.to_string()).collect::<Vec<_>>(),
        "logs": export.logs.iter().map(|LogOptions { otlp, .. }| otlp.to_string()).collect::<Vec<_>>(),
        "propagators": config.propagators.to_string(), "sampler": config.sampler.to_string(),
    })
}

fn problem(status: StatusCode, detail: &str) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    let body = json!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail});
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON))], body.to_string()).into_response()
}

async fn guard(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let may_enter = admin.may_enter(&request);
    let mut answer = match may_enter {
        Ok(()) => next.run(request).await,
        Err((status, why)) => problem(status, why),
    };
    let is_problem = answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM_JSON);
    if answer.status().is_client_error() && !is_problem {
        // What reads the body answers in its own form.
        answer = problem(answer.status(), "the body has more than 32 KiB, or did not arrive whole");
    }
    if answer.status() == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

impl Admin {
    /// # Errors
    ///
    /// Why the request is refused, and the status of that.
    fn may_enter(&self, request: &Request) -> Result<(), (StatusCode, &'static str)> {
        let headers = request.headers();
        let hosts = headers.get_all(header::HOST);
        let host = hosts.iter().next();
        if !target::is_valid(request.uri(), request.version(), host, hosts.iter().count()) {
            return Err((StatusCode::BAD_REQUEST, "a request names one host that it is for"));
        }
        if headers.contains_key(header::ORIGIN) {
            return Err((StatusCode::FORBIDDEN, "this API is not for pages: a request with Origin is refused"));
        }
        if let Some(token) = &self.options.token {
            let is_right = bearer_token(headers).is_some_and(|given| token.as_bytes().ct_eq(given).into());
            let needed = "Authorization: Bearer with the value of ADMIN_TOKEN is needed";
            return if is_right { Ok(()) } else { Err((StatusCode::UNAUTHORIZED, needed)) };
        }
        // The authority of a target wins over `Host` (RFC 9112, 3.2.2); over HTTP/2 it is in its place.
        let authority = request.uri().authority().map(|authority| authority.as_str());
        match authority.or_else(|| host?.to_str().ok()) {
            Some(host) if is_loopback(host_and_port(host, "http").0) => Ok(()),
            _ => Err((StatusCode::MISDIRECTED_REQUEST, "the Host of a request has to be localhost or a loopback address")),
        }
    }

    fn faults_now(&self) -> Value {
        let config = self.node.faults.config();
        json!({
            "latency": config.latency.to_string(),
            "faults": FaultsForm::from(&config).faults,
            "breaks": FaultsForm::from(&config).breaks,
            "accepted": {"faults": FAULTS, "breaks": BREAKS},
        })
    }

    fn log_faults(&self, ttl: Option<&str>) {
        let form = FaultsForm::from(&self.node.faults.config());
        let (hop, faults, breaks) = (&self.node.identity.name, form.faults.join(","), form.breaks.join(","));
        tracing::warn!(hop, faults, breaks, ttl = ttl.unwrap_or("none"), "the faults of this hop were changed (admin API)");
    }
}

async fn config(State(admin): State<Arc<Admin>>) -> Json<Value> {
    let mut config = admin.config.clone();
    let form = FaultsForm::from(&admin.node.faults.config());
    config["latency"] = admin.node.faults.config().latency.to_string().into();
    config["faults"] = form.faults.into();
    config["breaks"] = form.breaks.into();
    config["ready"] = admin.node.phase.readiness().is_ok().into();
    Json(config)
}

async fn faults(State(admin): State<Arc<Admin>>) -> Json<Value> {
    Json(admin.faults_now())
}

async fn set_faults(State(admin): State<Arc<Admin>>, body: Bytes) -> Result<Json<Value>, Response> {
    let form = r#"accepted is {"faults": ["abort=503@10%"], "breaks": [], "ttl": "60s"}"#;
    let wrong = |why: String| problem(StatusCode::BAD_REQUEST, &why);
    if !body.trim_ascii_start().starts_with(b"{") {
        // serde reads the fields from a list, too.
        return Err(wrong(format!("the body is no object; {form}")));
    }
    let order: FaultsForm = serde_json::from_slice(&body).map_err(|error| wrong(format!("{error}; {form}")))?;
    let carries = |name: &http::HeaderName| admin.node.propagator.carries(name);
    let (config, _) = order.read(&admin.node.faults.config()).map_err(wrong)?;
    if let Some(name) = config.breaks.iter().filter_map(|broken| broken.kind.header()).find(|name| !carries(name)) {
        return Err(wrong(format!("the header '{name}' is not one that this hop carries")));
    }
    let ended = admin.clone();
    admin.node.faults.order(&order, move || ended.log_faults(None)).map_err(wrong)?;
    admin.log_faults(order.ttl.as_deref());
    Ok(Json(admin.faults_now()))
}

async fn reset_faults(State(admin): State<Arc<Admin>>) -> Json<Value> {
    admin.node.faults.reset();
    admin.log_faults(None);
    Json(admin.faults_now())
}

async fn set_ready(State(admin): State<Arc<Admin>>, body: Bytes) -> Result<Json<Value>, Response> {
    let is_ready: bool = serde_json::from_slice(&body)
        .map_err(|_| problem(StatusCode::BAD_REQUEST, "the body is true or false: false is not ready, until true"))?;
    admin.node.phase.order(is_ready);
    tracing::warn!(hop = admin.node.identity.name, ready = is_ready, "the readiness of this hop was changed (admin API)");
    Ok(Json(json!({"ready": admin.node.phase.readiness().is_ok()})))
}

async fn set_log_level(State(admin): State<Arc<Admin>>, body: Bytes) -> Result<Json<Value>, Response> {
    let text = String::from_utf8_lossy(&body);
    let level = text.trim().trim_matches('"');
    let announce = || {
        tracing::warn!(hop = admin.node.identity.name, level, "the level of the log was changed (admin API)");
        tracing::enabled!(tracing::Level::WARN)
    };
    admin.log_level.set(level, &announce).map_err(|why| problem(StatusCode::BAD_REQUEST, &why))?;
    Ok(Json(json!({"level": level})))
}
