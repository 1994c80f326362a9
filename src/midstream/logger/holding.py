"""Writes down what a hardworker's daemon says it holds (told.py), so that the log knows what it lacks.

Each message is {"kind": "held", "connections": […], "arrivals": […], "pending": […]}, and confirmed by
{"noted": COUNT} when it is committed. "pending" is all that waits in the spool; without it nothing is said of
that. The steps of the arrivals follow, one after the other; a line's first message has none. An answer says
by this host's clock when it was asked and when it answers, so that the hardworker can compare the clocks.
"""

import threading
import time
from typing import Any

from midstream.config import Config
from midstream.errors import NetworkError
from midstream.line import Head, Line
from midstream.storage.databases import open_store
from midstream.storage.formats import Formats
from midstream.storage.store import Store
from midstream.told import ArrivalTimes, HeldConnection, Pending

MOST = 4096  # connections, or arrivals, in a message
REQUEST_BYTES = 1 << 20  # of a message


class Holding:
    """Answers hardworkers, one after the other."""

    def __init__(self, config: Config, streams: Formats) -> None:
        self._config, self._streams = config, streams
        self._store: Store | None = None
        self._turn = threading.Lock()

    def answer(self, line: Line, said: Head) -> None:
        """Until the hardworker ends the line."""
        steps = memoryview(b"")
        while True:
            received_ns = time.time_ns()
            try:
                streams = [HeldConnection.parse(each) for each in said["connections"]]
                waiting = [Pending.parse(each) for each in said["pending"]] if "pending" in said else None
                arrivals = _arrivals(said.get("arrivals", []), steps)
            except (KeyError, TypeError, ValueError) as error:
                raise NetworkError("nothing that a hardworker says of what it holds") from error
            if max(len(streams), len(waiting or ()), len(arrivals)) > MOST:
                raise NetworkError("a hardworker says too much at a time")
            self._note(streams, arrivals, waiting)
            line.send({"noted": len(streams), "received_ns": received_ns, "answered_ns": time.time_ns()})
            said, steps = line.receive(REQUEST_BYTES)

    def _note(
        self, streams: list[HeldConnection], arrivals: list[ArrivalTimes], waiting: list[Pending] | None
    ) -> None:
        """What fails is opened anew."""
        with self._turn:
            try:
                if self._store is None:
                    self._store = open_store(self._config, self._streams)
                self._store.note_held(streams, waiting, arrivals)
            except BaseException:
                if self._store is not None:
                    self._store.close()
                    self._store = None
                raise


def _arrivals(said: Any, steps: memoryview) -> list[ArrivalTimes]:
    """Each as ArrivalTimes.said, and how many bytes its steps have. Raises ValueError or TypeError."""
    found, at = [], 0
    for *told, size in said:
        found.append(ArrivalTimes.parse((*told, bytes(steps[at : at + size]))))
        at += size
    return found
