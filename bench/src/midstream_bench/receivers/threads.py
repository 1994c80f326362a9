"""Blocking sockets, as most programs in Python begin: a thread for each connection.

python -m midstream_bench.receivers.threads ADDRESS LOGGER TOS PORT FRAMING SIZE [PORT FRAMING SIZE …]
"""

import os
import socket
import sys
import threading
import time

from midstream.load import Incoming
from midstream_bench.receivers.application import Application, Stream, places

CHUNK = 1 << 18


def main(*words: str) -> None:
    """Serve until SIGTERM."""
    address, logger, tos, incoming = places(words)
    waker, stopped = socket.socketpair()
    application = Application(lambda: stopped.send(b"x"))

    def accept(listener: socket.socket, kind: Incoming) -> None:
        while True:
            inner, _ = listener.accept()
            threading.Thread(target=serve, args=(inner, kind), daemon=True).start()

    def serve(inner: socket.socket, kind: Incoming) -> None:
        outer = None
        if logger:
            outer = socket.socket()
            outer.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
            outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            outer.connect((logger, kind.port))
        stream = Stream(application, kind)
        while data := inner.recv(CHUNK):
            application.now = time.time_ns()
            application.wakeups += 1
            stream.feed(data)
            if outer:
                outer.sendall(data)
        inner.close()
        if outer:
            outer.close()

    for kind in incoming:
        listener = socket.create_server((address, kind.port), backlog=1024)
        threading.Thread(target=accept, args=(listener, kind), daemon=True).start()
    application.ready()
    while waker.recv(1) != b"x":
        pass
    application.finish()
    sys.stdout.flush()
    os._exit(0)  # the threads wait in the kernel


if __name__ == "__main__":
    main(*sys.argv[1:])
