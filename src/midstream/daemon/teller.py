"""Tells the loggers what the hardworker holds, and what waits in its spool, over lines of line.py.

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
from midstream.config import Config
from midstream.daemon.held import Book, Collector, Entry
from midstream.daemon.pending import SpoolFile
from midstream.ebpf.control import Ended, Open
from midstream.ebpf.records import HERE
from midstream.errors import MidstreamError, NetworkError
from midstream.line import Line, call
from midstream.told import OPEN, UNTOLD, HeldStream, Pending

PERIOD = 1.0  # seconds from one look to the next
CHUNK = 256  # connections in a message
IDLE = 5.0  # seconds without news after which a line is closed: the logger waits no longer than line.TIMEOUT
GRACE = 5  # looks until an end is told of which the spool's file says nothing
FIRST_RETRY, LAST_RETRY = 1.0, 5.0  # seconds until a logger is called again that did not answer


class ToldLogger:
    """A logger that is told. pending: what it knows of the spool, None: nothing, or that is not sure."""

    def __init__(self, address: str, dial: Callable[[str], Line], now: Callable[[], float]) -> None:
        self.address = address
        self._dial, self._now = dial, now
        self._line: Line | None = None
        self._call_at, self._delay, self._used = 0.0, FIRST_RETRY, now()
        self.pending: list[Pending] | None = None
        self.fault = ""

    @property
    def may_answer(self) -> bool:
        """It answered last, or it is time to call it again."""
        return self._line is not None or self._now() >= self._call_at

    def tell(self, streams: Sequence[HeldStream], pending: list[Pending] | None) -> bool:
        """Has the logger written it down? pending: None if that is not for it."""
        said: dict[str, object] = {"kind": "held", "connections": [each.values for each in streams]}
        if pending is not None:
            said["pending"] = [each.values for each in pending]
        try:
            if self._line is None:
                self._line = self._dial(self.address)
            self._line.send(said)
            answer, _ = self._line.receive()
            if "noted" not in answer:
                raise NetworkError(f"{self.address}: {answer.get('failed', 'no answer that is known')}")
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
        if self._line is not None:
            self._line.close()
            self._line = None


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
        self._collector = Collector(self._book, folder, now, seen)
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

    def ask(self) -> None:
        """Ask the program now what has ended, and tell `seen`; any thread may. Raises KernelError."""
        self._collector.ask()
        self._is_due.set()

    def look(self) -> None:
        """Once: see what has changed, and tell it. Raises KernelError."""
        self._collector.collect()
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
            words = self._words(position, of_spool, saving)
            if self._tell(ear, words, None if spool_told else pending):
                spool_told = True
            ear.rest()

    def _words(self, position: int, others: range, saving: bool) -> Callable[[Entry], HeldStream | None]:
        """What a logger is to hear now, of its own connections and of other destinations. One that has ended
        is called open until it is settled: what the logger lacks of it would be called a hole."""

        def words(entry: Entry) -> HeldStream | None:
            if entry.destination != position and entry.destination not in others:
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
        self, ear: ToldLogger, words: Callable[[Entry], HeldStream | None], pending: list[Pending] | None
    ) -> bool:
        """False if it does not answer."""
        news = pending if pending != ear.pending else None
        while (streams := self._book.untold(words, CHUNK)) or news is not None:
            if not ear.tell(streams, news):
                return False
            self._book.confirm(streams)
            news = None
            if len(streams) < CHUNK:
                break
        return not ear.fault

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
