//! `docs/reference/exit-codes.md`: each exit code of each command comes from a run.

use std::fs;

use crate::course::Shell;
use crate::reference::{commands, replaced};
use crate::{expect, root};

const MARKS: [&str; 2] = ["<!-- from runs: begin -->\n", "<!-- from runs: end -->"];

/// Beside every run: a chain, and a hop that is under test.
const BESIDE: &str = "httpserver serve --addr 127.0.0.1:8083 --name app --upstream http://127.0.0.1:9000 --upstream-timeout 500ms & httpserver demo";

/// `check` of a hop that calls a foreign app.
macro_rules! unseen {
    ($option:literal) => {
        concat!(
            "httpserver --addr 127.0.0.1:9000 --upstream http://127.0.0.1:9411/health &\n",
            "until curl -s http://127.0.0.1:9000/healthz; do kill -0 $! || break; sleep 0.1; done\n",
            "httpserver check http://127.0.0.1:9000/service1 --count 0 ",
            $option,
            "; ended=$?; kill -KILL $!; wait $!; (exit $ended)"
        )
    };
}

/// How a command ends, when, and what makes it end so. Where the second is empty, it is what [`WRONG_USAGE`] says.
const RUNS: [(&str, u8, &str, &str); 38] = [
    ("serve", 0, "stopped by SIGTERM or SIGINT", SERVE_STOPPED),
    ("serve", 1, "it cannot listen", "httpserver --addr 127.0.0.1:8080"),
    ("serve", 1, "a second signal ended it at once", SERVE_STOPPED_TWICE),
    ("serve", 2, "", "httpserver --addr nowhere"),
    ("demo", 0, "the trace is complete (`--once`)", "httpserver demo --once"),
    ("demo", 1, "the trace is not complete (`--once`)", "httpserver demo --once --fault service2:break=new-trace"),
    ("demo", 1, "it cannot listen", "httpserver demo"),
    ("demo", 2, "", "httpserver demo --hops 0"),
    ("store", 0, "stopped by SIGTERM or SIGINT", STORE_STOPPED),
    ("store", 1, "it cannot listen", "httpserver store --port 9411 --otlp-port 0 --otlp-grpc-port 0"),
    ("store", 2, "", "httpserver store --port nine"),
    ("check", 0, "no check failed", "httpserver check http://127.0.0.1:8080/service1 --count 0"),
    ("check", 0, "no check failed, and a part of the chain was not seen", unseen!("")),
    ("check", 1, "a check failed", "httpserver check http://127.0.0.1:8080/service1 --count 0 --expect service1"),
    ("check", 1, "with `--strict`: a part of the chain was not seen", unseen!("--strict")),
    (
        "check",
        1,
        "`--deadline` passed, or a signal interrupted the run",
        "httpserver check http://127.0.0.1:8080/service1 --watch 1h --deadline 1s",
    ),
    ("check", 2, "", "httpserver check nowhere"),
    (
        "trace",
        0,
        "the traces of the request are whole",
        "curl -s 'http://127.0.0.1:8080/service1?format=json' | httpserver trace - --traces http://127.0.0.1:9411",
    ),
    (
        "trace",
        1,
        "they are not",
        "curl -s 'http://127.0.0.1:8080/service1?format=json' | httpserver trace - --traces http://127.0.0.1:9411 --expect-spans 9 --traces-wait 1s",
    ),
    ("trace", 2, "", "httpserver trace nowhere.json --traces http://127.0.0.1:9411"),
    ("probe", 0, "the app passes", "httpserver probe http://127.0.0.1:8083/service1 --downstream 127.0.0.1:9000 --count 20"),
    ("probe", 1, "it does not pass", "httpserver probe http://127.0.0.1:8082/service3 --downstream 127.0.0.1:9000 --count 1"),
    ("probe", 2, "", "httpserver probe http://127.0.0.1:8083/service1 --downstream nowhere"),
    ("doctor", 0, "traces were read, whatever was found in them", DROPPED_READ),
    ("doctor", 1, "there was nothing to read", "echo '[]' | httpserver doctor --file -"),
    ("doctor", 1, "the backend did not answer", "httpserver doctor --traces http://127.0.0.1:9000"),
    ("doctor", 1, "a service scores less than `--fail-under`", DROPPED_SCORED),
    ("doctor", 2, "", "httpserver doctor --file nowhere.json"),
    ("health", 0, "the answer is 200", "httpserver health http://127.0.0.1:8080/healthz"),
    ("health", 1, "it is another one", "httpserver health http://127.0.0.1:8080/nothing"),
    ("health", 1, "there is none", "httpserver health http://127.0.0.1:9000/healthz"),
    ("health", 2, "", "httpserver health 'no URL'"),
    ("completions", 0, "they were printed", "httpserver completions bash"),
    ("completions", 1, "stdout cannot be written", "httpserver completions bash >/dev/full"),
    ("completions", 2, "", "httpserver completions tcsh"),
    ("manpage", 0, "it was printed", "httpserver manpage check"),
    ("manpage", 1, "stdout cannot be written", "httpserver manpage >/dev/full"),
    ("manpage", 2, "", "httpserver manpage chekc"),
];

