//! The chain: hops that call hops, what comes back when they do and when they do not, and what every answer has.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::ports::free_addr;
use crate::common::{Act, Hop, Upstream, answer, chain, eventually, exchange};
use serde_json::{Value, json};

#[tokio::test]
async fn three_hops_answer_with_one_tree() {
    let hops = chain(3, &["--service-version", "v7"], &[]);
    let (status, reply) = hops[0].json("/service1", &[("x-request-id", "r-1")]).await;
    assert_eq!(status, 200);
    let mut below = &reply;
    for n in 1..=3 {
        assert_eq!(below["service"], format!("service{n}"));
        assert_eq!(below["message"], format!("Hello, service{n}!"));
        assert_eq!(below["path"], format!("/service{n}"));
        assert_eq!((&below["version"], &below["lane"], &below["status"]), (&json!("v7"), &json!("base"), &json!(200)));
        assert_eq!((&below["request_id"], &below["propagation"]), (&json!("r-1"), &json!("forward")));
        assert_eq!((&below["attempt"], &below["injected"]), (&json!(1), &Value::Null));
        assert_eq!(below["client"], json!({"ip": "127.0.0.1", "identity": null, "identity_source": null}));
        assert_eq!((&below["protocol"], &below["request_bytes"]), (&json!("http/1.1"), &json!(0)));
        for id in ["trace_id", "span_id", "parent_span_id", "sampled"] {
            assert_eq!(below[id], Value::Null, "nothing arrived, so {id} is null");
        }
        assert_eq!(below["received"], json!({"x-request-id": ["r-1"]}));
        let started_at = below["started_at"].as_str().unwrap();
        assert!(started_at.len() == 27 && started_at.ends_with('Z') && started_at.as_bytes()[10] == b'T', "{started_at}");
        assert!(below["duration_ms"].as_f64().unwrap() > 0.0);
        assert!(!below["hostname"].as_str().unwrap().is_empty());
        let fields: Vec<_> = below.as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields.len(), 26, "{fields:?}");
        let Some(next) = hops.get(n) else {
            assert_eq!(below["upstreams"], json!([]));
            break;
        };
        let call = &below["upstreams"][0];
        assert_eq!(below["upstreams"].as_array().unwrap().len(), 1);
        assert_eq!(call["protocol"], "http/1.1");
        assert_eq!(call["url"], next.url(&format!("/service{}", n + 1)));
        assert_eq!((&call["status"], &call["error"]), (&json!(200), &Value::Null));
        assert_eq!(call["sent"], json!({"x-request-id": ["r-1"]}));
        assert!(call["duration_ms"].as_f64().unwrap() <= below["duration_ms"].as_f64().unwrap());
        below = &call["reply"];
    }
}

#[tokio::test]
async fn an_upstream_without_a_path_gets_the_next_service() {
    let last = Upstream::answering(answer("200 OK", "", "")).await;
    let bare = Hop::start(&["--upstream", &last.url()], &[]);
    let whole = Hop::start(&["--upstream", &format!("{}/elsewhere?q=1", last.url())], &[]);
    for path in ["/service0", "/service41", "/hello/service7", "/service9999"] {
        assert_eq!(bare.json(path, &[]).await.0, 200, "{path}");
    }
    assert_eq!(whole.json("/service1", &[]).await.0, 200);
    let lines: Vec<_> = last.heads().into_iter().map(|head| head.line).collect();
    let expected = ["/service1", "/service42", "/service8", "/service10000", "/elsewhere?q=1"];
    assert_eq!(lines, expected.map(|path| format!("GET {path} HTTP/1.1")));
}

/// How long [`slow`] takes: longer than a busy machine needs to send two requests at once.
const SLOW: Duration = Duration::from_secs(1);

/// An upstream that takes that long for an answer, and when its requests arrived.
async fn slow() -> (Upstream, Arc<Mutex<Vec<Instant>>>) {
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let told = arrived.clone();
    let upstream = Upstream::start(move |_| {
        told.lock().unwrap().push(Instant::now());
        vec![Act::Pause(SLOW), Act::Send(answer("200 OK", "", ""))]
    })
    .await;
    (upstream, arrived)
}

#[tokio::test]
async fn a_fan_out_calls_all_at_once_or_one_after_the_other_and_keeps_the_configured_order() {
    for fan_out in ["parallel", "sequential"] {
        let (slow, slow_arrived) = slow().await;
        let at = Arc::new(Mutex::new(Vec::new()));
        let told = at.clone();
        let fast = Upstream::start(move |_| {
            told.lock().unwrap().push(Instant::now());
            vec![Act::Send(answer("204 No Content", "", ""))]
        })
        .await;
        // The same URL twice is two calls.
        let list = format!("{0}/a,{1}/b,{0}/a,{1}/c", slow.url(), fast.url());
        let front = Hop::start(&["--fan-out", fan_out, "--upstream", &list], &[]);
        let (status, reply) = front.json("/service1", &[]).await;
        assert_eq!(status, 200, "{reply}");
        let calls = reply["upstreams"].as_array().unwrap();
        let urls: Vec<_> = calls.iter().map(|call| call["url"].as_str().unwrap().to_owned()).collect();
        assert_eq!(urls, list.split(',').collect::<Vec<_>>());
        assert_eq!((&calls[0]["status"], &calls[1]["status"]), (&json!(200), &json!(204)));
        assert_eq!(slow.heads().len(), 2);
        let (first, second) = (slow_arrived.lock().unwrap()[0], at.lock().unwrap()[0]);
        let apart = second.max(first) - second.min(first);
        if fan_out == "parallel" {
            assert!(apart < SLOW, "{apart:?}");
        } else {
            assert!(second > first && apart >= SLOW, "{apart:?}");
        }
    }
}

