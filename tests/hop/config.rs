//! Configuration: what cannot be read is a clear error and exit code 2; flags win over variables; an empty variable is none.

use std::os::unix::ffi::OsStringExt as _;

use crate::common::{Hop, Ran, Upstream, answer, httpserver, run, run_command};

/// Asserts exit code 2 and these parts on stderr; nothing was started. The first line is the error, from clap or from us.
fn assert_refused(ran: &Ran, parts: &[&str]) {
    assert_eq!(ran.code, Some(2), "{parts:?}: {ran:?}");
    assert_eq!(ran.stdout, "", "{parts:?}");
    assert!(ran.stderr.starts_with("error: ") || ran.stderr.starts_with("httpserver: "), "{}", ran.stderr);
    assert!(ran.stderr.ends_with('\n') && ran.stderr.lines().count() <= 12, "{}", ran.stderr);
    for part in parts {
        assert!(ran.stderr.contains(part), "'{part}' is not in: {}", ran.stderr);
    }
}

/// Flag, variable, bad value, and a part of what is accepted.
const BAD: &[(&str, &str, &str, &str)] = &[
    ("--addr", "ADDR", "nowhere", ":8080"),
    ("--addr", "ADDR", "localhost:8080", ":8080"),
    ("--addr", "ADDR", ":99999", ":8080"),
    ("--addr", "ADDR", "8080", ":8080"),
    ("--service-version", "VERSION", "a\tb", "printable"),
    ("--lane", "LANE", "ümlaut", "printable"),
    ("--name", "SERVICE_NAME", "a\u{1b}b", "printable"),
    ("--upstream", "UPSTREAM", "service2:8080", "http://"),
    ("--upstream", "UPSTREAM", "ftp://service2", "grpcs://"),
    ("--upstream", "UPSTREAM", "http://", "http://"),
    ("--upstream", "UPSTREAM", "http://service2:99999", "http://"),
    ("--fan-out", "FAN_OUT", "both", "parallel, sequential"),
    ("--fan-out", "FAN_OUT", "parallel=0", "from 1 to 1000"),
    ("--upstream", "UPSTREAM", "120%=http://a", "0% to 100%"),
    ("--request-faults", "REQUEST_FAULTS", "yes", "off, on, token"),
    ("--seed", "SEED", "first", "accepted: a whole number from 0 to"),
    ("--ready-after", "READY_AFTER", "20", "a number with a unit"),
    ("--retries", "RETRIES", "11", "a whole number from 0 to 10"),
    ("--admin-addr", "ADMIN_ADDR", "9901", "127.0.0.1:8080"),
    ("--upstream-timeout", "UPSTREAM_TIMEOUT", "0", "longer than 0"),
    ("--upstream-timeout", "UPSTREAM_TIMEOUT", "5", "a number with a unit"),
    ("--latency", "LATENCY", "10s..2s", "low..high"),
    ("--latency", "LATENCY", "fast", "20ms"),
    ("--latency", "LATENCY", "-5ms", "20ms"),
    ("--latency", "LATENCY", "2h", "longer than an hour"),
    ("--latency", "LATENCY", "p50=80ms,p90=20ms", "rising"),
    ("--latency", "LATENCY", "p101=1s", "p0 and p100"),
    ("--fault", "FAULT", "abort=503@110%", "0% to 100%"),
    ("--fault", "FAULT", "abort=503@-1%", "0% to 100%"),
    ("--fault", "FAULT", "abort", "abort=503"),
    ("--fault", "FAULT", "abort=503@10", "@10%"),
    ("--fault", "FAULT", "hang=1s", "takes no value"),
    ("--fault", "FAULT", "limit=10", "limit=10/s"),
    ("--fault", "FAULT", "memory=1TB", "4096MiB"),
    ("--fault", "FAULT", "new-trace", "abort=503, delay=2s, reset"),
    ("--break", "BREAK", "new-tracer", "stale-parent, new-trace"),
    ("--break", "BREAK", "new-trace@200%", "0% to 100%"),
    ("--break", "BREAK", "new-trace@5", "invalid value 'new-trace@5'"),
    ("--break", "BREAK", "join=x-mine@5%", "invalid value 'join=x-mine@5%'"),
    ("--break", "BREAK", "duplicate", "duplicate=traceparent"),
    ("--break", "BREAK", "join=x-mine", "traceparent"),
    ("--fault", "FAULT", "abort=200@10%", "400 to 599"),
    ("--fault", "FAULT", "explode@10%", "delay=2s"),
    ("--forward-header", "FORWARD_HEADERS", "two words", "header name"),
    ("--drop-header", "DROP_HEADERS", "x-mine", "traceparent"),
    ("--max-hops", "MAX_HOPS", "0", "a whole number from 1 to 256"),
    ("--max-hops", "MAX_HOPS", "many", "a whole number from 1 to 256"),
    ("--max-hops", "MAX_HOPS", "257", "256"),
    ("--max-calls", "MAX_CALLS", "0", "1"),
    ("--max-calls", "MAX_CALLS", "many", ""),
    ("--max-concurrency", "MAX_CONCURRENCY", "0", "from 1 on"),
    ("--max-connections", "MAX_CONNECTIONS", "-1", "from 1 on"),
    ("--header-timeout", "HEADER_TIMEOUT", "0", "longer than 0"),
    ("--idle-timeout", "IDLE_TIMEOUT", "long", "5m"),
    ("--drain-delay", "DRAIN_DELAY", "ten", "20ms"),
    ("--drain-timeout", "DRAIN_TIMEOUT", "20", "a number with a unit"),
    ("--flush-timeout", "FLUSH_TIMEOUT", "3 parsecs", "20ms"),
    ("--log-format", "LOG_FORMAT", "xml", "text, json"),
];

