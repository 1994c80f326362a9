"""Byte streams put in order again: the reader's half of what TCP calls reassembly.

The program stores every segment with its offset, also one behind a hole, and it may store a byte twice
where segments overlap. Here each byte is delivered once and in order; of two versions of a byte the one
that was stored first is delivered.
"""

from bisect import bisect_left

import numpy as np

from midstream.framing import Decoder

OPEN_STREAM = np.dtype([("connection", "<u4"), ("aligned", "<u4"), ("next", "<u8")])
"""struct open of ring.c: an open connection, as the look at a whole batch needs it."""


class Stream:
    """One connection's bytes.

    `push` returns what has come in order. Bytes behind a hole wait in `early`: at most as many as the program
    lets through (EARLY_WINDOW in connection.h, 1 MiB).
    """

    __slots__ = ("_early", "carry", "decoder", "end", "next", "sequence")

    def __init__(self, start: int = 0, decoder: Decoder | None = None) -> None:
        self.next = start  # the offset of the first byte that has not been delivered
        self.end: int | None = None  # where the stream ends, once known
        self.carry = b""  # fixed framing: the delivered part of a message that is not whole yet
        self.decoder = decoder  # other framings: it keeps that part itself
        self.sequence = 0  # other framings: of the next message
        self._early: list[tuple[int, bytes]] = []  # sorted, disjoint

    @property
    def has_early(self) -> bool:
        """Are there bytes behind a hole?"""
        return bool(self._early)

    @property
    def finished(self) -> bool:
        """Has every byte up to the stream's end been delivered?

        A stream joined in the middle may end before the message at which it would have begun here.
        """
        return self.end is not None and self.next >= self.end

    def push(self, offset: int, data: bytes) -> bytes:
        """Take a segment; return the bytes that are now next in order, maybe none."""
        self._keep(offset, data)
        ready = []
        while self._early and self._early[0][0] == self.next:
            _, piece = self._early.pop(0)
            ready.append(piece)
            self.next += len(piece)
        return b"".join(ready)

    def _keep(self, offset: int, data: bytes) -> None:
        """Keep those bytes of a segment that are neither delivered nor kept already."""
        start, end = max(offset, self.next), offset + len(data)
        position = bisect_left(self._early, (start,))
        if position and self._end_of(position - 1) > start:
            start = self._end_of(position - 1)
        while start < end:
            following = self._early[position][0] if position < len(self._early) else end
            stop = min(end, following)
            if start < stop:
                self._early.insert(position, (start, data[start - offset : stop - offset]))
                position += 1
            if position == len(self._early):
                return
            start = max(stop, self._end_of(position))
            position += 1

    def _end_of(self, position: int) -> int:
        start, piece = self._early[position]
        return start + len(piece)


class Streams:
    """The open connections by number, and beside them the table in which ring.c looks.

    The table is the authority on `next` while a stream is aligned, for ring.c moves it: `checkout` brings a
    stream up to date before it is pushed to, and `checkin` writes it back.
    """

    def __init__(self) -> None:
        self._streams: dict[int, Stream] = {}
        self.table = np.zeros(64, OPEN_STREAM)
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def open(self, connection: int, stream: Stream) -> None:
        """Add a connection. Its number is new."""
        if self.count == len(self.table):
            self.table = np.concatenate([self.table, np.zeros(self.count, OPEN_STREAM)])
        row = self._row(connection)
        self.table[row + 1 : self.count + 1] = self.table[row : self.count].copy()
        self.table[row] = (connection, 1, stream.next)
        self.count += 1
        self._streams[connection] = stream

    def checkout(self, connection: int) -> Stream | None:
        """The stream of a connection, up to date; None if it is not open."""
        stream = self._streams.get(connection)
        if stream is not None and (row := self.table[self._row(connection)])["aligned"]:
            stream.next = int(row["next"])
        return stream

    def checkin(self, connection: int, stream: Stream) -> None:
        """Write a stream's new state into the table."""
        # Where the end is known, reaching it has to be noticed, which ring.c does not.
        aligned = not stream.carry and not stream.has_early and stream.end is None
        self.table[self._row(connection)] = (connection, aligned, stream.next)

    def close(self, connection: int) -> None:
        """Forget a connection."""
        del self._streams[connection]
        row = self._row(connection)
        self.table[row : self.count - 1] = self.table[row + 1 : self.count].copy()
        self.count -= 1

    def _row(self, connection: int) -> int:
        return int(np.searchsorted(self.table["connection"][: self.count], connection))