#[tokio::test]
async fn a_tree_may_have_branches_of_chains() {
    let leaves = (Hop::start(&["--name", "leaf"], &[]), Hop::start(&["--name", "leaf2"], &[]));
    let middle = Hop::start(&["--name", "middle", "--upstream", &leaves.0.url("")], &[]);
    let front = Hop::start(&["--upstream", &middle.url(""), "--upstream", &leaves.1.url("/service9")], &[]);
    let (status, reply) = front.json("/service1", &[]).await;
    assert_eq!(status, 200);
    assert_eq!(reply["upstreams"][0]["reply"]["service"], "middle");
    assert_eq!(reply["upstreams"][0]["reply"]["upstreams"][0]["reply"]["service"], "leaf");
    assert_eq!(reply["upstreams"][1]["reply"]["service"], "leaf2");
    assert_eq!(reply["upstreams"][1]["reply"]["path"], "/service9");
}

#[tokio::test]
async fn a_chain_that_calls_itself_ends_with_508_at_the_front() {
    let addr = free_addr().to_string();
    let hop = Hop::start(&["--addr", &addr, "--max-hops", "3", "--upstream", &format!("http://{addr}/service1")], &[]);
    for (count, depth) in [(None, 3), (Some("0"), 3), (Some("2"), 1), (Some("x"), 3), (Some("-1"), 3), (Some(""), 3)] {
        let before = hop.metrics().await.sum("http_server_request_duration_seconds_count", &[("http_route", "/service{n}")]);
        let headers: Vec<_> = count.map(|count| ("x-hop-count", count)).into_iter().collect();
        let (status, reply) = hop.json("/service1", &headers).await;
        assert_eq!(status, 508, "{count:?}: {reply}");
        let mut below = &reply;
        for _ in 1..depth {
            assert_eq!((&below["status"], &below["upstreams"][0]["status"]), (&json!(508), &json!(508)), "{count:?}");
            below = &below["upstreams"][0]["reply"];
        }
        assert_eq!((&below["upstreams"][0]["status"], &below["upstreams"][0]["reply"]), (&json!(508), &Value::Null), "{count:?}");
        let after = || async {
            let now = hop.metrics().await.sum("http_server_request_duration_seconds_count", &[("http_route", "/service{n}")]);
            (now - before == f64::from(depth + 1)).then_some(())
        };
        eventually("every turn of the loop is counted", after).await;
    }
    hop.get("/service1", &[("x-hop-count", "3")]).await.assert_problem(508);
    hop.get("/service1", &[("x-hop-count", "4294967295")]).await.assert_problem(508);
    hop.get("/service1", &[("x-hop-count", "3"), ("x-hop-count", "1")]).await.assert_problem(508);
}

/// How many requests of the chain a hop was sent.
async fn chain_requests(hop: &Hop) -> f64 {
    hop.metrics().await.sum("http_server_request_duration_seconds_count", &[("http_route", "/service{n}")])
}

#[tokio::test]
async fn a_request_makes_no_more_calls_than_its_budget_however_wide_the_loop_is() {
    let addr = free_addr().to_string();
    let itself = [format!("http://{addr}/service1").as_str(); 10].join(",");
    let hop = Hop::start(&["--addr", &addr, "--max-calls", "50", "--upstream", &itself], &[]);
    // Of these budgets the hop accepts what is not above its own limit, and its own limit where there is none that it can read.
    let budgets = [
        (None, 50),
        (Some("7"), 7),
        (Some("13"), 13),
        (Some("51"), 50),
        (Some("4294967296"), 50),
        (Some("x"), 50),
        (Some(""), 50),
    ];
    for (budget, calls) in budgets {
        let before = chain_requests(&hop).await;
        let headers: Vec<_> = budget.map(|budget| ("x-call-budget", budget)).into_iter().collect();
        let (status, reply) = hop.json("/service1", &headers).await;
        assert_eq!(status, 508, "{budget:?}: {reply}");
        let after = || async { (chain_requests(&hop).await - before == f64::from(calls + 1)).then_some(()) };
        eventually("as many calls as the budget allows, and the request itself", after).await;
    }
    let (_, reply) = hop.json("/service1", &[("x-call-budget", "2")]).await;
    let calls = reply["upstreams"].as_array().unwrap();
    assert_eq!(calls.len(), 10);
    for (call, made) in calls.iter().zip([true, true].into_iter().chain([false; 8])) {
        let status = if made { json!(508) } else { Value::Null };
        assert_eq!(call["status"], status, "{call}");
        let error = if made { &call["reply"]["upstreams"][0]["error"] } else { &call["error"] };
        assert!(error.as_str().unwrap().contains("httpserver has no call left"), "{call}");
    }
}

#[tokio::test]
async fn a_hop_that_calls_nobody_needs_no_budget() {
    let hop = Hop::start(&[], &[]);
    assert_eq!(hop.json("/service1", &[("x-call-budget", "0")]).await.0, 200);
}

