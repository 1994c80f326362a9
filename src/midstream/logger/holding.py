"""Writes down what a hardworker's daemon says it holds (told.py), so that the log knows what it lacks.

Each message is {"kind": "held", "connections": […], "pending": […]}, and confirmed by {"noted": COUNT}
when it is committed. "pending" is all that waits in the spool; without it nothing is said of that.
"""

import threading

from midstream.config import Config
from midstream.errors import NetworkError
from midstream.line import Head, Line
from midstream.storage.databases import open_store
from midstream.storage.store import Store
from midstream.told import HeldStream, Pending

MOST = 4096  # connections in a message
REQUEST_BYTES = 1 << 20  # of a message


class Holding:
    """Answers hardworkers, one after the other."""

    def __init__(self, config: Config, size: int) -> None:
        self._config, self._size = config, size
        self._store: Store | None = None
        self._turn = threading.Lock()

    def answer(self, line: Line, said: Head) -> None:
        """Until the hardworker ends the line."""
        while True:
            try:
                streams = [HeldStream.parse(each) for each in said["connections"]]
                waiting = [Pending.parse(each) for each in said["pending"]] if "pending" in said else None
            except (KeyError, TypeError, ValueError) as error:
                raise NetworkError("nothing that a hardworker says of what it holds") from error
            if len(streams) > MOST or len(waiting or ()) > MOST:
                raise NetworkError("a hardworker says too much at a time")
            self._note(streams, waiting)
            line.send({"noted": len(streams)})
            said, _ = line.receive(REQUEST_BYTES)

    def _note(self, streams: list[HeldStream], waiting: list[Pending] | None) -> None:
        """What fails is opened anew."""
        with self._turn:
            try:
                if self._store is None:
                    self._store = open_store(self._config, self._size)
                self._store.note_held(streams, waiting)
            except BaseException:
                if self._store is not None:
                    self._store.close()
                    self._store = None
                raise
