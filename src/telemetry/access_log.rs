//! The access log: one line per request, written when it ends, as text or JSON.

use std::sync::Arc;

use crate::telemetry::line_writer::LineWriter;
use crate::telemetry::log_queue::{AccessEntry, LogQueue};
use crate::text::escape::push_escaped;
use crate::text::hex::push_hex;
use crate::text::number::{push_address, push_milliseconds, push_number};
use crate::text::time::push_time;
use crate::trace_context::Context;

/// `--log-format`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Space-separated text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Where access lines go, and in which format.
#[derive(Debug)]
pub(crate) struct AccessLog {
    pub(crate) lines: LineWriter,
    pub(crate) format: LogFormat,
    /// Where the lines go as log records, too.
    pub(crate) records: Option<Arc<LogQueue>>,
}

impl AccessLog {
    pub(crate) fn write(&self, entry: &AccessEntry<'_>) {
        self.lines.line(|out| {
            match self.format {
                LogFormat::Text => text(out, entry),
                LogFormat::Json => json(out, entry),
            }
            if let Some(records) = &self.records {
                records.push_request(entry, out);
            }
        });
    }
}

/// The fields up to the request id, each after what stands before it.
fn push_fields(out: &mut Vec<u8>, entry: &AccessEntry<'_>, before: [&str; 8]) {
    let [time, client, method, path, status, duration, bytes, request_id] = before.map(str::as_bytes);
    out.extend_from_slice(time);
    push_time(out, entry.started_at);
    out.extend_from_slice(client);
    push_address(out, entry.client);
    out.extend_from_slice(method);
    push_escaped(out, entry.method.as_bytes());
    out.extend_from_slice(path);
    push_escaped(out, entry.path.as_bytes());
    out.extend_from_slice(status);
    push_number(out, u64::from(entry.status));
    out.extend_from_slice(duration);
    push_milliseconds(out, entry.duration);
    out.extend_from_slice(bytes);
    push_number(out, entry.bytes);
    out.extend_from_slice(request_id);
    push_escaped(out, entry.request_id);
}

/// The ids, each after what stands before it.
fn push_ids(out: &mut Vec<u8>, trace: &Context, before: [&str; 2]) {
    out.extend_from_slice(before[0].as_bytes());
    push_hex(out, &trace.trace_id.to_bytes());
    out.extend_from_slice(before[1].as_bytes());
    push_hex(out, &trace.span_id.to_bytes());
}

fn text(out: &mut Vec<u8>, entry: &AccessEntry<'_>) {
    push_fields(out, entry, ["", " ", " \"", " ", "\" ", " ", "ms ", "B request="]);
    if let Some(trace) = entry.trace {
        push_ids(out, trace, [" trace=", " span="]);
    }
    out.extend_from_slice(b" lane=");
    push_escaped(out, entry.lane.as_bytes());
    if let Some(status) = entry.upstream_status {
        out.extend_from_slice(b" upstream=");
        push_number(out, u64::from(status));
    }
    for (name, value) in [(" protocol=", entry.protocol), (" grpc=", entry.grpc_status)] {
        if let Some(value) = value {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(value.as_bytes());
        }
    }
    if let Some(cut) = entry.cut {
        out.extend_from_slice(b" error=");
        out.extend_from_slice(cut.as_bytes());
    }
    out.push(b'\n');
}

pub(crate) fn json(out: &mut Vec<u8>, entry: &AccessEntry<'_>) {
    let before = [
        r#"{"time":""#,
        r#"","client":""#,
        r#"","method":""#,
        r#"","path":""#,
        r#"","status":"#,
        r#","duration_ms":"#,
        r#","bytes":"#,
        r#","request_id":""#,
    ];
    push_fields(out, entry, before);
    match entry.trace {
        Some(trace) => {
            push_ids(out, trace, [r#"","trace_id":""#, r#"","span_id":""#]);
            out.extend_from_slice(br#"","lane":""#);
        }
        None => out.extend_from_slice(br#"","trace_id":null,"span_id":null,"lane":""#),
    }
    push_escaped(out, entry.lane.as_bytes());
    out.extend_from_slice(br#"","upstream_status":"#);
    match entry.upstream_status {
        Some(status) => push_number(out, u64::from(status)),
        None => out.extend_from_slice(b"null"),
    }
    for (name, value) in [(r#","protocol":""#, entry.protocol), (r#","grpc_status":""#, entry.grpc_status)] {
        if let Some(value) = value {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(value.as_bytes());
            out.push(b'"');
        }
    }
    if let Some(cut) = entry.cut {
        out.extend_from_slice(br#","error":""#);
        out.extend_from_slice(cut.as_bytes());
        out.push(b'"');
    }
    out.extend_from_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn entry<'a>(path: &'a str, trace: Option<&'a Context>) -> AccessEntry<'a> {
        AccessEntry {
            started_at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_323_045_678_901),
            duration: Duration::from_micros(12_345),
            client: [10, 0, 0, 7].into(),
            method: "GET",
            known_method: "GET",
            path,
            status: 200,
            answered: 200,
            bytes: 512,
            request_id: b"r-1",
            trace,
            lane: "base",
            upstream_status: Some(502),
            protocol: None,
            grpc_status: None,
            cut: None,
        }
    }

    #[test]
    fn a_text_line_has_every_field_in_a_fixed_order() {
        let mut out = Vec::new();
        text(&mut out, &entry("/service1", None));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2026-01-02T03:04:05.678901Z 10.0.0.7 \"GET /service1\" 200 12.345ms 512B request=r-1 lane=base upstream=502\n"
        );
    }

    #[test]
    fn a_json_line_is_one_object_whatever_the_path_holds() {
        let mut out = Vec::new();
        json(&mut out, &entry("/a\"b\r\n{\"status\":200}", None));
        let line = String::from_utf8(out).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["path"], "/a\"b\r\n{\"status\":200}");
        assert_eq!((json["duration_ms"].as_f64(), json["trace_id"].is_null()), (Some(12.345), true));
    }
}
