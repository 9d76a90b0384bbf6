"""The chain behind a real Envoy. Called by e2e-envoy.sh, which says what for; the argument is a folder to work in, with certs/ in it."""

import collections
import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings

from ports import free_port

WORK, TOP = sys.argv[1], os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENVOY, HTTPSERVER = os.environ["ENVOY"], os.environ["HTTPSERVER"]
CA = os.path.join(WORK, "certs", "ca.crt")
IDLE_SECONDS, IDLE_EVERY = 120, 12
# How long a condition may take to come true, in seconds. It is used up only when something is wrong: a dozen Envoys that start at once on
# two busy cores take their time.
PATIENCE = 120
results, results_lock = [], threading.Lock()


def eventually(what, check):
    """Until the check raises nothing any more. What it raised last is what a failure tells."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return check()
        except (AssertionError, OSError, http.client.HTTPException) as error:
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not after {PATIENCE} s: {error!r}") from error
        time.sleep(0.1)


def claim(text, check):
    """One line of the table; a check raises AssertionError or returns what it saw."""
    try:
        seen, good = check(), True
    except (AssertionError, OSError, KeyError, IndexError, TypeError, ValueError, http.client.HTTPException) as error:
        seen, good = f"{type(error).__name__}: {error}", False
    with results_lock:
        results.append((text, good, seen))
        print(f"  {'ok  ' if good else 'FAIL'}  {text}" + (f"\n          {seen}" if not good else ""), flush=True)


def same(want, got):
    assert got == want, f"wanted {want!r}, got {got!r}"
    return got


Answer = collections.namedtuple("Answer", "status headers body elapsed_ms")


class Client:
    """HTTPS to a gateway on loopback, by the name that its certificate has; one connection, kept alive."""

    def __init__(self, port, host="service1.cncamp.io", timeout=30):
        context = ssl.create_default_context(cafile=CA)
        self.connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        self.connection._create_connection = lambda _, *rest: socket.create_connection(("127.0.0.1", port), timeout)

    def get(self, path, **headers):
        start = time.monotonic()
        self.connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = self.connection.getresponse()
        body = response.read()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body, (time.monotonic() - start) * 1000)

    def chain(self, path="/hello/service1", **headers):
        answer = self.get(path, accept="application/json", **headers)
        assert answer.status == 200, f"{answer.status}: {answer.body[:300]}"
        return json.loads(answer.body)


def hops(reply):
    return [reply] + [hop for upstream in reply["upstreams"] if upstream["reply"] for hop in hops(upstream["reply"])]


def lanes(reply):
    return " ".join(hop["lane"] for hop in hops(reply))


class World(contextlib.ExitStack):
    """A gateway, hops and their sidecars, and a sink for the spans of all of them. Everything ends with the world."""

    def __init__(self, name, tracer="otel"):
        super().__init__()
        self.name, self.tracer, self.folder = name, tracer, os.path.join(WORK, name)
        os.makedirs(self.folder)
        self.processes, self.started = {}, []
        sink = self.start("sink", [sys.executable, os.path.join(TOP, "scripts", "span_sink.py")], stdout=subprocess.PIPE)
        self.sink_port = int(sink.stdout.readline())

    def start(self, name, command, env=None, **options):
        log = self.enter_context(open(os.path.join(self.folder, f"{name}.log"), "a"))
        options.setdefault("stdout", log)
        process = subprocess.Popen(command, stderr=log, env={"PATH": os.environ["PATH"], **(env or {})}, **options)
        self.started.append((name, process, log.name))
        self.callback(self.stop, process)
        return process

    @staticmethod
    def stop(process):
        if process.poll() is None:
            process.kill()
        process.wait()

    def envoy(self, name, template, **values):
        values = {"NAME": name.split("@")[0], "TRACER": self.tracer, "COLLECTOR": f"127.0.0.1:{self.sink_port}", **values}
        path = os.path.join(self.folder, f"{name}.yaml")
        with open(path, "w") as file:
            subprocess.run([os.path.join(TOP, "istio/local/render.sh"), template, *(f"{k}={v}" for k, v in values.items())], stdout=file, check=True)
        self.start(name, [ENVOY, "-c", path, "--concurrency", "1", "--use-dynamic-base-id", "-l", "warn", "--drain-time-s", "1"])

    def alive(self):
        """Nothing to wait for when what should answer is gone."""
        for name, process, log in self.started:
            if process.poll() is not None:
                with open(log) as lines:
                    raise RuntimeError(f"{name} ended with {process.returncode}: {''.join(lines.readlines()[-5:])}")

    def hop(self, key, service, port, **env):
        """Starts (or, with the same key, restarts) the app of one hop."""
        env = {"ADDR": f"127.0.0.1:{port}", "SERVICE_NAME": service, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.sink_port}", **env}
        self.processes[key] = (self.start(f"app-{key}", [HTTPSERVER, "serve"], env), service, port, env)
        self.wait_ready(port)

    def wait_ready(self, port):
        def ready():
            self.alive()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/readyz")
            same(200, connection.getresponse().status)

        eventually(f"ready at {port}", ready)

    def restart(self, key):
        """As Kubernetes does it: SIGTERM, wait for the end, start anew."""
        process, service, port, env = self.processes[key]
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=30)
        assert status == 0, f"{key} ended with {status}"
        self.started = [one for one in self.started if one[1] is not process]
        del env["ADDR"]
        self.hop(key, service, port, **env)

    def calls(self, key):
        """How many requests of the chain an app has answered, in all its lives."""
        with open(os.path.join(self.folder, f"app-{key}.log")) as log:
            return log.read().count('"GET /service')

    def gateway(self, service1, service1_gray=None):
        self.https, self.http = free_port(), free_port()
        lane = {"SERVICE1_GRAY": service1_gray} if service1_gray else {}
        self.envoy("istio-ingressgateway", "gateway", SERVICE1=service1, HTTPS_PORT=self.https, HTTP_PORT=self.http, PUBLIC_PORT=self.https,
                   CERTS=os.path.join(WORK, "certs"), **lane)

    def chain(self, exporter="none", drop="", copies=1, lane=False, **env):
        """gateway -> sidecar -> service1 -> sidecar -> service2 -> sidecar -> service3; `copies` of service2; with a gray service1 and service3."""
        common = {"OTEL_TRACES_EXPORTER": exporter, "OTEL_BSP_SCHEDULE_DELAY": "200", **env}
        if self.tracer == "zipkin-b3":
            common["OTEL_PROPAGATORS"] = "b3multi,b3,tracecontext,baggage"

        def pod(key, service, following="", following_gray="", **env):
            app, inbound, outbound = free_port(), free_port(), free_port()
            values = {"APP": f"127.0.0.1:{app}", "INBOUND_PORT": inbound}
            if following:
                number = int(service[-1]) + 1
                env |= {"UPSTREAM": f"http://127.0.0.1:{outbound}/service{number}", "UPSTREAM_TIMEOUT": f"{5 - int(service[-1])}s"}
                if drop:
                    env["DROP_HEADERS"] = drop
                values |= {"OUTBOUND_PORT": outbound, "NEXT": following}
                if following_gray:
                    values["NEXT_GRAY"] = following_gray
            self.envoy(f"{service}@{key}", "sidecar", **values)
            self.hop(key, service, app, **common, **env)
            return f"127.0.0.1:{inbound}"

        third = pod("service3", "service3")
        third_gray = pod("service3-gray", "service3", LANE="gray") if lane else ""
        second = ",".join(pod(f"service2-{copy}", "service2", third, third_gray) for copy in range(copies))
        first = pod("service1", "service1", second)
        first_gray = pod("service1-gray", "service1", second, LANE="gray") if lane else None
        self.gateway(first, first_gray)

        def answers():
            self.alive()
            Client(self.https, timeout=5).chain()

        eventually("the chain answers", answers)

    def trace(self, spans, traces=1, **headers):
        """One request; what `httpserver trace` says of its spans."""
        caller = []
        if headers:
            _, trace_id, span_id, _ = headers["traceparent"].split("-")
            caller = [] if self.tracer == "zipkin-b3" else ["--trace-id", trace_id, "--caller", span_id]
        reply = json.dumps(Client(self.https).chain(**headers))
        run = subprocess.run([HTTPSERVER, "trace", "-", "--traces", f"http://127.0.0.1:{self.sink_port}", "--settle", "3s", "--traces-wait", "25s",
                              "--sidecars", "--expect-spans", str(spans), "--expect-services", "4", "--expect-traces", str(traces), *caller],
                             input=reply, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout.strip()


def tracers():
    """Each of the three tracers, with apps that report and with apps that only forward; and what a broken hop does."""
    for tracer, words in [("otel", "OpenTelemetry"), ("zipkin", "Zipkin with B3 and W3C"), ("zipkin-b3", "Zipkin with B3 alone")]:
        for exporter, spans in [("otlp", 12), ("none", 7)]:
            with World(f"{tracer}-{exporter}", tracer) as world:
                world.chain(exporter)
                what = "apps that report" if exporter == "otlp" else "apps that only forward"
                claim(f"{words}, {what}: one trace of {spans} spans, no orphan, 4 services", lambda: world.trace(spans))
                stale = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
                whose = "the mesh's own, its own is stale" if tracer == "zipkin-b3" else "its own"
                claim(f"{words}, {what}, the caller brings a traceparent: one whole trace ({whose})", lambda: world.trace(spans, traceparent=stale))
    with World("broken-hop", "otel") as world:
        world.chain("none", drop="traceparent,tracestate")
        claim("negative control: two hops lose the W3C headers: one request falls into 3 traces", lambda: world.trace(7, traces=3))


def old_tls_refused(port):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # Python warns of old versions; to be refused is what they are here for.
    warnings.simplefilter("ignore", DeprecationWarning)
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    # Or today's OpenSSL would refuse by itself, and the gateway would never be asked.
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    try:
        with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain, server_hostname="service1.cncamp.io") as tls:
            raise AssertionError(f"spoke {tls.version()}")
    except ssl.SSLError as error:
        assert "PROTOCOL_VERSION" in str(error), error
        return "refused"


def other_name_refused(port):
    try:
        Client(port, "other.cncamp.io").get("/hello/golang")
    except (ssl.SSLError, ConnectionError):
        return "refused"
    raise AssertionError("another name was served")


def redirect(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/hello/golang?a=1", headers={"host": "service1.cncamp.io"})
    response = connection.getresponse()
    return response.status, response.getheader("location")


def doors():
    """The gateway's rules, the lanes, and a restart under load: one world with two pods of service2 and a gray lane."""
    with World("doors") as world:
        world.chain("otlp", copies=2, lane=True, LATENCY="1ms..20ms")
        client = Client(world.https)
        claim("TLS 1.1 is refused", lambda: old_tls_refused(world.https))
        claim("another name gets no certificate", lambda: other_name_refused(world.https))
        claim("port 80 redirects to https, the path kept",
              lambda: same((301, f"https://service1.cncamp.io:{world.https}/hello/golang?a=1"), redirect(world.http)))
        claim("HSTS is set", lambda: same("max-age=31536000; includeSubDomains", client.get("/hello/golang").headers["strict-transport-security"]))
        claim("/http/service0 is rewritten to /service0", lambda: same("/service0", Client(world.https, "httpsserver.cncamp.io").chain("/http/service0")["path"]))
        claim("/test/hello is rewritten to /hello", lambda: same(b"Hello from service1 v1", client.get("/test/hello").body[:22]))
        claim("metrics, health and headers are not published",
              lambda: same([404] * 5, [client.get(path).status for path in ("/metrics", "/test/metrics", "/healthz", "/readyz", "/headers")]))
        claim("without x-lane: the baseline", lambda: same("base base base", lanes(client.chain())))
        claim("x-lane: gray: service1 gray, service2 base (it has none), service3 gray", lambda: same("gray base gray", lanes(client.chain(x_lane="gray"))))
        claim("the cookie lane=gray, in the middle of others, does the same",
              lambda: same("gray base gray", lanes(client.chain(cookie="a=1; lane=gray; b=2"))))
        claim("a lane that nobody opened is the baseline, and x-lane does not travel",
              lambda: same(("base base base", False), (lanes(r := client.chain(x_lane="blue")), "x-lane" in r["received"])))
        claim("40 requests without a lane never meet gray", lambda: same({"base base base"}, {lanes(client.chain()) for _ in range(40)}))
        claim("each of two pods of service2 restarted under constant load: no request fails", lambda: restarts_under_load(world))


