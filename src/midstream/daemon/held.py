"""What the hardworker holds of each connection, for the logs to know what they lack.

The program's table says how far each open connection is held, and its queue how each ended. The book keeps
what a logger does not know yet: on disk too, beside const.toml, so that neither the daemon's end nor the
host's loses what nobody was there to hear. Telling it is teller.py's.
"""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from midstream.daemon.arrivals import ArrivalBook, Known
from midstream.ebpf import control, records
from midstream.ebpf.control import Ended, Open
from midstream.told import CLOSED, LOST, OPEN, RESET, UNTOLD, HeldConnection

MOST = 4096  # connections that have ended, and that no logger has heard of
RATE = 256  # connections a second that are looked at on average
SLACK = 1024  # lines of the file that say nothing new any more, before it is written anew

_BOOT = Path("/proc/sys/kernel/random/boot_id")

Key = tuple[str, int, int, int, str]  # of a HeldConnection: sensor, port, first, opened_ns, stream


@dataclass(slots=True)
class Entry:
    """told: what its logger has confirmed. looks: how often the program was asked since it ended."""

    stream: HeldConnection
    destination: int  # a logger's position, or records.HERE
    told: HeldConnection | None = None
    looks: int = 0


class Book:
    """`path`: its file. `most`: see MOST. Its methods are called by one thread at a time."""

    def __init__(
        self,
        path: Path,
        *,
        most: int = MOST,
        boot: Path = _BOOT,
        clocks: Callable[[], tuple[int, int]] = lambda: (time.time_ns(), time.monotonic_ns()),
    ) -> None:
        self._path, self._most = path, most
        self._entries: dict[Key, Entry] = {}
        self._lines = 0
        self._failed = ""
        self._boot = boot.read_text().strip()
        wall, running = clocks()
        self._epoch = wall - running  # so a connection keeps its time, whoever sets the clock
        self._load()

    @property
    def fault(self) -> str:
        """Why the file cannot be written; empty if it can."""
        return self._failed

    def see(self, opened: Iterable[Open], ended: Iterable[Ended]) -> None:
        """What the program says now; `opened` was asked before `ended`."""
        there = set()
        for entry in self._entries.values():
            entry.looks += entry.stream.state != OPEN
        for one in opened:
            stream = self.stream(one, one.next, OPEN)
            there.add(_key(stream))
            if stream.bytes:  # of one that has sent nothing there is nothing to compare
                self._note(stream, one.destination)
        for each in ended:
            stream = self.stream(each, each.held, RESET if each.reset else CLOSED)
            if stream.bytes:
                self._note(stream, each.destination)
        gone = [
            entry for key, entry in self._entries.items() if entry.stream.state == OPEN and key not in there
        ]
        for entry in gone:
            self._note(replace(entry.stream, state=LOST), entry.destination)
        self._bound()
        if self._lines > 2 * len(self._entries) + SLACK:
            self._rewrite()

    def untold(self, words: Callable[[Entry], HeldConnection | None], most: int) -> list[HeldConnection]:
        """What has changed since it was confirmed, the longest known first. words: what is to be told of it
        now, None: nothing."""
        found = []
        for entry in self._entries.values():
            said = words(entry)
            if said is not None and said != entry.told:
                found.append(said)
                if len(found) == most:
                    break
        return found

    def confirm(self, streams: Iterable[HeldConnection]) -> None:
        """A logger has written this down."""
        ended = False
        for stream in streams:
            entry = self._entries.get(_key(stream))
            if entry is not None and entry.stream == stream and stream.state != OPEN:
                del self._entries[_key(stream)]
                ended = True
            elif entry is not None:
                entry.told = stream
        if ended and not any(entry.stream.state != OPEN for entry in self._entries.values()):
            self._rewrite()

    @property
    def ends(self) -> int:
        """How many connections have ended that no logger has heard of."""
        return sum(entry.stream.state != OPEN for entry in list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def stream(self, one: Open | Ended, held: int, state: str) -> HeldConnection:
        """A connection of the program's, as it is told."""
        here = one.destination == records.HERE
        opened_ns = one.opened_ns + self._epoch
        return HeldConnection(str(one.ip), one.port, one.first, opened_ns, held, state, here, one.stream)

    def _note(self, stream: HeldConnection, destination: int) -> None:
        entry = self._entries.get(_key(stream))
        if entry is None:
            self._entries[_key(stream)] = Entry(stream, destination)
            self._append(stream, destination)
        elif entry.stream != stream:
            entry.stream = stream
            if stream.state != OPEN:
                self._append(stream, destination)

    def _bound(self) -> None:
        """Of too many that nobody has heard of the oldest become a sum per sensor and stream: a quarter at a
        time, since the file is written anew."""
        ended = [entry for entry in self._entries.values() if entry.stream.state not in (OPEN, UNTOLD)]
        if len(ended) <= self._most:
            return
        for entry in ended[: len(ended) - self._most + self._most // 4]:
            stream = entry.stream
            del self._entries[_key(stream)]
            total = next(
                (
                    each
                    for each in self._entries.values()
                    if each.stream.state == UNTOLD
                    and (each.stream.sensor, each.stream.stream) == (stream.sensor, stream.stream)
                ),
                None,
            )
            if total is None:
                untold = (stream.bytes, UNTOLD, False, stream.stream)
                summed = HeldConnection(stream.sensor, 0, 0, stream.opened_ns, *untold)
                self._entries[_key(summed)] = Entry(summed, entry.destination)
            else:
                total.stream = replace(total.stream, bytes=total.stream.bytes + stream.bytes)
        self._rewrite()

    # the file: the boot and its epoch, then a line for each connection that opened or ended

    def _load(self) -> None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            head, *lines = self._path.read_text().splitlines()
            known = json.loads(head)
            same = known["boot"] == self._boot
            if same:
                self._epoch = int(known["epoch_ns"])
            for line in lines:
                with suppress(ValueError):  # the last one, if the host went down
                    described, destination = json.loads(line)
                    stream = HeldConnection.parse(described)
                    self._entries[_key(stream)] = Entry(stream, int(destination))
            if not same:  # what was open then is not any more
                for entry in self._entries.values():
                    if entry.stream.state == OPEN:
                        entry.stream = replace(entry.stream, state=LOST)
        self._rewrite()

    def _rewrite(self) -> None:
        head = json.dumps({"boot": self._boot, "epoch_ns": self._epoch})
        lines = [_line(entry.stream, entry.destination) for entry in self._entries.values()]
        new = self._path.with_name(f".{self._path.name}.new")
        self._write(
            lambda: new.write_text("\n".join([head, *lines, ""])), lambda: os.replace(new, self._path)
        )
        self._lines = len(lines)

    def _append(self, stream: HeldConnection, destination: int) -> None:
        def append() -> None:
            with self._path.open("a") as file:
                file.write(f"{_line(stream, destination)}\n")

        self._write(append)
        self._lines += 1

    def _write(self, *steps: Callable[[], object]) -> None:
        try:
            for step in steps:
                step()
            self._failed = ""
        except OSError as error:  # it is kept in memory all the same
            self._failed = (
                f"{self._path}: what no logger has heard yet cannot be written down ({error.strerror}), and "
                "is lost if the daemon ends: see that its folder is there and has room"
            )


class Collector:
    """Asks the program so seldom that it costs next to nothing, however many connections there are."""

    def __init__(
        self,
        book: Book,
        arrivals: ArrivalBook,
        folder: Path,
        now: Callable[[], float] = time.monotonic,
        seen: Callable[[list[Open], list[Ended]], None] = lambda *_: None,
    ) -> None:
        """seen: told of what is open, and what has ended since it was told last."""
        self._book, self._arrivals = book, arrivals
        self._folder, self._now, self._seen = folder, now, seen
        self._turn = threading.Lock()
        self._found: deque[tuple[list[Open], list[Ended]]] = deque()  # and not in the book yet
        self._due = 0.0

    def collect(self) -> None:
        """Nothing, if it is too early. Raises KernelError."""
        if self._now() < self._due:
            return
        self.ask()
        asked = 0
        while self._found:
            opened, ended = self._found.popleft()
            self._book.see(opened, ended)
            self._arrivals.see(self._known(opened, ended))
            asked += len(opened) + len(ended)
        self._due = self._now() + asked / RATE

    def _known(self, opened: list[Open], ended: list[Ended]) -> dict[int, Known]:
        known: list[Open | Ended] = [*opened, *ended]
        return {one.number: (self._book.stream(one, 0, OPEN), one.destination) for one in known}

    def ask(self) -> None:
        """Ask now, whatever it costs; any thread may. `collect` writes it down. Raises KernelError."""
        with self._turn:
            self._due = 0.0
            opened = control.connections(self._folder)
            ended = control.ended(self._folder)
            self._found.append((opened, ended))
            self._seen(opened, ended)


def _key(stream: HeldConnection) -> Key:
    return stream.sensor, stream.port, stream.first, stream.opened_ns, stream.stream


def _line(stream: HeldConnection, destination: int) -> str:
    return json.dumps([stream.values, destination])
