//! What a request asks for beside the chain: the form and the size of the answer, and bodies that are read, counted and passed on.

use crate::common::{Act, Answer, Hop, Upstream, answer, chain, exchange};
use serde_json::{Value, json};

async fn send(hop: &Hop, method: &str, path: &str, fields: &str, body: &str) -> Answer {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: hop\r\n{fields}content-length: {}\r\n\r\n", body.len());
    exchange(hop.addr, [head.as_bytes(), body.as_bytes()].concat().as_slice()).await
}

#[tokio::test]
async fn the_form_is_chosen_by_the_query_and_else_by_accept() {
    let hop = Hop::start(&[], &[]);
    for (path, accept, media_type) in [
        ("/service1", "*/*", "text/plain; charset=utf-8"),
        ("/service1", "application/json", "application/json"),
        ("/service1?format=json", "*/*", "application/json"),
        ("/hello/service1?a=1&format=json", "text/plain", "application/json"),
        ("/service1?format=text", "application/json", "text/plain; charset=utf-8"),
    ] {
        let answer = hop.get(path, &[("accept", accept)]).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(media_type)), "{path} {accept}");
        assert_eq!(answer.header("vary"), Some("accept"), "{path}");
    }
    assert_eq!(hop.get("/metrics", &[]).await.header("vary"), Some("accept"));
    for bad in ["format=xml", "format=", "bytes=x", "bytes=1025KiB", "bytes=-1"] {
        let answer = hop.get(&format!("/service1?{bad}"), &[]).await;
        answer.assert_problem(400);
        assert!(answer.text().contains("format is json or text; bytes is a size up to 1MiB"), "{bad}: {}", answer.text());
    }
    // A path that is none is 404 whatever its query, and other endpoints have no such parameters.
    hop.get("/service01?format=xml", &[]).await.assert_problem(404);
    assert_eq!(hop.get("/hello?format=xml", &[]).await.status, 200);
}

#[tokio::test]
async fn methods_with_a_body_are_answered_and_their_bytes_counted() {
    let hops = chain(2, &[], &[]);
    for method in ["POST", "PUT", "PATCH", "DELETE", "GET"] {
        for path in ["/service1?format=json", "/hello/service1?format=json"] {
            let answer = send(&hops[0], method, path, "", "twelve bytes").await;
            assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
            let reply = answer.json();
            assert_eq!((&reply["request_bytes"], &reply["path"]), (&json!(12), &json!(path.split('?').next().unwrap())));
            let below = &reply["upstreams"][0]["reply"];
            assert_eq!(below["request_bytes"], 0, "{method}: without --forward-body it does not go on");
        }
    }
    let chunked =
        b"POST /service1?format=json HTTP/1.1\r\nhost: hop\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(exchange(hops[0].addr, chunked).await.json()["request_bytes"], 5);
    send(&hops[0], "POST", "/service1", "", &"x".repeat((64 << 10) + 1)).await.assert_problem(413);
    let answer = hops[0].request("OPTIONS", "/service1", &[]).await;
    answer.assert_problem(405);
    let allow = answer.header("allow").unwrap();
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
        assert!(allow.split(',').any(|allowed| allowed == method), "{allow}");
    }
    // Paths that take no body are as they were.
    send(&hops[0], "POST", "/hello", "", "x").await.assert_problem(405);
    send(&hops[0], "POST", "/service01", "", "x").await.assert_problem(404);
}

#[tokio::test]
async fn a_body_goes_on_where_it_is_asked_for_and_keeps_its_method_and_type() {
    // The scripted server reads no bodies: each request has a connection of its own.
    let last = Upstream::start(|_| vec![Act::Send(answer("200 OK", "connection: close\r\n", "")), Act::Close]).await;
    let middle = Hop::start(&["--forward-body", "--upstream", &last.url()], &[]);
    let front = Hop::start(&["--upstream", &middle.url("")], &[("FORWARD_BODY", "true")]);
    let body = r#"{"a":1}"#;
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let answer = send(&front, method, "/service1?format=json", "content-type: application/json\r\n", body).await;
        let reply = answer.json();
        let below = &reply["upstreams"][0]["reply"];
        assert_eq!((&reply["request_bytes"], &below["request_bytes"]), (&json!(7), &json!(7)), "{method}: {reply}");
        let heads = last.heads();
        let head = heads.last().unwrap();
        assert_eq!(head.line, format!("{method} /service3 HTTP/1.1"));
        assert_eq!((head.one("content-type"), head.one("content-length")), (Some("application/json".into()), Some("7".into())));
    }
    assert_eq!(front.json("/service1", &[]).await.0, 200);
    assert_eq!(last.heads().last().unwrap().line, "GET /service3 HTTP/1.1");
    let samples = front.metrics().await;
    for method in ["POST", "PUT", "PATCH", "DELETE", "GET"] {
        let count = samples.sum("http_client_request_duration_seconds_count", &[("http_request_method", method)]);
        assert_eq!(count, 1.0, "{method}");
    }
}

