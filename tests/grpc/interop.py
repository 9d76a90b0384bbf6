"""gRPC as others speak it: grpcio as the client of a hop, and as the hop in the middle of a chain.

scripts/e2e-grpc.sh starts this with the path of the binary. The cases are those of the gRPC interoperability tests
(doc/interop-test-descriptions.md) that apply, under their names; each line of the output is a case that holds.
"""

import concurrent.futures
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from websockets.exceptions import ConnectionClosed
from websockets.sync import client as websocket_client
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from httpserver.v1 import chain_pb2, chain_pb2_grpc

TRACE = "00-463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-01"
CARRIED = ("traceparent", "x-request-id", "x-lane", "grpc-trace-bin", "x-hop-count", "x-call-budget")
BINARY = b"\x00\x00F:\xc3\\\x9fd\x13\xad\x01"


class Hop:
    """One `httpserver serve` on a free port."""

    def __init__(self, binary, *flags):
        command = [binary, "serve", "--addr", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            address = re.search(r"address=(\S+)", line)
            if address:
                self.address = address.group(1)
                return
        raise SystemExit("the hop does not serve")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def json(self, path):
        request = urllib.request.Request(f"http://{self.address}{path}", headers={"traceparent": TRACE, "x-lane": "gray"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


class Middle(chain_pb2_grpc.ChainServicer):
    """A hop in grpcio: it calls the next one with the metadata that it got."""

    def __init__(self, below):
        self.channel = grpc.insecure_channel(below)

    def Call(self, request, context):
        received = dict(context.invocation_metadata())
        metadata = [(name, received[name]) for name in CARRIED if name in received]
        reply = chain_pb2.Reply(
            service="middle", version="v1", lane="base", hostname="python", message="Hello, middle!", path=context_method(context),
            status=200, started_at="2026-01-02T03:04:05.678901Z", duration_ms=1, request_id=received.get("x-request-id", ""),
            propagation="forward", client=chain_pb2.Client(ip="127.0.0.1"), protocol="grpc", attempt=1,
        )
        reply.received.extend(chain_pb2.Header(name=name, values=[value]) for name, value in metadata if isinstance(value, str) and name in CARRIED[:3])
        stub = chain_pb2_grpc.ChainStub(self.channel)
        below = stub.Call(chain_pb2.CallRequest(service=request.service + 1), metadata=metadata, timeout=context.time_remaining())
        reply.upstreams.add(url="grpc://below/", protocol="grpc", status=200, duration_ms=1, reply=below.SerializeToString())
        return reply


def context_method(_):
    return "/httpserver.v1.Chain/Call"


def ok(case):
    print(f"ok {case}", flush=True)


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call did not fail")


def client_cases(binary):
    with Hop(binary, "--name", "last") as last, Hop(binary, "--name", "front", "--upstream", f"grpc://{last.address}") as front:
        channel = grpc.insecure_channel(front.address)
        stub = chain_pb2_grpc.ChainStub(channel)
        assert stub.Call(chain_pb2.CallRequest()).service == "front"
        ok("empty_unary")
        reply = stub.Call(chain_pb2.CallRequest(body=b"x" * 50_000, response_bytes=314_159))
        assert 314_149 <= reply.ByteSize() <= 314_159 and reply.request_bytes == 50_000, reply.ByteSize()
        ok("large_unary")
        metadata = (("traceparent", TRACE), ("x-lane", "gray"), ("grpc-trace-bin", BINARY))
        reply, call = stub.Call.with_call(chain_pb2.CallRequest(), metadata=metadata)
        sent = {header.name: list(header.values) for header in chain_pb2.Reply.FromString(reply.upstreams[0].reply).received}
        assert sent["traceparent"] == [TRACE] and sent["x-lane"] == ["gray"] and "grpc-trace-bin" in sent, sent
        assert dict(call.initial_metadata())["traceresponse"] == TRACE
        ok("custom_metadata")
        replies = list(stub.Stream(chain_pb2.StreamRequest(count=3, interval_ms=10), metadata=metadata))
        assert [reply.service for reply in replies] == ["front"] * 3 and not replies[0].upstreams, replies
        ok("server_streaming")
        stream = stub.Stream(chain_pb2.StreamRequest(count=10_000, interval_ms=0))
        for _ in zip(range(5), stream):
            pass
        stream.cancel()
        assert failure(lambda: [*stream]).code() == grpc.StatusCode.CANCELLED
        ok("cancel_after_first_response")
        error = failure(lambda: [*stub.Stream(chain_pb2.StreamRequest(count=2, interval_ms=60_000), timeout=0.3)])
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        ok("deadline of a stream")
        error = failure(lambda: stub.Call(chain_pb2.CallRequest(service=10_000)))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "0 to 9999" in error.details(), error
        ok("status_code_and_message")
        other = channel.unary_unary("/httpserver.v1.Chain/Other", lambda _: b"", lambda _: None)
        assert failure(lambda: other(None)).code() == grpc.StatusCode.UNIMPLEMENTED
        ok("unimplemented_method")
        other = channel.unary_unary("/httpserver.v1.Other/Call", lambda _: b"", lambda _: None)
        assert failure(lambda: other(None)).code() == grpc.StatusCode.UNIMPLEMENTED
        ok("unimplemented_service")
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(service="httpserver.v1.Chain")).status == health_pb2.HealthCheckResponse.SERVING
        ok("health: Check")
        assert "httpserver.v1.Chain" in ProtoReflectionDescriptorDatabase(channel).get_services()
        ok("reflection: services")


def failing_cases(binary):
    with Hop(binary, "--fault", "abort=503@100%") as last, Hop(binary, "--upstream", f"grpc://{last.address}") as front:
        stub = chain_pb2_grpc.ChainStub(grpc.insecure_channel(front.address))
        error = failure(lambda: stub.Call(chain_pb2.CallRequest()))
        details = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
        reply = chain_pb2.Reply()
        assert details.details[0].Unpack(reply), details
        below = chain_pb2.Reply.FromString(reply.upstreams[0].reply)
        assert (error.code(), reply.status, below.status) == (grpc.StatusCode.UNAVAILABLE, 502, 503), error
        ok("details: the tree of a call that failed")
    with Hop(binary, "--latency", "1h", "--name", "slow") as slow:
        stub = chain_pb2_grpc.ChainStub(grpc.insecure_channel(slow.address))
        assert failure(lambda: stub.Call(chain_pb2.CallRequest(), timeout=0.2)).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        ok("timeout_on_sleeping_server")
        future = stub.Call.future(chain_pb2.CallRequest())
        time.sleep(0.2)
        future.cancel()
        assert failure_of(future) == grpc.StatusCode.CANCELLED
        wanted = 'rpc_server_call_duration_seconds_count{error_type="",network_protocol_version="2",rpc_method="httpserver.v1.Chain/Call",rpc_response_status_code="CANCELLED"'
        for _ in range(100):
            with urllib.request.urlopen(f"http://{slow.address}/metrics", timeout=30) as metrics:
                if wanted in metrics.read().decode():
                    break
            time.sleep(0.1)
        else:
            raise AssertionError("the cancelled call is not counted")
        ok("cancel_after_begin")


def drain_cases(binary):
    """A rollout: the hop is told to stop while a stream and a call are under way."""
    with Hop(binary, "--drain-delay", "0", "--latency", "300ms") as hop:
        stub = chain_pb2_grpc.ChainStub(grpc.insecure_channel(hop.address))
        long, short = stub.Stream(chain_pb2.StreamRequest(count=2, interval_ms=1_800_000)), stub.Stream(chain_pb2.StreamRequest(count=3, interval_ms=300))
        next(long), next(short)
        call = stub.Call.future(chain_pb2.CallRequest())
        time.sleep(0.1)
        hop.process.terminate()
        assert call.result().service == "httpserver"
        assert len([*short]) == 2
        error = failure(lambda: [*long])
        assert error.code() == grpc.StatusCode.UNAVAILABLE and "1 of 2" in error.details(), error
        assert hop.process.wait(timeout=30) == 0
    ok("drain: calls and short streams whole, long ones end with UNAVAILABLE")


def websocket_cases(binary):
    with Hop(binary, "--name", "front") as hop, websocket_client.connect(f"ws://{hop.address}/ws", additional_headers={"traceparent": TRACE}) as socket:
        reply = json.loads(socket.recv(timeout=30))
        assert (reply["service"], reply["received"]["traceparent"]) == ("front", [TRACE]), reply
        for message in ("grün", b"\xff" * 16_384):
            socket.send(message)
            assert socket.recv(timeout=30) == message
        hop.process.send_signal(signal.SIGINT)
        try:
            socket.recv(timeout=30)
        except ConnectionClosed as closed:
            assert closed.rcvd.code == 1001, closed
    ok("websockets: handshake, echo, closed at the drain")


def failure_of(future):
    try:
        future.result()
    except grpc.FutureCancelledError:
        return grpc.StatusCode.CANCELLED
    raise AssertionError("the call did not fail")


def middle_cases(binary):
    with Hop(binary, "--name", "last") as last:
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        chain_pb2_grpc.add_ChainServicer_to_server(Middle(last.address), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with Hop(binary, "--name", "front", "--upstream", f"grpc://127.0.0.1:{port}") as front:
            for _ in range(20):
                reply = front.json("/service1?format=json")
                middle = reply["upstreams"][0]["reply"]
                below = middle["upstreams"][0]["reply"]
                assert (middle["service"], below["service"]) == ("middle", "last"), reply
                assert below["received"]["traceparent"] == [TRACE] and below["received"]["x-lane"] == ["gray"], below
        server.stop(None)
    ok("grpcio in the middle: one trace")


if __name__ == "__main__":
    client_cases(sys.argv[1])
    failing_cases(sys.argv[1])
    middle_cases(sys.argv[1])
    drain_cases(sys.argv[1])
    websocket_cases(sys.argv[1])