/// A hop's reply that nests what is no reply, but JSON of this many levels.
fn nesting_reply(levels: usize) -> String {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    let call = format!(r#"{{"url":"http://a/","status":200,"duration_ms":1.0,"error":null,"sent":{{}},"reply":{deep}}}"#);
    let reply = json!({
        "service": "s", "version": "v1", "lane": "base", "hostname": "h", "message": "m", "path": "/service1", "status": 200,
        "started_at": "2026-01-02T03:04:05.678901Z", "duration_ms": 1.5, "request_id": "r", "trace_id": null, "span_id": null,
        "parent_span_id": null, "sampled": null, "propagation": "forward", "received": {},
        "client": {"ip": "127.0.0.1", "identity": null}, "attempt": 1, "injected": null, "upstreams": ["CALL"],
    });
    reply.to_string().replace("\"CALL\"", &call)
}

/// An upstream that does what `x-lane` says, which of the parts between `+` being its own.
async fn scripted(part: usize) -> Upstream {
    const MIB: usize = 1 << 20;
    Upstream::start(move |head| {
        let lane = head.one("x-lane").unwrap_or_default();
        let case = lane.split('+').nth(part).unwrap_or("200").to_owned();
        match case.as_str() {
            "302" => vec![Act::Send(answer("302 Found", "location: http://user:pass@gone/login?code=secret\r\n", ""))],
            "304" => vec![Act::Send(answer("304 Not Modified", "", ""))],
            "no-pod" => {
                let head = "content-type: text/plain\r\nserver: envoy\r\n";
                vec![Act::Send(answer("503 Service Unavailable", head, "no healthy upstream"))]
            }
            "page" => vec![Act::Send(answer("502 Bad Gateway", "content-type: text/html\r\nserver: nginx\r\n", "<h1>502</h1>"))],
            "text" => vec![Act::Send(answer("200 OK", "content-type: text/plain\r\n", "hello"))],
            "other-json" => vec![Act::Send(answer("200 OK", "content-type: application/json\r\n", "{\"service\":\"me\"}"))],
            "broken-json" => vec![Act::Send(answer("200 OK", "content-type: application/json\r\n", "{\"service\":"))],
            "too-deep" => vec![Act::Send(answer("200 OK", "content-type: application/json\r\n", &nesting_reply(10_000)))],
            "brackets" => vec![Act::Send(answer("200 OK", "content-type: application/json\r\n", &"[".repeat(MIB)))],
            "binary" => {
                let mut bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n".to_vec();
                bytes.extend([0, 0xff, 0xfe]);
                vec![Act::Send(bytes)]
            }
            "1mib" => vec![Act::Send(answer("200 OK", "", &"x".repeat(MIB)))],
            "huge" => vec![Act::Send(answer("200 OK", "", &"x".repeat(MIB + 1))), Act::Close],
            "huge-chunked" => {
                let mut acts = vec![Act::Send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec())];
                let chunk = format!("{MIB:x}\r\n{}\r\n", "x".repeat(MIB)).into_bytes();
                acts.extend([Act::Send(chunk.clone()), Act::Send(chunk), Act::Close]);
                acts
            }
            "close" => vec![Act::Close],
            "half-head" => vec![Act::Send(b"HTTP/1.1 200 OK\r\ncontent-le".to_vec()), Act::Close],
            "half-body" => vec![Act::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_vec()), Act::Close],
            "not-http" => vec![Act::Send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec()), Act::Close],
            "hang" => vec![Act::Hang],
            "hang-body" => vec![Act::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_vec()), Act::Hang],
            "drip" => {
                let mut acts = vec![Act::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n".to_vec())];
                acts.extend((0..100).flat_map(|_| [Act::Send(b"x".to_vec()), Act::Pause(Duration::from_millis(100))]));
                acts
            }
            status => vec![Act::Send(answer(&format!("{status} Status"), "", ""))],
        }
    })
    .await
}

#[tokio::test]
async fn every_way_an_upstream_fails_is_told_from_the_front() {
    let upstream = scripted(0).await;
    let front = Hop::start(&["--upstream", &upstream.url(), "--upstream-timeout", "500ms"], &[]);
    // What the upstream does, this hop's status, the upstream's own status in the tree, a part of the error.
    let table: &[(&str, u16, Option<u16>, &str)] = &[
        ("200", 200, Some(200), ""),
        ("204", 200, Some(204), ""),
        ("text", 200, Some(200), ""),
        ("other-json", 200, Some(200), ""),
        ("broken-json", 200, Some(200), ""),
        ("binary", 200, Some(200), ""),
        ("1mib", 200, Some(200), ""),
        ("brackets", 200, Some(200), ""),
        ("too-deep", 502, Some(200), "too deep: its reply nests more than 256 hops"),
        ("302", 502, Some(302), "redirect 302 to http://gone/login is not followed"),
        ("304", 502, Some(304), "304"),
        ("400", 502, Some(400), "400"),
        ("403", 502, Some(403), "403"),
        ("404", 502, Some(404), "404"),
        ("429", 502, Some(429), "429"),
        ("500", 502, Some(500), "500"),
        ("503", 502, Some(503), "answered 503 Service Unavailable, empty body"),
        ("no-pod", 502, Some(503), "answered 503 Service Unavailable: no healthy upstream [server envoy]"),
        ("page", 502, Some(502), "answered 502 Bad Gateway [server nginx]"),
        ("504", 504, Some(504), "504"),
        ("508", 508, Some(508), "508"),
        ("599", 502, Some(599), "599"),
        ("huge", 502, Some(200), "too large"),
        ("huge-chunked", 502, Some(200), "too large"),
        ("close", 502, None, "broken answer"),
        ("half-head", 502, None, "broken answer"),
        ("half-body", 502, Some(200), "broken answer"),
        ("not-http", 502, None, "broken answer"),
        ("hang", 504, None, "no whole answer within 500ms"),
        ("hang-body", 504, Some(200), "no whole answer within 500ms"),
        ("drip", 504, Some(200), "no whole answer within 500ms"),
    ];
    for (case, status, upstream_status, error) in table {
        let before = upstream.heads().len();
        let (got, reply) = front.json("/service1", &[("x-lane", case)]).await;
        assert_eq!(got, *status, "{case}: {reply}");
        assert_eq!(reply["status"], *status, "{case}");
        let call = &reply["upstreams"][0];
        assert_eq!(call["status"], json!(upstream_status), "{case}: {call}");
        assert_eq!(call["reply"], Value::Null, "{case}");
        match call["error"].as_str() {
            None => assert_eq!(*error, "", "{case}"),
            Some(told) => assert!(!error.is_empty() && told.contains(error), "{case}: {told}"),
        }
        assert_eq!(upstream.heads().len(), before + 1, "{case}: a call is made once and not repeated");
    }
}

