//! The end of an exchange: metric, span, access line, and the copy for the node's watcher.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::HeaderValue;
use http::uri::PathAndQuery;
use http::{StatusCode, Version};
use tonic::Code;

use crate::hop::exchange::{CUT_OFF, Exchange};
use crate::hop::watch::{AnswerCopy, WatchedRequest};
use crate::net::hosts::host_and_port;
use crate::rpc;
use crate::server::Cut;
use crate::telemetry::log_queue::AccessEntry;
use crate::telemetry::metrics::{RequestLabels, RpcLabels, UNMATCHED, known_method, protocol_version, scheme};
use crate::telemetry::span_queue::{FinishedSpan, SpanKind};
use crate::trace_context::{RedactedHeaders, redacted_value};

impl Exchange {
    /// Counts a request that ended; `status` is 0 without an answer.
    fn count(&self, status: u16, code: Option<Code>, error: Option<&'static str>, duration: Duration) {
        let (method, scheme) = (known_method(&self.method), scheme(self.is_https));
        let trace = self.context().filter(|context| context.sampling.is_sampled());
        if let Some(code) = code {
            let method = rpc::known_method(self.path());
            let labels = RpcLabels { method, code: rpc::status::name(code), error: error.unwrap_or_default(), scheme };
            return self.node.metrics.rpc_request(&labels, duration, trace);
        }
        let template = self.template();
        let answered = StatusCode::from_u16(status).ok();
        let digits = answered.as_ref().map_or("", StatusCode::as_str);
        let labels = RequestLabels {
            route: if template.is_empty() { UNMATCHED } else { template },
            status: digits,
            method,
            scheme,
            protocol: protocol_version(self.version),
            error: error.unwrap_or(if status >= 500 { digits } else { "" }),
        };
        self.node.metrics.request(&labels, duration, trace);
    }

    /// The copy of this request for the node's watcher.
    fn seen(&self, copy: &AnswerCopy, status: u16, duration: Duration) -> WatchedRequest {
        let mut received = Vec::new();
        RedactedHeaders::received(&self.carried).push_json(&mut received);
        WatchedRequest {
            method: self.method.as_str().to_owned(),
            path: self.path().to_owned(),
            protocol: self.protocol(),
            status,
            duration,
            trace_id: self.context().map(|context| context.trace_id.to_string()),
            span_id: self.context().map(|context| context.span_id.to_string()),
            received,
            answer: copy.take(),
        }
    }

    fn log(&self, status: u16, answered: u16, code: Option<Code>, cut: Option<Cut>, duration: Duration) {
        let node = &*self.node;
        if let Some(log) = &node.access_log {
            log.write(&AccessEntry {
                started_at: self.started_at,
                duration,
                client: self.client,
                method: self.method.as_str(),
                known_method: known_method(&self.method),
                path: self.path(),
                status,
                answered,
                bytes: self.sent_bytes.load(Ordering::Relaxed),
                request_id: self.shown_request_id().as_bytes(),
                trace: self.context(),
                lane: &node.identity.lane,
                protocol: Some(self.protocol()).filter(|_| self.version == Version::HTTP_2),
                grpc_status: code.map(rpc::status::name),
                cut: cut.map(Cut::as_str),
                upstream_status: Some(self.upstream_status.load(Ordering::Relaxed)).filter(|status| *status != 0),
            });
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let node = &*self.node;
        let duration = self.begun.elapsed();
        let answered = self.status.load(Ordering::Relaxed);
        let cut = match answered {
            0 => Some(self.connection.cut()),
            _ => self.cut.get().copied(),
        };
        let status = if cut.is_some() { CUT_OFF } else { answered };
        let (method, scheme) = (known_method(&self.method), scheme(self.is_https));
        node.metrics.active_requests(method, scheme).dec();
        let code = self.is_grpc.then(|| match cut {
            Some(Cut::DrainTimeout | Cut::Fault) => Code::Unavailable,
            Some(_) => Code::Cancelled,
            None => Code::from_i32(self.grpc_code.load(Ordering::Relaxed).into()),
        });
        if let Some(watch) = node.watch.get() {
            let status = code.map_or(status, |code| rpc::status::http_status(code).as_u16());
            if self.watched.load(Ordering::Relaxed) {
                watch.ended(status, duration);
            }
            if let Some(copy) = self.copy.as_ref().filter(|_| !self.untraced.load(Ordering::Relaxed)) {
                watch.record(self.seen(copy, status, duration));
            }
        }
        let template = self.template();
        let sampled = self.context().filter(|context| context.sampling.is_sampled());
        let error = match code {
            // What the client ends is no failure of the server's (semantic conventions for gRPC).
            Some(code) => rpc::status::is_server_error(code).then(|| cut.map_or(rpc::status::name(code), Cut::as_str)),
            None => cut.map(Cut::as_str),
        };
        self.count(answered, code, error, duration);
        if let Some((tracer, context)) = node.tracer.as_ref().zip(sampled) {
            let (host, user_agent) = (shown(self.host.as_ref()), shown(self.user_agent.as_ref()));
            let known = if self.is_grpc { rpc::known_method(self.path()) } else { method };
            let original = if self.is_grpc { self.path().trim_start_matches('/') } else { self.method.as_str() };
            tracer.record(&FinishedSpan {
                kind: SpanKind::Server,
                context,
                start: self.started_at,
                duration,
                method: known,
                rpc_code: code,
                original_method: if known == original { "" } else { original },
                scheme,
                base_url: "",
                route: template,
                status: answered,
                error,
                path: self.path(),
                query: self.path.as_ref().and_then(PathAndQuery::query),
                client: Some(self.client),
                server: host.as_deref().map(|host| host_and_port(host, scheme)),
                peer: Some(self.connection.peer),
                protocol: protocol_version(self.version),
                user_agent: user_agent.as_deref().unwrap_or_default(),
                resend_count: 0,
                request_id: self.shown_request_id(),
                trace_state: node.propagator.trace_state(&self.carried, context),
            });
        }
        self.log(status, answered, code, cut, duration);
    }
}

fn shown(value: Option<&HeaderValue>) -> Option<Cow<'_, str>> {
    Some(redacted_value(value?.to_str().ok()?.as_bytes()))
}