const WRONG_USAGE: &str = "wrong usage or configuration";

const SERVE_STOPPED: &str = "httpserver --addr 127.0.0.1:9000 --drain-delay 0 &
  until curl -s http://127.0.0.1:9000/healthz; do kill -0 $! || break; sleep 0.1; done; kill -TERM $!; wait $!";
const SERVE_STOPPED_TWICE: &str = "httpserver --addr 127.0.0.1:9000 --drain-delay 1h --drain-timeout 1h &
  until curl -s http://127.0.0.1:9000/healthz; do kill -0 $! || break; sleep 0.1; done; kill -TERM $!
  until curl -s http://127.0.0.1:9000/readyz | grep draining; do kill -0 $! || break; sleep 0.1; done; kill -TERM $!; wait $!";
const STORE_STOPPED: &str = "httpserver store --port 9000 --otlp-port 0 --otlp-grpc-port 0 &
  until curl -s http://127.0.0.1:9000/health; do kill -0 $! || break; sleep 0.1; done; kill -INT $!; wait $!";

/// Calls of a whose callee, b, began a new trace each time.
const DROPPED_READ: &str = r#"for i in 1 2 3 4 5; do t=160000000$i; printf '[{"traceId":"000000000000a00%s","id":"00000000000000b%s","kind":"SERVER","name":"get","timestamp":%s000000,"duration":9000,"localEndpoint":{"serviceName":"a"}},{"traceId":"000000000000a00%s","id":"00000000000000c%s","parentId":"00000000000000b%s","kind":"CLIENT","name":"get","timestamp":%s001000,"duration":7000,"localEndpoint":{"serviceName":"a"},"remoteEndpoint":{"serviceName":"b"}},{"traceId":"000000000000d00%s","id":"00000000000000d%s","kind":"SERVER","name":"get","timestamp":%s002000,"duration":5000,"localEndpoint":{"serviceName":"b"}}]' $i $i $t $i $i $i $t $i $i $t >$i.json; done
  httpserver doctor --file 1.json --file 2.json --file 3.json --file 4.json --file 5.json"#;
const DROPPED_SCORED: &str =
    "httpserver doctor --file 1.json --file 2.json --file 3.json --file 4.json --file 5.json --fail-under 100";

fn rows() -> String {
    let cell = |command: &str, code: u8| {
        let when = RUNS.iter().filter(|(of, with, when, _)| *of == command && *with == code && !when.is_empty());
        when.map(|(_, _, when, _)| *when).collect::<Vec<_>>().join("; ")
    };
    let row = |command: &String| format!("| `{command}` | {} | {} | {WRONG_USAGE} |\n", cell(command, 0), cell(command, 1));
    format!("\n| command | 0 | 1 | 2 |\n|---|---|---|---|\n{}\n", commands().iter().map(row).collect::<String>())
}

#[test]
fn the_reference_has_every_exit_code_as_a_run_gives_it() {
    for command in commands() {
        for code in 0..=2 {
            let has = RUNS.iter().any(|(of, with, ..)| *of == command && *with == code);
            assert!(has, "no run of {command} ends with {code}");
        }
    }
    let path = root().join("docs/reference/exit-codes.md");
    expect(&path, &replaced(&fs::read_to_string(&path).unwrap(), MARKS, &rows()), str::to_owned);

    let mut shell = Shell::new(46);
    shell.beside(BESIDE);
    let mut wrong = Vec::new();
    for (command, code, when, run) in RUNS {
        let printed = shell.run(&format!("{{ {run}\n}} >printed 2>&1; code=$?; echo $code; [ $code = {code} ] || cat printed"));
        if printed.lines().next() != Some(&code.to_string()) {
            wrong.push(format!("{command}, {when}: not {code}:\n  {run}\n{printed}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