#[tokio::test]
async fn a_nested_reply_that_nobody_can_read_is_named_in_the_text_form() {
    for (levels, status, says) in [(100, 200, "the reply below cannot be read"), (10_000, 502, "too deep")] {
        let next = Upstream::answering(answer("200 OK", "content-type: application/json\r\n", &nesting_reply(levels))).await;
        let front = Hop::start(&["--upstream", &next.url()], &[]);
        let text = front.get("/service1", &[]).await;
        assert_eq!(text.status, status);
        assert!(text.text().contains(says), "{}", text.text());
    }
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_a_502_that_says_so() {
    let nobody = free_addr();
    let front = Hop::start(&["--upstream", &format!("http://{nobody}")], &[]);
    let (status, reply) = front.json("/service1", &[]).await;
    assert_eq!(status, 502);
    let call = &reply["upstreams"][0];
    assert_eq!((&call["status"], &call["url"]), (&Value::Null, &json!(format!("http://{nobody}/service2"))));
    assert!(call["error"].as_str().unwrap().starts_with("cannot connect: "), "{call}");
}

#[tokio::test]
async fn the_status_of_several_failures_is_508_before_504_before_502() {
    let upstreams = [scripted(0).await, scripted(1).await, scripted(2).await];
    let list = upstreams.iter().map(Upstream::url).collect::<Vec<_>>().join(",");
    let front = Hop::start(&["--upstream", &list, "--upstream-timeout", "500ms"], &[]);
    for (case, status) in [
        ("200+200+200", 200),
        ("200+404+200", 502),
        ("200+hang+200", 504),
        ("504+hang+200", 504),
        ("hang+hang-body+504", 504),
        ("hang+500+200", 502),
        ("504+302+200", 502),
        ("hang+508+500", 508),
        ("508+200+200", 508),
    ] {
        let (got, reply) = front.json("/service1", &[("x-lane", case)]).await;
        assert_eq!(got, status, "{case}: {reply}");
        let failed = reply["upstreams"].as_array().unwrap().iter().filter(|call| !call["error"].is_null()).count();
        assert_eq!(failed, case.split('+').filter(|part| *part != "200").count(), "{case}");
    }
}

#[tokio::test]
async fn when_the_last_hop_hangs_the_front_names_it_and_not_the_one_before() {
    let hanging = Upstream::start(|_| vec![Act::Hang]).await;
    let service2 = Hop::start(&["--name", "service2", "--upstream", &hanging.url(), "--upstream-timeout", "300ms"], &[]);
    let service1 = Hop::start(&["--name", "service1", "--upstream", &service2.url(""), "--upstream-timeout", "8s"], &[]);
    let (status, reply) = service1.json("/service1", &[]).await;
    assert_eq!(status, 504);
    let call = &reply["upstreams"][0];
    assert_eq!(
        (&call["status"], &call["reply"]["service"], &call["reply"]["status"]),
        (&json!(504), &json!("service2"), &json!(504))
    );
    let broken = &call["reply"]["upstreams"][0];
    assert_eq!(broken["url"], format!("{}/service3", hanging.url()));
    assert_eq!((&broken["status"], &broken["reply"]), (&Value::Null, &Value::Null));
    assert_eq!(broken["error"], "no whole answer within 300ms");

    let text = service1.get("/service1", &[]).await;
    assert_eq!(text.status, 504);
    let blamed: Vec<_> = text.text().lines().filter(|line| line.contains("no whole answer")).map(str::to_owned).collect();
    assert!(blamed.len() == 1 && blamed[0].contains("/service3"), "{}", text.text());
}

#[tokio::test]
async fn people_get_a_tree_and_programs_get_json() {
    let hops = chain(2, &[], &[]);
    let text = hops[0].get("/service1", &[("x-request-id", "r-text"), ("x-lane", "gray")]).await;
    assert_eq!((text.status, text.header("content-type")), (200, Some("text/plain; charset=utf-8")));
    let body = text.text();
    let line = |part: &str| body.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("no {part} in {body}"));
    assert!(line("service1 ").contains("200"));
    line("Hello, service1!");
    line("r-text");
    assert!(line("service2 ").starts_with("└─ "), "{body}");
    // The last hop lists what it received.
    let received = body.split_once("received:").unwrap().1;
    assert!(received.contains("x-request-id: r-text") && received.contains("x-lane: gray"), "{body}");

    for (accept, is_json) in [
        ("*/*", false),
        ("text/html", false),
        ("application/json", true),
        ("application/json, */*;q=0.5", true),
        ("text/plain, application/json;q=0.5", false),
        ("application/json;q=0", false),
    ] {
        let answer = hops[0].get("/service1", &[("accept", accept)]).await;
        assert_eq!(answer.header("content-type") == Some("application/json"), is_json, "{accept}");
    }
}

#[tokio::test]
async fn secrets_are_carried_whole_and_shown_masked() {
    let upstream = Upstream::answering(answer("200 OK", "", "")).await;
    let flags = ["--upstream", &upstream.url(), "--forward-header", "authorization,x-api-key,x-tenant"];
    let front = Hop::start(&flags, &[]);
    let secrets = [("authorization", "Bearer s3cret"), ("x-api-key", "k3y"), ("x-tenant", "blue"), ("x-tenant", "green")];
    let (status, reply) = front.json("/service1", &secrets).await;
    assert_eq!(status, 200);
    let shown = json!({"authorization": ["***"], "x-api-key": ["***"], "x-tenant": ["blue", "green"]});
    for shown_in in [&reply["received"], &reply["upstreams"][0]["sent"]] {
        for (name, values) in shown.as_object().unwrap() {
            assert_eq!(shown_in[name], *values, "{reply}");
        }
    }
    assert!(!reply.to_string().contains("s3cret") && !reply.to_string().contains("k3y"));
    let head = &upstream.heads()[0];
    assert_eq!(head.all("authorization"), ["Bearer s3cret"]);
    assert_eq!((head.all("x-api-key"), head.all("x-tenant")), (vec!["k3y".to_owned()], vec!["blue".into(), "green".into()]));
}

