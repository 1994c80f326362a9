"""Tells the loggers what the hardworker holds, when it came, and what waits in its spool (line.py).

Each logger hears of the connections that go to it, and the first that answers of those that go to the
spool: there they will come. What a logger has not confirmed is told again. It has a thread of its own: a
logger that does not answer holds up nobody.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from midstream import key
from midstream.config import DATA, Config
from midstream.daemon.arrivals import ArrivalBook
from midstream.daemon.held import Book, Collector, Entry
from midstream.daemon.pending import SpoolFile
from midstream.ebpf.control import Ended, Open
from midstream.ebpf.heads import StreamHeads
from midstream.ebpf.records import HERE
from midstream.errors import MidstreamError, NetworkError
from midstream.line import Head, Line, call
from midstream.network import MAX_SENSORS
from midstream.silence import Silence
from midstream.told import OPEN, UNTOLD, ArrivalTimes, HeldConnection, Pending

PERIOD = 1.0  # seconds from one look to the next
CHUNK = 256  # connections in a message
IDLE = 5.0  # seconds without news after which a line is closed: the logger waits no longer than line.TIMEOUT
GRACE = 5  # looks until an end is told of which the spool's file says nothing
FIRST_RETRY, LAST_RETRY = 1.0, 5.0  # seconds until a logger is called again that did not answer


class ToldLogger:
    """A logger that is told. pending: what it knows of the spool, None: nothing, or that is not sure. clock:
    by how many nanoseconds its clock is ahead of ours, and how much that may be wrong; None: nobody knows.
    """

    def __init__(
        self,
        address: str,
        dial: Callable[[str], Line],
        now: Callable[[], float],
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.address = address
        self._dial, self._now, self._wall = dial, now, wall
        self._line: Line | None = None
        self._call_at, self._delay, self._used = 0.0, FIRST_RETRY, now()
        self.pending: list[Pending] | None = None
        self.clock: tuple[int, int] | None = None
        self.fault = ""

    @property
    def may_answer(self) -> bool:
        """It answered last, or it is time to call it again."""
        return self._line is not None or self._now() >= self._call_at

    def tell(
        self,
        streams: Sequence[HeldConnection],
        arrivals: Sequence[ArrivalTimes],
        pending: list[Pending] | None,
    ) -> bool:
        """Has the logger written it down? arrivals: none while `clock` is None. pending: None if that is not
        for it."""
        said: dict[str, object] = {"kind": "held", "connections": [each.said for each in streams]}
        if self.clock is not None:
            ahead, error = self.clock
            exact = [replace(each, ahead_ns=ahead, error_ns=error) for each in arrivals]
            said["arrivals"] = [(*each.said, len(each.steps)) for each in exact]
        if pending is not None:
            said["pending"] = [each.said for each in pending]
        try:
            if self._line is None:
                self._line = self._dial(self.address)
            asked_ns = self._wall()
            self._line.send(said, [each.steps for each in arrivals])
            answer, _ = self._line.receive()
            answered_ns = self._wall()
            if "noted" not in answer:
                raise NetworkError(f"{self.address}: {answer.get('failed', 'no answer that is known')}")
            self.clock = _clock(asked_ns, answer, answered_ns)
        except MidstreamError as error:
            self.fault, self.pending = str(error), None
            self.hang_up()
            self._call_at = self._now() + self._delay
            self._delay = min(2 * self._delay, LAST_RETRY)
            return False
        self.fault, self._delay, self._used = "", FIRST_RETRY, self._now()
        if pending is not None:
            self.pending = pending
        return True

    def rest(self) -> None:
        """Close the line if there was nothing to say for a while."""
        if self._now() > self._used + IDLE:
            self.hang_up()

    def hang_up(self) -> None:
        self.clock = None  # so the first message of a line has no bytes behind it
        if self._line is not None:
            self._line.close()
            self._line = None


def _concerns(position: int, others: range) -> Callable[[int], bool]:
    """Is a logger told of connections that go to a destination: its own position, or one of others?"""
    return lambda destination: destination == position or destination in others


def _clock(asked_ns: int, answer: Head, answered_ns: int) -> tuple[int, int] | None:
    """The difference of two clocks, and its error at most (RFC 5905, section 8: offset, and half the delay).
    The first and the last time are ours, those in the answer the other's."""
    there = answer.get("received_ns"), answer.get("answered_ns")
    if not (isinstance(there[0], int) and isinstance(there[1], int)):
        return None
    ahead = (there[0] - asked_ns + there[1] - answered_ns) // 2
    error = max(0, (answered_ns - asked_ns - (there[1] - there[0])) // 2)
    return ahead, error


class Teller:
    """Its own thread from `start` to `close`. `loggers`: their addresses now, in const.toml's order. `seen`:
    see Collector. `saving`: is something of a logger's connections about to be stored in the spool?

    Raises ConfigError if there is no key, or no port of the loggers (logger.replay_port).
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        loggers: Callable[[], Sequence[str]],
        *,
        dial: Callable[[str], Line] | None = None,
        now: Callable[[], float] = time.monotonic,
        seen: Callable[[list[Open], list[Ended]], None] = lambda *_: None,
        saving: Callable[[], bool] = lambda: False,
    ) -> None:
        secret, port = key.read(config.key_path), config.logger.replay_port
        self._dial = dial or (lambda address: call(address, secret, port))
        self._loggers, self._now, self._saving = loggers, now, saving
        self._book = Book(config.const_path.with_name("held.jsonl"))
        self._arrivals = ArrivalBook(StreamHeads(folder).read)
        deadlines = {stream.name: stream.deadline for stream in config.stream} or {DATA: config.data.deadline}
        self._silences = {
            stream: Silence(
                deadline,
                lambda: MAX_SENSORS,
                lambda: self._arrivals.looked_ns,
                all_send=not config.stream,
            )
            for stream, deadline in deadlines.items()
            if deadline
        }
        self._collector = Collector(self._book, self._arrivals, folder, now, seen)
        self._spool = SpoolFile(config.spool_path) if config.spool_path else None
        self._ears: dict[str, ToldLogger] = {}
        self._fault = ""
        self._stopped, self._is_due = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="held", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """What is not told yet is in the book's file."""
        self._stopped.set()
        self._is_due.set()
        if self._thread.is_alive():
            self._thread.join(PERIOD)
        for ear in self._ears.values():
            ear.hang_up()

    def state(self) -> dict[str, object]:
        """For status: what no logger has confirmed, what waits in the spool, and what hinders it."""
        pending = self._spool.pending if self._spool else []
        sensors: dict[str, dict[str, int]] = {}
        for each in pending:
            found = sensors.setdefault(each.sensor, {"messages": 0, "bytes": 0, "oldest_ns": each.oldest_ns})
            found["messages"] += each.messages
            found["bytes"] += each.end - each.start
            found["oldest_ns"] = min(found["oldest_ns"], each.oldest_ns)
        unread = self._spool.fault if self._spool else ""
        faults = [self._fault, self._book.fault, unread, *(ear.fault for ear in list(self._ears.values()))]
        return {
            "untold_ends": self._book.ends,
            "pending": sensors,
            "faults": [fault for fault in faults if fault],
        }

    @property
    def silent(self) -> dict[str, frozenset[int]]:
        """The positions of the sensors that had missed a stream's deadline when its ring was last looked at,
        by the name of the stream."""
        return {
            stream: found
            for stream, silence in self._silences.items()
            if (found := silence.silent(silence.left(self._arrivals.heard[stream])))
        }

    def ask(self) -> None:
        """Ask the program now what has ended, and tell `seen`; any thread may. Raises KernelError."""
        self._collector.ask()
        self._is_due.set()

    def look(self) -> None:
        """Once: see what has changed, and tell it. Raises KernelError."""
        self._collector.collect()
        self._arrivals.collect()
        saving = self._saving()  # asked before the file is looked at: what is saved by then is seen there
        pending = self._spool.look() if self._spool else None
        addresses = list(self._loggers())
        for gone in self._ears.keys() - set(addresses):
            self._ears.pop(gone).hang_up()
        spool_told = False
        for position, address in enumerate(addresses):
            ear = self._ears.setdefault(address, ToldLogger(address, self._dial, self._now))
            if not ear.may_answer:
                continue
            # The spool, and loggers that const.toml does not name any more.
            of_spool = range(len(addresses), HERE + 1) if not spool_told else range(0)
            if self._tell(ear, _concerns(position, of_spool), saving, None if spool_told else pending):
                spool_told = True
            ear.rest()

    def _words(
        self, concerns: Callable[[int], bool], saving: bool
    ) -> Callable[[Entry], HeldConnection | None]:
        """What a logger is to hear now. A connection that has ended is called open until it is settled: what
        the logger lacks of it would be called a hole."""

        def words(entry: Entry) -> HeldConnection | None:
            if not concerns(entry.destination):
                return None
            return entry.stream if self._is_settled(entry, saving) else replace(entry.stream, state=OPEN)

        return words

    def _is_settled(self, entry: Entry, saving: bool) -> bool:
        """Is what a logger lacks of a connection that has ended pending by now, if it ever will be?"""
        stream = entry.stream
        if stream.state in (OPEN, UNTOLD):
            return True
        if not stream.here or self._spool is None:
            return not saving
        has_all = self._spool.has_all(stream)
        return entry.looks >= GRACE if has_all is None else has_all

    def _tell(
        self,
        ear: ToldLogger,
        concerns: Callable[[int], bool],
        saving: bool,
        pending: list[Pending] | None,
    ) -> bool:
        """False if it does not answer."""
        words, news = self._words(concerns, saving), pending if pending != ear.pending else None
        while True:
            streams, arrivals = self._book.untold(words, CHUNK), self._arrivals.untold(concerns)
            if not streams and not arrivals and news is None:
                return not ear.fault
            said = arrivals if ear.clock is not None else []
            if not ear.tell(streams, said, news):
                return False
            self._book.confirm(streams)
            self._arrivals.confirm(said)
            news = None
            if arrivals and ear.clock is None:  # a logger that does not tell its time
                self._arrivals.confirm(arrivals)

    def _run(self) -> None:
        while True:
            if self._is_due.wait(PERIOD):
                self._is_due.clear()
            if self._stopped.is_set():
                return
            try:
                self.look()
                self._fault = ""
            except MidstreamError as error:  # there is no program just now
                self._fault = str(error)