#[test]
fn every_bad_value_is_an_error_that_names_flag_variable_value_and_what_is_accepted() {
    for (flag, variable, value, accepted) in BAD {
        let shown = value.escape_debug().to_string();
        let parts = [*flag, variable, &shown, accepted];
        assert_refused(&run(&["serve", &format!("{flag}={value}")], &[]), &parts);
        assert_refused(&run(&["serve"], &[(variable, value)]), &parts);
        assert_refused(&run(&[], &[(variable, value)]), &parts);
    }
}

#[test]
fn flags_of_telemetry_are_as_strict_as_others() {
    assert_refused(
        &run(&["serve", "--trace-exporter=jaeger"], &[]),
        &["--trace-exporter", "jaeger", "none, zipkin, otlp, console"],
    );
    assert_refused(&run(&["serve"], &[("RUST_LOG", "httpserver=loud")]), &["RUST_LOG", "error, warn, info, debug, trace"]);
}

#[tokio::test]
async fn variables_of_opentelemetry_that_cannot_be_used_are_warned_about_and_the_hop_serves() {
    let otlp = ("OTEL_TRACES_EXPORTER", "otlp");
    let (metrics, logs) = (("OTEL_METRICS_EXPORTER", "otlp"), ("OTEL_LOGS_EXPORTER", "otlp"));
    let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    for (env, accepted) in [
        (&[("OTEL_TRACES_EXPORTER", "jaeger")][..], "zipkin, otlp"),
        (&[otlp, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json")], "http/protobuf"),
        (&[otlp, ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip")], "gzip"),
        (&[otlp, ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")], "milliseconds"),
        (&[otlp, ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")], "http://"),
        (&[("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", "zipkin:9411")], "http://"),
        (&[("OTEL_PROPAGATORS", "jaeger")], "tracecontext"),
        (&[("OTEL_TRACES_SAMPLER", "sometimes")], "always_on"),
        (&[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")], "0 to 1"),
        (&[("OTEL_BSP_MAX_QUEUE_SIZE", "0")], "from 1 on"),
        (&[("OTEL_BSP_SCHEDULE_DELAY", "1s")], "milliseconds"),
        (&[("OTEL_RESOURCE_ATTRIBUTES", "nothing")], "key=value"),
        (&[("OTEL_RESOURCE_ATTRIBUTES", "a=1,=x")], "a key is empty"),
        (&[("OTEL_RESOURCE_ATTRIBUTES", "a=1,b=%zz")], "percent-encoded"),
        (&[("OTEL_BSP_EXPORT_TIMEOUT", "1000")], "not supported"),
        (&[("OTEL_LOG_LEVEL", "debug")], "RUST_LOG"),
        (&[("OTEL_EXPORTER_PROMETHEUS_PORT", "9464")], "/metrics"),
        (&[otlp, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")], "http/protobuf, grpc"),
        (&[grpc, otlp, ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:x")], "http://"),
        (&[("OTEL_METRICS_EXPORTER", "console")], "otlp, prometheus"),
        (&[metrics, ("OTEL_METRIC_EXPORT_INTERVAL", "60s")], "milliseconds"),
        (&[metrics, ("OTEL_METRIC_EXPORT_TIMEOUT", "-1")], "from 0 to 4294967295"),
        (&[metrics, ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "both")], "lowmemory"),
        (&[metrics, ("OTEL_METRICS_EXEMPLAR_FILTER", "always_on")], "always_off"),
        (&[("OTEL_LOGS_EXPORTER", "loki")], "otlp, console"),
        (&[logs, ("OTEL_BLRP_MAX_QUEUE_SIZE", "0")], "from 1 on"),
        (&[logs, ("OTEL_BLRP_SCHEDULE_DELAY", "1s")], "milliseconds"),
        // For all signals, and said once.
        (&[metrics, logs, otlp, ("OTEL_EXPORTER_OTLP_TIMEOUT", "1m")], "milliseconds"),
        (&[("OTEL_CONFIG_FILE", "/etc/otel.yaml")], "not supported"),
        (&[("OTEL_SDK_DISABLED", "1")], "true, false"),
        (&[("OTEL_SERVICE_NAME", "two\nlines")], "names the spans, but not the hop"),
        (&[otlp, grpc, ("OTEL_EXPORTER_OTLP_TIMEOUT", "9999999999999")], "from 0 to 4294967295"),
    ] {
        let hop = Hop::start(if env[0].0 == "OTEL_SDK_DISABLED" { &["--trace-exporter", "console"] } else { &[] }, env);
        let (variable, value) = env.last().unwrap();
        let value = value.escape_debug().to_string();
        let names_all = |line: &String| [variable, value.as_str(), accepted].iter().all(|part| line.contains(part));
        assert_eq!(hop.stderr().iter().filter(|line| names_all(line) && line.contains("WARN")).count(), 1, "{:#?}", hop.stderr());
        assert_eq!(hop.get("/hello", &[]).await.status, 200);
    }
    let env = [otlp, ("OTEL_EXPORTER_OTLP_HEADERS", "Content-Length=1,x-tenant=a")];
    let lines = Hop::start(&[], &env).stderr();
    assert!(lines.iter().any(|line| line.contains("Content-Length") && line.contains("sets this header")), "{lines:#?}");
    // A secret is not repeated, also in what is no header of HTTP.
    for headers in ["s3cret", "two words=s3cret"] {
        let hop = Hop::start(&[], &[otlp, ("OTEL_EXPORTER_OTLP_HEADERS", headers)]);
        let lines = hop.stderr();
        assert!(lines.iter().any(|line| line.contains("OTEL_EXPORTER_OTLP_HEADERS") && line.contains("accepted")), "{lines:#?}");
        assert!(!lines.iter().any(|line| line.contains("s3cret")), "{lines:#?}");
    }
}

#[test]
fn a_wrong_url_is_named_without_its_password_and_query() {
    for wrong in [
        "http://u:s3cret@service2:99999/x?token=s3cret",
        "ftp://service2?token=s3cret",
        "http://u:s3/cret@service2",
        "http://u:x?s3cret@service2",
        "u:s3cret@service2",
    ] {
        let mut refused = vec![run(&["serve", "--upstream", wrong], &[]), run(&["serve"], &[("UPSTREAM", wrong)])];
        refused.extend([run(&["check", wrong], &[]), run(&["check", "http://127.0.0.1:1/service1", "--traces", wrong], &[])]);
        refused.push(run(&["health", wrong], &[]));
        for ran in refused {
            assert_eq!(ran.code, Some(2), "{wrong}: {ran:?}");
            assert!(!format!("{ran:?}").contains("s3cret") && !format!("{ran:?}").contains("cret@"), "{wrong}: {ran:?}");
        }
        for name in ["OTEL_EXPORTER_ZIPKIN_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
            let exporters = ("OTEL_TRACES_EXPORTER", "zipkin,otlp");
            let lines = Hop::start(&[], &[exporters, (name, wrong)]).stderr().join("\n");
            assert!(lines.contains(name) && !lines.contains("s3cret") && !lines.contains("cret@"), "{lines}");
        }
    }
    let refused = run(&["serve", "--upstream", "http://u:s3cret@service2"], &[]);
    assert_refused(&refused, &["--upstream", "'http://***@service2'", "user name"]);
}

#[test]
fn a_value_that_is_no_text_is_refused() {
    let not_text = || std::ffi::OsString::from_vec(b"a\xffb".to_vec());
    for variable in ["ADDR", "SERVICE_NAME", "UPSTREAM", "RUST_LOG"] {
        let mut command = httpserver();
        command.arg("serve").env_clear().env(variable, not_text());
        assert_refused(&run_command(command), &[variable]);
    }
    let mut command = httpserver();
    command.args(["serve", "--name"]).arg(not_text()).env_clear();
    assert_refused(&run_command(command), &[]);
    // Those of OpenTelemetry are warned about: here the address is what ends it.
    for variable in ["OTEL_PROPAGATORS", "OTEL_SERVICE_NAME", "OTEL_BSP_SCHEDULE_DELAY", "OTEL_TRACES_EXPORTER"] {
        let mut command = httpserver();
        command.args(["serve", "--addr", "192.0.2.1:1"]).env_clear().env(variable, not_text());
        let ran = run_command(command);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains(variable) && ran.stderr.contains("not UTF-8"), "{ran:?}");
    }
}

#[test]
fn wrong_usage_says_what_to_do() {
    for (args, parts) in [
        (&["serve", "--upstreams", "x"][..], &["--upstreams", "--upstream"][..]),
        (&["--nope"], &["--nope", "--help"]),
        (&["serve", "extra"], &["extra", "--help"]),
        (&["server"], &["server", "serve", "--help"]),
        (&["dmeo"], &["dmeo", "demo"]),
        (&["check"], &["<URL>", "--help"]),
        (&["serve", "--name"], &["--name"]),
        (&["serve", "-v", "-q"], &["--help"]),
        (&["serve", "--max-hops", "1", "--max-hops", "2"], &["--max-hops"]),
        (&["health", "not a url"], &["not a url", "http://"]),
    ] {
        assert_refused(&run(args, &[]), parts);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for args in
        [&["--help"][..], &["-h"], &["help"], &["serve", "--help"], &["health", "--help"], &["help", "demo"], &["help", "check"]]
    {
        let ran = run(args, &[]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(ran.stdout.contains("Usage: httpserver"), "{args:?}: {}", ran.stdout);
    }
    let ran = run(&["--version"], &[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), concat!("httpserver ", env!("CARGO_PKG_VERSION"), "\n")));
    // Wrong variables do not keep anybody from reading how it is done.
    assert_eq!(run(&["serve", "--help"], &[("ADDR", "nowhere")]).code, Some(0));
}

#[tokio::test]
async fn a_flag_wins_over_its_variable_and_a_variable_over_the_default() {
    let env = [("SERVICE_NAME", "env"), ("VERSION", "v2"), ("LANE", "gray"), ("LOG_FORMAT", "json"), ("ADDR", "127.0.0.1:1")];
    let hop = Hop::start(&["--name", "flag", "--lane", "blue"], &env);
    let (_, reply) = hop.json("/service1", &[("x-request-id", "r-1")]).await;
    assert_eq!((&reply["service"], &reply["version"], &reply["lane"]), (&"flag".into(), &"v2".into(), &"blue".into()));
    assert!(hop.access_line("r-1").await.starts_with('{'));
}

#[tokio::test]
async fn lists_come_repeated_or_with_commas() {
    let upstream = Upstream::answering(answer("200 OK", "", "")).await;
    let (a, b) = (format!("{}/a", upstream.url()), format!("{}/b", upstream.url()));
    let list = format!("{a},{b}");
    for (flags, env) in [
        (vec!["--upstream", &a, "--upstream", &b], vec![]),
        (vec!["--upstream", &list], vec![]),
        (vec![], vec![("UPSTREAM", list.as_str())]),
        (vec!["--upstream", &list], vec![("UPSTREAM", "http://other")]),
    ] {
        let (_, reply) = Hop::start(&flags, &env).json("/service1", &[]).await;
        let urls: Vec<_> = reply["upstreams"].as_array().unwrap().iter().map(|call| call["url"].as_str().unwrap()).collect();
        assert_eq!(urls, [&a, &b], "{flags:?} {env:?}");
    }
}

#[tokio::test]
async fn an_empty_variable_is_not_set() {
    let mut env: Vec<_> = BAD.iter().map(|(_, variable, ..)| (*variable, "")).collect();
    let others = ["OTEL_SERVICE_NAME", "OTEL_PROPAGATORS", "OTEL_TRACES_SAMPLER", "OTEL_BSP_MAX_QUEUE_SIZE", "RUST_LOG"];
    env.extend(others.map(|variable| (variable, "")));
    env.extend([("OTEL_EXPORTER_OTLP_PROTOCOL", ""), ("OTEL_RESOURCE_ATTRIBUTES", ""), ("OTEL_SDK_DISABLED", "")]);
    let hop = Hop::start(&[], &env);
    let (_, reply) = hop.json("/service1", &[]).await;
    assert_eq!((&reply["service"], &reply["version"], &reply["lane"]), (&"httpserver".into(), &"v1".into(), &"base".into()));
    assert_eq!((&reply["propagation"], &reply["upstreams"]), (&"forward".into(), &serde_json::json!([])));
}

#[tokio::test]
async fn without_a_command_it_serves() {
    // The port is taken by a hop, so the second one says which address it wanted.
    let hop = Hop::start(&[], &[]);
    let addr = hop.addr.to_string();
    for args in [&["--addr", addr.as_str()][..], &["serve", "--addr", &addr]] {
        let ran = run(args, &[]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        for part in [addr.as_str(), "the port is taken", "--addr", "ADDR"] {
            assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
        }
    }
    // The variable as well, and with no host: every address of the machine includes this one.
    let ran = run(&[], &[("ADDR", &addr)]);
    assert!(ran.code == Some(1) && ran.stderr.contains("the port is taken"), "{ran:?}");
}

#[tokio::test]
async fn health_is_0_when_the_hop_answers_and_1_when_not() {
    let hop = Hop::start(&[], &[]);
    let port = hop.addr.port().to_string();
    let code = |args: &[&str], env: &[(&str, &str)]| {
        let (args, env): (Vec<String>, Vec<(String, String)>) = (
            args.iter().map(|arg| (*arg).to_owned()).collect(),
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        );
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        run(&args, &env).code
    };
    assert_eq!(code(&["health", &hop.url("/healthz")], &[]), Some(0));
    assert_eq!(code(&["health"], &[("ADDR", &format!(":{port}"))]), Some(0));
    assert_eq!(code(&["health"], &[("ADDR", &format!("0.0.0.0:{port}"))]), Some(0));
    assert_eq!(code(&["health", "--addr", &format!("127.0.0.1:{port}")], &[]), Some(0));
    assert_eq!(code(&["health", &hop.url("/nothing")], &[]), Some(1));
    drop(hop);
    assert_eq!(code(&["health"], &[("ADDR", &format!(":{port}"))]), Some(1));
}

#[tokio::test]
async fn a_variable_that_looks_like_a_misspelt_one_is_warned_about_and_what_kubernetes_sets_is_not() {
    let misspelt = [
        ("UPSTREAMS", "http://u:s3cret@service2", "UPSTREAM"),
        ("OTEL_TRACE_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER"),
        ("PORT", "8081", "ADDR"),
        ("DROP_HEADER", "b3", "DROP_HEADERS"),
    ];
    let others = [
        ("SERVICE2_PORT", "tcp://10.96.0.2:80"),
        ("SERVICE2_SERVICE_HOST", "10.96.0.2"),
        ("SERVICE2_PORT_80_TCP_ADDR", "10.96.0.2"),
        ("UPSTREAM_PORT", "tcp://10.96.0.3:80"),
        ("KUBERNETES_PORT", "tcp://10.96.0.1:443"),
        ("LANG", "C.UTF-8"),
        ("UPSTREAM_TIMEOUT", "2s"),
    ];
    let env: Vec<_> = misspelt.iter().map(|(name, value, _)| (*name, *value)).chain(others).collect();
    let hop = Hop::start(&[], &env);
    let lines = hop.stderr();
    let warnings: Vec<_> = lines.iter().filter(|line| line.contains("did you mean")).collect();
    for (name, _, meant) in misspelt {
        let names_both =
            |line: &&&String| line.contains(&format!(" {name} ")) && line.contains(&format!("did you mean {meant}?"));
        assert_eq!(warnings.iter().filter(names_both).count(), 1, "{name}: {lines:#?}");
    }
    assert_eq!(warnings.len(), misspelt.len(), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("s3cret")), "{lines:#?}");
}

#[tokio::test]
async fn an_endpoint_that_nothing_is_sent_to_is_warned_about() {
    const ZIPKIN: (&str, &str) = ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", "http://z:9411/api/v2/spans");
    const OTLP: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:s3cret@c:4318");
    let unused = |env: &[(&str, &str)]| {
        let lines = Hop::start(&[], env).stderr();
        assert!(!lines.iter().any(|line| line.contains("s3cret")), "{lines:#?}");
        lines.into_iter().filter(|line| line.contains("nothing is sent there")).collect::<Vec<_>>()
    };
    for (env, endpoint, exporter) in [
        (&[ZIPKIN][..], ZIPKIN.0, "zipkin"),
        (&[OTLP], OTLP.0, "otlp"),
        (&[OTLP, ("OTEL_TRACES_EXPORTER", "none")], OTLP.0, "otlp"),
        (&[ZIPKIN, ("OTEL_TRACES_EXPORTER", "otlp")], ZIPKIN.0, "zipkin"),
        (
            &[("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://c:4318/v1/logs")],
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
            "OTEL_LOGS_EXPORTER",
        ),
    ] {
        let warnings = unused(env);
        assert!(
            warnings.len() == 1 && warnings[0].contains(endpoint) && warnings[0].contains(exporter),
            "{env:?}: {warnings:#?}"
        );
    }
    for env in [
        &[ZIPKIN, ("OTEL_TRACES_EXPORTER", "zipkin")][..],
        &[OTLP, ("OTEL_METRICS_EXPORTER", "otlp")],
        &[OTLP, ZIPKIN, ("OTEL_SDK_DISABLED", "true")],
        &[],
    ] {
        assert_eq!(unused(env), [""; 0], "{env:?}");
    }
}

#[tokio::test]
async fn the_start_line_tells_the_configuration_that_is_in_force() {
    let line = |args: &[&str], env: &[(&str, &str)]| {
        let hop = Hop::start(args, env);
        hop.stderr().into_iter().find(|line| line.contains("serving address=")).unwrap()
    };
    let plain = line(&[], &[]);
    for part in [
        r#"upstreams="none""#,
        r#"traces="none" metrics="none" logs="none""#,
        r#"propagators="tracecontext,baggage,b3multi,b3" sampler="parentbased_always_on""#,
        "upstream_timeout=5s",
        "max_hops=16 max_calls=1000",
        "max_connections=",
        "memory_limit=",
        "memory_for_answers=",
        "worker_threads=",
    ] {
        assert!(plain.contains(part), "{part}: {plain}");
    }
    let env = [
        ("UPSTREAM", "http://service2,grpc://service3:9000"),
        ("OTEL_TRACES_EXPORTER", "zipkin,otlp,console"),
        ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", "http://u:s3cret@z:9411/api/v2/spans?key=s3cret"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=s3cret"),
        ("OTEL_LOGS_EXPORTER", "otlp"),
        ("OTEL_PROPAGATORS", "b3"),
        ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ("TOKIO_WORKER_THREADS", "3"),
        ("MAX_CONCURRENCY", "77"),
    ];
    let full = line(&["--max-connections", "99", "--flush-timeout", "0"], &env);
    for part in [
        r#"upstreams="http://service2,grpc://service3:9000""#,
        r#"traces="zipkin http://z:9411/api/v2/spans,otlp grpc http://localhost:4317,console""#,
        r#"metrics="none" logs="otlp grpc http://localhost:4317""#,
        r#"propagators="b3" sampler="traceidratio 0.25""#,
        "max_connections=99 max_concurrency=77",
        "worker_threads=3",
    ] {
        assert!(full.contains(part), "{part}: {full}");
    }
    assert!(!full.contains("s3cret"), "{full}");
}