#[tokio::test]
async fn headers_shows_what_arrived_with_secrets_masked() {
    let hop = Hop::start(&[], &[]);
    let mut secrets = vec![("x-plain", "a"), ("x-plain", "b")];
    let names = "authorization proxy-authorization cookie set-cookie x-auth-token x-api-key x-password X-PassWord-Old x-passwd x-pwd \
        x-jwt x-goog-iap-jwt-assertion x-amzn-oidc-data dpop x-session-id x-csrf x-xsrf-id x-signature x-ms-client-principal \
        x-credential x-auth x-client-secret";
    let names: Vec<&str> = names.split_whitespace().collect();
    secrets.extend(names.iter().map(|name| (*name, "s3cret")));
    let answer = hop.get("/headers", &secrets).await;
    assert_eq!(answer.status, 200);
    let shown = answer.json();
    assert_eq!(shown["x-plain"], json!(["a", "b"]));
    for name in names {
        assert_eq!(shown[name.to_ascii_lowercase()], json!(["***"]), "{name}");
    }
    assert!(!answer.text().contains("s3cret"));
}

#[tokio::test]
async fn a_json_web_token_is_masked_under_any_name_and_what_only_resembles_one_is_not() {
    const TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzM2NyZXQifQ.c2lnbmF0dXJl";
    let upstream = Upstream::answering(answer("200 OK", "", "")).await;
    let front = Hop::start(&["--upstream", &upstream.url(), "--forward-header", "x-mine"], &[]);
    let bearer = format!("Bearer {TOKEN}");
    let member = format!("a=1,user={TOKEN},b=2");
    let tokens = [("x-lane", TOKEN), ("x-mine", bearer.as_str()), ("baggage", &member)];
    let trace = "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01";
    let ids = [
        ("x-request-id", "463ac35c9f6413ad48485a3953bb6124"),
        ("traceparent", trace),
        ("tracestate", "dd=s:1;t.dm:-4;t.usr.id:baz64,rojo=00f067aa0ba902b7"),
        ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
        ("x-b3-spanid", "a2fb4a1d1a96d312"),
        ("x-b3-sampled", "1"),
        ("x-cloud-trace-context", "105445aa7843bc8bf206b12000100000/1;o=1"),
        ("sw8", "1-MWYyZDRiZjQ3Yg==-YjM3-3-bWVzaC1zdmM=-d2ViYXBw-L3Byb2R1Y3Q="),
    ];
    let headers = [&tokens[..], &ids].concat();
    let (_, reply) = front.json("/service1", &headers).await;
    let all = front.get("/headers", &headers).await.json();
    for shown_in in [&reply["received"], &reply["upstreams"][0]["sent"], &all] {
        for (name, _) in tokens {
            assert_eq!(shown_in[name], json!(["***"]), "{name}: {shown_in}");
        }
        for (name, value) in ids {
            assert_eq!(shown_in[name], json!([value]), "{name}: {shown_in}");
        }
    }
    // What is masked is carried whole.
    for (name, value) in tokens {
        assert_eq!(upstream.heads()[0].all(name), [value]);
    }
}

#[tokio::test]
async fn the_clients_address_is_what_the_nearest_report_says() {
    let hop = Hop::start(&[], &[]);
    for (headers, ip) in [
        (&[][..], "127.0.0.1"),
        (&[("x-forwarded-for", "10.0.0.7, 10.0.0.8")], "10.0.0.7"),
        (&[("x-forwarded-for", "10.0.0.7"), ("x-real-ip", "10.0.0.9")], "10.0.0.9"),
        (&[("x-real-ip", "::1")], "127.0.0.1"),
        (&[("x-forwarded-for", "2001:db8::1")], "2001:db8::1"),
        (&[("x-real-ip", "not an address")], "127.0.0.1"),
        (&[("x-real-ip", "unknown"), ("x-forwarded-for", "10.0.0.7")], "10.0.0.7"),
        (&[("x-forwarded-for", "")], "127.0.0.1"),
        (&[("x-forwarded-for", "10.0.0.7:4711, 10.0.0.8")], "10.0.0.7"),
        (&[("forwarded", "for=\"[2001:db8::1%eth0]:4711\";proto=https, for=10.0.0.8")], "2001:db8::1"),
        (&[("forwarded", "for=10.0.0.8"), ("x-forwarded-for", "10.0.0.7")], "10.0.0.7"),
    ] {
        let id = format!("ip-{}", ip.len() + headers.len() * 100 + headers.iter().map(|(_, v)| v.len()).sum::<usize>() * 1000);
        let mut headers = headers.to_vec();
        headers.push(("x-request-id", &id));
        let (_, reply) = hop.json("/service1", &headers).await;
        assert_eq!(reply["client"]["ip"], ip, "{headers:?}");
        let line = hop.access_line(&id).await;
        assert_eq!(line.split(' ').nth(1), Some(ip), "{line}");
    }
}

#[tokio::test]
async fn a_caller_over_ipv6_loopback_is_shown_as_127_0_0_1() {
    if tokio::net::TcpListener::bind("[::1]:0").await.is_err() {
        eprintln!("no IPv6 here: not tested");
        return;
    }
    let hop = Hop::start(&["--addr", "[::1]:0"], &[]);
    let (_, reply) = hop.json("/service1", &[]).await;
    assert_eq!(reply["client"]["ip"], "127.0.0.1");
}

