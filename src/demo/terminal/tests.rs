use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::canvas::*;
use super::waterfall::*;
use super::*;
use crate::hop::reply::Tree;
use crate::traces::{ExpectedTrace, decode};

const T0: u64 = 1_700_000_000_000_000;
const WIDE: Style = Style { width: 100, colour: false, unicode: true };

fn trace(spans: &Value) -> Trace {
    let spans = decode(spans.to_string().as_bytes(), 100_000).unwrap_or_else(|refused| panic!("{refused:?}"));
    Trace::new(spans.into_iter().map(Arc::new).collect()).unwrap()
}

fn span(id: &str, parent: Option<&str>, kind: &str, service: &str, at: u64, took: u64) -> Value {
    let number = service.trim_start_matches("service");
    let name = if kind == "SERVER" { format!("GET /service{number}") } else { "GET".into() };
    json!({"traceId": "4bf92f3577b34da6a3ce929d0e0e4736", "id": id, "parentId": parent, "kind": kind, "name": name,
        "timestamp": T0 + at, "duration": took, "localEndpoint": {"serviceName": service},
        "tags": {"http.response.status_code": "200"}})
}

/// service1 -> service2 -> service3, not in order.
fn chain() -> Value {
    json!([
        span("b7ad6b7169203331", Some("53995c3f42cd8ad8"), "SERVER", "service2", 8_200, 31_000),
        span("53995c3f42cd8ad8", Some("00f067aa0ba902b7"), "CLIENT", "service1", 7_400, 32_600),
        span("00f067aa0ba902b7", None, "SERVER", "service1", 0, 42_300),
        span("a2fb4a1d1a96d312", Some("3b9aca0012345678"), "SERVER", "service3", 21_100, 17_012),
        span("3b9aca0012345678", Some("b7ad6b7169203331"), "CLIENT", "service2", 20_050, 18_900),
    ])
}

/// The row of the waterfall that holds all of these words.
fn row_with(trace: &Trace, words: &[&str]) -> String {
    let drawn = render_rows(trace, &WIDE);
    let found = drawn.lines().find(|line| words.iter().all(|word| line.contains(word)));
    found.unwrap_or_else(|| panic!("no row with {words:?} in\n{drawn}")).to_owned()
}

#[test]
fn children_stand_in_the_order_of_their_clocks() {
    let trace = trace(&json!([
        span("1", None, "SERVER", "service1", 0, 100),
        span("2", Some("1"), "CLIENT", "service1", 30, 10),
        span("3", Some("1"), "CLIENT", "service1", 10, 10),
        span("4", Some("1"), "CLIENT", "service1", 20, 10),
    ]));
    let ids: Vec<_> = trace.rows().iter().map(|row| row.span.id.to_string()[15..].to_owned()).collect();
    assert_eq!(ids, ["1", "3", "4", "2"]);
    let drawn = render_rows(&trace, &WIDE);
    assert_eq!(drawn.matches("├╴").count(), 2, "{drawn}");
    assert_eq!(drawn.matches("└╴").count(), 1, "{drawn}");
}