#[tokio::test]
async fn a_post_whose_connection_died_is_not_sent_twice() {
    let last = Upstream::start(|head| match head.line.starts_with("GET") {
        true => vec![Act::Send(answer("200 OK", "", ""))],
        false => vec![Act::Close],
    })
    .await;
    let hop = Hop::start(&["--forward-body", "--upstream", &last.url()], &[]);
    // The answer leaves a connection that is used again.
    assert_eq!(hop.json("/service1", &[]).await.0, 200);
    let answer = send(&hop, "POST", "/service1?format=json", "", "x").await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    let posts = last.heads().iter().filter(|head| head.line.starts_with("POST")).count();
    assert_eq!(posts, 1);
}

#[tokio::test]
async fn an_answer_is_as_long_as_asked_and_padding_never_adds_up() {
    let hops = chain(3, &["--response-size", "100KiB"], &[]);
    let answer = hops[0].get("/service1?format=json", &[]).await;
    assert_eq!(answer.body.len(), 100 << 10);
    let reply = answer.json();
    let padding = reply["padding"].as_str().unwrap();
    assert!(padding.len() > 90 << 10);
    let below = &reply["upstreams"][0]["reply"];
    assert_eq!((&below["service"], &below["padding"]), (&json!("service2"), &Value::Null), "a calling hop drops it");
    assert_eq!(below["upstreams"][0]["reply"]["service"], "service3");
    for (size, bytes) in [("1MiB", 1 << 20), ("300000", 300_000)] {
        let answer = hops[0].get(&format!("/service1?bytes={size}&format=json"), &[]).await;
        assert_eq!((answer.status, answer.body.len()), (200, bytes));
        let answer = hops[0].get(&format!("/service1?bytes={size}"), &[]).await;
        assert_eq!((answer.status, answer.body.len()), (200, bytes), "as text, too");
    }
    let small = hops[0].get("/service1?bytes=0&format=json", &[]).await.json();
    assert_eq!(small["padding"], Value::Null);
    // A client above reads it, and a hop above takes the largest one.
    let above = Hop::start(&["--upstream", &format!("{}?bytes=1MiB", hops[2].url("/service3"))], &[]);
    let (status, reply) = above.json("/service1", &[]).await;
    assert_eq!((status, &reply["upstreams"][0]["reply"]["service"]), (200, &json!("service3")));
}

#[tokio::test]
async fn a_call_is_as_long_as_asked() {
    let last = Hop::start(&[], &[]);
    let hop = Hop::start(&["--upstream", &last.url(""), "--request-size", "10KiB"], &[]);
    let (status, reply) = hop.json("/service1", &[]).await;
    assert_eq!((status, &reply["upstreams"][0]["reply"]["request_bytes"]), (200, &json!(10 << 10)));
    let passing = Hop::start(&["--upstream", &last.url(""), "--request-size", "10KiB", "--forward-body"], &[]);
    let reply = send(&passing, "POST", "/service1?format=json", "", "abc").await.json();
    assert_eq!(reply["upstreams"][0]["reply"]["request_bytes"], 3, "a body that is passed on is as it was");
}

#[tokio::test]
async fn a_reply_names_the_place_of_its_hop() {
    let attributes = "k8s.node.name=node-1,cloud.availability_zone=north-a,cloud.region=north,k8s.cluster.name=one";
    let hop = Hop::start(&[], &[("OTEL_RESOURCE_ATTRIBUTES", attributes)]);
    let reply = hop.json("/service1", &[]).await.1;
    let place = ["node", "zone", "region", "cluster"].map(|field| reply[field].as_str().unwrap().to_owned());
    assert_eq!(place, ["node-1", "north-a", "north", "one"]);
    let nowhere = Hop::start(&[], &[]).json("/service1", &[]).await.1;
    assert!(["node", "zone", "region", "cluster"].iter().all(|field| nowhere[*field].is_null()), "{nowhere}");
}