#[tokio::test]
async fn attempt_and_identity_are_what_the_proxy_reports() {
    let hop = Hop::start(&[], &[]);
    let xfcc = "By=spiffe://c/ns/a/sa/me;Hash=1;Subject=\"\";URI=spiffe://c/ns/a/sa/caller";
    let (_, reply) = hop.json("/service1", &[("x-forwarded-client-cert", xfcc), ("x-envoy-attempt-count", "3")]).await;
    assert_eq!((&reply["client"]["identity"], &reply["attempt"]), (&json!("spiffe://c/ns/a/sa/caller"), &json!(3)));
    for attempt in ["0", "x", "-1", ""] {
        let (_, reply) = hop.json("/service1", &[("x-envoy-attempt-count", attempt)]).await;
        assert_eq!(reply["attempt"], 1, "{attempt}");
    }
}

#[tokio::test]
async fn a_request_id_is_made_when_none_is_usable() {
    let hop = Hop::start(&[], &[]);
    let long = "x".repeat(129);
    for bad in [None, Some(""), Some("two words"), Some("ünicode"), Some(long.as_str())] {
        let headers: Vec<_> = bad.map(|bad| ("x-request-id", bad)).into_iter().collect();
        let answer = hop.get("/hello", &headers).await;
        let made = answer.header("x-request-id").unwrap();
        assert!(made.len() == 36 && made.as_bytes()[14] == b'4', "{bad:?}: {made}");
    }
    let longest = "x".repeat(128);
    for good in ["~!weird\"id", longest.as_str()] {
        let answer = hop.get("/hello", &[("x-request-id", good), ("x-request-id", "second")]).await;
        assert_eq!(answer.header("x-request-id"), Some(good));
    }
}

#[tokio::test]
async fn the_simple_endpoints_say_what_they_always_said() {
    let hop = Hop::start(&["--name", "me", "--service-version", "v3"], &[]);
    let hostname = hop.json("/service1", &[]).await.1["hostname"].as_str().unwrap().to_owned();
    for (path, text) in [
        ("/", format!("You've hit v3 {hostname}\n")),
        ("/hello", format!("Hello from me v3 ({hostname})\n")),
        ("/hello/golang", "Hello, Golang!\n".to_owned()),
        ("/hello/%C3%A9mile", "Hello, Émile!\n".to_owned()),
        ("/hello/service01", "Hello, Service01!\n".to_owned()),
        ("/hello/a%2Fb", "Hello, A/b!\n".to_owned()),
        ("/healthz", "ok\n".to_owned()),
        ("/readyz", "ok\n".to_owned()),
    ] {
        let get = hop.get(path, &[]).await;
        assert_eq!((get.status, get.text()), (200, text), "{path}");
        let head = hop.request("HEAD", path, &[]).await;
        assert_eq!(
            (head.status, head.header("content-length"), head.body.len()),
            (200, get.header("content-length"), 0),
            "{path}"
        );
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        for answer in [get, head] {
            assert_eq!(answer.header("version"), Some("v3"), "{path}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
            assert!(answer.header("x-request-id").is_some() && answer.header("traceresponse").is_none(), "{path}");
        }
    }
    for path in ["/service1", "/metrics", "/headers"] {
        let head = hop.request("HEAD", path, &[]).await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
    }
}

#[tokio::test]
async fn what_the_hop_does_not_answer_is_a_problem_document() {
    let hop = Hop::start(&[], &[]);
    for path in [
        "/nothing",
        "/hello/",
        "/hello/a/b",
        "/service",
        "/service01",
        "/service10000",
        "/service-1",
        "/service%30%31",
        "/service%3",
        "/%73ervice1",
        "/service1/",
        "/serviceX",
        "/metrics/",
        "//",
        "/Service1",
        "/healthz/x",
        "/hello/service1/x",
    ] {
        hop.get(path, &[]).await.assert_problem(404);
    }
    for path in ["/", "/hello", "/hello/x", "/service1", "/hello/service1", "/headers", "/healthz", "/readyz", "/metrics"] {
        // The chain answers the methods that have a body.
        let is_chain = path.ends_with("service1");
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"].into_iter().skip(if is_chain { 3 } else { 0 }) {
            let answer = hop.request(method, path, &[("content-length", "0")]).await;
            answer.assert_problem(405);
            let mut allowed: Vec<_> = answer.header("allow").unwrap_or_default().split(',').map(str::trim).collect();
            allowed.sort_unstable();
            let expected = if is_chain { &["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"][..] } else { &["GET", "HEAD"] };
            assert_eq!(allowed, expected, "{method} {path}");
        }
    }
    // A name that is no UTF-8 is nobody's: still a problem document.
    let answer = hop.get("/hello/%ff", &[]).await;
    assert!((400..500).contains(&answer.status), "{}", answer.status);
    answer.assert_problem(answer.status);
}

#[tokio::test]
async fn a_service_without_a_number_is_not_found_at_once_and_no_fault_is_its_own() {
    let hop = Hop::start(&["--latency", "1h", "--fault", "abort=503@100%"], &[]);
    for path in ["/service01", "/serviceX", "/service%301"] {
        hop.get(path, &[]).await.assert_problem(404);
    }
}

#[tokio::test]
async fn an_address_that_is_carried_is_read_all_the_same() {
    let hop = Hop::start(&["--forward-header", "x-real-ip"], &[]);
    let (_, reply) = hop.json("/service1", &[("x-real-ip", "10.0.0.9"), ("x-forwarded-for", "10.0.0.7")]).await;
    assert_eq!((&reply["client"]["ip"], &reply["received"]["x-real-ip"]), (&"10.0.0.9".into(), &json!(["10.0.0.9"])));
}

