"""A next hop that answers every request with the same reply: what a hop does with what it nests can be measured alone."""

import http.client
import socket
import threading


class CannedHop:
    """Answers every request on every connection with `body`."""

    def __init__(self):
        self.body = b"{}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/service3"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            stream, _ = self._listener.accept()
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream):
        unread = b""
        while True:
            while b"\r\n\r\n" not in unread:
                more = stream.recv(1 << 16)
                if not more:
                    return
                unread += more
            _, unread = unread.split(b"\r\n\r\n", 1)
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(self.body)}\r\n\r\n"
            stream.sendall(head.encode() + self.body)


def replies(leaf, middle, canned, headers, depths):
    """Real replies of chains of so many hops: `leaf` is a hop that calls nobody, `middle` one that calls `canned`."""

    def get(port):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/service2", headers={"accept": "application/json", **headers})
        return connection.getresponse().read()

    found = {}
    canned.body = get(leaf)
    for depth in range(1, max(depths) + 1):
        if depth in depths:
            found[depth] = canned.body
        canned.body = get(middle)
    return found


def flat(reply, length):
    """The reply with one more field, a text that makes it `length` bytes long."""
    field = b'"padding":"'
    return b"{" + field + b"x" * (length - len(reply) - len(field) - 2) + b'",' + reply[1:]
