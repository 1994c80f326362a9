"""Does the logger take what its kernel holds for it? Told by the kernel, whatever the logger's processes do.

The logger leaves bytes in the receive queues of its sockets until they are stored. A queue that no longer
shrinks is one of a database that takes nothing, or of processes that are stopped.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from midstream.daemon.heartbeat import Told
from midstream.daemon.sockets import Sockets
from midstream.network import Topology

_TABLE = Path("/proc/net/tcp")
_LISTEN, _ESTABLISHED = "0A", ("01", "08")  # tcp_states.h; the second of these: the sensor has ended
_LOOK = 0.25  # seconds between two looks: the table of thousands of connections takes milliseconds
_SMALL = 4096  # bytes in a queue that need not be a whole message


class Backlog:
    """Of the connections of some ports."""

    def __init__(
        self,
        ports: Mapping[int, int],
        table: Path = _TABLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """ports: with the bytes of a message there: what is less waits for the rest of it."""
        self._small = {port: max(size, _SMALL) for port, size in ports.items()}
        self._table, self._clock = table, clock
        self._queues: dict[str, int] = {}
        self._looked = float("-inf")
        self._taken = 0.0

    def waits(self) -> float:
        """Seconds for which nothing was taken although there was something."""
        now = self._clock()
        if now - self._looked >= _LOOK:
            queues = dict(self._read())
            shrunk = any(queues.get(peer, 0) < size for peer, size in self._queues.items())
            if shrunk or not queues or not self._queues:
                self._taken = now
            self._queues, self._looked = queues, now
        return now - self._taken if self._queues else 0.0

    def _read(self) -> Iterator[tuple[str, int]]:
        """Of each connection that has more than a message in its queue: its two ends, and the bytes."""
        with suppress(OSError), self._table.open() as lines:
            next(lines, None)
            for line in lines:
                _, local, peer, state, queues, _ = line.split(maxsplit=5)
                small = self._small.get(int(local.rpartition(":")[2], 16))
                if state in _ESTABLISHED and small is not None:
                    size = int(queues.rpartition(":")[2], 16)
                    if size > small:
                        yield local + peer, size


class LoggerState:
    """What this host's daemon tells of its logger. topology(): what says where that listens."""

    def __init__(self, topology: Callable[[], Topology | None]) -> None:
        self._topology = topology
        self._ports: dict[int, int] = {}
        self._looks: tuple[Backlog, Sockets] | None = None

    def tell(self) -> Told:
        if (topology := self._topology()) is None:
            return Told()
        ports = {each.port: each.size for each in topology.streams} or {topology.port: topology.size}
        if self._looks is None or self._ports != ports:
            self._ports, self._looks = ports, (Backlog(ports), Sockets(ports))
        backlog, sockets = self._looks
        word = sockets.look()
        # One that has not heard of a new stream would refuse its sensors.
        serves = ports.keys() <= listening()
        return Told(serves, max(backlog.waits(), sockets.deaf), word)


def listening(table: Path = _TABLE) -> frozenset[int]:
    """The TCP ports on which a process of this host listens, on whatever address."""
    found = set()
    for path in (table, table.with_name("tcp6")):
        with suppress(OSError), path.open() as lines:
            next(lines, None)
            for line in lines:
                _, local, _, state, _ = line.split(maxsplit=4)
                if state != _LISTEN:
                    break  # those that listen come first
                found.add(int(local.rpartition(":")[2], 16))
    return frozenset(found)
