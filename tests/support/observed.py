"""A handler that tells what it has of its sensors' connections, beside the messages."""

import socket
import time
from collections import deque

from tests.support.fake_ring import Segment
from tests.support.hosts import topology

from midstream.ebpf.records import FIN, OPEN, RESET
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.handler import SocketHandler, _Relay
from midstream.hardworker.messages import Format, SensorAddresses
from midstream.network import Topology


class ObservedHandler(SocketHandler):
    """Its messages never are whole: `next` gives the bytes and the events as they come."""

    def __init__(self, hosts: Topology) -> None:
        super().__init__(hosts)
        self.begin(Format("fixed", 1 << 40, SensorAddresses(topology)), Cadence(0.0), attention=-1)
        self._segments: deque[Segment] = deque()
        self._offsets: dict[int, int] = {}

    def next(self) -> Segment | None:
        while not self._segments and self._read():
            pass
        return self._segments.popleft() if self._segments else None

    def _open(self, sensor: int, port: int, inner: socket.socket, outer: socket.socket) -> _Relay:
        relay = super()._open(sensor, port, inner, outer)
        self._tell(relay, OPEN)
        return relay

    def _take(self, relay: _Relay, data: bytes) -> None:
        super()._take(relay, data)
        self._tell(relay, 0, data)

    def _close(self, relay: _Relay, *, reset: bool) -> None:
        if not relay.ended:
            self._tell(relay, RESET if reset else FIN)
        super()._close(relay, reset=reset)

    def _tell(self, relay: _Relay, flags: int, data: bytes = b"") -> None:
        offset, now = self._offsets.get(relay.number, 0), time.monotonic_ns()
        self._segments.append(Segment(relay.number, relay.sensor, relay.port, offset, now, flags, data))
        self._offsets[relay.number] = offset + len(data)