#[tokio::test]
async fn a_number_that_is_percent_encoded_is_the_same_number() {
    let upstream = Upstream::answering(answer("200 OK", "", "")).await;
    let hop = Hop::start(&["--upstream", &format!("http://{}", upstream.addr)], &[]);
    for path in ["/service%31", "/service1%31", "/hello/service%31"] {
        let reply = hop.get(path, &[("accept", "application/json")]).await.json();
        assert_eq!(reply["path"], path);
        let next = if path.contains("1%31") { "service12" } else { "service2" };
        assert_eq!(reply["upstreams"][0]["url"], format!("http://{}/{next}", upstream.addr), "{path}");
    }
    for (path, who) in [("/hello/service01", "Service01"), ("/hello/service%301", "Service01"), ("/hello/%73ervice1", "Service1")]
    {
        assert_eq!(hop.get(path, &[]).await.text(), format!("Hello, {who}!\n"), "{path}");
    }
}

#[tokio::test]
async fn too_much_is_refused_as_a_problem_document() {
    let hop = Hop::start(&[], &[]);
    let post = |head: &str, body: &[u8]| {
        let mut bytes = format!("GET /hello HTTP/1.1\r\nhost: a\r\n{head}\r\n").into_bytes();
        bytes.extend(body);
        bytes
    };
    let fits = exchange(hop.addr, &post("content-length: 65536\r\n", &[b'x'; 65536])).await;
    assert_eq!(fits.status, 200);
    exchange(hop.addr, &post("content-length: 65537\r\n", &[b'x'; 65537])).await.assert_problem(413);
    let mut chunked = b"10001\r\n".to_vec();
    chunked.extend([b'x'; 65537]);
    chunked.extend(b"\r\n0\r\n\r\n");
    exchange(hop.addr, &post("transfer-encoding: chunked\r\n", &chunked)).await.assert_problem(413);

    let answer = exchange(hop.addr, &post(&format!("x-large: {}\r\n", "x".repeat(32 << 10)), b"")).await;
    assert_eq!((answer.status, answer.header("content-type")), (431, Some("application/problem+json")));
    let fields: String = (0..101).map(|i| format!("x-{i}: 1\r\n")).collect();
    let answer = exchange(hop.addr, &post(&fields, b"")).await;
    assert_eq!((answer.status, answer.header("content-type")), (431, Some("application/problem+json")));
    let fields: String = (0..99).map(|i| format!("x-{i}: 1\r\n")).collect();
    assert_eq!(exchange(hop.addr, &post(&fields, b"")).await.status, 200);
}

