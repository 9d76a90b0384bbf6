//! The end of an exchange: metric, span, access line, and the copy for the node's watcher.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::HeaderValue;
use http::uri::PathAndQuery;
use http::{StatusCode, Version};
use tonic::Code;

use crate::hop::exchange::{CUT_OFF, Exchange};
use crate::hop::watch::{AnswerCopy, Seen};
use crate::net::hosts::host_and_port;
use crate::rpc;
use crate::server::Cut;
use crate::telemetry::log_queue::AccessEntry;
use crate::telemetry::metrics::{RequestLabels, RpcLabels, known_method, protocol_version, scheme};
use crate::telemetry::span_queue::{FinishedSpan, SpanKind};
use crate::trace_context::RedactedHeaders;

impl Exchange {
    /// Counts a request that ended.
    fn count(&self, status: u16, code: Option<Code>, error: Option<&'static str>, duration: Duration) {
        let (method, scheme) = (known_method(&self.method), scheme(self.is_https));
        let trace = self.context().filter(|context| context.sampling.is_sampled());
        if let Some(code) = code {
            let method = rpc::known_method(self.path());
            let labels = RpcLabels { method, code: rpc::status::name(code), error: error.unwrap_or_default(), scheme };
            return self.node.metrics.rpc_request(&labels, duration, trace);
        }
        let template = self.template();
        let label = if template.is_empty() { "unmatched" } else { template };
        let digits = StatusCode::from_u16(status).unwrap_or_default();
        let labels = RequestLabels {
            route: label,
            status: digits.as_str(),
            method,
            scheme,
            protocol: protocol_version(self.version),
            error: error.unwrap_or(if status >= 500 { digits.as_str() } else { "" }),
        };
        self.node.metrics.request(&labels, duration, trace);
    }

    /// The copy of this request for the node's watcher.
    fn seen(&self, copy: &AnswerCopy, status: u16, duration: Duration) -> Seen {
        let mut received = Vec::new();
        RedactedHeaders::received(&self.carried).push_json(&mut received);
        Seen {
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

    fn log(&self, status: u16, code: Option<Code>, cut: Option<Cut>, duration: Duration) {
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
                bytes: self.sent_bytes.load(Ordering::Relaxed),
                request_id: self.request_id.as_bytes(),
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
        let cut = match self.status.load(Ordering::Relaxed) {
            0 => Some(self.connection.cut()),
            _ => self.cut.get().copied(),
        };
        let status = if cut.is_some() { CUT_OFF } else { self.status.load(Ordering::Relaxed) };
        let (method, scheme) = (known_method(&self.method), scheme(self.is_https));
        node.metrics.active_requests(method, scheme).dec();
        let code = self.is_grpc.then(|| match cut {
            Some(_) => Code::Cancelled,
            None => Code::from_i32(self.grpc_code.load(Ordering::Relaxed).into()),
        });
        if let Some(watch) = node.watch.get() {
            let status = code.map_or(status, |code| rpc::status::http_status(code).as_u16());
            if self.watched.load(Ordering::Relaxed) {
                watch.ended(status, duration);
            }
            if let Some(copy) = self.copy.as_ref().filter(|_| !self.untraced.load(Ordering::Relaxed)) {
                watch.keep(self.seen(copy, status, duration));
            }
        }
        let template = self.template();
        let sampled = self.context().filter(|context| context.sampling.is_sampled());
        let error =
            cut.map(Cut::as_str).or_else(|| code.filter(|code| rpc::status::is_server_error(*code)).map(rpc::status::name));
        self.count(status, code, error, duration);
        if let Some((tracer, context)) = node.tracer.as_ref().zip(sampled) {
            tracer.record(&FinishedSpan {
                kind: SpanKind::Server,
                context,
                start: self.started_at,
                duration,
                method: if self.is_grpc { rpc::known_method(self.path()) } else { method },
                rpc_code: code,
                original_method: if method == self.method.as_str() { "" } else { self.method.as_str() },
                scheme,
                base_url: "",
                route: template,
                status: if cut.is_some() { 0 } else { status },
                error,
                path: self.path(),
                query: self.path.as_ref().and_then(PathAndQuery::query),
                client: Some(self.client),
                server: text(self.host.as_ref()).map(|host| host_and_port(host, scheme)),
                peer: Some(self.connection.peer),
                protocol: protocol_version(self.version),
                user_agent: text(self.user_agent.as_ref()).unwrap_or_default(),
                resend_count: 0,
                request_id: text(Some(&self.request_id)).unwrap_or_default(),
                trace_state: node.propagator.trace_state(&self.carried, context),
            });
        }
        self.log(status, code, cut, duration);
    }
}

fn text(value: Option<&HeaderValue>) -> Option<&str> {
    value?.to_str().ok()
}
