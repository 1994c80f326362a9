"""What every receiver written in Python does with a message: application.h in Python.

In the measured window: the sequence number continues that of the connection, count, keep the latency. Outside
it every byte is verified instead. A transport makes a `Stream` for each connection and gives it the bytes.
"""

import json
import resource
import signal
import struct
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from midstream.framing import Framing, decoder
from midstream.load import Incoming
from midstream.load.message import HEADER, carried, filler, find_connection

LATENCIES = 1 << 22  # a longer window keeps its last ones
_FIRST = (
    8  # messages of each connection that are verified before the window: this is slow, and must have ended
)
_HEAD = struct.Struct("<QQ")  # sequence, time


class Application:
    """Counts and verifies. `stop` is called upon SIGTERM; `finish` prints what was seen."""

    def __init__(self, stop: Callable[[], object]) -> None:
        self.measuring = self.measured = False
        self.now = 0
        self.wakeups = 0
        self.connections = self.messages = self.bytes = self.errors = self.verified = self.window = 0
        self.latencies = array("q", bytes(8 * LATENCIES))
        self._window_wakeups = 0
        self._begin = self._end = resource.getrusage(resource.RUSAGE_SELF)
        signal.signal(signal.SIGUSR1, self._begin_window)
        signal.signal(signal.SIGUSR2, self._end_window)
        signal.signal(signal.SIGTERM, lambda *_: stop())

    def ready(self) -> None:
        """Tell that connections are accepted."""
        print("ready", file=sys.stderr, flush=True)

    def woken(self) -> None:
        """The transport has something to deliver: read the clock once for all of it."""
        self.wakeups += 1
        self.now = time.time_ns()

    def is_verifying(self, sequence: int) -> bool:
        """Is a message with this sequence number to be verified? Not in the window, nor shortly before."""
        return self.measured or (not self.measuring and sequence < _FIRST)

    def finish(self) -> None:
        """Print the summary."""
        before, after = self._begin, self._end
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        summary: dict[str, Any] = {
            "messages": self.messages,
            "bytes": self.bytes,
            "connections": self.connections,
            "errors": self.errors,
            "verified": self.verified,
            "window_messages": self.window,
            "cpu_ns": round(used * 1e9),
            "wakeups": self._window_wakeups,
            "voluntary": after.ru_nvcsw - before.ru_nvcsw,
            "involuntary": after.ru_nivcsw - before.ru_nivcsw,
        }
        if kept := min(self.window, LATENCIES):
            summary["latency_ns"] = summarize(np.frombuffer(self.latencies, np.int64)[:kept])
        print(json.dumps(summary), flush=True)

    def _begin_window(self, *_: object) -> None:
        self._begin = resource.getrusage(resource.RUSAGE_SELF)
        self.window = 0
        self._window_wakeups = self.wakeups
        self.measuring = True

    def _end_window(self, *_: object) -> None:
        self.measuring, self.measured = False, True
        self._window_wakeups = self.wakeups - self._window_wakeups
        self._end = resource.getrusage(resource.RUSAGE_SELF)


class Stream:
    """One connection, whose bytes come in order; incoming: what they are."""

    __slots__ = ("_app", "_decoder", "_framing", "_next", "_number", "_partial", "_size")

    def __init__(self, application: Application, incoming: Incoming) -> None:
        self._app = application
        self._framing, self._size = incoming.framing, incoming.size
        self._decoder = decoder(self._framing, size=self._size, max_size=self._size)
        self._next = 0
        self._number = -1  # the load's
        self._partial = b""
        application.connections += 1

    def feed(self, data: bytes) -> None:
        """Cut the next bytes into messages and deliver each."""
        self._app.bytes += len(data)
        if self._framing != "fixed":
            for message in self._decoder.feed(data):
                self.deliver(message)
            return
        if self._partial:
            data = self._partial + data
        size, end = self._size, len(data)
        position = 0
        while position + size <= end:
            self._deliver(data, position, size)
            position += size
        self._partial = data[position:]

    def deliver(self, payload: bytes) -> None:
        """One message, whole."""
        message = carried(self._framing, payload)
        if message:
            self._deliver(message, 0, len(message))
        else:
            self._app.errors += 1

    def _deliver(self, data: bytes, position: int, size: int) -> None:
        """One message, whole, at a position of data."""
        app = self._app
        sequence, sent = _HEAD.unpack_from(data, position)
        if sequence != self._next:
            app.errors += 1
        self._next = sequence + 1
        app.messages += 1
        if app.measuring:
            app.latencies[app.window % LATENCIES] = app.now - sent
            app.window += 1
        elif app.is_verifying(sequence) and not self._is_right(data[position : position + size]):
            app.errors += 1

    def _is_right(self, message: bytes) -> bool:
        if self._number < 0:
            self._number = find_connection(message)
        self._app.verified += 1
        return is_right(message, self._number)


def is_right(message: bytes, number: int) -> bool:
    """Is every byte of a message that of this connection of the load?"""
    expected = filler(number, np.frombuffer(message, "<u8", 1), len(message))
    return number >= 0 and message[HEADER:] == expected.tobytes()


def summarize(latencies: np.ndarray) -> dict[str, Any]:
    """Percentiles, and how many lie in eighths of powers of two: [lower bound, count]."""
    found = np.clip(latencies, 0, None)
    middle, p99, p999 = (int(np.percentile(found, part, method="lower")) for part in (50, 99, 99.9))
    exponent = np.maximum(np.frexp(found.astype(float))[1] - 4, 0)  # of a bucket's width
    buckets, counts = np.unique(found >> exponent << exponent, return_counts=True)
    histogram = [[int(lower), int(count)] for lower, count in zip(buckets, counts, strict=True)]
    return {"p50": middle, "p99": p99, "p999": p999, "max": int(found.max()), "histogram": histogram}


def places(words: Sequence[str]) -> tuple[str, str, int, list[Incoming]]:
    """Of the arguments ADDRESS LOGGER TOS PORT FRAMING SIZE [PORT FRAMING SIZE …]: the address, that of the
    logger (empty for -: nothing is sent on), the TOS byte for it, and what comes to which port."""
    address, logger, tos, *ports = words
    incoming = [
        Incoming(int(port), int(size), cast(Framing, framing))
        for port, framing, size in zip(ports[::3], ports[1::3], ports[2::3], strict=True)
    ]
    return address, logger.removeprefix("-"), int(tos), incoming