def restarts_under_load(world):
    statuses, stop = collections.Counter(), threading.Event()

    def load():
        client = Client(world.https)
        while not stop.is_set():
            try:
                status = client.get("/hello/service1").status
            except (OSError, http.client.HTTPException) as error:
                status, client = repr(error), Client(world.https)
            statuses[status] += 1

    def more(count, what):
        want = count() + 50
        eventually(what, lambda: same(True, count() >= want))

    threads = [threading.Thread(target=load) for _ in range(3)]
    [thread.start() for thread in threads]
    try:
        for key in ("service2-0", "service2-1"):
            more(lambda: statuses[200], "requests are answered")
            world.restart(key)
            # The sidecar in front asks once a second who is ready: the next one may go when this one is called again.
            more(lambda: world.calls(key), f"{key} is called again")
    finally:
        stop.set()
        [thread.join() for thread in threads]
    assert set(statuses) == {200} and statuses[200] > 200, statuses
    return f"{statuses[200]} requests, 0 failed"


def faults():
    """What the gateway does with a hop that fails or is slow."""
    with World("flaky") as world:
        port = free_port()
        world.hop("service1", "service1", port, FAULT="abort=503@50%")
        world.gateway(f"127.0.0.1:{port}")
        eventually("the gateway answers", lambda: same(True, Client(world.https, timeout=5).get("/test/hello").status in (200, 503)))
        client = Client(world.https)

        def retried():
            answers = [client.get("/http/service0", accept="application/json") for _ in range(40)]
            failed = sum(answer.status != 200 for answer in answers)
            attempts = collections.Counter(json.loads(answer.body)["attempt"] for answer in answers if answer.status == 200)
            # 1 in 16 fails four times; 10 of 40 would be a wonder.
            assert failed <= 10 and any(attempt > 1 for attempt in attempts), (failed, attempts)
            return f"{failed} of 40 failed, attempts {dict(sorted(attempts.items()))}"

        def not_retried():
            failed = sum(client.get("/hello/golang").status == 503 for _ in range(40))
            assert 8 <= failed <= 32, failed
            return f"{failed} of 40 failed"

        claim("retries: half of the answers are 503, and /http/service0 hardly ever fails; the reply names the attempt", retried)
        claim("retries: a path without retries on 503 fails about half of the time", not_retried)
    with World("slow") as world:
        port = free_port()
        world.hop("service1", "service1", port, FAULT="delay=7s@100%")
        world.gateway(f"127.0.0.1:{port}")
        eventually("the gateway is there", lambda: socket.create_connection(("127.0.0.1", world.https), 1).close())

        def timed_out():
            answer = Client(world.https).get("/http/service0")
            # Four tries of 5 s would be 20.
            assert answer.status == 504 and 14_000 < answer.elapsed_ms < 19_000, (answer.status, answer.elapsed_ms)
            return f"504 after {answer.elapsed_ms / 1000:.1f} s"

        claim("timeout: a hop that takes 7 s is given up three times after 5 s: 504 after 15 s", timed_out)


