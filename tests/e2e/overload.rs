//! Four times more requests than a hop takes: what is too much must be shed at once, what is accepted must stay fast, probes and metrics
//! must answer, and a second later everything must be as before.
//!
//! Variables, with the defaults of the short run: `OVERLOAD_SECONDS=8`; `OVERLOAD_LATENCY=250`, of the hop's work, in ms, which waits as a
//! hop with upstreams does; `OVERLOAD_LIMIT=32`, its `--max-concurrency`; `OVERLOAD_TIMES=no`: with `yes` times count, too, which takes a
//! machine that does nothing else, and the optimised load generator of `cargo test --release`.

use std::process::Stdio;
use std::time::Duration;

use crate::claims::Claims;
use crate::common::{AccessLog, Hop};
use crate::load::{Load, Report};
use crate::restarts::variable;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs a release build: scripts/e2e.sh reliability"]
async fn four_times_what_a_hop_takes_is_shed() {
    let (seconds, latency): (u64, f64) = (variable("OVERLOAD_SECONDS", 8), variable("OVERLOAD_LATENCY", 250.0));
    let (limit, timed): (usize, bool) = (variable("OVERLOAD_LIMIT", 32), variable("OVERLOAD_TIMES", "no".to_owned()) == "yes");
    let flags = ["--latency", &format!("{latency}ms"), "--max-concurrency", &limit.to_string()];
    let mut hop = Hop::start_with(&flags, &[], AccessLog::To(Stdio::null()));
    let saturation = limit as f64 * 1000.0 / latency;
    let load = |path, rate, connections, seconds| {
        Load { addr: hop.addr, path, rate, connections, duration: Duration::from_secs(seconds) }.start()
    };
    let usual = || load("/hello", saturation / 20.0, 512, 5);
    let quiet = load("/hello", saturation / 20.0, 512, if timed { 10 } else { 3 }).report().of(200);
    // Four times what the hop holds at once: what is shed comes back at once, and needs few.
    let flood = load("/hello", 4.0 * saturation, 4 * limit, seconds);
    let probes = ["/healthz", "/metrics"].map(|path| load(path, 10.0, 16, seconds));
    let mut retry_after = Vec::new();
    while !flood.has_ended() && retry_after.len() < 20 {
        let answer = hop.get("/hello", &[]).await;
        if answer.status == 503 {
            retry_after.push(answer.header("retry-after").map(str::to_owned));
        } else {
            // Sent at once, the next one would be served in the place that this one has just left, each time.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let flood = flood.report();
    // The flood's last requests are answered by now. A second to recover is what is claimed; on a busy machine, that it comes to that.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let is_clean = |report: &Report| report.of(200).count == report.requests;
    let mut after = usual().report();
    for _ in 0..if timed { 0 } else { 20 } {
        if is_clean(&after) {
            break;
        }
        after = usual().report();
    }
    let probes = probes.map(crate::load::Loading::report);
    // A server that an overload has left in some bad state would not end.
    hop.signal("TERM");
    let code = tokio::task::block_in_place(|| hop.ended()).code();

    let (accepted, shed, recovered) = (flood.of(200), flood.of(503), after.of(200));
    let a_second = |count: u64| count as f64 / seconds as f64;
    let offered = (flood.requests + flood.unsent) as f64;
    let mut claims = Claims::default();
    claims.holds(
        format!("quiet: {:.0} a second, p50 {} ms, p99 {} ms", saturation / 20.0, quiet.p50_ms, quiet.p99_ms),
        quiet.count > 0,
        "",
    );
    let text = format!(
        "offered {:.0} a second: {:.0} accepted, {:.0} shed, and no other answer",
        4.0 * saturation,
        a_second(accepted.count),
        a_second(shed.count)
    );
    let others = flood.others(&[200, 503]);
    claims.holds(text, accepted.count > 0 && shed.count > 0 && others.is_empty(), others);
    let text = format!("what is shed says Retry-After: all of {} that were looked at", retry_after.len());
    claims.holds(text, !retry_after.is_empty() && retry_after.iter().all(Option::is_some), &retry_after);
    let [health, metrics] = probes.each_ref().map(|probe| probe.of(200).p99_ms);
    let text = format!("health and metrics answered every time, p99 {health} and {metrics} ms");
    claims.holds(text, probes.iter().all(|probe| probe.requests > 0 && is_clean(probe)), &probes);
    let when = if timed { "a second later" } else { "then" };
    claims.holds(format!("{when}: nothing shed"), recovered.count > 0 && is_clean(&after), &after.statuses);
    claims.holds("SIGTERM ended it with exit code 0", code == Some(0), code);

    let unsent = flood.unsent as f64 / offered.max(1.0);
    let share = accepted.count as f64 / saturation / seconds as f64;
    let slow = "this machine is too slow or too busy for this load, so it shows nothing: try a smaller OVERLOAD_LIMIT";
    let times = [
        (
            format!(
                "it was four times what the hop takes: {:.1} % not sent for want of connections, {:.0} % of what the hop could take was accepted",
                100.0 * unsent,
                100.0 * share
            ),
            unsent <= 0.01 && share > 0.9,
            slow,
        ),
        (
            format!("accepted requests: p99 {} ms, under 5 x quiet", accepted.p99_ms),
            accepted.p99_ms > 0.0 && accepted.p99_ms < 5.0 * quiet.p99_ms,
            "",
        ),
        (format!("shed requests: p99 {} ms, sooner than an answer", shed.p99_ms), shed.p99_ms < latency, ""),
        (format!("and the times of before: p99 {} ms", recovered.p99_ms), recovered.p99_ms < 2.0 * quiet.p99_ms, ""),
    ];
    for (text, held, why) in times {
        if timed {
            claims.holds(text, held, why);
        } else {
            println!("  seen  {text}");
        }
    }
    println!(
        "\nfor docs/reliability.md:\n| {seconds} s of {:.0} requests a second, four times what `--max-concurrency {limit}` takes at {latency} ms each \
         | {:.0} a second accepted with p99 {} ms (quiet: {} ms), {:.0} shed with 503 and p99 {} ms; `/healthz` and `/metrics` always answered, p99 \
         {health} and {metrics} ms; a second after it {} of {} shed, p99 {} ms |",
        4.0 * saturation,
        a_second(accepted.count),
        accepted.p99_ms,
        quiet.p99_ms,
        a_second(shed.count),
        shed.p99_ms,
        after.requests - recovered.count,
        after.requests,
        recovered.p99_ms
    );
    claims.end();
}
