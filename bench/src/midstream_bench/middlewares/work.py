"""The application of a middleware's receiver: what every receiver's callback does, no more and no less.

For each message it reads sequence and time at the head, checks that the number continues the sequence of its
connection, counts, and puts the latency into memory that it has already.
"""

import json
import resource
import signal
import sys
import time
from array import array
from struct import Struct
from types import FrameType
from typing import Any

import numpy as np

from midstream.load import message as wire

KEPT = 1 << 20  # latencies; after so many the oldest make room
CONNECTION_SHIFT = 48  # of the sequence number, where the transport does not tell connections apart
_MASK = (1 << CONNECTION_SHIFT) - 1

_HEAD = Struct("<QQ").unpack_from


class Work:
    """Sees each message once: `take(payload)`. SIGUSR1 begins the measured window, SIGUSR2 ends it; outside
    it every byte is verified.

    The upper 16 bits of a sequence number are the number of the connection: what a message of a middleware
    says itself, because there is no connection to tell it.
    """

    def __init__(self) -> None:
        self.messages = self.bytes = self.errors = self.verified = 0
        self.stopped = False
        self._expected: dict[int, int] = {}
        self._latencies = array("q", bytes(8 * KEPT))
        self._begin: tuple[int, ...] = ()
        self._window: dict[str, Any] = {}
        self._verifying = True

    def listen(self) -> None:
        """Let the signals do what they mean; SIGTERM sets `stopped`."""
        signal.signal(signal.SIGUSR1, self._begin_window)
        signal.signal(signal.SIGUSR2, self._end_window)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def ready(self) -> None:
        """Tell whoever started us."""
        print("ready", file=sys.stderr, flush=True)

    def take(self, payload: bytes | memoryview) -> None:
        """The callback."""
        number, sent = _HEAD(payload)
        connection = number >> CONNECTION_SHIFT
        if self._expected.get(connection, connection << CONNECTION_SHIFT) != number:
            self.errors += 1
        self._expected[connection] = number + 1
        self._latencies[self.messages & (KEPT - 1)] = time.time_ns() - sent
        self.messages += 1
        self.bytes += len(payload)
        if self._verifying:
            self._verify(bytes(payload), connection, number & _MASK)

    def report(self) -> None:
        """Print what was seen: the JSON object that midstream_bench.receiver tells of."""
        seen = {
            "messages": self.messages,
            "bytes": self.bytes,
            "connections": len(self._expected),
            "errors": self.errors,
            "verified": self.verified,
        }
        print(json.dumps(seen | self._window), flush=True)

    def _begin_window(self, _number: int, _frame: FrameType | None) -> None:
        self._begin = self._figures()
        self._verifying = False

    def _end_window(self, _number: int, _frame: FrameType | None) -> None:
        names = ("window_messages", "cpu_ns", "voluntary", "involuntary")
        used = [end - begin for end, begin in zip(self._figures(), self._begin, strict=True)]
        self._window = dict(zip(names, used, strict=True))
        self._window["latency_ns"] = self._latency(used[0])
        self._verifying = True

    def _figures(self) -> tuple[int, ...]:
        own = resource.getrusage(resource.RUSAGE_SELF)
        return self.messages, time.process_time_ns(), own.ru_nvcsw, own.ru_nivcsw

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True

    def _latency(self, count: int) -> dict[str, int]:
        every = np.frombuffer(self._latencies, np.int64)
        last = every[np.arange(self.messages - min(count, KEPT), self.messages) & (KEPT - 1)]
        if not len(last):
            return {}
        quantiles = np.percentile(last, [50, 99, 99.9, 100], method="inverted_cdf")
        return dict(zip(("p50", "p99", "p999", "max"), quantiles.astype(int).tolist(), strict=True))

    def _verify(self, payload: bytes, connection: int, sequence: int) -> None:
        expected = wire.filler(connection, np.array([sequence]), len(payload)).tobytes()
        self.verified += 1
        if payload[wire.HEADER :] != expected:
            self.errors += 1
