"""Ports for servers that cannot pick one themselves.

They are taken from below the range that the system gives to connections and to whoever asks for port 0, so that nothing else gets one of
them between our choice and the server's start, or while a server restarts; and no port is given out twice by one process.
"""

import random
import socket
import threading

# Kubernetes' node ports begin at 30000.
BEGIN, END, SYSTEM = 20000, 30000, "/proc/sys/net/ipv4/ip_local_port_range"


def candidates():
    """All ports there are to give, in an order of this process' own."""
    end = END
    try:
        with open(SYSTEM) as limits:
            end = min(END, int(limits.read().split()[0]))
    except OSError:
        pass  # not Linux; the range of other systems is above ours
    begin = min(BEGIN, end - 1000)
    return iter(random.sample(range(begin, end), end - begin))


ports, lock = candidates(), threading.Lock()


def free_port():
    """A TCP port of loopback that nobody listens on, and that was not given out before."""
    with lock:
        for port in ports:
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                    return port
                except OSError:
                    pass
    raise RuntimeError("no port is left to give")