#[tokio::test]
async fn overload_is_refused_at_once_and_probes_are_exempt() {
    let hanging = Upstream::start(|_| vec![Act::Hang]).await;
    let hop = Arc::new(Hop::start(&["--max-concurrency", "2", "--upstream", &hanging.url(), "--upstream-timeout", "60s"], &[]));
    for _ in 0..2 {
        let hop = hop.clone();
        tokio::spawn(async move { hop.get("/service1", &[]).await });
    }
    eventually("both requests are in flight", || async { (hanging.heads().len() == 2).then_some(()) }).await;
    for path in ["/service1", "/hello", "/"] {
        let refused = hop.get(path, &[]).await;
        refused.assert_problem(503);
        assert!(refused.header("retry-after").unwrap().parse::<u32>().is_ok());
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(hop.get(path, &[]).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn next_hops_that_hang_take_no_place_from_requests_that_call_nobody() {
    let hanging = Upstream::start(|_| vec![Act::Hang]).await;
    let flags = ["--max-concurrency", "16", "--upstream", &hanging.url(), "--upstream-timeout", "60s"];
    let hop = Arc::new(Hop::start(&flags, &[]));
    for _ in 0..16 {
        let hop = hop.clone();
        tokio::spawn(async move { hop.get("/service1", &[]).await });
    }
    eventually("every place is taken", || async { (hanging.heads().len() == 16).then_some(()) }).await;
    hop.get("/service1", &[]).await.assert_problem(503);
    for path in ["/hello", "/", "/hello/x", "/headers"] {
        assert_eq!(hop.get(path, &[]).await.status, 200, "{path}");
    }
    hop.get("/nothing", &[]).await.assert_problem(404);

    // Their own places are limited as well: an eighth of the others.
    let slow = ["--max-concurrency", "16", "--latency", "1h", "--upstream", "http://127.0.0.1:9"];
    let slow = Arc::new(Hop::start(&slow, &[]));
    for _ in 0..18 {
        let hop = slow.clone();
        tokio::spawn(async move { hop.get("/hello", &[]).await });
    }
    eventually("all wait", || async { (slow.metrics().await.sum("http_server_active_requests", &[]) >= 19.0).then_some(()) })
        .await;
    for path in ["/hello", "/headers", "/service1"] {
        slow.get(path, &[]).await.assert_problem(503);
    }
}

#[tokio::test]
async fn no_request_header_is_copied_into_an_answer() {
    let hop = Hop::start(&[], &[]);
    let mine =
        [("x-request-id", "r"), ("x-mine", "1"), ("baggage", "a=b"), ("x-lane", "gray"), ("cookie", "c=d"), ("version", "x")];
    let trace = [("traceparent", "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01"), ("tracestate", "v=1")];
    for path in ["/", "/hello", "/service1", "/headers", "/nothing"] {
        let answer = hop.get(path, &[&mine[..], &trace].concat()).await;
        let mut names: Vec<_> = answer.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let mut expected =
            vec!["content-length", "content-type", "date", "traceresponse", "version", "x-content-type-options", "x-request-id"];
        if path == "/service1" {
            expected.insert(4, "vary");
        }
        assert_eq!(names, expected, "{path}");
        assert_eq!((answer.header("version"), answer.header("x-request-id")), (Some("v1"), Some("r")), "{path}");
        assert_eq!(answer.header("traceresponse"), Some(trace[0].1), "{path}");
    }
}

#[tokio::test]
async fn an_abort_calls_no_upstream_and_a_delay_comes_first() {
    let upstream = Upstream::answering(answer("200 OK", "", "")).await;
    let flags = ["--upstream", &upstream.url(), "--fault", "abort=418@100%", "--fault", "delay=150ms@100%", "--latency", "50ms"];
    let hop = Hop::start(&flags, &[]);
    for path in ["/service1", "/hello/service1"] {
        let begun = Instant::now();
        let (status, reply) = hop.json(path, &[]).await;
        assert!(begun.elapsed() >= Duration::from_millis(200));
        assert_eq!((status, &reply["status"], &reply["upstreams"]), (418, &json!(418), &json!([])), "{path}");
        assert_eq!(reply["injected"], json!({"delay_ms": 150, "abort_status": 418}), "{path}");
        assert!(reply["duration_ms"].as_f64().unwrap() >= 200.0, "{path}");
    }
    for path in ["/", "/hello", "/hello/x"] {
        assert_eq!(hop.get(path, &[]).await.status, 418, "{path}");
    }
    assert!(upstream.heads().is_empty());
    for path in ["/headers", "/healthz", "/readyz", "/metrics"] {
        assert_eq!(hop.get(path, &[]).await.status, 200, "{path} is never faulted");
    }
}

#[tokio::test]
async fn an_injected_status_wins_over_nothing_but_its_own_hop() {
    let below = Hop::start(&["--name", "service2", "--fault", "abort=503@100%"], &[]);
    let front = Hop::start(&["--upstream", &below.url("")], &[]);
    let (status, reply) = front.json("/service1", &[]).await;
    assert_eq!(status, 502);
    let call = &reply["upstreams"][0];
    assert_eq!((&call["status"], &call["reply"]["injected"]), (&json!(503), &json!({"abort_status": 503})));
    assert_eq!(reply["injected"], Value::Null);
}

#[tokio::test]
async fn fault_rates_are_exact_within_statistics() {
    const ROLLS: usize = 400;
    for (share, percent) in [(0.0, "0"), (0.3, "30"), (0.6, "60"), (1.0, "100")] {
        let hop = Hop::start(&["--fault", &format!("abort=503@{percent}%")], &[]);
        let mut struck = 0.0;
        for _ in 0..ROLLS {
            struck += f64::from(hop.get("/hello", &[]).await.status == 503);
        }
        let expected = ROLLS as f64 * share;
        // Five standard deviations: one honest run in two million fails.
        assert!((struck - expected).abs() <= 5.0 * (expected * (1.0 - share)).sqrt(), "{percent}%: {struck}");
    }
}

#[tokio::test]
async fn without_an_exporter_the_reply_shows_the_ids_that_arrived() {
    let hop = Hop::start(&[], &[]);
    let (t, s, p) = ("463ac35c9f6413ad48485a3953bb6124", "a2fb4a1d1a96d312", "0020000000000001");
    let (w3c, single, short) = (format!("00-{t}-{s}-00"), format!("{t}-{s}-d-{p}"), format!("{:0>32}", &t[16..]));
    let ids = [("x-b3-traceid", &t[16..]), ("x-b3-spanid", s)];
    let with = |more: &[(&'static str, &'static str)]| [&ids[..], more].concat();
    for (headers, expected) in [
        (vec![("traceparent", &*w3c)], json!([t, s, null, false])),
        (vec![("b3", &*single)], json!([t, s, p, true])),
        (with(&[]), json!([short, s, null, null])),
        (with(&[("x-b3-parentspanid", "0020000000000001"), ("x-b3-sampled", "1")]), json!([short, s, p, true])),
        (vec![], json!([null, null, null, null])),
    ] {
        let (_, reply) = hop.json("/service1", &headers).await;
        let shown = json!([reply["trace_id"], reply["span_id"], reply["parent_span_id"], reply["sampled"]]);
        assert_eq!((shown, &reply["propagation"]), (expected, &json!("forward")), "{headers:?}");
    }
}

#[tokio::test]
async fn odd_but_valid_requests_are_answered() {
    let hop = Hop::start(&[], &[]);
    for (line, status) in [
        ("GET http://other/hello HTTP/1.1", 200),
        ("GET http://other HTTP/1.1", 200),
        ("GET /hello? HTTP/1.1", 200),
        ("GET /?x=1 HTTP/1.1", 200),
        ("GET /hello HTTP/1.0", 200),
        ("OPTIONS * HTTP/1.1", 404),
        ("CONNECT other:80 HTTP/1.1", 404),
        ("TRACE /hello HTTP/1.1", 405),
    ] {
        let answer = exchange(hop.addr, format!("{line}\r\nhost: a\r\n\r\n").as_bytes()).await;
        assert_eq!(answer.status, status, "{line}: {}", answer.text());
    }
    assert_eq!(hop.stdout().iter().filter(|line| line.contains(" 500 ")).count(), 0);
    assert!(!hop.stderr().iter().any(|line| line.contains("panicked")), "{:?}", hop.stderr());
}

#[tokio::test]
async fn an_ipv6_next_hop_is_called_by_its_address_in_brackets() {
    let upstream = Upstream::start_at("[::1]:0", |_| vec![Act::Send(answer("200 OK", "", "ok"))]).await;
    let port = upstream.addr.port();
    let front = Hop::start(&["--upstream", &format!("http://[::1]:{port}")], &[]);
    let (status, reply) = front.json("/service1", &[]).await;
    assert_eq!((status, &reply["upstreams"][0]["url"]), (200, &json!(format!("http://[::1]:{port}/service2"))), "{reply}");
    assert_eq!(upstream.heads()[0].one("host"), Some(format!("[::1]:{port}")));
}
