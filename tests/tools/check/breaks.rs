//! A chosen trace, and `check` of chains that `--break` broke.

use std::sync::{Arc, Mutex};

use serde_json::json;

use super::support::*;
use super::{FEW, get};

const WHOLE: &str = "463ac35c9f6413ad48485a3953bb6124";
const SHORT: &str = "48485a3953bb6124";

/// The trace ids of every request of a run, in W3C and in B3.
fn sent(args: &[&str]) -> Vec<[String; 2]> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let front = fake(move |request| {
        let value = |name| request.header(name).unwrap_or_default().to_owned();
        log.lock().unwrap().push([value("traceparent").get(3..35).unwrap_or_default().to_owned(), value("x-b3-traceid")]);
        (200, vec![], reply("service1", "v1", "base", request, vec![]).to_string())
    });
    check(&format!("http://{front}/service1"), &[&FEW[..], args].concat()).fine();
    std::mem::take(&mut *seen.lock().unwrap())
}

#[test]
fn a_chosen_trace_is_that_of_the_first_request_and_of_no_other() {
    for (id, w3c) in [(WHOLE, WHOLE.to_owned()), (SHORT, format!("{SHORT:0>32}"))] {
        let sent = sent(&["--trace-id", id]);
        assert_eq!(sent[0], [w3c.clone(), id.to_owned()]);
        assert!(sent.len() > 5 && sent[1..].iter().flatten().all(|other| *other != w3c && other != id), "{sent:?}");
    }
}

#[test]
fn with_a_backend_the_chosen_trace_is_the_one_that_is_read() {
    let demo = Demo::start_with(&["--latency", "0"]);
    for id in [WHOLE, SHORT] {
        let run = check(&demo.url, &["--traces", &demo.store, "--trace-id", id, "--count", "2", "--skip", "traces.sampling"]);
        run.fine();
        assert!(run.check("traces.arrived").to_string().contains(id), "{:#}", run.json);
        let spans = get(demo.store.strip_prefix("http://").unwrap(), &format!("/api/v2/trace/{id}"));
        assert_eq!(spans.as_array().map(Vec::len), Some(5), "the spans of one request: {spans:#}");
    }
}

#[test]
fn a_trace_id_that_is_none_is_refused() {
    for bad in ["", "abc", &WHOLE[1..], &"0".repeat(32), &"g".repeat(16), &WHOLE.repeat(2)] {
        let run = check("http://127.0.0.1:9/service1", &["--trace-id", bad]);
        assert_eq!((run.code, &run.json), (Some(2), &json!(null)), "{bad}: {}", run.stderr);
        assert!(run.stderr.contains("--trace-id") && run.stderr.contains("32 or 16 hex digits"), "{bad}: {}", run.stderr);
    }
}