#[test]
fn the_waterfall_of_a_chain_looks_like_this() {
    let ascii = Style { width: 80, ..Style::default() };
    let expected = "\
trace 4bf92f3577b34da6a3ce929d0e0e4736
3 services, 5 spans, 42.3ms

service  span                      0         20ms            start    took code
";
    let drawn = render_rows(&trace(&chain()), &ascii);
    assert!(drawn.starts_with(expected), "{drawn}");
    let expected = "\
service1 GET /service1         srv
`-service1 GET                 cli
  `-service2 GET /service2     srv
    `-service2 GET             cli
      `-service3 GET /service3 srv";
    let labels: Vec<&str> = drawn.lines().skip(4).map(|line| &line[..34]).collect();
    assert_eq!(labels, expected.lines().collect::<Vec<_>>(), "{drawn}");
    let figures: Vec<String> =
        drawn.lines().skip(4).map(|line| line.split_whitespace().rev().take(3).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(figures, ["200 42.3ms 0ms", "200 32.6ms 7.40ms", "200 31.0ms 8.20ms", "200 18.9ms 20.1ms", "200 17.0ms 21.1ms"]);
}

#[test]
fn bars_are_to_scale_to_an_eighth_of_a_column() {
    let spans = |from, took| {
        json!([span("1", None, "SERVER", "service1", 0, 80_000), span("2", Some("1"), "CLIENT", "service1", from, took)])
    };
    for unicode in [true, false] {
        let style = Style { unicode, ..WIDE };
        for (from, took) in [(0, 80_000), (0, 40_000), (20_000, 20_000), (79_999, 1), (80_000, 0), (0, 1), (33_333, 20_123)] {
            let trace = trace(&spans(from, took));
            let layout = Layout::of(&trace, trace.rows(), &style);
            let cells = bar(&trace.rows()[1].span, &trace, &layout, unicode);
            let filled = |cell: &Cell| match cell {
                Cell::Bar('▕' | '▏') => 0.125,
                Cell::Bar('▎') => 0.25,
                Cell::Bar('▍') => 0.375,
                Cell::Bar('▌' | '▐') => 0.5,
                Cell::Bar('▋') => 0.625,
                Cell::Bar('▊') => 0.75,
                Cell::Bar('▉') => 0.875,
                Cell::Bar(_) => 1.0,
                _ => 0.0,
            };
            let drawn: f64 = cells.iter().map(filled).sum();
            let exact = took as f64 / 80_000.0 * layout.bar as f64;
            assert!(drawn > 0.0 && (drawn - exact).abs() <= 1.0, "{from}+{took}: {drawn} for {exact}");
            let first = cells.iter().position(|cell| matches!(cell, Cell::Bar(_))).unwrap();
            let exact = from as f64 / 80_000.0 * layout.bar as f64;
            assert!((first as f64 - exact).abs() <= 1.0, "{from}+{took}: begins at {first} for {exact}");
        }
    }
}

#[test]
fn the_axis_has_round_steps_and_as_many_as_there_is_room_for() {
    let labels = |total, width| Axis::new(total, width).ticks.into_iter().map(|(_, label)| label).collect::<Vec<_>>();
    assert_eq!(labels(42_300, 40), ["0", "10ms", "20ms", "30ms", "40ms"]);
    assert_eq!(labels(42_300, 12), ["0"]);
    assert_eq!(labels(3_000_000, 40), ["0", "1s", "2s"]);
    assert_eq!(labels(1, 40), ["0"]);
    assert_eq!(labels(900, 40), ["0", "0.2ms", "0.4ms", "0.6ms", "0.8ms"]);
    assert_eq!(labels(0, 40), [""; 0]);
    assert!(labels(u64::MAX, 40).len() < 8);
}

#[test]
fn times_take_at_most_seven_columns() {
    for (us, text) in [
        (0, "0ms"),
        (1, "0.00ms"),
        (850, "0.85ms"),
        (9_999, "10.00ms"),
        (12_345, "12.3ms"),
        (999_949, "999.9ms"),
        (999_950, "1.00s"),
        (1_234_567, "1.23s"),
        (99_999_999, "100.00s"),
        (123_456_789, "123s"),
    ] {
        assert_eq!(time(us), text);
    }
    for power in 0..64 {
        assert!(time(1 << power).len() <= 7, "{}", time(1 << power));
    }
    assert!(time(u64::MAX).len() <= 7);
}

/// What a hostile or broken reporter may send, in one trace.
fn hostile() -> Value {
    json!([
        {"traceId": "f", "id": "1", "kind": "SERVER", "name": "\u{1b}[2J\u{7}\r\nGET\u{202e}evil\u{200b}", "timestamp": T0, "duration": 5000,
            "localEndpoint": {"serviceName": "\u{9b}31mservice"}, "tags": {"http.status_code": "\u{1b}c", "error": ""}},
        {"traceId": "f", "id": "2", "parentId": "1", "kind": "CLIENT", "name": "x".repeat(5000), "timestamp": u64::MAX, "duration": u64::MAX,
            "localEndpoint": {"serviceName": "長い名前".repeat(500)}},
        {"traceId": "f", "id": "3", "parentId": "2", "kind": "SERVER", "name": format!("a{}", "\u{301}".repeat(5000)), "timestamp": 1,
            "localEndpoint": {"serviceName": "長い名前".repeat(499)}},
        {"traceId": "f", "id": "4", "parentId": "99", "kind": "PRODUCER", "name": "👩🏽‍💻 sends"},
        {"traceId": "f", "id": "5", "parentId": "6"}, {"traceId": "f", "id": "6", "parentId": "5"},
        {"traceId": "f", "id": "7"},
    ])
}

#[test]
fn no_line_is_wider_than_the_terminal_and_none_holds_a_control_character() {
    let deep: Value = (1..=40)
        .map(|n| {
            span(
                &format!("{n:x}"),
                (n > 1).then(|| format!("{:x}", n - 1)).as_deref(),
                "SERVER",
                &format!("service{n}"),
                n,
                100 - n,
            )
        })
        .collect();
    for spans in [chain(), hostile(), deep] {
        let trace = trace(&spans);
        let verdict = Verdict::of(std::slice::from_ref(&trace), &ExpectedTrace::of_hops(3));
        for unicode in [true, false] {
            for width in [0, 60, 61, 72, 80, 89, 90, 100, 131, 160, 5000] {
                let style = Style { width, colour: false, unicode };
                let text = render(&trace, &SentHeaders::new(), &style) + &render_verdict(&verdict, &style);
                for line in text.lines() {
                    assert!(display_width(line) <= width.clamp(60, 160), "{width}: {}: {line}\n{text}", display_width(line));
                    assert!(
                        !line.chars().any(|c| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')),
                        "{line:?}"
                    );
                    assert!(unicode || line.is_ascii(), "{line}");
                    assert!(line.len() < 4000);
                }
                let coloured = render(&trace, &SentHeaders::new(), &Style { colour: true, ..style });
                let mut bare = coloured.replace("\x1b[0m", "");
                for sgr in SERVICE_COLOURS.iter().chain(&[BOLD, DIM, BAD, WARN, GOOD, "31"]) {
                    bare = bare.replace(&format!("\x1b[{sgr}m"), "");
                }
                assert!(!bare.contains('\u{1b}'), "a sequence that is not ours: {bare:?}");
            }
        }
    }
}

#[test]
fn times_that_make_no_sense_are_drawn_all_the_same() {
    let nothing = trace(&json!([{"traceId": "f", "id": "1"}, {"traceId": "f", "id": "2", "parentId": "1"}]));
    assert_eq!((nothing.start_us(), nothing.duration_us()), (0, 0));
    assert!(render_rows(&nothing, &WIDE).lines().last().unwrap().ends_with("?        ?"), "{}", render_rows(&nothing, &WIDE));
    let all = trace(&json!([{"traceId": "f", "id": "1", "timestamp": 1, "duration": u64::MAX}]));
    assert_eq!(all.duration_us(), u64::MAX - 1);
    assert!(render_rows(&all, &WIDE).contains("999999d"));
}

#[test]
fn a_trace_of_thousands_is_cut_and_counted_however_it_is_shaped() {
    for chained in [true, false] {
        let spans: Value = (1..=5000)
            .map(|n| {
                let parent = (n > 1).then(|| format!("{:x}", if chained { n - 1 } else { 1 }));
                span(&format!("{n:x}"), parent.as_deref(), "CLIENT", &format!("service{n}"), n, 5)
            })
            .collect();
        let text = render(&trace(&spans), &SentHeaders::new(), &WIDE);
        assert!(text.contains("... and 4800 more spans") && text.contains("... and 4984 more calls"));
        assert!(text.lines().count() < 800, "{}", text.lines().count());
    }
}

#[test]
fn a_caller_that_reports_no_spans_is_no_fault_and_an_id_that_is_used_again_is_none() {
    let outside = trace(&json!([
        span("1", Some("dead"), "SERVER", "service1", 0, 10_000),
        span("2", Some("1"), "CLIENT", "service1", 1_000, 8_000)
    ]));
    let drawn = render_rows(&outside, &WIDE);
    let said = drawn.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("The first span hangs below 000000000000dead, the id that the caller sent along."), "{drawn}");
    assert!(!drawn.contains("? ") && !drawn.contains("orphan"), "{drawn}");
    let again = trace(&json!([
        span("1", Some("dead"), "SERVER", "service1", 0, 10_000),
        span("2", Some("dead"), "SERVER", "service1", 20_000, 10_000),
        span("3", Some("beef"), "SERVER", "service3", 25_000, 1_000)
    ]));
    let drawn = render_rows(&again, &WIDE);
    assert!(drawn.contains("2 requests used this trace id.") && drawn.contains("1 orphan"), "{drawn}");
    assert!(drawn.contains("? service3"), "{drawn}");
}

#[test]
fn failed_spans_and_orphans_are_marked() {
    let mut spans = chain();
    spans[0]["tags"] = json!({"http.status_code": "503", "error": "503"});
    spans[3]["parentId"] = json!("dead");
    spans[4]["tags"] = json!({"error": "connection refused"});
    let trace = trace(&spans);
    assert!(row_with(&trace, &["service2", "server"]).ends_with("503 ✗"));
    assert!(row_with(&trace, &["service2", "client"]).ends_with("err ✗"));
    assert!(row_with(&trace, &["service3", "server"]).starts_with("? service3"));
    assert!(row_with(&trace, &["2 errors", "1 orphan"]).starts_with("trace 4bf9"));
    row_with(&trace, &["? service3 server GET /service3 says that span 000000000000dead called it."]);
}

#[test]
fn the_ids_show_who_is_whose_parent_and_every_call_shows_how_its_id_travelled() {
    let text = render_id_links(&trace(&chain()), &SentHeaders::new(), &WIDE);
    for line in [
        "  00f067aa0ba902b7   none, the root    service1 server GET /service1",
        "  b7ad6b7169203331 ← 53995c3f42cd8ad8  service2 server GET /service2",
        "  service1 → service2",
        "      traceparent        00-4bf92f3577b34da6a3ce929d0e0e4736-53995c3f42cd8ad8-01",
        "    service2 made 53995c3f42cd8ad8 the parent of its own span b7ad6b7169203331",
        "  service2 → service3",
    ] {
        assert!(text.lines().any(|drawn| drawn == line), "no line {line:?} in\n{text}");
    }
}

#[test]
fn a_call_without_a_server_span_and_a_shared_id_are_told() {
    let mut served = span("2", Some("1"), "SERVER", "service2", 5, 10);
    served["shared"] = json!(true);
    let text = render_id_links(
        &trace(&json!([
            span("1", None, "SERVER", "service1", 0, 100),
            span("2", Some("1"), "CLIENT", "service1", 1, 50),
            span("3", Some("1"), "CLIENT", "service1", 60, 5),
            served,
        ])),
        &SentHeaders::new(),
        &WIDE,
    );
    assert!(text.contains("← shares its id"), "{text}");
    assert!(text.contains("service2 took 0000000000000002 over as the id of its own half of the call"), "{text}");
    assert!(text.contains("service1 → no server span"), "{text}");
}

/// The reply of a hop.
fn hop(service: &str, upstreams: Value) -> Value {
    json!({"service": service, "version": "v1", "lane": "base", "hostname": "h", "message": "", "path": "/", "status": 200,
        "started_at": "2026-01-02T03:04:05.678901Z", "duration_ms": 1.0, "request_id": "r", "trace_id": null, "span_id": null,
        "parent_span_id": null, "sampled": true, "propagation": "continue", "received": {},
        "client": {"ip": "127.0.0.1", "identity": null}, "attempt": 1, "injected": null, "upstreams": upstreams})
}

fn call(sent: Value, reply: Value) -> Value {
    json!([{"url": "http://x", "status": 200, "duration_ms": 1.0, "error": null, "sent": sent, "reply": reply}])
}

#[test]
fn with_the_reply_the_very_headers_that_were_sent_are_shown() {
    let second = hop("service2", call(json!({"b3": ["4bf92f3577b34da6a3ce929d0e0e4736-3b9aca0012345678-1"]}), Value::Null));
    let sent = json!({
        "x-b3-spanid": ["53995c3f42cd8ad8"], "x-b3-parentspanid": ["00f067aa0ba902b7"], "x-b3-sampled": ["1\u{1b}[31m"],
        "x-request-id": ["r"], "x-b3-traceid": ["4bf92f3577b34da6a3ce929d0e0e4736"]
    });
    let first = hop("service1", call(sent, second));
    let reply = Tree::parse(first.to_string().as_bytes()).unwrap();
    let trace = trace(&chain());
    let text = render_id_links(&trace, &sent_headers(&trace, &reply), &WIDE);
    let expected = "  service1 → service2
    sent in the headers of the call:
      x-b3-traceid       4bf92f3577b34da6a3ce929d0e0e4736
      x-b3-spanid        53995c3f42cd8ad8
      x-b3-parentspanid  00f067aa0ba902b7
      x-b3-sampled       1\\u{1b}[31m
    service2 made";
    assert!(text.contains(expected), "{text}");
    assert!(text.contains("      b3                 4bf92f3577b34da6a3ce929d0e0e4736-3b9aca0012345678-1\n"), "{text}");
    assert!(!text.contains("in one of these headers"), "{text}");
}

#[test]
fn the_waterfall_reads_every_context_as_the_hop_does() {
    use crate::trace_context::cases_for_tests::{SPAN, context_cases};
    use crate::traces::ids::parse_span_id;
    let trace = trace(&json!([span(SPAN, None, "CLIENT", "service1", 0, 100)]));
    for case in context_cases() {
        let sent: serde_json::Map<String, Value> =
            case.values_by_name().into_iter().map(|(name, values)| (name, values.into())).collect();
        let reply = Tree::parse(hop("service1", call(sent.into(), Value::Null)).to_string().as_bytes()).unwrap();
        let tied = !sent_headers(&trace, &reply).is_empty();
        // A call that lost its trace id on purpose is known by the id of its span, and shown with what it did send.
        let names_its_span = case
            .headers
            .iter()
            .any(|(name, value)| *name == "x-b3-spanid" && parse_span_id(value).is_ok_and(|id| id.to_string() == SPAN));
        assert_eq!(tied, case.context.is_some() || names_its_span, "{:?}", case.headers);
    }
}

#[test]
fn a_service_keeps_its_colour_and_shares_it_with_no_other() {
    let names = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect::<Vec<Box<str>>>();
    let (one, other) = (names(&["service1", "service2", "service3"]), names(&["service3", "service1", "service2"]));
    assert_eq!(service_colours(&one), service_colours(&other), "whatever order they came in");
    let eight = names(&["a", "b", "c", "d", "e", "f", "g", "h"]);
    assert_eq!(service_colours(&eight).values().collect::<HashSet<_>>().len(), 8);
    let text = render_rows(&trace(&chain()), &Style { colour: true, ..WIDE });
    for colour in service_colours(&one).values() {
        assert!(text.contains(&format!("\x1b[{colour}m")), "{text}");
    }
}

#[test]
fn the_verdict_is_a_line_and_every_deviation_below_it_another() {
    let whole = Verdict::of(&[trace(&chain())], &ExpectedTrace::of_hops(3));
    assert_eq!(render_verdict(&whole, &WIDE), "✓ complete  1 trace, 3 services, 5 spans, no orphan\n");
    assert_eq!(render_verdict(&whole, &Style::default()), "complete  1 trace, 3 services, 5 spans, no orphan\n");
    let short = render_verdict(&Verdict::of(&[trace(&chain())], &ExpectedTrace::of_hops(4)), &WIDE);
    assert!(short.starts_with("✗ not complete  1 trace, 3 services, 5 spans, no orphan\n  - 3 services instead of 4"), "{short}");
}

#[test]
fn a_cut_trace_says_so() {
    let store = crate::demo::store::Store::with_limits(crate::demo::store::Limits { trace_spans: 4, ..Default::default() });
    store.insert(decode(chain().to_string().as_bytes(), 10).unwrap());
    let trace = store.tree(store.trace_ids()[0]).unwrap();
    assert!(render_rows(&trace, &WIDE).contains("The store cut this trace: 1 reports of spans were not kept."));
    let verdict = Verdict::of(&[trace], &ExpectedTrace { spans: Some(4), ..ExpectedTrace::default() });
    assert!(verdict.deviations.iter().any(|text| text.contains("The store cut trace")), "{verdict:?}");
    assert!(store.tree(crate::traces::TraceId::from(1)).is_none());
}
