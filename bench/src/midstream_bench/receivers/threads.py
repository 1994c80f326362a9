"""Blocking sockets, as most programs in Python begin: a thread for each connection.

python -m midstream_bench.receivers.threads ADDRESS PORT SIZE [LOGGER TOS]
"""

import os
import socket
import sys
import threading
import time

from midstream_bench.receivers.application import Application, Stream

CHUNK = 1 << 18


def main(address: str, port: str, size: str, logger: str = "", tos: str = "0") -> None:
    """Serve until SIGTERM."""
    waker, stopped = socket.socketpair()
    application = Application(int(size), lambda: stopped.send(b"x"))
    listener = socket.create_server((address, int(port)), backlog=1024)

    def accept() -> None:
        while True:
            inner, _ = listener.accept()
            threading.Thread(target=serve, args=(inner,), daemon=True).start()

    def serve(inner: socket.socket) -> None:
        outer = None
        if logger:
            outer = socket.socket()
            outer.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, int(tos))
            outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            outer.connect((logger, int(port)))
        stream = Stream(application)
        while data := inner.recv(CHUNK):
            application.now = time.time_ns()
            application.wakeups += 1
            stream.feed(data)
            if outer:
                outer.sendall(data)
        inner.close()
        if outer:
            outer.close()

    threading.Thread(target=accept, daemon=True).start()
    application.ready()
    while waker.recv(1) != b"x":
        pass
    application.finish()
    sys.stdout.flush()
    os._exit(0)  # the threads wait in the kernel


if __name__ == "__main__":
    main(*sys.argv[1:])
