"""Look on while the triangle works, without giving the hardworker's application anything to do.

What the hardworker's program has done is in its pinned maps, what a host's interface and TCP have done in
/proc/PID/net of any process on that host.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from midstream import config as configuration
from midstream import network
from midstream.ebpf import loader, pins
from midstream.ebpf.progress import progress
from midstream.ebpf.records import FORWARDED, OUTCOMES
from midstream.lab import Lab
from midstream.lab.hosts import INTERFACE
from midstream.streams import resolved

WINDOW = 1.0  # seconds over which a rate is taken

_ESTABLISHED = 1  # include/net/tcp_states.h
_RECEIVED, _SENT = 1, 9  # columns of /proc/net/dev: packets


class Counts(NamedTuple):
    """Counted so far, or a second: messages that the hardworker holds, packets on the three ways."""

    messages: float
    to_hardworker: float
    to_logger: float
    from_logger: float


@dataclass(frozen=True)
class View:
    """What there is to see at a moment. ring: filled part, None where the receiver has none."""

    totals: Counts
    rates: Counts
    connections: int
    sockets: int
    ring: float | None


class Observer:
    """`hardworker` and `logger` are process ids on these hosts. frames: of each stream by name the bytes of a
    message on the wire, about. records: the hardworker's records, and the bytes of a message in each."""

    def __init__(
        self,
        lab: Lab,
        hardworker: int,
        logger: int,
        frames: Mapping[str, float],
        records: Sequence[tuple[Path, float]],
    ) -> None:
        config = configuration.load(lab.config)
        streams = resolved(config, network.load(lab.const))
        self._hardworker = Path(f"/proc/{hardworker}/net")
        self._logger = Path(f"/proc/{logger}/net")
        self._ports = {stream.topology.port for stream in streams.values()}
        self._records = records
        self._folder = pins.default_folder("hardworker", config)
        self._folders = [
            (pins.stream_folder(self._folder, stream.config), frames[name])
            for name, stream in streams.items()
        ]
        self._ebpf = config.hardworker.receiver == "ebpf"
        self._history: deque[tuple[float, Counts]] = deque()
        self._sockets = 0
        self._first_segments = self._segments()
        self.look()

    def look(self) -> View:
        """Take a sample; rates are those since the one that is WINDOW seconds old."""
        sockets = self._port_sockets()
        self._sockets = max(self._sockets, len(sockets))
        if not self._ebpf:
            established = [port for port, state in sockets if state == _ESTABLISHED]
            connections, ring = sum(port in self._ports for port in established), None
            received, sent = self._packets(self._hardworker)
            messages = sum(int(path.stat().st_size / size) for path, size in self._records)
        else:
            held = [(progress(folder), frame) for folder, frame in self._folders]
            connections = sum(each.connections for each, _ in held)
            ring = max(each.fill for each, _ in held)
            counted = self.counters()
            received, sent = sum(counted.values()), sum(counted.get(outcome, 0) for outcome in FORWARDED)
            messages = sum(int(each.bytes / frame) for each, frame in held)
        if self._history:  # a connection that ended between two readings must not make it step back
            messages = max(messages, int(self._history[-1][1].messages))
        totals = Counts(messages, received, sent, self._packets(self._logger)[1])
        return View(totals, self._rates(totals), connections, len(sockets), ring)

    def counters(self) -> dict[str, int]:
        """The program's counters that are not 0, over all sensors; none with the user-mode handler."""
        if not self._ebpf:
            return {}
        table = loader.counters(self._folder).sum(axis=0)
        return {outcome: int(count) for outcome, count in zip(OUTCOMES, table, strict=True) if count}

    @property
    def drained(self) -> bool:
        """Has the application taken, and given back, everything that the program stored?"""
        return not self._ebpf or progress(self._folder).fill == 0

    def stack(self) -> dict[str, int]:
        """What the hardworker's own TCP had to do with it: segments since the observer began, and the
        highest number of sockets on the port, in whatever state, that it saw."""
        self._sockets = max(self._sockets, len(self._port_sockets()))
        return {"tcp_segments_in": self._segments() - self._first_segments, "sockets": self._sockets}

    def _rates(self, totals: Counts) -> Counts:
        now = time.monotonic()
        self._history.append((now, totals))
        while len(self._history) > 1 and now - self._history[1][0] >= WINDOW:
            self._history.popleft()
        then, before = self._history[0]
        seconds = now - then
        if not seconds:
            return Counts(0, 0, 0, 0)
        return Counts(*((new - old) / seconds for new, old in zip(totals, before, strict=True)))

    def _segments(self) -> int:
        names, values = (
            line.split()
            for line in (self._hardworker / "snmp").read_text().splitlines()
            if line.startswith("Tcp:")
        )
        return int(values[names.index("InSegs")])

    def _port_sockets(self) -> list[tuple[int, int]]:
        """Local port and state of the hardworker's sockets that have a stream's port at either end."""
        found = []
        for name in ("tcp", "tcp6"):
            for line in _lines(self._hardworker / name)[1:]:
                _, local, remote, state, *_ = line.split()
                ports = [int(address.rpartition(":")[2], 16) for address in (local, remote)]
                if not self._ports.isdisjoint(ports):
                    found.append((ports[0], int(state, 16)))
        return found

    def _packets(self, net: Path) -> tuple[int, int]:
        for line in _lines(net / "dev"):
            name, _, numbers = line.partition(":")
            if name.strip() == INTERFACE:
                columns = numbers.split()
                return int(columns[_RECEIVED]), int(columns[_SENT])
        return 0, 0


def _lines(path: Path) -> list[str]:
    """Empty where the kernel does not have the file (no IPv6)."""
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
