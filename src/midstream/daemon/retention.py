"""What the ring retains for the logger in use: told to the ring's reader, and saved when that logger fails.

The reader is told, per connection, what the logger has committed (ebpf/retained.py). A connection that has
ended is retained until the logger has no socket of it any more, and for a while longer: what a sensor has
reset waits there for its commit without a socket. A socket that is gone in the same run of the logger was
stored. Another run has lost what was not committed before.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from midstream.config import DATA
from midstream.daemon.heartbeat import INTERVAL
from midstream.daemon.sockets import MOST, LoggerWord
from midstream.ebpf.control import Ended, Open
from midstream.ebpf.records import FIN
from midstream.ebpf.retained import Retained
from midstream.lost import Lost, Part

LINGER = 1.0  # seconds, beside the logger's batch_interval, for which a commit may have no socket
UNHEARD = 64  # calls of `note_ends` that are kept while nothing is retained
ALL = (1 << 63) - 1  # bytes of a stream of which nothing has to be retained


class RetainedRing(Protocol):
    """The hardworker's, as it is pinned now (host.py). Everything raises KernelError."""

    def connections(self) -> list[Open]: ...
    def tell(self, committed: Mapping[str, Mapping[int, int]], known: Mapping[str, int]) -> None: ...
    def renew(self) -> None: ...
    def withdraw(self) -> None: ...
    def retained(self) -> dict[int, Retained]: ...


@dataclass(slots=True)
class _Connection:
    """Of the logger in use. held: bytes. committed: at least. socket: its key there, 0: none was seen.
    mentioned: the count of words when it was mentioned last, or seen first. ended: is its end noted, so that
    `held` grows no more?"""

    stream: str
    ip: IPv4Address
    port: int
    first: int
    opened_ns: int
    held: int
    mentioned: int
    committed: int = 0
    socket: int = 0
    open: bool = True
    ended: bool = False


