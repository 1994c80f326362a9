"""Keep frames that are to arrive later, and send them when they are due.

The program on the switch's ports (ebpf/impair.bpf.c) puts such frames into a ring and drops the originals.
The file is also a program, `python hold.py RING`, with the ring as an inherited descriptor. It runs in the
switch's namespace, is started by its path, and needs only the standard library and libbpf. It prints READY
when the first frame may come, and nothing afterwards. SIGTERM makes it send all that it holds, and end.
"""

import ctypes
import errno
import heapq
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count

READY = "ready"

_ATTEMPTS, _PAUSE = 1000, 0.0001  # seconds

_HELD = struct.Struct("<QII")  # struct held, before the frame

_on_record_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Hold:
    """The frames of the ring `fd`, each sent by `send(port, frame)` when due; equals keep their order."""

    def __init__(self, fd: int, send: Callable[[int, bytes], None]) -> None:
        self._send = send
        self._frames: list[tuple[int, int, int, bytes]] = []
        self._numbers = count()
        self._library = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name in ("free", "consume", "epoll_fd"):
            getattr(self._library, f"ring_buffer__{name}").argtypes = [ctypes.c_void_p]
        self._library.ring_buffer__new.restype = ctypes.c_void_p
        self._on_record = _on_record_type(self._take)  # must live as long as the ring
        self._ring = self._library.ring_buffer__new(fd, self._on_record, None, None)
        if not self._ring:
            code = ctypes.get_errno()
            raise OSError(code, f"{os.strerror(code)}: cannot map the ring of held frames")

    def close(self) -> None:
        """Unmap the ring; what was not sent is lost."""
        self._library.ring_buffer__free(self._ring)

    def run(self, stop: int) -> None:
        """Send each frame when it is due, until the descriptor `stop` is readable."""
        arrived = self._library.ring_buffer__epoll_fd(self._ring)
        while stop not in select.select([arrived, stop], [], [], self._seconds_left())[0]:
            self._library.ring_buffer__consume(self._ring)
            self._send_until(time.monotonic_ns())

    def flush(self) -> None:
        """Send everything at once, in the order in which it would have been due."""
        self._library.ring_buffer__consume(self._ring)
        self._send_until(None)

    def _take(self, _context: int, record: int, _size: int) -> int:
        due, port, length = _HELD.unpack(ctypes.string_at(record, _HELD.size))
        frame = ctypes.string_at(record + _HELD.size, length)
        heapq.heappush(self._frames, (due, next(self._numbers), port, frame))
        return 0

    def _seconds_left(self) -> float | None:
        return max(0, self._frames[0][0] - time.monotonic_ns()) / 1e9 if self._frames else None

    def _send_until(self, now: int | None) -> None:
        while self._frames and (now is None or self._frames[0][0] <= now):
            _, _, port, frame = heapq.heappop(self._frames)
            self._send(port, frame)


class _Ports:
    """Sends frames by the switch's ports, past the bridge."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}

    def send(self, port: int, frame: bytes) -> None:
        for _ in range(_ATTEMPTS):
            try:
                self._socket(port).send(frame)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return  # the port is gone
                time.sleep(_PAUSE)  # a burst has filled the port's queue
            else:
                return

    def _socket(self, port: int) -> socket.socket:
        if port not in self._sockets:
            # Protocol 0: it only sends.
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sender.bind((socket.if_indextoname(port), 0))
            self._sockets[port] = sender
        return self._sockets[port]


def _main(ring: int) -> None:
    # A frame is to leave when it is due, not when the core has nothing else to do.
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    # The signal only wakes `run`: an exception would be lost inside libbpf's callback.
    stop, stopped = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(stopped)
    signal.signal(signal.SIGTERM, lambda *_: None)
    hold = Hold(ring, _Ports().send)
    print(READY, flush=True)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(nowhere, output)
    hold.run(stop)
    hold.flush()


if __name__ == "__main__":
    _main(int(sys.argv[1]))
