"""The messages of all connections in the order in which they came, piece by piece."""

import time
from collections.abc import Callable, Iterator
from itertools import accumulate

from midstream.log.arriving import with_arrivals
from midstream.log.decoding import matching
from midstream.log.selection import Selection
from midstream.storage.stored import Extent, Log, StoredConnection, StoredMessage

POLL = 0.2  # seconds between two looks for new messages
MAX_WAITING = 65536  # messages read ahead of their turn, all connections together
MAX_WAITING_BYTES = 64 << 20  # of their payload; one message of each connection is read in any case

Piece = list[StoredMessage]


def nobody(_: int) -> None:
    """Who is told of the progress where nobody asks."""


class LogReader:
    """Reads a selection once, and then whatever is new.

    Memory is bounded: of each connection that was open at the time being read, some messages wait for
    their turn. Should a host's clock be set back, its messages stay in order of their sequence.
    """

    def __init__(self, log: Log, selection: Selection) -> None:
        self._log = log
        self._selection = selection
        self.connections = selection.choose(log.connections())
        extents = log.extents()
        self.extents: dict[int, Extent] = {
            connection.id: extents[connection.id]
            for connection in self.connections
            if connection.id in extents
        }
        self._next = {key: extent.first for key, extent in self.extents.items()}
        self._last = {key: extent.last for key, extent in self.extents.items()}
        if selection.since_ns is not None:
            for connection in self.connections:
                if (key := connection.id) in self._next:
                    self._next[key] = max(self._next[key], log.first_since(connection, selection.since_ns))
        self.total = sum(  # messages that will be looked at
            max(0, min(extent.messages, extent.last + 1 - self._next[key]))
            for key, extent in self.extents.items()
        )

    def skip_to_last(self, count: int) -> None:
        """Leave out what cannot be among the last `count` messages, as far as their sequences tell."""
        for key, last in self._last.items():
            self._next[key] = max(self._next[key], last + 1 - count)

    def read(self, looked_at: Callable[[int], object] = nobody) -> Iterator[Piece]:
        """Everything up to the messages that were there when it was last asked, in order of time.

        `looked_at` is told how many messages were read, whether they are in the selection or not.
        """
        waiting = [connection for connection in self.connections if self._new(connection)]
        waiting.sort(key=lambda connection: -self._start_ns(connection))
        active: list[_Ahead] = []
        while waiting or active:
            # A connection joins when the others have come to the time of its first message.
            horizon = min((ahead.keys[-1] for ahead in active), default=None)
            while waiting and (horizon is None or self._start_ns(waiting[-1]) <= horizon):
                ahead = _Ahead(waiting.pop())
                if self._refill(ahead, len(active) + 1, looked_at):
                    active.append(ahead)
                    horizon = min(ahead.keys[-1], ahead.keys[-1] if horizon is None else horizon)
            if horizon is None:
                continue
            piece = [pair for ahead in active for pair in ahead.take(horizon)]
            piece.sort(key=lambda pair: (pair[0], pair[1].connection.id))
            chosen = matching([message for _, message in piece], self._selection.conditions)
            chosen = [message for message in chosen if self._selection.covers(message.received_ns)]
            if chosen:
                yield chosen
            active = [ahead for ahead in active if ahead.keys or self._refill(ahead, len(active), looked_at)]

    def follow(self, stop: Callable[[], bool]) -> Iterator[Piece]:
        """Everything, then what comes, until `stop()`."""
        while True:
            yield from self.read()
            if stop():
                return
            time.sleep(POLL)
            self.refresh()

    def refresh(self) -> None:
        """See what is new."""
        self.connections = self._selection.choose(self._log.connections())
        last = self._log.last_sequences()
        for connection in self.connections:
            if connection.id in last:
                self._next.setdefault(connection.id, connection.pruned)
                self._last[connection.id] = last[connection.id]

    def _new(self, connection: StoredConnection) -> bool:
        key = connection.id
        return key in self._last and self._next[key] <= self._last[key]

    def _start_ns(self, connection: StoredConnection) -> int:
        extent = self.extents.get(connection.id)
        return extent.first_ns if extent else connection.opened_ns

    def _refill(self, ahead: "_Ahead", readers: int, looked_at: Callable[[int], object]) -> bool:
        """Read the next messages of a connection; False if it has no more for now."""
        key = ahead.connection.id
        while self._next[key] <= self._last[key]:
            stop = min(self._last[key] + 1, self._next[key] + max(1, MAX_WAITING // readers))
            found, self._next[key] = self._log.piece(
                ahead.connection, self._next[key], stop, MAX_WAITING_BYTES // readers
            )
            looked_at(len(found))
            if found:
                ahead.put(with_arrivals(self._log, found))
                return True
        return False


class _Ahead:
    """Messages of a connection that wait for their turn; keys are their times, which never fall."""

    def __init__(self, connection: StoredConnection) -> None:
        self.connection = connection
        self.keys: list[int] = []
        self._messages: Piece = []
        self._latest = 0

    def put(self, messages: Piece) -> None:
        times = (message.received_ns for message in messages)
        self.keys = list(accumulate(times, max, initial=self._latest))[1:]
        self._latest = self.keys[-1]
        self._messages = messages

    def take(self, horizon: int) -> list[tuple[int, StoredMessage]]:
        """Those up to a time, which are then gone from here."""
        count = next((index for index, key in enumerate(self.keys) if key > horizon), len(self.keys))
        taken = list(zip(self.keys[:count], self._messages[:count], strict=True))
        del self.keys[:count], self._messages[:count]
        return taken