class Retention:
    """batch_interval: the logger's, in seconds. clocks: the time since 1970 and the kernel's, nanoseconds.
    ask(): have `note_ends` called with all that has ended until now. streams(): the stream of each port.

    `note_ends` may be called by another thread than the rest. All else raises KernelError.
    """

    def __init__(
        self,
        ring: RetainedRing,
        batch_interval: float,
        clocks: Callable[[], tuple[int, int]] = lambda: (time.time_ns(), time.monotonic_ns()),
        ask: Callable[[], None] = lambda: None,
        streams: Callable[[], Mapping[int, str]] = dict,
    ) -> None:
        self._ring, self._clocks, self._ask, self._streams = ring, clocks, ask, streams
        self._linger = round((LINGER + batch_interval) / INTERVAL)
        self._ends: deque[tuple[list[Open], list[Ended]]] = deque(maxlen=UNHEARD)
        self._known: dict[str, int] = {}  # of a stream's connections up to this number all is known
        self._connections: dict[int, _Connection] = {}
        self._destination, self._run, self._words = 0, "", 0
        self._retains = False

    def note_ends(self, opened: list[Open], ended: list[Ended]) -> None:
        """Those that have ended since this was called last; `opened` was asked before."""
        self._ends.append((opened, ended))

    def hear(self, destination: int, word: LoggerWord) -> list[Lost]:
        """The logger in use has answered. What it has lost, if it is another run of it than before."""
        if destination != self._destination:
            self._connections.clear()
            self._destination, self._run = destination, ""
        if not word.run:
            self.renew()
            return []
        lost: list[Lost] = []
        if self._run not in ("", word.run):
            self._ask()
            self._look()
            lost = self._collect()
            for one in self._connections.values():
                one.socket = 0
        self._run, self._retains = word.run, True
        self._words += 1
        opened = self._look()
        self._take(word)
        self._tell(opened, rounds=-(-word.count // MOST))
        return lost

    @property
    def retains(self) -> bool:
        """Does the logger in use say what it has committed?"""
        return self._retains

    def renew(self) -> None:
        """What the logger said last holds, although it says nothing."""
        if self._retains:
            self._take_ends()
            self._ring.renew()

    def look(self) -> None:
        """What has opened since the logger was heard? Asked before its connections are ended."""
        if self._retains:
            self._look()

    def leave(self) -> list[Lost]:
        """The logger in use is none any more, and its connections are ended: what it may have lost."""
        self.renew()
        self._ask()
        self._look()  # also at those that go elsewhere now, and maybe have ended there
        lost = self._collect()
        self._connections.clear()
        self.withdraw()
        return lost

    def withdraw(self) -> None:
        """Nothing is retained, until a logger is heard."""
        self._ring.withdraw()
        self._retains, self._run = False, ""

    def _look(self) -> list[Open]:
        self._take_ends()  # first: up to the latest of these all is known, what has opened since is not
        opened = self._ring.connections()
        there = {one.number for one in opened}
        for number, known in self._connections.items():
            known.open = number in there
        for one in opened:
            self._see(one, one.next)
        return opened

    def _take_ends(self) -> None:
        while self._ends:
            opened, ended = self._ends.popleft()
            every: list[Open | Ended] = [*opened, *ended]
            for each in every:
                self._known[each.stream] = max(self._known.get(each.stream, 0), each.number)
            for there in opened:
                self._see(there, there.next)
            for one in ended:
                if known := self._see(one, one.held):
                    known.open, known.ended = False, True

    def _see(self, one: Open | Ended, held: int) -> _Connection | None:
        """Where a destination refuses a connection, and the sensor tries again, the number stays, and it goes
        where connections go then (ebpf/opening.h). None if that is not the logger in use."""
        if one.destination != self._destination:
            self._connections.pop(one.number, None)
            return None
        known = self._connections.get(one.number)
        if known is None:
            known = _Connection(one.stream, one.ip, one.port, one.first, one.opened_ns, held, self._words)
            self._connections[one.number] = known
        known.first, known.opened_ns = one.first, one.opened_ns
        known.held = max(known.held, held)
        return known

    def _take(self, word: LoggerWord) -> None:
        """A socket that is new is of the latest connection from there: its SYN came by here."""
        by_socket = {one.socket: one for one in self._connections.values() if one.socket}
        latest = {(one.stream, one.ip, one.port): one for _, one in sorted(self._connections.items())}
        streams = self._streams()
        for ip, port, key, committed, marked in word.sockets:
            if one := by_socket.get(key) or latest.get((streams.get(marked, DATA), ip, port)):
                one.socket, one.mentioned = key, self._words
                one.committed = max(one.committed, min(committed, one.held))

    def _tell(self, opened: Iterable[Open], *, rounds: int) -> None:
        """rounds: so many words have all that the logger has."""
        committed: dict[str, dict[int, int]] = {}
        for there in opened:
            committed.setdefault(there.stream, {})[there.number] = ALL
        for number, one in list(self._connections.items()):
            is_there = self._words - one.mentioned <= self._linger + rounds
            if is_there and (not one.ended or one.committed < one.held):
                committed.setdefault(one.stream, {})[number] = one.committed
            elif one.open or number > self._known.get(one.stream, 0):
                committed.setdefault(one.stream, {})[number] = ALL
            else:
                del self._connections[number]
        self._ring.tell(committed, self._known)

    def _collect(self) -> list[Lost]:
        """All that is not committed of what the logger had. Then it need not be retained any more."""
        if not self._connections:
            return []
        wall, running = self._clocks()
        lost = []
        for number, found in self._ring.retained().items():
            if one := self._connections.get(number):
                parts = [
                    Part(each.offset, each.time + wall - running, each.data)
                    for each in found.records
                    if each.data and each.offset + len(each.data) > one.committed
                ]
                closed = any(each.flags & FIN for each in found.records)
                opened = one.opened_ns + wall - running
                known = str(one.ip), one.port, one.first, opened, one.committed, closed
                lost.append(Lost(*known, parts, one.stream))
                one.committed = max(one.held, *(part.offset + len(part.data) for part in parts), 0)
        return [each for each in lost if each.parts]