def idle():
    """One request every 12 s over connections that are otherwise idle: no pool may meet a connection that the hop has closed."""
    with World("idle") as world:
        world.chain("none")

        def seldom():
            client, statuses = Client(world.https), []
            end = time.monotonic() + IDLE_SECONDS
            while time.monotonic() < end:
                statuses.append(client.get("/hello/service1").status)
                time.sleep(IDLE_EVERY)
            same([200] * len(statuses), statuses)
            assert len(statuses) >= IDLE_SECONDS // IDLE_EVERY, statuses
            return f"{len(statuses)} requests, 0 failed"

        claim(f"one request every {IDLE_EVERY} s for {IDLE_SECONDS} s: none fails", seldom)


def guarded(part):
    """A part that cannot even start is a failed claim, not a silent one."""
    try:
        part()
    except Exception as error:  # whatever it is: it belongs into the table
        claim(part.__doc__.splitlines()[0], lambda: same("a start", repr(error)))


background = [threading.Thread(target=guarded, args=[part]) for part in (idle, faults)]
[thread.start() for thread in background]
guarded(doors)
guarded(tracers)
[thread.join() for thread in background]

failed = sum(not good for _, good, _ in results)
print("\n| claim | result |\n|---|---|")
for text, good, seen in results:
    print(f"| {text} | {'ok' if good else '**failed**'}{f': {seen}' if good and seen is not None else ''} |")
print(f"\n{len(results)} claims, {failed} failed")
sys.exit(1 if failed else 0)
