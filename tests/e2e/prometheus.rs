//! A real Prometheus scrapes the three hops, and its API returns the histograms with their labels, and exemplars that lead to the traces.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::backends::{Backend, becomes, hops, json, new_id, send, stop};
use crate::claims::{Claims, same};

const REQUESTS: usize = 7;
const OURS: &str = r#"http_request_method="GET",http_route="/service{n}",http_response_status_code="200""#;

struct Prometheus(String);

impl Prometheus {
    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/{path}", self.0), parameters).unwrap();
        Ok(json(url.as_str()).await?["data"].take())
    }

    /// `service1=3 service2=3`, by the label hop.
    async fn query(&self, expression: &str) -> Result<String, String> {
        let data = self.ask("query", &[("query", expression)]).await?;
        let value =
            |one: &Value| format!("{}={}", one["metric"]["hop"].as_str().unwrap_or(""), one["value"][1].as_str().unwrap());
        let mut values: Vec<_> = data["result"].as_array().into_iter().flatten().map(value).collect();
        values.sort();
        Ok(values.join(" "))
    }

    /// `ours` when there are exemplars of the hop and each is of a trace that was sent.
    async fn exemplars(&self, hop: usize, sent: &[String]) -> Result<String, String> {
        let query = format!("http_server_request_duration_seconds_bucket{{hop=\"service{hop}\",{OURS}}}");
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let (start, end) = ((now - 3600).to_string(), (now + 60).to_string());
        let data = self.ask("query_exemplars", &[("query", &query), ("start", &start), ("end", &end)]).await?;
        let series = data.as_array().into_iter().flatten();
        let found: Vec<_> =
            series.flat_map(|one| one["exemplars"].as_array().unwrap()).map(|one| &one["labels"]["trace_id"]).collect();
        let ours = !found.is_empty() && found.iter().all(|id| sent.iter().any(|sent| *id == sent));
        Ok(if ours { "ours".to_owned() } else { format!("{found:?}") })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Prometheus: scripts/e2e.sh prometheus"]
async fn prometheus() {
    let mut claims = Claims::default();
    // Spans are written to stderr: exemplars need traces, not a collector.
    let mut hops = hops(&[("OTEL_TRACES_EXPORTER", "console"), ("OTEL_BSP_SCHEDULE_DELAY", "100")]);
    let targets: String =
        (1..).zip(&hops).map(|(n, hop)| format!("  - {{targets: [\"{}\"], labels: {{hop: service{n}}}}}\n", hop.addr)).collect();
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: chain\n  static_configs:\n{targets}"
    );
    let mut server = Backend::start("prometheus", |folder| {
        let file = folder.join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let mut prometheus = Command::new("prometheus");
        prometheus.arg(format!("--config.file={}", file.display()));
        prometheus.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        prometheus.args(["--enable-feature=exemplar-storage", "--web.listen-address=127.0.0.1:0"]);
        prometheus
    });
    let prometheus = Prometheus(format!("http://{}", server.says("msg=\"Listening on\" address=", '\n').await.trim()));
    server.ready(&format!("{}/-/ready", prometheus.0)).await;
    let each = |value: usize| format!("service1={value} service2={value} service3={value}");
    let up = becomes(&each(1), async || prometheus.query("up{job=\"chain\"}").await).await;
    claims.claim("every hop is up", async { up }).await;

    let mut ids = Vec::new();
    for _ in 0..REQUESTS {
        let (trace, span) = (new_id(16), new_id(8));
        send(&hops, &[("x-b3-traceid", &trace), ("x-b3-spanid", &span), ("x-b3-sampled", "1")]).await;
        ids.push(trace);
    }
    let duration = "http_server_request_duration_seconds";
    let spans = 2 * REQUESTS;
    let table = [
        (
            "the histogram counts every request, with method, route and status",
            each(REQUESTS),
            format!("{duration}_count{{{OURS}}}"),
        ),
        ("its last bucket has them all", each(REQUESTS), format!("{duration}_bucket{{le=\"+Inf\",{OURS}}}")),
        (
            "a quantile can be had of it, above 0 and below 10 s",
            each(1),
            format!("(0 < histogram_quantile(0.9, {duration}_bucket{{{OURS}}}) < bool 10)"),
        ),
        (
            "the calls to the next hop are counted where they are made",
            format!("service1={REQUESTS} service2={REQUESTS}"),
            "http_client_request_duration_seconds_count{server_address=\"127.0.0.1\",http_response_status_code=\"200\"}"
                .to_owned(),
        ),
        (
            "who runs there is told",
            each(1),
            "httpserver_build_info{service_version=\"v1\",lane=\"base\",service=~\"service[123]\"}".to_owned(),
        ),
        (
            "every span is counted as exported",
            format!("service1={spans} service2={spans} service3={REQUESTS}"),
            "httpserver_spans_exported_total".to_owned(),
        ),
        ("no span was lost", each(0), "sum by (hop) (httpserver_spans_dropped_total)".to_owned()),
        ("the process tells its memory", each(1), "process_resident_memory_bytes > bool 1e6".to_owned()),
    ];
    for (text, want, expression) in &table {
        claims.claim(*text, becomes(want, async || prometheus.query(expression).await)).await;
    }
    for n in 1..=3 {
        let text = format!("an exemplar of service{n} leads to the trace of one of the requests");
        claims.claim(text, becomes("ours", async || prometheus.exemplars(n, &ids).await)).await;
    }
    for (n, hop) in (1..).zip(&hops) {
        let lint = async {
            let mut promtool = Command::new("promtool");
            promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut promtool = promtool.spawn().unwrap();
            let metrics = hop.metrics().await.0;
            std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), metrics.as_bytes()).unwrap();
            let ran = promtool.wait_with_output().unwrap();
            assert!(ran.status.success(), "{ran:?}");
            String::new()
        };
        claims.claim(format!("promtool finds nothing to mend in the metrics of service{n}"), lint).await;
    }
    let codes = stop(&mut hops);
    claims.claim("SIGTERM ends every hop with exit code 0", async { same("0 0 0", codes.as_str()) }).await;
    claims.end();
}
